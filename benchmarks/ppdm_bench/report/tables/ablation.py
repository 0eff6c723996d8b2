"""The tables of an ablation: one row per cell and seed as data, and one row per cell for people."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from ppdm_bench.grouping import grouped
from ppdm_bench.records import Record
from ppdm_bench.report.ablation_rows import (
    BUDGETS,
    AblationRow,
    difference,
    gather_ablation,
    rows_with_most_evaluations,
    seam_measures,
)
from ppdm_bench.report.metrics import metric_name
from ppdm_bench.report.scores import size_text
from ppdm_bench.report.statistics import ENOUGH_SUBJECTS, RESAMPLES, mean_and_sd
from ppdm_bench.report.tables.quality import interval, mean_text, signed
from ppdm_bench.report.tables.render import Columns, Heading, Page, Table, TextCell, data_frame, table_of
from ppdm_bench.units import gib, plural, significant

if TYPE_CHECKING:
    import pandas as pd

_COMPARED = ("psnr", "ssim")  # metrics with differences in the tables for people; the data have all differences
_OUTCOME = ("status", "reason")
_COUNTS = ("train_steps", "seed", "evaluations", "n")
_PEAKS = [(phase, kind) for phase in ("train", "sample") for kind in ("predicted", "measured")]
_DIFFERENCE = {"difference": "mean", "low": "low", "high": "high", "p": "p"}


def ablation_table(records: Iterable[Record]) -> pd.DataFrame:
    """Return the table as data: one row per cell, task, budget, seed and number of evaluations.

    Columns: cell and whether it is the default; its levels (space, loss, bridge) and settings (representation, factor,
    kernel, target); task, shape, budget (steps or time), amount (steps, or seconds); train_steps, seed, evaluations, n
    (subjects); step_seconds during the training, pace_seconds as measured before it, train_seconds, volume_seconds;
    peak_allocated in bytes by phase and kind, at the shape of the volumes, and at other shapes, which end the name;
    then for each metric the mean, `_sd`, and the paired difference from the default with its interval (`_difference`,
    `_low`, `_high`, bootstrap, 95 %) and `_p` (Wilcoxon); status and reason. Records of other commands are ignored.
    """
    rows = gather_ablation(records)
    lines = [_line(row, rows) for row in rows]
    columns = [name for name in dict.fromkeys(name for line in lines for name in line) if name not in _OUTCOME]
    return data_frame(lines, {name: _dtype(name, lines) for name in (*columns, *_OUTCOME)})


def _line(row: AblationRow, rows: Sequence[AblationRow]) -> dict[str, Any]:
    levels = row.cell.get("levels", {})
    line: dict[str, Any] = {"cell": row.label, "default": row.cell["default"]}
    line |= {name: levels.get(name, "") for name in ("space", "loss", "bridge")}
    line |= {name: row.cell.get(name, "") for name in ("representation", "factor", "loss", "kernel", "target")}
    line |= {"task": row.task, "shape": "x".join(map(str, row.shape)), "budget": row.budget, "amount": row.amount}
    line |= {"train_steps": row.costs.get("train_steps"), "seed": row.seeds[0], "evaluations": row.evaluations}
    line["n"] = len(row.scores.subject_means("psnr"))
    line |= {"step_seconds": row.step_seconds, "pace_seconds": row.costs.get("step_seconds")}
    line |= {name: row.costs.get(name) for name in ("train_seconds", "volume_seconds")}
    line |= {f"{phase}_peak_allocated_{kind}": row.peak(phase, kind) for phase, kind in _PEAKS}
    for shape, phase, kind, metric in row.peaks:
        if shape != row.shape and metric == "peak_allocated":
            line[f"{phase}_{metric}_{kind}_{'x'.join(map(str, shape))}"] = row.peak(phase, kind, shape)
    for metric in row.scores.scans:
        values = [*row.scores.subject_means(metric).values()]
        line[metric], line[f"{metric}_sd"] = mean_and_sd(values) if values else (None, None)
        against = difference(row, rows, metric)
        line |= {f"{metric}_{name}": against and getattr(against, field) for name, field in _DIFFERENCE.items()}
    return line | {"status": row.status, "reason": row.reason}


def _dtype(column: str, lines: Sequence[dict[str, Any]]) -> str:
    if column in _COUNTS or "peak_allocated" in column:
        return "Int64"
    is_text = column in _OUTCOME or any(isinstance(line.get(column), str | bool) for line in lines)
    return "object" if is_text else "float64"


def headline(records: Sequence[Record]) -> str:
    """Return in words what all cells share."""
    rows = gather_ablation(records, pooled=True)
    seeds = {seed for row in rows for seed in row.seeds if row.status == "ok"}
    subjects = {len(row.scores.subject_means("psnr")) for row in rows} - {0}
    words = [
        f"Ablation of {rows[0].scores.method}" if rows else "Ablation",
        size_text(record for row in rows for record in row.scores.records),
        f"{plural(max(subjects), 'subject')} per task" if subjects else "",
        plural(len(seeds), "seed") if seeds else "",
    ]
    return ", ".join(filter(None, words)) + "."


def ablation_page(records: Sequence[Record]) -> Page:
    """Return one table for each task and budget: means over seeds, at the most network evaluations."""
    everything = gather_ablation(records, pooled=True)
    rows = rows_with_most_evaluations([row for row in everything if row.status == "ok"])
    mean = "Mean ± sd over subjects, seeds averaged; in brackets the difference from the default."
    parts: list[str | Table] = [f"{headline(records)} {mean}"]
    for (task, budget, amount), some in grouped(rows, lambda row: (row.task, row.budget, row.amount)).items():
        much = (
            f"{amount:.0f} steps"
            if budget == "steps"
            else f"{significant(amount)} s of training at the step times measured before"
        )
        n = some[0].evaluations or 0
        head = f"{task}, {BUDGETS[budget]}: {much}; {plural(n, 'network evaluation')} per volume."
        parts += [head, table_of(some, _columns(some))]
    fewest = min((len(row.scores.subject_means("psnr")) for row in rows), default=ENOUGH_SUBJECTS)
    few = f"With {plural(fewest, 'subject')}, an interval covers less than 95 %."
    missing = {(row.label, row.status, row.reason) for row in everything if row.status != "ok"}
    reasons = [f"{label}: {status}: {reason.removesuffix('.')}." for label, status, reason in sorted(missing)]
    return Page([*parts, *[few] * (fewest < ENOUGH_SUBJECTS), *reasons], ablation_table(records))


def _columns(rows: Sequence[AblationRow]) -> Columns[AblationRow]:
    """Return the columns for people of one task and budget."""
    timed = "s per step: median of steps measured in turn before training."
    largest = ", at the largest volume" if len(rows[0].shapes) > 1 else ""
    memory = f"GiB: peak_allocated on CUDA, predicted{largest}."
    columns: Columns[AblationRow] = {
        Heading("cell"): lambda row: row.label,
        Heading("train_steps", "steps", "{:.0f}".format, number=True, rank=1): lambda row: row.costs.get("train_steps"),
        Heading("pace_seconds", "s per step", significant, number=True, note=timed): lambda row: row.costs.get(
            "step_seconds"
        ),
        Heading("train_gib", "GiB train", gib, True, 0, "min", memory): lambda row: row.peak("train", "predicted"),
        Heading("sample_gib", "GiB sample", gib, True, 1, "min"): lambda row: row.peak("sample", "predicted"),
    }
    for metric in ("psnr", "ssim", "sharpness"):
        unit = rows[0].scores.units.get(metric, "")
        resampled = f"Interval: percentile bootstrap of the mean difference ({RESAMPLES:,} resamples of subjects)."
        note = resampled * (metric in _COMPARED)
        columns[Heading(metric, metric_name(metric, unit), rank=int(metric != "psnr"), note=note)] = _quality(
            rows, metric
        )
    for measure in seam_measures(rows):
        name = metric_name(measure, "dB")
        note = f"{name.partition(' dB')[0].capitalize()}: on the block grid of the cell's own representation."
        columns[Heading(measure, name, rank=1, note=note)] = _quality(rows, measure)
    return columns


def _quality(rows: Sequence[AblationRow], name: str) -> Callable[[AblationRow], TextCell | None]:
    """Return a function that gives the mean of a metric for a row, with its sd and its difference from the default."""

    def cell(row: AblationRow) -> TextCell | None:
        metric = row.metric(name)
        values = [*row.scores.subject_means(metric).values()]
        if not values:
            return None
        unit, (mean, sd) = row.scores.units[metric], mean_and_sd(values)
        text = mean_text(mean, sd, unit)
        if metric in _COMPARED and (against := difference(row, rows, metric)) is not None:
            parts = filter(None, (signed(against.mean, unit), interval(against.low, against.high, unit)))
            text += f" ({'; '.join(parts)})"
        return TextCell(mean, text)

    return cell
