"""Quality metrics of translated volumes: torch tensors on any device, (N, C, D, H, W) or (D, H, W).

The docstring of every metric gives its formula. ``PRESETS`` holds the conventions of published challenges, by name.
"""

from ppdm.metrics.challenges import PRESETS
from ppdm.metrics.errors import mae, nmae, nrmse, psnr
from ppdm.metrics.pair import MetricError
from ppdm.metrics.preset import Preset, ct_preset, default_preset
from ppdm.metrics.similarity import ssim
from ppdm.metrics.texture import border_ratio, seam_index, sharpness
from ppdm.metrics.uncertainty import deviation_rank
from ppdm.metrics.uptake import UptakeBias, connected_regions, suv_bias

__all__ = [
    "PRESETS",
    "MetricError",
    "Preset",
    "UptakeBias",
    "border_ratio",
    "connected_regions",
    "ct_preset",
    "default_preset",
    "deviation_rank",
    "mae",
    "nmae",
    "nrmse",
    "psnr",
    "seam_index",
    "sharpness",
    "ssim",
    "suv_bias",
]
