"""How similar the tokens of nested candidate sets are, in several geometries, from one gathering of embedding rows.

Contract: windows of candidates (`candidate_sets.Windows`) and a `geometry.Space` in, numbers of every set out, on the
same device. The `LEAD` likeliest tokens of a window are compared pair by pair: the same products serve all sets, and
all geometries that subtract little from them. Of the others, rows are gathered once for all sets and geometries:
between two neighbouring ends of sets, they are summed with the weights of all geometries at once. Every set is a sum of
such tokens and segments, and is compared by the products of their sums. Memory for rows does not depend on how wide the
sets are, and that for their weights is limited. Where cosines without weights are enough, all tokens are in segments.
"""

from collections.abc import Iterator
from itertools import accumulate
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
# Numbers in memory at once: gathered rows, sums (of which there is a copy for a while), and weights (four copies).
PIECE_CPU, PIECE_GPU = 2**20, 2**26
SUMS_CPU, SUMS_GPU = 2**21, 2**28
WEIGHTS_CPU, WEIGHTS_GPU = 2**22, 2**25


class Group(NamedTuple):
    """B' consecutive tokens, in the order of a `Segments`, that are compared at once: their places ``rows``, and how
    many of the first candidates of each are compared one by one, and how many segments of others."""

    rows: slice
    lead: int
    segments: int

    def count_segments(self) -> int:
        """The number of segments of all tokens, with those that pad them."""
        return (self.rows.stop - self.rows.start) * self.segments


class Tails(NamedTuple):
    """What is added up of S segments.

    ``sums`` (S, kinds, G, d) are those of their rows in each geometry, with the scales of the rows as weights, and, if
    there are two ``kinds``, with the scales times the weights of the tokens. ``squares`` (S, kinds, 1 or G) are the
    sums of the squares of the lengths of what was added.
    """

    sums: torch.Tensor
    squares: torch.Tensor


class Segments:
    """The windows of B tokens in M consecutive segments each: the first ``lead`` likeliest candidates are one each, the
    others are cut where a set begins or ends. Some segments are empty.

    Tokens are in an order of their own (``order``), in which those with about as many candidates and segments follow
    each other. All that the methods return is in the order of the windows. `compare` needs the first `LEAD` candidates
    one by one, `compare_unweighted` all in segments (a ``lead`` of 0): ValueError otherwise.
    """

    def __init__(self, windows: Windows, lead: int = LEAD):
        ids, probs, offsets, extents = windows
        self.ids, self.probs, self.lead = ids, probs, lead
        lengths, begins = offsets.diff(), offsets[:-1]
        # the sets that are prefixes in all rows have one bound each
        plain = ((extents[..., 0] == 0) & (extents[..., 1] == extents[..., 3])).all(0)
        self.irregular = torch.nonzero(~plain)[:, 0]
        bounds = torch.cat((extents[:, plain, 3], extents[:, ~plain].flatten(1)), 1).sort(1).values.clamp_min(lead)
        start = pad(bounds[:, :-1], (1, 0), value=lead)
        sizes = bounds - start
        # many are empty, because many sets are the same: those of each row come last, as many as all rows have are cut
        numbers = (sizes > 0).sum(1)
        most = int(numbers.max()) if len(sizes) else 0
        chosen = (sizes == 0).to(torch.int8).argsort(dim=1, stable=True)[:, :most]
        places = torch.arange(lead, device=ids.device).expand(len(start), -1)
        start = torch.cat((places, start.gather(1, chosen)), 1)  # (B, M)
        sizes = torch.cat(((places < lengths[:, None]).to(sizes.dtype), sizes.gather(1, chosen)), 1)
        self.edges = pad(sizes.flatten().cumsum(0), (1, 0))
        # The likeliest token is kept separate in the weighted sums: if it has nearly all the weight, the others would
        # be lost as a difference of numbers close to 1. The others are in units of the second likeliest: p may be tiny.
        second = probs[torch.minimum(begins + 1, offsets[1:] - 1)]
        unit = torch.repeat_interleave(second, lengths, output_size=len(ids))
        self.weights = (probs / unit).index_fill(0, begins, 0)  # (K,)
        place = torch.bucketize(lengths.clamp_max(lead), torch.tensor(LEADS, device=ids.device))
        self.order = (place * (most + 1) + numbers).argsort()
        self.inverse = self.order.argsort()
        ordered = (place, numbers, lengths, begins, second, start, sizes, extents)
        place, numbers, lengths, begins, second, start, self.sizes, self.extents = (
            each[self.order] for each in ordered
        )
        # (3, B): the place in `LEADS`, and the numbers of segments and of the tokens in them
        self.plan = torch.stack((place, numbers, (lengths - lead).clamp_min(0)))
        self.starts = begins[:, None] + start
        places = self.starts[:, :lead].clamp_max(max(0, len(ids) - 1))
        # of the first tokens (B, lead); some are those of other windows
        self.lead_ids, self.lead_probs, self.lead_weights = (pick(each, places) for each in (ids, probs, self.weights))
        # The pairs of a token in a segment with sums of first tokens (see `_sum_lead`), in each set (N, n): with those
        # that are in the set. Such a pair counts twice, as one of two tokens in segments does.
        same = torch.arange(len(plain), device=ids.device)[:, None] == self.irregular
        self.first = 2 * torch.cat((torch.zeros_like(plain)[:, None], plain[:, None], same), 1).float()
        # which segments (B, N, M) are in which set
        place, ends = start[:, None], self.extents[..., None]
        self.members = (place >= ends[:, :, 0]) & (place < ends[:, :, 1])
        self.members |= (place >= ends[:, :, 2]) & (place < ends[:, :, 3])
        self.members &= self.sizes[:, None] > 0
        self.k = self._join(self.sizes)  # (B, N)
        self.mass = self._join(self._sum(widen(probs)))
        squares = self._sum(widen(self.weights).square())
        self.rest, self.squares = self._join(self._sum(widen(self.weights))), self._join(squares)  # (B, N)
        self.tail = self.rest * widen(second)[:, None] / self.mass
        # |u_i|^2 and w_i^2 |u_i|^2 of the tokens in segments (B, T, 2), if each of them has a direction
        self.tail_squares = torch.stack((widen(self.sizes[:, lead:]), squares[:, lead:]), -1)
        self.memory: tuple[Space, RowMemory] | None = None

    def _sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sums (B, M) over the segments of values (K,)."""
        # The rest of a window belongs to no segment only if no set needs it, which does not happen.
        sums = torch.segment_reduce(values, "sum", offsets=self.edges, axis=0)
        return sums.unflatten(0, self.sizes.shape).index_select(0, self.order)

    def _join(self, sums: torch.Tensor) -> torch.Tensor:
        """Sums (B, N) over the sets of sums (B, M) over the segments."""
        return torch.where(self.members, sums[:, None], 0).sum(-1)

    def summarise(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """k, mass and entropy (B, N) of the sets."""
        wide = widen(self.probs)
        entropy = self.mass.log() - self._join(self._sum(wide * wide.log())) / self.mass
        entropy = torch.where(self.k == 1, 0, entropy.clamp_min(0))
        return self.k[self.inverse], self.mass[self.inverse], entropy[self.inverse]

    def compare(self, space: Space) -> torch.Tensor:
        """cosine, weighted_cosine and similarity_entropy (B, N, G, 3) of the sets.

        With k = 1 both cosines are NaN: there is no pair. similarity_entropy is NaN for sets that go beyond the `LEAD`
        likeliest tokens.
        """
        if self.lead != LEAD:
            raise ValueError(f"the first {LEAD} candidates must be single ones, not {self.lead}")
        shape = len(space.maps), *self.k.shape
        sums, top_sums = self.mass.new_empty(2, *shape), self.mass.new_empty(shape)
        entropy = self.probs.new_empty(shape)
        for group, tails in self._split(space, 2):
            pairs, sums[:, :, group.rows], top_sums[:, group.rows] = self._multiply(group, tails, space)
            entropy[:, group.rows] = self._compute_similarity_entropies(group, space, pairs)
            del pairs, tails  # which would be in memory beside the next ones
        rest = self.rest.clamp_min(1e-300)
        top = torch.where(self.extents[..., 0] == 0, 2 * (1 - self.tail), 0)
        weight = top + self.tail * (1 - self.squares / rest.square())
        weighted_sums = top * top_sums / rest + self.tail * sums[1] / rest.square()
        averages = self._average_pairs(sums[0]), _average_pairs(weighted_sums, weight, self.k)
        return torch.stack((*averages, entropy), -1).permute(1, 2, 0, 3)[self.inverse]

    def compare_unweighted(self, space: Space) -> torch.Tensor:
        """cosine (B, N, G) alone, for which sums are enough."""
        if self.lead:
            raise ValueError(f"all candidates must be in segments, but the first {self.lead} are single ones")
        sums = self.mass.new_empty(len(space.maps), *self.k.shape)
        for group, tails in self._split(space, 1):
            products = _multiply_sums(tails.sums.unflatten(0, (-1, group.segments)))
            sums[:, group.rows] = self._add_products(group, products, tails)[0]
            del products, tails
        return self._average_pairs(sums).permute(1, 2, 0)[self.inverse]

    def _average_pairs(self, sums: torch.Tensor) -> torch.Tensor:
        return _average_pairs(sums, self.k * (self.k - 1), self.k)

    def _split(self, space: Space, kinds: int) -> Iterator[tuple[Group, Tails | None]]:
        """Tokens that have about as many candidates and segments each, and whose rows and sums fit in memory, and what
        is added up of their segments, if they have any."""
        cpu, width = self.ids.device.type == "cpu", space.embedding.shape[1]
        most_rows = (PIECE_CPU if cpu else PIECE_GPU) // max(width, self.lead * len(space.maps))
        most_sums = (SUMS_CPU if cpu else SUMS_GPU) // (width * kinds * len(space.maps))
        most_added = (WEIGHTS_CPU if cpu else WEIGHTS_GPU) // (kinds * len(space.maps))
        most_of_group = most_sums if self.lead else most_sums // 8  # without first tokens, nothing else limits a group
        places, numbers, added = self.plan.tolist()
        added = [0, *accumulate(added)]  # up to each token
        leads = [min(LEADS[place], self.lead) for place in places]
        groups, start = list[Group](), 0
        for end in range(1, len(places) + 1):
            if (
                end == len(places)
                or leads[end] > leads[start]
                or numbers[end] > 2 * numbers[start]
                or (end + 1 - start) * leads[end] > most_rows
                or (end + 1 - start) * numbers[end] > most_of_group
                or added[end + 1] - added[start] > most_added
            ):
                groups.append(Group(slice(start, end), leads[start], numbers[end - 1]))
                start = end
        piece, segments, tokens = list[Group](), 0, 0
        for group in groups:
            own = group.count_segments(), added[group.rows.stop] - added[group.rows.start]
            if piece and (segments + own[0] > most_sums or tokens + own[1] > most_added):
                yield from self._add_tails(piece, space, kinds)
                piece, segments, tokens = [], 0, 0
            piece.append(group)
            segments, tokens = segments + own[0], tokens + own[1]
        yield from self._add_tails(piece, space, kinds)

    def _add_tails(self, groups: list[Group], space: Space, kinds: int) -> Iterator[tuple[Group, Tails | None]]:
        """Some groups, each with what is added up of its segments: those of all groups are added at once."""
        counts = [group.count_segments() for group in groups]
        if not sum(counts):
            yield from ((group, None) for group in groups)
            return
        tails = self._sum_rows(groups, space, kinds)
        parts = zip(*(each.split(counts) for each in tails), strict=True)
        for group, count, part in zip(groups, counts, parts, strict=True):
            yield group, Tails(*part) if count else None

    def _multiply(
        self, group: Group, tails: Tails | None, space: Space
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Products of the directions of the first tokens (G, B', L, L), and sums over the pairs of each set.

        The sums (2, G, B', N) are those of u_i.u_j and of w_i w_j u_i.u_j; also the sums (G, B', N) of w_i u_i.u_0,
        where token 0 is the likeliest. No token is multiplied by itself.
        """
        ids = self.lead_ids[group.rows, : group.lead]
        centred = space.gather(ids)
        vectors = [_move_rows(ids, centred, each) for each in space.maps]  # (B', L, d) each
        scale = pick(space.scales, ids)  # (B', L, G)
        pairs = _multiply_pairs(ids, centred, vectors, scale.permute(2, 0, 1), space)
        own = self._weigh(group, self.members[group.rows, :, : group.lead])  # (B', 2, N, L)
        joined = torch.matmul(own.flatten(1, 2), pairs).unflatten(2, own.shape[1:3])
        sums, top_sums = widen((joined * own).sum(-1)).movedim(2, 0), widen(joined[:, :, 1, :, 0])
        if tails is not None:
            lead = self._sum_lead(group, centred, vectors, scale.mT, space)
            products = _multiply_sums(tails.sums.unflatten(0, (len(lead), -1)), lead)
            sums = sums + self._add_products(group, products, tails)
            tail = self.members[group.rows, :, self.lead : self.lead + group.segments].float()
            top_sums = top_sums + widen(torch.matmul(tail, products[:, :, 1, 0].mT)).permute(2, 0, 1)
        return pairs, sums, top_sums

    def _weigh(self, group: Group, chosen: torch.Tensor) -> torch.Tensor:
        """The weights (B', 2, n, L) of the first tokens in sums of those that are ``chosen`` (B', n, L)."""
        own = chosen[:, None].float()
        return torch.cat((own, own * self.lead_weights[group.rows, None, None, : group.lead]), 1)

    def _sum_lead(
        self,
        group: Group,
        centred: torch.Tensor,
        vectors: list[torch.Tensor],
        scale: torch.Tensor,
        space: Space,
    ) -> torch.Tensor:
        """Sums (B', G, 2, n, d) of the directions of first tokens that are in the same set as tokens after them.

        These are the likeliest token alone, all of the first tokens, for sets that are prefixes, and some of them for
        each of the other sets. The likeliest token has a weight in sums of the second kind only where it is alone.
        ``scale`` (B', G, L) are the scales of the rows.
        """
        every = torch.ones_like(self.lead_ids[group.rows, None, : group.lead], dtype=torch.bool)
        some = self.members[group.rows, :, : group.lead].index_select(1, self.irregular)
        weights = pad(self._weigh(group, torch.cat((every, some), 1)), (0, 0, 1, 0))
        weights[:, :, 0, 0] = 1
        weights = (weights[:, None] * scale[:, :, None, None]).contiguous()  # (B', G, 2, n, L)
        sums = centred.new_empty(*weights.shape[:-1], centred.shape[-1])
        common = [place for place, own in enumerate(vectors) if own is centred]
        if common:
            chosen = slice(None) if len(common) == len(vectors) else common
            own = weights[:, chosen]
            found = torch.bmm(own.flatten(1, 3), centred).unflatten(1, own.shape[1:4])
            sums[:, chosen] = found.addcmul_(own.sum(-1, keepdim=True), space.centres[chosen, None, None], value=-1)
        for place, (own, each) in enumerate(zip(vectors, space.maps, strict=True)):
            if own is not centred:
                sums[:, place] = torch.bmm(weights[:, place].flatten(1, 2), own).view_as(sums[:, place])
            elif each.basis is not None:
                sums[:, place] = each.apply(sums[:, place])
        return sums

    def _add_products(self, group: Group, products: torch.Tensor, tails: Tails) -> torch.Tensor:
        """Sums (kinds, G, B', N) over the pairs of each set of which at least one token is in a segment.

        ``products`` (B', G, kinds, n + T, T) are those of the sums of n sets of first tokens (`_sum_lead`), and of all
        T segments, with the segments.
        """
        number, kinds = group.segments, products.shape[2]
        n = products.shape[3] - number
        tail = self.members[group.rows, :, self.lead : self.lead + number].float()  # (B', N, T)
        factors = torch.cat((self.first.expand(len(tail), -1, -1), tail), 2) if n else tail  # (B', N, n + T)
        both = torch.bmm(factors, products.permute(0, 3, 1, 2, 4).flatten(2)).unflatten(2, (-1, kinds, number))
        squares = tails.squares.unflatten(0, (-1, number))  # (B', T, kinds, 1 or G)
        alone = torch.matmul(widen(tail), squares.flatten(2)).unflatten(2, squares.shape[2:])  # (B', N, kinds, 1 or G)
        return widen((both * tail[:, :, None, None]).sum(-1)).permute(3, 2, 0, 1) - alone.permute(2, 3, 0, 1)

    def _compute_similarity_entropies(self, group: Group, space: Space, pairs: torch.Tensor) -> torch.Tensor:
        """similarity_entropy (G, B', N) in nats; NaN for sets that go beyond the first L tokens.

        ``pairs`` are the products (G, B', L, L) of these tokens' directions, and are overwritten.
        """
        rows, lead, _ = group
        q = torch.where(self.members[rows, :, :lead], self.lead_probs[rows, None, :lead], 0)
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

    def _sum_rows(self, groups: list[Group], space: Space, kinds: int) -> Tails:
        """What is added up of the segments after the first tokens of some groups, group by group and token by token."""
        chosen = [(group.rows, slice(self.lead, self.lead + group.segments)) for group in groups if group.segments]
        sizes, starts = (torch.cat([each[part].flatten() for part in chosen]) for each in (self.sizes, self.starts))
        edges = pad(sizes.cumsum(0), (1, 0))
        places = torch.repeat_interleave(starts - edges[:-1], sizes)
        places += torch.arange(len(places), device=places.device)
        ids = pick(self.ids, places)
        scales = pick(space.scales, ids)  # (K', G)
        weights = scales
        if kinds == 2:
            weights = torch.cat((scales, scales * pick(self.weights, places)[:, None]), 1)
        sums = _add_rows(ids, weights, edges, space, self._lend_memory(space))
        norms = torch.segment_reduce(weights, "sum", offsets=edges, axis=0)
        centres = (space.mean + space.centres).repeat(kinds, 1)
        sums = sums.addcmul_(norms[..., None], centres, value=-1).unflatten(1, (kinds, -1))
        for place, each in enumerate(space.maps):
            if each.basis is not None or each.whitening is not None:
                sums[:, :, place] = each.apply(sums[:, :, place])
        if all(each.is_complete for each in space.maps):
            parts = [(group.rows, slice(group.segments)) for group in groups if group.segments]
            squares = torch.cat([self.tail_squares[part].flatten(0, 1) for part in parts])[:, :kinds, None]
        else:
            squares = widen(scales > 0)
            if kinds == 2:
                squares = torch.cat((squares, squares * widen(pick(self.weights, places)).square()[:, None]), 1)
            squares = torch.segment_reduce(squares, "sum", offsets=edges, axis=0).unflatten(1, (kinds, -1))
        return Tails(sums, squares)


def _average_pairs(sums: torch.Tensor, weight: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """Mean cosines (G, B, N) float32 from sums over pairs, and their weight (B, N); NaN with k = 1."""
    alone = k == 1
    return torch.where(alone, torch.nan, (sums / torch.where(alone, 1, weight)).clamp(-1, 1)).float()


def _multiply_sums(sums: torch.Tensor, lead: torch.Tensor | None = None) -> torch.Tensor:
    """Products (B', G, kinds, n + T, T) of sums (B', T, kinds, G, d) with each other, and of ``lead`` (B', G, kinds, n,
    d) with them."""
    sums = sums.permute(0, 3, 2, 1, 4)
    every = sums.contiguous() if lead is None else torch.cat((lead, sums), 3)
    return torch.matmul(every, every[..., every.shape[3] - sums.shape[3] :, :].mT)


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
    shape = weights.shape[1], space.embedding.shape[1]
    sums = torch.zeros(len(sizes), *shape, device=device)
    # what pads a segment has the last of these, with a weight of 0
    ids, weights = pad(ids, (0, 1)), pad(weights, (0, 0, 0, 1))
    counts = (sizes + CHUNKS[-1] - 1) // CHUNKS[-1]
    segment = torch.repeat_interleave(counts)
    part = torch.arange(len(segment), device=device) - (counts.cumsum(0) - counts)[segment]
    start = edges[segment] + part * CHUNKS[-1]
    end = torch.minimum(start + CHUNKS[-1], edges[segment + 1])
    kind = torch.bucketize(end - start, torch.tensor(CHUNKS, device=device))
    most = (PIECE_CPU if device.type == "cpu" else PIECE_GPU) // (shape[0] * shape[1])
    for place, size in enumerate(CHUNKS):
        index, at_once = torch.arange(size, device=device), max(1, _count_added(space) // size)
        for chosen in _split(torch.nonzero(kind == place)[:, 0], most):
            places = start[chosen][:, None] + index
            places = torch.where(places < end[chosen][:, None], places, len(ids) - 1)
            own, factors = pick(ids, places), pick(weights, places).mT
            added = sums.new_empty(len(chosen), *shape)
            for row in range(0, len(chosen), at_once):
                rows = slice(row, row + at_once)
                torch.bmm(factors[rows], space.gather_raw(own[rows], memory), out=added[rows])
            sums.index_add_(0, segment[chosen], added)
    return sums


def _split(places: torch.Tensor, most: int) -> tuple[torch.Tensor, ...]:
    """``places`` (n,) in parts of at most this many, or of one; no part is empty."""
    return places.split(max(1, most)) if len(places) else ()
