"""GPU memory of this process as the driver reports it, including the CUDA context and libraries outside PyTorch.

The values come from NVML (module ``pynvml`` of the package nvidia-ml-py). If NVML is missing, or does not list
processes, as in many containers, there are no values, and a note states the reason.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ppdm_bench.environment import nvml


class ProcessMemory:
    """Memory of this process on the first CUDA device; create this object before the process has a CUDA context.

    Attributes:
        peak, last: largest and latest sample in bytes; 0 without a sample.
        others: largest number of other processes on the device at one time.
    """

    def __init__(self) -> None:
        self.peak = self.last = self.others = 0
        self._fault = ""
        try:
            self._running = _reader()
            self.others = len(self._running())
        except Exception as error:  # NVML raises its own exception types, and others if it is missing
            self._fault = str(error) or type(error).__name__

    def sample(self) -> None:
        """Take one sample."""
        if self._fault:
            return
        try:
            running = self._running()
        except Exception as error:
            self._fault = str(error) or type(error).__name__
            return
        mine = [process for process in running if process.pid == os.getpid()]
        if mine:  # otherwise NVML may report process IDs of a container's host, and one may be this process
            self.others = max(self.others, len(running) - len(mine))
        self.last = sum(process.usedGpuMemory or 0 for process in mine)
        self.peak = max(self.peak, self.last)

    def notes(self) -> list[str]:
        """Return notes on the reliability of the values, or on the reason why there are none."""
        notes = []
        if self._fault:
            notes.append(f"the memory of the process is unknown: NVML is not available ({self._fault})")
        elif not self.peak:
            notes.append("the memory of the process is unknown: NVML does not show it here")
        return [*notes, *self.other_processes()]

    def other_processes(self) -> list[str]:
        """Return a note on other processes on the device, if there were any."""
        return [f"other processes on the GPU: {self.others}"] if self.others else []


def _reader() -> Any:
    """Return a function that lists the processes on the device."""
    pynvml = nvml()
    identity = str(torch.cuda.get_device_properties(0).uuid)  # CUDA and NVML number devices differently
    handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{identity.removeprefix('GPU-')}")
    return lambda: pynvml.nvmlDeviceGetComputeRunningProcesses(handle)


@contextmanager
def sampled_process(interval: float = 0.02) -> Iterator[ProcessMemory]:
    """Sample the memory of this process in another thread every ``interval`` seconds."""
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
