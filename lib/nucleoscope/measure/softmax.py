"""Probabilities from logits, in the one way that every quantity uses.

Contract: float32 in and out, on any device; a row of logits that defines no distribution gives NaN.
"""

import torch


def compute_log_probabilities(logits: torch.Tensor) -> torch.Tensor:
    """log p (B, V) float32 of logits (B, V) of any floating type: z - log sum e^z, with z = logits - max.

    torch's own float32 softmax on a CPU is off by 5e-5, and its sum from 1 as well, where V is 262,144: enough
    to make nuclei a token too short. Its logsumexp is not. Without the maximum, a probability near 1 would
    lose the digits of log p.
    """
    logits = logits.float()
    z = logits - logits.amax(-1, keepdim=True)
    return z.sub_(z.logsumexp(-1, keepdim=True))


def compute_probabilities(logits: torch.Tensor) -> torch.Tensor:
    """p (B, V) float32; see `compute_log_probabilities`."""
    return compute_log_probabilities(logits).exp_()
