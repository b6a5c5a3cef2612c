"""`correlation`: coefficients against scipy, intervals against their coverage, and runs too poor for them."""

import hashlib
import itertools
import math

import numpy as np
import pandas as pd
import pytest
from scipy import special, stats

from nucleoscope.stats import bootstrap, correlation
from nucleoscope.store import results
from synthetic import create_table, draw_full, draw_gaussian

pytestmark = pytest.mark.filterwarnings("error")

FEW = 50  # resamples, where intervals are not what is tested
OTHERS = ("full_entropy", "weighted_cosine", "similarity_entropy")
KINDS = ("Pearson", "Spearman", "within-prompt Spearman", "partial Spearman", "within-k Spearman")
COEFFICIENTS = [f"{kind} r" for kind in KINDS]


def compute_row(run: pd.DataFrame, resamples: int = FEW, **options) -> pd.Series:
    """The row of one run in the table of the study."""
    frame = correlation.compute_statistics({("model", "data"): run}, resamples, **options)
    assert len(frame) == 1
    return frame.iloc[0]


def compute_pairs(run: pd.DataFrame, resamples: int = FEW) -> pd.DataFrame:
    return correlation.compute_coefficients(run, correlation.PAIRS, resamples)


def compute_log10_p(r: float, n: int) -> float:
    """log10 of the two-sided p of r: DLMF 8.17.8 in logarithms, which scipy's p has no room for."""
    a, b, x = n / 2 - 1, 0.5, 1 - r**2
    logarithm = a * np.log(x) + b * np.log(1 - x) - np.log(a) - special.betaln(a, b)
    return (logarithm + np.log(special.hyp2f1(a + b, 1, a + 1, x))) / np.log(10)


# Coefficients


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("x", "y"), correlation.PAIRS)
def test_coefficients_are_those_of_scipy(seed, x, y):
    run = draw_full(seed)
    found, chosen = compute_pairs(run).loc[(x, y)], run[run["k"] > 1]
    for kind, function in (("Pearson", stats.pearsonr), ("Spearman", stats.spearmanr)):
        expected = function(chosen[x], chosen[y])
        assert found[f"{kind} r"] == pytest.approx(expected.statistic, rel=0, abs=1e-12)
        assert found[f"{kind} log10 p"] == pytest.approx(math.log10(expected.pvalue), rel=1e-9)
        assert float(found[f"{kind} p"]) == pytest.approx(expected.pvalue, rel=1e-5)  # six digits are written


def test_tokens_without_an_alternative_are_left_out_and_counted():
    run = draw_full(0)
    shown = run.assign(cosine=np.where(run["k"] > 1, run["cosine"], 99.0))
    alone = compute_row(run[run["k"] > 1])
    for found in (compute_row(run), compute_row(shown)):
        assert found["tokens"] == 600
        assert found["tokens with k > 1"] == (run["k"] > 1).sum() < 600
        assert found["share with k > 1"] == (run["k"] > 1).mean()
        of_all = ["tokens", "share with k > 1"]
        pd.testing.assert_series_equal(found.drop(of_all), alone.drop(of_all))
    assert (results.select_choices(run)["k"] > 1).all()


def test_a_prompt_counts_only_with_a_token_that_had_an_alternative():
    run = draw_full(0)
    run.loc[run["prompt"] < 5, "k"] = 1
    assert compute_row(run)["prompts"] == 25


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("x", "y"), correlation.PAIRS)
def test_the_partial_coefficient_is_that_of_what_ranks_of_log_k_leave(seed, x, y):
    run = results.select_choices(draw_full(seed))
    given = np.stack([np.ones(len(run)), stats.rankdata(np.log(run["k"]))], axis=1)
    ranks = np.stack([stats.rankdata(run[name]) for name in (x, y)], axis=1)
    left = ranks - given @ np.linalg.lstsq(given, ranks)[0]
    expected = stats.pearsonr(*left.T).statistic
    assert compute_pairs(run).loc[(x, y), "partial Spearman r"] == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("seed", range(3))
def test_the_within_prompt_coefficient_is_the_mean_of_the_prompts_own(seed):
    run = draw_full(seed, length=4)  # short prompts: some have fewer than three tokens left, some are constant
    own = []
    for _, tokens in results.select_choices(run).groupby("prompt"):
        x, y = tokens["entropy"].to_numpy(), tokens["cosine"].to_numpy()
        if len(tokens) > 2 and np.ptp(x) > 0 and np.ptp(y) > 0:
            own.append(stats.spearmanr(x, y).statistic)
    found = compute_row(run)
    assert 0 < found["within-prompt Spearman prompts"] == len(own) < found["prompts"]
    assert found["within-prompt Spearman r"] == pytest.approx(np.mean(own), abs=1e-12)


def test_the_within_prompt_coefficient_sees_no_differences_between_prompts():
    """Within each prompt entropy and cosine rise together, over all prompts they fall."""
    prompt, step = np.repeat(np.arange(20), 10), np.tile(np.arange(10), 20)
    found = compute_row(create_table(prompt, step + 10.0 * prompt, step - 10.0 * prompt))
    assert found["within-prompt Spearman r"] == pytest.approx(1)
    assert found["Spearman r"] < -0.9


def test_what_is_monotone_in_k_alone_has_no_partial_coefficient_to_speak_of():
    run = draw_gaussian(0, share=0)
    k = run["k"]
    rng = np.random.default_rng(0)
    found = compute_row(run.assign(entropy=k + rng.normal(0, 0.3, len(k)), cosine=-k + rng.normal(0, 0.3, len(k))))
    assert found["Spearman r"] < -0.9
    assert abs(found["partial Spearman r"]) < 0.1


# Given k


def correlate_by_hand(run: pd.DataFrame, x: str = "entropy", y: str = "cosine") -> float:
    """Standardised ranks within strata of k, correlated over all of them."""
    columns = []
    for _, stratum in run.groupby("k"):
        ranks = np.stack([stats.rankdata(stratum[name]) for name in (x, y)]) / (len(stratum) + 1)
        columns.append(ranks - ranks.mean(axis=1, keepdims=True))
    u, v = np.concatenate(columns, axis=1)
    return float(u @ v / np.sqrt((u @ u) * (v @ v)))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("x", "y"), correlation.PAIRS)
def test_the_within_k_coefficient_is_that_of_ranks_among_tokens_of_equal_k(seed, x, y):
    run = results.select_choices(draw_full(seed))
    found = compute_pairs(run).loc[(x, y)]
    assert found["within-k Spearman r"] == pytest.approx(correlate_by_hand(run, x, y), abs=1e-12)
    assert found["within-k Spearman tokens"] == run.groupby("k")["k"].transform("size").gt(1).sum() < len(run)


def test_the_interval_given_k_is_that_of_students_t_for_groups_of_prompts_left_out():
    run = results.select_choices(draw_full(0, prompts=60))
    without = [correlate_by_hand(run[counts[run["prompt"]] > 0]) for counts in bootstrap.leave_out_groups(60, 50, 3)]
    z = np.arctanh(correlate_by_hand(run))
    margin = stats.t.ppf(0.975, 49) * np.sqrt(49 * np.var(np.arctanh(without)))
    found = compute_row(run, seed=3)[["within-k Spearman low", "within-k Spearman high"]]
    np.testing.assert_allclose(found.astype(float), np.tanh([z - margin, z + margin]), rtol=0, atol=1e-12)


def test_strata_of_equal_size_count_alike_and_without_ties_it_is_the_mean_of_their_coefficients():
    rng = np.random.default_rng(0)
    run = create_table(np.arange(200) % 40, rng.random(200), rng.random(200), np.arange(200) % 4 + 2)
    each = [stats.spearmanr(part["entropy"], part["cosine"]).statistic for _, part in run.groupby("k")]
    assert compute_row(run)["within-k Spearman r"] == pytest.approx(np.mean(each), abs=1e-12)


def draw_given_k(seed: int, slope: float, prompts: int = 40, length: int = 15) -> pd.DataFrame:
    """Entropy and cosine depend on k, not monotonically, and on the prompt; given both, cosine has this slope."""
    rng = np.random.default_rng(seed)
    prompt = np.repeat(np.arange(prompts), length)
    k = rng.integers(2, 11, len(prompt))
    own = rng.normal(0, 0.5, (2, prompts))[:, prompt] + rng.normal(size=(2, len(prompt)))
    entropy = (k - 6.0) ** 2 / 4 + own[0]
    return create_table(prompt, entropy, -((k - 6.0) ** 2) / 4 + slope * own[0] + own[1], k)


def list_tests_given_k(slope: float, tables: int, prompts: int = 40) -> pd.DataFrame:
    """For each table, the sign of each coefficient given k whose interval excludes 0."""
    rows = []
    for seed in range(tables):
        found = correlation.compute_coefficients(draw_given_k(seed, slope, prompts), resamples=300, seed=seed).iloc[0]
        low, high = ([found[f"{kind} Spearman {end}"] for kind in ("within-k", "partial")] for end in ("low", "high"))
        rows.append([np.sign(a) if a * b > 0 else 0 for a, b in zip(low, high, strict=True)])
    return pd.DataFrame(rows, columns=["within-k", "partial"])


@pytest.mark.parametrize("prompts", [12, 40])
def test_where_nothing_is_related_given_k_an_interval_excludes_0_in_5_of_100_tables(prompts):
    """Of 200: outside 3 to 19 is one in a hundred. The partial coefficient takes the curve over k for a relation."""
    signs = list_tests_given_k(0.0, 200, prompts)
    assert 3 <= (signs["within-k"] != 0).sum() <= 19
    assert (signs["partial"] == -1).mean() > 0.9


def test_what_is_related_given_k_is_found_with_its_sign_against_the_plain_coefficient():
    signs = list_tests_given_k(0.5, 30)
    assert (signs["within-k"] == 1).mean() > 0.95
    assert compute_row(draw_given_k(0, 0.5))["Spearman r"] < 0


# A fixed number of candidates


def create_variants(seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Tokens, and their variants as in variants.parquet: three sets of a fixed size and one that varies, twice."""
    table = draw_full(seed, prompts=40)
    rng = np.random.default_rng(seed)
    parts = []
    for geometry, sign in (("raw", -1), ("centered", 1)):
        for name, k in (
            ("top-k 10", 10),
            ("top-k 2", 2),
            ("top-p 0.9", rng.integers(1, 9, len(table))),
            ("top-k 1", 1),
        ):
            cosine = sign * table["full_entropy"] + rng.normal(0, 1, len(table))
            entropy = rng.random(len(table))
            columns = {"candidates": name, "geometry": geometry, "k": k, "entropy": entropy, "cosine": cosine}
            parts.append(table[["prompt", "step"]].assign(**columns))
    mixed = pd.concat(parts, ignore_index=True).sample(frac=1, random_state=0)
    return mixed.astype({"candidates": "category", "geometry": "category"}), table


def test_at_a_fixed_k_the_coefficients_are_those_of_the_k_likeliest_of_every_token():
    variants, table = create_variants()
    found = correlation.compute_fixed(variants, table, "full_entropy", resamples=FEW)
    assert found.index.tolist() == ["top-k 2", "top-k 10"]
    assert found["fixed k"].tolist() == [2, 10]
    for name, row in found.iterrows():
        part = variants[(variants["candidates"] == name) & (variants["geometry"] == "raw")]
        both = part.merge(table, on=["prompt", "step"], suffixes=("", " of the token"))
        expected = stats.spearmanr(both["full_entropy"], both["cosine"]).statistic
        assert expected < 0
        assert row["Spearman r"] == pytest.approx(expected, abs=1e-12)
        assert (row["tokens with k > 1"], row["note"]) == (len(table), "")
    other = correlation.compute_fixed(variants, table, "full_entropy", geometry="centered", resamples=FEW)
    assert (other["Spearman r"] > 0).all()
    assert (correlation.compute_fixed(variants, resamples=FEW)["Spearman r"].abs() < 0.1).all()  # its own entropy


def test_a_column_that_variants_lack_is_named_and_no_variant_gives_no_row():
    variants, table = create_variants()
    with pytest.raises(ValueError, match="no column geometry"):
        correlation.compute_fixed(variants.drop(columns="geometry"), table)
    with pytest.raises(ValueError, match="no column varentropies"):
        correlation.compute_fixed(variants, table, "varentropies")
    assert len(correlation.compute_fixed(variants, geometry="whitened")) == 0


# Design effect


def test_tokens_that_are_repeated_in_their_prompt_have_a_design_effect_of_their_number():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 50))
    prompt = np.arange(50)
    once = correlation.compute_design_effect(x, y, prompt)
    assert once == pytest.approx(50 / 49)
    many = correlation.compute_design_effect(np.repeat(x, 8), np.repeat(y, 8), np.repeat(prompt, 8))
    assert many == pytest.approx(8 * 50 / 49)


@pytest.mark.parametrize("run", [draw_gaussian(0), draw_full(0, 100, 40)], ids=["gaussian", "ties"])
def test_the_design_effect_is_the_ratio_of_the_variances_of_resampled_prompts_and_tokens(run):
    run = run[run["k"] > 1]
    values, prompt = run[["entropy", "cosine"]].to_numpy(), run["prompt"].to_numpy()
    by_prompt, by_token = (
        bootstrap.compute_spearman(values, unit, bootstrap.draw_counts(unit.max() + 1, 2000))[:, 0, 1].var()
        for unit in (prompt, np.arange(len(run)))
    )
    found = correlation.compute_coefficients(run, resamples=FEW).iloc[0]["design effect"]
    assert found == pytest.approx(by_prompt / by_token, rel=0.12)  # 2,000 resamples know a variance to 3%
    assert found > 1.5


# Intervals


@pytest.mark.parametrize("kind", ["Pearson", "Spearman"])
def test_intervals_are_those_of_prompts_drawn_again(kind):
    run = draw_gaussian(0, prompts=30)
    found, column = compute_row(run, 200, seed=7), []
    function = {"Pearson": stats.pearsonr, "Spearman": stats.spearmanr}[kind]
    for counts in bootstrap.draw_counts(30, 200, seed=7):
        taken = run.loc[np.repeat(run.index, counts[run["prompt"]])]
        column.append(function(taken["entropy"], taken["cosine"]).statistic)
    expected = np.quantile(column, [0.025, 0.975])
    np.testing.assert_allclose([found[f"{kind} low"], found[f"{kind} high"]], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["Pearson", "Spearman"])
def test_with_few_prompts_intervals_are_those_of_students_t_for_prompts_left_out(kind):
    run = draw_gaussian(0, prompts=12)
    function = {"Pearson": stats.pearsonr, "Spearman": stats.spearmanr}[kind]
    tables = [run, *(run[run["prompt"] != prompt] for prompt in range(12))]
    whole, *without = (np.arctanh(function(table["entropy"], table["cosine"]).statistic) for table in tables)
    pseudo = 12 * whole - 11 * np.array(without)
    margin = stats.t.ppf(0.975, 11) * stats.sem(pseudo)
    found = compute_row(run)[[f"{kind} low", f"{kind} high"]].astype(float)
    np.testing.assert_allclose(found, np.tanh([whole - margin, whole + margin]), rtol=0, atol=1e-12)


def test_every_coefficient_lies_within_its_interval():
    for _, found in compute_pairs(draw_full(0), 300).iterrows():
        for kind in KINDS:
            assert found[f"{kind} low"] < found[f"{kind} r"] < found[f"{kind} high"]


# p-values


@pytest.mark.parametrize("n", [9000, 30_000, 100_000, 1_000_000])
@pytest.mark.parametrize("r", [-0.6, -0.7564, 0.3, 0.4, 0.9])
def test_p_is_right_far_beyond_the_range_of_doubles(r, n):
    assert correlation.compute_log10_p(r, n) == pytest.approx(compute_log10_p(r, n), rel=1e-11)


def test_both_ways_to_p_agree_where_one_takes_over_from_the_other():
    near = [correlation.compute_log10_p(r, 9000) for r in np.linspace(0.37, 0.40, 300)]
    steps = np.diff(near)
    assert near[0] > -290 > near[-1]
    assert np.abs(np.diff(steps)).max() < 1e-4  # no jump


def test_p_of_a_full_run_keeps_its_magnitude():
    assert correlation.format_power_of_ten(correlation.compute_log10_p(-0.6, 9000)) == "1.41358e-874"


@pytest.mark.parametrize(
    ("log10", "text"), [(np.log10(9.9999996e-300), "1.00000e-299"), (-0.5, "0.316228"), (-np.inf, "0"), (np.nan, "")]
)
def test_a_power_of_ten_reads_as_a_number(log10, text):
    assert correlation.format_power_of_ten(log10) == text


@pytest.mark.parametrize("n", [3, 4, 5, 30, 300])
@pytest.mark.parametrize("r", [0.0, 0.001, -0.05, 0.1, -0.5, 0.9])
def test_p_is_that_of_students_t(r, n):
    t = r * math.sqrt((n - 2) / (1 - r**2))
    assert 10 ** correlation.compute_log10_p(r, n) == pytest.approx(2 * stats.t.sf(abs(t), n - 2), rel=1e-9)


def test_p_is_text_that_is_never_rounded_to_zero():
    run = draw_gaussian(0, prompts=100, length=100, r=-0.8, share=0)
    found = compute_row(run, resamples=10)
    assert stats.pearsonr(run["entropy"], run["cosine"]).pvalue == 0.0  # what the published table shows
    for kind in ("Pearson", "Spearman"):
        assert isinstance(found[f"{kind} p"], str)
        mantissa, exponent = found[f"{kind} p"].split("e")
        assert 1 <= float(mantissa) < 10
        assert int(exponent) < -1000
        assert found[f"{kind} log10 p"] == pytest.approx(compute_log10_p(found[f"{kind} r"], 10000), rel=1e-9)


def test_p_survives_a_csv_file(tmp_path):
    correlation.compute_statistics({("m", "d"): draw_gaussian(0, 100, 100, -0.8, 0)}, 10).to_csv(
        tmp_path / "x.csv", index=False
    )
    found = pd.read_csv(tmp_path / "x.csv", dtype={"Pearson p": str})["Pearson p"][0]
    assert int(found.split("e")[1]) < -1000


# The table


def test_the_published_columns_come_first_and_in_their_order():
    for tables in ({}, {("m", "d"): draw_full(0)}, {("m", "d"): draw_full(0)[:2]}):
        frame = correlation.compute_statistics(tables, FEW)
        assert list(frame)[:6] == ["Model", "Dataset", "Pearson r", "Pearson p", "Spearman r", "Spearman p"]
        assert list(frame)[-1] == "note"
        assert len(frame) == len(tables)


def test_a_run_has_one_row_under_its_names():
    names = [("b", "y"), ("a", "z"), ("a", "x")]
    frame = correlation.compute_statistics({name: draw_full(seed) for seed, name in enumerate(names)}, FEW)
    assert list(zip(frame["Model"], frame["Dataset"], strict=True)) == sorted(names)
    assert frame["Pearson r"].tolist() == [compute_row(draw_full(seed))["Pearson r"] for seed in (2, 1, 0)]


def test_the_four_pairs_are_there_each_behind_the_name_of_what_differs():
    run = draw_full(0)
    found, pairs = compute_row(run), compute_pairs(run)
    assert list(pairs.index) == [
        ("entropy", "cosine"),
        ("full_entropy", "cosine"),
        ("entropy", "weighted_cosine"),
        ("similarity_entropy", "cosine"),
    ]
    for name, coefficient in itertools.product(OTHERS, COEFFICIENTS):
        pair = (name, "cosine") if "entropy" in name else ("entropy", name)
        assert found[f"{name}: {coefficient}"] == pairs.loc[pair, coefficient]


def test_the_coefficients_of_one_pair_are_those_that_it_has_among_the_others():
    run = {("model", "data"): draw_full(1)}
    one = correlation.compute_statistics(run, 50, pairs=correlation.PAIRS[:1])
    all_pairs = correlation.compute_statistics(run, 50)
    assert not [name for name in one if ": " in name]
    pd.testing.assert_frame_equal(one, all_pairs[list(one)], rtol=1e-12)


def test_a_run_of_a_hundred_prompts_has_nothing_to_note():
    assert compute_row(draw_full(0, prompts=100))["note"] == ""


def test_a_seed_gives_the_same_intervals_and_another_others():
    run = draw_full(0)
    pd.testing.assert_series_equal(compute_row(run, seed=1), compute_row(run, seed=1))
    assert compute_row(run, seed=1)["Pearson low"] != compute_row(run, seed=2)["Pearson low"]
    assert compute_row(run, seed=1)["Pearson r"] == compute_row(run, seed=2)["Pearson r"]


def test_two_processes_give_the_table_of_one():
    tables = {("m", f"d{seed}"): draw_full(seed, prompts=20, length=5) for seed in range(3)}
    one, two = (correlation.compute_statistics(tables, FEW, jobs=jobs) for jobs in (1, 2))
    pd.testing.assert_frame_equal(one, two)


def test_the_numbers_of_prompts_are_only_names():
    run = draw_full(0)
    pd.testing.assert_series_equal(compute_row(run), compute_row(run.assign(prompt=1000 - 7 * run["prompt"])))


def test_the_published_numbers_are_the_published_numbers():
    frame = correlation.load_published()
    digest = hashlib.sha256(frame.to_csv(index=False).encode()).hexdigest()
    assert digest == "d809fb45b42d71ba1ae7dd6139bbb7ea95a6b74c5339d01dbc0dc4fd3714a5c6"


def test_the_published_table_has_its_15_rows():
    frame = correlation.load_published()
    assert list(frame) == correlation.PUBLISHED_COLUMNS
    assert len(frame) == 15
    assert set(frame["Dataset"]) == {"gsm8k", "writingprompts", "xsum"}
    assert frame.groupby("Model").size().tolist() == [3] * 5
    llama = frame.set_index(["Model", "Dataset"]).loc[("Llama-3.1-8B", "gsm8k")]
    assert (llama["Pearson r"], llama["Spearman r"]) == (-0.6167, -0.7564)
    assert frame["Pearson r"].between(-0.63, -0.36).all()
    assert (frame["Spearman r"] < frame["Pearson r"]).all()


# Runs that little or nothing can be said of


def assert_nothing_said(found: pd.Series, *reasons: str) -> None:
    """The study's pair has no number at all, and the note says why."""
    numbers = [name for name in found.index if name.startswith((*KINDS, "design effect"))]
    assert found[numbers].isna().all(), found[numbers].dropna()
    for reason in reasons:
        assert reason in found["note"]


@pytest.mark.parametrize("name", ["entropy", "cosine"])
@pytest.mark.parametrize("value", [0.0, 0.1, 1 / 3])
def test_a_constant_column_is_named(name, value):
    assert_nothing_said(compute_row(draw_full(0).assign(**{name: value})), f"{name} is constant")


def test_two_constant_columns_are_both_named():
    found = compute_row(draw_full(0).assign(entropy=0.5, cosine=0.1))
    assert_nothing_said(found, "entropy is constant", "cosine is constant")


@pytest.mark.parametrize("tokens", [0, 1, 2])
def test_fewer_than_three_tokens_are_named(tokens):
    run = draw_full(0).sort_values("k", ascending=False, kind="stable")
    few = pd.concat([run[:tokens], run[run["k"] == 1]])
    found = compute_row(few)
    assert_nothing_said(found, "fewer than three tokens")
    assert (found["tokens"], found["tokens with k > 1"]) == (len(few), tokens)


def test_a_run_without_tokens_is_named():
    assert_nothing_said(compute_row(draw_full(0)[:0]), "fewer than three tokens")


def test_one_prompt_is_named():
    run = draw_full(0)
    assert_nothing_said(compute_row(run[run["prompt"] == 3]), "only one prompt has tokens with k > 1")


def test_three_tokens_of_two_prompts_are_enough():
    found = compute_row(create_table([0, 0, 1], [0.1, 0.2, 0.4], [0.5, 0.6, 0.3]))
    assert found["Pearson r"] == pytest.approx(stats.pearsonr([0.1, 0.2, 0.4], [0.5, 0.6, 0.3]).statistic, abs=1e-12)
    assert "only 2 prompts" in found["note"]


def test_quantities_that_a_file_of_the_study_lacks_are_named_and_the_others_are_there():
    run = draw_full(0)
    whole, found = compute_row(run), compute_row(run.assign(**dict.fromkeys(OTHERS, np.nan)))
    for name in OTHERS:
        assert f"no {name} in the measurements" in found["note"]
        assert found[[f"{name}: {coefficient}" for coefficient in COEFFICIENTS]].isna().all()
    study = [*correlation.PUBLISHED_COLUMNS, *correlation.COUNTS, *COEFFICIENTS]
    pd.testing.assert_series_equal(found[study], whole[study])


def test_a_quantity_that_is_not_finite_everywhere_is_named():
    run = draw_full(0)
    run.loc[run.index[run["k"] > 1][3], "weighted_cosine"] = np.inf
    found = compute_row(run)
    assert "weighted_cosine is not finite everywhere" in found["note"]
    assert np.isnan(found["weighted_cosine: Pearson r"])
    assert np.isfinite(found["Pearson r"])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["entropy", "cosine"])
def test_tokens_whose_entropy_or_cosine_is_not_finite_are_left_out_and_counted(name, value):
    run = draw_full(0)
    bad = run.index[run["k"] > 1][:5]
    found = compute_row(run.assign(**{name: run[name].where(~run.index.isin(bad), value)}))
    assert "5 tokens left out" in found["note"]
    assert found["tokens with k > 1"] == (run["k"] > 1).sum()
    assert found["Pearson r"] == compute_row(run.drop(bad))["Pearson r"]


def test_a_run_without_any_cosine_is_named_and_its_candidates_and_entropies_are_described():
    run = draw_full(0).assign(cosine=np.nan, weighted_cosine=np.nan)
    found, chosen = compute_row(run), run[run["k"] > 1]
    assert_nothing_said(found, "no cosine in the measurements")
    assert found["note"] == "no cosine in the measurements; no weighted_cosine in the measurements"
    assert found["tokens with k > 1"] == len(chosen)
    assert found[["median k", "median entropy"]].tolist() == [chosen["k"].median(), chosen["entropy"].median()]


def test_a_constant_k_leaves_no_partial_coefficient_and_says_so():
    run = draw_full(0)
    found = compute_row(run.assign(k=2))
    assert np.isnan(found[["partial Spearman r", "within-k Spearman r"]].astype(float)).all()
    assert "no coefficient given k: k is constant" in found["note"]
    assert np.isfinite(found[["Pearson r", "Spearman r", "within-prompt Spearman r"]].astype(float)).all()


def test_entropy_that_k_decides_leaves_no_partial_coefficient():
    """With entropy = log k, whatever is left of it is rounding."""
    run = draw_full(0)
    found = compute_row(run.assign(entropy=np.log(run["k"])))
    assert np.isnan(found["partial Spearman r"])
    assert np.isfinite(found["Spearman r"])


def test_prompts_of_two_tokens_have_no_within_prompt_coefficient():
    rng = np.random.default_rng(0)
    found = compute_row(create_table(np.arange(60) // 2, rng.random(60), rng.random(60)))
    assert np.isnan(found["within-prompt Spearman r"])
    assert found["within-prompt Spearman prompts"] == 0
    assert "no prompt has three tokens that differ" in found["note"]


@pytest.mark.parametrize(("prompts", "interval"), [(2, "jackknife t"), (29, "jackknife t"), (30, "percentile")])
def test_the_kind_of_the_intervals_is_in_the_table_and_noted_if_it_is_not_the_usual_one(prompts, interval):
    found = compute_row(draw_full(0, prompts=prompts))
    assert found["interval"] == interval
    assert (f"only {prompts} prompts" in found["note"]) == (interval == "jackknife t")


def test_one_poor_run_does_not_touch_the_others():
    tables = {
        ("m", "good"): draw_full(0),
        ("m", "empty"): draw_full(0)[:0],
        ("m", "flat"): draw_full(0).assign(cosine=0.5),
    }
    frame = correlation.compute_statistics(tables, FEW).set_index("Dataset")
    assert frame.loc["good", "Pearson r"] == compute_row(draw_full(0))["Pearson r"]
    assert frame["Pearson r"].isna().to_dict() == {"empty": True, "flat": True, "good": False}


# Coverage: how often a 95% interval holds the truth. Half of each variance lies between prompts.

TABLES, RESAMPLES, R = 200, 500, -0.5
TRUTH = {"Pearson": R, "Spearman": 6 / math.pi * math.asin(R / 2)}


@pytest.fixture(scope="module")
def coverage() -> pd.Series:
    """The share of 200 made tables whose interval holds the truth, by what is resampled and coefficient."""
    held = []
    for seed in range(TABLES):
        run = draw_gaussian(seed, prompts=60, length=15, r=R, share=0.5)
        values = run[["entropy", "cosine"]].to_numpy()
        for unit, prompt in (("prompts", run["prompt"].to_numpy()), ("tokens", np.arange(len(run)))):
            counts = bootstrap.draw_counts(prompt.max() + 1, RESAMPLES, seed)
            for kind, function in (("Pearson", bootstrap.compute_pearson), ("Spearman", bootstrap.compute_spearman)):
                low, high = bootstrap.compute_interval(function(values, prompt, counts)[:, 0, 1])
                held.append((unit, kind, low <= TRUTH[kind] <= high))
    return pd.DataFrame(held, columns=["unit", "kind", "held"]).groupby(["unit", "kind"])["held"].mean()


@pytest.mark.parametrize("kind", TRUTH)
def test_intervals_from_prompts_cover_the_truth_in_95_of_100_tables(coverage, kind):
    assert 0.91 <= coverage["prompts", kind] <= 0.98


@pytest.mark.parametrize("kind", TRUTH)
def test_intervals_from_tokens_would_be_far_too_short(coverage, kind):
    """The counter-example: taking the tokens of a prompt for independent."""
    assert coverage["tokens", kind] < 0.91


def test_with_12_prompts_the_intervals_of_the_table_cover_the_truth_where_percentiles_do_not():
    held = []
    for seed in range(TABLES):
        run = draw_gaussian(seed, prompts=12, length=15, r=R, share=0.5)
        values, prompt = run[["entropy", "cosine"]].to_numpy(), run["prompt"].to_numpy()
        found = correlation.compute_coefficients(run, resamples=1).iloc[0]
        counts = bootstrap.draw_counts(12, RESAMPLES, seed)
        low, high = bootstrap.compute_interval(bootstrap.compute_pearson(values, prompt, counts)[:, 0, 1])
        spans = [(kind, found[f"{kind} low"], found[f"{kind} high"]) for kind in TRUTH]
        held.append([a <= TRUTH[kind] <= b for kind, a, b in [*spans, ("Pearson", low, high)]])
    pearson, spearman, percentiles = np.mean(held, axis=0)
    assert 0.91 <= pearson <= 0.98
    assert 0.91 <= spearman <= 0.98
    assert percentiles < 0.93


def test_the_coverage_is_that_of_the_intervals_in_the_table():
    run = draw_gaussian(5)
    found = compute_row(run, RESAMPLES, seed=5)
    counts = bootstrap.draw_counts(60, RESAMPLES, 5)
    values, prompt = run[["entropy", "cosine"]].to_numpy(), run["prompt"].to_numpy()
    for kind, function in (("Pearson", bootstrap.compute_pearson), ("Spearman", bootstrap.compute_spearman)):
        expected = bootstrap.compute_interval(function(values, prompt, counts)[:, 0, 1])
        np.testing.assert_allclose([found[f"{kind} low"], found[f"{kind} high"]], expected, rtol=0, atol=1e-12)


def test_a_variance_that_no_double_holds_gives_an_end_and_no_hang():
    rng = np.random.default_rng(0)
    run = create_table(np.repeat(np.arange(5), 10), rng.random(50) * 1e-200, rng.random(50))
    row = correlation.compute_coefficients(run, resamples=10).iloc[0]
    assert np.isnan(row["Pearson r"])
    assert np.isfinite(row["Spearman r"])


def test_a_perfect_coefficient_has_p_zero_and_a_tiny_one_keeps_its_digits():
    assert correlation.compute_log10_p(1.0, 50) == -np.inf
    density = stats.beta(24, 24, loc=-1, scale=2).pdf(0)  # of r where there is no correlation, n = 50
    assert 10 ** correlation.compute_log10_p(1e-9, 50) == pytest.approx(1 - 2 * 1e-9 * density, abs=1e-11)
    assert np.isnan(correlation.compute_log10_p(np.nan, 50))


def test_what_differs_by_rounding_alone_is_constant():
    rng = np.random.default_rng(0)
    entropy = np.log(2) * (1 + rng.integers(-2, 3, 60) * 2.0**-52)
    row = correlation.compute_coefficients(
        create_table(np.repeat(np.arange(6), 10), entropy, rng.random(60)), resamples=5
    ).iloc[0]
    assert row["note"] == "entropy is constant"


def test_a_published_value_is_compared_once_and_only_with_the_studys_settings():
    first = correlation.load_published().iloc[0]
    head = {"Model": first["Model"], "Dataset": first["Dataset"]}
    ours = pd.DataFrame([head | {"top_p": p, "seed": seed} for p, seed in ((0.5, 0), (0.9, 0), (0.9, 1))])
    found = correlation.match_published(ours)
    assert found[["top_p", "seed"]].to_numpy().tolist() == [[0.9, 0]]
    assert found["Pearson r"].tolist() == [first["Pearson r"]]
    assert len(correlation.match_published(ours[["Model", "Dataset"]].iloc[:1])) == 1
    assert correlation.match_published(ours.assign(Model="another")).empty
    assert correlation.match_published(ours.assign(prompt_format="chat")).empty
