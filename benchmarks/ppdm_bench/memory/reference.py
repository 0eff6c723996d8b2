"""Comparison of our U-Net with MONAI's ``DiffusionModelUNet`` at equal settings: parameters and predicted peak."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.networks.nets.diffusion_model_unet import DiffusionModelUNet
from torch import Tensor, nn

from ppdm import UNet, UNetOptions
from ppdm_bench.commands.methods import parameter_count
from ppdm_bench.environment import provenance
from ppdm_bench.predictor.peak import predict_peak
from ppdm_bench.predictor.target import GIB
from ppdm_bench.records import Record
from ppdm_bench.units import ratio

Network = tuple[Callable[[], nn.Module], Callable[[nn.Module, Tensor, Tensor], Tensor]]

OPTIONS = UNetOptions(width=64, multipliers=(1, 2, 2, 4), residual_blocks=1)


def ours() -> Network:
    """Return functions that build and call our network, with two input channels and one output channel."""
    return lambda: UNet(2, 1, options=OPTIONS), lambda network, x, t: network(x, t)


def monai() -> Network:
    """Return the same functions for MONAI's network, with equal widths and attention only in the middle block."""

    def make() -> nn.Module:
        return DiffusionModelUNet(
            spatial_dims=3,
            in_channels=2,
            out_channels=1,
            channels=OPTIONS.channels,
            attention_levels=(False,) * len(OPTIONS.channels),
            num_res_blocks=OPTIONS.residual_blocks,
            num_head_channels=OPTIONS.head_channels,
            norm_num_groups=OPTIONS.norm_groups,
        )

    return make, lambda network, x, t: network(x, timesteps=1000 * t)


NETWORKS = {"ppdm UNet": ours(), "MONAI DiffusionModelUNet": monai()}


def reference_records(sizes: Sequence[int]) -> list[Record]:
    """Return parameter counts and predicted peaks of one fp32 training step on CUDA with fused AdamW, for cubes."""
    return [record for size in sizes for name, network in NETWORKS.items() for record in _records(name, network, size)]


def reference_table(records: Sequence[Record]) -> str:
    """Return a Markdown table with one row per size: both peaks and their ratio."""
    names = list(NETWORKS)
    found = {(r.method, r.metric, r.shape): r.value or 0 for r in records}
    lines = [f"| volume | {names[0]} GiB | {names[1]} GiB | ratio |", "|---|---:|---:|---:|"]
    for shape in dict.fromkeys(r.shape for r in records):
        own, theirs = (found[name, "peak_allocated", shape] / GIB for name in names)
        lines.append(f"| {'×'.join(map(str, shape))} | {own:.2f} | {theirs:.2f} | {ratio(own / theirs)} |")
    counts = ", ".join(f"{name} {found[name, 'parameters', records[0].shape]:,}" for name in names)
    return "\n".join(lines) + f"\n\nParameters: {counts}. Peaks are predicted: one training step, fp32, batch size 1.\n"


def _records(name: str, network: Network, size: int) -> list[Record]:
    make, call = network

    def build() -> tuple[nn.Module, torch.optim.Optimizer]:
        made = make()
        return made, torch.optim.AdamW(made.parameters(), fused=True)

    def step(state: tuple[nn.Module, torch.optim.Optimizer]) -> None:
        made, optimizer = state
        call(made, torch.randn(1, 2, size, size, size), torch.rand(1)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    options = {"network": name, "width": OPTIONS.width, "multipliers": list(OPTIONS.multipliers), "size": size}
    common: dict[str, Any] = {
        "kind": "predicted",
        "method": name,
        "shape": (size,) * 3,
        "batch_size": 1,
        "phase": "train",
        "precision": "fp32",
        "device": "cuda",
        **provenance(options),
    }
    peak = predict_peak(build, step)
    return [
        Record(metric="peak_allocated", value=peak.peak_allocated, stat="max", n=1, **common),
        Record(metric="parameters", value=parameter_count(make), stat="count", n=1, **common),
    ]
