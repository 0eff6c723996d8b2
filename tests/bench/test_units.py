"""Numbers as text for tables."""

import pytest

from ppdm_bench.units import count


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (99.49, "99"),
        (999, "999"),
        (1234, "1.23 k"),
        (26_123_456, "26.1 M"),
        (999_999, "1.00 M"),
        (5e12, "5.00 T"),
    ],
)
def test_a_count_has_three_significant_digits_and_the_prefix_of_the_rounded_number(number, text):
    assert count(number) == text
