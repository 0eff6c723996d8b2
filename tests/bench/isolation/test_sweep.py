"""After a sweep is killed, every finished row is on disk exactly once, and the same command completes the sweep.

Processes, signals, full disks and locks are real; the command, ``sweeping.py``, is small.
"""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from processes import ended, wait_until
from sweeping import case_of, records_of

from ppdm_bench.isolation import sweep
from ppdm_bench.isolation.runner import ChildAnswer
from ppdm_bench.isolation.sweep import Ledger, Sweep
from ppdm_bench.records import Record, RecordFile, RecordWarning

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[2].joinpath("sweeping.py")
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
ALL = [4, 8, 16]


class Folder:
    """A folder of records, and the command that writes them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = RecordFile(path / "records.jsonl")
        self.temporary = path.parent / "temporary"

    def start(self, sizes=ALL, timeout=60, room=None, **deeds) -> subprocess.Popen:
        """Start the command; ``room`` is the largest size of a file that it may write, in bytes."""
        words = [sys.executable, SCRIPT, self.path, ",".join(map(str, sizes))]
        self.temporary.mkdir(exist_ok=True)
        env = ENVIRONMENT | {"TIMEOUT": str(timeout), "DEEDS": json.dumps({k[1:]: v for k, v in deeds.items()})}
        env |= {"TMPDIR": str(self.temporary)}

        def limited() -> None:
            if room is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))

        return subprocess.Popen(words, env=env, stderr=subprocess.PIPE, text=True, preexec_fn=limited)

    def run(self, *arguments, **options) -> tuple[int, str]:
        process = self.start(*arguments, **options)
        return (process.communicate(timeout=120)[1], process.returncode)[::-1]

    @property
    def statuses(self) -> dict[int, str]:
        """The last recorded status of each size."""
        return {r.shape[0]: r.status for r in self.file.read() if r.metric == "peak_allocated"}

    @property
    def started(self) -> list[int]:
        """The sizes of the child processes that were started, in order."""
        return [int(line) for line in (self.path.parent / "started").read_text().split()]

    @property
    def child(self) -> int:
        """The process id of the child that hangs; wait until there is one."""
        pid = self.path.parent / "pid"
        assert wait_until(pid.exists)
        return int(pid.read_text())

    def is_complete(self, sizes=ALL) -> bool:
        """Whether the successful rows are those of these sizes, each exactly once."""
        rows = [(r.shape[0], r.metric, r.value) for r in self.file.read() if r.status == "ok"]
        wanted = {(n, metric, v) for n in sizes for metric, v in (("peak_allocated", n**3), ("params", n))}
        return Counter(rows) == Counter(wanted)


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path / "out")


def test_the_same_command_again_starts_no_child(folder):
    for _ in range(2):
        assert folder.run() == (0, "")
        assert folder.is_complete()
    assert folder.started == ALL


def test_every_outcome_of_a_child_is_a_row_and_the_sweep_continues(folder):
    code, _ = folder.run([4, 5, 6, 7, 8, 9], timeout=3, _5="error", _6="hang", _7="die", _8="oom")
    assert code == 0
    assert folder.statuses == {4: "ok", 5: "error", 6: "timeout", 7: "killed", 8: "oom", 9: "skipped"}
    (skipped,) = [r for r in folder.file.read() if r.status == "skipped"]
    assert skipped.reason == "the same case at 8×8×8, batch size 1 ran out of memory, and this one is not smaller"
    # Repeat without failures: a timeout remains until the time limit is increased, and an out-of-memory remains.
    folder.run([4, 5, 6, 7, 8, 9], timeout=3)
    assert folder.statuses == {4: "ok", 5: "ok", 6: "timeout", 7: "ok", 8: "oom", 9: "skipped"}
    assert folder.started[5:] == [5, 7]
    folder.run([6], timeout=4)
    assert folder.statuses[6] == "ok"
    assert folder.is_complete([4, 5, 6, 7])


def test_a_killed_child_is_a_row_and_the_same_command_measures_it_again(folder):
    process = folder.start(_8="hang")
    os.kill(folder.child, signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert folder.statuses == {4: "ok", 8: "killed", 16: "ok"}
    assert folder.run() == (0, "")
    assert folder.is_complete()
    assert folder.started == [4, 8, 16, 8]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_command_keeps_its_rows_and_leaves_no_child_process(folder, number):
    process = folder.start(_8="hang")
    child = folder.child
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert wait_until(lambda: ended(child))
    assert list(folder.temporary.iterdir()) == []
    assert folder.is_complete([4])
    assert folder.run() == (0, "")
    assert folder.is_complete()
    assert folder.started == [4, 8, 8, 16]


def test_a_command_killed_at_random_moments_can_be_completed(folder):
    sizes, moments = list(range(4, 12)), random.Random(0)
    for _ in range(8):
        process = folder.start(sizes)
        time.sleep(moments.uniform(0.05, 0.6))
        process.kill()
        process.communicate(timeout=60)
        assert folder.is_complete(list(folder.statuses))
    assert folder.run(sizes)[0] == 0
    assert folder.is_complete(sizes)


def test_a_file_size_limit_is_reported_and_the_command_completes_without_it(folder):
    size = len((folder.run([3]), folder.file.path.read_bytes())[1])
    code, sentence = folder.run(room=size * 5 // 2)  # room for two cases and a part of the third
    assert code == 1
    assert "cannot write records" in sentence
    assert "Traceback" not in sentence
    with pytest.warns(RecordWarning, match="1 unreadable"):
        assert folder.statuses == {3: "ok", 4: "ok"}
    assert folder.run()[0] == 0
    with pytest.warns(RecordWarning):
        assert folder.is_complete([3, *ALL])


def mounted(*words) -> None:
    """Run ``mount`` with these arguments, or skip the test if it is not permitted."""
    if subprocess.run(["mount", *words], capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount")


def test_a_full_disk_is_reported_and_the_command_completes_with_more_space(folder):
    folder.path.mkdir()
    mounted("-t", "tmpfs", "-o", "size=4k", "none", folder.path)
    sizes = list(range(4, 12))
    try:
        code, sentence = folder.run(sizes)
        assert code == 1
        assert "cannot write records" in sentence
        with pytest.warns(RecordWarning, match="1 unreadable"):
            assert 1 <= len(folder.statuses) < len(sizes)
        mounted("-o", "remount,size=1m", folder.path)
        assert folder.run(sizes)[0] == 0
        with pytest.warns(RecordWarning):
            assert folder.is_complete(sizes)
    finally:
        subprocess.run(["umount", folder.path], check=True)


def test_a_read_only_folder_is_reported_before_any_child_starts(folder):
    assert folder.run([4])[0] == 0
    if os.geteuid():
        folder.path.chmod(0o555)
        writable = [["chmod", "755", folder.path]]
    else:  # permissions do not restrict root
        mounted("--bind", folder.path, folder.path)
        mounted("-o", "remount,ro,bind", folder.path)
        writable = [["mount", "-o", "remount,rw,bind", folder.path], ["umount", folder.path]]
    try:
        code, sentence = folder.run()
    finally:
        for words in writable:
            subprocess.run(words, check=True)
    assert code == 1
    assert "cannot be written (" in sentence
    assert folder.started == [4]
    assert folder.run() == (0, "")
    assert folder.is_complete()


@pytest.mark.parametrize("kept", [0.5, 1.5])
def test_half_written_rows_are_measured_again(folder, kept):
    """Of the two rows of the last case, the file has half of the first, or the first and half of the second."""
    folder.run()
    *before, first, second = folder.file.path.read_bytes().splitlines(keepends=True)
    torn = first[: len(first) // 2] if kept < 1 else first + second[: len(second) // 2]
    folder.file.path.write_bytes(b"".join(before) + torn)
    assert "1 unreadable line" in folder.run()[1]
    with pytest.warns(RecordWarning):
        assert folder.is_complete()
    assert folder.started == [*ALL, 16]


def test_a_second_command_waits_for_the_first_in_the_same_folder(folder):
    first = folder.start(_4="hang")
    child = folder.child
    second = folder.start()
    assert "another command is running" in second.stderr.readline()
    assert second.poll() is None
    assert not folder.file.path.exists()
    os.kill(child, signal.SIGKILL)
    assert first.wait(60) == 0
    assert second.wait(60) == 0
    assert folder.is_complete()
    assert folder.started == [*ALL, 4]  # the second measured what the first could not
    second.stderr.close()
    first.stderr.close()


def test_a_command_that_is_killed_leaves_no_lock(folder):
    process = folder.start(_4="hang")
    child = folder.child
    process.kill()
    process.communicate(timeout=60)
    assert folder.run() == (0, "")
    assert wait_until(lambda: ended(child))


# --- rules, without processes


def child_of(monkeypatch, **answers):
    """Replace child processes by an answer for each size; return the list of requested sizes."""
    asked = []

    def child(module, request, timeout):
        asked.append(request["size"])
        status = answers.get(f"_{request['size']}", "ok")
        metrics = {"peak_allocated": 5, "params": 1} if status == "ok" else {}
        return ChildAnswer(status, "" if status == "ok" else "so it is", metrics)

    monkeypatch.setattr(sweep, "run_child", child)
    return asked


def test_the_last_record_of_a_case_has_its_main_metric(monkeypatch, tmp_path):
    child_of(monkeypatch)
    made = Sweep("m", 9).measure(case_of(4, tmp_path), records_of)
    assert [record.metric for record in made] == ["params", "peak_allocated"]


def test_only_larger_cases_with_the_same_options_are_skipped_after_out_of_memory(monkeypatch, tmp_path):
    asked = child_of(monkeypatch, _8="oom")
    cases = {n: case_of(n, tmp_path) for n in (4, 8, 16)}
    first = Sweep("m", 9)
    known = first.measure(cases[8], records_of)
    for sweeper in (first, Sweep("m", 9, known)):  # in the same run, and in the next
        assert sweeper.measure(cases[16], records_of)[0].status == "skipped"
        assert sweeper.measure(cases[4], records_of)[0].status == "ok"
    assert asked == [8, 4, 4]
    other = case_of(16, tmp_path)
    for change in ({"phase": "sample"}, {"env": {"dirty": False, "gpu": "x"}}, {"options": {"name": "y"}}):
        unlike = sweep.SweepCase(other.metric, {**other.common, **change}, other.request)
        assert Sweep("m", 9, known).measure(unlike, records_of)[0].status == "ok"


@pytest.mark.parametrize(
    ("shape", "batch_size", "status"),
    [((8, 8, 9), 1, "skipped"), ((8, 8, 8), 2, "skipped"), ((16, 16, 7), 1, "ok"), ((9, 9, 9), None, "skipped")],
)
def test_a_case_is_skipped_only_if_no_axis_is_smaller(monkeypatch, tmp_path, shape, batch_size, status):
    child_of(monkeypatch, _8="oom")
    sweeper = Sweep("m", 9)
    small = case_of(8, tmp_path)
    sweeper.measure(small, records_of)
    common = {**small.common, "config_id": "other", "shape": shape, "batch_size": batch_size}
    common["options"] = {**small.common["options"], "shape": list(shape), "batch_size": batch_size}
    (first, *_) = sweeper.measure(sweep.SweepCase(small.metric, common, {"size": 1}), records_of)
    assert first.status == status


def test_a_doubt_skips_a_case_without_earlier_records(monkeypatch, tmp_path):
    asked = child_of(monkeypatch)
    case = case_of(4, tmp_path)
    (row,) = Sweep("m", 9).measure(case, records_of, "no room")
    assert (row.status, row.reason, row.metric, asked) == ("skipped", "no room", "peak_allocated", [])
    known = Sweep("m", 9).measure(case, records_of)
    assert Sweep("m", 9, known).measure(case, records_of, "no room") == known


def test_a_case_measured_with_uncommitted_changes_is_measured_again(monkeypatch, tmp_path):
    asked = child_of(monkeypatch)
    clean = case_of(4, tmp_path)
    dirty = sweep.SweepCase(clean.metric, {**clean.common, "env": {"dirty": True}}, clean.request)
    known = Sweep("m", 9).measure(dirty, records_of)
    Sweep("m", 9, known).measure(dirty, records_of)
    Sweep("m", 9, known).measure(clean, records_of)
    assert asked == [4, 4, 4]


def test_a_case_of_several_parts_is_settled_only_if_all_parts_have_records(monkeypatch, tmp_path):
    asked = child_of(monkeypatch)
    base = case_of(4, tmp_path)
    case = sweep.SweepCase(base.metric, base.common, base.request, ({"steps": 1}, {"steps": 4}))

    def by_steps(answer, common):
        """Return records in which the longer part was skipped for lack of time."""
        short = Record(metric="peak_allocated", value=5, steps=1, **common)
        return [short, Record(metric="peak_allocated", steps=4, status="skipped", **common | {"reason": "too long"})]

    known = Sweep("m", 9).measure(case, by_steps)
    assert Sweep("m", 9, known).measure(case, by_steps) == known
    assert asked == [4]
    Sweep("m", 9, known[:1]).measure(case, by_steps)
    assert asked == [4, 4]
    failed = case.failed("killed", "so it is")
    assert [(r.steps, r.status) for r in failed] == [(1, "killed"), (4, "killed")]


def test_a_ledger_keeps_each_content_once(tmp_path):
    record = Record(metric="params", kind="measured", value=1)
    for _ in range(2):
        ledger = Ledger(tmp_path)
        ledger.keep([record])
        ledger.keep([record])
    assert Ledger(tmp_path).earlier == [record]
