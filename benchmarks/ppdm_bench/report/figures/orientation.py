"""The three anatomical planes of a volume in the radiological convention.

Axes: a volume is (D, H, W) in RAS+ order, so its indices grow towards the patient's right, anterior and superior.

An axial slice is seen from the feet and a coronal slice from the front, so the patient's right is on the left of the
picture. A sagittal slice is seen from the patient's right. Every picture therefore has the highest indices of both axes
in its top left corner.
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
    """One anatomical plane.

    Attributes:
        name: axial, coronal or sagittal.
        through: the axis perpendicular to the plane.
        across, up: the horizontal and the vertical axis of the picture.
        left, right, top, bottom: the patient's directions at the sides of the picture, as letters.
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
        """Return slice `index` of an array (D, H, W): rows from the top, columns from the left."""
        section: np.ndarray = np.take(array, index, axis=self.through)
        return section.T[::-1, ::-1]

    def size(self, shape: Sequence[int], spacing: Sequence[float]) -> tuple[float, float]:
        """Return width and height of the picture in mm."""
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
    """Return the voxel at the centre of mass of the positive values of (D, H, W); without any, the central voxel."""
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
