"""Check that unpuzzling restores every bit that the puzzle rearranged; it is fast and runs with every ``claims``."""

import torch
from torch import Tensor

from ppdm import puzzle, unpuzzle
from ppdm.pixel_puzzle import crop, pad_to_multiple
from ppdm.representation import Puzzle
from ppdm_bench.environment import environment
from ppdm_bench.records import Record, config_id

METRIC = "voxels_changed"

# Cubes and slabs, sizes that no factor divides, and factors that differ between axes.
_SHAPES = ((32, 32, 32), (24, 40, 16), (17, 30, 23), (5, 7, 3))
_FACTORS: tuple[int | tuple[int, int, int], ...] = (2, 3, 4, 8, (1, 2, 2), (4, 2, 1))
# Integers of the same width: random bits include NaN, infinities and negative zeros.
_DTYPES = {
    torch.float32: torch.int32,
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
    torch.int64: torch.int64,
}


def check_reversibility() -> list[Record]:
    """Puzzle and unpuzzle random bits for every shape, factor and dtype; each record counts the changed voxels.

    A size that the factor does not divide is padded before and cropped after, as in a method.
    """
    return [_record(shape, factor, dtype) for shape in _SHAPES for factor in _FACTORS for dtype in _DTYPES]


def _record(shape: tuple[int, int, int], factor: int | tuple[int, int, int], dtype: torch.dtype) -> Record:
    before = _bits(shape, dtype)
    padded = pad_to_multiple(before.view(dtype), factor)
    after = crop(unpuzzle(puzzle(padded, factor), factor), shape)
    name = str(dtype).removeprefix("torch.")
    options = {"shape": list(shape), "factor": factor, "dtype": name, "channels": 2}
    return Record(
        config_id=config_id(options),
        command="claims",
        variant=Puzzle(factor).label,
        shape=shape,
        precision=name,
        metric=METRIC,
        value=int((after.view(before.dtype) != before).sum()),
        unit="1",
        stat="count",
        n=before.numel(),
        kind="measured",
        seed=0,
        device="cpu",
        env=environment(),
        options=options,
    )


def _bits(shape: tuple[int, int, int], dtype: torch.dtype) -> Tensor:
    whole = _DTYPES[dtype]
    ends = torch.iinfo(whole)
    generator = torch.Generator().manual_seed(0)
    return torch.randint(ends.min, ends.max, (1, 2, *shape), dtype=whole, generator=generator)
