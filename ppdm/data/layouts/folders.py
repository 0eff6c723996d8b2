"""Search a folder for NIfTI files in one pass."""

import os
from collections.abc import Iterator
from pathlib import Path, PurePath

from ppdm.data.volume import SUFFIXES


def nifti_files(folder: str | os.PathLike[str]) -> tuple[list[str], list[str], list[str]]:
    """Find the .nii and .nii.gz files of a folder.

    Hidden files and folders are skipped, because macOS writes files such as `._x.nii.gz` next to x.nii.gz. Links to
    files are followed. Links to folders outside this folder are followed once each. Links to folders inside it are not
    followed, since their files are found anyway.

    Returns:
        (NIfTI files, other files, folders that could not be listed). The paths are sorted. Those of files are relative
        to the folder and have forward slashes.
    """
    images: list[str] = []
    others: list[str] = []
    closed: list[str] = []
    for name in _walk(Path(folder), closed):
        (images if name.lower().endswith(SUFFIXES) else others).append(name)
    return sorted(images), sorted(others), sorted(closed)


def _walk(folder: Path, closed: list[str]) -> Iterator[str]:
    entered = {os.path.realpath(folder)}
    places = os.walk(folder, onerror=lambda error: closed.append(str(error.filename)), followlinks=True)
    for place, folders, names in places:
        # Sorted, so that the same one of two links is followed in every run.
        shown = sorted(name for name in folders if not name.startswith("."))
        folders[:] = [name for name in shown if _leads_on(os.path.join(place, name), entered)]
        relative = PurePath(os.path.relpath(place, folder))
        yield from ((relative / name).as_posix() for name in names if not name.startswith("."))


def _leads_on(place: str, entered: set[str]) -> bool:
    """Whether to enter a folder; a link is skipped if its target is, or is inside, a folder in ``entered``."""
    if not os.path.islink(place):
        return True
    goal = os.path.realpath(place)
    if any(Path(goal).is_relative_to(known) for known in entered):
        return False
    entered.add(goal)
    return True
