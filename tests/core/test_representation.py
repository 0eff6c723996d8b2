from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ppdm.pixel_puzzle import crop, pad_to_multiple
from ppdm.representation import REPRESENTATIONS, Haar, Identity, Puzzle, Representation

VALUES = [Identity(), Puzzle(2), Puzzle((1, 2, 4)), Haar()]
ALL = pytest.mark.parametrize("representation", VALUES, ids=str)
BANDS = ["".join(letters) for letters in product("LH", repeat=3)]


def volumes(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# Every representation ------------------------------------------------------------------------------------------------


def test_the_tests_of_this_file_cover_every_representation() -> None:
    assert {type(v) for v in VALUES} == set(REPRESENTATIONS.values())


@ALL
def test_the_latent_has_the_documented_shape_and_decodes_to_the_volume(representation: Representation) -> None:
    x = volumes(2, 3, 4, 8, 12)
    z = representation.encode(x)
    sizes = [s // r for s, r in zip((4, 8, 12), representation.cell, strict=True)]
    assert z.shape == (2, representation.channels(3), *sizes)
    torch.testing.assert_close(representation.decode(z), x, rtol=0, atol=1e-14)


@ALL
def test_encoding_keeps_subjects_and_channels_separate(representation: Representation) -> None:
    x = volumes(2, 2, 4, 4, 4)
    together = representation.encode(x)
    apart = torch.cat([representation.encode(x[:, [c]]) for c in range(2)], dim=1)
    assert torch.equal(together, apart)
    assert torch.equal(representation.encode(x[1:]), together[1:])
    assert torch.equal(representation.decode(together[1:]), representation.decode(together)[1:])


@ALL
def test_encoding_and_decoding_are_linear(representation: Representation) -> None:
    """The gradient loss needs this: it decodes an error of latents to the error of the volume."""
    for change in (representation.encode, representation.decode):
        a, b = (volumes(1, representation.channels(1), 4, 4, 4, seed=seed) for seed in range(2))
        torch.testing.assert_close(change(2 * a - 3 * b), 2 * change(a) - 3 * change(b))
        assert not change(torch.zeros_like(a)).any()


@ALL
def test_clamp_limits_the_decoded_volume(representation: Representation) -> None:
    x = volumes(1, 1, 4, 8, 8)
    z = representation.clamp(representation.encode(x), 0.5)
    torch.testing.assert_close(representation.decode(z), x.clamp(-0.5, 0.5))


# Haar ----------------------------------------------------------------------------------------------------------------


def test_every_band_equals_pywavelets_and_lll_is_divided_by_3() -> None:
    x = volumes(2, 3, 6, 8, 10)
    z = Haar().encode(x)
    bands = pytest.importorskip("pywt").dwtn(x.numpy(), "haar", axes=(2, 3, 4))
    for channel, (k, name) in product(range(3), enumerate(BANDS)):
        expected = bands[name.replace("L", "a").replace("H", "d")][:, channel] / (3 if name == "LLL" else 1)
        np.testing.assert_allclose(z[:, 8 * channel + k].numpy(), expected, rtol=0, atol=1e-14)


def test_haar_of_a_hand_worked_cell() -> None:
    x = torch.zeros(1, 1, 2, 2, 2)
    x[0, 0, 0, 0, 1] = 8**0.5  # one voxel, at index 1 of W: in every band, negative if the band is a difference along W
    z = Haar().encode(x).flatten()
    signs = [-1.0 if name[2] == "H" else 1.0 for name in BANDS]
    torch.testing.assert_close(z, torch.tensor([signs[0] / 3, *signs[1:]]))


def test_the_transform_is_orthonormal_without_the_division_of_lll() -> None:
    unit = torch.eye(64, dtype=torch.float64).reshape(64, 1, 4, 4, 4)
    z = Haar().encode(unit)
    z[:, 0] *= 3
    matrix = z.flatten(1)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(64, dtype=torch.float64))


@given(st.tuples(*[st.integers(1, 7)] * 3))
@settings(max_examples=20, deadline=None)
def test_volumes_of_odd_sizes_are_recovered_through_padding(size: tuple[int, int, int]) -> None:
    x = volumes(1, 1, *size)
    decoded = Haar().decode(Haar().encode(pad_to_multiple(x, Haar().cell)))
    torch.testing.assert_close(crop(decoded, size), x)


def test_encoding_and_decoding_pass_gradcheck() -> None:
    x = volumes(1, 2, 2, 4, 2).requires_grad_()
    assert torch.autograd.gradcheck(Haar().encode, x)
    assert torch.autograd.gradcheck(Haar().decode, Haar().encode(x).detach().requires_grad_())


def test_the_largest_lll_of_volumes_in_minus_1_to_1_is_below_1_and_that_of_ones() -> None:
    """LLL is linear, so it is largest for a cell whose voxels are -1 or 1; the test encodes all 256 such cells."""
    cells = torch.tensor(list(product((-1.0, 1.0), repeat=8))).reshape(256, 1, 2, 2, 2)
    bands = Haar().encode(cells).flatten(1)
    torch.testing.assert_close(bands[-1], torch.tensor([8**0.5 / 3] + [0.0] * 7))  # the last cell is of ones
    assert bands[:, 0].abs().amax() == bands[-1, 0] < 1
