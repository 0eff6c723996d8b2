"""The memory of this process as the driver counts it: context, libraries and cache, which no PyTorch counter holds.

NVML is asked (the module ``pynvml`` of the distribution nvidia-ml-py). Where it is missing, or hides processes as it
does in many containers, the numbers are absent and a note says why.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ppdm_bench.environment import nvml


class ProcessMemory:
    """What NVML says of this process on the first CUDA device; to be made before the process has a context there.

    Attributes:
        peak, last: bytes, the most and the last seen; 0 where nothing was seen.
        others: most other processes seen on the device at once.
    """

    def __init__(self) -> None:
        self.peak = self.last = self.others = 0
        self._fault = ""
        try:
            self._running = _reader()
            self.others = len(self._running())
        except Exception as error:  # NVML raises its own kinds, and others when its library is missing
            self._fault = str(error) or type(error).__name__

    def sample(self) -> None:
        """Look once."""
        if self._fault:
            return
        try:
            running = self._running()
        except Exception as error:
            self._fault = str(error) or type(error).__name__
            return
        mine = [process for process in running if process.pid == os.getpid()]
        if mine:  # else the process identifiers are those of the host, outside a container, and may include ours
            self.others = max(self.others, len(running) - len(mine))
        self.last = sum(process.usedGpuMemory or 0 for process in mine)
        self.peak = max(self.peak, self.last)

    def notes(self) -> list[str]:
        """What is to be known of the numbers, or of their absence."""
        notes = []
        if self._fault:
            notes.append(f"the memory of the process is unknown: NVML is not available ({self._fault})")
        elif not self.peak:
            notes.append("the memory of the process is unknown: NVML does not show it here")
        return [*notes, *self.company()]

    def company(self) -> list[str]:
        """A note of the others on the device, if there were any."""
        return [f"other processes on the GPU: {self.others}"] if self.others else []


def _reader() -> Any:
    """A function that lists the processes on the device."""
    pynvml = nvml()
    identity = str(torch.cuda.get_device_properties(0).uuid)  # CUDA's numbering of devices differs from NVML's
    handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{identity.removeprefix('GPU-')}")
    return lambda: pynvml.nvmlDeviceGetComputeRunningProcesses(handle)


@contextmanager
def watched_process(interval: float = 0.02) -> Iterator[ProcessMemory]:
    """Sample the memory of this process from another thread, every so many seconds."""
    process, done = ProcessMemory(), threading.Event()

    def watch() -> None:
        while not done.wait(interval):
            process.sample()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield process
    finally:
        done.set()
        thread.join()
