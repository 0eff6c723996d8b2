"""Time of the puzzle and its inverse: one pass over memory, against which a U-Net's evaluation is to be held."""

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from ppdm.pixel_puzzle import Factor, puzzle, unpuzzle

EACH = pytest.mark.parametrize("factor", [2, 4, (1, 2, 2)], ids=str)


@pytest.mark.benchmark(group="puzzle")
@pytest.mark.parametrize("size", [64, 128])
@EACH
def test_puzzle(benchmark: BenchmarkFixture, size: int, factor: Factor) -> None:
    x = torch.randn(1, 1, size, size, size)
    z = benchmark(puzzle, x, factor)
    assert z.numel() == x.numel()


@pytest.mark.benchmark(group="unpuzzle")
@pytest.mark.parametrize("size", [64, 128])
@EACH
def test_unpuzzle(benchmark: BenchmarkFixture, size: int, factor: Factor) -> None:
    x = torch.randn(1, 1, size, size, size)
    assert torch.equal(benchmark(unpuzzle, puzzle(x, factor), factor), x)


@pytest.mark.benchmark(group="puzzle")
@pytest.mark.parametrize("size", [64, 128])
def test_a_copy_as_the_yardstick(benchmark: BenchmarkFixture, size: int) -> None:
    x = torch.randn(1, 1, size, size, size)
    assert torch.equal(benchmark(torch.clone, x), x)
