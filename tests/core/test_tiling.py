"""Overlapping blocks: coverage and weights, merging of predictions, and sampling of methods in blocks."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_methods import generator, network, tiny, volumes
from torch import Tensor, nn

from ppdm import PPDM, Method, sample
from ppdm.kernel import KERNELS, Kernel, Linear
from ppdm.representation import Haar, Identity, Puzzle
from ppdm.tiling import blocks_of, number_of_blocks, ramp
from ppdm.window import Patch, Whole
from ppdm_baselines import METHODS
from ppdm_bench.memory.workload import workload
from ppdm_bench.predictor.peak import measure_peak, predict_peak

SHAPES = st.tuples(*[st.integers(1, 12)] * 3)
OVERLAPS = st.floats(0, 0.9)


class Local(nn.Module):
    """Predicts every voxel from that voxel only, and records its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, parts: Tensor | Sequence[Tensor], t: Tensor) -> Tensor:
        seen = parts if isinstance(parts, Tensor) else torch.cat(list(parts), dim=1)
        self.seen.append(seen)
        return (seen.square() + t.reshape(-1, 1, 1, 1, 1))[:, :1]


class Constants(nn.Module):
    """Predicts a different constant at each call: 1, 2, 3, ..."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, parts: Sequence[Tensor], t: Tensor) -> Tensor:
        self.calls += 1
        return torch.full_like(parts[0][:, :1], self.calls)


# --- positions and weights of blocks


@pytest.mark.slow
@given(SHAPES, SHAPES, OVERLAPS)
@settings(max_examples=40, deadline=None)
def test_blocks_cover_everything_with_positive_weights_that_add_up_to_one(
    shape: tuple[int, int, int], size: tuple[int, int, int], overlap: float
) -> None:
    total, count = torch.zeros(shape), torch.zeros(shape)
    blocks = blocks_of(shape, size, overlap)
    for block in blocks:
        d, h, w = block.intervals
        assert all(bool((interval.weight > 0).all()) for interval in block.intervals)
        total[block.place] += d.weight[:, None, None] * h.weight[:, None] * w.weight
        share = block.share()
        assert torch.equal(share[count[block.place] == 0], torch.ones(int((count[block.place] == 0).sum())))
        assert bool(((share > 0) & (share <= 1)).all())
        count[block.place] += 1
    assert count.min() >= 1
    assert len(blocks) == number_of_blocks(shape, size, overlap)
    torch.testing.assert_close(total, torch.ones(shape))
    assert torch.equal(total[count == 1], torch.ones(int((count == 1).sum())))


def test_weights_fall_linearly_over_the_overlap_of_neighbours() -> None:
    assert ramp(6, 0, 0).tolist() == [1] * 6
    torch.testing.assert_close(ramp(6, 0, 2), torch.tensor([1, 1, 1, 1, 2 / 3, 1 / 3]))
    torch.testing.assert_close(ramp(6, 3, 0), torch.tensor([1 / 4, 1 / 2, 3 / 4, 1, 1, 1]))
    first, second = blocks_of((10, 1, 1), (6, 1, 1), 1 / 3)
    torch.testing.assert_close(first.intervals[0].weight[4:], torch.tensor([2 / 3, 1 / 3]))
    torch.testing.assert_close(second.intervals[0].weight[:2], torch.tensor([1 / 3, 2 / 3]))


def test_predictions_are_merged_by_their_weights() -> None:
    """Hand calculation on one axis: two blocks of 6 in 10 voxels overlap by 2 and predict 1 and 2."""
    x, window = torch.zeros(1, 1, 10, 1, 1), Whole(block=(6, 1, 1), overlap=1 / 3)
    made = window.apply(Constants(), x, torch.ones(1), x)
    torch.testing.assert_close(made.flatten(), torch.tensor([1.0] * 4 + [4 / 3, 5 / 3] + [2.0] * 4))


@given(SHAPES, SHAPES, OVERLAPS)
@settings(max_examples=40, deadline=None)
def test_merging_blocks_one_after_another_gives_the_weighted_mean(
    shape: tuple[int, int, int], size: tuple[int, int, int], overlap: float
) -> None:
    x = torch.zeros(2, 1, *shape)
    made = Whole(block=size, overlap=overlap).apply(Constants(), x, torch.ones(2), x)
    wanted = torch.zeros(shape)
    for number, block in enumerate(blocks_of(shape, size, overlap), start=1):
        d, h, w = block.intervals
        wanted[block.place] += number * d.weight[:, None, None] * h.weight[:, None] * w.weight
    torch.testing.assert_close(made, wanted.expand_as(made))


# --- windows


@given(SHAPES, SHAPES, OVERLAPS, st.booleans())
@settings(max_examples=40, deadline=None)
def test_a_voxelwise_network_gives_bit_identical_results_in_blocks(
    shape: tuple[int, int, int], size: tuple[int, int, int], overlap: float, concatenate: bool
) -> None:
    x, y, t = volumes(2, 1, *shape), volumes(2, 1, *shape, seed=1), torch.tensor([0.5, 2.0])
    network, window = Local(), Whole(concatenate)
    expected = window.apply(network, x, t, y)
    assert torch.equal(window.in_blocks(size, overlap).apply(network, x, t, y), expected)
    assert all(seen.shape[2:] <= size for seen in network.seen[1:])


def test_patches_in_blocks_get_their_coordinates_in_the_whole_volume() -> None:
    x, network = volumes(1, 1, 8, 4, 4), Local()
    Patch(8, overlap=0.0).in_blocks(4, 0.5).apply(network, x, torch.ones(1), x)
    lines = [seen[0, 2, :, 0, 0] for seen in network.seen]
    whole = torch.linspace(-1, 1, 8)
    assert len(lines) == 3
    for first, line in zip((0, 2, 4), lines, strict=True):
        assert torch.equal(line, whole[first : first + 4])
    assert all(torch.equal(seen[0, 3, 0, :, 0], torch.linspace(-1, 1, 4)) for seen in network.seen)


def test_blocks_do_not_affect_training() -> None:
    x = volumes(1, 1, 8, 8, 8)
    (piece,) = Whole(block=4).draw(x, x, None)
    network = Local()
    piece.predict(network, x, torch.ones(1), x)
    assert network.seen[0].shape[2:] == (8, 8, 8)
    (piece,) = Patch(4, overlap=0.5, block=8).draw(x, x, generator())
    assert piece.x0.shape[2:] == (4, 4, 4)


def test_the_callback_is_called_once_per_block() -> None:
    x, told = volumes(1, 1, 8, 4, 4), []
    for window, wanted in ((Whole(), 1), (Whole(block=4), 3), (Whole(block=4, overlap=0.0), 2), (Whole(block=9), 1)):
        told.clear()
        window.apply(Local(), x, torch.ones(1), x, lambda: told.append(1))
        assert len(told) == wanted == window.blocks((8, 4, 4))


# --- methods

TINY = tiny(PPDM)


@pytest.mark.parametrize("name", ["ppdm", "patch", "wavelet", "regression", "ddpm3d"])
def test_a_block_that_covers_the_volume_gives_bit_identical_samples(name: str) -> None:
    method = tiny(METHODS[name])
    source, net = volumes(2, 1, 9, 12, 7), network(method)
    whole = sample(method, net, source, generator())
    for block in ((9, 12, 7), 12, 500):
        assert method.in_blocks(block).blocks((9, 12, 7)) == 1
        assert torch.equal(sample(method.in_blocks(block), net, source, generator()), whole)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ppdm", "patch", "wavelet", "regression", "ddpm3d"])
def test_a_seed_fixes_the_samples_in_blocks(name: str) -> None:
    method = tiny(METHODS[name]).in_blocks(8)
    assert method.blocks((9, 24, 7)) > 1
    source, net = volumes(1, 1, 9, 24, 7), network(method)
    once, again = (sample(method, net, source, generator(3)) for _ in range(2))
    assert torch.equal(once, again)
    assert once.isfinite().all()
    assert not torch.equal(once, sample(replace(method, window=METHODS[name].window), net, source, generator(3)))


@pytest.mark.parametrize("kernel", [*(kind() for kind in KERNELS.values()), Linear(0.1)], ids=str)
@pytest.mark.parametrize("representation", [Identity(), Puzzle(2), Haar()], ids=str)
@pytest.mark.parametrize("stochastic", [False, True])
def test_sampling_in_blocks_equals_whole_sampling_for_a_local_network(
    kernel: Kernel, representation: Identity | Puzzle | Haar, stochastic: bool
) -> None:
    """With a local network, all of sampling is local, with every kernel, also with a clamp and with noise."""
    method = Method("free", representation, Whole(), kernel, "residual")
    method = replace(method, sampling=replace(method.sampling, stochastic=stochastic, clamp=0.7))
    channels = representation.channels(1)
    net = nn.Conv3d(2 * channels, channels, 1)
    local = type("OneByOne", (nn.Module,), {"forward": lambda self, parts, t: net(torch.cat(list(parts), dim=1))})()
    source = volumes(2, 1, 16, 32, 16)
    whole = sample(method, local, source, generator())
    torch.testing.assert_close(sample(method.in_blocks(16), local, source, generator()), whole)


def test_a_block_is_rounded_up_to_the_multiple_of_the_method() -> None:
    assert PPDM.multiple == (16, 16, 16)
    assert PPDM.in_blocks(100).window == Whole(block=(56, 56, 56))
    assert PPDM.in_blocks((1, 64, 65)).window == Whole(block=(8, 32, 40))
    assert PPDM.in_blocks(64, 0.5).window == Whole(block=(32, 32, 32), overlap=0.5)


def test_sampling_counts_an_evaluation_for_every_step_and_block() -> None:
    told: list[int] = []
    method = TINY.in_blocks(8, 0.0)
    sample(method, network(method), volumes(1, 1, 16, 8, 8), progress=lambda: told.append(1))
    assert len(told) == method.evaluations((16, 8, 8)) == 2 * method.sampling.steps
    assert TINY.evaluations((16, 8, 8)) == method.sampling.steps


@pytest.mark.parametrize("size", [0, -4, (4, 4), 2.5, (4, 4, 0)])
def test_an_invalid_block_size_is_refused(size: object) -> None:
    with pytest.raises(ValueError, match="is a positive integer, or three of them"):
        PPDM.in_blocks(size)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="is a positive integer, or three of them"):
        Whole(block=size)  # type: ignore[arg-type]


@pytest.mark.parametrize("overlap", [-0.1, 1.0, float("nan")])
def test_an_invalid_overlap_is_refused(overlap: float) -> None:
    for name in ("ppdm", "patch"):
        with pytest.raises(ValueError, match=r"overlap by a share in \[0, 1\)"):
            METHODS[name].in_blocks(64, overlap)


def test_a_block_that_the_network_cannot_halve_is_refused_at_construction() -> None:
    with pytest.raises(ValueError, match="a block of 12 must have sizes that are multiples of the network's 8"):
        replace(PPDM, window=Whole(block=12))
    with pytest.raises(ValueError, match="a block of 12 must"):
        replace(PPDM, window=Patch(16, overlap=0.5, block=12))


def test_methods_that_cannot_use_blocks_are_refused_with_a_reason() -> None:
    with pytest.raises(ValueError, match=r"slices are not cut into blocks; a smaller window\.batch"):
        METHODS["slice25d"].in_blocks(64)
    with pytest.raises(ValueError, match="latent learns its representation, which encodes and decodes whole volumes"):
        METHODS["latent"].in_blocks(64)


def test_a_description_contains_blocks_only_if_they_are_used() -> None:
    assert PPDM.to_dict()["window"] == {"type": "whole", "concatenate": True}
    assert METHODS["patch"].to_dict()["window"].keys() == {"type", "size", "coordinates", "overlap"}
    for method in (PPDM.in_blocks(64, 0.5), METHODS["patch"].in_blocks((32, 64, 64))):
        assert Method.from_dict(method.to_dict()) == method


# --- memory


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ppdm", "patch"])
def test_peak_memory_on_the_device_does_not_grow_with_the_volume(name: str) -> None:
    method = tiny(METHODS[name]).in_blocks(16)

    def peak(*shape: int) -> int:
        d, h, w = shape
        work = workload(method, "sample", (d, h, w), 1, "cuda")
        return predict_peak(work.build, work.step, work.iterations).peak_allocated

    held = peak(32, 16, 16)
    assert held == peak(48, 16, 16)
    whole = workload(method.in_blocks(48), "sample", (48, 16, 16), 1, "cuda")
    assert held < predict_peak(whole.build, whole.step, whole.iterations).peak_allocated


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ppdm", "patch", "wavelet", "ddpm3d"])
def test_predicted_and_measured_memory_on_the_cpu_are_equal(name: str) -> None:
    work = workload(tiny(METHODS[name]).in_blocks(8), "sample", (12, 16, 8), 1, "cpu")
    measured = measure_peak(work.build, work.step, work.iterations)
    predicted = predict_peak(work.build, work.step, work.iterations, target="cpu")
    assert (predicted.peak_allocated, predicted.breakdown) == (measured.peak_allocated, measured.breakdown)


@pytest.mark.slow
def test_the_host_holds_few_copies_of_the_volume() -> None:
    """The host holds the volume, its latent, the state and the prediction, and one block and one plane."""
    method = tiny(replace(PPDM, representation=Puzzle(4))).in_blocks(16)
    shape = (48, 48, 48)
    net, source = network(method), torch.zeros(1, 1, *shape)
    measured = measure_peak(lambda: source, lambda volume: sample(method, net, volume), 1).peak_allocated
    weights = sum(p.nbytes for p in net.parameters())
    assert measured - weights < 4.5 * source.nbytes
