"""``ppdm-bench train``: the best model, initial weights, more steps, the loss figure, progress and threads."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from commands import refused, run
from tiny_training import TINY, manifest, same

from ppdm.checkpoint import load
from ppdm.training.log import StepReport, best_validation
from ppdm_bench.commands.training_run import ProgressLines, advice_on_threads

pytestmark = pytest.mark.slow


@pytest.fixture
def words(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    manifest(tmp_path)
    return "train", "--manifest", "pairs.csv", "--method", "tiny_training:TINY", "--steps", 4, "--device", "cpu"


def test_a_run_keeps_its_best_and_its_last_model_and_a_loss_figure(words, monkeypatch):
    losses = [3.0, 1.0, 2.0, 2.0]
    monkeypatch.setattr("ppdm.training.session.validation_loss", lambda *_: losses.pop(0))
    code, out, _ = run(*words, "--validate-every", 1, "--out", "run")
    assert code == 0
    assert "lowest validation loss 1.0000 after step 2: run/best\n" in out
    assert best_validation("run/log.jsonl") == (2, 1.0)
    last, best = load("run"), load("run/best")
    assert (last.steps, best.steps, best.method) == (4, 2, replace(TINY, name="tiny"))
    assert not same(last.network, best.network)
    assert Path("run/loss.png").read_bytes().startswith(b"\x89PNG")


def test_init_from_loads_weights_and_refuses_those_of_another_network(words):
    assert run(*words, "--out", "first")[0] == 0
    slow = ("--learning-rate", 1e-30, "--seed", 5)
    assert run(*words, *slow, "--init-from", "first/model.safetensors", "--out", "second")[0] == 0
    assert same(load("first").network, load("second").network)
    sentence = refused(1, *words, "--width", 16, "--init-from", "first", "--out", "third")
    assert "first holds another network than that of tiny" in sentence
    assert "expected (16" in sentence
    assert "absent does not exist" in refused(1, *words, "--init-from", "absent", "--out", "third")


@pytest.mark.filterwarnings("default:The run that was finished")
def test_a_finished_run_can_continue_with_more_steps(words):
    assert run(*words, "--out", "run")[0] == 0
    code, out, err = run(*words, "--out", "run", "--resume", "--steps", 6)
    assert code == 0
    assert "finished after step 4 continues to step 6. Its learning rate had fallen to 0; now it rises to " in err
    assert out.startswith("6 steps in ")
    assert load("run").steps == 6
    assert [json.loads(line)["step"] for line in Path("run/log.jsonl").read_text().splitlines()] == [1, 2, 3, 4, 5, 6]
    assert "run is complete: 6 steps" in run(*words, "--out", "run", "--resume", "--steps", 6)[1]
    assert sorted(path.name for path in Path("run").glob("state-*")) == [
        "state-000006.json",
        "state-000006.safetensors",
    ]


def test_an_interrupted_run_also_has_a_loss_figure(words, monkeypatch):
    monkeypatch.setattr("ppdm_bench.commands.training_run._stop_requested", lambda: stopping())
    assert run(*words, "--out", "run")[0] == 130
    assert Path("run/loss.png").exists()


class stopping:
    """A context manager that makes a training stop immediately."""

    def __enter__(self):
        return lambda: True

    def __exit__(self, *_):
        pass


def test_a_missing_tensorboard_is_reported_before_any_file_is_written(words, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert "pip install tensorboard" in refused(1, *words, "--tensorboard", "--out", "run")
    assert not Path("run").exists()


def test_a_training_that_learned_nothing_is_reported_at_its_end(words):
    code, out, _ = run(*words, "--set", "optimisation.learning_rate=1e-12", "--out", "run")
    assert (code, out.count("the network is no better than an untrained one: its loss is ")) == (0, 1)
    learns = ("--set", "optimisation.learning_rate=1e-2", "--steps", 40, "--out", "learnt")
    assert "untrained" not in run(*words, *learns)[1]


# --- warnings before the training


def test_a_validation_interval_longer_than_the_training_causes_a_warning(words):
    code, _, err = run(*words, "--validate-every", 5, "--out", "late")
    assert code == 0
    assert "4 steps are fewer than the 5 of --validate-every, so the only validation is that after the last step" in err
    assert "such as 1, to keep the best of several models" in err
    for more in (("--validate-every", 4), ()):
        assert "--validate-every" not in run(*words, *more, "--out", f"in time {len(more)}")[2]


# --- progress without a terminal


def report(step, seconds, **more):
    return StepReport(step, step / 400, 0.25, 1.0, 1e-3, seconds, **more)


def test_a_progress_line_is_printed_every_30_seconds():
    lines = []
    follow = ProgressLines(lines.append)
    for step in range(1, 101):
        follow(report(step, float(step), validation_loss=0.5 if step == 61 else None))
    assert lines == [
        "step 30 (8%), loss 0.2500, 1.00 steps/s, 0:06:10 left",
        "step 60 (15%), loss 0.2500, 1.00 steps/s, 0:05:40 left",
        "step 90 (22%), loss 0.2500, 1.00 steps/s, 0:05:10 left",
    ]


def test_a_slow_step_delays_the_next_line_which_includes_the_validation_loss():
    lines = []
    follow = ProgressLines(lines.append)
    for step, seconds in ((1, 100.0), (2, 129.0), (3, 131.0)):
        follow(report(step, seconds, validation_loss=0.5))
    assert [line.split(",")[0] for line in lines] == ["step 1 (0%)", "step 3 (1%)"]
    assert "loss 0.2500, validation loss 0.5000, " in lines[0]


def test_progress_lines_are_written_to_stderr(words, tmp_path, monkeypatch):
    manifest(tmp_path, splits=("train", "val", "test"))
    now = iter(range(0, 10**6, 20))
    monkeypatch.setattr("ppdm.training.session.time", SimpleNamespace(perf_counter=lambda: next(now)))
    code, out, err = run(*words, "--out", "run")
    assert code == 0
    assert [line.split(",")[0] for line in err.splitlines()] == [
        "ppdm-bench: step 2 (50%)",
        "ppdm-bench: step 4 (100%)",
    ]
    assert "step 2 (50%)" not in out


# --- threads


@pytest.mark.parametrize(
    ("threads", "load", "cores", "better"),
    [(1, 9.0, 2, None), (2, 0.3, 2, 1), (2, 0.0, 2, None), (2, 1.4, 2, 1), (4, 3.5, 8, None), (8, 3.5, 8, 4)],
)
def test_more_threads_than_idle_cores_are_advised_against(threads, load, cores, better):
    advice = advice_on_threads(threads, load, cores)
    assert advice.endswith(f"try --threads {better}") if better else advice == ""


def test_threads_are_set_and_a_loaded_machine_is_reported(words, monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr("os.getloadavg", lambda: (50.0, 0.0, 0.0))
    code, _, err = run(*words, "--threads", 3, "--out", "run")
    assert (code, asked) == (0, [3])
    assert "this machine is loaded (load 50.0 on " in err
    assert "training uses 3 threads" in err
    assert json.loads(Path("run/options.json").read_text())["environment"]["threads"] == 3
