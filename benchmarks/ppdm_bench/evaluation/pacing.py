"""Trainings of equal time that do not depend on the load of the machine: minutes become steps by step times."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from ppdm.training.on_manifest import with_sources_of
from ppdm_bench.ablation.cells import Cell
from ppdm_bench.ablation.step_time import StepTimes
from ppdm_bench.evaluation.trials import Trial
from ppdm_bench.grouping import grouped
from ppdm_bench.records import RecordFile


def paced(wanted: Sequence[Trial], paces: Path, device: str, tell: Callable[[str], None]) -> list[Trial]:
    """Return the trials with steps in place of minutes: as many as fit at the step time of the method.

    Args:
        wanted: trials with a budget of minutes.
        paces: file of records ``step_seconds``. Those that are there count, whichever machine made them, so that a
            training has the same steps everywhere; missing ones are measured and added.
        device: device on which missing ones are measured: cuda or cpu.
        tell: called with a text on the next measurement.

    Raises:
        ValueError: a training step does not fit into the memory of the device.
    """
    steps = {}
    for subjects, trials in grouped(wanted, lambda trial: trial.subjects).items():
        sources, shapes = subjects.sources(), subjects.shapes("train")
        methods = {trial.label: with_sources_of(trial.method, sources) for trial in trials}
        cells = [Cell(label, method) for label, method in methods.items()]
        times = StepTimes(cells, "", shapes[len(shapes) // 2], trials[0].schedule.batch_size, command="quality")
        found = times.by_label(times.measure(device, RecordFile(paces), tell, of_any_machine=True))
        for label, record in found.items():
            if record.value is None:
                raise ValueError(f"{label} on {subjects}: {record.reason}; leave it out, or choose smaller volumes")
            steps[subjects.task, label] = record.value
    return [_in_steps(trial, steps[trial.subjects.task, trial.label]) for trial in wanted]


def _in_steps(trial: Trial, pace: float) -> Trial:
    assert trial.schedule.minutes is not None
    seconds = 60 * trial.schedule.minutes
    least = len(trial.method.stages)
    schedule = replace(trial.schedule, minutes=None, steps=max(least, round(seconds / pace)))
    return replace(trial, schedule=schedule, seconds=seconds)
