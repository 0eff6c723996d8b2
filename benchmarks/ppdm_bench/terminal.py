"""What commands share at the terminal: a progress bar, a folder to write to, errors and warnings in words."""

import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress

INTERRUPTED = 128 + signal.SIGINT  # exit code


def say(sentence: str) -> None:
    """Tell people something; standard output is for results alone."""
    if sentence:  # typer's own error for a command without arguments has none: it has shown the help
        print(f"ppdm-bench: {sentence}", file=sys.stderr)


def told(written: Sequence[Path], failed: Sequence[str], stream: TextIO) -> int:
    """Say what was written and what could not be found out, and return the exit code that this makes."""
    print("written: " + ", ".join(map(str, written)), file=stream)
    for failure in failed:
        say(failure)
    return 1 if failed else 0


def in_words(error: BaseException) -> str:
    """An error for people: the sentence it was raised with, or a confession where it was not meant for them."""
    if hasattr(error, "format_message"):  # typer's own
        return str(error.format_message())
    if isinstance(error, ValueError | RuntimeError | OSError) and str(error):
        return str(error)
    return f"unexpected {type(error).__name__}: {error}; run with --debug for the details, and report it please"


def show_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, file: Any = None, line: Any = None
) -> None:
    """Show a warning as a sentence, without the line of code that it comes from: what ``warnings`` is to call."""
    say(f"warning: {message}")


def writable(folder: Path) -> Path:
    """Make the folder, and see that it takes a file: an hour of work must not end in one that cannot be written.

    Raises:
        OSError: it cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        in_its_place = isinstance(error, FileExistsError | NotADirectoryError)
        reason = "a file stands in its place" if in_its_place else (error.strerror or str(error)).lower()
        raise OSError(f"the folder {folder} cannot be written ({reason}); give another --out") from error
    return folder


@contextmanager
def progress() -> "Iterator[Progress]":
    """A progress bar with an estimate, on a terminal's stderr only."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(
        *columns, TextColumn("{task.description}"), console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        yield bar
