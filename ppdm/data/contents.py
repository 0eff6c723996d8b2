"""One file of a pair, looked at by itself: what it holds, what is wrong with it, and what is odd.

A fault is what training or translation would refuse, or what makes a scan worthless; a remark is what a person should
know and may accept. Nothing of the voxels is kept.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ppdm.data.geometry import Geometry, disagreement
from ppdm.data.normalise import IntensityError, Range, percentile_range
from ppdm.data.volume import Volume, VolumeError, read_geometry, read_volume

DISAGREEMENT_MM = 0.1  # between sform and qform; below, it is the rounding of float32 quaternions
ANISOTROPY = 3.0  # longest over shortest side of a voxel
NEGATIVE_SHARE = 0.05  # of the voxels of a PET scan
SUV_SPAN = (0.1, 100.0)  # the brightest voxels of a PET scan in SUV lie between these, in any tracer in clinical use

_MEND = "check what was exported."


@dataclass(frozen=True)
class Contents:
    """What a file holds that could be read.

    Attributes:
        path: the file.
        geometry: its grid in canonical order, mm.
        low, high: least and largest value, physical; 0 where they were not finite.
        window: percentiles 0.1 and 99.9, from which training makes its scale, or None where they coincide.
        content: fingerprint of shape and values in canonical order; equal for equal images, however they are stored.
        fault: why the values are worthless; empty if they are not.
        remarks: what is odd.
    """

    path: Path
    geometry: Geometry
    low: float
    high: float
    window: Range | None
    content: str
    fault: str
    remarks: tuple[str, ...]


def examine(path: Path, suv_factor: float | None = None) -> Contents:
    """Read a source or target and describe it; `suv_factor` says that it is PET, and its SUV a stored unit.

    Raises:
        VolumeError: it cannot be read.
    """
    volume = read_volume(path, announce=False)
    data = volume.data
    low, high = float(data.min()), float(data.max())
    window, flat = _window(data)
    fault = _worthless(volume) or ("" if suv_factor else flat)
    remarks = list(_remarks_on_file(volume))
    if suv_factor and not fault:
        fault = f"no voxel lies above 0 (the largest is {high:g}), expected an uptake; {_MEND}" if high <= 0 else ""
        remarks += _remarks_on_uptake(data, window, suv_factor)
    return Contents(
        path=path,
        geometry=volume.geometry,
        low=low,
        high=high,
        window=window,
        content=_fingerprint(data),
        fault=f"{path}: {fault}" if fault else "",
        remarks=tuple(f"{path}: {remark}." for remark in remarks),
    )


def examine_mask(path: Path, what: str = "mask", wanted: str = "the region of interest as 1") -> tuple[Geometry, str]:
    """The grid of a mask, and what is wrong with its values; empty if nothing is.

    Args:
        path: the file.
        what: what a message calls it; labels are looked at in the same way.
        wanted: what it should hold.

    Raises:
        VolumeError: it cannot be read.
    """
    volume = read_volume(path, announce=False)
    empty = not (volume.data > 0).any()
    fault = f"{path}: no voxel of the {what} lies above 0, expected {wanted}; export it again."
    return volume.geometry, fault if empty else ""


def geometry_of(path: Path) -> Geometry | None:
    """The grid of a file whose voxels need not be readable, or None if its header is not either."""
    try:
        return read_geometry(path)
    except VolumeError:
        return None


def _window(data: np.ndarray) -> tuple[Range | None, str]:
    """The range that training would use, or why it could not."""
    try:
        return percentile_range(data), ""
    except IntensityError as error:
        return None, str(error)


def _worthless(volume: Volume) -> str:
    data = volume.data
    if volume.replaced == data.size:
        return f"none of its {data.size} voxels is finite, expected an image; {_MEND}"
    # Where 0 stands for nothing but what was not finite, it is no value of the image.
    stands_in = volume.replaced and volume.replaced == np.count_nonzero(data == 0)
    seen = data[data != 0] if stands_in else data
    low, high = seen.min(), seen.max()
    return f"every voxel is {low:g}, expected an image; {_MEND}" if low == high else ""


def _remarks_on_file(volume: Volume) -> Iterator[str]:
    if 0 < volume.replaced < volume.data.size:
        share = volume.replaced / volume.data.size
        yield f"{volume.replaced} NaN or infinite voxels ({share:.2%}) are replaced by 0"
    slope, stored = volume.header.get_slope_inter()[0], volume.header.get_data_dtype()
    if stored.kind in "iu" and slope not in (None, 1.0):
        yield f"stored as {stored.name} with slope {slope:g}, so its values come in steps of {abs(slope):g}"
    if (distance := disagreement(volume.header)) > DISAGREEMENT_MM:
        yield f"its sform, used here, and its qform lie up to {distance:.3g} mm apart, and others may use the qform"
    if max(volume.spacing) > ANISOTROPY * min(volume.spacing):
        yield f"its voxels of {_sizes(volume.spacing)} mm are far from cubes"


def _remarks_on_uptake(data: np.ndarray, window: Range | None, factor: float) -> Iterator[str]:
    negative = np.count_nonzero(data < 0) / data.size
    if negative > NEGATIVE_SHARE:
        yield f"{negative:.0%} of its voxels are negative and become SUV 0"
    brightest = window.high * factor if window else 0.0
    if window and not SUV_SPAN[0] <= brightest <= SUV_SPAN[1]:
        yield (
            f"its brightest voxels have SUV {brightest:.3g}, expected {SUV_SPAN[0]:g} to {SUV_SPAN[1]:g}; check the "
            f"suv_factor {factor:g}"
        )


def _sizes(values: tuple[float, float, float]) -> str:
    return " × ".join(f"{value:.3g}" for value in values)


def _fingerprint(data: np.ndarray) -> str:
    digest = hashlib.sha256(repr(data.shape).encode())
    digest.update(data.data.cast("B"))
    return digest.hexdigest()
