"""Generates a continuation of each prompt and measures every token: prompts in, one record per prompt out.

Contract: this module does not depend on data sets or the Hub. Which token is drawn depends only on the
logits and on (seed, prompt index, step), so batch size, order and restarts do not change it, up to
floating-point differences in the forward pass.

Measuring a step waits for the device once, for the nucleus sizes (wide nuclei cost a few more
waits); which rows have ended becomes known at the next step, so a row may run one step longer than
needed, which is not recorded. The model's own forward pass may wait too: transformers inspects the mask.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nucleoscope.measure import cosine, model_facts
from nucleoscope.measure.batching import Batch, measure_batches, split_batches
from nucleoscope.measure.decoding import Decoder, accepts_positions
from nucleoscope.measure.encoding import Inputs, encode
from nucleoscope.measure.model_facts import find_context_length, find_embedding_matrix, find_end_tokens
from nucleoscope.measure.sampling import Sampler, draw_uniforms
from nucleoscope.quantities import Quantity, list_recorded
from nucleoscope.settings import Settings

# Rows; beyond it a step's cost grows in proportion. An interrupted run loses its current batch: on a
# CPU a minute's work or more, on a GPU seconds.
BATCH_LIMIT = {"cpu": 32, "cuda": 128}


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

    def measure_batch(indices: list[int], bar: tqdm) -> list[dict]:
        numbers = draw_uniforms(chosen.seed, indices, max_tokens, model.device)
        sampler, ended = Sampler(embedding, inverse_norm, chosen, numbers, ends, quantities), 0
        for step, (rows, over) in enumerate(generate(model, [inputs.ids[i] for i in indices], max_tokens, sampler)):
            bar.total -= (len(over) - ended) * (max_tokens - step)  # ended rows will produce no more tokens
            ended = len(over)
            bar.update(sum(row not in over for row in rows))
        return sampler.build_records([prompts[i] for i in indices])

    total = max_tokens * sum(map(len, batches))
    yield from measure_batches(batches, prompts, measure_batch, model, total, progress)


@torch.inference_mode()
def generate(
    model: PreTrainedModel, ids: list[list[int]], max_tokens: int, sampler: Sampler
) -> Iterator[tuple[list[int], set[int]]]:
    """Prefill, then draw, measure and step until every row of ``ids`` has ended or has ``max_tokens`` tokens.

    Yields after each draw which rows it was for, and which of all rows are known to have ended.
    """
    decoder = Decoder(model, ids, max_tokens)
    logits = decoder.prefill()
    while logits is not None:
        tokens, over = sampler.draw(logits, decoder.rows)
        yield decoder.rows, over
        logits = decoder.advance(tokens, over)
