"""Trials on a cluster: each trial is trained in its own job, in the same folder as without a cluster."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ppdm_bench.devices import training_device
from ppdm_bench.evaluation.trials import Outcome, Trial, carry_out_trials
from ppdm_bench.isolation.slurm import spread


def train_in_jobs(
    wanted: Sequence[Trial],
    out: Path,
    device: str,
    options: Mapping[str, Any],
    show: Callable[[Trial], None] = lambda trial: None,
) -> list[Outcome]:
    """Train each trial in a job; a finished trial is not trained again, an interrupted one resumes.

    Args:
        wanted: the trials to train.
        out: folder of all trials, accessible to all machines.
        device: device of each job: auto, cuda or cpu.
        options: parameters of submitit, see :func:`ppdm_bench.isolation.slurm.spread`.
        show: called when the job of a trial has ended.

    Returns:
        The outcomes, in the order of the trials.

    Raises:
        LauncherError: jobs cannot be submitted.
    """
    out = out.absolute()
    outcomes: dict[int, Outcome] = {}
    for ended in spread([partial(_train, trial, out, device) for trial in wanted], out, options):
        trial = wanted[ended.number]
        fault = f"{trial.subjects.task}, {trial.label}: {ended.fault}"
        outcomes[ended.number] = ended.found or Outcome(trial, trial.folder(out), fault, lost=True)
        show(trial)
    return [outcomes[number] for number in sorted(outcomes)]


def _train(trial: Trial, out: Path, device: str) -> Outcome:
    """Do the work of one job."""
    (outcome,) = carry_out_trials([trial], out, training_device(device))
    return outcome
