"""One thread a process, children included: tests' tensors are tiny, and ``-n auto``'s workers would fight over cores.

A child with another number of threads would also, rightly, be told that its weights will differ in their last bits.
"""

import gc
import os
import signal

import torch

# A shell that starts pytest in the background, `nohup` and cron have SIGINT ignored. Child processes inherit that, and
# tests that interrupt a command would wait for ever. A handler of our own is not inherited: children get the default.
signal.signal(signal.SIGINT, signal.default_int_handler)

os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)


def pytest_collection_finish() -> None:
    """Take what was imported out of every collection of garbage: half a million objects that stay.

    A prediction looks through all objects that are alive, so this halves the time of its tests.
    """
    gc.collect()
    gc.freeze()
