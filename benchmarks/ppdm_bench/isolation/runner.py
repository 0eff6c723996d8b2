"""One measurement, one fresh child process: a crash, a timeout or an out-of-memory is an answer, never an end."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from tempfile import TemporaryFile
from typing import IO, Any


@dataclass(frozen=True)
class Answer:
    """What became of a child.

    Attributes:
        status: ok, oom, timeout, error or killed.
        reason: in words, wherever the status is not ok, and for what is to be known of an ok.
        metrics: by name.
        env: the environment of the child.
        evaluations: of the network in one iteration, if the child said so.
    """

    status: str
    reason: str = ""
    metrics: Mapping[str, int] = field(default_factory=dict)
    env: Mapping[str, Any] = field(default_factory=dict)
    evaluations: int | None = None


def run_child(module: str, request: Mapping[str, Any], timeout: float) -> Answer:
    """Run ``python -m module`` on a request and wait for its answer.

    Whatever happens, Ctrl-C included, the child and its children have ended when this returns.

    Args:
        module: reads the request as JSON from its standard input, writes an answer to ``request["answer"]``, the number
            of an open file, and ends when ``request["parent"]`` is its parent no longer, see
            :func:`ppdm_bench.isolation.child.serve`.
        request: JSON values.
        timeout: seconds after which the child and its children are killed.
    """
    # Files without a name: whoever is killed, nothing of them stays on the disk.
    with TemporaryFile() as asked, TemporaryFile() as answer, TemporaryFile() as errors:
        about = {"answer": answer.fileno(), "parent": os.getpid()}
        asked.write(json.dumps(dict(request) | about).encode())
        asked.seek(0)
        try:
            with _child(module, asked, answer, errors) as child:
                code = child.wait(timeout)
        except subprocess.TimeoutExpired:
            return Answer("timeout", too_long(timeout))
        answer.seek(0)
        with suppress(ValueError):  # nothing, or what a child wrote that was killed meanwhile
            return Answer(**json.loads(answer.read()))
        errors.seek(0)
        return _without_answer(code, errors.read().decode(errors="replace"))


class TimeIsUpError(BaseException):
    """What runs in this process has taken too long. Not an Exception: code that catches those must not go on."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise within the block when it takes longer; only the main thread can be interrupted, and others are not.

    Raises:
        TimeIsUpError: the time is up; its text is :func:`too_long`.
    """

    def ring(*_: object) -> None:
        raise TimeIsUpError(too_long(seconds))

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGALRM, ring)
    # Again and again: an exception that is raised while a weak reference is cleared is swallowed.
    signal.setitimer(signal.ITIMER_REAL, seconds, 1)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def too_long(seconds: float) -> str:
    """The reason of a timeout, and what mends it."""
    return f"it had not ended after {seconds:g} s; a larger --timeout gives it more"


@contextmanager
def _child(module: str, asked: IO[bytes], answer: IO[bytes], errors: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """The child, in a session of its own, so that its children end with it.

    It talks through files: a pipe would stay open for as long as any of its children lives.
    """
    # -P, and the parent's path: nothing that lies in the current folder may hide a module that the child needs.
    command = [sys.executable, "-P", "-m", module]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    streams: dict[str, Any] = {"stdin": asked, "stdout": subprocess.DEVNULL, "stderr": errors}
    child = subprocess.Popen(command, **streams, pass_fds=[answer.fileno()], env=env, start_new_session=True)
    try:
        yield child
    finally:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        _reap(child)


def _reap(child: subprocess.Popen[bytes]) -> None:
    """Wait for a killed child past ``Popen.wait``, whose lock a signal may have left taken when it ended that call."""
    if child.returncode is None:
        try:
            child.returncode = os.waitstatus_to_exitcode(os.waitpid(child.pid, 0)[1])
        except ChildProcessError:  # that call had reaped it already, and was ended before it said so
            child.returncode = -signal.SIGKILL


def _without_answer(code: int, errors: str) -> Answer:
    if code < 0:
        hint = " (often the system's out-of-memory killer)" if -code == signal.SIGKILL else ""
        return Answer("killed", f"the process was ended by {_signal_name(-code)}{hint}")
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    said = f"its last words: {lines[-1]}" if lines else "it said nothing"
    return Answer("error", f"the process ended with code {code} and without an answer; {said}")


def _signal_name(number: int) -> str:
    known = {known.value: known.name for known in signal.Signals}
    return known.get(number, f"signal {number}")
