"""How a prediction is scored: reconstruction, and PPDM's puzzle-gradient against grid artefacts.

Axes: anything (N, …) for the reconstruction, volumes (N, C, D, H, W) for the gradient. All losses are one number a
subject, (N,), so that weights and records can be per subject.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

MODES = ("off", "all", "cell")


@dataclass(frozen=True)
class Loss:
    """What is minimised: ``mean|output − target|^p + λ·Σ_axis mean|∂_axis(x̂0 − x0)|^p`` on the volume.

    The gradient of the difference is the difference of the gradients, so one volume is differenced and not two.

    Args:
        p: 1 or 2, for both terms.
        gradient: λ; 0 exactly if the mode is ``off``.
        mode: which finite differences count: ``all``; ``cell``, those that cross a border of the puzzle's cells, where
            a grid would show; ``off``.

    Raises:
        ValueError: a value outside these.
    """

    p: int = 2
    gradient: float = 0.0
    mode: str = "off"

    def __post_init__(self) -> None:
        if self.p not in (1, 2):
            raise ValueError(f"the loss is a mean of |·|^p with p 1 or 2, got p = {self.p!r}")
        if self.mode not in MODES:
            raise ValueError(f"the gradient loss has modes {', '.join(MODES)}; got {self.mode!r}")
        if not self.gradient >= 0 or (self.gradient > 0) == (self.mode == "off"):
            raise ValueError(
                f"a gradient weight of {self.gradient} does not go with mode {self.mode!r}: "
                "give a positive weight with 'all' or 'cell', or 0 with 'off'"
            )

    def reconstruction(self, output: Tensor, wanted: Tensor) -> Tensor:
        """``mean|output − wanted|^p`` for each subject, (N,)."""
        return _mean_power(output - wanted, self.p)

    def puzzle_gradient(self, error: Tensor, cell: Sequence[int]) -> Tensor:
        """``λ·Σ_axis mean|∂_axis error|^p`` for each subject, differences taken in voxels.

        Args:
            error: x̂0 − x0 as volumes (N, C, D, H, W).
            cell: the puzzle's factor along each axis.
        """
        total = error.new_zeros(error.shape[0])
        for axis, r in enumerate(cell, start=2):
            every = r if self.mode == "cell" else 1
            if error.shape[axis] > every:
                line = error.movedim(axis, -1)
                crossing = line[..., every::every] - line[..., every - 1 : -1 : every]
                total = total + _mean_power(crossing, self.p)
        return self.gradient * total


def _mean_power(x: Tensor, p: int) -> Tensor:
    return (x.abs() if p == 1 else x.square()).flatten(1).mean(1)
