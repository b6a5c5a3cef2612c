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

from nucleoscope.measure import checking, cosine, decoding, model_facts
from nucleoscope.measure.batching import Batch, measure_batches, split_batches
from nucleoscope.measure.encoding import Inputs, check_ids, encode, list_options
from nucleoscope.measure.model_facts import find_context_length, find_embedding_matrix, find_end_tokens
from nucleoscope.measure.prefix import SharedPrefix
from nucleoscope.measure.sampling import Sampler, draw_uniforms
from nucleoscope.quantities import Quantity, list_recorded
from nucleoscope.settings import Settings

BATCH_LIMIT = 128  # rows; beyond it a step's cost grows in proportion


def choose_batch_size(batch_size: int | str, model: PreTrainedModel, inputs: Inputs, max_tokens: int) -> int:
    """``batch_size``, or for "auto" the number of rows whose cache and logits fit in half of the available memory.

    At most `BATCH_LIMIT`, and such that all batches have about the same size.
    """
    if batch_size != "auto":
        return int(batch_size)
    token, row = model_facts.measure_cache(model)
    cache = row + token * (max(map(len, inputs.ids), default=0) + max_tokens)
    # about eight float32 arrays over the vocabulary exist at once
    logits = 8 * 4 * model.config.get_text_config().vocab_size
    rows = min(int(free // 2 // (share * cache + logits)) for free, share in model_facts.find_free_memory(model))
    limit = max(1, min(BATCH_LIMIT, rows))
    return math.ceil(len(inputs.ids) / math.ceil(len(inputs.ids) / limit)) if inputs.ids else limit


def plan_batches(
    model: PreTrainedModel, inputs: Inputs, settings: Settings, indices: list[int] | None = None
) -> list[list[int]]:
    """Batches of prompt indices (all, or only ``indices``) of similar length, or of equal length if need be."""
    size = choose_batch_size(settings.batch_size, model, inputs, settings.max_tokens)
    way, limit = checking.find_way(model, settings.skip_check), model_facts.find_length_limit(model)
    room = 0 if decoding.needs_equal_lengths(way) else None if limit is None else limit - settings.max_tokens
    return split_batches(inputs, size, indices, room)


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
        inputs = encode(tokenizer, prompts, **list_options(chosen, find_context_length(model)))
    embedding, ends = find_embedding_matrix(model), find_end_tokens(model, tokenizer)
    check_ids(inputs, len(embedding))
    if batches is None:
        batches = plan_batches(model, inputs, chosen)
    directions, way = cosine.find_directions(embedding), checking.find_way(model, chosen.skip_check)
    quantities = list_recorded() if quantities is None else quantities
    prefix = checking.choose_prefix(model, inputs.ids, chosen.skip_check) if way == decoding.PADDED else None

    def measure_batch(indices: list[int], bar: tqdm) -> list[dict]:
        numbers = draw_uniforms(chosen.seed, indices, max_tokens, model.device)
        sampler, ended = Sampler(directions, chosen, numbers, ends, quantities), 0
        ids = [inputs.ids[i] for i in indices]
        for step, (rows, over) in enumerate(generate(model, ids, max_tokens, sampler, way, prefix)):
            bar.total -= (len(over) - ended) * (max_tokens - step)  # ended rows will produce no more tokens
            ended = len(over)
            bar.update(sum(row not in over for row in rows))
        return sampler.build_records([prompts[i] for i in indices])

    total = max_tokens * sum(map(len, batches))
    yield from measure_batches(batches, prompts, measure_batch, model, total, progress)


@torch.inference_mode()
def generate(
    model: PreTrainedModel,
    ids: list[list[int]],
    max_tokens: int,
    sampler: Sampler,
    way: str,
    prefix: SharedPrefix | None = None,
) -> Iterator[tuple[list[int], set[int]]]:
    """Prefill, then draw, measure and step until every row of ``ids`` has ended or has ``max_tokens`` tokens.

    ``way`` is that of `checking.find_way`, ``prefix`` that of `checking.choose_prefix` for rows that begin with it.

    Yields after each draw which rows it was for, and which of all rows are known to have ended.
    """
    decoder = decoding.create_decoder(model, ids, max_tokens, decoding.adapt_way(model, ids, max_tokens, way), prefix)
    logits = decoder.prefill()
    while logits is not None:
        tokens, over = sampler.draw(logits, decoder.rows)
        yield decoder.rows, over
        logits = decoder.advance(tokens, over)
