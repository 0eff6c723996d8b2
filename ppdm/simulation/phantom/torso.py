"""A procedural torso from the neck to the pelvis, different for every seed; the arms are outside of the field of view.

Positions are in mm from the middle of the torso: x to the right (the liver's side), y forward, z up.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ppdm.simulation.phantom import abdomen, skeleton, thorax
from ppdm.simulation.phantom.anatomy import FIELDS_OF_VIEW, Anatomy, Grid, Lesion
from ppdm.simulation.phantom.fields import smooth_noise
from ppdm.simulation.phantom.lattice import Canvas, Lattice
from ppdm.simulation.phantom.lesions import blobs
from ppdm.simulation.phantom.shapes import Points, carve, common, ellipsoid, redistance

# Taller than the field of view, so that a cubic grid contains neck and pelvis and not a cut.
LATTICE = Lattice.spanning((404.0, 300.0, 404.0), spacing=2.0)


@dataclass(frozen=True)
class _Subject:
    """Properties that differ between subjects, in addition to random fields."""

    size: np.ndarray  # relative to the template, along x, y, z
    fat_mm: float  # mean thickness under the skin
    lesions: int

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "_Subject":
        return cls(
            size=np.exp(0.03 * rng.standard_normal(3)).clip(0.94, 1.06),
            fat_mm=float(np.exp(rng.normal(np.log(13.0), 0.35)).clip(6.0, 24.0)),
            lesions=int(rng.integers(1, 6)),
        )


def make_torso(seed: int | np.random.SeedSequence, grid: Grid) -> Anatomy:
    """Create the torso of one subject on a grid; a seed gives the same torso on every grid, bit-identical on each run.

    Args:
        seed: seed of the subject.
        grid: voxel grid; everything more than 200 mm above or below the middle is air.
    """
    rng = np.random.default_rng(seed)
    subject = _Subject.draw(rng)
    points = _template(rng, subject)
    canvas = Canvas(LATTICE)
    frame = redistance(_frame(points), LATTICE.coarse_spacing)
    cavity = redistance(_cavity(points, frame), LATTICE.coarse_spacing)
    skin = redistance(frame - _fat(rng, points, subject.fat_mm), LATTICE.coarse_spacing)
    chest = thorax.Thorax(rng, LATTICE, points, cavity)
    belly = abdomen.Abdomen(rng, LATTICE, points, cavity, chest.diaphragm)
    bones = skeleton.Skeleton(rng, points, cavity, frame)
    mediastinum = carve(ellipsoid(points, (0, -10, 60), (45, 30, 60)), chest.heart - 4.0, 2.0)
    hosts = (chest.lungs, belly.liver, bones.vertebrae, mediastinum)
    lesions = _paint_lesions(rng, canvas, subject.lesions, hosts)
    chest.paint_airways(canvas)
    chest.paint_heart_and_vessels(canvas)
    bones.paint(canvas)
    chest.paint_lungs(canvas)
    belly.paint(canvas)
    chest.paint_diaphragm(canvas, cavity)
    bones.paint_gluteal_muscles(canvas)
    canvas.paint("fat", cavity)
    # The wall: muscle with sheets of fat, then fat and skin.
    septa = 1.2 - 9.0 * np.abs(smooth_noise(rng, LATTICE, (22.0, 16.0, 45.0)))
    canvas.paint("muscle", np.maximum(frame, septa))
    canvas.paint("fat", skin + 2.0)
    canvas.paint("skin", skin)
    return canvas.anatomy("torso", grid, skin, lesions)


def _template(rng: np.random.Generator, subject: _Subject) -> Points:
    """Template positions of the coarse points, scaled and smoothly warped by a few mm."""
    x, y, z = (
        p / np.float32(size) + 3.5 * smooth_noise(rng, LATTICE, 75.0)
        for p, size in zip(LATTICE.coarse_points(), subject.size, strict=True)
    )
    return x, y, z


def _frame(points: Points) -> np.ndarray:
    """First-order distance to the body without fat, a superellipse whose axes change with the height."""
    x, y, z = points
    heights = [-205, -150, -90, -20, 60, 115, 145, 165, 182, 205]
    wide = np.interp(z, heights, [150, 150, 136, 143, 148, 158, 150, 112, 66, 58]).astype(np.float32)
    deep = np.interp(z, heights, [98, 98, 90, 98, 102, 92, 80, 68, 60, 58]).astype(np.float32)
    middle = np.interp(z, heights, [-4, -2, 0, 0, 0, -6, -12, -14, -14, -12]).astype(np.float32)
    y = y - middle
    groove = 5.0 * np.exp(-((x / 14.0) ** 2)) * (y < 0)  # of the back
    a, b = np.abs(x) / wide, (np.abs(y) + groove) / deep
    k = (a**2.5 + b**2.5) ** (1 / 2.5)
    slope = np.hypot(a**1.5 / wide, b**1.5 / deep)
    return k**1.5 * (k - 1.0) / np.maximum(slope, 1e-6)


def _cavity(points: Points, frame: np.ndarray) -> np.ndarray:
    """Chest and abdomen inside ribs and muscles; the rib cage narrows to the neck, the back is thick near the spine."""
    x, y, z = points
    back = 30.0 * np.exp(-((x / 42.0) ** 2)) * np.clip(-y / 40.0, 0.0, 1.0)
    cage = ellipsoid((x, y, np.clip(z, -15.0, None)), (0, -6, -15), (136, 96, 172), power=2.3)
    return common(frame + 14.0 + back, cage, 12.0)


def _fat(rng: np.random.Generator, points: Points, mean_mm: float) -> np.ndarray:
    """Thickness of the fat under the skin in mm: thicker around the abdomen than around the chest and the neck."""
    height = np.interp(points[2], [-205, -120, -40, 60, 150, 205], [1.2, 1.3, 1.1, 0.75, 0.7, 0.5]).astype(np.float32)
    return 2.0 + mean_mm * height * np.exp(0.12 * smooth_noise(rng, LATTICE, 60.0))


def _paint_lesions(
    rng: np.random.Generator, canvas: Canvas, count: int, hosts: Sequence[np.ndarray]
) -> tuple[Lesion, ...]:
    """Paint tumours of lungs and liver, metastases of vertebrae, nodes between the lungs; each stays in its host."""
    lesions: list[Lesion] = []
    in_view = np.abs(LATTICE.coarse_axis(2)) < 0.5 * FIELDS_OF_VIEW["torso"][2] - 10.0
    for _ in range(count):
        host = hosts[int(rng.integers(len(hosts)))]
        shape, found = blobs(rng, LATTICE, 1, ((host < -7.0) & in_view).astype(np.float64), (5.0, 14.0))
        canvas.paint("lesion", np.maximum(shape, host))
        lesions += found
    return tuple(lesions)
