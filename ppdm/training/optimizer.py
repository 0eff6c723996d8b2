"""The optimisers that weights are found with, and what each keeps of a weight, as plain tensors."""

import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from ppdm.method import Optimisation
from ppdm.training.schedule import TrainingError

_BLOCK, _LEAST = 256, 4096  # torchao leaves moments in fp32 that are smaller, or no whole number of blocks
_MOMENTS = ("exp_avg", "exp_avg_sq")
_PARTS = ("codes", "scale", "qmap")  # of a moment in 8 bits; between the two names stands a colon


def optimiser_of(optimisation: Optimisation, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimiser that a method asks for, over these parameters.

    Raises:
        TrainingError: it is one of torchao's, and torchao is not there.
    """
    return _MAKERS[optimisation.optimiser](list(parameters), optimisation.weight_decay)


def _adamw(parameters: list[nn.Parameter], decay: float) -> torch.optim.Optimizer:
    # Fused: one pass over the weights without the temporary copies that the `foreach` variant makes of all of them.
    return torch.optim.AdamW(parameters, weight_decay=decay, fused=True)


def _adamw8bit(parameters: list[nn.Parameter], decay: float) -> torch.optim.Optimizer:
    """Moments in 8 bits with a scale for each block (arXiv 2110.02861), two bytes a weight for eight."""
    try:
        with _quiet():
            from torchao.optim import AdamW8bit
    except ImportError as error:
        raise TrainingError(
            f"The optimiser adamw8bit needs torchao ({error}); pip install 'ppdm[eightbit]', or take adamw."
        ) from None
    made: torch.optim.Optimizer = AdamW8bit(parameters, weight_decay=decay, block_size=_BLOCK)
    return made


_MAKERS: Mapping[str, Callable[[list[nn.Parameter], float], torch.optim.Optimizer]] = {
    "adamw": _adamw,
    "adamw8bit": _adamw8bit,
}


def library_of(optimisation: Optimisation) -> dict[str, str]:
    """The library whose arithmetic the optimiser is and its version, where that is not PyTorch."""
    return {"torchao": version("torchao")} if optimisation.optimiser == "adamw8bit" else {}


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of the next step; torchao's is a tensor on the host, so that a new one compiles nothing."""
    for group in optimiser.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def stepping(optimisation: Optimisation, device: torch.device) -> AbstractContextManager[Any]:
    """How a step is run: torchao compiles its own, which on the CPU takes longer than many trainings there last."""
    compiles = optimisation.optimiser == "adamw8bit"
    return torch.compiler.set_stance("force_eager") if compiles and device.type == "cpu" else nullcontext()


def kept(moments: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """What an optimiser keeps of one parameter, each a plain tensor and its name."""
    for key, value in moments.items():
        if hasattr(value, "__tensor_flatten__"):
            yield from ((f"{key}:{part}", getattr(value, part)) for part in _PARTS)
        else:
            yield key, value


def names(optimisation: Optimisation, parameter: Tensor) -> set[str]:
    """The names under which :func:`kept` gives what is kept of a parameter."""
    if _in_8_bits(optimisation, parameter):
        return {"step", *(f"{moment}:{part}" for moment in _MOMENTS for part in _PARTS)}
    return {"step", *_MOMENTS}


def restored(optimisation: Optimisation, parameter: Tensor, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What :func:`kept` took apart, as the optimiser keeps it of this parameter: copies on the parameter's device."""
    if optimisation.optimiser == "adamw":
        return {name: _like(parameter, tensor) for name, tensor in tensors.items()}
    state = {"step": tensors["step"].clone()}  # torchao counts on the host
    if not _in_8_bits(optimisation, parameter):
        return state | {moment: _like(parameter, tensors[moment]) for moment in _MOMENTS}
    with _quiet():
        from torchao.optim.subclass_8bit import OptimState8bit
    for moment in _MOMENTS:
        codes, scale, qmap = (tensors[f"{moment}:{part}"].to(parameter.device, copy=True) for part in _PARTS)
        state[moment] = OptimState8bit(codes, scale, qmap, signed=moment == "exp_avg", dtype=parameter.dtype)
    return state


def _in_8_bits(optimisation: Optimisation, parameter: Tensor) -> bool:
    whole = parameter.numel() >= _LEAST and parameter.numel() % _BLOCK == 0
    return optimisation.optimiser == "adamw8bit" and whole


def _like(parameter: Tensor, kept: Tensor) -> Tensor:
    """A copy on the parameter's device, laid out in memory as the optimiser lays it out."""
    if kept.shape != parameter.shape:
        return kept.to(parameter.device, copy=True)
    return torch.empty_like(parameter, memory_format=torch.preserve_format, requires_grad=False).copy_(kept)


@contextmanager
def _quiet() -> Iterator[None]:
    """Import torchao without what it says of kernels that are not used here, and of PyTorch's plans for its enums."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(before)
