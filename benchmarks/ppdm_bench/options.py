"""How options are read: lists, sizes, budgets; every refusal says what was got and what is expected.

No PyTorch here: it is imported inside commands, so that ``--help`` answers at once.
"""

import re
from collections.abc import Callable
from typing import Any, TypeVar

import typer

T = TypeVar("T")

GIB = 2**30


def comma_separated(read: Callable[[str], T]) -> Callable[[str], list[T]]:
    """A reader of comma-separated values, each read by ``read``; empty ones are dropped."""

    def read_all(text: str) -> list[T]:
        values = [part.strip() for part in text.split(",") if part.strip()]
        if not values:
            raise typer.BadParameter(f"expected values separated by commas, got {text!r}")
        return [read(value) for value in values]

    return read_all


def one_of(*allowed: str) -> Callable[[str], str]:
    """A reader that lets only these words pass."""

    def read(text: str) -> str:
        if text not in allowed:
            raise typer.BadParameter(f"expected {', '.join(allowed)}, got {text!r}")
        return text

    return read


def read_factor(text: str) -> int | tuple[int, int, int]:
    """A puzzle factor: ``2``, or one an axis: ``1x2x2``."""
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*x[1-9]\d*)?", text):
        raise typer.BadParameter(f"expected a positive factor such as 2, or one an axis such as 1x2x2, got {text!r}")
    numbers = [int(part) for part in text.split("x")]
    return numbers[0] if len(numbers) == 1 else (numbers[0], numbers[1], numbers[2])


def read_shape(text: str) -> tuple[int, int, int]:
    """A shape D,H,W in voxels."""
    parts = text.split(",")
    if len(parts) != 3 or not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise typer.BadParameter(f"expected three positive sizes D,H,W in voxels such as 160,192,160, got {text!r}")
    d, h, w = map(int, parts)
    return d, h, w


def read_budget(text: str) -> int:
    """Memory of a card in bytes: ``24GB``. Cards are sold in GB of 2^30 bytes, so GB and GiB are the same here."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(GB|GIB|G|MB|MIB|M)", text.strip(), re.IGNORECASE)
    if not match or float(match[1]) <= 0:
        raise typer.BadParameter(f"expected an amount of memory such as 24GB or 512MB, got {text!r}")
    return round(float(match[1]) * (GIB if match[2].upper().startswith("G") else 2**20))


def as_usage(call: Callable[..., T], *arguments: Any, **options: Any) -> T:
    """Call what checks options; what it refuses is a fault of usage."""
    try:
        return call(*arguments, **options)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
