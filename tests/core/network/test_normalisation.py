"""Group normalisation in channels-last layout: the same gradients as PyTorch's in the default layout."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ppdm.network.layers import Convolution
from ppdm.network.normalisation import Normalisation, add_to_channels, channels_last_format

SIZES = [(1, 6, 4, 6), (2, 6, 3, 5), (1, 6, 4, 5, 6), (3, 6, 2, 4, 3), (2, 6, 3, 3, 1)]
TOLERANCES = [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)]


def gradients(norm: Normalisation, x: Tensor, slope: Tensor) -> list[Tensor]:
    x = x.detach().requires_grad_()
    out = norm(x)
    out.backward(slope)
    found = [x.grad, norm.weight.grad, norm.bias.grad]
    norm.zero_grad()
    return [out.detach(), *(each for each in found if each is not None)]


@pytest.mark.parametrize("gradient_is_innermost", [True, False])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
def test_the_layout_does_not_change_the_gradients(
    size: tuple[int, ...], dtype: torch.dtype, tolerance: float, gradient_is_innermost: bool
) -> None:
    torch.manual_seed(0)
    norm = Normalisation(3, 6).to(dtype)
    with torch.no_grad():
        norm.weight.normal_()
        norm.bias.normal_()
    x, slope = (2 + 3 * torch.randn(size)).to(dtype), torch.randn(size).to(dtype)
    expected = gradients(norm, x, slope)
    layout = channels_last_format(len(size))
    if gradient_is_innermost:
        slope = slope.to(memory_format=layout)
    found = gradients(norm, x.to(memory_format=layout), slope)
    assert len(found) == 4
    for one, other in zip(found, expected, strict=True):
        assert (one - other).norm() <= tolerance * other.norm()
    for large in found[:2]:
        assert large.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("mean", [0, 3, 100])
def test_channels_last_is_as_accurate_as_the_default_layout_for_a_large_mean(mean: float) -> None:
    torch.manual_seed(0)
    x, slope = ((each + torch.randn(1, 4, 8, 8, 8)).bfloat16() for each in (mean, 0))
    exact = gradients(Normalisation(2, 4).double(), x.double(), slope.double())
    norm, layout = Normalisation(2, 4).bfloat16(), channels_last_format(5)
    usual = gradients(norm, x, slope)
    found = gradients(norm, x.to(memory_format=layout), slope.to(memory_format=layout))
    for one, other, truth in zip(found[1:], usual[1:], exact[1:], strict=True):
        assert (one - truth).norm() <= 1.5 * (other - truth).norm() + 0.01 * truth.norm()


@pytest.mark.parametrize("size", SIZES)
def test_a_value_for_each_channel_is_added_in_any_layout(size: tuple[int, ...]) -> None:
    x, values = torch.randn(size), torch.randn(*size[:2], *[1] * (len(size) - 2))
    for layout in (torch.contiguous_format, channels_last_format(len(size))):
        out = x.clone(memory_format=layout)
        add_to_channels(out, values)
        assert torch.equal(out, x + values)


def test_bf16_convolutions_on_the_cpu_use_channels_last() -> None:
    layer = Convolution(3, 2, 4, kernel=3, stride=1, dtype=torch.bfloat16)
    x = torch.randn(1, 2, 4, 4, 4)
    out = layer(x)
    assert out.is_contiguous(memory_format=torch.channels_last_3d)
    expected = F.conv3d(x.bfloat16(), layer.weight.bfloat16(), layer.bias.bfloat16(), padding=1)
    assert torch.allclose(out, expected, atol=1e-2)


@pytest.mark.parametrize("layout", [torch.preserve_format, torch.channels_last_3d])
def test_a_compiled_bf16_convolution_returns_the_default_layout(
    monkeypatch: pytest.MonkeyPatch, layout: torch.memory_format
) -> None:
    monkeypatch.setattr("torch.compiler.is_compiling", lambda: True)
    layer = Convolution(3, 2, 4, kernel=3, stride=1, dtype=torch.bfloat16, layout=layout)
    assert layer(torch.randn(1, 2, 4, 4, 4).to(memory_format=torch.channels_last_3d)).is_contiguous()
