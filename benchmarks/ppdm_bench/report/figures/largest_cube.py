"""Bars of the largest cube that fits into a memory budget, by method and purpose."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ppdm_bench.report.figures import style
from ppdm_bench.report.figures.style import TEXT
from ppdm_bench.report.rows import phase_name
from ppdm_bench.report.tables.budget import PlanLine, title_of


def budget_figure(lines: Sequence[PlanLine]) -> Figure:
    """Return bars of the largest cube that fits, by method and purpose, hatched because they are predicted.

    A thin line marks the requested size if it is a cube.

    Raises:
        ValueError: there is no largest cube to draw.
    """
    drawn = [line for line in lines if line.cube is not None]
    if not drawn:
        raise ValueError("there is nothing to draw: no record has a largest resolution")
    methods = list(dict.fromkeys(line.method for line in drawn))
    purposes = list(dict.fromkeys(line.purpose for line in drawn))
    height, places = 0.86, {method: place * (len(purposes) + 0.7) for place, method in enumerate(methods)}
    figure = style.new_figure("double", height=1.15 + 0.15 * (max(places.values()) + len(purposes)))
    axes = figure.add_subplot()
    style.plain_axes(axes, grid="x")
    for line in drawn:
        place, edge = places[line.method] + purposes.index(line.purpose), line.cube or 0
        axes.barh(place, edge, height=height, **style.bar_style(line.record.kind, style.phase_colour(line.purpose)))
        style.write_beside(axes, edge, place, f"{edge:.0f}³" if edge else "none", 3, **style.ON_WHITE)
    middle = (len(purposes) - 1) / 2
    names = [style.wrap_label(method, 40) for method in methods]
    axes.set_yticks([place + middle for place in places.values()], names, fontsize=TEXT)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(max(places.values()) + len(purposes) - 0.2, -0.8)
    edges = set(drawn[0].record.shape)
    requested = list(edges) if len(edges) == 1 else []
    axes.set_xlim(0, 1.1 * max([*(line.cube or 0 for line in drawn), *requested]) or 1)
    axes.set_xlabel("edge of the largest cube that fits (voxels)", fontsize=TEXT)
    for edge in requested:
        axes.axvline(edge, color=style.GREY, linewidth=0.8, linestyle=style.DASHED, zorder=0.9)
    style.title(figure, title_of(drawn))
    handles = [Patch(facecolor=style.phase_colour(purpose), label=phase_name(purpose)) for purpose in purposes]
    handles += style.kind_patches([line.record.kind for line in drawn])
    asked = [style.entry("requested size", color=style.GREY, linewidth=0.8, linestyle=style.DASHED)]
    style.legend(figure, [*handles, *asked * bool(requested)], columns=5)
    return figure
