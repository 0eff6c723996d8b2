"""Floating-point operations of a training step and of a volume, and the measured peak rate of the device.

PyTorch's ``FlopCounterMode`` counts convolutions, matrix products and attention. A multiplication and an addition are
two operations. Recomputation by activation checkpointing counts too. Normalisation, activation functions and the
optimizer are not counted, because memory traffic dominates their time.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from ppdm.method import Method, sample, training_loss
from ppdm.network.options import PRECISIONS
from ppdm_bench.timing.clock import Clock, Protocol, Stopwatch

Shape = tuple[int, int, int]

SIZES = {"cuda": 8192, "cpu": 2048}  # large enough that launch overhead is negligible
_CEILING = Protocol(repetitions=5, seconds=1.0)


@dataclass(frozen=True)
class Ceiling:
    """Measured rate of matrix products on the device.

    Attributes:
        rates: operations per second of each repetition.
        what: description of the matrix product.
    """

    rates: tuple[float, ...]
    what: str


def count(work: Callable[[], object]) -> int:
    """Return the number of operations of ``work``, which must create its own tensors.

    The count uses fake tensors, which have shapes but no memory, so it is cheap.

    Raises:
        Exception: any exception of ``work``, including PyTorch's errors if the control flow depends on tensor values.
    """
    # Use plain matrix products for attention, because the counter does not support the fused kernels of the CPU.
    eager = torch.compiler.set_stance("force_eager")  # the counter does not support compiled code
    with FakeTensorMode(allow_non_fake_inputs=True), sdpa_kernel(SDPBackend.MATH), eager:
        counter = FlopCounterMode(
            display=False, custom_mapping={torch.ops.aten.convolution_backward: _convolution_backward}
        )
        with counter:
            work()
    return int(counter.get_total_flops())


def _convolution_backward(
    gradient: Sequence[int],
    x: Sequence[int],
    weight: Sequence[int],
    bias: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    wanted: Sequence[bool],
    out_shape: object,
) -> int:
    """Return the operations of a convolution's backward pass; PyTorch's formula ignores groups for the weight."""
    return sum(wanted[:2]) * conv_flop_count([*x], [*weight], [*gradient], transposed)


def step_flops(method: Method, shape: Shape, batch_size: int) -> int:
    """Return the operations of one training step, forward and backward, on volumes (N, 1, D, H, W)."""

    def step() -> None:
        source, target = (torch.zeros(batch_size, c, *shape) for c in (len(method.sources), 1))
        discriminator = method.build_discriminator()
        training_loss(method, method.build(), source, target, discriminator=discriminator).mean().backward()

    return count(step)


def volume_flops(method: Method, shape: Shape, batch_size: int, evaluations: Iterable[int]) -> dict[int, int]:
    """Return the operations of sampling one batch of volumes, by number of network evaluations.

    Every evaluation adds the same count, so all counts follow from those for one and two evaluations.
    """

    def flops(steps: int) -> int:
        changed = replace(method, sampling=replace(method.sampling, steps=steps))
        size = (batch_size, len(method.sources), *shape)
        return count(lambda: sample(changed, changed.build().eval(), torch.zeros(size)))

    one, two = flops(1), flops(2)
    return {k: one + (k - 1) * (two - one) for k in evaluations}


def ceiling(precision: str, device: str, clock: Clock, size: int | None = None) -> Ceiling:
    """Measure the rate of a product of two square matrices, in the arithmetic that convolutions use on the device.

    Args:
        precision: ``fp32``, ``bf16`` or ``fp16``. On CUDA, fp32 means TF32 if cuDNN's convolutions may use it.
        device: ``cuda`` or ``cpu``.
        clock: clock of the device.
        size: edge length of the matrices; the default depends on the device, see ``SIZES``.
    """
    n = size or SIZES[device]
    a, b = (torch.randn(n, n, device=device).to(PRECISIONS[precision]) for _ in range(2))
    product = torch.empty_like(a)
    tf32 = device == "cuda" and precision == "fp32" and torch.backends.cudnn.allow_tf32
    stopwatch = Stopwatch(clock, _CEILING, budget=60.0)
    with _as_convolutions(tf32):
        stopwatch.warm_up(lambda: torch.mm(a, b, out=product))
        seconds = stopwatch.repeat(lambda: torch.mm(a, b, out=product))
    what = f"product of two {n}×{n} matrices in {'tf32' if tf32 else precision}"
    return Ceiling(tuple(2 * n**3 / s for s in seconds), what)


@contextmanager
def _as_convolutions(tf32: bool) -> Iterator[None]:
    """Allow TF32 for matrix products; PyTorch's default allows it only for convolutions."""
    before = torch.get_float32_matmul_precision()
    if tf32:
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
