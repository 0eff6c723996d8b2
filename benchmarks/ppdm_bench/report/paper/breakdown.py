"""The parts of the peak memory at the largest recorded size."""

from __future__ import annotations

from collections.abc import Sequence

from ppdm_bench.report.figures.breakdown import PARTS, breakdown_figure
from ppdm_bench.report.figures.capacity import cubic_rows, of_largest_size, setting_with_most_sizes
from ppdm_bench.report.library import Library
from ppdm_bench.report.paper_figure import FigureContent, MissingRecords
from ppdm_bench.report.rows import PeakRow, common_settings, phase_name
from ppdm_bench.report.tables.render import Columns, Heading, Table, table_of
from ppdm_bench.units import gib


def show(library: Library) -> FigureContent:
    """Return the parts of every peak of one setting and size."""
    rows = [row for row in cubic_rows(library.records) if any(metric == "activations" for _, metric in row.records)]
    rows = of_largest_size(setting_with_most_sizes(rows))
    if not rows:
        raise MissingRecords("the parts of a peak (params, activations, ...); `ppdm-bench memory --res 256` makes them")
    records = [r for row in rows for r in row.records.values() if r.metric in (*PARTS, "peak_allocated")]
    kinds = " and ".join(sorted({row.kind for row in rows}))
    about = (
        f"The parts of live tensor memory at its peak; {common_settings(rows)}; {kinds} (predicted stacks are "
        "hatched). The figure uses no images and no seeds."
    )
    return FigureContent(_table(rows, library), lambda column: breakdown_figure(records, column=column), about, records)


def _table(rows: Sequence[PeakRow], library: Library) -> Table:
    def size(metric: str, text: str) -> Columns[tuple[PeakRow, str]]:
        return {Heading(f"{metric}_bytes", f"{text}, GiB", gib, True): lambda row: row[0].value(row[1], metric)}

    columns: Columns[tuple[PeakRow, str]] = {
        Heading("method"): lambda row: row[0].method,
        Heading("variant"): lambda row: row[0].variant,
        Heading("phase", show=phase_name): lambda row: row[1],
        Heading("kind"): lambda row: row[0].kind,
        **size("peak_allocated", "peak"),
    }
    for part, (text, _) in PARTS.items():
        columns |= size(part, text) if part != "other" else {}
    phases = [(row, phase) for row in rows for phase in row.phases]
    return table_of(phases, columns, sources=lambda row: library.references(row[0].of_phase(row[1])))
