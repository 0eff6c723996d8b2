"""Run pieces one after another, each in its own process, and record the result of each."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ppdm_bench.environment import environment, provenance
from ppdm_bench.gpu_suite.listing import SuitePiece
from ppdm_bench.isolation.runner import process
from ppdm_bench.records import Record, RecordFile, config_id

PIECES = "pieces.jsonl"
LIMIT = 600.0  # time limit of a piece in seconds

_GRACE = 60.0  # seconds between SIGTERM and SIGKILL, in which a training writes its checkpoint
_SAME = ("gpu", "torch")  # a result of another GPU or PyTorch release does not count


@dataclass(frozen=True)
class Place:
    """Device and folder for running pieces.

    Attributes:
        device: ``cuda``, or ``cpu`` for small trials.
        out: folder for ``pieces.jsonl`` and for the folders of the pieces.
        quiet: whether to suppress the standard output of the pieces.
    """

    device: str
    out: Path
    quiet: bool = False


def state(place: Place, pieces: Sequence[SuitePiece]) -> dict[str, Record | None]:
    """Return the record of the last run of each piece, by name; None for a piece that was not run.

    Only runs of the same command on the same GPU with the same PyTorch count; on a machine without a GPU, all runs on
    ``cuda`` count. The commit may differ, because otherwise committing the records would invalidate all pieces.

    Raises:
        RecordError: ``pieces.jsonl`` cannot be read.
    """
    ended = {record.config_id: record for record in _file(place).read() if _is_here(record, place)}
    return {piece.name: ended.get(config_id(_options(piece, place))) for piece in pieces}


def in_order(pieces: Sequence[SuitePiece], before: dict[str, Record | None]) -> list[SuitePiece]:
    """Return the remaining pieces; those that failed come last, so that they do not delay the others."""
    left = [piece for piece in pieces if not _ended(before[piece.name], "ok")]
    return sorted(left, key=lambda piece: _ended(before[piece.name], "error", "killed"))


def carry_out(
    pieces: Sequence[SuitePiece], place: Place, seconds: float | None, begin: Callable[[SuitePiece], None]
) -> Iterator[Record]:
    """Run pieces in order, and yield the record of each after it is written to disk.

    Args:
        pieces: the pieces, in the order of execution.
        place: device and folder.
        seconds: time for all pieces; the run stops before a piece whose estimate exceeds the remaining time. None for
            no limit.
        begin: called with each piece before it begins.

    Raises:
        RecordError: ``pieces.jsonl`` cannot be written.
    """
    end = None if seconds is None else time.monotonic() + seconds
    for piece in pieces:
        left = LIMIT if end is None else min(LIMIT, end - time.monotonic())
        if left < min(LIMIT, piece.estimate(place.device)):
            return
        begin(piece)
        record = _carry_out(piece, place, left)
        _file(place).append([record])
        yield record


def _carry_out(piece: SuitePiece, place: Place, limit: float) -> Record:
    start = time.monotonic()
    code = _run(piece.words(place.device, place.out), place.quiet, limit)
    status, reason = _outcome(code, limit)
    return Record(
        **provenance(_options(piece, place)),
        command="gpu",
        metric="piece_seconds",
        value=round(time.monotonic() - start, 1),
        stat="total",
        n=1,
        kind="measured",
        status=status,
        reason=reason,
        device=place.device,
    )


def _options(piece: SuitePiece, place: Place) -> dict[str, Any]:
    """Identifying options of a piece, without the output folder, which may have been moved."""
    return {"piece": piece.name, "words": list(piece.words(place.device, Path()))}


def _run(words: Sequence[str], quiet: bool, limit: float) -> int | None:
    """The exit code of a ``ppdm-bench`` command; None if it exceeded the time limit and was terminated.

    When this function returns, also after Ctrl-C, the command has ended.
    """
    sys.stdout.flush()
    stdout = subprocess.DEVNULL if quiet else None
    try:
        with process(["ppdm_bench", *words], _GRACE, stdin=subprocess.DEVNULL, stdout=stdout) as child:
            return child.wait(limit)
    except subprocess.TimeoutExpired:
        return None


def _outcome(code: int | None, limit: float) -> tuple[str, str]:
    if code is None:
        return "timeout", f"it had not ended after {limit:.0f} s; the next run resumes it"
    if code < 0:
        return "killed", f"the process was ended by signal {-code}"
    return ("ok", "") if code == 0 else ("error", f"it ended with code {code}; see its output")


def _is_here(record: Record, place: Place) -> bool:
    here = environment()
    away = place.device == "cuda" and "gpu" not in here
    return record.device == place.device and (away or all(record.env.get(name) == here.get(name) for name in _SAME))


def _ended(record: Record | None, *statuses: str) -> bool:
    return record is not None and record.status in statuses


def _file(place: Place) -> RecordFile:
    return RecordFile(place.out / PIECES)
