"""Scans of several sources that belong together, found by a pattern of paths for each source.

A star stands for any text without a slash. Scans belong together if their stars stand for the same texts: the patterns
``*/*_T1.nii.gz`` and ``*/*_T2.nii.gz`` match ``s1/a_T1.nii.gz`` with ``s1/a_T2.nii.gz``.
"""

import glob
import re
from collections.abc import Mapping
from pathlib import Path

_SHOWN = 3


class MatchError(ValueError):
    """Patterns find no scans, or a scan lacks its counterpart; the message lists them."""


def is_pattern(path: Path) -> bool:
    """Whether a path contains a star."""
    return "*" in str(path)


def fixed_folder(pattern: Path) -> Path:
    """Return the folder in which all matches of a pattern lie: its parts before the first star."""
    parts = pattern.parts
    first = next(k for k, part in enumerate(parts) if "*" in part)
    return Path(*parts[:first])


def matched(patterns: Mapping[str, Path]) -> list[dict[str, Path]]:
    """Return the scans that belong together, each as path by source, sorted by the texts of their stars.

    Args:
        patterns: a pattern for each source, by its name.

    Raises:
        MatchError: a path has no star although another has, a pattern finds nothing, or a scan has no counterpart.
    """
    if plain := [name for name, pattern in patterns.items() if not is_pattern(pattern)]:
        raise MatchError(f"{plain[0]} is one path, {patterns[plain[0]]}, beside patterns; write a pattern for each.")
    found = {name: _matches(pattern) for name, pattern in patterns.items()}
    if empty := [name for name, matches in found.items() if not matches]:
        raise MatchError(f"no path matches {patterns[empty[0]]}, the pattern of {empty[0]}; check it, and quote it.")
    keys = sorted({key for matches in found.values() for key in matches})
    lacking = [
        f"{'/'.join(key)} has no {name}" for key in keys for name, matches in found.items() if key not in matches
    ]
    if lacking:
        more = f" and {len(lacking) - _SHOWN} more" if len(lacking) > _SHOWN else ""
        raise MatchError(f"{', '.join(lacking[:_SHOWN])}{more}; every scan needs all of {', '.join(patterns)}.")
    return [{name: matches[key] for name, matches in found.items()} for key in keys]


def _matches(pattern: Path) -> dict[tuple[str, ...], Path]:
    """Return the paths that match, by the texts of their stars."""
    text = pattern.as_posix()
    expression = re.compile(re.escape(text).replace(r"\*", "([^/]*)"))
    paths = glob.glob(glob.escape(text).replace("[*]", "*"))
    return {key.groups(): Path(path) for path in paths if (key := expression.fullmatch(Path(path).as_posix()))}
