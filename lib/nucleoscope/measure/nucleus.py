"""The exact nucleus of a next-token distribution.

Contract: logits in, a ragged batch of nuclei out. This module does not depend on models, prompts
or embeddings. Everything is float32, sums of probabilities are float64, and a whole vocabulary is
never sorted.

The nucleus (Holtzman et al., "The Curious Case of Neural Text Degeneration", ICLR 2020) is the
smallest prefix of the tokens, ordered by falling probability, whose mass is at least ``top_p``.
Ties are broken by the lower id, so that the nucleus is a well-defined list.
"""

from typing import NamedTuple

import torch
from torch.nn.utils.rnn import pad_sequence

from nucleoscope.measure.ragged import choose_sum_dtype
from nucleoscope.measure.softmax import compute_probabilities
from nucleoscope.settings import Settings, validate

WINDOW = 128  # tokens examined first; wide enough for most steps of most models
HALVINGS = 8  # of the logarithmic bracket around a wide nucleus's smallest probability
# Probabilities processed at once: on a CPU as many as fit in its cache (allocating memory at each step
# costs more than the search), on a GPU as many as keep it busy.
PIECE_CPU, PIECE_GPU = 2**19, 2**28
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
    are in it. Waits for the device once, to copy the B sizes to the host; rows that do not fit in
    ``window`` cost a few more waits.

    Raises ValueError for ``top_p`` outside (0, 1], NotFinite (with the rows) for NaN or +inf.
    """
    validate("top_p", top_p)
    rows = max(1, (PIECE_CPU if logits.device.type == "cpu" else PIECE_GPU) // logits.shape[-1])
    tops = [
        _find_top(compute_probabilities(piece), top_p, min(window, logits.shape[-1])) for piece in logits.split(rows)
    ]
    ids, values, sizes = (torch.cat(parts) for parts in zip(*tops, strict=True))  # (B, W), (B, W), (B,)
    host = sizes.tolist()
    if -1 in host:
        raise NotFinite([b for b, k in enumerate(host) if k < 0])

    starts = torch.arange(len(host), device=logits.device) * ids.shape[1]  # of each row in the pool
    pool_ids, pool_values = ids.flatten(), values.flatten()
    wide = [b for b, k in enumerate(host) if k == 0]
    if wide:
        index = torch.tensor(wide, device=logits.device)
        ids, values, counts = _find_wide(compute_probabilities(logits[index]), top_p)
        starts[index] = pool_ids.numel() + counts.cumsum(0) - counts
        sizes = sizes.index_copy(0, index, counts)
        pool_ids, pool_values = torch.cat((pool_ids, ids)), torch.cat((pool_values, values))

    total = sum(host) + (len(ids) if wide else 0)
    offsets = torch.nn.functional.pad(sizes.cumsum(0), (1, 0))
    shift = torch.repeat_interleave(starts - offsets[:-1], sizes, output_size=total)
    index = torch.arange(total, device=logits.device) + shift
    return Nucleus(pool_ids[index], pool_values[index], offsets)


def _find_top(probs: torch.Tensor, top_p: float, width: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The ``width`` likeliest tokens in order, and the nucleus's size: 0 if undecided, -1 if not finite.

    A window decides a row if the nucleus ends strictly above the window's last probability: otherwise,
    tokens tied with the last one may be outside the window.
    """
    values, ids = probs.topk(width, dim=-1, sorted=False)
    # Non-negative floats have the same order as their bits, so one integer key encodes "probability, then id".
    order = ((values.view(torch.int32).long() << 32) - ids).argsort(dim=-1, descending=True)
    values, ids = values.gather(-1, order), ids.gather(-1, order)
    sizes = _count_sizes(values, top_p)
    last = values[:, -1]
    settled = values.gather(-1, sizes[:, None] - 1)[:, 0] > last
    settled |= (last == 0) | (width == probs.shape[-1])
    sizes = torch.where(settled, sizes, 0)
    return ids, values, torch.where(values[:, 0].isnan(), -1, sizes)


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
    order = ((rows << 32) - values.view(torch.int32)).argsort(stable=True)
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
    it has a mass below 1 - top_p. Starting from half of that bound, bisect upwards as long as the tokens
    at or above the midpoint have a mass of at least top_p, plus some slack.
    """
    tiny = torch.finfo(probs.dtype).smallest_normal * torch.finfo(probs.dtype).eps  # the smallest positive number
    low = torch.full_like(probs[:, 0], max((1 - top_p) / (2 * probs.shape[-1]), tiny))
    if 1 - top_p <= 4 * SLACK:
        return torch.full_like(low, tiny)
    high = probs.amax(-1)
    for _ in range(HALVINGS):
        middle = (low * high).sqrt()
        mass = torch.where(probs >= middle[:, None], probs, 0).sum(-1)
        enough = mass >= top_p + SLACK
        low, high = torch.where(enough, middle, low), torch.where(enough, high, middle)
    return low
