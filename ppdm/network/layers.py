"""The layers of the U-Net (:mod:`ppdm.network.unet`) and of the autoencoder (:mod:`ppdm.network.autoencoder`).

Axes: N batch, C channels, then the spatial axes: (D, H, W) or (H, W). w = width.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from math import gcd, log
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from ppdm.network.options import PRECISIONS, UNetOptions
from ppdm.network.slabs import SlabbedConvolution, slabs_for

aten = torch.ops.aten


class TimeEmbedding(nn.Module):
    """Sinusoids of 1000·t (Ho et al. 2020, the scale of their T), then a two-layer perceptron: (N,) -> (N, 4w)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.pairs = max(width // 2, 1)
        self.perceptron = nn.Sequential(
            nn.Linear(2 * self.pairs, 4 * width), nn.SiLU(), nn.Linear(4 * width, 4 * width)
        )

    def forward(self, t: Tensor) -> Tensor:
        """Embed t (N,) in [0, 1]."""
        frequencies = torch.exp(
            -log(10_000) / self.pairs * torch.arange(self.pairs, device=t.device, dtype=torch.float32)
        )
        phase = 1000 * t.float()[:, None] * frequencies
        return self.perceptron(torch.cat([phase.cos(), phase.sin()], dim=1))


class Convolution(nn.Module):
    """A convolution whose parameters are fp32 and whose arithmetic is in ``dtype``.

    On a GPU, a large convolution is computed in slabs (:mod:`ppdm.network.slabs`). ``slabs`` says whether this is done
    without gradients, and whether it is done with them.
    """

    def __init__(
        self,
        dims: int,
        c_in: int,
        c_out: int,
        kernel: int,
        stride: int,
        dtype: torch.dtype,
        layout: torch.memory_format = torch.preserve_format,
        slabs: tuple[bool, bool] = (False, False),
    ) -> None:
        super().__init__()
        layer = (nn.Conv2d if dims == 2 else nn.Conv3d)(c_in, c_out, kernel, stride, kernel // 2)
        self.weight, self.bias = layer.weight, layer.bias
        if layout is not torch.preserve_format:
            self.weight = nn.Parameter(self.weight.detach().contiguous(memory_format=layout))
        self.stride, self.padding, self.dtype, self.layout = stride, kernel // 2, dtype, layout
        self.slabs = slabs
        self.convolve: Callable[..., Tensor] = F.conv2d if dims == 2 else F.conv3d

    def forward(self, x: Tensor) -> Tensor:
        """Convolve x in the chosen precision."""
        if (slabs := self.slabs_of(x)) > 1:
            return self.in_slabs(x, slabs)
        dtype = self.arithmetic(x)
        weight, bias = self.parameters_in(dtype)
        seen = x.to(dtype, memory_format=self.layout)
        return self.convolve(seen, weight, bias, self.stride, self.padding).to(self.dtype)

    def parameters_in(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Weight and bias, cast."""
        assert self.bias is not None
        return self.weight.to(dtype), self.bias.to(dtype)

    def slabs_of(self, x: Tensor) -> int:
        """In how many slabs x is convolved; in one as a whole."""
        return slabs_for(x, self.weight, self.stride, self.dtype) if self.slabs[torch.is_grad_enabled()] else 1

    def in_slabs(self, x: Tensor, slabs: int, *activated: Any) -> Tensor:
        """As :class:`SlabbedConvolution` does it; ``activated`` is the scale and the shift of a norm, and its kind."""
        how = *(activated or (None, None, None)), self.stride, self.dtype, self.layout, slabs
        out: Tensor = SlabbedConvolution.apply(x, self.weight, self.bias, *how)
        return out

    def arithmetic(self, x: Tensor) -> torch.dtype:
        """The chosen precision, but for what oneDNN gets wrong.

        In bf16 at a depth of 2 it leaves the weight's gradient uninitialised (torch 2.11 and 2.13, on the CPU).
        """
        faulty = self.dtype is torch.bfloat16 and x.ndim == 5 and x.shape[2] == 2 and x.device.type == "cpu"
        return torch.float32 if faulty else self.dtype


class Normalisation(nn.GroupNorm):
    """Group normalisation in the dtype of its input, its statistics in fp32 inside the kernel."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x."""
        if x.is_cuda:
            x = x.contiguous()  # CUDA's kernel takes no other layout and would copy unseen
        return F.group_norm(x, self.num_groups, *self.parameters_in(x.dtype), self.eps)

    def parameters_in(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Scale and shift, cast too: the CPU's kernel takes mixed dtypes, CUDA's does not."""
        return self.weight.to(dtype), self.bias.to(dtype)


class NormalisedConvolution(nn.Module):
    """Normalise, modulate, activate, resize, convolve; with ``recompute`` only inputs kept for the backward."""

    def __init__(self, norm: Normalisation, convolution: Convolution, recompute: bool, resize: "Resize") -> None:
        super().__init__()
        self.norm, self.convolution, self.recompute, self.resize = norm, convolution, recompute, resize

    def forward(self, x: Tensor, *modulation: Tensor) -> Tensor:
        """Apply them to x (N, C, *spatial); the modulation, if there is one, is a scale and a shift (N, C, 1, …)."""
        slabs = self.convolution.slabs_of(x) if self.resize is same else 1
        if slabs > 1 and (self.recompute or not torch.is_grad_enabled()):
            return self._in_slabs(slabs, x, *modulation)
        if not (self.recompute and torch.is_grad_enabled()):
            return self._apply_all(x, *modulation)
        if modulation or self.resize is not same or self.convolution.layout is not torch.preserve_format:
            return recomputed(self._apply_all, x, *modulation)
        dtype = self.convolution.arithmetic(x)
        parameters = (*self.norm.parameters_in(x.dtype), *self.convolution.parameters_in(dtype))
        how = (self.norm.num_groups, self.norm.eps, self.convolution.stride, self.convolution.padding)
        out: Tensor = _RecomputedConvolution.apply(x, *parameters, *how)
        return out.to(self.convolution.dtype)

    def _in_slabs(self, slabs: int, x: Tensor, *modulation: Tensor) -> Tensor:
        scale, shift = self.norm.weight[None], self.norm.bias[None]
        if modulation:
            factor, offset = (m.flatten(1).to(scale.dtype) for m in modulation)
            scale, shift = scale * (1 + factor), shift * (1 + factor) + offset
        kind = (self.norm.num_groups, self.norm.eps)
        return self.convolution.in_slabs(x, slabs, scale.expand(len(x), -1), shift.expand(len(x), -1), kind)

    def _apply_all(self, x: Tensor, *modulation: Tensor) -> Tensor:
        h = self.norm(x)
        if modulation:
            scale, shift = modulation
            h = torch.addcmul(shift, h, 1 + scale)
        # Where no gradient will need it, over what was normalised, which is no one else's.
        h = self.resize(F.silu(h, inplace=not torch.is_grad_enabled()))  # by the same name: not held while convolved
        return self.convolution(h)


class _RecomputedConvolution(Function):
    """``convolve(silu(norm(x)))`` that keeps x alone, and whose backward pass holds two more of its size at most.

    The same kernels in the same order as autograd's, hence the same bits; but each intermediate is made when it is
    needed, and the activation's gradient is written over that of its output. Checkpointing would hold x, what was
    normalised, what was activated, and a gradient at once.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor,
        shift: Tensor,
        weight: Tensor,
        bias: Tensor,
        groups: int,
        eps: float,
        stride: int,
        padding: int,
    ) -> Tensor:
        ctx.save_for_backward(x, scale, shift, weight, bias)
        ctx.norm, ctx.convolution = (groups, eps), _geometry(x.ndim - 2, stride, padding)
        activated = F.silu(_normalised(x, scale, shift, groups, eps)[0], inplace=True)
        return torch.convolution(activated.to(weight.dtype), weight, bias, *ctx.convolution)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, shift, weight, bias = ctx.saved_tensors
        activated = F.silu(_normalised(x, scale, shift, *ctx.norm)[0], inplace=True).to(weight.dtype)
        wanted = [True, True, True]
        slope, of_weight, of_bias = aten.convolution_backward(
            gradient, activated, weight, bias.shape, *ctx.convolution, wanted
        )
        del activated
        slope = slope.to(x.dtype)
        normalised, mean, deviation = _normalised(x, scale, shift, *ctx.norm)
        aten.silu_backward.grad_input(slope, normalised, grad_input=slope)
        del normalised
        of_norm = aten.native_group_norm_backward(
            slope, x.contiguous(), mean, deviation, scale, *_sizes(x), ctx.norm[0], wanted
        )
        return (*of_norm, of_weight, of_bias, None, None, None, None)


def _geometry(dims: int, stride: int, padding: int) -> tuple[Any, ...]:
    """Stride, padding, dilation, no transposition, no padding of its output, one group."""
    return [stride] * dims, [padding] * dims, [1] * dims, False, [0] * dims, 1


def _sizes(x: Tensor) -> tuple[int, int, int]:
    """Subjects, channels, voxels."""
    return x.shape[0], x.shape[1], x.shape[2:].numel()


def _normalised(x: Tensor, scale: Tensor, shift: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """What the norm makes of x, and the means and reciprocal deviations of its groups."""
    return torch.native_group_norm(x.contiguous(), scale, shift, *_sizes(x), groups, eps)


class Block(nn.Module):
    """Residual block that takes the time, if there is one, between its convolutions; self-attention may follow."""

    def __init__(
        self, make: "Parts", c_in: int, c_out: int, attend: bool, joins: bool, resize: "Resize | None" = None
    ) -> None:
        super().__init__()
        self.joins = joins  # whether a skip is joined to the input first
        self.resize = resize or same
        self.first = make.normalised_convolution(c_in, c_out, self.resize)
        self.adaptive = make.options.adaptive
        self.shift = nn.Linear(4 * make.options.width, 2 * c_out if self.adaptive else c_out) if make.timed else None
        self.second = make.normalised_convolution(c_out, c_out)
        self.shortcut = nn.Identity() if c_in == c_out else make.convolution(c_in, c_out, kernel=1)
        self.attention = make.attention(c_out) if attend else None
        # A block that joins a skip is computed again with what leads to it (UNet._rise).
        self.recompute = make.options.recomputes_blocks and not joins

    def forward(self, x: Tensor, *embedding: Tensor) -> Tensor:
        """Apply the block to x (N, C, *spatial) at the time that embedding (N, 4w) stands for, if it takes any."""
        return recomputed_if(self.recompute, self._apply_all, x, *embedding)

    def _apply_all(self, x: Tensor, *embedding: Tensor) -> Tensor:
        # First, so that it is last in the backward pass: its gradient, as large as x, does not lie beside the others.
        # Where there is none, last, as then its output does not.
        shortcut = self.shortcut(self.resize(x)) if torch.is_grad_enabled() else None
        h = self.first(x)
        modulation: tuple[Tensor, ...] = ()
        if self.shift is not None:
            (time,) = embedding
            shift = self.shift(F.silu(time)).to(h.dtype)
            shift = shift.reshape(*shift.shape, *[1] * (h.ndim - 2))
            if self.adaptive:
                modulation = shift.chunk(2, dim=1)
            else:
                h += shift  # in place: no one else holds a convolution's output
        h = self.second(h, *modulation)
        h += self.shortcut(self.resize(x)) if shortcut is None else shortcut
        return h if self.attention is None else self.attention(h)


class Attention(nn.Module):
    """Self-attention over all voxels of a level, residual."""

    def __init__(self, norm: Normalisation, qkv: Convolution, out: Convolution, heads: int) -> None:
        super().__init__()
        self.norm, self.qkv, self.out, self.heads = norm, qkv, out, heads
        start_at_zero(out)  # as the identity

    def forward(self, x: Tensor) -> Tensor:
        """Attend over x (N, C, *spatial)."""
        n, c, *spatial = x.shape
        qkv = self.qkv(self.norm(x)).reshape(n, 3, self.heads, c // self.heads, -1).transpose(-1, -2)
        # Contiguous, as fused kernels want it; without these the weights of all pairs of voxels are written down.
        q, k, v = qkv.contiguous().unbind(1)  # (N, heads, voxels, C/heads) each
        h = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(h.transpose(-1, -2).reshape(n, c, *spatial))


class Downsample(nn.Module):
    """Halve the grid by a strided convolution."""

    def __init__(self, convolution: Convolution) -> None:
        super().__init__()
        self.convolution = convolution

    def forward(self, x: Tensor, *_: Tensor) -> Tensor:
        """(N, C, *spatial) -> (N, C, *spatial/2)."""
        return self.convolution(x)


class Upsample(nn.Module):
    """Double the grid by repetition and smooth it by a convolution; with ``recompute`` only its input is kept."""

    def __init__(self, convolution: Convolution, recompute: bool) -> None:
        super().__init__()
        self.convolution, self.recompute = convolution, recompute

    def forward(self, x: Tensor, *_: Tensor) -> Tensor:
        """(N, C, *spatial) -> (N, C, 2·spatial)."""
        return recomputed_if(self.recompute, self._apply_all, x)

    def _apply_all(self, x: Tensor) -> Tensor:
        return self.convolution(doubled(x))


Resize = Callable[[Tensor], Tensor]


def same(x: Tensor) -> Tensor:
    """Leave the grid as it is."""
    return x


def halved(x: Tensor) -> Tensor:
    """Halve the grid by the mean of each cell."""
    cells = [v for size in x.shape[2:] for v in (size // 2, 2)]  # not by pooling, which the CPU lacks in bf16
    return x.reshape(*x.shape[:2], *cells).mean(tuple(range(3, 2 * x.ndim - 2, 2)))


def doubled(x: Tensor) -> Tensor:
    """Double the grid by repetition."""
    return F.interpolate(x, scale_factor=2, mode="nearest")


def start_at_zero(module: nn.Module) -> None:
    """Set weights and biases to zero, so that what follows sees nothing of the module until it has learned."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)


def without_autocast(device: str) -> AbstractContextManager[None]:
    """Whatever surrounds the network, the precision of its options holds. Some devices (``meta``) have no autocast."""
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


def recomputed(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Apply function and keep only its inputs; the backward pass computes what it needs again (arXiv 1604.06174).

    Nothing in the network draws random numbers, so no generator state is kept.
    """
    result: Any = checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)
    return result


def recomputed_if(wanted: bool, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Apply function, recomputed if that is wanted and gradients will be."""
    return recomputed(function, *inputs) if wanted and torch.is_grad_enabled() else function(*inputs)


class Parts:
    """Makes the parts of a U-Net from its options, so that each part is told what concerns it alone.

    Args:
        dims: 2 or 3.
        options: those of the U-Net.
        timed: whether blocks take the time.
    """

    def __init__(self, dims: int, options: UNetOptions, timed: bool = True) -> None:
        self.dims, self.options, self.dtype, self.timed = dims, options, PRECISIONS[options.precision], timed

    @property
    def layout(self) -> torch.memory_format:
        """How convolutions want their tensors in memory."""
        if not self.options.channels_last:
            return torch.preserve_format
        return torch.channels_last if self.dims == 2 else torch.channels_last_3d

    def convolution(self, c_in: int, c_out: int, kernel: int = 3, stride: int = 1) -> Convolution:
        # Not in training where time is worth more than memory; nor by a compiler, which does more with the whole.
        slabs = not self.options.compile, not self.options.compile and self.options.checkpointing != "none"
        return Convolution(self.dims, c_in, c_out, kernel, stride, self.dtype, self.layout, slabs)

    def norm(self, channels: int) -> Normalisation:
        common = gcd(self.options.norm_groups, channels)
        # At least two channels a group: a lone channel on a lone voxel has no variance to divide by.
        groups = max((g for g in range(1, min(common, channels // 2) + 1) if common % g == 0), default=1)
        return Normalisation(groups, channels)

    def normalised_convolution(self, c_in: int, c_out: int, resize: Resize = same) -> NormalisedConvolution:
        recompute = self.options.recomputes_norms
        return NormalisedConvolution(self.norm(c_in), self.convolution(c_in, c_out), recompute, resize)

    def block(self, c_in: int, c_out: int, attend: bool, joins: bool = False) -> Block:
        return Block(self, c_in, c_out, attend, joins)

    def downsampling(self, channels: int) -> nn.Module:
        if self.options.resampling == "residual":
            return Block(self, channels, channels, attend=False, joins=False, resize=halved)
        return Downsample(self.convolution(channels, channels, stride=2))

    def upsampling(self, channels: int) -> nn.Module:
        if self.options.resampling == "residual":
            return Block(self, channels, channels, attend=False, joins=False, resize=doubled)
        return Upsample(self.convolution(channels, channels), self.options.checkpointing != "none")

    def attention(self, channels: int) -> Attention:
        heads = max(channels // self.options.head_channels, 1)
        if channels % heads:
            raise ValueError(f"{channels} channels do not split into heads of {self.options.head_channels}")
        qkv, out = (self.convolution(channels, k * channels, kernel=1) for k in (3, 1))
        return Attention(self.norm(channels), qkv, out, heads)
