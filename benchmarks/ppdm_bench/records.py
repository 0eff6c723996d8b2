"""Records: one measurement a row, kept as append-only JSON Lines.

A record carries the number, what it is (metric, unit, statistic), the configuration and environment it was taken in,
how it came about (`kind`) and how it ended (`status`). Every table and figure is derived from records alone, so this
module needs nothing but the standard library.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import warnings
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from sys import float_info
from typing import Any, Self

__all__ = [
    "PHASES",
    "SCHEMA",
    "UNITS",
    "Record",
    "RecordError",
    "RecordFile",
    "RecordWarning",
    "config_id",
    "write_json_array",
]

SCHEMA = 2  # 2: samples

_MOST_EXPANDED = 1 << 26  # bytes; the largest file yet has ten million

KINDS = ("measured", "predicted", "published")
PHASES = ("train", "sample", "autoencoder_train", "decode")
STATUSES = ("ok", "oom", "timeout", "error", "killed", "skipped")

# The metrics whose unit is fixed. Memory is stored in bytes and shown in GiB.
UNITS = {
    **dict.fromkeys(("peak_allocated", "peak_reserved", "peak_process", "context", "verified_at"), "B"),
    **dict.fromkeys(("reserved_growth", "refused", "assumed"), "B"),
    **dict.fromkeys(("params", "grads", "optimizer", "inputs", "activations", "workspace"), "B"),
    "parameters": "1",
    "piece_seconds": "s",
    "first_call_seconds": "s",
    **dict.fromkeys(("step_seconds", "volume_seconds", "volume_seconds_estimate"), "s"),
    **dict.fromkeys(("step_flops", "volume_flops"), "FLOP"),
    "matmul_flops_per_second": "FLOP/s",
    "flops_share": "1",
}


class RecordError(ValueError):
    """A record that says something impossible, or a record file that cannot be read or written."""


class LaterSchemaError(RecordError):
    """A record written by a later version: whole and valid, but not for this version to interpret."""


class RecordWarning(UserWarning):
    """Lines of a record file were left out because they cannot be read."""


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True, kw_only=True)
class Record:
    """One measurement: one configuration, one phase, one metric.

    `metric` and `kind` are always given. A record of status `ok` holds a finite `value`; any other holds a `reason` and
    may lack a value. The unit of a metric in `UNITS` is filled in. Fields that their name explains are left out below.

    Attributes:
        config_id: `config_id(options)`; records of one configuration share it, whatever their kind.
        variant: tells the rows of one method apart (`r=4`, `authors`).
        shape: (D, H, W) in voxels, or empty where no volume is involved; `spacing` likewise, in millimetres.
        phase: `train`, `sample`, or a stage of a method's own (`autoencoder_train`, `decode`).
        steps: network evaluations of one sampling run.
        stat: which statistic the value is (`max`, `median`); `n` says of how many repetitions.
        samples: the raw values that the statistic is of, in the order they were taken, where there are several.
        kind: `measured`, `predicted` or `published`.
        options: the full configuration as JSON, so that a number can be traced.
        env: versions and hardware (torch, cuda, cudnn, driver, gpu, cpu, python, ...).
        source: where a published value comes from.
        created: ISO 8601 in UTC; the moment of construction unless given.

    Raises:
        RecordError: for a value of a wrong type, an unknown kind or status, an `ok` without a finite value, another
            status without a reason, a unit that is not the metric's.
    """

    schema: int = SCHEMA
    run_id: str = ""
    config_id: str = ""
    command: str = ""
    method: str = ""
    variant: str = ""
    task: str = ""
    shape: tuple[int, ...] = ()
    spacing: tuple[float, ...] = ()
    batch_size: int | None = None
    phase: str = ""
    precision: str = ""
    checkpointing: str = "none"
    channels_last: bool = False
    compile: bool = False
    steps: int | None = None
    metric: str
    value: float | int | None = None
    unit: str = ""
    stat: str = ""
    n: int | None = None
    kind: str
    status: str = "ok"
    reason: str = ""
    seed: int | None = None
    subject: str = ""
    device: str = ""
    env: dict[str, Any] = field(default_factory=dict)
    created: str = field(default_factory=_now)
    options: dict[str, Any] = field(default_factory=dict)
    source: str = ""
    samples: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        # JSON knows lists only: a record read back equals the one that was written.
        for name in ("shape", "spacing"):
            object.__setattr__(self, name, _three(name, getattr(self, name)))
        object.__setattr__(self, "samples", _numbers("samples", self.samples))
        object.__setattr__(self, "unit", self.unit or UNITS.get(self.metric, ""))
        _check_types(self)
        _check_choices(self)
        _check_value(self)

    def to_json(self) -> str:
        """Return the record as one line of JSON, without the newline."""
        return _dump({f.name: getattr(self, f.name) for f in fields(self)})

    def content(self) -> str:
        """Return the record without its moment and run, as JSON: two records that say the same have it in common."""
        moment = ("created", "run_id")
        return _dump({f.name: getattr(self, f.name) for f in fields(self) if f.name not in moment})

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Read the record that `to_json` wrote.

        Raises:
            LaterSchemaError: the record has a schema above `SCHEMA`.
            RecordError: the text is no JSON object, or not one of a record.
        """
        try:
            content = json.loads(text, parse_float=_finite, parse_constant=_finite)
        except (ValueError, RecursionError) as error:
            raise RecordError(f"not a line of JSON ({error})") from None
        if not isinstance(content, dict):
            raise RecordError(f"a record is a JSON object, got {type(content).__name__}")
        _check_fields(content, {f.name for f in fields(cls)})
        try:
            return cls(**content)
        except TypeError as error:
            raise RecordError(f"not a record: {error}") from None


_TEXT = tuple(f.name for f in fields(Record) if f.type == "str")
_FLAGS = tuple(f.name for f in fields(Record) if f.type == "bool")
_COUNTS = ("batch_size", "steps", "n")


def _three(name: str, value: object) -> tuple[Any, ...]:
    numbers = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    if len(numbers) not in (0, 3) or not all(_is_number(x) and x > 0 for x in numbers):
        raise RecordError(f"`{name}` is three positive numbers (D, H, W) or empty, got {value!r}")
    if name == "shape" and not all(isinstance(x, int) for x in numbers):
        raise RecordError(f"`shape` counts voxels in whole numbers, got {value!r}")
    return numbers


def _numbers(name: str, value: object) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)) or not all(_is_number(x) for x in value):
        raise RecordError(f"`{name}` is a list of finite numbers, got {value!r}")
    return tuple(value)


def _is_number(value: object) -> bool:
    """Whether it is a finite number, and an integer is one that a float can stand for."""
    return (type(value) is int or isinstance(value, float)) and abs(value) <= float_info.max


def _finite(text: str) -> float:
    """A number of JSON; Python would read NaN, Infinity and 1e999 too, and could not write them again."""
    if not abs(value := float(text)) <= float_info.max:
        raise ValueError(f"{text} is no finite number")
    return value


def _check_types(record: Record) -> None:
    expected = {**dict.fromkeys(_TEXT, str), **dict.fromkeys(_FLAGS, bool), "env": dict, "options": dict}
    for name, kind in expected.items():
        if not isinstance(value := getattr(record, name), kind):
            raise RecordError(f"`{name}` of a record is a {kind.__name__}, got {value!r}")
    for name in (*_COUNTS, "seed"):
        value = getattr(record, name)
        if value is not None and (type(value) is not int or (name in _COUNTS and value < 1)):
            raise RecordError(f"`{name}` of a record is a whole number or absent, got {value!r}")


def _check_choices(record: Record) -> None:
    for name, choices in (("kind", KINDS), ("status", STATUSES)):
        if (value := getattr(record, name)) not in choices:
            raise RecordError(f"`{name}` is one of {', '.join(choices)}; got {value!r}")
    if not record.metric:
        raise RecordError("a record needs a `metric`, such as peak_allocated; got an empty one")
    unit = UNITS.get(record.metric, record.unit)
    if record.unit != unit:
        raise RecordError(f"`{record.metric}` is stored in {unit!r}, got the unit {record.unit!r}: convert the value")


def _check_value(record: Record) -> None:
    value, metric = record.value, record.metric
    if value is not None and not _is_number(value):
        raise RecordError(f"the value of `{metric}` is a finite number or absent, got {value!r}")
    if value is not None and metric in UNITS and value < 0:
        raise RecordError(f"`{metric}` cannot be negative, got {value!r}")
    if record.status == "ok" and value is None:
        raise RecordError(f"a record of status ok needs a value; for `{metric}` give one, or the status it ended with")
    if record.status != "ok" and not record.reason:
        raise RecordError(f"a record of status {record.status} needs a `reason`: say in words what happened")


def _check_fields(content: Mapping[str, Any], known: set[str]) -> None:
    schema = content.get("schema")
    if type(schema) is not int:
        raise RecordError(f"a record states its schema as a whole number, got {schema!r}")
    if schema > SCHEMA:
        raise LaterSchemaError(
            f"the record has schema {schema}, this version reads up to {SCHEMA}: read it with a later version of ppdm"
        )
    if unknown := sorted(content.keys() - known):
        raise RecordError(f"schema {schema} has no field {', '.join(unknown)}: the record was altered or is not ours")


def _dump(content: object, **style: Any) -> str:
    try:
        return json.dumps(content, allow_nan=False, **style)
    except (TypeError, ValueError) as error:
        raise RecordError(f"options and environment must be plain JSON values without NaN: {error}") from None


def config_id(options: Mapping[str, Any]) -> str:
    """Return 12 hexadecimal digits that identify a configuration: of the SHA-256 of its canonical JSON.

    The order of keys does not matter, and a tuple counts as the list that JSON makes of it.

    Raises:
        RecordError: an option is not a JSON value.
    """
    canonical = _dump(dict(options), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def write_json_array(records: Iterable[Record]) -> str:
    """Return the records as one JSON array, a record a line: what `--json` prints."""
    lines = ",\n".join(record.to_json() for record in records)
    return f"[\n{lines}\n]" if lines else "[]"


class RecordFile:
    """An append-only file of records, one JSON object a line.

    A kill at any moment loses at most the row being written: rows are appended by a single write, and a half-written
    last line is ended before anything is added behind it. Several processes may append to the same file. A file that
    ends in `.gz` is one that was compressed to be kept: it is read, and nothing is added to it.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def append(self, records: Iterable[Record]) -> None:
        """Add records, on the disk when this returns; the folder is made if it is missing.

        Raises:
            RecordError: the file cannot be written, or the disk took only part of the rows.
        """
        rows = "".join(record.to_json() + "\n" for record in records).encode()
        if not rows:
            return
        if self.path.suffix == ".gz":
            raise RecordError(f"{self.path} is compressed and is kept as it is; add records to one that is not")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            try:
                _write_rows(descriptor, rows)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise RecordError(f"cannot write records to {self.path}: {_plain(error)}; give another place") from None

    def read(self) -> list[Record]:
        """Return every whole record, in the order written; none where the file does not exist yet.

        Lines that cannot be read (the half row of a killed run) are left out; one `RecordWarning` counts them.

        Raises:
            RecordError: the file cannot be read, or holds records of a later schema.
        """
        if self.path.is_char_device():  # a pipe ends, and a device may not
            raise RecordError(f"cannot read records from {self.path}: it is a device; name a file")
        try:
            content = self._expanded() if self.path.suffix == ".gz" else self.path.read_bytes()
        except FileNotFoundError:
            return []
        except (EOFError, zlib.error) as error:  # cut short, or altered
            raise RecordError(f"cannot read records from {self.path}: it is no whole gzip file ({error})") from None
        except OSError as error:
            raise RecordError(f"cannot read records from {self.path}: {_plain(error)}") from None
        records: list[Record] = []
        unreadable: list[str] = []
        for number, line in enumerate(content.split(b"\n"), start=1):
            try:
                if line.strip():
                    records.append(Record.from_json(line))
            except LaterSchemaError as error:
                raise RecordError(f"{self.path}, line {number}: {error}") from None
            except RecordError as error:
                unreadable.append(f"line {number}: {error}")
        if unreadable:
            self._warn(unreadable)
        return records

    def _expanded(self) -> bytes:
        """What a compressed file holds; one that expands without end must not take all memory."""
        with gzip.open(self.path) as stream:
            content = stream.read(_MOST_EXPANDED + 1)
        if len(content) > _MOST_EXPANDED:
            raise RecordError(
                f"{self.path} expands to more than {_MOST_EXPANDED >> 20} MiB, which no file of records did yet; if it "
                "is one, expand it with gunzip and name the result"
            )
        return content

    def _warn(self, unreadable: list[str]) -> None:
        shown = "; ".join(unreadable[:3]) + ("; ..." if len(unreadable) > 3 else "")
        message = f"{self.path}: {len(unreadable)} unreadable line(s) left out ({shown})"
        warnings.warn(message, RecordWarning, stacklevel=3)


def _write_rows(descriptor: int, rows: bytes) -> None:
    # A process that appends at this moment may look like a torn line; then the newline only makes a blank one.
    end = os.lseek(descriptor, 0, os.SEEK_END)
    if end:
        os.lseek(descriptor, end - 1, os.SEEK_SET)
        rows = rows if os.read(descriptor, 1) == b"\n" else b"\n" + rows
    if (written := os.write(descriptor, rows)) < len(rows):
        raise OSError(f"only {written} of {len(rows)} bytes were taken, the disk may be full")
    os.fsync(descriptor)


def _plain(error: OSError) -> str:
    if isinstance(error, FileExistsError | NotADirectoryError):
        return "a file stands where a folder is needed"
    return (error.strerror or str(error)).lower()
