"""Records of several files and the picture data beside them, each with the file that it comes from."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from ppdm_bench.records import Record, RecordError, RecordFile
from ppdm_bench.report.scores import Scores, by_design
from ppdm_bench.report.snapshot import SUFFIX, Snapshot, read_snapshot

_RECORDS = (".jsonl", ".jsonl.gz")


@dataclass(frozen=True)
class Library:
    """Everything that figures and claims are made from.

    Attributes:
        records: in the order of the files; of two equal records the first.
        snapshots: picture data.
        places: the file of each record, by the identity of the record in memory.
    """

    records: tuple[Record, ...]
    snapshots: tuple[Snapshot, ...] = ()
    places: dict[int, str] = field(default_factory=dict)

    @cached_property
    def points(self) -> tuple[Scores, ...]:
        """The scores of all records of quality, which many figures and claims need."""
        return tuple(by_design(self.records))

    def reference(self, record: Record) -> str:
        """Return the source of a record: its file, and the configuration in the file."""
        return f"{self.places.get(id(record), '')}#{record.config_id or '-'}"

    def references(self, records: Iterable[Record]) -> tuple[str, ...]:
        """Return the sources of several records, each once."""
        return tuple(dict.fromkeys(self.reference(record) for record in records))


def read_library(paths: Sequence[Path]) -> Library:
    """Read record files, and the folders in which they and picture data lie.

    In a folder, every ``*.jsonl`` (or ``*.jsonl.gz``) that begins with a record is read, so that logs are ignored. The
    name of a file starts with the folder that was given, so that no table has paths of this machine.

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


_JSON = (dict, list, tuple, str, int, float, type(None))
_CALL = re.compile(r"\(\) (got an unexpected|got multiple|missing \d+ required|takes \d+ positional)")


@contextmanager
def believed(what: str) -> Iterator[None]:
    """Make something from the options of records; options of an unexpected form become a ``RecordError``.

    A mistake in the code, such as a name that does not exist or a call with a wrong argument, is raised as it is.

    Raises:
        RecordError: the records were altered, or another version wrote them.
    """
    try:
        yield
    except (TypeError, LookupError, AttributeError, OverflowError, RecursionError) as error:
        if not _is_about_data(error):
            raise
        raise RecordError(
            f"{what}: a record's options are not of the form that a command writes ({type(error).__name__}: {error}); "
            "its file was altered, or another version wrote it: make it again, or leave it out"
        ) from error


def _is_about_data(error: Exception) -> bool:
    """Whether JSON data can have caused an error: no object of ours, no module and no signature is at fault."""
    if isinstance(error, AttributeError):
        return error.name is not None and isinstance(error.obj, _JSON)
    return not _CALL.search(str(error))


def provenance(records: Iterable[Record]) -> str:
    """Return the origin of records in words: commands, commits, versions, devices."""
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
