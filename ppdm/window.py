"""What the network sees of the state at once: the whole, or patches of it (:mod:`ppdm.slices`: slices).

Axes: latents (N, C, D, H, W), time (N,); of one training step M pieces of N subjects, (M, C, d, h, w).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

MakeNetwork = Callable[[int, int, int], nn.Module]  # (in_channels, out_channels, dims)
Predict = Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]  # (network, x_t, t, y) -> like x_t


class Piece(NamedTuple):
    """What one network sees in a training step: both ends of the path, and how it predicts between them.

    Attributes:
        x0, y: (M, C, d, h, w), the pieces of a subject one after the other.
        predict: makes the prediction for a state of that shape.
    """

    x0: Tensor
    y: Tensor
    predict: Predict


class Window(Protocol):
    """What :mod:`ppdm.method` asks of a window; its values are frozen dataclasses.

    No shape may follow from a random number, so that memory can be predicted without data.
    """

    def multiple(self, network: int) -> tuple[int, int, int]:
        """What the latent's sizes must be multiples of, where those that a network sees must be of ``network``.

        Raises:
            ValueError: the window's own sizes are not.
        """

    def build(self, make: MakeNetwork, channels: int) -> nn.Module:
        """Make the network, or networks, for latents of so many channels."""

    def draw(self, x0: Tensor, y: Tensor, generator: torch.Generator | None) -> list[Piece]:
        """Choose what one training step sees: for each network, as many pieces of every subject."""

    def apply(self, network: nn.Module, x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """Predict for the whole state, as sampling needs it."""


@dataclass(frozen=True)
class Whole:
    """The whole state at once.

    Args:
        concatenate: whether the source is given to the network beside the state. A noise-free bridge without it can
            stay where it starts; with it, such a bridge learns a division (see the notes on the bridge in the README).
    """

    concatenate: bool = True

    def multiple(self, network: int) -> tuple[int, int, int]:
        return network, network, network

    def build(self, make: MakeNetwork, channels: int) -> nn.Module:
        return make(2 * channels if self.concatenate else channels, channels, 3)

    def draw(self, x0: Tensor, y: Tensor, generator: torch.Generator | None) -> list[Piece]:
        return [Piece(x0, y, self.apply)]

    def apply(self, network: nn.Module, x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        prediction: Tensor = network([x_t, y] if self.concatenate else x_t, t)
        return prediction


@dataclass(frozen=True)
class Patch:
    """Trained on one patch of every subject, applied to the whole (PatchDDM, arXiv 2303.15288).

    Patches are drawn more often from the middle: an offset is the sum of two uniform ones, over a quarter and over
    three quarters of the room there is (FlorentinBieder/PatchDDM-3D, guided_diffusion/bratsloader.py).

    Args:
        size: voxels of the latent along each axis, one number or (D, H, W); absent, half the volume's, as the authors'
            128 of 256. What exceeds the volume is the volume.
        coordinates: whether the network is told where it looks, by three channels from -1 to 1 over the whole volume.
        overlap: absent, the network sees the whole volume when it samples; a share in [0, 1) makes it see patches that
            overlap by this much of their size, whose predictions are averaged at every step.

    Raises:
        ValueError: a value out of range.
    """

    size: int | tuple[int, int, int] | None = None
    coordinates: bool = True
    overlap: float | None = None

    def __post_init__(self) -> None:
        sizes = self._sizes
        if sizes is not None and not (len(sizes) == 3 and all(type(s) is int and s > 0 for s in sizes)):
            raise ValueError(
                f"a patch's size is a positive integer, three of them (D, H, W), or absent; got {self.size!r}"
            )
        if self.overlap is not None and not 0 <= self.overlap < 1:
            raise ValueError(f"patches overlap by a share in [0, 1) of their size, got {self.overlap}")

    @property
    def _sizes(self) -> tuple[int, ...] | None:
        return (self.size,) * 3 if isinstance(self.size, int) else self.size

    def multiple(self, network: int) -> tuple[int, int, int]:
        if self._sizes is None:
            return 2 * network, 2 * network, 2 * network
        if any(s % network for s in self._sizes):
            raise ValueError(f"a patch of {self.size} must have sizes that are multiples of the network's {network}")
        return network, network, network

    def build(self, make: MakeNetwork, channels: int) -> nn.Module:
        return make(2 * channels + 3 * self.coordinates, channels, 3)

    def draw(self, x0: Tensor, y: Tensor, generator: torch.Generator | None) -> list[Piece]:
        places = [_central_places(len(x0), *sizes, generator, x0.device) for sizes in self._extents(x0)]
        axes = [line[at] for line, at in zip(_coordinates(x0), places, strict=True)]
        return [Piece(_crop(x0, places), _crop(y, places), partial(self._predict, axes=axes))]

    def apply(self, network: nn.Module, x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        lines = _coordinates(x_t)
        if self.overlap is None:
            return self._predict(network, x_t, t, y, axes=[line[None] for line in lines])
        total, count = torch.zeros_like(x_t), x_t.new_zeros(x_t.shape[2:])
        d, h, w = (_tiles(*sizes, self.overlap) for sizes in self._extents(x_t))
        for place in product(d, h, w):
            axes = [line[None, at] for line, at in zip(lines, place, strict=True)]
            total[..., *place] += self._predict(network, x_t[..., *place], t, y[..., *place], axes=axes)
            count[..., *place] += 1
        return total / count

    def _extents(self, x: Tensor) -> list[tuple[int, int]]:
        """(size of the volume, size of the patch) along each axis."""
        sizes = self._sizes or [s // 2 for s in x.shape[2:]]
        return [(whole, min(part, whole)) for whole, part in zip(x.shape[2:], sizes, strict=True)]

    def _predict(self, network: nn.Module, x_t: Tensor, t: Tensor, y: Tensor, *, axes: Sequence[Tensor]) -> Tensor:
        """Predict for patches whose voxels have these coordinates along each axis, (M, d), (M, h), (M, w)."""
        seen = [x_t, y]
        if self.coordinates:
            grid = (len(x_t), 1, *x_t.shape[2:])
            seen += [
                line.reshape(len(line), 1, *[-1 if k == axis else 1 for k in range(3)]).expand(grid)
                for axis, line in enumerate(axes)
            ]
        prediction: Tensor = network(seen, t)
        return prediction


def _coordinates(x: Tensor) -> list[Tensor]:
    """From -1 to 1 along each axis of (N, C, D, H, W)."""
    return [torch.linspace(-1, 1, size, device=x.device) for size in x.shape[2:]]


def _central_places(n: int, whole: int, part: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
    """Indices (n, part) along one axis of patches that lie more often in the middle."""

    def uniform(room: int) -> Tensor:
        return torch.randint(room + 1, (n, 1), generator=generator, device=device)

    room = whole - part
    return uniform(room // 4) + uniform(room - room // 4) + torch.arange(part, device=device)


def _crop(x: Tensor, places: Sequence[Tensor]) -> Tensor:
    """The patches of (N, C, D, H, W) at indices (N, d), (N, h), (N, w).

    By indices and not by slices: they stay on the device, and each subject has its own.
    """
    d, h, w = places
    n, c = (torch.arange(size, device=x.device) for size in x.shape[:2])
    return x[
        n[:, None, None, None, None],
        c[:, None, None, None],
        d[:, None, :, None, None],
        h[:, None, None, :, None],
        w[:, None, None, None, :],
    ]


def _tiles(whole: int, part: int, overlap: float) -> list[slice]:
    """Where patches lie along one axis, so that all of it is covered; the last one ends with it."""
    stride = max(round(part * (1 - overlap)), 1)
    return [slice(first, first + part) for first in (*range(0, whole - part, stride), whole - part)]
