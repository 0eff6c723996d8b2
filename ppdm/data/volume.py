"""Volumes in files: canonical orientation in memory, the file's own geometry on disk.

The formats are NIfTI and, through SimpleITK, MetaImage, NRRD and DICOM, which can only be read
(:mod:`ppdm.data.formats`).

Axes: in memory, a volume is (D, H, W) in the axis order of nibabel's closest canonical (RAS+) orientation: D runs from
left to right, H from posterior to anterior, W from inferior to superior. The affine maps voxel indices (d, h, w) to mm.
Writing uses the geometry that was read. NIfTI to NIfTI keeps shape, affine, codes and units bit for bit. MetaImage to
MetaImage keeps origin, spacing and directions. From another format to NIfTI, they are rounded to float32.

The checks that make it safe to read a file with a wrong header are in `ppdm.data.nifti_stream`.
"""

import math
import os
import shutil
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
from nibabel.orientations import apply_orientation, ornt_transform

from ppdm.data.dicom import read_series
from ppdm.data.formats import DETACHED, NIFTI, is_dicom_scan, stem, suffix_of
from ppdm.data.geometry import (
    Geometry,
    ItkGeometry,
    affine_in_mm,
    canonical_geometry,
    nifti_header,
    orientation,
    spatial_shape,
)
from ppdm.data.itk import read_itk_header, read_itk_voxels, write_itk
from ppdm.data.itk_headers import data_file
from ppdm.data.nifti_stream import (
    VolumeError,
    check_file,
    check_memory,
    check_suffix,
    opened,
    read_header,
    read_voxels,
)

__all__ = [
    "GRID_TOLERANCE_MM",
    "ExactValues",
    "Volume",
    "VolumeError",
    "check_same_grid",
    "files_of_scan",
    "read_exact",
    "read_geometry",
    "read_shape",
    "read_volume",
    "user_path",
    "write_volume",
    "written_files",
]

GRID_TOLERANCE_MM = 1e-3

_IMAGE_CLASS = {Nifti1Header: nib.Nifti1Image, Nifti2Header: nib.Nifti2Image}


@dataclass(frozen=True, eq=False)
class Volume:
    """A scalar volume on its grid.

    Attributes:
        data: float32 (D, H, W), finite, C-contiguous, physical values of the file (slope and intercept applied).
        header: the header as read (NIfTI-1 or NIfTI-2), or one with the geometry of a file of another format. Its shape
            is native: in the axis order of the file, with trailing axes of length 1.
        replaced: number of NaN or infinite voxels that were replaced by 0.
        itk_geometry: the native geometry of a file of another format, exact in float64; None for NIfTI.

    Raises:
        VolumeError: data are not float32, or do not have the shape in the header.
    """

    data: np.ndarray
    header: Nifti1Header
    replaced: int = 0
    itk_geometry: ItkGeometry | None = None

    def __post_init__(self) -> None:
        shape = self.geometry.shape
        if self.data.dtype != np.float32 or self.data.shape != shape:
            raise VolumeError(
                f"Expected float32 data of shape {shape}, the shape in the header; got {self.data.dtype} of shape "
                f"{self.data.shape}. Volume.from_array makes both from an array."
            )
        # PyTorch refuses negative strides, which numpy calls contiguous along an axis of length 1, and warns of
        # read-only data.
        if not (self.data.flags.c_contiguous and self.data.flags.writeable and min(self.data.strides) > 0):
            object.__setattr__(self, "data", self.data.copy(order="C"))

    @classmethod
    def from_array(cls, array: np.ndarray, spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> "Volume":
        """Make a volume without a file: (D, H, W) in RAS+ order, `spacing` in mm, world origin at the centre.

        The array is copied; it may have any real type, byte order and strides.

        Raises:
            VolumeError: the array does not have three axes, is empty, or the spacing is not three positive numbers.
        """
        if np.ndim(array) != 3 or not np.size(array):
            raise VolumeError(f"A volume has three axes, none of them empty; got shape {np.shape(array)}.")
        if len(spacing) != 3 or not all(math.isfinite(mm) and mm > 0 for mm in spacing):
            raise VolumeError(f"Spacing is three positive numbers of mm; got {spacing}.")
        affine = np.diag([*spacing, 1.0])
        affine[:3, 3] = -0.5 * (np.array(np.shape(array)) - 1) * spacing
        return cls(np.array(array, np.float32, order="C"), nifti_header(affine, np.shape(array)))

    @cached_property
    def geometry(self) -> Geometry:
        """The voxel grid in canonical order."""
        return canonical_geometry(self.native_affine, spatial_shape(self.header))

    @property
    def native_affine(self) -> np.ndarray:
        """Voxel indices in the axis order of the file to mm, float64 (4, 4)."""
        return affine_in_mm(self.header) if self.itk_geometry is None else self.itk_geometry.affine

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
        native = orientation(self.native_affine)
        return cast(np.ndarray, apply_orientation(array, ornt_transform(canonical, native)))


def read_volume(path: str | os.PathLike[str], *, announce: bool = True) -> Volume:
    """Read a three-dimensional scan as float32 in canonical orientation.

    Axes of length 1 after the third remain in `Volume.header` only. NaN or infinite voxels are replaced by 0.

    Args:
        path: a NIfTI, MetaImage or NRRD file, a folder with one DICOM series, or one file of a DICOM series.
        announce: whether to warn if voxels were replaced; `Volume.replaced` always contains their number.

    Raises:
        VolumeError: the file is missing, damaged, of no known format or not a real-valued volume, its header claims
            more data than the file or the memory can hold, it has no valid affine, DICOM slices are missing or of
            several series, or SimpleITK is needed and not installed.
    """
    path = user_path(path)
    header, itk_geometry, stored = _read(path)
    data = _float32(stored, *header.get_slope_inter())
    del stored
    replaced = _replace_invalid(data)
    if replaced and announce:
        warnings.warn(f"{path}: {replaced} NaN or infinite voxels were replaced by 0.", stacklevel=2)
    return Volume(data, header, replaced, itk_geometry)


@dataclass(frozen=True, eq=False)
class ExactValues:
    """The values of a file, not rounded to float32.

    Attributes:
        values: (D, H, W) in canonical order, of the file's own type, int64 or float64; NaN and infinity are 0.
        geometry: the canonical voxel grid.
        step: the distance between neighbouring values if they are integers times a fraction; otherwise 0.
        replaced: number of NaN or infinite voxels that were replaced.
    """

    values: np.ndarray
    geometry: Geometry
    step: float
    replaced: int


def read_exact(path: str | os.PathLike[str]) -> ExactValues:
    """Read a scan whose values are identifiers, such as labels; float32 would merge those above 2**24.

    Integers stay exact if slope and intercept are integers; other values are float64. DICOM is read as float32.

    Raises:
        VolumeError: as in read_volume.
    """
    header, itk_geometry, stored = _read(user_path(path))
    affine = affine_in_mm(header) if itk_geometry is None else itk_geometry.affine
    slope, intercept = header.get_slope_inter()
    values, step = _exact(stored, 1.0 if slope is None else slope, intercept or 0.0)
    replaced = _replace_invalid(values) if values.dtype.kind == "f" else 0
    return ExactValues(values, canonical_geometry(affine, spatial_shape(header)), step, replaced)


def read_geometry(path: str | os.PathLike[str]) -> Geometry:
    """Read the canonical voxel grid of a scan from its headers only.

    A file larger than this machine's memory is accepted, since its shape may be needed for another machine.

    Raises:
        VolumeError: as in read_volume, for all faults of the headers.
    """
    path = user_path(path)
    if is_dicom_scan(path):
        series = read_series(path)
        return canonical_geometry(series.itk_geometry.affine, series.shape)
    check_file(path)
    if suffix_of(path.name) not in NIFTI:
        shape, itk_geometry, _ = read_itk_header(path)
        return canonical_geometry(itk_geometry.affine, (shape[0], shape[1], shape[2]))
    with opened(path) as stream:
        header = read_header(path, stream)
        return canonical_geometry(affine_in_mm(header), spatial_shape(header))


def files_of_scan(path: str | os.PathLike[str]) -> tuple[Path, ...]:
    """Return all files that hold a scan: one, a header and its data file, or the slices of a DICOM series.

    Raises:
        VolumeError: the data file or the series cannot be found.
    """
    path = user_path(path)
    if is_dicom_scan(path):
        return read_series(path).files
    if suffix_of(path.name) in DETACHED:
        return tuple(dict.fromkeys((path, data_file(path))))
    return (path,)


def user_path(path: str | os.PathLike[str]) -> Path:
    """Return the path with ``~`` replaced by the home folder."""
    return Path(os.path.expanduser(path))


def read_shape(path: str | os.PathLike[str]) -> tuple[tuple[int, int, int], tuple[float, float, float]]:
    """Read the shape (D, H, W) and the spacing in mm of a file; see `read_geometry`."""
    geometry = read_geometry(path)
    return geometry.shape, geometry.spacing


def write_volume(path: str | os.PathLike[str], array: np.ndarray, like: Volume) -> None:
    """Write a canonical array (D, H, W) as float32 with the native shape and geometry of `like`.

    The suffix selects the format: NIfTI, MetaImage or NRRD. The write is atomic: each file is complete or absent.
    Header fields that describe the values of `like` (scaling, display window, intent, extensions) are not copied,
    because they do not apply to `array`.

    Raises:
        VolumeError: the suffix or the shape is wrong, the values are not real numbers, or the folder is not writable.
    """
    path = user_path(path)
    _check_destination(path)
    values = np.asarray(array)
    if values.shape != like.data.shape or values.dtype.kind not in "biuf":
        raise VolumeError(
            f"{path}: got an array of shape {values.shape} and type {values.dtype}, expected real numbers of shape "
            f"{like.data.shape}, the grid they are written on; pass the array that belongs to that volume."
        )
    native = like.to_native(values.astype(np.float32, copy=False)).reshape(like.header.get_data_shape(), order="F")
    with _replacing(path) as temporary:
        if suffix_of(path.name) in NIFTI:
            header = _header_for_values(like.header)
            # Pass the header's own affine: nibabel rewrites the geometry fields only if affine and header differ.
            nib.save(_IMAGE_CLASS[type(header)](native, header.get_best_affine(), header), temporary)
        else:
            write_itk(temporary, native, like.itk_geometry or ItkGeometry.of(like.native_affine))


def written_files(path: Path) -> tuple[Path, ...]:
    """Return the files that :func:`write_volume` writes for a name: one, or a data file and its header."""
    return (path.with_suffix(".raw"), path) if suffix_of(path.name) in DETACHED else (path,)


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


def _read(path: Path) -> tuple[Nifti1Header, ItkGeometry | None, np.ndarray]:
    """Return the header, the ITK geometry (None for NIfTI), and the voxels as stored: a view in canonical order."""
    header, itk_geometry, stored = _read_native(path)
    affine = affine_in_mm(header) if itk_geometry is None else itk_geometry.affine
    native = stored.reshape(spatial_shape(header), order="F")
    return header, itk_geometry, cast(np.ndarray, apply_orientation(native, orientation(affine)))


def _read_native(path: Path) -> tuple[Nifti1Header, ItkGeometry | None, np.ndarray]:
    if is_dicom_scan(path):
        series = read_series(path)
        return nifti_header(series.itk_geometry.affine, series.shape), series.itk_geometry, series.voxels()
    check_file(path)
    if suffix_of(path.name) not in NIFTI:
        shape, itk_geometry, reader = read_itk_header(path)
        return nifti_header(itk_geometry.affine, shape), itk_geometry, read_itk_voxels(path, reader)
    with opened(path) as stream:
        header = read_header(path, stream)
        check_memory(path, header.get_data_shape(), header.get_data_dtype().itemsize)
        return header, None, read_voxels(path, stream, header)


def _float32(stored: np.ndarray, slope: float | None, intercept: float | None) -> np.ndarray:
    """Return the physical values, float32 and C-contiguous."""
    data = np.empty(stored.shape, np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # values that overflow float32 are replaced later
        if slope is None or intercept is None or (slope, intercept) == (1.0, 0.0):
            data[...] = stored
        else:  # in float64, one plane at a time: a whole float64 volume may not fit into memory
            for plane in _planes(stored):
                data[plane] = stored[plane] * np.float64(slope) + intercept
    return data


def _exact(stored: np.ndarray, slope: float, intercept: float) -> tuple[np.ndarray, float]:
    """Return values and step of :class:`ExactValues`, still with NaN and infinity."""
    integers = stored.dtype.kind in "iu"
    if integers and (slope, intercept) == (1.0, 0.0):
        return stored, 0.0
    if integers and slope.is_integer() and intercept.is_integer():
        ends = [int(end) * int(slope) + int(intercept) for end in (stored.min(), stored.max())]
        if all(-(1 << 63) <= end < 1 << 63 for end in ends):
            # Integers of numpy are modulo 2**64, so the result is exact even if an intermediate value is too large.
            with np.errstate(over="ignore"):
                return stored.astype(np.int64) * np.int64(int(slope)) + np.int64(int(intercept)), 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        return stored * np.float64(slope) + intercept, abs(slope) if integers else 0.0


def _planes(array: np.ndarray) -> Iterator[tuple[slice, ...]]:
    """Yield the planes of a volume at right angles to the axis with the largest stride in memory."""
    axis = int(np.argmax(np.abs(array.strides)))
    for k in range(array.shape[axis]):
        yield (*[slice(None)] * axis, slice(k, k + 1))


def _replace_invalid(data: np.ndarray) -> int:
    """Replace NaN and infinity by 0, plane by plane, and return their number."""
    replaced = 0
    for plane in _planes(data):
        invalid = ~np.isfinite(data[plane])
        if count := int(np.count_nonzero(invalid)):
            data[plane][invalid] = 0
            replaced += count
    return replaced


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


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Yield a place in a temporary folder beside `path`; on success move its files to `path`; always delete it."""
    folder = path.with_name(f".{uuid.uuid4().hex}")
    written = folder / (stem(path.name) + suffix_of(path.name))  # not every writer takes a suffix in capitals
    try:
        folder.mkdir()
        yield written
        for made, file in zip(written_files(written), written_files(path), strict=True):
            os.replace(made, file)  # the data file first: a header without it could not be read
    except OSError as error:
        raise VolumeError(f"{path} cannot be written ({error.strerror or error}); check the folder and disk.") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
