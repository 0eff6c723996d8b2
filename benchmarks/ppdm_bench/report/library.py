"""Records of many files and the picture data beside them, each with the place where it stands."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from ppdm_bench.records import Record, RecordError, RecordFile
from ppdm_bench.report.scores import Scores, by_design
from ppdm_bench.report.snapshot import SUFFIX, Snapshot, read_snapshot

__all__ = ["Library", "believed", "provenance", "read_library"]

_RECORDS = (".jsonl", ".jsonl.gz")


@dataclass(frozen=True)
class Library:
    """Everything that figures and claims are made from.

    Attributes:
        records: in the order of the files, of what stands twice the first.
        snapshots: picture data.
        places: the file of a record, by its identity in memory; the library keeps the records alive.
    """

    records: tuple[Record, ...]
    snapshots: tuple[Snapshot, ...] = ()
    places: dict[int, str] = field(default_factory=dict)

    @cached_property
    def points(self) -> tuple[Scores, ...]:
        """The points of all records of quality; many figures and claims ask for them."""
        return tuple(by_design(self.records))

    def reference(self, record: Record) -> str:
        """Where a record is found: its file, and the configuration in it."""
        return f"{self.places.get(id(record), '')}#{record.config_id or '-'}"

    def references(self, records: Iterable[Record]) -> tuple[str, ...]:
        """The same of several, each once."""
        return tuple(dict.fromkeys(self.reference(record) for record in records))


def read_library(paths: Sequence[Path]) -> Library:
    """Read record files, and the folders in which they and picture data lie.

    In a folder, every ``*.jsonl`` (or ``*.jsonl.gz``) that begins with a record counts, so that logs are passed over. A
    file is called by the folder that was given, so that the machine's paths are in no table.

    Raises:
        RecordError: a path is not there, a file cannot be read, or nothing is found.
    """
    found = [(name, path) for root in paths for name, path in _files(root)]
    places: dict[int, str] = {}
    records: dict[str, Record] = {}
    for name, path in found:
        if path.name.endswith(_RECORDS):
            for record in RecordFile(path).read():
                if records.setdefault(record.to_json(), record) is record:
                    places[id(record)] = name
    snapshots = tuple(read_snapshot(path, name) for name, path in found if path.name.endswith(SUFFIX))
    if not records:
        raise RecordError(
            f"there is no record in {', '.join(map(str, paths))}; name a .jsonl file or a folder that holds one"
        )
    return Library(tuple(records.values()), snapshots, places)


def _files(root: Path) -> Iterator[tuple[str, Path]]:
    if root.is_file():
        yield f"{root.absolute().parent.name}/{root.name}", root
    elif root.is_dir():
        for path in sorted(root.rglob("*")):
            if path.name.endswith(SUFFIX) or (path.name.endswith(_RECORDS) and _holds_records(path)):
                yield f"{root.resolve().name}/{path.relative_to(root).as_posix()}", path
    else:
        raise RecordError(f"{root} is not there; name a file of records or a folder that holds some")


def _holds_records(path: Path) -> bool:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            first = json.loads(file.readline(1 << 20))
    except (OSError, EOFError, zlib.error, ValueError, RecursionError):
        return False
    return isinstance(first, dict) and "schema" in first


@contextmanager
def believed(what: str) -> Iterator[None]:
    """Make something from what records say in their options; those that say something else are told in words.

    Raises:
        RecordError: they were altered, or another version wrote them.
    """
    try:
        yield
    except (TypeError, LookupError, AttributeError, OverflowError, RecursionError) as error:
        raise RecordError(
            f"{what}: a record's options are not such as a command writes them ({type(error).__name__}: {error}); its "
            "file was altered, or another version wrote it: make it again, or leave it out"
        ) from error


def provenance(records: Iterable[Record]) -> str:
    """Return in words what made the records: commands, commits, versions, devices."""
    records = list(records)
    words = [
        _said("command", (f"`{r.command}`" for r in records if r.command)),
        _said("commit", (_commit(r) for r in records if r.env.get("commit"))),
        _said("torch", (str(r.env["torch"]) for r in records if r.env.get("torch"))),
        _said("device", (str(r.env.get("gpu") or r.device) for r in records if r.device and r.kind == "measured")),
        _said("CPU", (str(r.env["cpu"]) for r in records if r.env.get("cpu"))),
        _said("source", (r.source for r in records if r.source)),
    ]
    return "; ".join(filter(None, words)) + "."


def _commit(record: Record) -> str:
    return str(record.env["commit"])[:10] + (" with changes" if record.env.get("dirty") else "")


def _said(name: str, values: Iterable[str]) -> str:
    distinct = sorted(set(values))
    return f"{name} {', '.join(distinct)}" if distinct else ""
