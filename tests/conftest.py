"""One thread per process, children included: tests use tiny tensors, and the workers of ``-n auto`` share the cores.

A child with another number of threads would also, rightly, be warned that its weights will differ in the last bits.
"""

import gc
import os
import signal

import pytest
import torch
import torch._dynamo  # by any optimiser at its first step: import it before the first freeze

# A shell that starts pytest in the background, `nohup` and cron have SIGINT ignored. Child processes inherit that, and
# tests that interrupt a command would wait forever. A handler of our own is not inherited: children get the default.
signal.signal(signal.SIGINT, signal.default_int_handler)

os.environ["OMP_NUM_THREADS"] = "1"
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
