"""Turns prompts into token ids: unchanged or in a model's chat template, cut to fit the model's context.

Contract: this module uses a tokenizer and never a model. `encode` determines what a model sees
before the first generated or scored token; the same settings give the same ids on every day.
"""

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import partial
from typing import Any, TypeVar

from transformers import PreTrainedTokenizerBase
from transformers.utils import chat_template_utils

from nucleoscope.measure import limits
from nucleoscope.settings import Settings
from nucleoscope.wording import count

# What a chat template may take for one prompt: seconds and bytes. Real ones take milliseconds.
TEMPLATE_SECONDS, TEMPLATE_MEMORY = 10, 2**30
TEMPLATE_TEXT, TEMPLATE_COPIES = 10**6, 10  # characters that a template may add, and how often it may repeat a prompt
Result = TypeVar("Result")


class TokenRows(Sequence):
    """Rows of token ids, each of which is a list when it is used, in 4 bytes per id: in a list, one takes up to 40."""

    def __init__(self) -> None:
        self._rows: list[array] = []

    def append(self, ids: list[int]) -> None:
        self._rows.append(array("i", ids))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, place: Any) -> Any:
        found = self._rows[place]
        return [row.tolist() for row in found] if isinstance(place, slice) else found.tolist()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and [*self] == [*other]

    __hash__ = None


@dataclass
class Inputs:
    """Tokenised prompts: ids per prompt, and which of them were cut from the left to fit the context."""

    ids: Sequence[list[int]]
    truncated: list[int] = field(default_factory=list)


def encode(
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],
    prompt_format: str = Settings.prompt_format,
    context: int | None = None,
    max_tokens: int = Settings.max_tokens,
    template_date: str = Settings.template_date,
) -> Inputs:
    """Token ids of each prompt: "raw" passes it to the tokenizer unchanged, "chat" in the model's chat template.

    A prompt without any token starts from the beginning-of-text token, or from the end-of-text token
    if there is none. Prompts that do not leave room for ``max_tokens`` in ``context`` positions are
    cut from the left, after the tokens that the tokenizer or the template puts before them. Raises ValueError
    for a template that is missing or fails, or if the context is too small for any prompt.
    """
    encoder, room = Encoder(tokenizer, prompt_format, template_date), _compute_prompt_room(context, max_tokens)
    rows = TokenRows()
    inputs = Inputs(rows)
    for index, prompt in enumerate(prompts):
        ids = encoder.encode_opening(prompt)
        if room is not None and len(ids) > room:
            inputs.truncated.append(index)
            ids = encoder.cut(prompt, ids, room)
        rows.append(ids)
    return inputs


def check_ids(inputs: Inputs, rows: int) -> None:
    """ValueError if a prompt or text has a token for which a model's embedding of ``rows`` rows has none."""
    for index, ids in enumerate(inputs.ids):
        if ids and max(ids) >= rows:
            raise ValueError(
                f"prompt {index} has the token {max(ids)}, but the model's embedding has only {rows} rows: "
                "the tokenizer has more tokens than the model"
            )


def list_options(settings: Settings, context: int | None) -> dict[str, Any]:
    """The arguments of `encode`, and of `scoring.encode`, for a run's settings and its model's context."""
    names = ("prompt_format", "max_tokens", "template_date")
    return {name: getattr(settings, name) for name in names} | {"context": context}


class Encoder:
    """A tokenizer and the form in which it gets prompts.

    ``template_date`` is the day that a chat template takes for today: a run that continues tomorrow must not
    mix two prompts.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        prompt_format: str = Settings.prompt_format,
        template_date: str = Settings.template_date,
    ):
        self.tokenizer, self.chat = tokenizer, prompt_format == "chat"
        self.before, self.after = _count_added(tokenizer)
        if self.chat:
            if not tokenizer.chat_template:
                raise ValueError("this model's tokenizer has no chat template: use prompt_format=raw")
            self._fix_date(date.fromisoformat(template_date))

    def _fix_date(self, today: date) -> None:
        template = self._run_template(
            lambda: chat_template_utils._compile_jinja_template(self.tokenizer.get_chat_template())
        )
        # transformers gives templates the clock under this name, and passes on no function of ours
        template.globals["strftime_now"] = today.strftime

    def tokenise(self, prompt: str, text: str = "") -> list[int]:
        """Ids of one prompt with ``text`` directly after it, and nothing after that."""
        if self.chat:
            return self._split(self.render(prompt) + text)
        ids = self.tokenizer(prompt + text, verbose=False)["input_ids"]
        return ids[: len(ids) - self.after]  # some tokenizers append an end-of-text token

    def render(self, prompt: str) -> str:
        """The prompt in the chat template, as text. ValueError, in one line, if the template fails."""
        return self._run_template(partial(self._apply_template, prompt))

    def _apply_template(self, prompt: str) -> str:
        messages = [{"role": "user", "content": prompt}]
        text = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        if len(text) > TEMPLATE_TEXT + len(prompt) * TEMPLATE_COPIES:
            raise limits.Exceeded(f"it turns a prompt of {len(prompt):,} characters into {len(text):,}")
        return text

    def _run_template(self, function: Callable[[], Result]) -> Result:
        """What ``function`` makes of the template, within its limits; ValueError, in one line, if that fails."""
        try:
            return limits.call(function, TEMPLATE_SECONDS, TEMPLATE_MEMORY)
        except Exception as error:  # jinja2 and transformers raise many types
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            name = self.tokenizer.name_or_path
            whose = f"the chat template of '{name}'" if name else "the model's chat template"
            raise ValueError(f"{whose} cannot be applied ({reason}): use prompt_format=raw") from None

    def _split(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    def encode_opening(self, prompt: str) -> list[int]:
        """Ids of one prompt, never empty: an empty prompt becomes a start token. ValueError if there is none."""
        return self.tokenise(prompt) or [_find_start_token(self.tokenizer)]

    def cut(self, prompt: str, ids: list[int], room: int) -> list[int]:
        """At most ``room`` of the ``ids`` of a prompt: without its first tokens, but with those that frame it."""
        before, after = self._count_frame(prompt, ids) if self.chat else (self.before, 0)
        kept = room - before - after
        if kept < 1:
            raise ValueError(
                f"max_tokens leaves {count(room, 'position')} in the model's context, too few for a prompt and the "
                f"{count(before + after, 'token')} around it: reduce max_tokens"
            )
        end = len(ids) - after
        return ids[:before] + ids[end - kept :]

    def _count_frame(self, prompt: str, ids: list[int]) -> tuple[int, int]:
        """How many tokens the template has before and after the prompt."""
        text, content = self.render(prompt), prompt.strip()
        start = text.rfind(content)
        if start < 0 or not self.tokenizer.is_fast:  # the template rewrites prompts, or tokens have no places
            return (1 if ids[0] == self.tokenizer.bos_token_id else 0), 0
        options = {"add_special_tokens": False, "return_offsets_mapping": True, "verbose": False}
        places = self.tokenizer(text, **options)["offset_mapping"]
        before = sum(end <= start for _, end in places)
        after = sum(begin >= start + len(content) for begin, _ in places)
        return before, after


def _count_added(tokenizer: PreTrainedTokenizerBase) -> tuple[int, int]:
    """How many special tokens a tokenizer puts before and after each text."""
    plain, whole = (tokenizer("a", add_special_tokens=add, verbose=False)["input_ids"] for add in (False, True))
    for before in range(len(whole) - len(plain) + 1):
        if whole[before : before + len(plain)] == plain:
            return before, len(whole) - before - len(plain)
    return 0, 0


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
