"""Anatomies that take milliseconds, for tests of code that uses anatomies; a phantom of a head takes seconds."""

import numpy as np

from ppdm.simulation.phantom import TISSUES, Anatomy, Grid


def noise(seed: int | np.random.SeedSequence, grid: Grid) -> Anatomy:
    """Return random shares of every tissue in every voxel; as for a phantom, they depend only on seed and grid."""
    shares = np.random.default_rng(seed).random((len(TISSUES), *grid.shape), np.float32)
    return Anatomy("head", grid, TISSUES, shares / shares.sum(axis=0), np.ones(grid.shape, np.float32))
