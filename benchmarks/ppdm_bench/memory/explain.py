"""Where the memory goes: live memory over one step by category and module, and its largest holders; without a GPU."""

from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from ppdm_bench.configuration import Configuration
from ppdm_bench.memory.command import Plan, Task, predicted
from ppdm_bench.memory.unet_modules import UNetModules
from ppdm_bench.predictor.modules import OUTSIDE, ROOT, Modules, Site
from ppdm_bench.predictor.peak import Peak, predict_peak
from ppdm_bench.predictor.timeline import KINDS, Block, Timeline
from ppdm_bench.records import Record
from ppdm_bench.report.figures.memory_timeline import Course, Holder, Span

HOLDERS = 10
NEGLIGIBLE = 1e-4  # of the peak: the figure leaves out births and deaths of smaller blocks


def explain(plan: Plan, task: Task) -> tuple[list[Record], Course | None]:
    """The records of a prediction, and the course of the memory over its last iteration if it could be predicted."""
    modules = UNetModules()
    made: list[Peak] = []

    def predict(build: Any, step: Any, iterations: int, target: Any) -> Peak:
        made.append(predict_peak(build, step, iterations, target, modules))
        return made[-1]

    records = predicted(plan, task, predict)
    if not made:
        return records, None
    timeline = made[-1].timeline
    assert timeline is not None
    return records, course(timeline, modules, _name(task.configuration, task.phase))


def course(timeline: Timeline, modules: Modules, name: str) -> Course:
    """The course of the last iteration that a timeline holds."""
    start = timeline.marks[-1]
    live = _live(timeline, start)
    totals = [sum(values) for values in zip(*live.values(), strict=True)]
    peak = max(totals, default=0)
    highest = totals.index(peak) if peak else 0
    kept = _kept(timeline, start, peak * NEGLIGIBLE, highest)
    alive = sorted(timeline.alive_at(start + highest), key=lambda block: -block.size) if peak else []
    return Course(
        name,
        live={kind: [values[event] for event in kept] for kind, values in live.items()},
        spans=_spans(timeline, modules, start, kept),
        peak=bisect_left(kept, highest),
        peak_size=peak,
        holders=[_holder(block, modules) for block in alive[:HOLDERS]],
    )


def _live(timeline: Timeline, start: int) -> dict[str, list[int]]:
    """Live bytes of each kind after every event of the iteration; those of the host's change nothing."""
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


def _kept(timeline: Timeline, start: int, least: float, highest: int) -> list[int]:
    """Events of the iteration, counted from its start, that are worth drawing: of large blocks, and the highest."""
    events = timeline.all_events[start : timeline.ended]
    return [at for at, (number, _) in enumerate(events) if at == highest or timeline.blocks[number].size >= least]


def _spans(timeline: Timeline, modules: Modules, start: int, kept: Sequence[int]) -> list[Span]:
    """What is at work between the events that are kept, each stretch with its pass and part."""
    ends = [*(event for event, _ in timeline.sites[1:]), timeline.now]
    sites = [(event, site) for (event, site), end in zip(timeline.sites, ends, strict=True) if end > start]
    stages = _stages([site for _, site in sites])
    parts = _parts([modules.part(site.path) for _, site in sites], stages)
    places = [bisect_left(kept, max(event - start, 0)) for event, _ in sites] + [len(kept)]
    return [
        Span(begin, end, stage, part)
        for (begin, end), stage, part in zip(pairwise(places), stages, parts, strict=True)
        if end > begin
    ]


def _stages(sites: Sequence[Site]) -> list[str]:
    """Passes in order; what comes after the last backward pass updates the weights."""
    last = max((at for at, site in enumerate(sites) if site.stage == "backward"), default=len(sites))
    return ["update" if at > last else site.stage for at, site in enumerate(sites)]


def _parts(parts: Sequence[str], stages: Sequence[str]) -> list[str]:
    """Parts of the network, and what is done outside of it.

    A skip is joined for the part that comes next, and its gradient parted from what came before. Outside of the network
    the kernel makes its input before, and the loss is computed after the last call that is followed by a backward pass.
    """
    last = max((at for at, part in enumerate(parts) if part != OUTSIDE and stages[at] == "forward"), default=-1)
    told: list[str] = []
    for at, (part, stage) in enumerate(zip(parts, stages, strict=True)):
        if stage == "update":
            told.append("clipping, optimizer, average")
        elif part == OUTSIDE:
            told.append("loss" if at > last and "backward" in stages else "kernel")
        elif part:
            told.append(part)
        else:
            told.append(told[-1] if stage == "backward" and told else next(filter(None, parts[at:]), OUTSIDE))
    return told


def _holder(block: Block, modules: Modules) -> Holder:
    site = block.site or Site()
    part = modules.part(site.path, block.shape)
    part = "outside the network" if part == OUTSIDE else part
    path = "the U-Net, joining a skip" if site.path == ROOT else site.path
    operator = block.name.removeprefix("aten.").rpartition(".")[0] if block.name.startswith("aten.") else block.name
    return Holder(block.size, block.kind, part, path, site.stage, operator, block.shape, block.dtype)


def _name(configuration: Configuration, phase: str) -> str:
    c = configuration
    size = "×".join(map(str, c.shape))
    recomputed = "" if c.checkpointing == "none" else f"checkpointing {c.checkpointing}"
    words = (c.label, phase, size, f"batch {c.batch_size}", c.precision, recomputed)
    return ", ".join(filter(None, words))


def stem(configuration: Configuration, phase: str) -> str:
    """The name of the files: ``explain-ppdm-r2``; what is not the default follows."""
    c = configuration
    other = (c.precision if c.precision != "fp32" else "", c.checkpointing if c.checkpointing != "none" else "")
    words = (c.method, c.variant, *other, phase if phase != "train" else "")
    plain = "-".join(filter(None, words)).replace("=", "").replace(" ", "-")
    return "explain-" + "".join(letter if letter.isalnum() or letter in "-._" else "-" for letter in plain)
