"""Numbers as readers see them: one sign, one way to write a share, and columns whose digits are in line."""

import numpy as np
import pandas as pd
import pytest

from nucleoscope.views import numbers

SPACE = numbers.NO_BREAK


@pytest.mark.parametrize(
    ("share", "digits", "shown"),
    [
        (0.123, 0, "12%"),
        (0.1234, 1, "12.3%"),
        (-0.5, 0, "−50%"),
        (-1e-9, 0, "0%"),
        (np.nan, 0, ""),
        (1, 0, "100%"),
        (123.45, 0, "12,345%"),
        (-np.inf, 0, "−∞%"),
    ],
)
def test_a_share_is_a_number_and_the_sign(share, digits, shown):
    assert numbers.format_percent(share, digits) == shown


@pytest.mark.parametrize(
    ("field", "shown"),
    [
        ("-0.5", "−0.5"),
        ("1e-05", "1e-05"),
        ("-0.56 [-0.61, -0.50]", f"−0.56 [−0.61,{SPACE}−0.50]"),
        ("[-0.1, 0.2]", f"[−0.1,{SPACE}0.2]"),
        ("0.5 [-inf, inf]", f"0.5 [−∞,{SPACE}∞]"),
        ("1.5 points [0.4, 2.6]", f"1.5{SPACE}points [0.4,{SPACE}2.6]"),
        ("12%", "12%"),
        ("12% [3, 4]", f"12% [3,{SPACE}4]"),
        ("a model-7b", "a model-7b"),
        ("2024-07-26", "2024-07-26"),
        ("", ""),
    ],
)
def test_a_number_of_a_table_has_a_minus_sign_and_breaks_only_before_its_interval(field, shown):
    assert numbers.format_field(field) == shown
    assert numbers.format_field(shown) == shown


@pytest.mark.parametrize(
    ("value", "low", "high", "shown"),
    [
        (0.2, 0.1, 0.3, "0.20 [0.10, 0.30]"),
        (0.08, 0.0041, 0.1612, "0.080 [0.004, 0.161]"),
        (0.08, -0.0004, 0.16, "0.0800 [−0.0004, 0.1600]"),
        (0.08, 0.0, 0.16, "0.08 [0.00, 0.16]"),
        (0.08, 1e-9, 0.16, "0.08 [0.00, 0.16]"),
        (0.08, np.nan, 0.16, "0.08"),
    ],
)
def test_an_interval_says_on_which_side_of_0_its_bounds_are(value, low, high, shown):
    assert numbers.format_bounded(value, low, high) == shown


def test_a_point_of_a_figure_is_said_with_a_minus_sign_and_the_decimals_that_its_interval_gives_a_meaning_to():
    values, lows, highs = [-0.1234, 0.5, np.nan, 12.34], [-0.2, np.nan, np.nan, 12], [-0.05, np.nan, np.nan, 12.6]
    assert numbers.format_points(values, lows, highs) == ["−0.12 [−0.20, −0.05]", "0.500", "", "12.34 [12.00, 12.60]"]
    assert numbers.format_points([5], [1], [9], 1, "%") == ["5.0% [1.0, 9.0]"]


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ([0.5, 0.25, -0.0, np.nan], ["0.50", "0.25", "0.00", ""]),
        ([-1234, 5], ["−1,234", "5"]),
        ([1234.0, np.nan], ["1,234", ""]),
        ([1e-9, 0.5, np.inf], ["1e-09", "0.5", "∞"]),
        ([True, False], ["True", "False"]),
        ([None, "-1", 2.5], ["", "−1", "2.5"]),
        ([None, "a", -0.0, 0.1 + 0.2, 1234], ["", "a", "0", "0.3", "1,234"]),
        ([1e15, 1234567890123456], ["1e+15", "1.23457e+15"]),
    ],
)
def test_a_column_has_equally_many_decimals_and_nothing_where_a_value_is_missing(values, shown):
    assert numbers.format_column(pd.Series(values)) == shown


@pytest.mark.parametrize(
    ("values", "shown"),
    [([0.1, 0.104], "0.10"), ([0.2, -0.1], "between −0.10 and 0.20"), ([-np.inf, 1], "between −∞ and 1.00")],
)
def test_a_range_is_one_number_if_both_ends_are_written_the_same(values, shown):
    assert numbers.format_range(values) == shown
    assert numbers.format_range([0.1, 0.2], numbers.format_percent) == "between 10% and 20%"
