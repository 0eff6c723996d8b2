"""Pairs of designs that differ in the puzzle-gradient loss alone: with it and without."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ppdm_bench.report.points import Point, alike, design_of, factor_text

__all__ = ["Toggled", "gradient_of", "loss_pairs", "same_but_for_loss", "seam_metric"]


@dataclass(frozen=True)
class Toggled:
    """One design with the loss (`on`) and without (`off`), and the metric in which a grid would show."""

    on: Point
    off: Point
    metric: str


def gradient_of(design: Mapping[str, Any]) -> float:
    """The weight of the puzzle-gradient loss."""
    return float((design.get("loss") or {}).get("gradient") or 0)


def same_but_for_loss(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two resolved methods are one but for the weight and the mode of the gradient loss."""
    return _rest(one) == _rest(other)


def seam_metric(design: Mapping[str, Any]) -> str:
    """The seam index on the lattice of the method's own puzzle; empty without a puzzle."""
    factor = factor_text(design)
    return f"seam_index_r{factor}" if factor not in ("", "1") else ""


def loss_pairs(points: Sequence[Point]) -> list[Toggled]:
    """Every pair of one data set, budget and number of evaluations in which the seam index was found."""
    pairs = []
    for off in points:
        metric = seam_metric(off.design)
        if not metric or gradient_of(off.design) or not off.subjects(metric):
            continue
        pairs += [
            Toggled(on, off, metric)
            for on in points
            if alike(on, off)
            and on.evaluations == off.evaluations
            and gradient_of(on.design)
            and on.subjects(metric)
            and same_but_for_loss(on.design, off.design)
        ]
    return pairs


def _rest(design: Mapping[str, Any]) -> tuple[str, str, str]:
    loss = design.get("loss") or {}
    training = {name: design.get(name) for name in ("optimisation",)}
    network = {k: v for k, v in (design.get("network") or {}).items() if k != "checkpointing"}
    return (
        design_of(design, without=("loss",)),
        json.dumps([training, network], sort_keys=True),
        json.dumps(loss.get("p")),
    )
