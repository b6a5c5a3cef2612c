"""What or how: the split is exact, groups are those of average linkage, and the null model is right."""

import itertools

import numpy as np
import pytest

from nucleoscope.stats import what_or_how


def compute_entropy(q) -> float:
    q = np.asarray(q, float)
    return float(-(q[q > 0] * np.log(q[q > 0])).sum())


def create_matrices(number: int = 200, seed: int = 0) -> dict[str, np.ndarray]:
    """Random choices of 2 to 8 candidates."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(2, 9, number)
    shares = [rng.dirichlet(np.full(m, 0.5)) for m in sizes]
    return {
        "prompts": np.arange(number, dtype=np.int32) // 10,
        "steps": np.arange(number, dtype=np.int32) % 10,
        "sizes": sizes.astype(np.int32),
        "ids": np.arange(sizes.sum(), dtype=np.int32),
        "shares": np.concatenate(shares).astype(np.float32),
        "similarities": rng.uniform(size=(sizes * (sizes - 1) // 2).sum()).astype(np.float16),
    }


def group_naively(triangle: np.ndarray, m: int, threshold: float) -> set[frozenset[int]]:
    """Merges the two groups with the largest mean similarity, as long as that is at least the threshold."""
    similar = np.eye(m)
    rows, columns = np.triu_indices(m, 1)
    similar[rows, columns] = similar[columns, rows] = triangle
    groups = [[place] for place in range(m)]
    while len(groups) > 1:
        pairs = list(itertools.combinations(range(len(groups)), 2))
        means = [similar[np.ix_(groups[one], groups[other])].mean() for one, other in pairs]
        if max(means) < threshold:
            break
        one, other = pairs[int(np.argmax(means))]
        groups[one] += groups.pop(other)
    return set(map(frozenset, groups))


@pytest.mark.parametrize("threshold", [0.05, 0.3, 0.5, 0.8, 1])
def test_both_parts_add_up_to_the_entropy_of_the_choice(threshold):
    matrices = create_matrices()
    found = what_or_how.tabulate(matrices, threshold)
    entropies = [compute_entropy(q) for _, _, q, _ in what_or_how.Choices.collect(matrices).iterate()]
    np.testing.assert_allclose(found["entropy_what"] + found["entropy_how"], entropies, atol=1e-12, rtol=0)
    np.testing.assert_allclose(found["entropy_what_null"] + found["entropy_how_null"], entropies, atol=1e-12, rtol=0)
    for name in what_or_how.SPLIT[1:]:
        assert (found[name] >= 0).all()


@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.7])
def test_groups_are_those_of_average_linkage(threshold):
    matrices = create_matrices()
    found = what_or_how.tabulate(matrices, threshold)["groups"]
    choices = what_or_how.Choices.collect(matrices).iterate()
    for number, (_, _, q, triangle) in zip(found, choices, strict=True):
        groups = what_or_how.cut(what_or_how.link(triangle), threshold)
        naive = group_naively(triangle, len(q), threshold)
        assert {frozenset(np.flatnonzero(groups == group).tolist()) for group in set(groups)} == naive
        assert number == len(naive)


def test_a_similarity_that_equals_the_threshold_joins():
    groups = what_or_how.cut(what_or_how.link(np.array([0.5])), 0.5)
    assert groups.tolist() == [0, 0]
    assert set(what_or_how.cut(what_or_how.link(np.array([0.4995])), 0.5)) == {0, 1}


def test_known_groups_give_the_known_split():
    # two synonyms and an opposite: 1/4, 1/4 and 1/2
    groups = what_or_how.cut(what_or_how.link(np.array([0.9, 0.1, 0.1])), 0.5)
    found = what_or_how.split_entropy(np.array([0.25, 0.25, 0.5]), groups)
    assert found.what == pytest.approx(np.log(2), abs=1e-12)
    assert found.how == pytest.approx(np.log(2) / 2, abs=1e-12)


def test_the_null_is_the_mean_over_all_ways_to_draw_groups_of_the_same_sizes():
    q = np.array([0.4, 0.3, 0.2, 0.05, 0.05])
    groups = np.array([0, 0, 1, 1, 2])
    every = [what_or_how.split_entropy(np.array(order), groups).what for order in itertools.permutations(q)]
    draws = 20_000
    found = what_or_how.draw_null(q, groups, np.random.default_rng(0), draws)
    assert found.what == pytest.approx(np.mean(every), abs=4 * np.std(every) / np.sqrt(draws))
    assert found.what + found.how == pytest.approx(compute_entropy(q), abs=1e-12)


def test_one_group_and_groups_of_one_are_their_own_null():
    matrices = create_matrices()
    for threshold in (1e-9, 1):
        found = what_or_how.tabulate(matrices, threshold)
        np.testing.assert_array_equal(found["entropy_what"], found["entropy_what_null"])
    assert (found["groups"] == matrices["sizes"]).all()
    assert (found["entropy_how"] == 0).all()


def test_the_null_depends_on_the_seed_and_the_token_and_not_on_what_else_there_is():
    matrices = create_matrices()
    found = what_or_how.tabulate(matrices, 0.5, seed=3)
    half = {name: matrices[name][:100] for name in ("prompts", "steps", "sizes")}
    candidates, pairs = half["sizes"].sum(), (half["sizes"] * (half["sizes"] - 1) // 2).sum()
    half |= {"shares": matrices["shares"][:candidates], "similarities": matrices["similarities"][:pairs]}
    again = what_or_how.tabulate(half, 0.5, seed=3)
    other = what_or_how.tabulate(matrices, 0.5, seed=-4)
    for name in what_or_how.SPLIT:
        np.testing.assert_array_equal(found[name][:100], again[name])
    np.testing.assert_array_equal(found["entropy_what"], other["entropy_what"])
    assert (found["entropy_what_null"] != other["entropy_what_null"]).any()


def test_the_curve_has_the_means_of_the_columns_at_each_threshold():
    matrices = create_matrices(50)
    curve = what_or_how.compute_curve(matrices, (0.2, 0.5, 0.8))
    for place, threshold in enumerate(curve["threshold"]):
        found = what_or_how.tabulate(matrices, threshold)
        for name in what_or_how.SPLIT:
            assert curve[name][place] == pytest.approx(found[name].mean(), abs=1e-12)
    assert np.all(np.diff(curve["groups"]) > 0)


def test_no_choices_give_empty_columns_and_no_means():
    matrices = {name: array[:0] for name, array in create_matrices().items()}
    assert {len(column) for column in what_or_how.tabulate(matrices, 0.5).values()} == {0}
    assert np.isnan(what_or_how.compute_curve(matrices)["groups"]).all()
