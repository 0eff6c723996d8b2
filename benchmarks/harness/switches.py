"""Comparison of every switch with a plain step: memory, time and gradients.

    python benchmarks/harness/switches.py results/switches

Memory is predicted for CUDA, at 256³ and with a U-Net of width 64. Time is measured for training steps of a small
network on the CPU. Every round runs all switches in turn, so that other load affects all of them alike; keep the
machine idle. Gradients are those of one loss at equal weights, times and noise, on the CPU. Writes ``switches.csv``,
with every measured time, and ``switches.md``.
"""

import csv
import io
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from ppdm import Method, training_loss
from ppdm.atomic_io import write_together
from ppdm.training.trainer import Training
from ppdm_baselines import METHODS
from ppdm_bench.commands.terminal import progress
from ppdm_bench.environment import environment
from ppdm_bench.memory.workload import workload
from ppdm_bench.predictor.peak import predict_peak
from ppdm_bench.predictor.target import GIB, Target
from ppdm_bench.variation import vary

EVERYTHING = "network.precision=bf16+network.checkpointing=conv+optimisation.optimiser=adamw8bit"
SWITCHES = (
    "",
    "network.precision=bf16",
    "network.checkpointing=norm",
    "network.checkpointing=block",
    "network.checkpointing=conv",
    "network.channels_last=true",
    "network.precision=bf16+network.channels_last=true",
    "network.compile=true",
    "network.precision=bf16+network.compile=true",
    "optimisation.optimiser=adamw8bit",
    "network.precision=bf16+network.checkpointing=conv",
    EVERYTHING,
)
MEMORY = {"r=4": METHODS["ppdm"].with_factor(4), "r=2": METHODS["ppdm"].with_factor(2), "full 3-D": METHODS["ddpm3d"]}
EDGE, CARD = 256, Target(torch="2.13.0")
# One level less than for memory, so that a step takes one second instead of ten.
TIMED = METHODS["ppdm"].with_factor(2).with_network(width=16, multipliers=(1, 2, 2))
TIMED_EDGE, ROUNDS = 64, 10
COMPARED, COMPARED_EDGE = TIMED.with_network(width=8), 16


@dataclass
class Found:
    """Effects of one switch.

    Attributes:
        switch: in the syntax of ``--vary`` and ``--set``; empty for none.
        memory: bytes of a training step, by the name of the method in this script, then bytes of sampling.
        seconds: seconds of training steps, one for each round.
        first: seconds of the first step, which includes compilation.
        difference: difference of the gradient relative to its length; 0 means bit-identical.
    """

    switch: str
    memory: dict[str, int] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    first: float = 0.0
    difference: float = 0.0


def switched(method: Method, switch: str) -> Method:
    """The method with a switch set."""
    return vary(method, switch)[0].method if switch else method


def peaks(switch: str) -> Iterator[tuple[str, int]]:
    """Predicted peak bytes of training steps and of sampling."""
    for name, method in MEMORY.items():
        for phase in ("train", "sample"):
            work = workload(switched(method, switch), phase, (EDGE,) * 3, 1, "cuda")
            yield f"{name}, {phase}", predict_peak(work.build, work.step, work.iterations, CARD).peak_allocated


def gradient(method: Method) -> Tensor:
    """The gradient of one loss, as one vector; weights and random samples are the same for all switches."""
    training = Training.start(method, seed=0)
    with torch.no_grad():
        for number, weight in enumerate(training.network.parameters()):
            drawn = torch.randn(weight.shape, generator=torch.Generator().manual_seed(number))
            weight.add_(0.02 * drawn)  # the last layers start at zero and would block the gradient
    source, target = torch.randn(2, 1, 1, *[COMPARED_EDGE] * 3, generator=torch.Generator().manual_seed(1))
    training_loss(method, training.network, source, target, torch.Generator().manual_seed(2)).mean().backward()
    return torch.cat([weight.grad.flatten() for weight in training.network.parameters() if weight.grad is not None])


def step_seconds(training: Training, pair: Tensor) -> float:
    """Seconds of one training step."""
    began = time.perf_counter()
    training.step(pair[0], pair[1], 1e-4)
    return time.perf_counter() - began


def measure(switches: Sequence[str]) -> list[Found]:
    """Measure everything; times come last, with all switches in turn."""
    found = [Found(switch) for switch in switches]
    plain = gradient(COMPARED)
    pair = torch.randn(2, 1, 1, *[TIMED_EDGE] * 3)
    with progress() as bar:
        task = bar.add_task("", total=len(found) * (ROUNDS + 2))
        trainings = []
        for one in found:
            bar.update(task, description=one.switch or "no switch")
            one.memory = dict(peaks(one.switch))
            one.difference = float((gradient(switched(COMPARED, one.switch)) - plain).norm() / plain.norm())
            bar.advance(task)
            trainings.append(Training.start(switched(TIMED, one.switch)))
            one.first = step_seconds(trainings[-1], pair)
            bar.advance(task)
        for _ in range(ROUNDS):
            for one, training in zip(found, trainings, strict=True):
                one.seconds.append(step_seconds(training, pair))
                bar.advance(task)
    return found


def table(found: Sequence[Found]) -> str:
    """The Markdown table: memory and time relative to no switch (time: in the same round), and gradients."""
    plain = found[0]
    names = list(plain.memory)
    heads = ["switch", *(f"{name} GiB" for name in names), "time of a step", "first step s", "gradient"]
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)]]
    for one in found:
        ratios = [a / b for a, b in zip(one.seconds, plain.seconds, strict=True)]
        sizes = [f"{one.memory[name] / GIB:.2f}" for name in names]
        same = "same bits" if one.difference == 0 else f"{one.difference:.1e}"
        switch = " + ".join(f"`{part}`" for part in one.switch.split("+")) if one.switch else "none"  # so that it wraps
        lines.append([switch, *sizes, f"{median(ratios):.2f}×", f"{one.first:.1f}", same])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def caption() -> str:
    """Caption: meaning and origin of the numbers in the table."""
    env = environment()
    about = ", ".join(f"{name} {env[name]}" for name in ("torch", "cpu", "threads", "commit") if env.get(name))
    return (
        f"Memory: **predicted** peak_allocated for CUDA at {EDGE}³, batch size 1, U-Net of width 64, torch "
        f"{CARD.torch}; GiB are 2³⁰ bytes. A compiled network is predicted as if it were not: what it allocates its "
        f"compiler decides. Time: **measured** on the CPU, training steps of PPDM r=2 at {TIMED_EDGE}³ with a U-Net of "
        f"width {TIMED.network.width} and {len(TIMED.network.multipliers)} levels, the median over {ROUNDS} rounds of "
        f"the ratio to no switch in the same round; the first step compiles where anything does. Gradient: the "
        f"relative difference of the whole gradient from that without the switch, at {COMPARED_EDGE}³, width "
        f"{COMPARED.network.width}, on the CPU. Made by benchmarks/harness/switches.py ({about})."
    )


def as_csv(found: Sequence[Found]) -> str:
    """The CSV with all bytes and seconds."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    rounds = [f"step_seconds_{k}" for k in range(1, ROUNDS + 1)]
    writer.writerow(["switch", *(f"{name}, B" for name in found[0].memory), "gradient", "first_step_seconds", *rounds])
    for one in found:
        times = [f"{seconds:.6g}" for seconds in (one.first, *one.seconds)]
        writer.writerow([one.switch, *one.memory.values(), f"{one.difference:.6g}", *times])
    return out.getvalue()


def main(folder: Path) -> None:
    """Run the measurements and write both files."""
    found = measure(SWITCHES)
    folder.mkdir(parents=True, exist_ok=True)
    text = f"# Switches\n\n{table(found)}\n\n{caption()}\n"
    write_together({folder / "switches.csv": as_csv(found).encode(), folder / "switches.md": text.encode()})
    print(text)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
