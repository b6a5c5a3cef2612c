"""A data set's texts and the model's, loaded and measured for one page: tables of all pairs, and the texts to show.

Contract: pairs come from `store.text_pairs`, numbers from `stats.calibration`; a pair whose files or tokenizer
cannot be read is named on stderr and left out. Which texts are shown is decided by rule, from the numbers alone.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from nucleoscope.models.tokenizers import load_tokenizer
from nucleoscope.names import escape_line
from nucleoscope.stats import calibration
from nucleoscope.store import results, text_pairs
from nucleoscope.store.text_pairs import Pair, Run
from nucleoscope.views.examples import FEW_PROMPTS, apply_rules, begin_few
from nucleoscope.views.numbers import format_number
from nucleoscope.views.strip import Background, compute_background, render_strip
from nucleoscope.views.token_text import Reader, escape_name
from nucleoscope.wording import count

ENOUGH = 20  # tokens of a text that takes part in the choice of prompts, if any have as many
MOST = 3  # pairs of which texts are shown


class Measured(NamedTuple):
    """A pair with the tokens of both texts, as `text_pairs.load_pair` returns them."""

    pair: Pair
    existing: pd.DataFrame
    written: pd.DataFrame


class PickedTexts(NamedTuple):
    """A prompt to look at, and ``sentence``, by which rule it was picked."""

    prompt: int
    sentence: str


def load(pairs: Iterable[Pair]) -> dict[str, Measured]:
    """The pairs that can be read, each under its name, with their tokens."""
    pairs, found = list(pairs), {}
    for name, pair in zip(text_pairs.name_pairs(pairs), pairs, strict=True):
        try:
            found[name] = Measured(pair, *text_pairs.load_pair(pair))
        except (OSError, ValueError, KeyError) as error:
            print("left out:", escape_line(f"{name}: {error}"), file=sys.stderr)
    return found


def compare_pairs(measured: Mapping[str, Measured]) -> pd.DataFrame:
    """`calibration.compare_texts` of all pairs, with a column ``pair``."""
    parts = [
        calibration.compare_texts(each.existing, each.written).assign(pair=name) for name, each in measured.items()
    ]
    return _join(parts, ["pair", *calibration.list_comparison_columns()])


def calibrate_pairs(measured: Mapping[str, Measured]) -> pd.DataFrame:
    """`calibration.calibrate` of both texts of all pairs, with columns ``pair`` and ``text``."""
    parts = []
    for name, each in measured.items():
        for text, table in ((calibration.EXISTING, each.existing), (calibration.WRITTEN, each.written)):
            parts.append(calibration.calibrate(table, text).assign(pair=name, text=text))
    return _join(parts, ["pair", "text", *calibration.list_calibration_columns()])


def _join(parts: list[pd.DataFrame], columns: list[str]) -> pd.DataFrame:
    parts = [part for part in parts if len(part)]
    return pd.concat(parts, ignore_index=True)[columns] if parts else pd.DataFrame(columns=columns)


def choose_texts(existing: pd.DataFrame, written: pd.DataFrame) -> list[PickedTexts]:
    """Up to three prompts, by the difference of mean surprisal, existing minus written: median, highest, lowest.

    Prompts with at least 20 tokens in both texts take part, or if texts are short, with at least half as many as
    the prompt whose shorter text is longest. The median of an even number is the lower of the two in the middle; among
    ties the first prompt is picked, and none is picked twice. If only one or two take part, these are picked.
    """
    means, sizes = [], []
    for table in (existing, written):
        groups = table[np.isfinite(table["surprisal"])].groupby("prompt")["surprisal"]
        means.append(groups.mean())
        sizes.append(groups.size())
    both = pd.DataFrame({"existing": means[0], "written": means[1], "tokens": pd.concat(sizes, axis=1).min(axis=1)})
    both = both.dropna()
    bound = max(1, min(ENOUGH, int(both["tokens"].max()) // 2)) if len(both) else 1
    both = both[both["tokens"] >= bound]
    both["difference"] = both["existing"] - both["written"]
    order = both["difference"].sort_values(kind="stable").index.tolist()
    if len(both) < FEW_PROMPTS:
        starts = begin_few(order, f"at least {count(bound, 'token')} in both texts") if order else []
        return [
            PickedTexts(prompt, f"{said} The difference of mean surprisal is {_format_means(both.loc[prompt])}.")
            for prompt, said in zip(order, starts, strict=True)
        ]
    falling = both["difference"].sort_values(ascending=False, kind="stable").index.tolist()
    rules = {"median": order[(len(order) - 1) // 2 :][:1], "highest": falling, "lowest": order}
    return [
        PickedTexts(prompt, _format_pick(rule, again, prompt, both, bound))
        for rule, prompt, again in apply_rules(rules)
    ]


def _format_pick(rule: str, again: str, prompt: int, both: pd.DataFrame, bound: int) -> str:
    return (
        f"**The {rule} difference**, prompt {prompt}: of the {len(both)} prompts with at least "
        f"{count(bound, 'token')} in both texts, it has the {rule} difference of mean surprisal{again}, "
        f"{_format_means(both.loc[prompt])}."
    )


def _format_means(row: pd.Series) -> str:
    return (
        f"{format_number(row['difference'])} nats: {format_number(row['existing'])} in the data set's text, "
        f"{format_number(row['written'])} in the model's"
    )


def show_texts(measured: Mapping[str, Measured], most: int = MOST) -> Iterator[tuple[str, str]]:
    """What to show of the texts: pieces of Markdown, each followed by HTML, which may be empty.

    Both texts of up to three prompts of each pair, of at most ``most`` pairs; the colour scales cover both runs.
    """
    readers: dict[tuple, Reader] = {}
    for name, (pair, existing, written) in list(measured.items())[:most]:
        heading = f"#### {escape_name(name)}\n\n" if len(measured) > 1 else ""
        try:
            reader = _load_reader(pair.existing, readers)
            picks = choose_texts(existing, written)
            prompts = [pick.prompt for pick in picks]
            background = compute_background(pd.concat([existing, written], ignore_index=True))
            renderers = [_load_strips(run, prompts, reader, background) for run in pair]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            print("left out:", escape_line(f"the texts of {name}: {error}"), file=sys.stderr)
            yield f"{heading}The texts cannot be shown here: their records or the model's tokenizer cannot be read.", ""
            continue
        if not picks:
            yield f"{heading}No prompt has both texts.", ""
        for pick in picks:
            column = escape_name(pair.text_column)
            yield f"{heading}{pick.sentence}\n\n*The data set's text, column {column}:*", renderers[0](pick.prompt)
            yield "*The model's text for the same prompt:*", renderers[1](pick.prompt)
            heading = ""
    if rest := list(measured)[most:]:
        yield f"The texts of these pairs are on the pages of their runs: {'; '.join(map(escape_name, rest))}.", ""


def _load_reader(run: Run, readers: dict[tuple, Reader]) -> Reader:
    """The reader of a run's tokens, loaded once for each model."""
    key = run.settings["model_name"], (run.settings.get("model") or {}).get("revision")
    if key not in readers:
        readers[key] = Reader(load_tokenizer(key[0], revision=key[1]))
    return readers[key]


def _load_strips(run: Run, prompts: list[int], reader: Reader, background: Background) -> Callable[[int], str]:
    """A function that renders the strip of one of the prompts of a run, whose prompt is shown where a text existed."""
    records = results.load_records(run.folder, prompts)
    similarities = results.load_similarities(run.folder, records)
    mode = run.settings["mode"]
    options: dict[str, Any] = {"table": background, "mode": mode, "with_prompt": mode == "score"}

    def render(prompt: int) -> str:
        return render_strip(records[prompt], reader, "surprisal", similarities=similarities.get(prompt), **options)

    return render
