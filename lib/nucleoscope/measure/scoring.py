"""Measures every token of existing texts: texts in, one record per text out; nothing is generated.

Contract: this module does not depend on data sets or the Hub, and nothing is sampled. Each text directly
follows its prompt, and the model processes both once; the choice it had at each token of the text is
measured as in `generation`. Records have the same form: tokens are those of the text, surprisals are
those tokens' surprisals under the full distribution. A token may be outside its nucleus.

Rows are padded on the right, which a causal model cannot see: no position mask is needed, and any
causal language model of transformers will do, with or without a cache.
"""

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import ModelOutput

from nucleoscope.measure import batching, checking, cosine, decoding, encoding
from nucleoscope.measure.distribution import describe_distribution
from nucleoscope.measure.encoding import Encoder, Inputs, TokenRows
from nucleoscope.measure.kept_states import KeptStates
from nucleoscope.measure.model_facts import (
    find_context_length,
    find_embedding_matrix,
    find_end_tokens,
    find_length_limit,
    find_position_offset,
)
from nucleoscope.measure.nucleus import NotFinite, scale_logits
from nucleoscope.measure.prefix import SharedPrefix
from nucleoscope.measure.recording import Token, build_record, measure_step, unpack
from nucleoscope.measure.step import Step, list_ends
from nucleoscope.measure.variants import Variants
from nucleoscope.quantities import Quantity, list_recorded
from nucleoscope.settings import Settings

# Logits in memory at once; the quantities need about eight such arrays.
PIECE_CPU, PIECE_GPU = 2**23, 2**27
BATCHED, ALONE, PREFIXES = "batched", "alone", "prefixes"  # ways to read texts
PROBE = 8  # number of tokens for comparing the model's own logits with those of its output layer


@dataclass
class Texts(Inputs):
    """Tokenised prompts, each followed by its text: ``ids`` contains both.

    ``starts`` are the positions in ``ids`` of the first tokens to measure, ``texts_truncated`` the
    texts that were cut off at max_tokens.
    """

    starts: list[int] = field(default_factory=list)
    texts_truncated: list[int] = field(default_factory=list)


def encode(
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],
    texts: list[str],
    prompt_format: str = Settings.prompt_format,
    context: int | None = None,
    max_tokens: int = Settings.max_tokens,
    template_date: str = Settings.template_date,
) -> Texts:
    """Token ids of each prompt and of at most ``max_tokens`` tokens of its text; see `encode_text`.

    Prompts become the ids that generation would start from (a start token if they are empty) and are cut
    from the left in the same way (`encoding.encode`). Raises the same ValueErrors as `encoding.encode`,
    and ValueError for a text without tokens.
    """
    openings = encoding.encode(tokenizer, prompts, prompt_format, context, max_tokens, template_date)
    encoder = Encoder(tokenizer, prompt_format, template_date)
    rows = TokenRows()
    inputs = Texts(rows, openings.truncated)
    for index, (prompt, text, before) in enumerate(zip(prompts, texts, openings.ids, strict=True)):
        ids = encode_text(encoder, prompt, text)
        if not ids:
            raise ValueError(f"the text of prompt {index} ({prompt[:40]!r}) is empty: there is nothing to measure")
        if len(ids) > max_tokens:
            inputs.texts_truncated.append(index)
        rows.append(before + ids[:max_tokens])
        inputs.starts.append(len(before))
    return inputs


def encode_text(encoder: Encoder, prompt: str, text: str) -> list[int]:
    """Ids of a text that follows its prompt; the prompt keeps the ids that it has on its own.

    Both are tokenised together, with nothing between them. If that would change the prompt's ids, because
    a token spans the boundary, the text is tokenised on its own: after a line break, because some
    tokenizers put a space before the first word.
    """
    before, both = (encoder.tokenise(prompt, more) for more in ("", text))
    if both[: len(before)] == before:
        return both[len(before) :]
    tokenizer = encoder.tokenizer
    before, both = (tokenizer("\n" + more, add_special_tokens=False, verbose=False)["input_ids"] for more in ("", text))
    if both[: len(before)] == before:
        return both[len(before) :]
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def plan_batches(
    model: PreTrainedModel, inputs: Texts, settings: Settings, indices: list[int] | None = None
) -> list[list[int]]:
    """Batches of similar length, longest first; "auto" fills each with as many tokens as are efficient at once."""
    if settings.batch_size != "auto":
        return batching.split_batches(inputs, int(settings.batch_size), indices)
    order = batching.sort_by_length(inputs, indices)
    return [order[rows] for rows in batching.form_passes((len(inputs.ids[i]) for i in order), model.device)]


class TextForward:
    """The logits of a model at the tokens of given texts, in pieces, never for a whole batch at once.

    The model's layers process a batch once, and its output layer then processes their hidden states piece
    by piece. Some models scale or cap its output, and some see padding: if a probe shows that the results differ from
    the model's own logits, the whole model processes each text separately. If even these are not what the model
    gives for the beginning of the text, it reads the text anew for each token.

    ``prefix`` is what all texts begin with, before the tokens to measure, if that was read before. It is used only
    with batches, and if the probe gives the same with it.
    """

    def __init__(self, model: PreTrainedModel, prefix: SharedPrefix | None = None):
        self.model, self.device, self.prefix = model, model.device, prefix
        self.base, self.head = getattr(model, "base_model", model), model.get_output_embeddings()
        self.accepted = inspect.signature(model.forward).parameters
        self.reading: str | None = None
        size = PIECE_CPU if self.device.type == "cpu" else PIECE_GPU
        self.rows = max(1, size // model.config.get_text_config().vocab_size)
        self.limit = find_length_limit(model)

    def compute_logits(self, ids: list[list[int]], starts: list[int]) -> Iterator[torch.Tensor]:
        """Pieces (n, V) of the logits before each token from ``starts`` on, one text after another.

        Call it in torch's inference mode.
        """
        for logits, _ in self.compute_states(ids, starts):
            yield logits

    def compute_states(
        self, ids: list[list[int]], starts: list[int]
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        """The same logits, each piece with the base model's hidden states (n, d) that it follows from, or None.

        Only if texts are read in batches is it known that the output layer alone turns these into the logits.
        """
        texts = [(row[:-1], len(row) - start) for row, start in zip(ids, starts, strict=True) if len(row) > start]
        if texts:
            self.choose_reading(max((row for row, _ in texts), key=len))
        if self.reading != PREFIXES and self.limit is not None and any(len(row) > self.limit for row, _ in texts):
            yield from self._compute_across(texts)
        elif texts and self.reading == BATCHED:
            hidden = self._compute_hidden([row for row, _ in texts], self.prefix)
            ends = [len(row) - (len(self.prefix.ids) if self.prefix else 0) for row, _ in texts]
            parts = [hidden[place, end - n : end] for place, (end, (_, n)) in enumerate(zip(ends, texts, strict=True))]
            for piece in torch.cat(parts).split(self.rows):
                yield self.head(piece).to(self.device), piece  # the output layer may be on another GPU
        elif self.reading == PREFIXES:
            for row, n in texts:
                for end in range(len(row) - n + 1, len(row) + 1):
                    yield from self._compute_alone(row[:end], 1)
        else:
            for row, n in texts:
                yield from self._compute_alone(row, n)

    def choose_reading(self, ids: list[int]) -> str:
        """How texts are read; found out by the first that is given. Call it in torch's inference mode."""
        if self.reading is None:
            self.reading = self._choose_reading(ids[:PROBE])
        return self.reading

    def _compute_across(self, texts: list[tuple[list[int], int]]) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        """Each text alone; what is within the limit is read without what is beyond it, as if it were not there yet."""
        for row, n in texts:
            within = max(0, self.limit - (len(row) - n))
            if 0 < within < n:
                yield from self._compute_alone(row[: self.limit], within)
            yield from self._compute_alone(row, n if within >= n else n - within)

    def _compute_alone(self, row: list[int], n: int) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        """The last n logits of one text, and the hidden states that they follow from."""
        keep = {"logits_to_keep": n} if "logits_to_keep" in self.accepted else {}
        found: list[Any] = []
        hook = self.base.register_forward_hook(lambda _, __, output: found.append(output))
        try:
            output = self.model(input_ids=torch.tensor([row], device=self.device), **self._build_options(), **keep)
        finally:
            hook.remove()
        logits = output.logits[0, -n:].to(self.device).split(self.rows)
        hidden = self._pick_hidden(found, len(row))
        yield from zip(logits, [None] * len(logits) if hidden is None else hidden[-n:].split(self.rows), strict=True)

    def _pick_hidden(self, outputs: list[Any], length: int) -> torch.Tensor | None:
        """The hidden states (T, d) of one text, if they are what the base model returned when it was called once."""
        if self.base is self.model or len(outputs) != 1:
            return None
        hidden = outputs[0][0] if isinstance(outputs[0], (tuple, ModelOutput)) else outputs[0]
        known = isinstance(hidden, torch.Tensor) and hidden.dim() == 3 and hidden.shape[:2] == (1, length)
        return hidden[0] if known else None

    def _read_alone(self, row: list[int], n: int) -> torch.Tensor:
        return torch.cat([logits for logits, _ in self._compute_alone(row, n)])

    def _build_options(self) -> dict:
        return {"use_cache": False} if "use_cache" in self.accepted else {}

    def _compute_hidden(self, ids: list[list[int]], prefix: SharedPrefix | None = None) -> torch.Tensor:
        """The last hidden states (B, T, d) of rows padded on the right; with a ``prefix``, of what follows it."""
        shared = len(prefix.ids) if prefix else 0
        longest = max(map(len, ids))
        padded = torch.tensor([row[shared:] + [0] * (longest - len(row)) for row in ids], device=self.device)
        lengths = torch.tensor([len(row) for row in ids], device=self.device)
        mask = (torch.arange(longest, device=self.device) < lengths[:, None]).long()
        options = self._build_options()
        if prefix:
            options = {"past_key_values": prefix.build_cache(len(ids)), "use_cache": True}
            if "position_ids" in inspect.signature(self.base.forward).parameters:
                positions = torch.arange(shared, longest, device=self.device) + find_position_offset(self.model)
                options["position_ids"] = positions.expand(len(ids), -1)
        return self.base(input_ids=padded, attention_mask=mask, **options)[0]

    def _choose_reading(self, ids: list[int]) -> str:
        """How texts are read, by what the model gives for a short one."""
        own, first = self._read_alone(ids, len(ids)), self._read_alone(ids[:1], 1)
        if not self._is_same(own[:1], first):
            return PREFIXES
        if self.head is None or self.base is self.model:
            return ALONE
        try:
            found = self.head(self._compute_hidden([ids])[0]).to(own.device)
            padded = self.head(self._compute_hidden([ids, ids[:1]])[1, :1]).to(own.device)
        except torch.OutOfMemoryError:
            raise  # the batch is measured in halves
        except Exception:  # the output layer expects something else: what it raises depends on the model
            return ALONE
        exact = found.shape == own.shape and torch.equal(found.float(), own.float())
        if not (exact and self._is_same(padded, first)):
            return ALONE
        if self.prefix and not self._is_prefix_right(ids, own):
            self.prefix = None
        return BATCHED

    def _is_prefix_right(self, ids: list[int], own: torch.Tensor) -> bool:
        """Whether the first half of a text, if it is read before, gives the text's ``own`` logits (T, V)."""
        half = len(ids) // 2
        try:
            prefix = decoding.read_prefix(self.model, ids[:half])
            found = self._compute_hidden([ids, ids[: half + 1]], prefix)
            logits = [self.head(rows).to(own.device) for rows in (found[0], found[1, :1])]
        except torch.OutOfMemoryError:
            raise
        except Exception:  # what is raised depends on the model
            return False
        expected = (own[half:], own[half : half + 1])
        return all(self._is_same(one, other) for one, other in zip(logits, expected, strict=True))

    def _is_same(self, found: torch.Tensor, expected: torch.Tensor) -> bool:
        """Whether logits differ by rounding alone; yes if they are NaN, which is reported as such."""
        if bool(expected.isnan().any()):
            return True
        return checking.measure_difference(found, expected) <= checking.get_tolerance(self.model)


@torch.inference_mode()
def score_batch(
    forward: TextForward,
    directions: cosine.Directions,
    settings: Settings,
    ids: list[list[int]],
    starts: list[int],
    quantities: Sequence[Quantity],
    bar: tqdm,
    variants: Variants | None = None,
    ends: torch.Tensor | None = None,
    states: list[torch.Tensor | None] | None = None,
) -> tuple[list[list[Token]], list[torch.Tensor]]:
    """The measured tokens of each text of a batch, from its position in ``starts`` on. NotFinite lists the rows.

    ``bar`` advances by the number of tokens measured; of ``settings`` top_p and temperature are used. Also what
    ``variants`` measures of the tokens of each text, (T, N, 3 + 3 G), or an empty list if it is None. ``ends`` are the
    ids that would end a generated text, as `Step` takes them. The hidden states that pieces of the logits follow from
    are added to the list ``states``, if there is one.
    """
    owners = [place for place, row in enumerate(ids) for _ in row[starts[place] :]]
    tokens = [token for row, start in zip(ids, starts, strict=True) for token in row[start:]]
    taken = torch.tensor(tokens, dtype=torch.long, device=forward.device)
    found: list[list[Token]] = [[] for _ in ids]
    more = list[torch.Tensor]()
    done = 0
    for logits, hidden in forward.compute_states(ids, starts):
        if states is not None:
            states.append(hidden)
        part = slice(done, done + len(logits))
        logits = scale_logits(logits, settings)
        try:
            distribution = describe_distribution(logits, settings.top_p, variants.sets if variants else ())
        except NotFinite as error:
            raise NotFinite(sorted({owners[part][row] for row in error.rows})) from None
        step = Step(logits, distribution, taken[part], directions, ends=ends)
        measured = unpack(taken[part], step.candidates, measure_step(step, quantities), quantities)
        for owner, token in zip(owners[part], measured, strict=True):
            found[owner].append(token)
        if variants is not None:
            more.append(variants.measure_windows(step.windows).cpu())
        bar.update(len(logits))
        done = part.stop
    if variants is None:
        return found, []
    return found, list(torch.cat([*more, variants.create_empty()]).split([len(each) for each in found]))


def measure(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],
    texts: list[str],
    *,
    inputs: Texts | None = None,
    batches: list[list[int]] | None = None,
    quantities: Sequence[Quantity] | None = None,
    progress: bool = True,
    measured_variants: Variants | None = None,
    kept: KeptStates | None = None,
    **settings: Any,
) -> Iterator[batching.Batch]:
    """Measures at most max_tokens tokens of each text after its prompt; yields records batch by batch.

    ``settings`` are those of `Settings`, by name: max_tokens, top_p, temperature, prompt_format, batch_size.
    ``inputs`` (from `encode`), ``batches`` (from `plan_batches`) and ``quantities`` (all that are registered)
    are computed if they are not given; ``measured_variants`` are measured only if they are. ``kept`` gets the last
    hidden states of some texts. If a GPU runs out of memory, the batch is halved. Raises ValueError for invalid
    settings and, naming the prompts, for logits with NaN; by then, the batches before have already been yielded.
    """
    chosen = Settings(**settings).check()
    if inputs is None:
        inputs = encode(tokenizer, prompts, texts, **encoding.list_options(chosen, find_context_length(model)))
    encoding.check_ids(inputs, len(find_embedding_matrix(model)))
    if batches is None:
        batches = plan_batches(model, inputs, chosen)
    checking.check_causality(model, chosen.skip_check)
    shared = checking.choose_prefix(model, inputs.ids, chosen.skip_check, inputs.starts)
    prefix = decoding.read_prefix(model, shared) if shared else None
    forward, quantities = TextForward(model, prefix), list_recorded() if quantities is None else quantities
    directions = cosine.find_directions(find_embedding_matrix(model))
    ends = list_ends(find_end_tokens(model, tokenizer), forward.device)

    def measure_batch(indices: list[int], bar: tqdm) -> batching.Batch:
        ids, starts = ([column[i] for i in indices] for column in (inputs.ids, inputs.starts))
        states = None if kept is None or kept.wanted.isdisjoint(indices) else list[torch.Tensor | None]()
        options = {"variants": measured_variants, "ends": ends, "states": states}
        found, more = score_batch(forward, directions, chosen, ids, starts, quantities, bar, **options)
        if states:
            kept.add_texts(indices, [[token.id for token in each] for each in found], states)
        records = [build_record(prompts[i], tokens, quantities) for i, tokens in zip(indices, found, strict=True)]
        return batching.Batch(indices, records, path=forward.reading or "", variants=more)

    total = sum(len(inputs.ids[i]) - inputs.starts[i] for batch in batches for i in batch)
    yield from batching.measure_batches(batches, prompts, measure_batch, model, total, progress)
