"""Check the model of time on this CPU: predict our own training steps from its measured rates, and measure them.

    python benchmarks/harness/cpu_time.py                one training step of every method at 32³ and 48³

The peak rates are measured in the same process, by a product of two matrices and by the copy of a large tensor. Single
operators show which part of the peak rates real kernels reach: convolutions of several widths, and an activation with a
newly allocated result. No constant is fitted to training steps. The computation uses one thread. The time is the
minimum processor time over repetitions, so that other load on the machine has little influence.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from statistics import median

import numpy as np
import torch
import torch.nn.functional as F

from ppdm_baselines import METHODS
from ppdm_bench.configuration import Configuration
from ppdm_bench.memory.workload import workload
from ppdm_bench.predictor.timing import IDEAL, Constants, Duration, KernelTable, Rates, kernels_of_step
from ppdm_bench.timing.arithmetic import ceiling
from ppdm_bench.timing.clock import QUICK, Protocol, Stopwatch
from ppdm_bench.units import shape_text, significant

ELEMENTS = 2**25  # elements of the copied tensor, 128 MiB: larger than any cache
WIDTHS = (16, 32, 64, 128)  # channels of the measured convolutions
EDGE = 16  # edge of their volumes in voxels
BATCH = 2  # batch size, for which PyTorch uses oneDNN at any size
NEW = 2**21  # elements of the activation, 8 MiB


def main() -> None:
    """Print one line per method and size, and the median error."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--res", type=int, nargs="+", default=[32, 48], help="edges of cubic volumes")
    parser.add_argument("--method", nargs="+", default=list(METHODS), help="methods to check; default: all")
    parser.add_argument("--width", type=int, default=16, help="channels at the finest level")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rates = rates_of_this_cpu()
    constants = constants_of_this_cpu(rates)
    print(f"{rates.peaks['fp32'] / 1e9:.0f} GFLOP/s, {rates.bandwidth / 1e9:.1f} GB/s")
    of_width = ", ".join(
        f"{constants.full['fp32'] + 2 * constants.narrow['fp32'] / n:.2f} of {n} channels" for n in WIDTHS
    )
    print(f"cost of a convolution's operations: {of_width}; of traffic: {constants.memory:.2f}")
    asked = [Configuration(m, (n, n, n), width=arguments.width) for m in arguments.method for n in arguments.res]
    errors = []
    for one, predicted, measured in check(asked, rates, constants):
        errors.append(predicted.seconds / measured - 1)
        what = f"{one.label} {shape_text(one.shape)}"
        times = f"{significant(predicted.seconds)} s, measured {significant(measured)} s ({errors[-1]:+.0%})"
        print(f"{what}: predicted {times}, limited by {predicted.limit}", flush=True)
    print(f"median error {median(map(abs, errors)):.0%}")


def rates_of_this_cpu() -> Rates:
    """Measure the rates of a matrix product and of a copy."""
    source, to = torch.ones(ELEMENTS), torch.empty(ELEMENTS)
    peak = max(ceiling("fp32", "cpu", processor).rates)
    return Rates({"fp32": peak, "tf32": 0.0, "half": 0.0}, 2 * source.nbytes / least(lambda: to.copy_(source)))


def constants_of_this_cpu(rates: Rates) -> Constants:
    """Measure the costs of convolutions and of an activation relative to the peak rates.

    The cost of a convolution is a line ``full + narrow · (1 / columns + 1 / depth)``, fitted to several widths, for
    forward and backward together.
    """
    costs = [_cost_of_convolution(width, rates) for width in WIDTHS]
    narrow, full = np.polyfit([2 / width for width in WIDTHS], costs, 1)
    x = torch.ones(NEW)
    memory = least(lambda: F.silu(x)) * rates.bandwidth / (2 * x.nbytes)
    at_least = {"full": max(float(full), 0.5), "narrow": max(float(narrow), 0.0)}
    return replace(
        IDEAL,
        full=dict.fromkeys(IDEAL.full, at_least["full"]),
        narrow=dict.fromkeys(IDEAL.narrow, at_least["narrow"]),
        memory=max(memory, 1.0),
        launch=_overhead(),
    )


def _cost_of_convolution(width: int, rates: Rates) -> float:
    """Time of a convolution, forward and backward, divided by the time of its operations at the peak rate."""
    layer = torch.nn.Conv3d(width, width, 3, padding=1)
    x = torch.randn(BATCH, width, EDGE, EDGE, EDGE, requires_grad=True)
    seconds = least(lambda: layer(x).sum().backward())
    return seconds * rates.peaks["fp32"] / (3 * 2 * 27 * width * x.numel())


def _overhead() -> float:
    """Seconds of a kernel that has almost nothing to compute: the mean of convolutions, norms and activations at 4³."""
    parts = ((torch.nn.Conv3d(16, 16, 3, padding=1), torch.nn.GroupNorm(8, 16), torch.nn.SiLU()) for _ in range(8))
    network = torch.nn.Sequential(*(part for three in parts for part in three))
    x = torch.randn(BATCH, 16, 4, 4, 4)
    kernels = kernels_of_step(lambda: network, lambda net: net(x).sum().backward(), None, 1)
    return least(lambda: network(x).sum().backward()) / len(kernels)


def processor(work: Callable[[], object]) -> float:
    """Run ``work`` and return its processor time in seconds."""
    start = time.process_time()
    work()
    return time.process_time() - start


def least(work: Callable[[], object], protocol: Protocol = QUICK, budget: float = 30.0) -> float:
    """Minimum processor time of ``work`` in seconds over several repetitions."""
    watch = Stopwatch(processor, protocol, budget)
    watch.warm_up(work)
    return min(watch.repeat(work))


def check(
    asked: Sequence[Configuration], rates: Rates, constants: Constants, protocol: Protocol = QUICK
) -> Iterator[tuple[Configuration, Duration, float]]:
    """Predict and measure one training step of each configuration, in seconds."""
    for one in asked:
        work = workload(one.resolve(), "train", one.shape, one.batch_size, "cpu")
        kernels = kernels_of_step(work.build, work.step, None, work.iterations)
        predicted = Duration.of(KernelTable.of(kernels), rates, constants)
        state = work.build()
        yield one, predicted, least(lambda state=state, work=work: work.step(state), protocol, 60)


if __name__ == "__main__":
    main()
