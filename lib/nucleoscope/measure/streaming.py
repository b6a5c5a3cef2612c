"""Measures one prompt, token by token: `stream` while the text is generated, `read` for an existing text.

Contract: the tokens and quantities are those that `generation.measure` gives for the same prompt,
index, seed and settings, and `scoring.measure` for the same text; here, a generated text can be
inspected before it is complete.
"""

from collections.abc import Iterator

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nucleoscope.measure import cosine, generation, scoring
from nucleoscope.measure.decoding import Decoder
from nucleoscope.measure.model_facts import context_length, embedding_matrix, end_tokens
from nucleoscope.measure.nucleus import NotFinite
from nucleoscope.measure.recording import Token
from nucleoscope.quantities import find_columns, list_recorded
from nucleoscope.settings import Settings


@torch.inference_mode()
def stream(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    *,
    max_tokens: int = Settings.max_tokens,
    top_p: float = Settings.top_p,
    temperature: float = Settings.temperature,
    seed: int = Settings.seed,
    prompt_format: str = Settings.prompt_format,
    index: int = 0,
) -> Iterator[Token]:
    """Continues one prompt by at most ``max_tokens`` tokens and yields each as soon as it is drawn.

    ``index`` is the prompt's position in its data set; together with the seed it determines which tokens
    are drawn. Raises ValueError for invalid parameters and for logits with NaN, like `generation.measure`.
    """
    generation.check(max_tokens=max_tokens, top_p=top_p, temperature=temperature, prompt_format=prompt_format)
    inputs = generation.encode(tokenizer, [prompt], prompt_format, context_length(model), max_tokens)
    embedding, ends = embedding_matrix(model), end_tokens(model, tokenizer)
    numbers = generation.draw_uniforms(seed, [index], max_tokens, model.device)
    inverse_norm = cosine.inverse_norms(embedding)
    sampler = generation.Sampler(embedding, inverse_norm, top_p, numbers, ends, list_recorded(), temperature)
    decoder = Decoder(model, inputs.ids, max_tokens)
    logits = decoder.prefill()
    while logits is not None:
        try:
            drawn, _ = sampler.draw(logits, decoder.rows)
        except NotFinite:
            step = len(sampler.steps)
            raise ValueError(f"the model's logits contain NaN or inf at token {step}: try dtype=float32") from None
        (token,) = sampler.latest()
        if token.id in ends:
            return
        yield token
        logits = decoder.advance(drawn)


def read(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    text: str,
    *,
    max_tokens: int = Settings.max_tokens,
    top_p: float = Settings.top_p,
    temperature: float = Settings.temperature,
    prompt_format: str = Settings.prompt_format,
) -> tuple[list[Token], list[str]]:
    """The first ``max_tokens`` tokens of a text that follows its prompt, and remarks on what was left out.

    Raises ValueError like `scoring.measure`, also for an empty text.
    """
    inputs = scoring.encode(tokenizer, [prompt], [text], prompt_format, context_length(model), max_tokens)
    settings = {"max_tokens": max_tokens, "top_p": top_p, "temperature": temperature, "prompt_format": prompt_format}
    (batch,) = scoring.measure(model, tokenizer, [prompt], [text], inputs=inputs, **settings, progress=False)
    (record,) = batch.records
    columns = find_columns()
    rows = zip(*(record[plural] for plural in columns), strict=True)
    found = [
        Token(token, ids, probs, dict(zip(columns.values(), values, strict=True)))
        for token, ids, probs, values in zip(
            record["tokens"].tolist(), record["top_p_tokens"], record["top_p_probs"], rows, strict=True
        )
    ]
    remarks = {
        "the beginning of the prompt was cut off": inputs.truncated,
        "the rest of the text was not measured": inputs.texts_truncated,
    }
    return found, [remark for remark, places in remarks.items() if places]
