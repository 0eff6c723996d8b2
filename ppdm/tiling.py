"""A state seen in overlapping blocks, whose predictions are merged into one.

The state lies where it is, which may be the host; one block of it at a time goes to where the network is. So what the
device holds does not grow with the volume.

Axes: latents (N, C, D, H, W), of blocks (N, C, d, h, w); a shape is (D, H, W).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from math import prod

import torch
from torch import Tensor, nn

Size = int | tuple[int, int, int]
Shape = Sequence[int]
Place = tuple[slice, slice, slice]
See = Callable[[Tensor, Tensor, Tensor, Place], Tensor]  # (x_t, t, y, where of the state that is) -> like x_t
Tell = Callable[[], None]


def nothing() -> None:
    """What is told of an evaluation to nobody."""


@dataclass(frozen=True, eq=False)
class Stretch:
    """What a block covers of one axis.

    Attributes:
        at: where.
        weight: (n,) of its predictions; those of all stretches of the axis add up to 1.
        before: (n,) sum of the weights of the stretches before it.
    """

    at: slice
    weight: Tensor
    before: Tensor


@dataclass(frozen=True, eq=False)
class Block:
    """One block of a state: a stretch of each axis."""

    stretches: tuple[Stretch, Stretch, Stretch]

    @property
    def place(self) -> Place:
        """Where it lies, to index the last three axes with."""
        d, h, w = self.stretches
        return d.at, h.at, w.at

    def share(self) -> Tensor:
        """(d, h, w) in (0, 1]: how far what is merged so far moves to this block's prediction.

        Its weight, over the weights of the blocks up to this one, where they come with the last axis changing first. It
        is 1 where this is the first, and where all agree nothing moves, to the last bit.
        """
        weight = before = self.stretches[0].weight.new_zeros(())
        weight = weight + 1
        for axis, stretch in enumerate(reversed(self.stretches)):
            own, passed = (line.reshape(-1, *[1] * axis) for line in (stretch.weight, stretch.before))
            weight, before = own * weight, passed + own * before
        return weight / (before + weight)


def sizes_of(size: Size, name: str) -> tuple[int, ...]:
    """A size, one number or (D, H, W), as three.

    Raises:
        ValueError: it is no positive integer, nor three of them.
    """
    sizes = size if isinstance(size, Sequence) else (size,) * 3
    if not (len(sizes) == 3 and all(type(s) is int and s > 0 for s in sizes)):
        raise ValueError(f"{name} is a positive integer, or three of them (D, H, W); got {size!r}")
    return tuple(sizes)


def check_overlap(overlap: float | None, name: str) -> None:
    """See that neighbours may share so much of their size.

    Raises:
        ValueError: they may not.
    """
    if overlap is not None and not 0 <= overlap < 1:
        raise ValueError(f"{name} overlap by a share in [0, 1) of their size, got {overlap}")


def check_multiple(size: Size | None, network: int, name: str) -> None:
    """See that a network that halves its input can see such a size, if there is one.

    Raises:
        ValueError: it cannot.
    """
    if size is not None and any(s % network for s in sizes_of(size, name)):
        raise ValueError(f"{name} of {size} must have sizes that are multiples of the network's {network}")


def number_of_blocks(shape: Shape, size: Shape | None, overlap: float) -> int:
    """How many blocks cover a state (D, H, W); 1 without a size."""
    extents = [(whole, min(part, whole)) for whole, part in zip(shape, size or shape, strict=True)]
    return prod(len(_places(whole, part, overlap)) for whole, part in extents)


def blocks_of(shape: Shape, size: Shape, overlap: float, device: torch.device | None = None) -> list[Block]:
    """Cut a state into blocks that cover all of it, the last axis changing first.

    Args:
        shape: of the state.
        size: of a block; what exceeds the state is the state.
        overlap: share in [0, 1) of its size that a block has in common with the next. The last one ends with the state
            and may share more.
        device: of the weights.
    """
    d, h, w = (_stretches(whole, min(part, whole), overlap, device) for whole, part in zip(shape, size, strict=True))
    return [Block(stretches) for stretches in product(d, h, w)]


def predict_in_blocks(
    see: See, network: nn.Module, x_t: Tensor, t: Tensor, y: Tensor, size: Shape | None, overlap: float, told: Tell
) -> Tensor:
    """Predict for a state in blocks, or at once where one covers it; the result lies where the state does.

    Args:
        see: predicts for a part of the state, which lies on the network's device.
        network: what it predicts with.
        x_t, y: the state and the source, on one device.
        t: (N,).
        size, overlap: as for :func:`blocks_of`; without a size it is seen at once.
        told: called after every block.
    """
    shape = x_t.shape[2:]
    if size is None or number_of_blocks(shape, size, overlap) == 1:
        d, h, w = map(slice, shape)
        prediction = see(x_t, t, y, (d, h, w))
        told()
        return prediction
    device = next((p.device for p in network.parameters()), x_t.device)
    t, total = t.to(device), torch.zeros_like(x_t)
    for block in blocks_of(shape, size, overlap, x_t.device):
        there, part, source = (z[..., *block.place] for z in (total, x_t, y))
        there.lerp_(see(part.to(device), t, source.to(device), block.place).to(total), block.share())
        told()
    return total


def ramp(size: int, before: int, after: int, device: torch.device | None = None) -> Tensor:
    """Weights (size,) of a stretch: they fall linearly over what it shares with its neighbours, and stay above 0.

    Args:
        size: voxels of the stretch.
        before, after: voxels that it shares with the one before and the one after; 0 where there is none.
        device: of the weights.
    """
    place = torch.arange(size, device=device)
    rise, fall = (place + 1) / (before + 1), (size - place) / (after + 1)
    return torch.minimum(rise, fall).clamp_max(1)


def _stretches(whole: int, part: int, overlap: float, device: torch.device | None) -> list[Stretch]:
    places = _places(whole, part, overlap)
    shared = [0, *(max(a.stop - b.start, 0) for a, b in pairwise(places)), 0]
    weights = torch.zeros(len(places), whole, device=device)
    for row, place, before, after in zip(weights, places, shared, shared[1:], strict=False):
        row[place] = ramp(part, before, after, device)
    weights = weights / weights.sum(0)
    passed = weights.cumsum(0) - weights  # 0 exactly where a stretch is the first
    return [Stretch(at, own[at], before[at]) for at, own, before in zip(places, weights, passed, strict=True)]


def _places(whole: int, part: int, overlap: float) -> list[slice]:
    """Where stretches lie, so that all of an axis is covered; the last one ends with it."""
    stride = max(round(part * (1 - overlap)), 1)
    return [slice(first, first + part) for first in (*range(0, whole - part, stride), whole - part)]
