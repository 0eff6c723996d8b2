"""Augmentation: the same random transform for both volumes of a pair, before each training step.

Shapes: a batch is (N, C, D, H, W); D runs from left to right, H from posterior to anterior, W from inferior to
superior.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

_AXES = {"d": -3, "h": -2, "w": -1}


@dataclass(frozen=True)
class Flip:
    """Flip each subject along each given axis, with probability one half for each axis.

    A left-right flip (``d``) suits nearly symmetric body parts, such as the head. In the trunk, it moves the heart and
    the liver to the wrong side. Flips along the other axes produce orientations that do not occur in a scanner. Such
    augmentation trains on unrealistic volumes, but can still help when subjects are few.

    Args:
        axes: a subset of the letters d, h and w, each at most once.

    Raises:
        ValueError: axes is empty, contains another letter, or repeats a letter.
    """

    axes: str = "d"

    def __post_init__(self) -> None:
        letters = set(self.axes) if isinstance(self.axes, str) else set()
        if not letters or letters - set(_AXES) or len(letters) < len(self.axes):
            raise ValueError(f"flips take some of the axes d, h and w, each at most once, got {self.axes!r}")

    def __call__(
        self, source: Tensor, target: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Apply the same flips to both volumes (N, C, D, H, W); the generator is on their device."""
        chosen = torch.rand(len(source), len(self.axes), generator=generator, device=source.device) < 0.5
        for axis, is_flipped in zip(self.axes, chosen.T, strict=True):
            # Select on the device: reading the random numbers would make the host wait for the device.
            flipped = is_flipped[:, None, None, None, None]
            source, target = (torch.where(flipped, volume.flip(_AXES[axis]), volume) for volume in (source, target))
        return source, target
