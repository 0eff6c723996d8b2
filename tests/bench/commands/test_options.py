import re
import string

import pytest
import typer
from commands import refused
from hypothesis import given, settings
from hypothesis import strategies as st

from ppdm_bench.commands.values import (
    comma_separated,
    one_of,
    or_usage_error,
    read_block,
    read_budget,
    read_dose,
    read_factor,
    read_option,
    read_shape,
    read_spacing,
)
from ppdm_bench.predictor.target import GIB, MIB

few = settings(max_examples=40, deadline=None)
sizes = st.integers(1, 10**6)


@few
@given(sizes, sizes, sizes)
def test_shapes_factors_and_budgets_are_read_back(d, h, w):
    assert read_shape(f"{d}x{h}x{w}") == (d, h, w)
    assert read_factor(f"{d}x{h}x{w}") == (d, h, w)
    assert read_factor(str(d)) == d
    assert read_budget(f"{d}MB") == d * MIB


@few
@given(st.text(string.printable + "²٣", max_size=8))
def test_other_text_is_refused_with_a_message_that_quotes_it(text):
    for read in (read_shape, read_factor, read_budget):
        if not re.fullmatch(r"[0-9., xGMIB\s]+", text, re.IGNORECASE):
            with pytest.raises(ValueError, match=f"expected .* got {re.escape(repr(text))}"):
                read(text)


@pytest.mark.parametrize("text", ["", "0", "-1", "1.5", "x", "2x2", "2x2x0", "1x2x2x2", "²", "٣", "02"])
def test_a_factor_must_be_one_or_three_positive_integers(text):
    with pytest.raises(ValueError, match="positive factor"):
        read_factor(text)


@pytest.mark.parametrize("text", ["", "1x2", "1x2x3x4", "0x1x1", "-1x2x3", "axbxc", "²x2x2", "1.0x2x3"])
def test_a_shape_must_be_three_positive_integers(text):
    with pytest.raises(ValueError, match="three positive sizes"):
        read_shape(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [("24GB", 24 * GIB), ("24 GiB", 24 * GIB), ("1.5g", 3 * GIB // 2), ("512MB", 512 * MIB), (" 2mib ", 2 * MIB)],
)
def test_the_units_of_a_budget_are_powers_of_two(text, size):
    assert read_budget(text) == size


@pytest.mark.parametrize("text", ["lots", "24", "0GB", "-1GB", "0.0001MB", "1e3GB", "24KB", ""])
def test_an_invalid_budget_is_refused(text):
    with pytest.raises(ValueError, match="amount of memory"):
        read_budget(text)


@pytest.mark.parametrize("read", [read_shape, read_block, read_spacing])
def test_commas_between_axes_are_accepted_with_a_notice(read, capsys):
    assert read("160, 192,160") == (160, 192, 160)
    assert "write 160x192x160 instead of 160, 192,160" in capsys.readouterr().err


def test_commas_between_the_axes_of_a_factor_are_refused():
    with pytest.raises(ValueError, match=r"got '1, 2,2'; x separates axes, write 1x2x2$"):
        read_factor("1, 2,2")


def test_lists_drop_empty_and_repeated_values_and_keep_the_order(capsys):
    assert comma_separated(read_factor)("4, 2,,4,1x2x2") == [4, 2, (1, 2, 2)]
    assert "warning: 4, 2,,4,1x2x2 repeats a value, which counts once; a comma separates" in capsys.readouterr().err
    assert comma_separated(str)("a,b") == ["a", "b"]
    assert capsys.readouterr().err == ""
    with pytest.raises(ValueError, match="separated by commas"):
        comma_separated(str)(" , ")


def test_an_invalid_choice_is_refused_with_the_allowed_ones():
    assert one_of("cpu", "cuda")("cuda") == "cuda"
    with pytest.raises(ValueError, match="expected auto, cpu or cuda, got 'CPU'"):
        one_of("auto", "cpu", "cuda")("CPU")


def test_usage_errors_name_their_option():
    with pytest.raises(typer.BadParameter) as fault:
        read_option("--factor", read_factor, "0")
    assert "'--factor'" in fault.value.format_message()
    with pytest.raises(typer.BadParameter, match="three positive"):
        or_usage_error(read_shape, "1")
    assert or_usage_error(read_shape, "1x2x3") == (1, 2, 3)


@few
@given(st.integers(1, 10**4), st.integers(1, 99))
def test_a_spacing_is_one_length_for_all_axes_or_three_lengths(whole, hundredths):
    text = f"{whole}.{hundredths:02d}"
    assert read_spacing(text) == (float(text),) * 3
    assert read_spacing(f"{text}x2x.5") == (float(text), 2.0, 0.5)


@pytest.mark.parametrize("text", ["", "2x2", "0", "2x0x2", "2,2", "-1", "nan", "inf", "1e3", "2mm"])
def test_an_invalid_spacing_is_refused(text):
    with pytest.raises(ValueError, match="one or three positive lengths in mm"):
        read_spacing(text)


@few
@given(st.integers(2, 10**6))
def test_a_dose_factor_is_read(factor):
    assert read_dose(str(factor)) == factor


@pytest.mark.parametrize("text", ["", "1", "0", "-4", "2.5", "ref"])
def test_an_invalid_dose_factor_is_refused(text):
    with pytest.raises(ValueError, match="expected a dose factor"):
        read_dose(text)


@pytest.mark.parametrize("words", [("speed", "--res", 8, "--evaluations", ""), ("ablate", "--memory-res", "")])
def test_an_empty_list_is_refused(words, tmp_path):
    assert "expected values separated by commas, got ''" in refused(2, *words, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()
