"""Tiling: prediction in overlapping blocks, which are merged.

The state stays on its device, which may be the host; one block at a time moves to the network's device. The memory
used on that device therefore does not grow with the volume.

Shapes: latents (N, C, D, H, W), blocks (N, C, d, h, w); a shape is (D, H, W).
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
PredictPart = Callable[[Tensor, Tensor, Tensor, Place], Tensor]  # (x_t, t, y, place in the state) -> like x_t
OnEvaluation = Callable[[], None]  # called after every network evaluation, to show progress


def no_callback() -> None:
    """Do nothing after an evaluation."""


@dataclass(frozen=True, eq=False)
class Interval:
    """The extent of a block along one axis.

    Attributes:
        at: slice of the axis.
        weight: (n,) weights of the block's predictions; the weights of all intervals of the axis add up to 1.
        before: (n,) sum of the weights of the previous intervals.
    """

    at: slice
    weight: Tensor
    before: Tensor


@dataclass(frozen=True, eq=False)
class VolumeBlock:
    """One block of a state: one interval for each axis."""

    intervals: tuple[Interval, Interval, Interval]

    @property
    def place(self) -> Place:
        """Index of the block in the last three axes."""
        d, h, w = self.intervals
        return d.at, h.at, w.at

    def share(self) -> Tensor:
        """Return (d, h, w) in (0, 1]: interpolation weight from the merged result so far to this block's prediction.

        This is the weight of the block divided by the sum of the weights of all blocks up to this one, in the order in
        which the last axis changes fastest. It is 1 for the first block at a voxel. Where all predictions agree, the
        merged result does not change by a single bit.
        """
        weight = before = self.intervals[0].weight.new_zeros(())
        weight = weight + 1
        for axis, interval in enumerate(reversed(self.intervals)):
            own, passed = (line.reshape(-1, *[1] * axis) for line in (interval.weight, interval.before))
            weight, before = own * weight, passed + own * before
        return weight / (before + weight)


def sizes_of(size: Size, name: str) -> tuple[int, ...]:
    """Convert a size, one number or (D, H, W), to three numbers.

    Raises:
        ValueError: the size is not a positive integer, or three of them.
    """
    sizes = size if isinstance(size, Sequence) else (size,) * 3
    if not (len(sizes) == 3 and all(type(s) is int and s > 0 for s in sizes)):
        raise ValueError(f"{name} is a positive integer, or three of them (D, H, W); got {size!r}")
    return tuple(sizes)


def check_overlap(overlap: float | None, name: str) -> None:
    """Check that an overlap, if given, is in [0, 1).

    Raises:
        ValueError: the overlap is out of range.
    """
    if overlap is not None and not 0 <= overlap < 1:
        raise ValueError(f"{name} must overlap by a share in [0, 1) of their size, got {overlap}")


def check_multiple(size: Size | None, network: int, name: str) -> None:
    """Check that a size, if given, is a multiple of the network's downsampling factor.

    Raises:
        ValueError: the size is not a multiple of it.
    """
    if size is not None and any(s % network for s in sizes_of(size, name)):
        raise ValueError(f"{name} of {size} must have sizes that are multiples of the network's {network}")


def number_of_blocks(shape: Shape, size: Shape | None, overlap: float) -> int:
    """Return the number of blocks that cover a state (D, H, W); 1 without a size."""
    extents = [(whole, min(part, whole)) for whole, part in zip(shape, size or shape, strict=True)]
    return prod(len(_places(whole, part, overlap)) for whole, part in extents)


def blocks_of(shape: Shape, size: Shape, overlap: float, device: torch.device | None = None) -> list[VolumeBlock]:
    """Divide a state into blocks that cover all of it; the last axis changes fastest.

    Args:
        shape: shape of the state.
        size: size of a block, limited to the size of the state.
        overlap: fraction in [0, 1) of its size that a block shares with the next one. The last block ends at the end of
            the state and may share more.
        device: device of the weights.
    """
    d, h, w = (_intervals(whole, min(part, whole), overlap, device) for whole, part in zip(shape, size, strict=True))
    return [VolumeBlock(intervals) for intervals in product(d, h, w)]


def predict_in_blocks(
    predict_part: PredictPart,
    network: nn.Module,
    x_t: Tensor,
    t: Tensor,
    y: Tensor,
    size: Shape | None,
    overlap: float,
    on_evaluation: OnEvaluation,
) -> Tensor:
    """Predict for a state in blocks, or at once if one block covers it; the result is on the state's device.

    Args:
        predict_part: predicts for a part of the state that is on the network's device.
        network: the network used by ``predict_part``.
        x_t, y: the state and the source, on the same device.
        t: (N,).
        size, overlap: as for :func:`blocks_of`; without a size, the whole state is one block.
        on_evaluation: called after every block.
    """
    shape = x_t.shape[2:]
    if size is None or number_of_blocks(shape, size, overlap) == 1:
        d, h, w = map(slice, shape)
        prediction = predict_part(x_t, t, y, (d, h, w))
        on_evaluation()
        return prediction
    device = next((p.device for p in network.parameters()), x_t.device)
    t, total = t.to(device), torch.zeros_like(x_t)
    for block in blocks_of(shape, size, overlap, x_t.device):
        there, part, source = (z[..., *block.place] for z in (total, x_t, y))
        there.lerp_(predict_part(part.to(device), t, source.to(device), block.place).to(total), block.share())
        on_evaluation()
    return total


def ramp(size: int, before: int, after: int, device: torch.device | None = None) -> Tensor:
    """Return weights (size,) of an interval: they fall linearly in the overlaps with its neighbours and stay above 0.

    Args:
        size: number of voxels of the interval.
        before, after: number of voxels shared with the previous and the next interval; 0 if there is none.
        device: device of the weights.
    """
    place = torch.arange(size, device=device)
    rise, fall = (place + 1) / (before + 1), (size - place) / (after + 1)
    return torch.minimum(rise, fall).clamp_max(1)


def _intervals(whole: int, part: int, overlap: float, device: torch.device | None) -> list[Interval]:
    places = _places(whole, part, overlap)
    shared = [0, *(max(a.stop - b.start, 0) for a, b in pairwise(places)), 0]
    weights = torch.zeros(len(places), whole, device=device)
    for row, place, before, after in zip(weights, places, shared, shared[1:], strict=False):
        row[place] = ramp(part, before, after, device)
    weights = weights / weights.sum(0)
    passed = weights.cumsum(0) - weights  # exactly 0 for the first interval at a voxel
    return [Interval(at, own[at], before[at]) for at, own, before in zip(places, weights, passed, strict=True)]


def _places(whole: int, part: int, overlap: float) -> list[slice]:
    """Return slices that cover a whole axis; the last one ends at the end of the axis."""
    stride = max(round(part * (1 - overlap)), 1)
    return [slice(first, first + part) for first in (*range(0, whole - part, stride), whole - part)]
