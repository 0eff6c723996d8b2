"""Augmentation: what is done to both volumes of a pair alike before a step sees them.

Axes: a batch (N, C, D, H, W); D runs from left to right, H from posterior to anterior, W from inferior to superior.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

_AXES = {"d": -3, "h": -2, "w": -1}


@dataclass(frozen=True)
class Flip:
    """Mirror each subject along each of some axes, with probability one half each.

    Left and right (``d``) may be swapped where the body is nearly symmetric, as the head is. In the trunk that puts the
    heart and the liver on the other side, and along the other axes nobody lies upside down in a scanner: an
    augmentation there teaches what never occurs, which can still help where subjects are few.

    Args:
        axes: some of the letters d, h and w, each at most once.

    Raises:
        ValueError: no axis, another letter, or one twice.
    """

    axes: str = "d"

    def __post_init__(self) -> None:
        letters = set(self.axes) if isinstance(self.axes, str) else set()
        if not letters or letters - set(_AXES) or len(letters) < len(self.axes):
            raise ValueError(f"flips are along some of the axes d, h and w, each once, got {self.axes!r}")

    def __call__(
        self, source: Tensor, target: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Both volumes (N, C, D, H, W) with the same flips; the generator is on their device."""
        coins = torch.rand(len(source), len(self.axes), generator=generator, device=source.device) < 0.5
        for axis, heads in zip(self.axes, coins.T, strict=True):
            # Chosen where the coins lie: whoever looks at them makes the host wait for the device.
            turned = heads[:, None, None, None, None]
            source, target = (torch.where(turned, volume.flip(_AXES[axis]), volume) for volume in (source, target))
        return source, target
