"""Parallel-beam line integrals through the axial slices of a volume, and their exact adjoint.

Axes: volume (D, H, W), sinogram (views, bins, W). One sparse matrix A projects every axial slice (D, H) separately.
View v projects along the direction orthogonal to n = (cos θ, sin θ) with θ = π·v/views. A bin collects the points with
s = d·cos θ + h·sin θ, where d and h are in mm from the centre of the plane.

An element of A is the area of the intersection of a pixel with the strip of one bin, divided by the width of the strip.
This is the exact line integral in mm, averaged over the bin, of an image that is constant in each pixel. A
point-sampled (pixel- or ray-driven) matrix is smaller, but its sum over the pixels of a ray oscillates at oblique
angles, which causes ring artefacts.
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np
from scipy.sparse import coo_array, csr_array

from ppdm.simulation.pet.errors import PETError

# A pixel's side that is parallel to the view has a shadow of zero width; this share of a bin keeps the formula finite.
_THINNEST = 1e-6


@dataclass(frozen=True)
class Projector:
    """Projection matrix A of a scanner with evenly spaced views over half a turn.

    The bins cover the plane's diagonal, so that every view covers every pixel, including the corners.

    Args:
        shape: pixels (D, H) of an axial slice.
        spacing: sides (dD, dH) of a pixel in mm; they may differ.
        angles: number of views over half a turn.
        first, step: keep only the views first, first + step, ...; see :meth:`subset`.

    Raises:
        PETError: an argument is not positive, or no view remains.
    """

    shape: tuple[int, int]
    spacing: tuple[float, float]
    angles: int = 120
    first: int = 0
    step: int = 1

    def __post_init__(self) -> None:
        if len(self.shape) != 2 or min(self.shape) < 1:
            raise PETError(f"A plane has two axes, (D, H), none of them empty; got shape {self.shape}.")
        if len(self.spacing) != 2 or not all(math.isfinite(mm) and mm > 0 for mm in self.spacing):
            raise PETError(f"Spacing is two positive numbers of mm, (dD, dH); got {self.spacing}.")
        if not (self.step >= 1 and 0 <= self.first < self.angles):
            raise PETError(f"Expected 0 <= first < angles and step >= 1, so that views are left; got {self}.")

    @property
    def bin_width(self) -> float:
        """Distance between bins in mm: the shorter side of a pixel."""
        return min(self.spacing)

    @property
    def bins(self) -> int:
        """Number of bins per view."""
        return math.ceil(math.hypot(*np.multiply(self.shape, self.spacing)) / self.bin_width)

    @property
    def selection(self) -> slice:
        """The selected views, as a slice of all angles."""
        return slice(self.first, self.angles, self.step)

    @property
    def views(self) -> np.ndarray:
        """The angle θ of every view, radians."""
        return np.pi * np.arange(self.angles)[self.selection] / self.angles

    @cached_property
    def matrix(self) -> csr_array:
        """The matrix A, float32 (views · bins, D · H), in mm; built at the first access."""
        entries = [self._view(index, theta) for index, theta in enumerate(self.views)]
        values, rows, columns = (np.concatenate(parts) for parts in zip(*entries, strict=True))
        return coo_array((values, (rows, columns)), (len(self.views) * self.bins, math.prod(self.shape))).tocsr()

    def forward(self, volume: np.ndarray) -> np.ndarray:
        """Line integrals A·x of a volume (D, H, W): (views, bins, W), in the volume's unit times mm."""
        self._check(volume, self.shape)
        return (self.matrix @ volume.reshape(-1, volume.shape[2])).reshape(len(self.views), self.bins, -1)

    def adjoint(self, sinogram: np.ndarray) -> np.ndarray:
        """Back-projection Aᵀ·y of a sinogram (views, bins, W): (D, H, W)."""
        self._check(sinogram, (len(self.views), self.bins))
        return (self.matrix.T @ sinogram.reshape(-1, sinogram.shape[2])).reshape(*self.shape, -1)

    def subset(self, first: int, step: int) -> "Projector":
        """Return the projector of every ``step``-th view, beginning with ``first``: ``sinogram[first::step]``."""
        return replace(self, first=self.first + self.step * first, step=self.step * step)

    def _check(self, array: np.ndarray, leading: tuple[int, int]) -> None:
        if array.ndim != 3 or array.shape[:2] != leading:
            raise PETError(f"Expected an array of shape {(*leading, 'W')} for this projector; got {array.shape}.")

    def _view(self, index: int, theta: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the matrix values, rows and columns of one view."""
        width = self.bin_width
        sides = np.maximum(np.abs((math.cos(theta), math.sin(theta))) * self.spacing, _THINNEST * width)
        d, h = (mm * (np.arange(n) - (n - 1) / 2) for n, mm in zip(self.shape, self.spacing, strict=True))
        centre = (d[:, None] * math.cos(theta) + h * math.sin(theta)).ravel()
        # `start` is the bin in which the shadow begins; `edges` are the left sides of its bins and the last right side.
        start = np.floor((centre - sides.sum() / 2) / width + self.bins / 2).astype(np.int32)
        taps = np.arange(math.ceil(sides.sum() / width) + 1, dtype=np.int32)
        edges = (start[:, None] + np.arange(len(taps) + 1) - self.bins / 2) * width - centre[:, None]
        values = np.diff(_shadow(edges, *sides), axis=1) * math.prod(self.spacing) / width
        kept = values > _THINNEST * width
        rows = (index * self.bins + start[:, None] + taps)[kept]
        columns = np.broadcast_to(np.arange(centre.size, dtype=np.int32)[:, None], values.shape)[kept]
        return values[kept].astype(np.float32), rows, columns


@lru_cache(maxsize=2)
def ordered_subsets(projector: Projector, count: int) -> tuple[Projector, ...]:
    """Split the views into `count` projectors; consecutive ones are far apart in angle, so that OSEM converges fast.

    The projectors and their matrices are cached for the next subject on the same grid.
    """
    golden = (5**0.5 - 1) / 2
    order = np.argsort(np.arange(count) * golden % 1)
    return tuple(projector.subset(int(first), count) for first in order)


def _shadow(s: np.ndarray, a: float, b: float) -> np.ndarray:
    """Return the share of a pixel's shadow that is left of s.

    The shadow is a trapezoid, the convolution of two boxes of widths a and b. Its integral is therefore a sum of
    half-parabolas that begin at the corners; the shadow ends at the last corner.
    """
    outer, inner = (a + b) / 2, (a - b) / 2
    s = np.clip(s, -outer, outer)
    share = np.square(s + outer)
    for corner in (-inner, inner):
        share -= np.square(np.maximum(s - corner, 0))
    return share / (2 * a * b)
