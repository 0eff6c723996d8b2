"""A volume and how it is shown: its colours, and which values are at their two ends."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

Colours = Literal["gray", "pet", "error"]
Window = tuple[float, float]

# Grey as in MRI, inverted grey as in nuclear medicine, and for errors a scale with white in its middle.
COLOUR_MAPS = {"gray": "gray", "pet": "gray_r", "error": "RdBu_r"}

_PERCENTILES = {"gray": (0.5, 99.5), "pet": (0.0, 99.8), "error": (0.0, 99.5)}


@dataclass(frozen=True, eq=False)
class Panel:
    """A volume and how it is shown.

    Attributes:
        array: (D, H, W), finite.
        name: stands beside the pictures.
        colours: gray (MRI), pet (dark is high), error (red is above zero, blue below).
        window: values of the two ends of the scale; if absent, percentiles of the array: 0.5 and 99.5 for gray, zero to
            99.8 for pet, and for an error the 99.5th of its size on both sides of zero.
        unit: of the values; a volume with a unit has a colour bar.

    Raises:
        ValueError: the array is no finite volume, or the window does not suit the colours.
    """

    array: np.ndarray
    name: str
    colours: Colours = "gray"
    window: Window | None = None
    unit: str = ""

    def __post_init__(self) -> None:
        if self.array.ndim != 3 or not self.array.size or not np.isfinite(self.array).all():
            raise ValueError(f"{self.name}: a panel needs a finite volume (D, H, W), got shape {self.array.shape}")
        if self.colours not in COLOUR_MAPS:
            raise ValueError(f"{self.name}: colours are {', '.join(COLOUR_MAPS)}, got {self.colours!r}")
        low, high = self.limits
        if not low < high or (self.colours == "error" and low != -high):
            raise ValueError(f"{self.name}: a window is (low, high), of an error (-x, x); got ({low:g}, {high:g})")

    @cached_property
    def limits(self) -> Window:
        """The window that is used."""
        if self.window is not None:
            return self.window
        values = np.abs(self.array) if self.colours == "error" else self.array
        low, high = np.percentile(values, _PERCENTILES[self.colours]).tolist()
        if self.colours == "gray":
            return low, high if high > low else low + 1.0
        high = high if high > 0 else 1.0
        return (0.0 if self.colours == "pet" else -high), high
