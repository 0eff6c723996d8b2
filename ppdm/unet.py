"""The only U-Net: 2-D or 3-D, used by PPDM and by every baseline.

The topology is that of Ho et al. 2020 (arXiv 2006.11239) and of ADM (Dhariwal & Nichol, arXiv 2105.05233), which the
baselines share: a skip from the stem, from every residual block and from every downsampling; one residual block more
on the way up. Axes: N batch, C channels, then the spatial axes: (D, H, W) or (H, W). w = width.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from math import gcd, log
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
CHECKPOINTING = ("none", "norm", "block")
SKIPS = ("concat", "add")
RESAMPLING = ("convolution", "residual")


@dataclass(frozen=True)
class UNetOptions:
    """Size and arithmetic of a :class:`UNet`.

    Args:
        width: channels of the finest level.
        multipliers: channels of each level as multiples of the width; every level but the last halves the grid.
        residual_blocks: residual blocks a level on the way down (one more on the way up).
        attention: for each level, counted from the finest, whether its blocks are followed by self-attention; empty
            means nowhere. The middle has it if any level has, as in ADM; one entry more tells it of the middle alone.
        head_channels: channels of one attention head.
        norm_groups: groups of the group normalisation, at most (the greatest common divisor with the channels is taken,
            and at least two channels a group).
        skips: ``concat`` (ADM) or ``add`` (PatchDDM, WDM: half the sum).
        resampling: the grid is halved and doubled by a ``convolution`` (Ho et al.) or within a ``residual`` block (ADM
            and WDM: pooling, repetition).
        adaptive: whether the time scales and shifts the second normalisation of a block (ADM's adaptive group
            normalisation) instead of being added before it.
        precision: dtype of convolutions and attention. Parameters and statistics stay in fp32, and no autocast is used:
            its lists differ between devices, explicit casts do not.
        checkpointing: what is recomputed in the backward pass instead of kept: ``none``; ``norm`` (normalisation and
            activation before each convolution); ``block`` (whole residual and attention blocks).

    Raises:
        ValueError: a value outside the ranges above.
    """

    width: int = 64
    multipliers: tuple[int, ...] = (1, 2, 2, 4)
    residual_blocks: int = 1
    attention: tuple[bool, ...] = ()
    head_channels: int = 32
    norm_groups: int = 32
    skips: str = "concat"
    resampling: str = "convolution"
    adaptive: bool = False
    precision: str = "fp32"
    checkpointing: str = "none"

    def __post_init__(self) -> None:
        for name in ("width", "residual_blocks", "head_channels", "norm_groups"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(f"{name} must be a positive integer, got {value!r}")
        m, a = self.multipliers, self.attention
        if not isinstance(m, tuple) or not m or not all(type(k) is int and k > 0 for k in m):
            raise ValueError(f"multipliers must be a tuple of positive integers, one a level, got {m!r}")
        if not isinstance(a, tuple) or not all(type(k) is bool for k in a):
            raise ValueError(f"attention must be a tuple of True and False, one a level, got {a!r}")
        if a and len(a) not in (len(m), len(m) + 1):
            raise ValueError(
                f"attention has {len(a)} levels, multipliers {len(m)}; give one each, and one more for the middle if "
                "it differs"
            )
        for name, allowed in (
            ("skips", SKIPS),
            ("resampling", RESAMPLING),
            ("precision", tuple(PRECISIONS)),
            ("checkpointing", CHECKPOINTING),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of each level, finest first."""
        return tuple(self.width * m for m in self.multipliers)

    @property
    def multiple(self) -> int:
        """What every spatial size must be a multiple of, so that the way up meets the way down."""
        return 1 << (len(self.multipliers) - 1)


class UNet(nn.Module):
    """Noise-, residual- or target-predicting network: ``(N, C_in, *spatial), (N,) -> (N, C_out, *spatial)``.

    The last convolution starts at zero, so an untrained network returns zeros.

    Args:
        in_channels: channels of the input (state and condition together).
        out_channels: channels of the output.
        dims: 2 or 3.
        options: size and arithmetic.

    Raises:
        ValueError: dims is neither 2 nor 3; in ``forward``, a wrong rank, channel count or size.
    """

    def __init__(self, in_channels: int, out_channels: int, dims: int = 3, options: UNetOptions | None = None) -> None:
        super().__init__()
        if dims not in (2, 3):
            raise ValueError(f"a U-Net has 2 or 3 spatial dimensions, got {dims}")
        self.in_channels, self.dims, self.options = in_channels, dims, options or UNetOptions()
        o = self.options
        make = _Parts(dims, o)
        attention = o.attention or (False,) * len(o.channels)
        levels = list(zip(o.channels, attention, strict=False))  # one entry more is of the middle

        self.time = TimeEmbedding(o.width)
        self.stem = make.convolution(in_channels, o.width)

        self.down = nn.ModuleList()
        channels, skips = o.width, [o.width]
        for level, (wanted, attend) in enumerate(levels):
            for _ in range(o.residual_blocks):
                self.down.append(make.block(channels, wanted, attend))
                channels = wanted
                skips.append(channels)
            if level + 1 < len(o.channels):
                self.down.append(make.downsampling(channels))
                skips.append(channels)

        in_middle = attention[-1] if len(attention) > len(levels) else any(attention)
        self.middle = nn.ModuleList([make.block(channels, channels, in_middle), make.block(channels, channels, False)])

        self.up = nn.ModuleList()
        for level, (wanted, attend) in reversed(list(enumerate(levels))):
            for _ in range(o.residual_blocks + 1):
                skip = skips.pop()
                # An additive skip needs the channels of the next skip, whatever the level says.
                after = wanted if o.skips == "concat" else skips[-1] if skips else o.width
                self.up.append(make.block(channels + skip if o.skips == "concat" else skip, after, attend, joins=True))
                channels = after
            if level:
                self.up.append(make.upsampling(channels))

        self.head = make.normalised_convolution(channels, out_channels)
        start_at_zero(self.head.convolution)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Predict from x (N, C_in, *spatial), float, and the time t (N,) in [0, 1]; the result is float32."""
        self._check(x)
        with without_autocast(x.device.type):
            return self._predict(x, t)

    def _predict(self, x: Tensor, t: Tensor) -> Tensor:
        embedding = self.time(t)  # (N, 4w)
        h = self.stem(x)  # (N, w, *spatial), and from here on in the chosen precision
        skips = [h]
        for part in self.down:
            h = part(h, embedding)
            skips.append(h)
        for part in self.middle:
            h = part(h, embedding)
        for part in self.up:
            if getattr(part, "joins", False):
                h = self._joined(h, skips.pop())  # in one expression: a skip that has been joined is held by no name
            h = part(h, embedding)
        return self.head(h).float()

    def _joined(self, h: Tensor, skip: Tensor) -> Tensor:
        return torch.cat([h, skip], dim=1) if self.options.skips == "concat" else torch.lerp(h, skip, 0.5)

    def _check(self, x: Tensor) -> None:
        if x.ndim != self.dims + 2 or x.shape[1] != self.in_channels:
            wanted = ", ".join("NCDHW" if self.dims == 3 else "NCHW")
            raise ValueError(f"expected ({wanted}) with C = {self.in_channels}, got shape {tuple(x.shape)}")
        if any(s % self.options.multiple for s in x.shape[2:]):
            raise ValueError(
                f"sizes {tuple(x.shape[2:])} must be multiples of {self.options.multiple}, since the network halves "
                f"them {len(self.options.multipliers) - 1} times; pad with pad_to_multiple(x, {self.options.multiple})"
            )


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
    """A convolution whose parameters are fp32 and whose arithmetic is in ``dtype``."""

    def __init__(self, dims: int, c_in: int, c_out: int, kernel: int, stride: int, dtype: torch.dtype) -> None:
        super().__init__()
        layer = (nn.Conv2d if dims == 2 else nn.Conv3d)(c_in, c_out, kernel, stride, kernel // 2)
        self.weight, self.bias = layer.weight, layer.bias
        self.stride, self.padding, self.dtype = stride, kernel // 2, dtype
        self.convolve: Callable[..., Tensor] = F.conv2d if dims == 2 else F.conv3d

    def forward(self, x: Tensor) -> Tensor:
        """Convolve x in the chosen precision."""
        assert self.bias is not None
        dtype = torch.float32 if self._is_faulty_for(x) else self.dtype
        weight, bias = self.weight.to(dtype), self.bias.to(dtype)
        return self.convolve(x.to(dtype), weight, bias, self.stride, self.padding).to(self.dtype)

    def _is_faulty_for(self, x: Tensor) -> bool:
        """Whether oneDNN leaves the weight's gradient uninitialised: bf16, a depth of 2 (torch 2.11 and 2.13, CPU)."""
        return self.dtype is torch.bfloat16 and x.ndim == 5 and x.shape[2] == 2 and x.device.type == "cpu"


class Normalisation(nn.GroupNorm):
    """Group normalisation in the dtype of its input, its statistics in fp32 inside the kernel."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x. The affine parameters are cast too: the CPU's kernel takes mixed dtypes, CUDA's does not."""
        return F.group_norm(x, self.num_groups, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


class NormalisedConvolution(nn.Module):
    """Normalise, modulate, activate, resize, convolve; with ``recompute`` only inputs kept for the backward."""

    def __init__(self, norm: Normalisation, convolution: Convolution, recompute: bool, resize: "Resize") -> None:
        super().__init__()
        self.norm, self.convolution, self.recompute, self.resize = norm, convolution, recompute, resize

    def forward(self, x: Tensor, *modulation: Tensor) -> Tensor:
        """Apply them to x (N, C, *spatial); the modulation, if there is one, is a scale and a shift (N, C, 1, …)."""
        return recomputed(self._apply_all, x, *modulation) if self.recompute else self._apply_all(x, *modulation)

    def _apply_all(self, x: Tensor, *modulation: Tensor) -> Tensor:
        h = self.norm(x)
        if modulation:
            scale, shift = modulation
            h = torch.addcmul(shift, h, 1 + scale)
        return self.convolution(self.resize(F.silu(h)))


class Block(nn.Module):
    """Residual block that takes the time in between its convolutions, followed by optional self-attention."""

    def __init__(
        self, make: "_Parts", c_in: int, c_out: int, attend: bool, joins: bool, resize: "Resize | None" = None
    ) -> None:
        super().__init__()
        self.joins = joins  # whether a skip is joined to the input first
        self.resize = resize or same
        self.first = make.normalised_convolution(c_in, c_out, self.resize)
        self.adaptive = make.options.adaptive
        self.shift = nn.Linear(4 * make.options.width, 2 * c_out if self.adaptive else c_out)
        self.second = make.normalised_convolution(c_out, c_out)
        self.shortcut = nn.Identity() if c_in == c_out else make.convolution(c_in, c_out, kernel=1)
        self.attention = make.attention(c_out) if attend else None
        self.recompute = make.options.checkpointing == "block"

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Apply the block to x (N, C, *spatial) at the time that embedding (N, 4w) stands for."""
        return recomputed(self._apply_all, x, embedding) if self.recompute else self._apply_all(x, embedding)

    def _apply_all(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.first(x)
        shift = self.shift(F.silu(embedding)).to(h.dtype)
        shift = shift.reshape(*shift.shape, *[1] * (h.ndim - 2))
        if self.adaptive:
            h = self.second(h, *shift.chunk(2, dim=1))
        else:
            h += shift  # in place: no one else holds a convolution's output
            h = self.second(h)
        h += self.shortcut(self.resize(x))
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
        q, k, v = qkv.unbind(1)  # (N, heads, voxels, C/heads) each
        h = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(h.transpose(-1, -2).reshape(n, c, *spatial))


class Downsample(nn.Module):
    """Halve the grid by a strided convolution."""

    def __init__(self, convolution: Convolution) -> None:
        super().__init__()
        self.convolution = convolution

    def forward(self, x: Tensor, _: Tensor) -> Tensor:
        """(N, C, *spatial) -> (N, C, *spatial/2)."""
        return self.convolution(x)


class Upsample(nn.Module):
    """Double the grid by repetition and smooth it by a convolution."""

    def __init__(self, convolution: Convolution) -> None:
        super().__init__()
        self.convolution = convolution

    def forward(self, x: Tensor, _: Tensor) -> Tensor:
        """(N, C, *spatial) -> (N, C, 2·spatial)."""
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


class _Parts:
    """Makes the parts of a U-Net from its options, so that each part is told what concerns it alone."""

    def __init__(self, dims: int, options: UNetOptions) -> None:
        self.dims, self.options, self.dtype = dims, options, PRECISIONS[options.precision]

    def convolution(self, c_in: int, c_out: int, kernel: int = 3, stride: int = 1) -> Convolution:
        return Convolution(self.dims, c_in, c_out, kernel, stride, self.dtype)

    def norm(self, channels: int) -> Normalisation:
        common = gcd(self.options.norm_groups, channels)
        # At least two channels a group: a lone channel on a lone voxel has no variance to divide by.
        groups = max((g for g in range(1, channels // 2 + 1) if common % g == 0), default=1)
        return Normalisation(groups, channels)

    def normalised_convolution(self, c_in: int, c_out: int, resize: Resize = same) -> NormalisedConvolution:
        recompute = self.options.checkpointing == "norm"
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
        return Upsample(self.convolution(channels, channels))

    def attention(self, channels: int) -> Attention:
        heads = max(channels // self.options.head_channels, 1)
        if channels % heads:
            raise ValueError(f"{channels} channels do not split into heads of {self.options.head_channels}")
        qkv, out = (self.convolution(channels, k * channels, kernel=1) for k in (3, 1))
        return Attention(self.norm(channels), qkv, out, heads)
