"""Peak memory of any PyTorch code: predicted without memory and without a GPU, or measured.

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
from ppdm_bench.predictor.constants import STAND_INS, MadeUp
from ppdm_bench.predictor.cuda_world import cuda_world
from ppdm_bench.predictor.data_loading import loader_patches
from ppdm_bench.predictor.distributed import distributed_patches
from ppdm_bench.predictor.files import file_patches
from ppdm_bench.predictor.kernels import Kernel
from ppdm_bench.predictor.lines import of_traceback, reading
from ppdm_bench.predictor.modules import Modules
from ppdm_bench.predictor.restore_state import preserved
from ppdm_bench.predictor.saving import saving_patches
from ppdm_bench.predictor.sizes import PredictionError
from ppdm_bench.predictor.target import GIB, MIB, Target
from ppdm_bench.predictor.timeline import KINDS, Place, Timeline
from ppdm_bench.predictor.trace import Trace, tracing

__all__ = ["Peak", "PredictionError", "measure_peak", "predict_peak"]

State = TypeVar("State")

# A prediction patches PyTorch for the whole process, so predictions of several threads run one after another.
_ONE_AT_A_TIME = RLock()

# Exceptions that fake tensors raise when an operator needs their data.
_NEEDS_DATA = (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedFakeTensorException,
    UnsupportedOperatorException,
)


# Errors of PyTorch that mean that fake tensors cannot do something.
_MEANINGS = {
    "self.shape_env must not be None": "the sizes of a nested tensor are data; pad it to a fixed size, or measure it",
    "doesn't support sizes": "the sizes of a nested tensor are data; pad it to a fixed size, or measure it",
    "no fake impl": "an operator of a library has no fake implementation; register one with "
    "torch.library.register_fake, or measure it",
    "Please register a fake": "an operator of a library has no fake implementation; register one with "
    "torch.library.register_fake, or measure it",
    "Creating a new Tensor subclass Uninitialized": "a lazy module gets its shape from its first input; give it the "
    "number of features (nn.Linear in place of nn.LazyLinear), or measure it",
    "data is not allocated yet": "a function of a library reads the memory of a tensor, and a prediction has none; "
    "call it on data of a DataLoader, leave it out, or measure it",
    "Torch not compiled with CUDA": "a thread of its own, or a function of a library, asks for CUDA itself; move the "
    "call to the main thread, or measure it",
    **dict.fromkeys(
        (
            "module 'torch._C' has no attribute",
            "Storage device not recognized",
            "Tried to instantiate dummy base class",
            "without ATen_cuda library",
        ),
        "it calls a function of PyTorch that only a build with CUDA has; leave it out, or measure it",
    ),
    "Cannot access accelerator device": "a thread of its own, or a function of a library, asks for CUDA itself; move "
    "the call to the main thread, or measure it",
}


@dataclass(frozen=True)
class Peak:
    """Peak memory of some code, in bytes.

    Attributes:
        peak_allocated: maximum bytes of live blocks, with the allocator's rounding
            (``torch.cuda.max_memory_allocated``); on the CPU, of live tensors rounded to 512 B.
        breakdown: the peak by kind: params (with buffers), grads, optimizer, inputs, activations, workspace. The values
            sum to the peak. Empty if only a counter was read.
        terms: the workspace by the rule or operator that causes it.
        iterations: the peak within each iteration.
        peak_reserved: maximum bytes reserved from the driver (``torch.cuda.max_memory_reserved``) if the card sets no
            limit; None on the CPU.
        needs: bytes that the process must be able to take from the card so that the code runs; None on the CPU, or if
            only a counter was read. It is the least memory with which the replay of the allocator succeeds, to within
            1 % or 1 MiB, plus the CUDA context, plus a margin. The allocator returns free segments to the
            driver when memory is short, so this can be less than ``peak_reserved`` and the context.
        fits: whether ``needs`` is at most the capacity of the target's card; None if no capacity was given.
        refused: bytes of the first request that does not fit on the target's card, if there is one.
        assumed: bytes of the peak that depend on a rule that no published counter confirms for such a call, such as
            cuDNN's copies in the backward pass (part of the workspace), or what its recurrent layers keep.
        host: maximum bytes of live tensors in host memory: on CUDA of those that the code keeps there, such as a volume
            of which only blocks move to the card; on the CPU of all. 0 if only a counter was read.
        made_up: where the code read values that depend on data, and how often, in a prediction; they are constants, and
            where they decided a branch, other data may take the other one.
        timeline: every recorded allocation and release; None if only a counter was read.
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
    made_up: Mapping[MadeUp, int] = field(default_factory=dict)
    timeline: Timeline | None = field(default=None, repr=False)

    def __str__(self) -> str:
        """Return the peak in words, in GiB."""
        parts = sorted(((size, kind) for kind, size in self.breakdown.items() if size), reverse=True)
        made_of = ", ".join(f"{kind} {size / GIB:.3g}" for size, kind in parts)
        lines = [f"peak of live tensors {self.peak_allocated / GIB:.3g} GiB" + (f" ({made_of})" if made_of else "")]
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
    """Run real code on tensors without memory and follow every storage.

    Modules, tensors and optimizers that ``build`` and ``step`` close over may be real, on the CPU; they are counted and
    not changed. Code that names CUDA devices, ``torch.autocast("cuda")`` or ``torch.cuda`` runs unchanged and sees a
    CUDA device. Constants, values computed from constants, and real tensors keep their values; small random tensors
    are sampled. Other values are unknown: ``.item()`` returns 1, ``.numpy()`` returns ones, what is asked about them,
    such as ``loss < best``, is answered for 1, and all of them count as finite; ``Peak.made_up`` lists where. A size
    that depends on an unknown value raises an error. The data of a ``DataLoader`` are real.

    The prediction does not cover control flow that depends on data (L-BFGS).

    Args:
        build: creates the state, such as a network and its optimizer.
        step: one iteration; its allocations are followed.
        iterations: number of iterations; optimizer state exists only from the second on.
        target: the device and software to predict for; the installed PyTorch on CUDA if absent; ``"cpu"`` applies no
            CUDA rules and gives the same result as :func:`measure_peak` on the CPU.
        modules: records in the timeline which module allocated each block, if given; the peak is the same.
        limit: bytes of live tensors at which the prediction stops early, for a check whether code fits.

    Returns:
        The peak; on CUDA with ``peak_reserved`` from a replay of the caching allocator and, where the target has a
        capacity, with a verdict.

    Raises:
        ValueError: iterations below 1, or an invalid target.
        PredictionError: shapes depend on data, or an operator has no fake implementation.
        torch.OutOfMemoryError: more than ``limit`` bytes are alive.
    """
    with _placed(), predicting(target, limit, modules) as trace:
        if trace.constants:
            trace.constants.here = reading
        _follow(trace, build, step, iterations)
    return replace(
        peak_of(trace.timeline, trace.target), made_up=dict(trace.constants.made_up if trace.constants else {})
    )


@contextmanager
def predicting(
    target: Target | Literal["cpu"] | None = None,
    limit: int | None = None,
    modules: Modules | None = None,
    home: Place = "target",
    kernels: list[Kernel] | None = None,
) -> Iterator[Trace]:
    """Run the block on tensors without memory and follow every storage.

    The arguments are those of :func:`predict_peak` and of :class:`~ppdm_bench.predictor.trace.Trace`.

    Raises:
        ValueError: an invalid target.
        PredictionError: shapes depend on data, or an operator has no fake implementation.
    """
    if target is not None and not isinstance(target, Target) and target != "cpu":
        raise ValueError(f'target must be a Target, "cpu" or None, got {target!r}')
    on_cuda = None if target == "cpu" else target or Target()
    with _ONE_AT_A_TIME, preserved(), ExitStack() as stack:
        fake = stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        trace = stack.enter_context(tracing(fake, on_cuda, limit, modules, home, kernels))
        if on_cuda:
            stack.enter_context(cuda_world(trace))
        for patches in (file_patches(trace), saving_patches(trace), loader_patches(trace), distributed_patches()):
            for patch in patches:
                stack.enter_context(patch)
        if trace.target and trace.target.workspace:
            trace.timeline.born(trace.target.workspace, "workspace", "fitted")
        with _explained(trace):
            yield trace


@contextmanager
def _placed() -> Iterator[None]:
    """Name the line of the user's code in a refusal of the block."""
    try:
        yield
    except PredictionError as error:
        line = of_traceback(error.__traceback__)
        if line is None:
            raise
        raise PredictionError(f"{line.file}:{line.number}: {error}") from error


@contextmanager
def _explained(trace: Trace) -> Iterator[None]:
    """Say of an error in the block what the prediction has to do with it."""
    try:
        yield
    except _NEEDS_DATA as error:
        raise PredictionError(
            f"this code cannot be predicted: {error} depends on values, and a prediction has only shapes; "
            "give a fixed size in its place, or measure it"
        ) from error
    except PredictionError:
        raise
    except BaseException as error:
        for words, meaning in _MEANINGS.items():
            if words in str(error):
                raise PredictionError(f"this code cannot be predicted: {meaning}") from error
        if trace.constants and trace.constants.told:
            error.add_note(
                f"This was raised in a prediction, where values that depend on data are made up: {STAND_INS}. "
                "Code that checks them may fail for that alone."
            )
        raise


def measure_peak(
    build: Callable[[], State],
    step: Callable[[State], Any],
    iterations: int = 2,
    device: str = "cpu",
    limit: int | None = None,
) -> Peak:
    """Run real code and measure its peak.

    Args:
        build, step, iterations: as for :func:`predict_peak`.
        device: ``cpu`` follows every storage, as a prediction does, and applies no rules; ``cuda`` reads PyTorch's
            counters and creates tensors on the device by default.
        limit: maximum bytes, as if the device had no more: on the CPU of live tensors, checked after each operator; on
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
    """Return the peak of a recorded course; a target replays its allocator and adds its verdict."""
    requests = timeline.events  # as requested: `hand_out` replaces them by the blocks that are handed out
    card = CachingAllocator(target.room if target else None)
    if target and target.capacity:
        card.replay(requests)
    reserved = timeline.hand_out().peak_reserved if target else None
    event, peak = timeline.peak()
    needs = _needs(requests, peak, reserved, target) if target and reserved is not None else None
    alive = timeline.alive_at(event)
    by_kind, by_term = Counter[str](), Counter[str]()
    for block in alive:
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
        assumed=sum(block.size for block in alive if block.basis == "assumed"),
        host=timeline.host_peak(everywhere=target is None),
        timeline=timeline,
    )


def _needs(requests: list[Event], allocated: int, reserved: int, target: Target) -> int:
    """Return :attr:`Peak.needs` by bisection between the peaks of allocated and of reserved memory.

    The first probe is the memory of the card itself, so that the verdict about this card does not depend on the
    tolerance of the bisection.
    """
    probe = target.capacity - target.beside if target.capacity else None
    low, high = allocated, reserved
    while high - low > max(MIB, high // 100):
        middle = probe if probe is not None and low < probe < high else (low + high) // 2
        probe = None
        low, high = (low, middle) if CachingAllocator(middle).replay(requests) else (middle, high)
    return high + target.beside


def _measure_cuda(
    build: Callable[[], State], step: Callable[[State], Any], iterations: int, limit: int | None = None
) -> Peak:
    if not torch.cuda.is_available():
        raise RuntimeError("there is no CUDA device to measure on; predict_peak needs none")
    if iterations < 1:
        raise ValueError(f"a peak needs at least one iteration, got {iterations}")
    peaks = []
    with _allocator_limit(limit), torch.device("cuda"):
        state = build()
        torch.cuda.synchronize()
        # The order matters: the peak is reset to the memory held now, without the blocks that `build` left cached.
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        reserved = 0
        for _ in range(iterations):
            step(state)
            torch.cuda.synchronize()
            peaks.append(torch.cuda.max_memory_allocated())
            reserved = max(reserved, torch.cuda.max_memory_reserved())
            # Gives the next iteration its own peak. The cache stays, as in training: its holes count towards the peak.
            torch.cuda.reset_peak_memory_stats()
    return Peak(max(peaks), iterations=tuple(peaks), peak_reserved=reserved)


@contextmanager
def _allocator_limit(limit: int | None) -> Iterator[None]:
    """Limit PyTorch's allocator on the current CUDA device to this number of bytes within the block."""
    if limit is None:
        yield
        return
    total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    # PyTorch multiplies the fraction by the memory and truncates; without half a byte more, a byte may be missing.
    torch.cuda.set_per_process_memory_fraction(min((max(limit, 0) + 0.5) / total, 1.0))
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
