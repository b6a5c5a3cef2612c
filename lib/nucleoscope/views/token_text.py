"""Converts token ids into readable text, with any tokenizer.

Contract: plain text only; code that makes HTML of it must escape it. What bytes a token is, is known to
`models.token_bytes`; a single one need not be valid text. `Reader.show` shows one token on its own, so that
different tokens look different; `Reader.split_units` shows a sequence of tokens as the text that they form together.
"""

import codecs
import re
import unicodedata
from typing import Any, NamedTuple

import regex

from nucleoscope.models.token_bytes import TokenDecoder, name_unknown

MARKS = {" ": "·", "\n": "↵", "\t": "⇥", "\r": "␍"}
SIGNS = {*MARKS.values(), "⟨", "⟩"}  # characters that represent something else, and so never themselves
TURNING = {code: f"⟨U+{code:04X}⟩" for code in [*range(0x202A, 0x202F), *range(0x2066, 0x206A)]}
LONE = {0xDC00 + byte: f"⟨{byte:02X}⟩" for byte in range(128, 256)}  # how Python decodes a byte that is not UTF-8
JOINERS = "\u200c\u200d"  # they shape the letters or emoji on their two sides
LONGEST = 32  # maximum number of tokens in a unit: longer clusters are cut


class Unit(NamedTuple):
    """A piece of text that cannot be split between its tokens, and how many those are."""

    text: str
    tokens: int


class Reader(TokenDecoder):
    """Converts the tokens of one tokenizer into text that can be read, each on its own or as a running text."""

    def __init__(self, tokenizer: Any):
        super().__init__(tokenizer)
        self._shown: dict[int, str] = {}

    def show(self, token: int) -> str:
        """One token on its own: ``·`` is a space, ``↵`` a line break, ``⟨E2⟩`` a lone byte, ``⟨U+00AD⟩`` invisible."""
        if token not in self._shown:  # a page names its tokens ten thousand times
            raw = self.read_bytes(token)
            self._shown[token] = name_unknown(token) if raw == name_unknown(token).encode() else show_bytes(raw)
        return self._shown[token]

    def split_units(self, tokens: list[int]) -> list[Unit]:
        """The running text of (n,) ids, in units whose token counts add up to n.

        A unit is one token, or several that form one character or one cluster of characters (an emoji
        with joiners, a letter with its accents, a Korean syllable). Bytes that are not UTF-8 are shown as
        ``⟨E2⟩``, control characters, which a page cannot show, by their pictures (``␀``), and characters
        that reverse the order of the text after them as ``⟨U+202E⟩``.
        """
        parts = self.split_bytes(tokens)
        decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        characters: list[Unit] = []
        waiting = ""  # the text of tokens that have not completed a character
        count = 0
        for place, part in enumerate(parts, 1):
            waiting += decoder.decode(part, final=place == len(parts))
            count += 1
            if not decoder.getstate()[0]:
                characters.append(Unit(waiting, count))
                waiting, count = "", 0
        return [Unit(_make_printable(unit.text), unit.tokens) for unit in _join_clusters(characters)]


def show_bytes(raw: bytes) -> str:
    """Bytes as text in which everything is visible, and nothing can be mistaken for something else."""
    text = raw.decode("utf-8", "surrogateescape")
    shown = []
    for place, letter in enumerate(text):
        inside = 0 < place < len(text) - 1
        if letter in MARKS:
            shown.append(MARKS[letter])
        elif ord(letter) in LONE:
            shown.append(LONE[ord(letter)])
        elif letter in SIGNS or (_is_unseen(letter) and not (letter in JOINERS and inside)):
            shown.append(f"⟨U+{ord(letter):04X}⟩")
        elif place == 0 and unicodedata.category(letter).startswith("M"):
            shown.append("\u25cc" + letter)  # an accent needs a base character
        else:
            shown.append(letter)
    return "".join(shown)


def _join_clusters(units: list[Unit]) -> list[Unit]:
    """The same text in units that do not split clusters of characters (Unicode's annex 29), up to `LONGEST` tokens."""
    ends = {0, *(match.end() for match in regex.finditer(r"\X", "".join(unit.text for unit in units)))}
    found: list[Unit] = []
    place = 0
    for unit in units:
        if place in ends or found[-1].tokens + unit.tokens > LONGEST:
            found.append(unit)
        else:
            found[-1] = Unit(found[-1].text + unit.text, found[-1].tokens + unit.tokens)
        place += len(unit.text)
    return found


def _is_unseen(letter: str) -> bool:
    return unicodedata.category(letter) in {"Cc", "Cf", "Cn", "Co", "Zl", "Zp", "Zs"}


def _make_printable(text: str) -> str:
    """Replaces characters that a page cannot show, or that disturb the rest, by pictures and code points."""
    pictures = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {0x7F: "\u2421"}
    return text.translate(pictures | LONE | TURNING)


def make_encodable(text: str) -> str:
    """Text that can be encoded as UTF-8: a lone surrogate, possible in JSON files, is shown by its code point."""
    return re.sub("[\ud800-\udfff]", lambda found: f"⟨U+{ord(found[0]):04X}⟩", text)


def quote_code(text: str) -> str:
    """Text for a page in Markdown as code, such as a path: between more backticks than there are in it in a row."""
    shown = " ".join(make_encodable(text).split())
    marks = "`" * (1 + max(map(len, re.findall("`+", shown)), default=0))
    return f"{marks} {shown} {marks}" if "`" in shown else f"`{shown}`"


def escape_name(text: str) -> str:
    """A name for a page in Markdown: escaped so that nothing in it is markup, HTML or mathematics."""
    return re.sub(r"[^\w\s.,-]|_", lambda found: f"&#{ord(found[0])};", " ".join(make_encodable(text).split()))
