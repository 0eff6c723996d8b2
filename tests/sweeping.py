"""A sweep command and its child process, for ``test_sweep``; both start quickly, because they need no PyTorch.

``sweeping.py FOLDER SIZES`` measures each size in a child process and keeps its two records. Without arguments, this
file is the child process. The environment variable ``DEEDS`` states as JSON what the child of each size does: ``ok``,
``oom``, ``error``, ``die``, or ``hang`` after writing its process id to ``FOLDER/../pid``. Each child appends a line to
``FOLDER/../started``.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from ppdm_bench.commands.terminal import error_text, locked_folder, notify
from ppdm_bench.isolation.child import serve
from ppdm_bench.isolation.runner import ChildAnswer
from ppdm_bench.isolation.sweep import Ledger, Sweep, SweepCase
from ppdm_bench.records import Record, config_id


def main(folder: Path, sizes: list[int]) -> None:
    with locked_folder(folder):
        ledger = Ledger(folder)
        sweep = Sweep("sweeping", float(os.environ.get("TIMEOUT", "60")), ledger.earlier)
        for size in sizes:
            ledger.keep(sweep.measure(case_of(size, folder.parent), records_of))


def case_of(size: int, near: Path) -> SweepCase:
    options = {"name": "cube", "shape": [size] * 3, "batch_size": 1}
    common = {
        "config_id": config_id(options),
        "command": "sweep",
        "shape": (size,) * 3,
        "batch_size": 1,
        "kind": "measured",
        "options": options,
        "env": {"dirty": False},
    }
    return SweepCase("peak_allocated", common, {"size": size, "near": str(near)})


def records_of(answer: ChildAnswer, common: dict[str, Any]) -> list[Record]:
    return [Record(metric=name, value=value, **common) for name, value in answer.metrics.items()]


def answer(request: dict[str, Any]) -> dict[str, Any]:
    size, near = request["size"], Path(request["near"])
    with (near / "started").open("a") as file:
        file.write(f"{size}\n")
    deed = json.loads(os.environ.get("DEEDS", "{}")).get(str(size), "ok")
    if deed == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if deed == "error":
        raise ValueError("so it is")
    if deed == "hang":
        (near / "part").write_text(str(os.getpid()))
        (near / "part").rename(near / "pid")
        time.sleep(600)
    if deed == "oom":
        return {"status": "oom", "reason": "so it is"}
    return {"status": "ok", "metrics": {"peak_allocated": size**3, "params": size}}


if __name__ == "__main__":
    if len(sys.argv) == 1:
        serve(answer)
    else:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # as in `ppdm-bench`
        try:
            main(Path(sys.argv[1]), [int(size) for size in sys.argv[2].split(",")])
        except (ValueError, OSError) as error:
            notify(error_text(error))
            sys.exit(1)
