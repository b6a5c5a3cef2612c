"""A token's candidates, made ready to be looked at: what a card says, and how alike they are.

Contract: plain data in and out, no widgets. All text is as `text.Reader` shows it, and not escaped.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

from nucleoscope.results import LABELS
from nucleoscope.text import Reader

QUANTITIES = {**LABELS, "k": "candidates (k)"}
PAIRWISE = ("cosine", "weighted_cosine")  # what one candidate alone does not have
LISTED = 10  # candidates on a card
LARGEST = 30  # candidates in a matrix


class Token(NamedTuple):
    """One written token: its id, its nucleus by falling probability (k,) each, and its quantities by column."""

    id: int
    ids: torch.Tensor
    probs: torch.Tensor
    values: dict[str, float]


def value(token: Token, name: str) -> float:
    """A quantity of `QUANTITIES` of one token; NaN for the likeness of one candidate alone."""
    if name == "k":
        return float(len(token.ids))
    return float("nan") if name in PAIRWISE and len(token.ids) == 1 else token.values[name]


def scale(tokens: Sequence[Token], name: str) -> tuple[list[float | None], dict]:
    """Each token's place on the colour scale, 0 to 1 (None where it has no value), and the scale's legend.

    The scale goes from 0 to the largest value; that of k is logarithmic and starts at 1. Negative
    likeness, which is rare, has the colour of 0.
    """
    values = np.array([value(token, name) for token in tokens])
    known = values[np.isfinite(values)]
    low, high = (1.0 if name == "k" else 0.0), float(known.max(initial=0))
    high = max(high, 2.0) if name == "k" else high if high > 0 else 1.0
    shares = np.log(values) / np.log(high) if name == "k" else values / high
    places = [None if np.isnan(share) else round(float(np.clip(share, 0, 1)), 3) for share in shares]
    label = QUANTITIES[name] + (", logarithmic" if name == "k" else "")
    return places, {"label": label, "low": f"{low:g}", "high": f"{high:,.0f}" if name == "k" else f"{high:.3g}"}


def pieces(reader: Reader, tokens: Sequence[Token]) -> list[str]:
    """What each token adds to the running text: n strings. What several tokens make, the last of them brings."""
    found: list[str] = []
    for unit in reader.units([token.id for token in tokens]):
        found += [""] * (unit.tokens - 1) + [unit.text]
    return found


def directions(embedding: torch.Tensor, ids: torch.Tensor) -> np.ndarray:
    """Unit rows (k, d), float64, of the embedding (V, d); a row of zeros has no direction and stays zero."""
    rows = embedding.index_select(0, ids.to(embedding.device)).double().cpu()
    norms = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    return torch.where(norms > 0, rows / norms, 0).numpy()


def matrix(embedding: torch.Tensor, ids: torch.Tensor, largest: int = LARGEST) -> tuple[np.ndarray, np.ndarray]:
    """Cosines (n, n) of the ``largest`` likeliest candidates, and their places in ``ids``, like beside like.

    The order is that of the leaves of an average-linkage tree over 1 - cosine, its branches turned
    so that neighbours are alike (Bar-Joseph, Gifford and Jaakkola, Bioinformatics 2001).
    """
    rows = directions(embedding, ids[:largest])
    alike = np.clip(rows @ rows.T, -1, 1)
    np.fill_diagonal(alike, 1)
    order = np.arange(len(rows))
    if len(rows) > 2:
        order = leaves_list(linkage(squareform(1 - alike, checks=False), "average", optimal_ordering=True))
    return alike[np.ix_(order, order)], order


def card(tokens: Sequence[Token], step: int, reader: Reader, embedding: torch.Tensor, listed: int = LISTED) -> dict:
    """What the card of token ``step`` says, as JSON: its candidates, its quantities, its place among the others.

    ``candidates``: text, probability, rank, whether it was drawn, and the cosine to the drawn one;
    the ``listed`` likeliest, and the drawn one where it is not among them. ``more``: the others.
    """
    token = tokens[step]
    drawn = int((token.ids == token.id).nonzero()[0])
    places = [*range(min(listed, len(token.ids)))]
    places += [] if drawn in places else [drawn]
    rows = directions(embedding, token.ids[[*places, drawn]])
    alike = (rows @ rows[-1]).tolist()
    probs = token.probs.tolist()
    others = len(token.ids) - len(places)
    return {
        "step": step,
        "text": reader.visible(token.id),
        "candidates": [
            {"text": reader.visible(int(token.ids[place])), "p": probs[place], "rank": place + 1}
            | {"drawn": place == drawn, "alike": 1.0 if place == drawn else round(cosine, 4)}
            for place, cosine in zip(places, alike, strict=False)
        ],
        "more": f"and {others:,} more, together {sum(probs) - sum(probs[p] for p in places):.3f}" if others else "",
        "facts": [[label, _number(value(token, name), name)] for name, label in QUANTITIES.items()],
        "place": _place(tokens, token),
    }


def _number(number: float, name: str) -> str:
    if np.isnan(number):
        return "no pair"
    return f"{number:,.0f}" if name == "k" else f"{number:.3f}"


def _place(tokens: Sequence[Token], token: Token) -> str:
    """Where a token lies in the scatter, in words."""
    if len(token.ids) == 1:
        return "One candidate alone: there is nothing to compare, so this token is not in the scatter."
    points: list[Any] = [other for other in tokens if len(other.ids) > 1]
    shares = {
        name: sum(other.values[name] < token.values[name] for other in points) / len(points)
        for name in ("entropy", "cosine")
    }
    return (
        f"In the scatter: entropy above {shares['entropy']:.0%} and cosine above {shares['cosine']:.0%} "
        f"of the {len(points):,} tokens with a choice."
    )
