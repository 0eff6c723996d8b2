"""Start child processes in milliseconds, as forks of a warm process that has imported PyTorch, which takes seconds.

:class:`Popen` replaces :class:`subprocess.Popen` where the package starts a child process with this interpreter. The
child is forked from the warm process. It has the requested arguments, environment, folder, streams and session, and
this process is its parent, so that waiting for it, killing it and ending together with it work as usual.
"""

import atexit
import contextlib
import ctypes
import fcntl
import functools
import gc
import importlib
import inspect
import json
import os
import runpy
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

_CHILDREN = ("ppdm_bench.memory.worker", "ppdm_bench.timing.worker", "ppdm_bench.predictor.script.child")
_READ_LATER = {"PYTHONPATH", "PYTHONUNBUFFERED"}  # the child applies them itself
_PR_SET_CHILD_SUBREAPER = 36


class Popen(subprocess.Popen[Any]):
    """A process that is forked from the warm process if possible, and started as usual otherwise."""

    def _execute_child(self, *values: Any, **named: Any) -> None:
        asked = inspect.signature(super()._execute_child).bind(*values, **named).arguments
        words, env = [os.fsdecode(word) for word in asked["args"]], dict(asked["env"] or os.environ)
        if not sys.platform.startswith("linux") or not _is_served(words, env) or asked["preexec_fn"]:
            super()._execute_child(*values, **named)
            return
        streams = {number: asked[name] for number, name in enumerate(("p2cread", "c2pwrite", "errwrite"))}
        passed = {number: file for number, file in streams.items() if file != -1}
        passed |= {number: number for number in asked["pass_fds"]}
        for number in range(3):
            passed.setdefault(number, number)
        request = {
            "words": words[1:],
            "env": env,
            "folder": os.fspath(asked["cwd"] or Path.cwd()),
            "session": asked["start_new_session"],
            "files": list(passed),
        }
        warm = _warm()
        _adopt(True)
        try:
            socket.send_fds(warm, [json.dumps(request).encode()], list(passed.values()))
            self.pid = int(warm.recv(100))
        finally:
            _adopt(False)
        self._child_created = True
        pipes = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
        self._close_pipe_fds(*(asked[name] for name in pipes))


def _is_served(words: list[str], env: dict[str, str]) -> bool:
    """Return whether a command uses this interpreter, with the same values of variables that are read at startup."""
    if words[0] != sys.executable or not _program(words[1:]):
        return False

    def at_start(variables: Any) -> dict[str, str]:
        begins = ("PYTHON", "OMP_", "MKL_", "LD_", "MALLOC", "TORCH", "PYTORCH", "CUDA")
        return {n: v for n, v in variables.items() if n.startswith(begins) and n not in _READ_LATER}

    return at_start(env) == at_start(os.environ)


def _program(words: list[str]) -> list[str]:
    """Return ``-m``, a module and its arguments, or a file and its arguments; empty for any other command.

    ``-P`` may precede a module, but not a file: the file could read it in ``sys.flags``, which are those of the warm
    process.
    """
    words = words[1:] if words[:2] == ["-P", "-m"] else words
    return words if words and (words[0] == "-m" or not words[0].startswith("-")) else []


def _adopt(whether: bool) -> None:
    """Choose whether orphaned descendants become children of this process instead of the init process."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, int(whether), 0, 0, 0)


@functools.cache
def _warm() -> socket.socket:
    """Start the warm process, which ends with this process, and return the connection to it."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with there:
        server = subprocess.Popen([sys.executable, __file__, str(there.fileno())], pass_fds=[there.fileno()], env=env)
    atexit.register(server.wait)
    atexit.register(here.close)
    return here


def _serve(connection: socket.socket) -> dict[str, Any]:
    """Fork a child for each request; return in the child only, with the request."""
    for name in _CHILDREN:
        importlib.import_module(name)
    for name in _CHILDREN[:2]:
        del sys.modules[name]  # runpy imports them as __main__
    importlib.import_module("torch._dynamo")
    gc.collect()
    gc.freeze()
    while True:
        message, files, _, _ = socket.recv_fds(connection, 2**20, 32)
        if not message:
            os._exit(0)
        if (between := os.fork()) == 0:  # it ends at once, so that the requesting process adopts its child
            between = os.getpid()
            if os.fork():
                os._exit(0)
            while os.getppid() == between:
                time.sleep(0.0005)
            connection.send(str(os.getpid()).encode())
            connection.close()
            request: dict[str, Any] = json.loads(message)
            _take(files, request["files"])
            return request
        os.waitpid(between, 0)
        for file in files:
            os.close(file)


def _take(files: list[int], numbers: list[int]) -> None:
    """Give the received file descriptors the requested numbers."""
    above = [fcntl.fcntl(file, fcntl.F_DUPFD, 100 + max(numbers)) for file in files]
    for file in files:
        os.close(file)
    for file, number in zip(above, numbers, strict=True):
        os.dup2(file, number, inheritable=True)
        os.close(file)


def _run(request: dict[str, Any]) -> None:
    """Become the requested process."""
    if request["session"]:
        os.setsid()
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["env"])
    if os.environ.get("PYTHONUNBUFFERED"):
        sys.stdout.reconfigure(write_through=True)  # type: ignore[union-attr]
    words = _program(request["words"])
    library = [place for place in sys.path if place.startswith((sys.base_prefix, sys.prefix))]
    paths = request["env"].get("PYTHONPATH", "")
    sys.path[:] = [*filter(None, paths.split(os.pathsep)), *library]
    importlib.invalidate_caches()
    if words[0] == "-m":
        sys.argv[:] = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv[:] = words
        sys.path.insert(0, str(Path(words[0]).resolve().parent))
        runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        _run(_serve(socket.socket(fileno=int(sys.argv[1]))))
