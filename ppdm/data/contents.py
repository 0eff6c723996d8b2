"""Check one file of a pair: its contents, its faults and its remarks.

A fault is something that training or translation would refuse, or that makes a scan useless. A remark is something
unusual that a user should notice and may accept. The voxels are not kept in memory.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage

from ppdm.data.geometry import Geometry, disagreement
from ppdm.data.normalise import IntensityError, Range, percentile_range
from ppdm.data.regions import LESIONS, RegionError, check_regions, read_labels, read_names
from ppdm.data.volume import Volume, VolumeError, read_geometry, read_volume

DISAGREEMENT_MM = 0.1  # between sform and qform; smaller values come from the rounding of float32 quaternions
ANISOTROPY = 3.0  # longest divided by shortest side of a voxel
NEGATIVE_SHARE = 0.05  # share of negative voxels in a PET scan
HIGHEST_AIR = -500.0  # HU; air is -1000, so every CT of a body or of a phantom in air has values below this
NOT_HU = f"no value below {HIGHEST_AIR:g} and so no air of CT (-1000 HU); check that its values are HU"
SUV_SPAN = (0.1, 100.0)  # SUV of the brightest voxels of a PET scan, for every tracer in clinical use

_MEND = "check what was exported."


@dataclass(frozen=True)
class Contents:
    """Contents of a readable file.

    Attributes:
        path: the file.
        geometry: its grid in canonical order, mm.
        low, high: smallest and largest physical value; values that are not finite count as 0.
        window: percentiles 0.1 and 99.9, which define the scale in training; None if they are equal.
        content: hash of shape and values in canonical order; equal for equal images, however they are stored.
        fault: why the values are unusable; empty if they are usable.
        remarks: unusual properties.
        faults_inside: why the values in the mask or in a region are unusable.
    """

    path: Path
    geometry: Geometry
    low: float
    high: float
    window: Range | None
    content: str
    fault: str
    remarks: tuple[str, ...]
    faults_inside: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Annotation:
    """Contents of a mask or label file, which lies on the grid of a source.

    Attributes:
        path: the file.
        geometry: the grid.
        values: boolean mask, or numbers of regions, (D, H, W); None if they are unusable.
        names: names of the regions; None if there is no table or no region.
        faults: why the file is unusable; empty if it is usable.
        remarks: unusual properties.
    """

    path: Path
    geometry: Geometry
    values: np.ndarray | None
    names: Mapping[int, str] | None = None
    faults: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()


def examine(
    path: Path,
    suv_factor: float | None = None,
    *,
    in_hu: bool = False,
    mask: Annotation | None = None,
    labels: Annotation | None = None,
) -> Contents:
    """Read and describe a source or target.

    Args:
        path: the file.
        suv_factor: SUV per stored unit, for PET only.
        in_hu: whether it is CT.
        mask, labels: mask and labels of a target, in which it is compared with a translation.

    Raises:
        VolumeError: the file cannot be read.
    """
    volume = read_volume(path, announce=False)
    data = volume.data
    low, high = float(data.min()), float(data.max())
    window, flat = _window(data)
    fault = _fault_of_image(volume) or ("" if suv_factor else flat)
    remarks = list(_remarks_on_file(volume))
    if suv_factor and not fault:
        fault = _without_uptake(high, suv_factor)
        remarks += _remarks_on_uptake(data, window, suv_factor)
    if in_hu and not fault and not resembles_hu(data):
        remarks.append(f"it has {NOT_HU}")
    inside = () if fault else (*_faults_in_mask(data, mask), *(_faults_in_regions(data, labels) if suv_factor else ()))
    return Contents(
        path=path,
        geometry=volume.geometry,
        low=low,
        high=high,
        window=window,
        content=_fingerprint(data),
        fault=f"{path}: {fault}" if fault else "",
        remarks=tuple(f"{path}: {remark}." for remark in remarks),
        faults_inside=tuple(f"{path}: {text}" for text in inside),
    )


def examine_mask(path: Path) -> Annotation:
    """Read a mask.

    Raises:
        VolumeError: the file cannot be read.
    """
    volume = read_volume(path, announce=False)
    inside = volume.data > 0
    empty = f"{path}: no voxel of the mask lies above 0, expected the region of interest as 1; export it again."
    faults = () if inside.any() else (empty,)
    return Annotation(
        path, volume.geometry, None if faults else inside, None, faults, _remark_on_invalid(path, volume.replaced)
    )


def examine_labels(path: Path) -> Annotation:
    """Read labels and the table of their names, with all faults.

    Raises:
        VolumeError: the file cannot be read.
    """
    faults, labels, names = [], None, None
    try:
        names = read_names(path)
    except RegionError as error:
        faults.append(str(error))
    try:
        labels = read_labels(path)
        check_regions(np.unique(labels.numbers).tolist(), names, path)
    except RegionError as error:
        faults.insert(0, str(error))
    geometry = labels.geometry if labels else read_geometry(path)
    remarks = _remark_on_invalid(path, labels.replaced) if labels else ()
    return Annotation(path, geometry, labels.numbers if labels and not faults else None, names, tuple(faults), remarks)


def resembles_hu(data: np.ndarray) -> bool:
    """Whether a volume of CT may be in HU: it has values of air."""
    return bool(data.min() < HIGHEST_AIR)


def _without_uptake(high: float, suv_factor: float) -> str:
    with np.errstate(over="ignore", under="ignore"):
        suv = float(np.float32(high) * np.float32(suv_factor))
    if high <= 0:
        return f"no voxel lies above 0 (the largest is {high:g}), expected an uptake; {_MEND}"
    if not 0 < suv < np.inf:
        return f"its largest value {high:g} times the suv_factor {suv_factor:g} is not an SUV; check the factor."
    return ""


def _faults_in_mask(data: np.ndarray, mask: Annotation | None) -> Iterator[str]:
    """Yield a fault if the image is constant in the mask, because relative errors are then not defined."""
    if mask is None or mask.values is None or mask.values.shape != data.shape:
        return
    inside = data[mask.values]
    if inside.min() == inside.max():
        yield f"every voxel in the mask {mask.path} is {inside[0]:g}, expected an image; check the mask."


def _faults_in_regions(data: np.ndarray, labels: Annotation | None) -> Iterator[str]:
    """Yield a fault for each region or lesion without uptake, where a relative bias is not defined."""
    if labels is None or labels.values is None or labels.values.shape != data.shape:
        return
    found, region = np.unique(labels.values, return_inverse=True)
    region = region.reshape(data.shape)
    for rank, number in enumerate(found.tolist()):
        name = str(number) if labels.names is None else labels.names.get(number, "")
        if number == 0 or not name:
            continue
        parts = (region == rank).astype(np.int32)
        if name in LESIONS:
            parts, _ = ndimage.label(parts, np.ones((3, 3, 3)))
        each = range(1, parts.max() + 1)
        if min(*ndimage.maximum(data, parts, each), *ndimage.mean(data.astype(np.float64), parts, each)) <= 0:
            yield (
                f"region {name} of {labels.path} has no positive uptake, so its bias is not defined; leave it out of "
                "the labels or of their table."
            )


def _remark_on_invalid(path: Path, count: int) -> tuple[str, ...]:
    return (f"{path}: {count} NaN or infinite voxels count as 0, which is outside.",) if count else ()


def geometry_of(path: Path) -> Geometry | None:
    """Return the grid of a file whose voxels may be unreadable; None if its header is unreadable too."""
    try:
        return read_geometry(path)
    except VolumeError:
        return None


def _window(data: np.ndarray) -> tuple[Range | None, str]:
    """Return the range for training, or None and the reason why there is none."""
    try:
        return percentile_range(data), ""
    except IntensityError as error:
        return None, str(error)


def _fault_of_image(volume: Volume) -> str:
    """Return why a volume is no image: no finite voxel, or a single value; empty if it is one."""
    data = volume.data
    if volume.replaced == data.size:
        return f"none of its {data.size} voxels is finite, expected an image; {_MEND}"
    # If every 0 replaces a voxel that was not finite, 0 is not a value of the image.
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
    # A file of another format has a single geometry; the qform of its header, which has no shear, is not in the file.
    if volume.itk_geometry is None and (distance := disagreement(volume.header)) > DISAGREEMENT_MM:
        yield f"its sform, used here, and its qform lie up to {distance:.3g} mm apart, and others may use the qform"
    if max(volume.spacing) > ANISOTROPY * min(volume.spacing):
        yield f"its voxels of {as_text(volume.spacing)} mm are far from cubes"


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


def as_text(values: Iterable[float]) -> str:
    """Return numbers for a message, such as ``1 × 1 × 2.5``."""
    return " × ".join(f"{value:.3g}" for value in values)


def _fingerprint(data: np.ndarray) -> str:
    digest = hashlib.sha256(repr(data.shape).encode())
    digest.update(data.data.cast("B"))
    return digest.hexdigest()
