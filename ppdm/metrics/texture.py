"""What averages of the error do not show: a grid left by the puzzle, and blur.

Axes: batches (N, C, D, H, W), samples (C, D, H, W), volumes (D, H, W).
"""

import torch
from torch import Tensor

from ppdm.metrics.pair import MetricError, checked, slabs, wide
from ppdm.pixel_puzzle import Factor, factor_of

GUARD = 2  # bins from a harmonic that a periodic Hann window leaves free of it: a pure grid reaches the first only
REACH = 8  # bins from a harmonic within which the spectrum is compared, so that its slope does not matter
MIN_CELLS = 2 * GUARD  # along an axis, so that there is such a bin between two harmonics
FLOOR = 1e-6  # of the error's mean power density, -60 dB: what is weaker is neither grid nor background


def seam_index(prediction: Tensor, target: Tensor, factor: Factor) -> Tensor:
    """How far a grid of the puzzle's cells stands out of the error's spectrum, in dB: 0 is no grid, higher is worse.

    Along an axis of n voxels with factor r > 1, every line of the error e = p − g is multiplied by a periodic Hann
    window w (no leakage from the borders), and P(k), k in cycles a voxel, is the mean power spectrum of all lines. A
    grid has the period r and stands at the harmonics i/r, 0 < i ≤ r/2. The index is::

        10·log10 mean over axes, i of max(1, (P(i/r) + f) / (median of P near i/r + f)),   f = 1e-6 · mean P

    where near is 2 to 8 bins of 1/n away, at most half the way to the next harmonic. For a grid along one axis whose
    Fourier coefficient at i/r is A, in white noise of standard deviation σ, the quotient is expected to be
    ``1 + (A/σ)²·(Σw)²/Σw² = 1 + (A/σ)²·n/1.5``: it grows with n, so compare volumes of one size. White noise
    has 0 dB, at most about 20/√lines more (.3 dB for 64² lines along an axis); smooth errors (blurred noise, ramps, a
    body's outline) have 0 to 1.5 dB. A dip of the spectrum is no grid and counts as 1; f gives 0 dB where nothing is
    left to compare (identical volumes).

    Args:
        prediction, target: (N, C, D, H, W) or (D, H, W), as for :func:`ppdm.metrics.pair.checked`. An axis that its
            factor does not divide is cropped at its end, where the puzzle pads.
        factor: the puzzle's factor, one integer or one an axis; axes with factor 1 have no grid and do not count.

    Raises:
        MetricError: a factor of 1 on all axes, fewer than 4 cells along an axis, or volumes that cannot be compared.
        ValueError: the factor is no positive integer an axis.
    """
    pair = checked(prediction, target)
    r = factor_of(factor, pair.target)
    _check_cells(r, tuple(pair.target.shape[2:]))
    axes = [(axis, k) for axis, k in enumerate(r, start=1) if k > 1]
    return 10 * pair.each(lambda p, g, _: torch.cat([_quotients(p, g, *axis) for axis in axes]).mean()).log10()


def sharpness(prediction: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Ratio of gradient energies, ``Σ|∇p|² / Σ|∇g|²``: 1 as sharp as the target, below 1 blurred, above 1 noisy.

    The gradient is made of differences between neighbouring voxels along the three axes, not divided by the spacing;
    with a mask, of those whose two voxels are inside. A mean of a target's distribution scores a good PSNR and a low
    sharpness.

    Raises:
        MetricError: the target is constant, or the volumes cannot be compared.
    """
    pair = checked(prediction, target, mask)
    energy = pair.each(lambda _, g, m: _gradient_energy(g, m))
    if not energy.all():
        raise MetricError("The target is constant (inside the mask), so there is no sharpness to compare with.")
    return pair.each(lambda p, _, m: _gradient_energy(p, m)) / energy


def error_spectrum(prediction: Tensor, target: Tensor, axis: int) -> Tensor:
    """Mean power spectrum of the error's lines along an axis, as :func:`seam_index` has it, at k/n cycles a voxel.

    Args:
        prediction, target: (D, H, W).
        axis: 0, 1 or 2.

    Returns:
        (n//2 + 1,), with n the voxels along the axis, cropped to a multiple of four, so that the harmonics of factors 2
        and 4 are among the frequencies.

    Raises:
        MetricError: the volumes cannot be compared.
    """
    pair = checked(prediction, target)
    n = pair.target.shape[2 + axis]
    return _spectrum(pair.prediction[0], pair.target[0], axis + 1, n - n % 4 if n >= 4 else n)


def _check_cells(r: tuple[int, ...], size: tuple[int, ...]) -> None:
    if max(r) == 1:
        raise MetricError("A puzzle of factor 1 has no cells and leaves no grid; give the factor that made the volume.")
    if any(k > 1 and s // k < MIN_CELLS for s, k in zip(size, r, strict=True)):
        raise MetricError(
            f"The seam index needs at least {MIN_CELLS} cells along each axis; sizes {size} with factor {r} have fewer."
        )


def _quotients(prediction: Tensor, target: Tensor, axis: int, r: int) -> Tensor:
    """The power at each harmonic along an axis of a sample (C, D, H, W) over the power near it, (r//2,)."""
    cells = target.shape[axis] // r  # as many bins lie between two harmonics
    power = _spectrum(prediction, target, axis, cells * r)
    floor = (FLOOR * power.mean()).clamp_min(torch.finfo(power.dtype).tiny)
    harmonics = cells * torch.arange(1, r // 2 + 1, device=power.device)
    away = torch.arange(GUARD, min(cells // 2, REACH) + 1, device=power.device)
    near = torch.cat([harmonics[:, None] - away, harmonics[:, None] + away], dim=1)
    near = near.minimum(cells * r - near)  # beyond the Nyquist frequency the spectrum is its mirror image
    around = (power[near] + floor).log().quantile(0.5, dim=1).exp()  # between two bins their geometric mean: no slope
    return ((power[harmonics] + floor) / around).clamp_min(1)


def _spectrum(prediction: Tensor, target: Tensor, axis: int, n: int) -> Tensor:
    """Mean power spectrum of the error's lines along an axis, of their first n voxels: (n//2 + 1,)."""
    window = torch.hann_window(n, dtype=torch.float32, device=target.device)
    power = wide(window.new_zeros(n // 2 + 1))
    for part in slabs(target, dim=_another(axis)):
        error = prediction[part].float() - target[part].float()
        spectra = torch.fft.rfft(error.movedim(axis, -1)[..., :n] * window)
        power += wide(spectra.abs()).square().sum(dim=(0, 1, 2))
    return power / (target.numel() // target.shape[axis])


def _gradient_energy(x: Tensor, mask: Tensor | None) -> Tensor:
    """Sum of squared differences in a sample (C, D, H, W)."""
    energy = wide(x.new_zeros(()))
    for axis in (1, 2, 3):
        for part in slabs(x, dim=_another(axis)):
            squares = wide(x[part]).diff(dim=axis).square()
            if mask is not None:
                size = mask.shape[axis] - 1
                inside = mask[part].narrow(axis, 0, size) & mask[part].narrow(axis, 1, size)
                squares = squares[inside]
            energy += squares.sum()
    return energy


def _another(axis: int) -> int:
    """An axis along which to cut, if lines along this one must stay whole."""
    return 2 if axis == 1 else 1
