"""What the live notebook needs once there is a text: models, cards and figures, and how they work together.

Contract: importing this takes seconds, because it imports torch and transformers, so `explorer` does so in a thread,
while the notebook can be used already. Nothing here knows the widgets of a page.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from nucleoscope.explorer import live_figures
from nucleoscope.measure import checking, context, model_facts, streaming
from nucleoscope.measure.recording import Token
from nucleoscope.models import loading, tokenizers
from nucleoscope.settings import Settings
from nucleoscope.store import local_tokenizers
from nucleoscope.store.context import Grouping
from nucleoscope.views import cards, strip, texts
from nucleoscope.views.token_text import Reader

__all__ = ["Reader", "cards", "checking", "live_figures", "loading", "local_tokenizers", "model_facts", "strip"]
__all__ += ["streaming", "texts", "tokenizers"]

NEXT = 3  # tokens that are shown of what follows a candidate


def find_widest(tokens: Sequence[Token]) -> int:
    """The step of the widest choice, that with the highest entropy."""
    return max(range(len(tokens)), key=lambda step: tokens[step].values.get("entropy", 0))


def put_in(token: Token, place: int) -> Token:
    """A token's choice with another outcome: its candidate at ``place``. Other quantities are those of the choice."""
    values = dict(token.values)
    if "surprisal" in values:
        values["surprisal"] = float(-np.log(max(float(token.probs[place]), 1e-45)))
    if "rank" in values:
        values["rank"] = float(place + 1)
    return token._replace(id=int(token.ids[place]), values=values)


def build_scale(name: str, tokens: Sequence[Token], earlier: Sequence[Token] = ()) -> dict[str, Any]:
    """The tint of a text, as `cards.build_scale` has it, and of the ``earlier`` tokens beside it, on the same scale."""
    both = [*tokens, *earlier]
    values, k = (np.array([cards.find_value(token, each) for token in both]) for each in (name, "k"))
    scale = cards.build_scale(name, values, k)
    found, n = scale["values"], len(tokens)
    return scale | {"values": found[:n]} | ({"earlier": found[n:]} if len(earlier) else {})


def find_cosines(model: Any, similarities: Any, token: Token, step: int) -> tuple[np.ndarray | None, np.ndarray | None]:
    """The cosines on the card of a token: from the model, or from the files of its run, or unknown."""
    if model is not None:
        return cards.compare_candidates(model_facts.find_embedding_matrix(model.model), token)
    return (similarities.taken[step], similarities.pairs[step]) if similarities else (None, None)


def find_matrix(model: Any, similarities: Any, token: Token, step: int) -> tuple[np.ndarray, np.ndarray] | None:
    """The `cards.order_matrix` of a token's candidates; from files, that of the likeliest ten."""
    if model is not None:
        return cards.compute_matrix(model_facts.find_embedding_matrix(model.model), token.ids)
    return cards.order_matrix(cards.unpack_pairs(similarities.pairs[step])) if similarities else None


def look_ahead(
    model: loading.Model, tokens: Sequence[Token], step: int, settings: dict[str, Any], grouping: Grouping
) -> cards.Ahead:
    """What follows each of the listed candidates of token ``step``, and how similar that is.

    As many are compared, and grouped in the same way, as where a run is measured with this ``grouping``.
    """
    token, ids = tokens[step], [each.id for each in tokens[: step + 1]]
    # nothing is drawn; and for a text that was read, the field of the seed, which is hidden, may have any value
    chosen = Settings.collect({name: value for name, value in settings.items() if name != "seed"})
    size = min(len(token.ids), max(cards.LISTED, grouping.candidates))
    found = context.look_ahead(
        model.model, model.tokenizer, settings["prompt"], ids, token.ids[:size], token.probs[:size], chosen, NEXT
    )
    m = min(size, grouping.candidates)
    return cards.build_ahead(
        token.ids[:size].tolist(),
        token.probs[:m].cpu().numpy(),
        found.similarities[:m, :m].half().double().numpy(),  # rounded as in context.pt, so that groups are the same
        grouping.threshold,
        list(zip(found.next_ids.tolist(), found.next_probs.tolist(), strict=True))[: cards.LISTED],
    )
