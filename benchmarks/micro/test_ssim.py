"""Time of one SSIM of a volume, beside scikit-image and MONAI with the same window."""

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from ppdm.metrics import ssim


def volumes(size: int) -> tuple[Tensor, Tensor]:
    target = torch.rand(size, size, size, generator=torch.Generator().manual_seed(0))
    return 0.9 * target + 0.1 * target.flip(0), target


@pytest.mark.benchmark(group="SSIM")
@pytest.mark.parametrize("size", [64, 128])
def test_ours(benchmark: BenchmarkFixture, size: int) -> None:
    assert 0.9 < benchmark(ssim, *volumes(size), 1.0) < 1


@pytest.mark.benchmark(group="SSIM")
@pytest.mark.parametrize("size", [64, 128])
def test_scikit_image(benchmark: BenchmarkFixture, size: int) -> None:
    metrics = pytest.importorskip("skimage.metrics")
    prediction, target = volumes(size)
    options = {"data_range": 1.0, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    value = benchmark(metrics.structural_similarity, target.numpy(), prediction.numpy(), **options)
    assert value == pytest.approx(ssim(prediction, target, 1.0).item(), abs=1e-4)


@pytest.mark.benchmark(group="SSIM")
@pytest.mark.parametrize("size", [64])
def test_monai(benchmark: BenchmarkFixture, size: int) -> None:
    metric = pytest.importorskip("monai.metrics").SSIMMetric(spatial_dims=3, data_range=1.0)
    prediction, target = (x[None, None] for x in volumes(size))
    value = benchmark.pedantic(metric, (prediction, target), rounds=3, warmup_rounds=1)
    assert value.item() == pytest.approx(ssim(prediction, target, 1.0).item(), abs=1e-3)
