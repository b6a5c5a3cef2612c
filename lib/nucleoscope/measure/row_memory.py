"""Rows of an embedding matrix by their ids, in float32, in memory that is reused.

Contract: ids in, rows out, on any device. On a CPU, new memory for rows takes nearly as long as the rows themselves;
on a GPU, torch reuses memory by itself.
"""

import torch


class RowMemory:
    """Memory for a ``number`` of rows of the ``matrix`` (V, d), as they are and, on the ``device``, in float32."""

    def __init__(self, matrix: torch.Tensor, number: int, device: torch.device):
        self.matrix, width = matrix, matrix.shape[1]
        self.wide = torch.empty(number, width, device=device)
        same = (matrix.dtype, matrix.device) == (self.wide.dtype, self.wide.device)
        self.narrow = self.wide if same else matrix.new_empty(number, width)

    def gather(self, ids: torch.Tensor) -> torch.Tensor:
        """Rows (..., d) of ``ids`` of any shape, valid until the next call. ValueError if they are too many."""
        if ids.numel() > len(self.narrow):
            raise ValueError(f"{ids.numel()} rows do not fit in memory for {len(self.narrow)}")
        rows = self.narrow[: ids.numel()]
        torch.index_select(self.matrix, 0, ids.flatten().to(self.matrix.device), out=rows)
        if self.narrow is not self.wide:
            rows = self.wide[: ids.numel()].copy_(rows)
        return rows.view(*ids.shape, self.matrix.shape[1])
