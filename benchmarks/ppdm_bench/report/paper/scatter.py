"""Quality against what it costs: training memory, seconds a volume, network evaluations; a panel a data set."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, NullLocator

from ppdm_bench.records import Record
from ppdm_bench.report.figures import style
from ppdm_bench.report.figures.capacity import cubic, largest_set, size_of
from ppdm_bench.report.figures.methods import method_looks
from ppdm_bench.report.figures.style import SMALL, TEXT, Column
from ppdm_bench.report.library import Library
from ppdm_bench.report.paper_figure import Missing, Shown
from ppdm_bench.report.rows import common
from ppdm_bench.report.scores import Scores, group_title, most_evaluations, resolved
from ppdm_bench.report.tables.render import Best, Heading, Line, Table
from ppdm_bench.units import GIB, gib, significant

__all__ = ["show_evaluations", "show_memory", "show_seconds"]

METRIC = "psnr"

Looks = dict[str, tuple[str, str]]


@dataclass(frozen=True)
class Spot:
    """A point with its cost.

    Attributes:
        point: the quality.
        cost: on the horizontal axis.
        kind: of the cost, measured or predicted.
        behind: the records of the cost.
    """

    point: Scores
    cost: float
    kind: str
    behind: tuple[Record, ...]


def show_memory(library: Library) -> Shown:
    """The Pareto picture: quality against the peak of training memory.

    Raises:
        Missing: no quality, or no memory of what was trained.
    """
    points = most_evaluations(_trained(library), lambda point: point.trained)
    rows = largest_set(cubic(library.records))
    largest = max((size_of(row) for row in rows), default=0)
    peaks: dict[str, tuple[float, str, Record]] = {}
    for row in rows:
        record = row.records.get(("train", "peak_allocated"))
        if size_of(row) == largest and record is not None and (value := row.value("train", "peak_allocated")):
            peaks[_space(record.method, resolved(record))] = (value, row.kind, record)
            peaks.setdefault(_space("", resolved(record)), (value, row.kind, record))
    spots = [
        Spot(point, size / GIB, kind, (record,))
        for point in points
        if (found := peaks.get(_space(point.method, point.design)) or peaks.get(_space("", point.design)))
        for size, kind, record in [found]
    ]
    if not spots:
        raise Missing(
            "peak training memory of the methods whose quality was recorded; `ppdm-bench memory --res 256` makes it"
        )
    about = (
        f"PSNR against the peak of training memory (peak_allocated) of the same method, or of one that lays the volume "
        f"out alike, at {largest}³ voxels, "
        f"{common([row for row in rows if size_of(row) == largest])}: the quality is that of a small network on the "
        "volumes named above each panel, the memory that of the full size. Hollow: predicted memory. Up and to the "
        f"left is better; the grey line joins what nothing else beats in both. {_scope(points)}"
    )
    return _shown(library, spots, about, f"training memory at {largest}³ (GiB)", "training_bytes", _as_bytes, True)


def show_seconds(library: Library) -> Shown:
    """Quality against seconds a volume.

    Raises:
        Missing: no quality, or no time of what was trained at its number of evaluations.
    """
    points = _trained(library)
    times = [r for r in library.records if r.metric == "volume_seconds" and r.status == "ok" and r.value]
    # The largest volumes that were timed: where time matters.
    largest = max((r.shape for r in times if r.shape), default=())
    found: dict[tuple[str, int | None], Record] = {}
    for record in times:
        if record.shape == largest:
            found[_space(record.method, resolved(record)), record.steps] = record
    spots = []
    for point in points:
        timed = found.get((_space(point.method, point.design), point.evaluations))
        if timed is not None and timed.value is not None:
            spots.append(Spot(point, float(timed.value), timed.kind, (timed,)))
    if not spots:
        raise Missing(
            "seconds a volume (volume_seconds) at the evaluations whose quality was recorded; `ppdm-bench speed` makes "
            "them"
        )
    size = "×".join(map(str, largest))
    about = (
        f"PSNR against the median time of one translation of {size} voxels, at each number of network evaluations (the "
        f"lines); measured. Up and to the left is better. {_scope(points)}"
    )
    return _shown(library, spots, about, f"seconds a volume of {size}", "volume_seconds", float, False)


def show_evaluations(library: Library) -> Shown:
    """Quality against network evaluations.

    Raises:
        Missing: nothing was scored at two numbers of evaluations.
    """
    points = [point for point in _trained(library) if point.evaluations]
    if len({point.evaluations for point in points}) < 2:
        raise Missing(
            "quality at two numbers of network evaluations; `ppdm-bench quality --evaluations 1,2,4,10` makes it"
        )
    spots = [Spot(point, float(point.evaluations or 1), "measured", ()) for point in points]
    about = (
        "PSNR against network evaluations a volume: means over subjects, joined for each design and budget. "
        f"{_scope(points)}"
    )
    return _shown(library, spots, about, "network evaluations", "", int, False)


def _as_bytes(gibibytes: float) -> int:
    return round(gibibytes * GIB)


def _trained(library: Library) -> list[Scores]:
    points = [p for p in library.points if p.design and p.subjects(METRIC)]
    if not points:
        raise Missing("quality of trained methods (psnr by subject); `ppdm-bench quality` makes it")
    return points


def _space(method: str, design: Any) -> str:
    """What memory and time depend on beside sizes: how the volume is laid out, and in which pieces it is seen."""
    return json.dumps([method, design.get("representation"), (design.get("window") or {}).get("type")], sort_keys=True)


def _scope(points: Sequence[Scores]) -> str:
    groups: dict[str, list[Scores]] = {}
    for point in points:
        groups.setdefault(point.data, []).append(point)
    said = []
    for group in groups.values():
        steps = sorted({point.train_steps for point in group if point.train_steps})
        widths = sorted({point.width for point in group if point.width})
        seeds = sorted({seed for point in group for seed in point.seeds})
        span = f"{steps[0]}" if len(steps) == 1 else f"{steps[0]} to {steps[-1]}" if steps else "?"
        width = " or ".join(map(str, widths)) or "?"
        said.append(
            f"{group_title(group)}, {len(seeds)} seed{'s' * (len(seeds) != 1)}, {span} training steps, width {width}"
        )
    return "Phantoms: " + "; ".join(said) + "."


def _shown(
    library: Library,
    spots: Sequence[Spot],
    about: str,
    axis: str,
    key: str,
    raw: Callable[[float], float],
    frontier: bool,
) -> Shown:
    # Several points share a record of memory or time.
    records = {id(r): r for spot in spots for r in (*spot.point.of_metric(METRIC), *spot.behind)}
    table = _table(library, spots, axis, key, raw)
    if len(_comparing(spots)) < len({spot.point.data for spot in spots}):
        about += " Data sets with a single design are in the table alone."
    looks = method_looks(library.records)
    return Shown(table, lambda column: _figure(spots, looks, axis, frontier, column), about, list(records.values()))


def _table(library: Library, spots: Sequence[Spot], axis: str, key: str, raw: Callable[[float], float]) -> Table:
    metrics = [m for m in ("psnr", "ssim", "nmae", "sharpness") if any(s.point.subjects(m) for s in spots)]
    headings = [
        Heading("task", "task"),
        Heading("method", "method"),
        Heading("variant", "variant"),
        Heading("evaluations", "evaluations", number=True),
        Heading("train_steps", "training steps", number=True),
        Heading("width", "width", number=True, rank=2),
        Heading("subjects", "subjects", number=True, rank=2),
        Heading("seeds", "seeds", number=True, rank=2),
        *(Heading(m, _NAMES.get(m, m), _metric(m), number=True, best=_BEST.get(m, "")) for m in metrics),
    ]
    if key:
        show = gib if key.endswith("bytes") else significant
        headings += [
            Heading(key, axis.replace(" (", ", ").rstrip(")"), show, number=True),
            Heading("cost_kind", "kind"),
        ]
    lines = []
    for spot in spots:
        p = spot.point
        cells: tuple[Any, ...] = (p.task, p.method, p.variant, p.evaluations, p.train_steps, p.width)
        cells += (len(p.subjects(METRIC)), len(p.seeds), *(p.mean(metric) for metric in metrics))
        cells += (raw(spot.cost), spot.kind) if key else ()
        lines.append(Line(cells, library.references((*p.of_metric(METRIC), *spot.behind))))
    return Table(headings, lines, within=("task", "train_steps"))


_NAMES = {"psnr": "PSNR, dB", "ssim": "SSIM", "nmae": "NMAE"}
_BEST: dict[str, Best] = {"psnr": "max", "ssim": "max", "nmae": "min"}


def _metric(name: str) -> Callable[[float], str]:
    digits = 2 if name == "psnr" else 3
    return lambda value: f"{value:.{digits}f}"


def _figure(spots: Sequence[Spot], looks: Looks, axis: str, frontier: bool, column: Column) -> Figure:
    groups = _comparing(spots)
    across = 1 if column == "single" else min(3, len(groups))
    down = -(-len(groups) // across)
    figure = style.new_figure(column, height=0.75 + (1.9 if column == "double" else 1.75) * down)
    for place, group in enumerate(groups.values()):
        axes = figure.add_subplot(down, across, place + 1)
        style.plain_axes(axes, "both")
        _draw(axes, group, looks, frontier)
        title = group_title([spot.point for spot in group])
        axes.set_title(title.replace(", ", "\n", 1) if column == "double" else title, fontsize=SMALL)
        axes.set_ylabel("PSNR (dB)", fontsize=TEXT)
        axes.set_xlabel(axis, fontsize=TEXT)
        _cost_axis(axes, [spot.cost for spot in group], whole="evaluations" in axis)
    style.legend(figure, _legend(spots, looks), columns=3 if column == "single" else 7)
    return figure


def _comparing(spots: Sequence[Spot]) -> dict[str, list[Spot]]:
    """Spots by data set, of those data sets that compare designs; of all, if none does."""
    groups: dict[str, list[Spot]] = {}
    for spot in spots:
        groups.setdefault(spot.point.data, []).append(spot)
    return {data: group for data, group in groups.items() if len({_curve(spot) for spot in group}) > 1} or groups


def _curve(spot: Spot) -> str:
    """What one line is drawn through: a design under one budget, whatever its evaluations."""
    p = spot.point
    return json.dumps([p.label, p.train_steps, p.design.get("kernel"), p.design.get("loss"), p.design.get("target")])


def _draw(axes: Axes, spots: Sequence[Spot], looks: Looks, frontier: bool) -> None:
    if frontier:
        best = _undominated(spots)
        axes.plot([s.cost for s in best], [_height(s) for s in best], color="0.7", linewidth=0.9, zorder=1)
    curves: dict[str, list[Spot]] = {}
    for spot in spots:
        curves.setdefault(_curve(spot), []).append(spot)
    for curve in curves.values():
        curve.sort(key=lambda spot: spot.cost)
        colour, marker = looks[curve[0].point.method]
        look: dict[str, Any] = {"marker": marker, "markersize": 4, "markeredgewidth": 0.9}
        fill = colour if curve[0].kind == "measured" else "white"
        axes.plot(
            [s.cost for s in curve],
            [_height(s) for s in curve],
            color=colour,
            linewidth=0.7,
            markerfacecolor=fill,
            zorder=2,
            **look,
        )


def _height(spot: Spot) -> float:
    return spot.point.mean(METRIC) or 0.0


def _undominated(spots: Sequence[Spot]) -> list[Spot]:
    """What no other beats in cost and quality at once, the cheapest first."""
    best: list[Spot] = []
    for spot in sorted(spots, key=lambda s: (s.cost, -_height(s))):
        if not best or _height(spot) > _height(best[-1]):
            best.append(spot)
    return best


def _cost_axis(axes: Axes, costs: Sequence[float], whole: bool) -> None:
    axes.set_xscale("log")
    axes.yaxis.set_major_locator(MaxNLocator(5))
    low, high = min(costs), max(costs)
    axes.set_xlim(low / 1.35, high * 1.35)
    if whole:
        axes.xaxis.set_major_locator(FixedLocator(_apart(sorted(set(costs)))))
    else:
        axes.xaxis.set_major_locator(style.decades((1, 2, 5) if high / low < 100 else (1,)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _apart(costs: Sequence[float]) -> list[float]:
    """Ticks that leave room for their labels on a logarithmic axis."""
    kept: list[float] = []
    for cost in costs:
        if not kept or cost >= 1.4 * kept[-1]:
            kept.append(cost)
    return kept


def _legend(spots: Sequence[Spot], looks: Looks) -> list[Line2D]:
    hollow = all(spot.kind != "measured" for spot in spots)
    handles = []
    shown = {spot.point.method for spot in spots}
    for method, (colour, marker) in looks.items():
        if method not in shown:
            continue
        fill = "white" if hollow else colour
        handles.append(
            Line2D([], [], color=colour, marker=marker, markersize=4, linewidth=0.7, markerfacecolor=fill, label=method)
        )
    if hollow:
        look: dict[str, Any] = {"linestyle": "", "marker": "o", "markersize": 4, "markerfacecolor": "white"}
        handles.append(Line2D([], [], color="0.4", label="hollow: predicted", **look))
    return handles
