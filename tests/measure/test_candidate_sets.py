"""Windows of candidate sets: the same whatever is computed together with them, and however they are divided."""

import pytest
import torch

import oracle
from nucleoscope import variants
from nucleoscope.measure import candidate_sets, softmax
from nucleoscope.measure.candidate_sets import find_windows
from nucleoscope.measure.distribution import describe_distribution
from nucleoscope.measure.entropy import compute_full_entropies
from nucleoscope.measure.nucleus import NotFinite, find_nucleus

SETS = variants.parse("default").sets


def draw(rows: int, size: int, scale: float = 3.0) -> torch.Tensor:
    logits = scale * torch.randn(rows, size, generator=torch.Generator().manual_seed(0))
    logits[::3, ::7] = -torch.inf
    return logits


def assert_equal(found: candidate_sets.Windows, expected: candidate_sets.Windows) -> None:
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


@pytest.mark.parametrize("size", [1, 7, 9, 5000])
def test_windows_are_those_of_the_logits_alone_if_the_nucleus_is_found_with_them(size):
    logits = draw(25, size)
    logits[:, 0] = 0
    found = describe_distribution(logits, 0.9, SETS)
    assert_equal(found.windows, find_windows(logits, compute_full_entropies(logits).entropy, SETS))
    alone = describe_distribution(logits, 0.9)
    assert alone.windows is None
    for candidates in (found.candidates, alone.candidates):
        assert all(torch.equal(*pair) for pair in zip(candidates, find_nucleus(logits, 0.9), strict=True))


@pytest.mark.parametrize("top_p", [0.3, 0.9, 0.97, 1.0])
@pytest.mark.parametrize(
    "names", [["top_p_0.5"], ["top_k_2"], ["top_k_50", "top_p_0.9"], ["typical_0.9", "top_p_0.99"], ["top_n_sigma_1"]]
)
def test_a_nucleus_and_margin_are_the_same_whichever_sets_are_found_with_them(names, top_p):
    logits, sets = draw(40, 3000), [variants.SETS_BY_NAME[name] for name in names]
    logits[7:9], logits[9] = 0, -torch.inf
    logits[8, 5], logits[9, 5] = 200, 0  # all mass on one token, and nothing but one possible, after a row of equals
    found, alone = describe_distribution(logits, top_p, sets), describe_distribution(logits, top_p)
    for candidates in (found.candidates, alone.candidates):
        assert all(torch.equal(*pair) for pair in zip(candidates, find_nucleus(logits, top_p), strict=True))
    assert torch.equal(found.margin, alone.margin)
    assert all(torch.equal(*pair) for pair in zip(found.full, alone.full, strict=True))
    assert_equal(found.windows, find_windows(logits, alone.full.entropy, sets))


@pytest.mark.parametrize("top_p", [0.1, 0.9, 0.9999, 1.0])
def test_nuclei_of_many_rows_are_those_of_each_row(monkeypatch, top_p):
    logits = draw(40, 3000)
    logits[7:9], logits[9] = 0, -torch.inf
    logits[9, 5], logits[20:30] = 0, logits[20:30].round()
    expected = [describe_distribution(row[None], top_p) for row in logits]
    monkeypatch.setattr(softmax, "PIECE_CPU", 7 * 3000)
    found = describe_distribution(logits, top_p)
    for name in ("ids", "probs"):
        assert torch.equal(getattr(found.candidates, name), torch.cat([getattr(e.candidates, name) for e in expected]))
    assert found.candidates.offsets.diff().tolist() == [len(each.candidates.ids) for each in expected]
    assert torch.equal(found.margin, torch.cat([each.margin for each in expected]))
    assert torch.equal(found.full.largest, torch.cat([each.full.largest for each in expected]))


@pytest.mark.parametrize("names", [["top_p_0.9"], ["top_k_2", "top_p_0.99"], ["typical_0.9"]])
def test_a_margin_is_the_same_where_different_logits_have_one_probability(names):
    """Of such tokens the one with the lower id comes first, even if its logit is smaller."""
    logits = torch.zeros(3, 20)
    logits[0, 3], logits[0, 1] = 0.5, torch.nextafter(torch.tensor(0.5), torch.tensor(0.0))
    logits[1, 3], logits[2, :3] = 2e-8, torch.tensor([1.0, 0.9, 0.0])
    alone = describe_distribution(logits, 0.9).margin
    assert torch.equal(
        describe_distribution(logits, 0.9, [variants.SETS_BY_NAME[name] for name in names]).margin, alone
    )
    likeliest = [variants.SETS_BY_NAME["top_p_0.5"], variants.CandidateSet("", "top_k", 1, "", "")]
    assert torch.equal(describe_distribution(logits, 0.2, likeliest).margin, alone)


def test_windows_do_not_depend_on_how_many_tokens_are_sorted_at_once(monkeypatch):
    logits = draw(40, 60_000)
    entropy = compute_full_entropies(logits).entropy
    expected = find_windows(logits, entropy, SETS)
    monkeypatch.setattr(candidate_sets, "SORTED", 1)
    assert_equal(find_windows(logits, entropy, SETS), expected)


@pytest.mark.parametrize("names", [[each.name for each in SETS], ["typical_0.9"], ["top_p_0.99"], ["top_k_50"]])
def test_windows_do_not_depend_on_what_their_lower_bounds_are_found_by(monkeypatch, names):
    """Rows of which maxima of columns are enough, rows of which they are not, and what is known without any."""
    scales = torch.tensor([0.0, 0.1, 1.0, 2.0, 3.0, 5.0, 9.0, 30.0]).repeat(8)
    logits = scales[:, None] * torch.randn(64, 6000, generator=torch.Generator().manual_seed(1))
    logits[8:24] = logits[8:24].round()  # with ties
    logits[24:32, ::8] -= 20  # the likely ones of a column are not its first
    logits[32:40, :750] += 12  # likely neighbours
    sets = [variants.SETS_BY_NAME[name] for name in names]
    entropy = compute_full_entropies(logits).entropy
    found = []
    for column in (8, 1, 2500, 10**9):  # the last one has no maxima
        monkeypatch.setattr(candidate_sets, "COLUMN", column)
        found.append(find_windows(logits, entropy, sets))
    for other in found[1:]:
        assert_equal(found[0], other)


def test_rows_that_are_not_finite_are_named_although_they_have_no_windows():
    logits = draw(30, 40_000)
    logits[4, 9], logits[29] = torch.inf, torch.nan
    with pytest.raises(NotFinite) as error:
        describe_distribution(logits, 0.9, SETS)
    assert error.value.rows == [4, 29]


@pytest.mark.parametrize("number", [3, 200, 1999, 5000])
def test_a_set_of_any_number_of_tokens_has_the_likeliest(number):
    logits = draw(4, 2000, 0.5).round(decimals=1)  # with ties
    few = variants.CandidateSet("", "top_k", number, "", "")
    windows = find_windows(logits, torch.zeros(4), [few])
    for ids, p in zip(oracle.split(windows.ids, windows.offsets), oracle.compute_softmax(logits), strict=True):
        order = sorted((i for i in range(2000) if p[i] > 0), key=lambda i, p=p: (-p[i], i))
        assert ids.tolist() == order[:number]
