"""`curves`: fits that must give back what the medians were made from, and the free curve by trying every split."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import isotonic_regression

from nucleoscope.stats import curves

pytestmark = pytest.mark.filterwarnings("error")

X = np.linspace(0.05, 5, 50)
N = np.random.default_rng(0).integers(1, 400, 50)
TRUE = {  # parameters, by the formula, where it is highest
    "unimodal": ({"a": 1.4, "b": 0.8, "c": 0.1}, lambda x, a, b, c: a * x * np.exp(-b * x) + c, 1 / 0.8),
    "gamma": (
        {"a": 2.0, "b": 1.5, "c": -0.2, "s": 2.5},
        lambda x, a, b, c, s: a * x**s * np.exp(-b * x) + c,
        2.5 / 1.5,
    ),
    "log-normal": (
        {"a": 0.6, "m": 0.4, "c": 0.15, "s": 0.7},
        lambda x, a, m, c, s: a * np.exp(-((np.log(x) - m) ** 2) / (2 * s**2)) + c,
        np.exp(0.4),
    ),
}
bumps = pytest.mark.parametrize("kind", TRUE)


def plant(kind: str, noise: float = 0.0, seed: int = 0) -> np.ndarray:
    parameters, formula, _ = TRUE[kind]
    return formula(X, **parameters) + noise * np.random.default_rng(seed).normal(size=len(X))


def compute_error(fit: curves.Fit, y: np.ndarray, n: np.ndarray = N) -> float:
    return float(np.sum(n * (fit(X) - y) ** 2))


# Bumps


@bumps
def test_a_bump_gives_back_the_parameters_of_medians_without_noise(kind):
    parameters, formula, peak = TRUE[kind]
    fit = curves.fit(kind, X, plant(kind), N)
    assert fit.parameters == pytest.approx(parameters, rel=1e-6)
    assert fit.peak == pytest.approx(peak, rel=1e-6)
    assert fit.free == len(parameters)
    assert fit.note == ""
    between = np.linspace(0.01, 8, 300)
    np.testing.assert_allclose(fit(between), formula(between, **parameters), atol=1e-6)


@bumps
@pytest.mark.parametrize("noise", [0.01, 0.1])
def test_the_reported_parameters_and_formula_give_the_curve(kind, noise):
    fit = curves.fit(kind, X, plant(kind, noise), N)
    np.testing.assert_allclose(fit(X), TRUE[kind][1](X, **fit.parameters), rtol=1e-9)
    assert fit(np.array([fit.peak])) >= fit(X).max()


@bumps
@pytest.mark.parametrize("seed", range(5))
def test_no_curve_of_the_kind_is_closer_to_noisy_medians(kind, seed):
    """Not the planted one, and none a little to the side of the fit."""
    y = plant(kind, 0.05, seed)
    fit = curves.fit(kind, X, y, N)
    parameters, formula, _ = TRUE[kind]
    assert compute_error(fit, y) <= np.sum(N * (formula(X, **parameters) - y) ** 2)
    for name, value in fit.parameters.items():
        for factor in (1 - 1e-3, 1 + 1e-3):
            beside = formula(X, **fit.parameters | {name: value * factor})
            assert compute_error(fit, y) < np.sum(N * (beside - y) ** 2)


@bumps
def test_gradients_are_those_of_finite_differences(kind):
    bump, step = curves._BUMPS[kind], 1e-6
    for theta in ((0.7, 0.2, 0.1, 0.5), (0.1, -2.0, -0.3, -0.7), (3.0, 1.5, 0.0, 1.2)):
        theta = np.array(theta[: len(bump.names)])
        found = bump.compute_jacobian(X, *theta)
        for place in range(len(theta)):
            aside = np.eye(len(theta))[place] * step
            expected = (bump(X, *(theta + aside)) - bump(X, *(theta - aside))) / (2 * step)
            np.testing.assert_allclose(found[:, place], expected, rtol=1e-6, atol=1e-8)


@bumps
@pytest.mark.parametrize("seed", range(5))
def test_a_fit_from_a_start_nearby_is_the_fit_from_scratch(kind, seed):
    y = plant(kind, 0.02, seed)
    start = curves.fit(kind, X, plant(kind), N)
    found, scratch = curves.fit(kind, X, y, N, start), curves.fit(kind, X, y, N)
    assert found.parameters == pytest.approx(scratch.parameters, rel=1e-4)
    assert compute_error(found, y) == pytest.approx(compute_error(scratch, y), rel=1e-8)
    assert found.peak == pytest.approx(scratch.peak, rel=1e-4)


def test_a_curve_that_only_rises_has_its_peak_on_a_bound_and_says_so():
    fit = curves.fit("unimodal", X, X, N)
    assert "b on a bound" in fit.note
    assert fit.peak == pytest.approx(10 * X[-1], rel=1e-3)


def test_the_parameter_on_a_bound_is_named():
    steep = np.where(
        np.abs(np.arange(50) - 25) < 1, 1.0, 0.0
    )  # one bin stands out: a gamma bump as narrow as it may be
    fit = curves.fit("gamma", X, steep, np.ones(50))
    assert "s on a bound" in fit.note
    assert fit.parameters["s"] == pytest.approx(50, rel=1e-3)


@bumps
def test_medians_that_do_not_vary_put_the_height_on_its_bound(kind):
    fit = curves.fit(kind, X, np.full(50, 0.25), N)
    assert "a on a bound" in fit.note
    np.testing.assert_allclose(fit(X), 0.25, atol=1e-3)


@bumps
def test_a_curve_that_does_not_converge_says_so(kind, monkeypatch):
    def never(*args, **options):
        raise RuntimeError("Optimal parameters not found")

    monkeypatch.setattr(curves, "curve_fit", never)
    fit = curves.fit(kind, X, plant(kind), N)
    assert fit.note == "did not converge"
    assert fit.parameters == {}
    assert np.isnan(fit(X)).all()
    assert np.isnan(fit.peak)


@bumps
def test_a_token_of_no_entropy_has_a_finite_value(kind):
    fit = curves.fit(kind, X, plant(kind), N)
    assert np.isfinite(fit(np.array([0.0, 1e-300, 1e-9, 100.0]))).all()


# Constants, lines, weights


def test_a_constant_is_the_weighted_mean():
    y = plant("gamma", 0.1)
    fit = curves.fit("constant", X, y, N)
    assert fit.parameters == pytest.approx({"c": np.sum(N * y) / N.sum()}, rel=1e-12)
    np.testing.assert_allclose(fit(X), fit.parameters["c"])
    assert (fit.free, np.isnan(fit.peak)) == (1, True)


def test_a_line_is_that_of_weighted_least_squares():
    y = plant("gamma", 0.1)
    design = np.stack([X, np.ones(50)], axis=1)
    a, c = np.linalg.solve(design.T @ (N[:, None] * design), design.T @ (N * y))
    fit = curves.fit("line", X, y, N)
    assert fit.parameters == pytest.approx({"a": a, "c": c}, rel=1e-10)
    np.testing.assert_allclose(fit(X), a * X + c, rtol=1e-10)
    assert (fit.free, np.isnan(fit.peak)) == (2, True)


@pytest.mark.parametrize("kind", curves.FORMULAS)
def test_a_bin_of_three_tokens_weighs_like_three_bins_of_one(kind):
    """Only where every x stands once can the free curve and the spline be asked: there, weights by twos."""
    y, n = plant("unimodal", 0.02), np.random.default_rng(1).integers(1, 4, 50)
    weighted, doubled = curves.fit(kind, X, y, n), curves.fit(kind, X, y, 2 * n)
    np.testing.assert_allclose(weighted(X), doubled(X), atol=1e-5)
    if kind not in ("free", "spline"):
        repeated = curves.fit(kind, X, y, n, weighted) if weighted.theta is not None else weighted
        each = np.repeat(np.arange(50), n)
        spelled = curves.fit(kind, X[each], y[each], np.ones(len(each)), weighted)
        np.testing.assert_allclose(repeated(X), spelled(X), atol=1e-5)


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
    assert levels[round(fit.peak) - 1] == levels.max() or fit.peak % 1 == 0.5
    assert fit.free == 1 + np.count_nonzero(np.diff(levels))


@given(st.lists(st.tuples(st.floats(-1, 1), st.integers(1, 400)), min_size=1, max_size=50))
@settings(deadline=None, max_examples=100, derandomize=True)
def test_errors_of_all_prefixes_are_those_of_isotonic_regressions(bins):
    y, n = np.array(bins, dtype=float).T
    found = curves._compute_prefix_errors(y, n)
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
