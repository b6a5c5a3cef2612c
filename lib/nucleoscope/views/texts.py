"""All texts of a run: a menu of its prompts, and the strip of the one that is picked.

Contract: drawn from the files of a run, with its tokenizer and without its model. `render_texts` returns HTML that
needs no network and no kernel. The texts are in it, or in scripts in a folder beside it (`write_texts`), each of which
assigns one text: a page that is opened from disk may run those, but may not read other files. All text that comes from
a model or a data set is inserted as text, never as HTML.
"""

import contextlib
import html
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nucleoscope import quantities
from nucleoscope.atomic import write_atomically
from nucleoscope.store import results
from nucleoscope.store.context import load_current
from nucleoscope.views import assets, cards, examples
from nucleoscope.views.assets import STATIC
from nucleoscope.views.strip import Background, build_content, render_strip
from nucleoscope.views.token_text import Reader, make_encodable

TEXTS = "texts"  # the folder of the scripts, in that of the run
SCRIPT = re.compile(r"\d+\.js")
MOST = 1000  # texts of one page
AT_ONCE = 100  # texts whose similarities are in memory
ZERO = 128  # what is added to hundredths, which are never below it: two digits of base 16 are then enough
SEARCHED = 600_000  # characters of all prompts and texts that can be searched on a page
COEFFICIENT = "Spearman's correlation between entropy and cosine"


def choose_texts(n_prompts: int, most: int = MOST) -> list[int]:
    """The prompts whose texts a page shows: all, or if there are more than ``most``, every n-th."""
    return list(range(0, n_prompts, max(1, -(-n_prompts // most))))


def describe_choice(n_prompts: int, chosen: Sequence[int]) -> str:
    """A sentence on how many of a run's prompts can be picked."""
    if len(chosen) == n_prompts:
        return {1: "The only prompt is", 2: "Both prompts are"}.get(n_prompts, f"All {n_prompts:,} prompts are") + (
            " in the menu."
        )
    few = f"{len(chosen):,} of the {n_prompts:,} prompts, evenly spaced, are in the menu"
    return f"{few}; the live notebook has all of them."


def build_menu(prompts: Mapping[int, str], table: pd.DataFrame, reader: Reader | None = None) -> dict[str, Any]:
    """The menu of some prompts of a run as JSON, for ``static/menu.js``: see there.

    ``prompts`` are their texts by number, ``table`` has the run's tokens. Texts can be searched if the table has the
    tokens' texts, or with a ``reader`` of the tokenizer. Besides the number of tokens and the mean of each quantity
    over the tokens that have it, there is the coefficient of entropy and cosine within the prompt.
    """
    room = max(40, SEARCHED // max(2 * len(prompts), 1))
    names = [name for name in quantities.list_tints() if name in table and table[name].notna().any()]
    grouped = table[table["prompt"].isin(prompts)].groupby("prompt", sort=False)
    means, counts = grouped[names].mean(), grouped.size()
    coefficients = examples.correlate_within_prompts(table)["r"]
    texts = {number: _read_text(group, reader) for number, group in grouped}
    means_of = [[f"mean {quantities.find_title(name)}", False] for name in names]
    rows = []
    for number, prompt in prompts.items():
        values = means.loc[number].tolist() if number in means.index else [np.nan] * len(names)
        own = [int(counts.get(number, 0)), *map(cards.round_value, values)]
        shown = (make_encodable(text)[:room] for text in (prompt, texts.get(number, "")))
        rows.append([number, *shown, [*own, cards.round_value(coefficients.get(number, np.nan))]])
    return {
        "columns": [["tokens", True], *means_of, [COEFFICIENT, False]],
        "prompts": rows,
        "cut": any(len(text) > room for text in (*prompts.values(), *texts.values())),
    }


def _read_text(tokens: pd.DataFrame, reader: Reader | None) -> str:
    if tokens["text"].notna().all():
        return "".join(tokens["text"])
    return "".join(reader.split_text(tokens["token"].tolist())) if reader else ""


def build_texts(
    folder: Path, tokenizer: Any, numbers: Iterable[int], background: Background, mode: str
) -> Iterator[tuple[int, dict]]:
    """The texts of some prompts of a run, one after the other: its number and its `strip.build_content`.

    The background's line is left out: it is the same for all.
    """
    reader = tokenizer if isinstance(tokenizer, Reader) else Reader(tokenizer)
    for number, record, compared in _read_texts(folder, numbers):
        content = build_content(record, reader, table=background, mode=mode, **compared)
        del content["data"]["line"]
        yield number, content


def render_strips(
    folder: Path, tokenizer: Any, numbers: Iterable[int], background: Background, mode: str
) -> Iterator[str]:
    """The `strip.render_strip` of some prompts of a run, one after the other, with all that its files say of them."""
    reader = tokenizer if isinstance(tokenizer, Reader) else Reader(tokenizer)
    for _, record, compared in _read_texts(folder, numbers):
        yield render_strip(record, reader, table=background, mode=mode, **compared)


def _read_texts(folder: Path, numbers: Iterable[int]) -> Iterator[tuple[int, dict, dict[str, Any]]]:
    """The number and the record of some prompts, and what else the files of the run say of their texts.

    Records are read one at a time, similarities for `AT_ONCE` prompts.
    """
    found, left, advice = load_current(folder), list(numbers), results.find_advice(folder)
    for place, (number, record) in enumerate(results.stream_records(folder, left)):
        if place % AT_ONCE == 0:
            similarities = results.load_similarities(folder, left[place : place + AT_ONCE])
        similar = similarities.get(number)
        if similar is not None and len(similar.taken) != len(record["tokens"]):
            similar = None
        ahead = cards.read_ahead(found.matrices, number, found.grouping.threshold) if found else None
        yield number, record, {"similarities": similar, "ahead": ahead, "advice": advice}


def write_texts(folder: Path, contents: Iterable[tuple[int, dict]]) -> Path:
    """Writes a script for each text of `build_texts` to the folder ``texts`` of a run, and removes those of others."""
    place, kept = folder / TEXTS, set()
    place.mkdir(exist_ok=True)
    for number, content in contents:
        kept.add(f"{number}.js")
        with write_atomically(place / f"{number}.js") as stream:
            stream.write(_format_script(name_run(folder), number, content).encode())
    for path in place.iterdir():
        if SCRIPT.fullmatch(path.name) and path.name not in kept:
            path.unlink()
    return place


def _format_script(run: str, number: int, content: dict) -> str:
    key = json.dumps(make_encodable(run), ensure_ascii=True)
    packed = content | {"data": _pack(content["data"])}
    return f"((window.nucleoscopeTexts??={{}})[{key}]??={{}})[{number}]={assets.format_json(packed)};\n"


def _pack(data: dict) -> dict:
    """The data of a text for its script, which is a seventh shorter: a book has hundreds of them.

    A list of similarities, in hundredths, is a string with two digits for each, which texts.js unpacks; what is false
    of a scale is left out, and so is what card.js knows of similarity in context without it.
    """
    packed = {
        name: ["".join(f"{ZERO + value:02x}" for value in values) for values in data[name]]
        for name in ("similar", "matrix")
        if name in data
    }
    scales = [{name: value for name, value in scale.items() if value is not False} for scale in data["quantities"]]
    if "context" in data:
        packed["context"] = [
            each and _shorten(each, [data["words"][word] for word in token[1]])
            for each, token in zip(data["context"], data["tokens"], strict=True)
        ]
    return data | packed | {"quantities": scales}


def _shorten(ahead: dict, listed: list[str]) -> dict:
    """A `cards.describe_ahead` without the names that the card lists anyway, and without what follows, if unknown."""
    known = {"names": ahead["names"] == listed[: len(ahead["names"])], "following": not ahead["following"]}
    return {name: value for name, value in ahead.items() if not known.get(name)}


def name_run(folder: Path) -> str:
    """The name of a run in its scripts: that of its data set and of its model."""
    return make_encodable(f"{folder.parent.name}/{folder.name}")


def render_texts(
    folder: Path,
    prompts: Mapping[int, str],
    table: pd.DataFrame,
    background: Background,
    texts: Mapping[int, dict] | None = None,
    reader: Reader | None = None,
) -> str:
    """The menu of some prompts of a run as HTML, which shows the text that is picked.

    ``texts`` are those of `build_texts`; without them, `write_texts` must have written the scripts. Where these are,
    the page learns from the attribute ``data-files``, a path below JupyterLab's root, or in the book from
    ``data-beside``, which has a folder beside the page.
    """
    content = build_menu(prompts, table, reader)
    content |= {"run": name_run(folder), "line": background.line, "texts": {} if texts is None else dict(texts)}
    style = assets.join_style(STATIC / "strip.css", STATIC / "menu.css")
    script = assets.wrap_script(STATIC / "strip.js", STATIC / "menu.js", STATIC / "texts.js", start="buildAllTexts();")
    return (
        f'<div class="nucleoscope nucleoscope-texts" data-files="{_locate_scripts(folder)}" '
        f'data-lm-suppress-shortcuts="true">\n<style>{style}</style>\n'
        '<div class="ns-choose"></div>\n<div class="ns-picked"></div>\n'
        f'<script type="application/json">{assets.format_json(content)}</script>\n<script>{script}</script>\n</div>\n'
    )


def show_texts(
    folder: Path, tokenizer: Any, table: pd.DataFrame, background: Background, mode: str, n_prompts: int
) -> str:
    """`render_texts` of a run for its page, with the scripts beside the page's notebook; `choose_texts` says which.

    In a folder that cannot be written to, the texts are in the page.
    """
    chosen, reader, prompts = choose_texts(n_prompts), Reader(tokenizer), dict[int, str]()

    def build() -> Iterator[tuple[int, dict]]:  # the prompts are noted on the way: measurements are read once
        for number, content in build_texts(folder, reader, chosen, background, mode):
            prompts[number] = content["prompt"]
            yield number, content

    try:
        write_texts(folder, build())
        texts = None
    except OSError:  # somebody else's results
        texts = dict(build())
    return render_texts(folder, prompts, table, background, texts, reader)


def _locate_scripts(folder: Path) -> str:
    """The folder of a run's scripts, from the current one, which is JupyterLab's root."""
    path = folder / TEXTS
    with contextlib.suppress(ValueError):  # on another drive
        path = Path(os.path.relpath(path))
    return html.escape(make_encodable(path.as_posix()) + "/")


def move_scripts(page: str, beside: str) -> str:
    """The HTML of `render_texts` for a page of the book, whose scripts are in the folder ``beside`` it.

    Other HTML stays as it is.
    """
    start = page.partition(">")[0]
    if 'class="nucleoscope nucleoscope-texts"' not in start:
        return page
    return re.sub(r'data-files="[^"]*"', lambda _: f'data-beside="{html.escape(beside)}"', page, count=1)
