"""Conversion of dataclasses to JSON values and back, for weights and records; reading a file never runs its content."""

from collections.abc import Mapping
from dataclasses import Field, field, fields, is_dataclass
from inspect import formatannotation
from sys import float_info
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

T = TypeVar("T")
Axes = Mapping[str, Mapping[str, type]]  # for each field with several possible types: type by name


_LATER = "later"


def later(default: T) -> T:
    """Declare a field that older files do not contain; it is written only if it differs from its default.

    Existing weights and records are therefore read and identified as before.
    """
    made: T = field(default=default, metadata={_LATER: True})
    return made


def describe(value: Any, axes: Axes, *, complete: bool = False) -> dict[str, Any]:
    """Convert a dataclass to nested dictionaries of JSON values.

    An axis includes the name of its type, a nested dataclass becomes a dictionary of its fields, and a tuple becomes a
    list.

    Args:
        value: the dataclass.
        axes: possible types of each field that allows several.
        complete: whether to include fields declared with :func:`later` at their defaults.

    Raises:
        ValueError: the type of an axis is not in its table, so it could not be restored without running code.
    """
    return {
        f.name: _plain(f.name, getattr(value, f.name), axes, complete)
        for f in fields(value)
        if complete or not _is_later(f) or getattr(value, f.name) != f.default
    }


def _is_later(one: Field[Any]) -> bool:
    return _LATER in one.metadata


def restore(kind: type[T], content: Any, axes: Axes) -> T:
    """Restore a dataclass from the result of :func:`describe`, with explicit tables only, never by importing a name.

    Raises:
        ValueError: a key, a type or a value is invalid.
    """
    hints = get_type_hints(kind)
    return kind(**{name: _value(name, value, hints[name], axes) for name, value in _known(kind, content).items()})


def _plain(name: str, value: Any, axes: Axes, complete: bool) -> Any:
    if isinstance(value, tuple):
        return list(value)
    if not is_dataclass(value):
        return value
    content = describe(value, axes, complete=complete)
    if name not in axes:
        return content
    for key, kind in axes[name].items():
        if type(value) is kind:
            return {"type": key} | content
    raise ValueError(f"{name} {value} is not one of {', '.join(axes[name])}, so it cannot be written to a file")


def _value(name: str, value: Any, hint: Any, axes: Axes) -> Any:
    if name in axes:
        if not isinstance(value, Mapping) or value.get("type") not in list(axes[name]):
            raise ValueError(f"{name} must name a type out of {', '.join(axes[name])}, got {value!r}")
        return restore(axes[name][value["type"]], {k: v for k, v in value.items() if k != "type"}, axes)
    is_part = isinstance(hint, type) and is_dataclass(hint)
    return restore(hint, value, axes) if is_part else _typed(name, value, hint)


def _typed(name: str, value: Any, hint: Any) -> Any:
    """Check the type of a value and convert lists to tuples; the dataclass itself checks ranges."""
    value = tuple(value) if isinstance(value, list) else value
    if not _fits(value, hint):
        raise ValueError(f"{name} must be {formatannotation(hint)}, got {value!r}")
    return value


def _fits(value: Any, hint: Any) -> bool:
    kinds = get_args(hint)
    if get_origin(hint) is UnionType:
        return any(_fits(value, kind) for kind in kinds)
    if get_origin(hint) is tuple:
        kinds = kinds[:1] * len(value) if kinds[-1] is Ellipsis and isinstance(value, tuple) else kinds
        return isinstance(value, tuple) and len(value) == len(kinds) and all(map(_fits, value, kinds))
    if hint is float:  # JSON writes 1.0 as 1, and Python reads Infinity and NaN
        return (type(value) is int or isinstance(value, float)) and abs(value) <= float_info.max
    return type(value) is hint


def _known(kind: type, content: Any) -> Mapping[str, Any]:
    """Check that content is a mapping with only known fields and with all required fields; return it."""
    names = {f.name for f in fields(kind)}
    needed = {f.name for f in fields(kind) if not _is_later(f)}
    if not isinstance(content, Mapping) or not needed <= set(content) <= names:
        got = sorted(content, key=str) if isinstance(content, Mapping) else content
        raise ValueError(f"{kind.__name__} has the fields {sorted(names)}, got {got!r}")
    return content
