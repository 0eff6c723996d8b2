"""Tables and figures of an ablation, from synthetic records with known results."""

import csv
import io
from dataclasses import replace

import pytest
from ablated import SECONDS, STEPS, cell, everything, one, peak, skipped

from ppdm_bench.report.ablation_rows import difference, gather_ablation
from ppdm_bench.report.figures.ablation import ablation_figure
from ppdm_bench.report.figures.puzzle_or_bridge import space_figure
from ppdm_bench.report.figures.style import save as save_figure
from ppdm_bench.report.tables.ablation import ablation_page, ablation_table, headline


def test_each_cell_and_budget_has_a_row_with_settings_costs_and_differences():
    records = [*one("default", budgets={**STEPS, **SECONDS}), *one("r=4", level=22.5), peak("r=4", "train", 2)]
    records += [peak("r=4", "train", 9, (256, 256, 256)), skipped("r=1 loss=cell")]
    frame = ablation_table(records)
    assert list(zip(frame["cell"], frame["budget"], strict=True)) == [
        ("default", "steps"),
        ("default", "time"),
        ("r=4", "steps"),
        ("r=1 loss=cell", "steps"),
    ]
    row = frame.iloc[2]
    assert (row["factor"], row["loss"], row["kernel"], row["target"], row["n"]) == (
        "4",
        "all",
        "brownian",
        "residual",
        3,
    )
    assert (row["psnr"], row["psnr_sd"]) == pytest.approx((23.5, 1.0))
    assert (row["psnr_difference"], row["psnr_low"], row["psnr_high"]) == pytest.approx((2.5, 2.5, 2.5))
    assert row["step_seconds"] == pytest.approx(0.5)
    assert row["train_peak_allocated_predicted"] == 2 * 2**30
    assert row["train_peak_allocated_predicted_256x256x256"] == 9 * 2**30
    assert (frame.iloc[3]["status"], frame.iloc[3]["reason"]) == ("skipped", "a cell of one voxel")
    assert frame["psnr_difference"].isna()[[0, 1, 3]].all()


def test_the_data_has_a_row_per_seed_and_the_page_averages_seeds():
    records = [
        r for seed in (0, 1) for r in (*one("default", seed=seed), *one("r=4", seed=seed, level=21.0 + 2 * seed))
    ]
    frame = ablation_table(records)
    assert list(zip(frame["cell"], frame["seed"], strict=True)) == [
        ("default", 0),
        ("r=4", 0),
        ("default", 1),
        ("r=4", 1),
    ]
    assert list(frame["psnr_difference"].dropna()) == pytest.approx([1, 3])
    pooled = next(row for row in gather_ablation(records, pooled=True) if row.label == "r=4")
    assert pooled.seeds == (0, 1)
    assert pooled.scores.subject_means("psnr") == pytest.approx({"s1": 22, "s2": 23, "s3": 24})
    assert "23.00 ± 1.00 (+2.00; +2.00 to +2.00)" in ablation_page(records).to_markdown()


def test_a_difference_uses_only_seeds_of_both_the_cell_and_the_default():
    records = [r for seed in (0, 1) for r in one("default", seed=seed, level=20.0 + 4 * seed)] + one(
        "r=4", seed=1, level=25
    )
    rows = gather_ablation(records, pooled=True)
    assert difference(rows[1], rows, "psnr").mean == pytest.approx(1)


def test_rows_of_different_tasks_budgets_or_evaluations_are_not_compared():
    records = [*one("default"), *one("r=4", "pet"), *one("r=8", budgets=SECONDS), *one("loss=off", steps=1)]
    rows = gather_ablation(records)
    assert [difference(row, rows, "psnr") for row in rows] == [None] * 4


def test_records_of_another_base_method_data_size_or_command_are_left_out():
    other = [replace(r, options=r.options | {"cell": cell(r.variant, "other")}) for r in one("r=4")]
    small = [replace(r, options=r.options | {"data": {"size": 16}}) for r in one("r=8")]
    rows = gather_ablation([*other, *small, *one("default")])
    assert [row.label for row in rows] == ["default"]
    assert gather_ablation([replace(r, command="quality") for r in one("default")]) == []


@pytest.mark.parametrize(
    ("label", "metric"),
    [("default", "seam_index_r2"), ("r=1x2x2", "seam_index_r1x2x2"), ("haar", "seam_index_r2"), ("r=1", "")],
)
def test_the_seam_index_of_a_cell_is_that_of_its_own_block_grid(label, metric):
    assert gather_ablation(one(label))[0].metric("seam_index") == metric


def test_page_and_figure_show_the_measures_of_seams_in_the_records():
    old = [*one("default"), *one("r=4")]
    border = [
        replace(r, metric=r.metric.replace("seam_index", "border_ratio")) for r in old if "seam_index" in r.metric
    ]
    text, both = (ablation_page(records).to_markdown() for records in (old, [*old, *border]))
    assert "Seam index: on the block grid" in text
    assert "border" not in text
    assert "Border ratio: on the block grid of the cell's own representation." in both
    names = [[axes.get_ylabel() for axes in ablation_figure(records).axes] for records in (old, [*old, *border])]
    assert "Δ seam\nindex (dB) ↓" in names[0]
    assert "Δ border\nratio (dB)" in names[1]
    assert "Δ seam\nindex (dB) ↓" not in names[1]


def test_saved_files_and_text_state_tasks_budgets_and_skipped_cells(tmp_path):
    few = ("default", "r=4", "bridge=noise")
    records = [r for r in everything() if r.variant in few]
    csv_path, markdown, _ = ablation_page(records).save(tmp_path / "a" / "ablation")
    assert csv_path.read_text() == ablation_page(records).to_csv()
    lines = list(csv.DictReader(io.StringIO(csv_path.read_text())))
    assert {line["task"] for line in lines} == {"mri", "pet"}
    text = markdown.read_text()
    assert "mri, equal steps: 100 steps; 4 network evaluations per volume." in text
    assert "pet, equal time: 5.00 s" in text
    assert "covers less than 95 %" in text
    page = ablation_page([*records, skipped("r=1 loss=cell")])
    assert "r=1 loss=cell: skipped: a cell of one voxel." in page.to_text()
    assert headline(records) == "Ablation of ppdm, 32×32×32, 3 subjects per task, 1 seed."


def test_the_figure_prefers_recorded_step_times_to_those_of_the_training():
    records = [*one("default"), *one("r=4")]
    timed = [
        replace(
            next(r for r in records if r.variant == label), metric="step_seconds", unit="s", value=seconds, subject=""
        )
        for label, seconds in (("default", 3.0), ("r=4", 7.0))
    ]
    drawn = [line for line in ablation_figure([*records, *timed]).axes[-1].lines if line.get_marker() in "os"]
    assert sorted(float(line.get_ydata()[0]) for line in drawn) == [3, 7]


def test_the_title_mentions_a_shaded_default_only_if_one_is_drawn():
    def title(*records):
        return " ".join(ablation_figure(records).get_suptitle().split())

    assert "default (shaded)" in title(*one("default"), *one("r=4"))
    varied = [replace(r, options=r.options | {"cell": r.options["cell"] | {"levels": None}}) for r in one("r=4")]
    assert "from the default and its 95 %" in title(*one("default"), *varied)


@pytest.mark.slow
def test_the_figure_has_a_column_for_each_axis_with_readable_levels(tmp_path):
    figure = ablation_figure(everything())
    titles = [axes.get_title() for axes in figure.axes[:3]]
    assert titles == ["representation", "puzzle-gradient loss", "bridge"]
    names = [[tick.get_text() for tick in axes.get_xticklabels()] for axes in figure.axes[-3:]]
    assert names[1] == ["off", "within\nblocks", "all\nvoxels"]
    assert names[2] == ["Brownian", "linear", "I2SB", "none\n(noise)"]
    points = [line for line in figure.axes[2].lines if line.get_marker() in "os"]
    assert sorted(round(float(line.get_ydata()[0]), 6) for line in points) == [8, 8, 9, 9, 10, 10]
    memory = [line for axes in figure.axes[12:15] for line in axes.lines if line.get_marker() in ("o", "s")]
    assert {line.get_markerfacecolor() for line in memory} == {"white"}
    assert all(path.stat().st_size for path in save_figure(figure, tmp_path / "ablation"))


@pytest.mark.slow
def test_varied_cells_have_their_own_column():
    records = everything(tasks=("mri",))
    varied = [
        replace(r, variant="kernel.gamma=1", options=r.options | {"cell": cell("default") | more})
        for r in one("r=4", level=30)
        for more in [{"label": "kernel.gamma=1", "default": False, "levels": {}}]
    ]
    figure = ablation_figure([*records, *varied])
    assert figure.axes[3].get_title() == "varied"


@pytest.mark.slow
def test_the_space_figure_shows_each_representation_with_and_without_bridge(tmp_path):
    figure = space_figure(everything())
    assert [axes.get_title().split("\n")[0] for axes in figure.axes[:4]] == ["mri", "mri", "pet", "pet"]
    assert [t.get_text() for t in figure.axes[-1].get_xticklabels()] == ["r=1\n(identity)", "r=2", "r=4", "Haar"]
    marks = [line for line in figure.axes[0].lines if line.get_markersize() > 4]
    assert sorted(round(float(line.get_xdata()[0])) for line in marks) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert all(line.get_linestyle() == "None" for axes in figure.axes for line in axes.lines)  # x is categorical
    assert all(path.stat().st_size for path in save_figure(figure, tmp_path / "space"))


@pytest.mark.slow
def test_the_space_figure_leaves_out_a_representation_without_a_bridge():
    whole = [(record, record.options["cell"]["levels"]) for record in everything()]
    records = [record for record, levels in whole if (levels["space"], levels["bridge"]) != ("haar", "brownian")]
    figure = space_figure(records)
    assert [t.get_text() for t in figure.axes[-1].get_xticklabels()] == ["r=1\n(identity)", "r=2", "r=4"]


def test_figures_of_a_single_cell_are_refused():
    for draw in (ablation_figure, space_figure):
        with pytest.raises(ValueError, match="nothing to draw"):
            draw(one("default"))
