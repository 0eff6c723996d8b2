"""``benchmarks/harness/programs.py``: its table from made-up records, and the committed one; no program is needed."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import programs
from programs import PROGRAMS, as_csv, difference, early, table

RESULTS = Path("results/validation")

ROW: dict[str, Any] = {
    "name": "a", "repository": "them/theirs", "commit": "0123456789", "path": "train.py", "command": "train.py -b 2",
    "versions": {"torch": "2.13.0"}, "predicted": 99 << 20, "measured": 100 << 20, "early": 1.5,
    "seconds_predicted": 9.6, "seconds_measured": 30.2,
}  # fmt: skip


def test_a_row_has_the_source_the_peaks_and_the_difference() -> None:
    assert difference(ROW) == "−1.00 %"
    assert table([ROW]).splitlines()[2] == (
        "| [them/theirs](https://github.com/them/theirs) train.py, 01234567 (torch 2.13.0) | `python train.py -b 2` "
        "| 99.00 | 100.00 | −1.00 % | 1.5 | 10, 30 |"
    )
    assert next(csv.DictReader(io.StringIO(as_csv([ROW]))))["predicted"] == str(99 << 20)


def test_what_loaders_may_send_is_read_from_the_notes() -> None:
    class Found:
        notes = ("a note", "workers of a data loader may send batches before their turn, which is up to 27.5 MiB more")

    assert early(Found()) == 27.5  # type: ignore[arg-type]


def test_every_program_says_where_it_is_from() -> None:
    for program in PROGRAMS.values():
        assert "/" in program.repository
        assert len(program.commit) >= 7
        assert program.data


def test_the_committed_table_is_that_of_its_records_and_the_documentation_has_it() -> None:
    rows = [json.loads(line) for line in (RESULTS / "programs.jsonl").read_text().splitlines()]
    assert (RESULTS / "programs.md").read_text() == f"# Third-party training programs\n\n{table(rows)}"
    assert (RESULTS / "programs.csv").read_text() == as_csv(rows)
    assert table(rows) in Path("docs/predictor.md").read_text()
    for row in rows:
        assert row["measured"] * 0.98 <= row["predicted"] + row["early"] * 2**20
        assert row["predicted"] <= row["measured"] * 1.02


def test_programs_are_run_where_their_files_are(tmp_path: Path, monkeypatch: Any) -> None:
    asked: list[Path] = []

    def made(name: str, folder: Path, interpreter: str) -> dict[str, Any]:
        asked.append(folder)
        return ROW | {"name": name}

    monkeypatch.setattr(programs, "record", made)
    for name in ("nanogpt", "dcgan"):
        programs.main(tmp_path, tmp_path / "files", "python", [name])
    assert asked == [tmp_path / "files" / "nanogpt", tmp_path / "files" / "dcgan"]
    rows = [json.loads(line) for line in (tmp_path / "programs.jsonl").read_text().splitlines()]
    assert [row["name"] for row in rows] == ["dcgan", "nanogpt"]  # in the order of PROGRAMS, and none is lost
