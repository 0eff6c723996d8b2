"""Small convolutions by oneDNN: they equal PyTorch's own path, and only suitable convolutions use them."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ppdm.network import small_convolution
from ppdm.network.layers import Convolution
from ppdm.network.options import UNetOptions
from ppdm.network.small_convolution import SmallConvolution, convolve, is_small
from ppdm.network.unet import UNet


def layer(c_in: int = 6, c_out: int = 4, kernel: int = 3, stride: int = 1) -> Convolution:
    torch.manual_seed(0)
    return Convolution(3, c_in, c_out, kernel, stride, torch.float32)


def with_gradients(apply: object, x: Tensor, convolution: Convolution) -> list[Tensor]:
    x = x.clone().requires_grad_()
    out = apply(x, convolution.weight, convolution.bias, convolution.stride, convolution.padding)
    torch.manual_seed(1)
    return [out, *torch.autograd.grad(out, [x, convolution.weight, convolution.bias], torch.randn_like(out))]


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("shape", [(8, 8, 8), (4, 7, 5), (12, 3, 1)])
def test_results_and_gradients_equal_those_of_pytorch(shape: tuple[int, ...], stride: int) -> None:
    convolution = layer(stride=stride)
    x = torch.randn(1, 6, *shape)
    assert is_small(x, convolution.weight, stride)
    ours, theirs = (with_gradients(apply, x, convolution) for apply in (SmallConvolution.apply, F.conv3d))
    for one, other in zip(ours, theirs, strict=True):
        assert one.shape == other.shape
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        out = convolution(x)
    assert torch.equal(out, ours[0])


@pytest.mark.parametrize(
    ("x", "weight"),
    [
        (torch.empty(2, 16, 8, 8, 8), torch.empty(4, 16, 3, 3, 3)),
        (torch.empty(1, 16, 48, 48, 4), torch.empty(4, 16, 3, 3, 3)),
        (torch.empty(1, 16, 8, 8, 8), torch.empty(4, 16, 1, 1, 1)),
        (torch.empty(1, 16, 5, 8, 8), torch.empty(4, 16, 3, 3, 3)),
        (torch.empty(1, 16, 8, 8), torch.empty(4, 16, 3, 3)),
        (torch.empty(1, 16, 8, 8, 8, dtype=torch.bfloat16), torch.empty(4, 16, 3, 3, 3, dtype=torch.bfloat16)),
        (torch.empty(1, 16, 8, 8, 8, device="meta"), torch.empty(4, 16, 3, 3, 3, device="meta")),
    ],
    ids=["batch", "large", "one voxel", "odd depth", "2-D", "bf16", "another device"],
)
def test_other_convolutions_are_left_to_pytorch(x: Tensor, weight: Tensor) -> None:
    assert not is_small(x, weight, 1)


def operators(work: object) -> set[str]:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        work()
    return {event.key for event in profile.key_averages()}


def test_pytorch_takes_its_slow_path_where_this_module_replaces_it() -> None:
    """If this fails because PyTorch now uses oneDNN here, the module can be removed."""
    convolution, x = layer(16, 16), torch.randn(1, 16, 8, 8, 8)
    with torch.no_grad():
        assert "aten::slow_conv3d_forward" in operators(lambda: F.conv3d(x, convolution.weight, padding=1))
        ours = operators(lambda: convolution(x))
    assert "aten::mkldnn_convolution" in ours
    assert "aten::slow_conv3d_forward" not in ours
    just_large = torch.randn(1, 16, 40, 33, 2)
    assert not is_small(just_large, convolution.weight, 1)
    with torch.no_grad():
        assert "aten::mkldnn_convolution" in operators(lambda: F.conv3d(just_large, convolution.weight, padding=1))


def test_only_input_and_weight_are_saved_for_the_backward_pass() -> None:
    convolution, x = layer(), torch.randn(1, 6, 8, 8, 8, requires_grad=True)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        convolution(x)
    assert [t.data_ptr() for t in kept] == [x.data_ptr(), convolution.weight.data_ptr()]


@pytest.mark.parametrize("checkpointing", ["none", "conv"])
def test_a_network_gives_the_same_results_and_gradients_by_both_paths(
    checkpointing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = UNetOptions(width=8, multipliers=(1, 2), residual_blocks=1, norm_groups=4, checkpointing=checkpointing)
    torch.manual_seed(0)
    net = UNet(2, 1, 3, options)
    x, t = torch.randn(1, 2, 8, 8, 8), torch.tensor([0.3])

    def results() -> list[Tensor]:
        net.zero_grad()
        out = net(x, t)
        out.square().sum().backward()
        return [out.detach(), *(p.grad.clone() for p in net.parameters() if p.grad is not None)]

    ours = results()
    for module in ("small_convolution", "layers"):
        monkeypatch.setattr(f"ppdm.network.{module}.is_small", lambda *_: False)
    theirs = results()
    assert len(ours) == len(theirs) > 10
    for one, other in zip(ours, theirs, strict=True):
        assert (one - other).norm() <= 1e-4 * other.norm() + 1e-6
    assert small_convolution.is_small is not is_small  # the second run took the other path


def test_without_autograd_a_large_volume_gives_the_result_of_pytorch() -> None:
    convolution, x = layer(16, 4), torch.randn(1, 16, 40, 33, 2)
    with torch.no_grad():
        ours = convolve(x, convolution.weight, convolution.bias, 1, 1)
        assert torch.equal(ours, F.conv3d(x, convolution.weight, convolution.bias, padding=1))
