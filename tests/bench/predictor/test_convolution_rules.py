"""Buffers of convolutions on CUDA: sizes computed by hand, and whether cuDNN computes the convolution."""

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

# Number of elements of the input (2, 4, 8, 8, 8), weight (8, 4, 3, 3, 3) and output (2, 8, 8, 8, 8).
X, W, Y = 2 * 4 * 8**3, 8 * 4 * 27, 2 * 8 * 8**3


def peak(target: Target, backward: bool = False, **layer: Any) -> Peak:
    """Predict one convolution; `layer` changes dimensions, dtype, channels, kernel, groups, layout or transposition."""
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
    """Return the buffers of a rule, in order."""
    assert found.timeline is not None
    return [block for block in found.timeline.blocks if block.name == name]


def bases(found: Peak) -> list[str]:
    return [block.basis for block in buffers(found, CHANNELS_LAST_COPIES)]


def requested(elements: int, bytes_each: int = 2) -> int:
    """Return the bytes of a request, rounded up as by the allocator."""
    return -(-elements * bytes_each // 512) * 512


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_workspace_of_the_forward_pass_is_as_large_as_input_weight_and_output(dtype: torch.dtype) -> None:
    (copies,) = buffers(peak(AMPERE, dtype=dtype), CHANNELS_LAST_COPIES)
    assert (copies.size, copies.basis, copies.kind) == (requested(X + W + Y, dtype.itemsize), "proven", "workspace")


@pytest.mark.slow
def test_the_backward_pass_uses_one_assumed_workspace_after_the_other() -> None:
    found = peak(AMPERE, backward=True, dtype=torch.float32)
    forward, of_input, of_weight = buffers(found, CHANNELS_LAST_COPIES)
    # The first is freed before cuDNN allocates the weight's gradient, which the trace already counts: subtract W.
    assert (of_input.size, of_weight.size) == (requested(X + Y, 4), requested(X + W + Y, 4))
    assert (forward.basis, of_input.basis, of_weight.basis) == ("proven", "assumed", "assumed")
    assert found.assumed == of_weight.size  # the peak is at the last workspace


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
        ({"c_in": 8, "groups": 8}, []),  # depthwise: PyTorch's own kernels
        ({"dtype": torch.float64}, []),
        ({"last": "xw"}, []),
        ({"last": "x"}, []),
        ({"last": "w"}, []),
        ({"dims": 2, "last": "xw"}, []),
    ],
    ids=str,
)
def test_the_basis_of_the_copies_depends_on_the_layer(change: dict[str, Any], expected: list[str]) -> None:
    assert bases(peak(AMPERE, **change)) == expected


def test_kernels_of_one_voxel_need_no_copies_on_compute_capability_8_9() -> None:
    assert bases(peak(Target(torch="2.8.0", compute_capability=(8, 9)), kernel=1)) == []
    assert bases(peak(Target(torch="2.8.0", compute_capability=(8, 9)), kernel=3)) == ["proven"]


def test_copies_for_three_channels_are_assumed_in_the_backward_pass() -> None:
    assert bases(peak(AMPERE, backward=True, c_in=3)) == ["assumed", "assumed"]


def test_before_ampere_fp32_needs_no_copies_and_those_of_fp16_are_assumed() -> None:
    assert bases(peak(TURING, dtype=torch.float32)) == []
    assert bases(peak(TURING, dtype=torch.float16)) == ["assumed"]


def test_without_tf32_fp32_needs_no_copies() -> None:
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
def test_an_input_or_weight_in_another_layout_is_copied(missing: str) -> None:
    """PyTorch uses channels-last if the input or the weight is channels-last, and copies the other."""
    (copy,) = buffers(peak(AMPERE, last="xw".replace(missing, "")), LAYOUT_COPIES)
    assert (copy.size, copy.basis) == (requested({"x": X, "w": W}[missing]), "proven")


def test_an_expanded_gradient_is_copied() -> None:
    """The gradient of a mean or a sum is one expanded number, and cuDNN needs all elements in memory."""

    def step(layer: nn.Module) -> None:
        layer(torch.randn(2, 4, 8, 8, 8)).sum().backward()

    found = predict_peak(lambda: nn.Conv3d(4, 8, 3, padding=1), step, 1, AMPERE)
    (copy,) = buffers(found, LAYOUT_COPIES)
    assert copy.size == requested(Y, 4)


@pytest.mark.parametrize("last", ["", "xw"])
def test_half_precision_in_3d_avoids_a_faulty_cudnn_except_for_channels_last(last: str) -> None:
    found = peak(LEAVES, last=last)
    columns = [block.size for block in buffers(found, COLUMNS)]
    assert columns == ([] if last else [requested(4 * 27 * 8**3)])
    assert bases(found) == []


def test_kernels_of_one_voxel_use_even_a_faulty_cudnn() -> None:
    found = peak(LEAVES, kernel=1)
    assert not buffers(found, COLUMNS)
    assert bases(found) == ["assumed"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_above_2_to_the_31_elements_an_old_cudnn_is_not_used_in_any_dtype(dtype: torch.dtype) -> None:
    """pytorch#95024 reports out of memory at 108.21 GiB, which is the size of the columns in half precision."""

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
def test_columns_are_assumed_if_the_cudnn_version_is_unknown(torch_release: str, basis: str) -> None:
    def step(layer: nn.Module) -> None:
        layer(torch.randn(1, 64, 362, 370, 251, dtype=torch.float16))

    def build() -> nn.Module:
        return nn.Conv3d(64, 32, 3, padding=1, dtype=torch.float16).requires_grad_(False)

    found = predict_peak(build, step, 1, Target(torch=torch_release, compute_capability=(8, 0)))
    assert [block.basis for block in buffers(found, COLUMNS)] == [basis]


def test_without_cudnn_a_convolution_uses_columns() -> None:
    def step(layer: nn.Module) -> None:
        with torch.backends.cudnn.flags(enabled=False):
            layer(torch.randn(2, 4, 8, 8, 8))

    found = predict_peak(lambda: nn.Conv3d(4, 8, 3, padding=1), step, 1, AMPERE)
    assert [block.size for block in buffers(found, COLUMNS)] == [requested(4 * 27 * 8**3, 4)]


def test_an_input_of_one_channel_keeps_the_layout_of_the_network() -> None:
    """A tensor of one channel is contiguous in both layouts; its strides decide, as in PyTorch."""

    def build() -> nn.Module:
        layers = nn.Sequential(nn.Conv3d(1, 8, 3, padding=1), nn.Conv3d(8, 8, 3, padding=1))
        return layers.to(memory_format=torch.channels_last_3d)

    def step(layers: nn.Module) -> None:
        layers(torch.randn(2, 1, 8, 8, 8))

    found = predict_peak(build, step, 1, AMPERE)
    assert not buffers(found, LAYOUT_COPIES)
    assert not buffers(found, CHANNELS_LAST_COPIES)


def test_the_result_has_the_memory_layout_of_cudnn() -> None:
    """For a channels-last input, the result of a small fp32 convolution is contiguous on the CPU, but not on CUDA."""
    layouts: list[bool] = []

    def step(_: Any) -> None:
        x = torch.randn(1, 4, 8, 8, 8).to(memory_format=torch.channels_last_3d)
        layouts.append(F.conv3d(x, torch.randn(8, 4, 3, 3, 3)).is_contiguous(memory_format=torch.channels_last_3d))

    predict_peak(lambda: None, step, 1, AMPERE)
    assert layouts == [True]


def test_a_counter_counts_the_block_and_not_the_request() -> None:
    """9.5 MiB take part of a segment of 20 MiB; 19.5 MiB then take all of it, as half a MiB is not split off."""
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
def test_an_invalid_target_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Target(**fields)


def test_the_default_cudnn_is_that_of_the_release_or_of_the_nearest_known_one() -> None:
    assert Target(torch="2.7.1").cudnn_version == (9, 5)
    assert Target(torch="2.10.0").cudnn_version == (9, 10)
    assert Target(torch="2.99.0").cudnn_version >= (9, 24)
    assert Target(torch="1.8.0").cudnn_version == (8, 5)
