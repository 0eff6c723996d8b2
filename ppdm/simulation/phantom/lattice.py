"""The lattice of points on which an anatomy is built, and its resampling to any voxel grid.

An anatomy must not depend on the voxel grid. Therefore it is built on a lattice that is fixed in mm, as signed
distances and soft memberships, and each voxel gets the exact mean of the interpolated lattice over its box.

Axes: arrays (D, H, W) as in `anatomy`. A lattice has an odd number of points along each axis, with its middle point at
the origin. Every second point belongs to the coarse lattice, on which smooth shapes take an eighth of the time.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import find_objects
from scipy.sparse import csr_array

from ppdm.simulation.phantom.anatomy import TISSUES, Anatomy, Grid, Lesion

Box = tuple[slice, slice, slice]


@dataclass(frozen=True)
class Lattice:
    """Points at integer multiples of `spacing` mm, up to `steps` coarse steps from the origin along each axis."""

    steps: tuple[int, int, int]
    spacing: float

    @classmethod
    def spanning(cls, extent: tuple[float, float, float], spacing: float) -> "Lattice":
        """Return the smallest lattice that reaches half of `extent` mm on both sides of the origin."""
        d, h, w = (math.ceil(length / (4 * spacing) - 1e-9) for length in extent)
        return cls((d, h, w), spacing)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of points along D, H and W."""
        d, h, w = (4 * n + 1 for n in self.steps)
        return d, h, w

    @property
    def coarse_shape(self) -> tuple[int, int, int]:
        """Number of points of the coarse lattice along D, H and W."""
        d, h, w = (2 * n + 1 for n in self.steps)
        return d, h, w

    @property
    def coarse_spacing(self) -> float:
        """Point distance of the coarse lattice in mm."""
        return 2.0 * self.spacing

    def coarse_axis(self, axis: int) -> np.ndarray:
        """Return the positions in mm of the coarse points along an axis, float32."""
        n = self.steps[axis]
        return np.arange(-n, n + 1, dtype=np.float32) * np.float32(self.coarse_spacing)

    def coarse_points(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the right, anterior and superior positions in mm of the coarse points, each float32 (D, H, W)."""
        x, y, z = np.meshgrid(*(self.coarse_axis(axis) for axis in range(3)), indexing="ij")
        return x, y, z


def refine(coarse: np.ndarray) -> np.ndarray:
    """Interpolate linearly to the fine lattice: n points become 2n - 1 along each of the three axes."""
    values = coarse
    for axis in range(3):
        low = np.moveaxis(values, axis, 0)
        out = np.empty((2 * low.shape[0] - 1, *low.shape[1:]), np.float32)
        out[::2] = low
        out[1::2] = 0.5 * (low[:-1] + low[1:])
        values = np.moveaxis(out, 0, axis)
    return np.ascontiguousarray(values)


def fine(box: Box) -> Box:
    """Return the part of the fine lattice to which `refine` maps a part of the coarse one."""
    d, h, w = (slice(2 * s.start, 2 * s.stop - 1) for s in box)
    return d, h, w


def bounding_box(mask: np.ndarray) -> Box | None:
    """Return the smallest box that contains all true points; None if there are none."""
    found = find_objects(mask.view(np.uint8))
    if not found:
        return None
    d, h, w = found[0]
    return d, h, w


class Canvas:
    """Canvas on which tissues are painted from front to back: earlier shapes cover later ones.

    Each shape is given by its signed distance in mm, negative inside. The distance determines the share of a point's
    neighbourhood that the shape fills. The remainder is air.
    """

    def __init__(self, lattice: Lattice) -> None:
        self.lattice = lattice
        self.free = np.ones(lattice.shape, np.float32)
        self.layers: dict[str, np.ndarray] = {}

    def paint(self, tissue: str, distance: np.ndarray, box: Box | None = None) -> None:
        """Fill the uncovered inside of a shape with a tissue.

        Args:
            tissue: a name in `TISSUES`.
            distance: signed distance in mm on the coarse lattice, or on `box` if given.
            box: part of the fine lattice.
        """
        if tissue != "air" and tissue not in self.layers:  # air is the remainder and has no layer
            self.layers[tissue] = np.zeros(self.lattice.shape, np.float32)
        if box is None:
            near = bounding_box(distance < self.lattice.coarse_spacing)
            if near is None:
                return
            distance, box = refine(distance[near]), fine(near)
        share = np.clip(0.5 - distance / np.float32(self.lattice.spacing), 0.0, 1.0)
        share *= self.free[box]
        self.free[box] -= share
        if tissue != "air":
            self.layers[tissue][box] += share

    def anatomy(self, kind: str, grid: Grid, skin: np.ndarray, lesions: tuple[Lesion, ...]) -> Anatomy:
        """Return the painted tissues on a voxel grid.

        Args:
            kind: head or torso.
            grid: the voxel grid.
            skin: signed distance to the outer surface in mm, on the coarse lattice.
            lesions: the painted lesions.
        """
        weights = [box_weights(grid.faces(axis), n, self.lattice.spacing) for axis, n in enumerate(self.lattice.shape)]
        tissues = tuple(name for name in TISSUES if name == "air" or name in self.layers)
        fractions = np.zeros((len(tissues), *grid.shape), np.float32)
        for index, name in enumerate(tissues[1:], start=1):
            fractions[index] = _box_means(self.layers[name], weights)
        fractions[0] = np.clip(1.0 - fractions[1:].sum(axis=0), 0.0, 1.0)
        fractions /= fractions.sum(axis=0)
        share = np.clip(0.5 - refine(skin) / np.float32(self.lattice.spacing), 0.0, 1.0)
        return Anatomy(kind, grid, tissues, fractions, np.clip(_box_means(share, weights), 0.0, 1.0), lesions)


def box_weights(faces: np.ndarray, points: int, spacing: float) -> csr_array:
    """Return the weights that give the mean over each voxel of a linear interpolation between values at points.

    The weight of a point is the integral of its hat function over the voxel, divided by the voxel's length. Therefore
    the mean of two voxels is the mean over their union on any grid. Values beyond the last point are 0.

    Args:
        faces: positions in mm of the n + 1 faces of the voxels.
        points: odd number of points; the middle point is at 0.
        spacing: distance of the points in mm.

    Returns:
        float32 (n, points).
    """
    positions = (np.arange(points) - points // 2) * spacing
    u = np.clip((faces[:, None] - positions[None, :]) / spacing, -1.0, 1.0)
    integral = spacing * (u - 0.5 * u * np.abs(u))  # of the hat function 1 - |u|, up to a constant
    return csr_array((np.diff(integral, axis=0) / np.diff(faces)[:, None]).astype(np.float32))


def _box_means(values: np.ndarray, weights: list[csr_array]) -> np.ndarray:
    """Average (D, H, W) on points to (D', H', W') on voxels, one axis after the other."""
    for matrix in weights:
        # The first axis is averaged and becomes the last; after three rounds the original order is restored.
        rows = matrix @ values.reshape(values.shape[0], -1)
        values = np.ascontiguousarray(rows.reshape(-1, *values.shape[1:]).transpose(1, 2, 0))
    return values
