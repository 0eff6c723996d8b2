"""The largest case that fits, found by looking at few cases.

A search is a generator: it yields the case that it wants to look at, and is sent what was seen. Nothing that was not
looked at is ever an answer: the last case that fits and the next larger one are both looks.
"""

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass

PATIENCE = 4  # looks that may follow an estimate before the rest is halved


@dataclass(frozen=True)
class Look:
    """What was seen of one case.

    Attributes:
        fits: the verdict.
        need: bytes in which it would just fit; where the look was brief and it does not fit, less than that.
        fixed: bytes of them that do not grow with the case, such as weights.
        brief: whether the prediction ended when it was clear that the case does not fit.
    """

    fits: bool
    need: int
    fixed: int = 0
    brief: bool = False


@dataclass(frozen=True)
class Found:
    """Where a search ended.

    Attributes:
        value: the largest case that fits, all smaller ones that were looked at fitting too; 0 if not even the first.
        looks: every case that was looked at.
        limit: the largest case there was to look at.
    """

    value: int
    looks: Mapping[int, Look]
    limit: int

    @property
    def exception(self) -> int | None:
        """A case that fits although a smaller one does not: memory did not grow with the case."""
        return next((case for case, look in sorted(self.looks.items()) if look.fits and case > self.value), None)

    @property
    def bounded(self) -> bool:
        """Whether the next larger case was looked at and does not fit; else the search ended at its limit."""
        return self.value < self.limit


def largest(
    limit: int,
    room: int | None,
    size: Callable[[int], float],
    known: Mapping[int, Look],
    hint: tuple[float, Look] | None = None,
) -> Generator[int, Look, Found]:
    """Search cases 1, 2, … limit for the largest that fits.

    Where to look is estimated: what is not fixed grows with the case's size. Estimates that are wrong cost looks, never
    the answer. Should a larger case fit where a smaller one does not, the search goes on below the smaller one.

    Args:
        limit: the largest case there is.
        room: bytes that there are; None makes no estimates.
        size: how large a case is, in any unit; it grows with the case.
        known: what was looked at before.
        hint: another look, and the size of what was seen.
    """
    looks = dict(known)
    while True:
        above = min((case for case, look in looks.items() if not look.fits), default=limit + 1)
        below = max((case for case, look in looks.items() if look.fits and case < above), default=0)
        if above - below == 1:
            return Found(below, looks, limit)
        sized = [(size(case), look) for case, look in looks.items()] + ([hint] if hint else [])
        guess = _estimate(limit, room, size, sized) if len(looks) - len(known) < PATIENCE else None
        case = (below + above) // 2 if guess is None else min(max(guess, below + 1), above - 1)
        looks[case] = yield case


def _estimate(
    limit: int, room: int | None, size: Callable[[int], float], sized: list[tuple[float, Look]]
) -> int | None:
    """The largest case that should fit: on the line through the two looks that came nearest to the room, or, of one
    look, that through what is fixed."""
    if room is None or not sized:
        return None
    (known, look), *others = sorted(sized, key=lambda entry: abs(entry[1].need - room))
    other, fixed = next(((size, one.need) for size, one in others if size != known), (0.0, look.fixed))
    growing = (look.need - fixed) / (known - other)
    if growing <= 0:
        return None
    affordable = known + (room - look.need) / growing
    return max((case for case in range(1, limit + 1) if size(case) <= affordable), default=0)
