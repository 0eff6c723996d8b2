"""Training in fp16 with loss scaling."""

import copy
import math

import pytest
import torch
from tiny_methods import tiny
from tiny_training import TINY, pair, same
from waiting import Waits

from ppdm.training.distributed import Ranks
from ppdm.training.loop import Interrupted, fit, train
from ppdm.training.run import Run
from ppdm.training.schedule import Schedule, TrainingError
from ppdm.training.trainer import Training
from ppdm_baselines import METHODS
from ppdm_bench.memory.workload import workload
from ppdm_bench.predictor.peak import measure_peak, predict_peak

HALF = TINY.with_network(precision="fp16")
PAIRS = [pair(seed) for seed in range(2)]


def test_losses_in_fp16_are_close_to_those_in_fp32():
    losses = {}
    for method in (TINY, HALF):
        reports = []
        fit(method, PAIRS, steps=4, progress=reports.append)
        assert all(report.skipped is None for report in reports)
        losses[method.network.precision] = [report.loss for report in reports]
    assert losses["fp16"] == pytest.approx(losses["fp32"], rel=0.02)
    assert losses["fp16"] != losses["fp32"]


def test_a_step_whose_gradients_overflow_changes_no_weights():
    training = Training.start(HALF)
    source, target = (torch.as_tensor(volume)[None, None] for volume in PAIRS[0])
    training.step(source, target, 1e-2)  # so that the average differs from the weights
    training.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**100)
    before, average = copy.deepcopy(training.network), copy.deepcopy(training.average)
    assert not same(before, average)
    loss, norm = training.step(source, target, 1e-2)
    assert loss.isfinite()
    assert not norm.isfinite()
    assert same(training.network, before)
    assert same(training.average, average)
    assert training.scaler.get_scale() == 2.0**99
    assert all(float(state["step"]) == 1 for state in training.optimizer.inner.state.values())


def test_an_overflow_of_the_discriminator_skips_the_step_of_both_networks():
    training = Training.start(tiny(METHODS["gan3d"]).with_network(precision="fp16"))
    source, target = (torch.as_tensor(volume)[None, None] for volume in PAIRS[0])
    training.step(source, target, 1e-2)
    before, average = copy.deepcopy(training.trained_modules), copy.deepcopy(training.average)
    training.add_gradient(source, target)
    next(training.discriminator.parameters()).grad.fill_(math.inf)
    assert not training.update(1e-2).isfinite()
    assert all(same(now, then) for now, then in zip(training.trained_modules, before, strict=True))
    assert same(training.average, average)


def test_skipped_steps_are_logged(monkeypatch, tmp_path):
    monkeypatch.setattr(Training, "_enter", entering(Training._enter, 2.0**20))
    reports = []
    fit(HALF, PAIRS, steps=6, progress=reports.append, log=tmp_path / "log.jsonl")
    skipped = [report.gradient_norm is None for report in reports]
    assert skipped == sorted(skipped, reverse=True)
    assert 0 < sum(skipped) < 6
    assert reports[-1].skipped == sum(skipped)
    assert math.isfinite(reports[-1].gradient_norm)
    assert (tmp_path / "log.jsonl").read_text().count("gradient_norm") == 6 - sum(skipped)


def test_overflow_that_persists_ends_the_training(monkeypatch, tmp_path):
    """After a resume the first step already raises the error, because the scale is part of the state."""
    enter, reports = entering(Training._enter, 4.0), []

    def overflowing(self, *arguments):
        enter(self, *arguments)
        next(self.trained.parameters()).register_hook(lambda gradient: gradient * math.inf)

    monkeypatch.setattr(Training, "_enter", overflowing)
    sentence = (
        r"step 3: gradients still overflowed in fp16 when the loss scale fell to 0\.5.* Try precision bf16 or fp32"
    )
    with pytest.raises(TrainingError, match=sentence):
        fit(HALF, PAIRS, steps=9, progress=reports.append)
    assert [report.skipped for report in reports] == [1, 2, 3]
    with pytest.raises(Interrupted):
        train(HALF, PAIRS, Schedule(9), run=Run(tmp_path), stop=lambda: len(reports) == 5, progress=reports.append)
    with pytest.raises(TrainingError, match=sentence):
        fit(HALF, PAIRS, steps=9, run=Run(tmp_path, resume=True))


def entering(enter, scale):
    def entered(self, *arguments):
        enter(self, *arguments)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=scale)

    return entered


def test_an_interrupted_run_resumes_to_the_same_bits(monkeypatch, tmp_path):
    """The loss scale changes during training, so it is part of the state."""
    monkeypatch.setattr(Training, "_enter", entering(Training._enter, 2.0**20))
    whole = fit(HALF, PAIRS, steps=6, run=Run(tmp_path / "whole"))
    done = []
    with pytest.raises(Interrupted):
        train(
            HALF,
            PAIRS,
            Schedule(6),
            run=Run(tmp_path / "half"),
            stop=lambda: len(done) == 3,
            progress=done.append,
        )
    again = fit(HALF, PAIRS, steps=6, run=Run(tmp_path / "half", resume=True))
    assert same(whole, again)


@pytest.mark.parametrize("scale", [2.0**16, 2.0**100])
def test_no_step_makes_the_host_wait_even_if_it_is_skipped(scale):
    training = Training.start(HALF)
    training.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    source, target = (torch.as_tensor(volume)[None, None] for volume in PAIRS[0])
    for _ in range(2):  # the first step creates the optimiser state
        with Waits() as waits:
            training.step(source, target, 1e-3)
        assert waits.found == []


def test_an_overflow_on_another_rank_skips_the_step_here(monkeypatch):
    training = Training.start(HALF)
    before = copy.deepcopy(training.network)
    source, target = (torch.as_tensor(volume)[None, None] for volume in PAIRS[0])
    assert training.add_gradient(source, target).isfinite()
    assert all(weight.grad.isfinite().all() for weight in training.trained.parameters())
    monkeypatch.setattr(Ranks, "mean", lambda self, value: value.index_fill_(0, torch.tensor([0]), math.inf))
    Ranks(0, 2).average_gradients(training.trained)
    assert not training.update(1e-2).isfinite()
    assert same(training.network, before)
    assert training.scaler.get_scale() == 2.0**15


def test_accumulated_batches_in_fp16_have_the_gradient_of_one_batch_in_fp32():
    norms = []
    source, target = (torch.as_tensor(volume)[None, None] for volume in PAIRS[0])
    for method, batches in ((TINY, 1), (HALF, 2)):
        training = Training.start(method)
        for _ in range(batches):
            training.add_gradient(source, target, torch.Generator().manual_seed(0), batches)
        norms.append(float(training.update(1e-3)))
    assert norms[1] == pytest.approx(norms[0], rel=0.02)


@pytest.mark.slow
def test_every_stage_has_its_own_loss_scale_which_is_restored():
    method = METHODS["latent"].with_network(width=8, multipliers=(1, 2), precision="fp16")
    training, resumed = Training.start(method), Training.start(method)
    source, target = torch.rand(2, 1, 1, *(max(size, 8) for size in method.multiple))
    for stage in range(len(method.stages)):
        assert training.scaler.get_scale() == 2.0**16
        training.step(source, target, 1e-3)
        training.scaler.update(2.0 ** (10 + stage))
        resumed.restore(training.tensors(), training.done)
        assert resumed.scaler.state_dict() == training.scaler.state_dict()
        for each in (training, resumed):
            assert each.step(source, target, 1e-3, torch.Generator().manual_seed(0))[1].isfinite()
        assert same(training.network, resumed.network)
        if not training.is_last:
            training.advance([target])


@pytest.mark.slow
def test_the_predicted_memory_of_a_step_equals_the_measured_one():
    work = workload(HALF, "train", (16, 16, 16), 1, "cpu")
    predicted = predict_peak(work.build, work.step, work.iterations, "cpu")
    measured = measure_peak(work.build, work.step, work.iterations, "cpu")
    assert predicted.peak_allocated == measured.peak_allocated
    assert predicted.breakdown == measured.breakdown
