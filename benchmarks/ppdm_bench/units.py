"""Numbers and settings as text: bytes as GiB, counts, ratios, and the settings of a configuration in words."""

from __future__ import annotations

GIB = 2**30

# Settings of a configuration, in the order of display. CONDITIONS are shown only if rows differ in them.
SETTINGS = ("shape", "batch_size", "precision", "checkpointing", "task", "width")
CONDITIONS = ("channels_last", "compile", "device", "gpu", "torch")


def significant(value: float, digits: int = 3) -> str:
    """Return `value` with `digits` significant digits and without an exponent: 3.40, 0.0512, 155."""
    if value == 0:
        return "0"
    # Use the exponent after rounding: with three digits, 9.999 becomes 10.0, not 10.00.
    exponent = int(f"{value:.{digits - 1}e}".partition("e")[2])
    return f"{value:.{max(0, digits - 1 - exponent)}f}"


def gib(size: float) -> str:
    """Return bytes as GiB for a table: two decimals from 1 GiB on, three significant digits below 1 GiB."""
    return f"{size / GIB:.2f}" if size >= GIB else significant(size / GIB)


def count(number: float) -> str:
    """Return a count with three significant digits and its SI prefix: 26.1 M."""
    rounded = float(f"{number:.2e}")  # the prefix is that of the rounded count: 999,999 is 1.00 M, not 1000 k
    for scale, prefix in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if rounded >= scale:
            return significant(rounded / scale) + prefix
    return f"{number:.0f}"


def ratio(value: float) -> str:
    """Return a ratio as a factor with three significant digits: 0.130× is 7.7 times less, 1.30× is 30 % more."""
    return f"{significant(value)}×"


def plural(number: float, noun: str) -> str:
    """Return a number with its noun: ``1 subject``, ``3 subjects``."""
    return f"{number} {noun}{'s' * (number != 1)}"


def shape_text(shape: tuple[int, ...]) -> str:
    """Return a shape in voxels: 256×256×256."""
    return "×".join(map(str, shape))


def setting_text(name: str, value: object) -> str:
    """Return one setting in words, such as `batch size 1` or `no checkpointing`; empty if it is not set."""
    if value is None or value == "" or value == ():
        return ""
    match name:
        case "shape":
            return shape_text(value) if isinstance(value, tuple) else str(value)
        case "batch_size":
            return f"batch size {value}"
        case "checkpointing":
            return "no checkpointing" if value == "none" else f"{value} checkpointing"
        case "channels_last":
            return "channels last" if value else "channels first"
        case "compile":
            return "compiled" if value else "eager"
        case "width" | "torch":
            return f"{name} {value}"
    return str(value)
