"""CUDA's decompositions of operators that PyTorch decomposes differently on the CPU."""

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from math import prod
from typing import Any

import torch
from torch import Tensor

from ppdm_bench.predictor.recurrent_rules import CUDA_LAYERS

aten = torch.ops.aten


def cuda_composites() -> AbstractContextManager[None]:
    """Use CUDA's decompositions until the end of the block."""
    return kernels_replaced(_DECOMPOSITIONS.items(), "CPU", "AutogradCPU")


@contextmanager
def kernels_replaced(kernels: Iterable[tuple[str, Callable[..., Any]]], *keys: str) -> Iterator[None]:
    """Register kernels of ``aten`` with these dispatch keys until the end of the block.

    They also apply to calls from C++ and to recomputation in the backward pass, because the dispatcher calls them.
    """
    library = torch.library.Library("aten", "IMPL")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch warns about overridden kernels; here they are intended
            for name, kernel in kernels:
                for key in keys:
                    library.impl(name, kernel, key)
        yield
    finally:
        library._destroy()


def has_cuda_decomposition(op: Any) -> bool:
    """Whether CUDA's decomposition of an operator is defined here."""
    return op.name().removeprefix("aten::") in _DECOMPOSITIONS


def _dropout(x: Tensor, p: float, train: bool) -> Tensor:
    """Fused kernel that saves a boolean mask (ATen/native/Dropout.cpp); the CPU saves a mask in the dtype of x."""
    if train and 0 < p < 1 and x.numel():
        return aten.native_dropout.default(x, p, train)[0]
    if not train or p == 0 or not x.numel():
        return x
    return x * x.new_zeros(())  # p = 1


def _group_norm(
    x: Tensor,
    groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Tensor:
    """Make the input contiguous and normalise it; the result is contiguous (ATen/native/group_norm.cpp)."""
    n, c, *rest = x.shape
    if c % groups:
        raise RuntimeError(f"group_norm: {c} channels do not divide into {groups} groups")
    return aten.native_group_norm.default(x.contiguous(), weight, bias, n, c, prod(rest), groups, eps)[0]


def _softmax_of(kernel: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def softmax(x: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
        """Convert fp16 to fp32 inside the kernel, without a copy; copy bf16 first (ATen/native/SoftMax.cpp)."""
        if x.dtype is torch.float16 and dtype is torch.float32:
            return kernel(x, dim, True)
        return kernel(x if dtype is None else x.to(dtype), dim, False)

    return softmax


_DECOMPOSITIONS: dict[str, Callable[..., Any]] = {
    "dropout": _dropout,
    "group_norm": _group_norm,
    "softmax.int": _softmax_of(aten._softmax.default),
    "log_softmax.int": _softmax_of(aten._log_softmax.default),
    **CUDA_LAYERS,
}
