"""Lesions: irregular blobs at random positions."""

import numpy as np

from ppdm.simulation.phantom.anatomy import Lesion
from ppdm.simulation.phantom.fields import smooth_noise
from ppdm.simulation.phantom.lattice import Lattice


def blobs(
    rng: np.random.Generator,
    lattice: Lattice,
    count: int,
    likelihood: np.ndarray,
    radii_mm: tuple[float, float],
) -> tuple[np.ndarray, tuple[Lesion, ...]]:
    """Sample lesions.

    Args:
        rng: random generator.
        lattice: the lattice of the anatomy.
        count: number of lesions.
        likelihood: likelihood of a centre at each coarse point, (D, H, W), at least 0, not normalised.
        radii_mm: smallest and largest mean radius; small ones are more frequent.

    Returns:
        Signed distance to their union in mm on the coarse lattice (+inf if there are none), and the lesions.
    """
    union = np.full(lattice.coarse_shape, np.inf, np.float32)
    if count == 0 or not likelihood.any():
        return union, ()
    roughness = smooth_noise(rng, lattice, 0.65 * radii_mm[1])
    places = rng.choice(likelihood.size, count, replace=False, p=likelihood.ravel() / likelihood.sum())
    points, lesions = lattice.coarse_points(), []
    for place in places:
        x, y, z = (float(p.flat[place]) for p in points)
        radius = float(np.exp(rng.uniform(*np.log(radii_mm))))
        stretch = np.exp(0.25 * rng.standard_normal(3))
        squares = sum(((p - c) / np.float32(s)) ** 2 for p, c, s in zip(points, (x, y, z), stretch, strict=True))
        np.minimum(union, np.sqrt(squares) - radius + 0.22 * radius * roughness, out=union)
        lesions.append(Lesion((x, y, z), radius))
    return union, tuple(lesions)
