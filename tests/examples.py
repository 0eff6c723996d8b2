"""Code for tests of memory tracking: a small network, and a typical training step for it."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

Build = Callable[[], Any]
Step = Callable[[Any], Any]
Optimise = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(50, 70), nn.GELU(), nn.Linear(70, 50))


def data() -> Tensor:
    return torch.randn(9, 50)


def training(
    optimiser: Optimise = torch.optim.AdamW,
    net: Callable[[], nn.Module] = mlp,
    x: Callable[[], Tensor] = data,
    set_to_none: bool = True,
    before_step: Callable[[nn.Module], Any] = lambda net: None,
) -> tuple[Build, Step]:
    def build() -> Any:
        module = net()
        return module, optimiser(module.parameters())

    def step(state: Any) -> None:
        module, opt = state
        module(x()).square().mean().backward()
        before_step(module)
        opt.step()
        opt.zero_grad(set_to_none=set_to_none)

    return build, step
