"""Atomic file writes: a file is complete or absent, even if the process is killed or the disk is full."""

import os
import re
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path


def write_together(contents: Mapping[Path, bytes]) -> None:
    """Write all files to temporary files on the disk, then move them into place in the given order.

    After the return, the files survive a crash of the machine. A process that is killed during the call may leave
    temporary files beside them, which :func:`leftovers` finds.

    Raises:
        OSError: a file cannot be written; an existing file in its place is unchanged.
    """
    beside = {place: place.with_name(f".{place.name}.{uuid.uuid4().hex}") for place in contents}
    try:
        for place, content in contents.items():
            with beside[place].open("wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
        for place, temporary in beside.items():
            os.replace(temporary, place)
    finally:
        for temporary in beside.values():
            temporary.unlink(missing_ok=True)
    for folder in {place.parent for place in contents}:
        _flush_names(folder)


@contextmanager
def replacing(path: Path, suffix: str = "") -> Iterator[Path]:
    """Yield a temporary path in the folder of ``path``; the file written there is moved to ``path`` on success.

    On an error it is removed, and a file at ``path`` is unchanged. Unlike :func:`write_together`, this does not
    wait for the disk: the file is complete or absent after a crash of the process, but perhaps not of the machine.

    Args:
        path: the file to write.
        suffix: suffix of the temporary file, for libraries that choose the format by it.
    """
    temporary = path.with_name(f".{uuid.uuid4().hex}{suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink()


def leftovers(folder: Path) -> list[Path]:
    """Return temporary files that killed processes left in a folder during :func:`write_together`."""
    return [path for path in folder.glob(".*") if re.fullmatch(r"\..+\.[0-9a-f]{32}", path.name)]


def _flush_names(folder: Path) -> None:
    """Flush the file names in a folder to the disk, if the file system supports it."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
