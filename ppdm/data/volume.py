"""NIfTI volumes: canonical orientation in memory, the file's own geometry on disk.

Axes. In memory, a volume is (D, H, W) in the axis order of nibabel's closest canonical (RAS+) orientation: D runs from
left to right, H from posterior to anterior, W from inferior to superior. The affine maps voxel indices (d, h, w) to mm.
Writing uses the header that was read, so that shape, affine, codes and units are preserved bit for bit.

The checks that make it safe to read a file with a wrong header are in `ppdm.data.nifti_stream`.
"""

import math
import os
import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import cast

import nibabel as nib
import numpy as np
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header
from nibabel.orientations import apply_orientation, io_orientation, ornt_transform

from ppdm.atomic_io import replacing
from ppdm.data.geometry import Geometry, canonical_geometry
from ppdm.data.nifti_stream import (
    SUFFIXES,
    VolumeError,
    check_memory,
    check_suffix,
    is_gzip,
    opened,
    read_header,
    read_voxels,
)

__all__ = [
    "GRID_TOLERANCE_MM",
    "SUFFIXES",
    "Geometry",
    "Volume",
    "VolumeError",
    "check_same_grid",
    "read_geometry",
    "read_shape",
    "read_volume",
    "write_volume",
]

GRID_TOLERANCE_MM = 1e-3

_IMAGE_CLASS = {Nifti1Header: nib.Nifti1Image, Nifti2Header: nib.Nifti2Image}


@dataclass(frozen=True, eq=False)
class Volume:
    """A scalar volume on its grid.

    Attributes:
        data: float32 (D, H, W), finite, C-contiguous, physical values of the file (slope and intercept applied).
        header: the header as read (NIfTI-1 or NIfTI-2), three-dimensional; it holds the native geometry.
        replaced: number of NaN or infinite voxels that were replaced by 0.
    """

    data: np.ndarray
    header: Nifti1Header
    replaced: int = 0

    def __post_init__(self) -> None:
        shape = self.geometry.shape
        if self.data.dtype != np.float32 or self.data.shape != shape:
            raise VolumeError(
                f"Expected float32 data of shape {shape}, the shape in the header; got {self.data.dtype} of shape "
                f"{self.data.shape}. Volume.from_array makes both from an array."
            )

    @classmethod
    def from_array(cls, array: np.ndarray, spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> "Volume":
        """Make a volume without a file: (D, H, W) in RAS+ order, `spacing` in mm, world origin at the centre."""
        if np.ndim(array) != 3 or not np.size(array):
            raise VolumeError(f"A volume has three axes, none of them empty; got shape {np.shape(array)}.")
        if not all(math.isfinite(mm) and mm > 0 for mm in spacing):
            raise VolumeError(f"Spacing is three positive numbers of mm; got {spacing}.")
        header = Nifti1Header()
        header.set_data_shape(np.shape(array))
        header.set_xyzt_units("mm")
        affine = np.diag([*spacing, 1.0])
        affine[:3, 3] = -0.5 * (np.array(np.shape(array)) - 1) * spacing
        header.set_qform(affine, code="scanner")
        header.set_sform(affine, code="scanner")
        return cls(np.ascontiguousarray(array, dtype=np.float32), header)

    @cached_property
    def geometry(self) -> Geometry:
        """The voxel grid in canonical order."""
        return canonical_geometry(self.header)

    @property
    def affine(self) -> np.ndarray:
        """Canonical voxel indices (d, h, w, 1) to mm, float64 (4, 4)."""
        return self.geometry.affine

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size in mm along D, H and W."""
        return self.geometry.spacing

    def to_native(self, array: np.ndarray) -> np.ndarray:
        """Convert a canonical (D, H, W) array to the axis order and directions of the file."""
        canonical = np.array([[0, 1], [1, 1], [2, 1]])
        native = io_orientation(self.header.get_best_affine())
        return cast(np.ndarray, apply_orientation(array, ornt_transform(canonical, native)))


def read_volume(path: str | os.PathLike[str], *, announce: bool = True) -> Volume:
    """Read a three-dimensional .nii or .nii.gz file as float32 in canonical orientation.

    Trailing axes of length 1 are dropped. NaN or infinite voxels are replaced by 0.

    Args:
        path: the file.
        announce: whether to warn if voxels were replaced; `Volume.replaced` always contains their number.

    Raises:
        VolumeError: the file is missing, damaged, not NIfTI or not a real-valued volume, its header claims more data
            than the file or the memory can hold, or it has no valid affine.
    """
    path = Path(path)
    with opened(path) as stream:
        header = read_header(path, stream)
        check_memory(path, header)
        stored = read_voxels(path, stream, header)
    data = _canonical_values(stored, header)
    invalid = ~np.isfinite(data)
    replaced = int(np.count_nonzero(invalid))
    if replaced:
        data[invalid] = 0.0
        if announce:
            warnings.warn(f"{path}: {replaced} NaN or infinite voxels were replaced by 0.", stacklevel=2)
    return Volume(data, header, replaced)


def read_geometry(path: str | os.PathLike[str]) -> Geometry:
    """Read the canonical voxel grid of a file from its header only.

    A file larger than this machine's memory is accepted, since its shape may be needed for another machine.

    Raises:
        VolumeError: as in read_volume, for all faults of the header.
    """
    path = Path(path)
    with opened(path) as stream:
        return canonical_geometry(read_header(path, stream))


def read_shape(path: str | os.PathLike[str]) -> tuple[tuple[int, int, int], tuple[float, float, float]]:
    """Read the shape (D, H, W) and the spacing in mm of a file; see `read_geometry`."""
    geometry = read_geometry(path)
    return geometry.shape, geometry.spacing


def write_volume(path: str | os.PathLike[str], array: np.ndarray, like: Volume) -> None:
    """Write a canonical (D, H, W) array as float32 with the native geometry of `like`.

    The write is atomic: the file is complete or absent. Header fields that describe the values of `like` (scaling,
    display window, intent, extensions) are not copied, because they do not apply to `array`.

    Raises:
        VolumeError: the suffix or the shape is wrong, the values are not real numbers, or the folder is not writable.
    """
    path = Path(path)
    _check_destination(path)
    values = np.asarray(array)
    if values.shape != like.data.shape or values.dtype.kind not in "biuf":
        raise VolumeError(
            f"{path}: got an array of shape {values.shape} and type {values.dtype}, expected real numbers of shape "
            f"{like.data.shape}, the grid they are written on; pass the array that belongs to that volume."
        )
    header = _header_for_values(like.header)
    native = like.to_native(values.astype(np.float32, copy=False))
    # Pass the header's own affine: nibabel rewrites the geometry fields only if affine and header differ.
    image = _IMAGE_CLASS[type(header)](native, header.get_best_affine(), header)
    try:
        with replacing(path, ".nii.gz" if is_gzip(path) else ".nii") as temporary:
            nib.save(image, temporary)
    except OSError as error:
        raise VolumeError(f"{path} cannot be written ({error.strerror or error}); check the folder and disk.") from None


def check_same_grid(a: Volume | Geometry, b: Volume | Geometry, names: tuple[str, str]) -> None:
    """Refuse two volumes if their shapes differ or their corner voxels are more than 1e-3 mm apart.

    Raises:
        VolumeError: the grids differ; the message contains both `names`, and the shapes or the distance.
    """
    grid, other = (item.geometry if isinstance(item, Volume) else item for item in (a, b))
    mend = "resample one of them onto the grid of the other first (--resample does so for a pair)."
    if grid.shape != other.shape:
        raise VolumeError(
            f"{names[0]} and {names[1]} must share one grid, but their shapes are {grid.shape} and "
            f"{other.shape}; {mend}"
        )
    distance = grid.distance(other.affine)
    if not distance <= GRID_TOLERANCE_MM:
        raise VolumeError(
            f"{names[0]} and {names[1]} must share one grid, but their voxels lie up to {distance:.4g} mm apart "
            f"(allowed: {GRID_TOLERANCE_MM:g} mm); {mend}"
        )


def _canonical_values(stored: np.ndarray, header: Nifti1Header) -> np.ndarray:
    """Physical values, float32 and C-contiguous, in canonical order."""
    slope, inter = header.get_slope_inter()
    data = np.empty(stored.shape, np.float32, order="F")
    with np.errstate(over="ignore", invalid="ignore"):  # read_volume counts values that overflow float32
        if slope is None or (slope, inter) == (1.0, 0.0):
            data[...] = stored
        else:  # in float64, one plane at a time: a whole float64 volume may not fit into memory
            for k in range(stored.shape[2]):
                data[..., k] = stored[..., k] * np.float64(slope) + inter
    return np.ascontiguousarray(apply_orientation(data, io_orientation(header.get_best_affine())))


# Writing


def _check_destination(path: Path) -> None:
    check_suffix(path)
    if os.path.isdir(path):
        raise VolumeError(f"{path} is a folder; name a file in it.")
    if not os.path.isdir(path.parent):
        raise VolumeError(f"{path} cannot be written: {path.parent} is not a folder; make it first.")


def _header_for_values(header: Nifti1Header) -> Nifti1Header:
    """Copy a header: keep its geometry and describe the voxel values as plain float32."""
    copy: Nifti1Header = header.copy()
    copy.set_data_dtype(np.float32)
    copy.set_slope_inter(1.0, 0.0)
    copy.set_intent("none")
    copy["cal_min"] = copy["cal_max"] = 0
    return copy
