"""How spread out a choice is: entropies, in nats, over ragged nuclei and full distributions.

Contract: probabilities or logits in, one number per row out, on the same device. A ragged batch
is (values (K,), offsets (B + 1,)), as in `nucleus.Nucleus`; no row may be empty. Sums over a nucleus
are float64.
"""

from typing import NamedTuple

import torch

# Logits processed at once: on a CPU as many as fit in its cache (allocating memory at each step costs
# more than the sums), on a GPU as many as keep it busy.
PIECE_CPU, PIECE_GPU = 2**19, 2**28


class NucleusEntropies(NamedTuple):
    """Per nucleus, (B,) each: entropy and collision entropy in nats, varentropy in nats^2."""

    entropy: torch.Tensor
    varentropy: torch.Tensor
    collision_entropy: torch.Tensor


class FullEntropies(NamedTuple):
    """Per full distribution, (B,) each: entropy in nats, varentropy in nats^2, the largest probability."""

    entropy: torch.Tensor
    varentropy: torch.Tensor
    largest: torch.Tensor


def compute_nucleus_entropies(probs: torch.Tensor, offsets: torch.Tensor) -> NucleusEntropies:
    """Entropy H(q), varentropy Var_q(-log q) and collision entropy -log sum q^2 of each nucleus.

    ``probs`` (K,) are the nuclei's probabilities under the full distribution, all positive; q are the
    probabilities of one nucleus divided by their mass. H is in [0, log k] (Shannon 1948); varentropy is the
    variance of the information content (Kontoyiannis and Verdu, "Optimal Lossless Data
    Compression: Non-Asymptotics and Asymptotics", 2014); collision entropy is the Renyi entropy of
    order 2 (Renyi, "On measures of entropy and information", 1961), in [0, H].
    """
    q = _compute_shares(probs, offsets)
    information = -q.log()
    entropy = _sum_rows(q * information, offsets)
    spread = information - _repeat_rows(entropy, offsets, len(q))
    collision = -_sum_rows(q.square(), offsets).log()
    return NucleusEntropies(entropy.clamp_min(0), _sum_rows(q * spread.square(), offsets), collision.clamp_min(0))


def compute_full_entropies(logits: torch.Tensor) -> FullEntropies:
    """Entropy H(p) and varentropy Var_p(-log p) of p = softmax(logits) over the last axis: (B, V) -> (B,) each.

    H is in [0, log V] nats. Logits of -inf (p = 0) contribute nothing. With z = logits - max: -log p =
    log sum e^z - z, so H = log sum e^z - sum p z, and the variance is that of z.
    """
    parts = [_compute_full_entropy(rows.float()) for rows in logits.split(_choose_rows_per_piece(logits))]
    return FullEntropies(*(torch.cat(part) for part in zip(*parts, strict=True)))


def _compute_full_entropy(logits: torch.Tensor) -> FullEntropies:
    # Below -104, e^z is 0 in float32; a finite value instead of -inf keeps 0 * z from being NaN.
    z = (logits - logits.amax(-1, keepdim=True)).clamp_min_(-200)
    p = z.softmax(-1)
    largest = p.amax(-1)
    log_total = -largest.log()  # the maximum has z = 0, so its p is 1 / sum e^z
    mean = (p * z).sum(-1)
    variance = z.sub_(mean[:, None]).square_().mul_(p).sum(-1)  # E[z^2] - E[z]^2 would lose digits
    return FullEntropies((log_total - mean).clamp_min(0), variance, largest)


def _choose_rows_per_piece(logits: torch.Tensor) -> int:
    return max(1, (PIECE_CPU if logits.device.type == "cpu" else PIECE_GPU) // logits.shape[-1])


def _compute_shares(probs: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """q (K,): each nucleus's probabilities divided by their mass."""
    wide = probs.to(_choose_wide_dtype(probs))
    return wide / _repeat_rows(_sum_rows(wide, offsets), offsets, len(probs))


def _sum_rows(values: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """Row sums (B,) of ragged ``values`` (K,)."""
    return torch.segment_reduce(values, "sum", offsets=offsets, axis=0)


def _repeat_rows(values: torch.Tensor, offsets: torch.Tensor, total: int) -> torch.Tensor:
    """Row values (B,) repeated for each of a row's entries: (K,), without a copy to the host."""
    return torch.repeat_interleave(values, offsets.diff(), output_size=total)


def _choose_wide_dtype(values: torch.Tensor) -> torch.dtype:
    """float64 for sums, except on Apple's GPUs, which do not have it."""
    return torch.float32 if values.device.type == "mps" else torch.float64
