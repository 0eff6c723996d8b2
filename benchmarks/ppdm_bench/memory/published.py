"""Compare published memory of the methods that the baselines follow with predictions for the authors' presets.

Run it with ``python -m ppdm_bench.memory.published``. Each published record names the registered method that follows
it. Our networks differ from the published ones in some layers, and the sources do not define exactly which memory they
count. Therefore only the order of the methods can be compared, not the values.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from torch.nn.attention import SDPBackend, sdpa_kernel

from ppdm_bench.configuration import Configuration
from ppdm_bench.grouping import grouped
from ppdm_bench.memory.command import MemoryPlan, carry_out
from ppdm_bench.predictor.target import GIB, Target
from ppdm_bench.records import Record, RecordFile
from ppdm_bench.report.atomic_io import replace_file
from ppdm_bench.units import shape_text, significant

Peaks = dict[tuple[str, tuple[int, ...], str], float]  # by method, shape and phase

UNFUSED = "unfused attention"
PUBLISHED = Path("results/published/method_memory.jsonl")


def main() -> None:
    """Predict all compared methods and write the records and the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--published", type=Path, default=PUBLISHED, help="records of kind published")
    parser.add_argument("--out", type=Path, default=Path("results/methods"), help="folder for records and table")
    arguments = parser.parse_args()
    published = RecordFile(arguments.published).read()
    predicted = [*predict(published), *predict_unfused(published)]
    path = arguments.out / "predicted.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    RecordFile(path).append(predicted)
    table = published_table(published, predicted)
    written = replace_file(arguments.out / "published.md", table.encode())
    print(f"{table}\nwritten: {path}, {written}")


def predict(published: Sequence[Record]) -> list[Record]:
    """Predict every published record that has a registered method, with the authors' preset in fp32."""
    asked = dict.fromkeys(
        (Configuration(record.options["beside"], _size(record), "authors"), record.phase)
        for record in published
        if record.options.get("beside")
    )
    plans = [MemoryPlan([configuration], [phase], "predict", Target()) for configuration, phase in asked]
    return [record for plan in plans for made in carry_out(plan) for record in made]


def predict_unfused(published: Sequence[Record]) -> list[Record]:
    """Predict published networks with unfused attention, which stores all attention weights, with the same kernel."""
    with sdpa_kernel(SDPBackend.MATH):
        records = predict([record for record in published if record.options.get("unfused")])
    return [replace(record, variant=f"{record.variant} {UNFUSED}") for record in records]


def published_table(published: Sequence[Record], predicted: Sequence[Record]) -> str:
    """Return a Markdown table with one row per published value, and whether the order agrees within each source."""
    ours, unfused = (_peaks(predicted, which) for which in (False, True))
    lines = [
        "| published | volume | phase | published, GB | ours | predicted, GiB | with unfused attention, GiB |",
        "|---|---|---|---:|---|---:|---:|",
    ]
    for record in published:
        beside = record.options.get("beside", "")
        key = (beside, record.shape, record.phase)
        cells = [
            record.method,
            shape_text(record.shape),
            record.phase,
            record.options.get("text") or f"{record.value:g}",
            f"{beside} authors" if beside else "–",
            *(significant(peaks[key] / GIB) if key in peaks else "–" for peaks in (ours, unfused)),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    sources = "\n".join(dict.fromkeys(f"- {r.method}: {r.source}" for r in published))
    orders = [*_orders(published, ours, "predicted"), *_orders(published, ours | unfused, f"predicted, {UNFUSED}")]
    return "\n".join([*lines, "", *orders, "", "Sources:", "", sources]) + "\n"


def _peaks(predicted: Sequence[Record], unfused: bool) -> Peaks:
    peaks = [r for r in predicted if r.metric == "peak_allocated" and (UNFUSED in r.variant) == unfused]
    return {(r.method, r.shape, r.phase): r.value for r in peaks if r.value}


def _orders(published: Sequence[Record], ours: Peaks, how: str) -> Iterator[str]:
    """For each source, size and phase, compare the published order of the methods with the predicted order."""
    predicted_too = (r for r in published if (r.options.get("beside"), r.shape, r.phase) in ours)
    groups = grouped(predicted_too, lambda record: (record.source, record.shape, record.phase))
    for (_, shape, phase), found in groups.items():
        if len(found) < 2:
            continue
        theirs = sorted(found, key=lambda r: r.value or 0)
        predicted = sorted(found, key=lambda r: ours[r.options["beside"], r.shape, r.phase])
        verdict = "agrees" if theirs == predicted else "does not agree"
        yield (
            f"{shape_text(shape)}, {phase}: the order {verdict}. Published: {_ascending(theirs)}; "
            f"{how}: {_ascending(predicted)}."
        )
        yield ""


def _ascending(records: Sequence[Record]) -> str:
    return " < ".join(record.method for record in records)


def _size(record: Record) -> tuple[int, int, int]:
    d, h, w = record.shape
    return d, h, w


if __name__ == "__main__":
    main()
