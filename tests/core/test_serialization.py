"""Fields added later: files without them are read, and they are written only if they are not at their default."""

from dataclasses import dataclass, field
from typing import Optional

import pytest

from ppdm.serialization import describe, later, restore


@dataclass(frozen=True)
class Part:
    size: int = 1
    fast: bool = later(False)


@dataclass(frozen=True)
class Whole:
    name: str
    part: Part = field(default_factory=Part)


def test_a_later_field_is_written_only_if_it_differs_from_its_default():
    assert describe(Whole("a"), {}) == {"name": "a", "part": {"size": 1}}
    assert describe(Whole("a", Part(fast=True)), {}) == {"name": "a", "part": {"size": 1, "fast": True}}


def test_a_complete_description_contains_a_later_field_at_its_default():
    assert describe(Whole("a"), {}, complete=True)["part"] == {"size": 1, "fast": False}


@pytest.mark.parametrize("part", [Part(), Part(2, True)])
def test_short_and_complete_descriptions_are_read_back(part):
    for complete in (False, True):
        assert restore(Whole, describe(Whole("a", part), {}, complete=complete), {}) == Whole("a", part)


@pytest.mark.parametrize("content", [{"fast": True}, {"size": 1, "faster": True}, {"size": 1, "fast": 1}])
def test_missing_unknown_or_mistyped_fields_are_refused(content):
    with pytest.raises(ValueError, match=r"size|fast"):
        restore(Part, content, {})


@dataclass(frozen=True)
class OldSpelling:
    size: Optional[int] = None  # noqa: UP045 (as in a type of a user's own)


@pytest.mark.parametrize("size", [None, 3])
def test_optional_fields_are_read_in_both_spellings(size):
    assert restore(OldSpelling, {"size": size}, {}) == OldSpelling(size)
    with pytest.raises(ValueError, match="size must be"):
        restore(OldSpelling, {"size": "3"}, {})
