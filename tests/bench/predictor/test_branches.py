from pathlib import Path

import pytest

from ppdm_bench.predictor.lines import Line
from ppdm_bench.predictor.script.branches import decided_by

TEXT = """
def train(net, best):
    loss = net.loss()
    value = loss.item()
    print(float(loss))
    if value < best:
        best = value
    while (
        net.grown()
        > 3
    ):
        pass
    assert net.finite()
    self.score = net.score()
    return 1 if self.score > 2 else [x for x in best if net.takes(x)]


def other(value):
    if value:
        value = net.loss().item()


def nested(net):
    value = net.loss().item()
    while net.grown():
        if value > 1:
            break
    if value > 2:
        net.stop()
"""


@pytest.mark.parametrize(
    ("line", "branch"),
    [(4, 6), (5, None), (6, 6), (10, 9), (13, 13), (14, 15), (15, 15), (20, 19), (3, None), (24, 26)],
)
def test_the_branch_that_a_line_decides_is_found(tmp_path: Path, line: int, branch: int | None) -> None:
    (tmp_path / "train.py").write_text(TEXT)
    file = str(tmp_path / "train.py")
    assert decided_by(Line(file, line)) == (branch and Line(file, branch))


def test_a_missing_or_broken_file_decides_no_branch(tmp_path: Path) -> None:
    assert decided_by(Line(str(tmp_path / "nothing.py"), 1)) is None
    (tmp_path / "broken.py").write_text("if (")
    assert decided_by(Line(str(tmp_path / "broken.py"), 1)) is None
