"""Output of ``ppdm-bench evaluate`` and ``quality``: records during the run, then tables and pictures from them."""

from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path

from ppdm_bench.commands.terminal import notify
from ppdm_bench.evaluation.pictures import draw_extremes
from ppdm_bench.evaluation.scoring import EvaluationPlan, carry_out
from ppdm_bench.evaluation.snapshots import save_snapshot
from ppdm_bench.grouping import grouped
from ppdm_bench.isolation.sweep import RECORDS, Ledger
from ppdm_bench.records import Record, RecordFile
from ppdm_bench.report.atomic_io import replace_file
from ppdm_bench.report.figures.quality import MAX_CONFIGURATIONS, evaluations_figure, subjects_figure
from ppdm_bench.report.figures.style import save
from ppdm_bench.report.library import Library
from ppdm_bench.report.paper.learning import show as learning_curves
from ppdm_bench.report.scores import configuration_of, data_and_convention, is_of_curve
from ppdm_bench.report.tables.quality import headline, quality_page, quality_table
from ppdm_bench.report.tables.render import to_csv, to_markdown
from ppdm_bench.units import plural


def collect(plan: EvaluationPlan, folder: Path, progress: Callable[[str, int, int], None]) -> list[Record]:
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


def earlier_records(folder: Path) -> list[Record]:
    """Return the scores of earlier commands in a folder, by subject, without learning curves; empty without any."""
    return [
        record
        for record in RecordFile(folder / RECORDS).read()
        if record.subject and record.command != "ablate" and not is_of_curve(record)
    ]


def with_earlier_scores(records: Sequence[Record], earlier: Sequence[Record]) -> list[Record]:
    """Return the scores that tables and figures show: those of earlier commands, then these.

    Of two scores of one configuration, subject and metric, the later one counts, in the place of the first. Earlier
    configurations with other data, another convention or changed files are left out, because their numbers cannot be
    compared. A message reports how many are shown and how many are not.
    """
    now = {data_and_convention(record) for record in records}
    files = {record.subject: _files_digest(record) for record in records}
    known = {configuration_of(record) for record in records}
    groups = {key: group for key, group in grouped(earlier, configuration_of).items() if key not in known}

    def is_comparable(group: Sequence[Record]) -> bool:
        return all(
            data_and_convention(r) in now and files.get(r.subject) in (_files_digest(r), None, "") for r in group
        )

    shown = {key: group for key, group in groups.items() if is_comparable(group)}
    if shown:
        notify(f"tables and figures also show {plural(len(shown), 'row')} of earlier commands in this folder")
    if left := len(groups) - len(shown):
        notify(
            f"tables and figures do not show {plural(left, 'row')} of earlier commands in this folder, which have "
            "other data or another convention; their records stay"
        )
    latest = {}
    for record in (*earlier, *records):
        if (key := configuration_of(record)) in known or key in shown:
            latest[key, record.subject, record.metric] = record
    return list(latest.values())


def _files_digest(record: Record) -> str:
    """Return the digest of the files of a case, without that of the prediction."""
    return str(record.options.get("files", "")).partition("+")[0]


def present(
    plan: EvaluationPlan,
    records: Sequence[Record],
    reference: str,
    folder: Path,
    earlier: Sequence[Record] = (),
    **look: Sequence[str],
) -> tuple[str, list[Path]]:
    """Write tables, figures and pictures into the folder; return the table as text and the written files.

    Args:
        plan: the evaluation that was carried out.
        records: its records.
        reference: label of the row from which differences are taken.
        folder: output folder.
        earlier: scores of earlier commands, see :func:`with_earlier_scores`.
        look: as for :func:`tabulate`.
    """
    text, written = tabulate(with_earlier_scores(records, earlier), reference, folder, **look)
    if any(record.value is not None for record in records):
        written += draw_extremes(plan, records, folder)
        written += save_snapshot(plan, records, folder)
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
        records: records of this run; those of learning curves are left out.
        reference: label of the row from which differences are taken.
        folder: output folder.
        metrics: metrics of the printed, Markdown and LaTeX tables; empty: all.
        columns: columns of the printed table; empty: those that fit.
    """
    records = [record for record in records if not is_of_curve(record)]
    title = headline(records)
    page = quality_page(quality_table(records, reference=reference), title, metrics=metrics)
    written = page.save(folder / "quality", columns)
    if any(record.value is not None for record in records):
        written += _figures(records, title, folder)
    return page.to_text(columns), written


def _figures(records: Sequence[Record], title: str, folder: Path) -> list[Path]:
    labels = {(record.method, record.variant) for record in records if record.steps}
    written = [*save(subjects_figure(records, title), folder / "subjects")]
    if len(labels) <= MAX_CONFIGURATIONS and len({record.steps for record in records if record.steps}) > 1:
        written += save(evaluations_figure(records, title), folder / "evaluations")
    return written


def draw_curves(records: Sequence[Record], folder: Path) -> list[Path]:
    """Write the table and the figure of learning curves, if the records have any; return the written files."""
    if not any(is_of_curve(record) and record.value is not None for record in records):
        return []
    shown = learning_curves(Library((*records,)))
    written = [
        replace_file(folder / f"curves.{end}", text.encode())
        for end, text in (("csv", to_csv(shown.table)), ("md", to_markdown(shown.table)))
    ]
    return [*written, *save(shown.draw("double"), folder / "curves")]


def failures(records: Sequence[Record]) -> list[str]:
    """Return one sentence for each reason of failure, with the affected cases, methods and metrics."""
    met = grouped((record for record in records if record.status != "ok"), lambda record: record.reason)
    return [f"{_where(found)}: {reason}" for reason, found in met.items()]


def _where(records: Sequence[Record]) -> str:
    metrics = list(dict.fromkeys(record.metric for record in records))
    rows = list(dict.fromkeys(record.label for record in records))
    cases = list(dict.fromkeys(record.subject for record in records))
    return "; ".join(_few(names) for names in (cases, rows, metrics))


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
