"""Optimisers, and conversion of their state to and from plain tensors."""

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

_BLOCK, _LEAST = 256, 4096  # torchao keeps other moments in fp32: too small, or not whole blocks
_MOMENTS = ("exp_avg", "exp_avg_sq")
_PARTS = ("codes", "scale", "qmap")  # parts of an 8-bit moment, named "moment:part"


def optimiser_of(optimisation: Optimisation, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """Return the optimiser that the options select, for these parameters.

    Raises:
        TrainingError: the optimiser needs torchao, and torchao is not installed.
    """
    return _MAKERS[optimisation.optimiser](list(parameters), optimisation.weight_decay)


def _adamw(parameters: list[nn.Parameter], decay: float) -> torch.optim.Optimizer:
    # Fused: one pass over the weights, without the temporary copies of all weights that the `foreach` variant makes.
    return torch.optim.AdamW(parameters, weight_decay=decay, fused=True)


def _adamw8bit(parameters: list[nn.Parameter], decay: float) -> torch.optim.Optimizer:
    """AdamW with 8-bit moments and a scale per block (arXiv 2110.02861): two bytes per weight instead of eight."""
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
    """Return the name and version of the library that implements the optimiser; empty for PyTorch."""
    return {"torchao": version("torchao")} if optimisation.optimiser == "adamw8bit" else {}


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of the next step; torchao uses a host tensor, which avoids a recompilation."""
    for group in optimiser.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def stepping(optimisation: Optimisation, device: torch.device) -> AbstractContextManager[Any]:
    """Return the context for an optimiser step; on the CPU, it disables torchao's compilation, which takes too long."""
    compiles = optimisation.optimiser == "adamw8bit"
    return torch.compiler.set_stance("force_eager") if compiles and device.type == "cpu" else nullcontext()


def kept(moments: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Yield the optimiser state of one parameter as names and plain tensors."""
    for key, value in moments.items():
        if hasattr(value, "__tensor_flatten__"):
            yield from ((f"{key}:{part}", getattr(value, part)) for part in _PARTS)
        else:
            yield key, value


def names(optimisation: Optimisation, parameter: Tensor) -> set[str]:
    """Return the names that :func:`kept` yields for a parameter."""
    if _in_8_bits(optimisation, parameter):
        return {"step", *(f"{moment}:{part}" for moment in _MOMENTS for part in _PARTS)}
    return {"step", *_MOMENTS}


def restored(optimisation: Optimisation, parameter: Tensor, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rebuild the optimiser state of a parameter from the tensors of :func:`kept`, as copies on its device."""
    if optimisation.optimiser == "adamw":
        return {name: _like(parameter, tensor) for name, tensor in tensors.items()}
    state = {"step": tensors["step"].clone()}  # torchao keeps the step count on the host
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
