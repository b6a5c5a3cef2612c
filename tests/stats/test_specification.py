"""`specification`: coefficients against scipy, null tables against exchanges spelled out, and what the tests say."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from nucleoscope.stats import bootstrap, candidate_tables, specification
from nucleoscope.store import results
from variant_files import GEOMETRIES, draw_run, write_run

FEW = 40  # null tables, where their number does not matter


def analyse(folder, keys, **options):
    runs, _ = candidate_tables.find_measured(folder, keys)
    return specification.compute_specifications(runs, **{"tables": FEW, **options})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    write_run(folder, draw_run(0, beyond_k=0.3), "model", "data")
    write_run(folder, draw_run(1), "other", "data")
    return folder


@pytest.fixture(scope="module")
def both(folder):
    return analyse(folder, [("model", "data"), ("other", "data")])


def find_value(curve, *choices, model="model", column="r"):
    wanted = dict(zip(["Model", *specification.CHOICES], [model, *choices], strict=True))
    rows = curve[(curve[list(wanted)] == pd.Series(wanted)).all(axis=1)]
    assert len(rows) == 1
    return rows.iloc[0][column]


def load_tokens(folder, candidates, geometry):
    frame = pd.read_parquet(folder / "data" / "model" / "variants.parquet").astype(
        {"candidates": str, "geometry": str, "entropy": float, "cosine": float}
    )
    return frame[(frame["candidates"] == candidates) & (frame["geometry"] == geometry) & (frame["k"] > 1)]


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("candidates", ["top_p_0.9", "top_k_5"])
def test_every_statistic_is_what_scipy_computes(folder, both, candidates, geometry):
    tokens = load_tokens(folder, candidates, geometry)
    x, y = tokens["entropy"].to_numpy(), tokens["cosine"].to_numpy()
    found = {
        name: find_value(both[0], candidates, geometry, name) for name in ("Pearson", "Spearman", "within prompts")
    }
    assert found["Pearson"] == pytest.approx(stats.pearsonr(x, y).statistic, abs=1e-9)
    assert found["Spearman"] == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-9)
    each = [stats.spearmanr(part["entropy"], part["cosine"]).statistic for _, part in tokens.groupby("prompt")]
    assert found["within prompts"] == pytest.approx(np.mean(each), abs=1e-9)
    if candidates == "top_p_0.9":
        once = np.ones((1, 1), dtype=np.int64)
        given = bootstrap.compute_spearman(np.column_stack([x, y]), np.zeros(len(x), int), once, tokens["k"].to_numpy())
        assert find_value(both[0], candidates, geometry, "given k") == pytest.approx(given[0, 0, 1], abs=1e-9)
    else:
        run = results.load_run(folder / "data" / "model" / results.MEASUREMENTS, "model", "data")
        full = tokens.merge(run[["prompt", "step", "full_entropy"]], on=["prompt", "step"])["full_entropy"]
        fixed = find_value(both[0], candidates, geometry, "fixed k")
        assert fixed == pytest.approx(stats.spearmanr(full, y).statistic, abs=1e-9)


def test_each_specification_is_there_once_and_given_k_only_where_k_varies(both):
    one = both[0][both[0]["Model"] == "model"]
    assert not one.duplicated(specification.CHOICES).any()
    statistics = one.groupby("candidates")["statistic"].agg(set)
    assert statistics["top_p_0.9"] == {"Pearson", "Spearman", "within prompts", "given k"}
    assert statistics["top_k_5"] == {"Pearson", "Spearman", "within prompts", "fixed k"}
    assert len(one) == 3 * 2 * 4


def test_the_sign_is_that_of_the_interval(both):
    curve = both[0]
    assert set(curve["sign"]) == {"negative", "positive", "undecided"}
    for row in curve.itertuples():
        assert row.low <= row.r <= row.high
        assert row.sign == ("positive" if row.low > 0 else "negative" if row.high < 0 else "undecided")
    assert find_value(curve, "top_p_0.9", "raw", "Spearman", column="sign") == "negative"
    assert find_value(curve, "top_p_0.9", "raw", "given k", column="sign") == "positive"  # planted
    assert find_value(curve, "top_p_0.9", "raw", "given k", model="other", column="sign") == "undecided"


def test_the_mean_over_runs_has_equal_weights_on_the_scale_of_z(both):
    choices = "top_p_0.5", "raw", "Pearson"
    each = [find_value(both[0], *choices, model=model) for model in ("model", "other")]
    pooled = find_value(both[0], *choices, model=specification.POOLED)
    assert pooled == pytest.approx(np.tanh(np.mean(np.arctanh(each))))


@pytest.fixture(scope="module")
def exchange(folder):
    """A candidate set without ties, what exchanges its cosines, and a permutation of the run's tokens."""
    table = candidate_tables.load_set(folder / "data" / "model", "top_p_0.9")
    rng = np.random.default_rng(0)
    table = table._replace(cosines=table.cosines + rng.uniform(0, 1e-6, table.cosines.shape))
    stratum = specification.replicates.join_rare(table.k)
    return table, specification._Exchange(table, stratum, None), stratum


STATISTICS = ("Pearson", "Spearman", "within prompts", "given k")


@pytest.mark.parametrize("place", [0, 1])
def test_a_null_table_has_the_coefficients_of_exchanged_cosines(exchange, place):
    table, exchanges, stratum = exchange
    order = np.random.default_rng(1).permutation(table.tokens)
    found = exchanges.compute(order, STATISTICS)[place]
    number = np.full(table.tokens, -1)
    number[table.place] = np.arange(len(table.k))
    taken = number[order][number[order] >= 0]
    if place == 0:
        within = np.empty_like(taken)
        within[np.argsort(stratum, kind="stable")] = taken[np.argsort(stratum[taken], kind="stable")]
        taken = within
        assert (stratum[taken] == stratum).all()
    assert sorted(taken) == list(range(len(table.k)))
    x, k, prompt = table.entropy[taken], table.k[taken], table.prompt[taken]
    for column, y in enumerate(table.cosines.T):
        expected = [stats.pearsonr(x, y).statistic, stats.spearmanr(x, y).statistic]
        parts = [(x[prompt == each], y[prompt == each]) for each in np.unique(prompt)]
        expected.append(np.mean([stats.spearmanr(*part).statistic for part in parts]))
        once = np.ones((1, 1), dtype=np.int64)
        values = np.column_stack([x, y])
        expected.append(bootstrap.compute_spearman(values, np.zeros(len(x), int), once, k)[0, 0, 1])
        np.testing.assert_allclose(found[:, column], expected, atol=1e-10)


def test_null_tables_have_the_mean_that_is_computed_without_them(both):
    curve = both[0]
    tests = both[1].set_index(["Model", "null"])
    row = tests.loc[("model", "same_k")]
    exact = curve[curve["Model"] == "model"]["same_k"].median()
    assert row["median null low"] - 0.02 < exact < row["median null high"] + 0.02
    assert tests.loc[("model", "all"), "median null low"] < 0 < tests.loc[("model", "all"), "median null high"]


def test_the_counts_are_those_of_the_curve(both):
    curve, tests = both
    for row in tests.itertuples():
        part = curve[curve["Model"] == row.Model]
        counts = part["sign"].value_counts()
        assert [row.negative, row.positive, row.undecided] == [
            counts.get(name, 0) for name in ("negative", "positive", "undecided")
        ]
        assert row.specifications == len(part)
        assert row.median == pytest.approx(part["r"].median())
        share = max((part["r"] > 0).mean(), (part["r"] < 0).mean())
        assert row.share == pytest.approx(share)


def test_p_counts_the_data_among_the_null_tables():
    drawn = np.arange(99.0)
    assert specification.compute_p(200, drawn) == pytest.approx(2 / 100)
    assert specification.compute_p(-1, drawn) == pytest.approx(2 / 100)
    assert specification.compute_p(49, drawn) == 1
    assert specification.compute_p(98, drawn) == pytest.approx(4 / 100)


def test_what_survives_is_reported_at_the_nominal_rate_and_what_is_planted_is_found(tmp_path):
    """Tables without dependence beyond k against exchanged ones, by interval and by p; then with it."""
    wrong, found = {"interval": 0, "p": 0}, 0
    for seed in range(60):
        options = {"sets": ["top_p_0.9"], "geometries": ["raw"]}
        for beyond_k in (0.0, 0.4):
            write_run(tmp_path / f"{seed}", draw_run(seed, 40, 12, beyond_k=beyond_k, **options), f"{beyond_k}")
        curve, tests = analyse(tmp_path / f"{seed}", [("0.0", "data"), ("0.4", "data")], tables=39)
        assert len(curve) == 12
        tests = tests[tests["null"] == "same_k"].set_index("Model")
        wrong["interval"] += not tests.loc["0.0", "difference low"] <= 0 <= tests.loc["0.0", "difference high"]
        wrong["p"] += tests.loc["0.0", "median p"] <= 0.05
        found += tests.loc["0.4", "difference low"] > 0
    assert all(stats.binomtest(count, 60, 0.05, "greater").pvalue > 0.01 for count in wrong.values()), wrong
    assert found >= 55


def test_the_same_seed_gives_the_same_tables_and_a_run_its_own_whatever_others_there_are(folder, both):
    keys = [("model", "data")]
    once, again, other = analyse(folder, keys), analyse(folder, keys), analyse(folder, keys, seed=1)
    pd.testing.assert_frame_equal(once[1], again[1])
    assert not once[1]["median null"].equals(other[1]["median null"])
    pd.testing.assert_frame_equal(once[1], both[1][both[1]["Model"] == "model"].reset_index(drop=True))
    assert (once[0]["Model"] == "model").all()  # no mean over a single run


def test_runs_without_a_pair_give_tables_without_rows(tmp_path):
    alone = draw_run(0, 3, 4)
    alone = alone.assign(k=1, cosine=np.nan)
    write_run(tmp_path, alone)
    curve, tests = analyse(tmp_path, [("model", "data")])
    assert (len(curve), len(tests)) == (0, 0)
    assert list(curve) == specification.list_columns()
    assert list(tests) == specification.list_test_columns()
    assert [len(each) for each in specification.compute_specifications({})] == [0, 0]


def test_variants_of_other_tokens_are_refused_in_one_line(tmp_path):
    table = draw_run(0, 3, 4)
    drop = (table["geometry"] == "all_but_top_3") & (table["candidates"] == "top_p_0.9") & (table["step"] == 2)
    write_run(tmp_path, table[~drop])
    with pytest.raises(ValueError, match="different tokens in geometry all_but_top_3"):
        candidate_tables.load_set(tmp_path / "data" / "model", "top_p_0.9")


def test_a_coefficient_without_an_interval_is_in_the_curve_and_not_in_the_tests(tmp_path):
    table = draw_run(0, 12, 8, sets=["top_p_0.5", "top_p_0.9"])
    rare = (table["candidates"] == "top_p_0.5") & (table["prompt"] > 0)
    write_run(tmp_path, table.assign(k=table["k"].mask(rare, 1), cosine=table["cosine"].mask(rare)))
    curve, tests = analyse(tmp_path, [("model", "data")])
    alone = curve[curve["candidates"] == "top_p_0.5"]
    assert len(alone)
    assert set(alone["sign"]) == {""}  # one prompt
    assert tests["specifications"].tolist() == [len(curve) - len(alone)] * 2
    assert (tests[["negative", "positive", "undecided"]].sum(axis=1) == tests["specifications"]).all()
    others = curve[curve["candidates"] == "top_p_0.9"]
    assert tests["median"].iloc[0] == pytest.approx(others["r"].median())
    assert tests.set_index("null").loc["all", "difference"] == pytest.approx(others["r"].median())
    assert tests.set_index("null")["reference"].tolist() == pytest.approx([others["same_k"].median(), 0])
    np.testing.assert_allclose(tests["median"] - tests["reference"], tests["difference"])
