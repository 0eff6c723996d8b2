"""The runner with real child processes; their modules do not need PyTorch, so that they start quickly."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress

import pytest
from processes import ended, wait_until

from ppdm_bench.isolation import runner
from ppdm_bench.isolation.runner import ChildAnswer, TimeIsUpError, run_child, time_limit

pytestmark = [pytest.mark.slow, pytest.mark.cold]

ANSWER = """
import json, sys
request = json.load(sys.stdin)
def answer(**content):
    open(request["answer"], "w").write(json.dumps(content))
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)

    def run(code, timeout=60.0, **request):
        (tmp_path / "child.py").write_text(ANSWER + code)
        return run_child("child", request, timeout)

    return run


def test_all_fields_of_an_answer_are_returned(run):
    code = 'answer(status="ok", reason="", metrics={"peak": request["size"]}, env={"torch": "x"})'
    assert run(code, size=2**40) == ChildAnswer("ok", "", {"peak": 2**40}, {"torch": "x"})


def test_garbage_on_stdout_and_stderr_does_not_affect_the_answer(run):
    code = 'print("{}" * 100_000); sys.stderr.write("\\xff" * 200_000); answer(status="ok", metrics={"peak": 1})'
    assert run(code).metrics == {"peak": 1}


def test_an_answer_is_valid_even_if_the_child_then_crashes(run):
    assert run('answer(status="ok", metrics={"peak": 1}); import os; os.abort()').status == "ok"


def test_an_exception_is_an_error_with_its_message(run):
    answer = run('raise RuntimeError("no such thing")')
    assert answer.status == "error"
    assert answer.reason.endswith("RuntimeError: no such thing")
    assert "code 1" in answer.reason


def test_an_exit_without_an_answer_is_an_error(run):
    answer = run("sys.exit(7)")
    assert (answer.status, answer.reason) == (
        "error",
        "the process ended with code 7 and without an answer; it printed nothing",
    )


def test_a_missing_module_is_an_error():
    answer = run_child("nothing_of_that_name", {}, 60)
    assert answer.status == "error"
    assert "nothing_of_that_name" in answer.reason


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGRTMIN + 1])
def test_a_child_ended_by_a_signal_has_the_status_killed(run, number):
    answer = run(f"import os; os.kill(os.getpid(), {int(number)})")
    assert answer.status == "killed"
    assert ("out-of-memory killer" in answer.reason) == (number == signal.SIGKILL)


HANG = """
import os, subprocess, time
grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open(request["pids"], "w").write(f"{os.getpid()} {grandchild.pid}")
"""


def test_a_hang_is_a_timeout_and_the_grandchild_ends_too(run, tmp_path):
    answer = run(HANG + "time.sleep(600)", timeout=2, pids=str(tmp_path / "pids"))
    assert answer.status == "timeout"
    assert "2 s" in answer.reason
    for pid in (tmp_path / "pids").read_text().split():
        assert wait_until(lambda pid=pid: ended(int(pid)))


def test_a_process_left_by_a_child_is_ended_and_not_waited_for(run, tmp_path):
    answer = run(HANG + 'answer(status="ok", metrics={"peak": 1})', timeout=30, pids=str(tmp_path / "pids"))
    assert answer.status == "ok"
    _, grandchild = map(int, (tmp_path / "pids").read_text().split())
    assert wait_until(lambda: ended(grandchild))


def test_an_interruption_ends_the_child_and_the_grandchild(run, tmp_path, monkeypatch):
    def interrupted(child, timeout=None, wait=subprocess.Popen.wait):
        if timeout is not None:
            assert wait_until(lambda: (tmp_path / "pids").exists() and (tmp_path / "pids").read_text())
            raise KeyboardInterrupt
        return wait(child)

    monkeypatch.setattr(subprocess.Popen, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(HANG + "time.sleep(600)", pids=str(tmp_path / "pids"))
    for pid in (tmp_path / "pids").read_text().split():
        assert wait_until(lambda pid=pid: ended(int(pid)))


def test_a_file_in_the_current_folder_hides_no_module(run, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "json.py").write_text("raise SystemExit(9)")
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", os.getcwd())])
    assert run('answer(status="ok", metrics={"peak": 1})').status == "ok"


def test_no_temporary_files_remain(run, tmp_path, monkeypatch):
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    run('answer(status="ok", metrics={"peak": 1})')
    assert list((tmp_path / "temporary").iterdir()) == []


def test_an_exit_while_popen_holds_its_wait_lock_still_ends_the_child(tmp_path, monkeypatch):
    """A signal can arrive after ``Popen.wait`` acquired its lock and before the block that releases it."""
    (tmp_path / "sleeps.py").write_text("import time\ntime.sleep(600)\n")
    monkeypatch.syspath_prepend(tmp_path)
    held = []

    def is_ended_while_it_waits() -> None:
        with runner.process(["sleeps"]) as child:
            held.append(child)
            child._waitpid_lock.acquire()
            raise SystemExit

    with pytest.raises(SystemExit):
        is_ended_while_it_waits()
    assert held[0].returncode == -signal.SIGKILL
    with pytest.raises(ChildProcessError):  # the child process was reaped
        os.waitpid(held[0].pid, os.WNOHANG)


def test_a_child_that_was_reaped_elsewhere_is_not_waited_for(tmp_path, monkeypatch):
    (tmp_path / "ends.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    with runner.process(["ends"]) as child:
        os.waitpid(child.pid, 0)
    assert child.returncode == -signal.SIGKILL


def test_the_time_limit_interrupts_even_code_that_catches_exceptions():
    handler, began = signal.getsignal(signal.SIGALRM), time.monotonic()

    def stubborn() -> None:
        for _ in range(10):
            with suppress(Exception):
                time.sleep(60)

    with pytest.raises(TimeIsUpError, match=r"0\.1 s; set a larger --timeout"), time_limit(0.1):
        stubborn()
    assert time.monotonic() - began < 60
    assert signal.getsignal(signal.SIGALRM) == handler
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_the_time_limit_ignores_fast_code_and_other_threads():
    with time_limit(60):
        time.sleep(0.01)
    done = []

    def late() -> None:
        with time_limit(0.01):
            time.sleep(0.1)
            done.append(True)

    thread = threading.Thread(target=late)
    thread.start()
    thread.join()
    assert done == [True]


def test_a_child_whose_parent_ended_during_its_imports_ends_too(tmp_path):
    """The request names the parent process; the child ends because its parent is another process."""
    (tmp_path / "request.json").write_text(json.dumps({"answer": str(tmp_path / "answer.json"), "parent": 2**22 + 1}))
    code = "import time; from ppdm_bench.isolation.child import serve; serve(lambda _: time.sleep(600) or {})"
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with (tmp_path / "request.json").open() as request:
        child = subprocess.Popen([sys.executable, "-c", code], stdin=request, env=env, start_new_session=True)
    assert child.wait(60) == -signal.SIGKILL
    assert not (tmp_path / "answer.json").exists()


def test_a_killed_command_leaves_no_temporary_files(tmp_path):
    """The kill comes before the child has started, while it works, or after it has answered."""
    (tmp_path / "temporary").mkdir()
    answer = 'time.sleep(0.2) or {"status": "ok"}'
    (tmp_path / "child.py").write_text(
        f"import time\nfrom ppdm_bench.isolation.child import serve\nserve(lambda _: {answer})\n"
    )
    code = "from ppdm_bench.isolation.runner import run_child\n"
    code += "while True: print(run_child('child', {}, 60).status, flush=True)\n"
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    env = os.environ | {"PYTHONPATH": path, "TMPDIR": str(tmp_path / "temporary")}
    for seconds in (0, 0.05, 0.1, 0.2, 0.3):
        with subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE) as parent:
            assert parent.stdout.readline() == b"ok\n"
            time.sleep(seconds)
            parent.kill()
    assert list((tmp_path / "temporary").iterdir()) == []


def test_a_partial_answer_is_ignored(run):
    code = 'import os, signal; os.write(request["answer"], b"{\\"status\\": "); os.kill(os.getpid(), signal.SIGKILL)'
    assert run(code).status == "killed"
