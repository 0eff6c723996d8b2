"""Convolutions computed slab by slab, so that their temporary memory has the size of one slab.

cuDNN copies its operands: if the channels are not innermost in memory, its workspace is as large as input and output
together. A slab is a range of output rows along the first spatial axis, with the input rows that they depend on. If the
convolution includes the norm and the activation before it, these are also computed one slab at a time. The results
equal those of the whole convolution, up to rounding.

Axes: N batch, C channels, then the spatial axes.
"""

from collections.abc import Iterator
from itertools import pairwise
from math import prod
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from ppdm.network.small_convolution import aten_settings

aten = torch.ops.aten

# Maximum number of slabs, and minimum bytes of input and output in a slab: smaller slabs would leave a GPU idle.
MOST_SLABS, LEAST_BYTES = 4, 1 << 24


class Slab(NamedTuple):
    """Output rows, the input rows that they depend on, and the numbers of rows of zero padding before and after."""

    outputs: slice
    inputs: slice
    before: int
    after: int


def cut(depth: int, kernel: int, stride: int, number: int) -> Iterator[Slab]:
    """Yield the slabs of a convolution whose input has ``depth`` rows; at most one slab for each output row.

    The kernel size is odd and the padding is half of it.
    """
    rows = (depth - 1) // stride + 1
    number = min(number, rows)
    for begin, end in pairwise(rows * k // number for k in range(number + 1)):
        first = begin * stride - kernel // 2
        last = (end - 1) * stride - kernel // 2 + kernel
        yield Slab(slice(begin, end), slice(max(first, 0), min(last, depth)), max(-first, 0), max(last - depth, 0))


def output_shape(x: Tensor, weight: Tensor, stride: int) -> tuple[int, ...]:
    """Return the output shape of the convolution of x; the kernel size is odd and the padding is half of it."""
    return (x.shape[0], weight.shape[0], *((size - 1) // stride + 1 for size in x.shape[2:]))


def slabs_for(x: Tensor, weight: Tensor, stride: int, dtype: torch.dtype) -> int:
    """Return the number of slabs of a convolution.

    It is 1 on the CPU, which makes no copies, and 1 for 2-D slices, which are already computed in many small batches.
    """
    if not x.is_cuda or x.ndim < 5:
        return 1
    size = dtype.itemsize * (x.numel() + prod(output_shape(x, weight, stride)))
    return min(max(size // LEAST_BYTES, 1), MOST_SLABS)


class NoOperation:
    """No operation before the convolution; its subclass is an operation that runs slab by slab with it."""

    def __call__(self, part: Tensor) -> Tensor:
        """Return the convolution's input for a slab of x."""
        return part

    def backward(self, slope: Tensor, part: Tensor) -> Tensor:
        """Turn the gradient of a slab's convolution input into the part that is summed for x; may work in place."""
        return slope

    def finish(self, slope: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Turn the summed gradient into the gradient of x, in place; return the gradients of scale and shift."""
        return None, None


class NormAndActivation(NoOperation):
    """``silu(norm(x))`` before the convolution, with group statistics of the whole x in the dtype of the scale.

    Args:
        x: (N, C, *spatial).
        scale, shift: applied after the normalisation, (N, C).
        groups, eps: parameters of the group normalisation.
    """

    def __init__(self, x: Tensor, scale: Tensor, shift: Tensor, groups: int, eps: float) -> None:
        # Each group is within one portion, so that the cast copy is only as large as a slab.
        portions = x.reshape(x.shape[0], groups, -1).chunk(MOST_SLABS, dim=1)
        found = [torch.var_mean(portion.to(scale.dtype), dim=2, correction=0) for portion in portions]
        variance, mean = (torch.cat(each, dim=1) for each in zip(*found, strict=True))
        self.x, self.scale, self.groups = x, scale, groups
        self.mean, self.deviation = self._by_channel(mean), self._by_channel((variance + eps).rsqrt())  # 1/σ; (N, C)
        self.slope, self.offset = (
            _by_voxel(v, x) for v in (self.deviation * scale, shift - self.mean * self.deviation * scale)
        )
        # The gradients of shift and of scale, the latter still without its factor 1/σ.
        self.of_shift, self.of_centred = torch.zeros_like(scale), torch.zeros_like(scale)

    def __call__(self, part: Tensor) -> Tensor:
        return F.silu(self._normalised(part), inplace=True)

    def backward(self, slope: Tensor, part: Tensor) -> Tensor:
        aten.silu_backward.grad_input(slope, self._normalised(part), grad_input=slope)
        space = tuple(range(2, part.ndim))
        self.of_shift += slope.sum(space, dtype=self.scale.dtype)
        self.of_centred += (part - _by_voxel(self.mean, part)).mul_(slope).sum(space)
        return slope

    def finish(self, slope: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Compute the gradient of x: ``(scale·slope − a − (x − μ)/σ·b)/σ``, where μ is the mean.

        a is the mean of ``scale·slope`` over a group, b the mean of ``scale·slope·(x − μ)/σ``.
        """
        of_scale = self.of_centred * self.deviation
        a, b = (self._group_mean(self.scale * sums) for sums in (self.of_shift, of_scale))
        by_x = -b * self.deviation.square()
        by_x, rest = (_by_voxel(v, slope) for v in (by_x, -by_x * self.mean - a * self.deviation))
        for portion, part in zip(slope.chunk(MOST_SLABS, dim=2), self.x.chunk(MOST_SLABS, dim=2), strict=True):
            torch.addcmul(torch.addcmul(rest, part, by_x), portion, self.slope, out=portion)
        return of_scale, self.of_shift

    def _normalised(self, part: Tensor) -> Tensor:
        return torch.addcmul(self.offset, part, self.slope, out=part.new_empty(part.shape))

    def _group_mean(self, sums: Tensor) -> Tensor:
        """Turn sums over space into means over groups; (N, C)."""
        means = sums.unflatten(1, (self.groups, -1)).mean(2) / self.x.shape[2:].numel()
        return self._by_channel(means)

    def _by_channel(self, values: Tensor) -> Tensor:
        """Repeat the values of groups for each of their channels; (N, C)."""
        return values.repeat_interleave(self.x.shape[1] // self.groups, dim=1)


class SlabbedConvolution(Function):
    """``convolve(x)`` or, with a scale and a shift (N, C), ``convolve(silu(norm(x)))``; keeps only x for the backward.

    The backward pass holds x, the gradients of input and output, and the temporary memory of one slab. The kernel size
    is odd and the padding is half of it. ``norm`` is (groups, eps), ``dtype`` the dtype of the arithmetic, ``layout``
    the memory layout of the convolution's input.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        scale: Tensor | None,
        shift: Tensor | None,
        norm: tuple[int, float],
        stride: int,
        dtype: torch.dtype,
        layout: torch.memory_format,
        slabs: int,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, scale, shift)
        ctx.settings = norm, stride, dtype, layout, slabs
        before = NoOperation() if scale is None or shift is None else NormAndActivation(x, scale, shift, *norm)
        cast, offset, settings = weight.to(dtype), bias.to(dtype), _settings(weight, stride)
        out = x.new_empty(output_shape(x, weight, stride), dtype=dtype)
        for slab in cut(x.shape[2], weight.shape[2], stride, slabs):
            # No local variables, so that a slab is freed before the next one is computed.
            out[:, :, slab.outputs] = torch.convolution(
                _laid_out(before(x[:, :, slab.inputs]), slab, dtype, layout), cast, offset, *settings
            )
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale, shift = ctx.saved_tensors
        norm, stride, dtype, layout, slabs = ctx.settings
        before = NoOperation() if scale is None else NormAndActivation(x, scale, shift, *norm)
        needed = scale is not None or ctx.needs_input_grad[0]
        of_x = torch.zeros_like(x) if needed else None
        of_weight, of_bias = torch.zeros_like(weight), weight.new_zeros(len(weight))
        cast, settings = weight.to(dtype), _settings(weight, stride)
        for slab in cut(x.shape[2], weight.shape[2], stride, slabs):
            part = x[:, :, slab.inputs]
            slope, *found = aten.convolution_backward(
                gradient[:, :, slab.outputs],
                _laid_out(before(part), slab, dtype, layout),
                cast,
                [len(weight)],
                *settings,
                [needed, True, True],
            )
            of_weight += found[0]
            of_bias += found[1]
            if of_x is not None:
                slope = slope[:, :, slab.before : slope.shape[2] - slab.after].to(x.dtype)
                of_x[:, :, slab.inputs] += before.backward(slope, part)
            del slope
        return of_x, of_weight, of_bias, *(before.finish(of_x) if of_x is not None else (None, None)), *[None] * 5


def _by_voxel(values: Tensor, x: Tensor) -> Tensor:
    """Reshape values of channels, (N, C), so that they broadcast over x."""
    return values.reshape(*values.shape, *[1] * (x.ndim - 2))


def _laid_out(part: Tensor, slab: Slab, dtype: torch.dtype, layout: torch.memory_format) -> Tensor:
    """Add the slab's rows of zero padding; cast and lay out the result for the convolution."""
    if slab.before or slab.after:
        part = F.pad(part, [0, 0] * (part.ndim - 3) + [slab.before, slab.after])
    return part.to(dtype, memory_format=layout)


def _settings(weight: Tensor, stride: int) -> tuple[Any, ...]:
    return aten_settings(weight.ndim - 2, stride, weight.shape[2] // 2, pads_first=False)
