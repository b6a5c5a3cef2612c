"""`replicates`: coefficients without groups of prompts against scipy on the remaining tokens, and what joins them."""

import numpy as np
import pytest
from scipy import stats

from nucleoscope.stats import bootstrap, replicates
from nucleoscope.stats.replicates import GROUPS, Estimate

pytestmark = pytest.mark.filterwarnings("error")


def draw_tokens(seed: int = 0, prompts: int = 12, length: int = 15):
    """x, y with ties (n, 2), k and prompt (n,), related through k and the prompt."""
    rng = np.random.default_rng(seed)
    prompt = np.repeat(np.arange(prompts), length)
    k = rng.integers(2, 9, len(prompt))
    x = np.round(np.log(k) + rng.normal(0, 0.3, len(prompt)), 1)
    y = np.round(-x[:, None] + rng.normal(0, 0.5, (len(prompt), 2)) + rng.normal(0, 0.3, prompts)[prompt][:, None], 1)
    return x, y, k, prompt


def compute_within(x, y, prompt):
    """The mean over prompts of scipy's coefficient."""
    parts = [(x[prompt == each], y[prompt == each]) for each in np.unique(prompt)]
    return np.mean([stats.spearmanr(*part).statistic for part in parts])


def compute_given_k(x, y, k):
    once = np.ones((1, 1), dtype=np.int64)
    return bootstrap.compute_spearman(np.column_stack([x, y]), np.zeros(len(x), int), once, k)[0, 0, 1]


@pytest.mark.parametrize("left_out", [None, 0, 7])
def test_coefficients_without_a_group_are_those_of_scipy_on_the_other_tokens(left_out):
    x, y, k, prompt = draw_tokens()
    group, values = replicates.number_groups(prompt), np.column_stack([x, y])
    row, kept = (0, slice(None)) if left_out is None else (left_out + 1, prompt != left_out)
    found = {
        "pearson": replicates.compute_parts(values, group, k, ranked=False)[0],
        "spearman": replicates.compute_parts(values, group, k, ranked=True)[0],
        "within": replicates.compute_within_prompts(values, group, prompt),
        "given k": replicates.compute_within_k(values, group, k),
    }
    for column in (0, 1):
        part = x[kept], y[kept, column]
        assert found["pearson"][row, column] == pytest.approx(stats.pearsonr(*part).statistic, abs=1e-12)
        assert found["spearman"][row, column] == pytest.approx(stats.spearmanr(*part).statistic, abs=1e-12)
        assert found["within"][row, column] == pytest.approx(compute_within(*part, prompt[kept]), abs=1e-12)
        assert found["given k"][row, column] == pytest.approx(compute_given_k(*part, k[kept]), abs=1e-12)
    assert np.isinf(found["spearman"][13:]).all()  # groups without tokens


@pytest.mark.parametrize("ranked", [False, True])
def test_what_exchanging_leaves_is_the_mean_over_exchanges(ranked):
    x, y, k, prompt = draw_tokens(1)
    values = np.column_stack([x, y])
    _, between = replicates.compute_parts(values, replicates.number_groups(prompt), k, ranked)
    rng, drawn = np.random.default_rng(0), []
    function = stats.spearmanr if ranked else stats.pearsonr
    places = np.argsort(k, kind="stable")
    for _ in range(800):
        mixed = np.empty(len(k), dtype=int)
        order = rng.permutation(len(k))
        mixed[places] = order[np.argsort(k[order], kind="stable")]
        drawn.append(function(x, y[mixed, 0]).statistic)
    assert between[0, 0] == pytest.approx(np.mean(drawn), abs=5 * np.std(drawn) / np.sqrt(len(drawn)))


def test_a_k_that_one_token_has_joins_the_nearest():
    def join(k):
        return replicates.join_rare(np.array(k)).tolist()

    assert join([2, 2, 3, 3]) == [0, 0, 1, 1]
    assert join([2, 2, 3, 9, 9]) == [0, 0, 0, 1, 1]  # 3 is nearer to 2
    assert join([9, 8, 2, 2, 9]) == [1, 1, 0, 0, 1]
    assert join([2, 2, 4, 6, 6]) == [0, 0, 0, 1, 1]  # equally near: the lower one
    assert join([2, 2, 50, 60]) == [0, 0, 1, 1]  # each other's nearest
    assert join([7]) == [0]
    for seed in range(20):
        k = np.random.default_rng(seed).geometric(0.05, 60)
        strata = replicates.join_rare(k)
        assert np.bincount(strata).min() >= 2
        assert (np.diff(strata[np.argsort(k, kind="stable")]) >= 0).all()
        assert all(len(np.unique(strata[k == value])) == 1 for value in k)


def test_an_interval_is_the_jackknifes():
    x, y, _, prompt = draw_tokens(2)
    found, _ = replicates.compute_parts(np.column_stack([x, y]), replicates.number_groups(prompt), prompt, True)
    estimate = replicates.create_estimate(found[:, 0], "prompts")
    for correlation in (True, False):
        expected = bootstrap.compute_jackknife_interval(found[0, 0], found[1:13, 0], correlation=correlation)
        assert estimate.compute_bounds(correlation) == pytest.approx(expected, abs=1e-12)


def test_what_two_estimates_have_in_common_cancels_in_their_difference_and_what_they_have_not_adds_up():
    rng = np.random.default_rng(0)
    common, own = rng.normal(0, 0.01, GROUPS), rng.normal(0, 0.01, GROUPS)
    one = Estimate(0.5, {"prompts": 0.5 + common})
    shifted = Estimate(0.3, {"prompts": 0.3 + common})
    assert (one - shifted).compute_bounds(False) == pytest.approx((0.2, 0.2))
    apart = Estimate(0.3, {"states": 0.3 + own})

    def compute_width(estimate):
        low, high = estimate.compute_bounds(False)
        return (high - low) / 2 / stats.t.ppf(0.975, (GROUPS - 1) * len(estimate.without))

    widths = [compute_width(each) for each in (one, apart, one - apart)]
    assert widths[2] ** 2 == pytest.approx(widths[0] ** 2 + widths[1] ** 2)


def test_the_mean_over_runs_of_one_data_set_knows_that_they_share_prompts():
    rng = np.random.default_rng(0)
    values = 0.2 + rng.normal(0, 0.01, GROUPS)
    once = Estimate(0.2, {"prompts of a": values})
    same = replicates.compute_mean([once, once])
    other = replicates.compute_mean([once, Estimate(0.2, {"prompts of b": values})])
    assert same.compute_bounds(False) == pytest.approx(once.compute_bounds(False))
    ratio = np.subtract(*other.compute_bounds(False)) / np.subtract(*once.compute_bounds(False))
    quantiles = stats.t.ppf(0.975, [2 * (GROUPS - 1), GROUPS - 1])
    assert ratio == pytest.approx(quantiles[0] / quantiles[1] / np.sqrt(2))


def test_a_coefficient_that_does_not_exist_without_a_group_has_no_interval():
    prompt = np.repeat([0, 1], 4)
    x = np.array([1.0, 2, 3, 4, 5, 5, 5, 5])
    found, _ = replicates.compute_parts(np.column_stack([x, -x]), replicates.number_groups(prompt), prompt, True)
    estimate = replicates.create_estimate(found[:, 0], "prompts")
    assert estimate.value == pytest.approx(-1)
    assert not estimate.defined
    assert np.isnan(estimate.compute_bounds()).all()
    assert np.isnan(replicates.pool([estimate, estimate]).compute_bounds()).all()


def test_columns_that_are_constant_have_no_coefficient():
    x, y, k, prompt = draw_tokens()
    group, values = replicates.number_groups(prompt), np.column_stack([np.full(len(x), 0.1), y])
    for ranked in (False, True):
        assert np.isnan(replicates.compute_parts(values, group, k, ranked)[0][0]).all()
    assert np.isnan(replicates.compute_within_prompts(values, group, prompt)[0]).all()
    assert np.isnan(replicates.compute_within_k(values, group, k)[0]).all()


def test_intervals_cover_as_often_as_they_say_with_prompts_that_have_levels_of_their_own():
    """Pearson's r of normal variables of which a half of the variance is the prompt's own: 200 tables."""
    covered = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        prompt, covariance = np.repeat(np.arange(40), 10), [[1, -0.5], [-0.5, 1]]
        level = rng.multivariate_normal([0, 0], covariance, 40)[prompt]
        values = (level + rng.multivariate_normal([0, 0], covariance, 400)) / np.sqrt(2)
        found, _ = replicates.compute_parts(values, replicates.number_groups(prompt), prompt, ranked=False)
        low, high = replicates.create_estimate(found[:, 0], "prompts").compute_bounds()
        covered += low <= -0.5 <= high
    assert stats.binomtest(covered, 200, 0.95).pvalue > 0.001


def test_tables_of_no_tokens_have_no_coefficient():
    empty = np.empty((0, 3))
    for found in (
        replicates.compute_parts(empty, np.empty(0, int), np.empty(0, int), True)[0],
        replicates.compute_within_k(empty, np.empty(0, int), np.empty(0, int)),
    ):
        assert np.isnan(found[0]).all()
        assert np.isnan(replicates.create_estimate(found[:, 0], "prompts").compute_bounds()).all()


def test_the_interval_of_a_difference_of_coefficients_is_not_beyond_what_it_can_be():
    wide = replicates.create_estimate(np.array([-0.1, 0.5, -0.7]), "prompts")
    low, high = wide.compute_bounds(correlation=False)
    assert low < -2
    assert high > 2
    assert wide.bound_difference() == (-2, 2)
    narrow = replicates.create_estimate(np.array([-0.1, -0.1001, -0.0999]), "prompts")
    assert narrow.bound_difference() == narrow.compute_bounds(correlation=False)
