"""Anatomies in milliseconds, for tests of what is made from anatomies: a phantom of a head takes seconds."""

import numpy as np

from ppdm.simulation.phantom import TISSUES, Anatomy, Grid


def noise(seed: int | np.random.SeedSequence, grid: Grid) -> Anatomy:
    """Random shares of every tissue in every voxel; like those of a phantom, they depend only on seed and grid."""
    shares = np.random.default_rng(seed).random((len(TISSUES), *grid.shape), np.float32)
    return Anatomy("head", grid, TISSUES, shares / shares.sum(axis=0), np.ones(grid.shape, np.float32))
