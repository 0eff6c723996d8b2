"""The bar over a whole command: what is left is reckoned from what took time; and a folder held alone."""

import io

import pytest
from rich.console import Console
from rich.progress import Progress

from ppdm_bench.commands import terminal
from ppdm_bench.commands.terminal import LOCK, OverallProgress, locked_folder, progress


@pytest.fixture
def clock(monkeypatch):
    """Seconds, in a list, that stand still until they are set."""
    now = [100.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def bar():
    return Progress(console=Console(file=io.StringIO()), auto_refresh=False)


def test_what_is_left_is_by_weight_what_took_time(bar, clock):
    whole = OverallProgress(bar, [1, 10, 10])
    assert whole.seconds_left() is None
    whole.show("the first")
    clock[0] += 2
    assert whole.seconds_left() is None
    whole.ended()
    assert whole.seconds_left() == 20 * 2
    clock[0] += 5
    assert whole.seconds_left() == 40 - 5
    clock[0] += 55
    assert whole.seconds_left() == 0  # it takes longer than reckoned, and is not yet done
    whole.ended()
    assert whole.seconds_left() == pytest.approx(10 * 62 / 11)
    clock[0] += 1
    whole.ended()
    assert whole.seconds_left() == 0
    assert bar.tasks[0].finished


def test_what_was_done_before_says_nothing_about_the_rest(bar, clock):
    whole = OverallProgress(bar, [1] * 5)
    for _ in range(3):
        clock[0] += 0.01
        whole.ended()
    assert whole.seconds_left() is None
    clock[0] += 30
    whole.ended()
    assert whole.seconds_left() == pytest.approx(30)
    assert bar.tasks[0].completed == 4


def test_a_share_of_a_piece_counts(bar, clock):
    whole = OverallProgress(bar, [100, 10])
    clock[0] += 20
    whole.show("half", 0.5)
    assert whole.seconds_left() == pytest.approx(60 * 20 / 50)
    clock[0] += 4
    assert whole.seconds_left() == pytest.approx(24 - 4)
    assert (bar.tasks[0].completed, bar.tasks[0].description) == (0.5, "half")


def test_the_bar_shows_what_is_left(monkeypatch, clock):
    screen = io.StringIO()
    monkeypatch.setattr("rich.console.Console", lambda **_: Console(file=screen, force_terminal=True, width=100))
    with progress() as bar:
        whole = OverallProgress(bar, [1, 100])
        clock[0] += 40
        whole.ended()
        whole.show("measuring")
        bar.refresh()
    assert "1/2" in screen.getvalue()
    assert "1:06:40" in screen.getvalue()
    assert "measuring" in screen.getvalue()


def test_a_folder_is_held_alone_and_let_go(tmp_path, capsys):
    from filelock import FileLock, Timeout

    with locked_folder(tmp_path / "a" / "b") as folder, pytest.raises(Timeout):
        FileLock(folder / LOCK).acquire(timeout=0)
    FileLock(folder / LOCK).acquire(timeout=0)
    assert capsys.readouterr().err == ""
