"""The bytes that each token of a text adds to it, and their text, with any tokenizer.

Contract: a tokenizer and ids in, bytes or plain text out; nothing is made readable or escaped here (see
`views.token_text`). Tokens are bytes: a single one need not be valid text.
"""

import codecs
import json
import re
from typing import Any

ALPHABET = [*range(33, 127), *range(161, 173), *range(174, 256)]  # the bytes that GPT-2 writes as themselves
BYTES = {chr(byte): byte for byte in ALPHABET} | {
    chr(256 + place): byte for place, byte in enumerate(sorted(set(range(256)) - set(ALPHABET)))
}


class TokenDecoder:
    """Decodes the tokens of one tokenizer.

    Three kinds of tokenizer are distinguished: "bytes" (GPT-2's way to write bytes as letters; also Llama 3,
    Qwen, SmolLM), "pieces" (SentencePiece, with ``▁`` for a space and ``<0x0A>`` for a byte; Llama 2,
    Gemma), and "plain": all others, which only their own ``decode`` can read.
    """

    def __init__(self, tokenizer: Any):
        self.tokenizer, self.kind = tokenizer, _find_kind(tokenizer)
        added = getattr(tokenizer, "added_tokens_decoder", {})  # these are written unchanged
        self.added = {token: self._read_added(content) for token, content in added.items()}
        self._raw: dict[int, bytes] = {}

    def _read_added(self, content: Any) -> str:
        plain = self.kind != "pieces" or getattr(content, "special", True)
        return str(content) if plain else str(content).replace("▁", " ")  # sequences of spaces, as in Gemma

    def read_bytes(self, token: int) -> bytes:
        """The bytes that a token adds to a text. An id unknown to the tokenizer is shown by its number."""
        if token not in self._raw:
            self._raw[token] = self._decode_token(token)
        return self._raw[token]

    def _decode_token(self, token: int) -> bytes:
        if token in self.added:
            return self.added[token].encode()
        piece = self.tokenizer.convert_ids_to_tokens(token)
        if isinstance(piece, bytes):  # as in tiktoken
            return piece
        if piece is None:
            return name_unknown(token).encode()
        if self.kind == "bytes" and all(letter in BYTES for letter in piece):
            return bytes(BYTES[letter] for letter in piece)
        if self.kind == "pieces":
            byte = re.fullmatch(r"<0x([0-9A-Fa-f]{2})>", piece)
            return bytes([int(byte[1], 16)]) if byte else piece.replace("▁", " ").encode()
        return piece.encode() if self.kind == "bytes" else self.tokenizer.decode([token]).encode()

    def split_bytes(self, tokens: list[int]) -> list[bytes]:
        """The bytes that each of (n,) ids adds to the running text."""
        return [self.read_bytes(token) for token in tokens] if self.kind != "plain" else self._decode_growing(tokens)

    def split_text(self, tokens: list[int]) -> list[str]:
        """The text that each of (n,) ids adds, so that the n texts, joined, are the text of all.

        A character of several tokens is added by the last one; the others add "". Bytes that are not UTF-8 become
        U+FFFD, as a tokenizer's own ``decode`` writes them.
        """
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        parts = self.split_bytes(tokens)
        return [decoder.decode(part, final=place == len(parts)) for place, part in enumerate(parts, 1)]

    def read_alone(self, token: int) -> str:
        """The text of one token on its own, in which a byte that is no whole character is written ``\\xe2``."""
        return self.read_bytes(token).decode("utf-8", "backslashreplace")

    def _decode_growing(self, tokens: list[int]) -> list[bytes]:
        """The text that each token adds to the decoded text, for tokenizers whose words depend on their neighbours."""
        parts, done = [], ""
        for end in range(1, len(tokens) + 1):
            text = self.tokenizer.decode(tokens[:end], clean_up_tokenization_spaces=False)
            if text.endswith("\ufffd") and end < len(tokens):
                text = done  # an incomplete character: a later token completes it
            parts.append(text[len(done) :].encode())
            done = text
        return parts


def name_unknown(token: int) -> str:
    """What stands for an id that the tokenizer does not know."""
    return f"⟨token {token}⟩"


def _find_kind(tokenizer: Any) -> str:
    """Which of the three kinds a tokenizer is, by how it decodes."""
    decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
    state = str(json.loads(decoder.__getstate__())) if decoder is not None else ""
    if "ByteLevel" in state or hasattr(tokenizer, "byte_decoder"):
        return "bytes"
    return "pieces" if "▁" in state or hasattr(tokenizer, "sp_model") else "plain"
