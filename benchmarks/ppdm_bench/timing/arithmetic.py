"""Floating-point operations: what a step and a volume take, counted, and what the device does at best, measured.

Counted are convolutions, matrix products and attention, a multiplication and an addition as two, by PyTorch's
``FlopCounterMode``; what activation checkpointing computes again counts again, as it is computed again. Normalisation,
activation and the optimizer are not counted: their time goes to memory.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ppdm.method import Method, sample, training_loss
from ppdm.network.options import PRECISIONS
from ppdm_bench.timing.clock import Clock, Protocol, Stopwatch

Shape = tuple[int, int, int]

SIZES = {"cuda": 8192, "cpu": 2048}  # large enough that the product and not its start takes the time
_CEILING = Protocol(repetitions=5, seconds=1.0)


@dataclass(frozen=True)
class Ceiling:
    """What matrix products reach on the device.

    Attributes:
        rates: operations a second of each repetition.
        what: the product, in words.
    """

    rates: tuple[float, ...]
    what: str


def count(work: Callable[[], object]) -> int:
    """The operations of some work on tensors that it makes itself; they have shapes and no memory, so it costs nothing.

    Raises:
        Exception: as the work raises; among them PyTorch's, where a value decides what is done.
    """
    # Attention by plain products: of the CPU's fused kernels the counter knows nothing.
    eager = torch.compiler.set_stance("force_eager")  # of compiled code it knows nothing at all
    with FakeTensorMode(allow_non_fake_inputs=True), sdpa_kernel(SDPBackend.MATH), eager:
        counter = FlopCounterMode(display=False)
        with counter:
            work()
    return int(counter.get_total_flops())


def step_flops(method: Method, shape: Shape, batch_size: int) -> int:
    """Operations of one training step, forward and backward, on volumes (N, 1, D, H, W)."""

    def step() -> None:
        volumes = torch.zeros(batch_size, 1, *shape)
        training_loss(method, method.build(), volumes, volumes).mean().backward()

    return count(step)


def volume_flops(method: Method, shape: Shape, batch_size: int, evaluations: Iterable[int]) -> dict[int, int]:
    """Operations of drawing one batch of volumes, by network evaluations.

    Each evaluation adds the same, so that two are enough to know any number of them.
    """

    def flops(steps: int) -> int:
        drawn = replace(method, sampling=replace(method.sampling, steps=steps))
        return count(lambda: sample(drawn, drawn.build().eval(), torch.zeros(batch_size, 1, *shape)))

    one, two = flops(1), flops(2)
    return {k: one + (k - 1) * (two - one) for k in evaluations}


def ceiling(precision: str, device: str, clock: Clock, size: int | None = None) -> Ceiling:
    """Measure the product of two square matrices, in the arithmetic that the convolutions of a network have there.

    Args:
        precision: ``fp32``, ``bf16`` or ``fp16``. On CUDA fp32 is TF32 where cuDNN's convolutions are allowed it.
        device: ``cuda`` or ``cpu``.
        clock: the device's.
        size: of the matrices; by default one that is large enough for the device.
    """
    n = size or SIZES[device]
    a, b = (torch.randn(n, n, device=device).to(PRECISIONS[precision]) for _ in range(2))
    product = torch.empty_like(a)
    tf32 = device == "cuda" and precision == "fp32" and torch.backends.cudnn.allow_tf32
    watch = Stopwatch(clock, _CEILING, budget=60.0)
    with _as_convolutions(tf32):
        watch.warm_up(lambda: torch.mm(a, b, out=product))
        seconds = watch.repeat(lambda: torch.mm(a, b, out=product))
    what = f"product of two {n}×{n} matrices in {'tf32' if tf32 else precision}"
    return Ceiling(tuple(2 * n**3 / s for s in seconds), what)


@contextmanager
def _as_convolutions(tf32: bool) -> Iterator[None]:
    """PyTorch lets convolutions use TF32 and matrix products not; here they are compared."""
    before = torch.get_float32_matmul_precision()
    if tf32:
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
