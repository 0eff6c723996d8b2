"""Convolutions in slabs equal whole convolutions; tested on the CPU, where networks use no slabs by default."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ppdm.network.layers
from ppdm.network.autoencoder import Autoencoder
from ppdm.network.layers import Convolution
from ppdm.network.options import CHECKPOINTING, UNetOptions
from ppdm.network.slabs import LEAST_BYTES, MOST_SLABS, SlabbedConvolution, cut, slabs_for
from ppdm.network.unet import UNet

SMALL = UNetOptions(width=8, multipliers=(1, 2), norm_groups=4, head_channels=4, attention=(False, True))
LAYOUTS = {2: torch.channels_last, 3: torch.channels_last_3d}


def leaves(*shapes: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=dtype, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-4)], ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("activated", [False, True])
@pytest.mark.parametrize("depth", [1, 2, 5, 9])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("dims", [2, 3])
def test_slabs_give_the_results_and_gradients_of_the_whole_convolution(
    dims: int,
    kernel: int,
    stride: int,
    depth: int,
    activated: bool,
    channels_last: bool,
    dtype: torch.dtype,
    tolerance: float,
) -> None:
    shapes = (2, 6, depth, *(7, 4)[: dims - 1]), (5, 6, *[kernel] * dims), (5,), (2, 6), (2, 6)
    x, weight, bias, scale, shift = leaves(*shapes, dtype=dtype)
    with torch.no_grad():
        x += 3  # so that the normalisation subtracts a mean
    seen = x
    if activated:
        factor, offset = (v.reshape(*v.shape, *[1] * dims) for v in (scale, shift))
        seen = F.silu(F.group_norm(x, 3, eps=1e-5) * factor + offset)
    convolve: Callable[..., Tensor] = F.conv2d if dims == 2 else F.conv3d
    whole = convolve(seen, weight, bias, stride, kernel // 2)
    wanted = [x, weight, bias, *([scale, shift] if activated else [])]
    upstream = torch.linspace(-1, 1, whole.numel(), dtype=dtype).reshape(whole.shape)
    gradients = torch.autograd.grad(whole, wanted, upstream)
    layout = LAYOUTS[dims] if channels_last else torch.preserve_format
    for number in (2, 4, 8):
        modulation = (scale, shift) if activated else (None, None)
        out = SlabbedConvolution.apply(x, weight, bias, *modulation, (3, 1e-5), stride, dtype, layout, number)
        assert torch.allclose(out, whole, rtol=tolerance, atol=tolerance)
        assert out.is_contiguous()
        for found, expected in zip(torch.autograd.grad(out, wanted, upstream), gradients, strict=True):
            assert torch.allclose(found, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max() + 1))


@pytest.mark.parametrize(("depth", "kernel", "stride"), [(8, 3, 1), (9, 3, 2), (7, 1, 2), (1, 3, 2), (3, 1, 1)])
def test_slabs_cover_each_output_row_once(depth: int, kernel: int, stride: int) -> None:
    for number in (1, 2, 5, 8):
        slabs = list(cut(depth, kernel, stride, number))
        rows = [row for slab in slabs for row in range(slab.outputs.start, slab.outputs.stop)]
        assert rows == list(range((depth - 1) // stride + 1))
        assert len(slabs) == min(number, len(rows))
        assert all(slab.outputs.stop > slab.outputs.start for slab in slabs)


class OnCuda:
    """A stand-in for a CUDA tensor with the attributes that ``slabs_for`` reads."""

    is_cuda = True

    def __init__(self, *shape: int) -> None:
        self.shape = torch.Size(shape)
        self.ndim = len(shape)

    def numel(self) -> int:
        return self.shape.numel()


def test_only_large_3d_volumes_on_a_gpu_are_cut_into_slabs() -> None:
    weight = torch.empty(64, 64, 3, 3, 3, device="meta")
    edges = {16: 1, 64: 4, 256: MOST_SLABS}
    assert {edge: slabs_for(OnCuda(1, 64, edge, edge, edge), weight, 1, torch.bfloat16) for edge in edges} == edges  # type: ignore[arg-type]
    slices = torch.empty(64, 64, 3, 3, device="meta")
    assert slabs_for(OnCuda(64, 64, 256, 256), slices, 1, torch.bfloat16) == 1  # type: ignore[arg-type]
    assert 4 * LEAST_BYTES == 2 * 2 * 64 * 64**3
    assert slabs_for(torch.empty(1, 64, 256, 256, 256, device="meta"), weight, 1, torch.bfloat16) == 1


def network(options: UNetOptions, dims: int = 3) -> UNet:
    torch.manual_seed(0)
    net = UNet(2, 1, dims, options)
    for parameter in net.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return net


def answers(net: UNet, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the output without autograd, the output with autograd, and the gradient of all parameters."""
    with torch.no_grad():
        sampled = net(x, t)
    out = net(x, t)
    out.square().sum().backward()
    return sampled, out.detach(), torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])


def in_three_slabs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Convolution, bool]]:
    """Cut convolutions into three slabs; return a list that collects each such layer and whether it has gradients."""
    computed: list[tuple[Convolution, bool]] = []
    in_slabs = Convolution.in_slabs

    def recorded(self: Convolution, x: Tensor, slabs: int, *activated: Any) -> Tensor:
        assert slabs == 3
        computed.append((self, torch.is_grad_enabled()))
        return in_slabs(self, x, slabs, *activated)

    monkeypatch.setattr(ppdm.network.layers, "slabs_for", lambda *_: 3)
    monkeypatch.setattr(Convolution, "in_slabs", recorded)
    return computed


CHANGES: list[dict[str, Any]] = [
    {},
    {"adaptive": True, "resampling": "residual"},
    {"skips": "add", "channels_last": True},
]


@pytest.mark.slow
@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("change", CHANGES, ids=str)
@pytest.mark.parametrize("mode", CHECKPOINTING)
def test_a_network_in_slabs_gives_the_same_results_and_gradients(
    monkeypatch: pytest.MonkeyPatch, mode: str, change: dict[str, Any], dims: int
) -> None:
    options = replace(SMALL, checkpointing=mode, **change)
    x, t = torch.randn(2, 2, *[8] * dims, generator=torch.Generator().manual_seed(1)), torch.tensor([0.2, 0.9])
    expected = answers(network(options, dims), x, t)
    computed = in_three_slabs(monkeypatch)
    for found, wanted in zip(answers(network(options, dims), x, t), expected, strict=True):
        assert (found - wanted).norm() / wanted.norm() < 1e-5
    gradients = {gradient for _, gradient in computed}
    assert gradients == ({False} if mode == "none" else {False, True})


def test_bf16_slabs_are_as_close_to_fp32_as_whole_bf16_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    x, t = torch.randn(2, 2, 8, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([0.2, 0.9])
    options = replace(SMALL, checkpointing="conv")
    exact = answers(network(options), x, t)
    whole = answers(network(replace(options, precision="bf16")), x, t)
    monkeypatch.setattr(ppdm.network.layers, "slabs_for", lambda *_: 3)
    cut_up = answers(network(replace(options, precision="bf16")), x, t)
    for a, b, c in zip(exact, whole, cut_up, strict=True):
        assert (c - a).norm() < 1.2 * (b - a).norm()


def test_a_compiled_network_is_not_cut_into_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ppdm.network.layers, "slabs_for", lambda *_: 3)
    monkeypatch.setattr(UNet, "compile", lambda *_, **__: None)
    convolution = network(replace(SMALL, compile=True, checkpointing="conv")).stem
    assert convolution.slabs_of(torch.empty(1, 2, 8, 8, 8)) == 1
    with torch.no_grad():
        assert convolution.slabs_of(torch.empty(1, 2, 8, 8, 8)) == 1


def test_an_autoencoder_in_slabs_gives_the_same_volume(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    learned = Autoencoder(width=8, multipliers=(1, 2), attention=(False, False), norm_groups=4).build(1, UNetOptions())
    x = torch.randn(1, 1, 8, 8, 8)
    with torch.no_grad():
        expected = learned.decode(learned.encode(x))
        computed = in_three_slabs(monkeypatch)
        assert torch.allclose(learned.decode(learned.encode(x)), expected, rtol=1e-4, atol=1e-5)
    assert {layer for layer, _ in computed} == {m for m in learned.modules() if isinstance(m, Convolution)}
