"""Quality of every representation with and without a bridge: which matters more, the puzzle or the bridge?"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ppdm_bench.grouping import grouped
from ppdm_bench.records import Record
from ppdm_bench.report.ablation_rows import BUDGETS, AblationRow, gather_ablation, rows_with_most_evaluations
from ppdm_bench.report.figures import style
from ppdm_bench.report.figures.ablation import level_name, sorted_levels
from ppdm_bench.report.figures.names import metric_label
from ppdm_bench.report.figures.style import SMALL, TEXT, Marker
from ppdm_bench.report.tables.ablation import headline
from ppdm_bench.units import plural

_METRICS = ("psnr", "ssim")
_BRIDGES = {"brownian": Marker("o", style.BLUE), "noise": Marker("s", style.VERMILION)}
_NAMES = {"brownian": "Brownian bridge, residual target", "noise": "Gaussian noise, x0 target"}
_SHIFTS = {"brownian": -0.15, "noise": 0.15}  # horizontal, so that the markers do not overlap


def space_figure(records: Sequence[Record]) -> Figure:
    """Return quality by representation, with and without a bridge: one column per task and budget, one row per metric.

    The records are those of ``ablate --configurations space``.

    Raises:
        ValueError: fewer than two representations have values both with and without a bridge.
    """
    rows = _compared(
        [row for row in rows_with_most_evaluations(gather_ablation(records, pooled=True)) if row.status == "ok"]
    )
    groups = grouped(rows, lambda row: (row.task, row.budget, row.amount))
    spaces = sorted_levels("space", {row.cell["levels"]["space"] for row in rows})
    figure = style.new_figure("double", height=0.75 + 1.45 * len(_METRICS))
    grid = figure.subplots(len(_METRICS), len(groups), sharex=True, squeeze=False)
    for metric, line in zip(_METRICS, grid, strict=True):
        for axes, some in zip(line, groups.values(), strict=True):
            style.plain_axes(axes, "y")
            _draw(axes, some, spaces, metric)
        _share_task_scales(line, [task for task, _, _ in groups])
        line[0].set_ylabel(metric_label(metric, rows[0].scores.units.get(metric, "")), fontsize=SMALL)
    for axes, (task, budget, amount) in zip(grid[0], groups, strict=True):
        much = f"{amount:.0f} steps" if budget == "steps" else f"{amount:.3g} s"
        axes.set_title(f"{task}\n{BUDGETS[budget]} ({much})", fontsize=TEXT)
    for axes in grid[-1]:
        axes.set(xticks=range(len(spaces)), xlim=(-0.5, len(spaces) - 0.5))
        axes.set_xticklabels([level_name(space) for space in spaces], fontsize=SMALL)
    style.title(
        figure,
        f"Puzzle or bridge? {headline(records)} {plural(rows[0].evaluations or 0, 'network evaluation')}. "
        "Large: means; small: subjects.",
    )
    entries = [
        style.points_entry(_NAMES[name], marker, markerfacecolor=marker.colour, markeredgewidth=0)
        for name, marker in _BRIDGES.items()
    ]
    style.legend(figure, entries, columns=2)
    return figure


def _compared(rows: Sequence[AblationRow]) -> list[AblationRow]:
    """Return the rows with and without a bridge of all representations that have both, at the default loss."""
    default: dict[str, str] = next((row.cell["levels"] for row in rows if row.cell["default"]), {})
    some = [r for r in rows if r.cell["levels"] and r.cell["levels"]["loss"] == default.get("loss")]
    with_bridge, without = (
        {row.cell["levels"]["space"] for row in some if row.cell["levels"]["bridge"] == bridge} for bridge in _BRIDGES
    )
    both = with_bridge & without
    if len(both) < 2:
        raise ValueError(
            "there is nothing to draw: fewer than two representations have values both with and without a bridge"
        )
    return [row for row in some if row.cell["levels"]["space"] in both and row.cell["levels"]["bridge"] in _BRIDGES]


def _draw(axes: Axes, rows: Sequence[AblationRow], spaces: Sequence[str], metric: str) -> None:
    for row in rows:
        values = [*row.scores.subject_means(metric).values()]
        if values:
            bridge = row.cell["levels"]["bridge"]
            x = spaces.index(row.cell["levels"]["space"]) + _SHIFTS[bridge]
            look = style.look_of(_BRIDGES[bridge], hollow=False, linestyle="")
            axes.plot([x + 0.14] * len(values), values, markersize=2, alpha=0.5, markeredgewidth=0, **look)
            axes.plot([x], [fmean(values)], markersize=4.5, **look)
    axes.yaxis.set_major_locator(MaxNLocator(4))


def _share_task_scales(line: Sequence[Axes], tasks: Sequence[str]) -> None:
    """Give all panels of a task the same scale, because its budgets are compared."""
    for same in grouped(zip(line, tasks, strict=True), lambda panel: panel[1]).values():
        panels = [axes for axes, _ in same]
        ends = [end for axes in panels for end in axes.get_ylim()]
        for axes in panels:
            axes.set_ylim(min(ends), max(ends))
