"""Conversion of intensities to network values, about [-1, 1], and back.

In MRI, the source of each subject is scaled by its own percentiles (`percentile_range`). The target is scaled by
constants that training computes once (`pooled_range`) and stores in the checkpoint. CT has a fixed window
(`HounsfieldWindow`). In PET, source and target share a scale with fixed constants (`LogSUV`). So translation needs no
statistic of the target, and the output has the target's physical units.

Every scale works on numpy arrays and on torch tensors of any device, without importing torch.
"""

import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar

import numpy as np

if TYPE_CHECKING:
    import torch

Array = TypeVar("Array", "np.ndarray", "torch.Tensor")


class IntensityError(ValueError):
    """Constants or intensities do not define a scale; the message gives what was found and what was expected."""


@dataclass(frozen=True)
class Range:
    """Linear scale: `low` maps to -1 and `high` to +1; values outside are not clipped.

    Args:
        low, high: physical values, finite, low < high.

    Raises:
        IntensityError: low and high do not meet these conditions.
    """

    kind: ClassVar[str] = "range"
    _what: ClassVar[str] = "A range"
    low: float
    high: float

    def __post_init__(self) -> None:
        _check_numbers(self)
        if not self.low < self.high or not 0 < self._gain < math.inf:
            raise IntensityError(f"{self._what} needs low < high; got low {self.low} and high {self.high}.")

    @property
    def _gain(self) -> float:
        return 2.0 / (self.high - self.low)

    def forward(self, array: Array) -> Array:
        """Convert physical values to network values; any shape."""
        return (array - self.low) * self._gain - 1.0

    def inverse(self, array: Array) -> Array:
        """Convert network values to physical values; any shape."""
        return (array + 1.0) / self._gain + self.low

    def to_dict(self) -> dict[str, Any]:
        """Return the scale as JSON values; `intensity_from_dict` reads them."""
        return {"kind": self.kind, **asdict(self)}


@dataclass(frozen=True)
class HounsfieldWindow(Range):
    """Linear scale of CT: `low` HU maps to -1 and `high` HU to +1; values outside are clipped, in both directions.

    The default is the range to which SynthRAD clips CT before it computes PSNR and SSIM (``dynamic_range`` in
    github.com/SynthRAD2023/metrics and SynthRAD2025/metrics): air lies at -1000 HU, and only metal and some enamel lie
    above 3000 HU. It is the same for all scans, because HU are a physical scale.

    Args:
        low, high: HU, finite, low < high.

    Raises:
        IntensityError: low and high do not meet these conditions.
    """

    kind: ClassVar[str] = "hounsfield"
    _what: ClassVar[str] = "A CT window"
    low: float = -1024.0
    high: float = 3000.0

    def __str__(self) -> str:
        low, high = (np.format_float_positional(end, trim="-") for end in (self.low, self.high))
        return f"ct:{low},{high}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``ct``, which means the default, or ``ct:LOW,HIGH`` in HU; ``str()`` writes the second form.

        Raises:
            IntensityError: the text is neither, or the window has no width.
        """
        number = r"\s*([+-]?\d{1,9}(?:\.\d{1,9})?)\s*"
        match = re.fullmatch(rf"ct(?::{number},{number})?", text.strip().lower())
        if not match:
            raise IntensityError(f"An intensity is ct, or ct:LOW,HIGH in HU such as ct:-1000,2000; got {text!r}.")
        return cls(float(match[1]), float(match[2])) if match[1] else cls()

    def forward(self, array: Array) -> Array:
        """Convert HU to network values in [-1, 1]; any shape."""
        return super().forward(array.clip(self.low, self.high))

    def inverse(self, array: Array) -> Array:
        """Convert network values to HU inside the window; any shape."""
        return super().inverse(array).clip(self.low, self.high)


@dataclass(frozen=True)
class LogSUV:
    """Scale of PET: log(1 + SUV), with SUV = max(0, value · factor); SUV 0 maps to -1 and `ceiling` to +1.

    The logarithm expands low uptakes, where noise is visible, and keeps lesions within the range. Values above the
    ceiling are not clipped. The inverse returns stored units (SUV / factor); they are never negative.

    Args:
        factor: SUV per stored unit: 1000 · weight in kg / (dose in Bq, decayed to the scan); 1 if the file holds SUV.
        ceiling: the SUV that maps to +1. A ceiling of 20 includes most lesions (SUV 4 to 15) and the brain (8).

    Raises:
        IntensityError: factor or ceiling is not a positive finite number.
    """

    kind: ClassVar[str] = "log_suv"
    factor: float = 1.0
    ceiling: float = 20.0

    def __post_init__(self) -> None:
        _check_numbers(self)
        if not (self.factor > 0 and self.ceiling > 0):
            raise IntensityError(f"LogSUV needs a positive factor and ceiling; got {self.factor} and {self.ceiling}.")

    @property
    def _gain(self) -> float:
        return 2.0 / math.log1p(self.ceiling)

    def forward(self, array: Array) -> Array:
        """Convert stored values to network values; any shape."""
        return _elementwise("log1p", (array * self.factor).clip(0.0)) * self._gain - 1.0

    def inverse(self, array: Array) -> Array:
        """Convert network values to stored values; any shape."""
        return _elementwise("expm1", ((array + 1.0) / self._gain).clip(0.0)) / self.factor

    def to_dict(self) -> dict[str, Any]:
        """Return the scale as JSON values; `intensity_from_dict` reads them."""
        return {"kind": self.kind, **asdict(self)}


Intensity = Range | LogSUV
INTENSITIES: dict[str, type[Range] | type[LogSUV]] = {kind.kind: kind for kind in (Range, LogSUV, HounsfieldWindow)}


def intensity_from_dict(d: Mapping[str, Any]) -> Intensity:
    """Make a scale from the result of `to_dict`.

    Raises:
        IntensityError: the kind is unknown, a field is missing or unknown, or a value is not a finite number.
    """
    kind = d.get("kind") if isinstance(d, Mapping) else None
    if not isinstance(kind, str) or kind not in INTENSITIES:
        raise IntensityError(f"Expected an intensity with a kind among {', '.join(INTENSITIES)}; got {d!r}.")
    expected = {field.name for field in fields(INTENSITIES[kind])}
    if set(d) - {"kind"} != expected:
        raise IntensityError(f"An intensity of kind {kind} has the fields {', '.join(sorted(expected))}; got {d!r}.")
    return INTENSITIES[kind](**{name: d[name] for name in expected})


def percentile_range(array: np.ndarray, low: float = 0.1, high: float = 99.9) -> Range:
    """Return the range between two percentiles of an image of any shape, background included.

    Args:
        array: finite physical values.
        low, high: percentiles, 0 <= low < high <= 100.

    Raises:
        IntensityError: there are no voxels, a voxel is not finite, or the two percentiles are equal.
    """
    if not 0 <= low < high <= 100:
        raise IntensityError(f"Percentiles must satisfy 0 <= low < high <= 100; got {low} and {high}.")
    values = np.asarray(array)
    if not values.size or not np.isfinite(values).all():
        raise IntensityError(f"Percentiles need finite voxels; got shape {values.shape} with NaN, infinity or nothing.")
    bottom, top = np.percentile(values, (low, high)).tolist()
    if not bottom < top:
        raise IntensityError(
            f"The image has no contrast: its percentiles {low} and {high} are both {bottom:g}; "
            "check that it is not empty."
        )
    return Range(bottom, top)


def pooled_range(ranges: Sequence[Range]) -> Range:
    """Return one range for all targets: the medians of `low` and of `high` over the training subjects.

    A few scans with unusual scaling hardly change the median, but would change the mean or the extremes.

    Raises:
        IntensityError: there are no ranges.
    """
    if not ranges:
        raise IntensityError("A pooled range needs at least one training subject; got none.")
    return Range(float(np.median([r.low for r in ranges])), float(np.median([r.high for r in ranges])))


def _check_numbers(scale: Intensity) -> None:
    for field in fields(scale):
        value = getattr(scale, field.name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
            raise IntensityError(f"{type(scale).__name__}: {field.name} must be a finite number; got {value!r}.")


def _elementwise(name: str, array: Array) -> Array:
    """Apply log1p or expm1: a method of tensors, a function of numpy."""
    method = getattr(array, name, None)
    result: Array = method() if method else getattr(np, name)(array)
    return result
