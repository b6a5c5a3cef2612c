"""`fits`: planted curves come back within their intervals, what is not there is refused, errors are counted out."""

import re

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from nucleoscope.stats import bootstrap, curves, fits
from nucleoscope.stats.curve_statistics import (
    Sample,
    compute_clustered_error,
    compute_explainable,
    compute_token_variances,
)
from synthetic import create_table, draw_curved, draw_full, draw_gaussian

pytestmark = pytest.mark.filterwarnings("error")

FEW = 20  # resamples, where intervals are not what is tested
PLANTED = {
    "decay": ({"a": 0.3, "b": 1.0, "c": 0.2}, lambda x, a, b, c: a * np.exp(-b * x) + c, None),
    "unimodal": ({"a": 0.5, "b": 1.0, "c": 0.3}, lambda x, a, b, c: a * x * np.exp(-b * x) + c, 1.0),
}
NUMBERS = [*fits.PARAMETERS, "peak", "alpha", "beta", "R2 (tokens)", "RMSE (tokens)", "of free", "of spline"]
planted_curves = pytest.mark.parametrize("kind", PLANTED)


def plant(kind: str, seed: int = 0, **options) -> pd.DataFrame:
    parameters, formula, _ = PLANTED[kind]
    return draw_curved(lambda x: formula(x, **parameters), seed, **options)


def list_columns(run: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return run["entropy"].to_numpy(), run["cosine"].to_numpy(), run["prompt"].to_numpy()


def fit_run(run: pd.DataFrame, resamples: int = FEW, seed: int = 0, equal: str = bootstrap.WIDTH) -> pd.DataFrame:
    """The rows of one run with one kind of bins, by curve."""
    return select_bins(fits.fit_all({("m", "d"): run}, resamples=resamples, seed=seed), equal)


def select_bins(frame: pd.DataFrame, equal: str = bootstrap.WIDTH) -> pd.DataFrame:
    return frame[frame["Bins"] == equal].drop(columns="Bins").set_index("Curve")


def weigh_bins(run: pd.DataFrame, equal: str = bootstrap.WIDTH):
    """The bins that have tokens: their centers, medians and weights."""
    bins = bootstrap.Bins(*list_columns(run), equal=equal)
    used = bins.count > 0
    weights = bins.count / compute_token_variances(bins)
    return bins.centers[used], bins.compute_medians()[used], weights[used]


def fit_medians(run: pd.DataFrame, kind: str, equal: str = bootstrap.WIDTH):
    """The curve that is fitted to the medians of all prompts, and the bins."""
    return curves.fit(kind, *weigh_bins(run, equal)), bootstrap.Bins(*list_columns(run), equal=equal)


# Planted curves


@planted_curves
def test_a_planted_curve_comes_back_within_its_intervals(kind):
    """Of 20 tables, a 95% interval holds the truth in 19; fewer than 16 happens to one in 400 such parameters."""
    parameters, _, peak = PLANTED[kind]
    truth, held = parameters | ({"peak": peak} if peak else {}), []
    for seed in range(20):
        x, y, prompt = list_columns(plant(kind, seed))
        row = Sample(x, y, prompt, 100, seed).compute_row(kind)
        held.append({name: row[f"{name} low"] <= value <= row[f"{name} high"] for name, value in truth.items()})
    counts = pd.DataFrame(held).sum()
    assert (counts >= 16).all(), counts.to_dict()


@planted_curves
@pytest.mark.parametrize("equal", fits.BINS)
def test_the_planted_curve_is_the_best_by_aicc_and_on_prompts_held_out(kind, equal):
    frame = fit_run(plant(kind), equal=equal)
    assert frame.loc[kind, "delta AICc"] == 0
    assert frame["delta AICc"].min() == 0
    assert frame["held-out error"].idxmin() == kind
    assert frame.loc[kind, "note"] == ""


def test_a_row_has_the_parameters_of_its_formula_only():
    frame = fit_run(plant("unimodal"))
    expected = {"constant": "c", "line": "ac", "decay": "abc", "unimodal": "abc"}
    for kind, names in expected.items():
        assert "".join(sorted(name for name in fits.PARAMETERS if pd.notna(frame.loc[kind, name]))) == names
        assert frame.loc[kind, "formula"] == curves.FORMULAS[kind]
    for name in fits.PARAMETERS:
        assert (frame[f"{name} low"].isna() == frame[name].isna()).all()
    assert frame.index[frame["peak"].notna()].tolist() == ["unimodal", "free"]
    assert frame.index[frame["rise"].notna()].tolist() == ["free"]


@planted_curves
def test_parameters_are_those_of_the_curve_through_the_medians_of_all(kind):
    run = plant(kind)
    row, (curve, bins) = fit_run(run).loc[kind], fit_medians(run, kind)
    assert row[list(curve.parameters)].to_dict() == pytest.approx(curve.parameters, rel=1e-12)
    np.testing.assert_allclose(
        bins.compute_medians(), stats.binned_statistic(*list_columns(run)[:2], "median", len(bins.count)).statistic
    )
    (x, y, n), f = weigh_bins(run), curve(bins.centers[bins.count > 0])
    assert row["bins"] == len(x)
    left, total = np.sum(n * (y - f) ** 2), np.sum(n * (y - np.average(y, weights=n)) ** 2)
    assert row["R2 (medians)"] == pytest.approx(1 - left / total, rel=1e-12)


@pytest.mark.parametrize("equal", fits.BINS)
def test_aicc_is_that_of_gaussian_errors(equal):
    run = plant("unimodal")
    frame, expected = fit_run(run, equal=equal), {}
    for kind in curves.FORMULAS:
        curve, _ = fit_medians(run, kind, equal)
        x, y, w = weigh_bins(run, equal)
        variance = np.sum(w * (y - curve(x)) ** 2) / len(x)
        p, n = curve.free + 1, len(x)  # the variance is a parameter as well
        expected[kind] = n * np.log(variance) + 2 * p + 2 * p * (p + 1) / (n - p - 1)
    expected = pd.Series(expected)
    np.testing.assert_allclose(frame.loc[list(curves.FORMULAS), "delta AICc"], expected - expected.min(), atol=1e-9)


def test_intervals_are_those_of_fits_to_prompts_drawn_again():
    run = plant("unimodal", prompts=20)
    row, found = fit_run(run, 30, seed=3).loc["unimodal"], []
    bins = bootstrap.Bins(*list_columns(run))
    variances = compute_token_variances(bins)  # those of the data, in every resample
    for counts in bootstrap.draw_counts(20, 30, seed=3):
        taken = run.loc[np.repeat(run.index, counts[run["prompt"]])]
        y, n = (
            stats.binned_statistic(taken["entropy"], taken["cosine"], s, bins.edges).statistic
            for s in ("median", "count")
        )
        used = n > 0
        found.append(curves.fit("unimodal", bins.centers[used], y[used], (n / variances)[used]).parameters)
    for name, values in pd.DataFrame(found).items():
        expected = np.quantile(values, [0.025, 0.975])
        np.testing.assert_allclose([row[f"{name} low"], row[f"{name} high"]], expected, rtol=1e-5)


def test_empty_bins_are_left_out_and_not_set_to_zero():
    """Bins that are empty, set to zero as in the published study, draw the curve down to them."""
    run = plant("unimodal")
    run = run[~run["entropy"].between(2, 4)]
    row, (_, bins) = fit_run(run).loc["unimodal"], fit_medians(run, "unimodal")
    assert row["bins"] == (bins.count > 0).sum() < 32
    zeros = curves.fit("unimodal", bins.centers, np.nan_to_num(bins.compute_medians()), np.ones(len(bins.count)))
    truth = PLANTED["unimodal"][0]
    for name in "bc":
        assert row[name] == pytest.approx(truth[name], rel=0.1)
        assert abs(zeros.parameters[name] - truth[name]) > 3 * abs(row[name] - truth[name])


# Refusals


def assert_refused(row: pd.Series, *reasons: str) -> None:
    assert row[NUMBERS].isna().all(), row[NUMBERS].dropna()
    assert row[[f"{name} low" for name in NUMBERS[:6]]].isna().all()
    for reason in reasons:
        assert reason in row["note"]


@pytest.fixture(scope="module")
def noise_only() -> list[pd.DataFrame]:
    """The fits to 20 tables whose cosine does not depend on entropy."""
    return [fit_run(draw_curved(lambda x: np.full(len(x), 0.4), seed, 40, 20), resamples=1) for seed in range(20)]


@pytest.mark.parametrize("kind", ["line", *PLANTED, "free"])
def test_flat_data_is_refused(noise_only, kind):
    """Two standard errors leave one table of forty or so."""
    rows = [frame.loc[kind] for frame in noise_only]
    right = [row for row in rows if "not better than a constant" in row["note"]]
    assert len(right) >= 18
    for row in right:
        assert_refused(row)


@pytest.mark.parametrize("value", [0.25, 0.5])
@pytest.mark.parametrize("kind", ["line", *PLANTED, "free"])
def test_constant_medians_are_refused(kind, value):
    """Every fifth token of each prompt stands out, on both sides alike: no median does."""
    x = np.tile(np.linspace(0.1, 3, 500), 10)
    y = np.full(5000, value)
    y[::10] += 0.5
    y[5::10] -= 0.5
    frame = fit_run(create_table(np.repeat(np.arange(10), 500), x, y))
    assert_refused(frame.loc[kind], "not better than a constant")
    assert frame.loc["constant", "c"] == pytest.approx(value, abs=1e-12)


# Errors


@pytest.mark.parametrize("kind", ["constant", "line", "unimodal", "free"])
def test_the_held_out_error_is_that_of_curves_fitted_to_the_other_prompts(kind):
    run = plant("unimodal", prompts=10)  # ten folds: one prompt each
    x, y, prompt = list_columns(run)
    bins, errors = bootstrap.Bins(x, y, prompt), np.empty(len(x))
    variances = compute_token_variances(bins)
    for held in range(10):
        other = prompt != held
        medians, n = (stats.binned_statistic(x[other], y[other], s, bins.edges).statistic for s in ("median", "count"))
        used, w = n > 0, n / variances
        errors[~other] = np.abs(y - curves.fit(kind, bins.centers[used], medians[used], w[used])(x))[~other]
    assert fit_run(run).loc[kind, "held-out error"] == pytest.approx(errors.mean(), rel=1e-5)


def test_a_prompt_held_out_does_not_help_its_own_curve():
    """One prompt fills bins of its own, where a free curve that had seen it would be right."""
    run = plant("unimodal", prompts=10, noise=0.001, level=0, length=300)
    alone = (run["prompt"] == 4).to_numpy()
    run.loc[alone, "entropy"] += 10
    run.loc[alone, "cosine"] += 5
    row, (seen, _) = fit_run(run).loc["free"], fit_medians(run, "free")
    assert np.abs(seen(run["entropy"]) - run["cosine"])[alone].mean() < 0.1
    assert row["held-out error"] > 0.1 * 4.5  # a tenth of the tokens, five away


def test_folds_hold_whole_prompts_of_about_the_same_number():
    x, y, prompt = list_columns(plant("unimodal", prompts=25, length=10))
    sample = Sample(x, y, prompt, 1, 0)
    assert sorted(np.bincount(sample.fold)) == [2] * 5 + [3] * 5
    assert len(sample.without) == 10


# The linear model


@planted_curves
def test_the_linear_model_is_that_of_least_squares_with_clustered_errors(kind):
    run = plant(kind)
    frame = fit_run(run)
    row, (curve, _) = frame.loc[kind], fit_medians(run, kind)
    x, y, prompt = list_columns(run)
    design = np.stack([np.ones(len(x)), curve(x)], axis=1)
    coefficients = np.linalg.lstsq(design, y)[0]
    left = y - design @ coefficients
    assert row[["alpha", "beta"]].tolist() == pytest.approx(coefficients.tolist(), rel=1e-9)
    assert row["R2 (tokens)"] == pytest.approx(1 - left.var() / y.var(), rel=1e-9)
    assert row["RMSE (tokens)"] == pytest.approx(np.sqrt(np.mean(left**2)), rel=1e-12)
    # The sandwich: bread of the design, meat of the sums of the scores over each prompt.
    scores = np.stack([np.bincount(prompt, left * column) for column in design.T], axis=1)
    bread = np.linalg.inv(design.T @ design)
    g, n = len(scores), len(x)
    variance = bread @ scores.T @ scores @ bread * g / (g - 1) * (n - 1) / (n - 2)
    margin = stats.t.ppf(0.975, g - 1) * np.sqrt(np.diag(variance))
    for name, value, far in zip(("alpha", "beta"), coefficients, margin, strict=True):
        assert row[f"{name} low"] == pytest.approx(value - far, rel=1e-7)
        assert row[f"{name} high"] == pytest.approx(value + far, rel=1e-7)


def test_the_curve_that_is_there_has_alpha_0_and_beta_1():
    row = fit_run(plant("unimodal")).loc["unimodal"]
    assert row["alpha low"] < 0 < row["alpha high"]
    assert row["beta low"] < 1 < row["beta high"]


@pytest.mark.parametrize(
    "run", [plant("unimodal"), draw_gaussian(0), draw_full(0)], ids=["unimodal", "gaussian", "ties"]
)
def test_smooth_curves_explain_at_least_what_a_line_does(run):
    x, y, _ = list_columns(run[run["k"] > 1])
    assert compute_explainable(x, y) >= stats.linregress(x, y).rvalue ** 2 - 1e-12


def test_what_smooth_curves_explain_is_that_of_cubic_pieces_between_deciles():
    x, y, _ = list_columns(plant("unimodal"))
    knots = np.quantile(x, np.arange(1, 10) / 10)
    design = np.stack([x**power for power in range(4)] + [np.maximum(x - knot, 0) ** 3 for knot in knots], axis=1)
    left = y - design @ np.linalg.lstsq(design, y)[0]
    assert compute_explainable(x, y) == pytest.approx(1 - left.var() / y.var(), abs=1e-9)


def test_shares_are_those_of_what_the_free_curve_and_smooth_curves_explain():
    run = plant("unimodal")
    frame = fit_run(run)
    for name, reference in (
        ("free", frame.loc["free", "R2 (tokens)"]),
        ("spline", compute_explainable(*list_columns(run)[:2])),
    ):
        np.testing.assert_allclose(frame[f"of {name}"], frame["R2 (tokens)"] / reference, rtol=1e-12)
    assert frame.loc["unimodal", "of spline"] > 0.97
    assert frame.loc["constant", "of free"] == 0


def test_only_the_spline_follows_medians_that_rise_again():
    frame = fit_run(draw_curved(lambda x: 0.3 + 0.1 * np.cos(2 * x), 0))
    assert frame["held-out error"].idxmin() == frame["delta AICc"].idxmin() == "spline"
    assert frame.loc["spline", "R2 (medians)"] > 0.9 > frame.loc["free", "R2 (medians)"]


def test_a_constant_explains_nothing():
    run = plant("unimodal")
    row = fit_run(run).loc["constant"]
    assert (row["R2 (tokens)"], row["R2 (medians)"]) == (0, pytest.approx(0, abs=1e-12))
    assert row["RMSE (tokens)"] == pytest.approx(run["cosine"].std(ddof=0))
    assert np.isnan(row[["alpha", "beta", "peak"]].astype(float)).all()


# Runs and pools


def create_runs(*names: tuple[str, str]) -> dict:
    return {
        (m, d): plant("unimodal", seed, prompts=12, length=15, model=m, dataset=d) for seed, (m, d) in enumerate(names)
    }


def list_groups(tables: dict) -> list[tuple[str, str]]:
    frame = fits.fit_all(tables, resamples=2)
    found = list(dict.fromkeys(zip(frame["Model"], frame["Dataset"], strict=True)))
    found = [key for key in found if fits.RANDOM not in key]
    assert (frame["Model"] != fits.RANDOM).sum() == len(found) * len(curves.FORMULAS) * len(fits.BINS)
    return found


def test_one_model_on_three_data_sets_has_one_pool():
    assert list_groups(create_runs(("m", "a"), ("m", "c"), ("m", "b"))) == [
        ("m", "a"),
        ("m", "b"),
        ("m", "c"),
        ("m", "(all)"),
    ]


def test_two_models_on_two_data_sets_have_four_pools():
    found = list_groups(create_runs(("m", "a"), ("m", "b"), ("n", "a"), ("n", "b")))
    assert found[4:] == [("m", "(all)"), ("n", "(all)"), ("(all)", "a"), ("(all)", "b")]


def test_a_pool_of_one_run_has_no_rows():
    assert list_groups(create_runs(("m", "a"))) == [("m", "a")]
    assert list_groups(create_runs(("m", "a"), ("n", "b"))) == [("m", "a"), ("n", "b")]


def test_no_runs_give_no_rows():
    assert len(fits.fit_all({})) == 0
    assert len(fits.compute_lines({})) == 0


def test_a_prompt_is_one_cluster_whatever_the_model_and_another_in_another_data_set():
    frame = fits.fit_all(create_runs(("m", "a"), ("m", "b"), ("n", "a"), ("n", "b")), resamples=2)
    prompts = frame.groupby(["Model", "Dataset"])["prompts"].first()
    tokens = frame.groupby(["Model", "Dataset"])["tokens"].first()
    assert prompts["m", "a"] == prompts["(all)", "a"] == 12
    assert prompts["m", "(all)"] == 24
    assert tokens["(all)", "a"] == tokens["m", "(all)"] == 2 * tokens["m", "a"] == 360


def test_a_pool_is_a_run_with_all_the_tokens():
    tables = create_runs(("m", "a"), ("n", "a"))
    frame = select_bins(fits.fit_all(tables, resamples=10))
    pool = frame[frame["Model"] == "(all)"].drop(columns=["Model", "Dataset"])
    alone = fit_run(pd.concat(tables.values(), ignore_index=True), 10).drop(columns=["Model", "Dataset"])
    pd.testing.assert_frame_equal(pool, alone)


def test_two_processes_give_the_table_of_one():
    tables = create_runs(("m", "a"), ("m", "b"))
    one, two = (fits.fit_all(tables, resamples=5, jobs=jobs) for jobs in (1, 2))
    pd.testing.assert_frame_equal(one, two)


def test_a_seed_gives_the_same_table_and_another_other_intervals():
    run = plant("unimodal", prompts=20)
    pd.testing.assert_frame_equal(fit_run(run, seed=1), fit_run(run, seed=1))
    one, two = (fit_run(run, seed=seed).loc["unimodal"] for seed in (1, 2))
    assert (one["a"], one["R2 (tokens)"]) == (two["a"], two["R2 (tokens)"])
    assert one["a low"] != two["a low"]


def test_other_quantities_can_be_fitted():
    run = draw_full(0)
    frame = fits.fit_all({("m", "d"): run}, "full_entropy", "weighted_cosine", resamples=2)
    assert (frame["tokens"] == (run["k"] > 1).sum()).all()
    renamed = run.assign(entropy=run["full_entropy"], cosine=run["weighted_cosine"])
    pd.testing.assert_frame_equal(frame, fits.fit_all({("m", "d"): renamed}, resamples=2))


def test_tokens_without_an_alternative_are_left_out():
    run = draw_full(0)
    pd.testing.assert_frame_equal(fit_run(run, 2), fit_run(run[run["k"] > 1], 2))
    assert (fit_run(run, 2)["tokens"] == (run["k"] > 1).sum()).all()


def test_lines_are_the_curves_of_the_table():
    run = plant("unimodal")
    frame = fits.compute_lines({("m", "d"): run})
    assert list(frame)[:4] == ["Model", "Dataset", "Bins", "Curve"]
    assert set(curves.FORMULAS) <= set(frame["Curve"])
    for (equal, kind), points in frame[frame["Curve"].isin(curves.FORMULAS)].groupby(["Bins", "Curve"]):
        np.testing.assert_allclose(points["y"], fit_medians(run, kind, equal)[0](points["x"]))
    for equal, points in frame[frame["Curve"] == "medians"].groupby("Bins"):
        _, medians, weights = weigh_bins(run, equal)
        np.testing.assert_array_equal(points["y"], medians)
        np.testing.assert_allclose(points["weight"], weights / weights.sum())


# Runs that nothing can be said of


def assert_nothing_fitted(run: pd.DataFrame, reason: str) -> None:
    """Every curve has its row, no number, and the reason."""
    frame = fit_run(run)
    assert list(frame.index) == [*curves.FORMULAS]
    for _, row in frame.iterrows():
        assert_refused(row, reason)
    assert list(frame) == list(fit_run(plant("unimodal")))
    assert len(fits.compute_lines({("m", "d"): run})) == 0


@pytest.mark.parametrize("name", ["entropy", "cosine"])
@pytest.mark.parametrize("value", [0.0, 0.1, 1 / 3])
def test_a_constant_column_is_named(name, value):
    assert_nothing_fitted(draw_full(0).assign(**{name: value}), "constant")


@pytest.mark.parametrize("tokens", [0, 1, 2])
def test_fewer_than_three_tokens_are_named(tokens):
    run = draw_full(0)
    few = pd.concat([run[run["k"] > 1][:tokens], run[run["k"] == 1]])
    assert_nothing_fitted(few, "fewer than three tokens")
    assert_nothing_fitted(few[:tokens], "fewer than three tokens")


def test_one_prompt_is_named():
    run = draw_full(0)
    assert_nothing_fitted(run[run["prompt"] == 3], "only one prompt has tokens with k > 1")


def test_too_few_bins_are_named():
    run = draw_full(0)
    assert_nothing_fitted(run.assign(entropy=run["step"] % 7), "only 7 bins contain tokens; 8 are needed")


def test_one_poor_run_does_not_touch_the_others():
    tables = create_runs(("m", "a"), ("n", "b"))
    tables["n", "b"] = tables["n", "b"][:2]
    frame = fits.fit_all(tables, resamples=5)
    good = select_bins(frame[frame["Model"] == "m"]).drop(columns=["Model", "Dataset"])
    pd.testing.assert_frame_equal(good, fit_run(tables["m", "a"], 5).drop(columns=["Model", "Dataset"]))
    assert frame[frame["Model"] == "n"]["note"].str.contains("fewer than three").all()


def test_a_curve_that_the_data_do_not_determine_is_said_to_be(monkeypatch):
    whole = curves.find_limits

    def limit(kind, x, found):  # the data alone
        limits, determined = whole(kind, x, found)
        return (limits | {"a": np.array([np.inf])}, np.array([False])) if len(determined) == 1 else (limits, determined)

    monkeypatch.setattr(curves, "find_limits", limit)
    row = fit_run(plant("unimodal")).loc["unimodal"]
    assert row["a"] == np.inf
    assert row["note"] == "the medians do not determine its parameters"


# Small and awkward runs


def test_a_falling_curve_is_no_flat_one_and_a_bump_that_cannot_follow_says_so():
    rows = fit_run(draw_curved(lambda x: 0.6 - 0.08 * x, 0), 40)
    assert not rows["note"].str.contains("not better").any()
    assert rows["delta AICc"].idxmin() == "line"
    assert rows.loc["decay", "held-out error"] < 1.01 * rows.loc["line", "held-out error"]
    assert rows.loc["unimodal", "held-out error"] > 1.1 * rows.loc["line", "held-out error"]
    assert rows.loc["unimodal", ["peak low", "peak high"]].notna().all()


@pytest.mark.parametrize("prompts", [[0] * 99 + [1], np.repeat(np.arange(8), 8)])
def test_folds_and_resamples_with_too_few_bins_are_said_and_not_counted(prompts):
    x = np.linspace(0.1, 2, len(prompts))
    rows = select_bins(fits.fit(x, np.cos(x), np.array(prompts), resamples=30))
    assert rows["held-out error"].isna().all()
    fitted = rows.loc[["unimodal"]]
    assert fitted["peak low"].isna().all()
    assert fitted["note"].str.contains("no held-out error|not better").any()


def test_a_free_curve_with_a_level_for_every_bin_is_kept():
    runs = {("m", "d"): draw_curved(lambda x: 0.9 - 0.15 * x, 1, level=0.005, noise=0.02, length=100)}
    rows = select_bins(fits.fit_all(runs, resamples=10))
    assert rows.loc["free", "note"] == ""
    assert rows.loc["line", "of free"] == pytest.approx(1, abs=0.01)


def test_tokens_left_out_are_counted_and_a_missing_quantity_is_named():
    run = draw_curved(lambda x: x * np.exp(-x), 3)
    run.loc[:29, "cosine"] = np.nan
    assert set(fits.fit_all({("m", "d"): run}, resamples=5)["note"].str[:18]) == {"30 tokens left out"}
    notes = fits.fit_all({("m", "d"): run}, y="weighted_cosine", resamples=5)["note"]
    assert set(notes) == {"no weighted_cosine in the measurements"}


@pytest.mark.parametrize("value", [0.0, 0.1, 0.25])
def test_medians_that_do_not_vary_give_no_warning_and_no_curve(value):
    run = draw_curved(lambda x: value + 0 * x, 0, level=0, noise=0)
    run.loc[0, "cosine"] += 0.5  # one token off: the medians stay
    rows = fits.fit_all({("m", "d"): run}, resamples=5).set_index("Curve")
    assert rows.loc[["line", "decay", "unimodal"], "note"].str.contains("not better").all()


def test_noise_is_seldom_taken_for_a_curve():
    taken = 0
    for seed in range(20):
        rows = fits.fit_all({("m", "d"): draw_curved(lambda x: 0.3 + 0 * x, seed)}, resamples=1).set_index("Curve")
        taken += (~rows.loc[["line", "decay", "unimodal"], "note"].str.contains("not better")).sum()
    assert taken <= 6  # of 120: two standard errors leave one of forty


def test_noise_that_scatters_more_where_entropy_is_small_is_seldom_taken_for_a_curve():
    taken = 0
    for seed in range(20):
        run = draw_curved(lambda x: 0.3 + 0 * x, seed, level=0)
        run["cosine"] = 0.3 + (run["cosine"] - 0.3) * (5 * np.exp(-run["entropy"]) + 0.5)
        rows = fits.fit_all({("m", "d"): run}, resamples=1).set_index("Curve")
        taken += (~rows.loc[["line", "decay", "unimodal"], "note"].str.contains("not better")).sum()
    assert taken <= 6  # of 120: two standard errors leave one of forty


def test_the_error_of_a_gain_is_clustered():
    rng = np.random.default_rng(0)
    prompt = np.repeat(np.arange(40), 25)
    values = rng.normal(0, 1, 40)[prompt]  # one value a prompt: 40 observations, not 1,000
    expected = stats.sem(values.reshape(40, 25)[:, 0])
    assert compute_clustered_error(values, prompt) == pytest.approx(expected, rel=1e-9)


def test_a_peak_outside_the_data_is_said():
    rows = fit_run(draw_curved(lambda x: 0.1 + 0.05 * x, 0), 5)
    assert "peak outside the data" in rows.loc["unimodal", "note"]
    assert "peak outside the data" not in fit_run(plant("unimodal")).loc["unimodal", "note"]


def test_the_share_before_the_peak_is_that_of_the_tokens():
    run = plant("unimodal")
    row = fit_run(run).loc["unimodal"]
    assert row["before peak"] == np.mean(run["entropy"] < row["peak"])


def test_resamples_that_do_not_determine_a_curve_are_counted_and_leave_its_bounds_open(monkeypatch):
    run = plant("unimodal")
    assert fit_run(run).loc["unimodal", "note"] == ""
    whole = curves.fit_each

    def narrow(kind, x, y, w):  # every tenth resample, not the data
        found, few = whole(kind, x, y, w), (np.arange(len(y)) % 10 == 1) & (len(y) > 1)
        high = {"a": 1e35, "b": 1e4, "peak": 1e-4} if kind == "unimodal" else {}
        return found | {name: np.where(few, value, found[name]) for name, value in high.items()}

    monkeypatch.setattr(curves, "fit_each", narrow)
    row = fit_run(run, 40).loc["unimodal"]
    assert row["note"] == "4 of 40 resamples do not determine its parameters"
    assert row["a low"] < row["a"] < row["a high"] == row["b high"] == np.inf
    assert row["peak low"] == 0 < row["peak"] < row["peak high"] < np.inf
    assert row["c low"] < row["c"] < row["c high"] < np.inf


def test_a_run_with_the_name_of_a_pool_is_refused_by_name():
    for name in (fits.POOLED, fits.RANDOM):
        with pytest.raises(ValueError, match=re.escape(f"'{name}'")):
            fits.fit_all({("m", name): draw_full(0)})


# Weights


def draw_uneven(seed: int, prompts: int = 100, length: int = 60) -> pd.DataFrame:
    """A line whose tokens scatter six times as much at one end as at the other, and half whose tokens are near 0."""
    rng = np.random.default_rng(seed)
    x = np.where(
        rng.random(prompts * length) < 0.5,
        rng.uniform(0.02, 5, prompts * length),
        rng.exponential(0.7, prompts * length) + 0.02,
    )
    x = np.minimum(x, 5)
    return create_table(
        np.repeat(np.arange(prompts), length), x, 0.5 - 0.05 * x + rng.normal(size=len(x)) * (0.3 - 0.05 * x)
    )


@pytest.mark.parametrize("equal", fits.BINS)
def test_weights_follow_the_variance_of_the_medians_where_tokens_scatter_unevenly(equal):
    """The median of n normal values has variance pi / 2 sigma^2 / n."""
    run = draw_uneven(0)
    bins = bootstrap.Bins(*list_columns(run), equal=equal)
    found = compute_token_variances(bins)
    expected = (0.3 - 0.05 * bins.centers) ** 2
    assert np.std(np.log(expected)) > 0.8  # what weights by tokens ignore
    # The variance of one bin's median depends on few of its tokens; the average over four bins is known to 30%.
    assert np.std(np.log(found / expected)) < 0.3
    assert np.sum(bins.count / found) == pytest.approx(bins.count.sum())


def test_right_weights_give_a_slope_with_less_error_than_weights_by_tokens():
    errors = []
    for seed in range(40):
        run = draw_uneven(seed, 40, 40)
        bins = bootstrap.Bins(*list_columns(run))
        x, y, w = weigh_bins(run)
        by_tokens = bins.count[bins.count > 0]
        best = by_tokens / (0.3 - 0.05 * x) ** 2
        errors.append([curves.fit("line", x, y, weights).parameters["a"] + 0.05 for weights in (w, best, by_tokens)])
    ours, best, plain = np.sqrt(np.mean(np.square(errors), axis=0))
    assert best < 0.85 * plain
    assert ours < 0.9 * plain
    assert ours < 1.1 * best


def test_weights_are_those_of_tokens_where_no_median_ever_moves():
    x = np.tile(np.linspace(0.1, 3, 100), 10)
    bins = bootstrap.Bins(x, np.full(1000, 0.5), np.repeat(np.arange(10), 100))
    assert compute_token_variances(bins).tolist() == [1.0] * len(bins.count)


# Bins of equally many tokens


def test_bins_at_quantiles_have_equally_many_tokens_and_their_median_as_center():
    run = draw_uneven(1)
    bins = bootstrap.Bins(*list_columns(run), equal=bootstrap.TOKENS)
    assert bins.count.max() - bins.count.min() <= 1
    x = run["entropy"].to_numpy()
    place = np.clip(np.searchsorted(bins.edges, x, side="right") - 1, 0, 49)
    expected = stats.binned_statistic(place, x, "median", bins=np.arange(51) - 0.5).statistic
    np.testing.assert_allclose(bins.centers, expected)


def test_a_value_of_many_tokens_is_one_bin():
    x = np.repeat([1.0, 2.0, 3.0, 4.0], [10, 70, 10, 10])
    bins = bootstrap.Bins(x, x, np.arange(100) % 5, 10, bootstrap.TOKENS)
    assert bins.count.sum() == 100
    assert bins.count.max() >= 70
    assert np.isfinite(bins.centers).all()


# The rise


def compute_rise(curve, seed: int) -> dict[str, float]:
    run = draw_curved(curve, seed)
    return Sample(*list_columns(run), 1, seed).compute_rise()[0]


def test_a_rise_is_found_where_there_is_one_and_not_where_the_curve_falls_or_is_flat_at_first():
    rises = {
        "rising": lambda x: 0.2 + 0.2 * np.minimum(x, 1.5) - 0.1 * np.maximum(x - 1.5, 0),
        "falling": lambda x: 0.2 + 0.3 * np.exp(-x),
        "flat": lambda x: 0.5 - 0.1 * np.maximum(x - 2, 0),
    }
    found = {name: pd.DataFrame([compute_rise(curve, seed) for seed in range(60)]) for name, curve in rises.items()}
    assert (found["rising"]["rise low"] > 0).all()
    assert found["rising"]["rise"].mean() == pytest.approx(0.29, abs=0.03)  # the first bin is not at 0
    assert (found["falling"]["rise low"] > 0).sum() <= 4  # of 60: 2.5% are 1.5
    assert (found["flat"]["rise low"] > 0).sum() <= 6
    assert abs(found["flat"]["rise"].mean()) < 0.01


def test_a_curve_that_falls_from_the_start_in_every_fold_has_a_rise_of_0_without_an_interval():
    found = Sample(*list_columns(draw_curved(lambda x: 1 - x, 0, level=0, noise=1e-3)), 1, 0).compute_rise()[0]
    assert found["rise"] == 0
    assert np.isnan([found["rise low"], found["rise high"]]).all()


def test_a_rise_is_missing_with_fewer_than_five_prompts():
    run = draw_curved(lambda x: x * np.exp(-x), 0, prompts=4, length=200)
    found, why = Sample(*list_columns(run), 1, 0).compute_rise()
    assert found == {}
    assert why.startswith("no rise measured: fewer than 5 groups of prompts have tokens at the peak")
    assert "; " not in why  # as between the parts of a note
    assert why in select_bins(fits.fit_all({("m", "d"): run}, resamples=10)).loc["free", "note"]


# Over models


def test_a_data_set_of_two_models_has_their_mean_with_random_effects():
    shapes = [lambda x: 0.4 * x * np.exp(-x) + 0.3, lambda x: 1.2 * x * np.exp(-2 * x) + 0.3]
    tables = {
        (name, "d"): draw_curved(shape, seed, model=name, dataset="d")
        for seed, (name, shape) in enumerate(zip("mn", shapes, strict=True))
    }
    frame = fits.fit_all(tables | {("m", "e"): tables["m", "d"]}, resamples=50)
    rows = select_bins(frame[frame["Model"] == fits.RANDOM]).loc["unimodal"]
    each = select_bins(frame[frame["Model"].isin(["m", "n"]) & (frame["Dataset"] == "d")]).loc["unimodal"]
    assert rows["Dataset"] == "d"
    assert each["b"].min() < rows["b"] < each["b"].max()
    assert rows["b low"] < each["b low"].min()  # two models say little of a third
    assert (rows["tokens"], rows["prompts"]) == (each["tokens"].sum(), 60)


def test_a_mean_over_models_leaves_out_curves_that_are_not_determined_and_says_so():
    tables = {
        (name, "d"): draw_curved(lambda x: 0.4 * x * np.exp(-x) + 0.3, seed, model=name, dataset="d")
        for seed, name in enumerate("lmn")
    }
    frame = fits.fit_all(tables, resamples=20)
    frame = frame[frame["Model"].isin(list("lmn")) & (frame["Dataset"] == "d")].reset_index(drop=True)
    (whole,) = fits._combine_models(frame)
    bump = (frame["Model"] == "l") & (frame["Curve"] == "unimodal")
    free = (frame["Model"] == "l") & (frame["Curve"] == "free")
    frame.loc[bump, "a high"] = np.inf
    frame.loc[free, ["rise", "rise low", "rise high"]] = [0, np.nan, np.nan]
    (means,) = fits._combine_models(frame)
    (others,) = fits._combine_models(frame[frame["Model"] != "l"])
    found, both = (select_bins(each).loc["unimodal"] for each in (means, others))
    for name in ("a", "b", "c", "peak"):
        assert found[name] == pytest.approx(both[name])
    assert found["note"] == "without 1 model whose parameters are not determined"
    assert select_bins(whole).loc["unimodal", "note"] == ""
    rise = select_bins(means).loc["free"]
    assert np.isnan(rise["rise"])
    assert rise["note"] == "no mean rise: in 1 model nothing rises"
    assert np.isfinite(select_bins(whole).loc["free", "rise"])


def test_pools_are_of_runs_with_the_same_values_of_a_setting():
    names = ["m@top_p=0.9", "m@top_p=0.95", "n@top_p=0.9", "n@top_p=0.95"]
    tables = create_runs(*((name, "a") for name in names), ("m@top_p=0.9", "b"))
    frame = fits.fit_all(tables, resamples=2)
    assert list(frame)[:4] == ["Model", "Dataset", "top_p", "Bins"]
    pools = frame[frame[["Model", "Dataset"]].eq("(all)").any(axis=1)]
    heads = pools[["Model", "Dataset", "top_p"]].drop_duplicates().to_numpy().tolist()
    assert heads == [["m", "(all)", 0.9], ["(all)", "a", 0.9], ["(all)", "a", 0.95]]
    assert set(pools.loc[pools["Dataset"] == "a", "tokens"]) == {2 * 12 * 15}
    means = frame[(frame["Model"] == fits.RANDOM)]
    assert set(means["top_p"]) == {0.9, 0.95}  # one for each value, over two models
    lines = fits.compute_lines(tables)
    assert lines[["Model", "Dataset", "top_p"]].drop_duplicates().to_numpy().tolist()[-3:] == heads


def test_settings_that_differ_from_model_to_model_only_do_not_divide_pools():
    tables = {key: table.assign(max_tokens=20 if key[0] == "m" else 30) for key, table in create_runs(
        ("m", "a"), ("n", "a"), ("m", "b")).items()}  # fmt: skip
    frame = fits.fit_all(tables, resamples=2)
    pools = frame[frame[["Model", "Dataset"]].eq("(all)").any(axis=1)]
    found = pools[["Model", "Dataset", "max_tokens"]].drop_duplicates().fillna(-1).to_numpy().tolist()
    assert found == [["m", "(all)", 20], ["(all)", "a", -1]]
