"""Kill a training run at every relevant moment and resume it each time, for ``test_resume``.

Run this as a script, ``killed.py FOLDER words...``, with the words of ``ppdm-bench train`` without ``--out``. It
imports PyTorch once, and every training run is a fork of it. The relevant moments are before every operation that
moves, removes or syncs a file, before every line of the log, and in the middle of every update of the weights.

After SIGKILL, the files in the folder are those of that moment. Therefore one training run copies its folder before
each of these operations, if the content has changed, and each copy is resumed. Other training runs are really killed.
The script prints as JSON how each training run ended.
"""

import io
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr, suppress
from itertools import count
from pathlib import Path
from typing import Any

import rich.progress  # noqa: F401 - imported here once; otherwise every fork imports it, and its optimiser torch._dynamo
import torch
import torch._dynamo

from ppdm.training import trainer
from ppdm.training.log import Log
from ppdm_bench import cli
from ppdm_bench.commands import training_run

unlink = os.unlink


def forked(words: list[str], before: Callable[[int], None] = lambda number: None) -> int:
    """Fork a process that trains, and calls ``before`` with the number, from 0, of each relevant operation."""
    if child := os.fork():
        return child
    torch.set_num_threads(1)
    numbers = count()
    places = [(os, name) for name in ("replace", "fsync", "unlink")]
    for owner, name in [*places, (Log, "write"), (trainer, "average_decay")]:
        setattr(owner, name, watched(getattr(owner, name), lambda: before(next(numbers))))
    training_run.save_loss_curve = lambda log, path: None  # drawing takes longer than the training
    sys.argv = ["ppdm-bench", *words]
    try:
        cli.main()
    except SystemExit as end:
        sys.stderr.flush()
        os._exit(int(end.code or 0))
    os._exit(99)


def watched(operation: Callable[..., Any], before: Callable[[], None]) -> Callable[..., Any]:
    def wrapped(*arguments: Any, **options: Any) -> Any:
        idle = operation is unlink and not os.path.exists(*arguments)
        if not idle:
            before()
        return operation(*arguments, **options)

    return wrapped


def kill_at(moment: int) -> Callable[[int], None]:
    def before(number: int) -> None:
        if number == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    return before


def ended(child: int) -> int:
    """Wait for a child, and return its exit code, or minus the number of the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def at_every_moment(folder: Path, words: list[str]) -> tuple[int, list[int]]:
    """Copy the folder of a training run at each moment, resume each copy, and return all exit codes."""
    place, states = folder / "copied", []

    def copy(number: int) -> None:
        state = {path.relative_to(place): path.read_bytes() for path in place.rglob("*") if path.is_file()}
        if not states or state != states[-1]:
            states.append(state)
            shutil.copytree(place, folder / f"moment-{number:03}")

    end = ended(forked([*words, "--out", str(place)], copy))
    return end, [ended(forked([*words, "--out", str(one), "--resume"])) for one in sorted(folder.glob("moment-*"))]


def again_and_again(folder: Path, words: list[str], moment: int) -> list[int]:
    """Resume one training run until it ends, kill each attempt at operation ``moment``, and return the exit codes."""
    there, ends = [*words, "--out", str(folder / "again"), "--resume"], [-9]
    while ends[-1] == -9 and len(ends) < 50:
        ends.append(ended(forked(there, kill_at(moment))))
    return ends[1:]


def from_outside(folder: Path, words: list[str], lines: int) -> list[int]:
    """Kill a training run when its log has ``lines`` lines, resume it, and return both exit codes."""
    there = [*words, "--out", str(folder / f"outside-{lines}")]
    log, child = folder / f"outside-{lines}" / "log.jsonl", forked(there)
    while not log.exists() or len(log.read_bytes().splitlines()) < lines:
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    return [ended(child), ended(forked([*there, "--resume"]))]


def imported() -> None:
    """Run a command that is refused before it computes anything, so that forks need not import its modules again."""
    sys.argv = ["ppdm-bench", "train", "--manifest", "absent.csv", "--out", "absent"]
    with redirect_stderr(io.StringIO()), suppress(SystemExit):
        cli.main()


if __name__ == "__main__":
    folder, words = Path(sys.argv[1]), sys.argv[2:]
    imported()
    result = {
        "plain": ended(forked([*words, "--out", str(folder / "plain")])),
        "moments": at_every_moment(folder, [*words, "--save-every", "1"]),
        # A step with a validation and a checkpoint takes 12 operations, after up to 2 that remove partial files.
        "again": again_and_again(folder, [*words, "--save-every", "1"], 14),
        "outside": [from_outside(folder, [*words, "--save-every", "2"], lines) for lines in (1, 3)],
    }
    print(json.dumps(result))
