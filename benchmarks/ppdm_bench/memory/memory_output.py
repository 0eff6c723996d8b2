"""Output of ``ppdm-bench memory``: records during the run, then tables and figures made from them."""

from collections.abc import Sequence
from pathlib import Path

from ppdm_baselines import REFERENCE
from ppdm_bench.commands.terminal import OverallProgress, progress
from ppdm_bench.isolation.sweep import RECORDS, Ledger
from ppdm_bench.memory.command import MemoryPlan, carry_out
from ppdm_bench.memory.explain import costs, explain, stem
from ppdm_bench.memory.host import host_sentence
from ppdm_bench.records import Record
from ppdm_bench.report.figures.breakdown import breakdown_figure
from ppdm_bench.report.figures.memory import memory_figure, overview_records
from ppdm_bench.report.figures.memory_timeline import save_timeline, timeline_page
from ppdm_bench.report.figures.style import save
from ppdm_bench.report.figures.time_by_operator import save_times, times_page
from ppdm_bench.report.tables.memory import memory_page, memory_table
from ppdm_bench.timing.command import TIMES
from ppdm_bench.units import shape_text

# Duration of a measurement relative to that of a prediction: its child process starts Python and imports PyTorch.
_WEIGHT = 10.0


def collect(plan: MemoryPlan, folder: Path) -> list[Record]:
    """Run the plan with a progress bar; all records of a task are on disk before the next task begins.

    Records that are already in the folder are not written again.
    """
    ledger, records = Ledger(folder), []
    with progress() as bar:
        whole = OverallProgress(bar, [_WEIGHT if task.measured else 1.0 for task in plan.tasks])
        for made in carry_out(plan, lambda task: whole.show(task.text), ledger.earlier):
            ledger.keep(made)
            records += made
            whole.ended()
    return records


def explain_all(plan: MemoryPlan, folder: Path) -> tuple[list[Record], str, list[Path]]:
    """Predict all tasks and plot their memory timelines; return records, tables of the largest blocks, and files."""
    ledger = Ledger(folder)
    records: list[Record] = []
    texts: list[str] = []
    written = [folder / RECORDS]
    with progress() as bar:
        whole = OverallProgress(bar, [1.0] * len(plan.tasks))
        for task in plan.tasks:
            whole.show(task.text)
            made, course = explain(plan, task)
            ledger.keep(made)
            records += made
            if course is not None:
                texts.append(timeline_page(course).to_markdown())
                place = folder / stem(task.configuration, task.phase)
                written += save_timeline(course, place)
                if plan.target is not None and plan.target.gpu and (spent := costs(task, plan.target)):
                    name = f"{course.name}, {plan.target.gpu}"
                    texts.append(times_page(name, spent).to_markdown())
                    written += save_times(name, spent, place.with_name(f"{place.name}-time"))
            whole.ended()
    return records, "\n".join(texts), written


def present(
    records: Sequence[Record], folder: Path, budget: int | None, assumed: bool = False, columns: Sequence[str] = ()
) -> tuple[str, list[Path]]:
    """Write table and figures into the folder; return the table as text, and all written files.

    The files depend only on the records. Only the text has the host memory of Python, which is measured now.

    Args:
        records: records of this run.
        folder: output folder.
        budget: memory budget in bytes for the column *fits*.
        assumed: whether the tables show the assumed part of each prediction.
        columns: columns of the printed table; empty means those that fit into the terminal.
    """
    page = memory_page(memory_table(records, reference=REFERENCE, budget=budget), assumed=assumed)
    written = [folder / RECORDS, *page.save(folder / "memory", columns)]
    if any(record.value is not None for record in records if record.metric == "peak_allocated"):
        written += save(memory_figure(records, reference=REFERENCE), folder / "memory")
        if chosen := overview_records(records):
            written += save(memory_figure(chosen, reference=REFERENCE), folder / "overview")
    if any(record.metric == "activations" for record in records):
        written += save(breakdown_figure(records), folder / "breakdown")
    return page.plus(host_sentence(records)).to_text(columns), written


def failures(records: Sequence[Record]) -> list[str]:
    """Return one sentence for each failed task; running out of memory and skipped tasks are not failures."""
    metrics = ("peak_allocated", *TIMES.values())
    failed = [r for r in records if r.metric in metrics and r.status not in ("ok", "oom", "skipped")]
    several = len({record.shape for record in records}) > 1
    return [f"{task_text(record, several)}, {record.kind}: {record.reason}" for record in failed]


def task_text(record: Record, sized: bool) -> str:
    """Return method, variant, size (if ``sized``) and phase of a record."""
    size = shape_text(record.shape) if sized else ""
    return " ".join(filter(None, (record.method, record.variant, size, record.phase)))
