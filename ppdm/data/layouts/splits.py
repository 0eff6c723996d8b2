"""Splits sampled by hash: the split of a patient (train, val or test) depends only on the patient and the seed."""

import hashlib
import math
from collections import Counter
from collections.abc import Iterable

from ppdm.data.manifest import SPLITS

Fractions = tuple[float, float, float]


class SplitError(ValueError):
    """The fractions of the splits are invalid, or there are fewer patients than splits."""


class TooFewPatientsError(SplitError):
    """There are fewer patients than splits; the message says how many are needed."""


def splits_of(patients: Iterable[str], seed: int = 0, fractions: Fractions = (0.8, 0.1, 0.1)) -> dict[str, str]:
    """Return the split of each patient; every split with a positive fraction gets at least one patient.

    Patients are sampled independently (:func:`split_of`). If that leaves a split empty, the patient whose number is
    nearest to the interval of that split moves there, from the largest split. So with many patients, a new patient
    changes no other; with few, it can return a moved patient to its own split.

    Args:
        patients: names of the patients.
        seed: seed of the sampling.
        fractions: fractions of train, val and test; they add up to 1.

    Raises:
        TooFewPatientsError: there are fewer patients than splits with a positive fraction.
        SplitError: the fractions are invalid.
    """
    splits = {patient: split_of(patient, seed, fractions) for patient in sorted(set(patients))}
    wanted = [name for name, fraction in zip(SPLITS, fractions, strict=True) if fraction]
    if len(splits) < len(wanted):
        raise TooFewPatientsError(
            f"The splits {', '.join(wanted)} need at least {len(wanted)} subjects, got {len(splits)}."
        )
    for empty in (name for name in wanted if name not in splits.values()):
        largest, _ = Counter(splits.values()).most_common(1)[0]
        nearest = max if SPLITS.index(empty) > SPLITS.index(largest) else min
        splits[nearest((one for one in splits if splits[one] == largest), key=lambda one: _number(one, seed))] = empty
    return splits


def split_of(patient: str, seed: int = 0, fractions: Fractions = (0.8, 0.1, 0.1)) -> str:
    """Return the split of one patient.

    SHA-256 of "seed:patient" gives a number in [0, 1), which the fractions map to a split. Patients are sampled
    independently: a new patient does not change the split of any other, on any machine and in any order. A list that is
    shuffled and cut does not have this property. The disadvantage is that the fractions are met only on average, to
    about sqrt(f·(1-f)/n), and that a split may be empty if there are few patients; :func:`splits_of` fills it.

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
    number = _number(patient, seed)
    if number < train:
        return "train"
    return "val" if number < train + val or test == 0 else "test"


def _number(patient: str, seed: int) -> float:
    """Return the number in [0, 1) of a patient."""
    # Use 53 of the first 64 bits, so that the quotient is exact and below 1.
    return (int.from_bytes(hashlib.sha256(f"{seed}:{patient}".encode()).digest()[:8]) >> 11) / 2**53
