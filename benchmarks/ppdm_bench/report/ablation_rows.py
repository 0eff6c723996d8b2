"""Rows from records of an ablation: one per cell, task, budget and number of evaluations, and per seed if wanted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from statistics import fmean
from typing import Any

from ppdm_bench.grouping import grouped
from ppdm_bench.records import Record
from ppdm_bench.report.metrics import SEAMS
from ppdm_bench.report.scores import Scores, by_subject, data_and_convention, seam_metric, seed_of
from ppdm_bench.report.statistics import Difference, common_difference

COMMAND = "ablate"
BUDGETS = {"steps": "equal steps", "time": "equal time"}


@dataclass
class AblationRow:
    """The results of one cell on one task under one budget.

    Attributes:
        cell: label, levels and settings of the cell, as in the records.
        task: task of the subjects.
        budget, amount: ``steps`` and their number, or ``time`` and its seconds.
        evaluations: network evaluations per volume; None for a cell that was left out.
        scores: values by metric, seed and subject.
        seeds: seeds of the trainings in this row.
        costs: ``train_steps``, ``train_seconds``, ``volume_seconds`` and ``step_seconds``, means over seeds.
        peaks: bytes by shape, phase, kind and metric.
        shape: shape of the largest volume.
        status, reason: why values are missing.
    """

    cell: dict[str, Any]
    task: str
    budget: str
    amount: float
    evaluations: int | None
    scores: Scores
    seeds: tuple[int, ...] = ()
    costs: dict[str, float] = field(default_factory=dict)
    peaks: dict[tuple[tuple[int, ...], str, str, str], float] = field(default_factory=dict)
    shape: tuple[int, ...] = ()
    status: str = "ok"
    reason: str = ""

    @property
    def label(self) -> str:
        """The label of the cell."""
        return str(self.cell["label"])

    def is_comparable_to(self, other: AblationRow) -> bool:
        """Whether two rows differ only in their cells, and have at least one common seed."""
        same = ("task", "budget", "amount", "evaluations")
        return all(getattr(self, n) == getattr(other, n) for n in same) and bool({*self.seeds} & {*other.seeds})

    def metric(self, name: str) -> str:
        """Return the name of a metric; measures of seams get the block grid of the representation, or become empty."""
        factor = "2" if self.cell.get("representation") == "haar" else str(self.cell.get("factor", ""))
        return seam_metric(factor, name) if name in SEAMS else name

    def peak(self, phase: str, kind: str, shape: tuple[int, ...] | None = None) -> float | None:
        """Return ``peak_allocated`` in bytes; by default for the largest volume."""
        return self.peaks.get((self.shape if shape is None else shape, phase, kind, "peak_allocated"))

    @property
    def shapes(self) -> set[tuple[int, ...]]:
        """The shapes of the scored volumes."""
        return {record.shape for record in self.scores.records if record.shape}

    @property
    def step_seconds(self) -> float | None:
        """Seconds per step during training; None for a cell that was not trained."""
        seconds, steps = self.costs.get("train_seconds"), self.costs.get("train_steps")
        return seconds / steps if seconds is not None and steps else None


def gather_ablation(records: Iterable[Record], *, pooled: bool = False) -> list[AblationRow]:
    """Return one row for each cell, task, budget, number of evaluations and seed, in the order of the records.

    If the records are about several base methods, only those of the last one are used, and of each task only those of
    the last data and convention, because the others cannot be compared with them.

    Args:
        records: long-form records; those of other commands are ignored.
        pooled: whether all seeds of a cell form one row.
    """
    mine = _of_latest_setting([r for r in records if r.command == COMMAND and isinstance(r.options.get("cell"), dict)])
    rows: dict[tuple[object, ...], AblationRow] = {}
    for record in mine:
        if record.subject or (record.status != "ok" and "budgets" in record.options):
            for budget, amount in record.options["budgets"].items():
                cell, seed = record.options["cell"], _seed(record)
                key = (record.task, budget, amount, cell["label"], record.steps, None if pooled else seed)
                row = AblationRow(cell, record.task, budget, amount, record.steps, Scores.empty_for(record))
                _add(rows.setdefault(key, row), record, seed)
    costing = (record for record in mine if record.value is not None and not record.subject)
    costs = grouped(costing, lambda record: record.options["cell"]["label"])
    for row in rows.values():
        _add_costs(row, costs.get(row.label, []))
    return list(rows.values())


def rows_with_most_evaluations(rows: Sequence[AblationRow]) -> list[AblationRow]:
    """Return the rows with the most network evaluations, which figures and tables for people show."""
    most = max((row.evaluations for row in rows if row.evaluations), default=None)
    return [row for row in rows if row.evaluations in (most, None)]


def difference(row: AblationRow, rows: Sequence[AblationRow], metric: str) -> Difference | None:
    """Return the paired difference from the default under the same budget, over common subjects and seeds.

    It is None for the default itself, and without a common seed and subject.
    """
    default = next((other for other in rows if other.cell["default"] and other.is_comparable_to(row)), None)
    if row.cell["default"] or default is None:
        return None
    mine, theirs = (one.scores.scans.get(metric, {}) for one in (row, default))
    means = (by_subject({scan: values[scan] for scan in mine if scan in theirs}) for values in (mine, theirs))
    return common_difference(*means)


def seam_measures(rows: Sequence[AblationRow]) -> list[str]:
    """Return the measures of seams that the rows have; older records have only the seam index."""
    return [measure for measure in SEAMS if any(row.scores.subject_means(row.metric(measure)) for row in rows)]


def _of_latest_setting(records: Sequence[Record]) -> list[Record]:
    if not records:
        return []
    base = records[-1].options["cell"]["base"]
    around = [record for record in records if record.options["cell"]["base"] == base]
    settings = {record.task: data_and_convention(record) for record in around if record.subject}
    return [record for record in around if not record.subject or data_and_convention(record) == settings[record.task]]


def _seed(record: Record) -> int:
    return seed_of(record) or 0


def _add(row: AblationRow, record: Record, seed: int) -> None:
    row.seeds = tuple(dict.fromkeys((*row.seeds, seed)))
    if record.subject:
        row.scores.add(record, seed)
        row.shape = max(row.shape, record.shape, key=prod)
    else:
        row.status, row.reason = record.status, record.reason


def _add_costs(row: AblationRow, records: Sequence[Record]) -> None:
    """Add the peaks and times of the cell, and the mean costs of its trainings; the last of repeated records counts."""
    trained: dict[str, dict[int, float]] = {}
    for record in records:
        value, evaluations = float(record.value or 0), row.evaluations if record.metric == "volume_seconds" else None
        if record.metric.startswith("peak_"):
            row.peaks[record.shape, record.phase, record.kind, record.metric] = value
        elif record.metric == "step_seconds":
            row.costs[record.metric] = value
        elif _has_budget(record, row) and record.steps == evaluations and _seed(record) in row.seeds:
            trained.setdefault(record.metric, {})[_seed(record)] = value
    row.costs |= {metric: fmean(values.values()) for metric, values in trained.items()}


def _has_budget(record: Record, row: AblationRow) -> bool:
    budgets: Mapping[str, float] = record.options.get("budgets", {})
    return record.task == row.task and budgets.get(row.budget) == row.amount
