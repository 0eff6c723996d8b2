"""Metrics of CT in HU, with the clipping, the data range and the mask of SynthRAD's evaluation code.

PSNR and SSIM clip prediction and target to [-1024, 3000] HU; the data range is 4024 HU. The mean absolute error does
not clip (:func:`ppdm.metrics.mae`). The mask is the body: errors are averaged inside it, and both volumes are set to
air outside it before SSIM is computed.

Sources: github.com/SynthRAD2023/metrics, functions/image_metrics.py at fe7e385; arXiv 2403.08447;
github.com/SynthRAD2025/metrics, functions/image_metrics.py at 0beef65.

Axes: a volume (D, H, W). :func:`ppdm.metrics.pair.checked` describes the errors.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ppdm.metrics.errors import psnr
from ppdm.metrics.pair import checked
from ppdm.metrics.similarity import SlidingWindow, similarity, weighted_map

AIR, METAL = -1024.0, 3000.0  # HU, `dynamic_range` in the code of 2023 and of 2025
SPAN = METAL - AIR

_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang, Simoncelli & Bovik 2003, section 3.2
_SMALLEST = 97  # voxels per side, so that a window of 7 fits after four halvings: 97, 49, 25, 13, 7


def psnr_of_ct(prediction: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
    """PSNR in dB of volumes in HU, clipped, with the data range 4024 HU."""
    return psnr(prediction.clamp(AIR, METAL), target.clamp(AIR, METAL), SPAN, mask)


def ssim_of_ct(prediction: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
    """SSIM of clipped volumes, air outside the mask, shifted to start at 0 (SSIM's first factor needs this offset).

    It has scikit-image's defaults: uniform window of 7, sample covariance, mean over the map without 3 voxels at each
    border.
    """
    p, g = _inside(prediction, target, mask)
    return similarity(checked(p, g, mask), SPAN, SlidingWindow.uniform())


def ms_ssim_of_ct(prediction: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
    """Multi-scale SSIM as in SynthRAD2025: the product over five scales of means, each clamped to [0, 1].

    Volumes are those of :func:`ssim_of_ct`, extended to 97 voxels per side with the values at their borders. At each
    scale the map is ``L^w · C^w · S^w`` with the factors of SSIM (negative ones count as 0) and the scale's weight w.
    The paper has the first factor at the coarsest scale only; the challenge's code has it at all scales.
    """
    everything = torch.ones_like(target, dtype=torch.bool) if mask is None else mask > 0
    p, g, inside = (_extended(x) for x in (*_inside(prediction, target, mask), everything.to(target.dtype)))
    result = p.new_ones((), dtype=torch.float64)
    for weight in _WEIGHTS:
        pair = checked(p, g, inside)
        result = result * similarity(pair, SPAN, SlidingWindow.uniform(), local=weighted_map(weight)).clamp(0, 1)
        p, g, inside = _halved(p), _halved(g), inside[::2, ::2, ::2]
    return result


def _inside(prediction: Tensor, target: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    p, g = (x.clamp(AIR, METAL) - AIR for x in (prediction, target))
    return (p, g) if mask is None else (p * (mask > 0), g * (mask > 0))


def _extended(x: Tensor) -> Tensor:
    pads = []
    for size in reversed(x.shape):
        missing = max(_SMALLEST - size, 0)
        pads += [missing // 2, missing - missing // 2]
    return F.pad(x[None, None], pads, mode="replicate")[0, 0]


def _halved(x: Tensor) -> Tensor:
    """Means of pairs of voxels along each axis; the first voxel is paired with a zero, as `fftconvolve` does."""
    return F.avg_pool3d(F.pad(x[None, None], (1, 0) * 3), 2, 2)[0, 0]
