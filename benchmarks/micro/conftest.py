"""Paired benchmarks: in every round, each reference runs immediately before our code, so that load affects all alike.

The environment is saved with the results.
"""

import time
from collections.abc import Callable, Mapping
from statistics import median, quantiles
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from ppdm_bench.environment import environment

Work = Callable[[], Any]
Beside = Callable[..., Any]


@pytest.fixture
def beside(benchmark: BenchmarkFixture) -> Beside:
    """Time our code and references: ``beside(ours, {"nibabel": theirs}, rounds=10)`` returns the result of ``ours``.

    For each reference, ``extra_info["beside"]`` has the quartiles of its seconds and of the ratios ours / theirs, which
    are computed round by round.
    """

    def run(ours: Work, others: Mapping[str, Work], rounds: int, warmup_rounds: int = 2) -> Any:
        seconds: dict[str, list[float]] = {name: [] for name in others}

        def run_others() -> None:
            for name, work in others.items():
                start = time.perf_counter()
                work()
                seconds[name].append(time.perf_counter() - start)

        result = benchmark.pedantic(ours, setup=run_others, rounds=rounds, warmup_rounds=warmup_rounds)
        if benchmark.stats:  # None when benchmarks are disabled
            own = benchmark.stats.stats.data
            benchmark.extra_info["beside"] = {
                name: {"seconds": quartiles(theirs[-rounds:]), "ratio": quartiles(ratios(own, theirs[-rounds:]))}
                for name, theirs in seconds.items()
            }
        return result

    return run


def ratios(ours: list[float], theirs: list[float]) -> list[float]:
    return [a / b for a, b in zip(ours, theirs, strict=True)]


def quartiles(values: list[float]) -> list[float]:
    first, _, third = quantiles(values, n=4, method="inclusive")
    return [first, median(values), third]


def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    machine_info["environment"] = environment()
