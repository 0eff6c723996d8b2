"""``ppdm-bench speed``: what is to be timed, and what was found out, as records."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from statistics import linear_regression, median
from typing import Any

from ppdm_bench.configuration import Configuration
from ppdm_bench.environment import environment
from ppdm_bench.isolation.runner import Answer
from ppdm_bench.isolation.sweep import Case, Sweep
from ppdm_bench.memory.feasibility import doubt
from ppdm_bench.predictor.target import Target
from ppdm_bench.records import Record, config_id
from ppdm_bench.timing.clock import FIRST, Protocol
from ppdm_bench.units import shape_text

WORKER = "ppdm_bench.timing.worker"

Spacing = tuple[float, float, float]
Samples = Sequence[float]

TIMES = {"train": "step_seconds", "sample": "volume_seconds"}
FLOPS = {"train": "step_flops", "sample": "volume_flops"}
ESTIMATE = "volume_seconds_estimate"


@dataclass(frozen=True)
class Task:
    """One phase of one configuration."""

    configuration: Configuration
    phase: str

    @property
    def text(self) -> str:
        """How a progress bar calls it."""
        c = self.configuration
        size = shape_text(c.shape)
        return " ".join(filter(None, ("timing", c.method, c.variant, self.phase, size, c.precision, c.checkpointing)))


@dataclass(frozen=True)
class Plan:
    """What is to be found out.

    Attributes:
        configurations, phases: the product of these.
        device: ``cuda`` or ``cpu``.
        evaluations: of the network for a volume; None stands for the method's own.
        protocol: when a measurement is long enough.
        spacing: of the scan whose size was taken, mm; empty without one.
        timeout: seconds for one phase of one configuration.
        card: whose memory must be predicted to suffice, else a phase is left out; None tries every one.
    """

    configurations: Sequence[Configuration]
    phases: Sequence[str]
    device: str
    evaluations: Sequence[int | None]
    protocol: Protocol
    spacing: Spacing | tuple[()] = ()
    timeout: float = 600
    card: Target | None = None

    @property
    def tasks(self) -> list[Task]:
        """In the order in which they are done."""
        return [Task(c, phase) for c in self.configurations for phase in self.phases]

    def counts(self, task: Task) -> list[int]:
        """The network evaluations of a volume that are asked for, ascending; none in training."""
        if task.phase == "train":
            return []
        own = task.configuration.resolve().sampling.steps
        return sorted({own if k is None else k for k in self.evaluations})


def carry_out(
    plan: Plan, progress: Callable[[Task], None] = lambda _: None, known: Sequence[Record] = ()
) -> Iterator[list[Record]]:
    """Do the tasks of a plan in order, and yield the records of each as soon as it is done.

    Args:
        plan: what is to be found out.
        progress: called with each task before it begins.
        known: records of earlier runs. What was measured for the same configuration by the same code and protocol in
            the same environment is yielded from them and not measured again.
    """
    sweep = Sweep(WORKER, plan.timeout, known)
    for task in plan.tasks:
        progress(task)
        case = _case(plan, task)
        yield sweep.settled(case) or sweep.measure(case, partial(_timed, plan, task), _doubt(plan, task))


def _doubt(plan: Plan, task: Task) -> str:
    return "" if plan.card is None else doubt(task.configuration, task.phase, plan.card, plan.timeout)


def _case(plan: Plan, task: Task) -> Case:
    """What all records of a task have in common, and what its child is told."""
    configuration, counts = task.configuration, plan.counts(task)
    described = configuration.describe()
    common = {
        # Of the configuration alone: its memory and its quality, too, are found by it.
        "config_id": config_id(described),
        "command": "speed",
        **configuration.fields(),
        "spacing": tuple(plan.spacing),
        "phase": task.phase,
        "device": plan.device,
        # How often it is repeated depends on the time limit, too.
        "options": described | {"protocol": asdict(plan.protocol) | {"timeout": plan.timeout, "evaluations": counts}},
        "env": environment(),
    }
    told = {
        "configuration": configuration.to_dict(),
        "phase": task.phase,
        "device": plan.device,
        "evaluations": counts,
        "protocol": asdict(plan.protocol),
        "timeout": plan.timeout,
    }
    return Case(TIMES[task.phase], common, told, [{"steps": k} for k in counts or (None,)])


def _timed(plan: Plan, task: Task, answer: Answer, common: dict[str, Any]) -> list[Record]:
    """The records of what a child found out: a time and its share of the ceiling for everything that was run, FLOPs of
    it, the ceiling, the time of the first call; where a number of evaluations was not run, that, and an estimate that
    is marked as one.
    """
    common = {name: value for name, value in common.items() if name != "reason"}  # each has a reason of its own
    metrics: Mapping[str, Any] = answer.metrics
    times, flops = _by_evaluations(metrics[TIMES[task.phase]]), _by_evaluations(metrics.get(FLOPS[task.phase], {}))
    ceiling = metrics["matmul"]
    best = max(ceiling["rates"])
    records = [_rate(ceiling, common), *_first(task, metrics, common)]
    for steps, samples in times.items():
        about = common | {"steps": steps, "kind": "measured"}
        note = "; ".join(filter(None, (answer.reason, _fewer(samples, plan.protocol))))
        seconds = median(samples)
        records.append(_statistic(TIMES[task.phase], samples, "median", seconds, about | {"reason": note}))
        if steps in flops:
            share = flops[steps] / seconds / best
            what = f"of the {ceiling['what']}, in {seconds:.4g} s"
            records.append(Record(metric="flops_share", value=share, reason=what, **about))
    # Counted on tensors without values: nothing was run for it.
    counted = common | {"kind": "predicted", "stat": "count", "n": 1}
    records += [Record(metric=FLOPS[task.phase], value=n, steps=k, **counted) for k, n in flops.items()]
    missing = [k for k in plan.counts(task) if k not in times]
    return records + [record for k in missing for record in _not_run(plan, k, times, common)]


def _by_evaluations(found: Any) -> dict[int | None, Any]:
    """What JSON made of numbers by evaluations; without evaluations, in training, there is one."""
    return {int(k): value for k, value in found.items()} if isinstance(found, Mapping) else {None: found}


def _statistic(metric: str, samples: Samples, stat: str, value: float, about: Mapping[str, Any]) -> Record:
    # Seven digits are more than any clock has, and half of what JSON would keep.
    rounded = tuple(float(f"{x:.7g}") for x in samples)
    return Record(metric=metric, value=value, stat=stat, n=len(samples), samples=rounded, **about)


def _rate(ceiling: Mapping[str, Any], common: Mapping[str, Any]) -> Record:
    about = {**common, "kind": "measured", "reason": ceiling["what"]}
    return _statistic("matmul_flops_per_second", ceiling["rates"], "max", max(ceiling["rates"]), about)


def _first(task: Task, metrics: Mapping[str, Any], common: Mapping[str, Any]) -> list[Record]:
    """The first training step, or the first volume of one evaluation: what is compiled is compiled in it."""
    if FIRST not in metrics:
        return []
    about = {**common, "steps": None if task.phase == "train" else 1, "kind": "measured"}
    return [Record(metric=FIRST, value=metrics[FIRST], stat="first", n=1, **about)]


def _fewer(samples: Samples, protocol: Protocol) -> str:
    if len(samples) >= protocol.repetitions:
        return ""
    return f"{len(samples)} repetitions and not {protocol.repetitions}, as the time limit holds no more"


def _not_run(
    plan: Plan, evaluations: int, times: Mapping[int | None, Samples], common: Mapping[str, Any]
) -> list[Record]:
    """That so many evaluations did not fit the time limit, and what they would take by those that did."""
    points = {k: median(samples) for k, samples in times.items() if k is not None}
    slope, intercept = linear_regression(list(points), list(points.values()))
    about = {**common, "steps": evaluations}
    why = f"a volume of {evaluations} evaluations does not fit the time limit of {plan.timeout:g} s often enough"
    line = intercept + slope * evaluations
    how = f"not run: the line through the times of {', '.join(map(str, points))} evaluations, continued"
    return [
        Record(
            metric=TIMES["sample"],
            kind="measured",
            status="skipped",
            reason=f"{why}; a longer --timeout measures it",
            **about,
        ),
        Record(
            metric=ESTIMATE,
            value=max(line, *points.values()),
            stat="extrapolated",
            kind="predicted",
            reason=how,
            **about,
        ),
    ]
