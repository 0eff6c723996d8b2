"""Kernels: distributions of the path between target and start (bridges, Gaussian diffusion), and prediction targets.

Every kernel here is Gaussian given its two ends::

    x_t = a(t)·x0 + b(t)·y + σ(t)·ε,   ε ~ N(0, I),   t in [0, 1], t = 0 the target end,

where x0 is the target and y is the source (the condition), of any shape, and t is broadcast against them. Three things
define a kernel: its three coefficients, its start at t = 1, and the variance of one backward step. This variance
depends on the correlation of the noise along the path.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from math import cos, pi, sqrt
from typing import Protocol, TypeVar

import torch
from torch import Tensor

TARGETS = ("x0", "residual", "noise", "score")
SCHEDULES = ("cosine", "linear", "scaled", "flow")

Number = TypeVar("Number", float, Tensor)
Draw = Callable[[], Tensor]


class Kernel(Protocol):
    """Interface of a kernel for :mod:`ppdm.method`."""

    @property
    def targets(self) -> tuple[str, ...]:
        """Prediction targets that determine x0 at every t in (0, 1]."""

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return a, b, σ at t."""

    def scale(self, t: Tensor) -> Tensor:
        """Return the standard deviation that the ``score`` target divides by."""

    def at(self, x0: Tensor, y: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Compute x_t from both ends and standard normal noise."""

    def start(self, y: Tensor, draw: Draw) -> Tensor:
        """Return the start of sampling, x_1; ``draw`` samples standard normal noise of y's shape, if needed."""

    def step(self, x_t: Tensor, x0: Tensor, y: Tensor, t: Tensor, s: Tensor, noise: Tensor | None) -> Tensor:
        """Take one step back from t to s < t, given an estimate of x0; without noise, the step is deterministic."""


class _Path(ABC):
    """Base class that derives x_t from the coefficients."""

    @abstractmethod
    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]: ...

    def at(self, x0: Tensor, y: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        a, b, sigma = self.coefficients(t)
        return a * x0 + b * y + sigma * noise


@dataclass(frozen=True)
class _Bridge(_Path):
    """A Brownian bridge from x0 to y on its own clock τ(t), with total variance γ² (τ(0) = 0, τ(1) = 1).

    Given x_t and x0, the path between them is a bridge again, so the backward step is exact for every step size:
    ``x_s ~ N(x0 + τ_s/τ_t·(x_t − x0), γ²·τ_s·(τ_t − τ_s)/τ_t)``; the deterministic step is its mean.
    """

    @property
    def targets(self) -> tuple[str, ...]:
        # At t = 1, where sampling starts, a = 0: the noise does not determine x0. Without noise there is no score.
        return ("x0", "residual", "score") if self._gamma else ("x0", "residual")

    @property
    @abstractmethod
    def _gamma(self) -> float: ...

    def clock(self, t: Tensor) -> Tensor:
        return t

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        tau = self.clock(t)
        return 1 - tau, tau, self._gamma * (tau * (1 - tau)).clamp_min(0).sqrt()

    def scale(self, t: Tensor) -> Tensor:
        """Return I2SB's scale (arXiv 2302.05872, eq. 12): the standard deviation of x_t given x0 but no end y."""
        return self._gamma * self.clock(t).sqrt()

    def start(self, y: Tensor, draw: Draw) -> Tensor:
        return y

    def step(self, x_t: Tensor, x0: Tensor, y: Tensor, t: Tensor, s: Tensor, noise: Tensor | None) -> Tensor:
        now, then = self.clock(t), self.clock(s)
        mean = torch.lerp(x0, x_t, then / now)
        if noise is None:
            return mean
        return mean + self._gamma * (then * (now - then) / now).clamp_min(0).sqrt() * noise


@dataclass(frozen=True)
class Brownian(_Bridge):
    """Brownian bridge ``x_t = (1−t)·x0 + t·y + γ·√(t(1−t))·ε`` (BBDM, arXiv 2205.07680, up to the scale of γ).

    Args:
        gamma: γ, in standard deviations of the normalised target; positive.

    Raises:
        ValueError: gamma is not positive.
    """

    gamma: float = 0.5

    def __post_init__(self) -> None:
        if not self.gamma > 0:
            raise ValueError(f"a Brownian bridge needs gamma > 0, got {self.gamma}; without noise it is Linear()")

    @property
    def _gamma(self) -> float:
        return self.gamma


@dataclass(frozen=True)
class I2SB(_Bridge):
    """Image-to-image Schrödinger bridge (arXiv 2302.05872, eq. 11) with the symmetric schedule of section 4.

    With σ²(t) = ∫₀ᵗ β and σ̄²(t) = ∫ₜ¹ β: ``x_t ~ N((σ̄²·x0 + σ²·y)/(σ̄²+σ²), σ²·σ̄²/(σ̄²+σ²))``. This is a Brownian bridge
    on the clock τ = σ²(t)/σ²(1), with total variance σ²(1). √β rises linearly from √beta_min, mirrored at t = 1/2.

    Args:
        beta_min: β at both ends.
        beta_max: value that β would reach at t = 1 without the mirroring (0.3 in the paper).

    Raises:
        ValueError: not 0 < beta_min <= beta_max.
    """

    beta_min: float = 0.1
    beta_max: float = 0.3

    def __post_init__(self) -> None:
        if not 0 < self.beta_min <= self.beta_max:
            raise ValueError(f"I2SB needs 0 < beta_min <= beta_max, got {self.beta_min} and {self.beta_max}")

    @property
    def _gamma(self) -> float:
        return sqrt(2 * self._integral(0.5))

    def clock(self, t: Tensor) -> Tensor:
        half = self._integral(torch.minimum(t, 1 - t)) / (2 * self._integral(0.5))
        return torch.where(t <= 0.5, half, 1 - half)

    def _integral(self, t: Number) -> Number:
        """∫₀ᵗ (√β_min + k·u)² du for t up to 1/2."""
        low = sqrt(self.beta_min)
        k = sqrt(self.beta_max) - low
        return t * (low * low + t * (low * k + t * (k * k / 3)))


@dataclass(frozen=True)
class Linear(_Bridge):
    """InDI's straight line (arXiv 2303.11435): ``x_t = (1−t)·x0 + t·(y + noise·ε)``.

    One sample of ε is shared by the whole path (the paper's constant ε_t), so no step adds noise: deterministic and
    stochastic steps are the same.

    Args:
        noise: standard deviation of the noise added to the source; 0 gives the plain line.

    Raises:
        ValueError: noise is negative.
    """

    noise: float = 0.0

    def __post_init__(self) -> None:
        if not self.noise >= 0:
            raise ValueError(f"Linear needs noise >= 0, got {self.noise}")

    @property
    def _gamma(self) -> float:
        return self.noise

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return 1 - t, t, self.noise * t

    def scale(self, t: Tensor) -> Tensor:
        return self.noise * t

    def start(self, y: Tensor, draw: Draw) -> Tensor:
        return y + self.noise * draw() if self.noise else y

    def step(self, x_t: Tensor, x0: Tensor, y: Tensor, t: Tensor, s: Tensor, noise: Tensor | None) -> Tensor:
        return torch.lerp(x0, x_t, s / t)


@dataclass(frozen=True)
class Gaussian(_Path):
    """Diffusion from pure noise: ``x_t = α(t)·x0 + σ(t)·ε``; the source is only a condition.

    Args:
        schedule: ``cosine`` (Nichol & Dhariwal, arXiv 2102.09672, eq. 17), ``linear`` (Ho et al., arXiv 2006.11239: β
            from 1e-4 to 0.02 over 1000 steps, in continuous time), ``scaled`` (latent diffusion: √β linear, β from
            0.0015 to 0.0195, as in MONAI) or ``flow`` (rectified flow, arXiv 2209.03003: α = 1−t, σ = t).

    Raises:
        ValueError: the schedule is unknown.
    """

    schedule: str = "cosine"

    # ᾱ(1) of the linear schedule, also the lower limit of the cosine one: below it, x0 = (x_t − σε)/α would amplify
    # noise more than 150 times.
    FLOOR = 4e-5

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, got {self.schedule!r}")

    @property
    def targets(self) -> tuple[str, ...]:
        # Rectified flow has α(1) = 0: the noise does not determine x0 there. Its usual target, the velocity ε − x0, is
        # the score target: (x_t − x0)/σ = (t·ε − t·x0)/t.
        return ("x0", "residual", "score") if self.schedule == "flow" else TARGETS

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self.schedule == "flow":
            return 1 - t, torch.zeros_like(t), t
        variance = self._variance(t)
        return (1 - variance).sqrt(), torch.zeros_like(t), variance.sqrt()

    def _variance(self, t: Tensor) -> Tensor:
        """σ² = 1 − ᾱ, but not computed as that difference: it rounds to 0 near t = 0, and ``score`` divides by σ."""
        if self.schedule == "linear":
            return -torch.expm1(-(0.1 * t + (20 - 0.1) / 2 * t * t))
        if self.schedule == "scaled":
            low, rise = sqrt(1.5), sqrt(19.5) - sqrt(1.5)
            # ∫₀ᵗ (low + rise·u)² du as a polynomial: a difference of cubes would lose precision near 0.
            return -torch.expm1(-t * (low * low + low * rise * t + rise * rise / 3 * t * t))
        s = 0.008
        u, v = s / (1 + s) * pi / 2, t / (1 + s) * pi / 2  # eq. 17: ᾱ = cos²(u + v)/cos²(u)
        return (torch.sin(2 * u + v) * torch.sin(v) / cos(u) ** 2).clamp(0, 1 - self.FLOOR)

    def scale(self, t: Tensor) -> Tensor:
        return self.coefficients(t)[2]

    def start(self, y: Tensor, draw: Draw) -> Tensor:
        return draw()

    def step(self, x_t: Tensor, x0: Tensor, y: Tensor, t: Tensor, s: Tensor, noise: Tensor | None) -> Tensor:
        """DDIM's step without noise (arXiv 2010.02502, eq. 12 with σ = 0), DDPM's exact posterior with it."""
        (a, _, sigma), (a_s, _, sigma_s) = self.coefficients(t), self.coefficients(s)
        if noise is None:
            return a_s * x0 + sigma_s / sigma * (x_t - a * x0)
        # q(x_s | x_t, x0) (arXiv 2006.11239, eq. 7), written so that it holds between any two times and at α(1) = 0.
        forward = a / a_s
        added = (sigma**2 - forward**2 * sigma_s**2).clamp_min(0)  # variance that the path gains between s and t
        mean = forward * (sigma_s / sigma) ** 2 * x_t + a_s * added / sigma**2 * x0
        return mean + added.sqrt() * sigma_s / sigma * noise


KERNELS = {"brownian": Brownian, "linear": Linear, "i2sb": I2SB, "gaussian": Gaussian}


def target_of(target: str, kernel: Kernel, x0: Tensor, x_t: Tensor, y: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """Return the prediction target at x_t: ``x0``, ``residual`` x0−y, ``noise`` ε or ``score`` (x_t−x0)/scale(t)."""
    return noise if target == "noise" else output_of(target, kernel, x0, x_t, y, t)


def output_of(target: str, kernel: Kernel, x0: Tensor, x_t: Tensor, y: Tensor, t: Tensor) -> Tensor:
    """Return the network output that gives this x0 at x_t: the inverse of :func:`x0_of`. Noise needs σ(t) > 0."""
    if target == "x0":
        return x0
    if target == "residual":
        return x0 - y
    if target == "score":
        return (x_t - x0) / kernel.scale(t)
    a, b, sigma = kernel.coefficients(t)
    return (x_t - a * x0 - b * y) / sigma


def x0_of(target: str, kernel: Kernel, output: Tensor, x_t: Tensor, y: Tensor, t: Tensor) -> Tensor:
    """Convert a network output at x_t to an estimate of x0."""
    if target == "x0":
        return output
    if target == "residual":
        return y + output
    if target == "score":
        return x_t - kernel.scale(t) * output
    a, b, sigma = kernel.coefficients(t)
    return (x_t - b * y - sigma * output) / a


def x0_error_of(target: str, kernel: Kernel, error: Tensor, t: Tensor) -> Tensor:
    """Convert an error of the output to an error of x0: ``x0_of(output) − x0``, given ``output − target_of(…)``.

    :func:`x0_of` is affine in the output, so neither x0 nor the output is needed.
    """
    if target == "score":
        return -kernel.scale(t) * error
    if target == "noise":
        a, _, sigma = kernel.coefficients(t)
        return -sigma / a * error
    return error
