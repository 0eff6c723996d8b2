"""A figure of the paper: drawn in each width, with its table and a caption that names its sources."""

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


class MissingRecords(ValueError):
    """Records for a figure are missing; the message names them and the command that makes them."""


@dataclass(frozen=True)
class FigureContent:
    """The content of a figure, made from records.

    Attributes:
        table: the values of the figure, and more.
        draw: returns the figure in a width.
        about: the caption without its sources: content, method, data, number of subjects and seeds.
        records: the records of the values.
        notes: other sources, such as picture data.
    """

    table: Table
    draw: Callable[[Column], Figure]
    about: str
    records: Sequence[Record]
    notes: str = ""

    @property
    def caption(self) -> str:
        """The caption with its sources; a record of several values counts once."""
        records = {id(record): record for record in self.records}.values()
        made = f"Made from {len(records)} records: {provenance(records)}" if records else ""
        return "\n\n".join(filter(None, (self.about, made, self.notes)))


@dataclass(frozen=True)
class PaperFigure:
    """One figure of the paper.

    Attributes:
        name: stem of its files.
        title: title for people.
        show: returns the content of the figure; raises `MissingRecords` if records are missing.
        columns: the widths in which the figure is legible.
    """

    name: str
    title: str
    show: Callable[[Library], FigureContent]
    columns: tuple[Column, ...] = ("single", "double")

    def widths(self, asked: Sequence[Column]) -> Sequence[Column]:
        """Return the requested widths that are legible, or else all legible widths."""
        return [column for column in asked if column in self.columns] or self.columns


def write_paper_figure(
    figure: PaperFigure, content: FigureContent, folder: Path, columns: Sequence[Column]
) -> dict[str, Path]:
    """Write pictures (PNG and PDF, each width), table (CSV, Markdown, LaTeX) and caption; return them by file ending.

    Raises:
        OSError: the folder cannot be written.
    """
    stem = folder / figure.name
    files: dict[str, Path] = {}
    for column in figure.widths(columns):
        picture = stem.with_name(f"{stem.name}-{column}")
        files[f"{column}.png"], files[f"{column}.pdf"] = style.save(content.draw(column), picture)
    texts: Mapping[str, str] = {
        "csv": to_csv(content.table),
        "md": to_markdown(content.table),
        "tex": to_latex(content.table),
        "caption.md": f"**{figure.title}.** {content.caption}\n",
    }
    for end, text in texts.items():
        files[end] = replace_file(stem.with_name(f"{stem.name}.{end}"), text.encode())
    return files
