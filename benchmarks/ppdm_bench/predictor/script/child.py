"""The child process: runs the program under prediction, counts optimizer steps, and ends the process after the last."""

import faulthandler
import json
import os
import pickle
import runpy
import signal
import socket
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from ppdm_bench.predictor import lines
from ppdm_bench.predictor.data_loading import raised_by_early_batches, watching_loaders
from ppdm_bench.predictor.lines import Line
from ppdm_bench.predictor.modules import Modules
from ppdm_bench.predictor.peak import predicting
from ppdm_bench.predictor.script.kept_floats import compiled, keep_floats
from ppdm_bench.predictor.script.overlay import Overlay
from ppdm_bench.predictor.sizes import PredictionError
from ppdm_bench.predictor.target import MIB, Target
from ppdm_bench.predictor.timeline import Timeline
from ppdm_bench.predictor.trace import Trace, tracing

ANSWER, OUTPUT, STEPS, REQUEST, FILES, TEMPORARY = "answer", "output", "steps", "request", "files", "tmp"

_COMPILED = (
    "the program compiles code (torch.compile), which was run as written, uncompiled; fused kernels often keep less"
)
_TURNS = 10  # steps of all optimizers together, in units of the steps asked for, after which a prediction ends


@dataclass
class Course:
    """What a program did in its child process.

    Attributes:
        outcome: ``steps`` (it took all steps), ``ended``, ``exit``, ``input`` (it waited for some), ``raised``,
            ``made up`` (it raised after it read made-up values), ``refused`` or ``timeout``.
        detail: the place and the error in words, or the code of ``sys.exit``; for ``timeout``, the place.
        steps: optimizer steps; with several optimizers, of the one that took the fewest.
        timeline: allocations and releases.
        told: how often each line read a made-up value.
        started: other processes that it started.
        notes: what was predicted otherwise than written.
        early: bytes of batches that the workers of loaders may send before their turn; in a measurement, by how many
            bytes such batches raised the peak.
        torch: version of PyTorch.
    """

    outcome: str
    detail: str
    steps: int
    timeline: Timeline
    told: Mapping[Line | None, int] = field(default_factory=dict)
    started: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    early: int = 0
    torch: str = torch.__version__


class Session:
    """One run of a program.

    Args:
        trace: the prediction that it runs in.
        folder: where the answer goes.
        steps: optimizer steps to take.
    """

    def __init__(self, trace: Trace, folder: Path, steps: int) -> None:
        self.trace = trace
        self.started: list[str] = []
        self.notes: list[str] = []
        self._folder, self._asked, self._process = folder, steps, os.getpid()
        self._counts: weakref.WeakKeyDictionary[Optimizer, int] = weakref.WeakKeyDictionary()
        self._steps = self._turns = 0
        self._answering = threading.Lock()
        self._steps_file = os.open(folder / STEPS, os.O_WRONLY | os.O_CREAT)
        trace.timeline.mark()

    def after_step(self, optimizer: Optimizer, *_: Any) -> None:
        """Count a step; end the process after the last one."""
        if os.getpid() != self._process:
            os.kill(self._process, signal.SIGSTOP)  # it waits for this process, or would answer too
            self.end(
                "refused", "the program trains in a process that it starts itself, which a prediction cannot follow"
            )
        self._counts[optimizer] = self._counts.get(optimizer, 0) + 1
        self._turns += 1
        if (fewest := min(self._counts.values())) <= self._steps and self._turns < _TURNS * self._asked:
            return
        self._steps = max(fewest, self._steps)
        os.pwrite(self._steps_file, str(self._steps).encode(), 0)
        if self._steps >= self._asked or self._turns >= _TURNS * self._asked:
            self.end("steps")
        self.trace.timeline.mark()

    def end(self, outcome: str, detail: str = "") -> None:
        """Write the answer and end the process at once, whatever the program would do."""
        self._answering.acquire()  # and never release: one thread answers, the others wait for the end
        place = self._folder / ANSWER
        timeline, constants = self.trace.timeline, self.trace.constants
        if timeline.ended is None:
            timeline.ended = timeline.now
        if timeline.marks[-1] == timeline.now and len(timeline.marks) > 1:
            timeline.marks.pop()
        timeline.here = None
        early = self.trace.early if self.trace.target is None else 0
        if early:
            self.notes.append(
                "workers of a data loader may send batches before their turn, which is up to "
                f"{early / MIB:.1f} MiB more; it depends on their speed"
            )
        if self.trace.arrived:
            early = raised_by_early_batches(timeline, self.trace.arrived)
        told = dict(constants.told) if constants else {}
        started = tuple(dict.fromkeys(self.started))
        course = Course(outcome, detail, self._steps, timeline, told, started, tuple(self.notes), early)
        with os.fdopen(os.open(place.with_suffix(".part"), os.O_WRONLY | os.O_CREAT), "wb") as stream:
            pickle.dump(course, stream)
        os.replace(place.with_suffix(".part"), place)
        for printed in (sys.stdout, sys.stderr):
            try:
                printed.flush()
            except (OSError, ValueError, AttributeError):
                continue
        if os.getpid() != self._process:
            os.kill(self._process, signal.SIGKILL)
        os._exit(0)

    def watch(self, parent: int, until: float) -> None:
        """End the process when the time is up (by ``time.monotonic``, as the parent's), or the parent has ended."""
        while os.getppid() == parent:
            if time.monotonic() > until:
                self.end("timeout", _place(lines.here(sys._current_frames().get(threading.main_thread().ident or 0))))
            time.sleep(0.2)
        os._exit(1)

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Note the processes that the program starts. ``os.exec`` would replace this one."""
        if event == "os.exec":
            raise PredictionError(
                "the program replaces its process by another (os.exec), which a prediction does not follow; set up "
                "first what it sets up there, and predict it then"
            )
        if event in ("subprocess.Popen", "os.posix_spawn", "os.system"):
            words = arguments[1] if event == "subprocess.Popen" else arguments[0]
            if isinstance(words, list | tuple):
                words = " ".join(map(os.fsdecode, words))
            self.started.append(os.fsdecode(words))


def run(folder: Path) -> None:
    """Run the request in a folder. The process ends here."""
    request = json.loads((folder / REQUEST).read_text())
    faulthandler.enable()
    target = _target(request["target"]) if isinstance(request["target"], dict) else request["target"]
    modules = Modules()
    with ExitStack() as stack:
        follow = tracing(modules=modules) if request["measured"] else predicting(target, modules=modules, home="host")
        trace = stack.enter_context(follow)
        if request["measured"]:
            stack.enter_context(watching_loaders(trace))
        os.register_at_fork(after_in_child=stack.close)  # a process that loads data works on real tensors
        trace.timeline.here, session = lines.here, Session(trace, folder, request["steps"])
        if trace.constants:
            trace.constants.here = lines.reading
            keep_floats(trace)
        register_optimizer_step_post_hook(session.after_step)
        watch = threading.Thread(target=session.watch, args=(request["parent"], request["until"]), daemon=True)
        watch.start()
        torch.multiprocessing.spawn = _spawn  # type: ignore[attr-defined]
        _note_compiling(session)
        if not request["keep_files"]:
            Overlay(folder / FILES).enter()
        sys.addaudithook(session.audit)
        _outcome(session, request)


def _note_compiling(session: Session) -> None:
    """Say in the result that compiled code was predicted as written."""

    def noted(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def compiling(*args: Any, **kwargs: Any) -> Any:
            if _COMPILED not in session.notes:
                session.notes.append(_COMPILED)
            return function(*args, **kwargs)

        return compiling

    torch.compile = noted(torch.compile)
    torch.nn.Module.compile = noted(torch.nn.Module.compile)  # type: ignore[method-assign]


def _target(fields: dict[str, Any]) -> Target:
    for name in ("compute_capability", "cudnn"):  # JSON has only lists
        fields[name] = fields[name] and tuple(fields[name])
    return Target(**fields)


def _outcome(session: Session, request: Mapping[str, Any]) -> None:
    try:
        _program(request, session)()
    except SystemExit as leaving:
        code = leaving.code
        session.end("ended" if code in (None, 0) else "exit", "" if code is None else str(code))
    except BaseException as error:
        _print(error)
        told = bool(session.trace.constants and session.trace.constants.told)
        refused = isinstance(error, PredictionError)
        where = lines.of_traceback(error.__traceback__)
        place = f"{_place(where)}: " if where else ""
        if isinstance(error, EOFError):
            session.end("input", place)
        words = str(error) if refused else f"{type(error).__name__}: {error}"
        session.end("refused" if refused else "made up" if told else "raised", place + words.partition("\n")[0])
    session.end("ended")


def _place(line: Line | None) -> str:
    if line is None:
        return ""
    near = os.path.relpath(line.file)
    return f"{line.file if near.startswith('..') else near}:{line.number}"


def _print(error: BaseException) -> None:
    """Print a traceback as Python does, which has no frames before the program."""
    traced = error.__traceback__
    while traced and traced.tb_frame.f_code.co_filename in (__file__, runpy.__file__, "<frozen runpy>"):
        traced = traced.tb_next
    traceback.print_exception(error.with_traceback(traced or error.__traceback__))


def _program(request: Mapping[str, Any], session: Session) -> Callable[[], Any]:
    """The program of a request, as a function that runs it as Python would."""
    kind, program, arguments = request["kind"], request["program"], list(request["arguments"])
    if kind == "torchrun":
        kind, program, arguments = _under_torchrun(arguments, session)
    sys.argv = [program, *arguments]
    safe = sys.flags.safe_path
    if kind == "script" and os.path.isdir(program):
        return lambda: runpy.run_path(program, run_name="__main__")
    if kind == "script":
        if not safe:
            sys.path.insert(0, os.path.dirname(os.path.realpath(program)))
        return lambda: _execute(Path(program).read_bytes(), os.path.abspath(program))
    if not safe:
        sys.path.insert(0, os.getcwd() if kind == "module" else "")
    if kind == "module":
        return lambda: runpy.run_module(program, run_name="__main__", alter_sys=True)
    sys.argv[0] = "-c"
    return lambda: _execute(program, "-c")


def _execute(text: str | bytes, file: str) -> None:
    """Run the text of a program as the main module. ``runpy.run_path`` would give it another ``sys.argv`` or file."""
    main = sys.modules["__main__"] = ModuleType("__main__")
    if file != "-c":
        main.__file__ = file
    exec(compiled(text, file), vars(main))  # noqa: S102 (the user's program)


def _under_torchrun(words: list[str], session: Session) -> tuple[str, str, list[str]]:
    """Read the options of torchrun, set its variables for a world of one process, and return its program."""
    from torch.distributed.run import parse_args

    asked = parse_args(words)
    if (asked.nproc_per_node, asked.nnodes) not in (("1", "1"), ("1", "1:1")):
        session.notes.append(
            "torchrun starts several processes; this is one process in a world of 1, as DistributedDataParallel has it "
            "on each GPU (a model that is sharded over processes takes less)"
        )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = dict.fromkeys(("RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "TORCHELASTIC_RESTART_COUNT"), "0")
    sizes = dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "ROLE_WORLD_SIZE"), "1")
    more = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "none"}
    more |= {"ROLE_NAME": "default", "TORCHELASTIC_MAX_RESTARTS": "0", "OMP_NUM_THREADS": "1"}
    os.environ.update(ranks | sizes | more)
    kind = "module" if asked.module else "script"
    return kind, asked.training_script, list(asked.training_script_args)


def _spawn(fn: Callable[..., Any], args: tuple[Any, ...] = (), nprocs: int = 1, *_: Any, **__: Any) -> None:
    """``torch.multiprocessing.spawn`` of one process: its function runs in this process."""
    if nprocs != 1:
        raise PredictionError(
            f"torch.multiprocessing.spawn starts {nprocs} processes, and a prediction is of one; run the program with "
            "one process"
        )
    fn(0, *args)
