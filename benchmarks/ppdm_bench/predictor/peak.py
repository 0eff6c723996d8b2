"""Peak memory of any PyTorch code: predicted on fake tensors without a GPU, or measured.

>>> def build():
...     net = torch.nn.Linear(1000, 1000)
...     return net, torch.optim.AdamW(net.parameters())
>>> def step(state):
...     net, optimizer = state
...     net(torch.randn(64, 1000)).square().mean().backward()
...     optimizer.step()
...     optimizer.zero_grad()
>>> predict_peak(build, step).peak_allocated  # doctest: +SKIP
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from threading import RLock
from typing import Any, Literal, TypeVar

import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedFakeTensorException,
    UnsupportedOperatorException,
)

from ppdm_bench.predictor.allocator import CachingAllocator, Event
from ppdm_bench.predictor.data_loading import loader_patches
from ppdm_bench.predictor.distributed import distributed_patches
from ppdm_bench.predictor.fake_device import fake_cuda_device
from ppdm_bench.predictor.kernels import KernelWork
from ppdm_bench.predictor.known_values import PLACEHOLDERS, UnknownRead
from ppdm_bench.predictor.lines import line_of_traceback, reading_line
from ppdm_bench.predictor.modules import Modules
from ppdm_bench.predictor.restore_state import state_restored
from ppdm_bench.predictor.saving import saving_patches
from ppdm_bench.predictor.sizes import PredictionError
from ppdm_bench.predictor.target import GIB, MIB, Target
from ppdm_bench.predictor.timeline import KINDS, Place, Timeline
from ppdm_bench.predictor.trace import Trace, tracing
from ppdm_bench.predictor.weight_files import file_patches

__all__ = ["Peak", "PredictionError", "measure_peak", "predict_peak"]

State = TypeVar("State")

# A prediction patches PyTorch for the whole process, so threads predict one after another.
_ONE_AT_A_TIME = RLock()

# Exceptions that fake tensors raise when an operator needs their data.
_NEEDS_DATA = (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedFakeTensorException,
    UnsupportedOperatorException,
)


# Explanation and remedy of errors that PyTorch raises on fake tensors, with a part of each error's text.
_EXPLANATIONS: Mapping[str, tuple[str, ...]] = {
    "the sizes of a nested tensor depend on data; pad it to a fixed size, or measure the code": (
        "self.shape_env must not be None",
        "doesn't support sizes",
    ),
    "an operator of a library has no fake implementation; register one with torch.library.register_fake, or measure "
    "the code": ("no fake impl", "Please register a fake"),
    "a lazy module gets its shape from its first input; give it the number of features (nn.Linear instead of "
    "nn.LazyLinear), or measure the code": ("Creating a new Tensor subclass Uninitialized",),
    "a library function reads the memory of a tensor, which a fake tensor does not have; call it on data of a "
    "DataLoader, leave it out, or measure the code": ("data is not allocated yet",),
    "another thread, or a library function, calls CUDA directly; move it to the main thread, or measure the code": (
        "Torch not compiled with CUDA",
        "Cannot access accelerator device",
    ),
    "it calls a function of PyTorch that only a build with CUDA has; leave the call out, or measure the code": (
        "module 'torch._C' has no attribute",
        "Storage device not recognized",
        "Tried to instantiate dummy base class",
        "without ATen_cuda library",
    ),
}


@dataclass(frozen=True)
class Peak:
    """Peak memory of the code, in bytes.

    Attributes:
        peak_allocated: maximum bytes of live blocks, with the allocator's rounding
            (``torch.cuda.max_memory_allocated``); on the CPU, of live tensors rounded to 512 B.
        breakdown: bytes at the peak by kind: params (with buffers), grads, optimizer, inputs, activations, workspace.
            Their sum is the peak. Empty for a measurement on CUDA, which only reads counters.
        terms: bytes of the workspace by the rule or operator that causes it.
        iterations: peak of each iteration.
        peak_reserved: maximum bytes reserved from the driver (``torch.cuda.max_memory_reserved``) on a card of
            unlimited capacity; None on the CPU.
        needs: memory in bytes that the process needs on the card; None on the CPU and for a measurement. It is the
            smallest capacity with which the simulated allocator succeeds, to within 1 % or 1 MiB, plus the CUDA context
            and a margin. The allocator returns free segments to the driver when memory is short, so this can be less
            than ``peak_reserved`` plus the context.
        fits: whether ``needs`` is at most the capacity of the target's card; None if no capacity was given.
        refused: bytes of the first request that does not fit on the target's card; None if every request fits.
        assumed: bytes of the peak that follow from rules that no published counter confirms for such a call, such as
            cuDNN's copies in the backward pass or the reserve of its recurrent layers.
        host: maximum bytes of live tensors in host memory. On CUDA, these are tensors that the code keeps there, such
            as a volume that moves to the card in blocks; on the CPU, all tensors. 0 for a measurement on CUDA.
        made_up: number of reads of values that depend on data, by kind and line, in a prediction. The code got
            placeholders there; where a placeholder decided a branch, real data may take the other branch.
        timeline: every recorded allocation and release; None for a measurement on CUDA.
    """

    peak_allocated: int
    breakdown: dict[str, int] = field(default_factory=dict)
    terms: dict[str, int] = field(default_factory=dict)
    iterations: tuple[int, ...] = ()
    peak_reserved: int | None = None
    needs: int | None = None
    fits: bool | None = None
    refused: int | None = None
    assumed: int = 0
    host: int = 0
    made_up: Mapping[UnknownRead, int] = field(default_factory=dict)
    timeline: Timeline | None = field(default=None, repr=False)

    def __str__(self) -> str:
        """Return the peak in GiB as text."""
        parts = sorted(((size, kind) for kind, size in self.breakdown.items() if size), reverse=True)
        parts_text = ", ".join(f"{kind} {size / GIB:.3g}" for size, kind in parts)
        lines = [
            f"peak of live tensors {self.peak_allocated / GIB:.3g} GiB" + (f" ({parts_text})" if parts_text else "")
        ]
        if self.peak_reserved is not None:
            lines.append(f"reserved by the allocator without a limit {self.peak_reserved / GIB:.3g} GiB")
        if self.needs is not None:
            verdict = {True: ": fits", False: ": does not fit", None: ""}[self.fits]
            lines.append(f"needs a card with {self.needs / GIB:.3g} GiB{verdict}")
        return "\n".join(lines)


def predict_peak(
    build: Callable[[], State],
    step: Callable[[State], Any],
    iterations: int = 2,
    target: Target | Literal["cpu"] | None = None,
    modules: Modules | None = None,
    limit: int | None = None,
) -> Peak:
    """Run unmodified code on fake tensors, which have no memory, and record every storage.

    Modules, tensors and optimizers that ``build`` and ``step`` close over may be real ones on the CPU; they are counted
    and not changed. Code that uses CUDA devices, ``torch.autocast("cuda")`` or ``torch.cuda`` runs unchanged on a
    simulated CUDA device. Constants, values computed from constants, and real tensors keep their values; small random
    tensors are sampled; data of a ``DataLoader`` are real. All other values are unknown: ``.item()`` returns 1,
    ``.numpy()`` returns ones, a comparison such as ``loss < best`` uses 1, and every value counts as finite.
    ``Peak.made_up`` lists the lines that read unknown values. A size that depends on an unknown value raises an error.

    Algorithms whose control flow depends on data, such as L-BFGS, cannot be predicted.

    Args:
        build: creates the state, such as a network and its optimizer.
        step: runs one iteration on the state.
        iterations: number of iterations; optimizer state exists only from the second on.
        target: device and software to predict for; None means CUDA with the installed PyTorch. ``"cpu"`` applies no
            CUDA rules and gives the same result as :func:`measure_peak` on the CPU.
        modules: if given, the timeline records which module allocated each block; the peak is the same.
        limit: bytes of live tensors above which the prediction stops; use it to check quickly whether code fits.

    Returns:
        The peak. On CUDA, it includes ``peak_reserved`` from a simulation of the caching allocator and, if the target
        has a capacity, ``fits``.

    Raises:
        ValueError: iterations below 1, or an invalid target.
        PredictionError: shapes depend on data, or an operator has no fake implementation.
        torch.OutOfMemoryError: more than ``limit`` bytes are live.
    """
    with _with_line(), predicting(target, limit, modules) as trace:
        if trace.known_values:
            trace.known_values.current_line = reading_line
        _follow(trace, build, step, iterations)
    return replace(
        peak_of(trace.timeline, trace.target), made_up=dict(trace.known_values.made_up if trace.known_values else {})
    )


@contextmanager
def predicting(
    target: Target | Literal["cpu"] | None = None,
    limit: int | None = None,
    modules: Modules | None = None,
    home: Place = "target",
    kernels: list[KernelWork] | None = None,
) -> Iterator[Trace]:
    """Run the block on fake tensors and record every storage.

    The arguments are those of :func:`predict_peak` and of :class:`~ppdm_bench.predictor.trace.Trace`.

    Raises:
        ValueError: an invalid target.
        PredictionError: shapes depend on data, or an operator has no fake implementation.
    """
    on_cuda = cuda_target(target)
    with _ONE_AT_A_TIME, state_restored(), ExitStack() as stack:
        fake = stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        trace = stack.enter_context(tracing(fake, on_cuda, limit, modules, home, kernels))
        if on_cuda:
            stack.enter_context(fake_cuda_device(trace))
        for patches in (file_patches, saving_patches, loader_patches, distributed_patches):
            for patch in patches(trace):
                stack.enter_context(patch)
        if trace.target and trace.target.workspace:
            trace.timeline.allocate(trace.target.workspace, "workspace", "fitted")
        with _explain_errors(trace):
            yield trace


def cuda_target(target: Target | Literal["cpu"] | None) -> Target | None:
    """Return the CUDA target of a prediction; None for ``"cpu"``.

    Raises:
        ValueError: an invalid target.
    """
    if target is not None and not isinstance(target, Target) and target != "cpu":
        raise ValueError(f'target must be a Target, "cpu" or None, got {target!r}')
    return None if target == "cpu" else target or Target()


@contextmanager
def _with_line() -> Iterator[None]:
    """Add the line of the user's code to a PredictionError raised in the block."""
    try:
        yield
    except PredictionError as error:
        line = line_of_traceback(error.__traceback__)
        if line is None:
            raise
        raise PredictionError(f"{line.file}:{line.number}: {error}") from error


@contextmanager
def _explain_errors(trace: Trace) -> Iterator[None]:
    """If the prediction causes or may cause an error that the block raises, add an explanation to the error."""
    try:
        yield
    except _NEEDS_DATA as error:
        raise PredictionError(
            f"this code cannot be predicted: {error} depends on values, and a prediction has only shapes; "
            "use a fixed size instead, or measure the code"
        ) from error
    except PredictionError:
        raise
    except BaseException as error:
        for explanation, texts in _EXPLANATIONS.items():
            if any(text in str(error) for text in texts):
                raise PredictionError(f"this code cannot be predicted: {explanation}") from error
        if trace.known_values and trace.known_values.reads_by_line:
            error.add_note(
                f"This error was raised in a prediction, where values that depend on data are made up: {PLACEHOLDERS}. "
                "A check of such a value may be the cause."
            )
        raise


def measure_peak(
    build: Callable[[], State],
    step: Callable[[State], Any],
    iterations: int = 2,
    device: str = "cpu",
    limit: int | None = None,
) -> Peak:
    """Run code on real tensors and measure its peak memory.

    Args:
        build, step, iterations: as for :func:`predict_peak`.
        device: ``cpu`` records every storage, as a prediction does, without rules; ``cuda`` reads PyTorch's counters
            and makes CUDA the default device.
        limit: maximum bytes, to simulate a smaller device: on the CPU of live tensors, checked after each operator; on
            ``cuda`` of PyTorch's allocator. None means the memory of the device.

    Raises:
        ValueError: iterations below 1, or another device.
        RuntimeError: ``cuda`` without a device.
        torch.OutOfMemoryError: the code needs more than the limit or the device's memory.
    """
    if device == "cuda":
        return _measure_cuda(build, step, iterations, limit)
    if device != "cpu":
        raise ValueError(f"device must be cpu or cuda, got {device!r}")
    with tracing(limit=limit) as trace:
        _follow(trace, build, step, iterations)
    return peak_of(trace.timeline, None)


def _follow(trace: Trace, build: Callable[[], State], step: Callable[[State], Any], iterations: int) -> None:
    if iterations < 1:
        raise ValueError(f"a peak needs at least one iteration, got {iterations}")
    state = build()
    for _ in range(iterations):
        trace.timeline.mark()
        step(state)
    trace.timeline.ended = trace.timeline.now


def peak_of(timeline: Timeline, target: Target | None) -> Peak:
    """Return the peak of a timeline; with a target, simulate its allocator and decide whether the code fits."""
    requests = timeline.events  # with the requested sizes; `assign_blocks` below replaces them by those of the blocks
    card = CachingAllocator(target.room if target else None)
    if target and target.capacity:
        card.replay(requests)
    reserved = timeline.assign_blocks().peak_reserved if target else None
    event, peak = timeline.peak()
    needs = _needs(requests, peak, reserved, target) if target and reserved is not None else None
    live_blocks = timeline.alive_at(event)
    by_kind, by_term = Counter[str](), Counter[str]()
    for block in live_blocks:
        by_kind[block.kind] += block.size
        if block.kind == "workspace":
            by_term[block.name] += block.size
    return Peak(
        peak_allocated=peak,
        breakdown={kind: by_kind[kind] for kind in KINDS},
        terms=dict(by_term),
        iterations=timeline.peaks(),
        peak_reserved=reserved,
        needs=needs,
        fits=needs <= target.capacity if target and target.capacity and needs is not None else None,
        refused=card.refused,
        assumed=sum(block.size for block in live_blocks if block.basis == "assumed"),
        host=timeline.host_peak(everywhere=target is None),
        timeline=timeline,
    )


def _needs(requests: list[Event], allocated: int, reserved: int, target: Target) -> int:
    """Return :attr:`Peak.needs` by bisection between the peaks of allocated and of reserved memory.

    The first probe is the memory of the card itself, so that the verdict about this card does not depend on the
    tolerance of the bisection.
    """
    low, high = allocated, reserved

    def narrowed(middle: int) -> tuple[int, int]:
        return (low, middle) if CachingAllocator(middle).replay(requests) else (middle, high)

    if target.capacity and low < (room := target.capacity - target.beside) < high:
        low, high = narrowed(room)
    while high - low > max(MIB, high // 100):
        low, high = narrowed((low + high) // 2)
    return high + target.beside


def _measure_cuda(
    build: Callable[[], State], step: Callable[[State], Any], iterations: int, limit: int | None = None
) -> Peak:
    if not torch.cuda.is_available():
        raise RuntimeError("a measurement needs a CUDA device, and there is none; predict_peak needs no device")
    if iterations < 1:
        raise ValueError(f"a peak needs at least one iteration, got {iterations}")
    peaks = []
    with _allocator_limit(limit), torch.device("cuda"):
        state = build()
        torch.cuda.synchronize()
        # Empty the cache first: the reset sets the peaks to the current memory, which must not include cached blocks.
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        reserved = 0
        for _ in range(iterations):
            step(state)
            torch.cuda.synchronize()
            peaks.append(torch.cuda.max_memory_allocated())
            reserved = max(reserved, torch.cuda.max_memory_reserved())
            # Each iteration has its own peak. Keep the cache, as in training: fragmentation counts towards the peak.
            torch.cuda.reset_peak_memory_stats()
    return Peak(max(peaks), iterations=tuple(peaks), peak_reserved=reserved)


@contextmanager
def _allocator_limit(limit: int | None) -> Iterator[None]:
    """Limit PyTorch's allocator on the current CUDA device to this number of bytes within the block."""
    if limit is None:
        yield
        return
    total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    # PyTorch multiplies the fraction by the memory and truncates; half a byte more prevents an error of one byte.
    torch.cuda.set_per_process_memory_fraction(min((max(limit, 0) + 0.5) / total, 1.0))
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
