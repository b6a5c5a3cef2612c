"""What is measured of each token in every variant: the same quantities, of other candidate sets in other geometries.

Contract: logits in, one tensor of numbers out, on the same device; sampling does not depend on it. The rows of a
window are gathered once for all sets and geometries, and once more for the pairs of small sets. Between two
neighbouring ends of sets, rows are summed with the weights of all geometries at once; every set is a sum of such
segments, and is compared by the products of their sums. Memory does not depend on how wide the sets are.

``similarity_entropy`` is the uncapped form -sum q_i log (Zq)_i, Z_ij = max(0, (u_i.u_j - c) / (1 - c)), Z_ii = 1,
where c is the mean cosine of two tokens of the vocabulary in that geometry (Leinster and Cobbold 2012, order 1). It
needs every pair, and is computed for sets within the `Geometry.most_pairs` likeliest tokens. It is NaN for others.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch.nn.functional import pad
from transformers import PreTrainedModel

from nucleoscope.measure.candidate_sets import Windows, find_windows
from nucleoscope.measure.geometry import Space, build_spaces, count_usage
from nucleoscope.measure.model_facts import find_embedding_matrix, find_output_matrix
from nucleoscope.measure.ragged import widen
from nucleoscope.variants import OF_SET, OF_VARIANT, Layout, Selection, parse

CHUNKS = (
    2,
    4,
    8,
    16,
    32,
    64,
    128,
    256,
)  # rows that are summed at once: a segment is divided into the largest, and padded to one
LEAST_UNLIKE = 1e-6  # 1 - c: if all directions are the same, similarity to chance is 0 / 0, and the value missing
PAIRS = (2, 4, 8, 16, 32, 50, 64)  # windows whose pairs are multiplied at once are padded to one of these
# Numbers in memory at once: gathered rows, of which fewer fit in a CPU's cache while they are added, and sums.
PIECE_CPU, PIECE_GPU, ADDED_CPU = 2**20, 2**26, 2**19
SUMS_CPU, SUMS_GPU = 2**22, 2**28


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
        windows = find_windows(logits, full_entropy, self.sets)
        width = sum(space.scales.shape[1] for space in self.spaces)
        size = (len(logits), len(self.sets), len(OF_SET) + width * len(OF_VARIANT))
        values = torch.empty(size, dtype=torch.float32, device=logits.device)
        segments = Segments(windows)
        values[..., 0], values[..., 1], values[..., 2] = segments.summarise()
        column = len(OF_SET)
        for space in self.spaces:
            end = column + len(OF_VARIANT) * len(space.maps)
            own = values[..., column:end].unflatten(-1, (len(space.maps), len(OF_VARIANT)))
            for rows in segments.split(space):
                own[rows, ..., :2] = segments.compare(rows, space)
            own[..., 2] = compute_similarity_entropies(windows, space)
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
    return Variants(selection, embedding, find_output_matrix(model), usage)


def find_layout(variants: Variants | None) -> Layout | None:
    """The names of what ``variants`` measures; None if nothing is."""
    return None if variants is None else variants.layout


class Segments:
    """The windows of B tokens, cut where a set begins or ends: M consecutive segments of each, some of them empty."""

    def __init__(self, windows: Windows):
        ids, probs, offsets, extents = windows
        self.ids, self.probs, self.offsets, self.first = ids, probs, offsets, offsets[:-1]
        # the sets that are prefixes in all rows have one bound each
        plain = ((extents[..., 0] == 0) & (extents[..., 1] == extents[..., 3])).all(0)
        bounds = torch.cat((extents[:, plain, 3], extents[:, ~plain].flatten(1)), 1).sort(1).values
        start = pad(bounds[:, :-1], (1, 0))
        sizes = bounds - start
        # most are empty, because many sets are the same: those of each row come last, as many as all rows have are cut
        most = max(1, int((sizes > 0).sum(1).max()) if len(sizes) else 0)
        order = (sizes == 0).to(torch.int8).argsort(dim=1, stable=True)[:, :most]
        start, self.sizes = start.gather(1, order), sizes.gather(1, order)  # (B, M)
        self.starts = self.first[:, None] + start
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
        index = torch.repeat_interleave(
            torch.arange(len(self.first), device=ids.device), offsets.diff(), output_size=len(ids)
        )
        self.weights = (probs / probs[second][index]).index_fill(0, self.first, 0)  # (K,)
        self.rest = self._join(self._sum(widen(self.weights)))
        self.squares = self._join(self._sum(widen(self.weights).square()))
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

    def split(self, space: Space) -> Iterator[slice]:
        """Groups of tokens whose segments' sums fit in memory."""
        one = (self.sizes.shape[1] + 1) * 2 * len(space.maps) * space.embedding.shape[1]
        rows = max(1, (SUMS_CPU if self.ids.device.type == "cpu" else SUMS_GPU) // one)
        for start in range(0, len(self.sizes), rows):
            yield slice(start, min(start + rows, len(self.sizes)))

    def compare_unweighted(self, rows: slice, space: Space) -> torch.Tensor:
        """cosine (B', N, G) alone, for which half of the sums are enough."""
        weights = space.scales.index_select(0, self.ids[self._slice(rows)])  # (K', G)
        count, most = self.sizes[rows].shape
        sums = torch.zeros(count, most, len(space.maps), space.embedding.shape[1], device=self.ids.device)
        self._add_rows(rows, space, weights, sums)
        _centre(sums, self._sum_part(rows, weights), space)
        moved = [each.apply(sums[:, :, place]) for place, each in enumerate(space.maps)]
        products = torch.stack([widen(torch.bmm(each, each.mT)) for each in moved], 1)
        cosine = self._average(products, rows, self._count_directions(rows, space)[0])
        one = (self.k[rows] == 1)[:, None]
        return torch.where(one, torch.nan, cosine.clamp(-1, 1)).transpose(1, 2).float()

    def _average(self, products: torch.Tensor, rows: slice, known: torch.Tensor) -> torch.Tensor:
        """The mean cosines (B', G, N) of pairs, from products (B', G, M, M) of the segments' sums of directions.

        ``known`` (B', G, N) are the products of directions with themselves.
        """
        members, k = widen(self.members[rows])[:, None], self.k[rows][:, None]
        square = (torch.matmul(members, products) * members).sum(-1)
        return (square - known) / (k * (k - 1)).clamp_min(1)

    def compare(self, rows: slice, space: Space) -> torch.Tensor:
        """cosine and weighted_cosine (B', N, G, 2) of the sets of some tokens.

        With S a set's sum of its segments' sums, |S|^2 is the sum of the products of all pairs of segments.
        """
        products, weighted = self._multiply_segments(rows, space)  # (B', G, M, M), (B', G, M + 1, M + 1)
        members = widen(self.members[rows])[:, None]  # (B', 1, N, M)
        known, known_weighted = self._count_directions(rows, space)  # (B', G, N)
        numbers = (self.has_first, self.k, self.tail, self.rest, self.squares)
        first, k, tail, rest, squares = (each[rows][:, None] for each in numbers)  # (B', 1, N) each
        rest = rest.clamp_min(1e-300)
        lead = torch.where(first, 2 * (1 - tail), 0)
        cosine = self._average(products, rows, known)
        shared = torch.matmul(members, weighted[..., :-1, -1:])[..., 0] / rest
        square = (torch.matmul(members, weighted[..., :-1, :-1]) * members).sum(-1)
        inner = (square - known_weighted) / rest.square()
        weight = lead + tail * (1 - squares / rest.square())
        both = torch.stack((cosine, (lead * shared + tail * inner) / torch.where(k == 1, 1, weight)), -1)
        return torch.where((k == 1)[..., None], torch.nan, both.clamp(-1, 1)).transpose(1, 2).float()

    def _multiply_segments(self, rows: slice, space: Space) -> tuple[torch.Tensor, torch.Tensor]:
        """Products of the segments' sums of directions in each geometry: (B', G, M, M), and those of weighted sums with
        the likeliest token's direction as the last: (B', G, M + 1, M + 1)."""
        part, number = self._slice(rows), len(space.maps)
        scales = space.scales.index_select(0, self.ids[part])
        weights = torch.cat((scales, scales * self.weights[part, None]), 1)  # (K', 2 G)
        size, (count, most) = space.embedding.shape[1], self.sizes[rows].shape
        sums = torch.zeros(count, most + 1, 2 * number, size, device=self.ids.device)
        self._add_rows(rows, space, weights, sums)
        head = self.ids[self.first[rows]]
        scales = space.scales.index_select(0, head)
        sums[:, -1, number:] = scales[..., None] * space.gather_raw(head)[:, None]
        norms = self._sum_part(rows, weights)  # (B', M, 2 G)
        norms = torch.cat((norms, pad(scales, (number, 0))[:, None]), 1)
        _centre(sums, norms, space)
        found: list[list[torch.Tensor]] = [[], []]
        for place, each in enumerate(space.maps):
            plain, weighted = sums[:, :, place], sums[:, :, number + place]
            if each.whitening is not None:
                plain, weighted = self._whiten(rows, plain, weighted, each.whitening)
            elif each.basis is not None:
                plain, weighted = each.apply(plain), each.apply(weighted)
            found[0].append(widen(torch.bmm(plain[:, :-1], plain[:, :-1].mT)))
            found[1].append(widen(torch.bmm(weighted, weighted.mT)))
        return torch.stack(found[0], 1), torch.stack(found[1], 1)

    def _whiten(
        self, rows: slice, plain: torch.Tensor, weighted: torch.Tensor, whitening: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Both kinds of sums (B', M + 1, d), multiplied by a matrix (d, d), which takes longer than all else.

        Nothing is multiplied for an empty segment, and only once for a segment of one token.
        """
        sizes = self.sizes[rows]
        filled, several = pad(sizes > 0, (0, 1)).flatten(), pad(sizes > 1, (0, 1), value=True).flatten()
        filled, several = torch.nonzero(filled)[:, 0], torch.nonzero(several)[:, 0]
        given = [sums.flatten(0, 1).index_select(0, own) for sums, own in ((plain, filled), (weighted, several))]
        moved = torch.cat(given) @ whitening
        plain = torch.zeros_like(plain, memory_format=torch.contiguous_format)
        plain.view(-1, plain.shape[-1]).index_copy_(0, filled, moved[: len(filled)])
        factor = self.weights[self.starts[rows].clamp_max(len(self.weights) - 1)]
        weighted = plain * pad(factor, (0, 1))[..., None]
        weighted.view(-1, plain.shape[-1]).index_copy_(0, several, moved[len(filled) :])
        return plain, weighted

    def _slice(self, rows: slice) -> slice:
        return slice(int(self.offsets[rows.start]), int(self.offsets[rows.stop]))

    def _sum_part(self, rows: slice, values: torch.Tensor) -> torch.Tensor:
        """Sums (B', M, ...) over the segments of some tokens of their values (K', ...)."""
        edges = pad(self.sizes[rows].flatten().cumsum(0), (1, 0))
        sums = torch.segment_reduce(values, "sum", offsets=edges, axis=0)
        return sums.unflatten(0, self.sizes[rows].shape)

    def _count_directions(self, rows: slice, space: Space) -> tuple[torch.Tensor, torch.Tensor]:
        """sum |u_i|^2 and sum w_i^2 |u_i|^2 (B', G, N): |u_i| is 1, and 0 for a row that has no direction."""
        known = [widen(each[rows])[:, None].expand(-1, len(space.maps), -1) for each in (self.k, self.squares)]
        if all(each.is_complete for each in space.maps):
            return known[0], known[1]
        part = self._slice(rows)
        there = widen(space.scales.index_select(0, self.ids[part]) > 0)
        members = widen(self.members[rows])
        for place, values in enumerate((there, there * widen(self.weights[part]).square()[:, None])):
            known[place] = torch.matmul(members, self._sum_part(rows, values)).transpose(1, 2)
        return known[0], known[1]

    def _add_rows(self, rows: slice, space: Space, weights: torch.Tensor, sums: torch.Tensor) -> None:
        """Adds to ``sums`` (B', M or more, W, d) the rows of the matrix in each segment, with ``weights`` (K', W)."""
        sizes, device = self.sizes[rows].flatten(), self.ids.device
        start = (self.starts[rows] - self.first[rows.start]).flatten()
        target = (
            torch.arange(sums.shape[0] * sums.shape[1], device=device)
            .view(sums.shape[:2])[:, : self.sizes.shape[1]]
            .flatten()
        )
        sums, width = sums.flatten(0, 1), sums.shape[-1]
        # what pads a segment has the last of these, with a weight of 0
        ids, weights = pad(self.ids[self._slice(rows)], (0, 1)), pad(weights, (0, 0, 0, 1))
        counts = (sizes + CHUNKS[-1] - 1) // CHUNKS[-1]
        segment = torch.repeat_interleave(counts)
        part = torch.arange(len(segment), device=device) - (counts.cumsum(0) - counts)[segment]
        start = start[segment] + part * CHUNKS[-1]
        length = (sizes[segment] - part * CHUNKS[-1]).clamp_max(CHUNKS[-1])
        kind = torch.bucketize(length, torch.tensor(CHUNKS, device=device))
        piece = ADDED_CPU if device.type == "cpu" else PIECE_GPU
        for place, size in enumerate(CHUNKS):
            index = torch.arange(size, device=device)
            for chosen in _split(torch.nonzero(kind == place)[:, 0], piece // (size * width)):
                places = torch.where(index < length[chosen][:, None], start[chosen][:, None] + index, len(ids) - 1)
                own = weights.index_select(0, places.flatten()).unflatten(0, places.shape)
                added = torch.bmm(own.mT, space.gather_raw(ids.index_select(0, places.flatten()).view_as(places)))
                sums.index_add_(0, target[segment[chosen]], added)


def _centre(sums: torch.Tensor, norms: torch.Tensor, space: Space) -> None:
    """Subtracts from weighted sums of raw rows (B', M, W, d) the centres of the geometries, times the sums of weights.

    W is G or, with two kinds of weights, 2 G; ``norms`` (B', M, W) are the sums of the weights.
    """
    centres = [each.centre if each.centre is not None else torch.zeros_like(space.mean) for each in space.maps]
    centres = torch.stack(centres).repeat(sums.shape[2] // len(centres), 1)
    sums.addcmul_(norms[..., None], space.mean + centres, value=-1)


def compute_similarity_entropies(windows: Windows, space: Space) -> torch.Tensor:
    """similarity_entropy (B, N, G) in nats; NaN for sets beyond the geometry's ``most_pairs`` likeliest tokens."""
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
            own = torch.where(inside, probs[index], 0)
            result[chosen] = _compare_pairs(ids[index], own, extents[chosen], space)
    return result


def _split(places: torch.Tensor, most: int) -> tuple[torch.Tensor, ...]:
    """``places`` (n,) in parts of at most this many, or of one; no part is empty."""
    return places.split(max(1, most)) if len(places) else ()


def _compare_pairs(ids: torch.Tensor, probs: torch.Tensor, extents: torch.Tensor, space: Space) -> torch.Tensor:
    """similarity_entropy (n, N, G) of the sets (n, N, 4) in windows (n, s) of tokens, NaN where it is not computed."""
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
            different, index = torch.unique(ids[:, :n], return_inverse=True)  # many tokens are likely more than once
            moved = (
                (space.gather(different) @ each.whitening).index_select(0, index.flatten()).unflatten(0, index.shape)
            )
            similar, own = torch.bmm(moved, moved.mT), slice(0, n)
        elif each.left is not None:
            similar, own = torch.baddbmm(products, each.left[ids], each.right[ids].mT, alpha=-1), slice(None)
        else:
            similar, own = products.clone(), slice(None)
        scale = each.scale[ids[:, own]]
        unlike = 1 - each.expected if 1 - each.expected > LEAST_UNLIKE else torch.nan
        similar.mul_((scale / unlike)[:, :, None]).mul_(scale[:, None]).sub_(each.expected / unlike).clamp_(0, 1)
        similar.diagonal(dim1=1, dim2=2).zero_()
        ordinary = torch.baddbmm(q[:, own], similar, q[:, own])  # (Zq)_i, with Z_ii = 1 exactly
        entropy = 0 - torch.special.xlogy(q[:, own], ordinary.clamp_max_(1)).sum(1)
        known = (ends <= each.geometry.most_pairs) & (unlike == unlike)
        found.append(torch.where(known, entropy.clamp_min(0), torch.nan))
    return torch.stack(found, -1).float()
