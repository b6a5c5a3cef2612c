"""Measures one prompt, token by token: `stream` while it is generated, `read` an existing text, `replay` drawn tokens.

A text that was begun is continued by `stream` too, for example with another candidate in the place of a token.

Contract: the tokens and quantities are those that `generation.measure` gives for the same prompt,
index, seed and settings, and `scoring.measure` for the same text; here, a generated text can be
inspected before it is complete.
"""

import contextlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nucleoscope.measure import batching, checking, cosine, generation, sampling, scoring
from nucleoscope.measure.encoding import Inputs, check_ids, list_options
from nucleoscope.measure.model_facts import find_context_length, find_embedding_matrix, find_end_tokens
from nucleoscope.measure.nucleus import NotFinite
from nucleoscope.measure.recording import Token
from nucleoscope.quantities import find_columns, list_recorded
from nucleoscope.settings import Settings


def stream(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    *,
    index: int = 0,
    begun: Sequence[int] = (),
    **settings: Any,
) -> Iterator[Token]:
    """Continues one prompt until the text has max_tokens tokens, and yields each as soon as it is drawn.

    ``settings`` are those of `generation.measure`. ``index`` is the prompt's position in its data set;
    together with the seed it determines which tokens are drawn. The tokens ``begun`` are the first of the text: they
    are read, not drawn and not yielded, and each token after them is drawn with the number that belongs to its step.
    If the last is an end-of-text token, nothing follows. Raises ValueError for invalid settings and for logits with
    NaN, like `generation.measure`.
    """
    chosen = Settings(**settings).check()
    max_tokens = chosen.max_tokens - len(begun)
    inputs = generation.encode(tokenizer, [prompt], **list_options(chosen, find_context_length(model)))
    embedding, ends = find_embedding_matrix(model), find_end_tokens(model, tokenizer)
    ids = [*inputs.ids[0], *begun]
    check_ids(Inputs([ids]), len(embedding))
    if max_tokens < 1 or (begun and begun[-1] in ends):
        return
    numbers = sampling.draw_uniforms(chosen.seed, [index], chosen.max_tokens, model.device)[:, len(begun) :]
    directions = cosine.find_directions(embedding)
    sampler = sampling.Sampler(directions, chosen, numbers, ends, list_recorded())
    way = checking.find_way(model, chosen.skip_check)
    memory = checking.create_memory(model, chosen.skip_check)
    steps = generation.generate(model, [ids], max_tokens, sampler, way, memory=memory)
    try:
        for _ in steps:
            (token,) = sampler.read_latest()
            if token.id in ends:
                return
            yield token
    except NotFinite:
        raise batching.explain_not_finite(f"at token {len(begun) + len(sampler.steps)}", model) from None


def read(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    text: str,
    **settings: Any,
) -> tuple[list[Token], list[str]]:
    """The first max_tokens tokens of a text that follows its prompt, and remarks on what was left out.

    ``settings`` are those of `scoring.measure`. Raises ValueError like `scoring.measure`, also for an empty text.
    """
    chosen = Settings(**settings).check()
    with _name_no_number():
        inputs = scoring.encode(tokenizer, [prompt], [text], **list_options(chosen, find_context_length(model)))
    found = _measure_one(model, tokenizer, prompt, inputs, **settings)
    remarks = {
        "the beginning of the prompt was cut off": inputs.truncated,
        "the rest of the text was not measured": inputs.texts_truncated,
    }
    return found, [remark for remark, places in remarks.items() if places]


def replay(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, tokens: list[int], **settings: Any
) -> list[Token]:
    """The given ``tokens`` as the continuation of a prompt: what a run drew, measured again and not drawn again.

    In float32 drawing gives the same tokens. In half precision one prompt alone rounds otherwise than in its batch,
    so drawing may give another sample, as likely as the first. ``settings`` are those of `stream`.
    """
    chosen = Settings(**settings).check()
    opening = generation.encode(tokenizer, [prompt], **list_options(chosen, find_context_length(model)))
    inputs = scoring.Texts([opening.ids[0] + tokens], starts=[len(opening.ids[0])])
    return _measure_one(model, tokenizer, prompt, inputs, **settings) if tokens else []


@contextlib.contextmanager
def _name_no_number() -> Iterator[None]:
    """Leaves the number of the prompt out of the errors of a batch, because here there is only one."""
    try:
        yield
    except (ValueError, MemoryError) as error:
        named = re.compile(r"(the text) of prompt 0 \(.*?\)(?= is)|prompt 0(?: \(.*\))?", re.DOTALL)
        said = named.sub(lambda found: found[1] or "the prompt", str(error))
        if said == str(error) or type(error) not in (ValueError, MemoryError):
            raise
        raise type(error)(said) from None


def _measure_one(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, inputs: scoring.Texts, **settings: Any
) -> list[Token]:
    """The measured tokens of one text that is encoded already."""
    with _name_no_number():
        (batch,) = scoring.measure(model, tokenizer, [prompt], [""], inputs=inputs, progress=False, **settings)
    (record,) = batch.records
    columns = find_columns()
    rows = zip(*(record[plural] for plural in columns), strict=True)
    parts = (record["tokens"].tolist(), record["top_p_tokens"], record["top_p_probs"], rows)
    return [
        Token(token, ids, probs, dict(zip(columns.values(), values, strict=True)))
        for token, ids, probs, values in zip(*parts, strict=True)
    ]
