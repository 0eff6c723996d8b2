"""Variations of a method: ``--vary name=a,b`` sets a field to each of the values, ``--set name=a`` to one value.

    kernel.gamma=0.25,0.5                   a field of a component
    kernel=i2sb,gaussian(schedule=flow)     a named value of an axis, with or without its fields
    loss.mode=off+loss.gradient=0,cell      several fields at once; a value without a name belongs to the first field
    representation.factor=2,1x2x2           a comma separates alternatives, x separates axes

The dataclasses of a method validate every point, so an invalid point is rejected before any training starts.
"""

import json
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from ppdm import Method
from ppdm.method import AXES
from ppdm.serialization import describe

Assignment = tuple[str, str]  # a field, such as kernel.gamma, and its value as text


class VariationError(ValueError):
    """A variation cannot be parsed, or a point is invalid; the message names the input and the expected form.

    Attributes:
        reason: the message without the point.
    """

    def __init__(self, reason: str, point: str = "") -> None:
        super().__init__(f"{point}: {reason}" if point else reason)
        self.reason = reason


@dataclass(frozen=True)
class Point:
    """A varied method; the label states the difference, such as ``kernel.gamma=0.25``."""

    label: str
    method: Method


def vary(method: Method, text: str) -> list[Point]:
    """Return the points of one variation around a method, in the order of the text.

    Raises:
        VariationError: the text cannot be parsed, a field does not exist, or a point is invalid.
    """
    return [Point(assignments_text(one), with_assignments(method, one)) for one in parse_variation(text)]


def parse_variation(text: str) -> list[list[Assignment]]:
    """Parse a variation into one list of assignments per alternative, without checking that fields and values exist.

    A repeated alternative counts once, with a warning.

    Raises:
        VariationError: the text cannot be parsed.
    """
    found: list[list[Assignment]] = []
    for alternative in _split(text, ","):
        first = found[0][0][0] if found else ""
        found.append([_assignment(part, first) for part in _split(alternative, "+") or [alternative]])
    if not found:
        raise VariationError(f"expected name=value,value such as kernel.gamma=0.25,0.5, got {text!r}")
    distinct = [alternative for place, alternative in enumerate(found) if alternative not in found[:place]]
    if len(distinct) < len(found):
        warnings.warn(f"{text} repeats a value, which counts once; x separates axes (2x2x1)", stacklevel=2)
    return distinct


def parse_assignments(text: str) -> list[Assignment]:
    """Parse the assignments of ``--set``.

    Raises:
        VariationError: the text cannot be parsed, or has several values.
    """
    first, *others = parse_variation(text)
    if others:
        raise VariationError(f"--set takes one value, got {text!r}; use --vary for several values")
    return first


def effective(assignments: Iterable[Assignment]) -> list[Assignment]:
    """Return the assignments that have an effect: the last one per field; setting an axis resets its fields."""
    kept: list[Assignment] = []
    for name, value in assignments:
        kept = [*(one for one in kept if one[0] != name and not one[0].startswith(f"{name}.")), (name, value)]
    return kept


def assignments_text(assignments: Sequence[Assignment]) -> str:
    """Return assignments as text in the form that :func:`parse_variation` parses."""
    return "+".join(f"{name}={value}" for name, value in assignments)


def difference(method: Method, start: Method) -> list[Assignment]:
    """Return the assignments by which :func:`with_assignments` turns the start into the method, except for its name.

    Raises:
        ValueError: a method has a value of an unregistered type, so that it cannot be described.
    """
    ours, theirs = (describe(one, AXES, complete=True) for one in (method, start))
    found: list[Assignment] = []
    for name, value in ours.items():
        if name in AXES and value.get("type") != theirs[name].get("type"):
            found.append((name, _axis_text(value["type"], getattr(method, name))))
        elif name != "name":
            found += _changes(name, value, theirs[name])
    return found


def _changes(name: str, ours: Any, theirs: Any) -> Iterator[Assignment]:
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        for key, value in ours.items():
            yield from _changes(f"{name}.{key}", value, theirs.get(key))
    elif ours != theirs:
        yield name, _value_text(ours)


def _axis_text(kind: str, value: Any) -> str:
    """Return the value of an axis in the form that :func:`_parse_axis` parses."""
    changed = ((one.name, getattr(value, one.name)) for one in fields(value) if getattr(value, one.name) != one.default)
    inside = ",".join(f"{name}={_value_text(part)}" for name, part in changed)
    return f"{kind}({inside})" if inside else kind


def _value_text(value: Any) -> str:
    """Return a value in the form that :func:`parse_value` parses."""
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def _assignment(text: str, default: str) -> Assignment:
    match = re.fullmatch(r"\s*(?:([a-z0-9_.]+)\s*=)?\s*(.+?)\s*", text)
    name = (match and match[1]) or default
    if match is None or not name:
        raise VariationError(f"expected name=value such as kernel.gamma=0.25, got {text!r}")
    return name, match[2]


def _split(text: str, separator: str) -> list[str]:
    """Split the text at separators outside parentheses and brackets; drop blank parts."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "([") - (letter in ")]")
        if letter == separator and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return [part for part in parts if part.strip()]


def with_assignments(method: Method, assignments: Sequence[Assignment]) -> Method:
    """Return a copy of the method with these fields set.

    Raises:
        VariationError: a field does not exist, or the resulting method is invalid.
    """
    try:
        content = describe(method, AXES, complete=True)
        for name, value in assignments:
            _set_field(content, name, _parse_axis(name, value) if name in AXES else parse_value(value))
        return Method.from_dict(content)
    except (ValueError, TypeError) as error:
        raise VariationError(str(error), assignments_text(assignments)) from None


def _set_field(content: dict[str, Any], name: str, value: Any) -> None:
    *parts, last = name.split(".")
    place: Any = content
    for part in parts:
        place = place.get(part) if isinstance(place, Mapping) else None
    if not isinstance(place, dict) or last not in place:
        raise VariationError(f"a method has no {name}; it has {', '.join(_field_names(content))}")
    place[last] = value


def _field_names(content: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the names of all fields that can be varied."""
    for name, value in content.items():
        if name not in ("name", "type"):
            yield f"{prefix}{name}"
            if isinstance(value, Mapping):
                yield from _field_names(value, f"{prefix}{name}.")


def _parse_axis(axis: str, text: str) -> dict[str, Any]:
    """Parse an axis value such as ``gaussian(schedule=flow)`` into the dictionary that describes it."""
    match = re.fullmatch(r"([a-z0-9_]+)(?:\((.*)\))?", text)
    if match is None or match[1] not in AXES[axis]:
        raise VariationError(f"there is no {axis} {text!r}; there are {', '.join(AXES[axis])}")
    fields = dict(_assignment(part, "") for part in _split(match[2] or "", ","))
    value: Any = AXES[axis][match[1]](**{name: parse_value(written) for name, written in fields.items()})
    assert is_dataclass(value)
    return {"type": match[1]} | describe(value, AXES)


def parse_value(text: str) -> Any:
    """Parse a value as JSON, or numbers per axis such as ``1x2x2``; return any other text unchanged.

    Lists become tuples, as in the dataclasses.
    """
    if re.fullmatch(r"[1-9][0-9]{0,17}(x[1-9][0-9]{0,17}){2}", text):
        return tuple(map(int, text.split("x")))
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return tuple(value) if isinstance(value, list) else value
