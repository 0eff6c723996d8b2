"""Output that commands share: progress bars, messages, errors, and the output folder."""

import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from ppdm_bench.units import plural

if TYPE_CHECKING:
    from rich.progress import Progress

    from ppdm_bench.records import Record

INTERRUPTED = 128 + signal.SIGINT  # exit code
LOCK = ".lock"


def under_torchrun() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def is_first_process() -> bool:
    """Whether this process prints and shows progress: under torchrun, only the first process does."""
    return not under_torchrun() or os.environ["RANK"] == "0"


def notify(sentence: str) -> None:
    """Print a message for people on stderr; stdout has only results."""
    if is_first_process():
        print(f"ppdm-bench: {sentence}", file=sys.stderr)


def fail(error: Exception, code: int, trace: bool) -> int:
    """Report the error that ends a command, and return the exit code.

    Under torchrun, an expected error occurs in all processes, and only the first process reports it. The others exit
    with 0; otherwise torchrun would end the first process before it has reported. Every process reports an unexpected
    error.
    """
    expected = hasattr(error, "format_message") or isinstance(error, ValueError | OSError)
    if expected and not is_first_process():
        return 0
    if trace:
        traceback.print_exception(error)
    if not (sentence := error_text(error)):  # no command was given, and the help was shown
        return 0
    print(f"ppdm-bench: {sentence}", file=sys.stderr)
    return code


def report_outcome(written: Sequence[Path], failed: Sequence[str], stream: TextIO) -> int:
    """Report the written files, if there are any, and the failures; return the exit code."""
    if written:
        print("written: " + ", ".join(map(str, written)), file=stream)
    for failure in failed:
        notify(failure)
    return 1 if failed else 0


def report_results(
    text: str, records: "Sequence[Record]", written: Sequence[Path], failed: Sequence[str], json: bool
) -> int:
    """Print the tables, or with ``json`` the records; report files and failures, and return the exit code."""
    from ppdm_bench.records import to_json_array

    print(to_json_array(records) if json else text)
    return report_outcome(written, failed, sys.stderr if json else sys.stdout)


def error_text(error: BaseException) -> str:
    """Return the message of an error for people; an unexpected error is reported as a bug."""
    if hasattr(error, "format_message"):  # an error of Typer
        return str(error.format_message()).replace("Value error, ", "")  # pydantic's prefix, in some versions of typer
    if isinstance(error, ValueError | RuntimeError | OSError) and str(error):
        return str(error)
    return f"unexpected {type(error).__name__}: {error}; run with --debug for details, and please report it"


def show_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, file: Any = None, line: Any = None
) -> None:
    """Report a warning as one sentence, without the line of code; a replacement for ``warnings.showwarning``."""
    notify(f"warning: {message}")


def ensure_writable(folder: Path) -> Path:
    """Create the folder and check, before a long run, that a file can be written in it; return the folder.

    Raises:
        OSError: the folder cannot be created or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        in_its_place = isinstance(error, FileExistsError | NotADirectoryError)
        reason = "a file is in its place" if in_its_place else (error.strerror or str(error)).lower()
        raise OSError(f"the folder {folder} cannot be written ({reason}); give another --out") from error
    return folder


def with_earlier_records(records: "Sequence[Record]", folder: Path) -> "list[Record]":
    """Return the records that the tables and figures of a folder show: first those of earlier runs, then these.

    Of two records of one measurement, the later one counts, in the place of the first. If earlier runs add
    configurations, a message reports how many.
    """
    from ppdm_bench.isolation.sweep import RECORDS
    from ppdm_bench.records import RecordFile

    commands = {record.command for record in records}
    earlier = [record for record in RecordFile(folder / RECORDS).read() if record.command in commands]
    if others := {record.config_id for record in earlier} - {record.config_id for record in records}:
        notify(f"tables and figures also show {plural(len(others), 'configuration')} of earlier runs in {folder}")
    names = ("config_id", "kind", "phase", "metric", "stat", "steps", "device", "gpu")
    latest = {}
    for record in (*earlier, *records):
        latest[*(getattr(record, name) for name in names), record.env.get("torch")] = record
    return list(latest.values())


@contextmanager
def locked_folder(folder: Path) -> Iterator[Path]:
    """Create the folder, check that it can be written, and lock it: two runs would overwrite each other's tables.

    If another run holds the lock, this run reports it and waits. The operating system releases the lock when a process
    ends or is killed.

    Raises:
        OSError: the folder cannot be created or written.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(ensure_writable(folder) / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        notify(f"another command is running in {folder}; waiting for it to end (Ctrl-C cancels)")
        lock.acquire()
    try:
        yield folder
    finally:
        lock.release()


@contextmanager
def progress() -> "Iterator[Progress]":
    """Show a progress bar with the remaining time, only if stderr is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TextColumn, TimeElapsedColumn
    from rich.progress import TimeRemainingColumn as TimeLeft
    from rich.text import Text

    class Estimate(TimeLeft):
        """The estimate of :class:`OverallProgress` if there is one, else the one of rich."""

        def render(self, task: Task) -> Text:
            if "left" not in task.fields:
                return super().render(task)
            return Text(_clock(task.fields["left"]()), style="progress.remaining")

    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), Estimate())
    console = Console(stderr=True)
    with Progress(
        *columns,
        TextColumn("{task.description}"),
        console=console,
        transient=True,
        disable=not (console.is_terminal and is_first_process()),
    ) as bar:
        yield bar


class OverallProgress:
    """One progress bar for parts of different duration, with the remaining time.

    The estimate assumes that the duration of a part is proportional to its weight. Parts that an earlier run has done
    take almost no time and do not count.

    Args:
        bar: the bar that shows it.
        weights: relative durations of the parts, in their order.
    """

    NO_TIME = 0.2  # seconds

    def __init__(self, bar: "Progress", weights: Sequence[float]) -> None:
        self._weights, self._at = list(weights), 0
        self._began = time.monotonic()  # start of the current part
        self._done = self._took = 0.0  # weight and seconds of finished parts that count
        self._share, self._shown_at = 0.0, self._began
        self._bar, self._shown = bar, bar.add_task("", total=len(weights), left=self.seconds_left)

    def show(self, text: str, share: float = 0.0) -> None:
        """Show the current work and the finished share of the current part."""
        self._share, self._shown_at = share, time.monotonic()
        self._bar.update(self._shown, completed=self._at + share, description=text)

    def ended(self) -> None:
        """Mark the current part as done; the next one begins."""
        now = time.monotonic()
        if now - self._began > self.NO_TIME:
            self._took += now - self._began
            self._done += sum(self._weights[self._at : self._at + 1])
        self._at, self._share, self._began, self._shown_at = self._at + 1, 0.0, now, now
        self._bar.update(self._shown, completed=self._at)

    def seconds_left(self) -> float | None:
        """Return the estimated seconds left, or None before the first part that takes time."""
        now, current = time.monotonic(), self._share * sum(self._weights[self._at : self._at + 1])
        done = self._done + current
        took = self._took + (self._shown_at - self._began if current else 0.0)
        if not done:
            return None
        left = (sum(self._weights[self._at :]) - current) * took / done
        return max(left - (now - (self._shown_at if current else self._began)), 0.0)


def _clock(seconds: float | None) -> str:
    return "-:--:--" if seconds is None else str(timedelta(seconds=round(seconds)))
