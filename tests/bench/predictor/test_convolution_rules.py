"""Buffers of convolutions on CUDA: sizes computed by hand, and which way a convolution goes."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppdm_bench.predictor import Peak, Target, predict_peak
from ppdm_bench.predictor.convolution_rules import CHANNELS_LAST_COPIES, COLUMNS, LAYOUT_COPIES
from ppdm_bench.predictor.timeline import Block

GIB = 2**30
AMPERE = Target(torch="2.8.0", cudnn=(9, 10), compute_capability=(8, 0))
TURING = Target(torch="2.8.0", cudnn=(9, 10), compute_capability=(7, 5))
LEAVES = Target(torch="2.9.1", cudnn=(9, 10), compute_capability=(8, 0))

# Input (2, 4, 8, 8, 8) and weight (8, 4, 3, 3, 3), output (2, 8, 8, 8, 8): elements of each.
X, W, Y = 2 * 4 * 8**3, 8 * 4 * 27, 2 * 8 * 8**3


def peak(target: Target, backward: bool = False, **layer: Any) -> Peak:
    """One convolution: `layer` may change its dimensions, dtype, channels, kernel, groups, layout and transposition."""
    o = {"dims": 3, "dtype": torch.bfloat16, "c_in": 4, "c_out": 8, "kernel": 3, "groups": 1, "last": "", "t": False}
    o |= layer
    kind = getattr(nn, f"Conv{'Transpose' if o['t'] else ''}{o['dims']}d")

    def build() -> nn.Module:
        made = kind(o["c_in"], o["c_out"], o["kernel"], padding=o["kernel"] // 2, groups=o["groups"], dtype=o["dtype"])
        return made.to(memory_format=last(o["dims"])) if "w" in o["last"] else made

    def step(made: nn.Module) -> None:
        x = torch.randn(2, o["c_in"], *[8] * o["dims"], dtype=o["dtype"])
        x = x.to(memory_format=last(o["dims"])) if "x" in o["last"] else x
        y = made(x.requires_grad_(backward))
        if backward:
            y.backward(torch.zeros_like(y))

    return predict_peak(build, step, 1, target)


def last(dims: int) -> torch.memory_format:
    return torch.channels_last if dims == 2 else torch.channels_last_3d


def buffers(found: Peak, name: str) -> list[Block]:
    """The buffers of a rule, in order."""
    assert found.timeline is not None
    return [block for block in found.timeline.blocks if block.name == name]


def bases(found: Peak) -> list[str]:
    return [block.basis for block in buffers(found, CHANNELS_LAST_COPIES)]


def requested(elements: int, bytes_each: int = 2) -> int:
    """Bytes of a request, rounded as the allocator does."""
    return -(-elements * bytes_each // 512) * 512


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_forward_pass_takes_the_size_of_input_weight_and_output(dtype: torch.dtype) -> None:
    (copies,) = buffers(peak(AMPERE, dtype=dtype), CHANNELS_LAST_COPIES)
    assert (copies.size, copies.basis, copies.kind) == (requested(X + W + Y, dtype.itemsize), "proven", "workspace")


@pytest.mark.slow
def test_the_backward_pass_takes_one_workspace_after_the_other_and_says_that_it_is_assumed() -> None:
    found = peak(AMPERE, backward=True, dtype=torch.float32)
    forward, of_input, of_weight = buffers(found, CHANNELS_LAST_COPIES)
    # That of the input's gradient is freed before the weight's gradient is made, which the trace has seen by then.
    assert (of_input.size, of_weight.size) == (requested(X + Y, 4), requested(X + W + Y, 4))
    assert (forward.basis, of_input.basis, of_weight.basis) == ("proven", "assumed", "assumed")
    assert found.assumed == of_weight.size  # of those, the peak is at the last


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"dims": 2}, ["proven"]),
        ({"dims": 2, "dtype": torch.float32}, ["assumed"]),
        ({"dims": 1}, ["assumed"]),
        ({"c_in": 1}, ["assumed"]),
        ({"c_in": 2}, ["assumed"]),
        ({"c_in": 3}, []),
        ({"kernel": 1}, ["assumed"]),
        ({"groups": 2}, ["assumed"]),
        ({"t": True}, ["assumed"]),
        ({"c_in": 8, "groups": 8}, []),  # depthwise: kernels of PyTorch's own
        ({"dtype": torch.float64}, []),
        ({"last": "xw"}, []),
        ({"last": "x"}, []),
        ({"last": "w"}, []),
        ({"dims": 2, "last": "xw"}, []),
    ],
    ids=str,
)
def test_what_the_copies_rest_on(change: dict[str, Any], expected: list[str]) -> None:
    assert bases(peak(AMPERE, **change)) == expected


def test_kernels_of_one_voxel_are_shown_without_copies_on_one_card_alone() -> None:
    assert bases(peak(Target(torch="2.8.0", compute_capability=(8, 9)), kernel=1)) == []
    assert bases(peak(Target(torch="2.8.0", compute_capability=(8, 9)), kernel=3)) == ["proven"]


def test_three_channels_are_assumed_in_the_backward_pass() -> None:
    assert bases(peak(AMPERE, backward=True, c_in=3)) == ["assumed", "assumed"]


def test_before_ampere_there_is_no_tf32_and_the_rest_is_assumed() -> None:
    assert bases(peak(TURING, dtype=torch.float32)) == []
    assert bases(peak(TURING, dtype=torch.float16)) == ["assumed"]


def test_without_tf32_fp32_takes_no_copies() -> None:
    assert bases(peak(Target(torch="2.8.0", tf32=False), dtype=torch.float32)) == []
    assert bases(peak(Target(torch="2.8.0", tf32=False), dtype=torch.float16)) == ["proven"]
    before = torch.backends.cudnn.allow_tf32
    try:
        torch.backends.cudnn.allow_tf32 = False
        assert bases(peak(AMPERE, dtype=torch.float32)) == []
        assert bases(peak(Target(torch="2.8.0", tf32=True), dtype=torch.float32)) == ["proven"]
    finally:
        torch.backends.cudnn.allow_tf32 = before


@pytest.mark.parametrize("missing", ["x", "w"])
def test_a_layout_that_is_not_the_other_s_is_copied(missing: str) -> None:
    """PyTorch works channels-last if one of them is, and copies the other."""
    (copy,) = buffers(peak(AMPERE, last="xw".replace(missing, "")), LAYOUT_COPIES)
    assert (copy.size, copy.basis) == (requested({"x": X, "w": W}[missing]), "proven")


def test_an_expanded_gradient_is_copied() -> None:
    """That of a mean or a sum is one number, and cuDNN wants all of them."""

    def step(layer: nn.Module) -> None:
        layer(torch.randn(2, 4, 8, 8, 8)).sum().backward()

    found = predict_peak(lambda: nn.Conv3d(4, 8, 3, padding=1), step, 1, AMPERE)
    (copy,) = buffers(found, LAYOUT_COPIES)
    assert copy.size == requested(Y, 4)


@pytest.mark.parametrize("last", ["", "xw"])
def test_half_precision_in_3d_leaves_a_cudnn_that_is_wrong_but_not_channels_last(last: str) -> None:
    found = peak(LEAVES, last=last)
    columns = [block.size for block in buffers(found, COLUMNS)]
    assert columns == ([] if last else [requested(4 * 27 * 8**3)])
    assert bases(found) == []


def test_one_voxel_stays_with_cudnn() -> None:
    found = peak(LEAVES, kernel=1)
    assert not buffers(found, COLUMNS)
    assert bases(found) == ["assumed"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_above_2_to_the_31_elements_an_old_cudnn_is_left_in_every_dtype(dtype: torch.dtype) -> None:
    """pytorch#95024: out of memory at 108.21 GiB, which is the size of the columns in half precision."""

    def step(layer: nn.Module) -> None:
        layer(torch.randn(1, 64, 362, 370, 251, dtype=dtype))

    def build() -> nn.Module:
        return nn.Conv3d(64, 32, 3, padding=1, dtype=dtype).requires_grad_(False)

    card = {"compute_capability": (8, 0), "capacity": 80 * GIB}
    old = predict_peak(build, step, 1, Target(torch="1.13.1", cudnn=(8, 5), **card))
    assert len(buffers(old, COLUMNS)) == 1
    assert old.fits is False
    assert old.refused == requested(64 * 27 * 362 * 370 * 251, dtype.itemsize)
    assert not buffers(predict_peak(build, step, 1, Target(cudnn=(9, 3), **card)), COLUMNS)


@pytest.mark.parametrize(("torch_release", "basis"), [("1.13.1", "proven"), ("1.9.0", "assumed")])
def test_a_version_that_is_not_known_makes_what_depends_on_it_assumed(torch_release: str, basis: str) -> None:
    def step(layer: nn.Module) -> None:
        layer(torch.randn(1, 64, 362, 370, 251, dtype=torch.float16))

    def build() -> nn.Module:
        return nn.Conv3d(64, 32, 3, padding=1, dtype=torch.float16).requires_grad_(False)

    found = predict_peak(build, step, 1, Target(torch=torch_release, compute_capability=(8, 0)))
    assert [block.basis for block in buffers(found, COLUMNS)] == [basis]


def test_without_cudnn_every_convolution_goes_through_columns() -> None:
    def step(layer: nn.Module) -> None:
        with torch.backends.cudnn.flags(enabled=False):
            layer(torch.randn(2, 4, 8, 8, 8))

    found = predict_peak(lambda: nn.Conv3d(4, 8, 3, padding=1), step, 1, AMPERE)
    assert [block.size for block in buffers(found, COLUMNS)] == [requested(4 * 27 * 8**3, 4)]


def test_one_channel_keeps_the_layout_of_the_network() -> None:
    """A tensor of one channel is contiguous in both layouts; its strides say which was meant, as in PyTorch."""

    def build() -> nn.Module:
        layers = nn.Sequential(nn.Conv3d(1, 8, 3, padding=1), nn.Conv3d(8, 8, 3, padding=1))
        return layers.to(memory_format=torch.channels_last_3d)

    def step(layers: nn.Module) -> None:
        layers(torch.randn(2, 1, 8, 8, 8))

    found = predict_peak(build, step, 1, AMPERE)
    assert not buffers(found, LAYOUT_COPIES)
    assert not buffers(found, CHANNELS_LAST_COPIES)


def test_the_result_has_the_layout_that_cudnn_gives() -> None:
    """On the CPU a small fp32 convolution is contiguous whatever its input; on CUDA the next one sees channels-last."""
    layouts: list[bool] = []

    def step(_: Any) -> None:
        x = torch.randn(1, 4, 8, 8, 8).to(memory_format=torch.channels_last_3d)
        layouts.append(F.conv3d(x, torch.randn(8, 4, 3, 3, 3)).is_contiguous(memory_format=torch.channels_last_3d))

    predict_peak(lambda: None, step, 1, AMPERE)
    assert layouts == [True]


def test_a_counter_counts_the_block_and_not_the_request() -> None:
    """A request of 9.5 MiB gets a segment of 20 MiB, split; one of 19.5 MiB from it keeps the last half MiB."""
    mib = 2**20

    def step(_: Any) -> Tensor:
        first = torch.empty(9 * mib + mib // 2, dtype=torch.uint8)
        del first
        return torch.empty(19 * mib + mib // 2, dtype=torch.uint8)

    assert predict_peak(lambda: None, step, 1, AMPERE).peak_allocated == 20 * mib
    assert predict_peak(lambda: None, step, 1, "cpu").peak_allocated == 19 * mib + mib // 2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"torch": "nightly"}, "must be a release of PyTorch"),
        ({"torch": "29.0"}, "must be a release of PyTorch"),
        ({"torch": "2.9.x"}, "must be a release of PyTorch"),
        ({"compute_capability": (1, 0)}, "must be a pair such as"),
        ({"compute_capability": (9, 0, 1)}, "must be a pair such as"),
        ({"compute_capability": "9.0"}, "must be a pair such as"),
        ({"cudnn": (9,)}, "cudnn must be"),
        ({"cudnn": (6, 0)}, "cudnn must be"),
        ({"cudnn": "9.10"}, "cudnn must be"),
        ({"capacity": -1}, "capacity must be positive"),
        ({"tf32": "yes"}, "tf32 must be"),
    ],
)
def test_a_target_that_is_none_is_refused_in_a_sentence(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Target(**fields)


def test_an_unstated_cudnn_is_that_of_the_release_or_of_the_oldest_that_is_known() -> None:
    assert Target(torch="2.7.1").cudnn_version == (9, 5)
    assert Target(torch="2.10.0").cudnn_version == (9, 10)
    assert Target(torch="2.99.0").cudnn_version >= (9, 24)
    assert Target(torch="1.8.0").cudnn_version == (8, 5)
