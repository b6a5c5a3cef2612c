"""`random_effects`: the mean over models against the formulas by hand, and its coverage."""

import numpy as np
import pytest
from scipy import optimize, stats

from nucleoscope.stats import correlation, random_effects
from synthetic import draw_full

pytestmark = pytest.mark.filterwarnings("error")


def combine_by_hand(y: np.ndarray, errors: np.ndarray) -> tuple[float, float, float, float]:
    """Paule and Mandel's variance between models, Hartung and Knapp's interval."""

    def weigh(tau2):
        w = 1 / (errors**2 + tau2)
        return w, np.sum(w * y) / np.sum(w)

    def excess(tau2):
        w, mean = weigh(tau2)
        return np.sum(w * (y - mean) ** 2) - (len(y) - 1)

    tau2 = optimize.brentq(excess, 0, 100) if excess(0) > 0 else 0.0
    w, mean = weigh(tau2)
    margin = stats.t.ppf(0.975, len(y) - 1) * np.sqrt(np.sum(w * (y - mean) ** 2) / (len(y) - 1) / np.sum(w))
    return mean, mean - margin, mean + margin, np.sqrt(tau2)


@pytest.mark.parametrize("spread", [0.0, 0.05, 0.5])
def test_the_mean_over_models_is_that_of_the_formulas(spread):
    rng = np.random.default_rng(1)
    errors = rng.uniform(0.02, 0.1, 6)
    estimates = rng.normal(0.3, spread, 6) + rng.normal(size=6) * errors
    assert random_effects.combine(estimates, errors) == pytest.approx(combine_by_hand(estimates, errors), rel=1e-4)


def test_the_interval_covers_the_mean_of_the_population_of_models():
    rng, held = np.random.default_rng(0), []
    for _ in range(400):
        errors = rng.uniform(0.02, 0.06, 5)
        found = random_effects.combine(0.3 + 0.1 * rng.normal(size=5) + errors * rng.normal(size=5), errors)
        held.append(found.low <= 0.3 <= found.high)
    assert 0.92 <= np.mean(held) <= 0.98


def test_models_without_an_estimate_do_not_count_and_one_is_too_few():
    estimates, errors = np.array([0.1, np.nan, 0.3, 0.2, 9.0]), np.array([0.1, 0.1, 0.1, 0.1, 0.0])
    assert random_effects.combine(estimates, errors) == random_effects.combine(estimates[[0, 2, 3]], errors[[0, 2, 3]])
    assert np.isnan(random_effects.combine(estimates[:2], errors[:2])).all()


@pytest.mark.filterwarnings("error")
def test_models_with_equal_estimates_are_combined_without_a_warning():
    found = random_effects.combine(np.array([-0.25, -0.25]), np.array([0.5, 0.5]))  # so that Q is 0 exactly
    assert (found.mean, found.tau) == (-0.25, 0)


def test_two_settings_of_one_model_are_not_two_models():
    names = [("m@top_p=0.9", "a"), ("m@top_p=0.95", "a")]
    table = correlation.compute_statistics({name: draw_full(seed, 40) for seed, name in enumerate(names)}, 100)
    assert table[["Model", "Dataset", "top_p"]].to_numpy().tolist() == [["m", "a", 0.9], ["m", "a", 0.95]]
    assert random_effects.combine_coefficients(table).empty
    names += [("n@top_p=0.95", "a"), ("n@top_p=0.9", "a"), ("o@top_p=0.9", "a")]
    table = correlation.compute_statistics({name: draw_full(seed, 40) for seed, name in enumerate(names)}, 100)
    found = random_effects.combine_coefficients(table)
    assert found[["Dataset", "top_p", "models"]].to_numpy().tolist() == [["a", 0.9, 3], ["a", 0.95, 2]]
    part = random_effects.combine_coefficients(table[table["top_p"] == 0.9])
    assert found["Spearman r"][0] == part["Spearman r"][0]


def test_coefficients_are_combined_for_each_data_set_with_two_models_on_the_scale_of_fishers_z():
    names = [("m", "a"), ("n", "a"), ("o", "a"), ("m", "b")]
    table = correlation.compute_statistics({name: draw_full(seed, 40) for seed, name in enumerate(names)}, 100)
    found = random_effects.combine_coefficients(table)
    assert found[["Dataset", "models"]].to_numpy().tolist() == [["a", 3]]
    part = table[table["Dataset"] == "a"]
    z, low, high = (np.arctanh(part[f"Spearman {end}"].to_numpy()) for end in ("r", "low", "high"))
    expected = combine_by_hand(z, (high - low) / 2 / stats.norm.ppf(0.975))
    row = found.iloc[0]
    assert row[["Spearman r", "Spearman low", "Spearman high"]].tolist() == pytest.approx(
        np.tanh(expected[:3]), rel=1e-4
    )
    assert row["within-k Spearman low"] < row["within-k Spearman r"] < row["within-k Spearman high"]
    assert len(random_effects.combine_coefficients(table[table["Dataset"] == "b"])) == 0


def test_errors_are_those_that_the_intervals_were_made_from():
    degrees = np.array([4, np.inf])
    margins = stats.t.ppf(0.975, degrees) * np.array([0.1, 0.2])
    found = random_effects.compute_errors(1 - margins, 1 + margins, degrees)
    np.testing.assert_allclose(found, [0.1, 0.2])
