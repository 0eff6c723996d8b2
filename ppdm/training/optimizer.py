"""AdamW with moments in fp32 or in 8 bits, and conversion of its state to and from plain tensors."""

import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from importlib.metadata import version

import torch
from torch import Tensor, nn

from ppdm.method import Optimisation
from ppdm.training.schedule import TrainingError

_BLOCK, _LEAST = 256, 4096  # torchao keeps moments in fp32 if they are smaller, or not a multiple of the block
_MOMENTS = ("exp_avg", "exp_avg_sq")
_PARTS = ("codes", "scale", "qmap")  # parts of an 8-bit moment, named "moment:part"


class AdamW:
    """AdamW (arXiv 1711.05101) of PyTorch.

    Args:
        parameters: the weights that are trained.
        weight_decay: weight decay.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], weight_decay: float) -> None:
        # Fused: one pass over the weights, without the temporary copies of all weights that `foreach` makes.
        self.inner: torch.optim.Optimizer = torch.optim.AdamW(parameters, weight_decay=weight_decay, fused=True)

    @staticmethod
    def library() -> dict[str, str]:
        """Return the name and version of the library that implements it; empty for PyTorch."""
        return {}

    def step(self, rate: float, scaler: torch.amp.GradScaler) -> None:
        """Update the weights at this learning rate, and clear their gradients.

        If the scaler found an overflow, the fused kernel leaves weights and moments as they are, without a wait.
        """
        for group in self.inner.param_groups:
            group["lr"] = rate
        scaler.step(self.inner)
        self.inner.zero_grad()  # here, so that gradients use no memory during the next forward pass

    def state(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """Return the state of a parameter as plain tensors by name; empty before the first step."""
        return dict(self.inner.state.get(parameter, {}))

    def names(self, parameter: nn.Parameter) -> set[str]:
        """Return the names that :meth:`state` uses for a parameter after its first step."""
        return {"step", *_MOMENTS}

    def restore(self, parameter: nn.Parameter, state: Mapping[str, Tensor]) -> None:
        """Restore the result of :meth:`state`, as copies on the parameter's device."""
        self.inner.state[parameter] = {name: _like(parameter, tensor) for name, tensor in state.items()}


class AdamW8bit(AdamW):
    """AdamW of torchao with 8-bit moments and a scale per block (arXiv 2110.02861): two bytes per weight, not eight.

    Raises:
        TrainingError: torchao is not installed.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], weight_decay: float) -> None:
        try:
            with _quiet():
                from torchao.optim import AdamW8bit as Torchao
        except ImportError as error:
            raise TrainingError(
                f"The optimiser adamw8bit needs torchao ({error}); pip install 'ppdm[eightbit]', or use adamw."
            ) from None
        self.inner = Torchao(parameters, weight_decay=weight_decay, block_size=_BLOCK)

    @staticmethod
    def library() -> dict[str, str]:
        return {"torchao": version("torchao")}

    def step(self, rate: float, scaler: torch.amp.GradScaler) -> None:
        (group,) = self.inner.param_groups
        group["lr"].fill_(rate)  # a tensor on the host: for another Python number, torchao would compile again
        # On the CPU, compiling takes longer than a training.
        on_cpu = group["params"][0].device.type == "cpu"
        with torch.compiler.set_stance("force_eager") if on_cpu else nullcontext():
            scaler.step(self.inner)
        self.inner.zero_grad()

    def state(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        plain: dict[str, Tensor] = {}
        for name, value in super().state(parameter).items():
            is_8bit = hasattr(value, "__tensor_flatten__")
            plain |= {f"{name}:{part}": getattr(value, part) for part in _PARTS} if is_8bit else {name: value}
        return plain

    def names(self, parameter: nn.Parameter) -> set[str]:
        if not _in_8_bits(parameter):
            return super().names(parameter)
        return {"step", *(f"{moment}:{part}" for moment in _MOMENTS for part in _PARTS)}

    def restore(self, parameter: nn.Parameter, state: Mapping[str, Tensor]) -> None:
        restored = {"step": state["step"].clone()}  # torchao keeps the step count on the host
        if not _in_8_bits(parameter):
            restored |= {moment: _like(parameter, state[moment]) for moment in _MOMENTS}
        else:
            with _quiet():
                from torchao.optim.subclass_8bit import OptimState8bit
            for moment in _MOMENTS:
                codes, scale, qmap = (state[f"{moment}:{part}"].to(parameter.device, copy=True) for part in _PARTS)
                signed = moment == "exp_avg"
                restored[moment] = OptimState8bit(codes, scale, qmap, signed=signed, dtype=parameter.dtype)
        self.inner.state[parameter] = restored


_CLASSES: Mapping[str, type[AdamW]] = {"adamw": AdamW, "adamw8bit": AdamW8bit}


def optimizer_class(optimisation: Optimisation) -> type[AdamW]:
    """Return the class of the optimiser that the options name."""
    return _CLASSES[optimisation.optimiser]


def _in_8_bits(parameter: Tensor) -> bool:
    return parameter.numel() >= _LEAST and parameter.numel() % _BLOCK == 0


def _like(parameter: Tensor, kept: Tensor) -> Tensor:
    """Copy a tensor to the parameter's device, in the memory layout that the optimiser uses."""
    if kept.shape != parameter.shape:
        return kept.to(parameter.device, copy=True)
    return torch.empty_like(parameter, memory_format=torch.preserve_format, requires_grad=False).copy_(kept)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence torchao's import messages about unused kernels and about planned changes to PyTorch's enums."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(before)
