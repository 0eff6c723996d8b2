"""NIfTI volumes: one orientation inside the program, the file's own geometry outside.

Axes. Inside, a volume is (D, H, W) in the axis order of nibabel's closest canonical (RAS+) orientation: D runs from
left to right, H from posterior to anterior, W from inferior to superior. The affine maps voxel indices (d, h, w) to mm.
On writing, the header that was read goes out again, so that shape, affine, codes and units return bit for bit.

What makes a file safe to read, whatever its header claims, is in `ppdm.data.nifti_stream`.
"""

import math
import os
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import cast

import nibabel as nib
import numpy as np
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header
from nibabel.orientations import apply_orientation, io_orientation, ornt_transform

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
        data: float32 (D, H, W), finite, C-contiguous, in the physical values of the file (slope and intercept applied).
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
        """A volume without a file: (D, H, W) in RAS+ order, `spacing` in mm, the world's origin at its centre."""
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
        """Where the voxels lie, in canonical order."""
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
        """Turn a canonical (D, H, W) array back into the axis order and directions of the file."""
        canonical = np.array([[0, 1], [1, 1], [2, 1]])
        native = io_orientation(self.header.get_best_affine())
        return cast(np.ndarray, apply_orientation(array, ornt_transform(canonical, native)))


def read_volume(path: str | os.PathLike[str], *, announce: bool = True) -> Volume:
    """Read a three-dimensional .nii or .nii.gz file as float32 in canonical orientation.

    Trailing axes of length 1 are dropped, and NaN or infinite voxels replaced by 0.

    Args:
        path: the file.
        announce: warn where voxels were replaced; `Volume.replaced` tells in any case.

    Raises:
        VolumeError: the file is missing, damaged, not NIfTI, not a real-valued volume, larger than it can be, or has
            no usable affine.
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
    """Where the voxels of a file lie, canonical, from its header alone.

    A file larger than this machine's memory is accepted: its shape may be wanted for another machine.

    Raises:
        VolumeError: as read_volume, for everything that a header can tell.
    """
    path = Path(path)
    with opened(path) as stream:
        return canonical_geometry(read_header(path, stream))


def read_shape(path: str | os.PathLike[str]) -> tuple[tuple[int, int, int], tuple[float, float, float]]:
    """Shape (D, H, W) and spacing in mm of a file; see `read_geometry`."""
    geometry = read_geometry(path)
    return geometry.shape, geometry.spacing


def write_volume(path: str | os.PathLike[str], array: np.ndarray, like: Volume) -> None:
    """Write a canonical (D, H, W) array as float32 with the native geometry of `like`.

    The file appears whole or not at all. What described the values of `like` (scaling, display window, intent,
    extensions) is not copied: it is not true of `array`.

    Raises:
        VolumeError: wrong suffix or shape, values that are not real numbers, or a folder that cannot be written.
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
    # The affine is the header's own: nibabel rewrites the geometry fields only where the two differ.
    image = _IMAGE_CLASS[type(header)](native, header.get_best_affine(), header)
    with _replacing(path) as temporary:
        nib.save(image, temporary)


def check_same_grid(a: Volume | Geometry, b: Volume | Geometry, names: tuple[str, str]) -> None:
    """Refuse two volumes whose shapes differ or whose corner voxels lie more than 1e-3 mm apart.

    Raises:
        VolumeError: names both (`names`) and says how far apart they are.
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
    with np.errstate(over="ignore", invalid="ignore"):  # what float32 cannot hold is counted by read_volume
        if slope is None or (slope, inter) == (1.0, 0.0):
            data[...] = stored
        else:  # in float64, a plane at a time, as a whole volume of float64 may not fit
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
    """A copy whose geometry stands and whose description of the voxel values is that of plain float32."""
    copy: Nifti1Header = header.copy()
    copy.set_data_dtype(np.float32)
    copy.set_slope_inter(1.0, 0.0)
    copy.set_intent("none")
    copy["cal_min"] = copy["cal_max"] = 0
    return copy


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A file beside `path`, of its suffix, that takes its place when the block ends well and vanishes otherwise."""
    suffix = ".nii.gz" if is_gzip(path) else ".nii"
    temporary = path.with_name(f".{uuid.uuid4().hex}{suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise VolumeError(f"{path} cannot be written ({error.strerror or error}); check the folder and disk.") from None
    finally:
        temporary.unlink(missing_ok=True)
