"""Representation of a phantom: fractions of tissues on a grid of voxels.

Axes: a volume (D, H, W) in RAS+ order. D runs from the patient's left to the right, H from posterior to anterior, W
from inferior to superior. Positions in mm are (right, anterior, superior) relative to the anatomy's origin, which is
the centre of every grid.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

TISSUES = (
    "air",
    "csf",
    "grey_matter",
    "white_matter",
    "deep_grey",
    "lesion",
    "cortical_bone",
    "marrow",
    "fat",
    "muscle",
    "skin",
    "lung",
    "liver",
    "spleen",
    "kidney",
    "myocardium",
    "blood",
    "bowel",
)

# Right-left, posterior-anterior and inferior-superior extent in mm that contains an anatomy.
FIELDS_OF_VIEW = {"head": (168.0, 224.0, 196.0), "torso": (400.0, 300.0, 320.0)}
PRESETS = ("cubic", "oblong", "thick")

# Typical ratio of slice thickness to pixel width in clinical scans.
_THICKNESS = 2.5
# The sizes of oblong and thick grids are multiples of this, so that networks can halve them.
_MULTIPLE = 4


class PhantomError(ValueError):
    """Invalid grid, kind or tissue; the message states the received and the expected value."""


@dataclass(frozen=True)
class Grid:
    """Voxel grid on which an anatomy is evaluated, centred on its origin.

    Args:
        shape: number of voxels along D, H and W.
        spacing: edge lengths of a voxel in mm.

    Raises:
        PhantomError: not three whole numbers of voxels, or not three positive finite lengths.
    """

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]

    def __post_init__(self) -> None:
        if len(self.shape) != 3 or not all(isinstance(n, int | np.integer) and n >= 1 for n in self.shape):
            raise PhantomError(f"A grid's shape is three whole numbers from 1 on, like (64, 64, 64); got {self.shape}.")
        if len(self.spacing) != 3 or not all(math.isfinite(s) and s > 0 for s in self.spacing):
            raise PhantomError(f"A grid's spacing is three positive lengths in mm, like (2, 2, 2); got {self.spacing}.")
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))
        object.__setattr__(self, "spacing", tuple(float(s) for s in self.spacing))

    @classmethod
    def covering(cls, kind: str, size: int = 64, preset: str = "cubic") -> Self:
        """Return a grid that covers the field of view of an anatomy; its longest axis has `size` voxels.

        Args:
            kind: head or torso.
            size: number of voxels along the longest axis.
            preset: cubic (size³ isotropic voxels), oblong (isotropic, each axis as long as the anatomy requires) or
                thick (like oblong, with a slice thickness of 2.5 times the pixel width).

        Raises:
            PhantomError: a kind or preset that does not exist, or fewer than 4 voxels.
        """
        if kind not in FIELDS_OF_VIEW:
            raise PhantomError(f"There is no anatomy {kind!r}; choose {' or '.join(FIELDS_OF_VIEW)}.")
        if preset not in PRESETS:
            raise PhantomError(f"There is no grid preset {preset!r}; choose {', '.join(PRESETS)}.")
        if not isinstance(size, int) or size < _MULTIPLE:
            raise PhantomError(f"A grid's size is a whole number of voxels from {_MULTIPLE} on; got {size!r}.")
        extent = FIELDS_OF_VIEW[kind]
        pixel = max(extent) / size
        if preset == "cubic":
            return cls((size, size, size), (pixel, pixel, pixel))
        spacing = (pixel, pixel, pixel * (_THICKNESS if preset == "thick" else 1.0))
        d, h, w = (_voxels(e, s) if e < max(extent) else size for e, s in zip(extent, spacing, strict=True))
        return cls((d, h, w), spacing)

    @property
    def voxel_ml(self) -> float:
        """Volume of a voxel in mL."""
        return math.prod(self.spacing) / 1000.0

    def faces(self, axis: int) -> np.ndarray:
        """Return the positions in mm of the n + 1 voxel faces along an axis, float64."""
        return (np.arange(self.shape[axis] + 1) - 0.5 * self.shape[axis]) * self.spacing[axis]

    def centres(self, axis: int) -> np.ndarray:
        """Return the positions in mm of the n voxel centres along an axis, float64."""
        return (np.arange(self.shape[axis]) - 0.5 * (self.shape[axis] - 1)) * self.spacing[axis]


def _voxels(extent: float, spacing: float) -> int:
    """Return the smallest multiple of 4 voxels that covers an extent; rounding errors of the spacing add no voxels."""
    return _MULTIPLE * math.ceil(extent / spacing / _MULTIPLE - 1e-9)


@dataclass(frozen=True)
class Lesion:
    """A lesion: centre in mm (right, anterior, superior), and mean radius in mm."""

    centre_mm: tuple[float, float, float]
    radius_mm: float


@dataclass(frozen=True, eq=False)
class Anatomy:
    """The tissues of one subject on a grid, with partial volume.

    Attributes:
        kind: head or torso.
        grid: the voxels.
        tissues: names along the first axis of `fractions`, in the order of `TISSUES`.
        fractions: float32 (T, D, H, W): share of each tissue in each voxel; sums to 1, including air.
        inside: float32 (D, H, W): share of each voxel that is inside the skin, including air in sinuses and bowel.
        lesions: the lesions that were added; a lesion may be smaller than a voxel.
    """

    kind: str
    grid: Grid
    tissues: tuple[str, ...]
    fractions: np.ndarray
    inside: np.ndarray
    lesions: tuple[Lesion, ...] = ()

    def __post_init__(self) -> None:
        if unknown := [name for name in self.tissues if name not in TISSUES]:
            raise PhantomError(f"There is no tissue {unknown[0]!r}; choose from {', '.join(TISSUES)}.")
        for name, array, shape in (
            ("fractions", self.fractions, (len(self.tissues), *self.grid.shape)),
            ("inside", self.inside, self.grid.shape),
        ):
            if array.shape != shape or array.dtype != np.float32:
                raise PhantomError(f"{name} must be float32 {shape}; got {array.dtype} {array.shape}.")

    @property
    def body(self) -> np.ndarray:
        """Voxels that are at least half inside the skin, bool (D, H, W)."""
        return self.inside >= 0.5

    def fraction(self, tissue: str) -> np.ndarray:
        """Return the share of `tissue` in each voxel, float32 (D, H, W), a view into `fractions`.

        Raises:
            PhantomError: this kind of anatomy has no such tissue.
        """
        if tissue not in self.tissues:
            raise PhantomError(f"A {self.kind} has no {tissue!r}; it has {', '.join(self.tissues)}.")
        return self.fractions[self.tissues.index(tissue)]

    def volume_ml(self, tissue: str) -> float:
        """Return the volume of a tissue in mL.

        Raises:
            PhantomError: this kind of anatomy has no such tissue.
        """
        return float(self.fraction(tissue).sum(dtype=np.float64)) * self.grid.voxel_ml

    def labels(self) -> np.ndarray:
        """Return the tissue with the largest share of each voxel, as its index in `TISSUES`, uint8 (D, H, W)."""
        index = np.array([TISSUES.index(name) for name in self.tissues], np.uint8)
        return index[self.fractions.argmax(axis=0)]

    def mix(self, values: Mapping[str, float]) -> np.ndarray:
        """Return the mean of a property over each voxel, Σ_k fraction_k · value_k, float32 (D, H, W).

        Args:
            values: one number for every tissue of this anatomy; values of other tissues are ignored.

        Raises:
            PhantomError: a tissue has no value, or a name is not a tissue.
        """
        if unknown := [name for name in values if name not in TISSUES]:
            raise PhantomError(f"There is no tissue {unknown[0]!r}; choose from {', '.join(TISSUES)}.")
        if missing := [name for name in self.tissues if name not in values]:
            raise PhantomError(f"No value for {', '.join(missing)}; give one for every tissue of a {self.kind}.")
        weights: Any = np.array([values[name] for name in self.tissues], np.float32)
        return np.ascontiguousarray(np.tensordot(weights, self.fractions, axes=1))
