"""The text of a record as a strip of tokens tinted by a quantity, with a card for each token.

Contract: `render_strip` returns HTML that is complete: it needs no network, no kernel and no other
file, and works any number of times on a page, in JupyterLab and in the book, in the light and the dark
theme. All text that comes from a model or a data set is escaped. Every strip contains
``static/strip.js`` (behaviour) and ``static/strip.css`` (appearance).

A strip reports to the page which token its reader looks at: its element sends the event ``nucleoscope-token``
with ``detail.step``, the token's number in the record counted from 0, or null.
"""

import html
import unicodedata
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from nucleoscope import quantities
from nucleoscope.names import advise
from nucleoscope.settings import validate
from nucleoscope.stats.bootstrap import Bins
from nucleoscope.store.candidates import Similarities
from nucleoscope.store.results import select_choices
from nucleoscope.views import assets, cards
from nucleoscope.views.assets import STATIC
from nucleoscope.views.token_text import Reader, Unit, make_encodable

NEEDED = ("tokens", "top_p_probs", "entropies", "cosines")
FOLDED = 300  # characters of a prompt from which it is collapsed
FOCUS = "Text. The arrow keys move from token to token; Escape closes the card."


class Background(NamedTuple):
    """What a strip needs to know about the other tokens: see `compute_background`."""

    scales: dict[str, tuple[float, float, float]]  # quantity -> least value, end of the colour scale, greatest value
    line: list[list[float]]  # the medians of cosine similarity in the bins of entropy: [[x, y], ...]


def render_strip(
    record: dict,
    tokenizer: Any,
    quantity: str = "entropy",
    *,
    table: pd.DataFrame | Background | None = None,
    mode: str = "generate",
    first: int = 0,
    last: int | None = None,
    shown: int | None = None,
    most: int = cards.LISTED,
    similarities: Similarities | None = None,
    ahead: Mapping[int, cards.Ahead] | None = None,
    with_prompt: bool = True,
    advice: str = "",
) -> str:
    """The text of one record as HTML, its tokens tinted by ``quantity``; readers may choose another.

    record: as `generation.measure` returns it. tokenizer: of its model, or a `token_text.Reader` of it.
    table: the tokens of the run or runs that it comes from (see `results.load_runs`): the colour
    scales then cover all of them, not only this text, and cards draw their median line. For
    many strips of one table pass its `compute_background` instead, so that it is computed once. ``mode``: the
    run's, "generate" if the model wrote the text, "score" if the text existed before.
    Only the tokens ``first`` <= step < ``last`` are shown. ``shown`` is a token whose card
    stays open. Cards list the ``most`` likely candidates and the token itself; with ``similarities``, those of the
    prompt by `results.load_similarities`, also how similar they are to it and to each other; with ``ahead``, the
    prompt's `cards.read_ahead`, how similar what follows them is, by which they are grouped; two more tints then show
    both parts of the entropy. ``with_prompt``: whether the prompt is shown above the text.
    ``advice``: what to try if the model wrote nothing (`results.find_advice`).

    Raises ValueError for an unknown quantity or ``mode``, for a token ``shown`` outside first and last, and
    for records that lack what a strip shows: the published study's files contain no tokens.
    """
    content = build_content(
        record, tokenizer, quantity, table=table, mode=mode, first=first, last=last, shown=shown, most=most,
        similarities=similarities, ahead=ahead, advice=advice,
    )  # fmt: skip
    data = content["data"]
    before, after = "… " if data["first"] else "", " …" if data["first"] + len(data["tokens"]) < data["total"] else ""
    units = [Unit(*unit) for unit in content["units"]]
    spans = before + "".join(map(_render_span, units)) + after if units else content["empty"]
    return _render_page(content["prompt"] if with_prompt else None, spans, data)


def build_content(
    record: dict,
    tokenizer: Any,
    quantity: str = "entropy",
    *,
    table: pd.DataFrame | Background | None = None,
    mode: str = "generate",
    first: int = 0,
    last: int | None = None,
    shown: int | None = None,
    most: int = cards.LISTED,
    similarities: Similarities | None = None,
    ahead: Mapping[int, cards.Ahead] | None = None,
    advice: str = "",
) -> dict[str, Any]:
    """What a strip shows, as JSON: its prompt, its text in units, and the ``data`` of its tints and cards.

    The arguments are those of `render_strip`, and so are the errors. ``units`` are [text, number of tokens] each;
    ``empty`` is what to say if there are none.
    """
    lacking = [name for name in NEEDED if name not in record]
    if lacking:
        raise ValueError(f"the record has no {' and no '.join(lacking)}: a strip needs them")
    validate("mode", mode)
    columns = _read_columns(record)
    if ahead is not None:
        columns |= cards.list_split(ahead, len(record["tokens"]))
    if quantity not in columns:
        rule = f": this record has {', '.join(columns)}"
        raise ValueError(f"quantity is '{quantity}'{advise(quantity, columns, rule)}")
    reader = tokenizer if isinstance(tokenizer, Reader) else Reader(tokenizer)
    tokens = [int(token) for token in record["tokens"]]
    units = reader.split_units(tokens)
    kept, first, last = _find_window(units, first, len(tokens) if last is None else last)
    if shown is not None and not first <= shown < last:
        raise ValueError(f"shown is {shown}: it must be a token of the strip, {first} to {last - 1}")
    background = compute_background(table) if isinstance(table, pd.DataFrame) else table or Background({}, [])
    choices = _list_choices(record, first, last, similarities, ahead or {})
    window = {"mode": mode, "first": first, "last": last}
    data = {
        "quantity": quantity,
        **cards.build_cards(reader, choices, columns, units, **window, ends=background.scales, listed=most),
        "line": background.line,
        "shown": None if shown is None else shown - first,
    }
    ended = f"(the model ended this text immediately{advice and '; '}{advice})"
    return {
        "prompt": make_encodable(record["prompt"]),
        "units": [list(unit) for unit in kept],
        "empty": ended if mode == "generate" and not tokens else "(no token was measured)",
        "data": data,
    }


def compute_background(table: pd.DataFrame) -> Background:
    """What the strips of a table's texts share: the ends of the colour scales and the median line.

    With the columns of `store.context.join_split`, also the ends of these scales.
    """
    pairs = select_choices(table)
    columns = {
        name: pairs if quantities.needs_pair(name) else table for name in quantities.list_tints() if name in table
    }
    scales = {name: cards.find_ends(part[name].to_numpy(float)) for name, part in columns.items()}
    return Background({name: ends for name, ends in scales.items() if ends}, _build_line(pairs))


def _read_columns(record: dict) -> dict[str, np.ndarray]:
    """The quantities that a record has, by the names of a table's columns: (n,) each; NaN if undefined or missing."""
    k = np.array([len(ids) for ids in record["top_p_tokens"]], dtype=float)
    columns = {
        name: np.asarray(record[plural], dtype=float)
        for plural, name in quantities.find_columns(record).items()
        if plural in record
    }
    paired = {name: np.where(k > 1, v, np.nan) if quantities.needs_pair(name) else v for name, v in columns.items()}
    return paired | {"k": k}


def _find_window(units: list, first: int, last: int) -> tuple[list, int, int]:
    """The units that contain the tokens first <= step < last, and the steps at which they begin and end."""
    ends = np.cumsum([0, *(unit.tokens for unit in units)]).tolist()
    kept = [place for place in range(len(units)) if ends[place + 1] > first and ends[place] < last]
    if not kept:
        return [], 0, 0
    return units[kept[0] : kept[-1] + 1], ends[kept[0]], ends[kept[-1] + 1]


def _list_choices(
    record: dict, first: int, last: int, similarities: Similarities | None, ahead: Mapping[int, cards.Ahead]
) -> Iterator[cards.Choice]:
    """The choices at the tokens first <= step < last."""
    outside = np.exp(-np.asarray(record.get("surprisals", [np.nan] * len(record["tokens"])), dtype=float))
    for step in range(first, last):
        ids, probs = np.asarray(record["top_p_tokens"][step]), np.asarray(record["top_p_probs"][step], dtype=float)
        compared = (similarities.taken[step], similarities.pairs[step]) if similarities else (None, None)
        yield cards.Choice(int(record["tokens"][step]), ids, probs, float(outside[step]), *compared, ahead.get(step))


def _build_line(pairs: pd.DataFrame) -> list:
    """The medians of cosine similarity in the bins of entropy: [[x, y], ...]."""
    pairs = pairs[np.isfinite(pairs[["entropy", "cosine"]]).all(axis=1)]
    if pairs.empty:
        return []
    columns = (pairs["entropy"].to_numpy(), pairs["cosine"].to_numpy(), pd.factorize(pairs["prompt"])[0])
    bins = Bins(*columns)
    return [
        [cards.round_value(x), cards.round_value(y)]
        for x, y in zip(bins.centers, bins.compute_medians(), strict=True)
        if np.isfinite(y)
    ]


def _render_span(unit: Any) -> str:
    """A unit of text. Spans have no padding and no isolation, so that letters join across them."""
    text = html.escape(unit.text, quote=False).replace("\n", "<i></i>\n")  # marks a line break for the script
    size = f' data-n="{unit.tokens}"' if unit.tokens > 1 else ""
    unseen = "" if any(unicodedata.category(letter) != "Cf" for letter in unit.text) else ' class="ns-unseen"'
    return f"<span{size}{unseen}>{text}</span>"


def _render_page(prompt: str | None, spans: str, data: dict) -> str:
    payload = assets.format_json(data)
    style = assets.join_style(STATIC / "strip.css")
    script = assets.wrap_script(STATIC / "strip.js", start="buildStrips();")
    options = "".join(
        f'<option value="{place}"{" selected" if scale["name"] == data["quantity"] else ""}>{scale["label"]}</option>'
        for place, scale in enumerate(data["quantities"])
    )
    bar = (
        f'<div class="ns-bar"><label>Tint by <select>{options}</select></label> <span class="ns-legend"></span></div>\n'
    )
    details = ""
    if prompt is not None:
        details = (
            f'<details class="ns-prompt"{" open" if len(prompt) < FOLDED else ""}><summary>Prompt</summary>'
            f'<div dir="auto">{html.escape(prompt)}</div></details>\n'
        )
    # Without this attribute JupyterLab handles the arrow keys itself.
    return (
        f'<div class="nucleoscope nucleoscope-strip" data-lm-suppress-shortcuts="true">\n<style>{style}</style>\n'
        f"{bar if data['tokens'] else ''}{details}"
        f'<div class="ns-both"><div class="ns-text" dir="auto" tabindex="0" role="application" '
        f'aria-roledescription="text with measured tokens" aria-label="{FOCUS}">'
        f'{spans}</div>\n<div class="ns-card" role="status"></div></div>\n'
        f'<script type="application/json">{payload}</script>\n<script>{script}</script>\n</div>\n'
    )
