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


def training_step(net: nn.Module, size: int = SIZE, autocast: bool = False) -> Callable[[], Tensor]:
    """Return a training step on one small volume: forward pass, backward pass and optimiser step.

    ``autocast`` computes in bf16; our own network does so by itself.
    """
    x, t = torch.randn(1, 2, size, size, size), torch.rand(1)
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-4)

    def step() -> Tensor:
        optimiser.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
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
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("size", [32, 48, 64])
def test_step_beside_monai(beside: Beside, size: int, precision: str) -> None:
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
    others = {"MONAI": training_step(theirs, size, precision == "bf16")}
    assert beside(training_step(ours(precision), size), others, rounds=8, warmup_rounds=1).isfinite()
