"""Tables of figures: as CSV for programs, as Markdown for people, as LaTeX with booktabs for a paper."""

from __future__ import annotations

import csv
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import Any

__all__ = ["Heading", "Line", "Table", "escape_latex", "to_csv", "to_latex", "to_markdown"]

NOTHING = "–"
ROWS_OF_A_PAGE = 50  # at 10 points


def _text(value: Any) -> str:
    return str(value)


@dataclass(frozen=True)
class Heading:
    """A column.

    Attributes:
        key: its name in CSV, where values are raw.
        text: its name for people, with the unit.
        show: a value for people.
        number: whether it holds numbers, which stand on the right.
    """

    key: str
    text: str
    show: Callable[[Any], str] = _text
    number: bool = False

    def cell(self, value: Any) -> str:
        """The value for people, a negative number with a minus and not a hyphen; a dash where there is none."""
        if value is None or value == "":
            return NOTHING
        shown = self.show(value)
        return f"−{shown[1:]}" if self.number and shown.startswith("-") else shown


@dataclass(frozen=True)
class Line:
    """A row: a value a column (None where there is none), and the records that it comes from."""

    cells: tuple[Any, ...]
    sources: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """Rows under headings.

    Raises:
        ValueError: a row has another number of cells than there are headings.
    """

    headings: Sequence[Heading]
    lines: Sequence[Line]

    def __post_init__(self) -> None:
        if wrong := [line for line in self.lines if len(line.cells) != len(self.headings)]:
            raise ValueError(f"a row has {len(wrong[0].cells)} cells under {len(self.headings)} headings")

    def shown(self) -> list[list[str]]:
        """The cells for people."""
        return [[h.cell(value) for h, value in zip(self.headings, line.cells, strict=True)] for line in self.lines]


def to_csv(table: Table) -> str:
    """Return raw values, floats with six significant digits, and where each row comes from."""
    buffer = StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([*(heading.key for heading in table.headings), "records"])
    for line in table.lines:
        writer.writerow([*map(_raw, line.cells), " ".join(line.sources)])
    return buffer.getvalue()


def to_markdown(table: Table) -> str:
    """Return the table for people."""
    heads = [heading.text for heading in table.headings]
    rule = ["---:" if heading.number else "---" for heading in table.headings]
    rows = [heads, rule, *table.shown()]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows) + "\n"


def to_latex(table: Table) -> str:
    """Return the table in the style of booktabs.

    It is a `tabular`, to be put into a `table` with the caption of the figure, or, with more rows than a page holds, a
    `longtable`, which breaks over pages, repeats its head on each and stands for itself.
    """
    align = "".join("r" if heading.number else "l" for heading in table.headings)
    head = [r"\toprule", " & ".join(escape_latex(heading.text) for heading in table.headings) + r" \\", r"\midrule"]
    rows = [" & ".join(map(escape_latex, row)) + r" \\" for row in table.shown()]
    packages, kind = [r"% \usepackage{booktabs}"], "tabular"
    if len(rows) > ROWS_OF_A_PAGE:
        packages, kind = [*packages, r"% \usepackage{longtable}"], "longtable"
        head.append(r"\endhead")
    begin, end = rf"\begin{{{kind}}}{{@{{}}{align}@{{}}}}", rf"\end{{{kind}}}"
    return "\n".join([*packages, begin, *head, *rows, r"\bottomrule", end]) + "\n"


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
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
