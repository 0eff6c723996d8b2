"""An exhibit of a paper: a figure in each width, its table, and a caption that names its sources."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from ppdm_bench.records import Record
from ppdm_bench.report.atomic_io import replace_file
from ppdm_bench.report.figures import style
from ppdm_bench.report.figures.style import Column
from ppdm_bench.report.library import Library, provenance
from ppdm_bench.report.tables.render import Table, to_csv, to_latex, to_markdown


class Missing(ValueError):
    """Records that a figure needs are missing; the message names them and the command that makes them."""


@dataclass(frozen=True)
class Shown:
    """An exhibit made from records.

    Attributes:
        table: the values of the figure, and more.
        draw: draws the figure in a width.
        about: the caption: content, method, data, number of subjects and seeds.
        records: source of the values.
        notes: other sources, such as picture data.
    """

    table: Table
    draw: Callable[[Column], Figure]
    about: str
    records: Sequence[Record]
    notes: str = ""

    @property
    def caption(self) -> str:
        """The caption with the sources; a record behind several values counts once."""
        records = {id(record): record for record in self.records}.values()
        made = f"Made from {len(records)} records: {provenance(records)}" if records else ""
        return "\n\n".join(filter(None, (self.about, made, self.notes)))


@dataclass(frozen=True)
class Exhibit:
    """One entry of the list of figures.

    Attributes:
        name: stem of its files.
        title: title for people.
        show: makes the exhibit from a library; raises `Missing` if records are missing.
        columns: the widths in which it is legible.
    """

    name: str
    title: str
    show: Callable[[Library], Shown]
    columns: tuple[Column, ...] = ("single", "double")

    def widths(self, asked: Sequence[Column]) -> Sequence[Column]:
        """Return the requested widths that are legible, or else all legible widths."""
        return [column for column in asked if column in self.columns] or self.columns


def written(exhibit: Exhibit, shown: Shown, folder: Path, columns: Sequence[Column]) -> dict[str, Path]:
    """Write figure (PNG and PDF, each width), table (CSV, Markdown, LaTeX) and caption; return them by their ending.

    Args:
        exhibit, shown: exhibit to write.
        folder: output folder.
        columns: requested widths.

    Raises:
        OSError: the folder cannot be written.
    """
    stem = folder / exhibit.name
    files: dict[str, Path] = {}
    for column in exhibit.widths(columns):
        beside = stem.with_name(f"{stem.name}-{column}")
        files[f"{column}.png"], files[f"{column}.pdf"] = style.save(shown.draw(column), beside)
    texts: Mapping[str, str] = {
        "csv": to_csv(shown.table),
        "md": to_markdown(shown.table),
        "tex": to_latex(shown.table),
        "caption.md": f"**{exhibit.title}.** {shown.caption}\n",
    }
    for end, text in texts.items():
        files[end] = replace_file(stem.with_name(f"{stem.name}.{end}"), text.encode())
    return files
