"""Smooth random fields: their statistics, and independence of the grid."""

import numpy as np
import pytest

from ppdm.simulation.fields import smooth_field
from ppdm.simulation.phantom import Grid


def _field(shape, spacing, seed=3, scale=12.0):
    return smooth_field(Grid(shape, spacing), scale, np.random.default_rng(seed))


def test_the_field_is_the_same_on_every_grid():
    # The 5 voxel centres at 6 mm coincide with every third of the 13 and of the 15 at 2 mm; the last axis is equal.
    coarse, fine = _field((5, 5, 5), (6, 6, 6)), _field((13, 15, 5), (2, 2, 6))
    np.testing.assert_allclose(fine[::3, 1::3], coarse, atol=1e-5)


def test_many_fields_have_the_expected_mean_variance_and_correlation():
    scale, distance = 12.0, 10.0
    pairs = np.array([_field((2, 1, 1), (distance, 1, 1), seed, scale).ravel() for seed in range(4000)])
    assert abs(pairs.mean()) < 0.05
    assert pairs.var() == pytest.approx(1, abs=0.06)
    correlation = (pairs[:, 0] * pairs[:, 1]).mean()
    assert correlation == pytest.approx(np.exp(-(distance**2) / (2 * scale**2)), abs=0.05)


def test_fields_repeat_with_the_seed_and_differ_between_seeds():
    np.testing.assert_array_equal(_field((4, 5, 6), (2, 2, 2), 1), _field((4, 5, 6), (2, 2, 2), 1))
    assert np.abs(_field((4, 5, 6), (2, 2, 2), 1) - _field((4, 5, 6), (2, 2, 2), 2)).max() > 0.1


def test_the_field_is_smooth_and_float32():
    field = _field((40, 3, 3), (1, 1, 1), scale=12.0)
    assert field.dtype == np.float32
    assert np.abs(np.diff(field, axis=0)).max() < 0.5  # a field with a scale of 12 mm changes little within 1 mm
