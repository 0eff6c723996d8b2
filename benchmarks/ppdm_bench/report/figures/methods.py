"""One colour and one marker a method, the same in every figure of a paper."""

from __future__ import annotations

from collections.abc import Iterable

from ppdm_bench.records import Record
from ppdm_bench.report.figures.style import MARKERS, SERIES

__all__ = ["method_looks"]


def method_looks(records: Iterable[Record]) -> dict[str, tuple[str, str]]:
    """Colour and marker of every method that was trained or sized, in the order of the records.

    With more methods than colours they come round again, which the markers then cannot tell apart either.
    """
    methods = dict.fromkeys(r.method for r in records if r.options.get("resolved"))
    return {m: (SERIES[n % len(SERIES)], MARKERS[n % len(MARKERS)]) for n, m in enumerate(methods)}
