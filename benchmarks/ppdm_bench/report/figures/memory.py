"""Bars of peak memory: how much each method needs, and what the memory holds at the peak."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from ppdm_bench.records import Record
from ppdm_bench.report.figures import style
from ppdm_bench.report.figures.style import SMALL, TEXT, Column
from ppdm_bench.report.rows import PHASE_NAMES, Row, all_phases, common, gather, reference_of, varying
from ppdm_bench.units import GIB, ratio, setting_text, significant

# Nominal sizes of common GPUs, most common first: where two labels would collide, the earlier one is drawn. A card's
# "24 GB" are 24 GiB but for what ECC and the driver keep back.
GPUS = (24, 80, 40, 16, 8, 141, 12, 48)

_COLOURS = {
    "train": style.BLUE,
    "sample": style.ORANGE,
    "autoencoder_train": style.GREEN,
    "decode": style.PURPLE,
}
_FAILED = {"oom": "OOM", "timeout": "timeout", "error": "error", "killed": "killed", "skipped": "skipped"}
_DASHES = (0, (4, 2))
_KIND_ORDER = ("measured", "predicted", "published")


@dataclass(frozen=True)
class Bar:
    """One bar: a phase of a row, at a place from the top (in bar heights)."""

    row: Row
    phase: str
    place: float

    @property
    def size(self) -> float | None:
        """The peak in GiB, None where the run failed."""
        peak = self.row.value(self.phase, "peak_allocated")
        return None if peak is None else peak / GIB


def memory_figure(records: Iterable[Record], *, reference: str = "", column: Column = "double") -> Figure:
    """Return bars of peak allocated memory of every configuration and phase.

    Measured bars are solid, predicted ones hollow and hatched, published ones dotted; a run that failed has a mark and
    no bar. The axis is logarithmic where the peaks span more than a factor of 20.

    Args:
        records: long-form records; those that are not about memory are passed over.
        reference: the method that the ratios at the bars are taken against (see `rows.reference_of`); empty: no ratios.
        column: width of the figure, `single` (3.5 in) or `double` (7.16 in).

    Raises:
        ValueError: no record holds a peak.
    """
    rows = _rows(records)
    bars, ticks = _places(rows, characters=18 if column == "single" else 40)
    figure = style.new_figure(column, height=1.25 + 0.145 * (bars[-1].place + 1))
    axes = figure.add_subplot()
    style.plain_axes(axes, grid="x")
    axes.set_ylim(bars[-1].place + 0.8, -0.8)
    axes.set_yticks([place for place, _ in ticks], [label for _, label in ticks], fontsize=TEXT)
    axes.tick_params(axis="y", length=0)
    style.title(figure, _title(rows, reference))
    style.legend(figure, _legend(rows, bars), columns=2 if column == "single" else 6)
    _scale(axes, [bar.size for bar in bars if bar.size])
    texts = [_draw(axes, bar, _ratio_text(bar, rows, reference)) for bar in bars]
    _make_room(figure, axes, [(bar.size or 0, text) for bar, text in zip(bars, texts, strict=True)])
    if _reach_gpus(bars):
        _gpu_lines(axes)
    return figure


def headline(records: Sequence[Record]) -> list[Record]:
    """Return the records of a figure that is read at a glance, or none if there are no more than these.

    It shows one kind of checkpointing, the first, with two variants of the first method and one of every other.
    """
    first = records[0]
    variants: dict[str, dict[str, None]] = {}
    for record in records:
        variants.setdefault(record.method, {})[record.variant] = None
    shown = {method: list(names)[: 2 if method == first.method else 1] for method, names in variants.items()}
    chosen = [r for r in records if r.checkpointing == first.checkpointing and r.variant in shown[r.method]]
    return chosen if len(chosen) < len(records) else []


def _rows(records: Iterable[Record]) -> list[Row]:
    rows = gather(record for record in records if record.metric == "peak_allocated")
    if not rows:
        raise ValueError("there is nothing to draw: no record holds a peak of memory (metric peak_allocated)")
    return rows


def _places(rows: Sequence[Row], characters: int) -> tuple[list[Bar], list[tuple[float, str]]]:
    """Place the bars: configurations from the top, in each the phases, in each the kinds; and where a name stands."""
    differing = varying(rows)
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(_label(row, differing, characters), []).append(row)
    bars: list[Bar] = []
    ticks: list[tuple[float, str]] = []
    top = 0.0
    for label, group in groups.items():
        group = sorted(group, key=lambda row: _KIND_ORDER.index(row.kind))
        found = [(row, phase) for phase in all_phases(group) for row in group if phase in row.phases]
        # A line of a name is as high as a bar.
        first = top + max(0.0, (label.count("\n") + 1 - len(found)) / 2)
        bars += [Bar(row, phase, first + i) for i, (row, phase) in enumerate(found)]
        ticks.append((first + (len(found) - 1) / 2, label))
        top = 2 * ticks[-1][0] - top + 1.7
    return bars, ticks


def _label(row: Row, differing: Iterable[str], characters: int) -> str:
    words = ", ".join(filter(None, (setting_text(name, row.settings[name]) for name in differing)))
    return "\n".join((style.folded(row.name, characters), *textwrap.wrap(words, characters)))


def _title(rows: Sequence[Row], reference: str) -> str:
    shared = common(rows)
    what = f"Peak of live tensor memory (peak_allocated): {shared}." if shared else "Peak of live tensor memory."
    compared = f" In brackets: ratio to {reference} without checkpointing." if reference else ""
    return what + compared


def _ratio_text(bar: Bar, rows: Sequence[Row], reference: str) -> str:
    against = reference_of(bar.row, rows, reference)
    whole = against.value(bar.phase, "peak_allocated") if against else None
    own = bar.row.value(bar.phase, "peak_allocated")
    return f" ({ratio(own / whole)})" if whole and own and against is not bar.row else ""


def _draw(axes: Axes, bar: Bar, compared: str) -> Text:
    """Draw one bar or the mark of a failure, with its label, and return the label."""
    colour, status = _colour(bar.phase), bar.row.outcome(bar.phase)[0]
    left = axes.get_xlim()[0]
    if bar.size is not None:
        axes.barh(bar.place, bar.size - left, left=left, height=0.86, **style.bar_style(bar.row.kind, colour))
    else:
        axes.plot(left, bar.place, marker="X", markersize=5, color=colour, markeredgewidth=0, clip_on=False, zorder=3)
    words = [significant(bar.size) + compared if bar.size is not None else "", _FAILED.get(status, "")]
    return axes.annotate(
        " ".join(filter(None, words)),
        (bar.size or left, bar.place),
        xytext=(3 if bar.size else 6, 0),
        textcoords="offset points",
        va="center_baseline",
        fontsize=SMALL,
        color="black" if status == "ok" else style.VERMILION,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6},
        annotation_clip=False,
    )


def _colour(phase: str) -> str:
    return _COLOURS.get(phase, style.SKY)


def _scale(axes: Axes, sizes: Sequence[float]) -> None:
    """Set a linear axis from zero, or a logarithmic one whose ticks are plain numbers."""
    if sizes and max(sizes) > 20 * min(sizes):
        axes.set_xscale("log")
        axes.set_xlim(max(tick for tick in _ticks(1, 2, 5) if tick <= min(sizes) / 1.6), max(sizes) * 1.1)
        axes.xaxis.set_major_locator(FixedLocator(_ticks(1, 2, 5)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    else:
        axes.set_xlim(0, max(sizes, default=1) * 1.1)
        axes.xaxis.set_major_locator(MaxNLocator(round(axes.bbox.width / axes.figure.dpi * 1.5), steps=[1, 2, 5, 10]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    scale = ", log axis" if axes.get_xscale() == "log" else ""
    axes.set_xlabel(f"peak allocated memory (GiB{scale})", fontsize=TEXT)


def _ticks(*digits: int) -> list[float]:
    return [digit * 10.0**power for power in range(-9, 6) for digit in digits]


def _make_room(figure: Figure, axes: Axes, labelled: Sequence[tuple[float, Text]]) -> None:
    """Move the right end of the axis so that every label ends inside of it.

    The width of the axes is known once names and legend have their place, and does not depend on the limits.
    """
    figure.draw_without_rendering()
    transform = axes.xaxis.get_transform()
    left, right = axes.get_xlim()
    low, high = transform.transform([left, right])
    for size, text in labelled:
        share = (text.get_window_extent().width + 0.1 * figure.dpi) / axes.bbox.width
        end = transform.transform([max(size, left)])[0]
        high = max(high, low + (end - low) / (1 - min(share, 0.7)))
    right = float(transform.inverted().transform([high])[0])
    axes.set_xlim(left, right)
    inches = axes.bbox.width / figure.dpi
    if axes.get_xscale() == "log" and inches < 0.75 * math.log10(right / left):
        axes.xaxis.set_major_locator(FixedLocator(_ticks(1)))


def _reach_gpus(bars: Sequence[Bar]) -> bool:
    return max((bar.size or 0 for bar in bars), default=0) > min(GPUS)


def _gpu_lines(axes: Axes) -> None:
    """Mark the sizes of common GPUs with thin lines, as many as have room for their names."""
    left, right = axes.get_xlim()
    inches = axes.bbox.width / axes.figure.dpi
    placed: list[float] = []
    for size in GPUS:
        place = axes.transAxes.inverted().transform(axes.transData.transform((size, 0)))[0] * inches
        if not left < size < right or any(abs(place - other) < 0.42 for other in placed):
            continue
        placed.append(place)
        axes.axvline(size, color=style.GREY, linewidth=0.6, linestyle=_DASHES, zorder=0.9)
        above = axes.get_xaxis_transform()
        axes.text(size, 1.0, f"{size} GB", transform=above, ha="center", va="bottom", fontsize=SMALL, color="0.35")


def _legend(rows: Sequence[Row], bars: Sequence[Bar]) -> list[Artist]:
    handles: list[Artist] = [
        Patch(facecolor=_colour(phase), label=PHASE_NAMES.get(phase, phase)) for phase in all_phases(rows)
    ]
    handles += style.kind_patches([row.kind for row in rows])
    if empty := {bar.row.outcome(bar.phase)[0] == "skipped" for bar in bars if bar.size is None}:
        label = "no value: " + " or ".join("skipped" if skipped else "failed" for skipped in sorted(empty))
        handles.append(Line2D([], [], marker="X", markersize=5, linestyle="", color="0.45", label=label))
    if _reach_gpus(bars):
        handles.append(
            Line2D([], [], label="memory of common GPUs", color=style.GREY, linewidth=0.6, linestyle=_DASHES)
        )
    return handles
