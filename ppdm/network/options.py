"""Size and arithmetic of a network, as values.

w = width, the channels of the finest level.
"""

from dataclasses import dataclass

import torch

from ppdm.serialization import later

CHECKPOINTING = ("none", "norm", "block", "conv")  # from the most memory to the least
SKIPS = ("concat", "add")
RESAMPLING = ("convolution", "residual")
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

# Far beyond any network that can be trained, so that no file can describe one that takes hours to build.
MOST_CHANNELS, MOST_LEVELS, MOST_BLOCKS = 1 << 16, 16, 32


@dataclass(frozen=True)
class UNetOptions:
    """Size and arithmetic of a :class:`~ppdm.network.unet.UNet`.

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
            they always are without gradients (``ppdm/network/slabs.py``).
        channels_last: whether convolutions see their tensors with the channels innermost in memory. A GPU's tensor
            cores want that in half precision; group normalisation gives the channels outermost, so that a copy lies
            before each of them: of a slab where it is worked through in slabs (``ppdm/network/slabs.py``), else of the
            whole, which is kept for the backward pass.
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
