"""The phases whose memory is asked for, as ``build`` and ``step``: the code that training and sampling really run."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ppdm.method import DIFFUSION, REPRESENTATION, Method, decode, sample
from ppdm.training.loop import Training

# One whole sampling run has the peak of a short one: every evaluation frees what the one before it held.
EVALUATIONS = 2

# The stage that each phase of training is the step of.
_TRAINED = {"train": DIFFUSION, "autoencoder_train": REPRESENTATION}


@dataclass(frozen=True)
class Workload:
    """One phase of one method.

    Attributes:
        build: makes what is there before the first iteration.
        step: one iteration.
        iterations: how many it takes until the peak has been reached: optimizer state exists from the second on.
        evaluations: of the network in one iteration.
    """

    build: Callable[[], Any]
    step: Callable[[Any], Any]
    iterations: int
    evaluations: int


def workload(method: Method, phase: str, shape: tuple[int, int, int], batch_size: int, device: str) -> Workload:
    """A phase (one of ``method.phases``) on volumes of one channel (N, 1, D, H, W), on the device.

    What samples in blocks has its volume on the host, as where it is translated.
    """

    def volume(device: str = device) -> Tensor:
        return torch.randn(batch_size, 1, *shape, device=device)

    if phase in _TRAINED:
        return Workload(
            build=lambda: Training.start(method, device=device, stage=method.stages.index(_TRAINED[phase])),
            step=lambda training: training.step(volume(), volume(), method.optimisation.learning_rate),
            iterations=2,
            evaluations=1,
        )
    if phase == "decode":
        return Workload(
            build=lambda: method.build().to(device).eval().requires_grad_(False),
            step=lambda network: decode(method, network, _latent(method, shape, batch_size, device), shape),
            iterations=1,
            evaluations=0,
        )
    steps = min(method.sampling.steps, EVALUATIONS)
    short = replace(method, sampling=replace(method.sampling, steps=steps))
    place = "cpu" if method.samples_from_host(shape) else device
    return Workload(
        build=lambda: method.build().to(device).eval().requires_grad_(False),
        step=lambda network: sample(short, network, volume(place)),
        iterations=1,
        evaluations=short.evaluations(shape),
    )


def _latent(method: Method, shape: tuple[int, int, int], batch_size: int, device: str) -> Tensor:
    return torch.randn(batch_size, method.representation.channels(1), *method.latent_shape(shape), device=device)


def uncompiled(method: Method) -> str:
    """What is to be said of a peak that was found by following operators, if it is not that of the step that runs."""
    return (
        "of the network as it is written; compiled, it allocates what its compiler decides"
        if method.network.compile
        else ""
    )


def fault(error: Exception) -> str:
    """Why a phase could not be run, on one line: the code that failed may be anyone's, so its kind is told as well."""
    lines = str(error).strip().splitlines()  # PyTorch's own errors go on with a stack of C++
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
