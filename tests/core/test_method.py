import json
import weakref
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_methods import tiny
from torch import Tensor, nn

from ppdm import PPDM, Method, sample, training_loss
from ppdm.kernel import I2SB, Brownian, Gaussian, Linear
from ppdm.loss import Loss
from ppdm.method import Optimisation, Sampling
from ppdm.network.options import UNetOptions
from ppdm.pixel_puzzle import pad_to_multiple
from ppdm.representation import Haar, Identity, Puzzle
from ppdm.slices import Slices
from ppdm.window import Patch, Whole
from ppdm_baselines import METHODS, PRESETS

SMALL = UNetOptions(width=8, multipliers=(1, 2), norm_groups=4)
BRIDGE = replace(PPDM, network=SMALL)
DIFFUSION = Method("ddpm3d", Identity(), Whole(), Gaussian(), "x0", Loss(p=1), SMALL, Sampling(4, True, 1.0))
BOTH = pytest.mark.parametrize("method", [BRIDGE, DIFFUSION], ids=lambda m: m.name)
ALL_PRESETS = [method for methods in PRESETS.values() for method in methods.values()]


def volumes(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def network(method: Method, channels: int = 1) -> nn.Module:
    """Return a network that does not return zeros: parameters that start at zero get random values."""
    torch.manual_seed(0)
    net = method.build(channels)
    for parameter in net.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.05)
    return net


class Recorder(nn.Module):
    """Records its inputs and returns zeros of the state's shape."""

    def __init__(self) -> None:
        super().__init__()
        self.states: list[Tensor] = []
        self.sources: list[Tensor] = []
        self.times: list[Tensor] = []

    def forward(self, parts: Sequence[Tensor], t: Tensor) -> Tensor:
        seen = torch.cat(list(parts), dim=1)
        x_t, y = seen.chunk(2, dim=1)
        self.states.append(x_t)
        self.sources.append(y)
        self.times.append(t)
        return torch.zeros_like(x_t)


# Values and files ----------------------------------------------------------------------------------------------------

positive = st.floats(1e-6, 1e6)
kernels = st.one_of(
    st.builds(Brownian, positive),
    st.builds(Linear, st.floats(0, 10)),
    st.builds(lambda low, rise: I2SB(low, low + rise), positive, st.floats(0, 10)),
    st.builds(Gaussian, st.sampled_from(("cosine", "linear", "flow"))),
)
factors = st.one_of(st.integers(1, 8), st.tuples(*[st.integers(1, 8)] * 3))
losses = st.one_of(
    st.builds(Loss, st.sampled_from((1, 2))),
    st.builds(Loss, st.sampled_from((1, 2)), positive, st.sampled_from(("all", "cell"))),
)
# Patch sizes that every network below can halve at each of its levels.
sizes = st.integers(1, 8).map(lambda k: 16 * k)
windows = st.one_of(
    st.builds(Whole, st.booleans()),
    st.builds(Patch, st.none() | sizes | st.tuples(sizes, sizes, sizes), st.booleans(), st.none() | st.floats(0, 0.99)),
    st.builds(Slices, st.sampled_from(("dhw", "w", "hd")), st.integers(0, 9), st.integers(1, 99), st.integers(1, 99)),
)
levels = st.lists(st.tuples(st.integers(1, 8), st.booleans()), min_size=1, max_size=5)
networks = st.builds(
    lambda levels, attend, **rest: UNetOptions(
        multipliers=tuple(m for m, _ in levels), attention=tuple(a for _, a in levels) if attend else (), **rest
    ),
    levels,
    st.booleans(),
    width=st.integers(1, 300),
    residual_blocks=st.integers(1, 4),
    skips=st.sampled_from(("concat", "add")),
    resampling=st.sampled_from(("convolution", "residual")),
    adaptive=st.booleans(),
    precision=st.sampled_from(("fp32", "bf16", "fp16")),
    checkpointing=st.sampled_from(("none", "norm", "block", "conv")),
    channels_last=st.booleans(),
    compile=st.booleans(),
)


@st.composite
def methods(draw: st.DrawFn) -> Method:
    kernel = draw(kernels)
    return Method(
        name=draw(st.text()),
        representation=draw(st.one_of(st.just(Identity()), st.builds(Puzzle, factors), st.just(Haar()))),
        window=draw(windows),
        kernel=kernel,
        target=draw(st.sampled_from(kernel.targets)),
        loss=draw(losses),
        network=draw(networks),
        sampling=draw(
            st.builds(Sampling, st.integers(1, 1000), st.booleans(), st.none() | positive, st.floats(0.01, 1))
        ),
        optimisation=draw(
            st.builds(Optimisation, positive, st.floats(0, 1), st.integers(0, 10**6), positive, st.floats(0, 0.9999))
        ),
    )


def through_json(method: Method) -> Method:
    return Method.from_dict(json.loads(json.dumps(method.to_dict())))


@pytest.mark.parametrize("method", ALL_PRESETS, ids=lambda m: m.name)
def test_a_preset_is_unchanged_by_a_json_round_trip(method: Method) -> None:
    assert through_json(method) == method


@given(methods())
@settings(max_examples=50, deadline=None)
def test_any_method_is_unchanged_by_a_json_round_trip(method: Method) -> None:
    again = through_json(method)
    assert again == method
    assert hash(again) == hash(method)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.just(10**400) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def paths(data: Mapping[str, Any]) -> list[tuple[str, ...]]:
    return [(k, *p) for k, v in data.items() for p in ((), *(paths(v) if isinstance(v, dict) else ()))]


def made_or_refusal(described: Any) -> Method | str:
    try:
        return Method.from_dict(described)
    except ValueError as refusal:  # any other exception is a defect and fails the test
        return str(refusal)


@given(st.data(), st.sampled_from([BRIDGE, *ALL_PRESETS]))
@settings(max_examples=150, deadline=None)
def test_a_damaged_description_is_refused_or_gives_a_valid_method(data: st.DataObject, method: Method) -> None:
    described = deepcopy(method.to_dict())
    for _ in range(data.draw(st.integers(1, 3))):
        *parents, key = data.draw(st.sampled_from(paths(described)))
        place = described
        for parent in parents:
            place = place[parent]
        match data.draw(st.sampled_from(("change", "change", "drop", "add"))):
            case "change":
                place[key] = data.draw(json_values)
            case "drop":
                del place[key]
            case "add":
                place[data.draw(st.text(max_size=5))] = data.draw(json_values)
        if not described:
            break
    made = made_or_refusal(described)
    if isinstance(made, Method):
        assert through_json(made) == made
    else:
        assert len(made.split()) > 3


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        (("kernel", "type"), "os.system", "kernel must name a type out of brownian, linear, i2sb, gaussian.*os.system"),
        (("kernel", "type"), ["brownian"], "kernel must name a type"),
        (("kernel", "type"), "linear", "Linear has the fields .'noise'., got .'gamma'."),
        (("kernel",), None, "kernel must name a type.* got None"),
        (("kernel", "gamma"), float("inf"), "gamma must be float, got inf"),
        (("kernel", "gamma"), "0.5", "gamma must be float, got '0.5'"),
        (("representation", "factor"), 2.0, r"factor must be int \| tuple\[int, int, int\], got 2.0"),
        (("representation", "factor"), [2, 2], r"factor must be .* got \(2, 2\)"),
        (("representation", "factor"), [2, 2, 0], r"got \(2, 2, 0\)"),
        (("window", "concatenate"), "no", "concatenate must be bool, got 'no'"),
        (("sampling", "stochastic"), 1, "stochastic must be bool, got 1"),
        (("sampling", "steps"), 0, "positive number of steps, got 0"),
        (("sampling", "clamp"), -1, "clamp must be positive, got -1"),
        (("sampling", "start"), 0.0, r"start at a time in \(0, 1\], got 0.0"),
        (("optimisation", "warmup"), 1.5, "warmup must be int, got 1.5"),
        (("optimisation", "ema"), 1, r"in \[0, 1\), got 1"),
        (("optimisation", "learning_rate"), 0, "learning rate .* positive"),
        (("network", "attention"), "abcd", r"attention must be tuple\[bool, \.\.\.\], got 'abcd'"),
        (("network", "multipliers"), [1, [2]], r"multipliers must be tuple\[int, \.\.\.\]"),
        (("network",), [], "network must name a type out of unet"),
        (("name",), 7, "name must be str, got 7"),
        (("target",), "noise", "choose one of x0, residual, score"),
        (("colour",), "red", "Method has the fields .* got .*'colour'"),
    ],
)
def test_unknown_keys_types_and_values_are_refused(path: tuple[str, ...], value: Any, sentence: str) -> None:
    described = BRIDGE.to_dict()
    place = described
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(ValueError, match=sentence):
        Method.from_dict(described)


@pytest.mark.parametrize("described", [None, 5, "ppdm", [], {}, {1: 2, "name": 3}])
def test_content_that_does_not_describe_a_method_is_refused(described: Any) -> None:
    with pytest.raises(ValueError, match="Method has the fields"):
        Method.from_dict(described)


@dataclass(frozen=True)
class Foreign(Brownian):
    """A user's kernel: it works, but a file could refer to it only by running code."""


def test_a_method_with_a_foreign_kernel_samples_but_cannot_be_written() -> None:
    method = replace(BRIDGE, kernel=Foreign())
    assert sample(method, network(method), volumes(1, 1, 4, 4, 4)).shape == (1, 1, 4, 4, 4)
    with pytest.raises(ValueError, match=r"kernel Foreign.* not one of brownian, linear, i2sb, gaussian"):
        method.to_dict()


@pytest.mark.parametrize(("factor", "kept"), [(4, 4), ((1, 2, 4), (1, 2, 4)), ([1, 2, 4], (1, 2, 4))])
def test_with_factor_sets_the_factor_of_the_puzzle(factor: Any, kept: object) -> None:
    method = PPDM.with_factor(factor)
    assert method == replace(PPDM, representation=Puzzle(kept))  # type: ignore[arg-type]
    assert through_json(method) == method


def test_an_invalid_factor_or_a_method_without_a_puzzle_is_refused() -> None:
    assert PPDM.has_factor
    assert not DIFFUSION.has_factor
    with pytest.raises(ValueError, match="ddpm3d has no puzzle factor; its representation is Identity"):
        DIFFUSION.with_factor(2)
    with pytest.raises(ValueError, match="got 0"):
        PPDM.with_factor(0)
    with pytest.raises(ValueError, match=r"got \(2, 2\)"):
        PPDM.with_factor([2, 2])


def test_variant_and_multiple_follow_from_the_factor_and_the_network() -> None:
    method = PPDM.with_factor((1, 2, 4)).with_network(multipliers=(1, 2, 4))
    assert (method.variant, PPDM.variant, DIFFUSION.variant) == ("r=1x2x4", "r=2", "")
    assert method.multiple == (4, 8, 16)
    assert method.network.width == PPDM.network.width
    with pytest.raises(ValueError, match="width"):
        PPDM.with_network(width=0)


# Training ------------------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("channels", [1, 2])
def test_the_training_loss_has_one_value_per_subject_and_depends_on_the_seed(method: Method, channels: int) -> None:
    net = network(method, channels)
    source, target = volumes(3, channels, 8, 8, 8), volumes(3, channels, 8, 8, 8, seed=1)
    first, again, other = (
        training_loss(method, net, source, target, torch.Generator().manual_seed(seed)) for seed in (5, 5, 6)
    )
    assert first.shape == (3,)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_global_generator_is_not_used_if_another_is_given() -> None:
    before = torch.get_rng_state()
    net, x = Recorder(), volumes(1, 1, 8, 8, 8)
    training_loss(BRIDGE, net, x, x, torch.Generator())
    sample(DIFFUSION, net, x, torch.Generator())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("loss", [Loss(p=1), Loss(p=2, gradient=0.3, mode="all"), Loss(p=1, gradient=2.0, mode="cell")])
def test_the_loss_of_an_untrained_bridge_is_that_of_source_minus_target(loss: Loss) -> None:
    """The network predicts a residual of zero, so the error is y − x0 at any time and noise."""
    method = replace(BRIDGE.with_factor((1, 2, 4)), loss=loss)
    source, target = volumes(2, 1, 2, 8, 8), volumes(2, 1, 2, 8, 8, seed=1)
    expected = loss.reconstruction(source - target) + loss.puzzle_gradient(source - target, (1, 2, 4))
    found = training_loss(method, method.build(), source, target)
    assert torch.allclose(found, expected, rtol=1e-5)


def test_the_loss_of_a_prediction_of_zero_noise_is_the_variance_of_the_noise() -> None:
    method = replace(DIFFUSION, target="noise", loss=Loss(p=2))
    x = volumes(1, 1, 16, 16, 16)
    assert training_loss(method, Recorder(), x, x).item() == pytest.approx(1, abs=0.1)  # E ε² = 1


@pytest.mark.parametrize("target", ["x0", "residual", "noise", "score"])
def test_a_perfect_network_has_zero_loss_for_every_target(target: str) -> None:
    kernel = Gaussian("cosine")
    method = replace(DIFFUSION, kernel=kernel, target=target, loss=Loss(p=2, gradient=1.0, mode="all"))
    source, wanted = volumes(4, 1, 4, 4, 4), volumes(4, 1, 4, 4, 4, seed=1)

    class Perfect(nn.Module):
        def forward(self, parts: Sequence[Tensor], times: Tensor) -> Tensor:
            seen = torch.cat(list(parts), dim=1)
            x_t, y = seen.chunk(2, dim=1)
            a, _, sigma = kernel.coefficients(times.reshape(-1, 1, 1, 1, 1))
            noise = (x_t - a * wanted) / sigma
            return {"x0": wanted, "residual": wanted - y, "noise": noise, "score": (x_t - wanted) / sigma}[target]

    found = training_loss(method, Perfect(), source, wanted, torch.Generator().manual_seed(0))
    assert found.tolist() == pytest.approx([0] * 4, abs=1e-5)


def test_in_training_the_network_gets_the_state_the_source_and_random_times() -> None:
    recorder = Recorder()
    source, target = volumes(64, 1, 2, 2, 2), volumes(64, 1, 2, 2, 2, seed=1)
    method = replace(PPDM, kernel=Linear(), network=UNetOptions(multipliers=(1,)))
    training_loss(method, recorder, source, target)
    (times,), (state,), (y,) = recorder.times, recorder.states, recorder.sources
    assert ((times > 0) & (times <= 1)).all()
    assert times.std() > 0.2
    assert torch.equal(y, method.representation.encode(source))
    t = times.reshape(-1, 1, 1, 1, 1)
    assert torch.allclose(state, method.representation.encode((1 - t) * target + t * source), atol=1e-6)


def test_random_training_times_include_1_and_exclude_0(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "rand", lambda *size, **_: torch.zeros(*size))  # rand samples from [0, 1)
    recorder, x = Recorder(), volumes(2, 1, 4, 4, 4)
    training_loss(BRIDGE, recorder, x, x)
    assert recorder.times[0].tolist() == [1, 1]


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_a_share_of_the_times_is_at_the_start_and_the_others_stay_uniform(share: float) -> None:
    recorder, x = Recorder(), volumes(2000, 1, 2, 2, 2)
    method = replace(BRIDGE, optimisation=replace(BRIDGE.optimisation, at_start=share))
    training_loss(method, recorder, x, x, torch.Generator().manual_seed(0))
    times = recorder.times[0]
    assert (times == 1).float().mean().item() == pytest.approx(share, abs=0.04)
    others = times[times < 1]
    assert others.mean().item() == pytest.approx(0.5, abs=0.03)
    assert others.max() > 0.99


def test_with_at_start_1_all_training_times_are_at_the_start() -> None:
    recorder, x = Recorder(), volumes(50, 1, 2, 2, 2)
    training_loss(replace(BRIDGE, optimisation=Optimisation(at_start=1.0)), recorder, x, x)
    assert (recorder.times[0] == 1).all()


@pytest.mark.parametrize(("start", "share"), [(1.0, 0.0), (0.2, 0.0), (1.0, 0.4)])
def test_a_sparse_schedule_trains_only_the_times_at_which_it_samples(start: float, share: float) -> None:
    seen, x = Recorder(), volumes(2000, 1, 2, 2, 2)
    method = replace(
        BRIDGE, sampling=Sampling(5, start=start), optimisation=Optimisation(at_start=share, at_steps=True)
    )
    training_loss(method, seen, x, x, torch.Generator().manual_seed(0))
    asked = Recorder()
    sample(method, asked, x[:1], torch.Generator().manual_seed(0))
    times, counts = seen.times[0].unique(return_counts=True)
    torch.testing.assert_close(times, torch.cat(asked.times).flip(0))
    assert counts[:-1].tolist() == pytest.approx([2000 * (1 - share) / 5] * 4, rel=0.15)


def test_at_steps_must_be_true_or_false() -> None:
    with pytest.raises(ValueError, match="at_steps must be true or false, got 5"):
        Optimisation(at_steps=5)  # type: ignore[arg-type]


@pytest.mark.parametrize("p", [1, 2])
def test_a_loss_weighted_by_the_scale_equals_the_velocity_loss(p: int) -> None:
    """The velocities of prediction and target are v = α·ε − σ·x0 with the noise ε in x_t (arXiv 2202.00512)."""
    method = replace(DIFFUSION, kernel=Gaussian("linear"), loss=Loss(p=p, weight="scale"))
    source, target = volumes(3, 1, 4, 4, 4), volumes(3, 1, 4, 4, 4, seed=1)
    recorder = Recorder()
    found = training_loss(method, recorder, source, target, torch.Generator().manual_seed(0))
    t = recorder.times[0].reshape(-1, 1, 1, 1, 1)
    alpha, _, sigma = method.kernel.coefficients(t)
    noise = (recorder.states[0] - alpha * target) / sigma
    predicted = torch.zeros_like(target)  # the recorder returns zeros
    velocity = (alpha * noise - sigma * predicted) - (alpha * noise - sigma * target)
    torch.testing.assert_close(found, velocity.abs().pow(p).flatten(1).mean(1))


def test_a_loss_weighted_by_the_scale_is_refused_for_a_kernel_without_noise() -> None:
    with pytest.raises(ValueError, match=r"always 0 for Linear\(noise=0.0\), which has no noise; use weight 'none'"):
        replace(PPDM, kernel=Linear(), loss=Loss(weight="scale"))


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_an_invalid_share_of_times_at_the_start_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="share of times at the start"):
        Optimisation(at_start=share)


@BOTH
def test_training_on_any_size_equals_training_on_the_padded_volume(method: Method) -> None:
    net, source, target = network(method), volumes(1, 1, 5, 6, 7), volumes(1, 1, 5, 6, 7, seed=1)
    found = training_loss(method, net, source, target, torch.Generator().manual_seed(0))
    source, target = (pad_to_multiple(v, method.multiple) for v in (source, target))
    assert torch.equal(found, training_loss(method, net, source, target, torch.Generator().manual_seed(0)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    [
        replace(BRIDGE, loss=Loss(p=2, gradient=1.0, mode="cell")),
        replace(BRIDGE, kernel=I2SB(), target="x0", loss=Loss(p=1)),
        DIFFUSION,
        replace(DIFFUSION, kernel=Gaussian("flow"), target="score", loss=Loss(p=2)),
    ],
    ids=lambda m: f"{m.name} {m.kernel} {m.target}",
)
def test_training_overfits_two_pairs(method: Method) -> None:
    torch.manual_seed(0)
    net, generator = method.build(), torch.Generator().manual_seed(0)
    target = torch.nn.functional.interpolate(volumes(2, 1, 2, 2, 2), size=(8, 8, 8), mode="trilinear").clamp(-1, 1)
    source = 0.5 * target + 0.3 * volumes(2, 1, 8, 8, 8, seed=1)
    optimiser = torch.optim.Adam(net.parameters(), lr=5e-3)
    losses = []
    for _ in range(80):
        loss = training_loss(method, net, source, target, generator).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.6 * sum(losses[:10])
    found = sample(method, net, source, generator)
    assert (found - target).square().mean() < 0.5 * (source - target).square().mean()


@pytest.mark.parametrize(
    ("source", "target"),
    [((1, 1, 8, 8), (1, 1, 8, 8)), ((1, 1, 8, 8, 8), (1, 1, 8, 8, 4)), ((8, 8, 8), (8, 8, 8))],
)
def test_source_and_target_must_be_volumes_of_one_shape(source: tuple[int, ...], target: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"volumes \(N, C, D, H, W\) of one shape") as refusal:
        training_loss(BRIDGE, Recorder(), torch.zeros(source), torch.zeros(target))
    assert f"{source} and {target}" in str(refusal.value)


# Sampling ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", [Sampling(1), Sampling(5), Sampling(3, stochastic=True)], ids=str)
@pytest.mark.parametrize("factor", [1, 2, (3, 1, 2)])
@pytest.mark.parametrize("shape", [(1, 1, 8, 8, 8), (2, 2, 5, 6, 7), (1, 1, 1, 1, 3)])
def test_untrained_ppdm_returns_its_input_exactly(shape: tuple[int, ...], factor: Any, sampling: Sampling) -> None:
    method = replace(BRIDGE.with_factor(factor), sampling=sampling)
    source = volumes(*shape)
    assert torch.equal(sample(method, method.build(shape[1]), source), source)


@BOTH
@pytest.mark.parametrize("shape", [(1, 1, 8, 8, 8), (2, 2, 3, 5, 7)])
@pytest.mark.parametrize("stochastic", [False, True])
def test_a_seed_fixes_the_sample_and_the_clamp_limits_it(
    method: Method, shape: tuple[int, ...], stochastic: bool
) -> None:
    method = replace(method, sampling=Sampling(3, stochastic, clamp=1.0))
    net, source = network(method, shape[1]), volumes(*shape)
    first, again, other = (sample(method, net, source, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert first.shape == source.shape
    assert not first.requires_grad
    assert torch.equal(first, again)
    random = stochastic or isinstance(method.kernel, Gaussian)
    assert torch.equal(first, other) is not random
    assert first.abs().max() <= 1


@BOTH
def test_sampling_any_size_equals_sampling_the_padded_volume(method: Method) -> None:
    net, source = network(method), volumes(1, 1, 5, 6, 7)
    padded = pad_to_multiple(source, method.multiple)
    found, whole = (sample(method, net, x, torch.Generator().manual_seed(0)) for x in (source, padded))
    assert torch.equal(found, whole[..., :5, :6, :7])


@BOTH
@pytest.mark.parametrize("steps", [1, 3, 10])
def test_sampling_times_run_evenly_down_from_1(method: Method, steps: int) -> None:
    recorder, calls = Recorder(), []
    source = volumes(2, 1, 4, 4, 4)
    sample(
        replace(method, sampling=Sampling(steps)), recorder, source, progress=lambda: calls.append(len(recorder.times))
    )
    assert calls == list(range(1, steps + 1))  # once after every evaluation
    assert [t.tolist() for t in recorder.times] == [pytest.approx([k / steps] * 2) for k in range(steps, 0, -1)]
    assert all(torch.equal(y, method.representation.encode(source)) for y in recorder.sources)


def test_the_sample_is_the_last_prediction_of_x0() -> None:
    for kernel in (Brownian(), Linear(0.3), I2SB(), Gaussian("cosine"), Gaussian("linear"), Gaussian("flow")):
        for sampling in (Sampling(7), Sampling(7, stochastic=True)):
            method = replace(BRIDGE, kernel=kernel, target="x0", sampling=sampling)
            assert not sample(method, Recorder(), volumes(1, 1, 4, 4, 4)).any()  # x̂0 = 0


def test_without_concatenation_the_network_gets_only_the_state() -> None:
    """The source then reaches the network only through the state, which starts at the source."""
    method = replace(BRIDGE, window=Whole(concatenate=False))
    net, state, t = network(method), volumes(1, 8, 4, 4, 4), torch.tensor([0.5])
    latents = [volumes(1, 8, 4, 4, 4, seed=seed) for seed in (1, 2)]
    assert torch.equal(*(method.window.apply(net, state, t, y) for y in latents))
    assert not torch.equal(*(BRIDGE.window.apply(network(BRIDGE), state, t, y) for y in latents))

    seen: list[Tensor] = []
    net.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    source = volumes(1, 1, 8, 8, 8)
    sampled = sample(method, net, source)
    assert torch.equal(seen[0], method.representation.encode(source))  # type: ignore[attr-defined]
    assert not torch.equal(sampled, sample(method, net, volumes(1, 1, 8, 8, 8, seed=1)))
    seen.clear()
    assert training_loss(method, net, source, source).isfinite().all()
    assert [x_t.shape for x_t in seen] == [state.shape]


def test_a_source_that_is_not_a_batch_of_volumes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(N, C, D, H, W\)"):
        sample(BRIDGE, Recorder(), torch.zeros(1, 8, 8, 8))


# Randomness ----------------------------------------------------------------------------------------------------------

RANDOM_POINTS = [
    *(tiny(method) for method in METHODS.values()),
    *(
        tiny(replace(PPDM, kernel=kernel, sampling=Sampling(steps, stochastic, start=start)))
        for kernel in (Brownian(0.5), Linear(0.0), Linear(0.3), I2SB(0.1, 0.3), Gaussian("cosine"))
        for stochastic in (False, True)
        for steps in (1, 2)
        for start in (1.0, 0.4)
    ),
]


@pytest.mark.parametrize("method", RANDOM_POINTS, ids=lambda m: f"{m.name} {m.kernel} {m.sampling}")
def test_is_random_says_whether_seeds_change_the_samples(method):
    net, source = network(method), volumes(1, 1, 8, 8, 8)
    one, other = (sample(method, net, source, torch.Generator().manual_seed(seed)) for seed in (0, 1))
    assert method.is_random == (not torch.equal(one, other))


def test_the_target_is_freed_before_the_network_runs() -> None:
    targets: list[weakref.ref[Tensor]] = []
    alive: list[bool] = []

    class Watched(Brownian):
        def at(self, x0: Tensor, y: Tensor, t: Tensor, noise: Tensor) -> Tensor:
            targets.append(weakref.ref(x0))
            return super().at(x0, y, t, noise)

    class Watching(nn.Module):
        def forward(self, parts: Sequence[Tensor], t: Tensor) -> Tensor:
            alive.extend(target() is not None for target in targets)
            return torch.zeros_like(parts[0])

    training_loss(replace(BRIDGE, kernel=Watched()), Watching(), volumes(1, 1, 8, 8, 8), volumes(1, 1, 8, 8, 8, seed=1))
    assert alive == [False]
