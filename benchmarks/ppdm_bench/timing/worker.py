"""Child process that times one phase of one configuration: ``python -m ppdm_bench.timing.worker``.

It times the real code of training and sampling. Volumes and weights are created before the timing starts.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch

from ppdm.method import Method, sample
from ppdm.training.trainer import Training
from ppdm_bench.configuration import Configuration
from ppdm_bench.environment import environment
from ppdm_bench.isolation.child import failure, serve
from ppdm_bench.memory.nvml import sampled_process
from ppdm_bench.memory.workload import fault
from ppdm_bench.timing.arithmetic import ceiling, step_flops, volume_flops
from ppdm_bench.timing.clock import FIRST, LEAST, Protocol, Stopwatch, Work, clock_of

# Fraction of the time limit for timing; the rest is for importing PyTorch, measuring the ceiling and counting FLOPs.
SHARE = 0.8
ANCHORS = (1, 4)  # evaluations to extrapolate from, if too few requested numbers could be timed


def main() -> None:
    """Answer one request."""
    serve(_answer)


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    answer: dict[str, Any] = {"env": environment(), "metrics": {}}
    try:
        metrics, notes = _measure(request)
    except Exception as error:  # the code of a method can raise any exception
        return answer | failure(error)
    return answer | {"status": "ok", "reason": "; ".join(notes), "metrics": metrics}


def _measure(request: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    configuration = Configuration.from_dict(request["configuration"])
    method, device, counts = configuration.resolve(), request["device"], request["evaluations"]
    size = (configuration.shape, configuration.batch_size)
    watch = Stopwatch(clock_of(device), Protocol(**request["protocol"]), SHARE * request["timeout"])
    with ExitStack() as stack:
        # A long interval keeps the overhead low, and other processes on the GPU usually run longer than this.
        process = stack.enter_context(sampled_process(interval=1.0)) if device == "cuda" else None
        best = ceiling(method.network.precision, device, watch.clock)
        if request["phase"] == "train":
            step = _training(method, *size, device)
            first = watch.warm_up(step)[0]
            metrics: dict[str, Any] = {"step_seconds": watch.repeat(step)}
            flops, notes = _counted("step_flops", lambda: step_flops(method, *size))
        else:
            first, by_count = time_volumes(watch, _sampling(method, *size, device), counts)
            metrics = {"volume_seconds": by_count}
            flops, notes = _counted("volume_flops", lambda: volume_flops(method, *size, {*by_count, *counts}))
        if process:
            process.sample()
            notes += process.other_processes()
    return metrics | {FIRST: first, "matmul": {"rates": best.rates, "what": best.what}} | flops, notes


def _training(method: Method, shape: tuple[int, int, int], batch_size: int, device: str) -> Work:
    """Return one training step on a batch (N, 1, D, H, W), in the last stage (diffusion) if there are several."""
    training = Training.start(method, device=device, stage=len(method.stages) - 1)
    source, target = (torch.randn(batch_size, c, *shape, device=device) for c in (len(method.sources), 1))
    return lambda: training.step(source, target, method.learning_rate)


def _sampling(method: Method, shape: tuple[int, int, int], batch_size: int, device: str) -> Callable[[int], Work]:
    """Return a function that returns, for a number of network evaluations, the sampling of a batch (N, 1, D, H, W)."""
    network = method.build().to(device).eval().requires_grad_(False)
    source = torch.randn(batch_size, len(method.sources), *shape, device=device)

    def work(evaluations: int) -> Work:
        changed = replace(method, sampling=replace(method.sampling, steps=evaluations))
        return lambda: sample(changed, network, source)

    return work


def time_volumes(
    watch: Stopwatch, work: Callable[[int], Work], counts: Sequence[int]
) -> tuple[float, dict[int, list[float]]]:
    """Time the first volume, and volumes after the warm-up for each number of evaluations that the budget allows.

    If the budget does not allow a requested number, two small numbers are timed for the extrapolation, unless two
    numbers are already timed. The first volume uses one evaluation.

    Args:
        watch: stopwatch with the time budget.
        work: returns the work for a number of evaluations.
        counts: requested numbers of evaluations.

    Returns:
        The time of the first volume, and the times of the repetitions by number of evaluations.
    """
    first, *_, one = watch.warm_up(work(1))
    found: dict[int, list[float]] = {}
    for k in sorted(counts):
        # The time with one evaluation includes the fixed cost per volume, so k times this time is an upper bound.
        if watch.affords(LEAST * k * one):
            found[k] = watch.repeat(work(k))
    for k in ANCHORS if set(counts) - found.keys() else ():
        if k not in found and len(found) < 2:
            found[k] = watch.repeat(work(k))
    return first, dict(sorted(found.items()))


def _counted(name: str, count: Callable[[], Any]) -> tuple[dict[str, Any], list[str]]:
    """Return FLOPs, or a note if counting fails because a user's method reads tensor values; times stay valid."""
    try:
        return {name: count()}, []
    except Exception as error:
        return {}, [f"FLOPs could not be counted: {fault(error)}"]


if __name__ == "__main__":
    main()
