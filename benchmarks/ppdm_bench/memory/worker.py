"""The child process that measures one phase of one configuration: ``python -m ppdm_bench.memory.worker``.

It reads a request as JSON from its standard input and writes its answer as JSON to the path that the request names, so
that nothing that a method prints can be mistaken for it.
"""

import json
import os
import re
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch

from ppdm_bench.configuration import Configuration
from ppdm_bench.environment import environment
from ppdm_bench.memory.nvml import watched_process
from ppdm_bench.memory.predict import measure_peak
from ppdm_bench.memory.workload import Workload, fault, workload
from ppdm_bench.report.files import replace_file

# What PyTorch's CPU allocator, cuDNN and cuBLAS say; none of them raises an error of its own kind for it.
_OUT_OF_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "_ALLOC_FAILED")


def main() -> None:
    """Answer one request."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    request = json.load(sys.stdin)
    path = Path(request["answer"])
    answer = _answer(request)
    replace_file(path, json.dumps(answer).encode())


def _end_with_parent() -> None:
    """A parent that is killed cannot end this process, which would go on and hold the device."""
    parent = os.getppid()
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    answer: dict[str, Any] = {"env": environment(), "metrics": {}}
    try:
        configuration = Configuration.from_dict(request["configuration"])
        size = (configuration.shape, configuration.batch_size)
        work = workload(configuration.resolve(), request["phase"], *size, request["device"])
        answer["evaluations"] = work.evaluations
        metrics, notes = _measure_cuda(work) if request["device"] == "cuda" else _measure_cpu(work)
    except Exception as error:  # a method's code may fail in any way
        if _ran_out_of_memory(error):
            return answer | {"status": "oom", "reason": _shortage(error)}
        return answer | {"status": "error", "reason": fault(error)}
    return answer | {"status": "ok", "reason": "; ".join(notes), "metrics": metrics}


def _ran_out_of_memory(error: Exception) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY)


def _shortage(error: Exception) -> str:
    """What was wanted, without the place in PyTorch's sources that comes first and the advice that comes last."""
    text = re.sub(r"^\[enforce fail at [^\]]*\][^.]*\. ", "", " ".join(str(error).split()))
    return ". ".join(text.split(". ")[:2]).rstrip(".") or "the system's memory does not suffice"


def _measure_cpu(work: Workload) -> tuple[dict[str, int], list[str]]:
    peak = measure_peak(work.build, work.step, work.iterations, "cpu")
    return {"peak_allocated": peak.peak_allocated, **peak.breakdown}, []


def _measure_cuda(work: Workload) -> tuple[dict[str, int], list[str]]:
    """The counters of PyTorch and of NVML, and what makes them suspect."""
    with watched_process() as process:
        # At least two iterations, so that the last one is warm for sampling too.
        peak = measure_peak(work.build, work.step, max(work.iterations, 2), "cuda")
        reserved_now = torch.cuda.memory_reserved()
        process.sample()
    assert peak.peak_reserved is not None
    metrics = {
        "peak_allocated": peak.peak_allocated,
        "peak_allocated_cold": peak.iterations[0],
        "peak_allocated_warm": peak.iterations[-1],
        "peak_reserved": peak.peak_reserved,
    }
    if process.peak:
        metrics |= {"peak_process": process.peak, "context": max(process.last - reserved_now, 0)}
    return metrics, [*_suspicions(torch.cuda.memory_stats()), *process.notes()]


def _suspicions(statistics: dict[str, Any]) -> list[str]:
    retries, failures = statistics.get("num_alloc_retries", 0), statistics.get("num_ooms", 0)
    if not (retries or failures):
        return []
    return [f"the allocator retried {retries} times and failed {failures} times; the peak is suspect"]


if __name__ == "__main__":
    main()
