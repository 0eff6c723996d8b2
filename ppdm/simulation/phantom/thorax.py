"""Lungs, heart and great vessels. Positions in mm as in `torso`."""

import numpy as np

from ppdm.simulation.phantom.fields import waves
from ppdm.simulation.phantom.lattice import Canvas, Lattice
from ppdm.simulation.phantom.shapes import (
    Path,
    Points,
    blend,
    carve,
    common,
    ellipsoid,
    mirrored,
    threads,
    tube,
    turned,
)

_LEFT_VENTRICLE = (-38.0, 14.0, 32.0)


class Thorax:
    """The organs of the chest.

    Attributes:
        diaphragm: height of each point above the diaphragm in mm along z, on the coarse lattice.
        lungs, heart: signed distances in mm, on the coarse lattice.
    """

    def __init__(self, rng: np.random.Generator, lattice: Lattice, points: Points, cavity: np.ndarray) -> None:
        self.points = points
        self.diaphragm = _above_diaphragm(rng, points)
        self._place_heart(rng)
        self._place_vessels()
        self.lungs = self._lungs(cavity)
        self.branches = self._branches(rng, lattice)

    def _place_heart(self, rng: np.random.Generator) -> None:
        """The left ventricle is a truncated ellipsoid whose apex points left, forward and down."""
        wall = rng.uniform(9.0, 12.0)
        c, q = _LEFT_VENTRICLE, self.points
        p = turned(turned(q, c, 1, -28.0), c, 2, -36.0)
        base = p[0] - (c[0] + 28.0)
        left = common(ellipsoid(p, c, (47, 32, 32)), base, 8.0)
        self.left_pool = common(ellipsoid(p, c, (47 - wall, 32 - wall, 32 - wall)), base + 2.0, 5.0)
        self.right = carve(ellipsoid(q, (-4, 40, 22), (47, 29, 31)), left, 3.0)
        ventricles = np.minimum(left, self.right)
        atria = blend(ellipsoid(q, (34, 10, 40), (25, 28, 33)), ellipsoid(q, (-2, -18, 54), (36, 20, 25)), 6.0)
        self.atria = carve(atria, ventricles, 2.0)
        self.heart = blend(ventricles, self.atria, 6.0)

    def _place_vessels(self) -> None:
        p = self.points
        bilateral = mirrored(p)
        aorta: Path = [(0, 8, 62, 14), (8, 10, 88, 15), (5, 4, 112, 14), (-10, -16, 124, 13), (-21, -38, 112, 12)]
        aorta = [*aorta, (-23, -42, 60, 11), (-16, -36, -10, 10.5), (-6, -26, -90, 9), (-4, -24, -130, 9)]
        iliac: Path = [(3, -24, -130, 7), (36, -16, -170, 6), (58, 4, -205, 5.5)]
        inferior: Path = [(20, -22, -140, 10), (20, -22, -60, 11), (28, -10, -5, 12), (28, 0, 30, 13)]
        superior: Path = [(28, 2, 60, 10), (24, 4, 120, 9), (24, 8, 140, 8)]
        pulmonary: Path = [(-18, 34, 62, 13), (-12, 12, 88, 13), (8, -12, 84, 10), (42, -16, 74, 8)]
        pulmonary_left: Path = [(-12, 4, 88, 11), (-44, -20, 84, 8)]
        neck: Path = [(10, 6, 122, 6.5), (24, 2, 150, 5), (28, 0, 205, 5)]
        paths = (aorta, inferior, superior, pulmonary, pulmonary_left)
        self.vessels = np.minimum.reduce(
            [tube(p, path) for path in paths] + [tube(bilateral, b) for b in (iliac, neck)]
        )
        trachea = tube(p, [(0, 6, 205, 8.5), (0, -12, 140, 8.5), (3, -24, 92, 8.5)])
        self.airways = np.minimum(trachea, tube(bilateral, [(3, -24, 92, 7.5), (34, -28, 70, 5.5), (52, -30, 52, 3.5)]))
        self.oesophagus = tube(p, [(-2, -20, 205, 6), (-4, -38, 110, 7), (-10, -32, 40, 7), (-22, -10, -10, 8)])

    def _lungs(self, cavity: np.ndarray) -> np.ndarray:
        x, y, z = self.points
        apex = z - (150.0 - 0.022 * (np.abs(x) - 48.0) ** 2 - 0.008 * (y + 20.0) ** 2)
        space = common(common(cavity + 1.5, -self.diaphragm, 6.0), apex, 20.0)
        # The lungs nearly touch each other in front; around the great vessels they are further apart.
        width = 7.0 + 15.0 * np.exp(-(((z - 85.0) / 40.0) ** 2) - np.clip(y / 25.0, 0.0, None))
        between = np.maximum(np.abs(x) - width, -40.0 - y)
        spine = np.hypot(x, y + 70.0) - 30.0
        middle = blend(blend(between, spine, 12.0), self.heart - 4.0, 10.0)
        return carve(space, np.minimum(middle, self.vessels - 2.0), 5.0)

    def _branches(self, rng: np.random.Generator, lattice: Lattice) -> np.ndarray:
        """Vessels in the lungs: threads that are thicker near the hilum."""
        fields = (waves(rng, lattice, 38.0, 0.35), waves(rng, lattice, 38.0, 0.35))
        x, y, z = self.points
        hilum = np.sqrt((np.abs(x) - 42.0) ** 2 + (y + 18.0) ** 2 + (z - 68.0) ** 2)
        radius = 1.0 + 4.0 * np.exp(-hilum / 40.0)
        return np.maximum(threads(*fields, lattice.coarse_spacing) - radius, self.lungs + 3.0)

    def paint_airways(self, canvas: Canvas) -> None:
        """Paint the air in the trachea and the bronchi, with thin walls, and the oesophagus."""
        canvas.paint("air", self.airways)
        canvas.paint("muscle", np.minimum(self.airways - 1.8, self.oesophagus))

    def paint_heart_and_vessels(self, canvas: Canvas) -> None:
        """Paint the blood in chambers and vessels, and the muscle around the chambers."""
        canvas.paint("blood", np.minimum.reduce([self.left_pool, self.right + 3.5, self.atria + 2.0]))
        canvas.paint("myocardium", self.heart)
        canvas.paint("blood", self.vessels)

    def paint_lungs(self, canvas: Canvas) -> None:
        """Paint the lungs with their vessels."""
        canvas.paint("blood", self.branches)
        canvas.paint("lung", self.lungs)

    def paint_diaphragm(self, canvas: Canvas, cavity: np.ndarray) -> None:
        """Paint a sheet of muscle between the lungs and the abdominal organs."""
        canvas.paint("muscle", np.maximum(cavity, np.abs(self.diaphragm + 1.0) - 3.0))


def _above_diaphragm(rng: np.random.Generator, points: Points) -> np.ndarray:
    """Height above the diaphragm, which has two domes; the right one is higher because the liver is below it."""
    x, y, z = points
    breath = rng.normal(0.0, 6.0)

    def dome(side: float, height: float) -> np.ndarray:
        return z - (height + breath - 0.0085 * (x - side) ** 2 - 0.0100 * (y - 14.0) ** 2)

    return blend(dome(70.0, 10.0), dome(-70.0, -2.0), 20.0)
