"""Pairs of designs that differ only in the puzzle-gradient loss: one with the loss, one without."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ppdm_bench.records import Record
from ppdm_bench.report.metrics import SEAMS
from ppdm_bench.report.scores import Scores, design_of, factor_text, is_comparable, of_common_seeds, seam_metric
from ppdm_bench.report.statistics import Difference, common_difference

SEAMLESS_DB = 1.5  # images without seams reach up to this value in either measure, see `ppdm.metrics.texture`


@dataclass(frozen=True)
class LossPair:
    """Scores of one design with the loss (`on`) and without it (`off`), and the metric that measures seams."""

    on: Scores
    off: Scores
    metric: str

    @property
    def records(self) -> list[Record]:
        """The records of the metric, of both designs."""
        return [*self.on.of_metric(self.metric), *self.off.of_metric(self.metric)]

    @cached_property
    def difference(self) -> Difference | None:
        """The difference in the metric due to the loss; None if no subject has both values."""
        return common_difference(self.on.subject_means(self.metric), self.off.subject_means(self.metric))

    @property
    def measure(self) -> str:
        """The metric without its block grid."""
        return self.metric.rpartition("_r")[0]

    @property
    def block_grid(self) -> str:
        """The block grid of the metric, such as ``2`` or ``1x2x2``."""
        return self.metric.rpartition("_r")[2]

    def values(self, metric: str) -> tuple[list[float], list[float]]:
        """Return the values with and without the loss, for the subjects that have both."""
        on, off = self.on.subject_means(metric), self.off.subject_means(metric)
        both = [subject for subject in on if subject in off]
        return [on[s] for s in both], [off[s] for s in both]


def gradient_of(design: Mapping[str, Any]) -> float:
    """Return the weight of the puzzle-gradient loss."""
    return float((design.get("loss") or {}).get("gradient") or 0)


def same_but_for_loss(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two resolved methods agree in everything except the weight and the mode of the gradient loss."""
    return _design_without_loss(one) == _design_without_loss(other)


def loss_pairs(points: Sequence[Scores]) -> list[LossPair]:
    """Return every pair with equal data, budget and number of evaluations for which seams were measured."""
    return [
        LossPair(*of_common_seeds(on, off), metric)
        for off in points
        if factor_text(off.design) and not gradient_of(off.design)
        for on in points
        if is_comparable(on, off)
        and on.evaluations == off.evaluations
        and gradient_of(on.design)
        and (metric := _seam_metric_of(on, off))
        and same_but_for_loss(on.design, off.design)
    ]


def _seam_metric_of(on: Scores, off: Scores) -> str:
    """Return the first metric of seams that both have; older records have only the seam index."""
    names = (seam_metric(factor_text(off.design), measure) for measure in SEAMS)
    return next((name for name in names if on.subject_means(name) and off.subject_means(name)), "")


def _design_without_loss(design: Mapping[str, Any]) -> str:
    network = {name: value for name, value in (design.get("network") or {}).items() if name != "checkpointing"}
    power = (design.get("loss") or {}).get("p")
    return json.dumps(
        [design_of(design, without=("loss",)), design.get("optimisation"), network, power], sort_keys=True
    )
