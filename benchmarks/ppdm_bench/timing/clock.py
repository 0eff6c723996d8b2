"""How time is taken: a clock, a warm-up, and repetitions until there are enough of them and they took long enough.

Times are seconds.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

Work = Callable[[], object]
Clock = Callable[[Work], float]

FIRST = "first_call_seconds"  # the metric of what is not warm yet
LEAST = 3  # repetitions that a median takes, however long they are


@dataclass(frozen=True)
class Protocol:
    """When a measurement is long enough: both must be reached.

    Attributes:
        repetitions: at least so many.
        seconds: at least so many in all.
    """

    repetitions: int = 10
    seconds: float = 10.0


FULL, QUICK = Protocol(), Protocol(repetitions=LEAST, seconds=1.0)
_WARM_UP = Protocol(repetitions=2, seconds=1.0)


@dataclass
class Stopwatch:
    """Takes times, and keeps account of a budget.

    Attributes:
        clock: runs some work and says how long it took.
        protocol: when a measurement is long enough.
        budget: seconds that everything together may take.
        spent: seconds that it took.
    """

    clock: Clock
    protocol: Protocol
    budget: float
    spent: float = 0.0

    def time(self, work: Work) -> float:
        """Run some work once."""
        seconds = self.clock(work)
        self.spent += seconds
        return seconds

    def repeat(self, work: Work) -> list[float]:
        """The time of each repetition; once the budget does not hold another, no fewer than ``LEAST`` of them."""
        return self._until(self.protocol, work)

    def warm_up(self, work: Work) -> list[float]:
        """Run some work until caches, clocks and optimizer state are as they stay; the times of all runs, two or more.

        The first is that in which a network is compiled and kernels are chosen.
        """
        return self._until(_WARM_UP, work)

    def affords(self, seconds: float) -> bool:
        """Whether the budget holds so many seconds more."""
        return self.spent + seconds <= self.budget

    def _until(self, enough: Protocol, work: Work) -> list[float]:
        least = min(LEAST, enough.repetitions)
        samples: list[float] = []
        while len(samples) < enough.repetitions or sum(samples) < enough.seconds:
            if len(samples) >= least and not self.affords(samples[-1]):
                break
            samples.append(self.time(work))
        return samples


def clock_of(device: str) -> Clock:
    """The clock of a device: a monotonic one on the CPU, events in the GPU's own stream on CUDA."""
    return _between_events if device == "cuda" else _monotonic


def _monotonic(work: Work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _between_events(work: Work) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    work()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000
