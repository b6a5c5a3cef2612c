"""Numbers as readers see them: one way to write a sign, a share and an interval, in sentences and in tables.

Contract: text only; nothing is computed, and code that makes HTML of it must escape it.
"""

import numbers
import re
from collections.abc import Callable, Iterable

import numpy as np
import pandas as pd
from pandas.api.types import is_bool_dtype, is_numeric_dtype

MINUS, NO_BREAK = "\N{MINUS SIGN}", "\N{NO-BREAK SPACE}"
DECIMALS = 6  # at most
_NUMBER, _SPACE = r"[-−]?(?:[\d,]*\.?\d+(?:e[-+]?\d+)?|inf|∞)", f"[ {NO_BREAK}]"
# The whole of a field: "-0.5", "12%", "1.5 points [0.4, 2.6]", "[-0.1, 0.1]"
FIELD = re.compile(rf"(?:{_NUMBER}(?:%|{_SPACE}points)?)?(?:(?:^| )\[{_NUMBER},{_SPACE}{_NUMBER}\])?")


def format_percent(share: float, digits: int = 0) -> str:
    """A share as "12%", with a minus sign and no negative zero; "" if it is missing."""
    return "" if pd.isna(share) else f"{100 * share:z,.{digits}f}%".replace("-", MINUS).replace("inf", "∞")


def format_top_p(top_p: float) -> str:
    """A value of top_p as a share, "97.5%": never rounded, because it names a nucleus."""
    return f"{100 * top_p:.12g}%"


def format_number(value: float, digits: int = 2) -> str:
    """A number with a minus sign, "∞" and no negative zero."""
    return f"{value:z.{digits}f}".replace("-", MINUS).replace("inf", "∞")


def format_bounded(value: float, low: float, high: float, digits: int = 2) -> str:
    """ "value [low, high]"; the value alone if there is no interval.

    Where a bound would be rounded to 0, there are up to two decimals more than ``digits``, if these show its sign.
    """
    if pd.isna(low) or pd.isna(high):
        return format_number(value, digits)
    digits = show_signs(low, high, digits)
    return f"{format_number(value, digits)} [{format_number(low, digits)}, {format_number(high, digits)}]"


def show_signs(low: float, high: float, digits: int = 2) -> int:
    """Decimals that show the signs of an interval's bounds: ``digits``, or up to two more if these show what it hides.

    A bound that is 0 or missing has no sign to show.
    """
    bounds = [bound for bound in (low, high) if bound and not pd.isna(bound)]
    return next((more for more in range(digits, digits + 3) if all(round(bound, more) for bound in bounds)), digits)


def format_range(values: Iterable[float], write: Callable[[float], str] = format_number) -> str:
    """What several numbers are, the smallest and largest as ``write`` writes them: "0.10", "between 0.10 and 0.20"."""
    values = list(values)
    low, high = write(min(values)), write(max(values))
    return low if low == high else f"between {low} and {high}"


def format_points(
    values: Iterable[float], lows: Iterable[float], highs: Iterable[float], most: int = 3, unit: str = ""
) -> list[str]:
    """What pointing at each point of a figure shows: `format_bounded` with `choose_digits`; "" where there is no point.

    ``unit`` follows the value. A number in a template of plotly's (``%{y:.3f}``) has a hyphen for a minus sign, and one
    without a format (``%{y}``) is followed by the lengths of its error bars, so points with intervals need words. For
    others, ``%{y}`` with a ``yhoverformat`` has minus signs.
    """
    found = []
    for value, low, high in zip(values, lows, highs, strict=True):
        number, space, interval = format_bounded(value, low, high, choose_digits(low, high, most)).partition(" ")
        found.append("" if np.isnan(value) else number + unit + space + interval)
    return found


def choose_digits(low: float, high: float, most: int) -> int:
    """How many decimals of a number mean something: two digits of the width of its interval, at most ``most``."""
    width = high - low
    known = np.isfinite(width) and width > 0
    return min(most, max(0, 1 - int(np.floor(np.log10(width))))) if known else most


def format_field(text: str) -> str:
    """A number, or a number and its interval, of a table: with minus signs; lines break only before an interval.

    Any other text is returned as it is: a hyphen in it is a hyphen.
    """
    if not text or not FIELD.fullmatch(text):
        return text
    text = re.sub(r"(?<!e)-", MINUS, text).replace("inf", "∞")
    return re.sub(r" (?!\[)", NO_BREAK, text)


def format_column(column: pd.Series) -> list[str]:
    """The fields of a column: fractions with equally many decimals, commas between thousands, what is missing empty.

    In a column of several types, each number has its own decimals.
    """
    if is_bool_dtype(column) or not is_numeric_dtype(column):
        return [_format_any(value) for value in column]
    values = column.astype(float).to_numpy()
    digits = max((_count_decimals(value) for value in values if np.isfinite(value)), default=0)
    return ["" if np.isnan(value) else format_field(_format_value(value, digits)) for value in values]


def _format_any(value: object) -> str:
    if _is_missing(value):
        return ""
    if isinstance(value, numbers.Real) and not isinstance(value, (bool, np.bool_)):
        return format_field(_format_value(float(value), _count_decimals(float(value)) if np.isfinite(value) else 0))
    return format_field(str(value))


def _is_missing(value: object) -> bool:
    return value is None or bool(np.ndim(value) == 0 and pd.isna(value))


def _count_decimals(value: float) -> int:
    return len(f"{value:.{DECIMALS}f}".rstrip("0").partition(".")[2])


def _format_value(value: float, digits: int) -> str:
    tiny = 0 < abs(value) < 0.5 * 10**-DECIMALS
    return f"{value:.2g}" if tiny else f"{value:g}" if abs(value) >= 1e15 else f"{value:z,.{digits}f}"
