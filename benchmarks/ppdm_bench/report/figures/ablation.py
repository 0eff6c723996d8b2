"""Results of an ablation as small panels: one column per axis, one row per quantity."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ppdm_bench.records import Record
from ppdm_bench.report.ablation_rows import (
    AblationRow,
    difference,
    gather_ablation,
    rows_with_most_evaluations,
    seam_measures,
)
from ppdm_bench.report.figures import style
from ppdm_bench.report.figures.names import plain_label
from ppdm_bench.report.figures.style import MARKERS, SERIES, SMALL, TEXT, Marker
from ppdm_bench.report.tables.ablation import headline
from ppdm_bench.units import GIB, plural

_TITLES = {"space": "representation", "loss": "puzzle-gradient loss", "bridge": "bridge", "": "varied"}
_ORDER = {
    "space": ("r=1", "r=2", "r=4", "r=8", "r=1x2x2", "haar"),
    "loss": ("off", "cell", "all"),
    "bridge": ("brownian", "linear", "i2sb", "noise"),
}
_WORDS = {"r=1": "r=1\n(identity)", "brownian": "Brownian", "i2sb": "I2SB", "noise": "none\n(noise)", "haar": "Haar"}
_WORDS |= {"cell": "within\nblocks", "all": "all\nvoxels"}
_DIFFERENCES = ("psnr", "ssim", "sharpness")


class PlottedValue(NamedTuple):
    """A value with its interval, if it has one; predicted values have hollow markers."""

    value: float
    low: float | None = None
    high: float | None = None
    hollow: bool = False


Quantity = Callable[[AblationRow], list[PlottedValue]]


def ablation_figure(records: Sequence[Record]) -> Figure:
    """Return small panels: one column per axis, one row per quantity, one marker per task.

    Quality is the paired difference from the default at equal steps, with its bootstrap interval, so that tasks with
    different values share a scale. Seams are measured on the block grid of the representation. Memory is the peak of
    training: predicted markers are hollow, measured ones filled. The records are those of ``ablate``.

    Raises:
        ValueError: only the default has values.
    """
    rows = [
        row
        for row in rows_with_most_evaluations(gather_ablation(records, pooled=True))
        if row.status == "ok" and row.budget == "steps"
    ]
    columns = _columns(rows)
    if not columns:
        raise ValueError("there is nothing to draw: no cell beside the default has a value at equal steps")
    tasks = dict.fromkeys(row.task for row in rows)
    marks = {task: Marker(MARKERS[n % len(MARKERS)], SERIES[n % len(SERIES)]) for n, task in enumerate(tasks)}
    quantities: dict[str, Quantity] = {
        **{_name(metric): _of_metric(metric, rows) for metric in (*_DIFFERENCES, *seam_measures(rows)[:1])},
        "training\nmemory (GiB)": _memory,
        "time per\nstep (s)": _seconds,
    }
    figure = style.new_figure("double", height=0.7 + 1.0 * len(quantities))
    widths = [max(2, len(levels)) for levels in columns.values()]
    shape = len(quantities), len(columns)
    grid = figure.subplots(*shape, sharex="col", sharey="row", squeeze=False, width_ratios=widths)
    for line, (name, quantity) in zip(grid, quantities.items(), strict=True):
        logarithmic = quantity in (_memory, _seconds)  # the others are differences
        for axes, levels in zip(line, columns.values(), strict=True):
            style.plain_axes(axes, "y")
            _mark_default(axes, levels)
            if not logarithmic:
                axes.axhline(0, color="0.6", linewidth=0.8, zorder=1)
            for place, (task, marker) in enumerate(marks.items()):
                shift = 0.22 * (place - (len(marks) - 1) / 2)
                own = [[row for row in level if row.task == task] for level in levels.values()]
                _draw(axes, own, quantity, marker, shift)
            if logarithmic:
                _logarithmic(axes)
            else:
                axes.yaxis.set_major_locator(MaxNLocator(4))
        line[0].set_ylabel(name, fontsize=SMALL)
    for top, bottom, (axis, levels) in zip(grid[0], grid[-1], columns.items(), strict=True):
        top.set_title(_TITLES[axis], fontsize=TEXT)
        _name_levels(bottom, levels)
    n = rows[0].evaluations or 0
    shaded = " (shaded)" * any(row.cell["default"] for levels in columns.values() for row in chain(*levels.values()))
    style.title(
        figure,
        f"{headline(records)} {rows[0].amount:.0f} steps, {plural(n, 'network evaluation')}. Quality: "
        f"difference from the default{shaded} and its 95 % interval over subjects. Memory: predicted (hollow).",
    )
    style.legend(figure, [style.entry(task, **_look(marker)) for task, marker in marks.items()], columns=4)
    return figure


def _columns(rows: Sequence[AblationRow]) -> dict[str, dict[str, list[AblationRow]]]:
    """Return for each axis the rows by level, of cells that differ from the default only in this axis.

    Variations, which have no levels, are one more axis.
    """
    default = next((row.cell["levels"] for row in rows if row.cell["default"]), None)
    if default is None:
        return {}
    columns: dict[str, dict[str, list[AblationRow]]] = {}
    for row in rows:
        levels = row.cell["levels"]
        changed = [axis for axis in default if levels and levels[axis] != default[axis]]
        if not levels:
            columns.setdefault("", {}).setdefault(row.label, []).append(row)
        elif len(changed) < 2:
            for axis in changed or default:
                columns.setdefault(axis, {}).setdefault(levels[axis], []).append(row)
    return {
        axis: {level: found[level] for level in sorted_levels(axis, found)}
        for axis in _TITLES
        if len(found := columns.get(axis, {})) > (1 if axis else 0)
    }


def sorted_levels(axis: str, levels: Iterable[str]) -> list[str]:
    """Return the levels of an axis from left to right."""
    order = _ORDER.get(axis, ())
    return sorted(levels, key=lambda level: order.index(level) if level in order else len(order))


def level_name(level: str) -> str:
    """Return a readable name of a level."""
    return _WORDS.get(level, level.replace("x", "×") if level.startswith("r=") else plain_label(level))


def _name(metric: str) -> str:
    names = {"psnr": "Δ PSNR (dB) ↑", "ssim": "Δ SSIM ↑"}
    names |= {"seam_index": "Δ seam\nindex (dB) ↓", "border_ratio": "Δ border\nratio (dB)"}
    return names.get(metric, f"Δ {metric}")


def _of_metric(metric: str, rows: Sequence[AblationRow]) -> Quantity:
    def points(row: AblationRow) -> list[PlottedValue]:
        found = difference(row, rows, row.metric(metric))
        return [] if found is None else [PlottedValue(found.mean, found.low, found.high)]

    return points


def _memory(row: AblationRow) -> list[PlottedValue]:
    peaks = {kind: row.peak("train", kind) for kind in ("predicted", "measured")}
    return [PlottedValue(peak / GIB, hollow=kind == "predicted") for kind, peak in peaks.items() if peak is not None]


def _seconds(row: AblationRow) -> list[PlottedValue]:
    """Return the step time measured before all trainings, which is comparable between cells; else that of training."""
    seconds = row.costs.get("step_seconds", row.step_seconds)
    return [] if seconds is None else [PlottedValue(seconds)]


def _draw(
    axes: Axes, levels: Sequence[Sequence[AblationRow]], quantity: Quantity, marker: Marker, shift: float
) -> None:
    for x, row in ((x + shift, row) for x, level in enumerate(levels) for row in level):
        for point in quantity(row):
            if point.low is not None and point.high is not None:
                axes.plot([x, x], [point.low, point.high], color=marker.colour, linewidth=1.0, zorder=2)
            axes.plot([x], [point.value], **_look(marker, point.hollow), zorder=3)


def _logarithmic(axes: Axes) -> None:
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    if high < 3 * low:  # make room for at least two labels
        axes.set_ylim(low / 1.3, high * 1.3)
    style.log_ticks(axes.yaxis, most=5)  # a row is one inch high


def _look(marker: Marker, hollow: bool = False) -> dict[str, Any]:
    return style.look_of(marker, hollow, linestyle="", markersize=3.5, markeredgewidth=0.9)


def _name_levels(axes: Axes, levels: dict[str, list[AblationRow]]) -> None:
    names = [level_name(level) for level in levels]
    long = any(len(line) > 9 for name in names for line in name.split("\n"))
    axes.set(xticks=range(len(names)), xlim=(-0.5, len(names) - 0.5))
    axes.set_xticklabels(
        names, fontsize=SMALL, rotation=30 if long else 0, ha="right" if long else "center", rotation_mode="anchor"
    )


def _mark_default(axes: Axes, levels: dict[str, list[AblationRow]]) -> None:
    for x, level in enumerate(levels.values()):
        if any(row.cell["default"] for row in level):
            axes.axvspan(x - 0.5, x + 0.5, color="0.94", zorder=0, linewidth=0)
