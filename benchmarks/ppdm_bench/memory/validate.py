"""The prediction held against peaks that others measured on CUDA: ``python -m ppdm_bench.memory.validate``.

The published records name a third-party network (MONAI's ``DiffusionModelUNet``, a development dependency), a GPU and
a release of PyTorch. Each is built and run as its source says, for that GPU, on this machine without one.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ppdm_bench.environment import environment
from ppdm_bench.memory.published_runs import predict_published, target_of
from ppdm_bench.memory.reference import reference_records, reference_table
from ppdm_bench.records import Record, RecordFile
from ppdm_bench.report import figure
from ppdm_bench.report.agreement import agreement_table
from ppdm_bench.report.files import replace_file

PUBLISHED = Path("results/published/monai_unet_peaks.jsonl")

SIZES = (32, 64, 128)  # of the comparison with MONAI's network


def main() -> None:
    """Predict every published peak, compare our U-Net with the field's, and write records, tables and the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--published", type=Path, default=PUBLISHED, help="records of kind published")
    parser.add_argument("--out", type=Path, default=Path("results/validation"), help="folder for records and figure")
    arguments = parser.parse_args()
    published = RecordFile(arguments.published).read()
    predicted = [record for one in published for record in predict(one)]
    path = arguments.out / "published.jsonl"
    _write(path, predicted)
    written = list(figure.save(figure.validation_figure([*published, *predicted]), arguments.out / "published"))
    table = agreement_table([*published, *predicted])
    written.append(replace_file(arguments.out / "published.md", table.encode()))
    print(table)
    print(_compare_networks(arguments.out))
    print("written: " + ", ".join(map(str, [path, *written])))


def _compare_networks(out: Path) -> str:
    records = reference_records(SIZES)
    table = reference_table(records)
    _write(out / "reference.jsonl", records)
    replace_file(out / "reference.md", table.encode())
    return table


def _write(path: Path, records: Sequence[Record]) -> None:
    """Write records anew: each run compares everything again."""
    replace_file(path, "".join(record.to_json() + "\n" for record in records).encode())


def predict(published: Record) -> list[Record]:
    """The records of a prediction of what a published record says was run."""
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
    return [
        Record(metric="peak_allocated", value=peak.peak_allocated, stat="max", n=1, **common | fault),
        Record(metric="peak_reserved", value=peak.peak_reserved, stat="max", n=1, **common | fault),
        *(Record(metric=name, value=value, stat="at peak", n=1, **common) for name, value in peak.breakdown.items()),
    ]


if __name__ == "__main__":
    main()
