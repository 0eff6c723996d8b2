"""Records and picture data from several files, and the file of each record."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from ppdm_bench.records import COMPRESSED, DAMAGE, Record, RecordError, RecordFile, read_start
from ppdm_bench.report.scores import Scores, by_design
from ppdm_bench.report.snapshot import SUFFIX, Snapshot, read_snapshot

_RECORDS = (".jsonl", *(f".jsonl{suffix}" for suffix in COMPRESSED))


@dataclass(frozen=True)
class Library:
    """All records and picture data from which figures and claims are made.

    Attributes:
        records: the records in the order of the files; of equal records only the first.
        snapshots: picture data.
        file_of: the file of each record, by the ``id`` of the record object.
    """

    records: tuple[Record, ...]
    snapshots: tuple[Snapshot, ...] = ()
    file_of: dict[int, str] = field(default_factory=dict)

    @cached_property
    def points(self) -> tuple[Scores, ...]:
        """The scores from all records of quality; cached, because many figures and claims need them."""
        return tuple(by_design(self.records))

    def reference(self, record: Record) -> str:
        """Return the source of a record: its file and the identifier of its configuration."""
        return f"{self.file_of.get(id(record), '')}#{record.config_id or '-'}"

    def references(self, records: Iterable[Record]) -> tuple[str, ...]:
        """Return the sources of several records, each once."""
        return tuple(dict.fromkeys(self.reference(record) for record in records))


def read_library(paths: Sequence[Path]) -> Library:
    """Read record files, and folders with record files and picture data.

    In a folder, every ``*.jsonl`` (also ``.gz`` and ``.xz``) whose first line is a record is read; logs are ignored.
    The name of a file begins with the name of the given folder, so that tables contain no absolute paths.

    Raises:
        RecordError: a path does not exist, a file cannot be read, or there are no records.
    """
    found = [(name, path) for root in paths for name, path in _files(root)]
    file_of: dict[int, str] = {}
    records: dict[str, Record] = {}
    for name, path in found:
        if path.name.endswith(_RECORDS):
            for record in RecordFile(path).read():
                if records.setdefault(record.to_json(), record) is record:
                    file_of[id(record)] = name
    snapshots = tuple(read_snapshot(path, name) for name, path in found if path.name.endswith(SUFFIX))
    if not records:
        raise RecordError(
            f"there is no record in {', '.join(map(str, paths))}; give a .jsonl file of records, or a folder with one"
        )
    return Library(tuple(records.values()), snapshots, file_of)


def _files(root: Path) -> Iterator[tuple[str, Path]]:
    if root.is_file():
        yield f"{root.absolute().parent.name}/{root.name}", root
    elif root.is_dir():
        for path in sorted(root.rglob("*")):
            if path.name.endswith(SUFFIX) or (path.name.endswith(_RECORDS) and _holds_records(path)):
                yield f"{root.resolve().name}/{path.relative_to(root).as_posix()}", path
    else:
        raise RecordError(f"{root} does not exist; give a file of records, or a folder with such files")


def _holds_records(path: Path) -> bool:
    try:
        first = json.loads(read_start(path, 1 << 20).split(b"\n", 1)[0])
    except (*DAMAGE, OSError, ValueError, RecursionError):
        return False
    return isinstance(first, dict) and "schema" in first


_JSON = (dict, list, tuple, str, int, float, type(None))
_CALL = re.compile(r"\(\) (got an unexpected|got multiple|missing \d+ required|takes \d+ positional)")


@contextmanager
def reporting_altered_records(what: str) -> Iterator[None]:
    """Convert errors that options of an unexpected form cause into a ``RecordError``.

    Errors of the code itself, such as a missing attribute or a call with a wrong argument, are not converted. The
    message begins with `what`, the name of what is made from the records.

    Raises:
        RecordError: the records were altered, or another version wrote them.
    """
    try:
        yield
    except (TypeError, LookupError, AttributeError, OverflowError, RecursionError) as error:
        if not _is_caused_by_data(error):
            raise
        raise RecordError(
            f"{what}: the options of a record do not have the form that a command writes ({type(error).__name__}: "
            f"{error}); its file was altered, or another version wrote it: generate it again, or leave it out"
        ) from error


def _is_caused_by_data(error: Exception) -> bool:
    """Whether data caused the error: not an attribute of an object of the code, and not a call with wrong arguments."""
    if isinstance(error, AttributeError):
        return error.name is not None and isinstance(error.obj, _JSON)
    return not _CALL.search(str(error))


def provenance(records: Iterable[Record]) -> str:
    """Return the origin of records in words: their commands, commits, versions and devices."""
    records = list(records)
    words = [
        _listed("command", (f"`{r.command}`" for r in records if r.command)),
        _listed("commit", (_commit(r) for r in records if r.env.get("commit"))),
        _listed("torch", (str(r.env["torch"]) for r in records if r.env.get("torch"))),
        _listed("device", (str(r.env.get("gpu") or r.device) for r in records if r.device and r.kind == "measured")),
        _listed("CPU", (str(r.env["cpu"]) for r in records if r.env.get("cpu"))),
        _listed("source", (r.source for r in records if r.source)),
    ]
    return "; ".join(filter(None, words)) + "."


def _commit(record: Record) -> str:
    return str(record.env["commit"])[:10] + (" with changes" if record.env.get("dirty") else "")


def _listed(name: str, values: Iterable[str]) -> str:
    distinct = sorted(set(values))
    return f"{name} {', '.join(distinct)}" if distinct else ""
