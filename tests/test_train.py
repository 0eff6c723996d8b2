import json
import math
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ppdm import PPDM
from ppdm.data.manifest import Pair
from ppdm.data.normalise import LogSUV, Range, percentile_range
from ppdm.data.pairs import PairsError, TrainingSet
from ppdm.data.scaling import PercentileScaling, SUVScaling
from ppdm.data.volume import Volume, VolumeError, write_volume
from ppdm.method import Optimisation, training_loss
from ppdm.train import (
    StepReport,
    Training,
    TrainingError,
    average_decay,
    batch_indices,
    fit,
    learning_rate,
    step_generator,
)
from ppdm_baselines import METHODS

TINY = PPDM.with_network(width=8, multipliers=(1, 2))
DDPM = METHODS["ddpm3d"].with_network(width=8, multipliers=(1, 2))


def tuned(method, **options):
    return replace(method, optimisation=replace(method.optimisation, **options))


def pair(seed=0, shape=(8, 8, 8)):
    """A smooth source in [-1, 1] and a target that is its square, as float32 arrays."""
    rng = np.random.default_rng(seed)
    grids = np.meshgrid(*(np.linspace(0, 2 * np.pi, s) for s in shape), indexing="ij")
    source = np.prod([np.sin(g + p) for g, p in zip(grids, rng.uniform(0, 6, 3), strict=True)], axis=0)
    return source.astype(np.float32), (2 * source**2 - 1).astype(np.float32)


def weights(network):
    return [p.clone() for p in network.parameters()]


def same(a, b):
    return all(torch.equal(p, q) for p, q in zip(weights(a), weights(b), strict=True))


@pytest.mark.parametrize("method", [TINY, DDPM], ids=lambda m: m.name)
def test_the_seed_fixes_the_weights_bit_for_bit(method):
    pairs = [pair(i) for i in range(3)]
    torch.manual_seed(5)
    first = fit(method, pairs, steps=4, batch_size=2, seed=1)
    torch.manual_seed(6)  # the global generator does not matter
    assert same(first, fit(method, pairs, steps=4, batch_size=2, seed=1))
    assert not same(first, fit(method, pairs, steps=4, batch_size=2, seed=2))


def test_training_leaves_the_global_generator_alone():
    torch.manual_seed(1)
    wanted = torch.rand(3)
    torch.manual_seed(1)
    fit(TINY, [pair()], steps=1)
    assert torch.equal(torch.rand(3), wanted)


def test_the_first_weights_come_from_the_seed_alone():
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

    def held(network):  # one fixed set of times and noise, none of them seen in training
        with torch.no_grad():
            losses = [
                training_loss(method, network, source, target, torch.Generator().manual_seed(k)) for k in range(32)
            ]
        return torch.cat(losses).mean()

    assert len(reports) == 80
    assert held(trained) < 0.6 * held(Training.start(method).network)


def test_average_is_that_of_the_recurrence():
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


def test_decay_of_the_average_rises_to_its_value():
    assert [average_decay(0.999, k) for k in (0, 1, 8)] == [1 / 10, 2 / 11, 9 / 18]
    assert average_decay(0.999, 10**6) == 0.999
    assert average_decay(0.0, 100) == 0.0


def test_fit_returns_the_average_frozen_and_in_evaluation_mode():
    network = fit(TINY, [pair()], steps=1)
    assert not network.training
    assert not any(p.requires_grad for p in network.parameters())


def test_learning_rate_rises_and_falls():
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
    training.optimiser.register_step_pre_hook(
        lambda *_: seen.append(torch.cat([p.grad.flatten() for p in training.network.parameters()]).norm())
    )
    source, target = (torch.from_numpy(v)[None, None] for v in pair())
    _, norm = training.step(source, target, 1e-3, step_generator(0, 0))
    assert norm > 1e-2
    assert seen[0] == pytest.approx(min(clip, float(norm)), rel=1e-3)
    assert all(p.grad is None for p in training.network.parameters())


def test_optimiser_is_adamw_with_the_methods_decay():
    training = Training.start(tuned(TINY, weight_decay=0.125))
    assert isinstance(training.optimiser, torch.optim.AdamW)
    assert training.optimiser.param_groups[0]["weight_decay"] == 0.125
    assert training.optimiser.param_groups[0]["fused"] is True


@settings(max_examples=20, deadline=None)
@given(count=st.integers(1, 9), batch_size=st.integers(1, 12), seed=st.integers(0, 5))
def test_every_pair_is_seen_before_any_is_seen_again(count, batch_size, seed):
    batches = list(islice(batch_indices(count, batch_size, seed), 2 * count))
    assert all(len(batch) == batch_size for batch in batches)
    order = [i for batch in batches for i in batch]
    for epoch in range(len(order) // count):
        assert sorted(order[epoch * count : (epoch + 1) * count]) == list(range(count))
    assert batches == list(islice(batch_indices(count, batch_size, seed), 2 * count))


def test_order_is_another_in_every_epoch_and_seed():
    order = [batch[0] for batch in islice(batch_indices(20, 1, 0), 40)]
    assert order[:20] != order[20:]
    assert order[:20] != [batch[0] for batch in islice(batch_indices(20, 1, 1), 20)]


def test_generators_of_steps_differ():
    draws = {float(torch.rand(1, generator=step_generator(seed, k))) for seed in range(3) for k in range(20)}
    assert len(draws) == 60


def test_shapes_may_differ_one_at_a_time():
    network = fit(TINY, [pair(0, (8, 8, 8)), pair(1, (5, 9, 7))], steps=2)
    assert all(w.isfinite().all() for w in weights(network))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_precision_and_checkpointing_are_the_methods(precision):
    a, b = (TINY.with_network(precision=precision, checkpointing=c) for c in ("none", "block"))
    # No level of the network may be two voxels deep: there, oneDNN's bf16 gradient of the weights is not initialised.
    networks = [fit(method, [pair(shape=(16, 16, 16))], steps=2) for method in (a, b)]
    for p, q in zip(*(weights(n) for n in networks), strict=True):
        assert p.dtype == torch.float32
        torch.testing.assert_close(p, q, rtol=0, atol=1e-3)


def test_tensors_and_awkward_arrays_are_taken_alike():
    source, target = pair()
    source, target = source[::-1], target[::-1]  # negative strides
    target.flags.writeable = False
    tensors = tuple(torch.tensor(v.copy())[None] for v in (source, target))
    assert same(fit(TINY, [(source, target)], steps=2), fit(TINY, [tensors], steps=2))


def test_several_channels():
    volumes = tuple(np.stack([v, v]) for v in pair())
    network = fit(TINY, [volumes], steps=1)
    assert network.in_channels == 2 * 2 * 8


def test_log_has_a_line_a_step(tmp_path):
    (tmp_path / "log.jsonl").write_text("of an earlier training\n")
    reports = []
    fit(TINY, [pair()], steps=3, log=tmp_path / "log.jsonl", progress=reports.append)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3]
    for row, report in zip(rows, reports, strict=True):
        fields = ("loss", "gradient_norm", "learning_rate", "seconds", "steps_per_second")
        assert row == {"step": report.step} | {name: getattr(report, name) for name in fields}
    assert rows[0]["learning_rate"] == TINY.optimisation.learning_rate
    assert 0 < rows[0]["seconds"] < rows[2]["seconds"]


def test_log_is_whole_after_every_step(tmp_path):
    path, seen = tmp_path / "log.jsonl", []
    fit(TINY, [pair()], steps=2, log=path, progress=lambda r: seen.append(len(path.read_text().splitlines())))
    assert seen == [1, 2]


def test_estimates_of_a_report():
    report = StepReport(step=5, steps=25, loss=0.1, gradient_norm=1.0, learning_rate=1e-3, seconds=10.0)
    assert (report.steps_per_second, report.remaining) == (0.5, 40.0)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_diverging_training_stops_in_words(tmp_path, precision):
    method = tuned(TINY.with_network(precision=precision), learning_rate=1e25)
    with pytest.raises(
        TrainingError, match=r"stopped at step \d+: the loss is .* learning rate below 1e\+25"
    ) as caught:
        fit(method, [pair()], steps=30, log=tmp_path / "log.jsonl")
    assert ("fp32 instead of bf16" in str(caught.value)) == (precision == "bf16")
    assert all(math.isfinite(json.loads(line)["loss"]) for line in (tmp_path / "log.jsonl").read_text().splitlines())


def test_an_infinite_gradient_alone_stops_too():
    class Poison(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.p = torch.nn.Parameter(torch.zeros(()))

        def forward(self, x, t):
            return torch.sqrt(self.p) * torch.ones(x.shape[0], 8, *x.shape[2:])  # finite, with an infinite slope at 0

    window = replace(TINY.window)
    object.__setattr__(window, "build", lambda make, channels: Poison())
    with pytest.raises(TrainingError, match=r"at step 1: the loss is \d.* norm of the gradient (inf|nan)"):
        fit(replace(TINY, window=window), [pair()], steps=2)


def test_running_out_of_memory_is_said_in_words():
    def full(report):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB. And so on.")

    with pytest.raises(TrainingError, match=r"\(CUDA out of memory\); try a larger puzzle factor"):
        fit(TINY, [pair()], steps=1, progress=full)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"steps": 0}, "steps must be an integer of at least 1, got 0"),
        ({"steps": 1.5}, "steps must be an integer"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"seed": -1}, "seed must be an integer of at least 0"),
    ],
)
def test_refuses_options(options, sentence):
    with pytest.raises(TrainingError, match=sentence):
        fit(TINY, [pair()], **({"steps": 1} | options))


def with_nan():
    source, target = pair()
    target[1, 2, 3] = np.nan
    return source, target


@pytest.mark.parametrize(
    ("pairs", "batch_size", "sentence"),
    [
        ([], 1, "no pairs"),
        ([pair(), (pair()[0], pair()[1][:4])], 1, r"Pair 1 has the shapes \(1, 8, 8, 8\) and \(1, 4, 8, 8\)"),
        ([(np.zeros((8, 8)), np.zeros((8, 8)))], 1, r"Pair 0 has the shapes"),
        ([pair(), with_nan()], 1, "Pair 1 holds values that are not finite"),
        ([pair(), pair(1), pair(2, (4, 8, 8))], 2, r"pair 2 \(1, 4, 8, 8\): a batch of 2 needs one shape"),
        ([pair(), tuple(np.stack([v, v]) for v in pair())], 1, "channels must always agree"),
    ],
)
def test_refuses_pairs_before_the_first_step(pairs, batch_size, sentence):
    with pytest.raises(TrainingError, match=sentence):
        fit(TINY, pairs, steps=1, batch_size=batch_size, progress=lambda _: pytest.fail("it began"))


def test_refuses_fp16():
    with pytest.raises(TrainingError, match="bf16 or fp32"):
        fit(TINY.with_network(precision="fp16"), [pair()], steps=1)


def test_refuses_a_log_without_folder(tmp_path):
    with pytest.raises(TrainingError, match=r"absent/log\.jsonl cannot be written"):
        fit(TINY, [pair()], steps=1, log=tmp_path / "absent/log.jsonl")


def manifest(folder, factors=(None, None, None), splits=("train", "train", "val"), shape=(8, 6, 4)):
    """Three subjects whose intensities differ by a factor, and their manifest."""
    rows = ["subject,split,source,target,suv_factor"]
    for i, (factor, split) in enumerate(zip(factors, splits, strict=True)):
        source, target = ((i + 1) * 100 * (v + 1) for v in pair(i, shape))
        for name, data in (("a", source), ("b", target)):
            volume = Volume.from_array(data, (1.0, 1.5, 2.0 + i))
            write_volume(folder / f"{i}{name}.nii.gz", volume.data, volume)
        rows.append(f"s{i},{split},{i}a.nii.gz,{i}b.nii.gz,{'' if factor is None else factor}")
    (folder / "pairs.csv").write_text("\n".join(rows))
    return folder / "pairs.csv"


@pytest.mark.parametrize("keep", [0, 2 * 4 * 8 * 6 * 4, 1 << 20])
def test_mri_pairs_are_scaled_by_percentiles_and_a_pooled_range(tmp_path, keep):
    training_set = TrainingSet(TrainingSet.from_manifest(manifest(tmp_path)).pairs, keep=keep)
    assert [p.subject for p in training_set.pairs] == ["s0", "s1"]
    assert training_set.spacing == pytest.approx((1.0, 1.5, 2.5))
    raw = [tuple((i + 1) * 100 * (v + 1) for v in pair(i, (8, 6, 4))) for i in range(2)]
    ranges = [percentile_range(target) for _, target in raw]
    pooled = Range(*(float(np.median([getattr(r, end) for r in ranges])) for end in ("low", "high")))
    assert training_set.scaling == PercentileScaling(pooled)
    for (source, target), (raw_source, raw_target) in zip(training_set, raw, strict=True):
        assert source.dtype == target.dtype == np.float32
        np.testing.assert_allclose(source, percentile_range(raw_source).forward(raw_source), atol=1e-5)
        np.testing.assert_allclose(target, pooled.forward(raw_target), atol=1e-5)


def test_volumes_beyond_the_memory_are_read_again(tmp_path):
    training_set = TrainingSet(TrainingSet.from_manifest(manifest(tmp_path)).pairs, keep=2 * 4 * 8 * 6 * 4)
    for file in tmp_path.glob("*.nii.gz"):
        file.unlink()
    assert training_set[0][0].shape == (8, 6, 4)
    with pytest.raises(VolumeError, match="does not exist"):
        training_set[1]


def test_a_training_set_is_a_sequence(tmp_path):
    training_set = TrainingSet.from_manifest(manifest(tmp_path))
    assert len(training_set) == 2
    np.testing.assert_array_equal(training_set[-1][0], training_set[1][0])
    assert [len(p) for p in training_set[:1]] == [2]
    with pytest.raises(IndexError):
        training_set[2]


@pytest.mark.parametrize(("factors", "stored"), [((1, 1, 1), True), ((0.01, 0.02, 1), False)])
def test_pet_pairs_are_scaled_by_suv(tmp_path, factors, stored):
    training_set = TrainingSet.from_manifest(manifest(tmp_path, factors))
    assert training_set.scaling == SUVScaling(stored)
    for i, (source, target) in enumerate(training_set):
        for got, raw in zip((source, target), pair(i, (8, 6, 4)), strict=True):
            np.testing.assert_allclose(got, LogSUV(factors[i]).forward((i + 1) * 100 * (raw + 1)), atol=1e-5)


def test_a_training_set_trains(tmp_path):
    pairs = TrainingSet.from_manifest(manifest(tmp_path))
    one, two = (weights(fit(TINY, pairs, steps=steps, batch_size=2)) for steps in (1, 2))
    assert any(not torch.equal(p, q) for p, q in zip(one, two, strict=True))


def test_refuses_factors_for_some_pairs_only(tmp_path):
    with pytest.raises(PairsError, match=r"1 pairs have an suv_factor and 1 have none \(such as subject s1\)"):
        TrainingSet.from_manifest(manifest(tmp_path, (2.0, None, None)))


def test_refuses_a_split_without_pairs(tmp_path):
    with pytest.raises(PairsError, match=r"pairs\.csv has no pairs in the split 'test'"):
        TrainingSet.from_manifest(manifest(tmp_path), split="test")
    with pytest.raises(PairsError, match="no pairs to train on"):
        TrainingSet([])


def test_refuses_a_volume_without_contrast_by_name(tmp_path):
    flat = Volume.from_array(np.ones((4, 4, 4)))
    ramp = Volume.from_array(np.arange(64.0).reshape(4, 4, 4))
    write_volume(tmp_path / "flat.nii", flat.data, flat)
    write_volume(tmp_path / "ramp.nii", ramp.data, ramp)
    with pytest.raises(PairsError, match=r"flat\.nii: The image has no contrast"):
        TrainingSet([Pair("s", "train", tmp_path / "ramp.nii", tmp_path / "flat.nii")])
