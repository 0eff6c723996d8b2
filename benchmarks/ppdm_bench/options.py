"""How options are read: lists, sizes, budgets; every refusal says what was got and what is expected.

No PyTorch here: it is imported inside commands, so that ``--help`` answers at once.
"""

import re
from collections.abc import Callable
from typing import Any, TypeVar

import typer

from ppdm_bench.memory.target import GIB, MIB

T = TypeVar("T")


def read_option(name: str, read: Callable[[str], T], text: str) -> T:
    """Read the value of an option; what its reader refuses is a fault of usage that names the option."""
    try:
        return read(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=f"'{name}'") from error


def as_usage(call: Callable[..., T], *arguments: Any, **options: Any) -> T:
    """Call what checks several options together; what it refuses is a fault of usage."""
    try:
        return call(*arguments, **options)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def comma_separated(read: Callable[[str], T]) -> Callable[[str], list[T]]:
    """A reader of comma-separated values, each read by ``read``; empty ones are dropped, repeated ones count once."""

    def read_all(text: str) -> list[T]:
        values = dict.fromkeys(part.strip() for part in text.split(",") if part.strip())
        if not values:
            raise ValueError(f"expected values separated by commas, got {text!r}")
        return [read(value) for value in values]

    return read_all


def one_of(*allowed: str) -> Callable[[str], str]:
    """A reader that lets only these words pass."""

    def read(text: str) -> str:
        if text not in allowed:
            raise ValueError(f"expected {', '.join(allowed[:-1])} or {allowed[-1]}, got {text!r}")
        return text

    return read


def count(least: int = 1) -> Callable[[str | int], int]:
    """A reader of whole numbers from ``least`` upwards."""

    def read(given: str | int) -> int:
        text = str(given)  # a default passes through here as the number that it is
        if not re.fullmatch(r"-?[0-9]+", text) or int(text) < least:
            raise typer.BadParameter(f"expected a whole number of at least {least}, got {text!r}")
        return int(text)

    return read


def read_seconds(given: str | float) -> float:
    """A time limit of one second or more, at most a million."""
    text = str(given)
    if not re.fullmatch(r"[0-9]+(\.[0-9]+)?", text) or not 1 <= float(text) <= 1e6:
        raise typer.BadParameter(f"expected seconds from 1 to 1000000, got {text!r}")
    return float(text)


def read_factor(text: str) -> int | tuple[int, int, int]:
    """A puzzle factor: ``2``, or one an axis: ``1x2x2``.

    Raises:
        ValueError: it is none.
    """
    if not re.fullmatch(r"[1-9][0-9]*(x[1-9][0-9]*x[1-9][0-9]*)?", text):
        raise ValueError(f"expected a positive factor such as 2, or one an axis such as 1x2x2, got {text!r}")
    numbers = [int(part) for part in text.split("x")]
    return numbers[0] if len(numbers) == 1 else (numbers[0], numbers[1], numbers[2])


def read_shape(text: str) -> tuple[int, int, int]:
    """A shape D,H,W in voxels.

    Raises:
        ValueError: it is none.
    """
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 3 or not all(re.fullmatch(r"0*[1-9][0-9]*", part) for part in parts):
        raise ValueError(f"expected three positive sizes D,H,W in voxels such as 160,192,160, got {text!r}")
    d, h, w = map(int, parts)
    return d, h, w


def read_budget(text: str) -> int:
    """Memory of a card in bytes: ``24GB``. Cards are sold in GB of 2^30 bytes, so GB and GiB are the same here.

    Raises:
        ValueError: it is none, or less than 1 MB.
    """
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*(G|M)(?:I?B)?", text.strip(), re.IGNORECASE)
    size = round(float(match[1]) * (GIB if match[2].upper() == "G" else MIB)) if match else 0
    if size < MIB:
        raise ValueError(f"expected an amount of memory such as 24GB or 512MB, got {text!r}")
    return size
