"""All that is read from a step's logits, in one pass over the vocabulary: the candidates and what the rest tells.

Contract: logits in, on any device; the result is that of `nucleus.find_nucleus`, `entropy.compute_full_entropies` and
`candidate_sets.find_windows`, without computing an exponential more than once.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from nucleoscope.measure import candidate_sets, entropy, nucleus
from nucleoscope.measure.candidate_sets import Windows
from nucleoscope.measure.softmax import exponentiate, split_rows
from nucleoscope.settings import validate
from nucleoscope.variants import CandidateSet


class Distribution(NamedTuple):
    """B next-token distributions: their nuclei, the full distributions' entropies, and the margins (B,) p1 - p2.

    ``windows`` are those of other candidate sets, if there are any.
    """

    candidates: nucleus.Nucleus
    full: entropy.FullEntropies
    margin: torch.Tensor
    windows: Windows | None = None


def describe_distribution(logits: torch.Tensor, top_p: float, sets: Sequence[CandidateSet] = ()) -> Distribution:
    """The nuclei and full entropies of logits (B, V), and the windows of other ``sets`` of candidates.

    Raises what `nucleus.find_nucleus` raises.
    """
    validate("top_p", top_p)
    pieces, parts, likeliest = [], [], []
    for rows in split_rows(logits):
        found = exponentiate(rows)
        pieces.append(nucleus.find_piece(found, top_p))
        spread = candidate_sets.measure_spread(found, sets)
        parts.append(entropy.summarise(found))  # it overwrites the logits that were found, but not their exponentials
        if sets:
            likeliest.append(candidate_sets.find_likeliest(found, parts[-1].entropy, spread, sets))
    full, second = entropy.join_entropies(parts), torch.cat([piece.second for piece in pieces])
    candidates = nucleus.join_nuclei(pieces)  # logits that are not finite are refused
    windows = candidate_sets.arrange_windows(logits, likeliest, sets) if sets else None
    # p1 (1 - e^(z2 - z1)) loses no digits if the two are close
    return Distribution(candidates, full, -full.largest * second.expm1(), windows)
