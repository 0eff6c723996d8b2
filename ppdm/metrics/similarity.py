"""Structural similarity of volumes (Wang, Bovik, Sheikh & Simoncelli, IEEE TIP 13(4), 2004), carried over to 3-D.

Axes: batches (N, C, D, H, W), samples (C, D, H, W), volumes (D, H, W).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp

import torch
from torch import Tensor

from ppdm.metrics.pair import SLAB, MetricError, Pair, checked, checked_range, wide


@dataclass(frozen=True)
class Window:
    """A separable window that slides over the volume; only places where it fits are counted (the valid region).

    Attributes:
        weights: along each axis, an odd number of them, which add up to 1.
        sample: divide variances by n − 1 (n the window's voxels) and not by n.
    """

    weights: tuple[float, ...]
    sample: bool = False

    @classmethod
    def gaussian(cls, size: int = 11, sigma: float = 1.5) -> "Window":
        """Make the window of the paper's section III-C."""
        if type(size) is not int or size < 3 or size % 2 == 0 or not sigma > 0:
            raise MetricError(f"SSIM's window is an odd integer from 3 and its sigma positive, got {size} and {sigma}.")
        bell = [exp(-((k - size // 2) ** 2) / (2 * sigma**2)) for k in range(size)]
        return cls(tuple(w / sum(bell) for w in bell))

    @classmethod
    def uniform(cls, size: int = 7) -> "Window":
        """Make scikit-image's default: equal weights, sample covariance."""
        return cls((1 / size,) * size, sample=True)

    @property
    def half(self) -> int:
        """How many voxels at each border have no value."""
        return len(self.weights) // 2

    @property
    def correction(self) -> float:
        """What turns the mean square deviation into the variance."""
        n = len(self.weights) ** 3
        return n / (n - 1) if self.sample else 1.0

    def mean(self, x: Tensor) -> Tensor:
        """The weighted mean around every place in (C, D, H, W): each axis loses ``2·half`` voxels.

        Written as sums of shifted volumes, because a convolution on CUDA may round to TF32, whose error exceeds the
        variances that are wanted.
        """
        for axis in (-3, -2, -1):
            size = x.shape[axis] - 2 * self.half
            mean = x.narrow(axis, 0, size) * self.weights[0]
            for k, weight in enumerate(self.weights[1:], start=1):
                mean.add_(x.narrow(axis, k, size), alpha=weight)
            x = mean
        return x


def ssim(
    prediction: Tensor,
    target: Tensor,
    data_range: float,
    mask: Tensor | None = None,
    window: int = 11,
    sigma: float = 1.5,
    k1: float = 0.01,
    k2: float = 0.03,
) -> Tensor:
    """Mean structural similarity: 1 for equal volumes, about 0 for unrelated ones, −1 at the lowest.

    In every window, with means μ, variances σ² and covariance σ_pg (eq. 13 of the paper)::

        SSIM = (2·μ_p·μ_g + C1)·(2·σ_pg + C2) / ((μ_p² + μ_g² + C1)·(σ_p² + σ_g² + C2)),  C = (K·data_range)²

    with a Gaussian window, population covariance, and the mean over the valid region (of all channels). It equals
    scikit-image's ``structural_similarity(gaussian_weights=True, sigma=1.5, use_sample_covariance=False)``.
    Computed in float32 or wider, slab by slab: beside the volumes it needs about 50 MiB.

    Args:
        prediction, target, mask: as for :func:`ppdm.metrics.pair.checked`; with a mask, the mean over the windows whose
            centre is inside. The windows themselves see voxels outside.
        data_range: span of the intensity scale in the images' units, fixed for a task.
        window, sigma: size and standard deviation of the Gaussian, in voxels.
        k1, k2: the paper's constants.

    Raises:
        MetricError: an option out of range, a volume smaller than the window, a mask with no voxel in the valid region,
            or volumes that cannot be compared.
    """
    span = checked_range(data_range)
    if not (k1 > 0 and k2 > 0):
        raise MetricError(f"SSIM's constants must be positive, got k1 = {k1} and k2 = {k2}; the paper has .01 and .03.")
    return similarity(checked(prediction, target, mask), span, Window.gaussian(window, sigma), (k1, k2))


def similarity(pair: Pair, span: float, window: Window, k: tuple[float, float] = (0.01, 0.03)) -> Tensor:
    """Mean structural similarity with any window; see :func:`ssim`."""
    size = len(window.weights)
    if min(pair.target.shape[2:]) < size:
        raise MetricError(
            f"SSIM's window of {size}×{size}×{size} voxels does not fit into {tuple(pair.target.shape[2:])}; "
            "give larger volumes or a smaller window (and say so: it is another number then)."
        )
    constants = [(each * span) ** 2 for each in k]
    return pair.each(lambda p, g, m: _mean_similarity(p, g, m, window, constants))


def _mean_similarity(
    prediction: Tensor, target: Tensor, mask: Tensor | None, window: Window, constants: Sequence[float]
) -> Tensor:
    """Average the map of a sample (C, D, H, W) over its valid region, computed in slabs that overlap by the window."""
    dtype = torch.promote_types(torch.promote_types(prediction.dtype, target.dtype), torch.float32)
    inside = None if mask is None else _valid(mask, window)
    planes = target.shape[1] - 2 * window.half
    thickness = max(1, SLAB * target.shape[1] // target.numel())
    total, count = wide(target.new_zeros(())), 0
    for start in range(0, planes, thickness):
        part = slice(start, start + thickness + 2 * window.half)
        values = _similarity_map(prediction[:, part].to(dtype), target[:, part].to(dtype), window, constants)
        values = values if inside is None else values[inside[:, start : start + thickness]]
        total += wide(values).sum()
        count += values.numel()
    return total / count


def _valid(mask: Tensor, window: Window) -> Tensor:
    d, h, w = (slice(window.half, size - window.half) for size in mask.shape[1:])
    inside = mask[:, d, h, w]
    if not inside.any():
        raise MetricError(
            f"The mask lies within {window.half} voxels of the volume's border, where SSIM's window does not fit; "
            "give a larger volume or mask."
        )
    return inside


def _similarity_map(p: Tensor, g: Tensor, window: Window, constants: Sequence[float]) -> Tensor:
    """Wang 2004, eq. 13."""
    c1, c2 = constants
    # Variances do not change with a shift, and without the common offset their differences of squares do not cancel.
    offset = g.mean()
    p, g = p - offset, g - offset
    mean_p, mean_g = window.mean(p), window.mean(g)
    variances = window.mean(p.square().add_(g.square())).sub_(mean_p.square()).sub_(mean_g.square())
    covariance = window.mean(p * g).sub_(mean_p * mean_g)
    structure = (covariance * (2 * window.correction) + c2) / (variances * window.correction + c2)
    mean_p, mean_g = mean_p + offset, mean_g + offset
    return (2 * mean_p * mean_g + c1) / (mean_p.square() + mean_g.square() + c1) * structure
