"""``benchmarks/harness/cpu_time.py``: prediction and measurement of one tiny step with made-up rates."""

import cpu_time
import pytest

from ppdm_bench.configuration import Configuration
from ppdm_bench.predictor.timing import Rates
from ppdm_bench.timing.clock import Protocol


def rates(factor: float) -> Rates:
    return Rates({"fp32": factor * 1e10, "tf32": 0.0, "half": 0.0}, factor * 1e10)


def test_a_step_is_predicted_from_rates_and_measured() -> None:
    once = Protocol(repetitions=1, seconds=0.0)
    tiny = [Configuration("ppdm", (16, 16, 16), factor=2, width=8)]
    ((one, slow, measured),) = cpu_time.check(tiny, rates(1), once)
    ((_, fast, _),) = cpu_time.check(tiny, rates(4), once)
    assert one == tiny[0]
    assert measured > 0
    work, of_fast = (d.parts["arithmetic"] + d.parts["bandwidth"] for d in (slow, fast))
    assert work == pytest.approx(4 * of_fast)
    assert slow.parts["launches"] == fast.parts["launches"]
