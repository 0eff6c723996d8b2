"""The statistics of tables against closed forms and scipy."""

from itertools import product

import numpy as np
import pytest
from scipy import stats

from ppdm_bench.report.statistics import ENOUGH_SUBJECTS, mean_and_sd, paired_difference, signed_rank_p, smallest_p


def test_mean_and_sample_standard_deviation():
    # Deviations of 2, 4, 9 from 5 are −3, −1, 4; their squares add up to 26, and 26 / (3 − 1) = 13.
    assert mean_and_sd([2.0, 4.0, 9.0]) == (5.0, pytest.approx(13**0.5))
    assert mean_and_sd([7.0]) == (7.0, None)


@pytest.mark.parametrize("values", [[], [1.0, float("nan")], [float("inf")]])
def test_empty_and_not_finite_values_are_refused(values):
    with pytest.raises(ValueError, match="one finite number"):
        mean_and_sd(values)
    with pytest.raises(ValueError, match="one finite number"):
        paired_difference(values, values)


def test_a_paired_difference_removes_the_variation_between_subjects():
    """Subjects differ by tens and methods by one, so only a paired comparison detects the difference."""
    reference = np.array([10.0, 30.0, 20.0, 50.0, 40.0, 60.0, 80.0])
    gain = np.array([0.9, 1.1, 1.0, 1.2, 0.8, 1.3, 0.7])
    found = paired_difference(reference + gain, reference)
    assert (found.n, found.mean) == (7, pytest.approx(1.0))
    assert found.low is not None
    assert found.high is not None
    assert 0.7 < found.low < 1.0 < found.high < 1.3
    assert found.p == pytest.approx(2 / 2**7)  # all signs agree: one of 128 outcomes, and its mirror image


def test_the_interval_is_the_percentile_bootstrap():
    """For n = 2 there are four resamples, with means a, (a + b)/2 twice, and b, so the interval is from a to b."""
    found = paired_difference([3.0, 7.0], [1.0, 1.0])
    assert (found.low, found.high) == (2.0, 6.0)


def test_for_many_subjects_the_interval_approaches_the_normal_one():
    values = np.random.default_rng(1).normal(2.0, 3.0, size=400)
    found = paired_difference(values, np.zeros(400))
    half = 1.96 * values.std() / 20
    assert found.low == pytest.approx(values.mean() - half, abs=0.03)
    assert found.high == pytest.approx(values.mean() + half, abs=0.03)


def test_the_interval_agrees_with_that_of_all_resamples():
    values = [0.3, 1.9, 2.2, 3.1, 7.4]
    means = [np.mean(drawn) for drawn in product(values, repeat=5)]
    found = paired_difference(values, [0.0] * 5)
    assert found.low == pytest.approx(np.percentile(means, 2.5), abs=0.1)
    assert found.high == pytest.approx(np.percentile(means, 97.5), abs=0.1)


def test_equal_values_give_equal_intervals():
    a, b = np.random.default_rng(0).normal(size=(2, 9))
    assert paired_difference(a, b) == paired_difference(a, b)


def test_one_subject_has_no_interval_and_no_significance():
    found = paired_difference([2.0], [1.0])
    assert (found.n, found.mean, found.low, found.high, found.p) == (1, 1.0, None, None, 1.0)


def test_different_numbers_of_subjects_are_refused():
    with pytest.raises(ValueError, match="each of the 2 values, got 1"):
        paired_difference([1.0, 2.0], [1.0])


def enumerated_p(differences: np.ndarray) -> float:
    """Return the share of sign patterns whose rank sum is at least as far from its middle."""
    ranks = stats.rankdata(np.abs(differences))
    middle = ranks.sum() / 2
    away = abs(ranks[differences > 0].sum() - middle)
    sums = [ranks[np.array(signs)].sum() for signs in product((False, True), repeat=len(ranks))]
    return float(np.mean([abs(total - middle) >= away - 1e-9 for total in sums]))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("n", [3, 6, 9])
def test_p_equals_that_of_all_sign_patterns(n, seed):
    differences = np.random.default_rng(seed).normal(0.5, 1.0, size=n)
    assert signed_rank_p(differences) == pytest.approx(enumerated_p(differences))


def test_pairs_without_a_difference_are_left_out():
    some = np.array([1.0, -2.0, 3.0, 4.0, 5.5])
    assert signed_rank_p(np.append(some, [0.0, 0.0])) == signed_rank_p(some)
    assert signed_rank_p(np.zeros(4)) == 1.0


@pytest.mark.parametrize("differences", [[1.0] * 6 + [-2.0], [0.5, 0.5, 1.0, -1.0, 2.0, 2.0, 3.0], [1.0] * 3 + [2.0]])
def test_with_ties_p_is_close_to_that_of_all_sign_patterns_and_there_is_no_warning(differences):
    """Old versions of scipy count as if there were no ties."""
    assert signed_rank_p(np.array(differences)) == pytest.approx(enumerated_p(np.array(differences)), abs=0.07)


@pytest.mark.parametrize("n", [1, 2, 5, 6, 10])
def test_the_smallest_p_is_reached_when_all_signs_agree(n):
    assert signed_rank_p(np.arange(1.0, n + 1)) == pytest.approx(smallest_p(n))


def test_enough_subjects_are_the_fewest_that_reach_five_percent():
    assert smallest_p(ENOUGH_SUBJECTS) <= 0.05 < smallest_p(ENOUGH_SUBJECTS - 1)
