"""Rejects sizes that depend on unknown values.

Code may log an integer that depends on data, such as the count of a mask, or divide by it. But a tensor of that size
would silently be predicted too small. Therefore ``.item()`` and ``.tolist()`` mark such integers, and arithmetic keeps
the mark. From the first marked number on, functions that create or slice tensors check for marks. ``int()`` would lose
the mark and raises an error immediately.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode, _pop_mode, _push_mode


class PredictionError(RuntimeError):
    """The code does something that a prediction cannot follow without data."""


class StandIn(int):
    """Stand-in for an integer that depends on data."""

    def __int__(self) -> int:
        raise refused("int()")


def refused(what: str) -> PredictionError:
    """The error for code that uses an unknown value as a size."""
    return PredictionError(
        f"this code cannot be predicted: {what} got an integer that depends on data, of which a size may be made, and "
        "a prediction has only shapes; give a fixed number in its place, read it with .item() if it is only logged, or "
        "measure the code"
    )


def marked(value: Any) -> Any:
    """Mark an integer, or all integers in nested lists."""
    if isinstance(value, list):
        return [marked(each) for each in value]
    return StandIn(value) if type(value) is int else value


def _of_a_mark(name: str) -> Callable[..., Any]:
    exact = getattr(int, name)

    def method(self: StandIn, *args: Any) -> Any:
        return marked(exact(self, *args))

    return method


_KEPT = (
    "add radd sub rsub mul rmul floordiv rfloordiv mod rmod pow rpow neg pos abs round ceil floor trunc lshift rshift"
)
for _name in _KEPT.split():
    setattr(StandIn, f"__{_name}__", _of_a_mark(f"__{_name}__"))

# Functions that create, slice or reshape tensors, and the position of an argument that is not a size, if there is one.
_SIZED: dict[Any, int | None] = {
    **dict.fromkeys((torch.zeros, torch.ones, torch.empty, torch.rand, torch.randn, torch.arange, torch.linspace)),
    **dict.fromkeys((torch.eye, torch.randperm, torch.reshape, torch.narrow, torch.split, torch.chunk, torch.tile)),
    **dict.fromkeys((torch.topk, torch.unflatten, torch.repeat_interleave, F.pad, F.interpolate, F.one_hot)),
    **dict.fromkeys((Tensor.view, Tensor.reshape, Tensor.expand, Tensor.repeat, Tensor.narrow, Tensor.split)),
    **dict.fromkeys((Tensor.chunk, Tensor.tile, Tensor.topk, Tensor.unflatten, Tensor.repeat_interleave)),
    **dict.fromkeys((Tensor.resize_, Tensor.new_zeros, Tensor.new_ones, Tensor.new_empty)),
    # Called by PyTorch's Python functions.
    **dict.fromkeys((torch._VF.split, torch._VF.split_with_sizes, torch._C.TensorBase.unflatten)),  # type: ignore[attr-defined]
    **{getattr(torch._C._nn, name): None for name in dir(torch._C._nn) if name.startswith(("upsample", "_upsample"))},
    torch._C._nn.pad: 3,
    torch.full: 1,
    Tensor.new_full: 2,
}


class Guard(TorchFunctionMode):
    """Rejects sizes computed from marked numbers, from the first marked number until ``leave``."""

    def mark(self, value: Any) -> Any:
        """Mark integers that depend on data."""
        stack = _emptied()
        # Goes below all others, because the user's modes are exited in reverse order of entry.
        for mode in (self, *(each for each in stack if each is not self)):
            _push_mode(mode)
        return marked(value)

    def leave(self) -> None:
        """Remove the guard."""
        for mode in _emptied():
            if mode is not self:
                _push_mode(mode)

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if function in _SIZED:
            sizes = [value for place, value in enumerate(args) if place != _SIZED[function]]
            sizes += [value for name, value in kwargs.items() if name not in ("fill_value", "value")]
        else:
            sizes = _slices(args[1]) if function is Tensor.__getitem__ else []
        if _is_marked(sizes):
            raise refused(function.__name__)
        return function(*args, **kwargs)


def _emptied() -> list[TorchFunctionMode]:
    """Pop all entered modes and return them, in the order of entry."""
    return [_pop_mode() for _ in range(torch._C._len_torch_function_stack())][::-1]


def _slices(index: Any) -> list[Any]:
    parts = index if isinstance(index, tuple) else (index,)
    return [(each.start, each.stop, each.step) for each in parts if isinstance(each, slice)]


def _is_marked(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(_is_marked(each) for each in value)
    return isinstance(value, StandIn)
