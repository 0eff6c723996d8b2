"""Time of one SSIM of a volume, compared with scikit-image and MONAI with the same window."""

import pytest
import torch
from conftest import Beside
from torch import Tensor

from ppdm.metrics import ssim

SKIMAGE = {"data_range": 1.0, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}


def volumes(size: int) -> tuple[Tensor, Tensor]:
    target = torch.rand(size, size, size, generator=torch.Generator().manual_seed(0))
    return 0.9 * target + 0.1 * target.flip(0), target


@pytest.mark.benchmark(group="SSIM")
@pytest.mark.parametrize("size", [64, 128])
def test_ssim(beside: Beside, size: int) -> None:
    skimage = pytest.importorskip("skimage.metrics")
    prediction, target = volumes(size)

    def theirs() -> float:
        return float(skimage.structural_similarity(target.numpy(), prediction.numpy(), **SKIMAGE))

    value = beside(lambda: ssim(prediction, target, 1.0), {"scikit-image": theirs}, rounds=8, warmup_rounds=1)
    assert value.item() == pytest.approx(theirs(), abs=1e-4)


@pytest.mark.benchmark(group="SSIM")
@pytest.mark.parametrize("size", [64])
def test_ssim_beside_monai(beside: Beside, size: int) -> None:
    metric = pytest.importorskip("monai.metrics").SSIMMetric(spatial_dims=3, data_range=1.0)
    prediction, target = volumes(size)

    def theirs() -> float:
        return float(metric(prediction[None, None], target[None, None]))

    value = beside(lambda: ssim(prediction, target, 1.0), {"MONAI": theirs}, rounds=5, warmup_rounds=1)
    assert value.item() == pytest.approx(theirs(), abs=1e-3)
