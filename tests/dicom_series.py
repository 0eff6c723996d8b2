"""SimpleITK images, and DICOM series of their slices, for tests."""

import locale
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import SimpleITK as sitk

SHAPE = (7, 6, 5)


def rotation(seed: int = 0) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))[0]


def tilt(angle: float = 0.3) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[1, 0, 0], [0, c, -s], [0, s, c]])


def values(shape: tuple[int, ...] = SHAPE, dtype: type = np.int16) -> np.ndarray:
    return np.random.default_rng(0).integers(-900, 900, shape).astype(dtype)


def image(array: np.ndarray | None = None, direction: np.ndarray | None = None) -> sitk.Image:
    """Return an oblique image; the axes of the array are in file order, (i, j, k)."""
    made = sitk.GetImageFromArray((values() if array is None else array).T)
    made.SetSpacing((0.7, 1.1, 2.3))
    made.SetOrigin((-111.3, 42.7, 100.123456789))
    made.SetDirection((rotation() if direction is None else direction).ravel())
    return made


def dicom(
    folder: Path,
    source: sitk.Image | None = None,
    uid: str = "1.2.3.1",
    description: str = "T1 axial",
    pet: bool = False,
    skip: Iterable[int] = (),
    prefix: str = "IM",
) -> Path:
    """Write a series of MR or PET slices whose file names are not in spatial order, and return the folder."""
    source = image(direction=tilt()) if source is None else source
    folder.mkdir(parents=True, exist_ok=True)
    direction = np.reshape(source.GetDirection(), (3, 3))
    for k in set(range(source.GetSize()[2])) - set(skip):
        one = source[:, :, k : k + 1]
        tags = {
            "0008|0060": "PT" if pet else "MR",
            "0008|0016": "1.2.840.10008.5.1.4.1.1." + ("128" if pet else "4"),
            "0008|0018": f"{uid}.{k + 1}",
            "0008|103e": description,
            "0020|000d": "1.2.3",
            "0020|000e": uid,
            "0020|0013": str(k + 1),
            "0020|0032": "\\".join(f"{x:.9g}" for x in source.TransformIndexToPhysicalPoint((0, 0, k))),
            "0020|0037": "\\".join(f"{x:.9g}" for x in direction[:, :2].T.ravel()),
        }
        for tag, text in tags.items():
            one.SetMetaData(tag, text)
        save_slice(one, folder / f"{prefix}{(7 * k) % 11:04d}.dcm")
    return folder


def save_slice(one: sitk.Image, path: Path) -> None:
    """Write an image of one slice, and keep its tags."""
    before = locale.setlocale(locale.LC_CTYPE)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    writer.SetFileName(str(path))
    writer.Execute(one)
    locale.setlocale(locale.LC_CTYPE, before)  # the DICOM writer, unlike the reader, changes it to C
