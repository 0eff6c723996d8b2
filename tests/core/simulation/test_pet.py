"""PET: projections, counts and images agree with theory for discs, cylinders and points."""

import json
import subprocess
import sys
from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import distance_transform_edt, gaussian_filter

from ppdm.simulation.pet import (
    HEAD,
    LESION_SUV,
    MU,
    SCANNERS,
    SUV,
    TORSO,
    Acquisition,
    PETError,
    Projector,
    Scanner,
    acquire,
    draw_uptake,
    reconstruct,
    simulate,
    thin,
    thin_nested,
)
from ppdm.simulation.pet.blur import blur
from ppdm.simulation.phantom import TISSUES, Anatomy, Grid, Lesion, make_head, make_torso

pytestmark = pytest.mark.slow

WATER = 0.096  # 1/cm at 511 keV
SMALL = replace(HEAD, angles=60, subsets=6, psf_mm=0.0, filter_mm=0.0, margin_mm=0.0)


def disc(shape, spacing, radius, centre=(0.0, 0.0), fine=8):
    """Return the share of each pixel (D, H) inside a disc, in mm, from fine² samples per pixel."""
    d, h = (mm * ((np.arange(n * fine) + 0.5) / fine - n / 2) for n, mm in zip(shape, spacing, strict=True))
    inside = (d[:, None] - centre[0]) ** 2 + (h - centre[1]) ** 2 < radius**2
    return inside.reshape(shape[0], fine, shape[1], fine).mean((1, 3)).astype(np.float32)


def cylinder(shape, spacing, radius, centre=(0.0, 0.0)):
    """Return the same disc in every slice, (D, H, W)."""
    return np.repeat(disc(shape[:2], spacing[:2], radius, centre)[..., None], shape[2], axis=2)


def distance(shape, spacing):
    """Return the distance of each voxel from the axis in mm, (D, H, W)."""
    d, h = (mm * (np.arange(n) - (n - 1) / 2) for n, mm in zip(shape[:2], spacing[:2], strict=True))
    return np.repeat(np.hypot(d[:, None], h)[..., None], shape[2], axis=2)


def noise_free(activity, mu, spacing, scanner):
    """Return an acquisition whose counts are their expected values."""
    scan = acquire(activity, mu, spacing, scanner, np.random.default_rng(0))
    trues = scan.attenuation * scan.projector.forward(blur(activity, spacing, scanner.psf_mm))
    return replace(scan, counts=scan.calibration * (trues + scan.scatter).astype(float))


def scatter_share(scan: Acquisition) -> float:
    return float(scan.calibration * scan.scatter.sum(dtype=float) / scan.counts.sum())


# The projector


@settings(max_examples=12, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    spacing=st.tuples(st.floats(0.5, 8), st.floats(0.5, 8)),
    angles=st.integers(1, 13),
    slices=st.integers(1, 3),
)
def test_the_adjoint_is_exact(shape, spacing, angles, slices):
    projector, rng = Projector(shape, spacing, angles), np.random.default_rng(0)
    x = rng.random((*shape, slices))
    y = rng.random((angles, projector.bins, slices))
    np.testing.assert_allclose(np.vdot(projector.forward(x), y), np.vdot(x, projector.adjoint(y)), rtol=1e-10)


@pytest.mark.parametrize("spacing", [(2.0, 2.0), (2.0, 3.7), (6.0, 1.5)])
def test_every_view_contains_the_whole_area_of_every_pixel(spacing):
    """A pixel contributes its area to the bins of each view, also in the corners."""
    projector = Projector((17, 30), spacing, angles=23)
    views = projector.adjoint(np.ones((23, projector.bins, 1))) / 23
    np.testing.assert_allclose(views * projector.bin_width, spacing[0] * spacing[1], rtol=1e-6)
    x = np.random.default_rng(0).random((17, 30, 2))
    np.testing.assert_allclose(
        projector.forward(x).sum(1), np.tile(x.sum((0, 1)), (23, 1)) * np.prod(spacing) / projector.bin_width, rtol=1e-5
    )


@pytest.mark.parametrize(("shape", "spacing"), [((64, 64), (2.0, 2.0)), ((40, 64), (3.1, 2.0))])
def test_the_projection_of_a_disc_is_its_chord_length(shape, spacing):
    """The chord is 2·√(R² - s²), averaged over the bin. The disc is off centre, so s changes with the view."""
    radius, centre = 45.0, (9.0, -6.0)
    projector = Projector(shape, spacing, angles=90)
    measured = projector.forward(disc(shape, spacing, radius, centre)[..., None])[..., 0]
    fine = 64
    s = projector.bin_width * ((np.arange(projector.bins * fine) + 0.5) / fine - projector.bins / 2)
    offset = centre[0] * np.cos(projector.views) + centre[1] * np.sin(projector.views)
    chords = 2 * np.sqrt(np.maximum(radius**2 - (s - offset[:, None]) ** 2, 0))
    expected = chords.reshape(90, projector.bins, fine).mean(-1)
    error = np.abs(measured - expected)
    assert error[expected > radius].max() < 0.6 * max(spacing)  # at the rim, pixels limit the accuracy
    assert np.sqrt(np.mean(error**2)) < 0.01 * 2 * radius


def test_the_projection_of_a_gaussian_is_a_gaussian():
    """Every view is √(2π)·σ·exp(-s²/2σ²) within 0.5 % of its peak; the image is smooth, so pixels matter little."""
    sigma, centre, spacing = 14.0, (11.0, -8.0), (2.0, 2.5)
    projector = Projector((70, 60), spacing, angles=37)
    d, h = (mm * (np.arange(n) - (n - 1) / 2) for n, mm in zip((70, 60), spacing, strict=True))
    squares = (d[:, None] - centre[0]) ** 2 + (h - centre[1]) ** 2
    measured = projector.forward(np.exp(-squares / (2 * sigma**2))[..., None])[..., 0]
    s = projector.bin_width * (np.arange(projector.bins) - (projector.bins - 1) / 2)
    offset = centre[0] * np.cos(projector.views) + centre[1] * np.sin(projector.views)
    peak = np.sqrt(2 * np.pi) * sigma
    expected = peak * np.exp(-((s - offset[:, None]) ** 2) / (2 * sigma**2))
    assert np.abs(measured - expected).max() < 0.005 * peak


def test_subsets_give_the_views_of_the_full_projector():
    whole = Projector((9, 7), (2.0, 2.5), angles=11)
    x = np.random.default_rng(0).random((9, 7, 2), np.float32)
    sinogram = whole.forward(x)
    parts = [whole.subset(first, 4) for first in range(4)]
    assert sum(len(part.views) for part in parts) == 11
    for part in parts:
        np.testing.assert_array_equal(part.forward(x), sinogram[part.selection])
    assert parts[1].subset(1, 2).selection == slice(5, 11, 8)
    np.testing.assert_array_equal(parts[1].subset(1, 2).forward(x), sinogram[5::8])


def test_the_first_view_looks_along_h_and_the_bins_run_with_d():
    x = np.zeros((8, 8, 1))
    x[6, 1] = 1
    projector = Projector((8, 8), (2.0, 2.0), angles=2)
    across_d, across_h = projector.forward(x)[..., 0]
    offset = projector.bins / 2 - 4
    assert (np.average(np.arange(projector.bins), weights=across_d) - offset).round(6) == 6
    assert (np.average(np.arange(projector.bins), weights=across_h) - offset).round(6) == 1


# Counts


def test_a_water_cylinder_attenuates_by_its_chord_length():
    shape, spacing, radius = (48, 48, 2), (4.0, 4.0, 4.0), 80.0
    water = cylinder(shape, spacing, radius)
    scan = acquire(water, WATER * water, spacing, SMALL, np.random.default_rng(0))
    s = 4.0 * (np.arange(scan.attenuation.shape[1]) - (scan.attenuation.shape[1] - 1) / 2)
    chord = 2 * np.sqrt(np.maximum(radius**2 - s**2, 0))
    inside = chord > radius
    expected = np.exp(-WATER * chord[inside] / 10)
    np.testing.assert_allclose(
        scan.attenuation[:, inside], np.broadcast_to(expected[:, None], (60, inside.sum(), 2)), rtol=0.02
    )
    assert scan.attenuation[:, np.abs(s) > 1.1 * radius].min() == 1


@pytest.mark.parametrize("spacing", [(4.0, 4.0, 5.0), (3.0, 4.5, 2.0)])
def test_the_sensitivity_determines_the_number_of_counts(spacing):
    """Without attenuation there are sensitivity · SUV · mL true counts on any grid, plus scatter."""
    activity = 3 * cylinder((40, 40, 3), spacing, 50.0)
    scan = acquire(activity, np.zeros_like(activity), spacing, SMALL, np.random.default_rng(1))
    trues = SMALL.sensitivity * activity.sum(dtype=float) * np.prod(spacing) / 1000
    expected = trues / (1 - SMALL.scatter_fraction)
    assert abs(scan.counts.sum() - expected) < 5 * np.sqrt(expected)
    np.testing.assert_allclose(scan.calibration * scan.scatter.sum(dtype=float), expected - trues, rtol=1e-4)


@pytest.mark.parametrize("fraction", [0.0, 0.30, 0.35])
def test_the_counts_have_the_requested_scatter_fraction(fraction):
    water = cylinder((40, 40, 4), (5.0, 5.0, 5.0), 80.0)
    scanner = replace(SMALL, scatter_fraction=fraction)
    scan = acquire(5 * water, WATER * water, (5.0, 5.0, 5.0), scanner, np.random.default_rng(2))
    assert scatter_share(scan) == pytest.approx(fraction, abs=5 / np.sqrt(scan.counts.sum()))
    beside = scan.attenuation == 1  # lines that miss the water
    assert fraction == 0 or 0.1 < scan.scatter[beside].max() / scan.scatter.max() < 1


def test_counts_are_poisson():
    """For bins of known mean m, Σ (y - m)²/m has a χ² distribution with as many degrees of freedom as bins."""
    water = cylinder((32, 32, 4), (5.0, 5.0, 5.0), 60.0)
    expected = noise_free(water, WATER * water, (5.0, 5.0, 5.0), SMALL).counts
    counts = acquire(water, WATER * water, (5.0, 5.0, 5.0), SMALL, np.random.default_rng(3)).counts
    bright = expected > 20
    chi2 = ((counts - expected)[bright] ** 2 / expected[bright]).sum()
    assert abs(chi2 - bright.sum()) < 5 * np.sqrt(2 * bright.sum())


def test_thinning_is_binomial():
    counts, factor = np.full(200_000, 30), 4
    kept = thin(counts, factor, np.random.default_rng(0))
    mean, variance = 30 / 4, 30 * (1 / 4) * (3 / 4)
    assert kept.min() >= 0
    assert kept.max() <= 30
    assert abs(kept.mean() - mean) < 5 * np.sqrt(variance / kept.size)
    assert kept.var() == pytest.approx(variance, rel=0.03)
    assert np.array_equal(thin(counts, 1, np.random.default_rng(0)), counts)


def test_each_lower_dose_is_a_subset_of_the_higher():
    counts = np.random.default_rng(0).poisson(40.0, (50, 50, 40))
    thinned = thin_nested(counts, [100, 4, 20], np.random.default_rng(1))
    assert list(thinned) == [4, 20, 100]
    above = counts
    for factor, kept in thinned.items():
        assert (kept <= above).all()
        # Thinned Poisson counts are Poisson again: variance = mean = 40 / factor.
        assert abs(kept.mean() - 40 / factor) < 5 * np.sqrt(40 / factor / kept.size)
        assert kept.var() == pytest.approx(40 / factor, rel=0.05)
        above = kept


def test_noise_variance_is_linear_in_the_dose_factor():
    """Over 24 repetitions, pooled over the voxels of a cylinder, var(D) = D · var(1) within 15 %."""
    shape, spacing = (32, 32, 2), (5.0, 5.0, 5.0)
    water = cylinder(shape, spacing, 60.0)
    scanner = replace(SMALL, angles=40, subsets=4, iterations=2, filter_mm=6.0)
    images: dict[int, list] = {1: [], 4: [], 16: []}
    for seed in range(24):
        scan = simulate(2 * water, WATER * water, spacing, scanner, np.random.default_rng(seed), (4, 16))
        images[1].append(scan.ac)
        for factor in (4, 16):
            images[factor].append(scan.low[factor])
    inside = distance(shape, spacing) < 45
    variance = {factor: np.var(stack, axis=0, ddof=1)[inside].mean() for factor, stack in images.items()}
    assert variance[4] / variance[1] == pytest.approx(4, rel=0.15)
    assert variance[16] / variance[1] == pytest.approx(16, rel=0.15)


def test_the_noise_of_a_subject_does_not_depend_on_the_grid():
    """After the same filter, the standard deviation on voxels of 3 mm and of 5 mm agrees within 15 %."""
    scanner = replace(HEAD, filter_mm=10.0, margin_mm=0.0, sensitivity=2e4)
    noise = []
    for n, mm in ((50, 3.0), (30, 5.0)):
        shape, spacing = (n, n, round(45 / mm)), (mm,) * 3
        water = cylinder(shape, spacing, 60.0)
        images = [
            simulate(2 * water, WATER * water, spacing, scanner, np.random.default_rng(s)).low[20] for s in range(8)
        ]
        noise.append(np.std(images, axis=0, ddof=1)[distance(shape, spacing) < 45].mean())
    assert noise[1] == pytest.approx(noise[0], rel=0.15)


# Images


def test_osem_converges_to_the_activity():
    """For noise-free counts of an object that the pixels can represent, the error falls below 3 %, due to edges."""
    shape, spacing = (48, 48, 2), (4.0, 4.0, 4.0)
    water = cylinder(shape, spacing, 80.0)
    activity = water + 3 * cylinder(shape, spacing, 20.0, (30.0, 10.0))
    errors = []
    for iterations in (1, 3, 10, 80):
        scan = noise_free(activity, WATER * water, spacing, replace(SMALL, iterations=iterations))
        errors.append(np.linalg.norm(reconstruct(scan) - activity) / np.linalg.norm(activity))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.03


def test_modelling_the_blur_raises_the_peak_of_a_small_object():
    shape, spacing = (48, 48, 8), (3.0, 3.0, 3.0)
    activity = cylinder(shape, spacing, 55.0) + 5 * cylinder(shape, spacing, 5.0)
    scanner = replace(SMALL, psf_mm=8.0, iterations=15)
    plain, modelled = (
        reconstruct(noise_free(activity, 0 * activity, spacing, replace(scanner, model_psf=model)))
        for model in (False, True)
    )
    peak = activity[24, 24, 4]
    assert plain[24, 24, 4] < 0.75 * peak
    assert plain[24, 24, 4] < 0.9 * modelled[24, 24, 4]


@pytest.fixture(scope="module")
def bottle():
    """The scan of a water cylinder (radius 90 mm, SUV 2) with many counts, and the distance from its axis."""
    shape, spacing = (56, 56, 4), (4.0, 4.0, 4.0)
    water = cylinder(shape, spacing, 90.0)
    scanner = replace(HEAD, sensitivity=1e7)
    return simulate(2 * water, WATER * water, spacing, scanner, np.random.default_rng(4)), distance(shape, spacing)


def test_a_corrected_cylinder_is_uniform_and_has_the_true_suv(bottle):
    scan, r = bottle
    inside = r < 78
    assert scan.ac[inside].mean() == pytest.approx(2, rel=0.005)
    assert np.abs(scan.ac[inside] / 2 - 1).max() < 0.05
    rings = [scan.ac[(a <= r) & (r < a + 10)].mean() for a in range(0, 80, 10)]
    np.testing.assert_allclose(rings, 2, rtol=0.02)


def test_an_uncorrected_cylinder_is_darkest_in_the_middle(bottle):
    """The values fall ring by ring from the edge to a small share in the middle."""
    scan, r = bottle
    rings = [scan.nac[(a <= r) & (r < a + 10)].mean() for a in range(0, 90, 10)]
    assert rings == sorted(rings)
    assert rings[0] < 0.45 * rings[-1]
    assert 0.1 < rings[0] / 2 < 0.45


def test_images_are_dark_outside_the_cylinder(bottle):
    """Neither image has a bright rim or bright corners of the field of view."""
    scan, r = bottle
    assert scan.ac[r > 105].mean() < 0.01 * scan.ac[r < 78].mean()
    assert scan.ac[r > 115].max() < 0.05 * scan.ac[r < 78].mean()
    assert scan.nac[r > 115].mean() < 0.25 * scan.nac[r < 78].mean()


def test_the_suv_does_not_depend_on_the_number_of_counts():
    shape, spacing = (40, 40, 3), (5.0, 5.0, 5.0)
    water = cylinder(shape, spacing, 70.0)
    inside = distance(shape, spacing) < 50
    means = [
        simulate(3 * water, WATER * water, spacing, replace(HEAD, sensitivity=s), np.random.default_rng(5), (20,))
        for s in (2e5, 4e5)
    ]
    full, low = [scan.ac[inside].mean() for scan in means], [scan.low[20][inside].mean() for scan in means]
    assert full[1] == pytest.approx(full[0], rel=0.01)
    np.testing.assert_allclose(low, full, rtol=0.02)
    nac = [(scan.nac[inside].mean(), scan.nac_low[20][inside].mean()) for scan in means]
    assert nac[0][1] == pytest.approx(nac[0][0], rel=0.03)


def test_the_width_of_a_point_combines_psf_and_filter():
    """FWHM² = PSF² + filter², from the profile of a point at half its maximum, with very many counts."""
    shape, spacing = (61, 61, 31), (1.0, 1.0, 1.0)
    activity = np.zeros(shape, np.float32)
    activity[30, 30, 15] = 1000
    scanner = replace(HEAD, scatter_fraction=0.0, iterations=10, sensitivity=1e9, angles=60)
    image = simulate(activity, 0 * activity, spacing, scanner, np.random.default_rng(6)).ac.astype(float)
    for axis, size in enumerate(shape):
        profile = image.sum(tuple({0, 1, 2} - {axis}))
        half = profile.max() / 2
        x = np.arange(size)
        left = np.interp(half, profile[: size // 2 + 1], x[: size // 2 + 1])
        right = np.interp(-half, -profile[size // 2 :], x[size // 2 :])
        assert right - left == pytest.approx(np.hypot(4.5, 4.0), rel=0.08), axis


def test_a_seed_determines_the_scan_and_images_are_computed_once():
    water = cylinder((24, 24, 3), (8.0, 8.0, 8.0), 70.0)
    a, b, c = (
        simulate(water, WATER * water, (8.0,) * 3, SMALL, np.random.default_rng(seed), (4, 10)) for seed in (7, 7, 8)
    )
    for image in (lambda s: s.ac, lambda s: s.nac, lambda s: s.low[4], lambda s: s.nac_low[10]):
        assert image(a).dtype == np.float32
        assert image(a).shape == water.shape
        assert image(a).flags.c_contiguous
        assert np.array_equal(image(a), image(b))
        assert not np.array_equal(image(a), image(c))
        assert image(a) is image(a)
    assert list(a.low) == [4, 10]
    assert len(a.nac_low) == 2


@pytest.mark.parametrize(("angles", "subsets"), [(7, 7), (11, 4), (13, 1)])
def test_any_number_of_views_and_subsets_gives_the_true_suv(angles, subsets):
    water = cylinder((20, 24, 2), (8.0, 7.0, 8.0), 60.0)
    scanner = replace(SMALL, angles=angles, subsets=subsets, iterations=20 // subsets + 1, sensitivity=1e7)
    image = simulate(water, WATER * water, (8.0, 7.0, 8.0), scanner, np.random.default_rng(9)).ac
    assert image[8:12, 10:14].mean() == pytest.approx(1, rel=0.1)


def test_an_empty_field_of_view_stays_empty():
    nothing = np.zeros((8, 8, 2), np.float32)
    scan = simulate(nothing, nothing, (4.0,) * 3, SMALL, np.random.default_rng(0))
    assert scan.full.counts.sum() == 0
    assert np.abs(scan.ac).max() == np.abs(scan.nac).max() == 0


def test_a_block_of_lead_gives_finite_images():
    block = np.zeros((24, 24, 2), np.float32)
    block[2:22, 2:22] = 1
    scan = simulate(block, 1.8 * block, (20.0,) * 3, SMALL, np.random.default_rng(0))
    assert np.isfinite(scan.ac).all()
    assert np.isfinite(scan.nac).all()


# Uptake


def slab(n):
    """Return a cube of 240 mm: air, liver and lung along D, two lesions in the liver; edges fit voxels for n = 30·k."""
    grid = Grid((n, n, n), (240 / n,) * 3)
    lesions = tuple(Lesion((0.0, h, 0.0), 24.0) for h in (-64.0, 64.0))
    fractions = {tissue: np.zeros((n, n, n), np.float32) for tissue in ("air", "lesion", "lung", "liver")}
    for tissue, part in zip(("air", "liver", "lung"), np.split(np.arange(n), 3), strict=True):
        fractions[tissue][part] = 1
    for lesion in lesions:
        near = np.abs(grid.centres(1) - lesion.centre_mm[1]) < lesion.radius_mm
        fractions["lesion"][:, near] = fractions["liver"][:, near]
        fractions["liver"][:, near] = 0
    return Anatomy("torso", grid, tuple(fractions), np.stack(list(fractions.values())), 1 - fractions["air"], lesions)


def test_every_tissue_has_an_uptake_and_an_attenuation():
    assert set(SUV) == set(MU) == set(TISSUES)
    assert SUV["air"] == MU["air"] == 0
    assert min(value for tissue, value in SUV.items() if tissue != "air") > 0
    assert all(0.02 < value < 0.2 for tissue, value in MU.items() if tissue != "air")
    assert 3 <= SUV["grey_matter"] / SUV["white_matter"] <= 4.5


def test_the_uptake_of_a_subject_is_the_same_on_every_grid():
    fine, coarse = (draw_uptake(slab(n), np.random.default_rng(0)) for n in (60, 30))
    for a, b in zip(fine, coarse, strict=True):
        assert a.dtype == np.float32
        assert a.flags.c_contiguous
        averaged = a.reshape(30, 2, 30, 2, 30, 2).mean((1, 3, 5))
        np.testing.assert_allclose(averaged, b, rtol=0.02)


def test_the_uptake_repeats_with_the_seed_and_differs_between_seeds():
    anatomy = slab(30)
    a, b, c = (draw_uptake(anatomy, np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert np.array_equal(a, b)
    liver = anatomy.fraction("liver") == 1
    means = [draw_uptake(anatomy, np.random.default_rng(seed))[0][liver].mean() for seed in range(40)]
    assert np.mean(means) == pytest.approx(SUV["liver"], rel=0.1)
    assert 0.08 < np.std(means) / np.mean(means) < 0.30
    assert not np.array_equal(a[0], c[0])


def test_uptake_has_texture_and_each_lesion_has_its_own_uptake():
    anatomy = slab(60)
    activity, mu = draw_uptake(anatomy, np.random.default_rng(2))
    liver, lung, lesion = (anatomy.fraction(tissue) == 1 for tissue in ("liver", "lung", "lesion"))
    assert 0.05 < np.log(activity[liver]).std() < 0.11
    assert 0.05 < np.log(mu[lung]).std() < 0.15
    np.testing.assert_allclose(mu[liver], MU["liver"], rtol=1e-6)
    assert activity[anatomy.fraction("air") == 1].max() == 0
    halves = [activity[:, :30][lesion[:, :30]], activity[:, 30:][lesion[:, 30:]]]
    assert all(0.75 * LESION_SUV[0] < half.mean() < 1.25 * LESION_SUV[1] for half in halves)
    assert abs(np.log(halves[0].mean() / halves[1].mean())) > 0.1


# Phantoms: the numbers in the docstrings come from scans with several seeds or from real data


@pytest.fixture(scope="module")
def head():
    anatomy = make_head(3, Grid((56, 72, 60), (3.5, 3.5, 3.5)))
    activity, mu = draw_uptake(anatomy, np.random.default_rng(3))
    return anatomy, simulate(activity, mu, anatomy.grid.spacing, HEAD, np.random.default_rng(3)), mu


@pytest.fixture(scope="module")
def torso():
    anatomy = make_torso(1, Grid((96, 72, 80), (400 / 96,) * 3))
    activity, mu = draw_uptake(anatomy, np.random.default_rng(1))
    spacing = anatomy.grid.spacing
    return anatomy, simulate(activity, mu, spacing, TORSO, np.random.default_rng(1), (4, 10, 20, 50, 100))


def test_without_correction_the_loss_in_a_head_grows_inwards(head):
    """NAC / AC is about 0.15 in the middle and, above it, 0.33 in the outer cortex and 0.9 in the skin."""
    anatomy, scan, _ = head
    brain = sum(anatomy.fraction(t) for t in ("csf", "grey_matter", "white_matter", "deep_grey")) > 0.5
    middle = np.array([index.mean() for index in np.nonzero(brain)])
    away = np.sqrt(sum((3.5 * (i - m)) ** 2 for i, m in zip(np.indices(brain.shape), middle, strict=True)))
    high = np.arange(brain.shape[2]) > middle[2]
    outer = (anatomy.fraction("grey_matter") > 0.5) & (distance_transform_edt(brain, 3.5) < 8) & high
    skin = (anatomy.fraction("skin") > 0.3) & high
    centre, cortex, surface = (scan.nac[r].sum() / scan.ac[r].sum() for r in (brain & (away < 20), outer, skin))
    assert 0.10 < centre < 0.25
    assert 0.22 < cortex < 0.45
    assert 0.6 < surface < 1.3
    assert centre < 0.6 * cortex < 0.36 * surface


def test_the_attenuation_of_the_skull_is_realistic(head):
    """Compact bone and marrow together have 0.13 to 0.15 per cm. Voxels that also hold soft tissue have less."""
    anatomy, _, mu = head
    bone = [anatomy.fraction(tissue) for tissue in ("cortical_bone", "marrow")]
    assert 0.13 < np.average([MU["cortical_bone"], MU["marrow"]], weights=[share.sum() for share in bone]) < 0.15
    assert 0.12 < mu[sum(bone) > 0.9].mean() < 0.14


def test_grey_matter_is_brighter_than_white_in_ac_at_full_and_low_dose(head):
    anatomy, scan, _ = head
    grey, white = (anatomy.fraction(tissue) > 0.7 for tissue in ("grey_matter", "white_matter"))
    for image in (scan.ac, scan.low[20]):
        assert 1.2 < image[grey].mean() / image[white].mean() < 3.5


def test_lungs_are_dark_with_correction_and_bright_without(torso):
    """Lung / liver is 0.22 to 0.31 in AC and 0.8 to 1.1 in NAC, because lungs attenuate little."""
    anatomy, scan = torso
    lung, liver = (anatomy.fraction(tissue) > 0.95 for tissue in ("lung", "liver"))
    assert 0.18 < scan.ac[lung].mean() / scan.ac[liver].mean() < 0.35
    assert 0.7 < scan.nac[lung].mean() / scan.nac[liver].mean() < 1.3
    assert scan.nac[liver].mean() < 0.2 * scan.ac[liver].mean()


def test_low_dose_is_noisier_but_not_darker(torso):
    anatomy, scan = torso
    liver = anatomy.fraction("liver") > 0.95
    means = [scan.ac[liver].mean(), *(image[liver].mean() for image in scan.low.values())]
    np.testing.assert_allclose(means, means[0], rtol=0.05)
    spread = [scan.ac[liver].std(), *(image[liver].std() for image in scan.low.values())]
    assert spread == sorted(spread)
    assert scan.low[100][liver].std() > 3 * scan.ac[liver].std()


def test_noise_grows_with_the_dose_factor_as_in_real_scans(torso):
    """For v = log1p(SUV), Σ|v - G₂v| / #(G₂v > 0.1), G₂ a Gaussian of 2 voxels, is within a factor 1.5 of real values.

    The real values are means over 972 FDG scans of a total-body scanner with voxels of 1.67 mm. With voxels much larger
    than those of this test, 4.2 mm, G₂ would blur organs rather than noise, and high doses would give larger values.
    """
    _, scan = torso
    real = {1: 0.043, 4: 0.053, 10: 0.067, 20: 0.084, 50: 0.124, 100: 0.180}
    images = {1: scan.ac, **scan.low}
    for factor, expected in real.items():
        v = np.log1p(images[factor])
        smooth = gaussian_filter(v, 2)
        measured = np.abs(v - smooth).sum() / (smooth > 0.1).sum()
        assert expected / 1.5 < measured < 1.5 * expected, factor


# Refusals


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"mu": np.zeros((8, 8, 3))}, r"share one grid.*\(8, 8, 2\).*\(8, 8, 3\)"),
        ({"activity": np.zeros((8, 8))}, r"activity is a volume.*\(8, 8\)"),
        ({"activity": np.zeros((8, 0, 2))}, "without an empty axis"),
        ({"activity": np.full((8, 8, 2), -1.0)}, "activity holds values that are negative"),
        ({"activity": np.full((8, 8, 2), np.nan)}, "not a number"),
        ({"mu": np.full((8, 8, 2), np.inf)}, "mu holds values"),
        ({"mu": np.full((8, 8, 2), 96.0)}, "mu is in 1/cm"),
        ({"spacing": (4.0, 4.0)}, r"three positive numbers of mm.*\(4.0, 4.0\)"),
        ({"spacing": (4.0, 4.0, 0.0)}, "three positive numbers of mm"),
        ({"dose_factors": (0.5,)}, "at least 1.*0.5"),
        ({"dose_factors": (np.nan,)}, "at least 1"),
    ],
)
def test_invalid_arrays_and_options_are_refused_with_a_reason(change, words):
    body = np.ones((8, 8, 2))
    arguments = {"activity": body, "mu": WATER * body, "spacing": (4.0, 4.0, 4.0), "dose_factors": (20,)} | change
    with pytest.raises(PETError, match=words):
        simulate(scanner=SMALL, rng=np.random.default_rng(0), **arguments)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sensitivity": 0.0}, "sensitivity is a positive number; got 0.0"),
        ({"psf_mm": -1.0}, "psf_mm is a length in mm, or 0"),
        ({"scatter_fraction": 1.0}, "scatter_fraction is at least 0 and below 1"),
        ({"iterations": 0}, "iterations is a whole number"),
        ({"iterations": 2.5}, "iterations is a whole number"),
        ({"filter_mm": float("nan")}, "filter_mm"),
        ({"sensitivity": "high"}, "sensitivity is a positive number; got 'high'"),
        ({"angles": 6}, "10 subsets of 6 angles"),
    ],
)
def test_invalid_scanner_options_are_refused_with_a_reason(change, words):
    with pytest.raises(PETError, match=words):
        replace(TORSO, **change)


@pytest.mark.parametrize(
    "call",
    [
        lambda: Projector((8,), (1.0, 1.0)),
        lambda: Projector((8, 8), (1.0, 0.0)),
        lambda: Projector((8, 8), (1.0, 1.0), angles=0),
        lambda: Projector((8, 8), (1.0, 1.0), angles=4).subset(4, 5),
        lambda: Projector((8, 8), (1.0, 1.0), 4).forward(np.zeros((8, 9, 1))),
        lambda: Projector((8, 8), (1.0, 1.0), 4).adjoint(np.zeros((8, 8, 1))),
    ],
)
def test_a_projector_refuses_invalid_shapes_and_views(call):
    with pytest.raises(PETError, match="got"):
        call()


def test_scanners_are_equal_after_json():
    for scanner in SCANNERS.values():
        assert Scanner(**json.loads(json.dumps(asdict(scanner)))) == scanner


def test_pet_does_not_import_torch():
    code = "import sys, ppdm.simulation.pet; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
