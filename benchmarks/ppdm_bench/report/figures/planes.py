"""The three planes of a volume as a radiologist looks at them.

Axes: a volume is (D, H, W) in RAS+ order, so its indices grow to the patient's right, to anterior and to superior.

Pictures are in the radiological convention: an axial slice is seen from the feet and a coronal one from the front, so
the patient's right is on the left of the picture. A sagittal slice looks to the left. Then every picture has the high
indices of both axes at its top left corner.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

PlaneName = Literal["axial", "coronal", "sagittal"]
CONVENTION = "Radiological convention: the patient's right (R) is on the left."


@dataclass(frozen=True)
class Plane:
    """One way to cut a volume.

    Attributes:
        name: axial, coronal or sagittal.
        through: the axis that is cut.
        across, up: the axes that are seen, `across` before `up`.
        left, right, top, bottom: letters of the directions in which the sides of the picture lie.
    """

    name: PlaneName
    through: int
    across: int
    up: int
    left: str
    right: str
    top: str
    bottom: str

    def picture(self, array: np.ndarray, index: int) -> np.ndarray:
        """Slice `index` of an array (D, H, W): rows from the top, columns from the left."""
        section: np.ndarray = np.take(array, index, axis=self.through)
        return section.T[::-1, ::-1]

    def size(self, shape: Sequence[int], spacing: Sequence[float]) -> tuple[float, float]:
        """Width and height of the picture in mm."""
        return shape[self.across] * spacing[self.across], shape[self.up] * spacing[self.up]


PLANES: dict[PlaneName, Plane] = {
    plane.name: plane
    for plane in (
        Plane("axial", 2, 0, 1, "R", "L", "A", "P"),
        Plane("coronal", 1, 0, 2, "R", "L", "S", "I"),
        Plane("sagittal", 0, 1, 2, "A", "P", "S", "I"),
    )
}


def centre_of_mass(array: np.ndarray) -> tuple[int, int, int]:
    """The voxel at the centre of what is positive in (D, H, W), or at the centre of the array if nothing is."""
    weights = np.clip(array, 0, None).astype(np.float64)
    total = weights.sum()
    if not total > 0:
        d, h, w = (size // 2 for size in array.shape)
    else:
        d, h, w = (_mean_index(weights, axis) for axis in range(3))
    return d, h, w


def _mean_index(weights: np.ndarray, axis: int) -> int:
    profile = weights.sum(axis=tuple(other for other in range(3) if other != axis))
    return round(float(np.arange(profile.size) @ profile / profile.sum()))
