"""The table of peak memory: a row a configuration, as data (bytes), as CSV, and for people (GiB)."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppdm_bench.records import Record
from ppdm_bench.report.atomic_io import replace_file
from ppdm_bench.report.rows import PEAKS, Row, all_phases, gather, prediction_of, reference_of, varying
from ppdm_bench.units import count, gib, ratio, setting_text

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import JustifyMethod
    from rich.table import Table

__all__ = ["memory_table", "rich_table", "save", "to_csv", "to_markdown", "to_text"]

# Columns that every table has. Task and width join where they are known, other conditions where they tell rows apart.
_BASE = ("shape", "batch_size", "precision", "checkpointing")
_FAILURES = {"oom": "OOM", "timeout": "timeout", "error": "error", "killed": "killed", "skipped": "skipped"}


def memory_table(records: Iterable[Record], *, reference: str = "", budget: int | None = None) -> pd.DataFrame:
    """Return the wide table of peak memory: one row a configuration and kind, in the order the records came in.

    Columns: method, variant, the settings, kind, parameters; then for every phase (`train`, `sample`, ...) `<phase>_`
    followed by `peak_allocated`, `peak_reserved` and `peak_process` where recorded (bytes), `assumed` (bytes of a
    predicted peak that rest on a rule which no published counter has shown yet), `ratio` (of peak_allocated to the
    reference's), `prediction_error` (predicted / measured - 1, on the measured row), `verified` (whether it ran again
    within the memory predicted), `fits`, `status`, `reason`.
    A phase that was not run has an empty status.

    Args:
        records: long-form records; those that are not about memory are passed over.
        reference: the method that ratios are taken against, at the same settings and kind and without checkpointing;
            `ratio_reference` names the very row. Empty: no ratios.
        budget: bytes that have to suffice: by the verdict of a prediction that was made for this capacity, else by
            peak_reserved where it is known, else by peak_allocated.
    """
    import pandas as pd

    rows = gather(records)
    phases = all_phases(rows)
    lines = [_line(row, rows, phases, reference, budget) for row in rows]
    columns = _columns(rows, phases, lines, reference, budget)
    return pd.DataFrame({c: pd.Series([line.get(c) for line in lines], dtype=_dtype(c)) for c in columns})


def _line(row: Row, rows: list[Row], phases: list[str], reference: str, budget: int | None) -> dict[str, Any]:
    against = reference_of(row, rows, reference)
    prediction = prediction_of(row, rows)
    line: dict[str, Any] = {**row.settings, "method": row.method, "variant": row.variant, "kind": row.kind}
    line["shape"] = "x".join(map(str, row.settings["shape"]))  # type: ignore[call-overload]
    line["parameters"] = row.parameters()
    line["ratio_reference"] = f"{against.name}, checkpointing none" if against else ""
    for phase in phases:
        line |= {f"{phase}_{metric}": _whole(row.value(phase, metric)) for metric in PEAKS}
        line[f"{phase}_assumed"] = _whole(row.value(phase, "assumed"))
        line[f"{phase}_ratio"] = _quotient(row, against, phase)
        error = _quotient(prediction, row, phase)
        line[f"{phase}_prediction_error"] = None if error is None else error - 1
        line[f"{phase}_verified"] = row.verified(phase)
        line[f"{phase}_fits"] = _fits(row, phase, budget)
        line[f"{phase}_status"], line[f"{phase}_reason"] = row.outcome(phase)
    return line


def _whole(size: float | None) -> int | None:
    return None if size is None else round(size)


def _quotient(row: Row | None, divisor: Row | None, phase: str) -> float | None:
    if row is None or divisor is None:
        return None
    above, below = row.value(phase, "peak_allocated"), divisor.value(phase, "peak_allocated")
    return above / below if above is not None and below else None


def _fits(row: Row, phase: str, budget: int | None) -> bool | None:
    if budget is None:
        return None
    record = row.records.get((phase, "peak_allocated"))
    if record is not None and record.env.get("capacity") == budget and record.status in ("ok", "oom"):
        return record.status == "ok"  # it was replayed, or run, within this very budget
    values = (row.value(phase, metric) for metric in ("peak_reserved", "peak_allocated"))
    peak = next((value for value in values if value is not None), None)
    return None if peak is None else peak <= budget


def _columns(
    rows: list[Row], phases: list[str], lines: list[dict[str, Any]], reference: str, budget: int | None
) -> list[str]:
    known = [name for name in ("task", "width") if any(row.settings[name] for row in rows)]
    extra = dict.fromkeys((*known, *varying(rows)))
    columns = ["method", "variant", *_BASE, *(name for name in extra if name not in _BASE), "kind", "parameters"]
    for phase in phases:
        sizes = [f"{phase}_{name}" for name in ("peak_reserved", "peak_process", "assumed")]
        found = [f"{phase}_{name}" for name in ("prediction_error", "verified")]
        used = {c for c in (*sizes, *found) if any(line[c] is not None for line in lines)}
        columns += [f"{phase}_peak_allocated", *(c for c in sizes if c in used)]
        columns += [f"{phase}_ratio"] * bool(reference)
        columns += [c for c in found if c in used] + [f"{phase}_fits"] * (budget is not None)
        columns += [f"{phase}_status", f"{phase}_reason"]
    return columns + ["ratio_reference"] * bool(reference)


def _dtype(column: str) -> str:
    if column in ("batch_size", "width", "parameters") or column.endswith((*PEAKS, "_assumed")):
        return "Int64"
    if column.endswith(("_ratio", "_prediction_error")):
        return "float64"
    return "boolean" if column.endswith(("_fits", "_verified")) else "object"


def to_csv(frame: pd.DataFrame) -> str:
    """Return the table as CSV: bytes as whole numbers, ratios with six significant digits, the same text every time."""
    return frame.to_csv(index=False, float_format="%.6g", lineterminator="\n")


def to_markdown(frame: pd.DataFrame, *, assumed: bool = False) -> str:
    """Return the table for people as Markdown: what the rows share, the table in GiB, what the signs mean.

    Args:
        frame: from :func:`memory_table`.
        assumed: whether to show how much of each prediction is assumed.
    """
    headers, rows = _display(frame, assumed)
    lines = [headers, ["---:" if _is_number(h) else "---" for h in headers], *rows]
    table = "\n".join("| " + " | ".join(_escape(cell) for cell in line) + " |" for line in lines)
    # A blank line makes a paragraph, so that each failure stands on its own.
    return "\n\n".join((_title(frame), table, *_legend(frame).splitlines())) + "\n"


def to_text(frame: pd.DataFrame, *, assumed: bool = False) -> str:
    """Return the table for people as plain aligned text; the arguments are those of :func:`to_markdown`."""
    headers, rows = _display(frame, assumed)
    widths = [max(map(len, column)) for column in zip(headers, *rows, strict=True)]
    pads = [str.rjust if _is_number(header) else str.ljust for header in headers]
    lines = [
        "  ".join(pad(cell, width) for pad, cell, width in zip(pads, row, widths, strict=True)).rstrip()
        for row in (headers, ["-" * width for width in widths], *rows)
    ]
    return "\n".join([_title(frame), *lines, _legend(frame)]) + "\n"


def rich_table(frame: pd.DataFrame) -> Table:
    """Return the table for the terminal: predicted rows dim, failures red."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    headers, rows = _display(frame)
    title, legend = Text(_title(frame)), Text(_legend(frame))
    table = Table(title=title, caption=legend, title_justify="left", caption_justify="left", box=SIMPLE_HEAD, padding=0)
    for header, column in zip(headers, zip(*rows, strict=True), strict=False):
        # On a narrow terminal headers are broken, never a number.
        widest = max(len(word) for cell in column for word in (cell.split() or [""]))
        justify: JustifyMethod = "right" if _is_number(header) else "left"
        table.add_column(Text(header), justify=justify, min_width=widest, overflow="fold")
    for kind, row in zip(frame["kind"], rows, strict=True):
        cells = (Text(cell, "red" if any(word in cell for word in _FAILURES.values()) else "") for cell in row)
        table.add_row(*cells, style="dim" if kind == "predicted" else None)
    return table


def save(frame: pd.DataFrame, stem: Path, *, assumed: bool = False) -> tuple[Path, Path]:
    """Write the table as `<stem>.csv` and `<stem>.md`, each whole or not at all, and return the two paths."""
    contents = {".csv": to_csv(frame), ".md": to_markdown(frame, assumed=assumed)}
    csv, markdown = (replace_file(stem.with_name(stem.name + end), text.encode()) for end, text in contents.items())
    return csv, markdown


def _display(frame: pd.DataFrame, assumed: bool = False) -> tuple[list[str], list[list[str]]]:
    lines = _lines(frame)
    differing = [name for name in _settings_of(frame) if frame[name].nunique(dropna=False) > 1]
    cells: dict[str, list[str]] = {"method": [f"{line['method']} {line['variant']}".strip() for line in lines]}
    cells |= {name.replace("_", " "): [_setting(line[name]) for line in lines] for name in (*differing, "kind")}
    cells["parameters"] = [_shown(line["parameters"], count) for line in lines]
    for phase in _phases_of(frame):
        cells |= {
            header: [cell(line) for line in lines] for header, cell in _phase_cells(frame, phase, assumed).items()
        }
    # A column in which nothing is known only takes room.
    cells = {header: column for header, column in cells.items() if set(column) != {"–"}}
    return list(cells), [list(row) for row in zip(*cells.values(), strict=True)]


def _phase_cells(frame: pd.DataFrame, phase: str, assumed: bool) -> dict[str, Callable[[dict[Hashable, Any]], str]]:
    """The columns of one phase: header and what to print of a line."""
    key, name = f"{phase}_", phase.replace("_", " ")
    cells: dict[str, Callable[[dict[Hashable, Any]], str]] = {
        f"{name} GiB": lambda line: _peak(line[f"{key}peak_allocated"], line[f"{key}status"]),
        f"{name} assumed GiB": lambda line: _shown(line[f"{key}assumed"], gib),
        f"{name} ratio": lambda line: _shown(line[f"{key}ratio"], ratio),
        f"{name} reserved GiB": lambda line: _shown(line[f"{key}peak_reserved"], gib),
        f"{name} process GiB": lambda line: _shown(line[f"{key}peak_process"], gib),
        f"{name} prediction error": lambda line: _shown(line[f"{key}prediction_error"], "{:+.2%}".format),
        f"{name} verified": lambda line: _shown(line[f"{key}verified"], _yes_or_no),
        f"{name} fits": lambda line: _shown(line[f"{key}fits"], _yes_or_no),
    }
    columns = [
        "peak_allocated",
        "assumed",
        "ratio",
        "peak_reserved",
        "peak_process",
        "prediction_error",
        "verified",
        "fits",
    ]
    measured = bool((frame["kind"] == "measured").any())  # predicted, it is the column before it and a constant
    shown = {"peak_process": measured, "assumed": assumed}
    present = (key + column in frame.columns and shown.get(column, True) for column in columns)
    return {header: cell for (header, cell), shown in zip(cells.items(), present, strict=True) if shown}


def _yes_or_no(true: bool) -> str:
    return "yes" if true else "no"


def _lines(frame: pd.DataFrame) -> list[dict[Hashable, Any]]:
    return frame.astype(object).where(frame.notna(), None).to_dict("records")


def _phases_of(frame: pd.DataFrame) -> list[str]:
    return [str(c).removesuffix("_peak_allocated") for c in frame.columns if str(c).endswith("_peak_allocated")]


def _settings_of(frame: pd.DataFrame) -> list[str]:
    return [str(name) for name in frame.columns[2 : list(frame.columns).index("kind")]]


def _shown(value: Any, show: Callable[[Any], str]) -> str:
    return "–" if value is None else show(value)


def _peak(size: int | None, status: str) -> str:
    words = ("" if size is None else gib(size), _FAILURES.get(status, ""))
    return " ".join(filter(None, words)) or "–"


def _setting(value: object) -> str:
    if isinstance(value, bool):
        return _yes_or_no(value)
    return str(value).replace("x", "×") if re.fullmatch(r"\d+x\d+x\d+", str(value)) else str(value)


def _failures(frame: pd.DataFrame) -> list[str]:
    """What failed and why, one sentence a phase and row: too long for a cell."""
    sized = frame["shape"].nunique() > 1
    return [
        " ".join(filter(None, (line["method"], line["variant"], _setting(line["shape"]) if sized else "")))
        + f", {line['kind']}, {phase}: {line[f'{phase}_reason']}"
        for line in _lines(frame)
        for phase in _phases_of(frame)
        if line[f"{phase}_reason"]
    ]


def _title(frame: pd.DataFrame) -> str:
    """What all rows share."""
    values = {name: set(frame[name].tolist()) for name in _settings_of(frame) if frame[name].notna().all()}
    shared = {name: next(iter(found)) for name, found in values.items() if len(found) == 1}
    words = ["Peak memory", *(_setting(setting_text(name, value)) for name, value in shared.items())]
    return ", ".join(filter(None, words))


def _legend(frame: pd.DataFrame) -> str:
    """What the columns mean, of those that are there."""
    notes = ["GiB (2³⁰ bytes): peak of live tensors (peak_allocated)."]
    columns = " ".join(map(str, frame.columns))
    if "peak_reserved" in columns:
        notes.append("Reserved: what the allocator took from the driver.")
    if "ratio_reference" in columns:
        against = dict.fromkeys(filter(None, frame["ratio_reference"]))
        notes.append(f"Ratio: to {' or '.join(against)}, all else and the kind equal." if against else "")
    if share := _assumed_share(frame):
        notes.append(
            f"Up to {share:.0%} of a predicted peak is assumed: it rests on a rule that no published counter has shown "
            "yet (--assumed shows how much)."
        )
    if "prediction_error" in columns:
        notes.append("Prediction error: predicted / measured − 1.")
    if "_verified" in columns:
        notes.append("Verified: run again with the process capped at the predicted memory.")
    return "\n".join([" ".join(filter(None, notes)), *map(" ".join, map(str.split, _failures(frame)))])


def _assumed_share(frame: pd.DataFrame) -> float:
    """The largest share of a predicted peak that is assumed."""
    shares = [
        line[f"{phase}_assumed"] / line[f"{phase}_peak_allocated"]
        for line in _lines(frame)
        for phase in _phases_of(frame)
        if line.get(f"{phase}_assumed") and line[f"{phase}_peak_allocated"]
    ]
    return max(shares, default=0.0)


def _is_number(header: str) -> bool:
    return header == "parameters" or header.endswith((" GiB", " ratio", " error"))


def _escape(cell: str) -> str:
    return " ".join(cell.split()).replace("|", "\\|")
