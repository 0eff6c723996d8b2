"""What the network sees of the state at once.

Axes: latents (N, C, D, H, W), time (N,).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

MakeNetwork = Callable[[int, int, int], nn.Module]  # (in_channels, out_channels, dims)
Predict = Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]  # (network, x_t, t, y) -> like x_t


class Window(Protocol):
    """What :mod:`ppdm.method` asks of a window; its values are frozen dataclasses."""

    def build(self, make: MakeNetwork, channels: int) -> nn.Module:
        """Make the network, or networks, for latents of so many channels."""

    def draw(self, x0: Tensor, y: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor, Predict]:
        """Choose what one training step sees: the pieces of both ends, and how a prediction is made for them."""

    def apply(self, network: nn.Module, x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """Predict for the whole state, as sampling needs it."""


@dataclass(frozen=True)
class Whole:
    """The whole state at once.

    Args:
        concatenate: whether the source is given to the network beside the state. A noise-free bridge without it can
            stay where it starts; with it, such a bridge learns a division (see the notes on the bridge in the README).
    """

    concatenate: bool = True

    def build(self, make: MakeNetwork, channels: int) -> nn.Module:
        return make(2 * channels if self.concatenate else channels, channels, 3)

    def draw(self, x0: Tensor, y: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor, Predict]:
        return x0, y, self.apply

    def apply(self, network: nn.Module, x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        seen = torch.cat([x_t, y], dim=1) if self.concatenate else x_t
        prediction: Tensor = network(seen, t)
        return prediction


WINDOWS = {"whole": Whole}
