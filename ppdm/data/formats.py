"""File formats of volumes, recognised by name (NIfTI, MetaImage, NRRD) or by content (DICOM).

A scan is one file of the first three formats, or a DICOM series: slices in one folder, named by the folder or by one of
the slices.
"""

import os
from collections.abc import Iterator
from pathlib import Path

NIFTI = (".nii", ".nii.gz")
METAIMAGE = (".mha", ".mhd")
NRRD = (".nrrd", ".nhdr")
SUFFIXES = (*NIFTI, *METAIMAGE, *NRRD)
DETACHED = (".mhd", ".nhdr")  # headers that name a second file, which holds the voxels

SCANS = "NIfTI, MetaImage, NRRD or DICOM"

_MAGIC = b"DICM"  # at byte 128 of every DICOM file (PS3.10, section 7.1)


def suffix_of(name: str) -> str:
    """Return the suffix of a volume's file name in lower case, such as ``.nii.gz``; empty for other names."""
    return next((suffix for suffix in reversed(SUFFIXES) if name.lower().endswith(suffix)), "")


def stem(name: str) -> str:
    """Return a file name without the suffix of a volume."""
    return name[: len(name) - len(suffix_of(name))]


def hint(content: bytes) -> str:
    """Return a remedy for a file whose first bytes show another format than its name; empty if they show none."""
    if content[128:132] == _MAGIC:
        return "it is DICOM: let its name end in .dcm"
    kinds = {b"NRRD000": "NRRD: rename it to .nrrd", b"ObjectType": "MetaImage: rename it to .mha"}
    kinds |= {b"\x1f\x8b": "gzip data, probably NIfTI: rename it to .nii.gz"}
    return next((f"it is {kind}" for start, kind in kinds.items() if content.startswith(start)), "")


def is_dicom(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a file of a DICOM series; the index DICOMDIR is not."""
    name = os.path.basename(path)
    if name.startswith(".") or name == "DICOMDIR" or suffix_of(name) or not os.path.isfile(path):
        return False
    try:
        with open(path, "rb") as stream:
            return stream.read(132)[128:] == _MAGIC
    except OSError:
        return False


def dicom_files(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield the DICOM files directly in a folder, sorted by name; none if it cannot be listed."""
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return
    yield from (place for name in names if is_dicom(place := Path(folder, name)))


def is_dicom_scan(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a DICOM file or a folder that contains some."""
    return any(dicom_files(path)) if os.path.isdir(path) else is_dicom(path)


def scans_in(folder: Path) -> dict[str, list[Path]]:
    """Return the scans directly in a folder by name without suffix: files, and subfolders with a DICOM series."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if not path.name.startswith(".") and (suffix_of(path.name) or (path.is_dir() and is_dicom_scan(path))):
            found.setdefault(stem(path.name), []).append(path)
    return found
