"""What ``ppdm-bench speed`` leaves behind: records as they come, then tables and figures made from them."""

from collections.abc import Sequence
from pathlib import Path

from ppdm_bench.records import Record, RecordFile
from ppdm_bench.report import speed
from ppdm_bench.report.canvas import save
from ppdm_bench.report.pace import speed_figure
from ppdm_bench.terminal import progress
from ppdm_bench.timing.command import Plan, carry_out

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


def present(records: Sequence[Record], folder: Path) -> tuple[str, list[Path]]:
    """Write table and figure into the folder; the table as text, and every file that was written."""
    written = [folder / RECORDS, *speed.save(records, folder / "speed")]
    if any(record.samples and record.unit == "s" for record in records):
        written += save(speed_figure(records), folder / "speed")
    return speed.to_text(records), written


def failures(records: Sequence[Record]) -> list[str]:
    """What could not be found out, a sentence each. Running out of memory is a finding, and so is a lack of time."""
    failed = [record for record in records if record.status not in ("ok", "oom", "skipped")]
    return list(dict.fromkeys(f"{r.method} {r.variant} {r.phase}".replace("  ", " ") + f": {r.reason}" for r in failed))
