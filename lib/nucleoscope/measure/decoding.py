"""The forward passes of a batch of prompts, with a key-value cache: prefill, then one step per token.

Contract: token ids in, logits out; this module does not depend on sampling or measuring. It supports
any causal language model of transformers whose layers cache keys and values: rows are padded on the
left, and padding is never attended to.
"""

import inspect
from collections.abc import Set

import torch
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

PREFILL_TOKENS = {"cpu": 4096, "cuda": 32768}  # tokens per prefill pass: on a CPU, more would not fit in its cache
DROP_SHARE = 8  # ended rows are dropped once they are at least 1 / DROP_SHARE of the batch


def accepts_positions(model: PreTrainedModel) -> bool:
    """Whether the model accepts positions. If not, it may count padding, so rows must have equal length."""
    return "position_ids" in inspect.signature(model.forward).parameters


class KeyValues(DynamicLayer):
    """One layer's keys and values for a whole batch, (B, heads, capacity, d), allocated once.

    transformers' own layer copies the whole cache at every step. Here, prefill processes a few rows
    at a time (``rows``), each right-aligned to the longest, and later steps write in place.
    Sliding-window layers use it too: the model's mask hides what is outside the window.
    """

    is_sliding = False

    def __init__(self, batch: int, prompt_length: int, capacity: int):
        super().__init__()
        self.batch, self.prompt_length, self.capacity = batch, prompt_length, capacity
        self.rows: slice | None = None  # the rows in prefill; None after prefill

    def lazy_initialization(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        super().lazy_initialization(keys, values)
        # Zeros, not empty: masked positions are multiplied by 0, and 0 * NaN would be NaN.
        self.store = [x.new_zeros(self.batch, x.shape[1], self.capacity, x.shape[3]) for x in (keys, values)]
        self.length = 0

    def update(self, keys: torch.Tensor, values: torch.Tensor, *args, **kwargs):
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
        if self.rows is not None:
            part = slice(self.prompt_length - keys.shape[2], self.prompt_length)
            for store, new in zip(self.store, (keys, values), strict=True):
                store[self.rows, :, part] = new
            return keys, values
        end = self.length + keys.shape[2]
        for store, new in zip(self.store, (keys, values), strict=True):
            store[:, :, self.length : end] = new
        self.length = end
        self.keys, self.values = (store[:, :, :end] for store in self.store)
        return self.keys, self.values

    def get_seq_length(self) -> int:
        return self.length if self.is_initialized and self.rows is None else 0

    def finish_prefill(self) -> None:
        self.rows, self.length = None, self.prompt_length

    def keep(self, rows: torch.Tensor) -> None:
        if self.is_initialized:  # a layer that shares another layer's keys and values is never initialised
            self.store = [store[rows.to(store.device)] for store in self.store]  # layers may be on several GPUs


class Decoder:
    """The forward passes of one batch of prompts: `prefill` once, then `advance` for each token.

    ``ids`` are B lists of token ids, preferably longest first, because prompts in one prefill pass then
    need little padding. ``max_tokens`` bounds the steps. ``rows`` are the places in ``ids`` that the
    latest logits belong to. Call it in torch's inference mode. Raises ValueError for a model that
    carries anything other than keys and values from token to token.
    """

    def __init__(self, model: PreTrainedModel, ids: list[list[int]], max_tokens: int):
        self.model, self.ids, self.device = model, ids, model.device
        self.rows, self.steps_left = list(range(len(ids))), max_tokens - 1
        self.lengths = torch.tensor([len(row) for row in ids], device=self.device)
        longest = max(len(row) for row in ids)
        layers = DynamicCache(config=model.config).layers
        kinds = {type(layer) for layer in layers} - {DynamicLayer, DynamicSlidingWindowLayer}
        if kinds:
            raise ValueError(
                f"{type(model).__name__} is not supported: it keeps state other than keys and values between tokens "
                f"({', '.join(sorted(kind.__name__ for kind in kinds))})"
            )
        self.layers = [KeyValues(len(ids), longest, longest + max_tokens) for _ in layers]
        self.cache = Cache(layers=self.layers)
        position = torch.arange(longest + max_tokens, device=self.device)
        self.mask = (position >= longest - self.lengths[:, None]).long()  # left padding (B, capacity)
        self.width = longest
        accepted = inspect.signature(model.forward).parameters
        if "past_key_values" not in accepted:
            raise ValueError(f"{type(model).__name__} is not supported: it does not accept a key-value cache")
        if not accepts_positions(model) and min(map(len, ids)) < longest:
            raise ValueError(
                f"{type(model).__name__} does not accept position_ids: all prompts in a batch must have the same length"
            )
        self.options = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}
        self.positions = accepts_positions(model)

    def prefill(self) -> torch.Tensor:
        """Processes the prompts; logits (B, V) after their last tokens."""
        logits, start = [], 0
        budget = PREFILL_TOKENS.get(self.device.type, PREFILL_TOKENS["cpu"])
        while start < len(self.ids):
            rows = slice(start, start + max(1, budget // len(self.ids[start])))
            length = max(map(len, self.ids[rows]))
            for layer in self.layers:
                layer.rows = rows
            ids = torch.tensor([[0] * (length - len(row)) + row for row in self.ids[rows]], device=self.device)
            mask = self.mask[rows, self.width - length : self.width]
            logits.append(self._forward(ids, mask, (mask.cumsum(1) - 1).clamp_min(0)))
            start = rows.stop
        if not any(layer.is_initialized for layer in self.layers):
            raise ValueError(f"{type(self.model).__name__} is not supported: it leaves the key-value cache empty")
        for layer in self.layers:
            layer.finish_prefill()
        return torch.cat(logits)

    def advance(self, tokens: torch.Tensor, ended: Set[int] = frozenset()) -> torch.Tensor | None:
        """Appends one token to each of `rows` (B',); logits (B'', V) for the next, or None after the last step.

        ``ended`` are the rows that need no more tokens. They are dropped from the batch, and from `rows`, once
        they are at least 1 / `DROP_SHARE` of it: until then, computing them costs less than copying the cache.
        """
        kept = [place for place, row in enumerate(self.rows) if row not in ended]
        if not kept or not self.steps_left:
            return None
        self.steps_left -= 1
        if (len(self.rows) - len(kept)) * DROP_SHARE >= len(self.rows):
            index = torch.tensor(kept, device=tokens.device)
            tokens = tokens[index]
            self._keep(index)
        positions = self.lengths[:, None]
        self.lengths, self.width = self.lengths + 1, self.width + 1
        return self._forward(tokens[:, None], self.mask[:, : self.width], positions)

    def _keep(self, places: torch.Tensor) -> None:
        """Drops all rows but those at ``places``."""
        self.rows = [self.rows[place] for place in places.tolist()]
        self.lengths, self.mask = self.lengths[places], self.mask[places]
        for layer in self.layers:
            layer.keep(places)

    def _forward(self, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        options = self.options | ({"position_ids": positions} if self.positions else {})
        output = self.model(input_ids=ids, attention_mask=mask, past_key_values=self.cache, use_cache=True, **options)
        return output.logits[:, -1].to(self.device)  # the input's device, where everything is measured
