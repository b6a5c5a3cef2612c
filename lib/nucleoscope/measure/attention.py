"""Attention of one new token per row on a CPU: over the tokens that a row has, not over the longest row's padding.

Contract: the result is that of transformers' "sdpa" attention, up to the order of sums. It applies only within
`attend_in_groups`, to the thread that entered it; everywhere else transformers' own function does the work.

Reading keys and values from memory is what attention costs at a step. In a batch of rows of different length, each
row reads as many as the longest has; here, rows of similar length form a group, which reads what its longest has.
Without a mask, as for rows of equal length, PyTorch's kernel for grouped queries reads the keys and values again for
each query head that shares them (three to four times as slow here); with one, transformers passes these queries
together. So there always is a mask.
"""

import contextlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

LEAST_ROWS = 16  # of a group: each takes a call of its own in every layer
SHORTER = 7 / 8  # of the longest row's length: a row that is shorter begins a new group


@dataclass
class RowGroups:
    """Rows of similar length: the slice of each group's rows with the column in which its longest row begins.

    ``width`` is the number of columns, with the new token's. ``masks`` are those of the groups, made once for all
    layers that have the same mask. That is kept beside them, so that no other mask gets its address.
    """

    parts: list[tuple[slice, int]]
    width: int
    masks: dict[tuple[int, torch.dtype], tuple[torch.Tensor | None, list[torch.Tensor]]] = field(default_factory=dict)

    def cut_mask(self, mask: torch.Tensor | None, query: torch.Tensor) -> list[torch.Tensor]:
        """A layer's mask (B or 1, H or 1, 1, width), or one that hides nothing, for each of the groups.

        PyTorch's kernel adds a mask to the scores, and would convert a boolean one at every call. No row is fully
        masked: each new token attends to itself.
        """
        key = id(mask), query.dtype
        if key not in self.masks:
            added = query.new_zeros((1, 1, 1, self.width)) if mask is None else mask
            if added.dtype == torch.bool:
                added = torch.zeros_like(added, dtype=query.dtype).masked_fill_(~added, -torch.inf)
            self.masks[key] = mask, [_cut(added, *part) for part in self.parts]
        return self.masks[key][1]


def form_groups(lengths: Sequence[int], width: int) -> list[tuple[slice, int]]:
    """Groups of consecutive rows, which all end in column ``width`` and have these ``lengths``: see `RowGroups`."""
    found, start = [], 0
    for end in range(1, len(lengths) + 1):
        if end == len(lengths) or (end - start >= LEAST_ROWS and lengths[end] < SHORTER * max(lengths[start:end])):
            found.append((slice(start, end), width - max(lengths[start:end])))
            start = end
    return found


_ACTIVE = threading.local()


@contextlib.contextmanager
def attend_in_groups(parts: list[tuple[slice, int]], width: int) -> Iterator[None]:
    """Within the block, attention of one token per row is computed in these groups."""
    _ACTIVE.groups = RowGroups(parts, width)
    try:
        yield
    finally:
        _ACTIVE.groups = None


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *args: Any,
    position_bias: torch.Tensor | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' `sdpa_attention_forward`: query (B, H, 1, d), key and value (B, G, width, d) -> (B, 1, H, d)."""
    groups: RowGroups | None = getattr(_ACTIVE, "groups", None)
    if groups is None or query.shape[2] != 1 or key.shape[2] != groups.width:  # or something else than the tokens
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, *args, position_bias=position_bias, **options
        )
    found = [
        sdpa_attention_forward(
            module,
            query[rows],
            key[rows, :, start:],
            value[rows, :, start:],
            mask,
            *args,
            position_bias=_cut(position_bias, rows, start),
            **options,
        )[0]
        for (rows, start), mask in zip(groups.parts, groups.cut_mask(attention_mask, query), strict=True)
    ]
    return found[0] if len(found) == 1 else torch.cat(found), None


def _cut(mask: torch.Tensor | None, rows: slice, start: int) -> torch.Tensor | None:
    """The part of a mask or bias (B or 1, H or 1, 1, width) that belongs to a group."""
    if mask is None:
        return None
    return (mask if mask.shape[0] == 1 else mask[rows])[..., start:]


# Only this table's own entry: what `AttentionInterface.register` knows stays as it is.
ALL_ATTENTION_FUNCTIONS["sdpa"] = _attend
