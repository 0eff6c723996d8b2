"""Training log: one report per step, written to a file as JSON lines."""

import errno
import json
import math
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from ppdm.serialization import later
from ppdm.training.schedule import TrainingError


@dataclass(frozen=True)
class StepReport:
    """Report of one training step, for the log and for progress displays.

    Attributes:
        step: number of completed steps, from 1.
        share: fraction of the steps or of the time used so far, up to 1.
        loss: mean loss over the batches.
        gradient_norm: gradient norm before clipping; None if gradients overflowed in fp16 and the step was skipped.
        learning_rate: learning rate of this step.
        seconds: time since the start of the first step; a resumed run excludes the steps lost by the interruption.
        validation_loss: validation loss of the averaged weights, if there was a validation after this step.
        resumed: whether this is the first step after a resume.
        stage: training stage, for a method with several stages; losses of different stages cannot be compared.
        peak_allocated: peak allocated bytes of each GPU so far, when several GPUs train.
        best: whether ``validation_loss`` is the lowest so far; only in the last stage.
        skipped: number of steps so far that were skipped because gradients overflowed; None without any.
        average_loss: loss of the averaged weights on some training pairs, after the last step.
        untrained_loss: loss on the same pairs of a result that needs no training, such as the source.
    """

    step: int
    share: float
    loss: float
    gradient_norm: float | None
    learning_rate: float
    seconds: float
    validation_loss: float | None = None
    resumed: bool = False
    stage: str | None = None
    peak_allocated: tuple[int, ...] | None = None
    best: bool = later(False)
    skipped: int | None = later(None)
    average_loss: float | None = later(None)
    untrained_loss: float | None = later(None)

    @property
    def steps_per_second(self) -> float:
        """Mean rate since the start of training."""
        return self.step / self.seconds if self.seconds > 0 else math.inf

    @property
    def remaining(self) -> float:
        """Estimated time to the end in seconds, at the mean rate so far."""
        return self.seconds * max(1 / self.share - 1, 0)

    def row(self) -> dict[str, Any]:
        """Return the log entry of this step; fields without a value are left out."""
        row = {k: v for k, v in asdict(self).items() if k != "share" and v is not None and v is not False}
        return row | {"steps_per_second": self.steps_per_second}


class Log:
    """A file of reports, one JSON object per line; lines already written survive if the process is killed."""

    def __init__(self, path: str | os.PathLike[str] | None = None, stream: IO[bytes] | None = None) -> None:
        self.path, self._stream = path, stream

    def write(self, report: StepReport) -> None:
        """Append a line.

        Raises:
            TrainingError: the line cannot be written.
        """
        if self._stream is None:
            return
        line = json.dumps(report.row(), allow_nan=False).encode() + b"\n"
        try:
            if self._stream.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise TrainingError(f"The log {self.path} cannot be written ({error.strerror}); free disk space.") from None

    def flush(self) -> int:
        """Flush every line to the disk; return the file size in bytes."""
        if self._stream is None:
            return 0
        os.fsync(self._stream.fileno())
        return self._stream.tell()


def last_step(path: str | os.PathLike[str]) -> tuple[int, float, tuple[int, ...]]:
    """Return the steps, the seconds, and the peak bytes of each GPU (if several train) from the last line of a log.

    Raises:
        TrainingError: the log does not end with a valid line.
    """
    try:
        row = json.loads(Path(path).read_bytes().splitlines()[-1])
        return int(row["step"]), float(row["seconds"]), tuple(map(int, row.get("peak_allocated", ())))
    except (OSError, ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError) as error:
        raise TrainingError(
            f"{path} does not end with a step of a training ({type(error).__name__}); train in another folder."
        ) from None


def read_log(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Return the entries of a log, without an incomplete last line and without lines that are not JSON objects.

    Raises:
        OSError: the file cannot be read.
    """
    rows = []
    for line in Path(path).read_bytes().splitlines():
        with suppress(ValueError):
            rows.append(json.loads(line))
    return [row for row in rows if isinstance(row, dict)]


def untrained_note(path: str | os.PathLike[str]) -> str:
    """Return a warning if the final loss is less than 5 % below the loss without training; otherwise return ''."""
    last: dict[str, Any] = {}
    with suppress(OSError):  # without a log, nothing is known
        last = (read_log(path) or [{}])[-1]
    reached, untrained = last.get("average_loss"), last.get("untrained_loss")
    if not (isinstance(reached, float) and isinstance(untrained, float) and reached > 0.95 * untrained):
        return ""
    return (
        f"the network is no better than an untrained one: its loss is {reached:.4f} on training pairs, and "
        f"{untrained:.4f} needs no training (return the source, or zeros); train longer, or at another learning rate"
    )


def best_validation(path: str | os.PathLike[str]) -> tuple[int, float] | None:
    """Return the step with the lowest validation loss and that loss; None if the log marks no step as the best.

    Raises:
        OSError: the file cannot be read.
    """
    marked = [(row["validation_loss"], row["step"]) for row in read_log(path) if row.get("best")]
    return min(marked)[::-1] if marked else None


@contextmanager
def opened_log(path: str | os.PathLike[str] | None, after: int = 0) -> Iterator[Log]:
    """Open a log for writing, truncated to ``after`` bytes: steps after the last checkpoint are repeated on resume.

    Raises:
        TrainingError: the file cannot be written.
    """
    if path is None:
        yield Log()
        return
    try:
        # Unbuffered, so that a written line survives if the process is killed. Opened inside this `try` block, so that
        # only errors from opening the file get this message.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        stream = os.fdopen(descriptor, "r+b", buffering=0)
        if (there := stream.seek(0, os.SEEK_END)) < after:
            warnings.warn(f"{path} lacks lines of steps before the checkpoint", stacklevel=4)
        stream.seek(stream.truncate(min(there, after)))
    except OSError as error:
        raise TrainingError(f"The log {path} cannot be written ({error.strerror}); give another place.") from None
    with stream:
        yield Log(path, stream)
