"""How similar the candidates are: cosine similarities of a nucleus's embedding rows, in O(k d).

Contract: ragged nuclei and an embedding matrix in, one number per row out. No k x k matrix and no
second copy of the embedding matrix is created: rows are gathered and converted to float32 in pieces.

With u_i the unit rows, S = sum u_i and M = sum q_i u_i, every pair sum follows from |S|^2 and
|M|^2 (the identity |sum v_i|^2 = sum |v_i|^2 + sum over i != j of v_i.v_j).
"""

from bisect import bisect_right
from typing import NamedTuple

import torch
from torch.nn.functional import embedding_bag

from nucleoscope.measure.ragged import choose_sum_dtype, compute_shares, pick, repeat_rows, sum_rows, widen
from nucleoscope.measure.row_memory import RowMemory

# Numbers gathered at once: on a CPU a piece should fit in its cache (4 MB in float32), on a GPU
# it should keep the device busy.
PIECE_CPU, PIECE_GPU = 2**20, 2**26
WIDE = 32  # candidates per nucleus, on average, from which a product per nucleus is faster on a CPU than one of all


class Directions(NamedTuple):
    """The unit rows u_i = embedding_i * inverse_norm_i of an embedding matrix (V, d) of any floating type.

    ``inverse_norm`` (V,) is float32, and 0 for a row of zeros, which has no direction and counts as orthogonal to
    all others. ``squares`` (V,) float64 are |u_i|^2 as actually added: 1 up to rounding, 0 for a row of zeros.
    """

    embedding: torch.Tensor
    inverse_norm: torch.Tensor
    squares: torch.Tensor


class Similarity(NamedTuple):
    """Per row (B,), float64: mean pairwise cosine, its weighted mean, and the similarity-sensitive entropy."""

    cosine: torch.Tensor
    weighted_cosine: torch.Tensor
    similarity_entropy: torch.Tensor


def find_directions(embedding: torch.Tensor) -> Directions:
    """The directions of an embedding's rows (V, d), without gradients; computed once per model."""
    embedding = embedding.detach()
    norms = torch.cat([_compute_norms(rows) for rows in embedding.split(_choose_rows_per_piece(embedding))])
    narrow = norms.float()
    inverse_norm = torch.where(narrow > 0, narrow.reciprocal(), 0)
    return Directions(embedding, inverse_norm, (norms * inverse_norm).square())


def compute_similarity(
    ids: torch.Tensor, probs: torch.Tensor, offsets: torch.Tensor, directions: Directions
) -> Similarity:
    """Cosine statistics of ragged nuclei.

    ``ids`` (K,) and ``probs`` (K,) are ordered by falling probability within the rows given by ``offsets``
    (B + 1,), as in `nucleus.Nucleus`; ``directions`` are from `find_directions`. If k = 1, both cosines are 1 by
    convention and the entropy is 0.

    * cosine: mean of u_i.u_j over unordered pairs = (|S|^2 - sum |u_i|^2) / (k (k - 1))
    * weighted_cosine: sum over i != j of q_i q_j u_i.u_j, divided by the sum of q_i q_j
    * similarity_entropy: - sum q_i log (Zq)_i with (Zq)_i = (1 + u_i.M) / 2, the order-1 diversity
      of Leinster and Cobbold ("Measuring diversity: the importance of species similarity",
      Ecology 2012) for one token's candidates, in nats, in [0, entropy].
    """
    sizes, total, first = offsets.diff(), len(ids), offsets[:-1]
    q, squares = compute_shares(probs, offsets), pick(directions.squares, ids)
    # The likeliest token is kept separate in the weighted sums: if it has nearly all the weight,
    # the others would be lost as a difference of numbers close to 1.
    others = q.index_fill(0, first, 0)
    tail = sum_rows(others, offsets)
    # As shares of their own mass, which may be too small for float32.
    others = others / repeat_rows(torch.where(sizes == 1, 1, tail), offsets, total)

    sums, rest, head, dots = _add_directions(ids, offsets, q, others, tail, directions)
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
    entropy = 0 - sum_rows(q * torch.maximum(ordinariness, q).clamp_max(1).log(), offsets)
    return Similarity(
        torch.where(alone, 1, cosine).clamp(-1, 1),
        torch.where(alone, 1, weighted).clamp(-1, 1),
        torch.where(alone, 0, entropy).clamp_min(0),
    )


def _add_directions(
    ids: torch.Tensor,
    offsets: torch.Tensor,
    q: torch.Tensor,
    others: torch.Tensor,
    tail: torch.Tensor,
    directions: Directions,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """S, M without the likeliest token and as a mean of its own, and that token's u: (B, d); and all u_i.M (K,).

    The embedding's rows are gathered once, for as many nuclei as fit in a piece; twice for a nucleus that is larger.
    """
    embedding, scale, first = directions.embedding, pick(directions.inverse_norm, ids), offsets[:-1]
    head = embedding.index_select(0, ids[first]).float() * scale[first, None]
    sums, rest, dots = torch.empty_like(head), torch.empty_like(head), torch.empty_like(scale)
    most = _choose_rows_per_piece(embedding)
    memory = RowMemory(embedding, min(most, len(ids)), ids.device) if ids.device.type == "cpu" else None

    def gather(part: slice) -> torch.Tensor:
        return embedding.index_select(0, ids[part]).float() if memory is None else memory.gather(ids[part])

    for rows, parts in _split_nuclei(offsets, len(ids), most):
        gathered = None
        sums[rows] = rest[rows] = 0
        for part in parts:
            gathered = gather(part)  # (k', d)
            bags = (offsets[rows.start : rows.stop + 1] - part.start).clamp(0, len(gathered))
            sums[rows] += _sum_bags(gathered, bags, scale[part])
            rest[rows] += _sum_bags(gathered, bags, others[part].float() * scale[part])
        mean = tail[rows, None].float() * rest[rows] + q[first[rows], None].float() * head[rows]  # M
        for part in parts:
            own = gathered if len(parts) == 1 else gather(part)
            dots[part] = _multiply_nuclei(own, mean, offsets[rows.start : rows.stop + 1])
    return sums, rest, head, dots * scale


def _multiply_nuclei(rows: torch.Tensor, vectors: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """Products (k',) of the rows (k', d) of some nuclei with the vector of each nucleus (B', d).

    A single nucleus may be in part, so that ``offsets`` (B' + 1,) are not those of the rows.
    """
    if len(vectors) == 1:
        return rows @ vectors[0]
    if rows.device.type == "cpu" and len(rows) >= WIDE * len(vectors):
        parts = rows.split(offsets.diff().tolist())
        return torch.cat([torch.mv(part, vector) for part, vector in zip(parts, vectors, strict=True)])
    return torch.linalg.vecdot(rows, repeat_rows(vectors, offsets, len(rows)))


def _split_nuclei(offsets: torch.Tensor, total: int, most: int) -> list[tuple[slice, list[slice]]]:
    """Rows that together have at most ``most`` candidates, with the places of these; one larger row in several parts.

    ``offsets`` are copied to the host only if all rows together have more.
    """
    if total <= most:
        return [(slice(0, len(offsets) - 1), [slice(0, total)])]
    host, found, row = offsets.tolist(), [], 0
    while row < len(host) - 1:
        end = max(row + 1, bisect_right(host, host[row] + most) - 1)
        parts = [slice(start, min(start + most, host[end])) for start in range(host[row], host[end], most)]
        found.append((slice(row, end), parts))
        row = end
    return found


def _choose_rows_per_piece(embedding: torch.Tensor) -> int:
    piece = PIECE_CPU if embedding.device.type == "cpu" else PIECE_GPU
    return max(1, piece // embedding.shape[1])


def _compute_norms(rows: torch.Tensor) -> torch.Tensor:
    """Norms (k,) of ``rows`` (k, d). Over wide rows a float32 sum is biased, and so is a pair's cosine."""
    return torch.linalg.vector_norm(rows, dim=-1, dtype=choose_sum_dtype(rows.device))


def _sum_bags(rows: torch.Tensor, offsets: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Weighted sums (B, d) of consecutive ``rows`` (k, d) between ``offsets`` (B + 1,)."""
    index = torch.arange(len(rows), device=rows.device)
    return embedding_bag(index, rows, offsets, mode="sum", per_sample_weights=weights, include_last_offset=True)


def _compute_square_norm(rows: torch.Tensor) -> torch.Tensor:
    return widen(rows).square().sum(-1)
