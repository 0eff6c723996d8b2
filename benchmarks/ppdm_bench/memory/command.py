"""``ppdm-bench memory``: predict and, with a device, measure every configuration; the results are records."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from ppdm_bench.commands.methods import parameter_count
from ppdm_bench.configuration import Configuration
from ppdm_bench.environment import environment
from ppdm_bench.isolation.pool import pool, workers_for
from ppdm_bench.isolation.runner import ChildAnswer, TimeIsUpError, time_limit
from ppdm_bench.isolation.sweep import Sweep, SweepCase
from ppdm_bench.memory.feasibility import shortage, skipping
from ppdm_bench.memory.host import translation_peak
from ppdm_bench.memory.workload import fault, uncompiled, workload
from ppdm_bench.predictor.cards import Sheet
from ppdm_bench.predictor.peak import Peak, PredictionError, predict_peak
from ppdm_bench.predictor.target import GIB, Target
from ppdm_bench.records import Record, config_id
from ppdm_bench.timing.command import TIMES
from ppdm_bench.timing.prediction import time_records
from ppdm_bench.units import shape_text

WORKER = "ppdm_bench.memory.worker"

_MANY = 8  # predictions for which it pays to start processes

Spacing = tuple[float, float, float]


@dataclass(frozen=True)
class MemoryTask:
    """Prediction or measurement of one phase of one configuration."""

    configuration: Configuration
    phase: str
    measured: bool

    @property
    def text(self) -> str:
        """Label for the progress bar."""
        c = self.configuration
        how = "measuring" if self.measured else "predicting"
        size = shape_text(c.shape)
        return " ".join(filter(None, (how, c.name, c.variant, self.phase, size, c.precision, c.checkpointing)))


@dataclass(frozen=True)
class MemoryPlan:
    """Plan of a memory benchmark.

    Attributes:
        configurations, phases: every combination is run, except phases that a method does not have.
        device: measurement device, ``cuda`` or ``cpu``; ``predict`` measures nothing.
        target: target of the prediction; None predicts for the CPU, without CUDA rules.
        spacing: voxel spacing in mm of the scan that gives the volume size; empty without a scan.
        timeout: time limit in seconds of one measurement and of one prediction.
        budget: memory budget in bytes, which also limits measurements; None means the memory of the device.
        gate: whether to skip measurements that are predicted not to fit.
        sheet: data sheet of the card, to also predict the time of what fits; None predicts no time.
    """

    configurations: Sequence[Configuration]
    phases: Sequence[str]
    device: str
    target: Target | None
    spacing: Spacing | tuple[()] = ()
    timeout: float = 600
    budget: int | None = None
    gate: bool = True
    sheet: Sheet | None = None

    @property
    def limit(self) -> int | None:
        """Limit in bytes for the tensors of a measurement: the budget, on CUDA minus the CUDA context.

        On CUDA, a budget above the memory of the device sets no limit.
        """
        if self.budget is None or self.target is None:
            return self.budget
        return None if self.budget > environment().get("gpu_bytes", 0) else self.budget - self.target.context

    @property
    def tasks(self) -> list[MemoryTask]:
        """All tasks; predictions come first, because they are quick and can show that a measurement does not fit."""
        kinds = (False, True) if self.device != "predict" else (False,)
        existing = [(c, phase) for c in self.configurations for phase in self.phases if phase in c.resolve().phases]
        return [MemoryTask(c, phase, kind) for kind in kinds for c, phase in existing]


def carry_out(
    plan: MemoryPlan, progress: Callable[[MemoryTask], None] = lambda _: None, known: Sequence[Record] = ()
) -> Iterator[list[Record]]:
    """Run the tasks of a plan in order and yield the records of each task when it ends.

    Args:
        plan: plan to run.
        progress: called with each task before it begins.
        known: records of earlier runs. Results of the same configuration, code and environment are reused, so that an
            interrupted run can resume.
    """
    sweep = Sweep(WORKER, plan.timeout, known)
    doubts: dict[tuple[Configuration, str], str] = {}
    predictions = _predictions(plan, sweep)
    for task in plan.tasks:
        progress(task)
        about = task.configuration, task.phase
        if task.measured:
            yield sweep.measure(_case(plan, task), partial(_measured, task), doubts.get(about, ""))
            continue
        made = next(predictions)
        if plan.gate and (short := next((r.reason for r in made if r.status == "oom"), "")):
            doubts[about] = skipping(short)
        yield made


def _predictions(plan: MemoryPlan, sweep: Sweep) -> Iterator[list[Record]]:
    """Yield the records of each prediction in the order of the tasks; many predictions run in parallel processes."""
    tasks = [task for task in plan.tasks if not task.measured]
    cases = [_case(plan, task) for task in tasks]
    settled = [sweep.settled(case) for case in cases]
    arguments = partial(_prediction, plan), tasks, cases, settled
    new = settled.count([])
    if new < _MANY or (workers := workers_for(new)) == 1:
        yield from map(*arguments)
        return
    with pool(workers) as processes:
        yield from processes.map(*arguments)


def _prediction(plan: MemoryPlan, task: MemoryTask, case: SweepCase, settled: list[Record]) -> list[Record]:
    """Return the records of an earlier run, or predict; then add the predicted time."""
    made = settled or _predict(plan, task, case)
    return [*made, *_times(plan, task, case, made)]


def _times(plan: MemoryPlan, task: MemoryTask, case: SweepCase, made: Sequence[Record]) -> list[Record]:
    """Return the predicted time of a step or volume that fits; empty if it is not requested or already recorded."""
    done = {record.metric for record in made if record.status == "ok"}
    if plan.sheet is None or task.phase not in TIMES or TIMES[task.phase] in done or case.metric not in done:
        return []
    own = task.configuration.resolve().sampling.steps
    common = {name: value for name, value in case.common.items() if name != "steps"}
    return time_records(task.configuration, plan.sheet, [own], plan.timeout, common)


def _case(plan: MemoryPlan, task: MemoryTask) -> SweepCase:
    """Return the fields shared by all records of a task, and the request for its child process."""
    configuration = task.configuration
    options = configuration.describe()
    where = plan.device if task.measured else "cpu" if plan.target is None else "cuda"
    size = (configuration.shape, configuration.batch_size)
    work = workload(configuration.resolve(), task.phase, *size, where)
    limited = {} if plan.limit is None else {"capacity": plan.budget}
    common = {
        "config_id": config_id(options),
        "command": "memory",
        **configuration.fields(),
        "spacing": tuple(plan.spacing),
        "phase": task.phase,
        "steps": work.evaluations if task.phase == "sample" else None,
        "options": options,
        "kind": "measured" if task.measured else "predicted",
        "device": where,
        "env": environment() | (limited if task.measured or plan.target is None else target_environment(plan.target)),
    }
    request = {"configuration": configuration.to_dict(), "phase": task.phase, "device": where, "limit": plan.limit}
    return SweepCase("peak_allocated", common, request)


def predicted(plan: MemoryPlan, task: MemoryTask, predict: Callable[..., Peak] | None = None) -> list[Record]:
    """Return the records of one prediction; ``predict``: function to call instead of :func:`predict_peak`."""
    return _predict(plan, task, _case(plan, task), predict)


def _predict(
    plan: MemoryPlan, task: MemoryTask, case: SweepCase, predict: Callable[..., Peak] | None = None
) -> list[Record]:
    configuration, target = task.configuration, plan.target
    size = (configuration.shape, configuration.batch_size)
    work = workload(configuration.resolve(), task.phase, *size, case.common["device"])
    try:
        with time_limit(plan.timeout):
            peak = (predict or predict_peak)(work.build, work.step, work.iterations, target or "cpu")
    except TimeIsUpError as late:
        return case.timed_out(plan.timeout, str(late))
    except PredictionError as error:
        return case.failed("error", str(error))
    except Exception as error:  # the code of a method can raise any exception; the other tasks must still run
        return case.failed("error", fault(error))
    short = _shortage(plan, peak)
    of_peak: dict[str, Any] = {"stat": "max", "n": 1, **case.common}
    of_peak |= {"status": "oom", "reason": short} if short else {"reason": uncompiled(configuration.resolve())}
    records = [
        Record(metric=kind, value=size, stat="at peak", n=1, **case.common) for kind, size in peak.breakdown.items()
    ]
    if target is not None:
        records.append(Record(metric="assumed", value=peak.assumed, stat="at peak", n=1, **case.common))
    records.append(_parameters(task, case.common))
    if (host := translation_peak(peak, configuration, task.phase, case.common["device"])) is not None:
        records.append(Record(metric="peak_host", value=host, stat="max", n=1, **case.common))
    if peak.peak_reserved is not None:
        context = target.context if target else 0  # the names are those of the measured values
        values = {"peak_process": peak.peak_reserved + context, "context": context, "peak_reserved": peak.peak_reserved}
        records += [Record(metric=name, value=value, **of_peak) for name, value in values.items()]
    if peak.needs is not None:
        records.append(Record(metric="needs", value=peak.needs, **of_peak))
    return [*records, Record(metric=case.metric, value=peak.peak_allocated, **of_peak)]


def _shortage(plan: MemoryPlan, peak: Peak) -> str:
    """Return why a prediction does not fit; an empty string if it fits."""
    if plan.target is not None:
        return shortage(plan.target, peak)
    if plan.budget is None or peak.peak_allocated <= plan.budget:
        return ""
    return f"the budget is {plan.budget / GIB:.4g} GiB, and the tensors take {peak.peak_allocated / GIB:.4g} GiB"


def target_environment(target: Target) -> dict[str, Any]:
    """Return the target of a prediction, for the environment of its records."""
    return {
        "torch": ".".join(map(str, target.release)),
        "capacity": target.capacity,
        "target_compute_capability": ".".join(map(str, target.compute_capability)),
        "target_cudnn": ".".join(map(str, target.cudnn_version)),
        "context": target.context,
        **({"target_gpu": target.gpu} if target.gpu else {}),
        **({"fitted_workspace": target.workspace} if target.workspace else {}),
    }


def _measured(task: MemoryTask, answer: ChildAnswer, common: dict[str, Any]) -> list[Record]:
    records = [
        Record(metric=name, value=value, unit="B", stat="max" if name.startswith("peak") else "at peak", n=1, **common)
        for name, value in answer.metrics.items()
    ]
    return [*records, _parameters(task, common)]


def _parameters(task: MemoryTask, common: Mapping[str, Any]) -> Record:
    count = parameter_count(task.configuration.resolve().build)
    return Record(metric="parameters", value=count, stat="count", n=1, **common)
