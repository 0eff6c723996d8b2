"""Small convolutions on the CPU, computed by oneDNN.

PyTorch computes a 3-D convolution of one small volume in fp32 without oneDNN: it writes a matrix of all neighbourhoods,
27 times as large as the volume, and multiplies it (``ConvParams::use_mkldnn`` in ATen's Convolution.cpp). On one thread
this takes 2 to 9 times as long. A convolution in groups always goes to oneDNN. So the volume is repeated, and each copy
is convolved into half of the channels. These are the same operations, and results differ only by rounding.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

__all__ = ["SmallConvolution", "convolve", "convolve_backward", "is_small"]

aten = torch.ops.aten

_LARGE = 20480  # channels × depth × height above which PyTorch takes oneDNN


def is_small(x: Tensor, weight: Tensor) -> bool:
    """Whether PyTorch would convolve x (N, C, D, H, W) without oneDNN, although oneDNN is faster.

    Kernels of one voxel are matrix products and need no oneDNN. Tensors with their channels innermost in memory are
    left to PyTorch, which returns the same layout.
    """
    is_one_volume = x.device.type == "cpu" and x.dtype is torch.float32 and x.ndim == 5 and len(x) == 1
    return (
        is_one_volume
        and x.shape[1] * x.shape[2] * x.shape[3] <= _LARGE
        and 1 < weight.shape[-1] <= 3
        and len(weight) % 2 == 0
        and x.is_contiguous()
        and weight.is_contiguous()
    )


def convolve(x: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: int) -> Tensor:
    """Convolve x (N, C, *spatial) without a graph."""
    small = is_small(x, weight)
    return torch.convolution(_repeated(x) if small else x, weight, bias, *_geometry(x, stride, padding, 1 + small))


def convolve_backward(
    gradient: Tensor, x: Tensor, weight: Tensor, wanted: Sequence[bool], stride: int, padding: int
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return those of the gradients of x, weight and bias that are wanted."""
    small = is_small(x, weight)
    of_x, of_weight, of_bias = aten.convolution_backward(
        gradient,
        _repeated(x) if small else x,
        weight,
        [len(weight)],
        *_geometry(x, stride, padding, 1 + small),
        list(wanted),
    )
    if small and of_x is not None:
        of_x = of_x.view(2, *x.shape[1:]).sum(0, keepdim=True)
    return of_x, of_weight, of_bias


class SmallConvolution(Function):
    """A small convolution that keeps its input once for the backward pass, not its repetition."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.how = stride, padding
        return convolve(x, weight, bias, stride, padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        return *convolve_backward(gradient, x, weight, ctx.needs_input_grad[:3], *ctx.how), None, None


def _repeated(x: Tensor) -> Tensor:
    """The volume twice, as twice as many channels."""
    return torch.cat([x, x], dim=1)


def _geometry(x: Tensor, stride: int, padding: int, groups: int) -> tuple[Any, ...]:
    """Stride, padding, dilation, transposed, output padding and groups of a convolution."""
    dims = x.ndim - 2
    return [stride] * dims, [padding] * dims, [1] * dims, False, [0] * dims, groups
