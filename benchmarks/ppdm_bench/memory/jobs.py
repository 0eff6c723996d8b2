"""``ppdm-bench memory`` on a cluster: one job per configuration, with the same rules as a sweep."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ppdm_bench.commands.terminal import locked_folder, progress
from ppdm_bench.configuration import Configuration
from ppdm_bench.devices import measuring_device
from ppdm_bench.isolation.slurm import JOBS, spread
from ppdm_bench.isolation.sweep import Ledger
from ppdm_bench.memory.command import MemoryPlan, Spacing
from ppdm_bench.memory.constants import with_constants
from ppdm_bench.memory.memory_output import collect
from ppdm_bench.predictor.cards import find_sheet
from ppdm_bench.records import Record, config_id


@dataclass(frozen=True)
class JobOptions:
    """Options that all jobs share; each job determines its device, because only the job can see it.

    Attributes:
        phases, spacing, timeout, budget, gate: see :class:`ppdm_bench.memory.command.MemoryPlan`.
        device: auto, cuda, cpu or predict.
        constants: file with fitted constants.
        gpu: name of the card to predict for; None means the card of the job.
        times: whether to also predict the time on that card.
    """

    phases: Sequence[str]
    device: str
    spacing: Spacing | tuple[()] = ()
    timeout: float = 600
    budget: int | None = None
    gate: bool = True
    constants: Path | None = None
    gpu: str | None = None
    times: bool = False


def run_job(request: JobOptions, configuration: Mapping[str, Any], folder: Path) -> list[Record]:
    """Run one job; it reuses valid results of an earlier job in the same folder."""
    where, target = measuring_device(request.device, request.budget, request.gpu)
    target = with_constants(request.constants, target)
    asked = [Configuration.from_dict(dict(configuration))]
    sheet = find_sheet(request.gpu) if request.times and request.gpu else None
    how = (request.spacing, request.timeout, request.budget, request.gate, sheet)
    plan = MemoryPlan(asked, request.phases, where, target, *how)
    with locked_folder(folder):
        return collect(plan, folder)


def collect_jobs(
    configurations: Sequence[Configuration], request: JobOptions, folder: Path, options: Mapping[str, Any]
) -> tuple[list[Record], list[str]]:
    """Run all jobs; return the records of every configuration and the reasons of failed jobs.

    When a job ends, its records are added to those of the folder.

    Args:
        configurations: one job each; the records of a job are stored in ``jobs/`` under its ``config_id``.
        request: options of every job.
        folder: folder that all machines can access.
        options: parameters of submitit, see :func:`ppdm_bench.isolation.slurm.spread`.

    Raises:
        LauncherError: jobs cannot be created.
    """
    folder = folder.absolute()
    places = [folder / JOBS / config_id(one.describe()) for one in configurations]
    works = [partial(run_job, request, one.to_dict(), place) for one, place in zip(configurations, places, strict=True)]
    ledger = Ledger(folder)
    found: dict[int, list[Record]] = {}
    faults: dict[int, str] = {}
    with progress() as bar:
        shown = bar.add_task("jobs of the cluster", total=len(works))
        for ended in spread(works, folder, options):
            if ended.found is None:
                faults[ended.number] = f"{configurations[ended.number].label}: {ended.fault}"
            else:
                ledger.keep(ended.found)
                found[ended.number] = ended.found
            bar.advance(shown)
    return [record for number in sorted(found) for record in found[number]], [faults[n] for n in sorted(faults)]
