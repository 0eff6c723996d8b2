"""A pool of processes for predictions: each takes one core and ends with this process."""

import gc
import importlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import torch

from ppdm.simulation.generation import available_cores

T = TypeVar("T")

_MOST = 8  # each process holds PyTorch in memory


class Pool:
    """Runs functions in other processes. Functions, arguments and results must be picklable."""

    def __init__(self, executor: ProcessPoolExecutor) -> None:
        self._executor = executor

    def submit(self, function: Callable[..., T], *arguments: object) -> "Future[T]":
        """Call the function in one of the processes."""
        return self._executor.submit(_call, function, *arguments)

    def map(self, function: Callable[..., T], *arguments: Iterable[Any]) -> Iterator[T]:
        """Call the function for all arguments at once, as :func:`map` does one after the other."""
        return self._executor.map(partial(_call, function), *arguments)


def workers_for(calls: int = _MOST) -> int:
    """Return the number of processes for a number of calls: at most one for each available core."""
    return max(1, min(_MOST, calls, available_cores()))


@contextmanager
def pool(workers: int) -> Iterator[Pool]:
    """Run a pool during the block; calls that have not begun at its end are cancelled.

    Raises:
        RuntimeError: a process was killed.
    """
    executor = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=_begin)
    try:
        yield Pool(executor)
    except BrokenProcessPool:
        raise RuntimeError(
            "a process that predicts was killed, often by the system's out-of-memory killer; close other programs, or "
            "allow fewer cores, such as `taskset --cpu-list 0 ppdm-bench …`, and run the command again"
        ) from None
    finally:
        executor.shutdown(cancel_futures=True)


def _begin() -> None:
    """Initialise a process: use one core, leave Ctrl-C to the parent process, and exit when the parent exits."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    importlib.import_module("torch._dynamo")  # fake tensors would load it later
    # PyTorch's own objects, about half a million, are never freed; freeze them, so that the garbage collector skips
    # them. Collect garbage once after each call instead of a hundred times during it.
    gc.collect()
    gc.freeze()
    gc.disable()

    def follow_the_parent() -> None:
        if parent := multiprocessing.parent_process():
            parent.join()
            os._exit(1)

    threading.Thread(target=follow_the_parent, daemon=True).start()


def _call(function: Callable[..., T], *arguments: object) -> T:
    try:
        return function(*arguments)
    finally:
        gc.collect()
