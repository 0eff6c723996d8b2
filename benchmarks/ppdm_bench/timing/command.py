"""``ppdm-bench speed``: plan of a timing benchmark, and its results as records."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from statistics import linear_regression, median
from typing import Any

from ppdm_bench.configuration import Configuration
from ppdm_bench.environment import provenance
from ppdm_bench.isolation.runner import ChildAnswer
from ppdm_bench.isolation.sweep import Sweep, SweepCase
from ppdm_bench.memory.feasibility import doubt
from ppdm_bench.predictor.cards import Sheet
from ppdm_bench.predictor.target import Target
from ppdm_bench.records import Record
from ppdm_bench.timing.clock import FIRST, Protocol
from ppdm_bench.units import plural, shape_text

WORKER = "ppdm_bench.timing.worker"

Spacing = tuple[float, float, float]
Samples = Sequence[float]

TIMES = {"train": "step_seconds", "sample": "volume_seconds"}
FLOPS = {"train": "step_flops", "sample": "volume_flops"}
ESTIMATE = "volume_seconds_estimate"


@dataclass(frozen=True)
class TimingTask:
    """One phase of one configuration."""

    configuration: Configuration
    phase: str

    @property
    def text(self) -> str:
        """Label for the progress bar."""
        c = self.configuration
        size = shape_text(c.shape)
        return " ".join(filter(None, ("timing", c.name, c.variant, self.phase, size, c.precision, c.checkpointing)))


@dataclass(frozen=True)
class TimingPlan:
    """Plan of a timing benchmark.

    Attributes:
        configurations, phases: every combination is run.
        device: ``cuda`` or ``cpu``.
        evaluations: numbers of network evaluations per volume; None means the default of the method.
        protocol: required length of a measurement.
        spacing: voxel spacing in mm of the scan that gives the volume size; empty without a scan.
        timeout: time limit in seconds for one phase of one configuration.
        card: phases that are predicted not to fit on this card are skipped; None runs every phase.
        sheet: data sheet of the card to predict times for; None measures times.
    """

    configurations: Sequence[Configuration]
    phases: Sequence[str]
    device: str
    evaluations: Sequence[int | None]
    protocol: Protocol
    spacing: Spacing | tuple[()] = ()
    timeout: float = 600
    card: Target | None = None
    sheet: Sheet | None = None

    @property
    def tasks(self) -> list[TimingTask]:
        """All tasks, in the order in which they run."""
        return [TimingTask(c, phase) for c in self.configurations for phase in self.phases]

    def counts(self, task: TimingTask) -> list[int]:
        """Return the requested numbers of network evaluations per volume in ascending order; empty for training."""
        if task.phase == "train":
            return []
        own = task.configuration.resolve().sampling.steps
        return sorted({own if k is None else k for k in self.evaluations})

    def doubt(self, task: TimingTask) -> str:
        """Return why a task is predicted not to fit on the card; an empty text if it fits or there is no card."""
        return "" if self.card is None else doubt(task.configuration, task.phase, self.card, self.timeout)


def carry_out(
    plan: TimingPlan, progress: Callable[[TimingTask], None] = lambda _: None, known: Sequence[Record] = ()
) -> Iterator[list[Record]]:
    """Run the tasks of a plan in order and yield the records of each task when it ends.

    Args:
        plan: plan to run.
        progress: called with each task before it begins.
        known: records of earlier runs. Results of the same configuration, code, protocol and environment are reused and
            not measured again.
    """
    sweep = Sweep(WORKER, plan.timeout, known)
    for task in plan.tasks:
        progress(task)
        case = _case(plan, task)
        yield sweep.settled(case) or sweep.measure(case, partial(_records, plan, task), plan.doubt(task))


def _case(plan: TimingPlan, task: TimingTask) -> SweepCase:
    """Return the fields shared by all records of a task, and the request for its child process."""
    configuration, counts = task.configuration, plan.counts(task)
    described = configuration.describe()
    common = {
        # The identifier covers only the configuration, so that memory and quality records share it.
        **provenance(described),
        "command": "speed",
        **configuration.fields(),
        "spacing": tuple(plan.spacing),
        "phase": task.phase,
        "device": plan.device,
        # The time limit is part of the protocol, because the number of repetitions depends on it.
        "options": described | {"protocol": asdict(plan.protocol) | {"timeout": plan.timeout, "evaluations": counts}},
    }
    request = {
        "configuration": configuration.to_dict(),
        "phase": task.phase,
        "device": plan.device,
        "evaluations": counts,
        "protocol": asdict(plan.protocol),
        "timeout": plan.timeout,
    }
    return SweepCase(TIMES[task.phase], common, request, [{"steps": k} for k in counts or (None,)])


def _records(plan: TimingPlan, task: TimingTask, answer: ChildAnswer, common: dict[str, Any]) -> list[Record]:
    """Return the records for the answer of a child process.

    They contain the ceiling, the time of the first call, FLOPs, and for each run its time and its share of the ceiling.
    A number of evaluations that was not run gets a skipped record and an extrapolated estimate.
    """
    common = {name: value for name, value in common.items() if name != "reason"}  # every record gets its own reason
    metrics: Mapping[str, Any] = answer.metrics
    times, flops = _by_evaluations(metrics[TIMES[task.phase]]), _by_evaluations(metrics.get(FLOPS[task.phase], {}))
    ceiling = metrics["matmul"]
    best = max(ceiling["rates"])
    records = [_ceiling_record(ceiling, common), *_first_call(task, metrics, common)]
    for steps, samples in times.items():
        about = common | {"steps": steps, "kind": "measured"}
        note = "; ".join(filter(None, (answer.reason, _repetitions_note(samples, plan.protocol))))
        seconds = median(samples)
        records.append(_statistic(TIMES[task.phase], samples, "median", seconds, about | {"reason": note}))
        if steps in flops:
            share = flops[steps] / seconds / best
            what = f"of the {ceiling['what']}, in {seconds:.4g} s"
            records.append(Record(metric="flops_share", value=share, reason=what, **about))
    # FLOPs are predicted: they are counted on fake tensors, without a run.
    counted = common | {"kind": "predicted", "stat": "count", "n": 1}
    records += [Record(metric=FLOPS[task.phase], value=n, steps=k, **counted) for k, n in flops.items()]
    missing = [k for k in plan.counts(task) if k not in times]
    return records + [record for k in missing for record in _skipped_and_estimated(plan, k, times, common)]


def _by_evaluations(found: Any) -> dict[int | None, Any]:
    """Convert the keys (evaluations) from JSON strings to integers; training gets the only key None."""
    return {int(k): value for k, value in found.items()} if isinstance(found, Mapping) else {None: found}


def _statistic(metric: str, samples: Samples, stat: str, value: float, about: Mapping[str, Any]) -> Record:
    # Seven digits are finer than the resolution of the clocks, and take half the space of full precision in JSON.
    rounded = tuple(float(f"{x:.7g}") for x in samples)
    return Record(metric=metric, value=value, stat=stat, n=len(samples), samples=rounded, **about)


def _ceiling_record(ceiling: Mapping[str, Any], common: Mapping[str, Any]) -> Record:
    about = {**common, "kind": "measured", "reason": ceiling["what"]}
    return _statistic("matmul_flops_per_second", ceiling["rates"], "max", max(ceiling["rates"]), about)


def _first_call(task: TimingTask, metrics: Mapping[str, Any], common: Mapping[str, Any]) -> list[Record]:
    """Return the record of the first training step, or of the first volume (one evaluation), with compilation."""
    if FIRST not in metrics:
        return []
    about = {**common, "steps": None if task.phase == "train" else 1, "kind": "measured"}
    return [Record(metric=FIRST, value=metrics[FIRST], stat="first", n=1, **about)]


def _repetitions_note(samples: Samples, protocol: Protocol) -> str:
    if len(samples) >= protocol.repetitions:
        return ""
    return f"{len(samples)} instead of {protocol.repetitions} repetitions, because of the time limit"


def _skipped_and_estimated(
    plan: TimingPlan, evaluations: int, times: Mapping[int | None, Samples], common: Mapping[str, Any]
) -> list[Record]:
    """Return a skipped record for a number of evaluations that exceeds the time limit, and an estimate."""
    points = {k: median(samples) for k, samples in times.items() if k is not None}
    slope, intercept = linear_regression(list(points), list(points.values()))
    about = {**common, "steps": evaluations}
    why = (
        f"a volume of {plural(evaluations, 'evaluation')} cannot be repeated often enough within {plan.timeout:g} s; "
        "set a longer --timeout"
    )
    longest = max(intercept + slope * evaluations, *points.values())
    how = f"not run: extrapolated linearly from the times of {', '.join(map(str, points))} evaluations"
    return [
        Record(metric=TIMES["sample"], kind="measured", status="skipped", reason=why, **about),
        Record(metric=ESTIMATE, kind="predicted", value=longest, stat="extrapolated", reason=how, **about),
    ]
