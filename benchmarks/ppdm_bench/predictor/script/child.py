"""The child process: run the program under prediction, count optimizer steps, and exit after the last one."""

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
from ppdm_bench.predictor.data_loading import raised_by_prefetched, watching_loaders
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
    "the program uses torch.compile, and the prediction ran the code uncompiled; compiled code often needs less memory"
)
_MAX_RATIO = 10  # the prediction ends after this many times the requested steps, over all optimizers together


@dataclass
class RunReport:
    """What a program did in the child process.

    Attributes:
        outcome: ``steps`` (it took all steps), ``ended``, ``exit`` (``sys.exit`` with an error), ``input`` (it read
            standard input), ``raised``, ``made up`` (it raised after it read made-up values), ``refused`` (it cannot be
            predicted) or ``timeout``.
        detail: line and text of the error, or the argument of ``sys.exit``; for ``timeout``, the line that was running.
        steps: optimizer steps; with several optimizers, those of the one that took the fewest.
        timeline: allocations and releases.
        made_up: number of reads of made-up values by line.
        started: command lines of other processes that it started.
        notes: differences between the prediction and the program.
        prefetched: as in :class:`ppdm_bench.predictor.script.prediction.ScriptPrediction`.
        torch: version of PyTorch.
    """

    outcome: str
    detail: str
    steps: int
    timeline: Timeline
    made_up: Mapping[Line | None, int] = field(default_factory=dict)
    started: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    prefetched: int = 0
    torch: str = torch.__version__


class ScriptRun:
    """One run of a program: count its steps, and write the report at the end.

    Args:
        trace: the trace that records the program.
        folder: folder for the report.
        steps: optimizer steps after which the run ends.
    """

    def __init__(self, trace: Trace, folder: Path, steps: int) -> None:
        self.trace = trace
        self.started: list[str] = []
        self.notes: list[str] = []
        self._folder, self._requested, self._process = folder, steps, os.getpid()
        self._counts: weakref.WeakKeyDictionary[Optimizer, int] = weakref.WeakKeyDictionary()
        self._steps = self._all_steps = 0
        self._report_lock = threading.Lock()
        self._steps_file = os.open(folder / STEPS, os.O_WRONLY | os.O_CREAT)
        trace.timeline.mark()

    def after_step(self, optimizer: Optimizer, *_: Any) -> None:
        """Count an optimizer step; end the process after the last one."""
        if os.getpid() != self._process:
            os.kill(self._process, signal.SIGSTOP)  # stop the parent, which would also write a report
            self.end("refused", "the program trains in a process that it starts, which a prediction cannot follow")
        self._counts[optimizer] = self._counts.get(optimizer, 0) + 1
        self._all_steps += 1
        if (fewest := min(self._counts.values())) <= self._steps and self._all_steps < _MAX_RATIO * self._requested:
            return
        self._steps = max(fewest, self._steps)
        os.pwrite(self._steps_file, str(self._steps).encode(), 0)
        if self._steps >= self._requested or self._all_steps >= _MAX_RATIO * self._requested:
            self.end("steps")
        self.trace.timeline.mark()

    def end(self, outcome: str, detail: str = "") -> None:
        """Write the report and end the process immediately; no other code of the program runs."""
        self._report_lock.acquire()  # never released: one thread writes the report, and other threads wait for the end
        place = self._folder / ANSWER
        timeline, known_values = self.trace.timeline, self.trace.known_values
        if timeline.ended is None:
            timeline.ended = timeline.now
        if timeline.marks[-1] == timeline.now and len(timeline.marks) > 1:
            timeline.marks.pop()
        timeline.current_line = None
        prefetched = self.trace.prefetched if self.trace.target is None else 0
        if prefetched:
            self.notes.append(
                "workers of a data loader may send batches ahead of use, which takes up to "
                f"{prefetched / MIB:.1f} MiB more; it depends on their speed"
            )
        if self.trace.waiting:
            prefetched = raised_by_prefetched(timeline, self.trace.waiting)
        made_up = dict(known_values.reads_by_line) if known_values else {}
        started = tuple(dict.fromkeys(self.started))
        report = RunReport(outcome, detail, self._steps, timeline, made_up, started, tuple(self.notes), prefetched)
        with os.fdopen(os.open(place.with_suffix(".part"), os.O_WRONLY | os.O_CREAT), "wb") as stream:
            pickle.dump(report, stream)
        os.replace(place.with_suffix(".part"), place)
        for printed in (sys.stdout, sys.stderr):
            try:
                printed.flush()
            except (OSError, ValueError, AttributeError):
                continue
        if os.getpid() != self._process:
            os.kill(self._process, signal.SIGKILL)
        os._exit(0)

    def watch(self, parent: int, deadline: float) -> None:
        """End the process at the deadline, a time of ``time.monotonic``, or when the parent process has ended."""
        while os.getppid() == parent:
            if time.monotonic() > deadline:
                main = sys._current_frames().get(threading.main_thread().ident or 0)
                self.end("timeout", _file_and_number(lines.current_line(main)))
            time.sleep(0.2)
        os._exit(1)

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Record the processes that the program starts, and refuse ``os.exec``, which would replace this process."""
        if event == "os.exec":
            raise PredictionError(
                "the program replaces its process by another one (os.exec), which a prediction does not follow; "
                "prepare the environment first, and predict the command that it executes"
            )
        if event in ("subprocess.Popen", "os.posix_spawn", "os.system"):
            words = arguments[1] if event == "subprocess.Popen" else arguments[0]
            if isinstance(words, list | tuple):
                words = " ".join(map(os.fsdecode, words))
            self.started.append(os.fsdecode(words))


def run_request(folder: Path) -> None:
    """Run the request in a folder; the process ends in this function."""
    request = json.loads((folder / REQUEST).read_text())
    faulthandler.enable()
    target = _target(request["target"]) if isinstance(request["target"], dict) else request["target"]
    modules = Modules()
    with ExitStack() as stack:
        follow = tracing(modules=modules) if request["measured"] else predicting(target, modules=modules, home="host")
        trace = stack.enter_context(follow)
        if request["measured"]:
            stack.enter_context(watching_loaders(trace))
        os.register_at_fork(after_in_child=stack.close)  # forked processes, which load data, use real tensors
        trace.timeline.current_line, run = lines.current_line, ScriptRun(trace, folder, request["steps"])
        if trace.known_values:
            trace.known_values.current_line = lines.reading_line
            keep_floats(trace)
        register_optimizer_step_post_hook(run.after_step)
        watch = threading.Thread(target=run.watch, args=(request["parent"], request["deadline"]), daemon=True)
        watch.start()
        torch.multiprocessing.spawn = _spawn  # type: ignore[attr-defined]
        _note_compiling(run)
        if not request["keep_files"]:
            Overlay(folder / FILES).enter()
        sys.addaudithook(run.audit)
        _run_program(run, request)


def _note_compiling(run: ScriptRun) -> None:
    """Add a note to the result if the program compiles code."""

    def noted(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def compiling(*args: Any, **kwargs: Any) -> Any:
            if _COMPILED not in run.notes:
                run.notes.append(_COMPILED)
            return function(*args, **kwargs)

        return compiling

    torch.compile = noted(torch.compile)
    torch.nn.Module.compile = noted(torch.nn.Module.compile)  # type: ignore[method-assign]


def _target(fields: dict[str, Any]) -> Target:
    for name in ("compute_capability", "cudnn"):  # JSON turned these tuples into lists
        fields[name] = fields[name] and tuple(fields[name])
    return Target(**fields)


def _run_program(run: ScriptRun, request: Mapping[str, Any]) -> None:
    try:
        _program(request, run)()
    except SystemExit as leaving:
        code = leaving.code
        run.end("ended" if code in (None, 0) else "exit", "" if code is None else str(code))
    except BaseException as error:
        _print(error)
        made_up = bool(run.trace.known_values and run.trace.known_values.reads_by_line)
        refused = isinstance(error, PredictionError)
        where = lines.line_of_traceback(error.__traceback__)
        place = f"{_file_and_number(where)}: " if where else ""
        if isinstance(error, EOFError):
            run.end("input", place)
        words = str(error) if refused else f"{type(error).__name__}: {error}"
        run.end("refused" if refused else "made up" if made_up else "raised", place + words.partition("\n")[0])
    run.end("ended")


def _file_and_number(line: Line | None) -> str:
    """A line as ``file:number``, with a relative path if the file is below the working folder; "" for no line."""
    if line is None:
        return ""
    near = os.path.relpath(line.file)
    return f"{line.file if near.startswith('..') else near}:{line.number}"


def _print(error: BaseException) -> None:
    """Print a traceback as Python does, without the frames that started the program."""
    traced = error.__traceback__
    while traced and traced.tb_frame.f_code.co_filename in (__file__, runpy.__file__, "<frozen runpy>"):
        traced = traced.tb_next
    traceback.print_exception(error.with_traceback(traced or error.__traceback__))


def _program(request: Mapping[str, Any], run: ScriptRun) -> Callable[[], Any]:
    """Return a function that runs the requested program as Python would."""
    kind, program, arguments = request["kind"], request["program"], list(request["arguments"])
    if kind == "torchrun":
        kind, program, arguments = _under_torchrun(arguments, run)
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
    """Run source code as the main module; ``runpy.run_path`` would change ``sys.argv`` or ``__file__``."""
    main = sys.modules["__main__"] = ModuleType("__main__")
    if file != "-c":
        main.__file__ = file
    exec(compiled(text, file), vars(main))  # noqa: S102 (the user's program)


def _under_torchrun(words: list[str], run: ScriptRun) -> tuple[str, str, list[str]]:
    """Parse the options of torchrun, set its variables for one process, and return kind, program and arguments."""
    from torch.distributed.run import parse_args

    asked = parse_args(words)
    if (asked.nproc_per_node, asked.nnodes) not in (("1", "1"), ("1", "1:1")):
        run.notes.append(
            "torchrun starts several processes; the prediction is for one process with a world size of 1, like each "
            "process of DistributedDataParallel (a model that is sharded over processes needs less)"
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
    """Replace ``torch.multiprocessing.spawn`` of one process: run its function in this process."""
    if nprocs != 1:
        raise PredictionError(
            f"torch.multiprocessing.spawn starts {nprocs} processes, and a prediction covers one; run the program with "
            "one process"
        )
    fn(0, *args)
