"""The page "What it is made of": its figures show the tables' numbers, its sentences what they say, whatever it is."""

import numpy as np
import pandas as pd
import pytest

from nucleoscope.stats import explained, null_models, specification
from nucleoscope.variants import CANDIDATE_SETS
from nucleoscope.views import made_of_figures, made_of_text, tables
from nucleoscope.views.token_text import escape_name

TOP_P = [each.name for each in CANDIDATE_SETS if each.rule == "top_p"]
POOLED = specification.POOLED


def create_curve(values: dict[str, list[float]], model="m", dataset="d", margin=0.05, statistic="Spearman"):
    """Specifications of the top_p sets: {geometry: coefficients in order of top_p}; NaN is a missing one."""
    rows = []
    for geometry, coefficients in values.items():
        for name, r in zip(TOP_P, coefficients, strict=False):
            low, high = r - margin, r + margin
            row = {"Model": model, "Dataset": dataset, "runs": 1 if model != POOLED else 2, "candidates": name}
            row |= {"geometry": geometry, "statistic": statistic, "tokens": 10, "r": r, "low": low, "high": high}
            row |= {"sign": specification.classify(low, high), "same_k": r / 2}
            row |= {"same_k low": r / 2 - 0.01, "same_k high": r / 2 + 0.01}
            rows.append(row | {"difference": r / 2, "difference low": r / 2 - 0.01, "difference high": r / 2 + 0.01})
    return pd.DataFrame(rows, columns=specification.list_columns())


def create_nulls(observed, nulls, margin=0.05, geometry="raw"):
    """{null: (r, difference's low, high)}."""
    rows = []
    for null, (r, low, high) in {"observed": (observed, np.nan, np.nan), **nulls}.items():
        row = dict.fromkeys(null_models.list_columns(), np.nan)
        row |= {"Model": "m", "Dataset": "d", "runs": 1, "candidates": "top_p_0.9", "geometry": geometry, "null": null}
        for name in null_models.STATISTICS:
            row |= {f"{name} r": r, f"{name} low": r - margin, f"{name} high": r + margin, f"{name} observed": observed}
            row |= {f"{name} ratio": r / observed, f"{name} difference": observed - r}
            row |= {f"{name} difference low": low, f"{name} difference high": high}
        rows.append(row)
    return pd.DataFrame(rows, columns=null_models.list_columns())


def create_ladder(added, models=("m",)):
    """{model: (added, low, high)} of entropy to k and kind."""
    rows = []
    for model, bounds in zip(models, added, strict=True):
        for place, name in enumerate(explained.LADDER):
            row = {"Model": model, "Dataset": "d", "geometry": "raw", "predictors": name, "R2": 0.2 * place}
            row |= {"R2 low": 0.2 * place - 0.05, "R2 high": 0.2 * place + 0.05, "interval": "", "note": ""}
            rows.append(row | dict(zip(("added", "added low", "added high"), bounds, strict=True)))
    return pd.DataFrame(rows, columns=explained.list_columns())


def create_tests(difference, counts=(3, 2, 1), model="m"):
    rows = []
    for null in specification.EXCHANGES:
        row = {"Model": model, "Dataset": "d", "runs": 1, "specifications": sum(counts), "null": null}
        row |= dict(zip(("negative", "positive", "undecided"), counts, strict=True)) | {"dominant sign": "negative"}
        row |= {"median": -0.2, "share": 0.5, "median null": -0.1, "median null low": -0.15, "median null high": -0.05}
        row["reference"] = 0.0 if null == specification.ALL else -0.1
        row |= dict(zip(("difference", "difference low", "difference high"), difference, strict=True))
        rows.append(row | {"median p": 0.02})
    return pd.DataFrame(rows, columns=specification.list_test_columns())


# Sentences


def test_the_sentence_on_top_p_names_every_sign():
    falls = [-0.4, -0.4, -0.3, -0.3, -0.02, 0.3]
    text = made_of_text.describe_over_top_p(create_curve({"raw": falls, "centred": [-0.5] * 6}))
    assert text.startswith(
        "For m on d, the sign of Spearman's correlation between entropy and cosine similarity depends on top_p in "
        "`raw`."
    )
    assert "`raw`: negative at 0.5, 0.7, 0.8 and 0.9, undecided at 0.95, positive at 0.99; " in text
    assert "from −0.40 [−0.45, −0.35] at 0.5 to 0.30 [0.25, 0.35] at 0.99" in text
    assert "`centred`: negative throughout; from −0.50" in text


def test_the_sentence_on_top_p_says_where_there_is_no_interval():
    rows = create_curve({"raw": [-0.3] * 6, "centred": [-0.5] * 6})
    few = (rows["geometry"] == "centred") | (rows["candidates"] == "top_p_0.5")
    text = made_of_text.describe_over_top_p(rows.assign(sign=rows["sign"].mask(few, "")))
    assert "`raw`: negative at 0.7, 0.8, 0.9, 0.95 and 0.99, without an interval at 0.5; " in text
    assert "`centred`: without an interval throughout; " in text


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"raw": [0.3] * 6}, "similarity is positive for every top_p in every geometry."),
        ({"raw": [-0.3] * 6, "centred": [-0.2] * 6}, "similarity is negative for every top_p in every geometry."),
        (
            {"raw": [-0.3] * 6, "centred": [0.2] * 6},
            "similarity depends on the geometry, but within each geometry not on top_p",
        ),
        ({"raw": [-0.3, 0.0, 0, 0, 0, 0]}, "similarity is negative wherever it is clear."),
        ({"raw": [0.01] * 6}, "similarity is not clear for any top_p in any geometry."),
        ({"raw": [np.nan] * 6}, "No coefficient could be computed for any top_p."),
        ({}, "No coefficient could be computed for any top_p."),
    ],
)
def test_the_sentence_on_top_p_is_right_whatever_the_signs(values, words):
    assert words in made_of_text.describe_over_top_p(create_curve(values))


def test_a_sentence_speaks_of_the_mean_over_runs_if_there_is_one():
    parts = [create_curve({"raw": [0.3] * 6}), create_curve({"raw": [-0.3] * 6}, POOLED, POOLED)]
    both = pd.concat(parts, ignore_index=True)
    assert made_of_text.describe_over_top_p(both).startswith("Over 2 runs, ")
    assert "negative" in made_of_text.describe_over_top_p(both)
    assert "(mean over 2 runs; " in made_of_text.describe_answer(both)  # of which only one is in the table


@pytest.mark.parametrize(
    ("models", "datasets", "words"),
    [
        ("a", "xyz", "(mean over 3 runs: a on x, y and z; "),
        ("ab", "xy", "(mean over 4 runs: a and b on x and y; "),
        ("abcd", "x", "(mean over 4 runs: 4 models on 1 data set; "),
    ],
)
def test_a_mean_names_its_models_and_data_sets_or_counts_them(models, datasets, words):
    parts = [create_curve({"raw": [0.3] * 6}, model, dataset) for model in models for dataset in datasets]
    pooled = create_curve({"raw": [0.3] * 6}, POOLED, POOLED).assign(runs=len(parts))
    assert words in made_of_text.describe_answer(pd.concat([pooled, *parts], ignore_index=True))


def test_a_coefficient_without_an_interval_is_not_one_of_the_opposite_sign():
    curve = create_curve({"raw": [0.2, -0.3, -0.3, 0, -0.3, 0.3]})
    curve.loc[curve["r"] != 0, ["low", "high"]] = np.nan
    curve["sign"] = [specification.classify(*bounds) for bounds in curve[["low", "high"]].to_numpy()]
    assert "But its sign" not in made_of_text.describe_answer(curve)


def test_a_mean_over_a_grid_with_a_gap_counts_its_runs():
    parts = [create_curve({"raw": [0.3] * 6}, *names) for names in (("m", "math"), ("m", "xsum"), ("n", "xsum"))]
    pooled = create_curve({"raw": [0.3] * 6}, POOLED, POOLED).assign(runs=3)
    said = made_of_text.describe_answer(pd.concat([pooled, *parts], ignore_index=True))
    assert "(mean over 3 runs: 2 models on 2 data sets; " in said


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ({"raw": [-0.3, 0.3] * 3}, "In the figure, the coefficient for `raw` changes sign along the curve."),
        (
            {"raw": [-0.3] * 5 + [0.3], "all_but_top_3": [-0.5] * 6},
            "for `raw` changes sign along the curve and the coefficient for `all_but_top_3` is negative at every "
            "point.",
        ),
        ({"raw": [0.3, 0.01, 0.3, 0, 0, 0]}, "the coefficient for `raw` is positive wherever its sign is clear."),
        (
            {"raw": [-0.3, 0.01] * 3, "all_but_top_3": [-0.3, 0.0] * 3},
            "the coefficients for `raw` and `all_but_top_3` are negative wherever their sign is clear.",
        ),
        ({"raw": [0.0] * 6}, "the coefficient for `raw` has no clear sign at any point."),
        (
            {"whitened": [0.3] * 6},
            "No coefficient could be computed for any point of the figure.",
        ),  # in none of its lines
    ],
)
def test_the_words_below_the_figure_say_whether_each_line_changes_sign(lines, words):
    said = made_of_text.explain_figure(create_curve(lines), made_of_figures.FRONT)
    assert said.startswith(f"{made_of_text.EXPLAINED} ")
    assert said.endswith(words)


def test_the_words_below_the_figure_are_about_the_mean_that_its_menu_shows_first():
    parts = [create_curve({"raw": [-0.3] * 5 + [0.3]}, POOLED, POOLED), create_curve({"raw": [-0.3] * 6})]
    said = made_of_text.explain_figure(pd.concat(parts, ignore_index=True), made_of_figures.FRONT)
    changes = "the coefficient for `raw` changes sign along the curve; single runs can differ."
    assert said.endswith(f"In the mean over the runs, {changes}")


def test_points_without_an_interval_or_a_band_are_explained():
    curve = create_curve({"raw": [-0.3] * 6, "whitened": [0.1] * 6})
    curve.loc[[0, 2], ["low", "high", "same_k low", "same_k high"]] = np.nan
    curve.loc[3, ["same_k low", "same_k high"]] = np.nan
    curve.loc[curve["geometry"] == "whitened", "low"] = np.nan  # which is not in the figure
    said = made_of_text.explain_figure(curve, made_of_figures.FRONT)
    first, _, third, fourth = [each.value for each in CANDIDATE_SETS if each.rule == "top_p"][:4]
    assert said.endswith(
        f"There are too few tokens or prompts for an interval or a band at top_p {first:g} and {third:g} and for a "
        f"band at top_p {fourth:g}."
    )


def test_the_answer_is_less_more_or_neither_or_missing():
    def answer(r):
        return made_of_text.describe_answer(create_curve({"raw": [0, 0, 0, r, 0, 0]}))

    less = "**In this run, candidates are *less* similar when the model is less sure: "
    assert f"{less}Spearman's coefficient is −0.30 [−0.35, −0.25]**" in answer(-0.3)
    assert "are *more* similar" in answer(0.3)
    assert "are neither clearly more nor clearly less similar" in answer(0.01)
    assert "(m on d; candidates are the likeliest tokens that make up 95% of the probability; " in answer(np.nan)
    assert made_of_text.describe_answer(create_curve({})).startswith("There is no answer yet")


def test_the_answer_is_that_of_the_nucleus_that_the_runs_had():
    def answer(curve, usual=0.9):
        return made_of_text.describe_answer(curve, usual)

    curve = create_curve({"raw": [0.5, 0.7, 0.8, 0.9, 0.95, 0.99]})
    assert "is 0.80 [0.75, 0.85]** (m on d; candidates are the likeliest tokens that make up 80% of" in answer(
        curve, 0.8
    )
    assert "is 0.90 [" in answer(curve)
    wide, narrow = curve.assign(top_p=0.95), curve.assign(top_p=0.5)
    said = answer(pd.concat([wide, narrow], ignore_index=True)).splitlines()
    assert len(said) == 2
    for line, top_p in zip(said, (0.5, 0.95), strict=True):  # one number per run, with its settings before it
        assert line.startswith(f"* With top&#95;p {top_p}: **candidates are *more* similar")
        assert f"coefficient is {top_p:.2f} [" in line
        assert f"the likeliest tokens that make up {100 * top_p:.0f}% of the probability" in line


def test_the_front_page_speaks_of_exchanged_sets_of_the_same_nucleus():
    table = create_nulls(-0.4, {"same_k": (-0.5, 0.05, 0.15)})
    other = create_nulls(-0.2, {"same_k": (-0.1, -0.2, 0.3)}).assign(candidates="top_p_0.5")
    both = pd.concat([table, other], ignore_index=True)
    assert "is −0.50 instead of −0.40" in made_of_text.describe_same_k(both)
    assert "is −0.10 instead of −0.20" in made_of_text.describe_same_k(both, usual=0.5)
    assert "`top_p_0.5` in `raw`" in made_of_text.describe_nulls(both, usual=0.6)
    assert list(made_of_figures.plot_nulls(both, ["Spearman"], usual=0.5).data[0].x) == [-0.2, -0.1]


def test_a_sentence_after_the_values_of_settings_begins_with_a_small_letter():
    assert tables.begin_sentence("with k 2", "Spearman's coefficient is 0.") == "With k 2: Spearman's coefficient is 0."
    assert tables.begin_sentence("with k 2", "No run has one.") == "With k 2: no run has one."
    assert tables.begin_sentence("", "No run has one.") == "No run has one."


def test_what_is_the_same_for_several_values_of_settings_is_said_once():
    none = [create_ladder([], []).reindex(range(1)).assign(Model="m", Dataset="d", top_p=p) for p in (0.5, 0.9)]
    said = made_of_text.describe_ladder(pd.concat(none))
    assert said == "No run has enough tokens and prompts to say what explains cosine similarity."
    assert made_of_text.describe_same_k(create_nulls(-0.4, {}).assign(top_p=0.5)).startswith("No coefficient")
    some = create_ladder([(0.04, 0.03, 0.05)], ["m"]).assign(Dataset="d", top_p=0.3)
    three = made_of_text.describe_ladder(pd.concat([*none, some]))
    assert three.startswith("With top&#95;p 0.3: on held-out prompts,")
    assert three.endswith("With top&#95;p 0.5 and with top&#95;p 0.9: " + said[0].lower() + said[1:])


def test_the_source_of_a_number_does_not_repeat_the_settings_before_it():
    parts = [create_curve({"raw": [-0.3] * 6}).assign(top_p=p) for p in (0.5, 0.9)]
    for line in made_of_text.describe_answer(pd.concat(parts)).splitlines():
        assert line.count("top&#95;p") == 1
        assert "(m on d; candidates" in line


def test_the_answer_names_the_top_p_with_the_opposite_sign():
    answer = made_of_text.describe_answer(create_curve({"raw": [-0.4, -0.3, 0.01, -0.3, 0.2, 0.4]}))
    assert answer.endswith(
        "candidates: if they make up 95% of the probability, the coefficient is positive, 0.20 [0.15, 0.25].**"
    )
    for values in ([0.01, 0, 0, 0.01, 0.2, -0.4], [-0.4, -0.3, -0.1, -0.3, 0.01, 0.02]):
        assert "But" not in made_of_text.describe_answer(create_curve({"raw": values}))


def test_the_sentence_on_signs_counts_them():
    def describe(*values):
        return made_of_text.describe_sign_changes(create_curve({"raw": values}))

    of = "of candidate set and geometry (how embeddings are compared)"
    depends = "the sign depends on these choices."
    assert describe(-0.3, 0.3, 0) == (
        f"1 of 3 combinations {of} has a negative coefficient, 1 has a positive coefficient and 1 has no clear sign: "
        + depends
    )
    assert describe(-0.3, -0.3, 0.3, 0.3) == (
        f"2 of 4 combinations {of} have a negative coefficient and 2 have a positive coefficient: {depends}"
    )
    assert describe(-0.3, -0.3) == (
        f"Both combinations {of} have a negative coefficient: the sign does not depend on these choices."
    )
    assert describe(-0.3, 0.01).endswith("and 1 has no clear sign: wherever the sign is clear, it is the same.")
    assert describe(0.01, 0.01) == f"Both combinations {of} have no clear sign."
    assert describe(0.3) == f"The only combination {of} has a positive coefficient."
    pooled = pd.concat([create_curve({"raw": [-0.3] * 6}, POOLED, POOLED), create_curve({"raw": [0.3] * 6})])
    said = made_of_text.describe_sign_changes(pooled)
    assert said.startswith(f"Averaged over the runs, all 6 combinations {of} have a negative coefficient: ")
    assert describe(np.nan) == "No other candidate set or geometry was measured."


def test_null_models_are_told_apart_by_the_interval_of_the_difference():
    nulls = {"same_k": (-0.5, 0.05, 0.15), "random": (0.2, -0.7, -0.5), "gaussian_states": (-0.38, -0.1, 0.06)}
    nulls["other_step"] = (-0.3, np.nan, np.nan)
    text = made_of_text.describe_nulls(create_nulls(-0.4, nulls))
    assert "m on d, `top_p_0.9` in `raw`: Spearman's coefficient is −0.40 [−0.45, −0.35]." in text
    assert "Not clearly different from it: hidden states without a text (−0.38, 95% of it)." in text
    assert (
        "Clearly different from it: sets exchanged among tokens of equal k (−0.50, 125% of it); random tokens (0.20)."
        in text
    )
    assert (
        "Not compared, because there are too few prompts: the likeliest tokens of another step (−0.30, 75% of it)."
        in text
    )


def test_a_ratio_is_given_only_to_a_coefficient_whose_sign_is_known():
    text = made_of_text.describe_nulls(create_nulls(-0.02, {"same_k": (-0.04, -0.01, 0.02)}))
    assert "(−0.04)" in text
    assert "of it)" not in text


def test_null_models_that_are_missing_are_said_to_be():
    assert made_of_text.describe_nulls(create_nulls(-0.4, {})).endswith("No null model was measured.")
    for table in (create_nulls(np.nan, {}), create_nulls(-0.4, {})[:0]):
        assert made_of_text.describe_nulls(table).startswith("No run has a coefficient for its nucleus in `raw`")
        assert made_of_text.describe_same_k(table).startswith("No coefficient could be compared")


@pytest.mark.parametrize(
    ("observed", "bounds", "words"),
    [
        (
            -0.4,
            (0.05, 0.15),
            "candidates are *more* similar when the model is less sure. The number of candidates alone would give a "
            "more negative coefficient: if candidate sets are exchanged among tokens of equal k, so that only the "
            "effect of k is left, it is −0.50 instead of −0.40 (measured minus exchanged: 0.10 [0.05, 0.15]).",
        ),
        (-0.02, (0.05, 0.15), ": the number of candidates does not explain all of it."),  # its own sign is not clear
        (-0.6, (-0.15, -0.05), ": the number of candidates does not explain all of it."),
        (0.4, (0.85, 0.95), ": the number of candidates does not explain all of it."),
        (-0.5, (-0.05, 0.05), ": the number of candidates may explain all of it."),
        (-0.5, (np.nan, np.nan), "There are too few prompts to judge the difference."),
    ],
)
def test_what_exchanging_leaves_is_said_for_each_outcome(observed, bounds, words):
    assert made_of_text.describe_same_k(create_nulls(observed, {"same_k": (-0.5, *bounds)})).endswith(words)


def test_what_entropy_adds_is_said_for_each_outcome():
    def describe(*added):
        return made_of_text.describe_ladder(create_ladder(added, [f"m{place}" for place in range(len(added))]))

    more = "clearly more than the 1 percentage point that can arise by chance."
    adds = "adding entropy raises that by 4.0 percentage points."
    assert describe((0.04, 0.03, 0.05)).endswith(f"{adds} This is {more}")
    less = "less than the 1 percentage point that can arise by chance."
    assert describe((0.004, 0.003, 0.005)).endswith(f"raises that by 0.4 percentage points. This is {less}")
    assert describe((0.012, 0.003, 0.02)).endswith(f"raises that by 1.2 percentage points. This is not {more}")
    assert describe((-0.02, -0.03, -0.01)).endswith(f"changes that by −2.0 percentage points. This is {less}")
    assert describe((0.004, 0.003, 0.005), (0.002, 0, 0.004)).endswith(f"In both runs, this is {less}")
    assert "changes that by 0.0 percentage points" in describe((0.0001, 0, 0.001))
    assert "changes that by between −1.0 and 4.0 percentage points" in describe((0.04, 0.03, 0.05), (-0.01, -0.02, 0.0))
    assert describe((0.04, 0.03, 0.05), (0.0, -0.02, 0.1)).endswith(f"In 1 of 2 runs, this is {more}")
    assert describe((0.0, -0.03, 0.0), (0.0, -0.02, 0.03)).endswith(f"In no run is this {more}")
    one_known = describe((0.04, 0.03, 0.05), (0.0, np.nan, np.nan))
    assert one_known.endswith(f"In the only run with an interval, this is {more}")
    assert "depending on the run, entropy" in one_known
    assert "depending on the run" not in describe((0.04, 0.03, 0.05), (0.04, 0.03, 0.05))
    assert describe((0.01, np.nan, np.nan)).endswith("No interval could be computed.")
    assert made_of_text.describe_ladder(create_ladder([], [])).startswith("No run has enough tokens and prompts")
    assert "entropy alone explains 0% of the variance" in describe((0.01, 0.005, 0.02))
    poor = create_ladder([(0.01, 0.005, 0.02)], ["m"])
    assert "negative" not in made_of_text.describe_ladder(poor)
    said = made_of_text.describe_ladder(poor.assign(R2=poor["R2"] - 0.5))
    assert "explains −50% of" in said
    assert "Where a share is negative, always predicting the mean would be better." in said


def test_a_ratio_names_the_coefficient_that_it_is_of_if_only_a_sample_was_compared():
    table = create_nulls(-0.4, {"random": (-0.2, -0.7, -0.5)})
    table.loc[table["null"] == "random", "Spearman observed"] = -0.25
    table.loc[table["null"] == "random", "Spearman ratio"] = 0.8
    assert "random tokens (−0.20, 80% of the −0.25 measured on the same tokens)" in made_of_text.describe_nulls(table)


def test_what_survives_is_said_for_each_outcome():
    differs = made_of_text.describe_specifications(create_tests((-0.1, -0.2, -0.05)))
    assert "of 6 specifications, 3 are negative, 2 are positive and 1 is undecided." in differs
    assert "50% of all coefficients are negative, and the median is −0.20." in differs
    assert "It differs from 0, its value without any relationship: the difference is −0.10 [−0.20, −0.05]." in differs
    assert "It differs from the median of sets exchanged among tokens of equal k (−0.10)" in differs
    assert "It is not clearly different from 0" in made_of_text.describe_specifications(
        create_tests((-0.1, -0.2, 0.05))
    )
    few = made_of_text.describe_specifications(create_tests((-0.1, np.nan, np.nan)))
    assert (
        "There are too few prompts to compare it with 0, its value without any relationship: the difference is −0.10."
        in few
    )
    assert made_of_text.describe_specifications(create_tests((0, 0, 0))[:0]) == "No specification could be computed."


def test_combinations_without_an_interval_are_counted_apart():
    curve = create_curve({"raw": [-0.4, 0.01, np.nan, np.nan, 0.3]})
    assert made_of_text.describe_uncounted(create_curve({"raw": [-0.4, 0.01]})) == ""
    assert made_of_text.describe_uncounted(curve) == (
        "m on d: of 5 combinations, 2 have no coefficient, because there are too few tokens or prompts, or entropy "
        "or cosine similarity does not vary. Below, only combinations with an interval count as specifications."
    )
    curve.loc[0, ["low", "high", "sign"]] = np.nan, np.nan, ""
    said = made_of_text.describe_uncounted(curve)
    assert said.startswith("m on d: of 5 combinations, 2 have no coefficient and 1 has a coefficient without an inter")
    assert said.endswith(
        "count as specifications; the figure also shows the one without, in the colour of *undecided*."
    )
    drawn = made_of_figures.plot_specifications(curve)
    shown = {trace.name: len(trace.y) for trace in drawn.data if trace.name in made_of_text.SIGNS}
    assert shown == {"negative": 0, "undecided": 2, "positive": 1}


def test_runs_that_a_figure_leaves_out_are_named():
    assert made_of_text.describe_not_shown({}) == made_of_text.describe_not_shown({("m", "d"): "torn"}) == ""
    assert made_of_text.describe_not_shown({("m*", "d"): "", ("m", "d"): "torn"}) == (
        "Not in the figure, because it has no variants of the candidate sets: m&#42; on d. The section *Run by run* "
        "includes it."
    )
    both = made_of_text.describe_not_shown({("a", "d"): "", ("b", "d"): ""})
    assert "because they have no variants of the candidate sets: a on d and b on d. " in both
    assert both.endswith(" includes them.")


def test_runs_without_variants_are_named_and_how_to_get_them():
    none = made_of_text.describe_left_out({}, {("m", "d"): ""})
    assert none.startswith("No run has variants of its candidate sets: ")
    assert "--overwrite" in none
    some = made_of_text.describe_left_out([("a", "d")], {("m*", "d"): ""})
    assert some.startswith("1 run has variants of the candidate sets. Left out, because it has none: m&#42; on d;")
    assert made_of_text.describe_left_out([("a", "d")], {}).endswith("sets.")
    reason = "'v*' is damaged"
    damaged = made_of_text.describe_left_out([("a", "d")], {("m*", "d"): reason})
    assert damaged.endswith(f"sets. Left out: {escape_name('m*')} on d ({escape_name(reason)}).")
    alone = made_of_text.describe_left_out([], {("m", "d"): "torn"})
    assert alone == ("No run has variants of its candidate sets that can be read. Left out: m on d (torn).")


# Figures


def read_choice(figure, label):
    return next(button.args[0] for button in figure.layout.updatemenus[0].buttons if button.label == label)


def test_the_lines_over_top_p_are_the_coefficients_and_the_bands_those_of_exchanged_sets():
    parts = [create_curve({"raw": [-0.4, -0.2], "centred": [0.1, 0.2]}, name, name) for name in ("a", POOLED)]
    figure = made_of_figures.plot_over_top_p(pd.concat(parts), statistics=["Spearman"])
    bands = made_of_figures.BANDS
    assert [trace.name for trace in figure.data] == [bands, "raw", bands, "centred"]
    assert [trace.name for trace in figure.data if trace.showlegend is not False] == [bands, "raw", "centred"]
    line, band = figure.data[1], figure.data[0]
    assert (list(line.x), list(line.y)) == ([0.5, 0.7], [-0.4, -0.2])
    assert list(line.error_y.array) == list(line.error_y.arrayminus) == [0.05, 0.05]
    assert list(band.x) == [0.5, 0.7, 0.7, 0.5]
    assert list(band.y) == pytest.approx([-0.21, -0.11, -0.09, -0.19])
    assert [button.label for button in figure.layout.updatemenus[0].buttons] == [
        "mean over runs: Spearman",
        "a, a: Spearman",
    ]
    assert read_choice(figure, "a, a: Spearman")["y"][1] == [-0.4, -0.2]
    only = made_of_figures.plot_over_top_p(pd.concat(parts), {"raw": "as they are"}, ["Spearman"])
    assert [trace.name for trace in only.data] == [bands, "as they are"]


def test_the_forest_has_a_line_for_each_null_model_that_there_is():
    table = create_nulls(-0.4, {"same_k": (-0.5, 0.05, 0.15), "random": (0.2, -0.7, -0.5)})
    figure = made_of_figures.plot_nulls(table, statistics=["Spearman"])
    assert list(figure.layout.yaxis.ticktext) == ["measured", "sets exchanged, equal k", "random tokens"]
    assert list(figure.data[0].x) == [-0.4, -0.5, 0.2]
    assert list(figure.data[0].y) == [0, 1, 2]
    assert list(figure.data[0].error_x.array) == pytest.approx([0.05] * 3)


def test_the_ladder_shows_r2_of_every_predictor():
    figure = made_of_figures.plot_ladder(create_ladder([(0, 0, 0), (0, 0, 0)], ["a", "b"]))
    assert list(figure.data[0].x) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8])
    assert list(figure.layout.yaxis.ticktext) == list(explained.LADDER)
    assert [button.label for button in figure.layout.updatemenus[0].buttons] == ["a, d", "b, d"]


def test_the_curve_is_sorted_and_below_each_coefficient_are_its_choices():
    curve = create_curve({"raw": [-0.4, 0.01, 0.3], "centred": [0.2, -0.3, np.nan]})
    figure = made_of_figures.plot_specifications(curve)
    by_name = {trace.name: trace for trace in figure.data}
    found = {}
    for sign in ("negative", "undecided", "positive"):
        found |= dict(zip(by_name[sign].x, zip(by_name[sign].y, by_name[sign].text, strict=True), strict=True))
    assert [found[rank][0] for rank in range(5)] == [-0.4, -0.3, 0.01, 0.2, 0.3]
    labels = list(figure.layout.yaxis2.ticktext)
    for rank, (_, text) in found.items():
        chosen = {labels[y] for x, y in zip(by_name["choice"].x, by_name["choice"].y, strict=True) if x == rank}
        assert chosen == set(text.split(", "))
    assert list(by_name["negative"].y) == [-0.4, -0.3]
    assert len(by_name["undecided"].y) == 1


def test_a_coefficient_without_an_interval_has_no_verdict():
    curve = create_curve({"raw": [-0.4, -0.3]})
    alone = curve.assign(low=np.nan, high=np.nan, sign="")
    assert made_of_text.describe_answer(alone) == tables.NO_INTERVAL
    assert "neither" not in made_of_text.describe_answer(alone)


def test_figures_without_rows_say_so():
    empty = [create_curve({}), create_nulls(0.1, {})[:0], create_ladder([(0, 0, 0)])[:0]]
    drawn = [made_of_figures.plot_over_top_p(empty[0]), made_of_figures.plot_nulls(empty[1])]
    drawn += [made_of_figures.plot_ladder(empty[2]), made_of_figures.plot_specifications(empty[0])]
    for said in drawn:
        assert said.data.startswith("There is no figure here, because no run has ")
        assert said.data.endswith(": raise `n_prompts` or `max_tokens`.")
    unknown = create_ladder([(0, 0, 0)]).assign(R2=np.nan)  # rows, but too few tokens for a number
    assert "the 200 tokens with more than one candidate" in made_of_figures.plot_ladder(unknown).data


def test_what_has_no_point_is_not_in_the_legend_nor_in_the_menu():
    parts = [create_curve({"raw": [-0.4, -0.2], "centred": [r, r]}, name) for r, name in ((np.nan, "a"), (0.1, "b"))]
    parts += [create_curve({"raw": [np.nan] * 2}, "c")]
    figure = made_of_figures.plot_over_top_p(pd.concat(parts), statistics=["Spearman"])
    assert [button.label for button in figure.layout.updatemenus[0].buttons] == ["a, d: Spearman", "b, d: Spearman"]
    assert [trace.name for trace in figure.data if trace.showlegend] == [made_of_figures.BANDS, "raw"]
    assert [trace.visible for trace in figure.data] == [True, True, False, False]
    assert read_choice(figure, "b, d: Spearman")["showlegend"] == [True, True, False, True]
    signs = made_of_figures.plot_specifications(create_curve({"raw": [-0.4, -0.3]}))
    assert [trace.name for trace in signs.data if trace.showlegend] == ["equal k exchanged", "negative"]


# Tables


def test_tables_are_read_as_they_were_written_and_names_stay_names(tmp_path):
    curve = create_curve({"raw": [-0.4, np.nan]}, "NA", "007")
    tables.write(tables.format_csv(curve), tmp_path / "correlation_eval" / "specification.csv")
    found = tables.load_table(tmp_path, "specification.csv", ["Model", "Dataset", *specification.CHOICES, "sign"])
    pd.testing.assert_frame_equal(found, curve, check_dtype=False)
    empty = create_curve({})
    tables.write(tables.format_csv(empty), tmp_path / "correlation_eval" / "specification.csv")
    found = tables.load_table(tmp_path, "specification.csv", ["Model", "Dataset", *specification.CHOICES, "sign"])
    assert list(found) == list(empty)
    assert len(found) == 0
    with pytest.raises(ValueError, match=r"run scripts/correlation_eval\.py first"):
        tables.load_table(tmp_path, "null_stats.csv", ["Model"])


def test_the_table_of_counts_has_a_row_per_run_and_null_model():
    shown = tables.format_counts(pd.concat([create_tests((-0.1, -0.2, 0.05)), create_tests((0.1, 0, 0.2), model="b")]))
    assert shown.index.droplevel("null").tolist() == [("m", "d")] * 2 + [("b", "d")] * 2
    assert shown.index.is_unique  # on a phone, only the index names a row
    assert shown["negative"].tolist() == [3] * 4
    by_kind = shown.reset_index().set_index(["Model", "null"])
    assert by_kind.loc[("m", "same_k"), "its median"] == -0.1
    assert by_kind.loc[("b", "all"), "difference"] == "0.10 [0.00, 0.20]"


def test_the_front_page_reads_what_the_analyses_wrote_and_says_three_things_of_it(tmp_path):
    folder = tmp_path / "correlation_eval"
    written = create_curve({"raw": [-0.4] * 6}), create_nulls(-0.4, {"same_k": (-0.5, 0.05, 0.15)})
    written = (*written, create_ladder([(0.04, 0.03, 0.05)]))
    for name, table in zip(("specification", "null_stats", "explained"), written, strict=True):
        tables.write(tables.format_csv(table), folder / f"{name}.csv")
    found = made_of_text.load(tmp_path)
    for one, other in zip(found, written, strict=True):
        pd.testing.assert_frame_equal(one, other, check_dtype=False)
    lines = made_of_text.describe_in_three(*found).splitlines()
    assert [line[:8] for line in lines] == ["* All 6 ", "* Among ", "* On hel"]
    nothing = made_of_text.describe_in_three(*(table[:0] for table in found))
    assert nothing.startswith("* No run has variants of its candidate sets")
