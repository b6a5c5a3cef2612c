"""Sums over ragged rows: values (K,) of B rows after one another, row b at ``offsets[b]:offsets[b + 1]``.

Contract: arithmetic alone, on the device of the values, without a copy to the host.
"""

import torch


def choose_sum_dtype(device: torch.device) -> torch.dtype:
    """float64 for sums of scalars, except on Apple's GPUs, which do not have it."""
    return torch.float32 if device.type == "mps" else torch.float64


def widen(values: torch.Tensor) -> torch.Tensor:
    """``values`` in the data type for sums."""
    return values.to(choose_sum_dtype(values.device))


def sum_rows(values: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """Row sums (B,) of ``values`` (K,) in the data type for sums: torch adds them one by one in their own."""
    return torch.segment_reduce(values, "sum", offsets=offsets, axis=0)


def repeat_rows(values: torch.Tensor, offsets: torch.Tensor, total: int) -> torch.Tensor:
    """Row values (B, ...) repeated for each of a row's entries, ``total`` in all: (K, ...)."""
    return torch.repeat_interleave(values, offsets.diff(), dim=0, output_size=total)


def compute_shares(values: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """``values`` (K,) divided by their row's sum, in the data type for sums."""
    wide = widen(values)
    return wide / repeat_rows(sum_rows(wide, offsets), offsets, len(values))


def pick(values: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """``values[places]``, (n, ...) at places of any shape: much quicker on a CPU, where indexing is general."""
    return values.index_select(0, places.flatten()).view(*places.shape, *values.shape[1:])
