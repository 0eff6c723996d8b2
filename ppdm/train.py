"""Training: one loop for every method.

Axes: a volume of a pair (D, H, W) or (C, D, H, W), a batch (N, C, D, H, W), all float32 network values. Steps count
from k = 0.
"""

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import IO

import numpy as np
import torch
from torch import Tensor, nn

from ppdm.checkpoint import assemble
from ppdm.method import Method, Optimisation, training_loss

Array = np.ndarray | Tensor
ArrayPair = tuple[Array, Array]


class TrainingError(ValueError):
    """A training cannot start or go on; the message says what was got and what to try."""


@dataclass(frozen=True)
class StepReport:
    """One training step as it is logged and shown.

    Attributes:
        step: steps done, from 1.
        steps: steps of the whole training.
        loss: mean over the batch.
        gradient_norm: before clipping.
        learning_rate: of this step.
        seconds: since the start of the first step.
    """

    step: int
    steps: int
    loss: float
    gradient_norm: float
    learning_rate: float
    seconds: float

    @property
    def steps_per_second(self) -> float:
        """Mean over the training so far."""
        return self.step / self.seconds if self.seconds > 0 else math.inf

    @property
    def remaining(self) -> float:
        """Seconds to the end at the mean rate so far."""
        return (self.steps - self.step) / self.steps_per_second


@dataclass
class Training:
    """What changes while a method is trained; :meth:`step` is one iteration, the same for every method.

    Attributes:
        method: the point in the design space.
        network: the weights that are trained, in fp32.
        average: a second network that holds their exponential moving average.
        optimiser: AdamW over the network's weights.
        done: steps taken.
    """

    method: Method
    network: nn.Module
    average: nn.Module
    optimiser: torch.optim.Optimizer
    done: int = 0

    @classmethod
    def start(cls, method: Method, channels: int = 1, seed: int = 0, device: str | torch.device = "cpu") -> "Training":
        """Make the network from the seed, the same on every device, and leave the global generators as they were."""
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.default_generator.manual_seed(_state(seed, 2))
            network = method.build(channels).to(device)
        average = assemble(method, channels, {name: tensor.clone() for name, tensor in network.state_dict().items()})
        # Fused: one pass over the weights without the temporary copies that the `foreach` variant makes of all of them.
        decay = method.optimisation.weight_decay
        optimiser = torch.optim.AdamW(network.parameters(), weight_decay=decay, fused=True)
        return cls(method, network, average, optimiser)

    def step(
        self, source: Tensor, target: Tensor, learning_rate: float, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Improve the weights on one batch, and update their average.

        Args:
            source, target: (N, C, D, H, W) on the network's device.
            learning_rate: of this step.
            generator: of times and noise.

        Returns:
            The loss and the norm of the gradient before clipping, scalars that are not yet waited for.
        """
        loss = training_loss(self.method, self.network, source, target, generator).mean()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.method.optimisation.clip, foreach=True)
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate
        self.optimiser.step()
        self.optimiser.zero_grad()  # here, so that gradients do not lie beside the activations of the next step
        self._update_average()
        self.done += 1
        return loss.detach(), norm

    @torch.no_grad()
    def _update_average(self) -> None:
        decay = average_decay(self.method.optimisation.ema, self.done)
        for mean, weight in zip(self.average.parameters(), self.network.parameters(), strict=True):
            mean.lerp_(weight, 1 - decay)


def fit(
    method: Method,
    pairs: Sequence[ArrayPair],
    *,
    steps: int,
    batch_size: int = 1,
    seed: int = 0,
    device: str | torch.device = "cpu",
    log: str | os.PathLike[str] | None = None,
    progress: Callable[[StepReport], None] = lambda _: None,
) -> nn.Module:
    """Train a method and return its network with the averaged weights, in evaluation mode.

    On the CPU the same arguments give the same weights bit for bit (with the same torch and number of threads): the
    seed fixes the first weights, the order of the pairs, and the times and noise of each step. Precision and
    activation checkpointing are those of ``method.network``.

    Args:
        method: the point in the design space.
        pairs: (source, target) of normalised, finite values, each (D, H, W) or (C, D, H, W); all of one shape unless
            the batch size is 1. A sequence may read its pairs when they are asked for, as
            :class:`ppdm.data.pairs.TrainingSet` does.
        steps: updates of the weights.
        batch_size: pairs an update. The pairs are shuffled anew whenever all have been seen.
        seed: not negative.
        device: where the network is trained.
        log: a file of JSON lines, written anew, one line a step: step, loss, gradient_norm, learning_rate, seconds,
            steps_per_second.
        progress: called after every step.

    Raises:
        TrainingError: arguments or pairs that cannot be trained with, a loss or gradient that is not finite, an
            accelerator's memory that does not suffice, or a log that cannot be written.
    """
    _check_request(method, steps, batch_size, seed)
    channels = _check_pairs(pairs, batch_size)
    batches = batch_indices(len(pairs), batch_size, seed)
    with _opened_log(log) as stream, _memory_in_words(method):
        training = Training.start(method, channels, seed, device)
        started = time.perf_counter()
        for k in range(steps):
            source, target = _batch([pairs[i] for i in next(batches)], device)
            rate = learning_rate(method.optimisation, k, steps)
            loss, norm = training.step(source, target, rate, step_generator(seed, k, device))
            report = StepReport(k + 1, steps, float(loss), float(norm), rate, time.perf_counter() - started)
            _check_finite(report, method)
            _write_line(stream, report)
            progress(report)
    return training.average


def learning_rate(optimisation: Optimisation, k: int, steps: int) -> float:
    """Linear warm-up to ``optimisation.learning_rate``, then half a cosine down to 0 at k = steps (arXiv 1608.03983).

    The warm-up takes ``optimisation.warmup`` steps, but at most a tenth of them all: a short training would otherwise
    end before it has begun.
    """
    warmup = min(optimisation.warmup, steps // 10)
    if k < warmup:
        return optimisation.learning_rate * (k + 1) / warmup
    return optimisation.learning_rate * 0.5 * (1 + math.cos(math.pi * (k - warmup) / (steps - warmup)))


def average_decay(ema: float, k: int) -> float:
    """Decay of the average at step k: ``min(ema, (1 + k)/(10 + k))``, so that the first weights are soon forgotten."""
    return min(ema, (1 + k) / (10 + k))


def step_generator(seed: int, k: int, device: str | torch.device = "cpu") -> torch.Generator:
    """The generator of times and noise of step k, which depends on no other step."""
    return torch.Generator(device).manual_seed(_state(seed, 1, k))


def batch_indices(count: int, batch_size: int, seed: int) -> Iterator[list[int]]:
    """Endless batches of indices below count; every index appears once before any appears again."""

    def shuffled() -> Iterator[int]:
        rng = np.random.default_rng((seed, 0))
        while True:
            yield from rng.permutation(count).tolist()

    order = shuffled()
    while True:
        yield [next(order) for _ in range(batch_size)]


def _state(seed: int, *stream: int) -> int:
    """63 bits, as torch takes them, for one of the streams of random numbers that a seed stands for."""
    return int(np.random.SeedSequence((seed, *stream)).generate_state(1, np.uint64)[0]) >> 1


def _check_request(method: Method, steps: int, batch_size: int, seed: int) -> None:
    for name, value, least in (("steps", steps, 1), ("batch_size", batch_size, 1), ("seed", seed, 0)):
        if type(value) is not int or value < least:
            raise TrainingError(f"{name} must be an integer of at least {least}, got {value!r}.")
    if method.network.precision == "fp16":
        raise TrainingError("Gradients vanish in fp16 without loss scaling; train in bf16 or fp32.")


def _check_pairs(pairs: Sequence[ArrayPair], batch_size: int) -> int:
    """Look at every pair before the first step, so that none can end a training after hours; returns the channels."""
    shapes: dict[tuple[int, ...], int] = {}  # and the first pair that has it
    for index in range(len(pairs)):
        source, target = (_volume(v) for v in pairs[index])
        if source.ndim != 4 or source.shape != target.shape:
            raise TrainingError(
                f"Pair {index} has the shapes {tuple(source.shape)} and {tuple(target.shape)}; expected two volumes "
                "(D, H, W) or (C, D, H, W) of one shape."
            )
        if not (source.isfinite().all() and target.isfinite().all()):
            raise TrainingError(f"Pair {index} holds values that are not finite; replace them first.")
        shapes.setdefault(tuple(source.shape), index)
    if not shapes:
        raise TrainingError("There are no pairs to train on; give at least one.")
    if len({shape[0] for shape in shapes}) > 1 or (batch_size > 1 and len(shapes) > 1):
        (a, i), (b, j) = list(shapes.items())[:2]
        raise TrainingError(
            f"Pair {i} has the shape {a} and pair {j} {b}: a batch of {batch_size} needs one shape, and channels must "
            "always agree; crop the volumes alike, or train with batch_size 1."
        )
    return next(iter(shapes))[0]


def _volume(array: Array) -> Tensor:
    """(C, D, H, W) float32; arrays are copied, since torch cannot share those that are read-only or reversed."""
    tensor = array if isinstance(array, Tensor) else torch.from_numpy(np.array(array, np.float32, order="C"))
    return (tensor[None] if tensor.ndim == 3 else tensor).float()


def _batch(pairs: Sequence[ArrayPair], device: str | torch.device) -> tuple[Tensor, Tensor]:
    source, target = (torch.stack([_volume(v) for v in volumes]).to(device) for volumes in zip(*pairs, strict=True))
    return source, target


def _check_finite(report: StepReport, method: Method) -> None:
    if math.isfinite(report.loss) and math.isfinite(report.gradient_norm):
        return
    precision = method.network.precision
    remedy = "" if precision == "fp32" else f"precision fp32 instead of {precision}, or "
    raise TrainingError(
        f"Training stopped at step {report.step}: the loss is {report.loss} and the norm of the gradient "
        f"{report.gradient_norm}; try {remedy}a learning rate below {method.optimisation.learning_rate:g}."
    )


@contextmanager
def _memory_in_words(method: Method) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            f"The accelerator's memory does not suffice to train {method.name} ({str(error).split('. ')[0]}); try a "
            "larger puzzle factor, bf16, checkpointing 'block' or smaller volumes."
        ) from None


@contextmanager
def _opened_log(path: str | os.PathLike[str] | None) -> Iterator[IO[str] | None]:
    if path is None:
        yield None
        return
    try:
        # A line at a time: a kill loses none before it. Opened here, so that only this fault is put in words.
        stream = open(path, "w", encoding="utf-8", buffering=1)  # noqa: SIM115
    except OSError as error:
        raise TrainingError(f"The log {path} cannot be written ({error.strerror}); give another place.") from None
    with stream:
        yield stream


def _write_line(stream: IO[str] | None, report: StepReport) -> None:
    if stream is not None:
        row = {k: v for k, v in asdict(report).items() if k != "steps"}
        stream.write(json.dumps(row | {"steps_per_second": report.steps_per_second}, allow_nan=False) + "\n")
