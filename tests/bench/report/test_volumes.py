"""Pictures of volumes: directions, true proportions, windows, and reproducible files."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from ppdm_bench.report.figures import style
from ppdm_bench.report.figures.orientation import PLANES, centre_of_mass
from ppdm_bench.report.figures.volumes import DisplayedVolume, contact_sheet, draw_montage, draw_pair

SHAPE, SPACING = (9, 7, 5), (1.0, 2.0, 4.0)


def ramp(shape=SHAPE):
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def pictures(figure: Figure):
    return [axes for axes in figure.axes if axes.images]


def bars(figure: Figure):
    return [axes for axes in figure.axes if not axes.images]


def written(figure: Figure):
    """Return all texts except the title, which comes first."""
    return [text.get_text() for text in figure.texts[1:]]


def inches(axes):
    box = axes.get_position()
    return box.width * axes.figure.get_figwidth(), box.height * axes.figure.get_figheight()


# Directions

# Axis and index of the outermost slice in each direction: D increases to the right, H to anterior, W to superior.
SIDES = {"R": (0, -1), "L": (0, 0), "A": (1, -1), "P": (1, 0), "S": (2, -1), "I": (2, 0)}
EDGES = {"left": np.s_[:, 0], "right": np.s_[:, -1], "top": np.s_[0], "bottom": np.s_[-1]}


@pytest.mark.parametrize("plane", PLANES.values(), ids=PLANES.keys())
@pytest.mark.parametrize("edge", EDGES)
def test_the_letter_at_an_edge_is_the_patients_side_at_that_edge(plane, edge):
    axis, end = SIDES[getattr(plane, edge)]
    array = np.zeros(SHAPE)
    np.moveaxis(array, axis, 0)[end] = 1  # one side of the patient is bright
    picture = plane.picture(array, 2)
    assert (picture[EDGES[edge]] == 1).all()
    assert picture.sum() == picture[EDGES[edge]].size


def test_pictures_follow_the_radiological_convention():
    axial, coronal, sagittal = PLANES.values()
    assert [(p.left, p.right, p.top, p.bottom) for p in (axial, coronal, sagittal)] == [
        tuple("RLAP"),
        tuple("RLSI"),
        tuple("APSI"),
    ]
    array = np.zeros(SHAPE)
    array[8, 6, 4] = 1  # right, anterior, superior
    for plane, index in ((axial, 4), (coronal, 6), (sagittal, 8)):
        assert np.argwhere(plane.picture(array, index)).tolist() == [[0, 0]]


def test_a_montage_shows_the_chosen_slices_with_letters_at_their_edges():
    figure = draw_montage([DisplayedVolume(ramp(), "t")], SPACING, title="one", at=(1, 2, 3))
    cuts = {"axial": ramp()[:, :, 3], "coronal": ramp()[:, 2], "sagittal": ramp()[1]}
    for axes, plane in zip(pictures(figure), PLANES.values(), strict=True):
        image = axes.images[0]
        assert np.array_equal(image.get_array(), cuts[plane.name].T[::-1, ::-1])
        assert image.origin == "upper"
        places = {text.get_text(): text.get_position() for text in axes.texts}
        assert places[plane.left][0] < 0.1 < 0.9 < places[plane.right][0]
        assert places[plane.bottom][1] < 0.1 < 0.9 < places[plane.top][1]
        assert axes.transAxes == axes.texts[0].get_transform()
    assert written(figure)[:3] == ["axial, 4/5", "coronal, 3/7", "sagittal, 2/9"]
    assert written(figure)[-1] == "Radiological convention: the patient's right (R) is on the left."


# Proportions


def test_all_pictures_have_one_scale_for_any_spacing():
    figure = draw_montage([DisplayedVolume(ramp(), "a"), DisplayedVolume(ramp(), "b")], SPACING, title="two rows")
    assert len(pictures(figure)) == 6
    extent = np.array([9.0, 14.0, 20.0])  # mm along D, H, W
    scales = []
    for number, axes in enumerate(pictures(figure)):
        plane = list(PLANES.values())[number // 2]
        scales.append(np.array(inches(axes)) / (extent[plane.across], extent[plane.up]))
        assert axes.images[0].get_extent() == [0, extent[plane.across], 0, extent[plane.up]]
    np.testing.assert_allclose(scales, scales[0][0])


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(9, 7, 5), (4, 4, 200), (200, 200, 4)])
@pytest.mark.parametrize("rows", [1, 6])
def test_everything_lies_on_the_page_and_pictures_do_not_overlap(shape, rows):
    panels = [DisplayedVolume(ramp(shape), f"volume {i}", "pet", unit="SUV") for i in range(rows)]
    figure = draw_montage(panels, (1, 1, 1), title="a title of some length " * 5)
    assert figure.get_figwidth() == style.WIDTHS["double"]
    assert figure.get_figheight() <= 9.0 + 1e-9
    figure.draw_without_rendering()
    page = figure.bbox
    boxes = [axes.get_window_extent() for axes in figure.axes]
    title = figure.texts[0].get_window_extent()
    for box in boxes:
        assert page.x0 <= box.x0 < box.x1 <= page.x1
        assert page.y0 <= box.y0 < box.y1 <= page.y1
        assert box.y1 < title.y0
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:i])


def test_text_is_large_enough_to_read():
    figure = draw_montage([DisplayedVolume(ramp(), "a", "error", unit="SUV")], SPACING, title="t")
    texts = [*figure.texts, *(text for axes in figure.axes for text in [*axes.texts, *axes.get_yticklabels()])]
    assert len(texts) > 15
    assert min(text.get_fontsize() for text in texts) >= 6


def test_long_names_are_shortened_in_the_middle():
    figure = contact_sheet([ramp()] * 4, SPACING, ["sub-" + "x" * 60 + "-ses-2", "b", "c", "d"], 4, title="t")
    name = written(figure)[0]
    assert name.startswith("sub-")
    assert name.endswith("-ses-2")
    assert "…" in name
    assert len(name) < 40


# Windows and colours


def test_the_default_window_depends_on_the_colour_map():
    array = np.linspace(-50, 150, 1000).reshape(10, 10, 10)
    low, high = DisplayedVolume(array, "mri").limits
    assert (low, high) == pytest.approx((-49, 149))
    low, high = DisplayedVolume(array, "pet", "pet").limits
    assert (low, high) == (0, pytest.approx(149.6))
    low, high = DisplayedVolume(array, "error", "error").limits
    assert low == -high
    assert high == pytest.approx(149, abs=1)
    assert DisplayedVolume(array, "mri", window=(3, 4)).limits == (3, 4)
    assert [DisplayedVolume(np.zeros((2, 2, 2)), "flat", c).limits for c in ("gray", "pet", "error")] == [
        (0, 1),
        (0, 1),
        (-1, 1),
    ]


def test_a_pet_pair_shares_one_window_and_an_mri_pair_does_not():
    source, target = ramp() / 8, ramp() / 10
    windows = {}
    for colours in ("gray", "pet"):
        shown = pictures(draw_pair({"source": source}, target, SPACING, title="t", colours=colours))
        windows[colours] = [shown[i].images[0].get_clim() for i in (0, 1)]
    assert windows["pet"][0] == windows["pet"][1] == DisplayedVolume(target, "t", "pet").limits
    assert windows["gray"] == [DisplayedVolume(source, "s").limits, DisplayedVolume(target, "t").limits]


def test_a_pet_source_far_below_its_target_has_a_window_of_its_own():
    target = ramp()
    shown = draw_pair({"source": target / 5}, target, SPACING, title="t", colours="pet").axes
    assert shown[0].images[0].get_clim() == DisplayedVolume(target / 5, "s", "pet").limits


def test_only_volumes_with_a_unit_have_a_colour_bar_and_it_shows_their_window():
    error = ramp() - ramp().mean()
    rows = [DisplayedVolume(ramp(), "T1w"), DisplayedVolume(error, "error", "error", (-100, 100), "a.u.")]
    figure = draw_montage(rows, SPACING, title="t")
    (bar,) = bars(figure)
    low, high = bar.get_ylim()
    assert (low, high) == (-100, 100)
    ticks = [tick for tick in bar.get_yticks() if low <= tick <= high]
    assert 0 in ticks
    assert [-tick for tick in ticks] == ticks[::-1]
    assert "a.u." in written(figure)
    assert pictures(figure)[1].images[0].get_cmap().name == "RdBu_r"
    assert not bars(draw_montage(rows[:1], SPACING, title="t"))


# Positions of the planes


def test_a_pair_is_cut_through_the_centre_of_mass_of_the_target():
    target = np.zeros(SHAPE, np.float32)
    target[7, 1, 3] = 5

    figure = draw_pair({"source": ramp()}, target, SPACING, title="t")
    assert [text.split(", ")[1] for text in written(figure)[:3]] == ["4/5", "2/7", "8/9"]


def test_the_centre_of_mass_ignores_negative_values():
    array = np.full(SHAPE, -1.0)
    assert centre_of_mass(array) == (4, 3, 2)
    array[0, 0, 0], array[8, 0, 4] = 1, 3
    assert centre_of_mass(array) == (6, 0, 3)


# Contact sheets


def test_a_contact_sheet_shows_the_middle_slice_of_every_subject_at_one_scale():
    volumes = [ramp(), ramp((9, 7, 8)), ramp((5, 7, 5))]
    figure = contact_sheet(volumes, SPACING, ["s0", "s1", "s2"], 2, title="three", plane="coronal")
    shown = pictures(figure)
    assert written(figure)[:3] == ["s0", "s1", "s2"]
    for axes, volume in zip(shown, volumes, strict=True):
        assert np.array_equal(axes.images[0].get_array(), volume[:, 3].T[::-1, ::-1])
    sizes = np.array([inches(axes) for axes in shown])
    np.testing.assert_allclose(sizes / [(9, 20), (9, 32), (5, 20)], sizes[0, 0] / 9)
    assert [len(axes.texts) for axes in shown] == [4, 0, 0]
    assert shown[2].get_position().y1 < shown[0].get_position().y0
    assert written(figure)[-1].startswith("Coronal slices through the middle.")


# Files and refusals


@pytest.mark.slow
def test_the_same_figure_gives_the_same_bytes(tmp_path):
    saved = []
    for name in ("a", "b"):
        figure = draw_pair({"source": ramp()}, ramp()[::-1], SPACING, title="pair", colours="pet", unit="SUV")
        saved.append([path.read_bytes() for path in style.save(figure, tmp_path / name)])
    assert saved[0] == saved[1]
    assert [content[:4] for content in saved[0]] == [b"\x89PNG", b"%PDF"]
    assert len(list(Path(tmp_path).iterdir())) == 4


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: DisplayedVolume(np.zeros((4, 5)), "flat"), "flat: a figure needs a finite volume"),
        (lambda: DisplayedVolume(np.full(SHAPE, np.nan), "holes"), "holes: a figure needs a finite volume"),
        (lambda: DisplayedVolume(ramp(), "x", "jet"), "colours are gray, pet, error, got 'jet'"),
        (lambda: DisplayedVolume(ramp(), "x", window=(1, 1)), r"got \(1, 1\)"),
        (lambda: DisplayedVolume(ramp(), "x", "error", (-1, 2)), r"of an error \(-x, x\); got \(-1, 2\)"),
        (lambda: draw_montage([], SPACING, title="t"), "volumes of one shape, got none"),
        (
            lambda: draw_pair({"source": ramp()}, ramp((9, 7, 4)), SPACING, title="t"),
            r"one shape, got \[\(9, 7, 4\), \(9, 7, 5\)\]",
        ),
        (lambda: draw_pair({"source": ramp()}, ramp(), (1, 0, 1), title="t"), "three positive numbers of mm"),
        (lambda: draw_montage([DisplayedVolume(ramp(), "x")], SPACING, title="t", at=(0, 0, 5)), "outside of shape"),
        (lambda: contact_sheet([ramp()], SPACING, ["a", "b"], title="t"), "got 1 volumes, 2 names"),
        (lambda: contact_sheet([ramp()] * 60, SPACING, ["a"] * 60, 1, title="t"), "60 rows of pictures do not fit"),
        (lambda: contact_sheet([ramp()], (1, 1), ["a"], title="t"), "three positive numbers of mm"),
    ],
)
def test_volumes_and_layouts_that_cannot_be_drawn_are_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()
