"""Child process that measures one phase of one configuration: ``python -m ppdm_bench.memory.worker``."""

from typing import Any

import torch

from ppdm_bench.configuration import Configuration
from ppdm_bench.environment import environment
from ppdm_bench.isolation.child import failure, serve
from ppdm_bench.memory.nvml import sampled_process
from ppdm_bench.memory.workload import Workload, uncompiled, workload
from ppdm_bench.predictor.peak import measure_peak
from ppdm_bench.predictor.target import GIB


def main() -> None:
    """Answer one request."""
    serve(_answer)


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    answer: dict[str, Any] = {"env": environment(), "metrics": {}}
    limit: int | None = request.get("limit")
    try:
        configuration = Configuration.from_dict(request["configuration"])
        size = (configuration.shape, configuration.batch_size)
        method = configuration.resolve()
        work = workload(method, request["phase"], *size, request["device"])
        if request["device"] == "cuda":
            metrics, notes = _measure_cuda(work, limit)
        else:
            metrics, notes = _measure_cpu(work, limit), list(filter(None, [uncompiled(method)]))
    except Exception as error:  # the code of a method can raise any exception
        failed = failure(error)
        if limit is not None and failed["status"] == "oom":
            failed["reason"] += f"; the budget leaves {limit / GIB:.4g} GiB for tensors"
        return answer | failed
    return answer | {"status": "ok", "reason": "; ".join(notes), "metrics": metrics}


def _measure_cpu(work: Workload, limit: int | None) -> dict[str, int]:
    peak = measure_peak(work.build, work.step, work.iterations, "cpu", limit)
    return {"peak_allocated": peak.peak_allocated, **peak.breakdown}


def _measure_cuda(work: Workload, limit: int | None) -> tuple[dict[str, int], list[str]]:
    """Return the counters of PyTorch and NVML, and notes on their reliability."""
    with sampled_process() as process:
        # Run at least two iterations, also for sampling, so that the last one is after a warm-up.
        peak = measure_peak(work.build, work.step, max(work.iterations, 2), "cuda", limit)
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
