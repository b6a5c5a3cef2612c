"""A record in, its text out as a strip: tokens tinted by a quantity, and a card for each.

Contract: what `strip` returns is HTML that needs nothing else, no network, no kernel and no other
file, and works any number of times on a page, in JupyterLab and in the book, in both of their
themes. All text that comes from a model or a data set is escaped. ``static/strip.js`` does what
moves, ``static/strip.css`` says how it looks; both travel in every strip.

A strip tells the page what its reader looks at: its element sends the event ``nucleoscope-token``
with ``detail.step``, the token's number in the record, or null.
"""

import html
import json
from importlib import resources
from typing import Any

import numpy as np
import pandas as pd

from nucleoscope.bootstrap import Bins
from nucleoscope.results import COLUMNS, LABELS, choices
from nucleoscope.text import Reader

QUANTITIES = {**LABELS, "k": "candidates (k)"}
PAIRWISE = ("cosine", "weighted_cosine")  # what one candidate alone does not have
MOST = 10  # candidates that a card lists
FOLDED = 300  # characters of a prompt from which it is folded away
FOCUS = "Text, token by token. The arrow keys move, Escape closes the card."


def strip(
    record: dict,
    tokenizer: Any,
    quantity: str = "entropy",
    *,
    table: pd.DataFrame | None = None,
    first: int = 0,
    last: int | None = None,
    shown: int | None = None,
    most: int = MOST,
) -> str:
    """The text of one record as HTML, its tokens tinted by ``quantity``; readers may choose another.

    record: as `generation.measure` makes them. tokenizer: of its model, or a `text.Reader` of it.
    table: the tokens of the cell or cells that it comes from (see `results.load_cells`): the colour
    scales then reach over all of them, not over this text, and cards draw their median line.
    ``first`` and ``last`` cut out the tokens first <= step < last. ``shown`` is a token whose card
    stays open. Cards list the ``most`` likely candidates and the one that was drawn.

    Raises ValueError for an unknown quantity, for a token ``shown`` that is cut out, and for records
    that lack what a strip shows: the published study's files hold neither tokens nor probabilities.
    """
    lacking = [name for name in ("tokens", "top_p_probs") if name not in record]
    if lacking:
        raise ValueError(f"the record has no {' and no '.join(lacking)}: there is no text to show")
    columns = _columns(record)
    if quantity not in columns:
        raise ValueError(f"quantity is '{quantity}'; this record has {', '.join(columns)}")
    reader = tokenizer if isinstance(tokenizer, Reader) else Reader(tokenizer)
    tokens = [int(token) for token in record["tokens"]]
    units, first, last = _window(reader.units(tokens), first, len(tokens) if last is None else last)
    if shown is not None and not first <= shown < last:
        raise ValueError(f"token {shown} cannot be shown: the strip goes from {first} to {last}")
    data = {
        "quantity": quantity,
        "quantities": [_scale(name, values, table, first, last) for name, values in columns.items()],
        **_cards(record, reader, first, last, most),
        "line": _line(table),
        "first": first,
        "total": len(tokens),
        "shown": None if shown is None else shown - first,
    }
    before, after = "… " if first else "", " …" if last < len(tokens) else ""
    spans = before + "".join(map(_span, units)) + after if units else "(the model ended this text at once)"
    return _page(record["prompt"], spans, data)


def _columns(record: dict) -> dict[str, np.ndarray]:
    """The quantities that a record has, by the names of a table's columns: (n,) each; NaN for no pair."""
    k = np.array([len(ids) for ids in record["top_p_tokens"]], dtype=float)
    names = {column: name for name, column in COLUMNS.items() if column in LABELS and name in record}
    columns = {column: np.asarray(record[names[column]], dtype=float) for column in LABELS if column in names}
    return {name: np.where(k > 1, v, np.nan) if name in PAIRWISE else v for name, v in columns.items()} | {"k": k}


def _window(units: list, first: int, last: int) -> tuple[list, int, int]:
    """The units that hold the tokens first <= step < last, and the steps where those begin and end."""
    ends = np.cumsum([0, *(unit.tokens for unit in units)]).tolist()
    kept = [place for place in range(len(units)) if ends[place + 1] > first and ends[place] < last]
    if not kept:
        return [], 0, 0
    return units[kept[0] : kept[-1] + 1], ends[kept[0]], ends[kept[-1] + 1]


def _scale(name: str, values: np.ndarray, table: pd.DataFrame | None, first: int, last: int) -> dict:
    """A quantity as the script wants it: its label, the ends of its colour scale, and its values.

    The scale ends where all but one in a hundred tokens lie: one odd token must not make the rest
    pale. k has a logarithmic scale, from 1.
    """
    known = choices(table)[name].to_numpy(float) if table is not None and name in table else values
    known = known[np.isfinite(known)]
    low, high = (0.0, float(np.quantile(known, 0.99))) if len(known) else (0.0, 1.0)
    if name == "k":
        low, high = 1.0, max(high, 2.0)
    return {
        "name": name,
        "label": QUANTITIES[name],
        "low": low,
        "high": _short(high if high > low else low + 1),
        "over": bool(len(known) and known.max() > high),
        "values": [_short(value) for value in values[first:last]],
    }


def _cards(record: dict, reader: Reader, first: int, last: int, most: int) -> dict:
    """The candidates of the tokens from ``first`` to ``last``: ``words``, and by token what is in its card.

    A token is [its word, the words of its likeliest candidates, their probabilities, how many more
    there are, and their mass], and where the drawn one is not among them its rank and probability.
    """
    words: dict[str, int] = {}

    def word(token: Any) -> int:
        return words.setdefault(reader.visible(int(token)), len(words))

    cards = []
    for step in range(first, last):
        ids, probs = np.asarray(record["top_p_tokens"][step]), np.asarray(record["top_p_probs"][step], dtype=float)
        drawn = int(record["tokens"][step])
        place = int(np.flatnonzero(ids == drawn)[0]) if (ids == drawn).any() else -1
        top = [[word(token) for token in ids[:most]], [_short(p) for p in probs[:most]]]
        card = [word(drawn), *top, max(len(ids) - most, 0), _short(probs[most:].sum()), place]
        cards.append([*card, _short(probs[place])] if place >= most else card)
    return {"words": list(words), "tokens": cards}


def _line(table: pd.DataFrame | None) -> list:
    """The medians of cosine similarity in the bins of entropy: [[x, y], ...]."""
    if table is None:
        return []
    pairs = choices(table)
    pairs = pairs[np.isfinite(pairs[["entropy", "cosine"]]).all(axis=1)]
    if pairs.empty:
        return []
    bins = Bins(pairs["entropy"].to_numpy(), pairs["cosine"].to_numpy(), pd.factorize(pairs["prompt"])[0])
    return [[_short(x), _short(y)] for x, y in zip(bins.centers, bins.medians(), strict=True) if np.isfinite(y)]


def _short(value: float) -> float | int | None:
    """Three significant digits, None for what is no number: what a page carries for each."""
    if not np.isfinite(value):
        return None
    rounded = float(f"{value:.3g}")
    return int(rounded) if rounded.is_integer() else rounded


def _span(unit: Any) -> str:
    """A unit of text. Spans have no box of their own (no padding, no isolation): letters join across them."""
    text = html.escape(unit.text, quote=False).replace("\n", "<i></i>\n")  # the script's sign of a line break
    return f'<span data-n="{unit.tokens}">{text}</span>' if unit.tokens > 1 else f"<span>{text}</span>"


def _page(prompt: str, spans: str, data: dict) -> str:
    # "<" cannot stand in a script: "</script>" would end it and "<!--" hide what follows
    payload = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", r"\u003c")
    style, script = (
        resources.files("nucleoscope").joinpath(f"static/strip.{kind}").read_text() for kind in ("css", "js")
    )
    options = "".join(
        f'<option value="{place}"{" selected" if scale["name"] == data["quantity"] else ""}>{scale["label"]}</option>'
        for place, scale in enumerate(data["quantities"])
    )
    # JupyterLab takes arrow keys for its own where nothing says that they are ours.
    return (
        f'<div class="nucleoscope-strip" data-lm-suppress-shortcuts="true">\n<style>{style}</style>\n'
        f'<div class="ns-bar"><label>Tint by <select>{options}</select></label> <span class="ns-legend"></span></div>\n'
        f'<details class="ns-prompt"{" open" if len(prompt) < FOLDED else ""}><summary>prompt</summary>'
        f'<div dir="auto">{html.escape(prompt)}</div></details>\n'
        f'<div class="ns-both"><div class="ns-text" dir="auto" tabindex="0" role="group" aria-label="{FOCUS}">'
        f'{spans}</div>\n<div class="ns-card" role="status"></div></div>\n'
        f'<script type="application/json">{payload}</script>\n<script>{script}</script>\n</div>\n'
    )
