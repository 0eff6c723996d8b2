"""Reading of a DICOM series as one volume, through SimpleITK, which is an optional dependency.

Slices are ordered by their positions in space, not by their names or numbers. The geometry is computed from the stated
positions and orientations, also for a tilted gantry. Values are in the units of the file, with slope and intercept of
each slice applied (PET: usually Bq/mL).

Source: DICOM PS3.3, C.7.6.2.1.1 (Image Position and Image Orientation).
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ppdm.data.formats import dicom_files
from ppdm.data.geometry import ItkGeometry
from ppdm.data.itk import explained_errors, simple_itk
from ppdm.data.nifti_stream import VolumeError, check_affine, check_memory

SPACING_SHARE = 0.05  # largest deviation of a distance between slices from the median distance, as a share of it

_ORIENTATION_TOLERANCE = 1e-4
_DESCRIPTION, _POSITION, _ORIENTATION = "0008|103e", "0020|0032", "0020|0037"
_SLICES = "0054|0081"  # the number of slices, which PET states
# Storage classes without pixels (PS3.6, table A-1): reports, presentation states, contours, plans, raw data, documents.
_STORAGE = "1.2.840.10008.5.1.4.1.1."
_WITHOUT_PIXELS = ("88.", "11.", "481.3", "481.5", "481.8", "66", "104.", "9.", "4.2")
_WHOLE = "export the series again, completely"


@dataclass(frozen=True, eq=False)
class _Slice:
    path: Path
    size: tuple[int, int]  # columns, rows
    spacing: np.ndarray  # mm along a row and along a column
    directions: np.ndarray  # (3, 2): along a row and along a column, LPS+
    position: np.ndarray  # of the first pixel, mm, LPS+
    announced: int  # number of slices of the series, if the slice states it; otherwise 0


@dataclass(frozen=True, eq=False)
class Series:
    """A DICOM series whose slices form one volume.

    Attributes:
        path: the folder or file that was named.
        files: the slices in spatial order.
        shape: columns, rows and slices.
        itk_geometry: the geometry.
    """

    path: Path
    files: tuple[Path, ...]
    shape: tuple[int, int, int]
    itk_geometry: ItkGeometry

    def voxels(self) -> np.ndarray:
        """Read the physical values, float32 (columns, rows, slices).

        Raises:
            VolumeError: a slice cannot be read, or the volume does not fit into memory.
        """
        check_memory(self.path, self.shape, 4)
        sitk = simple_itk(self.path, "DICOM")
        values = np.empty(self.shape, np.float32, order="F")
        for k, file in enumerate(self.files):
            with explained_errors(file, "DICOM"):
                # Each slice has its own slope, so a common integer type would truncate the values of some slices.
                image = sitk.ReadImage(str(file), sitk.sitkFloat32, imageIO="GDCMImageIO")
                values[..., k] = sitk.GetArrayViewFromImage(image)[0].T
        return values


def read_series(path: Path) -> Series:
    """Find the slices of a series and check that they form one volume.

    Args:
        path: a folder with one series, or one file of the series wanted.

    Raises:
        VolumeError: the folder has several series (the message lists them), slices are missing, unreadable, unevenly
            spaced or of different sizes, or SimpleITK is absent.
    """
    sitk = simple_itk(path, "DICOM")
    folder = path if path.is_dir() else path.parent
    groups = _groups(sitk, folder)
    if not path.is_dir():
        names = next((files for files in groups.values() if path.name in {file.name for file in files}), None)
        if names is None:
            raise VolumeError(f"{path} belongs to no DICOM series that can be read; copy or export it again.")
    elif len(groups) > 1:
        raise VolumeError(_several(sitk, path, groups))
    elif not (names := next(iter(groups.values()), None)):
        raise VolumeError(f"{path} has no DICOM series of images; name the folder that does.")
    return _volume(path, [_read_slice(sitk, file) for file in names])


def _groups(sitk: Any, folder: Path) -> dict[str, list[Path]]:
    """Return the images of a folder by series; refuse files of no series, because a slice could be lost."""
    reader = sitk.ImageSeriesReader
    with explained_errors(folder, "DICOM"):
        groups = {
            uid: [Path(name) for name in reader.GetGDCMSeriesFileNames(str(folder), uid)]
            for uid in reader.GetGDCMSeriesIDs(str(folder))
        }
    known = {file.name for files in groups.values() for file in files}
    unknown = (file for file in dicom_files(folder) if file.name not in known)
    if lost := [file.name for file in unknown if not _has_no_pixels(file)]:
        raise VolumeError(
            f"{folder}: {len(lost)} of its DICOM files cannot be read, such as {lost[0]}; copy or export them again."
        )
    return groups


def _has_no_pixels(file: Path) -> bool:
    """Whether the header of a DICOM file states an object without pixels, such as a report or contours."""
    with open(file, "rb") as stream:
        uid = re.search(rb"\x02\0\x02\0UI..([0-9.]+)", stream.read(1024), re.DOTALL)
    return uid is not None and uid[1].decode().removeprefix(_STORAGE).startswith(_WITHOUT_PIXELS)


def _information(sitk: Any, file: Path) -> Any:
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(file))
    with explained_errors(file, "DICOM"):
        reader.ReadImageInformation()
    return reader


def _several(sitk: Any, folder: Path, groups: dict[str, list[Path]]) -> str:
    lines = [f"{folder} holds {len(groups)} DICOM series, expected one; name one file of the series wanted instead:"]
    for uid, files in groups.items():
        description = _text(_information(sitk, files[0]), _DESCRIPTION) or "no description"
        lines.append(f"{min(files, key=lambda file: file.name).name}: {description}, slices: {len(files)}, UID {uid}")
    return "\n  ".join(lines)


def _text(reader: Any, tag: str) -> str:
    # Only printable characters: a description is shown on a terminal.
    text = reader.GetMetaData(tag).strip() if reader.HasMetaDataKey(tag) else ""
    return "".join(letter for letter in text if letter.isprintable())


def _read_slice(sitk: Any, file: Path) -> _Slice:
    reader = _information(sitk, file)
    size = reader.GetSize()
    if len(size) > 2 and size[2] > 1:
        raise VolumeError(f"{file} holds {size[2]} frames (enhanced DICOM); convert it to NIfTI (dcm2niix).")
    if reader.GetNumberOfComponents() != 1:
        raise VolumeError(f"{file} holds colours, expected one value per pixel; name another series.")
    position, directions = _numbers(reader, _POSITION, 3), _numbers(reader, _ORIENTATION, 6)
    if position is None or directions is None:
        raise VolumeError(f"{file} states no position and orientation in space; {_WHOLE}, or convert it to NIfTI.")
    return _Slice(
        file,
        (size[0], size[1]),
        np.array(reader.GetSpacing()[:2]),
        directions.reshape(2, 3).T,
        position,
        int(count) if (count := _text(reader, _SLICES)).isdecimal() else 0,
    )


def _numbers(reader: Any, tag: str, count: int) -> np.ndarray | None:
    try:
        values = np.array([float(number) for number in _text(reader, tag).split("\\")])
    except ValueError:
        return None
    return values if len(values) == count and np.isfinite(values).all() else None


def _volume(path: Path, slices: list[_Slice]) -> Series:
    first = slices[0]
    for other in slices[1:]:
        same = np.allclose(other.directions, first.directions, atol=_ORIENTATION_TOLERANCE) and np.allclose(
            other.spacing, first.spacing, rtol=1e-4
        )
        if other.size != first.size or not same:
            raise VolumeError(
                f"{path}: {first.path.name} and {other.path.name} of one series differ in size, pixel spacing or "
                "orientation; name a folder with only the slices of one volume."
            )
    if first.announced > len(slices):
        raise VolumeError(f"{path} has {len(slices)} of the {first.announced} slices that its files state; {_WHOLE}.")
    normal = np.cross(*first.directions.T)
    slices = sorted(slices, key=lambda one: float(one.position @ normal))
    step = _step(path, slices, normal)
    columns = np.column_stack([first.directions * first.spacing, step])
    spacing = np.linalg.norm(columns, axis=0)
    with np.errstate(all="ignore"):
        itk_geometry = ItkGeometry(slices[0].position, spacing, columns / spacing)
        check_affine(path, itk_geometry.affine)
    return Series(path, tuple(one.path for one in slices), (*first.size, len(slices)), itk_geometry)


def _step(path: Path, slices: list[_Slice], normal: np.ndarray) -> np.ndarray:
    """Return the vector from one slice to the next in mm; refuse uneven distances."""
    if len(slices) < 2:
        raise VolumeError(f"{path} has one slice, expected a volume of at least two; {_WHOLE}.")
    positions = np.array([one.position @ normal for one in slices])
    gaps = np.diff(positions)
    usual = float(np.median(gaps))
    if (twice := np.flatnonzero(gaps <= 1e-3 * max(usual, 1e-3))).size:
        a, b = slices[twice[0]].path.name, slices[twice[0] + 1].path.name
        raise VolumeError(
            f"{path}: {a} and {b} lie at one position, so the series holds several volumes (times, echoes) or a slice "
            "twice; name a folder with the slices of one volume."
        )
    far = np.flatnonzero(np.abs(gaps - usual) > SPACING_SHARE * usual)
    if far.size:
        k = far[0]
        a, b = slices[k].path.name, slices[k + 1].path.name
        ratio = gaps[k] / usual
        missing = round(ratio) - 1
        whole = missing > 0 and abs(ratio - round(ratio)) <= SPACING_SHARE * round(ratio)
        lost = "1 slice is missing there" if missing == 1 else f"{missing} slices are missing there"
        what = lost if whole else "the spacing is uneven"
        raise VolumeError(
            f"{path}: between {a} and {b} lie {gaps[k]:.4g} mm, between the others {usual:.4g} mm: {what}; {_WHOLE}, "
            "or resample it to even spacing."
        )
    return (slices[-1].position - slices[0].position) / (len(slices) - 1)
