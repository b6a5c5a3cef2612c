"""How similar the tokens of nested candidate sets are, in several geometries, from one gathering of embedding rows.

Contract: windows of candidates (`candidate_sets.Windows`) and a `geometry.Space` in, numbers of every set out, on the
same device. The `LEAD` likeliest tokens of a window are compared pair by pair: the same products serve all sets, and
all geometries that subtract little from them. Of the others, rows are gathered once for all sets and geometries:
between two neighbouring ends of sets, they are summed with the weights of all geometries at once. Every set is a sum of
such tokens and segments, and is compared by the products of their sums. Memory for rows does not depend on how wide the
sets are.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch.nn.functional import pad

from nucleoscope.measure.candidate_sets import Windows
from nucleoscope.measure.geometry import Map, Space
from nucleoscope.measure.ragged import pick, widen
from nucleoscope.measure.row_memory import RowMemory
from nucleoscope.variants import MOST_PAIRS

# Rows that are summed at once: a segment is divided into the largest, and padded to one.
CHUNKS = (8, 16, 32, 64, 128, 256)
LEAD = MOST_PAIRS  # tokens that are compared one by one
# Windows that are compared at once are padded to one of these. With a top-k set of 50, most windows have 50 tokens.
LEADS = (2, 4, 8, 16, 32, 50, LEAD)
LEAST_UNLIKE = 1e-6  # 1 - c: if all directions are the same, similarity to chance is 0 / 0, and the value missing
# Numbers in memory at once: gathered rows, and sums.
PIECE_CPU, PIECE_GPU = 2**20, 2**26
SUMS_CPU, SUMS_GPU = 2**21, 2**28


class Group(NamedTuple):
    """Tokens that are compared at once: their places ``rows`` (B',), and how many of the first candidates of each are
    compared one by one, and how many segments of others."""

    rows: torch.Tensor
    lead: int
    segments: int


class Segments:
    """The windows of B tokens in M consecutive segments each: the first `LEAD` likeliest candidates are one each, the
    others are cut where a set begins or ends. Some segments are empty."""

    def __init__(self, windows: Windows):
        ids, probs, offsets, extents = windows
        self.ids, self.probs, self.extents = ids, probs, extents
        self.lengths, begins = offsets.diff(), offsets[:-1]
        # the sets that are prefixes in all rows have one bound each
        plain = ((extents[..., 0] == 0) & (extents[..., 1] == extents[..., 3])).all(0)
        bounds = torch.cat((extents[:, plain, 3], extents[:, ~plain].flatten(1)), 1).sort(1).values.clamp_min(LEAD)
        start = pad(bounds[:, :-1], (1, 0), value=LEAD)
        sizes = bounds - start
        # many are empty, because many sets are the same: those of each row come last, as many as all rows have are cut
        most = int((sizes > 0).sum(1).max()) if len(sizes) else 0
        order = (sizes == 0).to(torch.int8).argsort(dim=1, stable=True)[:, :most]
        places = torch.arange(LEAD, device=ids.device).expand(len(start), -1)
        start = torch.cat((places, start.gather(1, order)), 1)  # (B, M)
        self.sizes = torch.cat(((places < self.lengths[:, None]).to(sizes.dtype), sizes.gather(1, order)), 1)
        self.starts = begins[:, None] + start
        self.places = self.starts[:, :LEAD].clamp_max(max(0, len(ids) - 1))
        self.lead_ids = ids[self.places]  # (B, LEAD), some of other tokens
        self.memory: tuple[Space, RowMemory] | None = None
        # which segments (B, N, M) are in which set
        place, ends = start[:, None], extents[..., None]
        self.members = (place >= ends[:, :, 0]) & (place < ends[:, :, 1])
        self.members |= (place >= ends[:, :, 2]) & (place < ends[:, :, 3])
        self.members &= self.sizes[:, None] > 0
        self.k = self._join(self.sizes)  # (B, N)
        self.mass = self._join(self._sum(widen(probs)))
        # The likeliest token is kept separate in the weighted sums: if it has nearly all the weight, the others would
        # be lost as a difference of numbers close to 1. The others are in units of the second likeliest: p may be tiny.
        second = torch.minimum(begins + 1, offsets[1:] - 1)
        index = torch.repeat_interleave(torch.arange(len(start), device=ids.device), self.lengths, output_size=len(ids))
        self.weights = (probs / probs[second][index]).index_fill(0, begins, 0)  # (K,)
        self.rest = self._join(self._sum(widen(self.weights)))  # (B, N)
        self.tail = self.rest * widen(probs[second])[:, None] / self.mass
        squares = self._sum(widen(self.weights).square())
        self.squares = self._join(squares)
        # |u_i|^2 and w_i^2 |u_i|^2 of the tokens in segments, if each of them has a direction
        self.tail_squares = self.sizes[:, LEAD:], squares[:, LEAD:]

    def _sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sums (B, M, ...) over the segments of values (K, ...)."""
        # The rest of a window belongs to no segment only if no set needs it, which does not happen.
        edges = pad(self.sizes.flatten().cumsum(0), (1, 0))
        return torch.segment_reduce(values, "sum", offsets=edges, axis=0).unflatten(0, self.sizes.shape)

    def _join(self, sums: torch.Tensor) -> torch.Tensor:
        """Sums (B, N) over the sets of sums (B, M) over the segments."""
        return torch.where(self.members, sums[:, None], 0).sum(-1)

    def summarise(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """k, mass and entropy (B, N) of the sets."""
        wide = widen(self.probs)
        entropy = self.mass.log() - self._join(self._sum(wide * wide.log())) / self.mass
        return self.k, self.mass, torch.where(self.k == 1, 0, entropy.clamp_min(0))

    def split(self, space: Space) -> Iterator[Group]:
        """Tokens that have about as many candidates and segments each, and whose rows and sums fit in memory."""
        cpu, width = self.ids.device.type == "cpu", space.embedding.shape[1]
        most_rows = (PIECE_CPU if cpu else PIECE_GPU) // max(width, LEAD * len(space.maps))
        most_sums = (SUMS_CPU if cpu else SUMS_GPU) // (width * 2 * len(space.maps))
        place = torch.bucketize(self.lengths.clamp_max(LEAD), torch.tensor(LEADS, device=self.ids.device))
        numbers = (self.sizes[:, LEAD:] > 0).sum(1)
        order = (place * (self.sizes.shape[1] + 1) + numbers).argsort()
        places, numbers = torch.stack((place, numbers))[:, order].tolist()
        start = 0
        for end in range(1, len(places) + 1):
            if (
                end == len(places)
                or places[end] > places[start]
                or numbers[end] > 2 * numbers[start]
                or (end + 1 - start) * LEADS[places[end]] > most_rows
                or (end + 1 - start) * numbers[end] > most_sums
            ):
                yield Group(order[start:end], LEADS[places[start]], numbers[end - 1])
                start = end

    def compare(self, group: Group, space: Space) -> torch.Tensor:
        """cosine, weighted_cosine and similarity_entropy (B', N, G, 3) of the sets of some tokens.

        With k = 1 both cosines are NaN: there is no pair. similarity_entropy is NaN for sets that go beyond the `LEAD`
        likeliest tokens.
        """
        pairs, (sums, weighted_sums), top_sums = self._multiply(group, space, 2)
        entropy = self._compute_similarity_entropies(group, space, pairs)
        has_top = self.extents[group.rows, :, 0] == 0
        k, tail, rest, squares = (each[group.rows] for each in (self.k, self.tail, self.rest, self.squares))
        rest = rest.clamp_min(1e-300)
        top = torch.where(has_top, 2 * (1 - tail), 0)
        weight = top + tail * (1 - squares / rest.square())
        weighted_sums = top * top_sums / rest + tail * weighted_sums / rest.square()
        averages = _average_pairs(sums, k * (k - 1), k), _average_pairs(weighted_sums, weight, k)
        return torch.stack((*averages, entropy), -1).permute(1, 2, 0, 3)

    def compare_unweighted(self, group: Group, space: Space) -> torch.Tensor:
        """cosine (B', N, G) alone, for which half of the sums are enough."""
        _, (sums,), _ = self._multiply(group, space, 1)
        k = self.k[group.rows]
        return _average_pairs(sums, k * (k - 1), k).permute(1, 2, 0)

    def _multiply(self, group: Group, space: Space, kinds: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Products of the directions of the first tokens (G, B', L, L), and sums over the pairs of each set.

        The sums (kinds, G, B', N) are those of u_i.u_j, and if there are two ``kinds`` those of w_i w_j u_i.u_j; also
        the sums (G, B', N) of w_i u_i.u_0 (of u_i.u_0 with one kind), where token 0 is the likeliest. No token is
        multiplied by itself.
        """
        rows, lead, number = group
        ids = self.lead_ids[rows, :lead]
        centred = space.gather(ids)
        vectors = [_move_rows(ids, centred, each) for each in space.maps]  # (B', L, d) each
        scale = pick(space.scales, ids).permute(2, 0, 1)  # (G, B', L)
        pairs = _multiply_pairs(ids, centred, vectors, scale, space)
        own = self.members[rows, None, :, :lead].float()  # (B', kinds, N, L)
        if kinds == 2:
            own = torch.cat((own, own * self.weights[self.places[rows, None, None, :lead]]), 1)
        joined = torch.matmul(own.flatten(1, 2), pairs).unflatten(2, own.shape[1:3])
        sums, top_sums = widen((joined * own).sum(-1)), widen(joined[:, :, -1, :, 0])
        if number:
            tail = self.members[rows, None, :, LEAD : LEAD + number].float()  # (B', 1, N, T)
            added, self_products = self._sum_rows(group, space, kinds)
            for place, each in enumerate(space.maps):
                moved = each.apply(added[:, :, place])  # (B', kinds, T, d)
                cross = torch.bmm(vectors[place], moved.flatten(1, 2).mT)
                if each.centre is not None and vectors[place] is centred:
                    cross -= (moved @ each.centre).flatten(1)[:, None]
                cross = (cross * scale[place, ..., None]).unflatten(2, (kinds, number)).transpose(1, 2)
                both = 2 * torch.matmul(own, cross) + torch.matmul(tail, torch.matmul(moved, moved.mT))
                sums[place] += (both * tail).sum(-1)
                top_sums[place] += torch.matmul(tail[:, 0], cross[:, -1, 0, :, None])[..., 0]
            sums -= torch.matmul(widen(tail), self_products)[..., 0]
        return pairs, sums.movedim(2, 0), top_sums

    def _compute_similarity_entropies(self, group: Group, space: Space, pairs: torch.Tensor) -> torch.Tensor:
        """similarity_entropy (G, B', N) in nats; NaN for sets that go beyond the first L tokens.

        ``pairs`` are the products (G, B', L, L) of these tokens' directions, and are overwritten.
        """
        rows, lead, _ = group
        q = torch.where(self.members[rows, :, :lead], self.probs[self.places[rows, None, :lead]], 0)
        q /= q.sum(-1, keepdim=True).clamp_min(1e-30)
        expected = space.expected[:, None, None, None]
        unlike = torch.where(1 - expected > LEAST_UNLIKE, 1 - expected, torch.nan)
        similar = pairs.sub_(expected).clamp_min_(0)  # (1 - c) Z
        similar.diagonal(dim1=2, dim2=3).zero_()
        ordinary = q + torch.matmul(q, similar) / unlike  # (Zq)_i, with Z_ii = 1 exactly
        entropy = 0 - torch.special.xlogy(q, ordinary.clamp_max_(1)).sum(-1)
        return torch.where(self.extents[rows, :, 3] <= lead, entropy.clamp_min(0), torch.nan)

    def _lend_memory(self, space: Space) -> RowMemory | None:
        """Memory for the rows that are added at once; None on other devices than a CPU."""
        if space.mean.device.type != "cpu":
            return None
        if self.memory is None or self.memory[0] is not space:
            self.memory = space, space.allocate(max(_count_added(space), CHUNKS[-1]))
        return self.memory[1]

    def _sum_rows(self, group: Group, space: Space, kinds: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Sums (B', kinds, G, T, d) of centred rows in the T segments after the first tokens.

        For each geometry they have its scales as weights, and then the scales times the weights of the tokens. Also
        sums (1 or G, B', kinds, T, 1) of the squares of what was added to the sums of directions.
        """
        rows, number = group.rows, group.segments
        sizes = self.sizes[rows, LEAD : LEAD + number]
        shape, sizes = sizes.shape, sizes.flatten()
        edges = pad(sizes.cumsum(0), (1, 0))
        places = torch.repeat_interleave(self.starts[rows, LEAD : LEAD + number].flatten() - edges[:-1], sizes)
        places += torch.arange(len(places), device=places.device)
        ids = pick(self.ids, places)
        scales = pick(space.scales, ids)  # (K', G)
        weights = scales
        if kinds == 2:
            weights = torch.cat((scales, scales * pick(self.weights, places)[:, None]), 1)
        sums = _add_rows(ids, weights, edges, space, self._lend_memory(space))
        norms = torch.segment_reduce(weights, "sum", offsets=edges, axis=0)
        centres = torch.stack([space.mean if each.centre is None else space.mean + each.centre for each in space.maps])
        sums.addcmul_(norms[..., None], centres.repeat(kinds, 1), value=-1)
        if all(each.is_complete for each in space.maps):
            squares = torch.stack([widen(each[rows, :number]) for each in self.tail_squares[:kinds]], 1)[None]
        else:
            squares = widen(scales > 0)
            if kinds == 2:
                squares = torch.cat((squares, squares * widen(pick(self.weights, places)).square()[:, None]), 1)
            squares = torch.segment_reduce(squares, "sum", offsets=edges, axis=0)
            squares = squares.unflatten(1, (kinds, -1)).unflatten(0, shape).permute(3, 0, 2, 1)
        return sums.view(*shape, kinds, -1, sums.shape[-1]).permute(0, 2, 3, 1, 4), squares[..., None]


def _average_pairs(sums: torch.Tensor, weight: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """Mean cosines (G, B', N) float32 from sums over pairs, and their weight (B', N); NaN with k = 1."""
    alone = k == 1
    return torch.where(alone, torch.nan, (sums / torch.where(alone, 1, weight)).clamp(-1, 1)).float()


def _move_rows(ids: torch.Tensor, centred: torch.Tensor, each: Map) -> torch.Tensor:
    """Rows (B', L, d) of some tokens ``ids`` (B', L) in a geometry; the ``centred`` ones themselves if what it changes
    can be subtracted from their products."""
    if each.rows is not None:
        return pick(each.rows, ids)
    if each.whitening is not None:  # which takes long, and many tokens occur more than once
        different, index = torch.unique(ids, return_inverse=True)
        moved = each.whitening.new_empty(len(different), centred.shape[-1])
        moved[index] = centred
        return pick(each.apply(moved), index)
    if each.inexact is not None and bool(pick(each.inexact, ids).any()):
        return each.move(centred)
    return centred


def _multiply_pairs(
    ids: torch.Tensor, centred: torch.Tensor, rows: list[torch.Tensor], scale: torch.Tensor, space: Space
) -> torch.Tensor:
    """Products (G, B', L, L) of the directions of some tokens ``ids`` (B', L), 0 of a token with itself.

    ``rows`` are their rows (B', L, d) in each geometry, or the ``centred`` ones; ``scale`` (G, B', L) are their scales.
    """
    found, products = scale.new_empty(*scale.shape, ids.shape[1]), None
    for each, own, result in zip(space.maps, rows, found, strict=True):
        if own is not centred:
            torch.bmm(own, own.mT, out=result)
            continue
        products = torch.bmm(own, own.mT) if products is None else products
        if each.left is None:
            result.copy_(products)
        else:
            torch.baddbmm(products, pick(each.left, ids), pick(each.right, ids).mT, alpha=-1, out=result)
    found.mul_(scale[..., None]).mul_(scale[:, :, None])
    found.diagonal(dim1=2, dim2=3).zero_()
    return found


def _count_added(space: Space) -> int:
    """How many rows are added at once."""
    return (PIECE_CPU if space.mean.device.type == "cpu" else PIECE_GPU) // len(space.mean)


def _add_rows(
    ids: torch.Tensor,
    weights: torch.Tensor,
    edges: torch.Tensor,
    space: Space,
    memory: RowMemory | None,
) -> torch.Tensor:
    """Sums (S, W, d) of the embedding's rows in S segments with several ``weights`` (K, W).

    ``ids`` (K,) are those of the segments, one after another, between ``edges`` (S + 1,). The rows are in the
    ``memory`` for a while, if there is some.
    """
    device, sizes = ids.device, edges.diff()
    sums = torch.zeros(len(sizes), weights.shape[1], space.embedding.shape[1], device=device)
    # what pads a segment has the last of these, with a weight of 0
    ids, weights = pad(ids, (0, 1)), pad(weights, (0, 0, 0, 1))
    counts = (sizes + CHUNKS[-1] - 1) // CHUNKS[-1]
    segment = torch.repeat_interleave(counts)
    part = torch.arange(len(segment), device=device) - (counts.cumsum(0) - counts)[segment]
    start = edges[segment] + part * CHUNKS[-1]
    end = torch.minimum(start + CHUNKS[-1], edges[segment + 1])
    kind = torch.bucketize(end - start, torch.tensor(CHUNKS, device=device))
    for place, size in enumerate(CHUNKS):
        index = torch.arange(size, device=device)
        for chosen in _split(torch.nonzero(kind == place)[:, 0], _count_added(space) // size):
            places = start[chosen][:, None] + index
            places = torch.where(places < end[chosen][:, None], places, len(ids) - 1)
            added = torch.bmm(pick(weights, places).mT, space.gather_raw(pick(ids, places), memory))
            sums.index_add_(0, segment[chosen], added)
    return sums


def _split(places: torch.Tensor, most: int) -> tuple[torch.Tensor, ...]:
    """``places`` (n,) in parts of at most this many, or of one; no part is empty."""
    return places.split(max(1, most)) if len(places) else ()
