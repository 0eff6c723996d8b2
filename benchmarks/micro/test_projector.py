"""Time of the PET projector, whose two products dominate a reconstruction, and of a whole subject."""

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from ppdm.simulation.pet import TORSO, Projector, simulate

PLANE, SPACING, SLICES = (128, 128), (3.0, 3.0), 64


@pytest.fixture(scope="module")
def projector() -> Projector:
    projector = Projector(PLANE, SPACING)
    assert projector.matrix.nnz > 0  # compute the matrix here, so that only the products are timed
    return projector


@pytest.mark.benchmark(group="projector")
def test_build(benchmark: BenchmarkFixture) -> None:
    matrix = benchmark(lambda: Projector(PLANE, SPACING).matrix)
    assert matrix.shape[1] == PLANE[0] * PLANE[1]


@pytest.mark.benchmark(group="projector")
def test_forward(benchmark: BenchmarkFixture, projector: Projector) -> None:
    volume = np.random.default_rng(0).random((*PLANE, SLICES), np.float32)
    assert benchmark(projector.forward, volume).shape == (120, projector.bins, SLICES)


@pytest.mark.benchmark(group="projector")
def test_adjoint(benchmark: BenchmarkFixture, projector: Projector) -> None:
    sinogram = np.random.default_rng(0).random((120, projector.bins, SLICES), np.float32)
    assert benchmark(projector.adjoint, sinogram).shape == (*PLANE, SLICES)


@pytest.mark.benchmark(group="PET subject")
def test_full_dose_and_one_low_dose_with_and_without_correction(benchmark: BenchmarkFixture) -> None:
    d, h = np.meshgrid(*(np.linspace(-1, 1, n) for n in PLANE), indexing="ij")
    body = np.repeat((d**2 + h**2 < 0.8**2)[..., None], SLICES, axis=2).astype(np.float32)

    def subject() -> np.ndarray:
        scan = simulate(body, 0.096 * body, (*SPACING, 5.0), TORSO, np.random.default_rng(0), (20,))
        return np.stack([scan.ac, scan.nac, scan.low[20], scan.nac_low[20]])

    assert np.isfinite(benchmark.pedantic(subject, rounds=3, warmup_rounds=1)).all()
