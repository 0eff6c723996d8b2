"""Output of ``ppdm-bench evaluate``: records during the run, then tables and pictures made from them."""

from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path

from ppdm_bench.evaluation.assessment import Assessment, carry_out
from ppdm_bench.evaluation.pictures import draw_extremes
from ppdm_bench.evaluation.snapshots import keep_snapshot
from ppdm_bench.grouping import grouped
from ppdm_bench.isolation.sweep import RECORDS, Ledger
from ppdm_bench.records import Record
from ppdm_bench.report.figures.quality import MANY, evaluations_figure, subjects_figure
from ppdm_bench.report.figures.style import save
from ppdm_bench.report.tables.quality import headline, quality_page, quality_table


def collect(plan: Assessment, folder: Path, progress: Callable[[str, int, int], None]) -> list[Record]:
    """Carry out the plan; the records of each prediction are written to disk before the next prediction.

    A record with content identical to one in the file is not written again.

    Args:
        plan: the evaluation to carry out.
        folder: folder for the records.
        progress: called with a text on the next prediction, the number of finished predictions and their total.
    """
    ledger, records = Ledger(folder), []
    total, done = len(plan.cases) * len(plan.candidates), count()
    for made in carry_out(plan, lambda text: progress(text, next(done), total), ledger.earlier):
        ledger.keep(made)
        records += made
    progress("", total, total)
    return records


def present(
    plan: Assessment, records: Sequence[Record], reference: str, folder: Path, **look: Sequence[str]
) -> tuple[str, list[Path]]:
    """Write tables, figures and pictures into the folder; return the table as text and the written files."""
    text, written = tabulate(records, reference, folder, **look)
    if any(record.value is not None for record in records):
        written += draw_extremes(plan, records, folder)
        written += keep_snapshot(plan, records, folder)
    return text, [folder / RECORDS, *written]


def tabulate(
    records: Sequence[Record],
    reference: str,
    folder: Path,
    *,
    metrics: Sequence[str] = (),
    columns: Sequence[str] = (),
) -> tuple[str, list[Path]]:
    """Write the tables and figures that need only records; return the table as text and the written files.

    Args:
        records: records of this run.
        reference: label of the configuration that the others are compared with.
        folder: output folder.
        metrics: metrics of the tables for people; empty: all.
        columns: columns of the printed table; empty: those that fit.
    """
    title = headline(records)
    page = quality_page(quality_table(records, reference=reference), title, metrics=metrics)
    written = page.save(folder / "quality", columns)
    if any(record.value is not None for record in records):
        written += _figures(records, title, folder)
    return page.to_text(columns), written


def _figures(records: Sequence[Record], title: str, folder: Path) -> list[Path]:
    labels = {(record.method, record.variant) for record in records if record.steps}
    written = [*save(subjects_figure(records, title), folder / "subjects")]
    if len(labels) <= MANY and len({record.steps for record in records if record.steps}) > 1:
        written += save(evaluations_figure(records, title), folder / "evaluations")
    return written


def failures(records: Sequence[Record]) -> list[str]:
    """Failed results: one sentence for each reason, with the affected cases, methods and metrics."""
    met = grouped((record for record in records if record.status != "ok"), lambda record: record.reason)
    return [f"{_where(found)}: {reason}" for reason, found in met.items()]


def _where(records: Sequence[Record]) -> str:
    metrics = list(dict.fromkeys(record.metric for record in records))
    rows = list(dict.fromkeys(f"{record.method} {record.variant}".strip() for record in records))
    cases = list(dict.fromkeys(record.subject for record in records))
    return "; ".join(_few(names) for names in (cases, rows, metrics))


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
