"""Fuzzing: corrupt valid input in thousands of ways and record the outcomes as a Markdown table and as JSON.

    python benchmarks/harness/fuzz.py                            all targets of hostile.py, each with its own case count
    python benchmarks/harness/fuzz.py --only scan --cases 100    one target; other targets in the record stay unchanged
    python benchmarks/harness/fuzz.py --only scan --case 17      repeat one case and print its traceback

Every case has its own random generator with the seed ``SEED/target/number``. It runs with limits on time and address
space, which needs Linux. The exit code is 1 if there was a defect.
"""

import argparse
import json
import resource
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import torch
from hostile import BOMB, MARK, TARGETS, Target, is_refusal

from ppdm_bench.commands.terminal import progress
from ppdm_bench.environment import environment
from ppdm_bench.isolation.runner import TimeIsUpError, time_limit
from ppdm_bench.report.atomic_io import replace_file

SECONDS = 10.0  # time limit of one case
ROOM = BOMB - (1 << 27)  # bytes that a case may allocate; smaller than the content of a decompression bomb
RESULT, REFUSAL, DEFECT = "result", "refusal", "defect"
# Defects that fuzzing, or work on it, found and that are fixed: target, input and effect. A test covers each.
FIXED = (
    ("checkpoint", "a network of 10^12 channels or 10^9 blocks", "construction took hours, or torch overflowed"),
    ("checkpoint", "volumes of −1 channels", "PyTorch's RuntimeError"),
    ("checkpoint", "a voxel size of 10^400 mm", "loaded; a comparison with a scan overflowed"),
    (
        "training",
        "a state with a valid digest, whose step, seconds or log is not a number",
        "a TypeError, or endless steps",
    ),
    ("log", "a log without a last step", "an IndexError at the end of a training"),
    ("scan", "a header that nibabel repairs", "nibabel's message on standard error, without the file name"),
    ("records", "a .gz file that expands endlessly", "all memory was used"),
    ("records", "a value of 10^400, NaN or 1e999 in options", "read, but could not be plotted or written again"),
    ("records", "a `timeout` that is text", "a TypeError when the sweep resumed"),
    ("records", "/dev/zero instead of a file", "read endlessly"),
    ("figures", "options that are not those of a command", "a KeyError or TypeError"),
    ("snapshot", "an array that claims 10^12 bytes", "allocated before the content was read"),
    ("snapshot", "a member that expands beyond its declared size", "expanded completely"),
    (
        "snapshot",
        "damaged deflate, zip, array headers or JSON",
        "zlib.error, TokenError, AttributeError, RecursionError",
    ),
    ("constants", "text, negative or broken numbers", "accepted, or a TypeError"),
    ("constants, recipe, point, variation", "JSON nested 100,000 deep", "a RecursionError"),
    ("variation", "`--vary +`", "an IndexError"),
    ("options", "`--budget 999…9GB`", "an OverflowError"),
    ("options", "`--res`, `--factor` of 5,000 digits; lengths and minutes of 400", "a message of Python, or infinity"),
)
OUT = Path(__file__).resolve().parents[2] / "results" / "harness"


@dataclass
class Tried:
    """Outcomes of the cases of one target."""

    outcomes: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    defects: dict[str, list[int]] = field(default_factory=dict)
    slowest: float = 0.0

    def note(self, number: int, outcome: str, message: str, seconds: float) -> None:
        """Count a case."""
        self.outcomes[outcome] += 1
        self.slowest = max(self.slowest, seconds)
        if outcome == REFUSAL:
            self.refusals[message] += 1
        if outcome == DEFECT:
            self.defects.setdefault(message, []).append(number)


def try_target(target: Target, seed: int, numbers: range) -> Iterator[tuple[int, str, str, float]]:
    """Run cases of a target; yield the number, outcome, message and seconds of each."""
    with tempfile.TemporaryDirectory(prefix="hostile-") as name:
        ready = Path(name) / "ready"
        ready.mkdir()
        sound = target.ready(ready)
        for number in numbers:
            with tempfile.TemporaryDirectory(dir=name) as folder:
                began = time.monotonic()
                outcome, message = attempt(target, Random(f"{seed}/{target.name}/{number}"), Path(folder), sound)
                if (ready / MARK).exists():
                    (ready / MARK).unlink()
                    outcome, message = DEFECT, "a pickle was loaded"
                yield number, outcome, message, time.monotonic() - began


def attempt(target: Target, random: Random, folder: Path, sound: Any) -> tuple[str, str]:
    """The outcome of one case, and its message."""
    try:
        with time_limit(SECONDS), limited_memory(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            target.attack(random, folder, sound)
    except TimeIsUpError:
        return DEFECT, f"no end within {SECONDS:g} s"
    except Exception as error:
        if is_refusal(error) or (target.name == "command" and type(error) is ValueError):
            return REFUSAL, type(error).__name__
        if "--case" in sys.argv:
            traceback.print_exc()
        return DEFECT, f"{type(error).__name__}: {where(error)}: {str(error)[:160]}"
    return RESULT, ""


def where(error: BaseException) -> str:
    """The place in the project's code where an error was raised."""
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if "ppdm" in Path(frame.filename).parts[-3:-1]
    ]
    frames = frames or traceback.extract_tb(error.__traceback__)
    return f"{Path(frames[-1].filename).name} {frames[-1].name}"


@contextmanager
def limited_memory() -> Iterator[None]:
    """Limit the address space inside the block to the current size plus ``ROOM``."""
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    usual = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (taken + ROOM, usual[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, usual)


def main() -> int:
    """Run the cases, write the record, and report the defects."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=TARGETS, default=list(TARGETS), metavar="TARGET")
    parser.add_argument("--cases", type=int, help="number of cases per target; default: that of the target")
    parser.add_argument("--case", type=int, help="run only this case, and write nothing")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=OUT, help="folder for fuzz.json and fuzz.md")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    path = arguments.out / "fuzz.json"
    record = json.loads(path.read_text()) if path.exists() else {"targets": {}}
    failed = False
    for name in arguments.only:
        target = TARGETS[name]
        only = arguments.case
        numbers = range(arguments.cases or target.cases) if only is None else range(only, only + 1)
        found = run(target, arguments.seed, numbers)
        failed |= bool(found.defects)
        print(f"{name}: {dict(found.outcomes)}, slowest {found.slowest:.2f} s")
        for message, cases in found.defects.items():
            print(f"  {len(cases):4} {message} (case {cases[0]})")
        record["targets"][name] = described(target, arguments.seed, found)
    if arguments.case is None:
        record["targets"] = {name: record["targets"][name] for name in TARGETS if name in record["targets"]}
        replace_file(path, (json.dumps(record, indent=1) + "\n").encode())
        replace_file(path.with_suffix(".md"), to_markdown(record).encode())
    return int(failed)


def run(target: Target, seed: int, numbers: range) -> Tried:
    """Run all cases of a target with a progress bar."""
    found = Tried()
    with progress() as bar:
        shown = bar.add_task(target.name, total=len(numbers))
        for case in try_target(target, seed, numbers):
            found.note(*case)
            bar.advance(shown)
    return found


def described(target: Target, seed: int, found: Tried) -> dict[str, Any]:
    """The entry of a target in the record."""
    code = environment()
    return {
        "spoilt": target.spoilt,
        "cases": found.outcomes.total(),
        "outcomes": {name: found.outcomes[name] for name in (RESULT, REFUSAL, DEFECT)},
        "refusals": dict(found.refusals.most_common()),
        "defects": {message: len(cases) for message, cases in found.defects.items()},
        "slowest_seconds": round(found.slowest, 2),
        "seed": seed,
        "made": {name: code[name] for name in ("commit", "dirty", "torch", "python", "cpu")},
    }


def to_markdown(record: dict[str, Any]) -> str:
    """The record as a table."""
    targets = record["targets"]
    cases = sum(target["cases"] for target in targets.values())
    outcomes = [sum(target["outcomes"][name] for target in targets.values()) for name in (RESULT, REFUSAL, DEFECT)]
    made = sorted({f"{t['made']['commit'][:12]}{' (changed)' * t['made']['dirty']}" for t in targets.values()})
    lines = [
        "# Corrupted input\n",
        f"Written by `benchmarks/harness/fuzz.py` at commit {', '.join(made)}. {cases:,} cases: {outcomes[0]:,} "
        f"results, {outcomes[1]:,} refusals with a message for users, {outcomes[2]:,} defects. Limits of a case: "
        f"{SECONDS:g} s and {ROOM >> 20} MiB. Some compressed files contain {BOMB >> 20} MiB of zeros more than they "
        "declare.\n",
        "| target | corrupted input | cases | results | refusals | defects | slowest (s) | exceptions of refusals |",
        "|---|---|---:|---:|---:|---:|---:|---|",
    ]
    for name, target in targets.items():
        message = ", ".join(f"{kind} {count:,}" for kind, count in target["refusals"].items())
        counts = (target["cases"], *(target["outcomes"][outcome] for outcome in (RESULT, REFUSAL, DEFECT)))
        cells = (target["spoilt"], *(f"{count:,}" for count in counts), f"{target['slowest_seconds']:.2f}", message)
        lines.append(f"| {' | '.join((name, *cells))} |")
    lines += [
        f"\n{len(FIXED)} defects were found by these cases, or while writing them, and are fixed; "
        "`tests/core/test_hostile.py` tests each of them:\n",
        "| target | input | effect |",
        "|---|---|---|",
        *(f"| {' | '.join(row)} |" for row in FIXED),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
