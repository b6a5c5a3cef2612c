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
    # With a set that is at least as large, the nucleus is found at no cost; a larger one would make all windows larger.
    # To find it alone in this way takes more operations, and waits more often for another device: on a CPU it is faster
    # if they are worth it. With top_p = 1 the windows are the whole vocabulary, and take more memory.
    alone = not sets and logits.device.type == "cpu" and len(split_rows(logits)) > 1 and top_p < 1
    if alone or any(each.rule == "top_p" and each.value >= top_p for each in sets):
        return _describe_in_windows(logits, top_p, sets)
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
    return Distribution(candidates, full, _compute_margin(full, second), windows)


def _describe_in_windows(logits: torch.Tensor, top_p: float, sets: Sequence[CandidateSet]) -> Distribution:
    """As `describe_distribution`, with the nucleus found as one of the sets."""
    all_sets = [*sets]
    place = next((n for n, each in enumerate(sets) if (each.rule, each.value) == ("top_p", top_p)), None)
    if place is None:
        place = len(all_sets)
        all_sets.append(CandidateSet("", "top_p", top_p, "", ""))
    if not any(each.rule == "top_k" and each.value >= TWO_LIKELIEST.value for each in sets):
        all_sets.append(TWO_LIKELIEST)  # for the margin
    parts, likeliest, largest, finite = [], [], [], []
    for rows in split_rows(logits):
        found = exponentiate(rows)
        finite.append(found.total[:, 0].isfinite())
        largest.append(found.largest[:, 0])
        spread = candidate_sets.measure_spread(found, all_sets)
        parts.append(entropy.summarise(found))  # it overwrites the logits that were found, but not their exponentials
        likeliest.append(candidate_sets.find_likeliest(found, parts[-1].entropy, spread, all_sets))
    if broken := torch.nonzero(~torch.cat(finite))[:, 0].tolist():
        raise NotFinite(broken)
    full, windows = entropy.join_entropies(parts), candidate_sets.arrange_windows(logits, likeliest, all_sets)
    candidates = Nucleus(*candidate_sets.select_prefixes(windows, windows.extents[:, place, -1]))
    margin = _compute_margin(full, _find_second(logits, torch.cat(largest), windows))
    return Distribution(candidates, full, margin, candidate_sets.cut_windows(windows, len(sets)) if sets else None)


def _find_second(logits: torch.Tensor, largest: torch.Tensor, windows: Windows) -> torch.Tensor:
    """The second likeliest token's logit minus the largest logit (B,); -inf if its probability is 0."""
    second, last = windows.offsets[:-1] + 1, windows.offsets[1:] - 1
    own = logits.gather(-1, windows.ids[torch.minimum(second, last), None])[:, 0].float()
    return torch.where(second <= last, own - largest, -torch.inf)


def _compute_margin(full: entropy.FullEntropies, second: torch.Tensor) -> torch.Tensor:
    """p1 - p2 (B,), as p1 (1 - e^(z2 - z1)): no digits are lost if the two are close. ``second`` are z2 - z1."""
    return -full.largest * second.expm1()
