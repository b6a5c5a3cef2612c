"""`curves`: fits that must give back what the medians were made from, and the free curve by trying every split."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import curve_fit, isotonic_regression

from nucleoscope.stats import curves

pytestmark = pytest.mark.filterwarnings("error")

X = np.linspace(0.05, 5, 50)
N = np.random.default_rng(0).integers(1, 400, 50).astype(float)
TRUE = {  # parameters, by the formula, where it is highest
    "decay": ({"a": 0.5, "b": 0.8, "c": 0.1}, lambda x, a, b, c: a * np.exp(-b * x) + c, np.nan),
    "unimodal": ({"a": 1.4, "b": 0.8, "c": 0.1}, lambda x, a, b, c: a * x * np.exp(-b * x) + c, 1 / 0.8),
}
shapes = pytest.mark.parametrize("kind", TRUE)


def plant(kind: str, noise: float = 0.0, seed: int = 0) -> np.ndarray:
    parameters, formula, _ = TRUE[kind]
    return formula(X, **parameters) + noise * np.random.default_rng(seed).normal(size=len(X))


def compute_error(fit: curves.Fit, y: np.ndarray, n: np.ndarray = N) -> float:
    return float(np.sum(n * (fit(X) - y) ** 2))


# Decay and bump


@shapes
@pytest.mark.parametrize("b", [0.05, 0.8, 10])
def test_a_shape_gives_back_the_parameters_of_medians_without_noise(kind, b):
    parameters, formula, _ = TRUE[kind]
    parameters = parameters | {"b": b}
    fit = curves.fit(kind, X, formula(X, **parameters), N)
    assert fit.parameters == pytest.approx(parameters, rel=1e-5)
    assert fit.peak == pytest.approx(1 / b if kind == "unimodal" else np.nan, rel=1e-5, nan_ok=True)
    assert (fit.free, fit.note) == (3, "")
    between = np.linspace(0, 8, 300)
    np.testing.assert_allclose(fit(between), formula(between, **parameters), atol=1e-6)


@shapes
@pytest.mark.parametrize("noise", [0.01, 0.1])
def test_the_reported_parameters_and_formula_give_the_curve(kind, noise):
    fit = curves.fit(kind, X, plant(kind, noise), N)
    np.testing.assert_allclose(fit(X), TRUE[kind][1](X, **fit.parameters), rtol=1e-9)
    if kind == "unimodal":
        assert fit(np.array([fit.peak])) >= fit(X).max()


@shapes
@pytest.mark.parametrize("seed", range(5))
def test_no_curve_of_the_kind_is_closer_to_noisy_medians(kind, seed):
    """Not the planted one, none a little to the side of the fit, and none that scipy finds from other starts."""
    y = plant(kind, 0.05, seed)
    fit = curves.fit(kind, X, y, N)
    parameters, formula, _ = TRUE[kind]
    assert compute_error(fit, y) <= np.sum(N * (formula(X, **parameters) - y) ** 2)
    for name, value in fit.parameters.items():
        for factor in (1 - 1e-3, 1 + 1e-3):
            beside = formula(X, **fit.parameters | {name: value * factor})
            assert compute_error(fit, y) < np.sum(N * (beside - y) ** 2)
    for b in (0.2, 1, 5):
        theta, _ = curve_fit(formula, X, y, (1, b, 0), sigma=N**-0.5, bounds=([0, 0.02, -5], [50, 100, 5]))
        assert compute_error(fit, y) <= np.sum(N * (formula(X, *theta) - y) ** 2) * (1 + 1e-9)


@pytest.mark.parametrize("kind", ["constant", "line", "decay", "unimodal", "free"])
def test_all_resamples_at_once_are_each_on_its_own_and_empty_bins_do_not_count(kind):
    rng = np.random.default_rng(0)
    y = np.stack([plant("unimodal", 0.05, seed) for seed in range(8)])
    w = rng.uniform(1, 9, y.shape) * (rng.random(y.shape) > 0.2)
    w[:, [0, -1]] = 1
    w[:, 20] = 0
    found = curves.fit_each(kind, X, np.where(w > 0, y, np.nan), w)
    for place, (row, weights) in enumerate(zip(y, w, strict=True)):
        used = weights > 0
        alone = curves.fit(kind, X[used], row[used], weights[used])
        expected = alone.parameters | ({} if np.isnan(alone.peak) else {"peak": alone.peak})
        assert {name: found[name][place] for name in expected} == pytest.approx(expected, rel=1e-5)


def test_a_curve_that_only_rises_has_its_peak_on_a_bound_and_says_so():
    fit = curves.fit("unimodal", X, X, N)
    assert "b on a bound" in fit.note
    assert fit.peak == pytest.approx(10 * X[-1], rel=1e-3)


def test_a_line_that_falls_is_a_decay_on_a_bound_and_one_that_rises_is_none():
    falls, rises = (curves.fit("decay", X, slope * X, N) for slope in (-1.0, 1.0))
    assert falls.note == "b on a bound"
    np.testing.assert_allclose(falls(X), -X, atol=0.1)
    assert "a on a bound" in rises.note
    np.testing.assert_allclose(rises(X), np.average(X, weights=N))


@pytest.mark.parametrize(
    ("kind", "y", "expected"),
    [
        ("decay", -X, {"a": np.inf, "b": 0, "c": -np.inf}),  # a line
        ("unimodal", 0.3 + 0.02 * X, {"a": 0.02, "b": 0, "c": 0.3, "peak": np.inf}),
        ("decay", X, {"a": 0, "b": np.nan}),  # no height
        ("unimodal", np.full(50, 0.25), {"a": 0, "b": np.nan, "c": 0.25, "peak": np.nan}),
        ("decay", np.arange(50) == 0, {"a": np.inf, "b": np.inf, "c": 0}),  # the first median alone is high
        ("unimodal", np.arange(50) == 0, {"a": np.inf, "b": np.inf, "c": 0, "peak": 0}),
    ],
)
def test_what_medians_do_not_determine_is_what_it_tends_to(kind, y, expected):
    found, determined = curves.find_limits(kind, X, curves.fit_each(kind, X, y[None].astype(float), N[None]))
    assert not determined[0]
    for name, value in expected.items():
        np.testing.assert_allclose(found[name][0], value, atol=1e-5)


@pytest.mark.parametrize("kind", ["constant", "line", "decay", "unimodal", "free"])
def test_what_medians_determine_is_left_as_it_is(kind):
    each = curves.fit_each(kind, X, plant(kind if kind in TRUE else "unimodal")[None], N[None])
    found, determined = curves.find_limits(kind, X, each)
    assert determined[0]
    assert all(value == each[name] for name, value in found.items())


@shapes
def test_medians_that_do_not_vary_put_the_height_on_its_bound(kind):
    fit = curves.fit(kind, X, np.full(50, 0.25), N)
    assert "a on a bound" in fit.note
    np.testing.assert_allclose(fit(X), 0.25, atol=1e-12)


@shapes
def test_a_token_of_no_entropy_has_a_finite_value(kind):
    fit = curves.fit(kind, X, plant(kind), N)
    assert np.isfinite(fit(np.array([0.0, 1e-300, 1e-9, 100.0]))).all()


# Constants, lines, weights


def test_a_constant_is_the_weighted_mean():
    y = plant("unimodal", 0.1)
    fit = curves.fit("constant", X, y, N)
    assert fit.parameters == pytest.approx({"c": np.sum(N * y) / N.sum()}, rel=1e-12)
    np.testing.assert_allclose(fit(X), fit.parameters["c"])
    assert (fit.free, np.isnan(fit.peak)) == (1, True)


def test_a_line_is_that_of_weighted_least_squares():
    y = plant("unimodal", 0.1)
    design = np.stack([X, np.ones(50)], axis=1)
    a, c = np.linalg.solve(design.T @ (N[:, None] * design), design.T @ (N * y))
    fit = curves.fit("line", X, y, N)
    assert fit.parameters == pytest.approx({"a": a, "c": c}, rel=1e-10)
    np.testing.assert_allclose(fit(X), a * X + c, rtol=1e-10)
    assert (fit.free, np.isnan(fit.peak)) == (2, True)


@pytest.mark.parametrize("kind", curves.FORMULAS)
def test_a_bin_of_weight_three_counts_like_three_bins_of_weight_one(kind):
    """Only where every x is there once can the free curve and the spline be asked: there, weights by twos."""
    y, n = plant("unimodal", 0.02), np.random.default_rng(1).integers(1, 4, 50)
    weighted, doubled = curves.fit(kind, X, y, n), curves.fit(kind, X, y, 2 * n)
    np.testing.assert_allclose(weighted(X), doubled(X), atol=1e-6)
    if kind not in ("free", "spline"):
        each = np.repeat(np.arange(50), n)
        spelled = {
            name: values[0]
            for name, values in curves.fit_each(
                kind, X[each] + 1e-9 * np.arange(len(each)), y[each][None], np.ones((1, len(each)))
            ).items()
        }
        expected = {name: spelled[name] for name in weighted.parameters}
        assert weighted.parameters == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", curves.FORMULAS)
def test_a_bin_of_hardly_any_weight_does_not_matter(kind):
    y, n = plant("unimodal", 0.01), np.full(50, 100.0)
    outlier, light = y.copy(), n.copy()
    outlier[30] += 5
    light[30] = 1e-9
    without = np.arange(50) != 30
    expected = curves.fit(kind, X[without], y[without], n[without])
    found = curves.fit(kind, X, outlier, light)
    np.testing.assert_allclose(found(X[without]), expected(X[without]), atol=1e-4)


# The free curve


def search_exhaustively(y: np.ndarray, n: np.ndarray) -> float:
    """The least weighted squared error of any rise up to any bin and fall from there."""
    errors = []
    for split in range(len(y) + 1):
        parts = [(y[:split], n[:split], True), (y[split:], n[split:], False)]
        levels = [isotonic_regression(v, weights=w, increasing=up).x for v, w, up in parts if len(v)]
        errors.append(np.sum(n * (np.concatenate(levels) - y) ** 2))
    return min(errors)


@given(st.lists(st.tuples(st.integers(-5, 5), st.integers(1, 9)), min_size=1, max_size=15))
@settings(deadline=None, max_examples=200, derandomize=True)
def test_the_free_curve_is_the_best_of_all_splits(bins):
    y, n = np.array(bins, dtype=float).T
    fit = curves.fit("free", np.arange(1.0, len(y) + 1), y, n)
    levels = fit(np.arange(1.0, len(y) + 1))
    assert np.sum(n * (levels - y) ** 2) == pytest.approx(search_exhaustively(y, n), abs=1e-9)
    top = int(levels.argmax())
    assert (np.diff(levels[: top + 1]) >= 0).all()
    assert (np.diff(levels[top:]) <= 0).all()
    highest = 1 + np.flatnonzero(np.isclose(levels, levels.max(), rtol=1e-12))
    assert fit.peak == (highest[0] + highest[-1]) / 2
    assert curves.fit_each("free", np.arange(1.0, len(y) + 1), y[None], n[None])["peak"] == fit.peak
    assert fit.free == 1 + np.count_nonzero(np.diff(levels))


@given(st.lists(st.tuples(st.floats(-1, 1), st.integers(1, 400)), min_size=1, max_size=50))
@settings(deadline=None, max_examples=100, derandomize=True)
def test_errors_of_all_prefixes_are_those_of_isotonic_regressions(bins):
    y, n = np.array(bins, dtype=float).T
    found = curves._regress_prefixes(y, n).errors
    assert found[0] == 0
    for length in range(1, len(y) + 1):
        levels = isotonic_regression(y[:length], weights=n[:length]).x
        assert found[length] == pytest.approx(np.sum(n[:length] * (levels - y[:length]) ** 2), abs=1e-9)


def test_the_free_curve_follows_any_bump_without_noise():
    for kind in TRUE:
        y = plant(kind)
        fit = curves.fit("free", X, y, N)
        np.testing.assert_allclose(fit(X), y, atol=1e-12)
        assert fit.peak == X[y.argmax()]


def test_the_free_curve_is_joined_by_lines_and_level_outside():
    fit = curves.fit("free", np.array([1.0, 2.0, 4.0]), np.array([0.0, 2.0, 1.0]), np.ones(3))
    np.testing.assert_allclose(fit(np.array([0.0, 1.5, 2.0, 3.0, 9.0])), [0, 1, 2, 1.5, 1])
