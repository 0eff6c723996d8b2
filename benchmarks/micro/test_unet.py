"""Time of one training step of the U-Net, compared with MONAI's of equal topology (with attention in its middle)."""

from collections.abc import Callable

import pytest
import torch
from conftest import Beside
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor, nn

from ppdm.network.options import UNetOptions
from ppdm.network.unet import UNet

SIZE, WIDTH, GROUPS = 32, 16, 8
MULTIPLIERS = (1, 2, 2)


def training_step(net: nn.Module) -> Callable[[], Tensor]:
    """Return a training step on one small volume: forward pass, backward pass and optimiser step."""
    x, t = torch.randn(1, 2, SIZE, SIZE, SIZE), torch.rand(1)
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-4)

    def step() -> Tensor:
        optimiser.zero_grad()
        loss: Tensor = (net(x, t) - x[:, :1]).square().mean()
        loss.backward()
        optimiser.step()
        return loss.detach()

    return step


def ours(precision: str = "fp32", checkpointing: str = "none") -> UNet:
    options = UNetOptions(WIDTH, MULTIPLIERS, norm_groups=GROUPS, precision=precision, checkpointing=checkpointing)
    return UNet(2, 1, 3, options)


@pytest.mark.benchmark(group="U-Net training step")
@pytest.mark.parametrize("checkpointing", ["none", "norm", "block"])
def test_step(benchmark: BenchmarkFixture, checkpointing: str) -> None:
    step = training_step(ours(checkpointing=checkpointing))
    assert benchmark.pedantic(step, rounds=8, warmup_rounds=1).isfinite()


@pytest.mark.benchmark(group="U-Net training step")
def test_step_in_bf16(benchmark: BenchmarkFixture) -> None:
    """Runs few rounds, because a CPU without native bf16 takes several times as long as in fp32."""
    assert benchmark.pedantic(training_step(ours("bf16")), rounds=3, warmup_rounds=1).isfinite()


@pytest.mark.benchmark(group="U-Net training step")
def test_step_beside_monai(beside: Beside) -> None:
    nets = pytest.importorskip("monai.networks.nets")
    theirs = nets.DiffusionModelUNet(
        spatial_dims=3,
        in_channels=2,
        out_channels=1,
        num_res_blocks=1,
        channels=tuple(WIDTH * m for m in MULTIPLIERS),
        attention_levels=(False,) * len(MULTIPLIERS),
        norm_num_groups=GROUPS,
        with_conditioning=False,
    )
    assert beside(training_step(ours()), {"MONAI": training_step(theirs)}, rounds=10, warmup_rounds=1).isfinite()
