"""Generates a continuation of each prompt and measures every token: prompts in, one record per prompt out.

Contract: this module does not depend on data sets or the Hub. Which token is drawn depends only on the
logits and on (seed, prompt index, step), so batch size, order and restarts do not change it, up to
floating-point differences in the forward pass.

Measuring a step waits for the device once, for the nucleus sizes (wide nuclei cost a few more
waits); which rows have ended becomes known at the next step, so a row may run one step longer than
needed, which is not recorded. The model's own forward pass may wait too: transformers inspects the mask.
"""

import math
import random
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nucleoscope.measure import cosine, model_facts
from nucleoscope.measure.batching import Batch, BatchQueue, split_batches
from nucleoscope.measure.decoding import Decoder, accepts_positions
from nucleoscope.measure.encoding import Inputs, encode
from nucleoscope.measure.model_facts import find_context_length, find_embedding_matrix, find_end_tokens
from nucleoscope.measure.nucleus import NotFinite, Nucleus, find_nucleus, sample, scale_logits
from nucleoscope.measure.recording import Token, build_record, measure_step, unpack
from nucleoscope.measure.step import Step
from nucleoscope.quantities import Quantity, list_recorded
from nucleoscope.settings import Settings

# Rows; beyond it a step's cost grows in proportion. An interrupted run loses its current batch: on a
# CPU a minute's work or more, on a GPU seconds.
BATCH_LIMIT = {"cpu": 32, "cuda": 128}


def list_uniforms(seed: int, index: int, n: int) -> list[float]:
    """The first n uniform numbers in [0, 1) of prompt ``index``: step t always uses the same one.

    Python's generator seeded with a string (its SHA-512) is documented to stay the same across versions.
    """
    stream = random.Random(f"{seed}/{index}")
    return [stream.random() for _ in range(n)]


def choose_batch_size(batch_size: int | str, model: PreTrainedModel, inputs: Inputs, max_tokens: int) -> int:
    """``batch_size``, or for "auto" the number of rows whose cache and logits fit in half of the available memory.

    At most `BATCH_LIMIT`, and such that all batches have about the same size.
    """
    if batch_size != "auto":
        return int(batch_size)
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    longest = max(map(len, inputs.ids)) + max_tokens
    cache = 2 * config.num_hidden_layers * heads * head_dim * model.dtype.itemsize * longest
    logits = 8 * 4 * config.vocab_size  # about eight float32 arrays over the vocabulary exist at once
    rows = min(int(free // 2 // (share * cache + logits)) for free, share in model_facts.find_free_memory(model))
    limit = max(1, min(BATCH_LIMIT.get(model.device.type, BATCH_LIMIT["cuda"]), rows))
    return math.ceil(len(inputs.ids) / math.ceil(len(inputs.ids) / limit)) if inputs.ids else limit


def plan_batches(
    model: PreTrainedModel, inputs: Inputs, settings: Settings, indices: list[int] | None = None
) -> list[list[int]]:
    """Batches of prompt indices (all, or only ``indices``) of similar length, or of equal length if need be."""
    size = choose_batch_size(settings.batch_size, model, inputs, settings.max_tokens)
    return split_batches(inputs, size, indices, equal_lengths=not accepts_positions(model))


class Sampler:
    """Draws the next tokens of one batch from their nuclei and measures them.

    ``uniforms`` (B, max_tokens) on the model's device, ``ends`` the ids that end a text, ``quantities``
    the quantities to measure for each token; of ``settings`` it uses top_p and temperature.
    """

    def __init__(
        self,
        embedding: torch.Tensor,
        inverse_norm: torch.Tensor,
        settings: Settings,
        uniforms: torch.Tensor,
        ends: set[int],
        quantities: Sequence[Quantity],
    ):
        self.embedding, self.inverse_norm, self.settings = embedding, inverse_norm, settings
        self.uniforms, self.quantities = uniforms, quantities
        self.ends = torch.tensor(sorted(ends), dtype=torch.long, device=uniforms.device)
        self.steps: list[tuple[list[int], torch.Tensor, Nucleus, torch.Tensor]] = []
        self.ended: set[int] = set()
        self.flags: torch.Tensor | None = None  # which rows ended at the last step, on the host
        self.rows: list[int] | None = None  # the rows that the uniform numbers were last reduced to

    def draw(self, logits: torch.Tensor, rows: list[int]) -> tuple[torch.Tensor, set[int]]:
        """The next tokens (B',) from logits (B', V) of ``rows``, and the rows known to have ended."""
        logits = scale_logits(logits, self.settings)
        candidates = self._nucleus(logits, rows)
        if rows != self.rows:  # rows are only ever removed
            kept = [place for place, row in enumerate(self.rows or range(len(self.uniforms))) if row in set(rows)]
            self.uniforms, self.rows = self.uniforms[torch.tensor(kept, device=logits.device)], list(rows)
        places = sample(candidates, self.uniforms[:, len(self.steps)])
        tokens = candidates.ids[places]
        step = Step(logits, candidates, tokens, self.embedding, self.inverse_norm, places)
        values = measure_step(step, self.quantities)  # (n, B')
        self.flags = torch.isin(tokens, self.ends).to("cpu", non_blocking=True)
        # A batch's nuclei stay on the device until the batch ends: ids need no more than 32 bits.
        self.steps.append((self.rows, tokens, candidates._replace(ids=candidates.ids.int()), values))
        return tokens, self.ended

    def _nucleus(self, logits: torch.Tensor, rows: list[int]) -> Nucleus:
        """The nuclei; rows that have ended may contain anything, NotFinite names only the others."""
        try:
            candidates = find_nucleus(logits, self.settings.top_p)
        except NotFinite as error:
            self._read_flags()
            broken = [rows[place] for place in error.rows if rows[place] not in self.ended]
            if broken:
                raise NotFinite(broken) from None
            over = torch.tensor(error.rows, device=logits.device)
            return find_nucleus(logits.index_fill(0, over, 0), self.settings.top_p)
        self._read_flags()  # nucleus() has waited for the device, so the copy is complete
        return candidates

    def _read_flags(self) -> None:
        if self.flags is not None:
            self.ended.update(row for row, flag in zip(self.steps[-1][0], self.flags.tolist(), strict=True) if flag)

    def latest(self) -> list[Token]:
        """The tokens of the last step, on the host."""
        _, tokens, candidates, values = self.steps[-1]
        return unpack(tokens, candidates, values, self.quantities)

    def build_records(self, prompts: list[str]) -> list[dict]:
        """The batch's records, without end-of-text tokens and anything after them."""
        ends, over = set(self.ends.tolist()), set()
        kept: list[list[Token]] = [[] for _ in prompts]
        for rows, tokens, candidates, values in self.steps:
            for row, token in zip(rows, unpack(tokens, candidates, values, self.quantities), strict=True):
                if token.id in ends:
                    over.add(row)
                if row not in over:
                    kept[row].append(token)
        return [build_record(prompt, tokens, self.quantities) for prompt, tokens in zip(prompts, kept, strict=True)]


def measure(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],
    *,
    inputs: Inputs | None = None,
    batches: list[list[int]] | None = None,
    quantities: Sequence[Quantity] | None = None,
    progress: bool = True,
    **settings: Any,
) -> Iterator[Batch]:
    """Continues each prompt by at most max_tokens tokens and yields the records batch by batch.

    ``settings`` are those of `Settings`, by name: max_tokens, top_p, temperature, seed, prompt_format and
    batch_size. ``inputs`` (from `encode`) and ``batches`` (from `plan_batches`) are computed if they are
    not given; a resumed run passes only the remaining batches. ``quantities`` are measured, by default all
    that are registered. If a GPU runs out of memory, the batch is halved. Raises ValueError for invalid settings
    and, naming the prompts, for logits with NaN; by then, the batches before have already been yielded.
    """
    chosen = Settings(**settings).check()
    max_tokens = chosen.max_tokens
    if inputs is None:
        inputs = encode(tokenizer, prompts, chosen.prompt_format, find_context_length(model), max_tokens)
    if batches is None:
        batches = plan_batches(model, inputs, chosen)
    embedding, ends = find_embedding_matrix(model), find_end_tokens(model, tokenizer)
    inverse_norm = cosine.compute_inverse_norms(embedding)
    quantities = list_recorded() if quantities is None else quantities
    total = max_tokens * sum(map(len, batches))
    with tqdm(total=total, unit="tok", disable=not (progress and batches), mininterval=0.5) as bar:
        for attempt in BatchQueue(batches, prompts, model.device, bar):
            with attempt:
                numbers = draw_uniforms(chosen.seed, attempt.indices, max_tokens, model.device)
                sampler = Sampler(embedding, inverse_norm, chosen, numbers, ends, quantities)
                generate_batch(model, [inputs.ids[i] for i in attempt.indices], max_tokens, sampler, bar)
                attempt.records = sampler.build_records([prompts[i] for i in attempt.indices])
            if attempt.records is not None:
                yield Batch(attempt.indices, attempt.records, attempt.seconds)


@torch.inference_mode()
def generate_batch(
    model: PreTrainedModel, ids: list[list[int]], max_tokens: int, sampler: Sampler, bar: tqdm | None = None
) -> None:
    """Prefill, then draw, measure and step until every row has ended or has ``max_tokens`` tokens."""
    decoder, ended = Decoder(model, ids, max_tokens), 0
    logits = decoder.prefill()
    while logits is not None:
        tokens, over = sampler.draw(logits, decoder.rows)
        if bar is not None:  # ended rows will produce no more tokens
            bar.total -= (len(over) - ended) * (max_tokens - len(sampler.steps) + 1)
            ended = len(over)
            bar.update(sum(row not in over for row in decoder.rows))
        logits = decoder.advance(tokens, over)


def draw_uniforms(seed: int, indices: Iterable[int], max_tokens: int, device: torch.device) -> torch.Tensor:
    """The uniform numbers (B, max_tokens) of some prompts, on the device; float64 except on Apple's GPUs."""
    dtype = torch.float32 if device.type == "mps" else torch.float64
    return torch.tensor([list_uniforms(seed, index, max_tokens) for index in indices], dtype=dtype, device=device)
