"""Spine, ribs, breastbone, shoulder girdle and pelvis. Positions in mm as in `torso`."""

import numpy as np

from ppdm.simulation.phantom.lattice import Canvas
from ppdm.simulation.phantom.shapes import Points, blend, carve, common, ellipsoid, mirrored, tube, turned

_RIB_PITCH = 24.0


class Skeleton:
    """The bones of the torso.

    Attributes:
        vertebrae: signed distance in mm to the bodies of the vertebrae, on the coarse lattice.
    """

    def __init__(self, rng: np.random.Generator, points: Points, cavity: np.ndarray, frame: np.ndarray) -> None:
        self.points = points
        self.limit = frame + 3.0
        self.cavity = cavity
        self._place_spine(float(rng.uniform(0.0, 1.0)))
        self.ribs = self._ribs(float(rng.uniform(-6.0, 6.0)))

    def _place_spine(self, phase: float) -> None:
        """Vertebral bodies with discs between them, the spinal canal, and arches with their processes."""
        x, y, z = self.points
        heights = [-205, -150, -100, -40, 40, 100, 150, 205]
        self.middle = np.interp(z, heights, [-66, -56, -50, -56, -68, -70, -58, -38]).astype(np.float32)
        wide = np.interp(z, heights, [26, 26, 24, 21, 17, 15.5, 13, 11]).astype(np.float32)
        pitch = 30.0
        count = z / pitch + 0.0006 * z * z / pitch + phase
        self.along = np.abs(count - np.round(count)) * pitch / (1.0 + 0.0012 * z)
        v = y - self.middle
        column = np.hypot(x, v * 1.2) - wide
        self.discs = column + 1.0
        self.vertebrae = common(column, self.along - 12.0, 3.0)
        canal = np.hypot(x, v + wide * 0.83 + 8.0)
        self.canal = canal - 8.5
        self.cord = np.maximum(canal - 5.0, -40.0 - z)
        arch = np.maximum(canal - 13.0, self.along - 11.0)
        behind = -(v + wide * 0.83 + 16.0)
        spinous = np.maximum(np.maximum(np.abs(x) - 3.2, self.along - 8.0), np.maximum(-behind, behind - 20.0))
        across = np.maximum(np.hypot(v + wide * 0.83 + 8.0 + 0.15 * np.abs(x), self.along) - 5.0, np.abs(x) - 36.0)
        self.arches = carve(blend(blend(arch, spinous, 3.0), across, 3.0), self.canal, 1.0)
        self.sacrum = common(ellipsoid(self.points, (0, -68, -185), (46, 22, 48)), -self.canal, 2.0)

        self.bowl = ellipsoid(self.points, (0, -2, -100), (126, 84, 124))  # of the pelvis

    def _ribs(self, shift: float) -> np.ndarray:
        """Bands around the chest that descend to the front; the lowest end early, cartilage joins the breastbone."""
        x, y, z = self.points
        count = (z + 0.42 * (y + 70.0) + shift) / _RIB_PITCH
        band = np.abs(count - np.round(count)) * _RIB_PITCH * 0.92 - 5.5
        shell = np.abs(self.cavity - 5.5) - 3.8
        margin = np.clip(y + 20.0, 0.0, None) * 1.05 - 92.0 - z  # the costal margin rises towards the front
        front = np.maximum(y - 20.0, 52.0 - np.abs(x))  # cartilage
        ends = np.maximum(np.maximum(margin, z - 165.0), np.minimum(y - 25.0, 52.0 - np.abs(x)))
        ends = np.maximum(ends, np.minimum(front, 12.0 - np.abs(x)))
        return common(common(shell, band, 3.0), ends, 3.0)

    def paint(self, canvas: Canvas) -> None:
        """Paint every bone with its dense shell and marrow, the spinal cord in its canal, and the discs."""
        canvas.paint("white_matter", self.cord)
        canvas.paint("csf", self.canal)
        _paint_bone(canvas, np.minimum.reduce([self.vertebrae, self.arches, self.sacrum]), 1.6)
        canvas.paint("muscle", self.discs)
        _paint_bone(canvas, np.maximum(self.ribs, self.limit), 1.8)
        _paint_bone(canvas, np.maximum(self._flat_bones(), self.limit), 1.8)

    def paint_gluteal_muscles(self, canvas: Canvas) -> None:
        """Paint the muscles outside of the pelvic bowl."""
        canvas.paint("muscle", np.maximum(self.limit, np.maximum(-self.bowl, self.points[2] + 118.0)))

    def _flat_bones(self) -> np.ndarray:
        x, y, z = self.points
        p = mirrored(self.points)
        sternum = np.maximum(np.abs(self.cavity - 5.5) - 5.0, np.maximum(np.abs(x) - 17.0 - 0.05 * z, -y))
        sternum = common(sternum, np.abs(z - 72.0) - 66.0, 4.0)
        clavicle = tube(p, [(14, 44, 138, 8), (60, 42, 152, 6), (110, 8, 162, 6.5), (150, -14, 160, 7)])
        scapula = ellipsoid(turned(turned(p, (96, -72, 92), 2, 32), (96, -72, 92), 1, -8), (96, -72, 92), (44, 4.5, 62))
        spine_of_it = tube(p, [(76, -84, 118, 4), (120, -72, 146, 7), (146, -30, 156, 8)])
        wing = common(np.abs(self.bowl) - 4.5, np.maximum(z + 112.0 + 0.004 * (y + 10.0) ** 2, 36.0 - p[0]), 4.0)
        ilium = common(wing, y - 30.0, 4.0)
        return np.minimum.reduce([sternum, clavicle, scapula, spine_of_it, ilium])


def _paint_bone(canvas: Canvas, bone: np.ndarray, shell_mm: float) -> None:
    canvas.paint("marrow", bone + shell_mm)
    canvas.paint("cortical_bone", bone)
