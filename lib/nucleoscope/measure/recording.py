"""Turns steps into records: the quantities of each token, however the token was chosen.

Contract: this module depends neither on models nor on where the tokens come from. A record is one
prompt's dict in a measurements file: prompt, tokens (int64), top_p_tokens and top_p_probs (a tensor per
token, by falling probability under the full distribution), and a list for each quantity, under its
plural name in `quantities`.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch

from nucleoscope.measure.nucleus import NotFinite, Nucleus
from nucleoscope.measure.ragged import widen
from nucleoscope.measure.step import Step
from nucleoscope.quantities import Quantity


class Token(NamedTuple):
    """One token on the host: its id, its candidates by falling probability, (k,) each, and its quantities by name."""

    id: int
    ids: torch.Tensor
    probs: torch.Tensor
    values: dict[str, float]


def measure_step(step: Step, quantities: Sequence[Quantity]) -> torch.Tensor:
    """All ``quantities`` (n, B) float64 of one step, without a copy to the host.

    Raises ValueError, naming the quantity, if one fails or does not return one real number per token.
    """
    columns = [_compute(quantity, step) for quantity in quantities]
    for quantity, column in zip(quantities, columns, strict=True):
        if column.shape != step.tokens.shape:
            shapes = f"{tuple(column.shape)}: it must be {tuple(step.tokens.shape)}, one number per token"
            raise ValueError(f"quantity '{quantity.name}' has shape {shapes}")
    return torch.stack([widen(column) for column in columns])


def _compute(quantity: Quantity, step: Step) -> torch.Tensor:
    try:
        column = torch.as_tensor(quantity.compute(step), device=step.logits.device)
    except (torch.OutOfMemoryError, NotFinite):
        raise  # the batch is measured in halves, or its prompts are named
    except Exception as error:  # a quantity of the user's own can raise anything
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"quantity '{quantity.name}' cannot be computed: {type(error).__name__}: {reason}") from error
    if column.is_complex():
        raise ValueError(f"quantity '{quantity.name}' has complex values: they must be real numbers")
    return column


def unpack(
    tokens: torch.Tensor, candidates: Nucleus, values: torch.Tensor, quantities: Sequence[Quantity]
) -> list[Token]:
    """The B tokens of a step on the host. ``values`` (n, B) from `measure_step` with the same ``quantities``."""
    ids, probs, offsets = candidates.ids.cpu(), candidates.probs.cpu(), candidates.offsets.tolist()
    names = [quantity.name for quantity in quantities]
    parts = [slice(start, end) for start, end in pairwise(offsets)]
    rows = zip(tokens.tolist(), parts, values.T.tolist(), strict=True)
    return [Token(token, ids[part], probs[part], dict(zip(names, row, strict=True))) for token, part, row in rows]


def build_record(prompt: str, tokens: Sequence[Token], quantities: Sequence[Quantity]) -> dict:
    """One prompt's record from its tokens.

    A prompt's candidates are views of one tensor each, which makes the file small and fast to load.
    """
    sizes = [len(token.ids) for token in tokens]
    ids = torch.cat([token.ids for token in tokens]).split(sizes) if tokens else ()
    probs = torch.cat([token.probs for token in tokens]).split(sizes) if tokens else ()
    entry = {
        "prompt": prompt,
        "tokens": torch.tensor([token.id for token in tokens], dtype=torch.long),
        "top_p_tokens": list(ids),
        "top_p_probs": list(probs),
    }
    return entry | {q.plural: [token.values[q.name] for token in tokens] for q in quantities}
