"""``ppdm-bench claims``: a verdict on each claim of the paper's abstract, from records and fixed rules."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ppdm_bench.commands.figures import RESULTS, RecordPaths
from ppdm_bench.commands.terminal import ensure_writable, report_outcome

if TYPE_CHECKING:
    from ppdm_bench.records import Record, RecordFile
    from ppdm_bench.report.claims.text import Verdicts
    from ppdm_bench.report.library import Library


def claims(
    records: RecordPaths = None,
    out: Annotated[Path, typer.Option(help="Folder for CLAIMS.md, and for claims/ with table and records.")] = RESULTS,
    json: Annotated[bool, typer.Option("--json", help="Print the effects as one JSON array and nothing else.")] = False,
) -> None:
    """Compare the claims of the paper's abstract with records: supported, not supported or not measured."""
    from ppdm_bench.records import RecordFile
    from ppdm_bench.report.claims.text import effects_table, to_claims_text
    from ppdm_bench.report.library import read_library

    paths = list(records or [RESULTS])
    file = RecordFile(ensure_writable(out) / "claims" / "reversibility.jsonl")
    _record_reversibility(file)
    within = any(path.is_dir() and file.path.resolve().is_relative_to(path.resolve()) for path in paths)
    decided, written = present(read_library(paths if within else [*paths, file.path]), out)
    if json:
        table = effects_table(decided)
        keys = [heading.key for heading in table.headings]
        rows = [dict(zip(keys, line.cells, strict=True)) | {"records": list(line.sources)} for line in table.rows]
        print(dumps(rows, indent=1))
    else:
        print(to_claims_text(decided))
    report_outcome([file.path, *written], [], sys.stderr if json else sys.stdout)


def present(library: "Library", out: Path) -> "tuple[Verdicts, list[Path]]":
    """Decide every claim, write the table and the page, and return the verdicts and the written files."""
    from ppdm.simulation.tasks import PAPER_TASKS
    from ppdm_baselines import METHODS
    from ppdm_bench.report.atomic_io import replace_file
    from ppdm_bench.report.claims.claim import Evidence
    from ppdm_bench.report.claims.rules import CLAIMS
    from ppdm_bench.report.claims.text import effects_table, to_claims_markdown
    from ppdm_bench.report.library import reporting_altered_records
    from ppdm_bench.report.tables.render import to_csv

    evidence = Evidence(library, next(iter(METHODS.values())).to_dict(), list(PAPER_TASKS))
    with reporting_altered_records("the claims"):
        decided = [(claim, claim.decide(evidence)) for claim in CLAIMS]
    contents = {"claims/claims.csv": to_csv(effects_table(decided)), "CLAIMS.md": to_claims_markdown(decided, library)}
    return decided, [replace_file(out / name, text.encode()) for name, text in contents.items()]


def _record_reversibility(file: "RecordFile") -> None:
    """Check reversibility and write the records, unless the file already has the same results.

    Another environment is no difference: if another commit or machine confirms the results, file and page stay as they
    are.
    """
    from ppdm_bench.commands.reversibility import check_reversibility
    from ppdm_bench.report.atomic_io import replace_file

    made = check_reversibility()
    if _results(file.read()) != _results(made):
        replace_file(file.path, "".join(record.to_json() + "\n" for record in made).encode())


def _results(records: "Sequence[Record]") -> list[str]:
    return [replace(record, env={}).content() for record in records]
