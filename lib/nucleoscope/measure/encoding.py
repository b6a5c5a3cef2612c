"""Prompts in, token ids out: as they are or in a model's own template, cut to what its context holds.

Contract: this module asks a tokenizer and never a model. `encode` decides what a model reads
before its first own token, for generating and for scoring alike.
"""

from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase


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
    room = prompt_room(context, max_tokens)
    inputs = Inputs([])
    for index, prompt in enumerate(prompts):
        ids = opening(tokenizer, prompt, prompt_format)
        if room is not None and len(ids) > room:
            inputs.truncated.append(index)
            ids = ids[-room:]
        inputs.ids.append(ids)
    return inputs


def opening(tokenizer: PreTrainedTokenizerBase, prompt: str, prompt_format: str = "raw") -> list[int]:
    """Ids of one prompt, never none: an empty one is a start token. ValueError where there is none."""
    return tokenise(tokenizer, prompt, prompt_format) or [_start_token(tokenizer)]


def tokenise(tokenizer: PreTrainedTokenizerBase, prompt: str, prompt_format: str = "raw", text: str = "") -> list[int]:
    """Ids of one prompt with ``text`` right behind it; ValueError for "chat" without a template."""
    if prompt_format != "chat":
        return tokenizer(prompt + text, verbose=False)["input_ids"]
    if not tokenizer.chat_template:
        raise ValueError("this model's tokenizer has no chat template: use prompt_format=raw")
    messages = [{"role": "user", "content": prompt}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return tokenizer(prompt + text, add_special_tokens=False, verbose=False)["input_ids"]


def prompt_room(context: int | None, max_tokens: int) -> int | None:
    """Tokens that a prompt may have in ``context`` positions; None where nothing limits it."""
    if context is None:
        return None
    if max_tokens > context:
        raise ValueError(f"max_tokens is {max_tokens}, but the model's context has only {context} positions")
    return context - max_tokens + 1  # the last token is never read


def _start_token(tokenizer: PreTrainedTokenizerBase) -> int:
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return token
    raise ValueError("an empty prompt has no token, and the tokenizer no beginning- or end-of-text token to start from")
