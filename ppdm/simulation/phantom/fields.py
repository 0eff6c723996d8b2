"""Random fields in physical space, independent of the voxel grid.

Axes: arrays (D, H, W) on the coarse points of a `Lattice`. Every field has mean 0 and variance 1.
"""

import numpy as np
from scipy.fft import irfftn, rfftn

from ppdm.simulation.phantom.lattice import Lattice

# ∫ B(t)² dt of the cubic B-spline: the mean factor by which one axis reduces the variance of white coefficients.
_SPLINE_VARIANCE = 151.0 / 315.0


def smooth_noise(
    rng: np.random.Generator, lattice: Lattice, knots_mm: float | tuple[float, float, float]
) -> np.ndarray:
    """Sample a twice differentiable field: a cubic B-spline with white coefficients and knots `knots_mm` apart.

    Neighbouring maxima are about three knot distances apart. The distance is one number for all axes, or one per axis.
    """
    distances = knots_mm if isinstance(knots_mm, tuple) else (knots_mm,) * 3
    bases = [_spline_basis(lattice.coarse_axis(axis), distance) for axis, distance in enumerate(distances)]
    values = rng.standard_normal([basis.shape[1] for basis in bases], np.float32)
    for basis in bases:
        values = np.moveaxis(np.tensordot(basis, values, axes=1), 0, 2)
    return np.ascontiguousarray(values) / np.float32(_SPLINE_VARIANCE**1.5)


def _spline_basis(positions: np.ndarray, knots_mm: float) -> np.ndarray:
    """Return the values of cubic B-splines on knots around the origin, float32 (positions, knots)."""
    reach = int(np.ceil(np.abs(positions).max() / knots_mm)) + 1
    knots = np.arange(-reach, reach + 1) * knots_mm
    t = np.abs(positions[:, None] - knots[None, :]) / knots_mm
    near = 2.0 / 3.0 - t**2 + t**3 / 2.0
    far = np.clip(2.0 - t, 0.0, None) ** 3 / 6.0
    return np.where(t < 1.0, near, far).astype(np.float32)


def waves(rng: np.random.Generator, lattice: Lattice, wavelength_mm: float, octaves: float) -> np.ndarray:
    """Sample a band-pass Gaussian random field.

    Its spectrum is isotropic and log-normal around one wavelength. Its zero level sets are winding sheets about half a
    wavelength apart, similar to the sulci of a cortex.

    Args:
        rng: source of the white noise.
        lattice: the lattice of the field.
        wavelength_mm: centre of the band.
        octaves: standard deviation of the band in octaves.
    """
    shape = lattice.coarse_shape
    spectrum = rfftn(rng.standard_normal(shape, np.float32))
    half = [np.fft.fftfreq(shape[0]), np.fft.fftfreq(shape[1]), np.fft.rfftfreq(shape[2])]
    squares = np.add.outer(np.add.outer(half[0] ** 2, half[1] ** 2), half[2] ** 2)
    squares[0, 0, 0] = np.inf  # the mean is not a wave
    distance = 0.5 * np.log2(squares) - np.log2(lattice.coarse_spacing / wavelength_mm)
    gain = np.exp(-0.5 * (distance / octaves) ** 2, dtype=np.float32)
    field: np.ndarray = irfftn(spectrum * gain, shape)
    return field / field.std()
