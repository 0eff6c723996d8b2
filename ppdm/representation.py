"""Representations: the space in which diffusion runs; a volume is encoded before sampling and decoded after it.

Shapes: volumes are (N, C, D, H, W), latents z are (N, C', D', H', W').
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Protocol, Self

import torch
from torch import Tensor, nn

from ppdm.pixel_puzzle import puzzle, unpuzzle

if TYPE_CHECKING:
    from ppdm.network.options import UNetOptions

MOST_FACTOR = 64  # 262144 latent channels per channel; a file cannot describe a larger network


class Codec(Protocol):
    """Interface of a codec between volumes and latents."""

    def encode(self, x: Tensor) -> Tensor:
        """Encode a volume to a latent; sizes must be multiples of the representation's cell."""

    def decode(self, z: Tensor) -> Tensor:
        """Decode a latent to a volume."""

    def clamp(self, z: Tensor, limit: float) -> Tensor:
        """Return the latent of the volume clamped to [-limit, limit]."""


class LearnedCodec(nn.Module, ABC):
    """A codec that is trained in its own stage, before the diffusion stage."""

    @abstractmethod
    def encode(self, x: Tensor) -> Tensor: ...

    @abstractmethod
    def decode(self, z: Tensor) -> Tensor: ...

    def clamp(self, z: Tensor, limit: float) -> Tensor:
        return self.encode(self.decode(z).clamp(-limit, limit))

    @abstractmethod
    def loss(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return the loss of the representation stage, (N,), for volumes (N, C, D, H, W)."""

    @abstractmethod
    def calibrate(self, volumes: Iterable[Tensor]) -> None:
        """At the end of the stage, compute constants that depend on the weights, from targets (N, C, D, H, W)."""


class Representation(Protocol):
    """Interface of a representation for :mod:`ppdm.method`; implementations are frozen dataclasses."""

    @property
    def cell(self) -> tuple[int, int, int]:
        """Number of voxels of the volume along each axis that one latent voxel represents."""

    @property
    def label(self) -> str:
        """Label that distinguishes its variants in a table, such as ``r=4``; empty if there is only one variant."""

    @property
    def is_learned(self) -> bool:
        """Whether it is trained in its own stage before diffusion."""

    @property
    def share(self) -> float:
        """Fraction of the training steps or time that its own stage uses; 0 if it is not learned."""

    def channels(self, c: int) -> int:
        """Return the number of latent channels for a volume of c channels."""

    def build(self, c: int, network: "UNetOptions") -> LearnedCodec | None:
        """Build the trainable codec for volumes of c channels, in the network's precision; None if there is none."""

    def codec(self, learned: LearnedCodec | None) -> Codec:
        """Return the codec, given the result of :meth:`build`."""


class FixedRepresentation:
    """A representation that is not learned and is its own codec."""

    is_learned = False
    share = 0.0

    @property
    def label(self) -> str:
        return ""

    def build(self, c: int, network: "UNetOptions") -> None:
        return None

    def codec(self, learned: LearnedCodec | None) -> Self:
        return self


@dataclass(frozen=True)
class Identity(FixedRepresentation):
    """The identity: the latent is the volume."""

    @property
    def cell(self) -> tuple[int, int, int]:
        return (1, 1, 1)

    def channels(self, c: int) -> int:
        return c

    def encode(self, x: Tensor) -> Tensor:
        return x

    def decode(self, z: Tensor) -> Tensor:
        return z

    def clamp(self, z: Tensor, limit: float) -> Tensor:
        return z.clamp(-limit, limit)


@dataclass(frozen=True)
class Puzzle(FixedRepresentation):
    """Lossless rearrangement of voxels into channels (PPDM, arXiv 2606.15323), without trainable weights.

    Args:
        factor: r, one integer or one per axis (D, H, W); 1 leaves the volume unchanged.

    Raises:
        ValueError: the factor is not a positive integer up to :data:`MOST_FACTOR`, or three of them.
    """

    factor: int | tuple[int, int, int] = 2

    def __post_init__(self) -> None:
        r = self.cell
        if len(r) != 3 or not all(type(k) is int and 0 < k <= MOST_FACTOR for k in r):
            raise ValueError(
                f"a puzzle factor is a positive integer up to {MOST_FACTOR}, or three of them (D, H, W); got "
                f"{self.factor!r}"
            )

    @property
    def cell(self) -> tuple[int, int, int]:
        return self.factor if isinstance(self.factor, tuple) else (self.factor,) * 3

    @property
    def label(self) -> str:
        return "r=" + ("x".join(map(str, self.factor)) if isinstance(self.factor, tuple) else str(self.factor))

    def channels(self, c: int) -> int:
        return c * prod(self.cell)

    def encode(self, x: Tensor) -> Tensor:
        return puzzle(x, self.cell)

    def decode(self, z: Tensor) -> Tensor:
        return unpuzzle(z, self.cell)

    def clamp(self, z: Tensor, limit: float) -> Tensor:
        return z.clamp(-limit, limit)  # a rearrangement: clamping before or after is the same


@dataclass(frozen=True)
class Haar(FixedRepresentation):
    """One level of the orthonormal Haar wavelet transform: eight bands of half the resolution (WDM, arXiv 2402.19043).

    The bands of a channel are in the order LLL, LLH, LHL, LHH, HLL, HLH, HHL, HHH; the letters refer to D, H, W. LLL is
    divided by 3, which brings it near the volume's own range (pfriedri/wdm-3d, guided_diffusion/train_util.py).
    """

    @property
    def cell(self) -> tuple[int, int, int]:
        return (2, 2, 2)

    def channels(self, c: int) -> int:
        return 8 * c

    def encode(self, x: Tensor) -> Tensor:
        return _scale_lll(_butterflies(puzzle(x, 2)), 1 / 3)

    def decode(self, z: Tensor) -> Tensor:
        return unpuzzle(_butterflies(_scale_lll(z, 3)), 2)

    def clamp(self, z: Tensor, limit: float) -> Tensor:
        return self.encode(self.decode(z).clamp(-limit, limit))  # as WDM does at every step


def _butterflies(z: Tensor) -> Tensor:
    """Sums and differences along the three axes of a puzzle cell (N, 8·C, …): orthonormal and its own inverse."""
    h = z.unflatten(1, (-1, 2, 2, 2))
    for axis in (2, 3, 4):
        low, high = h.unbind(axis)
        h = torch.stack([low + high, low - high], dim=axis)
    return h.flatten(1, 4) * 8**-0.5


def _scale_lll(z: Tensor, scale: float) -> Tensor:
    """Multiply the first of every eight channels by a scale."""
    bands = z.unflatten(1, (-1, 8))
    return torch.cat([bands[:, :, :1] * scale, bands[:, :, 1:]], dim=2).flatten(1, 2)


REPRESENTATIONS = {"identity": Identity, "puzzle": Puzzle, "haar": Haar}
