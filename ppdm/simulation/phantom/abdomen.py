"""Liver, spleen, kidneys, stomach and bowel. Positions in mm as in `torso`."""

import numpy as np

from ppdm.simulation.phantom.fields import smooth_noise, waves
from ppdm.simulation.phantom.lattice import Canvas, Lattice
from ppdm.simulation.phantom.shapes import (
    Path,
    Points,
    blend,
    carve,
    common,
    ellipsoid,
    first_order,
    mirrored,
    threads,
    tube,
    turned,
)

_STOMACH_TAIL: Path = [(-58, 16, -40, 28), (-36, 40, -66, 20), (4, 42, -72, 15)]
_COLON: Path = [
    *[(88, 0, -190, 20), (96, -6, -130, 22), (92, 14, -84, 20)],
    *[(50, 52, -104, 19), (-20, 58, -108, 18), (-80, 34, -70, 18)],
    *[(-102, -2, -80, 17), (-104, -12, -150, 16), (-84, -2, -200, 16)],
]
_PSOAS: Path = [(26, -42, -20, 8), (38, -42, -100, 19), (52, -34, -150, 22), (74, -6, -205, 20)]


class Abdomen:
    """The organs below the diaphragm.

    Attributes:
        liver, spleen, kidneys, stomach: signed distances in mm on the coarse lattice.
    """

    def __init__(
        self, rng: np.random.Generator, lattice: Lattice, points: Points, cavity: np.ndarray, diaphragm: np.ndarray
    ) -> None:
        self.points = points
        self.space = common(cavity + 2.0, diaphragm + 3.0, 4.0)
        fundus = ellipsoid(points, (-62, 8, -22), (36, 40, 36))
        self.stomach = common(blend(fundus, tube(points, _STOMACH_TAIL), 14.0), self.space + 4.0, 6.0)
        spleen = ellipsoid(points, (-108, -34, -36), (40, 50, 64))
        self.spleen = common(carve(spleen, self.stomach, 6.0), self.space + 1.0, 4.0)
        self.kidneys = _kidneys(points, rng.normal(0.0, 6.0))
        self.gall_bladder = ellipsoid(points, (34, 34, -66), (13, 22, 15))
        self.liver = self._liver(float(np.exp(rng.normal(0.0, 0.06))))
        self.portal = self._portal(rng, lattice)
        self.loops = self._loops(rng, lattice)
        self.gas = smooth_noise(rng, lattice, 14.0)

    def _liver(self, size: float) -> np.ndarray:
        """A right lobe that fills the dome of the diaphragm, and a left lobe that extends over the stomach."""
        p, c, d = self.points, (68.0, 2.0, -56.0), (-4.0, 40.0, -14.0)
        right = ellipsoid(turned(p, c, 1, 8.0), c, (88 * size, 92 * size, 84 * size))
        left = ellipsoid(turned(p, d, 1, -10.0), d, (66 * size, 40, 32))
        lobes = common(blend(right, left, 18.0), self.space + 1.0, 5.0)
        return carve(carve(lobes, self.kidneys - 5.0, 8.0), self.gall_bladder - 1.0, 6.0)

    def _portal(self, rng: np.random.Generator, lattice: Lattice) -> np.ndarray:
        """Vessels of the liver, as winding threads."""
        fields = (waves(rng, lattice, 75.0, 0.25), waves(rng, lattice, 75.0, 0.25))
        return np.maximum(threads(*fields, lattice.coarse_spacing) - 3.0, self.liver + 6.0)

    def _loops(self, rng: np.random.Generator, lattice: Lattice) -> np.ndarray:
        """Small bowel: winding loops, about 25 mm wide, in front of the spine."""
        field = waves(rng, lattice, 58.0, 0.22)
        region = ellipsoid(self.points, (0, 20, -135), (106, 64, 92), power=2.5)
        return common(
            first_order(field - np.float32(0.25), lattice.coarse_spacing), np.maximum(region, self.space + 5.0), 5.0
        )

    def _colon(self) -> np.ndarray:
        pouches = 2.5 * np.cos(2.0 * np.pi * (self.points[2] + 0.8 * self.points[0]) / 24.0)
        return common(tube(self.points, _COLON) + pouches, self.space + 4.0, 4.0)

    def paint(self, canvas: Canvas) -> None:
        """Paint from front to back: solid organs, hollow organs with their gas, the muscles behind them."""
        canvas.paint("blood", self.portal)
        canvas.paint("csf", self.gall_bladder)  # bile is watery like csf
        canvas.paint("liver", self.liver)
        canvas.paint("spleen", self.spleen)
        canvas.paint("kidney", self.kidneys)
        colon = self._colon()
        y = self.points[1]
        # The subject lies on the back, so gas collects in front.
        canvas.paint("air", np.maximum(self.stomach + 5.0, 26.0 - y))
        canvas.paint("bowel", self.stomach)
        canvas.paint("air", np.maximum(colon + 4.0, 4.0 - 8.0 * self.gas))
        canvas.paint("bowel", colon)
        canvas.paint("air", np.maximum(self.loops + 5.0, 7.0 - 8.0 * self.gas))
        canvas.paint("bowel", self.loops)
        canvas.paint("muscle", tube(mirrored(self.points), _PSOAS))


def _kidneys(points: Points, shift: float) -> np.ndarray:
    """Two bean shapes beside the spine; the right one is lower, and the hollows point inwards and forward."""
    pair = []
    for side, z in ((1.0, -104.0 + shift), (-1.0, -88.0 + shift)):
        c = (side * 62.0, -40.0, z)
        p = turned(turned(points, c, 1, side * 12.0), c, 2, side * 20.0)
        bean = ellipsoid(p, c, (29, 25, 56))
        pair.append(carve(bean, ellipsoid(p, (c[0] - side * 23, c[1] + 2, c[2]), (16, 7, 19)), 5.0))
    return np.minimum(*pair)
