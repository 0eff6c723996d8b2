"""``predict_script``: runs a training command in a child process under prediction, and describes its memory."""

import json
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from ppdm_bench.predictor.constants import STAND_INS
from ppdm_bench.predictor.lines import Line
from ppdm_bench.predictor.modules import Site
from ppdm_bench.predictor.peak import Peak, peak_of
from ppdm_bench.predictor.script.branches import decided_by
from ppdm_bench.predictor.script.child import ANSWER, FILES, OUTPUT, REQUEST, STEPS, TEMPORARY, Course
from ppdm_bench.predictor.script.invocation import Invocation, read_command
from ppdm_bench.predictor.script.launch import NO_TORCH
from ppdm_bench.predictor.target import Target
from ppdm_bench.predictor.timeline import Block, Timeline

__all__ = ["Growth", "Holder", "MadeUp", "ScriptError", "ScriptPrediction", "measure_script", "predict_script"]

HOLDERS = 10
LAST_LINES = 12  # of the program's output that an error shows

_CRASH = "Extension modules:"  # a long line of Python's report of a crash
_GRACE = 60  # seconds that a child may take to write its answer when its time is up
_MORE = "a larger --timeout gives it more"


class ScriptError(RuntimeError):
    """A program whose memory could not be predicted.

    Attributes:
        steps: optimizer steps that it took.
        output: what it printed.
    """

    def __init__(self, reason: str, steps: int = 0, output: str = "") -> None:
        last = [line for line in output.splitlines() if line.strip() and not line.startswith(_CRASH)][-LAST_LINES:]
        said = (
            "\n".join(["The last lines of its output:", *(f"  {line}" for line in last)])
            if last
            else "It printed nothing."
        )
        super().__init__(f"{reason}\n{said}")
        self.steps, self.output = steps, output


@dataclass(frozen=True)
class Holder:
    """One block of memory at the peak.

    Attributes:
        size: bytes.
        kind: params, grads, optimizer, inputs, activations or workspace.
        module: path of the module that allocated it; of the parameter, for its gradient and optimizer state.
        stage: forward, backward or optimizer.
        line: the line of the program that was running.
        operator: operator or rule that allocated it.
        shape, dtype: of the first tensor in it.
    """

    size: int
    kind: str
    module: str
    stage: str
    line: Line | None
    operator: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Growth:
    """A line whose blocks accumulate: the bytes and blocks that each step adds, and the operator that makes them."""

    line: Line | None
    operator: str
    bytes_per_step: int
    blocks_per_step: float


@dataclass(frozen=True)
class MadeUp:
    """A line that read a value that depends on data, how often, and the line of the branch that it decides, if any."""

    line: Line | None
    times: int
    branch: Line | None


@dataclass(frozen=True)
class ScriptPrediction:
    """The predicted memory of a program.

    Attributes:
        command: the command line.
        peak: the peak over all steps; ``peak.timeline`` has every block with its line.
        steps: optimizer steps that the program took.
        notes: what the prediction does not cover, such as a program that ended early.
        after_step: bytes alive at the end of each step.
        growth: lines whose blocks accumulate in every step, the fastest first; empty with fewer than three steps.
        holders: the ten largest blocks at the peak.
        made_up: lines that read values that depend on data, which a prediction has to make up.
        early: on the CPU, bytes of batches that the workers of data loaders may send before their turn, and which the
            peak does not include; in a measurement, by how many bytes such batches raised the peak.
        target: the target; None for the CPU.
        torch: version of PyTorch that ran the program.
        seconds: duration of the prediction.
        output: what the program printed.
    """

    command: tuple[str, ...]
    peak: Peak
    steps: int
    notes: tuple[str, ...]
    after_step: tuple[int, ...]
    growth: tuple[Growth, ...]
    holders: tuple[Holder, ...]
    made_up: tuple[MadeUp, ...]
    early: int
    target: Target | None
    torch: str
    seconds: float
    output: str


def predict_script(
    command: Sequence[str],
    steps: int = 3,
    target: Target | Literal["cpu"] | None = None,
    keep_files: bool = False,
    timeout: float = 600,
) -> ScriptPrediction:
    """Predict the peak memory of a training command, without memory and without a GPU.

    The program runs unmodified in a child process, as :func:`ppdm_bench.predictor.peak.predict_peak` runs functions.
    After some optimizer steps the child ends at once. Files that the program writes disappear, and it reads no input.

    Args:
        command: the command line, such as ``["python", "train.py", "--epochs", "3"]``; ``python -m``, ``torchrun``
            with one process, and console scripts work too. Its interpreter needs PyTorch and not this package.
        steps: optimizer steps to take; growth needs three.
        target: as for :func:`ppdm_bench.predictor.peak.predict_peak`.
        keep_files: let the program write its files where it wants.
        timeout: seconds after which the child is ended.

    Raises:
        ValueError: a command that cannot be started, fewer than one step, or an invalid target.
        ScriptError: the program failed, or took no step; the message has the last lines of its output.
    """
    if target is not None and not isinstance(target, Target) and target != "cpu":
        raise ValueError(f'target must be a Target, "cpu" or None, got {target!r}')
    return _follow(command, steps, target, keep_files, timeout)


def measure_script(
    command: Sequence[str], steps: int = 3, keep_files: bool = False, timeout: float = 600
) -> ScriptPrediction:
    """Run a training command really, on the CPU, and measure its peak; arguments and errors as for `predict_script`."""
    return _follow(command, steps, "cpu", keep_files, timeout, measured=True)


def _follow(
    command: Sequence[str],
    steps: int,
    target: Target | Literal["cpu"] | None,
    keep_files: bool,
    timeout: float,
    *,
    measured: bool = False,
) -> ScriptPrediction:
    if steps < 1:
        raise ValueError(f"a script is followed for at least one optimizer step, got {steps}")
    invocation = read_command(command)
    request: dict[str, Any] = {
        "parent": os.getpid(),
        "steps": steps,
        "target": asdict(target) if isinstance(target, Target) else target,
        "measured": measured,
        "keep_files": keep_files,
        **{name: getattr(invocation, name) for name in ("kind", "program", "arguments")},
    }
    began, own = time.monotonic(), ""
    with TemporaryDirectory(prefix="predict-", ignore_cleanup_errors=True) as name:
        folder = Path(os.path.realpath(name))
        code = _run(folder, invocation, request, timeout)
        if code == NO_TORCH and re.fullmatch(r"python[\d.]*", next(word for word in command if "=" not in word)):
            own = f"{invocation.interpreter} has no PyTorch; the program ran with {sys.executable}"
            code = _run(folder, replace(invocation, interpreter=sys.executable), request, timeout)
        output = (folder / OUTPUT).read_text(errors="replace")
        course = _answer(folder)
        taken = int((folder / STEPS).read_text() or 0) if (folder / STEPS).exists() else 0
    if course is None:
        raise ScriptError(_without_answer(code, taken, invocation, timeout), taken, output)
    _check(course, timeout, output)
    on = None if target == "cpu" else target or Target()
    on = on and replace(on, torch=on.torch or course.torch)
    course.notes = tuple(filter(None, (own, *course.notes)))
    if course.outcome != "steps":
        course.notes += (_ended(course, steps, timeout),)
    return _described(tuple(command), course, on, time.monotonic() - began, output)


# --- the child


def _run(folder: Path, invocation: Invocation, request: dict[str, Any], timeout: float) -> int | None:
    """Run the child; return its exit code, or None if it did not end in time."""
    (folder / REQUEST).write_text(json.dumps(request | {"until": time.monotonic() + timeout}))
    for name in (FILES, TEMPORARY):
        (folder / name).mkdir(exist_ok=True)
    env = os.environ | {"PYTHONUNBUFFERED": "1"} | dict(invocation.variables)
    if not request["keep_files"]:
        env |= {"TMPDIR": str(folder / TEMPORARY), "WANDB_MODE": "disabled"}
    launcher = Path(__file__).with_name("launch.py")
    with open(folder / OUTPUT, "wb") as output:
        words = [invocation.interpreter, *invocation.flags, str(launcher), str(folder)]
        streams = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": output}
        with suppress(subprocess.TimeoutExpired), _group(words, env=env, **streams) as child:
            return child.wait(timeout + _GRACE)
    return None


@contextmanager
def _group(words: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command during the block; at its end, also after Ctrl-C, it and its descendants are killed."""
    child = subprocess.Popen(words, start_new_session=True, **options)
    try:
        yield child
    finally:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _answer(folder: Path) -> Course | None:
    if not (folder / ANSWER).exists():
        return None
    with open(folder / ANSWER, "rb") as stream:
        course: Course = pickle.load(stream)  # noqa: S301 (written by our own child)
    return course


# --- what happened


def _without_answer(code: int | None, steps: int, invocation: Invocation, timeout: float) -> str:
    after = _after(steps)
    if code == NO_TORCH:
        return f"the interpreter of the command, {invocation.interpreter}, has no PyTorch; give one that has it"
    if code is None:
        return (
            f"the time of {timeout:g} s was up {after}, and the process did not answer for {_GRACE} s more, perhaps in "
            f"a call that does not return; {_MORE}"
        )
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        hint = " (often the system's out-of-memory killer)" if -code == signal.SIGKILL else ""
        return f"the interpreter crashed {after}: it was ended by {name}{hint}"
    return f"the program ended its process {after} with code {code}, so that nothing could be recorded"


def _check(course: Course, timeout: float, output: str) -> None:
    """Raise if the program failed, or took no step.

    Raises:
        ScriptError: in words.
    """
    after = _after(course.steps)
    reason = {
        "refused": f"{course.detail} ({after})",
        "raised": f"the program raised an error {after}: {course.detail}",
        "made up": f"the program raised an error {after}: {course.detail}; it had read values that depend on data, "
        f"which a prediction makes up ({STAND_INS}), and this may be the cause",
        "input": f"{course.detail}the program waits for input {after}, and a prediction gives none; pass an option "
        "that answers the question",
        "exit": f"the program called sys.exit({course.detail}) {after}",
    }.get(course.outcome, "")
    if not reason and not course.steps:
        if course.outcome == "timeout":
            reason = f"the program took no optimizer step within {timeout:g} s{_where(course)}; {_MORE}"
        else:
            reason = "the program ended without an optimizer step (of a torch.optim.Optimizer)"
    if not reason:
        return
    if course.started and not course.steps:
        shown = "; ".join(_shortened(words) for words in course.started[:3])
        reason += f". It started other processes, which a prediction does not follow ({shown}); if one of them trains, "
        reason += "give its command"
    raise ScriptError(reason, course.steps, output)


def _ended(course: Course, asked: int, timeout: float) -> str:
    """The note about a program that took fewer steps than asked for."""
    taken = f"the program took {course.steps} of {asked} optimizer steps"
    if course.outcome == "timeout":
        return f"{taken} within {timeout:g} s{_where(course)}; {_MORE}"
    return f"{taken}: it ended by itself"


def _where(course: Course) -> str:
    return f" and was at {course.detail}" if course.detail else ""


def _after(steps: int) -> str:
    return "before its first optimizer step" if not steps else f"after {steps} optimizer step{'s' * (steps > 1)}"


def _shortened(words: str, most: int = 80) -> str:
    return words if len(words) <= most else words[: most - 1] + "…"


# --- the description


def _described(
    command: tuple[str, ...], course: Course, target: Target | None, seconds: float, output: str
) -> ScriptPrediction:
    timeline = course.timeline
    peak = peak_of(timeline, target)
    if not peak.peak_allocated:
        raise ScriptError(
            "the program put nothing on the CUDA device, so it works on the CPU; --device cpu predicts that",
            course.steps,
            output,
        )
    ends = [*timeline.marks[1:], *([timeline.ended or timeline.now] if course.outcome == "steps" else [])]
    live = list(timeline.live())
    alive = sorted(timeline.alive_at(timeline.peak()[0]), key=lambda block: -block.size)
    return ScriptPrediction(
        command=command,
        peak=peak,
        steps=course.steps,
        notes=course.notes,
        after_step=tuple(live[end - 1] for end in ends),
        growth=tuple(_growth(timeline, ends)),
        holders=tuple(_holder(block) for block in alive[:HOLDERS]),
        made_up=tuple(
            MadeUp(line, times, line and decided_by(line))
            for line, times in sorted(course.told.items(), key=lambda each: -each[1])
        ),
        early=course.early,
        target=target,
        torch=course.torch,
        seconds=seconds,
        output=output,
    )


def _holder(block: Block) -> Holder:
    site = block.site or Site()
    return Holder(block.size, block.kind, site.path, site.stage, block.line, block.operator, block.shape, block.dtype)


def _growth(timeline: Timeline, ends: Sequence[int]) -> Iterator[Growth]:
    """Lines of which more bytes are alive at the end of every step than at the end of the one before."""
    if len(ends) < 3:
        return
    alive, blocks = Counter[tuple[Line | None, str]](), Counter[tuple[Line | None, str]]()
    at_end: list[tuple[Counter[Any], Counter[Any]]] = []
    for event, (number, size) in enumerate([*timeline.all_events, (0, 0)]):
        while len(at_end) < len(ends) and event == ends[len(at_end)]:
            at_end.append((alive.copy(), blocks.copy()))
        if event == timeline.now:
            break
        block = timeline.blocks[number]
        if block.place != "host":
            key = block.line, block.operator
            alive[key] += size or -block.size
            blocks[key] += 1 if size else -1
    steps = len(ends) - 1
    growing = [key for key in alive if all(a[0][key] < b[0][key] for a, b in pairwise(at_end))]
    first, last = at_end[0], at_end[-1]
    found = [
        Growth(key[0], key[1], (last[0][key] - first[0][key]) // steps, (last[1][key] - first[1][key]) / steps)
        for key in growing
    ]
    yield from sorted(found, key=lambda each: -each.bytes_per_step)
