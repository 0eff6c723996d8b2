"""Quality metrics against worked examples, closed forms, scikit-image, SciPy and NumPy; invalid input is refused."""

from functools import partial
from math import inf, log10, nan, sqrt

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage, signal, stats

from ppdm import metrics
from ppdm.metrics import (
    PRESETS,
    MetricError,
    UptakeBias,
    border_ratio,
    connected_regions,
    default_preset,
    deviation_rank,
    mae,
    nmae,
    nrmse,
    pair,
    psnr,
    seam_index,
    sharpness,
    similarity,
    ssim,
    suv_bias,
)
from ppdm.metrics.challenges import percentile
from ppdm.metrics.texture import error_spectrum

SIMPLE = {
    "psnr": lambda p, g, m=None: psnr(p, g, 2.0, m),
    "ssim": lambda p, g, m=None: ssim(p, g, 2.0, m),
    "mae": mae,
    "nmae": nmae,
    "nrmse": nrmse,
    "sharpness": sharpness,
}
EACH = pytest.mark.parametrize("metric", SIMPLE.values(), ids=SIMPLE)
NO_SEAM = 0.4  # dB: images without seams can come near it if noise hides target edges on cell borders
SEAMS = 1.5  # dB: the threshold of the claim about grid artefacts
WANG = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}


def skimage():
    """Return the independent reference, or skip: it does not install with our oldest supported dependencies."""
    return pytest.importorskip("skimage.metrics")


def volumes(*shape, seed=0, scale=1.0, offset=0.0):
    """Return a noisy prediction and its smooth target."""
    rng = np.random.default_rng(seed)
    target = ndimage.gaussian_filter(rng.random(shape), [0] * (len(shape) - 3) + [1.5] * 3)
    prediction = target + 0.03 * rng.standard_normal(shape)
    return tuple(torch.from_numpy(scale * x + offset) for x in (prediction, target))


def ball(*shape):
    """Return an ellipsoidal mask that excludes the corners."""
    axes = np.ix_(*(np.linspace(-1, 1, n) for n in shape))
    return torch.from_numpy(sum(axis**2 for axis in axes) < 0.8)


# Worked examples


def test_psnr_of_one_wrong_voxel():
    # One of eight voxels is wrong by 2: MSE = 4/8, so 10·log10(10²/.5) = 10·log10(200) = 23.0103 dB.
    # Inside a mask of four voxels that contains it: MSE = 1, so 20 dB.
    target, prediction, mask = torch.zeros(2, 2, 2), torch.zeros(2, 2, 2), torch.zeros(2, 2, 2)
    prediction[0, 1, 0], mask[0] = 2.0, 1.0
    assert psnr(prediction, target, 10.0).item() == pytest.approx(10 * log10(200), abs=1e-12)
    assert psnr(prediction, target, 10, mask).item() == pytest.approx(20, abs=1e-12)
    assert psnr(target, target, 10.0).item() == inf


def test_relative_errors_of_a_ramp():
    # Target 1 to 8, every voxel wrong by 1: Σ|e| = 8, Σ|g| = 36, Σg² = 204. In the half with 5 to 8: 4, 26, 174.
    target = torch.arange(1.0, 9.0).reshape(2, 2, 2)
    prediction, mask = target + torch.tensor([1.0, -1.0]), target > 4
    assert mae(prediction, target).item() == pytest.approx(1)
    assert nmae(prediction, target).item() == pytest.approx(8 / 36)
    assert nmae(prediction, target, mask).item() == pytest.approx(4 / 26)
    assert nrmse(prediction, target).item() == pytest.approx(sqrt(8 / 204))
    assert nrmse(prediction, target, mask).item() == pytest.approx(sqrt(4 / 174))
    assert nmae(0 * target, target) == nrmse(0 * target, target) == 1


def test_ssim_of_constant_volumes_compares_only_the_means():
    # The variances are 0, so SSIM is (2·.5·.25 + C1)/(.5² + .25² + C1) with C1 = (.01·1)² = 1e-4.
    p, g = torch.full((11, 11, 11), 0.5), torch.full((11, 11, 11), 0.25)
    assert ssim(p, g, 1.0).item() == pytest.approx((0.25 + 1e-4) / (0.3125 + 1e-4), abs=1e-6)


def test_sharpness_of_a_step():
    # A step of 3 along W over 4 lines: Σ|∇g|² = 4·9. Blurred into two steps of 1.5: 4·2·2.25, half of it.
    line = torch.tensor([0.0, 0.0, 3.0, 3.0]).expand(2, 2, 4)
    soft = torch.tensor([0.0, 1.5, 3.0, 3.0]).expand(2, 2, 4)
    assert sharpness(soft, line).item() == pytest.approx(0.5)
    # A mask of the first two columns contains only the first of the soft steps; the sharp line is constant there.
    left = torch.tensor([True, True, False, False]).expand(2, 2, 4)
    with pytest.raises(MetricError, match="constant"):
        sharpness(soft, line, left)
    assert sharpness(line, soft, left).item() == 0
    assert sharpness(2 * soft, soft, left).item() == pytest.approx(4)


def test_suv_bias_of_two_regions():
    # Region 1: target 2, 4 (max 4, mean 3), prediction 1, 5 (max 5, mean 3): +25 %, 0 %.
    # Region 7: target 10, prediction 9: -10 % for both.
    target, prediction = torch.tensor([[[2.0, 4.0, 10.0, 99.0]]]), torch.tensor([[[1.0, 5.0, 9.0, 0.0]]])
    for labels in (torch.tensor([[[1, 1, 7, 0]]]), torch.tensor([[[1.0, 1.0, 7.0, 0.0]]])):
        bias = suv_bias(prediction, target, labels)
        assert list(bias) == [1, 7]
        assert bias[1] == UptakeBias(pytest.approx(25), pytest.approx(0))
        assert bias[7] == UptakeBias(pytest.approx(-10), pytest.approx(-10))


# Independent references


@pytest.mark.parametrize("shape", [(24, 24, 24), (11, 19, 30)], ids=str)
@pytest.mark.parametrize(
    ("scale", "offset", "span"), [(1, 0, 1.0), (1, 0, 0.2), (2000, -1000, 4024.0), (1e-3, 0, 1e-3)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ssim_and_psnr_equal_scikit_image(shape, scale, offset, span, dtype):
    p, g = (x.to(dtype) for x in volumes(*shape, scale=scale, offset=offset))
    reference = skimage().structural_similarity(g.double().numpy(), p.double().numpy(), data_range=span, **WANG)
    assert 0.1 < reference < 0.999
    assert ssim(p, g, span).item() == pytest.approx(reference, abs=1e-6 if dtype == torch.float32 else 1e-12)
    reference = skimage().peak_signal_noise_ratio(g.double().numpy(), p.double().numpy(), data_range=span)
    assert psnr(p, g, span).item() == pytest.approx(reference, abs=1e-6)


def test_masked_ssim_is_the_mean_of_the_ssim_map_inside_the_mask():
    p, g = volumes(20, 24, 28)
    mask = ball(20, 24, 28)
    _, map_ = skimage().structural_similarity(g.numpy(), p.numpy(), data_range=1.0, full=True, **WANG)
    valid = (slice(5, -5),) * 3
    assert ssim(p, g, 1.0, mask).item() == pytest.approx(map_[valid][mask[valid].numpy()].mean(), abs=1e-10)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@EACH
def test_half_precision_input_gives_the_result_of_the_same_values_in_float32(dtype, metric):
    p, g = (x.to(dtype) for x in volumes(14, 14, 14))
    torch.testing.assert_close(metric(p, g), metric(p.float(), g.float()), rtol=1e-12, atol=0)


def test_ssim_in_float32_stays_accurate_with_a_large_offset():
    p, g = (x.float() for x in volumes(16, 16, 16, offset=4096))
    assert ssim(p, g, 1.0).item() == pytest.approx(ssim(p.double(), g.double(), 1.0).item(), abs=1e-5)


def test_integers_are_compared_without_overflow():
    g = torch.full((2, 2, 2), 250, dtype=torch.uint8)
    assert mae(torch.full_like(g, 5), g).item() == 245


@EACH
def test_a_batch_gives_the_values_of_its_single_samples(metric):
    p, g = volumes(2, 2, 12, 13, 14)
    mask = ball(12, 13, 14).expand(2, 1, -1, -1, -1)
    for inside in (None, mask, mask.expand_as(g)):
        batch = metric(p, g, inside)
        assert batch.shape == (2,)
        assert batch.dtype == torch.float64
        alone = [metric(p[n : n + 1], g[n : n + 1], None if inside is None else inside[n : n + 1]) for n in range(2)]
        assert torch.equal(batch, torch.cat(alone))
    assert torch.equal(metric(p[:1, :1], g[:1, :1])[0], metric(p[0, 0], g[0, 0]))


@EACH
def test_computation_in_slabs_does_not_change_a_metric(metric, monkeypatch):
    p, g = volumes(1, 2, 13, 14, 15)
    mask = ball(13, 14, 15)[None, None]
    whole = metric(p, g, mask)
    for module in (pair, similarity):
        monkeypatch.setattr(module, "SLAB", 900)
    torch.testing.assert_close(metric(p, g, mask), whole, rtol=1e-10, atol=0)


def test_the_error_spectrum_peaks_at_the_frequency_of_a_grid():
    d = torch.arange(34.0)
    target = torch.rand(34, 8, 8, generator=torch.Generator().manual_seed(0))
    power = error_spectrum(target + torch.cos(torch.pi * d / 2)[:, None, None], target, 0)  # period 4
    assert power.shape == (17,)  # 34 voxels are cropped to 32
    assert power.argmax() == 8  # 8 / 32 cycles per voxel
    # A Hann window of n voxels sums to n/2, so a cosine of amplitude 1 has the power |n/4|² at its frequency.
    torch.testing.assert_close(power[8], torch.tensor((32 / 4) ** 2, dtype=power.dtype), rtol=1e-4, atol=0)


def test_slabs_and_batches_do_not_change_the_seam_index(monkeypatch):
    p, g = (x.float() for x in volumes(2, 2, 17, 20, 24))
    p = p + 0.05 * torch.arange(24) % 0.1
    whole = seam_index(p, g, (2, 3, 4))
    assert (whole > 1).all()
    monkeypatch.setattr(pair, "SLAB", 900)
    torch.testing.assert_close(seam_index(p, g, (2, 3, 4)), whole, rtol=1e-5, atol=0)
    torch.testing.assert_close(seam_index(p[1:], g[1:], (2, 3, 4))[0], whole[1], rtol=1e-5, atol=0)
    cropped = [x[:, :, :16, :18] for x in (p, g)]
    assert seam_index(*cropped, (2, 3, 4)) == pytest.approx(whole, rel=0.2)


@EACH
def test_a_metric_keeps_no_autograd_graph(metric):
    p, g = volumes(12, 12, 12)
    assert not metric(p.requires_grad_(), g).requires_grad


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 99), scale=st.floats(0.1, 100), noise=st.floats(0, 3))
def test_ssim_is_symmetric_bounded_and_independent_of_units(seed, scale, noise):
    rng = np.random.default_rng(seed)
    g = torch.from_numpy(rng.random((12, 12, 12)))
    p = g + noise * torch.from_numpy(rng.standard_normal((12, 12, 12)))
    value = ssim(p, g, 1.0).item()
    assert -1 <= value <= 1 + 1e-12
    assert ssim(g, p, 1.0).item() == pytest.approx(value, abs=1e-10)
    assert ssim(scale * p, scale * g, scale).item() == pytest.approx(value, abs=1e-10)


# The seam index


def grid(n, amplitude, period):
    """Return a cosine along D; its Fourier coefficient is half the amplitude, or the full amplitude for period 2."""
    return (amplitude * torch.cos(2 * torch.pi * torch.arange(n) / period))[:, None, None]


@pytest.mark.parametrize(("r", "coefficient"), [(2, 1.0), (3, 0.5), (4, 0.5)])
@pytest.mark.parametrize("amplitude", [0.5, 2.0])
def test_a_known_grid_in_white_noise_has_the_expected_seam_index(r, coefficient, amplitude):
    n = 48
    noise = torch.randn(n, 40, 40, generator=torch.Generator().manual_seed(1))
    quotient = 1 + (coefficient * amplitude) ** 2 * n / 1.5  # of the first harmonic; it is 1 for the others
    error = noise + grid(n, amplitude, r)
    for factor, terms in (((r, 1, 1), r // 2), (r, 3 * (r // 2))):
        expected = 10 * log10((quotient + terms - 1) / terms)
        assert seam_index(error, torch.zeros_like(error), factor).item() == pytest.approx(expected, abs=0.35)


@pytest.mark.parametrize("factor", [2, 4, 8, (1, 2, 4)], ids=str)
@pytest.mark.parametrize("shape", [(32, 48, 40), (35, 41, 50)], ids=str)
def test_white_noise_has_a_seam_index_near_zero(factor, shape):
    noise = torch.randn(8, 1, *shape, generator=torch.Generator().manual_seed(2))
    index = seam_index(noise, torch.zeros_like(noise), factor)
    assert index.shape == (8,)
    assert index.min() >= 0
    assert index.max() < 20 / sqrt(min(shape) ** 2)


@pytest.mark.parametrize("factor", [2, 4, 8])
@pytest.mark.parametrize("sigma", [0.7, 1.0, 2.0, 4.0])
def test_smooth_errors_have_a_low_seam_index(factor, sigma):
    rng = np.random.default_rng(3)
    error = torch.from_numpy(ndimage.gaussian_filter(rng.standard_normal((64, 48, 64)), sigma) + 0.3)
    assert 0 <= seam_index(error, torch.zeros_like(error), factor).item() < 1.5


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_ramps_outlines_and_zero_error_have_a_low_seam_index(factor):
    ramp = torch.linspace(0, 1, 64)
    error = 5 + ramp[:, None, None] + ramp[None, :, None] ** 2 + ramp**3
    zero = torch.zeros_like(error)
    assert 0 <= seam_index(error, zero, factor).item() < 0.3
    assert 0 <= seam_index(ball(64, 64, 64).float(), zero, factor).item() < 0.5
    assert seam_index(error, error, factor).item() == 0


def test_the_seam_index_grows_with_the_amplitude_of_a_grid_inside_the_body():
    rng = torch.Generator().manual_seed(4)
    body, cell = ball(64, 64, 64), torch.randn(4, 4, 4, generator=rng).repeat(16, 16, 16)
    noise = 0.1 * torch.randn(64, 64, 64, generator=rng)
    index = [seam_index(body * (noise + a * cell), torch.zeros(64, 64, 64), 4).item() for a in (0, 0.03, 0.1, 0.3)]
    assert index[0] < 0.3
    assert index[1] > 1
    assert index == sorted(index)


def test_the_seam_index_ignores_a_grid_of_another_period():
    error = torch.randn(60, 64, 64, generator=torch.Generator().manual_seed(5)) + grid(60, 2.0, 3)
    zero = torch.zeros_like(error)
    assert seam_index(error, zero, (3, 1, 1)) > 10
    assert seam_index(error, zero, (2, 1, 1)) < 0.4


@pytest.mark.parametrize(("factor", "words"), [(1, "no cells"), (8, "at least 4 cells"), (0, "positive integer")])
def test_the_seam_index_refuses_unsuitable_factors(factor, words):
    with pytest.raises(ValueError, match=words):
        seam_index(torch.zeros(24, 40, 40), torch.zeros(24, 40, 40), factor)


# The border ratio


def brain(seed=0, noise=0.05):
    """Return a smooth body (36, 40, 44) with a brighter insert and noise; its edges do not follow the block grid."""
    rng = np.random.default_rng(seed)
    place = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in (36, 40, 44)), indexing="ij"))
    body = (np.square(place).sum(axis=0) < 0.8) + 0.7 * (np.square(place - 0.23).sum(axis=0) < 0.1)
    smooth = ndimage.gaussian_filter(body.astype(float), 1.2) + noise * rng.standard_normal(body.shape)
    return torch.from_numpy(smooth)


def seams(shape, r, amplitude, seed=0):
    """Return jumps of the given amplitude and random sign at every cell border along D."""
    sign = np.random.default_rng(seed).choice([-1.0, 1.0], size=(-(-shape[0] // r), *shape[1:]))
    jumps = amplitude * np.cumsum(sign, axis=0)
    return torch.from_numpy(np.repeat(jumps, r, axis=0)[: shape[0]])


def border_loop(prediction, target, r, mask):
    """Compute the border ratio by its definition, one voxel at a time."""
    levels = []
    for axis, k in enumerate(r):
        if k > 1:
            ratio = []
            for x in (prediction.numpy(), target.numpy()):
                found = {True: [], False: []}
                for place in np.ndindex(*x.shape):
                    after = tuple(i + (a == axis) for a, i in enumerate(place))
                    if after[axis] < x.shape[axis] and mask[place] and mask[after]:
                        found[after[axis] % k == 0].append((x[after] - x[place]) ** 2)
                ratio.append(np.mean(found[True]) / np.mean(found[False]))
            levels.append(10 * log10(ratio[0] / ratio[1]))
    return np.mean(levels)


@pytest.mark.parametrize("r", [(2, 2, 2), (3, 4, 2), (1, 4, 1)], ids=str)
def test_the_border_ratio_equals_a_loop_with_a_mask_and_incomplete_cells(r):
    p, g = volumes(9, 10, 11)
    mask = torch.rand(9, 10, 11, generator=torch.Generator().manual_seed(3)) < 0.8
    assert border_ratio(p, g, r, mask).item() == pytest.approx(border_loop(p, g, r, mask), abs=1e-9)
    everywhere = torch.ones_like(mask)
    assert border_ratio(p, g, r).item() == pytest.approx(border_loop(p, g, r, everywhere), abs=1e-9)


@pytest.mark.parametrize("r", [2, 4])
@pytest.mark.parametrize("share", [0.35, 0.5, 0.7, 1.0, 2.0])
def test_the_border_ratio_detects_seams_of_random_sign_that_the_seam_index_misses(r, share):
    """A share is the seam amplitude over the root mean square of border differences.

    From 0.35, the ratio exceeds NO_SEAM; from 0.7, it rises by more than SEAMS.
    """
    clean, target = brain(1), brain(2)
    squares = clean.diff(dim=0).square()[r - 1 :: r].mean().item()
    seamed = clean + seams(clean.shape, r, share * sqrt(squares))
    without = border_ratio(clean, target, (r, 1, 1)).item()
    found = border_ratio(seamed, target, (r, 1, 1)).item()
    assert found - without == pytest.approx(10 * log10(1 + share**2), abs=0.1)
    assert (found - without > SEAMS) == (share >= 0.7)
    assert found > NO_SEAM > abs(without)
    assert seam_index(seamed, clean, (r, 1, 1)) < 1.5


@pytest.mark.parametrize("r", [2, 3, 4], ids=str)
@pytest.mark.parametrize("sigma", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("noise", [0.0, 0.03, 0.2])
def test_blurred_and_noisy_predictions_without_seams_have_a_border_ratio_near_0_db(r, sigma, noise):
    target = brain(1)
    blurred = torch.from_numpy(ndimage.gaussian_filter(target.numpy(), sigma))
    prediction = blurred + noise * torch.randn(target.shape, generator=torch.Generator().manual_seed(6))
    assert abs(border_ratio(prediction, target, r).item()) < NO_SEAM


def test_the_border_ratio_ignores_axes_without_borders_in_the_mask():
    p, g = volumes(8, 8, 8)
    mask = torch.zeros(8, 8, 8)
    mask[:, :2, 3] = 1  # no cell border along H, no neighbour along W
    assert border_ratio(p, g, 2, mask).item() == border_ratio(p, g, (2, 1, 1), mask).item()


def test_the_border_ratio_does_not_depend_on_units_and_is_0_for_the_target():
    target, clean = brain(1), brain(2)
    seamed = clean + seams(clean.shape, 2, 0.1)
    value = border_ratio(seamed, target, 2).item()
    assert value > 0.8
    assert border_ratio(30 * seamed - 700, 5 * target + 4, 2).item() == pytest.approx(value, abs=1e-6)
    assert border_ratio(target, target, 2).item() == 0


def test_slabs_and_batches_do_not_change_the_border_ratio(monkeypatch):
    p, g = volumes(2, 2, 17, 20, 24)
    mask = torch.rand(2, 1, 17, 20, 24, generator=torch.Generator().manual_seed(3)) < 0.8
    whole = border_ratio(p, g, (2, 3, 4), mask)
    monkeypatch.setattr(pair, "SLAB", 900)
    torch.testing.assert_close(border_ratio(p, g, (2, 3, 4), mask), whole)
    torch.testing.assert_close(border_ratio(p[1:], g[1:], (2, 3, 4), mask[1:])[0], whole[1])


@pytest.mark.parametrize(
    ("prediction", "factor", "words"),
    [
        (torch.rand(8, 8, 8), 1, "no cells"),
        (torch.rand(8, 8, 8), 8, "the prediction .* has none"),
        (torch.rand(8, 8, 8), 0, "positive integer"),
        (torch.ones(8, 8, 8), 2, "neighbouring voxels that differ"),
        (torch.rand(4, 4, 4).repeat_interleave(2, 0), (2, 1, 1), "inside cells"),
    ],
)
def test_the_border_ratio_refuses_unsuitable_input(prediction, factor, words):
    with pytest.raises(ValueError, match=words):
        border_ratio(prediction, torch.rand(prediction.shape), factor)


# Regions


def test_connected_regions_join_at_corners_and_are_numbered_in_order():
    mask = torch.zeros(5, 5, 5)
    mask[0, 0, 0], mask[1, 1, 1], mask[3, 3, 0], mask[3, 3, 3] = 1, 2, 1, 1
    labels = connected_regions(mask)
    assert labels.dtype is torch.int64
    assert [int(labels[place]) for place in ((0, 0, 0), (1, 1, 1), (3, 3, 0), (3, 3, 3))] == [1, 1, 2, 3]
    assert torch.equal(labels > 0, mask > 0)


def test_a_long_winding_region_gets_one_label():
    mask = torch.zeros(9, 9, 40)
    mask[::2, 0], mask[1::4, 0, -1], mask[3::4, 0, 0] = 1, 1, 1
    assert int(connected_regions(mask).max()) == 1
    assert int(connected_regions(torch.zeros(3, 3, 3)).max()) == 0


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (torch.zeros(2, 2, 2), "no region"),
        (torch.full((2, 2, 2), 0.5), "whole numbers"),
        (torch.tensor([-1, 1]).expand(2, 2, 2), "whole numbers"),
        (torch.full((2, 2, 2), nan), "whole numbers"),
        (torch.ones(2, 2, 3), "one shape"),
        (torch.ones(2, 2, 2), "Region 1 has no positive uptake"),
    ],
)
def test_invalid_region_labels_are_refused(labels, words):
    with pytest.raises(MetricError, match=words):
        suv_bias(torch.ones(2, 2, 2), torch.zeros(2, 2, 2), labels)


# Refusals


def broken(value):
    x = torch.zeros(12, 12, 12)
    x[3, 4, 5] = value
    return x


ZEROS = torch.zeros(12, 12, 12)


@EACH
@pytest.mark.parametrize(
    ("prediction", "target", "mask", "words"),
    [
        (ZEROS, torch.zeros(12, 12, 13), None, r"\(12, 12, 12\) and \(12, 12, 13\)"),
        (torch.zeros(1, 12, 12, 12), torch.zeros(1, 12, 12, 12), None, r"\(D, H, W\)"),
        (torch.zeros(0, 1, 2, 2, 2), torch.zeros(0, 1, 2, 2, 2), None, "two volumes"),
        (broken(nan), ZEROS, None, "prediction has 1 of 1728 voxels"),
        (ZEROS, broken(-inf), None, "target has 1 of 1728 voxels"),
        (ZEROS.numpy(), ZEROS, None, "torch.from_numpy"),
        (ZEROS > 0, ZEROS, None, "real numbers"),
        (ZEROS, ZEROS.to("meta"), None, "one device"),
        (ZEROS, ZEROS, ZEROS, "mask has no voxel"),
        (ZEROS, ZEROS, torch.ones(12, 12), "mask must have the shape"),
        (ZEROS, ZEROS, ZEROS.numpy(), "mask must be a torch tensor"),
    ],
)
def test_volumes_that_cannot_be_compared_are_refused(metric, prediction, target, mask, words):
    with pytest.raises(MetricError, match=words):
        metric(prediction, target, mask)


def test_the_error_names_the_sample_with_an_empty_mask():
    x, mask = torch.zeros(2, 1, 3, 3, 3), torch.ones(2, 1, 3, 3, 3)
    mask[1] = 0
    with pytest.raises(MetricError, match="sample 1"):
        mae(x, x, mask)


@pytest.mark.parametrize("span", [0, -1.0, nan, inf, True, None, "1"])
def test_an_invalid_data_range_is_refused(span):
    for metric in (psnr, ssim):
        with pytest.raises(MetricError, match="data_range must be a positive number"):
            metric(ZEROS, ZEROS, span)
    with pytest.raises(MetricError, match="data_range"):
        default_preset(span)


@pytest.mark.parametrize("options", [{"window": 10}, {"window": 1}, {"window": 7.0}, {"sigma": 0.0}, {"k1": 0.0}])
def test_ssim_refuses_options_out_of_range(options):
    with pytest.raises(MetricError, match="SSIM's"):
        ssim(ZEROS, ZEROS, 1.0, **options)


def test_ssim_refuses_volumes_and_masks_where_its_window_does_not_fit():
    with pytest.raises(MetricError, match=r"11×11×11 voxels does not fit into \(12, 10, 12\)"):
        ssim(ZEROS[:, :10], ZEROS[:, :10], 1.0)
    border = torch.zeros(12, 12, 12)
    border[:5] = 1
    with pytest.raises(MetricError, match="within 5 voxels"):
        ssim(ZEROS, ZEROS, 1.0, border)


def test_metrics_that_are_undefined_for_a_target_of_zeros_are_refused():
    for metric in (nmae, nrmse):
        with pytest.raises(MetricError, match="0 throughout"):
            metric(ZEROS + 1, ZEROS)
    with pytest.raises(MetricError, match="constant"):
        sharpness(ZEROS, ZEROS)


# Deviation and error


def test_deviation_rank_equals_the_rank_correlation_of_scipy():
    p, g = volumes(9, 8, 7)
    deviation = (p - g).abs().round(decimals=1) + volumes(9, 8, 7)[0].abs()  # with ties
    mask = ball(9, 8, 7)
    for inside in (None, mask):
        where = ... if inside is None else mask
        wanted = stats.spearmanr(deviation[where].flatten(), (p - g).abs()[where].flatten()).statistic
        found = deviation_rank(deviation, p, g, None if inside is None else inside.float())
        assert found.item() == pytest.approx(wanted, abs=1e-12)
        assert 0.05 < wanted < 0.95


def test_deviation_rank_is_1_or_minus_1_for_monotonic_relations():
    p, g = volumes(6, 6, 6)
    error = (p - g).abs()
    assert deviation_rank(error**3, p, g) == pytest.approx(1)
    assert deviation_rank(1 / (1 + error), p, g) == pytest.approx(-1)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda s, p, g: (torch.ones_like(s), p, g), "the deviation or the error is the same at every voxel"),
        (lambda s, p, g: (s, g, g), "the deviation or the error is the same at every voxel"),
        (lambda s, p, g: (s[1:], p, g), "deviation_rank takes one subject"),
        (lambda s, p, g: (s * nan, p, g), "NaN or infinite"),
        (lambda s, p, g: (s, p, g, torch.zeros_like(g)), "mask has no voxel above 0"),
    ],
)
def test_deviation_rank_refuses_invalid_input(change, sentence):
    p, g = volumes(6, 6, 6)
    with pytest.raises(MetricError, match=sentence):
        deviation_rank(*change((p - g).abs(), p, g))


# Presets


def test_public_names_exist_and_presets_have_a_name_and_a_source():
    assert set(metrics.__all__) <= set(dir(metrics))
    assert all(name == preset.name and preset.source for name, preset in PRESETS.items())


def test_synthrad_scores_of_constant_volumes():
    # The target is 0 HU and the prediction 100 HU: MAE 100, PSNR 20·log10(4024/100). Both are raised by 1024 and have
    # no variance, so SSIM compares the means 1024 and 1124 with C1 = (.01·4024)². One window fits into 7³ voxels.
    p, g = torch.full((7, 7, 7), 100.0), torch.zeros(7, 7, 7)
    c1 = 40.24**2
    scores = PRESETS["synthrad2023"](p, g)
    assert scores["mae"] == 100
    assert scores["psnr"] == pytest.approx(20 * log10(40.24))
    assert scores["ssim"] == pytest.approx((2 * 1024 * 1124 + c1) / (1024**2 + 1124**2 + c1), abs=1e-6)
    # PSNR and SSIM clip at 3000 HU; MAE does not.
    metal = PRESETS["synthrad2023"](g + 5000, g + 4000)
    assert metal == {"mae": 1000, "psnr": inf, "ssim": pytest.approx(1)}


def test_synthrad_in_a_mask_follows_the_published_steps():
    p, g = volumes(18, 20, 22, scale=3000, offset=-1500)
    mask = ball(18, 20, 22)
    inside = mask.numpy()
    clipped = [np.where(inside, np.clip(x.numpy(), -1024, 3000), -1024) + 1024 for x in (p, g)]
    _, map_ = skimage().structural_similarity(*clipped, data_range=4024, full=True)
    core = (slice(3, -3),) * 3
    assert PRESETS["synthrad2023"](p, g, mask.float()) == {
        "mae": pytest.approx((p - g).abs()[mask].mean().item()),
        "psnr": pytest.approx(
            skimage().peak_signal_noise_ratio(clipped[1][inside], clipped[0][inside], data_range=4024)
        ),
        "ssim": pytest.approx(map_[core][inside[core]].mean(), abs=1e-9),
    }


def ms_ssim_reference(p, g, inside):
    """Compute MS-SSIM by SynthRAD2025's steps in SciPy; p and g are clipped and raised, with air outside the mask."""
    weights = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
    pads = [((97 - s) // 2, 97 - s - (97 - s) // 2) if s < 97 else (0, 0) for s in p.shape]
    p, g, inside = (np.pad(x, pads, mode="edge") for x in (p, g, inside))
    box = partial(ndimage.uniform_filter, size=7)
    c1, c2, result = 40.24**2, 120.72**2, 1.0
    for weight in weights:
        mean_p, mean_g = box(p), box(g)
        unbiased = 343 / 342
        var_p, var_g, both = (
            (box(a * b) - m * n) * unbiased
            for a, b, m, n in ((p, p, mean_p, mean_p), (g, g, mean_g, mean_g), (p, g, mean_p, mean_g))
        )
        root = np.sqrt(np.clip(var_p, 0, None) * np.clip(var_g, 0, None))
        factors = (
            (2 * mean_p * mean_g + c1) / (mean_p**2 + mean_g**2 + c1),
            (2 * root + c2) / (var_p + var_g + c2),
            (both + c2 / 2) / (root + c2 / 2),
        )
        map_ = np.prod([np.clip(factor, 0, None) ** weight for factor in factors], axis=0)
        core = (slice(3, -3),) * 3
        result *= np.clip(map_[core][inside[core]].mean(), 0, 1)
        eighth = np.full((2, 2, 2), 1 / 8)
        p, g = (signal.fftconvolve(x, eighth, mode="same")[::2, ::2, ::2] for x in (p, g))
        inside = inside[::2, ::2, ::2]
    return result


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(20, 33, 18), (30, 101, 24)])
def test_synthrad2025_uses_ms_ssim_and_shares_mae_and_psnr_with_synthrad2023(shape):
    p, g = volumes(*shape, scale=3000, offset=-1500)
    p = 0.7 * g + 0.3 * p
    mask = ball(*shape)
    inside = mask.numpy()
    clipped = [np.where(inside, np.clip(x.double().numpy(), -1024, 3000), -1024) + 1024 for x in (p, g)]
    found, before = (PRESETS[name](p, g, mask.float()) for name in ("synthrad2025", "synthrad2023"))
    assert found["ms_ssim"] == pytest.approx(ms_ssim_reference(*clipped, inside), abs=1e-5)
    assert {name: found[name] for name in ("mae", "psnr")} == {name: before[name] for name in ("mae", "psnr")}
    # Without a mask, every voxel counts; equal volumes score 1.
    whole = [np.clip(x.double().numpy(), -1024, 3000) + 1024 for x in (p, g)]
    found = PRESETS["synthrad2025"](p, g)["ms_ssim"]
    assert found == pytest.approx(ms_ssim_reference(*whole, np.ones(shape, dtype=bool)), abs=1e-5)
    assert PRESETS["synthrad2025"](g, g)["ms_ssim"] == pytest.approx(1, abs=1e-6)


def brasyn_reference(p, g, inside):
    """Compute the mean SSIM inside the mask in SciPy, from an SSIM map with mirrored borders."""
    scaled = []
    for x in (p, g):
        low, high = np.percentile(x, [0.5, 99.5])
        low = max(low, 0)
        scaled.append((np.clip(x, low, high) - low) / (high - low) * inside)
    span = max(x.max() - x.min() for x in scaled)
    p, g = scaled
    mean = lambda x: ndimage.gaussian_filter(x, 1.5, truncate=3.5, mode="mirror")  # noqa: E731
    covariance, variances = mean(p * g) - mean(p) * mean(g), mean(p * p + g * g) - mean(p) ** 2 - mean(g) ** 2
    c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
    luminance = (2 * mean(p) * mean(g) + c1) / (mean(p) ** 2 + mean(g) ** 2 + c1)
    return (luminance * (2 * covariance + c2) / (variances + c2))[inside].mean()


def test_brasyn_scores_tumour_and_other_voxels_separately():
    p, g = volumes(20, 22, 18, scale=100, offset=-45)
    tumour = torch.zeros(20, 22, 18)
    tumour[3:9, 4:12, 0:7] = 2
    scores = PRESETS["brasyn"](p, g, tumour)
    inside = tumour.numpy() > 0
    assert scores == {
        "ssim_non_tumour": pytest.approx(brasyn_reference(p.numpy(), g.numpy(), ~inside), abs=1e-9),
        "ssim_tumour": pytest.approx(brasyn_reference(p.numpy(), g.numpy(), inside), abs=1e-9),
    }
    whole = {"ssim_non_tumour": pytest.approx(brasyn_reference(p.numpy(), g.numpy(), ~inside | inside), abs=1e-9)}
    assert PRESETS["brasyn"](p, g) == PRESETS["brasyn"](p, g, 0 * tumour) == whole


def test_brasyn_refuses_a_volume_that_is_too_small_for_its_reflected_borders():
    p, g = volumes(12, 5, 12)
    with pytest.raises(MetricError, match=r"at least 6 voxels along each axis, got \(12, 5, 12\)"):
        PRESETS["brasyn"](p, g)


@pytest.mark.parametrize("q", [0, 0.5, 37.2, 99.5, 100])
def test_percentiles_equal_those_of_numpy(q):
    x = torch.from_numpy(np.random.default_rng(7).standard_normal((5, 6, 7)))
    assert percentile(x, q) == pytest.approx(np.percentile(x.numpy(), q), abs=1e-12)


def test_udpet_scores_of_a_worked_example():
    # The target has 7³ voxels of 1, except one of 5 (range 4, maximum 5), where the prediction is 3: MSE = 4/343.
    # The region has two voxels, target 5 and 1, prediction 3 and 1: maximum -40 %, mean 3 to 2, so -33.3 %.
    g = torch.ones(7, 7, 7)
    g[3, 3, 3] = 5
    p = g.clone()
    p[3, 3, 3] = 3
    labels = torch.zeros(7, 7, 7)
    labels[3, 3, 3:5] = 1
    scores = PRESETS["udpet"](p, g, labels)
    reference = skimage().structural_similarity((g / 5).double().numpy(), (p / 3).double().numpy(), data_range=2.0)
    assert scores == {
        "nrmse": pytest.approx(sqrt(4 / 343) / 4),
        "psnr": pytest.approx(20 * log10(5 / sqrt(4 / 343))),
        "ssim": pytest.approx(reference, abs=1e-6),
        "suv_mean_error": pytest.approx(100 / 3),
        "suv_max_error": pytest.approx(40),
    }
    assert PRESETS["udpet"](p, g) == {name: scores[name] for name in ("nrmse", "psnr", "ssim")}
    assert PRESETS["udpet"](1000 * p, 1000 * g, labels) == pytest.approx(scores, abs=1e-5)


def test_the_default_preset_equals_the_metric_functions():
    p, g = volumes(16, 16, 16)
    mask = ball(16, 16, 16)
    scores = default_preset(1.5, (2, 2, 4))(p, g, mask)
    assert scores == {
        "psnr": psnr(p, g, 1.5, mask).item(),
        "ssim": ssim(p, g, 1.5, mask).item(),
        "nmae": nmae(p, g, mask).item(),
        "nrmse": nrmse(p, g, mask).item(),
        "sharpness": sharpness(p, g, mask).item(),
        "seam_index": seam_index(p, g, (2, 2, 4)).item(),
        "border_ratio": border_ratio(p, g, (2, 2, 4), mask).item(),
    }
    assert "seam_index" not in default_preset(1.5)(p, g)


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_presets_refuse_invalid_input(preset):
    x = torch.rand(12, 12, 12)
    for bad in (x[None, None], x.numpy()):
        with pytest.raises(MetricError, match="takes one subject"):
            preset(bad, bad)
    with pytest.raises(MetricError, match="one shape"):
        preset(x, x, torch.ones(12, 12, 11))
    with pytest.raises(MetricError, match="prediction has 1 of 1728"):
        preset(broken(nan), x)


@pytest.mark.parametrize(("name", "words"), [("brasyn", "no contrast"), ("udpet", "divide by")])
def test_presets_that_scale_by_the_image_refuse_an_image_of_zeros(name, words):
    with pytest.raises(MetricError, match=words):
        PRESETS[name](ZEROS, ZEROS)
