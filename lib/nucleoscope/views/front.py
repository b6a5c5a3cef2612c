"""The front page's example: one sentence of a measured text, tinted, with the card of one token open.

Contract: drawn from the files of a run, with its tokenizer and without its model. The token is chosen by a rule
(`examples.list_typical`), which sees no more of the text than which tokens are words and where sentences end.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from nucleoscope.store import results
from nucleoscope.store.local_tokenizers import find_tokenizer
from nucleoscope.store.run_names import describe_run
from nucleoscope.views import examples
from nucleoscope.views.strip import Background, compute_background, render_strip
from nucleoscope.views.token_text import Reader, escape_name
from nucleoscope.wording import join_names

UNREADABLE = "settings or records that cannot be read here"
NO_TOKENIZER = "a tokenizer that is not on this machine"
COLUMNS = {"model", "dataset", "prompt", "step", "k", "token", "text", "entropy", "cosine"}


class Sentence(NamedTuple):
    """A strip, and whether the measured text ends in its sentence, without a full stop or the like."""

    html: str
    cut: bool


def show_sentence(
    results_dir: str | os.PathLike, tables: Mapping[tuple[str, str], pd.DataFrame], listed: int = 6
) -> tuple[str, str]:
    """What the example is, in Markdown, and the example, in HTML.

    If there is none, the first says why and the second is "". Runs whose settings, records or tokenizer are not on this
    machine are left out. The card lists at most ``listed`` candidates.
    """
    chosen = results.select(tables, columns=COLUMNS)
    chosen = {key: chosen[key] for key in chosen}
    failed: dict[str, list[tuple[str, str]]] = {}
    for key, token in examples.list_typical(chosen):
        folder = results.locate_measured(results_dir, *key)
        shown = _render(folder, token, tables[key], listed)
        if not isinstance(shown, str):
            texts = examples.list_texts(chosen[key]).get(token["prompt"], [])
            whole = examples.has_whole_sentence(texts, token["step"])
            return _describe(key, token, results.read_mode(folder), whole, shown.cut), shown.html
        failed.setdefault(shown, []).append(key)
    return f"No text can be shown here: {_explain_failures(failed) or examples.explain_no_typical(chosen)}.", ""


def _explain_failures(failed: Mapping[str, list[tuple[str, str]]]) -> str:
    """Why runs with a typical token cannot be shown, and what to do; "" if there is none."""
    reasons = []
    for reason, keys in failed.items():
        names = join_names(escape_name(describe_run(*key)) for key in keys)
        reasons.append(f"{names} {'has' if len(keys) == 1 else 'have'} {reason}")
    advice = {
        NO_TOKENIZER: "load the model here once, or measure one whose tokenizer is on this machine",
        UNREADABLE: "move a damaged `run.json` out of the way, then repeat the run's command with `--overwrite`",
    }
    return "; ".join([*reasons, *(advice[reason] for reason in failed)])


def _render(folder: Path, token: pd.Series, table: pd.DataFrame, listed: int) -> Sentence | str:
    """The sentence; if the run's files or its tokenizer cannot be read here, which of them."""
    prompt, step = int(token["prompt"]), int(token["step"])
    try:
        mode = results.read_mode(folder)
        record = results.load_records(folder, [prompt])[prompt]
        similarities = results.load_similarities(folder, [prompt]).get(prompt)
        results.read_recorded(folder)  # raises without a run.json, of which find_tokenizer says only that none is found
        tokenizer = find_tokenizer(folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return UNREADABLE
    if tokenizer is None:
        return NO_TOKENIZER
    reader = Reader(tokenizer)
    texts = reader.split_text(record["tokens"].tolist())
    first, last = examples.find_sentence(texts, step)
    background = Background(compute_background(table).scales, [])
    html = render_strip(
        record, reader, table=background, mode=mode, first=first, last=last, shown=step, most=listed,
        similarities=similarities,
    )  # fmt: skip
    return Sentence(html, examples.has_no_end(texts, step))


def _describe(key: tuple[str, str], token: pd.Series, mode: str, whole: bool, is_last: bool) -> str:
    kind = "words" if examples.is_word(token.get("text")) else "tokens"
    low, high = examples.FEW
    among = (
        f"of all {kind} that had {low} to {high} candidates{' and were part of a complete sentence' if whole else ''}"
    )
    ends = " The measured text ends with this sentence." if is_last else ""
    source = "written" if mode == "generate" else "read"
    return (
        f"A sentence {source} by the model ({escape_name(describe_run(*key))}), tinted by entropy: "
        f"the stronger the tint, the less sure the model was.{ends} The card shows a typical choice: "
        f"{among}, the one closest to the median entropy and median cosine similarity of these {kind}. "
        "Point at any other token, or tap it, to see what the model was choosing between."
    )
