"""Phantoms: tissue fractions, volumes and positions are realistic and do not depend on the grid."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from ppdm.simulation.phantom import ANATOMIES, PRESETS, TISSUES, Anatomy, Grid, PhantomError, make_head, make_torso
from ppdm.simulation.phantom.lattice import Lattice, box_weights, refine
from ppdm.simulation.phantom.shapes import ellipsoid, redistance

pytestmark = pytest.mark.slow

HEAD_2MM = Grid((84, 112, 98), (2.0, 2.0, 2.0))
HEAD_1MM = Grid((168, 224, 196), (1.0, 1.0, 1.0))

# A grid with another slice thickness, whose voxel centres coincide with none of the other grids.
ODD = Grid((51, 68, 75), (3.5, 3.5, 2.7))


@pytest.fixture(scope="module")
def head() -> Anatomy:
    return make_head(0, HEAD_2MM)


@pytest.fixture(scope="module")
def fine_head() -> Anatomy:
    return make_head(0, HEAD_1MM)


@pytest.fixture(scope="module")
def heads(head: Anatomy) -> list[Anatomy]:
    return [head, make_head(0, ODD), make_head(8, ODD)]


@pytest.fixture(scope="module")
def torso() -> Anatomy:
    return make_torso(1, Grid.covering("torso", 96, "oblong"))


@pytest.fixture(scope="module")
def torsos(torso: Anatomy) -> list[Anatomy]:
    return [torso, make_torso(2, Grid.covering("torso", 48, "thick"))]


def _centre(anatomy: Anatomy, tissue: str) -> np.ndarray:
    """Return the centre of gravity of a tissue in mm (right, anterior, superior)."""
    share = anatomy.fraction(tissue)
    return np.array(
        [np.average(anatomy.grid.centres(axis), weights=share.sum(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    )


# Fractions


def test_fractions_lie_between_0_and_1_and_add_up_to_1(heads: list[Anatomy], torsos: list[Anatomy]) -> None:
    for anatomy in heads + torsos:
        assert anatomy.fractions.dtype == np.float32
        assert anatomy.fractions.flags.c_contiguous
        assert anatomy.fractions.shape == (len(anatomy.tissues), *anatomy.grid.shape)
        assert anatomy.fractions.min() >= 0.0
        assert anatomy.fractions.max() <= 1.0
        np.testing.assert_allclose(anatomy.fractions.sum(axis=0), 1.0, atol=1e-5)


def test_every_subject_of_a_kind_has_the_same_tissues(heads: list[Anatomy], torsos: list[Anatomy]) -> None:
    assert len({head.tissues for head in heads}) == 1
    assert len({torso.tissues for torso in torsos}) == 1
    assert set(heads[0].tissues) | set(torsos[0].tissues) == set(TISSUES)


def test_many_voxels_contain_several_tissues(head: Anatomy) -> None:
    mixed = (head.fractions.max(axis=0) < 0.9) & head.body
    assert 0.2 < mixed.sum() / head.body.sum() < 0.8


def test_labels_give_the_tissue_with_the_largest_fraction(head: Anatomy, torso: Anatomy) -> None:
    for anatomy in (head, torso):
        labels, largest = anatomy.labels(), anatomy.fractions.max(axis=0)
        assert labels.dtype == np.uint8
        assert {TISSUES[number] for number in np.unique(labels)} <= set(anatomy.tissues)
        for tissue in anatomy.tissues:
            share, labelled = anatomy.fraction(tissue), labels == TISSUES.index(tissue)
            assert labelled[share > 0.5].all()
            assert (share[labelled] == largest[labelled]).all()


def test_mix_weighs_values_by_fractions(head: Anatomy) -> None:
    values = dict.fromkeys(TISSUES, 0.0) | {"csf": 2.0, "skin": -1.0}
    expected = 2.0 * head.fraction("csf") - head.fraction("skin")
    mixed = head.mix(values)
    assert mixed.dtype == np.float32
    assert mixed.flags.c_contiguous
    np.testing.assert_allclose(mixed, expected, atol=1e-6)


# The same anatomy on every grid


def test_coarse_voxels_are_means_of_fine_ones(head: Anatomy, fine_head: Anatomy) -> None:
    d, h, w = HEAD_2MM.shape
    blocks = fine_head.fractions.reshape(-1, d, 2, h, 2, w, 2).mean(axis=(2, 4, 6))
    np.testing.assert_allclose(head.fractions, blocks, atol=1e-4)
    np.testing.assert_allclose(head.inside, fine_head.inside.reshape(d, 2, h, 2, w, 2).mean(axis=(1, 3, 5)), atol=1e-4)


def test_volumes_do_not_depend_on_the_grid(heads: list[Anatomy], fine_head: Anatomy) -> None:
    for tissue in ("grey_matter", "deep_grey", "white_matter", "csf"):
        volumes = [head.volume_ml(tissue) for head in (*heads[:2], fine_head)]
        # Only the spinal cord and its fluid differ, because the grids end at different heights of the neck.
        assert volumes == pytest.approx([volumes[0]] * 3, rel=0.02)


def test_the_same_seed_gives_the_same_subject_bit_for_bit(heads: list[Anatomy]) -> None:
    again = make_head(np.random.SeedSequence(8), ODD)
    np.testing.assert_array_equal(again.fractions, heads[2].fractions)
    np.testing.assert_array_equal(again.inside, heads[2].inside)
    assert again.lesions == heads[2].lesions


def test_different_seeds_give_different_subjects(heads: list[Anatomy]) -> None:
    _, first, second = heads
    d, h, w = (slice(n // 2 - 5, n // 2 + 5) for n in ODD.shape)
    difference = np.abs(first.fractions - second.fractions)[:, d, h, w]
    assert difference.max(axis=0).mean() > 0.2


@settings(max_examples=30, deadline=None)
@given(voxels=st.integers(1, 40), size=st.floats(0.2, 9.0), points=st.integers(1, 20).map(lambda n: 4 * n + 1))
def test_box_weights_are_exact_means_of_the_linear_interpolant(voxels: int, size: float, points: int) -> None:
    faces = (np.arange(voxels + 1) - voxels / 2) * size
    spacing = 1.25
    weights = box_weights(faces, points, spacing).toarray()
    positions = (np.arange(points) - points // 2) * spacing
    values = np.random.default_rng(points).random(points).astype(np.float32)
    # Beyond the end points the interpolant falls to 0 within one spacing.
    ends = np.array([positions[0] - spacing, positions[-1] + spacing])
    for voxel, (low, high) in enumerate(pairwise(faces)):
        kinks = np.concatenate([[ends[0]], positions, [ends[1]]])
        x = np.unique(np.concatenate([[low, high], kinks[(kinks > low) & (kinks < high)]]))
        y = np.interp(x, kinks, np.concatenate([[0.0], values, [0.0]]), left=0.0, right=0.0)
        integral = float((0.5 * (y[1:] + y[:-1]) * np.diff(x)).sum())
        assert weights[voxel] @ values == pytest.approx(integral / (high - low), abs=1e-4)


# Anatomy: the head


def test_brain_volumes_are_in_the_range_of_adults(heads: list[Anatomy]) -> None:
    for head in heads:
        grey = head.volume_ml("grey_matter") + head.volume_ml("deep_grey")
        assert 450 < grey < 750
        assert 450 < head.volume_ml("white_matter") < 700
        assert 200 < head.volume_ml("csf") < 450


def test_cortex_lies_between_fluid_and_white_matter(head: Anatomy) -> None:
    outside = ndimage.distance_transform_edt(head.inside > 0.5, sampling=head.grid.spacing)
    depth = {name: np.average(outside, weights=head.fraction(name)) for name in ("skin", "grey_matter", "white_matter")}
    assert depth["skin"] < depth["grey_matter"] < depth["white_matter"]
    # The cortex is 2.5 mm thick: nearly all grey matter lies within 5 mm of voxels that are not brain tissue.
    brain = head.fraction("grey_matter") + head.fraction("white_matter") + head.fraction("deep_grey")
    from_fluid = ndimage.distance_transform_edt(brain > 0.75, sampling=head.grid.spacing)
    cerebrum = head.grid.centres(2) > 10.0
    grey, white = head.fraction("grey_matter")[..., cerebrum], head.fraction("white_matter")[..., cerebrum]
    near = from_fluid[..., cerebrum] < 5.0
    assert grey[near].sum() / grey.sum() > 0.95
    assert white[near].sum() / white.sum() < 0.7


def test_ventricles_are_within_the_brain(head: Anatomy) -> None:
    d, h, w = (head.grid.centres(axis) for axis in range(3))
    centre = (np.abs(d)[:, None, None] < 25) & (np.abs(h)[None, :, None] < 45) & (np.abs(w - 18) < 18)
    ventricles, count = ndimage.label((head.fraction("csf") > 0.5) & centre)
    sizes = ndimage.sum_labels(np.ones_like(ventricles), ventricles, range(1, count + 1))
    largest = ventricles == 1 + int(np.argmax(sizes))
    rim = ndimage.binary_dilation(largest) & ~largest
    brain = sum(head.fraction(name) for name in ("white_matter", "deep_grey", "grey_matter", "csf"))
    assert sizes.max() * head.grid.voxel_ml > 5.0
    assert brain[rim].mean() > 0.98


def test_the_skull_separates_the_brain_from_the_scalp_and_from_air(head: Anatomy) -> None:
    above = head.grid.centres(2) > 5.0
    bone = (head.fraction("cortical_bone") + head.fraction("marrow"))[..., above]
    regions, _ = ndimage.label(bone < 0.5)
    brain = (head.fraction("grey_matter") + head.fraction("white_matter"))[..., above] > 0.5
    assert brain.any()
    for tissue in ("skin", "air"):
        outside = head.fraction(tissue)[..., above] > 0.5
        assert outside.any()
        assert not set(np.unique(regions[brain])) & set(np.unique(regions[outside])) - {0}


def test_the_halves_of_the_brain_are_similar_but_not_equal(head: Anatomy) -> None:
    white = head.fraction("white_matter")
    halves = white[: white.shape[0] // 2].sum(), white[white.shape[0] // 2 :].sum()
    assert halves[0] == pytest.approx(halves[1], rel=0.15)
    assert np.abs(white - white[::-1]).mean() > 0.05 * white.mean()


def test_the_body_includes_the_air_inside_it(head: Anatomy) -> None:
    sinuses = head.body & (head.fraction("air") > 0.5)
    assert 5.0 < sinuses.sum() * head.grid.voxel_ml < 200.0
    tissue = 1.0 - head.fraction("air")
    assert (head.inside >= tissue - 0.02).all()


# Anatomy: the torso


def test_the_liver_lies_on_the_right_and_spleen_and_heart_on_the_left(torsos: list[Anatomy]) -> None:
    for torso in torsos:
        assert _centre(torso, "liver")[0] > 30.0
        assert _centre(torso, "spleen")[0] < -60.0
        assert _centre(torso, "myocardium")[0] < -10.0


def test_organs_have_realistic_positions_and_sizes(torso: Anatomy) -> None:
    assert _centre(torso, "lung")[2] > _centre(torso, "liver")[2] > _centre(torso, "kidney")[2]
    assert _centre(torso, "kidney")[1] < 0.0 < _centre(torso, "myocardium")[1]
    ranges = {"lung": (1500, 4500), "liver": (900, 2000), "spleen": (70, 300), "kidney": (180, 450)}
    for tissue, (low, high) in ranges.items():
        assert low < torso.volume_ml(tissue) < high


def test_lesions_lie_at_their_listed_centres(torsos: list[Anatomy]) -> None:
    for torso in torsos:
        assert 1 <= len(torso.lesions) <= 5
    torso = torsos[0]
    for lesion in torso.lesions:
        index = tuple(np.argmin(np.abs(torso.grid.centres(axis) - lesion.centre_mm[axis])) for axis in range(3))
        assert torso.fraction("lesion")[index] > 0.5
        assert torso.body[index]


# Grids


@pytest.mark.parametrize("kind", ANATOMIES)
@pytest.mark.parametrize("preset", PRESETS)
def test_presets_cover_the_field_of_view(kind: str, preset: str) -> None:
    grid = Grid.covering(kind, 64, preset)
    assert max(grid.shape) == 64
    assert all(n % 4 == 0 for n in grid.shape)
    assert grid.shape[0] * grid.spacing[0] >= {"head": 168, "torso": 400}[kind] - 1e-6
    assert (len(set(grid.shape)) == 1) == (preset == "cubic")
    assert grid.spacing[2] / grid.spacing[0] == pytest.approx(2.5 if preset == "thick" else 1.0)
    assert np.diff(grid.faces(1)) == pytest.approx(grid.spacing[1])
    assert grid.faces(2)[0] == pytest.approx(-grid.faces(2)[-1])


def test_invalid_grids_are_refused() -> None:
    for shape in ((64, 64), (64, 0, 64), (64, 64, 6.5)):
        with pytest.raises(PhantomError, match="three whole numbers"):
            Grid(shape, (2.0, 2.0, 2.0))
    for spacing in ((2.0, 2.0), (2.0, -1.0, 2.0), (2.0, float("nan"), 2.0), (2.0, float("inf"), 2.0)):
        with pytest.raises(PhantomError, match="three positive lengths"):
            Grid((64, 64, 64), spacing)
    with pytest.raises(PhantomError, match="no anatomy 'hand'; choose head or torso"):
        Grid.covering("hand")
    with pytest.raises(PhantomError, match="cubic, oblong, thick"):
        Grid.covering("head", 64, "flat")
    with pytest.raises(PhantomError, match="got 2"):
        Grid.covering("head", 2)


def test_missing_and_unknown_tissues_are_named_in_errors(head: Anatomy) -> None:
    with pytest.raises(PhantomError, match="A head has no 'liver'"):
        head.volume_ml("liver")
    values = dict.fromkeys(TISSUES, 1.0)
    np.testing.assert_allclose(head.mix(values), 1.0, atol=1e-5)
    with pytest.raises(PhantomError, match="No value for marrow"):
        head.mix({name: value for name, value in values.items() if name != "marrow"})
    with pytest.raises(PhantomError, match="no tissue 'brian'"):
        head.mix(values | {"brian": 1.0})


# Distances


def test_redistance_is_better_than_the_distance_transform_of_a_mask() -> None:
    x, y, z = Lattice((8, 8, 8), 1.0).coarse_points()
    truth = np.sqrt(x * x + y * y + z * z) - 11.3
    distorted = truth * (1.5 + 0.5 * np.tanh(x / 6.0))
    error = np.abs(redistance(distorted, 2.0) - truth)[truth > -8.0]
    plain = np.abs(ndimage.distance_transform_edt(truth > 0.0, sampling=2.0) - truth)[truth > 0.0]
    assert np.percentile(error, 99.0) < 0.6
    assert error.mean() < 0.15 < 0.4 * plain.mean()


def test_ellipsoids_of_equal_axes_are_exact_spheres() -> None:
    points = Lattice((7, 7, 7), 1.0).coarse_points()
    truth = np.sqrt(sum(p * p for p in points)) - 8.3
    np.testing.assert_allclose(ellipsoid(points, (0, 0, 0), (8.3, 8.3, 8.3)), truth, atol=1e-4)


def test_refine_interpolates_linearly() -> None:
    coarse = np.random.default_rng(0).random((3, 4, 5)).astype(np.float32)
    points = np.meshgrid(np.arange(5) / 2, np.arange(7) / 2, np.arange(9) / 2, indexing="ij")
    expected = ndimage.map_coordinates(coarse, points, order=1)
    np.testing.assert_allclose(refine(coarse), expected, atol=1e-6)
