"""Print Markdown transcripts of a sweep that is killed in three ways and then finished by the same command.

    python benchmarks/harness/kills.py > results/harness/kills.md

It needs ``/proc`` and a checkout without uncommitted changes, because measurements of changed code are always repeated.
It takes one or two minutes. The exit code is 1 if a row is missing, duplicated or changed.
"""

import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from ppdm_bench.environment import environment
from ppdm_bench.records import Record, RecordFile
from ppdm_bench.units import shape_text

COMMAND = "memory --device cpu --res 16,24,32 --method ppdm --factor 2 --width 8 --phase sample --out out"

# The process to kill after the first measurement, and the signal.
WAYS = [("the child", signal.SIGKILL), ("the command", signal.SIGKILL), ("the command", signal.SIGINT)]

Key = tuple[str, str, str, str]  # kind, size, phase, status


def main() -> int:
    """Print the transcripts."""
    # Background jobs and their children ignore SIGINT by default.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    code = environment()
    print(
        "# A sweep that is killed in three ways and then finished\n\n"
        f"Written by `benchmarks/harness/kills.py` at commit {code['commit'][:12]}{' (changed)' * code['dirty']}, "
        f"PyTorch {code['torch']}, {code['cpu']}. The sweep is killed while the second of three measurements runs; "
        "then the same command runs again. The lists count the rows of `records.jsonl`."
    )
    return max([transcript(number, *way) for number, way in enumerate(WAYS, start=1)])


def transcript(number: int, who: str, by: signal.Signals) -> int:
    """Print one transcript, and return 1 if the rows afterwards are incorrect."""
    print(f"\n## {number}. {by.name} to {who}\n\n```\n$ ppdm-bench {COMMAND}")
    with tempfile.TemporaryDirectory() as name:
        file = RecordFile(Path(name) / "out" / "records.jsonl")
        process = start(name)
        victims = {"the child": child_at_work(process.pid, file), "the command": process.pid}
        child = victims["the child"]
        print(f"[{by.name} to {who}]", flush=True)
        os.kill(victims[who], by)
        print_errors(process)
        while Path(f"/proc/{child}").exists():
            time.sleep(0.1)
        before = print_rows(file)
        print("```\n\n```\n$ ppdm-bench " + COMMAND, flush=True)
        print_errors(start(name))
        after = print_rows(file)
    good = [record for record in after if record.status == "ok"]
    once = len({(r.kind, r.shape, r.phase, r.metric) for r in good}) == len(good)
    finished = len({(r.kind, r.shape, r.phase) for r in good if r.metric == "peak_allocated"}) == 6
    kept = after[: len(before)] == before
    print(f"```\n\nEarlier rows are unchanged: {kept}. Every measurement exists: {finished}, exactly once: {once}.")
    return int(not (kept and finished and once))


def start(folder: str) -> subprocess.Popen[str]:
    """Start the command in a folder."""
    command = [sys.executable, "-m", "ppdm_bench", *shlex.split(COMMAND)]
    path = os.pathsep.join(str(Path(part).resolve()) for part in sys.path if part)
    env = os.environ | {"PYTHONPATH": path}
    return subprocess.Popen(command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def child_at_work(command: int, file: RecordFile) -> int:
    """Return the process ID of the child of the second measurement, after it has run for one second."""
    while not any(record.kind == "measured" for record in file.read()):
        time.sleep(0.05)
    while not (found := list(children(command))):
        time.sleep(0.05)
    time.sleep(1)
    return found[0]


def children(process: int) -> Iterator[int]:
    """The child processes of a process that run a worker."""
    for one in Path(f"/proc/{process}/task/{process}/children").read_text().split():
        if b"worker" in Path(f"/proc/{one}/cmdline").read_bytes():
            yield int(one)


def print_errors(process: subprocess.Popen[str]) -> None:
    """Print the standard error of a command and its exit status."""
    _, errors = process.communicate()
    print(f"{errors}[ended with code {process.returncode}]", flush=True)


def print_rows(file: RecordFile) -> list[Record]:
    """Print the rows with their counts, and return them."""
    records = file.read()
    for (kind, size, phase, status), rows in Counter(map(key, records)).items():
        print(f"{rows:3} {'row ' if rows == 1 else 'rows'} {kind:9}  {size}  {phase:6}  {status}")
    return records


def key(record: Record) -> Key:
    """The fields by which rows are counted."""
    return record.kind, shape_text(record.shape), record.phase, record.status


if __name__ == "__main__":
    sys.exit(main())
