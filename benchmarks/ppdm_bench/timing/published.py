"""Published timings as records, their division into two halves, and their prediction.

``results/published/timings.jsonl`` contains one record for each published value, in seconds: its source, the quoted
text (``options["read"]``), what the time includes, and the configuration. ``options["work"]`` is the number of
iterations by kind in the value, such as 250 of training and 50 of validation in an epoch of nnU-Net.

A record with an empty ``options["run"]`` cannot be rebuilt, for instance because its source does not name the card. It
is listed, but it is used neither for the fit nor for the validation.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ppdm_bench.predictor.cards import find_sheet
from ppdm_bench.predictor.target import Target
from ppdm_bench.predictor.timing import FITTED, Constants, Duration, KernelTable, Rates, kernels_of_step
from ppdm_bench.records import Record, RecordFile
from ppdm_bench.timing.published_networks import RUNS

TIMINGS = Path("results/published/timings.jsonl")

# Options that do not change the computation.
_IGNORED = ("read", "includes", "gpu_text", "container", "scheduler", "plan")

Halves = tuple[list[Record], list[Record]]


def read_timings(path: Path = TIMINGS) -> list[Record]:
    """Return all published timings."""
    return RecordFile(path).read()


def can_be_rebuilt(record: Record) -> bool:
    """Whether the record contains enough information to predict it."""
    return record.options["run"] in RUNS


def source_of(record: Record) -> str:
    """Return the repository or paper of a record."""
    parts = record.source.split(": ")[0].split("/")
    return "/".join(parts[3:5]) if "github.com" in record.source else parts[-1].split(",")[0]


def halves(records: Sequence[Record]) -> Halves:
    """Split records into the half for the fit of the constants and the half for their validation.

    Within each source, the configurations (network, size, batch, precision and card, without software versions) are
    sorted by the SHA-256 of their description. The first, third, fifth, ... are for the fit, the others for the
    validation. Values of one configuration with several software versions are in the same half.
    """
    fit: list[Record] = []
    judge: list[Record] = []
    for source in dict.fromkeys(source_of(record) for record in records):
        of_source = [r for r in records if source_of(r) == source and can_be_rebuilt(r)]
        keys = sorted({_key(record) for record in of_source})
        fitting = set(keys[::2])
        fit += [record for record in of_source if _key(record) in fitting]
        judge += [record for record in of_source if _key(record) not in fitting]
    return fit, judge


def _key(record: Record) -> str:
    size = [record.shape, record.batch_size, record.precision, record.env["gpu"]]
    names = ("run", "work", "plan", "network", "latent_size", "window", "layer")
    what = {name.removesuffix("_size"): record.options.get(name) for name in names}
    return hashlib.sha256(json.dumps([source_of(record), size, what], sort_keys=True).encode()).hexdigest()


def target_of(record: Record) -> Target:
    """Return the card and the software of a published timing."""
    major, minor = map(int, str(record.env.get("cudnn") or "9.1").split("."))
    return Target(
        torch=str(record.env["torch"]),
        compute_capability=find_sheet(str(record.env["gpu"])).compute_capability,
        cudnn=(major, minor) if record.env.get("cudnn") else None,
        tf32=record.precision != "fp32",
    )


class PublishedKernels:
    """Kernels of published timings; equal work is traced only once."""

    def __init__(self) -> None:
        self._tables: dict[str, KernelTable] = {}

    def parts(self, record: Record) -> Iterator[tuple[int, KernelTable]]:
        """Yield the number of iterations of each kind in a published value, and the kernels of one iteration."""
        target, size = target_of(record), {"shape": list(record.shape), "batch": record.batch_size}
        options = record.options | size | {"precision": record.precision}
        for what, count in record.options["work"].items():
            yield count, self._table(options, what, target)

    def predict(self, record: Record, constants: Constants = FITTED) -> Duration:
        """Predict a published timing."""
        rates = Rates.of(find_sheet(str(record.env["gpu"])), record.precision != "fp32")
        return Duration.combined((count, Duration.of(table, rates, constants)) for count, table in self.parts(record))

    def _table(self, options: Mapping[str, Any], what: str, target: Target) -> KernelTable:
        used = {name: value for name, value in options.items() if name not in (*_IGNORED, "work")}
        rules = [target.compute_capability >= (8, 0), target.allows_tf32]  # they decide about temporary copies
        key = json.dumps([used, what, rules], sort_keys=True)
        if key not in self._tables:
            build, step = RUNS[options["run"]](options, what)
            self._tables[key] = KernelTable.of(kernels_of_step(build, step, target))
        return self._tables[key]
