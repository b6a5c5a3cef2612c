"""How spread out a choice was: entropies, in nats, over ragged nuclei and full distributions.

Contract: probabilities or logits in, one number a row out, on the device they came from. A
ragged batch is (values (K,), offsets (B + 1,)), as `nucleus.Nucleus` holds it; rows may be
empty nowhere. Sums over a nucleus are float64.
"""

import torch

# Logits worked on at once: on a CPU what its cache holds (fresh memory for each step costs more
# than the sums), on a GPU as many as fill it.
PIECE_CPU, PIECE_GPU = 2**19, 2**28


def nucleus_entropy(probs: torch.Tensor, offsets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Entropy H(q) and varentropy Var_q(-log q) of each nucleus: (B,), (B,), in nats and nats^2.

    ``probs`` (K,) are the nuclei's probabilities under the full distribution, all positive; q is
    a row of them divided by its mass. H lies in [0, log k] (Shannon 1948); varentropy is the
    variance of the information content (Kontoyiannis and Verdu, "Optimal Lossless Data
    Compression: Non-Asymptotics and Asymptotics", 2014).
    """
    q = _shares(probs, offsets)
    information = -q.log()
    entropy = _sum(q * information, offsets)
    spread = information - _spread(entropy, offsets, len(q))
    return entropy.clamp_min(0), _sum(q * spread.square(), offsets)


def full_entropy(logits: torch.Tensor) -> torch.Tensor:
    """Entropy H(p) of p = softmax(logits) over the last axis: (B, V) -> (B,), in [0, log V] nats.

    -inf logits (p = 0) add nothing. Computed as log sum e^z - sum p z with z = logits - max.
    """
    return torch.cat([_full_entropy(rows.float()) for rows in logits.split(_rows_per_piece(logits))])


def _full_entropy(logits: torch.Tensor) -> torch.Tensor:
    # Below -104 e^z is 0 in float32; a finite stand-in for -inf keeps 0 * z from being NaN.
    z = (logits - logits.amax(-1, keepdim=True)).clamp_min_(-200)
    p = z.softmax(-1)
    log_total = -p.amax(-1).log()  # the maximum has z = 0, so its p is one over sum e^z
    return (log_total - p.mul_(z).sum(-1)).clamp_min(0)


def _rows_per_piece(logits: torch.Tensor) -> int:
    return max(1, (PIECE_CPU if logits.device.type == "cpu" else PIECE_GPU) // logits.shape[-1])


def _shares(probs: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """q (K,): each nucleus's probabilities divided by their mass."""
    wide = probs.to(torch.float32 if probs.device.type == "mps" else torch.float64)
    return wide / _spread(_sum(wide, offsets), offsets, len(probs))


def _sum(values: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """Row sums (B,) of ragged ``values`` (K,)."""
    return torch.segment_reduce(values, "sum", offsets=offsets, axis=0)


def _spread(values: torch.Tensor, offsets: torch.Tensor, total: int) -> torch.Tensor:
    """Row values (B,) repeated for each of a row's entries: (K,), without a copy to the host."""
    return torch.repeat_interleave(values, offsets.diff(), output_size=total)
