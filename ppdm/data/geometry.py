"""Voxel grids: shape and affine in canonical (RAS+) order, from the header of a NIfTI file."""

import math
from dataclasses import dataclass
from itertools import product

import numpy as np
from nibabel.nifti1 import Nifti1Header
from nibabel.orientations import inv_ornt_aff, io_orientation
from nibabel.spatialimages import HeaderDataError

_MM_PER_UNIT = {1: 1e3, 2: 1.0, 3: 1e-3}  # the spatial bits of xyzt_units: metre, millimetre, micrometre


@dataclass(frozen=True, eq=False)
class Geometry:
    """A grid in space.

    Attributes:
        shape: number of voxels along D (to the right), H (to anterior) and W (to superior).
        affine: voxel indices (d, h, w, 1) to mm, float64 (4, 4).
    """

    shape: tuple[int, int, int]
    affine: np.ndarray

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size in mm along D, H and W."""
        d, h, w = np.linalg.norm(self.affine[:3, :3], axis=0).tolist()
        return d, h, w

    def distance(self, affine: np.ndarray) -> float:
        """Largest distance in mm between the positions of a voxel under this affine and under another one (4, 4)."""
        # The distance between two affine maps is a convex function, so its maximum over a box is at a corner.
        corners = np.array([(*corner, 1) for corner in product(*((0, size - 1) for size in self.shape))])
        return float(np.linalg.norm(corners @ (self.affine - affine).T, axis=1).max())


def canonical_geometry(header: Nifti1Header) -> Geometry:
    """The grid of a three-dimensional header with a valid affine, in RAS+ order and mm."""
    native, shape = header.get_best_affine(), header.get_data_shape()
    orientation = io_orientation(native)
    d, h, w = (shape[axis] for axis in np.argsort(orientation[:, 0]))
    return Geometry((d, h, w), _in_mm(native @ inv_ornt_aff(orientation, shape), header))


def disagreement(header: Nifti1Header) -> float:
    """Largest distance between sform and qform in mm: 0 if one is missing, infinite if the qform is damaged."""
    sform = header.get_sform(coded=True)[0]
    if sform is None or not header["qform_code"]:
        return 0.0
    try:
        with np.errstate(all="ignore"):
            qform = _in_mm(header.get_qform(), header)
    except (HeaderDataError, ValueError):
        return math.inf
    distance = Geometry(header.get_data_shape(), _in_mm(sform, header)).distance(qform)
    return distance if math.isfinite(distance) else math.inf


def _in_mm(affine: np.ndarray, header: Nifti1Header) -> np.ndarray:
    """The affine in mm; an unknown unit is treated as mm."""
    factor = _MM_PER_UNIT.get(int(header["xyzt_units"]) & 7, 1.0)
    return np.diag([factor, factor, factor, 1.0]) @ affine
