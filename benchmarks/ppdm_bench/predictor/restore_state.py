"""Restores modules, optimizers, gradients and random generators after a prediction.

Operators on fake tensors do not change the values of real tensors. But real modules and tensors that the code closes
over get references to fake ones: a gradient, a converted parameter, a reassigned buffer, the state of an optimizer.
"""

import gc
import random
import sys
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from itertools import compress
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

Owner = nn.Module | Optimizer | LRScheduler | GradScaler
_OWNERS = (nn.Module, Optimizer, LRScheduler, GradScaler)


@contextmanager
def state_restored() -> Iterator[None]:
    """Restore every module, optimizer, schedule and leaf tensor that exists now at the end of the block."""
    generators, dtype, device = generator_states(), torch.get_default_dtype(), _default_device()
    leaves, owners = _live_objects()
    gradients = [(leaf, leaf.grad) for leaf in leaves if leaf.grad is not None]
    contents = [(mapping, dict(mapping)) for owner in owners for mapping in _mappings(owner)]
    training = [
        (owner, owner.training) for owner in owners if isinstance(owner, nn.Module) and "training" in vars(owner)
    ]
    del leaves, owners
    try:
        yield
    finally:
        for mapping, before in contents:
            mapping.clear()
            mapping.update(before)
        for module, mode in training:
            module.training = mode
        for leaf in _live_objects()[0]:
            if isinstance(leaf.grad, FakeTensor):
                leaf.grad = None
        for leaf, gradient in gradients:
            leaf.grad = gradient
        restore_generators(generators)
        torch.set_default_dtype(dtype)
        if _default_device() != device:
            torch.set_default_device(device)


def _default_device() -> torch.device | None:
    context = getattr(torch._GLOBAL_DEVICE_CONTEXT, "device_context", None)
    return context and context.device


def generator_states() -> tuple[Any, Any, Any]:
    """States of the global random generators of PyTorch, Python and, if it is imported, NumPy."""
    numpy = sys.modules.get("numpy")  # the package needs only PyTorch; code that uses NumPy has imported it
    return torch.default_generator.get_state(), random.getstate(), numpy and numpy.random.get_state()


def restore_generators(states: tuple[Any, Any, Any]) -> None:
    """Set the global random generators to the states of :func:`generator_states`."""
    torch.default_generator.set_state(states[0])
    random.setstate(states[1])
    if states[2]:
        sys.modules["numpy"].random.set_state(states[2])


def _live_objects() -> tuple[list[Tensor], list[Owner]]:
    """All real leaf tensors, and all objects that own tensors; the garbage collector is the only list of them."""
    objects = gc.get_objects()
    kinds = list(map(type, objects))
    tensors, owning = set[type](), set[type]()
    for kind in set(kinds):
        if kind is Tensor or kind is nn.Parameter:
            tensors.add(kind)
        elif issubclass(kind, _OWNERS) and not issubclass(kind, torch.jit.ScriptModule):  # which has only real tensors
            owning.add(kind)
    # `compress` and `map` need no step of the interpreter for each of a million objects.
    leaves = [x for x in compress(objects, map(tensors.__contains__, kinds)) if x.is_leaf]
    return leaves, list(compress(objects, map(owning.__contains__, kinds)))


def _mappings(owner: Owner) -> Iterator[MutableMapping[Any, Any]]:
    """Dictionaries of an owner with its tensors and numbers, such as learning rates."""
    if isinstance(owner, nn.Module):
        for name in vars(owner).keys() & {"_parameters", "_buffers"}:
            yield vars(owner)[name]
    elif not isinstance(owner, Optimizer):
        yield vars(owner)
    elif "param_groups" in vars(owner):
        yield owner.state
        yield from owner.param_groups
        yield from (state for state in owner.state.values() if isinstance(state, dict))
