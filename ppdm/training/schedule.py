"""Training schedule: duration, batches, learning rate, seeds.

Steps are counted from k = 0. Each random stream depends only on the seed and the step. A run resumed at step k thus
uses the same random numbers as an uninterrupted run, and no generator state needs to be saved.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from ppdm.method import Method, Optimisation
from ppdm.training.augment import Flip

_ORDER, _STEP, _WEIGHTS, _VALIDATION = range(4)  # identifiers of the random streams of a seed


class TrainingError(ValueError):
    """Training cannot start or continue; the message gives the cause and a remedy."""


@dataclass(frozen=True)
class Part:
    """A part of the training budget (steps or time), as an interval of fractions of the whole."""

    begin: float = 0.0
    end: float = 1.0


WHOLE = Part()


def parts(method: Method) -> list[Part]:
    """Return the part of the budget for each stage: the representation uses its share, the diffusion the rest."""
    share = method.representation.share
    return [Part(0.0, share), Part(share, 1.0)] if share else [WHOLE]


@dataclass(frozen=True)
class Schedule:
    """Training options that, with the method and the pairs, determine the final weights.

    Args:
        steps: total number of weight updates in all stages; give either steps or minutes.
        minutes: training time from the first step on; an update that has started is completed. The result then
            depends on the machine: only a budget of steps is reproducible.
        batch_size: number of pairs in a batch.
        accumulate: number of batches whose gradients are averaged for one update. This gives the gradient of a batch
            ``accumulate`` times as large, in the memory of one batch and the gradients.
        augment: augmentation of each batch, if any.
        seed: seed of the initial weights, the order of the pairs, times, noise and augmentation.
        validate_every: number of steps between validations; no validation if absent.

    Raises:
        TrainingError: a value is out of range, or not exactly one of steps and minutes is given.
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
                f"Give exactly one of steps and minutes; got steps {self.steps!r} and minutes {self.minutes!r}."
            )
        for name, least in (("steps", 1), ("batch_size", 1), ("accumulate", 1), ("seed", 0), ("validate_every", 1)):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < least):
                raise TrainingError(f"{name} must be an integer of at least {least}, got {value!r}.")
        if self.minutes is not None and not 0 < self.minutes < math.inf:
            raise TrainingError(f"minutes must be a positive number, got {self.minutes!r}.")

    def share(self, done: int, seconds: float) -> float:
        """Return the fraction of the steps or of the time used so far; training ends at 1 or more."""
        if self.steps is not None:
            return done / self.steps
        assert self.minutes is not None
        return seconds / (60 * self.minutes)

    def used(self, part: Part, done: int, seconds: float) -> bool:
        """Whether a part of the budget is used up."""
        return done >= self._step_at(part.end) if self.steps is not None else self.share(done, seconds) >= part.end

    def learning_rate(self, method: Method, k: int, seconds: float, part: Part = WHOLE, began: int = 0) -> float:
        """Return the learning rate of step k.

        Args:
            method: the method; its optimisation options and its width count.
            k: the step.
            seconds: training time before step k.
            part: part of the budget that the stage uses; the rate rises and falls within it.
            began: first step of the stage.
        """
        if self.steps is not None:
            return learning_rate(method.optimisation, k - began, self.steps_of(part), method.width)
        share = (self.share(k, seconds) - part.begin) / (part.end - part.begin)
        return timed_learning_rate(method.optimisation, k - began, min(share, 1.0), method.width)

    def steps_of(self, part: Part) -> int:
        """Return the number of steps of a part of the budget, which is given in steps."""
        return self._step_at(part.end) - self._step_at(part.begin)

    def validates(self, done: int, last: bool) -> bool:
        """Whether to validate after step number ``done``, counted from 1; the last step is always validated."""
        return self.validate_every is not None and (last or done % self.validate_every == 0)

    def _step_at(self, share: float) -> int:
        """Return the first step that begins at or after a share of the budget, tolerant of rounding errors."""
        assert self.steps is not None
        return math.ceil(share * self.steps - 1e-9)


def learning_rate(optimisation: Optimisation, k: int, steps: int, width: int | None = None) -> float:
    """Return the rate of step k: warm-up to ``optimisation.rate(width)``, then half a cosine to 0 (arXiv 1608.03983).

    The linear warm-up takes ``optimisation.warmup`` steps, but at most a tenth of all steps: otherwise a short run
    could end before the warm-up does.
    """
    warmup, rate = min(optimisation.warmup, steps // 10), optimisation.rate(width)
    if k < warmup:
        return rate * (k + 1) / warmup
    return rate * _half_cosine((k - warmup) / (steps - warmup))


def timed_learning_rate(optimisation: Optimisation, k: int, share: float, width: int | None = None) -> float:
    """Return the rate for a time budget: half a cosine in the share of the time used, times a linear warm-up.

    The warm-up ends after ``optimisation.warmup`` steps or a tenth of the time, whichever comes first.
    """
    rise = min(1.0, max((k + 1) / max(optimisation.warmup, 1), 10 * share))
    return optimisation.rate(width) * rise * _half_cosine(share)


def _half_cosine(share: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * share))


def batch_indices(count: int, batch_size: int, seed: int) -> Iterator[list[int]]:
    """Yield endless batches of indices below count; every index appears once before any index repeats."""

    def shuffled() -> Iterator[int]:
        rng = np.random.default_rng((seed, _ORDER))
        while True:
            yield from rng.permutation(count).tolist()

    order = shuffled()
    while True:
        yield [next(order) for _ in range(batch_size)]


def first_weights_seed(seed: int) -> int:
    """Return the generator seed for the initial weights."""
    return _state(seed, _WEIGHTS)


def step_generator(seed: int, k: int, device: str | torch.device = "cpu") -> torch.Generator:
    """Return the generator for times, noise and augmentation of step k; it is independent of other steps."""
    return torch.Generator(device).manual_seed(_state(seed, _STEP, k))


def validation_generator(seed: int, index: int, device: str | torch.device = "cpu") -> torch.Generator:
    """Return the generator for times and noise when validating pair number index, the same at every validation."""
    return torch.Generator(device).manual_seed(_state(seed, _VALIDATION, index))


def _state(seed: int, *stream: int) -> int:
    """Return a 63-bit seed, as torch accepts, for one of the random streams of a seed."""
    return int(np.random.SeedSequence((seed, *stream)).generate_state(1, np.uint64)[0]) >> 1
