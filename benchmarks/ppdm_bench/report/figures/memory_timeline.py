"""Live memory over one step, and its largest holders: a figure, a table, and the same as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ppdm_bench.report.atomic_io import replace_file
from ppdm_bench.report.figures import style
from ppdm_bench.report.figures.breakdown import PARTS
from ppdm_bench.report.figures.style import SMALL, TEXT
from ppdm_bench.units import GIB

COLUMNS = ("rank", "bytes", "share", "kind", "part", "module", "pass", "made_by", "shape", "dtype")

_KEY = "E, D: levels of encoder and decoder; M: middle."


@dataclass(frozen=True)
class Span:
    """What is at work from one event up to another: the pass (forward, backward, update) and the network's part."""

    start: int
    end: int
    stage: str
    part: str


@dataclass(frozen=True)
class Holder:
    """One block of memory that is alive at the peak: how large, what it is, and what made it where."""

    size: int
    kind: str
    part: str
    module: str
    stage: str
    operator: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Course:
    """Live bytes after every birth and death of one step, but those of blocks too small to be seen.

    Attributes:
        name: what was run, in words.
        live: bytes by part of the memory (the keys of :data:`PARTS`), one value an event.
        spans: what is at work, in order, without gaps.
        peak: the event after which most is alive; ``peak_size``: bytes alive then.
        holders: the largest blocks at the peak, largest first.
    """

    name: str
    live: dict[str, Sequence[int]]
    spans: Sequence[Span]
    peak: int
    peak_size: int
    holders: Sequence[Holder]

    @property
    def at_peak(self) -> Span:
        """What is at work at the peak."""
        return next(span for span in self.spans if span.start <= self.peak < span.end)


def course_figure(course: Course) -> Figure:
    """Return live memory over one step, stacked by category, under bands that say what is at work (two columns wide).

    Raises:
        ValueError: nothing was alive.
    """
    if not course.peak_size:
        raise ValueError("there is nothing to draw: no memory was alive in this step")
    figure = style.new_figure("double", height=3.5)
    bands, axes = figure.subplots(2, 1, sharex=True, height_ratios=(0.17, 1))
    parts = [part for part in PARTS if any(course.live.get(part, ()))]
    _stack(axes, course, parts)
    _mark_peak(axes, course)
    _bands(bands, course.spans)
    for axis in (axes, bands):
        axis.set_xlim(0, max(span.end for span in course.spans))
    style.title(figure, f"Live memory over one step, predicted: {course.name}.")
    handles = [
        Patch(label=PARTS[part][0], facecolor=_light(PARTS[part][1]), edgecolor=PARTS[part][1]) for part in parts
    ]
    style.legend(figure, handles, columns=6)
    return figure


def holders_table(course: Course) -> str:
    """Return the largest holders as Markdown, and where the peak lies."""
    peak, span = course.peak_size, course.at_peak
    lines = [
        f"{course.name}: predicted peak {peak / GIB:.2f} GiB, {span.stage} of {span.part}.",
        "",
        "| | GiB | share | kind | part | module | pass | made by | shape | dtype |",
        "|---:|---:|---:|---|---|---|---|---|---|---|",
    ]
    for rank, holder in enumerate(course.holders, start=1):
        size, share = f"{holder.size / GIB:.3f}", f"{holder.size / peak:.1%}"
        words = (holder.kind, holder.part, holder.module, holder.stage, holder.operator, _shape(holder), holder.dtype)
        lines.append("| " + " | ".join((str(rank), size, share, *words)) + " |")
    held = sum(holder.size for holder in course.holders)
    lines += ["", f"Together {held / GIB:.2f} GiB, {held / peak:.1%} of the peak."]
    return "\n".join(lines) + "\n"


def save_course(course: Course, stem: Path) -> list[Path]:
    """Write figure (PNG, PDF), holders (CSV, Markdown), and return the paths.

    Raises:
        OSError: the place cannot be written.
    """
    rows = io.StringIO()
    writer = csv.writer(rows, lineterminator="\n")
    writer.writerow(COLUMNS)
    for rank, h in enumerate(course.holders, start=1):
        share = f"{h.size / course.peak_size:.6f}"
        writer.writerow((rank, h.size, share, h.kind, h.part, h.module, h.stage, h.operator, _shape(h), h.dtype))
    texts = {".csv": rows.getvalue(), ".md": holders_table(course)}
    written = [replace_file(stem.with_name(stem.name + end), text.encode()) for end, text in texts.items()]
    return [*style.save(course_figure(course), stem), *written]


def _shape(holder: Holder) -> str:
    return "×".join(map(str, holder.shape))


def _light(colour: str) -> tuple[float, float, float]:
    """The colour on white at two thirds: predicted values are never drawn as full as measured ones."""
    red, green, blue = (int(colour[i : i + 2], 16) / 255 if colour[0] == "#" else 0.75 for i in (1, 3, 5))
    return 0.35 + 0.65 * red, 0.35 + 0.65 * green, 0.35 + 0.65 * blue


def _stack(axes: Axes, course: Course, parts: Sequence[str]) -> None:
    below = [0.0] * len(next(iter(course.live.values())))
    places = range(len(below))
    for part in parts:
        top = [low + value / GIB for low, value in zip(below, course.live[part], strict=True)]
        edge = PARTS[part][1]
        axes.fill_between(
            places, below, top, step="post", facecolor=_light(edge), edgecolor=edge, linewidth=0, hatch="//////"
        )
        if max(course.live[part]) > 0.01 * course.peak_size:  # else the line would hide what it is the edge of
            axes.step(places, top, where="post", color=edge, linewidth=0.5)
        below = top
    axes.set_ylim(0, 1.16 * max(below))
    style.plain_axes(axes, "y")
    events = "births and deaths of tensors, in order (without those below 0.01 % of the peak)"
    axes.set_xlabel(f"{events}\n{_KEY}", fontsize=TEXT, linespacing=1.4)
    axes.set_ylabel("live memory (GiB)", fontsize=TEXT)


def _mark_peak(axes: Axes, course: Course) -> None:
    peak, span = course.peak_size / GIB, course.at_peak
    axes.axvline(course.peak, color="black", linewidth=0.7, linestyle=(0, (4, 2)))
    right = course.peak > course.spans[-1].end / 2
    axes.annotate(
        f"peak {peak:.2f} GiB: {span.stage}, {span.part}",
        (course.peak, peak),
        xytext=(-4 if right else 4, 4),
        textcoords="offset points",
        ha="right" if right else "left",
        fontsize=SMALL,
    )


def _bands(axes: Axes, spans: Sequence[Span]) -> None:
    """Two rows: the passes above, the network's parts below, the darker the deeper."""
    axes.set_ylim(0, 2)
    axes.axis("off")
    for span in _merged(spans, parts=False):
        axes.axvspan(span.start, span.end, ymin=0.53, ymax=1, facecolor="0.93", edgecolor="white", linewidth=1)
        _label(axes, span, 1.53, span.stage, spans[-1].end)
    for span in _merged(spans, parts=True):
        axes.axvspan(
            span.start, span.end, ymin=0, ymax=0.47, facecolor=_depth(span.part), edgecolor="white", linewidth=0.5
        )
        _label(axes, span, 0.47, _short(span.part), spans[-1].end)


def _merged(spans: Sequence[Span], parts: bool) -> list[Span]:
    made: list[Span] = []
    for span in spans:
        part = span.part if parts else ""
        if made and (made[-1].stage, made[-1].part) == (span.stage, part):
            made[-1] = Span(made[-1].start, span.end, span.stage, part)
        else:
            made.append(Span(span.start, span.end, span.stage, part))
    return made


def _label(axes: Axes, span: Span, height: float, text: str, end: int) -> None:
    if (span.end - span.start) / end > 0.008 * len(text):  # else it would not fit
        axes.text((span.start + span.end) / 2, height, text, ha="center", va="center", fontsize=SMALL)


def _short(part: str) -> str:
    """``encoder level 2`` is E2: bands are narrow."""
    way, _, level = part.partition(" level ")
    if part == "middle":
        return "M"
    return f"{way[0].upper()}{level}" if level else part


def _depth(part: str) -> str:
    level = part.partition(" level ")[2]
    if part == "middle":
        return "0.62"
    return str(max(0.92 - 0.07 * int(level), 0.66)) if level.isdigit() else "0.96"
