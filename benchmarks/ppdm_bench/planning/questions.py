"""Planning questions for one method and phase: whether it fits, and the largest case that fits."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

from ppdm import Method
from ppdm.network.options import CHECKPOINTING
from ppdm_bench.configuration import Configuration
from ppdm_bench.planning.outlook import Case, Question
from ppdm_bench.planning.search import Found, Look, largest
from ppdm_bench.predictor.target import Target

FACTORS = (1, 2, 4, 8, 16)


@dataclass(frozen=True)
class Bounds:
    """Bounds of the search.

    Attributes:
        step: the edges of the cubes are multiples of this number of voxels; a method pads the volume if necessary.
        edge: edge of the largest cube in voxels.
        batch: the largest batch size.
        factors: puzzle factors in ascending order.
    """

    step: int = 16
    edge: int = 1024
    batch: int = 256
    factors: tuple[int, ...] = FACTORS


@dataclass(frozen=True)
class Answer:
    """Answers for one method in one phase.

    Attributes:
        asked, phase: requested configuration and phase.
        fits: whether the requested configuration fits.
        cube: the largest cube that fits, in steps of ``Bounds.step``.
        batch: the largest batch that fits; None for phases without gradients, where a larger batch has no benefit.
        factor: the smallest factor that fits, as an index into the factors in descending order, from 1; None for a
            method without a factor.
        switches: if the request does not fit, the same configuration with other switches, and whether each one fits.
        switched_cube: the largest cube with all switches on, if the request does not fit even with them.
    """

    asked: Configuration
    phase: str
    fits: Look
    cube: Found
    batch: Found | None
    factor: Found | None
    switches: Mapping[Configuration, Look] = field(default_factory=dict)
    switched_cube: tuple[Configuration, Found] | None = None


def phases_of(method: Method) -> tuple[str, ...]:
    """Return the phases of a method: its attribute ``phases`` if it exists, else training and sampling."""
    return getattr(method, "phases", ("train", "sample"))


def question(asked: Configuration, phase: str, target: Target, bounds: Bounds) -> Question[Answer]:
    """Run all questions for one method in one phase: first whether it fits, then the others concurrently."""
    base = yield Case(asked, phase)
    parts: dict[str, Question[Any]] = {"cube": _cube(asked, phase, target, bounds, base)}
    # Only training needs the batch size: sampling can process volumes one by one, and predicting batches is slow.
    if phase.endswith("train"):
        parts["batch"] = _batch(asked, phase, target, bounds, base)
    if asked.resolve().has_factor:
        parts["factor"] = _factor(asked, phase, target, bounds, base)
    if not base.fits:
        parts["switches"] = _switches(asked, phase, target, bounds)
    found = dict(zip(parts, (yield list(parts.values())), strict=True))
    switches, switched = found.get("switches", ({}, None))
    return Answer(asked, phase, base, found["cube"], found.get("batch"), found.get("factor"), switches, switched)


def with_edge(asked: Configuration, edge: int) -> Configuration:
    """Return the same configuration for a cube with this edge."""
    return replace(asked, shape=(edge, edge, edge))


def alternatives(asked: Configuration, phase: str) -> list[Configuration]:
    """Return the same configuration with memory-saving switches, fewest first; recomputation needs gradients."""
    precisions = [asked.precision] + ["bf16"] * (asked.precision == "fp32")
    recomputed = [asked.checkpointing]
    if phase.endswith("train"):
        recomputed = list(CHECKPOINTING[CHECKPOINTING.index(asked.checkpointing) :])
    made = [replace(asked, precision=p, checkpointing=c) for c in recomputed for p in precisions][1:]
    return sorted(made, key=lambda c: (c.precision != asked.precision) + (c.checkpointing != asked.checkpointing))


def _search(
    limit: int,
    target: Target,
    size: Callable[[int], float],
    case: Callable[[int], Case],
    known: Mapping[int, Look],
    hint: tuple[float, Look],
) -> Question[Found]:
    """Run a search whose cases are predictions."""
    search = largest(limit, target.room, size, known, hint)
    try:
        wanted = next(search)
        while True:
            look = yield case(wanted)
            wanted = search.send(look)
    except StopIteration as end:
        found: Found = end.value
        return found


def _cube(asked: Configuration, phase: str, target: Target, bounds: Bounds, base: Look) -> Question[Found]:
    step = bounds.step
    edges = set(asked.shape)
    place, rest = divmod(max(edges), step)
    known = {place: base} if len(edges) == 1 and not rest and place * step <= bounds.edge else {}
    return _search(
        bounds.edge // step,
        target,
        lambda k: (k * step) ** 3,
        lambda k: Case(with_edge(asked, k * step), phase),
        known,
        (prod(asked.shape), base),
    )


def _batch(asked: Configuration, phase: str, target: Target, bounds: Bounds, base: Look) -> Question[Found]:
    return _search(
        max(bounds.batch, asked.batch_size),
        target,
        float,
        lambda n: Case(replace(asked, batch_size=n), phase),
        {asked.batch_size: base},
        (asked.batch_size, base),
    )


def _factor(asked: Configuration, phase: str, target: Target, bounds: Bounds, base: Look) -> Question[Found]:
    """Search the smallest factor; cases start at the largest factor, so that a larger case needs more memory."""
    factors, own = bounds.factors[::-1], asked.resolve().representation.cell

    def case(k: int) -> Case:
        same = (factors[k - 1],) * 3 == own
        return Case(asked if same else replace(asked, factor=factors[k - 1]), phase)

    known = {k: base for k, factor in enumerate(factors, start=1) if (factor,) * 3 == own}
    return _search(len(factors), target, lambda k: factors[k - 1] ** -3.0, case, known, (1 / prod(own), base))


def _switches(
    asked: Configuration, phase: str, target: Target, bounds: Bounds
) -> Question[tuple[dict[Configuration, Look], tuple[Configuration, Found] | None]]:
    """Find switches that make the configuration fit.

    All switches together are tried first. If they do not suffice, the largest cube with all switches is searched. If
    they suffice, the other combinations are tried in order until one fits.
    """
    others = alternatives(asked, phase)
    if not others:
        return {}, None
    strongest = others[-1]
    looks = {strongest: (yield Case(strongest, phase))}
    if not looks[strongest].fits:
        cube = yield from _cube(strongest, phase, target, bounds, looks[strongest])
        return looks, (strongest, cube)
    for one in others[:-1]:
        looks[one] = yield Case(one, phase, brief=True)
        if looks[one].fits:
            break
    return {one: looks[one] for one in others if one in looks}, None
