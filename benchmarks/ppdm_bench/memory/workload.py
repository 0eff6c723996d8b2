"""Workloads of the memory benchmark as ``build`` and ``step``; they run the real code of training and sampling."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ppdm.method import DIFFUSION, REPRESENTATION, Method, decode, sample
from ppdm.training.trainer import Training

# Two network evaluations have the same peak as a full sampling run, because each evaluation frees its memory.
EVALUATIONS = 2

# Training stage of each training phase.
_TRAINED = {"train": DIFFUSION, "autoencoder_train": REPRESENTATION}


@dataclass(frozen=True)
class Workload:
    """One phase of one method.

    Attributes:
        build: creates the state before the first iteration.
        step: one iteration.
        iterations: number of iterations until the peak; optimizer state exists from the second one on.
        evaluations: network evaluations in one iteration.
    """

    build: Callable[[], Any]
    step: Callable[[Any], Any]
    iterations: int
    evaluations: int


def workload(method: Method, phase: str, shape: tuple[int, int, int], batch_size: int, device: str) -> Workload:
    """Return the workload of a phase (one of ``method.phases``) on volumes (N, 1, D, H, W).

    S sources have the shape (N, S, D, H, W). A method that samples in blocks keeps its volume on the host, as in
    translation.
    """

    def volume(device: str = device, channels: int = 1) -> Tensor:
        return torch.randn(batch_size, channels, *shape, device=device)

    sources = len(method.sources)

    if phase in _TRAINED:
        return Workload(
            build=lambda: Training.start(method, device=device, stage=method.stages.index(_TRAINED[phase])),
            step=lambda training: training.step(volume(channels=sources), volume(), method.learning_rate),
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
        step=lambda network: sample(short, network, volume(place, sources)),
        iterations=1,
        evaluations=short.evaluations(shape),
    )


def _latent(method: Method, shape: tuple[int, int, int], batch_size: int, device: str) -> Tensor:
    return torch.randn(batch_size, method.representation.channels(1), *method.latent_shape(shape), device=device)


def uncompiled(method: Method) -> str:
    """Return a note on the peak if the network is compiled, because the traced peak is that of uncompiled code."""
    return "for the uncompiled network; the compiler can change its memory" if method.network.compile else ""


def fault(error: Exception) -> str:
    """Return type and first line of an exception, which the code of a user may have raised."""
    lines = str(error).strip().splitlines()  # PyTorch's errors continue with a C++ stack trace
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
