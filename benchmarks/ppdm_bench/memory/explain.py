"""Where the memory goes: live memory over one step by category and module, and its largest holders; without a GPU."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

from ppdm_bench.configuration import Configuration
from ppdm_bench.memory.modules import OUTSIDE, Modules, Site
from ppdm_bench.memory.predict import Peak, predict_peak
from ppdm_bench.memory.target import Target
from ppdm_bench.memory.timeline import KINDS, Block, Timeline
from ppdm_bench.memory.workload import workload
from ppdm_bench.report.course import Course, Holder, Span, save_course

HOLDERS = 10


def explain(configuration: Configuration, phase: str, target: Target | None) -> tuple[Course, Peak]:
    """The course of the memory over the last iteration of a phase, and the whole prediction.

    Raises:
        PredictionError: it cannot be predicted.
    """
    where = "cpu" if target is None else "cuda"
    work = workload(configuration.resolve(), phase, configuration.shape, configuration.batch_size, where)
    modules = Modules()
    peak = predict_peak(work.build, work.step, work.iterations, target or "cpu", modules)
    assert peak.timeline is not None
    return course(peak.timeline, modules, _name(configuration, phase)), peak


def course(timeline: Timeline, modules: Modules, name: str) -> Course:
    """The course of the last iteration that a timeline holds."""
    start = timeline.marks[-1]
    live = _live(timeline, start)
    totals = [sum(values) for values in zip(*live.values(), strict=True)]
    peak = totals.index(max(totals))
    alive = sorted(timeline.alive_at(start + peak), key=lambda block: -block.size)
    holders = [_holder(block, modules) for block in alive[:HOLDERS]]
    return Course(name, live, _spans(timeline, modules, start), peak, holders)


def write(configurations: Sequence[Configuration], phases: Sequence[str], target: Target | None, folder: Path) -> Iterator[tuple[Course, list[Path]]]:
    """Explain every configuration and phase, and write figure and tables of each into the folder."""
    for configuration in configurations:
        for phase in phases:
            made, _ = explain(configuration, phase, target)
            yield made, save_course(made, folder / _stem(configuration, phase))


def _live(timeline: Timeline, start: int) -> dict[str, Sequence[int]]:
    """Live bytes of each kind after every event from a start on; those of the host's change nothing."""
    now = dict.fromkeys(KINDS, 0)
    live: dict[str, list[int]] = {kind: [] for kind in KINDS}
    for event, (number, size) in enumerate(timeline.all_events):
        block = timeline.blocks[number]
        if block.place != "host":
            now[block.kind] += size or -block.size
        if event >= start:
            for kind, values in live.items():
                values.append(now[kind])
    return dict(live)


def _spans(timeline: Timeline, modules: Modules, start: int) -> list[Span]:
    """What is at work between events, each stretch with its pass and part."""
    ends = [*(event for event, _ in timeline.sites[1:]), timeline.now]
    sites = [(max(event, start), end, site) for (event, site), end in zip(timeline.sites, ends, strict=True) if end > start]
    stages = _stages([site for _, _, site in sites])
    parts = [modules.part(site.path) for _, _, site in sites]
    return [
        Span(begin - start, end - start, stage, part or _neighbour(parts, at, stage))
        for at, ((begin, end, _), stage, part) in enumerate(zip(sites, stages, parts, strict=True))
        if end > begin
    ]


def _stages(sites: Sequence[Site]) -> list[str]:
    """Passes in order; what comes after the last backward pass updates the weights."""
    last = max((at for at, site in enumerate(sites) if site.stage == "backward"), default=len(sites))
    return ["update" if at > last else site.stage for at, site in enumerate(sites)]


def _neighbour(parts: Sequence[str], at: int, stage: str) -> str:
    """A skip is joined for the part that comes next, and its gradient parted from what came before."""
    others = reversed(parts[:at]) if stage == "backward" else parts[at:]
    return next((part for part in others if part), OUTSIDE)


def _holder(block: Block, modules: Modules) -> Holder:
    site = block.site or Site()
    part = modules.part(site.path, block.shape)
    operator = block.name.removeprefix("aten.").rpartition(".")[0] if block.name.startswith("aten.") else block.name
    return Holder(block.size, block.kind, part, site.path, site.stage, operator, block.shape, block.dtype)


def _name(configuration: Configuration, phase: str) -> str:
    c = configuration
    size = "×".join(map(str, c.shape))
    recomputed = "" if c.checkpointing == "none" else f"checkpointing {c.checkpointing}"
    words = (f"{c.method} {c.variant}".strip(), phase, size, f"batch {c.batch_size}", c.precision, recomputed)
    return ", ".join(filter(None, words))


def _stem(configuration: Configuration, phase: str) -> str:
    c = configuration
    other = (c.precision if c.precision != "fp32" else "", c.checkpointing if c.checkpointing != "none" else "")
    words = (c.method, c.variant, *other, phase if phase != "train" else "")
    plain = "-".join(filter(None, words)).replace("=", "").replace(" ", "-")
    return "explain-" + "".join(letter if letter.isalnum() or letter in "-._" else "-" for letter in plain)
