"""Token ids in, text that people can read out, with any tokenizer.

Contract: plain text only; whoever makes HTML of it escapes it. A token is bytes: what a single one
of them says need not be text. `Reader.visible` shows one token for itself, so that two that differ
look different; `Reader.units` reads a row of tokens as the text that they make together.
"""

import codecs
import json
import re
import unicodedata
from typing import Any, NamedTuple

MARKS = {" ": "·", "\n": "↵", "\t": "⇥", "\r": "␍"}
SIGNS = {*MARKS.values(), "⟨", "⟩"}  # what stands for something else, and so never for itself
TURNING = {code: f"⟨U+{code:04X}⟩" for code in [*range(0x202A, 0x202F), *range(0x2066, 0x206A)]}
LONE = {0xDC00 + byte: f"⟨{byte:02X}⟩" for byte in range(128, 256)}  # how Python decodes a byte that is no UTF-8
JOINERS = "\u200c\u200d"  # they shape the letters or emoji on their two sides
LONGEST = 32  # tokens in a unit: text that never stops joining is cut
ALPHABET = [*range(33, 127), *range(161, 173), *range(174, 256)]  # the bytes that GPT-2 writes as themselves
BYTES = {chr(byte): byte for byte in ALPHABET} | {
    chr(256 + place): byte for place, byte in enumerate(sorted(set(range(256)) - set(ALPHABET)))
}


class Unit(NamedTuple):
    """A piece of text that cannot be split between its tokens, and how many those are."""

    text: str
    tokens: int


class Reader:
    """What the tokens of a tokenizer say.

    Three kinds are told apart: "bytes" (GPT-2's way to write bytes as letters: also Llama 3, Qwen,
    SmolLM), "pieces" (SentencePiece, with ``▁`` for a space and ``<0x0A>`` for a byte: Llama 2,
    Gemma), and "plain": whatever else there is, which only its own ``decode`` can read.
    """

    def __init__(self, tokenizer: Any):
        self.tokenizer, self.kind = tokenizer, _kind(tokenizer)
        added = getattr(tokenizer, "added_tokens_decoder", {})  # these are written as they are
        self.added = {token: self._added(content) for token, content in added.items()}
        self._raw: dict[int, bytes] = {}

    def _added(self, content: Any) -> str:
        plain = self.kind != "pieces" or getattr(content, "special", True)
        return str(content) if plain else str(content).replace("▁", " ")  # rows of spaces, as in Gemma

    def raw(self, token: int) -> bytes:
        """The bytes that a token adds to a text. An id that the tokenizer does not know says its number."""
        if token not in self._raw:
            self._raw[token] = self._read(token)
        return self._raw[token]

    def _read(self, token: int) -> bytes:
        if token in self.added:
            return self.added[token].encode()
        piece = self.tokenizer.convert_ids_to_tokens(token)
        if isinstance(piece, bytes):  # as tiktoken has it
            return piece
        if piece is None:
            return _unknown(token).encode()
        if self.kind == "bytes" and all(letter in BYTES for letter in piece):
            return bytes(BYTES[letter] for letter in piece)
        if self.kind == "pieces":
            byte = re.fullmatch(r"<0x([0-9A-Fa-f]{2})>", piece)
            return bytes([int(byte[1], 16)]) if byte else piece.replace("▁", " ").encode()
        return piece.encode() if self.kind == "bytes" else self.tokenizer.decode([token]).encode()

    def visible(self, token: int) -> str:
        """One token for itself: ``·`` is a space, ``↵`` a line break, ``⟨E2⟩`` a lone byte, ``⟨U+00AD⟩`` unseen."""
        raw = self.raw(token)
        return _unknown(token) if raw == _unknown(token).encode() else visible(raw)

    def units(self, tokens: list[int]) -> list[Unit]:
        """The running text of (n,) ids, in units whose token counts add up to n.

        A unit is one token, or several that make one character or one cluster of characters (an
        emoji with joiners, a letter with its accents). Bytes that are no UTF-8 are shown as ``⟨E2⟩``,
        control characters, which no page can show, by their pictures (``␀``), and those that turn
        the order of what follows as ``⟨U+202E⟩``.
        """
        parts = [self.raw(token) for token in tokens] if self.kind != "plain" else self._grown(tokens)
        decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        found: list[Unit] = []
        waiting = ""  # the text of tokens that have not come to the end of a character
        count = 0
        for place, part in enumerate(parts, 1):
            waiting += decoder.decode(part, final=place == len(parts))
            count += 1
            if decoder.getstate()[0]:
                continue
            unit, waiting, count = Unit(waiting, count), "", 0
            if found and found[-1].tokens + unit.tokens <= LONGEST and joined(found[-1].text, unit.text):
                last = found.pop()
                unit = Unit(last.text + unit.text, last.tokens + unit.tokens)
            found.append(unit)
        return [Unit(_printable(unit.text), unit.tokens) for unit in found]

    def _grown(self, tokens: list[int]) -> list[bytes]:
        """What each token adds to the decoded text, for tokenizers whose words depend on their neighbours."""
        parts, done = [], ""
        for end in range(1, len(tokens) + 1):
            text = self.tokenizer.decode(tokens[:end], clean_up_tokenization_spaces=False)
            if text.endswith("\ufffd") and end < len(tokens):
                text = done  # an unfinished character: the next token brings it
            parts.append(text[len(done) :].encode())
            done = text
        return parts


def _unknown(token: int) -> str:
    return f"⟨token {token}⟩"


def visible(raw: bytes) -> str:
    """Bytes as text in which everything can be seen, and nothing passes for something else."""
    text = raw.decode("utf-8", "surrogateescape")
    shown = []
    for place, letter in enumerate(text):
        inside = 0 < place < len(text) - 1
        if letter in MARKS:
            shown.append(MARKS[letter])
        elif ord(letter) in LONE:
            shown.append(LONE[ord(letter)])
        elif letter in SIGNS or (_unseen(letter) and not (letter in JOINERS and inside)):
            shown.append(f"⟨U+{ord(letter):04X}⟩")
        elif place == 0 and unicodedata.category(letter).startswith("M"):
            shown.append("\u25cc" + letter)  # an accent needs something to stand on
        else:
            shown.append(letter)
    return "".join(shown)


def joined(before: str, after: str) -> bool:
    """Whether ``after`` begins in the middle of a cluster that ``before`` ends in.

    The rules of Unicode's annex 29 that matter between tokens: accents, joiners, skin tones, tags,
    and flags, which are pairs of letters of their own.
    """
    if not before or not after:
        return False
    last, first = before[-1], after[0]
    if unicodedata.category(first).startswith("M") or first in JOINERS or 0x1F3FB <= ord(first) <= 0x1F3FF:
        return last not in "\r\n\t"
    if 0xE0020 <= ord(first) <= 0xE007F:
        return True
    if last == "\u200d":
        return not first.isascii()
    flags = len(before) - len(before.rstrip("".join(map(chr, range(0x1F1E6, 0x1F200)))))
    return 0x1F1E6 <= ord(first) <= 0x1F1FF and flags % 2 == 1


def _kind(tokenizer: Any) -> str:
    """Which of the three kinds a tokenizer is, by how it decodes."""
    decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
    state = str(json.loads(decoder.__getstate__())) if decoder is not None else ""
    if "ByteLevel" in state or hasattr(tokenizer, "byte_decoder"):
        return "bytes"
    return "pieces" if "▁" in state or hasattr(tokenizer, "sp_model") else "plain"


def _unseen(letter: str) -> bool:
    return unicodedata.category(letter) in {"Cc", "Cf", "Cn", "Co", "Zl", "Zp", "Zs"}


def _printable(text: str) -> str:
    """Text without what no page can show or what spoils the rest: pictures and values stand for it."""
    pictures = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {0x7F: "\u2421"}
    return text.translate(pictures | LONE | TURNING)


def encodable(text: str) -> str:
    """Text that can be written as UTF-8: a lone surrogate, which a JSON file may hold, is shown by its value."""
    return re.sub("[\ud800-\udfff]", lambda found: f"⟨U+{ord(found[0]):04X}⟩", text)


def literal(text: str) -> str:
    """A name for a page in Markdown: nothing in it is markup there, nor HTML, nor mathematics."""
    return re.sub(r"[^\w\s.,-]|_", lambda found: f"&#{ord(found[0])};", " ".join(encodable(text).split()))
