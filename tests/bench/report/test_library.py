"""Errors while a figure is made: altered records are reported as such, and errors of the code are not hidden."""

import math

import pytest

from ppdm_bench.records import Record, RecordError
from ppdm_bench.report.library import reporting_altered_records

RECORD = Record(metric="psnr", value=1.0, kind="measured", options={"plan": None})


def _options_of_another_form():
    return RECORD.options["plan"]["budget"]


def _an_option_without_a_method():
    return RECORD.options["plan"].get("budget")


def _an_option_that_is_missing():
    return RECORD.options["cell"]


@pytest.mark.parametrize(
    "use", [_options_of_another_form, _an_option_without_a_method, _an_option_that_is_missing], ids=lambda f: f.__name__
)
def test_options_of_an_unexpected_form_are_reported_as_altered_records(use):
    with (
        pytest.raises(RecordError, match="a figure: the options of a record do not have the form"),
        reporting_altered_records("a figure"),
    ):
        use()


def test_an_attribute_that_does_not_exist_is_an_error_of_the_code():
    with pytest.raises(AttributeError, match="metrik"), reporting_altered_records("a figure"):
        RECORD.metrik  # noqa: B018
    with pytest.raises(AttributeError, match="squareroot"), reporting_altered_records("a figure"):
        math.squareroot(2)


def test_a_wrong_argument_is_an_error_of_the_code():
    with pytest.raises(TypeError, match="unexpected keyword"), reporting_altered_records("a figure"):
        Record.from_json(txt="{}")
    with pytest.raises(TypeError, match="missing 1 required"), reporting_altered_records("a figure"):
        Record.from_json()
