"""The report as one HTML page: figures, sortable tables, environments, and links from each row to its records.

The page loads no other files, and the same records give the same bytes.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from ppdm_bench.grouping import grouped
from ppdm_bench.records import Record
from ppdm_bench.report.library import Library
from ppdm_bench.report.paper_figure import FigureContent
from ppdm_bench.report.tables.render import Table, TableRow

Section = tuple[str, str, FigureContent, bytes]

# Fields of a record that may differ within a configuration; the page shows the others once.
_SHOWN = ("metric", "value", "unit", "stat", "phase", "kind", "status", "steps", "subject", "seed", "created", "reason")

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 3rem; border-bottom: 1px solid #ddd; }
img { max-width: 100%; width: 54rem; } figure { margin: 1rem 0; } figcaption { color: #444; max-width: 54rem; }
.scroll { overflow: auto; max-height: 32rem; border: 1px solid #ddd; }
table { border-collapse: collapse; font-size: 13px; } td, th { padding: .2rem .6rem; white-space: nowrap; }
th { position: sticky; top: 0; background: #f2f2f2; text-align: left; cursor: pointer; user-select: none; }
tr:nth-child(even) td { background: #fafafa; } .number { text-align: right; font-variant-numeric: tabular-nums; }
th[aria-sort=ascending]::after { content: " ▲"; } th[aria-sort=descending]::after { content: " ▼"; }
details { margin: .2rem 0; } summary { cursor: pointer; } :target > summary { background: #fff3c4; }
pre { background: #f7f7f7; padding: .6rem; overflow: auto; font-size: 12px; } a { color: #0072b2; }
"""

# A click on a heading sorts by its raw values; a link to a record opens it.
_SCRIPT = """
document.querySelectorAll('th').forEach(head => head.addEventListener('click', () => {
  const table = head.closest('table'), place = head.cellIndex, body = table.tBodies[0];
  const up = head.getAttribute('aria-sort') !== 'ascending';
  table.querySelectorAll('th').forEach(other => other.removeAttribute('aria-sort'));
  head.setAttribute('aria-sort', up ? 'ascending' : 'descending');
  const key = row => row.cells[place].dataset.value ?? row.cells[place].textContent;
  const compare = (a, b) => {
    const x = key(a), y = key(b);
    if (x === '' || y === '') return (x === '') - (y === '');
    const order = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
    return up ? order : -order;
  };
  [...body.rows].sort(compare).forEach(row => body.append(row));
}));
const open = () => {
  const found = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (found && found.tagName === 'DETAILS') { found.open = true; found.scrollIntoView(); }
};
addEventListener('hashchange', open); open();
"""


def page(library: Library, sections: Sequence[Section], absent: Sequence[str]) -> str:
    """Return the page as HTML.

    Args:
        library: all records; the page contains those to which a table refers.
        sections: name, title, content and picture (PNG) of each figure.
        absent: figures that could not be drawn, one sentence each.
    """
    names = "".join(f'<li><a href="#{escape(name)}">{escape(title)}</a></li>' for name, title, _, _ in sections)
    wanted = {source for _, _, shown, _ in sections for line in shown.table.rows for source in line.sources}
    everything = grouped(library.records, library.reference)
    groups = {source: group for source, group in everything.items() if source in wanted}
    missing = "".join(f"<li>{_prose(sentence)}</li>" for sentence in absent)
    return "\n".join(
        (
            '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>PPDM benchmark report</title>',
            '<meta name="viewport" content="width=device-width">',
            f"<style>{_STYLE}</style></head><body><h1>PPDM benchmark report</h1>",
            "<p>Everything here is made from the records. Tables and figures distinguish predicted, measured and "
            "published values. Click a heading to sort; the numbers in the first column link to the records of a "
            "row.</p>",
            f'<ul>{names}<li><a href="#environments">Environments</a></li><li><a href="#records">Records</a></li></ul>',
            f"<h2>Not drawn</h2><ul>{missing}</ul>" if absent else "",
            *(_section(section, groups) for section in sections),
            f'<h2 id="environments">Environments</h2>{_environments(groups)}',
            '<h2 id="records">Records</h2><p>Each entry is one configuration of one file: its '
            "options, environment and values.</p>",
            *(_group(reference, records) for reference, records in groups.items()),
            f"<script>{_SCRIPT}</script></body></html>\n",
        )
    )


def _section(section: Section, groups: dict[str, list[Record]]) -> str:
    name, title, shown, picture = section
    image = base64.b64encode(picture).decode()
    caption = "".join(f"<p>{_prose(part)}</p>" for part in shown.caption.split("\n\n"))
    return (
        f'<h2 id="{escape(name)}">{escape(title)}</h2><figure>'
        f'<img alt="{escape(title)}" src="data:image/png;base64,{image}"><figcaption>{caption}</figcaption></figure>'
        f'<div class="scroll">{_table(shown.table, groups)}</div>'
    )


def _prose(text: str) -> str:
    """Return text as HTML; text between backticks becomes code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def _table(table: Table, groups: dict[str, list[Record]]) -> str:
    classes = [' class="number"' if heading.number else "" for heading in table.headings]
    heads = "".join(f"<th{c}>{escape(h.text)}</th>" for c, h in zip(classes, table.headings, strict=True))
    rows = []
    for line, cells in zip(table.rows, table.texts(), strict=True):
        shown = "".join(
            f'<td{c} data-value="{escape(_raw(value))}">{escape(cell)}</td>'
            for c, value, cell in zip(classes, line.cells, cells, strict=True)
        )
        rows.append(f"<tr><td>{_links(line, groups)}</td>{shown}</tr>")
    return f"<table><thead><tr><th>records</th>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _links(line: TableRow, groups: dict[str, list[Record]]) -> str:
    return " ".join(
        f'<a href="#{_anchor(source)}" title="{escape(source)}">{number}</a>'
        if source in groups
        else f'<span title="{escape(source)}">picture</span>'  # picture data are not records, so that no link exists
        for number, source in enumerate(line.sources, start=1)
    )


def _anchor(reference: str) -> str:
    return re.sub(r"[^\w.-]+", "-", reference)


def _raw(value: Any) -> str:
    return "" if value is None else str(value)


def _group(reference: str, records: Sequence[Record]) -> str:
    first = records[0]
    about = {name: getattr(first, name) for name in ("method", "variant", "command", "task", "source", "options")}
    environments = _distinct(record.env for record in records)
    content = json.dumps(about | {"environments": environments}, indent=1, ensure_ascii=False, sort_keys=True)
    rows = "".join(
        "<tr>" + "".join(f"<td>{escape(_raw(getattr(record, name)))}</td>" for name in _SHOWN) + "</tr>"
        for record in records
    )
    heads = "".join(f"<th>{name}</th>" for name in _SHOWN)
    name = " ".join(filter(None, (first.method, first.variant, first.task)))
    return (
        f'<details id="{_anchor(reference)}"><summary>{escape(reference)}: {escape(name)}</summary>'
        f"<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table><pre>{escape(content)}</pre></details>"
    )


def _environments(groups: dict[str, list[Record]]) -> str:
    found = _distinct(record.env for records in groups.values() for record in records)
    return "".join(f"<pre>{escape(json.dumps(env, indent=1, sort_keys=True))}</pre>" for env in found)


def _distinct(environments: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    found = {json.dumps(env, sort_keys=True): env for env in environments}
    return [found[key] for key in sorted(found)]
