"""Smooth random fields defined in space and not on a grid: the same generator gives the same field on any grid."""

import numpy as np

from ppdm.simulation.phantom import Grid

_WAVES = 128  # enough for the values to look Gaussian: their excess kurtosis is −3/(2·128)


def smooth_field(grid: Grid, scale_mm: float, rng: np.random.Generator) -> np.ndarray:
    """Return a random field with mean 0 and variance 1, averaged over many samples, and smoothness `scale_mm`.

    A sum of plane waves cos(k·x + φ) with k ~ N(0, 1/scale²) has the covariance exp(−d²/(2·scale²)) (Shinozuka and
    Jan, J Sound Vib 25, 1972; Rahimi and Recht, NIPS 2007). The field does not depend on the grid.

    Args:
        grid: the voxels at which the field is evaluated.
        scale_mm: standard deviation of the Gaussian covariance in mm.
        rng: source of the waves.

    Returns:
        (D, H, W) float32.
    """
    vectors = rng.normal(0.0, 1.0 / scale_mm, (3, _WAVES))
    phases = rng.uniform(0.0, 2.0 * np.pi, _WAVES)
    d, h, w = (np.outer(grid.centres(axis), vectors[axis]) for axis in range(3))
    # cos(α + β) = cos α cos β − sin α sin β, with α in the plane (D, H) and β along W: one matrix product.
    plane, line = (d[:, None] + h + phases).astype(np.float32), w.astype(np.float32)
    left = np.concatenate([np.cos(plane), -np.sin(plane)], axis=-1)
    right = np.concatenate([np.cos(line), np.sin(line)], axis=-1)
    field: np.ndarray = (left @ right.T) * np.float32(np.sqrt(2.0 / _WAVES))
    return field
