"""Fixtures and settings of all tests.

Every process uses one thread, and so do its children: tests use tiny tensors, and the workers of ``-n auto`` share the
cores. A child with another number of threads would also warn, correctly, that its weights differ in the last bits.
"""

import gc
import os
import signal
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
import warm

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# SIGINT is ignored if pytest runs under `nohup`, under cron, or in the background of a shell. Child processes inherit
# this, and tests that interrupt a command would wait forever. They do not inherit a handler, but get the default one.
signal.signal(signal.SIGINT, signal.default_int_handler)

os.environ["OMP_NUM_THREADS"] = "1"

# With the default thresholds, garbage collection takes a tenth of the test time: predictions make many objects and few
# cycles.
gc.set_threshold(20_000, 20, 20)


_WARM = SimpleNamespace(**(vars(subprocess) | {"Popen": warm.Popen}))


@pytest.fixture(autouse=True)
def _warm_children(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start child processes as forks of a process that has imported PyTorch, except in tests marked `cold`."""
    if not request.node.get_closest_marker("cold"):
        monkeypatch.setattr("ppdm_bench.isolation.runner.subprocess", _WARM)
        monkeypatch.setattr("ppdm_bench.predictor.script.prediction.subprocess", _WARM)


@pytest.fixture(autouse=True)
def one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let commands predict in this process: starting a child takes longer than the predictions of most tests."""
    monkeypatch.setattr("ppdm_bench.isolation.pool.available_cores", lambda: 1)


@pytest.fixture
def unrendered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw figures, but write empty files: rendering takes far longer than most commands."""

    def rendered(figure: "Figure", _: str) -> bytes:
        assert figure.axes
        return b""

    monkeypatch.setattr("ppdm_bench.report.figures.style._rendered", rendered)
    monkeypatch.setattr("ppdm_bench.commands.training_run.save_loss_curve", lambda _, path: Path(path).touch())


@pytest.fixture
def quick_anatomies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make synthetic subjects from noise, in this process; `test_phantom` tests the real anatomies."""
    from quick_anatomies import noise

    from ppdm.simulation.phantom import ANATOMIES

    for name in ANATOMIES:
        monkeypatch.setitem(ANATOMIES, name, noise)
    monkeypatch.setattr("ppdm.simulation.generation.available_cores", lambda: 1)


def pytest_configure(config: pytest.Config) -> None:
    """Import PyTorch in processes that run tests, and not in the process that only distributes them to workers."""
    if getattr(config.option, "tx", None) and not hasattr(config, "workerinput"):
        return
    import torch
    import torch._dynamo  # every optimiser imports it at its first step, so import it before the first freeze

    torch.set_num_threads(1)


def pytest_collection_finish() -> None:
    """Freeze the objects that the imports created."""
    _freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> object:
    """After the last test of a module, freeze the objects that it imported and cached."""
    result = yield
    if nextitem is not None and nextitem.path != item.path:
        _freeze()
    return result


def _freeze() -> None:
    """Exclude the half a million permanent objects from every garbage collection.

    A prediction looks through all other live objects; without this, its tests take three times as long.
    """
    gc.collect()
    gc.freeze()
