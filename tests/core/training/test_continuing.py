"""The best weights so far, a warm start from a checkpoint, and more steps for a finished run."""

import json
import math
import shutil
import warnings

import pytest
import torch
from safetensors.torch import load_file
from tiny_methods import tiny
from tiny_training import TINY, pair, same, tuned, weights

from ppdm.checkpoint import CheckpointError, Trained, save
from ppdm.data.scaling import SUVScaling
from ppdm.training.log import best_validation
from ppdm.training.loop import fit
from ppdm.training.run import Run, RunError
from ppdm.training.schedule import Schedule, TrainingError
from ppdm.training.state import read_state
from ppdm_baselines import latent

pytestmark = pytest.mark.slow

PAIRS = [pair(i) for i in range(3)]
HELD = [pair(7)]


class Died(Exception):
    """Raised by a progress callback to end training like a crash."""


def rows(log):
    return [json.loads(line) for line in log.read_text().splitlines()]


def saved(folder, network, method=TINY):
    return save(folder, Trained(method, network, SUVScaling(), (1.0, 1.0, 1.0), 1, 0))


# --- the best so far


@pytest.fixture
def losses(monkeypatch):
    """Return a list; training takes its validation losses from it, in order."""
    values = []
    monkeypatch.setattr("ppdm.training.session.validation_loss", lambda *_: values.pop(0))
    return values


def test_the_best_weights_are_those_of_the_lowest_validation_loss(losses, tmp_path):
    best = []
    losses[:] = [3.0, 2.0, 2.2, 2.0, 1.5, 2.5]
    options = {"steps": 6, "validation": HELD, "validate_every": 1, "log": tmp_path / "log.jsonl"}
    fit(TINY, PAIRS, on_best=lambda r, network: best.append((r.step, weights(network))), **options)
    assert [step for step, _ in best] == [1, 2, 5]
    assert [row["step"] for row in rows(tmp_path / "log.jsonl") if "best" in row] == [1, 2, 5]
    assert best_validation(tmp_path / "log.jsonl") == (5, 1.5)
    assert not all(torch.equal(p, q) for p, q in zip(best[1][1], best[2][1], strict=True))


def test_a_validation_loss_that_is_not_finite_stops_the_training(losses, tmp_path):
    losses[:] = [3.0, math.nan]
    with pytest.raises(TrainingError, match="stopped at step 2: the validation loss is nan"):
        fit(TINY, PAIRS, steps=4, validation=HELD, validate_every=1, log=tmp_path / "log.jsonl")
    assert [row["step"] for row in rows(tmp_path / "log.jsonl")] == [1]


def test_a_resumed_run_remembers_its_best_validation_loss(losses, tmp_path):
    losses[:] = [3.0, 1.0, 2.0, 2.0, 0.5]
    best = []
    options = {"steps": 5, "validation": HELD, "validate_every": 1, "on_best": lambda r, _: best.append(r.step)}

    def die(report):
        if report.step == 3:
            raise Died

    with pytest.raises(Died):
        fit(TINY, PAIRS, run=Run(tmp_path / "run", save_steps=1), progress=die, **options)
    losses[:0] = [2.0]  # step 3 is repeated
    fit(TINY, PAIRS, run=Run(tmp_path / "run", resume=True), **options)
    assert best == [1, 2, 5]
    assert best_validation(tmp_path / "run" / "log.jsonl") == (5, 0.5)


def test_only_the_last_stage_has_best_weights(losses):
    losses[:] = [1.0, 1.0, 5.0, 4.0]
    best = []
    fit(
        tiny(latent.MATCHED),
        PAIRS,
        steps=4,
        validation=HELD,
        validate_every=1,
        on_best=lambda report, _: best.append((report.step, report.stage)),
    )
    assert best == [(3, "diffusion"), (4, "diffusion")]


def test_a_log_without_validation_has_no_best_step(tmp_path):
    fit(TINY, PAIRS, steps=1, log=tmp_path / "log.jsonl")
    assert best_validation(tmp_path / "log.jsonl") is None


# --- a warm start


def test_a_warm_start_begins_with_the_weights_of_the_checkpoint(tmp_path):
    first = fit(TINY, PAIRS, steps=3)
    path = saved(tmp_path / "first", first)
    started = []
    small = tuned(TINY, learning_rate=1e-30, weight_decay=0.0)
    for init_from in (path, tmp_path / "first", None):
        started.append(fit(small, PAIRS, steps=1, init_from=init_from, seed=5))
    assert same(started[0], first)
    assert same(started[1], first)
    assert not same(started[2], first)


def test_a_warm_start_refuses_another_network(tmp_path):
    path = saved(tmp_path / "first", fit(TINY, PAIRS, steps=1))
    with pytest.raises(CheckpointError, match=r"holds another network than that of ppdm .* expected \(.*and \d+ more"):
        fit(TINY.with_network(width=16), PAIRS, steps=1, init_from=path)
    with pytest.raises(CheckpointError, match="does not exist"):
        fit(TINY, PAIRS, steps=1, init_from=tmp_path / "absent")


def test_a_run_resumes_only_with_the_warm_start_that_it_began_with(tmp_path):
    paths = [saved(tmp_path / str(seed), fit(TINY, PAIRS, steps=1, seed=seed)) for seed in (1, 2)]
    whole = fit(TINY, PAIRS, steps=4, init_from=paths[0])

    def die(report):
        raise Died

    with pytest.raises(Died):
        fit(TINY, PAIRS, steps=4, init_from=paths[0], run=Run(tmp_path / "run", save_steps=1), progress=die)
    for other in (paths[1], None):
        with pytest.raises(RunError, match='init_from was "'):
            fit(TINY, PAIRS, steps=4, init_from=other, run=Run(tmp_path / "run", resume=True))
    assert same(fit(TINY, PAIRS, steps=4, init_from=paths[0], run=Run(tmp_path / "run", resume=True)), whole)


# --- more steps


@pytest.fixture
def finished(tmp_path):
    fit(TINY, PAIRS, steps=4, run=Run(tmp_path / "run"))
    return tmp_path / "run"


def test_a_finished_run_continues_to_more_steps(finished):
    before = load_file(finished / "state-000004.safetensors")
    rate = Schedule(steps=8).learning_rate(TINY, 4, 0.0)
    with pytest.warns(
        UserWarning, match=f"finished after step 4 continues to step 8.* rises to {rate:.3g}.* falls to 0"
    ):
        fit(TINY, PAIRS, steps=8, run=Run(finished, resume=True))
    log = rows(finished / "log.jsonl")
    assert [row["step"] for row in log] == list(range(1, 9))
    assert [row["learning_rate"] for row in log[4:]] == [
        Schedule(steps=8).learning_rate(TINY, k, 0.0) for k in range(4, 8)
    ]
    assert json.loads((finished / "options.json").read_text())["options"]["steps"] == 8
    after = load_file(finished / "state-000008.safetensors")
    step = "optimiser.step." + next(name for name in before if name.startswith("optimiser.step.")).split(".", 2)[2]
    assert (before[step], after[step]) == (4, 8)


def test_interrupted_additional_steps_resume_to_the_same_result(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "copy")
    with pytest.warns(UserWarning, match="continues to step 8"):
        whole = fit(TINY, PAIRS, steps=8, run=Run(tmp_path / "copy", resume=True))

    def more(dies_after, **how):
        def die(report):
            if report.step == dies_after:
                raise Died

        fit(TINY, PAIRS, steps=8, run=Run(finished, resume=True, **how), progress=die)

    with pytest.warns(UserWarning, match="continues to step 8"), pytest.raises(Died):
        more(5)  # only the options were saved
    with warnings.catch_warnings(action="error"), pytest.raises(Died):
        more(7, save_steps=1)
    assert read_state(finished / "state-000006.safetensors").report.step == 6
    assert same(fit(TINY, PAIRS, steps=8, run=Run(finished, resume=True)), whole)


@pytest.mark.parametrize("changes", [{"steps": 3}, {"steps": 8, "seed": 1}, {"steps": None, "minutes": 1.0}])
def test_a_finished_run_refuses_other_changes(finished, changes):
    before = {path.name: path.read_bytes() for path in finished.iterdir()}
    with pytest.raises(RunError, match=r"was started with other options.* give another folder\.$"):
        fit(TINY, PAIRS, **({"steps": 4} | changes), run=Run(finished, resume=True))
    assert {path.name: path.read_bytes() for path in finished.iterdir()} == before


def test_a_finished_run_without_its_last_checkpoint_refuses_more_steps(finished):
    run = Run(finished, resume=True)
    with run:
        run.clear()
    with pytest.raises(RunError, match=r"steps was 4, and is 8 now.* Only a finished run with its last checkpoint"):
        fit(TINY, PAIRS, steps=8, run=Run(finished, resume=True))
