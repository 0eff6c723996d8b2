"""A training run that is interrupted, at any moment and in any way, resumes to the same result."""

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from commands import refused, run
from safetensors.torch import load_file
from tiny_training import TINY, manifest, pair, same, tuned

from ppdm.checkpoint import CheckpointError
from ppdm.checkpoint import load as load_model
from ppdm.training.augment import Flip
from ppdm.training.log import Log
from ppdm.training.loop import Interrupted, fit, train
from ppdm.training.run import Run, RunError
from ppdm.training.schedule import Schedule, TrainingError
from ppdm.training.state import read_state, write_state
from ppdm.training.trainer import Training

pytestmark = pytest.mark.slow

HERE = Path(__file__).parents[2]
PAIRS = [pair(i) for i in range(3)]
OPTIONS = {"steps": 6, "batch_size": 2, "accumulate": 2, "augment": Flip(), "seed": 3}
TIMES = ("seconds", "steps_per_second", "resumed")


class Died(Exception):
    """Raised by a progress callback to end training like a crash."""


def go(folder, *, resume=True, save_steps=2, dies_after=None, method=TINY, pairs=PAIRS, **options):
    def progress(report):
        if report.step == dies_after:
            raise Died

    keeper = Run(folder, resume=resume, save_steps=save_steps, save_minutes=None)
    return fit(method, pairs, run=keeper, progress=progress, **{**OPTIONS, **options})


def rows(folder):
    """Return the rows of the log without the fields that differ between equal runs."""
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines]


def names(folder):
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


def states(*steps):
    return [f"state-{step:06d}.{suffix}" for step in steps for suffix in ("json", "safetensors")]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run: its folder and its network."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    return folder, go(folder)


@pytest.fixture(scope="module")
def died(tmp_path_factory):
    """The folder of a run that died in its fifth step and left the checkpoints of steps 2 and 4."""
    folder = tmp_path_factory.mktemp("died") / "run"
    with pytest.raises(Died):
        go(folder, dies_after=5)
    assert names(folder) == ["log.jsonl", "options.json", *states(2, 4)]
    return folder


@pytest.fixture
def half(tmp_path, died):
    """A copy of the folder of the run that died."""
    return shutil.copytree(died, tmp_path / "run")


def ends_alike(folder, whole):
    """Resume a run and compare everything with the uninterrupted run."""
    other, network = whole
    assert same(go(folder), network)
    tensors, wanted = (load_file(place / "state-000006.safetensors") for place in (folder, other))
    assert {name.split(".")[0] for name in wanted} == {"network", "average", "optimiser"}
    assert tensors.keys() == wanted.keys()
    assert all(torch.equal(tensors[name], wanted[name]) for name in wanted)
    assert rows(folder) == rows(other)
    assert len(rows(folder)) == 6
    return True


# --- resuming


def test_a_run_keeps_its_last_two_checkpoints_and_does_not_change_the_weights(whole):
    folder, network = whole
    assert names(folder) == ["log.jsonl", "options.json", *states(4, 6)]
    assert same(network, fit(TINY, PAIRS, **OPTIONS))


@pytest.mark.parametrize("dies_after", [1, 2, 3, 4, 5, 6])
def test_a_run_that_died_at_any_step_resumes_to_the_same_result(tmp_path, whole, dies_after):
    with pytest.raises(Died):
        go(tmp_path / "run", dies_after=dies_after)
    assert ends_alike(tmp_path / "run", whole)


def test_a_run_that_died_several_times_resumes_to_the_same_result(tmp_path, whole):
    for step in (1, 3, 5, 5, 6):
        with pytest.raises(Died):
            go(tmp_path / "run", dies_after=step)
    assert ends_alike(tmp_path / "run", whole)


def test_the_log_marks_where_a_run_was_resumed(half):
    go(half)
    lines = [json.loads(line) for line in (half / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in lines if line.get("resumed")] == [5]
    seconds = [line["seconds"] for line in lines]
    assert seconds == sorted(seconds)


def test_a_resumed_run_first_reports_its_last_completed_step(half):
    reports = []
    fit(TINY, PAIRS, run=Run(half, resume=True), progress=reports.append, **OPTIONS)
    assert [report.step for report in reports] == [4, 5, 6]
    assert [report.resumed for report in reports] == [False, True, False]


def test_resuming_a_finished_run_takes_no_step(whole):
    folder, network = whole
    before = (folder / "log.jsonl").read_bytes()
    assert same(go(folder), network)
    assert (folder / "log.jsonl").read_bytes() == before


def test_resuming_without_a_run_starts_a_new_one(tmp_path, whole):
    assert same(go(tmp_path / "new" / "run"), whole[1])


def test_checkpoints_are_saved_at_intervals_of_time(tmp_path, monkeypatch):
    now = count(step=20)
    monkeypatch.setattr("ppdm.training.session.time", SimpleNamespace(perf_counter=lambda: next(now)))
    saved, real = [], Run.save
    monkeypatch.setattr(Run, "save", lambda self, state: saved.append(state.report.step) or real(self, state))
    fit(TINY, PAIRS, run=Run(tmp_path / "run", save_minutes=1.0), steps=8)
    assert saved == [3, 6, 8]


def test_a_time_budget_continues_where_it_was_interrupted(tmp_path, monkeypatch):
    now = count(step=1)
    monkeypatch.setattr("ppdm.training.session.time", SimpleNamespace(perf_counter=lambda: next(now)))
    budget = {"steps": None, "minutes": 0.1, "save_steps": 1}
    with pytest.raises(Died):
        go(tmp_path / "run", dies_after=4, **budget)
    go(tmp_path / "run", **budget)
    go(tmp_path / "whole", **budget)
    assert [row["step"] for row in rows(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")  # equal clocks give equal learning rates


def test_a_requested_stop_completes_the_step_and_saves_a_checkpoint(tmp_path, whole):
    asked = iter([False, False, True])
    with pytest.raises(Interrupted, match=r"after step 3 as requested; the last good checkpoint is .*state-000003"):
        train(TINY, PAIRS, Schedule(**OPTIONS), run=Run(tmp_path / "run"), stop=lambda: next(asked))
    assert names(tmp_path / "run") == ["log.jsonl", "options.json", *states(3)]
    assert ends_alike(tmp_path / "run", whole)


def test_a_requested_stop_without_a_run_saves_nothing():
    with pytest.raises(Interrupted, match="nothing was saved"):
        train(TINY, PAIRS, Schedule(**OPTIONS), stop=lambda: True)


# --- damaged files


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def alter(path):
    """Replace a number with another one, which no parser notices."""
    path.write_bytes(path.read_bytes().replace(b'"gradient_norm": ', b'"gradient_norm": 1'))
    if path.suffix == ".safetensors":
        path.write_bytes(path.read_bytes()[:-1] + b"\x3f")


def exchange(path):
    other = path.with_name(path.name.replace("000004", "000002"))
    path.write_bytes(other.read_bytes())


@pytest.mark.parametrize("suffix", ["safetensors", "json"])
@pytest.mark.parametrize(
    "damage", [cut, flip, alter, exchange, os.remove, lambda p: p.write_bytes(b""), lambda p: p.write_text("[3]")]
)
def test_resuming_with_a_damaged_checkpoint_uses_the_one_before(half, whole, damage, suffix):
    path = half / f"state-000004.{suffix}"
    damage(path)
    if suffix == "json" and not path.exists():  # without this file there never was a checkpoint: no warning
        assert ends_alike(half, whole)
        return
    with pytest.warns(UserWarning, match=r"state-000004.*resuming from state-000002, the checkpoint before it"):
        assert ends_alike(half, whole)
    assert names(half) == ["log.jsonl", "options.json", *states(4, 6)]


def test_a_damaged_checkpoint_does_not_count_as_one_of_the_two_kept(half, whole):
    cut(half / "state-000004.safetensors")
    with pytest.warns(UserWarning, match="state-000004"), pytest.raises(Died):
        go(half, save_steps=3, dies_after=4)
    assert names(half) == ["log.jsonl", "options.json", *states(2, 3)]
    assert ends_alike(half, whole)


def test_resuming_is_refused_if_all_checkpoints_are_damaged(half):
    for step in (2, 4):
        cut(half / f"state-00000{step}.safetensors")
    before = {path.name: path.read_bytes() for path in half.iterdir()}
    with pytest.raises(CheckpointError, match=r"state-000004.*state-000002.*start again in another folder"):
        go(half)
    assert {path.name: path.read_bytes() for path in half.iterdir()} == before


@pytest.mark.parametrize(
    "damage", [cut, os.remove, lambda p: p.write_text('{"schema": 2}'), lambda p: p.write_text("[]")]
)
def test_resuming_is_refused_if_the_options_cannot_be_read(half, damage):
    damage(half / "options.json")
    with pytest.raises(RunError, match=r"options\.json cannot be read .*start again"):
        go(half)


def test_lost_lines_of_the_log_give_a_warning(half, whole):
    (half / "log.jsonl").write_text("")
    with pytest.warns(UserWarning, match=r"log\.jsonl lacks lines"):
        assert same(go(half), whole[1])
    assert [row["step"] for row in rows(half)] == [5, 6]


def test_an_incomplete_log_line_and_partial_files_are_removed(half, whole):
    with (half / "log.jsonl").open("a") as log:
        log.write('{"step": 5, "lo')
    (half / f".state-000006.safetensors.{'0a' * 16}").write_bytes(b"half")
    (half / "state-000006.safetensors").write_bytes(b"whole, but its description was never written")
    assert ends_alike(half, whole)
    assert names(half) == ["log.jsonl", "options.json", *states(4, 6)]


@pytest.mark.parametrize("place", ["best", "after/000004"])
def test_partial_files_of_kept_models_are_removed(half, place):
    partial = half / place / f".model.safetensors.{'0a' * 16}"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(b"half")
    go(half)
    assert not partial.exists()


def test_a_checkpoint_of_another_network_is_refused(half, tmp_path):
    with pytest.raises(Died):
        go(tmp_path / "wide", method=TINY.with_network(width=16), dies_after=5)
    for name in states(4):
        (half / name).write_bytes((tmp_path / "wide" / name).read_bytes())
    mixed = r"step 4 in .*run belongs to another network: .*files of two runs were mixed"
    with pytest.raises(CheckpointError, match=mixed):
        go(half)


def test_a_state_of_another_network_changes_nothing():
    training = Training.start(TINY)
    tensors = {name: torch.zeros_like(tensor) for name, tensor in training.tensors().items()}
    for name in ("surprise", "optimiser.step.surprise", "step.stem.weight"):
        with pytest.raises(ValueError, match=f"^{name} is unexpected"):
            training.restore({**tensors, name: torch.zeros(1)}, 3)
    tensors.popitem()
    with pytest.raises(ValueError, match="is not in it"):
        training.restore(tensors, 3)
    assert training.done == 0
    assert same(training.network, Training.start(TINY).network)


# --- other options, other runs


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"method": TINY.with_network(width=16)}, "method.network.width was 8, and is 16 now"),
        ({"method": tuned(TINY, learning_rate=1.0)}, "method.optimisation.learning_rate was 0.001, and is 1.0 now"),
        ({"seed": 4}, "seed was 3, and is 4 now"),
        ({"steps": 12}, "steps was 6, and is 12 now"),
        ({"steps": None, "minutes": 1.0}, "steps was 6, and is null now; minutes was null, and is 1.0 now"),
        ({"batch_size": 1}, "batch_size was 2, and is 1 now"),
        ({"accumulate": 1}, "accumulate was 2, and is 1 now"),
        ({"augment": None}, 'augment was {"axes": "d"}, and is null now'),
        ({"augment": Flip("dh")}, 'augment.axes was "d", and is "dh" now'),
        ({"pairs": PAIRS[:2]}, "pairs.count was 3, and is 2 now"),
        ({"pairs": PAIRS[::-1]}, 'pairs.sha256 was "'),
        ({"pairs": [*PAIRS[:2], (PAIRS[2][0], PAIRS[2][1] + 1e-6)]}, 'pairs.sha256 was "'),
        ({"validate_every": 2, "validation": PAIRS}, "validate_every was null, and is 2 now"),
    ],
)
def test_resuming_with_other_options_is_refused(half, changes, difference):
    before = {path.name: path.read_bytes() for path in half.iterdir()}
    with pytest.raises(RunError) as caught:
        go(half, **changes)
    assert difference in str(caught.value)
    assert {path.name: path.read_bytes() for path in half.iterdir()} == before


def test_many_differences_of_options_are_counted(half):
    with pytest.raises(RunError, match=r"; .*; .* and 2 more\. Resume it with the same options"):
        go(half, seed=4, steps=12, batch_size=1, accumulate=1, augment=None)


def test_a_folder_with_a_run_is_refused_unless_it_is_resumed(half):
    with pytest.raises(RunError, match=r"holds a run already \(log\.jsonl, options\.json, state-000002.*resume it"):
        go(half, resume=False)


def test_resuming_with_another_torch_version_gives_a_warning(half, whole):
    options = json.loads((half / "options.json").read_text())
    options["environment"]["torch"] = "1.0"
    (half / "options.json").write_text(json.dumps(options))
    with pytest.warns(UserWarning, match=r'torch was "1\.0", and is .* not be bit-identical'):
        assert ends_alike(half, whole)


def test_only_one_process_trains_in_a_folder(tmp_path):
    folder = tmp_path / "run"
    hold = f"from ppdm.training.run import Run\nwith Run({str(folder)!r}): print('held', flush=True); input()"
    path = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    child = subprocess.Popen(
        [sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ | path
    )
    with child:
        assert child.stdout.readline() == b"held\n"
        with pytest.raises(RunError, match="Another process is training in"):
            go(folder)
        child.kill()
    assert go(folder, steps=1) is not None  # the lock of a killed process is free


def test_a_run_needs_a_writable_folder_and_its_own_log(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RunError, match="cannot be written"):
        go(tmp_path / "file" / "run")
    with pytest.raises(TrainingError, match="keeps its own log"):
        fit(TINY, PAIRS, steps=1, run=Run(tmp_path / "run"), log=tmp_path / "log")


# --- errors


@pytest.fixture
def small_files():
    """Return a function that limits the size of files, like a disk that is almost full."""
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, usual[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, usual)


def test_a_checkpoint_that_does_not_fit_on_the_disk_leaves_the_old_ones(half, whole, small_files):
    size = (half / "state-000004.safetensors").stat().st_size
    before = {name: (half / name).read_bytes() for name in names(half) if "state" in name}
    small_files(size // 2)
    with pytest.raises(
        CheckpointError, match=r"state-000006.safetensors cannot be written \(File too large\)"
    ) as caught:
        go(half)
    assert "the last good checkpoint is" in str(caught.value)
    assert "state-000004" in str(caught.value)
    assert {name: (half / name).read_bytes() for name in names(half) if "state" in name} == before
    small_files(resource.RLIM_INFINITY)
    assert ends_alike(half, whole)


def test_a_run_resumes_after_its_log_did_not_fit_on_the_disk(half, whole, small_files):
    with (half / "log.jsonl").open("rb") as log:
        first_four = sum(len(line) for line in list(log)[:4])
    small_files(first_four + 20)
    with pytest.raises(TrainingError, match=r"log\.jsonl cannot be written \((No space left|File too large)"):
        go(half)
    small_files(resource.RLIM_INFINITY)
    assert ends_alike(half, whole)


def test_an_error_in_the_first_checkpoint_says_that_there_is_none(tmp_path, monkeypatch):
    monkeypatch.setattr("ppdm.training.run.write_state", full_disk)
    with pytest.raises(CheckpointError, match=r"cannot be written \(No space left on device\); there is no checkpoint"):
        go(tmp_path / "run")


def full_disk(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_nan_loss_stops_training_and_overwrites_no_checkpoint(half, monkeypatch):
    before = {name: (half / name).read_bytes() for name in names(half) if "state" in name}
    real = Training.add_gradient
    monkeypatch.setattr(
        Training, "add_gradient", lambda self, *a: real(self, *a) * (torch.nan if self.done == 5 else 1)
    )
    with pytest.raises(TrainingError) as caught:
        go(half)
    assert "stopped at step 6: the loss is nan" in str(caught.value)
    assert "at a learning rate of " in str(caught.value)
    assert f"the last good checkpoint is {half / 'state-000004.safetensors'}" in str(caught.value)
    assert {name: (half / name).read_bytes() for name in names(half) if "state" in name} == before
    assert [row["step"] for row in rows(half)] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("kept", [True, False])
def test_weights_that_are_not_finite_are_never_saved(tmp_path, monkeypatch, kept):
    real = Training.update

    def poisoned(self, rate):
        norm = real(self, rate)
        if self.done == 4:
            next(self.network.parameters()).data.view(-1)[0] = torch.inf
        return norm

    monkeypatch.setattr(Training, "update", poisoned)
    keeper = Run(tmp_path / "run", save_steps=2) if kept else None
    with pytest.raises(TrainingError, match="stopped at step 4: a weight is not finite") as caught:
        fit(TINY, PAIRS, run=keeper, **(OPTIONS | {"steps": 4}))
    assert ("state-000002" in str(caught.value)) == kept
    assert not kept or names(tmp_path / "run") == ["log.jsonl", "options.json", *states(2)]


def test_a_checkpoint_holds_no_code_and_is_read_as_it_was_written(half, tmp_path):
    """A run has only files of safetensors and of JSON, which cannot hold code."""
    assert {Path(name).suffix for name in names(half)} == {".json", ".jsonl", ".safetensors"}
    place = half / "state-000004.safetensors"
    state, tensors = read_state(place), load_file(place)
    assert state.tensors.keys() == tensors.keys()
    assert all(torch.equal(state.tensors[name], tensors[name]) for name in tensors)
    assert (state.report.step, state.report.share) == (4, 4 / 6)
    assert state.log_bytes == sum(len(line) + 1 for line in (half / "log.jsonl").read_text().splitlines()[:4])
    assert json.loads(place.with_suffix(".json").read_text())["schema"] == 1
    write_state(tmp_path / place.name, state)
    for name in states(4):
        assert (tmp_path / name).read_bytes() == (half / name).read_bytes()


# --- the command line


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """Runs that were killed at every moment and resumed (see ``killed.py``): their folder, and how they ended."""
    folder = tmp_path_factory.mktemp("killed")
    manifest(folder)
    words = ("train", "--manifest", "pairs.csv", "--method", "tiny_training:TINY", "--steps", "3")
    path = os.pathsep.join([str(HERE), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, str(HERE / "killed.py"), ".", *words, "--augment", "flip", "--validate-every", "2"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode, done.stderr) == (0, "")  # and no run gave a warning
    return folder, json.loads(done.stdout.splitlines()[-1])


def test_runs_killed_at_any_moment_can_be_resumed(killed):
    _, ends = killed
    assert ends["plain"] == 0
    whole, continued = ends["moments"]
    assert whole == 0
    assert len(continued) > 20
    assert set(continued) == {0}
    # A kill may come after the end of the run.
    assert all(first in (-signal.SIGKILL, 0) and second == 0 for first, second in ends["outside"])
    assert ends["again"][:2] == [-signal.SIGKILL] * 2
    assert ends["again"][-1] == 0


def test_runs_killed_at_any_moment_end_with_the_same_files(killed):
    folder, ends = killed
    runs = [path.parent for path in folder.glob("*/options.json")]
    assert len(runs) == len(ends["moments"][1]) + len(("plain", "copied", "again", "outside-1", "outside-3"))
    plain = folder / "plain"
    for other in runs:
        files = ["best", "log.jsonl", "model.json", "model.safetensors", "options.json"]
        assert names(other) == [*files, *states(3)], other
        assert names(other / "best") == ["model.json", "model.safetensors"], other
        for name in ("best/model.json", "best/model.safetensors", "model.json", "model.safetensors", "options.json"):
            assert (other / name).read_bytes() == (plain / name).read_bytes(), other / name
        assert rows(other) == rows(plain), other
    assert [("validation_loss" in row) for row in rows(plain)] == [False, True, True]


@pytest.fixture
def words(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    manifest(tmp_path)
    return "train", "--manifest", "pairs.csv", "--method", "tiny_training:TINY", "--steps", 4, "--device", "cpu"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_completes_the_step_and_saves_a_checkpoint(words, monkeypatch, number):
    real = Log.write

    def interrupted(self, report):
        real(self, report)
        if report.step == 2 and not report.resumed:
            signal.raise_signal(number)  # returns after the handler has run, even with other threads

    run(*words, "--out", "whole")
    handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    with monkeypatch.context() as patch:
        patch.setattr(Log, "write", interrupted)
        code, out, err = run(*words, "--out", "run")
    assert (code, out) == (130, "")
    assert "stopped after step 2 as requested; the last good checkpoint is run/state-000002.safetensors" in err
    assert "--resume continues from there" in err
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert run(*words, "--out", "run", "--resume")[0] == 0
    assert Path("run/model.safetensors").read_bytes() == Path("whole/model.safetensors").read_bytes()
    assert names(Path("run")) == names(Path("whole"))


def test_a_second_signal_does_not_wait_for_the_step(words, monkeypatch):
    def impatient(self, report):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        pytest.fail("it continued")

    monkeypatch.setattr(Log, "write", impatient)
    assert run(*words, "--out", "run")[0] == 130
    assert names(Path("run")) == ["log.jsonl", "options.json"]


def test_a_finished_run_is_not_changed(words):
    assert run(*words, "--out", "run")[0] == 0
    before = {path.name: path.read_bytes() for path in Path("run").iterdir()}
    code, out, _ = run(*words, "--out", "run", "--resume")
    assert code == 0
    assert "run is complete: 4 steps done" in out
    assert "steps was 4, and is 3 now" in refused(1, *words, "--out", "run", "--resume", "--steps", 3)
    assert "holds a run already" in refused(1, *words, "--out", "run")
    assert {path.name: path.read_bytes() for path in Path("run").iterdir()} == before


def test_other_scans_with_the_same_file_names_are_refused(words, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("ppdm.training.on_manifest.save", full_disk)
        assert "No space left" in refused(1, *words, "--out", "run")
    (tmp_path / "0a.nii.gz").write_bytes((tmp_path / "2a.nii.gz").read_bytes())
    (tmp_path / "0b.nii.gz").write_bytes((tmp_path / "2b.nii.gz").read_bytes())
    assert 'pairs.sha256 was "' in refused(1, *words, "--out", "run", "--resume")


def test_a_model_that_could_not_be_written_is_written_on_resume(words, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("ppdm.checkpoint.write_together", full_disk)
        assert "run cannot be written (No space left on device)" in refused(1, *words, "--out", "run")
    assert names(Path("run")) == ["log.jsonl", "options.json", *states(4)]
    monkeypatch.setattr(Training, "add_gradient", lambda *_: pytest.fail("a step was done again"))
    assert run(*words, "--out", "run", "--resume")[0] == 0
    assert load_model("run").steps == 4


def test_a_full_disk_is_reported_with_the_file_name(words, monkeypatch):
    monkeypatch.setattr("ppdm.training.run.write_state", full_disk)
    sentence = refused(1, *words, "--out", "run", "--save-every", 1)
    assert "run/state-000001.safetensors cannot be written (No space left on device)" in sentence


def test_the_options_of_a_run_contain_its_schedule(words):
    more = ("--accumulate", 2, "--augment", "flip:dw", "--learning-rate", 3e-4, "--validate-every", 3)
    assert run(*words, *more, "--out", "run")[0] == 0
    kept = json.loads(Path("run/options.json").read_text())
    assert kept["notes"] == {"manifest": str(Path("pairs.csv").absolute())}
    options = kept["options"]
    assert (options["steps"], options["accumulate"], options["augment"]) == (4, 2, {"axes": "dw"})
    assert (options["validate_every"], options["pairs"]["count"], options["validation_pairs"]["count"]) == (3, 2, 1)
    # A method whose name is registered is renamed after its attribute.
    method = replace(TINY, name="tiny", optimisation=replace(TINY.optimisation, learning_rate=3e-4))
    assert options["method"] == method.to_dict()
    assert load_model("run").method == method
