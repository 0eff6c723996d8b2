"""Tiny versions of the registered methods, and helpers for their tests."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from ppdm import Method
from ppdm.network.autoencoder import Autoencoder
from ppdm.slices import Slices


def tiny(method: Method, steps: int = 2) -> Method:
    """Return the method with the smallest networks of two levels, and with few sampling steps."""
    attention = method.network.attention and (False, any(method.network.attention))
    method = method.with_network(
        width=8, multipliers=(1, 2), residual_blocks=1, norm_groups=4, attention=attention, head_channels=4
    )
    if isinstance(method.window, Slices):
        method = replace(method, window=replace(method.window, context=1, drawn=2, batch=16))
    if isinstance(method.representation, Autoencoder):
        smaller = replace(method.representation, width=4, multipliers=(1, 2), attention=(False, True), norm_groups=2)
        method = replace(method, representation=smaller)
    loss = replace(method.loss, discriminator_width=4)
    return replace(method, loss=loss, sampling=replace(method.sampling, steps=min(steps, method.sampling.steps)))


def volumes(*shape: int, seed: int = 0) -> Tensor:
    """Return standard normal noise."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(method: Method, channels: int = 1) -> nn.Module:
    """Return a network whose zero-initialised weights are random, so that its output is not zero."""
    torch.manual_seed(0)
    net = method.build(channels)
    for parameter in net.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.05)
    return net
