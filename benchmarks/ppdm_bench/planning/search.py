"""Search for the largest case that fits, with few predictions.

A search is a generator: it yields the next case and receives a look, the result of its prediction. Every answer is
verified: both the largest case that fits and the next larger case were predicted.
"""

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass

PATIENCE = 4  # number of looks chosen by estimates before the search switches to bisection


@dataclass(frozen=True)
class Look:
    """Prediction of one case.

    Attributes:
        fits: whether the case fits.
        need: bytes that a card must have for the case (:attr:`ppdm_bench.predictor.peak.Peak.needs`); a lower bound if
            the look is brief.
        fixed: part of it in bytes that does not grow with the case, such as weights.
        brief: whether the prediction stopped as soon as it was clear that the case does not fit.
        host: bytes of host memory (:func:`ppdm_bench.memory.host.translation_peak`); None if the case is not
            the sampling of one volume, or the look is brief.
    """

    fits: bool
    need: int
    fixed: int = 0
    brief: bool = False
    host: int | None = None


@dataclass(frozen=True)
class Found:
    """Result of a search.

    Attributes:
        value: the largest case that fits; all smaller cases that were predicted fit too. 0 if not even case 1 fits.
        looks: every predicted case.
        limit: the largest case of the search.
    """

    value: int
    looks: Mapping[int, Look]
    limit: int

    @property
    def exception(self) -> int | None:
        """A case that fits although a smaller one does not, because memory does not grow with the case."""
        return next((case for case, look in sorted(self.looks.items()) if look.fits and case > self.value), None)

    @property
    def bounded(self) -> bool:
        """Whether the next larger case was predicted and does not fit; otherwise the search ended at its limit."""
        return self.value < self.limit


def largest(
    limit: int,
    capacity: int | None,
    size: Callable[[int], float],
    known: Mapping[int, Look],
    hint: tuple[float, Look] | None = None,
) -> Generator[int, Look, Found]:
    """Search the cases 1, 2, … limit for the largest one that fits.

    The next case is estimated: memory that is not fixed grows with the size of the case. A wrong estimate costs
    additional looks but does not change the answer. If a larger case fits although a smaller one does not, the search
    continues below the smaller one.

    Args:
        limit: the largest case.
        capacity: memory of the card in bytes; None disables estimates.
        size: size of a case in any unit; it must grow with the case.
        known: earlier looks by case.
        hint: size and look of one more case, which helps the estimate.
    """
    looks = dict(known)
    while True:
        above = min((case for case, look in looks.items() if not look.fits), default=limit + 1)
        below = max((case for case, look in looks.items() if look.fits and case < above), default=0)
        if above - below == 1:
            return Found(below, looks, limit)
        sized = [(size(case), look) for case, look in looks.items()] + ([hint] if hint else [])
        guess = _estimate(limit, capacity, size, sized) if len(looks) - len(known) < PATIENCE else None
        case = (below + above) // 2 if guess is None else min(max(guess, below + 1), above - 1)
        looks[case] = yield case


def _estimate(
    limit: int, capacity: int | None, size: Callable[[int], float], sized: list[tuple[float, Look]]
) -> int | None:
    """Estimate the largest case that fits, by linear extrapolation of memory over size.

    The line runs through the two looks that are nearest to the capacity. With only one look, it runs through its fixed
    memory at size 0.
    """
    if capacity is None or not sized:
        return None
    (known, look), *others = sorted(sized, key=lambda entry: abs(entry[1].need - capacity))
    other, fixed = next(((size, one.need) for size, one in others if size != known), (0.0, look.fixed))
    growing = (look.need - fixed) / (known - other)
    if growing <= 0:
        return None
    affordable = known + (capacity - look.need) / growing
    return max((case for case in range(1, limit + 1) if size(case) <= affordable), default=0)
