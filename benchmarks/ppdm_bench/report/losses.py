"""Pairs of designs that differ only in the puzzle-gradient loss: with it and without."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ppdm_bench.records import Record
from ppdm_bench.report.metrics import SEAMS
from ppdm_bench.report.scores import Scores, alike, design_of, factor_text, of_common_seeds, seam_metric
from ppdm_bench.report.statistics import Difference, common_difference

WITHOUT_SEAMS = 1.5  # dB that images without seams may reach in either measure, see the docstrings of `ppdm.metrics`


@dataclass(frozen=True)
class Toggled:
    """Scores of one design with the loss (`on`) and without (`off`), and the metric in which seams would show."""

    on: Scores
    off: Scores
    metric: str

    @property
    def records(self) -> list[Record]:
        """The records of the metric, of both designs."""
        return [*self.on.of_metric(self.metric), *self.off.of_metric(self.metric)]

    @cached_property
    def difference(self) -> Difference | None:
        """The difference that the loss makes in the metric; None without a subject that has both."""
        return common_difference(self.on.subjects(self.metric), self.off.subjects(self.metric))

    @property
    def measure(self) -> str:
        """The metric without its lattice."""
        return self.metric.rpartition("_r")[0]

    @property
    def lattice(self) -> str:
        """The lattice of the metric, such as ``2`` or ``1x2x2``."""
        return self.metric.rpartition("_r")[2]

    def values(self, metric: str) -> tuple[list[float], list[float]]:
        """Return the values with the loss and those without, of the subjects that have both."""
        on, off = self.on.subjects(metric), self.off.subjects(metric)
        both = [subject for subject in on if subject in off]
        return [on[s] for s in both], [off[s] for s in both]


def gradient_of(design: Mapping[str, Any]) -> float:
    """Return the weight of the puzzle-gradient loss."""
    return float((design.get("loss") or {}).get("gradient") or 0)


def same_but_for_loss(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two resolved methods agree in everything except the weight and the mode of the gradient loss."""
    return _rest(one) == _rest(other)


def loss_pairs(points: Sequence[Scores]) -> list[Toggled]:
    """Return every pair of one data set, budget and number of evaluations that has a measure of seams."""
    return [
        Toggled(*of_common_seeds(on, off), metric)
        for off in points
        if factor_text(off.design) and not gradient_of(off.design)
        for on in points
        if alike(on, off)
        and on.evaluations == off.evaluations
        and gradient_of(on.design)
        and (metric := _seams_of(on, off))
        and same_but_for_loss(on.design, off.design)
    ]


def _seams_of(on: Scores, off: Scores) -> str:
    """Return the first measure of seams that both have; older records have only the seam index."""
    names = (seam_metric(factor_text(off.design), measure) for measure in SEAMS)
    return next((name for name in names if on.subjects(name) and off.subjects(name)), "")


def _rest(design: Mapping[str, Any]) -> str:
    network = {name: value for name, value in (design.get("network") or {}).items() if name != "checkpointing"}
    power = (design.get("loss") or {}).get("p")
    return json.dumps(
        [design_of(design, without=("loss",)), design.get("optimisation"), network, power], sort_keys=True
    )
