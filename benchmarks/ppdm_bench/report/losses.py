"""Pairs of designs that differ only in the puzzle-gradient loss: with it and without."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ppdm_bench.report.scores import Scores, alike, design_of, factor_text, seam_metric

__all__ = ["Toggled", "gradient_of", "loss_pairs", "same_but_for_loss"]


@dataclass(frozen=True)
class Toggled:
    """Scores of one design with the loss (`on`) and without (`off`), and the metric in which a grid would show."""

    on: Scores
    off: Scores
    metric: str


def gradient_of(design: Mapping[str, Any]) -> float:
    """Return the weight of the puzzle-gradient loss."""
    return float((design.get("loss") or {}).get("gradient") or 0)


def same_but_for_loss(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two resolved methods agree in everything except the weight and the mode of the gradient loss."""
    return _rest(one) == _rest(other)


def loss_pairs(points: Sequence[Scores]) -> list[Toggled]:
    """Return every pair of one data set, budget and number of evaluations that has the seam index."""
    return [
        Toggled(on, off, metric)
        for off in points
        if (metric := seam_metric(factor_text(off.design))) and not gradient_of(off.design) and off.subjects(metric)
        for on in points
        if alike(on, off)
        and on.evaluations == off.evaluations
        and gradient_of(on.design)
        and on.subjects(metric)
        and same_but_for_loss(on.design, off.design)
    ]


def _rest(design: Mapping[str, Any]) -> str:
    network = {name: value for name, value in (design.get("network") or {}).items() if name != "checkpointing"}
    power = (design.get("loss") or {}).get("p")
    return json.dumps(
        [design_of(design, without=("loss",)), design.get("optimisation"), network, power], sort_keys=True
    )
