"""Records: one measurement per row, stored as append-only JSON Lines.

A record holds the value, its meaning (metric, unit, statistic), the configuration and environment of the measurement,
its origin (`kind`) and its outcome (`status`). Every table and figure is made only from records. This module therefore
needs only the standard library.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import lzma
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
    "PURPOSES",
    "SCHEMA",
    "UNITS",
    "Record",
    "RecordError",
    "RecordFile",
    "RecordWarning",
    "config_id",
    "to_json_array",
]

SCHEMA = 2  # version 2 added the field `samples`

COMPRESSED = (".gz", ".xz")
DAMAGE = (EOFError, zlib.error, lzma.LZMAError)  # of compressed data that are truncated or corrupted
_MAX_EXPANDED_BYTES = 3 << 25  # the largest file so far has 69 million
_XZ_MEMORY = 1 << 27  # more than the strongest preset of xz needs

KINDS = ("measured", "predicted", "published")
PHASES = ("train", "sample", "autoencoder_train", "decode")
# The purpose that each phase serves. A method fits a card for a purpose if all phases of the purpose fit.
PURPOSES = {"train": "train", "autoencoder_train": "train", "sample": "sample", "decode": "sample"}
STATUSES = ("ok", "oom", "timeout", "error", "killed", "skipped")

# Metrics with a fixed unit. Memory is stored in bytes and shown in GiB.
UNITS = {
    **dict.fromkeys(("peak_allocated", "peak_reserved", "peak_process", "needs", "context", "verified_at"), "B"),
    **dict.fromkeys(("reserved_growth", "refused", "assumed", "peak_host"), "B"),
    **dict.fromkeys(("holder", "growth_per_step", "alive_after_step"), "B"),
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
    """The content of a record is invalid, or a record file cannot be read or written."""


class LaterSchemaError(RecordError):
    """A later version of ppdm wrote the record, and this version cannot read it."""


class RecordWarning(UserWarning):
    """Unreadable lines of a record file were skipped."""


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True, kw_only=True)
class Record:
    """One measurement: one configuration, one phase, one metric.

    `metric` and `kind` are required. A record of status `ok` holds a finite `value`. A record of any other status holds
    a `reason`, and its value is optional. The unit of a metric in `UNITS` is filled in. The list below omits fields
    whose name explains them.

    Attributes:
        config_id: `config_id(options)`; all records of one configuration share it, for every kind.
        variant: distinguishes the rows of one method (`r=4`, `authors`).
        shape: (D, H, W) in voxels, or empty if no volume is involved; `spacing` likewise, in millimetres.
        phase: `train`, `sample`, or a stage specific to a method (`autoencoder_train`, `decode`).
        steps: network evaluations of one sampling run.
        stat: statistic of the value (`max`, `median`); `n` is the number of repetitions.
        samples: raw values from which the statistic is computed, in measurement order, if there are several.
        kind: `measured`, `predicted` or `published`.
        options: full configuration as JSON, which makes the value traceable.
        env: versions and hardware (torch, cuda, cudnn, driver, gpu, cpu, python, ...).
        source: source of a published value.
        created: ISO 8601 in UTC; time of construction by default.

    Raises:
        RecordError: a value has a wrong type, the kind or status is unknown, a record of status `ok` has no finite
            value, a record of another status has no reason, or the unit does not match the metric.
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
        # JSON has only lists. Tuples make a record that was read equal to the record that was written.
        for name in ("shape", "spacing"):
            object.__setattr__(self, name, _three_numbers(name, getattr(self, name)))
        object.__setattr__(self, "samples", _finite_numbers("samples", self.samples))
        object.__setattr__(self, "unit", self.unit or UNITS.get(self.metric, ""))
        _check_types(self)
        _check_choices(self)
        _check_value(self)

    @property
    def label(self) -> str:
        """Method and variant, the name of a row."""
        return f"{self.method} {self.variant}".strip()

    @property
    def gpu(self) -> str:
        """Name of the measured GPU, or of the card for which the value is predicted; may be empty."""
        return str(self.env.get("target_gpu") or self.env.get("gpu") or "")

    def to_json(self) -> str:
        """Return the record as one line of JSON, without the newline."""
        return _to_json({f.name: getattr(self, f.name) for f in fields(self)})

    def content(self) -> str:
        """Return the record as JSON without `created` and `run_id`; records with equal content give equal text."""
        moment = ("created", "run_id")
        return _to_json({f.name: getattr(self, f.name) for f in fields(self) if f.name not in moment})

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Read a record from the output of `to_json`.

        Raises:
            LaterSchemaError: the record has a schema above `SCHEMA`.
            RecordError: the text is not a JSON object, or the object is not a valid record.
        """
        try:
            content = json.loads(text, parse_float=_parse_finite, parse_constant=_parse_finite)
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


def _three_numbers(name: str, value: object) -> tuple[Any, ...]:
    numbers = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    if len(numbers) not in (0, 3) or not all(_is_number(x) and x > 0 for x in numbers):
        raise RecordError(f"`{name}` is three positive numbers (D, H, W) or empty, got {value!r}")
    if name == "shape" and not all(isinstance(x, int) for x in numbers):
        raise RecordError(f"`shape` is three whole numbers of voxels (D, H, W), got {value!r}")
    return numbers


def _finite_numbers(name: str, value: object) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)) or not all(_is_number(x) for x in value):
        raise RecordError(f"`{name}` is a list of finite numbers, got {value!r}")
    return tuple(value)


def _is_number(value: object) -> bool:
    """Whether the value is a finite number; an integer must also lie within the range of a float."""
    return (type(value) is int or isinstance(value, float)) and abs(value) <= float_info.max


def _parse_finite(text: str) -> float:
    """Parse a JSON number; refuse NaN, Infinity and 1e999, which Python reads but JSON does not have."""
    if not abs(value := float(text)) <= float_info.max:
        raise ValueError(f"{text} is not a finite number")
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
        raise RecordError(f"a record of status ok needs a value; give one for `{metric}`, or another status")
    if record.status != "ok" and not record.reason:
        raise RecordError(f"a record of status {record.status} needs a `reason`: describe what happened")


def _check_fields(content: Mapping[str, Any], known: set[str]) -> None:
    schema = content.get("schema")
    if type(schema) is not int:
        raise RecordError(f"the schema of a record is a whole number, got {schema!r}")
    if schema > SCHEMA:
        raise LaterSchemaError(
            f"the record has schema {schema}, this version reads up to {SCHEMA}: read it with a later version of ppdm"
        )
    if unknown := sorted(content.keys() - known):
        raise RecordError(
            f"schema {schema} has no field {', '.join(unknown)}: the record was altered, or another program wrote it"
        )


def _to_json(content: object, **style: Any) -> str:
    try:
        return json.dumps(content, allow_nan=False, **style)
    except (TypeError, ValueError) as error:
        raise RecordError(f"options and environment must be plain JSON values without NaN: {error}") from None


def config_id(options: Mapping[str, Any]) -> str:
    """Return the identifier of a configuration: the first 12 hexadecimal digits of the SHA-256 of its canonical JSON.

    The order of keys does not matter. A tuple and a list with the same items give the same identifier.

    Raises:
        RecordError: an option is not a JSON value.
    """
    canonical = _to_json(dict(options), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def to_json_array(records: Iterable[Record]) -> str:
    """Return the records as one JSON array with one record per line, as `--json` prints it."""
    lines = ",\n".join(record.to_json() for record in records)
    return f"[\n{lines}\n]" if lines else "[]"


class RecordFile:
    """Append-only file of records, one JSON object per line.

    Rows are appended by a single write. If the last line is incomplete, a newline is added before new rows. Killing the
    process therefore loses at most the row being written. Several processes may append to the same file. A file whose
    name ends in `.gz` or `.xz` is a compressed archive: it is read-only.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def append(self, records: Iterable[Record]) -> None:
        """Append records and flush them to disk before returning; create the folder if it is missing.

        Raises:
            RecordError: the file cannot be written, or only part of the rows was written.
        """
        rows = "".join(record.to_json() + "\n" for record in records).encode()
        if not rows:
            return
        if self.path.suffix in COMPRESSED:
            raise RecordError(f"{self.path} is compressed and therefore read-only; add the records to another file")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            try:
                _write_rows(descriptor, rows)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise RecordError(
                f"cannot write records to {self.path}: {_os_error_text(error)}; give another place"
            ) from None

    def read(self) -> list[Record]:
        """Return every complete record in file order; an empty list if the file does not exist yet.

        Unreadable lines, such as the incomplete row of a killed run, are skipped. One `RecordWarning` reports their
        number.

        Raises:
            RecordError: the file cannot be read, or holds records of a later schema.
        """
        if self.path.is_char_device():  # unlike a pipe, a device such as /dev/zero may have no end
            raise RecordError(f"cannot read records from {self.path}: it is a device; name a file")
        try:
            content = self._expanded() if self.path.suffix in COMPRESSED else self.path.read_bytes()
        except FileNotFoundError:
            return []
        except DAMAGE as error:
            raise RecordError(f"cannot read records from {self.path}: the file is damaged ({error})") from None
        except OSError as error:
            raise RecordError(f"cannot read records from {self.path}: {_os_error_text(error)}") from None
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
        """Return the content of a compressed file; the size limit protects against exhausting memory."""
        content = read_start(self.path, _MAX_EXPANDED_BYTES + 1)
        if len(content) > _MAX_EXPANDED_BYTES:
            raise RecordError(
                f"{self.path} expands to more than {_MAX_EXPANDED_BYTES >> 20} MiB, the limit for compressed records; "
                "if it contains records, expand it with gunzip or unxz and name the result"
            )
        return content

    def _warn(self, unreadable: list[str]) -> None:
        shown = "; ".join(unreadable[:3]) + ("; ..." if len(unreadable) > 3 else "")
        message = f"{self.path}: {len(unreadable)} unreadable line(s) left out ({shown})"
        warnings.warn(message, RecordWarning, stacklevel=3)


def read_start(path: Path, limit: int) -> bytes:
    """Return the first `limit` bytes of a file, or all if it has fewer; a `.gz` or `.xz` file is expanded.

    Raises:
        OSError: the file cannot be read.
        EOFError, zlib.error, lzma.LZMAError (`DAMAGE`): the compressed data are truncated or corrupted.
    """
    if path.suffix != ".xz":
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            return stream.read(limit)
    decoder = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)
    content = decoder.decompress(path.read_bytes(), limit)
    if len(content) < limit and not decoder.eof:
        raise EOFError("the compressed data end too early")
    return content


def _write_rows(descriptor: int, rows: bytes) -> None:
    # If another process is appending, the last line may only look incomplete. The newline then adds a blank line.
    end = os.lseek(descriptor, 0, os.SEEK_END)
    if end:
        os.lseek(descriptor, end - 1, os.SEEK_SET)
        rows = rows if os.read(descriptor, 1) == b"\n" else b"\n" + rows
    if (written := os.write(descriptor, rows)) < len(rows):
        raise OSError(f"only {written} of {len(rows)} bytes were written; the disk may be full")
    os.fsync(descriptor)


def _os_error_text(error: OSError) -> str:
    if isinstance(error, FileExistsError | NotADirectoryError):
        return "a file stands where a folder is needed"
    return (error.strerror or str(error)).lower()
