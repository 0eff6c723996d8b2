"""Predicted time of one step by operator and limit (arithmetic, bandwidth, launches): figure, table and CSV file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ppdm_bench.grouping import grouped
from ppdm_bench.report.figures import style
from ppdm_bench.report.figures.style import SMALL
from ppdm_bench.report.tables.render import Columns, Heading, Page, data_frame, table_of
from ppdm_bench.units import significant

ROWS = 12  # operators in the figure; the others are summed up
LIMITS = {"arithmetic": style.BLUE, "bandwidth": style.ORANGE, "launches": style.GREEN}


class Cost(NamedTuple):
    """Seconds of an operator within one pass of a step, for one limit."""

    operator: str
    stage: str
    limit: str
    seconds: float


def time_figure(name: str, costs: Sequence[Cost]) -> Figure:
    """Return bars of the operators that take longest, divided by limit; they are hollow, because predicted.

    Raises:
        ValueError: no operator takes any time.
    """
    total = sum(cost.seconds for cost in costs)
    if not total:
        raise ValueError("there is nothing to draw: no operator of this step takes any time")
    rows = _ranked(costs)
    figure = style.new_figure("double", height=1.2 + 0.2 * len(rows))
    axes = figure.subplots()
    style.plain_axes(axes, "x", "time in one step (ms)")
    for place, (_, those) in enumerate(rows):
        left = 0.0
        for limit, colour in LIMITS.items():
            width = 1000 * sum(cost.seconds for cost in those if cost.limit == limit)
            axes.barh(place, width, left=left, height=0.62, **style.bar_style("predicted", colour))
            left += width
        style.write_beside(axes, left, place, f"{left / total / 10:.1f} %", 4, va="center")
    axes.set_yticks(range(len(rows)), [operator for operator, _ in rows], fontsize=SMALL)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0, 1.12 * 1000 * max(sum(cost.seconds for cost in those) for _, those in rows))
    style.title(figure, f"Time of one step by operator, predicted: {name}; {significant(1000 * total)} ms in all.")
    style.legend(
        figure, [Patch(label=f"limited by {k}", **style.bar_style("predicted", c)) for k, c in LIMITS.items()], 3
    )
    return figure


def save_times(name: str, costs: Sequence[Cost], stem: Path) -> list[Path]:
    """Write the figure (PNG, PDF) and the times (CSV, Markdown, LaTeX), and return the paths.

    Raises:
        OSError: a file cannot be written.
    """
    return [*style.save(time_figure(name, costs), stem), *times_page(name, costs).save(stem)]


def times_page(name: str, costs: Sequence[Cost]) -> Page:
    """Return the table of the operators, the longest first; the data have a row for each operator, pass and limit."""
    total = sum(cost.seconds for cost in costs)
    columns: Columns[tuple[str, list[Cost]]] = {
        Heading("operator"): lambda row: row[0],
        Heading("ms", number=True): lambda row: significant(1000 * sum(c.seconds for c in row[1])),
        Heading("share", show="{:.1%}".format, number=True): lambda row: sum(c.seconds for c in row[1]) / total,
        Heading("limit", "limited by"): lambda row: max(row[1], key=lambda cost: cost.seconds).limit,
    }
    rows = [cost._asdict() for cost in sorted(costs, key=lambda cost: -cost.seconds)]
    dtypes = {"operator": "object", "stage": "object", "limit": "object", "seconds": "float64"}
    title = f"{name}: predicted time of one step by operator."
    return Page([title, table_of(_ranked(costs), columns)], data_frame(rows, dtypes))


def _ranked(costs: Sequence[Cost]) -> list[tuple[str, list[Cost]]]:
    """Return the costs by operator and pass, the longest first; those after the first `ROWS` are one item."""
    of_operator = grouped(costs, lambda cost: f"{cost.operator}, {cost.stage}")
    ranked = sorted(of_operator.items(), key=lambda item: -sum(cost.seconds for cost in item[1]))
    others = [cost for _, those in ranked[ROWS:] for cost in those]
    return [*ranked[:ROWS], *([("all others", others)] if others else [])]
