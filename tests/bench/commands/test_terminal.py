"""The progress bar of a whole command with its estimate of the remaining time, and the lock of the output folder."""

import io
import sys

import pytest
from rich.console import Console
from rich.progress import Progress

from ppdm_bench.commands import terminal
from ppdm_bench.commands.terminal import LOCK, OverallProgress, locked_folder, progress, report_outcome


@pytest.fixture
def clock(monkeypatch):
    """Replace the clock; return a list with its time in seconds, which changes only when the test sets it."""
    now = [100.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def bar():
    return Progress(console=Console(file=io.StringIO()), auto_refresh=False)


def test_the_remaining_time_is_estimated_from_finished_pieces_by_weight(bar, clock):
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
    assert whole.seconds_left() == 0  # it takes longer than estimated and is not finished
    whole.ended()
    assert whole.seconds_left() == pytest.approx(10 * 62 / 11)
    clock[0] += 1
    whole.ended()
    assert whole.seconds_left() == 0
    assert bar.tasks[0].finished


def test_pieces_that_were_done_before_are_ignored_in_the_estimate(bar, clock):
    whole = OverallProgress(bar, [1] * 5)
    for _ in range(3):
        clock[0] += 0.01
        whole.ended()
    assert whole.seconds_left() is None
    clock[0] += 30
    whole.ended()
    assert whole.seconds_left() == pytest.approx(30)
    assert bar.tasks[0].completed == 4


def test_a_partly_finished_piece_counts_in_the_estimate(bar, clock):
    whole = OverallProgress(bar, [100, 10])
    clock[0] += 20
    whole.show("half", 0.5)
    assert whole.seconds_left() == pytest.approx(60 * 20 / 50)
    clock[0] += 4
    assert whole.seconds_left() == pytest.approx(24 - 4)
    assert (bar.tasks[0].completed, bar.tasks[0].description) == (0.5, "half")


def test_the_bar_shows_count_remaining_time_and_current_piece(monkeypatch, clock):
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


def test_a_folder_is_locked_inside_the_block_and_released_after_it(tmp_path, capsys):
    from filelock import FileLock, Timeout

    with locked_folder(tmp_path / "a" / "b") as folder, pytest.raises(Timeout):
        FileLock(folder / LOCK).acquire(timeout=0)
    FileLock(folder / LOCK).acquire(timeout=0)
    assert capsys.readouterr().err == ""


def test_an_outcome_without_files_names_none(capsys):
    assert report_outcome([], ["no job succeeded"], sys.stdout) == 1
    assert capsys.readouterr() == ("", "ppdm-bench: no job succeeded\n")
