"""Structures around the brain: fluid, skull, face, neck and scalp. Template positions in mm as in `head`."""

import numpy as np

from ppdm.simulation.phantom.fields import smooth_noise
from ppdm.simulation.phantom.lattice import Canvas, Lattice
from ppdm.simulation.phantom.shapes import Points, blend, common, ellipsoid, mirrored, redistance, tube, turned


class Cranium:
    """Skull and soft tissues around a brain.

    Attributes:
        skin: signed distance in mm to the outer surface of the head, on the coarse lattice.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        lattice: Lattice,
        points: Points,
        hull: np.ndarray,
        cerebellum: np.ndarray,
        stem: np.ndarray,
    ) -> None:
        self.points = mirrored(points)
        brain = blend(blend(hull, cerebellum, 12.0), stem, 10.0)
        # The fluid around the brain is wide enough to fill the fissures between the lobes.
        fluid = np.clip(2.1 + 0.5 * smooth_noise(rng, lattice, 30.0), 1.4, 4.0)
        self.cavity = redistance(redistance(brain, lattice.coarse_spacing) - fluid, lattice.coarse_spacing)
        self.thickness = 6.5 + rng.normal(0.0, 0.5) + 0.8 * smooth_noise(rng, lattice, 25.0)
        self.scalp = 4.5 + rng.normal(0.0, 0.7) + 0.6 * smooth_noise(rng, lattice, 35.0)
        self.marbling = smooth_noise(rng, lattice, (8.0, 8.0, 24.0))
        self.skin = redistance(self._surface(), lattice.coarse_spacing)

    def _surface(self) -> np.ndarray:
        p = self.points
        temples = 6.0 * np.exp(-(((p[2] + 12.0) / 28.0) ** 2) - ((p[1] - 12.0) / 32.0) ** 2)
        nape = 8.0 * np.clip((-20.0 - p[2]) / 25.0, 0.0, 1.0)
        vault = self.cavity - self.thickness - self.scalp - temples - nape
        face = ellipsoid(p, (0, 38, -52), (60, 54, 58))
        jaw = ellipsoid(p, (0, 42, -98), (48, 44, 34))
        nose = tube(p, [(0, 84, -22, 6), (0, 98, -50, 7.5)])
        neck = ellipsoid(p, (0, -22, -130), (64, 66, 88))
        throat = ellipsoid(p, (0, 20, -112), (48, 44, 40))
        ear = ellipsoid(turned(p, (77, -24, -28), 2, 20), (77, -24, -28), (4.0, 15, 25))
        head = blend(blend(vault, face, 18.0), np.minimum(jaw, throat), 14.0)
        head = blend(blend(head, neck, 20.0), nose, 10.0)
        return blend(head, ear, 4.0)

    def paint(self, canvas: Canvas) -> None:
        """Paint everything outside of the brain, from the inside to the skin."""
        p = self.points
        eye = ellipsoid(p, (32, 63, -30), (12.0, 12.0, 12.0))
        lens = ellipsoid(p, (32, 72.5, -30), (4.5, 2.2, 4.5))
        nerve = tube(p, [(10, 12, -18, 2.0), (31, 51, -30, 2.2)])
        canvas.paint("muscle", lens)
        canvas.paint("csf", eye)
        canvas.paint("csf", self.cavity)
        canvas.paint("white_matter", nerve)
        self._paint_airways(canvas)
        self._paint_orbit(canvas)
        self._paint_skull(canvas)
        self._paint_soft_tissue(canvas)

    def _paint_airways(self, canvas: Canvas) -> None:
        """Paint sinuses, nasal cavity, pharynx and mastoid cells; the sinuses have thin shells of bone."""
        p = self.points
        sinuses = np.minimum.reduce(
            [
                ellipsoid(p, (7, 22, -32), (8, 12, 9)),
                ellipsoid(p, (27, 52, -58), (13, 15, 15)),
                ellipsoid(p, (11, 83, 2), (11, 4.5, 9)),
                ellipsoid(p, (8, 50, -33), (5.5, 20, 11)),
            ]
        )
        mastoid = ellipsoid(p, (56, -32, -44), (7, 10, 13)) + 4.0 * np.abs(self.marbling)
        nose = np.maximum(ellipsoid(p, (7, 64, -57), (6.0, 34, 14)), 1.5 - p[0] + 1.5 * self.marbling)
        pharynx = ellipsoid(p, (0, 12, -76), (10, 8, 32))
        deep = 4.0 - self.cavity  # positive near the brain: no air there
        sinuses, mastoid = np.maximum(sinuses, self.skin + 7.0), np.maximum(mastoid, self.skin + 7.0)
        canvas.paint("air", np.maximum(np.minimum(np.minimum(sinuses, mastoid), np.minimum(nose, pharynx)), deep))
        canvas.paint("cortical_bone", np.maximum(sinuses - 1.6, self.skin + 5.0))

    def _paint_orbit(self, canvas: Canvas) -> None:
        """Paint the fat behind the eye, its muscles, and the bone around them."""
        p = self.points
        cone = common(tube(p, [(32, 66, -30, 17), (16, 24, -20, 5)]), self.skin + 3.0, 2.0)
        muscles = np.abs(tube(p, [(32, 64, -30, 14), (16, 24, -20, 3)])) - 1.6
        stripes = np.sin(4.0 * np.arctan2(p[2] + 30.0, p[0] - 32.0) + 1.5)
        canvas.paint("muscle", np.maximum(np.maximum(muscles, 4.0 * (0.6 - stripes)), cone))
        canvas.paint("fat", cone)
        canvas.paint("cortical_bone", common(cone - 1.8, self.skin + 7.0, 2.0))

    def _paint_skull(self, canvas: Canvas) -> None:
        """Paint two layers of dense bone with marrow between them, petrous bones, cheeks and jaw."""
        p, table = self.points, 1.7
        outside = self.skin + 3.5  # bone stays below the scalp
        petrous = tube(p, [(16, -14, -38, 6), (50, -26, -40, 11)])
        cheek = tube(p, [(40, 62, -52, 7), (58, 46, -44, 5), (66, 14, -36, 4)])
        jaw = tube(p, [(4, 84, -92, 8), (30, 62, -92, 8), (48, 22, -88, 7), (52, 8, -60, 6), (54, 0, -42, 5)])
        palate = ellipsoid(p, (0, 62, -76), (26, 28, 5))
        bone = np.maximum(np.minimum.reduce([petrous, cheek, jaw, palate]), outside)
        vault = np.maximum(self.cavity - self.thickness, outside)
        canvas.paint("cortical_bone", self.cavity - table)
        canvas.paint("marrow", np.minimum(vault + table, bone + 2.0))
        canvas.paint("cortical_bone", np.minimum(vault, bone))

    def _paint_soft_tissue(self, canvas: Canvas) -> None:
        """Paint temporal, chewing and neck muscles with fat between them, and fat and skin outside."""
        p = self.points
        temporal = ellipsoid(p, (62, 10, -20), (23, 40, 46))
        cheek = ellipsoid(p, (34, 60, -60), (26, 26, 34))
        masseter = tube(p, [(52, 24, -60, 14), (46, 30, -92, 14)])
        inner = tube(p, [(38, 24, -62, 16), (22, 30, -92, 16)])
        tongue = blend(ellipsoid(p, (0, 46, -96), (24, 34, 18)), ellipsoid(p, (0, 16, -76), (32, 28, 38)), 10.0)
        neck = ellipsoid(p, (0, -40, -112), (60, 70, 84))
        nape = ellipsoid(p, (0, -66, -66), (54, 44, 40))
        muscle = np.minimum.reduce([nape, temporal, cheek, masseter, inner, tongue, neck])
        # Sheets of fat separate the muscles.
        septa = 0.5 - 5.0 * np.abs(self.marbling)
        canvas.paint("muscle", np.maximum(np.maximum(muscle, septa), self.skin + 4.0))
        canvas.paint("fat", self.skin + 1.9)
        canvas.paint("skin", self.skin)
