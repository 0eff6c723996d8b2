"""The common style of all figures: sizes, colours, markers, ticks, legends and files.

Figures have the real size of a column in a two-column paper. The global state of matplotlib is not changed: every
figure is a `Figure` without pyplot.
"""

from __future__ import annotations

import re
import textwrap
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, NamedTuple

import matplotlib as mpl
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Annotation, Text
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator, ScalarFormatter
from matplotlib.transforms import Affine2D, Bbox

from ppdm_bench.records import Record
from ppdm_bench.report.atomic_io import replace_file
from ppdm_bench.report.rows import PeakRow

Column = Literal["single", "double"]

WIDTHS = {"single": 3.5, "double": 7.16}  # inches: one column and the full width of a two-column page
TEXT = 7.5  # points; SMALL is the smallest readable size on paper
SMALL = 7.0

# From seaborn's palette "colorblind", which suits all types of colour vision.
BLUE, ORANGE, GREEN, VERMILION, PURPLE = "#0173b2", "#de8f05", "#029e73", "#d55e00", "#cc78bc"
BROWN, PINK, GREY, YELLOW, SKY = "#ca9161", "#fbafe4", "#949494", "#ece133", "#56b4e9"
# Colours of series, the most distinct first, without light colours.
SERIES = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, "#000000", BROWN)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_PHASE_COLOURS = {"train": BLUE, "sample": ORANGE, "autoencoder_train": GREEN, "decode": PURPLE}

DASHED = (0, (4, 2))
DOTTED = (0, (1, 1.5))
DASHES = ("-", DASHED, DOTTED, (0, (5, 1.5, 1, 1.5)), (0, (5, 1.5, 1, 1.5, 1, 1.5)))  # of lines of one colour
HOLLOW: dict[str, Any] = {"linestyle": "", "markersize": 4, "markerfacecolor": "none", "markeredgewidth": 0.8}
ON_WHITE: dict[str, Any] = {"bbox": {"facecolor": "white", "edgecolor": "none", "pad": 0.6}}  # for text over lines

# Fill patterns of bars by the kind of value, independent of the colour.
HATCHES = {"measured": "", "predicted": "//////", "published": "......"}

_MAX_COLOURS = 8192  # a picture with more colours is not reduced to a palette
_MAX_TICKS = 9
_LABEL_DISTANCE = 8.0  # points between the centres of adjacent labels
_MARKER, _NEAR = 6.0, 32.0  # points: size of a marker with its edge; distance that a label may move to avoid one
_TICK_DIGITS = ((1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,))  # of ticks on a logarithmic axis

# Text stays text in PDF files (TrueType instead of Type 3), as publishers require. The font comes with matplotlib.
_STYLE: dict[Any, Any] = {"pdf.fonttype": 42, "font.family": "DejaVu Sans", "hatch.linewidth": 0.6}


class Marker(NamedTuple):
    """Shape and colour of the points of one series."""

    shape: str
    colour: str


def markers(names: Iterable[str]) -> dict[str, Marker]:
    """Assign a marker to every distinct name; after eight names, the colours repeat with other shapes."""
    count, shapes = len(SERIES), len(MARKERS)
    return {
        name: Marker(MARKERS[(n + n // count) % shapes], SERIES[n % count])
        for n, name in enumerate(dict.fromkeys(names))
    }


def markers_of_colours(colours: Mapping[str, str]) -> dict[str, Marker]:
    """Assign a marker to every name, in the colour that is given for it; names of one colour have different shapes."""
    found: dict[str, Marker] = {}
    for name, marker in markers(colours).items():
        taken = {other.shape for other in found.values() if other.colour == colours[name]}
        free = [shape for shape in (marker.shape, *MARKERS) if shape not in taken]
        found[name] = Marker(free[0] if free else marker.shape, colours[name])
    return found


def phase_colour(phase: str) -> str:
    """Return the colour of a phase; all unknown phases have one colour."""
    return _PHASE_COLOURS.get(phase, SKY)


def method_colours(records: Iterable[Record]) -> dict[str, str]:
    """Assign a colour to every method with a resolved design, the same in all figures of the paper.

    Methods with results of most commands come first: they are compared most often and should not share a colour.
    """
    commands = defaultdict[str, set[str]](set)
    for record in records:
        if record.options.get("resolved"):
            commands[record.method].add(record.command)
    names = sorted(commands, key=lambda name: -len(commands[name]))
    return {name: marker.colour for name, marker in markers(names).items()}


def new_figure(column: Column, height: float) -> Figure:
    """Return an empty figure with the width of one or two columns and `height` inches.

    Raises:
        ValueError: `column` is neither `single` nor `double`.
    """
    if column not in WIDTHS:
        raise ValueError(f"a figure is `single` or `double` column wide, got {column!r}")
    figure = Figure(figsize=(WIDTHS[column], height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.04, h_pad=0.04)  # type: ignore[union-attr, call-arg]
    return figure


def panels(column: Column, number: int, height: float, head: float, across: int = 2) -> tuple[Figure, list[Axes]]:
    """Return a figure with `number` panels: one below the other in a single column, else up to `across` in a row.

    A row of panels has `height` inches; title and legend have `head` inches.
    """
    across = 1 if column == "single" else min(across, number)
    down = -(-number // across)
    figure = new_figure(column, height=head + height * down)
    return figure, [figure.add_subplot(down, across, place + 1) for place in range(number)]


def title(figure: Figure, text: str) -> None:
    """Write a title above the figure, with line breaks for its width."""
    characters = int(figure.get_figwidth() * 17.5)
    figure.suptitle(textwrap.fill(text, characters), x=0.012, ha="left", fontsize=TEXT)


def wrap_label(name: str, characters: int) -> str:
    """Break a name at blanks and after plus signs into lines of at most `characters`, if possible."""
    lines = [""]
    for piece in re.findall(r"[^ +]+[ +]*", name):
        if lines[-1] and len(lines[-1] + piece.rstrip()) > characters:
            lines.append("")
        lines[-1] += piece
    return "\n".join(line.rstrip() for line in lines)


def wrap_row_label(row: PeakRow, settings: Iterable[str], characters: int) -> str:
    """Return the name of a row and these settings in lines of at most `characters`, if possible."""
    return "\n".join((wrap_label(row.name, characters), *textwrap.wrap(row.settings_text(settings), characters)))


def legend(figure: Figure, handles: Sequence[Artist], columns: int) -> None:
    """Place the legend below the axes, where it covers no data, with fewer columns if it is wider than the figure."""
    look: dict[str, Any] = {"fontsize": SMALL, "frameon": False, "handlelength": 1.8, "columnspacing": 1.4}
    for number in range(columns, 0, -1):
        placed = figure.legend(handles=list(handles), loc="outside lower center", ncols=number, **look)
        if number == 1 or placed.get_window_extent().width <= figure.bbox.width:
            return
        placed.remove()


def plain_axes(axes: Axes, grid: Literal["x", "y", "both"], x: str = "", y: str = "") -> None:
    """Set readable tick labels, a light grid behind the data, no box, and axis labels if given."""
    axes.tick_params(labelsize=SMALL, length=2.5, width=0.6)
    axes.tick_params(which="minor", length=1.5, width=0.4)
    for formatter in (axis.get_major_formatter() for axis in (axes.xaxis, axes.yaxis)):
        if isinstance(formatter, ScalarFormatter):
            formatter.set_useOffset(False)  # 35.31 instead of 0.01 with an offset in the corner
    axes.grid(axis=grid, color="0.9", linewidth=0.5)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_linewidth(0.6)
    if x:
        axes.set_xlabel(x, fontsize=TEXT)
    if y:
        axes.set_ylabel(y, fontsize=TEXT)


def log_ticks(axis: Axis, places: Sequence[float] = (), text: str = "{x:g}", most: int = _MAX_TICKS) -> None:
    """Label a logarithmic axis with plain numbers: at `places`, else at up to `most` round numbers."""
    low, high = sorted(axis.get_view_interval())
    for digits in () if places else _TICK_DIGITS:
        places = [p for power in range(-9, 10) for d in digits if low <= (p := d * 10.0**power) <= high]
        if len(places) <= most:
            break
    if len(places) < 2:
        places = [place for place in MaxNLocator(4).tick_values(low, high) if low <= place <= high]
    axis.set_major_locator(FixedLocator(list(places)))
    axis.set_major_formatter(text)
    axis.set_minor_locator(NullLocator())


def spaced_ticks(values: Iterable[float], ratio: float = 1.5) -> list[float]:
    """Return the sorted values without those whose labels would overlap on a logarithmic axis."""
    kept: list[float] = []
    for value in sorted(set(values)):
        if not kept or value >= ratio * kept[-1]:
            kept.append(value)
    return kept


def look_of(marker: Marker, hollow: bool, **more: Any) -> dict[str, Any]:
    """Return the look of the points of a series: hollow if their values are predicted."""
    face = "white" if hollow else marker.colour
    return {"marker": marker.shape, "color": marker.colour, "markerfacecolor": face, **more}


def hollow_points(axes: Axes, x: Sequence[float], y: Sequence[float], marker: Marker) -> None:
    """Draw unfilled markers, which stand for predictions."""
    axes.plot(x, y, marker=marker.shape, color=marker.colour, **HOLLOW)


def entry(label: str, **style: Any) -> Line2D:
    """Return the legend entry of a line, or of its markers."""
    return Line2D([], [], label=label, **style)


def points_entry(label: str, marker: Marker, **style: Any) -> Line2D:
    """Return the legend entry of points without a line, unfilled by default."""
    return entry(label, **{"marker": marker.shape, "color": marker.colour, **HOLLOW, **style})


def write_beside(
    axes: Axes, x: float, y: float, text: str, right: float, above: float = 0.0, **style: Any
) -> Annotation:
    """Write a text beside a data point, `right` and `above` it in points; negative numbers mean left and below."""
    look = {"va": "center_baseline", "fontsize": SMALL, "annotation_clip": False, **style}
    return axes.annotate(text, (x, y), (right, above), textcoords="offset points", **look)


def end_label(axes: Axes, x: float, y: float, text: str, colour: str) -> Annotation:
    """Write a name to the right of a data point, and connect both by a thin line; see :func:`move_apart`."""
    line = {"arrowstyle": "-", "color": colour, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 2, "relpos": (0, 0.5)}
    dimmed = ON_WHITE["bbox"] | {"alpha": 0.7}  # markers behind the name stay visible
    return write_beside(axes, x, y, text, 12, va="center", color="0.15", arrowprops=line, bbox=dimmed)


def move_apart(figure: Figure, panels: Sequence[Sequence[Annotation]]) -> None:
    """Move the labels of each panel up and down so that they do not overlap; the figure must be complete.

    A label that would cover a marker is moved to the right of it, if that is near: far away, the label would no longer
    be read with its own point.
    """
    figure.draw_without_rendering()
    for labels in panels:
        _stack(labels)
        if _move_past_markers(labels):
            _stack(labels)


def _stack(labels: Sequence[Annotation]) -> None:
    """Move the labels up and down, beginning at the heights of their points."""
    columns: list[list[tuple[float, Annotation]]] = []  # labels that overlap horizontally
    right = float("-inf")
    for label in labels:
        label.xyann = (label.xyann[0], 0)
    for box, label in sorted(((_text_box(label), label) for label in labels), key=lambda one: one[0].x0):
        if box.x0 > right:
            columns.append([])
        columns[-1].append(((box.y0 + box.y1) / 2, label))
        right = max(right, box.x1)
    for column in columns:
        column.sort(key=lambda one: one[0])
        axes = column[0][1].axes
        assert isinstance(axes, Axes)
        highest = axes.bbox.y1 * _points(axes) - _LABEL_DISTANCE / 2  # a higher label would cover the title of the axes
        for (height, label), place in zip(column, _spread([height for height, _ in column], highest), strict=True):
            label.xyann = (label.xyann[0], place - height)


def _move_past_markers(labels: Sequence[Annotation]) -> bool:
    """Move every label that covers a marker to the right of it, if that is near; return whether any was moved."""
    moved, reach = False, _MARKER / 2
    lines = [line for axes in {label.axes for label in labels} if isinstance(axes, Axes) for line in axes.lines]
    marked = [line for line in lines if line.get_marker() not in ("", "None", None)]
    centres = [xy * _points(line) for line in marked for xy in line.get_transform().transform(line.get_xydata())]
    for label in labels:
        box = _text_box(label)
        covered = [x for x, y in centres if box.x0 - reach < x < box.x1 + reach and box.y0 - reach < y < box.y1 + reach]
        if covered and (distance := max(covered) + _MARKER - box.x0) <= _NEAR:
            label.xyann = (label.xyann[0] + distance, label.xyann[1])
            moved = True
    return moved


def _text_box(label: Annotation) -> Bbox:
    """Return the box of the text without its line, in points."""
    label.get_window_extent()  # computes the place
    return Text.get_window_extent(label).transformed(Affine2D().scale(_points(label)))


def _points(artist: Artist) -> float:
    """Return the size of a pixel in points."""
    assert artist.figure is not None
    return 72 / artist.figure.dpi


def _spread(heights: Sequence[float], highest: float) -> list[float]:
    """Return sorted heights moved to a minimum distance, at most to `highest`; a cluster keeps its mean if it can."""
    clusters: list[list[float]] = []
    for height in heights:
        clusters.append([height])
        while len(clusters) > 1 and _top(clusters[-2]) > 2 * fmean(clusters[-1]) - _top(clusters[-1]):
            clusters[-2:] = [clusters[-2] + clusters[-1]]
    places = [
        fmean(cluster) + _LABEL_DISTANCE * (n - (len(cluster) - 1) / 2)
        for cluster in clusters
        for n in range(len(cluster))
    ]
    ceiling = highest
    for n in reversed(range(len(places))):
        places[n] = min(places[n], ceiling)
        ceiling = places[n] - _LABEL_DISTANCE
    return places


def _top(cluster: Sequence[float]) -> float:
    return fmean(cluster) + _LABEL_DISTANCE * len(cluster) / 2


def bar_style(kind: str, colour: str) -> dict[str, Any]:
    """Return the fill of a bar: measured solid, predicted hollow and hatched, published dotted."""
    fill = colour if kind == "measured" else "white"
    return {"facecolor": fill, "edgecolor": colour, "hatch": HATCHES[kind], "linewidth": 0.8}


def kind_patches(kinds: Sequence[str]) -> list[Patch]:
    """Return legend entries for the fills of measured, predicted and published values."""
    return [Patch(label=kind, **bar_style(kind, "0.45")) for kind in HATCHES if kind in kinds]


def save(figure: Figure, stem: Path) -> tuple[Path, Path]:
    """Write `<stem>.png` (300 dpi) and `<stem>.pdf` and return the two paths.

    Each file is written atomically and contains no date or version, so that the same figure gives the same bytes.

    Raises:
        OSError: a file cannot be written.
    """
    png, pdf = (replace_file(stem.with_name(f"{stem.name}.{end}"), _rendered(figure, end)) for end in ("png", "pdf"))
    return png, pdf


def _rendered(figure: Figure, file_format: str) -> bytes:
    options: dict[str, dict[str, Any]] = {
        "png": {"metadata": {"Software": None}, "pil_kwargs": {"compress_level": 0}},  # compressed once, at the end
        "pdf": {"metadata": {"CreationDate": None, "Creator": None, "Producer": None}},
    }
    buffer = BytesIO()
    with mpl.rc_context(_STYLE):
        figure.savefig(buffer, format=file_format, dpi=300, **options[file_format])
    if file_format == "pdf":
        return buffer.getvalue()
    return _compressed(buffer, palette=not figure.findobj(lambda artist: isinstance(artist, AxesImage | QuadMesh)))


def _compressed(png: BytesIO, palette: bool) -> bytes:
    """Return the picture without transparency; a palette more than halves the bytes of a drawing.

    Most of the hundreds or thousands of colours of a drawing are shades at the edges of letters and lines. Pictures
    with a colour map keep all colours, because a palette of 256 colours would change the values that they show.
    """
    from PIL import Image

    with Image.open(png) as opened:
        picture = opened.convert("RGB")
    if palette and picture.getcolors(_MAX_COLOURS) is not None:
        picture = picture.quantize(256, dither=Image.Dither.NONE)
    buffer = BytesIO()
    picture.save(buffer, format="png", dpi=(300, 300))
    return buffer.getvalue()
