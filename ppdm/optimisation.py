"""One update of the weights, the same for every method, and everything that changes with it."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ppdm.checkpoint import assemble
from ppdm.method import Method, training_loss
from ppdm.schedule import first_weights_seed

_OPTIMISER = "optimiser."


@dataclass
class Training:
    """What changes while a method is trained; :meth:`step` is one iteration, the same for every method.

    Attributes:
        method: the point in the design space.
        network: the weights that are trained, in fp32.
        average: a second network that holds their exponential moving average.
        optimiser: AdamW over the network's weights.
        done: steps taken.
    """

    method: Method
    network: nn.Module
    average: nn.Module
    optimiser: torch.optim.Optimizer
    done: int = 0

    @classmethod
    def start(cls, method: Method, channels: int = 1, seed: int = 0, device: str | torch.device = "cpu") -> "Training":
        """Make the network from the seed, the same on every device, and leave the global generators as they were."""
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.default_generator.manual_seed(first_weights_seed(seed))
            network = method.build(channels).to(device)
        average = assemble(method, channels, {name: tensor.clone() for name, tensor in network.state_dict().items()})
        # Fused: one pass over the weights without the temporary copies that the `foreach` variant makes of all of them.
        decay = method.optimisation.weight_decay
        optimiser = torch.optim.AdamW(network.parameters(), weight_decay=decay, fused=True)
        return cls(method, network, average, optimiser)

    def step(
        self, source: Tensor, target: Tensor, learning_rate: float, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Improve the weights on one batch, and update their average.

        Args:
            source, target: (N, C, D, H, W) on the network's device.
            learning_rate: of this step.
            generator: of times and noise.

        Returns:
            The loss and the norm of the gradient before clipping, scalars that are not yet waited for.
        """
        loss = self.add_gradient(source, target, generator)
        return loss, self.update(learning_rate)

    def add_gradient(
        self, source: Tensor, target: Tensor, generator: torch.Generator | None = None, batches: int = 1
    ) -> Tensor:
        """Add what one batch out of several gives to their mean gradient; returns the loss of this batch."""
        loss = training_loss(self.method, self.network, source, target, generator).mean()
        loss.backward(torch.full_like(loss, 1 / batches))
        return loss.detach()

    def update(self, learning_rate: float) -> Tensor:
        """Apply the gradient, clipped, and forget it; returns its norm before clipping."""
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.method.optimisation.clip, foreach=True)
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate
        self.optimiser.step()
        self.optimiser.zero_grad()  # here, so that gradients do not lie beside the activations of the next step
        self._update_average()
        self.done += 1
        return norm

    @torch.no_grad()
    def _update_average(self) -> None:
        decay = average_decay(self.method.optimisation.ema, self.done)
        for mean, weight in zip(self.average.parameters(), self.network.parameters(), strict=True):
            mean.lerp_(weight, 1 - decay)

    def is_finite(self) -> bool:
        """Whether every weight is a number still; of the averages too, as they are of these."""
        return all(bool(weight.isfinite().all()) for weight in self.network.parameters())

    def tensors(self) -> dict[str, Tensor]:
        """Everything that a training is continued from, but ``done``: weights, their average, the optimiser's state."""
        named = {f"network.{name}": tensor for name, tensor in self.network.state_dict().items()}
        named |= {f"average.{name}": tensor for name, tensor in self.average.state_dict().items()}
        for name, parameter in self.network.named_parameters():
            named |= {f"{_OPTIMISER}{key}.{name}": value for key, value in self.optimiser.state[parameter].items()}
        return named

    def restore(self, tensors: Mapping[str, Tensor], done: int) -> None:
        """Continue from what :meth:`tensors` gave after so many steps, bit for bit.

        Raises:
            ValueError: the tensors are of another network; nothing was changed then.
        """
        parameters = dict(self.network.named_parameters())
        own = {name: tensor for name, tensor in self.tensors().items() if not name.startswith(_OPTIMISER)}
        moments = sorted(tensors.keys() - own.keys())
        for name, tensor in own.items():
            if name not in tensors or tensors[name].shape != tensor.shape:
                raise ValueError(f"{name} of shape {tuple(tensor.shape)} is not in it")
        for name in moments:
            if not name.startswith(_OPTIMISER) or _moment(name)[1] not in parameters:
                raise ValueError(f"{name} is unexpected")
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(tensors[name])
        for name in moments:
            key, of = _moment(name)
            self.optimiser.state[parameters[of]][key] = _like(parameters[of], tensors[name])
        self.done = done


def average_decay(ema: float, k: int) -> float:
    """Decay of the average at step k: ``min(ema, (1 + k)/(10 + k))``, so that the first weights are soon forgotten."""
    return min(ema, (1 + k) / (10 + k))


def _moment(name: str) -> tuple[str, str]:
    """What of the optimiser's state a tensor is, and of which parameter."""
    key, _, of = name.removeprefix(_OPTIMISER).partition(".")
    return key, of


def _like(parameter: Tensor, kept: Tensor) -> Tensor:
    """A copy on the parameter's device, laid out in memory as the optimiser lays it out."""
    if kept.shape != parameter.shape:
        return kept.to(parameter.device, copy=True)
    return torch.empty_like(parameter, memory_format=torch.preserve_format, requires_grad=False).copy_(kept)
