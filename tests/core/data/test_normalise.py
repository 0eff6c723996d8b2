"""Intensity scales match their closed forms, can be inverted, and refuse invalid input."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ppdm.data.normalise import (
    IntensityError,
    LogSUV,
    Range,
    intensity_from_dict,
    percentile_range,
    pooled_range,
)

SCALES = [Range(-50.0, 1250.0), LogSUV(), LogSUV(factor=2.5e-4, ceiling=30.0)]


def physical(scale, size=101):
    top = scale.high if isinstance(scale, Range) else 1.5 * scale.ceiling / scale.factor
    return np.linspace(0, top, size, dtype=np.float32).reshape(1, 1, -1)


def test_range_maps_its_ends_and_does_not_clip():
    values = Range(100.0, 300.0).forward(np.array([100.0, 200.0, 300.0, 500.0], np.float32))
    np.testing.assert_allclose(values, [-1, 0, 1, 3], atol=1e-6)


def test_log_suv_is_the_scaled_logarithm():
    scale = LogSUV(factor=0.5, ceiling=math.e**2 - 1)
    stored = 2 * np.array([-4.0, 0.0, math.e - 1, math.e**2 - 1, math.e**3 - 1])
    np.testing.assert_allclose(scale.forward(stored), [-1, -1, 0, 1, 2], atol=1e-12)


def test_log_suv_never_returns_a_negative_uptake():
    assert LogSUV().inverse(np.array([-1.2, -1.0])).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("scale", SCALES)
def test_the_inverse_restores_the_physical_values_and_their_dtype(scale):
    values = physical(scale)
    back = scale.inverse(scale.forward(values))
    assert back.dtype == np.float32
    np.testing.assert_allclose(back, values, rtol=1e-4, atol=1e-5 * values.max())


@settings(max_examples=30, deadline=None)
@given(
    low=st.floats(-1e6, 1e6),
    width=st.floats(1e-3, 1e6),
    network=st.floats(-3, 3),
)
def test_range_forward_undoes_range_inverse(low, width, network):
    scale = Range(low, low + width)
    assert scale.forward(scale.inverse(np.array(network))) == pytest.approx(network, abs=1e-5)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_tensors_give_the_same_results_as_arrays_and_keep_gradients(scale, direction):
    values = scale.forward(physical(scale)) if direction == "inverse" else physical(scale)
    tensor = torch.tensor(values, requires_grad=True)
    result = getattr(scale, direction)(tensor)
    np.testing.assert_allclose(result.detach().numpy(), getattr(scale, direction)(values), rtol=1e-5, atol=1e-6)
    result.sum().backward()
    assert (tensor.grad[..., 1:] > 0).all()


@pytest.mark.parametrize("scale", SCALES)
def test_a_scale_is_equal_after_json(scale):
    assert intensity_from_dict(json.loads(json.dumps(scale.to_dict()))) == scale


@pytest.mark.parametrize(
    ("described", "complaint"),
    [
        ({"kind": "gamma", "low": 0, "high": 1}, "range, log_suv"),
        ({"low": 0, "high": 1}, "range, log_suv"),
        ({"kind": ["range"]}, "range, log_suv"),
        ([1, 2], "range, log_suv"),
        (None, "range, log_suv"),
        ({"kind": "range", "low": 0}, "has the fields high, low"),
        ({"kind": "range", "low": 0, "high": 1, "clip": True}, "has the fields high, low"),
        ({"kind": "range", "low": "0", "high": 1}, "low must be a finite number; got '0'"),
        ({"kind": "range", "low": 0, "high": True}, "high must be a finite number; got True"),
        ({"kind": "range", "low": 0, "high": float("nan")}, "high must be a finite number"),
        ({"kind": "range", "low": 0, "high": 10**400}, "high must be a finite number"),
        ({"kind": "log_suv", "factor": 1.0, "ceiling": None}, "ceiling must be a finite number"),
    ],
)
def test_an_invalid_description_is_refused_with_a_reason(described, complaint):
    with pytest.raises(IntensityError, match=complaint):
        intensity_from_dict(described)


@pytest.mark.parametrize(("low", "high"), [(1, 1), (2, 1), (-math.inf, 0), (0, math.nan), (-1e308, 1e308), (0, 5e-324)])
def test_an_impossible_range_is_refused(low, high):
    with pytest.raises(IntensityError, match=r"low|high"):
        Range(low, high)


@pytest.mark.parametrize("constants", [{"factor": 0.0}, {"factor": -1.0}, {"ceiling": 0.0}])
def test_impossible_suv_constants_are_refused(constants):
    with pytest.raises(IntensityError, match="positive factor and ceiling"):
        LogSUV(**constants)


def test_the_percentile_range_of_a_ramp_is_known():
    ramp = np.arange(1001, dtype=np.float32).reshape(7, 11, 13)
    found = percentile_range(ramp)
    assert (found.low, found.high) == pytest.approx((1.0, 999.0))
    assert percentile_range(ramp, 0, 100) == Range(0.0, 1000.0)


def test_percentiles_ignore_a_few_outliers():
    image = np.tile(np.linspace(0, 1, 1000), 10)
    image[0] = 1e6
    assert percentile_range(image).high <= 1.0


@pytest.mark.parametrize(
    ("image", "complaint"),
    [
        (np.full((4, 4, 4), 7.0), "both 7"),
        (np.eye(100) * (np.arange(100) == 3), "both 0"),
        (np.array([0.0, np.nan]), "finite voxels"),
        (np.zeros((0, 3, 3)), "finite voxels"),
    ],
)
def test_images_without_a_range_are_refused(image, complaint):
    with pytest.raises(IntensityError, match=complaint):
        percentile_range(image)


@pytest.mark.parametrize(("low", "high"), [(50, 50), (-1, 99), (0, 101), (math.nan, 99)])
def test_impossible_percentiles_are_refused(low, high):
    with pytest.raises(IntensityError, match="0 <= low < high <= 100"):
        percentile_range(np.arange(5.0), low, high)


def test_the_pooled_range_is_the_median_of_each_end():
    assert pooled_range([Range(0, 10), Range(4, 1e6), Range(1, 12)]) == Range(1.0, 12.0)
    assert pooled_range([Range(0, 10), Range(2, 20)]) == Range(1.0, 15.0)


def test_pooling_no_ranges_is_refused():
    with pytest.raises(IntensityError, match="at least one training subject"):
        pooled_range([])
