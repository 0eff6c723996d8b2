"""A procedural head: brain, skull, face and scalp, different for every seed.

The brain is defined on a template close to MNI space: origin at the anterior commissure, x to the right, y forward,
z up, in mm. A subject has its own size, a smooth warp of the template, and its own folds, ventricles and lesions.
"""

from dataclasses import dataclass

import numpy as np

from ppdm.simulation.phantom.anatomy import Anatomy, Grid, Lesion
from ppdm.simulation.phantom.cerebellum import cerebellum, paint_cerebellum
from ppdm.simulation.phantom.cortex import Folding, cerebrum
from ppdm.simulation.phantom.cranium import Cranium
from ppdm.simulation.phantom.deep_brain import brain_stem, callosum, nuclei, ventricles
from ppdm.simulation.phantom.fields import smooth_noise
from ppdm.simulation.phantom.lattice import Canvas, Lattice, refine
from ppdm.simulation.phantom.lesions import blobs
from ppdm.simulation.phantom.shapes import Points, redistance

# Slightly larger than the field of view, so that the ears are not cut off.
LATTICE = Lattice.spanning((176.0, 230.0, 200.0), spacing=1.25)

# Template position of the grids' origin: the middle of the head, from the scalp to the neck.
_MIDDLE = (0.0, -6.0, -3.5)


@dataclass(frozen=True)
class _Subject:
    """Properties that differ between subjects, in addition to random fields. Lengths are in mm."""

    size: np.ndarray  # relative to the template, along x, y, z
    ventricles: float  # radius relative to the template
    wavelength: float  # wavelength of the primary sulci
    sulcal_depth: float
    cortex: float  # thickness
    lesions: int

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "_Subject":
        return cls(
            size=0.93 * np.exp(0.012 * (rng.standard_normal() + rng.standard_normal(3)).clip(-2.0, 2.0)),
            ventricles=float(np.exp(rng.normal(0.0, 0.2)).clip(0.65, 1.5)),
            wavelength=float(rng.uniform(28.5, 31.5)),
            sulcal_depth=float(rng.uniform(14.0, 16.0)),
            cortex=float(rng.normal(2.5, 0.05)),
            lesions=int(rng.integers(1, 5)) if rng.random() < 0.5 else 0,
        )


def make_head(seed: int | np.random.SeedSequence, grid: Grid) -> Anatomy:
    """Create the head of one subject on a grid; a seed gives the same head on every grid, bit-identical on each run.

    Args:
        seed: seed of the subject.
        grid: voxel grid; everything more than about 100 mm below the middle of the head is air.
    """
    rng = np.random.default_rng(seed)
    subject = _Subject.draw(rng)
    points = _template(rng, subject)
    canvas = Canvas(LATTICE)
    hull = redistance(cerebrum(points), LATTICE.coarse_spacing)
    below, stem = cerebellum(points), brain_stem(points)
    ventricle, nucleus = ventricles(points, subject.ventricles), nuclei(points)
    folding = Folding(rng, LATTICE, points, hull, nucleus, subject.wavelength, subject.sulcal_depth)
    canvas.paint("csf", ventricle)
    canvas.paint("deep_grey", nucleus)
    lesions = _paint_lesions(rng, canvas, subject.lesions, folding, ventricle, nucleus)
    canvas.paint("white_matter", callosum(points))
    canvas.paint("white_matter", stem)
    paint_cerebellum(rng, canvas, points, below)
    _paint_cerebrum(rng, canvas, folding, subject.cortex)
    cranium = Cranium(rng, LATTICE, points, hull, below, stem)
    cranium.paint(canvas)
    return canvas.anatomy("head", grid, cranium.skin, lesions)


def _template(rng: np.random.Generator, subject: _Subject) -> Points:
    """Template positions of the coarse points, scaled, shifted and smoothly warped by a few mm."""
    x, y, z = (
        p / np.float32(size) + np.float32(middle) + 2.2 * smooth_noise(rng, LATTICE, 45.0)
        for p, size, middle in zip(LATTICE.coarse_points(), subject.size, _MIDDLE, strict=True)
    )
    return x, y, z


def _paint_cerebrum(rng: np.random.Generator, canvas: Canvas, folding: Folding, cortex: float) -> None:
    thickness = cortex * refine(1.0 + 0.07 * smooth_noise(rng, LATTICE, 14.0))[folding.box]
    canvas.paint("white_matter", folding.pia + thickness, folding.box)
    canvas.paint("grey_matter", folding.pia, folding.box)


def _paint_lesions(
    rng: np.random.Generator, canvas: Canvas, count: int, folding: Folding, ventricle: np.ndarray, nucleus: np.ndarray
) -> tuple[Lesion, ...]:
    """Paint white matter lesions, most of them near the ventricles and none in the cortex."""
    white = np.zeros(LATTICE.coarse_shape, bool)
    white[folding.coarse_box] = folding.pia[::2, ::2, ::2] < -5.0
    white &= (ventricle > 2.0) & (nucleus > 3.0)
    likelihood = np.where(white, np.exp(-ventricle / 9.0), 0.0)
    shape, lesions = blobs(rng, LATTICE, count, likelihood, (2.0, 7.0))
    canvas.paint("lesion", np.maximum(refine(shape)[folding.box], folding.pia + 2.5), folding.box)
    return lesions
