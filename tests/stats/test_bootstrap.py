"""`bootstrap`: a resample that is never spelled out equals the one that is, counted out token by token."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from nucleoscope.stats import bootstrap

pytestmark = pytest.mark.filterwarnings("error")


def spell_out(prompt: np.ndarray, row: np.ndarray) -> np.ndarray:
    """Indices of the tokens of one resample, each as often as its prompt was drawn."""
    return np.repeat(np.arange(len(prompt)), row[prompt])


def draw_sample(seed: int, tokens: int = 300, prompts: int = 12, resamples: int = 40):
    """Two columns with ties, the prompts of unequal size, and counts of some resamples, the data first."""
    rng = np.random.default_rng(seed)
    prompt = np.sort(rng.choice(prompts, tokens, p=np.arange(1, prompts + 1) / (prompts * (prompts + 1) / 2)))
    x = np.round(rng.gamma(2, 1, tokens) + 0.2 * prompt, 1)
    values = np.stack([x, np.round(np.sin(x) + rng.normal(0, 0.3, tokens), 2)], axis=1)
    once = np.ones((1, prompts), dtype=np.int64)
    return values, prompt, np.concatenate([once, bootstrap.draw_counts(prompts, resamples, seed)])


@st.composite
def draw_samples(draw):
    """Few tokens with many ties, prompts that may have none, and counts that may leave all but one out."""
    tokens, prompts = draw(st.integers(1, 25)), draw(st.integers(1, 5))
    small = st.integers(-3, 3).map(float)
    values = np.array(draw(st.lists(st.tuples(small, small), min_size=tokens, max_size=tokens)))
    prompt = np.array(draw(st.lists(st.integers(0, prompts - 1), min_size=tokens, max_size=tokens)))
    rows = st.lists(st.integers(0, 3), min_size=prompts, max_size=prompts).map(np.array)
    rows = rows.filter(lambda row: row[prompt].sum() > 0)
    once = np.ones(prompts, dtype=np.int64)  # the data itself comes first, as in every table
    return values, prompt, np.stack([once, *draw(st.lists(rows, min_size=1, max_size=4))])


def apply_to_all(function, values: np.ndarray) -> np.ndarray:
    """scipy's coefficients between all columns; NaN where one is constant, which scipy warns of."""
    varied = [len(set(column)) > 1 for column in values.T]
    return np.array(
        [
            [function(a, b).statistic if p and q else np.nan for b, q in zip(values.T, varied, strict=True)]
            for a, p in zip(values.T, varied, strict=True)
        ]
    )


def assert_same_coefficients(values, prompt, counts, tolerance):
    for ours, scipys in ((bootstrap.compute_pearson, stats.pearsonr), (bootstrap.compute_spearman, stats.spearmanr)):
        expected = np.stack([apply_to_all(scipys, values[spell_out(prompt, row)]) for row in counts])
        np.testing.assert_allclose(ours(values, prompt, counts), expected, rtol=0, atol=tolerance)


def assert_same_bins(values, prompt, counts, bins):
    x, y = values.T
    table = bootstrap.Bins(x, y, prompt, bins)
    sizes, medians = table.compute_sizes_and_medians(counts)
    means = table.compute_means(counts)
    for row, size, median, mean in zip(counts, sizes, medians, means, strict=True):
        taken = spell_out(prompt, row)
        for name, found in (("count", size), ("median", median), ("mean", mean)):
            expected = stats.binned_statistic(x[taken], y[taken], name, table.edges).statistic
            np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12, err_msg=name)


# Resamples


def test_a_resample_draws_as_many_prompts_as_there_are():
    counts = bootstrap.draw_counts(7, 100)
    assert counts.shape == (100, 7)
    assert np.issubdtype(counts.dtype, np.integer)
    assert (counts >= 0).all()
    assert (counts.sum(axis=1) == 7).all()


def test_every_prompt_is_drawn_once_on_average_with_the_variance_of_drawing_with_replacement():
    counts = bootstrap.draw_counts(10, 20000, seed=3)
    np.testing.assert_allclose(counts.mean(axis=0), 1, atol=0.05)
    np.testing.assert_allclose(counts.var(axis=0), 0.9, atol=0.05)


def test_a_seed_gives_the_same_resamples_and_another_others():
    np.testing.assert_array_equal(bootstrap.draw_counts(30, 50, seed=4), bootstrap.draw_counts(30, 50, seed=4))
    assert (bootstrap.draw_counts(30, 50, seed=4) != bootstrap.draw_counts(30, 50, seed=5)).any()


# Coefficients


@given(draw_samples())
@settings(deadline=None, max_examples=200, derandomize=True)
def test_ranks_of_a_resample_are_those_of_the_spelled_out_table(sample):
    values, prompt, counts = sample
    ranks = bootstrap.Ranks(values[:, 0], prompt)(counts)
    for row, found in zip(counts, ranks, strict=True):
        taken = spell_out(prompt, row)
        np.testing.assert_array_equal(found[taken], 2 * stats.rankdata(values[taken, 0]) - 1)
        assert found[taken].mean() == pytest.approx(len(taken), rel=1e-15)


@given(draw_samples())
@settings(deadline=None, max_examples=200, derandomize=True)
def test_coefficients_of_a_resample_are_those_of_the_spelled_out_table(sample):
    assert_same_coefficients(*sample, tolerance=1e-10)


@pytest.mark.parametrize("seed", range(3))
def test_coefficients_of_a_larger_table_are_those_of_scipy_to_1e12(seed):
    assert_same_coefficients(*draw_sample(seed), tolerance=1e-12)


@pytest.mark.parametrize("offset", [1e3, -1e5])
def test_pearson_does_not_suffer_from_values_far_from_zero(offset):
    values, prompt, counts = draw_sample(1)
    near, far = (bootstrap.compute_pearson(shifted, prompt, counts) for shifted in (values, values + offset))
    np.testing.assert_allclose(far, near, rtol=0, atol=1e-9)


def test_a_constant_resample_has_no_coefficient():
    values = np.array([[1.0, 2.0], [1.0, 3.0], [2.0, 5.0], [3.0, 4.0]])
    prompt = np.array([0, 0, 1, 1])
    counts = np.array([[1, 1], [2, 0], [0, 2]])  # the first prompt's x is constant
    for function in (bootstrap.compute_pearson, bootstrap.compute_spearman):
        assert np.isnan(function(values, prompt, counts)[:, 0, 1]).tolist() == [False, True, False]


def test_a_constant_column_that_rounds_has_no_coefficient_in_a_resample():
    rng = np.random.default_rng(0)
    prompt = np.repeat([0, 1], 50)
    values = np.stack([np.where(prompt == 0, 0.1, rng.random(100)), rng.random(100)], axis=1)
    counts = np.array([[1, 1], [2, 0]])
    for function in (bootstrap.compute_pearson, bootstrap.compute_spearman):
        assert np.isnan(function(values, prompt, counts)[:, 0, 1]).tolist() == [False, True]


def test_coefficients_stay_within_one():
    x = np.random.default_rng(0).random(100)
    values = np.stack([x, 3 * x + 1, -x], axis=1)
    for function in (bootstrap.compute_pearson, bootstrap.compute_spearman):
        found = function(values, np.arange(100) // 10, bootstrap.draw_counts(10, 200))
        assert (np.abs(found) <= 1).all()
        np.testing.assert_allclose(found[:, 0], np.tile([1, 1, -1], (200, 1)), atol=1e-12)


def test_the_order_of_tokens_does_not_matter():
    values, prompt, counts = draw_sample(2)
    mixed = np.random.default_rng(0).permutation(len(prompt))
    for function in (bootstrap.compute_pearson, bootstrap.compute_spearman):
        expected = function(values, prompt, counts)
        np.testing.assert_allclose(function(values[mixed], prompt[mixed], counts), expected, rtol=0, atol=1e-12)


# Bins


@given(draw_samples(), st.integers(1, 9))
@settings(deadline=None, max_examples=200, derandomize=True)
def test_bins_of_a_resample_are_those_of_the_spelled_out_table(sample, bins):
    values, prompt, counts = sample
    if values[:, 0].min() < values[:, 0].max():  # else there is no bin to speak of
        assert_same_bins(values, prompt, counts, bins)


@pytest.mark.parametrize("seed", range(3))
def test_bins_of_a_larger_table_are_those_of_scipy(seed):
    assert_same_bins(*draw_sample(seed), bins=50)


def test_bins_of_the_data_are_those_of_scipy():
    values, prompt, _ = draw_sample(0)
    bins = bootstrap.Bins(*values.T, prompt, 50)
    for name, found in (("median", bins.compute_medians()), ("count", bins.count), ("std", bins.compute_deviations())):
        expected = stats.binned_statistic(*values.T, name, bins=50)
        np.testing.assert_allclose(bins.edges, expected.bin_edges, rtol=1e-15)
        np.testing.assert_allclose(found, np.where(bins.count, expected.statistic, [np.nan, 0][name == "count"]))


@pytest.mark.parametrize(("n", "bins"), [(1, 1), (120, 11), (2500, 50), (10_000, 50)])
def test_bins_follow_the_number_of_tokens_up_to_those_of_the_study(n, bins):
    x = np.linspace(0, 1, n)
    assert len(bootstrap.Bins(x, x, np.zeros(n, int)).count) == bins


def test_an_empty_bin_is_nan_and_not_zero():
    bins = bootstrap.Bins(np.array([0.0, 0.1, 1.0]), np.array([1.0, 2.0, 3.0]), np.array([0, 0, 1]), 4)
    assert bins.count.tolist() == [2, 0, 0, 1]
    for found in (bins.compute_medians(), bins.compute_means(bins.count_once())[0]):
        np.testing.assert_array_equal(found, [1.5, np.nan, np.nan, 3.0])
    assert np.isnan(bins.compute_deviations()).tolist() == [False, True, True, False]


def test_a_resample_has_the_bins_of_the_data():
    bins = bootstrap.Bins(np.array([0.0, 5.0, 10.0]), np.array([1.0, 2.0, 3.0]), np.array([0, 1, 2]), 2)
    sizes, medians = bins.compute_sizes_and_medians(np.array([[0, 3, 0]]))
    assert sizes.tolist() == [[0, 3]]
    np.testing.assert_array_equal(medians, [[np.nan, 2.0]])


def test_a_value_on_an_inner_edge_belongs_to_the_bin_on_its_right_and_the_greatest_to_the_last():
    bins = bootstrap.Bins(np.array([0.0, 1.0, 2.0, 3.0, 4.0]), np.zeros(5), np.zeros(5, int), 4)
    assert bins.count.tolist() == [1, 1, 1, 2]


def test_a_constant_x_has_all_tokens_in_one_bin():
    bins = bootstrap.Bins(np.full(5, 0.3), np.arange(5.0), np.arange(5), 4)
    assert sorted(bins.count) == [0, 0, 0, 5]
    assert np.nanmax(bins.compute_medians()) == 2.0


# Blocks, intervals, processes


@pytest.mark.parametrize("size", [1, 700, 10**7])
def test_the_size_of_blocks_does_not_matter(monkeypatch, size):
    values, prompt, counts = draw_sample(0)
    expected = bootstrap.compute_spearman(values, prompt, counts)
    sizes, medians = bootstrap.Bins(*values.T, prompt).compute_sizes_and_medians(counts)
    monkeypatch.setattr(bootstrap, "BLOCK", size)
    np.testing.assert_allclose(bootstrap.compute_spearman(values, prompt, counts), expected, rtol=0, atol=1e-13)
    found = bootstrap.Bins(*values.T, prompt).compute_sizes_and_medians(counts)
    np.testing.assert_array_equal(found[0], sizes)
    np.testing.assert_array_equal(found[1], medians)


def test_an_interval_is_that_of_percentiles():
    values = np.random.default_rng(0).normal(size=(500, 3))
    low, high = bootstrap.compute_interval(values)
    np.testing.assert_allclose([low, high], np.quantile(values, [0.025, 0.975], axis=0), rtol=1e-14)
    low, high = bootstrap.compute_interval(values[:, 0], level=0.5)
    assert (float(low), float(high)) == pytest.approx(tuple(np.quantile(values[:, 0], [0.25, 0.75])))


@pytest.mark.parametrize(("infinite", "expected"), [(1, False), (3, True), (60, True)])
def test_an_interval_is_open_where_enough_resamples_grow_without_a_bound(infinite, expected):
    values = np.linspace(0, 1, 100)
    values[-infinite:] = np.inf
    low, high = bootstrap.compute_interval(values)
    assert np.isfinite(low)
    assert (high == np.inf) == expected
    low, high = bootstrap.compute_interval(-values)
    assert (low == -np.inf) == expected


@pytest.mark.parametrize(("undefined", "known"), [(0, True), (5, True), (6, False), (100, False)])
def test_an_interval_leaves_out_undefined_resamples_up_to_one_in_twenty(undefined, known):
    values = np.random.default_rng(0).normal(size=(100, 2))
    values[:undefined, 0] = np.nan
    low, high = bootstrap.compute_interval(values)
    expected = np.quantile(values[undefined:, 0], [0.025, 0.975]) if known else [np.nan, np.nan]
    np.testing.assert_allclose([low[0], high[0]], expected)
    np.testing.assert_allclose([low[1], high[1]], np.quantile(values[:, 1], [0.025, 0.975]))


def test_a_jackknife_interval_of_a_mean_is_that_of_students_t():
    values = np.random.default_rng(0).normal(2, 1, 9)
    without = (values.sum() - values) / 8
    expected = stats.t.interval(0.9, 8, values.mean(), stats.sem(values))
    found = bootstrap.compute_jackknife_interval(values.mean(), without, 0.9, correlation=False)
    assert found == pytest.approx(expected, rel=1e-12)


def test_a_jackknife_interval_of_a_correlation_stays_within_one_and_needs_every_value():
    low, high = bootstrap.compute_jackknife_interval(0.9, np.array([0.99, 0.2, 0.95]))
    assert -1 < low < 0.9 < high < 1
    assert bootstrap.compute_jackknife_interval(1.0, np.ones(4)) == pytest.approx((1, 1))
    assert np.isnan(bootstrap.compute_jackknife_interval(0.5, np.array([0.4, np.nan, 0.5]))).all()


def test_each_prompt_is_left_out_once_alone_or_in_a_group():
    assert bootstrap.leave_out_groups(3).tolist() == [[0, 1, 1], [1, 0, 1], [1, 1, 0]]
    left_out = 1 - bootstrap.leave_out_groups(23, groups=5, seed=1)
    assert left_out.sum(axis=0).tolist() == [1] * 23
    assert sorted(left_out.sum(axis=1)) == [4, 4, 5, 5, 5]
    assert (left_out != 1 - bootstrap.leave_out_groups(23, groups=5, seed=2)).any()


@given(draw_samples(), st.integers(1, 3))
@settings(deadline=None, max_examples=100, derandomize=True)
def test_ranks_within_strata_are_those_of_the_spelled_out_table(sample, strata):
    values, prompt, counts = sample
    stratum = np.arange(len(prompt)) % strata
    found = bootstrap.compute_spearman(values, prompt, counts, stratum)
    for row, matrix in zip(counts, found, strict=True):
        taken, columns = spell_out(prompt, row), []
        for each in range(strata):
            part = values[taken][stratum[taken] == each]
            if len(part):
                columns.append((stats.rankdata(part, axis=0) - (len(part) + 1) / 2) / (len(part) + 1))
        u, v = np.concatenate(columns).T
        expected = u @ v / np.sqrt((u @ u) * (v @ v)) if u @ u > 0 and v @ v > 0 else np.nan
        np.testing.assert_allclose(matrix[0, 1], expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("prompts", [10, 100])
def test_counts_begin_with_the_data_and_need_a_resample(prompts):
    kind, counts = bootstrap.create_counts(prompts, 7)
    assert kind == bootstrap.choose_interval(prompts)
    assert len(counts) == 1 + (prompts if kind == bootstrap.JACKKNIFE else 7)
    assert (counts[0] == 1).all()
    with pytest.raises(ValueError, match="resamples is 0"):
        bootstrap.create_counts(prompts, 0)


def test_a_resample_that_is_constant_is_undefined_without_the_data_beside_it():
    values, prompt = np.array([[0.0, 1], [0, 0], [0, 0]]), np.array([0, 1, 1])
    assert np.isnan(bootstrap.compute_pearson(values, prompt, np.array([[3, 0]]))).all()
