"""The renderer of all tables: CSV for programs, Markdown and aligned text for people, LaTeX for a paper.

A table module defines columns. A ``Heading`` states how values are shown, how important the column is, and which note
explains it. A ``Page`` puts tables between paragraphs and writes them.
"""

from __future__ import annotations

import csv
import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

from ppdm_bench.grouping import grouped
from ppdm_bench.report.atomic_io import replace_file

if TYPE_CHECKING:
    import pandas as pd

NO_VALUE = "–"
ROWS_PER_PAGE = 50  # at 10 points
TERMINAL_WIDTH = 100  # columns of a terminal
_MIN_TEXT_WIDTH = 22  # characters; a column of words is wrapped to this width before another column is left out
_MAX_WORD_WIDTH = 40  # characters; a longer word is broken
_MAX_RANK_IN_LATEX = 1  # LaTeX leaves out columns of a higher rank

T = TypeVar("T")
Columns = dict["Heading", Callable[[T], Any]]  # by heading, a function that returns the value of an object
Best = Literal["", "max", "min"]


class TextCell(NamedTuple):
    """A value with its own text, for cells that the format of the column cannot express."""

    value: Any
    text: str


@dataclass(frozen=True)
class Heading:
    """A column.

    Attributes:
        key: name in CSV, whose values are raw.
        text: name for people, with the unit; by default the key in words.
        show: formats a value for people.
        number: whether the values are numbers, which are aligned to the right.
        rank: importance, 0 for the most important columns; a terminal leaves out the highest ranks first, LaTeX those
            above 1.
        best: which value LaTeX sets in bold; by default the arrow in `text` decides.
        note: a sentence below the table that explains the column; shown only if the column is shown.
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
        """Return a value for people: negative numbers have a minus sign, and a dash means that there is no value."""
        if value is None or value == "":
            return NO_VALUE
        shown = value.text if isinstance(value, TextCell) else self.show(value)
        return f"−{shown[1:]}" if self.number and shown.startswith("-") else shown

    def is_called(self, name: str) -> bool:
        """Whether a name that a user typed means this column."""
        return _normalized(name) in (_normalized(self.key), _normalized(self.text))


@dataclass(frozen=True)
class TableRow:
    """A row: one value per column (None if there is none), and the sources of the values."""

    cells: tuple[Any, ...]
    sources: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """Rows under headings.

    Attributes:
        within: keys of columns; LaTeX marks the best value among the rows that are equal in these columns.

    Raises:
        ValueError: the number of cells in a row differs from the number of headings.
    """

    headings: Sequence[Heading]
    rows: Sequence[TableRow]
    within: Collection[str] = ()

    def __post_init__(self) -> None:
        if wrong := [line for line in self.rows if len(line.cells) != len(self.headings)]:
            raise ValueError(f"a row has {len(wrong[0].cells)} cells under {len(self.headings)} headings")

    def texts(self) -> list[list[str]]:
        """Return the texts of all cells, for people."""
        return [[h.cell(value) for h, value in zip(self.headings, line.cells, strict=True)] for line in self.rows]

    def select(self, headings: Sequence[Heading]) -> Table:
        """Return the table with only these columns, in this order."""
        places = [self.headings.index(heading) for heading in headings]
        lines = [TableRow(tuple(line.cells[place] for place in places), line.sources) for line in self.rows]
        return Table(headings, lines, self.within)

    def without_empty(self) -> Table:
        """Return the table without columns in which every cell is a dash."""
        rows = self.texts()
        return self.select([h for place, h in enumerate(self.headings) if {row[place] for row in rows} != {NO_VALUE}])


def table_of(
    rows: Iterable[T],
    columns: Columns[T],
    within: Collection[str] = (),
    sources: Callable[[T], tuple[str, ...]] = lambda row: (),
) -> Table:
    """Return a table with one row for each object; `sources` returns those of an object."""
    lines = [TableRow(tuple(value(row) for value in columns.values()), sources(row)) for row in rows]
    return Table([*columns], lines, within)


def data_frame(lines: Sequence[Mapping[str, Any]], dtypes: Mapping[str, str]) -> pd.DataFrame:
    """Return rows as a data frame with these columns and types; absent values are missing values."""
    import pandas as pd

    return pd.DataFrame({c: pd.Series([line.get(c) for line in lines], dtype=t) for c, t in dtypes.items()})


def frame_rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows of a data frame; missing values are None."""
    rows = frame.astype(object).where(frame.notna(), None).to_dict("records")
    return [{str(name): value for name, value in row.items()} for row in rows]


@dataclass(frozen=True)
class Page:
    """The output of a command: paragraphs and tables in reading order, and the content as data."""

    parts: Sequence[str | Table]
    data: pd.DataFrame | None = None

    def plus(self, part: str | Table | None) -> Page:
        """Return the page with one more part at its end; nothing is added for None and an empty text."""
        return replace(self, parts=[*self.parts, part]) if part else self

    def to_csv(self) -> str:
        """Return the data as CSV with six significant digits; empty if the page has no data."""
        return "" if self.data is None else self.data.to_csv(index=False, float_format="%.6g", lineterminator="\n")

    def to_markdown(self) -> str:
        """Return paragraphs and tables with all columns."""
        return "\n\n".join(_rendered(self.parts, lambda table: to_markdown(table).rstrip("\n"))) + "\n"

    def to_latex(self, columns: Sequence[str] = ()) -> str:
        """Return the tables, each with the chosen columns or else the important ones (see :func:`to_latex`)."""
        return "\n".join(to_latex(_chosen(part, columns)) for part in self.parts if isinstance(part, Table))

    def to_text(self, columns: Sequence[str] = (), width: int = TERMINAL_WIDTH) -> str:
        """Return paragraphs and tables for a terminal.

        Args:
            columns: names of columns to show beside the first; empty for those that fit. A table without any of them is
                shown as without ``columns``. An unknown name is reported below the tables and is not an error, because
                the records may have taken hours.
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
        """Write `<stem>.csv`, `<stem>.md` and `<stem>.tex` atomically, and return their paths."""
        texts = {".csv": self.to_csv(), ".md": self.to_markdown(), ".tex": self.to_latex(columns)}
        return [replace_file(stem.with_name(stem.name + end), text.encode()) for end, text in texts.items() if text]

    def _fitted(self, table: Table, columns: Sequence[str], width: int) -> Table:
        chosen = _chosen(table, columns)
        return _without_least_important(table, width) if chosen is table else chosen


def _rendered(parts: Sequence[str | Table], render: Callable[[Table], str]) -> Iterator[str]:
    """Yield the rendered parts; the notes of all shown columns follow the last table."""
    tables = [part for part in parts if isinstance(part, Table)]
    notes = dict.fromkeys(heading.note for table in tables for heading in table.headings if heading.note)
    for part in parts:
        yield part if isinstance(part, str) else render(part)
        if tables and part is tables[-1] and notes:
            yield " ".join(notes)


def _chosen(table: Table, columns: Sequence[str]) -> Table:
    """Return the table with its first column and those with these names; unchanged if it has none of them."""
    found = dict.fromkeys(heading for name in columns for heading in table.headings[1:] if heading.is_called(name))
    return table.select([table.headings[0], *found]) if found else table


def _normalized(name: str) -> str:
    """Return a name in lower case, without units, spaces, arrows and other signs."""
    return re.sub(r"[^\w/=]|_", "", re.sub(r"\b(gib|db)\b", "", name.lower()))


def to_csv(table: Table) -> str:
    """Return the table as CSV: raw values (floats with six significant digits) and the sources of each row."""
    buffer = StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([*(heading.key for heading in table.headings), "records"])
    for line in table.rows:
        writer.writerow([*map(_raw, line.cells), " ".join(line.sources)])
    return buffer.getvalue()


def to_markdown(table: Table) -> str:
    """Return the table as Markdown."""
    rule = ["---:" if heading.number else "---" for heading in table.headings]
    rows = [[heading.text for heading in table.headings], rule, *table.texts()]
    return "\n".join("| " + " | ".join(map(_in_one_line, row)) + " |" for row in rows) + "\n"


def _in_one_line(cell: str) -> str:
    return " ".join(cell.split()).replace("|", "\\|")


def to_text(table: Table, width: int = TERMINAL_WIDTH) -> str:
    """Return the table as aligned text; if it is wider than `width`, headings and words are wrapped."""
    rows = [[heading.text for heading in table.headings], *table.texts()]
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
    """Return the width of each column: that of its cells; in too wide a table, headings and then words are wrapped."""
    rows = table.texts()
    cells = [max((len(row[place]) for row in rows), default=0) for place in range(len(table.headings))]
    widths = [max(len(h.text), size) for h, size in zip(table.headings, cells, strict=True)]
    if _total_width(widths) > width:
        longest = [max(map(len, h.text.split()), default=1) for h in table.headings]
        widths = [max(word, size) for word, size in zip(longest, cells, strict=True)]
    words = [max((len(word) for row in rows for word in row[place].split()), default=0) for place in range(len(cells))]
    least = [min(max(_MIN_TEXT_WIDTH, word), _MAX_WORD_WIDTH, size) for word, size in zip(words, widths, strict=True)]
    foldable = [place for place, heading in enumerate(table.headings) if not heading.number]
    while (excess := _total_width(widths) - width) > 0:
        wide = [place for place in foldable if widths[place] > least[place]]
        if not wide:
            break
        widest = max(wide, key=lambda place: widths[place])
        second = max((widths[place] for place in wide if place != widest), default=0)
        widths[widest] = max(widths[widest] - excess, min(second, widths[widest] - 1), least[widest])
    return widths


def _total_width(widths: Sequence[int]) -> int:
    return sum(widths) + 2 * (len(widths) - 1)


def _without_least_important(table: Table, width: int) -> Table:
    """Drop columns until the table fits: those of the highest rank first, and within a rank from right to left."""
    while _total_width(_widths(table, width)) > width:
        least = max(table.headings, key=lambda heading: (heading.rank, table.headings.index(heading)))
        if not least.rank:
            break
        table = table.select([heading for heading in table.headings if heading != least])
    return table


def to_latex(table: Table) -> str:
    """Return the table in the style of booktabs, with the best value of a column in bold.

    It is a `tabular`, to be put into a `table` with a caption. With more rows than fit on a page, it is a `longtable`,
    which continues on the next page and repeats its head there. A column with the same words in all rows becomes a
    comment.
    """
    table, shared = _split_constant_columns(table.select([h for h in table.headings if h.rank <= _MAX_RANK_IN_LATEX]))
    align = "".join("r" if heading.number else "l" for heading in table.headings)
    head = [r"\toprule", " & ".join(escape_latex(heading.text) for heading in table.headings) + r" \\", r"\midrule"]
    best = _best_places(table)
    rows = [
        " & ".join(_latex_cell(cell, (x, y) in best) for x, cell in enumerate(row)) + r" \\"
        for y, row in enumerate(table.texts())
    ]
    comments, kind = [r"% \usepackage{booktabs}"], "tabular"
    if len(rows) > ROWS_PER_PAGE:
        comments, kind = [*comments, r"% \usepackage{longtable}"], "longtable"
        head.append(r"\endhead")
    comments += [f"% in all rows: {escape_latex(shared)}"] * bool(shared)
    begin, end = rf"\begin{{{kind}}}{{@{{}}{align}@{{}}}}", rf"\end{{{kind}}}"
    return "\n".join([*comments, begin, *head, *rows, r"\bottomrule", end]) + "\n"


def _split_constant_columns(table: Table) -> tuple[Table, str]:
    """Return the table without the columns of words in which all rows are equal, and these words."""
    rows = table.texts()
    shared = {
        heading: rows[0][place]
        for place, heading in enumerate(table.headings)
        if place and not heading.best and len(rows) > 1 and len({row[place] for row in rows}) == 1
    }
    words = [f"{heading.text} {cell}" for heading, cell in shared.items() if cell != NO_VALUE]
    return table.select([heading for heading in table.headings if heading not in shared]), ", ".join(words)


def _best_places(table: Table) -> set[tuple[int, int]]:
    """Return the places (column, row) of the best of two or more values, among rows that are equal in `within`."""
    keys = [heading.key for heading in table.headings]
    within = [keys.index(key) for key in table.within if key in keys]
    groups = grouped(range(len(table.rows)), lambda y: tuple(table.rows[y].cells[place] for place in within))
    found, shown = set(), table.texts()
    for x, heading in enumerate(table.headings):
        choose = {"max": max, "↑": max, "min": min, "↓": min}.get(heading.best or heading.text[-1:])
        for places in groups.values() if choose else ():
            values = {y: value for y in places if (value := _value(table.rows[y].cells[x])) is not None}
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
    """Escape text for LaTeX; an unknown character is replaced by the nearest ASCII characters, or by its code."""
    return "".join(_LATEX.get(sign) or _ascii(sign) for sign in " ".join(text.split()))


def _ascii(sign: str) -> str:
    if sign.isascii():
        return sign
    nearest = unicodedata.normalize("NFKD", sign).encode("ascii", "ignore").decode()
    return nearest or f"[U+{ord(sign):04X}]"


def _raw(value: Any) -> str:
    value = _value(value)
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
