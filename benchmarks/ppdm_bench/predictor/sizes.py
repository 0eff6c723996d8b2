"""Rejects sizes that depend on unknown values.

Code may log a number that depends on data, such as the count of a mask, or divide by it. But a tensor of that size
would silently be predicted too small. Therefore ``.item()``, ``.tolist()`` and ``.numpy()`` mark such numbers, and
arithmetic, ``math`` and NumPy keep the mark. Functions that create or slice tensors check for marks. ``int()`` would
lose the mark and raises an error immediately.
"""

import dis
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, wraps
from importlib import import_module
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import TorchFunctionMode


class PredictionError(RuntimeError):
    """The code does something that a prediction cannot follow without data."""


class StandInFloat(float):
    """Stand-in for a number that depends on data, of which code may make an integer."""

    def __int__(self) -> int:
        if _is_printed():
            return int(float(self))
        raise refused("int()")

    def __reduce__(self) -> Any:
        return type(_exact(self)), (_exact(self),)

    def __array_ufunc__(self, function: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        result = getattr(function, method)(*map(_exact, inputs), **kwargs)
        return marked(result.item()) if not getattr(result, "ndim", 1) else result

    def __round__(self, digits: Any = None) -> Any:
        return marked(round(_exact(self), digits))

    def round(self, decimals: int = 0, **_: Any) -> Any:
        """As that of a NumPy number, which ``numpy.round`` calls."""
        return marked(round(_exact(self), decimals))

    item = tolist = lambda self: self  # as a NumPy number has it
    real = property(item)
    ndim, shape, size = 0, (), 1


class StandIn(StandInFloat):
    """Stand-in for an integer that depends on data.

    It is a float in truth, so that ``0.1 * n`` asks this class and not ``float`` for the result.
    """

    __class__ = property(lambda self: int)  # code finds an integer
    numerator = property(lambda self: self)

    def __index__(self) -> int:
        return int(float(self))

    def __repr__(self) -> str:
        return repr(_exact(self))

    def __format__(self, spec: str) -> str:
        return format(_exact(self), spec)

    def bit_length(self) -> Any:
        """As that of an integer."""
        return marked(_exact(self).bit_length())


def _exact(value: Any) -> Any:
    """A number without its mark."""
    if type(value) is StandIn:
        return int(float(value))
    return float(value) if type(value) is StandInFloat else value


def _is_printed() -> bool:
    """Whether Python asks for an integer to print it (``"%d" % n``), which calls no function."""
    frame = sys._getframe(2)
    return dis.opname[frame.f_code.co_code[frame.f_lasti]].startswith("BINARY")


def refused(what: str) -> PredictionError:
    """The error for code that uses an unknown value as a size."""
    return PredictionError(
        f"this code cannot be predicted: {what} got a number that depends on data, of which a size may be made, and "
        "a prediction has only shapes; give a fixed number in its place, read it with .item() if it is only logged, or "
        "measure the code"
    )


def marked(value: Any) -> Any:
    """Mark a number, or all numbers in nested lists and tuples."""
    if type(value) in (list, tuple):
        return type(value)(marked(each) for each in value)
    mark = _MARKS.get(type(value))
    return mark(value) if mark else value


_MARKS: Mapping[type, type] = {int: StandIn, float: StandInFloat}


def _of_a_mark(name: str) -> Callable[..., Any]:
    def method(self: Any, *args: Any) -> Any:
        own, given = _exact(self), tuple(map(_exact, args))
        result = getattr(own, name)(*given)
        if result is NotImplemented and type(own) is int:  # with a fraction
            result = getattr(float(own), name, lambda *_: NotImplemented)(*given)
        return marked(result)

    return method


_KEPT = (
    "add sub mul truediv floordiv mod divmod pow radd rsub rmul rtruediv rfloordiv rmod rdivmod rpow neg pos abs ceil"
)
_KEPT_BY_INTEGERS = "lshift rlshift rshift rrshift and rand or ror xor rxor invert"
for _mark, _names in ((StandInFloat, f"{_KEPT} floor trunc"), (StandIn, _KEPT_BY_INTEGERS)):
    for _name in _names.split():
        setattr(_mark, f"__{_name}__", _of_a_mark(f"__{_name}__"))


def number_patches() -> Iterator[Any]:
    """Patches of functions that make a number of another, or an array of a size, and would lose the mark."""
    for name in (
        "sqrt",
        "cbrt",
        "exp",
        "exp2",
        "expm1",
        "log",
        "log2",
        "log10",
        "log1p",
        "pow",
        "fabs",
        "fmod",
        "fsum",
        "hypot",
        "copysign",
        "isqrt",
        "gcd",
        "lcm",
        "comb",
        "perm",
        "prod",
        "dist",
    ):
        if hasattr(math, name):
            yield mock.patch.object(math, name, _keeping(getattr(math, name)))
    if numpy := sys.modules.get("numpy"):  # the package itself needs only PyTorch
        for name in ("array", "asarray"):
            yield mock.patch.object(numpy, name, _array_of(getattr(numpy, name)))
        for name in ("zeros", "ones", "empty", "full", "arange", "linspace", "eye", "tile", "repeat"):
            yield mock.patch.object(numpy, name, _sized(getattr(numpy, name)))


def _keeping(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def kept(*args: Any, **kwargs: Any) -> Any:
        if not _has_mark(args, (StandInFloat, StandIn)):
            return function(*args, **kwargs)
        return marked(function(*_unmarked(args), **kwargs))

    return kept


def _sized(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def made(*args: Any, **kwargs: Any) -> Any:
        if _has_mark((args, kwargs.values()), (StandIn, StandInFloat)):
            raise refused(f"numpy.{function.__name__}()")
        return function(*args, **kwargs)

    return made


def _array_of(function: Callable[..., Any]) -> Callable[..., Any]:
    """Make an array of numbers; one of integers is marked if one of them is."""

    @wraps(function)
    def made(*args: Any, **kwargs: Any) -> Any:
        if not _has_mark(args, (StandIn, StandInFloat)):
            return function(*args, **kwargs)
        array = function(*_unmarked(args), **kwargs)
        return marked_array(array) if array.dtype.kind in "iu" else array

    return made


def _has_mark(value: Any, marks: tuple[type, ...]) -> bool:
    if isinstance(value, list | tuple | type({}.values())):
        return any(_has_mark(each, marks) for each in value)
    return type(value) in marks


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
        if _has_mark((args, kwargs.values()), (StandIn, StandInFloat)):  # PyTorch would take an integer for a fraction
            args, kwargs = _unmarked(tuple(args)), {name: _unmarked(value) for name, value in kwargs.items()}
        return function(*args, **kwargs)

    def _is_marked(self, value: Any, marks: tuple[type, ...]) -> bool:
        if isinstance(value, list | tuple):
            return any(self._is_marked(each, marks) for each in value)
        if isinstance(value, FakeTensor):
            return value.dim() == 0 and is_integer(value) and not self._knows(value)
        return type(value) in marks


def _unmarked(value: Any) -> Any:
    if type(value) in (list, tuple):
        return type(value)(_unmarked(each) for each in value)
    return _exact(value)


def is_integer(x: Tensor) -> bool:
    """Whether a tensor holds integers, which may become sizes."""
    return not (x.is_floating_point() or x.is_complex() or x.dtype is torch.bool)


def _slices(index: Any) -> list[Any]:
    parts = index if isinstance(index, tuple) else (index,)
    return [(each.start, each.stop, each.step) for each in parts if isinstance(each, slice)]
