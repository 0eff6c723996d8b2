"""The renderer of all tables: CSV for programs, Markdown and aligned text for people, LaTeX for a paper.

A table module defines columns. A ``Heading`` says how a value is shown, how important its column is, and what explains
it; a ``Page`` puts tables between paragraphs and writes them.
"""

from __future__ import annotations

import csv
import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

from ppdm_bench.grouping import grouped
from ppdm_bench.report.atomic_io import replace_file

if TYPE_CHECKING:
    import pandas as pd

NOTHING = "–"
ROWS_OF_A_PAGE = 50  # at 10 points
TERMINAL = 100  # columns of a terminal
_NARROWEST = 22  # characters to which a column of words is folded before another column is left out
_WIDEST_WORD = 40  # characters of a word that is not broken
_IN_LATEX = 1  # the highest rank of a column that LaTeX has

T = TypeVar("T")
Columns = dict["Heading", Callable[[T], Any]]  # a function from an object to its value, by heading
Best = Literal["", "max", "min"]


class TextCell(NamedTuple):
    """A value with its own text, where the format of its column is not enough."""

    value: Any
    text: str


@dataclass(frozen=True)
class Heading:
    """A column.

    Attributes:
        key: its name in CSV, where values are raw.
        text: its name for people, with the unit; by default the key in words.
        show: formats a value for people.
        number: whether it holds numbers, which are aligned to the right.
        rank: 0 for what a reader needs first; a terminal leaves out the highest ranks first, LaTeX those above 1.
        best: which value LaTeX sets in bold; by default the arrow in `text` decides.
        note: the sentence that explains the column, shown below the table while the column is shown.
    """

    key: str
    text: str = ""
    show: Callable[[Any], str] = str
    number: bool = False
    rank: int = 0
    best: Best = ""
    note: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", self.text or self.key.replace("_", " "))

    def cell(self, value: Any) -> str:
        """Return a value for people: a negative number with a minus sign, and a dash if there is no value."""
        if value is None or value == "":
            return NOTHING
        shown = value.text if isinstance(value, TextCell) else self.show(value)
        return f"−{shown[1:]}" if self.number and shown.startswith("-") else shown

    def is_called(self, name: str) -> bool:
        """Whether a name, as one types it on a command line, is that of the column."""
        return _typed(name) in (_typed(self.key), _typed(self.text))


@dataclass(frozen=True)
class TableRow:
    """A row: one value per column (None if there is none), and the records that it comes from."""

    cells: tuple[Any, ...]
    sources: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """Rows under headings.

    Attributes:
        within: keys of columns; LaTeX marks the best of the rows that agree in them.

    Raises:
        ValueError: the number of cells in a row differs from the number of headings.
    """

    headings: Sequence[Heading]
    lines: Sequence[TableRow]
    within: Collection[str] = ()

    def __post_init__(self) -> None:
        if wrong := [line for line in self.lines if len(line.cells) != len(self.headings)]:
            raise ValueError(f"a row has {len(wrong[0].cells)} cells under {len(self.headings)} headings")

    def shown(self) -> list[list[str]]:
        """Return the cells for people."""
        return [[h.cell(value) for h, value in zip(self.headings, line.cells, strict=True)] for line in self.lines]

    def only(self, headings: Sequence[Heading]) -> Table:
        """Return the table with these of its columns, in this order."""
        places = [self.headings.index(heading) for heading in headings]
        lines = [TableRow(tuple(line.cells[place] for place in places), line.sources) for line in self.lines]
        return Table(headings, lines, self.within)

    def without_empty(self) -> Table:
        """Return the table without columns in which every cell is a dash."""
        rows = self.shown()
        return self.only([h for place, h in enumerate(self.headings) if {row[place] for row in rows} != {NOTHING}])


def table_of(
    rows: Iterable[T],
    columns: Columns[T],
    within: Collection[str] = (),
    sources: Callable[[T], tuple[str, ...]] = lambda row: (),
) -> Table:
    """Return a table of objects: each column has a heading and a function from an object to its value.

    Args:
        rows: one object for each row.
        columns: a function from an object to its value, by heading.
        within: as for :class:`Table`.
        sources: a function from an object to the records that it comes from.
    """
    lines = [TableRow(tuple(value(row) for value in columns.values()), sources(row)) for row in rows]
    return Table([*columns], lines, within)


def data_frame(lines: Sequence[Mapping[str, Any]], dtypes: Mapping[str, str]) -> pd.DataFrame:
    """Return rows as a frame with these columns; a value that a row does not have is missing."""
    import pandas as pd

    return pd.DataFrame({c: pd.Series([line.get(c) for line in lines], dtype=t) for c, t in dtypes.items()})


def frame_rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows of a frame; a missing value is None."""
    rows = frame.astype(object).where(frame.notna(), None).to_dict("records")
    return [{str(name): value for name, value in row.items()} for row in rows]


@dataclass(frozen=True)
class Page:
    """The output of a command: paragraphs and tables in reading order, and the same content as data."""

    parts: Sequence[str | Table]
    data: pd.DataFrame | None = None

    def to_csv(self) -> str:
        """Return the data as CSV with six significant digits; equal data give equal text."""
        return "" if self.data is None else self.data.to_csv(index=False, float_format="%.6g", lineterminator="\n")

    def to_markdown(self) -> str:
        """Return paragraphs and tables with all columns."""
        return "\n\n".join(_rendered(self.parts, lambda table: to_markdown(table).rstrip("\n"))) + "\n"

    def to_latex(self, columns: Sequence[str] = ()) -> str:
        """Return the tables, each with the chosen columns or else those of a paper."""
        return "\n".join(to_latex(_chosen(part, columns)) for part in self.parts if isinstance(part, Table))

    def to_text(self, columns: Sequence[str] = (), width: int = TERMINAL) -> str:
        """Return paragraphs and tables for a terminal.

        Args:
            columns: names of columns to show beside the first; empty: those that fit. A table without any of them
                stays as it is. A name that no table has is reported below, because records may have taken hours.
            width: characters per line of a table.
        """
        fitted = [self._fitted(part, columns, width) if isinstance(part, Table) else part for part in self.parts]
        texts = _rendered(fitted, lambda table: f"\n{to_text(table, width)}\n")
        headings = [heading for part in self.parts if isinstance(part, Table) for heading in part.headings]
        shown = [heading for part in fitted if isinstance(part, Table) for heading in part.headings]
        left = dict.fromkeys(heading.text for heading in headings if heading not in shown)
        unknown = [name for name in columns if not any(heading.is_called(name) for heading in headings)]
        remarks = [
            *[f"Not shown: {', '.join(left)} (--columns chooses)."] * bool(left and not columns),
            *[f"No column is called {name}; there are: {', '.join(h.text for h in headings)}." for name in unknown],
        ]
        return "\n".join([*texts, *remarks]) + "\n"

    def save(self, stem: Path, columns: Sequence[str] = ()) -> list[Path]:
        """Write `<stem>.csv`, `<stem>.md` and `<stem>.tex`, each completely or not at all, and return their paths."""
        texts = {".csv": self.to_csv(), ".md": self.to_markdown(), ".tex": self.to_latex(columns)}
        return [replace_file(stem.with_name(stem.name + end), text.encode()) for end, text in texts.items() if text]

    def _fitted(self, table: Table, columns: Sequence[str], width: int) -> Table:
        chosen = _chosen(table, columns)
        return _fitting(table, width) if chosen is table else chosen


def _rendered(parts: Sequence[str | Table], render: Callable[[Table], str]) -> Iterator[str]:
    """Render the parts; the notes of all shown columns follow the last table."""
    tables = [part for part in parts if isinstance(part, Table)]
    notes = dict.fromkeys(heading.note for table in tables for heading in table.headings if heading.note)
    for part in parts:
        yield part if isinstance(part, str) else render(part)
        if tables and part is tables[-1] and notes:
            yield " ".join(notes)


def _chosen(table: Table, columns: Sequence[str]) -> Table:
    """Return the first column and those with these names; a table that has none of them stays as it is."""
    found = dict.fromkeys(heading for name in columns for heading in table.headings[1:] if heading.is_called(name))
    return table.only([table.headings[0], *found]) if found else table


def _typed(name: str) -> str:
    """A name without case, units, spaces, arrows and other signs."""
    return re.sub(r"[^\w/=]|_", "", re.sub(r"\b(gib|db)\b", "", name.lower()))


def to_csv(table: Table) -> str:
    """Return raw values, floats with six significant digits, and the sources of each row."""
    buffer = StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([*(heading.key for heading in table.headings), "records"])
    for line in table.lines:
        writer.writerow([*map(_raw, line.cells), " ".join(line.sources)])
    return buffer.getvalue()


def to_markdown(table: Table) -> str:
    """Return the table for people."""
    rule = ["---:" if heading.number else "---" for heading in table.headings]
    rows = [[heading.text for heading in table.headings], rule, *table.shown()]
    return "\n".join("| " + " | ".join(map(_in_one_line, row)) + " |" for row in rows) + "\n"


def _in_one_line(cell: str) -> str:
    return " ".join(cell.split()).replace("|", "\\|")


def to_text(table: Table, width: int = TERMINAL) -> str:
    """Return the table as aligned text; headings and words are folded where the table is wider than `width`."""
    rows = [[heading.text for heading in table.headings], *table.shown()]
    widths = _widths(table, width)
    pads = [str.rjust if heading.number else str.ljust for heading in table.headings]
    lines = []
    for number, row in enumerate(rows):
        folded = [wrap(cell, room, break_on_hyphens=False) or [""] for cell, room in zip(row, widths, strict=True)]
        for place in range(max(map(len, folded), default=0)):
            cells = [cell[place] if place < len(cell) else "" for cell in folded]
            padded = (pad(cell, room) for pad, cell, room in zip(pads, cells, widths, strict=True))
            lines.append("  ".join(padded).rstrip())
        if number == 0:
            lines.append("  ".join("-" * room for room in widths))
    return "\n".join(lines)


def _widths(table: Table, width: int) -> list[int]:
    """Characters of each column: as wide as its cells; if that is too wide, headings and then words are folded."""
    rows = table.shown()
    cells = [max((len(row[place]) for row in rows), default=0) for place in range(len(table.headings))]
    widths = [max(len(h.text), size) for h, size in zip(table.headings, cells, strict=True)]
    if _total(widths) > width:
        longest = [max(map(len, h.text.split()), default=1) for h in table.headings]
        widths = [max(word, size) for word, size in zip(longest, cells, strict=True)]
    words = [max((len(word) for row in rows for word in row[place].split()), default=0) for place in range(len(cells))]
    least = [min(max(_NARROWEST, word), _WIDEST_WORD, size) for word, size in zip(words, widths, strict=True)]
    foldable = [place for place, heading in enumerate(table.headings) if not heading.number]
    while (excess := _total(widths) - width) > 0:
        wide = [place for place in foldable if widths[place] > least[place]]
        if not wide:
            break
        widest = max(wide, key=lambda place: widths[place])
        second = max((widths[place] for place in wide if place != widest), default=0)
        widths[widest] = max(widths[widest] - excess, min(second, widths[widest] - 1), least[widest])
    return widths


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + 2 * (len(widths) - 1)


def _fitting(table: Table, width: int) -> Table:
    """Drop columns until the table fits: the highest rank first; within a rank, the last column first."""
    while _total(_widths(table, width)) > width:
        least = max(table.headings, key=lambda heading: (heading.rank, table.headings.index(heading)))
        if not least.rank:
            break
        table = table.only([heading for heading in table.headings if heading != least])
    return table


def to_latex(table: Table) -> str:
    """Return the table in the style of booktabs, with the best value of a column in bold.

    It is a `tabular`, to be put into a `table` with the caption of the figure. With more rows than a page holds it is a
    `longtable`, which breaks over pages and repeats its head on each. A column in which all rows are equal becomes a
    comment, so that no word is repeated in every row.
    """
    table, shared = _apart_from_shared(table.only([h for h in table.headings if h.rank <= _IN_LATEX]))
    align = "".join("r" if heading.number else "l" for heading in table.headings)
    head = [r"\toprule", " & ".join(escape_latex(heading.text) for heading in table.headings) + r" \\", r"\midrule"]
    best = _best(table)
    rows = [
        " & ".join(_latex_cell(cell, (x, y) in best) for x, cell in enumerate(row)) + r" \\"
        for y, row in enumerate(table.shown())
    ]
    comments, kind = [r"% \usepackage{booktabs}"], "tabular"
    if len(rows) > ROWS_OF_A_PAGE:
        comments, kind = [*comments, r"% \usepackage{longtable}"], "longtable"
        head.append(r"\endhead")
    comments += [f"% in all rows: {escape_latex(shared)}"] * bool(shared)
    begin, end = rf"\begin{{{kind}}}{{@{{}}{align}@{{}}}}", rf"\end{{{kind}}}"
    return "\n".join([*comments, begin, *head, *rows, r"\bottomrule", end]) + "\n"


def _apart_from_shared(table: Table) -> tuple[Table, str]:
    """Separate the columns of words in which all rows are equal."""
    rows = table.shown()
    shared = {
        heading: rows[0][place]
        for place, heading in enumerate(table.headings)
        if place and not heading.best and len(rows) > 1 and len({row[place] for row in rows}) == 1
    }
    words = [f"{heading.text} {cell}" for heading, cell in shared.items() if cell != NOTHING]
    return table.only([heading for heading in table.headings if heading not in shared]), ", ".join(words)


def _best(table: Table) -> set[tuple[int, int]]:
    """Places (column, row) of the best values, of at least two, among the rows that agree in `within`."""
    keys = [heading.key for heading in table.headings]
    within = [keys.index(key) for key in table.within if key in keys]
    groups = grouped(range(len(table.lines)), lambda y: tuple(table.lines[y].cells[place] for place in within))
    found, shown = set(), table.shown()
    for x, heading in enumerate(table.headings):
        choose = {"max": max, "↑": max, "min": min, "↓": min}.get(heading.best or heading.text[-1:])
        for places in groups.values() if choose else ():
            values = {y: value for y in places if (value := _value(table.lines[y].cells[x])) is not None}
            if choose and len(values) > 1:
                best = choose(values, key=lambda y: values[y])
                found |= {(x, y) for y in values if shown[y][x] == shown[best][x]}
    return found


def _value(value: Any) -> Any:
    return value.value if isinstance(value, TextCell) else value


def _latex_cell(text: str, best: bool) -> str:
    return rf"\textbf{{{escape_latex(text)}}}" if best else escape_latex(text)


_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    **{sign: "\\" + sign for sign in "&%$#_{}"},
    "–": "--",
    "…": r"\ldots{}",
    "·": r"\textperiodcentered{}",
    **{sign: f"${code}$" for sign, code in {
        "×": r"\times", "±": r"\pm", "−": "-", "→": r"\rightarrow", "↑": r"\uparrow", "↓": r"\downarrow",
        "²": "^2", "³": "^3", "γ": r"\gamma", "λ": r"\lambda", "σ": r"\sigma", "≤": r"\le", "≥": r"\ge",
    }.items()},
}  # fmt: skip


def escape_latex(text: str) -> str:
    """Return text that LaTeX prints as it is; a sign unknown to it becomes its nearest in ASCII, or its code."""
    return "".join(_LATEX.get(sign) or _ascii(sign) for sign in " ".join(text.split()))


def _ascii(sign: str) -> str:
    if sign.isascii():
        return sign
    nearest = unicodedata.normalize("NFKD", sign).encode("ascii", "ignore").decode()
    return nearest or f"[U+{ord(sign):04X}]"


def _raw(value: Any) -> str:
    value = _value(value)
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
