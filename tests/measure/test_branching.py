"""Texts continued from each candidate of some tokens: with common random numbers, by brute force, in every way."""

import itertools
import math

import pytest
import torch
from transformers import MambaConfig, MambaForCausalLM

import tiny
from messages import assert_one_line
from nucleoscope.measure import branching, checking, context, decoding, generation, sampling
from nucleoscope.measure.context import Fork
from nucleoscope.settings import Settings

PROMPTS = ["the cat sat on the", "a long and winding road that leads to the other end of it all"]
SETTINGS = Settings(max_tokens=20, branch_points=4, branch_length=8, branch_replicates=2, context_candidates=4)
KINDS = {"llama": {}, "qwen3": {}, "gpt2": {}, "mistral": {}}


def generate_records(model, prompts=PROMPTS, **settings) -> list[tuple[int, dict]]:
    found, options = {}, {"max_tokens": 20, "progress": False, **settings}
    for batch in generation.measure(model, tiny.create_tokenizer(eos=False), prompts, **options):
        found.update(zip(batch.indices, batch.records, strict=True))
    return sorted(found.items())


def branch_all(model, records, settings=SETTINGS) -> list[branching.Branching]:
    tokenizer = tiny.create_tokenizer(eos=False)
    return [found for _, found in branching.branch(model, tokenizer, records, settings, progress=False)]


def split_candidates(found: branching.Branching) -> list[tuple[int, list[int], torch.Tensor]]:
    """Step, candidates and branches (m, R, L) of each point."""
    sizes = found.sizes.tolist()
    parts = zip(found.steps.tolist(), found.ids.split(sizes), found.tokens.split(sizes), strict=True)
    return [(step, ids.tolist(), tokens) for step, ids, tokens in parts]


def compare(one: branching.Branching, other: branching.Branching, tolerance: float = 1e-4) -> None:
    for name in ("steps", "sizes", "ids", "tokens"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    for side in ("pairs", "baseline"):
        for name, values in getattr(one, side).items():
            torch.testing.assert_close(getattr(other, side)[name], values, atol=tolerance, rtol=0, equal_nan=True)


@pytest.fixture(scope="module")
def llama():
    model = tiny.create_model("llama", eos_token_id=None)
    return model, generate_records(model)


# A model whose next distribution depends only on the class of the last token

CLASSES, MEMBERS = 4, 6


@pytest.fixture(scope="module")
def chain():
    """Token v is of class v // MEMBERS; after class c comes a token of class max(c - 1, 0), with that class's odds."""
    model = tiny.create_model("llama", vocab_size=tiny.VOCAB, eos_token_id=None)
    torch.manual_seed(0)
    of = (torch.arange(tiny.VOCAB) // MEMBERS).clamp_max(CLASSES)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.norm.weight.fill_(1)
        model.model.embed_tokens.weight.copy_(torch.nn.functional.one_hot(of, 32).float())
        model.lm_head.weight.fill_(-20)
        odds = 0.3 * torch.rand(CLASSES, MEMBERS)
        for last in range(CLASSES + 1):
            after = max(last - 1, 0)
            model.lm_head.weight[torch.arange(MEMBERS) + after * MEMBERS, last] = odds[after]
    return model


@pytest.mark.parametrize(("one", "other"), [(0, 0), (2, 2), (0, 1), (1, 3), (0, 3)])
def test_branches_meet_at_the_step_that_the_classes_of_their_candidates_say(chain, one, other):
    fork = Fork(0, 3, [one * MEMBERS, other * MEMBERS + 1], torch.tensor([0.5, 0.5]).double())
    settings = Settings(branch_length=12, branch_replicates=3, top_p=1.0)
    plan = branching.plan_text(chain, 3, [fork], settings)
    directions = branching.cosine.find_directions(chain.get_input_embeddings().weight)
    found = branching.branch_text(chain, [7, 9, 11], [fork], 0, settings, set(), directions, plan)
    # until the class after the higher one is 0, both have no token in common
    alone = 0 if one == other else max(one, other) - 1
    assert found.pairs["met"].tolist() == [1]
    assert found.pairs["meeting_step"].tolist() == [alone + branching.MEETING]
    assert found.pairs["equal_tokens"].tolist() == pytest.approx([1 - alone / 12])
    assert found.pairs["divergence"].tolist() == pytest.approx([alone / 12], abs=1e-5)
    assert found.pairs["similarity"].tolist() == pytest.approx([0 if alone else 1], abs=1e-5)


# Random numbers


def test_each_replicate_has_random_numbers_of_its_own_and_the_first_has_those_of_the_run():
    assert sampling.list_uniforms(3, 5, 4, replicate=0) == sampling.list_uniforms(3, 5, 4)
    every = itertools.product(range(3), range(3), range(4))
    assert len({sampling.list_uniforms(seed, index, 1, replicate)[0] for seed, index, replicate in every}) == 36
    assert sampling.list_uniforms(3, 5, 9, 2)[:4] == sampling.list_uniforms(3, 5, 4, 2)


@pytest.mark.parametrize("kind", KINDS)
def test_the_branch_of_the_token_that_was_taken_is_the_measured_text(kind):
    model = tiny.create_model(kind, eos_token_id=None, **KINDS[kind])
    records, checked = generate_records(model), 0
    for (_, record), found in zip(records, branch_all(model, records), strict=True):
        text = record["tokens"].tolist()
        for step, ids, tokens in split_candidates(found):
            if text[step] in ids:
                expected = text[step + 1 : step + 1 + SETTINGS.branch_length]
                assert tokens[ids.index(text[step]), 0].tolist()[: len(expected)] == expected
                checked += len(expected)
    assert checked > 20


def test_every_way_of_decoding_and_every_batch_size_gives_the_same_branches(llama, monkeypatch):
    model, records = llama[0], llama[1][:1]
    expected = branch_all(model, records)
    assert expected[0].way == "padded, text read once"
    for one, other in zip(
        expected, branch_all(model, records, Settings(**vars(SETTINGS) | {"batch_size": 1})), strict=True
    ):
        compare(one, other)
    monkeypatch.setattr(checking, "can_share", lambda *_: False)
    for way in decoding.WAYS:
        monkeypatch.setattr(checking, "find_way", lambda *_, way=way: way)
        for one, other in zip(expected, branch_all(model, records), strict=True):
            assert other.way == way
            compare(one, other)


def test_a_model_without_keys_and_values_is_branched_in_its_own_way():
    config = MambaConfig(
        vocab_size=tiny.VOCAB, hidden_size=32, num_hidden_layers=2, state_size=4, initializer_range=0.7
    )
    torch.manual_seed(0)
    model = MambaForCausalLM(config).eval()
    model.generation_config.eos_token_id = model.config.eos_token_id = None
    records = generate_records(model)
    found = branch_all(model, records)
    assert all(each.way in decoding.WAYS[1:] for each in found)
    for (_, record), each in zip(records, found, strict=True):
        text = record["tokens"].tolist()
        for step, ids, tokens in split_candidates(each):
            expected = text[step + 1 : step + 9]
            if text[step] in ids:
                assert tokens[ids.index(text[step]), 0].tolist()[: len(expected)] == expected


# What is measured


@torch.inference_mode()
def compute_distributions(model, before: list[int], tokens: list[int]) -> torch.Tensor:
    """The distributions (L, V) after each of the tokens but the last, by one plain forward pass."""
    logits = model(input_ids=torch.tensor([[*before, *tokens[:-1]]]), use_cache=False).logits[0]
    return logits[len(before) - 1 :].double().softmax(-1)


def compute_divergence(p: torch.Tensor, q: torch.Tensor) -> float:
    """The mean over steps of the Jensen-Shannon divergence by its definition, divided by log 2."""
    middle = (p + q) / 2
    return sum(float(torch.xlogy(x, x / middle).sum(-1).mean()) for x in (p, q)) / 2 / math.log(2)


def test_divergences_are_those_of_plain_forward_passes(llama):
    model, records = llama
    index, record = records[1]
    found = branch_all(model, [(index, record)])[0]
    before = tiny.create_tokenizer()(record["prompt"])["input_ids"]
    pair = 0
    for point, (step, ids, tokens) in enumerate(split_candidates(found)):
        text = [*before, *record["tokens"][:step].tolist()]
        p = [
            [compute_distributions(model, [*text, each], row.tolist()) for row in rows]
            for each, rows in zip(ids, tokens, strict=True)
        ]
        for i, j in itertools.combinations(range(len(ids)), 2):
            expected = sum(compute_divergence(p[i][r], p[j][r]) for r in range(2)) / 2
            assert float(found.pairs["divergence"][pair]) == pytest.approx(expected, abs=1e-4)
            first = 1 - compute_divergence(p[i][0][:1], p[j][0][:1])
            assert float(found.pairs["similarity"][pair]) == pytest.approx(first, abs=1e-4)
            equal = (tokens[i] == tokens[j]).double().mean()
            assert float(found.pairs["equal_tokens"][pair]) == pytest.approx(float(equal))
            pair += 1
        same = sum(compute_divergence(*each) for each in p) / len(p)
        assert float(found.baseline["divergence"][point]) == pytest.approx(same, abs=1e-4)
    assert pair == len(found.pairs["cosine"]) > 10


def test_similarity_before_anything_is_drawn_is_similarity_in_context(llama):
    model, records = llama
    settings = Settings(max_tokens=20)
    compared = dict(context.measure(model, tiny.create_tokenizer(), records, settings, candidates=4, progress=False))
    for (index, _), found in zip(records, branch_all(model, records), strict=True):
        steps = compared[index].steps.tolist()
        counts = [m * (m - 1) // 2 for m in found.sizes.tolist()]
        for step, values in zip(found.steps.tolist(), found.pairs["similarity"].split(counts), strict=True):
            place = steps.index(step)
            assert float(values.mean()) == pytest.approx(
                float(compared[index].values["mean_similarity"][place]), abs=1e-4
            )


def test_a_branch_that_has_ended_stays_as_it_is():
    model = tiny.create_model("llama")
    with torch.no_grad():
        model.lm_head.weight[tiny.EOS] *= 3  # it ends often
    records = generate_records(tiny.create_model("llama", eos_token_id=None))
    found = branch_all(model, records)
    tokens = torch.cat([each.tokens for each in found]).flatten(0, 1)
    assert bool((tokens == branching.ENDED).any())
    assert bool((tokens != branching.ENDED).any())
    over = (tokens == branching.ENDED).int()
    assert bool((over.diff(dim=1) >= 0).all())
    assert not bool((tokens == tiny.EOS).any())
    for each in found:
        assert all(0 <= float(value) <= 1 for value in each.pairs["divergence"])


def test_two_branches_that_end_at_once_are_equal_and_one_that_ends_alone_has_nothing_in_common():
    fork = Fork(0, 1, [1, 2, 3], torch.ones(3).double() / 3)
    point = branching._Point(fork, 0, torch.full((1, 2), 0.5), torch.tensor([0]))
    sharp = torch.full((3, 5), -1e4)
    sharp[[0, 1, 2], [0, 0, 4]] = 0  # the first two end at once
    point.draw(sharp, 0, Settings())
    point.draw(sharp[2:], 1, Settings())
    pairs, _ = point.finish(torch.eye(3))
    assert pairs["divergence"].tolist() == pytest.approx([0, 1, 1])
    assert pairs["equal_tokens"].tolist() == [1, 0, 0]
    assert pairs["met"].tolist() == [1, 0, 0]


@pytest.mark.parametrize(
    ("equal", "expected"),
    [("11111000", 5), ("01111100", 6), ("00011111", 8), ("11110111", 0), ("0000", 0), ("111", 3), ("011", 0)],
)
def test_branches_have_met_when_their_last_five_tokens_are_the_same(equal, expected):
    row = torch.tensor([[letter == "1" for letter in equal]])
    assert branching.find_meeting(row).tolist() == [expected]


def test_one_replicate_has_no_baseline(llama):
    model, records = llama
    found = branch_all(model, records[:1], Settings(**vars(SETTINGS) | {"branch_replicates": 1}))[0]
    assert all(bool(values.isnan().all()) for values in found.baseline.values())
    assert not bool(found.pairs["divergence"].isnan().any())


# Which tokens


def create_forks(n: int) -> list[Fork]:
    return [Fork(step, step + 3, [1, 2], torch.ones(2) / 2) for step in range(n)]


@pytest.mark.parametrize("most", [1, 2, 3, 4, 5, 7, 9, 12])
def test_points_are_one_of_each_stratum_of_entropy_and_of_cosine(most):
    forks = create_forks(36)
    entropies, cosines = [step // 6 for step in range(36)], [step % 6 for step in range(36)]
    for seed in range(5):
        steps = [fork.step for fork in branching.choose_points(forks, entropies, cosines, most, seed, 0)]
        assert steps == sorted(set(steps))
        assert len(steps) == most
        if most == 4:  # halves by halves
            assert {(step // 6 >= 3, step % 6 >= 3) for step in steps} == set(
                itertools.product((False, True), repeat=2)
            )
        if most == 9:
            assert {(step // 6 // 2, step % 6 // 2) for step in steps} == set(itertools.product(range(3), repeat=2))


def test_points_depend_on_seed_and_prompt_and_on_nothing_else():
    forks, values = create_forks(50), list(range(50))
    drawn = {
        (seed, index): tuple(f.step for f in branching.choose_points(forks, values, values, 4, seed, index))
        for seed in range(3)
        for index in range(3)
    }
    assert len(set(drawn.values())) > 6
    again = branching.choose_points(forks, values, values, 4, 2, 1)
    assert tuple(fork.step for fork in again) == drawn[2, 1]


def test_a_text_with_fewer_choices_has_all_of_them():
    forks = create_forks(3)
    assert branching.choose_points(forks, [0] * 9, [0] * 9, 4, 0, 0) == forks
    assert branching.choose_points([], [], [], 4, 0, 0) == []


def test_a_text_without_a_choice_has_no_branches(llama):
    model, [(_, record), *_] = llama
    one = record | {"top_p_tokens": [ids[:1] for ids in record["top_p_tokens"]]}
    one |= {"top_p_probs": [probs[:1] for probs in record["top_p_probs"]]}
    found = branch_all(model, [(0, one)])[0]
    assert (len(found.steps), found.tokens.shape, len(found.pairs["cosine"])) == (0, (0, 2, 8), 0)


def test_no_branch_exceeds_the_context_of_the_model():
    model = tiny.create_model("gpt2", eos_token_id=None, n_positions=40)
    records = generate_records(model, PROMPTS[:1])
    found = branch_all(model, records, Settings(**vars(SETTINGS) | {"branch_points": 100, "branch_length": 25}))[0]
    start = len(tiny.create_tokenizer()(PROMPTS[0])["input_ids"])
    assert 0 < max(found.steps.tolist()) + start + 1 + 25 <= 40


# Failures


def test_logits_that_are_not_finite_are_named_in_one_line(llama):
    model, records = tiny.create_model("llama", eos_token_id=None), llama[1]
    with torch.no_grad():
        model.lm_head.weight[5] = math.nan
    with pytest.raises(ValueError, match=r"NaN or inf in a branch of prompt 0, token \d+") as caught:
        branch_all(model, records, Settings(**vars(SETTINGS) | {"skip_check": True}))
    assert_one_line(str(caught.value))


def test_batches_become_smaller_where_memory_is_too_small(llama, monkeypatch):
    model, records = llama
    expected, draw = branch_all(model, records), branching._draw_group

    def draw_few(model, ids, group, *rest):
        if len(group) > 1:
            raise torch.OutOfMemoryError
        return draw(model, ids, group, *rest)

    monkeypatch.setattr(branching, "_draw_group", draw_few)
    for one, other in zip(expected, branch_all(model, records), strict=True):
        compare(one, other)

    def draw_none(*_):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(branching, "_draw_group", draw_none)
    with pytest.raises(MemoryError, match="reduce context_candidates or branch_replicates") as caught:
        branch_all(model, records)
    assert_one_line(str(caught.value))
