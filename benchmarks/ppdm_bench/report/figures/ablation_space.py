"""The figure that asks whether it is the puzzle or the bridge: every representation with a bridge and without one."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from ppdm_bench.records import Record
from ppdm_bench.report.ablation_rows import BUDGETS, Row, gather, most_evaluations
from ppdm_bench.report.figures import style
from ppdm_bench.report.figures.ablation import in_order, words
from ppdm_bench.report.figures.style import SMALL, TEXT
from ppdm_bench.report.metrics import metric_name
from ppdm_bench.report.tables.ablation import headline

__all__ = ["space_figure"]

_BRIDGES = {"brownian": (style.BLUE, "o"), "noise": (style.VERMILION, "s")}
_NAMES = {"brownian": "Brownian bridge, residual target", "noise": "Gaussian from noise, x0 target"}


def space_figure(records: Sequence[Record], metrics: Sequence[str] = ("psnr", "ssim")) -> Figure:
    """Return quality against representation, with and without a bridge: a column a task and budget, a row a metric.

    Args:
        records: long-form, of ``ablate --configurations space``.
        metrics: one a row.

    Raises:
        ValueError: fewer than two representations have values with a bridge and without one.
    """
    rows = _question([row for row in most_evaluations(gather(records, pooled=True)) if row.status == "ok"])
    places = list(dict.fromkeys((row.task, row.budget, row.amount) for row in rows))
    spaces = in_order("space", {row.cell["levels"]["space"] for row in rows})
    figure = style.new_figure("double", height=0.75 + 1.45 * len(metrics))
    grid = figure.subplots(len(metrics), len(places), sharex=True, squeeze=False)
    for metric, line in zip(metrics, grid, strict=True):
        for axes, place in zip(line, places, strict=True):
            some = [row for row in rows if (row.task, row.budget, row.amount) == place]
            style.plain_axes(axes, "y")
            for bridge in _BRIDGES:
                _draw_bridge(axes, [row for row in some if row.cell["levels"]["bridge"] == bridge], spaces, metric)
        _share_task_scales(line, places)
        line[0].set_ylabel(metric_name(metric, rows[0].series.units.get(metric, "")), fontsize=SMALL)
    for axes, (task, budget, amount) in zip(grid[0], places, strict=True):
        much = f"{amount:.0f} steps" if budget == "steps" else f"{amount:.3g} s"
        axes.set_title(f"{task}\n{BUDGETS[budget]} ({much})", fontsize=TEXT)
    for axes in grid[-1]:
        axes.set(xticks=range(len(spaces)), xlim=(-0.5, len(spaces) - 0.5))
        axes.set_xticklabels([words(space) for space in spaces], fontsize=SMALL)
    style.title(
        figure,
        f"Puzzle or bridge? {headline(records)} {rows[0].evaluations} network evaluations. "
        "Lines: means; dots: subjects.",
    )
    handles = [Line2D([], [], color=c, marker=m, markersize=4, label=_NAMES[b]) for b, (c, m) in _BRIDGES.items()]
    style.legend(figure, handles, columns=2)
    return figure


def _question(rows: Sequence[Row]) -> list[Row]:
    """The rows that answer it: every representation with a bridge and without, all else as the default has it."""
    default: dict[str, str] = next((row.cell["levels"] for row in rows if row.cell["default"]), {})
    some = [r for r in rows if r.cell["levels"] and r.cell["levels"]["loss"] == default.get("loss")]
    some = [row for row in some if row.cell["levels"]["bridge"] in _BRIDGES]
    without = {row.cell["levels"]["space"] for row in some if row.cell["levels"]["bridge"] == "noise"}
    some = [row for row in some if row.cell["levels"]["space"] in without]
    if len(without) < 2:
        raise ValueError("there is nothing to draw: fewer than two representations have values without a bridge")
    return some


def _draw_bridge(axes: Axes, rows: Sequence[Row], spaces: Sequence[str], metric: str) -> None:
    points = []
    for row in sorted(rows, key=lambda row: spaces.index(row.cell["levels"]["space"])):
        values = [*row.series.subjects(metric).values()]
        if not values:
            continue
        colour, marker = _BRIDGES[row.cell["levels"]["bridge"]]
        x = spaces.index(row.cell["levels"]["space"])
        axes.plot([x] * len(values), values, linestyle="", marker=marker, markersize=1.8, color=colour, alpha=0.5)
        points.append((x, fmean(values), colour, marker))
    if points:
        xs, means, colours, markers = zip(*points, strict=True)
        axes.plot(xs, means, color=colours[0], marker=markers[0], markersize=4, linewidth=1.2)
    axes.yaxis.set_major_locator(MaxNLocator(4))


def _share_task_scales(line: Sequence[Axes], places: Sequence[tuple[Any, ...]]) -> None:
    """The panels of one task have one scale: its budgets are compared."""
    for task in dict.fromkeys(place[0] for place in places):
        panels = [axes for axes, place in zip(line, places, strict=True) if place[0] == task]
        ends = [end for axes in panels for end in axes.get_ylim()]
        for axes in panels:
            axes.set_ylim(min(ends), max(ends))
