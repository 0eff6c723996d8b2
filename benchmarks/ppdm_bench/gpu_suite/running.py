"""Pieces carried out one after the other, each in a process of its own, and what became of each as a record."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ppdm_bench.environment import environment
from ppdm_bench.gpu_suite.listing import Piece
from ppdm_bench.records import Record, RecordFile, config_id

PIECES = "pieces.jsonl"
LIMIT = 600.0  # seconds: no piece goes on longer

_GRACE = 60.0  # seconds for a command that is told to end: a training writes its checkpoint first
_SAME = ("gpu", "torch")  # a piece that was done on another card or release is not done


@dataclass(frozen=True)
class Place:
    """Where pieces are carried out.

    Attributes:
        device: ``cuda``, or ``cpu``, where they are tiny.
        out: folder for ``pieces.jsonl`` and for a folder a piece.
        quiet: whether their own tables are kept from the standard output.
    """

    device: str
    out: Path
    quiet: bool = False


def state(place: Place, pieces: Sequence[Piece]) -> dict[str, Record | None]:
    """What became of each piece when it was last carried out here, by name; None of one that was not.

    It must have been the same command on the same card with the same PyTorch; where there is no card, any counts. The
    commit may be another, or records that were committed would make all pieces undone.

    Raises:
        RecordError: ``pieces.jsonl`` cannot be read.
    """
    ended = {record.config_id: record for record in _file(place).read() if _is_here(record, place)}
    return {piece.name: ended.get(config_id(_options(piece, place))) for piece in pieces}


def in_order(pieces: Sequence[Piece], before: dict[str, Record | None]) -> list[Piece]:
    """The pieces that are left to do: those that failed come last, so that they do not keep others from their turn."""
    left = [piece for piece in pieces if not _ended(before[piece.name], "ok")]
    return sorted(left, key=lambda piece: _ended(before[piece.name], "error", "killed"))


def carry_out(
    pieces: Sequence[Piece], place: Place, seconds: float | None, begin: Callable[[Piece], None]
) -> Iterator[Record]:
    """Carry pieces out in order, and yield what became of each; it is on the disk by then.

    Args:
        pieces: in the order wanted.
        place: where.
        seconds: time for all of them; it ends before a piece that is estimated to take longer than is left. None is
            without end.
        begin: called with each before it begins.

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


def _carry_out(piece: Piece, place: Place, limit: float) -> Record:
    start = time.monotonic()
    code = _run(piece.words(place.device, place.out), place.quiet, limit)
    status, reason = _outcome(code, limit)
    options = _options(piece, place)
    return Record(
        config_id=config_id(options),
        command="gpu",
        metric="piece_seconds",
        value=round(time.monotonic() - start, 1),
        stat="total",
        n=1,
        kind="measured",
        status=status,
        reason=reason,
        device=place.device,
        env=environment(),
        options=options,
    )


def _options(piece: Piece, place: Place) -> dict[str, Any]:
    """What a piece is known again by; the folder of all may have been moved."""
    return {"piece": piece.name, "words": list(piece.words(place.device, Path()))}


def _run(words: Sequence[str], quiet: bool, limit: float) -> int | None:
    """The exit code of a command of ours; None if it had to be told to end.

    Whatever happens, Ctrl-C included, it has ended when this returns.
    """
    # -P, and this process's path: what lies in the current folder hides no module.
    command = [sys.executable, "-P", "-m", "ppdm_bench", *words]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    sys.stdout.flush()
    # A session of its own: Ctrl-C comes here, and is passed on as the signal that is never ignored.
    child = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL if quiet else None, env=env, start_new_session=True
    )
    try:
        return child.wait(limit)
    except subprocess.TimeoutExpired:
        return None
    finally:
        _end(child)


def _end(child: "subprocess.Popen[bytes]") -> None:
    with suppress(ProcessLookupError, subprocess.TimeoutExpired):
        if child.poll() is None:
            child.send_signal(signal.SIGTERM)
            child.wait(_GRACE)
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _outcome(code: int | None, limit: float) -> tuple[str, str]:
    if code is None:
        return "timeout", f"it had not ended after {limit:.0f} s; it goes on from there when it is carried out again"
    if code < 0:
        return "killed", f"the process was ended by signal {-code}"
    return ("ok", "") if code == 0 else ("error", f"it ended with code {code}, and said why")


def _is_here(record: Record, place: Place) -> bool:
    here = environment()
    away = place.device == "cuda" and "gpu" not in here
    return record.device == place.device and (away or all(record.env.get(name) == here.get(name) for name in _SAME))


def _ended(record: Record | None, *statuses: str) -> bool:
    return record is not None and record.status in statuses


def _file(place: Place) -> RecordFile:
    return RecordFile(place.out / PIECES)
