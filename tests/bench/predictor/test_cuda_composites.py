"""Operators that CUDA decomposes differently from the CPU; live memory is computed by hand."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppdm_bench.predictor import Target, predict_peak

AMPERE = Target(torch="2.8.0", compute_capability=(8, 0))
MIB = 2**20
N = MIB  # elements


def kept(function: Callable[[Tensor], Tensor], dtype: torch.dtype, x: Callable[[], Tensor] | None = None) -> int:
    """Return the bytes that are live after a forward pass, without its input."""
    found: list[int] = []

    def step(_: None) -> None:
        made = (x() if x else torch.randn(N // 64, 64)).to(dtype).requires_grad_()
        before = torch.cuda.memory_allocated()
        out = function(made)
        found.append(torch.cuda.memory_allocated() - before)
        out.sum().backward()

    predict_peak(lambda: None, step, 1, AMPERE)
    return found[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_keeps_its_result_and_a_boolean_mask(dtype: torch.dtype) -> None:
    assert kept(nn.Dropout(0.1), dtype) == N * dtype.itemsize + N
    assert kept(nn.Dropout(0.1).eval(), dtype) == 0
    assert kept(nn.Dropout(0.0), dtype) == 0


def test_group_normalisation_copies_its_input_and_returns_a_contiguous_result() -> None:
    layouts: list[bool] = []

    def norm(x: Tensor) -> Tensor:
        out = F.group_norm(x, 2)
        layouts.append(out.is_contiguous())
        return out

    def last() -> Tensor:
        return torch.randn(1, 4, 64, 64, 64).to(memory_format=torch.channels_last_3d)

    small = 2 * 512  # means and deviations of the groups
    assert kept(norm, torch.float32, last) == 2 * N * 4 + small
    assert kept(norm, torch.float32, lambda: torch.randn(1, 4, 64, 64, 64)) == N * 4 + small
    assert layouts == [True, True]


@pytest.mark.parametrize("function", [F.softmax, F.log_softmax])
def test_softmax_to_fp32_copies_a_bf16_input_but_not_an_fp16_input(function: Callable[..., Tensor]) -> None:
    def run(x: Tensor) -> Tensor:
        return function(x, dim=-1, dtype=torch.float32)

    def peak(dtype: torch.dtype) -> int:
        x = torch.empty(N // 64, 64, dtype=dtype)
        made = predict_peak(lambda: None, lambda _: run(x), 1, AMPERE)
        return made.peak_allocated - x.nbytes

    assert peak(torch.float16) == 4 * N
    assert peak(torch.bfloat16) == 8 * N


def test_a_transformer_layer_allocates_no_attention_matrix() -> None:
    """PyTorch's module calls the fused kernel from PyTorch's own Python code."""
    layer = nn.TransformerEncoderLayer(64, 1, 64, dropout=0.0, batch_first=True)
    length = 4096

    def step(_: None) -> None:
        with torch.autocast("cuda", torch.bfloat16):
            layer(torch.randn(1, length, 64, device="cuda")).sum().backward()

    assert predict_peak(lambda: None, step, 1, AMPERE).peak_allocated < length * length * 2
