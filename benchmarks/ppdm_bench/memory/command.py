"""``ppdm-bench memory``: every configuration predicted, and measured where there is a device, as records."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from ppdm_bench.commands.methods import parameter_count
from ppdm_bench.configuration import Configuration
from ppdm_bench.environment import environment
from ppdm_bench.isolation.runner import Answer, TimeIsUpError, time_limit
from ppdm_bench.isolation.sweep import Case, Sweep
from ppdm_bench.memory.feasibility import skipping, too_much
from ppdm_bench.memory.workload import fault, uncompiled, workload
from ppdm_bench.predictor.peak import Peak, PredictionError, predict_peak
from ppdm_bench.predictor.target import GIB, Target
from ppdm_bench.records import Record, config_id
from ppdm_bench.units import shape_text

WORKER = "ppdm_bench.memory.worker"

Spacing = tuple[float, float, float]


@dataclass(frozen=True)
class Task:
    """One phase of one configuration, predicted or measured."""

    configuration: Configuration
    phase: str
    measured: bool

    @property
    def text(self) -> str:
        """How a progress bar calls it."""
        c = self.configuration
        how = "measuring" if self.measured else "predicting"
        size = shape_text(c.shape)
        return " ".join(filter(None, (how, c.method, c.variant, self.phase, size, c.precision, c.checkpointing)))


@dataclass(frozen=True)
class Plan:
    """What is to be found out.

    Attributes:
        configurations, phases: the product of these, of each method those that it has.
        device: where it is measured, ``cuda`` or ``cpu``; ``predict`` measures nothing.
        target: what is predicted for; None predicts for the CPU, without CUDA's rules.
        spacing: of the scan whose size was taken, mm; empty without one.
        timeout: seconds for one measurement, and for one prediction.
        budget: bytes of the card that must suffice; a measurement gets no more. None is what the device has.
        gate: whether what is predicted not to fit is left unmeasured.
    """

    configurations: Sequence[Configuration]
    phases: Sequence[str]
    device: str
    target: Target | None
    spacing: Spacing | tuple[()] = ()
    timeout: float = 600
    budget: int | None = None
    gate: bool = True

    @property
    def limit(self) -> int | None:
        """Bytes that the tensors of a measurement may take: the budget, on CUDA less what the context takes of it.

        A budget above the device's memory limits nothing.
        """
        if self.budget is None or self.target is None:
            return self.budget
        return None if self.budget > environment().get("gpu_bytes", 0) else self.budget - self.target.context

    @property
    def tasks(self) -> list[Task]:
        """Predictions first: they are quick, and a measurement is read against them."""
        kinds = (False, True) if self.device != "predict" else (False,)
        having = [(c, phase) for c in self.configurations for phase in self.phases if phase in c.resolve().phases]
        return [Task(c, phase, kind) for kind in kinds for c, phase in having]


def carry_out(
    plan: Plan, progress: Callable[[Task], None] = lambda _: None, known: Sequence[Record] = ()
) -> Iterator[list[Record]]:
    """Do the tasks of a plan in order, and yield the records of each as soon as it is done.

    Args:
        plan: what is to be found out.
        progress: called with each task before it begins.
        known: records of earlier runs. What was found out about the same configuration by the same code in the same
            environment is yielded from them and not done again, so that an interrupted run can be continued.
    """
    sweep = Sweep(WORKER, plan.timeout, known)
    doubts: dict[tuple[Configuration, str], str] = {}
    for task in plan.tasks:
        progress(task)
        case, about = _case(plan, task), (task.configuration, task.phase)
        if task.measured:
            yield sweep.measure(case, partial(_measured, task), doubts.get(about, ""))
            continue
        made = sweep.settled(case) or _predict(plan, task, case, sweep)
        if plan.gate and (short := next((r.reason for r in made if r.status == "oom"), "")):
            doubts[about] = skipping(short)
        yield made


def _case(plan: Plan, task: Task) -> Case:
    """What all records of a task have in common, and what its child is told."""
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
        "env": environment() | (limited if task.measured or plan.target is None else _described(plan.target)),
    }
    told = {"configuration": configuration.to_dict(), "phase": task.phase, "device": where, "limit": plan.limit}
    return Case("peak_allocated", common, told)


def predicted(plan: Plan, task: Task, predict: Callable[..., Peak] | None = None) -> list[Record]:
    """The records of one prediction, or of why there is none; ``predict`` stands for :func:`predict_peak` if given."""
    return _predict(plan, task, _case(plan, task), Sweep(WORKER, plan.timeout), predict)


def _predict(
    plan: Plan, task: Task, case: Case, sweep: Sweep, predict: Callable[..., Peak] | None = None
) -> list[Record]:
    configuration, target = task.configuration, plan.target
    size = (configuration.shape, configuration.batch_size)
    work = workload(configuration.resolve(), task.phase, *size, case.common["device"])
    try:
        with time_limit(plan.timeout):
            peak = (predict or predict_peak)(work.build, work.step, work.iterations, target or "cpu")
    except TimeIsUpError as late:
        return sweep.timed_out(case, str(late))
    except PredictionError as error:
        return case.failed("error", str(error))
    except Exception as error:  # a method's code may fail in any way, and the other rows are still wanted
        return case.failed("error", fault(error))
    shortage = _shortage(plan, peak)
    of_peak: dict[str, Any] = {"stat": "max", "n": 1, **case.common}
    of_peak |= {"status": "oom", "reason": shortage} if shortage else {"reason": uncompiled(configuration.resolve())}
    records = [
        Record(metric=kind, value=size, stat="at peak", n=1, **case.common) for kind, size in peak.breakdown.items()
    ]
    if target is not None:
        records.append(Record(metric="assumed", value=peak.assumed, stat="at peak", n=1, **case.common))
    records.append(_parameters(task, case.common))
    if peak.peak_reserved is not None:
        outside = _outside(peak.peak_reserved, target)
        records += [Record(metric=name, value=value, **of_peak) for name, value in outside.items()]
        records.append(Record(metric="peak_reserved", value=peak.peak_reserved, **of_peak))
    return [*records, Record(metric=case.metric, value=peak.peak_allocated, **of_peak)]


def _shortage(plan: Plan, peak: Peak) -> str:
    """Why a prediction does not fit, or nothing."""
    if plan.target is not None:
        return too_much(plan.target) if peak.fits is False else ""
    if plan.budget is None or peak.peak_allocated <= plan.budget:
        return ""
    return f"the budget is {plan.budget / GIB:.4g} GiB, and tensors alone take {peak.peak_allocated / GIB:.4g} GiB"


def _outside(reserved: int, target: Target | None) -> dict[str, int]:
    """What the driver counts beyond PyTorch's allocator: a constant, named as the measured ones are."""
    context = target.context if target else 0
    return {"peak_process": reserved + context, "context": context}


def _described(target: Target) -> dict[str, Any]:
    """What a prediction was made for, beside what it was made with."""
    return {
        "torch": ".".join(map(str, target.release)),
        "capacity": target.capacity,
        "target_compute_capability": ".".join(map(str, target.compute_capability)),
        "target_cudnn": ".".join(map(str, target.cudnn_version)),
        "context": target.context,
        **({"fitted_workspace": target.workspace} if target.workspace else {}),
    }


def _measured(task: Task, answer: Answer, common: dict[str, Any]) -> list[Record]:
    records = [
        Record(metric=name, value=value, unit="B", stat=_stat(name), n=1, **common)
        for name, value in answer.metrics.items()
    ]
    return [*records, _parameters(task, common)]


def _stat(name: str) -> str:
    return "max" if name.startswith("peak") else "at peak"


def _parameters(task: Task, common: Mapping[str, Any]) -> Record:
    count = parameter_count(task.configuration.resolve().build)
    return Record(metric="parameters", value=count, stat="count", n=1, **common)
