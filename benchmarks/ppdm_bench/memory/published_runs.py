"""What published records say was run, as code: each record names one of :data:`RUNS` and its options.

The networks are of others (MONAI, diffusers), which are development dependencies and imported where they are run.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ppdm_bench.predictor import Peak, Target, predict_peak
from ppdm_bench.predictor.target import GIB
from ppdm_bench.records import Record

# Where a source does not state its release, the newest one of before the change that made 2.9.0 different is taken.
UNSTATED = "2.8.0"

# Compute capabilities of the cards that sources name, from NVIDIA's table (developer.nvidia.com/cuda-gpus).
CARDS = {"A100": (8, 0), "H100": (9, 0), "RTX 4090": (8, 9)}
# Of a card that a source does not state: the one that its cuBLAS workspace of 32 MiB fits.
UNSTATED_CARD = (9, 0)

Options = Mapping[str, Any]
State = tuple[nn.Module, torch.optim.Optimizer | None]


def target_of(record: Record) -> Target:
    """The card and release of a published record, with its 80 GB, or the least size of the cards that were sold."""
    env = record.env
    release, gpu = str(env["torch"]), str(env.get("gpu", ""))
    capability = next((value for name, value in CARDS.items() if gpu.startswith(name)), UNSTATED_CARD)
    cudnn = tuple(map(int, str(env["cudnn"]).split("."))) if env.get("cudnn") else None
    return Target(
        torch=release if release[0].isdigit() else UNSTATED,
        capacity=(24 if "4090" in gpu else 80) * GIB,
        compute_capability=capability,
        cudnn=(cudnn[0], cudnn[1]) if cudnn else None,
    )


def predict_published(options: Options, target: Target) -> Peak:
    """Predict what a published record's options describe, ``step`` naming one of :data:`RUNS`."""
    build, step = RUNS[options["step"]](options)
    return predict_peak(build, step, iterations=1, target=target)


Run = tuple[Callable[[], Any], Callable[[Any], Any]]


def _flow_step(options: Options) -> Run:
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

    def build() -> State:
        network = _monai_unet(options)
        return network, _adamw(network)

    return build, step


def _mean_step(options: Options) -> Run:
    """Step B: the mean of the output as a loss, and the optimizer made after the backward pass."""

    def step(network: nn.Module) -> None:
        x = torch.randn(1, options["in_channels"], *options["spatial"], device="cuda")
        with torch.autocast("cuda", torch.bfloat16):
            loss = network(x, timesteps=torch.randint(0, 1000, (1,), device="cuda")).mean()
        loss.backward()
        optimizer = _adamw(network)
        optimizer.step()
        optimizer.zero_grad()

    return lambda: _monai_unet(options), step


def _monai_unet(options: Options) -> nn.Module:
    from monai.networks.nets.diffusion_model_unet import DiffusionModelUNet

    names = ("channels", "attention_levels", "num_res_blocks", "num_head_channels", "norm_num_groups")
    chosen = {name: options[name] for name in names}
    network = DiffusionModelUNet(3, options["in_channels"], options["out_channels"], **chosen).to("cuda")
    if options["checkpointing"] == "block":
        for block in (*network.down_blocks, network.middle_block, *network.up_blocks):
            block.forward = _checkpointed(block.forward)
    return network


def _adamw(network: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(network.parameters(), lr=1e-4)


def _checkpointed(forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    return run


def _dtype(options: Options) -> torch.dtype:
    return {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[options["dtype"]]


def _repeated_conv3d(options: Options) -> Run:
    """``y = F.conv3d(x, w, b)`` several times over, the last result still bound; made in fp32 and converted."""

    def build() -> tuple[Tensor, ...]:
        sizes: Sequence[Sequence[int]] = (options["x"], options["weight"], options["weight"][:1])
        x, weight, bias = (torch.randn(*size, device="cuda").to(_dtype(options)) for size in sizes)
        return x, weight, bias

    def step(state: tuple[Tensor, ...]) -> Any:
        for _ in range(options["calls"]):
            x, weight, bias = state
            y = F.conv3d(x, weight, bias)
        return y

    return build, step


def _convolution(options: Options) -> Run:
    """One call of ``nn.Conv2d`` or ``nn.Conv3d`` on the last of several inputs, all of which are alive."""

    def build() -> nn.Module:
        make: Callable[..., nn.Module] = nn.Conv3d if len(options["x"][0]) == 5 else nn.Conv2d
        layer = make(*options["layer"], padding=1, device="cuda", dtype=_dtype(options))
        return layer.requires_grad_(options["gradients"])

    def step(layer: nn.Module) -> Any:
        inputs = [torch.randn(*size, device="cuda", dtype=_dtype(options)) for size in options["x"]]
        return layer(inputs[-1])

    return build, step


def _autoencoder(options: Options) -> Run:
    """One method of diffusers' ``AutoencoderKLQwenImage`` with its default configuration, without gradients."""

    def build() -> nn.Module:
        from diffusers import AutoencoderKLQwenImage

        with torch.device("cpu"):
            made: Any = AutoencoderKLQwenImage()
            network: nn.Module = made.to(_dtype(options))
        return network.to("cuda")

    def step(network: nn.Module) -> None:
        with torch.no_grad():
            getattr(network, options["call"])(torch.randn(*options["x"], device="cuda", dtype=_dtype(options)))

    return build, step


RUNS: Mapping[str, Callable[[Options], Run]] = {
    "A": _flow_step,
    "B": _mean_step,
    "repeated conv3d": _repeated_conv3d,
    "convolution": _convolution,
    "autoencoder": _autoencoder,
}
