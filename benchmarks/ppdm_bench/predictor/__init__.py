"""Peak CUDA memory of any PyTorch code, predicted without a GPU: ``predict_peak``, ``predict_script``.

The package imports PyTorch and nothing else of the project. It imports PyTorch only when one of its names is used.
README.md in this folder lists every rule.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ppdm_bench.predictor.peak import Peak, measure_peak, predict_peak
    from ppdm_bench.predictor.script.prediction import ScriptError, ScriptPrediction, predict_script
    from ppdm_bench.predictor.sizes import PredictionError
    from ppdm_bench.predictor.target import Target

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

_HOMES = {"PredictionError": "sizes", "Target": "target"}
_HOMES |= dict.fromkeys(("ScriptError", "ScriptPrediction", "predict_script"), "script.prediction")


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'peak')}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
