"""Regions of a scan: whole numbers in a label volume, and an optional table of their names in the same folder.

The table has the format of BIDS segmentations: ``labels.tsv`` next to ``labels.nii.gz``, with the columns `index` and
`name`. Without a table, every number above 0 is a region and the number is its name. With a table, only the listed
numbers are regions.
"""

import csv
import io
import unicodedata
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ppdm.data.formats import stem

LESIONS = ("lesion", "lesions")  # each connected component of these is a separate region

ROUNDING = 1e-3  # largest distance of a label from a whole number

_HEADER = ("index", "name")


class RegionError(ValueError):
    """A table of regions cannot be read; the message gives the file and the reason."""


def read_names(labels: Path) -> dict[int, str] | None:
    """Read the names of the regions of a label volume; None if it has no table.

    Raises:
        RegionError: the file is not a table of regions, lists a number or a name twice, or leaves a name empty.
    """
    path = labels.with_name(table_name(labels.name))
    try:
        rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig")), delimiter="\t"))
        names = {int(row["index"]): _plain(row["name"].strip(), row["index"].strip()) for row in rows}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
        raise RegionError(
            f"{path} is no table of regions ({type(error).__name__}: {error}); expected the columns index (a whole "
            "number) and name, separated by tabs."
        ) from None
    if len(names) < len(rows) or len(set(names.values())) < len(names) or not all(names.values()):
        raise RegionError(f"{path} names a region twice, or not at all; give each number one name of its own.")
    return names


def whole_numbers(labels: np.ndarray, path: Path) -> np.ndarray:
    """The numbers of regions, rounded: programs that scale labels into integers leave errors of up to 1e-3.

    Args:
        labels: values of a label volume, of any shape.
        path: its file, for the message.

    Raises:
        RegionError: a value is negative or not whole.
    """
    rounded = np.rint(labels)
    if float(np.abs(labels - rounded).max()) > ROUNDING or rounded.min() < 0:
        raise RegionError(
            f"{path} holds values that are no whole numbers from 0 on, expected numbers of regions; save it as "
            "integers without scaling."
        )
    return rounded


def names_table(names: Mapping[int, str]) -> bytes:
    """The content of a table for :func:`read_names`."""
    lines = ["\t".join(_HEADER), *(f"{index}\t{name}" for index, name in names.items())]
    return ("\n".join(lines) + "\n").encode()


def table_name(labels: str) -> str:
    """The file name of the table of a label volume, such as ``labels.tsv``."""
    return stem(labels) + ".tsv"


def _plain(name: str, number: str) -> str:
    """A form for metric names, in any script: ``left_kidney`` for `Left kidney`, the number if only signs are left."""
    letters = (letter if unicodedata.category(letter)[0] in "LMN" else " " for letter in _composed(name).lower())
    return "_".join("".join(letters).split()) or (number if name else "")


def _composed(text: str) -> str:
    """One form of letters that Unicode can write in several ways, such as é."""
    return unicodedata.normalize("NFKC", text)
