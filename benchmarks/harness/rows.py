"""Sweep whose child processes measure nothing, so that only the sweep itself uses resources; :mod:`soak` runs it.

    python benchmarks/harness/rows.py FOLDER COUNT

Run without arguments, this file is the child process. Every 10th child fails, and every 25th kills itself.
"""

import os
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ppdm_bench.commands.terminal import locked_folder
from ppdm_bench.isolation.child import serve
from ppdm_bench.isolation.runner import ChildAnswer
from ppdm_bench.isolation.sweep import Ledger, Sweep, SweepCase
from ppdm_bench.records import Record, config_id

METRIC = "peak_allocated"


def measure_rows(folder: Path, numbers: Iterable[int]) -> None:
    """Measure the rows that earlier runs have not measured, like every command with child processes."""
    with locked_folder(folder):
        ledger = Ledger(folder)
        sweep = Sweep("rows", 60, ledger.earlier)
        for number in numbers:
            ledger.keep(sweep.measure(_case(number), _records))


def status_of(number: int) -> str:
    """The status of a row."""
    return "killed" if number % 25 == 24 else "error" if number % 10 == 9 else "ok"


def _case(number: int) -> SweepCase:
    options = {"row": number}
    common = {"config_id": config_id(options), "kind": "measured", "options": options, "env": {"dirty": False}}
    return SweepCase(METRIC, common, {"row": number})


def _records(answer: ChildAnswer, common: dict[str, Any]) -> list[Record]:
    return [Record(metric=name, value=value, **common) for name, value in answer.metrics.items()]


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    status = status_of(request["row"])
    if status == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if status == "error":
        raise ValueError("made-up error")
    return {"status": "ok", "metrics": {METRIC: request["row"], "params": 1}}


if __name__ == "__main__":
    if len(sys.argv) == 1:
        serve(_answer)
    else:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # as the command line does
        measure_rows(Path(sys.argv[1]), range(int(sys.argv[2])))
