"""The rules that choose prompts and tokens, on made tables."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from nucleoscope.views import examples
from synthetic import create_table, draw_full


def create_record(entropies, cosines, k=2) -> dict:
    """A record with what a rule may see."""
    sizes = np.broadcast_to(k, len(entropies))
    nuclei = [range(size) for size in sizes]
    return {"prompt": "", "entropies": list(entropies), "cosines": list(cosines), "top_p_tokens": nuclei}


def choose(records: list[dict]) -> list[examples.Pick]:
    return examples.choose_prompts(examples.tabulate(records, "", ""))


def create_ordered(r: float, n: int = 30) -> dict:
    """A record whose coefficient is near ``r``, and exactly -1, 0 or 1 for these."""
    x = np.arange(n, dtype=float)
    return create_record(
        x, r * x + (1 - abs(r)) * np.random.default_rng(n).permutation(n) if r else np.abs(x - x.mean())
    )


def test_the_median_the_most_and_the_least_correlated_prompt():
    records = [create_ordered(r) for r in (-0.9, -0.5, 0.0, -0.7, 1.0)]
    each = examples.correlate_within_prompts(examples.tabulate(records, "", ""))["r"]
    found = choose(records)
    assert [pick.prompt for pick in found] == [1, 4, 2]
    assert [pick.r for pick in found] == pytest.approx([each.median(), 1, 0], abs=1e-12)
    assert [pick.sentence.split("**")[1] for pick in found] == [
        "The median prompt",
        "The most correlated prompt",
        "The least correlated prompt",
    ]
    assert found[1].sentence.endswith("it has the coefficient furthest from 0, 1.00 over 30 tokens.")
    assert "prompt 2: of the 5 prompts with at least 15 tokens" in found[2].sentence
    assert found[2].sentence.endswith("nearest to 0, 0.00 over 30 tokens.")


def test_a_negative_coefficient_has_a_real_minus():
    assert "\N{MINUS SIGN}1.00 over" in choose([create_ordered(-1.0)])[0].sentence


def test_of_an_even_number_the_median_is_the_lower_one():
    assert choose([create_ordered(r) for r in (1.0, -1.0, 0.5, 0.0)])[0].prompt == 3


def test_equal_coefficients_go_to_the_first_prompt_and_none_is_taken_twice():
    found = choose([create_ordered(1.0)] * 5)
    assert [pick.prompt for pick in found] == [2, 0, 1]  # of five in order, the third is in the middle
    assert "among those not shown yet" not in found[1].sentence
    assert "among those not shown yet" in found[2].sentence


@pytest.mark.parametrize("count", [1, 2])
def test_with_fewer_prompts_there_are_fewer_picks(count):
    assert [pick.prompt for pick in choose([create_ordered(0.5), create_ordered(-0.9)][:count])] == [0, 1][:count][::-1]


def test_one_or_two_prompts_are_shown_without_calling_them_the_median_or_the_most_correlated():
    (only,) = choose([create_ordered(0.5)])
    assert only.sentence == (
        "**The only prompt to choose from**, prompt 0: no other has a coefficient over at least 15 tokens with more "
        f"than one candidate. It is {only.r:.2f} over 30 tokens."
    )
    two = choose([create_ordered(0.5), create_ordered(-0.9)])
    assert [pick.sentence.partition(" with a coefficient over ")[0] for pick in two] == [
        f"**Prompt {pick.prompt}**, one of the only two prompts" for pick in two
    ]
    assert not any("median" in pick.sentence or "correlated" in pick.sentence for pick in two)


def test_a_short_prompt_in_perfect_order_does_not_take_part():
    assert {
        pick.prompt for pick in choose([create_ordered(0.5, 40), create_ordered(1.0, 19), create_ordered(0.4, 20)])
    } == {0, 2}


def test_where_all_texts_are_short_half_of_the_longest_is_enough():
    found = choose([create_ordered(0.5, 10), create_ordered(1.0, 4), create_ordered(1.0, 5)])
    assert {pick.prompt for pick in found} == {0, 2}
    assert "at least 5 tokens" in found[0].sentence


def test_a_long_prompt_without_a_coefficient_does_not_raise_the_bound():
    (only,) = choose([create_record(np.arange(40.0), [0.5] * 40), create_ordered(-0.5, 10)])
    assert only.prompt == 1
    assert "over at least 5 tokens" in only.sentence


def test_tokens_without_a_choice_do_not_count():
    x = np.arange(30.0)
    records = [create_record(x, np.where(x < 10, x, -x), np.where(x < 10, 1, 2)), create_ordered(1.0)]
    each = examples.correlate_within_prompts(examples.tabulate(records, "", ""))
    assert each.loc[0].tolist() == pytest.approx([-1, 20])


def test_an_undefined_coefficient_does_not_take_part():
    flat, bad = create_record(np.arange(30.0), [0.5] * 30), create_record([np.nan] * 30, np.arange(30.0))
    assert [pick.prompt for pick in choose([flat, bad, create_ordered(0.5)])] == [2]


def test_without_any_coefficient_the_first_text_stands_alone():
    (only,) = choose([create_record([], []), create_record([1.0], [1.0], 1), create_record([2.0], [1.0], 1)])
    assert only.prompt == 1
    assert np.isnan(only.r)
    assert only.sentence.startswith("**The first prompt with a text**")
    assert choose([create_record([], [])]) == []
    assert choose([]) == []


def test_within_is_scipys_coefficient():
    tokens = draw_full(3)
    each = examples.correlate_within_prompts(tokens)
    for prompt, group in tokens[tokens["k"] > 1].groupby("prompt"):
        assert each.loc[prompt, "r"] == pytest.approx(stats.spearmanr(group["entropy"], group["cosine"])[0])


# Corners


def draw_plane(seed: int = 0, prompts: int = 40, length: int = 30, **names) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    n = prompts * length
    made = create_table(
        np.repeat(np.arange(prompts), length),
        rng.uniform(0, 3, n),
        rng.uniform(-1, 1, n),
        rng.integers(1, 400, n),
        **names,
    )
    return made.assign(token=rng.integers(0, 99, n))


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.integers(0, 1000))
def test_tokens_at_the_corners_keep_the_rules(seed):
    tables = {("m", "a"): draw_plane(seed, dataset="a"), ("m", "b"): draw_plane(seed + 1, dataset="b")}
    found = examples.find_corners(tables)
    assert found["corner"].tolist() == [name for name in examples.CORNERS for _ in range(3)]
    assert not found.duplicated(["dataset", "prompt"]).any()
    assert found["k"].between(2, examples.READABLE).all()
    assert (found["step"] >= examples.BEFORE).all()
    for name, (up, right) in examples.CORNERS.items():
        part = found[found["corner"] == name]
        for rank, high in (("entropy_rank", up), ("cosine_rank", right)):
            assert (part[rank] >= 2 / 3 if high else part[rank] <= 1 / 3).all()


def test_a_token_in_the_middle_of_either_quantity_belongs_to_no_corner():
    low, middle, high = np.split(np.arange(120.0), 3)
    made = create_table(
        np.arange(120), np.concatenate([low, middle, high]), np.concatenate([middle, low, high])
    ).assign(step=9, token=1)
    tables = {("model", "data"): made}
    assert set(examples.find_corners(tables)["corner"]) == {"high entropy, high cosine similarity"}
    assert examples.list_empty_corners(tables) == list(examples.CORNERS)[1:]
    assert examples.list_empty_corners({("model", "data"): made.assign(step=1)}) == list(examples.CORNERS)


def test_the_limit_of_a_corner_is_part_of_it():
    values = np.arange(4.0)  # ranks 0, 1/3, 2/3 and 1
    made = create_table(np.arange(4), values, values).assign(step=9, token=1)
    assert sorted(examples.find_corners({("model", "data"): made})["prompt"]) == [0, 1, 2, 3]


def test_the_nearest_token_by_the_larger_distance_comes_first():
    entropy = np.linspace(0, 1, 101)
    cosine = np.full(101, 0.5) + 1e-6 * np.arange(101)  # ranks as entropy's
    made = create_table(np.arange(101), entropy, cosine, token=0).assign(step=9, token=1)
    found = examples.find_corners({("model", "data"): made})
    high, low = (found[found["corner"] == f"{end} entropy, {end} cosine similarity"] for end in ("high", "low"))
    assert high["prompt"].tolist() == [100, 99, 98]
    assert low["prompt"].tolist() == [0, 1, 2]
    assert high["entropy_rank"].tolist() == pytest.approx([1, 0.99, 0.98])
    assert found["corner"].nunique() == 2  # the token in the middle, too, is nearer to these


def test_equal_distances_go_to_the_smaller_sum_then_to_the_first():
    ranks = np.array([[5, 5], [5, 4], [4, 5], *([value, value] for value in range(4))], dtype=float)
    made = create_table(np.arange(7), ranks[:, 0], ranks[:, 1]).assign(step=9, token=1)
    assert examples.find_corners({("model", "data"): made})["prompt"].tolist()[:3] == [0, 1, 2]


def test_ranks_are_taken_among_all_tokens_with_a_choice_not_only_those_that_may_be_shown():
    values = [1.0, 2, 3, 4, 5]
    made = create_table(np.arange(5), values, values, k=[2, 2, 999, 2, 1]).assign(step=9, token=1)
    found = examples.find_corners({("model", "data"): made}).drop_duplicates("prompt").set_index("prompt")
    assert found["entropy_rank"].to_dict() == pytest.approx({3: 1.0, 0: 0.0, 1: 1 / 3})


def test_few_tokens_give_few_rows_and_none_give_none():
    lone = create_table([0], [1.0], [0.5]).assign(step=9, token=1)
    assert len(examples.find_corners({("model", "data"): lone})) == 1
    assert examples.find_corners({("model", "data"): lone.assign(step=1)}).empty
    assert examples.find_corners({("model", "data"): lone.assign(k=1)}).empty
    assert examples.find_corners({("model", "data"): lone.assign(token=-1)}).empty  # the study's files know no tokens


def test_a_token_of_a_corner_in_a_line():
    lone = create_table([4], [1.0], [-0.5]).assign(step=9, token=1)
    (row,) = examples.find_corners({("model", "data"): lone}).itertuples()
    assert examples.format_numbers(row) == (
        "**data**, prompt 4, token 9 (both counted from 0): entropy 1.00 nats (percentile 0), "
        "cosine similarity \N{MINUS SIGN}0.50 (percentile 0), 2 candidates."
    )


def test_a_data_sets_name_is_no_markup():
    lone = create_table([4], [1.0], [-0.5], dataset="<b>*").assign(step=9, token=1)
    (row,) = examples.find_corners({("model", "<b>*"): lone}).itertuples()
    assert examples.format_numbers(row).startswith("**&#60;b&#62;&#42;**, prompt")


def test_the_corners_take_turns_so_that_none_goes_without():
    rng = np.random.default_rng(0)
    made = create_table(np.repeat(np.arange(4), 50), rng.uniform(0, 3, 200), rng.uniform(-1, 1, 200))
    found = examples.find_corners({("model", "data"): made.assign(step=9, token=1)})
    assert found["corner"].tolist() == list(examples.CORNERS)
    assert sorted(found["prompt"]) == [0, 1, 2, 3]


def test_how_far_the_corners_reach():
    made = create_table(np.arange(6), np.arange(6.0), np.arange(6.0), k=[1, 2, 2, 2, 2, 999]).assign(step=9, token=1)
    total, left_out, highest = examples.compute_reach({("model", "data"): made})
    assert (total, left_out, highest) == (5, pytest.approx(0.2), pytest.approx(0.75))
    assert examples.find_corners({("model", "data"): made})["entropy_rank"].max() == pytest.approx(highest)


def test_without_tables_there_are_no_corners():
    assert examples.find_corners({}).empty
    total, *shares = examples.compute_reach({})
    assert total == 0
    assert np.isnan(shares).all()


def choose_typical(table):
    return dict(examples.list_typical({("model", "data"): table})).get(("model", "data"))


def test_a_typical_token_is_the_nearest_to_both_medians_of_those_with_few_candidates():
    values = np.arange(11.0)
    cosine = values[[0, 1, 2, 3, 5, 4, 6, 7, 8, 9, 10]]
    made = create_table(np.arange(11), values, cosine, k=5).assign(step=9, token=1)
    assert choose_typical(made)["prompt"] == 4  # 5 is as near: the first of them
    made.loc[[4, 5], "k"] = [3, 9]
    assert choose_typical(made)["prompt"] == 6
    texts = [",", " 123", " to", " word", *["."] * 7]
    assert choose_typical(made.assign(text=texts))["prompt"] == 3
    assert choose_typical(made.assign(text=None))["prompt"] == 6
    for change in ({"k": 9}, {"step": 7}, {"token": -1}):
        assert choose_typical(made.assign(**change)) is None


def test_a_token_in_a_whole_sentence_is_preferred_to_a_nearer_one():
    values = np.arange(9.0)
    made = create_table([0] * 9, values, values, k=5).assign(token=1, step=np.arange(9) + 8)
    begin = pd.concat([made.iloc[[0]].assign(step=step, k=1, cosine=np.nan) for step in range(8)])
    texts = [*[" many"] * 8, "words", " that", " end", " here.", " These", " words", " are", " cut", " off"]
    table = pd.concat([begin, made], ignore_index=True).assign(text=texts)
    chosen = choose_typical(table)
    assert (chosen["text"], chosen["step"]) == (" here.", 11)
    cut = table.assign(text=[text.replace(".", "") for text in texts])
    assert choose_typical(cut)["text"] == " These"  # the nearest


@pytest.mark.parametrize(
    ("texts", "step", "expected"),
    [
        (["One", " two", "."], 1, True),
        (["One", " two", "!\n", "Three"], 1, True),
        (["One", " two", "\n", "Three"], 1, False),
        (["One", ".", " Two", " three"], 3, False),
        (["One", "\n", " Two", "."], 2, True),
        ([*["word"] * 40, "."], 39, False),
        (["One", None, "."], 0, False),
        (["It", " is", " 0", ".", "5"], 1, False),
        (["It", " is", " 0", ".", "5", "."], 1, True),
        (["In", " the", " U", ".", "S", ".", " it"], 1, True),
        (["In", " the", " U", ".", "S", ". it"], 1, False),
        ([], 0, False),
    ],
)
def test_a_sentence_is_whole_if_it_begins_and_ends(texts, step, expected):
    assert examples.has_whole_sentence(texts, step) is expected


@pytest.mark.parametrize(
    ("texts", "step", "expected"),
    [
        (["One", " two"], 0, True),
        (["One", " two", "."], 0, False),
        (["One", ".", " Two"], 0, False),
        (["One", " two\n"], 0, False),
        (["word"] * 40, 5, False),
        (["One", None], 0, False),
        ([], 0, False),
    ],
)
def test_a_sentence_has_no_end_if_its_text_ends_before_it(texts, step, expected):
    assert examples.has_no_end(texts, step) is expected


@pytest.mark.parametrize(
    ("text", "step", "expected"),
    [
        (["One", ".", " Two", " words", ".", " Three"], 3, (2, 5)),
        (["One", ".", " Two", " words", ".", " Three"], 4, (2, 5)),
        (["One", ".", " Two", " words", ".", " Three"], 5, (5, 6)),
        (["a", " line\n", "next", " line", " ends", "\n\n", "c"], 3, (2, 6)),
        (["He", " said", ' "go', '."', " She", " went"], 4, (4, 6)),
        (["3", ".1", "4", " is", " pi"], 2, (0, 5)),
        (["Take", " ", "0", ".", "5", " m", ".", " Then"], 1, (0, 7)),
        (["See", " a", ".", "py", ".", " Then"], 4, (0, 5)),
        (["Yes", "!", "No", "?", "Then"], 2, (2, 4)),
        (["\u597d", "\u3002", "\u597d"], 2, (2, 3)),
        (list("abcdefgh"), 4, (2, 7)),
    ],
)
def test_a_sentence_ends_at_a_stop_or_a_line(text, step, expected):
    assert examples.find_sentence(text, step, around=2 if text[0] == "a" and len(text) == 8 else 30) == expected


def test_each_run_has_its_own_typical_token_and_the_nearest_of_all_comes_first():
    tables = {}
    for name, shift in (("far", 30.0), ("near", 0.0)):
        made = create_table(np.arange(9), np.arange(9.0) + shift, np.arange(9.0) - shift, k=5, model="plain")
        tables[f"plain@seed={name}", "data"] = made.assign(step=9, token=1)
    tables["alone", "data"] = create_table([0], [1.0], [1.0], k=99).assign(step=9, token=1)
    found = list(examples.list_typical(tables))
    assert sorted(key for key, _ in found) == [("plain@seed=far", "data"), ("plain@seed=near", "data")]
    assert list(examples.list_typical({})) == []
