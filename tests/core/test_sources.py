"""Several sources: the inputs of the network, the start of a bridge, and training in memory."""

import json
from dataclasses import replace
from unittest.mock import patch

import pytest
import torch
from tiny_methods import generator, network, volumes
from tiny_training import pair, same
from torch import Tensor, nn

from ppdm import PPDM, Method, fit, sample, training_loss
from ppdm.kernel import Gaussian, Linear
from ppdm.method import Sampling, representation_loss
from ppdm.network.autoencoder import Autoencoder
from ppdm.network.options import UNetOptions
from ppdm.representation import Haar, Identity, Puzzle
from ppdm.slices import Slices
from ppdm.training.augment import Flip
from ppdm.training.schedule import TrainingError
from ppdm.window import Patch, Whole

NAMES = ("t1n", "t1c", "t2w")
ONE = replace(PPDM, network=UNetOptions(width=8, multipliers=(1, 2), norm_groups=4))
THREE = ONE.with_sources(NAMES)
LATENT = replace(
    THREE,
    representation=Autoencoder(width=4, multipliers=(1, 2), attention=(False, True), norm_groups=2),
    loss=replace(PPDM.loss, gradient=0, mode="off"),
)
POINTS = [
    replace(THREE, representation=Identity()),
    replace(THREE, representation=Puzzle((1, 2, 1))),
    replace(THREE, representation=Haar()),
    replace(THREE, window=Whole(concatenate=False)),
    replace(THREE, window=Patch(4)),
    replace(THREE, window=Patch(4, coordinates=False, overlap=0.5)),
    replace(THREE, window=Slices("dw", context=2, drawn=2)),
    replace(THREE, kernel=Gaussian(), target="noise", sampling=Sampling(2, stochastic=True)),
    LATENT,
]


class Recorder(nn.Module):
    """Records its inputs and returns zeros of the state's shape."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Tensor, ...]] = []

    def forward(self, parts: list[Tensor], t: Tensor) -> Tensor:
        self.seen.append((*parts, t))
        return torch.zeros_like(parts[0])


@pytest.mark.parametrize("method", POINTS, ids=lambda m: f"{m.representation} {m.window} {m.kernel}")
@pytest.mark.parametrize("channels", [1, 2])
def test_every_source_has_an_effect_at_every_point_of_the_design_space(method: Method, channels: int) -> None:
    net, sources = network(method, channels), volumes(2, 3 * channels, 8, 8, 8)
    target = volumes(2, channels, 8, 8, 8, seed=1)

    def results(sources: Tensor) -> tuple[Tensor, Tensor]:
        loss = training_loss(method, net, sources, target, generator())
        return loss, sample(method, net, sources, generator())

    loss, found = results(sources)
    assert loss.shape == (2,)
    assert found.shape == target.shape
    for k in range(3):
        changed = sources.clone()
        changed[:, k * channels] *= -1
        other_loss, other = results(changed)
        assert not torch.equal(loss, other_loss)
        assert not torch.equal(found, other)


@pytest.mark.parametrize("representation", [Identity(), Puzzle(2), Haar()], ids=str)
def test_the_network_gets_all_sources_and_a_state_between_target_and_mean(representation: object) -> None:
    method = replace(THREE, representation=representation, kernel=Linear())  # type: ignore[arg-type]
    recorder, encode = Recorder(), method.representation.encode  # type: ignore[attr-defined]
    sources, target = volumes(4, 3, 8, 8, 8), volumes(4, 1, 8, 8, 8, seed=1)
    training_loss(method, recorder, sources, target)
    ((state, condition, times),) = recorder.seen
    assert torch.equal(condition, torch.cat([encode(sources[:, k : k + 1]) for k in range(3)], 1))
    t = times.reshape(-1, 1, 1, 1, 1)
    between = (1 - t) * target + t * sources.mean(1, keepdim=True)
    torch.testing.assert_close(state, encode(between))


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("blocks", [False, True])
def test_an_untrained_bridge_returns_the_mean_or_the_source_that_it_starts_from(channels: int, blocks: bool) -> None:
    sources = volumes(2, 3 * channels, 8, 9, 10)
    each = sources.unflatten(1, (3, channels))
    method = THREE.in_blocks(4) if blocks else THREE
    mean = sample(method, method.build(channels), sources)
    torch.testing.assert_close(mean, each.mean(1))
    for k, name in enumerate(NAMES):
        named = replace(method, bridge_from=name)
        assert torch.equal(sample(named, named.build(channels), sources), each[:, k])


@pytest.mark.parametrize("start", ["mean", "t1c"])
def test_the_loss_of_an_untrained_bridge_is_that_of_its_start_minus_the_target(start: str) -> None:
    method = replace(THREE, bridge_from=start)
    sources, target = volumes(2, 3, 8, 8, 8), volumes(2, 1, 8, 8, 8, seed=1)
    error = (sources.mean(1, keepdim=True) if start == "mean" else sources[:, 1:2]) - target
    expected = method.loss.reconstruction(error) + method.loss.puzzle_gradient(error, (2, 2, 2))
    torch.testing.assert_close(training_loss(method, method.build(), sources, target), expected)


def test_the_name_of_a_single_source_changes_nothing() -> None:
    named = replace(ONE.with_sources(["t1"]), bridge_from="t1")
    net, source, target = network(ONE), volumes(1, 1, 8, 8, 8), volumes(1, 1, 8, 8, 8, seed=1)
    losses = [training_loss(m, net, source, target, generator()) for m in (ONE, named)]
    assert torch.equal(*losses)
    assert torch.equal(sample(ONE, net, source), sample(named, net, source))
    condition = volumes(1, 8, 2, 2, 2)
    assert named.end(condition) is condition  # no copy in memory


def test_a_learned_representation_encodes_each_source_and_learns_from_all() -> None:
    class Codec(nn.Module):
        def loss(self, x: Tensor, generator: torch.Generator) -> Tensor:
            return x.flatten(1).mean(1)

    net = network(LATENT)
    seen = torch.cat([LATENT.codec(net).encode(volumes(1, 3, 8, 8, 8)[:, k : k + 1]) for k in range(3)], 1)
    recorder = Recorder()
    net["diffusion"] = recorder  # type: ignore[index]
    sample(LATENT, net, volumes(1, 3, 8, 8, 8))
    assert torch.equal(recorder.seen[0][1], seen)

    sources = torch.arange(3.0).reshape(1, 3, 1, 1, 1).expand(3000, 3, 2, 2, 2)
    target = torch.full((3000, 1, 2, 2, 2), 3.0)
    with patch.object(Method, "part", lambda *_: Codec()), patch("ppdm.method.LearnedCodec", Codec):
        losses = representation_loss(LATENT, net, sources, target, generator())
    shares = [(losses == k).float().mean().item() for k in range(4)]
    assert shares == pytest.approx([1 / 6, 1 / 6, 1 / 6, 1 / 2], abs=0.03)


def test_source_names_survive_a_json_round_trip_and_are_stored_only_if_given() -> None:
    method = replace(THREE, bridge_from="t2w")
    assert Method.from_dict(json.loads(json.dumps(method.to_dict()))) == method
    assert method.to_dict()["sources"] == list(NAMES)
    assert not {"sources", "bridge_from"} & ONE.to_dict().keys()


@pytest.mark.parametrize(
    ("names", "start", "sentence"),
    [
        ((), "mean", "name of at least one source, got none"),
        (("t1", "t2", "t1"), "mean", "each source is named once, got 't1' twice in t1, t2, t1"),
        (("t1", "mean"), "mean", "not 'mean'; got 'mean'"),
        (("t1", "a b"), "mean", "letters, digits, '_', '\\+' and '-'.* got 'a b'"),
        (("t1", "../x"), "mean", "got '../x'"),
        (NAMES, "t3", "a bridge starts from the mean or from one of t1n, t1c, t2w, got 't3'"),
        (("source",), "t1", "from the mean or from one of source, got 't1'"),
    ],
)
def test_invalid_source_names_are_refused(names: tuple[str, ...], start: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        ONE.with_sources(names, start)


def test_a_number_of_channels_that_does_not_match_the_sources_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(N, S·C, D, H, W\) for the sources t1n, t1c, t2w, got \(1, 2, 4, 4, 4\)"):
        training_loss(THREE, Recorder(), torch.zeros(1, 2, 4, 4, 4), torch.zeros(1, 1, 4, 4, 4))
    with pytest.raises(ValueError, match="4 channels cannot be those of the 3 sources t1n, t1c, t2w"):
        sample(THREE, Recorder(), torch.zeros(1, 4, 4, 4, 4))


def three(seed: int) -> tuple[Tensor, Tensor]:
    """Return three sources and a target that only the last source determines."""
    source, target = map(torch.from_numpy, pair(seed))
    return torch.stack([volumes(8, 8, 8, seed=seed), volumes(8, 8, 8, seed=seed + 50), source]), target


@pytest.mark.slow
@pytest.mark.parametrize("method", [THREE, LATENT], ids=["ppdm", "latent"])
def test_training_on_several_sources_is_reproducible_and_validated(method: Method) -> None:
    pairs, reports = [three(seed) for seed in range(3)], []
    options = {"steps": 6, "batch_size": 2, "augment": Flip("d"), "validation": [three(9)], "validate_every": 3}
    net = fit(method, pairs, progress=reports.append, **options)  # type: ignore[arg-type]
    assert same(net, fit(method, pairs, **options))  # type: ignore[arg-type]
    assert reports[-1].validation_loss is not None


@pytest.mark.slow
def test_training_learns_a_target_that_only_the_last_source_determines() -> None:
    method = replace(THREE, optimisation=replace(PPDM.optimisation, learning_rate=5e-3, ema=0.9, warmup=5))
    pairs = [three(seed) for seed in range(2)]
    net = fit(method, pairs, steps=80, batch_size=2)
    sources, target = (torch.stack(each) for each in zip(*pairs, strict=True))
    found = sample(method, net, sources)[:, 0]
    assert (found - target).square().mean() < 0.5 * (sources.mean(1) - target).square().mean()


def test_pairs_with_other_channels_are_refused_before_the_first_step() -> None:
    with pytest.raises(TrainingError, match=r"Pair 0 to train on .* channels of 3 sources \(t1n, t1c, t2w\)"):
        fit(THREE, [pair()], steps=1)
    with pytest.raises(TrainingError, match=r"\(3, 8, 8, 8\) and \(1, 8, 8, 8\); expected two volumes .* of one shape"):
        fit(ONE, [three(0)], steps=1)


def test_the_start_of_a_bridge_may_be_named_before_the_sources_are_known() -> None:
    early = replace(ONE, bridge_from="t1c")
    assert early.with_sources(NAMES) == replace(THREE, bridge_from="t1c")
    with pytest.raises(ValueError, match="a bridge starts from the mean or from one of t1, t2, got 't1c'"):
        early.with_sources(["t1", "t2"])
