"""The rules of the claims, and the table of claims."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from math import prod, sqrt
from statistics import fmean, stdev

import numpy as np

from ppdm_bench.records import Record
from ppdm_bench.report.claims.claim import Claim, Effect, Evidence, Finding, require_all
from ppdm_bench.report.claims.effects import (
    MIN_SUBJECTS,
    Comparison,
    Role,
    comparison_effect,
    comparisons_of,
    has_cost_of,
    is_claimed_method,
    is_frequency,
    is_full_3d,
    is_latent,
    is_noise_puzzle,
    network_size,
    scope_of,
)
from ppdm_bench.report.claims.memory_ratio import Ratios, memory_ratios
from ppdm_bench.report.loss_pairs import SEAMLESS_DB, LossPair, loss_pairs
from ppdm_bench.report.metrics import SEAMS
from ppdm_bench.report.scores import Scores, factor_text, resolved_method
from ppdm_bench.report.statistics import LEVEL, RESAMPLES, middle, paired_difference
from ppdm_bench.units import plural, shape_text

HALF = 0.5  # "substantially"
ORDER = 10.0  # "an order of magnitude"
MARGIN = -0.3  # dB, of non-inferiority: "equal or better"
MIN_SEEDS = 3
MEMORY_SCOPE = "sizes, batch size and precision as listed; memory does not depend on images"


def _reversible(evidence: Evidence) -> Finding:
    found = [r for r in evidence.library.records if r.metric == "voxels_changed" and r.status == "ok"]
    records = list({(r.config_id, r.value): r for r in found}.values())  # a case that was checked twice counts once
    if not records:
        return require_all([], ["records of voxels_changed, which `ppdm-bench claims` makes"], "")
    changed = sum(float(r.value or 0) for r in records)
    voxels = sum(r.n or 0 for r in records)
    what = f"voxels that differ after puzzle and unpuzzle, of {voxels:,} in {len(records)} cases"
    sources = evidence.library.references(records)
    effect = Effect(what, "measured", changed, None, None, "voxels", "all bits compared", changed == 0, sources)
    shapes = sorted({shape_text(r.shape) for r in records})
    factors = sorted({r.variant for r in records})
    types = sorted({r.precision for r in records})
    return require_all([effect], [], f"{', '.join(shapes)}; {', '.join(factors)}; {', '.join(types)}")


def _activations(evidence: Evidence) -> Finding:
    effects = []
    for group in memory_ratios(evidence, "activations"):
        worst = 1 / min(group.ratios)
        what = f"activations at the training peak, {group.name} over full 3-D, {group.where}"
        low, high = 1 / max(group.ratios), worst
        n = f"{len(group.ratios)} settings ({group.settings}); range, the largest decides"
        effects.append(Effect(what, group.kind, worst, low, high, "×", n, worst <= HALF, group.sources))
    return require_all(effects, [] if effects else ["activations of both at equal settings (`memory`)"], MEMORY_SCOPE)


def _order_of_magnitude(evidence: Evidence) -> Finding:
    """One factor must pass both memory and quality; the effects of the other factors are shown too."""
    effects: list[Effect] = []
    verdicts: list[Finding] = []
    groups = [g for g in memory_ratios(evidence, "peak_allocated", largest=True) if not g.on_cpu]
    for factor in dict.fromkeys(group.factor for group in groups):
        own = [_memory_effect(group) for group in groups if group.factor == factor]
        comparisons, without = comparisons_of(evidence, is_full_3d, factor=factor)
        own += [comparison_effect(evidence, comparison, MARGIN) for comparison in comparisons]
        missing = [f"quality of r={factor} and of full 3-D on {task}" for task in without]
        verdicts.append(require_all(own, missing, scope_of(_compared_scores(comparisons))))
        effects += own
    passed = [found for verdict in ("supported", "not measured") for found in verdicts if found.verdict == verdict]
    if passed:
        return replace(
            passed[0], effects=tuple(effects), scope="; ".join(filter(None, (passed[0].scope, MEMORY_SCOPE)))
        )
    if verdicts:
        why = "no factor passes both: " + " | ".join(found.why for found in verdicts)
        scopes = "; ".join(dict.fromkeys(found.scope for found in verdicts if found.scope))
        return Finding("not supported", why, tuple(effects), f"{scopes}; {MEMORY_SCOPE}")
    return require_all([], ["peaks of both at equal settings on a GPU or predicted for one (`memory`)"], "")


def _memory_effect(group: Ratios) -> Effect:
    least = min(group.ratios)
    what = f"training memory of full 3-D over {group.name}, {group.where}"
    n = f"{len(group.ratios)} settings ({group.settings}); range, the smallest decides"
    return Effect(what, group.kind, least, least, max(group.ratios), "×", n, least >= ORDER, group.sources)


def _faster(evidence: Evidence) -> Finding:
    timed = [r for r in evidence.library.records if r.metric == "volume_seconds" and r.status == "ok"]
    effects = [_speed_up(evidence, *pair) for pair in _timed_pairs(evidence, [r for r in timed if r.samples])]
    missing = ["seconds per volume of both with raw values (`speed`)"] if not effects else []
    # Predicted times are shown beside the measured ones and decide nothing.
    predicted = [r for r in timed if r.kind == "predicted" and "predicted_time" in r.options]
    effects += [_predicted_speed_up(evidence, *pair) for pair in _timed_pairs(evidence, predicted)]
    return require_all(effects, missing, "the largest volumes that were timed on each device, as listed")


def _timed_pairs(evidence: Evidence, timed: Sequence[Record]) -> list[tuple[Record, Record]]:
    """Return times of the method at its own evaluations and of full 3-D, for the largest volumes timed on a device."""
    own_steps = (evidence.method.get("sampling") or {}).get("steps")
    found: list[tuple[Record, Record]] = []
    for device in dict.fromkeys(map(_device, timed)):
        here = [r for r in timed if _device(r) == device]
        mine = [r for r in here if has_cost_of(resolved_method(r), evidence.method) and r.steps == own_steps]
        mine = [r for r in mine if factor_text(resolved_method(r)) != "1"]
        pairs = [(own, other) for own in mine if (other := _full_3d_counterpart(own, here))]
        largest = max((prod(own.shape) for own, _ in pairs), default=0)
        found += [pair for pair in pairs if prod(pair[0].shape) == largest]
    return found


def _device(record: Record) -> tuple[str, str]:
    return record.device, record.gpu or str(record.env.get("cpu") or "")


def _full_3d_counterpart(own: Record, timed: Sequence[Record]) -> Record | None:
    """Return full 3-D with the same network and conditions, at as many evaluations or else the next larger number."""
    same = ("shape", "batch_size", "precision", "compile", "channels_last")
    size = network_size(resolved_method(own))
    others = [r for r in timed if is_full_3d(resolved_method(r)) and network_size(resolved_method(r)) == size]
    others = [r for r in others if all(getattr(r, n) == getattr(own, n) for n in same)]
    others = [r for r in others if (r.steps or 0) >= (own.steps or 0)]
    return min(others, key=lambda r: r.steps or 0, default=None)


def _speed_up(evidence: Evidence, own: Record, other: Record) -> Effect:
    fast, slow = np.asarray(own.samples), np.asarray(other.samples)
    drawn = np.random.default_rng(0)
    medians = [np.median(x[drawn.integers(x.size, size=(RESAMPLES, x.size))], axis=1) for x in (slow, fast)]
    low, high = middle(medians[0] / medians[1])
    value = float(np.median(slow) / np.median(fast))
    enough = min(fast.size, slow.size) >= 3
    n = f"{fast.size} and {slow.size} repetitions; bootstrap 95 % of medians; {_inverse_ratio(value, low, high)}"
    sources = evidence.library.references((own, other))
    return Effect(_speed_label(own, other), "measured", value, low, high, "×", n, low > 1 if enough else None, sources)


def _predicted_speed_up(evidence: Evidence, own: Record, other: Record) -> Effect:
    """Return the ratio of two predicted times, with an interval from published ratios; it decides nothing."""
    value, factor = float(other.value or 0) / float(own.value or 1), float(own.options["predicted_time"]["ratio"])
    ends = value / factor, value * factor
    n = f"eight of ten published ratios lie within {factor:g} times of theirs; {_inverse_ratio(value, *ends)}"
    sources = evidence.library.references((own, other))
    return Effect(_speed_label(own, other), "predicted", value, *ends, "×", n, None, sources)


def _speed_label(own: Record, other: Record) -> str:
    where = own.gpu or own.device
    both = f"full 3-D ({plural(other.steps or 0, 'evaluation')}) over {own.label} ({own.steps})"
    return f"time of {both}, {shape_text(own.shape)}, {own.precision}, {where}"


def _inverse_ratio(value: float, low: float, high: float) -> str:
    """Return the inverse ratio in words: the time of the method divided by that of full 3-D."""
    return f"the other way {1 / value:.3g} ({1 / high:.3g} to {1 / low:.3g})"


def _better_than(role: Role, name: str, evidence: Evidence) -> Finding:
    comparisons, without = comparisons_of(evidence, role)
    effects = [comparison_effect(evidence, comparison, 0.0) for comparison in comparisons]
    missing = [f"quality of the method and of {name} on {task}" for task in without]
    return require_all(effects, missing, scope_of(_compared_scores(comparisons)))


def _grid(evidence: Evidence) -> Finding:
    pairs = _claimed_loss_pairs(evidence)
    seams = [_loss_effect(evidence, pair, pair.metric) for pair in pairs]
    by_borders = [pair for pair in pairs if pair.measure == SEAMS[0]]
    # If there are no seams, the loss may still improve PSNR.
    gains = [_loss_effect(evidence, pair, "psnr") for pair in by_borders if pair.values("psnr")[0]]
    scope = scope_of([point for pair in pairs for point in (pair.on, pair.off)])
    if any(effect.passed is not None for effect in seams):
        unknown = [task for task in evidence.tasks if task not in {pair.on.task for pair in pairs}]
        missing = [f"the method with the loss and without it on {task}" for task in unknown]
        return require_all([*seams, *gains], missing, scope)
    if {pair.on.task for pair in by_borders} >= set(evidence.tasks):
        most = max(fmean(pair.values(pair.metric)[1]) for pair in by_borders)
        why = f"there are no seams to suppress: without the loss, the border ratio is at most {most:.2f} dB"
        shown = [
            replace(effect, passed=False) if pair.measure == SEAMS[0] else effect
            for effect, pair in zip(seams, pairs, strict=True)
        ]
        return Finding("not supported", why, (*shown, *gains), scope)
    missing = [f"a grid to suppress on {pair.on.task} at r{pair.block_grid}" for pair in pairs]
    missing = missing or ["the method with the loss and without it, scored by the border ratio (`ablate`)"]
    return require_all([*seams, *gains], missing, scope)


def _claimed_loss_pairs(evidence: Evidence) -> list[LossPair]:
    """Return the pairs of the claimed method with enough subjects, if possible at its own number of evaluations."""
    pairs = [pair for pair in loss_pairs(evidence.library.points) if is_claimed_method(pair.on.design, evidence.method)]
    pairs = [pair for pair in pairs if pair.on.task in evidence.tasks or not pair.on.is_synthetic]
    steps = (evidence.method.get("sampling") or {}).get("steps")
    own = [pair for pair in pairs if pair.on.evaluations == steps] or pairs
    return [pair for pair in own if len(pair.values(pair.metric)[0]) >= MIN_SUBJECTS]


def _loss_effect(evidence: Evidence, pair: LossPair, metric: str) -> Effect:
    """Return the difference due to the loss; it decides only if the metric shows seams without the loss."""
    on, off = pair.values(metric)
    found, before = paired_difference(on, off), fmean(off)
    is_of_seams = metric == pair.metric
    name = f"{pair.measure.replace('_', ' ')} r{pair.block_grid}" if is_of_seams else f"PSNR at r={pair.block_grid}"
    what = f"{name} on {pair.on.task}, with the loss − without (without: {before:.2f} dB)"
    decides = is_of_seams and before > SEAMLESS_DB
    n = f"{found.n} subjects, {plural(len(pair.on.seeds), 'seed')}; bootstrap 95 %"
    passed = found.high is not None and found.high < 0 if decides else None
    sources = evidence.library.references((*pair.on.of_metric(metric), *pair.off.of_metric(metric)))
    return Effect(what, "measured", found.mean, found.low, found.high, "dB", n, passed, sources)


def _bridge(evidence: Evidence) -> Finding:
    comparisons, without = comparisons_of(evidence, is_noise_puzzle, same_factor=True, equal_steps=True)
    effects = [comparison_effect(evidence, comparison, 0.0) for comparison in comparisons]
    missing = [f"the method and the same from noise on {task}" for task in without]
    for comparison in comparisons:
        stability = _stability(evidence, comparison)
        effects += [stability] if stability else []
        missing += [] if stability else [f"{MIN_SEEDS} seeds of both on {comparison.own.task}"]
    return require_all(effects, missing, scope_of(_compared_scores(comparisons)))


def _stability(evidence: Evidence, comparison: Comparison) -> Effect | None:
    """Return the standard deviation over seeds with the bridge, divided by that from noise, with its F interval.

    It is None with too few seeds, or if all seeds from noise have equal values.
    """
    ours, theirs = (list(point.means_by_seed("psnr").values()) for point in (comparison.own, comparison.other))
    if min(len(ours), len(theirs)) < MIN_SEEDS or not stdev(theirs):
        return None
    from scipy.stats import f

    value = stdev(ours) / stdev(theirs)
    ends = f.ppf([(1 + LEVEL) / 2, (1 - LEVEL) / 2], len(ours) - 1, len(theirs) - 1)
    low, high = (value / sqrt(end) for end in np.asarray(ends).tolist())
    what = f"sd of PSNR over seeds on {comparison.own.task}, with the bridge over from noise"
    n = f"{len(ours)} and {len(theirs)} seeds; 95 % by F"
    sources = evidence.library.references((*comparison.own.of_metric("psnr"), *comparison.other.of_metric("psnr")))
    return Effect(what, "measured", value, low, high, "×", n, high < 1, sources)


def _compared_scores(comparisons: Sequence[Comparison]) -> list[Scores]:
    return [scores for comparison in comparisons for scores in (comparison.own, comparison.other)]


_RIVAL = (
    "The method is taken as registered, at its own network evaluations, or else at the next larger number; its "
    "rival is the best by mean PSNR over all of its designs and evaluations that were trained on the same data "
    "with as many channels, and with as many steps or for as long, which favours the rival. For as long means: "
    "with the steps that fit into the same time at the measured step time of each. Why time counts too: at equal "
    "steps, a method whose step takes several times as long trains several times as long. Of several comparisons "
    "on a task, that with the most subjects decides, then the most seeds, then the smallest factor, at which the "
    "puzzle costs the least quality (this order of factors was set after one row of an ablation had been seen), "
    "then the most training steps. Interval: bootstrap of the paired difference, 95 %."
)

CLAIMS = (
    Claim(
        "reversible",
        "The pixel puzzle is reversible.",
        "No voxel differs in any bit after puzzle and unpuzzle, over shapes, factors and types.",
        _reversible,
    ),
    Claim(
        "activations",
        "Activation memory is substantially reduced.",
        f"Activations at the training peak are at most {HALF:g} of full 3-D's at every size and setting that was "
        "recorded for both, with the same checkpointing on both sides, for every factor.",
        _activations,
    ),
    Claim(
        "order-of-magnitude",
        "Up to an order of magnitude less training memory than full 3-D, at equal or better quality, on three tasks.",
        f"One factor fulfils both. Memory: full 3-D's training peak is at least {ORDER:g} times the method's at the "
        "largest size recorded, on a GPU or predicted for one, for every checkpointing that both sides have. Quality: "
        f"on each task the PSNR difference from full 3-D lies above {MARGIN:g} dB with its whole interval. " + _RIVAL,
        _order_of_magnitude,
    ),
    Claim(
        "faster",
        "Inference is significantly faster than full 3-D.",
        "On each device, for the largest volumes timed: full 3-D's median time per volume over the method's at its own "
        "network evaluations is above 1 with its whole interval (bootstrap of the repetitions, 95 %). Full 3-D is "
        "taken at as many evaluations, or else at the next larger number, which favours it. Times predicted for cards "
        "are shown beside the measured ones and decide nothing.",
        _faster,
    ),
    Claim(
        "compression",
        "Better than latent compression.",
        f"On each task the PSNR difference lies above 0 dB with its whole interval. {_RIVAL}",
        partial(_better_than, is_latent, "latent compression"),
    ),
    Claim(
        "frequency",
        "Better than frequency decomposition.",
        f"On each task the PSNR difference lies above 0 dB with its whole interval. {_RIVAL}",
        partial(_better_than, is_frequency, "frequency decomposition"),
    ),
    Claim(
        "grid",
        "The puzzle-gradient loss suppresses grid artefacts.",
        "On every task and block grid on which the method without the loss has seams (a mean border ratio above "
        f"{SEAMLESS_DB:g} dB), the difference with the loss − without lies below 0 dB with its whole "
        "interval (bootstrap over subjects, 95 %). If there are no seams on any of the tasks, there is nothing to "
        "suppress, and the claim is not supported. Why the border ratio: the rule was first based on the seam index, "
        "which looks for a line in the spectrum of the error; it was about 0 dB for every run, and it cannot see jumps "
        "at block borders whose sign varies from border to border, as those of a puzzle may. Records from before this "
        "change have only the seam index: there, a grid is a mean above "
        f"{SEAMLESS_DB:g} dB, and without one nothing is decided.",
        _grid,
    ),
    Claim(
        "bridge",
        "The bridge improves efficiency and stability.",
        "Efficiency: on each task, at the method's own network evaluations, its PSNR less that of the best diffusion "
        "from noise in the same puzzle space lies above 0 dB with its whole interval. Stability: the standard "
        f"deviation over at least {MIN_SEEDS} seeds, over that from noise, lies below 1 with its whole interval (F, "
        "95 %).",
        _bridge,
    ),
)
