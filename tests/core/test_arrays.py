"""Arrays of any strides, byte order and type, in writable or read-only memory, give the results of plain arrays."""

import warnings

import numpy as np
import pytest
import torch
from tiny_methods import generator, network, tiny, volumes

from ppdm import PPDM, fit, puzzle, sample, training_loss, unpuzzle
from ppdm.checkpoint import Trained
from ppdm.data.normalise import LogSUV, Range, percentile_range
from ppdm.data.resample import resample_to
from ppdm.data.scaling import PercentileScaling, SUVScaling
from ppdm.data.volume import Volume, read_volume, write_volume
from ppdm.metrics import (
    MetricError,
    border_ratio,
    connected_regions,
    mae,
    nmae,
    nrmse,
    psnr,
    seam_index,
    sharpness,
    ssim,
    suv_bias,
)
from ppdm.pixel_puzzle import crop, pad_to_multiple
from ppdm.translation import reconstruct_volume, translate_volume

SHAPE = (12, 16, 14)
PLAIN = np.random.default_rng(0).random(SHAPE, np.float32) * 100 + 1


def read_only(array):
    array = array.copy()
    array.setflags(write=False)
    return array


LAYOUTS = {
    "negative strides": lambda x: x[::-1, ::-1, ::-1].copy()[::-1, ::-1, ::-1],
    "Fortran order": np.asfortranarray,
    "read-only": read_only,
    "big-endian": lambda x: x.astype(x.dtype.newbyteorder(">")),
    "every second voxel": lambda x: np.repeat(x, 2, axis=2)[:, :, ::2],
    "float64": lambda x: x.astype(np.float64),
    "an axis moved": lambda x: np.moveaxis(np.moveaxis(x, 0, 2).copy(), 2, 0),
}


@pytest.fixture(params=LAYOUTS)
def array(request):
    made = LAYOUTS[request.param](PLAIN)
    assert np.array_equal(made, PLAIN)
    return made


@pytest.fixture(autouse=True)
def no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns when it shares read-only memory
        yield


def trained(scaling=None):
    method = tiny(PPDM)
    return Trained(method, network(method).eval(), scaling or PercentileScaling(Range(0, 10)), (1, 1, 1), 1, 0, 1)


def test_a_volume_from_any_array_is_contiguous_and_shares_no_memory(array, tmp_path):
    volume = Volume.from_array(array)
    assert np.array_equal(volume.data, PLAIN)
    assert volume.data.flags.c_contiguous
    assert not np.shares_memory(volume.data, array)
    assert torch.equal(torch.from_numpy(volume.data), torch.from_numpy(PLAIN))
    for name in ("x.nii.gz", "x.nrrd"):
        write_volume(tmp_path / name, array, volume)
        assert np.array_equal(read_volume(tmp_path / name).data, PLAIN)


@pytest.mark.parametrize("axis", range(3))
def test_a_reversed_axis_of_length_1_is_accepted(axis):
    line = np.moveaxis(PLAIN[:1], 0, axis)
    backwards = np.flip(np.flip(line, axis).copy(), axis)
    assert min(backwards.strides) < 0
    for volume in (Volume.from_array(backwards), Volume(backwards, Volume.from_array(line).header)):
        assert torch.equal(torch.from_numpy(volume.data), torch.from_numpy(line.copy()))


@pytest.mark.parametrize("name", ["negative strides", "Fortran order", "read-only"])
def test_a_volume_with_a_header_takes_any_array(name):
    like = Volume.from_array(PLAIN)
    volume = Volume(LAYOUTS[name](PLAIN), like.header)
    assert torch.equal(torch.from_numpy(volume.data), torch.from_numpy(PLAIN))
    assert np.array_equal(
        resample_to(volume, Volume.from_array(PLAIN[:6], (2, 1, 1))).data,
        resample_to(like, Volume.from_array(PLAIN[:6], (2, 1, 1))).data,
    )


def test_scales_take_any_array(array):
    assert percentile_range(array) == percentile_range(PLAIN)
    for scale in (Range(0.0, 90.0), LogSUV(0.1)):
        np.testing.assert_allclose(scale.forward(array), scale.forward(PLAIN), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(scale.inverse(array / 100), scale.inverse(PLAIN / 100), rtol=1e-5)


@pytest.mark.parametrize("scaling", [None, SUVScaling()])
def test_translation_takes_any_array(array, scaling):
    method = trained(scaling)
    wanted = translate_volume(method, torch.from_numpy(PLAIN))
    assert torch.equal(translate_volume(method, array), wanted)
    ceiling = reconstruct_volume(method, torch.from_numpy(PLAIN), torch.from_numpy(PLAIN))
    assert torch.equal(reconstruct_volume(method, array, array), ceiling)


@pytest.mark.parametrize("source", [PLAIN, torch.from_numpy(PLAIN)])
def test_translation_does_not_change_its_source(source):
    before = torch.as_tensor(source).clone()
    translate_volume(trained(), source)
    assert torch.equal(torch.as_tensor(source), before)


def test_a_tensor_that_requires_grad_is_translated_without_a_graph():
    source = torch.from_numpy(PLAIN).requires_grad_()
    assert not translate_volume(trained(), source).requires_grad


@pytest.mark.slow
def test_training_takes_any_array(array):
    small = np.s_[:8, :8, :8]
    plain, given = (tuple(x[small] / 100 for x in (one, one[::-1])) for one in (PLAIN, array))
    nets = [fit(tiny(PPDM), [pair], steps=1).state_dict() for pair in (plain, given)]
    assert all(torch.equal(nets[0][name], nets[1][name]) for name in nets[0])


TWO = {
    "psnr": lambda p, g: psnr(p, g, 1.0),
    "ssim": lambda p, g: ssim(p, g, 1.0),
    "seam_index": lambda p, g: seam_index(p, g, 2),
    "border_ratio": lambda p, g: border_ratio(p, g, 2),
    "mae": mae,
    "nmae": nmae,
    "nrmse": nrmse,
    "sharpness": sharpness,
    "mask": lambda p, g: mae(g, g, p),
    "suv_bias": lambda p, g: suv_bias(g, g, p),
    "connected_regions": lambda p, _: connected_regions(p),
}


@pytest.mark.parametrize("metric", TWO.values(), ids=TWO)
def test_metrics_refuse_arrays_and_the_suggested_conversion_works(metric, array):
    target = torch.ones(SHAPE)
    with pytest.raises(MetricError, match=r"torch\.from_numpy\(x\.astype\('f4', order='C'\)\)"):
        metric(array, target)
    made = torch.from_numpy(array.astype("f4", order="C"))
    assert torch.equal(made, torch.from_numpy(PLAIN))


@pytest.mark.parametrize(
    "call",
    [
        lambda x: puzzle(x, 2),
        lambda x: unpuzzle(x, 2),
        lambda x: pad_to_multiple(x, 4),
        lambda x: sample(tiny(PPDM), network(tiny(PPDM)), x),
        lambda x: training_loss(tiny(PPDM), network(tiny(PPDM)), x, x),
    ],
)
def test_tensor_functions_refuse_arrays_and_suggest_a_conversion(call, array):
    with pytest.raises(
        TypeError, match=r"must be a torch tensor, got ndarray; convert an array x with torch\.from_numpy"
    ):
        call(array[None, None])


def spread(x):
    """Return a view with the same values and permuted axes, gaps between voxels, and a storage offset."""
    wide = x.new_zeros(*[2 * size + 1 for size in x.shape]).permute(4, 3, 2, 1, 0).contiguous().permute(4, 3, 2, 1, 0)
    view = wide[tuple(slice(1, 2 * size + 1, 2) for size in x.shape)]
    view.copy_(x)
    assert not view.is_contiguous()
    return view


def test_tensors_of_any_strides_give_equal_results():
    x, y = volumes(1, 1, 12, 16, 12), volumes(1, 1, 12, 16, 12, seed=1)
    method = tiny(PPDM)
    net = network(method).eval()
    assert torch.equal(puzzle(spread(x), 2), puzzle(x, 2))
    assert torch.equal(unpuzzle(spread(puzzle(x, 2)), 2), x)
    assert torch.equal(crop(pad_to_multiple(spread(x), 5), x.shape[2:]), x)
    assert torch.equal(sample(method, net, spread(x)), sample(method, net, x))
    losses = [training_loss(method, net, *pair, generator()) for pair in ((spread(x), spread(y)), (x, y))]
    torch.testing.assert_close(*losses)
    for metric in list(TWO.values())[:7]:
        torch.testing.assert_close(metric(spread(x), spread(y)), metric(x, y))
