"""Planning questions for one method and phase: whether it fits, and the largest case that fits."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

from ppdm.network.options import CHECKPOINTING
from ppdm_bench.configuration import Configuration
from ppdm_bench.planning.outlook import OutlookCase, Question
from ppdm_bench.planning.search import CasePrediction, SearchResult, largest
from ppdm_bench.predictor.target import Target

FACTORS = (1, 2, 4, 8, 16)


@dataclass(frozen=True)
class Bounds:
    """Bounds of the search.

    Attributes:
        step: edge lengths are multiples of this number of voxels; a method pads the volume if necessary.
        edge: largest edge length in voxels.
        batch: largest batch size.
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
        requested, phase: requested configuration and phase.
        fits: prediction of the requested configuration.
        cube: largest cube that fits, in units of ``Bounds.step``.
        batch: largest batch size that fits; None for phases without gradients, where a larger batch has no benefit.
        factor: smallest puzzle factor that fits, as an index from 1 into the factors in descending order; None for a
            method without a factor.
        options: if the request does not fit, predictions of the same configuration with memory-saving options: for each
            single option up to the mildest value that suffices, or combinations if no single option suffices.
        least_memory_cube: if the request does not fit even with all options, these options and their largest cube.
    """

    requested: Configuration
    phase: str
    fits: CasePrediction
    cube: SearchResult
    batch: SearchResult | None
    factor: SearchResult | None
    options: Mapping[Configuration, CasePrediction] = field(default_factory=dict)
    least_memory_cube: tuple[Configuration, SearchResult] | None = None


def question(requested: Configuration, phase: str, target: Target, bounds: Bounds) -> Question[CapacityAnswer]:
    """Answer all questions for one method in one phase: first whether it fits, then the others in parallel."""
    base = yield OutlookCase(requested, phase)
    parts: dict[str, Question[Any]] = {"cube": _cube(requested, phase, target, bounds, base)}
    # Only training needs a batch: sampling can process volumes one by one, and large batches are slow to predict.
    if phase.endswith("train"):
        parts["batch"] = _batch(requested, phase, target, bounds, base)
    if requested.resolve().has_factor:
        parts["factor"] = _factor(requested, phase, target, bounds, base)
    if not base.fits:
        parts["options"] = _options(requested, phase, target, bounds)
    found = dict(zip(parts, (yield list(parts.values())), strict=True))
    options, least_memory_cube = found.get("options", ({}, None))
    return CapacityAnswer(
        requested, phase, base, found["cube"], found.get("batch"), found.get("factor"), options, least_memory_cube
    )


def with_edge(requested: Configuration, edge: int) -> Configuration:
    """Return the same configuration for a cube with this edge."""
    return replace(requested, shape=(edge, edge, edge))


@dataclass(frozen=True)
class Alternatives:
    """The same configuration with memory-saving options, with the mildest value of each option first.

    Attributes:
        single: one list of configurations per option; they change this option only.
        combined: configurations that change all options.
    """

    single: list[list[Configuration]]
    combined: list[Configuration]

    @classmethod
    def of(cls, requested: Configuration, phase: str, target: Target) -> "Alternatives":
        """Return the alternatives to a request.

        Cards before Ampere have no bf16, so fp16 is used for them. Checkpointing saves memory only in training.
        """
        half = "bf16" if target.has_bf16 else "fp16"
        precision = [replace(requested, precision=half)] if requested.precision == "fp32" else []
        kinds = CHECKPOINTING[CHECKPOINTING.index(requested.checkpointing) + 1 :] if phase.endswith("train") else ()
        recomputed = [replace(requested, checkpointing=kind) for kind in kinds]
        combined = [replace(one, precision=half) for one in recomputed] if precision else []
        return cls([group for group in (precision, recomputed) if group], combined)

    @property
    def least_memory(self) -> Configuration | None:
        """The configuration that needs the least memory; None if there is no alternative."""
        groups = [*self.single, self.combined] if self.combined else self.single
        return groups[-1][-1] if groups else None


def _search(
    limit: int,
    target: Target,
    size: Callable[[int], float],
    case: Callable[[int], OutlookCase],
    known: Mapping[int, CasePrediction],
    hint: tuple[float, CasePrediction],
) -> Question[SearchResult]:
    """Run a search in which each case is a prediction to submit."""
    search = largest(limit, target.capacity, size, known, hint)
    try:
        wanted = next(search)
        while True:
            prediction = yield case(wanted)
            wanted = search.send(prediction)
    except StopIteration as end:
        found: SearchResult = end.value
        return found


def _cube(
    requested: Configuration, phase: str, target: Target, bounds: Bounds, base: CasePrediction
) -> Question[SearchResult]:
    step = bounds.step
    edges = set(requested.shape)
    place, rest = divmod(max(edges), step)
    known = {place: base} if len(edges) == 1 and not rest and place * step <= bounds.edge else {}
    return _search(
        bounds.edge // step,
        target,
        lambda k: (k * step) ** 3,
        lambda k: OutlookCase(with_edge(requested, k * step), phase),
        known,
        (prod(requested.shape), base),
    )


def _batch(
    requested: Configuration, phase: str, target: Target, bounds: Bounds, base: CasePrediction
) -> Question[SearchResult]:
    return _search(
        max(bounds.batch, requested.batch_size),
        target,
        float,
        lambda n: OutlookCase(replace(requested, batch_size=n), phase),
        {requested.batch_size: base},
        (requested.batch_size, base),
    )


def _factor(
    requested: Configuration, phase: str, target: Target, bounds: Bounds, base: CasePrediction
) -> Question[SearchResult]:
    """Search the smallest factor; case 1 is the largest factor, so that memory grows with the case."""
    factors, own = bounds.factors[::-1], requested.resolve().representation.cell

    def case(k: int) -> OutlookCase:
        same = (factors[k - 1],) * 3 == own
        return OutlookCase(requested if same else replace(requested, factor=factors[k - 1]), phase)

    known = {k: base for k, factor in enumerate(factors, start=1) if (factor,) * 3 == own}
    return _search(len(factors), target, lambda k: factors[k - 1] ** -3.0, case, known, (1 / prod(own), base))


def _options(
    requested: Configuration, phase: str, target: Target, bounds: Bounds
) -> Question[tuple[dict[Configuration, CasePrediction], tuple[Configuration, SearchResult] | None]]:
    """Find the options that make the configuration fit.

    The first prediction uses all options together. If they do not suffice, the largest cube with all of them is
    searched. If they suffice, each single option is tried, and combinations only if no single option suffices. For each
    option, values are tried in order, starting with the mildest, until one fits.
    """
    alternatives = Alternatives.of(requested, phase, target)
    if (least_memory := alternatives.least_memory) is None:
        return {}, None
    predictions = {least_memory: (yield OutlookCase(least_memory, phase))}
    if not predictions[least_memory].fits:
        return predictions, (
            least_memory,
            (yield from _cube(least_memory, phase, target, bounds, predictions[least_memory])),
        )
    tried: dict[Configuration, CasePrediction] = {}

    def try_in_order(group: Sequence[Configuration]) -> Question[None]:
        for one in group:
            tried[one] = predictions.get(one) or (yield OutlookCase(one, phase, brief=True))
            if tried[one].fits:
                return

    yield [try_in_order(group) for group in alternatives.single]
    if not any(prediction.fits for prediction in tried.values()):
        yield from try_in_order(alternatives.combined)
    return tried, None
