"""The candidate sets of `nucleoscope.variants`, found in one sorted window of each next-token distribution.

Contract: logits in, on any device; ids and probabilities of the likeliest tokens and the extent of every set in them
out. Tokens are ordered by falling probability, ties by the lower id. All sets are prefixes of this order except
locally typical ones, which are at most two intervals of it. A token of probability 0 is in no set; no set is empty.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch.nn.functional import pad

from nucleoscope.measure.ragged import choose_sum_dtype
from nucleoscope.measure.softmax import Exponentials, exponentiate, split_rows
from nucleoscope.variants import CandidateSet

STEP = 4  # factor between two bounds of the probabilities in a window
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
    for rows in split_rows(logits):
        parts.append(_find_piece(exponentiate(rows), full_entropy[done : done + len(rows)].float(), sets))
        done += len(rows)
    extents = torch.cat([part[2] for part in parts])
    lengths = extents.amax((1, 2))
    offsets = pad(lengths.cumsum(0), (1, 0))
    kept = [_flatten(ids, probs, own.amax((1, 2))) for ids, probs, own in parts]
    return Windows(torch.cat([ids for ids, _ in kept]), torch.cat([probs for _, probs in kept]), offsets, extents)


def _flatten(ids: torch.Tensor, probs: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    inside = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
    return ids[inside], probs[inside]


def _find_piece(
    found: Exponentials, entropy: torch.Tensor, sets: Sequence[CandidateSet]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Padded ids and probabilities (R, W) in order, 0 where a row is shorter, and the sets' extents (R, N, 4)."""
    probs = found.compute_probabilities()
    spread = _measure_spread(found.z) if any(each.rule == "top_n_sigma" for each in sets) else entropy
    bounds = [_bound(each, probs, entropy, spread) for each in sets]
    ids, probs = _sort_above(probs, _lower_bounds(probs, torch.stack(bounds).amin(0), entropy, sets))
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
            size = ((found.z.gather(-1, ids) >= -each.value * spread[:, None]) & (probs > 0)).sum(-1)
        else:
            size = (probs >= _find_threshold(each, probs[:, 0], entropy)[:, None]).sum(-1)
        size = torch.minimum(size.clamp_min(1), positive)
        extents.append(torch.stack((torch.zeros_like(size), size, size, size), -1))
    return ids, probs, torch.stack(extents, 1)


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


def _bound(each: CandidateSet, probs: torch.Tensor, entropy: torch.Tensor, spread: torch.Tensor) -> torch.Tensor:
    """A probability (R,) which no token of a set is below, as far as one is known without a search."""
    largest = probs.amax(-1)
    if each.rule in ("min_p", "epsilon", "eta"):
        return _find_threshold(each, largest, entropy)
    if each.rule == "top_n_sigma":
        return largest * (-each.value * spread).exp() * (1 - SLACK)
    if each.rule == "top_k":
        columns = probs.shape[-1] // COLUMN
        if columns < each.value:
            return torch.zeros_like(largest)
        maxima = probs[:, : columns * COLUMN].view(-1, COLUMN, columns).amax(1)
        return maxima.topk(int(each.value), dim=-1, sorted=False).values.amin(-1)
    return largest


def _lower_bounds(
    probs: torch.Tensor, bounds: torch.Tensor, entropy: torch.Tensor, sets: Sequence[CandidateSet]
) -> torch.Tensor:
    """Bounds (R,) above which the sets that are defined by their mass are complete too, from ``bounds`` downwards."""
    tiny = torch.finfo(probs.dtype).smallest_normal * torch.finfo(probs.dtype).eps  # the smallest positive number
    needed = max((each.value for each in sets if each.rule == "top_p"), default=0)
    typical = max((each.value for each in sets if each.rule == "typical"), default=0)
    bounds = bounds.clamp_min(tiny)
    left = torch.arange(len(probs), device=probs.device)
    while needed or typical:
        own, bound = (probs, bounds) if len(left) == len(probs) else (probs[left], bounds[left])
        inside = torch.where(own >= bound[:, None], own, 0)
        enough = inside.sum(-1) >= needed + SLACK
        if typical:
            # The tokens outside are less typical than this; likelier ones may be as well.
            limit = -bound.log() - entropy[left]
            atypical = (limit - entropy[left]).exp()[:, None]  # the probability of a token that is that much too likely
            enough &= (torch.where(inside > atypical, 0, inside).sum(-1) >= typical + SLACK) & (limit > 0)
        left = left[~enough & (bound > tiny)]
        if not len(left):
            break
        bounds[left] = (bounds[left] / STEP).clamp_min(tiny)
    return bounds


def _sort_above(probs: torch.Tensor, bounds: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens of each row (R, V) with at least its bound, in order: ids and probabilities (R, W), padded with 0."""
    rows, ids = torch.nonzero(probs >= bounds[:, None], as_tuple=True)
    values = probs[rows, ids]
    # nonzero lists ids in increasing order and the sort is stable, so the lower id comes first among ties.
    order = ((rows << 32) - values.view(torch.int32)).argsort(stable=True)
    counts = torch.bincount(rows, minlength=len(probs))
    width = max(1, int(counts.max()))
    place = rows * width + torch.arange(len(ids), device=ids.device) - (counts.cumsum(0) - counts)[rows]
    padded = [values.new_zeros(len(probs) * width, dtype=each.dtype) for each in (ids, values)]
    for target, each in zip(padded, (ids, values), strict=True):
        target[place] = each[order]
    return padded[0].view(-1, width), padded[1].view(-1, width)


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
