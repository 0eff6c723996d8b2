"""The table of registered methods."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ppdm_bench.report.tables.render import Heading, Page, Table, TableRow


def _text(value: Any) -> str:
    """Return a large number in millions, or a description with rounded numbers: ``Brownian(gamma=1.414)``."""
    if isinstance(value, int) and value > 100_000:
        return f"{value / 1e6:.1f} M"
    return re.sub(r"\d+\.\d{5,}", lambda number: f"{float(number[0]):.4g}", str(value))


_HEADINGS = [
    Heading("method"),
    Heading("preset"),
    Heading("parameters", "parameters", _text, number=True),
    Heading("evaluations", number=True),
    Heading("phases", rank=1),
    Heading("representation"),
    Heading("kernel", "kernel", _text),
    *(Heading(name, name, rank=1) for name in ("target", "window", "source")),
]


def catalogue_page(rows: Sequence[Mapping[str, Any]]) -> Page:
    """Return the table of methods; the rows are those of :func:`ppdm_bench.commands.methods.catalogue`."""
    return Page([Table(_HEADINGS, [TableRow(tuple(row[heading.key] for heading in _HEADINGS)) for row in rows])])
