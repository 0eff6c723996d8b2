"""Regions of a scan: whole numbers in a label volume, and an optional table of their names in the same folder.

The table has the format of BIDS segmentations: ``labels.tsv`` next to ``labels.nii.gz``, with the columns `index` and
`name`. Without a table, every number above 0 is a region and the number is its name. With a table, only the listed
numbers are regions.
"""

import os
import unicodedata
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ppdm.data.csv_table import TableError, read_table
from ppdm.data.formats import stem
from ppdm.data.geometry import Geometry
from ppdm.data.resample import nearest
from ppdm.data.volume import read_exact

LESIONS = ("lesion", "lesions")  # each connected component of these is a separate region

ROUNDING = 1e-3  # largest distance of a label from a whole number
COARSEST_STEP = 0.5  # largest step of integers times a fraction that still distinguishes whole numbers

_HEADER = ("index", "name")


class RegionError(ValueError):
    """Labels or their table of names cannot be used; the message gives the file and the reason."""


@dataclass(frozen=True, eq=False)
class Labels:
    """A label volume.

    Attributes:
        numbers: int64 (D, H, W), C-contiguous, in canonical order; 0 is outside every region.
        geometry: its grid.
        replaced: number of NaN or infinite voxels that were replaced by 0.
    """

    numbers: np.ndarray
    geometry: Geometry
    replaced: int = 0

    def on(self, grid: Geometry, name: str) -> "Labels":
        """Return the labels on another grid, from the nearest voxels; `name` is for messages.

        Raises:
            VolumeError: the two grids do not overlap.
        """
        return replace(self, numbers=nearest(self.numbers, self.geometry, grid, name), geometry=grid)


def read_labels(path: Path) -> Labels:
    """Read a label volume; whole numbers up to 2**63 - 1 are exact in every format.

    Raises:
        VolumeError: the file cannot be read.
        RegionError: a value is negative, too large or not a whole number.
    """
    exact = read_exact(path)
    # Programs that scale labels into integers leave errors of up to half the step between integers.
    rounding = ROUNDING + exact.step / 2 if exact.step <= COARSEST_STEP else ROUNDING
    return Labels(whole_numbers(exact.values, path, rounding), exact.geometry, exact.replaced)


def whole_numbers(labels: np.ndarray, path: Path, rounding: float = ROUNDING) -> np.ndarray:
    """Return the numbers of regions, rounded, as int64 in C order.

    Args:
        labels: finite values of a label volume, of any shape and real type.
        path: its file, for the message.
        rounding: largest distance from a whole number.

    Raises:
        RegionError: a value is negative, too large or not a whole number.
    """
    if labels.dtype.kind == "f":
        rounded = np.rint(labels)
        if float(np.abs(labels - rounded).max()) > rounding:
            raise RegionError(
                f"{path} holds values that are not whole numbers from 0 up, expected numbers of regions; save it as "
                "integers without scaling."
            )
        labels = rounded
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= 1 << 63:
        raise RegionError(
            f"{path} holds the values {low} to {high}, expected numbers of regions, whole numbers from 0 on and below "
            "2**63; renumber the regions."
        )
    return labels.astype(np.int64, order="C")


def check_regions(numbers: Collection[int], names: Mapping[int, str] | None, path: Path) -> None:
    """Refuse labels without a region.

    Args:
        numbers: all numbers in a label volume.
        names: the table of names, if there is one; it selects the regions.
        path: the file of the labels, for the message.

    Raises:
        RegionError: no number lies above 0, or none of these is in the table.
    """
    found = sorted(set(numbers) - {0})
    if not found:
        raise RegionError(
            f"{path}: no voxel of the labels lies above 0, expected regions as numbers from 1 on; export it again."
        )
    if names is not None and not names.keys() & set(found):
        few = ", ".join(map(str, found[:3])) + (", …" if len(found) > 3 else "")
        raise RegionError(
            f"{path} has the regions {few}, and {names_file(path).name} lists none of them; write the numbers of the "
            "regions into the column index."
        )


def read_names(labels: Path) -> dict[int, str] | None:
    """Read the names of the regions of a label volume; None if it has no table.

    Raises:
        RegionError: the file is not a table of regions, lists a number or a name twice, or leaves a name empty.
    """
    path = names_file(labels)
    if not os.path.lexists(path):
        return None
    try:
        table = read_table(path, _HEADER, "table of regions", tsv=True)
    except TableError as error:
        raise RegionError(str(error)) from None
    if fault := table.fault or next(iter(table.faults_of_header(_HEADER, ())), ""):
        raise RegionError(
            f"{path} is not a table of regions ({fault}); expected the columns index (a whole number) and name, "
            "separated by tabs."
        )
    names: dict[int, str] = {}
    for line, cells in table.rows:
        try:
            row = table.row(cells)
            number, name = int(row["index"]), _plain(row["name"], row["index"])
        except ValueError as error:
            raise RegionError(f"{path} is not a table of regions (line {line}: {error}).") from None
        if number in names or name in names.values() or not name:
            raise RegionError(
                f"{path}, line {line}, names a region twice, or not at all ({number}, {row['name']!r}); give each "
                "number one name of its own."
            )
        names[number] = name
    return names


def names_table(names: Mapping[int, str]) -> bytes:
    """Return the content of a table for :func:`read_names`."""
    lines = ["\t".join(_HEADER), *(f"{index}\t{name}" for index, name in names.items())]
    return ("\n".join(lines) + "\n").encode()


def names_file(labels: Path) -> Path:
    """Return the table of a label volume, such as ``labels.tsv`` beside ``labels.nii.gz``; it need not exist."""
    return labels.with_name(stem(labels.name) + ".tsv")


def _plain(name: str, number: str) -> str:
    """Return a form for metric names, in any script: ``left_kidney`` for `Left kidney`; the number if that is empty."""
    composed = unicodedata.normalize("NFKC", name).lower()  # Unicode can write some letters, such as é, in several ways
    letters = (letter if unicodedata.category(letter)[0] in "LMN" else " " for letter in composed)
    return "_".join("".join(letters).split()) or (number if name else "")
