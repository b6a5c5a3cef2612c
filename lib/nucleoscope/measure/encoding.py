"""Turns prompts into token ids: unchanged or in a model's chat template, cut to fit the model's context.

Contract: this module uses a tokenizer and never a model. `encode` determines what a model sees
before the first generated or scored token.
"""

from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase


@dataclass
class Inputs:
    """Tokenised prompts: ids per prompt, and which of them were cut from the left to fit the context."""

    ids: list[list[int]]
    truncated: list[int] = field(default_factory=list)


def encode(
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],
    prompt_format: str = "raw",
    context: int | None = None,
    max_tokens: int = 100,
) -> Inputs:
    """Token ids of each prompt: "raw" passes it to the tokenizer unchanged, "chat" in the model's chat template.

    A prompt without any token starts from the beginning-of-text token, or from the end-of-text token
    if there is none. Prompts that do not leave room for ``max_tokens`` in ``context`` positions are
    cut from the left. Raises ValueError for a missing template, or if max_tokens alone fills the
    context.
    """
    room = _compute_prompt_room(context, max_tokens)
    inputs = Inputs([])
    for index, prompt in enumerate(prompts):
        ids = _encode_opening(tokenizer, prompt, prompt_format)
        if room is not None and len(ids) > room:
            inputs.truncated.append(index)
            ids = ids[-room:]
        inputs.ids.append(ids)
    return inputs


def _encode_opening(tokenizer: PreTrainedTokenizerBase, prompt: str, prompt_format: str = "raw") -> list[int]:
    """Ids of one prompt, never empty: an empty prompt becomes a start token. ValueError if there is none."""
    return tokenise(tokenizer, prompt, prompt_format) or [_find_start_token(tokenizer)]


def tokenise(tokenizer: PreTrainedTokenizerBase, prompt: str, prompt_format: str = "raw", text: str = "") -> list[int]:
    """Ids of one prompt with ``text`` directly after it; ValueError for "chat" without a template."""
    if prompt_format != "chat":
        return tokenizer(prompt + text, verbose=False)["input_ids"]
    if not tokenizer.chat_template:
        raise ValueError("this model's tokenizer has no chat template: use prompt_format=raw")
    messages = [{"role": "user", "content": prompt}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return tokenizer(prompt + text, add_special_tokens=False, verbose=False)["input_ids"]


def _compute_prompt_room(context: int | None, max_tokens: int) -> int | None:
    """Tokens that a prompt may have in ``context`` positions; None if there is no limit."""
    if context is None:
        return None
    if max_tokens > context:
        raise ValueError(
            f"max_tokens is {max_tokens}, but the model's context has {context} positions: reduce max_tokens"
        )
    return context - max_tokens + 1  # the last token is never an input


def _find_start_token(tokenizer: PreTrainedTokenizerBase) -> int:
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return token
    raise ValueError("a prompt is empty and the tokenizer has no beginning- or end-of-text token: remove the prompt")
