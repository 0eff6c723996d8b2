"""``benchmarks/harness/blocks.py``: the measure of seams against values computed by hand, and its CSV."""

import blocks as script
import pytest
import torch
from tiny_methods import network, tiny

from ppdm import PPDM
from ppdm.checkpoint import Trained
from ppdm.data.scaling import SUVScaling
from ppdm.metrics import MetricError

SHAPE = (48, 16, 16)
METHOD = tiny(PPDM).in_blocks(16, 0.25)
BODY = torch.ones(SHAPE, dtype=torch.bool)


@pytest.fixture(scope="module")
def trained() -> Trained:
    return Trained(METHOD, network(METHOD), SUVScaling(), (1.0, 1.0, 1.0), 1, 0)


def test_borders_are_where_blocks_begin_and_end(trained: Trained) -> None:
    """The blocks have 8 of 24 latent voxels and start at 0, 6, 12 and 16; a latent voxel is two voxels wide."""
    d, h, w = script.borders_of(trained, SHAPE)
    assert d == ({12, 16, 24, 28, 32, 40}, 2)
    assert h == w == (set(), 2)


def test_a_random_change_has_a_seam_of_one(trained: Trained) -> None:
    change = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    assert script.seam(trained, change, BODY) == pytest.approx(1, abs=0.05)


def test_the_seam_divides_steps_at_block_borders_by_steps_at_other_cell_borders(trained: Trained) -> None:
    """The change rises by 1 between cells, by 3 at block borders, and not inside a cell."""
    rise = torch.zeros(48)
    rise[2::2] = 1
    rise[[12, 16, 24, 28, 32, 40]] = 3
    change = rise.cumsum(0)[:, None, None].expand(SHAPE)
    lines = 17 + 2 * 7 * 48 / 16  # other cell borders in planes of the first axis: planes of other axes have 48 lines
    assert script.seam(trained, change, BODY) == pytest.approx(3 / (17 / lines))


def test_without_a_block_border_inside_the_body_the_seam_is_refused(trained: Trained) -> None:
    body = BODY.clone()
    body[10:42] = False
    with pytest.raises(MetricError, match="no border of a block inside the body"):
        script.seam(trained, torch.zeros(SHAPE), body)


def test_rows_are_read_as_they_were_written(tmp_path) -> None:
    rows = [
        script.Row("a, b", 48, "test-000", 0, 0.0, "", 1, 20.5, 0.5),
        script.Row("a, b", 48, "test-000", 16, 0.25, "ramp", 8, 19.25, 0.25, 1.5, 1.125),
    ]
    script.write(tmp_path / "rows.csv", rows)
    assert script.read(tmp_path / "rows.csv") == rows
    assert script.read(tmp_path / "absent.csv") == []
