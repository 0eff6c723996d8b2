"""A grid of pictures with a common scale and room for labels.

Lengths on paper are in inches, sizes of the shown volumes in mm.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, Literal

from matplotlib.axes import Axes

from ppdm_bench.report.figures import style
from ppdm_bench.report.figures.style import SMALL, WIDTHS, Column

MAX_HEIGHT = 9.0  # of a figure on a page
MIN_ROW_HEIGHT = 0.2
EDGE, GAP, LINE = 0.05, 0.04, 0.15  # LINE: height of a line of text
FOOT = 0.19
NAME = 0.18  # width of the name of a row
BAR, BAR_TEXT, BAR_GAP = 0.08, 0.45, 0.06
_CHARACTERS = 16.0  # per inch at text size SMALL
_TOP = 0.02  # fraction of the height above style.title


class ImageGrid:
    """Rows and columns of pictures.

    Args:
        title: text above the figure.
        column: width of the figure.
        widths, heights: sizes of columns and rows in mm.
        names: whether rows have names on their left.
        bars: whether there is room for colour bars on the right.
        captions: which rows have a line of text above their pictures: the first or every row.

    Attributes:
        figure: the figure.

    Raises:
        ValueError: the rows do not fit on a page.
    """

    def __init__(
        self,
        title: str,
        column: Column,
        widths: Sequence[float],
        heights: Sequence[float],
        *,
        names: bool,
        bars: bool,
        captions: Literal["first", "every"],
    ) -> None:
        self.figure = style.new_figure(column, height=1)
        self.figure.set_layout_engine("none")
        style.title(self.figure, title)
        lines = [LINE if captions == "every" or row == 0 else 0.0 for row in range(len(heights))]
        self._width, left = WIDTHS[column], EDGE + NAME * names
        room = self._width - left - EDGE - (BAR_GAP + BAR + BAR_TEXT) * bars - GAP * (len(widths) - 1)
        head = LINE * (1 + self.figure.get_suptitle().count("\n"))
        fixed = head + sum(lines) + GAP * (len(heights) - 1) + FOOT
        tallest = (1 - _TOP) * MAX_HEIGHT - fixed
        if tallest < MIN_ROW_HEIGHT * len(heights):
            raise ValueError(f"{len(heights)} rows of pictures do not fit on a page; show fewer, or more in a row")
        self._scale = min(room / sum(widths), tallest / sum(heights))
        self._widths = [size * self._scale for size in widths]
        self._heights = [size * self._scale for size in heights]
        self._height = (fixed + sum(self._heights)) / (1 - _TOP)
        self.figure.set_figheight(self._height)
        self._lefts = _starts(left + (room - sum(self._widths)) / 2, self._widths)
        rows = [line + height for line, height in zip(lines, self._heights, strict=True)]
        tops = _starts(_TOP * self._height + head, rows)  # from the upper edge of the figure
        self._bottoms = [self._height - top - row for top, row in zip(tops, rows, strict=True)]

    def cell(self, row: int, column: int, size: tuple[float, float]) -> Axes:
        """Return framed axes without ticks, centred in a cell, for a picture of `size` (width, height) in mm."""
        width, height = (length * self._scale for length in size)
        x = self._lefts[column] + (self._widths[column] - width) / 2
        y = self._bottoms[row] + (self._heights[row] - height) / 2
        axes = self._axes(x, y, width, height)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set(linewidth=0.4, color="0.6")
        return axes

    def bar(self, row: int, unit: str) -> Axes:
        """Return axes for a colour bar on the right of a row, with the unit above it."""
        x, bottom, height = self._lefts[-1] + self._widths[-1] + BAR_GAP, self._bottoms[row], self._heights[row]
        self._write(x, bottom + height, unit, ha="left", va="top")
        return self._axes(x, bottom + 0.06 * height, BAR, max(0.94 * height - LINE, 0.1 * height))

    def caption(self, row: int, column: int, text: str, columns: int = 1) -> None:
        """Write a line of text above a cell, or above this number of cells side by side."""
        left, last = self._lefts[column], column + columns - 1
        width = self._lefts[last] + self._widths[last] - left
        y = self._bottoms[row] + self._heights[row]
        self._write(left + width / 2, y + 0.03, _shortened(text, width + GAP), ha="center", va="bottom")

    def name(self, row: int, text: str) -> None:
        """Write the name of a row vertically beside its first picture."""
        height = self._heights[row]
        x, y = self._lefts[0] - NAME + 0.06, self._bottoms[row] + height / 2
        self._write(x, y, _shortened(text, height), ha="center", va="center", rotation="vertical")

    def footnote(self, text: str) -> None:
        """Write a line of text below the pictures."""
        self._write(EDGE, EDGE, text, ha="left", va="bottom", color="0.35")

    def _axes(self, x: float, y: float, width: float, height: float) -> Axes:
        bounds = x / self._width, y / self._height, width / self._width, height / self._height
        return self.figure.add_axes(bounds)

    def _write(self, x: float, y: float, text: str, **style: Any) -> None:
        self.figure.text(x / self._width, y / self._height, text, fontsize=SMALL, **style)


def _starts(first: float, sizes: Sequence[float]) -> list[float]:
    """Return the start of each of several adjacent lengths, with gaps between them."""
    return [first + GAP * i + end - size for i, (size, end) in enumerate(zip(sizes, accumulate(sizes), strict=True))]


def _shortened(text: str, inches: float) -> str:
    """Return the text; if it is too long, without its middle."""
    room = max(3, int(inches * _CHARACTERS))
    return text if len(text) <= room else f"{text[: room // 2]}…{text[len(text) - (room - 1) // 2 :]}"
