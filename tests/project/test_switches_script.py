"""``benchmarks/harness/switches.py``: its table from invented times, and the effect of every switch."""

import csv
import io

import pytest
import switches
from switches import COMPARED, ROUNDS, SWITCHES, TIMED, Found, as_csv, gradient, switched, table

from ppdm_bench.predictor.target import GIB

pytestmark = pytest.mark.slow

FOUND = [
    Found("", {"r=4, train": 4 * GIB}, [2.0] * ROUNDS, 2.5, 0.0),
    Found("network.precision=bf16+network.compile=true", {"r=4, train": GIB}, [1.0, *[3.0] * (ROUNDS - 1)], 40.0, 0.01),
]


def test_relative_time_is_the_median_of_the_ratios_within_each_round() -> None:
    lines = table(FOUND).splitlines()
    assert lines[2] == "| none | 4.00 | 1.00× | 2.5 | same bits |"
    assert lines[3] == "| `network.precision=bf16` + `network.compile=true` | 1.00 | 1.50× | 40.0 | 1.0e-02 |"


def test_the_csv_has_every_measured_time() -> None:
    rows = list(csv.DictReader(io.StringIO(as_csv(FOUND))))
    assert [float(rows[1][f"step_seconds_{k}"]) for k in (1, 2, ROUNDS)] == [1.0, 3.0, 3.0]
    assert rows[1]["r=4, train, B"] == str(GIB)


@pytest.mark.parametrize("switch", SWITCHES[1:])
def test_each_switch_changes_the_method(switch: str) -> None:
    assert switched(TIMED, switch) != TIMED


def test_recomputation_keeps_the_gradient_and_half_precision_changes_it() -> None:
    plain = gradient(COMPARED)
    assert plain.norm() > 0
    assert (gradient(switched(COMPARED, "network.checkpointing=conv")) == plain).all()
    assert not (gradient(switched(COMPARED, "network.precision=bf16")) == plain).all()


def test_memory_is_that_of_the_switched_method(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(switches, "EDGE", 32)
    monkeypatch.setattr(switches, "MEMORY", {"small": TIMED})
    plain, lean = (dict(switches.peaks(switch)) for switch in ("", "network.precision=bf16"))
    assert set(plain) == {"small, train", "small, sample"}
    assert lean["small, sample"] < plain["small, sample"]
