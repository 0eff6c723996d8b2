"""Planning questions for one method and phase: whether it fits, and the largest case that fits."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

from ppdm import Method
from ppdm.network.options import CHECKPOINTING
from ppdm_bench.configuration import Configuration
from ppdm_bench.planning.outlook import OutlookCase, Question
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
class CapacityAnswer:
    """Answers for one method in one phase.

    Attributes:
        asked, phase: requested configuration and phase.
        fits: whether the requested configuration fits.
        cube: the largest cube that fits, in steps of ``Bounds.step``.
        batch: the largest batch that fits; None for phases without gradients, where a larger batch has no benefit.
        factor: the smallest factor that fits, as an index into the factors in descending order, from 1; None for a
            method without a factor.
        options: if the request does not fit, the same configuration with memory-saving options, and whether each fits:
            for each single option the mildest value that suffices, or combinations if no single option does.
        leanest_cube: the largest cube with all options together, if the request does not fit even with them.
    """

    asked: Configuration
    phase: str
    fits: Look
    cube: Found
    batch: Found | None
    factor: Found | None
    options: Mapping[Configuration, Look] = field(default_factory=dict)
    leanest_cube: tuple[Configuration, Found] | None = None


def phases_of(method: Method) -> tuple[str, ...]:
    """Return the phases of a method: its attribute ``phases`` if it exists, else training and sampling."""
    return getattr(method, "phases", ("train", "sample"))


def question(asked: Configuration, phase: str, target: Target, bounds: Bounds) -> Question[CapacityAnswer]:
    """Run all questions for one method in one phase: first whether it fits, then the others concurrently."""
    base = yield OutlookCase(asked, phase)
    parts: dict[str, Question[Any]] = {"cube": _cube(asked, phase, target, bounds, base)}
    # Only training needs the batch size: sampling can process volumes one by one, and predicting batches is slow.
    if phase.endswith("train"):
        parts["batch"] = _batch(asked, phase, target, bounds, base)
    if asked.resolve().has_factor:
        parts["factor"] = _factor(asked, phase, target, bounds, base)
    if not base.fits:
        parts["options"] = _options(asked, phase, target, bounds)
    found = dict(zip(parts, (yield list(parts.values())), strict=True))
    options, leanest_cube = found.get("options", ({}, None))
    return CapacityAnswer(
        asked, phase, base, found["cube"], found.get("batch"), found.get("factor"), options, leanest_cube
    )


def with_edge(asked: Configuration, edge: int) -> Configuration:
    """Return the same configuration for a cube with this edge."""
    return replace(asked, shape=(edge, edge, edge))


@dataclass(frozen=True)
class Alternatives:
    """The same configuration with memory-saving options, for each option the mildest value first.

    Attributes:
        single: one group of configurations for each option; each group changes that option only.
        combined: configurations that change all options.
    """

    single: list[list[Configuration]]
    combined: list[Configuration]

    @classmethod
    def of(cls, asked: Configuration, phase: str, target: Target) -> "Alternatives":
        """Return the alternatives to a request.

        A card before Ampere has no bf16, so fp16 is offered for it. Recomputation saves memory of gradients only.
        """
        half = "bf16" if target.has_bf16 else "fp16"
        precision = [replace(asked, precision=half)] if asked.precision == "fp32" else []
        kinds = CHECKPOINTING[CHECKPOINTING.index(asked.checkpointing) + 1 :] if phase.endswith("train") else ()
        recomputed = [replace(asked, checkpointing=kind) for kind in kinds]
        combined = [replace(one, precision=half) for one in recomputed] if precision else []
        return cls([group for group in (precision, recomputed) if group], combined)

    @property
    def leanest(self) -> Configuration | None:
        """The configuration that needs least; None if no option is left."""
        groups = [*self.single, self.combined] if self.combined else self.single
        return groups[-1][-1] if groups else None


def _search(
    limit: int,
    target: Target,
    size: Callable[[int], float],
    case: Callable[[int], OutlookCase],
    known: Mapping[int, Look],
    hint: tuple[float, Look],
) -> Question[Found]:
    """Run a search whose cases are predictions."""
    search = largest(limit, target.capacity, size, known, hint)
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
        lambda k: OutlookCase(with_edge(asked, k * step), phase),
        known,
        (prod(asked.shape), base),
    )


def _batch(asked: Configuration, phase: str, target: Target, bounds: Bounds, base: Look) -> Question[Found]:
    return _search(
        max(bounds.batch, asked.batch_size),
        target,
        float,
        lambda n: OutlookCase(replace(asked, batch_size=n), phase),
        {asked.batch_size: base},
        (asked.batch_size, base),
    )


def _factor(asked: Configuration, phase: str, target: Target, bounds: Bounds, base: Look) -> Question[Found]:
    """Search the smallest factor; cases start at the largest factor, so that a larger case needs more memory."""
    factors, own = bounds.factors[::-1], asked.resolve().representation.cell

    def case(k: int) -> OutlookCase:
        same = (factors[k - 1],) * 3 == own
        return OutlookCase(asked if same else replace(asked, factor=factors[k - 1]), phase)

    known = {k: base for k, factor in enumerate(factors, start=1) if (factor,) * 3 == own}
    return _search(len(factors), target, lambda k: factors[k - 1] ** -3.0, case, known, (1 / prod(own), base))


def _options(
    asked: Configuration, phase: str, target: Target, bounds: Bounds
) -> Question[tuple[dict[Configuration, Look], tuple[Configuration, Found] | None]]:
    """Find the options that make the configuration fit.

    All options together are tried first. If they do not suffice, the largest cube with all of them is searched. If they
    suffice, each single option is tried, and combinations only if no single option suffices. Within an option, values
    are tried from the mildest on until one fits.
    """
    others = Alternatives.of(asked, phase, target)
    if (leanest := others.leanest) is None:
        return {}, None
    looks = {leanest: (yield OutlookCase(leanest, phase))}
    if not looks[leanest].fits:
        return looks, (leanest, (yield from _cube(leanest, phase, target, bounds, looks[leanest])))
    tried: dict[Configuration, Look] = {}

    def mildest(group: Sequence[Configuration]) -> Question[None]:
        for one in group:
            tried[one] = looks.get(one) or (yield OutlookCase(one, phase, brief=True))
            if tried[one].fits:
                return

    yield [mildest(group) for group in others.single]
    if not any(look.fits for look in tried.values()):
        yield from mildest(others.combined)
    return tried, None
