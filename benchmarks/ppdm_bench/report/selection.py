"""Selection of results that differ only in the number of network evaluations."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import TypeVar

__all__ = ["most_evaluations"]

Result = TypeVar("Result")


def most_evaluations(
    results: Iterable[Result], key: Callable[[Result], Hashable], evaluations: Callable[[Result], int | None]
) -> list[Result]:
    """Return for each key the result with the most network evaluations, in the order of the first results.

    Args:
        results: results of any type.
        key: the configuration of a result, without its network evaluations.
        evaluations: the network evaluations of a result, None without a network.
    """
    most: dict[Hashable, Result] = {}
    for result in results:
        known = most.setdefault(key(result), result)
        if (evaluations(result) or 0) > (evaluations(known) or 0):
            most[key(result)] = result
    return list(most.values())
