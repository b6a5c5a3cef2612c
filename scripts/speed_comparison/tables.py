"""Markdown tables of figures measured in pairs, with the ratios of the pairs."""

import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from nucleoscope.names import escape_line

Repetitions = Sequence[float | None]  # one per repetition; None if it is unknown


class ComparisonRow(NamedTuple):
    """The figures of two sides, in the order of the repetitions: those at the same place are a pair."""

    label: str
    ours: Repetitions
    others: Repetitions


def collect(pairs: Sequence[Sequence[Any]], pick: Callable[[Any], float | None]) -> tuple[list, list]:
    """What ``pick`` finds in the results of each side, of all ``pairs``."""
    return [pick(ours) for ours, _ in pairs], [pick(others) for _, others in pairs]


def compute_ratios(row: ComparisonRow) -> list[float]:
    """Ours divided by the other's, for each pair of which both are known."""
    pairs = zip(row.ours, row.others, strict=True)
    return [one / other for one, other in pairs if one is not None and other]


def format_table(
    title: str, rows: Sequence[ComparisonRow], digits: int = 0, sides: tuple[str, str] = ("this build", "the other")
) -> str:
    """A heading and a table: the medians of both sides, and of their ratios the median, smallest and largest."""
    head = f"### {title}\n\n| | {sides[0]} | {sides[1]} | ratio: median | smallest | largest |\n|{'---|' * 6}\n"
    lines = []
    for row in rows:
        ratios = compute_ratios(row)
        cells = [_format_median(row.ours, digits), _format_median(row.others, digits)]
        spread = (statistics.median(ratios), min(ratios), max(ratios)) if ratios else ()
        cells += [f"{ratio:.2f}" for ratio in spread] or ["–"] * 3
        label = escape_line(row.label).replace("|", "\\|")  # it has the name of a data set
        lines.append(f"| {label} | {' | '.join(cells)} |\n")
    return head + "".join(lines)


def _format_median(figures: Repetitions, digits: int) -> str:
    known = [figure for figure in figures if figure is not None]
    return f"{statistics.median(known):,.{digits}f}" if known else "–"
