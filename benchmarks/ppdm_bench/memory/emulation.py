"""Code written for CUDA, run without it: devices, autocast and the functions of ``torch.cuda`` that need a driver.

For the time of a prediction every tensor is taken to live on the target unless it was sent to the host by name
(``.cpu()``, ``.to("cpu")``, ``device="cpu"``): most code says nothing of devices, and code that does says the same of
all its tensors. So a move to the target of what is there already is no copy, as on a machine with CUDA.

Underneath, everything is a tensor on the CPU: fake CUDA tensors need a PyTorch that is linked with CUDA.
"""

import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._C import DispatchKey, DispatchKeySet
from torch._subclasses.fake_tensor import FakeTensor
from torch.amp.autocast_mode import autocast
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack
from torch.utils._pytree import tree_iter, tree_map_only

from ppdm_bench.memory.rules import (
    AUTOCAST_FP32_BY_DTYPE,
    AUTOCAST_HALF,
    AUTOCAST_OTHER,
    AUTOCAST_PROMOTE,
    HALF,
)
from ppdm_bench.memory.trace import Trace

CUDA = torch.device("cuda", 0)
CPU = torch.device("cpu")


@contextmanager
def cuda_world(trace: Trace) -> Iterator[None]:
    """Make this process look, to Python code, like one whose tensors live on a CUDA device."""
    devices = _Devices(trace)
    with ExitStack() as stack:
        for patch in (*_cuda_functions(trace), *devices.patches()):
            stack.enter_context(patch)
        stack.enter_context(_cuda_autocast())
        stack.enter_context(devices)
        yield


# --- devices


class _Devices(TorchFunctionMode):
    """Reads and answers everything that names a device."""

    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self.trace = trace

    def patches(self) -> Iterator[Any]:
        """What a mode does not see: a property of fake tensors, the engine's own thread of calls, moves of modules."""
        told = FakeTensor.device.fget  # type: ignore[attr-defined]
        engine = torch.autograd._engine_run_backward  # type: ignore[attr-defined]
        optimizer = sys.modules["torch.optim.optimizer"]  # `torch.optim` hides its name

        def device(tensor: FakeTensor) -> torch.device:
            return told(tensor) if self.trace.inside else self._device(tensor)

        def run_backward(*args: Any, **kwargs: Any) -> Any:
            # `backward` runs with the mode left, and recomputed blocks run within it.
            if self in _get_current_function_mode_stack():
                return engine(*args, **kwargs)
            with self:
                return engine(*args, **kwargs)

        def apply_to_module(module: nn.Module, convert: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
            with self.trace.moving(module):
                for child in module.children() if recurse else ():
                    child._apply(convert)
                _convert(module, convert)
            return module

        yield mock.patch.object(FakeTensor, "device", property(device))
        # Optimizers take their foreach path for CUDA tensors, unless their type is one that they do not know.
        yield mock.patch.object(optimizer, "_foreach_supported_types", [Tensor, nn.Parameter, FakeTensor])
        yield mock.patch.object(torch.autograd, "_engine_run_backward", run_backward)
        yield mock.patch.object(nn.Module, "_apply", apply_to_module)

    def __torch_function__(
        self,
        function: Callable,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if self.trace.inside:
            return function(*args, **kwargs)
        if function in _ANSWERS:
            return _ANSWERS[function](self._device(args[0]))
        if function is Tensor.to:
            return self._to(args[0], args[1:], kwargs)
        if function in (Tensor.cuda, Tensor.cpu):
            return self._move(args[0], CUDA if function is Tensor.cuda else CPU)
        named = _as_device(kwargs.get("device"))
        if named is None:
            return function(*args, **kwargs)
        with self.trace.placing("host" if named.type == "cpu" else "target"):
            return function(*args, **kwargs | {"device": CPU})

    def _to(self, x: Tensor, args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor:
        """``x.to(...)``: the device is taken out and followed, the rest is left to PyTorch."""
        named = _as_device(kwargs.pop("device", None))
        if args and isinstance(args[0], Tensor):
            named, kwargs["dtype"], args = self._device(args[0]), args[0].dtype, args[1:]
        elif args and not isinstance(args[0], torch.dtype):
            named, args = _as_device(args[0]), args[1:]
        kwargs |= dict(zip(("dtype", "non_blocking", "copy"), args, strict=False))
        moved = x if named is None else self._move(x, named)
        conversion = {k: v for k, v in kwargs.items() if k != "non_blocking" and v not in (None, False)}
        if not conversion:
            return moved
        converted: Tensor = moved.to(**conversion)
        return converted

    def _move(self, x: Tensor, device: torch.device) -> Tensor:
        if self.trace.moving_module and not isinstance(x, FakeTensor):
            return x  # a real module is left as it is; its tensors count where they are used
        if device.type == "cuda" and not isinstance(x, FakeTensor | nn.Parameter) and not self.trace.is_followed(x):
            self.trace.put_on_host(x)  # a real volume, such as a data set's: only what is made of it counts
        if self._device(x).type == device.type:
            return x
        with self.trace.placing("host" if device.type == "cpu" else "target"):
            return x.clone()

    def _device(self, x: Tensor) -> torch.device:
        return CPU if self.trace.is_host(x) else CUDA


@torch.no_grad()
def _convert(module: nn.Module, convert: Callable[[Tensor], Tensor]) -> None:
    """What ``Module._apply`` does to a module's own tensors; fake ones are swapped there, which weak references forbid."""
    for name, p in module._parameters.items():
        if p is not None and (converted := convert(p)) is not p:
            module._parameters[name] = nn.Parameter(converted, p.requires_grad)
    for name, buffer in module._buffers.items():
        if buffer is not None:
            module._buffers[name] = convert(buffer)


_ANSWERS: Mapping[Callable, Callable[[torch.device], Any]] = {
    Tensor.device.__get__: lambda device: device,  # type: ignore[attr-defined]
    Tensor.is_cuda.__get__: lambda device: device.type == "cuda",  # type: ignore[attr-defined]
    Tensor.is_cpu.__get__: lambda device: device.type == "cpu",  # type: ignore[attr-defined]
    Tensor.get_device: lambda device: device.index if device.type == "cuda" else -1,
}


def _as_device(value: Any) -> torch.device | None:
    if value is None or isinstance(value, torch.device):
        return value
    return torch.device("cuda", value) if isinstance(value, int) else torch.device(value)


def _cuda_functions(trace: Trace) -> Iterator[Any]:
    """Functions that need a driver, and what they say of a device whose memory is followed."""
    timeline = trace.timeline

    def live(*_: Any) -> int:
        return next(reversed(list(timeline.live())), 0)

    def nothing(*_: Any, **__: Any) -> None:
        return None

    for name in ("synchronize", "empty_cache", "set_device", "reset_peak_memory_stats", "reset_max_memory_allocated"):
        yield mock.patch.object(torch.cuda, name, nothing)
    yield mock.patch.object(torch.cuda, "memory_allocated", live)
    yield mock.patch.object(torch.cuda, "max_memory_allocated", lambda *_: timeline.peak()[1])
    yield mock.patch.object(torch.cuda, "current_device", lambda: 0)


# --- autocast


@contextmanager
def _cuda_autocast() -> Iterator[None]:
    """Put CUDA's autocast in the place of the CPU's, and let every region be one of the CPU's.

    The kernels are registered with the dispatcher, so they hold for every way to an operator, and for blocks that are
    recomputed in the backward pass.
    """
    original = autocast.__init__

    def init(self: autocast, device_type: str, dtype: torch.dtype | None = None, *args: Any, **kwargs: Any) -> None:
        if dtype is None and device_type == "cuda":
            dtype = torch.float16
        original(self, "cpu", dtype, *args, **kwargs)

    library = torch.library.Library("aten", "IMPL", "AutocastCPU")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that kernels are overridden is the purpose
            for name, kernel in _autocast_kernels():
                library.impl(name, kernel)
        with mock.patch.object(autocast, "__init__", init):
            yield
    finally:
        library._destroy()


def _autocast_kernels() -> Iterator[tuple[str, Callable]]:
    """Every operator that CUDA's autocast covers otherwise than the CPU's, and what it does with it."""
    on_cuda, on_cpu = _registered("AutocastCUDA"), _registered("AutocastCPU")
    for name in sorted(on_cuda - AUTOCAST_OTHER):
        if name in AUTOCAST_HALF:
            if name not in on_cpu:
                yield name, partial(_cast_and_run, _overload(name), _half)
        elif name in AUTOCAST_FP32_BY_DTYPE:
            yield name, partial(_run_to_fp32, _overload(name))
        else:
            yield name, partial(_cast_and_run, _overload(name), _widest if name in AUTOCAST_PROMOTE else _fp32)
    for name in sorted(on_cpu - on_cuda):
        if not name.endswith(".padding"):  # a convolution after all, which both run in half precision
            yield name, torch.library.fallthrough_kernel


def _registered(key: str) -> set[str]:
    names = torch._C._dispatch_get_all_op_names()
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    return {name.removeprefix("aten::") for name in names if name.startswith("aten::") and has(name, key)}


def _overload(name: str) -> Any:
    packet, _, overload = name.partition(".")
    return getattr(getattr(torch.ops.aten, packet), overload or "default")


def _cast_and_run(op: Callable, dtype_for: Callable[[list[Tensor]], torch.dtype], /, *args: Any, **kwargs: Any) -> Any:
    eligible = [x for x in tree_iter((args, kwargs)) if isinstance(x, Tensor) and _eligible(x)]
    with torch._C._ExcludeDispatchKeyGuard(DispatchKeySet(DispatchKey.AutocastCPU)):
        if eligible:
            dtype = dtype_for(eligible)
            args, kwargs = tree_map_only(Tensor, lambda x: x.to(dtype) if _eligible(x) else x, (args, kwargs))
        return op(*args, **kwargs)


def _run_to_fp32(op: Callable, /, *args: Any, **kwargs: Any) -> Any:
    if _eligible(args[0]) and kwargs.get("dtype") is None:
        kwargs["dtype"] = torch.float32
    with torch._C._ExcludeDispatchKeyGuard(DispatchKeySet(DispatchKey.AutocastCPU)):
        return op(*args, **kwargs)


def _eligible(x: Tensor) -> bool:
    return x.is_floating_point() and x.dtype is not torch.float64


def _fp32(_: list[Tensor]) -> torch.dtype:
    return torch.float32


def _half(_: list[Tensor]) -> torch.dtype:
    return torch.get_autocast_dtype("cpu")


def _widest(tensors: list[Tensor]) -> torch.dtype:
    return torch.float32 if any(x.dtype not in HALF for x in tensors) else tensors[0].dtype
