"""The nucleus and the token drawn from it, against a sort-everything reference (`oracle`).

Ids, probabilities and offsets must be equal, not close: the contract states the order and the mass
on float32 probabilities with float64 sums, which leaves nothing to rounding.
"""

import math

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import oracle
from nucleoscope.measure import nucleus
from nucleoscope.measure.nucleus import NotFinite, Nucleus, find_nucleus
from nucleoscope.measure.sampling import sample

INF = math.inf
FLOATS = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
TOP_PS = [1e-9, 0.1, 0.5, 0.9, 0.99, 1 - 5e-4, 1 - 4e-4, 1 - 1e-4, 1 - 1e-9, np.nextafter(1, 0).item(), 1.0]
SUM = 1e-12  # of cumulative shares: far above float64 rounding of a batch's sums, far below any share that matters
check = settings(deadline=None, max_examples=80, derandomize=True)

# Few distinct values make ties; -104 and below underflow to 0 behind a 0, about -100 is subnormal.
levels = st.one_of(
    st.integers(-3, 3).map(float), st.floats(-20, 20, width=16), st.sampled_from([-INF, -200.0, -104.0, -100.0])
)
top_ps = st.one_of(st.floats(1e-6, 1), st.sampled_from(TOP_PS))
windows = st.sampled_from([1, 2, 8, 128])


@st.composite
def draw_batches(draw, elements=levels):
    """Logits (B, V) of any floating type, at least one of each row finite."""
    values = draw(hnp.arrays(np.float64, st.tuples(st.integers(1, 5), st.integers(1, 40)), elements=elements))
    values[:, 0] = np.where(np.isneginf(values).all(1), 0, values[:, 0])
    return torch.from_numpy(values).to(draw(st.sampled_from(FLOATS)))


def split_rows(found: Nucleus):
    return list(zip(oracle.split(found.ids, found.offsets), oracle.split(found.probs, found.offsets), strict=True))


def assert_exact(logits, top_p, **window):
    """The nuclei of ``logits`` are the reference's, bit for bit; returns them."""
    found = find_nucleus(logits, top_p, **window)
    assert (found.ids.dtype, found.probs.dtype, found.offsets.dtype) == (torch.int64, torch.float32, torch.int64)
    assert len(found.offsets) == len(logits) + 1
    assert found.offsets[0] == 0
    assert found.offsets[-1] == len(found.ids) == len(found.probs)
    for (ids, probs), p in zip(split_rows(found), oracle.compute_softmax(logits), strict=True):
        expected = oracle.find_nucleus(p, top_p)
        assert ids.tolist() == expected
        assert probs.double().tolist() == p[expected].tolist()
    return found


def find_ids(row, top_p, **window):
    return assert_exact(torch.tensor([row]), top_p, **window).ids.tolist()


def is_same(a: Nucleus, b: Nucleus):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# The nucleus: properties


@check
@given(draw_batches(), top_ps, windows)
def test_any_batch_any_top_p_any_window_is_exact(logits, top_p, window):
    assert_exact(logits, top_p, window=window)


@check
@given(draw_batches(st.integers(0, 2).map(float)), top_ps)
def test_every_window_gives_the_same_nuclei_among_many_ties(logits, top_p):
    wide = find_nucleus(logits, top_p, window=logits.shape[1])
    assert all(is_same(find_nucleus(logits, top_p, window=window), wide) for window in (1, 2, 8))


@check
@given(draw_batches(), top_ps, windows)
def test_a_row_alone_is_the_row_in_its_batch(logits, top_p, window):
    together = split_rows(find_nucleus(logits, top_p, window=window))
    for row, (ids, probs) in zip(logits, together, strict=True):
        alone = find_nucleus(row[None], top_p, window=window)
        assert torch.equal(alone.ids, ids)
        assert torch.equal(alone.probs, probs)


@check
@given(draw_batches())
def test_top_p_1_keeps_all_that_has_probability_and_nothing_else(logits):
    for (ids, probs), p in zip(split_rows(find_nucleus(logits, 1.0)), oracle.compute_softmax(logits), strict=True):
        assert sorted(ids.tolist()) == np.flatnonzero(p).tolist()
        assert (probs > 0).all()


# The nucleus: single cases


def test_ties_at_the_end_go_to_the_lower_id():
    assert find_ids([0.0, 0.0, 5.0, 0.0, 0.0], 0.98) == [2, 0]


def test_mass_equal_to_top_p_is_enough_and_a_hair_less_is_not():
    assert find_ids([0.0] * 4, 0.5) == [0, 1]
    assert find_ids([0.0] * 4, np.nextafter(0.5, 1).item()) == [0, 1, 2]


@pytest.mark.parametrize("window", [1, 2, 7, 8, 9, 128])
def test_ties_across_the_edge_of_the_window(window):
    # Three likely tokens, then 30 equal ones behind them in every position of the vocabulary.
    row = [0.0] * 33
    row[4], row[11], row[32] = 3.0, 2.0, 3.0
    assert find_ids(row, 0.9, window=window)[:5] == [4, 32, 11, 0, 1]


@pytest.mark.parametrize("window", [1, 2, 8, 128])
@pytest.mark.parametrize("last", [7, 8, 9])
def test_a_nucleus_that_ends_beside_the_edge_of_a_window_of_8(window, last):
    falling = [-0.5 * i for i in range(40)]
    mass = sum(oracle.compute_softmax(torch.tensor([falling]))[0][:last])
    assert find_ids(falling, mass, window=window) == list(range(last))


@pytest.mark.parametrize("window", [1, 2, 8, 128])
@pytest.mark.parametrize("top_p", TOP_PS)
@pytest.mark.parametrize("size", [1, 2, 127, 128, 129, 1000])
def test_uniform_rows_take_the_first_ids(size, top_p, window):
    found = assert_exact(torch.zeros(2, size), top_p, window=window)
    assert all(ids.tolist() == list(range(len(ids))) for ids, _ in split_rows(found))


@pytest.mark.parametrize("top_p", TOP_PS)
def test_one_hot_rows_have_one_token(top_p):
    logits = torch.full((3, 300), -INF)
    logits[[0, 1, 2], [0, 123, 299]] = torch.tensor([-1e30, 0.0, 1e30])
    found = assert_exact(logits, top_p)
    assert found.ids.tolist() == [0, 123, 299]
    assert found.probs.tolist() == [1, 1, 1]


@pytest.mark.parametrize("window", [1, 2, 8, 128])
def test_top_p_1_leaves_out_what_underflows(window):
    # The last positive float32 probability lies near e^-103; e^-200 and e^-inf are 0.
    row = [-200.0, 0.0, -INF, -100.0, 1.0, -90.0, -200.0, -INF, -INF, -INF]
    assert find_ids(row, 1.0, window=window) == [4, 1, 5, 3]


def test_top_p_1_does_not_stop_where_a_rounded_sum_reaches_1():
    # The first probability alone is 1 in float32.
    assert find_ids([0.0, -30.0, -40.0], 1.0) == [0, 1, 2]
    assert find_ids([0.0, -30.0, -40.0], np.nextafter(1, 0).item()) == [0]


def test_a_row_whose_float32_mass_stays_below_top_p_gives_all_its_tokens():
    logits = torch.randn(20, 300, generator=torch.Generator().manual_seed(0))
    top_p = np.nextafter(1, 0).item()
    short = [b for b, p in enumerate(oracle.compute_softmax(logits)) if math.fsum(p) < top_p]
    assert short  # else this tests nothing
    sizes = assert_exact(logits, top_p).offsets.diff()
    assert (sizes[short] == 300).all()


def test_a_tiny_top_p_takes_the_likeliest_alone():
    assert find_ids([0.0, 1.0, 2.0, 2.0], 1e-300) == [2]


def test_vocabulary_of_one():
    assert find_ids([-5.0], 0.9) == [0]


@pytest.mark.parametrize("window", [1, 8, 128])
def test_rows_of_very_different_size_in_one_batch(window):
    logits = torch.randn(7, 4000, generator=torch.Generator().manual_seed(1))
    logits *= torch.tensor([0.0, 30, 1, 8, 0.1, 3, 100])[:, None]
    logits[3, 5:] = -INF
    sizes = assert_exact(logits, 0.9, window=window).offsets.diff().tolist()
    assert max(sizes) > 3000
    assert min(sizes) == 1


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("top_p", [0.5, 0.9, 0.9995, 0.9999, 1.0])
def test_nuclei_of_thousands_in_a_vocabulary_of_50257(dtype, top_p):
    # In 16 bits thousands of tokens share a probability: ids decide where a nucleus ends.
    logits = torch.randn(3, 50257, generator=torch.Generator().manual_seed(2)) * torch.tensor([[0.3], [1], [2]])
    logits[1, ::7] = -INF
    sizes = assert_exact(logits.to(dtype), top_p).offsets.diff()
    assert sizes.min() > 1000


@pytest.mark.parametrize("top_p", [0.51, 0.9, 0.999, 0.9999, 1.0])
def test_a_likely_token_before_a_flat_tail_of_50000(top_p):
    logits = torch.zeros(1, 50000)
    logits[0, 40000] = math.log(50000)  # half of the mass
    found = assert_exact(logits, top_p)
    assert found.ids[:4].tolist() == [40000, 0, 1, 2]


def test_two_flat_levels_of_25000_tokens():
    logits = torch.zeros(2, 50000)
    logits[:, 1::2] = -1e-3
    logits[1] = logits[1].flip(0)
    assert_exact(logits, 0.4)
    assert_exact(logits, 0.6)


def test_wide_rows_alone_are_the_rows_in_their_batch():
    logits = torch.randn(4, 50000, generator=torch.Generator().manual_seed(3)).bfloat16()
    logits[2] *= 20  # fits the window, the others do not
    for row, (ids, probs) in zip(logits, split_rows(find_nucleus(logits, 0.9)), strict=True):
        alone = find_nucleus(row[None], 0.9)
        assert torch.equal(alone.ids, ids)
        assert torch.equal(alone.probs, probs)


@pytest.mark.parametrize("window", [8, 128])
def test_logits_of_the_last_step_need_not_be_contiguous_and_stay_untouched(window):
    steps = torch.randn(3, 5, 200, generator=torch.Generator().manual_seed(4))
    before = steps.clone()
    assert_exact(steps[:, -1], 0.9, window=window)
    assert_exact(steps[0].T, 0.9, window=window)
    assert torch.equal(steps, before)


@pytest.mark.parametrize("size", [8192, 8192 + 1, 8192 + 31, 50000])
@pytest.mark.parametrize("levels", [3, 1000, None])
def test_the_candidates_of_a_large_vocabulary_are_found_among_the_maxima_of_columns(size, levels):
    # many ties, some, none; the largest in the last places, which belong to no column, and all in one column
    logits = 4 * torch.randn(4, size, generator=torch.Generator().manual_seed(size))
    logits = logits if levels is None else (logits * levels / 8).round() * 8 / levels
    logits[1, -40:] += 6
    logits[2, 5 :: size // nucleus.COLUMN] += 12
    for top_p in (0.3, 0.9, 1.0):
        assert_exact(logits, top_p)


def test_wide_nuclei_beyond_the_first_bound_and_within_it_share_a_batch():
    falling = -torch.arange(20000.0).expand(4, -1)
    logits = falling * torch.tensor([1e-4, 1e-3, 1e-2, 1])[:, None]
    sizes = assert_exact(logits, 0.9).offsets.diff().tolist()
    assert sizes[0] > sizes[1] > nucleus.FIRST_BOUND
    assert nucleus.WINDOW < sizes[2] < nucleus.FIRST_BOUND
    assert sizes[3] < nucleus.WINDOW


# What is refused


@pytest.mark.parametrize("top_p", [0, 0.0, -0.1, np.nextafter(1, 2).item(), 2, INF, -INF, math.nan])
def test_top_p_outside_0_1_is_a_value_error(top_p):
    with pytest.raises(ValueError, match="top_p"):
        find_nucleus(torch.zeros(1, 4), top_p)


@pytest.mark.parametrize("window", [1, 2, 8, 128])
@pytest.mark.parametrize("dtype", FLOATS)
def test_not_finite_names_the_rows_with_nan_or_plus_inf_or_nothing_finite(dtype, window):
    logits = torch.zeros(8, 20, dtype=dtype)
    logits[1, 19] = math.nan
    logits[2, :19] = -INF  # one finite logit: a distribution
    logits[3, 7] = INF
    logits[4] = -INF
    logits[6, 0], logits[6, 1], logits[6, 2] = INF, -INF, math.nan
    with pytest.raises(NotFinite, match="1, 3, 4, 6") as caught:
        find_nucleus(logits, 0.9, window=window)
    assert caught.value.rows == [1, 3, 4, 6]
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("value", [math.nan, -math.nan, INF])
def test_one_bad_logit_among_50000_is_found(value):
    logits = torch.zeros(2, 50000)
    logits[1, 31234] = value
    with pytest.raises(NotFinite) as caught:
        find_nucleus(logits, 0.9)
    assert caught.value.rows == [1]


# The token drawn

moderate = draw_batches(st.one_of(st.integers(-2, 2).map(float), st.floats(-6, 6, width=16)))


def sample_places(found: Nucleus, uniforms):
    """Positions within each row, as a list; fails if one lies outside."""
    positions = sample(found, torch.tensor(uniforms, dtype=torch.float64))
    assert positions.dtype == torch.int64
    assert (positions >= found.offsets[:-1]).all()
    assert (positions < found.offsets[1:]).all()
    return (positions - found.offsets[:-1]).tolist()


@check
@given(draw_batches(), top_ps, st.data())
def test_the_draw_is_the_inverse_transform(logits, top_p, data):
    uniforms = data.draw(st.lists(st.floats(0, 1, exclude_max=True), min_size=len(logits), max_size=len(logits)))
    found = find_nucleus(logits, top_p)
    for (_, probs), u, i in zip(split_rows(found), uniforms, sample_places(found, uniforms), strict=True):
        edges = oracle.compute_edges(probs)
        assert edges[i] - SUM <= u < edges[i + 1] + SUM


@check
@given(moderate, top_ps)
def test_u_0_draws_the_likeliest_and_u_just_below_1_the_last(logits, top_p):
    found = find_nucleus(logits, top_p)
    assert sample_places(found, [0.0] * len(logits)) == [0] * len(logits)
    assert sample_places(found, [1 - 1e-9] * len(logits)) == (found.offsets.diff() - 1).tolist()


@check
@given(draw_batches(), top_ps, st.sampled_from([0.0, 2.0**-1074, 1 - 2.0**-24, 1 - 2.0**-53]))
def test_no_uniform_number_draws_outside_its_row(logits, top_p, u):
    sample_places(find_nucleus(logits, top_p), [u] * len(logits))


def test_no_uniform_number_draws_outside_its_row_in_a_batch_of_thousands():
    # Running sums near 4096 round coarsely enough that u = 1 - 2^-53 lands on the row's very end.
    logits = torch.randn(4096, 50, generator=torch.Generator().manual_seed(5)) * 3
    found = find_nucleus(logits, 0.9)
    assert sample_places(found, [1 - 2.0**-53] * 4096) == (found.offsets.diff() - 1).tolist()
    assert sample_places(found, [0.0] * 4096) == [0] * 4096


def test_a_uniform_number_on_an_edge_draws_the_token_after_it():
    found = find_nucleus(torch.zeros(5, 4), 1.0)  # shares of exactly 1/4
    assert sample_places(found, [0.0, 0.25, 0.5, 0.75, 1 - 2.0**-53]) == [0, 1, 2, 3, 3]
    assert sample_places(found, [x - SUM for x in (0.25, 0.5, 0.75, 1, 1)]) == [0, 1, 2, 3, 3]


def test_uniform_numbers_may_be_float32():
    found = find_nucleus(torch.zeros(3, 4), 1.0)
    assert (sample(found, torch.tensor([0.0, 0.5, 1 - 2.0**-24])) % 4).tolist() == [0, 2, 3]


def test_a_row_of_one_token_draws_it_whatever_the_number():
    found = find_nucleus(torch.tensor([[9.0, 0, 0], [0, 0, 9.0]]), 0.9)
    assert sample_places(found, [0.999, 0.0]) == [0, 0]


def test_a_grid_of_uniform_numbers_draws_each_token_its_share_of_times():
    # Exact, where a chi-square test would be blunt: an interval of length q holds n q grid points, give or take 1.
    n, three = 4096, torch.randn(3, 60, generator=torch.Generator().manual_seed(6))
    found = find_nucleus(three.repeat(n, 1), 0.9)  # the three rows by turns
    grid = ((torch.arange(n, dtype=torch.float64) + 0.5) / n).repeat_interleave(3)
    draws = np.array(sample_places(found, grid.tolist())).reshape(n, 3)
    for column, (_, probs) in zip(draws.T, split_rows(found)[:3], strict=True):
        counts = np.bincount(column, minlength=len(probs))
        assert len(counts) == len(probs) > 20
        assert np.abs(counts - n * np.array(oracle.compute_q(probs))).max() < 1
