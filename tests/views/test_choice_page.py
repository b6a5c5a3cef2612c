"""The page "Does the choice matter?": sentences that say what the tables show, the figure, and the trees of text."""

import numpy as np
import pandas as pd
import pytest
import torch

import tiny
from nucleoscope.stats import choice
from nucleoscope.views import choice_figures, choice_text, fork_trees
from nucleoscope.views.token_text import Reader


def create_rows(model="m", dataset="a", **bounds) -> pd.DataFrame:
    """Coefficients of one run with the divergence; ``bounds`` are r, low and high by statistic."""
    rows = []
    for predictor, (_, given) in choice.PREDICTORS.items():
        for statistic, (r, low, high) in bounds.items():
            name = {"all": choice.ALL, "given": choice.GIVEN, "within": choice.WITHIN}[statistic]
            row = {"Model": model, "Dataset": dataset, "runs": 1, "predictor": predictor, "outcome": "divergence"}
            row |= {"statistic": name, "given": " and ".join(given) if statistic == "given" else "", "r": r}
            row |= {"low": low, "high": high, "null low": -0.2, "null high": 0.2}
            rows.append(row | {"observations": 48, "prompts": 12, "note": ""})
    return pd.DataFrame(rows, columns=choice.list_columns())


def describe(**bounds) -> str:
    return choice_text.describe_answer(create_rows(**bounds))


def test_without_runs_the_page_says_how_to_get_branches():
    text = choice_text.describe_runs({}, {})
    assert "--only=branches" in text
    assert "`branches: true`" in text
    assert choice_text.describe_answer(choice.compute_coefficients({})) == ""
    assert choice_text.describe_means(choice.summarise({})) == ""


def test_a_run_that_cannot_be_read_is_named_with_the_reason():
    text = choice_text.describe_runs({("m", "a"): None}, {"m on b": "'x' is damaged"})
    assert text.startswith("1 run has branches: m on a.")
    assert "Left out: m on b" in text


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((-0.5, -0.7, -0.2), "embeddings: yes.** Given the number of candidates and entropy, the more similar the "),
        ((-0.5, -0.7, -0.2), "less branches diverge: −0.50 [−0.70, −0.20]"),
        ((0.5, 0.2, 0.7), "the further branches diverge: 0.50 [0.20, 0.70]"),
        (
            (0.1, -0.2, 0.4),
            "no relationship found.** Given the number of candidates and entropy, the coefficient is 0.10",
        ),
        ((0.1, np.nan, np.nan), "not known.** Given"),
    ],
)
def test_a_predictor_predicts_only_if_its_interval_does_not_contain_0(given, expected):
    assert expected in describe(given=given, all=(0.1, -0.1, 0.3))


def test_the_answer_says_by_how_many_of_the_other_outcomes_it_holds():
    whole = create_rows(given=(-0.5, -0.7, -0.2))
    same, other = (
        whole.assign(outcome="never meet"),
        create_rows(given=(0.1, -0.2, 0.4)).assign(outcome="different tokens"),
    )
    said = choice_text.describe_answer(pd.concat([whole, same, other], ignore_index=True))
    assert "[−0.70, −0.20]. A relationship is found with 1 of 2 other outcomes (never meet)." in said
    said = choice_text.describe_answer(pd.concat([whole, other], ignore_index=True))
    assert "[−0.70, −0.20]. No relationship is found with any other outcome." in said
    assert "other outcomes" not in choice_text.describe_answer(whole)


@pytest.mark.parametrize(
    ("whole", "within", "expected"),
    [
        ((0.1, -0.1, 0.3), (-0.3, -0.4, -0.2), ", inside the range that remains"),
        ((0.4, -0.1, 0.6), (-0.3, -0.4, -0.2), ", outside the range that remains"),
        ((0.4, -0.1, 0.6), (-0.3, -0.4, -0.2), "the more similar ones diverge less: −0.30"),
        ((0.4, -0.1, 0.6), (0.3, 0.2, 0.4), "the more similar ones diverge further: 0.30"),
        ((0.4, -0.1, 0.6), (0.3, -0.2, 0.4), "of one point, no relationship is found: 0.30"),
    ],
)
def test_the_null_model_and_the_pairs_of_a_point_are_told_as_they_are(whole, within, expected):
    assert expected in describe(given=(0.1, -0.1, 0.3), all=whole, within=within)


def test_the_answer_is_that_of_the_mean_over_runs_if_there_are_several():
    pooled = create_rows("(all)", "(all)", given=(-0.5, -0.7, -0.2)).assign(runs=3)
    rows = pd.concat([create_rows(given=(0.1, -0.2, 0.4)), pooled])
    text = choice_text.describe_answer(rows)
    assert text.startswith("Over 3 runs, by the mean Jensen-Shannon divergence")
    assert text.count(": yes.**") == 3


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [
        ([(0.1, 0.2), (0.1, 0.3)], "in both runs they diverge further."),
        ([(0.1, 0.2), (-0.2, -0.1)], "in 1 of 2 runs they diverge further and in 1 of 2 runs they diverge less."),
        ([(-0.1, 0.2)], "in the only run the interval of the difference contains 0."),
        ([(np.nan, np.nan)], "in the only run the difference has no interval."),
    ],
)
def test_how_far_texts_part_anyway_is_counted_over_runs(bounds, expected):
    rows = [
        {"outcome": "divergence", "difference": 0.1, "difference low": low, "difference high": high}
        for low, high in bounds
    ]
    assert choice_text.describe_means(pd.DataFrame(rows)).endswith(expected)


def test_the_figure_has_a_menu_of_runs_and_outcomes_and_the_null_model_beside_each_coefficient():
    one = create_rows(given=(0.1, -0.2, 0.4), all=(0.4, -0.1, 0.6), within=(0.3, 0.2, 0.4))
    rows = pd.concat([one, one.assign(outcome="never meet")])
    figure = choice_figures.plot_coefficients(rows)
    labels = [button.label for button in figure.layout.updatemenus[0].buttons]
    assert labels == ["m, a: divergence", "m, a: never meet"]
    bars, *points = figure.data
    assert [point.name for point in points] == list(choice.STATISTICS)
    assert [len(point.x) for point in points] == [4, 4, 4]
    assert list(bars.x[:3]) == [-0.2, 0.2, None]
    assert len(bars.x) == 3 * 12
    assert "exchanging outcomes" in figure.layout.meta["alt"]
    assert choice_figures.plot_coefficients(choice.compute_coefficients({})).data == choice_figures.NOTHING


def test_tables_show_values_with_intervals_and_pooled_rows_first():
    pooled = create_rows("(all)", "(all)", given=(-0.5, -0.7, -0.2))
    table = choice_figures.format_coefficients(pd.concat([create_rows(given=(0.1, -0.2, 0.4)), pooled]))
    assert table.index[0] == ("(all)", "(all)")
    assert table["coefficient"].iloc[0] == "−0.50 [−0.70, −0.20]"
    assert table["outcomes exchanged"].iloc[0] == "[−0.20, 0.20]"
    assert len(choice_figures.format_means(choice.summarise({}))) == 0


# Trees


def create_rows_of_branches(tokenizer, *texts: str) -> pd.DataFrame:
    tokens = [tokenizer(text)["input_ids"] for text in texts]
    return pd.DataFrame({"id": 5, "share": 0.5, "tokens": tokens, "ended": [not each for each in tokens]})


def test_what_continuations_begin_with_in_common_is_shown_once():
    tokenizer = tiny.create_tokenizer(bos=False)
    rows = create_rows_of_branches(tokenizer, " the cat is on", " the cat was in", " a dog")
    html = fork_trees._render_candidate(rows, Reader(tokenizer), taken=5)
    assert html.count("the cat") == 1
    assert html.count("<ul>") == html.count("</ul>") == 2
    assert "0.50, taken" in html
    assert "taken" not in fork_trees._render_candidate(rows, Reader(tokenizer), taken=6)


def test_equal_continuations_are_counted_and_ends_are_marked():
    tokenizer = tiny.create_tokenizer(bos=False)
    html = fork_trees._render_candidate(create_rows_of_branches(tokenizer, " the", " the", ""), Reader(tokenizer), 0)
    assert html.count("the</span>") == 1
    assert "(2 times)" in html
    assert "(the text ends)" in html


def test_text_of_a_model_is_escaped():
    tokenizer = tiny.create_tokenizer(bos=False)
    html = fork_trees._render_candidate(create_rows_of_branches(tokenizer, "<script>"), Reader(tokenizer), 0)
    assert "<script>" not in html
    record = {"prompt": "<b>", "tokens": torch.tensor(tokenizer("<i> x")["input_ids"])}
    before = fork_trees._render_before(record, 2, Reader(tokenizer))
    assert "<b>" not in before
    assert "<i>" not in before


@pytest.mark.parametrize(
    ("rows", "expected"), [([[1, 2], [1, 3]], 1), ([[1, 2], [1, 2]], 2), ([[], [1]], 0), ([[1], [1, 2]], 1), ([[4]], 1)]
)
def test_the_common_beginning_ends_where_tokens_differ_or_one_ends(rows, expected):
    assert fork_trees.count_common(rows) == expected
