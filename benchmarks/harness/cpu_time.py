"""Check the model of time on this CPU: predict our own training steps from its measured rates, and measure them.

    python benchmarks/harness/cpu_time.py                one training step of every method at 32³ and 48³

The machine should be idle, and have as many threads as `OMP_NUM_THREADS` says. The rates are those of a product of two
matrices and of a copy of a large tensor, measured in the same process. Nothing is fitted: convolutions are assumed to
reach the rate of the matrix product and other kernels that of the copy. Of repeated times the least counts, because
other processes can only add time.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from statistics import median

import torch

from ppdm_baselines import METHODS
from ppdm_bench.configuration import Configuration
from ppdm_bench.memory.workload import workload
from ppdm_bench.predictor.timing import IDEAL, Duration, KernelTable, Rates, kernels_of_step
from ppdm_bench.timing.arithmetic import ceiling
from ppdm_bench.timing.clock import QUICK, Protocol, Stopwatch, clock_of
from ppdm_bench.units import shape_text, significant

# The measured rates are what kernels reach. A launch is the overhead of one call of PyTorch from Python.
CALLED = replace(IDEAL, launch=5e-6)
ELEMENTS = 2**25  # of the copied tensor, 128 MiB: larger than any cache


def main() -> None:
    """Print one line for each method and size, and the median error."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--res", type=int, nargs="+", default=[32, 48], help="edges of cubic volumes")
    parser.add_argument("--method", nargs="+", default=list(METHODS), help="methods")
    parser.add_argument("--width", type=int, default=16, help="channels at the finest level")
    arguments = parser.parse_args()
    rates = rates_of_this_cpu()
    print(f"{rates.peaks['fp32'] / 1e9:.0f} GFLOP/s, {rates.bandwidth / 1e9:.1f} GB/s")
    asked = [Configuration(m, (n, n, n), width=arguments.width) for m in arguments.method for n in arguments.res]
    errors = []
    for one, predicted, measured in check(asked, rates):
        errors.append(predicted.seconds / measured - 1)
        what = f"{one.label} {shape_text(one.shape)}"
        told = f"{significant(predicted.seconds)} s, measured {significant(measured)} s ({errors[-1]:+.0%})"
        print(f"{what}: predicted {told}, limited by {predicted.limit}", flush=True)
    print(f"median error {median(map(abs, errors)):.0%}")


def rates_of_this_cpu() -> Rates:
    """Measure the rates of a matrix product and of a copy."""
    clock = clock_of("cpu")
    source, to = torch.ones(ELEMENTS), torch.empty(ELEMENTS)
    watch = Stopwatch(clock, QUICK, budget=30)
    watch.warm_up(lambda: to.copy_(source))
    seconds = min(watch.repeat(lambda: to.copy_(source)))
    peak = max(ceiling("fp32", "cpu", clock).rates)
    return Rates({"fp32": peak, "tf32": 0.0, "half": 0.0}, 2 * source.nbytes / seconds)


def check(
    asked: Sequence[Configuration], rates: Rates, protocol: Protocol = QUICK
) -> Iterator[tuple[Configuration, Duration, float]]:
    """Predict and measure one training step of each configuration, in seconds."""
    for one in asked:
        work = workload(one.resolve(), "train", one.shape, one.batch_size, "cpu")
        kernels = kernels_of_step(work.build, work.step, None, work.iterations)
        predicted = Duration.of(KernelTable.of(kernels), rates, CALLED)
        state, watch = work.build(), Stopwatch(clock_of("cpu"), protocol, budget=60)
        watch.warm_up(lambda state=state, work=work: work.step(state))
        yield one, predicted, min(watch.repeat(lambda state=state, work=work: work.step(state)))


if __name__ == "__main__":
    main()
