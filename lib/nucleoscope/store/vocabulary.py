"""A run's vocabulary.parquet: what is known of each token of the model's vocabulary.

Contract: one row per row of the input embedding, with columns ``id``, ``text`` (the token as it is in the middle of a
text; "" for an id that is no token), ``class`` (see `classify_token`), ``norm`` (of the row) and ``mean_probability``
(over the tokens of the run that were looked at a second time).
"""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import regex

from nucleoscope.store.side_tables import load_table, write_table

if TYPE_CHECKING:
    import pandas as pd

VOCABULARY = "vocabulary.parquet"
COLUMNS = ("id", "text", "class", "norm", "mean_probability")
CLASSES = ("word_start", "word_piece", "digit", "punctuation", "whitespace", "capitalised", "other_script", "special")

PART = "\ufffd"  # how a decoder writes bytes that are no whole character
WHITESPACE = regex.compile(r"[\s\p{Z}\p{Cc}]+")
LETTER, NUMBER = regex.compile(r"[\p{L}\p{M}]"), regex.compile(r"\p{N}")
FOREIGN = regex.compile(r"[\p{L}\p{M}--[\p{Script=Latin}\p{Script=Common}\p{Script=Inherited}]]", regex.VERSION1)
FIRST_LETTER = regex.compile(r"\p{L}")
CAPITAL = regex.compile(r"[\p{Lu}\p{Lt}]")


def classify_token(text: str, special: bool) -> str:
    """The class of a token, one of `CLASSES`: the first of these that it belongs to.

    * special: it has a role in prompts (begin, end, padding, chat), or is an id without a text
    * whitespace: nothing but white space and control characters
    * other_script: a letter or a vowel sign of another script than Latin, or bytes that are no whole character,
      which nearly all belong to one (or to an emoji)
    * digit: a number (of any script) and no letter
    * punctuation: neither a letter nor a number: punctuation, and symbols such as + or an emoji
    * capitalised: its first letter is an upper- or title-case one, at the start of a word or within one
    * word_start: it begins with white space
    * word_piece: everything else: it continues a word, or begins one without a space, as after a quotation mark

    So " The" is capitalised, not word_start, and " 12th" is word_start, not digit.
    """
    if special or not text:
        return "special"
    if WHITESPACE.fullmatch(text):
        return "whitespace"
    if PART in text or FOREIGN.search(text):
        return "other_script"
    if not LETTER.search(text):
        return "digit" if NUMBER.search(text) else "punctuation"
    first = FIRST_LETTER.search(text)
    if first and CAPITAL.match(first[0]):
        return "capitalised"
    return "word_start" if WHITESPACE.match(text) else "word_piece"


def write_vocabulary(looked: Any, measurements: Path) -> None:
    """Writes what a `measure.second_look.SecondLook` knows of the vocabulary beside the measurements file."""
    import pyarrow as pa

    texts = [text.encode("utf-8", "replace").decode() for text in looked.texts]  # lone surrogates are in no file
    places = [CLASSES.index(classify_token(*each)) for each in zip(texts, looked.special, strict=True)]
    columns = {
        "id": pa.array(range(len(texts)), pa.int32()),
        "text": pa.array(texts, pa.string()),
        "class": pa.DictionaryArray.from_arrays(pa.array(places, pa.int8()), pa.array(CLASSES, pa.string())),
        "norm": pa.array(looked.norms.numpy()),
        "mean_probability": pa.array(looked.mean_probability.numpy()),
    }
    write_table(pa.table(columns), VOCABULARY, measurements, looked.seed)


def load(
    folder: Path, columns: Sequence[str] | None = None, classes: Collection[str] | str | None = None
) -> "pd.DataFrame":
    """The vocabulary of a run: all or some columns, of all or some ``classes``.

    ValueError, in one line, if the file is missing, damaged or of other measurements.
    """
    return load_table(folder, VOCABULARY, columns, {"class": classes})
