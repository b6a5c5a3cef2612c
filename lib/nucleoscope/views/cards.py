"""The content of tokens' cards and tints, for strips and for the live notebook.

Contract: plain data in and out, no widgets. `build_cards` makes what ``static/card.js`` draws; nothing else
does. All text is as `token_text.Reader` shows it, and not escaped.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from nucleoscope import quantities
from nucleoscope.measure.recording import Token
from nucleoscope.settings import Settings
from nucleoscope.store.context import find_matrices
from nucleoscope.views.token_text import Reader, Unit

if TYPE_CHECKING:
    from nucleoscope.stats import what_or_how

LARGEST = 30  # candidates in a matrix
LISTED = 10  # candidates on a card
PAIRED = 10  # candidates whose pairs are on a card


def find_value(token: Token, name: str) -> float:
    """A quantity of one token by name; NaN if it is missing, or needs a pair of candidates and there is only one."""
    if name == "k":
        return float(len(token.ids))
    undefined = quantities.needs_pair(name) and len(token.ids) == 1
    return float("nan") if undefined else token.values.get(name, float("nan"))


def list_tokens(record: dict) -> list[Token]:
    """The tokens of a record of measurements, as `streaming.stream` gives them for a text that is being written."""
    columns = {name: record[plural] for plural, name in quantities.find_columns(record).items() if plural in record}
    rows = zip(record["tokens"], record["top_p_tokens"], record["top_p_probs"], strict=True)
    return [
        Token(int(token), ids, probs, {name: float(values[step]) for name, values in columns.items()})
        for step, (token, ids, probs) in enumerate(rows)
    ]


def list_columns(tokens: Sequence[Token]) -> dict[str, np.ndarray]:
    """The quantities of a text, (n,) each, by name; NaN for a value that is undefined or missing."""
    names = [name for name in quantities.list_tints() if name == "k" or all(name in token.values for token in tokens)]
    return {name: np.array([find_value(token, name) for token in tokens], dtype=float) for name in names}


def find_ends(values: np.ndarray) -> tuple[float, float, float] | None:
    """The minimum, the 99th percentile and the maximum of the finite values; None if there are none."""
    known = values[np.isfinite(values)]
    return (float(known.min()), float(np.quantile(known, 0.99)), float(known.max())) if len(known) else None


def build_scale(
    name: str,
    values: np.ndarray,
    k: np.ndarray,
    ends: tuple[float, float, float] | None = None,
    first: int = 0,
    last: int | None = None,
) -> dict:
    """A quantity in the script's form: its label, the ends of its colour scale, and its values from first to last.

    ``values`` and ``k`` (n,), the numbers of candidates, are those of a whole text; ``ends`` are the `find_ends` of
    more tokens, if there are more. The scale ends where all but one in a hundred tokens are: one odd token must not
    make the rest pale. Tokens beyond an end have its colour: ``over`` and ``under`` say so. Counts have a
    logarithmic scale, from 1. ``undefined``: some value does not exist, because the quantity needs a pair of
    candidates and there is only one. ``missing``: some other value is unknown or not a finite number.
    ``flat``, if it is there: all values that there are, are the same, so that there is no scale to show.
    ``tab``, of some quantities, is the name of the tab of a card that shows what they are about.
    """
    count, own = quantities.is_count(name), find_ends(values) or (0.0, 1.0, 1.0)
    least, high, most = ends or own
    low, high = (1.0, max(round(high), 2)) if count else (0.0, high if high > 0 else 1.0)
    flat = least == most if ends or find_ends(values) else True
    gaps, alone = ~np.isfinite(values), (k == 1) & quantities.needs_pair(name)
    return {
        "name": name,
        "label": quantities.find_title(name),
        "count": count,
        "low": low,
        "high": high if count else round_value(high),
        "over": max(most, own[2]) > high,
        "under": min(least, own[0]) < low,
        "undefined": bool((gaps & alone).any()),
        "missing": bool((gaps & ~alone).any()),
        "values": [round_quantity(name, value) for value in values[first:last]],
        **({"flat": True} if flat else {}),
        **({"tab": "context"} if quantities.is_in_context(name) else {}),
    }


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
    """Cosines (n, n) of the ``largest`` likeliest candidates, and their places in ``ids``: an `order_matrix`."""
    rows = compute_directions(embedding, ids[:largest])
    return order_matrix(rows @ rows.T)


def unpack_pairs(pairs: np.ndarray) -> np.ndarray:
    """The cosines (m, m) of the m likeliest candidates from the ``pairs`` of a `Choice`, of which there are some."""
    m = round((1 + np.sqrt(1 + 8 * len(pairs))) / 2)
    cosines = np.zeros((m, m))
    cosines[np.tril_indices(m, -1)] = pairs
    return cosines + cosines.T


def order_matrix(cosines: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A matrix of cosines (n, n) with similar rows adjacent and ones on its diagonal, and the former places of rows.

    The order is that of the leaves of an average-linkage tree over 1 - cosine, its branches turned
    so that neighbours are similar (Bar-Joseph, Gifford and Jaakkola, Bioinformatics 2001).
    """
    from scipy.cluster.hierarchy import leaves_list, linkage  # only the live notebook draws a matrix
    from scipy.spatial.distance import squareform

    cosines = np.clip(cosines, -1, 1)
    np.fill_diagonal(cosines, 1)
    order = np.arange(len(cosines))
    if len(order) > 2:
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


class Choice(NamedTuple):
    """The choice at one token: its id, and its candidates, (k,) each, by falling probability.

    ``outside`` is the probability of the token if it is not among them; NaN if that is unknown. ``taken`` (k,) are the
    candidates' cosines with the token, ``pairs`` those of the pairs of the likeliest, in the order (0, 1), (0, 2),
    (1, 2), (0, 3), ..., as `measure.pairs` has them; None if they are unknown. ``ahead`` says how similar what follows
    them is; None if that was not measured.
    """

    token: int
    ids: np.ndarray
    probs: np.ndarray
    outside: float
    taken: np.ndarray | None = None
    pairs: np.ndarray | None = None
    ahead: "Ahead | None" = None


class Groups(NamedTuple):
    """The m compared candidates of one token in groups with similar continuations.

    ``shares`` are the probabilities of the first of them, as many as a card lists, among all m. ``members`` are the
    groups by falling probability: (its share, the places of its listed candidates, the number of its others).
    ``split`` are both parts of the entropy of the m shares. ``threshold`` is the mean similarity that joins groups.
    """

    shares: np.ndarray
    members: Sequence[tuple[float, Sequence[int], int]]
    split: "what_or_how.Split"
    threshold: float


class Ahead(NamedTuple):
    """What follows the likeliest candidates of one token, whose ids are ``ids``.

    ``similarities`` (n, n) are those in context, `measure.context`, of the first n of them, and ``continuations`` the
    effective number of different continuations; ``groups`` are theirs. ``following`` are the likeliest next tokens of
    each of ``ids``, (ids, probabilities), if known.
    """

    ids: Sequence[int]
    similarities: np.ndarray
    continuations: float
    groups: Groups
    following: Sequence[tuple[Sequence[int], Sequence[float]]] = ()


def build_ahead(
    ids: Sequence[int],
    shares: np.ndarray,
    similarities: np.ndarray,
    threshold: float = Settings.context_threshold,
    following: Sequence[tuple[Sequence[int], Sequence[float]]] = (),
    listed: int = LISTED,
) -> Ahead:
    """The `Ahead` of a token whose m candidates, of probabilities ``shares`` (m,), have ``similarities`` (m, m).

    Groups and both parts of the entropy are those of all m. A card shows the ``listed`` likeliest of them, so
    ``continuations`` are those of these, by their probabilities: the exponential of their similarity entropy. ``ids``
    and ``following`` may continue with candidates that were not compared.
    """
    from nucleoscope.stats import what_or_how  # scipy takes a while to import, and few runs were measured in context

    shares = np.asarray(shares, float) / np.asarray(shares, float).sum()
    m, n = len(shares), min(len(shares), listed)
    found = what_or_how.cut(what_or_how.link(similarities[np.triu_indices(m, 1)]), threshold)
    members = []
    # by the likeliest candidate of each group, which decides between equal shares
    for group in dict.fromkeys(found.tolist()):
        places = np.flatnonzero(found == group).tolist()
        shown = [place for place in places if place < n]
        members.append((float(shares[places].sum()), shown, len(places) - len(shown)))
    members.sort(key=lambda member: -member[0])
    groups = Groups(shares[:n], members, what_or_how.split_entropy(shares, found), threshold)
    similar, q = similarities[:n, :n], shares[:n] / shares[:n].sum()
    entropy = -float(q @ np.log(np.clip(similar @ q, 1e-300, 1)))
    return Ahead(ids[: max(n, len(following))], similar, float(np.exp(entropy)), groups, following)


def read_ahead(
    matrices: Mapping[str, np.ndarray], prompt: int, threshold: float = Settings.context_threshold, listed: int = LISTED
) -> dict[int, Ahead]:
    """What a run's `store.context.load_matrices` say of a prompt's tokens, by step, for those with a choice.

    ``threshold`` is that of the run, see `build_ahead`.
    """
    found = find_matrices(matrices, prompt)
    return {
        step: build_ahead(ids.tolist(), shares, similar, threshold, listed=listed)
        for step, (ids, shares, similar) in found.items()
    }


def list_split(ahead: Mapping[int, Ahead], number: int) -> dict[str, np.ndarray]:
    """The quantities of `quantities.IN_CONTEXT` of a text's tokens, (number,) each, by name; NaN if not measured."""
    columns = {quantity.name: np.full(number, np.nan) for quantity in quantities.IN_CONTEXT}
    for step, each in ahead.items():
        columns["entropy_what"][step], columns["entropy_how"][step] = each.groups.split
    return columns


def add_split(tokens: Sequence[Token], ahead: Mapping[int, Ahead]) -> None:
    """Gives the tokens of a text the values of `list_split`, if there are any.

    A token that was measured again, and has other candidates than those that were compared, has none.
    """
    if not ahead:
        return
    known = {
        step: each
        for step, each in ahead.items()
        if step < len(tokens) and tokens[step].ids[: len(each.ids)].tolist() == list(each.ids)
    }
    for name, values in list_split(known, len(tokens)).items():
        for token, value in zip(tokens, values.tolist(), strict=True):
            token.values[name] = value


def describe_ahead(reader: Reader, ahead: Ahead, token: int) -> dict:
    """An `Ahead` for ``static/card.js``; ``token`` is the one that was taken.

    ``names`` are the candidates as text and ``taken`` the place of the token among them, or -1; ``similar`` are their
    similarities with it, and ``matrix`` those of pairs, in hundredths, in the order of `build_cards`. ``shares`` are
    the candidates' probabilities among those compared, and ``groups`` [share, places] of each group, with the number of
    its candidates that are not listed if there are some. ``split`` are both parts of the entropy, in nats, with three
    digits after the point. ``following`` has [text, probability] of each likely next token of each candidate.
    """
    ids, matrix = [int(id) for id in ahead.ids], np.asarray(ahead.similarities, dtype=float)
    taken, n = ids.index(token) if token in ids else -1, len(matrix)
    return {
        "names": [reader.show(id) for id in ids],
        "taken": taken,
        "similar": _count_hundredths(matrix[taken], n) if 0 <= taken < n else [],
        "matrix": _count_hundredths(matrix[np.tril_indices(n, -1)], n**2),
        "continuations": round_value(ahead.continuations),
        "shares": [round_value(share) for share in ahead.groups.shares],
        "groups": [
            [round_value(share), list(places), *([more] if more else [])]
            for share, places, more in ahead.groups.members
        ],
        "split": [round(part, 3) for part in ahead.groups.split],
        "following": [
            [[reader.show(int(id)), round_value(p)] for id, p in zip(*each, strict=True)] for each in ahead.following
        ],
    }


def build_cards(
    reader: Reader,
    choices: Iterable[Choice],
    columns: Mapping[str, np.ndarray],
    units: Sequence[Unit],
    *,
    mode: str = "generate",
    first: int = 0,
    last: int | None = None,
    ends: Mapping[str, tuple[float, float, float]] | None = None,
    listed: int = LISTED,
) -> dict:
    """The cards of the tokens first <= step < last of a text, as JSON, for ``static/card.js``.

    ``choices`` are those of these tokens only. ``columns`` (n,) are the quantities of all tokens of the
    text by name, NaN for an undefined or missing value; ``units`` are its `Reader.split_units`. ``mode`` is "generate"
    if the model wrote the text, "score" if the text existed before, "fork" for a token that a reader put in.
    ``ends``: see `build_scale`.

    ``words`` are texts, each once. ``tokens`` has a list for each token, short because a page has many:
    [its word, the words of the ``listed`` likeliest candidates, their probabilities, the number of further
    candidates, their mass, that of the nucleus, the token's place in it or -1], and, if the token is not
    among those listed, its probability. ``quantities``: a `build_scale` each, in the order of
    `quantities.list_tints`. ``places`` and ``pairs``: see `rank_places`. ``parts`` has, for each token that
    makes a character only with others, [its number among these, how many they are, the character], by its
    step - first. ``total`` is n; the live notebook says None while a text grows. ``similar`` and ``matrix`` have a list
    for each token if cosines of candidates are known, in hundredths: those of the listed candidates with the token, and
    of the pairs of the likeliest. ``context``
    has a `describe_ahead` for each token, or None, if similarity in context is known of any, and ``threshold`` is then
    the mean similarity that joins groups.
    """
    choices = list(choices)
    compared = {}
    if any(choice.taken is not None for choice in choices):
        compared["similar"] = [_count_hundredths(choice.taken, listed) for choice in choices]
        compared["matrix"] = [
            _count_hundredths(choice.pairs, min(listed, PAIRED) * (min(listed, PAIRED) - 1) // 2) for choice in choices
        ]
    if any(choice.ahead is not None for choice in choices):
        compared["context"] = [
            None if choice.ahead is None else describe_ahead(reader, choice.ahead, choice.token) for choice in choices
        ]
        compared["threshold"] = next(choice.ahead.groups.threshold for choice in choices if choice.ahead is not None)
    total, titles, words = len(columns["k"]), quantities.list_tints(), Words(reader)
    last = total if last is None else last
    names = [*(name for name in titles if name in columns), *(name for name in columns if name not in titles)]
    places, pairs = rank_places(columns["entropy"], columns["cosine"])
    return {
        "mode": mode,
        "first": first,
        "total": total,
        "words": words.texts,
        "tokens": [_list_choice(words, choice, listed) for choice in choices],
        "quantities": [
            build_scale(name, columns[name], columns["k"], (ends or {}).get(name), first, last) for name in names
        ],
        "places": places[first:last],
        "pairs": pairs,
        "parts": {str(step - first): part for step, part in _list_parts(units) if first <= step < last},
        **compared,
    }


def _count_hundredths(cosines: np.ndarray | None, most: int) -> list[int]:
    """The first ``most`` cosines as whole hundredths: a page has a thousand of them."""
    return [] if cosines is None else np.rint(100 * np.asarray(cosines[:most], dtype=float)).astype(int).tolist()


def _list_parts(units: Sequence[Unit]) -> Iterator[tuple[int, list]]:
    """The steps of tokens that make a character only with others, and their ``parts`` in `build_cards`."""
    step = 0
    for unit in units:
        if unit.tokens > 1:
            yield from ((step + i, [i + 1, unit.tokens, unit.text.strip()]) for i in range(unit.tokens))
        step += unit.tokens


def _list_choice(words: Words, choice: Choice, listed: int) -> list:
    """A token of `build_cards`."""
    token, ids, probs, outside = choice[:4]
    place = int(np.flatnonzero(ids == token)[0]) if (ids == token).any() else -1
    top = [[words.find_place(int(id)) for id in ids[:listed]], [round_value(p) for p in probs[:listed]]]
    masses = [round_value(probs[listed:].sum()), round_value(probs.sum())]
    card = [words.find_place(token), *top, max(len(ids) - listed, 0), *masses, place]
    return card if 0 <= place < listed else [*card, round_value(outside if place < 0 else probs[place])]


def rank_places(entropy: np.ndarray, cosine: np.ndarray) -> tuple[list[list[int] | None], int]:
    """For each token, how many others have lower entropy and how many lower cosine; and how many are compared.

    Only tokens with both (n,) values are compared, so only those with a pair; the others have None.
    """
    known = np.isfinite(entropy) & np.isfinite(cosine)
    lower = [np.searchsorted(np.sort(values[known]), values) for values in (entropy, cosine)]
    places = [[int(a), int(b)] if has else None for a, b, has in zip(*lower, known, strict=True)]
    return places, int(known.sum())


def describe_token(
    tokens: Sequence[Token],
    step: int,
    reader: Reader,
    cosines: tuple[np.ndarray | None, np.ndarray | None],
    listed: int = LISTED,
    mode: str = "generate",
) -> dict:
    """The `build_cards` of token ``step`` alone; ``cosines`` are the ``taken`` and ``pairs`` of its `Choice`."""
    token = tokens[step]
    ids, probs = token.ids.cpu().numpy(), token.probs.double().cpu().numpy()
    choice = Choice(token.id, ids, probs, float(np.exp(-token.values.get("surprisal", np.nan))), *cosines)
    columns, units = list_columns(tokens), reader.split_units([token.id for token in tokens])
    return build_cards(reader, [choice], columns, units, mode=mode, first=step, last=step + 1, listed=listed)


def compare_candidates(embedding: torch.Tensor, token: Token, listed: int = LISTED) -> tuple[np.ndarray, np.ndarray]:
    """The ``taken`` and ``pairs`` of a token's `Choice` as far as a card shows them, from the model's embedding."""
    units = compute_directions(embedding, torch.tensor([*token.ids[:listed].tolist(), token.id]))
    likeliest = units[:-1][:PAIRED]
    return units[:-1] @ units[-1], (likeliest @ likeliest.T)[np.tril_indices(len(likeliest), -1)]


def round_quantity(name: str, value: float) -> float | int | None:
    """A quantity's value in a page: counts are exact."""
    return int(value) if quantities.is_count(name) and np.isfinite(value) else round_value(value)


def round_value(value: float) -> float | int | None:
    """Three significant digits, None for what is not a number: the form of numbers in a page."""
    if not np.isfinite(value):
        return None
    rounded = float(f"{value:.3g}")
    return int(rounded) if rounded.is_integer() else rounded
