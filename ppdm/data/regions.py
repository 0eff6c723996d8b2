"""Regions of a scan: whole numbers in a volume of labels, and their names in a table beside it.

The table is that of BIDS segmentations: ``labels.tsv`` beside ``labels.nii.gz``, its columns `index` and `name`.
Without one, every number above 0 is a region that bears its number; with one, the regions are those that it names.
"""

import csv
import io
import re
from collections.abc import Mapping
from pathlib import Path

from ppdm.data.volume import SUFFIXES

LESIONS = ("lesion", "lesions")  # of these, each connected part is a region of its own

_HEADER = ("index", "name")


class RegionError(ValueError):
    """A table of regions cannot be read; the message says where and why."""


def read_names(labels: Path) -> dict[int, str] | None:
    """The names of the regions of a volume of labels, or None if it has no table.

    Raises:
        RegionError: the table is none, or names a number or a region twice.
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
    """The table that :func:`read_names` reads."""
    lines = ["\t".join(_HEADER), *(f"{index}\t{name}" for index, name in names.items())]
    return ("\n".join(lines) + "\n").encode()


def table_name(labels: str) -> str:
    """The name of the table of a volume of labels, such as ``labels.tsv``."""
    suffix = next((end for end in SUFFIXES if labels.lower().endswith(end)), "")
    return labels[: len(labels) - len(suffix)] + ".tsv"


def _table(labels: Path) -> Path:
    return labels.with_name(table_name(labels.name))


def _plain(name: str) -> str:
    """As a metric's name may hold it: `Left kidney` is `left_kidney`."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
