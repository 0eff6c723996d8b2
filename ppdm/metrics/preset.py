"""A convention of evaluation as a value with a name, and the project's own.

A preset scores one subject; a record carries its name.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from ppdm.metrics.errors import nmae, nrmse, psnr
from ppdm.metrics.pair import checked, checked_range, single
from ppdm.metrics.similarity import ssim
from ppdm.metrics.texture import seam_index, sharpness
from ppdm.pixel_puzzle import Factor

Score = Callable[[Tensor, Tensor, Tensor | None], Tensor | float]  # of prediction, target and mask, each (D, H, W)


@dataclass(frozen=True)
class Preset:
    """A convention of evaluation.

    Attributes:
        name: what records carry.
        metrics: what is computed, by name, of every subject.
        masked: what is computed besides if there is a mask with a voxel above 0.
        units: what volumes must be in.
        normalisation: what is done to them, in words.
        mask: what the mask must be.
        source: where the convention is published.
        uptake: whether the bias of uptake is taken in every labelled region of PET.
    """

    name: str
    metrics: Mapping[str, Score]
    units: str
    normalisation: str
    mask: str
    source: str
    masked: Mapping[str, Score] = field(default_factory=dict)
    uptake: bool = False

    def __call__(self, prediction: Tensor, target: Tensor, mask: Tensor | None = None) -> dict[str, float]:
        """Score one subject.

        Args:
            prediction, target: (D, H, W), in ``units``.
            mask: (D, H, W), see ``mask``; None if there is none.

        Raises:
            MetricError: not single volumes, or what a metric refuses.
        """
        single(f"The preset {self.name}", prediction, target, mask)
        checked(prediction, target)
        dtype = torch.promote_types(torch.promote_types(prediction.dtype, target.dtype), torch.float32)
        prediction, target, scores = prediction.to(dtype), target.to(dtype), self.metrics
        if mask is not None and bool((mask > 0).any()):
            scores = {**scores, **self.masked}
        return {name: float(score(prediction, target, mask)) for name, score in scores.items()}


def default_preset(data_range: float, factor: Factor | None = None) -> Preset:
    """The project's own convention: each metric as :mod:`ppdm.metrics` defines it.

    Args:
        data_range: span of the task's intensity scale, fixed.
        factor: the puzzle's factor; with it, the seam index is computed.

    Raises:
        MetricError: data_range is not positive.
    """
    data_range = checked_range(data_range)
    metrics: dict[str, Score] = {
        "psnr": partial(_with_range, psnr, data_range),
        "ssim": partial(_with_range, ssim, data_range),
        "nmae": nmae,
        "nrmse": nrmse,
        "sharpness": sharpness,
    }
    if factor is not None:
        metrics["seam_index"] = lambda p, g, _: seam_index(p, g, factor)
    return Preset(
        name="ppdm",
        metrics=metrics,
        units="the target's physical units",
        normalisation=f"none; data_range {data_range:g}",
        mask="where errors count; the seam index sees the whole volume",
        source="docstrings of ppdm.metrics",
        uptake=True,
    )


def _with_range(
    metric: Callable[..., Tensor], data_range: float, prediction: Tensor, target: Tensor, mask: Tensor | None
) -> Tensor:
    return metric(prediction, target, data_range, mask)
