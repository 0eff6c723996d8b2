"""Voxel grids: shape and affine in canonical (RAS+) order, from the geometry that a file states.

NIfTI states an affine in RAS+ coordinates, which point to the right, to anterior and to superior. DICOM, MetaImage and
NRRD, as ITK reads them, state origin, spacing and directions in LPS+ coordinates, which point to the left, to posterior
and to superior.
"""

import math
from dataclasses import dataclass
from itertools import product

import numpy as np
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header
from nibabel.orientations import inv_ornt_aff
from nibabel.spatialimages import HeaderDataError

_MM_PER_UNIT = {1: 1e3, 2: 1.0, 3: 1e-3}  # the spatial bits of xyzt_units: metre, millimetre, micrometre
_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # from LPS+ to RAS+ coordinates, and back

# Preferences between axes that lie equally close to a file's axis, as cosines: larger than the rounding of float32 and
# than the tolerance of a grid, smaller than any angle that matters. Earlier axes are preferred.
_PREFERENCE = -1e-3 * (np.arange(3)[:, None] + 0.3 * np.arange(3))


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


@dataclass(frozen=True, eq=False)
class ItkGeometry:
    """Geometry as ITK states it, in LPS+ coordinates and float64.

    Attributes:
        origin: position of the first voxel in mm, (3,).
        spacing: distance between voxels in mm along the axes of the file, (3,).
        direction: unit vectors of the axes of the file as columns, (3, 3).
    """

    origin: np.ndarray
    spacing: np.ndarray
    direction: np.ndarray

    @classmethod
    def of(cls, affine: np.ndarray) -> "ItkGeometry":
        """Return the geometry of an affine (4, 4) that maps voxel indices to RAS+ coordinates in mm."""
        lps = _LPS @ affine
        spacing = np.linalg.norm(lps[:3, :3], axis=0)
        return cls(lps[:3, 3], spacing, lps[:3, :3] / spacing)

    @property
    def affine(self) -> np.ndarray:
        """Voxel indices of the file to RAS+ coordinates in mm, float64 (4, 4)."""
        lps = np.eye(4)
        lps[:3, :3], lps[:3, 3] = self.direction * self.spacing, self.origin
        return _LPS @ lps


def orientation(affine: np.ndarray) -> np.ndarray:
    """Return the closest canonical axis of each file axis and its sign, as nibabel's ``io_orientation``, (3, 2).

    Ties are decided in one way: two files on one grid, whose affines differ by rounding, have the same orientation even
    if their axes lie at 45 degrees to the canonical axes.

    Raises:
        np.linalg.LinAlgError: the affine is not finite.
    """
    unit = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    left, _, right = np.linalg.svd(unit)
    cosines = left @ right  # the nearest rotation or reflection
    closeness = np.abs(cosines) + _PREFERENCE
    found = np.empty((3, 2))
    for axis in np.argsort(-closeness.max(axis=0), kind="stable"):
        out = int(np.argmax(closeness[:, axis]))
        found[axis] = out, np.copysign(1, cosines[out, axis])
        closeness[out] = -np.inf
    return found


def canonical_geometry(affine: np.ndarray, shape: tuple[int, int, int]) -> Geometry:
    """Return the grid of a file in RAS+ order, from its affine in mm and its shape."""
    axes = orientation(affine)
    d, h, w = (shape[axis] for axis in np.argsort(axes[:, 0]))
    return Geometry((d, h, w), affine @ inv_ornt_aff(axes, shape))


def nifti_header(affine: np.ndarray, shape: tuple[int, ...]) -> Nifti1Header:
    """Return a header with an affine in mm, rounded to float32: NIfTI-1 unless an axis is too long for it."""
    header = (Nifti1Header if max(shape) < 1 << 15 else Nifti2Header)()
    header.set_data_shape(shape)
    header.set_xyzt_units("mm")
    header.set_qform(affine, code="scanner")
    header.set_sform(affine, code="scanner")
    return header


def spatial_shape(header: Nifti1Header) -> tuple[int, int, int]:
    """Voxels along the three axes of a file, without trailing axes of length 1."""
    i, j, k = header.get_data_shape()[:3]
    return i, j, k


def affine_in_mm(header: Nifti1Header) -> np.ndarray:
    """Return the affine that the codes of a header select, in mm."""
    return _in_mm(header.get_best_affine(), header)


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
    distance = Geometry(spatial_shape(header), _in_mm(sform, header)).distance(qform)
    return distance if math.isfinite(distance) else math.inf


def _in_mm(affine: np.ndarray, header: Nifti1Header) -> np.ndarray:
    """Return the affine in mm; an unknown unit is treated as mm."""
    factor = _MM_PER_UNIT.get(int(header["xyzt_units"]) & 7, 1.0)
    return np.diag([factor, factor, factor, 1.0]) @ affine
