"""Search a folder and its subfolders for scans in one pass."""

import os
from collections.abc import Iterator
from pathlib import Path, PurePath

from ppdm.data.formats import is_dicom, suffix_of


def scan_files(folder: str | os.PathLike[str]) -> tuple[list[str], list[str], list[str]]:
    """Find the scans below a folder: volume files, and folders that directly contain DICOM files.

    Hidden files and folders are skipped, because macOS writes files such as `._x.nii.gz` next to x.nii.gz. Links to
    files are followed. Links to folders outside this folder are followed once each. Links to folders inside it are not
    followed, since their files are found anyway.

    Returns:
        (scans, other files, folders that could not be listed). The paths are sorted. Those of scans and files are
        relative to the folder and have forward slashes; ``.`` is the folder itself.
    """
    scans: list[str] = []
    others: list[str] = []
    unlistable: list[str] = []
    for place, names in _walk(Path(folder), unlistable):
        series, plain = False, []
        for name in names:
            if suffix_of(name):
                scans.append((place / name).as_posix())
            elif series or is_dicom(Path(folder, place, name)):  # one slice is enough
                series = True
            else:
                plain.append((place / name).as_posix())
        others += [] if series else plain
        scans += [place.as_posix()] if series else []
    return sorted(scans), sorted(others), sorted(unlistable)


def _walk(folder: Path, unlistable: list[str]) -> Iterator[tuple[PurePath, list[str]]]:
    """Yield every folder, relative to the first, with its files that are not hidden."""
    entered = {os.path.realpath(folder)}
    places = os.walk(folder, onerror=lambda error: unlistable.append(str(error.filename)), followlinks=True)
    for place, folders, names in places:
        # Sorted, so that the same one of two links is followed in every run.
        shown = sorted(name for name in folders if not name.startswith("."))
        folders[:] = [name for name in shown if _is_entered(os.path.join(place, name), entered)]
        yield PurePath(os.path.relpath(place, folder)), sorted(name for name in names if not name.startswith("."))


def _is_entered(place: str, entered: set[str]) -> bool:
    """Whether to enter a folder: not if it is in ``entered``, nor if it is a link to a folder inside one of these."""
    destination = os.path.realpath(place)
    if not os.path.islink(place):
        return destination not in entered  # it may be if a link led to a folder above it
    if any(Path(destination).is_relative_to(known) for known in entered):
        return False
    entered.add(destination)
    return True
