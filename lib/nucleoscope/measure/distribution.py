"""All that is read from a step's logits, in one pass over the vocabulary: the candidates and what the rest tells.

Contract: logits in, on any device; the result is that of `nucleus.find_nucleus` and `entropy.compute_full_entropies`,
without computing every exponential twice.
"""

from typing import NamedTuple

import torch

from nucleoscope.measure import entropy, nucleus
from nucleoscope.measure.softmax import exponentiate, split_rows
from nucleoscope.settings import validate


class Distribution(NamedTuple):
    """B next-token distributions: their nuclei, the full distributions' entropies, and the margins (B,) p1 - p2."""

    candidates: nucleus.Nucleus
    full: entropy.FullEntropies
    margin: torch.Tensor


def describe_distribution(logits: torch.Tensor, top_p: float) -> Distribution:
    """The nuclei and full entropies of logits (B, V). Raises what `nucleus.find_nucleus` raises."""
    validate("top_p", top_p)
    pieces, parts = [], []
    for rows in split_rows(logits):
        found = exponentiate(rows)
        pieces.append(nucleus.find_piece(found, top_p))
        parts.append(entropy.summarise(found))  # last: it overwrites what was found
    full, second = entropy.join_entropies(parts), torch.cat([piece.second for piece in pieces])
    # p1 (1 - e^(z2 - z1)) loses no digits if the two are close
    return Distribution(nucleus.join_nuclei(pieces), full, -full.largest * second.expm1())
