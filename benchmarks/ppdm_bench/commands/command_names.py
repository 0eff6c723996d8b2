"""The order of the commands in the help, and renamed options.

An old name is accepted for one release with a notice; the help shows only the new one.
"""

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from typer.core import TyperCommand, TyperGroup

from ppdm_bench.commands.terminal import notify

ORDER = (
    *("data", "memory", "predict", "plan", "train", "translate", "evaluate", "quality", "ablate", "speed"),
    *("compare", "figures", "claims", "gpu", "methods", "env"),
)


class Renamed(NamedTuple):
    """An option with a new name.

    Attributes:
        old, new: names with their dashes.
        values: regular expression; the option is renamed only if its value matches.
    """

    old: str
    new: str
    values: str = ".*"


RENAMED = {
    "plan": [Renamed("--for", "--phase")],
    "translate": [Renamed("--steps", "--evaluations")],
    "evaluate": [Renamed("--steps", "--evaluations")],
    "ablate": [
        Renamed("--phantom-grid", "--grid"),
        Renamed("--grid", "--configurations", "(one|full|space|none)\\b.*"),
    ],
}


class OrderedGroup(TyperGroup):
    """The commands in the order in which a user needs them."""

    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(super().list_commands(ctx), key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))


class Command(TyperCommand):
    """A command that accepts the old names of its options."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, current_names(self.name or "", args))


def current_names(command: str, words: Sequence[str]) -> list[str]:
    """Replace old option names by the current ones; report each replacement."""
    made = []
    for word, following in pairwise([*words, ""]):
        name, equals, value = word.partition("=")
        for renamed in RENAMED.get(command, ()):
            if name == renamed.old and re.fullmatch(renamed.values, value if equals else following):
                notify(f"{renamed.old} is now {renamed.new}; the old name will be removed")
                word = renamed.new + equals + value
                break
        made.append(word)
    return made
