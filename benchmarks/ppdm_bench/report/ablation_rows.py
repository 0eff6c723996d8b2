"""Records of an ablation gathered into rows: one cell, task, budget and number of evaluations, of one seed or all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ppdm_bench.records import Record
from ppdm_bench.report.series import Series, setting
from ppdm_bench.report.statistics import Difference, paired_difference

__all__ = ["BUDGETS", "Row", "difference", "gather", "seam_metric"]

COMMAND = "ablate"
BUDGETS = {"steps": "equal steps", "time": "equal time"}


@dataclass(frozen=True)
class Row:
    """What is known of one cell on one task under one budget.

    Attributes:
        cell: its label, levels and settings, as the records have them.
        task: of the subjects.
        budget, amount: ``steps`` and their number, or ``time`` and its seconds.
        seeds: of the trainings that it holds.
        evaluations: of the network for a volume; None for a cell that was left out.
        series: values by metric and subject; of several seeds, each seed is a scan of its subject.
        costs: ``train_steps``, ``train_seconds``, ``volume_seconds`` and ``step_seconds``, means over seeds.
        peaks: bytes by shape, phase, kind and metric.
        shape: of the volumes.
        status, reason: why there are no values, where there are none.
    """

    cell: dict[str, Any]
    task: str
    budget: str
    amount: float
    seeds: tuple[int, ...]
    evaluations: int | None
    series: Series
    costs: dict[str, float] = field(default_factory=dict)
    peaks: dict[tuple[tuple[int, ...], str, str, str], float] = field(default_factory=dict)
    shape: tuple[int, ...] = ()
    status: str = "ok"
    reason: str = ""

    @property
    def label(self) -> str:
        """What tells its cell apart."""
        return str(self.cell["label"])

    def beside(self, other: Row) -> bool:
        """Whether the two differ in their cells alone, in some seed at least."""
        same = ("task", "budget", "amount", "evaluations")
        return all(getattr(self, n) == getattr(other, n) for n in same) and bool({*self.seeds} & {*other.seeds})

    def peak(self, phase: str, kind: str, shape: tuple[int, ...] | None = None) -> float | None:
        """``peak_allocated`` in bytes, at the size of its own volumes or another."""
        return self.peaks.get((self.shape if shape is None else shape, phase, kind, "peak_allocated"))

    @property
    def step_seconds(self) -> float | None:
        """Seconds a step as it was trained; of a cell that was not, None."""
        seconds, steps = self.costs.get("train_seconds"), self.costs.get("train_steps")
        return seconds / steps if seconds is not None and steps else None


def gather(records: Iterable[Record], *, pooled: bool = False) -> list[Row]:
    """One row for each cell, task, budget, number of evaluations and seed, in the order they first came.

    Of records around several methods, those around the last are taken, and of each task those of the last data and
    convention: numbers of others cannot stand beside them.

    Args:
        records: long-form; those of other commands are passed over.
        pooled: whether the seeds of a cell are one row.
    """
    mine = _latest([r for r in records if r.command == COMMAND and isinstance(r.options.get("cell"), dict)])
    found: dict[tuple[object, ...], Row] = {}
    for record in mine:
        if record.subject or _is_missing(record):
            for budget, amount in record.options["budgets"].items():
                _take(found, record, budget, amount, pooled)
    costs = _Costs(mine)
    return [costs.added(row) for row in found.values()]


def difference(row: Row, rows: Sequence[Row], metric: str) -> Difference | None:
    """From the default under the same budget, subject by subject, of the seeds that both have; None for itself."""
    if row.cell["default"]:
        return None
    default = next((other for other in rows if other.cell["default"] and other.beside(row)), None)
    if default is None:
        return None
    pair = [one.series.scans.get(metric, {}) for one in (row, default)]
    both = [scan for scan in pair[0] if scan in pair[1]]
    if not both:
        return None
    mine, theirs = (_of_subjects({scan: values[scan] for scan in both}) for values in pair)
    return paired_difference(mine, theirs)


def seam_metric(row: Row) -> str | None:
    """The seam index at the lattice of the cell's own representation; without a lattice there is no grid to measure."""
    if row.cell.get("representation") == "haar":
        return "seam_index_r2"
    factor = str(row.cell.get("factor", ""))
    return None if factor in ("", "1", "1x1x1") else f"seam_index_r{factor}"


def _of_subjects(scans: dict[str, float]) -> list[float]:
    return [*Series("", "", None, "", {"": scans}).subjects("").values()]


def _latest(records: Sequence[Record]) -> list[Record]:
    if not records:
        return []
    base = records[-1].options["cell"]["base"]
    around = [record for record in records if record.options["cell"]["base"] == base]
    settings = {record.task: setting(record) for record in around if record.subject}
    return [record for record in around if not record.subject or setting(record) == settings[record.task]]


def _is_missing(record: Record) -> bool:
    """Whether it says why a cell has no values."""
    return not record.subject and record.status != "ok" and "budgets" in record.options


def _seed(record: Record) -> int:
    return int(record.options.get("training", {}).get("seed", 0))


def _take(found: dict[tuple[object, ...], Row], record: Record, budget: str, amount: float, pooled: bool) -> None:
    cell, seed = record.options["cell"], _seed(record)
    key = (record.task, budget, amount, cell["label"], record.steps, None if pooled else seed)
    row = found.get(key)
    if row is None:
        series = Series(record.method, record.variant, record.steps, record.precision)
        row = Row(cell, record.task, budget, amount, (), record.steps, series)
    if record.subject:
        row.series.add(record, f"{record.subject}/{seed}" if pooled else "")
        row = replace(row, shape=row.shape or record.shape)
    else:
        row = replace(row, status=record.status, reason=record.reason)
    found[key] = row if seed in row.seeds else replace(row, seeds=(*row.seeds, seed))


class _Costs:
    """What cells cost, looked up for their rows."""

    def __init__(self, records: Sequence[Record]) -> None:
        self._runs: dict[tuple[object, ...], dict[int, float]] = {}
        self._steps: dict[tuple[str, tuple[int, ...]], float] = {}
        self._peaks: dict[str, dict[tuple[tuple[int, ...], str, str, str], float]] = {}
        for record in records:
            if record.value is not None and not record.subject:
                self._add(record)

    def _add(self, record: Record) -> None:
        label = record.options["cell"]["label"]
        if record.metric == "step_seconds":
            self._steps[label, record.shape] = float(record.value or 0)
        elif record.metric.startswith("peak_"):
            key = (record.shape, record.phase, record.kind, record.metric)
            self._peaks.setdefault(label, {})[key] = float(record.value or 0)
        else:
            for budget in record.options.get("budgets", {}).items():
                run = (record.task, *budget, label, record.steps, record.metric)
                self._runs.setdefault(run, {})[_seed(record)] = float(record.value or 0)

    def added(self, row: Row) -> Row:
        """The row with its costs."""
        place = (row.task, row.budget, row.amount, row.label)
        wanted = (("train_steps", None), ("train_seconds", None), ("volume_seconds", row.evaluations))
        costs = {metric: self._runs.get((*place, steps, metric), {}) for metric, steps in wanted}
        means = {
            metric: [value for seed, value in found.items() if seed in row.seeds] for metric, found in costs.items()
        }
        found = {metric: sum(values) / len(values) for metric, values in means.items() if values}
        pace = [seconds for (label, _), seconds in self._steps.items() if label == row.label]
        found |= {"step_seconds": pace[-1]} if pace else {}
        return replace(row, costs=found, peaks=self._peaks.get(row.label, {}))
