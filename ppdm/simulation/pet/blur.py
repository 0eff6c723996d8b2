"""Gaussian blur in mm."""

import math

import numpy as np
from scipy.ndimage import gaussian_filter

# Full width at half maximum of a Gaussian over its standard deviation.
FWHM_PER_SIGMA = 2 * math.sqrt(2 * math.log(2))


def blur(array: np.ndarray, spacing: tuple[float, ...], fwhm: float | tuple[float, ...]) -> np.ndarray:
    """A copy of the array, blurred by a Gaussian of the FWHM in mm, a number or one for each axis.

    What lies outside is taken to be as at the border: bodies go on beyond the field of view along W.
    """
    return gaussian_filter(array, np.divide(fwhm, FWHM_PER_SIGMA) / spacing, mode="nearest")
