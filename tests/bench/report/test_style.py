"""The common style of figures: ticks, labels that do not overlap, markers, and files."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from ppdm_bench.report.figures import style


@pytest.mark.parametrize("limits", [(0.9, 1.3), (0.07, 0.18), (1.5, 40), (0.2, 200), (1e-3, 1e5)])
def test_a_logarithmic_axis_has_two_to_nine_plain_numbers(limits: tuple[float, float]) -> None:
    axes = Figure().add_subplot()
    axes.set(xscale="log", xlim=limits)
    style.log_ticks(axes.xaxis)
    axes.figure.draw_without_rendering()
    shown = [t.get_text() for t in axes.get_xticklabels() if limits[0] <= t.get_position()[0] <= limits[1]]
    assert 2 <= len(shown) <= 9
    assert all(float(text) for text in shown)
    assert not any("e" in text or "$" in text for text in shown[:4] if limits[1] < 1e4)
    assert len(axes.get_xticks(minor=True)) == 0


def test_labels_of_a_logarithmic_axis_keep_a_distance() -> None:
    assert style.spaced_ticks([4, 1, 5, 2, 2, 250]) == [1, 2, 4, 250]
    assert style.spaced_ticks([64, 96, 128], 1.15) == [64, 96, 128]


def test_labels_at_one_place_move_apart_and_others_stay() -> None:
    figure = style.new_figure("single", 3)
    axes = figure.add_subplot()
    axes.set(xlim=(0, 2), ylim=(0, 10))
    near = [style.end_label(axes, 1, y, f"name {y}", "black") for y in (5, 5.01, 5.02)]
    far = style.end_label(axes, 1, 9, "far", "black")
    beside = style.end_label(axes, 0, 5, "x", "black")
    style.move_apart(figure, [[*near, far, beside]])
    figure.draw_without_rendering()
    boxes = [Text.get_window_extent(note) for note in near]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert boxes[0].y0 < boxes[1].y0 < boxes[2].y0
    assert far.xyann[1] == beside.xyann[1] == pytest.approx(0, abs=1e-6)
    assert near[1].xyann[1] == pytest.approx(0, abs=1)  # the mean position of a cluster does not change


@pytest.mark.parametrize(("other", "moves"), [(0.4, True), (0.8, False), (1.2, False)])
def test_a_label_moves_past_a_marker_unless_the_marker_is_far_away(other: float, moves: bool) -> None:
    figure = style.new_figure("single", 3)
    axes = figure.add_subplot()
    axes.plot([0.3, other], [5, 5], marker="o")
    axes.set(xlim=(0, 2), ylim=(0, 10))
    label = style.end_label(axes, 0.3, 5, "a name of thirty characters ...", "black")
    before = Text.get_window_extent(label)
    figure.draw_without_rendering()
    style.move_apart(figure, [[label]])
    label.get_window_extent()
    centre, _ = axes.transData.transform((other, 5))
    after = Text.get_window_extent(label)
    assert (after.x0 > centre) == moves
    assert (label.xyann[0] == 12) != moves
    assert after.width == pytest.approx(before.width)


def test_labels_at_the_top_stay_below_the_title() -> None:
    figure = style.new_figure("single", 3)
    axes = figure.add_subplot()
    axes.set(xlim=(0, 2), ylim=(0, 10))
    labels = [style.end_label(axes, 1, 10, f"name {n}", "black") for n in range(4)]
    style.move_apart(figure, [labels])
    figure.draw_without_rendering()
    boxes = sorted((Text.get_window_extent(label) for label in labels), key=lambda box: float(box.y0))
    assert boxes[-1].y1 <= axes.bbox.y1 + 1
    assert all(low.y1 <= high.y0 + 1 for low, high in pairwise(boxes))


def test_a_drawing_is_saved_with_a_palette_and_an_image_in_full_colour(tmp_path: Path) -> None:
    drawing = style.new_figure("single", 2)
    drawing.add_subplot().plot([0, 1], [1, 0])
    png, _ = style.save(drawing, tmp_path / "drawing")
    with Image.open(png) as opened:
        assert opened.mode == "P"
    picture = style.new_figure("single", 2)
    image = picture.add_subplot().imshow(np.linspace(-1, 1, 400).reshape(20, 20), cmap="RdBu_r")
    picture.colorbar(image)
    png, _ = style.save(picture, tmp_path / "picture")
    with Image.open(png) as opened:
        assert opened.mode == "RGB"
        assert len(opened.getcolors(1 << 20)) > 256


def test_methods_have_their_own_colours_and_shapes() -> None:
    marks = style.markers(["a", "b", "a", *"cdefgh"])
    assert list(marks) == list("abcdefgh")
    assert len({mark.colour for mark in marks.values()}) == len({mark.shape for mark in marks.values()}) == 8


@pytest.mark.parametrize(("words", "columns"), [("short", 6), ("a long name of one entry", 4)])
def test_a_legend_has_as_many_columns_as_fit_into_the_figure(words: str, columns: int) -> None:
    figure = style.new_figure("double", 2)
    figure.add_subplot()
    style.legend(figure, [style.entry(f"{words} {n}") for n in range(6)], columns=6)
    (legend,) = figure.legends
    figure.draw_without_rendering()
    box = legend.get_window_extent()
    assert 0 <= box.x0 < box.x1 <= figure.bbox.x1
    assert len({round(text.get_window_extent().x0) for text in legend.get_texts()}) == columns


def test_names_that_share_a_colour_have_different_shapes() -> None:
    colours = {f"name {n}": style.SERIES[0] if n in (2, 10, 11) else style.SERIES[1] for n in range(12)}
    found = style.markers_of_colours(colours)
    assert {name: marker.colour for name, marker in found.items()} == colours
    blue = [marker.shape for marker in found.values() if marker.colour == style.SERIES[0]]
    assert len({*blue}) == 3
    assert found["name 2"].shape == style.markers(colours)["name 2"].shape  # kept unless another name has it
