"""The only U-Net: 2-D or 3-D, used by PPDM and by every baseline.

The topology is that of Ho et al. 2020 (arXiv 2006.11239) and of ADM (Dhariwal & Nichol, arXiv 2105.05233), which the
baselines share: a skip from the stem, from every residual block and from every downsampling; one residual block more
on the way up. Axes: N batch, C channels, then the spatial axes: (D, H, W) or (H, W). w = width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ppdm.description import later
from ppdm.unet_parts import PRECISIONS, Parts, TimeEmbedding, recomputed, start_at_zero, without_autocast

CHECKPOINTING = ("none", "norm", "block", "conv")  # from the most memory to the least
SKIPS = ("concat", "add")
RESAMPLING = ("convolution", "residual")

# Far beyond any network that can be trained, so that no file can describe one that takes hours to build.
MOST_CHANNELS, MOST_LEVELS, MOST_BLOCKS = 1 << 16, 16, 32


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
        checkpointing: what is recomputed in the backward pass instead of kept: ``none``; ``norm`` (what is cheap:
            normalisation and activation before each convolution, the repetition of voxels before the grid is doubled);
            ``block`` (whole residual and attention blocks, with the doubling and the joining that lead to them);
            ``conv`` (blocks, and in a block that is computed again what is cheap once more, so that one convolution's
            input at a time is held). Unless it is ``none``, large convolutions are worked through in slabs on a GPU, as
            they always are without gradients (``ppdm/slabs.py``).
        channels_last: whether convolutions see their tensors with the channels innermost in memory. A GPU's tensor
            cores want that in half precision; group normalisation gives the channels outermost, so that a copy lies
            before each of them: of a slab where it is worked through in slabs (``ppdm/slabs.py``), else of the whole,
            which is kept for the backward pass.
        compile: whether the network is compiled at its first call (``torch.compile``), for each shape it meets. It is
            not cut into slabs then.

    Raises:
        ValueError: a value outside the ranges above, or a network of more than :data:`MOST_CHANNELS` channels,
            :data:`MOST_LEVELS` levels or :data:`MOST_BLOCKS` blocks a level.
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
    channels_last: bool = later(False)
    compile: bool = later(False)

    def __post_init__(self) -> None:
        for name in ("width", "residual_blocks", "head_channels", "norm_groups"):
            value, most = getattr(self, name), MOST_BLOCKS if name == "residual_blocks" else MOST_CHANNELS
            if type(value) is not int or not 1 <= value <= most:
                raise ValueError(f"{name} must be a positive integer up to {most}, got {value!r}")
        for name in ("channels_last", "compile"):
            if type(getattr(self, name)) is not bool:
                raise ValueError(f"{name} must be true or false, got {getattr(self, name)!r}")
        m, a = self.multipliers, self.attention
        if not isinstance(m, tuple) or not m or not all(type(k) is int and k > 0 for k in m):
            raise ValueError(f"multipliers must be a tuple of positive integers, one a level, got {m!r}")
        if len(m) > MOST_LEVELS or max(self.channels) > MOST_CHANNELS:
            raise ValueError(
                f"a network has up to {MOST_LEVELS} levels of up to {MOST_CHANNELS} channels, got {len(m)} levels, "
                f"of width {self.width} times up to {max(m)}"
            )
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
    def recomputes_norms(self) -> bool:
        """Whether what leads to a convolution is computed again where it is needed."""
        return self.checkpointing in ("norm", "conv")

    @property
    def recomputes_blocks(self) -> bool:
        """Whether whole blocks are computed again."""
        return self.checkpointing in ("block", "conv")

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
        make = Parts(dims, o)
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
        if o.compile:
            self.compile(dynamic=False)  # lazily; names and states stay as they are

    def forward(self, x: Tensor | Sequence[Tensor], t: Tensor) -> Tensor:
        """Predict from x and the time t (N,) in [0, 1]; the result is float32.

        Args:
            x: float ``(N, C_in, *spatial)``, or several whose channels together are C_in. Those are joined here, in the
                chosen precision, so that no joined volume in float32 is held.
            t: (N,).
        """
        seen = [x] if isinstance(x, Tensor) else list(x)
        self._check(seen)
        with without_autocast(t.device.type):
            return self._predict(seen, t)

    def _predict(self, seen: list[Tensor], t: Tensor) -> Tensor:
        embedding = self.time(t)  # (N, 4w)
        # (N, w, *spatial), and from here on in the chosen precision
        h = self.stem(torch.cat([x.to(self.stem.dtype) for x in seen], dim=1) if len(seen) > 1 else seen[0])
        held = [h]
        for part in self.down:
            h = part(h, embedding)
            held.append(h)
        for part in self.middle:
            h = part(h, embedding)
        held.append(h)
        rise: list[nn.Module] = []
        for part in self.up:
            rise.append(part)
            if getattr(part, "joins", False):
                h = self._risen(rise, held, embedding)
                held.append(h)
                rise = []
        return self.head(held.pop()).float().contiguous()

    def _risen(self, rise: list[nn.Module], held: list[Tensor], embedding: Tensor) -> Tensor:
        """Go on from the last tensor that is held, to the next skip and through the block that joins it."""
        if not (self.options.recomputes_blocks and torch.is_grad_enabled()):
            return self._rise(rise, held, embedding)
        h, skip = held.pop(), held.pop()
        return recomputed(lambda skip, h, embedding: self._rise(rise, [skip, h], embedding), skip, h, embedding)

    def _rise(self, rise: list[nn.Module], held: list[Tensor], embedding: Tensor) -> Tensor:
        """As above. What is joined is taken off the list in the same expression, so that no name holds it."""
        *doubling, block = rise
        for part in doubling:
            held.append(part(held.pop(), embedding))
        return block(self._joined(held), embedding)

    def _joined(self, held: list[Tensor]) -> Tensor:
        h, skip = held.pop(), held.pop()
        return torch.cat([h, skip], dim=1) if self.options.skips == "concat" else torch.lerp(h, skip, 0.5)

    def _check(self, seen: Sequence[Tensor]) -> None:
        x, wanted = seen[0], ", ".join("NCDHW" if self.dims == 3 else "NCHW")
        if any(other.ndim != self.dims + 2 for other in seen) or sum(o.shape[1] for o in seen) != self.in_channels:
            shapes = " and ".join(str(tuple(other.shape)) for other in seen)
            raise ValueError(f"expected ({wanted}) with C = {self.in_channels}, got shape {shapes}")
        if any(s % self.options.multiple for s in x.shape[2:]):
            raise ValueError(
                f"sizes {tuple(x.shape[2:])} must be multiples of {self.options.multiple}, since the network halves "
                f"them {len(self.options.multipliers) - 1} times; pad with pad_to_multiple(x, {self.options.multiple})"
            )
