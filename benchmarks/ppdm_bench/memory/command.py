"""``ppdm-bench memory``: every configuration predicted, and measured where there is a device, as records."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ppdm_bench.catalogue import parameter_count
from ppdm_bench.configuration import Configuration
from ppdm_bench.environment import environment
from ppdm_bench.memory.predict import Peak, PredictionError, predict_peak
from ppdm_bench.memory.target import GIB, Target
from ppdm_bench.memory.workload import fault, workload
from ppdm_bench.records import Record, config_id
from ppdm_bench.runner import run_child

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
        return " ".join(filter(None, (how, c.method, c.variant, self.phase, c.precision, c.checkpointing)))


@dataclass(frozen=True)
class Plan:
    """What is to be found out.

    Attributes:
        configurations, phases: the product of these.
        device: where it is measured, ``cuda`` or ``cpu``; ``predict`` measures nothing.
        target: what is predicted for; None predicts for the CPU, without CUDA's rules.
        spacing: of the scan whose size was taken, mm; empty without one.
        timeout: seconds for one measurement.
    """

    configurations: Sequence[Configuration]
    phases: Sequence[str]
    device: str
    target: Target | None
    spacing: Spacing | tuple[()] = ()
    timeout: float = 600

    @property
    def tasks(self) -> list[Task]:
        """Predictions first: they are quick, and a measurement is read against them."""
        kinds = (False, True) if self.device != "predict" else (False,)
        return [Task(c, phase, kind) for kind in kinds for c in self.configurations for phase in self.phases]


def carry_out(
    plan: Plan, progress: Callable[[Task], None] = lambda _: None, known: Sequence[Record] = ()
) -> Iterator[list[Record]]:
    """Do the tasks of a plan in order, and yield the records of each as soon as it is done.

    Args:
        plan: what is to be found out.
        progress: called with each task before it begins.
        known: records of earlier runs. What was measured for the same configuration by the same code in the same
            environment is yielded from them and not measured again, so that an interrupted run can be continued.
    """
    for task in plan.tasks:
        progress(task)
        if task.measured:
            yield _measured_before(plan, task, known) or _measure(plan, task)
        else:
            yield predicted(plan, task)


def _measured_before(plan: Plan, task: Task, known: Sequence[Record]) -> list[Record]:
    env = environment()
    if env["dirty"]:  # changed code: nobody knows whether it is the same
        return []
    wanted = (config_id(task.configuration.describe()), task.phase, plan.device, tuple(plan.spacing), env)
    same = [r for r in known if (r.config_id, r.phase, r.device, r.spacing, r.env) == wanted]
    return [r for r in same if r.kind == "measured" and r.status in ("ok", "oom")]


def predicted(plan: Plan, task: Task, predict: Callable[..., Peak] = predict_peak) -> list[Record]:
    """The records of one prediction, or of why there is none; ``predict`` is called as :func:`predict_peak` is."""
    configuration, target = task.configuration, plan.target
    where = "cpu" if target is None else "cuda"
    work = workload(configuration.resolve(), task.phase, configuration.shape, configuration.batch_size, where)
    env = environment() | ({} if target is None else _described(target))
    common = _common(plan, task, work.evaluations) | {"kind": "predicted", "device": where, "env": env}
    try:
        peak = predict(work.build, work.step, work.iterations, target or "cpu")
    except PredictionError as error:
        return [Record(metric="peak_allocated", status="error", reason=str(error), **common)]
    except Exception as error:  # a method's code may fail in any way, and the other rows are still wanted
        return [Record(metric="peak_allocated", status="error", reason=fault(error), **common)]
    status = {"status": "oom", "reason": _too_much(target)} if target and peak.fits is False else {}
    records = [Record(metric="peak_allocated", value=peak.peak_allocated, stat="max", n=1, **common | status)]
    if peak.peak_reserved is not None:
        records.append(Record(metric="peak_reserved", value=peak.peak_reserved, stat="max", n=1, **common | status))
        records += [
            Record(metric=name, value=value, stat=_stat(name), n=1, **common | status)
            for name, value in _outside(peak.peak_reserved, target)
        ]
    records += [Record(metric=kind, value=size, stat="at peak", n=1, **common) for kind, size in peak.breakdown.items()]
    return [*records, _parameters(task, common)]


def _outside(reserved: int, target: Target | None) -> list[tuple[str, int]]:
    """What the driver counts beyond PyTorch's allocator: a constant, named as the measured ones are."""
    context = target.context if target else 0
    return [("peak_process", reserved + context), ("context", context)]


def _too_much(target: Target) -> str:
    assert target.capacity is not None
    card, context = target.capacity / GIB, target.context / GIB
    return f"the card has {card:.2f} GiB, the CUDA context takes {context:.2f} GiB of it, and the rest does not suffice"


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


def _measure(plan: Plan, task: Task) -> list[Record]:
    request = {"configuration": task.configuration.to_dict(), "phase": task.phase, "device": plan.device}
    answer = run_child("ppdm_bench.memory.worker", request, plan.timeout)
    common = _common(plan, task, answer.evaluations) | {
        "kind": "measured",
        "device": plan.device,
        "env": dict(answer.env) or environment(),
        "status": answer.status,
        "reason": answer.reason,
    }
    if answer.status != "ok":
        return [Record(metric="peak_allocated", **common)]
    records = [
        Record(metric=name, value=value, unit="B", stat=_stat(name), n=1, **common)
        for name, value in answer.metrics.items()
    ]
    return [*records, _parameters(task, common)]


def _stat(name: str) -> str:
    return "max" if name.startswith("peak") else "at peak"


def _parameters(task: Task, common: dict[str, Any]) -> Record:
    count = parameter_count(task.configuration.resolve().build)
    return Record(metric="parameters", value=count, stat="count", n=1, **common)


def _common(plan: Plan, task: Task, evaluations: int | None) -> dict[str, Any]:
    configuration = task.configuration
    options = configuration.describe()
    return {
        "config_id": config_id(options),
        "command": "memory",
        "method": configuration.method,
        "variant": configuration.variant,
        "shape": configuration.shape,
        "spacing": plan.spacing,
        "batch_size": configuration.batch_size,
        "phase": task.phase,
        "precision": configuration.precision,
        "checkpointing": configuration.checkpointing,
        "steps": evaluations if task.phase == "sample" else None,
        "options": options,
    }
