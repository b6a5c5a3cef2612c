"""The forward passes of a batch of prompts: prefill, then one step per token, in one of four ways.

Contract: token ids in, logits out; this module does not depend on sampling or measuring. Which way is
right for a model is found out by `checking.find_way`, and not decided here.

* padded: rows of any length, padded on the left, with keys and values in memory that is allocated once
* own cache: the same with the model's own cache, for models that carry other states from token to token
* equal lengths: rows of one length with the model's own cache, and nothing that says where a row begins
* whole prefixes: rows of one length, read as a whole at every step, without a cache
"""

import inspect
import math
import mmap
from abc import ABC, abstractmethod
from collections.abc import Set
from typing import Any

import torch
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DummyLayer, DynamicLayer, DynamicSlidingWindowLayer

from nucleoscope.measure.attention import attend_in_groups, form_groups
from nucleoscope.measure.batching import form_passes
from nucleoscope.measure.model_facts import find_cache_argument, find_length_limit, find_position_offset
from nucleoscope.measure.prefix import SharedPrefix

PADDED, OWN_CACHE, EQUAL_LENGTHS, WHOLE_PREFIXES = WAYS = ("padded", "own cache", "equal lengths", "whole prefixes")
DROP_SHARE = 8  # ended rows are dropped once they are at least 1 / DROP_SHARE of the batch


class KeyValues(DynamicLayer):
    """One layer's keys and values for a whole batch, (B, heads, capacity, d), allocated once.

    transformers' own layer copies the whole cache at every step. Here, prefill processes a few rows
    at a time (``rows``), each right-aligned to the longest, and later steps write in place.
    Sliding-window layers use it too: the model's mask hides what is outside the window.

    ``prefix`` are the keys and values (1, heads, P, d) of the tokens that all rows begin with, if they were read
    before. Prefill then processes only the rest; ``places`` (R, P) are the columns of the prefix in ``rows``.
    """

    is_sliding = False

    def __init__(
        self,
        batch: int,
        prompt_length: int,
        capacity: int,
        prefix: tuple[torch.Tensor, torch.Tensor] | None = None,
    ):
        super().__init__()
        self.batch, self.prompt_length, self.capacity, self.prefix = batch, prompt_length, capacity, prefix
        self.rows: slice | None = None  # the rows in prefill; None after prefill
        self.places: torch.Tensor | None = None

    def lazy_initialization(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        super().lazy_initialization(keys, values)
        self.store, self.length = self._allocate(keys, values), 0

    def _allocate(self, keys: torch.Tensor, values: torch.Tensor) -> list[torch.Tensor]:
        # Zeros, not empty: masked positions are multiplied by 0, and 0 * NaN would be NaN.
        shapes = [(self.batch, x.shape[1], self.capacity, x.shape[3]) for x in (keys, values)]
        return [_allocate_zeros(x, shape) for x, shape in zip((keys, values), shapes, strict=True)]

    def update(self, keys: torch.Tensor, values: torch.Tensor, *args, **kwargs):
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
        if self.rows is not None:
            return self._fill(keys, values)
        end = self.length + keys.shape[2]
        for store, new in zip(self.store, (keys, values), strict=True):
            store[:, :, self.length : end] = new
        self.length = end
        self.keys, self.values = (store[:, :, :end] for store in self.store)
        return self.keys, self.values

    def _fill(self, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Stores those of `rows`, which end in column ``prompt_length``; returns them with those of the prefix."""
        begin = self.prompt_length - keys.shape[2]
        for store, new in zip(self.store, (keys, values), strict=True):
            store[self.rows, :, begin : self.prompt_length] = new
        if self.prefix is None:
            return keys, values
        begin -= self.prefix[0].shape[2]
        for store, before in zip(self.store, self.prefix, strict=True):
            # After the rest, whose first columns overlap the prefix in rows that are shorter than others.
            row = torch.arange(len(self.places), device=store.device)[:, None]
            store[self.rows][row, :, self.places.to(store.device)] = before[0].transpose(0, 1)
        return tuple(store[self.rows, :, begin : self.prompt_length] for store in self.store)

    def get_seq_length(self) -> int:
        if self.rows is not None:
            return 0 if self.prefix is None else self.prefix[0].shape[2]
        return self.length if self.is_initialized else 0

    def finish_prefill(self) -> None:
        self.rows, self.length = None, self.prompt_length

    def keep(self, rows: torch.Tensor, parts: list[tuple[slice, int]]) -> None:
        """Drops all rows but these; ``parts`` are groups of what is left, with the column where each begins."""
        if not self.is_initialized:  # a layer that shares another layer's keys and values never is
            return
        for place, store in enumerate(self.store):
            kept = _allocate_zeros(store, (len(rows), *store.shape[1:]))
            index = rows.to(store.device)  # layers may be on several GPUs
            for part, begin in parts:
                kept[part, :, begin : self.length] = store[index[part], :, begin : self.length]
            self.store[place] = kept
        self.keys = self.values = None  # views of what was dropped, which would keep it in memory


def _allocate_zeros(like: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Zeros of the data type and device of ``like``.

    On a CPU, the system provides memory only where something is written: neither padding nor columns of later steps
    take any, and all of it goes back to the system in the end.
    """
    if like.device.type != "cpu" or not hasattr(mmap, "MAP_ANONYMOUS"):
        return like.new_zeros(shape)
    size = math.prod(shape) * like.dtype.itemsize
    memory = mmap.mmap(-1, max(1, size), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(memory, dtype=like.dtype, count=math.prod(shape)).view(shape)


class Decoder(ABC):
    """The forward passes of one batch of prompts: `prefill` once, then `advance` for each token.

    ``ids`` are B lists of token ids, preferably longest first, because prompts in one prefill pass then
    need little padding. ``max_tokens`` bounds the steps. ``rows`` are the places in ``ids`` that the
    latest logits belong to. Call it in torch's inference mode. Raises ValueError if the model cannot be
    used in this way.
    """

    def __init__(self, model: PreTrainedModel, ids: list[list[int]], max_tokens: int):
        self.model, self.ids, self.device = model, ids, model.device
        self.rows, self.steps_left = list(range(len(ids))), max_tokens - 1
        self.accepted = inspect.signature(model.forward).parameters
        self.options: dict[str, Any] = {"logits_to_keep": 1} if "logits_to_keep" in self.accepted else {}

    @abstractmethod
    def prefill(self) -> torch.Tensor:
        """Processes the prompts; logits (B, V) after their last tokens."""

    def advance(self, tokens: torch.Tensor, ended: Set[int] = frozenset()) -> torch.Tensor | None:
        """Appends one token to each of `rows` (B',); logits (B'', V) for the next, or None after the last step.

        ``ended`` are the rows that need no more tokens. They are dropped from the batch, and from `rows`, when that
        saves more than it costs.
        """
        kept = [place for place, row in enumerate(self.rows) if row not in ended]
        if not kept or not self.steps_left:
            return None
        self.steps_left -= 1
        places = self._choose_places(kept)
        if len(places) < len(self.rows):
            index = torch.tensor(places, device=tokens.device)
            if self._keep(index):
                self.rows = [self.rows[place] for place in places]
                tokens = tokens[index]
        return self._step(tokens)

    def _choose_places(self, kept: list[int]) -> list[int]:
        """The places in `rows`, in order, that stay in the batch: all those in ``kept``, and perhaps others.

        All others are dropped once they are at least 1 / `DROP_SHARE` of the batch: until then, computing them costs
        less than copying the cache.
        """
        dropped = len(self.rows) - len(kept)
        return kept if dropped * DROP_SHARE >= len(self.rows) else list(range(len(self.rows)))

    @abstractmethod
    def _keep(self, places: torch.Tensor) -> bool:
        """Drops all rows but those at ``places``; False if that is not possible."""

    @abstractmethod
    def _step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Reads one more token of each row (B,); logits (B, V) after it."""

    def _forward(self, ids: torch.Tensor, **options: Any) -> torch.Tensor:
        output = self.model(input_ids=ids, **self.options, **options)
        return output.logits[:, -1].to(self.device)  # the input's device, where everything is measured


class _LeftPadded(Decoder):
    """Rows of any length, padded on the left; padding is never attended to."""

    def __init__(self, model: PreTrainedModel, ids: list[list[int]], max_tokens: int):
        super().__init__(model, ids, max_tokens)
        self.lengths = torch.tensor([len(row) for row in ids], device=self.device)
        self.width = max(len(row) for row in ids)
        position = torch.arange(self.width + max_tokens, device=self.device)
        self.mask = (position >= self.width - self.lengths[:, None]).long()  # (B, capacity)
        self.offset = find_position_offset(model)
        self.cache, self.cache_name = self._create_cache(max_tokens), find_cache_argument(model)

    @abstractmethod
    def _create_cache(self, max_tokens: int) -> Cache:
        """An empty cache for the prompts and ``max_tokens`` more tokens."""

    def _read(self, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        options = {self.cache_name: self.cache, "use_cache": True}
        if self.cache_name == "past_key_values" or ids.shape[1] > 1:  # a state-space model has no use for it at a step
            options["attention_mask"] = mask
        if "position_ids" in self.accepted:
            options["position_ids"] = positions + self.offset
        return self._forward(ids, **options)

    def _read_prompts(self, rows: slice, shared: int = 0) -> torch.Tensor:
        """Reads some prompts, padded to the longest of them.

        Of each, as many of the last tokens as the longest has after its first ``shared`` ones, which were read before.
        """
        length = max(map(len, self.ids[rows])) - shared
        ids = [[0] * (length - len(row)) + row[-length:] for row in self.ids[rows]]
        mask = self.mask[rows, self.width - shared - length : self.width]
        positions = (mask.cumsum(1) - 1).clamp_min(0)[:, -length:]
        return self._read(torch.tensor(ids, device=self.device), mask, positions)

    def _step(self, tokens: torch.Tensor) -> torch.Tensor:
        positions = self.lengths[:, None]
        self.lengths, self.width = self.lengths + 1, self.width + 1
        return self._read(tokens[:, None], self.mask[:, : self.width], positions)

    def _keep(self, places: torch.Tensor) -> bool:
        self.lengths, self.mask = self.lengths[places], self.mask[places]
        return True


class PaddedDecoder(_LeftPadded):
    """Rows of any length, padded on the left, with keys and values in memory that is allocated once.

    ``prefix`` is what all rows begin with, if that was read before; each row has more tokens than that.
    """

    def __init__(
        self, model: PreTrainedModel, ids: list[list[int]], max_tokens: int, prefix: SharedPrefix | None = None
    ):
        self.prefix, self.groups = prefix, None
        super().__init__(model, ids, max_tokens)
        self.prompt_lengths, self.prompt_width = [len(row) for row in ids], self.width

    def _create_cache(self, max_tokens: int) -> Cache:
        layers = DynamicCache(config=self.model.config).layers
        kinds = {type(layer) for layer in layers} - {DynamicLayer, DynamicSlidingWindowLayer, DummyLayer}
        if kinds:
            names = ", ".join(sorted(kind.__name__ for kind in kinds))
            raise ValueError(
                f"{type(self.model).__name__} keeps state other than keys and values between tokens ({names})"
            )
        prefixes = self.prefix.layers if self.prefix else [None] * len(layers)
        self.layers = [
            # a layer that shares another layer's keys and values stores nothing
            layer if isinstance(layer, DummyLayer) else self._create_layer(place, max_tokens, prefix)
            for place, (layer, prefix) in enumerate(zip(layers, prefixes, strict=True))
        ]
        return Cache(layers=self.layers)

    def _create_layer(self, place: int, max_tokens: int, prefix: tuple[torch.Tensor, torch.Tensor] | None) -> KeyValues:
        """The cache of the layer at ``place``."""
        return KeyValues(len(self.ids), self.width, self.width + max_tokens, prefix)

    def prefill(self) -> torch.Tensor:
        logits, shared, own = [], len(self.prefix.ids) if self.prefix else 0, self._list_own()
        for rows in form_passes((len(row) - shared for row in self.ids), self.device):
            begins = self.width - self.lengths[rows, None]
            places = begins + torch.arange(shared, device=self.device) if shared else None
            for layer in own:
                layer.rows, layer.places = rows, places
            logits.append(self._read_prompts(rows, shared))
        if not any(layer.is_initialized for layer in own):
            raise ValueError(f"{type(self.model).__name__} leaves the key-value cache empty")
        for layer in own:
            layer.finish_prefill()
        return torch.cat(logits)

    def _list_own(self) -> list[KeyValues]:
        """The layers' caches, without those that store nothing."""
        return [layer for layer in self.layers if isinstance(layer, KeyValues)]

    def list_keys_and_values(self) -> list[tuple[torch.Tensor, torch.Tensor] | None]:
        """Each layer's keys and values of the prompts (B, heads, width, d) after prefill; None if it has none."""
        return [
            tuple(store[:, :, : self.width] for store in layer.store)
            if isinstance(layer, KeyValues) and layer.is_initialized
            else None
            for layer in self.layers
        ]

    def _step(self, tokens: torch.Tensor) -> torch.Tensor:
        if self.device.type != "cpu":  # there, one call for all rows is faster
            return super()._step(tokens)
        self.groups = self.groups or self._form_groups()
        with attend_in_groups(self.groups, self.width + 1):
            return super()._step(tokens)

    def _form_groups(self) -> list[tuple[slice, int]]:
        drawn = self.width - self.prompt_width
        return form_groups([length + drawn for length in self.prompt_lengths], self.width)

    def _keep(self, places: torch.Tensor) -> bool:
        self.prompt_lengths = [self.prompt_lengths[place] for place in places.tolist()]
        self.groups = self._form_groups()
        parts = self.groups if self.device.type == "cpu" else [(slice(None), 0)]
        for layer in self._list_own():
            layer.keep(places, parts)
        return super()._keep(places)


class OwnCacheDecoder(_LeftPadded):
    """Rows of any length, padded on the left, with the cache that transformers has for the model."""

    def _create_cache(self, max_tokens: int) -> Cache:
        return DynamicCache(config=self.model.config)

    def prefill(self) -> torch.Tensor:
        return self._read_prompts(slice(0, len(self.ids)))

    def _keep(self, places: torch.Tensor) -> bool:
        self.cache.reorder_cache(places)
        return super()._keep(places)


class EqualLengthsDecoder(Decoder):
    """Rows of one length with the model's own cache. The model itself numbers positions; no row is dropped.

    Where a row becomes longer than `model_facts.find_length_limit`, everything cached is computed anew.
    """

    def __init__(self, model: PreTrainedModel, ids: list[list[int]], max_tokens: int):
        super().__init__(model, ids, max_tokens)
        _check_lengths(ids)
        self.prefix, self.limit = torch.tensor(ids, device=self.device), find_length_limit(model)
        self.cache_name = find_cache_argument(model)

    def prefill(self) -> torch.Tensor:
        if self.prefix.shape[1] == 1 and "use_cache" in self.accepted:
            # A model that keeps state in its modules takes a single token for a step: without a cache, it forgets.
            self.model(input_ids=self.prefix, use_cache=False)
        self.cache = {self.cache_name: DynamicCache(config=self.model.config)}
        return self._forward(self.prefix, use_cache=True, **self.cache)

    def _step(self, tokens: torch.Tensor) -> torch.Tensor:
        if self.limit is not None:
            self.prefix = torch.cat((self.prefix, tokens[:, None]), 1)
            if self.prefix.shape[1] - 1 == self.limit:
                return self.prefill()
        return self._forward(tokens[:, None], use_cache=True, **self.cache)

    def _keep(self, places: torch.Tensor) -> bool:
        return False  # some models keep their state in their modules


class WholePrefixesDecoder(Decoder):
    """Rows of one length, read as a whole at every step: what the model gives without a cache."""

    def __init__(self, model: PreTrainedModel, ids: list[list[int]], max_tokens: int):
        super().__init__(model, ids, max_tokens)
        _check_lengths(ids)
        self.prefix = torch.tensor(ids, device=self.device)
        if "use_cache" in self.accepted:
            self.options["use_cache"] = False

    def prefill(self) -> torch.Tensor:
        return self._forward(self.prefix)

    def _step(self, tokens: torch.Tensor) -> torch.Tensor:
        self.prefix = torch.cat((self.prefix, tokens[:, None]), 1)
        return self._forward(self.prefix)

    def _keep(self, places: torch.Tensor) -> bool:
        self.prefix = self.prefix[places]
        return True


DECODERS = {
    PADDED: PaddedDecoder,
    OWN_CACHE: OwnCacheDecoder,
    EQUAL_LENGTHS: EqualLengthsDecoder,
    WHOLE_PREFIXES: WholePrefixesDecoder,
}


def create_decoder(
    model: PreTrainedModel, ids: list[list[int]], max_tokens: int, way: str, prefix: SharedPrefix | None = None
) -> Decoder:
    """The decoder of one batch in one of the `WAYS`. ValueError if the model cannot be used in this way.

    ``prefix`` is what the rows begin with, if it was read before; only `PADDED` makes use of it.
    """
    return DECODERS[way](model, ids, max_tokens, **({"prefix": prefix} if way == PADDED else {}))


@torch.inference_mode()
def read_prefix(model: PreTrainedModel, ids: list[int]) -> SharedPrefix:
    """Reads what prompts begin with, for the way `PADDED`."""
    decoder = PaddedDecoder(model, [ids], 1)
    decoder.prefill()
    return SharedPrefix(ids, decoder.list_keys_and_values())


def adapt_way(model: PreTrainedModel, ids: list[list[int]], max_tokens: int, way: str) -> str:
    """``way``, or for rows that become longer than `model_facts.find_length_limit`, equal lengths at least."""
    limit = find_length_limit(model)
    crosses = limit is not None and max(map(len, ids)) + max_tokens - 1 > limit
    return EQUAL_LENGTHS if crosses and way in (PADDED, OWN_CACHE) else way


def needs_equal_lengths(way: str) -> bool:
    """Whether the prompts of a batch must have the same length."""
    return way in (EQUAL_LENGTHS, WHOLE_PREFIXES)


def _check_lengths(ids: list[list[int]]) -> None:
    if len(set(map(len, ids))) > 1:
        raise ValueError("prompts in a batch must be equally long")
