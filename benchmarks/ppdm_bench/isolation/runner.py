"""Run each measurement in a fresh child process; a crash, timeout or out-of-memory error becomes an answer."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from tempfile import TemporaryFile
from typing import Any


@dataclass(frozen=True)
class ChildAnswer:
    """Result of a child process.

    Attributes:
        status: ok, oom, timeout, error or killed.
        reason: reason of a failure; with status ok, a note or an empty text.
        metrics: values by metric name.
        env: environment of the child.
    """

    status: str
    reason: str = ""
    metrics: Mapping[str, int] = field(default_factory=dict)
    env: Mapping[str, Any] = field(default_factory=dict)


def run_child(module: str, request: Mapping[str, Any], timeout: float) -> ChildAnswer:
    """Run ``python -m module`` on a request and wait for its answer.

    When this function returns, also after Ctrl-C, the child and its descendants have ended.

    Args:
        module: module that reads the request as JSON from standard input, writes an answer to the open file descriptor
            ``request["answer"]``, and exits when ``request["parent"]`` is no longer its parent process, see
            :func:`ppdm_bench.isolation.child.serve`.
        request: JSON values.
        timeout: time limit in seconds, after which the child and its descendants are killed.
    """
    # Unnamed temporary files leave nothing on the disk, even if a process is killed.
    with TemporaryFile() as asked, TemporaryFile() as answer, TemporaryFile() as errors:
        about = {"answer": answer.fileno(), "parent": os.getpid()}
        asked.write(json.dumps(dict(request) | about).encode())
        asked.seek(0)
        # Use files instead of pipes: a pipe stays open while any descendant of the child runs.
        streams: dict[str, Any] = {"stdin": asked, "stdout": subprocess.DEVNULL, "stderr": errors}
        try:
            with process([module], **streams, pass_fds=[answer.fileno()]) as child:
                code = child.wait(timeout)
        except subprocess.TimeoutExpired:
            return ChildAnswer("timeout", too_long(timeout))
        answer.seek(0)
        with suppress(ValueError):  # empty, or incomplete because the child was killed while writing
            return ChildAnswer(**json.loads(answer.read()))
        errors.seek(0)
        return _without_answer(code, errors.read().decode(errors="replace"))


class TimeIsUpError(BaseException):
    """The time limit of this process is exceeded; a BaseException, so that no ``except Exception`` catches it."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise an error inside the block when the time limit is exceeded; no effect outside the main thread.

    Raises:
        TimeIsUpError: the time limit is exceeded; the message is that of :func:`too_long`.
    """

    def ring(*_: object) -> None:
        raise TimeIsUpError(too_long(seconds))

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGALRM, ring)
    # Repeat the alarm, because Python discards an exception that is raised in the callback of a weak reference.
    signal.setitimer(signal.ITIMER_REAL, seconds, 1)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def too_long(seconds: float) -> str:
    """Return the reason of a timeout, with the option that sets the limit."""
    return f"it had not ended after {seconds:g} s; set a larger --timeout"


@contextmanager
def process(words: Sequence[str], grace: float = 0, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Run ``python -m words`` during the block; at the end, kill the process and its descendants.

    The process starts in a new session, so that its descendants can be killed with it and Ctrl-C does not reach it.

    Args:
        words: module and its arguments.
        grace: seconds between SIGTERM and SIGKILL; 0 sends SIGKILL immediately.
        options: streams and file descriptors, as for :class:`subprocess.Popen`.
    """
    # Use -P and the parent's path, so that no file in the current folder shadows a module that the process needs.
    command = [sys.executable, "-P", "-m", *words]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    child = subprocess.Popen(command, env=env, start_new_session=True, **options)
    try:
        yield child
    finally:
        if grace and child.poll() is None:
            with suppress(ProcessLookupError, subprocess.TimeoutExpired):
                child.terminate()
                child.wait(grace)
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        _reap(child)


def _reap(child: subprocess.Popen[bytes]) -> None:
    """Wait for a killed child without ``Popen.wait``: a signal may have interrupted it while it held its lock."""
    if child.returncode is None:
        try:
            child.returncode = os.waitstatus_to_exitcode(os.waitpid(child.pid, 0)[1])
        except ChildProcessError:  # the interrupted call has already reaped the child, but not set the return code
            child.returncode = -signal.SIGKILL


def _without_answer(code: int, errors: str) -> ChildAnswer:
    if code < 0:
        hint = " (often the system's out-of-memory killer)" if -code == signal.SIGKILL else ""
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        return ChildAnswer("killed", f"the process was ended by {name}{hint}")
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    output = f"its last line of output: {lines[-1]}" if lines else "it printed nothing"
    return ChildAnswer("error", f"the process ended with code {code} and without an answer; {output}")
