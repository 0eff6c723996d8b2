r"""Compare our prediction with other tools that predict the memory of PyTorch code, on published measurements.

    pip install --no-deps --target RIVALS torch-kitsune==0.7.0 accelerate==1.15.0 deepspeed==0.19.8 psutil==7.2.2 \
        hjson==3.1.0 msgpack==1.2.4
    python benchmarks/harness/rivals.py results/validation RIVALS

RIVALS is a temporary folder outside the repository, because none of these tools is a dependency. Each tool runs with
its most favourable settings:

- *MemTracker* (``torch.distributed._tools``) tracks the same runs on fake CPU tensors, because a build of PyTorch
  without CUDA has no fake CUDA tensors; autocast follows the CPU's rules.
- *kitsune* gets the network as a function of one tensor, the dtype of its activations, and the optimizer.
- *accelerate* and *DeepSpeed* (ZeRO 2 on one GPU, no offloading) cover only model states: weights, gradients and
  optimizer states; without training, the size of the weights by accelerate is used.

The script writes ``rivals.csv`` and ``rivals.md``.
"""

import importlib.metadata
import io
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass
from math import prod
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import pandas as pd
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ppdm.atomic_io import write_together
from ppdm_bench.memory import published_runs, validate
from ppdm_bench.predictor.target import GIB
from ppdm_bench.records import Record, RecordFile
from ppdm_bench.units import shape_text

PUBLISHED = Path("results/published")
FIRST = ("a1", "a2", "a3", "a4", "b1", "b2", "c1", "c2", "d1", "d2")  # values of runs in which cuDNN computes
OURS = "ours"
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


class CannotError(Exception):
    """A tool does not support an input; the message gives the reason."""


@dataclass(frozen=True)
class Found:
    """One published value, and the prediction of each tool.

    Attributes:
        name: name of the run.
        counter: the published counter.
        published: published bytes; None if the run ran out of memory.
        capacity: bytes that the allocator of the card could use.
        answers: by tool, the predicted bytes or the reason why there is no prediction.
    """

    name: str
    counter: str
    published: int | None
    capacity: int
    answers: Mapping[str, int | str]

    def error(self, tool: str) -> float | None:
        """Predicted / published − 1; None if there is no prediction or no published value."""
        answer = self.answers[tool]
        return None if isinstance(answer, str) or not self.published else answer / self.published - 1

    def cell(self, tool: str) -> str:
        """Table cell: the error, the verdict for a run that ran out of memory, or a dash."""
        answer, error = self.answers[tool], self.error(tool)
        if isinstance(answer, str):
            return "–"
        if error is None:
            return "runs out" if answer > self.capacity else "**fits**"
        return f"{error:+.1%}".replace("-", "−")


class _OneTensor(nn.Module):
    """A network as a function of one tensor."""

    def __init__(self, network: nn.Module, call: Callable[[nn.Module, Tensor], Any]) -> None:
        super().__init__()
        self.network, self.call = network, call

    def forward(self, x: Tensor) -> Any:
        return self.call(self.network, x.to(next(self.parameters()).dtype))


def network_of(record: Record) -> tuple[nn.Module, tuple[int, ...]]:
    """The network of a published run, callable with one tensor, and the size of this tensor."""
    options = record.options
    kind = options["step"]
    if kind == "repeated conv3d":
        channels, inside, *kernel = options["weight"]
        return nn.Conv3d(inside, channels, kernel, dtype=HALF[options["dtype"]]), tuple(options["x"])
    state = published_runs.RUNS[kind](options)[0]()
    network = state[0] if isinstance(state, tuple) else state
    if kind == "convolution":
        return network, tuple(options["x"][-1])
    if kind == "autoencoder":
        for module in network.modules():
            module.__dict__.pop("forward", None)  # a patched method that cannot be copied
        return _OneTensor(network, lambda made, x: getattr(made, options["call"])(x)), tuple(options["x"])
    size = (1, options["in_channels"], *options["spatial"])
    return _OneTensor(network, lambda made, x: made(x, timesteps=torch.zeros(1, device=x.device))), size


def _trains(record: Record) -> bool:
    return record.phase == "train"


def _only_allocated(record: Record) -> None:
    if record.metric == "refused":
        raise CannotError("a request that the allocator refuses")
    if record.metric != "peak_allocated":
        raise CannotError("memory that the allocator reserves")


def ours(record: Record) -> int:
    """Our prediction of the published value."""
    metric = "peak_reserved" if record.status == "oom" else record.metric
    return int(next(found.value or 0 for found in validate.predict(record) if found.metric == metric))


def mem_tracker(record: Record) -> int:
    """The peak that PyTorch's MemTracker finds."""
    from torch.distributed._tools.mem_tracker import MemTracker

    _only_allocated(record)
    # MemTracker supports only parameters that require gradients, so build the run with them; `gradients` is the true
    # value.
    gradients = _trains(record) or record.options.get("gradients", False)
    build, step = published_runs.RUNS[record.options["step"]](record.options | {"gradients": True})
    with (
        FakeTensorMode(),
        patch.object(nn.Module, "to", lambda module, *_: module),
    ):  # the modules already are on the device
        state = build()
        tracker = MemTracker()
        held = [each for each in (state if isinstance(state, tuple) else (state,)) if each is not None]
        tracker.track_external(*held)
        with tracker, torch.set_grad_enabled(gradients):
            out = step(state)
        del out
        peaks = tracker.get_tracker_snapshot("peak")
    return int(sum(each["Total"] for each in peaks.values()))


def kitsune(record: Record) -> int:
    """The prediction of torch-kitsune for the network."""
    from kitsune.predict import predict_memory

    _only_allocated(record)
    if record.checkpointing != "none":
        raise CannotError("recomputation in the backward pass")
    optimiser = "adamw" if _trains(record) else "none"
    # kitsune executes a network that it can trace, and it can trace a single layer. Fake tensors need no memory for
    # this and give the same prediction.
    with FakeTensorMode() if "onv" in record.options["step"] else nullcontext():
        network, size = network_of(record)
        found = predict_memory(network, size[1:], size[0], HALF[record.precision], optimiser, _trains(record))
    return int(found.total_bytes)


def accelerate(record: Record) -> int:
    """The estimate of accelerate for a model, or for its training."""
    from accelerate.commands.estimate import estimate_training_usage
    from accelerate.utils import calculate_maximum_sizes

    _only_allocated(record)
    size = calculate_maximum_sizes(network_of(record)[0])[0]
    if not _trains(record):
        return int(size)
    precision = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}[record.precision]
    return int(max(estimate_training_usage(int(size), precision).values()))


def deepspeed(record: Record) -> int:
    """The estimate of DeepSpeed for ZeRO 2 on one GPU."""
    _only_allocated(record)
    if not _trains(record):
        raise CannotError("a run without training")
    with redirect_stdout(io.StringIO()):
        from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs
    parameters = sum(prod(each.shape) for each in network_of(record)[0].parameters())
    return int(estimate_zero2_model_states_mem_needs(parameters, cpu_offload=False)[1])


TOOLS: Mapping[str, Callable[[Record], int]] = {
    OURS: ours,
    "MemTracker": mem_tracker,
    "kitsune": kitsune,
    "accelerate": accelerate,
    "DeepSpeed": deepspeed,
}


def chosen() -> Iterator[Record]:
    """The published values for the comparison."""
    yield from RecordFile(PUBLISHED / "monai_unet_peaks.jsonl").read()
    for record in RecordFile(PUBLISHED / "cudnn_peaks.jsonl").read():
        if record.options["published"] in FIRST and record.metric != "reserved_growth":
            yield record


def compare(records: Sequence[Record]) -> list[Found]:
    """Run every tool on every value; the error of a tool is recorded as its answer."""
    found = []
    for number, record in enumerate(records, start=1):
        answers: dict[str, int | str] = {}
        for name, tool in TOOLS.items():
            try:
                with patch.object(published_runs, "DEVICE", "cuda" if name == OURS else "cpu"):
                    answers[name] = tool(record)
            except CannotError as error:
                answers[name] = str(error)
            except Exception as error:  # the table shows every error of another tool
                answers[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:80] if str(error) else ''}"
        name = ", ".join(filter(None, (record.options.get("published"), record.method, record.variant)))
        size = shape_text(record.shape) + (", checkpointing" if record.checkpointing != "none" else "")
        capacity = published_runs.target_of(record).room or 0
        published = None if record.value is None else int(record.value)
        found.append(Found(f"{name}, {size}", record.metric, published, capacity, answers))
        print(f"{number} of {len(records)}: {found[-1].name}", answers, file=sys.stderr, flush=True)
    return found


def table(found: Sequence[Found]) -> str:
    """The Markdown table: errors, then median, worst error and number of predictions, then reasons for missing ones."""
    tools = list(found[0].answers)
    lines = [["value", "counter", "published GiB", *tools], ["---", "---", "---:", *["---:"] * len(tools)]]
    for one in found:
        size = "OOM" if one.published is None else f"{one.published / GIB:.3f}".rstrip("0").rstrip(".")
        lines.append([one.name, one.counter.replace("_", " "), size, *(one.cell(tool) for tool in tools)])
    errors = {tool: [error for one in found if (error := one.error(tool)) is not None] for tool in tools}
    ran = {tool: sum(not isinstance(one.answers[tool], str) for one in found) for tool in tools}
    lines.append(["**median**", "", "", *(f"{median(map(abs, errors[tool])):.1%}" for tool in tools)])
    worst = (f"{max(errors[tool], key=abs):+.1%}".replace("-", "−") for tool in tools)
    lines.append(["**worst**", "", "", *worst])
    lines.append(["**ran**", "", "", *(f"{ran[tool]} of {len(found)}" for tool in tools)])
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    for tool in tools:
        reasons = Counter(answer for one in found if isinstance(answer := one.answers[tool], str))
        if reasons:
            reasons_text = "; ".join(f"{reason} ({number} of {len(found)})" for reason, number in reasons.items())
            text += f"\n\n*{tool}* has no prediction for: {reasons_text}."
    return text


def as_csv(found: Sequence[Found]) -> str:
    """The CSV: predicted bytes, or the reason why there are none."""
    columns = ["value", "counter", "published_bytes", *(f"{tool}_bytes" for tool in found[0].answers)]
    rows = [[one.name, one.counter, one.published, *one.answers.values()] for one in found]
    return str(pd.DataFrame(rows, columns=columns, dtype=object).to_csv(index=False, lineterminator="\n"))


def caption() -> str:
    """Caption: the compared tools and their versions."""
    packages = ("torch", "torch-kitsune", "accelerate", "deepspeed")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    return (
        "An error is predicted / published − 1. For a run that ran out of memory, the table shows the verdict of the "
        "tool; 'runs out' is correct. Our prediction applies CUDA's rules for the GPU and the releases of each source; "
        "some of these rules were derived from the same published values. MemTracker tracks the tensors of the same "
        "runs on the CPU, without CUDA's rules. kitsune sums the outputs of modules and adds 15 % for the allocator. "
        "accelerate and DeepSpeed estimate model states, which are a part of the peak. "
        f"Written by benchmarks/harness/rivals.py ({versions})."
    )


def main(folder: Path, rivals: Path) -> None:
    """Run the comparison and write both files."""
    sys.path.append(str(rivals))
    found = compare(list(chosen()))
    text = f"# Other tools on the published values\n\n{table(found)}\n\n{caption()}\n"
    write_together({folder / "rivals.csv": as_csv(found).encode(), folder / "rivals.md": text.encode()})
    print(text)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
