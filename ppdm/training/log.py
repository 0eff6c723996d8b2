"""What a training tells: a report a step, and a file of them as JSON lines."""

import errno
import json
import math
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from ppdm.training.schedule import TrainingError


@dataclass(frozen=True)
class StepReport:
    """One training step as it is logged and shown.

    Attributes:
        step: steps done, from 1.
        share: of the steps or of the time that is used, up to 1.
        loss: mean over the batches.
        gradient_norm: before clipping.
        learning_rate: of this step.
        seconds: since the start of the first step; of a training that was continued, without what was lost.
        validation_loss: of the averaged weights, if they were validated after this step.
        resumed: whether this is the first step after the training was continued.
        stage: which stage the step is of, where a method has several; their losses cannot be compared.
        peak_allocated: bytes of each GPU's memory that were allocated at most so far, where several train.
    """

    step: int
    share: float
    loss: float
    gradient_norm: float
    learning_rate: float
    seconds: float
    validation_loss: float | None = None
    resumed: bool = False
    stage: str | None = None
    peak_allocated: tuple[int, ...] | None = None

    @property
    def steps_per_second(self) -> float:
        """Mean over the training so far."""
        return self.step / self.seconds if self.seconds > 0 else math.inf

    @property
    def remaining(self) -> float:
        """Seconds to the end at the mean rate so far."""
        return self.seconds * max(1 / self.share - 1, 0)

    def row(self) -> dict[str, Any]:
        """What the log says of this step: nothing of a validation that there was not."""
        row = {k: v for k, v in asdict(self).items() if k != "share" and v is not None and v is not False}
        return row | {"steps_per_second": self.steps_per_second}


class Log:
    """A file of reports, one JSON object a line; a kill loses none of the lines before it."""

    def __init__(self, path: str | os.PathLike[str] | None = None, stream: IO[bytes] | None = None) -> None:
        self.path, self._stream = path, stream

    def write(self, report: StepReport) -> None:
        """Add a line.

        Raises:
            TrainingError: the disk does not take it.
        """
        if self._stream is None:
            return
        line = json.dumps(report.row(), allow_nan=False).encode() + b"\n"
        try:
            if self._stream.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise TrainingError(f"The log {self.path} cannot be written ({error.strerror}); make room.") from None

    def secure(self) -> int:
        """See that every line is on the disk; returns the bytes so far."""
        if self._stream is None:
            return 0
        os.fsync(self._stream.fileno())
        return self._stream.tell()


def last_step(path: str | os.PathLike[str]) -> tuple[int, float, tuple[int, ...]]:
    """The steps, the seconds, and the peak of each of several GPUs, of the last line of a log.

    Raises:
        TrainingError: it has none that says so.
    """
    try:
        row = json.loads(Path(path).read_bytes().splitlines()[-1])
        return int(row["step"]), float(row["seconds"]), tuple(map(int, row.get("peak_allocated", ())))
    except (OSError, ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError) as error:
        raise TrainingError(
            f"{path} does not end with a step of a training ({type(error).__name__}); train in another folder."
        ) from None


@contextmanager
def opened_log(path: str | os.PathLike[str] | None, after: int = 0) -> Iterator[Log]:
    """A log to write to, cut off after so many bytes: what a training did after its last checkpoint it does again.

    Raises:
        TrainingError: the file cannot be written.
    """
    if path is None:
        yield Log()
        return
    try:
        # Unbuffered: a line is with the system once it is written, whatever becomes of the process. Opened here, so
        # that only this fault is put in words.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        stream = os.fdopen(descriptor, "r+b", buffering=0)
        if (there := stream.seek(0, os.SEEK_END)) < after:
            warnings.warn(f"{path} has lost lines of steps that the checkpoint has done", stacklevel=4)
        stream.seek(stream.truncate(min(there, after)))
    except OSError as error:
        raise TrainingError(f"The log {path} cannot be written ({error.strerror}); give another place.") from None
    with stream:
        yield Log(path, stream)
