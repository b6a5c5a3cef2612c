"""The candidate sets of `nucleoscope.variants`, found in one sorted window of each next-token distribution.

Contract: logits in, on any device; ids and probabilities of the likeliest tokens and the extent of every set in them
out. Tokens are ordered by falling probability, ties by the lower id. All sets are prefixes of this order except
locally typical ones, which are at most two intervals of it. A token of probability 0 is in no set; no set is empty.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch.nn.functional import pad

from nucleoscope.measure.ragged import choose_sum_dtype
from nucleoscope.measure.softmax import Exponentials, exponentiate, split_rows
from nucleoscope.variants import CandidateSet

SECOND = 1024  # tokens above the second bound of the probabilities in a window: enough for most
STEP = 3  # factor between further bounds
WIDTHS = (512, 4096)  # tokens in windows that are padded to the same width
PIECE_CPU = 2**21  # logits that are processed at once
SLACK = 1e-4  # mass by which a window exceeds what is needed: far above float32 rounding
COLUMN = 32  # values of which one maximum is taken to find a bound that enough tokens reach


class Windows(NamedTuple):
    """The likeliest tokens of B distributions, as many as the widest of the sets needs, and the sets.

    ``ids`` (K,) int64 and ``probs`` (K,) float32 are concatenated, row b at ``offsets[b]:offsets[b + 1]``. Set n of
    row b consists of the tokens at places ``[first, second)`` and ``[third, fourth)`` of the row, which are
    ``extents[b, n]`` (B, N, 4); a prefix has its end in all but the first.
    """

    ids: torch.Tensor
    probs: torch.Tensor
    offsets: torch.Tensor
    extents: torch.Tensor


def find_windows(logits: torch.Tensor, full_entropy: torch.Tensor, sets: Sequence[CandidateSet]) -> Windows:
    """The sets of each row of ``logits`` (B, V), which are finite or -inf; ``full_entropy`` (B,) is H(p) in nats."""
    parts, done = [], 0
    for rows in _split_rows(logits):
        parts.append(_find_piece(exponentiate(rows), full_entropy[done : done + len(rows)].float(), sets))
        done += len(rows)
    extents = torch.cat([part[2] for part in parts])
    lengths = extents.amax((1, 2))
    offsets = pad(lengths.cumsum(0), (1, 0))
    kept = [_flatten(ids, probs, own.amax((1, 2))) for ids, probs, own in parts]
    return Windows(torch.cat([ids for ids, _ in kept]), torch.cat([probs for _, probs in kept]), offsets, extents)


def _split_rows(logits: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Logits in pieces: on a CPU larger ones than elsewhere, because there are many small operations."""
    return logits.split(max(1, PIECE_CPU // logits.shape[-1])) if logits.device.type == "cpu" else split_rows(logits)


def _flatten(ids: torch.Tensor, probs: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    inside = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
    return ids[inside], probs[inside]


def _find_piece(
    found: Exponentials, entropy: torch.Tensor, sets: Sequence[CandidateSet]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Padded ids and probabilities (R, W) in order, 0 where a row is shorter, and the sets' extents (R, N, 4)."""
    spread = _measure_spread(found.z) if any(each.rule == "top_n_sigma" for each in sets) else entropy
    places, parts = [], []
    for rows, ids, probs in _sort_windows(found, entropy, spread, sets):
        extents = _find_extents(probs, found.z[rows[:, None], ids], entropy[rows], spread[rows], sets)
        width = int(extents.max())
        places.append(rows)
        parts.append((ids[:, :width], probs[:, :width], extents))
    order, width = torch.cat(places).argsort(), max(ids.shape[1] for ids, _, _ in parts)
    joined = [torch.cat([pad(part[n], (0, width - part[n].shape[1])) for part in parts])[order] for n in (0, 1)]
    return *joined, torch.cat([extents for _, _, extents in parts])[order]


def _find_extents(
    probs: torch.Tensor, z: torch.Tensor, entropy: torch.Tensor, spread: torch.Tensor, sets: Sequence[CandidateSet]
) -> torch.Tensor:
    """The extents (R, N, 4) of the sets among tokens in order, with ``probs`` and logits ``z`` (R, W) - the largest."""
    positive = (probs > 0).sum(-1).clamp_min(1)
    mass = probs.cumsum(-1, dtype=choose_sum_dtype(probs.device))
    extents = []
    for each in sets:
        if each.rule == "typical":
            extents.append(_find_typical(probs, entropy, each.value))
            continue
        if each.rule == "top_p":  # with a mass of 1, a rounded sum could reach it too early
            size = (mass < each.value).sum(-1) + 1 if each.value < 1 else positive
        elif each.rule == "top_k":
            size = torch.full_like(positive, each.value)
        elif each.rule == "top_n_sigma":
            size = ((z >= -each.value * spread[:, None]) & (probs > 0)).sum(-1)
        else:
            size = (probs >= _find_threshold(each, probs[:, 0], entropy)[:, None]).sum(-1)
        size = torch.minimum(size.clamp_min(1), positive)
        extents.append(torch.stack((torch.zeros_like(size), size, size, size), -1))
    return torch.stack(extents, 1)


def _find_threshold(each: CandidateSet, largest: torch.Tensor, entropy: torch.Tensor) -> torch.Tensor:
    """The smallest probability (R,) in a set that is defined by one."""
    if each.rule == "min_p":
        return each.value * largest
    value = torch.full_like(largest, each.value)
    return torch.minimum(value, math.sqrt(each.value) * (-entropy).exp()) if each.rule == "eta" else value


def _measure_spread(z: torch.Tensor) -> torch.Tensor:
    """The standard deviation (R,) of the finite logits, as of a whole population."""
    mean = z.mean(-1, keepdim=True)
    if not bool(mean.isfinite().all()):
        finite = z.isfinite()
        count = finite.sum(-1, keepdim=True)
        mean = torch.where(finite, z, 0).sum(-1, keepdim=True) / count
        return (torch.where(finite, z - mean, 0).square().sum(-1) / count[:, 0]).sqrt()
    return (z - mean).square_().mean(-1).sqrt()


def _find_bounds(
    total: torch.Tensor, maxima: torch.Tensor | None, entropy: torch.Tensor, spread: torch.Tensor, sets: Sequence
) -> torch.Tensor:
    """A probability (R,) which no token of the sets that are not defined by their mass is below."""
    largest = total.reciprocal()
    bounds = [largest]
    for each in sets:
        if each.rule in ("min_p", "epsilon", "eta"):
            bounds.append(_find_threshold(each, largest, entropy))
        elif each.rule == "top_n_sigma":
            bounds.append(largest * (-each.value * spread).exp())
    widest = int(max((each.value for each in sets if each.rule == "top_k"), default=0))
    if widest:
        bounds.append(_reach(maxima, widest) / total)
    return torch.stack(bounds).amin(0) * (1 - SLACK)


def _reach(maxima: torch.Tensor | None, number: int) -> torch.Tensor | float:
    """A value (R,) that this ``number`` of values or more reach, by the ``maxima`` (R, C) of columns; 0 if unknown."""
    if maxima is None or maxima.shape[-1] < number:
        return 0.0
    return maxima.topk(number, dim=-1, sorted=False).values.amin(-1)


def _sort_windows(
    found: Exponentials, entropy: torch.Tensor, spread: torch.Tensor, sets: Sequence[CandidateSet]
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Some rows (R',), and in order their likeliest tokens, as many as the sets need or more: ids and probabilities.

    These are (R', W), padded with 0; rows with about equally many are together.
    """
    values, total = found.exponentials, found.total[:, 0]
    columns = values.shape[-1] // COLUMN
    maxima = values[:, : columns * COLUMN].view(-1, COLUMN, columns).amax(1) if columns else None
    bounds = _find_bounds(total, maxima, entropy, spread, sets)
    bounds = total * _lower_bounds(values, total, maxima, bounds, entropy, sets)
    counts = (values >= bounds[:, None]).sum(-1)
    kind = torch.bucketize(counts, torch.tensor(WIDTHS, device=counts.device))
    for number in range(len(WIDTHS) + 1):
        rows = torch.nonzero(kind == number)[:, 0]
        if len(rows):
            yield rows, *_sort_above(values[rows], bounds[rows], total[rows])


def _lower_bounds(
    values: torch.Tensor,
    total: torch.Tensor,
    maxima: torch.Tensor | None,
    bounds: torch.Tensor,
    entropy: torch.Tensor,
    sets: Sequence[CandidateSet],
) -> torch.Tensor:
    """Bounds (R,) above which the sets that are defined by their mass are complete too, from ``bounds`` downwards.

    ``values`` (R, V) divided by ``total`` (R,) are probabilities. The second bound is one that `SECOND` tokens reach,
    each further one is `STEP` times lower.
    """
    tiny = torch.finfo(values.dtype).smallest_normal * torch.finfo(values.dtype).eps  # the smallest positive number
    needed = max((each.value for each in sets if each.rule == "top_p"), default=0)
    typical = max((each.value for each in sets if each.rule == "typical"), default=0)
    bounds = bounds.clamp_min(tiny)
    left, second = torch.arange(len(values), device=values.device), maxima is not None
    while needed or typical:
        every = len(left) == len(values)
        own, bound, sums = (values, bounds, total) if every else (values[left], bounds[left], total[left])
        inside = torch.where(own >= (bound * sums)[:, None], own, 0)
        enough = inside.sum(-1) >= (needed + SLACK) * sums
        if typical:
            # The tokens outside are less typical than this; likelier ones may be as well.
            limit = -bound.log() - entropy[left]
            atypical = (limit - entropy[left]).exp() * sums  # that of a token that is that much too likely
            enough &= (torch.where(inside > atypical[:, None], 0, inside).sum(-1) >= (typical + SLACK) * sums) & (
                limit > 0
            )
        left = left[~enough & (bound > tiny)]
        if not len(left):
            break
        if second:
            reached = _reach(maxima[left], min(SECOND, maxima.shape[-1])) / total[left] * (1 - SLACK)
            bounds[left], second = torch.minimum(bounds[left] / STEP, reached), False
        else:
            bounds[left] /= STEP
        bounds[left] = bounds[left].clamp_min(tiny)
    return bounds


def _sort_above(values: torch.Tensor, bounds: torch.Tensor, totals: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The ``values`` of each row (R, V) that are at least its bound, in order: ids and shares of the totals (R, W)."""
    size = values.shape[-1]
    flat = torch.nonzero((values >= bounds[:, None]).flatten())[:, 0]  # ids in increasing order within each row
    rows = flat // size
    counts = torch.bincount(rows, minlength=len(values))
    width = max(1, int(counts.max()))
    place = torch.arange(len(flat), device=flat.device) + (torch.arange(len(values), device=flat.device) * width).sub_(
        counts.cumsum(0) - counts
    ).repeat_interleave(counts, output_size=len(flat))
    ids, probs = flat.new_zeros(len(values) * width), values.new_zeros(len(values) * width)
    ids.index_copy_(0, place, flat - rows * size)
    probs.index_copy_(0, place, values.flatten().index_select(0, flat))
    # divided first: two values can become the same probability, and then the lower id comes first
    probs = probs.view(-1, width) / totals[:, None]
    probs, order = probs.sort(dim=-1, descending=True, stable=True)
    return ids.view(-1, width).gather(-1, order), probs


def _find_typical(probs: torch.Tensor, entropy: torch.Tensor, mass: float) -> torch.Tensor:
    """The extents (R, 4) of the fewest tokens with information nearest to the entropy that have this ``mass``.

    Among equally typical tokens the likelier one comes first, then the lower id.
    """
    shift = torch.where(probs > 0, (probs.log() + entropy[:, None]).abs(), torch.inf)
    order = shift.argsort(dim=-1, stable=True)
    below = probs.gather(-1, order).cumsum(-1, dtype=choose_sum_dtype(probs.device)) < mass
    rank = torch.arange(probs.shape[-1], device=probs.device).expand_as(order)
    chosen = torch.zeros_like(below).scatter(-1, order, rank <= below.sum(-1, keepdim=True)) & (probs > 0)
    return _find_runs(chosen)


def _find_runs(chosen: torch.Tensor) -> torch.Tensor:
    """The first and the last run of true values in each row (R, W), as (R, 4); both are the same if there is one."""
    width = chosen.shape[-1]
    place = torch.arange(width, device=chosen.device)
    first = torch.where(chosen, place, width).amin(-1)
    last = torch.where(chosen, place, -1).amax(-1) + 1
    stop = torch.where(~chosen & (place > first[:, None]), place, width).amin(-1)
    begin = torch.where(~chosen & (place < last[:, None]), place, -1).amax(-1) + 1
    return torch.stack((first, stop, begin, last), -1)
