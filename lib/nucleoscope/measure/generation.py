"""Prompts in, one record a prompt out: a language model writes, and every token is measured.

Contract: nothing here knows data sets or the Hub. Which token is drawn depends on the logits and
on (seed, prompt index, step) alone, so neither the batch size nor the order nor a restart changes
it, up to floating point in the forward pass.

Measuring a step waits for the device once, for the nucleus sizes (wide nuclei cost a few more
waits); which rows have ended is read at the next step's, so a row may run one step further than
needed, unrecorded. The model's own forward pass may wait too: transformers looks at the mask.
"""

import math
import random
from collections.abc import Callable, Iterator

import torch
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nucleoscope.measure import batching, cosine, model_facts
from nucleoscope.measure.batching import Batch, check, plan
from nucleoscope.measure.decoding import decode, takes_positions
from nucleoscope.measure.encoding import Inputs, encode
from nucleoscope.measure.model_facts import context_length, embedding_matrix, end_tokens
from nucleoscope.measure.nucleus import NotFinite, Nucleus, nucleus, sample
from nucleoscope.measure.recording import quantities, record, unpack

# Rows; beyond it a step's cost grows in proportion. A run that is cut off loses the batch it is at: on a
# CPU a minute's work or more, on a GPU seconds.
BATCH_LIMIT = {"cpu": 32, "cuda": 128}


def uniforms(seed: int, index: int, n: int) -> list[float]:
    """The first n of prompt ``index``'s uniform numbers in [0, 1): step t always has the same one.

    Python's generator seeded by a text (its SHA-512) is documented to stay the same across versions.
    """
    stream = random.Random(f"{seed}/{index}")
    return [stream.random() for _ in range(n)]


def choose_batch_size(batch_size: int | str, model: PreTrainedModel, inputs: Inputs, max_tokens: int) -> int:
    """``batch_size``, or for "auto" the rows whose cache and logits fit half of the memory at hand.

    At most `BATCH_LIMIT`, and such that all batches have about the same size.
    """
    if batch_size != "auto":
        return int(batch_size)
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    longest = max(map(len, inputs.ids)) + max_tokens
    cache = 2 * config.num_hidden_layers * heads * head_dim * model.dtype.itemsize * longest
    logits = 8 * 4 * config.vocab_size  # about eight float32 arrays over the vocabulary live at once
    rows = min(int(free // 2 // (share * cache + logits)) for free, share in model_facts.room(model))
    limit = max(1, min(BATCH_LIMIT.get(model.device.type, BATCH_LIMIT["cuda"]), rows))
    return math.ceil(len(inputs.ids) / math.ceil(len(inputs.ids) / limit)) if inputs.ids else limit


class Measurer:
    """`decode`'s ``choose`` that samples from the nucleus and measures it, for one batch.

    ``uniforms`` (B, max_tokens) on the model's device, ``ends`` the ids that end a text.
    """

    def __init__(self, embedding, inverse_norm, top_p: float, uniforms: torch.Tensor, ends: set[int]):
        self.embedding, self.inverse_norm, self.top_p = embedding, inverse_norm, top_p
        self.uniforms = uniforms
        self.ends = torch.tensor(sorted(ends), dtype=torch.long, device=uniforms.device)
        self.steps: list[tuple[list[int], torch.Tensor, Nucleus, torch.Tensor]] = []
        self.ended: set[int] = set()
        self.flags: torch.Tensor | None = None  # which rows ended at the last step, on the host
        self.rows: list[int] | None = None  # the rows that the uniform numbers were last cut to

    def __call__(self, logits: torch.Tensor, rows: list[int]) -> tuple[torch.Tensor, set[int]]:
        chosen = self._nucleus(logits, rows)
        if rows != self.rows:  # rows only ever leave
            kept = [place for place, row in enumerate(self.rows or range(len(self.uniforms))) if row in set(rows)]
            self.uniforms, self.rows = self.uniforms[torch.tensor(kept, device=logits.device)], rows
        place = sample(chosen, self.uniforms[:, len(self.steps)])
        tokens = chosen.ids[place]
        values = quantities(logits, chosen, -chosen.probs[place].log(), self.embedding, self.inverse_norm)  # (7, B')
        self.flags = torch.isin(tokens, self.ends).to("cpu", non_blocking=True)
        # A batch's nuclei stay on the device to its end: ids need not be wider than 32 bits.
        self.steps.append((rows, tokens, chosen._replace(ids=chosen.ids.int()), values))
        return tokens, self.ended

    def _nucleus(self, logits: torch.Tensor, rows: list[int]) -> Nucleus:
        """The nuclei; rows that have ended may hold anything, the others NotFinite names."""
        try:
            chosen = nucleus(logits, self.top_p)
        except NotFinite as error:
            self._read_flags()
            broken = [rows[place] for place in error.rows if rows[place] not in self.ended]
            if broken:
                raise NotFinite(broken) from None
            over = torch.tensor(error.rows, device=logits.device)
            return nucleus(logits.index_fill(0, over, 0), self.top_p)
        self._read_flags()  # nucleus() has waited for the device, so the copy has arrived
        return chosen

    def _read_flags(self) -> None:
        if self.flags is not None:
            self.ended.update(row for row, flag in zip(self.steps[-1][0], self.flags.tolist(), strict=True) if flag)

    def records(self, prompts: list[str]) -> list[dict]:
        """The batch's records, without the tokens that end a text and whatever came after them."""
        steps = [(rows, unpack(tokens, chosen, values)) for rows, tokens, chosen, values in self.steps]
        ends, over = set(self.ends.tolist()), set()
        kept: list[list] = [[] for _ in prompts]
        for rows, tokens in steps:
            for row, token in zip(rows, tokens, strict=True):
                if token[0] in ends:
                    over.add(row)
                if row not in over:
                    kept[row].append(token)
        return [record(prompt, tokens) for prompt, tokens in zip(prompts, kept, strict=True)]


def measure(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],
    *,
    max_tokens: int = 100,
    top_p: float = 0.9,
    seed: int = 0,
    prompt_format: str = "raw",
    batch_size: int | str = "auto",
    inputs: Inputs | None = None,
    batches: list[list[int]] | None = None,
    progress: bool = True,
) -> Iterator[Batch]:
    """Continues each prompt by at most ``max_tokens`` tokens and yields the records batch by batch.

    ``inputs`` (from `encode`) and ``batches`` (from `plan`) are made here where they are not
    given; a run that goes on gives only the batches still to do. Running out of a GPU's memory
    halves the batch. Raises ValueError for bad parameters and, naming the prompts, for logits
    with NaN; the batches before are out by then.
    """
    check(max_tokens, top_p, prompt_format, batch_size)
    if inputs is None:
        inputs = encode(tokenizer, prompts, prompt_format, context_length(model), max_tokens)
    if batches is None:
        size = choose_batch_size(batch_size, model, inputs, max_tokens)
        batches = plan(inputs, size, equal_lengths=not takes_positions(model))
    embedding = embedding_matrix(model)
    inverse_norm = cosine.inverse_norms(embedding)
    ends = end_tokens(model, tokenizer)
    number = torch.float32 if model.device.type == "mps" else torch.float64
    total = max_tokens * sum(map(len, batches))
    with tqdm(total=total, unit="tok", disable=not (progress and batches), mininterval=0.5) as bar:

        def records_of(indices: list[int]) -> list[dict]:
            rows = [uniforms(seed, index, max_tokens) for index in indices]
            numbers = torch.tensor(rows, dtype=number, device=model.device)
            measurer = Measurer(embedding, inverse_norm, top_p, numbers, ends)
            decode(model, [inputs.ids[i] for i in indices], max_tokens, _counted(measurer, bar, max_tokens))
            return measurer.records([prompts[i] for i in indices])

        yield from batching.work_through(batches, records_of, prompts, model.device, bar)


def _counted(measurer: Measurer, bar: tqdm, max_tokens: int) -> Callable:
    """``measurer``, moving the progress bar by the rows still at work; the others' tokens are not to come."""
    seen = 0

    def choose(logits, rows):
        nonlocal seen
        tokens, ended = measurer(logits, rows)
        bar.total -= (len(ended) - seen) * (max_tokens - len(measurer.steps) + 1)
        seen = len(ended)
        bar.update(len([row for row in rows if row not in ended]))
        return tokens, ended

    return choose


def fill(cell, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[str], **parameters) -> None:
    """Measures into a `cells.Cell`, as `batching.fill` does; parameters are those of `measure`."""
    if cell.finished:  # another process has done it while this one waited
        return
    batch_size, max_tokens = parameters.get("batch_size", "auto"), parameters.get("max_tokens", 100)
    inputs = encode(tokenizer, prompts, parameters.get("prompt_format", "raw"), context_length(model), max_tokens)

    def planned(left: list[int]) -> list[list[int]]:
        size = choose_batch_size(batch_size, model, inputs, max_tokens)
        return plan(inputs, size, left, equal_lengths=not takes_positions(model))

    batching.fill(
        cell,
        len(prompts),
        batch_size,
        planned,
        lambda batches: measure(model, tokenizer, prompts, inputs=inputs, batches=batches, **parameters),
        lambda batches: batching.run_info(model, inputs, batches, batch_size, "generate"),
    )
