"""Benchmark harness: prediction and measurement of memory, records, tables and figures.

``predict_peak``, ``predict_script``, ``measure_peak``, ``Target`` and ``Peak`` load PyTorch on first use. Importing
this package does not load it.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ppdm_bench.predictor import (
        Peak,
        PredictionError,
        ScriptError,
        ScriptPrediction,
        Target,
        measure_peak,
        predict_peak,
        predict_script,
    )

__all__ = [
    "Peak",
    "PredictionError",
    "ScriptError",
    "ScriptPrediction",
    "Target",
    "measure_peak",
    "predict_peak",
    "predict_script",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ppdm_bench import predictor

    return getattr(predictor, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
