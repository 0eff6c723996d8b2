"""The training loop: weights, learning rates, batches, logs, errors, accumulation, time budgets and validation."""

import json
import math
from dataclasses import replace
from itertools import islice, product
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_training import DDPM, TINY, pair, same, tuned, weights

from ppdm.method import Method, Optimisation, training_loss
from ppdm.network import layers
from ppdm.training.log import StepReport
from ppdm.training.loop import fit
from ppdm.training.schedule import (
    Schedule,
    TrainingError,
    batch_indices,
    learning_rate,
    step_generator,
    timed_learning_rate,
    validation_generator,
)
from ppdm.training.trainer import Training, average_decay
from ppdm.training.validation import DRAWS, validation_loss
from ppdm_baselines import METHODS

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("method", [TINY, DDPM], ids=lambda m: m.name)
def test_the_seed_determines_the_weights_bit_for_bit(method):
    pairs = [pair(i) for i in range(3)]
    torch.manual_seed(5)
    first = fit(method, pairs, steps=4, batch_size=2, seed=1)
    torch.manual_seed(6)  # the global generator does not matter
    assert same(first, fit(method, pairs, steps=4, batch_size=2, seed=1))
    assert not same(first, fit(method, pairs, steps=4, batch_size=2, seed=2))


def test_training_does_not_change_the_global_generator():
    torch.manual_seed(1)
    wanted = torch.rand(3)
    torch.manual_seed(1)
    fit(TINY, [pair()], steps=1)
    assert torch.equal(torch.rand(3), wanted)


def test_the_initial_weights_depend_only_on_the_seed():
    a, b, c = (Training.start(TINY, seed=seed) for seed in (2**70, 2**70, 2**70 + 1))
    assert same(a.network, b.network)
    assert not same(a.network, c.network)
    assert same(a.network, a.average)


@pytest.mark.parametrize("method", [TINY, DDPM], ids=lambda m: m.name)
def test_the_same_loop_lowers_the_loss_of_each_method(method):
    reports = []
    method = tuned(method, learning_rate=5e-3, ema=0.9)
    trained = fit(method, [pair()], steps=80, progress=reports.append)
    source, target = (torch.from_numpy(v)[None, None] for v in pair())

    def held(network):  # fixed times and noise that do not occur in training
        with torch.no_grad():
            losses = [
                training_loss(method, network, source, target, torch.Generator().manual_seed(k)) for k in range(32)
            ]
        return torch.cat(losses).mean()

    assert len(reports) == 80
    assert held(trained) < 0.6 * held(Training.start(method).network)


def test_the_average_of_the_weights_follows_its_recurrence():
    method = tuned(TINY, ema=0.3)
    training = Training.start(method)
    source, target = (torch.from_numpy(v)[None, None] for v in pair())
    wanted = [p.double() for p in weights(training.network)]
    for k in range(5):
        training.step(source, target, 1e-2, step_generator(0, k))
        decay = min(0.3, (1 + k) / (10 + k))
        wanted = [decay * m + (1 - decay) * p.double() for m, p in zip(wanted, weights(training.network), strict=True)]
    assert training.done == 5
    assert not same(training.average, training.network)
    for got, mean in zip(training.average.parameters(), wanted, strict=True):
        torch.testing.assert_close(got.double(), mean, rtol=1e-5, atol=1e-6)


def test_the_decay_of_the_average_rises_to_its_final_value():
    assert [average_decay(0.999, k) for k in (0, 1, 8)] == [1 / 10, 2 / 11, 9 / 18]
    assert average_decay(0.999, 10**6) == 0.999
    assert average_decay(0.0, 100) == 0.0


def test_fit_returns_the_average_frozen_and_in_evaluation_mode():
    network = fit(TINY, [pair()], steps=1)
    assert not network.training
    assert not any(p.requires_grad for p in network.parameters())


def test_the_default_learning_rate_falls_with_the_width_and_a_given_one_does_not():
    def first_rate(method):
        reports = []
        fit(method, [pair()], steps=1, progress=reports.append)
        return reports[0].learning_rate

    by_rule, given = tuned(TINY, learning_rate=None), tuned(TINY, learning_rate=3e-4)
    assert [first_rate(by_rule.with_network(width=w)) for w in (8, 16)] == pytest.approx([2e-3, 1e-3])
    assert [first_rate(given.with_network(width=w)) for w in (8, 16)] == pytest.approx([3e-4, 3e-4])
    for name, method in METHODS.items():  # all compared methods have the same rule
        assert (name, method.with_network(width=64).learning_rate) == (name, 2.5e-4)
    again = Method.from_dict(json.loads(json.dumps(by_rule.to_dict())))
    assert again == by_rule
    assert again.optimisation.learning_rate is None


def test_the_learning_rate_rises_and_falls():
    o = Optimisation(learning_rate=2.0, warmup=10)
    rates = [learning_rate(o, k, 110) for k in range(110)]
    assert rates[:10] == pytest.approx([0.2 * (k + 1) for k in range(10)])
    assert rates[10] == 2.0
    assert rates[60] == pytest.approx(1.0)
    assert rates[35] == pytest.approx(1 + math.cos(math.pi / 4))
    assert 0 < rates[109] < 1e-3
    assert learning_rate(o, 110, 110) == pytest.approx(0)


def test_warmup_is_at_most_a_tenth_of_the_training():
    o = Optimisation(learning_rate=1.0, warmup=1000)
    assert [learning_rate(o, k, 20) for k in range(2)] == [0.5, 1.0]
    assert learning_rate(o, 0, 1) == 1.0


@pytest.mark.parametrize("clip", [1e-3, 1e6])
def test_gradients_are_clipped(clip):
    method = tuned(TINY, clip=clip)
    training = Training.start(method)
    seen = []
    training.optimizer.inner.register_step_pre_hook(
        lambda *_: seen.append(torch.cat([p.grad.flatten() for p in training.network.parameters()]).norm())
    )
    source, target = (torch.from_numpy(v)[None, None] for v in pair())
    _, norm = training.step(source, target, 1e-3, step_generator(0, 0))
    assert norm > 1e-2
    assert seen[0] == pytest.approx(min(clip, float(norm)), rel=1e-3)
    assert all(p.grad is None for p in training.network.parameters())


def test_the_optimiser_is_adamw_with_the_weight_decay_of_the_method():
    training = Training.start(tuned(TINY, weight_decay=0.125))
    assert isinstance(training.optimizer.inner, torch.optim.AdamW)
    assert training.optimizer.inner.param_groups[0]["weight_decay"] == 0.125
    assert training.optimizer.inner.param_groups[0]["fused"] is True


@settings(max_examples=20, deadline=None)
@given(count=st.integers(1, 9), batch_size=st.integers(1, 12), seed=st.integers(0, 5))
def test_every_pair_is_seen_before_any_is_seen_again(count, batch_size, seed):
    batches = list(islice(batch_indices(count, batch_size, seed), 2 * count))
    assert all(len(batch) == batch_size for batch in batches)
    order = [i for batch in batches for i in batch]
    for epoch in range(len(order) // count):
        assert sorted(order[epoch * count : (epoch + 1) * count]) == list(range(count))
    assert batches == list(islice(batch_indices(count, batch_size, seed), 2 * count))


def test_the_order_of_pairs_differs_between_epochs_and_seeds():
    order = [batch[0] for batch in islice(batch_indices(20, 1, 0), 40)]
    assert order[:20] != order[20:]
    assert order[:20] != [batch[0] for batch in islice(batch_indices(20, 1, 1), 20)]


def test_random_generators_of_steps_differ():
    draws = {float(torch.rand(1, generator=step_generator(seed, k))) for seed in range(3) for k in range(20)}
    assert len(draws) == 60


def test_shapes_may_differ_with_batch_size_1():
    network = fit(TINY, [pair(0, (8, 8, 8)), pair(1, (5, 9, 7))], steps=2)
    assert all(w.isfinite().all() for w in weights(network))


def test_training_uses_the_precision_and_checkpointing_of_the_method(monkeypatch):
    """Blocks are recomputed only if the method says so, with nearly equal weights; bf16 and fp32 weights differ."""
    calls = []
    real = layers.checkpoint
    monkeypatch.setattr(layers, "checkpoint", lambda *args, **kwargs: calls.append(args) or real(*args, **kwargs))
    found = {}
    for precision, checkpointing in product(("fp32", "bf16"), ("none", "block")):
        calls.clear()
        method = TINY.with_network(precision=precision, checkpointing=checkpointing)
        # No level may be two voxels deep, because there oneDNN does not initialise the bf16 gradient of the weights.
        found[precision, checkpointing] = weights(fit(method, [pair(shape=(16, 16, 16))], steps=2))
        assert bool(calls) == (checkpointing == "block")
    for precision in ("fp32", "bf16"):
        for p, q in zip(found[precision, "none"], found[precision, "block"], strict=True):
            assert p.dtype == torch.float32
            torch.testing.assert_close(p, q, rtol=0, atol=1e-3)
    assert any(not torch.equal(p, q) for p, q in zip(found["fp32", "none"], found["bf16", "none"], strict=True))


def test_tensors_and_arrays_of_unusual_layout_give_the_same_weights():
    source, target = pair()
    source, target = source[::-1], target[::-1]  # negative strides
    target.flags.writeable = False
    tensors = tuple(torch.tensor(v.copy())[None] for v in (source, target))
    assert same(fit(TINY, [(source, target)], steps=2), fit(TINY, [tensors], steps=2))


def test_volumes_may_have_several_channels():
    volumes = tuple(np.stack([v, v]) for v in pair())
    network = fit(TINY, [volumes], steps=1)
    assert network.in_channels == 2 * 2 * 8


def test_the_log_has_one_line_per_step(tmp_path):
    (tmp_path / "log.jsonl").write_text("of an earlier training\n")
    reports = []
    fit(TINY, [pair()], steps=3, log=tmp_path / "log.jsonl", progress=reports.append)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3]
    for row, report in zip(rows, reports, strict=True):
        fields = ["loss", "gradient_norm", "learning_rate", "seconds", "steps_per_second"]
        fields += ["average_loss", "untrained_loss"] if report is reports[-1] else []
        assert row == {"step": report.step} | {name: getattr(report, name) for name in fields}
    assert rows[0]["learning_rate"] == TINY.learning_rate
    assert 0 < rows[0]["seconds"] < rows[2]["seconds"]


def test_the_log_is_complete_after_every_step(tmp_path):
    path, seen = tmp_path / "log.jsonl", []
    fit(TINY, [pair()], steps=2, log=path, progress=lambda r: seen.append(len(path.read_text().splitlines())))
    assert seen == [1, 2]


def test_a_report_estimates_the_speed_and_the_remaining_time():
    report = StepReport(step=5, share=0.2, loss=0.1, gradient_norm=1.0, learning_rate=1e-3, seconds=10.0)
    assert (report.steps_per_second, report.remaining) == (0.5, 40.0)
    assert replace(report, share=1.2).remaining == 0


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_diverging_run_stops_with_an_explanation(tmp_path, precision):
    method = tuned(TINY.with_network(precision=precision), learning_rate=1e25)
    with pytest.raises(
        TrainingError, match=r"stopped at step \d+: the loss is .* learning rate below 1e\+25"
    ) as caught:
        fit(method, [pair()], steps=30, log=tmp_path / "log.jsonl")
    assert ("fp32 instead of bf16" in str(caught.value)) == (precision == "bf16")
    assert all(math.isfinite(json.loads(line)["loss"]) for line in (tmp_path / "log.jsonl").read_text().splitlines())


def test_an_infinite_gradient_with_a_finite_loss_stops_training():
    class Poison(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.p = torch.nn.Parameter(torch.zeros(()))

        def forward(self, x, t):
            return torch.sqrt(self.p) * torch.ones(len(t), 8, *x[0].shape[2:])  # finite, with an infinite gradient at 0

    window = replace(TINY.window)
    object.__setattr__(window, "build", lambda make, channels: Poison())
    with pytest.raises(TrainingError, match=r"at step 1: the loss is \d.* norm of the gradient (inf|nan)"):
        fit(replace(TINY, window=window), [pair()], steps=2)


def test_running_out_of_memory_gives_an_error_with_advice():
    def full(report):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB. And so on.")

    with pytest.raises(TrainingError, match=r"\(CUDA out of memory\); try a larger puzzle factor"):
        fit(TINY, [pair()], steps=1, progress=full)
    with pytest.raises(TrainingError, match=r"\(CUDA out of memory\); try bf16"):
        fit(DDPM, [pair()], steps=1, progress=full)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"steps": 0}, "steps must be an integer of at least 1, got 0"),
        ({"steps": 1.5}, "steps must be an integer"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"seed": -1}, "seed must be an integer of at least 0"),
        ({"accumulate": 0}, "accumulate must be an integer of at least 1"),
        ({"validate_every": 0}, "validate_every must be an integer of at least 1"),
        ({"minutes": 1}, "exactly one of steps and minutes; got steps 1 and minutes 1"),
        ({"steps": None}, "exactly one of steps and minutes; got steps None and minutes None"),
        ({"steps": None, "minutes": 0}, "minutes must be a positive number, got 0"),
        ({"steps": None, "minutes": math.nan}, "minutes must be a positive number, got nan"),
        ({"validate_every": 1}, "no pairs to validate on"),
        ({"validation": [pair()]}, "were given without validate_every"),
        ({"validation": [(pair()[0], pair()[0][:4])], "validate_every": 1}, "Pair 0 to validate on has the shapes"),
    ],
)
def test_invalid_options_are_refused(options, sentence):
    with pytest.raises(TrainingError, match=sentence):
        fit(TINY, [pair()], **({"steps": 1} | options))


# --- accumulation


@pytest.fixture
def constant_draws(monkeypatch):
    """Make times and noise the same for every subject in every batch."""
    monkeypatch.setattr(torch, "rand", lambda *shape, **_: torch.full(shape, 0.4))
    monkeypatch.setattr(torch, "randn", lambda shape, **_: torch.full(shape, 0.3))


def as_batch(indices):
    return tuple(torch.stack([torch.from_numpy(pair(i)[end])[None] for i in indices]) for end in (0, 1))


@pytest.mark.parametrize("batches", [1, 2, 3])
def test_accumulated_batches_give_the_gradient_of_one_large_batch(constant_draws, batches):
    apart, whole = Training.start(TINY), Training.start(TINY)
    losses = [apart.add_gradient(*as_batch((2 * i, 2 * i + 1)), batches=batches) for i in range(batches)]
    loss = whole.add_gradient(*as_batch(range(2 * batches)))
    assert float(sum(losses) / batches) == pytest.approx(float(loss), rel=1e-5)
    for p, q in zip(apart.network.parameters(), whole.network.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-7)
    assert any(p.grad.abs().max() > 1e-3 for p in whole.network.parameters())


def test_a_step_with_accumulated_batches_matches_one_with_a_large_batch(constant_draws):
    pairs, reports = [pair(i) for i in range(5)], {1: [], 4: []}
    networks = [fit(TINY, pairs, steps=3, batch_size=4 // n, accumulate=n, progress=reports[n].append) for n in reports]
    for p, q in zip(*(weights(n) for n in networks), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=2e-5)  # the first AdamW steps are signs, even for small gradients
    for a, b in zip(reports[1], reports[4], strict=True):
        assert a.step == b.step
        assert a.loss == pytest.approx(b.loss, rel=1e-4)
        assert a.gradient_norm == pytest.approx(b.gradient_norm, rel=1e-3)


def test_every_accumulated_batch_has_its_own_noise(monkeypatch):
    drawn, real = [], torch.randn

    def noted(*shape, **how):
        drawn.append(real(*shape, **how))
        return drawn[-1]

    monkeypatch.setattr(torch, "randn", noted)
    fit(TINY, [pair()], steps=2, accumulate=2)
    assert len(drawn) == 4 + 3 * DRAWS  # the comparison after the last step samples the same noise three times
    assert len({float(noise.sum()) for noise in drawn}) == 4 + DRAWS


# --- time budget


def clock(monkeypatch, tick=1.0):
    """Replace the clock with one that advances by `tick` seconds at every reading."""
    now = iter(range(10**6))
    monkeypatch.setattr("ppdm.training.session.time", SimpleNamespace(perf_counter=lambda: next(now) * tick))


def test_training_lasts_for_the_time_budget_and_the_learning_rate_follows_it(monkeypatch):
    clock(monkeypatch)
    reports, method = [], tuned(TINY, warmup=0)
    fit(method, [pair()], minutes=0.1, progress=reports.append)
    assert [r.seconds for r in reports] == [1, 2, 3, 4, 5, 6]
    assert reports[-1].share == 1
    full = method.learning_rate
    assert [r.learning_rate for r in reports] == pytest.approx(
        [full * 0.5 * (1 + math.cos(math.pi * second / 6)) for second in range(6)]
    )


def test_a_step_that_exceeds_the_time_budget_is_completed(monkeypatch):
    clock(monkeypatch, tick=50.0)
    reports = []
    fit(TINY, [pair()], minutes=0.01, progress=reports.append)
    assert [(r.step, r.share > 1) for r in reports] == [(1, True)]


def test_the_timed_learning_rate_rises_by_steps_or_by_time_whichever_is_faster():
    o = Optimisation(learning_rate=1.0, warmup=10)
    assert timed_learning_rate(o, 0, 0.0) == pytest.approx(0.1)
    assert timed_learning_rate(o, 4, 0.0) == pytest.approx(0.5)
    assert timed_learning_rate(o, 0, 0.05) == pytest.approx(0.5 * 0.5 * (1 + math.cos(0.05 * math.pi)))
    assert timed_learning_rate(o, 0, 0.5) == pytest.approx(0.5)
    assert timed_learning_rate(o, 10**6, 0.5) == pytest.approx(0.5)
    assert timed_learning_rate(replace(o, warmup=0), 0, 0.0) == 1
    assert timed_learning_rate(o, 99, 1.0) == pytest.approx(0)


def test_a_schedule_measures_its_share_in_steps_or_in_time():
    assert Schedule(steps=8).share(2, 1e9) == 0.25
    assert Schedule(minutes=2.0).share(10**9, 30.0) == 0.25


# --- validation


def test_validation_does_not_disturb_training(tmp_path):
    pairs, held, log = [pair(i) for i in range(3)], [pair(7), pair(8)], tmp_path / "log.jsonl"
    plain = fit(TINY, pairs, steps=5, batch_size=2)
    assert same(plain, fit(TINY, pairs, steps=5, batch_size=2, validation=held, validate_every=2, log=log))
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert [row["step"] for row in rows if "validation_loss" in row] == [2, 4, 5]  # also after the last step
    assert rows[-1]["validation_loss"] == validation_loss(TINY, plain, held)


def test_the_validation_loss_is_the_training_loss_with_fixed_noise():
    network, held = fit(TINY, [pair()], steps=2), [pair(7), pair(8)]
    torch.manual_seed(1)
    wanted = torch.rand(3)
    torch.manual_seed(1)
    values = [validation_loss(TINY, network, held, seed) for seed in (0, 0, 1)]
    assert torch.equal(torch.rand(3), wanted)
    assert values[0] == values[1] != values[2]
    losses = []
    for i, (source, target) in enumerate(held):
        generator = validation_generator(0, i)
        source, target = (torch.from_numpy(v)[None, None] for v in (source, target))
        losses += [float(training_loss(TINY, network, source, target, generator)) for _ in range(4)]
    assert values[0] == pytest.approx(sum(losses) / 8)


def with_nan():
    source, target = pair()
    target[1, 2, 3] = np.nan
    return source, target


@pytest.mark.parametrize(
    ("pairs", "batch_size", "sentence"),
    [
        ([], 1, "no pairs"),
        (
            [pair(), (pair()[0], pair()[1][:4])],
            1,
            r"Pair 1 to train on has the shapes \(1, 8, 8, 8\) and \(1, 4, 8, 8\)",
        ),
        ([(np.zeros((8, 8)), np.zeros((8, 8)))], 1, r"Pair 0 to train on has the shapes"),
        ([pair(), with_nan()], 1, "Pair 1 to train on holds values that are not finite"),
        ([pair(), pair(1), pair(2, (4, 8, 8))], 2, r"pair 2 \(1, 4, 8, 8\): a batch of 2 needs one shape"),
        ([pair(), tuple(np.stack([v, v]) for v in pair())], 1, "all pairs need the same number of channels"),
        ([pair(), pair(1, (4, 8, 8)), tuple(np.stack([v, v]) for v in pair())], 1, r"and pair 2 \(2, 8, 8, 8\)"),
    ],
)
def test_invalid_pairs_are_refused_before_the_first_step(pairs, batch_size, sentence):
    with pytest.raises(TrainingError, match=sentence):
        fit(TINY, pairs, steps=1, batch_size=batch_size, progress=lambda _: pytest.fail("it began"))


def test_fp16_with_8_bit_moments_is_refused():
    method = tuned(TINY.with_network(precision="fp16"), optimiser="adamw8bit")
    with pytest.raises(TrainingError, match="use the optimiser adamw, or train in bf16 or fp32"):
        fit(method, [pair()], steps=1)


def test_a_log_in_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(TrainingError, match=r"absent/log\.jsonl cannot be written"):
        fit(TINY, [pair()], steps=1, log=tmp_path / "absent/log.jsonl")
