"""``ppdm-bench ablate`` on a cluster: one job measures the step time of all cells, then each training has its own job.

Equal time refers to one machine. Therefore one job measures all cells, and its step times determine the numbers of
steps, whichever machine trains a cell. The command itself predicts memory, which needs no GPU, and scores and times the
volumes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ppdm_bench.ablation.plan import Ablation, CellTraining
from ppdm_bench.ablation.run import CellResult, score_outcomes
from ppdm_bench.devices import training_device
from ppdm_bench.evaluation.jobs import train_in_jobs
from ppdm_bench.isolation.slurm import JOBS, LauncherError, spread
from ppdm_bench.isolation.sweep import RECORDS, Ledger
from ppdm_bench.records import Record, RecordFile
from ppdm_bench.units import plural

STEP_TIMES_FOLDER = "pace"  # folder for the records of the job that measures step times


def step_times_in_job(plan: Ablation, out: Path, device: str, options: Mapping[str, Any]) -> dict[str, Record]:
    """Return the record ``step_seconds`` of each cell by its label, all from one machine.

    If one machine has already measured all cells, its records are used without a new job, so that a resumed run keeps
    its numbers of steps.

    Args:
        plan: the ablation with the cells.
        out: folder of the ablation, accessible to all machines.
        device: device of the job: auto, cuda or cpu.
        options: parameters of submitit, see :func:`ppdm_bench.isolation.slurm.spread`.

    Raises:
        LauncherError: jobs cannot be submitted, or the job was lost.
    """
    ledger = Ledger(out)
    found = plan.step_times.of_one_machine(device, ledger.earlier)
    if not found:
        out = out.absolute()
        (ended,) = spread([partial(_measure_step_times, plan, out / JOBS / STEP_TIMES_FOLDER, device)], out, options)
        if ended.found is None:
            raise LauncherError(
                f"the step times of the cells were not measured: {ended.fault}; the same command tries again"
            )
        found = ended.found
        ledger.keep(list(found.values()))
    return plan.step_times.by_label(found)


def train_in_jobs_and_score(
    plan: Ablation,
    wanted: Sequence[CellTraining],
    out: Path,
    device: str,
    options: Mapping[str, Any],
    show_progress: Callable[[str], None],
    ended: Callable[[], None],
) -> Iterator[CellResult]:
    """Run each training in a job; when all jobs have ended, score the results in this process.

    Args:
        plan: the ablation.
        wanted: the trainings to run.
        out, device, options: as for :func:`step_times_in_job`.
        show_progress: called with a text on the current activity.
        ended: called when a job has ended.

    Raises:
        LauncherError: jobs cannot be submitted.
    """
    show_progress(f"{plural(len(wanted), 'training')} in jobs")
    outcomes = train_in_jobs([work.trial for work in wanted], out, device, options, lambda trial: ended())
    yield from score_outcomes(plan, wanted, outcomes, out, lambda text, share: show_progress(text))


def _measure_step_times(plan: Ablation, folder: Path, device: str) -> dict[str, Record]:
    """Do the work of one job; step times that its machine has already measured are reused."""
    return plan.step_times.measure(training_device(device), RecordFile(folder / RECORDS))
