"""``ppdm-bench methods``: what is registered, from the values themselves."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from ppdm import Method
from ppdm_baselines import PRESETS, SOURCES

COLUMNS = ("method", "preset", "parameters", "evaluations", "representation", "kernel", "target", "window", "source")


def catalogue() -> list[dict[str, Any]]:
    """One row a method and preset; parameters for volumes of one channel, evaluations of the network a volume."""
    return [_row(preset, method) for preset, methods in PRESETS.items() for method in methods.values()]


def parameter_count(make: Callable[[], nn.Module]) -> int:
    """How many parameters the network has that ``make`` makes; it is made without memory."""
    with torch.device("meta"):
        return sum(p.numel() for p in make().parameters())


def catalogue_text(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as an aligned table."""
    lines = [COLUMNS, *(tuple(_text(row[column]) for column in COLUMNS) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(f"{cell:{w}}" for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def _row(preset: str, method: Method) -> dict[str, Any]:
    return {
        "method": method.name,
        "preset": preset,
        "parameters": parameter_count(method.build),
        "evaluations": method.sampling.steps,
        "representation": str(method.representation),
        "kernel": str(method.kernel),
        "target": method.target,
        "window": str(method.window),
        "source": SOURCES[method.name],
    }


def _text(value: Any) -> str:
    return f"{value / 1e6:.1f} M" if isinstance(value, int) and value > 100_000 else str(value)
