"""Peak memory of every method against resolution, with the memory of common GPUs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation

from ppdm_bench.grouping import grouped
from ppdm_bench.report.figures import style
from ppdm_bench.report.figures.capacity import (
    cards_entry,
    cards_with_room,
    cubic_rows,
    setting_with_most_sizes,
    size_of,
)
from ppdm_bench.report.figures.style import MARKERS, SMALL, TEXT, Column, Marker
from ppdm_bench.report.library import Library
from ppdm_bench.report.paper_figure import FigureContent, MissingRecords
from ppdm_bench.report.rows import PeakRow, all_phases, common_settings, phase_name
from ppdm_bench.report.tables.render import Best, Columns, Heading, Table, table_of
from ppdm_bench.units import GIB, gib

_PANELS = ("train", "sample")
_OVERLAP = 1.06  # curves whose values differ by less than this ratio cover one another


def show(library: Library) -> FigureContent:
    """Return the memory of all methods against resolution for one setting; the table has every setting."""
    everything = cubic_rows(library.records)
    rows = setting_with_most_sizes(everything)
    sizes = sorted({size_of(row) for row in rows})
    if len(sizes) < 2:
        raise MissingRecords(
            "peak memory at two cubic sizes or more; `ppdm-bench memory --res 64`, then 128, with one --out makes it"
        )
    drawn, left_out = _few(rows)
    records = [r for row in drawn for r in row.records.values() if r.metric in ("peak_allocated", "peak_reserved")]
    cubes = ", ".join(f"{n}³" for n in sizes)
    kinds = " and ".join(sorted({row.kind for row in rows}))
    about = (
        "Peak of live tensor memory (peak_allocated) of one training step and of one sampling run on cubes of "
        f"{cubes} voxels; {common_settings(rows)}. Values are {kinds}: predicted markers are hollow, measured ones "
        "filled. For a latent method, training includes the training of its autoencoder, and sampling includes "
        "decoding: the largest peak counts. Overlapping curves share a dashed line with alternating colours. Dashed "
        "grey lines: nominal memory of common GPUs, part of which the driver and the CUDA context need. The figure "
        f"uses no images and no seeds: memory depends only on sizes.{left_out}"
    )
    marks = _marks(drawn, library)
    return FigureContent(_table(everything, library), lambda column: _figure(drawn, marks, column), about, records)


def _few(rows: Sequence[PeakRow]) -> tuple[Sequence[PeakRow], str]:
    """Return the rows of one variant per method, or all of the first method with several, and a sentence about it."""
    by_method = grouped(rows, lambda row: row.method)
    variants = {method: list(dict.fromkeys(row.variant for row in own)) for method, own in by_method.items()}
    several = [method for method, names in variants.items() if len(names) > 1]
    if len(several) < 2:
        return rows, ""
    few = [row for row in rows if row.method == several[0] or row.variant == variants[row.method][0]]
    return few, f" Of {', '.join(several[1:])}, only the first variant is drawn; the table has the others."


def _table(rows: Sequence[PeakRow], library: Library) -> Table:
    def setting(name: str, number: bool = False) -> Columns[PeakRow]:
        return {Heading(name, number=number): lambda row: row.settings[name]}

    def peak(phase: str, metric: str, text: str, rank: int, best: Best) -> Columns[PeakRow]:
        heading = Heading(f"{phase}_{metric}_bytes", f"{phase_name(phase)} {text}, GiB", gib, True, rank, best)
        return {heading: lambda row: None if (value := row.value(phase, metric)) is None else round(value)}

    columns: Columns[PeakRow] = {
        Heading("method"): lambda row: row.method,
        Heading("variant"): lambda row: row.variant,
        **setting("width", number=True),
        Heading("voxels_per_axis", "size", "{}³".format, True): size_of,
        **setting("precision"),
        **setting("checkpointing"),
        **setting("batch_size", number=True),
        **setting("device"),
        Heading("kind"): lambda row: row.kind,
    }
    for phase in all_phases(rows):
        columns |= peak(phase, "peak_allocated", "allocated", 0, "min")
        columns |= peak(phase, "peak_reserved", "reserved", 2, "")  # not in LaTeX
    ordered = sorted(rows, key=lambda row: (row.settings["device"] == "cpu", size_of(row)))
    within = ("width", "voxels_per_axis", "precision", "checkpointing", "device", "kind")
    return table_of(ordered, columns, within, lambda row: library.references(row.records.values()))


def _figure(rows: Sequence[PeakRow], marks: Mapping[str, Marker], column: Column) -> Figure:
    figure, panels = style.panels(column, len(_PANELS), 2.4, head=0.8)
    sizes = sorted({size_of(row) for row in rows})
    labels: list[list[Annotation]] = []
    for axes, phase in zip(panels, _PANELS, strict=True):
        style.plain_axes(axes, "both", "voxels", "peak allocated memory (GiB)")
        axes.set(xscale="log", yscale="log")
        labels.append(_draw(axes, rows, phase, marks))
        axes.set_xlim(sizes[0] / 1.2, sizes[-1] * 1.08)
        axes.set_title(phase_name(phase), fontsize=TEXT)
        style.log_ticks(axes.xaxis, style.spaced_ticks(sizes, 1.15), "{x:.0f}³")
    ends = [end for axes in panels for end in axes.get_ylim()]
    for axes in panels:  # one scale, so that the phases can be compared
        axes.set_ylim(min(ends), max(ends))
        style.log_ticks(axes.yaxis)
    style.title(figure, f"Peak allocated memory against resolution: {common_settings(rows)}.")
    fills = {"measured": {"markerfacecolor": "0.4"}, "predicted": {}, "published": {"markerfacecolor": "0.85"}}
    entries: list[Any] = [
        style.points_entry(kind, Marker("o", "0.4"), **fills[kind]) for kind in dict.fromkeys(row.kind for row in rows)
    ]
    style.legend(figure, [*entries, cards_entry()], columns=4)
    style.move_apart(figure, labels)
    for axes in panels:
        _cards(axes)
    return figure


def _marks(rows: Sequence[PeakRow], library: Library) -> dict[str, Marker]:
    """Return a marker for each curve, with the colour of its method and its own shape."""
    colours = style.method_colours(library.records)
    names = dict.fromkeys((row.name, row.method) for row in rows)
    return {
        name: Marker(MARKERS[n % len(MARKERS)], colours.get(method, style.GREY))
        for n, (name, method) in enumerate(names)
    }


def _draw(axes: Axes, rows: Sequence[PeakRow], phase: str, marks: Mapping[str, Marker]) -> list[Annotation]:
    """Draw a curve for each name and kind, and return the labels at their ends.

    For a method with several phases of one purpose, the largest counts: a latent method must train its autoencoder too.
    """
    curves: dict[tuple[str, str], dict[int, float]] = {}
    for row in rows:
        if (largest := row.largest_phase(phase)) and (value := row.value(largest, "peak_allocated")):
            curves.setdefault((row.name, row.kind), {})[size_of(row)] = value / GIB
    groups: list[list[tuple[str, str]]] = []
    for key, values in curves.items():
        group = next((own for own in groups if _overlap(values, curves[own[0]])), None)
        groups.append([key]) if group is None else group.append(key)
    labels = []
    for group in groups:
        for n, (name, kind) in enumerate(group):
            marker, values = marks[name], dict(sorted(curves[name, kind].items()))
            look = style.look_of(marker, kind != "measured", markersize=max(2.5, 6 - 1.2 * n), markeredgewidth=0.8)
            dashes = "-" if len(group) == 1 else (4 * n, (4, 4 * (len(group) - 1)))
            axes.plot(list(values), list(values.values()), linewidth=1.2, linestyle=dashes, **look)
            if kind == group[0][1] or len(group) == 1:
                size, value = max(values.items())
                labels.append(style.end_label(axes, size, value, name, marker.colour))
    return labels


def _overlap(one: Mapping[int, float], other: Mapping[int, float]) -> bool:
    return one.keys() == other.keys() and all(
        max(one[size], other[size]) < _OVERLAP * min(one[size], other[size]) for size in one
    )


def _cards(axes: Axes) -> None:
    """Draw lines at the memory of common GPUs, if there is room for their names."""
    for card in cards_with_room(axes, 1, gap=7.5):
        axes.axhline(card, color=style.GREY, linewidth=0.5, linestyle=style.DASHED, zorder=0.8)
        white: dict[str, Any] = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
        text: dict[str, Any] = {"va": "center", "fontsize": SMALL - 1, "color": "0.35", "bbox": white}
        axes.text(0.015, card, f"{card} GB", transform=axes.get_yaxis_transform(), zorder=0.85, **text)
