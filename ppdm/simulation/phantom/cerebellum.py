"""The cerebellum and its folia. Template positions in mm as in `head`."""

import numpy as np

from ppdm.simulation.phantom.cortex import tentorium
from ppdm.simulation.phantom.fields import smooth_noise
from ppdm.simulation.phantom.lattice import Canvas, bounding_box, fine, refine
from ppdm.simulation.phantom.shapes import Points, blend, cleft, common, ellipsoid, mirrored

# All folia start at this axis, which runs from left to right through the roof of the fourth ventricle.
_AXIS = (-48.0, -31.0)
_PERIOD = 5.2  # distance of folia in mm at the typical radius
_RADIUS = 26.0
_CORTEX = 1.6  # mm


def cerebellum(points: Points) -> np.ndarray:
    """Two hemispheres and the vermis below the tentorium: first-order signed distance, on the coarse lattice."""
    x, y, z = mirrored(points)
    lobe = ellipsoid((x, y, z), (24, -63, -33), (28, 32, 25))
    vermis = ellipsoid((x, y, z), (0, -63, -25), (13, 25, 25))
    return common(blend(lobe, vermis, 9.0), tentorium(points) + 0.8, 4.0)


def paint_cerebellum(rng: np.random.Generator, canvas: Canvas, points: Points, hull: np.ndarray) -> None:
    """Paint the cerebellum inside `hull`: thin folia around an axis, which form the tree seen in a sagittal section."""
    box = bounding_box(hull < 6.0)
    if box is None:
        return
    x, y, z = (p[box] for p in points)
    y, z = y - _AXIS[0] + 0.010 * x * x, z - _AXIS[1]  # the folia bend forward at the sides
    wobble = 0.8 * smooth_noise(rng, canvas.lattice, 9.0)[box]
    phase = refine((_RADIUS * np.arctan2(z, -y) + 0.12 * np.abs(x) + wobble) / _PERIOD)
    radius, depth = refine(np.hypot(y, z)), refine(-hull[box])
    leaf = np.round(phase)
    sheet = np.abs(phase - leaf) * _PERIOD * np.clip(radius / _RADIUS, 0.35, 2.0)
    bottom = np.where(leaf % 3 == 0, 14.0, 6.0)  # every third fissure is deep; none reaches the axis
    pia = np.maximum(-depth, -cleft(sheet - 0.35, np.maximum(depth - bottom, 0.5 * _RADIUS - radius)))
    canvas.paint("white_matter", pia + _CORTEX, fine(box))
    canvas.paint("grey_matter", pia, fine(box))
