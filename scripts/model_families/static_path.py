"""Which types take the static path of decoding, tried on a CPU, where nothing is captured but all is checked.

Contract: the name of a type in, one line's worth of findings out; whatever is raised becomes a reason.
"""

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import transformers
from transformers import PreTrainedModel

from model_families import configurations
from model_families.trial import LENGTHS, MAX_TOKENS, SHARED, create_tokenizer, draw_tokens, shorten, write
from nucleoscope.measure import checking, decoding, generation, static
from nucleoscope.quantities import find_columns

COLUMNS = 16  # read at a time, so that some steps read more than others
BOUND = 1e-4
SAME, DIFFERENT, FALLS_BACK, NOT_PADDED = "the same", "DIFFERENT", "falls back", "not padded"


@dataclass(frozen=True)
class StaticRow:
    """What came of one type: one of the verdicts, the largest error of any number, and why it falls back."""

    kind: str
    verdict: str
    error: float = 0.0
    reason: str = ""


@contextlib.contextmanager
def take_static_path() -> Iterator[None]:
    """Within the block, models are tried on the static path, on a CPU too."""
    before = static.DEVICES, static.COLUMNS
    static.DEVICES, static.COLUMNS = {"cpu", "cuda"}, COLUMNS
    try:
        yield
    finally:
        static.DEVICES, static.COLUMNS = before


def try_static(kind: str) -> StaticRow:
    """Measures the same prompts on both paths, also with a shared beginning, and compares all tokens and numbers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers has much to say about random models
        transformers.logging.set_verbosity_error()
        try:
            return _try(kind, configurations.build_model(kind))
        except Exception as error:  # models of all kinds raise anything
            return StaticRow(kind, NOT_PADDED, reason=f"{type(error).__name__}: {shorten(error, 100)}")


def _try(kind: str, model: PreTrainedModel) -> StaticRow:
    with take_static_path():
        if checking.find_way(model) != decoding.PADDED:
            return StaticRow(kind, NOT_PADDED)
        if checking.create_memory(model) is None:
            return StaticRow(kind, FALLS_BACK)
    plain, (begin,) = draw_tokens(LENGTHS, 0), draw_tokens([SHARED], 2)
    errors = []
    for prompts in (plain, [begin + ids for ids in plain]):
        expected = _measure(model, prompts)
        with take_static_path():
            errors += map(_compare, _measure(model, prompts), expected)
    return StaticRow(kind, SAME if max(errors) <= BOUND else DIFFERENT, max(errors))


@torch.inference_mode()
def _measure(model: PreTrainedModel, prompts: list[list[int]]) -> list[dict]:
    options = {"max_tokens": MAX_TOKENS, "batch_size": len(prompts), "progress": False}
    (batch,) = generation.measure(model, create_tokenizer(), list(map(write, prompts)), **options)
    return [record for _, record in sorted(zip(batch.indices, batch.records, strict=True), key=lambda pair: pair[0])]


def _compare(found: dict, expected: dict) -> float:
    """The largest difference of any number, relative to it where it is above 1; inf if a token differs."""
    if found["tokens"].tolist() != expected["tokens"].tolist():
        return float("inf")
    names = set(find_columns()) - {"ranks"}  # in a wide nucleus, rounding may change the order
    pairs = [pair for name in names for pair in zip(found[name], expected[name], strict=True)]
    return max((abs(one - other) / max(1, abs(other)) for one, other in pairs), default=0.0)


def describe(row: StaticRow) -> str:
    """One line about a type, for the terminal."""
    error = f", largest error {row.error:.1e}" if row.verdict in (SAME, DIFFERENT) else ""
    return f"{row.kind}: {row.verdict}{error}{f' ({row.reason})' if row.reason else ''}"
