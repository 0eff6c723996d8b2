"""Readers of option values for which Typer has no type.

A reader raises ``ValueError`` for a text that it cannot read, or a usage error of Typer if Typer itself calls it. Every
error states the value that was given and the values that are expected.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import typer

from ppdm_bench.commands.terminal import notify
from ppdm_bench.predictor.target import GIB, MIB

T = TypeVar("T")

# Integers have at most 18 digits, so that they fit into 64 bits.
_WHOLE, _POSITIVE, _NUMBER = "[0-9]{1,18}", "0{0,9}[1-9][0-9]{0,17}", "[1-9][0-9]{0,17}"
_DECIMAL = r"[0-9]{0,18}\.?[0-9]{1,18}"


def read_option(name: str, read: Callable[[str], T], text: str) -> T:
    """Read the value of an option. A ``ValueError`` of the reader becomes a usage error that names the option."""
    try:
        return read(text)
    except (ValueError, typer.BadParameter) as error:
        sentence = error.message if isinstance(error, typer.BadParameter) else str(error)
        raise typer.BadParameter(sentence, param_hint=f"'{name}'") from error


def read_if_given(name: str, read: Callable[[str], T], text: str | None) -> T | None:
    """Read the value of an option as :func:`read_option` does; None if the option was not given."""
    return None if text is None else read_option(name, read, text)


def or_usage_error(call: Callable[..., T], *arguments: Any, **options: Any) -> T:
    """Call a function that checks several options together. Its ``ValueError`` becomes a usage error."""
    try:
        return call(*arguments, **options)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def comma_separated(read: Callable[[str], T]) -> Callable[[str], list[T]]:
    """Return a reader of comma-separated values. Empty parts do not count; a repeated value causes a warning."""

    def read_all(text: str) -> list[T]:
        values = [read(part.strip()) for part in text.split(",") if part.strip()]
        if not values:
            raise ValueError(f"expected values separated by commas, got {text!r}")
        distinct = list(dict.fromkeys(values))
        if len(distinct) < len(values):
            hint = "; a comma separates alternatives, x separates axes (2x2x1)" if read is read_factor else ""
            notify(f"warning: {text} repeats a value, which counts once{hint}")
        return distinct

    return read_all


def read_names(name: str, text: str | None) -> list[str]:
    """Read an optional list of names, such as ``--columns``; an empty list if the option was not given."""
    return read_if_given(name, comma_separated(str), text) or []


def one_of(*allowed: str) -> Callable[[str], str]:
    """Return a reader that accepts only these words."""

    def read(text: str) -> str:
        if text not in allowed:
            *others, last = allowed
            expected = f"{', '.join(others)} or {last}" if others else last
            raise ValueError(f"expected {expected}, got {text!r}")
        return text

    return read


def whole_number(least: int = 1) -> Callable[[str | int], int]:
    """Return a reader of integers from ``least`` upwards."""

    def read(given: str | int) -> int:
        text = str(given)  # Typer passes a default as a number
        if not re.fullmatch(f"-?{_WHOLE}", text) or int(text) < least:
            raise typer.BadParameter(f"expected a whole number of at least {least}, got {text!r}")
        return int(text)

    return read


def read_evaluations(text: str) -> int | None:
    """Read a number of network evaluations; ``own`` gives None, which means the method's own number."""
    if text == "own":
        return None
    if not re.fullmatch(_POSITIVE, text):
        raise ValueError(f"expected a number of network evaluations such as 4, or own, got {text!r}")
    return int(text)


def read_seconds(given: str | float) -> float:
    """Read a time limit between one second and a million seconds."""
    text = str(given)
    if not re.fullmatch(r"[0-9]+(\.[0-9]+)?", text) or not 1 <= float(text) <= 1e6:
        raise typer.BadParameter(f"expected seconds from 1 to 1000000, got {text!r}")
    return float(text)


def positive_number(what: str) -> Callable[[str | float], float]:
    """Return a reader of positive numbers, such as minutes."""

    def read(given: str | float) -> float:
        text = str(given)
        if not re.fullmatch(r"([0-9]{1,18}\.?[0-9]{0,18}|\.[0-9]{1,18})(e[+-]?[0-9]{1,2})?", text) or not float(text):
            raise typer.BadParameter(f"expected {what}, a positive number, got {text!r}")
        return float(text)

    return read


def read_interval(text: str) -> tuple[int | None, float | None]:
    """Read an interval: a number of steps (``200``) or of minutes (``5min``)."""
    if re.fullmatch(_POSITIVE, text):
        return int(text), None
    match = re.fullmatch(rf"({_DECIMAL})\s*min", text)
    if not match or not float(match[1]):
        raise ValueError(f"expected steps such as 200, or minutes such as 5min, got {text!r}")
    return None, float(match[1])


def read_flip_axes(text: str) -> str:
    """Read the flipped axes: ``none``, ``flip`` (left-right), or chosen axes such as ``flip:dhw``."""
    match = re.fullmatch(r"none|flip(?::([dhw]{1,3}))?", text)
    axes = "" if not match or text == "none" else match[1] or "d"
    if not match or len(set(axes)) < len(axes):
        raise ValueError(f"expected none, flip (left and right), or flip: and axes such as flip:dhw, got {text!r}")
    return axes


def _read_axes(text: str, number: str, expected: str, *counts: int, several: bool = False) -> list[str]:
    """Read one number or one per axis, such as ``1x2x2``.

    A comma separates alternatives. An option without alternatives still accepts commas between axes, with a notice.

    Args:
        text, number: the text, and the regular expression of one number.
        expected: the expected text in words, for the error.
        counts: allowed numbers of values, such as 1 and 3.
        several: whether the option can have alternatives.
    """
    parts = text.split("x")
    if len(parts) in counts and all(re.fullmatch(number, part) for part in parts):
        return parts
    commas = [part.strip() for part in text.split(",")]
    if len(commas) != 3 or not all(re.fullmatch(number, part) for part in commas):
        raise ValueError(f"expected {expected}, got {text!r}")
    now = "x".join(commas)
    if several:
        raise ValueError(f"expected {expected}, got {text!r}; x separates axes, write {now}")
    notify(f"axes are now separated by x: write {now} instead of {text}; the old form will be removed")
    return commas


def read_factor(text: str) -> int | tuple[int, int, int]:
    """Read a puzzle factor: ``2``, or one per axis: ``1x2x2``."""
    return _one_or_three(
        _read_axes(text, _NUMBER, "a positive factor such as 2, or one per axis such as 1x2x2", 1, 3, several=True)
    )


def read_shape(text: str) -> tuple[int, int, int]:
    """Read a shape in voxels, depth, height and width: ``160x192x160``."""
    d, h, w = map(int, _read_axes(text, _NUMBER, "three positive sizes DxHxW in voxels such as 160x192x160", 3))
    return d, h, w


def read_block(text: str) -> int | tuple[int, int, int]:
    """Read the size of a block in voxels: ``128``, or one per axis: ``64x128x128``."""
    expected = "a number of voxels such as 128, or three DxHxW such as 64x128x128"
    return _one_or_three(_read_axes(text, _NUMBER, expected, 1, 3))


def read_spacing(text: str) -> tuple[float, float, float]:
    """Read a voxel size in mm: ``2``, or one per axis: ``2x2x4``."""
    expected = "one or three positive lengths in mm such as 2 or 2x2x4"
    parts = _read_axes(text, rf"(?=.*[1-9]){_DECIMAL}", expected, 1, 3)
    d, h, w = [float(part) for part in parts] * (3 // len(parts))
    return d, h, w


def _one_or_three(parts: Sequence[str]) -> int | tuple[int, int, int]:
    numbers = [int(part) for part in parts]
    return numbers[0] if len(numbers) == 1 else (numbers[0], numbers[1], numbers[2])


def read_dose(text: str) -> int:
    """Read a dose factor; the counts are divided by it."""
    if not re.fullmatch(_WHOLE, text) or int(text) < 2:
        raise ValueError(f"expected a dose factor, a whole number from 2 up such as 20, got {text!r}")
    return int(text)


def read_budget(text: str) -> int:
    """Read the memory of a card in bytes: ``24GB``. Cards are sold in GB of 2^30 bytes, so GB and GiB mean the same."""
    match = re.fullmatch(r"([0-9]{1,18}(?:\.[0-9]{1,18})?)\s*(G|M)(?:I?B)?", text.strip(), re.IGNORECASE)
    size = round(float(match[1]) * (GIB if match[2].upper() == "G" else MIB)) if match else 0
    if size < MIB:
        raise ValueError(f"expected an amount of memory such as 24GB or 512MB, got {text!r}")
    return size


def integer_option(description: str, least: int = 1) -> Any:
    """Return an option for an integer from ``least`` upwards; errors of Typer's own ``min`` omit the given value."""
    return typer.Option(parser=whole_number(least), metavar="N", help=description)


def number_option(what: str, description: str) -> Any:
    """Return an option for a positive number; ``what`` names it in errors, such as ``minutes`` or ``a rate``."""
    return typer.Option(parser=positive_number(what), metavar=what.split()[-1].upper(), help=description)


def seconds_option(description: str) -> Any:
    """Return an option for a time limit in seconds."""
    return typer.Option(parser=read_seconds, metavar="SECONDS", help=description)


def completion(*words: str) -> Callable[[str], list[str]]:
    """Return a shell completion with these words; in a comma-separated list it completes the last value."""

    def complete(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")
        return [before + comma + word for word in words if word.startswith(last)]

    return complete


def complete_method(incomplete: str) -> list[str]:
    """Complete the name of a method. The import is here, because the registry of methods imports PyTorch."""
    from ppdm_baselines import METHODS

    return [name for name in METHODS if name.startswith(incomplete)]
