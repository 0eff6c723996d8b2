"""Conversion of dataclasses to JSON values and back, for weights and records; reading a file never runs its content."""

import re
from collections.abc import Mapping
from dataclasses import Field, field, fields, is_dataclass
from importlib.metadata import entry_points
from inspect import formatannotation
from sys import float_info
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")
Axes = Mapping[str, Mapping[str, type]]  # for each field with several possible types: type by name

_LATER = "later"
_GROUP = "ppdm.axes"  # entry points of other packages, named "axis.type", such as "network.my-net"
_registered: dict[str, dict[str, type]] = {}


def register(axis: str, name: str, kind: type) -> None:
    """Make a type of your own known, so that methods that use it can be written to files and read from them.

    Call it in the module that defines the type. An installed package can instead declare the type as an entry point of
    the group ``ppdm.axes``, named ``axis.name``; it is then imported when a file names it.

    Args:
        axis: ``representation``, ``window``, ``kernel`` or ``network``.
        name: name of the type in files: lower-case letters, digits and hyphens.
        kind: a frozen dataclass whose fields are JSON values.

    Raises:
        ValueError: the name is invalid or stands for another type, or the type is not a frozen dataclass.
    """
    if not re.fullmatch(r"[a-z0-9]+([-_][a-z0-9]+)*", name):
        raise ValueError(f"the name of a type consists of lower-case letters, digits and hyphens, got {name!r}")
    if not is_dataclass(kind) or not kind.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        raise ValueError(f"{kind.__name__} must be a frozen dataclass, so that its fields can be written to a file")
    known = _registered.setdefault(axis, {}).setdefault(name, kind)
    if (known.__module__, known.__qualname__) != (kind.__module__, kind.__qualname__):
        raise ValueError(
            f"the {axis} {name!r} is already {known.__qualname__} of {known.__module__}; choose another name"
        )
    _registered[axis][name] = kind  # the module may have been imported again


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
        ValueError: the type of an axis is not known, so it could not be restored without running code.
    """
    return {
        f.name: _plain(f.name, getattr(value, f.name), axes, complete)
        for f in fields(value)
        if complete or not _is_later(f) or getattr(value, f.name) != f.default
    }


def _is_later(one: Field[Any]) -> bool:
    return _LATER in one.metadata


def restore(kind: type[T], content: Any, axes: Axes) -> T:
    """Restore a dataclass from the result of :func:`describe`.

    Types come from explicit tables: those given, :func:`register`, and entry points of installed packages. A name in a
    file never causes an import of anything else.

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
    kind = type(value)
    if getattr(kind, "written_without_type", False):
        return content
    for key, known in (*axes[name].items(), *_registered.get(name, {}).items()):
        if kind is known:
            return {"type": key} | content
    for entry in entry_points(group=_GROUP):
        if entry.name.startswith(f"{name}.") and entry.value == f"{kind.__module__}:{kind.__qualname__}":
            return {"type": entry.name.removeprefix(f"{name}.")} | content
    raise ValueError(
        f"{name} {value} is not one of {', '.join(axes[name])}, so it cannot be written to a file; make its type known "
        f"by ppdm.register({name!r}, 'a-name', {kind.__name__}) beside its definition"
    )


def _type_of(name: str, value: Mapping[str, Any], axes: Axes) -> type:
    key, known = value.get("type"), {**axes[name], **_registered.get(name, {})}
    if key is None:
        key = next((key for key, kind in axes[name].items() if getattr(kind, "written_without_type", False)), None)
    if isinstance(key, str) and key in known:
        return known[key]
    for entry in entry_points(group=_GROUP, name=f"{name}.{key}"):
        kind = entry.load()
        if is_dataclass(kind) and isinstance(kind, type):
            return kind
    raise ValueError(
        f"{name} must name a type out of {', '.join(known)}, got {value!r}; a type of your own is known once its "
        "module is imported (ppdm-bench --import MODULE)"
    )


def _value(name: str, value: Any, hint: Any, axes: Axes) -> Any:
    """Restore the value of a field and check its type; the dataclass itself checks ranges."""
    if name in axes:
        if not isinstance(value, Mapping):
            raise ValueError(f"{name} must name a type out of {', '.join(axes[name])}, got {value!r}")
        return restore(_type_of(name, value, axes), {k: v for k, v in value.items() if k != "type"}, axes)
    if isinstance(hint, type) and is_dataclass(hint):
        return restore(hint, value, axes)
    value = tuple(value) if isinstance(value, list) else value
    if not _fits(value, hint):
        raise ValueError(f"{name} must be {formatannotation(hint)}, got {value!r}")
    return value


def _fits(value: Any, hint: Any) -> bool:
    kinds = get_args(hint)
    if get_origin(hint) in (Union, UnionType):  # Optional[int] is the former, int | None the latter
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
