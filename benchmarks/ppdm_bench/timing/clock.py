"""Time measurement: a clock, a warm-up, and repetitions up to a minimum number and a minimum total time.

All times are in seconds.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

Work = Callable[[], object]
Clock = Callable[[Work], float]

FIRST = "first_call_seconds"  # metric: time of the first call, which is part of the warm-up
LEAST = 3  # minimum number of repetitions for a median, also if the budget is used up


@dataclass(frozen=True)
class Protocol:
    """Length of a measurement, which ends when both minima are reached.

    Attributes:
        repetitions: minimum number of repetitions.
        seconds: minimum total time.
    """

    repetitions: int = 10
    seconds: float = 10.0


FULL, QUICK = Protocol(), Protocol(repetitions=LEAST, seconds=1.0)
_WARM_UP = Protocol(repetitions=2, seconds=1.0)


@dataclass
class Stopwatch:
    """Measure durations within a time budget.

    Attributes:
        clock: runs a function and returns its duration in seconds.
        protocol: required length of a measurement.
        budget: seconds for all measurements.
        spent: seconds used so far.
    """

    clock: Clock
    protocol: Protocol
    budget: float
    spent: float = 0.0

    def time(self, work: Work) -> float:
        """Run ``work`` once and return its duration."""
        seconds = self.clock(work)
        self.spent += seconds
        return seconds

    def repeat(self, work: Work) -> list[float]:
        """Return the duration of each repetition; if the budget is used up, stop after at least ``LEAST``."""
        return self._until(self.protocol, work)

    def warm_up(self, work: Work) -> list[float]:
        """Run ``work`` until caches, clocks and optimizer state are stable; return the durations of at least two runs.

        The first run includes compilation of the network and selection of kernels.
        """
        return self._until(_WARM_UP, work)

    def affords(self, seconds: float) -> bool:
        """Whether the remaining budget covers this many seconds."""
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
    """Return the clock of a device: a monotonic clock on the CPU, CUDA events on a GPU."""
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
