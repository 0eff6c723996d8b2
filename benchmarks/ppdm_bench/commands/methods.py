"""``ppdm-bench methods``: the registered methods, with the properties of each."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from ppdm import Method
from ppdm_baselines import PRESETS, SOURCES
from ppdm_bench.configuration import find_method, presets_of


def catalogue(names: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Return one row per method and preset, with its parameters (one input channel), evaluations and phases.

    Args:
        names: registered methods, or the user's own as ``module:ATTRIBUTE``; by default all registered methods.

    Raises:
        MethodError: a name is unknown.
    """
    if names:
        return [_row(preset, find_method(name, preset)) for name in names for preset in presets_of(name)]
    return [_row(preset, method) for preset, methods in PRESETS.items() for method in methods.values()]


def parameter_count(make: Callable[[], nn.Module]) -> int:
    """Count the parameters of the network that ``make`` returns, without allocating them."""
    with torch.device("meta"):
        return sum(p.numel() for p in make().parameters())


def _row(preset: str, method: Method) -> dict[str, Any]:
    return {
        "method": method.name,
        "preset": preset,
        "parameters": parameter_count(method.build),
        "evaluations": method.sampling.steps,
        "phases": ",".join(method.phases),
        "representation": str(method.representation),
        "kernel": str(method.kernel),
        "target": method.target,
        "window": str(method.window),
        "source": SOURCES.get(method.name, "your own"),
    }
