"""Metrics of artefacts that mean errors do not show: a grid from the pixel puzzle, and blur.

Axes: batches (N, C, D, H, W), samples (C, D, H, W), volumes (D, H, W).
"""

import torch
from torch import Tensor

from ppdm.metrics.pair import MetricError, checked, slabs, wide
from ppdm.pixel_puzzle import Factor, factor_of

GUARD = 2  # nearest compared bin: with a periodic Hann window, a pure grid leaks only into the first bin
REACH = 8  # farthest compared bin from a harmonic, so near that the slope of the spectrum does not matter
MIN_CELLS = 2 * GUARD  # minimum along an axis, so that there is a bin to compare between two harmonics
FLOOR = 1e-6  # share of the error's mean power density, -60 dB; weaker power is neither grid nor background


def seam_index(prediction: Tensor, target: Tensor, factor: Factor) -> Tensor:
    """Power of a grid of puzzle cells in the error's spectrum, relative to its surroundings, in dB; 0 means no grid.

    Higher is worse. Take an axis of n voxels with factor r > 1. Every line of the error e = p − g is multiplied by a
    periodic Hann window w, which prevents leakage from the borders. P(k), with k in cycles/voxel, is the mean power
    spectrum of all lines. A grid has the period r and appears at the harmonics i/r, 0 < i ≤ r/2. The index is::

        10·log10 mean over axes, i of max(1, (P(i/r) + f) / (median of P near i/r + f)),   f = 1e-6 · mean P

    where "near" means a distance of 2 to 8 bins of 1/n, at most half the distance to the next harmonic. For a grid
    along one axis with Fourier coefficient A at i/r, in white noise of standard deviation σ, the expected quotient is
    ``1 + (A/σ)²·(Σw)²/Σw² = 1 + (A/σ)²·n/1.5``. It grows with n, so compare only volumes of the same size. White noise
    has 0 dB, at most about 20/√lines more (0.3 dB for 64² lines along an axis). Smooth errors (blurred noise, ramps,
    the outline of a body) have 0 to 1.5 dB. A dip of the spectrum is not a grid and counts as 1. Because of f, the
    index is 0 dB if there is no error (identical volumes).

    Args:
        prediction, target: (N, C, D, H, W) or (D, H, W), as for :func:`ppdm.metrics.pair.checked`. If the factor does
            not divide the size of an axis, the axis is cropped at its end, where the puzzle pads.
        factor: the puzzle's factor, one integer or one for each axis; axes with factor 1 have no grid and are ignored.

    Raises:
        MetricError: the factor is 1 on all axes, an axis has fewer than 4 cells, or the volumes cannot be compared.
        ValueError: the factor is not a positive integer on each axis.
    """
    pair = checked(prediction, target)
    r, size = _cells_of(factor, pair.target), tuple(pair.target.shape[2:])
    if any(k > 1 and s // k < MIN_CELLS for s, k in zip(size, r, strict=True)):
        raise MetricError(
            f"The seam index needs at least {MIN_CELLS} cells along each axis; sizes {size} with factor {r} have fewer."
        )
    axes = [(axis, k) for axis, k in enumerate(r, start=1) if k > 1]
    return 10 * pair.each(lambda p, g, _: torch.cat([_quotients(p, g, *axis) for axis in axes]).mean()).log10()


def border_ratio(prediction: Tensor, target: Tensor, factor: Factor, mask: Tensor | None = None) -> Tensor:
    """Squared differences across the borders of puzzle cells, over those inside cells, in dB; 0 means no seams.

    Above 0, the prediction has seams; below 0, its cell borders are smoother than the rest. Along an axis with factor
    r > 1, B(x) is the mean squared difference of neighbours in two cells, and I(x) that of neighbours in one cell::

        mean over axes of 10·log10 [B(p) / I(p)] / [B(g) / I(g)]

    B and I are the terms D_B and D_B^C of the blocking effect factor of PSNR-B (Yim & Bovik, Quality assessment of
    deblocked images, IEEE TIP 20(1), 2011). That factor is their difference; the ratio does not depend on the scale or
    the offset of the intensities. It is divided by the target's ratio, because edges of anatomy may lie on borders.
    Unlike :func:`seam_index`, it also detects jumps whose sign and size vary from border to border: independent jumps
    of root mean square a add ``10·log10(1 + a²/B)``, where B is that of the prediction without them. It is computed
    from the prediction, not the error, because noise of the target would hide seams in the error.

    Without seams, blurred and noisy copies of real brains of 72×92×70 voxels stay within 0.2 dB at r = 2 and 4, and
    those of 32³ phantoms, which have few borders, within 1 dB; means over subjects are nearer to 0. So a mean above 1.5
    dB means seams: jumps of at least two thirds of the root mean square of the differences without them. With few
    borders, larger values occur without seams, such as 2.4 dB at r = 8 in 32³ voxels.

    Args:
        prediction, target: (N, C, D, H, W) or (D, H, W). The last cell of an axis may be incomplete.
        factor: the cell, one integer or one for each axis; axes with factor 1 have no cells and are ignored, as are
            axes without neighbours of both kinds.
        mask: as for :func:`ppdm.metrics.pair.checked`; both voxels of a difference must be inside.

    Raises:
        MetricError: the factor is 1 on all axes, no neighbours across borders or inside cells differ, or the volumes
            cannot be compared.
        ValueError: the factor is not a positive integer on each axis.
    """
    pair = checked(prediction, target, mask)
    r = _cells_of(factor, pair.target)
    own = pair.each(lambda p, _, m: _border_level("prediction", p, m, r))
    return own - pair.each(lambda _, g, m: _border_level("target", g, m, r))


def sharpness(prediction: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Ratio of gradient energies, ``Σ|∇p|² / Σ|∇g|²``: 1 as sharp as the target, below 1 blurred, above 1 noisy.

    The gradient consists of the differences between neighbouring voxels along the three axes, not divided by the
    spacing. With a mask, both voxels of a difference must be inside. A prediction that averages over possible targets
    has a high PSNR and a low sharpness.

    Raises:
        MetricError: the target is constant, or the volumes cannot be compared.
    """
    pair = checked(prediction, target, mask)
    energy = pair.each(lambda _, g, m: _gradient_energy(g, m))
    if not energy.all():
        raise MetricError("The target is constant (inside the mask), so there is no sharpness to compare with.")
    return pair.each(lambda p, _, m: _gradient_energy(p, m)) / energy


def error_spectrum(prediction: Tensor, target: Tensor, axis: int) -> Tensor:
    """Mean power spectrum of the error's lines along an axis, as in :func:`seam_index`, at k/n cycles/voxel.

    Args:
        prediction, target: (D, H, W).
        axis: 0, 1 or 2.

    Returns:
        (n//2 + 1,), where n is the number of voxels along the axis, cropped to a multiple of four. The frequencies then
        include the harmonics of the factors 2 and 4.

    Raises:
        MetricError: the volumes cannot be compared.
    """
    pair = checked(prediction, target)
    n = pair.target.shape[2 + axis]
    return _spectrum(pair.prediction[0], pair.target[0], axis + 1, n - n % 4 if n >= 4 else n)


def _cells_of(factor: Factor, volume: Tensor) -> tuple[int, ...]:
    r = factor_of(factor, volume)
    if max(r) == 1:
        raise MetricError("A puzzle of factor 1 has no cells and leaves no grid; give the factor that made the volume.")
    return r


def _quotients(prediction: Tensor, target: Tensor, axis: int, r: int) -> Tensor:
    """Return the power at each harmonic divided by the power near it, along an axis of (C, D, H, W); (r//2,)."""
    cells = target.shape[axis] // r  # also the number of bins from one harmonic to the next
    power = _spectrum(prediction, target, axis, cells * r)
    floor = (FLOOR * power.mean()).clamp_min(torch.finfo(power.dtype).tiny)
    harmonics = cells * torch.arange(1, r // 2 + 1, device=power.device)
    away = torch.arange(GUARD, min(cells // 2, REACH) + 1, device=power.device)
    near = torch.cat([harmonics[:, None] - away, harmonics[:, None] + away], dim=1)
    near = near.minimum(cells * r - near)  # beyond the Nyquist frequency the spectrum is its mirror image
    around = (power[near] + floor).log().quantile(0.5, dim=1).exp()  # geometric mean of the two middle bins
    return ((power[harmonics] + floor) / around).clamp_min(1)


def _spectrum(prediction: Tensor, target: Tensor, axis: int, n: int) -> Tensor:
    """Mean power spectrum of the first n voxels of the error's lines along an axis: (n//2 + 1,)."""
    window = torch.hann_window(n, dtype=torch.float32, device=target.device)
    power = wide(window.new_zeros(n // 2 + 1))
    for part in slabs(target, dim=_other_axis(axis)):
        error = prediction[part].float() - target[part].float()
        spectra = torch.fft.rfft(error.movedim(axis, -1)[..., :n] * window)
        power += wide(spectra.abs()).square().sum(dim=(0, 1, 2))
    return power / (target.numel() // target.shape[axis])


def _border_level(name: str, x: Tensor, mask: Tensor | None, r: tuple[int, ...]) -> Tensor:
    """Mean over axes of ``10·log10 B/I`` of a sample (C, D, H, W)."""
    levels = []
    for axis, k in enumerate(r, start=1):
        if k > 1:
            energy, number = _differences(x, mask, axis)
            across = torch.arange(1, x.shape[axis], device=x.device) % k == 0
            if number[across].any() and number[~across].any():
                border, inside = (energy[at].sum() / number[at].sum() for at in (across, ~across))
                levels.append(10 * (border / inside).log10())
    if not (levels and all(level.isfinite() for level in levels)):
        raise MetricError(
            f"The border ratio needs neighbouring voxels that differ, both across the borders of cells {r} and inside "
            f"cells; the {name} {tuple(x.shape[1:])} has none (inside the mask), so use a larger volume or mask."
        )
    return torch.stack(levels).mean()


def _gradient_energy(x: Tensor, mask: Tensor | None) -> Tensor:
    """Return the sum of squared differences in a sample (C, D, H, W)."""
    return torch.stack([_differences(x, mask, axis)[0].sum() for axis in (1, 2, 3)]).sum()


def _differences(x: Tensor, mask: Tensor | None, axis: int) -> tuple[Tensor, Tensor]:
    """Return sum and number of the squared differences at each of the n − 1 places along an axis of (C, D, H, W)."""
    places = x.shape[axis] - 1
    energy, number = (wide(x.new_zeros(places)) for _ in range(2))
    others = [k for k in range(4) if k != axis]
    for part in slabs(x, dim=_other_axis(axis)):
        squares = wide(x[part]).diff(dim=axis).square_()
        if mask is None:
            number += squares.numel() // max(places, 1)
        else:
            inside = mask[part].narrow(axis, 0, places) & mask[part].narrow(axis, 1, places)
            number += inside.sum(dim=others)
            squares *= inside
        energy += squares.sum(dim=others)
    return energy, number


def _other_axis(axis: int) -> int:
    """Return an axis along which slabs can be cut without cutting the lines along the given axis."""
    return 2 if axis == 1 else 1
