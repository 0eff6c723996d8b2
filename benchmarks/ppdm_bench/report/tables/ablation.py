"""The tables of an ablation: a wide one, a row a cell, for programs, and one for people with its seeds pooled."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppdm_bench.records import Record
from ppdm_bench.report.ablation_rows import BUDGETS, Row, difference, gather, seam_metric
from ppdm_bench.report.atomic_io import replace_file
from ppdm_bench.report.series import metric_name
from ppdm_bench.report.statistics import ENOUGH, RESAMPLES, summary
from ppdm_bench.report.tables.quality import number, signed
from ppdm_bench.report.tables.text import markdown_grid, text_grid
from ppdm_bench.units import gib, shape_text, significant

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ablation_table", "headline", "save", "to_csv", "to_markdown", "to_text"]

_TEXTS = ("cell", "space", "loss", "bridge", "representation", "factor", "kernel", "target", "task", "shape", "budget")
_COMPARED = ("psnr", "ssim")  # in the tables for people; that for programs has every difference
_COUNTS = ("train_steps", "seed", "evaluations", "n")
_COSTS = ("step_seconds", "pace_seconds", "train_seconds", "volume_seconds")
_PEAKS = [(phase, kind) for phase in ("train", "sample") for kind in ("predicted", "measured")]


def ablation_table(records: Iterable[Record]) -> pd.DataFrame:
    """Return the wide table: one row a cell, task, budget, seed and number of evaluations.

    Columns: cell and whether it is the default; its levels (space, loss, bridge) and settings (representation, factor,
    kernel, target); task, shape, budget (steps or time), amount (steps, or seconds); train_steps, seed, evaluations, n
    (subjects); step_seconds as trained, pace_seconds as measured in turn, train_seconds, volume_seconds; peak_allocated
    in bytes by phase and kind, at the shape of the volumes, and of other shapes with these behind; then for each metric
    the mean, `_sd`, and the difference from the default, subject by subject, with its interval (`_difference`, `_low`,
    `_high`, bootstrap, 95 %) and `_p` (Wilcoxon); status and reason.

    Args:
        records: long-form; those of other commands are passed over.
    """
    import pandas as pd

    rows = gather(records)
    lines = [_line(row, rows) for row in rows]
    columns = dict.fromkeys(name for line in lines for name in line)
    ordered = [name for name in columns if name not in ("status", "reason")] + ["status", "reason"]
    return pd.DataFrame({c: pd.Series([line.get(c) for line in lines], dtype=_dtype(c)) for c in ordered})


def headline(records: Sequence[Record]) -> str:
    """Return what the cells have in common, in words."""
    rows = gather(records, pooled=True)
    seeds = {seed for row in rows for seed in row.seeds if row.status == "ok"}
    subjects = {len({scan.partition("/")[0] for scan in row.series.scans.get("psnr", {})}) for row in rows} - {0}
    shapes = {row.shape for row in rows if row.shape}
    words = [
        f"Ablation of {rows[0].series.method}" if rows else "Ablation",
        shape_text(next(iter(shapes))) if len(shapes) == 1 else "several sizes" if shapes else "",
        f"{max(subjects)} subjects a task" if subjects else "",
        f"{len(seeds)} seed{'s' if len(seeds) > 1 else ''}" if seeds else "",
    ]
    return ", ".join(filter(None, words)) + "."


def to_csv(frame: pd.DataFrame) -> str:
    """Return the table as CSV with six significant digits, the same text every time."""
    return frame.to_csv(index=False, float_format="%.6g", lineterminator="\n")


def to_text(records: Sequence[Record]) -> str:
    """Return the tables for people as aligned text: one for each task and budget, its seeds pooled."""
    return _blocks(records, text_grid)


def to_markdown(records: Sequence[Record]) -> str:
    """Return the same as Markdown."""
    return _blocks(records, markdown_grid)


def save(records: Sequence[Record], stem: Path) -> tuple[Path, Path]:
    """Write `<stem>.csv` and `<stem>.md`, each whole or not at all, and return the two paths."""
    contents = {".csv": to_csv(ablation_table(records)), ".md": to_markdown(records)}
    csv, markdown = (replace_file(stem.with_name(stem.name + end), text.encode()) for end, text in contents.items())
    return csv, markdown


def most_evaluations(rows: Sequence[Row]) -> list[Row]:
    """The rows of the most network evaluations, which tables for people and figures show."""
    most = max((row.evaluations for row in rows if row.evaluations), default=None)
    return [row for row in rows if row.evaluations in (most, None)]


def _line(row: Row, rows: Sequence[Row]) -> dict[str, Any]:
    levels = row.cell.get("levels", {})
    line: dict[str, Any] = {"cell": row.label, "default": row.cell["default"]}
    line |= {name: levels.get(name, "") for name in ("space", "loss", "bridge")}
    line |= {name: row.cell.get(name, "") for name in ("representation", "factor", "loss", "kernel", "target")}
    line |= {"task": row.task, "shape": "x".join(map(str, row.shape)), "budget": row.budget, "amount": row.amount}
    line |= {"train_steps": row.costs.get("train_steps"), "seed": row.seeds[0], "evaluations": row.evaluations}
    line["n"] = len(row.series.subjects("psnr"))
    line |= {"step_seconds": row.step_seconds, "pace_seconds": row.costs.get("step_seconds")}
    line |= {name: row.costs.get(name) for name in ("train_seconds", "volume_seconds")}
    line |= {f"{phase}_peak_allocated_{kind}": row.peak(phase, kind) for phase, kind in _PEAKS}
    for shape, phase, kind, metric in row.peaks:
        if shape != row.shape and metric == "peak_allocated":
            line[f"{phase}_{metric}_{kind}_{'x'.join(map(str, shape))}"] = row.peak(phase, kind, shape)
    for metric in row.series.scans:
        line |= _values(row, rows, metric)
    return line | {"status": row.status, "reason": row.reason}


def _values(row: Row, rows: Sequence[Row], metric: str) -> dict[str, Any]:
    values = [*row.series.subjects(metric).values()]
    found = summary(values) if values else None
    line: dict[str, Any] = {metric: found and found.mean, f"{metric}_sd": found and found.sd}
    against = difference(row, rows, metric)
    names = {"difference": "mean", "low": "low", "high": "high", "p": "p"}
    return line | {f"{metric}_{name}": against and getattr(against, field) for name, field in names.items()}


def _dtype(column: str) -> str:
    if column in _COUNTS or "peak_allocated" in column:
        return "Int64"
    return "object" if column in (*_TEXTS, "default", "status", "reason") else "float64"


def _blocks(records: Sequence[Record], show: Callable[[list[str], list[list[str]]], str]) -> str:
    everything = gather(records, pooled=True)
    rows = most_evaluations([row for row in everything if row.status == "ok"])
    blocks = [
        f"{headline(records)} Mean ± sd over subjects, seeds averaged; in brackets the difference from the default."
    ]
    for task, budget, amount in dict.fromkeys((row.task, row.budget, row.amount) for row in rows):
        some = [row for row in rows if (row.task, row.budget, row.amount) == (task, budget, amount)]
        unit = "steps" if budget == "steps" else "s of training by the pace measured before"
        head = f"{task}, {BUDGETS[budget]}: {significant(amount) if budget == 'time' else f'{amount:.0f}'} {unit}"
        blocks += [f"{head}; {some[0].evaluations} network evaluations a volume.", show(*_people(some))]
    return "\n\n".join([*blocks, *_notes(everything, rows)]) + "\n"


def _people(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    metrics = ("psnr", "ssim", "sharpness")
    units = {metric: rows[0].series.units.get(metric, "") for metric in metrics}
    headers = ["cell", "steps", "s a step", "GiB train", "GiB sample", *(metric_name(m, units[m]) for m in metrics)]
    return [*headers, "seam index dB ↓"], [_person(row, rows, metrics) for row in rows]


def _person(row: Row, rows: Sequence[Row], metrics: Sequence[str]) -> list[str]:
    steps, seconds = row.costs.get("train_steps"), row.costs.get("step_seconds")
    peaks = (row.peak(phase, "predicted") for phase in ("train", "sample"))
    return [
        row.label,
        "–" if steps is None else f"{steps:.0f}",
        "–" if seconds is None else significant(seconds),
        *("–" if peak is None else gib(peak) for peak in peaks),
        *(_value(row, rows, metric) for metric in metrics),
        _value(row, rows, seam_metric(row)),
    ]


def _value(row: Row, rows: Sequence[Row], metric: str | None) -> str:
    values = [*row.series.subjects(metric).values()] if metric else []
    if not metric or not values:
        return "–"
    unit, found = row.series.units[metric], summary(values)
    text = number(found.mean, unit) + ("" if found.sd is None else f" ± {number(found.sd, unit)}")
    against = difference(row, rows, metric) if metric in _COMPARED else None
    if against is None:
        return text
    ends = "" if against.low is None or against.high is None else f"; {_interval(against.low, against.high, unit)}"
    return f"{text} ({signed(against.mean, unit)}{ends})"


def _interval(low: float, high: float, unit: str) -> str:
    return f"{signed(low, unit)} to {signed(high, unit)}"


def _notes(everything: Sequence[Row], rows: Sequence[Row]) -> list[str]:
    notes = [
        "s a step: median of steps measured in turn before the trainings. GiB: predicted peak_allocated on CUDA. Seam "
        "index: at the lattice of the cell's own representation. "
        f"Interval: percentile bootstrap of the mean difference ({RESAMPLES:,} resamples of subjects)."
    ]
    fewest = min((len(row.series.subjects("psnr")) for row in rows), default=ENOUGH)
    if fewest < ENOUGH:
        notes.append(f"With {fewest} subject{'s' if fewest > 1 else ''} an interval is narrower than 95 %.")
    missing = {(row.label, row.status, row.reason) for row in everything if row.status != "ok"}
    return notes + [f"{label}: {status}: {reason}." for label, status, reason in sorted(missing)]
