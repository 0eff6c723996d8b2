"""Stand-ins for functions that call the CUDA driver: a simulated device with memory counters and no computation."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any, Self
from unittest import mock

import torch
from torch import Tensor

from ppdm_bench.predictor.sizes import PredictionError
from ppdm_bench.predictor.target import GIB, Target
from ppdm_bench.predictor.trace import Trace

NAME = "predicted CUDA device"
_UNTOLD_CAPACITY = 80 * GIB  # the capacity that code sees if the target has none

_COUNTED = ("allocated", "active", "reserved", "requested")
_NOTHING = (
    "synchronize",
    "empty_cache",
    "set_device",
    "init",
    "_lazy_init",
    "ipc_collect",
    "manual_seed",
    "manual_seed_all",
    "seed",
    "seed_all",
    "set_rng_state",
    "set_rng_state_all",
    "set_stream",
    "set_per_process_memory_fraction",
    "reset_accumulated_memory_stats",
)


def driver_patches(trace: Trace) -> Iterator[Any]:
    """Patches of ``torch.cuda``, ``torch.accelerator`` and ``torch.Generator``."""
    target = trace.target or Target()
    for name, stand_in in {**dict.fromkeys(_NOTHING, _nothing), **_facts(target), **_counters(trace, target)}.items():
        for module in (torch.cuda, torch.cuda.random, torch.cuda.memory):  # code may call it where it is defined
            if name in vars(module):
                yield mock.patch.object(module, name, stand_in)
    for name, stand_in in _ACCELERATOR.items():
        yield mock.patch.object(torch.accelerator, name, stand_in)
    for name in ("_record_memory_history", "_dump_snapshot"):
        yield mock.patch.object(torch.cuda.memory, name, _nothing)
    for name in ("range_push", "range_pop", "mark"):
        yield mock.patch.object(torch.cuda.nvtx, name, _nothing)
    for name in ("CUDAGraph", "graph", "make_graphed_callables", "CUDAPluggableAllocator", "MemPool"):
        if hasattr(torch.cuda, name):
            yield mock.patch.object(torch.cuda, name, _refusal(name))
    for name, dtype in _TYPES.items():
        yield mock.patch.object(torch.cuda, name, _TensorType(name, (), {"dtype": dtype}))
    yield mock.patch.object(torch, "Generator", _Generator)
    yield mock.patch.object(Tensor, "record_stream", _nothing)


def _facts(target: Target) -> dict[str, Any]:
    """Properties of the device that code can query."""
    major, minor = target.compute_capability
    properties = SimpleNamespace(
        name=NAME,
        major=major,
        minor=minor,
        total_memory=target.capacity or _UNTOLD_CAPACITY,
        multi_processor_count=1,
    )
    stream = _Stream()
    return {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_name": lambda *_, **__: NAME,
        "get_device_capability": lambda *_, **__: target.compute_capability,
        "get_device_properties": lambda *_, **__: properties,
        "is_bf16_supported": lambda *_, **__: major >= 8,
        "is_current_stream_capturing": lambda: False,
        "get_rng_state": _no_state,
        "get_rng_state_all": lambda: [_no_state()],
        "initial_seed": lambda: 0,
        "current_stream": lambda *_, **__: stream,
        "default_stream": lambda *_, **__: stream,
        "stream": lambda *_, **__: nullcontext(),
        "device": lambda *_, **__: nullcontext(),
        "Stream": _Stream,
        "Event": _Event,
    }


def _counters(trace: Trace, target: Target) -> dict[str, Callable[..., Any]]:
    """Memory counters; reserved equals allocated here, because the allocator model needs the complete sequence."""
    timeline = trace.timeline
    since = Counter[str]()

    def reset(*_: Any, **__: Any) -> None:
        since["event"] = timeline.now

    def live(*_: Any, **__: Any) -> int:
        return timeline.peak_between(timeline.now, None)

    def most(*_: Any, **__: Any) -> int:
        return timeline.peak_between(since["event"], None)

    def information(*_: Any, **__: Any) -> tuple[int, int]:
        total = target.capacity or _UNTOLD_CAPACITY
        return max(total - target.context - live(), 0), total

    def statistics(*_: Any, **__: Any) -> Counter[str]:
        kinds = ("all", "large_pool", "small_pool")
        bytes_now = {f"{what}_bytes.{kind}.current": live() for what in _COUNTED for kind in kinds}
        bytes_most = {f"{what}_bytes.{kind}.peak": most() for what in _COUNTED for kind in kinds}
        return Counter(bytes_now | bytes_most)  # counters that are not simulated, such as retries, are 0

    def summary(*_: Any, **__: Any) -> str:
        return f"{NAME}: {live():,} bytes allocated, {most():,} at the most"

    return {
        "memory_stats": statistics,
        "memory_summary": summary,
        "max_memory_cached": most,
        "memory_cached": live,
        "reset_max_memory_cached": reset,
        "memory_allocated": live,
        "max_memory_allocated": most,
        "memory_reserved": live,
        "max_memory_reserved": most,
        "reset_peak_memory_stats": reset,
        "reset_max_memory_allocated": reset,
        "mem_get_info": information,
    }


def _nothing(*_: Any, **__: Any) -> None:
    return None


def _refusal(name: str) -> Callable[..., Any]:
    def refuse(*_: Any, **__: Any) -> Any:  # of a class, because type hints of code name it
        raise PredictionError(
            f"torch.cuda.{name} takes memory of its own that a prediction does not follow; run the code without it, "
            "or measure it"
        )

    return type(name, (), {"__new__": refuse})


_TYPES = {
    "FloatTensor": torch.float32,
    "DoubleTensor": torch.float64,
    "HalfTensor": torch.float16,
    "BFloat16Tensor": torch.bfloat16,
    "ByteTensor": torch.uint8,
    "CharTensor": torch.int8,
    "ShortTensor": torch.int16,
    "IntTensor": torch.int32,
    "LongTensor": torch.int64,
    "BoolTensor": torch.bool,
}


class _TensorType(type):
    """A legacy tensor type on the device, such as ``torch.cuda.FloatTensor``."""

    dtype: torch.dtype

    def __call__(cls, *of: Any) -> Tensor:
        if len(of) == 1 and isinstance(of[0], list | tuple) and not isinstance(of[0], torch.Size):
            return torch.tensor(of[0], dtype=cls.dtype, device="cuda")
        return torch.empty(*of, dtype=cls.dtype, device="cuda")

    def __instancecheck__(cls, x: object) -> bool:
        return isinstance(x, Tensor) and x.is_cuda and x.dtype is cls.dtype


def _no_state(*_: Any, **__: Any) -> Tensor:
    return torch.zeros(16, dtype=torch.uint8, device="cpu")


_ACCELERATOR: dict[str, Callable[..., Any]] = {
    "is_available": lambda: True,
    "current_accelerator": lambda *_, **__: torch.device("cuda"),
    "device_count": lambda: 1,
    "current_device_index": lambda: 0,
    "synchronize": _nothing,
    "current_stream": lambda *_, **__: _Stream(),
}


class _Generator(torch.Generator):
    """A generator on the CPU, whatever device the code requests."""

    def __new__(cls, device: Any = "cpu") -> Self:
        return super().__new__(cls, "cpu")  # type: ignore[call-arg]


class _Stream:
    """A stream or an event that is always complete."""

    cuda_stream = 0

    def __init__(self, *_: Any, **__: Any) -> None:
        self.wait_stream = self.wait_event = self.wait = self.synchronize = self.record = _nothing

    def query(self) -> bool:
        """Whether all work is complete."""
        return True

    def is_capturing(self) -> bool:
        """Whether a graph is being captured."""
        return False

    def record_event(self, event: Any = None) -> Any:
        """Record an event now."""
        return event or _Event()

    def elapsed_time(self, end: Any) -> float:
        """Milliseconds between two events: always 0, because nothing is computed."""
        return 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None: ...


class _Event(_Stream):
    """An event that is always complete."""
