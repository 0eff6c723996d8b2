"""What a prediction leaves as it was: modules, optimizers, gradients and the random generator of the code it runs.

Under fake tensors nothing real changes its values, but real modules and tensors that the code closes over are handed
fake ones: a gradient, a converted parameter, a buffer assigned anew, the state of an optimizer.
"""

import gc
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from types import BuiltinFunctionType, CellType, FunctionType, GetSetDescriptorType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.optim import Optimizer

_BUILTIN = {dict, list, tuple, set, frozenset, type, property, classmethod, staticmethod}
_BUILTIN |= {FunctionType, BuiltinFunctionType, CellType, GetSetDescriptorType, ModuleType}


@contextmanager
def preserved() -> Iterator[None]:
    """Put back, at the end, what every module, optimizer and leaf tensor that exists now holds."""
    generator = torch.get_rng_state()
    leaves, owners = _alive()
    gradients = [(leaf, leaf.grad) for leaf in leaves if leaf.grad is not None]
    held = [(mapping, dict(mapping)) for owner in owners for mapping in _mappings(owner)]
    del leaves, owners
    try:
        yield
    finally:
        for mapping, before in held:
            mapping.clear()
            mapping.update(before)
        for leaf in _alive()[0]:
            if isinstance(leaf.grad, FakeTensor):
                leaf.grad = None
        for leaf, gradient in gradients:
            leaf.grad = gradient
        torch.set_rng_state(generator)


def _alive() -> tuple[list[Tensor], list[nn.Module | Optimizer]]:
    """Every real leaf tensor, and every module and optimizer; there is no other register of them."""
    leaves: list[Tensor] = []
    owners: list[nn.Module | Optimizer] = []
    for x in gc.get_objects():
        kind = type(x)
        if kind in _BUILTIN:  # nearly all
            continue
        if kind is Tensor or kind is nn.Parameter:
            if x.is_leaf:
                leaves.append(x)
        elif issubclass(kind, (nn.Module, Optimizer)):
            owners.append(x)
    return leaves, owners


def _mappings(owner: nn.Module | Optimizer) -> Iterator[MutableMapping[Any, Any]]:
    """The dictionaries in which it holds tensors, and the numbers beside them."""
    if isinstance(owner, nn.Module):
        for name in vars(owner).keys() & {"_parameters", "_buffers"}:
            yield vars(owner)[name]
    elif "param_groups" in vars(owner):
        yield owner.state
        yield from owner.param_groups
        yield from (state for state in owner.state.values() if isinstance(state, dict))
