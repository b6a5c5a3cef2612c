"""Prompts in, one record a prompt out: a language model writes, and every token is measured.

Contract: nothing here knows data sets or the Hub. Which token is drawn depends on the logits and
on (seed, prompt index, step) alone, so neither the batch size nor the order nor a restart changes
it, up to floating point in the forward pass. A record is one prompt's dict in a
measurements file: prompt, tokens (int64), top_p_tokens and top_p_probs (a tensor a token, by
falling probability under the full distribution), and a list a quantity, named in `QUANTITIES`.

Measuring a step waits for the device once, for the nucleus sizes (wide nuclei cost a few more
waits); which rows have ended is read at the next step's, so a row may run one step further than
needed, unrecorded. The model's own forward pass may wait too: transformers looks at the mask.
"""

import os
import platform
import random
import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import groupby

import torch
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nucleoscope import __version__, cosine, entropy
from nucleoscope.decoding import decode, takes_positions
from nucleoscope.models import context_length, end_tokens
from nucleoscope.nucleus import NotFinite, Nucleus, nucleus, sample
from nucleoscope.results import COLUMNS

QUANTITIES = tuple(name for name in COLUMNS if name != "tokens")  # a record's lists, in `Measurer`'s order
BATCH_LIMIT = 128  # rows; beyond it a step's cost grows in proportion


@dataclass
class Batch:
    """What `measure` yields: the records of some prompts, with their indices and the seconds spent."""

    indices: list[int]
    records: list[dict]
    seconds: float


@dataclass
class Inputs:
    """Tokenised prompts: ids a prompt, and which of them were cut from the left to fit the context."""

    ids: list[list[int]]
    truncated: list[int] = field(default_factory=list)


def encode(
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],
    prompt_format: str = "raw",
    context: int | None = None,
    max_tokens: int = 100,
) -> Inputs:
    """Token ids of each prompt: "raw" as the tokenizer gives them, "chat" in the model's own template.

    A prompt without any token starts from the beginning-of-text token, or the end-of-text token
    where there is none. Prompts that do not leave room for ``max_tokens`` in ``context`` positions
    are cut from the left. Raises ValueError for a missing template, or max_tokens that fill the
    context alone.
    """
    if prompt_format == "chat" and not tokenizer.chat_template:
        raise ValueError("this model's tokenizer has no chat template: use prompt_format=raw")
    if context is not None and max_tokens > context:
        raise ValueError(f"max_tokens is {max_tokens}, but the model's context has only {context} positions")
    room = None if context is None else context - max_tokens + 1  # the last token is never read
    inputs = Inputs([])
    for index, prompt in enumerate(prompts):
        if prompt_format == "chat":
            text = tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False
            )
            ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        else:
            ids = tokenizer(prompt, verbose=False)["input_ids"]
        ids = ids or [_start_token(tokenizer)]
        if room is not None and len(ids) > room:
            inputs.truncated.append(index)
            ids = ids[-room:]
        inputs.ids.append(ids)
    return inputs


def _start_token(tokenizer: PreTrainedTokenizerBase) -> int:
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return token
    raise ValueError("an empty prompt has no token, and the tokenizer no beginning- or end-of-text token to start from")


def uniforms(seed: int, index: int, n: int) -> list[float]:
    """The first n of prompt ``index``'s uniform numbers in [0, 1): step t always has the same one.

    Python's generator seeded by a text (its SHA-512) is documented to stay the same across versions.
    """
    stream = random.Random(f"{seed}/{index}")
    return [stream.random() for _ in range(n)]


def check(max_tokens: int, top_p: float, prompt_format: str, batch_size: int | str) -> None:
    """Raises ValueError with one line for a parameter that no model could work with."""
    if max_tokens < 1:
        raise ValueError(f"max_tokens is {max_tokens}: it must be at least 1")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p is {top_p}: it must lie in (0, 1]")
    if prompt_format not in ("raw", "chat"):
        raise ValueError(f"prompt_format is '{prompt_format}': it must be raw or chat")
    if batch_size != "auto" and (not isinstance(batch_size, int) or batch_size < 1):
        raise ValueError(f"batch_size is {batch_size!r}: it must be auto or at least 1")


def plan(
    inputs: Inputs, batch_size: int, indices: list[int] | None = None, equal_lengths: bool = False
) -> list[list[int]]:
    """Batches of prompt indices of similar length, longest first (what runs out of memory, does so early).

    ``equal_lengths`` allows no padding at all within a batch.
    """
    order = sorted(range(len(inputs.ids)) if indices is None else indices, key=lambda i: (-len(inputs.ids[i]), i))
    groups = [list(group) for _, group in groupby(order, lambda i: len(inputs.ids[i]) if equal_lengths else 0)]
    return [group[start : start + batch_size] for group in groups for start in range(0, len(group), batch_size)]


def choose_batch_size(batch_size: int | str, model: PreTrainedModel, inputs: Inputs, max_tokens: int) -> int:
    """``batch_size``, or for "auto" the rows whose cache and logits fit half of the memory at hand.

    At most `BATCH_LIMIT`.
    """
    if batch_size != "auto":
        return int(batch_size)
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    longest = max(map(len, inputs.ids)) + max_tokens
    cache = 2 * config.num_hidden_layers * heads * head_dim * model.dtype.itemsize * longest
    logits = 8 * 4 * config.vocab_size  # about eight float32 arrays over the vocabulary live at once
    return max(1, min(BATCH_LIMIT, _memory(model.device) // 2 // (cache + logits)))


def _memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    # Half of what the machine has: what happens to be free just now must not change the batches.
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


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
        h, varentropy = entropy.nucleus_entropy(chosen.probs, chosen.offsets)
        alike = cosine.similarity(*chosen, self.embedding, self.inverse_norm)
        columns = (h, entropy.full_entropy(logits), varentropy, -chosen.probs[place].log(), *alike)
        values = torch.stack([column.to(h.dtype) for column in columns])  # (7, B')
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
        steps = [
            (rows, tokens.tolist(), n.ids.cpu(), n.probs.cpu(), n.offsets.tolist(), values.T.tolist())
            for rows, tokens, n, values in self.steps
        ]
        ends, over = set(self.ends.tolist()), set()
        kept: list[list] = [[] for _ in prompts]
        for rows, tokens, ids, probs, offsets, values in steps:
            for place, row in enumerate(rows):
                if tokens[place] in ends:
                    over.add(row)
                if row not in over:
                    part = slice(offsets[place], offsets[place + 1])
                    kept[row].append((tokens[place], ids[part], probs[part], values[place]))
        return [_record(prompt, tokens) for prompt, tokens in zip(prompts, kept, strict=True)]


def _record(prompt: str, tokens: list[tuple]) -> dict:
    """One prompt's record from (token, nucleus ids, nucleus probs, values) per token.

    A prompt's nuclei are views of one tensor each, which makes the file small and quick to load.
    """
    sizes = [len(ids) for _, ids, _, _ in tokens]
    ids = torch.cat([ids for _, ids, _, _ in tokens]).split(sizes) if tokens else ()
    probs = torch.cat([probs for _, _, probs, _ in tokens]).split(sizes) if tokens else ()
    record = {
        "prompt": prompt,
        "tokens": torch.tensor([token for token, *_ in tokens], dtype=torch.long),
        "top_p_tokens": list(ids),
        "top_p_probs": list(probs),
    }
    columns = zip(*(values for *_, values in tokens), strict=True) if tokens else [()] * len(QUANTITIES)
    return record | {name: list(column) for name, column in zip(QUANTITIES, columns, strict=True)}


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
    queue = list(batches)
    embedding = model.get_input_embeddings().weight.detach()
    inverse_norm = cosine.inverse_norms(embedding)
    ends = end_tokens(model, tokenizer)
    number = torch.float32 if model.device.type == "mps" else torch.float64
    with tqdm(
        total=max_tokens * sum(map(len, queue)), unit="tok", disable=not (progress and queue), mininterval=0.5
    ) as bar:
        while queue:
            indices = queue.pop(0)
            numbers = [uniforms(seed, index, max_tokens) for index in indices]
            measurer = Measurer(
                embedding, inverse_norm, top_p, torch.tensor(numbers, dtype=number, device=model.device), ends
            )
            begin, before, records = time.perf_counter(), (bar.n, bar.total), None
            try:
                decode(model, [inputs.ids[i] for i in indices], max_tokens, _counted(measurer, bar, max_tokens))
                records = measurer.records([prompts[i] for i in indices])
            except NotFinite as error:
                names = ", ".join(f"{indices[row]} ({prompts[indices[row]][:40]!r})" for row in error.rows)
                raise ValueError(f"the model's logits are not finite (NaN or inf) for prompt {names}") from None
            except torch.OutOfMemoryError:
                bar.n, bar.total = before
            if records is None:  # out of the except block, whose traceback holds on to the tensors
                del measurer
                queue[:0] = _halves(indices)
                if model.device.type == "cuda":
                    torch.cuda.empty_cache()
                continue
            yield Batch(indices, records, time.perf_counter() - begin)


def _halves(indices: list[int]) -> list[list[int]]:
    if len(indices) == 1:
        raise MemoryError(f"prompt {indices[0]} alone does not fit the device's memory")
    half = (len(indices) + 1) // 2
    return [indices[:half], indices[half:]]


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
    """Measures into a `results.Cell`, in its ``with`` block, what it lacks, and finishes it.

    Parameters are those of `measure`. The batches are planned once and kept with the cell, so
    that a run that was cut off goes on with the same ones. Another ``batch_size`` plans anew what
    is left.
    """
    if cell.finished:  # another process has done it while this one waited
        return
    batch_size, max_tokens = parameters.get("batch_size", "auto"), parameters.get("max_tokens", 100)
    inputs = encode(tokenizer, prompts, parameters.get("prompt_format", "raw"), context_length(model), max_tokens)
    done = {index for batch in cell.load_batches() for index in batch["indices"]}
    batches = cell.load_plan(batch_size)
    if batches is None:
        left = [index for index in range(len(prompts)) if index not in done]
        size = choose_batch_size(batch_size, model, inputs, max_tokens)
        batches = plan(inputs, size, left, equal_lengths=not takes_positions(model))
        cell.save_plan(batch_size, batches)
    todo = [[index for index in batch if index not in done] for batch in batches]
    for batch in measure(model, tokenizer, prompts, inputs=inputs, batches=[b for b in todo if b], **parameters):
        cell.save_batch(batch.indices, batch.records, batch.seconds)
    cell.finish(len(prompts), run_info(model, inputs, cell.load_batches(), batch_size))


def run_info(model: PreTrainedModel, inputs: Inputs, batches: list[dict], batch_size: int | str) -> dict:
    """What `run.json` says of a finished run beside its settings; ``batches`` as `results.Cell` keeps them.

    Seconds are those of the finished batches; the peak memory is that of the process that finished.
    """
    tokens = sum(len(record["tokens"]) for batch in batches for record in batch["records"])
    seconds = sum(batch["seconds"] for batch in batches)
    cuda = model.device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(model.device) if cuda else f"{model.device.type} ({platform.machine()})",
        "threads": torch.get_num_threads(),
        "batch_size": batch_size,
        "batches": sorted((len(batch["indices"]) for batch in batches), reverse=True),
        "prompts_truncated": len(inputs.truncated),
        "tokens": tokens,
        "seconds": round(seconds, 3),
        "tokens_per_second": round(tokens / seconds, 1) if seconds else None,
        "peak_memory_mib": round((torch.cuda.max_memory_allocated(model.device) if cuda else _peak_memory()) / 2**20),
        "versions": {"python": platform.python_version()}
        | {"nucleoscope": __version__}
        | {name: version(name) for name in ("torch", "transformers", "tokenizers")},
    }


def _peak_memory() -> int:
    """Bytes this process has held at most."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
