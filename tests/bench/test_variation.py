"""``--vary``: variations of a method."""

from dataclasses import replace

import pytest

from ppdm import PPDM
from ppdm.kernel import I2SB, Brownian, Gaussian
from ppdm.loss import Loss
from ppdm.representation import Identity, Puzzle
from ppdm_baselines import METHODS
from ppdm_bench.variation import VariationError, assignments_text, difference, parse_assignments, vary, with_assignments


def _methods(text):
    return [point.method for point in vary(PPDM, text)]


def test_a_field_of_an_axis_is_varied():
    points = vary(PPDM, "kernel.gamma=0.25, 0.5")
    assert [point.label for point in points] == ["kernel.gamma=0.25", "kernel.gamma=0.5"]
    assert [point.method.kernel for point in points] == [Brownian(0.25), Brownian(0.5)]
    assert points[1].method == replace(PPDM, kernel=Brownian(0.5))


def test_a_field_of_the_method_is_varied():
    assert _methods("target=x0") == [replace(PPDM, target="x0")]


def test_an_axis_is_replaced_with_and_without_arguments():
    assert [m.kernel for m in _methods("kernel=i2sb,brownian(gamma=1),gaussian(schedule=flow)")] == [
        I2SB(),
        Brownian(1.0),
        Gaussian("flow"),
    ]
    kept = _methods("representation=identity,puzzle(factor=[1,2,2])")
    assert [m.representation for m in kept] == [Identity(), Puzzle((1, 2, 2))]


def test_one_variation_can_change_several_fields():
    off, cell = _methods("loss.mode=off+loss.gradient=0,cell")
    assert off.loss == replace(PPDM.loss, mode="off", gradient=0)
    assert cell.loss == replace(PPDM.loss, mode="cell")
    assert isinstance(off.loss, Loss)


def test_values_are_read_as_json():
    assert not _methods("window.concatenate=false")[0].window.concatenate
    assert _methods("network.multipliers=[1,2]")[0].network.multipliers == (1, 2)
    assert _methods("sampling.clamp=null")[0].sampling.clamp is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "expected name=value,value"),
        ("0.5", "expected name=value such as kernel.gamma=0.25, got '0.5'"),
        ("kernel.beta=1", "a method has no kernel.beta; it has representation, representation.factor"),
        ("target.x=1", "has no target.x"),
        ("kernel.gamma=-1", "kernel.gamma=-1: a Brownian bridge needs gamma > 0"),
        ("kernel=brown", "no kernel 'brown'; there are brownian, linear, i2sb, gaussian"),
        ("kernel=brownian(delta=1)", "delta"),
        ("target=noise", "does not determine x0"),
        ("network.width=wide", "width must be int, got 'wide'"),
        ("loss.mode=off", "does not go with mode 'off'"),
    ],
)
def test_invalid_variations_are_refused(text, words):
    with pytest.raises(VariationError) as error:
        vary(PPDM, text)
    assert words in str(error.value)


def test_a_comma_separates_alternatives_and_x_separates_axes():
    points = vary(PPDM, "representation.factor=2,1x2x2")
    assert [point.method.representation.factor for point in points] == [2, (1, 2, 2)]


def test_a_repeated_alternative_counts_once_with_a_warning():
    with pytest.warns(UserWarning, match="repeats a value, which counts once; x separates axes"):
        points = vary(PPDM, "representation.factor=2,2,1")
    assert [point.label for point in points] == ["representation.factor=2", "representation.factor=1"]


@pytest.mark.parametrize("start", METHODS.values(), ids=METHODS)
def test_applying_the_difference_gives_the_other_method(start):
    for method in METHODS.values():
        there = difference(method, start)
        assert replace(with_assignments(start, there), name=method.name) == method
        assert parse_assignments(assignments_text(there) or "target=x0") == (there or [("target", "x0")])
    assert difference(start, start) == []
