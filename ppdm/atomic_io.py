"""Files that are there whole or not at all, whenever a process is killed or a disk is full."""

import os
import re
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path


def write_together(contents: Mapping[Path, bytes]) -> None:
    """Write files that are complete on the disk before the first of them takes its place, in the order given.

    When this returns they are in their places, whatever then becomes of the machine. A process that is killed meanwhile
    may leave files beside them, which :func:`leftovers` finds.

    Raises:
        OSError: a file cannot be written; what was in its place before is there still.
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
        _secure_names(folder)


def leftovers(folder: Path) -> list[Path]:
    """What killed processes left beside the files that :func:`write_together` was to write there."""
    return [path for path in folder.glob(".*") if re.fullmatch(r"\..+\.[0-9a-f]{32}", path.name)]


def _secure_names(folder: Path) -> None:
    """See that the names in a folder are on the disk too, where the file system lets one ask for that."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
