"""Live memory over one step, and the largest blocks at its peak: a figure, a table and a CSV file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from ppdm_bench.report.figures import style
from ppdm_bench.report.figures.breakdown import PARTS
from ppdm_bench.report.figures.style import SMALL
from ppdm_bench.report.tables.render import Heading, Page, Table, TableRow, data_frame
from ppdm_bench.units import GIB, plural, shape_text

_KEY = "E, D: levels of encoder and decoder; M: middle."
_TINY = 6.0  # points
_CHARACTER = 0.0095  # share of the time axis per character; a label that is wider than its band is written below it


@dataclass(frozen=True)
class Span:
    """The pass (forward, backward, update) and the part of the network between two events."""

    start: int
    end: int
    stage: str
    part: str


@dataclass(frozen=True)
class TimelineBlock:
    """One block of memory at the peak: its size, kind and origin."""

    size: int
    kind: str
    part: str
    module: str
    stage: str
    operator: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class MemoryTimeline:
    """Live bytes after every event (allocation or free) of one or several steps, without blocks too small to see.

    Attributes:
        name: the configuration in words.
        live: bytes by part of the memory (the keys of :data:`PARTS`), one value per event.
        spans: passes and parts of the network in order, without gaps.
        peak: number of the event at the peak.
        peak_size: live bytes after this event.
        blocks: the largest blocks at the peak, the largest first.
        steps: number of training steps; with several, the part of a span is the number of its step.
    """

    name: str
    live: dict[str, Sequence[int]]
    spans: Sequence[Span]
    peak: int
    peak_size: int
    blocks: Sequence[TimelineBlock]
    steps: int = 1

    @property
    def at_peak(self) -> Span:
        """The span of the peak."""
        return next(span for span in self.spans if span.start <= self.peak < span.end)


def timeline_figure(timeline: MemoryTimeline) -> Figure:
    """Return live memory over the steps, stacked by category, below bands of passes and parts (two columns wide).

    Raises:
        ValueError: no memory was alive.
    """
    if not timeline.peak_size:
        raise ValueError("there is nothing to draw: no memory was alive in this step")
    figure = style.new_figure("double", height=3.8)
    bands, axes = figure.subplots(2, 1, sharex=True, height_ratios=(0.33, 1))
    parts = [part for part in PARTS if any(timeline.live.get(part, ()))]
    _stack(axes, timeline, parts)
    _mark_peak(axes, timeline)
    _bands(bands, timeline.spans, "part" if timeline.steps == 1 else "step")
    for axis in (axes, bands):
        axis.set_xlim(0, max(span.end for span in timeline.spans))
    over = plural(timeline.steps, "step")
    style.title(figure, f"Live memory over {over}, predicted: {timeline.name}.")
    handles = [
        Patch(label=PARTS[part][0], facecolor=_light(PARTS[part][1]), edgecolor=PARTS[part][1]) for part in parts
    ]
    style.legend(figure, handles, columns=6)
    return figure


def timeline_page(timeline: MemoryTimeline) -> Page:
    """Return the table of the largest blocks, with the pass and the part of the network at the peak."""
    peak, span = timeline.peak_size, timeline.at_peak
    headings = [
        Heading("rank", number=True),
        Heading("bytes", "GiB", lambda size: f"{size / GIB:.3f}", number=True),
        Heading("share", show="{:.1%}".format, number=True),
        *(Heading(name) for name in ("kind", "part", "module", "pass", "made_by", "shape", "dtype")),
    ]
    lines = []
    for rank, block in enumerate(timeline.blocks, start=1):
        size, *words, shape, dtype = astuple(block)  # in the order of the headings
        lines.append((rank, size, size / peak, *words, shape_text(shape), dtype))
    keys = [heading.key for heading in headings]
    held = sum(block.size for block in timeline.blocks)
    parts: list[str | Table] = [
        f"{timeline.name}: predicted peak {peak / GIB:.2f} GiB, {span.stage} of {span.part}.",
        Table(headings, [TableRow(cells) for cells in lines]),
        f"Together {held / GIB:.2f} GiB, {held / peak:.1%} of the peak.",
    ]
    dtypes = dict.fromkeys(keys, "object") | {"rank": "Int64", "bytes": "Int64", "share": "float64"}
    return Page(parts, data_frame([dict(zip(keys, cells, strict=True)) for cells in lines], dtypes))


def save_timeline(timeline: MemoryTimeline, stem: Path) -> list[Path]:
    """Write the figure (PNG, PDF) and the largest blocks (CSV, Markdown, LaTeX), and return the paths.

    Raises:
        OSError: a file cannot be written.
    """
    return [*style.save(timeline_figure(timeline), stem), *timeline_page(timeline).save(stem)]


def _light(colour: str) -> tuple[float, float, float]:
    """Return a lighter colour, because colours of predicted values are lighter than those of measured values."""
    red, green, blue = to_rgb(colour)
    return 0.35 + 0.65 * red, 0.35 + 0.65 * green, 0.35 + 0.65 * blue


def _stack(axes: Axes, timeline: MemoryTimeline, parts: Sequence[str]) -> None:
    below = [0.0] * len(next(iter(timeline.live.values())))
    places = range(len(below))
    for part in parts:
        top = [low + value / GIB for low, value in zip(below, timeline.live[part], strict=True)]
        edge = PARTS[part][1]
        axes.fill_between(
            places, below, top, step="post", facecolor=_light(edge), edgecolor=edge, linewidth=0, hatch="//////"
        )
        if max(timeline.live[part]) > 0.01 * timeline.peak_size:  # the line would hide a thinner layer
            axes.step(places, top, where="post", color=edge, linewidth=0.5)
        below = top
    axes.set_ylim(0, 1.16 * max(below))
    events = "allocations and frees in order (number of the event; without blocks below 0.01 % of the peak)"
    style.plain_axes(axes, "y", f"{events}\n{_KEY}" if timeline.steps == 1 else events, "live memory (GiB)")
    axes.xaxis.label.set_linespacing(1.4)


def _mark_peak(axes: Axes, timeline: MemoryTimeline) -> None:
    peak, span = timeline.peak_size / GIB, timeline.at_peak
    axes.axvline(timeline.peak, color="black", linewidth=0.7, linestyle=style.DASHED)
    right = timeline.peak > timeline.spans[-1].end / 2
    text, offset = f"peak {peak:.2f} GiB: {span.stage}, {span.part}", -4 if right else 4
    style.write_beside(axes, timeline.peak, peak, text, offset, 4, va="baseline", ha="right" if right else "left")


def _bands(axes: Axes, spans: Sequence[Span], row: str) -> None:
    """Draw two rows of bands, passes above parts of the network (darker for deeper levels), with their labels."""
    axes.set_ylim(0, 3)
    axes.axis("off")
    end = spans[-1].end
    narrow: dict[tuple[float, str], float] = {}
    for parts, bottom, height in ((False, 2.3, 0.7), (True, 1.5, 0.7)):
        for span in _merged(spans, parts):
            middle, label = (span.start + span.end) / 2, _short(span.part) if parts else span.stage
            colour = _depth(span.part) if parts else "0.93"
            box: dict[str, Any] = {"facecolor": colour, "edgecolor": "white", "linewidth": 0.5}
            axes.add_patch(Rectangle((span.start, bottom), span.end - span.start, height, **box))
            if (span.end - span.start) / end > _CHARACTER * len(label):
                axes.text(middle, bottom + height / 2, label, ha="center", va="center", fontsize=SMALL)
            else:
                narrow[middle, label] = bottom  # one label if pass and part are the same
        side: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "ha": "right", "va": "center"}
        axes.text(-0.008, bottom + height / 2, row if parts else "pass", fontsize=SMALL, **side)
    _narrow_labels(axes, narrow, end)


def _narrow_labels(axes: Axes, labels: Mapping[tuple[float, str], float], end: float) -> None:
    """Write the labels of narrow bands vertically below them, moved apart, each with a line to its band."""
    gap = 0.017 * end
    places: list[float] = []
    for middle, _ in sorted(labels):
        places.append(max(middle, places[-1] + gap) if places else middle)
    limit = end
    for n in reversed(range(len(places))):
        places[n] = min(places[n], limit)
        limit = places[n] - gap
    for place, ((middle, label), bottom) in zip(places, sorted(labels.items()), strict=True):
        axes.plot([middle, middle, place], [bottom + 0.1, 1.4, 1.15], color="0.5", linewidth=0.4, clip_on=False)
        axes.text(place, 1.1, label, rotation=90, ha="center", va="top", fontsize=_TINY)


def _merged(spans: Sequence[Span], parts: bool) -> list[Span]:
    runs = (list(run) for _, run in groupby(spans, lambda span: (span.stage, span.part if parts else "")))
    return [replace(run[0], end=run[-1].end) for run in runs]


def _short(part: str) -> str:
    """Return a short label for a part of the network, such as E2 for ``encoder level 2``."""
    way, _, level = part.partition(" level ")
    if part == "middle":
        return "M"
    if part.startswith("clipping"):
        return "update"
    return f"{way[0].upper()}{level}" if level else part


def _depth(part: str) -> str:
    level = part.partition(" level ")[2]
    if part == "middle":
        return "0.62"
    return str(max(0.92 - 0.07 * int(level), 0.66)) if level.isdigit() else "0.96"
