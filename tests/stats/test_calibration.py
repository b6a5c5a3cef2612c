"""Calibration: texts with a known source are judged rightly at the nominal rate, and pairs of texts are compared."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom

import sources
from nucleoscope.stats import calibration
from nucleoscope.stats.bootstrap import JACKKNIFE, PERCENTILE
from nucleoscope.stats.calibration import ALL, CLOPPER_PEARSON, EXISTING, OUTSIDE, SURPRISAL, WRITTEN

TABLES = 200


def covers(rows: pd.DataFrame, name: str) -> pd.Series:
    return (rows[f"{name} difference low"] <= 0) & (rows[f"{name} difference high"] >= 0)


def calibrate_many(text: str, length: int = 12, **options) -> pd.DataFrame:
    """The rows of all tokens of `TABLES` independent tables."""
    tables = (sources.draw_text(seed, text, length=length, **options) for seed in range(TABLES))
    return pd.concat([calibration.calibrate(table, text, bins=1, resamples=300)[:1] for table in tables])


@pytest.mark.parametrize("prompts", [12, 60])  # both kinds of intervals; percentiles are a little short below 60
def test_a_calibrated_source_is_found_calibrated_at_the_nominal_rate(prompts):
    rows = calibrate_many(EXISTING, prompts=prompts)
    assert set(rows["surprisal interval"]) == {JACKKNIFE if prompts < 30 else PERCENTILE}
    for name in (OUTSIDE, SURPRISAL):
        assert 0.9 < covers(rows, name).mean() < 0.99, name  # 0.95, give or take three standard errors
        inside = rows[name].between(rows[f"{name} expected low"], rows[f"{name} expected high"])
        assert 0.9 < inside.mean() < 0.99, name  # the band, which knows nothing of the prompts


def test_what_the_model_wrote_agrees_with_the_cross_entropy_and_not_with_full_entropy():
    rows = calibrate_many(WRITTEN)
    assert 0.9 < covers(rows, SURPRISAL).mean() < 0.99
    assert (rows[SURPRISAL] < rows["full entropy"]).all()
    assert (rows[[OUTSIDE, f"{OUTSIDE} high", f"{OUTSIDE} expected", f"{OUTSIDE} difference"]] == 0).all(axis=None)


@pytest.mark.parametrize(("believed", "sign"), [(1.6, 1), (0.6, -1)])
def test_a_model_that_is_too_sure_or_not_sure_enough_is_found_out_in_that_direction(believed, sign):
    row = calibration.calibrate(sources.draw_text(0, believed=believed, prompts=60), EXISTING).iloc[0]
    for name in (OUTSIDE, SURPRISAL):
        low, high = (row[f"{name} difference {end}"] for end in ("low", "high"))
        assert sign * low > 0 < sign * high, name
        assert not row[f"{name} expected low"] <= row[name] <= row[f"{name} expected high"]


def test_the_numbers_are_those_of_the_definitions():
    table = sources.draw_text(3, prompts=40)
    rows = calibration.calibrate(table, EXISTING)
    assert list(rows["bin"]) == [ALL, *map(str, range(1, 11))]
    assert rows["tokens"].tolist() == [1000, *[100] * 10]
    for row, part in [(rows.iloc[0], table), (rows.iloc[10], table.nlargest(100, "full_entropy"))]:
        assert row[OUTSIDE] == pytest.approx((part["rank"] > part["k"]).mean())
        assert row[f"{OUTSIDE} expected"] == pytest.approx(1 - part["mass"].mean())
        assert row[SURPRISAL] == pytest.approx(part["surprisal"].mean())
        assert row[f"{SURPRISAL} expected"] == pytest.approx(part["full_entropy"].mean())
        width = row[f"{SURPRISAL} expected high"] - row[f"{SURPRISAL} expected low"]
        assert width == pytest.approx(2 * 1.959964 * part["full_varentropy"].sum() ** 0.5 / len(part))
    written = calibration.calibrate(table, WRITTEN).iloc[0]
    assert written[f"{SURPRISAL} expected"] == pytest.approx((table["entropy"] - np.log(table["mass"])).mean())


def test_a_bin_without_a_token_outside_is_not_taken_for_certain():
    table = sources.draw_text(0, prompts=40).query("rank <= k")
    row = calibration.calibrate(table, EXISTING).iloc[1]
    assert row[OUTSIDE] == row[f"{OUTSIDE} low"] == 0
    assert row[[f"{OUTSIDE} interval", f"{SURPRISAL} interval"]].tolist() == [CLOPPER_PEARSON, JACKKNIFE]
    assert row[f"{OUTSIDE} high"] == pytest.approx(1 - 0.025 ** (1 / row["tokens"]))
    assert row[f"{OUTSIDE} difference high"] == pytest.approx(row[f"{OUTSIDE} high"] - row[f"{OUTSIDE} expected"])


def test_few_tokens_have_one_bin_and_equal_entropies_share_one():
    assert set(calibration.assign_bins(np.arange(30.0))) == {0}
    places = calibration.assign_bins(np.r_[np.zeros(300), np.arange(1, 101)])
    assert places.max() < 9
    assert len(set(places[:300])) == 1
    assert set(calibration.assign_bins(np.zeros(500))) == {0}


def test_one_prompt_has_no_interval_and_no_token_has_no_row():
    row = calibration.calibrate(sources.draw_text(0, prompts=1), EXISTING).iloc[0]
    assert np.isnan(row[[f"{SURPRISAL} low", f"{SURPRISAL} difference high"]].astype(float)).all()
    assert row[f"{SURPRISAL} expected low"] < row[f"{SURPRISAL} expected"]
    empty = sources.draw_text(0).assign(rank=np.nan)
    assert calibration.calibrate(empty, EXISTING).empty
    with pytest.raises(ValueError, match="text is 'human': it must be existing or written"):
        calibration.calibrate(empty, "human")


def compare(existing: pd.DataFrame, written: pd.DataFrame, **options) -> pd.DataFrame:
    return calibration.compare_texts(existing, written, **options).set_index("quantity")


def test_texts_are_compared_over_the_prompts_that_both_have_and_the_tokens_that_have_the_quantity():
    existing, written = sources.draw_text(1), sources.draw_text(2, "written")
    found = compare(existing[existing["prompt"] > 4], written[written["prompt"] < 30], resamples=100)
    existing, written = (table[table["prompt"].between(5, 29)] for table in (existing, written))
    assert set(found["prompts"]) == {25}
    for name in ("surprisal", "full_entropy", "k", "margin", "cosine"):
        row = found.loc[name]
        means = existing[name].mean(), written[name].mean()
        assert row[["existing", "written", "difference"]].tolist() == pytest.approx([*means, means[0] - means[1]])
        assert row["difference low"] < row["difference"] < row["difference high"]
        assert row[["existing tokens", "written tokens"]].tolist() == [existing[name].count(), written[name].count()]
    assert found.loc["excess_given_no_end", "existing"] == pytest.approx(
        (existing["surprisal"] - existing["full_entropy"]).mean()
    )
    assert found.loc["likeliest", "written"] == (written["rank"] == 1).mean()
    assert found.loc["outside", "existing"] == (existing["rank"] > existing["k"]).mean()


def test_an_interval_stays_in_the_range_of_its_quantity():
    table = sources.draw_text(0, prompts=3, length=5)
    one = table["prompt"] == 0
    uneven = table.assign(k=np.where(one, 900, 1), rank=np.where(one, 901, 1), margin=np.where(one, 0.0, 1.0))
    found = compare(uneven, uneven)
    assert found.loc["k", "existing low"] == 1 < found.loc["k", "existing"]
    for name in ("outside", "likeliest", "margin"):
        assert found.loc[name, ["existing low", "written high"]].tolist() == [0, 1]
    other = compare(uneven, table)
    assert other.loc["k", "difference low"] < 0  # a difference may be negative


@pytest.mark.parametrize("prompts", [10, 40])
def test_prompts_are_resampled_together_so_that_what_texts_share_cancels(prompts):
    table = sources.draw_text(0, prompts=prompts, level=1.0)
    shifted = table.assign(surprisal=table["surprisal"] + 1)
    row = compare(shifted, table).loc["surprisal"]
    assert row["difference low"] == pytest.approx(1)
    assert row["difference high"] == pytest.approx(1)
    assert row["existing high"] - row["existing low"] > 0.1


def test_a_difference_of_two_sources_is_covered_at_the_nominal_rate():
    found = []
    for seed in range(100):
        one, other = (sources.draw_text(2 * seed + i, prompts=30, length=10) for i in (0, 1))
        row = compare(one, other, resamples=300).loc["surprisal"]
        found.append(row["difference low"] <= 0 <= row["difference high"])
    assert 0.87 < np.mean(found) <= 1


def test_texts_without_a_common_prompt_have_no_means():
    table = sources.draw_text(0, prompts=4)
    found = compare(table[table["prompt"] < 2], table[table["prompt"] >= 2])
    assert found[["existing", "difference", "difference low"]].isna().all(axis=None)
    assert set(found["prompts"]) == {0}


def test_the_distribution_of_a_count_is_exact():
    probabilities = np.random.default_rng(0).uniform(size=9)
    exact = np.ones(1)
    for p in probabilities:
        exact = np.convolve(exact, [1 - p, p])
    assert calibration.compute_count_distribution(probabilities) == pytest.approx(exact, abs=1e-14)
    found = calibration.compute_count_distribution(np.full(50, 0.3))
    assert found == pytest.approx(binom.pmf(np.arange(51), 50, 0.3), abs=1e-14)


@pytest.mark.parametrize("mean", [0.17, 1.0, 30.0])
def test_the_band_of_a_count_contains_what_it_promises_also_at_tiny_means(mean):
    probabilities = np.full(100, mean / 100)
    chance = binom.pmf(np.arange(101), 100, mean / 100)
    (low, high), _ = calibration.judge_count(probabilities, 0)
    assert chance[low : high + 1].sum() >= 0.95
    assert max(chance[:low].sum(), chance[high + 1 :].sum()) <= 0.025
    for count in range(40):
        assert (calibration.judge_count(probabilities, count)[1] <= 0.05) == (not low <= count <= high)


def test_no_bin_of_a_calibrated_source_is_judged_wrong_in_more_than_one_table_of_twenty():
    wrong = []
    for seed in range(tables := 60):
        rows = calibration.calibrate(sources.draw_text(seed), EXISTING, resamples=20)[1:]
        assert len(rows) == 10
        wrong.append(calibration.adjust_by_holm(rows[f"{OUTSIDE} p"].to_numpy()).min() <= 0.05)
    assert np.mean(wrong) < 0.05 + 3 * (0.05 * 0.95 / tables) ** 0.5


def test_holms_correction_is_that_of_its_definition():
    assert calibration.adjust_by_holm(np.array([0.03, 0.01, 0.02, 0.9])).tolist() == pytest.approx(
        [0.06, 0.04, 0.06, 0.9]
    )


def test_a_missing_variance_gives_no_band_and_a_missing_expectation_no_token():
    table = sources.draw_text(0)
    table.loc[0, ["full_varentropy", "varentropy"]] = np.nan
    for text in (EXISTING, WRITTEN):
        row = calibration.calibrate(table, text).iloc[0]
        assert np.isnan([row[f"{SURPRISAL} expected low"], row[f"{SURPRISAL} expected high"]]).all()
        assert row["tokens"] == len(table)
    table.loc[:9, "entropy"] = np.nan
    assert calibration.calibrate(table, WRITTEN).iloc[0]["tokens"] == len(table) - 10


def test_an_unknown_end_shifts_the_expectations_by_what_the_docstring_says():
    e = 0.04
    table = sources.draw_text(0, prompts=2000, ending=e, known=False)
    row = calibration.calibrate(table, EXISTING, bins=1, resamples=100).iloc[0]
    given = (table["full_entropy"] + e * np.log(e) + (1 - e) * np.log(1 - e)) / (1 - e)  # entropy given no end
    shift = -e * (np.log((1 - e) / e) - given.mean())
    assert row[f"{SURPRISAL} difference low"] < shift < row[f"{SURPRISAL} difference high"]
    assert row[f"{SURPRISAL} difference high"] < 0  # a calibrated source is not found calibrated
    assert not row[calibration.GIVEN]


@pytest.mark.parametrize(
    ("text", "ending", "steady"),
    [(EXISTING, 0.04, True), (EXISTING, 0.1, True), (EXISTING, 0.2, False), (WRITTEN, 0.1, True)],
)
def test_a_calibrated_source_that_may_end_is_judged_wrong_at_the_nominal_rate_if_ends_are_known(text, ending, steady):
    options = {"prompts": 24, "length": 40, "ending": ending, "steady": steady}
    known, unknown = (calibrate_many(text, known=known, **options) for known in (True, False))
    assert known[calibration.GIVEN].all()
    for name in (OUTSIDE, SURPRISAL) if text == EXISTING else (SURPRISAL,):
        assert 0.9 < covers(known, name).mean() < 0.99, name  # 0.95, give or take three standard errors
        inside = known[name].between(known[f"{name} expected low"], known[f"{name} expected high"])
        assert 0.9 < inside.mean() < 0.99, name
    assert covers(unknown, SURPRISAL).mean() < 0.9  # what is corrected


def create_token(p: np.ndarray, ends: list[int], token: int, top_p: float = 0.9) -> dict:
    """The row of a token from its distribution p, which has some ends, from the definitions."""
    order = np.argsort(-p, kind="stable")
    nucleus = order[: int((np.cumsum(p[order]) < top_p).sum()) + 1]
    inside = np.intersect1d(nucleus, ends)
    q, information = p[nucleus] / p[nucleus].sum(), -np.log(p)
    values = {"surprisal": information[token], "mass": p[nucleus].sum(), "end_probability": p[ends].sum()}
    for prefix, shares in (("full_", p), ("", q)):
        mean = -(shares * np.log(shares)).sum()
        values |= {f"{prefix}entropy": mean, f"{prefix}varentropy": (shares * (np.log(shares) + mean) ** 2).sum()}
    sums = [(p[inside] * information[inside] ** power).sum() for power in range(3)]
    return values | dict(zip(calibration.ENDS, sums, strict=True)) | {"nucleus": nucleus}


def condition(p: np.ndarray, ends: list[int], nucleus: np.ndarray, token: int) -> dict:
    """The same from the distribution given no end, in which the nucleus has the same other tokens."""
    others = np.setdiff1d(np.arange(len(p)), ends)
    given = np.zeros(len(p))
    given[others] = p[others] / p[others].sum()
    kept = np.setdiff1d(nucleus, ends)
    q, full = given[kept] / given[kept].sum(), given[others]
    values = {"surprisal": -np.log(given[token]), "mass": given[kept].sum()}
    for prefix, shares in (("full_", full), ("", q)):
        mean = -(shares * np.log(shares)).sum()
        values |= {f"{prefix}entropy": mean, f"{prefix}varentropy": (shares * (np.log(shares) + mean) ** 2).sum()}
    return values


@pytest.mark.parametrize("ends", [[3], [0, 5], [0, 1, 25]])
def test_conditioning_gives_the_quantities_of_the_distribution_without_ends(ends):
    p = np.sort(np.random.default_rng(len(ends)).gamma(0.5, size=40))[::-1]
    p /= p.sum()
    found = create_token(p, ends, 2)
    assert len(np.setdiff1d(ends, found["nucleus"])) < 2
    row = calibration.condition_on_continuing(pd.DataFrame([found])).iloc[0]
    for name, value in condition(p, ends, found["nucleus"], 2).items():
        assert row[name] == pytest.approx(value, abs=1e-9), name


def test_several_ends_outside_the_nucleus_raise_the_entropy_by_at_most_what_the_docstring_says():
    p = np.r_[0.6, 0.25, 0.06, np.full(3, 0.03)]
    found = create_token(p, ends := [3, 4, 5], 0)
    right = condition(p, ends, found["nucleus"], 0)["full_entropy"]
    row = calibration.condition_on_continuing(pd.DataFrame([found])).iloc[0]
    assert row["full_entropy"] - right == pytest.approx(0.09 * np.log(3) / 0.91)
    assert row["mass"] == pytest.approx(1)


def test_tokens_at_an_all_but_certain_end_and_ends_themselves_are_left_out_and_counted():
    table = sources.draw_text(0, ending=0.04)
    table.loc[:4, ["end_probability", "end_mass"]] = 0.9995
    table.loc[5:6, "end_mass"] = np.nan  # of a token that is an end
    row, *parts = calibration.calibrate(table, EXISTING).to_dict("records")
    assert (row["tokens"], row[calibration.LEFT_OUT]) == (len(table) - 7, 7)
    assert sum(part["tokens"] for part in parts) == len(table) - 7


def test_a_nucleus_of_ends_alone_leaves_every_token_of_a_continued_text_outside():
    found = create_token(np.array([0.95, 0.03, 0.02]), [0], 1)
    row = calibration.condition_on_continuing(pd.DataFrame([found])).iloc[0]
    assert row["mass"] == 0
    assert row["full_entropy"] == pytest.approx(-0.6 * np.log(0.6) - 0.4 * np.log(0.4))
    assert np.isnan(row["entropy"])


def test_the_excess_of_surprisal_is_given_no_end_where_both_texts_have_ends():
    existing, written = sources.draw_text(1, ending=0.05), sources.draw_text(2, "written", ending=0.05)
    found = compare(existing, written, resamples=100)
    given = calibration.condition_on_continuing(existing)
    right = (given["surprisal"] - given["full_entropy"]).mean()
    assert found.loc[calibration.EXCESS_GIVEN, "existing"] == pytest.approx(right)
    assert found.loc["end_probability", "existing"] == pytest.approx(0.05)
    assert calibration.EXCESS not in found.index
    older = compare(existing, sources.draw_text(2, "written", ending=0.05, known=False), resamples=100)
    right = (existing["surprisal"] - existing["full_entropy"]).mean()
    assert older.loc[calibration.EXCESS, "existing"] == pytest.approx(right)
