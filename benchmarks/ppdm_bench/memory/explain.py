"""Memory timeline without a GPU: live memory during one step by kind and module, and the largest blocks.

For a card that is given by name, the module also predicts the time of the step by operator.
"""

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from ppdm_bench.configuration import Configuration
from ppdm_bench.memory.command import MemoryPlan, MemoryTask, predicted
from ppdm_bench.memory.unet_modules import UNetModules
from ppdm_bench.memory.workload import workload
from ppdm_bench.predictor.cards import SHEETS
from ppdm_bench.predictor.modules import OUTSIDE, ROOT, Modules, Site
from ppdm_bench.predictor.peak import Peak, predict_peak
from ppdm_bench.predictor.target import Target
from ppdm_bench.predictor.timeline import KINDS, Block, Timeline
from ppdm_bench.predictor.timing import predict_time
from ppdm_bench.records import Record
from ppdm_bench.report.figures.memory_timeline import MemoryTimeline, Span, TimelineBlock
from ppdm_bench.report.figures.time_by_operator import Cost

HOLDERS = 10
NEGLIGIBLE = 1e-4  # fraction of the peak; the figure omits allocations and releases of smaller blocks


def explain(plan: MemoryPlan, task: MemoryTask) -> tuple[list[Record], MemoryTimeline | None]:
    """Return the records of a prediction, and the memory timeline of its last iteration (None if it failed)."""
    modules = UNetModules()
    peaks: list[Peak] = []

    def predict(build: Any, step: Any, iterations: int, target: Any) -> Peak:
        peaks.append(predict_peak(build, step, iterations, target, modules))
        return peaks[-1]

    records = predicted(plan, task, predict)
    if not peaks:
        return records, None
    timeline = peaks[-1].timeline
    assert timeline is not None
    return records, course(timeline, modules, _name(task.configuration, task.phase))


def costs(task: MemoryTask, target: Target) -> list[Cost]:
    """Return the predicted time of a step by operator; empty if the card has no known data sheet."""
    sheet, c = next((sheet for sheet in SHEETS if sheet.name == target.gpu), None), task.configuration
    if sheet is None:
        return []
    work = workload(c.resolve(), task.phase, c.shape, c.batch_size, "cuda")
    found = predict_time(work.build, work.step, sheet, target, work.iterations, UNetModules())
    total: defaultdict[tuple[str, str, str], float] = defaultdict(float)
    for kernel, seconds, limit in found.by_kernel:
        site = kernel.site or Site()
        stage = site.stage if site.path or site.stage != "forward" else "outside the network"
        total[kernel.operator, stage, limit] += seconds
    return [Cost(*what, seconds) for what, seconds in total.items()]


def course(timeline: Timeline, modules: Modules, name: str) -> MemoryTimeline:
    """Return the live memory during the last iteration of a timeline."""
    start = timeline.marks[-1]
    live = _live(timeline, start)
    totals = [sum(values) for values in zip(*live.values(), strict=True)]
    peak = max(totals, default=0)
    highest = totals.index(peak) if peak else 0
    shown = _shown_events(timeline, start, peak * NEGLIGIBLE, highest)
    alive = sorted(timeline.alive_at(start + highest), key=lambda block: -block.size) if peak else []
    return MemoryTimeline(
        name,
        live={kind: [values[event] for event in shown] for kind, values in live.items()},
        spans=_spans(timeline, modules, start, shown),
        peak=bisect_left(shown, highest),
        peak_size=peak,
        blocks=[_block(block, modules) for block in alive[:HOLDERS]],
    )


def course_of_steps(timeline: Timeline, blocks: Sequence[TimelineBlock], name: str) -> MemoryTimeline:
    """Return the live memory during all steps of a timeline."""
    live = _live(timeline, 0)
    totals = [sum(values) for values in zip(*live.values(), strict=True)]
    highest, peak = timeline.peak()
    shown = _shown_events(timeline, 0, peak * NEGLIGIBLE, highest)
    starts = sorted({0, *timeline.marks, *(event for event, _ in timeline.sites)} & set(range(len(totals))))
    sites = dict(timeline.sites)
    spans, stage = list[Span](), "forward"
    for begin, end in pairwise([*starts, len(totals)]):
        if begin in sites:
            stage = "update" if sites[begin].stage == "optimizer" else sites[begin].stage
        first, last = bisect_left(shown, begin), bisect_left(shown, end)
        if last > first:
            spans.append(Span(first, last, stage, f"step {max(bisect_right(timeline.marks, begin), 1)}"))
    return MemoryTimeline(
        name,
        live={kind: [values[event] for event in shown] for kind, values in live.items()},
        spans=spans,
        peak=bisect_left(shown, highest),
        peak_size=peak,
        blocks=blocks,
        steps=len(timeline.marks),
    )


def _live(timeline: Timeline, start: int) -> dict[str, list[int]]:
    """Return the live bytes of each kind after every event of the iteration; host memory is not counted."""
    now = dict.fromkeys(KINDS, 0)
    live: dict[str, list[int]] = {kind: [] for kind in KINDS}
    for event, (number, size) in enumerate(timeline.all_events[: timeline.ended]):
        block = timeline.blocks[number]
        if block.place != "host":
            now[block.kind] += size or -block.size
        if event >= start:
            for kind, values in live.items():
                values.append(now[kind])
    return live


def _shown_events(timeline: Timeline, start: int, least: float, highest: int) -> list[int]:
    """Return the events that the figure shows, counted from ``start``: those of large blocks, and the peak."""
    events = timeline.all_events[start : timeline.ended]
    return [at for at, (number, _) in enumerate(events) if at == highest or timeline.blocks[number].size >= least]


def _spans(timeline: Timeline, modules: Modules, start: int, shown: Sequence[int]) -> list[Span]:
    """Return the spans of the figure, each with its pass and its part of the network."""
    ends = [*(event for event, _ in timeline.sites[1:]), timeline.now]
    sites = [(event, site) for (event, site), end in zip(timeline.sites, ends, strict=True) if end > start]
    stages = _stages([site for _, site in sites])
    parts = _parts([modules.part(site.path) for _, site in sites], stages)
    places = [bisect_left(shown, max(event - start, 0)) for event, _ in sites] + [len(shown)]
    return [
        Span(begin, end, stage, part)
        for (begin, end), stage, part in zip(pairwise(places), stages, parts, strict=True)
        if end > begin
    ]


def _stages(sites: Sequence[Site]) -> list[str]:
    """Return the pass of each site; all sites after the last backward pass belong to the weight update."""
    last = max((at for at, site in enumerate(sites) if site.stage == "backward"), default=len(sites))
    return ["update" if at > last else site.stage for at, site in enumerate(sites)]


def _parts(parts: Sequence[str], stages: Sequence[str]) -> list[str]:
    """Return a label for each site: the part of the network, or the work outside the network.

    The concatenation of a skip connection belongs to the next part, and its gradient to the previous part. Work outside
    the network has the label ``loss`` after the last forward call if there is a backward pass, else ``kernel``.
    """
    last = max((at for at, part in enumerate(parts) if part != OUTSIDE and stages[at] == "forward"), default=-1)
    labels: list[str] = []
    for at, (part, stage) in enumerate(zip(parts, stages, strict=True)):
        if stage == "update":
            labels.append("clipping, optimizer, average")
        elif part == OUTSIDE:
            labels.append("loss" if at > last and "backward" in stages else "kernel")
        elif part:
            labels.append(part)
        else:
            labels.append(labels[-1] if stage == "backward" and labels else next(filter(None, parts[at:]), OUTSIDE))
    return labels


def _block(block: Block, modules: Modules) -> TimelineBlock:
    site = block.site or Site()
    part = modules.part(site.path, block.shape)
    part = "outside the network" if part == OUTSIDE else part
    path = "the U-Net, joining a skip" if site.path == ROOT else site.path
    return TimelineBlock(block.size, block.kind, part, path, site.stage, block.operator, block.shape, block.dtype)


def _name(configuration: Configuration, phase: str) -> str:
    c = configuration
    size = "×".join(map(str, c.shape))
    recomputed = "" if c.checkpointing == "none" else f"checkpointing {c.checkpointing}"
    words = (c.label, phase, size, f"batch {c.batch_size}", c.precision, recomputed)
    return ", ".join(filter(None, words))


def stem(configuration: Configuration, phase: str) -> str:
    """Return the stem of the file names, such as ``explain-ppdm-r2``, followed by options that are not defaults."""
    c = configuration
    other = (c.precision if c.precision != "fp32" else "", c.checkpointing if c.checkpointing != "none" else "")
    words = (c.name, c.variant, *other, phase if phase != "train" else "")
    plain = "-".join(filter(None, words)).replace("=", "").replace(" ", "-")
    return "explain-" + "".join(letter if letter.isalnum() or letter in "-._" else "-" for letter in plain)
