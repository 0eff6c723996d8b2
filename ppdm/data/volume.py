"""NIfTI volumes: one orientation inside the program, the file's own geometry outside.

Axes. Inside, a volume is (D, H, W) in the axis order of nibabel's closest canonical (RAS+) orientation: D runs from
left to right, H from posterior to anterior, W from inferior to superior. The affine maps voxel indices (d, h, w) to mm.
On writing, the header that was read goes out again, so that shape, affine, codes and units return bit for bit.

Headers are not believed: what they claim is compared with the file and with the memory of the machine before anything
is allocated, and the voxels are read in pieces, so that no more is held than the file delivers.

Source of the format: NIfTI-1.1 and NIfTI-2, https://nifti.nimh.nih.gov.
"""

import gzip
import math
import os
import uuid
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any, BinaryIO, cast

import nibabel as nib
import numpy as np
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation, ornt_transform
from nibabel.spatialimages import HeaderDataError

SUFFIXES = (".nii", ".nii.gz")
GRID_TOLERANCE_MM = 1e-3

_CHUNK = 1 << 24  # bytes read at a time
_DEFLATE_RATIO = 1032  # no byte of gzip data expands to more
_MM_PER_UNIT = {1: 1e3, 2: 1.0, 3: 1e-3}  # the spatial bits of xyzt_units: metre, millimetre, micrometre
_IMAGE_CLASS = {Nifti1Header: nib.Nifti1Image, Nifti2Header: nib.Nifti2Image}


class VolumeError(ValueError):
    """A volume is refused; the message names the file, what was found, what was expected and how to mend it."""


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
        shape = _canonical_grid(self.header)[0]
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
    def affine(self) -> np.ndarray:
        """Canonical voxel indices (d, h, w, 1) to mm, float64 (4, 4)."""
        return _canonical_grid(self.header)[1]

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size in mm along D, H and W."""
        return _spacing(self.affine)

    def to_native(self, array: np.ndarray) -> np.ndarray:
        """Turn a canonical (D, H, W) array back into the axis order and directions of the file."""
        canonical = np.array([[0, 1], [1, 1], [2, 1]])
        native = io_orientation(self.header.get_best_affine())
        return cast(np.ndarray, apply_orientation(array, ornt_transform(canonical, native)))


def read_volume(path: str | os.PathLike[str]) -> Volume:
    """Read a three-dimensional .nii or .nii.gz file as float32 in canonical orientation.

    Trailing axes of length 1 are dropped. Warns where NaN or infinite voxels were replaced by 0.

    Raises:
        VolumeError: the file is missing, damaged, not NIfTI, not a real-valued volume, larger than it can be, or has
            no usable affine.
    """
    path = Path(path)
    with _opened(path) as stream:
        header = _read_header(path, stream)
        _check_memory(path, header)
        stored = _read_voxels(path, stream, header)
    data = _canonical_values(stored, header)
    invalid = ~np.isfinite(data)
    replaced = int(np.count_nonzero(invalid))
    if replaced:
        data[invalid] = 0.0
        warnings.warn(f"{path}: {replaced} NaN or infinite voxels were replaced by 0.", stacklevel=2)
    return Volume(data, header, replaced)


def read_shape(path: str | os.PathLike[str]) -> tuple[tuple[int, int, int], tuple[float, float, float]]:
    """Shape (D, H, W) and spacing in mm of a file, canonical, from its header alone.

    A file larger than this machine's memory is accepted: its shape may be wanted for another machine.

    Raises:
        VolumeError: as read_volume, for everything that a header can tell.
    """
    path = Path(path)
    with _opened(path) as stream:
        shape, affine = _canonical_grid(_read_header(path, stream))
    return shape, _spacing(affine)


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


def check_same_grid(a: Volume, b: Volume, names: tuple[str, str]) -> None:
    """Refuse two volumes whose shapes differ or whose corner voxels lie more than 1e-3 mm apart.

    Raises:
        VolumeError: names both (`names`) and says how far apart they are.
    """
    mend = "resample one of them onto the grid of the other first."
    if a.data.shape != b.data.shape:
        raise VolumeError(
            f"{names[0]} and {names[1]} must share one grid, but their shapes are {a.data.shape} and "
            f"{b.data.shape}; {mend}"
        )
    # The distance between two affine maps of a box is convex, so its largest value is found at a corner.
    corners = np.array([(*corner, 1) for corner in product(*((0, size - 1) for size in a.data.shape))])
    distance = float(np.linalg.norm(corners @ (a.affine - b.affine).T, axis=1).max())
    if not distance <= GRID_TOLERANCE_MM:
        raise VolumeError(
            f"{names[0]} and {names[1]} must share one grid, but their voxels lie up to {distance:.4g} mm apart "
            f"(allowed: {GRID_TOLERANCE_MM:g} mm); {mend}"
        )


# Reading


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """The decompressed bytes of a file; faults of the file system and of gzip become a VolumeError."""
    if not os.path.exists(path):
        raise VolumeError(f"{path} does not exist or cannot be reached; check the name and the folder.")
    if not os.path.isfile(path):
        raise VolumeError(f"{path} is not a file; name one .nii or .nii.gz file (a folder holds several).")
    _check_suffix(path)
    opener: Any = gzip.open if _is_gzip(path) else open
    try:
        with opener(path, "rb") as stream:
            yield stream
    except EOFError:
        raise VolumeError(f"{path} is truncated: its gzip data end too early; copy or download it again.") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise VolumeError(
            f"{path} is not sound gzip data ({error}); copy it again, or rename it to .nii if it is not compressed."
        ) from None
    except OSError as error:
        raise VolumeError(f"{path} cannot be read ({error.strerror or error}); check the file.") from None


def _is_gzip(path: Path) -> bool:
    return path.name.lower().endswith(".gz")


def _check_suffix(path: Path) -> None:
    if not path.name.lower().endswith(SUFFIXES):
        raise VolumeError(f"{path}: got a name ending in {path.suffix!r}, expected .nii or .nii.gz; convert or rename.")


def _read_header(path: Path, stream: BinaryIO) -> Nifti1Header:
    """The header, three-dimensional and with a usable affine, or a VolumeError. Extensions are not read."""
    block = stream.read(Nifti2Header.sizeof_hdr)
    try:
        with np.errstate(all="ignore"):  # numbers of any kind may stand there; they are checked, not warned of
            header = _parse_header(path, block)
            _check_values(path, header)
            _drop_singleton_axes(path, header)
            _check_affine(path, header.get_best_affine())
        _check_file_size(path, header)
    except VolumeError:
        raise
    except (HeaderDataError, ValueError, OverflowError) as error:
        raise VolumeError(f"{path} has a damaged NIfTI header ({error}); convert or download it again.") from None
    return header


def _parse_header(path: Path, block: bytes) -> Nifti1Header:
    """Tell NIfTI-1 from NIfTI-2 by the magic string; nibabel finds the byte order."""
    for kind, magic in ((Nifti1Header, block[344:348]), (Nifti2Header, block[4:8])):
        if magic == kind.single_magic + b"\0" and len(block) >= kind.sizeof_hdr:
            return kind(block[: kind.sizeof_hdr])
    hint = "it is gzip data: rename it to .nii.gz" if block[:2] == b"\x1f\x8b" else "convert it to NIfTI"
    raise VolumeError(f"{path} is not a NIfTI file (no header of NIfTI-1 or NIfTI-2 was found); {hint}.")


def _check_values(path: Path, header: Nifti1Header) -> None:
    dtype = header.get_data_dtype()
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        label = header.get_value_label("datatype")
        raise VolumeError(f"{path} holds {label} voxels, expected integers or floats up to 64 bits; convert it.")
    header.get_slope_inter()  # raises HeaderDataError where the scaling is not finite


def _drop_singleton_axes(path: Path, header: Nifti1Header) -> None:
    shape = header.get_data_shape()
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3 or min(shape) < 1:
        raise VolumeError(
            f"{path} has {len(shape)} axes of lengths {shape}, expected three, none of them empty; write one scalar "
            "volume a file."
        )
    header.set_data_shape(shape)


def _check_affine(path: Path, affine: np.ndarray) -> None:
    fault = "" if np.isfinite(affine).all() else "values that are not finite"
    # The volume spanned by unit axes: 0 where axes coincide, NaN where one has no length or an infinite one.
    volume = abs(np.linalg.det(affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)))
    # nibabel, which turns the axes, must see three of them as well.
    if not fault and not (volume > 1e-6 and np.isfinite(io_orientation(affine)).all()):
        fault = "axes that do not span space (it is singular)"
    if fault:
        raise VolumeError(f"{path} has an affine with {fault}: {affine.tolist()}; repair its sform or qform.")


def _check_file_size(path: Path, header: Nifti1Header) -> None:
    """What the header claims must fit into the file, however well it was compressed."""
    limit = path.stat().st_size * (_DEFLATE_RATIO if _is_gzip(path) else 1)
    held = limit - _data_offset(header)
    if held < _stored_bytes(header):
        raise _too_short(path, header, max(held, 0))


def _check_memory(path: Path, header: Nifti1Header) -> None:
    # As stored, as float32, and in canonical order.
    needed = _stored_bytes(header) + 8 * math.prod(header.get_data_shape())
    if needed > _physical_memory():
        raise VolumeError(
            f"{path} claims {header.get_data_shape()} voxels, {needed / 2**30:.1f} GiB to read, and this machine has "
            f"{_physical_memory() / 2**30:.1f} GiB of memory; crop it, or check its header."
        )


def _physical_memory() -> int:
    # Where the system does not tell (Windows), reading in pieces is what protects from a lying header.
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 1 << 63


def _stored_bytes(header: Nifti1Header) -> int:
    return int(math.prod(header.get_data_shape()) * header.get_data_dtype().itemsize)


def _data_offset(header: Nifti1Header) -> int:
    return int(max(header.get_data_offset(), header.single_vox_offset))  # some writers leave 0


def _too_short(path: Path, header: Nifti1Header, held: int) -> VolumeError:
    return VolumeError(
        f"{path} is truncated: its header claims {header.get_data_shape()} voxels ({_stored_bytes(header)} bytes), the "
        f"file holds at most {held} bytes of them; copy or download it again."
    )


def _read_voxels(path: Path, stream: BinaryIO, header: Nifti1Header) -> np.ndarray:
    """The voxels as stored, in native order; never allocates more than the stream delivers."""
    count = _stored_bytes(header)
    stream.seek(_data_offset(header))
    stored = bytearray()
    while piece := stream.read(min(_CHUNK, count - len(stored))):
        stored += piece
    if len(stored) < count:
        raise _too_short(path, header, len(stored))
    stream.read(1)  # gzip checks its checksum only where its end is reached
    return np.frombuffer(stored, header.get_data_dtype()).reshape(header.get_data_shape(), order="F")


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


# Geometry


def _canonical_grid(header: Nifti1Header) -> tuple[tuple[int, int, int], np.ndarray]:
    """Shape and affine (mm) of the canonical grid of a header."""
    native, shape = header.get_best_affine(), header.get_data_shape()
    orientation = io_orientation(native)
    affine = native @ inv_ornt_aff(orientation, shape)
    affine[:3] *= _MM_PER_UNIT.get(int(header["xyzt_units"]) & 7, 1.0)
    d, h, w = (shape[axis] for axis in np.argsort(orientation[:, 0]))
    return (d, h, w), affine


def _spacing(affine: np.ndarray) -> tuple[float, float, float]:
    d, h, w = np.linalg.norm(affine[:3, :3], axis=0).tolist()
    return d, h, w


# Writing


def _check_destination(path: Path) -> None:
    _check_suffix(path)
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
    suffix = ".nii.gz" if _is_gzip(path) else ".nii"
    temporary = path.with_name(f".{uuid.uuid4().hex}{suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise VolumeError(f"{path} cannot be written ({error.strerror or error}); check the folder and disk.") from None
    finally:
        temporary.unlink(missing_ok=True)
