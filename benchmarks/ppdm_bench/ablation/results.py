"""What ``ppdm-bench ablate`` leaves behind: tables and figures made from its records."""

from collections.abc import Sequence
from pathlib import Path

from ppdm_bench.isolation.sweep import RECORDS
from ppdm_bench.records import Record
from ppdm_bench.report.figures.ablation import ablation_figure
from ppdm_bench.report.figures.ablation_space import space_figure
from ppdm_bench.report.figures.style import save
from ppdm_bench.report.tables import ablation


def present(records: Sequence[Record], folder: Path) -> tuple[str, list[Path]]:
    """Write tables and figures into the folder; the tables as text, and every file that was written."""
    written = [folder / RECORDS, *ablation.save(records, folder / "ablation")]
    for name, draw in (("ablation", ablation_figure), ("puzzle_or_bridge", space_figure)):
        try:
            figure = draw(records)
        except ValueError:  # the cells that it shows were not asked for
            continue
        written += save(figure, folder / name)
    return ablation.to_text(records), written
