"""Comparisons of the claimed method with other methods: their roles, and paired differences of quality."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ppdm_bench.grouping import grouped
from ppdm_bench.report.claims.claim import Effect, Evidence
from ppdm_bench.report.scores import (
    Scores,
    by_origin,
    design_of,
    factor_text,
    group_title,
    is_bridge,
    is_comparable,
    of_common_seeds,
)
from ppdm_bench.report.statistics import Difference, common_difference
from ppdm_bench.units import plural

Role = Callable[[Mapping[str, Any]], bool]
MIN_SUBJECTS = 2  # for an interval


def is_full_3d(design: Mapping[str, Any]) -> bool:
    """Whether a method is diffusion from noise on the whole volume, without another representation."""
    return (
        _axis(design, "representation") == "identity" and _axis(design, "window") == "whole" and not is_bridge(design)
    )


def is_latent(design: Mapping[str, Any]) -> bool:
    """Whether a method is diffusion in a learned latent space."""
    return _axis(design, "representation") == "autoencoder"


def is_frequency(design: Mapping[str, Any]) -> bool:
    """Whether a method is diffusion from noise on wavelet coefficients."""
    return _axis(design, "representation") == "haar" and not is_bridge(design)


def is_noise_puzzle(design: Mapping[str, Any]) -> bool:
    """Whether a method is diffusion from noise in the puzzle space."""
    return _axis(design, "representation") == "puzzle" and _axis(design, "window") == "whole" and not is_bridge(design)


def is_claimed_method(design: Mapping[str, Any], method: Mapping[str, Any]) -> bool:
    """Whether a method is the claimed method as registered, with any puzzle factor."""
    if _axis(design, "representation") != _axis(method, "representation") or not factor_text(design):
        return False
    rest = ("representation",)
    return bool(design) and design_of(design, without=rest) == design_of(method, without=rest)


def network_size(design: Mapping[str, Any]) -> tuple[object, ...]:
    """Return the width of a network, and its channels by level relative to the width; both decide memory and time."""
    network = design.get("network") or {}
    return network.get("width"), tuple(network.get("multipliers") or ())


def has_cost_of(design: Mapping[str, Any], method: Mapping[str, Any]) -> bool:
    """Whether a method has the memory and time of the claimed method; puzzle factor and loss weight may differ."""
    same = all(_axis(design, axis) == _axis(method, axis) for axis in ("representation", "kernel"))
    with_loss = bool((design.get("loss") or {}).get("gradient")) == bool((method.get("loss") or {}).get("gradient"))
    return same and with_loss and design.get("window") == method.get("window") and bool(factor_text(design))


def _axis(design: Mapping[str, Any], name: str) -> str:
    value = design.get(name)
    return str(value.get("type", "")) if isinstance(value, Mapping) else ""


@dataclass(frozen=True)
class Comparison:
    """The claimed method and the best method of a role on one task, for the same subjects and budget."""

    own: Scores
    other: Scores
    difference: Difference


def best_comparison(
    evidence: Evidence, task: str, role: Role, factor: str = "", same_factor: bool = False, equal_steps: bool = False
) -> Comparison | None:
    """Return the comparison on a task; None if records are missing.

    The claimed method is as registered, with the levels of its network if those were trained. It is taken at its own
    number of network evaluations, else at the next larger one that was scored, else at the largest. The other method is
    the best of its role by mean PSNR, over all designs and numbers of evaluations. Of several data sets or budgets, the
    one with the most subjects is used, then with the most seeds, the smallest factor, and the most training steps.

    Args:
        evidence, task, role: the records and the claimed method, one task, and the role of the other method.
        factor: puzzle factor of the claimed method; empty for the smallest that was scored.
        same_factor: whether the other method must have the same factor.
        equal_steps: whether the other method must have the same number of evaluations.
    """
    points = [p for p in evidence.library.points if p.task == task and p.subject_means("psnr")]
    mine = [p for p in points if is_claimed_method(p.design, evidence.method) and factor_text(p.design) != "1"]
    mine = [p for p in mine if not factor or factor_text(p.design) == factor]
    levels = network_size(evidence.method)[1]
    mine = [p for p in mine if network_size(p.design)[1] == levels] or mine
    comparisons = []
    for own in _at_own_evaluations(mine, evidence.method):
        others = [p for p in points if role(p.design) and is_comparable(p, own)]
        others = [p for p in others if not same_factor or factor_text(p.design) == factor_text(own.design)]
        others = [p for p in others if not equal_steps or p.evaluations == own.evaluations]
        if others and (comparison := _comparison(own, max(others, key=lambda p: p.mean("psnr") or float("-inf")))):
            comparisons.append(comparison)
    return max(comparisons, key=_evidence_rank, default=None)


def _at_own_evaluations(points: Sequence[Scores], method: Mapping[str, Any]) -> list[Scores]:
    """Return for each design, data set and budget the scores at the method's own evaluations, or the nearest."""
    wanted = (method.get("sampling") or {}).get("steps") or 0

    def training(point: Scores) -> str:
        return json.dumps([point.data, point.train_steps, point.width, point.label, point.design.get("optimisation")])

    def distance(point: Scores) -> tuple[bool, int]:
        beyond = (point.evaluations or 0) - wanted
        return beyond < 0, abs(beyond)

    chosen = [min(same, key=distance) for same in grouped(points, training).values()]
    tuned = method.get("optimisation")
    return [point for point in chosen if point.design.get("optimisation") == tuned] or chosen


def _comparison(own: Scores, other: Scores) -> Comparison | None:
    own, other = of_common_seeds(own, other)
    found = common_difference(own.subject_means("psnr"), other.subject_means("psnr"))
    return Comparison(own, other, found) if found and found.n >= MIN_SUBJECTS else None


def _evidence_rank(comparison: Comparison) -> tuple[int, int, int, int]:
    # The factor comes before the steps, because a larger factor runs more steps in the same time.
    factor = max(int(k) for k in factor_text(comparison.own.design).split("x"))
    return comparison.difference.n, len(comparison.own.seeds), -factor, comparison.own.train_steps or 0


def comparison_effect(evidence: Evidence, comparison: Comparison, margin: float) -> Effect:
    """Return the PSNR difference, claimed method − other; it passes if its whole interval is above the margin."""
    own, other, found = comparison.own, comparison.other, comparison.difference
    at = f"{own.label} ({plural(own.evaluations or 0, 'evaluation')}) − {other.label} ({other.evaluations})"
    return Effect(
        f"PSNR on {own.task}, {at}",
        "measured",
        found.mean,
        found.low,
        found.high,
        "dB",
        f"{found.n} subjects, {plural(len(own.seeds), 'seed')}; bootstrap 95 %",
        found.low is not None and found.low > margin,
        evidence.library.references((*own.of_metric("psnr"), *other.of_metric("psnr"))),
    )


def comparisons_of(evidence: Evidence, role: Role, **options: Any) -> tuple[list[Comparison], list[str]]:
    """Return the comparisons on all claimed tasks and on own data, and the claimed tasks without a comparison.

    The options are those of :func:`best_comparison`.
    """
    own = dict.fromkeys(point.task for point in evidence.library.points if not point.is_synthetic)
    tasks = dict.fromkeys((*evidence.tasks, *own))
    found = {task: best_comparison(evidence, task, role, **options) for task in tasks}
    without = [task for task in evidence.tasks if not found[task]]
    return [comparison for comparison in found.values() if comparison], without


def _budget(point: Scores) -> str:
    time = "" if point.seconds is None else f" ({point.seconds:.0f} s at its step time)"
    return f"{point.train_steps} training steps{time}"


def scope_of(points: Sequence[Scores]) -> str:
    """Return the data and the budgets of scores in words."""
    texts = [(p, f"{group_title([p])}, {_budget(p)}, width {p.width}") for p in points]
    names = {"phantoms": "phantoms, not patients"}
    return "; ".join(f"{names.get(name, name)}: {'; '.join(sorted(said))}" for name, said in by_origin(texts).items())
