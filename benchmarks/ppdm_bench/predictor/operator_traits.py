"""Properties of PyTorch's operators on which known values depend: what an operator reads, writes and fills."""

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

aten = torch.ops.aten

# Operators whose result holds one repeated number, or uninitialised memory, for any values of the inputs.
_FILL_VALUES: Mapping[str, float | tuple[int, str]] = {
    **dict.fromkeys(("empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "new_empty_strided"), 0),
    **dict.fromkeys(("zeros", "zeros_like", "new_zeros", "zero", "zero_"), 0),
    **dict.fromkeys(("ones", "ones_like", "new_ones"), 1),
    **dict.fromkeys(("full", "full_like"), (1, "fill_value")),
    **dict.fromkeys(("fill", "fill_"), (1, "value")),
    "new_full": (2, "fill_value"),
}
_FINITE = {aten.eq.Tensor, aten.ne.Scalar, aten.lt.Scalar, aten.le.Scalar}
# Operators with a boolean result, which code asks about unknown numbers.
QUESTIONS = {
    *(
        getattr(getattr(aten, name), form)
        for name in ("eq", "ne", "lt", "le", "gt", "ge")
        for form in ("Scalar", "Tensor")
    ),
    *(getattr(aten, name).default for name in ("logical_and", "logical_or", "logical_xor", "logical_not")),
    *(getattr(getattr(aten, name), form) for name in ("any", "all") for form in ("default", "dim", "dims")),
    *(getattr(aten, f"bitwise_{name}").Tensor for name in ("and", "or", "xor")),
    aten.bitwise_not.default,
    aten.isnan.default,
    aten.isinf.default,
    aten.isposinf.default,
    aten.isneginf.default,
}
COPIES = {aten.clone.default, aten._to_copy.default}
_RUNNING = {"running_mean", "running_var"}  # normalisation writes to these, but its schema does not declare it


class Traits(NamedTuple):
    """Properties of an operator.

    Attributes:
        runs_on_real: whether it may also run on real tensors.
        random: whether its result is random.
        reads: whether its result is a Python value read from tensors, such as that of ``item`` or ``torch.equal``.
        has_dynamic_shape: whether the shape of its result depends on values.
        written: position and name of each argument that it writes to.
        fill_value: the number with which it fills its result, or position and name of the argument that holds this
            number; None if the result depends on the inputs' values.
    """

    runs_on_real: bool
    random: bool
    reads: bool
    has_dynamic_shape: bool
    written: tuple[tuple[int, str], ...]
    fill_value: float | tuple[int, str] | None

    def written_tensors(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[Tensor]:
        """Yield the tensors in these arguments that the operator writes to."""
        for position, name in self.written:
            yield from tensors_in(args[position] if position < len(args) else kwargs.get(name))


@cache
def traits_of(op: Any) -> Traits:
    """Return the properties of an operator, from its schema and its tags."""
    if not isinstance(op, torch._ops.OpOverload):
        return Traits(False, False, False, False, (), None)
    name = op._schema.name.partition("::")[2]
    arguments = list(enumerate(op._schema.arguments))
    written = [
        (position, argument.name)
        for position, argument in arguments
        if (argument.alias_info is not None and argument.alias_info.is_write)
        or (argument.name in _RUNNING and "backward" not in name)
    ]
    returns_tensor = any("Tensor" in str(each.type) for each in op._schema.returns)
    has_dynamic_shape = torch.Tag.dynamic_output_shape in op.tags
    return Traits(
        runs_on_real=op.namespace in ("aten", "prims") and name not in ("set_", "record_stream"),
        random=torch.Tag.nondeterministic_seeded in op.tags,
        reads=torch.Tag.data_dependent_output in op.tags and not has_dynamic_shape and not returns_tensor,
        has_dynamic_shape=has_dynamic_shape,
        written=tuple(written),
        fill_value=None if any(argument.is_out for _, argument in arguments) else _FILL_VALUES.get(name),
    )


def is_finite_check(op: Any, args: Sequence[Any]) -> bool:
    """Whether a comparison is part of ``torch.isfinite``, which PyTorch decomposes into comparisons."""
    if op not in _FINITE:
        return False
    x, other = args[0], args[1]
    if op is not aten.eq.Tensor:
        return isinstance(other, float) and other == math.inf
    alike = (x.shape, x.stride(), x.storage_offset()) == (other.shape, other.stride(), other.storage_offset())
    return alike and address_of(x) == address_of(other)


def tensors_in(value: Any) -> list[Tensor]:
    """All tensors in nested tuples and lists, such as an operator's arguments or its result."""
    if isinstance(value, Tensor):
        return [value]
    return [x for each in value for x in tensors_in(each)] if isinstance(value, tuple | list) else []


def address_of(x: Tensor) -> int:
    """Return what identifies the storage of a tensor; 0 for a tensor without one, such as a sparse tensor."""
    return x.untyped_storage()._cdata if x.layout is torch.strided else 0
