"""``predict_script``: run a training command in a child process under prediction, and return its memory."""

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

from ppdm_bench.predictor.known_values import PLACEHOLDERS
from ppdm_bench.predictor.lines import Line
from ppdm_bench.predictor.modules import Site
from ppdm_bench.predictor.peak import Peak, cuda_target, peak_of
from ppdm_bench.predictor.script.branches import decided_by
from ppdm_bench.predictor.script.child import ANSWER, FILES, OUTPUT, REQUEST, STEPS, TEMPORARY, RunReport
from ppdm_bench.predictor.script.invocation import Invocation, read_command
from ppdm_bench.predictor.script.launch import NO_TORCH
from ppdm_bench.predictor.target import Target
from ppdm_bench.predictor.timeline import Block, Timeline

__all__ = ["Growth", "Holder", "MadeUp", "ScriptError", "ScriptPrediction", "measure_script", "predict_script"]

HOLDERS = 10
LAST_LINES = 12  # lines of the program's output in an error message

_CRASH = "Extension modules:"  # start of a long line in Python's crash report
_GRACE = 60  # seconds after the time limit in which the child may write its report
_MORE_TIME = "set a larger --timeout"


class ScriptError(RuntimeError):
    """The memory of a program could not be predicted.

    Attributes:
        steps: optimizer steps that the program took.
        output: output of the program.
    """

    def __init__(self, reason: str, steps: int = 0, output: str = "") -> None:
        last = [line for line in output.splitlines() if line.strip() and not line.startswith(_CRASH)][-LAST_LINES:]
        shown = ["The last lines of its output:", *(f"  {line}" for line in last)] if last else ["It printed nothing."]
        super().__init__("\n".join([reason, *shown]))
        self.steps, self.output = steps, output


@dataclass(frozen=True)
class Holder:
    """One block of memory that is live at the peak.

    Attributes:
        size: bytes.
        kind: params, grads, optimizer, inputs, activations or workspace.
        module: path of the module that allocated it; for a gradient or optimizer state, name of the parameter.
        stage: forward, backward or optimizer.
        line: line of the program that allocated it.
        operator: operator or rule that allocated it.
        shape, dtype: shape and dtype of the first tensor in it.
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
    """A line whose blocks accumulate: bytes and blocks that each step adds, and the operator that allocates them."""

    line: Line | None
    operator: str
    bytes_per_step: int
    blocks_per_step: float


@dataclass(frozen=True)
class MadeUp:
    """A line that read made-up values: number of reads, and line of the branch that the value decides, if any."""

    line: Line | None
    times: int
    branch: Line | None


@dataclass(frozen=True)
class ScriptPrediction:
    """The predicted memory of a program.

    Attributes:
        command: the command line.
        peak: peak over all steps; ``peak.timeline`` contains every block with its line.
        steps: optimizer steps that the program took.
        notes: limits of the prediction, such as that the program ended early.
        after_step: live bytes at the end of each step.
        growth: lines whose blocks accumulate in every step, fastest growth first; empty with fewer than three steps.
        holders: the ten largest blocks at the peak.
        made_up: lines that read values that depend on data, for which a prediction uses placeholders.
        prefetched: on the CPU, upper bound in bytes of the batches that workers of data loaders prefetch; the peak does
            not include them. In a measurement, bytes by which such batches raised the peak.
        target: the target; None for the CPU.
        torch: version of PyTorch that ran the program.
        seconds: duration of the prediction.
        output: output of the program.
    """

    command: tuple[str, ...]
    peak: Peak
    steps: int
    notes: tuple[str, ...]
    after_step: tuple[int, ...]
    growth: tuple[Growth, ...]
    holders: tuple[Holder, ...]
    made_up: tuple[MadeUp, ...]
    prefetched: int
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
    """Predict the peak memory of a training command, on fake tensors and without a GPU.

    The program runs unmodified in a child process, with fake tensors as in
    :func:`ppdm_bench.predictor.peak.predict_peak`. The process ends immediately after the last requested optimizer
    step. Files that the program writes are deleted, and its standard input is empty.

    Args:
        command: the command line, such as ``["python", "train.py", "--epochs", "3"]``; ``python -m``, ``torchrun``
            with one process, and console scripts work too. Its interpreter needs PyTorch and not this package.
        steps: optimizer steps to run; ``growth`` needs at least three.
        target: as for :func:`ppdm_bench.predictor.peak.predict_peak`.
        keep_files: whether the program writes its files to their real places.
        timeout: time limit of the child process in seconds.

    Raises:
        ValueError: a command that cannot be started, fewer than one step, or an invalid target.
        ScriptError: the program failed or took no step; the message contains the last lines of its output.
    """
    return _follow(command, steps, cuda_target(target), keep_files, timeout)


def measure_script(command: Sequence[str], steps: int = 3, timeout: float = 600) -> ScriptPrediction:
    """Run a training command on real tensors on the CPU and measure its peak; arguments as for `predict_script`."""
    return _follow(command, steps, None, False, timeout, measured=True)


def _follow(
    command: Sequence[str], steps: int, target: Target | None, keep_files: bool, timeout: float, measured: bool = False
) -> ScriptPrediction:
    if steps < 1:
        raise ValueError(f"a prediction of a script needs at least one optimizer step, got {steps}")
    invocation = read_command(command)
    request: dict[str, Any] = {
        "parent": os.getpid(),
        "steps": steps,
        "target": asdict(target) if target else "cpu",
        "measured": measured,
        "keep_files": keep_files,
        **{name: getattr(invocation, name) for name in ("kind", "program", "arguments")},
    }
    began, note = time.monotonic(), ""
    with TemporaryDirectory(prefix="predict-", ignore_cleanup_errors=True) as name:
        folder = Path(os.path.realpath(name))
        code = _run(folder, invocation, request, timeout)
        if code == NO_TORCH and re.fullmatch(r"python[\d.]*", next(word for word in command if "=" not in word)):
            note = f"{invocation.interpreter} has no PyTorch; the program ran with {sys.executable}"
            code = _run(folder, replace(invocation, interpreter=sys.executable), request, timeout)
        output = (folder / OUTPUT).read_text(errors="replace")
        report = _read_report(folder)
        taken = int((folder / STEPS).read_text() or 0) if (folder / STEPS).exists() else 0
    if report is None:
        raise ScriptError(_no_report(code, taken, invocation, timeout), taken, output)
    _raise_if_failed(report, timeout, output)
    target = target and replace(target, torch=target.torch or report.torch)
    report.notes = tuple(filter(None, (note, *report.notes)))
    if report.outcome != "steps":
        report.notes += (_fewer_steps(report, steps, timeout),)
    return _prediction(tuple(command), report, target, time.monotonic() - began, output)


# --- the child


def _run(folder: Path, invocation: Invocation, request: dict[str, Any], timeout: float) -> int | None:
    """Run the child process; return its exit code, or None if it exceeded the time limit."""
    (folder / REQUEST).write_text(json.dumps(request | {"deadline": time.monotonic() + timeout}))
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
    """Run a command during the block; at the end, also after Ctrl-C, kill it and its descendants."""
    child = subprocess.Popen(words, start_new_session=True, **options)
    try:
        yield child
    finally:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _read_report(folder: Path) -> RunReport | None:
    if not (folder / ANSWER).exists():
        return None
    with open(folder / ANSWER, "rb") as stream:
        report: RunReport = pickle.load(stream)  # noqa: S301 (written by our own child)
    return report


# --- errors


def _no_report(code: int | None, steps: int, invocation: Invocation, timeout: float) -> str:
    after = _after(steps)
    if code == NO_TORCH:
        return f"the interpreter of the command, {invocation.interpreter}, has no PyTorch; use one that has it"
    if code is None:
        return (
            f"the program exceeded the time limit of {timeout:g} s, {after}, and did not respond for another "
            f"{_GRACE} s, perhaps in a call that does not return; {_MORE_TIME}"
        )
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        hint = " (often the system's out-of-memory killer)" if -code == signal.SIGKILL else ""
        return f"the interpreter crashed {after}: {name} ended it{hint}"
    return f"the program ended its process {after} with exit code {code}, so nothing could be recorded"


def _raise_if_failed(report: RunReport, timeout: float, output: str) -> None:
    """Raise a :class:`ScriptError` if the program failed or took no step."""
    after = _after(report.steps)
    reason = {
        "refused": f"{report.detail} ({after})",
        "raised": f"the program raised an error {after}: {report.detail}",
        "made up": f"the program raised an error {after}: {report.detail}; a possible cause is that it had read values "
        f"that depend on data, which a prediction makes up ({PLACEHOLDERS})",
        "input": f"{report.detail}the program reads standard input {after}, which is empty in a prediction; pass an "
        "option that replaces the input",
        "exit": f"the program called sys.exit({report.detail}) {after}",
    }.get(report.outcome, "")
    if not reason and not report.steps:
        if report.outcome == "timeout":
            reason = f"the program took no optimizer step within {timeout:g} s{_running(report)}; {_MORE_TIME}"
        else:
            reason = "the program ended without an optimizer step (of a torch.optim.Optimizer)"
    if not reason:
        return
    if report.started and not report.steps:
        shown = "; ".join(_shortened(words) for words in report.started[:3])
        reason += f". It started other processes, which a prediction does not follow ({shown}); if one of them trains, "
        reason += "predict its command"
    raise ScriptError(reason, report.steps, output)


def _fewer_steps(report: RunReport, requested: int, timeout: float) -> str:
    """Note about a program that took fewer optimizer steps than requested."""
    taken = f"the program took {report.steps} of {requested} optimizer steps"
    if report.outcome == "timeout":
        return f"{taken} within {timeout:g} s{_running(report)}; {_MORE_TIME}"
    return f"{taken}: it ended by itself"


def _running(report: RunReport) -> str:
    """The line that was running at the time limit, for a message."""
    return f" and was at {report.detail}" if report.detail else ""


def _after(steps: int) -> str:
    return "before its first optimizer step" if not steps else f"after {steps} optimizer step{'s' * (steps > 1)}"


def _shortened(words: str, most: int = 80) -> str:
    return words if len(words) <= most else words[: most - 1] + "…"


# --- the prediction


def _prediction(
    command: tuple[str, ...], report: RunReport, target: Target | None, seconds: float, output: str
) -> ScriptPrediction:
    timeline = report.timeline
    peak = peak_of(timeline, target)
    if not peak.peak_allocated:
        raise ScriptError(
            "the program put nothing on the CUDA device, so it trains on the CPU; use --device cpu to predict that",
            report.steps,
            output,
        )
    ends = [*timeline.marks[1:], *([timeline.ended or timeline.now] if report.outcome == "steps" else [])]
    live = list(timeline.live())
    live_bytes = sorted(timeline.alive_at(timeline.peak()[0]), key=lambda block: -block.size)
    return ScriptPrediction(
        command=command,
        peak=peak,
        steps=report.steps,
        notes=report.notes,
        after_step=tuple(live[end - 1] for end in ends),
        growth=tuple(_growth(timeline, ends)),
        holders=tuple(_holder(block) for block in live_bytes[:HOLDERS]),
        made_up=tuple(
            MadeUp(line, times, line and decided_by(line))
            for line, times in sorted(report.made_up.items(), key=lambda each: -each[1])
        ),
        prefetched=report.prefetched,
        target=target,
        torch=report.torch,
        seconds=seconds,
        output=output,
    )


def _holder(block: Block) -> Holder:
    site = block.site or Site()
    return Holder(block.size, block.kind, site.path, site.stage, block.line, block.operator, block.shape, block.dtype)


def _growth(timeline: Timeline, ends: Sequence[int]) -> Iterator[Growth]:
    """Lines whose live bytes are larger at the end of every step than at the end of the previous step."""
    if len(ends) < 3:
        return
    live_bytes, blocks = Counter[tuple[Line | None, str]](), Counter[tuple[Line | None, str]]()
    at_end: list[tuple[Counter[Any], Counter[Any]]] = []
    for event, (number, size) in enumerate([*timeline.all_events, (0, 0)]):
        while len(at_end) < len(ends) and event == ends[len(at_end)]:
            at_end.append((live_bytes.copy(), blocks.copy()))
        if event == timeline.now:
            break
        block = timeline.blocks[number]
        if block.place != "host":
            key = block.line, block.operator
            live_bytes[key] += size or -block.size
            blocks[key] += 1 if size else -1
    steps = len(ends) - 1
    growing = [key for key in live_bytes if all(a[0][key] < b[0][key] for a, b in pairwise(at_end))]
    first, last = at_end[0], at_end[-1]
    found = [
        Growth(key[0], key[1], (last[0][key] - first[0][key]) // steps, (last[1][key] - first[1][key]) / steps)
        for key in growing
    ]
    yield from sorted(found, key=lambda each: -each.bytes_per_step)
