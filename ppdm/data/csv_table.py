"""CSV tables as people and spreadsheet programs write them, with commas, semicolons or tabs between cells.

A byte-order mark, any line ends, blank lines, blanks around cells, trailing separators and Excel's first line ``sep=;``
are accepted.
"""

import csv
import io
import os
import re
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

_SEPARATORS = ",;\t"
_SPREADSHEETS = {b"PK\x03\x04": "a spreadsheet file (.xlsx or .ods)", b"\xd0\xcf\x11\xe0": "an old Excel file (.xls)"}
_DECIMAL_COMMA = re.compile(r"[+-]?\d*,\d+(?:[eE][+-]?\d+)?")


class TableError(ValueError):
    """A file is not a CSV table; the message gives the file and the remedy."""


@dataclass(frozen=True)
class CsvTable:
    """Cells of a CSV file, without blanks around them.

    Attributes:
        header: the names of the columns.
        rows: the line number and the cells of every row that is not blank, up to the first error.
        fault: the first error of the CSV syntax with its line; empty if there is none.
        decimal_comma: whether numbers may have a decimal comma, as in files that Excel separates by semicolons.
    """

    header: list[str]
    rows: list[tuple[int, list[str]]]
    fault: str = ""
    decimal_comma: bool = False

    def faults_of_header(self, required: tuple[str, ...], optional: tuple[str, ...]) -> list[str]:
        """Return the faults of the header: missing, repeated or misspelt columns; other columns are allowed."""
        known = required + optional
        found = ", ".join(repr(name) for name in self.header) or "none"
        plain = {_plain(name): name for name in known}
        return [
            *(f"column {name!r} is missing; found {found}" for name in required if name not in self.header),
            *(
                f"column {name!r} must be spelt {plain[_plain(name)]!r}; rename it"
                for name in self.header
                if name not in known and _plain(name) in plain
            ),
            *(
                f"column {name!r} appears twice"
                for name in dict.fromkeys(self.header)
                if name and self.header.count(name) > 1
            ),
        ]

    def near_names(self, required: tuple[str, ...], optional: tuple[str, ...]) -> list[str]:
        """Return remarks on columns that have no effect and are probably misspelt names of optional columns."""
        absent = [name for name in optional if name not in self.header]
        return [
            f"column {name!r} has no effect; is {near[0]!r} meant?"
            for name in self.header
            if name not in required and (near := get_close_matches(name, absent, 1, 0.8))
        ]

    def row(self, cells: list[str]) -> dict[str, str]:
        """Return the cells of a row by column.

        Raises:
            ValueError: the row has more or fewer cells than the header, or a cell in a column without a name.
        """
        if len(cells) != len(self.header):
            raise ValueError(f"{len(cells)} cells, expected {len(self.header)}; quote a cell that holds a separator")
        if stray := [cell for name, cell in zip(self.header, cells, strict=True) if cell and not name]:
            raise ValueError(f"cell {stray[0]!r} is in a column without a name; name the column in the first line")
        return {name: cell for name, cell in zip(self.header, cells, strict=True) if name}

    def number(self, cell: str) -> float:
        """Return the number in a cell.

        Raises:
            ValueError: the cell is not a number.
        """
        return float(cell.replace(",", ".") if self.decimal_comma and _DECIMAL_COMMA.fullmatch(cell) else cell)


def read_table(path: Path, required: tuple[str, ...], what: str, *, tsv: bool = False) -> CsvTable:
    """Read a table; the separator is the one that finds most of the required columns.

    Args:
        path: the file.
        required: columns that the table should have.
        what: its name in messages, such as ``manifest``.
        tsv: whether only tabs separate cells and quotes are no syntax, as in BIDS; quotes around cells are removed.

    Raises:
        TableError: the path is not a file, or the file cannot be read, is a spreadsheet file, or is not UTF-8 text.
    """
    text = _text(path, what)
    announced = re.match(r"sep=([,;\t])\r?\n", text)
    choice = "\t" if tsv else announced[1] if announced else _SEPARATORS
    separator = max(choice, key=lambda each: _matches(text, each, required))
    reader = csv.reader(
        io.StringIO(text, newline=""),
        delimiter=separator,
        strict=True,
        quoting=csv.QUOTE_NONE if tsv else csv.QUOTE_MINIMAL,
    )
    lines, fault = [], ""
    try:
        for cells in reader:
            lines.append((reader.line_num, [_unquoted(cell.strip()) if tsv else cell.strip() for cell in cells]))
    except csv.Error as error:
        fault = f"line {reader.line_num}: it is not CSV ({error})"
    filled = [(line, cells) for line, cells in lines[1 if announced else 0 :] if any(cells)]
    if not filled:
        return CsvTable([], [], fault)
    header = _trimmed(filled[0][1], 0)
    return CsvTable(header, [(n, _trimmed(cells, len(header))) for n, cells in filled[1:]], fault, separator == ";")


def _text(path: Path, what: str) -> str:
    if not os.path.isfile(path):
        raise TableError(f"{path} is not a file; name a CSV {what}.")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise TableError(f"{path} cannot be read ({error.strerror}).") from None
    if kind := _SPREADSHEETS.get(content[:4]):
        raise TableError(f"{path} is {kind}, not CSV text; save the {what} as 'CSV UTF-8' in the spreadsheet program.")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise TableError(f"{path} is not UTF-8 text; save the {what} as CSV in UTF-8.")
    return text


def _matches(text: str, separator: str, required: tuple[str, ...]) -> int:
    """Return how many required columns the first line that is not blank has with this separator."""
    first = next((line for line in text.splitlines() if line.strip()), "")
    try:
        cells = next(csv.reader([first], delimiter=separator), [])
    except csv.Error:
        return 0
    return len(set(required) & {cell.strip() for cell in cells})


def _unquoted(cell: str) -> str:
    return cell[1:-1].strip() if len(cell) > 1 and cell[0] == cell[-1] == '"' else cell


def _trimmed(cells: list[str], width: int) -> list[str]:
    """Remove empty cells at the end, but keep at least `width` cells if there are so many."""
    while len(cells) > width and not cells[-1]:
        cells = cells[:-1]
    return cells


def _plain(name: str) -> str:
    return "".join(letter for letter in name.casefold() if letter.isalnum())
