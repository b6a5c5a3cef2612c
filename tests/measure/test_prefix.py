"""The beginning that prompts share is read once: the same tokens and numbers as if each prompt were read whole."""

import pytest
import torch
from test_scoring import assert_same

import tiny
from model_families import configurations
from nucleoscope.measure import batching, checking, decoding, generation, scoring
from nucleoscope.measure.encoding import Inputs
from nucleoscope.measure.prefix import LEAST, find_shared_ids
from nucleoscope.quantities import find_columns

KINDS = {"llama": {}, "mistral, window of 3": {"sliding_window": 3}, "qwen3": {}, "gpt2": {}}
PREFIX = [5 + 3 * i for i in range(11)]
RESTS = [[40], [41, 42, 43], [44] * 30, list(range(50, 57)), [60, 61]]  # one is longer than the prefix with all others
IDS = [PREFIX + rest for rest in RESTS]


def create_model(kind: str):
    return tiny.create_model(kind.split(",")[0], **KINDS[kind])


def generate(model, ids=IDS, **settings):
    """The records of generated texts, in order."""
    batches = generation.measure(
        model, tiny.create_tokenizer(), [""] * len(ids), inputs=Inputs(ids), progress=False, max_tokens=9, **settings
    )
    return [record for _, record in sorted((i, r) for b in batches for i, r in zip(b.indices, b.records, strict=True))]


def score(model, **settings):
    """The records of the last tokens of each text, in order."""
    inputs = scoring.Texts(IDS, starts=[len(PREFIX)] * 3 + [len(PREFIX) + 2, len(PREFIX) + 1])
    batches = scoring.measure(
        model, tiny.create_tokenizer(), [""] * len(IDS), [""] * len(IDS), inputs=inputs, progress=False, **settings
    )
    return [record for _, record in sorted((i, r) for b in batches for i, r in zip(b.indices, b.records, strict=True))]


def count_tokens(monkeypatch, model) -> list[int]:
    """A list that grows with each forward pass by the tokens that it processes, in all rows."""
    counted, forward = [], type(model.base_model).forward

    def count(self, input_ids, *args, **options):
        counted.append(input_ids.numel())
        return forward(self, input_ids, *args, **options)

    monkeypatch.setattr(type(model.base_model), "forward", count)
    return counted


@pytest.mark.parametrize("rows", [[], [PREFIX], [PREFIX, [7, *PREFIX]], [PREFIX[:LEAST], PREFIX]])
def test_nothing_is_shared_by_a_single_row_or_by_rows_that_begin_otherwise_or_are_too_short(rows):
    assert find_shared_ids(rows) == []


def test_what_is_shared_leaves_each_row_a_token_and_all_that_is_measured():
    assert find_shared_ids(IDS) == PREFIX
    assert find_shared_ids([PREFIX, PREFIX]) == PREFIX[:-1]
    assert find_shared_ids(IDS, [len(PREFIX)] * 5) == PREFIX[:-1]
    assert find_shared_ids([[*PREFIX[: LEAST + 1], 1], PREFIX]) == PREFIX[: LEAST + 1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch_size", [1, 2, 5])
@pytest.mark.parametrize("budget", [1, 40, 4096])
def test_generated_tokens_are_the_same_whether_the_beginning_is_read_once_or_with_each(
    monkeypatch, kind, batch_size, budget
):
    monkeypatch.setitem(batching.PASS_TOKENS, "cpu", budget)
    monkeypatch.setitem(batching.MOST_PADDING, "cpu", 1000)
    model = create_model(kind)
    assert checking.choose_prefix(model, IDS) == PREFIX
    found = generate(model, batch_size=batch_size)
    monkeypatch.setattr(checking, "choose_prefix", lambda *_: [])
    assert_same(found, generate(model, batch_size=batch_size))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch_size", [1, 3, "auto"])
def test_texts_are_scored_the_same_whether_the_beginning_is_read_once_or_with_each(monkeypatch, kind, batch_size):
    model = create_model(kind)
    found = score(model, batch_size=batch_size)
    monkeypatch.setattr(checking, "choose_prefix", lambda *_: [])
    assert_same(found, score(model, batch_size=batch_size))


@pytest.mark.parametrize("measure", [generate, score])
def test_the_shared_tokens_are_read_once_for_a_whole_run(monkeypatch, measure):
    model = create_model("llama")
    measure(model)  # the trial has been made
    counted = count_tokens(monkeypatch, model)
    measure(model, batch_size=1)
    prefix = len(PREFIX) - (measure is score)  # the token before the first to be measured is read with each
    read = sum(n for n in counted if n > 1)
    whole = sum(len(row) - (measure is score) for row in IDS)
    probe = sum(counted[: counted.index(prefix) + 1]) if measure is generate else 0
    assert counted.count(prefix) >= 1
    assert read < whole - prefix * (len(IDS) - 2) + probe + 8 * 8


def test_a_model_that_forgets_what_was_read_before_reads_each_prompt_whole(monkeypatch):
    model = create_model("llama")
    plain, read = generate(model), decoding.read_prefix

    def forget(model, ids):
        prefix = read(model, ids)
        return prefix._replace(layers=[tuple(torch.zeros_like(part) for part in pair) for pair in prefix.layers])

    monkeypatch.setattr(checking, "read_prefix", forget)
    monkeypatch.setattr(decoding, "read_prefix", forget)
    other = create_model("llama")
    assert checking.find_way(other) == decoding.PADDED
    assert checking.choose_prefix(other, IDS) == []
    assert_same(generate(other), plain)
    score(other)


def test_scoring_reads_each_text_whole_where_only_its_own_probe_fails(monkeypatch):
    model = create_model("llama")
    plain = score(model)
    assert checking.choose_prefix(model, IDS) == PREFIX
    monkeypatch.setattr(scoring.TextForward, "_is_prefix_right", lambda *_: False)
    counted = count_tokens(monkeypatch, model)
    assert_same(score(model), plain)
    assert max(counted) >= max(map(len, IDS)) - 1


def test_a_model_that_was_not_tried_reads_each_prompt_whole():
    assert checking.choose_prefix(create_model("llama"), IDS, skip_check=True) == []


@pytest.mark.parametrize("kind", ["bloom", "gemma3n_text", "mpt", "falcon", "mixtral", "gpt_neox", "gptj", "cohere2"])
def test_families_with_positions_of_their_own_share_a_beginning_or_read_each_prompt_whole(monkeypatch, kind):
    model = configurations.build_model(kind)
    vocabulary = model.config.get_text_config().vocab_size
    ids = [[1 + token % (vocabulary - 2) for token in row] for row in IDS]
    found = generate(model, ids)
    monkeypatch.setattr(checking, "choose_prefix", lambda *_: [])
    for one, other in zip(found, generate(model, ids), strict=True):  # of wide nuclei, rounding may change the order
        assert one["tokens"].tolist() == other["tokens"].tolist()
        assert all(
            one[plural] == pytest.approx(other[plural], abs=1e-4) for plural in find_columns() if plural != "ranks"
        )
