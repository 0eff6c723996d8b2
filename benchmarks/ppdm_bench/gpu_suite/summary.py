"""Summary of all pieces: one memory table, and the agreement of predicted with measured peaks."""

from pathlib import Path

from ppdm_baselines import REFERENCE
from ppdm_bench.records import Record, RecordFile
from ppdm_bench.report.atomic_io import replace_file
from ppdm_bench.report.figures.agreement import measured_figure, measured_table
from ppdm_bench.report.figures.style import save
from ppdm_bench.report.tables.memory import memory_page, memory_table


def records_of(folder: Path) -> list[Record]:
    """The measurements of all pieces, folder by folder, without the records in ``pieces.jsonl``."""
    return [record for path in sorted(folder.glob("**/records.jsonl")) for record in RecordFile(path).read()]


def summarise(folder: Path) -> tuple[str, list[Path]]:
    """Write the memory table of all pieces and a comparison of predicted with measured peaks into the folder.

    Returns:
        The text to print and the written files; both empty if no memory was measured.
    """
    records = [record for record in records_of(folder) if record.command == "memory"]
    if not any(record.kind == "measured" and record.status == "ok" for record in records):
        return "", []
    written = memory_page(memory_table(records, reference=REFERENCE)).save(folder / "memory")
    agreement = measured_table(records)
    written.append(replace_file(folder / "agreement.md", agreement.encode()))
    return agreement, [*written, *save(measured_figure(records), folder / "agreement")]
