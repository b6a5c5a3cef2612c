r"""Names of models, data sets and files in other languages: a name is never code there.

Contract: one function per target language, used wherever that language is written. Names come from folders
and files that anybody may have made, so they can contain every character but "/" and NUL. Pages of the
book have `views.token_text.escape_name` (Markdown) and `book.pages.encode_page_name` (addresses). `suggest` says
which name was probably meant by one that is unknown, and `advise` which there are if it cannot.
"""

import difflib
import html
import re
import unicodedata
from collections.abc import Collection, Iterable

FORMULA = ("=", "+", "-", "@")  # how a cell begins that spreadsheets compute; so does one after a tab or a return
LONGEST_TYPED = 100  # characters of a name that somebody may have mistyped
MOST_LISTED = 6  # names that are listed although one of them was probably meant


def find_close(word: object, names: Iterable[str]) -> str | None:
    """Which of ``names`` was probably meant by an unknown ``word``; None if none was."""
    if not isinstance(word, str) or len(word) > LONGEST_TYPED:  # nobody has typed it, and it would take long
        return None
    known = {name.lower(): name for name in names}
    close = difflib.get_close_matches(word.lower(), known, 1, 0.75)
    return known[close[0]] if close else None


def suggest(word: object, names: Iterable[str]) -> str:
    """Words to add to a message about an unknown ``word``: which of ``names`` was probably meant; "" if none."""
    close = find_close(word, names)
    return f" (did you mean '{close}'?)" if close else ""


def advise(word: object, names: Collection[str], rule: str) -> str:
    """As `suggest`, followed by ``rule``, which lists ``names``, unless they are many and one was probably meant."""
    close = suggest(word, names)
    return close if close and len(names) > MOST_LISTED else f"{close}{rule}"


def escape_line(text: str) -> str:
    r"""Text for a terminal, a log or a comment of LaTeX: line breaks and control characters become such as \n."""
    return "".join(
        ascii(letter)[1:-1] if unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") else letter for letter in text
    )


def escape_cell(text: str) -> str:
    """Text for a cell of a csv, on one line; one that a spreadsheet would compute gets an apostrophe, as OWASP advises.

    A line break could be in quotes, but Python's csv and pandas leave a lone carriage return out of them.
    """
    shown = escape_line(text)
    return f"'{shown}" if shown.startswith(FORMULA) else shown


def read_cell(text: str) -> str:
    """The text that `escape_cell` was given, on one line."""
    return text[1:] if text.startswith("'") and text[1:].startswith(FORMULA) else text


def escape_mathtext(text: str) -> str:
    r"""Text for matplotlib, on one line: between two dollar signs it would be mathematics."""
    return escape_line(text).replace("$", r"\$")


def escape_latex(text: str) -> str:
    """Text for LaTeX, on one line: each of its ten special characters is printed as it is."""
    signs = {sign: f"\\{sign}" for sign in "&%$#_{}"}
    signs |= {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}"}
    return escape_line(text).translate(str.maketrans(signs))


def escape_plotly(text: str) -> str:
    """Text for plotly: it would interpret tags, entities, formulas between dollar signs, and %{variables}."""
    text = html.escape(escape_line(text), quote=False)  # plotly knows no name of a quotation mark
    return re.sub("[${}\"']", lambda found: f"&#{ord(found[0])};", text)
