"""The picture of the losses, and the output for TensorBoard."""

import json
import sys
from types import ModuleType

import matplotlib.figure
import pytest
from PIL import Image
from tiny_training import TINY, pair

from ppdm.training.log import StepReport
from ppdm.training.loop import fit
from ppdm.training.loss_curve import save_loss_curve
from ppdm.training.schedule import TrainingError
from ppdm.training.tensorboard import TensorBoard

PAIRS = [pair(i) for i in range(2)]


@pytest.fixture
def figures(monkeypatch):
    """Return a list that collects the saved figures."""
    seen, real = [], matplotlib.figure.Figure.savefig
    monkeypatch.setattr(
        matplotlib.figure.Figure, "savefig", lambda self, *a, **k: seen.append(self) or real(self, *a, **k)
    )
    return seen


def curves(figure):
    (axes,) = figure.axes
    return {line.get_label(): line.get_xydata().tolist() for line in axes.lines}


def test_the_picture_shows_training_and_validation_losses(tmp_path, figures):
    reports = []
    log = tmp_path / "log.jsonl"
    fit(TINY, PAIRS, steps=5, validation=PAIRS[:1], validate_every=2, log=log, progress=reports.append)
    save_loss_curve(log, tmp_path / "loss.png")
    with Image.open(tmp_path / "loss.png") as picture:
        assert picture.format == "PNG"
    (axes,) = figures[0].axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("training step", "loss")
    shown = curves(figures[0])
    assert shown["training, single steps"] == [[r.step, r.loss] for r in reports]
    validated = [[r.step, r.validation_loss] for r in reports if r.validation_loss is not None]
    assert shown["validation"] == validated
    assert [step for step, _ in validated] == [2, 4, 5]
    lowest = min(validated, key=lambda point: point[1])
    assert shown[f"lowest validation loss, step {lowest[0]}"] == [lowest]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_long_log_is_averaged_and_an_incomplete_line_is_ignored(tmp_path, figures):
    line = '{{"step": {}, "loss": {}}}\n'
    (tmp_path / "log").write_text("".join(line.format(k, 1.0 + k % 2) for k in range(1, 1001)) + '{"step": 1001, "lo')
    save_loss_curve(tmp_path / "log", tmp_path / "loss.png")
    shown = curves(figures[0])
    assert len(shown["training, single steps"]) == 1000
    assert len(shown["training, mean"]) == 50
    assert shown["training, mean"][0] == pytest.approx([10.5, 1.5])  # the mean of steps 1 to 20


def test_the_start_of_a_stage_is_marked(tmp_path, figures):
    stages = ["representation"] * 2 + ["diffusion"] * 2
    rows = [{"step": k, "loss": 1.0, "stage": stage} for k, stage in enumerate(stages, 1)]
    (tmp_path / "log").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    save_loss_curve(tmp_path / "log", tmp_path / "loss.png")
    marks = {label: x for label, points in curves(figures[0]).items() for x, _ in points if "stage" in label}
    assert marks == {"start of stage diffusion": 3}


@pytest.mark.parametrize("content", [None, ""])
def test_without_training_steps_no_picture_is_saved(tmp_path, content):
    if content is not None:
        (tmp_path / "log").write_text(content)
    save_loss_curve(tmp_path / "log", tmp_path / "loss.png")
    assert not (tmp_path / "loss.png").exists()


class Writer:
    """A stand-in for the writer of TensorBoard."""

    def __init__(self, folder, purge_step):
        self.folder, self.purge_step, self.scalars, self.closed = folder, purge_step, [], False
        WRITERS.append(self)

    def add_scalar(self, name, value, step):
        self.scalars.append((name, value, step))

    def close(self):
        self.closed = True


WRITERS: list[Writer] = []


def test_tensorboard_gets_every_number_under_its_step(tmp_path, monkeypatch):
    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    WRITERS.clear()
    with TensorBoard(tmp_path) as board:
        board(StepReport(4, 0.4, 0.5, 2.0, 1e-3, 8.0))  # the last step before a resume is reported again
        board(StepReport(5, 0.5, 0.25, 1.0, 1e-3, 10.0, validation_loss=0.75))
    (writer,) = WRITERS
    assert (writer.folder, writer.purge_step, writer.closed) == (str(tmp_path), 4, True)
    assert writer.scalars == [
        ("loss/training", 0.5, 4),
        ("gradient_norm", 2.0, 4),
        ("learning_rate", 1e-3, 4),
        ("steps_per_second", 0.5, 4),
        ("loss/training", 0.25, 5),
        ("loss/validation", 0.75, 5),
        ("gradient_norm", 1.0, 5),
        ("learning_rate", 1e-3, 5),
        ("steps_per_second", 0.5, 5),
    ]


def test_without_tensorboard_the_error_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    sentence = r"TensorBoard is not installed .*pip install tensorboard, or train without it"
    with pytest.raises(TrainingError, match=sentence):
        TensorBoard(tmp_path)
