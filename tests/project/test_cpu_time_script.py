"""``benchmarks/harness/cpu_time.py``: costs from invented times, and a tiny step predicted with invented rates."""

import cpu_time
import pytest

from ppdm_bench.configuration import Configuration
from ppdm_bench.predictor.timing import IDEAL, Rates
from ppdm_bench.timing.clock import Protocol


def rates(factor: float) -> Rates:
    return Rates({"fp32": factor * 1e10, "tf32": 0.0, "half": 0.0}, factor * 1e10)


@pytest.mark.slow
def test_a_step_is_predicted_from_rates_and_measured() -> None:
    once = Protocol(repetitions=1, seconds=0.0)
    tiny = [Configuration("ppdm", (16, 16, 16), factor=2, width=8)]
    ((one, slow, measured),) = cpu_time.check(tiny, rates(1), IDEAL, once)
    ((_, fast, _),) = cpu_time.check(tiny, rates(4), IDEAL, once)
    assert one == tiny[0]
    assert measured > 0
    work, of_fast = (d.parts["arithmetic"] + d.parts["bandwidth"] for d in (slow, fast))
    assert work == pytest.approx(4 * of_fast)
    assert slow.parts["launches"] == fast.parts["launches"]


def test_the_costs_of_the_cpu_are_fitted_to_measured_operators(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The invented times are those of convolutions that reach half of the peak if wide, and less if narrow."""
    monkeypatch.setattr(cpu_time, "_cost_of_convolution", lambda width, _: 2 + 16 / width)
    monkeypatch.setattr(cpu_time, "least", lambda _: 3 * 2 * 4 * cpu_time.NEW / 1e10)
    found = cpu_time.constants_of_this_cpu(rates(1))
    assert (found.full["fp32"], found.narrow["fp32"], found.memory) == pytest.approx((2, 8, 3))


def test_the_overhead_is_the_mean_time_of_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """The 24 layers have 24 forward kernels, as many backward kernels, and few others."""
    monkeypatch.setattr(cpu_time, "least", lambda _: 1.0)
    assert 1 / 80 < cpu_time._overhead() <= 1 / 48


def test_the_cost_of_a_convolution_is_its_time_divided_by_the_ideal_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_time, "least", lambda _: 1.0)
    operations = 3 * 2 * 27 * 16 * 16 * cpu_time.BATCH * cpu_time.EDGE**3
    assert cpu_time._cost_of_convolution(16, rates(1)) == pytest.approx(1e10 / operations)
