"""Picks prompts and tokens to show from tables, by fixed rules.

Contract: the rules see only measurements; `list_typical` alone also sees the tokens' texts, to prefer words in whole
sentences. Tokens with k = 1 had no alternative and are left out. Among ties, the one measured first is picked, so the
same measurements give the same picks.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from nucleoscope.stats.bootstrap import is_constant
from nucleoscope.store.results import select_choices, tabulate
from nucleoscope.store.run_names import order_run
from nucleoscope.views.token_text import escape_name
from nucleoscope.wording import count

ENOUGH = 20  # minimum of tokens with k > 1 for a prompt's coefficient
FEWEST = 3  # minimum of tokens for any coefficient at all
FEW_PROMPTS = 3  # fewer prompts than these are all shown, and not by a rule
READABLE = 200  # maximum number of candidates of a token in an example
BEFORE = 8  # minimum number of tokens before a token in an example
FEW = (4, 8)  # candidates of a token that is to be understood at a glance
AROUND = 30  # maximum of tokens on either side of a token in its sentence
STOPS = re.compile(r"[.!?\u3002\uff01\uff1f\u061f\u0964][\"'\u201d\u2019)\]*]*\s*$")  # of whole sentences
# A point that a letter or digit follows at once is in a number (0.5), a name (a.py) or an abbreviation (U.S.); where a
# space is missing between two sentences, they count as one.
POINT, GOES_ON = re.compile(r"\.$"), re.compile(r"\w")
EACH = 3  # tokens of a corner
OUTER = 1 / 3  # of all ranks: how far a token may be from its corner in either quantity
CORNERS = {  # name -> which end of entropy and of cosine similarity
    "high entropy, high cosine similarity": (True, True),
    "high entropy, low cosine similarity": (True, False),
    "low entropy, high cosine similarity": (False, True),
    "low entropy, low cosine similarity": (False, False),
}


class Pick(NamedTuple):
    """A prompt to look at: which one, and ``sentence``, by which rule; ``r`` is its coefficient or NaN."""

    prompt: int
    r: float
    sentence: str


def correlate_within_prompts(tokens: pd.DataFrame) -> pd.DataFrame:
    """Each prompt's own Spearman coefficient of entropy and cosine over its tokens with k > 1.

    One row per prompt with such tokens, by its number: ``r``, NaN if either does not vary or
    fewer than three tokens remain, and ``tokens``, how many it is based on. Equal values share a rank.
    """
    pairs = select_choices(tokens)
    pairs = pairs[np.isfinite(pairs[["entropy", "cosine"]]).all(axis=1)]
    rows = {prompt: (_compute_spearman(group), len(group)) for prompt, group in pairs.groupby("prompt")}
    return pd.DataFrame.from_dict(rows, orient="index", columns=["r", "tokens"]).astype({"r": float})


def _compute_spearman(pairs: pd.DataFrame) -> float:
    x, y = pairs["entropy"].to_numpy(), pairs["cosine"].to_numpy()
    if len(pairs) < FEWEST or is_constant(x) or is_constant(y):
        return np.nan
    return float(np.corrcoef(pairs["entropy"].rank(), pairs["cosine"].rank())[0, 1])


def choose_prompts(tokens: pd.DataFrame) -> list[Pick]:
    """Up to three prompts: the one with the median coefficient, the most and the least correlated one.

    The coefficient is that of `correlate_within_prompts`. Only prompts with at least 20 tokens with k > 1 take
    part, or, if texts are short, with at least half as many as the longest prompt with a coefficient: three
    tokens are easily in perfect order. The median of an even number of coefficients is the lower of the two in
    the middle; the most correlated prompt is the one whose coefficient is furthest from 0 in either direction,
    the least correlated the one whose coefficient is nearest to 0. No prompt is taken twice. If only one or two take
    part, these are picked, in the order of their coefficients. If no prompt has a coefficient, the list contains only
    the first prompt with a text; if none has a text, it is empty.
    """
    each = correlate_within_prompts(tokens)
    defined = each[each["r"].notna()]
    bound = max(FEWEST, min(ENOUGH, int(defined["tokens"].max()) // 2 if len(defined) else 0))
    part = defined[defined["tokens"] >= bound].sort_index()
    if part.empty:
        return [
            Pick(index, np.nan, "**The first prompt with a text**: no prompt has a coefficient of its own.")
            for index in tokens["prompt"].unique()[:1].tolist()
        ]
    order = part["r"].sort_values(kind="stable").index
    if len(part) < FEW_PROMPTS:
        of = f"a coefficient over at least {count(bound, 'token')} with more than one candidate"
        return [
            Pick(prompt, float(part.loc[prompt, "r"]), f"{said} It is {_format_coefficient(part.loc[prompt])}.")
            for prompt, said in zip(order.tolist(), begin_few(order.tolist(), of), strict=True)
        ]
    rules = {
        "The median prompt": [order[(len(order) - 1) // 2]],
        "The most correlated prompt": part["r"].abs().sort_values(ascending=False, kind="stable").index.tolist(),
        "The least correlated prompt": part["r"].abs().sort_values(kind="stable").index.tolist(),
    }
    return [
        Pick(prompt, float(part.loc[prompt, "r"]), _format_sentence(rule, again, prompt, part, bound))
        for rule, prompt, again in apply_rules(rules)
    ]


def apply_rules(rules: Mapping[str, Sequence[int]]) -> Iterator[tuple[str, int, str]]:
    """The first prompt of each rule's candidates that no earlier rule took; a rule without one is left out.

    Each with its rule, and with words that say so if it is not the rule's first candidate.
    """
    taken: set[int] = set()
    for rule, candidates in rules.items():
        left = [int(prompt) for prompt in candidates if int(prompt) not in taken][:1]
        for prompt in left:
            taken.add(prompt)
            yield rule, prompt, "" if prompt == candidates[0] else " among those not shown yet"


def _format_sentence(rule: str, again: str, prompt: int, part: pd.DataFrame, bound: int) -> str:
    why = {
        "The median prompt": "the median coefficient",
        "The most correlated prompt": "the coefficient furthest from 0",
        "The least correlated prompt": "the coefficient nearest to 0",
    }[rule]
    return (
        f"**{rule}**, prompt {prompt}: of the {len(part)} prompts with at least {count(bound, 'token')} with more than "
        f"one candidate, it has {why}{again}, {_format_coefficient(part.loc[prompt])}."
    )


def _format_coefficient(row: pd.Series) -> str:
    coefficient = f"{row['r']:z.2f}".replace("-", "\N{MINUS SIGN}")
    return f"{coefficient} over {count(int(row['tokens']), 'token')}"


def begin_few(prompts: Sequence[int], of: str) -> list[str]:
    """The first sentences on one or two prompts, which are shown because there is nothing to choose among so few.

    ``of`` is what they have and no other prompt has.
    """
    if len(prompts) == 1:
        return [f"**The only prompt to choose from**, prompt {prompts[0]}: no other has {of}."]
    return [f"**Prompt {prompt}**, one of the only two prompts with {of}." for prompt in prompts]


def find_corners(
    tables: Mapping[tuple[str, str], pd.DataFrame], each: int = EACH, readable: int = READABLE, before: int = BEFORE
) -> pd.DataFrame:
    """Tokens at the corners of the plane of entropy and cosine, ``each`` per corner, by rule.

    Both quantities are ranked among all tokens with k > 1 of all ``tables``, as shares from 0 to 1
    (equal values share a rank). A token's distance from a corner is the larger of its two ranks'
    distances, so that it has to be extreme in both: at most `OUTER`, or it belongs to no corner. The sum of the two
    breaks ties. The nearest tokens are taken that have at most ``readable`` candidates, follow at least ``before``
    tokens of the same text, and come from a prompt from which no other token was taken. The corners
    take turns, one token each, so that no corner stays empty for the sake of another if there are few prompts.

    Columns: corner, then those of a table, then ``entropy_rank`` and ``cosine_rank``; the corners in
    the order of `CORNERS`, the nearest token first. Fewer rows if there are not enough tokens.
    """
    left = _list_suitable(tables, readable, before)
    orders = {name: _find_nearest(left, ends) for name, ends in CORNERS.items()}
    dealt: dict[str, list[int]] = {name: [] for name in CORNERS}
    owners, taken = left["owner"].to_numpy(), set()
    for _ in range(each):
        for name, order in orders.items():
            place = next((place for place in order if owners[place] not in taken), None)
            if place is not None:
                dealt[name].append(place)
                taken.add(owners[place])
    found = [left.iloc[places].assign(corner=name) for name, places in dealt.items()]
    joined = pd.concat(found, ignore_index=True).drop(columns="owner")
    return joined[["corner", *(column for column in joined.columns if column != "corner")]]


def list_empty_corners(
    tables: Mapping[tuple[str, str], pd.DataFrame], readable: int = READABLE, before: int = BEFORE
) -> list[str]:
    """The corners near which no token can be shown, not even if `find_corners` had no other corner to find."""
    left = _list_suitable(tables, readable, before)
    return [name for name, ends in CORNERS.items() if not _find_nearest(left, ends)]


def _list_suitable(tables: Mapping[tuple[str, str], pd.DataFrame], readable: int, before: int) -> pd.DataFrame:
    """The ranked tokens that may be shown, wherever they are; ``owner`` is the prompt of each."""
    left = _rank(tables)
    left = left[(left["k"] <= readable) & (left["step"] >= before) & (left["token"] >= 0)]
    return left.assign(owner=left.groupby(["model", "dataset", "prompt"]).ngroup())


def list_typical(tables: Mapping[tuple[str, str], pd.DataFrame]) -> Iterator[tuple[tuple[str, str], pd.Series]]:
    """A typical token of each run, by the run's key: of the words with few candidates, the nearest to both medians.

    Entropy and cosine are ranked as in `find_corners`, over all ``tables``; a token's distance is the larger of its two
    ranks' distances from the middle. It has 4 to 8 candidates, at least `BEFORE` tokens of its text before it, and a
    whole sentence around it. If no such word is in a whole sentence, the sentence may be cut off; if there is no such
    word, or the files do not have the tokens' texts, it may be any token. The run whose token is the nearest comes
    first, and one without such a token not at all. A token is the row of its table.
    """
    keys = sorted(tables, key=order_run)
    ranked = _rank({key: tables[key].assign(run=place) for place, key in enumerate(keys)})
    left = ranked[(ranked["token"] >= 0) & ranked["k"].between(*FEW) & (ranked["step"] >= BEFORE)]
    if "text" in left and len(words := left[[is_word(text) for text in left["text"]]]):
        left = words
    distances = (left[["entropy_rank", "cosine_rank"]] - 0.5).abs()
    left = left.iloc[np.lexsort((distances.sum(axis=1), distances.max(axis=1)))]
    texts = {place: list_texts(tables[key]) for place, key in enumerate(keys)}
    firsts = []  # of each run: its first token in a whole sentence, or else its first token, by its place
    for run in left["run"].unique() if tables else ():
        places = np.flatnonzero(left["run"] == run)
        steps = zip(places, left["prompt"].iloc[places], left["step"].iloc[places], strict=True)
        whole = (place for place, prompt, step in steps if has_whole_sentence(texts[run].get(prompt, []), step))
        chosen = next(whole, None)
        firsts.append((True, places[0], run) if chosen is None else (False, chosen, run))
    for _, place, run in sorted(firsts):
        yield keys[run], left.iloc[place]


def explain_no_typical(tables: Mapping[tuple[str, str], pd.DataFrame]) -> str:
    """Why `list_typical` has nothing to list: the first of its conditions that no token meets, and what to do.

    A clause that follows a colon; "" if a token meets all of them.
    """
    low, high = FEW
    longer = "raise `n_prompts` or `max_tokens`"
    ranked = _rank(tables)
    if ranked.empty:
        filled = [table for table in tables.values() if len(table)]
        alone = bool(filled) and all((table["k"] == 1).all() for table in filled)
        advice = "a higher `top_p` or `temperature` gives tokens an alternative" if alone else longer
        return f"no token has more than one candidate and both quantities; {advice}"
    known = ranked[ranked["token"] >= 0]
    if known.empty:
        return "the files do not say which tokens the texts consist of; measure a model yourself"
    few = known[known["k"].between(low, high)]
    if few.empty:
        return f"it would be about a token with {low} to {high} candidates, and no token has that many; {longer}"
    if (few["step"] < BEFORE).all():
        return (
            f"a token that is shown has at least {BEFORE} tokens of its text before it, and no token with {low} to "
            f"{high} candidates has so much text before it; raise `max_tokens`, or measure longer texts"
        )
    return ""


def list_texts(table: pd.DataFrame) -> dict[int, list]:
    """The texts of the tokens of each prompt, if the table has them."""
    return {} if "text" not in table else table.groupby("prompt")["text"].apply(list).to_dict()


def is_word(text: Any) -> bool:
    """Whether the text of a token has three letters in a row; False if it is missing."""
    return isinstance(text, str) and bool(re.search(r"[^\W\d_]{3}", text))


def find_sentence(texts: Sequence[str], step: int, around: int = AROUND) -> tuple[int, int]:
    """The sentence around one of a text's tokens, ``first`` <= step < ``last``, by the texts of all its tokens.

    A sentence ends at a token that ends with a full stop or the like, or that contains a line break. At most
    ``around`` tokens on either side belong to it.
    """
    first = step
    while first > max(step - around, 0) and not _is_end(texts, first - 1):
        first -= 1
    last = step + 1
    while last < min(step + around + 1, len(texts)) and not _is_end(texts, last - 1):
        last += 1
    return first, last


def _is_end(texts: Sequence[str], place: int) -> bool:
    """Whether a sentence ends with the token at this place of a text."""
    return "\n" in texts[place] or _is_stop(texts, place)


def _is_stop(texts: Sequence[str], place: int) -> bool:
    """Whether a token ends with a full stop or the like; a point that a letter or a digit follows at once is none."""
    following = texts[place + 1] if place + 1 < len(texts) else ""
    if POINT.search(texts[place]) and GOES_ON.match(following):
        return False
    return bool(STOPS.search(texts[place]))


def has_whole_sentence(texts: Sequence[Any], step: int) -> bool:
    """Whether the sentence around a token has a beginning, and ends with a full stop or the like."""
    if not _has_text_around(texts, step):
        return False
    first, last = find_sentence(texts, step)
    return (first == 0 or _is_end(texts, first - 1)) and _is_stop(texts, last - 1)


def has_no_end(texts: Sequence[Any], step: int) -> bool:
    """Whether the text ends in the sentence around a token, without a full stop or the like."""
    if not _has_text_around(texts, step):
        return False
    return find_sentence(texts, step)[1] == len(texts) and not _is_end(texts, len(texts) - 1)


def _has_text_around(texts: Sequence[Any], step: int) -> bool:
    """Whether a text has a token, and the texts of those around it are known."""
    around = texts[max(step - AROUND - 1, 0) : step + AROUND + 2]
    return step < len(texts) and all(isinstance(text, str) for text in around)


def compute_reach(tables: Mapping[tuple[str, str], pd.DataFrame], readable: int = READABLE) -> tuple[int, float, float]:
    """The coverage of `find_corners`: how many tokens have k > 1, and what is lost by leaving out long lists.

    The second value is the share of those tokens that have more than ``readable`` candidates, the
    third the highest rank of entropy (0 to 1) among the others; NaN if there are none.
    """
    ranked = _rank(tables)
    shown = ranked["k"] <= readable
    return len(ranked), float(1 - shown.mean()), float(ranked.loc[shown, "entropy_rank"].max())


def _rank(tables: Mapping[tuple[str, str], pd.DataFrame]) -> pd.DataFrame:
    """The tokens with k > 1, with ``entropy_rank`` and ``cosine_rank`` among them."""
    pairs = select_choices(pool(tables))
    pairs = pairs[np.isfinite(pairs[["entropy", "cosine"]]).all(axis=1)]
    return pairs.assign(entropy_rank=_compute_shares(pairs["entropy"]), cosine_rank=_compute_shares(pairs["cosine"]))


def _find_nearest(ranked: pd.DataFrame, ends: tuple[bool, bool]) -> list[int]:
    """Places of the rows of ``ranked``, one per prompt: its nearest to the corner, the nearest of all first.

    None is further than `OUTER` from it in either quantity.
    """
    columns = zip(("entropy_rank", "cosine_rank"), ends, strict=True)
    one, other = ((1 - ranked[column] if high else ranked[column]) for column, high in columns)
    distance = np.maximum(one, other)
    order = np.lexsort((one + other, distance))
    order = order[distance.iloc[order].round(9) <= round(OUTER, 9)]  # 1 - 2/3 is more than 1/3
    return order[~ranked["owner"].iloc[order].duplicated().to_numpy()].tolist()


def pool(tables: Mapping[tuple[str, str], pd.DataFrame]) -> pd.DataFrame:
    """Several runs as one table, in the order of their names."""
    names = {"model": object, "dataset": object}  # concatenation loses the categories of different tables
    tables = tables or {("", ""): tabulate([], "", "")}
    ordered = [tables[key] for key in sorted(tables, key=order_run)]
    return pd.concat([part.astype(names) for part in ordered], ignore_index=True)


def format_numbers(token: Any) -> str:
    """A row of `find_corners`, as `itertuples` gives it, as a line of Markdown: its origin and its numbers."""
    cosine = f"{token.cosine:z.2f}".replace("-", "\N{MINUS SIGN}")
    return (
        f"**{escape_name(token.dataset)}**, prompt {token.prompt}, token {token.step} (both counted from 0): "
        f"entropy {token.entropy:.2f} nats ({_format_percentile(token.entropy_rank)}), "
        f"cosine similarity {cosine} ({_format_percentile(token.cosine_rank)}), {token.k} candidates."
    )


def _format_percentile(rank: float) -> str:
    return f"percentile {100 * rank:.0f}"


def _compute_shares(values: pd.Series) -> pd.Series:
    """Ranks from 0 (the least) to 1 (the greatest)."""
    return (values.rank() - 1) / max(len(values) - 1, 1)
