"""Find the line of the user's code that is running.

A stack contains frames of the predictor, PyTorch, libraries and the user. The innermost frame of the user is the most
useful one: ``train.py:40`` instead of ``site-packages/torch/nn/modules/conv.py:712``. If a program consists of
libraries only (``python -m nnunetv2...``), the innermost frame outside PyTorch and the standard library is used.
"""

import sys
import sysconfig
import traceback
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import CodeType, FrameType, TracebackType
from typing import NamedTuple

import torch

USER, LIBRARY, INTERNAL = range(3)  # owner of the code that a frame runs; the first one is the most useful

_SAMPLERS = str(Path(torch.__file__).parent / "utils" / "data")
_INTERNAL_FOLDERS = (str(Path(torch.__file__).parent), str(Path(__file__).parent))


class Line(NamedTuple):
    """A line of a file."""

    file: str
    number: int


def current_line(frame: FrameType | None = None) -> Line | None:
    """Return the line that is running, in this thread or in that of a frame.

    None if no frame is outside PyTorch and the standard library.
    """
    library = None
    for code, number in _stack(frame or sys._getframe(1)):
        owner = _owner(code)
        if owner == USER:
            return Line(code.co_filename, number)
        if owner == LIBRARY and library is None:
            library = Line(code.co_filename, number)
    return library


def reading_line() -> Line | None:
    """Return the line that reads a value: the innermost one outside PyTorch and the standard library.

    Reads by PyTorch's samplers, which read seeds, are ignored.
    """
    for code, number in _stack(sys._getframe(1)):
        if code.co_filename.startswith(_SAMPLERS):
            return None
        if _owner(code) != INTERNAL:
            return Line(code.co_filename, number)
    return None


def line_of_traceback(traced: TracebackType | None) -> Line | None:
    """Return the innermost line of the user in a traceback; if there is none, the innermost line of a library."""
    frames = [
        Line(frame.f_code.co_filename, number)
        for frame, number in traceback.walk_tb(traced)
        if _owner(frame.f_code) != INTERNAL
    ]
    users = [line for line in frames if _owner_of_file(line.file) == USER]
    found = users or frames
    return found[-1] if found else None


def _stack(frame: FrameType | None) -> Iterator[tuple[CodeType, int]]:
    """Code and line number of a frame and its callers, starting with the innermost."""
    while frame is not None:
        yield frame.f_code, frame.f_lineno
        frame = frame.f_back


def is_users(file: str) -> bool:
    """Whether a file belongs to the user, and not to PyTorch, the standard library or an installed package."""
    return _owner_of_file(file) == USER


def is_internal(file: str) -> bool:
    """Whether a file belongs to PyTorch, the standard library or the predictor, and not to a program or a package."""
    return _owner_of_file(file) == INTERNAL


def _owner(code: CodeType) -> int:
    return _owner_of_file(code.co_filename)


@cache
def _owner_of_file(file: str) -> int:
    if file.startswith((*_INTERNAL_FOLDERS, "<")):
        return INTERNAL
    if _is_below(file, "purelib", "platlib", "scripts"):
        return LIBRARY
    return INTERNAL if _is_below(file, "stdlib", "platstdlib") else USER


def _is_below(file: str, *names: str) -> bool:
    folders = sysconfig.get_paths()
    return any(Path(file).is_relative_to(folders[name]) for name in names)
