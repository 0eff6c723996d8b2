"""One thread per process, children included: tests use tiny tensors, and the workers of ``-n auto`` share the cores.

A child with another number of threads would also, rightly, be warned that its weights will differ in the last bits.
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

# A shell that starts pytest in the background, `nohup` and cron have SIGINT ignored. Child processes inherit that, and
# tests that interrupt a command would wait forever. A handler of our own is not inherited: children get the default.
signal.signal(signal.SIGINT, signal.default_int_handler)

os.environ["OMP_NUM_THREADS"] = "1"

# Collecting cycles takes a tenth of the time of the tests otherwise: predictions make many objects and few cycles.
gc.set_threshold(20_000, 20, 20)


_WARM = SimpleNamespace(**(vars(subprocess) | {"Popen": warm.Popen}))


@pytest.fixture(autouse=True)
def _warm_children(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The product starts its children from a process that has imported PyTorch, except in tests marked `cold`."""
    if not request.node.get_closest_marker("cold"):
        monkeypatch.setattr("ppdm_bench.isolation.runner.subprocess", _WARM)
        monkeypatch.setattr("ppdm_bench.predictor.script.prediction.subprocess", _WARM)


@pytest.fixture(autouse=True)
def one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands predict in this process: the start of another one takes longer than what most tests predict."""
    monkeypatch.setattr("ppdm_bench.isolation.pool.available_cores", lambda: 1)


@pytest.fixture
def unrendered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are drawn, but not rendered: that takes far longer than most commands. Their files are empty."""

    def rendered(figure: "Figure", _: str) -> bytes:
        assert figure.axes
        return b""

    monkeypatch.setattr("ppdm_bench.report.figures.style._rendered", rendered)
    monkeypatch.setattr("ppdm_bench.commands.training_run.save_loss_curve", lambda _, path: Path(path).touch())


@pytest.fixture
def quick_anatomies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Synthetic subjects whose anatomy is noise, made in this process: `test_phantom` shows what a phantom is."""
    from quick_anatomies import noise

    from ppdm.simulation.phantom import ANATOMIES

    for name in ANATOMIES:
        monkeypatch.setitem(ANATOMIES, name, noise)
    monkeypatch.setattr("ppdm.simulation.generation.available_cores", lambda: 1)


def pytest_configure(config: pytest.Config) -> None:
    """Import PyTorch where tests run, and not in the process that only hands them out to the workers."""
    if getattr(config.option, "tx", None) and not hasattr(config, "workerinput"):
        return
    import torch
    import torch._dynamo  # by any optimiser at its first step: import it before the first freeze

    torch.set_num_threads(1)


def pytest_collection_finish() -> None:
    """Freeze what the imports left."""
    _freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> object:
    """Freeze what a module imported and cached, when its fixtures are gone."""
    result = yield
    if nextitem is not None and nextitem.path != item.path:
        _freeze()
    return result


def _freeze() -> None:
    """Take the objects that stay, half a million, out of every garbage collection.

    A prediction looks through all other objects that are alive: without this, its tests take three times as long.
    """
    gc.collect()
    gc.freeze()
