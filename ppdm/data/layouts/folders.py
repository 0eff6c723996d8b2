"""The NIfTI files of a folder, found in one pass."""

import os
from collections.abc import Iterator
from pathlib import Path, PurePath

from ppdm.data.volume import SUFFIXES


def nifti_files(folder: str | os.PathLike[str]) -> tuple[list[str], list[str], list[str]]:
    """The paths, relative to the folder with forward slashes and sorted, of its .nii and .nii.gz files.

    Hidden files and folders are passed by: `._x.nii.gz` is what macOS leaves beside x.nii.gz. Links to files are
    followed, and links to folders that lie elsewhere, once each; what lies in the folder itself is found without them.

    Returns:
        (NIfTI files, other files, folders that could not be listed).
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
        shown = sorted(name for name in folders if not name.startswith("."))  # of two links the same one leads on
        folders[:] = [name for name in shown if _leads_on(os.path.join(place, name), entered)]
        relative = PurePath(os.path.relpath(place, folder))
        yield from ((relative / name).as_posix() for name in names if not name.startswith("."))


def _leads_on(place: str, entered: set[str]) -> bool:
    """Whether a folder is to be entered; a link is not if where it leads was entered by name or lies below such."""
    if not os.path.islink(place):
        return True
    goal = os.path.realpath(place)
    if any(Path(goal).is_relative_to(known) for known in entered):
        return False
    entered.add(goal)
    return True
