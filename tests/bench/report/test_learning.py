"""Learning curves, made from records."""

from dataclasses import replace

import pytest
from evidence import FULL_3D, PPDM, curve, scores

from ppdm_bench.records import Record
from ppdm_bench.report.library import Library
from ppdm_bench.report.paper.learning import curves_of, show


def the_input(task, value):
    (record, _) = scores(PPDM, task, [value, value])
    options = {name: part for name, part in record.options.items() if name not in ("resolved", "training")}
    options |= {"curve": {"share": 0.0, "of": 0}, "data": {**options["data"], "split": "val"}}
    return replace(record, method="input", variant="", steps=None, options=options)


def test_a_curve_has_the_mean_of_subjects_and_seeds_at_each_share():
    records = [*curve(PPDM, "t", [10, 20, 21]), *curve(PPDM, "t", [12, 22, 22], seed=1)]
    (found,) = curves_of(records)
    assert [*found.means.values()] == [11, 21, 21.5]
    assert found.last.seeds == [0, 1]
    assert found.late_gain == 0.5


def test_the_late_gain_is_that_of_the_last_third_of_the_training():
    (of_six,) = curves_of([*curve(PPDM, "t", [1, 2, 3, 4, 5, 7])])
    assert of_six.late_gain == 3  # from 4/6 to the end
    (of_four,) = curves_of([*curve(PPDM, "t", [1, 2, 3, 4])])
    assert of_four.late_gain == 2  # no score lies between 2/4 and 2/3
    (of_end,) = curves_of([r for r in curve(PPDM, "t", [1, 2]) if r.options["curve"]["share"] == 1])
    assert of_end.late_gain is None


def test_each_method_is_drawn_at_its_best_evaluations_against_training_time():
    records = [the_input("t", 5), *curve(FULL_3D, "t", [6, 8, 9], seconds=120)]
    for steps, end in ((1, 21), (4, 22)):
        records += curve(PPDM, "t", [10, 20, end], seconds=120, steps=steps)
    shown = show(Library((*records,)))
    assert [line.cells[3] for line in shown.table.rows] == [4, 1, 4]  # the table has all numbers of evaluations
    figure = shown.draw("single")
    (axes,) = figure.axes
    curves = [line for line in axes.lines if len(line.get_xdata()) == 3]
    assert [[*map(float, line.get_ydata())] for line in curves] == [[6, 8, 9], [10, 20, 22]]
    assert [round(x, 3) for x in curves[0].get_xdata()] == [0.667, 1.333, 2.0]
    assert axes.get_xlabel() == "training time (min)"
    assert [line.get_ydata()[0] for line in axes.lines if len(line.get_xdata()) == 2] == [5]
    assert {text.get_text() for text in figure.legends[0].get_texts()} == {"ddpm3d", "ppdm r=2"}
    assert len({line.get_marker() for line in curves}) == 2  # markers differ, and not only colours


def test_without_training_times_the_axis_shows_steps():
    (axes,) = show(Library((*curve(PPDM, "t", [10, 20], of=600),))).draw("double").axes
    assert axes.get_xlabel() == "training steps"
    assert [*axes.lines[0].get_xdata()] == [300, 600]


def test_records_of_a_learning_curve_are_not_points_of_other_figures():
    assert Library((*curve(PPDM, "t", [10, 20]),)).points == ()
    options = {"curve": {"share": 1, "of": 2}}
    failed = Record(kind="measured", subject="s", metric="psnr", status="error", reason="no", options=options)
    assert curves_of([failed]) == []


@pytest.mark.parametrize("count", [9, 17])
def test_methods_beyond_the_palette_differ_in_shape_or_colour(count):
    from ppdm_bench.report.figures.style import markers

    assert len(set(markers(f"method {n}" for n in range(count)).values())) == count
