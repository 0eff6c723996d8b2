"""Output of ``ppdm-bench ablate``: tables and figures made from its records."""

from collections.abc import Sequence
from pathlib import Path

from ppdm_bench.isolation.sweep import RECORDS
from ppdm_bench.records import Record
from ppdm_bench.report.figures.ablation import ablation_figure
from ppdm_bench.report.figures.puzzle_or_bridge import space_figure
from ppdm_bench.report.figures.style import save
from ppdm_bench.report.tables.ablation import ablation_page


def present(records: Sequence[Record], folder: Path, columns: Sequence[str] = ()) -> tuple[str, list[Path]]:
    """Write tables and figures into the folder; return the tables as text, and the written files."""
    page = ablation_page(records)
    written = [folder / RECORDS, *page.save(folder / "ablation", columns)]
    for name, draw in (("ablation", ablation_figure), ("puzzle_or_bridge", space_figure)):
        try:
            figure = draw(records)
        except ValueError:  # the cells of this figure were not requested
            continue
        written += save(figure, folder / name)
    return page.to_text(columns), written
