"""The prediction held against peaks that others measured on CUDA: ``python -m ppdm_bench.memory.validate``.

The published records name a third-party network (MONAI's ``DiffusionModelUNet``, a development dependency), a GPU and
a release of PyTorch. Each is built and run as its source says, for that GPU, on this machine without one.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.networks.nets.diffusion_model_unet import DiffusionModelUNet
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ppdm_bench.environment import environment
from ppdm_bench.memory.reference import reference_records, reference_table
from ppdm_bench.predictor.peak import Peak, predict_peak
from ppdm_bench.predictor.target import GIB, Target
from ppdm_bench.records import Record, RecordFile
from ppdm_bench.report import figure
from ppdm_bench.report.agreement import agreement_table
from ppdm_bench.report.files import replace_file

PUBLISHED = Path("results/published/monai_unet_peaks.jsonl")

# Where a source does not state its release, the newest one of before the change that made 2.9.0 different is taken.
UNSTATED = "2.8.0"

SIZES = (32, 64, 128)  # of the comparison with MONAI's network

State = tuple[nn.Module, torch.optim.Optimizer | None]


def main() -> None:
    """Predict every published peak, compare our U-Net with the field's, and write records, tables and the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--published", type=Path, default=PUBLISHED, help="records of kind published")
    parser.add_argument("--out", type=Path, default=Path("results/validation"), help="folder for records and figure")
    arguments = parser.parse_args()
    published = RecordFile(arguments.published).read()
    predicted = [record for one in published for record in predict(one)]
    path = arguments.out / "published.jsonl"
    _write(path, predicted)
    written = list(figure.save(figure.validation_figure([*published, *predicted]), arguments.out / "published"))
    table = agreement_table([*published, *predicted])
    written.append(replace_file(arguments.out / "published.md", table.encode()))
    print(table)
    print(_compare_networks(arguments.out))
    print("written: " + ", ".join(map(str, [path, *written])))


def _compare_networks(out: Path) -> str:
    records = reference_records(SIZES)
    table = reference_table(records)
    _write(out / "reference.jsonl", records)
    replace_file(out / "reference.md", table.encode())
    return table


def _write(path: Path, records: Sequence[Record]) -> None:
    """Write records anew: each run compares everything again."""
    replace_file(path, "".join(record.to_json() + "\n" for record in records).encode())


def predict(published: Record) -> list[Record]:
    """The records of a prediction of what a published record says was run."""
    target = target_of(published)
    peak = predict_published(published.options, target)
    common: dict[str, Any] = {
        "kind": "predicted",
        "config_id": published.config_id,
        "method": published.method,
        "variant": published.variant,
        "shape": published.shape,
        "batch_size": published.batch_size,
        "phase": published.phase,
        "precision": published.precision,
        "checkpointing": published.checkpointing,
        "device": "cuda",
        "options": published.options,
        "env": environment() | published.env | {"capacity": target.capacity, "target_torch": target.torch},
    }
    fault = {"status": "oom", "reason": "predicted not to fit"} if peak.fits is False else {}
    return [
        Record(metric="peak_allocated", value=peak.peak_allocated, stat="max", n=1, **common | fault),
        Record(metric="peak_reserved", value=peak.peak_reserved, stat="max", n=1, **common | fault),
        *(Record(metric=name, value=value, stat="at peak", n=1, **common) for name, value in peak.breakdown.items()),
    ]


def target_of(published: Record) -> Target:
    """The card and release of a published record; all of them are cards of 80 GB."""
    release, gpu = published.env["torch"], published.env["gpu"]
    return Target(
        torch=release if release[0].isdigit() else UNSTATED,
        capacity=80 * GIB,
        compute_capability=(9, 0) if gpu.startswith("H100") else (8, 0),
    )


def predict_published(options: dict[str, Any], target: Target) -> Peak:
    """Predict one training step of the network that the options describe."""
    step = _flow_step(options) if options["step"] == "A" else _mean_step(options)
    return predict_peak(lambda: _build(options), step, iterations=1, target=target)


def _build(options: dict[str, Any]) -> State:
    names = ("channels", "attention_levels", "num_res_blocks", "num_head_channels", "norm_num_groups")
    network = DiffusionModelUNet(
        3, options["in_channels"], options["out_channels"], **{name: options[name] for name in names}
    ).to("cuda")
    if options["checkpointing"] == "block":
        for block in (*network.down_blocks, network.middle_block, *network.up_blocks):
            block.forward = _checkpointed(block.forward)
    # Step B makes its optimizer after the backward pass.
    return network, _optimizer(network) if options["step"] == "A" else None


def _optimizer(network: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(network.parameters(), lr=1e-4)


def _checkpointed(forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    return run


def _flow_step(options: dict[str, Any]) -> Callable[[State], None]:
    """Step A: rectified flow on an image, conditioned by a label; every named tensor lives to the end of the step."""

    def volume(channels: int) -> Tensor:
        return torch.randn(1, channels, *options["spatial"], device="cuda")

    def step(state: State) -> None:
        network, optimizer = state
        image = volume(options["out_channels"])
        label = volume(options["in_channels"] - options["out_channels"])
        with torch.autocast("cuda", torch.bfloat16):
            noise = torch.randn_like(image)
            t = torch.rand(1, device="cuda")
            noisy = (1 - t) * image + t * noise
            seen = torch.cat([noisy, label], dim=1)
            prediction = network(seen, timesteps=t * 1000)
            wanted = image - noise
            loss = (prediction.float() - wanted.float()).square().mean()
        loss.backward()
        assert optimizer is not None
        optimizer.step()

    return step


def _mean_step(options: dict[str, Any]) -> Callable[[State], None]:
    """Step B: the mean of the output as a loss, and the optimizer made after the backward pass."""

    def step(state: State) -> None:
        network, _ = state
        x = torch.randn(1, options["in_channels"], *options["spatial"], device="cuda")
        with torch.autocast("cuda", torch.bfloat16):
            loss = network(x, timesteps=torch.randint(0, 1000, (1,), device="cuda")).mean()
        loss.backward()
        optimizer = _optimizer(network)
        optimizer.step()
        optimizer.zero_grad()

    return step


if __name__ == "__main__":
    main()
