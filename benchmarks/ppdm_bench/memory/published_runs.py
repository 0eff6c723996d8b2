"""Code of the published runs: each published record names one of :data:`RUNS` and its options.

The networks are from MONAI and diffusers. These are development dependencies, so the functions import them when they
run.
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

DEVICE = "cuda"  # device of the sources; `harness/rivals.py` sets `cpu` for tools that need an existing device

# Release for sources that do not state one: the last before 2.9.0, which changed the memory of convolutions.
UNSTATED = "2.8.0"

# Compute capabilities of the cards in the sources, from NVIDIA's table (developer.nvidia.com/cuda-gpus).
CARDS = {
    "A100": (8, 0),
    "H100": (9, 0),
    "RTX 3070": (8, 6),
    "RTX 4090": (8, 9),
    "P100": (6, 0),
    "V100": (7, 0),
    "not stated, Ampere or later": (8, 6),
    "not stated, not Hopper": (8, 6),  # Hopper's cuBLAS workspaces of 64 MiB would not match the published values
}
# Capability for sources that state no card: their values match its cuBLAS workspace of 32 MiB.
UNSTATED_CARD = (9, 0)

Options = Mapping[str, Any]
State = tuple[nn.Module, torch.optim.Optimizer | None]


def target_of(record: Record) -> Target:
    """Return the target of a published record: its card and release, and 24 GiB for an RTX 4090 or 80 GiB otherwise."""
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
    """Predict the run described by a published record's options; ``step`` names one of :data:`RUNS`."""
    build, step = RUNS[options["step"]](options)
    return predict_peak(build, step, iterations=1, target=target)


Run = tuple[Callable[[], Any], Callable[[Any], Any]]


def _flow_step(options: Options) -> Run:
    """Step A: rectified flow on an image with a label as condition; all local tensors live until the step ends."""

    def volume(channels: int) -> Tensor:
        return torch.randn(1, channels, *options["spatial"], device=DEVICE)

    def step(state: State) -> None:
        network, optimizer = state
        image = volume(options["out_channels"])
        label = volume(options["in_channels"] - options["out_channels"])
        with torch.autocast(DEVICE, torch.bfloat16):
            noise = torch.randn_like(image)
            t = torch.rand(1, device=DEVICE)
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
    """Step B: the loss is the mean of the output, and the optimizer is created after the backward pass."""

    def step(network: nn.Module) -> None:
        x = torch.randn(1, options["in_channels"], *options["spatial"], device=DEVICE)
        with torch.autocast(DEVICE, torch.bfloat16):
            loss = network(x, timesteps=torch.randint(0, 1000, (1,), device=DEVICE)).mean()
        loss.backward()
        optimizer = _adamw(network)
        optimizer.step()
        optimizer.zero_grad()

    return lambda: _monai_unet(options), step


def _monai_unet(options: Options) -> nn.Module:
    from monai.networks.nets.diffusion_model_unet import DiffusionModelUNet

    names = ("channels", "attention_levels", "num_res_blocks", "num_head_channels", "norm_num_groups")
    chosen = {name: options[name] for name in names}
    network = DiffusionModelUNet(3, options["in_channels"], options["out_channels"], **chosen).to(DEVICE)
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
    """Repeat ``y = F.conv3d(x, w, b)`` while ``y`` holds the last result; inputs are converted from fp32."""

    def build() -> tuple[Tensor, ...]:
        sizes: Sequence[Sequence[int]] = (options["x"], options["weight"], options["weight"][:1])
        x, weight, bias = (torch.randn(*size, device=DEVICE).to(_dtype(options)) for size in sizes)
        return x, weight, bias

    def step(state: tuple[Tensor, ...]) -> Any:
        for _ in range(options["calls"]):
            x, weight, bias = state
            y = F.conv3d(x, weight, bias)
        return y

    return build, step


def _convolution(options: Options) -> Run:
    """One call of ``nn.Conv2d`` or ``nn.Conv3d`` on the last of several inputs; all inputs stay allocated."""

    def build() -> nn.Module:
        make: Callable[..., nn.Module] = nn.Conv3d if len(options["x"][0]) == 5 else nn.Conv2d
        padding = options.get("padding", 1)
        layer = make(*options["layer"], padding=padding, device=DEVICE, dtype=_dtype(options))
        return layer.requires_grad_(options["gradients"])

    def step(layer: nn.Module) -> Any:
        inputs = [torch.randn(*size, device=DEVICE, dtype=_dtype(options)) for size in options["x"]]
        return layer(inputs[-1])

    return build, step


def _pooled_convolution(options: Options) -> Run:
    """One call of ``nn.Conv2d`` and two of ``nn.MaxPool2d`` without gradients; the input exists before the step."""

    def build() -> tuple[nn.Module, Tensor]:
        pools = (nn.MaxPool2d(3, stride=2, padding=1) for _ in range(2))
        return nn.Sequential(nn.Conv2d(*options["layer"]), *pools).to(DEVICE), torch.randn(*options["x"], device=DEVICE)

    def step(state: tuple[nn.Module, Tensor]) -> Any:
        network, x = state
        with torch.no_grad():
            return network(x)

    return build, step


class _ConvolutionAndNorm(torch.autograd.Function):
    """Fused convolution and batch normalisation: saves input and weight only, and convolves again in backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        x = F.conv2d(x, weight)
        ctx.mean, ctx.deviation = x.sum((0, 2, 3)) / (x.numel() / x.shape[1]), x.var((0, 2, 3)).sqrt()
        out = x - _by_channel(ctx.mean)
        out /= _by_channel(ctx.deviation + 1e-3)
        return out

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        y = F.conv2d(x, weight)  # allocated until the backward pass ends, like the incoming gradient
        before = _norm_backward(grad_output, y, ctx.mean, ctx.deviation)
        of_weight = F.conv2d(x.transpose(0, 1), before.transpose(0, 1)).transpose(0, 1)
        return F.conv_transpose2d(before, weight), of_weight


def _norm_backward(grad_output: Tensor, y: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    scale = ((y - _by_channel(mean)) * grad_output).sum((0, 2, 3)) / deviation
    shift = (grad_output / _by_channel(deviation)).sum((0, 2, 3))
    gradient = y * _by_channel(scale)
    gradient += _by_channel(shift)
    gradient += grad_output
    return gradient


def _by_channel(x: Tensor) -> Tensor:
    return x[None, :, None, None]


class _DigitNet(nn.Module):
    """Network of PyTorch's tutorial on fusing convolution and batch normalisation, for 28² pixels."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.fused = fused
        self.convolutions = nn.ModuleList(nn.Conv2d(a, b, 3, bias=False) for a, b in ((1, 32), (32, 64)))
        norms = (nn.BatchNorm2d(c, affine=False, track_running_stats=False) for c in (32, 64))
        self.norms = nn.ModuleList(norms)
        self.first, self.last = nn.Linear(9216, 128), nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        for layer, norm in zip(self.convolutions, self.norms, strict=True):
            x = _ConvolutionAndNorm.apply(x, layer.weight) if self.fused else norm(layer(x))
            x = torch.relu_(x)
        x = torch.relu_(F.max_pool2d(x, 2)).flatten(1)
        return F.log_softmax(self.last(torch.relu_(F.dropout(self.first(x)))), dim=1)


def _digits(options: Options) -> Run:
    """Two training steps with Adadelta; a batch stays allocated until the next one replaces it.

    The option ``held`` is the number of bytes that other objects of the same process use.
    """

    def build() -> tuple[nn.Module, torch.optim.Optimizer, Tensor]:
        network = _DigitNet(options["fused"]).to(DEVICE)
        held = torch.empty(options["held"], dtype=torch.uint8, device=DEVICE)
        return network, torch.optim.Adadelta(network.parameters()), held

    def step(state: tuple[nn.Module, torch.optim.Optimizer, Tensor]) -> None:
        network, optimizer, _ = state
        for _ in range(2):
            x = torch.randn(*options["x"], device=DEVICE)
            label = torch.randint(10, options["x"][:1], device=DEVICE)
            optimizer.zero_grad()
            loss = F.nll_loss(network(x), label)
            loss.backward()
            optimizer.step()

    return build, step


def _autoencoder(options: Options) -> Run:
    """One method of diffusers' ``AutoencoderKLQwenImage``, without gradients; the input exists before the step.

    The source uses release 0.37.0. Later releases normalise in fp32, which changes the fragmentation of the allocator's
    segments: up to 15 % more memory is reserved from the driver. The weights are converted on the host.
    """

    def build() -> tuple[nn.Module, Tensor]:
        from diffusers import AutoencoderKLQwenImage

        with torch.device("cpu"):
            made: Any = AutoencoderKLQwenImage()
            made.to(_dtype(options))
        network: nn.Module = made.to(DEVICE)
        return network, torch.randn(*options["x"], device=DEVICE, dtype=_dtype(options))

    def step(state: tuple[nn.Module, Tensor]) -> None:
        network, x = state
        with torch.no_grad():
            out = getattr(network, options["call"])(x)
            if options["call"] == "encode":
                out.latent_dist.mode()

    return build, step


RUNS: Mapping[str, Callable[[Options], Run]] = {
    "A": _flow_step,
    "B": _mean_step,
    "repeated conv3d": _repeated_conv3d,
    "convolution": _convolution,
    "pooled convolution": _pooled_convolution,
    "digits": _digits,
    "autoencoder": _autoencoder,
}
