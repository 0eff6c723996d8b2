"""Splits by hash: their shares, their stability, and how an empty split is filled."""

import pytest

from ppdm.data.layouts.splits import SplitError, TooFewPatientsError, split_of, splits_of


def test_the_split_of_a_patient_never_changes():
    # sha256sum gives these numbers for "0:sub-01" to "0:sub-05": 0.627, 0.394, 0.408, 0.477 and 0.001.
    fractions = (0.395, 0.1, 0.505)
    assert [split_of(f"sub-0{i}", 0, fractions) for i in range(1, 6)] == ["test", "train", "val", "val", "train"]


def test_shares_hold_on_average():
    draws = [split_of(f"patient{i}", seed=3, fractions=(0.7, 0.2, 0.1)) for i in range(4000)]
    for name, share in (("train", 0.7), ("val", 0.2), ("test", 0.1)):
        # The tolerance is five standard deviations of a binomial share.
        assert abs(draws.count(name) / 4000 - share) < 5 * (share * (1 - share) / 4000) ** 0.5


def test_a_split_with_share_zero_gets_no_patient():
    assert {split_of(f"p{i}", fractions=(0.5, 0.5, 0.0)) for i in range(100)} == {"train", "val"}
    assert {split_of(f"p{i}", fractions=(0.0, 0.0, 1.0)) for i in range(100)} == {"test"}


@pytest.mark.parametrize("fractions", [(0.8, 0.1, 0.2), (1.2, -0.1, -0.1), (float("nan"), 0.5, 0.5)])
def test_impossible_fractions_are_refused(fractions):
    with pytest.raises(SplitError, match="add up to 1"):
        split_of("p", fractions=fractions)


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("count", [3, 4, 10])
def test_every_split_gets_a_patient_and_only_as_many_as_needed_move(count, seed):
    patients, fractions = [f"p{i}" for i in range(count)], (0.8, 0.1, 0.1)
    splits, drawn = splits_of(patients, seed, fractions), {one: split_of(one, seed, fractions) for one in patients}
    assert set(splits.values()) == {"train", "val", "test"}
    moved = [one for one in patients if splits[one] != drawn[one]]
    assert len(moved) == 3 - len(set(drawn.values()))
    assert splits == splits_of(reversed(patients), seed, fractions)


def test_an_empty_split_gets_the_patient_with_the_nearest_number():
    # The numbers are 0.627, 0.394, 0.408, 0.477 and 0.001, as above.
    patients = [f"sub-0{i}" for i in range(1, 6)]
    assert list(splits_of(patients, 0, (0.9, 0.1, 0.0)).values()) == ["val", *["train"] * 4]
    assert list(splits_of(patients, 0, (0.0005, 0.9995, 0.0)).values()) == [*["val"] * 4, "train"]


def test_with_many_patients_no_patient_moves():
    patients = [f"p{i}" for i in range(100)]
    assert splits_of(patients) == {one: split_of(one) for one in patients}


@pytest.mark.parametrize(
    ("patients", "fractions", "needed"),
    [
        (["a", "a", "b"], (0.8, 0.1, 0.1), "train, val, test need at least 3 subjects, got 2"),
        ([], (0.5, 0.0, 0.5), "train, test need at least 2 subjects, got 0"),
    ],
)
def test_too_few_patients_are_refused_with_the_required_number(patients, fractions, needed):
    with pytest.raises(TooFewPatientsError, match=needed):
        splits_of(patients, 0, fractions)
