"""Probabilities from logits, in the one way that every quantity uses.

Contract: float32 in and out, on any device; a row of logits that defines no distribution gives NaN.
"""

from typing import NamedTuple

import torch

# Logits processed at once: on a CPU as many as fit in its largest cache (allocating memory at each step
# costs more than the arithmetic), on a GPU as many as keep it busy.
PIECE_CPU, PIECE_GPU = 2**20, 2**28


class Exponentials(NamedTuple):
    """Logits (B, V) as z = logits - largest, and e^z with its sum: p = e^z / sum, log p = z - log sum. Float32.

    torch's own float32 softmax on a CPU is off by 5e-5, and its sum from 1 as well, where V is 262,144: enough
    to make nuclei a token too short. A sum of its own is not. Dividing e^z is also more exact than e^(z - log sum),
    whose exponent has been rounded.
    """

    z: torch.Tensor
    exponentials: torch.Tensor
    total: torch.Tensor  # (B, 1)
    largest: torch.Tensor  # (B, 1)

    def compute_probabilities(self) -> torch.Tensor:
        """p (B, V)."""
        return self.exponentials / self.total


def split_rows(logits: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """``logits`` (B, V) in pieces of as many rows as are efficient at once."""
    rows = max(1, (PIECE_CPU if logits.device.type == "cpu" else PIECE_GPU) // logits.shape[-1])
    return logits.split(rows)


def exponentiate(logits: torch.Tensor) -> Exponentials:
    """The exponentials of logits (B, V) of any floating type, which stay as they are."""
    logits = logits.float()
    largest = logits.amax(-1, keepdim=True)
    z = logits - largest
    exponentials = z.exp()
    return Exponentials(z, exponentials, exponentials.sum(-1, keepdim=True), largest)
