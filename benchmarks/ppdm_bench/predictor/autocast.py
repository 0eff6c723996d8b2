"""CUDA's autocast rules, applied to CPU tensors in place of the CPU's own rules."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._C import DispatchKey, DispatchKeySet
from torch.amp.autocast_mode import autocast
from torch.utils._pytree import tree_iter, tree_map_only

from ppdm_bench.predictor.convolution_rules import HALF
from ppdm_bench.predictor.cuda_composites import kernels_replaced
from ppdm_bench.predictor.kernel_rules import AUTOCAST_FP32_BY_DTYPE, AUTOCAST_HALF, AUTOCAST_OTHER, AUTOCAST_PROMOTE


@contextmanager
def cuda_autocast() -> Iterator[None]:
    """Replace the CPU's autocast rules by CUDA's, and turn every autocast region into a CPU region."""
    with kernels_replaced(_kernels(), "AutocastCPU"), ExitStack() as stack:
        for patch in _patches():
            stack.enter_context(patch)
        yield


def _patches() -> Iterator[Any]:
    """Turn every autocast region into a CPU region; queries about CUDA, as by checkpointing, return its state."""
    init, get_dtype, is_enabled = autocast.__init__, torch.get_autocast_dtype, torch.is_autocast_enabled

    def enabled(device_type: str = "cuda") -> bool:
        return is_enabled("cpu" if device_type == "cuda" else device_type)

    def dtype(device_type: str) -> torch.dtype:
        return get_dtype("cpu" if device_type == "cuda" and is_enabled("cpu") else device_type)

    def cpu_init(self: autocast, device_type: str, dtype: torch.dtype | None = None, *args: Any, **kwargs: Any) -> None:
        if dtype is None:
            dtype = torch.get_autocast_dtype(device_type)
        init(self, "cpu", dtype, *args, **kwargs)

    yield mock.patch.object(autocast, "__init__", cpu_init)
    yield mock.patch.object(torch, "is_autocast_enabled", enabled)
    yield mock.patch.object(torch, "get_autocast_dtype", dtype)


def _kernels() -> Iterator[tuple[str, Callable]]:
    """Yield every operator that the autocasts of CUDA and of the CPU treat differently, with the kernel to register."""
    on_cuda, on_cpu = _registered("AutocastCUDA"), _registered("AutocastCPU")
    for name in sorted(on_cuda - AUTOCAST_OTHER):
        if name in AUTOCAST_HALF:
            if name not in on_cpu:
                yield name, partial(_cast_and_run, _overload(name), _half)
        elif name in AUTOCAST_FP32_BY_DTYPE:
            yield name, partial(_run_to_fp32, _overload(name))
        else:
            yield name, partial(_cast_and_run, _overload(name), _widest_dtype if name in AUTOCAST_PROMOTE else _fp32)
    for name in sorted(on_cpu - on_cuda):
        if not name.endswith(".padding"):  # convolutions, which both run in half precision
            yield name, torch.library.fallthrough_kernel


def _registered(key: str) -> set[str]:
    names = torch._C._dispatch_get_all_op_names()
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    return {name.removeprefix("aten::") for name in names if name.startswith("aten::") and has(name, key)}


def _overload(name: str) -> Any:
    packet, _, overload = name.partition(".")
    return getattr(getattr(torch.ops.aten, packet), overload or "default")


def _cast_and_run(op: Callable, dtype_for: Callable[[list[Tensor]], torch.dtype], /, *args: Any, **kwargs: Any) -> Any:
    castable = [x for x in tree_iter((args, kwargs)) if isinstance(x, Tensor) and _is_castable(x)]
    with torch._C._ExcludeDispatchKeyGuard(DispatchKeySet(DispatchKey.AutocastCPU)):
        if castable:
            dtype = dtype_for(castable)
            args, kwargs = tree_map_only(Tensor, lambda x: x.to(dtype) if _is_castable(x) else x, (args, kwargs))
        return op(*args, **kwargs)


def _run_to_fp32(op: Any, /, *args: Any, **kwargs: Any) -> Any:
    arguments = dict(zip((argument.name for argument in op._schema.arguments), args, strict=False)) | kwargs
    if _is_castable(args[0]) and arguments.get("dtype") is None:
        arguments["dtype"] = torch.float32
    with torch._C._ExcludeDispatchKeyGuard(DispatchKeySet(DispatchKey.AutocastCPU)):
        return op(**arguments)


def _is_castable(x: Tensor) -> bool:
    return x.is_floating_point() and x.dtype is not torch.float64


def _fp32(_: list[Tensor]) -> torch.dtype:
    return torch.float32


def _half(_: list[Tensor]) -> torch.dtype:
    return torch.get_autocast_dtype("cpu")


def _widest_dtype(tensors: list[Tensor]) -> torch.dtype:
    return torch.float32 if any(x.dtype not in HALF for x in tensors) else tensors[0].dtype
