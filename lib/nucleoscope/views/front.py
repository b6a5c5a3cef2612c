"""The front page's example: one sentence of a measured text, tinted, with the card of one token open.

Contract: drawn from the files of a run, with its tokenizer and without its model. The token is chosen by a rule
(`examples.list_typical`), which sees no more of the text than which tokens are words.
"""

import os
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from nucleoscope.store import results
from nucleoscope.store.local_tokenizers import find_tokenizer
from nucleoscope.store.run_names import describe_run
from nucleoscope.views import examples
from nucleoscope.views.strip import Background, compute_background, render_strip
from nucleoscope.views.token_text import Reader, escape_name

NONE = "no run has both a choice of few candidates and a tokenizer that is on this machine"
COLUMNS = {"model", "dataset", "prompt", "step", "k", "token", "text", "entropy", "cosine"}


def show_sentence(
    results_dir: str | os.PathLike, tables: Mapping[tuple[str, str], pd.DataFrame], listed: int = 6
) -> tuple[str, str]:
    """What the example is, in Markdown, and the example, in HTML: "" if there is none to show.

    Runs whose settings, records or tokenizer are not on this machine are left out. The card lists at most ``listed``
    candidates.
    """
    chosen = results.select(tables, columns=COLUMNS)
    for key, token in examples.list_typical({key: chosen[key] for key in chosen}):
        folder = results.locate_measured(results_dir, *key)
        if html := _render(folder, token, tables[key], listed):
            texts = examples.list_texts(chosen[key]).get(token["prompt"], [])
            whole = examples.has_whole_sentence(texts, token["step"])
            return _describe(key, token, results.read_mode(folder), whole), html
    return f"No text can be shown here: {NONE}.", ""


def _render(folder: Path, token: pd.Series, table: pd.DataFrame, listed: int) -> str:
    """The strip; "" if the run's files or its tokenizer cannot be read here."""
    prompt, step = int(token["prompt"]), int(token["step"])
    try:
        tokenizer, mode = find_tokenizer(folder), results.read_mode(folder)
        record = results.load_records(folder, [prompt])[prompt]
        similarities = results.load_similarities(folder, [prompt]).get(prompt)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return ""
    if tokenizer is None:
        return ""
    reader = Reader(tokenizer)
    first, last = examples.find_sentence(reader.split_text(record["tokens"].tolist()), step)
    background = Background(compute_background(table).scales, [])
    return render_strip(
        record, reader, table=background, mode=mode, first=first, last=last, shown=step, most=listed,
        similarities=similarities,
    )  # fmt: skip


def _describe(key: tuple[str, str], token: pd.Series, mode: str, whole: bool) -> str:
    low, high = examples.FEW
    kind = "words" if examples.is_word(token.get("text")) else "tokens"
    where = " in whole sentences" if whole else ""
    source = "written" if mode == "generate" else "read"
    return (
        f"A sentence {source} by the model ({escape_name(describe_run(*key))}), tinted by entropy: "
        "the stronger the tint, the less sure the model was. The card shows a typical choice: "
        f"of the {kind} with {low} to {high} candidates{where}, the one nearest to the medians of entropy and cosine "
        "similarity. "
        "Point at any other token, or tap it, to see what the model was choosing between."
    )
