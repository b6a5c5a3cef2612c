"""Generates a continuation of each prompt and measures every token: prompts in, one record per prompt out.

Contract: this module does not depend on data sets or the Hub. Which token is drawn depends only on the
logits and on (seed, prompt index, step), so batch size, order and restarts do not change it, up to
floating-point differences in the forward pass.

Measuring a step waits for the device once, for the nucleus sizes (wide nuclei cost a few more
waits); which rows have ended becomes known at the next step, so a row may run one step longer than
needed, which is not recorded. The model's own forward pass may wait too: transformers inspects the mask.

What is drawn of a batch is saved every few seconds (`journal`). After an interruption the batch continues from there.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nucleoscope.measure import checking, cosine, decoding, model_facts, static
from nucleoscope.measure.batching import Batch, begin_at, measure_batches, split_batches
from nucleoscope.measure.encoding import Inputs, check_ids, encode, list_options
from nucleoscope.measure.journal import Journal
from nucleoscope.measure.kept_states import KeptStates
from nucleoscope.measure.model_facts import find_context_length, find_embedding_matrix, find_end_tokens
from nucleoscope.measure.prefix import SharedPrefix
from nucleoscope.measure.sampling import Sampler, draw_uniforms
from nucleoscope.measure.static import StaticMemory
from nucleoscope.measure.variants import Variants
from nucleoscope.quantities import Quantity, list_recorded
from nucleoscope.settings import Settings

BATCH_LIMIT = 128  # rows; beyond it a step's cost grows in proportion
# On a CPU a step reads weights and cache from memory, and takes as long as that. With a cache of twice the weights, a
# larger batch saves little and takes memory that other programs need. Small models need not care (bytes).
CACHE_SHARE, LEAST_CACHE = 2, 2**29
# In these a text that is read at once gives the same tokens as one that is read token by token.
EXACT = (torch.float32, torch.float64)


def choose_batch_size(batch_size: int | str, model: PreTrainedModel, inputs: Inputs, max_tokens: int) -> int:
    """``batch_size``, or for "auto" the number of rows whose cache and logits fit in half of the available memory.

    At most `BATCH_LIMIT`, and such that all batches have about the same size. On a CPU, the longest prompts' caches
    together are at most `CACHE_SHARE` times as large as the weights.
    """
    if batch_size != "auto":
        return int(batch_size)
    token, row = model_facts.measure_cache(model)
    columns = max(map(len, inputs.ids), default=0) + max_tokens
    cache = row + token * (static.round_columns(columns) if static.suits(model) else columns)
    # about eight float32 arrays over the vocabulary exist at once
    logits = 8 * 4 * model.config.get_text_config().vocab_size
    rows = min(int(free // 2 // (share * cache + logits)) for free, share in model_facts.find_free_memory(model))
    if model.device.type == "cpu":
        most = max(LEAST_CACHE, CACHE_SHARE * sum(model_facts.count_weight_bytes(model).values()))
        lengths = sorted((row + token * (len(ids) + max_tokens) for ids in inputs.ids), reverse=True)
        rows = min(rows, sum(total <= most for total in accumulate(lengths)))
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
    folder: Any = None,
    measured_variants: Variants | None = None,
    kept: KeptStates | None = None,
    **settings: Any,
) -> Iterator[Batch]:
    """Continues each prompt by at most max_tokens tokens and yields the records batch by batch.

    ``settings`` are those of `Settings`, by name: max_tokens, top_p, temperature, seed, prompt_format and
    batch_size. ``inputs`` (from `encode`) and ``batches`` (from `plan_batches`) are computed if they are
    not given; a resumed run passes only the remaining batches. ``quantities`` are measured, by default all
    that are registered, and so are ``measured_variants``, which the setting alone does not create. ``folder``, a
    `store.run_folder.RunFolder` that is open in a ``with`` block, keeps what is drawn of a batch until its records
    are yielded, and a batch that was interrupted continues from there. ``kept`` gets the last hidden states of the
    tokens of some prompts. If a GPU runs out of memory, the batch is halved. Raises ValueError for invalid settings
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
    shared = checking.choose_prefix(model, inputs.ids, chosen.skip_check)
    prefix = decoding.read_prefix(model, shared) if shared else None
    memory = checking.create_memory(model, chosen.skip_check)
    catching = kept if kept is not None and memory is None else None  # hooks do not run when steps are replayed

    def measure_batch(indices: list[int], bar: tqdm) -> Batch:
        numbers = draw_uniforms(chosen.seed, indices, max_tokens, model.device)
        sampler = Sampler(directions, chosen, numbers, ends, quantities, measured_variants)
        journal, start, ended = Journal(folder, indices, sampler), len(sampler.steps), len(sampler.ended)
        counted = sum(row not in over for drawn, over in sampler.list_drawn() for row in drawn)
        left = (len(indices) - ended) * (max_tokens - start)
        begin_at(bar, counted, counted + left - len(indices) * max_tokens)
        ids = [inputs.ids[i] for i in indices]
        if catching is not None:
            catching.begin(indices, begun=start > 0 and model.dtype in EXACT)
        if start and model.dtype not in EXACT:
            bar.set_postfix_str(f"repeating {start} steps")
        steps = generate(model, ids, max_tokens, sampler, way, prefix, memory, catching)
        for step, (rows, over) in enumerate(steps, start):
            if step == start:
                bar.set_postfix_str("", refresh=False)
            bar.total -= (len(over) - ended) * (max_tokens - step)  # ended rows will produce no more tokens
            ended = len(over)
            new = sum(row not in over for row in rows)
            counted += new
            bar.update(new)
            journal.save_if_due()
        records = sampler.build_records([prompts[i] for i in indices])
        if catching is not None:
            catching.finish([record["tokens"].tolist() for record in records])
        # A row is known to have ended one step later, so its end-of-text token was counted; it is not recorded.
        correction = sum(len(record["tokens"]) for record in records) - counted
        bar.total += correction
        bar.update(correction)
        path = static.name_path(memory, decoding.adapt_way(model, ids, max_tokens, way))
        return Batch(indices, records, journal.seconds, journal.continued, path, sampler.collect_variants(len(indices)))

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
    memory: StaticMemory | None = None,
    kept: KeptStates | None = None,
) -> Iterator[tuple[list[int], set[int]]]:
    """Prefill, then draw, measure and step until every row of ``ids`` has ended or has ``max_tokens`` tokens.

    The first steps may be in ``sampler`` already: they are neither drawn nor measured again.
    ``way`` is that of `checking.find_way`, ``prefix`` what the rows begin with, if it was read before, and ``memory``
    that of `checking.create_memory`. If the device runs out of memory, the latter is freed. ``kept`` gets the states
    of the steps, unless it is None.

    Yields after each draw which rows it was for, and which of all rows are known to have ended.
    """
    way = decoding.adapt_way(model, ids, max_tokens, way)
    create = partial(static.create_decoder, model, way=way, prefix=prefix, memory=memory)
    begin = read_drawn if model.dtype in EXACT else partial(repeat_drawn, kept=kept)
    catch = contextlib.nullcontext if kept is None else kept.catch
    try:
        with catch():
            decoder, logits = begin(create, ids, max_tokens, sampler)
        while logits is not None:
            if kept is not None:
                kept.add(logits, decoder.rows)
            tokens, over = sampler.draw(logits, decoder.rows)
            yield decoder.rows, over
            with catch():
                logits = decoder.advance(tokens, over)
    except torch.OutOfMemoryError:
        if memory is not None:
            memory.release()
        raise


def read_drawn(
    create: Callable[[list[list[int]], int], decoding.Decoder], ids: list[list[int]], max_tokens: int, sampler: Sampler
) -> tuple[decoding.Decoder | None, torch.Tensor | None]:
    """A decoder that has read the prompts, each with what ``sampler`` has drawn of it already, and the logits.

    Rows that have ended are left out, also in a way that cannot drop rows later, because to the model this is a new
    batch. Both are None if no row or no token is left.
    """
    rows = [row for row in range(len(ids)) if row not in sampler.ended]
    left, drawn = max_tokens - len(sampler.steps), [tokens for tokens, _ in sampler.list_drawn()]
    if not rows or not left:
        return None, None
    texts = [ids[row] + [step[row] for step in drawn] for row in rows]
    decoder = create(texts, left)
    decoder.rows = rows  # by their places in the whole batch, as the sampler names them
    return decoder, decoder.prefill()


def repeat_drawn(
    create: Callable[[list[list[int]], int], decoding.Decoder],
    ids: list[list[int]],
    max_tokens: int,
    sampler: Sampler,
    kept: KeptStates | None = None,
) -> tuple[decoding.Decoder, torch.Tensor | None]:
    """A decoder that has read the prompts and then, step by step, what ``sampler`` has drawn, and the logits.

    In bfloat16 and float16 a text that is read at once is rounded differently, so that sooner or later another token
    would be drawn. Here all forward passes are those of a run without an interruption, and so is every bit. That
    costs their time again, though nothing is drawn or measured: most of the time that the steps took at first. What
    is caught of them is ``kept`` as it was at first.
    """
    decoder = create(ids, max_tokens)
    logits: torch.Tensor | None = decoder.prefill()
    for drawn, known in sampler.list_drawn():
        if kept is not None:
            kept.add(logits, decoder.rows)
        # a row that has ended may be kept for longer than it was, by another version: it may read anything
        tokens = torch.tensor([drawn.get(row, 0) for row in decoder.rows], device=decoder.device)
        logits = decoder.advance(tokens, known)
    return decoder, logits
