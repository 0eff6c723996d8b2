"""Predicted against measured peaks of our own methods, from synthetic records like those of a machine with a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest

from ppdm_bench.records import Record
from ppdm_bench.report.figures.agreement import measured_figure, measured_table
from ppdm_bench.report.figures.style import save
from ppdm_bench.report.tables import memory as table

GIB = 2**30
CARD = {"gpu": "NVIDIA H100 80GB HBM3", "torch": "2.11.0+cu126"}


def record(method: str, size: int, gibibytes: float, kind: str, **other: Any) -> Record:
    """Return a peak like a record of `memory`: predicted for a release of PyTorch, measured with a build of it."""
    env = CARD if kind == "measured" else {**CARD, "torch": "2.11.0", "capacity": 80 * GIB}
    common: dict[str, Any] = {"shape": (size,) * 3, "batch_size": 1, "precision": "fp32", "device": "cuda"}
    common |= {"metric": "peak_allocated", "phase": "train", "env": env, "command": "memory"}
    return Record(**{**common, "method": method, "kind": kind, "value": round(gibibytes * GIB), **other})


def both(method: str, size: int, measured: float, predicted: float, **other: Any) -> list[Record]:
    return [record(method, size, predicted, "predicted", **other), record(method, size, measured, "measured", **other)]


RECORDS = [
    *both("puzzle", 64, 0.5, 0.505),
    *both("puzzle", 64, 0.5, 0.49, phase="sample"),
    *both("puzzle", 64, 1.0, 1.04, metric="peak_reserved"),
    *both("puzzle", 128, 4, 4.08),
    *both("full", 128, 32, 32),
    record("puzzle", 64, 1.04, "measured", metric="verified_at"),
    record("puzzle", 64, 1, "measured", metric="verified_at", phase="sample", status="oom", reason="out of memory"),
    record("lonely", 64, 1, "measured"),
    record("full", 256, 70, "predicted"),
    record("full", 256, 70, "measured", status="oom", reason="out of memory"),
]


def test_the_table_has_errors_by_method_and_size() -> None:
    lines = measured_table(RECORDS).splitlines()
    assert "(NVIDIA H100 80GB HBM3, torch 2.11.0+cu126)" in lines[0]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    assert {len(row) for row in cells} == {11}
    assert cells[2:] == [
        ["puzzle", "64×64×64", *("2", "1.50%", "−2.00%", "+1.00%"), *("1", "4.00%", "+4.00%", "+4.00%"), "1 of 2"],
        ["puzzle", "128×128×128", *("1", "2.00%", "+2.00%", "+2.00%"), *("0", "–", "–", "–"), "–"],
        ["full", "128×128×128", *("1", "0.00%", "+0.00%", "+0.00%"), *("0", "–", "–", "–"), "–"],
        ["all", "–", *("4", "1.50%", "−2.00%", "+2.00%"), *("1", "4.00%", "+4.00%", "+4.00%"), "1 of 2"],
    ]


def test_the_figure_shows_each_pair_and_its_error(tmp_path: Path) -> None:
    drawn = measured_figure(RECORDS)
    scatter, allocated, reserved = drawn.axes
    points = {tuple(p) for line in scatter.lines[1:] for p in np.round(line.get_xydata(), 6).tolist()}
    assert points == {(0.5, 0.505), (0.5, 0.49), (1.0, 1.04), (4, 4.08), (32, 32)}
    errors = {tuple(p) for line in allocated.lines[1:] for p in np.round(line.get_xydata(), 6).tolist()}
    assert errors == {(0.5, 1.0), (0.5, -2.0), (4, 2.0), (32, 0.0)}
    assert [round(y, 6) for line in reserved.lines[1:] for y in line.get_ydata()] == [4.0]
    assert all(line.get_markerfacecolor() == "none" for axes in drawn.axes for line in axes.lines[1:])
    png, _ = save(drawn, tmp_path / "agreement")
    assert matplotlib.image.imread(png).shape[1] == round(7.16 * 300)


def test_without_reserved_memory_there_is_one_panel_of_errors() -> None:
    drawn = measured_figure(both("puzzle", 64, 1, 1, device="cpu", env={"torch": "2.13.0"}))
    assert [axes.get_title(loc="left") for axes in drawn.axes] == ["", "allocated memory"]


@pytest.mark.parametrize("make", [measured_figure, measured_table])
def test_records_without_a_pair_of_peaks_are_refused(make: Any) -> None:
    with pytest.raises(ValueError, match="there is nothing to compare"):
        make([one for one in RECORDS if one.kind == "predicted" or one.method == "lonely"])


def test_the_main_table_has_measured_rows_with_the_error_of_the_prediction() -> None:
    """If there are measurements, the table of the README has a measured row in addition to the predicted one."""
    shown = table.memory_page(table.memory_table([one for one in RECORDS if one.shape == (64,) * 3])).to_markdown()
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in shown.splitlines() if "puzzle" in line]
    head = next([c.strip() for c in line.strip("|").split("|")] for line in shown.splitlines() if "| kind" in line)
    rows = {row["kind"]: row for row in (dict(zip(head, line, strict=True)) for line in lines)}
    assert (rows["measured"]["train GiB"], rows["predicted"]["train GiB"]) == ("0.500", "0.505")
    assert rows["measured"]["train prediction error"] == "+1.00%"
    assert rows["measured"]["train reserved GiB"] == "1.00"
    assert (rows["measured"]["train verified"], rows["measured"]["sample verified"]) == ("yes", "no")
    assert rows["predicted"]["train verified"] == rows["predicted"]["train prediction error"] == "–"
