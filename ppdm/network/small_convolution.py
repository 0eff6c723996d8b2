"""Small convolutions on the CPU, computed by oneDNN.

PyTorch computes a 3-D convolution of one small volume in fp32 without oneDNN: it writes a matrix of all neighbourhoods,
27 times as large as the volume, and multiplies it (``ConvParams::use_mkldnn`` in ATen's Convolution.cpp). On one thread
this takes 2 to 9 times as long as oneDNN, which PyTorch always uses for a batch of two. So the volume is cut into two
halves along its depth, each with the neighbours that it needs, and they are convolved as a batch. The operations are
the same, and results differ only by rounding.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

__all__ = ["SmallConvolution", "aten_settings", "convolve", "convolve_backward", "is_small"]

aten = torch.ops.aten

_LARGE = 20480  # channels × depth × height above which PyTorch uses oneDNN


def is_small(x: Tensor, weight: Tensor, stride: int) -> bool:
    """Whether PyTorch would convolve x (N, C, D, H, W) without oneDNN, although oneDNN is faster.

    Kernels of one voxel are matrix products and need no oneDNN. Tensors with their channels innermost in memory are
    left to PyTorch, which returns the same layout, and so are volumes whose result has no two halves.
    """
    is_one_volume = x.device.type == "cpu" and x.dtype is torch.float32 and x.ndim == 5 and len(x) == 1
    return (
        is_one_volume
        and x.shape[1] * x.shape[2] * x.shape[3] <= _LARGE
        and weight.shape[-1] == 3
        and _depth(x, stride) % 2 == 0
        and x.is_contiguous()
        and weight.is_contiguous()
    )


def convolve(x: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: int) -> Tensor:
    """Convolve x (N, C, *spatial) without a graph."""
    small = is_small(x, weight, stride)
    settings = aten_settings(x.ndim - 2, stride, padding, pads_first=not small)
    out = torch.convolution(_halves(x, stride) if small else x, weight, bias, *settings)
    return torch.cat(out.split(1), dim=2) if small else out


def convolve_backward(
    gradient: Tensor, x: Tensor, weight: Tensor, wanted: Sequence[bool], stride: int, padding: int
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return those of the gradients of x, weight and bias that are wanted."""
    small = is_small(x, weight, stride)
    of_x, of_weight, of_bias = aten.convolution_backward(
        torch.cat(gradient.chunk(2, dim=2)) if small else gradient,
        _halves(x, stride) if small else x,
        weight,
        [len(weight)],
        *aten_settings(x.ndim - 2, stride, padding, pads_first=not small),
        list(wanted),
    )
    return _joined(of_x, x, stride) if small and of_x is not None else of_x, of_weight, of_bias


class SmallConvolution(Function):
    """A small convolution that keeps its input once for the backward pass, not its halves."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.geometry = stride, padding
        return convolve(x, weight, bias, stride, padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        return *convolve_backward(gradient, x, weight, ctx.needs_input_grad[:3], *ctx.geometry), None, None


def _depth(x: Tensor, stride: int) -> int:
    """Depth of the result of a kernel of three voxels."""
    return (x.shape[2] - 1) // stride + 1


def _halves(x: Tensor, stride: int) -> Tensor:
    """Return the two halves of x as a batch, with the neighbours of their border and zeros outside x."""
    halves = x.new_zeros(2, x.shape[1], (_depth(x, stride) // 2 - 1) * stride + 3, *x.shape[3:])
    for half, (whole, part) in zip(halves, _spans(x, stride), strict=True):
        half[:, part] = x[0, :, whole]
    return halves


def _joined(halves: Tensor, x: Tensor, stride: int) -> Tensor:
    """Return the gradient of x from that of its halves, which share planes."""
    joined = torch.zeros_like(x)
    for half, (whole, part) in zip(halves, _spans(x, stride), strict=True):
        joined[0, :, whole] += half[:, part]
    return joined


def _spans(x: Tensor, stride: int) -> Iterator[tuple[slice, slice]]:
    """For each half, yield its planes in x, and the same planes in the half."""
    outputs = _depth(x, stride) // 2
    for first in (-1, outputs * stride - 1):
        start, end = max(first, 0), min(first + (outputs - 1) * stride + 3, x.shape[2])
        yield slice(start, end), slice(start - first, end - first)


def aten_settings(dims: int, stride: int, padding: int, pads_first: bool) -> tuple[Any, ...]:
    """Return stride, padding, dilation, transposed, output padding and groups, as ATen's convolutions take them.

    Without ``pads_first``, the first spatial axis is not padded, because the input already has these rows.
    """
    first = padding if pads_first else 0
    return [stride] * dims, [first, *[padding] * (dims - 1)], [1] * dims, False, [0] * dims, 1
