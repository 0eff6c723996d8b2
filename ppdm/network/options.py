"""Options of a network: its size and its arithmetic.

w = width, the channels of the finest level.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from ppdm.serialization import later

CHECKPOINTING = ("none", "norm", "block", "conv")  # from the most memory to the least
SKIPS = ("concat", "add")
RESAMPLING = ("convolution", "residual")
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

# Limits far above any network that can be trained. They prevent a file from describing one that takes hours to build.
MOST_CHANNELS, MOST_LEVELS, MOST_BLOCKS = 1 << 16, 16, 32


@dataclass(frozen=True)
class UNetOptions:
    """Size and arithmetic of a :class:`~ppdm.network.unet.UNet`.

    Args:
        width: channels of the finest level.
        multipliers: channels of each level as multiples of the width; every level but the last halves the grid.
        residual_blocks: residual blocks in each level of the downward path; the upward path has one more.
        attention: for each level, finest first, whether self-attention follows its blocks; empty means no attention.
            The middle has attention if any level has it, as in ADM; one extra entry sets the middle separately.
        head_channels: channels of one attention head.
        norm_groups: maximum number of groups of the group normalisation. The number used is its largest common divisor
            with the channels that leaves at least two channels in each group.
        skips: ``concat`` (ADM) or ``add`` (PatchDDM, WDM: half the sum).
        resampling: halve and double the grid by a ``convolution`` (Ho et al.) or within a ``residual`` block (ADM and
            WDM: pooling, repetition).
        adaptive: whether the time embedding scales and shifts the second normalisation of a block (ADM's adaptive group
            normalisation). Otherwise it is added before that normalisation.
        precision: dtype of convolutions and attention. Parameters and statistics stay in fp32. The network casts
            explicitly and does not use autocast, whose lists of operations differ between devices.
        checkpointing: what the backward pass recomputes instead of keeping it in memory: ``none``; ``norm`` (the cheap
            operations: normalisation and activation before each convolution, and the repetition of voxels before a
            convolution that doubles the grid); ``block`` (whole residual and attention blocks, with the upsampling and
            the skip connection before them); ``conv`` (blocks, and the cheap operations again within a recomputed
            block, so that only one convolution's input is in memory at a time). Unless it is ``none``, a GPU computes
            large convolutions in slabs (``ppdm/network/slabs.py``). Without gradients it always does so.
        channels_last: whether convolutions receive their tensors with the channels innermost in memory. The tensor
            cores of a GPU need this layout in half precision. Group normalisation returns contiguous tensors, so each
            convolution needs a copy: a copy of one slab if it is computed in slabs (``ppdm/network/slabs.py``), else a
            copy of the whole tensor, which is kept for the backward pass. On the CPU, bf16 always has this layout,
            unless the network is compiled (``ppdm/network/normalisation.py``).
        compile: whether to compile the network at its first call (``torch.compile``), once for each input shape. A
            compiled network does not use slabs.

    Raises:
        ValueError: a value is outside the ranges above, or the network has more than :data:`MOST_CHANNELS` channels,
            :data:`MOST_LEVELS` levels or :data:`MOST_BLOCKS` blocks in a level.
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
    written_without_type: ClassVar[bool] = True  # files older than other kinds of networks name no type

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
            raise ValueError(f"multipliers must be a tuple of positive integers, one per level, got {m!r}")
        if len(m) > MOST_LEVELS or max(self.channels) > MOST_CHANNELS:
            raise ValueError(
                f"a network has at most {MOST_LEVELS} levels of at most {MOST_CHANNELS} channels, got {len(m)} levels "
                f"of up to {max(self.channels)} channels (width {self.width} times {max(m)})"
            )
        if not isinstance(a, tuple) or not all(type(k) is bool for k in a):
            raise ValueError(f"attention must be a tuple of True and False, one per level, got {a!r}")
        if a and len(a) not in (len(m), len(m) + 1):
            raise ValueError(
                f"attention has {len(a)} levels and multipliers {len(m)}; give one value per level, and one more for "
                "the middle if it differs"
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
        """Whether the backward pass recomputes the normalisation and activation before each convolution."""
        return self.checkpointing in ("norm", "conv")

    @property
    def recomputes_blocks(self) -> bool:
        """Whether the backward pass recomputes whole blocks."""
        return self.checkpointing in ("block", "conv")

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of each level, finest first."""
        return tuple(self.width * m for m in self.multipliers)

    @property
    def levels(self) -> list[tuple[int, bool]]:
        """Channels of each level, finest first, and whether it has attention."""
        attention = self.attention or (False,) * len(self.multipliers)
        return list(zip(self.channels, attention, strict=False))  # an extra entry is for the middle

    @property
    def multiple(self) -> int:
        """The factor that must divide every spatial size, so that the upward and downward paths have equal shapes."""
        return 1 << (len(self.multipliers) - 1)
