"""Likeness of the candidates, against all k x k cosines written out in float64 (`oracle`).

Rows are gathered from the embedding as it is stored, widened to float32 and summed in float32. The
reference starts from the same stored values, so rounding to 16 bits is on neither side, and one
tolerance holds for every type: `approximate`.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import oracle
from nucleoscope.measure import cosine
from nucleoscope.measure.cosine import compute_similarity, find_directions
from nucleoscope.measure.entropy import compute_nucleus_entropies
from nucleoscope.measure.nucleus import find_nucleus

FLOATS = [torch.float32, torch.float16, torch.bfloat16]
EPS = 2.0**-23  # of float32
check = settings(deadline=None, max_examples=80, derandomize=True)


def approximate(expected, k):
    """Within float32: a few roundings of cosines near 1, and those of k additions, which grow as sqrt(k)."""
    return pytest.approx(expected, rel=0, abs=EPS * (4 + k**0.5))


def measure(embedding, ids, probs):
    """One (cosine, weighted_cosine, similarity_entropy) for each row of ids and of probabilities."""
    flat, offsets = oracle.join_ragged(probs)
    flat_ids = torch.tensor([i for row in ids for i in row])
    found = compute_similarity(flat_ids, flat, offsets, find_directions(embedding))
    assert all(x.shape == (len(probs),) and x.dtype == torch.float64 for x in found)
    return list(zip(*(x.tolist() for x in found), strict=True))


def measure_one(rows, probs):
    """The three quantities of one nucleus, from its embedding rows and probabilities."""
    return measure(rows, [range(len(probs))], [probs])[0]


def compute_expected(embedding, ids, probs):
    return [
        oracle.compute_similarity(embedding[list(i)], oracle.join_ragged([p])[0])
        for i, p in zip(ids, probs, strict=True)
    ]


def draw_rows(k, d, seed=0, lean=0.0):
    """Embedding rows (k, d); ``lean`` pulls them towards one direction, as the rows of real models are."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(k, d, generator=generator) + lean * torch.randn(d, generator=generator)


def draw_falling(k, seed=0, power=1.0):
    weights = np.sort(np.random.default_rng(seed).random(k) ** power)[::-1]
    return np.float32(weights / weights.sum() * 0.95 + 1e-12).tolist()


@st.composite
def draw_cases(draw):
    """An embedding with copied, opposite and zero rows, and a ragged batch of nuclei over it."""
    d, dtype = draw(st.sampled_from([1, 2, 3, 8, 33])), draw(st.sampled_from(FLOATS))
    kinds = draw(st.lists(st.sampled_from(["own", "own", "own", "copy", "minus", "zero"]), min_size=12, max_size=12))
    lean, scale = draw(st.sampled_from([0.0, 1.0, 10.0])), draw(st.sampled_from([0.01, 1.0, 100.0]))
    rows = draw_rows(12, d, draw(st.integers(0, 10**6)), lean)
    of = {"own": rows, "copy": rows[:1].expand_as(rows), "minus": -rows[:1].expand_as(rows), "zero": 0 * rows}
    embedding = torch.stack([of[kind][i] for i, kind in enumerate(kinds)])
    probs = draw(st.lists(oracle.draw_nucleus_probs(), min_size=1, max_size=5))
    ids = [draw(st.permutations(range(12)))[: len(p)] for p in probs]
    return (scale * embedding).to(dtype), ids, probs


# Properties


@check
@given(draw_cases())
def test_all_three_follow_their_definitions(case):
    for found, expected, ids in zip(measure(*case), compute_expected(*case), case[1], strict=True):
        assert found == approximate(expected, len(ids))


@check
@given(draw_cases())
def test_all_three_keep_their_ranges(case):
    entropies = compute_nucleus_entropies(*oracle.join_ragged(case[2])).entropy
    for (plain, weighted, entropy), most in zip(measure(*case), entropies.tolist(), strict=True):
        assert -1 <= plain <= 1
        assert -1 <= weighted <= 1
        assert 0 <= entropy <= most + 1e-12  # both are float64 sums


@check
@given(draw_cases())
def test_a_row_alone_is_the_row_in_its_batch(case):
    embedding, ids, probs = case
    for together, i, p in zip(measure(*case), ids, probs, strict=True):
        assert together == approximate(measure(embedding, [i], [p])[0], len(i))


@check
@given(draw_cases(), st.sampled_from([0.25, 8.0, 64.0]))
def test_the_length_of_the_rows_does_not_matter(case, factor):
    embedding, ids, probs = case
    embedding = embedding.float()
    longer = embedding * factor ** (torch.arange(12) % 3 - 1)[:, None]
    for a, b, i in zip(measure(embedding, ids, probs), measure(longer, ids, probs), ids, strict=True):
        assert a == approximate(b, len(i))


# Single cases


@pytest.mark.parametrize("dtype", FLOATS)
def test_one_token_has_cosines_1_and_entropy_0_even_if_its_row_is_zero(dtype):
    embedding = torch.tensor([[0.3, -0.7], [0.0, 0.0]], dtype=dtype)
    assert measure(embedding, [[0], [1], [0]], [[0.9], [0.95], [1e-30]]) == [(1, 1, 0)] * 3


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("d", [2, 64, 2048, 4096])
def test_two_tokens_have_the_cosine_of_their_rows(d, dtype):
    # To float32's accuracy in bfloat16 too, for rows are widened before they are added, and for rows of
    # any width: the squares taken off must be those of the rows added, or a norm's error stays in full.
    for seed in range(20):
        rows = draw_rows(2, d, seed, lean=1.0).to(dtype)
        u = oracle.normalise(rows)
        plain, weighted, _ = found = measure_one(rows, [0.7, 0.25])
        assert plain == approximate(u[0] @ u[1], 2)
        assert weighted == approximate(u[0] @ u[1], 2)
        assert found == approximate(compute_expected(rows, [[0, 1]], [[0.7, 0.25]])[0], 2)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("k", [2, 3, 100, 3000])
def test_identical_rows_are_wholly_alike(k, dtype):
    rows = draw_rows(1, 128).to(dtype).expand(k, -1)
    assert measure_one(rows, draw_falling(k)) == approximate((1, 1, 0), k)


@pytest.mark.parametrize("dtype", FLOATS)
def test_opposite_rows_are_wholly_unlike(dtype):
    row = draw_rows(1, 24).to(dtype)
    probs = [0.6, 0.3]
    plain, weighted, entropy = measure_one(torch.cat((row, -row)), probs)
    assert (plain, weighted) == approximate((-1, -1), 2)
    assert entropy == approximate(
        oracle.compute_entropy(oracle.compute_q(oracle.join_ragged([probs])[0])), 2
    )  # Z is the identity


@pytest.mark.parametrize("k", [2, 5, 64])
def test_orthogonal_rows_are_half_alike(k):
    probs = draw_falling(k)
    expected = -sum(x * np.log((1 + x) / 2) for x in oracle.compute_q(probs))  # Z is 1 on the diagonal, else 1/2
    assert measure_one(torch.eye(k), probs) == approximate((0, 0, expected), k)


@pytest.mark.parametrize("where", [0, 1, 2])
@pytest.mark.parametrize("dtype", FLOATS)
def test_a_zero_row_is_orthogonal_to_all_but_like_itself(dtype, where):
    rows, probs = draw_rows(3, 8, lean=1.0).to(dtype), [0.5, 0.3, 0.1]
    rows[where] = 0
    a, b = (i for i in range(3) if i != where)
    u, q = oracle.normalise(rows), oracle.compute_q(oracle.join_ragged([probs])[0])
    plain, weighted, entropy = measure_one(rows, probs)
    assert plain == approximate(u[a] @ u[b] / 3, 3)
    assert weighted == approximate(q[a] * q[b] * (u[a] @ u[b]) / (q[0] * q[1] + q[0] * q[2] + q[1] * q[2]), 3)
    assert entropy == approximate(oracle.compute_similarity_entropy(u, q), 3)


def test_zero_rows_alone_are_half_alike():
    probs = [0.5, 0.25, 0.125]
    assert measure_one(torch.zeros(3, 4), probs) == approximate(measure_one(torch.eye(3), probs), 3)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("tail", [1e-3, 1e-6, 1e-12, 1e-20, 1e-30, 1e-36])
@pytest.mark.parametrize("k", [2, 3, 50])
def test_weighted_cosine_keeps_its_accuracy_where_one_token_has_nearly_all_the_weight(k, tail, dtype):
    rows = draw_rows(k, 32, lean=0.7).to(dtype)
    probs = [1 - tail, *(tail * x for x in draw_falling(k - 1))]
    assert measure_one(rows, probs) == approximate(compute_expected(rows, [range(k)], [probs])[0], k)


@pytest.mark.parametrize("logit", [-88, -95, -100, -103])
def test_weighted_cosine_of_a_token_of_subnormal_probability(logit):
    # With top_p = 1 a nucleus of 2 has the cosine of its rows, however unlikely the second token is.
    rows, found = draw_rows(2, 8, lean=1.0), find_nucleus(torch.tensor([[0.0, logit]]), 1.0)
    assert len(found.ids) == 2
    u = oracle.normalise(rows)
    assert measure_one(rows, found.probs.tolist())[1] == approximate(u[0] @ u[1], 2)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("lean", [0.0, 0.3, 3.0])
@pytest.mark.parametrize("power", [1.0, 20.0])
def test_nuclei_of_thousands(power, lean, dtype):
    embedding, sizes = draw_rows(3000, 128, lean=lean).to(dtype), (2500, 1, 300, 2, 1800)  # 2048 rows are a piece
    ids = [np.random.default_rng(k).permutation(3000)[:k].tolist() for k in sizes]
    probs = [draw_falling(k, k, power) for k in sizes]
    for found, expected, k in zip(
        measure(embedding, ids, probs), compute_expected(embedding, ids, probs), sizes, strict=True
    ):
        assert found == approximate(expected, k)


def split_rows(embedding):
    sizes = (1, 40, 2, 7, 1, 300)
    ids = [np.random.default_rng(k).permutation(len(embedding))[:k].tolist() for k in sizes]
    return embedding, ids


@pytest.mark.parametrize("wide", [0, 10**9], ids=["one product per nucleus", "one for all"])
@pytest.mark.parametrize("piece", [1, 16, 16 * 7, 16 * 41, 16 * 1000])
def test_pieces_of_any_size_give_the_same_numbers(monkeypatch, piece, wide):
    embedding, ids = split_rows(draw_rows(400, 16, lean=0.5))
    probs = [draw_falling(len(i)) for i in ids]
    whole, expected = measure(embedding, ids, probs), compute_expected(embedding, ids, probs)
    monkeypatch.setattr(cosine, "PIECE_CPU", piece)
    monkeypatch.setattr(cosine, "WIDE", wide)
    for a, b, c, i in zip(measure(embedding, ids, probs), whole, expected, ids, strict=True):
        assert a == approximate(b, len(i))
        assert a == approximate(c, len(i))


@pytest.mark.parametrize("piece", [1, 16, 16 * 7, 16 * 41])
def test_pieces_give_equal_numbers_where_float32_sums_are_exact(monkeypatch, piece):
    # Rows along the axes and probabilities that are powers of 2: every sum is exact in any order.
    axes = torch.eye(16)[torch.arange(400) % 16] * torch.where(torch.arange(400) % 3 == 0, -1, 1)[:, None]
    embedding, ids = split_rows(axes)
    probs = [[2.0**-10] * len(i) for i in ids]
    whole, found = measure(embedding, ids, probs), find_directions(embedding)
    monkeypatch.setattr(cosine, "PIECE_CPU", piece)
    assert all(torch.equal(a, b) for a, b in zip(find_directions(embedding), found, strict=True))
    plain = [found[0] for found in measure(embedding, ids, probs)]
    assert plain == [found[0] for found in whole]
    for a, b in zip(measure(embedding, ids, probs), whole, strict=True):
        assert a == pytest.approx(b, rel=1e-6, abs=EPS)


def test_nuclei_of_logits_from_end_to_end():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 2000, generator=generator) * torch.tensor([0.1, 1, 2, 4, 8, 50])[:, None]
    found, embedding = find_nucleus(logits, 0.9), draw_rows(2000, 48, lean=0.3).bfloat16()
    measured = compute_similarity(*found, find_directions(embedding))
    ids, probs = oracle.split(found.ids, found.offsets), oracle.split(found.probs, found.offsets)
    for row, i, p in zip(zip(*measured, strict=True), ids, probs, strict=True):
        assert [x.item() for x in row] == approximate(list(oracle.compute_similarity(embedding[i], p)), len(i))


@pytest.mark.parametrize("d", [1, 33, 4096])
@pytest.mark.parametrize("dtype", FLOATS)
def test_inverse_norms_are_float32_and_0_for_a_zero_row(dtype, d):
    embedding = draw_rows(50, d).to(dtype)
    embedding[7] = 0
    _, found, squares = find_directions(embedding)
    norms = np.sqrt((embedding.double().numpy() ** 2).sum(1))
    assert found.dtype == torch.float32
    assert found[7] == squares[7] == 0
    assert np.delete(squares.numpy(), 7) == pytest.approx(1, rel=0, abs=2 * EPS)
    assert np.delete(found.numpy() * norms, 7) == pytest.approx(1, rel=0, abs=2 * EPS)  # norm and reciprocal
