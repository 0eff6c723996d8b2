"""MRI of phantoms: signal equations, tissue tables, bias and noise."""

from dataclasses import replace

import numpy as np
import pytest

from ppdm.simulation.mri import (
    RELAXATION,
    WATER_SIGNAL,
    InversionRecovery,
    MRIProtocol,
    SpinEcho,
    bias_field,
    draw_parameters,
    flair_protocol,
    nulling_time,
    rician,
    scan_mri,
    weighted,
)
from ppdm.simulation.phantom import TISSUES, Anatomy, Grid

GRID = Grid((16, 12, 8), (4.0, 4.0, 4.0))
QUIET = MRIProtocol(t1_jitter=0, t2_jitter=0, tissue_jitter=0, texture=0, bias=0, snr=1e6)


def _block(**shares: float) -> Anatomy:
    """Return an anatomy with the same fractions of these tissues in every voxel."""
    tissues = tuple(name for name in TISSUES if name in shares)
    values = np.array([shares[name] for name in tissues], np.float32)
    fractions = np.broadcast_to(values[:, None, None, None], (len(tissues), *GRID.shape)).copy()
    return Anatomy("head", GRID, tissues, fractions, np.ones(GRID.shape, np.float32))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


@pytest.mark.parametrize("tesla", RELAXATION)
def test_every_tissue_of_the_phantoms_has_parameters(tesla):
    assert set(RELAXATION[tesla]) == set(TISSUES)
    for name, tissue in RELAXATION[tesla].items():
        assert 0 < tissue.t2 <= tissue.t1, name
        assert 0 <= tissue.pd <= 1, name


def test_the_spin_echo_signal_matches_its_limits():
    # Full recovery and TE = 0 give the proton density. TR = T1 and TE = T2 give (1 − 1/e)/e of it.
    assert SpinEcho(1e7, 0).signal(np.float64(500), np.float64(70), 0.5) == pytest.approx(0.5 * WATER_SIGNAL)
    value = SpinEcho(500, 70).signal(np.float64(500), np.float64(70), 1.0)
    assert value == pytest.approx(WATER_SIGNAL * (1 - np.exp(-1)) * np.exp(-1))


def test_inversion_recovery_is_zero_at_ln2_of_t1_and_negative_before():
    t1, t2 = np.array([500.0, 2000.0]), np.array([70.0, 70.0])
    at_null = InversionRecovery(1e7, 500 * np.log(2), 0).signal(t1, t2, 1.0)
    assert at_null[0] == pytest.approx(0, abs=1e-6)
    assert at_null[1] < -100


def test_t1w_and_t2w_images_order_the_tissues_correctly(rng):
    """T1w: fat > white > grey > CSF. T2w: CSF > lesion > grey > white. Bone is dark on both."""
    order = {}
    for name in ("csf", "grey_matter", "white_matter", "lesion", "fat", "cortical_bone"):
        order[name] = {k: float(v.mean()) for k, v in scan_mri(_block(**{name: 1.0}), QUIET, rng).items()}
    t1w, t2w = ({name: images[k] for name, images in order.items()} for k in ("T1w", "T2w"))
    assert t1w["white_matter"] > t1w["grey_matter"] > t1w["csf"]
    assert t2w["csf"] > t2w["lesion"] > t2w["grey_matter"] > t2w["white_matter"]
    assert t1w["fat"] > t1w["white_matter"]
    assert max(t1w["cortical_bone"], t2w["cortical_bone"]) < 0.3 * t1w["white_matter"]


@pytest.mark.parametrize("tesla", RELAXATION)
def test_flair_nulls_fluid_and_shows_lesions_brightest(tesla, rng):
    protocol = replace(QUIET, field_strength=tesla, sequences=flair_protocol(tesla).sequences)
    seen = {
        name: float(scan_mri(_block(**{name: 1.0}), protocol, rng)["FLAIR"].mean())
        for name in ("csf", "grey_matter", "white_matter", "lesion")
    }
    assert seen["csf"] < 0.01 * seen["white_matter"]
    assert seen["white_matter"] < seen["grey_matter"] < seen["lesion"]


def test_the_nulling_time_is_ln2_of_t1_for_long_repetition():
    assert nulling_time(1000, 1e6) == pytest.approx(1000 * np.log(2))
    ti = nulling_time(2569, 9000)
    assert InversionRecovery(9000, ti, 100).signal(np.float64(2569), np.float64(329), 1.0) == pytest.approx(0, abs=1e-9)


def test_adding_flair_does_not_change_the_t1w_and_t2w_images():
    anatomy = _block(csf=0.3, grey_matter=0.7)
    pairs = (scan_mri(anatomy, protocol, np.random.default_rng(1)) for protocol in (MRIProtocol(), flair_protocol()))
    two, three = pairs
    assert [*three] == ["T1w", "T2w", "FLAIR"]
    for name, image in two.items():
        np.testing.assert_array_equal(image, three[name])


def test_a_lesion_resembles_grey_matter_on_t1w_but_not_on_t2w(rng):
    """Therefore no lookup table can map one contrast to the other."""
    lesion, grey = (scan_mri(_block(**{name: 1.0}), QUIET, rng) for name in ("lesion", "grey_matter"))
    assert lesion["T1w"].mean() == pytest.approx(grey["T1w"].mean(), rel=0.15)
    assert lesion["T2w"].mean() > 1.5 * grey["T2w"].mean()


def test_signals_mix_by_fraction():
    table, sequence = RELAXATION[1.5], SpinEcho(600, 10)
    pure = {name: float(weighted(_block(**{name: 1.0}), sequence, table).mean()) for name in ("csf", "fat")}
    mixed = weighted(_block(csf=0.25, fat=0.75), sequence, table)
    np.testing.assert_allclose(mixed, 0.25 * pure["csf"] + 0.75 * pure["fat"], rtol=1e-5)
    half_air = weighted(_block(air=0.5, fat=0.5), sequence, table)
    np.testing.assert_allclose(half_air, 0.5 * pure["fat"], rtol=1e-5)


def test_texture_scales_t1_only_where_it_is_set():
    table, sequence, texture = RELAXATION[1.5], SpinEcho(600, 10), np.ones(GRID.shape)
    texture[0] = 1.5
    image = weighted(_block(grey_matter=1.0), sequence, table, texture)
    expected = sequence.signal(np.float64(833 * 1.5), np.float64(83), 0.86)
    np.testing.assert_allclose(image[0], expected, rtol=1e-5)
    np.testing.assert_allclose(image[1:], sequence.signal(np.float64(833), np.float64(83), 0.86), rtol=1e-5)


def test_a_tissue_without_parameters_is_named_in_the_error():
    with pytest.raises(ValueError, match="no MRI parameters for fat"):
        weighted(_block(fat=1.0), SpinEcho(600, 10), {"air": RELAXATION[1.5]["air"]})


def test_noise_is_rician(rng):
    """The background is Rayleigh noise with mean σ√(π/2); a bright signal S has mean √(S² + σ²) and deviation σ."""
    sigma = 20.0
    dark = rician(np.zeros((60, 60, 60), np.float32), sigma, rng)
    assert dark.min() >= 0
    assert dark.mean() == pytest.approx(sigma * np.sqrt(np.pi / 2), rel=0.01)
    bright = rician(np.full((60, 60, 60), 1000, np.float32), sigma, rng)
    assert bright.mean() == pytest.approx(np.hypot(1000, sigma), rel=1e-3)
    assert bright.std() == pytest.approx(sigma, rel=0.02)
    assert bright.dtype == np.float32


def test_zero_noise_changes_nothing_and_negative_noise_is_refused(rng):
    image = rng.random((3, 4, 5), dtype=np.float32)
    np.testing.assert_allclose(rician(image, 0.0, rng), image)
    with pytest.raises(ValueError, match="must be a number from 0 on, got -1"):
        rician(image, -1.0, rng)


def test_the_snr_is_defined_in_white_matter(rng):
    images = scan_mri(_block(white_matter=1.0), replace(QUIET, snr=25.0), rng)
    for image in images.values():
        assert image.mean() / image.std() == pytest.approx(25, rel=0.1)


def test_bias_stays_within_its_amplitude_and_is_the_same_on_every_grid():
    coarse = bias_field(Grid((5, 5, 5), (30, 30, 30)), 0.1, np.random.default_rng(1))
    fine = bias_field(Grid((25, 25, 25), (6, 6, 6)), 0.1, np.random.default_rng(1))
    np.testing.assert_allclose(fine[2::5, 2::5, 2::5], coarse, atol=1e-5)
    assert 0.9 <= fine.min() < 0.97
    assert 1.03 < fine.max() <= 1.1


def test_relaxation_times_vary_by_the_requested_jitters():
    """T1 of one tissue varies between subjects by both jitters, the ratio of two tissues only by the tissue jitter."""
    protocol = MRIProtocol(t1_jitter=0.10, tissue_jitter=0.05)
    drawn = [draw_parameters(protocol, np.random.default_rng(seed)) for seed in range(600)]
    grey, white = (np.log([p[name].t1 for p in drawn]) for name in ("grey_matter", "white_matter"))
    assert grey.std() == pytest.approx(np.hypot(0.10, 0.05), rel=0.1)
    assert (grey - white).std() == pytest.approx(0.05 * np.sqrt(2), rel=0.1)
    assert drawn[0]["grey_matter"].pd == RELAXATION[1.5]["grey_matter"].pd


def test_images_repeat_with_the_seed_and_differ_between_seeds(rng):
    anatomy = _block(grey_matter=0.5, white_matter=0.5)
    first, again, other = (scan_mri(anatomy, MRIProtocol(), np.random.default_rng(seed)) for seed in (1, 1, 2))
    for name in first:
        np.testing.assert_array_equal(first[name], again[name])
        assert not np.array_equal(first[name], other[name])
        assert first[name].dtype == np.float32
        assert first[name].min() >= 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"field_strength": 7.0}, "known at 1.5 and 3 T, got 7.0 T"),
        ({"sequences": {}}, "at least one sequence"),
        ({"bias": 1.0}, "bias from 0 to below 1"),
        ({"t1_jitter": -0.1}, "must be numbers from 0 on"),
        ({"texture": float("nan")}, "must be numbers from 0 on"),
        ({"tissue_jitter": float("inf")}, "must be numbers from 0 on"),
        ({"texture_mm": float("inf")}, "must be positive"),
        ({"snr": 0.0}, "must be positive"),
    ],
)
def test_invalid_protocols_are_refused(change, words):
    with pytest.raises(ValueError, match=words):
        MRIProtocol(**change)


@pytest.mark.parametrize("times", [(100, 100), (100, -1), (float("inf"), 10)])
def test_sequences_refuse_impossible_times(times):
    with pytest.raises(ValueError, match="0 <= TE, TI < TR"):
        SpinEcho(*times)
    with pytest.raises(ValueError, match="0 <= TE, TI < TR"):
        InversionRecovery(times[0], times[1], 0)
