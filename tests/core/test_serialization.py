"""Fields that came later: files that lack them are read, and files are written as before where they are not used."""

from dataclasses import dataclass, field

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


def test_a_later_field_is_written_only_where_it_is_not_at_its_default():
    assert describe(Whole("a"), {}) == {"name": "a", "part": {"size": 1}}
    assert describe(Whole("a", Part(fast=True)), {}) == {"name": "a", "part": {"size": 1, "fast": True}}


def test_a_complete_description_has_it_anyway():
    assert describe(Whole("a"), {}, complete=True)["part"] == {"size": 1, "fast": False}


@pytest.mark.parametrize("part", [Part(), Part(2, True)])
def test_both_descriptions_are_read_back(part):
    for complete in (False, True):
        assert restore(Whole, describe(Whole("a", part), {}, complete=complete), {}) == Whole("a", part)


@pytest.mark.parametrize("content", [{"fast": True}, {"size": 1, "faster": True}, {"size": 1, "fast": 1}])
def test_what_was_always_there_must_be_there_and_nothing_else(content):
    with pytest.raises(ValueError, match=r"size|fast"):
        restore(Part, content, {})
