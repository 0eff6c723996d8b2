"""Replacements of functions that call the CUDA driver: they simulate a device and its memory counters."""

from collections import Counter
from collections.abc import Callable, Iterator, Sized
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
_DEFAULT_CAPACITY = 80 * GIB  # the capacity that code sees if the target has none

_COUNTED = ("allocated", "active", "reserved", "requested")
_NOTHING = (
    *("init", "_lazy_init", "set_device", "set_stream", "synchronize", "_sleep", "check_error", "set_sync_debug_mode"),
    *("manual_seed", "manual_seed_all", "seed", "seed_all", "set_rng_state", "set_rng_state_all"),
    *("empty_cache", "ipc_collect", "caching_allocator_enable", "set_per_process_memory_fraction"),
    *("reset_accumulated_memory_stats", "reset_accumulated_host_memory_stats", "reset_peak_host_memory_stats"),
)
# Functions of torch.cuda that allocate memory without an operator.
_REFUSED = (
    *("CUDAGraph", "graph", "make_graphed_callables", "MemPool", "use_mem_pool"),
    *("CUDAPluggableAllocator", "caching_allocator_alloc", "change_current_allocator"),
)


def driver_patches(trace: Trace) -> Iterator[Any]:
    """Patches of ``torch.cuda``, ``torch.accelerator`` and ``torch.Generator``."""
    target = trace.target or Target()
    counters = _counters(trace, target)
    for name, stand_in in {**dict.fromkeys(_NOTHING, _nothing), **_properties(target), **counters}.items():
        for module in (torch.cuda, torch.cuda.random, torch.cuda.memory):  # code may import it from where it is defined
            if name in vars(module):
                yield mock.patch.object(module, name, stand_in)
    for name, stand_in in (_ACCELERATOR | _accelerator_memory(counters)).items():
        if hasattr(torch.accelerator, name):
            yield mock.patch.object(torch.accelerator, name, stand_in)
    major, minor = target.cudnn_version
    yield mock.patch.object(torch.backends.cudnn, "version", return_value=(major * 100 + minor) * 100)
    yield mock.patch.object(torch.backends.cudnn, "is_available", return_value=True)
    yield mock.patch.object(torch.backends.cudnn, "is_acceptable", _is_acceptable)
    yield mock.patch.object(torch.version, "cuda", "12.8")
    yield mock.patch.object(torch.cuda.nccl, "version", return_value=(2, 27, 3))
    if torch.distributed.is_available():
        for module in (torch.distributed, torch.distributed.distributed_c10d):
            yield mock.patch.object(module, "is_nccl_available", return_value=True)
    yield mock.patch.object(torch.cuda, "default_generators", (_Generator(),))
    for name in ("preferred_linalg_library", "preferred_blas_library", "preferred_rocm_fa_library"):
        if hasattr(torch.backends.cuda, name):
            yield mock.patch.object(torch.backends.cuda, name, _nothing)
    profiler = torch.autograd.profiler.profile
    yield mock.patch.object(profiler, "__init__", _without_device(profiler))
    for name, kind in (("Stream", _Stream), ("Event", _Event)):
        yield mock.patch.object(torch, name, kind)
    for name in ("_record_memory_history", "_dump_snapshot"):
        yield mock.patch.object(torch.cuda.memory, name, _nothing)
    yield mock.patch.object(torch.cuda.memory, "_snapshot", return_value={"segments": [], "device_traces": []})
    for name in ("range_push", "range_pop", "range_start", "range_end", "mark"):
        yield mock.patch.object(torch.cuda.nvtx, name, _nothing)
    for name in ("start", "stop"):
        yield mock.patch.object(torch.cuda.profiler, name, _nothing)
    for name in _REFUSED:
        for module in (torch.cuda, torch.cuda.memory):
            if name in vars(module):
                yield mock.patch.object(module, name, _refusal(name))
    for name, dtype in _TYPES.items():
        yield mock.patch.object(torch.cuda, name, TensorType(name, (), {"dtype": dtype}))
    yield mock.patch.object(torch, "set_default_tensor_type", _set_default_tensor_type(torch.set_default_tensor_type))
    yield mock.patch.object(torch, "Generator", _Generator)
    yield mock.patch.object(Tensor, "record_stream", _nothing)


def _properties(target: Target) -> dict[str, Any]:
    """Properties of the device that code can query."""
    major, minor = target.compute_capability
    total = target.capacity or _DEFAULT_CAPACITY
    properties = SimpleNamespace(name=NAME, major=major, minor=minor, total_memory=total, **_PROPERTIES)
    zeros = ("current_device", "initial_seed", "get_sync_debug_mode", "current_blas_handle", "current_solver_handle")
    ones = ("device_count", "utilization", "temperature", "power_draw", "clock_rate", "memory_usage")
    streams = ("current_stream", "default_stream", "get_stream_from_external")
    return {
        **dict.fromkeys(zeros, _returning(0)),
        **dict.fromkeys(ones, _returning(1)),
        **dict.fromkeys(streams, _returning(_Stream())),
        **dict.fromkeys(("is_available", "is_initialized"), _returning(True)),
        **dict.fromkeys(("is_current_stream_capturing", "can_device_access_peer"), _returning(False)),
        **dict.fromkeys(("is_bf16_supported", "is_tf32_supported"), _returning(major >= 8)),
        **dict.fromkeys(("device", "device_of", "StreamContext", "stream"), _Device),
        **dict.fromkeys(("Stream", "ExternalStream"), _Stream),
        "Event": _Event,
        "get_device_name": _returning(NAME),
        "get_device_capability": _returning(target.compute_capability),
        "get_device_properties": _returning(properties),
        "get_arch_list": lambda: [f"sm_{major}{minor}"],
        "get_rng_state": _no_state,
        "get_rng_state_all": lambda: [_no_state()],
        "get_per_process_memory_fraction": _returning(1.0),
        "get_allocator_backend": _returning("native"),
        "graph_pool_handle": _returning((0, 0)),
        "cudart": _Driver,
        "list_gpu_processes": _returning(""),
        "memory_snapshot": lambda *_, **__: [],
        "host_memory_stats": lambda: Counter(),
        "host_memory_stats_as_nested_dict": dict,
    }


def _counters(trace: Trace, target: Target) -> dict[str, Callable[..., Any]]:
    """Memory counters. Reserved memory equals allocated memory: the allocator model needs the complete sequence."""
    timeline = trace.timeline
    reset_at = Counter[str]()

    def reset(*_: Any, **__: Any) -> None:
        reset_at["event"] = timeline.now

    def live(*_: Any, **__: Any) -> int:
        return timeline.peak_between(timeline.now, None)

    def peak(*_: Any, **__: Any) -> int:
        return timeline.peak_between(reset_at["event"], None)

    def information(*_: Any, **__: Any) -> tuple[int, int]:
        total = target.capacity or _DEFAULT_CAPACITY
        return max(total - target.context - live(), 0), total

    def statistics(*_: Any, **__: Any) -> Counter[str]:
        kinds = ("all", "large_pool", "small_pool")
        bytes_now = {f"{what}_bytes.{kind}.current": live() for what in _COUNTED for kind in kinds}
        bytes_most = {f"{what}_bytes.{kind}.peak": peak() for what in _COUNTED for kind in kinds}
        return Counter(bytes_now | bytes_most)  # counters that are not simulated, such as retries, are 0

    def summary(*_: Any, **__: Any) -> str:
        return f"{NAME}: {live():,} bytes allocated, {peak():,} at the peak"

    return {
        **dict.fromkeys(("memory_allocated", "memory_reserved", "memory_cached", "device_memory_used"), live),
        **dict.fromkeys(("max_memory_allocated", "max_memory_reserved", "max_memory_cached"), peak),
        **dict.fromkeys(("reset_peak_memory_stats", "reset_max_memory_allocated", "reset_max_memory_cached"), reset),
        "mem_get_info": information,
        "memory_stats": statistics,
        "memory_stats_as_nested_dict": lambda *_, **__: _nested(statistics()),
        "memory_summary": summary,
    }


def _accelerator_memory(counters: dict[str, Callable[..., Any]]) -> dict[str, Callable[..., Any]]:
    """The same memory counters under the names of ``torch.accelerator``."""
    alike = ("memory_allocated", "max_memory_allocated", "memory_reserved", "max_memory_reserved", "memory_stats")
    return {
        **{name: counters[name] for name in (*alike, "reset_peak_memory_stats")},
        "get_memory_info": counters["mem_get_info"],
        "get_device_capability": lambda *_, **__: {},
    }


def _nested(statistics: Counter[str]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for name, value in statistics.items():
        *path, last = name.split(".")
        inner = nested
        for part in path:
            inner = inner.setdefault(part, {})
        inner[last] = value
    return nested


# Properties of a card that have no effect on memory.
_PROPERTIES = {
    "multi_processor_count": 100,
    "max_threads_per_multi_processor": 2048,
    "max_threads_per_block": 1024,
    "warp_size": 32,
    "regs_per_multiprocessor": 65536,
    "shared_memory_per_block": 48 << 10,
    "shared_memory_per_block_optin": 227 << 10,
    "shared_memory_per_multiprocessor": 228 << 10,
    "L2_cache_size": 50 << 20,
    "is_integrated": 0,
    "is_multi_gpu_board": 0,
    "uuid": "00000000-0000-0000-0000-000000000000",
    "gcnArchName": "",
    "pci_bus_id": 0,
    "pci_device_id": 0,
    "pci_domain_id": 0,
    "clock_rate": 1_500_000,
    "memory_clock_rate": 5_000_000,
    "memory_bus_width": 384,
}


class _Device(nullcontext[None]):
    """Context manager that selects a device or stream; there is only one."""

    idx, prev_idx = 0, -1

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()


class _Driver:
    """The CUDA runtime; every function returns success."""

    def __getattr__(self, name: str) -> Callable[..., int]:
        return lambda *_, **__: 0


def _is_acceptable(x: Tensor) -> bool:
    return x.is_cuda and x.is_floating_point() and torch.backends.cudnn.enabled


def _returning(value: Any) -> Callable[..., Any]:
    return lambda *_, **__: value


def _nothing(*_: Any, **__: Any) -> None:
    return None


def _refusal(name: str) -> Callable[..., Any]:
    def refuse(*_: Any, **__: Any) -> Any:  # in a class, because code uses the name in type hints
        raise PredictionError(
            f"torch.cuda.{name} allocates memory that a prediction does not follow; run the code without it, "
            "or measure the code"
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


class TensorType(type):
    """Metaclass of the legacy tensor types, such as ``torch.cuda.FloatTensor``."""

    dtype: torch.dtype

    def __call__(cls, *of: Any) -> Tensor:
        if len(of) == 1 and isinstance(of[0], Sized) and not isinstance(of[0], torch.Size):  # values, not a size
            return torch.as_tensor(of[0], dtype=cls.dtype, device="cuda")
        return torch.empty(*of or (0,), dtype=cls.dtype, device="cuda")

    def __instancecheck__(cls, x: object) -> bool:
        return isinstance(x, Tensor) and x.is_cuda and x.dtype is cls.dtype


def tensor_type(value: Any) -> Any:
    """Return the type with a name such as ``torch.cuda.FloatTensor``; return other values unchanged."""
    return getattr(torch.cuda, value[11:]) if isinstance(value, str) and value.startswith("torch.cuda.") else value


def _set_default_tensor_type(original: Callable[[Any], None]) -> Callable[[Any], None]:
    def set_default_tensor_type(value: Any) -> None:
        kind = tensor_type(value)
        on_device = isinstance(kind, TensorType)
        if on_device:
            torch.set_default_dtype(kind.dtype)
        else:
            original(kind)
        torch.set_default_device("cuda" if on_device else None)

    return set_default_tensor_type


def _without_device(profiler: Any) -> Callable[..., None]:
    """Return a constructor of a profiler that records only the CPU."""
    start = profiler.__init__

    def init(self: Any, *args: Any, **options: Any) -> None:
        start(self, *args, **{**options, "use_device": None})

    return init


def _no_state(*_: Any, **__: Any) -> Tensor:
    return torch.zeros(16, dtype=torch.uint8, device="cpu")


_ACCELERATOR: dict[str, Callable[..., Any]] = {
    "is_available": _returning(True),
    "current_accelerator": lambda *_, **__: torch.device("cuda"),
    "device_count": _returning(1),
    "device_index": _Device,
    "current_stream": lambda *_, **__: _Stream(),
    **dict.fromkeys(("current_device_index", "current_device_idx"), _returning(0)),
    **dict.fromkeys(("set_device_index", "set_device_idx", "set_stream", "synchronize"), _nothing),
    **dict.fromkeys(("empty_cache", "empty_host_cache", "reset_accumulated_memory_stats"), _nothing),
}


class _Generator(torch.Generator):
    """A random generator on the CPU for any device that the code requests."""

    def __new__(cls, device: Any = "cpu") -> Self:
        return super().__new__(cls, "cpu")  # type: ignore[call-arg]


class _Stream:
    """A stream or an event that is always complete."""

    cuda_stream = stream_id = priority = 0
    device = torch.device("cuda", 0)

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
        """Milliseconds between two events: 1, so that code can divide by it."""
        return 1.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None: ...


class _Event(_Stream):
    """An event that is always complete."""
