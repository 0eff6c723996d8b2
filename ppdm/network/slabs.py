"""Convolutions worked through slab by slab, so that what they take beside input and output has the size of a slab.

cuDNN copies what it convolves: for tensors whose channels are not innermost it takes a workspace of the size of input
and output together. A slab is some rows of the output along the first spatial axis, with the rows of the input that
they see. The norm and the activation before a convolution, if it is given them, are made of a slab at a time too. The
results are those of the whole, to rounding.

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

aten = torch.ops.aten

# So many slabs at most, and none of less than so many bytes of input and output: small ones would leave a GPU idle.
MOST, LEAST = 4, 1 << 24


class Slab(NamedTuple):
    """Rows of an output, the rows of the input that they see, and the rows of zeros before and after those."""

    made: slice
    seen: slice
    before: int
    after: int


def cut(depth: int, kernel: int, stride: int, number: int) -> Iterator[Slab]:
    """The slabs of a convolution of an input of so many rows, padded by half its odd kernel; fewer if rows are few."""
    rows = (depth - 1) // stride + 1
    number = min(number, rows)
    for begin, end in pairwise(rows * k // number for k in range(number + 1)):
        first = begin * stride - kernel // 2
        last = (end - 1) * stride - kernel // 2 + kernel
        yield Slab(slice(begin, end), slice(max(first, 0), min(last, depth)), max(-first, 0), max(last - depth, 0))


def output_shape(x: Tensor, weight: Tensor, stride: int) -> tuple[int, ...]:
    """What the convolution of x has, padded by half its odd kernel."""
    return (x.shape[0], weight.shape[0], *((size - 1) // stride + 1 for size in x.shape[2:]))


def slabs_for(x: Tensor, weight: Tensor, stride: int, dtype: torch.dtype) -> int:
    """In how many slabs a convolution is worked through.

    One on the CPU, which copies nothing, and one for slices, which come in batches and are many calls already.
    """
    if not x.is_cuda or x.ndim < 5:
        return 1
    size = dtype.itemsize * (x.numel() + prod(output_shape(x, weight, stride)))
    return min(max(size // LEAST, 1), MOST)


class Plain:
    """Nothing before the convolution."""

    def __call__(self, part: Tensor) -> Tensor:
        """What is convolved of a slab of x."""
        return part

    def through(self, slope: Tensor, part: Tensor) -> Tensor:
        """Turn the gradient of what is convolved of a slab into what is to be added up for x; may be in place."""
        return slope

    def finish(self, slope: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Turn what was added up into the gradient of x, in place; the result is that of scale and shift."""
        return None, None


class Activation(Plain):
    """``silu(norm(x))`` before the convolution, by group statistics of the whole in the dtype of the scale.

    Args:
        x: (N, C, *spatial).
        scale, shift: of what was normalised, (N, C).
        groups, eps: of the group normalisation.
    """

    def __init__(self, x: Tensor, scale: Tensor, shift: Tensor, groups: int, eps: float) -> None:
        # A group lies within one portion, so that what is cast has the size of a slab.
        portions = x.reshape(x.shape[0], groups, -1).chunk(MOST, dim=1)
        found = [torch.var_mean(portion.to(scale.dtype), dim=2, correction=0) for portion in portions]
        variance, mean = (torch.cat(each, dim=1) for each in zip(*found, strict=True))
        self.x, self.scale, self.groups = x, scale, groups
        self.mean, self.deviation = self._by_channel(mean), self._by_channel((variance + eps).rsqrt())  # 1/σ; (N, C)
        self.slope, self.offset = (
            _by_voxel(v, x) for v in (self.deviation * scale, shift - self.mean * self.deviation * scale)
        )
        self.of_shift, self.of_centred = torch.zeros_like(scale), torch.zeros_like(scale)  # of scale, before 1/σ

    def __call__(self, part: Tensor) -> Tensor:
        return F.silu(self._normalised(part), inplace=True)

    def through(self, slope: Tensor, part: Tensor) -> Tensor:
        aten.silu_backward.grad_input(slope, self._normalised(part), grad_input=slope)
        space = tuple(range(2, part.ndim))
        self.of_shift += slope.sum(space, dtype=self.scale.dtype)
        self.of_centred += (part - _by_voxel(self.mean, part)).mul_(slope).sum(space)
        return slope

    def finish(self, slope: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """With μ the mean: ``(scale·slope − a − (x − μ)/σ·b)/σ``.

        Here a and b are the means over a group of ``scale·slope`` and of the same times ``(x − μ)/σ``.
        """
        of_scale = self.of_centred * self.deviation
        a, b = (self._group_mean(self.scale * sums) for sums in (self.of_shift, of_scale))
        by_x = -b * self.deviation.square()
        by_x, rest = (_by_voxel(v, slope) for v in (by_x, -by_x * self.mean - a * self.deviation))
        for portion, part in zip(slope.chunk(MOST, dim=2), self.x.chunk(MOST, dim=2), strict=True):
            torch.addcmul(torch.addcmul(rest, part, by_x), portion, self.slope, out=portion)
        return of_scale, self.of_shift

    def _normalised(self, part: Tensor) -> Tensor:
        return torch.addcmul(self.offset, part, self.slope, out=part.new_empty(part.shape))

    def _group_mean(self, sums: Tensor) -> Tensor:
        """Of what was summed over space; (N, C)."""
        means = sums.unflatten(1, (self.groups, -1)).mean(2) / self.x.shape[2:].numel()
        return self._by_channel(means)

    def _by_channel(self, values: Tensor) -> Tensor:
        """Values of groups, for each of their channels; (N, C)."""
        return values.repeat_interleave(self.x.shape[1] // self.groups, dim=1)


class SlabbedConvolution(Function):
    """``convolve(x)`` or, given a scale and a shift (N, C), ``convolve(silu(norm(x)))``; keeps x alone.

    Its backward pass holds x, the two gradients, and what a slab takes. The padding is half the odd kernel. ``norm`` is
    groups and eps, ``dtype`` that of the arithmetic, ``layout`` what the convolution is shown.
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
        ctx.how = norm, stride, dtype, layout, slabs
        before = Plain() if scale is None or shift is None else Activation(x, scale, shift, *norm)
        cast, offset, how = weight.to(dtype), bias.to(dtype), _geometry(weight, stride)
        out = x.new_empty(output_shape(x, weight, stride), dtype=dtype)
        for slab in cut(x.shape[2], weight.shape[2], stride, slabs):
            # Without names, so that no slab is held while the next one is made.
            out[:, :, slab.made] = torch.convolution(
                _laid_out(before(x[:, :, slab.seen]), slab, dtype, layout), cast, offset, *how
            )
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale, shift = ctx.saved_tensors
        norm, stride, dtype, layout, slabs = ctx.how
        before = Plain() if scale is None else Activation(x, scale, shift, *norm)
        needed = scale is not None or ctx.needs_input_grad[0]
        of_x = torch.zeros_like(x) if needed else None
        of_weight, of_bias = torch.zeros_like(weight), weight.new_zeros(len(weight))
        cast, how = weight.to(dtype), _geometry(weight, stride)
        for slab in cut(x.shape[2], weight.shape[2], stride, slabs):
            part = x[:, :, slab.seen]
            slope, *found = aten.convolution_backward(
                gradient[:, :, slab.made],
                _laid_out(before(part), slab, dtype, layout),
                cast,
                [len(weight)],
                *how,
                [needed, True, True],
            )
            of_weight += found[0]
            of_bias += found[1]
            if of_x is not None:
                slope = slope[:, :, slab.before : slope.shape[2] - slab.after].to(x.dtype)
                of_x[:, :, slab.seen] += before.through(slope, part)
            del slope
        return of_x, of_weight, of_bias, *(before.finish(of_x) if of_x is not None else (None, None)), *[None] * 5


def _by_voxel(values: Tensor, x: Tensor) -> Tensor:
    """Values by channel, (N, C), to be multiplied with x."""
    return values.reshape(*values.shape, *[1] * (x.ndim - 2))


def _laid_out(part: Tensor, slab: Slab, dtype: torch.dtype, layout: torch.memory_format) -> Tensor:
    """With the rows of zeros that the whole would be padded with."""
    if slab.before or slab.after:
        part = F.pad(part, [0, 0] * (part.ndim - 3) + [slab.before, slab.after])
    return part.to(dtype, memory_format=layout)


def _geometry(weight: Tensor, stride: int) -> tuple[Any, ...]:
    """Stride, padding but for the first axis, dilation, no transposition, no padding of its output, one group."""
    dims = weight.ndim - 2
    padding = [0] + [weight.shape[2] // 2] * (dims - 1)
    return [stride] * dims, padding, [1] * dims, False, [0] * dims, 1
