"""The exact nucleus of a next-token distribution.

Contract: logits in, a ragged batch of nuclei out. This module does not depend on models, prompts
or embeddings. Everything is float32, sums of probabilities are float64, and a whole vocabulary is
never sorted.

The nucleus (Holtzman et al., "The Curious Case of Neural Text Degeneration", ICLR 2020) is the
smallest prefix of the tokens, ordered by falling probability, whose mass is at least ``top_p``.
Ties are broken by the lower id, so that the nucleus is a well-defined list.
"""

from itertools import accumulate
from typing import NamedTuple

import torch
from torch.nn.utils.rnn import pad_sequence

from nucleoscope.measure.ragged import choose_sum_dtype
from nucleoscope.measure.softmax import Exponentials, exponentiate, split_rows
from nucleoscope.measure.sorting import create_keys, sort_keys
from nucleoscope.settings import Settings, validate

WINDOW = 128  # tokens examined first; wide enough for most steps of most models
COLUMN = 32  # values of which one maximum is taken: see `_find_largest`
FIRST_BOUND = 1024  # tokens above the first bound of a wide nucleus: enough for most
HALVINGS = 8  # of the logarithmic bracket around a wide nucleus's smallest probability
SLACK = 1e-4  # mass by which a wide row's candidates exceed top_p: far above float32 rounding


class Nucleus(NamedTuple):
    """The nuclei of a batch of B distributions, concatenated (K tokens in all).

    ``ids`` (K,) int64 and ``probs`` (K,) float32, by falling probability within a row; ``probs``
    are probabilities under the full distribution, so those of one row sum to its mass.
    ``offsets`` (B + 1,) int64: row b is ``offsets[b]:offsets[b + 1]``; no row is empty.
    """

    ids: torch.Tensor
    probs: torch.Tensor
    offsets: torch.Tensor


class NotFinite(ValueError):
    """Logits that do not define a distribution; ``rows`` lists the rows that contain them."""

    def __init__(self, rows: list[int]):
        super().__init__(f"the logits of row {', '.join(map(str, rows))} contain NaN, +inf or no finite value")
        self.rows = rows


def scale_logits(logits: torch.Tensor, settings: Settings) -> torch.Tensor:
    """``logits`` (B, V) at temperature T: softmax(logits / T) is measured and sampled from.

    At T = 1 they are returned unchanged, otherwise divided in float32.
    """
    return logits if settings.temperature == 1 else logits.float() / settings.temperature


def find_nucleus(logits: torch.Tensor, top_p: float, window: int = WINDOW) -> Nucleus:
    """The nucleus of each row of ``logits`` (B, V), any floating type; -inf means p = 0.

    Tokens of probability 0 (including underflow) are in no nucleus; with ``top_p`` = 1 all others
    are in it. Waits for the device once per `split_rows`, to copy the sizes to the host; rows that do not fit in
    ``window`` cost a few more waits.

    Raises ValueError for ``top_p`` outside (0, 1], NotFinite (with the rows) for NaN or +inf.
    """
    validate("top_p", top_p)
    return join_nuclei([find_piece(exponentiate(piece), top_p, window) for piece in split_rows(logits)])


class NucleusPiece(NamedTuple):
    """The nuclei of R rows, concatenated, and their sizes on the host: -1 for a row that is not finite.

    ``second`` (R,) is the second largest logit minus the largest; -inf in a vocabulary of one.
    """

    ids: torch.Tensor
    probs: torch.Tensor
    second: torch.Tensor
    sizes: list[int]


def find_piece(found: Exponentials, top_p: float, window: int = WINDOW) -> NucleusPiece:
    """The nuclei of the rows of one `softmax.exponentiate`; no row is refused."""
    width = min(max(window, 2), found.z.shape[-1])
    ids, values, sizes = _find_top(found, top_p, width)  # (B, W), (B, W), (B,)
    second = found.z.gather(-1, ids[:, 1:2])[:, 0] if width > 1 else torch.full_like(found.z[:, 0], -torch.inf)
    host = sizes.tolist()
    wide = [b for b, k in enumerate(host) if k == 0]
    starts = torch.arange(len(host), device=ids.device) * width  # of each row in the pool
    pool_ids, pool_values = ids.flatten(), values.flatten()
    if wide:
        index = torch.tensor(wide, device=ids.device)
        probs = found.exponentials[index] / found.total[index]
        ids, values, counts = _find_wide(probs, top_p)
        starts[index] = pool_ids.numel() + counts.cumsum(0) - counts
        sizes = sizes.index_copy(0, index, counts)
        pool_ids, pool_values = torch.cat((pool_ids, ids)), torch.cat((pool_values, values))
        for row, count in zip(wide, counts.tolist(), strict=True):
            host[row] = count
    sizes = sizes.clamp_min(0)
    ends, total = sizes.cumsum(0), sum(size for size in host if size > 0)
    shift = torch.repeat_interleave(starts - ends + sizes, sizes, output_size=total)
    index = torch.arange(total, device=ids.device) + shift
    return NucleusPiece(pool_ids[index], pool_values[index], second, host)


def join_nuclei(pieces: list[NucleusPiece]) -> Nucleus:
    """The nuclei of all rows. NotFinite, with the rows, if one has none."""
    sizes = [size for piece in pieces for size in piece.sizes]
    if -1 in sizes:
        raise NotFinite([row for row, size in enumerate(sizes) if size < 0])
    ids, probs = torch.cat([piece.ids for piece in pieces]), torch.cat([piece.probs for piece in pieces])
    return Nucleus(ids, probs, torch.tensor([0, *accumulate(sizes)], device=ids.device))


def _find_top(found: Exponentials, top_p: float, width: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The ``width`` likeliest tokens in order, and the nucleus's size: 0 if undecided, -1 if not finite.

    A window decides a row if the nucleus ends strictly above the window's last probability: otherwise,
    tokens tied with the last one may be outside the window.
    """
    values, ids = _find_largest(found.exponentials, width)
    values = values / found.total
    # Non-negative floats have the same order as their bits, so one integer key encodes "probability, then id".
    order = ((values.view(torch.int32).long() << 32) - ids).argsort(dim=-1, descending=True)
    values, ids = values.gather(-1, order), ids.gather(-1, order)
    sizes = _count_sizes(values, top_p)
    last = values[:, -1]
    settled = values.gather(-1, sizes[:, None] - 1)[:, 0] > last
    settled |= (last == 0) | (width == found.z.shape[-1])
    sizes = torch.where(settled, sizes, 0)
    return ids, values, torch.where(values[:, 0].isnan(), -1, sizes)


def _find_largest(values: torch.Tensor, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The ``width`` largest of each row (R, V), in no particular order, and their places: (R, width) each.

    Selecting from a whole vocabulary takes longer than all else here. Of columns of `COLUMN` values each, the
    ``width`` with the largest maxima contain them: all other columns have only values that are not larger than
    ``width`` maxima.
    """
    columns = values.shape[-1] // COLUMN
    if columns <= 2 * width:
        return values.topk(width, dim=-1, sorted=False)
    start = columns * COLUMN  # what is left is examined in full
    best = _find_maxima(values).topk(width, dim=-1, sorted=False).indices
    inside = columns * torch.arange(COLUMN, device=values.device)
    rest = torch.arange(start, values.shape[-1], device=values.device).expand(len(values), -1)
    places = torch.cat(((best[:, None] + inside[:, None]).flatten(1), rest), dim=1)
    largest, chosen = values.gather(-1, places).topk(width, dim=-1, sorted=False)
    return largest, places.gather(-1, chosen)


def _find_maxima(values: torch.Tensor) -> torch.Tensor:
    """The maxima (R, V // COLUMN) of columns: column i consists of the values at i, i + V // COLUMN, and so on."""
    columns = values.shape[-1] // COLUMN
    return values[:, : columns * COLUMN].view(-1, COLUMN, columns).amax(1)


def _count_sizes(values: torch.Tensor, top_p: float) -> torch.Tensor:
    """Length (R,) of the smallest prefix of sorted ``values`` (R, W) with mass >= top_p.

    Zeros are never counted; if the mass of a row stays below top_p (rounding, or a window that is
    too narrow), all its positive values count. With top_p = 1, a rounded sum could reach 1 too early.
    """
    positive = (values > 0).sum(-1).clamp_min(1)
    if top_p == 1:
        return positive
    below = values.cumsum(-1, dtype=choose_sum_dtype(values.device)) < top_p
    return torch.minimum(below.sum(-1) + 1, positive)


def _find_wide(probs: torch.Tensor, top_p: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The nuclei of rows (R, V) wider than the window: ids and values, concatenated, and sizes (R,)."""
    rows, ids = torch.nonzero(probs >= _bound_below(probs, top_p)[:, None], as_tuple=True)
    values = probs[rows, ids]
    # nonzero lists ids in increasing order and the sort is stable, so the lower id comes first among ties.
    _, order = sort_keys(create_keys(rows, values))
    ids, values = ids[order], values[order]
    counts = torch.bincount(rows, minlength=len(probs))
    padded = pad_sequence(values.split(counts.tolist()), batch_first=True)  # (R, C)
    sizes = _count_sizes(padded, top_p)
    position = torch.arange(len(ids), device=probs.device) - (counts.cumsum(0) - counts)[rows]
    keep = position < sizes[rows]
    return ids[keep], values[keep], sizes


def _bound_below(probs: torch.Tensor, top_p: float) -> torch.Tensor:
    """A lower bound (R,) of the probabilities in each row's nucleus, close to the smallest of them.

    A token with a probability below (1 - top_p) / V is never needed: together with all less likely tokens
    it has a mass below 1 - top_p. A bound that about `FIRST_BOUND` tokens reach is tried first. Where these
    have too little mass, starting from half of (1 - top_p) / V, bisect upwards as long as the tokens at or above
    the midpoint have a mass of at least top_p, plus some slack.
    """
    tiny = torch.finfo(probs.dtype).smallest_normal * torch.finfo(probs.dtype).eps  # the smallest positive number
    low = torch.full_like(probs[:, 0], max((1 - top_p) / (2 * probs.shape[-1]), tiny))
    if 1 - top_p <= 4 * SLACK:
        return torch.full_like(low, tiny)
    maxima = _find_maxima(probs) if probs.shape[-1] >= COLUMN else probs
    bound = maxima.topk(min(FIRST_BOUND, maxima.shape[-1]), dim=-1, sorted=False).values.amin(-1).clamp_min(tiny)
    found = _has_mass(probs, bound, top_p)
    if bool(found.all()):
        return bound
    low, high = torch.where(found, bound, low), torch.where(found, probs.amax(-1), bound)
    for _ in range(HALVINGS):
        middle = (low * high).sqrt()
        enough = _has_mass(probs, middle, top_p)
        low, high = torch.where(enough, middle, low), torch.where(enough, high, middle)
    return low


def _has_mass(probs: torch.Tensor, bound: torch.Tensor, top_p: float) -> torch.Tensor:
    """Whether the tokens of each row (R, V) that have at least a probability of ``bound`` (R,) have enough mass."""
    # 1 or 0 as numbers of the same type, times p: a fifth of the time of `torch.where` on a CPU
    reached = torch.ge(probs, bound[:, None], out=torch.empty_like(probs))
    return reached.mul_(probs).sum(-1) >= top_p + SLACK
