"""Peak CUDA memory of any PyTorch code, predicted without a GPU: ``predict_peak``, ``measure_peak``, ``Target``.

The package imports PyTorch and nothing of the rest of the project; README.md beside this file lists every rule.
"""

from ppdm_bench.predictor.fake_storage import PredictionError
from ppdm_bench.predictor.peak import Peak, measure_peak, predict_peak
from ppdm_bench.predictor.target import Target

__all__ = ["Peak", "PredictionError", "Target", "measure_peak", "predict_peak"]
