"""Cosine similarities of single pairs: each candidate with the token taken, and the likeliest with each other.

Contract: the candidates of n tokens and the directions of an embedding in, float16 numbers out, on the host. These
are for readers, who look at one choice at a time, and need the embedding, which no file has; what is measured of a set
of candidates is in `cosine`.
"""

from typing import NamedTuple

import torch

from nucleoscope.measure.cosine import PIECE_CPU, PIECE_GPU, Directions

LARGEST = 10  # candidates whose pairs are kept


class CandidateCosines(NamedTuple):
    """``taken`` (K,): each candidate's cosine with the token taken of its choice.

    ``pairs`` (n, 45): those of the pairs of the `LARGEST` likeliest, in the order (0, 1), (0, 2), (1, 2), (0, 3), ...
    so that m candidates have the first m (m - 1) / 2 of a row; the others are NaN.
    """

    taken: torch.Tensor
    pairs: torch.Tensor


def compare_candidates(
    directions: Directions, tokens: torch.Tensor, ids: torch.Tensor, sizes: torch.Tensor
) -> CandidateCosines:
    """Compares the candidates ``ids`` (K,) of n choices, at which ``tokens`` (n,) were taken; ``sizes`` (n,) each.

    Embedding rows are gathered in pieces, so that memory does not depend on n or K.
    """
    device = directions.embedding.device
    limit = PIECE_CPU if device.type == "cpu" else PIECE_GPU
    rows = max(1, limit // (directions.embedding.shape[1] * LARGEST))
    tokens, ids, sizes = (values.to(device, torch.long) for values in (tokens, ids, sizes))
    owners = torch.arange(len(tokens), device=device).repeat_interleave(sizes)
    taken = [
        torch.linalg.vecdot(find_units(directions, part), find_units(directions, tokens[owner]))
        for part, owner in zip(ids.split(rows * LARGEST), owners.split(rows * LARGEST), strict=True)
    ]
    starts = sizes.cumsum(0) - sizes
    pairs = [
        _compare_likeliest(directions, ids, *part) for part in zip(starts.split(rows), sizes.split(rows), strict=True)
    ]
    return CandidateCosines(*(torch.cat(parts).clamp(-1, 1).half().cpu() for parts in (taken, pairs)))


def _compare_likeliest(
    directions: Directions, ids: torch.Tensor, starts: torch.Tensor, sizes: torch.Tensor
) -> torch.Tensor:
    """The pairs (n, 45) of the likeliest candidates of n choices, which begin at ``starts`` in ``ids``."""
    places = torch.arange(LARGEST, device=ids.device)
    inside = places < sizes[:, None]
    chosen = ids[torch.where(inside, starts[:, None] + places, starts[:, None])]  # (n, 10)
    units = find_units(directions, chosen.flatten()).view(*chosen.shape, directions.embedding.shape[1])
    later, earlier = torch.tril_indices(LARGEST, LARGEST, -1, device=ids.device)
    found = (units @ units.mT)[:, later, earlier]
    return torch.where(inside[:, later], found, torch.nan)


def find_units(directions: Directions, ids: torch.Tensor) -> torch.Tensor:
    """The unit rows (k, d) of some ids, float32."""
    return directions.embedding.index_select(0, ids).float() * directions.inverse_norm[ids, None]
