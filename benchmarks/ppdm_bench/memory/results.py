"""What ``ppdm-bench memory`` leaves behind: records as they come, then tables and figures made from them."""

from collections.abc import Sequence
from pathlib import Path

from ppdm_baselines import REFERENCE
from ppdm_bench.memory.command import Plan, carry_out
from ppdm_bench.memory.explain import explain, stem
from ppdm_bench.records import Record, RecordFile
from ppdm_bench.report import figure, table
from ppdm_bench.report.course import holders_table, save_course
from ppdm_bench.terminal import progress

RECORDS = "records.jsonl"


def collect(plan: Plan, folder: Path) -> list[Record]:
    """Carry the plan out under a progress bar; every record is on disk before the next task begins.

    A record that the file holds already, word for word, is not written again.
    """
    file, records = RecordFile(folder / RECORDS), []
    earlier = file.read()
    known = {record.content() for record in earlier}
    with progress() as bar:
        task = bar.add_task("", total=len(plan.tasks))
        for made in carry_out(plan, lambda current: bar.update(task, description=current.text), earlier):
            file.append(record for record in made if record.content() not in known)
            records += made
            bar.advance(task)
    return records


def explain_all(plan: Plan, folder: Path) -> tuple[list[Record], str, list[Path]]:
    """Predict everything, and draw where its memory goes: records, the tables of holders as text, and the files."""
    file = RecordFile(folder / RECORDS)
    known = {record.content() for record in file.read()}
    records: list[Record] = []
    texts: list[str] = []
    written = [folder / RECORDS]
    with progress() as bar:
        shown = bar.add_task("", total=len(plan.tasks))
        for task in plan.tasks:
            bar.update(shown, description=task.text)
            made, course = explain(plan, task)
            file.append(record for record in made if record.content() not in known)
            records += made
            if course is not None:
                texts.append(holders_table(course))
                written += save_course(course, folder / stem(task.configuration, task.phase))
            bar.advance(shown)
    return records, "\n".join(texts), written


def present(records: Sequence[Record], folder: Path, budget: int | None) -> tuple[str, list[Path]]:
    """Write table and figures into the folder; the table as text, and every file that was written."""
    frame = table.memory_table(records, reference=REFERENCE, budget=budget)
    written = [folder / RECORDS, *table.save(frame, folder / "memory")]
    if any(record.value is not None for record in records if record.metric == "peak_allocated"):
        written += figure.save(figure.memory_figure(records, reference=REFERENCE), folder / "memory")
    if any(record.metric == "activations" for record in records):
        written += figure.save(figure.breakdown_figure(records), folder / "breakdown")
    return table.to_text(frame), written


def failures(records: Sequence[Record]) -> list[str]:
    """What could not be found out, a sentence each. Running out of memory is a finding."""
    failed = [r for r in records if r.metric == "peak_allocated" and r.status not in ("ok", "oom")]
    return [f"{' '.join(filter(None, (r.method, r.variant, r.phase)))}, {r.kind}: {r.reason}" for r in failed]
