"""Presets with the conventions of published challenges, so that scores are comparable with a challenge's table.

``source`` names the code and papers of each convention. Where code is published, the preset follows it exactly.
Comments describe points that the sources leave open.
"""

from collections.abc import Mapping
from functools import partial
from math import ceil, floor
from statistics import fmean

import torch
import torch.nn.functional as F
from torch import Tensor

from ppdm.metrics.errors import mae, psnr
from ppdm.metrics.hounsfield import ms_ssim_of_ct, psnr_of_ct, ssim_of_ct
from ppdm.metrics.pair import MetricError, checked
from ppdm.metrics.preset import Preset
from ppdm.metrics.similarity import SlidingWindow, similarity
from ppdm.metrics.uptake import suv_bias

SYNTHRAD2023 = Preset(
    name="synthrad2023",
    metrics={"mae": mae, "psnr": psnr_of_ct, "ssim": ssim_of_ct},
    units="HU",
    unit="HU",
    normalisation="MAE none; PSNR and SSIM clipped to [-1024, 3000], data range 4024, SSIM raised by 1024",
    mask="the body: where MAE, PSNR and SSIM's map are averaged, and air is written outside before SSIM",
    # The published version passes the mask to SSIM as an image object instead of an array. Its later code
    # expects an array, so this preset uses an array.
    source="github.com/SynthRAD2023/metrics, functions/image_metrics.py at fe7e385; arXiv 2403.08447",
)

SYNTHRAD2025 = Preset(
    name="synthrad2025",
    metrics={"mae": mae, "psnr": psnr_of_ct, "ms_ssim": ms_ssim_of_ct},
    units="HU",
    unit="HU",
    normalisation="MAE none; PSNR and MS-SSIM clipped to [-1024, 3000], data range 4024, MS-SSIM raised by 1024",
    mask="the body: where MAE, PSNR and MS-SSIM's maps are averaged, and air is written outside before MS-SSIM",
    # Without a mask, the published MS-SSIM fails; here the whole volume counts. The challenge also compares
    # segmentations of the CT and doses, which are not metrics of a pair of volumes.
    source="github.com/SynthRAD2025/metrics, functions/image_metrics.py at 0beef65",
)


def _brasyn(prediction: Tensor, target: Tensor, inside: Tensor) -> Tensor:
    """Mean SSIM inside a region; both volumes are set to 0 outside it."""
    p, g = (_percentile_scaled(name, x) * inside for name, x in (("prediction", prediction), ("target", target)))
    # Defaults of torchmetrics: Gaussian window, reflected borders, and the larger of the ranges of the two images.
    span = max(float(x.max() - x.min()) for x in (p, g))
    if not span > 0:
        raise MetricError("BraSyn's SSIM is not defined: prediction and target are constant in the region.")
    window = SlidingWindow.gaussian()
    if min(target.shape) <= window.half:
        raise MetricError(
            f"BraSyn's SSIM reflects {window.half} voxels at each border, so it needs at least {window.half + 1} "
            f"voxels along each axis, got {tuple(target.shape)}; give larger volumes."
        )
    p, g = (F.pad(x[None, None], (window.half,) * 6, mode="reflect")[0, 0] for x in (p, g))
    mask = F.pad(inside, (window.half,) * 6)
    return similarity(checked(p, g, mask), span, window)


def _percentile_scaled(name: str, x: Tensor) -> Tensor:
    """Clip to the volume's own percentiles 0.5 and 99.5, the lower at least 0, and scale to [0, 1]."""
    low, high = max(percentile(x, 0.5), 0.0), percentile(x, 99.5)
    if not low < high:
        raise MetricError(f"BraSyn scales between percentiles, and those of the {name} are both {high:g}: no contrast.")
    return (x.clamp(low, high) - low) / (high - low)


def percentile(x: Tensor, q: float) -> float:
    """Percentile with linear interpolation, as in ``numpy.percentile``; ``torch.quantile`` has a size limit."""
    place = q / 100 * (x.numel() - 1)
    below, above = (float(x.flatten().kthvalue(k + 1).values) for k in (floor(place), ceil(place)))
    return below + (above - below) * (place - floor(place))


def _brasyn_tumour(prediction: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
    assert mask is not None
    return _brasyn(prediction, target, mask > 0)


def _brasyn_healthy(prediction: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
    everything = torch.ones_like(target, dtype=torch.bool)
    return _brasyn(prediction, target, everything if mask is None else mask <= 0)


BRASYN = Preset(
    name="brasyn",
    metrics={"ssim_non_tumour": _brasyn_healthy},
    masked={"ssim_tumour": _brasyn_tumour},
    units="any; intensities below 0 count as 0",
    normalisation="each volume by its own percentiles 0.5 and 99.5 (of all voxels, lower one at least 0) to [0, 1]",
    mask="the tumour's segmentation; without one, the whole volume is not tumour",
    # The published script fails: it applies an integer mask as an index, and to a tuple of two results. This preset
    # averages the SSIM map inside a boolean mask, as in github.com/BraTS-inpainting/inpainting. The challenge also uses
    # the Dice score of a segmentation network on the completed set. It is not a metric of a pair of volumes.
    source="github.com/hongweilibran/BraSyn, ssim.py at 4d9af6d; arXiv 2305.09011",
)


def _udpet_nrmse(prediction: Tensor, target: Tensor, _: Tensor | None) -> Tensor:
    """RMSE divided by the target's range."""
    span = _positive("span", float(target.max()) - float(target.min()))
    return checked(prediction, target).mean(lambda p, g: (p - g).square()).sqrt() / span


def _udpet_psnr(prediction: Tensor, target: Tensor, _: Tensor | None) -> Tensor:
    return psnr(prediction, target, _positive("maximum", float(target.max())))


def _udpet_ssim(prediction: Tensor, target: Tensor, _: Tensor | None) -> Tensor:
    """SSIM of volumes divided by their own maximum; the data range is 2, scikit-image's former default for floats."""
    p, g = (x / _positive("maximum", float(x.max())) for x in (prediction, target))
    return similarity(checked(p, g), 2.0, SlidingWindow.uniform())


def _positive(what: str, value: float) -> float:
    if not value > 0:
        raise MetricError(f"UDPET's metrics divide by the {what} of prediction or target, which is {value:g} here.")
    return value


def _udpet_error(which: str, prediction: Tensor, target: Tensor, labels: Tensor | None) -> float:
    """Mean absolute bias over the regions, in percent."""
    assert labels is not None
    return fmean(abs(getattr(bias, which)) for bias in suv_bias(prediction, target, labels).values())


UDPET = Preset(
    name="udpet",
    metrics={"nrmse": _udpet_nrmse, "psnr": _udpet_psnr, "ssim": _udpet_ssim},
    masked={
        "suv_mean_error": partial(_udpet_error, "suv_mean"),
        "suv_max_error": partial(_udpet_error, "suv_max"),
    },
    units="SUV, or Bq/mL: nothing here depends on the unit",
    normalisation="NRMSE by the target's range, PSNR's peak is the target's maximum, SSIM of each over its own maximum",
    mask="labels of the volumes of interest (the challenge's: liver 1, heart 2, right kidney 3, left kidney 4)",
    # The challenge's page names the metrics. The formulas are from a participant's copy of its evaluation script; other
    # years may differ. Not computed: the radiomics features, the local "PSNR" (of the image against the mask), total
    # lesion metabolism (its error in percent equals that of SUVmean), and the weighted total score.
    source=(
        "github.com/udpet-challenge/udpet-challenge.github.io, evaluation.md at 0251483; "
        "github.com/felihong/wavelet-PET-denoising, common/evaluation.py at 037ac83"
    ),
)

PRESETS: Mapping[str, Preset] = {preset.name: preset for preset in (SYNTHRAD2023, SYNTHRAD2025, BRASYN, UDPET)}
