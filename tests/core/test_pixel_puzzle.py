from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ppdm.pixel_puzzle import Factor, crop, factor_of, pad_to_multiple, puzzle, unpuzzle

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64)
INTEGERS = (torch.uint8, torch.int16, torch.int32, torch.int64, torch.bool)


@st.composite
def puzzled(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return a strategy for a shape and a factor that divides it, in 2-D or 3-D."""
    dims = draw(st.sampled_from((2, 3)))
    factor = draw(st.tuples(*[st.integers(1, 4)] * dims))
    cells = draw(st.tuples(*[st.integers(1, 3)] * dims))
    n, c = draw(st.integers(1, 2)), draw(st.integers(1, 3))
    return (n, c, *(s * k for s, k in zip(cells, factor, strict=True))), factor


def by_formula(x: Tensor, r: tuple[int, int, int]) -> Tensor:
    """Compute the puzzle by its definition, one voxel at a time."""
    (n, c, *size), (rd, rh, rw) = x.shape, r
    d, h, w = (s // k for s, k in zip(size, r, strict=True))
    z = torch.empty((n, c * rd * rh * rw, d, h, w), dtype=x.dtype)
    for b, ch, i, j, k, u, v, m in product(*map(range, (n, c, d, h, w, rd, rh, rw))):
        z[b, ch * rd * rh * rw + (u * rh + v) * rw + m, i, j, k] = x[b, ch, i * rd + u, j * rh + v, k * rw + m]
    return z


def counted(*shape: int) -> Tensor:
    return torch.arange(torch.Size(shape).numel()).reshape(shape)


@pytest.mark.parametrize("r", [1, 2, 3])
def test_the_2d_puzzle_equals_pixel_unshuffle(r: int) -> None:
    x = torch.randn(2, 3, 6, 12)
    assert torch.equal(puzzle(x, r), F.pixel_unshuffle(x, r))
    assert torch.equal(unpuzzle(puzzle(x, r), r), F.pixel_shuffle(puzzle(x, r), r))


@pytest.mark.parametrize("r", [(2, 2, 2), (1, 2, 3), (3, 1, 2), (2, 3, 1), (4, 6, 4)])
def test_the_3d_puzzle_equals_the_index_formula(r: tuple[int, int, int]) -> None:
    x = counted(2, 2, r[0] * 2, r[1], r[2] * 2)
    assert torch.equal(puzzle(x, r), by_formula(x, r))


def test_one_number_is_the_factor_of_every_axis() -> None:
    x = counted(1, 2, 4, 6, 8)
    assert torch.equal(puzzle(x, 2), puzzle(x, [2, 2, 2]))
    assert puzzle(x, 2).shape == (1, 16, 2, 3, 4)


@given(puzzled())
@settings(max_examples=40, deadline=None)
def test_puzzle_and_unpuzzle_are_inverse_to_each_other(case: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    shape, factor = case
    x = counted(*shape)
    z = puzzle(x, factor)
    assert torch.equal(unpuzzle(z, factor), x)
    assert torch.equal(puzzle(unpuzzle(z, factor), factor), z)
    assert sorted(z.flatten().tolist()) == list(range(x.numel()))  # every voxel occurs once


@pytest.mark.parametrize("dtype", FLOATS + INTEGERS, ids=str)
def test_every_dtype_survives_bit_for_bit(dtype: torch.dtype) -> None:
    size = torch.empty((), dtype=dtype).element_size()
    raw = torch.randint(0, 2 if dtype == torch.bool else 256, (2, 3, 4, 6, 4, size), dtype=torch.uint8)
    x = raw.view(dtype).squeeze(-1)  # random bit patterns, so NaN payloads and negative zeros too
    back = unpuzzle(puzzle(x, (2, 3, 1)), (2, 3, 1))
    assert back.dtype == dtype
    assert torch.equal(back.contiguous().unsqueeze(-1).view(torch.uint8), raw)


def test_nan_payloads_survive() -> None:
    payloads = torch.arange(8, dtype=torch.int32) + 0x7FC00000
    payloads[::2] += -0x80000000
    x = payloads.view(torch.float32).reshape(1, 1, 2, 2, 2)
    assert x.isnan().all()
    assert torch.equal(puzzle(x, 2).view(torch.int32).flatten(), payloads)


@pytest.mark.parametrize("r", [2, (1, 2, 4)])
def test_the_gradient_of_the_puzzle_is_its_inverse(r: Factor) -> None:
    x = torch.randn(1, 1, 2, 2, 4, dtype=torch.float64, requires_grad=True)
    if r == 2:
        assert torch.autograd.gradcheck(lambda v: puzzle(v, r), x)
        assert torch.autograd.gradcheck(lambda v: unpuzzle(puzzle(v, r), r), x)
    weight = torch.randn_like(puzzle(x, r))
    (gradient,) = torch.autograd.grad((puzzle(x, r) * weight).sum(), x)
    assert torch.equal(gradient, unpuzzle(weight, r))  # the adjoint of a permutation is its inverse


def strided(x: Tensor) -> Tensor:
    return x.transpose(2, 4).contiguous().transpose(2, 4)


@pytest.mark.parametrize(
    "relaid",
    [
        strided,
        lambda x: x.to(memory_format=torch.channels_last_3d),
        lambda x: x.flip(2).flip(2),
        lambda x: torch.cat([x, x], dim=4)[..., : x.shape[4]],
        lambda x: x[:, :1].expand(-1, 2, -1, -1, -1),
    ],
    ids=["transposed", "channels last", "flipped", "sliced", "expanded"],
)
def test_memory_layout_does_not_matter(relaid) -> None:  # type: ignore[no-untyped-def]
    x = relaid(torch.randn(2, 2, 4, 6, 8))
    dense = x.clone(memory_format=torch.contiguous_format)
    assert torch.equal(puzzle(x, (2, 3, 4)), puzzle(dense, (2, 3, 4)))
    z = relaid(torch.randn(2, 2, 4, 6, 8))
    assert torch.equal(unpuzzle(z, (1, 2, 1)), unpuzzle(z.clone(memory_format=torch.contiguous_format), (1, 2, 1)))


@pytest.mark.parametrize("multiple", [1, 2, 3, 4, 5, 8, (4, 1, 6)])
@pytest.mark.parametrize("shape", [(2, 1, 5, 7, 8), (1, 2, 1, 1, 1), (1, 1, 2, 3, 4), (1, 1, 16, 1, 9)])
def test_padding_is_removed_exactly(shape: tuple[int, ...], multiple: Factor) -> None:
    x = counted(*shape)
    padded = pad_to_multiple(x, multiple)
    for size, before, m in zip(padded.shape[2:], shape[2:], factor_of(multiple, x), strict=True):
        assert size % m == 0
        assert 0 <= size - before < m
    assert torch.equal(crop(padded, shape[2:]), x)


@given(
    st.lists(st.integers(1, 9), min_size=2, max_size=3),
    st.lists(st.integers(1, 12), min_size=3, max_size=3),
)
@settings(max_examples=40, deadline=None)
def test_padding_reflects_as_numpy_does(size: list[int], multiples: list[int]) -> None:
    multiple = multiples[: len(size)]
    x = counted(1, 2, *size)
    ends = [(0, -s % m) for s, m in zip(size, multiple, strict=True)]  # also longer than the axis, and axes of size 1
    expected = np.pad(x.numpy(), [(0, 0), (0, 0), *ends], mode="reflect")
    np.testing.assert_array_equal(pad_to_multiple(x, multiple).numpy(), expected)


@pytest.mark.parametrize("dtype", FLOATS + INTEGERS, ids=str)
def test_padding_takes_every_dtype(dtype: torch.dtype) -> None:
    x = torch.tensor([0, 1, 1], dtype=torch.uint8).to(dtype).reshape(1, 1, 1, 3)
    assert torch.equal(pad_to_multiple(x, (1, 5))[0, 0, 0], torch.tensor([0, 1, 1, 1, 0], dtype=torch.uint8).to(dtype))


def test_padding_passes_gradients_to_the_voxels_it_repeats() -> None:
    x = torch.zeros(1, 1, 3, 3, requires_grad=True)
    pad_to_multiple(x, (1, 5)).sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad[0, 0], torch.tensor([[2.0, 2.0, 1.0]] * 3))


@pytest.mark.parametrize("factor", [0, -1, 2.5, True, None, "2", "222", (2, 2), (2, 2, 2, 2), (2, 0, 2), (2, 2.0, 2)])
@pytest.mark.parametrize("function", [puzzle, unpuzzle, pad_to_multiple])
def test_the_error_for_an_invalid_factor_contains_factor_and_shape(function, factor) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError) as refusal:
        function(torch.zeros(1, 8, 4, 4, 4), factor)
    assert repr(factor) in str(refusal.value)
    assert "(1, 8, 4, 4, 4)" in str(refusal.value)


@pytest.mark.parametrize("shape", [(8,), (4, 4), (1, 4, 4), (1, 1, 2, 2, 2, 2)])
@pytest.mark.parametrize("function", [puzzle, unpuzzle, pad_to_multiple])
def test_the_error_for_an_invalid_number_of_axes_contains_shape_and_factor(function, shape: Sequence[int]) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError) as refusal:
        function(torch.zeros(shape), (3, 5, 7))
    assert str(tuple(shape)) in str(refusal.value)
    assert "(3, 5, 7)" in str(refusal.value)


def test_an_indivisible_size_is_refused_with_advice_to_pad() -> None:
    with pytest.raises(ValueError, match=r"\(4, 5, 4\).*\(1, 1, 4, 5, 4\).*\(2, 2, 2\).*pad_to_multiple"):
        puzzle(torch.zeros(1, 1, 4, 5, 4), 2)


def test_indivisible_channels_are_refused() -> None:
    with pytest.raises(ValueError, match=r"9 channels.*\(1, 9, 4, 4, 4\).*multiple of 8.*\(2, 2, 2\)"):
        unpuzzle(torch.zeros(1, 9, 4, 4, 4), 2)


def test_an_empty_axis_cannot_be_reflected() -> None:
    with pytest.raises(ValueError, match=r"\(1, 1, 4, 0, 4\).*\(2, 2, 2\).*empty axis"):
        pad_to_multiple(torch.zeros(1, 1, 4, 0, 4), 2)


def test_an_empty_batch_is_accepted() -> None:
    assert puzzle(torch.zeros(0, 1, 4, 4, 4), 2).shape == (0, 8, 2, 2, 2)
    assert unpuzzle(torch.zeros(0, 8, 2, 2, 2), 2).shape == (0, 1, 4, 4, 4)
