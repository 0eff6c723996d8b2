"""Deep structures of the brain: ventricles, nuclei, corpus callosum and brain stem.

Every function takes template positions in mm as in `head` and returns a signed distance in mm of the same shape.
"""

import numpy as np

from ppdm.simulation.phantom.shapes import Points, blend, ellipsoid, mirrored, tube, turned


def ventricles(points: Points, size: float) -> np.ndarray:
    """Lateral ventricles with frontal, occipital and temporal horns, third and fourth ventricle, and aqueduct."""
    p = mirrored(points)
    frontal = ellipsoid(turned(p, (9.5, 21, 8), 2, -24), (9.5, 21, 8), (3.6 * size, 14, 8.5 * size))
    body = [(6.5, 14, 14, 4.5), (7, 4, 18, 5.0), (9, -12, 21, 5.0), (16, -30, 19, 5.8), (24, -42, 11, 6.8)]
    occipital = [(24, -42, 11, 6.5), (25, -56, 7, 4.2), (22, -70, 4, 1.6)]
    temporal = [(24, -42, 11, 6.0), (32, -37, -2, 3.6), (33, -24, -12, 2.4), (29, -11, -17, 1.8)]
    shape = frontal
    for path in (body, occipital, temporal):
        shape = blend(shape, tube(p, [(x, y, z, r * size) for x, y, z, r in path], flat=(0.85, 1.0, 1.0)), 3.0)
    third = ellipsoid(p, (0, -12, -1), (2.2 * size, 16, 11))
    aqueduct = tube(p, [(0, -26, -5, 1.4), (0, -36, -20, 1.4)])
    fourth = ellipsoid(turned(p, (0, -40, -32), 0, 20), (0, -40, -32), (7.0 * size, 4.5 * size, 12))
    return np.minimum.reduce([shape, third, aqueduct, fourth])


def nuclei(points: Points) -> np.ndarray:
    """Caudate, putamen, globus pallidus, thalamus and red nucleus."""
    p = mirrored(points)
    caudate = tube(
        p, [(14.5, 19, -2, 6.2), (15.5, 17, 7, 6.2), (16, 6, 15, 5.0), (18, -10, 20, 3.7), (25, -26, 19, 2.7)]
    )
    putamen = ellipsoid(turned(p, (26, 1, 1), 2, 14), (26, 1, 1), (6.0, 17, 11.5))
    pallidum = ellipsoid(turned(p, (18.5, -4, -1), 2, 28), (18.5, -4, -1), (4.0, 9.5, 6.5))
    thalamus = ellipsoid(turned(p, (11.5, -19, 7), 2, 20), (11.5, -19, 7), (9.5, 15.5, 10.5))
    red = ellipsoid(p, (5.5, -20, -9), (3.0, 3.5, 4.0))
    return np.minimum.reduce([caudate, putamen, pallidum, thalamus, red])


def callosum(points: Points) -> np.ndarray:
    """The arch of the corpus callosum between the hemispheres, with the septum and fornix below it."""
    arch = [(0, 19, -6, 2.6), (0, 28, 3, 4.6), (0, 24, 15, 4.0), (0, 8, 25, 3.2), (0, -14, 27, 3.2), (0, -32, 20, 4.2)]
    arch += [(0, -38, 11, 5.0), (0, -33, 6, 3.6)]
    fornix = tube(points, [(0, 2, 4, 1.8), (0, -2, 11, 2.0), (0, -18, 16, 2.2), (0, -32, 13, 2.2)])
    widened = (points[0] * np.float32(0.35), points[1], points[2])
    return np.minimum(tube(widened, arch), fornix)


def brain_stem(points: Points) -> np.ndarray:
    """Cerebral peduncles, midbrain, pons, medulla and cord."""
    p = mirrored(points)
    peduncle = tube(p, [(16, -14, 0, 7), (11, -20, -12, 7)])
    midbrain = ellipsoid(p, (0, -29, -12), (15, 10, 11))
    pons = ellipsoid(p, (0, -26, -31), (17, 13, 14))
    medulla = tube(p, [(0, -32, -42, 9.5), (0, -39, -56, 7.5), (0, -46, -75, 6.0), (0, -48, -130, 5.5)])
    middle_peduncle = tube(p, [(8, -28, -32, 8), (22, -42, -34, 7)])
    return blend(blend(blend(midbrain, pons, 5), medulla, 5), np.minimum(peduncle, middle_peduncle), 4)
