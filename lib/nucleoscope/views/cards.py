"""The content of a token's card: its candidates, its quantities, and how similar the candidates are.

Contract: plain data in and out, no widgets. All text is as `token_text.Reader` shows it, and not escaped.
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
    alike = np.clip(rows @ rows.T, -1, 1)
    np.fill_diagonal(alike, 1)
    order = np.arange(len(rows))
    if len(rows) > 2:
        order = leaves_list(linkage(squareform(1 - alike, checks=False), "average", optimal_ordering=True))
    return alike[np.ix_(order, order)], order


def build_card(
    tokens: Sequence[Token],
    step: int,
    reader: Reader,
    embedding: torch.Tensor,
    listed: int = LISTED,
    whose: str = "drawn",
) -> dict:
    """The content of the card of token ``step``, as JSON: candidates, quantities, its place among the other tokens.

    ``candidates``: text, probability, rank, whether it is the token itself, and its cosine with the
    token; the ``listed`` likeliest ones, and the token itself if it is not among them, with rank None
    if it is outside the nucleus. ``more``: the others. ``whose`` is what the token is called.
    """
    token = tokens[step]
    rows = [(int(id), p, place + 1) for place, (id, p) in enumerate(zip(token.ids, token.probs.tolist(), strict=True))]
    own = next((row for row in rows if row[0] == token.id), (token.id, float(np.exp(-token.values["surprisal"])), None))
    shown = rows[:listed] if own in rows[:listed] else [*rows[:listed], own]
    unit = compute_directions(embedding, torch.tensor([id for id, _, _ in [*shown, own]]))
    hidden = [p for id, p, _ in rows[listed:] if id != token.id]
    return {
        "step": step,
        "whose": whose,
        "text": reader.show(token.id),
        "candidates": [
            {"text": reader.show(id), "p": p, "rank": rank, "drawn": id == token.id}
            | {"alike": 1.0 if id == token.id else round(cosine, 4)}
            for (id, p, rank), cosine in zip(shown, (unit[:-1] @ unit[-1]).tolist(), strict=True)
        ],
        "more": f"and {len(hidden):,} more with a total of {sum(hidden):.3f}" if hidden else "",
        "facts": [
            [label, _format_number(find_value(token, name), name)] for name, label in quantities.list_titles().items()
        ],
        "note": "Probabilities refer to the full distribution. Entropy and cosine use only the nucleus, "
        f"which has {float(token.probs.sum()):.1%} of it.",
        "place": _describe_place(tokens, token),
    }


def _format_number(number: float, name: str) -> str:
    if np.isnan(number):
        return "no pair"
    return f"{number:,.0f}" if quantities.is_count(name) else f"{number:.3f}"


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
