"""Shapes as signed distances in mm: negative inside, zero on the surface.

A point set is a tuple (x, y, z) of arrays of the same shape. Distances to ellipsoids and blended shapes are first-order
approximations (correct in sign and near the surface); `redistance` makes them exact.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from scipy.ndimage import distance_transform_edt

Points = tuple[np.ndarray, np.ndarray, np.ndarray]
Vector = tuple[float, float, float]
Path = Sequence[tuple[float, float, float, float]]  # positions and radii (x, y, z, r) of a tube


def ellipsoid(points: Points, centre: Vector, semi_axes: Vector, power: float = 2.0) -> np.ndarray:
    """An axis-aligned ellipsoid, or with a higher power a superellipsoid, which is fuller.

    The result is the first-order distance (k - 1) / |∇k| with k = (Σ |pᵢ / aᵢ|^power)^(1 / power).
    """
    offsets = [np.abs(p - np.float32(c)) / np.float32(a) for p, c, a in zip(points, centre, semi_axes, strict=True)]
    if power == 2.0:
        k = np.sqrt(sum(q * q for q in offsets))
        slope = np.sqrt(sum((q / np.float32(a)) ** 2 for q, a in zip(offsets, semi_axes, strict=True)))
    else:
        k = sum(q**power for q in offsets) ** (1.0 / power)
        slope = np.sqrt(sum((q ** (power - 1.0) / np.float32(a)) ** 2 for q, a in zip(offsets, semi_axes, strict=True)))
    scale = np.where(k > 1e-3, k ** (power - 1.0) / np.maximum(slope, 1e-9), np.float32(min(semi_axes)))  # 1 / |∇k|
    return scale * (k - 1.0)


def mirrored(points: Points) -> Points:
    """The points with |x| in place of x, so that a shape defined on the right appears on both sides."""
    return np.abs(points[0]), points[1], points[2]


def turned(points: Points, centre: Vector, axis: int, degrees: float) -> Points:
    """Rotate the points about an axis through `centre`, so that a shape defined on them is rotated by `degrees`."""
    a, b = (axis + 1) % 3, (axis + 2) % 3
    cos, sin = np.float32(np.cos(np.deg2rad(degrees))), np.float32(np.sin(np.deg2rad(degrees)))
    u, v = points[a] - np.float32(centre[a]), points[b] - np.float32(centre[b])
    out = list(points)
    out[a] = cos * u + sin * v + np.float32(centre[a])
    out[b] = cos * v - sin * u + np.float32(centre[b])
    return out[0], out[1], out[2]


def tube(points: Points, path: Path, flat: Vector = (1, 1, 1)) -> np.ndarray:
    """A bent tube with varying radius.

    Args:
        points: points at which the distance is evaluated.
        path: positions and radii (x, y, z, r) of the joints in mm.
        flat: factors by which the cross-sections are narrower along x, y and z.
    """
    scaled = [p / np.float32(f) for p, f in zip(points, flat, strict=True)]
    joints = np.array(path, np.float32) / np.array([*flat, 1.0], np.float32)
    distance = _segment(scaled, joints[0], joints[1])
    for start, end in pairwise(joints[1:]):
        np.minimum(distance, _segment(scaled, start, end), out=distance)
    return distance * np.float32(min(flat))


def _segment(points: Sequence[np.ndarray], start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """A straight segment of a tube with round ends."""
    along = end[:3] - start[:3]
    t = sum((p - s) * a for p, s, a in zip(points, start, along, strict=False)) / (along @ along)
    t = np.clip(t, 0.0, 1.0)
    squares = sum((p - s - t * a) ** 2 for p, s, a in zip(points, start, along, strict=False))
    return np.sqrt(squares) - (start[3] + t * (end[3] - start[3]))


def blend(a: np.ndarray, b: np.ndarray, width: float) -> np.ndarray:
    """Union of two shapes with a smooth transition over about `width` mm (polynomial smooth minimum)."""
    h = np.clip(np.float32(width) - np.abs(a - b), 0.0, None)
    return np.minimum(a, b) - h * h / np.float32(4.0 * width)


def common(a: np.ndarray, b: np.ndarray, width: float) -> np.ndarray:
    """Intersection of two shapes with an edge rounded over about `width` mm."""
    return -blend(-a, -b, width)


def carve(a: np.ndarray, b: np.ndarray, width: float) -> np.ndarray:
    """Shape `a` without `b`, with an edge rounded over about `width` mm."""
    return -blend(-a, b, width)


def cleft(beside: np.ndarray, beyond: np.ndarray) -> np.ndarray:
    """The part of a sheet on one side of its end.

    Args:
        beside: signed distance to the sheet.
        beyond: signed distance to the end, positive beyond it, measured at right angles to `beside`.
    """
    outside = np.hypot(np.clip(beside, 0.0, None), np.clip(beyond, 0.0, None))
    return outside + np.minimum(np.maximum(beside, beyond), 0.0)


def gradient(field: np.ndarray, spacing: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gradient by central differences along the three axes, per mm."""
    x, y, z = np.gradient(field, np.float32(spacing))
    return x, y, z


def first_order(level: np.ndarray, spacing: float) -> np.ndarray:
    """First-order distance to the zero level set of a field, level / |∇level|, kept finite where the field is flat.

    Args:
        level: (D, H, W), negative inside.
        spacing: distance of the points in mm.
    """
    slope = np.sqrt(sum(s * s for s in gradient(level, spacing)))
    return level / np.maximum(slope, 0.2 * np.float32(slope.mean()))


def threads(a: np.ndarray, b: np.ndarray, spacing: float) -> np.ndarray:
    """Distance in mm to the lines on which two random fields are both zero, which resemble a tangle of vessels."""
    return np.hypot(first_order(a, spacing), first_order(b, spacing))


def redistance(level: np.ndarray, spacing: float) -> np.ndarray:
    """Signed Euclidean distance in mm to the zero level set of a smooth field, to about a quarter of a voxel.

    The distance transform of a mask has an error of half a voxel. Here, points next to the surface are projected onto
    it along the gradient. The distance of every other point is measured to these projected points (Gustavson and
    Strand, Anti-aliased Euclidean distance transform, 2011).

    Args:
        level: (D, H, W), negative inside.
        spacing: distance of the points in mm.
    """
    slopes = gradient(level, 1.0)
    step = level / (sum(s * s for s in slopes) + np.float32(1e-12))  # step times gradient leads to the surface
    reach = np.abs(first_order(level, 1.0))
    step *= np.where(reach > 1.0, 1.0 / np.maximum(reach, 1e-6), 1.0)  # at most to the next point
    beside = _beside_surface(level)
    nearest = distance_transform_edt(~beside, return_distances=False, return_indices=True)
    index = np.ravel_multi_index(tuple(nearest), level.shape)
    own: tuple[np.ndarray, ...] = np.indices(level.shape, np.float32, sparse=True)
    feet = [(o - step * slope).ravel() for o, slope in zip(own, slopes, strict=True)]
    squares = np.where(beside, np.minimum(reach, 1.0) ** 2, _squares(own, feet, index))
    # The nearest projected point need not belong to the nearest grid point; a neighbour usually has it.
    for axis in range(3):
        for shift in (1, -1):
            offered = np.roll(index, shift, axis)
            offer = _squares(own, feet, offered)
            index = np.where(offer < squares, offered, index)
            np.minimum(squares, offer, out=squares)
    return np.copysign(np.sqrt(squares) * np.float32(spacing), level)


def _squares(own: Sequence[np.ndarray], feet: Sequence[np.ndarray], index: np.ndarray) -> np.ndarray:
    """Squared distances of positions from the projected points `feet` (three lists of N coordinates) at `index`."""
    x, y, z = (o - foot[index] for o, foot in zip(own, feet, strict=True))
    return x * x + y * y + z * z


def _beside_surface(level: np.ndarray) -> np.ndarray:
    """Points with a neighbour of the opposite sign."""
    mask = np.zeros(level.shape, bool)
    for axis in range(3):
        marks, inside = np.moveaxis(mask, axis, 0), np.moveaxis(level, axis, 0) < 0
        change = inside[1:] != inside[:-1]
        marks[1:] |= change
        marks[:-1] |= change
    return mask
