"""The parts of the peak memory at the largest recorded size."""

from __future__ import annotations

from ppdm_bench.report.figures.breakdown import PARTS, breakdown_figure
from ppdm_bench.report.figures.capacity import cubic, largest_set, size_of
from ppdm_bench.report.library import Library
from ppdm_bench.report.paper_figure import Missing, Shown
from ppdm_bench.report.rows import PHASE_NAMES, common
from ppdm_bench.report.tables.render import Heading, Line, Table
from ppdm_bench.units import gib


def show(library: Library) -> Shown:
    """Return the parts of every peak of one setting and size.

    Raises:
        Missing: no breakdown was recorded.
    """
    rows = [row for row in cubic(library.records) if any(metric == "activations" for _, metric in row.records)]
    rows = largest_set(rows)
    largest = max((size_of(row) for row in rows), default=0)
    rows = [row for row in rows if size_of(row) == largest]
    if not rows:
        raise Missing("the parts of a peak (params, activations, ...); `ppdm-bench memory --res 256` makes them")
    records = [r for row in rows for r in row.records.values() if r.metric in (*PARTS, "peak_allocated")]
    parts = [part for part in PARTS if part != "other"]
    headings = [
        Heading("method", "method"),
        Heading("variant", "variant"),
        Heading("phase", "phase", lambda phase: PHASE_NAMES.get(phase, phase)),
        Heading("kind", "kind"),
        Heading("peak_allocated_bytes", "peak, GiB", gib, number=True),
        *(Heading(f"{part}_bytes", f"{PARTS[part][0]}, GiB", gib, number=True) for part in parts),
    ]
    lines = [
        Line(
            (row.method, row.variant, phase, row.kind, *(row.value(phase, m) for m in ("peak_allocated", *parts))),
            library.references(record for (p, _), record in row.records.items() if p == phase),
        )
        for row in rows
        for phase in row.phases
    ]
    kinds = " and ".join(sorted({row.kind for row in rows}))
    about = (
        f"The parts of live tensor memory at its peak; {common(rows)}; {kinds} (predicted stacks are hatched). The "
        "figure uses no images and no seeds."
    )
    return Shown(Table(headings, lines), lambda column: breakdown_figure(records, column=column), about, records)
