"""Intensity scaling of a data set: conversion to network values, and of translations back to physical values.

A scaling is fixed in training and stored with the weights. It gives each scan two scales, one for the source and one
for the target. Translation therefore needs no target.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np

from ppdm.data.normalise import (
    HounsfieldWindow,
    Intensity,
    IntensityError,
    LogSUV,
    Range,
    intensity_from_dict,
    percentile_range,
)


@dataclass(frozen=True)
class PercentileScaling:
    """MRI and CT: each source is scaled by its own percentiles, every target by one range fixed in training.

    Args:
        target: the pooled range of the training targets, physical values; for CT, a window in HU.
        low, high: percentiles of a source that map to -1 and +1.
        source: window in HU of CT sources, which replaces the percentiles.

    Raises:
        IntensityError: target is not a Range, source is not a window, or the percentiles do not satisfy
            0 <= low < high <= 100.
    """

    kind: ClassVar[str] = "percentiles"
    target: Range
    low: float = 0.1
    high: float = 99.9
    source: HounsfieldWindow | None = None

    def __post_init__(self) -> None:
        numbers = all(type(p) in (int, float) for p in (self.low, self.high))
        if not isinstance(self.source, HounsfieldWindow | None):
            raise IntensityError(f"Expected a window in HU for the source, or none; got {self.source!r}.")
        if not (isinstance(self.target, Range) and numbers and 0 <= self.low < self.high <= 100):
            raise IntensityError(f"Expected a target Range and percentiles 0 <= low < high <= 100; got {self}.")

    @property
    def unit(self) -> str:
        """Unit of the target: HU for CT; empty for MRI, which has no unit."""
        return "HU" if isinstance(self.target, HounsfieldWindow) else ""

    def to_dict(self) -> dict[str, Any]:
        """Return the scaling as JSON values; without `source` if it is None, as in files of earlier versions."""
        whole = {"kind": self.kind, "target": self.target.to_dict(), "low": self.low, "high": self.high}
        return whole if self.source is None else {**whole, "source": self.source.to_dict()}

    def scales(self, source: np.ndarray, suv_factor: float | None = None) -> tuple[Intensity, Intensity]:
        """Return the scales of a source (physical values, any shape) and of its target.

        Raises:
            IntensityError: the source has no contrast, or a factor was given although the data are not PET.
        """
        if suv_factor is not None:
            kind = "CT" if self.unit else "MRI"
            raise IntensityError(
                f"An SUV factor is for PET, and this method was trained on {kind}; leave the factor out."
            )
        return self.source or percentile_range(source, self.low, self.high), self.target


@dataclass(frozen=True)
class SUVScaling:
    """PET: source and target share one logarithmic SUV scale with fixed constants, without statistics of scans.

    Args:
        stored: whether the training files contained SUV. If not, every scan needs its own factor.
        ceiling: the SUV that maps to +1.

    Raises:
        IntensityError: stored is not a boolean, or the ceiling is not positive.
    """

    kind: ClassVar[str] = "suv"
    unit: ClassVar[str] = "SUV"
    stored: bool = True
    ceiling: float = 20.0

    def __post_init__(self) -> None:
        if type(self.stored) is not bool:
            raise IntensityError(f"Whether files hold SUV is true or false; got {self.stored!r}.")
        LogSUV(ceiling=self.ceiling)

    def to_dict(self) -> dict[str, Any]:
        """Return the scaling as JSON values."""
        return {"kind": self.kind, "stored": self.stored, "ceiling": self.ceiling}

    def scales(self, source: np.ndarray, suv_factor: float | None = None) -> tuple[Intensity, Intensity]:
        """Return the scale of a source and of its target, both in the stored units of the source.

        Raises:
            IntensityError: the factor is required but missing, or it is not positive.
        """
        if suv_factor is None and not self.stored:
            raise IntensityError(
                "Each training scan was converted to SUV by its own factor, so this scan needs its factor too: give "
                "suv_factor = 1000 · weight in kg / decay-corrected dose in Bq, or 1 if the file holds SUV."
            )
        scale = LogSUV(1.0 if suv_factor is None else suv_factor, self.ceiling)
        return scale, scale


Scaling = PercentileScaling | SUVScaling
SCALINGS: Mapping[str, type[PercentileScaling] | type[SUVScaling]] = {
    kind.kind: kind for kind in (PercentileScaling, SUVScaling)
}


def scaling_from_dict(d: Any) -> Scaling:
    """Make a scaling from the result of ``to_dict``; only the kinds in :data:`SCALINGS` are accepted.

    Raises:
        IntensityError: the dictionary does not describe a scaling.
    """
    kind = SCALINGS.get(str(d.get("kind"))) if isinstance(d, Mapping) else None
    optional = {"source"} if kind is PercentileScaling else set()
    if kind is None or d.keys() - {"kind"} - optional != {field.name for field in fields(kind)} - optional:
        raise IntensityError(f"expected a scaling, one of {', '.join(SCALINGS)} with its fields, got {d!r}")
    values = {name: value for name, value in d.items() if name != "kind"}
    for role in ("source", "target"):
        if role in values:
            values[role] = intensity_from_dict(values[role])
    return kind(**values)
