"""Points near a method: ``--vary name=a,b`` replaces a field by each of the values, ``--set name=a`` by one.

    kernel.gamma=0.25,0.5                   a field of a part
    kernel=i2sb,gaussian(schedule=flow)     a value of an axis by its name, with or without its own fields
    loss.mode=off+loss.gradient=0,cell      several fields at once; a value without a name is of the first field

Every point is made by the dataclass itself, so one that cannot work is refused before anything is trained.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from typing import Any

from ppdm import Method
from ppdm.method import AXES
from ppdm.serialization import describe

Assignment = tuple[str, str]  # a field, such as kernel.gamma, and its value as it was written


class VariationError(ValueError):
    """A variation that cannot be read, or a point that there is not; says what was got and what is expected.

    Attributes:
        reason: the same without the point that is meant.
    """

    def __init__(self, reason: str, point: str = "") -> None:
        super().__init__(f"{point}: {reason}" if point else reason)
        self.reason = reason


@dataclass(frozen=True)
class Point:
    """A method near another, and what tells it apart, such as ``kernel.gamma=0.25``."""

    label: str
    method: Method


def vary(method: Method, text: str) -> list[Point]:
    """The points of one variation around a method, in its order.

    Raises:
        VariationError: it cannot be read, names a field that there is not, or a point that cannot be.
    """
    return [Point(written(one), moved(method, one)) for one in read(text)]


def read(text: str) -> list[list[Assignment]]:
    """What a variation sets, alternative by alternative; whether there are such fields and values is not looked at.

    Raises:
        VariationError: it cannot be read.
    """
    found: list[list[Assignment]] = []
    for alternative in _split(text, ","):
        first = found[0][0][0] if found else ""
        found.append([_assignment(part, first) for part in _split(alternative, "+") or [alternative]])
    if not found:
        raise VariationError(f"expected name=value,value such as kernel.gamma=0.25,0.5, got {text!r}")
    return found


def read_one(text: str) -> list[Assignment]:
    """What ``--set`` sets.

    Raises:
        VariationError: it cannot be read, or has several values.
    """
    first, *others = read(text)
    if others:
        raise VariationError(f"--set takes one value, got {text!r}; several are for --vary")
    return first


def settled(assignments: Iterable[Assignment]) -> list[Assignment]:
    """Those that count: of a field what is set last, and of an axis no field of the value that it had before."""
    kept: list[Assignment] = []
    for name, value in assignments:
        kept = [*(one for one in kept if one[0] != name and not one[0].startswith(f"{name}.")), (name, value)]
    return kept


def written(assignments: Sequence[Assignment]) -> str:
    """Assignments as :func:`read` reads them."""
    return "+".join(f"{name}={value}" for name, value in assignments)


def _assignment(text: str, default: str) -> Assignment:
    match = re.fullmatch(r"\s*(?:([a-z0-9_.]+)\s*=)?\s*(.+?)\s*", text)
    name = (match and match[1]) or default
    if match is None or not name:
        raise VariationError(f"expected name=value such as kernel.gamma=0.25, got {text!r}")
    return name, match[2]


def _split(text: str, separator: str) -> list[str]:
    """Split where no parenthesis is open; what is blank is dropped."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "([") - (letter in ")]")
        if letter == separator and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return [part for part in parts if part.strip()]


def moved(method: Method, assignments: Sequence[Assignment]) -> Method:
    """The method with these fields set.

    Raises:
        VariationError: a field that there is not, or a point that cannot be.
    """
    try:
        content = describe(method, AXES, complete=True)
        for name, value in assignments:
            _set(content, name, _axis_value(name, value) if name in AXES else plain(value))
        return Method.from_dict(content)
    except (ValueError, TypeError) as error:
        raise VariationError(str(error), written(assignments)) from None


def _set(content: dict[str, Any], name: str, value: Any) -> None:
    *parts, last = name.split(".")
    place: Any = content
    for part in parts:
        place = place.get(part) if isinstance(place, Mapping) else None
    if not isinstance(place, dict) or last not in place:
        raise VariationError(f"a method has no {name}; it has {', '.join(_names(content))}")
    place[last] = value


def _names(content: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Every field that can be varied."""
    return [
        found
        for name, value in content.items()
        if name not in ("name", "type")
        for found in [f"{prefix}{name}", *(_names(value, f"{prefix}{name}.") if isinstance(value, Mapping) else ())]
    ]


def _axis_value(axis: str, text: str) -> dict[str, Any]:
    """``gaussian(schedule=flow)`` as the dictionary that describes it."""
    match = re.fullmatch(r"([a-z0-9_]+)(?:\((.*)\))?", text)
    if match is None or match[1] not in AXES[axis]:
        raise VariationError(f"there is no {axis} {text!r}; there are {', '.join(AXES[axis])}")
    fields = dict(_assignment(part, "") for part in _split(match[2] or "", ","))
    value: Any = AXES[axis][match[1]](**{name: plain(written) for name, written in fields.items()})
    assert is_dataclass(value)
    return {"type": match[1]} | describe(value, AXES)


def plain(text: str) -> Any:
    """A value as it was written: a JSON value, or else the text itself; lists are tuples, as dataclasses want them."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return tuple(value) if isinstance(value, list) else value
