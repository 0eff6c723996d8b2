"""What is asked of one method and phase: does it fit, and what is the largest that does."""

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
    """Where is looked.

    Attributes:
        step: cubes of multiples of so many voxels are looked at; a method pads them to what it needs.
        edge: the largest cube.
        batch: the largest batch.
        factors: puzzle factors, growing.
    """

    step: int = 16
    edge: int = 1024
    batch: int = 256
    factors: tuple[int, ...] = FACTORS


@dataclass(frozen=True)
class Answer:
    """What fits of one method in one phase.

    Attributes:
        asked, phase: what was asked about.
        fits: whether it fits as asked.
        cube: the largest that fits, counted in steps.
        batch: the largest that fits; None for phases without gradients, in which it buys nothing.
        factor: the smallest that fits, as a place in the factors from the largest on; None for a method without one.
        switches: for what does not fit as asked, the same with other switches, and whether it fits.
        switched_cube: the largest cube with every switch on, where not even these make it fit as asked.
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
    """The phases that a method has; those of a learned representation are told by the method itself."""
    return getattr(method, "phases", ("train", "sample"))


def question(asked: Configuration, phase: str, target: Target, bounds: Bounds) -> Question[Answer]:
    """Ask everything about one method in one phase: first whether it fits as asked, then the rest side by side."""
    base = yield asked, phase
    parts: dict[str, Question[Any]] = {"cube": _cube(asked, phase, target, bounds, base)}
    # Sampling takes volumes one by one as well, and what it needs for many takes many times as long to predict.
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
    """The same for cubes of this edge."""
    return replace(asked, shape=(edge, edge, edge))


def alternatives(asked: Configuration, phase: str) -> list[Configuration]:
    """The same with the switches that save more: few first, all last; recomputation needs gradients."""
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
    """A search whose cases are predictions."""
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
        lambda k: (with_edge(asked, k * step), phase),
        known,
        (prod(asked.shape), base),
    )


def _batch(asked: Configuration, phase: str, target: Target, bounds: Bounds, base: Look) -> Question[Found]:
    return _search(
        max(bounds.batch, asked.batch_size),
        target,
        float,
        lambda n: (replace(asked, batch_size=n), phase),
        {asked.batch_size: base},
        (asked.batch_size, base),
    )


def _factor(asked: Configuration, phase: str, target: Target, bounds: Bounds, base: Look) -> Question[Found]:
    """Cases count from the largest factor on, so that a larger case is a smaller factor and needs more."""
    factors, own = bounds.factors[::-1], asked.resolve().representation.cell

    def case(k: int) -> Case:
        same = (factors[k - 1],) * 3 == own
        return asked if same else replace(asked, factor=factors[k - 1]), phase

    known = {k: base for k, factor in enumerate(factors, start=1) if (factor,) * 3 == own}
    return _search(len(factors), target, lambda k: factors[k - 1] ** -3.0, case, known, (1 / prod(own), base))


def _switches(
    asked: Configuration, phase: str, target: Target, bounds: Bounds
) -> Question[tuple[dict[Configuration, Look], tuple[Configuration, Found] | None]]:
    """All switches first: where they do not suffice together, none is tried alone, but the largest cube is searched
    for. Else the first that suffices."""
    others = alternatives(asked, phase)
    if not others:
        return {}, None
    strongest = others[-1]
    looks = {strongest: (yield strongest, phase)}
    if not looks[strongest].fits:
        cube = yield from _cube(strongest, phase, target, bounds, looks[strongest])
        return looks, (strongest, cube)
    for one in others[:-1]:
        looks[one] = yield one, phase, True
        if looks[one].fits:
            break
    return {one: looks[one] for one in others if one in looks}, None
