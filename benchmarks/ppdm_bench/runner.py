"""One measurement, one fresh child process: a crash, a timeout or an out-of-memory is an answer, never an end."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Answer:
    """What became of a child.

    Attributes:
        status: ok, oom, timeout, error or killed.
        reason: in words, wherever the status is not ok, and for what makes an ok suspect.
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

    Args:
        module: reads the request as JSON from its standard input and writes an answer to ``request["answer"]``.
        request: JSON values.
        timeout: seconds after which the child and its children are killed.
    """
    with tempfile.TemporaryDirectory(prefix="ppdm-bench-") as folder:
        path = Path(folder) / "answer.json"
        child = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            start_new_session=True,  # so that its children go with it
        )
        try:
            _, errors = child.communicate(json.dumps(dict(request) | {"answer": str(path)}), timeout)
        except subprocess.TimeoutExpired:
            _kill(child)
            return Answer("timeout", f"it had not ended after {timeout:g} s")
        except BaseException:  # Ctrl-C ends the child too
            _kill(child)
            raise
        if path.exists():
            return Answer(**json.loads(path.read_text()))
        return _without_answer(child.returncode, errors)


def _kill(child: subprocess.Popen[str]) -> None:
    os.killpg(child.pid, signal.SIGKILL)
    child.communicate()


def _without_answer(code: int, errors: str) -> Answer:
    if code < 0:
        name = signal.Signals(-code).name
        hint = " (often the system's out-of-memory killer)" if name == "SIGKILL" else ""
        return Answer("killed", f"the process was ended by {name}{hint}")
    lines = [line for line in errors.splitlines() if line.strip()]
    return Answer("error", lines[-1] if lines else f"the process ended with code {code} and said nothing")
