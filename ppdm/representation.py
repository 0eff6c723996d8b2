"""In which space diffusion lives: what is done to a volume before the first step and undone after the last.

Axes: volumes (N, C, D, H, W); latents z (N, C', D', H', W').
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

MOST_FACTOR = 64  # 262144 channels for one; no file can describe a network of more


class Codec(Protocol):
    """What turns volumes into latents and back."""

    def encode(self, x: Tensor) -> Tensor:
        """Volume to latent; sizes must be multiples of the representation's cell."""

    def decode(self, z: Tensor) -> Tensor:
        """Latent to volume."""

    def clamp(self, z: Tensor, limit: float) -> Tensor:
        """The latent of the volume clamped to [-limit, limit]."""


class LearnedCodec(nn.Module, ABC):
    """A codec whose weights are found in a stage of the training of its own, before diffusion begins."""

    @abstractmethod
    def encode(self, x: Tensor) -> Tensor: ...

    @abstractmethod
    def decode(self, z: Tensor) -> Tensor: ...

    def clamp(self, z: Tensor, limit: float) -> Tensor:
        return self.encode(self.decode(z).clamp(-limit, limit))

    @abstractmethod
    def loss(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """What its stage minimises, for each volume of (N, C, D, H, W): (N,)."""

    @abstractmethod
    def settle(self, volumes: Iterable[Tensor]) -> None:
        """Set what follows from the weights, at the end of its stage, given some targets (N, C, D, H, W)."""


class Representation(Protocol):
    """What :mod:`ppdm.method` asks of a representation; its values are frozen dataclasses."""

    @property
    def cell(self) -> tuple[int, int, int]:
        """Voxels of the volume along each axis that one latent voxel stands for."""

    @property
    def label(self) -> str:
        """How rows of a table tell its values apart, such as ``r=4``; empty if there is nothing to tell."""

    @property
    def is_learned(self) -> bool:
        """Whether it is trained in a stage of its own before diffusion."""

    @property
    def share(self) -> float:
        """Share of a training's steps or time that its own stage takes; 0 if it is not learned."""

    def channels(self, c: int) -> int:
        """Channels of the latent of a volume of c channels."""

    def build(self, c: int, network: "UNetOptions") -> LearnedCodec | None:
        """Make what is to be learned for volumes of c channels, in the arithmetic of the network; None: nothing."""

    def codec(self, learned: LearnedCodec | None) -> Codec:
        """What encodes and decodes, given what :meth:`build` made."""


class Given:
    """A representation that is not learned, and so is its own codec."""

    is_learned = False

    @property
    def share(self) -> float:
        return 0.0

    def build(self, c: int, network: "UNetOptions") -> None:
        return None

    def codec(self, learned: LearnedCodec | None) -> Self:
        return self


@dataclass(frozen=True)
class Identity(Given):
    """Voxels as they are."""

    @property
    def cell(self) -> tuple[int, int, int]:
        return (1, 1, 1)

    @property
    def label(self) -> str:
        return ""

    def channels(self, c: int) -> int:
        return c

    def encode(self, x: Tensor) -> Tensor:
        return x

    def decode(self, z: Tensor) -> Tensor:
        return z

    def clamp(self, z: Tensor, limit: float) -> Tensor:
        return z.clamp(-limit, limit)


@dataclass(frozen=True)
class Puzzle(Given):
    """Voxels traded for channels (PPDM, arXiv 2606.15323): lossless, and nothing to learn.

    Args:
        factor: r, one integer or one an axis (D, H, W); 1 leaves the volume as it is.

    Raises:
        ValueError: the factor is no positive integer up to :data:`MOST_FACTOR`, nor three of them.
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
class Haar(Given):
    """One level of the orthonormal Haar wavelet transform: eight bands of half the resolution (WDM, arXiv 2402.19043).

    The bands of a channel come in the order LLL, LLH, LHL, LHH, HLL, HLH, HHL, HHH, the letters those of D, H, W. LLL
    is divided by 3, which brings it near the volume's own range (pfriedri/wdm-3d, guided_diffusion/train_util.py).
    """

    @property
    def cell(self) -> tuple[int, int, int]:
        return (2, 2, 2)

    @property
    def label(self) -> str:
        return ""

    def channels(self, c: int) -> int:
        return 8 * c

    def encode(self, x: Tensor) -> Tensor:
        return _scale_lll(_butterflies(puzzle(x, 2)), 1 / 3)

    def decode(self, z: Tensor) -> Tensor:
        return unpuzzle(_butterflies(_scale_lll(z, 3)), 2)

    def clamp(self, z: Tensor, limit: float) -> Tensor:
        return self.encode(self.decode(z).clamp(-limit, limit))  # as WDM does at every step


def _butterflies(z: Tensor) -> Tensor:
    """Sums and differences along the three axes of a puzzle's cell (N, 8·C, …): orthonormal, and its own inverse."""
    h = z.unflatten(1, (-1, 2, 2, 2))
    for axis in (2, 3, 4):
        low, high = h.unbind(axis)
        h = torch.stack([low + high, low - high], dim=axis)
    return h.flatten(1, 4) * 8**-0.5


def _scale_lll(z: Tensor, scale: float) -> Tensor:
    """Multiply the first of every eight channels."""
    bands = z.unflatten(1, (-1, 8))
    return torch.cat([bands[:, :, :1] * scale, bands[:, :, 1:]], dim=2).flatten(1, 2)


REPRESENTATIONS = {"identity": Identity, "puzzle": Puzzle, "haar": Haar}
