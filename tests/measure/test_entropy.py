"""Entropies in nats, against sums written out from their definitions (`oracle`)."""

import math

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import oracle
from nucleoscope.measure.entropy import compute_full_entropies, compute_nucleus_entropies
from nucleoscope.measure.nucleus import find_nucleus

INF = math.inf
FLOATS = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
DOUBLE = 1e-12  # sums over a nucleus are float64: thousands of roundings of 1e-16
SINGLE = 2.0**-21  # a few roundings of float32 (2^-24 each) on numbers near 1
check = settings(deadline=None, max_examples=80, derandomize=True)

nuclei = st.lists(oracle.draw_nucleus_probs(), min_size=1, max_size=6)
logit_rows = hnp.arrays(
    np.float64,
    st.tuples(st.integers(1, 5), st.integers(1, 40)),
    elements=st.one_of(st.floats(-30, 30, width=16), st.integers(-3, 3).map(float), st.sampled_from([-INF, -150.0])),
)


def compute_nucleus_entropy(probs, offsets):
    """(H, varentropy) of ragged nuclei."""
    return compute_nucleus_entropies(probs, offsets)[:2]


def compute_full_entropy(logits):
    return compute_full_entropies(logits).entropy


def compute_entropies(rows):
    """(H, varentropy) as lists, of rows of probabilities."""
    entropy, varentropy = compute_nucleus_entropy(*oracle.join_ragged(rows))
    assert entropy.shape == varentropy.shape == (len(rows),)
    return entropy.tolist(), varentropy.tolist()


def approximate(expected):
    """Within float32 rounding of an entropy: relative to it, or to the numbers near 1 that it is a sum of."""
    return pytest.approx(expected, rel=SINGLE, abs=SINGLE)


def compute_full(logits):
    before = logits.clone()
    entropy = compute_full_entropy(logits)
    assert torch.equal(logits, before)
    assert entropy.shape == logits.shape[:-1]
    return entropy.tolist()


# Over the nucleus


def test_a_certain_choice_has_zeros_without_a_sign():
    for found in (*compute_nucleus_entropies(torch.tensor([1.0, 0.7]), torch.tensor([0, 1, 2])),
                  *compute_full_entropies(torch.tensor([[0.0, -INF], [30.0, -150.0]]))[:2]):  # fmt: skip
        assert not torch.signbit(found).any()


@check
@given(nuclei)
def test_entropy_and_varentropy_follow_their_definitions(rows):
    entropy, varentropy = compute_entropies(rows)
    shares = [oracle.compute_q(row) for row in rows]
    assert entropy == pytest.approx([oracle.compute_entropy(q) for q in shares], rel=DOUBLE, abs=DOUBLE)
    assert varentropy == pytest.approx([oracle.compute_varentropy(q) for q in shares], rel=DOUBLE, abs=DOUBLE)


@check
@given(nuclei)
def test_entropy_lies_between_0_and_log_k_and_varentropy_is_not_negative(rows):
    for entropy, varentropy, row in zip(*compute_entropies(rows), rows, strict=True):
        assert 0 <= entropy <= math.log(len(row)) + DOUBLE
        assert varentropy >= 0


@check
@given(nuclei)
def test_a_row_alone_is_the_row_in_its_batch(rows):
    alone = [compute_entropies([row]) for row in rows]
    assert compute_entropies(rows) == ([h for (h,), _ in alone], [v for _, (v,) in alone])


@check
@given(oracle.draw_nucleus_probs(), st.sampled_from([0.5, 0.25, 2.0**-20]))
def test_only_shares_matter_not_the_mass(row, factor):
    scaled = [p * factor for p in row]
    assert compute_entropies([scaled])[0] == pytest.approx(compute_entropies([row])[0], rel=DOUBLE, abs=DOUBLE)


@pytest.mark.parametrize("size", [1, 2, 3, 1000, 50257])
def test_a_uniform_nucleus_has_entropy_log_k_and_no_varentropy(size):
    entropy, varentropy = compute_entropies([[0.9 / size] * size])
    assert entropy == pytest.approx([math.log(size)], rel=DOUBLE, abs=DOUBLE)
    assert varentropy == pytest.approx([0], abs=1e-20)  # the square of H's rounding: k H 2^-53 is 6e-11 at most


def test_one_token_leaves_no_choice():
    assert compute_entropies([[0.93], [1.0], [1e-30]]) == ([0, 0, 0], [0, 0, 0])


def test_two_tokens_in_closed_form():
    # H = log 4 - (3/4) log 3, and the variance of a two-valued variable: (3/16) (log 3)^2.
    entropy, varentropy = compute_entropies([[0.75, 0.25]])
    assert entropy == pytest.approx([math.log(4) - 0.75 * math.log(3)], rel=DOUBLE)
    assert varentropy == pytest.approx([3 / 16 * math.log(3) ** 2], rel=DOUBLE)


def test_a_nearly_certain_choice_keeps_its_relative_accuracy():
    tails = np.float32([1e-3, 1e-6, 1e-12, 1e-30, 2.0**-149])
    entropy, varentropy = compute_entropies([[1.0, tail] for tail in tails])
    t = tails.astype(np.float64)
    # In closed form; 1e-16 is a float64's rounding of the likeliest token's q, near 1.
    assert entropy == pytest.approx(np.log1p(t) - t / (1 + t) * np.log(t), rel=1e-9, abs=1e-16)
    assert varentropy == pytest.approx(t / (1 + t) ** 2 * np.log(t) ** 2, rel=1e-9)


def test_rows_of_very_different_size_in_one_batch():
    rng = np.random.default_rng(0)
    rows = [np.sort(np.float32(rng.dirichlet(np.full(k, 0.3)) + 1e-9))[::-1] for k in (1, 5000, 2, 1, 300)]
    entropy, varentropy = compute_entropies(rows)
    shares = [oracle.compute_q(row) for row in rows]
    assert entropy == pytest.approx([oracle.compute_entropy(q) for q in shares], rel=DOUBLE)
    assert varentropy == pytest.approx([oracle.compute_varentropy(q) for q in shares], rel=DOUBLE)


def test_the_nuclei_of_uniform_logits_have_entropy_log_k():
    found = find_nucleus(torch.zeros(2, 1000), 0.9)
    entropy, _ = compute_nucleus_entropy(found.probs, found.offsets)
    assert entropy.tolist() == pytest.approx(found.offsets.diff().double().log().tolist(), rel=DOUBLE)


# Over the whole vocabulary


@check
@given(logit_rows, st.sampled_from(FLOATS))
def test_full_entropy_follows_its_definition(values, dtype):
    values[:, 0] = np.where(np.isneginf(values).all(1), 0, values[:, 0])
    logits = torch.from_numpy(values).to(dtype)
    assert compute_full(logits) == approximate([oracle.compute_full_entropy(row) for row in logits])
    assert all(0 <= h <= math.log(logits.shape[1]) + SINGLE * max(1, h) for h in compute_full(logits))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("size", [1, 2, 3, 1000, 50257, 152064])
def test_uniform_logits_have_full_entropy_log_v(size, dtype):
    assert compute_full(torch.full((2, size), -3.5, dtype=dtype)) == approximate([math.log(size)] * 2)


@pytest.mark.parametrize("scale", [0.1, 1, 3, 10])
@pytest.mark.parametrize("size", [1000, 50257, 152064])
def test_full_entropy_of_large_vocabularies(size, scale):
    # The float32 softmax is given: where its sum misses 1 by m, log p misses by m for every token.
    logits = torch.randn(2, size, generator=torch.Generator().manual_seed(0)) * scale
    missing = [abs(1 - math.fsum(p)) for p in oracle.compute_softmax(logits)]
    for found, row, m in zip(compute_full(logits), logits, missing, strict=True):
        expected = oracle.compute_full_entropy(row)
        assert abs(found - expected) <= (SINGLE + m) * (1 + expected)


def test_minus_infinity_adds_nothing():
    assert compute_full(torch.tensor([[0.0, -INF, 0.0, -INF], [-INF, 1.0, 1.0, -1e30]])) == approximate(
        [math.log(2)] * 2
    )


def test_one_hot_logits_have_full_entropy_0():
    assert compute_full(torch.tensor([[-INF, 7.0, -INF], [0.0, 300.0, 0.0], [0.0, -INF, -200.0]])) == [0, 0, 0]


@pytest.mark.parametrize("level", [1e4, -1e4, 1e30, -1e30, 3e38, -3e38])
def test_large_logits_do_not_overflow(level):
    assert compute_full(torch.tensor([[level, -INF, level, level, -3.4e38]])) == approximate([math.log(3)])


def test_the_widest_float16_logits():
    assert compute_full(torch.tensor([[65504.0, -65504.0, 65504.0]], dtype=torch.float16)) == approximate([math.log(2)])


@check
@given(st.lists(st.integers(-640, 640), min_size=1, max_size=30), st.sampled_from([-1000, -1, 1, 3, 100, 4096]))
def test_a_shift_of_all_logits_changes_nothing(levels, shift):
    # Multiples of 1/64 below 2^13 are added without rounding, so the results are equal, not only close.
    logits = torch.tensor([levels]) / 64
    assert compute_full(logits + shift) == compute_full(logits)


@check
@given(logit_rows)
def test_a_row_of_logits_alone_is_the_row_in_its_batch(values):
    values[:, 0] = np.where(np.isneginf(values).all(1), 0, values[:, 0])
    logits = torch.from_numpy(values).float()
    assert compute_full(logits) == approximate([compute_full(row[None])[0] for row in logits])


# Other moments


@check
@given(nuclei)
def test_collision_entropy_is_minus_log_of_the_sum_of_squares_and_at_most_the_entropy(rows):
    found = compute_nucleus_entropies(*oracle.join_ragged(rows))
    for row, entropy, collision in zip(rows, found.entropy.tolist(), found.collision_entropy.tolist(), strict=True):
        assert collision == pytest.approx(
            -math.log(math.fsum(x * x for x in oracle.compute_q(np.float32(row)))), abs=1e-11
        )
        assert 0 <= collision <= entropy + DOUBLE


@check
@given(logit_rows)
def test_full_varentropy_is_the_variance_of_minus_log_p(rows):
    logits = torch.tensor(rows, dtype=torch.float32)
    rows = [row for row in logits if torch.isfinite(row).any()]
    for row in rows:
        weights = [math.exp(x - max(row.tolist())) for x in row.tolist()]
        expected = oracle.compute_varentropy([w / math.fsum(weights) for w in weights])
        found = compute_full_entropies(row[None]).varentropy.item()
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_full_varentropy_keeps_its_digits_if_nearly_all_are_equally_likely():
    logits = torch.zeros(1, 50_000)
    logits[0, 0] = 0.01  # variance of -log p about 0.01^2 / 50,000
    weights = np.exp(logits[0].double().numpy())
    expected = oracle.compute_varentropy((weights / weights.sum()).tolist())
    assert compute_full_entropies(logits).varentropy.item() == pytest.approx(expected, rel=0.05)
