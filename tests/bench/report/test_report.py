"""Tables and figures of memory: hand-written records, and expected numbers computed by hand."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.image
import numpy as np
import pandas as pd
import pytest
from matplotlib.patches import Rectangle

from ppdm_bench import units
from ppdm_bench.records import Record, config_id
from ppdm_bench.report.figures import style
from ppdm_bench.report.figures.agreement import agreement_table, validation_figure
from ppdm_bench.report.figures.breakdown import breakdown_figure
from ppdm_bench.report.figures.memory import memory_figure
from ppdm_bench.report.figures.style import save
from ppdm_bench.report.rows import gather_peaks
from ppdm_bench.report.tables import memory as table

GIB = 2**30


def peak(method: str, phase: str, size: float | None, kind: str = "measured", **other: Any) -> Record:
    """Return a record of a peak of `size` GiB for a volume of 64³."""
    common: dict[str, Any] = {"shape": (64, 64, 64), "batch_size": 1, "precision": "fp32", "device": "cuda"}
    value = None if size is None else round(size * GIB)
    fields = {"metric": "peak_allocated", "method": method, "phase": phase, "kind": kind, "value": value}
    return Record(**(common | fields | other))


def failed(method: str, phase: str, reason: str, status: str = "oom", **other: Any) -> Record:
    return peak(method, phase, None, status=status, reason=reason, **other)


SMALL = [
    peak("full", "train", 16),
    peak("full", "sample", 5),
    peak("puzzle", "train", 2, variant="r=2"),
    peak("puzzle", "train", 2.5, variant="r=2", metric="peak_reserved"),
    peak("puzzle", "sample", 0.5, variant="r=2"),
    replace(peak("puzzle", "", 1, variant="r=2", metric="parameters"), value=26_100_000),
]
PREDICTED = [
    peak("full", "train", 16.4, "predicted"),
    peak("puzzle", "train", 1.9, "predicted", variant="r=2"),
    peak("puzzle", "sample", 0.5, "predicted", variant="r=2"),
]


def cell(frame: pd.DataFrame, column: str, **where: str) -> Any:
    rows = frame
    for name, value in where.items():
        rows = rows[rows[name] == value]
    assert len(rows) == 1
    return rows[column].iloc[0]


# Units


def test_numbers_are_rounded_and_get_readable_units() -> None:
    assert [units.gib(x * GIB) for x in (155, 20.128, 0.8, 0.0512345, 0)] == ["155.00", "20.13", "0.800", "0.0512", "0"]
    assert [units.significant(x) for x in (9.999, 0.00009999, 1234, -0.5)] == ["10.0", "0.000100", "1234", "-0.500"]
    assert [units.count(x) for x in (26_100_000, 1_234, 999, 2.5e9)] == ["26.1 M", "1.23 k", "999", "2.50 G"]
    assert [units.ratio(x) for x in (20.1 / 155, 3.4 / 155, 0.92, 1, 1.3)] == [
        "0.130×",
        "0.0219×",
        "0.920×",
        "1.00×",
        "1.30×",
    ]


def test_a_long_name_is_broken_at_blanks_and_plus_signs() -> None:
    assert style.wrap_label("ppdm r=2", 8) == "ppdm r=2"
    name = "ppdm r=2 network.compile=true+network.channels_last=true"
    assert style.wrap_label(name, 29).split("\n") == ["ppdm r=2", "network.compile=true+", "network.channels_last=true"]
    assert style.wrap_label("kernel.gamma=0.25", 4) == "kernel.gamma=0.25"


# The table


def test_the_table_has_a_row_per_configuration_and_columns_per_phase() -> None:
    frame = table.memory_table(SMALL)
    assert list(frame["method"]) == ["full", "puzzle"]
    assert cell(frame, "train_peak_allocated", method="puzzle") == 2 * GIB
    assert cell(frame, "sample_peak_allocated", method="puzzle") == GIB // 2
    assert cell(frame, "train_peak_reserved", method="puzzle") == 2.5 * GIB
    assert cell(frame, "train_peak_reserved", method="full") is pd.NA
    assert cell(frame, "parameters", method="puzzle") == 26_100_000
    assert cell(frame, "shape", method="full") == "64x64x64"
    assert "train_ratio" not in frame
    assert "train_fits" not in frame
    assert "sample_peak_reserved" not in frame


def test_the_reason_of_a_successful_record_is_a_note_below_the_table() -> None:
    note = "for the uncompiled network; the compiler can change its memory"
    frame = table.memory_table([*SMALL, peak("compiled", "train", 2, reason=note)])
    assert (cell(frame, "train_status", method="compiled"), cell(frame, "train_reason", method="compiled")) == (
        "ok",
        note,
    )
    assert f"compiled, measured, train: {note}" in table.memory_page(frame).to_markdown()


def test_ratios_are_relative_to_the_reference_with_the_same_settings() -> None:
    records = [*SMALL, peak("full", "train", 8, precision="bf16"), peak("puzzle", "train", 1.6, precision="bf16")]
    frame = table.memory_table(records, reference="full")
    assert cell(frame, "train_ratio", method="puzzle", precision="fp32") == 2 / 16
    assert cell(frame, "sample_ratio", method="puzzle", precision="fp32") == 0.1
    assert cell(frame, "train_ratio", method="puzzle", precision="bf16") == pytest.approx(0.2)
    assert cell(frame, "train_ratio", method="full", precision="fp32") == 1
    assert math.isnan(cell(frame, "sample_ratio", method="puzzle", precision="bf16"))


def test_runs_with_checkpointing_are_compared_with_the_plain_reference() -> None:
    records = [
        peak("full", "train", 9, checkpointing="block"),
        peak("full", "train", 16),
        peak("puzzle", "train", 1, checkpointing="block"),
    ]
    frame = table.memory_table(records, reference="full")
    assert cell(frame, "train_ratio", method="puzzle") == 1 / 16
    assert cell(frame, "train_ratio", method="full", checkpointing="block") == 9 / 16
    assert set(frame["ratio_reference"]) == {"full, checkpointing none"}


def test_of_several_references_the_one_of_the_same_variant_is_used() -> None:
    records = [peak(m, "train", size, variant=v) for m, v, size in (("full", "authors", 20), ("full", "matched", 10))]
    records += [peak("patch", "train", 5, variant="matched"), peak("patch", "train", 5, variant="other")]
    frame = table.memory_table(records, reference="full")
    assert cell(frame, "train_ratio", method="patch", variant="matched") == 0.5
    assert cell(frame, "train_ratio", method="patch", variant="other") == 0.25


def test_predicted_and_measured_never_share_a_row() -> None:
    for records in (SMALL + PREDICTED, PREDICTED + SMALL):
        assert all({record.kind for record in row.records.values()} == {row.kind} for row in gather_peaks(records))
        frame = table.memory_table(records, reference="full")
        assert len(frame) == 4
        assert cell(frame, "train_peak_allocated", method="puzzle", kind="measured") == 2 * GIB
        assert cell(frame, "train_ratio", method="puzzle", kind="predicted") == pytest.approx(1.9 / 16.4)
        # Sampling has no predicted reference, and a prediction is not compared with the measured one.
        assert math.isnan(cell(frame, "sample_ratio", method="puzzle", kind="predicted"))


def test_the_measured_row_has_the_error_of_its_prediction() -> None:
    frame = table.memory_table(SMALL + PREDICTED)
    assert cell(frame, "train_prediction_error", method="puzzle", kind="measured") == pytest.approx(1.9 / 2 - 1)
    assert cell(frame, "train_prediction_error", method="full", kind="measured") == pytest.approx(0.025)
    assert cell(frame, "sample_prediction_error", method="puzzle", kind="measured") == 0
    assert math.isnan(cell(frame, "train_prediction_error", method="full", kind="predicted"))


def test_the_memory_table_compares_no_prediction_with_a_published_peak() -> None:
    records = [peak("full", "train", 16, "published"), peak("full", "train", 15, "predicted")]
    assert "train_prediction_error" not in table.memory_table(records)


def test_a_prediction_for_a_gpu_is_not_compared_with_a_run_on_the_cpu() -> None:
    records = [peak("full", "train", 16, device="cpu"), peak("full", "train", 15, "predicted", device="cuda")]
    assert "train_prediction_error" not in table.memory_table(records)
    records.append(peak("full", "train", 8, "predicted", device="cpu"))
    assert set(table.memory_table(records)["train_prediction_error"].dropna()) == {-0.5}


def test_reserved_memory_decides_what_fits_if_it_is_known() -> None:
    records = [*SMALL, failed("other", "train", "no")]
    frame = table.memory_table(records, budget=round(2.2 * GIB))
    assert not cell(frame, "train_fits", method="puzzle")
    assert cell(frame, "sample_fits", method="puzzle")
    assert cell(frame, "train_fits", method="other") is pd.NA
    assert cell(table.memory_table(records, budget=round(2.5 * GIB)), "train_fits", method="puzzle")


def test_a_prediction_for_exactly_this_budget_decides_what_fits() -> None:
    env, budget = {"capacity": 10 * GIB}, 10 * GIB
    tight = [
        peak("tight", "train", size, "predicted", env=env, metric=m)
        for m, size in (("peak_allocated", 9), ("peak_reserved", 12))
    ]
    large = peak("large", "train", 9, "predicted", status="oom", reason="no", env=env)
    frame = table.memory_table([*tight, large], budget=budget)
    assert cell(frame, "train_fits", method="tight")  # free segments are returned before memory runs out
    assert not cell(frame, "train_fits", method="large")
    assert not cell(table.memory_table(tight, budget=11 * GIB), "train_fits", method="tight")


def test_the_assumed_part_of_a_prediction_is_noted_and_shown_on_request() -> None:
    records = [*PREDICTED, peak("puzzle", "train", 0.475, "predicted", variant="r=2", metric="assumed")]
    frame = table.memory_table(records)
    assert cell(frame, "train_assumed", method="puzzle") == round(0.475 * GIB)
    assert cell(frame, "train_assumed", method="full") is pd.NA
    assert "Up to 25% of a predicted peak is assumed" in table.memory_page(frame).to_markdown()  # 0.475 of 1.9
    assert "train assumed GiB" not in table.memory_page(frame).to_text()
    assert "train assumed GiB" in table.memory_page(frame, assumed=True).to_text()
    assert "is assumed" not in table.memory_page(table.memory_table(PREDICTED)).to_markdown()


def test_a_failure_is_shown_in_its_cell_and_its_reason_in_a_note() -> None:
    records = [failed("full", "train", "out of | memory"), peak("full", "sample", 5), *SMALL[2:]]
    frame = table.memory_table(records, reference="full")
    assert cell(frame, "train_status", method="full") == "oom"
    assert cell(frame, "train_reason", method="full") == "out of | memory"
    assert cell(frame, "train_peak_allocated", method="full") is pd.NA
    assert math.isnan(cell(frame, "train_ratio", method="puzzle"))
    for text in (table.memory_page(frame).to_markdown(), table.memory_page(frame).to_text()):
        assert " OOM " in text
        assert "full, measured, train: out of | memory" in text


def test_the_memory_of_a_failed_run_is_not_shown_as_its_peak() -> None:
    measured = peak("full", "train", 79, status="oom", reason="out of memory")
    foretold = peak("full", "train", 155, "predicted", status="oom", reason="155 GiB do not fit 80 GiB")
    frame = table.memory_table([measured, foretold])
    assert list(frame["train_peak_allocated"]) == [pd.NA, 155 * GIB]
    assert "155.00 OOM" in table.memory_page(frame).to_text()


def test_the_later_of_two_records_of_one_value_counts() -> None:
    frame = table.memory_table([failed("full", "train", "killed", status="killed"), peak("full", "train", 16)])
    assert list(frame["train_status"]) == ["ok"]
    assert list(frame["train_peak_allocated"]) == [16 * GIB]


def test_other_phases_become_columns_after_training_and_sampling() -> None:
    phases = ["decode", "train", "mine", "autoencoder_train", "sample"]
    frame = table.memory_table([peak("latent", phase, 1) for phase in phases])
    columns = [c.removesuffix("_peak_allocated") for c in frame.columns if c.endswith("allocated")]
    assert columns == ["train", "sample", "autoencoder_train", "decode", "mine"]


def test_gpu_and_version_are_columns_only_if_rows_differ_in_them() -> None:
    records = [peak("full", "train", size, env={"gpu": gpu}) for size, gpu in ((16, "A100"), (17, "H100"))]
    frame = table.memory_table(records)
    assert list(frame["gpu"]) == ["A100", "H100"]
    assert "torch" not in frame
    assert "gpu" not in table.memory_table(records[:1])


def test_records_of_other_metrics_make_no_row() -> None:
    other = Record(metric="psnr", value=30.0, unit="dB", kind="measured", method="full")
    assert len(table.memory_table([other, *SMALL])) == 2
    empty = table.memory_table([other], reference="full", budget=GIB)
    assert len(empty) == 0
    assert table.memory_page(empty).to_csv().startswith("method,variant,shape")
    assert table.memory_page(empty).to_text().startswith("Peak memory")


def test_the_csv_is_exact() -> None:
    assert table.memory_page(table.memory_table(SMALL[:3], reference="full", budget=8 * GIB)).to_csv() == (
        "method,variant,shape,batch_size,precision,checkpointing,kind,parameters,"
        "train_peak_allocated,train_ratio,train_fits,train_status,train_reason,"
        "sample_peak_allocated,sample_ratio,sample_fits,sample_status,sample_reason,ratio_reference\n"
        "full,,64x64x64,1,fp32,none,measured,,17179869184,1,False,ok,,5368709120,1,True,ok,,"
        '"full, checkpointing none"\n'
        'puzzle,r=2,64x64x64,1,fp32,none,measured,,2147483648,0.125,True,ok,,,,,,,"full, checkpointing none"\n'
    )


def test_the_markdown_is_exact() -> None:
    assert table.memory_page(table.memory_table(SMALL + PREDICTED[1:2], reference="full")).to_markdown() == (
        "Peak memory, 64×64×64, batch size 1, fp32, no checkpointing\n\n"
        "| method | kind | parameters | train GiB | train ratio | train prediction error | train reserved GiB "
        "| sample GiB | sample ratio |\n"
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n"
        "| full | measured | – | 16.00 | 1.00× | – | – | 5.00 | 1.00× |\n"
        "| puzzle r=2 | measured | 26.1 M | 2.00 | 0.125× | −5.00% | 2.50 | 0.500 | 0.100× |\n"
        "| puzzle r=2 | predicted | – | 1.90 | – | – | – | – | – |\n\n"
        "GiB (2³⁰ bytes): peak of live tensors (peak_allocated). Ratio: relative to full, checkpointing none, with the "
        "same kind and all other settings equal. Prediction error: predicted / measured − 1. Reserved: memory that the "
        "allocator takes from the driver if nothing limits it; less can suffice.\n"
    )


def test_the_same_records_make_the_same_files(tmp_path: Path) -> None:
    first = table.memory_page(table.memory_table(SMALL)).save(tmp_path / "a" / "memory.v1")
    second = table.memory_page(table.memory_table(SMALL)).save(tmp_path / "b" / "memory.v1")
    assert [path.name for path in first] == ["memory.v1.csv", "memory.v1.md", "memory.v1.tex"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert len(list(first[0].parent.iterdir())) == 3


def test_the_text_for_the_terminal_shows_cells_and_reasons() -> None:
    page = table.memory_page(table.memory_table([*SMALL, *PREDICTED, failed("other", "train", "[no]")]))
    for shown in ("Peak memory, 64×64×64", "puzzle", "predicted", "26.1 M", "0.500", "OOM", "train: [no]"):
        assert shown in page.to_text()


# The figures


def bars(drawn: Any) -> list[Rectangle]:
    return [patch for patch in drawn.axes[0].patches if isinstance(patch, Rectangle)]


def words(drawn: Any) -> str:
    drawn.draw_without_rendering()
    texts = [text.get_text() for axes in drawn.axes for text in axes.texts]
    return " | ".join([*texts, *(text.get_text() for legend in drawn.legends for text in legend.get_texts())])


def dots(drawn: Any) -> dict[float, Any]:
    """Return the markers by their values."""
    lines = [line for line in drawn.axes[0].lines if line.get_marker() in ("o", "D")]
    return {round(float(line.get_xdata()[0]), 6): line for line in lines}


def test_dots_lie_at_the_peak_and_predictions_are_hollow() -> None:
    drawn = memory_figure(SMALL + PREDICTED, reference="full")
    found = dots(drawn)
    assert sorted(found) == [0.5, 1.9, 2, 5, 16, 16.4]
    assert found[16.4].get_markerfacecolor() == "white"
    assert found[16].get_markerfacecolor() == found[16.4].get_color() == found[16].get_color()
    assert drawn.axes[0].get_xscale() == "log"
    text = words(drawn)
    for shown in ("2.00 (0.125×)", "1.90 (0.116×)", "8 GB", "training", "sampling", "measured", "predicted"):
        assert shown in text


def test_legend_entries_of_kinds_have_no_colour_of_a_phase() -> None:
    legend = memory_figure(SMALL + PREDICTED).legends[0]
    texts = [text.get_text() for text in legend.get_texts()]
    faces = {text: line.get_markerfacecolor() for text, line in zip(texts, legend.get_lines(), strict=False)}
    assert (faces["measured"], faces["predicted"]) == ("0.4", "white")


def test_checkpointing_is_another_marker_in_the_same_row() -> None:
    drawn = memory_figure([peak("full", "train", 16), peak("full", "train", 7, checkpointing="block")])
    found = dots(drawn)
    assert (found[16].get_marker(), found[7].get_marker()) == ("o", "D")
    assert found[16].get_ydata()[0] == found[7].get_ydata()[0]
    assert len(drawn.axes[0].get_yticklabels()) == 1
    assert "block checkpointing" in words(drawn)


def test_at_most_eight_names_are_drawn_and_the_rest_is_counted() -> None:
    many = [peak(f"m{n // 3}", "train", 1 + n, variant=f"v{n % 3}") for n in range(30)]
    drawn = memory_figure(many)
    names = [tick.get_text() for tick in drawn.axes[0].get_yticklabels()]
    assert names == ["m0 v0", "m0 v1", *(f"m{n} v0" for n in range(1, 7))]
    assert "22 more rows" in drawn.get_suptitle().replace("\n", " ")


def test_a_failed_run_is_labelled_and_has_no_dot() -> None:
    drawn = memory_figure([failed("full", "train", "no"), peak("puzzle", "train", 2)])
    assert list(dots(drawn)) == [2]
    assert "OOM" in words(drawn)
    assert "OOM" in words(memory_figure([failed("full", "train", "no")]))


@pytest.mark.parametrize(
    ("statuses", "legend"),
    [(["skipped"], "skipped"), (["oom"], "failed"), (["skipped", "killed", "oom"], "failed or skipped")],
)
def test_the_legend_distinguishes_failed_from_skipped_runs(statuses: list[str], legend: str) -> None:
    drawn = memory_figure([failed(f"m{i}", "train", "no", status) for i, status in enumerate(statuses)])
    assert f"no value: {legend}" in [text.get_text() for text in drawn.legends[0].get_texts()]


def test_no_label_leaves_the_figure_or_touches_another() -> None:
    many = [
        peak(method, phase, size, precision=precision, checkpointing=checkpointing)
        for method, size in (("full", 155), ("puzzle", 20.1), ("small", 0.4))
        for phase in ("train", "sample")
        for precision in ("fp32", "bf16")
        for checkpointing in ("none", "block")
    ]
    drawn = memory_figure(many, reference="full")
    drawn.draw_without_rendering()
    axes = drawn.axes[0]
    boxes = [text.get_window_extent() for text in axes.texts]
    names = [text.get_window_extent() for text in axes.get_yticklabels()]
    left, right = axes.get_xlim()
    ticks = [t.get_window_extent() for t in axes.get_xticklabels() if left <= t.get_position()[0] <= right]
    assert len(ticks) > 2
    for group in (boxes, names, ticks):
        assert not any(a.overlaps(b) for i, a in enumerate(group) for b in group[:i])
    assert all(box.x0 >= 0 and box.x1 <= drawn.bbox.width for box in boxes + names)
    values = [text.get_window_extent() for text in axes.texts if "GB" not in text.get_text()]
    assert all(box.x1 <= axes.bbox.x1 for box in values)


PARTS = {"params": 1, "grads": 1, "optimizer": 2, "inputs": 0.5, "activations": 10, "workspace": 1.5}


def test_the_breakdown_adds_up_to_the_peak() -> None:
    records = [peak("full", "train", 16), *(peak("full", "train", size, metric=part) for part, size in PARTS.items())]
    drawn = breakdown_figure(records)
    assert [round(bar.get_width(), 6) for bar in bars(drawn)] == list(PARTS.values())
    assert bars(drawn)[-1].get_x() + bars(drawn)[-1].get_width() == pytest.approx(16)
    shares = [bar.get_width() for bar in drawn.axes[1].patches if isinstance(bar, Rectangle)]
    assert sum(shares) == pytest.approx(100)
    assert "not attributed" not in words(drawn)


def test_memory_that_the_breakdown_does_not_explain_is_shown() -> None:
    records = [peak("full", "train", 16), peak("full", "train", 12, metric="activations")]
    drawn = breakdown_figure(records, column="single")
    assert [bar.get_width() for bar in bars(drawn)] == [75, 25]
    assert "16.0 GiB" in words(drawn)
    assert "not attributed" in words(drawn)


def test_a_breakdown_of_many_peaks_is_reduced_and_says_so() -> None:
    records = [
        peak(f"m{n}", "train", 16, metric=metric, checkpointing=checkpointing)
        for n in range(13)
        for checkpointing in ("none", "block")
        for metric in ("peak_allocated", "activations")
    ]
    drawn = breakdown_figure(records)
    names = [tick.get_text() for tick in drawn.axes[0].get_yticklabels()]
    assert names == [f"m{n}, training" for n in range(8)]
    assert "18 more peaks" in drawn.get_suptitle().replace("\n", " ")


def test_a_breakdown_above_its_peak_is_refused() -> None:
    records = [peak("full", "train", 16), peak("full", "train", 17, metric="activations")]
    with pytest.raises(ValueError, match=r"full, train, adds up to 17\.00 GiB, more than its peak of 16\.00 GiB"):
        breakdown_figure(records)


def published(name: str, size: float | None, predicted: float, gpu: str = "H100 80GB HBM3") -> list[Record]:
    common: dict[str, Any] = {"method": "net", "phase": "train", "config_id": config_id({"name": name})}
    end = {"value": size * GIB} if size else {"status": "oom", "reason": "published as out of memory"}
    told = Record(metric="peak_allocated", kind="published", env={"gpu": gpu}, **end, **common)  # type: ignore[arg-type]
    foretold = [("peak_allocated", predicted), ("peak_reserved", predicted * 1.3)]
    return [told, *(Record(metric=m, value=x * GIB, kind="predicted", **common) for m, x in foretold)]


def test_validation_pairs_published_and_predicted_peaks() -> None:
    records = [
        *published("a", 10, 9.89),
        *published("b", 20, 20.1, gpu="A100"),
        *published("c", 40, 40.04),
        *published("failed", None, 62),
        *published("lonely", 50, 50)[:1],
    ]
    drawn = validation_figure(records)
    left, right, apart = drawn.axes
    points = {tuple(p) for line in left.lines[1:] for p in np.round(line.get_xydata(), 6).tolist()}
    assert points == {(10, 9.89), (20, 20.1), (40, 40.04)}
    drawn_points = [line.get_xydata() for line in right.lines[1:] if line.get_marker() != "None"]
    errors = {tuple(p) for each in drawn_points for p in np.round(each, 6).tolist()}
    assert errors == {(10, -1.1), (20, 0.5), (40, 0.1)}
    assert all(line.get_markerfacecolor() == "none" for line in left.lines[1:])
    assert [line.get_ydata()[0] for line in apart.lines] == pytest.approx([62, 62 * 1.3, 80])
    text = words(drawn)
    for shown in ("n = 3", "median error 0.50 %", "worst −1.10 %", "H100 80GB HBM3 (3)", "A100 (1)"):
        assert shown in text
    assert len(validation_figure(records[:6]).axes) == 2


def test_validation_shows_assumed_memory_and_conditions_that_are_not_stated() -> None:
    common: dict[str, Any] = {"method": "layer", "phase": "forward", "config_id": config_id({"name": "d"})}
    stated, vague = {"gpu": "A100 80GB", "torch": "2.3.1", "cudnn": "8.9"}, {"gpu": "not stated", "torch": "2.3.1"}
    foretold = {"peak_allocated": 6, "peak_reserved": 10.5, "refused": 108, "assumed": 1.5}
    records = [
        Record(metric="peak_allocated", kind="published", status="oom", reason="refused", env=stated, **common),
        Record(metric="refused", kind="published", value=108 * GIB, env=stated, **common),
        Record(metric="peak_reserved", kind="published", value=round(8.4 * GIB), env=vague, **common),
        *(Record(metric=m, kind="predicted", value=x * GIB, **common) for m, x in foretold.items()),
    ]
    *rows, _, summary = agreement_table(records).splitlines()
    assert len(rows) == 4  # two runs below the head: the refused request represents the failed run
    assert (
        "| request refused | A100 80GB | 2.3.1 | 8.9 | 108 | 108.000 | +0.00 % | yes | 1.500 | 10.50 | yes |" in rows[2]
    )
    assert "| reserved | not stated | 2.3.1 | of the release | 8.4 | 10.500 | +25.00 % | **no** | 1.500 |" in rows[3]
    expected = (
        "n = 2, median error 12.50 %, worst +25.00 %; conditions stated: n = 1, median error 0.00 %, worst +0.00 %"
    )
    assert summary == expected
    drawn = validation_figure(records, "origin")
    assert len(drawn.axes) == 2
    assert drawn.axes[1].get_yscale() == "symlog"  # so that errors of 25 % and 0 % are both visible
    assert "reserved, partly unstated (1)" in words(drawn)
    bars = [path for line in drawn.axes[1].collections for path in line.get_segments()]
    spans = sorted(float(np.ptp(bar[:, 1])) for bar in bars)
    assert spans == pytest.approx([0.1 / 108 * 100, 0.1 / 8.4 * 100])  # ±0.05 GiB of the published value


@pytest.mark.parametrize("draw", [memory_figure, breakdown_figure, validation_figure])
def test_records_with_nothing_to_draw_are_refused(draw: Any) -> None:
    with pytest.raises(ValueError, match="there is nothing to"):
        draw([peak("full", "train", 16, metric="context")])


def test_a_phase_without_an_allocated_peak_is_not_drawn_as_failed() -> None:
    records = [peak("full", "train", 16), peak("full", "sample", 5, metric="peak_reserved")]
    drawn = memory_figure(records)
    assert list(dots(drawn)) == [16]
    assert "failed" not in words(drawn)


def test_an_unknown_column_width_is_refused() -> None:
    with pytest.raises(ValueError, match="`single` or `double`"):
        style.new_figure("triple", 1)  # type: ignore[arg-type]


@pytest.mark.slow
def test_the_same_records_make_the_same_picture(tmp_path: Path) -> None:
    before = dict(mpl.rcParams)
    paths = [save(memory_figure(SMALL + PREDICTED), tmp_path / name / "memory.v1") for name in "ab"]
    assert [path.name for path in paths[0]] == ["memory.v1.png", "memory.v1.pdf"]
    for one, other in zip(*paths, strict=True):
        assert one.read_bytes() == other.read_bytes()
    assert matplotlib.image.imread(paths[0][0]).shape[1] == round(7.16 * 300)
    assert b"/Subtype /Type3" not in paths[0][1].read_bytes()
    assert len(list((tmp_path / "a").iterdir())) == 2
    assert dict(mpl.rcParams) == before


def test_a_failed_save_leaves_the_old_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "memory.png").write_bytes(b"old")

    def full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="no space"):
        save(memory_figure(SMALL), tmp_path / "memory")
    assert [path.name for path in tmp_path.iterdir()] == ["memory.png"]
    assert (tmp_path / "memory.png").read_bytes() == b"old"


@pytest.mark.slow
def test_reports_need_no_torch_and_leave_pyplot_alone() -> None:
    """Reports also import no package that loads slowly, and their figures are not registered with pyplot."""
    heavy = "{'torch', 'ppdm', 'ppdm_baselines', 'seaborn', 'scipy.stats'} & set(sys.modules)"
    code = f"""
import sys
from ppdm_bench.report.tables import memory as table
print('early', *{{'pandas', 'matplotlib', 'rich'}} & set(sys.modules))
from ppdm_bench.report.figures.memory import memory_figure
from ppdm_bench.records import Record
records = [Record(metric="peak_allocated", value=5, kind="measured", method="m", phase="train")]
table.memory_page(table.memory_table(records)).to_markdown(), memory_figure(records)
from matplotlib import pyplot
print('late', *{heavy}, *pyplot.get_fignums())
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["early", "late"]


def test_the_palette_is_that_of_seaborn() -> None:
    import seaborn

    colours = [style.BLUE, style.ORANGE, style.GREEN, style.VERMILION, style.PURPLE]
    colours += [style.BROWN, style.PINK, style.GREY, style.YELLOW, style.SKY]
    assert colours == list(seaborn.color_palette("colorblind").as_hex())
