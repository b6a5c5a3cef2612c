"""The content of a token's card: its candidates, its quantities, and how similar the candidates are.

Contract: plain data in and out, no widgets; ``static/card.js`` draws a card. All text is as
`token_text.Reader` shows it, and not escaped.
"""

from collections.abc import Sequence

import numpy as np
import torch
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

from nucleoscope import quantities
from nucleoscope.measure.recording import Token
from nucleoscope.views.token_text import Reader

LARGEST = 30  # candidates in a matrix
LISTED = 10  # candidates on a card


def find_value(token: Token, name: str) -> float:
    """A quantity of one token by name; NaN if it needs a pair of candidates and there is only one."""
    if name == "k":
        return float(len(token.ids))
    return float("nan") if quantities.needs_pair(name) and len(token.ids) == 1 else token.values[name]


def compute_scale(tokens: Sequence[Token], name: str) -> tuple[list[float | None], dict]:
    """Each token's position on the colour scale, 0 to 1 (None if it has no value), and the scale's legend.

    The scale goes from 0 to the largest value; that of a count is logarithmic and starts at 1. Negative
    similarity, which is rare, has the colour of 0.
    """
    values = np.array([find_value(token, name) for token in tokens])
    known, count = values[np.isfinite(values)], quantities.is_count(name)
    low, high = (1.0 if count else 0.0), float(known.max(initial=0))
    high = max(high, 2.0) if count else high if high > 0 else 1.0
    shares = np.log(values) / np.log(high) if count else values / high
    places = [None if np.isnan(share) else round(float(np.clip(share, 0, 1)), 3) for share in shares]
    label = quantities.find_title(name) + (", logarithmic" if count else "")
    return places, {"label": label, "low": f"{low:g}", "high": f"{high:,.0f}" if count else f"{high:.3g}"}


def split_text(reader: Reader, tokens: Sequence[Token]) -> list[str]:
    """What each token adds to the running text: n strings. Text made by several tokens is added by the last one."""
    found: list[str] = []
    for unit in reader.split_units([token.id for token in tokens]):
        found += [""] * (unit.tokens - 1) + [unit.text]
    return found


def compute_directions(embedding: torch.Tensor, ids: torch.Tensor) -> np.ndarray:
    """Unit rows (k, d), float64, of the embedding (V, d); a row of zeros has no direction and stays zero."""
    rows = embedding.index_select(0, ids.to(embedding.device)).double().cpu()
    norms = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    return torch.where(norms > 0, rows / norms, 0).numpy()


def compute_matrix(embedding: torch.Tensor, ids: torch.Tensor, largest: int = LARGEST) -> tuple[np.ndarray, np.ndarray]:
    """Cosines (n, n) of the ``largest`` likeliest candidates, and their places in ``ids``, similar ones adjacent.

    The order is that of the leaves of an average-linkage tree over 1 - cosine, its branches turned
    so that neighbours are similar (Bar-Joseph, Gifford and Jaakkola, Bioinformatics 2001).
    """
    rows = compute_directions(embedding, ids[:largest])
    cosines = np.clip(rows @ rows.T, -1, 1)
    np.fill_diagonal(cosines, 1)
    order = np.arange(len(rows))
    if len(rows) > 2:
        order = leaves_list(linkage(squareform(1 - cosines, checks=False), "average", optimal_ordering=True))
    return cosines[np.ix_(order, order)], order


class Words:
    """Texts of tokens, each once: ``texts``, and the place of a token's text there."""

    def __init__(self, reader: Reader):
        self.reader, self.texts = reader, []
        self._places: dict[str, int] = {}

    def find_place(self, token: int) -> int:
        """The place of a token's text, which is added if it is new."""
        text = self.reader.show(token)
        if text not in self._places:
            self._places[text] = len(self.texts)
            self.texts.append(text)
        return self._places[text]


def build_card(
    words: Words, token: int, ids: np.ndarray, probs: np.ndarray, outside: float, listed: int = LISTED
) -> list:
    """The choice at one token in the form that ``static/card.js`` draws, in strips and in the live notebook.

    ``ids`` and ``probs`` (k,) are the candidates by falling probability; ``outside`` is the probability of
    the token if it is not among them. The form is compact, because a page contains one for each token:
    [its word, the words of the ``listed`` likeliest candidates, their probabilities, the number of further
    candidates, their mass, that of the nucleus, the token's place in it or -1], and, if the token is not
    among those listed, its probability.
    """
    place = int(np.flatnonzero(ids == token)[0]) if (ids == token).any() else -1
    top = [[words.find_place(int(id)) for id in ids[:listed]], [round_value(p) for p in probs[:listed]]]
    masses = [round_value(probs[listed:].sum()), round_value(probs.sum())]
    card = [words.find_place(token), *top, max(len(ids) - listed, 0), *masses, place]
    return card if 0 <= place < listed else [*card, round_value(outside if place < 0 else probs[place])]


def describe_token(
    tokens: Sequence[Token],
    step: int,
    reader: Reader,
    embedding: torch.Tensor,
    listed: int = LISTED,
    whose: str = "drawn",
) -> dict:
    """Everything that the live notebook's card of token ``step`` shows, as JSON.

    ``words`` and ``card`` as in `build_card`, ``facts`` (label, value or None, whether it is a count),
    ``cosines`` of the listed candidates with the token, and its ``place`` among the other tokens, in words.
    ``whose`` is what the token is called.
    """
    token, words = tokens[step], Words(reader)
    ids, probs = token.ids.cpu().numpy(), token.probs.double().cpu().numpy()
    card = build_card(words, token.id, ids, probs, float(np.exp(-token.values["surprisal"])), listed)
    unit = compute_directions(embedding, torch.tensor([*ids[:listed].tolist(), token.id]))
    values = [(name, label, find_value(token, name)) for name, label in quantities.list_titles().items()]
    return {
        "words": words.texts,
        "card": card,
        "cosines": [round(cosine, 4) for cosine in (unit[:-1] @ unit[-1]).tolist()],
        "facts": [
            [
                label,
                int(value) if quantities.is_count(name) and np.isfinite(value) else round_value(value),
                quantities.is_count(name),
            ]
            for name, label, value in values
        ],
        "whose": whose,
        "step": step,
        "total": len(tokens),
        "place": _describe_place(tokens, token),
    }


def round_value(value: float) -> float | int | None:
    """Three significant digits, None for what is not a number: the form of numbers in a page."""
    if not np.isfinite(value):
        return None
    rounded = float(f"{value:.3g}")
    return int(rounded) if rounded.is_integer() else rounded


def _describe_place(tokens: Sequence[Token], token: Token) -> str:
    """The position of a token in the scatter plot, in words."""
    if len(token.ids) == 1:
        return "A single candidate: there is nothing to compare, so this token is not in the scatter plot."
    others = [other for other in tokens if len(other.ids) > 1 and other is not token]
    if not others:
        return "The only point of the scatter plot."
    lower = {name: sum(other.values[name] < token.values[name] for other in others) for name in ("entropy", "cosine")}
    return (
        f"In the scatter plot: higher entropy than {lower['entropy']:,} and higher cosine than {lower['cosine']:,} "
        f"of the {len(others):,} other tokens with more than one candidate."
    )
