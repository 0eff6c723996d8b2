"""Gaussian blur in mm."""

import math

import numpy as np
from scipy.ndimage import gaussian_filter

# Full width at half maximum of a Gaussian divided by its standard deviation.
FWHM_PER_SIGMA = 2 * math.sqrt(2 * math.log(2))


def blur(array: np.ndarray, spacing: tuple[float, ...], fwhm: float | tuple[float, ...]) -> np.ndarray:
    """Return a copy of the array, blurred by a Gaussian with the given FWHM in mm: one number, or one per axis.

    Values outside of the array equal those at the border, because bodies extend beyond the field of view along W.
    """
    return gaussian_filter(array, np.divide(fwhm, FWHM_PER_SIGMA) / spacing, mode="nearest")
