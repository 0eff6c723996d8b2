"""Coincidences that a PET scanner counts, and those that it would count at a lower dose.

Axes: volume (D, H, W), sinogram (views, bins, W). The bins cover the volume's plane and a margin around it.

    y ~ Poisson(k (a · A B λ + b)),   a = exp(-A μ)

with the activity λ, blurred by the scanner (B) and projected (A); the attenuation a of every line; the scatter b; and
the scanner's calibration k (Leahy and Qi, Statistics and Computing 10:147, 2000).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ppdm.simulation.pet.blur import blur
from ppdm.simulation.pet.errors import PETError
from ppdm.simulation.pet.projector import Projector, ordered_subsets
from ppdm.simulation.pet.scanner import Scanner

_MM_PER_CM = 10.0
_MM3_PER_ML = 1000.0
# Lead has 1.8 per cm at 511 keV; larger values must be in another unit.
_LARGEST_MU = 2.0
# Practically no photon passes, but b / a stays finite.
_OPAQUE = np.float32(1e-20)


@dataclass(frozen=True, eq=False)
class Acquisition:
    """One scan: the measured counts, and the corrections that a CT and a scatter estimate would provide.

    Attributes:
        counts: coincidences y, integers (views, bins, W).
        attenuation: probability a that both photons of a line escape, float32.
        scatter: expected scatter b in SUV · mm, float32.
        calibration: k, expected counts per SUV · mm in each bin.
        projector: the lines of the scan, through the plane of the volume and the margin around it.
        shape, spacing: grid of the volume in voxels and mm.
        scanner: parameters of acquisition and reconstruction.
    """

    counts: np.ndarray
    attenuation: np.ndarray
    scatter: np.ndarray
    calibration: float
    projector: Projector
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    scanner: Scanner

    def at_dose(self, factor: float, counts: np.ndarray) -> "Acquisition":
        """Return the same scan at a dose `factor` times lower, with the given `counts`; see :func:`thin`."""
        return replace(self, counts=counts, calibration=self.calibration / factor)


def acquire(
    activity: np.ndarray,
    mu: np.ndarray,
    spacing: tuple[float, float, float],
    scanner: Scanner,
    rng: np.random.Generator,
) -> Acquisition:
    """Scan a volume.

    Args:
        activity: λ in SUV, (D, H, W).
        mu: attenuation at 511 keV in 1/cm, (D, H, W).
        spacing: voxel size in mm along D, H, W.
        scanner: the scanner and its protocol.
        rng: source of the counts.

    Raises:
        PETError: the arrays are not volumes of one shape with finite values of at least 0, mu is not in 1/cm, or the
            spacing is not three positive lengths.
    """
    activity, mu, spacing = _checked(activity, mu, spacing)
    margin = [(math.ceil(scanner.margin_mm / mm),) * 2 for mm in spacing[:2]] + [(0, 0)]
    seen, mu = np.pad(activity, margin), np.pad(mu, margin)
    projector = Projector(seen.shape[:2], spacing[:2], scanner.angles)
    attenuation = np.maximum(np.exp(-_project(projector, scanner, mu) / _MM_PER_CM), _OPAQUE)
    trues = attenuation * _project(projector, scanner, blur(seen, spacing, scanner.psf_mm))
    scatter = _scatter(trues, (projector.bin_width, spacing[2]), scanner)
    calibration = _calibration(projector, spacing[2], scanner)
    counts = rng.poisson(calibration * (trues + scatter).astype(np.float64))
    return Acquisition(counts, attenuation, scatter, calibration, projector, activity.shape, spacing, scanner)


def thin(counts: np.ndarray, factor: float, rng: np.random.Generator) -> np.ndarray:
    """Keep each count with probability 1 / factor, which gives exactly the statistics of a dose `factor` times lower.

    Thinned Poisson counts are Poisson counts with the mean divided by the factor, without approximation.

    Raises:
        PETError: the factor is not a finite number of at least 1.
    """
    if not 1 <= factor < np.inf:
        raise PETError(f"A dose factor divides the dose and is at least 1, such as 20; got {factor}.")
    return rng.binomial(counts, 1 / factor)


def thin_nested(counts: np.ndarray, factors: Sequence[float], rng: np.random.Generator) -> dict[float, np.ndarray]:
    """Return counts at several doses, each a random subset of the counts at the next higher dose.

    Args:
        counts: counts at full dose.
        factors: dose factors, in any order.
        rng: selects the counts that are kept.

    Raises:
        PETError: a factor is not a finite number of at least 1.
    """
    thinned: dict[float, np.ndarray] = {}
    kept = 1.0
    for factor in sorted(factors):
        thinned[factor] = counts = thin(counts, factor / kept, rng)
        kept = factor
    return thinned


def _checked(
    activity: np.ndarray, mu: np.ndarray, spacing: tuple[float, float, float]
) -> tuple[np.ndarray, np.ndarray, tuple[float, float, float]]:
    """Check the inputs, and return them as float32 arrays and floats."""
    if len(spacing) != 3 or not all(math.isfinite(mm) and mm > 0 for mm in spacing):
        raise PETError(f"Spacing is three positive numbers of mm, (dD, dH, dW); got {spacing}.")
    activity, mu = _volume("activity", activity), _volume("mu", mu)
    if activity.shape != mu.shape:
        raise PETError(f"Activity and mu must share one grid; got shapes {activity.shape} and {mu.shape}.")
    if mu.max() > _LARGEST_MU:
        raise PETError(f"mu is in 1/cm, 0.096 in water; got values up to {mu.max():g}, more than any tissue or metal.")
    d, h, w = (float(mm) for mm in spacing)
    return activity, mu, (d, h, w)


def _volume(name: str, array: np.ndarray) -> np.ndarray:
    if np.ndim(array) != 3 or not np.size(array):
        raise PETError(f"{name} is a volume (D, H, W) without an empty axis; got shape {np.shape(array)}.")
    array = np.ascontiguousarray(array, np.float32)
    if not (np.isfinite(array).all() and array.min() >= 0):
        raise PETError(f"{name} holds values that are negative, infinite or not a number; clip or replace them.")
    return array


def _project(projector: Projector, scanner: Scanner, volume: np.ndarray) -> np.ndarray:
    """Compute A·x with the matrices of the subsets, which OSEM also needs; the complete matrix is never built."""
    sinogram = np.empty((len(projector.views), projector.bins, volume.shape[2]), np.float32)
    for part in ordered_subsets(projector, scanner.subsets):
        sinogram[part.selection] = part.forward(volume)
    return sinogram


def _scatter(trues: np.ndarray, spacing: tuple[float, float], scanner: Scanner) -> np.ndarray:
    """Scatter in SUV · mm: a broad blur of the unscattered coincidences (Bailey and Meikle, PMB 39:411, 1994)."""
    spread = blur(trues, (1.0, *spacing), (0.0, scanner.scatter_mm, scanner.scatter_axial_mm))
    ratio = scanner.scatter_fraction / (1 - scanner.scatter_fraction)
    return spread * np.float32(ratio * trues.sum(dtype=float) / max(spread.sum(dtype=float), np.finfo(float).tiny))


def _calibration(projector: Projector, slice_mm: float, scanner: Scanner) -> float:
    """Return the counts per SUV · mm in a bin.

    The bins of one view contain the whole activity of a slice: Σ p · width = Σ λ · area. Therefore the sensitivity, in
    counts per SUV · mL over all views, determines k independently of the subject.
    """
    return scanner.sensitivity * projector.bin_width * slice_mm / (_MM3_PER_ML * len(projector.views))
