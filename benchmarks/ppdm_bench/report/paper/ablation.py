"""The ablation along its axes, and the comparison of puzzle and bridge."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from matplotlib.figure import Figure

from ppdm_bench.records import Record
from ppdm_bench.report.ablation_rows import (
    BUDGETS,
    COMMAND,
    AblationRow,
    difference,
    gather_ablation,
    rows_with_most_evaluations,
    seam_measures,
)
from ppdm_bench.report.figures.ablation import ablation_figure
from ppdm_bench.report.figures.puzzle_or_bridge import space_figure
from ppdm_bench.report.library import Library
from ppdm_bench.report.paper_figure import FigureContent, MissingRecords
from ppdm_bench.report.tables.ablation import headline
from ppdm_bench.report.tables.render import Best, Columns, Heading, Table, table_of
from ppdm_bench.units import gib

_METRICS = ("psnr", "ssim", "sharpness")


def show_axes(library: Library) -> FigureContent:
    """Return the ablation along the axes of the paper."""
    about = (
        "Quality: difference from the default at equal steps, subject by subject, with its bootstrap interval; seams "
        "are those of the block grid of the representation. Memory: peak of one training step, predicted for CUDA "
        "(hollow) or measured (filled). Time: seconds per training step."
    )
    return _shown(library, ablation_figure, about)


def show_space(library: Library) -> FigureContent:
    """Return every representation with and without a bridge, at equal steps and at equal time."""
    about = "Does the puzzle or the bridge matter? Each representation with and without the Brownian bridge."
    return _shown(library, space_figure, about)


def _shown(library: Library, draw: Callable[[Sequence[Record]], Figure], about: str) -> FigureContent:
    records = [record for record in library.records if record.command == COMMAND]
    try:
        draw(records)
    except (ValueError, IndexError):
        raise MissingRecords("cells of an ablation; `ppdm-bench ablate` makes them") from None
    rows = rows_with_most_evaluations(gather_ablation(records, pooled=True))
    about = f"{headline(records)} {about}"
    synthetic = [row for row in rows if row.scores.is_synthetic]
    if synthetic:
        which = "" if len(synthetic) == len(rows) else f" ({', '.join(dict.fromkeys(row.task for row in synthetic))})"
        about += f" The data are synthetic phantoms{which}: they show a direction, not a proof."
    return FigureContent(_table(rows, records, library), lambda _: draw(records), about, records)


def _table(rows: Sequence[AblationRow], records: Sequence[Record], library: Library) -> Table:
    against = {id(row): difference(row, rows, "psnr") for row in rows}

    def change(key: str, text: str, field: str) -> Columns[AblationRow]:
        return {Heading(key, text, "{:+.2f}".format, True): lambda row: getattr(against[id(row)], field, None)}

    columns: Columns[AblationRow] = {
        Heading("cell"): lambda row: row.label,
        Heading("task"): lambda row: row.task,
        Heading("budget", show=BUDGETS.__getitem__): lambda row: row.budget,
        Heading("steps", "", "{:.0f}".format, True): lambda row: row.costs.get("train_steps"),
        Heading("step_seconds", "s per step", "{:.3g}".format, True): lambda row: row.costs.get("step_seconds"),
        Heading("train_peak_allocated_bytes", "training, GiB, predicted", gib, True): lambda row: row.peak(
            "train", "predicted"
        ),
        **{_heading(metric): partial(_mean, metric=metric) for metric in (*_METRICS, *seam_measures(rows))},
        **change("psnr_difference", "PSNR difference, dB", "mean"),
        **change("psnr_low", "from", "low"),
        **change("psnr_high", "to", "high"),
        Heading("n", "subjects", number=True): lambda row: len(row.scores.subject_means("psnr")) or None,
        Heading("status"): lambda row: row.status,
    }
    return table_of(rows, columns, ("task", "budget"), lambda row: _sources(row, records, library))


def _heading(metric: str) -> Heading:
    names = {"psnr": "PSNR, dB", "ssim": "SSIM", "seam_index": "seam index, dB", "border_ratio": "border ratio, dB"}
    name = names.get(metric, metric)
    best: Best = "max" if metric in ("psnr", "ssim") else "min" if metric == "seam_index" else ""
    return Heading(metric, name, "{:.2f}".format if name.endswith("dB") else "{:.3f}".format, True, best=best)


def _mean(row: AblationRow, metric: str) -> float | None:
    return row.scores.mean(row.metric(metric))


def _sources(row: AblationRow, records: Sequence[Record], library: Library) -> tuple[str, ...]:
    mine = [record for record in records if record.options.get("cell", {}).get("label") == row.label]
    fields = ("psnr", row.task, row.evaluations)
    return library.references(record for record in mine if (record.metric, record.task, record.steps) == fields)
