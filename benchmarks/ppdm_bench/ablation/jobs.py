"""``ppdm-bench ablate`` on a cluster: the pace of all cells in one job, then every training in a job of its own.

Equal time means the same machine, so one job measures all cells, and its pace says how many steps fit, wherever they
are trained. Predicting memory needs no GPU, and volumes are timed while they are scored: both are done in the command.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ppdm_bench.ablation.plan import Ablation, Work
from ppdm_bench.ablation.run import Done, scored
from ppdm_bench.ablation.step_time import measured, of_cells, of_one_machine
from ppdm_bench.devices import training_device
from ppdm_bench.evaluation.jobs import train_in_jobs
from ppdm_bench.isolation.slurm import JOBS, LauncherError, spread
from ppdm_bench.isolation.sweep import RECORDS, Ledger
from ppdm_bench.records import Record, RecordFile

PACE = "pace"  # the folder of that job's own records


def paces_in_job(plan: Ablation, out: Path, device: str, options: Mapping[str, Any]) -> dict[str, Record]:
    """The record ``step_seconds`` of each cell by its label, all of one machine.

    Where one machine has measured all cells before, that counts, and there is no job: a run that is continued has the
    steps that it began with.

    Args:
        plan: whose cells.
        out: folder of the ablation, seen by all machines.
        device: auto, cuda or cpu: of the job.
        options: parameters of submitit, see :func:`ppdm_bench.isolation.slurm.spread`.

    Raises:
        LauncherError: jobs cannot be made, or this one was lost.
    """
    ledger, batch_size = Ledger(out), plan.schedule.batch_size
    found = of_one_machine(plan.present, plan.shape, batch_size, device, ledger.earlier)
    if not found:
        out = out.absolute()
        (ended,) = spread([partial(_measured, plan, out / JOBS / PACE, device)], out, options)
        if ended.found is None:
            raise LauncherError(f"the pace of the cells was not measured: {ended.fault}; the same command tries again")
        found = ended.found
        ledger.keep(list(found.values()))
    return of_cells(plan.present, plan.identity, plan.shape, batch_size, found)


def trained_in_jobs(
    plan: Ablation,
    wanted: Sequence[Work],
    out: Path,
    device: str,
    options: Mapping[str, Any],
    tell: Callable[[str], None],
    ended: Callable[[], None],
) -> Iterator[Done]:
    """Every training in a job, and when all have ended, what each came to, scored here.

    Args:
        plan: what is asked for.
        wanted: the trainings.
        out, device, options: as for :func:`paces_in_job`.
        tell: called with what is done now.
        ended: called when a job has ended.

    Raises:
        LauncherError: jobs cannot be made.
    """
    tell(f"{len(wanted)} trainings in jobs")
    outcomes = train_in_jobs([work.trial for work in wanted], out, device, options, lambda trial: ended())
    yield from scored(plan, wanted, outcomes, out, lambda text, share: tell(text))


def _measured(plan: Ablation, folder: Path, device: str) -> dict[str, Record]:
    """The work of one job: what was measured on its machine before is not measured again."""
    about = (plan.present, plan.identity, plan.shape, plan.schedule.batch_size)
    return measured(*about, training_device(device), RecordFile(folder / RECORDS))
