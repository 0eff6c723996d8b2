"""Peak memory of every method and phase as dots on a logarithmic axis."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

from ppdm_bench.grouping import grouped
from ppdm_bench.records import KINDS, Record
from ppdm_bench.report.figures import style
from ppdm_bench.report.figures.capacity import CARDS, cards_entry, cards_with_room, few_names
from ppdm_bench.report.figures.style import SMALL, TEXT, Marker
from ppdm_bench.report.rows import (
    STATUS_NAMES,
    PeakRow,
    all_phases,
    common_settings,
    gather_peaks,
    phase_name,
    reference_of,
    varying_settings,
)
from ppdm_bench.units import GIB, ratio, significant

_LINE = 0.145  # inches


@dataclass(frozen=True)
class Dot:
    """One peak at a vertical place, in lines from the top; a line has the dots of one name, phase and kind."""

    row: PeakRow
    phase: str
    place: float

    @property
    def size(self) -> float | None:
        """The peak in GiB; None if the run failed."""
        peak = self.row.value(self.phase, "peak_allocated")
        return None if peak is None else peak / GIB

    @property
    def outcome(self) -> str:
        """The status of the run."""
        return self.row.outcome(self.phase)[0]


def memory_figure(records: Iterable[Record], *, reference: str = "") -> Figure:
    """Return the peak allocated memory of every method and phase as dots on a logarithmic axis.

    Colours are phases. Measured dots are filled, predicted dots hollow, published dots grey; circles are runs without
    checkpointing, diamonds with it. A failed run has a cross at the left end. At most eight names are shown (see
    `capacity.few_names`).

    Args:
        records: long-form records; those that are not about memory are ignored.
        reference: the method to which ratios refer (see `rows.reference_of`); empty for no ratios.

    Raises:
        ValueError: no record has a peak.
    """
    rows = gather_peaks(record for record in records if record.metric == "peak_allocated")
    if not rows:
        raise ValueError("there is nothing to draw: no record has a peak of memory (metric peak_allocated)")
    groups = _named(rows, characters=40)
    shown = few_names(groups)
    lines, names = _places({name: groups[name] for name in shown})
    dots, last = [dot for line in lines for dot in line], lines[-1][0].place
    figure = style.new_figure("double", height=1.3 + _LINE * (last + 1))
    axes = figure.add_subplot()
    style.plain_axes(axes, "x", "peak allocated memory (GiB, log axis)")
    axes.set_ylim(last + 0.8, -0.8)
    axes.set_yticks([place for place, _ in names], [name for _, name in names], fontsize=TEXT)
    axes.tick_params(axis="y", length=0)
    style.title(figure, _title(rows, reference, len(groups) - len(shown)))
    style.legend(figure, _legend(dots), columns=6)
    sizes = [dot.size for dot in dots if dot.size]
    left = min(sizes, default=1) / (3 if any(len(line) > 1 for line in lines) else 1.6)
    axes.set(xscale="log", xlim=(left, 1.1 * max(sizes, default=1)))
    texts = [text for line in lines for text in _draw(axes, line, rows, reference)]
    _make_room(figure, axes, texts)
    style.log_ticks(axes.xaxis)
    _card_lines(axes)
    return figure


def overview_records(records: Sequence[Record]) -> list[Record]:
    """Return the records for a smaller figure, or none if it would show the same as the complete one.

    They have the first kind of checkpointing, two variants of the first method, and one of every other method.
    """
    first = records[0]
    variants: dict[str, dict[str, None]] = {}
    for record in records:
        variants.setdefault(record.method, {})[record.variant] = None
    shown = {method: list(names)[: 2 if method == first.method else 1] for method, names in variants.items()}
    chosen = [r for r in records if r.checkpointing == first.checkpointing and r.variant in shown[r.method]]
    return chosen if len(chosen) < len(records) else []


def _named(rows: Sequence[PeakRow], characters: int) -> dict[str, list[PeakRow]]:
    """Return the rows by name; the name has the settings in which rows differ, except checkpointing."""
    differing = [name for name in varying_settings(rows) if name != "checkpointing"]
    return grouped(rows, lambda row: style.wrap_row_label(row, differing, characters))


def _places(groups: dict[str, list[PeakRow]]) -> tuple[list[list[Dot]], list[tuple[float, str]]]:
    """Return the lines of dots from the top, and the vertical places of the names."""
    lines: list[list[Dot]] = []
    names: list[tuple[float, str]] = []
    top = 0.0
    for name, group in groups.items():
        kinds = [kind for kind in KINDS if any(row.kind == kind for row in group)]
        found = [
            (phase, own)
            for phase in all_phases(group)
            for kind in kinds
            if (own := [row for row in group if row.kind == kind and phase in row.phases])
        ]
        # A line of a name is as high as a line of dots.
        first = top + max(0.0, (name.count("\n") + 1 - len(found)) / 2)
        lines += [[Dot(row, phase, first + i) for row in own] for i, (phase, own) in enumerate(found)]
        names.append((first + (len(found) - 1) / 2, name))
        top = 2 * names[-1][0] - top + 1.7
    return lines, names


def _title(rows: Sequence[PeakRow], reference: str, omitted: int) -> str:
    shared = common_settings(rows)
    what = f"Peak of live tensor memory (peak_allocated): {shared}." if shared else "Peak of live tensor memory."
    compared = f" In brackets: ratio to {reference} without checkpointing." if reference else ""
    return what + compared + (f" The table has {omitted} more rows." if omitted else "")


def _look(colour: str, kind: str, checkpointing: str) -> dict[str, Any]:
    plain = checkpointing == "none"
    marker = Marker("o" if plain else "D", colour)
    look = style.look_of(marker, kind == "predicted", linestyle="", markersize=5 if plain else 4, markeredgewidth=1.1)
    return look | ({"markerfacecolor": "0.85"} if kind == "published" else {})


def _draw(axes: Axes, dots: Sequence[Dot], rows: Sequence[PeakRow], reference: str) -> list[tuple[float, Text]]:
    """Draw the dots of a line and the labels at its ends; return the right label with the size in GiB of its dot."""
    found = sorted((dot.size, n) for n, dot in enumerate(dots) if dot.size is not None)
    left, place = axes.get_xlim()[0], dots[0].place
    if found:
        axes.plot([left, found[-1][0]], [place] * 2, color="0.85", linewidth=0.6, zorder=1)
    for dot in dots:
        look = _look(style.phase_colour(dot.phase), dot.row.kind, dot.row.settings["checkpointing"])
        if dot.size is not None:
            axes.plot([dot.size], [place], zorder=3, **look)
        else:
            axes.plot([left], [place], **look | {"marker": "X"}, clip_on=False, zorder=3)
    failed = [dot for dot in dots if dot.size is None]
    texts = []
    if found:
        size, n = found[-1]
        texts.append((size, _write(axes, dots[n], _value(dots[n], rows, reference), "left")))
        if found[0][0] < 0.97 * size:
            _write(axes, dots[found[0][1]], _value(dots[found[0][1]], rows, reference), "right")
    elif failed:
        texts.append((left, _write(axes, failed[0], _status(failed[0]), "left")))
    return texts


def _value(dot: Dot, rows: Sequence[PeakRow], reference: str) -> str:
    against = reference_of(dot.row, rows, reference)
    whole = against.value(dot.phase, "peak_allocated") if against else None
    own = dot.row.value(dot.phase, "peak_allocated")
    compared = f" ({ratio(own / whole)})" if whole and own and against is not dot.row else ""
    return " ".join(filter(None, (significant(dot.size or 0) + compared, _status(dot))))


def _status(dot: Dot) -> str:
    return STATUS_NAMES.get(dot.outcome, "")


def _write(axes: Axes, dot: Dot, text: str, ha: str) -> Text:
    colour = "black" if dot.outcome == "ok" else style.VERMILION
    x, right = dot.size or axes.get_xlim()[0], 5 if ha == "left" else -5
    return style.write_beside(axes, x, dot.place, text, right, ha=ha, color=colour, **style.ON_WHITE)


def _make_room(figure: Figure, axes: Axes, labelled: Sequence[tuple[float, Text]]) -> None:
    """Extend the axis to the right so that every label ends inside the axes.

    The width of the axes depends on names and legend, which are complete, and not on the limits.
    """
    figure.draw_without_rendering()
    transform = axes.xaxis.get_transform()
    left, right = axes.get_xlim()
    low, high = transform.transform([left, right])
    for size, text in labelled:
        share = (text.get_window_extent().width + 0.1 * figure.dpi) / axes.bbox.width
        end = transform.transform([max(size, left)])[0]
        high = max(high, low + (end - low) / (1 - min(share, 0.7)))
    axes.set_xlim(left, float(transform.inverted().transform([high])[0]))


def _card_lines(axes: Axes) -> None:
    """Draw thin lines at the memory of common GPUs."""
    for size in cards_with_room(axes, 0, gap=30):
        axes.axvline(size, color=style.GREY, linewidth=0.6, linestyle=style.DASHED, zorder=0.9)
        above: dict[str, Any] = {"transform": axes.get_xaxis_transform(), "ha": "center", "va": "bottom"}
        axes.text(size, 1.0, f"{size} GB", fontsize=SMALL, color="0.35", **above)


def _legend(dots: Sequence[Dot]) -> list[Artist]:
    rows = [dot.row for dot in dots]
    handles: list[Artist] = []
    for phase in dict.fromkeys(dot.phase for dot in dots):
        handles.append(style.entry(phase_name(phase), **_look(style.phase_colour(phase), "measured", "none")))
    for kind in KINDS:
        if any(row.kind == kind for row in rows):
            handles.append(style.entry(kind, **_look("0.4", kind, "none")))
    for checkpointing in dict.fromkeys(row.settings["checkpointing"] for row in rows):
        if checkpointing != "none":
            handles.append(style.entry(f"{checkpointing} checkpointing", **_look("0.4", "predicted", checkpointing)))
    if empty := {dot.outcome == "skipped" for dot in dots if dot.size is None}:
        label = "no value: " + " or ".join("skipped" if skipped else "failed" for skipped in sorted(empty))
        handles.append(style.entry(label, marker="X", markersize=5, linestyle="", color="0.45"))
    if any((dot.size or 0) > min(CARDS) for dot in dots):
        handles.append(cards_entry())
    return handles
