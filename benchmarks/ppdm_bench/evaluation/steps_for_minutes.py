"""Trainings of equal time that do not depend on the load of the machine: step times convert minutes to steps."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from ppdm.training.on_manifest import with_sources_of
from ppdm_bench.ablation.cells import Cell
from ppdm_bench.ablation.step_time import StepTimes, steps_within
from ppdm_bench.evaluation.trials import Trial
from ppdm_bench.grouping import grouped
from ppdm_bench.records import RecordFile


def with_steps_for_minutes(
    wanted: Sequence[Trial], file: Path, device: str, show_progress: Callable[[str], None]
) -> list[Trial]:
    """Return the trials with as many steps as fit into their minutes at the step time of the method.

    Args:
        wanted: trials with a budget of minutes.
        file: file of records ``step_seconds``. Records of any machine are used, so that a training has the same number
            of steps everywhere; missing records are measured and added.
        device: device on which missing records are measured: cuda or cpu.
        show_progress: called with a text on the next measurement.

    Raises:
        ValueError: a training step does not fit into the memory of the device.
    """
    steps = {}
    for subjects, trials in grouped(wanted, lambda trial: trial.subjects).items():
        sources, shapes = subjects.sources(), subjects.shapes("train")
        # Not by label: two trials that differ in width have one label.
        cells = {trial.method: Cell(trial.label, with_sources_of(trial.method, sources)) for trial in trials}
        size = trials[0].schedule.batch_size
        times = StepTimes(tuple(cells.values()), "", shapes[len(shapes) // 2], size, command="quality")
        found = times.measure(device, RecordFile(file), show_progress, of_any_machine=True)
        for method, cell in cells.items():
            record = times.of(cell, found)
            if record.value is None:
                fault = f"{cell.label} on {subjects}: {record.reason}"
                raise ValueError(f"{fault}; leave this method out, or choose smaller volumes")
            steps[subjects, method] = record.value
    return [_in_steps(trial, steps[trial.subjects, trial.method]) for trial in wanted]


def _in_steps(trial: Trial, step_seconds: float) -> Trial:
    assert trial.schedule.minutes is not None
    seconds = 60 * trial.schedule.minutes
    schedule = replace(trial.schedule, minutes=None, steps=steps_within(seconds, step_seconds, trial.method))
    return replace(trial, schedule=schedule, seconds=seconds)
