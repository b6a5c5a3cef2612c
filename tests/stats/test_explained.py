"""`explained`: predictors that matter are found on held-out prompts, and those that do not add nothing."""

import numpy as np
import pandas as pd
import pytest
import torch

from nucleoscope.stats import bootstrap, candidate_tables, correlation, explained
from nucleoscope.store import results
from variant_files import CLASSES, draw_run, draw_vocabulary, write_parquet, write_run

FEW = 200  # resamples


def choose_by_entropy(entropy, k, rng):
    """Candidates of one class: the higher the entropy, the later the class."""
    first = 50 * int(np.clip(entropy, 0, 2.9) // 0.4)
    return rng.integers(first, first + 50, k)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    words = draw_vocabulary()
    write_run(folder, draw_run(0, 60), "nothing", vocabulary=words)
    write_run(folder, draw_run(1, 60, beyond_k=0.6), "beyond", vocabulary=words)
    table = draw_run(2, 60)
    kind = np.clip(table["entropy"], 0, 2.9) // 0.4
    write_run(
        folder, table.assign(cosine=table["cosine"] + 0.2 * kind), "kind", vocabulary=words, choose=choose_by_entropy
    )
    write_run(folder, draw_run(3), "no words")
    names = ("nothing", "beyond", "kind", "no words")
    return candidate_tables.find_measured(folder, [(name, "data") for name in names])[0]


@pytest.fixture(scope="module")
def tables(runs):
    return explained.compute_explained(runs, FEW)


def find_row(ladder, model, predictors, geometry="raw"):
    rows = ladder[(ladder[["Model", "predictors", "geometry"]] == [model, predictors, geometry]).all(axis=1)]
    assert len(rows) == 1
    return rows.iloc[0]


def test_entropy_adds_something_only_where_it_is_planted(tables):
    ladder = tables[0]
    for without, with_it in (("k", "k + entropy"), ("k + kind", "k + kind + entropy")):
        found = find_row(ladder, "beyond", with_it)
        assert found["added low"] > 0.02
        assert found["added"] == pytest.approx(found["R2"] - find_row(ladder, "beyond", without)["R2"])
        assert abs(find_row(ladder, "nothing", with_it)["added"]) < explained.NOTICEABLE


def test_k_alone_explains_the_share_that_it_was_given(tables):
    table = draw_run(0, 60)
    own = table[(table["candidates"] == "top_p_0.9") & (table["geometry"] == "raw") & (table["k"] > 1)]
    r2 = np.corrcoef(np.log(own["k"]), own["cosine"])[0, 1] ** 2
    assert find_row(tables[0], "nothing", "k")["R2"] == pytest.approx(r2, abs=0.03)
    assert find_row(tables[0], "nothing", "k")["R2 low"] < r2 < find_row(tables[0], "nothing", "k")["R2 high"]


def test_what_the_kind_explains_entropy_does_not_add(tables):
    ladder = tables[0]
    assert find_row(ladder, "kind", "k + kind")["R2"] > find_row(ladder, "kind", "k")["R2"] + 0.1
    assert find_row(ladder, "kind", "k + kind + entropy")["added low"] < explained.NOTICEABLE


def test_a_run_without_a_vocabulary_is_named_with_the_reason(tables):
    rows = tables[0][tables[0]["Model"] == "no words"]
    assert len(rows) == 1
    assert "no vocabulary.parquet" in rows["note"].iloc[0]
    assert np.isnan(rows["R2"].iloc[0])
    assert "no words" not in set(tables[1]["Model"])


def test_features_are_shares_and_means_over_the_candidates(runs):
    found, pairs = explained.collect_features(runs["nothing", "data"], "nothing", "data")
    words = draw_vocabulary().set_index("id")
    records = torch.load(runs["nothing", "data"] / results.MEASUREMENTS, weights_only=True)
    for place in (0, 17, len(found) - 1):
        row = found.iloc[place]
        ids = records[int(row["prompt"])]["top_p_tokens"][int(row["step"])].numpy()
        own = words.loc[ids]
        assert row["k"] == len(ids)
        for name in CLASSES:
            assert row[name] == pytest.approx((own["class"] == name).mean())
        assert row["log frequency"] == pytest.approx(np.log10(own["mean_probability"]).mean(), abs=1e-5)
        assert row["norm"] == pytest.approx(own["norm"].mean(), abs=1e-5)
        assert [CLASSES[number] for number in pairs[place]] == own["class"].tolist()[:2]
    assert (found["k"] > 1).all()


def test_shares_of_the_covariance_add_up_and_are_those_of_its_definition(tables, runs):
    shares = tables[1][tables[1]["Model"] == "kind"]
    assert shares["share of covariance"].sum() == pytest.approx(1)
    assert shares["share of tokens"].sum() == pytest.approx(1)
    found, pairs = explained.collect_features(runs["kind", "data"], "kind", "data")
    chosen = ((pairs == CLASSES.index("digit")).all(axis=1)).astype(bool)
    x, y = (found[name] - found[name].mean() for name in ("entropy", "raw"))
    row = shares.set_index("classes").loc["digit, digit"]
    assert row["share of covariance"] == pytest.approx((x * y)[chosen].sum() / (x * y).sum())
    assert row["tokens"] == chosen.sum()


def climb_ladder(table, y, resamples):
    return explained.climb_ladders(table, {"raw": y}, resamples)["raw"]


def test_a_covariance_whose_sign_is_not_clear_has_no_shares():
    rng = np.random.default_rng(0)
    entropy, pairs = pd.Series(rng.normal(size=300)), rng.integers(0, 2, (300, 2))
    found = explained.split_covariance(entropy, entropy + rng.normal(size=300), pairs, clear=True)
    assert sum(row["share of covariance"] for row in found) == pytest.approx(1)
    unclear = explained.split_covariance(entropy, entropy + rng.normal(size=300), pairs, clear=False)
    assert np.isnan([row["share of covariance"] for row in unclear]).all()


@pytest.mark.parametrize("prompts", [1, 2, 12, 60])
def test_the_interval_that_decides_is_that_of_the_coefficients(prompts):
    table = draw_run(3, prompts, sets=("top_p_0.9",), geometries=("raw",))
    table = table[table["k"] > 1]
    expected = correlation.compute_coefficients(table, resamples=FEW).iloc[0][["Pearson low", "Pearson high"]]
    found = explained._bound_pearson(table.rename(columns={"cosine": "raw"}), FEW, 0)
    np.testing.assert_array_equal(found, expected.to_numpy(float))
    constant = table.rename(columns={"cosine": "raw"}).assign(raw=0.1)
    assert np.isnan(explained._bound_pearson(constant, FEW, 0)).all()


def test_few_tokens_or_prompts_are_said_and_not_fitted():
    table = pd.DataFrame({name: np.zeros(250) for name in ("entropy", "log k", *explained.KIND)}).assign(prompt=0)
    y = np.random.default_rng(0).normal(size=250)
    assert {row["note"] for row in climb_ladder(table, y, FEW)} == {"fewer than 5 prompts"}
    few = climb_ladder(table[:50], y[:50], FEW)
    assert {row["note"] for row in few} == {"fewer than 200 tokens with k > 1"}
    constant = climb_ladder(table.assign(prompt=np.arange(250)), np.ones(250), FEW)
    assert {row["note"] for row in constant} == {"cosine is constant"}


def test_cosines_are_predicted_at_once_as_each_would_be_alone():
    rng = np.random.default_rng(0)
    table = pd.DataFrame({name: rng.normal(size=600) for name in ("entropy", "log k", *explained.KIND)})
    table["prompt"] = np.arange(600) // 10
    cosines = {"raw": table["log k"] + rng.normal(size=600), "centred": table["norm"] + rng.normal(0, 5, 600)}
    cosines |= {"constant": np.ones(600), "some": np.where(table["prompt"] < 40, cosines["raw"], np.nan)}
    cosines = {name: np.asarray(values) for name, values in cosines.items()}
    found = explained.climb_ladders(table, cosines, FEW)
    assert list(found) == list(cosines)
    for name, values in cosines.items():
        for row, alone in zip(found[name], climb_ladder(table, values, FEW), strict=True):
            assert list(row) == list(alone)
            for key, value in row.items():
                assert value == (alone[key] if isinstance(value, str) else pytest.approx(alone[key], abs=1e-9))
    assert {row["note"] for row in found["constant"]} == {"cosine is constant"}
    assert {row["tokens"] for row in found["some"]} == {400}


def test_predictors_that_are_constant_explain_nothing():
    table = pd.DataFrame({name: np.zeros(250) for name in ("entropy", "log k", *explained.KIND)})
    y = np.random.default_rng(0).normal(size=250)
    rows = climb_ladder(table.assign(prompt=np.arange(250) // 5), y, FEW)
    assert all(row["R2"] == 0 for row in rows)
    assert {row["interval"] for row in rows} == {"percentile"}
    few = climb_ladder(table.assign(prompt=np.arange(250) // 25), y, FEW)
    assert {row["interval"] for row in few} == {"jackknife t"}


def test_of_many_tokens_whole_prompts_are_drawn_and_the_note_says_how_many(monkeypatch):
    monkeypatch.setattr(explained, "MOST", 300)
    rng = np.random.default_rng(0)
    table = pd.DataFrame({name: rng.normal(size=1000) for name in ("entropy", "log k", *explained.KIND)})
    rows = climb_ladder(table.assign(prompt=np.arange(1000) // 20), rng.normal(size=1000), FEW)
    assert {(row["tokens"], row["prompts"]) for row in rows} == {(300, 15)}
    assert {row["note"] for row in rows} == {"300 of 1,000 tokens"}


def test_a_candidate_that_the_vocabulary_does_not_list_is_refused(tmp_path):
    folder = write_run(tmp_path, draw_run(0, 10), vocabulary=draw_vocabulary())
    write_parquet(folder, "vocabulary.parquet", draw_vocabulary()[:100])
    with pytest.raises(ValueError, match="does not list"):
        explained.collect_features(folder, "model", "data")


def test_an_interval_of_an_explained_share_ends_at_one_and_that_of_a_difference_does_not():
    values = np.array([0.98, 0.5, 0.99, 0.99, 0.99])
    found = explained._bound("R2", values, bootstrap.JACKKNIFE)
    assert found["R2 high"] == 1 > found["R2"]
    assert explained._bound("added", values, bootstrap.JACKKNIFE)["added high"] > 1
    assert found["R2 low"] == explained._bound("added", values, bootstrap.JACKKNIFE)["added low"]


def test_one_token_of_a_rare_kind_does_not_outweigh_all_others():
    """In texts about numbers, one of 7,000 tokens had candidates in another script; R2 was -0.29 instead of 0.76."""
    rng = np.random.default_rng(0)
    n, prompts = 1500, 50
    table = pd.DataFrame({"prompt": np.arange(n) % prompts, "entropy": rng.uniform(0, 3, n)})
    table["log k"] = table["entropy"] + rng.normal(0, 0.3, n)
    for name in explained.KIND:
        table[name] = rng.uniform(0, 1, n)
    y = 0.3 * table["digit"].to_numpy() - 0.1 * table["log k"].to_numpy() + rng.normal(0, 0.05, n)
    usual = {row["predictors"]: row["R2"] for row in climb_ladder(table, y, 10)}
    rare = np.zeros(n)
    rare[[3, 5, 7]] = 1.0, 0.22, 0.6  # of three prompts: at 0.22, the part of a spline around 0.6 begins
    found = {row["predictors"]: row["R2"] for row in climb_ladder(table.assign(other_script=rare), y, 10)}
    assert usual["k + kind"] > 0.8
    for name in ("k + kind", "k + kind + entropy"):
        assert found[name] == pytest.approx(usual[name], abs=0.01)


@pytest.mark.parametrize("seed", [2, 4, 6])
def test_two_tokens_of_a_rare_kind_with_different_k_do_not_outweigh_all_others(seed):
    """R2 was -3.8, -4.2 and -0.96: the product with log k was scaled by a standard deviation that is almost 0."""
    rng = np.random.default_rng(seed)
    n = 1500
    table = pd.DataFrame({"prompt": np.arange(n) % 50, "entropy": rng.uniform(0, 3, n)})
    table["log k"] = np.log(np.maximum(2, np.round(np.exp(table["entropy"] + rng.normal(0, 0.5, n)))))
    for name in explained.KIND:
        table[name] = rng.uniform(0, 1, n)
    y = 0.3 * table["digit"].to_numpy() - 0.1 * table["log k"].to_numpy() + rng.normal(0, 0.05, n)
    order, rare = np.argsort(table["log k"].to_numpy()), np.zeros(n)
    rare[[order[n // 2 + 1], order[-1]]] = 1
    y[order[n // 2 + 1]] += 0.3
    usual, found = (
        {row["predictors"]: row["R2"] for row in climb_ladder(each, y, 10)}
        for each in (table, table.assign(other_script=rare))
    )
    for name in ("k + kind", "k + kind + entropy"):
        assert found[name] == pytest.approx(usual[name], abs=0.02)
