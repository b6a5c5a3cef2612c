"""Cosines of single pairs of candidates, against those of torch, one by one."""

import pytest
import torch

from nucleoscope.measure import pairs
from nucleoscope.measure.cosine import find_directions


def create_choices(seed: int = 0, n: int = 30) -> tuple[torch.Tensor, ...]:
    """An embedding with a row of zeros, and n choices of 1 to 20 candidates, some of tokens that are not among them."""
    generator = torch.Generator().manual_seed(seed)
    embedding = torch.randn(50, 8, generator=generator)
    embedding[7] = 0
    sizes = torch.randint(1, 21, (n,), generator=generator)
    lists = [torch.randperm(50, generator=generator)[:size] for size in sizes]
    tokens = torch.tensor([int(ids[-1]) if place % 3 else 49 for place, ids in enumerate(lists)])
    return embedding, tokens, torch.cat(lists), sizes


def compute_cosine(embedding: torch.Tensor, one: int, other: int) -> float:
    rows = embedding[[one, other]].double()
    return float(torch.nan_to_num(torch.dot(rows[0] / rows[0].norm(), rows[1] / rows[1].norm())))


@pytest.mark.parametrize("piece", [1, 500, 2**20])
def test_every_pair_has_its_cosine_whatever_the_size_of_a_piece(piece, monkeypatch):
    monkeypatch.setattr(pairs, "PIECE_CPU", piece)
    embedding, tokens, ids, sizes = create_choices()
    found = pairs.compare_candidates(find_directions(embedding), tokens, ids, sizes)
    assert found.taken.dtype == found.pairs.dtype == torch.float16
    start = 0
    for row, (token, size) in enumerate(zip(tokens.tolist(), sizes.tolist(), strict=True)):
        own = ids[start : start + size].tolist()
        expected = [compute_cosine(embedding, token, each) for each in own]
        assert found.taken[start : start + size].tolist() == pytest.approx(expected, abs=1e-3)
        likeliest = own[: pairs.LARGEST]
        order = [(earlier, later) for later in range(len(likeliest)) for earlier in range(later)]
        expected = [compute_cosine(embedding, likeliest[i], likeliest[j]) for i, j in order]
        assert found.pairs[row, : len(order)].tolist() == pytest.approx(expected, abs=1e-3)
        assert found.pairs[row, len(order) :].isnan().all()
        start += size


def test_no_tokens_have_no_pairs():
    none = torch.empty(0, dtype=torch.long)
    found = pairs.compare_candidates(find_directions(torch.randn(5, 4)), none, none, none)
    assert (found.taken.shape, found.pairs.shape) == ((0,), (0, 45))
