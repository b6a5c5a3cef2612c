"""Numbers and lists of things in sentences, right for one, two and many; errors of Python's in ours; shared advice.

Contract: text only; whatever the numbers, the sentence that contains them stays grammatical.
"""

import json
from collections.abc import Iterable

# Advice on results that cannot be used; `workflow.status` replaces it where there is no --overwrite.
MEASURE_AGAIN = "repeat the run's command with --overwrite"


def count(number: int, noun: str) -> str:
    """ "1 token", "2 tokens", "1,234 tokens"; ``noun`` is the singular of one that takes an s."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def name_part(number: int, total: int, noun: str) -> str:
    """How many of all, to follow a preposition: "no run", "the only run", "both runs", "all 3 runs", "2 of 3 runs"."""
    if not number:
        return f"no {noun}"
    if number == total:
        return {1: f"the only {noun}", 2: f"both {noun}s"}.get(total, f"all {count(total, noun)}")
    return f"{number:,} of {count(total, noun)}"


def join_names(names: Iterable[str]) -> str:
    """ "a", "a and b", "a, b and c"; "" for none."""
    *first, last = list(names) or [""]
    return f"{', '.join(first)} and {last}" if first else last


def lower_first(sentence: str) -> str:
    """A sentence to follow a colon: its first letter is small, unless its first word is a name.

    A name has another capital letter or a digit (SmolLM2, R2, AICc), or is a possessive (Spearman's).
    """
    word = sentence.split(" ", 1)[0]
    named = word.endswith("'s") or any(letter.isupper() or letter.isdigit() for letter in word[1:])
    return sentence if named or not word[:1].isalpha() else sentence[0].lower() + sentence[1:]


def explain_json(error: ValueError | RecursionError, with_line: bool = True) -> str:
    """Why ``json.loads`` could not read bytes or text, to follow "not valid JSON" in parentheses.

    ``with_line`` is False where the line has been named already.
    """
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8 text"
    if not isinstance(error, json.JSONDecodeError):  # Python reads no whole number of more than 4300 digits
        return "a number has too many digits"
    if "BOM" in error.msg:
        return "it begins with a byte-order mark"
    line = f"line {error.lineno}, " if with_line else ""
    return f"{error.msg.removesuffix(' at')} at {line}column {error.colno}"
