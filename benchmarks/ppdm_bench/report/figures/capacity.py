"""Selection of the memory records for one figure, and the memory of common GPUs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from ppdm_bench.grouping import grouped
from ppdm_bench.records import Record
from ppdm_bench.report.figures.style import DASHED, GREY, entry
from ppdm_bench.report.rows import PeakRow, gather_peaks

# Nominal memory of GPUs in GB, the most common first. A "24 GB" card has 24 GiB, minus a part for ECC and the driver.
CARDS = (24, 80, 40, 16, 8, 141, 12, 48)

_MAX_NAMES = 8  # in a figure; the table has all names


def few_names(groups: Mapping[str, Sequence[PeakRow]]) -> list[str]:
    """Return the names of at most eight groups: two of the first method with several groups, one of every other."""
    if len(groups) <= _MAX_NAMES:
        return list(groups)
    by_method = grouped(groups, lambda name: groups[name][0].method)
    several = next((method for method, names in by_method.items() if len(names) > 1), "")
    chosen = {name for method, names in by_method.items() for name in names[: 2 if method == several else 1]}
    return [name for name in groups if name in chosen][:_MAX_NAMES]


def cards_with_room(axes: Axes, axis: Literal[0, 1], gap: float) -> list[int]:
    """Return the cards whose names do not overlap on an axis, the most common first.

    Args:
        axes: axes with final limits, logarithmic along the axis.
        axis: 0 for x, 1 for y.
        gap: least distance between names in points.
    """
    low, high = (axes.get_xlim, axes.get_ylim)[axis]()
    places: dict[int, float] = {}
    for card in CARDS:
        place = axes.transData.transform((card, card))[axis] * 72 / axes.figure.dpi
        if low < card < high and all(abs(place - other) >= gap for other in places.values()):
            places[card] = place
    return list(places)


def cards_entry() -> Line2D:
    """Return the legend entry of the memory of GPUs."""
    return entry("memory of common GPUs", color=GREY, linewidth=0.6, linestyle=DASHED)


def size_of(row: PeakRow) -> int:
    """Return the number of voxels along one axis of a cubic row."""
    return int(row.settings["shape"][0])


def cubic_rows(records: Iterable[Record]) -> list[PeakRow]:
    """Return the rows of ``ppdm-bench memory`` for cubes."""
    rows = gather_peaks(record for record in records if record.command == "memory")
    return [row for row in rows if len(set(row.settings["shape"])) == 1]


def of_largest_size(rows: Sequence[PeakRow]) -> list[PeakRow]:
    """Return the rows of the largest cube."""
    largest = max(map(size_of, rows), default=0)
    return [row for row in rows if size_of(row) == largest]


def setting_with_most_sizes(rows: Sequence[PeakRow], *, for_curves: bool = True) -> list[PeakRow]:
    """Return the rows of the setting with the most sizes; then a GPU, more rows, and fewer options are preferred.

    A setting is precision, checkpointing, batch size, preset, memory format, compilation and CPU or GPU. Rows of
    different settings are not points of one curve.

    Args:
        rows: rows of cubes.
        for_curves: whether the requested width belongs to the setting too, and names with a single size are left out if
            others have several.
    """
    names = ["precision", "checkpointing", "batch_size", "channels_last", "compile", *["width"] * for_curves]

    def setting(row: PeakRow) -> tuple[object, ...]:
        preset = next((record.options.get("preset") for record in row.records.values()), None)
        return (*(row.settings[name] for name in names), preset, row.on_cpu)

    found = max(grouped(rows, setting).values(), key=_rank, default=[])
    named = grouped(found, lambda row: row.name).values()
    curves = [row for same in named if len({size_of(row) for row in same}) > 1 for row in same]
    return curves if for_curves and curves else found


def _rank(rows: Sequence[PeakRow]) -> tuple[object, ...]:
    first = rows[0]
    plain = first.settings["checkpointing"] == "none", first.settings["precision"] == "fp32"
    return len({size_of(row) for row in rows}), not first.on_cpu, len(rows), plain
