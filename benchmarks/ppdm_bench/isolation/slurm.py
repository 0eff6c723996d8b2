"""Work spread over the jobs of a cluster by submitit, which makes, watches and cancels them.

A job's work is a function that can be pickled and what it is called with. It keeps what it finds in files of its own as
it goes, so that a job that is lost, started again, goes on where it was.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from ppdm_bench.commands.terminal import in_words

T = TypeVar("T")

SUBMITIT = "submitit"
JOBS = "jobs"  # folder of what jobs keep of their own
LOGS = f"{JOBS}/logs"

_CLUSTER = "cluster"


class LauncherError(RuntimeError):
    """Jobs cannot be made; the message says why."""


@dataclass(frozen=True)
class Ended(Generic[T]):
    """What became of one piece of work.

    Attributes:
        number: of the piece, from 0.
        found: what its function gave; None if it did not come to that.
        fault: why, in a sentence.
    """

    number: int
    found: T | None
    fault: str = ""


@dataclass(frozen=True)
class Attempt(Generic[T]):
    """A function that runs in a job; what it cannot do is told, as submitit would tell a traceback."""

    work: Callable[[], T]

    def __call__(self) -> tuple[T | None, str]:
        """What the function gives, or why it cannot."""
        try:
            return self.work(), ""
        except (ValueError, OSError, RuntimeError) as error:
            return None, in_words(error)


def spread(works: Sequence[Callable[[], T]], folder: Path, options: Mapping[str, Any]) -> Iterator[Ended[T]]:
    """Run each piece of work in a job of its own, and yield what became of it as soon as it has ended.

    However this ends, no job is left.

    Args:
        works: functions without arguments that can be pickled.
        folder: seen by all machines; scripts and logs of the jobs go to ``jobs/logs`` in it.
        options: parameters of submitit's executor, such as ``slurm_partition``; ``cluster`` names another than the one
            at hand, such as ``local``.

    Raises:
        LauncherError: submitit is not installed, or does not take the options.
    """
    if not works:
        return
    try:
        import submitit
        from submitit.helpers import as_completed
    except ImportError:
        raise LauncherError(
            "jobs are made by submitit, which is not installed; pip install 'ppdm[cluster]', or pip install submitit"
        ) from None
    with _refusals():
        executor = submitit.AutoExecutor(folder / LOGS, cluster=options.get(_CLUSTER))
        parameters = {name: value for name, value in options.items() if name != _CLUSTER}
        executor.update_parameters(**{"name": "ppdm-bench", **parameters})
        with executor.batch():
            jobs = [executor.submit(Attempt(work)) for work in works]
    left = dict(zip(jobs, range(len(jobs)), strict=True))
    try:
        for job in as_completed(list(left), poll_frequency=1):
            number = left.pop(job)
            if job.exception() is None:
                yield Ended(number, *job.result())
            else:
                yield Ended(number, None, f"its job {job.job_id} ended without a result; see {job.paths.stderr}")
    finally:
        for job in left:
            job.cancel()


@contextmanager
def _refusals() -> Iterator[None]:
    """What submitit refuses, by exceptions of many kinds, in the first of its lines."""
    try:
        yield
    except Exception as error:
        lines = str(error).splitlines() or [type(error).__name__]
        raise LauncherError(f"submitit makes no jobs: {lines[0]}") from error
