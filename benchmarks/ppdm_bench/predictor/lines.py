"""The line of the user's code that is running.

A stack holds frames of the predictor, of PyTorch, of libraries and of the user. The innermost frame of the user names
the place best: ``train.py:40`` and not ``site-packages/torch/nn/modules/conv.py:712``. If a program consists of
libraries only (``python -m nnunetv2...``), it is the innermost frame outside PyTorch and the standard library.
"""

import sys
import sysconfig
from functools import cache
from pathlib import Path
from types import CodeType, FrameType
from typing import NamedTuple

import torch

USER, LIBRARY, INSIDE = range(3)  # whose code a frame runs, from the one to name first

_INSIDE = (str(Path(torch.__file__).parent), str(Path(__file__).parent))


class Line(NamedTuple):
    """A line of a file."""

    file: str
    number: int


def here() -> Line | None:
    """Return the line that is running; None if no frame is outside PyTorch and the standard library."""
    library = None
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        whose = _whose(frame.f_code)
        if whose == USER:
            return Line(frame.f_code.co_filename, frame.f_lineno)
        if whose == LIBRARY and library is None:
            library = Line(frame.f_code.co_filename, frame.f_lineno)
        frame = frame.f_back
    return library


@cache
def _whose(code: CodeType) -> int:
    file = code.co_filename
    if file.startswith((*_INSIDE, "<")):
        return INSIDE
    if _is_below(file, "purelib", "platlib", "scripts"):
        return LIBRARY
    return INSIDE if _is_below(file, "stdlib", "platstdlib") else USER


def _is_below(file: str, *names: str) -> bool:
    folders = sysconfig.get_paths()
    return any(Path(file).is_relative_to(folders[name]) for name in names)
