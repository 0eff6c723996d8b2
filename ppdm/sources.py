"""Names of the sources of a translation; this module does not import PyTorch."""

import re
from collections.abc import Sequence

SOURCE = "source"  # the name of a single source
MEAN = "mean"  # of a bridge that starts from the mean of all sources


def check_sources(names: Sequence[str], bridge_from: str = MEAN) -> None:
    """Check the names of sources, and the start of a bridge.

    Raises:
        ValueError: there is no name, a name is repeated or invalid, or ``bridge_from`` is not one of them.
    """
    if not names:
        raise ValueError("a method needs the name of at least one source, got none")
    if invalid := [name for name in names if not re.fullmatch(r"\w[\w+-]*", name, re.ASCII) or name == MEAN]:
        raise ValueError(
            f"a source is named by letters, digits, '_', '+' and '-', and not {MEAN!r}; got {invalid[0]!r}"
        )
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"each source is named once, got {twice[0]!r} twice in {', '.join(names)}")
    if bridge_from not in (MEAN, *names):
        raise ValueError(f"a bridge starts from the {MEAN} or from one of {', '.join(names)}, got {bridge_from!r}")


def described_sources(names: Sequence[str]) -> str:
    """Return the number and the names of sources, for messages: ``3 sources (t1n, t1c, t2w)``."""
    return f"{len(names)} sources ({', '.join(names)})" if len(names) > 1 else "one source" if names else "no source"
