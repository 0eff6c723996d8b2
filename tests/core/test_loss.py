from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ppdm.loss import Loss


def volume(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).reshape(1, 1, 1, 1, -1)


def by_loop(error: Tensor, cell: tuple[int, ...], p: int, mode: str) -> float:
    """Compute the gradient term by its definition, one pair of neighbours at a time, for a subject (C, D, H, W)."""
    total = 0.0
    for axis, r in enumerate(cell, start=1):
        powers = []
        for index in product(*map(range, error.shape)):
            k = index[axis]
            if k == 0 or (mode == "cell" and (k - 1) // r == k // r):
                continue
            before = (*index[:axis], k - 1, *index[axis + 1 :])
            powers.append(abs(error[index].item() - error[before].item()) ** p)
        total += sum(powers) / len(powers) if powers else 0.0
    return total


@pytest.mark.parametrize(("p", "expected"), [(1, [1.5, 0.0]), (2, [3.5, 0.0])])
def test_the_reconstruction_term_equals_a_hand_calculation(p: int, expected: list[float]) -> None:
    output = torch.tensor([[1.0, 2.0, 0.0, 3.0], [5.0, 5.0, 5.0, 5.0]]).reshape(2, 1, 1, 2, 2)
    wanted = torch.tensor([[1.0, 0.0, 1.0, 0.0], [5.0, 5.0, 5.0, 5.0]]).reshape(2, 1, 1, 2, 2)
    assert Loss(p=p).reconstruction(output - wanted).tolist() == expected


@pytest.mark.parametrize(
    ("p", "mode", "expected"),
    [
        (1, "all", (1 + 5 + 2 + 0 + 4) / 5),
        (2, "all", (1 + 25 + 4 + 0 + 16) / 5),
        (1, "cell", (5 + 0) / 2),  # with r = 2, between voxels 1 and 2, and 3 and 4
        (2, "cell", (25 + 0) / 2),
    ],
)
def test_the_gradient_term_equals_a_hand_calculation(p: int, mode: str, expected: float) -> None:
    error = volume(0, 1, -4, -2, -2, 2)
    assert Loss(p=p, gradient=1.0, mode=mode).puzzle_gradient(error, (2, 2, 2)).item() == pytest.approx(expected)


def test_the_gradient_term_adds_the_axes_and_applies_its_weight() -> None:
    d, h, w = torch.meshgrid(torch.arange(4.0), torch.arange(4.0), torch.arange(4.0), indexing="ij")
    error = (d + 10 * h + 100 * w)[None, None]
    assert Loss(p=1, gradient=0.5, mode="all").puzzle_gradient(error, (2, 2, 2)).item() == pytest.approx(55.5)


@given(
    st.tuples(*[st.integers(1, 5)] * 3),
    st.tuples(*[st.integers(1, 4)] * 3),
    st.sampled_from((1, 2)),
    st.sampled_from(("all", "cell")),
)
@settings(max_examples=40, deadline=None)
def test_the_gradient_term_equals_a_loop(size: tuple[int, ...], cell: tuple[int, ...], p: int, mode: str) -> None:
    error = torch.randn(2, 2, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = Loss(p=p, gradient=1.0, mode=mode).puzzle_gradient(error, cell)
    assert found.tolist() == pytest.approx([by_loop(subject, cell, p, mode) for subject in error])


@pytest.mark.parametrize("p", [1, 2])
def test_with_cells_of_one_voxel_mode_cell_equals_mode_all(p: int) -> None:
    error = torch.randn(2, 1, 3, 4, 5)
    losses = [Loss(p=p, gradient=1.0, mode=mode).puzzle_gradient(error, (1, 1, 1)) for mode in ("cell", "all")]
    assert torch.equal(*losses)


def test_mode_cell_counts_only_differences_at_cell_borders() -> None:
    cells = torch.randn(1, 1, 3, 3, 3)
    grid = cells.repeat_interleave(2, 2).repeat_interleave(2, 3).repeat_interleave(2, 4)
    inside = torch.tensor([0.0, 1, 1, 0, 0, 1]).reshape(1, 1, 1, 1, 6).expand(1, 1, 6, 6, 6)  # mirrored at each border
    loss = Loss(p=2, gradient=1.0, mode="cell")
    assert loss.puzzle_gradient(grid, (2, 2, 2)) > 0
    assert loss.puzzle_gradient(inside, (2, 2, 2)) == 0
    assert Loss(p=2, gradient=1.0, mode="all").puzzle_gradient(inside, (2, 2, 2)) > 0


@pytest.mark.parametrize("mode", ["all", "cell"])
def test_a_constant_error_has_a_gradient_term_of_zero(mode: str) -> None:
    loss = Loss(p=2, gradient=3.0, mode=mode)
    assert loss.puzzle_gradient(torch.full((2, 2, 4, 4, 4), 7.0), (2, 2, 2)).tolist() == [0, 0]


@pytest.mark.parametrize("mode", ["all", "cell"])
def test_the_terms_of_each_subject_are_independent(mode: str) -> None:
    loss = Loss(p=2, gradient=1.0, mode=mode)
    x = torch.randn(3, 2, 4, 4, 4)
    for together, alone in (
        (loss.reconstruction(x), [loss.reconstruction(x[[k]]) for k in range(3)]),
        (loss.puzzle_gradient(x, (2, 1, 4)), [loss.puzzle_gradient(x[[k]], (2, 1, 4)) for k in range(3)]),
    ):
        assert together.shape == (3,)
        assert torch.allclose(together, torch.cat(alone))


@pytest.mark.parametrize("mode", ["all", "cell"])
@pytest.mark.parametrize("p", [1, 2])
def test_both_terms_pass_gradcheck(p: int, mode: str) -> None:
    generator = torch.Generator().manual_seed(1)
    error = torch.randn(2, 1, 2, 3, 4, dtype=torch.float64, generator=generator).requires_grad_()
    loss = Loss(p=p, gradient=0.7, mode=mode)
    assert torch.autograd.gradcheck(lambda e: loss.puzzle_gradient(e, (1, 2, 2)), error)
    assert torch.autograd.gradcheck(lambda e: loss.reconstruction(e), error)


@pytest.mark.parametrize("mode", ["off", "all", "cell"])
@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("depth", [1, 5, 40])  # fewer and more slices than the loss has portions
def test_values_and_gradients_equal_the_plain_formula(depth: int, p: int, mode: str) -> None:
    generator, cell = torch.Generator().manual_seed(2), (2, 3, 4)
    lean = torch.randn(3, 2, depth, 7, 9, dtype=torch.float64, generator=generator).requires_grad_()
    plain = lean.detach().clone().requires_grad_()
    loss = Loss(p=p, gradient=0.0 if mode == "off" else 0.7, mode=mode)
    expected = plain.abs().pow(p).flatten(1).mean(1)
    for axis, r in enumerate(cell if mode == "cell" else (1, 1, 1), start=2):
        if mode != "off" and plain.shape[axis] > r:
            line = plain.movedim(axis, -1)
            differences = line[..., r::r] - line[..., r - 1 : -1 : r]
            expected = expected + 0.7 * differences.abs().pow(p).flatten(1).mean(1)
    found = loss.reconstruction(lean)
    if mode != "off":
        found = found + loss.puzzle_gradient(lean, cell)
    weights = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    assert torch.allclose(found, expected, rtol=1e-12)
    assert lean.grad is not None
    assert plain.grad is not None
    assert torch.allclose(lean.grad, plain.grad, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"p": 3}, "p = 3"),
        ({"p": 0}, "p = 0"),
        ({"mode": "border", "gradient": 1.0}, "off, all, cell; got 'border'"),
        ({"gradient": 1.0}, "weight of 1.0 does not go with mode 'off'"),
        ({"mode": "all"}, "weight of 0.0 does not go with mode 'all'"),
        ({"mode": "cell", "gradient": -1.0}, "weight of -1.0"),
        ({"mode": "cell", "gradient": float("nan")}, "weight of nan"),
        ({"weight": "velocity"}, "weights none, scale; got 'velocity'"),
    ],
)
def test_invalid_options_are_refused(options: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Loss(**options)  # type: ignore[arg-type]
