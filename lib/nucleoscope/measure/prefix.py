"""The beginning that all prompts of a run share (a system prompt, a chat header, examples), read once.

Contract: this module keeps what was read and finds what is shared; `decoding.read_prefix` reads it, `decoding` and
`scoring` put it before the rest of each prompt, and `checking` finds out whether that is right for a model.
"""

from collections.abc import Sequence
from itertools import takewhile
from typing import Any, NamedTuple

import torch
from transformers import Cache
from transformers.cache_utils import DummyLayer, DynamicLayer

LEAST = 8  # tokens: reading fewer once saves less than it costs


class SharedPrefix(NamedTuple):
    """Token ids with their keys and values, (1, heads, P, d) each, in every layer; None where a layer has none."""

    ids: list[int]
    layers: list[tuple[torch.Tensor, torch.Tensor] | None]

    def build_cache(self, rows: int) -> Any:
        """transformers' `Cache` in which each of ``rows`` rows begins with the prefix."""
        found = []
        for pair in self.layers:
            layer = DummyLayer() if pair is None else DynamicLayer()
            if pair is not None:
                layer.lazy_initialization(*pair)
                layer.keys, layer.values = (part.expand(rows, -1, -1, -1) for part in pair)
            found.append(layer)
        return Cache(layers=found)


def find_shared_ids(rows: Sequence[list[int]], ends: list[int] | None = None) -> list[int]:
    """The tokens that all ``rows`` begin with, or none if there are fewer than `LEAST`.

    Of each row at least one token is left, and all from its position in ``ends`` on.
    """
    most = min(map(len, rows) if ends is None else ends, default=0)
    if len(rows) < 2 or most <= LEAST:
        return []
    found = rows[0][: most - 1]
    for row in rows:  # one at a time: all of them together may be large
        if row[: len(found)] != found:
            found = [one for one, _ in takewhile(lambda pair: pair[0] == pair[1], zip(found, row, strict=False))]
    return found if len(found) >= LEAST else []
