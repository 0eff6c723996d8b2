"""Figures of quality: values of every subject, and names of the configurations."""

from dataclasses import replace

import pytest

from ppdm_bench.records import Record
from ppdm_bench.report.figures.names import plain_label, without_common_words
from ppdm_bench.report.figures.quality import evaluations_figure, subjects_figure
from ppdm_bench.report.figures.style import save

METRICS = {"psnr": "dB", "ssim": "1", "nmae": "1", "nrmse": "1", "sharpness": "1", "seam_index_r2": "dB"}


def records(variants, subjects=("s1", "s2", "s3"), steps=(1, 4)):
    """Return records of the input and of every variant; the values encode variant, evaluations and subject."""
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
    """Return the sorted values of the subjects, by row."""
    return [sorted(dots.get_offsets()[:, 0].tolist()) for dots in axes.collections if len(dots.get_offsets())]


def means(axes):
    (bars,) = (line for line in axes.lines if line.get_marker() == "|")
    return dict(zip(bars.get_ydata().tolist(), bars.get_xdata().tolist(), strict=True))


def names(axes):
    return [tick.get_text() for tick in axes.get_yticklabels()]


def test_each_configuration_has_a_row_and_sharpness_and_seams_have_columns():
    figure = subjects_figure(records([f"r=2 m={k}" for k in range(9)]), "t")
    assert [" ".join(axes.get_title().split()) for axes in figure.axes] == [
        "PSNR (dB) ↑",
        "SSIM ↑",
        "sharpness →1",
        "seam index r=2 (dB) ↓",
    ]
    assert names(figure.axes[0]) == [f"m={k}" for k in range(9)]
    assert len(dots(figure.axes[0])) == 9
    assert all(len(axes.get_xticklabels()) > 1 for axes in figure.axes)
    assert {(axes.get_xlabel(), axes.get_ylabel()) for axes in figure.axes} == {("", "")}  # no names of data columns


def test_few_configurations_are_shown_at_their_best_evaluations_with_the_input():
    axes = subjects_figure(records(["a", "b"]), "t").axes[0]
    assert names(axes) == ["input", "ppdm a", "ppdm b"]
    expected = [[-100] * 3, [40, 40.1, 40.2], [41, 41.1, 41.2]]
    assert [pytest.approx(row) for row in expected] == dots(axes)
    assert means(axes) == {0: -100, 1: pytest.approx(40.1), 2: pytest.approx(41.1)}
    assert [line.get_xdata()[0] for line in axes.lines if line.get_linestyle() == "-"] == [pytest.approx(40.1)]


def test_with_many_configurations_the_input_is_left_out():
    axes = subjects_figure(records([f"m={k}" for k in range(7)]), "t").axes[0]
    assert names(axes) == [f"m={k}" for k in range(7)]
    assert min(means(axes).values()) > 0


def test_trainings_that_differ_only_in_their_seed_share_a_row():
    def trained(variant, seed, shift, steps=100):
        return [
            replace(record, value=record.value + shift, options={"training": {"seed": seed, "steps": steps}})
            for record in records([variant])
            if record.method == "ppdm"
        ]

    found = [*records([]), *trained("a", 0, 0), *trained("a s1", 1, 2), *trained("a s2", 2, 7), *trained("b s1", 1, 1)]
    axes = subjects_figure(found, "t").axes[0]
    assert names(axes) == ["input", "ppdm a", "ppdm b s1"]
    assert dots(axes)[1:] == [pytest.approx([43, 43.1, 43.2]), pytest.approx([41, 41.1, 41.2])]
    whole, one_seed = (line for line in axes.lines if line.get_marker() == "|")
    assert dict(zip(whole.get_ydata(), whole.get_xdata(), strict=True)) == pytest.approx({0: -100, 1: 43.1, 2: 41.1})
    assert list(one_seed.get_ydata()) == [1, 1, 1]
    assert list(one_seed.get_xdata()) == pytest.approx([40.1, 42.1, 47.1])
    longer = [*found, *trained("a s3", 3, 0, steps=200)]
    assert len(names(subjects_figure(longer, "t").axes[0])) == 4


def test_a_configuration_whose_values_all_failed_has_an_empty_row():
    found = [
        replace(record, value=None, status="error", reason="not finite") if record.variant == "b" else record
        for record in records(["a", "b"])
    ]
    axes = subjects_figure(found, "t").axes[0]
    assert names(axes) == ["input", "ppdm a", "ppdm b"]
    assert means(axes).keys() == {0, 1}


def test_the_axes_of_curves_have_a_plain_name_and_plain_numbers():
    figure = evaluations_figure(records(["a"], steps=(1, 4, 250)), "t")
    assert {(axes.get_xlabel(), axes.get_ylabel()) for axes in figure.axes} == {("network evaluations", "")}
    figure.draw_without_rendering()
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["1", "4", "250"]


def test_categories_are_not_joined_by_lines():
    for axes in subjects_figure(records(["a", "b"]), "t").axes:
        assert all(len(set(line.get_xdata())) == 1 for line in axes.lines if line.get_linestyle() != "None")


def test_a_label_that_consists_only_of_common_words_keeps_them():
    assert without_common_words(["ppdm r=2", "ppdm r=2 kernel=i2sb"]) == ["ppdm r=2", "kernel=i2sb"]


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ("ppdm r=4", "ppdm r=4"),
        ("ppdm r=1x2x2 haar", "ppdm r=1×2×2 Haar"),
        ("loss.gradient=3.0", "gradient loss weight 3"),
        ("ppdm loss.mode=off+loss.gradient=0", "ppdm no gradient loss"),
        ("ppdm r=2 loss.gradient=0+loss.mode=off+target=x0", "ppdm r=2 no gradient loss, x0 target"),
        ("ppdm representation=haar", "ppdm Haar"),
        ("kernel=gaussian(schedule=cosine)+target=x0", "Gaussian noise (cosine schedule), x0 target"),
        ("kernel.gamma=0.25", "bridge noise γ = 0.25"),
        ("optimisation.learning_rate=0.0002", "learning rate 0.0002"),
        ("network.residual_blocks=2", "network residual blocks 2"),
        ("sampling.noise=none", "sampling noise none"),
    ],
)
def test_settings_are_written_in_words(label, words):
    assert plain_label(label) == words


@pytest.mark.slow
def test_the_names_of_all_rows_lie_inside_the_figure(tmp_path):
    names = [f"r=2 optimisation.learning_rate=0.001+window.concatenate=false+kernel.gamma={k}" for k in range(8)]
    figure = subjects_figure(records(names), "t")
    save(figure, tmp_path / "subjects")
    width = figure.get_figwidth() * figure.dpi
    for tick in figure.axes[0].get_yticklabels():
        box = tick.get_window_extent()
        assert 0 <= box.x0 < box.x1 <= width


def test_a_figure_without_records_is_refused():
    with pytest.raises(ValueError, match="nothing to draw"):
        subjects_figure([], "t")
