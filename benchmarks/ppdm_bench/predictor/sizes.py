"""Rejects sizes that depend on unknown values.

Code may log a number that depends on data, such as the count of a mask, or divide by it. But a tensor of that size
would silently be predicted too small. Therefore ``.item()``, ``.tolist()`` and ``.numpy()`` mark such numbers, and
arithmetic keeps the mark. Functions that create or slice tensors check for marks. ``int()`` would lose the mark and
raises an error immediately.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import TorchFunctionMode


class PredictionError(RuntimeError):
    """The code does something that a prediction cannot follow without data."""


class StandIn(int):
    """Stand-in for an integer that depends on data."""

    def __int__(self) -> int:
        raise refused("int()")


class StandInFloat(float):
    """Stand-in for a number that depends on data, of which code may make an integer."""

    def __int__(self) -> int:
        raise refused("int()")

    def __round__(self, digits: Any = None) -> Any:
        return marked(float.__round__(self, digits))

    def __ceil__(self) -> Any:
        return marked(math.ceil(float.__add__(self, 0)))

    def __floor__(self) -> Any:
        return marked(math.floor(float.__add__(self, 0)))


def refused(what: str) -> PredictionError:
    """The error for code that uses an unknown value as a size."""
    return PredictionError(
        f"this code cannot be predicted: {what} got a number that depends on data, of which a size may be made, and "
        "a prediction has only shapes; give a fixed number in its place, read it with .item() if it is only logged, or "
        "measure the code"
    )


def marked(value: Any) -> Any:
    """Mark a number, or all numbers in nested lists."""
    if isinstance(value, list):
        return [marked(each) for each in value]
    mark = _MARKS.get(type(value))
    return mark(value) if mark else value


_MARKS: Mapping[type, type] = {int: StandIn, float: StandInFloat}


def _of_a_mark(kind: type, name: str) -> Callable[..., Any]:
    exact = getattr(kind, name)

    def method(self: Any, *args: Any) -> Any:
        result = exact(self, *args)
        if result is NotImplemented and kind is int:  # with a fraction
            result = getattr(float, name, exact)(float(self), *args)
        return marked(result)

    return method


_KEPT = "add radd sub rsub mul rmul truediv rtruediv floordiv rfloordiv mod rmod pow rpow neg pos abs"
_KEPT_BY_INTEGERS = "round ceil floor trunc lshift rshift"
for _kind, _mark in _MARKS.items():
    _mark.item = lambda self: self  # type: ignore[attr-defined]  # as a NumPy number has it
    for _name in [*_KEPT.split(), *(_KEPT_BY_INTEGERS.split() if _kind is int else [])]:
        setattr(_mark, f"__{_name}__", _of_a_mark(_kind, f"__{_name}__"))


@cache
def _array_type() -> type:
    np: Any = import_module("numpy")  # which code that asks for an array has; the package itself needs only PyTorch

    class Unknown(np.ndarray):  # type: ignore[misc]
        """An array of integers that depend on data; numbers taken from it are marked."""

        def __array_wrap__(self, array: Any, *_: Any) -> Any:
            return _taken(array[()]) if array.ndim == 0 else np.asarray(array).view(Unknown)

        def __getitem__(self, index: Any) -> Any:
            return _taken(super().__getitem__(index))

        def item(self, *args: Any) -> Any:
            return marked(super().item(*args))

        def tolist(self) -> Any:
            return marked(super().tolist())

        def __int__(self) -> int:
            raise refused("int()")

        __index__ = __int__

    def _taken(value: Any) -> Any:
        return marked(value.item()) if isinstance(value, np.integer | np.floating) else value

    return Unknown


def marked_array(array: Any) -> Any:
    """A NumPy array whose numbers are marked."""
    return array.view(_array_type())


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


# Functions whose result's size depends on a number that need not be an integer.
_SCALED = {torch.arange, F.interpolate, *(each for each in _SIZED if each in vars(torch._C._nn).values())}


class Guard(TorchFunctionMode):
    """Rejects sizes computed from marked numbers, and from tensors of integers that are not known.

    Args:
        knows: whether the values of a fake tensor are known.
    """

    def __init__(self, knows: Callable[[Tensor], bool]) -> None:
        super().__init__()
        self._knows = knows

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
        if sizes and self._is_marked(sizes, (StandIn, StandInFloat) if function in _SCALED else (StandIn,)):
            raise refused(function.__name__)
        return function(*args, **kwargs)

    def _is_marked(self, value: Any, marks: tuple[type, ...]) -> bool:
        if isinstance(value, list | tuple):
            return any(self._is_marked(each, marks) for each in value)
        if isinstance(value, FakeTensor):
            return value.dim() == 0 and is_integer(value) and not self._knows(value)
        return isinstance(value, marks)


def is_integer(x: Tensor) -> bool:
    """Whether a tensor holds integers, which may become sizes."""
    return not (x.is_floating_point() or x.is_complex() or x.dtype is torch.bool)


def _slices(index: Any) -> list[Any]:
    parts = index if isinstance(index, tuple) else (index,)
    return [(each.start, each.stop, each.step) for each in parts if isinstance(each, slice)]
