"""A run of the micro-benchmarks: a smaller copy to save, a table, and a comparison with the saved run.

``python -m ppdm_bench.report.tables.micro RUN.json --saved KEPT.json --out FOLDER`` reads what pytest-benchmark wrote.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ppdm_bench.report.atomic_io import replace_file
from ppdm_bench.report.tables.render import Heading, Page, table_of
from ppdm_bench.units import significant

MicroRun = dict[str, Any]
Quartiles = Sequence[float]

THRESHOLD = 0.1  # smaller changes are not reported
_SAME_MACHINE = ("cpu", "threads", "torch")


def trimmed(run: Mapping[str, Any]) -> MicroRun:
    """Return the part of a run to save: the quartiles of each benchmark and of the libraries compared with it.

    Raises:
        ValueError: the run is not one of these benchmarks.
    """
    try:
        return {
            "datetime": run["datetime"],
            "environment": dict(run["machine_info"]["environment"]),
            "benchmarks": {f"{b['group']}: {_name(b)}": _benchmark(b) for b in run["benchmarks"]},
        }
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"expected JSON that pytest-benchmark wrote for benchmarks/micro, but reading it failed: {error!r}"
        ) from None


def _name(benchmark: Mapping[str, Any]) -> str:
    return str(benchmark["name"]).removeprefix("test_").replace("_", " ").replace("[", " [")


def _benchmark(benchmark: Mapping[str, Any]) -> dict[str, Any]:
    stats, extra = benchmark["stats"], benchmark["extra_info"]
    kept = {"seconds": _short([stats["q1"], stats["median"], stats["q3"]]), "rounds": stats["rounds"]}
    if "share_of_copy_bandwidth" in extra:
        kept["share_of_copy_bandwidth"] = round(extra["share_of_copy_bandwidth"], 4)
    kept["beside"] = {
        name: {key: _short(values) for key, values in other.items()} for name, other in extra.get("beside", {}).items()
    }
    return kept


def _short(values: Quartiles) -> list[float]:
    return [float(f"{value:.4g}") for value in values]


_NOTE = (
    "Medians and quartiles. Ours / theirs: the ratio of each round, in which the other ran directly before ours. Copy: "
    "the same bytes, copied without a permutation."
)


def micro_page(run: MicroRun) -> Page:
    """Return the table of a run: one row for each benchmark and each library that it is compared with."""
    env = run["environment"]
    commit = f"{str(env['commit'])[:10] or 'unknown'}{' and changes' if env['dirty'] else ''}"
    title = f"Micro-benchmarks on {env['cpu']}, {env['threads']} threads, torch {env['torch']}, commit {commit}."
    found = run["benchmarks"].items()
    rows = [(name, one, beside) for name, one in found for beside in one["beside"].items() or [("", {})]]
    columns = {
        Heading("benchmark"): lambda row: row[0],
        Heading("ours", "ours (ms)", note=_NOTE): lambda row: _milliseconds(row[1]["seconds"]),
        Heading("beside"): lambda row: row[2][0],
        Heading("theirs", "theirs (ms)"): lambda row: (row[2][1] and _milliseconds(row[2][1]["seconds"])) or None,
        Heading("ratio", "ours / theirs"): lambda row: (row[2][1] and _range(row[2][1]["ratio"], "×")) or None,
        Heading("share", "share of copy bandwidth", "{:.0%}".format): lambda row: (
            row[1].get("share_of_copy_bandwidth") if row[2][0] == "copy" else None
        ),
    }
    return Page([title, table_of(rows, columns)])


def _milliseconds(seconds: Quartiles) -> str:
    return _range([1000 * s for s in seconds])


def _range(values: Quartiles, unit: str = "") -> str:
    low, middle, high = (significant(value) + unit for value in values)
    return f"{middle} ({low} to {high})"


def compare(run: MicroRun, saved: MicroRun) -> list[str]:
    """Return one sentence for each benchmark that became slower or faster than in a saved run.

    A change is reported if it is above 10 % and the interquartile ranges do not overlap. Times of another machine or
    another PyTorch cannot be compared; then only the ratios to the other libraries are.
    """
    differing = [n for n in _SAME_MACHINE if run["environment"][n] != saved["environment"][n]]
    both = [name for name in run["benchmarks"] if name in saved["benchmarks"]]
    found = [line for name in both for line in _changes(name, run, saved, times=not differing)]
    what = f"ratios only, because the {', '.join(differing)} differs" if differing else "times and ratios"
    gone = [name for name in saved["benchmarks"] if name not in run["benchmarks"]]
    summary = [f"Against the saved run ({what}): {len(found) or 'no'} changes in {len(both)} benchmarks."]
    return [*summary, *found, *(f"{name}: not in this run" for name in gone)]


def _changes(name: str, run: MicroRun, saved: MicroRun, times: bool) -> list[str]:
    now, then = run["benchmarks"][name], saved["benchmarks"][name]
    pairs = [("", now["seconds"], then["seconds"])] if times else []
    pairs += [
        (f" relative to {other}", now["beside"][other]["ratio"], then["beside"][other]["ratio"])
        for other in now["beside"]
        if other in then["beside"]
    ]
    return [f"{name}{what}: {word}" for what, *values in pairs if (word := _change(*values))]


def _change(now: Quartiles, then: Quartiles) -> str:
    factor = now[1] / then[1]
    if factor > 1 + THRESHOLD and now[0] > then[2]:
        return f"slower, {factor:.2f} times as long"
    if factor < 1 / (1 + THRESHOLD) and now[2] < then[0]:
        return f"faster, {factor:.2f} times as long"
    return ""


def main(arguments: Sequence[str] | None = None) -> None:
    """Save a run and its table in a folder; print the table and the changes since the saved run.

    Raises:
        ValueError: the run is not one of these benchmarks.
        OSError: a file cannot be read or written.
    """
    parser = argparse.ArgumentParser(prog="ppdm_bench.report.tables.micro", description=__doc__)
    parser.add_argument("run", type=Path, help="JSON file that pytest-benchmark --benchmark-json wrote")
    parser.add_argument("--saved", type=Path, help="saved run to compare with, if the file exists")
    parser.add_argument("--out", type=Path, required=True, help="folder for bench.json and bench.md")
    asked = parser.parse_args(arguments)
    run = trimmed(json.loads(asked.run.read_text()))
    # Read before anything is written: the new run may replace the saved one.
    saved = json.loads(asked.saved.read_text()) if asked.saved and asked.saved.exists() else None
    page = micro_page(run)
    replace_file(asked.out / "bench.json", (json.dumps(run, indent=1) + "\n").encode())
    replace_file(asked.out / "bench.md", page.to_markdown().encode())
    print(page.to_text())
    print("\n".join(compare(run, saved)) if saved else "There is no saved run to compare with.")


if __name__ == "__main__":
    main()
