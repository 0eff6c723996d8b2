"""Resampling of a volume onto the grid of another, by the world coordinates of both headers.

Axes: volumes are (D, H, W) float32 in canonical orientation, positions in mm. There is no registration: both volumes
must already share one world coordinate system.
"""

import warnings
from dataclasses import replace
from typing import Literal, get_args

import numpy as np
from scipy.ndimage import affine_transform

from ppdm.data.geometry import Geometry
from ppdm.data.volume import GRID_TOLERANCE_MM, Volume, VolumeError

Order = Literal[0, 1, 2, 3, 4, 5]
OUTSIDE_REPORTED = 0.05  # share of voxels outside the field of view above which there is a warning

_EDGE = 1e-6  # in voxels; tolerance for rounding errors at the edge


def resample_to(volume: Volume, like: Volume, order: Order = 1, *, name: str = "the volume") -> Volume:
    """Interpolate a volume at the voxels of `like`.

    If both grids are equal (within 1e-3 mm), the values are unchanged. The field of view is the box of all voxels of
    `volume`. A voxel whose centre is in the field of view gets an interpolated value; in the outer half voxel, the
    value at the border continues. All other voxels are 0; a warning reports their share if it is above 5 % (see
    :func:`share_outside`). There is no low-pass filter, so fine detail aliases on a much coarser grid.

    Args:
        volume: the volume to resample, (D, H, W).
        like: the grid of the result, (D', H', W'); its values are not used.
        order: order of the spline: 0 nearest voxel (for labels), 1 linear, 3 cubic (may overshoot), at most 5.
        name: name of `volume` in messages, such as its path.

    Returns:
        A volume (D', H', W') with the header of `like`.

    Raises:
        VolumeError: the order is not 0 to 5, or no voxel of `like` is in the field of view.
    """
    if order not in get_args(Order):
        raise VolumeError(f"The order of interpolation is one of 0 to 5 (0 nearest, 1 linear, 3 cubic); got {order!r}.")
    grids = volume.geometry, like.geometry
    data = volume.data if _one_grid(*grids) else _resampled(volume.data, *grids, order, name)
    return replace(like, data=data, replaced=volume.replaced)


def nearest(labels: np.ndarray, grid: Geometry, like: Geometry, name: str) -> np.ndarray:
    """Return the nearest labels at the voxels of another grid, 0 outside the field of view; integers are exact.

    Args:
        labels: integers from 0 on, (D, H, W).
        grid: their grid.
        like: the grid of the result, (D', H', W').
        name: name of the labels in messages.

    Raises:
        VolumeError: no voxel of `like` is in the field of view.
    """
    if _one_grid(grid, like):
        return labels
    # Interpolation in float64 rounds integers above 2**53, so interpolate their ranks; 0 has the rank 0.
    numbers, ranks = np.unique(np.append(labels, 0), return_inverse=True)
    ranks = ranks[:-1].reshape(labels.shape).astype(np.int32)
    found: np.ndarray = numbers[_resampled(ranks, grid, like, 0, name)]
    return found


def _resampled(data: np.ndarray, grid: Geometry, like: Geometry, order: Order, name: str) -> np.ndarray:
    outside = _outside(grid, like)
    _report(float(outside.mean()), name)
    matrix = _voxel_to_voxel(grid, like)
    made = np.empty(like.shape, data.dtype)
    affine_transform(data, matrix[:3, :3], matrix[:3, 3], output=made, order=order, mode="nearest")
    made[outside] = 0
    return made


def share_outside(volume: Volume | Geometry, like: Volume | Geometry) -> float:
    """Return the share of the voxels of `like`, 0 to 1, whose centres are outside the field of view of `volume`."""
    grid, other = (item.geometry if isinstance(item, Volume) else item for item in (volume, like))
    return 0.0 if _one_grid(grid, other) else float(_outside(grid, other).mean())


def _one_grid(a: Geometry, b: Geometry) -> bool:
    return a.shape == b.shape and a.distance(b.affine) <= GRID_TOLERANCE_MM


def _report(share: float, name: str) -> None:
    if share == 1:
        raise VolumeError(
            f"{name} and the grid that it is resampled to do not overlap; check the affines of the two files, or "
            "register them first."
        )
    if share > OUTSIDE_REPORTED:
        warnings.warn(
            f"{name}: {share:.1%} of the voxels it is resampled to lie outside of its field of view and are 0.",
            stacklevel=3,
        )


def _voxel_to_voxel(volume: Geometry, like: Geometry) -> np.ndarray:
    """Return the matrix from voxel indices of `like` to those of `volume`, (4, 4)."""
    return np.linalg.solve(volume.affine, like.affine)


def _outside(volume: Geometry, like: Geometry) -> np.ndarray:
    """Return the voxels of `like` that are outside the field of view of `volume`, bool (D', H', W')."""
    outside = np.zeros(like.shape, bool)
    d, h, w = np.ogrid[tuple(slice(size) for size in like.shape)]
    for size, (along_d, along_h, along_w, offset) in zip(volume.shape, _voxel_to_voxel(volume, like)[:3], strict=True):
        position = along_d * d + along_h * h + along_w * w + offset  # along one axis of `volume`, in its voxels
        outside |= (position < -0.5 - _EDGE) | (position > size - 0.5 + _EDGE)
    return outside
