"""Safe reading of untrusted NIfTI files: check the header first, then read the voxels.

The size in the header is compared with the file and with the memory of the machine before anything is allocated. The
voxels are read in chunks, so that memory never exceeds the data in the file. No content of a file is executed.

Sources: NIfTI-1.1 and NIfTI-2, https://nifti.nimh.nih.gov, for the format; zlib, https://zlib.net/zlib_tech.html, for
the maximum expansion of deflate (a factor of 1032).
"""

import gzip
import logging
import math
import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header
from nibabel.spatialimages import HeaderDataError

from ppdm.data.formats import SCANS, SUFFIXES, hint, suffix_of

# Suppresses nibabel's log messages about repaired header fields, which do not contain the file's name.
_SILENT_LOGGER = logging.Logger("nibabel", logging.CRITICAL + 1)

_CHUNK = 1 << 24  # bytes read at a time
DEFLATE_RATIO = 1032  # maximum number of bytes that one byte of gzip data expands to


class VolumeError(ValueError):
    """A volume is refused; the message gives the file, what was found, what was expected and the remedy."""


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Open a file as a stream of decompressed bytes.

    Raises:
        VolumeError: the file system or gzip reports an error, also while the stream is read.
    """
    try:
        opener: Any = gzip.open if is_gzip(path) else open
        with opener(path, "rb") as stream:
            yield stream
    except EOFError:
        raise VolumeError(f"{path} is truncated: its gzip data end too early; copy or download it again.") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise VolumeError(f"{path} is not sound gzip data ({error}); copy or download it again.") from None
    except OSError as error:
        raise VolumeError(f"{path} cannot be read ({error.strerror or error}); check the file.") from None


def is_gzip(path: Path) -> bool:
    """Whether a file is compressed, according to its first bytes; its name may be wrong.

    Raises:
        OSError: the file cannot be read.
    """
    with open(path, "rb") as stream:
        return stream.read(2) == b"\x1f\x8b"


def check_file(path: Path) -> None:
    """Check that a path is a file whose name has the suffix of a volume.

    Raises:
        VolumeError: it does not exist, is not a file, or has another suffix.
    """
    if not os.path.exists(path):
        raise VolumeError(f"{path} does not exist or cannot be reached; check the name and the folder.")
    if not os.path.isfile(path):
        raise VolumeError(f"{path} is not a file; name one scan, {SCANS} (a folder holds several).")
    check_suffix(path, " or a DICOM header")


def check_suffix(path: Path, other: str = "") -> None:
    """Check that a name has the suffix of a volume; `other` is a further possibility for the message.

    Raises:
        VolumeError: it has another suffix.
    """
    if not suffix_of(path.name):
        raise VolumeError(
            f"{path}: got a name ending in {path.suffix!r}, expected {', '.join(SUFFIXES)}{other}; convert or "
            "rename it."
        )


def read_header(path: Path, stream: BinaryIO) -> Nifti1Header:
    """Read and check a header: three axes, further ones only of length 1, and a valid affine. Skip extensions.

    Raises:
        VolumeError: the header is damaged, or does not meet these conditions.
    """
    block = stream.read(Nifti2Header.sizeof_hdr)
    try:
        with np.errstate(all="ignore"):  # a header may hold any numbers; checks follow, so no warnings
            header = _parse_header(path, block)
            _check_values(path, header)
            check_axes(path, header.get_data_shape())
            check_affine(path, header.get_best_affine())
        _check_file_size(path, header)
    except VolumeError:
        raise
    except (HeaderDataError, ValueError, OverflowError) as error:
        raise VolumeError(f"{path} has a damaged NIfTI header ({error}); convert or download it again.") from None
    return header


def _parse_header(path: Path, block: bytes) -> Nifti1Header:
    """Distinguish NIfTI-1 and NIfTI-2 by the magic string; nibabel detects the byte order."""
    for kind, magic in ((Nifti1Header, block[344:348]), (Nifti2Header, block[4:8])):
        if magic == kind.single_magic + b"\0" and len(block) >= kind.sizeof_hdr:
            header = kind(block[: kind.sizeof_hdr], check=False)
            _check_voxel_size(path, header)
            header.check_fix(logger=_SILENT_LOGGER)
            return header
    mend = hint(block) or "convert it to NIfTI"
    raise VolumeError(f"{path} is not a NIfTI file (no header of NIfTI-1 or NIfTI-2 was found); {mend}.")


def _check_voxel_size(path: Path, raw: Nifti1Header) -> None:
    """Refuse a voxel size of 0 if there is no sform; nibabel would silently replace it by 1 mm."""
    sizes = raw["pixdim"][1:4]
    if raw["sform_code"] == 0 and (sizes == 0).any():
        raise VolumeError(
            f"{path} has voxels of {sizes.tolist()} mm and no sform; write the voxel size into its header."
        )


def _check_values(path: Path, header: Nifti1Header) -> None:
    dtype = header.get_data_dtype()
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        label = header.get_value_label("datatype")
        raise VolumeError(f"{path} holds {label} voxels, expected integers or floats up to 64 bits; convert it.")
    header.get_slope_inter()  # raises HeaderDataError if the scaling is not finite


def check_axes(path: Path, shape: tuple[int, ...]) -> None:
    """Check that a shape has three axes; further axes must have length 1.

    Raises:
        VolumeError: it has another shape.
    """
    volumes = math.prod(shape[3:])
    if len(shape) > 3 and volumes > 1 and min(shape) >= 1:
        raise VolumeError(
            f"{path} has {len(shape)} axes of lengths {shape}, which are {volumes} volumes, expected one; split it "
            "into one file per volume (such as with fslsplit or nibabel.four_to_three) and name these."
        )
    if len(shape) < 3 or min(shape) < 1:
        raise VolumeError(
            f"{path} has {len(shape)} axes of lengths {shape}, expected three, none of them empty; write one scalar "
            "volume per file."
        )


def check_affine(path: Path, affine: np.ndarray) -> None:
    """Check that an affine (4, 4) is finite and not singular.

    Raises:
        VolumeError: it is not.
    """
    fault = "" if np.isfinite(affine).all() else "values that are not finite"
    # Volume spanned by the normalised axes: 0 if axes are parallel, NaN if the length of one is zero or infinite.
    volume = abs(np.linalg.det(affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)))
    if not fault and not volume > 1e-6:
        fault = "axes that do not span space (it is singular)"
    if fault:
        raise VolumeError(f"{path} has an affine with {fault}: {affine.tolist()}; repair its header.")


def _check_file_size(path: Path, header: Nifti1Header) -> None:
    """Refuse a header that claims more data than the file can hold at the highest possible compression."""
    limit = path.stat().st_size * (DEFLATE_RATIO if is_gzip(path) else 1)
    held = limit - _data_offset(header)
    if held < _stored_bytes(header):
        raise _too_short(path, header, max(held, 0))


def check_memory(path: Path, shape: Sequence[int], voxel: int) -> None:
    """Check that a volume fits into the memory of this machine; `voxel` is the size of a stored voxel in bytes.

    Raises:
        VolumeError: it does not fit.
    """
    # As stored, in a buffer that grows by an eighth, and as float32 in canonical order.
    needed = math.prod(shape) * (voxel + voxel / 8 + 4)
    if needed > _physical_memory():
        raise VolumeError(
            f"{path} claims {tuple(shape)} voxels, {needed / 2**30:.1f} GiB to read, and this machine has "
            f"{_physical_memory() / 2**30:.1f} GiB of memory; crop it, or check its header."
        )


def _physical_memory() -> int:
    # Windows does not report it. There, only the reading in chunks protects against a false header.
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 1 << 63


def _stored_bytes(header: Nifti1Header) -> int:
    return int(math.prod(header.get_data_shape()) * header.get_data_dtype().itemsize)


def _data_offset(header: Nifti1Header) -> int:
    return int(max(header.get_data_offset(), header.single_vox_offset))  # some writers leave 0


def _too_short(path: Path, header: Nifti1Header, held: int) -> VolumeError:
    return VolumeError(
        f"{path} is truncated: its header claims {header.get_data_shape()} voxels ({_stored_bytes(header)} bytes), the "
        f"file holds at most {held} bytes of them; copy or download it again, or repair its header."
    )


def read_voxels(path: Path, stream: BinaryIO, header: Nifti1Header) -> np.ndarray:
    """Read the voxels as stored, in native order; memory never exceeds the data in the stream.

    Raises:
        VolumeError: the stream ends too early.
    """
    count = _stored_bytes(header)
    stream.seek(_data_offset(header))
    stored = bytearray()
    while piece := stream.read(min(_CHUNK, count - len(stored))):
        stored += piece
    if len(stored) < count:
        raise _too_short(path, header, len(stored))
    stream.read(1)  # gzip verifies its checksum only at the end of the stream
    return np.frombuffer(stored, header.get_data_dtype()).reshape(header.get_data_shape(), order="F")
