"""The page "Twelve tokens": tokens at the corners of the plane of entropy and cosine similarity, each with its card.

Contract: drawn from the files of the runs of one model, with its tokenizer and without its weights. `examples` decides
which tokens are shown.
"""

import os
import sys
from collections.abc import Collection, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from nucleoscope.models.tokenizers import load_tokenizer
from nucleoscope.names import escape_line
from nucleoscope.store import results, run_names
from nucleoscope.store.candidates import Similarities
from nucleoscope.views import examples
from nucleoscope.views.strip import Background, compute_background, render_strip
from nucleoscope.views.tables import NOTHING_YET
from nucleoscope.views.token_text import Reader, escape_name
from nucleoscope.wording import count, join_names

BEFORE = 40  # tokens of the text that are shown before a token
LISTED = 20  # candidates on a card, at most
CARDS = "The open card shows how similar the candidates are; for the tokens before it, the page of the run does."


class OpenRun(NamedTuple):
    """What the cards of a run need: its settings, the reader of its tokens, and, of some prompts, the records and the
    similarities of candidates."""

    settings: dict[str, Any]
    reader: Reader
    records: dict[int, dict]
    similarities: dict[int, Similarities]


class Corners(NamedTuple):
    """The runs of one ``model``, by data set, and their tokens at the corners (`examples.find_corners`).

    ``empty`` are the corners near which no token can be shown (`examples.list_empty_corners`), ``left_out`` the
    data sets whose runs cannot be read here, ``others`` the names of all measured models.
    """

    model: str
    others: set[str]
    runs: dict[str, OpenRun]
    left_out: list[str]
    tables: dict[tuple[str, str], pd.DataFrame]
    tokens: pd.DataFrame
    empty: list[str]
    background: Background


def load(results_dir: str | os.PathLike, model_name: str) -> Corners:
    """The tokens to show of ``model_name``, or of the first model if it was not measured.

    A run that cannot be read, or whose tokenizer is not on this machine, is named on stderr and left out. ValueError if
    nothing was measured with its tokens.
    """
    readable = results.load_readable(results_dir)
    # Files of the published study contain no tokens.
    measured = [names for names, table in readable.select(columns=["token"]).items() if (table["token"] >= 0).any()]
    if not measured:
        raise ValueError(f"'{results_dir}' contains no measurements that include tokens: measure a model first")
    others = {name for name, _ in measured}
    model = run_names.choose_model(model_name, others)
    folders = {data: results.locate_measured(results_dir, name, data) for name, data in measured if name == model}
    opened = {data: _open_run(folder) for data, folder in sorted(folders.items())}
    tables = {(model, data): readable[model, data] for data in opened if opened[data]}
    tokens = examples.find_corners(tables)
    runs = {}
    for _, data in tables:
        prompts = tokens.loc[tokens["dataset"] == data, "prompt"]
        records = results.load_records(folders[data], prompts)
        similarities = results.load_similarities(folders[data], prompts)
        runs[data] = OpenRun(*opened[data], records, similarities)
    left_out = [data for data in opened if not opened[data]]
    empty, background = examples.list_empty_corners(tables), compute_background(examples.pool(tables))
    return Corners(model, others, runs, left_out, tables, tokens, empty, background)


@cache
def _load_reader(name: str, revision: str | None) -> Reader:
    """The reader of a model's tokens, loaded once for all its runs."""
    return Reader(load_tokenizer(name, revision=revision))


def _open_run(folder: Path) -> tuple[dict, Reader] | None:
    """The settings of a run and the reader of its tokens; None if they are unavailable, with the reason on stderr."""
    try:
        settings = results.read_recorded(folder)
        results.load_records(folder, [])  # whether they can be read at all
        return settings, _load_reader(settings["model_name"], settings.get("model", {}).get("revision"))
    except (OSError, ValueError) as error:
        print("left out:", escape_line(f"{folder}: {error}"), file=sys.stderr)
        return None


def describe(found: Corners) -> str:
    """Sentences, in Markdown, on the runs that the tokens are from, and on what is not shown of them."""
    if found.runs:
        names = _list_names({str(run.settings["model_name"]) for run in found.runs.values()})
        which = ", ".join(filter(None, (names, escape_name(run_names.divide_model(found.model)[1]))))
        total, long, highest = examples.compute_reach(found.tables)
        lines = [
            f"The model is {which}, on {_list_names(found.runs)}: {count(total, 'token')} with more than one candidate."
        ]
        lines += [escape_name(run_names.describe_others(found.model, found.others))]
        shown, wanted = len(found.tokens), examples.EACH * len(examples.CORNERS)
        if long > 0 and shown:
            lines += [
                f"The {100 * long:.1f}% of them with more than {examples.READABLE} candidates are ranked but not "
                f"shown: none of the tokens below is above percentile {100 * highest:.1f} of entropy."
            ]
        if not shown:
            lines += [
                f"None of them can be shown: a token must have at least {examples.BEFORE} tokens before it, at most "
                f"{examples.READABLE} candidates, and both percentiles in the outer third."
            ]
        elif shown < wanted:
            lines += [
                f"Only {shown} of {wanted} tokens are shown, because too few are suitable: both percentiles must be in "
                "the outer third, and each prompt contributes at most one token."
            ]
        if shown and all(found.runs[row.dataset].similarities.get(row.prompt) for row in found.tokens.itertuples()):
            lines += [CARDS]
    else:
        lines = [f"The tokenizer of {escape_name(found.model)} is not available here, so its tokens cannot be shown."]
    if read := [data for data, run in found.runs.items() if run.settings.get("mode") == "score"]:
        lines += [f"The model read the texts of {_list_names(read)}; it did not write them."]
    if found.left_out:
        names = _list_names(found.left_out)
        lines += [f"Left out because their settings, records or tokenizer cannot be read here: {names}."]
    return " ".join(filter(None, lines))


def _list_names(names: Collection[str]) -> str:
    return join_names(map(escape_name, sorted(names)))


def show_corner(found: Corners, corner: str) -> Iterator[tuple[str, str]]:
    """The tokens of one of `examples.CORNERS`: numbers in Markdown, and in HTML the text before it with its card.

    `NOTHING_YET` if no corner has a token.
    """
    tokens = found.tokens[found.tokens["corner"] == corner]
    for token in tokens.itertuples():
        run = found.runs[token.dataset]
        options = {"first": max(token.step - BEFORE, 0), "last": token.step + 1, "shown": token.step, "most": LISTED}
        if known := run.similarities.get(token.prompt):
            options["similarities"] = known.keep(token.step)  # only those of the card: a page of forty would be heavy
        mode = run.settings.get("mode", "generate")
        html = render_strip(run.records[token.prompt], run.reader, table=found.background, mode=mode, **options)
        yield examples.format_numbers(token), html
    if found.tokens.empty:
        yield NOTHING_YET, ""
    elif tokens.empty:
        yield (
            "No token can be shown here: both of its percentiles must be in the outer third, with at most "
            f"{examples.READABLE} candidates and at least {examples.BEFORE} tokens before it."
            if corner in found.empty
            else "No token is left for this corner: each prompt contributes at most one, and those with a token near "
            "this corner contribute one to another.",
            "",
        )
