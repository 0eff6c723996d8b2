"""Cache of the results of operators on fake tensors, which makes repeated calls fast.

A step calls the same operators on the same shapes thousands of times, and PyTorch needs a third of a millisecond for
each call on fake tensors. The result depends only on shapes, strides and dtypes, so the first call records a
description of the result, and later calls recreate it. The cache omits results that the description does not
reproduce, which the first call checks, operators whose result depends on data or that change a tensor's shape in place,
constants, and complex numbers.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, in_kernel_invocation_manager

CPU = torch.device("cpu")

_PLAIN = {int, float, bool, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format}
_TAGS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape, torch.Tag.inplace_view}


@dataclass(frozen=True)
class _TensorSpec:
    """Description of a result tensor.

    Attributes:
        same: index among the argument tensors, if the result is one of them; None if it is new.
        storage: index of the argument whose storage the result shares; None if its storage is new.
        shape, stride, offset, dtype: properties of a new tensor.
    """

    same: int | None = None
    storage: int | None = None
    shape: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    offset: int = 0
    dtype: torch.dtype = torch.float32


@dataclass(frozen=True)
class _Result:
    """Description of a complete result: one value, or a tuple or list; tensors are described, other values are kept."""

    container: type | None
    items: tuple[Any, ...]


# All predictions of a process share these: a network's weights have the same shapes at every input size.
_RESULTS: dict[Hashable, _Result | None] = {}
MAX_ENTRIES = 100_000  # maximum number of entries, about 1 kB each


class FakeOpCache:
    """Runs the operators of one prediction, from the cache where possible.

    Args:
        mode: the mode that creates fake tensors.
        run: function that runs an operator that is not in the cache.
    """

    def __init__(self, mode: FakeTensorMode, run: Callable[..., Any]) -> None:
        self._mode = mode
        self._run = run
        self._cacheable: dict[Any, bool] = {}

    def __call__(self, op: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Run an operator on fake tensors, or recreate its cached result."""
        if (cacheable := self._cacheable.get(op)) is None:
            cacheable = self._cacheable[op] = _is_cacheable(op)
        tensors: list[FakeTensor] = []
        modes = torch.is_inference_mode_enabled(), torch.is_grad_enabled()
        parts: list[Any] = [op, self._run, torch.get_default_dtype(), modes]
        if not cacheable or not self._extend_key((args, kwargs), parts, tensors):
            return self._run(op, args, kwargs)
        key = tuple(parts)
        if key not in _RESULTS:
            out = self._run(op, args, kwargs)
            if len(_RESULTS) >= MAX_ENTRIES:
                _RESULTS.clear()
            _RESULTS[key] = self._describe_result(out, tensors, parts, (args, kwargs))
            return out
        result = _RESULTS[key]
        return self._run(op, args, kwargs) if result is None else self._recreate(result, tensors)

    def _extend_key(self, value: Any, parts: list[Any], tensors: list[FakeTensor]) -> bool:
        """Append to the key everything that determines the result; False if the call cannot be cached."""
        kind = type(value)
        if kind is FakeTensor:
            if not self._is_plain(value):
                return False
            tensors.append(value)
            parts += (value.dtype, value.shape, value.stride(), value.storage_offset())
        elif kind is tuple or kind is list or kind is torch.Size:
            parts.append(len(value))
            for each in value:
                if type(each) in _PLAIN:  # not by a recursive call, which would take as long as the operator
                    parts += (type(each), each)
                elif not self._extend_key(each, parts, tensors):
                    return False
        elif kind is dict:
            parts.append(tuple(value))
            return self._extend_key(list(value.values()), parts, tensors)
        elif kind in _PLAIN:
            parts += (kind, value)  # include the type, because 1, 1.0 and True are equal as keys
        else:
            return False
        return True

    def _is_plain(self, x: FakeTensor) -> bool:
        return (
            x.fake_mode is self._mode
            and x.constant is None
            and x.layout is torch.strided
            and x.fake_device == CPU
            and not x.dtype.is_complex
            and not x.is_neg()
        )

    def _describe_result(self, out: Any, tensors: list[FakeTensor], parts: list[Any], inputs: Any) -> _Result | None:
        """Describe a result; None if the description does not reproduce it or the operator changed its arguments."""
        after: list[Any] = parts[:4]
        if not self._extend_key(inputs, after, []) or after != parts:
            return None
        container = type(out) if isinstance(out, tuple | list) else None
        results = list(out) if container else [out]
        if container not in (None, tuple, list) or not all(self._can_be_described(x) for x in results):
            return None
        storages = {x.untyped_storage()._cdata: place for place, x in reversed(list(enumerate(tensors)))}
        result = _Result(container, tuple(_describe(x, tensors, storages) for x in results))
        new_storages = [
            x.untyped_storage()._cdata for x, item in zip(results, result.items, strict=True) if _has_new_storage(item)
        ]
        made = self._recreate(result, tensors)
        again = list(made) if container else [made]
        same = len(set(new_storages)) == len(new_storages) and all(
            _are_equal(a, b) for a, b in zip(results, again, strict=True)
        )
        return result if same else None

    def _can_be_described(self, x: Any) -> bool:
        return (type(x) is FakeTensor and self._is_plain(x) and not x.requires_grad) or x is None or type(x) is int

    def _recreate(self, result: _Result, tensors: list[FakeTensor]) -> Any:
        made = [self._recreate_item(item, tensors) for item in result.items]
        return result.container(made) if result.container else made[0]

    def _recreate_item(self, item: Any, tensors: list[FakeTensor]) -> Any:
        if not isinstance(item, _TensorSpec):
            return item
        if item.same is not None:
            return tensors[item.same]
        storage = None if item.storage is None else tensors[item.storage].untyped_storage()
        with in_kernel_invocation_manager(self._mode):
            meta = torch.empty_strided(item.shape, item.stride, dtype=item.dtype, device="meta")
            if storage is not None:
                meta.set_(storage, item.offset, item.shape, item.stride)
        return FakeTensor(self._mode, meta, CPU)


def _is_cacheable(op: Any) -> bool:
    """Whether an operator's result depends only on the shapes of its arguments, and it has no ``out`` argument."""
    if not isinstance(op, torch._ops.OpOverload) or op.namespace != "aten":
        return False
    return not _TAGS & set(op.tags) and not any(argument.is_out for argument in op._schema.arguments)


def _describe(x: Any, tensors: list[FakeTensor], storages: Mapping[int, int]) -> Any:
    if not isinstance(x, Tensor):
        return x
    same = next((place for place, argument in enumerate(tensors) if argument is x), None)
    if same is not None:
        return _TensorSpec(same=same)
    storage = storages.get(x.untyped_storage()._cdata)
    return _TensorSpec(None, storage, tuple(x.shape), x.stride(), int(x.storage_offset()), x.dtype)


def _has_new_storage(item: Any) -> bool:
    return isinstance(item, _TensorSpec) and item.same is None and item.storage is None


def _are_equal(x: Any, y: Any) -> bool:
    """Whether two results have the same properties, so that code cannot distinguish them."""
    if not isinstance(x, Tensor):
        return bool(x == y)
    return bool(_properties(x) == _properties(y))


def _properties(x: Tensor) -> tuple[Any, ...]:
    keys = torch._C._dispatch_key_set(x)
    return x.shape, x.stride(), x.storage_offset(), x.dtype, x.untyped_storage().nbytes(), keys, x.is_inference()
