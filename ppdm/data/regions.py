"""Regions of a scan: whole numbers in a label volume, and an optional table of their names in the same folder.

The table has the format of BIDS segmentations: ``labels.tsv`` next to ``labels.nii.gz``, with the columns `index` and
`name`. Without a table, every number above 0 is a region and the number is its name. With a table, only the listed
numbers are regions.
"""

import csv
import io
import re
from collections.abc import Mapping
from pathlib import Path

from ppdm.data.volume import SUFFIXES

LESIONS = ("lesion", "lesions")  # each connected component of these is a separate region

_HEADER = ("index", "name")


class RegionError(ValueError):
    """A table of regions cannot be read; the message gives the file and the reason."""


def read_names(labels: Path) -> dict[int, str] | None:
    """Read the names of the regions of a label volume; None if it has no table.

    Raises:
        RegionError: the file is not a table of regions, lists a number or a name twice, or leaves a name empty.
    """
    path = _table(labels)
    try:
        rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig")), delimiter="\t"))
        names = {int(row["index"]): _plain(row["name"]) for row in rows}
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


def names_table(names: Mapping[int, str]) -> bytes:
    """The content of a table for :func:`read_names`."""
    lines = ["\t".join(_HEADER), *(f"{index}\t{name}" for index, name in names.items())]
    return ("\n".join(lines) + "\n").encode()


def table_name(labels: str) -> str:
    """The file name of the table of a label volume, such as ``labels.tsv``."""
    suffix = next((end for end in SUFFIXES if labels.lower().endswith(end)), "")
    return labels[: len(labels) - len(suffix)] + ".tsv"


def _table(labels: Path) -> Path:
    return labels.with_name(table_name(labels.name))


def _plain(name: str) -> str:
    """Convert a region's name to a form for metric names: `Left kidney` becomes `left_kidney`."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
