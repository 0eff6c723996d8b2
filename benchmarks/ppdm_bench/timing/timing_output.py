"""Output of ``ppdm-bench speed``: records during the run, then a table and a figure made from them."""

from collections.abc import Sequence
from pathlib import Path

from ppdm_bench.commands.terminal import OverallProgress, progress
from ppdm_bench.isolation.sweep import RECORDS, Ledger
from ppdm_bench.memory.memory_output import task_text
from ppdm_bench.records import Record
from ppdm_bench.report.figures.step_time import speed_figure
from ppdm_bench.report.figures.style import save
from ppdm_bench.report.tables.speed import speed_page
from ppdm_bench.timing.command import TIMES, TimingPlan, TimingTask, carry_out
from ppdm_bench.timing.prediction import predicted_times


def collect(plan: TimingPlan, folder: Path) -> list[Record]:
    """Run the plan with a progress bar; all records of a task are on disk before the next task begins.

    Records that are already in the folder are not written again.
    """
    ledger, records = Ledger(folder), []
    with progress() as bar:
        # Starting a child process and measuring the ceiling together take about as long as one timing.
        whole = OverallProgress(bar, [1 + max(len(plan.counts(task)), 1) for task in plan.tasks])

        def show(task: TimingTask) -> None:
            whole.show(task.text)

        for made in predicted_times(plan, plan.sheet, show) if plan.sheet else carry_out(plan, show, ledger.earlier):
            ledger.keep(made)
            records += made
            whole.ended()
    return records


def present(records: Sequence[Record], folder: Path, columns: Sequence[str] = ()) -> tuple[str, list[Path]]:
    """Write table and figure into the folder; return the table as text, and all written files."""
    page = speed_page(records)
    written = [folder / RECORDS, *page.save(folder / "speed", columns)]
    if any((record.samples and record.unit == "s") or _is_predicted_time(record) for record in records):
        written += save(speed_figure(records), folder / "speed")
    return page.to_text(columns), written


def _is_predicted_time(record: Record) -> bool:
    return record.kind == "predicted" and record.metric in TIMES.values() and record.status == "ok"


def failures(records: Sequence[Record]) -> list[str]:
    """Return one sentence for each failed task; running out of memory and skipped tasks are not failures."""
    failed = [record for record in records if record.status not in ("ok", "oom", "skipped")]
    several = len({record.shape for record in records}) > 1
    return list(dict.fromkeys(f"{task_text(record, several)}: {record.reason}" for record in failed))
