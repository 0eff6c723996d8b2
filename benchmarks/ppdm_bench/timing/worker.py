"""The child process that times one phase of one configuration: ``python -m ppdm_bench.timing.worker``.

What it times is the code that training and sampling run; volumes and weights are made before.
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
from ppdm_bench.memory.nvml import watched_process
from ppdm_bench.memory.workload import fault
from ppdm_bench.timing.arithmetic import Ceiling, ceiling, step_flops, volume_flops
from ppdm_bench.timing.clock import FIRST, LEAST, Protocol, Stopwatch, Work, clock_of

# Of its time limit, what a child may spend on timing; the rest is for PyTorch to start, for the ceiling and for FLOPs.
SHARE = 0.8
ANCHORS = (1, 4)  # evaluations from which the time of more is estimated, where nothing else could be measured


def main() -> None:
    """Answer one request."""
    serve(_answer)


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    answer: dict[str, Any] = {"env": environment(), "metrics": {}}
    try:
        metrics, notes = _measure(request)
    except Exception as error:  # a method's code may fail in any way
        return answer | failure(error)
    return answer | {"status": "ok", "reason": "; ".join(notes), "metrics": metrics}


def _measure(request: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    configuration = Configuration.from_dict(request["configuration"])
    method, device, counts = configuration.resolve(), request["device"], request["evaluations"]
    size = (configuration.shape, configuration.batch_size)
    watch = Stopwatch(clock_of(device), Protocol(**request["protocol"]), SHARE * request["timeout"])
    with ExitStack() as stack:
        # Seldom, so that looking costs no time; who else computes on a GPU stays there for longer.
        process = stack.enter_context(watched_process(interval=1.0)) if device == "cuda" else None
        best = ceiling(method.network.precision, device, watch.clock)
        if request["phase"] == "train":
            first, times = _time_step(watch, _training(method, *size, device))
            metrics: dict[str, Any] = {"step_seconds": times}
            flops, notes = _counted("step_flops", lambda: step_flops(method, *size))
        else:
            first, drawn = time_volumes(watch, _sampling(method, *size, device), counts)
            metrics = {"volume_seconds": drawn}
            flops, notes = _counted("volume_flops", lambda: volume_flops(method, *size, {*drawn, *counts}))
        if process:
            process.sample()
            notes += process.company()
    return metrics | {FIRST: first} | flops | _described(best), notes


def _training(method: Method, shape: tuple[int, int, int], batch_size: int, device: str) -> Work:
    """One step of training on a batch (N, 1, D, H, W); of several stages, that of the last, the diffusion."""
    training = Training.start(method, device=device, stage=len(method.stages) - 1)
    source, target = (torch.randn(batch_size, 1, *shape, device=device) for _ in range(2))
    return lambda: training.step(source, target, method.optimisation.learning_rate)


def _sampling(method: Method, shape: tuple[int, int, int], batch_size: int, device: str) -> Callable[[int], Work]:
    """Drawing a batch (N, 1, D, H, W) in some number of network evaluations."""
    network = method.build().to(device).eval().requires_grad_(False)
    source = torch.randn(batch_size, 1, *shape, device=device)

    def draw(evaluations: int) -> Work:
        drawn = replace(method, sampling=replace(method.sampling, steps=evaluations))
        return lambda: sample(drawn, network, source)

    return draw


def _time_step(watch: Stopwatch, step: Work) -> tuple[float, list[float]]:
    """The time of the first step, and those of steps that are warm."""
    first = watch.warm_up(step)[0]
    return first, watch.repeat(step)


def time_volumes(
    watch: Stopwatch, draw: Callable[[int], Work], counts: Sequence[int]
) -> tuple[float, dict[int, list[float]]]:
    """The time of the first volume, of one evaluation, and the times of a volume by network evaluations once warm:
    those in the budget, and two to estimate from where one is not.

    Args:
        watch: with the budget.
        draw: the work for a number of evaluations.
        counts: evaluations that are asked for.
    """
    first, *_, one = watch.warm_up(draw(1))
    found: dict[int, list[float]] = {}
    for k in sorted(counts):
        # An evaluation costs at most what a volume of one does, which has the start and the end of a volume in it.
        if watch.affords(LEAST * k * one):
            found[k] = watch.repeat(draw(k))
    for k in ANCHORS if set(counts) - found.keys() else ():
        if k not in found and len(found) < 2:
            found[k] = watch.repeat(draw(k))
    return first, dict(sorted(found.items()))


def _counted(name: str, count: Callable[[], Any]) -> tuple[dict[str, Any], list[str]]:
    """FLOPs, or why they are not known: a method of someone's own may need values, and its times stand without."""
    try:
        return {name: count()}, []
    except Exception as error:
        return {}, [f"FLOPs could not be counted: {fault(error)}"]


def _described(best: Ceiling) -> dict[str, Any]:
    return {"matmul": {"rates": best.rates, "what": best.what}}


if __name__ == "__main__":
    main()
