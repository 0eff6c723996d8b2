"""The figure for many configurations."""

import pytest

from ppdm_bench.records import Record
from ppdm_bench.report.figures.quality_ladder import ladder_figure
from ppdm_bench.report.figures.style import save

METRICS = {"psnr": "dB", "ssim": "1", "nmae": "1", "nrmse": "1", "sharpness": "1", "seam_index_r2": "dB"}


def records(variants, subjects=("s1", "s2", "s3"), steps=(1, 4)):
    """The input, and every variant at so many evaluations; the values say which."""
    found = [
        Record(kind="measured", method="input", metric=metric, unit=unit, value=-100.0, subject=subject, task="t")
        for metric, unit in METRICS.items()
        for subject in subjects
    ]
    for row, variant in enumerate(variants):
        found += [
            Record(
                kind="measured",
                method="ppdm",
                variant=variant,
                steps=k,
                metric=metric,
                unit=unit,
                value=float(10 * k + row + 0.1 * number),
                subject=subject,
                task="t",
            )
            for metric, unit in METRICS.items()
            for number, subject in enumerate(subjects)
            for k in steps
        ]
    return found


def dots(axes):
    return [line.get_xdata() for line in axes.lines if line.get_marker() == "o"]


def test_a_row_a_configuration_and_what_averages_hide_among_the_columns():
    figure = ladder_figure(records([f"r=2 gamma={k}" for k in range(9)]), "t")
    titles = [axes.get_title().split()[0] for axes in figure.axes]
    assert titles == ["PSNR", "SSIM", "sharpness", "seam"]
    assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()] == [f"gamma={k}" for k in range(9)]
    assert len(dots(figure.axes[0])) == 9


def test_most_evaluations_count_and_the_input_is_left_out():
    axes = ladder_figure(records(["a", "b"]), "t").axes[0]
    assert [list(x) for x in dots(axes)] == [pytest.approx([40, 40.1, 40.2]), pytest.approx([41, 41.1, 41.2])]
    (line,) = (line for line in axes.lines if line.get_marker() in ("None", "", None) and line.get_linewidth() < 1)
    assert line.get_xdata()[0] == pytest.approx(40.1)


def test_a_label_that_all_share_keeps_its_words():
    axes = ladder_figure(records(["r=2", "r=2 kernel=i2sb"]), "t").axes[0]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["ppdm r=2", "kernel=i2sb"]


def test_all_names_are_inside_the_figure(tmp_path):
    names = [f"r=2 optimisation.learning_rate=0.001+window.concatenate=false+kernel.gamma={k}" for k in range(8)]
    figure = ladder_figure(records(names), "t")
    save(figure, tmp_path / "ladder")
    width = figure.get_figwidth() * figure.dpi
    for tick in figure.axes[0].get_yticklabels():
        box = tick.get_window_extent()
        assert 0 <= box.x0 < box.x1 <= width


def test_nothing_to_draw():
    with pytest.raises(ValueError, match="nothing to draw"):
        ladder_figure(records([]), "t")
