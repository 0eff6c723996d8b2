from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ppdm.network.layers import Attention, Convolution, Downsample, Normalisation, Upsample, doubled, halved
from ppdm.network.options import CHECKPOINTING, UNetOptions
from ppdm.network.unet import UNet

SMALL = UNetOptions(width=8, multipliers=(1, 2), norm_groups=4, head_channels=4)


def network(options: UNetOptions = SMALL, dims: int = 3, c_in: int = 2, c_out: int = 1, seed: int = 0) -> UNet:
    """Return a network that does not return zeros: parameters that start at zero get random values."""
    torch.manual_seed(seed)
    net = UNet(c_in, c_out, dims, options)
    for parameter in net.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return net


def inputs(*shape: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator), torch.rand(shape[0], generator=generator)


def gradients(net: UNet, x: Tensor, t: Tensor) -> tuple[Tensor, list[Tensor]]:
    out = net(x, t)
    out.square().sum().backward()
    return out.detach(), [p.grad for p in net.parameters() if p.grad is not None]


# Shapes --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", [(), (False, True), (True, False)])
@pytest.mark.parametrize("skips", ["concat", "add"])
@pytest.mark.parametrize("shape", [(2, 3, 4, 8), (1, 3, 4, 6, 8), (1, 3, 2, 2, 2)])
def test_the_output_has_the_inputs_size(shape: tuple[int, ...], skips: str, attention: tuple[bool, ...]) -> None:
    net = network(replace(SMALL, skips=skips, attention=attention), dims=len(shape) - 2, c_in=3, c_out=5)
    assert net(*inputs(*shape)).shape == (shape[0], 5, *shape[2:])


@given(
    st.integers(1, 12),
    st.lists(st.integers(1, 4), min_size=1, max_size=3),
    st.integers(1, 2),
    st.integers(1, 40),
    st.sampled_from(("concat", "add")),
)
@settings(max_examples=25, deadline=None)
def test_any_width_multipliers_and_groups_give_finite_gradients(
    width: int, multipliers: list[int], blocks: int, groups: int, skips: str
) -> None:
    options = UNetOptions(width, tuple(multipliers), blocks, norm_groups=groups, skips=skips)
    size = 2 * options.multiple
    out, found = gradients(network(options, dims=2), *inputs(1, 2, size, size))
    assert out.shape == (1, 1, size, size)
    assert all(g.isfinite().all() for g in found)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(
    "options", [SMALL, replace(SMALL, skips="add", attention=(True, True), precision="bf16")], ids=str
)
def test_an_untrained_network_returns_exact_zeros(options: UNetOptions, dims: int) -> None:
    torch.manual_seed(0)
    out = UNet(2, 3, dims, options)(*inputs(2, 2, *[4] * dims))
    assert out.dtype == torch.float32
    assert not out.any()


def test_every_parameter_has_a_gradient_in_the_third_step_from_zero_output() -> None:
    net = UNet(2, 1, 2, replace(SMALL, attention=(False, True)))
    x, t = inputs(2, 2, 8, 8)
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(3):  # gradients reach the head, then the layers before it, then those before the attention's zeros
        optimiser.zero_grad()
        (net(x, t) - x[:, :1]).square().mean().backward()
        optimiser.step()
    assert all(p.grad is not None and p.grad.any() for p in net.parameters())


# Parts ---------------------------------------------------------------------------------------------------------------


def count(module: nn.Module, kind: type[nn.Module]) -> int:
    return sum(isinstance(m, kind) for m in module.modules())


@pytest.mark.parametrize(
    ("attention", "expected"),
    [
        ((), 0),
        ((False, False, False), 0),
        ((False, False, False, True), 1),
        ((False, True, False), 1 + 2 + 1),
        ((False, True, False, False), 1 + 2),
        ((True, True, True), 3 + 6 + 1),
    ],
)
def test_attention_follows_the_blocks_of_the_chosen_levels_and_the_middle(
    attention: tuple[bool, ...], expected: int
) -> None:
    net = network(replace(SMALL, multipliers=(1, 2, 2), attention=attention))
    assert count(net, Attention) == expected
    assert (count(net, Downsample), count(net, Upsample)) == (2, 2)


def test_attention_is_softmax_over_all_voxels() -> None:
    net = network(replace(SMALL, attention=(True, True)), dims=3)
    attend = next(m for m in net.modules() if isinstance(m, Attention))
    x = inputs(2, 8, 2, 4, 2)[0]
    q, k, v = (part.flatten(2) for part in attend.qkv(attend.norm(x)).chunk(3, dim=1))  # (N, C, voxels)
    heads = []
    for head in range(attend.heads):
        channels = slice(head * 4, head * 4 + 4)
        weight = torch.softmax(q[:, channels].transpose(1, 2) @ k[:, channels] / 4**0.5, dim=-1)
        heads.append((weight @ v[:, channels].transpose(1, 2)).transpose(1, 2))
    expected = x + attend.out(torch.cat(heads, dim=1).reshape(x.shape))
    assert attend.heads == 2
    assert torch.allclose(attend(x), expected, atol=1e-5)


def test_attention_starts_as_the_identity() -> None:
    net = UNet(1, 1, 3, replace(SMALL, attention=(True, True)))
    x = inputs(1, 8, 2, 2, 2)[0]
    attend = next(m for m in net.modules() if isinstance(m, Attention))
    assert torch.equal(attend(x), x)


@given(st.integers(1, 96), st.integers(1, 48))
@settings(max_examples=60, deadline=None)
def test_norm_groups_divide_the_channels_and_have_at_least_two_channels(channels: int, groups: int) -> None:
    norms = [
        m for m in UNet(1, 1, 2, UNetOptions(channels, (1,), norm_groups=groups)).modules() if type(m) is Normalisation
    ]
    for norm in norms:
        assert norm.num_channels % norm.num_groups == 0
        assert norm.num_groups <= groups
        assert norm.num_groups == 1 or norm.num_channels // norm.num_groups >= 2


def test_the_32_norm_groups_of_the_paper_are_kept_where_they_fit() -> None:
    norms = [m for m in UNet(1, 1, 2, UNetOptions(64, (1, 2))).modules() if isinstance(m, Normalisation)]
    assert {norm.num_groups for norm in norms} == {32}


@pytest.mark.parametrize("skips", ["concat", "add"])
def test_skips_transmit_the_input_if_the_middle_returns_zeros(skips: str) -> None:
    net = network(replace(SMALL, multipliers=(1, 2, 2), skips=skips), dims=2)
    x, t = inputs(1, 2, 8, 8)
    whole = net(x, t)
    for part in net.middle:
        part.register_forward_hook(lambda _, __, out: torch.zeros_like(out))
    assert not torch.allclose(net(x, t), whole)
    moved = x.clone()
    moved[0, 0, 3, 3] += 1
    assert not torch.equal(net(moved, t), net(x, t))


def test_an_added_skip_is_half_the_sum() -> None:
    net = network(replace(SMALL, skips="add"))
    h, skip = inputs(1, 8, 2, 2, 2)[0], inputs(1, 8, 2, 2, 2, seed=2)[0]
    assert torch.allclose(net._pop_joined([skip, h]), (h + skip) / 2)


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("resampling", ["convolution", "residual"])
def test_subjects_of_a_batch_are_independent_and_time_has_an_effect(resampling: str, adaptive: bool) -> None:
    net = network(replace(SMALL, resampling=resampling, adaptive=adaptive))
    x, t = inputs(3, 2, 4, 4, 4)
    together = net(x, t)
    alone = torch.cat([net(x[[k]], t[[k]]) for k in range(3)])
    assert torch.allclose(together, alone, atol=1e-5)
    assert not torch.allclose(net(x, t), net(x, 1 - t))


def test_a_channels_last_input_gives_the_same_output() -> None:
    net, (x, t) = network(), inputs(1, 2, 4, 4, 4)
    assert torch.allclose(net(x.to(memory_format=torch.channels_last_3d), t), net(x, t), atol=1e-5)


def test_several_inputs_equal_one_input_with_concatenated_channels() -> None:
    net, (x, t) = network(), inputs(2, 2, 4, 4, 4)
    assert torch.equal(net([x[:, :1], x[:, 1:]], t), net(x, t))


@pytest.mark.parametrize("parts", [(1,), (1, 2), (2, 2)])
def test_several_inputs_with_a_wrong_total_of_channels_are_refused(parts: tuple[int, ...]) -> None:
    net, (x, t) = network(), inputs(1, 3, 4, 4, 4)
    with pytest.raises(ValueError, match=r"C = 2, got shape .*, 4, 4, 4\)"):
        net([x[:, :channels] for channels in parts], t)


def test_adaptive_normalisation_is_scaled_and_shifted() -> None:
    net = network(replace(SMALL, adaptive=True))
    part = net.down[0].second
    x, scale, shift = inputs(1, 8, 4, 4, 4)[0], torch.full((1, 8, 1, 1, 1), 0.5), torch.full((1, 8, 1, 1, 1), -1.0)
    expected = part.convolution(nn.functional.silu(part.norm(x) * 1.5 - 1))
    assert torch.allclose(part(x, scale, shift), expected, atol=1e-6)


def test_residual_resampling_averages_down_and_repeats_up() -> None:
    net = network(replace(SMALL, resampling="residual"))
    assert (count(net, Downsample), count(net, Upsample)) == (0, 0)
    x = torch.arange(8.0).reshape(1, 1, 2, 2, 2)
    assert halved(x).item() == 3.5
    assert torch.equal(halved(doubled(x)), x)
    assert doubled(x[..., 0]).shape == (1, 1, 4, 4)


# Precision and memory ------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["norm", "block", "conv"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("other", [{}, {"skips": "add"}, {"adaptive": True, "resampling": "residual"}], ids=str)
def test_checkpointing_gives_bit_identical_results_and_gradients(
    other: dict[str, Any], precision: str, mode: str
) -> None:
    options = replace(SMALL, attention=(False, True), precision=precision, **other)
    x, t = inputs(2, 2, 8, 8, 8)
    out, expected = gradients(network(options), x, t)
    again, found = gradients(network(replace(options, checkpointing=mode)), x, t)
    assert torch.equal(again, out)
    assert len(found) == len(expected) > 0
    for g, e in zip(found, expected, strict=True):
        assert torch.equal(g, e)


def saved_bytes(options: UNetOptions) -> int:
    """Return the bytes that autograd saves for the backward pass, without parameters; shared storage counts once."""
    net = network(options)
    own = {p.untyped_storage().data_ptr() for p in net.parameters()}
    kept: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        if x.untyped_storage().data_ptr() not in own:
            kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        out = net(*inputs(1, 2, 16, 16, 16))
    assert out.requires_grad
    return sum(kept.values())


def test_checkpointing_and_bf16_save_fewer_bytes_for_the_backward_pass() -> None:
    none, norm, block, conv = (saved_bytes(replace(SMALL, checkpointing=mode)) for mode in CHECKPOINTING)
    assert conv <= block < norm < 0.6 * none
    assert saved_bytes(replace(SMALL, precision="bf16")) < 0.6 * none


def switched(options: UNetOptions, change: dict[str, Any], x: Tensor, t: Tensor) -> tuple[Tensor, ...]:
    """Return outputs and gradients of a network and of another with the same weights and changed options."""
    dims = x.ndim - 2
    plain = network(options, dims)
    other = UNet(2, 1, dims, replace(options, **change))
    other.load_state_dict(plain.state_dict())
    (out, expected), (again, found) = gradients(plain, x, t), gradients(other, x, t)
    return out, again, *(torch.cat([g.flatten() for g in each]) for each in (expected, found))


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("checkpointing", CHECKPOINTING)
def test_channels_last_gives_the_same_results_in_another_layout(checkpointing: str, dims: int) -> None:
    x, t = inputs(2, 2, *[8] * dims)
    change = {"channels_last": True, "checkpointing": checkpointing}
    out, again, expected, found = switched(replace(SMALL, attention=(False, True)), change, x, t)
    assert again.is_contiguous()
    assert torch.allclose(again, out, rtol=1e-5, atol=1e-5)
    assert (found - expected).norm() / expected.norm() < 1e-5
    layout = torch.channels_last if dims == 2 else torch.channels_last_3d
    convolution = UNet(2, 1, dims, replace(SMALL, **change)).down[0].first.convolution
    shown: list[Tensor] = []
    convolution.convolve = lambda x, *rest: shown.append(x) or x[:, :1]  # type: ignore[func-returns-value]
    convolution(inputs(2, 8, *[8] * dims)[0])  # two volumes, since one small volume takes another path
    assert convolution.weight.is_contiguous(memory_format=layout)
    assert shown[0].is_contiguous(memory_format=layout)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # PyTorch's compiler warns about its own code
@pytest.mark.parametrize("checkpointing", ["none", "conv"])
def test_a_compiled_network_gives_the_same_results(monkeypatch: pytest.MonkeyPatch, checkpointing: str) -> None:
    """The backend runs the graph as it is, so no C++ compiler is needed."""
    compiled: list[nn.Module] = []

    def compile_quickly(net: nn.Module, **options: Any) -> None:
        nn.Module.compile(net, backend="aot_eager", **options)
        compiled.append(net)

    monkeypatch.setattr(UNet, "compile", compile_quickly)
    x, t = inputs(1, 2, 4, 4)
    change = {"compile": True, "checkpointing": checkpointing}
    out, again, expected, found = switched(replace(SMALL, multipliers=(1,)), change, x, t)
    assert len(compiled) == 1
    assert torch.allclose(again, out, rtol=1e-5, atol=1e-5)
    assert (found - expected).norm() / expected.norm() < 1e-5


@pytest.mark.parametrize("attention", [(), (False, True)])
def test_bf16_is_close_to_fp32(attention: tuple[bool, ...]) -> None:
    options = replace(SMALL, attention=attention)
    x, t = inputs(2, 2, 8, 8, 8)
    out, expected = gradients(network(options), x, t)
    rough, found = gradients(network(replace(options, precision="bf16")), x, t)
    assert rough.dtype == torch.float32
    assert 0 < (rough - out).norm() / out.norm() < 0.03
    whole, other = (torch.cat([g.flatten() for g in found_or_expected]) for found_or_expected in (expected, found))
    assert other.dtype == torch.float32
    assert (other - whole).norm() / whole.norm() < 0.05


@pytest.mark.parametrize(
    ("shape", "stride"),
    [
        ((1, 32, 2, 4, 4), 1),
        ((1, 32, 2, 2, 2), 1),
        ((1, 32, 4, 4, 4), 1),
        ((1, 32, 3, 4, 1), 2),  # as in the last layer of a discriminator, if the volume is small
        ((1, 32, 4, 1, 3), 2),
        ((1, 32, 1, 4, 1), 2),
        ((1, 32, 4, 4, 4), 2),
    ],
)
def test_bf16_weight_gradients_are_close_to_fp32_in_every_shape(shape: tuple[int, ...], stride: int) -> None:
    x = inputs(*shape)[0]
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(0)
        convolution = Convolution(3, 32, 32, 3, stride, dtype)
        out = convolution(x)
        assert out.dtype == dtype
        out.float().square().sum().backward()
        assert convolution.weight.grad is not None
        found.append(convolution.weight.grad)
    assert (found[1] - found[0]).norm() / found[0].norm() < 0.02


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_outer_autocast_changes_nothing(precision: str) -> None:
    net, (x, t) = network(replace(SMALL, precision=precision, attention=(False, True))), inputs(1, 2, 8, 8, 8)
    out, expected = gradients(net, x, t)
    net.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        again = net(x, t)
    again.square().sum().backward()
    found = [p.grad for p in net.parameters() if p.grad is not None]
    assert again.dtype == torch.float32
    assert torch.equal(again, out)
    assert all(torch.equal(g, e) for g, e in zip(found, expected, strict=True))


def test_the_network_runs_on_the_meta_device() -> None:
    with torch.device("meta"):
        out = UNet(2, 3, 3, replace(SMALL, attention=(False, True), checkpointing="block"))(
            torch.empty(1, 2, 256, 256, 256), torch.empty(1)
        )
    assert (out.device.type, out.shape) == ("meta", (1, 3, 256, 256, 256))


def test_a_float32_state_dict_loads_in_every_mode() -> None:
    state = network().state_dict()
    assert all(value.dtype == torch.float32 for value in state.values())
    for change in ({"precision": "bf16"}, {"checkpointing": "block"}, {"channels_last": True}):
        other = replace(SMALL, **change)
        UNet(2, 1, 3, other).load_state_dict(state)


# Refusals ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"width": 0}, "width must be a positive integer up to 65536, got 0"),
        ({"width": 8.0}, "width .* got 8.0"),
        ({"residual_blocks": -1}, "residual_blocks .* got -1"),
        ({"head_channels": True}, "head_channels .* got True"),
        ({"norm_groups": 0}, "norm_groups"),
        ({"multipliers": ()}, r"multipliers .* got \(\)"),
        ({"multipliers": (1, 0)}, r"multipliers .* got \(1, 0\)"),
        ({"multipliers": [1, 2]}, r"multipliers must be a tuple .* got \[1, 2\]"),
        ({"attention": (True,)}, "attention has 1 levels and multipliers 4"),
        ({"attention": "abcd"}, "attention must be a tuple of True and False.* got 'abcd'"),
        ({"attention": (0, 0, 0, 1)}, "attention must be a tuple of True and False"),
        ({"skips": "mul"}, "skips must be one of concat, add, got 'mul'"),
        ({"resampling": "fft"}, "resampling must be one of convolution, residual, got 'fft'"),
        ({"precision": "fp8"}, "precision must be one of fp32, bf16, fp16, got 'fp8'"),
        ({"checkpointing": "all"}, "checkpointing must be one of none, norm, block, conv, got 'all'"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        UNetOptions(**options)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: UNet(1, 1, 1), "2 or 3 spatial dimensions, got 1"),
        (lambda: UNet(1, 1, 3, replace(SMALL, width=7, attention=(True, True), head_channels=2)), "7 channels"),
        (lambda: network()(*inputs(1, 2, 4, 4)), r"N, C, D, H, W\) with C = 2, got shape \(1, 2, 4, 4\)"),
        (lambda: network()(*inputs(1, 3, 4, 4, 4)), r"C = 2, got shape \(1, 3, 4, 4, 4\)"),
        (lambda: network(dims=2)(*inputs(1, 2, 4, 4, 4)), r"\(N, C, H, W\)"),
        (lambda: network()(*inputs(1, 2, 4, 5, 4)), r"\(4, 5, 4\) must be multiples of 2.*pad_to_multiple\(x, 2\)"),
    ],
)
def test_unsuitable_dimensions_widths_and_inputs_are_refused(make: Callable[[], object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make()


# Against another implementation of the same topology -----------------------------------------------------------------


def monai_unet(channels: tuple[int, ...], residual_blocks: int, groups: int) -> Any:
    nets = pytest.importorskip("monai.networks.nets", reason="MONAI is the reference here")
    return nets.DiffusionModelUNet(
        spatial_dims=3,
        in_channels=2,
        out_channels=1,
        num_res_blocks=residual_blocks,
        channels=channels,
        attention_levels=(False,) * len(channels),
        norm_num_groups=groups,
        with_conditioning=False,
    )


def shapes(net: nn.Module) -> Counter[tuple[int, ...]]:
    return Counter(tuple(p.shape) for p in net.parameters())


@pytest.mark.parametrize("residual_blocks", [1, 2])
def test_parameter_shapes_equal_those_of_monai(residual_blocks: int) -> None:
    with torch.device("meta"):
        ours = UNet(2, 1, 3, UNetOptions(64, (1, 2, 2, 4), residual_blocks))
        theirs = monai_unet((64, 128, 128, 256), residual_blocks, groups=32)
    # MONAI has attention in the middle even if no level has it; that is the only difference.
    assert shapes(theirs) - shapes(theirs.middle_block.attention) == shapes(ours)
    assert sum(p.numel() for p in ours.parameters()) == {1: 32_298_241, 2: 46_631_745}[residual_blocks]


def test_the_output_equals_that_of_monai_with_the_same_weights() -> None:
    ours = network(UNetOptions(16, (1, 2, 3), residual_blocks=2, norm_groups=8))
    theirs = monai_unet((16, 32, 48), residual_blocks=2, groups=8)
    for parameter in theirs.middle_block.attention.parameters():
        nn.init.zeros_(parameter)  # makes the attention the identity
    for module in theirs.modules():
        if isinstance(module, nn.GroupNorm):
            module.eps = 1e-5
    attention = {id(p) for p in theirs.middle_block.attention.parameters()}
    # Both list their parameters in the order of computation, but MONAI lists the stem before the time embedding.
    stem_first = [ours.stem, ours.time, ours.down, ours.middle, ours.up, ours.head]
    with torch.no_grad():
        mine = [p for part in stem_first for p in part.parameters()]
        for p, q in zip(mine, (q for q in theirs.parameters() if id(q) not in attention), strict=True):
            q.copy_(p)
    x, t = inputs(2, 2, 8, 8, 8)
    assert torch.allclose(theirs(x, 1000 * t), ours(x, t), atol=1e-4)
    assert ours(x, t).std() > 0.1
