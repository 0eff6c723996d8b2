"""Compare every option that saves memory or time with a step without it: memory, time and gradients.

    python benchmarks/harness/switches.py results/switches

Memory is predicted for CUDA at 256³ with a U-Net of width 64. Time is measured for training steps of a small network on
the CPU. Every round runs all options one after another, so that other load affects all of them equally; keep the
machine idle. Gradients are those of one loss with equal weights, times and noise, on the CPU. The script writes
``switches.csv``, which contains every measured time, and ``switches.md``.
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
# One level fewer than for memory, so that a step takes one second instead of ten.
TIMED = METHODS["ppdm"].with_factor(2).with_network(width=16, multipliers=(1, 2, 2))
TIMED_EDGE, ROUNDS = 64, 10
COMPARED, COMPARED_EDGE = TIMED.with_network(width=8), 16


@dataclass
class Found:
    """Effects of one option (*switch*).

    Attributes:
        switch: the option in the syntax of ``--vary`` and ``--set``; empty for none.
        memory: predicted peak bytes by method and phase.
        seconds: seconds of one training step per round.
        first: seconds of the first step, which includes compilation.
        difference: norm of the gradient's difference divided by its norm; 0 means bit-identical.
    """

    switch: str
    memory: dict[str, int] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    first: float = 0.0
    difference: float = 0.0


def switched(method: Method, switch: str) -> Method:
    """Return the method with an option set."""
    return vary(method, switch)[0].method if switch else method


def peaks(switch: str) -> Iterator[tuple[str, int]]:
    """Predicted peak bytes of training steps and of sampling."""
    for name, method in MEMORY.items():
        for phase in ("train", "sample"):
            work = workload(switched(method, switch), phase, (EDGE,) * 3, 1, "cuda")
            yield f"{name}, {phase}", predict_peak(work.build, work.step, work.iterations, CARD).peak_allocated


def gradient(method: Method) -> Tensor:
    """The gradient of one loss as one vector; weights and random samples are equal for all options."""
    training = Training.start(method, seed=0)
    with torch.no_grad():
        for number, weight in enumerate(training.network.parameters()):
            drawn = torch.randn(weight.shape, generator=torch.Generator().manual_seed(number))
            weight.add_(0.02 * drawn)  # the last layers are initialised to zero, which would block the gradient
    source, target = torch.randn(2, 1, 1, *[COMPARED_EDGE] * 3, generator=torch.Generator().manual_seed(1))
    training_loss(method, training.network, source, target, torch.Generator().manual_seed(2)).mean().backward()
    return torch.cat([weight.grad.flatten() for weight in training.network.parameters() if weight.grad is not None])


def step_seconds(training: Training, pair: Tensor) -> float:
    """Seconds of one training step."""
    began = time.perf_counter()
    training.step(pair[0], pair[1], 1e-4)
    return time.perf_counter() - began


def measure(switches: Sequence[str]) -> list[Found]:
    """Measure everything; the times come last, one step per option in turn."""
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
    """The Markdown table: memory, time relative to no option in the same round, and gradients."""
    plain = found[0]
    names = list(plain.memory)
    heads = ["switch", *(f"{name} GiB" for name in names), "time of a step", "first step s", "gradient"]
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)]]
    for one in found:
        ratios = [a / b for a, b in zip(one.seconds, plain.seconds, strict=True)]
        sizes = [f"{one.memory[name] / GIB:.2f}" for name in names]
        same = "same bits" if one.difference == 0 else f"{one.difference:.1e}"
        # Spaces around the plus sign let the cell wrap.
        switch = " + ".join(f"`{part}`" for part in one.switch.split("+")) if one.switch else "none"
        lines.append([switch, *sizes, f"{median(ratios):.2f}×", f"{one.first:.1f}", same])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def caption() -> str:
    """Caption: meaning and origin of the numbers in the table."""
    env = environment()
    about = ", ".join(f"{name} {env[name]}" for name in ("torch", "cpu", "threads", "commit") if env.get(name))
    return (
        f"Memory: **predicted** peak_allocated for CUDA at {EDGE}³, batch size 1, U-Net of width 64, torch "
        f"{CARD.torch}; GiB are 2³⁰ bytes. A compiled network is predicted as an uncompiled one; the compiler can "
        f"change its memory. Time: **measured** on the CPU, training steps of PPDM r=2 at {TIMED_EDGE}³ with a U-Net "
        f"of width {TIMED.network.width} and {len(TIMED.network.multipliers)} levels: median over {ROUNDS} rounds of "
        f"the ratio to a step without the switch in the same round; the first step includes compilation. Gradient: "
        f"relative difference of the whole gradient from that without the switch, at {COMPARED_EDGE}³, width "
        f"{COMPARED.network.width}, on the CPU. Written by benchmarks/harness/switches.py ({about})."
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
