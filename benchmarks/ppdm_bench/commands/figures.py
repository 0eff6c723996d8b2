"""``ppdm-bench figures``: every figure and table of a paper, made only from records."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from ppdm_bench.commands.terminal import ensure_writable, notify, progress
from ppdm_bench.commands.values import comma_separated, one_of, read_option

if TYPE_CHECKING:
    from ppdm_bench.report.figures.style import Column
    from ppdm_bench.report.paper_figure import FigureContent

RESULTS = Path("results")

RecordPaths = Annotated[
    list[Path] | None,
    typer.Argument(
        metavar="[RECORDS]...",
        help="Files of records, or folders with such files; default: results.",
        show_default=False,
    ),
]


def figures(
    records: RecordPaths = None,
    out: Annotated[Path, typer.Option(help="Folder for figures, tables and captions.")] = RESULTS / "figures",
    column: Annotated[str, typer.Option(help="Widths: single (3.5 inches), double (7.16 inches).")] = "single,double",
    html: Annotated[bool, typer.Option("--html", help="Also write report.html, one page with everything.")] = False,
) -> None:
    """Draw every figure of a paper from records, with its table and caption, and report missing records."""
    columns = cast("list[Column]", read_option("--column", comma_separated(one_of("single", "double")), column))

    from ppdm_bench.report.atomic_io import replace_file
    from ppdm_bench.report.library import read_library, reporting_altered_records
    from ppdm_bench.report.page import page
    from ppdm_bench.report.paper_figure import MissingRecords, write_paper_figure
    from ppdm_bench.report.paper_registry import PAPER_FIGURES

    library = read_library(records or [RESULTS])
    folder, files, absent = ensure_writable(out), list[Path](), list[str]()
    shown: list[tuple[str, str, FigureContent, bytes]] = []
    with progress() as bar:
        task = bar.add_task("", total=len(PAPER_FIGURES))
        for figure in PAPER_FIGURES:
            bar.update(task, description=figure.title)
            try:
                with reporting_altered_records(figure.title):
                    made = figure.show(library)
                    drawn = write_paper_figure(figure, made, folder, columns)
            except MissingRecords as missing:
                absent.append(f"{figure.name}: it needs {missing}")
            else:
                files += drawn.values()
                shown.append((figure.name, figure.title, made, drawn[f"{figure.widths(columns)[-1]}.png"].read_bytes()))
            bar.advance(task)
    if html:
        files.append(replace_file(folder / "report.html", page(library, shown, absent).encode()))
    for path in files:
        print(path)
    for sentence in absent:
        notify(f"not drawn: {sentence}")
    if not files:  # one missing figure is no error, but no figure at all is
        sys.exit(1)
