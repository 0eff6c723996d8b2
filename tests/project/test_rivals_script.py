"""``benchmarks/harness/rivals.py``: its table from invented answers, and its choice of runs; no rival is needed."""

import csv
import io
from typing import Any

import pytest
import rivals
from rivals import CannotError, Found, as_csv, table

from ppdm_bench.predictor.target import GIB
from ppdm_bench.records import Record

FOUND = [
    Found("a", "peak_allocated", 10 * GIB, 79 * GIB, {"ours": 10 * GIB, "other": 5 * GIB, "third": "a layer"}),
    Found(
        "b", "peak_reserved", 20 * GIB, 79 * GIB, {"ours": 21 * GIB, "other": "what is reserved", "third": "a layer"}
    ),
    Found("c", "peak_allocated", None, 79 * GIB, {"ours": 80 * GIB, "other": 5 * GIB, "third": 3 * GIB}),
    Found("d", "peak_allocated", 4 * GIB, 79 * GIB, {"ours": 4 * GIB, "other": 8 * GIB, "third": 2 * GIB}),
]


def test_the_table_summarises_errors_and_states_why_predictions_are_missing() -> None:
    lines = table(FOUND).splitlines()
    assert lines[2:6] == [
        "| a | peak allocated | 10 | +0.0% | −50.0% | – |",
        "| b | peak reserved | 20 | +5.0% | – | – |",
        "| c | peak allocated | OOM | runs out | **fits** | **fits** |",
        "| d | peak allocated | 4 | +0.0% | +100.0% | −50.0% |",
    ]
    assert lines[6:9] == [
        "| **median** |  |  | 0.0% | 75.0% | 50.0% |",
        "| **worst** |  |  | +5.0% | +100.0% | −50.0% |",
        "| **ran** |  |  | 4 of 4 | 3 of 4 | 2 of 4 |",
    ]
    assert lines[10] == "*other* has no prediction for: what is reserved (1 of 4)."
    assert lines[12] == "*third* has no prediction for: a layer (2 of 4)."


def test_the_csv_has_predicted_bytes_or_a_reason() -> None:
    rows = list(csv.DictReader(io.StringIO(as_csv(FOUND))))
    assert rows[0]["other_bytes"] == str(5 * GIB)
    assert rows[1]["other_bytes"] == "what is reserved"
    assert rows[2]["published_bytes"] == ""


def test_every_published_peak_and_the_first_values_of_the_other_file_are_compared() -> None:
    records = list(rivals.chosen())
    assert len(records) == 21 + len(rivals.FIRST) + 1  # one run has two records
    assert {r.metric for r in records} == {"peak_allocated", "peak_reserved", "refused"}


def test_the_exception_of_a_tool_is_recorded_as_its_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(_: Record) -> int:
        raise CannotError("this")

    def breaks(_: Record) -> int:
        raise TypeError("that\nand more")

    monkeypatch.setattr(rivals, "TOOLS", {"one": refuses, "two": breaks, "three": lambda _: 7})
    common: dict[str, Any] = {"kind": "published", "metric": "peak_allocated", "env": {"torch": "2.8.0"}}
    (found,) = rivals.compare([Record(value=GIB, shape=(8, 8, 8), method="net", **common)])
    assert found.answers == {"one": "this", "two": "TypeError: that", "three": 7}
    assert found.name == "net, 8×8×8"


def test_the_memory_tracker_of_pytorch_predicts_a_convolution(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rivals.published_runs, "DEVICE", "cpu")
    options = {"step": "convolution", "x": [[1, 4, 8, 8]], "layer": [4, 4, 3], "gradients": False, "dtype": "fp32"}
    common: dict[str, Any] = {"kind": "published", "metric": "peak_allocated", "value": 1, "phase": "forward"}
    seen = rivals.mem_tracker(Record(options=options, **common))
    assert 2 * 4 * 8 * 8 * 4 <= seen < 2 * 4 * 8 * 8 * 4 + 4096  # input, output and a small weight
