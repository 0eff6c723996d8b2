"""Manifests: a CSV file that lists the pairs of volumes and the split of each pair.

The columns are `subject,split,source,target[,mask][,labels][,suv_factor]`, and for CT `source_intensity` and
`target_intensity` (:class:`ppdm.data.normalise.HounsfieldWindow`). Paths are absolute or relative to the manifest's
folder; ``~`` is the home folder. An empty split means train. A subject may have several rows (sessions), all in one
split. Other columns are kept and have no effect. :mod:`ppdm.data.csv_table` lists the accepted forms of CSV.
"""

import csv
import io
import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ppdm.atomic_io import replacing
from ppdm.data.csv_table import Table, TableError, read_table
from ppdm.data.formats import SCANS, is_dicom_scan
from ppdm.data.normalise import HounsfieldWindow, IntensityError
from ppdm.data.resample import resample_to
from ppdm.data.volume import Volume, check_same_grid, read_volume, user_path

SPLITS = ("train", "val", "test")
REQUIRED_COLUMNS = ("subject", "split", "source", "target")
INTENSITY_COLUMNS = ("source_intensity", "target_intensity")
OPTIONAL_COLUMNS = ("mask", "labels", "suv_factor", *INTENSITY_COLUMNS)

_FAULTS_SHOWN = 10


class ManifestError(ValueError):
    """A manifest or a pair is invalid; the message lists the faults with their lines."""


@dataclass(frozen=True)
class Pair:
    """A source volume and its target volume.

    Paths name files or folders with one DICOM series (:mod:`ppdm.data.formats`).

    Attributes:
        subject: identifier of the scanned person; usable as a file name.
        split: train, val or test.
        source: path of the source, the input of the translation.
        target: path of the target, on the grid of the source.
        mask: path of a mask of the region in which quality is measured, or None.
        suv_factor: SUV = stored value · suv_factor, or None if values are not converted.
        labels: path of a label volume (:mod:`ppdm.data.regions`) of the regions whose uptake is compared, or None.
        extra: the cells of all other columns, by column; they have no effect.
        source_intensity, target_intensity: window in HU of a volume that is CT, or None; the same for all pairs.
    """

    subject: str
    split: str
    source: Path
    target: Path
    mask: Path | None = None
    suv_factor: float | None = None
    labels: Path | None = None
    extra: Mapping[str, str] = field(default_factory=dict, hash=False)
    source_intensity: HounsfieldWindow | None = None
    target_intensity: HounsfieldWindow | None = None

    def __post_init__(self) -> None:
        if not self.subject or self.subject.startswith(".") or set(self.subject) & set("/\\\0"):
            raise ManifestError(f"subject {self.subject!r} cannot name a file; use letters, digits, '-' and '_'")
        if self.split not in SPLITS:
            raise ManifestError(f"split {self.split!r} is none of {', '.join(SPLITS)}")
        if self.suv_factor is not None and not (math.isfinite(self.suv_factor) and self.suv_factor > 0):
            raise ManifestError(f"suv_factor {self.suv_factor} is not a positive number")
        if self.suv_factor is not None and (self.source_intensity or self.target_intensity):
            raise ManifestError(
                f"subject {self.subject!r} has an suv_factor, which makes it PET, and an intensity of CT; give one of "
                "the two"
            )


def read_manifest(path: str | os.PathLike[str]) -> list[Pair]:
    """Read and check every row of a manifest; the volumes must exist but are not read.

    Raises:
        ManifestError: the manifest has faults: missing or misspelt columns, empty cells, missing files, relative paths
            that leave the folder, unknown splits, factors that are not positive, or subjects or files in two splits.
            The message lists the first ten with their line numbers, then the number of the others.
    """
    pairs, faults = manifest_faults(path)
    if faults:
        raise _error(Path(path), faults)
    return pairs


def manifest_faults(path: str | os.PathLike[str]) -> tuple[list[Pair], list[str]]:
    """Return the pairs of all sound rows, and every fault of the manifest with its line, without raising the faults.

    A leak (a subject or a file in two splits) is a fault between rows that are sound separately. The result includes
    the pairs of these rows. The volumes are not read.

    Raises:
        ManifestError: the path is not a file, or the file cannot be read, is a spreadsheet file or is not UTF-8 text.
    """
    path = user_path(path)
    try:
        table = read_table(path, REQUIRED_COLUMNS, "manifest")
    except TableError as error:
        raise ManifestError(str(error)) from None
    broken = [table.fault] if table.fault else []
    if not table.header:
        return [], broken or [f"line 1: it is empty; begin with {','.join(REQUIRED_COLUMNS)}"]
    if faults := [f"line 1: {fault}" for fault in table.faults_of_header(REQUIRED_COLUMNS, OPTIONAL_COLUMNS)]:
        return [], faults + broken
    if not table.rows and not broken:
        return [], ["it has a header but no rows"]
    for remark in table.near_names(REQUIRED_COLUMNS, OPTIONAL_COLUMNS):  # without suv_factor, PET is scaled as MRI
        warnings.warn(f"{path}: {remark}", stacklevel=3)
    pairs: dict[int, Pair] = {}
    for line, cells in table.rows:
        row_faults = list(_faults_of_row(table, cells, path.parent))
        faults += [f"line {line}: {fault}" for fault in row_faults]
        if not row_faults:
            pairs[line] = _pair(table, table.row(cells), path.parent)
    return list(pairs.values()), [*faults, *broken, *_leaks(pairs), *_mixed_intensities(pairs)]


def write_manifest(path: str | os.PathLike[str], pairs: Sequence[Pair]) -> None:
    """Write pairs as a manifest that :func:`read_manifest` reads back as the same pairs.

    Paths of files inside the manifest's folder are relative to it, so that the folder can be moved. All other paths are
    absolute. The columns `mask`, `labels` and `suv_factor` are written if any pair has a value for them, and after them
    every column in the `extra` of a pair. The write is
    atomic: the file is complete or absent. If `read_manifest` would refuse the new file, an old file is kept.

    Raises:
        ManifestError: there are no pairs, `read_manifest` would refuse them (the message gives the faults), a name is
            not Unicode text, or the folder is not writable.
    """
    path = user_path(path)
    columns = [*REQUIRED_COLUMNS, *(c for c in OPTIONAL_COLUMNS if any(getattr(pair, c) is not None for pair in pairs))]
    extra = list(dict.fromkeys(name for pair in pairs for name in pair.extra))
    rows = [[*_cells(pair, columns, path.parent), *(pair.extra.get(name, "") for name in extra)] for pair in pairs]
    table = io.StringIO(newline="")
    csv.writer(table, lineterminator="\n").writerows([columns + extra, *rows])
    try:
        with replacing(path, ".csv") as temporary:  # in the same folder, because paths are relative to it
            temporary.write_bytes(_encoded(table.getvalue(), path))
            if faults := manifest_faults(temporary)[1]:
                raise _error(path, faults)
    except OSError as error:
        raise ManifestError(f"{path} cannot be written ({error.strerror}); check the folder and the disk.") from None


def with_intensities(
    pairs: Sequence[Pair], *, source: HounsfieldWindow | None = None, target: HounsfieldWindow | None = None
) -> list[Pair]:
    """Return the pairs with other windows of their CT volumes; None keeps what the manifest says.

    Raises:
        ManifestError: a pair is PET.
    """
    given = {"source_intensity": source, "target_intensity": target}
    changes: dict[str, Any] = {name: window for name, window in given.items() if window is not None}
    return [replace(pair, **changes) for pair in pairs]


def load_pair(pair: Pair, *, resample: bool = False) -> tuple[Volume, Volume]:
    """Read the source and the target of a pair, each (D, H, W) in canonical orientation, on one grid.

    Args:
        pair: the pair to read.
        resample: whether to interpolate a target on another grid onto that of the source; otherwise it is refused.

    Raises:
        VolumeError: a file cannot be read, the grids differ by more than 1e-3 mm, or they do not overlap.
    """
    source, target = read_volume(pair.source), read_volume(pair.target)
    if resample:
        target = resample_to(target, source, name=str(pair.target))
    check_same_grid(source, target, (str(pair.source), str(pair.target)))
    return source, target


def _error(path: Path, faults: list[str]) -> ManifestError:
    count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
    shown = faults[:_FAULTS_SHOWN]
    if len(faults) > len(shown):
        shown.append(f"and {len(faults) - len(shown)} more")
    return ManifestError("\n  ".join([f"{path} has {count}:", *shown]))


def _faults_of_row(table: Table, cells: list[str], folder: Path) -> Iterator[str]:
    try:
        row = table.row(cells)
    except ValueError as fault:
        yield str(fault)
        return
    for column in ("source", "target", "mask", "labels"):
        yield from _faults_of_path(column, row.get(column, ""), folder)
    if row["source"] and os.path.realpath(_resolve(row["source"], folder)) == os.path.realpath(
        _resolve(row["target"], folder)
    ):
        yield f"source and target are the same file, {row['source']}"
    try:
        _pair(table, row, folder)
    except ManifestError as fault:
        yield str(fault)


def _faults_of_path(column: str, cell: str, folder: Path) -> Iterator[str]:
    if not cell:
        if column in REQUIRED_COLUMNS:
            yield f"{column} is empty"
    elif os.path.normpath(cell).split(os.sep)[0] == os.pardir:
        yield f"{column} {cell} leaves the manifest's folder; write an absolute path if that is meant"
    elif not os.path.isfile(place := _resolve(cell, folder)) and not is_dicom_scan(place):
        if os.path.isdir(place):
            yield f"{column} {cell} is a folder without DICOM files, expected one scan: {SCANS}"
        else:
            hint = "; write '/' between folders" if "\\" in cell else ""
            yield f"{column} {cell} is not a file{hint}"


def _resolve(cell: str, folder: Path) -> Path:
    return folder / os.path.normpath(os.path.expanduser(cell))  # an absolute cell replaces the folder


def _number(table: Table, cell: str) -> float:
    try:
        return table.number(cell)
    except ValueError:
        raise ManifestError(f"suv_factor {cell!r} is not a positive number") from None


def _window(cell: str) -> HounsfieldWindow | None:
    try:
        return HounsfieldWindow.parse(cell) if cell else None
    except IntensityError as error:
        raise ManifestError(str(error)[:1].lower() + str(error)[1:].rstrip(".")) from None


def _pair(table: Table, row: dict[str, str], folder: Path) -> Pair:
    mask, labels, factor = row.get("mask"), row.get("labels"), row.get("suv_factor")
    return Pair(
        subject=row["subject"],
        split=row["split"] or "train",
        source=_resolve(row["source"], folder),
        target=_resolve(row["target"], folder),
        mask=_resolve(mask, folder) if mask else None,
        suv_factor=_number(table, factor) if factor else None,
        labels=_resolve(labels, folder) if labels else None,
        source_intensity=_window(row.get("source_intensity", "")),
        target_intensity=_window(row.get("target_intensity", "")),
        extra={name: cell for name, cell in row.items() if name not in REQUIRED_COLUMNS + OPTIONAL_COLUMNS},
    )


def _cells(pair: Pair, columns: Sequence[str], folder: Path) -> list[str]:
    """The cells of a row, empty if the pair has no value; a subject that the reader would strip is refused."""
    if pair.subject != pair.subject.strip():
        raise ManifestError(f"subject {pair.subject!r} begins or ends with a blank; take it off.")
    return [_cell(getattr(pair, column), folder) for column in columns]


def _encoded(text: str, path: Path) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        name = text[max(error.start - 40, 0) : error.end + 40]
        raise ManifestError(f"{path}: near {name!r} a file name is not Unicode; rename the file.") from None


def _cell(value: str | Path | float | None, folder: Path) -> str:
    if isinstance(value, Path):
        return _from_folder(value, folder)
    return "" if value is None else str(value)


def _from_folder(path: Path, folder: Path) -> str:
    # `a/../b` differs from `b` if a is a link. The reader normalises the dots, so the written path must not have them.
    whole = Path(os.path.realpath(path) if os.pardir in path.parts else os.path.abspath(path))
    base = os.path.abspath(folder)
    if not whole.is_relative_to(base):
        return whole.as_posix()
    inside = whole.relative_to(base).as_posix()
    return f"./{inside}" if inside != inside.lstrip() else inside  # the reader strips cells


def _leaks(pairs: dict[int, Pair]) -> Iterator[str]:
    """Subjects and volumes that are in two splits; training data must not be used for testing."""
    first: dict[str, tuple[int, str]] = {}
    for line, pair in pairs.items():
        files = (f"file {os.path.realpath(path)}" for path in (pair.source, pair.target))
        for name in (f"subject {pair.subject!r}", *files):
            seen, split = first.setdefault(name, (line, pair.split))
            if split != pair.split:
                yield f"line {line}: {name} is in {pair.split} here and in {split} on line {seen}; keep it in one split"


def _mixed_intensities(pairs: dict[int, Pair]) -> Iterator[str]:
    """Pairs whose volumes would be scaled differently than those of the first row."""
    for column in INTENSITY_COLUMNS:
        windows = {line: getattr(pair, column) for line, pair in pairs.items()}
        first = next(iter(windows), 0)
        if other := next((line for line, window in windows.items() if window != windows[first]), None):
            here, there = (str(windows[line] or "empty") for line in (other, first))
            yield f"line {other}: {column} is {here} here and {there} on line {first}; give all rows the same"
