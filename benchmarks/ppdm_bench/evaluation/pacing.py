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
        # Trials can share a label, such as those of two widths.
        cells = {trial.method: Cell(trial.label, with_sources_of(trial.method, sources)) for trial in trials}
        size = trials[0].schedule.batch_size
        times = StepTimes(tuple(cells.values()), "", shapes[len(shapes) // 2], size, command="quality")
        found = times.measure(device, RecordFile(paces), tell, of_any_machine=True)
        for method, cell in cells.items():
            record = times.of(cell, found)
            if record.value is None:
                fault = f"{cell.label} on {subjects}: {record.reason}"
                raise ValueError(f"{fault}; leave it out, or choose smaller volumes")
            steps[subjects, method] = record.value
    return [_in_steps(trial, steps[trial.subjects, trial.method]) for trial in wanted]


def _in_steps(trial: Trial, pace: float) -> Trial:
    assert trial.schedule.minutes is not None
    seconds = 60 * trial.schedule.minutes
    least = len(trial.method.stages)
    schedule = replace(trial.schedule, minutes=None, steps=max(least, round(seconds / pace)))
    return replace(trial, schedule=schedule, seconds=seconds)
