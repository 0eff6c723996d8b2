"""Search for the largest case that fits, with few predictions.

A search is a generator: it yields the number of a case and receives the prediction of this case. The answer is certain:
both the largest case that fits and the next larger case, which does not fit, were predicted.
"""

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass

PATIENCE = 4  # number of cases selected by estimates before the search switches to bisection


@dataclass(frozen=True)
class CasePrediction:
    """Prediction of one case.

    Attributes:
        fits: whether the case fits.
        need: memory in bytes that the card must have (:attr:`ppdm_bench.predictor.peak.Peak.needs`); only a lower bound
            if ``brief``.
        fixed: bytes of ``need`` that do not grow with the size of the case, such as weights.
        brief: whether the prediction stopped early because the case does not fit.
        host: bytes of host memory (:func:`ppdm_bench.memory.host.translation_peak`); None if the case is not
            the sampling of one volume, or if ``brief``.
    """

    fits: bool
    need: int
    fixed: int = 0
    brief: bool = False
    host: int | None = None


@dataclass(frozen=True)
class SearchResult:
    """Result of a search.

    Attributes:
        value: largest case that fits, such that all smaller predicted cases fit too; 0 if case 1 does not fit.
        predictions: prediction of every case that was predicted.
        limit: upper limit of the search.
    """

    value: int
    predictions: Mapping[int, CasePrediction]
    limit: int

    @property
    def exception(self) -> int | None:
        """A case that fits although a smaller one does not, because memory does not always grow with the case."""
        return next(
            (case for case, prediction in sorted(self.predictions.items()) if prediction.fits and case > self.value),
            None,
        )

    @property
    def bounded(self) -> bool:
        """Whether the next larger case was predicted and does not fit; otherwise the search ended at its limit."""
        return self.value < self.limit


def largest(
    limit: int,
    capacity: int | None,
    size: Callable[[int], float],
    known: Mapping[int, CasePrediction],
    hint: tuple[float, CasePrediction] | None = None,
) -> Generator[int, CasePrediction, SearchResult]:
    """Search the cases 1, 2, … limit for the largest one that fits.

    Estimates select the next case: memory that is not fixed is assumed to grow linearly with the size of the case. A
    wrong estimate only costs additional predictions. If a larger case fits although a smaller one does not, the search
    continues below the smaller one.

    Args:
        limit: the largest case.
        capacity: memory of the card in bytes; None disables estimates.
        size: size of a case in any unit; it must grow with the case.
        known: earlier predictions by case.
        hint: size and prediction of one additional case, to improve the estimate.
    """
    predictions = dict(known)
    while True:
        above = min((case for case, prediction in predictions.items() if not prediction.fits), default=limit + 1)
        below = max((case for case, prediction in predictions.items() if prediction.fits and case < above), default=0)
        if above - below == 1:
            return SearchResult(below, predictions, limit)
        sized = [(size(case), prediction) for case, prediction in predictions.items()] + ([hint] if hint else [])
        guess = _estimate(limit, capacity, size, sized) if len(predictions) - len(known) < PATIENCE else None
        case = (below + above) // 2 if guess is None else min(max(guess, below + 1), above - 1)
        predictions[case] = yield case


def _estimate(
    limit: int, capacity: int | None, size: Callable[[int], float], sized: list[tuple[float, CasePrediction]]
) -> int | None:
    """Estimate the largest case that fits, by linear extrapolation of memory over size.

    The line passes through the two predictions that are nearest to the capacity. With only one prediction, it passes
    through its fixed memory at size 0.
    """
    if capacity is None or not sized:
        return None
    (known, prediction), *others = sorted(sized, key=lambda entry: abs(entry[1].need - capacity))
    other, fixed = next(((size, one.need) for size, one in others if size != known), (0.0, prediction.fixed))
    growing = (prediction.need - fixed) / (known - other)
    if growing <= 0:
        return None
    affordable = known + (capacity - prediction.need) / growing
    return max((case for case in range(1, limit + 1) if size(case) <= affordable), default=0)
