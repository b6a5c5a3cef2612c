"""The page of the book: the table of all types, its summary, and the reasons for what is not in it.

Contract: rows of trials in, Markdown out. Names and messages are literals, so that nothing in them is markup.
"""

import textwrap
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version

from model_families.reference import NEAR
from model_families.trial import (
    BOUND,
    CRASHED,
    LENGTHS,
    MAX_TOKENS,
    REFUSED,
    RIGHT,
    SHARED,
    UNBUILT,
    WRONG,
    Outcome,
    Row,
)
from nucleoscope.measure.decoding import WAYS

WIDTH = 100  # of the prose
COLUMNS = ("type", "class", "generate", "score", "how batched", "largest error")


def format_page(words: str, rows: Sequence[Row]) -> str:
    """``words`` with each <name> replaced by its value; ``rows`` in any order."""
    rows = sorted(rows, key=lambda row: (row.kind, row.released))
    facts = {
        "version": version("transformers"),
        "types": str(len({row.kind for row in rows})),
        "summary": textwrap.fill(summarise(rows), WIDTH),
        "prompts": str(len(LENGTHS)),
        "shared": str(SHARED),
        "shortest": str(min(LENGTHS)),
        "longest": str(max(LENGTHS)),
        "steps": str(MAX_TOKENS),
        "bound": f"{BOUND:g}",
        "near": f"{NEAR:g}",
        "table": format_table(rows),
        "refused": _list_reasons(rows, REFUSED),
        "unbuilt": _list_reasons(rows, UNBUILT),
    }
    for name, text in facts.items():
        words = words.replace(f"<{name}>", text)
    return words


def summarise(rows: Sequence[Row]) -> str:
    """How many types are right, in which way, and how many are not; the released forms of encoders apart."""
    types = [row for row in rows if not row.released]
    right = [row for row in types if is_right(row)]
    ways = Counter(row.way for row in right)
    parts = ", ".join(f"{ways[way]} {way}" for way in WAYS if ways[way])
    refused, unbuilt = (sum(is_all(row, verdict) for row in types) for verdict in (REFUSED, UNBUILT))
    left = len(types) - len(right) - refused - unbuilt
    encoders = sum(is_all(row, REFUSED) for row in rows if row.released)
    return (
        f"{_count(len(right))} right in both modes ({parts}), {_count(refused)} refused, {_count(left)} wrong or "
        f"failed, and {unbuilt} cannot be built. As released, {encoders} encoders are refused."
    )


def _count(number: int) -> str:
    return f"{number} {'is' if number == 1 else 'are'}"


def is_right(row: Row) -> bool:
    """Whether a type is right in both modes."""
    return is_all(row, RIGHT)


def is_all(row: Row, verdict: str) -> bool:
    """Whether a type has this verdict in both modes."""
    return row.generate.verdict == row.score.verdict == verdict


def has_failed(row: Row) -> bool:
    """Whether a type is wrong in one of the modes, or failed in another way than with a line that says why."""
    return any(outcome.verdict in (WRONG, CRASHED) for outcome in (row.generate, row.score))


def describe(row: Row) -> str:
    """One line about a type, for the terminal."""
    parts = [
        f"{mode} {outcome.verdict}{f' ({outcome.reason})' if outcome.reason else ''}"
        for mode, outcome in (("generate", row.generate), ("score", row.score))
    ]
    name = row.kind + (" as released" if row.released else "")
    return f"{name}: {', '.join(parts)}; {row.way or '-'}, largest error {_format_error(row)}"


def format_table(rows: Sequence[Row]) -> str:
    """The table, without the types that were not built."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    for row in rows:
        if not is_all(row, UNBUILT):
            cells = [_name(row), f"`{row.class_name}`", row.generate.verdict, row.score.verdict]
            lines.append(f"| {' | '.join([*cells, row.way or '-', _format_error(row)])} |")
    return "\n".join(lines)


def _name(row: Row) -> str:
    return f"`{row.kind}`" + (" as released" if row.released else "")


def _format_error(row: Row) -> str:
    errors = [outcome.error for outcome in (row.generate, row.score) if outcome.error is not None]
    return f"{max(errors):.0e}" if errors else "-"


def _list_reasons(rows: Sequence[Row], verdict: str) -> str:
    """A list of the types with a verdict, and why; a reason may be that of several types, whose class is "..."."""
    groups: dict[str, list[str]] = {}
    for row in rows:
        for reason in dict.fromkeys(outcome.reason for outcome in _find(row, verdict)):
            groups.setdefault(reason.replace(row.class_name, "..."), []).append(_name(row))
    items = (f"* {', '.join(names)}: {_quote(reason)}" for reason, names in groups.items())
    options = {"subsequent_indent": "  ", "break_long_words": False, "break_on_hyphens": False}
    return "\n".join(textwrap.fill(item, WIDTH, **options) for item in items) or "None."


def _quote(text: str) -> str:
    """A literal in Markdown, which may itself have backticks."""
    return f"`` {text} ``" if "`" in text else f"`{text}`"


def _find(row: Row, verdict: str) -> list[Outcome]:
    return [outcome for outcome in (row.generate, row.score) if outcome.verdict == verdict]
