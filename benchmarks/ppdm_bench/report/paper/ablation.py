"""The ablation along its axes, and the comparison of puzzle and bridge."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.figure import Figure

from ppdm_bench.records import Record
from ppdm_bench.report.ablation_rows import (
    BUDGETS,
    COMMAND,
    AblationRow,
    difference,
    gather_ablation,
    most_evaluations,
    seam_measures,
    seam_metric,
)
from ppdm_bench.report.figures.ablation import ablation_figure
from ppdm_bench.report.figures.puzzle_or_bridge import space_figure
from ppdm_bench.report.library import Library
from ppdm_bench.report.paper_figure import Missing, Shown
from ppdm_bench.report.statistics import summary
from ppdm_bench.report.tables.ablation import headline
from ppdm_bench.report.tables.render import Best, Heading, Line, Table
from ppdm_bench.units import gib

_METRICS = ("psnr", "ssim", "sharpness")


def show_axes(library: Library) -> Shown:
    """Return the ablation along the axes of the paper.

    Raises:
        Missing: only the default was trained.
    """
    about = (
        "Quality: difference from the default at equal steps, subject by subject, with its bootstrap interval; seams "
        "are those of the block grid of the representation. Memory: peak of one training step, predicted for CUDA "
        "(hollow) or measured (filled). Time: seconds per training step."
    )
    return _shown(library, ablation_figure, about)


def show_space(library: Library) -> Shown:
    """Return every representation with and without a bridge, at equal steps and at equal time.

    Raises:
        Missing: fewer than two representations were trained both with and without a bridge.
    """
    about = "Does the puzzle or the bridge matter? Each representation with and without the Brownian bridge."
    return _shown(library, space_figure, about)


def _shown(library: Library, draw: Callable[[Sequence[Record]], Figure], about: str) -> Shown:
    records = [record for record in library.records if record.command == COMMAND]
    try:
        draw(records)
    except (ValueError, IndexError):
        raise Missing("cells of an ablation; `ppdm-bench ablate` makes them") from None
    rows = most_evaluations(gather_ablation(records, pooled=True))
    about = f"{headline(records)} {about}"
    synthetic = [row for row in rows if row.series.is_synthetic]
    if synthetic:
        which = "" if len(synthetic) == len(rows) else f" ({', '.join(dict.fromkeys(row.task for row in synthetic))})"
        about += f" Synthetic phantoms{which}: a direction, not a proof."
    return Shown(_table(rows, records, library), lambda _: draw(records), about, records)


def _table(rows: Sequence[AblationRow], records: Sequence[Record], library: Library) -> Table:
    seams = seam_measures(rows)
    headings = [
        Heading("cell", "cell"),
        Heading("task", "task"),
        Heading("budget", "budget", lambda budget: BUDGETS.get(budget, budget)),
        Heading("steps", "steps", lambda steps: f"{steps:.0f}", number=True),
        Heading("step_seconds", "s per step", lambda seconds: f"{seconds:.3g}", number=True),
        Heading("train_peak_allocated_bytes", "training, GiB, predicted", gib, number=True),
        *(_number(metric) for metric in (*_METRICS, *seams)),
        Heading("psnr_difference", "PSNR difference, dB", lambda value: f"{value:+.2f}", number=True),
        Heading("psnr_low", "from", lambda value: f"{value:+.2f}", number=True),
        Heading("psnr_high", "to", lambda value: f"{value:+.2f}", number=True),
        Heading("n", "subjects", number=True),
        Heading("status", "status"),
    ]
    lines = [Line(_cells(row, rows, seams), _sources(row, records, library)) for row in rows]
    return Table(headings, lines, within=("task", "budget"))


def _number(metric: str) -> Heading:
    names = {"psnr": "PSNR, dB", "ssim": "SSIM", "seam_index": "seam index, dB", "border_ratio": "border ratio, dB"}
    name = names.get(metric, metric)
    digits = 2 if name.endswith("dB") else 3
    best: Best = "max" if metric in ("psnr", "ssim") else "min" if metric == "seam_index" else ""
    return Heading(metric, name, lambda value: f"{value:.{digits}f}", number=True, best=best)


def _cells(row: AblationRow, rows: Sequence[AblationRow], seams: Sequence[str]) -> tuple[Any, ...]:
    means = [_mean(row, metric) for metric in (*_METRICS, *(seam_metric(row, measure) for measure in seams))]
    against = difference(row, rows, "psnr")
    ends = (against.mean, against.low, against.high) if against else (None, None, None)
    return (
        row.label,
        row.task,
        row.budget,
        row.costs.get("train_steps"),
        row.costs.get("step_seconds"),
        row.peak("train", "predicted"),
        *means,
        *ends,
        len(row.series.subjects("psnr")) or None,
        row.status,
    )


def _mean(row: AblationRow, metric: str) -> float | None:
    values = [*row.series.subjects(metric).values()]
    return summary(values).mean if values else None


def _sources(row: AblationRow, records: Sequence[Record], library: Library) -> tuple[str, ...]:
    mine = [record for record in records if record.options.get("cell", {}).get("label") == row.label]
    fields = ("psnr", row.task, row.evaluations)
    return library.references(record for record in mine if (record.metric, record.task, record.steps) == fields)
