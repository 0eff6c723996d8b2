"""Puzzle factors and network widths after equal training: quality against memory, and against time per volume."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ppdm_bench.grouping import grouped
from ppdm_bench.report.figures import style
from ppdm_bench.report.figures.capacity import size_of
from ppdm_bench.report.figures.style import SMALL
from ppdm_bench.report.library import Library
from ppdm_bench.report.paper.cost import (
    METRIC,
    CostPoint,
    rows_of_largest_cube,
    trained_points,
    undominated,
    with_largest_peaks,
    with_times_of_one_device,
)
from ppdm_bench.report.paper_figure import FigureContent, MissingRecords
from ppdm_bench.report.rows import common_settings
from ppdm_bench.report.scores import Scores, best_evaluations, factor_text, group_title, seeds_text
from ppdm_bench.report.tables.render import Columns, Heading, Table, table_of
from ppdm_bench.units import GIB, gib, shape_text, significant


def show(library: Library) -> FigureContent:
    """Return quality against memory and time, for designs that differ only in puzzle factor and width."""
    points = [point for group in _groups(trained_points(library)) for point in group]
    if not points:
        raise MissingRecords(
            "one design with several puzzle factors and widths after equal training; `ppdm-bench quality --minutes 3 "
            "--paces paces.jsonl --set representation=puzzle(factor=4) --width 32` makes one of its points"
        )
    rows = rows_of_largest_cube(library)
    memory, seconds = with_largest_peaks(points, rows), with_times_of_one_device(library, points)
    if not memory or not seconds:
        raise MissingRecords(
            "memory and time per volume of the networks whose factors and widths were compared; `ppdm-bench memory "
            "--res 256 --vary network.width=16,32,64` and `ppdm-bench speed --device predict` make them"
        )
    kind, device, shape = seconds[0].kind, seconds[0].device, seconds[0].cost_shape
    about = (
        "PSNR of one design with several puzzle factors r and network widths, all trained for an equal time. Above: "
        f"against the largest peak of memory (peak_allocated) over all phases; {common_settings(rows)}. Below: against "
        f"the {kind} time of one translation of {shape_text(shape)} voxels ({device}). A line joins the widths "
        "of one factor. The grey line joins the points for which no other point is better in both; up and to the left "
        f"is better. Quality is that of the best number of network evaluations. {_data_text(points)}."
    )
    axis_names = f"largest peak at {size_of(rows[0])}³ (GiB)", f"time per volume, {device} (s)"
    return FigureContent(
        _table(library, memory, seconds),
        lambda column: _figure((memory, seconds), axis_names),
        about,
        [record for point in (*memory, *seconds) for record in point.records],
    )


def _groups(points: Sequence[Scores]) -> list[list[Scores]]:
    """Return groups of scores on one data set that differ only in factor and width, if they differ in both."""
    best = best_evaluations(points, lambda point: point.training_key)
    factors = [point for point in best if factor_text(point.design)]
    groups = grouped(factors, lambda point: (point.data, point.seconds or point.train_steps, _rest(point.design)))
    return [
        group
        for group in groups.values()
        if min(len({point.width for point in group}), len({factor_text(point.design) for point in group})) > 1
    ]


def _rest(design: Mapping[str, Any]) -> str:
    """Return the fields of a design as JSON, without puzzle factor, width, and network evaluations."""
    without = {"representation": ("factor",), "network": ("width",), "sampling": ("steps",)}
    rest = {**design}
    for axis, names in without.items():
        rest[axis] = {name: value for name, value in (rest.get(axis) or {}).items() if name not in names}
    return json.dumps(rest, sort_keys=True)


def _data_text(points: Sequence[Scores]) -> str:
    sets = grouped(points, lambda point: point.data).values()
    return f"{'; '.join(group_title(same) for same in sets)}; {seeds_text(points)}"


def _table(library: Library, memory: Sequence[CostPoint], seconds: Sequence[CostPoint]) -> Table:
    times = {id(point.scores): point for point in seconds}
    pairs = [(point, times.get(id(point.scores))) for point in memory]
    columns: Columns[tuple[CostPoint, CostPoint | None]] = {
        Heading("task"): lambda pair: pair[0].scores.task,
        Heading("factor", "r"): lambda pair: factor_text(pair[0].scores.design),
        Heading("width", number=True): lambda pair: pair[0].scores.width,
        Heading("train_steps", "training steps", number=True): lambda pair: pair[0].scores.train_steps,
        Heading("evaluations", number=True): lambda pair: pair[0].scores.evaluations,
        Heading("subjects", number=True): lambda pair: len(pair[0].scores.subject_means(METRIC)),
        Heading("psnr", "PSNR, dB", "{:.2f}".format, True, best="max"): lambda pair: pair[0].quality,
        Heading("ssim", "SSIM", "{:.3f}".format, True, best="max"): lambda pair: pair[0].scores.mean("ssim"),
        Heading("peak_bytes", "peak, GiB", gib, True, best="min"): lambda pair: round(pair[0].cost * GIB),
        Heading("volume_seconds", "s per volume", significant, True, best="min"): lambda pair: pair[1] and pair[1].cost,
        Heading("cost_kind", "memory and time"): lambda pair: pair[0].kind,
    }
    return table_of(
        pairs,
        columns,
        within=["task"],
        sources=lambda pair: library.references([*pair[0].records, *(pair[1].records if pair[1] else ())]),
    )


def _figure(costs: Sequence[Sequence[CostPoint]], axis_names: Sequence[str]) -> Figure:
    """Return one column of panels per data set: memory above, time below."""
    sets = list(dict.fromkeys(point.scores.data for point in costs[0]))
    everything = [point for points in costs for point in points]
    factors = sorted({factor_text(point.scores.design) for point in everything})
    widths = sorted({point.scores.width or 0 for point in everything})
    colours = dict(zip(factors, style.SERIES, strict=False))
    shapes = dict(zip(widths, style.MARKERS, strict=False))
    figure, grid = style.panels("double", len(costs) * len(sets), 1.7, head=0.8, across=len(sets))
    for place, axes in enumerate(grid):
        row, which = divmod(place, len(sets))
        panel = [point for point in costs[row] if point.scores.data == sets[which]]
        axes.set_xscale("log")
        _draw(axes, panel, colours, shapes)
        style.plain_axes(axes, "both", axis_names[row], "PSNR (dB)" if which == 0 else "")
        if row == 0:
            axes.set_title(group_title([point.scores for point in panel]).replace(", ", "\n", 1), fontsize=SMALL)
        axes.yaxis.set_major_locator(MaxNLocator(5))
        style.log_ticks(axes.xaxis, most=5)
    hollow = " Hollow: predicted memory or time." * any(point.kind != "measured" for point in everything)
    style.title(figure, f"Puzzle factor r and network width after equal training time.{hollow}")
    entries: list[Artist] = [
        *(style.entry(f"r={factor}", color=colour, linewidth=1.2) for factor, colour in colours.items()),
        *(style.points_entry(f"width {width}", style.Marker(shape, "0.3")) for width, shape in shapes.items()),
        style.entry("no other point is better in both", color="0.7", linewidth=0.9),
    ]
    style.legend(figure, entries, columns=len(entries))
    return figure


def _draw(axes: Axes, panel: Sequence[CostPoint], colours: Mapping[str, str], shapes: Mapping[int, str]) -> None:
    best = undominated(panel)
    axes.plot([p.cost for p in best], [p.quality for p in best], color="0.7", linewidth=0.9, zorder=1)
    for factor, points in grouped(panel, lambda point: factor_text(point.scores.design)).items():
        line = sorted(points, key=lambda point: point.scores.width or 0)
        axes.plot([p.cost for p in line], [p.quality for p in line], color=colours[factor], linewidth=0.9, zorder=2)
        for point in line:
            marker = style.Marker(shapes[point.scores.width or 0], colours[factor])
            look = style.look_of(marker, point.kind != "measured", markersize=4.5, markeredgewidth=0.9)
            axes.plot([point.cost], [point.quality], zorder=3, **look)
