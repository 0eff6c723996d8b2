"""One subject's scan at full and at lower doses, reconstructed with and without correction.

Axes: volume (D, H, W).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ppdm.simulation.pet.acquisition import Acquisition, acquire, thin_nested
from ppdm.simulation.pet.reconstruction import reconstruct
from ppdm.simulation.pet.scanner import Scanner


class Images(Mapping[float, np.ndarray]):
    """Images by dose factor; each is reconstructed at the first access and then kept."""

    def __init__(self, acquisitions: Mapping[float, Acquisition], corrected: bool) -> None:
        self._acquisitions, self._corrected = acquisitions, corrected
        self._images: dict[float, np.ndarray] = {}

    def __getitem__(self, factor: float) -> np.ndarray:
        if factor not in self._images:
            self._images[factor] = reconstruct(self._acquisitions[factor], self._corrected)
        return self._images[factor]

    def __iter__(self) -> Iterator[float]:
        return iter(self._acquisitions)

    def __len__(self) -> int:
        return len(self._acquisitions)


@dataclass(frozen=True, eq=False)
class Scan:
    """The images of a subject, float32 (D, H, W). All come from one set of counts.

    Attributes:
        full: the coincidences at full dose.
        lower: the coincidences at each dose factor, nested.
    """

    full: Acquisition
    lower: Mapping[float, Acquisition]

    @cached_property
    def ac(self) -> np.ndarray:
        """Full dose with attenuation and scatter correction, SUV."""
        return reconstruct(self.full)

    @cached_property
    def nac(self) -> np.ndarray:
        """Full dose without correction, on the same scale."""
        return reconstruct(self.full, corrected=False)

    @cached_property
    def low(self) -> Images:
        """Corrected images by dose factor, SUV."""
        return Images(self.lower, corrected=True)

    @cached_property
    def nac_low(self) -> Images:
        """Uncorrected images by dose factor."""
        return Images(self.lower, corrected=False)


def simulate(
    activity: np.ndarray,
    mu: np.ndarray,
    spacing: tuple[float, float, float],
    scanner: Scanner,
    rng: np.random.Generator,
    dose_factors: Sequence[float] = (20,),
) -> Scan:
    """Scan a subject once and thin the counts; images are reconstructed at the first access.

    Args:
        activity: SUV, (D, H, W).
        mu: attenuation at 511 keV in 1/cm, (D, H, W).
        spacing: voxel size in mm along D, H, W.
        scanner: the scanner and its protocol.
        rng: source of the counts, then of the thinning.
        dose_factors: dose factors of at least 1; the full dose is always available.

    Raises:
        PETError: for the same reasons as :func:`acquire` and :func:`thin`.
    """
    full = acquire(activity, mu, spacing, scanner, rng)
    lower = {
        factor: full.at_dose(factor, counts) for factor, counts in thin_nested(full.counts, dose_factors, rng).items()
    }
    return Scan(full, lower)
