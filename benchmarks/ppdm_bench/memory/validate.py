"""Validate the prediction against published CUDA peaks: ``python -m ppdm_bench.memory.validate``.

Each published record names a run, a GPU and a release of PyTorch. The runs are networks of MONAI and diffusers, which
are development dependencies, and single convolutions. Each run is built as in its source and predicted for its GPU; no
GPU is needed.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ppdm_bench.environment import environment
from ppdm_bench.memory.published_runs import predict_published, target_of
from ppdm_bench.memory.reference import reference_records, reference_table
from ppdm_bench.records import Record, RecordFile
from ppdm_bench.report.atomic_io import replace_file
from ppdm_bench.report.figures.agreement import Look, agreement_table, validation_figure
from ppdm_bench.report.figures.style import save

# Names of tables and figures, files of the published records, and the property that distinguishes points in the figure.
PUBLISHED: Sequence[tuple[str, Path, Look]] = (
    ("published", Path("results/published/monai_unet_peaks.jsonl"), "gpu"),
    ("cudnn", Path("results/published/cudnn_peaks.jsonl"), "origin"),
)

SIZES = (32, 64, 128)  # cube edges for the comparison with MONAI's network


def main() -> None:
    """Predict every published peak, compare our U-Net with MONAI's, and write records, tables and figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("results/validation"), help="folder for records and figures")
    arguments = parser.parse_args()
    for name, path, look in PUBLISHED:
        for line in compare(RecordFile(path).read(), arguments.out / name, look):
            print(line)
    print(_compare_networks(arguments.out))


def compare(published: Sequence[Record], out: Path, look: Look) -> Iterator[str]:
    """Predict the published runs, write records, table and figures, and yield the table and the written files."""
    runs = {(record.config_id, record.phase): record for record in published}
    records = [*published, *(record for one in runs.values() for record in predict(one))]
    path = out.with_suffix(".jsonl")
    _write(path, records[len(published) :])
    table, written = present(records, out, look)
    yield table
    yield "written: " + ", ".join(map(str, [path, *written]))


def present(records: Sequence[Record], out: Path, look: Look) -> tuple[str, list[Path]]:
    """Write table and figures of published records and predictions; return the table and the written files."""
    table = agreement_table(records)
    place = replace_file(out.with_suffix(".md"), table.encode())
    return table, [place, *save(validation_figure(records, look), out)]


def _compare_networks(out: Path) -> str:
    records = reference_records(SIZES)
    table = reference_table(records)
    _write(out / "reference.jsonl", records)
    replace_file(out / "reference.md", table.encode())
    return table


def _write(path: Path, records: Sequence[Record]) -> None:
    """Replace the file of records, because each run repeats the whole comparison."""
    replace_file(path, "".join(record.to_json() + "\n" for record in records).encode())


def predict(published: Record) -> list[Record]:
    """Predict the run of a published record and return the records of the prediction."""
    target = target_of(published)
    peak = predict_published(published.options, target)
    common: dict[str, Any] = {
        "kind": "predicted",
        "config_id": published.config_id,
        "method": published.method,
        "variant": published.variant,
        "shape": published.shape,
        "batch_size": published.batch_size,
        "phase": published.phase,
        "precision": published.precision,
        "checkpointing": published.checkpointing,
        "device": "cuda",
        "options": published.options,
        "env": environment() | published.env | {"capacity": target.capacity, "target_torch": target.torch},
    }
    fault = {"status": "oom", "reason": "predicted not to fit"} if peak.fits is False else {}
    counters = {"peak_allocated": peak.peak_allocated, "peak_reserved": peak.peak_reserved}
    if peak.timeline:
        counters["reserved_growth"] = peak.timeline.reserved_growth()
    at_peak = peak.breakdown | {"assumed": peak.assumed}
    refused = [] if peak.refused is None else [Record(metric="refused", value=peak.refused, stat="max", n=1, **common)]
    return [
        *(Record(metric=name, value=value, stat="max", n=1, **common | fault) for name, value in counters.items()),
        *refused,
        *(Record(metric=name, value=value, stat="at peak", n=1, **common) for name, value in at_peak.items()),
    ]


if __name__ == "__main__":
    main()
