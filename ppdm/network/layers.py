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

from ppdm.network.normalisation import (
    Normalisation,
    add_to_channels,
    channels_last_format,
    normalise,
    normalise_backward,
)
from ppdm.network.options import PRECISIONS, UNetOptions
from ppdm.network.slabs import SlabbedConvolution, slabs_for
from ppdm.network.small_convolution import SmallConvolution, convolve, convolve_backward, is_small

aten = torch.ops.aten


class TimeEmbedding(nn.Module):
    """Sinusoids of 1000·t (T = 1000 in Ho et al. 2020), then a two-layer perceptron: (N,) -> (N, 4w)."""

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
    """A convolution with fp32 parameters and arithmetic in ``dtype``.

    On a GPU, a large convolution is computed in slabs (:mod:`ppdm.network.slabs`). ``slabs`` holds two flags: use slabs
    without gradients, and use slabs with gradients.
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
        """Convolve x in the layer's precision."""
        if (slabs := self.slabs_of(x)) > 1:
            return self.in_slabs(x, slabs)
        dtype = self.arithmetic(x)
        weight, bias = self.parameters_in(dtype)
        layout = self.layout_of(x, dtype)
        if layout is torch.contiguous_format:
            weight = weight.contiguous()
        seen = x.to(dtype, memory_format=layout)
        if is_small(seen, weight, self.stride):
            small: Tensor = SmallConvolution.apply(seen, weight, bias, self.stride, self.padding)
            return small.to(self.dtype)
        return self.convolve(seen, weight, bias, self.stride, self.padding).to(self.dtype)

    def layout_of(self, x: Tensor, dtype: torch.dtype) -> torch.memory_format:
        """Return the layout of the convolution's input.

        In bf16 on the CPU it is channels last, because oneDNN would rearrange other inputs in every call. Only a
        compiled network has contiguous tensors there, even with the option ``channels_last``: with channels last, the
        gradients below an upsampling were zero (torch 2.13).
        """
        if x.device.type != "cpu" or dtype is not torch.bfloat16:
            return self.layout
        return torch.contiguous_format if torch.compiler.is_compiling() else channels_last_format(x.ndim)

    def parameters_in(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return the weight and the bias in the given dtype."""
        assert self.bias is not None
        return self.weight.to(dtype), self.bias.to(dtype)

    def slabs_of(self, x: Tensor) -> int:
        """Return the number of slabs in which x is convolved; 1 means as a whole."""
        return slabs_for(x, self.weight, self.stride, self.dtype) if self.slabs[torch.is_grad_enabled()] else 1

    def in_slabs(self, x: Tensor, slabs: int, *activated: Any) -> Tensor:
        """Convolve by :class:`SlabbedConvolution`; ``activated`` is a norm's scale, shift and (groups, eps)."""
        settings = *(activated or (None, None, None)), self.stride, self.dtype, self.layout, slabs
        out: Tensor = SlabbedConvolution.apply(x, self.weight, self.bias, *settings)
        return out

    def arithmetic(self, x: Tensor) -> torch.dtype:
        """Return the dtype of the arithmetic: the layer's precision, or fp32 where oneDNN has a bug.

        On the CPU, oneDNN leaves the weight's gradient uninitialised in bf16 at a depth of 2 (torch 2.11 and 2.13). It
        does so too for a strided convolution with one voxel along H or W, and can then corrupt the heap (torch 2.13).
        """
        if self.dtype is not torch.bfloat16 or x.ndim < 5 or x.device.type != "cpu":
            return self.dtype
        faulty = x.shape[2] == 2 or (self.stride > 1 and 1 in x.shape[3:])
        return torch.float32 if faulty else self.dtype


Resize = Callable[[Tensor], Tensor]


def no_resize(x: Tensor) -> Tensor:
    """Return x unchanged."""
    return x


class NormalisedConvolution(nn.Module):
    """Normalise, modulate, activate, resize, convolve; with ``recompute`` the backward pass keeps only the inputs."""

    def __init__(self, norm: Normalisation, convolution: Convolution, recompute: bool, resize: Resize) -> None:
        super().__init__()
        self.norm, self.convolution, self.recompute, self.resize = norm, convolution, recompute, resize

    def forward(self, x: Tensor, *modulation: Tensor) -> Tensor:
        """Apply all steps to x (N, C, *spatial); the modulation, if given, is a scale and a shift (N, C, 1, …)."""
        slabs = self.convolution.slabs_of(x) if self.resize is no_resize else 1
        if slabs > 1 and (self.recompute or not torch.is_grad_enabled()):
            return self._in_slabs(slabs, x, *modulation)
        if not (self.recompute and torch.is_grad_enabled()):
            return self._apply_all(x, *modulation)
        if modulation or self.resize is not no_resize or self.convolution.layout is not torch.preserve_format:
            return recomputed(self._apply_all, x, *modulation)
        dtype = self.convolution.arithmetic(x)
        parameters = (*self.norm.parameters_in(x.dtype), *self.convolution.parameters_in(dtype))
        settings = (self.norm.num_groups, self.norm.eps, self.convolution.stride, self.convolution.padding)
        out: Tensor = _RecomputedConvolution.apply(x, *parameters, *settings)
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
        # In place if no gradient needs h: no other tensor shares its memory. Reusing the name h frees the old tensor
        # before the convolution.
        h = self.resize(F.silu(h, inplace=not torch.is_grad_enabled()))
        return self.convolution(h)


class _RecomputedConvolution(Function):
    """``convolve(silu(norm(x)))`` that keeps only x; its backward pass holds at most two more tensors of that size.

    It runs the same kernels in the same order as autograd, so the results are bit-identical. Each intermediate is
    computed when it is needed, and the gradient of the activation's input overwrites that of its output. Checkpointing
    would hold x, the normalised x, the activated x and a gradient at the same time.
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
        ctx.save_for_backward(x, scale, shift, weight)
        ctx.norm, ctx.convolution = (groups, eps), (stride, padding)
        activated = F.silu(normalise(x, scale, shift, groups, eps)[0], inplace=True)
        return convolve(activated.to(weight.dtype), weight, bias, stride, padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, shift, weight = ctx.saved_tensors
        activated = F.silu(normalise(x, scale, shift, *ctx.norm)[0], inplace=True).to(weight.dtype)
        slope, of_weight, of_bias = convolve_backward(gradient, activated, weight, [True] * 3, *ctx.convolution)
        assert slope is not None
        del activated
        slope = slope.to(x.dtype)
        normalised, mean, deviation = normalise(x, scale, shift, *ctx.norm)
        aten.silu_backward.grad_input(slope, normalised, grad_input=slope)
        del normalised
        of_norm = normalise_backward(slope, x, mean, deviation, scale, ctx.norm[0])
        return (*of_norm, of_weight, of_bias, None, None, None, None)


class ResidualBlock(nn.Module):
    """Residual block with an optional time input between its convolutions and optional self-attention at the end."""

    def __init__(
        self, make: "LayerFactory", c_in: int, c_out: int, attend: bool, takes_skip: bool, resize: Resize = no_resize
    ) -> None:
        super().__init__()
        self.takes_skip = takes_skip  # whether the input includes a skip connection
        self.resize = resize
        self.first = make.normalised_convolution(c_in, c_out, self.resize)
        self.adaptive = make.options.adaptive
        self.shift = nn.Linear(4 * make.options.width, 2 * c_out if self.adaptive else c_out) if make.timed else None
        self.second = make.normalised_convolution(c_out, c_out)
        self.shortcut = nn.Identity() if c_in == c_out else make.convolution(c_in, c_out, kernel=1)
        self.attention = make.attention(c_out) if attend else None
        # The U-Net itself recomputes a block with a skip connection, together with the layers before it.
        self.recompute = make.options.recomputes_blocks and not takes_skip

    def forward(self, x: Tensor, *embedding: Tensor) -> Tensor:
        """Apply the block to x (N, C, *spatial); embedding (N, 4w) is the embedded time, if the block is timed."""
        return recomputed_if(self.recompute, self._apply_all, x, *embedding)

    def _apply_all(self, x: Tensor, *embedding: Tensor) -> Tensor:
        # With gradients, the shortcut runs first, hence last in the backward pass: its gradient, as large as x, is then
        # not in memory together with the others. Without gradients it runs last, so that its output is not held.
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
                add_to_channels(h, shift)  # in place: only this function uses the convolution's output
        h = self.second(h, *modulation)
        h += self.shortcut(self.resize(x)) if shortcut is None else shortcut
        return h if self.attention is None else self.attention(h)


class Attention(nn.Module):
    """Residual self-attention over all voxels of a level."""

    def __init__(self, norm: Normalisation, qkv: Convolution, out: Convolution, heads: int) -> None:
        super().__init__()
        self.norm, self.qkv, self.out, self.heads = norm, qkv, out, heads
        start_at_zero(out)  # the layer starts as the identity

    def forward(self, x: Tensor) -> Tensor:
        """Attend over x (N, C, *spatial)."""
        n, c, *spatial = x.shape
        qkv = self.qkv(self.norm(x)).reshape(n, 3, self.heads, c // self.heads, -1).transpose(-1, -2)
        # Fused kernels need contiguous tensors. Without these kernels, the weights of all voxel pairs are in memory.
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
    """Double the grid by repetition, then convolve; with ``recompute`` the backward pass keeps only the input."""

    def __init__(self, convolution: Convolution, recompute: bool) -> None:
        super().__init__()
        self.convolution, self.recompute = convolution, recompute

    def forward(self, x: Tensor, *_: Tensor) -> Tensor:
        """(N, C, *spatial) -> (N, C, 2·spatial)."""
        return recomputed_if(self.recompute, self._apply_all, x)

    def _apply_all(self, x: Tensor) -> Tensor:
        return self.convolution(doubled(x))


def halved(x: Tensor) -> Tensor:
    """Halve the grid by the mean of each cell."""
    cells = [v for size in x.shape[2:] for v in (size // 2, 2)]  # the CPU has no pooling in bf16
    return x.reshape(*x.shape[:2], *cells).mean(tuple(range(3, 2 * x.ndim - 2, 2)))


def doubled(x: Tensor) -> Tensor:
    """Double the grid by repetition."""
    return F.interpolate(x, scale_factor=2, mode="nearest")


def start_at_zero(module: nn.Module) -> None:
    """Set weights and biases to zero, so that the module outputs zeros until it is trained."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)


def without_autocast(device: str) -> AbstractContextManager[None]:
    """Disable autocast, so that the options set the precision; some devices (``meta``) have no autocast."""
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


def recomputed(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Apply function and keep only its inputs; the backward pass recomputes the rest (arXiv 1604.06174).

    The network does not use random numbers, so the state of the random generator is not saved.
    """
    result: Any = checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)
    return result


def recomputed_if(wanted: bool, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Apply function; keep only its inputs if ``wanted`` is true and gradients are enabled."""
    return recomputed(function, *inputs) if wanted and torch.is_grad_enabled() else function(*inputs)


class LayerFactory:
    """Factory of a network's layers: passes each layer only the options that it uses.

    Args:
        dims: 2 or 3.
        options: options of the network.
        timed: whether blocks have a time input.
    """

    def __init__(self, dims: int, options: UNetOptions, timed: bool = True) -> None:
        self.dims, self.options, self.dtype, self.timed = dims, options, PRECISIONS[options.precision], timed

    @property
    def layout(self) -> torch.memory_format:
        """Memory layout of the convolutions' inputs and weights."""
        if not self.options.channels_last:
            return torch.preserve_format
        return channels_last_format(self.dims + 2)

    def convolution(self, c_in: int, c_out: int, kernel: int = 3, stride: int = 1) -> Convolution:
        # No slabs in training without checkpointing, which favours speed over memory. No slabs in a compiled network:
        # the compiler optimises the whole convolution better.
        slabs = not self.options.compile, not self.options.compile and self.options.checkpointing != "none"
        return Convolution(self.dims, c_in, c_out, kernel, stride, self.dtype, self.layout, slabs)

    def norm(self, channels: int) -> Normalisation:
        common = gcd(self.options.norm_groups, channels)
        # At least two channels in each group: one channel with one voxel has no variance.
        groups = max((g for g in range(1, min(common, channels // 2) + 1) if common % g == 0), default=1)
        return Normalisation(groups, channels)

    def normalised_convolution(self, c_in: int, c_out: int, resize: Resize = no_resize) -> NormalisedConvolution:
        recompute = self.options.recomputes_norms
        return NormalisedConvolution(self.norm(c_in), self.convolution(c_in, c_out), recompute, resize)

    def block(self, c_in: int, c_out: int, attend: bool, takes_skip: bool = False) -> ResidualBlock:
        return ResidualBlock(self, c_in, c_out, attend, takes_skip)

    def middle(self, channels: int) -> list[ResidualBlock]:
        attention, levels = self.options.attention, len(self.options.levels)
        attends = attention[-1] if len(attention) > levels else any(attention)
        return [self.block(channels, channels, attends), self.block(channels, channels, attend=False)]

    def downsampling(self, channels: int) -> nn.Module:
        if self.options.resampling == "residual":
            return ResidualBlock(self, channels, channels, attend=False, takes_skip=False, resize=halved)
        return Downsample(self.convolution(channels, channels, stride=2))

    def upsampling(self, channels: int) -> nn.Module:
        if self.options.resampling == "residual":
            return ResidualBlock(self, channels, channels, attend=False, takes_skip=False, resize=doubled)
        return Upsample(self.convolution(channels, channels), self.options.checkpointing != "none")

    def attention(self, channels: int) -> Attention:
        heads = max(channels // self.options.head_channels, 1)
        if channels % heads:
            raise ValueError(f"{channels} channels do not split into heads of {self.options.head_channels}")
        qkv, out = (self.convolution(channels, k * channels, kernel=1) for k in (3, 1))
        return Attention(self.norm(channels), qkv, out, heads)
