"""What is measured of each token in every variant: the same quantities, of other candidate sets in other geometries.

Contract: logits in, one tensor of numbers out, on the same device; sampling does not depend on it. The likeliest
tokens of a window are compared one by one. Further rows are gathered once for all sets and geometries: between two
neighbouring ends of sets, they are summed with the weights of all geometries at once. Every set is a sum of such tokens
and segments, and is compared by the products of their sums. Rows are gathered once more for the pairs of small sets.
Memory for rows does not depend on how wide the sets are.

``similarity_entropy`` is the uncapped form -sum q_i log (Zq)_i, Z_ij = max(0, (u_i.u_j - c) / (1 - c)), Z_ii = 1,
where c is the mean cosine of two tokens of the vocabulary in that geometry (Leinster and Cobbold 2012, order 1). It
needs every pair, and is computed for sets within the `Geometry.most_pairs` likeliest tokens. It is NaN for others.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch.nn.functional import pad
from transformers import PreTrainedModel

from nucleoscope.measure.candidate_sets import Windows, find_windows
from nucleoscope.measure.geometry import Map, Space, build_spaces, count_usage
from nucleoscope.measure.model_facts import find_embedding_matrix, find_output_matrix
from nucleoscope.measure.ragged import pick, widen
from nucleoscope.measure.row_memory import RowMemory
from nucleoscope.variants import OF_SET, OF_VARIANT, Layout, Selection, parse

# Rows that are summed at once: a segment is divided into the largest, and padded to one.
CHUNKS = (8, 16, 32, 64, 128, 256)
# Tokens that are compared one by one, further ones as sums of segments: as many as a geometry that multiplies by a
# matrix has pairs of, or more.
LEAD = 16
LEAST_UNLIKE = 1e-6  # 1 - c: if all directions are the same, similarity to chance is 0 / 0, and the value missing
PAIRS = (2, 4, 8, 16, 32, 50, 64)  # windows whose pairs are multiplied at once are padded to one of these
# Numbers in memory at once: gathered rows, and sums.
PIECE_CPU, PIECE_GPU = 2**20, 2**26
SUMS_CPU, SUMS_GPU = 2**21, 2**28


class Variants:
    """Measures tokens in the ``selection`` of variants, in the spaces of a model.

    ``embedding`` (V, d) and ``output`` (V, d') or None, and ``usage`` (V,), are those of `geometry.build_spaces`.
    ``layout`` names the sets and geometries that are measured.
    """

    def __init__(self, selection: Selection, embedding: torch.Tensor, output: torch.Tensor | None, usage: torch.Tensor):
        self.sets, self.usage = selection.sets, usage
        self.spaces = build_spaces(selection.geometries, embedding, output, usage)
        geometries = [each.geometry.name for space in self.spaces for each in space.maps]
        self.layout = Layout([each.name for each in self.sets], geometries)

    def create_empty(self) -> torch.Tensor:
        """The numbers (0, N, 3 + 3 G) of no tokens, on the host."""
        return torch.empty(0, len(self.layout.candidates), self.layout.width)

    def describe(self, texts: str) -> dict[str, Any]:
        """What run.json says of the variants; ``texts`` says in words what the usage was counted in."""
        found: dict[str, Any] = self.layout._asdict()
        if "usage_centred" in self.layout.geometry:
            counted = {"tokens": int(self.usage.sum()), "different": int((self.usage > 0).sum())}
            found["usage_centred"] = {"weights": f"tokens of the {texts}"} | counted
        return found

    @torch.inference_mode()
    def measure(self, logits: torch.Tensor, full_entropy: torch.Tensor) -> torch.Tensor:
        """The numbers (B, N, 3 + 3 G) float32 of tokens with these logits (B, V), divided by the temperature.

        For each of the N sets k, mass and entropy (nats), then for each of the G geometries cosine, weighted_cosine
        and similarity_entropy (nats). With k = 1 both cosines are NaN: there is no pair. ``full_entropy`` (B,) is H(p).
        """
        return self.measure_windows(find_windows(logits, full_entropy, self.sets))

    @torch.inference_mode()
    def measure_windows(self, windows: Windows) -> torch.Tensor:
        """The same of tokens of which the `sets` have been found."""
        width = sum(space.scales.shape[1] for space in self.spaces)
        size = (*windows.extents.shape[:2], len(OF_SET) + width * len(OF_VARIANT))
        values = torch.empty(size, dtype=torch.float32, device=windows.ids.device)
        segments = Segments(windows)
        values[..., 0], values[..., 1], values[..., 2] = segments.summarise()
        column = len(OF_SET)
        for space in self.spaces:
            end = column + len(OF_VARIANT) * len(space.maps)
            own = values[..., column:end].unflatten(-1, (len(space.maps), len(OF_VARIANT)))
            for rows in segments.split(space):
                own[rows, ..., :2] = segments.compare(rows, space)
            own[..., 2] = compute_similarity_entropies(windows, space, segments)
            column = end
        return values


@torch.inference_mode()
def create_variants(model: PreTrainedModel, texts: Iterable[list[int]], setting: str) -> Variants | None:
    """What measures the variants that the ``setting`` names, for a model; None if it names none.

    ``texts`` are the ids of the run's prompts, with what is scored: usage is counted in them.
    """
    selection = parse(setting)
    if selection is None:
        return None
    embedding = find_embedding_matrix(model)
    usage = count_usage(texts, len(embedding))
    wanted = any(each.name == "output" for each in selection.geometries)  # it may be copied
    return Variants(selection, embedding, find_output_matrix(model) if wanted else None, usage)


def find_layout(variants: Variants | None) -> Layout | None:
    """The names of what ``variants`` measures; None if nothing is."""
    return None if variants is None else variants.layout


class Segments:
    """The windows of B tokens in M consecutive segments each: the first `LEAD` likeliest tokens are one each, the
    others are cut where a set begins or ends. Some segments are empty."""

    def __init__(self, windows: Windows):
        ids, probs, offsets, extents = windows
        self.ids, self.probs, self.offsets, self.first = ids, probs, offsets, offsets[:-1]
        lengths = offsets.diff()
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
        self.sizes = torch.cat(((places < lengths[:, None]).to(sizes.dtype), sizes.gather(1, order)), 1)
        self.starts = self.first[:, None] + start
        self.lead = ids[self.starts[:, :LEAD].clamp_max(max(0, len(ids) - 1))]  # (B, LEAD), some of other tokens
        self.whitened: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}  # by geometry, of those that have a matrix
        self.memory: tuple[Space, RowMemory] | None = None
        # which segments (B, N, M) are in which set
        place, extents = start[:, None], extents[..., None]
        self.members = ((place >= extents[:, :, 0]) & (place < extents[:, :, 1])) | (
            (place >= extents[:, :, 2]) & (place < extents[:, :, 3])
        )
        self.members &= self.sizes[:, None] > 0
        self.share = self._sum(widen(probs))  # (B, M)
        self.has_first = extents[:, :, 0, 0] == 0
        self.k = self._join(self.sizes)  # (B, N)
        self.mass = self._join(self.share)
        # The likeliest token is kept separate in the weighted sums: if it has nearly all the weight, the others would
        # be lost as a difference of numbers close to 1. The others are in units of the second likeliest: p may be tiny.
        second = torch.minimum(self.first + 1, offsets[1:] - 1)
        index = torch.repeat_interleave(torch.arange(len(start), device=ids.device), lengths, output_size=len(ids))
        self.weights = (probs / probs[second][index]).index_fill(0, self.first, 0)  # (K,)
        self.rest = self._join(self._sum(widen(self.weights)))
        squares = self._sum(widen(self.weights).square())
        self.squares = self._join(squares)
        # |u_i|^2 and w_i^2 |u_i|^2 of the tokens after the first, if each of them has a direction
        self.known = self.sizes[:, LEAD:], squares[:, LEAD:]
        self.tail = self.rest * widen(probs[second])[:, None] / self.mass

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

    def split(self, space: Space) -> Iterator[torch.Tensor]:
        """Groups of tokens that have about as many segments each, and whose sums fit in memory: their places (B',)."""
        numbers, order = (self.sizes[:, LEAD:] > 0).sum(1).sort()
        limit = (SUMS_CPU if self.ids.device.type == "cpu" else SUMS_GPU) // space.embedding.shape[1]
        host, start = numbers.tolist(), 0
        for end in range(1, len(host) + 1):
            if (
                end == len(host)
                or host[end] > 2 * host[start]
                or ((end + 1 - start) * (LEAD + host[end] * 2 * len(space.maps)) > limit)
            ):
                yield order[start:end]
                start = end

    def compare_unweighted(self, rows: slice | torch.Tensor, space: Space) -> torch.Tensor:
        """cosine (B', N, G) alone, for which half of the sums are enough."""
        (products,), known = self._multiply(rows, space, 1)
        cosine = self._average(products, rows, known[0])
        one = (self.k[rows] == 1)[:, None]
        return torch.where(one, torch.nan, cosine.clamp(-1, 1)).transpose(1, 2).float()

    def _average(self, products: torch.Tensor, rows: slice | torch.Tensor, known: torch.Tensor) -> torch.Tensor:
        """The mean cosines (B', G, N) of pairs, from products (B', G, M', M') of the segments' sums of directions.

        ``known`` (B', G, N) are the products of directions with themselves among them.
        """
        members, k = self.members[rows, None, :, : products.shape[-1]].float(), self.k[rows][:, None]
        square = (torch.matmul(members, products) * members).sum(-1)
        return (square - known) / (k * (k - 1)).clamp_min(1)

    def compare(self, rows: slice | torch.Tensor, space: Space) -> torch.Tensor:
        """cosine and weighted_cosine (B', N, G, 2) of the sets of some tokens.

        With S a set's sum of its segments' sums, |S|^2 is the sum of the products of all pairs of segments.
        """
        (products, weighted), known = self._multiply(rows, space, 2)
        factors = self._weigh_lead(rows, products.shape[-1])
        members = self.members[rows, None, :, : products.shape[-1]].float() * factors  # (B', 1, N, M')
        numbers = (self.has_first, self.k, self.tail, self.rest, self.squares)
        first, k, tail, rest, squares = (each[rows][:, None] for each in numbers)  # (B', 1, N) each
        rest = rest.clamp_min(1e-300)
        lead = torch.where(first, 2 * (1 - tail), 0)
        cosine = self._average(products, rows, known[0])
        shared = torch.matmul(members, weighted[..., :1])[..., 0] / rest
        square = (torch.matmul(members, weighted) * members).sum(-1)
        inner = (square - known[1]) / rest.square()
        weight = lead + tail * (1 - squares / rest.square())
        both = torch.stack((cosine, (lead * shared + tail * inner) / torch.where(k == 1, 1, weight)), -1)
        return torch.where((k == 1)[..., None], torch.nan, both.clamp(-1, 1)).transpose(1, 2).float()

    def _weigh_lead(self, rows: slice | torch.Tensor, number: int) -> torch.Tensor:
        """The weights (B', 1, 1, M') of the first tokens, and 1 for the other segments, which are weighted sums."""
        places = self.starts[rows, :LEAD].clamp_max(len(self.weights) - 1)
        return pad(self.weights[places], (0, number - LEAD), value=1)[:, None, None]

    def _multiply(
        self, rows: slice | torch.Tensor, space: Space, kinds: int
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Products (B', G, M', M') of all pairs of the M' segments that some of these tokens have, in each geometry.

        Those of the sums of directions, and if there are two ``kinds`` also those of the weighted sums, where only the
        first tokens are not weighted. No token is multiplied with itself among these: the products are 0. Also sum
        |u_i|^2 of the other tokens of each set (B', G, N), and sum w_i^2 |u_i|^2: |u_i| is 1, and 0 for a row that has
        no direction.
        """
        number, ids = len(space.maps), self.lead[rows]
        sums, known = self._sum_rows(rows, space, kinds)  # (B', M' - LEAD, kinds G, d)
        most, lead = sums.shape[1], space.gather(ids)
        places = torch.arange(LEAD + most, device=ids.device)
        chosen = [torch.where(places < LEAD, places, places + kind * most) for kind in range(kinds)]
        found: list[list[torch.Tensor]] = [[] for _ in range(kinds)]
        for place, each in enumerate(space.maps):
            if each.whitening is not None:
                first = self.whiten_lead(space, each, rows)
            else:
                first = each.apply(lead if each.centre is None else lead - each.centre)
            last = each.apply(torch.cat([sums[:, :, kind * number + place] for kind in range(kinds)], 1))
            vectors = torch.cat((first, last), 1)
            scale = pad(pick(each.scale, ids), (0, kinds * most), value=1)
            products = torch.bmm(vectors, vectors.mT).mul_(scale[..., None]).mul_(scale[:, None])
            products.diagonal(dim1=1, dim2=2)[:, :LEAD].zero_()
            for kind, own in enumerate(chosen):
                found[kind].append(products.index_select(1, own).index_select(2, own))
        members = widen(self.members[rows, :, LEAD : LEAD + most])
        known = [torch.matmul(members, each).mT.expand(-1, number, -1) for each in known]
        return [torch.stack(each, 1) for each in found], known

    def whiten_lead(self, space: Space, each: Map, rows: slice | torch.Tensor) -> torch.Tensor:
        """The rows (B', LEAD, d) of the first tokens in a geometry that multiplies by a matrix, which takes long.

        It is done once for all tokens, many of which occur more than once among them.
        """
        name = each.geometry.name
        if name not in self.whitened:
            different, index = torch.unique(self.lead, return_inverse=True)
            self.whitened[name] = each.apply(space.gather(different)), index
        moved, index = self.whitened[name]
        return pick(moved, index[rows])

    def _lend_memory(self, space: Space) -> RowMemory | None:
        """Memory for the rows that are added at once; None on other devices than a CPU."""
        if space.mean.device.type != "cpu":
            return None
        if self.memory is None or self.memory[0] is not space:
            self.memory = space, space.allocate(max(_count_added(space), CHUNKS[-1]))
        return self.memory[1]

    def _sum_rows(
        self, rows: slice | torch.Tensor, space: Space, kinds: int
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The sums (B', M' - LEAD, kinds G, d) of centred rows in the segments after the first tokens.

        For each geometry they have its scales as weights, and then the scales times the weights of the tokens. Also the
        sums (B', M' - LEAD, 1 or G) of the squares of the directions, without the scales.
        """
        sizes = self.sizes[rows, LEAD:]
        shape = len(sizes), int((sizes > 0).sum(1).max())  # (B', M' - LEAD)
        sizes = sizes[:, : shape[1]].flatten()
        edges = pad(sizes.cumsum(0), (1, 0))
        places = torch.repeat_interleave(self.starts[rows, LEAD:][:, : shape[1]].flatten() - edges[:-1], sizes)
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
            known = [widen(each[rows, : shape[1]])[..., None] for each in self.known]
        else:
            there = widen(scales > 0)
            squares = there, there * widen(pick(self.weights, places)).square()[:, None]
            known = [torch.segment_reduce(each, "sum", offsets=edges, axis=0).unflatten(0, shape) for each in squares]
        return sums.view(*shape, *sums.shape[1:]), known


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


def compute_similarity_entropies(windows: Windows, space: Space, segments: Segments) -> torch.Tensor:
    """similarity_entropy (B, N, G) in nats; NaN for sets beyond the geometry's ``most_pairs`` likeliest tokens.

    ``segments`` are those of the windows.
    """
    ids, probs, offsets, extents = windows
    most = max((each.geometry.most_pairs for each in space.maps), default=0)
    ends = extents[..., 3]
    result = torch.full((*ends.shape, len(space.maps)), torch.nan, device=ids.device)
    lengths = torch.where(ends <= most, ends, 0).amax(1)  # of what has to be compared
    kind = torch.bucketize(lengths, torch.tensor(PAIRS, device=ids.device))
    width, piece = space.embedding.shape[1], PIECE_CPU if ids.device.type == "cpu" else PIECE_GPU
    for place, size in enumerate(PAIRS):
        for chosen in _split(torch.nonzero((kind == place) & (lengths > 0))[:, 0], piece // (size * max(width, size))):
            index = torch.arange(size, device=ids.device)
            inside = index < lengths[chosen][:, None]
            index = offsets[chosen][:, None] + torch.where(inside, index, 0)
            own = torch.where(inside, pick(probs, index), 0)
            whiten = partial(segments.whiten_lead, rows=chosen)
            result[chosen] = _compare_pairs(pick(ids, index), own, extents[chosen], space, whiten)
    return result


def _split(places: torch.Tensor, most: int) -> tuple[torch.Tensor, ...]:
    """``places`` (n,) in parts of at most this many, or of one; no part is empty."""
    return places.split(max(1, most)) if len(places) else ()


def _compare_pairs(
    ids: torch.Tensor, probs: torch.Tensor, extents: torch.Tensor, space: Space, whiten: Callable[..., torch.Tensor]
) -> torch.Tensor:
    """similarity_entropy (n, N, G) of the sets (n, N, 4) in windows (n, s) of tokens, NaN where it is not computed.

    ``whiten`` returns the first rows (n, LEAD, d) of the windows in a geometry of a space.
    """
    place = torch.arange(ids.shape[1], device=ids.device)[:, None]
    one, two, three, four = (each[:, None] for each in extents.unbind(-1))  # (n, 1, N)
    members = ((place >= one) & (place < two)) | ((place >= three) & (place < four))  # (n, s, N)
    q = torch.where(members, probs[..., None], 0)
    q /= q.sum(1, keepdim=True).clamp_min(1e-30)
    rows, ends = space.gather(ids), extents[..., 3]
    products = torch.bmm(rows, rows.mT)
    found = []
    for each in space.maps:
        if each.whitening is not None:
            n = min(len(place), each.geometry.most_pairs)
            moved = whiten(space, each)[:, :n]
            similar, own = torch.bmm(moved, moved.mT), slice(0, n)
        elif each.left is not None:
            left, right = pick(each.left, ids), pick(each.right, ids)
            similar, own = torch.baddbmm(products, left, right.mT, alpha=-1), slice(None)
        else:
            similar, own = products.clone(), slice(None)
        scale = pick(each.scale, ids[:, own])
        unlike = 1 - each.expected if 1 - each.expected > LEAST_UNLIKE else torch.nan
        similar.mul_((scale / unlike)[:, :, None]).mul_(scale[:, None]).sub_(each.expected / unlike).clamp_(0, 1)
        similar.diagonal(dim1=1, dim2=2).zero_()
        ordinary = torch.baddbmm(q[:, own], similar, q[:, own])  # (Zq)_i, with Z_ii = 1 exactly
        entropy = 0 - torch.special.xlogy(q[:, own], ordinary.clamp_max_(1)).sum(1)
        known = (ends <= each.geometry.most_pairs) & (unlike == unlike)
        found.append(torch.where(known, entropy.clamp_min(0), torch.nan))
    return torch.stack(found, -1).float()
