"""One type tried: a small random model is measured as a user would, and compared with the reference.

Contract: the name of a type in, a row of the table out, whatever happens: a type runs in a process of its own,
which may die or hang.
"""

import multiprocessing
import random
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from model_families import configurations
from model_families.reference import Reference
from nucleoscope.measure import checking, generation, scoring

BATCH_SIZES = ("auto", 1, 3, 5)
LENGTHS = (11, 3, 6, 1, 3, 19, 12, 2)  # tokens of the prompts, some beyond a sliding window; one batch mixes them
SHARED = 9  # tokens that all prompts begin with in a second set, which is measured with the first of `BATCH_SIZES`
TEXT_LENGTHS = (5, 9, 1, 4, 9, 2, 7, 14)  # tokens of the texts that are scored
MAX_TOKENS = 6
FIRST_TOKEN = 10  # lower ids may have a role
# Rounding moves values by about 1e-5. One padding token that is read, or a position that is off by one, moves some
# by 1e-2 or more.
BOUND = 1e-3
TIME_LIMIT = 240  # seconds for one type
RIGHT, WRONG, REFUSED, CRASHED, UNBUILT = "right", "wrong", "refused", "crashed", "not built"


@dataclass(frozen=True)
class Outcome:
    """What came of measuring in one mode: the verdict, its reason in one line, and the largest error."""

    verdict: str
    reason: str = ""
    error: float | None = None


@dataclass(frozen=True)
class Row:
    """One type: its class, how its prompts were batched, and the outcome in each mode."""

    kind: str
    released: bool
    class_name: str
    way: str
    generate: Outcome
    score: Outcome


def create_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens are words: "t17" is the token 17."""
    core = Tokenizer(models.WordLevel({f"t{token}": token for token in range(configurations.VOCABULARY)}, "t3"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core)


def draw_tokens(lengths: Iterable[int], seed: int) -> list[list[int]]:
    """One list of random token ids for each length, the same for the same arguments."""
    draw = random.Random(seed)
    return [[draw.randrange(FIRST_TOKEN, configurations.VOCABULARY) for _ in range(length)] for length in lengths]


def write(ids: list[int]) -> str:
    """The text that has these tokens."""
    return "".join(f" t{token}" for token in ids)


def try_model(model: PreTrainedModel, kind: str, released: bool = False) -> Row:
    """Measures prompts of many lengths in both modes with each of `BATCH_SIZES`, and compares all records."""
    texts = draw_tokens(TEXT_LENGTHS, 1)
    tokenizer, reference = create_tokenizer(), Reference(model)

    def generate(prompts: list[list[int]], batch_size: int | str) -> list[Any]:
        options = {"max_tokens": MAX_TOKENS, "batch_size": batch_size, "progress": False}
        return list(generation.measure(model, tokenizer, list(map(write, prompts)), **options))

    def score(prompts: list[list[int]], batch_size: int | str) -> list[Any]:
        options = {"batch_size": batch_size, "progress": False}
        return list(scoring.measure(model, tokenizer, list(map(write, prompts)), list(map(write, texts)), **options))

    found = [_judge(reference, generate), _judge(reference, score, texts)]
    way = checking.find_way(model) if found[0].verdict in (RIGHT, WRONG) else ""
    return Row(kind, released, type(model).__name__, way, *found)


def _judge(
    reference: Reference,
    measure: Callable[[list[list[int]], int | str], list[Any]],
    texts: list[list[int]] | None = None,
) -> Outcome:
    """What comes of one mode: of scoring if there are ``texts``, else of generating."""
    largest, wrong = 0.0, []
    plain, (begin,) = draw_tokens(LENGTHS, 0), draw_tokens([SHARED], 2)
    cases = [(plain, batch_size) for batch_size in BATCH_SIZES] + [([begin + ids for ids in plain], BATCH_SIZES[0])]
    for prompts, batch_size in cases:
        try:
            batches = measure(prompts, batch_size)
        except ValueError as error:
            return Outcome(REFUSED if "\n" not in str(error) else CRASHED, shorten(error))
        except Exception as error:
            return Outcome(CRASHED, f"{type(error).__name__}: {shorten(error)}")
        records = dict(pair for batch in batches for pair in zip(batch.indices, batch.records, strict=True))
        for index, ids in enumerate(prompts):
            if fault := _find_fault(reference, ids, records[index], texts[index] if texts else None):
                return Outcome(WRONG, f"text {index} with batch_size={batch_size} {fault}")
        error = max(reference.measure_error(ids, records[index]) for index, ids in enumerate(prompts))
        largest = max(largest, error)
        shared = " with a shared beginning" if prompts is not plain else ""
        wrong += [f"{batch_size}{shared}"] if error > BOUND else []
    return Outcome(WRONG if wrong else RIGHT, f"batch_size={', '.join(wrong)}" if wrong else "", largest)


def _find_fault(reference: Reference, ids: list[int], record: Mapping[str, Any], text: list[int] | None) -> str:
    """What is wrong with the tokens of a record, "" if nothing: those of a text, or drawn as they should be."""
    tokens = record["tokens"].tolist()
    if text is not None:
        return "" if tokens == text else "has other tokens"
    if not all(token in candidates for token, candidates in zip(tokens, record["top_p_tokens"], strict=True)):
        return "has a token from outside the nucleus"
    ended = len(tokens) < MAX_TOKENS
    return (
        f"ends after {len(tokens)} tokens" if ended and not reference.can_draw(ids + tokens, configurations.END) else ""
    )


def shorten(error: Exception, most: int = 300) -> str:
    """An error's message in one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= most else text[: most - 3] + "..."


def try_type(kind: str, released: bool = False) -> Row:
    """Builds a small model of a type and tries it; "not built" with the reason if transformers cannot build it."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers has much to say about random models
        try:
            model = configurations.build_model(kind, released)
        except Exception as error:  # models of all kinds raise anything
            reason = configurations.UNBUILT.get(kind) or f"{type(error).__name__}: {shorten(error)}"
            name = configurations.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[kind]
            return Row(kind, released, name, "", *[Outcome(UNBUILT, reason)] * 2)
        return try_model(model, kind, released)


def _send_row(connection: Connection, kind: str, released: bool) -> None:
    connection.send(try_type(kind, released))


class _Trial:
    """`try_type` in a process of its own, a fork of this one, which has imported what it takes seconds to import."""

    def __init__(self, kind: str, released: bool, limit: float):
        context = multiprocessing.get_context("fork")
        self.variant, self.limit, self.end = (kind, released), limit, time.monotonic() + limit
        self.receiver, sender = context.Pipe(duplex=False)
        self.process = context.Process(target=_send_row, args=(sender, kind, released))
        self.process.start()
        sender.close()

    def finish(self) -> Row:
        """Its row; "crashed" if its process died, or is still running."""
        try:
            if self.receiver.poll():
                return self.receiver.recv()
            return self._crash(f"no result after {self.limit:g} s")
        except EOFError:
            self.process.join()
            return self._crash(f"its process ended with exit status {self.process.exitcode}")
        finally:
            self.process.kill()
            self.process.join()
            self.receiver.close()

    def _crash(self, reason: str) -> Row:
        name = configurations.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[self.variant[0]]
        return Row(*self.variant, name, "", *[Outcome(CRASHED, reason)] * 2)


def try_types(kinds: Iterable[str], jobs: int = 1, limit: float = TIME_LIMIT) -> Iterator[Row]:
    """A row for each type, and another for each that is released as an encoder; ``jobs`` at a time, as they end.

    A type that takes more than ``limit`` seconds is "crashed".
    """
    waiting = [(kind, released) for kind in kinds for released in (False, True)]
    waiting = [(kind, released) for kind, released in waiting if not released or has_released_form(kind)]
    running: dict[Connection, _Trial] = {}
    while waiting or running:
        while waiting and len(running) < jobs:
            trial = _Trial(*waiting.pop(0), limit)
            running[trial.receiver] = trial
        left = min(trial.end for trial in running.values()) - time.monotonic()
        ready = wait(list(running), max(0, left))
        late = [receiver for receiver, trial in running.items() if trial.end <= time.monotonic()]
        for receiver in dict.fromkeys([*ready, *late]):
            yield running.pop(receiver).finish()


def has_released_form(kind: str) -> bool:
    """Whether models of a type are released as encoders, which see the tokens that they should predict."""
    return bool(configurations.list_released_values(kind))
