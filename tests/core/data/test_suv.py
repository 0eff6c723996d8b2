"""SUV factors match hand calculations; dose tables are read, or refused with a reason."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppdm.data.layouts.suv import F18_HALF_LIFE_S, SUVError, read_suv_table, suv_factor

HEADER = "subject,weight_kg,dose_bq,minutes\n"


def table(folder, text):
    path = folder / "doses.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def complaint(folder, text):
    with pytest.raises(SUVError) as caught:
        read_suv_table(table(folder, text))
    assert "doses.csv" in str(caught.value)
    return str(caught.value)


def test_a_dose_spread_evenly_over_the_body_is_suv_1():
    # 350 MBq in 70 kg is 5 kBq/g; water has 1 g/mL, so 5 kBq/mL everywhere is SUV 1.
    assert 5000 * suv_factor(70, 350e6, 0) == pytest.approx(1)


def test_half_the_activity_is_left_after_a_half_life():
    assert suv_factor(70, 350e6, F18_HALF_LIFE_S) == pytest.approx(2 * suv_factor(70, 350e6, 0))
    assert suv_factor(70, 350e6, 1220.4 * 2, half_life_s=1220.4) == pytest.approx(4 * suv_factor(70, 350e6, 0))


def test_the_factor_of_a_published_scan_is_reproduced():
    # 55 kg, 203.5 MBq, 3399 s, half-life of the scanner 6588 s: 203.5e6 · 0.5^0.515938 = 142.32 MBq are left.
    assert suv_factor(55, 203.5e6, 3399, half_life_s=6588) == pytest.approx(55000 / 142.32e6, rel=1e-4)


@pytest.mark.parametrize(
    "fault", [(0, 1e8, 0), (70, -1, 0), (70, 1e8, -1), (float("nan"), 1e8, 0), (70, 1e8, float("inf"))]
)
def test_impossible_numbers_are_refused(fault):
    with pytest.raises(SUVError, match="expected"):
        suv_factor(*fault)


def test_a_completely_decayed_dose_is_refused():
    with pytest.raises(SUVError, match="no activity is left"):
        suv_factor(70, 1e8, 1e9)


def test_a_dose_table_gives_the_factor_of_each_subject(tmp_path):
    text = "\ufeff" + HEADER.strip() + ",half_life_min\r\ns1, 55 ,203500000,56.65,109.8\r\ns2,70,3.5e8,0,\r\n\r\n"
    factors = read_suv_table(table(tmp_path, text))
    assert factors.factor("s1") == suv_factor(55, 203.5e6, 3399, 6588)
    assert factors.factor("s2", "any") == suv_factor(70, 350e6, 0)
    assert factors.factor("s3") is None


def test_a_row_without_a_session_is_not_used_for_two_sessions(tmp_path):
    factors = read_suv_table(table(tmp_path, HEADER.strip() + ",session\ns1,70,2e8,60,d1\ns2,70,2e8,60,\n"))
    assert factors.factor("s1", "d1", sessions=2) == suv_factor(70, 2e8, 3600)
    assert factors.factor("s1", "d2") is None
    assert factors.factor("s2", "d1", sessions=2) is None


def test_a_table_from_a_spreadsheet_with_decimal_commas_is_read(tmp_path):
    text = "\ufeffsubject;weight_kg;dose_bq;minutes;tracer;\r\ns1;72,5;3,5e8;60;FDG;\r\n"
    assert read_suv_table(table(tmp_path, text)).factor("s1") == suv_factor(72.5, 350e6, 3600)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "column 'subject' is missing; found none"),
        ("subject,weight_kg,dose_mbq,minutes\n", "column 'dose_bq' is missing"),
        ("subject,subject,weight_kg,dose_bq,minutes\n", "column 'subject' appears twice"),
        (HEADER, "it has a header but no rows"),
        (HEADER + "s1,70,350,60\n", "line 2: dose_bq is 350, less than any injection; write Bq"),
        (HEADER + "s1,70,2e8,60\ns1,71,2e8,60\n", "line 3: s1 is there twice"),
        (HEADER + "s1,seventy,2e8,60\n", "line 2: weight_kg is 'seventy', expected a number"),
        (HEADER + "s1,70,2e8\n", "line 2: 3 cells, expected 4"),
        (HEADER + "s1,70,2e8,60,9\n", "line 2: 5 cells, expected 4"),
        (HEADER + ",70,2e8,60\n", "line 2: subject is empty"),
        (HEADER + "s1,70,2e8,-1\n", "line 2: seconds is -60.0, expected the time since injection"),
        (HEADER + '"s1,70', "line 2: it is not CSV"),
        (HEADER.encode("utf-16"), "not UTF-8 text"),
    ],
)
def test_faults_of_a_dose_table_are_reported(tmp_path, text, said):
    assert said in complaint(tmp_path, text)


def test_a_missing_table_is_refused(tmp_path):
    with pytest.raises(SUVError, match=r"gone\.csv is not a file"):
        read_suv_table(tmp_path / "gone.csv")


@settings(max_examples=40, deadline=None)
@given(st.text(alphabet='s1,"\n\r .-e8', max_size=50))
def test_arbitrary_rows_raise_only_suv_errors(tmp_path_factory, noise):
    with pytest.raises(SUVError):
        read_suv_table(table(tmp_path_factory.mktemp("noise"), HEADER + noise))
