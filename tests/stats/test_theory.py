"""Every proposition of the theory page, checked on random cases; the page's functions against the package's."""

from itertools import combinations, permutations

import numpy as np
import pytest

from nucleoscope.stats import theory as t

SEEDS = range(20)


def compute_pair_cosines(units):
    gram = units @ units.T
    return gram[np.triu_indices(len(units), 1)]


def draw_units(rng, k, width=None, shift=None):
    width = width or int(rng.choice([1, 2, 3, 8, 64]))
    shift = rng.choice([0, 0.5, 2]) if shift is None else shift
    return t.normalise_rows(rng.normal(size=(k, width)) + shift * np.eye(1, width))


def draw_q(rng, k):
    q = rng.dirichlet(np.full(k, rng.choice([0.1, 1, 10]))) + 1e-12
    return q / q.sum()


@pytest.mark.parametrize("seed", SEEDS)
def test_max_entropy(seed):
    rng = np.random.default_rng(seed)
    k = int(rng.integers(1, 60))
    assert -1e-12 <= t.compute_entropy(draw_q(rng, k)) <= np.log(k) + 1e-12
    assert t.compute_entropy(np.full(k, 1 / k)) == pytest.approx(np.log(k), abs=1e-12)
    assert t.compute_entropy(np.eye(1, k)[0]) == 0


@pytest.mark.parametrize("seed", range(100))
def test_truncation(seed):
    rng = np.random.default_rng(seed)
    size = int(rng.integers(2, 80))
    p, top_p = draw_q(rng, size), rng.uniform(0.05, 0.999)
    inside = t.find_nucleus(p, top_p)
    k, m = len(inside), p[inside].sum()
    assert m >= top_p > m - p[inside[-1]]
    which, within, tail = t.split_entropy(p, top_p)
    full, kept = t.compute_entropy(p), t.compute_entropy(p[inside] / m)
    assert which + within + tail == pytest.approx(full, abs=1e-10)
    assert full >= kept - np.log(m) - 1e-10
    if k < size:
        assert full <= t.compute_binary_entropy(m) + m * kept + (1 - m) * np.log(size - k) + 1e-10


def test_truncation_equality():
    p = np.full(10, 0.1)
    inside = t.find_nucleus(p, 0.85)
    m = p[inside].sum()
    assert inside.tolist() == list(range(9))  # ties: lower id first
    assert t.compute_entropy(p) == pytest.approx(t.compute_entropy(p[inside] / m) - np.log(m), abs=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
def test_anisotropy(seed):
    rng = np.random.default_rng(seed)
    units = draw_units(rng, v := int(rng.integers(2, 200)))
    mu = units.mean(0) @ units.mean(0)
    assert compute_pair_cosines(units).mean() == pytest.approx(mu - (1 - mu) / (v - 1), abs=1e-10)


@pytest.mark.parametrize("seed", SEEDS)
def test_no_pairs(seed):
    rng = np.random.default_rng(seed)
    units = draw_units(rng, k := int(rng.integers(2, 100)))
    assert t.compute_mean_cosine(units) == pytest.approx(compute_pair_cosines(units).mean(), abs=1e-10)
    assert t.compute_mean_cosine(units) >= -1 / (k - 1) - 1e-10


@pytest.mark.parametrize("k", range(2, 8))
def test_draws_exactly(k):
    """All subsets of a small table: mean and variance to the last digits."""
    rng = np.random.default_rng(k)
    units = draw_units(rng, 8, 3, 0.7)
    values = np.array([compute_pair_cosines(units[list(subset)]).mean() for subset in combinations(range(8), k)])
    center, spread, rest = t.compute_draw_moments(units)
    assert values.mean() == pytest.approx(center, abs=1e-10)
    assert values.var() == pytest.approx(float(t.compute_draw_variance(k, 8, spread, rest)), abs=1e-10)


@pytest.mark.parametrize("k", [2, 3, 4])
def test_weighted_draws_exactly(k):
    """Weights fixed before the draw: the weighted mean cosine has the same expectation."""
    rng = np.random.default_rng(k)
    units, q = draw_units(rng, 8, 3, 0.7), draw_q(rng, k)
    weights = np.outer(q, q)[np.triu_indices(k, 1)]
    values = [
        (weights * compute_pair_cosines(units[list(draw)])).sum() / weights.sum() for draw in permutations(range(8), k)
    ]
    assert np.mean(values) == pytest.approx(t.compute_draw_moments(units)[0], abs=1e-10)


def test_draw_parts_are_those_of_the_text():
    rng = np.random.default_rng(0)
    units = draw_units(rng, 50, 5, 0.7)
    v, gram = 50, units @ units.T
    center, spread, rest = t.compute_draw_moments(units)
    row_mean = (gram.sum(1) - 1) / (v - 1)
    effect = (v - 1) / (v - 2) * (row_mean - center)
    e = gram - center - effect[:, None] - effect[None]
    np.fill_diagonal(e, 0)
    assert np.abs(e.sum(1)).max() < 1e-10
    assert abs(effect.sum()) < 1e-10
    assert (e[np.triu_indices(v, 1)] ** 2).mean() == pytest.approx(rest, abs=1e-10)
    assert (effect**2).sum() / (v - 1) == pytest.approx(spread, abs=1e-10)


def test_draws_by_simulation():
    rng = np.random.default_rng(1)
    units = t.draw_embedding(rng, 1000, 32)
    center, spread, rest = t.compute_draw_moments(units)
    for k in (2, 5, 30, 300, 900):
        n = 2000
        values = np.array([t.compute_mean_cosine(units[rng.choice(1000, k, replace=False)]) for _ in range(n)])
        variance = float(t.compute_draw_variance(k, 1000, spread, rest))
        assert abs(values.mean() - center) < 4 * np.sqrt(variance / n)
        kurtosis = np.mean((values - values.mean()) ** 4) / values.var() ** 2
        assert abs(values.var() / variance - 1) < 4 * np.sqrt((kurtosis - 1) / n)


@pytest.mark.parametrize("k", [2, 3, 10])
def test_independent_draws_are_hoeffdings(k):
    """Draws with replacement: zeta_1 = Var(u.mu), zeta_2 = tr(C^2) - |mu|^4, exactly, by enumeration at k = 2, 3."""
    rng = np.random.default_rng(k)
    units = draw_units(rng, 6, 3, 0.7)
    mu, second = units.mean(0), units.T @ units / 6
    zeta1, zeta2 = np.var(units @ mu), np.trace(second @ second) - (mu @ mu) ** 2
    formula = 4 * (k - 2) / (k * (k - 1)) * zeta1 + 2 / (k * (k - 1)) * zeta2
    assert formula == pytest.approx(4 / k * zeta1 + 2 / (k * (k - 1)) * (zeta2 - 2 * zeta1), abs=1e-12)
    if k < 4:
        grid = np.stack(np.meshgrid(*[range(6)] * k), -1).reshape(-1, k)
        values = np.array([compute_pair_cosines(units[row]).mean() for row in grid])
    else:
        values = np.array([compute_pair_cosines(units[rng.integers(0, 6, k)]).mean() for _ in range(20000)])
        assert abs(values.mean() - mu @ mu) < 4 * values.std() / 141
        assert values.var() == pytest.approx(formula, rel=0.06)
        return
    assert values.mean() == pytest.approx(mu @ mu, abs=1e-10)
    assert values.var() == pytest.approx(formula, abs=1e-10)


def test_large_tables_come_to_hoeffdings():
    """Copies of a table: S_g^2 -> zeta_1 and the rest -> zeta_2 - 2 zeta_1."""
    rng = np.random.default_rng(3)
    units = draw_units(rng, 6, 3, 0.7)
    mu, second = units.mean(0), units.T @ units / 6
    zeta1, zeta2 = np.var(units @ mu), np.trace(second @ second) - (mu @ mu) ** 2
    _, spread, rest = t.compute_draw_moments(np.tile(units, (100000, 1)))
    assert spread == pytest.approx(zeta1, rel=1e-4)
    assert rest == pytest.approx(zeta2 - 2 * zeta1, rel=1e-4)


def test_isotropic_directions():
    rng = np.random.default_rng(4)
    units = t.normalise_rows(rng.normal(size=(20000, 2, 16)))
    assert np.var((units[:, 0] * units[:, 1]).sum(-1)) == pytest.approx(1 / 16, rel=0.05)


@pytest.mark.parametrize("k", [3, 4, 6])
def test_dilution(k):
    rng = np.random.default_rng(k)
    core, rows = draw_units(rng, 3, 4, 1), draw_units(rng, 7, 4, 0.3)
    values = [
        compute_pair_cosines(np.concatenate([core, rows[list(subset)]])).mean()
        for subset in combinations(range(7), k - 3)
    ]
    inside, across = compute_pair_cosines(core).mean(), (core @ rows.T).mean()
    expected = float(t.compute_diluted(k, 3, inside, across, compute_pair_cosines(rows).mean()))
    assert np.mean(values) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("seed", SEEDS)
def test_family(seed):
    rng = np.random.default_rng(seed)
    k = int(rng.integers(2, 50))
    units, q = draw_units(rng, k), draw_q(rng, k)
    gram, mean = units @ units.T, q @ units
    square = float(mean @ mean)
    assert q @ gram @ q == pytest.approx(square, abs=1e-10)
    assert 1 / t.compute_diversity(q, gram, 2) == pytest.approx(square, rel=1e-8)
    repeats = (q**2).sum()
    off = ~np.eye(k, dtype=bool)
    weights = np.outer(q, q)
    weighted = (weights * gram)[off].sum() / weights[off].sum()
    assert square == pytest.approx(repeats + (1 - repeats) * weighted, abs=1e-10)
    even = np.full(k, 1 / k)
    cosine = compute_pair_cosines(units).mean()
    assert 1 / t.compute_diversity(even, gram, 2) == pytest.approx((1 + (k - 1) * cosine) / k, rel=1e-8)
    assert 1 - square == pytest.approx((q * ((units - mean) ** 2).sum(1)).sum(), abs=1e-10)
    assert 1 - square == pytest.approx(0.5 * (weights * ((units[:, None] - units[None]) ** 2).sum(-1)).sum(), abs=1e-10)
    assert t.compute_diversity(q, np.eye(k), 1) == pytest.approx(np.exp(t.compute_entropy(q)), rel=1e-10)
    z = (1 + gram) / 2
    assert np.log(t.compute_diversity(q, z, 1)) == pytest.approx(t.compute_similarity_entropy(q, units), abs=1e-10)
    assert t.compute_diversity(q, z, 2) == pytest.approx(2 / (1 + square), rel=1e-10)
    assert t.compute_diversity(q, z, 1.0001) == pytest.approx(t.compute_diversity(q, z, 1), rel=1e-3)


def test_where_cosines_as_similarities_fail():
    units = np.array([[1.0], [-1.0]])
    q = np.array([0.6, 0.4])
    assert t.compute_diversity(q, units @ units.T, 2) == pytest.approx(25)
    assert ((units @ units.T) @ q)[1] < 0
    assert t.compute_similarity_entropy(q, units) == pytest.approx(t.compute_entropy(q))


@pytest.mark.parametrize("seed", range(300))
def test_similarity_entropy_bounds(seed):
    rng = np.random.default_rng(seed)
    k = int(rng.integers(1, 60))
    units, q = draw_units(rng, k), draw_q(rng, k)
    value, rho = t.compute_similarity_entropy(q, units), min(np.linalg.norm(q @ units), 1)
    assert -1e-10 <= value <= t.compute_entropy(q) + 1e-10
    assert np.log(2 / (1 + rho**2)) - 1e-10 <= value <= float(t.compute_binary_entropy((1 + rho) / 2)) + 1e-10
    assert value <= np.log(2) + 1e-10


@pytest.mark.parametrize("seed", SEEDS)
def test_similarity_entropy_equalities(seed):
    rng = np.random.default_rng(seed)
    k = int(rng.integers(2, 20))
    q, u = draw_q(rng, k), t.normalise_rows(rng.normal(size=5))
    assert t.compute_similarity_entropy(q, np.tile(u, (k, 1))) == pytest.approx(0, abs=1e-10)
    signs = np.where(rng.random(k) < 0.5, 1, -1)
    rho = abs(q @ signs)
    assert t.compute_similarity_entropy(q, signs[:, None] * u) == pytest.approx(
        float(t.compute_binary_entropy((1 + rho) / 2)), abs=1e-7
    )
    orthogonal, even = np.eye(k), np.full(k, 1 / k)
    assert t.compute_similarity_entropy(even, orthogonal) == pytest.approx(np.log(2 * k / (k + 1)), abs=1e-10)
    assert np.log(2 / (1 + 1 / k)) == pytest.approx(np.log(2 * k / (k + 1)), abs=1e-12)
    # A candidate split into identical twins changes nothing.
    units = draw_units(rng, k)
    twins = np.concatenate([units, units[:1]]), np.concatenate([[q[0] / 3], q[1:], [2 * q[0] / 3]])
    assert t.compute_similarity_entropy(twins[1], twins[0]) == pytest.approx(
        t.compute_similarity_entropy(q, units), abs=1e-10
    )


def test_total_covariance():
    rng = np.random.default_rng(5)
    group = rng.integers(0, 7, 500)
    x, y = rng.normal(size=500) + group, rng.normal(size=500) - group
    within = sum((group == g).mean() * np.cov(x[group == g], y[group == g], bias=True)[0, 1] for g in range(7))
    means = np.array([[x[group == g].mean(), y[group == g].mean()] for g in range(7)])[group]
    between = np.cov(means.T, bias=True)[0, 1]
    assert np.cov(x, y, bias=True)[0, 1] == pytest.approx(within + between, abs=1e-10)


def test_bfloat16():
    torch = pytest.importorskip("torch")
    values = np.random.default_rng(0).normal(size=10000).astype(np.float32)
    assert (t.round_to_bfloat16(values) == torch.tensor(values).bfloat16().float().numpy()).all()


def test_rounding_identity():
    """With rounded rows the k of the formula is off by exactly the sum of (|u|^2 - 1) over k (k - 1)."""
    rounded = t.round_to_bfloat16(t.normalise_rows(np.random.default_rng(0).normal(size=(7, 64)))).astype(float)
    difference = t.compute_mean_cosine(rounded, 7) - t.compute_mean_cosine(rounded)
    assert difference == pytest.approx(((rounded**2).sum() - 7) / 42, abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_the_package_measures_what_the_page_says(seed):
    torch = pytest.importorskip("torch")
    from nucleoscope.measure import cosine, entropy, nucleus

    rng = np.random.default_rng(seed)
    p, table = draw_q(rng, 40), draw_units(rng, 40, 8, 0.5)
    found = nucleus.find_nucleus(torch.tensor(np.log(p))[None], 0.9)
    inside = t.find_nucleus(p, 0.9)
    assert found.ids.tolist() == inside.tolist()
    weights = torch.tensor(table, dtype=torch.float32)
    values = cosine.compute_similarity(found.ids, found.probs, found.offsets, cosine.find_directions(weights))
    q = p[inside] / p[inside].sum()
    assert float(entropy.compute_nucleus_entropies(found.probs, found.offsets)[0]) == pytest.approx(
        t.compute_entropy(q), abs=1e-5
    )
    assert float(values.similarity_entropy) == pytest.approx(t.compute_similarity_entropy(q, table[inside]), abs=1e-5)
    if len(inside) > 1:
        assert float(values.cosine) == pytest.approx(t.compute_mean_cosine(table[inside]), abs=1e-5)
