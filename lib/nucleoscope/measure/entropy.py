"""How spread out a choice is: entropies, in nats, over ragged nuclei and full distributions.

Contract: probabilities or logits in, one number per row out, on the same device. A ragged batch
is (values (K,), offsets (B + 1,)), as in `nucleus.Nucleus`; no row may be empty. Sums over a nucleus
are float64.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from nucleoscope.measure.ragged import compute_shares, repeat_rows, sum_rows
from nucleoscope.measure.softmax import Exponentials, exponentiate, split_rows


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
    information = 0 - q.log()  # not -0, of q = 1
    entropy = sum_rows(q * information, offsets)
    spread = information - repeat_rows(entropy, offsets, len(q))
    collision = 0 - sum_rows(q.square(), offsets).log()
    return NucleusEntropies(entropy.clamp_min(0), sum_rows(q * spread.square(), offsets), collision.clamp_min(0))


def compute_full_entropies(logits: torch.Tensor) -> FullEntropies:
    """What `FullEntropies` says of softmax(logits) over the last axis: (B, V) -> (B,) each.

    H is in [0, log V] nats. Logits of -inf (p = 0) contribute nothing.
    """
    return join_entropies([summarise(exponentiate(rows)) for rows in split_rows(logits)])


def join_entropies(parts: Sequence[FullEntropies]) -> FullEntropies:
    """The entropies of some pieces in one."""
    return FullEntropies(*(torch.cat(part) if len(part) > 1 else part[0] for part in zip(*parts, strict=True)))


def summarise(found: Exponentials) -> FullEntropies:
    """The entropies of the rows of `softmax.exponentiate`, whose ``z`` is overwritten: it takes too long to copy."""
    z, exponentials, total, _ = found
    # Below -104, p is 0 in float32; a finite value instead of -inf keeps 0 * log p from being NaN.
    z.clamp_min_(-200)
    product = exponentials * z
    mean = product.sum(-1, keepdim=True) / total  # of z; both terms of H are positive, so that no digits are lost
    entropy = (total.log() - mean)[:, 0]
    # E[x^2] - E[x]^2 would lose digits
    variance = torch.mul(z.sub_(mean).square_(), exponentials, out=product).sum(-1) / total[:, 0]
    return FullEntropies(entropy.clamp_min(0), variance, total[:, 0].reciprocal())
