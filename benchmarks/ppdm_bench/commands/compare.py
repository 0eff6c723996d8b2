"""``ppdm-bench compare``: which numbers became worse between two sets of records."""

from pathlib import Path
from typing import Annotated

import typer

from ppdm_bench.commands import options
from ppdm_bench.commands.terminal import notify
from ppdm_bench.commands.values import read_names, read_option

NOTHING_COMPARED = 3  # exit code; 1 means a regression, and 2 wrong usage


def compare(
    old: Annotated[Path, typer.Argument(metavar="OLD", help="File of records, or a folder with such files.")],
    new: Annotated[
        Path, typer.Argument(metavar="NEW", help="File of records, or a folder with such files, to compare with OLD.")
    ],
    threshold: Annotated[
        str,
        typer.Option(
            metavar="SHARE", help="Smallest relative difference of a time or a score that counts: 5% or 0.05."
        ),
    ] = "5%",
    columns: options.Columns = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print one record for each number as one JSON array and nothing else.")
    ] = False,
) -> None:
    """Show what became worse between two sets of records, beyond the noise.

    Evaluations are matched by method and subject. Exit codes: 0 nothing became worse, 1 something became worse, 3 no
    record of one set has a counterpart in the other.
    """
    chosen = read_names("--columns", columns)
    share = read_option("--threshold", _read_share, threshold)

    from ppdm_bench.report.library import reporting_altered_records
    from ppdm_bench.report.tables.changes import changes, changes_page, environments, read_records, to_records

    before, after = read_records(old), read_records(new)
    with reporting_altered_records("the comparison"):
        found, notes = changes(before, after, share), environments(before, after)
    if json:
        from ppdm_bench.records import to_json_array

        print(to_json_array(to_records(found)))
    else:
        print(changes_page(found, notes).to_text(chosen), end="")
    if not any(change.compared for change in found):
        notify(
            f"nothing could be compared: no record of {new} has a counterpart in {old}. Records match by method, "
            "options, task and metric, evaluations by method and subject"
        )
        raise typer.Exit(NOTHING_COMPARED)
    # An exact value may be worse by less than the threshold, which does not fail the comparison.
    worse = any(one.verdict == "worse" and (one.share is None or abs(one.share) > share) for one in found)
    raise typer.Exit(int(worse))


def _read_share(text: str) -> float:
    try:
        value = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 10:
        raise ValueError(f"expected a share such as 5% or 0.05, got {text!r}")
    return value
