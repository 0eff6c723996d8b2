"""``ppdm-bench memory``: every configuration predicted, and measured where there is a device, as records."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ppdm_bench.configuration import Configuration
from ppdm_bench.environment import environment
from ppdm_bench.memory.predict import PredictionError, predict_peak
from ppdm_bench.memory.target import Target
from ppdm_bench.memory.workload import workload
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


def carry_out(plan: Plan, progress: Callable[[Task], None] = lambda _: None) -> Iterator[list[Record]]:
    """Do the tasks of a plan in order, and yield the records of each as soon as it is done."""
    for task in plan.tasks:
        progress(task)
        yield _measure(plan, task) if task.measured else _predict(plan, task)


def _predict(plan: Plan, task: Task) -> list[Record]:
    configuration, target = task.configuration, plan.target
    where = "cpu" if target is None else "cuda"
    work = workload(configuration.resolve(), task.phase, configuration.shape, configuration.batch_size, where)
    env = environment() | ({} if target is None else _described(target))
    common = _common(plan, task, work.evaluations) | {"kind": "predicted", "device": where, "env": env}
    try:
        peak = predict_peak(work.build, work.step, work.iterations, target or "cpu")
    except PredictionError as error:
        return [Record(metric="peak_allocated", status="error", reason=str(error), **common)]
    status = {"status": "oom", "reason": _too_much(target)} if target and peak.fits is False else {}
    records = [Record(metric="peak_allocated", value=peak.peak_allocated, stat="max", n=1, **common | status)]
    if peak.peak_reserved is not None:
        records.append(Record(metric="peak_reserved", value=peak.peak_reserved, stat="max", n=1, **common | status))
    records += [Record(metric=kind, value=size, stat="at peak", n=1, **common) for kind, size in peak.breakdown.items()]
    return [*records, _parameters(task, common)]


def _too_much(target: Target) -> str:
    assert target.room is not None
    return f"the allocator has {target.room / 2**30:.1f} GiB and would need more"


def _described(target: Target) -> dict[str, Any]:
    """What a prediction was made for, beside what it was made with."""
    return {
        "torch": ".".join(map(str, target.release)),
        "capacity": target.capacity,
        "target_compute_capability": ".".join(map(str, target.compute_capability)),
        "target_cudnn": ".".join(map(str, target.cudnn_version)),
        "context": target.context,
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
    import torch

    with torch.device("meta"):
        network = task.configuration.resolve().build()
    count = sum(p.numel() for p in network.parameters())
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
