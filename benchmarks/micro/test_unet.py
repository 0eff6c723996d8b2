"""Time of one training step of the U-Net, beside MONAI's with the same parameters (and its attention in the middle)."""

from collections.abc import Callable

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor, nn

from ppdm.unet import UNet, UNetOptions

SIZE, WIDTH, GROUPS = 32, 16, 8
MULTIPLIERS = (1, 2, 2)


def training_step(net: nn.Module) -> Callable[[], Tensor]:
    """Forwards, backwards and the optimiser's step on one small volume."""
    x, t = torch.randn(1, 2, SIZE, SIZE, SIZE), torch.rand(1)
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-4)

    def step() -> Tensor:
        optimiser.zero_grad()
        loss: Tensor = (net(x, t) - x[:, :1]).square().mean()
        loss.backward()
        optimiser.step()
        return loss.detach()

    return step


def timed(benchmark: BenchmarkFixture, net: nn.Module) -> Tensor:
    loss: Tensor = benchmark.pedantic(training_step(net), rounds=10, warmup_rounds=2)
    return loss


@pytest.mark.benchmark(group="U-Net training step")
@pytest.mark.parametrize("checkpointing", ["none", "norm", "block"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_ours(benchmark: BenchmarkFixture, precision: str, checkpointing: str) -> None:
    options = UNetOptions(WIDTH, MULTIPLIERS, norm_groups=GROUPS, precision=precision, checkpointing=checkpointing)
    assert timed(benchmark, UNet(2, 1, 3, options)).isfinite()


@pytest.mark.benchmark(group="U-Net training step")
def test_monai(benchmark: BenchmarkFixture) -> None:
    nets = pytest.importorskip("monai.networks.nets")
    net = nets.DiffusionModelUNet(
        spatial_dims=3,
        in_channels=2,
        out_channels=1,
        num_res_blocks=1,
        channels=tuple(WIDTH * m for m in MULTIPLIERS),
        attention_levels=(False,) * len(MULTIPLIERS),
        norm_num_groups=GROUPS,
        with_conditioning=False,
    )
    assert timed(benchmark, net).isfinite()
