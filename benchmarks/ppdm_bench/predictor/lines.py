"""The line of the user's code that is running.

A stack holds frames of the predictor, of PyTorch, of libraries and of the user. The innermost frame of the user names
the place best: ``train.py:40`` and not ``site-packages/torch/nn/modules/conv.py:712``. If a program consists of
libraries only (``python -m nnunetv2...``), it is the innermost frame outside PyTorch and the standard library.
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

USER, LIBRARY, INSIDE = range(3)  # whose code a frame runs, from the one to name first

_SAMPLERS = str(Path(torch.__file__).parent / "utils" / "data")
_INSIDE = (str(Path(torch.__file__).parent), str(Path(__file__).parent))


class Line(NamedTuple):
    """A line of a file."""

    file: str
    number: int


def here(frame: FrameType | None = None) -> Line | None:
    """Return the line that is running, or of another thread's frame; None if all is PyTorch or the standard library."""
    library = None
    for code, number in _stack(frame or sys._getframe(1)):
        whose = _whose(code)
        if whose == USER:
            return Line(code.co_filename, number)
        if whose == LIBRARY and library is None:
            library = Line(code.co_filename, number)
    return library


def reading() -> Line | None:
    """Return the line that reads a value: the innermost one outside PyTorch and the standard library.

    The seeds that PyTorch's samplers read do not count.
    """
    for code, number in _stack(sys._getframe(1)):
        if code.co_filename.startswith(_SAMPLERS):
            return None
        if _whose(code) != INSIDE:
            return Line(code.co_filename, number)
    return None


def of_traceback(traced: TracebackType | None) -> Line | None:
    """Return the innermost line of the user in a traceback, or of a library if there is none of the user."""
    frames = [
        Line(frame.f_code.co_filename, number)
        for frame, number in traceback.walk_tb(traced)
        if (_whose(frame.f_code) != INSIDE)
    ]
    users = [line for line in frames if _whose_file(line.file) == USER]
    return next(iter([*users[::-1], *frames[::-1]]), None)


def _stack(frame: FrameType | None) -> Iterator[tuple[CodeType, int]]:
    """A frame and those that called it."""
    while frame is not None:
        yield frame.f_code, frame.f_lineno
        frame = frame.f_back


def is_users(file: str) -> bool:
    """Whether a file belongs to the user, and not to PyTorch, the standard library or an installed package."""
    return _whose_file(file) == USER


def _whose(code: CodeType) -> int:
    return _whose_file(code.co_filename)


@cache
def _whose_file(file: str) -> int:
    if file.startswith((*_INSIDE, "<")):
        return INSIDE
    if _is_below(file, "purelib", "platlib", "scripts"):
        return LIBRARY
    return INSIDE if _is_below(file, "stdlib", "platstdlib") else USER


def _is_below(file: str, *names: str) -> bool:
    folders = sysconfig.get_paths()
    return any(Path(file).is_relative_to(folders[name]) for name in names)
