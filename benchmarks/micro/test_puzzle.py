"""Time of the puzzle and its inverse, compared with einops and a plain copy, which is the upper bound of bandwidth.

A permutation reads or writes with a stride, and therefore always costs more than a copy.
"""

import einops
import pytest
import torch
from conftest import Beside
from pytest_benchmark.fixture import BenchmarkFixture

from ppdm.pixel_puzzle import Factor, puzzle, unpuzzle

CELLS = "n c (d a) (h b) (w e)"
EACH = pytest.mark.parametrize("factor", [2, 4, (1, 2, 2)], ids=str)
SIZES = pytest.mark.parametrize("size", [64, 128])
ROUNDS = 40


def lengths(factor: Factor) -> dict[str, int]:
    return dict(zip("abe", (factor,) * 3 if isinstance(factor, int) else factor, strict=True))


def tell_bandwidth(benchmark: BenchmarkFixture) -> None:
    """Record the share of the copy's bandwidth: both move equally many bytes, so it is the ratio of their times."""
    if "beside" in benchmark.extra_info:
        slower = benchmark.extra_info["beside"]["copy"]["ratio"][1]
        benchmark.extra_info["share_of_copy_bandwidth"] = 1 / slower


@pytest.mark.benchmark(group="puzzle")
@SIZES
@EACH
def test_puzzle(benchmark: BenchmarkFixture, beside: Beside, size: int, factor: Factor) -> None:
    x = torch.randn(1, 1, size, size, size)

    def theirs() -> torch.Tensor:
        return einops.rearrange(x, f"{CELLS} -> n (c a b e) d h w", **lengths(factor))

    assert torch.equal(beside(lambda: puzzle(x, factor), {"einops": theirs, "copy": x.clone}, ROUNDS), theirs())
    tell_bandwidth(benchmark)


@pytest.mark.benchmark(group="unpuzzle")
@SIZES
@EACH
def test_unpuzzle(benchmark: BenchmarkFixture, beside: Beside, size: int, factor: Factor) -> None:
    x = torch.randn(1, 1, size, size, size)
    z = puzzle(x, factor)

    def theirs() -> torch.Tensor:
        return einops.rearrange(z, f"n (c a b e) d h w -> {CELLS}", **lengths(factor))

    assert torch.equal(beside(lambda: unpuzzle(z, factor), {"einops": theirs, "copy": z.clone}, ROUNDS), x)
    tell_bandwidth(benchmark)
