"""How a training goes: how long, in what portions, at what learning rate, with what randomness.

Steps count from k = 0. Every random number is of a stream that the seed and the step alone decide, so that a training
that is continued at step k draws what one that was never interrupted draws there, and nothing needs to be kept of it.
"""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from ppdm.method import Method, Optimisation
from ppdm.training.augment import Flip

_ORDER, _STEP, _WEIGHTS, _VALIDATION = range(4)  # the streams of random numbers that a seed stands for


class TrainingError(ValueError):
    """A training cannot start or go on; the message says what was got and what to try."""


@dataclass(frozen=True)
class Part:
    """A part of a training's steps or time, from one share of all to another."""

    begin: float = 0.0
    end: float = 1.0


WHOLE = Part()


def parts(method: Method) -> list[Part]:
    """What each stage of a method takes of a training: a representation its share, the diffusion the rest."""
    share = method.representation.share
    return [Part(0.0, share), Part(share, 1.0)] if share else [WHOLE]


@dataclass(frozen=True)
class Schedule:
    """What decides, with the method and the pairs, which weights a training ends with.

    Args:
        steps: updates of the weights, in all stages; this, or minutes.
        minutes: time from the first step on, in which as many updates are made as can be; the one that is under way
            at the end is finished. What comes out depends on the machine: only steps make a training repeatable.
        batch_size: pairs a batch.
        accumulate: batches an update, whose gradients are averaged: those of one batch so many times as large, in the
            memory of one and of the gradients.
        augment: what is done to each batch, if anything.
        seed: of the first weights, the order of the pairs, times, noise and augmentation.
        validate_every: steps from one validation to the next; none if absent.

    Raises:
        TrainingError: a value out of range, or not exactly one of steps and minutes.
    """

    steps: int | None = None
    minutes: float | None = None
    batch_size: int = 1
    accumulate: int = 1
    augment: Flip | None = None
    seed: int = 0
    validate_every: int | None = None

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.minutes is None):
            raise TrainingError(
                f"A training goes on for steps or for minutes, one of the two; got {self.steps!r} and {self.minutes!r}."
            )
        for name, least in (("steps", 1), ("batch_size", 1), ("accumulate", 1), ("seed", 0), ("validate_every", 1)):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < least):
                raise TrainingError(f"{name} must be an integer of at least {least}, got {value!r}.")
        if self.minutes is not None and not 0 < self.minutes < math.inf:
            raise TrainingError(f"minutes must be a positive number, got {self.minutes!r}.")

    def share(self, done: int, seconds: float) -> float:
        """How much of the steps or of the time is used; 1 and more is the end."""
        return done / self.steps if self.steps is not None else seconds / (60 * self._minutes)

    def used(self, part: Part, done: int, seconds: float) -> bool:
        """Whether a part of the budget is used."""
        return done >= self._step_at(part.end) if self.steps is not None else self.share(done, seconds) >= part.end

    def learning_rate(
        self, optimisation: Optimisation, k: int, seconds: float, part: Part = WHOLE, began: int = 0
    ) -> float:
        """The rate of step k, which begins after so many seconds.

        Args:
            optimisation: the method's.
            k: the step.
            seconds: before it.
            part: of the budget that the stage takes; the rate rises and falls within it.
            began: the stage's first step.
        """
        if self.steps is not None:
            return learning_rate(optimisation, k - began, self._step_at(part.end) - self._step_at(part.begin))
        share = (self.share(k, seconds) - part.begin) / (part.end - part.begin)
        return timed_learning_rate(optimisation, k - began, min(share, 1.0))

    def validates(self, done: int, last: bool) -> bool:
        """Whether validation follows step number ``done``, counted from 1; it always follows the last."""
        return self.validate_every is not None and (last or done % self.validate_every == 0)

    def describe(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    def _step_at(self, share: float) -> int:
        """The first step that begins when so much of all is used; a rounding error of the product is no step."""
        assert self.steps is not None
        return math.ceil(share * self.steps - 1e-9)

    @property
    def _minutes(self) -> float:
        assert self.minutes is not None
        return self.minutes


def learning_rate(optimisation: Optimisation, k: int, steps: int) -> float:
    """Linear warm-up to ``optimisation.learning_rate``, then half a cosine down to 0 at k = steps (arXiv 1608.03983).

    The warm-up takes ``optimisation.warmup`` steps, but at most a tenth of them all: a short training would otherwise
    end before it has begun.
    """
    warmup = min(optimisation.warmup, steps // 10)
    if k < warmup:
        return optimisation.learning_rate * (k + 1) / warmup
    return optimisation.learning_rate * _half_cosine((k - warmup) / (steps - warmup))


def timed_learning_rate(optimisation: Optimisation, k: int, share: float) -> float:
    """The same against the clock: half a cosine in the share of the time that is used, times a linear warm-up.

    The warm-up ends after ``optimisation.warmup`` steps or a tenth of the time, whichever comes first.
    """
    rise = min(1.0, max((k + 1) / max(optimisation.warmup, 1), 10 * share))
    return optimisation.learning_rate * rise * _half_cosine(share)


def _half_cosine(share: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * share))


def batch_indices(count: int, batch_size: int, seed: int) -> Iterator[list[int]]:
    """Endless batches of indices below count; every index appears once before any appears again."""

    def shuffled() -> Iterator[int]:
        rng = np.random.default_rng((seed, _ORDER))
        while True:
            yield from rng.permutation(count).tolist()

    order = shuffled()
    while True:
        yield [next(order) for _ in range(batch_size)]


def first_weights_seed(seed: int) -> int:
    """The state of the generator that the first weights are drawn from."""
    return _state(seed, _WEIGHTS)


def step_generator(seed: int, k: int, device: str | torch.device = "cpu") -> torch.Generator:
    """The generator of times, noise and augmentation of step k, which depends on no other step."""
    return torch.Generator(device).manual_seed(_state(seed, _STEP, k))


def validation_generator(seed: int, index: int, device: str | torch.device = "cpu") -> torch.Generator:
    """The generator of times and noise with which pair number index is validated, the same after every step."""
    return torch.Generator(device).manual_seed(_state(seed, _VALIDATION, index))


def _state(seed: int, *stream: int) -> int:
    """63 bits, as torch takes them, for one of the streams of random numbers that a seed stands for."""
    return int(np.random.SeedSequence((seed, *stream)).generate_state(1, np.uint64)[0]) >> 1
