"""`null_models`: nothing is found beyond k where nothing is planted, what is planted is, and each null model."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from nucleoscope.stats import candidate_tables, explained, null_models, specification
from nucleoscope.views import made_of_figures, made_of_text
from variant_files import draw_nulls, draw_run, draw_vocabulary, write_run

OF_VARIANT = {"candidates": "top_p_0.9", "geometry": "raw"}


def find_row(table: pd.DataFrame, null: str, model: str = "model", **choices: str) -> pd.Series:
    wanted = {"Model": model, "null": null, **OF_VARIANT, **choices}
    rows = table[(table[list(wanted)] == pd.Series(wanted)).all(axis=1)]
    assert len(rows) == 1
    return rows.iloc[0]


def compare_exchanged(seed: int, beyond_k: float, level: float = 0.0) -> dict[str, tuple[float, float]]:
    """The intervals of the difference from exchanged sets, of one synthetic table."""
    table = draw_run(seed, 40, 12, beyond_k=beyond_k, level=level, sets=["top_p_0.9"], geometries=["raw"])
    table = table[table["k"] > 1]
    columns = (table[name].to_numpy() for name in ("entropy", "cosine", "k", "prompt"))
    x, y, k, prompt = columns
    observed, exchanged = null_models.compute_coefficients(x, y[:, None], k, prompt, ("prompts of", "data"))
    return {name: (observed[0][name] - exchanged[0][name]).compute_bounds(False) for name in null_models.STATISTICS}


@pytest.mark.parametrize("level", [0.0, 0.05])
def test_where_nothing_is_planted_beyond_k_it_is_reported_at_the_nominal_rate(level):
    """200 tables in which cosine depends on k alone; with ``level``, prompts have levels of their own of both."""
    wrong = dict.fromkeys(null_models.STATISTICS, 0)
    for seed in range(200):
        for name, (low, high) in compare_exchanged(seed, 0.0, level).items():
            wrong[name] += not low <= 0 <= high
    assert all(stats.binomtest(count, 200, 0.05, "greater").pvalue > 0.01 for count in wrong.values()), wrong


def test_what_is_planted_beyond_k_is_found_with_its_sign():
    found = [compare_exchanged(seed, 0.3) for seed in range(20)]
    for name in null_models.STATISTICS:
        assert sum(each[name][0] > 0 for each in found) >= 19
    against = [compare_exchanged(seed, -0.3) for seed in range(20)]
    assert sum(each["given k"][1] < 0 for each in against) >= 19


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """The table of two runs, of which one has no nulls.parquet."""
    folder = tmp_path_factory.mktemp("results")
    first, second = draw_run(0, beyond_k=0.2), draw_run(1)
    write_run(folder, first, "model", "data", draw_nulls(first), draw_vocabulary())
    write_run(folder, second, "other", "data")
    runs, missing = candidate_tables.find_measured(folder, [("model", "data"), ("other", "data"), ("none", "data")])
    assert sorted(runs) == [("model", "data"), ("other", "data")]
    assert missing == {("none", "data"): ""}
    return null_models.compute_null_statistics(runs)


def test_a_stored_null_has_the_coefficients_of_its_rows_and_those_measured_on_its_tokens(table):
    variants, stored = draw_run(0, beyond_k=0.2), draw_nulls(draw_run(0, beyond_k=0.2))
    own = variants[(variants["candidates"] == "top_p_0.9") & (variants["geometry"] == "raw") & (variants["k"] > 1)]
    for null in ("other_step", "random", "gaussian_states"):
        rows = stored[(stored[["candidates", "geometry"]] == pd.Series(OF_VARIANT)).all(axis=1)]
        rows = rows[(rows["null"] == null) & (rows["k"] > 1)]
        found = find_row(table, null)
        draws = [stats.spearmanr(part["entropy"], part["cosine"]).statistic for _, part in rows.groupby("draw")]
        assert found["Spearman r"] == pytest.approx(np.mean(draws), abs=1e-6)
        assert found["draws"] == len(draws)
        same = own
        if null != "gaussian_states":
            same = own.merge(rows[["prompt", "step"]].drop_duplicates())
            assert found["tokens"] == len(same)
        assert found["Spearman observed"] == pytest.approx(
            stats.spearmanr(same["entropy"], same["cosine"]).statistic, abs=1e-4
        )  # float32 in the file makes ties of a few values
        assert found["Spearman difference"] == pytest.approx(found["Spearman observed"] - found["Spearman r"])
        assert found["Spearman ratio"] == pytest.approx(found["Spearman r"] / found["Spearman observed"])
        assert found["Spearman difference low"] < found["Spearman difference"] < found["Spearman difference high"]
    random = find_row(table, "random")
    assert random["Spearman low"] < 0 < random["Spearman high"]
    assert find_row(table, "other_step")["Spearman high"] < -0.2


def test_exchanged_sets_have_no_coefficient_given_k_and_keep_what_k_gives(table):
    row = find_row(table, "same_k")
    assert row["given k r"] == 0
    assert np.isnan(row["given k low"])
    assert row["given k difference low"] > 0  # planted
    assert row["Spearman r"] < row["Spearman observed"] < 0


def test_a_run_without_null_sets_has_exchanged_ones_only(table):
    assert set(table.loc[table["Model"] == "other", "null"]) == {"observed", "same_k"}
    assert set(table.loc[table["Model"] == "model", "null"]) == {"observed", *null_models.NULLS}
    assert set(table.loc[table["null"] == "random", "candidates"]) == {"top_p_0.5", "top_p_0.9"}


def test_the_mean_over_runs_is_that_of_fishers_z(table):
    for null in ("observed", "same_k"):
        each = [find_row(table, null, model)["Spearman r"] for model in ("model", "other")]
        pooled = find_row(table, null, null_models.POOLED)
        assert pooled["Spearman r"] == pytest.approx(np.tanh(np.mean(np.arctanh(each))))
        assert pooled["Spearman low"] < pooled["Spearman r"] < pooled["Spearman high"]
        assert pooled["runs"] == 2
    assert find_row(table, "random", null_models.POOLED)["runs"] == 1


def test_no_runs_give_a_table_without_rows():
    assert list(null_models.compute_null_statistics({}).columns) == null_models.list_columns()


def test_means_are_over_runs_with_the_same_values_of_a_setting(tmp_path):
    names = [("m@top_p=0.9", "a"), ("m@top_p=0.95", "a"), ("n@top_p=0.9", "a")]
    for seed, (model, dataset) in enumerate(names):
        drawn = draw_run(seed, 12, 10, sets=["top_p_0.9", "top_p_0.95"], geometries=["raw"])
        write_run(tmp_path, drawn, model, dataset, top_p=float(model.rpartition("=")[2]))
    runs, _ = candidate_tables.find_measured(tmp_path, names)
    found = null_models.compute_null_statistics(runs)
    curve, tests = specification.compute_specifications(runs, tables=5)
    ladder, _ = explained.compute_explained(runs)
    heads = [["m", "a", 0.9, 1], ["m", "a", 0.95, 1], ["n", "a", 0.9, 1], ["(all)", "(all)", 0.9, 2]]
    for table in (found, curve, tests):
        assert list(table)[:4] == ["Model", "Dataset", "top_p", "runs"]
        assert table[["Model", "Dataset", "top_p", "runs"]].drop_duplicates().to_numpy().tolist() == heads
    assert list(ladder)[:3] == ["Model", "Dataset", "top_p"]
    said = made_of_text.describe_answer(curve).splitlines()
    assert len(said) == 2
    assert said[0].startswith("* With top&#95;p 0.9: **candidates")
    assert "(mean over 2 runs: m and n on a; " in said[0]
    assert "(m on a;" in said[1]
    said = made_of_text.describe_same_k(found)
    assert said.index("With top&#95;p 0.9: ") < said.index("With top&#95;p 0.95: ")
    assert made_of_text.explain_varied(curve).startswith("Runs of one model on one data set differ in `top_p`.")
    groups = list(map(made_of_figures.name_group, made_of_figures.list_groups(curve)))
    assert groups == [
        "mean over runs, top_p 0.9",
        *(f"{m}, a, top_p {p}" for m, p in (("m", 0.9), ("m", 0.95), ("n", 0.9))),
    ]


def test_a_set_of_which_no_token_has_all_values_is_compared_with_nothing(tmp_path):
    """It ended the analysis of all runs."""
    table, nulls = draw_run(0), draw_nulls(draw_run(0))
    folder = write_run(tmp_path / "entropies", table.assign(entropy=np.nan), nulls=nulls)
    assert {each.null for each in null_models.compute_run(folder, "model", "data")} <= {
        null_models.OBSERVED,
        null_models.SAME_K,
        null_models.GAUSSIAN,
    }
    odd = table["step"] % 2 == (table["geometry"] == "raw")
    folder = write_run(tmp_path / "cosines", table.assign(cosine=table["cosine"].where(odd)), nulls=nulls)
    assert all(
        each.null in (null_models.OBSERVED, null_models.SAME_K, null_models.GAUSSIAN)
        for each in null_models.compute_run(folder, "model", "data")
    )
