"""Networks and steps of the published timings: each record names one of :data:`RUNS` and its options.

The networks follow the configurations in the sources; no code is copied. Some are MONAI's, which is a development
dependency, so the functions import it when they run.
"""

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DEVICE = "cuda"

Options = Mapping[str, Any]
Step = Callable[[Any], Any]
Run = tuple[Callable[[], Any], Step]  # `build` and `step` as for `predict_peak`

_PLAN = ("in_channels", "classes", "strides", "kernels")  # options of a network planned by nnU-Net


class PlannedUNet(nn.Module):
    """A plain U-Net like nnU-Net's: two convolutions per stage, strided in the encoder, transposed in the decoder.

    Args:
        in_channels, classes: channels of input and output.
        strides: stride of each stage except the first.
        kernels: kernel size of each stage.
        bias: whether convolutions have a bias; transposed convolutions and heads have the opposite.
        heads: whether every decoder stage has an output (deep supervision), or only the finest one.
        norm: creates the normalisation layer for a number of channels.
    """

    def __init__(
        self,
        in_channels: int,
        classes: int,
        strides: Sequence[Sequence[int]],
        kernels: Sequence[Sequence[int]],
        *,
        bias: bool,
        heads: bool,
        norm: Callable[[int], nn.Module],
    ) -> None:
        super().__init__()
        channels = [min(32 * 2**level, 320) for level in range(len(kernels))]

        def conv_block(reads: int, writes: int, kernel: Sequence[int], stride: Sequence[int]) -> nn.Sequential:
            padding = [k // 2 for k in kernel]
            layers: list[nn.Module] = []
            for first, steps in ((reads, stride), (writes, [1] * 3)):
                conv = nn.Conv3d(first, writes, _three(kernel), _three(steps), _three(padding), bias=bias)
                layers += [conv, norm(writes), nn.LeakyReLU(0.01, inplace=True)]
            return nn.Sequential(*layers)

        down = zip([in_channels, *channels], channels, kernels, [[1] * 3, *strides], strict=False)
        self.down = nn.ModuleList(conv_block(*each) for each in down)
        self.up, self.merge = nn.ModuleList(), nn.ModuleList()
        for at in reversed(range(len(strides))):
            stride = _three(strides[at])
            self.up.append(nn.ConvTranspose3d(channels[at + 1], channels[at], stride, stride, bias=not bias))
            self.merge.append(conv_block(2 * channels[at], channels[at], kernels[at + 1], [1] * 3))
        levels = range(len(strides)) if heads else [0]
        self.heads = nn.ModuleList(nn.Conv3d(channels[at], classes, 1, bias=not bias) for at in reversed(levels))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the outputs, finest first."""
        skips = []
        for stage in self.down:
            x = stage(x)
            skips.append(x)
        outputs: list[Tensor] = []
        for up, merge, skip in zip(self.up, self.merge, skips[-2::-1], strict=True):
            x = merge(torch.cat((up(x), skip), dim=1))
            if len(self.heads) > 1:
                outputs.append(self.heads[len(outputs)](x))
        return outputs[::-1] or [self.heads[0](x)]


def _three(values: Sequence[int]) -> tuple[int, int, int]:
    d, h, w = values
    return d, h, w


def _dice_and_entropy(output: Tensor, target: Tensor) -> Tensor:
    """Sum of soft Dice and cross entropy as in the first version of nnU-Net, with four products of masks."""
    probability = torch.softmax(output, 1)
    axes = [0, *range(2, output.dim())]
    with torch.no_grad():
        one_hot = torch.zeros(output.shape, device=DEVICE)
        one_hot.scatter_(1, target.long(), 1)
    products = (
        probability * one_hot,
        probability * (1 - one_hot),
        (1 - probability) * one_hot,
        (1 - probability) * (1 - one_hot),
    )
    hit, false, missed, _ = (x.sum(axes) for x in products)
    dice = (2 * hit + 1e-5) / (2 * hit + false + missed + 1e-5)
    return F.cross_entropy(output, target[:, 0].long()) - dice[1:].mean()


def _nnunet(options: Options, what: str) -> Run:
    """A training or validation iteration of the first version of nnU-Net: deep supervision, gradient clipping."""
    size, batch = options["shape"], options["batch"]

    def build() -> Any:
        plan = [options[name] for name in _PLAN]
        network = PlannedUNet(*plan, bias=True, heads=True, norm=lambda c: nn.InstanceNorm3d(c, affine=True)).to(DEVICE)
        x = torch.rand(batch, options["in_channels"], *size, device=DEVICE)
        sizes = [list(size)]
        for stride in options["strides"][:-1]:
            sizes.append([n // s for n, s in zip(sizes[-1], stride, strict=True)])
        targets = [torch.rand(batch, 1, *each, device=DEVICE) for each in sizes]
        optimizer = torch.optim.SGD(network.parameters(), 0.01, 0.99, weight_decay=3e-5, nesterov=True, foreach=False)
        return network, x, targets, optimizer, torch.amp.GradScaler(DEVICE)

    def loss_of(network: nn.Module, x: Tensor, targets: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        with torch.autocast(DEVICE, torch.float16):
            outputs = network(x)
            weights = [0.5**at for at in range(len(outputs) - 1)]
            parts = [w * _dice_and_entropy(y, t) for w, y, t in zip(weights, outputs, targets, strict=False)]
            return outputs, torch.stack(parts).sum()

    def train(state: Any) -> None:
        network, x, targets, optimizer, scaler = state
        optimizer.zero_grad()
        scaler.scale(loss_of(network, x, targets)[1]).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(network.parameters(), 12)
        scaler.step(optimizer)
        scaler.update()

    def validate(state: Any) -> None:
        network, x, targets, optimizer, _ = state
        optimizer.zero_grad()
        with torch.no_grad():
            outputs, _loss = loss_of(network, x, targets)
            labels, wanted = torch.softmax(outputs[0], 1).argmax(1), targets[0][:, 0]
            for c in range(1, options["classes"]):
                for found, true in ((labels == c, wanted == c), (labels == c, wanted != c), (labels != c, wanted == c)):
                    (found.float() * true.float()).sum()

    return build, {"train": train, "validate": validate}[what]


def _nvidia(options: Options, what: str) -> Run:
    """A training step with Adam, or a forward pass, of NVIDIA's nnU-Net.

    Batch normalisation replaces NVIDIA's fused normalisation of channels-last tensors; its memory traffic is equal.
    """
    last = options.get("channels_last", False)
    layout = torch.channels_last_3d if last else torch.contiguous_format

    def norm(channels: int) -> nn.Module:
        return nn.BatchNorm3d(channels) if options.get("fused_norm") else nn.InstanceNorm3d(channels, affine=True)

    def build() -> Any:
        plan = [options[name] for name in _PLAN]
        network = PlannedUNet(*plan, bias=False, heads=False, norm=norm).to(DEVICE)
        if last:
            network.to(memory_format=layout)  # type: ignore[call-overload]
        x = torch.rand(options["batch"], options["in_channels"], *options["shape"], device=DEVICE)
        target = torch.zeros(options["batch"], 1, *options["shape"], device=DEVICE)
        optimizer = torch.optim.Adam(network.parameters(), 8e-4, fused=True)
        return network, x.to(memory_format=layout), target, optimizer

    def train(state: Any) -> None:
        network, x, target, optimizer = state
        optimizer.zero_grad()
        with _autocast(options):
            make = import_module("monai.losses").DiceCELoss
            loss = make(include_background=False, softmax=True, to_onehot_y=True, batch=True)
            value = loss(network(x)[0], target)
        value.backward()
        optimizer.step()

    def forward(state: Any) -> None:
        with torch.no_grad(), _autocast(options):
            state[0].eval()(state[1])

    return build, {"train": train, "forward": forward}[what]


def _autocast(options: Options) -> torch.autocast:
    half = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(options["precision"])
    return torch.autocast(DEVICE, half or torch.float16, enabled=half is not None)


def _maisi_diffusion(options: Options, _: str) -> Run:
    """One evaluation of MAISI's diffusion network and of its ControlNet."""

    def build() -> Any:
        from monai.apps.generation.maisi.networks.controlnet_maisi import ControlNetMaisi
        from monai.apps.generation.maisi.networks.diffusion_model_unet_maisi import DiffusionModelUNetMaisi

        common: dict[str, Any] = {
            "spatial_dims": 3,
            "in_channels": 4,
            "num_channels": [64, 128, 256, 512],
            "attention_levels": [False, False, True, True],
            "num_head_channels": [0, 0, 32, 32],
            "num_res_blocks": 2,
            "use_flash_attention": True,
        }
        unet = DiffusionModelUNetMaisi(
            out_channels=4,
            include_top_region_index_input=True,
            include_bottom_region_index_input=True,
            include_spacing_input=True,
            **common,
        )
        control = ControlNetMaisi(
            conditioning_embedding_in_channels=8, conditioning_embedding_num_channels=[8, 32, 64], **common
        )
        latent = torch.randn(1, 4, *options["latent_size"], device=DEVICE)
        mask = torch.randn(1, 8, *(4 * n for n in options["latent_size"]), device=DEVICE, dtype=torch.float16)
        return unet.to(DEVICE).eval(), control.to(DEVICE).eval(), latent, mask

    def step(state: Any) -> None:
        unet, control, x, mask = state
        region, spacing = torch.zeros(1, 4, device=DEVICE).half(), torch.ones(1, 3, device=DEVICE).half()
        with torch.no_grad(), torch.autocast(DEVICE, torch.float16):
            t = torch.ones(1, device=DEVICE)
            down, middle = control(x=x, timesteps=t, controlnet_cond=mask)
            unet(
                x=x,
                timesteps=t,
                spacing_tensor=spacing,
                top_region_index_tensor=region,
                bottom_region_index_tensor=region,
                down_block_additional_residuals=down,
                mid_block_additional_residual=middle,
            )

    return build, step


def _maisi_decoder(options: Options, _: str) -> Run:
    """The decoder of MAISI's autoencoder on one window of the latent."""

    def build() -> Any:
        from monai.apps.generation.maisi.networks.autoencoderkl_maisi import AutoencoderKlMaisi

        network = AutoencoderKlMaisi(
            spatial_dims=3,
            in_channels=1,
            out_channels=1,
            latent_channels=4,
            num_channels=[64, 128, 256],
            num_res_blocks=[2, 2, 2],
            norm_num_groups=32,
            norm_eps=1e-6,
            attention_levels=[False, False, False],
            with_encoder_nonlocal_attn=False,
            with_decoder_nonlocal_attn=False,
            use_checkpointing=False,
            use_convtranspose=False,
            norm_float16=True,
            num_splits=options["splits"],
            dim_split=1,
        ).to(DEVICE)
        return network.eval(), torch.randn(1, 4, *options["window"], device=DEVICE)

    def step(state: Any) -> None:
        network, z = state
        with torch.no_grad(), torch.autocast(DEVICE, torch.float16):
            network.decode_stage_2_outputs(z)

    return build, step


# Networks of MONAI's model zoo by the name in the records: class of `monai.networks.nets`, and its arguments.
_ZOO: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "unet": (
        "UNet",
        {"channels": (16, 32, 64, 128, 256), "strides": (2, 2, 2, 2), "num_res_units": 2, "norm": "batch"}
        | {"spatial_dims": 3, "in_channels": 1, "out_channels": 2},
    ),
    "segresnet": (
        "SegResNet",
        {"init_filters": 32, "blocks_down": (1, 2, 2, 4), "blocks_up": (1, 1, 1), "dropout_prob": 0.2}
        | {"spatial_dims": 3, "in_channels": 1, "out_channels": 105},
    ),
    "swin": ("SwinUNETR", {"in_channels": 1, "out_channels": 14, "feature_size": 48, "spatial_dims": 3}),
    "dynunet": (
        "DynUNet",
        {"kernel_size": [3] * 6, "strides": [1, 2, 2, 2, 2, [2, 2, 1]], "upsample_kernel_size": [2] * 4 + [[2, 2, 1]]}
        | {"norm_name": "instance", "res_block": True, "spatial_dims": 3, "in_channels": 3, "out_channels": 2},
    ),
    "diffusion": (
        "DiffusionModelUNet",
        {"channels": [256, 256, 512], "attention_levels": [False, True, True], "num_head_channels": [0, 64, 64]}
        | {"num_res_blocks": 2, "include_fc": False, "use_combined_linear": False}
        | {"spatial_dims": 3, "in_channels": 8, "out_channels": 8},
    ),
    "autoencoder": (
        "AutoencoderKL",
        {"channels": [64, 128, 256], "num_res_blocks": [2, 2, 2], "attention_levels": [False] * 3, "latent_channels": 8}
        | {"with_encoder_nonlocal_attn": False, "with_decoder_nonlocal_attn": False, "include_fc": False}
        | {"spatial_dims": 3, "in_channels": 1, "out_channels": 1, "norm_num_groups": 32},
    ),
}


def _monai(options: Options, _: str) -> Run:
    """A forward pass of a network of MONAI's model zoo."""
    name, arguments = _ZOO[options["network"]]

    def build() -> Any:
        made: nn.Module = getattr(import_module("monai.networks.nets"), name)(**arguments)
        return made.to(DEVICE).eval(), torch.randn(1, options["in_channels"], *options["shape"], device=DEVICE)

    def step(state: Any) -> None:
        network, x = state
        times = [torch.zeros(1, device=DEVICE)] if options["network"] == "diffusion" else []
        with torch.no_grad(), _autocast(options):
            network(x, *times)

    return build, step


def _conv3d(options: Options, _: str) -> Run:
    """One call of a convolution whose weights require gradients."""
    dtype = {"fp16": torch.float16, "fp32": torch.float32}[options["precision"]]

    def build() -> Any:
        layer = nn.Conv3d(*options["layer"]).to(DEVICE, dtype)
        size = (options["batch"], options["layer"][0], *options["shape"])
        return layer, torch.randn(*size, device=DEVICE, dtype=dtype)

    return build, lambda state: state[0](state[1])


RUNS: Mapping[str, Callable[[Options, str], Run]] = {
    "nnunet": _nnunet,
    "nvidia nnunet": _nvidia,
    "maisi diffusion": _maisi_diffusion,
    "maisi decoder": _maisi_decoder,
    "monai": _monai,
    "conv3d": _conv3d,
}
