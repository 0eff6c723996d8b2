"""Describe in words how a regenerated file differs from the committed one.

Text must be equal to the byte, and pictures to the pixel. There is no tolerance, because `constraints.txt` pins the
packages that draw, and matplotlib contains its own fonts and its own FreeType. Only the compression of a PNG or of a
stream in a PDF may differ: it depends on the build of zlib.
"""

import re
import subprocess
import zlib
from importlib.metadata import version
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
PICTURES = (".png", ".pdf")
DRAWING = ("matplotlib", "seaborn", "pillow", "numpy")

_STREAM = re.compile(rb"stream\r?\n(.*?)\r?\nendstream", re.DOTALL)
_PAGE = re.compile(rb"/Type\s*/Page\b")


def difference(kept: Path, made: Path) -> str:
    """Return the difference between two files of one type in words; empty if there is none."""
    if not made.exists():
        return "is not made any more"
    if not kept.exists():
        return "is made, but not kept"
    if kept.read_bytes() == made.read_bytes():
        return ""
    compare = {".png": _pixels, ".pdf": _pages}.get(kept.suffix, _lines)
    return compare(kept, made)


def otherwise_drawn() -> str:
    """Return why pictures cannot be compared here: packages that draw have other versions; empty if none has."""
    pinned = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    other = [f"{name} {version(name)}, not {pinned[name]}" for name in DRAWING if version(name) != pinned[name]]
    return f"pictures are not compared: {', '.join(other)}" if other else ""


def tracked(folder: str) -> set[str]:
    """Return the files that git tracks in a folder, relative to it; without git, all files in the folder."""
    listed = subprocess.run(["git", "ls-files", "-z", folder], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode == 0 and listed.stdout:
        return {name.removeprefix(f"{folder}/") for name in listed.stdout.split("\0") if name}
    return {path.relative_to(ROOT / folder).as_posix() for path in (ROOT / folder).rglob("*") if path.is_file()}


def _lines(kept: Path, made: Path) -> str:
    old, new = (path.read_bytes().decode().split("\n") for path in (kept, made))
    for number, (was, now) in enumerate(zip(old, new, strict=False), start=1):
        if was != now:
            at = next((n for n, (a, b) in enumerate(zip(was, now, strict=False)) if a != b), min(len(was), len(now)))
            return f"differs from line {number} on, column {at + 1}: kept {_around(was, at)}, made {_around(now, at)}"
    return f"has {len(old)} lines, made are {len(new)}"


def _around(line: str, at: int, reach: int = 60) -> str:
    """Return the part of a line around a column."""
    start, end = max(0, at - reach), at + reach
    return "…" * (start > 0) + repr(line[start:end]) + "…" * (end < len(line))


def _pixels(kept: Path, made: Path) -> str:
    with Image.open(kept) as old, Image.open(made) as new:
        was, now = (np.asarray(picture.convert("RGBA")).astype(int) for picture in (old, new))
    if was.shape != now.shape:
        return f"has {was.shape[1]}×{was.shape[0]} pixels, made are {now.shape[1]}×{now.shape[0]}"
    apart = (was != now).any(axis=-1)
    if not apart.any():
        return ""
    rows, columns = np.nonzero(apart)
    return (
        f"differs in {apart.sum()} of {apart.size} pixels, by up to {abs(was - now).max()} of 255, within columns "
        f"{columns.min()} to {columns.max()} and rows {rows.min()} to {rows.max()} of {apart.shape[1]}×{apart.shape[0]}"
    )


def _pages(kept: Path, made: Path) -> str:
    old, new = kept.read_bytes(), made.read_bytes()
    counts = [len(_PAGE.findall(content)) for content in (old, new)]
    if counts[0] != counts[1]:
        return f"has {counts[0]} pages, made are {counts[1]}"
    was, now = ([_inflated(stream) for stream in _STREAM.findall(content)] for content in (old, new))
    if len(was) != len(now):
        return f"has {len(was)} streams, made are {len(now)}"
    apart = [number for number, (one, other) in enumerate(zip(was, now, strict=True)) if one != other]
    return f"differs in {len(apart)} of {len(was)} streams, first in number {apart[0]}" if apart else ""


def _inflated(stream: bytes) -> bytes:
    try:
        return zlib.decompress(stream)
    except zlib.error:
        return stream
