"""Statistics for tables: means over subjects, and paired differences between two methods."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000
LEVEL = 0.95
ENOUGH_SUBJECTS = 6  # with fewer, the p of the Wilcoxon test cannot be below 0.05


@dataclass(frozen=True)
class Difference:
    """A method's values minus the reference's, subject by subject.

    Attributes:
        n: number of subjects that have both.
        mean: mean difference.
        low, high: bootstrap interval of the mean difference, None for a single subject.
        p: two-sided p value of the Wilcoxon signed-rank test.
    """

    n: int
    mean: float
    low: float | None
    high: float | None
    p: float


def mean_and_sd(values: Sequence[float]) -> tuple[float, float | None]:
    """Return mean and sample standard deviation (n − 1 in the denominator); it is None for a single value.

    Raises:
        ValueError: there are no values, or some are not finite.
    """
    found = _finite(values)
    return float(found.mean()), float(found.std(ddof=1)) if found.size > 1 else None


def paired_difference(values: Sequence[float], reference: Sequence[float]) -> Difference:
    """Return the mean paired difference, its percentile-bootstrap interval and the Wilcoxon signed-rank p.

    Subjects are sampled with replacement `RESAMPLES` times; the interval contains the middle 95 % of the means (Efron &
    Tibshirani, An Introduction to the Bootstrap, 1993, ch. 13). With few subjects it is too narrow. The random seed is
    fixed, so that equal values give equal intervals. Both lists have one number per subject, in the same order.

    Raises:
        ValueError: the lengths differ, there are no values, or some are not finite.
    """
    if len(values) != len(reference):
        raise ValueError(f"expected a reference for each of the {len(values)} values, got {len(reference)}")
    differences = _finite(values) - _finite(reference)
    low, high = _bootstrap(differences) if differences.size > 1 else (None, None)
    return Difference(differences.size, float(differences.mean()), low, high, signed_rank_p(differences))


def common_difference(values: Mapping[str, float], reference: Mapping[str, float]) -> Difference | None:
    """Return the paired difference over the common subjects; None if there are none."""
    both = [subject for subject in values if subject in reference]
    return paired_difference([values[s] for s in both], [reference[s] for s in both]) if both else None


def signed_rank_p(differences: np.ndarray) -> float:
    """Return the two-sided p of the Wilcoxon signed-rank test; as in its definition, equal pairs are left out.

    It is exact for up to 50 pairs without ties, and 1 if all pairs are equal.
    """
    nonzero = differences[differences != 0]
    if not nonzero.size:
        return 1.0
    from scipy.stats import wilcoxon  # loading takes a second

    with warnings.catch_warnings():  # some versions of scipy warn of ties among few subjects
        warnings.simplefilter("ignore")
        return float(wilcoxon(nonzero).pvalue)


def smallest_p(n: int) -> float:
    """Return the smallest possible p of the signed-rank test of n pairs: in 2 of 2ⁿ outcomes, all signs are equal."""
    return min(1.0, math.ldexp(1.0, 1 - n))


def middle(values: np.ndarray) -> tuple[float, float]:
    """Return the ends of the interval that contains the middle 95 % of the values."""
    outside = 50 * (1 - LEVEL)
    low, high = np.percentile(values, (outside, 100 - outside)).tolist()
    return low, high


def _bootstrap(values: np.ndarray) -> tuple[float, float]:
    sampled = np.random.default_rng(0).integers(values.size, size=(RESAMPLES, values.size))
    return middle(values[sampled].mean(axis=1))


def _finite(values: Sequence[float]) -> np.ndarray:
    found = np.asarray(values, dtype=np.float64)
    if found.ndim != 1 or not found.size or not np.isfinite(found).all():
        raise ValueError(f"expected one finite number for each of one or more subjects, got {list(values)!r}")
    return found
