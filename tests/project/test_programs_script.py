"""``benchmarks/harness/programs.py``: its table from invented records, and the committed one; no program is needed."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import programs
from programs import PROGRAMS, as_csv, difference, table, version

RESULTS = Path("results/validation")

ROW: dict[str, Any] = {
    "name": "a", "repository": "them/theirs", "commit": "0123456789", "path": "train.py", "command": "train.py -b 2",
    "variables": "HOME=here", "versions": {"torch": "2.13.0", "monai": "1.6"},
    "predicted": 99 << 20, "measured": 100 << 20, "arrived": 1 << 20, "may_arrive": 3 << 19,
    "seconds_predicted": 9.6, "seconds_measured": 30.2,
}  # fmt: skip


def test_a_row_has_the_source_the_peaks_and_the_difference() -> None:
    assert (difference(ROW), difference(ROW, 2 << 20)) == ("−1.00 %", "+1.02 %")
    assert table([ROW]).splitlines()[2] == (
        "| [them/theirs](https://github.com/them/theirs) train.py, 01234567 (monai 1.6, torch 2.13.0) "
        "| `HOME=here python train.py -b 2` | 99.00 | 100.00 | −1.00 % | 1.0 of 1.5 | +0.00 % | 10, 30 |"
    )
    assert next(csv.DictReader(io.StringIO(as_csv([ROW]))))["predicted"] == str(99 << 20)


def test_a_version_names_the_modules_that_were_changed_after_installation(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "them-2.5.dist-info").mkdir()
    (tmp_path / "them-2.5.dist-info" / "METADATA").write_text("Name: them\nVersion: 2.5\n")
    digest = "47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU"  # the hash of an empty file
    listed = "".join(f"{name},sha256={digest},0\n" for name in ("them.py", "other.py", "them.txt"))
    (tmp_path / "them-2.5.dist-info" / "RECORD").write_text(f"{listed}them-2.5.dist-info/RECORD,,\n")
    for name, text in (("them.py", ""), ("other.py", ""), ("them.txt", "altered")):
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    assert version("them") == "2.5"
    (tmp_path / "other.py").write_text("altered")
    assert version("them") == "2.5 with another other.py"


def test_every_program_states_its_repository_commit_and_data() -> None:
    for program in PROGRAMS.values():
        assert "/" in program.repository
        assert len(program.commit) >= 7
        assert program.data


def test_committed_tables_and_documentation_agree_with_the_records() -> None:
    rows = [json.loads(line) for line in (RESULTS / "programs.jsonl").read_text().splitlines()]
    assert (RESULTS / "programs.md").read_text() == f"# Third-party training programs\n\n{table(rows)}"
    assert (RESULTS / "programs.csv").read_text() == as_csv(rows)
    assert table(rows) in Path("docs/predictor.md").read_text()
    errors = {row["name"]: row["predicted"] / (row["measured"] - row["arrived"]) - 1 for row in rows}
    assert all(abs(error) <= 0.02 for error in errors.values()), errors
    assert all(row["arrived"] <= row["may_arrive"] for row in rows)
    assert sum(abs(row["predicted"] / row["measured"] - 1) <= 0.02 for row in rows) >= 6  # even with prefetched batches


def test_each_program_runs_in_the_folder_with_its_files(tmp_path: Path, monkeypatch: Any) -> None:
    asked: list[Path] = []

    def made(name: str, folder: Path, interpreter: str) -> dict[str, Any]:
        asked.append(folder)
        return ROW | {"name": name}

    monkeypatch.setattr(programs, "record", made)
    for name in ("nanogpt", "dcgan"):
        programs.main(tmp_path, tmp_path / "files", "python", [name])
    assert asked == [tmp_path / "files" / "nanogpt", tmp_path / "files" / "dcgan"]
    rows = [json.loads(line) for line in (tmp_path / "programs.jsonl").read_text().splitlines()]
    assert [row["name"] for row in rows] == ["nanogpt", "dcgan"]  # in the order of PROGRAMS; earlier records are kept
