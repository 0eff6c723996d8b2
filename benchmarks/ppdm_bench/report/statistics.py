"""The statistics of tables: what a number a subject says of a method, and of the difference between two."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000
LEVEL = 0.95
ENOUGH = 6  # subjects from which on the Wilcoxon test can reach .05


@dataclass(frozen=True)
class Summary:
    """Values of several subjects.

    Attributes:
        n: how many.
        mean: their average.
        sd: their sample standard deviation (n − 1 in the denominator), None for a single subject.
    """

    n: int
    mean: float
    sd: float | None


@dataclass(frozen=True)
class Difference:
    """A method's values minus the reference's, subject by subject.

    Attributes:
        n: how many subjects have both.
        mean: average of the differences.
        low, high: ends of the bootstrap interval of that average, None for a single subject.
        p: of the Wilcoxon signed-rank test, two-sided.
    """

    n: int
    mean: float
    low: float | None
    high: float | None
    p: float


def summary(values: Sequence[float]) -> Summary:
    """Mean and sample standard deviation.

    Raises:
        ValueError: there are no values, or some are not finite.
    """
    found = _finite(values)
    return Summary(found.size, float(found.mean()), float(found.std(ddof=1)) if found.size > 1 else None)


def paired_difference(
    values: Sequence[float], reference: Sequence[float], *, resamples: int = RESAMPLES, seed: int = 0
) -> Difference:
    """Mean paired difference, its percentile-bootstrap interval and the Wilcoxon signed-rank p.

    Subjects are drawn with replacement `resamples` times, and the interval holds the middle 95 % of the means (Efron &
    Tibshirani, An Introduction to the Bootstrap, 1993, ch. 13); with few subjects it is too narrow.

    Args:
        values, reference: one number a subject, in the same order.
        resamples: of the bootstrap.
        seed: of the resampling; the same seed gives the same interval.

    Raises:
        ValueError: their numbers differ, there are none, or some are not finite.
    """
    if len(values) != len(reference):
        raise ValueError(f"expected a reference for each of the {len(values)} values, got {len(reference)}")
    differences = _finite(values) - _finite(reference)
    low, high = _bootstrap(differences, resamples, seed) if differences.size > 1 else (None, None)
    return Difference(differences.size, float(differences.mean()), low, high, signed_rank_p(differences))


def signed_rank_p(differences: np.ndarray) -> float:
    """The two-sided p of the Wilcoxon signed-rank test; pairs without a difference are left out, as Wilcoxon did.

    Exact for up to 50 pairs without ties. Without any difference it is 1.
    """
    nonzero = differences[differences != 0]
    if not nonzero.size:
        return 1.0
    from scipy.stats import wilcoxon  # takes a second to load, which commands without a test need not wait for

    with warnings.catch_warnings():  # some versions of scipy warn of ties among few subjects
        warnings.simplefilter("ignore")
        return float(wilcoxon(nonzero).pvalue)


def smallest_p(n: int) -> float:
    """The least p that the signed-rank test of n pairs can give: both outcomes in which all signs agree, of 2ⁿ."""
    return min(1.0, math.ldexp(1.0, 1 - n))


def _bootstrap(values: np.ndarray, resamples: int, seed: int) -> tuple[float, float]:
    drawn = np.random.default_rng(seed).integers(values.size, size=(resamples, values.size))
    outside = 50 * (1 - LEVEL)
    low, high = np.percentile(values[drawn].mean(axis=1), (outside, 100 - outside)).tolist()
    return low, high


def _finite(values: Sequence[float]) -> np.ndarray:
    found = np.asarray(values, dtype=np.float64)
    if found.ndim != 1 or not found.size or not np.isfinite(found).all():
        raise ValueError(f"expected one finite number for each of one or more subjects, got {list(values)!r}")
    return found
