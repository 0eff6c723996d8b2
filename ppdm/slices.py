"""Slice windows: the network sees 2-D slices of the state; each view has its own 2-D network.

Shapes: latents (N, C, D, H, W), time (N,); slices (M, C, …), one voxel thick; inside a network (M, C, a, b).
"""

from dataclasses import dataclass
from functools import partial
from typing import Self

import torch
from torch import Tensor, nn

from ppdm.tiling import OnEvaluation, Shape, Size, no_callback
from ppdm.window import MakeNetwork, Piece

_LETTERS = "dhw"
_MOST = 1 << 10  # largest number of context slices on either side


@dataclass(frozen=True)
class Slices:
    """Slices through 2-D networks, one per view, with averaged predictions (MADM, arXiv 2406.08374).

    A slice is a volume one voxel thick, so that every representation and loss works with it. All views predict for the
    same state, which then takes one step. The views thus share the noise; averaging separate samples would reduce its
    variance.

    Args:
        views: axes perpendicular to the slices: ``d`` sagittal, ``h`` coronal, ``w`` axial.
        context: number of source slices on either side of the predicted slice that the network also sees; the outermost
            slices are repeated at the border.
        drawn: number of slices of each subject for each view in a training step.
        batch: number of slices in one network evaluation during sampling.

    Raises:
        ValueError: a value is out of range.
    """

    views: str = "dhw"
    context: int = 8
    drawn: int = 8
    batch: int = 64

    def __post_init__(self) -> None:
        if not self.views or not set(self.views) <= set(_LETTERS) or len(set(self.views)) < len(self.views):
            raise ValueError(f"views are letters out of {_LETTERS}, each once, got {self.views!r}")
        for name, least in (("context", 0), ("drawn", 1), ("batch", 1)):
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
        if self.context > _MOST:
            raise ValueError(f"context is at most {_MOST} slices on either side, got {self.context}")

    def multiple(self, network: int) -> tuple[int, int, int]:
        d, h, w = (1 if self.views == letter else network for letter in _LETTERS)  # a single view's axis is in no slice
        return d, h, w

    def build(self, make: MakeNetwork, channels: int, sources: int = 1) -> nn.Module:
        seen = channels * (1 + sources * (1 + 2 * self.context))
        return nn.ModuleDict({view: make(seen, channels, 2) for view in self.views})

    def draw(self, x0: Tensor, y: Tensor, generator: torch.Generator | None) -> list[Piece]:
        return [self._draw(view, x0, y, generator) for view in self.views]

    def _draw(self, view: str, x0: Tensor, y: Tensor, generator: torch.Generator | None) -> Piece:
        axis = _axis(view)
        at = torch.randint(x0.shape[axis], (len(x0), self.drawn), generator=generator, device=x0.device)
        predict = partial(self._predict, view=view, around=self._around(y, axis, at))
        return Piece(_slices(x0, axis, at), _slices(y, axis, at), predict)

    def apply(
        self, network: nn.Module, x_t: Tensor, t: Tensor, y: Tensor, on_evaluation: OnEvaluation = no_callback
    ) -> Tensor:
        mean, at_once = torch.zeros_like(x_t), max(self.batch // len(x_t), 1)
        for view in self.views:
            size = x_t.shape[_axis(view)]
            for places in (range(size)[k : k + at_once] for k in range(0, size, at_once)):
                part = mean.movedim(_axis(view), 1)[:, places.start : places.stop]
                part += self._apply(network, view, places, x_t, t, y) / len(self.views)
        on_evaluation()
        return mean

    def blocks(self, shape: Shape) -> int:
        return 1

    def in_blocks(self, block: Size, overlap: float) -> Self:
        raise ValueError("slices are not cut into blocks; a smaller window.batch takes less memory")

    def _apply(self, network: nn.Module, view: str, places: range, x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """Predict for some slices of each subject; return (N, k, C, a, b)."""
        axis, n = _axis(view), len(x_t)
        at = torch.arange(places.start, places.stop, device=x_t.device).expand(n, -1)
        times = t.repeat_interleave(len(places))
        predicted = self._predict(
            network, _slices(x_t, axis, at), times, y, view=view, around=self._around(y, axis, at)
        )
        return predicted.squeeze(axis).unflatten(0, (n, -1))

    def _around(self, y: Tensor, axis: int, at: Tensor) -> Tensor:
        """Return the source slices around each place (N, k) as channels: (N·k, (2·context + 1)·C, a, b)."""
        offsets = torch.arange(-self.context, self.context + 1, device=at.device)
        neighbours = (at[..., None] + offsets).clamp(0, y.shape[axis] - 1)
        rows = torch.arange(len(y), device=at.device)[:, None, None]
        return y.movedim(axis, 1)[rows, neighbours].flatten(2, 3).flatten(0, 1)

    def _predict(self, network: nn.Module, x_t: Tensor, t: Tensor, y: Tensor, *, view: str, around: Tensor) -> Tensor:
        """Predict for slices; the network sees the source slices in ``around``, whose middle slice is y itself."""
        assert isinstance(network, nn.ModuleDict)
        axis = _axis(view)
        prediction: Tensor = network[view]([x_t.squeeze(axis), around], t)
        return prediction.unsqueeze(axis)


def _axis(view: str) -> int:
    """Return the axis of (N, C, D, H, W) perpendicular to the slices of a view."""
    return 2 + _LETTERS.index(view)


def _slices(x: Tensor, axis: int, at: Tensor) -> Tensor:
    """Return slices of (N, C, D, H, W) at places (N, k) of an axis: (N·k, C, …), one voxel thick along the axis."""
    rows = torch.arange(len(x), device=at.device)[:, None]
    return x.movedim(axis, 1)[rows, at].flatten(0, 1).unsqueeze(axis)
