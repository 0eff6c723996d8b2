"""Splits sampled by hash: the split of a patient (train, val or test) depends only on the patient and the seed."""

import hashlib
import math
from collections.abc import Iterable

Fractions = tuple[float, float, float]

_SEEDS_TRIED = 1000


class SplitError(ValueError):
    """The fractions of the splits are invalid."""


def split_of(patient: str, seed: int = 0, fractions: Fractions = (0.8, 0.1, 0.1)) -> str:
    """Return the split of one patient.

    SHA-256 of "seed:patient" gives a number in [0, 1), which the fractions map to a split. Patients are sampled
    independently: a new patient does not change the split of any other, on any machine and in any order. A list that is
    shuffled and cut does not have this property. The disadvantage is that the fractions are met only on average, to
    about sqrt(f·(1-f)/n), and that a split may be empty if there are few patients. :func:`seed_that_fills` finds a seed
    without empty splits.

    Args:
        patient: the name that all sessions of a patient share.
        seed: seed of the sampling.
        fractions: fractions of train, val and test; they add up to 1.

    Raises:
        SplitError: the fractions are negative or do not add up to 1.
    """
    train, val, test = fractions
    if not (min(fractions) >= 0 and math.isclose(train + val + test, 1, abs_tol=1e-9)):
        raise SplitError(f"The fractions of train, val and test are 0 or more and add up to 1; got {fractions}.")
    # Use 53 of the first 64 bits, so that the quotient is exact and below 1.
    draw = (int.from_bytes(hashlib.sha256(f"{seed}:{patient}".encode()).digest()[:8]) >> 11) / 2**53
    if draw < train:
        return "train"
    return "val" if draw < train + val or test == 0 else "test"


def empty_splits(patients: Iterable[str], seed: int, fractions: Fractions) -> list[str]:
    """The splits with a positive fraction but no patients."""
    filled = {split_of(patient, seed, fractions) for patient in patients}
    return [
        name for name, share in zip(("train", "val", "test"), fractions, strict=True) if share and name not in filled
    ]


def seed_that_fills(patients: Iterable[str], seed: int, fractions: Fractions) -> int | None:
    """The first seed after `seed` without empty splits, or None if there is none among the next 999 seeds."""
    names = set(patients)
    if len(names) < sum(share > 0 for share in fractions):
        return None
    return next((s for s in range(seed + 1, seed + _SEEDS_TRIED) if not empty_splits(names, s, fractions)), None)
