"""Soak test: monitor long runs, and interrupt runs at random times; write a Markdown report and its data as JSON.

    python benchmarks/harness/soak.py               everything, about twenty minutes
    python benchmarks/harness/soak.py --only rows   one part; the others stay unchanged in the record

The script needs ``/proc``. The exit code is 1 if memory, files or processes grow beyond their bounds, or if an
interrupted and repeated run has missing or duplicate results.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

import numpy as np
import torch
from rows import measure_rows, status_of

from ppdm import PPDM
from ppdm.training.loop import train
from ppdm.training.run import Run
from ppdm.training.schedule import Schedule
from ppdm_bench.configuration import Configuration
from ppdm_bench.environment import environment
from ppdm_bench.memory.command import MemoryPlan
from ppdm_bench.memory.memory_output import collect
from ppdm_bench.predictor.target import Target
from ppdm_bench.records import RecordFile
from ppdm_bench.report.atomic_io import replace_file
from ppdm_bench.report.figures.style import BLUE, SMALL, TEXT, new_figure, plain_axes

STEPS, ROWS, INTERRUPTIONS = 2000, 500, 20
MOST_GROWTH = 16 << 20  # maximum growth of resident bytes, from the median of the second to that of the last quarter
MOST_FILES = 0  # maximum number of additional open files, and of additional temporary files, in the same interval
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
OUT = Path(__file__).resolve().parents[2] / "results" / "harness"

HERE = Path(__file__).resolve().parent
TRAINING = (
    "train --task mri-t1t2 --subjects 4 --size 16 --width 8 --batch-size 2 --steps 600 --augment flip --save-every 5 "
    "--seed 7 --device cpu"
)
SWEPT = 120  # rows of the interrupted sweep


@dataclass(frozen=True)
class Sample:
    """Resources of a process after a number of steps or rows."""

    at: int
    resident: int
    open_files: int
    children: int
    temporary: int


def sampled(at: int, temporary: Path) -> Sample:
    """Current resources of this process, with the number of files in the temporary folder."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    children = sum(len(path.read_text().split()) for path in Path("/proc/self/task").glob("*/children"))
    files = len(os.listdir("/proc/self/fd"))
    return Sample(at, pages * os.sysconf("SC_PAGE_SIZE"), files, children, len([*temporary.rglob("*")]))


def grown(samples: Sequence[Sample]) -> list[str]:
    """One sentence for each resource that grew more than allowed."""
    quarter = len(samples) // 4
    settled, last = samples[quarter : 2 * quarter], samples[-quarter:]
    faults = []
    if (growth := growth_of(samples)) > MOST_GROWTH:
        faults.append(f"resident memory grew by {growth / 2**20:.1f} MiB; {MOST_GROWTH >> 20} MiB are allowed")
    if max(s.open_files for s in last) - max(s.open_files for s in settled) > MOST_FILES:
        faults.append(f"open files grew from {settled[0].open_files} to {last[-1].open_files}")
    if any(s.children for s in samples):
        faults.append(f"up to {max(s.children for s in samples)} children were left between rows")
    if max(s.temporary for s in last) - max(s.temporary for s in settled) > MOST_FILES:
        faults.append(f"temporary files grew from {settled[0].temporary} to {last[-1].temporary}")
    return faults


def growth_of(samples: Sequence[Sample]) -> float:
    """Growth in resident bytes from the median of the second quarter to that of the last quarter."""
    quarter = len(samples) // 4
    settled, last = samples[quarter : 2 * quarter], samples[-quarter:]
    return median(s.resident for s in last) - median(s.resident for s in settled)


# Long runs


def long_training(folder: Path, temporary: Path) -> list[Sample]:
    """Train a tiny network with a checkpoint and a sample every 20 steps."""
    rng = np.random.default_rng(0)
    pairs = [tuple(rng.uniform(-1, 1, (2, 8, 8, 8)).astype(np.float32)) for _ in range(4)]
    samples: list[Sample] = []
    train(
        PPDM.with_network(width=8, multipliers=(1, 2)),
        pairs,
        Schedule(steps=STEPS),
        run=Run(folder, save_steps=20),
        progress=lambda r: samples.append(sampled(r.step, temporary)) if r.step % 20 == 0 else None,
    )
    return samples


def long_prediction(folder: Path, temporary: Path) -> list[Sample]:
    """Predict memory for many sizes in this process, one sweep row per size; take a sample every 5 rows."""
    samples: list[Sample] = []
    for first in range(0, ROWS, 5):
        sizes = [(8 + 2 * (n % 10), 8 + 2 * (n // 10 % 10), 8 + 2 * (n // 100)) for n in range(first, first + 5)]
        configurations = [Configuration("ppdm", size, factor=2, width=8) for size in sizes]
        collect(MemoryPlan(configurations, ["sample"], "predict", Target(), (), 600), folder)
        samples.append(sampled(first + 5, temporary))
    return samples


def long_sweep(folder: Path, temporary: Path) -> list[Sample]:
    """Run sweep rows, each in a child process, some of which fail or die; take a sample every 5 rows."""
    samples: list[Sample] = []

    def numbers() -> Any:
        for number in range(ROWS):
            if number and number % 5 == 0:
                samples.append(sampled(number, temporary))
            yield number
        samples.append(sampled(ROWS, temporary))

    measure_rows(folder, numbers())
    return samples


# Interrupted runs


@dataclass(frozen=True)
class Ended:
    """Interruption of a run: the signal, the number of steps or rows that were done, and the exit code."""

    signal: str
    done: int
    code: int


def interrupted(
    start: Callable[[], "subprocess.Popen[bytes]"], progress: Callable[[], int], most: int, random: Random
) -> list[Ended]:
    """Interrupt a run :data:`INTERRUPTIONS` times and restart it each time; 20 % of the signals arrive at its start."""
    ends = []
    while len(ends) < INTERRUPTIONS:
        before, process = progress(), start()
        wanted = 0 if random.random() < 0.2 else random.randint(1, most)
        pause = random.uniform(0, 1) if not wanted else random.uniform(0, 0.05)
        while progress() < before + wanted and process.poll() is None:
            time.sleep(0.002)
        time.sleep(pause)
        number = random.choice(SIGNALS)
        process.send_signal(number)
        ends.append(Ended(number.name, progress(), process.wait()))
        if process.returncode == 0:
            raise RuntimeError("the run ended before it was interrupted; make it longer")
    if code := start().wait():
        raise RuntimeError(f"the last run ended with code {code}")
    return ends


def ended_training(folder: Path, temporary: Path) -> tuple[list[Ended], list[str]]:
    """Compare a repeatedly interrupted training with an uninterrupted one."""

    def start(where: str) -> "subprocess.Popen[bytes]":
        words = [*TRAINING.split(), "--out", str(folder / where), "--resume"]
        return _process("-m", "ppdm_bench", *words)

    def steps() -> int:
        lines = log.read_bytes().splitlines() if log.exists() else []
        return max((json.loads(line)["step"] for line in lines[-2:] if line.endswith(b"}")), default=0)

    log = folder / "cut" / "log.jsonl"
    if code := start("whole").wait():
        raise RuntimeError(f"the training ended with code {code}")
    ends = interrupted(lambda: start("cut"), steps, 20, Random(0))
    whole, cut = ((folder / name / "model.safetensors").read_bytes() for name in ("whole", "cut"))
    written = [json.loads(line)["step"] for line in log.read_text().splitlines()]
    faults = [] if whole == cut else ["the weights differ from those of an uninterrupted training"]
    faults += [] if written == list(range(1, 601)) else ["a step is missing or duplicated in the log"]
    there, left_there = ({path.name for path in (folder / name).iterdir()} for name in ("whole", "cut"))
    left = sorted(left_there - there)
    return ends, faults + ([f"left behind: {', '.join(left)}"] if left else []) + _left(temporary)


def ended_sweep(folder: Path, temporary: Path) -> tuple[list[Ended], list[str]]:
    """Check a repeatedly interrupted sweep with child processes."""

    def start() -> "subprocess.Popen[bytes]":
        return _process(str(HERE / "rows.py"), str(folder), str(SWEPT))

    def found() -> int:
        return sum(record.status == "ok" for record in file.read())

    file = RecordFile(folder / "records.jsonl")
    ends = interrupted(start, found, 6, Random(1))
    counted = Counter((record.options["row"], record.metric) for record in file.read() if record.status == "ok")
    wanted = {(row, name) for row in range(SWEPT) if status_of(row) == "ok" for name in ("peak_allocated", "params")}
    faults = [] if set(counted) == wanted else ["rows are missing or unexpected"]
    faults += [] if set(counted.values()) == {1} else ["a row is duplicated"]
    return ends, faults + _left(temporary)


def _left(temporary: Path) -> list[str]:
    """Temporary files that remain after 3 s: children check every second for their parent. PyTorch's cache may stay."""
    time.sleep(3)
    left = sorted(path.name for path in temporary.iterdir() if not path.name.startswith("torchinductor"))
    return [f"temporary files left: {', '.join(left)}"] if left else []


def _process(*words: str) -> "subprocess.Popen[bytes]":
    path = os.pathsep.join(str(Path(part).resolve()) for part in sys.path if part)
    quiet = subprocess.DEVNULL
    return subprocess.Popen(
        [sys.executable, *words], env=os.environ | {"PYTHONPATH": path}, stdout=quiet, stderr=quiet, cwd=os.sep
    )


# The report


LONG = {
    "training": (long_training, "steps of a training (8×8×8, width 8), a checkpoint every 20"),
    "prediction": (long_prediction, "predicted rows (`memory --device predict`), in one process"),
    "rows": (
        long_sweep,
        "rows of a sweep, each with a child that measures nothing; every 10th fails, every 25th is killed",
    ),
}
ENDED = {
    "training ended": (ended_training, f"`ppdm-bench {TRAINING} --resume`"),
    "sweep ended": (ended_sweep, f"a sweep of {SWEPT} rows with children (`benchmarks/harness/rows.py`)"),
}


def main() -> int:
    """Run the parts, write the record, and report the faults."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=(*LONG, *ENDED), default=[*LONG, *ENDED], metavar="PART")
    parser.add_argument("--out", type=Path, default=OUT, help="folder for soak.json, soak.md and soak.png")
    arguments = parser.parse_args()
    # Background jobs and their children ignore SIGINT by default.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)
    path = arguments.out / "soak.json"
    record = json.loads(path.read_text()) if path.exists() else {}
    for name in arguments.only:
        with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as temporary:
            tempfile.tempdir = os.environ["TMPDIR"] = temporary
            began = time.monotonic()
            part = watched(name, Path(folder) / "run", Path(temporary))
            tempfile.tempdir = None
            del os.environ["TMPDIR"]
        record[name] = part | {"seconds": round(time.monotonic() - began), "made": made()}
        print(f"{name}: {record[name]['seconds']} s, {'; '.join(part['faults']) or 'no fault'}", flush=True)
    record = {name: record[name] for name in (*LONG, *ENDED) if name in record}
    replace_file(path, (json.dumps(record) + "\n").encode())
    replace_file(path.with_suffix(".md"), to_markdown(record).encode())
    replace_file(path.with_suffix(".png"), to_png(record))
    return int(any(record[name]["faults"] for name in arguments.only))


def watched(name: str, folder: Path, temporary: Path) -> dict[str, Any]:
    """Run one part and return its entry in the record."""
    if name in LONG:
        samples = LONG[name][0](folder, temporary)
        columns = {key: [getattr(s, key) for s in samples] for key in asdict(samples[0])}
        return {"samples": columns, "growth": growth_of(samples), "faults": grown(samples)}
    ends, faults = ENDED[name][0](folder, temporary)
    return {"ends": [asdict(end) for end in ends], "faults": faults}


def made() -> dict[str, Any]:
    """Code version and environment in which a part ran."""
    code = environment()
    return {key: code[key] for key in ("commit", "dirty", "torch", "python", "cpu")}


def to_png(record: dict[str, Any]) -> bytes:
    """Figure of the resident memory over the steps or rows of each long run."""
    figure, content = new_figure("double", 1.9), BytesIO()
    parts = [name for name in LONG if name in record]
    for at, name in enumerate(parts):
        samples = record[name]["samples"]
        axes = figure.add_subplot(1, len(parts), at + 1)
        axes.plot(samples["at"], [value / 2**20 for value in samples["resident"]], color=BLUE, linewidth=1)
        axes.set_ylim(0, 1.15 * max(samples["resident"]) / 2**20)
        axes.set_title(name, fontsize=TEXT, loc="left")
        axes.set_xlabel("steps" if name == "training" else "rows", fontsize=SMALL)
        plain_axes(axes, "y")
    if parts:
        figure.axes[0].set_ylabel("resident memory (MiB)", fontsize=SMALL)
    figure.savefig(content, format="png", dpi=110, metadata={"Software": None})
    return content.getvalue()


def to_markdown(record: dict[str, Any]) -> str:
    """The record as two tables."""
    by = sorted({f"{p['made']['commit'][:12]}{' (changed)' * p['made']['dirty']}" for p in record.values()})
    lines = [
        "# Long runs, and interrupted runs\n",
        f"Written by `benchmarks/harness/soak.py` at commit {', '.join(by)}. Growth is the difference between the "
        f"medians of the last and of the second quarter; {MOST_GROWTH >> 20} MiB, {MOST_FILES} open or temporary "
        "files, and no child process between rows are allowed.\n",
        "| run | samples | resident (MiB) | growth (MiB) | open files | children | temporary files | s | faults |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    for name in (name for name in LONG if name in record):
        part, samples = record[name], record[name]["samples"]
        resident = [value / 2**20 for value in samples["resident"]]
        cells = (
            f"{samples['at'][-1]} {LONG[name][1]}",
            str(len(resident)),
            f"{min(resident):.0f} to {max(resident):.0f}",
            f"{part['growth'] / 2**20:+.2f}".replace("-", "−"),
            f"{min(samples['open_files'])} to {max(samples['open_files'])}",
            str(max(samples["children"])),
            str(max(samples["temporary"])),
            str(part["seconds"]),
            "; ".join(part["faults"]) or "none",
        )
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "\n![resident memory over steps and rows](soak.png)",
        f"\nEach run below was interrupted {INTERRUPTIONS} times, by a random signal at a random time, and started "
        "again. In brackets: the steps in the log, or the records, at that time.\n",
        "| run | interruptions | lost or duplicated | s |",
        "|---|---|---|---:|",
    ]
    for name in (name for name in ENDED if name in record):
        part = record[name]
        ends = ", ".join(f"{end['signal']} ({end['done']})" for end in part["ends"])
        lines.append(f"| {ENDED[name][1]} | {ends} | {'; '.join(part['faults']) or 'nothing'} | {part['seconds']} |")
    lines += [
        "\nThis test found one defect, which is fixed: a killed command could leave the temporary folder through which "
        "it communicated with its child. They now use unnamed files (`tests/bench/isolation/test_runner.py`)."
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
