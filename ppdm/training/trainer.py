"""Training state and one weight update, the same for every method."""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ppdm.checkpoint import weight_faults
from ppdm.method import STAGE_LOSSES, Method
from ppdm.pixel_puzzle import pad_to_multiple
from ppdm.representation import LearnedCodec
from ppdm.training.optimizer import AdamW, optimizer_class
from ppdm.training.schedule import TrainingError, first_weights_seed

_OPTIMISER = "optimiser."
_STAGE = "stage"
_SCALER = "scaler"
_SCALER_STATE = ("scale", "_growth_tracker")  # of GradScaler.state_dict; the rest are constants


@dataclass
class Training:
    """Mutable state of a training run; :meth:`step` is one iteration and is the same for every method.

    Attributes:
        method: the point in the design space.
        network: the trained weights, in fp32.
        average: a second network that holds the exponential moving average of the weights.
        stage: index of the current stage.
        done: number of completed steps in all stages.
        began: number of steps that were complete when the current stage began.
        discriminator: the network that an adversarial loss trains beside the method's own; it has no average.
        optimizer: optimiser of the method, for the weights that the stage trains.
        scaler: dynamic loss scaling for fp16 (arXiv 1710.03740); without effect in other precisions.
    """

    method: Method
    network: nn.Module
    average: nn.Module
    stage: int = 0
    done: int = 0
    began: int = 0
    discriminator: nn.Module | None = None
    optimizer: AdamW = field(init=False)
    scaler: torch.amp.GradScaler = field(init=False)
    _weights: list[list[nn.Parameter]] = field(init=False, repr=False)  # of each trained module, listed once
    _averages: list[Tensor] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._enter(self.stage, self.began)

    @classmethod
    def start(
        cls, method: Method, channels: int = 1, seed: int = 0, device: str | torch.device = "cpu", stage: int = 0
    ) -> "Training":
        """Initialise the network from the seed, the same on every device, without changing the global generators.

        Args:
            method: the point in the design space.
            channels: number of channels of the volumes.
            seed: seed of the initial weights.
            device: device on which the network is trained.
            stage: index of the first stage; parts that earlier stages would train keep their initial weights.
        """
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.default_generator.manual_seed(first_weights_seed(seed))
            network = method.build(channels).to(device)
            discriminator = method.build_discriminator(channels)
        average = copy.deepcopy(network).eval().requires_grad_(False)
        discriminator = None if discriminator is None else discriminator.to(device)
        return cls(method, network, average, stage, discriminator=discriminator)

    def initialise(self, weights: Mapping[str, Tensor]) -> None:
        """Replace the initial weights and their average (warm start); call it before the first step.

        Raises:
            ValueError: the weights belong to another network; nothing is changed.
        """
        if faults := weight_faults(self.network.state_dict(), weights):
            raise ValueError(faults)
        for network in (self.network, self.average):
            network.load_state_dict(weights)

    def _enter(self, stage: int, began: int) -> None:
        """Start a stage with a new optimiser for the weights that it trains."""
        self.stage, self.began = stage, began
        options = self.method.optimisation
        self._weights = [list(module.parameters()) for module in self.trained_modules]
        self._averages = list(self.method.part(self.average, self.method.stages[self.stage]).parameters())
        self.optimizer = optimizer_class(options)((one for each in self._weights for one in each), options.weight_decay)
        device = self._weights[0][0].device.type
        self.scaler = torch.amp.GradScaler(device, enabled=self.method.network.precision == "fp16")

    @property
    def trained(self) -> nn.Module:
        """The part of the network that the stage trains."""
        return self.method.part(self.network, self.method.stages[self.stage])

    @property
    def trained_modules(self) -> list[nn.Module]:
        """The trained modules: the stage's part of the network and, with an adversarial loss, the discriminator."""
        return [self.trained] if self.discriminator is None else [self.trained, self.discriminator]

    @property
    def is_last(self) -> bool:
        """Whether this is the last stage."""
        return self.stage + 1 == len(self.method.stages)

    def advance(self, targets: Iterable[Tensor]) -> None:
        """Move to the next stage; the averaged weights of the finished stage replace its trained weights.

        Args:
            targets: volumes (N, C, D, H, W) on the network's device, on which the representation is calibrated.

        Raises:
            TrainingError: the representation cannot be calibrated, because it maps all volumes to the same latent.
        """
        averaged = self.method.part(self.average, self.method.stages[self.stage])
        assert isinstance(averaged, LearnedCodec)
        try:
            averaged.calibrate(pad_to_multiple(volume, self.method.multiple) for volume in targets)
        except ValueError as error:
            raise TrainingError(
                f"The representation stage ended after step {self.done}, but {error}; train longer, or at another "
                "learning rate."
            ) from None
        self.trained.load_state_dict(averaged.state_dict())
        self._enter(self.stage + 1, self.done)

    def step(
        self, source: Tensor, target: Tensor, learning_rate: float, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Update the weights on one batch, and update their average.

        Args:
            source, target: (N, C, D, H, W) on the network's device.
            learning_rate: learning rate of this step.
            generator: generator for times and noise.

        Returns:
            The loss and the gradient norm before clipping, scalars on the device; this call does not wait for them.
        """
        loss = self.add_gradient(source, target, generator)
        return loss, self.update(learning_rate)

    def add_gradient(
        self, source: Tensor, target: Tensor, generator: torch.Generator | None = None, batches: int = 1
    ) -> Tensor:
        """Add the contribution of one of several batches to their mean gradient; return the loss of this batch."""
        stage_loss = STAGE_LOSSES[self.method.stages[self.stage]]
        beside = {} if self.discriminator is None else {"discriminator": self.discriminator}
        loss = stage_loss(self.method, self.network, source, target, generator, **beside).mean()
        self.scaler.scale(loss).backward(torch.full_like(loss, 1 / batches))
        return loss.detach()

    def update(self, learning_rate: float) -> Tensor:
        """Apply the clipped gradient and clear it; return its norm before clipping.

        The gradients of a network and of its discriminator do not depend on each other, so each is clipped by itself.
        In fp16, the norm is not finite if gradients overflowed; the weights and their average then stay as they are,
        and the next step scales the loss by half as much.
        """
        self.scaler.unscale_(self.optimizer.inner)
        clip = self.method.optimisation.clip
        norms = [nn.utils.clip_grad_norm_(weights, clip, foreach=True) for weights in self._weights]
        norm = norms[0] if len(norms) == 1 else torch.stack(norms).norm()
        self.optimizer.step(learning_rate, self.scaler)
        self.scaler.update()
        self._update_average(norm)
        self.done += 1
        return norm

    @torch.no_grad()
    def _update_average(self, norm: Tensor) -> None:
        rate = 1 - average_decay(self.method.optimisation.ema, self.done - self.began)
        averages, weights = self._averages, list[Tensor](self._weights[0])
        if self.scaler.is_enabled():  # a rate of 0, computed on the device, skips the step without waiting for it
            torch._foreach_lerp_(averages, weights, [rate * norm.isfinite()] * len(weights))
        else:  # one call updates many weights in one kernel, as `torch.optim.swa_utils` does
            torch._foreach_lerp_(averages, weights, rate)

    def is_finite(self) -> bool:
        """Whether every weight is finite; the averages are computed from them and need no separate check."""
        return all(bool(weight.isfinite().all()) for weight in self._parameters().values())

    def _parameters(self) -> dict[str, nn.Parameter]:
        """Return the weights of the network and of the discriminator by name."""
        named = dict(self.network.named_parameters())
        if self.discriminator is not None:
            named |= dict(self.discriminator.named_parameters())
        return named

    def tensors(self) -> dict[str, Tensor]:
        """Return everything needed to resume except ``done``: weights, their average, the optimiser's state."""
        named = {f"network.{name}": tensor for name, tensor in self.network.state_dict().items()}
        named |= {f"average.{name}": tensor for name, tensor in self.average.state_dict().items()}
        if self.discriminator is not None:
            named |= self.discriminator.state_dict()
        for name, parameter in self._parameters().items():
            named |= {f"{_OPTIMISER}{key}.{name}": value for key, value in self.optimizer.state(parameter).items()}
        if len(self.method.stages) > 1:
            named[_STAGE] = torch.tensor([self.stage, self.began])
        if self.scaler.is_enabled():
            state = self.scaler.state_dict()
            named[_SCALER] = torch.tensor([state[name] for name in _SCALER_STATE], dtype=torch.float64)
        return named

    def restore(self, tensors: Mapping[str, Tensor], done: int) -> None:
        """Restore the result of :meth:`tensors` after ``done`` steps, bit for bit.

        Raises:
            ValueError: the tensors belong to another network or stage; the state is then unchanged.
        """
        parameters = self._parameters()
        own = {name: tensor for name, tensor in self.tensors().items() if not name.startswith(_OPTIMISER)}
        states: dict[str, dict[str, Tensor]] = {}
        for name, tensor in own.items():
            if name not in tensors or tensors[name].shape != tensor.shape:
                raise ValueError(f"{name} of shape {tuple(tensor.shape)} is not in it")
        for name in sorted(tensors.keys() - own.keys()):
            key, _, of = name.removeprefix(_OPTIMISER).partition(".")  # "optimiser.KEY.PARAMETER"
            known = self.optimizer.names(parameters[of]) if of in parameters else ()
            if not name.startswith(_OPTIMISER) or key not in known:
                raise ValueError(f"{name} is unexpected")
            states.setdefault(of, {})[key] = tensors[name]
        for of, state in states.items():
            if lacking := sorted(self.optimizer.names(parameters[of]) - state.keys()):
                raise ValueError(f"{_OPTIMISER}{lacking[0]}.{of} is not in it")
        stage, began = tensors[_STAGE].tolist() if _STAGE in own else (0, 0)
        if not 0 <= stage < len(self.method.stages):
            raise ValueError(f"there is no stage {stage}")
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(tensors[name])
        self._enter(stage, began)
        for of, state in states.items():
            self.optimizer.restore(parameters[of], state)
        if _SCALER in own:
            scale, grown = tensors[_SCALER].tolist()
            changed = dict(zip(_SCALER_STATE, (scale, int(grown)), strict=True))
            self.scaler.load_state_dict(self.scaler.state_dict() | changed)
        self.done = done


def average_decay(ema: float, k: int) -> float:
    """Return the decay of the average at step k: ``min(ema, (1 + k)/(10 + k))``, so that early weights fade quickly."""
    return min(ema, (1 + k) / (10 + k))
