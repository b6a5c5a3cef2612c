"""All that is read from a step's logits, in one pass over the vocabulary: the candidates and what the rest tells.

Contract: logits in, on any device; the result is that of `nucleus.find_nucleus`, `entropy.compute_full_entropies` and
`candidate_sets.find_windows`, without computing an exponential, or finding a likely token, more than once.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from nucleoscope.measure import candidate_sets, entropy, nucleus
from nucleoscope.measure.candidate_sets import Windows
from nucleoscope.measure.nucleus import NotFinite, Nucleus
from nucleoscope.measure.softmax import exponentiate, split_rows
from nucleoscope.settings import validate
from nucleoscope.variants import CandidateSet

TWO_LIKELIEST = CandidateSet("", "top_k", 2, "", "")


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
    if sets:
        return _describe_with_sets(logits, top_p, sets)
    pieces, parts = [], []
    for rows in split_rows(logits):
        found = exponentiate(rows)
        pieces.append(nucleus.find_piece(found, top_p))
        parts.append(entropy.summarise(found))  # it overwrites what `find_piece` reads
    full, second = entropy.join_entropies(parts), torch.cat([piece.second for piece in pieces])
    return Distribution(nucleus.join_nuclei(pieces), full, _compute_margin(full, second))


def _describe_with_sets(logits: torch.Tensor, top_p: float, sets: Sequence[CandidateSet]) -> Distribution:
    """The same with windows, in which the nucleus is one more set."""
    every = [*sets]
    own = next((n for n, each in enumerate(sets) if (each.rule, each.value) == ("top_p", top_p)), None)
    if own is None:
        own = len(every)
        every.append(CandidateSet("", "top_p", top_p, "", ""))
    if not any(each.rule == "top_k" for each in sets):
        every.append(TWO_LIKELIEST)  # for the margin
    parts, likeliest, finite = [], [], []
    for rows in split_rows(logits):
        found = exponentiate(rows)
        finite.append(found.total[:, 0].isfinite())
        spread = candidate_sets.measure_spread(found, every)
        parts.append(entropy.summarise(found))  # it overwrites the logits that were found, but not their exponentials
        likeliest.append(candidate_sets.find_likeliest(found, parts[-1].entropy, spread, every))
    if broken := torch.nonzero(~torch.cat(finite))[:, 0].tolist():
        raise NotFinite(broken)
    full, windows = entropy.join_entropies(parts), candidate_sets.arrange_windows(logits, likeliest, every)
    ids, probs, offsets = candidate_sets.select_prefixes(windows, windows.extents[:, own, -1])
    margin = _compute_margin(full, _find_second(logits, windows))
    return Distribution(Nucleus(ids, probs, offsets), full, margin, candidate_sets.cut_windows(windows, len(sets)))


def _find_second(logits: torch.Tensor, windows: Windows) -> torch.Tensor:
    """The second largest logit minus the largest (B,); -inf if no other token has a probability above 0."""
    first, last = windows.offsets[:-1], windows.offsets[1:] - 1
    one, two = (
        logits.gather(-1, windows.ids[places, None])[:, 0].float() for places in (first, (first + 1).minimum(last))
    )
    return torch.where(first < last, two - one, -torch.inf)


def _compute_margin(full: entropy.FullEntropies, second: torch.Tensor) -> torch.Tensor:
    """p1 - p2 (B,), as p1 (1 - e^(z2 - z1)): no digits are lost if the two are close. ``second`` are z2 - z1."""
    return -full.largest * second.expm1()
