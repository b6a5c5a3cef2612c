"""Sorts many short rows at once, as integers that begin with the number of their row.

Contract: tensors in, tensors out, on the same device.
"""

import numpy as np
import torch

LARGEST_BITS = 0x7F800000  # of a float32 that is not negative and not NaN


def create_keys(rows: torch.Tensor, probs: torch.Tensor) -> torch.Tensor:
    """Integers (K,) that order tokens by row, then by falling probability (float32): floats that are not negative have
    the order of their bits."""
    return (rows << 32) + (LARGEST_BITS - probs.view(torch.int32))


def sort_keys(keys: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``keys`` (K,) int64, none of them negative, in rising order, and their places; of equal ones the first stays
    first.

    On a CPU, numbers alone are sorted several times as fast as numbers with their places. So each place becomes the
    last bits of its number, if there is room for it.
    """
    bits = len(keys).bit_length()
    if keys.device.type != "cpu" or not len(keys) or int(keys.max()) >> (63 - bits):
        return torch.sort(keys, stable=True)
    joined = (keys << bits) + torch.arange(len(keys))
    joined = torch.from_numpy(np.sort(joined.numpy()))
    return joined >> bits, joined & ((1 << bits) - 1)
