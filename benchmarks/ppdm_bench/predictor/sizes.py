"""Rejects sizes that depend on unknown values.

Code may log a number that depends on data, such as the sum of a mask, or divide by it. It must not use the number as
the size of a tensor: the placeholder is 1, so the predicted memory would be too small. Therefore ``.item()``,
``.tolist()`` and ``.numpy()`` return marked numbers, and arithmetic, ``math`` and NumPy keep the mark. Functions that
create or slice tensors check for marks. ``int()`` would remove the mark, so it raises an error.
"""

import dis
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
    """A prediction cannot follow the code, for example because a size depends on data."""


class UnknownFloat(float):
    """Placeholder for a floating-point number that depends on data; ``int()`` of it raises."""

    def __int__(self) -> int:
        if _is_formatting():
            return int(float(self))
        raise size_error("int()")

    def __reduce__(self) -> Any:
        return type(_without_mark(self)), (_without_mark(self),)

    def __array_ufunc__(self, function: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        result = getattr(function, method)(*map(_without_mark, inputs), **kwargs)
        return marked(result.item()) if not getattr(result, "ndim", 1) else result

    def __round__(self, digits: Any = None) -> Any:
        return marked(round(_without_mark(self), digits))

    def round(self, decimals: int = 0, **_: Any) -> Any:
        """Round like a NumPy number; ``numpy.round`` calls this."""
        return marked(round(_without_mark(self), decimals))

    item = tolist = lambda self: self  # NumPy numbers have these too
    real = property(item)
    ndim, shape, size = 0, (), 1


class UnknownInt(UnknownFloat):
    """Placeholder for an integer that depends on data.

    It is a subclass of float, so that ``0.1 * n`` calls a method of this class and keeps the mark.
    """

    __class__ = property(lambda self: int)  # `isinstance(n, int)` is true
    numerator = property(lambda self: self)

    def __index__(self) -> int:
        return int(float(self))

    def __repr__(self) -> str:
        return repr(_without_mark(self))

    def __format__(self, spec: str) -> str:
        return format(_without_mark(self), spec)

    def bit_length(self) -> Any:
        """Number of bits, as for an integer."""
        return marked(_without_mark(self).bit_length())


def _without_mark(value: Any) -> Any:
    """Remove the mark from a number."""
    if type(value) is UnknownInt:
        return int(float(value))
    return float(value) if type(value) is UnknownFloat else value


def _is_formatting() -> bool:
    """Whether the integer is only formatted (``"%d" % n``), which Python does without a call."""
    frame = sys._getframe(2)
    return dis.opname[frame.f_code.co_code[frame.f_lasti]].startswith("BINARY")


def size_error(what: str) -> PredictionError:
    """Return the error for code that uses an unknown value as a size, with the name of the function that got it."""
    return PredictionError(
        f"this code cannot be predicted: {what} got a number that depends on data, which may become a size, and "
        "a prediction has only shapes; use a fixed number instead, read it with .item() if it is only logged, or "
        "measure the code"
    )


def marked(value: Any) -> Any:
    """Mark a number, or all numbers in nested lists and tuples."""
    if type(value) in (list, tuple):
        return type(value)(marked(each) for each in value)
    mark = _MARKS.get(type(value))
    return mark(value) if mark else value


_MARKS: Mapping[type, type] = {int: UnknownInt, float: UnknownFloat}
_NUMBERS = (UnknownInt, UnknownFloat)


def _marked_method(name: str) -> Callable[..., Any]:
    def method(self: Any, *args: Any) -> Any:
        own, given = _without_mark(self), tuple(map(_without_mark, args))
        result = getattr(own, name)(*given)
        if result is NotImplemented and type(own) is int:  # the other operand is a float
            result = getattr(float(own), name, lambda *_: NotImplemented)(*given)
        return marked(result)

    return method


_MARKED_OPERATIONS = (
    "add sub mul truediv floordiv mod divmod pow radd rsub rmul rtruediv rfloordiv rmod rdivmod rpow neg pos abs ceil"
)
_MARKED_INTEGER_OPERATIONS = "lshift rlshift rshift rrshift and rand or ror xor rxor invert"
for _mark, _names in ((UnknownFloat, f"{_MARKED_OPERATIONS} floor trunc"), (UnknownInt, _MARKED_INTEGER_OPERATIONS)):
    for _name in _names.split():
        setattr(_mark, f"__{_name}__", _marked_method(f"__{_name}__"))


def number_patches() -> Iterator[Any]:
    """Patches of functions of ``math`` that would remove the mark, and of NumPy that create arrays of a size."""
    for name in (
        *("sqrt", "cbrt", "exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "pow", "fabs", "fmod", "fsum"),
        *("hypot", "copysign", "isqrt", "gcd", "lcm", "comb", "perm", "prod", "dist"),
    ):
        if hasattr(math, name):
            yield mock.patch.object(math, name, _marking(getattr(math, name)))
    if numpy := sys.modules.get("numpy"):  # the package itself needs only PyTorch
        for name in ("array", "asarray"):
            yield mock.patch.object(numpy, name, _marking(getattr(numpy, name), marked_array))
        for name in ("zeros", "ones", "empty", "full", "arange", "linspace", "eye", "tile", "repeat"):
            yield mock.patch.object(numpy, name, _checking_sizes(getattr(numpy, name)))


def _marking(function: Callable[..., Any], mark: Callable[[Any], Any] = marked) -> Callable[..., Any]:
    @wraps(function)
    def marking(*args: Any, **kwargs: Any) -> Any:
        if not _contains(args, _NUMBERS):
            return function(*args, **kwargs)
        return mark(function(*_unmarked(args), **kwargs))

    return marking


def _checking_sizes(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def made(*args: Any, **kwargs: Any) -> Any:
        if _contains(args, _NUMBERS) or _contains(kwargs.values(), _NUMBERS):
            raise size_error(f"numpy.{function.__name__}()")
        return function(*args, **kwargs)

    return made


_COLLECTIONS: tuple[type[Iterable[Any]], ...] = (list, tuple, type({}.values()))


def _contains(values: Iterable[Any], marks: tuple[type, ...]) -> bool:
    """Whether a value, or one in a list or tuple among them, has a mark."""
    for each in values:  # noqa: SIM110 - every call of PyTorch is checked, and a generator takes twice as long
        if type(each) in marks or (isinstance(each, _COLLECTIONS) and _contains(each, marks)):
            return True
    return False


@cache
def _array_type() -> type:
    np: Any = import_module("numpy")  # code that creates arrays has NumPy; the package itself needs only PyTorch

    class UnknownArray(np.ndarray):  # type: ignore[misc]
        """An array of integers that depend on data; numbers taken from it are marked."""

        def __array_wrap__(self, array: Any, *_: Any) -> Any:
            return _marked_item(array[()]) if array.ndim == 0 else np.asarray(array).view(UnknownArray)

        def __getitem__(self, index: Any) -> Any:
            return _marked_item(super().__getitem__(index))

        def item(self, *args: Any) -> Any:
            return marked(super().item(*args))

        def tolist(self) -> Any:
            return marked(super().tolist())

        def __int__(self) -> int:
            raise size_error("int()")

        __index__ = __int__

    def _marked_item(value: Any) -> Any:
        return marked(value.item()) if isinstance(value, np.integer | np.floating) else value

    return UnknownArray


def marked_array(array: Any) -> Any:
    """Return a NumPy array of integers whose elements are marked when code reads them; other arrays unchanged."""
    return array.view(_array_type()) if array.dtype.kind in "iu" else array


# Functions that create, slice or reshape tensors, with the position of an argument that is not a size, if there is one.
_CREATES_SIZES: dict[Any, int | None] = {
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


# Functions that also compute a size from a floating-point number.
_ACCEPTS_FLOAT_SIZES = {
    torch.arange,
    F.interpolate,
    *(each for each in _CREATES_SIZES if each in vars(torch._C._nn).values()),
}


_GETITEM = Tensor.__getitem__  # each look-up on the class would take as long as the check


class SizeGuard(TorchFunctionMode):
    """Function mode that rejects sizes computed from marked numbers or from unknown integer tensors.

    Args:
        is_known: returns whether the values of a fake tensor are known.
    """

    def __init__(self, is_known: Callable[[Tensor], bool]) -> None:
        super().__init__()
        self._is_known = is_known

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if function in _CREATES_SIZES:
            sizes = [value for place, value in enumerate(args) if place != _CREATES_SIZES[function]]
            sizes += [value for name, value in kwargs.items() if name not in ("fill_value", "value")]
        else:
            sizes = _slices(args[1]) if function is _GETITEM else []
        if sizes and self._is_marked(sizes, _NUMBERS if function in _ACCEPTS_FLOAT_SIZES else (UnknownInt,)):
            raise size_error(function.__name__)
        # PyTorch would treat a marked integer as a float.
        if _contains(args, _NUMBERS) or (kwargs and _contains(kwargs.values(), _NUMBERS)):
            args, kwargs = _unmarked(tuple(args)), {name: _unmarked(value) for name, value in kwargs.items()}
        return function(*args, **kwargs)

    def _is_marked(self, value: Any, marks: tuple[type, ...]) -> bool:
        if isinstance(value, list | tuple):
            return any(self._is_marked(each, marks) for each in value)
        if isinstance(value, FakeTensor):
            return value.dim() == 0 and is_integer(value) and not self._is_known(value)
        return type(value) in marks


def _unmarked(value: Any) -> Any:
    if type(value) in (list, tuple):
        return type(value)(_unmarked(each) for each in value)
    return _without_mark(value)


def is_integer(x: Tensor) -> bool:
    """Whether a tensor holds integers, which may become sizes."""
    return not (x.is_floating_point() or x.is_complex() or x.dtype is torch.bool)


def _slices(index: Any) -> list[Any]:
    parts = index if isinstance(index, tuple) else (index,)
    return [(each.start, each.stop, each.step) for each in parts if isinstance(each, slice)]
