"""Group normalisation that is also fast for channels-last tensors on the CPU, which oneDNN needs for bf16.

In a channels-last tensor, the channels are innermost in memory. PyTorch's backward pass for that layout on the CPU
takes 15 to 50 times as long as for contiguous tensors, so it is written here with sums and products. Axes: N batch, C
channels, then the spatial axes.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

__all__ = ["Normalisation", "add_to_channels", "channels_last_format", "normalise", "normalise_backward"]

aten = torch.ops.aten


def channels_last_format(ndim: int) -> torch.memory_format:
    """Return PyTorch's channels-last format for tensors (N, C, *spatial) with this number of axes, 4 or 5."""
    return torch.channels_last if ndim == 4 else torch.channels_last_3d


class Normalisation(nn.GroupNorm):
    """Group normalisation in the dtype of its input; the kernel computes the statistics in fp32."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x."""
        if x.is_cuda:
            x = x.contiguous()  # CUDA's kernel needs this layout and would make a hidden copy
        scale, shift = self.parameters_in(x.dtype)
        if _is_channels_last(x) and torch.is_grad_enabled():
            out: Tensor = _ChannelsLastNormalisation.apply(x, scale, shift, self.num_groups, self.eps)
            return out
        return F.group_norm(x, self.num_groups, scale, shift, self.eps)

    def parameters_in(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return scale and shift in the given dtype; CUDA's kernel, unlike the CPU's, does not accept mixed dtypes."""
        return self.weight.to(dtype), self.bias.to(dtype)


class _ChannelsLastNormalisation(Function):
    """Group normalisation of a channels-last tensor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, shift: Tensor, groups: int, eps: float) -> Tensor:
        out, mean, deviation = normalise(x, scale, shift, groups, eps)
        ctx.save_for_backward(x, mean, deviation, scale)
        ctx.groups = groups
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, deviation, scale = ctx.saved_tensors
        return *normalise_backward(gradient, x, mean, deviation, scale, ctx.groups), None, None


def normalise(x: Tensor, scale: Tensor, shift: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return the normalised x, and the mean and the reciprocal standard deviation (N, groups) of each group."""
    x = x if _is_channels_last(x) else x.contiguous()
    return torch.native_group_norm(x, scale, shift, *_sizes(x), groups, eps)


def normalise_backward(
    gradient: Tensor, x: Tensor, mean: Tensor, deviation: Tensor, scale: Tensor, groups: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, scale and shift from that of the result of :func:`normalise`."""
    if not _is_channels_last(x):
        wanted = [True, True, True]
        return aten.native_group_norm_backward(
            gradient, x.contiguous(), mean, deviation, scale, *_sizes(x), groups, wanted
        )
    n, channels, voxels = _sizes(x)
    exact = torch.promote_types(x.dtype, torch.float32)
    mean, deviation = (v.to(exact).repeat_interleave(channels // groups, dim=1) for v in (mean, deviation))

    def rows_of_channels(values: Tensor) -> Tensor:
        return _in_rows(values.to(x.dtype).reshape(n, channels, *[1] * (x.ndim - 2)), x.shape[-1])

    def sum_of_channels(rows: Tensor) -> Tensor:
        # (N, C) in two steps: for one sum in a wider dtype, PyTorch would first convert all rows to it.
        return rows.flatten(1, -2).sum(1).reshape(n, -1, channels).sum(1, dtype=exact)

    def mean_of_group(sums: Tensor) -> Tensor:
        means = (sums * scale).reshape(n, groups, -1).sum(2) / (voxels * channels // groups)
        return means.repeat_interleave(channels // groups, dim=1)

    # x minus the rounded mean keeps its precision, even if the mean is much larger than the deviation.
    rounded = mean.to(x.dtype)
    rows = _in_rows(gradient.contiguous(memory_format=channels_last_format(x.ndim)))
    centred = _in_rows(x) - rows_of_channels(rounded)
    of_shift, rest = sum_of_channels(rows), mean - rounded
    of_scale = (sum_of_channels(centred * rows) - rest * of_shift) * deviation
    # The gradient of x is d·(s·g - <s·g> - y·<s·g·y>): g the gradient, s the scale, y = d·(x - m) the normalised x,
    # m the mean, d the reciprocal deviation, <> the mean of a group.
    slope = -deviation.square() * mean_of_group(of_scale)
    constant = -deviation * mean_of_group(of_shift) - slope * rest
    torch.addcmul(rows_of_channels(constant), centred, rows_of_channels(slope), out=centred)
    centred.addcmul_(rows, rows_of_channels(deviation * scale))
    of_x = centred.unflatten(-1, (x.shape[-1], channels)).movedim(-1, 1)
    return of_x, of_scale.sum(0).to(scale.dtype), of_shift.sum(0).to(scale.dtype)


def add_to_channels(x: Tensor, values: Tensor) -> None:
    """Add values (N, C, 1, …) to x in place."""
    if _is_channels_last(x):
        x, values = _in_rows(x), _in_rows(values, x.shape[-1])
    x += values


def _in_rows(x: Tensor, repeats: int = 1) -> Tensor:
    """View a channels-last x (N, C, …, W) as (N, …, W·C), or repeat its channels (N, C, 1, …).

    PyTorch's elementwise kernels are slow at broadcasting one value per channel if a vector register holds more values
    than there are channels.
    """
    last = x.movedim(1, -1)
    return last.repeat(*[1] * (x.ndim - 2), repeats, 1).flatten(-2) if repeats > 1 else last.flatten(-2)


def _is_channels_last(x: Tensor) -> bool:
    """Whether x is a channels-last tensor on the CPU, and not also contiguous."""
    is_cpu = x.device.type == "cpu" and x.ndim in (4, 5)
    return is_cpu and not x.is_contiguous() and x.is_contiguous(memory_format=channels_last_format(x.ndim))


def _sizes(x: Tensor) -> tuple[int, int, int]:
    """Return the numbers of samples, channels and voxels."""
    return x.shape[0], x.shape[1], x.shape[2:].numel()
