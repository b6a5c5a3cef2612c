"""The candidate sets of `nucleoscope.variants`, found in one sorted window of each next-token distribution.

Contract: logits in, on any device; ids and probabilities of the likeliest tokens and the extent of every set in them
out. Tokens are ordered by falling probability, ties by the lower id. All sets are prefixes of this order except
locally typical ones, which are at most two intervals of it. A token of probability 0 is in no set; no set is empty.
"""

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch.nn.functional import pad, threshold

from nucleoscope.measure.ragged import choose_sum_dtype
from nucleoscope.measure.softmax import Exponentials, exponentiate, split_rows
from nucleoscope.measure.sorting import create_keys, sort_keys
from nucleoscope.variants import CandidateSet

SECOND = 1024  # tokens above the second bound of the probabilities in a window: enough for most
STEP = 3  # factor between further bounds
SLACK = 1e-4  # mass by which a window exceeds what is needed: far above float32 rounding
COLUMN = 8  # values of which one maximum is taken to find a bound that enough tokens reach
# Bounds that are tried on these maxima: four per factor of 2 (the exponent of a float32 and two bits of its fraction),
# from 1 down to about 5e-10.
STEP_BITS, STEPS = 21, 124
SORTED = 2**17  # tokens that are sorted at once: more would not fit in a CPU's cache
LEAST_BOUND = 1e-30  # of what is summed: the exponentials below it have no mass, and its reciprocal is finite


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


class Likeliest(NamedTuple):
    """The likeliest tokens of R distributions, as many as the sets need or more, and what else the sets depend on.

    ``ids`` (K,) int64 and ``probs`` (K,) float32 belong to the distributions ``rows`` (K,); those of one are together,
    in the order of their ids. ``entropy`` (R,) is H(p) in nats, ``spread`` (R,) the standard deviation of the logits.
    """

    rows: torch.Tensor
    ids: torch.Tensor
    probs: torch.Tensor
    entropy: torch.Tensor
    spread: torch.Tensor


def find_windows(
    logits: torch.Tensor,
    full_entropy: torch.Tensor,
    sets: Sequence[CandidateSet],
    totals: torch.Tensor | None = None,
) -> Windows:
    """The sets of each row of ``logits`` (B, V), which are finite or -inf; ``full_entropy`` (B,) is H(p) in nats.

    If there are ``totals`` (V,), the probabilities of all rows are added to them.
    """
    parts, done = [], 0
    for rows in split_rows(logits):
        found = exponentiate(rows)
        entropy = full_entropy[done : done + len(rows)].float()
        parts.append(find_likeliest(found, entropy, measure_spread(found, sets), sets))
        if totals is not None:
            totals += found.total.reciprocal()[:, 0] @ found.exponentials
        done += len(rows)
    return arrange_windows(logits, parts, sets)


def arrange_windows(logits: torch.Tensor, parts: Sequence[Likeliest], sets: Sequence[CandidateSet]) -> Windows:
    """The same from what `find_likeliest` has found of consecutive rows of the ``logits`` (B, V)."""
    found, group, done = [], list[Likeliest](), 0
    for place, part in enumerate(parts):
        group.append(part)
        following = parts[place + 1 : place + 2]
        if not following or sum(len(each.ids) for each in (*group, *following)) > SORTED:
            rows = sum(len(each.entropy) for each in group)
            found.append(_arrange_group(logits[done : done + rows], group, sets))
            group, done = [], done + rows
    ids, probs, lengths, extents = (torch.cat(column) for column in zip(*found, strict=True))
    return Windows(ids, probs, pad(lengths.cumsum(0), (1, 0)), extents)


def select_prefixes(windows: Windows, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids and probabilities (K',) of the first ``lengths[b]`` tokens of each window b, and their offsets (B + 1,)."""
    ends = lengths.cumsum(0)
    shift = torch.repeat_interleave(windows.offsets[:-1] - ends + lengths, lengths)
    index = torch.arange(len(shift), device=shift.device) + shift
    return windows.ids.index_select(0, index), windows.probs.index_select(0, index), pad(ends, (1, 0))


def cut_windows(windows: Windows, number: int) -> Windows:
    """The windows of the first ``number`` of the sets alone."""
    if number == windows.extents.shape[1]:
        return windows
    extents = windows.extents[:, :number]
    return Windows(*select_prefixes(windows, extents.amax((1, 2))), extents)


def _arrange_group(
    logits: torch.Tensor, parts: Sequence[Likeliest], sets: Sequence[CandidateSet]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids and probabilities (K,) of some rows' windows, their lengths (R,), and the sets' extents (R, N, 4)."""
    device = logits.device
    first = accumulate((len(part.entropy) for part in parts), initial=0)
    rows = torch.cat([part.rows + start for part, start in zip(parts, first, strict=False)])
    ids, probs, entropy, spread = (torch.cat(column) for column in list(zip(*parts, strict=True))[1:])
    z = logits[rows, ids].float() if _need_logits(sets) else torch.zeros_like(probs)
    columns = rows, ids, probs, z, entropy, spread
    if choose_sum_dtype(device) != torch.float64:  # a cumulative sum over several rows would be too inexact
        columns = tuple(column.cpu() for column in columns)
    window = _sort(*columns[:4], len(entropy))
    extents = _find_extents(window, *columns[4:], sets)
    lengths = extents.amax((1, 2))
    places = torch.arange(len(window.ids), device=lengths.device)
    inside = torch.nonzero(places < (window.offsets[:-1] + lengths).index_select(0, window.rows))[:, 0]
    chosen = window.ids.index_select(0, inside), window.probs.index_select(0, inside), lengths, extents
    return tuple(each.to(device) for each in chosen)


def _need_logits(sets: Sequence[CandidateSet]) -> bool:
    """Whether a set is defined by logits: the others by probabilities alone."""
    return any(each.rule == "top_n_sigma" for each in sets)


class Sorted(NamedTuple):
    """The likeliest tokens of R rows in order, concatenated: row r is at ``offsets[r]:offsets[r + 1]``.

    ``keys`` (K,) int64 rise with the row and, within a row, with falling probability. ``rows`` (K,) are the numbers of
    the rows, ``z`` (K,) the logits minus the largest of the row.
    """

    ids: torch.Tensor
    probs: torch.Tensor
    z: torch.Tensor
    rows: torch.Tensor
    keys: torch.Tensor
    offsets: torch.Tensor


def _sort(rows: torch.Tensor, ids: torch.Tensor, probs: torch.Tensor, logits: torch.Tensor, number: int) -> Sorted:
    """Tokens (K,) of a ``number`` of rows in order; of equal ones the first remains first."""
    keys, order = sort_keys(create_keys(rows, probs))
    rows, offsets = keys >> 32, torch.searchsorted(keys, torch.arange(number + 1, device=keys.device) << 32)
    ids, probs, z = (each.index_select(0, order) for each in (ids, probs, logits))
    return Sorted(ids, probs, z - z[offsets[:-1]].index_select(0, rows), rows, keys, offsets)


def _find_extents(
    window: Sorted, entropy: torch.Tensor, spread: torch.Tensor, sets: Sequence[CandidateSet]
) -> torch.Tensor:
    """The extents (R, N, 4) of the sets among the sorted tokens of R rows."""
    first, last = window.offsets[:-1], window.offsets[1:]
    largest, tiny = window.probs[first], torch.full_like(entropy, torch.finfo(torch.float32).tiny)
    positive = (_count_above(window, tiny * torch.finfo(torch.float32).eps)).clamp_min(1)
    # in float64, sums of float32 numbers are as good as exact, also those of several rows
    mass = window.probs.cumsum(0, dtype=choose_sum_dtype(entropy.device))
    start = pad(mass, (1, 0))[first]
    extents = []
    for each in sets:
        if each.rule == "typical":
            extents.append(_find_typical(window, entropy, each.value))
            continue
        if each.rule == "top_p":  # with a mass of 1, a rounded sum could reach it too early
            size = positive
            if each.value < 1:
                size = torch.minimum(torch.searchsorted(mass, start + each.value), last) - first + 1
        elif each.rule == "top_k":
            size = torch.full_like(positive, each.value)
        elif each.rule == "top_n_sigma":
            near = (window.z >= (-each.value * spread).index_select(0, window.rows)) & (window.probs > 0)
            size = torch.bincount(window.rows.masked_select(near), minlength=len(first))
        else:
            size = _count_above(window, _find_threshold(each, largest, entropy))
        size = torch.minimum(size.clamp_min(1), positive)
        extents.append(torch.stack((torch.zeros_like(size), size, size, size), -1))
    return torch.stack(extents, 1)


def _count_above(window: Sorted, bounds: torch.Tensor) -> torch.Tensor:
    """How many tokens of each row have at least the probability of its bound (R,)."""
    keys = create_keys(torch.arange(len(bounds), device=bounds.device), bounds)
    return torch.searchsorted(window.keys, keys, right=True) - window.offsets[:-1]


def _find_threshold(each: CandidateSet, largest: torch.Tensor, entropy: torch.Tensor) -> torch.Tensor:
    """The smallest probability (R,) in a set that is defined by one."""
    if each.rule == "min_p":
        return each.value * largest
    value = torch.full_like(largest, each.value)
    return torch.minimum(value, math.sqrt(each.value) * (-entropy).exp()) if each.rule == "eta" else value


def measure_spread(found: Exponentials, sets: Sequence[CandidateSet]) -> torch.Tensor:
    """The standard deviation (R,) of the finite logits, as of a whole population; 0 if no set depends on it."""
    z = found.z
    if not _need_logits(sets):
        return torch.zeros_like(z[:, 0])
    mean = z.mean(-1, keepdim=True)
    if bool(mean.isfinite().all()):
        return torch.linalg.vector_norm(z - mean, dim=-1) / z.shape[-1] ** 0.5
    finite = z.isfinite()
    count = finite.sum(-1, keepdim=True)
    mean = torch.where(finite, z, 0).sum(-1, keepdim=True) / count
    return (torch.where(finite, z - mean, 0).square().sum(-1) / count[:, 0]).sqrt()


def _find_bounds(
    found: Exponentials, maxima: torch.Tensor | None, entropy: torch.Tensor, spread: torch.Tensor, sets: Sequence
) -> torch.Tensor:
    """A probability (R,) which no token of the sets that are not defined by their mass is below."""
    total = found.total[:, 0]
    largest = total.reciprocal()
    bounds = [largest]
    for each in sets:
        if each.rule in ("min_p", "epsilon", "eta"):
            bounds.append(_find_threshold(each, largest, entropy))
        elif each.rule == "top_n_sigma":
            bounds.append(largest * (-each.value * spread).exp())
    widest = int(max((each.value for each in sets if each.rule == "top_k"), default=0))
    if widest:
        few = maxima is None or maxima.shape[-1] < widest
        values = found.exponentials if few else maxima
        bounds.append(_reach(values, min(widest, values.shape[-1])) / total)
    return torch.stack(bounds).amin(0) * (1 - SLACK)


def _reach(values: torch.Tensor, number: int) -> torch.Tensor:
    """A value (R,) that this ``number`` of the ``values`` (R, C) reach, which may be the maxima of columns."""
    return values.topk(number, dim=-1, sorted=False).values.amin(-1)


def find_likeliest(
    found: Exponentials, entropy: torch.Tensor, spread: torch.Tensor, sets: Sequence[CandidateSet]
) -> Likeliest:
    """The likeliest tokens of R rows, by their exponentials alone. ``entropy`` (R,) is H(p), ``spread`` (R,) that of
    `measure_spread`."""
    values, total = found.exponentials, found.total[:, 0]
    columns = values.shape[-1] // COLUMN
    maxima = values[:, : columns * COLUMN].view(-1, COLUMN, columns).amax(1) if columns else None
    bounds = _find_bounds(found, maxima, entropy, spread, sets)
    bounds = total * _lower_bounds(values, total, maxima, bounds, entropy, sets)
    places = _find_true(values >= bounds[:, None])
    rows = places // values.shape[-1]
    # divided before they are sorted: two values can become the same probability, and then the lower id comes first
    probs = values.flatten().index_select(0, places) / total.index_select(0, rows)
    return Likeliest(rows, places - rows * values.shape[-1], probs, entropy, spread)


def _find_true(chosen: torch.Tensor) -> torch.Tensor:
    """The places of what is true in ``chosen``, flattened, of which few are.

    On a CPU, to find them among all takes longer than all else here. Eight of them are one integer, which is mostly 0.
    """
    chosen = chosen.flatten()
    words = pad(chosen, (0, -len(chosen) % 8)).view(torch.int64)
    places = (torch.nonzero(words) * 8 + torch.arange(8, device=chosen.device)).flatten()
    inside = words.view(torch.bool).index_select(0, places)
    return places.index_select(0, torch.nonzero(inside)[:, 0])


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
    needed, typical = (
        max((each.value for each in sets if each.rule == rule), default=0) for rule in ("top_p", "typical")
    )
    if max(needed, typical) + SLACK >= 1:
        return torch.full_like(bounds, tiny)
    bounds = bounds.clamp_min(tiny)
    if not (needed or typical):
        return bounds
    left, second = torch.arange(len(values), device=values.device), maxima is not None
    if maxima is not None:
        enough, reached = _bound_by_maxima(maxima / total[:, None], entropy, needed, typical)
        bounds = torch.where(enough, torch.minimum(bounds, reached), bounds)
        left = torch.nonzero(~enough)[:, 0]
    while len(left):
        if second:
            reached = _reach(maxima[left], min(SECOND, maxima.shape[-1])) / total[left] * (1 - SLACK)
            bounds[left], second = torch.minimum(bounds[left] / STEP, reached), False
        else:
            bounds[left] /= STEP
        bounds[left] = bounds[left].clamp_min(tiny)
        every = len(left) == len(values)
        own = values if every else values.index_select(0, left)
        bound, sums = bounds[left], total[left]
        inside = _sum_above(own, bound * sums) / sums
        enough = inside >= needed + SLACK
        if typical:
            limit, atypical = _limit_typical(bound, entropy[left])
            likely = torch.nonzero(atypical * sums < 1)[:, 0]  # the largest exponential is 1
            if len(likely):
                above = _sum_above(own[likely], (atypical * sums)[likely]) / sums[likely]
                inside = inside.index_add(0, likely, above, alpha=-1)
            enough &= (inside >= typical + SLACK) & (limit > 0)
        left = left[~enough & (bound > tiny)]
    return bounds


def _limit_typical(bounds: torch.Tensor, entropy: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """How far from the ``entropy`` the information of a token of each probability in ``bounds`` is, in nats.

    Less likely tokens are less typical, and so are those that are likelier than the second result.
    """
    limit = -bounds.log() - entropy
    return limit, (limit - entropy).exp()


def _bound_by_maxima(
    maxima: torch.Tensor, entropy: torch.Tensor, needed: float, typical: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Whether the sets that are defined by their mass are known to be complete above a bound, and this bound (R,).

    ``maxima`` (R, C) are probabilities of some of the tokens, so that the others can only add to the mass above it.
    """
    top = 0x3F800000 >> STEP_BITS  # of a probability of 1
    steps = (top - torch.arange(STEPS, dtype=torch.int32, device=maxima.device)) << STEP_BITS
    edges = steps.view(torch.float32)
    # where there is NaN, nothing matters: the row is refused later
    place = (top - (maxima.view(torch.int32) >> STEP_BITS)).clamp_(0, STEPS).long()
    mass = maxima.new_zeros(len(maxima), STEPS + 1).scatter_add_(1, place, maxima)[:, :STEPS].cumsum(1)
    enough = mass >= needed + SLACK
    if typical:
        limit, atypical = _limit_typical(edges, entropy[:, None])
        place = (top - (atypical.view(torch.int32) >> STEP_BITS)).clamp_(0, STEPS - 1).long()
        mass = mass - torch.where(atypical < 1, mass.gather(1, place), 0)
        enough &= (mass >= typical + SLACK) & (limit > 0)
    # sums only grow with lower bounds, so that the first one is where it begins to be enough
    first = (~enough).sum(1)
    return first < STEPS, edges[first.clamp_max(STEPS - 1)] * (1 - SLACK)


def _sum_above(values: torch.Tensor, bounds: torch.Tensor) -> torch.Tensor:
    """Sums (R,) of the exponentials in each row (R, V) that are above its bound (R,).

    Comparing and selecting takes several times as long on a CPU as what is done here.
    """
    bounds = bounds.clamp_min(LEAST_BOUND)
    return threshold(values * bounds.reciprocal()[:, None], 1, 0).sum(-1) * bounds


def _find_typical(window: Sorted, entropy: torch.Tensor, mass: float) -> torch.Tensor:
    """The extents (R, 4) of the fewest tokens with information nearest to the entropy that have this ``mass``.

    Among equally typical tokens the likelier one comes first, then the lower id.
    """
    probs, rows = window.probs, window.rows
    first, last = window.offsets[:-1], window.offsets[1:]
    shift = torch.where(probs > 0, (probs.log() + entropy.index_select(0, rows)).abs(), torch.inf)
    _, order = sort_keys((rows << 32) + shift.view(torch.int32))
    sums = probs.index_select(0, order).cumsum(0, dtype=choose_sum_dtype(probs.device))
    end = torch.minimum(torch.searchsorted(sums, pad(sums, (1, 0))[first] + mass), last - 1)  # the last one chosen
    chosen = torch.zeros_like(probs, dtype=torch.bool)
    chosen[order] = torch.arange(len(order), device=order.device) <= end.index_select(0, rows)
    return _find_runs(chosen & (probs > 0), window.offsets)


def _find_runs(chosen: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """The first and the last run of true values in each row of ``chosen`` (K,), as (R, 4); both are the same if there
    is one, and none is empty."""
    first, last = offsets[:-1], offsets[1:]
    before, after = pad(chosen[:-1], (1, 0)), pad(chosen[1:], (0, 1))
    before, after = before.index_fill(0, first, False), after.index_fill(0, last - 1, False)
    starts, ends = torch.nonzero(chosen & ~before)[:, 0], torch.nonzero(chosen & ~after)[:, 0] + 1
    one, other = torch.searchsorted(starts, first), torch.searchsorted(starts, last) - 1
    runs = torch.stack((starts[one], ends[one], starts[other], ends[other]), -1)
    return runs - first[:, None]
