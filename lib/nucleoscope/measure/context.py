"""Similarity in context: how much what follows depends on which candidate is put in a token's place.

Contract: a model and the records of its run in, one `Comparison` per text out. This module does not know files. For
each measured token with a choice, the model gives the next-token distribution after each of its m likeliest candidates,
at the run's temperature. The similarity of two candidates is

    s_ij = 1 - JS(p_i, p_j) / log 2,  in [0, 1],

where JS is the Jensen-Shannon divergence (Lin, "Divergence measures based on the Shannon entropy", 1991) of these
distributions, in nats: 1 if both candidates have the same continuations, 0 if they have none in common.

All candidates of a text are read as branches of a tree. The text is its trunk, which is read once. A branch is one
candidate: it sees the text before the place it branches from, and itself, and has the position of that place. So one
token is computed per candidate, and branches of many places share a pass. The token that was taken is no branch,
because the trunk contains it. Models whose attention does not take such a mask are read in cached steps, with the m
candidates of a place as the rows of a batch. `find_ways` finds out which ways are right for a model.
"""

import inspect
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from tqdm import tqdm
from transformers import Cache, DynamicCache, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DummyLayer, DynamicLayer, DynamicSlidingWindowLayer

from nucleoscope.measure import batching, checking, encoding
from nucleoscope.measure.model_facts import (
    find_cache_argument,
    find_context_length,
    find_embedding_matrix,
    find_length_limit,
    find_position_offset,
)
from nucleoscope.measure.nucleus import NotFinite, scale_logits
from nucleoscope.measure.prefix import SharedPrefix
from nucleoscope.measure.softmax import exponentiate
from nucleoscope.settings import Settings

TREE, WHOLE_TREE, STEPS = WAYS = ("tree", "tree, whole model", "cached steps")
# Branches per pass. Each has a key that only it sees, so that the mask grows with the square of their number; with
# fewer, a pass uses the device less well.
BRANCHES = {"cpu": 256, "cuda": 4096}
# MiB of all arrays over the vocabulary that exist at once, by default; each row of logits needs about `ARRAYS` of them,
# in float32. The candidates of one place are compared together, and may exceed this.
MEMORY, ARRAYS = {"cpu": 64, "cuda": 1024}, 6
TRIED = 3  # candidates at each place of the trial
CHECKED = 5  # forks of the longest text that are checked
VALUES = ("mean_similarity", "weighted_similarity", "similarity_entropy", "continuations")


class Fork(NamedTuple):
    """A token with a choice: its ``step`` in the record, its ``position`` in the text, its likeliest candidates.

    ``shares`` (m,) float64 are their probabilities, divided by the sum of these.
    """

    step: int
    position: int
    candidates: list[int]
    shares: torch.Tensor


class Comparison(NamedTuple):
    """The N forks of one text, compared.

    ``steps`` and ``sizes`` (N,) int32: which token each is, and its number m of candidates. ``ids`` (K,) int32 and
    ``shares`` (K,) float32: these candidates, one fork after another, with their probabilities among each other.
    ``similarities`` (P,) float16: of each fork the upper triangle of its matrix, row by row, m (m - 1) / 2 numbers.
    ``values``: {name: (N,) float64} for `VALUES`, see `describe_choices`. ``seconds`` and ``way`` say how it was done.
    """

    steps: torch.Tensor
    sizes: torch.Tensor
    ids: torch.Tensor
    shares: torch.Tensor
    similarities: torch.Tensor
    values: dict[str, torch.Tensor]
    seconds: float
    way: str


class NextTokens(NamedTuple):
    """What follows each of the m candidates of one token.

    ``similarities`` (m, m) float32: s_ij, with ones on the diagonal; ``values`` are its `VALUES`. ``next_ids`` and
    ``next_probs`` (m, n): the likeliest tokens after each candidate, by falling probability.
    """

    similarities: torch.Tensor
    values: dict[str, float]
    next_ids: torch.Tensor
    next_probs: torch.Tensor


def find_forks(record: Mapping[str, Any], start: int, most: int) -> list[Fork]:
    """The tokens of a record with k > 1, with at most ``most`` candidates each.

    ``start`` is the position of the record's first token in the text, prompt included.
    """
    forks = []
    for step, (ids, probs) in enumerate(zip(record["top_p_tokens"], record["top_p_probs"], strict=True)):
        if len(ids) > 1 and most > 1:
            shares = torch.as_tensor(probs)[:most].double()
            forks.append(Fork(step, start + step, torch.as_tensor(ids)[:most].tolist(), shares / shares.sum()))
    return forks


# What is computed of the logits


def compute_similarities(probs: torch.Tensor) -> torch.Tensor:
    """s_ij for i < j of distributions ``probs`` (m, V), float32: the upper triangle, (m (m - 1) / 2,), row by row.

    JS = (G_i + G_j) / 4 - F(p_i + p_j) / 2, with F(x) = sum x log x and G_i = F(2 p_i): equal distributions have
    exactly 0, whatever the rounding of the sums. At most m rows are in memory besides ``probs``.
    """
    own = _sum_information(2 * probs)
    parts = [
        (own[i] + own[i + 1 :]) / 4 - _sum_information(probs[i + 1 :] + probs[i]) / 2 for i in range(len(probs) - 1)
    ]
    return (1 - torch.cat(parts) / math.log(2)).clamp(0, 1)


def _sum_information(rows: torch.Tensor) -> torch.Tensor:
    """sum x log x of each row (n, V), where 0 log 0 = 0."""
    return rows.clamp_min(torch.finfo(rows.dtype).tiny).log_().mul_(rows).sum(-1)


def describe_choices(shares: Sequence[torch.Tensor], similarities: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    """The `VALUES` of N choices, (N,) float64 each, from their shares (m,) and the triangles of their similarities.

    * mean_similarity: the mean of s_ij over pairs
    * weighted_similarity: the same with the weights q_i q_j
    * similarity_entropy: -sum q_i log (Z q)_i with Z = s, in nats, of order 1 (Leinster and Cobbold, "Measuring
      diversity: the importance of species similarity", 2012), in [0, H(q)]
    * continuations: its exponential, the effective number of different continuations, in [1, m]
    """
    if not shares:
        return {name: torch.empty(0, dtype=torch.float64) for name in VALUES}
    q = torch.nn.utils.rnn.pad_sequence([each.double() for each in shares], batch_first=True)  # (N, M)
    similar = q.new_zeros(*q.shape, q.shape[1])
    for place, triangle in enumerate(similarities):
        m = len(shares[place])
        rows, columns = torch.triu_indices(m, m, 1)
        similar[place, rows, columns] = triangle.double()
    weights = torch.triu(q[:, :, None] * q[:, None], 1)
    sizes = torch.tensor([len(each) for each in shares])
    mean = similar.sum((1, 2)) / (sizes * (sizes - 1) / 2)
    total = weights.sum((1, 2))  # 0 if all but one of the shares are so small that they vanish
    weighted = torch.where(total > 0, (weights * similar).sum((1, 2)) / total.clamp_min(1e-300), mean)
    ordinary = ((similar + similar.mT) @ q[:, :, None])[..., 0] + q
    entropy = (0 - (q * ordinary.clamp(1e-300, 1).log()).sum(1)).clamp_min(0)
    found = (mean, weighted, entropy, entropy.exp())
    return dict(zip(VALUES, found, strict=True))


# The ways of reading


class ContextReader(ABC):
    """The logits after each candidate of each fork of a text. Call it in torch's inference mode.

    ``memory`` is the setting `context_memory`, in MiB or "auto": it bounds the number of rows of logits at once.
    """

    way = ""

    def __init__(self, model: PreTrainedModel, memory: int | str = Settings.context_memory):
        self.model, self.device, self.limit = model, model.device, find_length_limit(model)
        self.accepted = inspect.signature(model.forward).parameters
        self.options: dict[str, Any] = {"logits_to_keep": 1} if "logits_to_keep" in self.accepted else {}
        size = MEMORY.get(self.device.type, MEMORY["cpu"]) if memory == "auto" else memory
        self.rows = max(2, size * 2**20 // (4 * ARRAYS * model.config.get_text_config().vocab_size))

    @abstractmethod
    def compute_logits(self, ids: list[int], forks: list[Fork]) -> Iterator[tuple[list[Fork], torch.Tensor]]:
        """Some consecutive ``forks`` at a time, with the logits (n, V) after each of their candidates, in order.

        ``ids`` are the text, with the prompt. A piece has at most ``rows`` rows, or a single fork.
        """

    def read_alone(self, ids: list[int]) -> torch.Tensor:
        """The logits (V,) after a text without a cache: what is right. Those of its other tokens are not computed."""
        options = self.options | ({"use_cache": False} if "use_cache" in self.accepted else {})
        return self.model(input_ids=torch.tensor([ids], device=self.device), **options).logits[0, -1].to(self.device)

    def shrink(self) -> bool:
        """Makes passes smaller because memory was too small; False if they cannot be any smaller."""
        return False


class TreeReader(ContextReader):
    """Candidates as branches of a tree, with keys and values of its trunk read before.

    The model's output layer processes only the hidden states of candidates, a few at a time. ``whole``: the whole
    model processes as many branches at a time as there may be rows of logits, for models that change logits after
    the output layer.
    """

    def __init__(self, model: PreTrainedModel, memory: int | str = Settings.context_memory, whole: bool = False):
        super().__init__(model, memory)
        self.way = WHOLE_TREE if whole else TREE
        self.head = None if whole else model.get_output_embeddings()
        self.body = model if whole else model.base_model
        if not whole and (self.head is None or self.body is model):
            raise ValueError("there is no output layer that could be called alone")
        for name in ("position_ids", "attention_mask", "past_key_values"):
            if name not in inspect.signature(self.body.forward).parameters:
                raise ValueError(f"its forward pass takes no {name}")
        self._list_layers()
        self.offset = find_position_offset(model)
        most = BRANCHES.get(self.device.type, BRANCHES["cpu"])
        self.branches = min(most, self.rows) if whole else most

    def compute_logits(self, ids: list[int], forks: list[Fork]) -> Iterator[tuple[list[Fork], torch.Tensor]]:
        # Beyond the limit, all positions are computed differently: what is within it is read as if no more followed.
        within = len(forks) if self.limit is None else sum(fork.position < self.limit for fork in forks)
        for part in (forks[:within], forks[within:]):
            if part:
                yield from self._read_tree(ids[: part[-1].position + 1], part)

    def _read_tree(self, trunk: list[int], forks: list[Fork]) -> Iterator[tuple[list[Fork], torch.Tensor]]:
        hidden, prefix = self._read_trunk(trunk)
        for group in _split_forks(forks, self.branches):
            tokens, positions, places = [], [], []
            for fork in group:
                for token in fork.candidates:
                    if self.head is not None and token == trunk[fork.position]:
                        places.append(fork.position)  # the trunk contains it
                    else:
                        places.append(len(trunk) + len(tokens))
                        tokens.append(token)
                        positions.append(fork.position)
            states = self._read_branches(prefix, tokens, positions) if tokens else hidden[:0]
            if self.head is None:
                yield group, states
                continue
            index, states = torch.tensor(places, device=self.device), torch.cat((hidden, states))
            begin = 0
            for piece in _split_forks(group, self.rows):
                end = begin + sum(len(fork.candidates) for fork in piece)
                yield piece, self.head(states[index[begin:end]]).to(self.device)  # which may be on another GPU
                begin = end

    def _read_trunk(self, trunk: list[int]) -> tuple[torch.Tensor, SharedPrefix]:
        """The hidden states (T, d) of the text, and its keys and values."""
        layers = self._list_layers()
        positions = torch.arange(len(trunk), device=self.device)
        states = self._read(trunk, positions, Cache(layers=layers), **({} if self.head is not None else self.options))
        pairs = [(layer.keys, layer.values) if getattr(layer, "is_initialized", False) else None for layer in layers]
        if not any(pairs):
            raise ValueError("it leaves the key-value cache empty")
        return states, SharedPrefix(trunk, pairs)

    def _read_branches(self, prefix: SharedPrefix, tokens: list[int], positions: list[int]) -> torch.Tensor:
        """The hidden states (B, d), or logits, of branches at these positions of the trunk."""
        places = torch.tensor(positions, device=self.device)
        trunk = torch.arange(len(prefix.ids), device=self.device) < places[:, None]
        seen = torch.cat((trunk, torch.eye(len(tokens), dtype=torch.bool, device=self.device)), 1)
        # Added to scores, which "eager" attention and "sdpa" both do with a mask of the model's own data type.
        mask = torch.zeros_like(seen, dtype=self.model.dtype).masked_fill_(~seen, torch.finfo(self.model.dtype).min)
        return self._read(tokens, places, prefix.build_cache(1), attention_mask=mask[None, None])

    def _read(self, ids: list[int], positions: torch.Tensor, cache: Cache, **options: Any) -> torch.Tensor:
        output = self.body(
            input_ids=torch.tensor([ids], device=self.device),
            position_ids=positions[None] + self.offset,
            past_key_values=cache,
            use_cache=True,
            **options,
        )
        return output[0][0].to(self.device)

    def _list_layers(self) -> list[DynamicLayer | DummyLayer]:
        """Caches that keep all keys and values. ValueError if a layer has another state."""
        layers = DynamicCache(config=self.model.config).layers
        others = {type(layer) for layer in layers} - {DynamicLayer, DynamicSlidingWindowLayer, DummyLayer}
        if others or not layers:
            names = ", ".join(sorted(kind.__name__ for kind in others)) or "unknown"
            raise ValueError(f"it keeps state other than keys and values between tokens ({names})")
        return [layer if isinstance(layer, DummyLayer) else DynamicLayer() for layer in layers]

    def shrink(self) -> bool:
        if self.branches == 1:
            return False
        self.branches, self.rows = self.branches // 2, max(2, self.rows // 2)
        return True


class StepReader(ContextReader):
    """The text step by step with the model's own cache; at a fork, each candidate is a row of a batch.

    Only the row of the token that was taken is kept. The model itself numbers positions.
    """

    way = STEPS

    def __init__(self, model: PreTrainedModel, memory: int | str = Settings.context_memory):
        super().__init__(model, memory)
        self.cache_name, self.cache = find_cache_argument(model), None

    def compute_logits(self, ids: list[int], forks: list[Fork]) -> Iterator[tuple[list[Fork], torch.Tensor]]:
        self.cache, read = self._create_cache(), forks[0].position if forks else 0
        if forks:
            self._read([ids[:read]])
        for fork in forks:
            for position in range(read, fork.position):
                self._append(ids[:position], [ids[position]])
            rows = [*fork.candidates]
            if fork is not forks[-1] and ids[fork.position] not in rows:
                rows.append(ids[fork.position])
            logits = self._append(ids[: fork.position], rows)
            yield [fork], logits[: len(fork.candidates)]
            if fork is not forks[-1]:
                self._keep([rows.index(ids[fork.position])])
                read = fork.position + 1
        self.cache = None

    def _append(self, before: list[int], tokens: list[int]) -> torch.Tensor:
        """The logits (m, V) after ``before``, which has been read, and each of these tokens."""
        if len(before) == self.limit:  # from here on, everything cached is computed differently
            self.cache = self._create_cache()
            return self._read([[*before, token] for token in tokens])
        if len(tokens) > 1:
            self._keep([0] * len(tokens))
        return self._read([[token] for token in tokens])

    def _read(self, rows: list[list[int]]) -> torch.Tensor:
        cache = {self.cache_name: self.cache, "use_cache": True}
        output = self.model(input_ids=torch.tensor(rows, device=self.device), **cache, **self.options)
        return output.logits[:, -1].to(self.device)

    def _keep(self, rows: list[int]) -> None:
        self.cache.reorder_cache(torch.tensor(rows, device=self.device))

    def _create_cache(self) -> Cache:
        return DynamicCache(config=self.model.config)


def _split_forks(forks: Sequence[Fork], most: int) -> Iterator[list[Fork]]:
    """Consecutive forks with at most ``most`` candidates together, or one alone."""
    group: list[Fork] = []
    size = 0
    for fork in forks:
        if group and size + len(fork.candidates) > most:
            yield group
            group, size = [], 0
        group.append(fork)
        size += len(fork.candidates)
    if group:
        yield group


def create_reader(model: PreTrainedModel, way: str, memory: int | str = Settings.context_memory) -> ContextReader:
    """The `ContextReader` of one of `WAYS`. ValueError if the model cannot be read in this way."""
    return StepReader(model, memory) if way == STEPS else TreeReader(model, memory, whole=way == WHOLE_TREE)


# Which way is right


class UsableWays(NamedTuple):
    """The ways that are right for a model, fastest first, and the ``reasons`` why others are not, in words."""

    ways: tuple[str, ...]
    reasons: tuple[str, ...] = ()


_FOUND: WeakKeyDictionary[PreTrainedModel, UsableWays] = WeakKeyDictionary()


def find_ways(model: PreTrainedModel, skip_check: bool = False) -> UsableWays:
    """Which of `WAYS` give the same logits as each text with each candidate, read alone and without a cache.

    The result is kept as long as the model. ``skip_check``: nothing is tried but whether readers can be created.
    """
    if skip_check:
        return UsableWays(tuple(way for way in WAYS if _can_create(model, way)))
    if model not in _FOUND:
        _FOUND[model] = _try_ways(model)
    return _FOUND[model]


def _can_create(model: PreTrainedModel, way: str) -> bool:
    try:
        create_reader(model, way)
    except ValueError:
        return False
    return True


@torch.inference_mode()
def _try_ways(model: PreTrainedModel) -> UsableWays:
    text, *others = checking.choose_prompts(model).ids
    pool = [token for row in others for token in row if token not in text] or text
    text = list(dict.fromkeys(text)) if len(set(text)) > 1 else text  # a branch must be another token than the trunk's
    forks = [
        Fork(step, step + 1, [token, *_draw(pool, step, TRIED - 1)], torch.full((TRIED,), 1 / TRIED))
        for step, token in enumerate(text[1:])
    ]
    with checking.silence():
        expected = [checking.read_alone(model, [*text[: f.position], token]) for f in forks for token in f.candidates]
        if not expected or not all(map(checking.is_distribution, expected)):
            return UsableWays(WAYS if _can_create(model, TREE) else WAYS[-1:])  # measuring names the prompts
        ways, reasons = [], []
        for way in WAYS:
            try:
                problem = _find_difference(model, way, text, forks, expected)
            except torch.OutOfMemoryError:
                raise  # else a slower way would be taken for the right one
            except Exception as raised:  # models of all kinds raise anything; the next way is tried
                problem = checking.shorten_error(raised, 80)
            if problem:
                reasons.append(f"{way}: {problem}")
            else:
                ways.append(way)
    return UsableWays(tuple(ways), tuple(reasons))


def _draw(pool: list[int], step: int, number: int) -> list[int]:
    return [pool[(step * number + place) % len(pool)] for place in range(number)]


def _find_difference(
    model: PreTrainedModel, way: str, text: list[int], forks: list[Fork], expected: list[torch.Tensor]
) -> str:
    """Why a way is not right, in words; "" if it is."""
    reader = create_reader(model, way)
    if way == TREE and not _is_head_all(reader, text):
        return "the output layer alone gives different logits"
    found = _collect_logits(reader, text, forks)
    own = [token == text[fork.position] for fork in forks for token in fork.candidates]  # which are no branches
    pairs = [pair for pair, same in zip(zip(found, expected, strict=True), own, strict=True) if not same]
    if (error := _measure_error(model, *zip(*pairs, strict=True))) > checking.get_tolerance(model):
        return f"logits differ by {error:.2g} standard deviations"
    noise = checking.LEAST if model.dtype in checking.TOLERANCES else checking.LEAST_HALF
    if way != STEPS and (moved := _measure_leak(reader, text, forks, found)) > noise:
        return f"candidates change each other's logits by {moved:.2g} standard deviations"
    return ""


def _measure_error(model: PreTrainedModel, found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> float:
    """The largest difference of logits of some branches from what is expected; in half precision, the median.

    In bfloat16, matrices of another shape are multiplied in another order, which changes single rows of the packaged
    model by up to 0.8 standard deviations, whatever else is read with them, and the median row by 0.1 to 0.2. With a
    wrong mask or wrong positions, the median is 1.3 or more.
    """
    errors = sorted(map(checking.measure_difference, found, expected))
    return errors[-1] if model.dtype in checking.TOLERANCES else errors[len(errors) // 2]


def _is_head_all(reader: TreeReader, text: list[int]) -> bool:
    own = reader.model(input_ids=torch.tensor([text], device=reader.device)).logits[0]
    found = reader.head(reader.body(input_ids=torch.tensor([text], device=reader.device))[0][0])
    return found.shape == own.shape and torch.equal(found.float().to(own.device), own.float())


def _measure_leak(reader: ContextReader, text: list[int], forks: list[Fork], found: list[torch.Tensor]) -> float:
    """How much the logits after the first candidates change, in standard deviations, if all others are others.

    In bfloat16 and float16, the tolerance for rounding is large enough to miss that. Shapes are the same here, so
    that hardly anything is rounded differently.
    """
    *_, last = others = [fork.candidates[-1] for fork in forks]
    changed = [
        fork._replace(candidates=[*fork.candidates[:-1], other])
        for fork, other in zip(forks, [last, *others[:-1]], strict=True)
    ]
    again = _collect_logits(reader, text, changed)
    kept = [place for place in range(len(found)) if place % TRIED < TRIED - 1]
    return max(checking.measure_difference(again[place], found[place]) for place in kept)


def _collect_logits(reader: ContextReader, text: list[int], forks: list[Fork]) -> list[torch.Tensor]:
    return [row for _, logits in reader.compute_logits(text, forks) for row in logits]


def find_window(model: PreTrainedModel) -> int | None:
    """The smallest number of tokens that a layer with a sliding window, or chunks, sees; None if there is none."""
    layers = DynamicCache(config=model.config).layers
    return min((layer.sliding_window for layer in layers if hasattr(layer, "sliding_window")), default=None)


class _Readers:
    """The readers of a model, each created when it is needed, and which one a text needs."""

    def __init__(self, model: PreTrainedModel, skip_check: bool, memory: int | str = Settings.context_memory):
        self.model, self.window, self.memory = model, find_window(model), memory
        self.ways, self.reasons = find_ways(model, skip_check)
        self.created: dict[str, ContextReader] = {}
        if not self.ways:
            raise ValueError(
                f"{type(model).__name__} cannot be measured in context: none of the ways to read candidates "
                f"reproduces its logits ({'; '.join(self.reasons)})"
            )

    def choose(self, length: int) -> ContextReader:
        """The reader for a text of this length. ValueError, in one line, if there is none."""
        ways = self.ways
        if self.window is not None and length > self.window:  # the tree's mask knows no window
            ways = [way for way in ways if way == STEPS]
        if not ways:
            raise ValueError(
                f"{type(self.model).__name__} cannot be measured in context: its layers see only {self.window} tokens, "
                f"but a text has {length}, and cached steps do not reproduce its logits ({'; '.join(self.reasons)})"
            )
        if ways[0] not in self.created:
            self.created[ways[0]] = create_reader(self.model, ways[0], self.memory)
        return self.created[ways[0]]

    @torch.inference_mode()
    def check_long(self, ids: list[int], forks: list[Fork]) -> None:
        """Drops the ways by tree if they are not right at the end of a long text, which the trial cannot tell.

        Some models have windows that their configuration does not name. One candidate of some of the last ``forks`` is
        read, which was not taken.
        """
        forks = [
            fork._replace(candidates=[token for token in fork.candidates if token != ids[fork.position]][-1:])
            for fork in forks[-CHECKED:]
        ]
        reader = self.choose(forks[-1].position + 1)
        if reader.way == STEPS:
            return
        expected = [reader.read_alone([*ids[: fork.position], *fork.candidates]) for fork in forks]
        if not all(map(checking.is_distribution, expected)):
            return
        error = _measure_error(self.model, _collect_logits(reader, ids, forks), expected)
        if error > checking.get_tolerance(self.model):
            self.ways = tuple(way for way in self.ways if way == STEPS)
            self.reasons += (f"tree: logits differ by {error:.2g} standard deviations in a long text",)
            self.choose(forks[-1].position + 1)


# Texts


@torch.inference_mode()
def compare_text(
    reader: ContextReader, ids: list[int], forks: list[Fork], settings: Settings, bar: tqdm | None = None
) -> Comparison:
    """Compares the candidates of each of the ``forks`` of a text; of ``settings``, the temperature is used.

    ``bar`` advances by the number of forks. NotFinite lists the forks with logits that define no distribution.
    """
    begin, triangles, bad = time.perf_counter(), [], []
    for piece, logits in reader.compute_logits(ids, forks):
        found = exponentiate(scale_logits(logits, settings))
        probs, wrong = found.compute_probabilities(), found.total[:, 0].isnan().tolist()
        start = 0
        for fork in piece:
            end = start + len(fork.candidates)
            if any(wrong[start:end]):
                bad.append(fork.step)
            triangles.append(compute_similarities(probs[start:end]))
            start = end
        if bar is not None:
            bar.update(len(piece))
    if bad:
        raise NotFinite(bad)
    counts = [len(triangle) for triangle in triangles]
    joined = torch.cat(triangles).cpu() if triangles else torch.empty(0)
    shares = [fork.shares for fork in forks]
    return Comparison(
        steps=torch.tensor([fork.step for fork in forks], dtype=torch.int32),
        sizes=torch.tensor([len(fork.candidates) for fork in forks], dtype=torch.int32),
        ids=torch.tensor([token for fork in forks for token in fork.candidates], dtype=torch.int32),
        shares=torch.cat([torch.empty(0), *shares]).float(),
        similarities=joined.half(),
        values=describe_choices(shares, joined.split(counts) if counts else []),
        seconds=time.perf_counter() - begin,
        way=reader.way,
    )


@torch.inference_mode()
def look_ahead(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    tokens: Sequence[int],
    candidates: torch.Tensor,
    probs: torch.Tensor,
    settings: Settings,
    likeliest: int = 3,
) -> NextTokens:
    """What follows each of the ``candidates`` (m,), m > 1, of the last of ``tokens``, which continue a prompt.

    ``probs`` (m,) are their probabilities. ``settings`` say how the prompt is encoded, and the temperature. Raises
    ValueError, in one line, if the model cannot be read in any way, or gives NaN.
    """
    inputs = encoding.encode(tokenizer, [prompt], **encoding.list_options(settings, find_context_length(model)))
    ids, shares = [*inputs.ids[0], *tokens], probs.double()
    encoding.check_ids(encoding.Inputs([[*ids, *candidates.tolist()]]), len(find_embedding_matrix(model)))
    fork = Fork(len(tokens) - 1, len(ids) - 1, candidates.tolist(), shares / shares.sum())
    readers = _Readers(model, settings.skip_check)
    if not settings.skip_check:
        readers.check_long(ids, [fork])
    ((_, logits),) = readers.choose(len(ids)).compute_logits(ids, [fork])
    found = exponentiate(scale_logits(logits, settings))
    if found.total[:, 0].isnan().any():
        raise batching.explain_not_finite(f"after a candidate of token {fork.step}", model)
    following = found.compute_probabilities()
    triangle = compute_similarities(following).cpu()
    similar, m = torch.eye(len(following)), len(following)
    rows, columns = torch.triu_indices(m, m, 1)
    similar[rows, columns] = similar[columns, rows] = triangle
    values = {name: float(value) for name, value in describe_choices([fork.shares], [triangle]).items()}
    best = following.topk(min(likeliest, following.shape[1]))
    return NextTokens(similar, values, best.indices.cpu(), best.values.cpu())


def measure(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    records: Iterable[tuple[int, Mapping[str, Any]]],
    settings: Settings,
    candidates: int = Settings.context_candidates,
    skip_check: bool = False,
    memory: int | str = Settings.context_memory,
    total: int | None = None,
    progress: bool = True,
    longest: Mapping[str, Any] | None = None,
) -> Iterator[tuple[int, Comparison]]:
    """Compares the candidates in each of the ``records``, by their numbers, and yields one text after another.

    ``records`` have ``prompt``, ``tokens``, ``top_p_tokens`` and ``top_p_probs`` as a run saves them, ``settings`` are
    those of the run: its prompts are encoded as they were. ``memory`` is that of a `ContextReader`. ``total`` is the
    number of forks, for the progress bar. ``longest`` is the record of the longest text, with which a way is checked
    that a short one may not refute. Raises ValueError, in one line, if the model cannot be read in any way, or gives
    NaN, and MemoryError if it does not fit.
    """
    readers = _Readers(model, skip_check, memory)
    options = encoding.list_options(settings, find_context_length(model))
    rows = len(find_embedding_matrix(model))

    def prepare(record: Mapping[str, Any]) -> tuple[list[int], list[Fork]]:
        inputs = encoding.encode(tokenizer, [record["prompt"]], **options)
        ids = [*inputs.ids[0], *torch.as_tensor(record["tokens"]).tolist()]
        encoding.check_ids(encoding.Inputs([ids]), rows)
        return ids, find_forks(record, len(inputs.ids[0]), candidates)

    if longest is not None and not skip_check:
        ids, forks = prepare(longest)
        if forks:
            readers.check_long(ids, forks)
    with tqdm(total=total, unit="tok", disable=not progress, mininterval=0.5) as bar:
        for index, record in records:
            ids, forks = prepare(record)
            reader = readers.choose(forks[-1].position + 1 if forks else 0)
            yield index, _compare_or_shrink(reader, index, ids, forks, settings, bar)


def _compare_or_shrink(
    reader: ContextReader, index: int, ids: list[int], forks: list[Fork], settings: Settings, bar: tqdm
) -> Comparison:
    """`compare_text`, in smaller passes if need be; its errors name the prompt ``index``."""
    shown = bar.n
    while True:
        try:
            return compare_text(reader, ids, forks, settings, bar)
        except NotFinite as error:
            raise batching.explain_not_finite(
                f"after a candidate of prompt {index}, token {error.rows[0]}", reader.model
            ) from None
        except torch.OutOfMemoryError:
            pass
        if reader.device.type == "cuda":
            torch.cuda.empty_cache()  # not in the except block, whose traceback still holds the tensors
        if not reader.shrink():
            raise MemoryError(f"prompt {index} does not fit in the device's memory: reduce context_candidates")
        bar.n = shown


def complete_context(
    folder: Any,
    load: Callable[[], tuple[PreTrainedModel, PreTrainedTokenizerBase]],
    info: Mapping[str, Any],
    split: Callable,
    skip_check: bool = False,
    memory: int | str = Settings.context_memory,
    progress: bool = True,
) -> None:
    """Compares what is missing in a `store.context.ContextFolder` that is open in a ``with`` block, and finishes it.

    ``load`` loads the run's model and tokenizer: if only the threshold is another one than before, they are not
    needed. ``info`` is the run's run.json, whose settings say how its prompts were encoded; ``memory`` is that of a
    `ContextReader`; ``split`` is passed on to `ContextFolder.finish`.
    """
    if folder.finished:  # another process finished it while this one waited
        return
    settings = read_settings(info)
    if folder.joined:
        folder.finish(0, split)
        return
    sizes = folder.list_sizes()
    model, tokenizer = load()
    left = [index for index in range(len(sizes)) if not folder.has_part(index)]
    if len(left) < len(sizes):
        print(f"resuming: {len(sizes) - len(left)} of {len(sizes)} texts have been compared")
    total = sum(k > 1 for index in left for k in sizes[index].candidates)
    longest = max(left, key=lambda index: sizes[index].characters + len(sizes[index].candidates), default=None)
    checked = None if longest is None else next(record for _, record in folder.stream_texts([longest]))
    options = {"total": total, "progress": progress, "skip_check": skip_check, "candidates": folder.candidates}
    options |= {"memory": memory, "longest": checked}
    for index, found in measure(model, tokenizer, folder.stream_texts(left), settings, **options):
        folder.save_part(index, found._asdict())
    folder.finish(len(sizes), split, {"device": str(model.device), "dtype": str(model.dtype).removeprefix("torch.")})


def read_settings(info: Mapping[str, Any]) -> Settings:
    """All settings in a run.json; one that did not exist when it was written has its default.

    ValueError, in one line, for one that is not allowed.
    """
    try:
        return Settings.collect(info["settings"])
    except ValueError as error:
        raise ValueError(f"run.json: {error}") from None
