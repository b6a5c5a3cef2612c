"""How similar the candidates are: cosine similarities of a nucleus's embedding rows, in O(k d).

Contract: ragged nuclei and an embedding matrix in, one number per row out. No k x k matrix and no
second copy of the embedding matrix is created: rows are gathered and converted to float32 in pieces.

With u_i the unit rows, S = sum u_i and M = sum q_i u_i, every pair sum follows from |S|^2 and
|M|^2 (the identity |sum v_i|^2 = sum |v_i|^2 + sum over i != j of v_i.v_j).
"""

from typing import NamedTuple

import torch
from torch.nn.functional import embedding_bag

from nucleoscope.measure.ragged import choose_sum_dtype, compute_shares, repeat_rows, sum_rows, widen

# Numbers gathered at once: on a CPU a piece should fit in its cache (1 MB in float32), on a GPU
# it should keep the device busy.
PIECE_CPU, PIECE_GPU = 2**18, 2**26


class Similarity(NamedTuple):
    """Per row (B,), float64: mean pairwise cosine, its weighted mean, and the similarity-sensitive entropy."""

    cosine: torch.Tensor
    weighted_cosine: torch.Tensor
    similarity_entropy: torch.Tensor


def compute_inverse_norms(embedding: torch.Tensor) -> torch.Tensor:
    """1 / |row| (V,) float32 of an embedding matrix (V, d); 0 for a row of zeros, which has no
    direction and counts as orthogonal to all others. Computed once per model."""
    norms = torch.cat([_compute_norms(rows) for rows in embedding.split(_choose_rows_per_piece(embedding))]).float()
    return torch.where(norms > 0, norms.reciprocal(), 0)


def compute_similarity(
    ids: torch.Tensor,
    probs: torch.Tensor,
    offsets: torch.Tensor,
    embedding: torch.Tensor,
    inverse_norm: torch.Tensor,
) -> Similarity:
    """Cosine statistics of ragged nuclei.

    ``ids`` (K,) and ``probs`` (K,) are ordered by falling probability within the rows given by ``offsets``
    (B + 1,), as in `nucleus.Nucleus`; ``embedding`` (V, d) has any floating type; ``inverse_norm`` (V,) is
    from `compute_inverse_norms`. If k = 1, both cosines are 1 by convention and the entropy is 0.

    * cosine: mean of u_i.u_j over unordered pairs = (|S|^2 - sum |u_i|^2) / (k (k - 1))
    * weighted_cosine: sum over i != j of q_i q_j u_i.u_j, divided by the sum of q_i q_j
    * similarity_entropy: - sum q_i log (Zq)_i with (Zq)_i = (1 + u_i.M) / 2, the order-1 diversity
      of Leinster and Cobbold ("Measuring diversity: the importance of species similarity",
      Ecology 2012) for one token's candidates, in nats, in [0, entropy].
    """
    sizes, total, first = offsets.diff(), len(ids), offsets[:-1]
    step = _choose_rows_per_piece(embedding)
    parts = [slice(start, start + step) for start in range(0, total, step)]
    inverse = inverse_norm[ids]
    q = compute_shares(probs, offsets)
    # The likeliest token is kept separate in the weighted sums: if it has nearly all the weight,
    # the others would be lost as a difference of numbers close to 1.
    others = q.index_fill(0, first, 0)
    tail = sum_rows(others, offsets)
    # As shares of their own mass, which may be too small for float32.
    others = others / repeat_rows(torch.where(sizes == 1, 1, tail), offsets, total)

    sums = rest = 0  # S, and M without its first term: (B, d)
    squares = torch.empty_like(q)  # |u_i|^2 as actually added: 1 up to rounding, 0 for a zero row
    for part in parts:
        rows, scale = embedding.index_select(0, ids[part]).float(), inverse[part]  # (k', d), (k',)
        bags = (offsets - part.start).clamp(0, len(rows))
        sums = sums + _sum_bags(rows, bags, scale)
        rest = rest + _sum_bags(rows, bags, others[part].float() * scale)
        squares[part] = (_compute_norms(rows) * scale).square()

    head = embedding.index_select(0, ids[first]).float() * inverse[first, None]  # u of the likeliest token (B, d)
    mean = tail[:, None].float() * rest + q[first, None].float() * head  # M (B, d)
    owner = repeat_rows(torch.arange(len(sizes), device=ids.device), offsets, total)
    dots = torch.cat([_compute_dots(embedding, ids[p], mean, owner[p]) for p in parts]) * inverse

    alone = sizes == 1
    pairs = torch.where(alone, 1, sizes * (sizes - 1))
    cosine = (_compute_square_norm(sums) - sum_rows(squares, offsets)) / pairs
    lead = 2 * q[first]
    tail_square = others.square()
    shared = lead * torch.linalg.vecdot(head, rest) + tail * (
        _compute_square_norm(rest) - sum_rows(tail_square * squares, offsets)
    )
    weight = lead + tail * (1 - sum_rows(tail_square, offsets))
    weighted = shared / torch.where(alone, 1, weight)
    # (Zq)_i with Z_ii = 1 exactly, whatever u_i.u_i is after rounding (or for a row of zeros).
    ordinariness = (1 + dots + q * (1 - squares)) / 2
    entropy = -sum_rows(q * torch.maximum(ordinariness, q).clamp_max(1).log(), offsets)
    return Similarity(
        torch.where(alone, 1, cosine).clamp(-1, 1),
        torch.where(alone, 1, weighted).clamp(-1, 1),
        torch.where(alone, 0, entropy).clamp_min(0),
    )


def _choose_rows_per_piece(embedding: torch.Tensor) -> int:
    piece = PIECE_CPU if embedding.device.type == "cpu" else PIECE_GPU
    return max(1, piece // embedding.shape[1])


def _compute_norms(rows: torch.Tensor) -> torch.Tensor:
    """Norms (k,) of ``rows`` (k, d). Over wide rows a float32 sum is biased, and so is a pair's cosine."""
    return torch.linalg.vector_norm(rows, dim=-1, dtype=choose_sum_dtype(rows.device))


def _compute_dots(embedding: torch.Tensor, ids: torch.Tensor, mean: torch.Tensor, owner: torch.Tensor) -> torch.Tensor:
    """Products (k,) of the rows ``ids`` of the embedding with their nuclei's rows of ``mean`` (B, d)."""
    return torch.linalg.vecdot(embedding.index_select(0, ids).float(), mean.index_select(0, owner))


def _sum_bags(rows: torch.Tensor, offsets: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Weighted sums (B, d) of consecutive ``rows`` (k, d) between ``offsets`` (B + 1,)."""
    index = torch.arange(len(rows), device=rows.device)
    return embedding_bag(index, rows, offsets, mode="sum", per_sample_weights=weights, include_last_offset=True)


def _compute_square_norm(rows: torch.Tensor) -> torch.Tensor:
    return widen(rows).square().sum(-1)
