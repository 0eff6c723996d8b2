"""Splits by hash: shares, stability, and the seed that fills every split."""

import pytest

from ppdm.data.layouts.splits import SplitError, empty_splits, seed_that_fills, split_of


def test_the_split_of_a_patient_never_changes():
    # Heads of SHA-256 of "0:sub-01" to "0:sub-05", as sha256sum gives them: .627, .394, .408, .477 and .001.
    fractions = (0.395, 0.1, 0.505)
    assert [split_of(f"sub-0{i}", 0, fractions) for i in range(1, 6)] == ["test", "train", "val", "val", "train"]


def test_shares_hold_on_average():
    draws = [split_of(f"patient{i}", seed=3, fractions=(0.7, 0.2, 0.1)) for i in range(4000)]
    for name, share in (("train", 0.7), ("val", 0.2), ("test", 0.1)):
        # Five standard deviations of a binomial share.
        assert abs(draws.count(name) / 4000 - share) < 5 * (share * (1 - share) / 4000) ** 0.5


def test_a_share_of_nothing_gets_nobody():
    assert {split_of(f"p{i}", fractions=(0.5, 0.5, 0.0)) for i in range(100)} == {"train", "val"}
    assert {split_of(f"p{i}", fractions=(0.0, 0.0, 1.0)) for i in range(100)} == {"test"}


@pytest.mark.parametrize("fractions", [(0.8, 0.1, 0.2), (1.2, -0.1, -0.1), (float("nan"), 0.5, 0.5)])
def test_impossible_fractions_are_refused(fractions):
    with pytest.raises(SplitError, match="add up to 1"):
        split_of("p", fractions=fractions)


def test_a_seed_is_found_that_leaves_no_split_empty():
    patients = ["a", "b", "c", "d"]
    fractions = (0.8, 0.1, 0.1)
    seed = seed_that_fills(patients, 0, fractions)
    assert seed > 0
    assert empty_splits(patients, seed, fractions) == []
    assert seed_that_fills(patients, seed, fractions) > seed
    assert seed_that_fills(["a", "a", "b"], 0, fractions) is None
