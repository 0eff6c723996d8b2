"""A run of several training stages that is interrupted in any of them resumes to the same result."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_methods import tiny
from tiny_training import pair, same

from ppdm import fit
from ppdm.checkpoint import CheckpointError
from ppdm.training.augment import Flip
from ppdm.training.run import Run
from ppdm.training.state import read_state
from ppdm_baselines import latent

METHOD = tiny(latent.MATCHED)
PAIRS = [pair(i) for i in range(3)]
TIMES = ("seconds", "steps_per_second", "resumed")


class Died(Exception):
    """Raised by a progress callback to end training like a crash."""


def go(folder, *, save_steps=1, dies_after=None):
    def progress(report):
        if report.step == dies_after:
            raise Died

    run = Run(folder, resume=True, save_steps=save_steps, save_minutes=None)
    how = {"steps": 6, "batch_size": 2, "accumulate": 2, "augment": Flip(), "seed": 3}
    return fit(METHOD, PAIRS, run=run, progress=progress, **how)


def rows(folder):
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    return folder, go(folder)


def ends_alike(folder, whole):
    other, network = whole
    assert same(go(folder), network)
    tensors, wanted = (load_file(place / "state-000006.safetensors") for place in (folder, other))
    assert tensors.keys() == wanted.keys()
    assert all(torch.equal(tensors[name], wanted[name]) for name in wanted)
    assert rows(folder) == rows(other)


@pytest.mark.slow
# Each stage has three steps. The last case loses a step of both stages.
@pytest.mark.parametrize(("dies_after", "save_steps"), [(2, 1), (3, 1), (4, 1), (5, 1), (4, 2)])
def test_a_run_that_died_in_either_stage_resumes_to_the_same_result(tmp_path, whole, dies_after, save_steps):
    with pytest.raises(Died):
        go(tmp_path / "run", dies_after=dies_after, save_steps=save_steps)
    ends_alike(tmp_path / "run", whole)


@pytest.mark.slow
def test_a_run_killed_in_its_second_stage_resumes_to_the_same_result(tmp_path, whole):
    code = f"import sys; sys.path[:0] = {sys.path!r}; import test_stages; test_stages.killed({str(tmp_path / 'run')!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], timeout=300)
    assert done.returncode == -signal.SIGKILL
    assert len(rows(tmp_path / "run")) == 5
    ends_alike(tmp_path / "run", whole)


def killed(folder):
    """Train, and kill this process after the fifth step, before a checkpoint of it is saved."""

    def progress(report):
        if report.step == 5:
            signal.raise_signal(signal.SIGKILL)

    run = Run(folder, resume=True, save_steps=2, save_minutes=None)
    fit(METHOD, PAIRS, run=run, progress=progress, steps=6, batch_size=2, accumulate=2, augment=Flip(), seed=3)


def test_the_log_and_the_checkpoint_contain_the_stage(whole):
    folder, _ = whole
    assert [row["stage"] for row in rows(folder)] == ["representation"] * 3 + ["diffusion"] * 3
    state = read_state(folder / "state-000006.safetensors")
    assert state.report.stage == "diffusion"
    assert state.tensors["stage"].tolist() == [1, 3]
    assert not any(name.startswith("optimiser.") and ".representation." in name for name in state.tensors)


def test_a_checkpoint_of_an_unknown_stage_is_refused(tmp_path, whole):
    with pytest.raises(Died):
        go(tmp_path / "run", dies_after=2)
    run = Run(tmp_path / "run", resume=True)
    state = run.latest()
    assert state is not None
    state.tensors["stage"][0] = 7
    with run:
        run.save(state)
    with pytest.raises(CheckpointError, match="there is no stage 7"):
        go(tmp_path / "run")
