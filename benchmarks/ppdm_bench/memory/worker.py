"""The child process that measures one phase of one configuration: ``python -m ppdm_bench.memory.worker``.

It reads a request as JSON from its standard input and writes its answer as JSON to the path that the request names, so
that nothing that a method prints can be mistaken for it.
"""

import json
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ppdm_bench.configuration import Configuration
from ppdm_bench.environment import environment
from ppdm_bench.memory.predict import Peak, measure_peak
from ppdm_bench.memory.workload import Workload, workload


def main() -> None:
    """Answer one request."""
    request = json.load(sys.stdin)
    path = Path(request["answer"])
    answer = _answer(request)
    beside = path.with_suffix(".part")
    beside.write_text(json.dumps(answer))
    os.replace(beside, path)


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    configuration = Configuration.from_dict(request["configuration"])
    method, device = configuration.resolve(), request["device"]
    work = workload(method, request["phase"], configuration.shape, configuration.batch_size, device)
    answer: dict[str, Any] = {"env": environment(), "evaluations": work.evaluations}
    try:
        metrics, note = _measure(work, device)
    except (torch.OutOfMemoryError, MemoryError) as error:
        return answer | {"status": "oom", "reason": str(error).split(". ")[0], "metrics": {}}
    return answer | {"status": "ok", "reason": note, "metrics": metrics}


def _measure(work: Workload, device: str) -> tuple[dict[str, int], str]:
    if device == "cpu":
        peak = measure_peak(work.build, work.step, work.iterations, "cpu")
        return {"peak_allocated": peak.peak_allocated, **peak.breakdown}, ""
    with _watched_process() as process:
        # One iteration more than a prediction runs, so that the last one is warm for sampling too.
        peak = measure_peak(work.build, work.step, max(work.iterations, 2), "cuda")
        reserved_now = torch.cuda.memory_reserved()
        process.sample()
    metrics = {
        "peak_allocated": peak.peak_allocated,
        "peak_allocated_cold": peak.iterations[0],
        "peak_allocated_warm": peak.iterations[-1],
        "peak_reserved": _reserved(peak),
    }
    if process.peak:
        metrics |= {"peak_process": process.peak, "context": max(process.last - reserved_now, 0)}
    statistics = torch.cuda.memory_stats()
    retries, ooms = statistics.get("num_alloc_retries", 0), statistics.get("num_ooms", 0)
    notes = [f"{retries} allocations were retried and {ooms} failed; the peak is suspect"] if retries or ooms else []
    if process.others:
        notes.append(f"{process.others} other processes held memory on the GPU")
    return metrics, "; ".join(notes)


def _reserved(peak: Peak) -> int:
    assert peak.peak_reserved is not None
    return peak.peak_reserved


class _Process:
    """What NVML says of this process's memory; nothing where there is no NVML or the platform hides it."""

    def __init__(self) -> None:
        self.peak = self.last = self.others = 0
        try:
            import pynvml

            pynvml.nvmlInit()
            identity = str(torch.cuda.get_device_properties(0).uuid)
            self._nvml, self._handle = pynvml, pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{identity}")
        except Exception:
            self._nvml = None

    def sample(self) -> None:
        """Look once."""
        if self._nvml is None:
            return
        try:
            running = self._nvml.nvmlDeviceGetComputeRunningProcesses(self._handle)
        except self._nvml.NVMLError:
            return
        mine = [p.usedGpuMemory or 0 for p in running if p.pid == os.getpid()]
        self.others = max(self.others, len(running) - len(mine))
        self.last = sum(mine)
        self.peak = max(self.peak, self.last)


@contextmanager
def _watched_process(interval: float = 0.02) -> Iterator[_Process]:
    process, done = _Process(), threading.Event()

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


if __name__ == "__main__":
    main()
