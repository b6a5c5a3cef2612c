"""The table of model types: a sample of its rows, the reference that they are compared with, and the committed page."""

import os
import re
import time
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from model_families import configurations, page, reference, static_path, trial
from nucleoscope.measure import checking, decoding, static

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "book/families.md").read_text(encoding="utf-8")
SAMPLE = {  # a type, and how its prompts are batched
    "llama": decoding.PADDED,
    "gpt2": decoding.PADDED,
    "roberta": decoding.PADDED,  # counts positions from behind its padding token
    "gemma3_text": decoding.PADDED,  # windows
    "deepseek_v3": decoding.PADDED,  # latent attention, experts
    "mamba": decoding.OWN_CACHE,  # states
    "lfm2": decoding.OWN_CACHE,  # convolutions and attention
    "recurrent_gemma": decoding.EQUAL_LENGTHS,  # states in its modules
    "openai-gpt": decoding.WHOLE_PREFIXES,
    "electra": decoding.PADDED,  # no output layer that can be applied to its hidden states
    "bart": decoding.EQUAL_LENGTHS,  # the decoder of a pair
    "prophetnet": decoding.WHOLE_PREFIXES,  # logits that depend on the length of the text
}


@pytest.mark.parametrize("kind", SAMPLE)
def test_a_type_is_right_in_both_modes(kind):
    row = trial.try_type(kind)
    assert (row.generate.verdict, row.score.verdict, row.way) == (trial.RIGHT, trial.RIGHT, SAMPLE[kind])
    assert 0 < max(row.generate.error, row.score.error) < trial.BOUND
    assert row.class_name == configurations.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[kind]


@pytest.mark.parametrize("kind", ["bart", "marian", "plbart"])
def test_a_decoder_with_more_layers_than_its_encoder_is_right(monkeypatch, kind):
    """Its configuration's number of layers is the encoder's."""
    create = configurations.create_config

    def create_unequal(*arguments):
        config = create(*arguments)
        config.encoder_layers, config.decoder_layers = 1, 3
        return config

    monkeypatch.setattr(configurations, "create_config", create_unequal)
    row = trial.try_type(kind)
    assert (row.generate.verdict, row.score.verdict) == (trial.RIGHT, trial.RIGHT)


def test_an_encoder_as_released_is_refused_in_both_modes():
    row = trial.try_type("bert", released=True)
    line = (
        "BertLMHeadModel is not a causal language model as it is configured: each token sees those after it "
        "(is_decoder must be true, and the weights trained for that)"
    )
    assert row.generate == row.score == trial.Outcome(trial.REFUSED, line)


def test_a_type_that_cannot_be_built_says_why():
    row = trial.try_type("musicgen")
    assert row.generate == row.score == trial.Outcome(trial.UNBUILT, configurations.UNBUILT["musicgen"])


def test_a_wrong_way_is_found(monkeypatch):
    """What is called wrong: a model of fixed positions in batches that are padded."""
    monkeypatch.setattr(checking, "find_way", lambda *_: decoding.PADDED)
    row = trial.try_type("openai-gpt")
    assert row.generate.verdict != trial.RIGHT
    assert row.score.verdict == trial.RIGHT


# The static path


@pytest.mark.parametrize(
    ("kind", "verdict"),
    [
        ("gemma3_text", static_path.SAME),
        ("mpt", static_path.FALLS_BACK),
        ("mamba", static_path.NOT_PADDED),
        ("musicgen", static_path.NOT_PADDED),
    ],
)
def test_a_type_is_compared_on_both_paths(kind, verdict):
    row = static_path.try_static(kind)
    assert row.verdict == verdict
    assert row.error < static_path.BOUND
    assert (row.error > 0) == (verdict == static_path.SAME)
    assert static_path.describe(row).startswith(f"{kind}: {verdict}")


def test_a_wrong_number_on_the_static_path_is_found(monkeypatch):
    read = static.StaticDecoder._read_step
    monkeypatch.setattr(checking, "_is_static", lambda *_: True)
    monkeypatch.setattr(static.StaticDecoder, "_read_step", lambda *given: 1.01 * read(*given))
    assert static_path.try_static("llama").verdict == static_path.DIFFERENT


# The reference


def create_record(p: list[float], candidates: list[int], token: int, rank: int) -> dict:
    """A record of one token that agrees with a reference in which all embeddings are orthogonal."""
    quantities = reference._compute_quantities(
        torch.tensor(p).double().numpy(), torch.tensor(candidates).numpy(), token, torch.eye(len(candidates)).numpy()
    )
    return {
        "tokens": torch.tensor([token]),
        "top_p_tokens": [torch.tensor(candidates)],
        "top_p_probs": [torch.tensor(p)[candidates]],
        "ranks": [rank],
        **{name: [value] for name, value in quantities.items()},
    }


class Fixed(reference.Reference):
    """A reference in which every token has the same distribution, and the embedding is the identity."""

    def __init__(self, p: list[float]):
        self.p, self.cosines = torch.tensor(p).double().numpy(), torch.eye(len(p)).double().numpy()

    def _compute_probabilities(self, ids):
        return self.p


P = [0.05, 0.6, 0.25, 0.1]


def test_the_reference_accepts_what_is_right():
    found = create_record(P, [1, 2, 3], 2, 2)
    assert Fixed(P).measure_error([0], found) < 1e-7
    assert found["entropies"][0] == pytest.approx(0.8786, abs=1e-4)  # of 0.6, 0.25 and 0.1, divided by 0.95
    assert found["cosines"] == [0.0]
    assert found["margins"][0] == pytest.approx(0.35)


@pytest.mark.parametrize(
    ("candidates", "rank"), [([1, 2], 2), ([1, 2, 3, 0], 2), ([2, 1, 3], 2), ([1, 2, 0], 2), ([1, 2, 3], 1)]
)
def test_the_reference_refuses_another_nucleus_or_rank(candidates, rank):
    assert Fixed(P).measure_error([0], create_record(P, candidates, 2, rank)) == float("inf")


@pytest.mark.parametrize("name", ["entropies", "full_varentropies", "surprisals", "cosines", "similarity_entropies"])
def test_the_reference_finds_a_value_that_is_off(name):
    found = create_record(P, [1, 2, 3], 2, 2)
    found[name][0] += 0.01
    assert 0.004 < Fixed(P).measure_error([0], found) < 0.0101
    found[name][0] = float("nan")
    assert Fixed(P).measure_error([0], found) == float("inf")


def test_either_side_of_the_boundary_is_right():
    p = [0.05, 0.6, 0.299999, 0.050001]  # 0.899999 after two tokens
    for candidates in ([1, 2], [1, 2, 3]):
        assert Fixed(p).measure_error([0], create_record(p, candidates, 2, 2)) < 1e-6


def test_among_equal_probabilities_the_lower_id_comes_first():
    p = [0.5, 0.25, 0.25]
    assert Fixed(p).measure_error([0], create_record(p, [0, 1, 2], 0, 1)) < 1e-7
    assert Fixed(p).measure_error([0], create_record(p, [0, 2, 1], 0, 1)) == float("inf")


# Processes


def test_a_type_that_hangs_or_dies_is_a_row_and_the_others_go_on(monkeypatch):
    def behave(kind, released):
        if kind == "gpt2":
            os._exit(3)
        if kind == "llama":
            time.sleep(60)
        return trial.Row(kind, released, "Class", "padded", *[trial.Outcome(trial.RIGHT, error=0.0)] * 2)

    monkeypatch.setattr(trial, "try_type", behave)
    rows = {row.kind: row for row in trial.try_types(["gpt2", "llama", "opt", "phi"], jobs=2, limit=2)}
    assert rows["gpt2"].generate == trial.Outcome(trial.CRASHED, "its process ended with exit status 3")
    assert rows["llama"].score == trial.Outcome(trial.CRASHED, "no result after 2 s")
    assert rows["opt"].generate.verdict == rows["phi"].generate.verdict == trial.RIGHT


# The page


def find_types(text: str) -> set[str]:
    """The types in the page's table and lists, without the released forms of encoders."""
    rows = re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE)
    lists = re.findall(r"^\* ([^:]*):", text.split("## Not built")[1], re.MULTILINE)
    return {*rows, *(name for line in lists for name in re.findall("`([^`]+)`", line))}


def test_the_page_lists_every_type_that_transformers_registers():
    assert find_types(PAGE) == set(configurations.list_types())
    assert f"transformers {version('transformers')} registers {len(configurations.list_types())} model types" in PAGE
    assert f"({trial.WRONG}" not in PAGE
    assert re.findall(rf"\| ({trial.WRONG}|{trial.CRASHED}) \|", PAGE) == []


def test_the_page_says_what_the_sample_says():
    for kind, way in SAMPLE.items():
        assert re.search(rf"^\| `{kind}` \| `\w+` \| right \| right \| {way} \|", PAGE, re.MULTILINE), kind


def test_a_page_counts_its_rows():
    right, refused = trial.Outcome(trial.RIGHT, error=2e-6), trial.Outcome(trial.REFUSED, "LlamaX fails: a|b `c`")
    rows = [
        trial.Row("b", False, "LlamaX", decoding.PADDED, right, right),
        trial.Row("a", False, "LlamaX", "", refused, refused),
        trial.Row("b", True, "LlamaX", "", refused, refused),
        trial.Row("c", False, "C", decoding.OWN_CACHE, right, trial.Outcome(trial.WRONG, "", 0.5)),
        trial.Row("d", False, "D", "", *[trial.Outcome(trial.UNBUILT, "no")] * 2),
    ]
    text = page.format_page("<types>; <summary>\n<table>\n<refused>\n## Not built\n<unbuilt>", rows)
    assert text.startswith(
        "4; 1 is right in both modes (1 padded), 1 is refused, 1 is wrong or failed, and 1 cannot be built."
    )
    assert "| `c` | `C` | right | wrong | own cache | 5e-01 |" in text
    assert text.index("`a`") < text.index("`b`")
    assert "* `a`, `b` as released: `` ... fails: a|b `c` ``" in text
    assert find_types(text) == {"a", "b", "c", "d"}
    assert [row.kind for row in rows if page.has_failed(row)] == ["c"]
