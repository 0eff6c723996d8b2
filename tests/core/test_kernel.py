"""Kernels against closed forms: for scalar Gaussian data, the whole path is known exactly.

With x0 | y ~ N(m, v) and x_t = a·x0 + b·y + σ·ε, the best denoiser is
E[x0 | x_t, y] = m + v·a/(a²v + σ²)·(x_t − a·m − b·y), and every step is affine in x_t, x0, y and its noise, so the
tests compute moments exactly instead of estimating them from samples.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from math import cos, pi, sqrt

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from torch import Tensor, nn

from ppdm.kernel import I2SB, SCHEDULES, TARGETS, Brownian, Gaussian, Kernel, Linear, target_of, x0_error_of, x0_of
from ppdm.method import Method, Sampling, sample
from ppdm.network.options import UNetOptions
from ppdm.representation import Identity, Puzzle, Representation
from ppdm.window import Whole

Coefficients = Callable[[float], tuple[float, float, float]]
M, V, Y = 0.7, 0.3, -1.1  # mean and variance of the target, and its source


def brownian(gamma: float) -> Coefficients:
    return lambda t: (1 - t, t, gamma * sqrt(t * (1 - t)))


def indi(noise: float) -> Coefficients:
    """arXiv 2303.11435: x_t = (1−t)·x0 + t·y, with noise of standard deviation ε_t·t."""
    return lambda t: (1 - t, t, noise * t)


def i2sb(low: float, high: float) -> Coefficients:
    """arXiv 2302.05872, eq. 11; the integrals of β are computed by quadrature."""

    def beta(u: float) -> float:
        return (sqrt(low) + (sqrt(high) - sqrt(low)) * min(u, 1 - u)) ** 2

    def coefficients(t: float) -> tuple[float, float, float]:
        below, above = quad(beta, 0, t, points=[0.5])[0], quad(beta, t, 1, points=[0.5])[0]
        return above / (below + above), below / (below + above), sqrt(below * above / (below + above))

    return coefficients


def nichol(t: float) -> tuple[float, float, float]:
    """arXiv 2102.09672, eq. 17, s = 0.008; clipped where β would diverge."""
    f = cos((t + 0.008) / 1.008 * pi / 2) ** 2 / cos(0.008 / 1.008 * pi / 2) ** 2
    bar = max(f, 4e-5)
    return sqrt(bar), 0.0, sqrt(1 - bar)


def ho(t: float) -> tuple[float, float, float]:
    """The continuous-time limit of arXiv 2006.11239 (arXiv 2011.13456, eq. 33), β from 0.1 to 20."""
    bar = np.exp(-quad(lambda u: 0.1 + u * 19.9, 0, t)[0])
    return sqrt(bar), 0.0, sqrt(1 - bar)


def rombach(t: float) -> tuple[float, float, float]:
    """The same limit of latent diffusion's schedule: √β is equally spaced, β from 1.5 to 19.5."""
    bar = np.exp(-quad(lambda u: (sqrt(1.5) + u * (sqrt(19.5) - sqrt(1.5))) ** 2, 0, t)[0])
    return sqrt(bar), 0.0, sqrt(1 - bar)


def flow(t: float) -> tuple[float, float, float]:
    return 1 - t, 0.0, t


CASES: list[tuple[Kernel, Coefficients]] = [
    (Brownian(0.1), brownian(0.1)),
    (Brownian(0.5), brownian(0.5)),
    (Brownian(2), brownian(2)),
    (Linear(), indi(0)),
    (Linear(0.4), indi(0.4)),
    (I2SB(), i2sb(0.1, 0.3)),
    (I2SB(0.02, 4.0), i2sb(0.02, 4.0)),
    (Gaussian("cosine"), nichol),
    (Gaussian("linear"), ho),
    (Gaussian("scaled"), rombach),
    (Gaussian("flow"), flow),
]
KERNELS = [kernel for kernel, _ in CASES]
BRIDGES = [kernel for kernel in KERNELS if not isinstance(kernel, Gaussian)]
PAIRS = [(kernel, target) for kernel in KERNELS for target in kernel.targets]
TIMES = (1e-3, 0.1, 0.25, 0.5, 0.6, 0.9, 0.999, 1.0)

each_kernel = pytest.mark.parametrize("kernel", KERNELS, ids=str)


def f64(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def numbers(kernel: Kernel, t: float) -> tuple[float, float, float]:
    a, b, sigma = (c.item() for c in kernel.coefficients(f64(t)))
    return a, b, sigma


def step(kernel: Kernel, x_t: float, x0: float, y: float, t: float, s: float, noise: float | None) -> float:
    drawn = None if noise is None else f64(noise)
    return kernel.step(f64(x_t), f64(x0), f64(y), f64(t), f64(s), drawn).item()


def weights(kernel: Kernel, t: float, s: float) -> tuple[float, float, float, float]:
    """Return the weights of x_t, x0, y and the noise in a stochastic step."""
    return (
        step(kernel, 1, 0, 0, t, s, 0),
        step(kernel, 0, 1, 0, t, s, 0),
        step(kernel, 0, 0, 1, t, s, 0),
        step(kernel, 0, 0, 0, t, s, 1),
    )


def start(kernel: Kernel, y: float, noise: float) -> float:
    return kernel.start(f64(y), lambda: f64(noise)).item()


# Forwards ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kernel", "published"), CASES, ids=map(str, KERNELS))
def test_marginals_are_the_published_ones(kernel: Kernel, published: Coefficients) -> None:
    for t in (0.0, *TIMES):
        assert numbers(kernel, t) == pytest.approx(published(t), rel=1e-7, abs=1e-9), t


@each_kernel
def test_at_is_affine_in_x0_y_and_the_noise(kernel: Kernel) -> None:
    for t in TIMES:
        x0, y, noise = f64(1.7), f64(-0.4), f64(0.9)
        a, b, sigma = numbers(kernel, t)
        expected = a * 1.7 - b * 0.4 + sigma * 0.9
        assert kernel.at(x0, y, f64(t), noise).item() == pytest.approx(expected, rel=1e-12)


def test_the_linear_schedule_matches_the_1000_step_schedule_of_ddpm() -> None:
    discrete = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    continuous = np.array([numbers(Gaussian("linear"), i / 1000)[0] ** 2 for i in range(1, 1001)])
    # β is up to 0.02, so log(1 − β) differs from −β by up to β²/2 per step: 7 % of ᾱ(1) = 4e-5 in total.
    assert np.abs(np.log(continuous) - np.log(discrete)).max() < 0.08
    assert np.abs(continuous - discrete).max() < 2e-3


def test_the_scaled_schedule_matches_the_1000_step_schedule_of_monai() -> None:
    """DDPMScheduler's scaled_linear_beta from .0015 to .0195: squares of equally spaced numbers."""
    discrete = np.cumprod(1 - np.linspace(0.0015**0.5, 0.0195**0.5, 1000) ** 2)
    continuous = np.array([numbers(Gaussian("scaled"), i / 1000)[0] ** 2 for i in range(1, 1001)])
    assert np.abs(discrete - continuous).max() < 5e-3


def test_the_cosine_schedule_is_clipped_only_close_to_t_1() -> None:
    clipped = [t for t in np.linspace(0, 1, 1001) if numbers(Gaussian("cosine"), float(t))[0] ** 2 < 4.1e-5]
    assert min(clipped) > 0.99


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_noise_close_to_the_target_does_not_round_to_zero(schedule: str) -> None:
    for t in (2.0**-24, 1e-7, 1e-6, 1e-4):  # possible training times in float32
        single = Gaussian(schedule).coefficients(torch.tensor(t))[2]
        assert single.item() == pytest.approx(numbers(Gaussian(schedule), t)[2], rel=1e-5)
        assert single > 0


@each_kernel
def test_the_target_end_is_exact_in_single_precision(kernel: Kernel) -> None:
    zero = torch.zeros(1)
    assert [c.item() for c in kernel.coefficients(zero)] == [1, 0, 0]


@pytest.mark.parametrize("kernel", BRIDGES, ids=str)
def test_bridges_start_at_the_source(kernel: Kernel) -> None:
    a, b, sigma = numbers(kernel, 1.0)
    assert (a, b) == (0, 1)
    assert start(kernel, Y, 0.3) == Y + sigma * 0.3  # only Linear has noise there


def test_i2sb_is_symmetric_and_slow_at_its_ends() -> None:
    for t in (0.05, 0.2, 0.4):
        (a, b, sigma), (a_, b_, sigma_) = numbers(I2SB(), t), numbers(I2SB(), 1 - t)
        assert (a, b, sigma) == pytest.approx((b_, a_, sigma_), rel=1e-12)
        assert b < t


# Targets -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kernel", "target"), PAIRS, ids=str)
def test_x0_and_its_error_are_recovered_from_every_target(kernel: Kernel, target: str) -> None:
    x0, y, noise = (torch.randn(64, 1, 2, 2, 2, dtype=torch.float64) for _ in range(3))
    t = torch.linspace(0.01, 1, 64, dtype=torch.float64).reshape(-1, 1, 1, 1, 1)
    x_t = kernel.at(x0, y, t, noise)
    wanted = target_of(target, kernel, x0, x_t, y, t, noise)
    assert torch.allclose(x0_of(target, kernel, wanted, x_t, y, t), x0, rtol=0, atol=1e-10)
    other = x0_of(target, kernel, wanted + 1, x_t, y, t)
    assert not torch.isclose(other, x0).any()  # the network's output matters at every t
    error = torch.randn(64, 1, 2, 2, 2, dtype=torch.float64)
    moved = x0_of(target, kernel, wanted + error, x_t, y, t) - x0
    assert torch.allclose(x0_error_of(target, kernel, error, t), moved, rtol=1e-6, atol=1e-9)


def test_each_target_has_the_value_that_its_name_says() -> None:
    kernel, t = Gaussian("cosine"), f64(0.3)
    x0, y, noise = f64(0.5), f64(2.0), f64(-1.5)
    x_t = kernel.at(x0, y, t, noise)
    asked = {target: target_of(target, kernel, x0, x_t, y, t, noise).item() for target in TARGETS}
    assert asked["x0"] == 0.5
    assert asked["residual"] == -1.5
    assert asked["noise"] == -1.5
    assert asked["score"] == pytest.approx((x_t.item() - 0.5) / numbers(kernel, 0.3)[2])


@pytest.mark.parametrize("t", [0.01, 0.4, 1.0])
def test_the_score_target_equals_the_targets_of_the_papers(t: float) -> None:
    x0, y, noise = f64(0.5), f64(2.0), f64(-1.5)

    def score(kernel: Kernel) -> float:
        return target_of("score", kernel, x0, kernel.at(x0, y, f64(t), noise), y, f64(t), noise).item()

    # Rectified flow's velocity ε − x0 (arXiv 2209.03003); I2SB's eq. 12, which divides by σ_t = √∫₀ᵗβ.
    assert score(Gaussian("flow")) == pytest.approx(-1.5 - 0.5)
    gathered = quad(lambda u: (sqrt(0.1) + (sqrt(0.3) - sqrt(0.1)) * min(u, 1 - u)) ** 2, 0, t)[0]
    assert score(I2SB()) == pytest.approx((I2SB().at(x0, y, f64(t), noise).item() - 0.5) / sqrt(gathered))
    assert score(Linear(0.4)) == pytest.approx((2.0 + 0.4 * -1.5 - 0.5) / 0.4)  # the same at every t


@pytest.mark.parametrize("target", ["x0", "residual"])
@each_kernel
def test_every_kernel_supports_the_targets_x0_and_residual(kernel: Kernel, target: str) -> None:
    assert target in kernel.targets


@pytest.mark.parametrize(
    ("kernel", "target"),
    [
        (Brownian(), "noise"),
        (Linear(), "noise"),
        (Linear(0.4), "noise"),
        (I2SB(), "noise"),
        (Gaussian("flow"), "noise"),
        (Linear(), "score"),
    ],
    ids=str,
)
def test_targets_that_do_not_determine_x0_are_refused_with_the_allowed_ones(kernel: Kernel, target: str) -> None:
    with pytest.raises(ValueError, match=f"{target!r} does not determine x0") as refusal:
        Method("m", Identity(), Whole(), kernel, target)
    assert str(kernel) in str(refusal.value)
    assert str(refusal.value).endswith(", ".join(kernel.targets))


def test_unknown_targets_are_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"x0, residual, noise, score, got 'velocity'"):
        Method("m", Identity(), Whole(), Brownian(), "velocity")


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Brownian(0), r"gamma > 0, got 0.*Linear"),
        (lambda: Brownian(float("nan")), "gamma > 0, got nan"),
        (lambda: Linear(-1), "noise >= 0, got -1"),
        (lambda: I2SB(0), "got 0 and 0.3"),
        (lambda: I2SB(0.4), "got 0.4 and 0.3"),
        (lambda: Gaussian("sqrt"), "cosine, linear, scaled, flow, got 'sqrt'"),
    ],
)
def test_values_out_of_range_are_refused(make: Callable[[], Kernel], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make()


# Backwards -----------------------------------------------------------------------------------------------------------


@given(st.sampled_from(KERNELS), st.floats(1e-3, 1), st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_stochastic_steps_are_affine(kernel: Kernel, t: float, share: float) -> None:
    s = share * t * 0.999  # rectified flow has no stochastic step from t = 1 to itself
    expected = np.dot(weights(kernel, t, s), (1.3, -0.7, 2.1, 0.8))
    assert step(kernel, 1.3, -0.7, 2.1, t, s, 0.8) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@given(st.sampled_from(KERNELS), st.floats(1e-3, 1), st.floats(0, 1))
@settings(max_examples=150, deadline=None)
def test_a_stochastic_step_with_the_true_x0_lands_on_the_marginal(kernel: Kernel, t: float, share: float) -> None:
    s = share * t * 0.999
    of_x_t, of_x0, of_y, of_noise = weights(kernel, t, s)
    (a, b, sigma), (a_s, b_s, sigma_s) = numbers(kernel, t), numbers(kernel, s)
    assert of_x0 + of_x_t * a == pytest.approx(a_s, abs=1e-10)
    assert of_y + of_x_t * b == pytest.approx(b_s, abs=1e-10)
    assert of_noise**2 + (of_x_t * sigma) ** 2 == pytest.approx(sigma_s**2, abs=1e-10)


@given(st.sampled_from(KERNELS), st.floats(1e-3, 1), st.floats(0, 1))
@settings(max_examples=100, deadline=None)
def test_a_deterministic_step_with_the_true_x0_stays_on_the_mean(kernel: Kernel, t: float, share: float) -> None:
    s = share * t
    (a, b, _), (a_s, b_s, _) = numbers(kernel, t), numbers(kernel, s)
    there = step(kernel, a * M + b * Y, M, Y, t, s, None)
    assert there == pytest.approx(a_s * M + b_s * Y, abs=1e-10)


@each_kernel
def test_two_stochastic_steps_equal_one(kernel: Kernel) -> None:
    """The Chapman-Kolmogorov equation: given x0 and x_t, an intermediate step changes nothing."""
    first, second, both = weights(kernel, 0.8, 0.5), weights(kernel, 0.5, 0.2), weights(kernel, 0.8, 0.2)
    assert second[0] * first[0] == pytest.approx(both[0], abs=1e-12)
    assert second[0] * first[1] + second[1] == pytest.approx(both[1], abs=1e-12)
    assert second[0] * first[2] + second[2] == pytest.approx(both[2], abs=1e-12)
    assert (second[0] * first[3]) ** 2 + second[3] ** 2 == pytest.approx(both[3] ** 2, abs=1e-12)


@pytest.mark.parametrize("stochastic", [False, True])
@each_kernel
def test_a_step_to_t_0_returns_exactly_x0_in_single_precision(kernel: Kernel, stochastic: bool) -> None:
    x_t, x0, y, noise = (torch.randn(5, 1, 2, 2, 2) for _ in range(4))
    for t in TIMES:
        end = kernel.step(x_t, x0, y, torch.full((5, 1, 1, 1, 1), t), torch.zeros(1), noise if stochastic else None)
        assert torch.equal(end, x0)


@pytest.mark.parametrize("noise", [None, 1.5])
@each_kernel
def test_a_step_to_the_same_time_changes_nothing(kernel: Kernel, noise: float | None) -> None:
    for t in TIMES[:-1]:
        assert step(kernel, 1.3, -0.7, 2.1, t, t, noise) == pytest.approx(1.3, rel=1e-12)


# Complete sampling with the best denoiser ----------------------------------------------------------------------------


def best(kernel: Kernel, x_t: float, t: float) -> float:
    """Return E[x0 | x_t, y]; where x_t is fixed at y, it contains no information about x0."""
    a, b, sigma = numbers(kernel, t)
    spread = a * a * V + sigma * sigma
    return M + (V * a / spread * (x_t - a * M - b * Y) if spread else 0.0)


def deterministic_end(kernel: Kernel, z: float, steps: int) -> float:
    x = start(kernel, Y, z)
    for k in range(steps, 0, -1):
        x = step(kernel, x, best(kernel, x, k / steps), Y, k / steps, (k - 1) / steps, None)
    return x


def moments(kernel: Kernel, steps: int) -> tuple[float, float]:
    """Return mean and variance of stochastic sampling, computed exactly through its affine steps."""
    mean = start(kernel, Y, 0.0)
    variance = (start(kernel, Y, 1.0) - mean) ** 2
    for k in range(steps, 0, -1):
        t, s = k / steps, (k - 1) / steps

        def forward(x: float, noise: float, t: float = t, s: float = s) -> float:
            return step(kernel, x, best(kernel, x, t), Y, t, s, noise)

        slope, gain = forward(mean + 1, 0.0) - forward(mean, 0.0), forward(mean, 1.0) - forward(mean, 0.0)
        mean, variance = forward(mean, 0.0), slope**2 * variance + gain**2
    return mean, variance


def test_the_best_denoiser_is_the_regression_of_x0_on_x_t() -> None:
    rng = np.random.default_rng(0)
    x0, noise = M + sqrt(V) * rng.standard_normal(200_000), rng.standard_normal(200_000)
    a, b, sigma = numbers(Brownian(), 0.4)
    x_t = a * x0 + b * Y + sigma * noise
    slope, constant = np.polyfit(x_t, x0, 1)
    assert best(Brownian(), 0.0, 0.4) == pytest.approx(constant, abs=0.01)
    assert best(Brownian(), 1.0, 0.4) - best(Brownian(), 0.0, 0.4) == pytest.approx(slope, abs=0.01)


@pytest.mark.parametrize("kernel", BRIDGES, ids=str)
def test_a_deterministic_bridge_that_starts_at_y_ends_at_the_mean(kernel: Kernel) -> None:
    for steps in (1, 2, 7):
        assert deterministic_end(kernel, 0.0, steps) == pytest.approx(M, abs=1e-12)


SPREAD = [Linear(0.4), *map(Gaussian, SCHEDULES)]  # kernels that start from noise


@pytest.mark.parametrize("z", [-1.5, 0.6])
@pytest.mark.parametrize("kernel", SPREAD, ids=str)
def test_a_deterministic_path_from_noise_ends_at_its_quantile(kernel: Kernel, z: float) -> None:
    """The path maps N(a·m + b·y, a²v + σ²) at t = 1 monotonically to N(m, v), so it preserves quantiles."""
    a, b, sigma = numbers(kernel, 1.0)
    quantile = (start(kernel, Y, z) - a * M - b * Y) / sqrt(a * a * V + sigma * sigma)
    assert quantile == pytest.approx(z, abs=0.01)  # a(1) is 0, or nearly
    exact = M + sqrt(V) * quantile
    errors = [abs(deterministic_end(kernel, z, steps) - exact) for steps in (50, 100, 200, 400)]
    assert errors[-1] < 0.012
    for coarse, fine in pairwise(errors):
        assert 0.4 < fine / coarse < 0.6


@pytest.mark.slow
@each_kernel
def test_stochastic_sampling_converges_to_the_distribution(kernel: Kernel) -> None:
    if kernel == Linear():  # no noise at any time, so the path ends at the mean
        assert moments(kernel, 8) == pytest.approx((M, 0), abs=1e-12)
        return
    ends = [moments(kernel, steps) for steps in (50, 100, 200, 400)]
    errors = [abs(variance - V) for _, variance in ends]
    assert abs(ends[-1][0] - M) < 1e-3
    assert errors[-1] < 0.1 * V
    for coarse, fine in pairwise(errors):
        assert 0.35 < fine / coarse < 0.7


class BestDenoiser(nn.Module):
    """A perfectly trained network for independent voxels N(m, v); it predicts the method's target."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method

    def forward(self, parts: Sequence[Tensor], times: Tensor) -> Tensor:
        seen = torch.cat(list(parts), dim=1)
        kernel = self.method.kernel
        x_t, y = seen.chunk(2, dim=1)
        t = times.reshape(-1, 1, 1, 1, 1)
        a, b, sigma = kernel.coefficients(t)
        spread = a**2 * V + sigma**2
        x0 = M + torch.where(spread > 0, V * a / spread, 0) * (x_t - a * M - b * y)
        noise = (x_t - a * x0 - b * y) / sigma
        return target_of(self.method.target, kernel, x0, x_t, y, t, noise)


@pytest.mark.parametrize(
    ("kernel", "target", "representation"),
    [
        (Brownian(0.5), "residual", Puzzle(2)),
        (I2SB(), "score", Puzzle((1, 2, 4))),
        (Linear(0.4), "x0", Identity()),
        (Gaussian("cosine"), "noise", Identity()),
        (Gaussian("linear"), "noise", Puzzle(2)),
        (Gaussian("flow"), "score", Identity()),
    ],
    ids=str,
)
def test_sample_has_the_computed_moments_and_deterministic_ends(
    kernel: Kernel, target: str, representation: Representation
) -> None:
    steps, voxels = 40, 8 * 8**3
    method = Method(
        "m",
        representation,
        Whole(),
        kernel,
        target,
        network=UNetOptions(multipliers=(1,)),
        sampling=Sampling(steps=steps, stochastic=True),
    )
    source = torch.full((8, 1, 8, 8, 8), Y)
    drawn = sample(method, BestDenoiser(method), source, torch.Generator().manual_seed(0)).double()
    mean, variance = moments(kernel, steps)
    assert drawn.mean().item() == pytest.approx(mean, abs=4 * sqrt(variance / voxels))
    assert drawn.var().item() == pytest.approx(variance, rel=4 * sqrt(2 / voxels))

    path = replace(method, sampling=Sampling(steps=steps))
    z = torch.randn(source.shape, generator=torch.Generator().manual_seed(3)).flatten()
    ends = sample(path, BestDenoiser(path), source, torch.Generator().manual_seed(3)).double()
    if isinstance(representation, Identity):  # the noise of a voxel stays at that voxel
        ends = ends.flatten()[:20]
        expected = [deterministic_end(kernel, noise.item(), steps) for noise in z[:20]]
        assert ends.tolist() == pytest.approx(expected, abs=2e-3)
    elif not isinstance(kernel, Gaussian):
        assert ends.flatten().tolist() == pytest.approx([M] * voxels, abs=1e-5)
