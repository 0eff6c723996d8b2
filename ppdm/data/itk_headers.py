"""Checks of MetaImage and NRRD headers before SimpleITK reads them.

ITK's reader of MetaImage trusts the header: if the number of axes is wrong, it writes outside its buffers. Therefore it
reads a header only if all lines, numbers and lengths follow the format. A header may name one data file, in its folder.

Sources: https://itk.org/Wiki/ITK/MetaIO/Documentation and https://teem.sourceforge.net/nrrd/format.html.
"""

import os
import re
from pathlib import Path

from ppdm.data.formats import METAIMAGE, hint, suffix_of
from ppdm.data.nifti_stream import VolumeError

HEADER_BYTES = 1 << 20  # maximum length of a text header; real ones have a few kilobytes

_AXES = 6  # maximum number of axes; a file of one volume has fewer
_TEXT = 250  # maximum characters of a text; MetaIO keeps texts in buffers of 255
_NUMBERS = 1000  # maximum characters of a list of numbers
# Keys with one number for each axis, and keys with one number for each pair of axes.
_PER_AXIS = ("DimSize", "ElementSpacing", "ElementSize", "Offset", "Position", "Origin", "CenterOfRotation")
_PER_PAIR = ("TransformMatrix", "Rotation", "Orientation")
_COUNTS = ("NDims", "ElementNumberOfChannels", "CompressedDataSize", "HeaderSize", "ID", "ParentID")
_INTEGERS = ("CHAR", "SHORT", "INT", "LONG", "LONG_LONG")
_TYPES = ("MET_FLOAT", "MET_DOUBLE", *(f"MET_{sign}{name}" for name in _INTEGERS for sign in ("", "U")))
_LINE = re.compile(r"\s*([A-Za-z][\w .-]{0,99}?)\s*=\s*([^\0]*?)\s*")


def data_file(path: Path) -> Path:
    """Return the file that holds the voxels of a MetaImage or NRRD header; the header itself if they follow it.

    Raises:
        VolumeError: the header is not of its format, or names several files or one outside its folder.
    """
    try:
        with open(path, "rb") as stream:
            lines = stream.read(HEADER_BYTES).decode("latin-1").split("\n")
    except OSError as error:
        raise VolumeError(f"{path} cannot be read ({error.strerror or error}); check the file.") from None
    named = _metaimage(path, lines) if suffix_of(path.name) in METAIMAGE else _nrrd(path, lines)
    first = named.upper().split()[0]
    if first == "LOCAL":
        return path
    if first == "LIST" or "%" in named:
        raise VolumeError(f"{path} spreads its voxels over several files ({named}); save it as one .mha or .nrrd file.")
    named = os.fsdecode(named.encode("latin-1"))
    if os.path.isabs(named) or os.path.normpath(named).split(os.sep)[0] == os.pardir:
        raise VolumeError(f"{path} names a data file outside its folder, {named}; put both into one folder.")
    place = path.parent / named
    if not os.path.isfile(place):
        raise VolumeError(f"{path} names the data file {named}, which is not in its folder; copy both files.")
    return place


def _metaimage(path: Path, lines: list[str]) -> str:
    """Check every line of a header up to the last, which names the data file; return this name, or LOCAL."""
    found: dict[str, str] = {}
    for line in lines:
        match = _LINE.fullmatch(line)
        if not match or match[1] in found or not _is_sound(match[1], match[2], found):
            break
        found[match[1]] = match[2]
        if match[1] == "ElementDataFile":
            return match[2]
    else:
        line = "the end"
    where = f"has a fault at {line[:60]!r}" if found else "was not found"
    mend = hint("\n".join(lines).encode("latin-1")) or "convert or download it again"
    raise VolumeError(f"{path} is not a MetaImage file (its header {where}); {mend}.")


def _is_sound(key: str, value: str, before: dict[str, str]) -> bool:
    numbers, axes = value.split(), int(before.get("NDims", 0))
    if key in _COUNTS:
        # ITK writes the numbers of objects as -1.
        return bool(re.fullmatch(r"-?\d{1,18}", value)) and (key != "NDims" or 1 <= int(value) <= _AXES)
    if key in _PER_AXIS + _PER_PAIR:
        sized = axes > 0 and len(numbers) == (axes if key in _PER_AXIS else axes**2) and len(value) <= _NUMBERS
        return sized and all(_is_number(number) for number in numbers) and (key != "DimSize" or _are_lengths(numbers))
    if key == "ElementType":
        return value in _TYPES
    return len(value) <= _TEXT and (key != "ElementDataFile" or bool(value))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _are_lengths(numbers: list[str]) -> bool:
    return all(number.isdecimal() and 0 < int(number) < 1 << 31 for number in numbers)


def _nrrd(path: Path, lines: list[str]) -> str:
    """Return the name of the data file in a header, or LOCAL if the voxels follow it."""
    if not re.fullmatch(r"NRRD000\d\r?", lines[0]):
        mend = hint("\n".join(lines).encode("latin-1")) or "convert or download it again"
        raise VolumeError(f"{path} is not a NRRD file (its header was not found); {mend}.")
    header = lines[: next((n for n, line in enumerate(lines) if not line.strip()), len(lines))]
    fields = (line.partition(":") for line in header)
    named = (value.strip() for key, _, value in fields if key.strip().lower() in ("data file", "datafile"))
    return next(named, "") or "LOCAL"
