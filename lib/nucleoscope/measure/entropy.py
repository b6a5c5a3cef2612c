"""How spread out a choice is: entropies, in nats, over ragged nuclei and full distributions.

Contract: probabilities or logits in, one number per row out, on the same device. A ragged batch
is (values (K,), offsets (B + 1,)), as in `nucleus.Nucleus`; no row may be empty. Sums over a nucleus
are float64.
"""

from typing import NamedTuple

import torch

from nucleoscope.measure.ragged import compute_shares, repeat_rows, sum_rows
from nucleoscope.measure.softmax import compute_log_probabilities

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
    q = compute_shares(probs, offsets)
    information = -q.log()
    entropy = sum_rows(q * information, offsets)
    spread = information - repeat_rows(entropy, offsets, len(q))
    collision = -sum_rows(q.square(), offsets).log()
    return NucleusEntropies(entropy.clamp_min(0), sum_rows(q * spread.square(), offsets), collision.clamp_min(0))


def compute_full_entropies(logits: torch.Tensor) -> FullEntropies:
    """Entropy H(p) and varentropy Var_p(-log p) of p = softmax(logits) over the last axis: (B, V) -> (B,) each.

    H is in [0, log V] nats. Logits of -inf (p = 0) contribute nothing.
    """
    parts = [_compute_full_entropy(rows.float()) for rows in logits.split(_choose_rows_per_piece(logits))]
    return FullEntropies(*(torch.cat(part) for part in zip(*parts, strict=True)))


def _compute_full_entropy(logits: torch.Tensor) -> FullEntropies:
    # Below -104, p is 0 in float32; a finite value instead of -inf keeps 0 * log p from being NaN.
    log_p = compute_log_probabilities(logits).clamp_min_(-200)
    p = log_p.exp()
    mean = (p * log_p).sum(-1)
    variance = log_p.sub_(mean[:, None]).square_().mul_(p).sum(-1)  # E[x^2] - E[x]^2 would lose digits
    return FullEntropies((-mean).clamp_min(0), variance, p.amax(-1))


def _choose_rows_per_piece(logits: torch.Tensor) -> int:
    return max(1, (PIECE_CPU if logits.device.type == "cpu" else PIECE_GPU) // logits.shape[-1])
