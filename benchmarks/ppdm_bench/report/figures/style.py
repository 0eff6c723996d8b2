"""The look that all figures share, and how they are saved.

Figures are made for a two-column paper at their real size. No global state of matplotlib is changed: a figure is a
`Figure`, never one of pyplot's.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
import seaborn
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, ScalarFormatter

from ppdm_bench.report.atomic_io import replace_file

Column = Literal["single", "double"]

WIDTHS = {"single": 3.5, "double": 7.16}  # inches: one column and the full width of a two-column page
TEXT = 7.5  # points; SMALL is the least that is read at this size on paper
SMALL = 7.0

# Told apart with any common colour vision.
BLUE, ORANGE, GREEN, VERMILION, PURPLE, BROWN, PINK, GREY, YELLOW, SKY = seaborn.color_palette("colorblind").as_hex()
# One after the other for what has no colour of its own: from the most to the least distinct, light ones left out.
SERIES = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, "#000000", BROWN)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")

# How a value came about is seen in every bar, whatever its colour.
HATCHES = {"measured": "", "predicted": "//////", "published": "......"}

_COLOURS_OF_A_DRAWING = 8192

# Text as text in PDF (TrueType, not Type 3), as publishers ask; the font is the one that matplotlib brings along.
_STYLE: dict[Any, Any] = {"pdf.fonttype": 42, "font.family": "DejaVu Sans", "hatch.linewidth": 0.6}


def new_figure(column: Column, height: float) -> Figure:
    """Return an empty figure of one or two columns' width and `height` inches.

    Raises:
        ValueError: `column` is neither `single` nor `double`.
    """
    if column not in WIDTHS:
        raise ValueError(f"a figure is `single` or `double` column wide, got {column!r}")
    figure = Figure(figsize=(WIDTHS[column], height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.04, h_pad=0.04)  # type: ignore[union-attr, call-arg]
    return figure


def title(figure: Figure, text: str) -> None:
    """Set what the figure shows above it, broken to its width."""
    characters = int(figure.get_figwidth() * 17.5)
    figure.suptitle(textwrap.fill(text, characters), x=0.012, ha="left", fontsize=TEXT)


def folded(name: str, characters: int) -> str:
    """Return a name in lines of at most so many characters, as far as it can be broken: at blanks, and after a plus."""
    lines = [""]
    for piece in re.findall(r"[^ +]+[ +]*", name):
        if lines[-1] and len(lines[-1] + piece.rstrip()) > characters:
            lines.append("")
        lines[-1] += piece
    return "\n".join(line.rstrip() for line in lines)


def legend(figure: Figure, handles: Sequence[Artist], columns: int) -> None:
    """Set the legend below everything, where no data are."""
    figure.legend(
        handles=list(handles),
        loc="outside lower center",
        ncols=columns,
        fontsize=SMALL,
        frameon=False,
        handlelength=1.8,
        columnspacing=1.4,
    )


def plain_axes(axes: Axes, grid: Literal["x", "y", "both"]) -> None:
    """Draw ticks at reading size, a light grid behind the data, and no box."""
    axes.tick_params(labelsize=SMALL, length=2.5, width=0.6)
    axes.tick_params(which="minor", length=1.5, width=0.4)
    for formatter in (axis.get_major_formatter() for axis in (axes.xaxis, axes.yaxis)):
        if isinstance(formatter, ScalarFormatter):
            formatter.set_useOffset(False)  # 35.31, not .01 with an offset in the corner
    axes.grid(axis=grid, color="0.9", linewidth=0.5)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_linewidth(0.6)


def decades(digits: Sequence[float]) -> FixedLocator:
    """Return ticks of a logarithmic axis that is shorter than a few decades, on which matplotlib's own are too few."""
    return FixedLocator([digit * 10.0**power for power in range(-6, 7) for digit in digits])


def bar_style(kind: str, colour: str) -> dict[str, Any]:
    """Return how a bar is filled: measured solid, predicted hollow and hatched, published dotted."""
    fill = colour if kind == "measured" else "white"
    return {"facecolor": fill, "edgecolor": colour, "hatch": HATCHES[kind], "linewidth": 0.8}


def kind_patches(kinds: Sequence[str]) -> list[Patch]:
    """Return legend entries that say which fill means measured, predicted, published."""
    return [Patch(label=kind, **bar_style(kind, "0.45")) for kind in HATCHES if kind in kinds]


def save(figure: Figure, stem: Path) -> tuple[Path, Path]:
    """Write `<stem>.png` (300 dpi) and `<stem>.pdf` and return the two paths.

    Each file is whole or not there, and carries no date or version: the same figure gives the same bytes.

    Raises:
        OSError: the place cannot be written.
    """
    png, pdf = (replace_file(stem.with_name(f"{stem.name}.{end}"), _rendered(figure, end)) for end in ("png", "pdf"))
    return png, pdf


def _rendered(figure: Figure, file_format: str) -> bytes:
    undated = {"png": {"Software": None}, "pdf": {"CreationDate": None, "Creator": None, "Producer": None}}
    buffer = BytesIO()
    unpacked: dict[str, Any] = {"png": {"pil_kwargs": {"compress_level": 0}}, "pdf": {}}  # it is packed once, at last
    with mpl.rc_context(_STYLE):
        figure.savefig(buffer, format=file_format, dpi=300, metadata=undated[file_format], **unpacked[file_format])
    return _few_colours(buffer) if file_format == "png" else buffer.getvalue()


def _few_colours(png: BytesIO) -> bytes:
    """The picture without transparency and with a palette, in less than half the bytes: figures fill a repository.

    A drawing has hundreds or thousands of colours, most of them shades at edges of letters and lines; one with more is
    left as it is.
    """
    from PIL import Image

    with Image.open(png) as opened:
        picture = opened.convert("RGB")
    if picture.getcolors(_COLOURS_OF_A_DRAWING) is not None:
        picture = picture.quantize(256, dither=Image.Dither.NONE)
    buffer = BytesIO()
    picture.save(buffer, format="png", dpi=(300, 300))
    return buffer.getvalue()
