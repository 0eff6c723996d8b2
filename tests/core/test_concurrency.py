"""Several processes at once: sweeps in one folder, generation of one data set, and readers during writes."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from ppdm.atomic_io import write_together
from ppdm_bench.records import RecordFile, RecordWarning
from ppdm_bench.report.atomic_io import replace_file

pytestmark = pytest.mark.slow

SIZES = (2, 3, 4, 5, 6)


def python(*words: str, **options) -> subprocess.Popen:
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.Popen([sys.executable, *words], env=env, stdin=subprocess.PIPE, **options)


def test_three_sweeps_started_at_once_measure_every_row_once(tmp_path):
    words = [
        str(Path(__file__).parents[1].joinpath("sweeping.py")),
        str(tmp_path / "new" / "out"),
        ",".join(map(str, SIZES)),
    ]
    (tmp_path / "new").mkdir()
    sweeps = [python(*words, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    said = [sweep.communicate(timeout=120)[1] for sweep in sweeps]
    assert [sweep.returncode for sweep in sweeps] == [0, 0, 0]
    assert [int(line) for line in (tmp_path / "new" / "started").read_text().split()] == list(SIZES)
    found = [(r.shape[0], r.metric) for r in RecordFile(tmp_path / "new" / "out" / "records.jsonl").read()]
    assert sorted(found) == sorted((size, metric) for size in SIZES for metric in ("peak_allocated", "params"))
    assert all(line == "" or "another command is running" in line for line in said)


# The subjects of this set need no computation: the test checks which process makes them.
MAKE = """
import sys, time
from pathlib import Path
from ppdm.simulation import generation
from ppdm.simulation.tasks import find_task, subject_name

def make(recipe, split, index, folder):
    time.sleep(0.1)
    (folder / f".partial-{split}").mkdir()
    (folder / f".partial-{split}").rename(folder / subject_name(split, index))
    print(split, flush=True)

generation._make_one = make
generation.cache_folder = lambda: Path(sys.argv[1])
generation.cached_set(find_task("mri-t1t2").recipe(), 8, jobs=1)
"""


@pytest.mark.parametrize("killed", [False, True])
def test_a_second_generation_of_the_same_set_makes_only_the_missing_subjects(tmp_path, killed):
    one = python("-c", MAKE, str(tmp_path), stdout=subprocess.PIPE, text=True)
    first = one.stdout.readline()
    other = python("-c", MAKE, str(tmp_path), stdout=subprocess.PIPE, text=True)
    if killed:
        one.kill()
    made = [first + one.communicate()[0], other.communicate()[0]]
    assert (one.returncode, other.returncode) == (-9 if killed else 0, 0)
    assert sorted("".join(made).split()) == ["test"] + ["train"] * 6 + ["val"]
    assert bool(made[1]) == killed
    (folder,) = tmp_path.iterdir()
    names = {f"train-00{k}" for k in range(6)} | {"val-000", "test-000", "recipe.json", ".lock"}
    assert {entry.name for entry in folder.iterdir()} == names


# Each row spans many memory pages and each append has several rows, so that a reader may see only a part of them.
APPEND = """
import sys
from ppdm_bench.records import Record, RecordFile
sys.stdin.readline()
for number in range(0, 90, 3):
    rows = [Record(metric="m", value=value, kind="measured", options={"x": "y" * 30000}) for value in range(number, number + 3)]
    RecordFile(sys.argv[1]).append(rows)
"""  # noqa: E501


def test_a_reader_during_writes_sees_whole_records_and_never_fewer_than_before(tmp_path):
    path = tmp_path / "records.jsonl"
    seen = [0]
    with python("-c", APPEND, str(path), text=True) as writer, warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        writer.stdin.write("go\n")
        writer.stdin.flush()
        while writer.poll() is None:
            values = [record.value for record in RecordFile(path).read()]
            assert values == list(range(len(values)))
            seen.append(len(values))
    assert writer.returncode == 0
    assert seen == sorted(seen)
    assert len(set(seen)) > 3, "the reader did not read while it was written"
    assert {warning.category for warning in told} <= {RecordWarning}  # only about the row that is being written
    assert all("1 unreadable line" in str(warning.message) for warning in told)
    assert [record.value for record in RecordFile(path).read()] == list(range(90))


REPLACE = """
import sys
from pathlib import Path
from ppdm.atomic_io import write_together
from ppdm_bench.report.atomic_io import replace_file
path, how = Path(sys.argv[1]), sys.argv[2]
sys.stdin.readline()
for number in range(60):
    content = bytes([65 + number % 2]) * 200_000
    replace_file(path, content) if how == "replace_file" else write_together({path: content})
"""


@pytest.mark.parametrize("how", ["replace_file", "write_together"])
def test_a_reader_sees_whole_content_while_two_processes_replace_the_file(tmp_path, how):
    path = tmp_path / "file"
    replace_file(path, b"A" * 200_000) if how == "replace_file" else write_together({path: b"A" * 200_000})
    seen = set()
    with python("-c", REPLACE, str(path), how) as one, python("-c", REPLACE, str(path), how) as other:
        for writer in (one, other):
            writer.stdin.write(b"go\n")
            writer.stdin.flush()
        while one.poll() is None or other.poll() is None:
            content = path.read_bytes()
            assert content in (b"A" * 200_000, b"B" * 200_000)
            seen.add(content[:1])
    assert (one.returncode, other.returncode) == (0, 0)
    assert seen == {b"A", b"B"}
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
