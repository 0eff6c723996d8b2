from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ppdm import PPDM, Method, sample, training_loss
from ppdm.kernel import Brownian
from ppdm.loss import Loss
from ppdm.method import Optimisation
from ppdm.network.options import UNetOptions
from ppdm.representation import Haar, Identity, Puzzle, Representation
from ppdm.slices import Slices
from ppdm.window import Patch, Piece, Whole, Window

SMALL = UNetOptions(width=8, multipliers=(1, 2), norm_groups=4)


def volumes(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Recorder(nn.Module):
    """Records its inputs and returns the first channel."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []
        self.times: list[Tensor] = []

    def forward(self, parts: Sequence[Tensor], t: Tensor) -> Tensor:
        seen = torch.cat(list(parts), dim=1)
        self.seen.append(seen)
        self.times.append(t)
        return seen[:, :1]


def recorders(window: Window) -> nn.Module:
    return window.build(lambda *_: Recorder(), 1)


def shown(network: nn.Module, piece: Piece, t: Tensor) -> Tensor:
    """Return the input of the network for a piece whose state is its own x0."""
    piece.predict(network, piece.x0, t, piece.y)
    (recorder,) = (m for m in network.modules() if isinstance(m, Recorder) and m.seen)
    return recorder.seen.pop()


# Patch ---------------------------------------------------------------------------------------------------------------


def coordinates(*shape: int) -> Tensor:
    """Return coordinates (3, *shape) from -1 to 1."""
    return torch.stack(torch.meshgrid(*(torch.linspace(-1, 1, s) for s in shape), indexing="ij"))


def test_in_sampling_the_network_gets_the_whole_volume_once_with_coordinates() -> None:
    x, y, t = volumes(2, 1, 4, 6, 8), volumes(2, 1, 4, 6, 8, seed=1), torch.tensor([0.3, 0.7])
    network = Recorder()
    out = Patch(2).apply(network, x, t, y)
    (seen,) = network.seen
    grid = coordinates(4, 6, 8)
    assert torch.equal(seen, torch.cat([x, y, grid.expand(2, 3, 4, 6, 8)], dim=1))
    assert all(grid[k].amin() == -1 and grid[k].amax() == 1 for k in range(3))
    assert torch.equal(network.times[0], t)
    assert torch.equal(out, x)


def test_a_patch_is_cut_from_both_volumes_at_one_place_with_its_coordinates() -> None:
    """The voxels contain their own coordinates, which show where a patch was cut."""
    grid = coordinates(8, 10, 12).expand(4, 3, 8, 10, 12)
    (piece,) = Patch((4, 2, 6)).draw(grid, -grid, generator())
    assert piece.x0.shape == (4, 3, 4, 2, 6)
    assert torch.equal(piece.y, -piece.x0)
    seen = shown(Recorder(), piece, torch.zeros(4))
    assert torch.equal(seen[:, 6:], piece.x0)
    corners = {tuple(corner.tolist()) for corner in piece.x0[:, :, 0, 0, 0]}
    assert len(corners) > 1  # each subject has its own position


def test_patches_lie_more_often_in_the_middle_and_reach_every_border() -> None:
    """PatchDDM's distribution for 128 of 256, in units of a sixteenth: the sum of uniform 0…2 and uniform 0…6."""
    line = torch.arange(16.0).reshape(1, 1, 16, 1, 1).expand(20_000, 1, 16, 1, 1)
    (piece,) = Patch((8, 1, 1)).draw(line, line, generator())
    found = piece.x0[:, 0, 0, 0, 0].long().tolist()
    counts = Counter(found)
    law = Counter(a + b for a, b in product(range(3), range(7)))
    assert set(counts) == set(law) == set(range(9))
    for place, ways in law.items():
        assert counts[place] / len(found) == pytest.approx(ways / 21, abs=0.015)


def test_without_a_size_a_patch_is_half_of_every_axis() -> None:
    x = volumes(1, 1, 8, 12, 16)
    (piece,) = Patch().draw(x, x, generator())
    assert piece.x0.shape == (1, 1, 4, 6, 8)
    assert Patch().multiple(4) == (8, 8, 8)


def test_a_patch_larger_than_the_volume_is_the_whole_volume() -> None:
    x = volumes(2, 1, 4, 6, 8)
    (piece,) = Patch(64).draw(x, -x, generator())
    assert torch.equal(piece.x0, x)
    assert torch.equal(piece.y, -x)


@given(st.tuples(*[st.integers(1, 9)] * 3), st.tuples(*[st.integers(1, 9)] * 3), st.floats(0, 0.9))
@settings(max_examples=25, deadline=None)
def test_stitched_patches_equal_the_whole_result_for_a_pointwise_network(
    shape: tuple[int, int, int], size: tuple[int, int, int], overlap: float
) -> None:
    class Pointwise(nn.Module):
        def forward(self, parts: Sequence[Tensor], t: Tensor) -> Tensor:
            seen = torch.cat(list(parts), dim=1)
            assert all(s <= part for s, part in zip(seen.shape[2:], size, strict=True))
            return seen.sum(1, keepdim=True) * t.reshape(-1, 1, 1, 1, 1)

    x, y, t = volumes(2, 1, *shape), volumes(2, 1, *shape, seed=1), torch.tensor([0.5, 2.0])
    stitched = Patch(size, overlap=overlap).apply(Pointwise(), x, t, y)
    expected = torch.cat([x, y, coordinates(*shape).expand(2, 3, *shape)], dim=1).sum(1, keepdim=True)
    torch.testing.assert_close(stitched, expected * t.reshape(-1, 1, 1, 1, 1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("overlap", "patches"), [(0.0, 2), (0.5, 3), (0.75, 5)])
def test_stitching_uses_as_many_patches_as_the_overlap_requires(overlap: float, patches: int) -> None:
    network = Recorder()
    x = volumes(1, 1, 8, 4, 4)
    Patch(4, overlap=overlap).apply(network, x, torch.ones(1), x)
    assert len(network.seen) == patches


def test_coordinates_may_be_left_out() -> None:
    network = Recorder()
    x = volumes(1, 1, 4, 4, 4)
    Patch(2, coordinates=False).apply(network, x, torch.ones(1), -x)
    assert torch.equal(network.seen[0], torch.cat([x, -x], dim=1))


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"size": 0}, "a patch's size is a positive integer, or three of them .* got 0"),
        ({"size": (4, 4)}, r"got \(4, 4\)"),
        ({"size": (4, 4, 2.0)}, "a patch's size"),
        ({"overlap": 1.0}, r"share in \[0, 1\).* got 1.0"),
        ({"overlap": -0.1}, "share in"),
        ({"block": 0, "overlap": 0.1}, "a block's size is a positive integer.* got 0"),
        ({"block": 8}, "blocks of 8 need an overlap"),
    ],
)
def test_invalid_patch_options_are_refused(fields: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Patch(**fields)  # type: ignore[arg-type]


def test_a_patch_that_the_network_cannot_halve_is_refused_at_construction() -> None:
    with pytest.raises(ValueError, match="patch of 12 must have sizes that are multiples of the network's 8"):
        replace(PPDM, window=Patch(12))
    method = replace(PPDM, window=Patch(16))
    with pytest.raises(ValueError, match="multiples of the network's 32"):
        method.with_network(multipliers=(1, 1, 1, 1, 1, 1))


# Slices --------------------------------------------------------------------------------------------------------------

VIEWS = {"d": 2, "h": 3, "w": 4}


def test_slices_are_cut_from_the_volume_with_their_neighbours() -> None:
    """The voxels contain their position along the axis, which shows what was cut."""
    n, shape, context = 3, (5, 6, 7), 2
    lines = torch.stack(torch.meshgrid(*(torch.arange(float(s)) for s in shape), indexing="ij"))
    window = Slices("dhw", context=context, drawn=4)
    for view, axis in VIEWS.items():
        line = lines[axis - 2].expand(n, 1, *shape)
        pieces = dict(zip(window.views, window.draw(line, line, generator()), strict=True))
        piece = pieces[view]
        sizes = [1 if axis == k + 2 else s for k, s in enumerate(shape)]
        assert piece.x0.shape == piece.y.shape == (n * 4, 1, *sizes)
        at = piece.x0.flatten(1)[:, 0]
        assert len(set(at.tolist())) > 1
        seen = shown(recorders(window), piece, torch.zeros(n * 4))
        assert seen.shape[1] == 1 + 2 * context + 1
        expected = torch.stack([at, *((at + k).clamp(0, shape[axis - 2] - 1) for k in range(-2, 3))], dim=1)
        assert torch.equal(seen[:, :, 0, 0], expected)


def test_the_slices_of_each_subject_are_consecutive() -> None:
    x = torch.tensor([1.0, 2.0]).reshape(2, 1, 1, 1, 1).expand(2, 1, 4, 4, 4)
    for piece in Slices(drawn=3).draw(x, x, generator()):
        assert piece.x0.flatten(1)[:, 0].tolist() == [1, 1, 1, 2, 2, 2]


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_the_mean_of_equal_predictions_of_all_views_is_that_prediction(batch: int) -> None:
    window = Slices(context=1, batch=batch)
    x = volumes(2, 1, 4, 5, 6)
    network = recorders(window)
    torch.testing.assert_close(window.apply(network, x, torch.tensor([0.2, 0.4]), -x), x)
    recorder = network["d"]  # type: ignore[index]
    assert all(len(seen) <= max(batch, 2) for seen in recorder.seen)  # at least one slice of each subject
    assert sum(map(len, recorder.seen)) == 2 * 4
    assert {round(float(t), 3) for times in recorder.times for t in times} == {0.2, 0.4}


class Blur(nn.Module):
    """A symmetric blur: transposing the slice transposes the output."""

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, parts: Sequence[Tensor], t: Tensor) -> Tensor:
        seen = torch.cat(list(parts), dim=1)
        return self.weight * F.avg_pool2d(seen.square().sum(1, keepdim=True), 3, 1, 1)


@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)])
def test_averaging_over_views_is_equivariant_to_permuting_the_axes(order: tuple[int, int, int]) -> None:
    def permuted(v: Tensor) -> Tensor:
        return v.permute(0, 1, *(2 + k for k in order))

    window = Slices(context=1)
    network = nn.ModuleDict({view: Blur() for view in "dhw"})
    x, y, t = volumes(1, 1, 4, 5, 6), volumes(1, 1, 4, 5, 6, seed=1), torch.ones(1)
    expected = permuted(window.apply(network, x, t, y))
    torch.testing.assert_close(window.apply(network, permuted(x), t, permuted(y)), expected)


def test_each_view_has_its_own_network_and_the_same_weight() -> None:
    x, t = volumes(1, 1, 4, 4, 4), torch.ones(1)
    weights = {"d": 1, "h": 2, "w": 4}
    alone = [Slices(v, context=0).apply(nn.ModuleDict({v: Blur(w)}), x, t, x) for v, w in weights.items()]
    network = nn.ModuleDict({v: Blur(w) for v, w in weights.items()})
    torch.testing.assert_close(Slices(context=0).apply(network, x, t, x), sum(alone) / 3)


def test_the_axis_of_a_single_view_needs_no_multiple() -> None:
    assert Slices("w").multiple(8) == (8, 8, 1)
    assert Slices("dw").multiple(8) == (8, 8, 8)
    method = replace(PPDM, representation=Identity(), window=Slices("h", context=0), network=SMALL)
    source = volumes(1, 1, 4, 3, 4)
    assert sample(method, method.build(), source).shape == source.shape


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"views": ""}, "letters out of dhw, each once, got ''"),
        ({"views": "xyz"}, "letters out of dhw"),
        ({"views": "dd"}, "each once"),
        ({"context": -1}, "context must be an integer of at least 0, got -1"),
        ({"drawn": 0}, "drawn must be"),
        ({"batch": 0}, "batch must be"),
    ],
)
def test_invalid_slice_options_are_refused(fields: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Slices(**fields)  # type: ignore[arg-type]


# Combinations --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "window",
    [
        Whole(),
        Whole(block=4, overlap=0.5),
        Patch(4),
        Patch(overlap=0.5),
        Patch(4, overlap=0.25, block=2),
        Slices("dhw", 1, 2),
        Slices("w", 0),
    ],
    ids=str,
)
@pytest.mark.parametrize("representation", [Identity(), Puzzle(2), Puzzle((1, 2, 2)), Haar()], ids=str)
def test_every_window_works_with_every_representation_and_loss(representation: Representation, window: Window) -> None:
    method = Method(
        "free", representation, window, Brownian(), "residual", network=SMALL, optimisation=Optimisation(at_start=0.5)
    )
    network = method.build()
    source, target = volumes(2, 1, 7, 8, 9), volumes(2, 1, 7, 8, 9, seed=1)

    def loss(value: Loss) -> Tensor:
        with_loss = replace(method, loss=value)
        discriminator = with_loss.build_discriminator()
        found = training_loss(with_loss, network, source, target, generator(), discriminator=discriminator)
        assert found.shape == (2,)
        assert found.isfinite().all()
        return found

    for p in (1, 2):
        alone = loss(Loss(p))
        assert (alone > 0).all()
        for mode in ("all", "cell"):
            assert (loss(Loss(p, 1.0, mode)) > alone).all()
        assert (loss(Loss(p, weight="scale")) < alone).all()  # this kernel's scale is below 1
        assert (loss(Loss(p, adversarial=1.0, discriminator_width=2)) > alone).all()
    untrained = sample(method, network, source, generator())
    torch.testing.assert_close(untrained, source, rtol=1e-5, atol=1e-5)  # a residual of zero
