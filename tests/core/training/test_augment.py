"""Random flips of training pairs."""

from itertools import combinations

import pytest
import torch
from tiny_training import TINY, pair, same

from ppdm import fit
from ppdm.training.augment import Flip

AXES = [axes for size in range(4) for axes in combinations((1, 2, 3), size)]


def test_source_and_target_are_flipped_alike():
    source = torch.arange(2 * 3 * 4 * 5 * 6.0).reshape(2, 3, 4, 5, 6)
    seen = set()
    for seed in range(40):
        got, twin = Flip("dhw")(source, -source, torch.Generator().manual_seed(seed))
        assert torch.equal(got, -twin)
        for n in range(2):
            turns = [axes for axes in AXES if torch.equal(got[n], source[n].flip([a - 4 for a in axes]))]
            assert len(turns) == 1
            seen.add((n, turns[0]))
    assert len(seen) == 16  # both subjects are flipped in all 8 ways


@pytest.mark.parametrize(("axes", "dim"), [("d", 2), ("h", 3), ("w", 4)])
def test_only_the_chosen_axis_is_flipped_half_of_the_time(axes, dim):
    x = torch.rand(200, 1, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    got, _ = Flip(axes)(x, x, torch.Generator().manual_seed(1))
    turned = [torch.equal(a, b.flip(dim - 1)) for a, b in zip(got, x, strict=True)]
    assert all(t or torch.equal(a, b) for t, a, b in zip(turned, got, x, strict=True))
    assert 70 < sum(turned) < 130


@pytest.mark.slow
def test_augmentation_is_reproducible_and_changes_the_weights():
    pairs = [pair(i) for i in range(2)]
    networks = [fit(TINY, pairs, steps=4, augment=flip) for flip in (Flip(), Flip(), Flip("h"), None)]
    assert same(networks[0], networks[1])
    assert not any(same(networks[0], other) for other in networks[2:])


@pytest.mark.parametrize("axes", ["", "x", "dd", "dhwd", None, ("d",)])
def test_invalid_axes_of_a_flip_are_refused(axes):
    with pytest.raises(ValueError, match="axes d, h and w, each at most once"):
        Flip(axes)
