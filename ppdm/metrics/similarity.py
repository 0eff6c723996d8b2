"""Structural similarity of volumes (Wang, Bovik, Sheikh & Simoncelli, IEEE TIP 13(4), 2004), extended to 3-D.

Axes: batches (N, C, D, H, W), samples (C, D, H, W), volumes (D, H, W).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import exp

import torch
from torch import Tensor

from ppdm.metrics.pair import SLAB, MetricError, ScoredPair, checked, checked_range, wide

SSIM_WINDOW = 11  # voxels along each axis, section III-C of the paper
# window, C1 and C2, prediction, target -> a map
Map = Callable[["SlidingWindow", Sequence[float], Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class SlidingWindow:
    """A separable sliding window; only positions where it fits into the volume count (the valid region).

    Attributes:
        weights: the weights along each axis; their number is odd and they add up to 1.
        sample: whether to divide variances by n − 1 instead of n, where n is the number of voxels of the window.
    """

    weights: tuple[float, ...]
    sample: bool = False

    @classmethod
    def gaussian(cls, size: int = SSIM_WINDOW, sigma: float = 1.5) -> "SlidingWindow":
        """Make the Gaussian window of section III-C of the paper.

        Raises:
            MetricError: size is not an odd integer from 3 up, or sigma is not positive.
        """
        if type(size) is not int or size < 3 or size % 2 == 0 or not sigma > 0:
            raise MetricError(
                f"SSIM's window must be an odd integer from 3 up, and its sigma positive; got {size} and {sigma}."
            )
        bell = [exp(-((k - size // 2) ** 2) / (2 * sigma**2)) for k in range(size)]
        return cls(tuple(w / sum(bell) for w in bell))

    @classmethod
    def uniform(cls, size: int = 7) -> "SlidingWindow":
        """Make the default window of scikit-image: equal weights, sample covariance."""
        return cls((1 / size,) * size, sample=True)

    @property
    def half(self) -> int:
        """Number of voxels at each border that are outside the valid region."""
        return len(self.weights) // 2

    @property
    def correction(self) -> float:
        """Factor from the mean square deviation to the variance."""
        n = len(self.weights) ** 3
        return n / (n - 1) if self.sample else 1.0

    def mean(self, x: Tensor) -> Tensor:
        """Return the weighted mean around every voxel of (C, D, H, W); each axis becomes ``2·half`` voxels shorter.

        It sums shifted volumes, because a convolution on CUDA may round to TF32. The rounding error of TF32 exceeds the
        variances to be computed.
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
    window: int = SSIM_WINDOW,
    sigma: float = 1.5,
    k1: float = 0.01,
    k2: float = 0.03,
) -> Tensor:
    """Mean structural similarity: 1 for equal volumes, about 0 for unrelated ones, −1 at the lowest.

    The value in one window, with means μ, variances σ² and covariance σ_pg (eq. 13 of the paper), is::

        SSIM = (2·μ_p·μ_g + C1)·(2·σ_pg + C2) / ((μ_p² + μ_g² + C1)·(σ_p² + σ_g² + C2)),  C = (K·data_range)²

    The window is Gaussian and the covariance is the population covariance. The result is the mean over the valid region
    of all channels. It equals scikit-image's
    ``structural_similarity(gaussian_weights=True, sigma=1.5, use_sample_covariance=False)``.
    It is computed in float32 or a wider type, slab by slab, and needs about 50 MiB in addition to the volumes.

    Args:
        prediction, target, mask: as for :func:`ppdm.metrics.pair.checked`. With a mask, the result is the mean over the
            windows whose centre is inside the mask. These windows include voxels outside it.
        data_range: span of the intensity scale in the images' units, fixed for a task.
        window, sigma: size and standard deviation of the Gaussian, in voxels.
        k1, k2: the paper's constants.

    Raises:
        MetricError: an option is out of range, a volume is smaller than the window, the mask has no voxel in the valid
            region, or the volumes cannot be compared.
    """
    span = checked_range(data_range)
    if not (k1 > 0 and k2 > 0):
        raise MetricError(f"SSIM's constants must be positive, got k1 {k1} and k2 {k2}; the paper has 0.01 and 0.03.")
    return similarity(checked(prediction, target, mask), span, SlidingWindow.gaussian(window, sigma), (k1, k2))


def similarity(
    pair: ScoredPair,
    span: float,
    window: SlidingWindow,
    k: tuple[float, float] = (0.01, 0.03),
    local: "Map | None" = None,
) -> Tensor:
    """Compute the mean structural similarity with any window, see :func:`ssim`, or the mean of another map.

    Raises:
        MetricError: a volume is smaller than the window, or the mask has no voxel where the window fits.
    """
    size = len(window.weights)
    if min(pair.target.shape[2:]) < size:
        raise MetricError(
            f"SSIM's window of {size}×{size}×{size} voxels does not fit into {tuple(pair.target.shape[2:])}; "
            "give larger volumes, or a smaller window, whose values are not comparable."
        )
    constants = [(each * span) ** 2 for each in k]
    chosen = partial(local or _similarity_map, window, constants)
    return pair.each(lambda p, g, m: _mean_similarity(p, g, m, window, chosen))


def _mean_similarity(
    prediction: Tensor,
    target: Tensor,
    mask: Tensor | None,
    window: SlidingWindow,
    local: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """Average the SSIM map of a sample (C, D, H, W) over its valid region, in slabs that overlap by ``2·half``."""
    dtype = torch.promote_types(torch.promote_types(prediction.dtype, target.dtype), torch.float32)
    inside = None if mask is None else _valid(mask, window)
    planes = target.shape[1] - 2 * window.half
    thickness = max(1, SLAB * target.shape[1] // target.numel())
    total, count = wide(target.new_zeros(())), 0
    for start in range(0, planes, thickness):
        part = slice(start, start + thickness + 2 * window.half)
        values = local(prediction[:, part].to(dtype), target[:, part].to(dtype))
        values = values if inside is None else values[inside[:, start : start + thickness]]
        total += wide(values).sum()
        count += values.numel()
    return total / count


def _valid(mask: Tensor, window: SlidingWindow) -> Tensor:
    d, h, w = (slice(window.half, size - window.half) for size in mask.shape[1:])
    inside = mask[:, d, h, w]
    if not inside.any():
        raise MetricError(
            f"The mask lies within {window.half} voxels of the volume's border, where SSIM's window does not fit; "
            "give a larger volume or mask."
        )
    return inside


def _similarity_map(window: SlidingWindow, constants: Sequence[float], p: Tensor, g: Tensor) -> Tensor:
    """Compute the SSIM map (Wang 2004, eq. 13)."""
    c1, c2 = constants
    # A shift does not change variances. Without the common offset, the differences of squares do not lose precision.
    offset = g.mean()
    p, g = p - offset, g - offset
    mean_p, mean_g = window.mean(p), window.mean(g)
    variances = window.mean(p.square().add_(g.square())).sub_(mean_p.square()).sub_(mean_g.square())
    covariance = window.mean(p * g).sub_(mean_p * mean_g)
    structure = (covariance * (2 * window.correction) + c2) / (variances * window.correction + c2)
    mean_p, mean_g = mean_p + offset, mean_g + offset
    return (2 * mean_p * mean_g + c1) / (mean_p.square() + mean_g.square() + c1) * structure


def weighted_map(weight: float) -> Map:
    """Return a function for the map ``L^w · C^w · S^w`` (Wang 2003, eq. 7); negative factors count as 0.

    With w = 1 it is SSIM where the covariance is not negative.
    """

    def compute(window: SlidingWindow, constants: Sequence[float], p: Tensor, g: Tensor) -> Tensor:
        c1, c2 = constants
        offset = g.mean()  # as above: the variances keep their precision
        p, g = p - offset, g - offset
        mean_p, mean_g = window.mean(p), window.mean(g)
        var_p, var_g = (
            (window.mean(x.square()).sub_(mean.square()) * window.correction).clamp_min_(0)
            for x, mean in ((p, mean_p), (g, mean_g))
        )
        covariance = window.mean(p * g).sub_(mean_p * mean_g) * window.correction
        deviations = (var_p * var_g).sqrt()
        mean_p, mean_g = mean_p + offset, mean_g + offset
        luminance = (2 * mean_p * mean_g + c1) / (mean_p.square() + mean_g.square() + c1)
        contrast = (2 * deviations + c2) / (var_p + var_g + c2)
        structure = (covariance + c2 / 2) / (deviations + c2 / 2)
        return (luminance.clamp_min(0) * contrast * structure.clamp_min(0)) ** weight

    return compute
