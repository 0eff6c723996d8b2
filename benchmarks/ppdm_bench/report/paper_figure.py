"""What stands in a paper: a figure in each width, its table, and a caption that says what it is made from."""

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

__all__ = ["Exhibit", "Missing", "Shown", "written"]


class Missing(ValueError):
    """The records do not hold what a figure needs; says what is missing and which command makes it."""


@dataclass(frozen=True)
class Shown:
    """An exhibit made from records.

    Attributes:
        table: what is drawn, and more.
        draw: the figure in a width.
        about: the caption: what is seen, what was run, on what, of how many subjects and seeds.
        records: what it is made from.
        notes: what else it is made from, such as picture data.
    """

    table: Table
    draw: Callable[[Column], Figure]
    about: str
    records: Sequence[Record]
    notes: str = ""

    @property
    def caption(self) -> str:
        """The caption, with where everything comes from."""
        made = f"Made from {len(self.records)} records: {provenance(self.records)}" if self.records else ""
        return "\n\n".join(filter(None, (self.about, made, self.notes)))


@dataclass(frozen=True)
class Exhibit:
    """One entry of the list of figures.

    Attributes:
        name: of its files.
        title: for people.
        show: made from a library; raises `Missing` where something is missing.
        columns: the widths in which it can be read.
    """

    name: str
    title: str
    show: Callable[[Library], Shown]
    columns: tuple[Column, ...] = ("single", "double")

    def widths(self, asked: Sequence[Column]) -> Sequence[Column]:
        """Those that were asked for and can be read, or else those that can."""
        return [column for column in asked if column in self.columns] or self.columns


def written(exhibit: Exhibit, shown: Shown, folder: Path, columns: Sequence[Column]) -> dict[str, Path]:
    """Write figure (PNG and PDF, each width), table (CSV, Markdown, LaTeX) and caption; the files by what they are.

    Args:
        exhibit, shown: what is written.
        folder: where.
        columns: the widths that are asked for.

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
