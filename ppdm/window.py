"""Windows: the part of the state that the network sees at once, the whole or patches (slices: :mod:`ppdm.slices`).

Shapes: latents (N, C, D, H, W), time (N,); the M pieces of N subjects in one training step are (M, C, d, h, w). The
condition y has the channels of all sources, S·C.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple, Protocol, Self

import torch
from torch import Tensor, nn

from ppdm.serialization import later
from ppdm.tiling import (
    OnEvaluation,
    Place,
    Shape,
    Size,
    check_multiple,
    check_overlap,
    no_callback,
    number_of_blocks,
    predict_in_blocks,
    sizes_of,
)

MakeNetwork = Callable[[int, int, int], nn.Module]  # (in_channels, out_channels, dims)
Predict = Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]  # (network, x_t, t, y) -> like x_t


class Piece(NamedTuple):
    """Input of one network in a training step: the target, the condition, and a prediction function.

    Attributes:
        x0, y: (M, C, d, h, w) and (M, S·C, d, h, w); the pieces of a subject are consecutive.
        predict: computes the prediction for a state of that shape.
    """

    x0: Tensor
    y: Tensor
    predict: Predict


class Window(Protocol):
    """Interface of a window for :mod:`ppdm.method`; implementations are frozen dataclasses.

    Shapes must not depend on random numbers, so that memory can be predicted without data.
    """

    def multiple(self, network: int) -> tuple[int, int, int]:
        """Return the multiples required of the latent sizes if network inputs must be multiples of ``network``.

        Raises:
            ValueError: the window's own sizes are not multiples of ``network``.
        """

    def build(self, make: MakeNetwork, channels: int, sources: int = 1) -> nn.Module:
        """Build the network, or networks, for latents with ``channels`` channels each."""

    def draw(self, x0: Tensor, y: Tensor, generator: torch.Generator | None) -> list[Piece]:
        """Select the pieces for one training step: for each network, the same number of pieces of every subject."""

    def apply(
        self, network: nn.Module, x_t: Tensor, t: Tensor, y: Tensor, on_evaluation: OnEvaluation = no_callback
    ) -> Tensor:
        """Predict for the whole state, for sampling.

        With prediction in blocks, the state may be on another device than the network. ``on_evaluation`` is called
        after every block, or once without blocks.
        """

    def blocks(self, shape: Shape) -> int:
        """Return the number of blocks used to sample a latent (D, H, W); 1 means the whole latent at once."""

    def in_blocks(self, block: Size, overlap: float) -> Self:
        """Return the same window, sampled in overlapping blocks; the block size is in voxels of the latent.

        Raises:
            ValueError: the window does not support blocks, or a value is out of range.
        """


@dataclass(frozen=True)
class Whole:
    """The whole state at once or, optionally in sampling, in blocks that are merged at every step.

    Args:
        concatenate: whether the network receives the source in addition to the state. Without it, a noise-free bridge
            can remain at its start; with it, such a bridge learns a division (docs/limitations.md). Several sources are
            always concatenated, because the state cannot hold them all.
        block: block size for sampling, in voxels of the latent, one number or (D, H, W), limited to the size of the
            volume; if absent, the network sees the whole volume.
        overlap: fraction in [0, 1) of the block size that neighbouring blocks share.

    Raises:
        ValueError: a value is out of range.
    """

    concatenate: bool = True
    block: int | tuple[int, int, int] | None = later(None)
    overlap: float = later(0.25)

    def __post_init__(self) -> None:
        _ = self._size
        check_overlap(self.overlap, "blocks")

    def multiple(self, network: int) -> tuple[int, int, int]:
        check_multiple(self.block, network, "a block")
        return network, network, network

    def build(self, make: MakeNetwork, channels: int, sources: int = 1) -> nn.Module:
        return make((1 + sources if self.concatenate or sources > 1 else 1) * channels, channels, 3)

    def draw(self, x0: Tensor, y: Tensor, generator: torch.Generator | None) -> list[Piece]:
        return [Piece(x0, y, self._predict)]

    def apply(
        self, network: nn.Module, x_t: Tensor, t: Tensor, y: Tensor, on_evaluation: OnEvaluation = no_callback
    ) -> Tensor:
        def predict_part(x_t: Tensor, t: Tensor, y: Tensor, _: Place) -> Tensor:
            return self._predict(network, x_t, t, y)

        return predict_in_blocks(predict_part, network, x_t, t, y, self._size, self.overlap, on_evaluation)

    def _predict(self, network: nn.Module, x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        prediction: Tensor = network([x_t, y] if self.concatenate or y.shape[1] > x_t.shape[1] else x_t, t)
        return prediction

    def blocks(self, shape: Shape) -> int:
        return number_of_blocks(shape, self._size, self.overlap)

    def in_blocks(self, block: Size, overlap: float) -> Self:
        return replace(self, block=block, overlap=overlap)

    @property
    def _size(self) -> tuple[int, ...] | None:
        return None if self.block is None else sizes_of(self.block, "a block's size")


@dataclass(frozen=True)
class Patch:
    """Training on one patch of each subject, sampling on the whole volume (PatchDDM, arXiv 2303.15288).

    Patches near the middle are sampled more often: an offset is the sum of two uniform offsets, over one quarter and
    three quarters of the possible range (FlorentinBieder/PatchDDM-3D, guided_diffusion/bratsloader.py).

    Args:
        size: patch size in voxels of the latent, one number or (D, H, W), limited to the size of the volume; if absent,
            half the volume's size, as the authors use 128 of 256.
        coordinates: whether the network receives its position as three channels from -1 to 1 over the whole volume.
        overlap: if absent, the network sees the whole volume in sampling. If given, it sees patches that share this
            fraction in [0, 1) of their size with their neighbours, and their predictions are merged at every step.
        block: size of the patches in sampling, if it differs from training.

    Raises:
        ValueError: a value is out of range, or block is given without an overlap.
    """

    size: int | tuple[int, int, int] | None = None
    coordinates: bool = True
    overlap: float | None = None
    block: int | tuple[int, int, int] | None = later(None)

    def __post_init__(self) -> None:
        _ = self._sizes((1, 1, 1)), self._seen((1, 1, 1))
        check_overlap(self.overlap, "patches")
        if self.block is not None and self.overlap is None:
            raise ValueError(
                f"blocks of {self.block} need an overlap: give a share in [0, 1) of their size, such as 0.25"
            )

    def multiple(self, network: int) -> tuple[int, int, int]:
        check_multiple(self.size, network, "a patch")
        check_multiple(self.block, network, "a block")
        multiple = network if self.size else 2 * network
        return multiple, multiple, multiple

    def build(self, make: MakeNetwork, channels: int, sources: int = 1) -> nn.Module:
        return make((1 + sources) * channels + 3 * self.coordinates, channels, 3)

    def draw(self, x0: Tensor, y: Tensor, generator: torch.Generator | None) -> list[Piece]:
        places = [_central_places(len(x0), *sizes, generator, x0.device) for sizes in self._extents(x0)]
        axes = [line[at] for line, at in zip(_coordinates(x0), places, strict=True)]
        return [Piece(_crop(x0, places), _crop(y, places), partial(self._predict, axes=axes))]

    def apply(
        self, network: nn.Module, x_t: Tensor, t: Tensor, y: Tensor, on_evaluation: OnEvaluation = no_callback
    ) -> Tensor:
        lines = _coordinates(x_t)

        def predict_part(x_t: Tensor, t: Tensor, y: Tensor, place: Place) -> Tensor:
            axes = [line[None, at].to(x_t.device) for line, at in zip(lines, place, strict=True)]
            return self._predict(network, x_t, t, y, axes=axes)

        return predict_in_blocks(
            predict_part, network, x_t, t, y, self._seen(x_t.shape[2:]), self.overlap or 0, on_evaluation
        )

    def blocks(self, shape: Shape) -> int:
        return number_of_blocks(shape, self._seen(shape), self.overlap or 0)

    def in_blocks(self, block: Size, overlap: float) -> Self:
        return replace(self, block=block, overlap=overlap)

    def _seen(self, shape: Shape) -> Shape | None:
        """Return the size that the network sees at once of a latent (D, H, W) in sampling; None means all of it."""
        if self.overlap is None:
            return None
        return self._sizes(shape) if self.block is None else sizes_of(self.block, "a block's size")

    def _sizes(self, shape: Shape) -> Shape:
        """Return the size of a patch in training."""
        return [s // 2 for s in shape] if self.size is None else sizes_of(self.size, "a patch's size")

    def _extents(self, x: Tensor) -> list[tuple[int, int]]:
        """Return (size of the volume, size of the patch) along each axis, in training."""
        shape = x.shape[2:]
        return [(whole, min(part, whole)) for whole, part in zip(shape, self._sizes(shape), strict=True)]

    def _predict(self, network: nn.Module, x_t: Tensor, t: Tensor, y: Tensor, *, axes: Sequence[Tensor]) -> Tensor:
        """Predict for patches with the given voxel coordinates along each axis, (M, d), (M, h), (M, w)."""
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
    """Return coordinates from -1 to 1 along each spatial axis of (N, C, D, H, W)."""
    return [torch.linspace(-1, 1, size, device=x.device) for size in x.shape[2:]]


def _central_places(n: int, whole: int, part: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
    """Return random indices (n, part) of patches along one axis; positions near the middle are more likely."""

    def uniform(room: int) -> Tensor:
        return torch.randint(room + 1, (n, 1), generator=generator, device=device)

    room = whole - part
    return uniform(room // 4) + uniform(room - room // 4) + torch.arange(part, device=device)


def _crop(x: Tensor, places: Sequence[Tensor]) -> Tensor:
    """Return the patches of (N, C, D, H, W) at indices (N, d), (N, h), (N, w).

    Index tensors are used instead of slices because they stay on the device and can differ between subjects.
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
