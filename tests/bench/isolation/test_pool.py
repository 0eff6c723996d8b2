"""The process pool for predictions."""

import os
import signal

import pytest

from ppdm_bench.isolation.pool import pool, workers_for

pytestmark = pytest.mark.slow


def test_there_are_no_more_processes_than_cores_calls_or_eight(monkeypatch):
    found = {}
    for cores in (1, 3, 100):
        monkeypatch.setattr("ppdm_bench.isolation.pool.available_cores", lambda cores=cores: cores)
        found[cores] = [workers_for(calls) for calls in (1, 2, 50)]
    assert found == {1: [1, 1, 1], 3: [1, 2, 3], 100: [1, 2, 8]}


def test_calls_run_in_another_process_and_in_order():
    with pool(1) as one:
        assert list(one.map(pow, [2, 3], [3, 2])) == [8, 9]
        assert one.submit(os.getpid).result() != os.getpid()


def test_a_killed_process_is_reported_with_its_likely_cause():
    def killed():
        with pool(1) as one:
            one.submit(signal.raise_signal, signal.SIGKILL).result()

    with pytest.raises(RuntimeError, match="was killed, often by the system's out-of-memory killer; close other"):
        killed()
