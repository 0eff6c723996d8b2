"""Cache of fake operators' results, which makes repeated calls fast.

A step calls the same operators on the same shapes thousands of times, and each call on fake tensors takes a third of a
millisecond. The result depends only on shapes, strides and types, so it is recorded at the first call and recreated
afterwards. All other calls go to PyTorch: operators whose result depends on data or that change a tensor's shape in
place, constants, complex numbers, and results that the cache does not reproduce when it is checked at the first call.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, in_kernel_invocation_manager

CPU = torch.device("cpu")

_PLAIN = (int, float, bool, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format)
_TAGS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape, torch.Tag.inplace_view}


@dataclass(frozen=True)
class _Note:
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
    """Description of a complete result: one value, or a tuple or list; only tensors are replaced by a description."""

    container: type | None
    notes: tuple[Any, ...]


# Shared by all predictions of this process, because a network's weights have the same shapes at every input size.
_NOTES: dict[Hashable, _Result | None] = {}
MOST = 100_000  # maximum number of entries, about 1 kB each


class Recall:
    """Runs the operators of one prediction, from the cache where possible.

    Args:
        mode: the mode that creates tensors without memory.
        run: function that runs an operator that is not in the cache.
    """

    def __init__(self, mode: FakeTensorMode, run: Callable[..., Any]) -> None:
        self._mode = mode
        self._run = run
        self._suits: dict[Any, bool] = {}

    def __call__(self, op: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Run an operator on fake tensors, or recreate its cached result."""
        if (suits := self._suits.get(op)) is None:
            suits = self._suits[op] = _suits(op)
        tensors: list[FakeTensor] = []
        modes = torch.is_inference_mode_enabled(), torch.is_grad_enabled()
        words: list[Any] = [op, self._run, torch.get_default_dtype(), modes]
        if not suits or not self._read((args, kwargs), words, tensors):
            return self._run(op, args, kwargs)
        key = tuple(words)
        if key not in _NOTES:
            out = self._run(op, args, kwargs)
            if len(_NOTES) >= MOST:
                _NOTES.clear()
            _NOTES[key] = self._noted(out, tensors, words, (args, kwargs))
            return out
        result = _NOTES[key]
        return self._run(op, args, kwargs) if result is None else self._made(result, tensors)

    def _read(self, value: Any, words: list[Any], tensors: list[FakeTensor]) -> bool:
        """Append to the key everything that the result depends on; False if the call cannot be cached."""
        kind = type(value)
        if kind is FakeTensor:
            if not self._is_plain(value):
                return False
            tensors.append(value)
            words += (value.dtype, value.shape, value.stride(), value.storage_offset())
        elif kind is tuple or kind is list or kind is torch.Size:
            words.append(len(value))
            for each in value:
                if not self._read(each, words, tensors):
                    return False
        elif kind is dict:
            words.append(tuple(value))
            return self._read(list(value.values()), words, tensors)
        elif kind in _PLAIN:
            words += (kind, value)  # with the type, because 1, 1.0 and True are equal keys
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

    def _noted(self, out: Any, tensors: list[FakeTensor], words: list[Any], inputs: Any) -> _Result | None:
        """Describe a result; None if the description does not reproduce it or the operator changed its arguments."""
        after: list[Any] = words[:4]
        if not self._read(inputs, after, []) or after != words:
            return None
        container = type(out) if isinstance(out, tuple | list) else None
        results = list(out) if container else [out]
        if container not in (None, tuple, list) or not all(self._can_be_noted(x) for x in results):
            return None
        storages = {x.untyped_storage()._cdata: place for place, x in reversed(list(enumerate(tensors)))}
        result = _Result(container, tuple(_note(x, tensors, storages) for x in results))
        fresh = [x.untyped_storage()._cdata for x, note in zip(results, result.notes, strict=True) if _is_fresh(note)]
        made = self._made(result, tensors)
        again = list(made) if container else [made]
        same = len(set(fresh)) == len(fresh) and all(_alike(a, b) for a, b in zip(results, again, strict=True))
        return result if same else None

    def _can_be_noted(self, x: Any) -> bool:
        return (type(x) is FakeTensor and self._is_plain(x) and not x.requires_grad) or x is None or type(x) is int

    def _made(self, result: _Result, tensors: list[FakeTensor]) -> Any:
        made = [self._one(note, tensors) for note in result.notes]
        return result.container(made) if result.container else made[0]

    def _one(self, note: Any, tensors: list[FakeTensor]) -> Any:
        if not isinstance(note, _Note):
            return note
        if note.same is not None:
            return tensors[note.same]
        storage = None if note.storage is None else tensors[note.storage].untyped_storage()
        with in_kernel_invocation_manager(self._mode):
            bare = torch.empty_strided(note.shape, note.stride, dtype=note.dtype, device="meta")
            if storage is not None:
                bare.set_(storage, note.offset, note.shape, note.stride)
        return FakeTensor(self._mode, bare, CPU)


def _suits(op: Any) -> bool:
    """Whether the result of an operator depends only on its arguments' shapes, and the operator has no ``out``."""
    if not isinstance(op, torch._ops.OpOverload) or op.namespace != "aten":
        return False
    return not _TAGS & set(op.tags) and not any(argument.is_out for argument in op._schema.arguments)


def _note(x: Any, tensors: list[FakeTensor], storages: Mapping[int, int]) -> Any:
    if not isinstance(x, Tensor):
        return x
    same = next((place for place, argument in enumerate(tensors) if argument is x), None)
    if same is not None:
        return _Note(same=same)
    storage = storages.get(x.untyped_storage()._cdata)
    return _Note(None, storage, tuple(x.shape), x.stride(), int(x.storage_offset()), x.dtype)


def _is_fresh(note: Any) -> bool:
    return isinstance(note, _Note) and note.same is None and note.storage is None


def _alike(x: Any, y: Any) -> bool:
    """Whether code cannot distinguish two results."""
    if not isinstance(x, Tensor):
        return bool(x == y)
    return bool(_traits(x) == _traits(y))


def _traits(x: Tensor) -> Iterator[Any] | tuple[Any, ...]:
    keys = torch._C._dispatch_key_set(x)
    return x.shape, x.stride(), x.storage_offset(), x.dtype, x.untyped_storage().nbytes(), keys, x.is_inference()
