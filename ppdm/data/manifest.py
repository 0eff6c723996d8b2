"""Manifests: a CSV file that lists the pairs of volumes and the split of each pair.

The columns are `subject,split,source,target[,mask][,labels][,suv_factor]`, and for CT `source_intensity` and
`target_intensity` (:class:`ppdm.data.normalise.HounsfieldWindow`). Several sources have a column each, such as
`source.t1n,source.t2w` instead of `source`; every row then has all of them. Paths are absolute or relative to the
manifest's folder; ``~`` is the home folder. An empty split means train. A subject may have several rows (sessions), all
in one split. Other columns are kept and have no effect. :mod:`ppdm.data.csv_table` lists the accepted forms of CSV.
"""

import csv
import io
import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from ppdm.atomic_io import replacing
from ppdm.data.csv_table import CsvTable, TableError, read_table
from ppdm.data.formats import SCANS, is_dicom_scan
from ppdm.data.normalise import HounsfieldWindow, IntensityError
from ppdm.data.resample import resample_to
from ppdm.data.volume import Volume, check_same_grid, read_volume, user_path
from ppdm.sources import SOURCE, check_sources

SPLITS = ("train", "val", "test")
INTENSITY_COLUMNS = ("source_intensity", "target_intensity")
OPTIONAL_COLUMNS = ("mask", "labels", "suv_factor", *INTENSITY_COLUMNS)

_NAMED = "source."  # prefix of the column of one of several sources
_FAULTS_SHOWN = 10


class ManifestError(ValueError):
    """A manifest or a pair is invalid; the message lists the faults with their lines."""


@dataclass(frozen=True)
class Pair:
    """A source volume, or several, and the target volume.

    Paths name files or folders with one DICOM series (:mod:`ppdm.data.formats`).

    Attributes:
        subject: identifier of the scanned person; usable as a file name.
        split: train, val or test.
        source: path of the source, which is the input of the translation; if there are several, the path of the first,
            whose grid is that of the pair.
        target: path of the target, on the grid of the source.
        mask: path of a mask of the region in which quality is measured, or None.
        suv_factor: SUV = stored value · suv_factor, or None if values are not converted.
        labels: path of a label volume (:mod:`ppdm.data.regions`) of the regions whose uptake is compared, or None.
        extra: the cells of all other columns, by column; they have no effect.
        named: paths of the sources by name, in their order; the first path is ``source``. Empty for one source without
            a name.
        source_intensity, target_intensity: window in HU of a volume that is CT, or None; the same for all pairs.

    Raises:
        ManifestError: a name, the split or the factor is invalid, or the pair is both PET and CT.
    """

    subject: str
    split: str
    source: Path
    target: Path
    mask: Path | None = None
    suv_factor: float | None = None
    labels: Path | None = None
    extra: Mapping[str, str] = field(default_factory=dict, hash=False)
    named: Mapping[str, Path] = field(default_factory=dict, hash=False)
    source_intensity: HounsfieldWindow | None = None
    target_intensity: HounsfieldWindow | None = None

    def __post_init__(self) -> None:
        try:
            check_sources(tuple(self.sources))
        except ValueError as error:
            raise ManifestError(str(error)) from None
        if next(iter(self.sources.values())) != self.source:
            raise ManifestError(f"source is {self.source}, but the first of the named sources is another file")
        if not self.subject or self.subject.startswith(".") or set(self.subject) & set("/\\\0"):
            raise ManifestError(f"subject {self.subject!r} cannot name a file; use letters, digits, '-' and '_'")
        if self.split not in SPLITS:
            raise ManifestError(f"split {self.split!r} is not one of {', '.join(SPLITS)}")
        if self.suv_factor is not None and not (math.isfinite(self.suv_factor) and self.suv_factor > 0):
            raise ManifestError(f"suv_factor {self.suv_factor} is not a positive number")
        if self.suv_factor is not None and (self.source_intensity or self.target_intensity):
            raise ManifestError(
                f"subject {self.subject!r} has an suv_factor, which makes it PET, and an intensity of CT; give one of "
                "the two"
            )

    @property
    def sources(self) -> Mapping[str, Path]:
        """Paths of all sources by name, in their order; a single source without a name is called ``source``."""
        return self.named or {SOURCE: self.source}

    @property
    def scans(self) -> tuple[Path, ...]:
        """Paths of the sources and of the target."""
        return (*self.sources.values(), self.target)


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
        table = read_table(path, _required([SOURCE]), "manifest")
    except TableError as error:
        raise ManifestError(str(error)) from None
    broken = [table.fault] if table.fault else []
    if not table.header:
        return [], broken or [f"line 1: it is empty; begin with {','.join(_required([SOURCE]))}"]
    required = _required(_names(table.header))
    if faults := [f"line 1: {fault}" for fault in _faults_of_header(table, required)]:
        return [], faults + broken
    if not table.rows and not broken:
        return [], ["it has a header but no rows"]
    for remark in table.near_names(required, OPTIONAL_COLUMNS):  # without suv_factor, PET is scaled as MRI
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
    absolute. Optional columns are written if any pair has a value for them, and after them every column in the `extra`
    of a pair. The write is atomic: the file is complete or absent. If `read_manifest` would refuse the new file, an old
    file is kept.

    Raises:
        ManifestError: there are no pairs, `read_manifest` would refuse them (the message gives the faults), a name is
            not Unicode text, or the folder is not writable.
    """
    path = user_path(path)
    for fault in mixed_sources(pairs):
        raise ManifestError(fault)
    sources = [_NAMED + name for name in (pairs[0].named if pairs else ())] or [SOURCE]
    columns = [
        *_required(sources),
        *(c for c in OPTIONAL_COLUMNS if any(getattr(pair, c) is not None for pair in pairs)),
    ]
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
    """Return the pairs with other windows for their CT volumes; None keeps the window of each pair.

    Raises:
        ManifestError: a pair is PET.
    """
    given = {"source_intensity": source, "target_intensity": target}
    changes: dict[str, Any] = {name: window for name, window in given.items() if window is not None}
    return [replace(pair, **changes) for pair in pairs]


def mixed_units(pairs: Sequence[Pair]) -> Iterator[str]:
    """Yield a fault if only some of the pairs have an ``suv_factor``."""
    without = [pair.subject for pair in pairs if pair.suv_factor is None]
    if 0 < len(without) < len(pairs):
        yield (
            f"of {len(pairs)} pairs, {len(without)} without suv_factor (such as subject {without[0]}); give it for all "
            "(PET) or for none (MRI)."
        )


def mixed_sources(pairs: Sequence[Pair]) -> Iterator[str]:
    """Yield a fault for each pair whose sources are not those of the first pair, in the same order."""
    for pair in pairs[1:]:
        if [*pair.named] != [*pairs[0].named]:
            yield (
                f"Subject {pairs[0].subject} has the sources {', '.join(pairs[0].sources)}, and subject {pair.subject} "
                f"{', '.join(pair.sources)}; give all pairs the same sources in the same order."
            )


def load_pair(pair: Pair, *, resample: bool = False) -> tuple[Volume, ...]:
    """Read the source, or all sources, and the target of a pair, each (D, H, W) in canonical orientation, on one grid.

    Args:
        pair: the pair to read.
        resample: whether to interpolate volumes on other grids onto that of the first source; otherwise they are
            refused.

    Returns:
        The sources in their order, and the target.

    Raises:
        VolumeError: a file cannot be read, the grids differ by more than 1e-3 mm, or they do not overlap.
    """
    return load_on_one_grid(pair.scans, resample=resample)


def load_on_one_grid(paths: Sequence[Path], *, resample: bool = False) -> tuple[Volume, ...]:
    """Read volumes onto the grid of the first one.

    Raises:
        VolumeError: as for :func:`load_pair`.
    """
    first, *others = map(read_volume, paths)
    if resample:
        others = [resample_to(one, first, name=str(path)) for one, path in zip(others, paths[1:], strict=True)]
    for one, path in zip(others, paths[1:], strict=True):
        check_same_grid(first, one, (str(paths[0]), str(path)))
    return first, *others


def _error(path: Path, faults: list[str]) -> ManifestError:
    count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
    shown = faults[:_FAULTS_SHOWN]
    if len(faults) > len(shown):
        shown.append(f"and {len(faults) - len(shown)} more")
    return ManifestError("\n  ".join([f"{path} has {count}:", *shown]))


def _names(header: Sequence[str]) -> list[str]:
    """Return the columns of the sources: ``source``, or one column for each of several."""
    return [column for column in header if column.startswith(_NAMED)] or [SOURCE]


def _required(sources: Sequence[str]) -> tuple[str, ...]:
    return ("subject", "split", *sources, "target")


def _faults_of_header(table: CsvTable, required: tuple[str, ...]) -> Iterator[str]:
    yield from table.faults_of_header(required, OPTIONAL_COLUMNS)
    named = [column for column in _names(table.header) if column != SOURCE]
    if named and SOURCE in table.header:
        yield f"column 'source' stands beside {named[0]!r}; give one column source, or a column for each of several"
    try:
        check_sources([column.removeprefix(_NAMED) for column in dict.fromkeys(named)] or [SOURCE])
    except ValueError as error:
        yield f"{error}, in the columns {', '.join(named)}"


def _faults_of_row(table: CsvTable, cells: list[str], folder: Path) -> Iterator[str]:
    try:
        row = table.row(cells)
    except ValueError as fault:
        yield str(fault)
        return
    scans = [*_names(table.header), "target"]
    for column in (*scans, "mask", "labels"):
        yield from _faults_of_path(column, row.get(column, ""), folder, column in scans)
    for one, other in combinations([column for column in scans if row[column]], 2):
        if os.path.realpath(_resolve(row[one], folder)) == os.path.realpath(_resolve(row[other], folder)):
            yield f"{one} and {other} are the same file, {row[one]}"
    try:
        _pair(table, row, folder)
    except ManifestError as fault:
        yield str(fault)


def _faults_of_path(column: str, cell: str, folder: Path, is_required: bool) -> Iterator[str]:
    if not cell:
        if is_required:
            yield f"{column} is empty"
    elif os.path.normpath(cell).split(os.sep)[0] == os.pardir:
        yield f"{column} {cell} leaves the manifest's folder; write an absolute path if this is intended"
    elif not os.path.isfile(place := _resolve(cell, folder)) and not is_dicom_scan(place):
        if os.path.isdir(place):
            yield f"{column} {cell} is a folder without DICOM files, expected one scan: {SCANS}"
        else:
            hint = "; write '/' between folders" if "\\" in cell else ""
            yield f"{column} {cell} is not a file{hint}"


def _resolve(cell: str, folder: Path) -> Path:
    return folder / os.path.normpath(os.path.expanduser(cell))  # an absolute cell replaces the folder


def _number(table: CsvTable, cell: str) -> float:
    try:
        return table.number(cell)
    except ValueError:
        raise ManifestError(f"suv_factor {cell!r} is not a positive number") from None


def _window(cell: str) -> HounsfieldWindow | None:
    try:
        return HounsfieldWindow.parse(cell) if cell else None
    except IntensityError as error:
        raise ManifestError(str(error)[:1].lower() + str(error)[1:].rstrip(".")) from None


def _pair(table: CsvTable, row: dict[str, str], folder: Path) -> Pair:
    mask, labels, factor = row.get("mask"), row.get("labels"), row.get("suv_factor")
    columns = _names(table.header)
    known = {*_required(columns), *OPTIONAL_COLUMNS}
    return Pair(
        subject=row["subject"],
        split=row["split"] or "train",
        source=_resolve(row[columns[0]], folder),
        target=_resolve(row["target"], folder),
        mask=_resolve(mask, folder) if mask else None,
        suv_factor=_number(table, factor) if factor else None,
        labels=_resolve(labels, folder) if labels else None,
        source_intensity=_window(row.get("source_intensity", "")),
        target_intensity=_window(row.get("target_intensity", "")),
        extra={name: cell for name, cell in row.items() if name not in known},
        named={c.removeprefix(_NAMED): _resolve(row[c], folder) for c in columns if c != SOURCE},
    )


def _cells(pair: Pair, columns: Sequence[str], folder: Path) -> list[str]:
    """Return the cells of a row, empty if the pair has no value; refuse a subject that the reader would strip."""
    if pair.subject != pair.subject.strip():
        raise ManifestError(f"subject {pair.subject!r} begins or ends with a blank; remove the blank.")
    named = {_NAMED + name: path for name, path in pair.named.items()}
    return [_cell(named[column] if column in named else getattr(pair, column), folder) for column in columns]


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
    """Yield the subjects and volumes that are in two splits; training data must not be used for testing."""
    first: dict[str, tuple[int, str]] = {}
    for line, pair in pairs.items():
        files = (f"file {os.path.realpath(path)}" for path in pair.scans)
        for name in (f"subject {pair.subject!r}", *files):
            seen, split = first.setdefault(name, (line, pair.split))
            if split != pair.split:
                yield f"line {line}: {name} is in {pair.split} here and in {split} on line {seen}; keep it in one split"


def _mixed_intensities(pairs: dict[int, Pair]) -> Iterator[str]:
    """Yield the pairs whose volumes would be scaled differently from those of the first row."""
    for column in INTENSITY_COLUMNS:
        windows = {line: getattr(pair, column) for line, pair in pairs.items()}
        first = next(iter(windows), 0)
        if other := next((line for line, window in windows.items() if window != windows[first]), None):
            here, there = (str(windows[line] or "empty") for line in (other, first))
            yield f"line {other}: {column} is {here} here and {there} on line {first}; give all rows the same"
