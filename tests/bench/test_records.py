"""Records: their fields, JSON and files, and which records survive a kill."""

from __future__ import annotations

import gzip
import json
import lzma
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppdm_bench.records import SCHEMA, Record, RecordError, RecordFile, RecordWarning, config_id, to_json_array

FULL = Record(
    run_id="run",
    config_id="0123456789ab",
    command="memory",
    method="ppdm",
    variant="r=4",
    shape=(256, 192, 160),
    spacing=(1.0, 0.9, 0.9),
    batch_size=2,
    phase="train",
    precision="bf16",
    checkpointing="block",
    metric="peak_allocated",
    value=3_650_722_201,
    stat="max",
    n=1,
    kind="measured",
    seed=0,
    device="cuda",
    env={"torch": "2.13.0", "dirty": False},
    options={"width": 64, "multipliers": [1, 2, 2, 4]},
    samples=(3_650_722_201, 3_650_000_000.5),
)


def simple(value: float = 1, **other: Any) -> Record:
    return Record(**({"metric": "peak_allocated", "value": value, "kind": "measured"} | other))


def python(code: str, *arguments: str) -> subprocess.Popen[str]:
    """Start a new interpreter with the import path of this one."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments], env=environment, stdout=subprocess.PIPE, text=True
    )


# Fields


def test_a_record_of_the_first_schema_is_read_and_has_no_samples() -> None:
    first = Record.from_json('{"schema": 1, "metric": "x", "kind": "measured", "value": 1}')
    assert (first.value, first.samples) == (1, ())


def test_the_unit_follows_from_the_metric() -> None:
    assert FULL.unit == "B"
    assert simple(metric="parameters", value=26).unit == "1"
    assert simple(metric="seconds_per_volume", value=1.5, unit="s").unit == "s"


def test_a_record_is_dated_in_utc() -> None:
    assert datetime.fromisoformat(simple().created).utcoffset() == timedelta(0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "guessed"}, "measured, predicted, published"),
        ({"status": "fine"}, "ok, oom, timeout"),
        ({"value": None}, "needs a value"),
        ({"value": float("nan")}, "finite"),
        ({"value": float("inf")}, "finite"),
        ({"value": True}, "finite"),
        ({"value": -1}, "negative"),
        ({"unit": "GiB"}, "stored in 'B'"),
        ({"metric": ""}, "needs a `metric`"),
        ({"status": "oom", "value": None}, "needs a `reason`"),
        ({"shape": (64, 64)}, "three positive"),
        ({"shape": (64, 64, 1.5)}, "whole numbers"),
        ({"shape": (64, 64, 0)}, "three positive"),
        ({"batch_size": 0}, "batch_size"),
        ({"seed": 1.5}, "seed"),
        ({"method": 5}, "`method`"),
        ({"compile": 1}, "`compile`"),
        ({"env": []}, "`env`"),
        ({"samples": 1.5}, "`samples`"),
        ({"samples": [1.0, float("nan")]}, "`samples`"),
    ],
)
def test_invalid_fields_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(RecordError, match=message):
        replace(FULL, **change)


def test_a_failure_needs_no_value_but_may_have_one() -> None:
    failed = replace(FULL, status="oom", value=None, reason="out of memory")
    assert failed.value is None
    assert replace(failed, value=7).value == 7


# JSON


def test_json_has_every_field_and_reads_back_equal() -> None:
    content = json.loads(FULL.to_json())
    assert content["schema"] == SCHEMA
    assert content["shape"] == [256, 192, 160]
    assert content["value"] == 3_650_722_201
    assert Record.from_json(FULL.to_json()) == FULL


@settings(max_examples=40, deadline=None)
@given(
    value=st.one_of(st.integers(0, 2**60), st.floats(0, allow_infinity=False, allow_nan=False)),
    reason=st.text(),
    options=st.dictionaries(st.text(), st.one_of(st.none(), st.booleans(), st.integers(), st.text())),
)
def test_any_record_is_one_line_and_reads_back_equal(value: float, reason: str, options: dict[str, Any]) -> None:
    record = simple(value, reason=reason, options=options)
    line = record.to_json()
    assert len(line.splitlines()) == 1
    assert Record.from_json(line) == record


def test_a_later_schema_is_refused() -> None:
    later = json.loads(FULL.to_json()) | {"schema": SCHEMA + 1, "colour": "blue"}
    with pytest.raises(RecordError, match=f"schema {SCHEMA + 1}.*reads up to {SCHEMA}.*later version"):
        Record.from_json(json.dumps(later))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not a line of JSON"),
        ("[" * 100_000, "not a line of JSON"),
        ("[1]", "JSON object, got list"),
        ("{}", "schema"),
        ('{"schema": 1}', "metric"),
        ('{"schema": 1, "metric": "x", "kind": "measured", "value": 1, "colour": 2}', "no field colour"),
        ('{"schema": 1, "metric": "x", "kind": "measured", "value": NaN}', "finite"),
        ('{"schema": 1, "metric": "x", "kind": ["measured"], "value": 1}', "`kind`"),
    ],
)
def test_text_that_is_not_a_record_is_refused(text: str, message: str) -> None:
    with pytest.raises(RecordError, match=message):
        Record.from_json(text)


def test_options_that_are_not_json_are_refused() -> None:
    with pytest.raises(RecordError, match="plain JSON"):
        simple(options={"path": Path("x")}).to_json()
    with pytest.raises(RecordError, match="plain JSON"):
        config_id({"rate": float("nan")})


def test_config_id_depends_on_the_content_and_not_on_its_order() -> None:
    # The first 12 digits of the SHA-256 of {"factor":[2,2,2],"method":"ppdm"}, computed with sha256sum.
    assert config_id({"method": "ppdm", "factor": (2, 2, 2)}) == "d8a34e1ea586"
    assert config_id({"factor": [2, 2, 2], "method": "ppdm"}) == "d8a34e1ea586"
    assert config_id({"factor": [2, 2, 1], "method": "ppdm"}) != "d8a34e1ea586"


def test_several_records_are_written_as_one_json_array() -> None:
    assert [content["value"] for content in json.loads(to_json_array([simple(1), simple(2)]))] == [1, 2]
    assert json.loads(to_json_array([])) == []


# Files


def test_records_are_appended_in_order(tmp_path: Path) -> None:
    file = RecordFile(tmp_path / "new" / "records.jsonl")
    assert file.read() == []
    file.append([FULL, simple(2)])
    file.append([])
    file.append(iter([simple(3)]))
    assert [record.value for record in file.read()] == [FULL.value, 2, 3]
    assert file.path.read_text().count("\n") == 3


@pytest.mark.parametrize("kept", [1, 40, -2])
def test_only_a_torn_last_line_is_lost(tmp_path: Path, kept: int) -> None:
    file = RecordFile(tmp_path / "records.jsonl")
    file.append([simple(1), simple(2)])
    first, second = file.path.read_bytes().splitlines(keepends=True)
    os.truncate(file.path, len(first) + len(second[:kept]))
    with pytest.warns(RecordWarning, match=r"records\.jsonl: 1 unreadable line\(s\) left out \(line 2:"):
        assert [record.value for record in file.read()] == [1]
    file.append([simple(3)])
    with pytest.warns(RecordWarning, match="line 2"):
        assert [record.value for record in file.read()] == [1, 3]


def test_a_line_without_its_newline_is_kept(tmp_path: Path) -> None:
    file = RecordFile(tmp_path / "records.jsonl")
    file.append([simple(1)])
    os.truncate(file.path, file.path.stat().st_size - 1)
    file.append([simple(2)])
    assert [record.value for record in file.read()] == [1, 2]


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".xz", lzma.compress)])
def test_a_compressed_file_is_read_only(tmp_path: Path, suffix: str, pack: Callable[[bytes], bytes]) -> None:
    plain = RecordFile(tmp_path / "records.jsonl")
    plain.append([FULL, simple(2)])
    path = tmp_path / f"records.jsonl{suffix}"
    path.write_bytes(pack(plain.path.read_bytes()))
    assert RecordFile(path).read() == plain.read()
    with pytest.raises(RecordError, match="therefore read-only"):
        RecordFile(path).append([FULL])
    whole = path.read_bytes()
    for damaged in (whole[:-9], b"no archive", whole[:20] + b"\0" * 9 + whole[29:]):
        path.write_bytes(damaged)
        with pytest.raises(RecordError, match="cannot read records"):
            RecordFile(path).read()


def test_a_line_of_binary_data_is_left_out(tmp_path: Path) -> None:
    file = RecordFile(tmp_path / "records.jsonl")
    file.append([simple(1)])
    with file.path.open("ab") as raw:
        raw.write(b"\x00\x00\xff\xfe\n")
    with pytest.warns(RecordWarning, match="line 2"):
        assert file.read() == [simple(1)]


def test_a_later_schema_in_a_file_is_an_error(tmp_path: Path) -> None:
    file = RecordFile(tmp_path / "records.jsonl")
    file.append([simple(1)])
    with file.path.open("a") as raw:
        raw.write('{"schema": 99}\n')
    with pytest.raises(RecordError, match=r"records\.jsonl, line 2: the record has schema 99"):
        file.read()


def test_paths_that_cannot_be_written_or_read_are_reported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RecordError, match=r"cannot write records to .*: is a directory"):
        RecordFile(tmp_path).append([FULL])
    with pytest.raises(RecordError, match=r"cannot write records to .*: a file stands where a folder is needed"):
        RecordFile(tmp_path / "file" / "records.jsonl").append([FULL])
    with pytest.raises(RecordError, match=r"cannot read records from .*directory"):
        RecordFile(tmp_path).read()


def test_one_invalid_record_prevents_writing_all_records(tmp_path: Path) -> None:
    file = RecordFile(tmp_path / "records.jsonl")
    with pytest.raises(RecordError):
        file.append([simple(1), simple(options={"bad": object()})])
    assert not file.path.exists()


def test_a_full_disk_is_reported_and_later_records_are_readable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = RecordFile(tmp_path / "records.jsonl")
    file.append([simple(1)])
    write = os.write
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", lambda descriptor, rows: write(descriptor, rows[:30]))
        with pytest.raises(RecordError, match=r"only 30 of .* the disk may be full"):
            file.append([simple(2)])
    file.append([simple(3)])
    with pytest.warns(RecordWarning, match="1 unreadable"):
        assert [record.value for record in file.read()] == [1, 3]


APPEND = """
import sys
from ppdm_bench.records import Record, RecordFile
file = RecordFile(sys.argv[1])
for value in range(int(sys.argv[3])):
    file.append([Record(metric="x", kind="measured", value=value, method=sys.argv[2], reason="long " * 400)])
    print(value, flush=True)
"""


def test_two_processes_append_whole_lines(tmp_path: Path) -> None:
    file = RecordFile(tmp_path / "records.jsonl")
    writers = [python(APPEND, str(file.path), name, "60") for name in "ab"]
    for writer in writers:
        writer.communicate()
    assert [writer.returncode for writer in writers] == [0, 0]
    records = file.read()
    for name in "ab":
        assert [record.value for record in records if record.method == name] == list(range(60))


def test_records_that_were_appended_before_a_kill_are_kept(tmp_path: Path) -> None:
    file = RecordFile(tmp_path / "records.jsonl")
    with python(APPEND, str(file.path), "killed", "1000000") as writer:
        assert writer.stdout is not None
        for _ in range(20):
            writer.stdout.readline()
        writer.send_signal(signal.SIGKILL)
    file.append([simple(7, method="after")])
    with warnings.catch_warnings():
        # The line that was being written may be torn.
        warnings.simplefilter("ignore", RecordWarning)
        values = [record.value for record in file.read()]
    assert values == [*range(len(values) - 1), 7]
    assert len(values) > 20


def test_records_do_not_import_torch_numpy_pandas_or_ppdm() -> None:
    code = "import sys, ppdm_bench.records; print(*{'torch', 'numpy', 'pandas', 'ppdm'} & set(sys.modules))"
    assert python(code).communicate()[0].split() == []
