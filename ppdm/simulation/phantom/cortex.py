"""The folded cortex: its position, and the depth of each point of the brain below the pia.

Positions (x, y, z) are in mm of a template whose origin is the anterior commissure; |x| represents both hemispheres.
"""

import numpy as np
from scipy.ndimage import map_coordinates, zoom

from ppdm.simulation.phantom.fields import smooth_noise, waves
from ppdm.simulation.phantom.lattice import Box, Lattice, bounding_box, fine, refine
from ppdm.simulation.phantom.shapes import (
    Points,
    blend,
    carve,
    cleft,
    common,
    ellipsoid,
    gradient,
    mirrored,
    redistance,
    tube,
)


def tentorium(points: Points) -> np.ndarray:
    """Height of each point above the roof of the cerebellum, in mm along z."""
    return points[2] - (-1.0 - 0.46 * np.abs(points[0]) + 0.15 * (points[1] + 50.0))


def cerebrum(points: Points) -> np.ndarray:
    """First-order distance to the cerebrum without fissures and sulci, on the coarse lattice."""
    x, y, z = mirrored(points)
    # The frontal poles are narrower than the occipital ones; the base rises towards the front.
    narrowed = x * (1.0 + 0.0012 * (y + 25.0) + 0.000010 * (y + 25.0) ** 2)
    whole = ellipsoid((narrowed, y, z), (0, -16, 9), (66.5, 87, 70), power=2.25)
    base = -17.0 + 0.012 * np.clip(y - 10.0, 0, None) ** 1.5
    temporal = tube((x, y, z), [(45, -48, -8, 19), (49, -14, -19, 19), (41, 11, -27, 15)])
    between = ellipsoid((x, y, z), (0, -12, -26), (24, 30, 18))
    # The temporal lobes extend below the base in front; the occipital lobes are on the tentorium.
    front = np.clip((y + 36.0 + 0.3 * x) / 18.0, 0.0, 1.0)
    whole = blend(common(whole, base - 30.0 * (1.0 - front) - z, 14.0), temporal, 8.0)
    whole = common(whole, 1.4 - tentorium(points) - 60.0 * front, 3.0)
    return carve(whole, between, 4.0)


def fissures(points: Points, half_width_mm: float) -> np.ndarray:
    """The longitudinal fissure, down to the callosum, and the lateral (Sylvian) fissures, which end at the insula."""
    x, y, z = mirrored(points)
    callosum = ellipsoid((np.zeros_like(x), y, z), (0, -4, 0), (1e3, 38, 28))
    longitudinal = np.maximum(x - half_width_mm, -callosum)
    # The lateral fissure rises to the back; it leads from the side to a plate that bounds the insula.
    height = z + 0.5 * (y + 8.0)
    lateral = np.maximum(0.9 * np.abs(height) - half_width_mm, 39.0 - x)
    lateral = np.maximum(lateral, np.maximum(-40.0 - y, y - 24.0))
    plate = np.maximum(np.abs(x - 39.0 + 0.005 * (y + 4.0) ** 2) - half_width_mm, np.abs(height) - 14.0)
    plate = np.maximum(plate, np.maximum(-32.0 - y, y - 20.0))
    return np.minimum(longitudinal, np.minimum(lateral, plate))


class Folding:
    """Sulci as winding sheets that enter the hemispheres at right angles, and the resulting pia.

    Attributes:
        coarse_box, box: the part of the coarse and of the fine lattice that contains the cerebrum.
        pia: float32 (D, H, W) on `box`: signed distance in mm to the nearest cerebrospinal fluid outside of the
            ventricles; negative in the brain. The cortex is the layer next to it.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        lattice: Lattice,
        points: Points,
        hull: np.ndarray,
        core: np.ndarray,
        wavelength_mm: float,
        depth_mm: float,
    ) -> None:
        """Fold a cortex.

        Args:
            rng: random generator.
            lattice: the lattice; the arrays below are given on its coarse points.
            points: template positions.
            hull: signed distance to the cerebrum without fissures.
            core: signed distance to the nuclei; sulci do not come near them.
            wavelength_mm: twice the mean distance of sulci.
            depth_mm: median depth of the primary sulci.
        """
        near = bounding_box(hull < 3.0 * lattice.coarse_spacing)
        if near is None:
            raise ValueError("The cerebrum lies outside of the lattice.")
        self.coarse_box: Box = near
        self.box: Box = fine(near)
        walls = redistance(carve(hull, fissures(points, 3.0), 4.0), lattice.coarse_spacing)
        primary = _sheets(waves(rng, lattice, wavelength_mm, 0.28), walls, lattice, near)
        secondary = _sheets(waves(rng, lattice, 0.65 * wavelength_mm, 0.25), walls, lattice, near)
        deep = depth_mm * np.exp(0.28 * smooth_noise(rng, lattice, 16.0))
        shallow = 0.5 + 2.5 * smooth_noise(rng, lattice, 12.0)
        depth = -refine(walls[near])
        floors = [depth - refine(bottom[near]) for bottom in (deep, shallow)]
        floors[0] = np.maximum(floors[0], 5.0 - refine(core[near]))
        x, y, z = (refine(p[near]) for p in points)
        clefts = fissures((x, y, z), 0.9)
        sulci = [_to_sulcus(sheet, depth, floor) for sheet, floor in zip((primary, secondary), floors, strict=True)]
        self.pia = np.maximum.reduce([refine(hull[near]), -clefts, -sulci[0], -sulci[1]])


def _sheets(field: np.ndarray, walls: np.ndarray, lattice: Lattice, near: Box) -> np.ndarray:
    """Distance in mm to the zero level set of a field that is nearly constant along the depth, on the fine box."""
    n = gradient(walls, lattice.coarse_spacing)
    length = np.sqrt(sum(q * q for q in n)) + np.float32(1e-3)
    # Each point gets the value of a point above it, near the surface, so that the sheets run inwards from there.
    rise = -0.85 * np.clip(walls, -28.0, 0.0) / lattice.coarse_spacing
    own = np.indices(walls.shape, np.float32)
    lifted = map_coordinates(field, [o + rise * q / length for o, q in zip(own, n, strict=True)], order=3, mode="wrap")
    part = lifted[near]
    level = zoom(part, [(2 * s - 1) / s for s in part.shape], order=3)
    return np.abs(redistance(level, lattice.spacing))


def _to_sulcus(sheet: np.ndarray, depth: np.ndarray, floor: np.ndarray) -> np.ndarray:
    """Signed distance in mm to a sulcus that widens at the surface; `floor` is the distance below its bottom."""
    return cleft(sheet - (0.35 + 0.8 * np.exp(-np.clip(depth, 0, None) / 3.5)), floor)
