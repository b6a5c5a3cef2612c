"""The second look at a run: null sets from the ids that were drawn, Gaussian states, and the files they end up in."""

import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from test_scoring import create_capped_model

import oracle
import tiny
from model_families import configurations
from nucleoscope import variants
from nucleoscope.measure import encoding, gaussian_states, null_sets, scoring, second_look
from nucleoscope.measure.candidate_sets import find_windows
from nucleoscope.measure.entropy import compute_full_entropies
from nucleoscope.measure.runs import complete_run
from nucleoscope.store import nulls, results, run_folder, vocabulary

TEXTS = ["the cat sat", "a", "on the mat, and then", "number 7", "she said"]
CONTINUED = [" on the other mat", " b c", " it went on and on", " is it", " no"]
OPTIONS = {"max_tokens": 12, "variants": "default", "progress": False}
FILES = (nulls.NULLS, vocabulary.VOCABULARY)


class Record:
    """What `second_look.compare` was given and what it returned: windows with the ids that were drawn, and cosines."""

    def __init__(self, monkeypatch):
        self.calls = []
        original = second_look.compare

        def compare(windows, spaces):
            found = original(windows, spaces)
            self.calls.append((windows, found))
            return found

        monkeypatch.setattr(second_look, "compare", compare)


@pytest.fixture
def compared(monkeypatch):
    return Record(monkeypatch)


def complete(folder, model=None, texts=TEXTS, continued=None, **options):
    """A run to its end; the null sets and the vocabulary of its files, and what run.json says."""
    run = run_folder.RunFolder(folder, {})
    with run:
        complete_run(run, model or tiny.create_model(), tiny.create_tokenizer(), texts, continued, **OPTIONS | options)
    return nulls.load(folder), vocabulary.load(folder), results.load_info(folder)["second_look"]


def read_logits(model, folder, temperature=1.0):
    """{(prompt, step): logits (V,)} of all measured tokens, each text read by the whole model on its own."""
    found = {}
    ids = encoding.encode(tiny.create_tokenizer(), TEXTS).ids
    for prompt, record in enumerate(results.load(folder / "measurements.pt")):
        row = [*ids[prompt], *record["tokens"].tolist()]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([row])).logits[0, len(ids[prompt]) - 1 : -1]
        found |= {(prompt, step): each / temperature for step, each in enumerate(logits)}
    return found


def build_directions(embedding):
    """Unit rows (V, d) in float64 of both geometries, from their definitions."""
    rows = embedding.double().numpy()
    centred = rows - rows.mean(0)
    axes = np.linalg.svd(centred)[2][:3]
    return [oracle.normalise(torch.from_numpy(each)) for each in (rows, centred - centred @ axes.T @ axes)]


def test_every_cosine_is_that_of_the_tokens_that_were_drawn(tmp_path, compared):
    model = tiny.create_model()
    frame, _, info = complete(tmp_path, model)
    directions = build_directions(model.get_input_embeddings().weight.detach())
    rows = sum(len(windows.offsets) - 1 for windows, _ in compared.calls)
    assert rows == 4 * info["tokens"] + info["gaussian_states"]["states"]
    cosines = []
    for windows, found in compared.calls:
        for row, extents in enumerate(windows.extents.tolist()):
            ids = windows.ids[windows.offsets[row] : windows.offsets[row + 1]].tolist()
            for number, (_, _, _, k) in enumerate(extents):
                for geometry, u in enumerate(directions):
                    expected = oracle.compute_cosine(u[ids[:k]]) if k > 1 else math.nan
                    assert found[row, number, geometry] == pytest.approx(expected, abs=2e-5, nan_ok=True)
                    cosines.append(float(found[row, number, geometry]))
    assert sorted(frame["cosine"].fillna(9)) == sorted(np.nan_to_num(np.float32(cosines), nan=9))
    assert 0.05 < frame["cosine"].isna().mean() < 0.9


def test_k_and_entropy_are_those_of_each_tokens_own_sets(tmp_path):
    model = tiny.create_model()
    frame, _, _ = complete(tmp_path, model, temperature=1.5)
    logits = read_logits(model, tmp_path, 1.5)
    own = frame[frame["null"] != "gaussian_states"]
    assert set(own["null"]) == {"other_step", "random", "frequency_matched", "norm_matched"}
    assert set(zip(own["prompt"], own["step"], strict=True)) == set(logits)
    sizes = own.groupby(["prompt", "step", "candidates", "geometry", "null"], observed=True).size()
    assert (sizes == 1).all()
    assert len(own) == len(logits) * 6 * 2 * 4
    for row in own[own["null"] == "random"].itertuples():
        (p,) = oracle.compute_softmax(logits[row.prompt, row.step][None])
        ids = oracle.find_nucleus(p, float(row.candidates.removeprefix("top_p_")))
        assert row.k == len(ids)
        assert row.entropy == pytest.approx(oracle.compute_entropy(oracle.compute_q(p[ids])), abs=1e-4)


def test_columns_have_the_types_that_analyses_expect(tmp_path):
    frame, words, _ = complete(tmp_path)
    assert list(frame) == ["prompt", "step", "candidates", "geometry", "null", "draw", "k", "entropy", "cosine"]
    assert [str(frame[name].dtype) for name in ("prompt", "step", "k")] == ["int32"] * 3
    assert [str(frame[name].dtype) for name in ("entropy", "cosine")] == ["float32"] * 2
    assert all(isinstance(frame[name].dtype, pd.CategoricalDtype) for name in ("candidates", "geometry", "null"))
    assert set(frame["geometry"]) == {"raw", "all_but_top_3"}
    assert (frame["draw"] == 0).all()
    assert list(words) == ["id", "text", "class", "norm", "mean_probability"]
    assert list(words["id"]) == list(range(tiny.VOCAB))


def test_the_vocabulary_has_norms_and_mean_probabilities(tmp_path):
    model = tiny.create_model(vocab_size=tiny.VOCAB + 20)
    frame, words, _ = complete(tmp_path, model, temperature=0.8)
    assert len(words) == tiny.VOCAB + 20
    rows = model.get_input_embeddings().weight.detach().double()
    assert words["norm"].to_numpy() == pytest.approx(rows.norm(dim=1).numpy(), rel=1e-6)
    logits = torch.stack(list(read_logits(model, tmp_path, 0.8).values()))
    assert words["mean_probability"].to_numpy() == pytest.approx(logits.double().softmax(-1).mean(0).numpy(), rel=1e-3)
    assert words["mean_probability"].sum() == pytest.approx(1, abs=1e-5)
    assert frame["cosine"].notna().any()


def test_the_candidates_of_another_step_are_its_likeliest_and_of_another_prompt(tmp_path, compared):
    """Also where the other step's own sets are smaller than those they are compared with."""
    model = tiny.create_model()
    complete(tmp_path, model)
    orders = {}
    for (prompt, _), logits in read_logits(model, tmp_path).items():
        (p,) = oracle.compute_softmax(logits[None])
        orders.setdefault(prompt, []).append(sorted(range(len(p)), key=lambda i, p=p: (-p[i], i)))
    frame = nulls.load(tmp_path, null="other_step", candidates="top_p_0.99", geometry="raw")
    windows = compared.calls[3][0]  # after the three that need no other step
    rows = oracle.split(windows.ids, windows.offsets)
    assert len(rows) == len(frame)
    for ids, prompt in zip(rows, frame["prompt"], strict=True):
        drawn = ids.tolist()
        others = [order[: len(drawn)] for other, steps in orders.items() if other != prompt for order in steps]
        assert drawn in others
        assert drawn not in [order[: len(drawn)] for order in orders[prompt]] or len(drawn) < 4


@pytest.mark.parametrize("kind", ["states", "no states"])
def test_a_step_has_more_candidates_than_its_own_sets_if_they_are_needed(tmp_path, kind, compared, monkeypatch):
    if kind == "no states":
        monkeypatch.setattr(second_look.Reading, "_choose_kept", lambda *_: {})
        monkeypatch.setattr(gaussian_states.OutputLayer, "reproduces", lambda *_: False)
        monkeypatch.setattr(scoring.TextForward, "_choose_reading", lambda *_: scoring.ALONE)
    complete(tmp_path)
    found = [windows.ids.tolist() for windows, _ in compared.calls[:4]]
    monkeypatch.undo()
    again = Record(monkeypatch)
    complete(tmp_path / "again")
    assert found == [windows.ids.tolist() for windows, _ in again.calls[:4]]


def test_one_prompt_is_compared_with_its_own_other_steps(tmp_path):
    frame, _, info = complete(tmp_path, texts=TEXTS[:1])
    assert info["texts"] == 1
    assert (frame["null"] == "other_step").sum() == info["tokens"] * 12


def test_donors_are_of_other_groups_and_all_of_them_occur():
    groups = torch.tensor([4] * 3 + [0] * 5 + [9])
    seen = set()
    for seed in range(200):
        donors = null_sets.draw_donors(groups, null_sets.create_generator(seed, "x"))
        assert (groups[donors] != groups).all()
        seen |= {*enumerate(donors.tolist())}
    assert seen == {(i, j) for i in range(9) for j in range(9) if groups[i] != groups[j]}
    alone = null_sets.draw_donors(torch.zeros(6, dtype=torch.long), null_sets.create_generator(0, "x"))
    assert (alone != torch.arange(6)).all()
    assert null_sets.draw_donors(torch.zeros(1, dtype=torch.long), null_sets.create_generator(0, "x")) is None


def test_random_sets_are_uniform_and_without_replacement():
    counts = torch.zeros(20)
    generators = [null_sets.create_generator(0, name) for name in ("random", "permutations")]
    for _ in range(100):
        ids = null_sets.draw_random([3, 20, 1, 5], 20, *generators)
        for row in ids.split([3, 20, 1, 5]):
            assert len(set(row.tolist())) == len(row)
        counts += torch.bincount(torch.cat((ids[:3], ids[23:])), minlength=20)
    assert counts.sum() == 900
    assert ((counts - 45) ** 2 / 45).sum() < 43.8  # the 0.1% quantile of chi-squared with 19 degrees of freedom


@pytest.mark.parametrize("more", [0, 16])
def test_random_sets_do_not_depend_on_which_are_drawn_together(more, monkeypatch):
    """Sets of up to a quarter of the vocabulary, and in a vocabulary of 40 of more: both ways of drawing are used."""
    monkeypatch.setattr(null_sets, "MORE", more)
    for size, lengths in ((4000, [300, 1, 0, 1000, 40]), (40, [9, 30, 10, 2, 40])):
        one, other = ([null_sets.create_generator(1, name) for name in ("a", "b")] for _ in range(2))
        together = null_sets.draw_random(lengths, size, *one).split(lengths)
        apart = [null_sets.draw_random([length], size, *other) for length in lengths]
        for first, second, length in zip(together, apart, lengths, strict=True):
            assert torch.equal(first, second)
            assert len(set(first.tolist())) == length
            assert all(0 <= token < size for token in first.tolist())


@pytest.mark.parametrize("more", [0, 16])
def test_every_place_of_a_random_set_is_uniform(more, monkeypatch):
    """Sets of 4 of 16 tokens. Without spare draws, most sets are taken from permutations."""
    monkeypatch.setattr(null_sets, "MORE", more)
    generators = [null_sets.create_generator(0, name) for name in ("a", "b")]
    drawn = null_sets.draw_random([4] * 8000, 16, *generators).view(8000, 4)
    for place in range(4):
        counts = torch.bincount(drawn[:, place], minlength=16)
        assert ((counts - 500) ** 2 / 500).sum() < 37.7  # the 0.1% quantile with 15 degrees of freedom
    pairs = torch.bincount(drawn[:, 0] * 16 + drawn[:, 3], minlength=256).view(16, 16)
    assert pairs.diagonal().sum() == 0
    expected = 8000 / 240
    other = pairs[~torch.eye(16, dtype=torch.bool)]
    assert ((other - expected) ** 2 / expected).sum() < 312  # the 0.1% quantile with 239 degrees of freedom


@pytest.mark.parametrize("size", [2, 3, 5, 9, 70, 3000])
def test_matched_tokens_are_others_of_nearly_the_same_value_and_differ(size):
    generator = null_sets.create_generator(3, "matched")
    values = (-torch.rand(size, generator=generator, dtype=torch.float64) * 12).exp()
    matching = null_sets.Matching(-values, generator)
    rank = (-values).argsort().argsort()
    lengths = [size, 1, max(1, size // 2), max(1, size // 7)]
    rows = torch.repeat_interleave(torch.arange(4), torch.tensor(lengths))
    ids = torch.cat([torch.randperm(size, generator=generator)[:n] for n in lengths])
    drawn = [matching.draw(ids, rows, generator) for _ in range(20)]
    for found in drawn:
        assert (found != ids).all()
        assert all(len(set(row.tolist())) == len(row) for row in found.split(lengths))
        distance = (rank[found] - rank[ids]).abs()
        end = torch.minimum(rank[ids], size - 1 - rank[ids])
        assert (distance < 2 * null_sets.LEAST_BLOCK + 2 * null_sets.BLOCK_SHARE * end).all()
        assert (distance < null_sets.LARGEST_BLOCK).all()
    if size == 3000:
        ratio = (values[drawn[0]].log() - values[ids].log()).abs()
        assert ratio.median() < 0.1
        assert len({tuple(found.tolist()) for found in drawn}) == 20


def test_a_vocabulary_of_one_token_leaves_no_choice():
    generator = null_sets.create_generator(0, "x")
    matching = null_sets.Matching(torch.ones(1), generator)
    assert matching.draw(torch.zeros(3, dtype=torch.long), torch.arange(3), generator).tolist() == [0, 0, 0]


def test_frequency_matched_tokens_of_a_run_have_nearly_the_frequency_of_the_candidates(tmp_path, compared):
    _, words, _ = complete(tmp_path)
    frequency = torch.tensor(words["mean_probability"].to_numpy()).double()
    drawn = {}
    for place, name in enumerate(("random", "frequency_matched", "norm_matched")):
        drawn[name] = compared.calls[place][0].ids
    own = second_look_ids(tmp_path, compared)
    for name, values in (("frequency_matched", frequency), ("norm_matched", torch.tensor(words["norm"]).double())):
        spread = {null: (values[ids].log() - values[own].log()).abs().median() for null, ids in drawn.items()}
        assert spread[name] < spread["random"] / 4, spread


def second_look_ids(folder, compared):
    """The ids of the measured windows that the first null sets replace, from the texts read by the whole model."""
    frame = nulls.load(folder, null="random", candidates="top_p_0.99", geometry="raw")
    logits = read_logits(tiny.create_model(), folder)
    chosen = torch.stack([logits[place] for place in zip(frame["prompt"], frame["step"], strict=True)])
    sets = [variants.SETS_BY_NAME["top_p_0.99"]]
    windows = find_windows(chosen, compute_full_entropies(chosen).entropy, sets)
    assert len(windows.ids) == len(compared.calls[0][0].ids)
    return windows.ids


# Gaussian states


@pytest.mark.parametrize("number", [5, 40])
def test_drawn_states_have_the_mean_and_the_covariance_of_the_observed_ones(number):
    generator = null_sets.create_generator(0, "x")
    observed = torch.randn(number, 8, generator=generator) * torch.linspace(0.1, 3, 8) + 2
    states = gaussian_states.draw_states(observed, 200_000, generator).double()
    scale = observed.double().std(0)
    assert ((states.mean(0) - observed.double().mean(0)).abs() / scale).max() < 0.02
    difference = torch.cov(states.T) - torch.cov(observed.double().T)
    assert (difference.abs() / scale / scale[:, None]).max() < 0.02


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("top_p", [0.5, 0.9])
def test_the_median_k_of_gaussian_states_is_the_observed_one(tmp_path, kind, top_p, monkeypatch):
    monkeypatch.setattr(second_look, "SECTION", 60)
    texts = [f"{text} {n}" for text in TEXTS for n in range(6)]
    model = tiny.create_model(kind, initializer_range=0.3)
    frame, _, info = complete(tmp_path, model, texts, max_tokens=60, top_p=top_p)
    chosen = frame[(frame["candidates"] == f"top_p_{top_p}") & (frame["geometry"] == "raw")]
    drawn = chosen[chosen["null"] == "gaussian_states"]
    observed = chosen[chosen["null"] == "random"]
    assert len(observed) == info["tokens"]
    assert len(drawn) == info["gaussian_states"]["states"] == -(-len(observed) // second_look.STATE_SHARE)
    assert drawn["k"].median() == pytest.approx(observed["k"].median(), rel=0.15, abs=1)
    assert (drawn["prompt"] == -1).all()
    assert list(drawn["step"]) == list(range(len(drawn)))


@pytest.mark.parametrize("wanted", [1, 2, 17, 399, 401, 6000])
def test_the_factor_is_found_on_both_sides_of_one(wanted):
    factor = gaussian_states.find_factor(lambda factor: 400 / factor, wanted)
    assert 400 / factor == pytest.approx(wanted, rel=0.012)


def test_a_factor_that_is_not_needed_is_one_and_one_that_does_not_exist_is_none():
    assert gaussian_states.find_factor(lambda _: 5, 5) == 1
    assert gaussian_states.find_factor(lambda _: 5, 6) is None
    assert gaussian_states.find_factor(lambda _: 5, 4) is None
    assert gaussian_states.find_factor(lambda factor: max(1, round(3 / factor)), 1) == pytest.approx(2, rel=0.012)


def test_the_search_for_a_factor_goes_at_most_twice_as_far_as_it_must_and_not_where_logits_are_not_finite():
    tried = []

    def compute_median(factor, largest=math.inf):
        tried.append(factor)
        return 400 / factor if factor < largest else 0.0

    assert gaussian_states.find_factor(compute_median, 400 / 17.3) == pytest.approx(17.3, rel=0.012)
    assert max(tried) < 2 * 17.3
    assert gaussian_states.find_factor(lambda factor: compute_median(factor, 20), 400 / 17.3) == pytest.approx(
        17.3, rel=0.012
    )
    assert gaussian_states.find_factor(lambda factor: compute_median(factor, 10), 400 / 17.3) is None
    assert gaussian_states.find_factor(lambda factor: compute_median(factor, 0.9), 400 / 0.3) == pytest.approx(
        0.3, rel=0.012
    )
    assert gaussian_states.find_factor(lambda _: 0.0, 5) is None


def test_gaussian_states_whose_logits_overflow_are_left_out(tmp_path, monkeypatch):
    draw = gaussian_states.draw_states

    def overflow(*given):
        states = draw(*given)
        states[3] = torch.inf
        return states

    *_, whole = complete(tmp_path / "whole", max_tokens=40, skip_check=True)
    monkeypatch.setattr(gaussian_states, "draw_states", overflow)
    monkeypatch.setattr(second_look, "_find_factor", lambda *_: 1.0)
    stored, _, found = complete(tmp_path / "fewer", max_tokens=40, skip_check=True)
    assert found["gaussian_states"]["states"] == whole["gaussian_states"]["states"] - 1
    assert (stored[stored["null"] == "gaussian_states"]["k"] >= 1).all()


@pytest.mark.parametrize("name", ["capped", "cohere", "granite", "gemma2"])
def test_a_model_that_scales_or_caps_its_logits_makes_gaussian_states_with_them(tmp_path, name):
    model = create_capped_model() if name == "capped" else configurations.build_model(name)
    forward = scoring.TextForward(model)
    row = [5, 20, 30, 40, 50]
    with torch.inference_mode():
        ((logits, states),) = forward.compute_states([row], [1])
        assert forward.reading == scoring.ALONE or name != "capped"
        layer = gaussian_states.OutputLayer(forward)
        assert layer.reproduces(logits, states)
        torch.testing.assert_close(layer.compute_logits(states), logits, rtol=0, atol=1e-4)
        assert not torch.allclose(layer.compute_logits(2 * states), logits, atol=0.1)
        assert layer.is_homogeneous(states) == (name in ("cohere", "granite"))
        torch.testing.assert_close(logits, model(input_ids=torch.tensor([row])).logits[0, :-1], rtol=0, atol=1e-4)
    assert not model.base_model._forward_hooks
    *_, info = complete(tmp_path, model, max_tokens=5, skip_check=True)
    assert info["gaussian_states"]["factor"] > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_factor_is_the_same_whether_states_or_their_logits_are_multiplied(tmp_path, dtype, monkeypatch):
    model = tiny.create_model().to(dtype)
    *_, one = complete(tmp_path / "logits", model, max_tokens=40, skip_check=True)
    monkeypatch.setattr(gaussian_states.OutputLayer, "is_homogeneous", lambda *_: False)
    *_, other = complete(tmp_path / "states", model, max_tokens=40, skip_check=True)
    rounding = 0.011 if dtype == torch.bfloat16 else 0  # a step of the search
    assert one["gaussian_states"]["factor"] == pytest.approx(other["gaussian_states"]["factor"], rel=rounding)


def test_a_model_whose_logits_do_not_follow_from_its_last_states_has_no_gaussian_states(tmp_path):
    """A hook stands for one that adds something to its logits that depends on the text."""
    model = tiny.create_model()

    def add(module, args, kwargs, output):
        output.logits = output.logits + torch.linspace(0, 1, output.logits.shape[-1]) * kwargs["input_ids"].sum()

    model.register_forward_hook(add, with_kwargs=True)
    frame, _, info = complete(tmp_path, model, skip_check=True)
    assert info["gaussian_states"] == "left out: the model's logits could not be computed from its last hidden states"
    assert set(frame["null"]) == {"other_step", "random", "frequency_matched", "norm_matched"}
    assert frame["cosine"].notna().any()


def test_a_model_that_reads_texts_anew_for_each_token_is_looked_at_too(tmp_path):
    model = configurations.build_model("prophetnet")
    forward = scoring.TextForward(model)
    with torch.inference_mode():
        pieces = list(forward.compute_states([[20, 30, 40, 50, 60]], [2]))
    assert forward.reading == scoring.PREFIXES
    assert all(states is None or len(states) == len(logits) for logits, states in pieces)
    frame, _, info = complete(tmp_path, model, max_tokens=4)
    assert info["tokens"] > 0
    assert frame["cosine"].notna().any()


# What is looked at


class Folder:
    """Stands for a run whose prompts have so many tokens."""

    def __init__(self, lengths):
        self.lengths, self.asked = lengths, 0

    def load_tokens(self, prompts):
        self.asked += len(prompts)
        return {prompt: list(range(self.lengths[prompt])) for prompt in prompts}


def choose(lengths, seed=0):
    inputs = encoding.Inputs([[7, prompt] for prompt in range(len(lengths))])
    return second_look.choose_texts(inputs, Folder(lengths), seed)


def test_texts_are_chosen_at_random_up_to_a_number_of_tokens():
    texts = choose([10] * 500)
    assert sum(len(text.ids) - text.start for text in texts) == second_look.MOST_TOKENS
    assert len({text.prompt for text in texts}) == len(texts) == 100
    assert all(text.ids == [7, text.prompt, *range(10)] and text.start == 2 and text.step == 0 for text in texts)
    assert texts == choose([10] * 500)
    assert {text.prompt for text in texts} != {text.prompt for text in choose([10] * 500, seed=1)}


def test_of_long_texts_sections_are_looked_at_that_begin_anywhere():
    texts = choose([1000] * 500)
    assert len(texts) == 100
    assert all(len(text.ids) - text.start == second_look.SECTION for text in texts)
    assert all(text.ids == [7, text.prompt, *range(text.step + second_look.SECTION)] for text in texts)
    assert all(text.start == 2 + text.step for text in texts)
    assert len({text.step for text in texts}) > 15
    few = choose([5000] * 4)
    assert [len(text.ids) - text.start for text in few] == [250] * 4


def test_short_and_empty_texts_are_no_trouble():
    assert [len(text.ids) - text.start for text in choose([0, 3, 0, 0, 1])] in ([3, 1], [1, 3])
    assert choose([0] * 300) == []
    assert choose([]) == []
    folder = Folder([30] * 10_000)
    second_look.choose_texts(encoding.Inputs([[7]] * 10_000), folder, 0)
    assert folder.asked < 200  # nothing is read of the others


def test_flat_distributions_are_looked_at_in_fewer_tokens(tmp_path, monkeypatch):
    model = tiny.create_model(initializer_range=0.01)
    whole, _, info = complete(tmp_path / "whole", model)
    monkeypatch.setattr(second_look, "MOST_CANDIDATES", {"cpu": 2000})
    part, words, less = complete(tmp_path / "part", model)
    assert 0 < less["tokens"] <= 2000 / 250 < info["tokens"]
    assert words["mean_probability"].sum() == pytest.approx(1)  # of the tokens that were looked at, and no others
    assert part["k"].max() <= whole["k"].max()


def test_pieces_change_nothing(tmp_path, monkeypatch):
    whole, _, _ = complete(tmp_path / "whole")
    monkeypatch.setattr(second_look, "PIECE_ROWS", 3)
    monkeypatch.setattr(second_look, "PIECE_CANDIDATES", 50)
    pieces, _, _ = complete(tmp_path / "pieces")
    drawn_at_once = ["random"]  # of the others, numbers are drawn for each piece
    for null in (*drawn_at_once, "other_step"):
        one, other = (frame[frame["null"] == null].reset_index(drop=True) for frame in (whole, pieces))
        pd.testing.assert_frame_equal(one, other, atol=1e-5)


# Runs


@pytest.mark.parametrize("continued", [None, CONTINUED], ids=["generate", "score"])
def test_a_repeated_run_has_the_same_files(tmp_path, continued):
    for name in ("one", "other"):
        complete(tmp_path / name, continued=continued)
    for file in FILES:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "other" / file).read_bytes()


def test_another_seed_draws_other_sets_unless_texts_are_scored(tmp_path):
    frames = [complete(tmp_path / str(seed), continued=CONTINUED, seed=seed)[0] for seed in (0, 5)]
    pd.testing.assert_frame_equal(*frames)
    written = [complete(tmp_path / f"w{seed}", seed=seed)[0] for seed in (0, 5)]
    assert not written[0].equals(written[1])


def test_scored_texts_are_looked_at_where_they_were_measured(tmp_path):
    frame, _, _ = complete(tmp_path, continued=CONTINUED)
    table = results.load_run(tmp_path / "measurements.pt", "tiny", "cats")
    chosen = frame[(frame["null"] == "random") & (frame["candidates"] == "top_p_0.9") & (frame["geometry"] == "raw")]
    joined = chosen.merge(table, on=["prompt", "step"], suffixes=("", "_measured"))
    assert len(joined) == len(chosen) == len(table)
    assert (joined["k"] == joined["k_measured"]).all()
    assert joined["entropy"].to_numpy() == pytest.approx(joined["entropy_measured"].to_numpy(), abs=1e-4)


def test_sections_of_written_texts_are_looked_at_where_they_were_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(second_look, "SECTION", 3)
    monkeypatch.setattr(second_look, "MOST_TOKENS", 12)
    frame, _, info = complete(tmp_path)
    table = results.load_run(tmp_path / "measurements.pt", "tiny", "cats")
    chosen = frame[(frame["null"] == "random") & (frame["candidates"] == "top_p_0.9") & (frame["geometry"] == "raw")]
    joined = chosen.merge(table, on=["prompt", "step"], suffixes=("", "_measured"))
    assert (info["texts"], info["tokens"], len(joined)) == (4, 12, 12)
    assert joined["step"].max() > 3
    assert (joined["k"] == joined["k_measured"]).all()
    assert joined["entropy"].to_numpy() == pytest.approx(joined["entropy_measured"].to_numpy(), abs=1e-4)


@pytest.mark.parametrize("place", ["looking", "nulls", "vocabulary", "run.json"])
@pytest.mark.parametrize("continued", [None, CONTINUED], ids=["generate", "score"])
def test_a_run_that_is_killed_around_its_second_look_is_completed_by_the_same_command(
    tmp_path, monkeypatch, place, continued
):
    complete(tmp_path / "straight", continued=continued)

    def stop(*_):
        raise tiny.Stopped

    places = {
        "looking": (second_look, "compare_gaussian_states"),
        "nulls": (run_folder, "write_nulls"),
        "vocabulary": (run_folder, "write_vocabulary"),
        "run.json": (run_folder, "write_json"),
    }
    module, name = places[place]
    original = getattr(module, name)

    def stop_at_the_end(path, value):
        stop() if path.name == "run.json" else original(path, value)

    with monkeypatch.context() as patch:
        patch.setattr(module, name, stop_at_the_end if place == "run.json" else stop)
        with pytest.raises(tiny.Stopped):
            complete(tmp_path / "killed", continued=continued)
    assert not (tmp_path / "killed" / "run.json").exists()
    complete(tmp_path / "killed", continued=continued)
    for file in (*FILES, "measurements.pt"):
        assert (tmp_path / "killed" / file).read_bytes() == (tmp_path / "straight" / file).read_bytes()


def test_new_measurements_are_never_beside_old_null_sets(tmp_path, monkeypatch):
    monkeypatch.setattr(second_look, "look", lambda *_: (None, {}))
    folder = tmp_path / "other"
    settings = {"model_name": "m", "dataset_name": "d", "seed": 0}
    for seed in (0, 1):
        if seed:
            (folder / nulls.NULLS).write_bytes(b"old")
            (folder / vocabulary.VOCABULARY).write_bytes(b"old")
        with run_folder.RunFolder(folder, settings | {"seed": seed}, overwrite=True) as run:
            complete_run(run, tiny.create_model(), tiny.create_tokenizer(), TEXTS, seed=seed, **OPTIONS)
    assert not any((folder / file).exists() for file in FILES)
    assert "second_look" not in results.load_info(folder)


def test_a_small_run_has_files_too(tmp_path):
    frame, words, info = complete(tmp_path / "one", texts=["a"], max_tokens=1)
    assert info["tokens"] == 1
    assert set(frame["null"]) == {"random", "frequency_matched", "norm_matched"}
    assert info["gaussian_states"] == "left out: one token has no covariance"
    assert len(words) == tiny.VOCAB
    certain, _, _ = complete(tmp_path / "certain", temperature=0.001)
    assert (certain.loc[certain["null"] != "gaussian_states", "k"] == 1).all()
    assert certain.loc[certain["k"] == 1, "cosine"].isna().all()


def test_a_run_without_any_token_has_empty_files(tmp_path):
    model = tiny.create_model()
    model.generation_config.eos_token_id = list(range(tiny.VOCAB))
    frame, words, info = complete(tmp_path, model)
    assert (len(frame), info["tokens"]) == (0, 0)
    assert list(frame)[:3] == ["prompt", "step", "candidates"]
    assert (words["mean_probability"] == 0).all()


def test_the_runs_own_set_is_looked_at_in_the_raw_geometry(tmp_path):
    frame, _, _ = complete(tmp_path, top_p=0.85)
    assert set(frame.loc[frame["candidates"] == "top_p_0.85", "geometry"]) == {"raw"}
    assert set(frame.loc[frame["candidates"] == "top_p_0.9", "geometry"]) == {"raw", "all_but_top_3"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("top_p_0.5,top_k_5,raw,whitened", {("top_p_0.5", "raw"), ("top_p_0.9", "raw")}),
        ("top_p_0.9,all_but_top_3", {("top_p_0.9", "all_but_top_3"), ("top_p_0.9", "raw")}),
        ("top_k_5,centred", {("top_p_0.9", "raw")}),
        ("top_p_0.9,raw", {("top_p_0.9", "raw")}),
    ],
)
def test_only_chosen_variants_are_looked_at(text, expected):
    plan = second_look.choose_variants(variants.parse(text), 0.9)
    found = {(plan.sets[one].name, plan.geometries[other].name) for one, other in plan.pairs.tolist()}
    assert found == expected


def test_without_variants_nothing_is_looked_at():
    settings = SimpleNamespace(variants="none", seed=0)
    assert second_look.look(None, None, None, None, settings) == (None, {})


def test_a_device_that_is_too_small_costs_the_second_look_alone(tmp_path, monkeypatch):
    def fail(*_):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(second_look, "observe", fail)
    with pytest.raises(ValueError, match=r"no nulls\.parquet"):
        complete(tmp_path)
    assert results.load_info(tmp_path)["second_look"] == "left out: the device ran out of memory"


def test_with_a_mass_of_one_every_possible_token_is_a_candidate():
    logits = torch.randn(6, 5000, generator=torch.Generator().manual_seed(0))
    logits[:, ::7] = -torch.inf
    whole = variants.CandidateSet("top_p_1", "top_p", 1.0, "", "")
    windows = find_windows(logits, compute_full_entropies(logits).entropy, [whole])
    assert (windows.offsets.diff() == logits.isfinite().sum(1)).all()


def test_tokens_are_read_as_they_are_inside_a_text():
    texts, special = second_look.read_vocabulary(tiny.create_tokenizer(), tiny.VOCAB + 3)
    tokenizer = tiny.create_tokenizer()
    pieces = tokenizer.convert_ids_to_tokens(range(tiny.VOCAB))
    assert texts[pieces.index("Ġthe")] == " the"
    assert texts[pieces.index("ing")] == "ing"
    assert texts[pieces.index("Ġ")] == " "
    assert texts[: len(tiny.SPECIAL)] == tiny.SPECIAL
    assert texts[tiny.VOCAB :] == [""] * 3
    assert [token for token, each in enumerate(special) if each] == [0, 1, 2, *range(tiny.VOCAB, tiny.VOCAB + 3)]


def test_tokens_of_sentencepiece_keep_their_space():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<unk>": 0, "▁": 1, "a": 2, "▁a": 3, "▁the": 4, "the": 5}
    core = Tokenizer(models.BPE(words, [("▁", "a")], unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>")
    assert tokenizer.decode([4]) == "the"
    texts, special = second_look.read_vocabulary(tokenizer, 6)
    assert texts == ["<unk>", " ", "a", " a", " the", "the"]
    assert special == [True] + [False] * 5


def test_texts_of_the_vocabulary_are_those_that_the_tokenizer_decodes():
    tokenizer = tiny.create_tokenizer()
    texts, special = second_look.read_vocabulary(tokenizer, tiny.VOCAB)
    [word] = tokenizer.encode("a", add_special_tokens=False)
    ordinary = [token for token, each in enumerate(special) if not each]
    assert [texts[token] for token in ordinary] == [tokenizer.decode([word, token])[1:] for token in ordinary]


def test_a_tokenizer_that_decodes_in_its_own_way_is_asked():
    class Shouting(type(tiny.create_tokenizer())):
        def _decode(self, *args, **options):
            return super()._decode(*args, **options).upper()

    tokenizer = Shouting(tokenizer_object=tiny.create_tokenizer().backend_tokenizer)
    texts, _ = second_look.read_vocabulary(tokenizer, tiny.VOCAB)
    assert texts[tokenizer.convert_tokens_to_ids("Ġthe")] == " THE"
