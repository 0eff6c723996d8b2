"""``ppdm-bench speed --device predict``: predicted times for any card, as records.

Every network evaluation adds the same time to a volume, so all times follow from those of one and two evaluations.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from ppdm.method import Method, sample
from ppdm_bench.configuration import Configuration
from ppdm_bench.environment import environment
from ppdm_bench.isolation.runner import TimeIsUpError, time_limit
from ppdm_bench.memory.workload import fault, workload
from ppdm_bench.predictor.cards import Sheet
from ppdm_bench.predictor.kernels import KernelWork
from ppdm_bench.predictor.target import Target
from ppdm_bench.predictor.timing import LIMITS, RATIO, Duration, KernelTable, Rates, kernels_of_step
from ppdm_bench.records import Record, config_id
from ppdm_bench.timing.command import TIMES, TimingPlan, TimingTask


def predicted_times(
    plan: TimingPlan, sheet: Sheet, progress: Callable[[TimingTask], None] = lambda _: None
) -> Iterator[list[Record]]:
    """Predict the tasks of a plan in order, and yield the records of each task.

    A task that is predicted not to fit on the plan's card gets a skipped record.
    """
    for task in plan.tasks:
        progress(task)
        yield _predict(plan, task, sheet)


def step_duration(configuration: Configuration, sheet: Sheet) -> Duration:
    """Predict one training step of the diffusion stage, including the creation of its batch."""
    work = workload(configuration.resolve(), "train", configuration.shape, configuration.batch_size, "cuda")
    return _duration(kernels_of_step(work.build, work.step, _target(sheet), work.iterations), sheet)


def volume_durations(configuration: Configuration, sheet: Sheet, counts: Sequence[int]) -> dict[int, Duration]:
    """Predict the time to sample one batch, by number of network evaluations."""
    one, two = (_duration(_sampling_kernels(configuration, sheet, k), sheet) for k in (1, 2))
    return {k: Duration.combined([(2 - k, one), (k - 1, two)]) for k in counts}


def _sampling_kernels(configuration: Configuration, sheet: Sheet, evaluations: int) -> list[KernelWork]:
    method = configuration.resolve()
    changed: Method = replace(method, sampling=replace(method.sampling, steps=evaluations))
    place = "cpu" if method.samples_from_host(configuration.shape) else "cuda"
    size = (configuration.batch_size, len(method.sources), *configuration.shape)

    def build() -> Any:
        return method.build().to("cuda").eval().requires_grad_(False), torch.randn(size, device=place)

    return kernels_of_step(build, lambda state: sample(changed, *state), _target(sheet), 1)


def described_time(found: Duration) -> dict[str, Any]:
    """Return the parts and the expected range of a predicted time, for the options of its record.

    ``ratio`` is the expected error, as a factor, of the ratio of two predicted times on the same card.
    """
    ends = [float(f"{end:.4g}") for end in found.interval]
    return {"parts": {name: float(f"{found.parts[name]:.4g}") for name in LIMITS}, "interval": ends, "ratio": RATIO}


def _duration(kernels: Sequence[KernelWork], sheet: Sheet) -> Duration:
    return Duration.of(KernelTable.of(kernels), Rates.of(sheet, _target(sheet).allows_tf32))


def _target(sheet: Sheet) -> Target:
    return Target(compute_capability=sheet.compute_capability, gpu=sheet.name)


def _predict(plan: TimingPlan, task: TimingTask, sheet: Sheet) -> list[Record]:
    configuration, counts = task.configuration, plan.counts(task)
    described = configuration.describe()
    common: dict[str, Any] = {
        "options": described,
        "config_id": config_id(described),
        "command": "speed",
        **configuration.fields(),
        "spacing": tuple(plan.spacing),
        "phase": task.phase,
        "device": "cuda",
        "kind": "predicted",
        "env": environment() | {"target_gpu": sheet.name},
    }
    if short := plan.doubt(task):
        about: list[dict[str, Any]] = [{"steps": k} for k in counts or (None,)]
        return [Record(metric=TIMES[task.phase], status="skipped", reason=short, **one, **common) for one in about]
    return time_records(configuration, sheet, counts, plan.timeout, common)


def time_records(
    configuration: Configuration, sheet: Sheet, counts: Sequence[int], timeout: float, common: Mapping[str, Any]
) -> list[Record]:
    """Predict a training step, or a volume for each number of network evaluations, and return records.

    Args:
        configuration: the configuration to predict.
        sheet: data sheet of the card.
        counts: numbers of network evaluations; not used for training.
        timeout: time limit of the prediction in seconds.
        common: fields that all records share; they include the phase (``train`` or ``sample``) and the options.
    """
    metric = TIMES[common["phase"]]
    try:
        with time_limit(timeout):
            found: dict[int | None, Duration] = {}
            if common["phase"] == "train":
                found[None] = step_duration(configuration, sheet)
            else:
                found.update(volume_durations(configuration, sheet, counts).items())
    except TimeIsUpError as late:
        return [Record(metric=metric, status="timeout", reason=str(late), **common)]
    except Exception as error:  # the code of a method can raise any exception; the other tasks must still run
        return [Record(metric=metric, status="error", reason=fault(error), **common)]
    return [_record(metric, steps, one, common) for steps, one in found.items()]


def _record(metric: str, steps: int | None, found: Duration, common: Mapping[str, Any]) -> Record:
    own = {"options": {**common["options"], "predicted_time": described_time(found)}, "steps": steps}
    return Record(metric=metric, value=found.seconds, stat="model", n=1, **{**common, **own})
