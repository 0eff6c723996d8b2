"""Distribute work over jobs of a cluster with submitit, which submits, monitors and cancels them.

The work of a job is a picklable function with its arguments. It writes its results to its own files while it runs, so
that a lost job can resume.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from ppdm_bench.commands.terminal import error_text

T = TypeVar("T")

JOBS = "jobs"  # folder for the files of the jobs
LOGS = f"{JOBS}/logs"

_CLUSTER = "cluster"


class LauncherError(RuntimeError):
    """Jobs cannot be submitted; the message states the reason."""


@dataclass(frozen=True)
class JobResult(Generic[T]):
    """Result of one job.

    Attributes:
        number: index of the job, from 0.
        found: return value of its function; None if it failed.
        fault: reason of the failure in one sentence.
    """

    number: int
    found: T | None
    fault: str = ""


@dataclass(frozen=True)
class Attempt(Generic[T]):
    """A function to run in a job; an error becomes one sentence instead of submitit's traceback."""

    work: Callable[[], T]

    def __call__(self) -> tuple[T | None, str]:
        """Return the value of the function and an empty text, or None and the reason of the failure."""
        try:
            return self.work(), ""
        except (ValueError, OSError, RuntimeError) as error:
            return None, error_text(error)


def spread(works: Sequence[Callable[[], T]], folder: Path, options: Mapping[str, Any]) -> Iterator[JobResult[T]]:
    """Run each function in its own job, and yield its result as soon as the job has ended.

    When the generator ends, also after an error, the remaining jobs are cancelled.

    Args:
        works: picklable functions without arguments.
        folder: folder that all machines can access; scripts and logs of the jobs are written to ``jobs/logs`` in it.
        options: parameters of submitit's executor, such as ``slurm_partition``; ``cluster`` replaces the detected
            cluster by another one, such as ``local``.

    Raises:
        LauncherError: submitit is not installed, or does not accept the options.
    """
    if not works:
        return
    try:
        import submitit
        from submitit.helpers import as_completed
    except ImportError:
        raise LauncherError(
            "jobs need submitit, which is not installed; run pip install 'ppdm[cluster]' or pip install submitit"
        ) from None
    with _submitit_errors():
        executor = submitit.AutoExecutor(folder / LOGS, cluster=options.get(_CLUSTER))
        parameters = {name: value for name, value in options.items() if name != _CLUSTER}
        executor.update_parameters(**{"name": "ppdm-bench", **parameters})
        with executor.batch():
            jobs = [executor.submit(Attempt(work)) for work in works]
    running = dict(zip(jobs, range(len(jobs)), strict=True))
    try:
        for job in as_completed(list(running), poll_frequency=1):
            number = running.pop(job)
            if job.exception() is None:
                yield JobResult(number, *job.result())
            else:
                yield JobResult(number, None, f"its job {job.job_id} ended without a result; see {job.paths.stderr}")
    finally:
        for job in running:
            job.cancel()


@contextmanager
def _submitit_errors() -> Iterator[None]:
    """Convert submitit's exceptions, which have many types, to a :class:`LauncherError` with their first line."""
    try:
        yield
    except Exception as error:
        lines = str(error).splitlines() or [type(error).__name__]
        raise LauncherError(f"submitit cannot create the jobs: {lines[0]}") from error
