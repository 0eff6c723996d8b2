"""Presets: named evaluation conventions, and the project's own preset.

A preset scores one subject. Records of scores contain the name of their preset.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ppdm.metrics.errors import mae, nmae, nrmse, psnr
from ppdm.metrics.hounsfield import psnr_of_ct, ssim_of_ct
from ppdm.metrics.pair import checked, checked_range, single
from ppdm.metrics.similarity import ssim
from ppdm.metrics.texture import border_ratio, seam_index, sharpness
from ppdm.pixel_puzzle import Factor

Score = Callable[[Tensor, Tensor, Tensor | None], Tensor | float]  # prediction, target, mask, each (D, H, W)


@dataclass(frozen=True)
class Preset:
    """An evaluation convention.

    Attributes:
        name: its name in records.
        metrics: the metrics of every subject, by name.
        masked: additional metrics if there is a mask with a voxel above 0.
        units: the required units of the volumes.
        normalisation: description of the normalisation of the volumes.
        mask: description of the required mask.
        source: where the convention is published.
        uptake: whether to compute the bias of uptake in every labelled region of PET.
        unit: unit of the volumes, and of metrics such as the mean absolute error; empty if it is arbitrary.
    """

    name: str
    metrics: Mapping[str, Score]
    units: str
    normalisation: str
    mask: str
    source: str
    masked: Mapping[str, Score] = field(default_factory=dict)
    uptake: bool = False
    unit: str = ""

    def __call__(self, prediction: Tensor, target: Tensor, mask: Tensor | None = None) -> dict[str, float]:
        """Score one subject.

        Args:
            prediction, target: (D, H, W), in ``units``.
            mask: (D, H, W), see ``mask``; None if there is none.

        Raises:
            MetricError: the arguments are not single volumes, or a metric refuses them.
        """
        single(f"The preset {self.name}", prediction, target, mask)
        checked(prediction, target)
        dtype = torch.promote_types(torch.promote_types(prediction.dtype, target.dtype), torch.float32)
        prediction, target, scores = prediction.to(dtype), target.to(dtype), self.metrics
        if mask is not None and bool((mask > 0).any()):
            scores = {**scores, **self.masked}
        return {name: float(score(prediction, target, mask)) for name, score in scores.items()}


def default_preset(data_range: float, factor: Factor | None = None) -> Preset:
    """Return the project's own convention, with the metrics as defined in :mod:`ppdm.metrics`.

    Args:
        data_range: span of the task's intensity scale, fixed.
        factor: the puzzle's factor; if given, the preset includes the seam index and the border ratio.

    Raises:
        MetricError: data_range is not positive.
    """
    data_range = checked_range(data_range)
    metrics: dict[str, Score] = {
        "psnr": lambda p, g, m: psnr(p, g, data_range, m),
        "ssim": lambda p, g, m: ssim(p, g, data_range, m),
        "nmae": nmae,
        "nrmse": nrmse,
        "sharpness": sharpness,
    }
    if factor is not None:
        metrics["seam_index"] = lambda p, g, _: seam_index(p, g, factor)
        metrics["border_ratio"] = lambda p, g, m: border_ratio(p, g, factor, m)
    return Preset(
        name="ppdm",
        metrics=metrics,
        units="the target's physical units",
        normalisation=f"none; data_range {data_range:g}",
        mask="where errors count; the seam index sees the whole volume",
        source="docstrings of ppdm.metrics",
        uptake=True,
    )


def ct_preset() -> Preset:
    """Return the project's own convention for CT: MAE, PSNR and SSIM of SynthRAD2023, and the sharpness.

    Relative errors (NMAE, NRMSE) are left out: zero HU is water, so that a norm of HU has no meaning.
    """
    return Preset(
        name="ppdm-ct",
        metrics={"mae": mae, "psnr": psnr_of_ct, "ssim": ssim_of_ct, "sharpness": sharpness},
        units="HU",
        normalisation="MAE none; PSNR and SSIM clipped to [-1024, 3000], data range 4024, SSIM raised by 1024",
        mask="the body, as in SynthRAD2023; the seam index sees the whole volume",
        source="docstrings of ppdm.metrics.hounsfield and ppdm.metrics",
        unit="HU",
    )
