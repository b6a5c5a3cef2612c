"""Null candidate sets: as many tokens as a measured set has, chosen for another reason than that set was.

Contract: windows of candidates in (`candidate_sets.Windows`), ids of the same shape out. Each of them is one ordering
per token, of which every set takes the same places as of the window, so that null sets are nested as the measured ones
are. Everything is drawn from torch generators on the CPU.
"""

import hashlib

import torch

from nucleoscope.measure.sorting import sort_keys

# A token is replaced by another one of its block of neighbours in rank: a share of the rank, within bounds. Small
# blocks at both ends of the order keep what is matched close where neighbours differ most.
BLOCK_SHARE, LEAST_BLOCK, LARGEST_BLOCK = 0.1, 4, 64
# Random sets of at most this share of the vocabulary are drawn with replacement, and what was drawn before is left out.
# For the largest, 15% more draws than tokens are needed on average; a quarter more are drawn, and `MORE`.
LARGEST_SHARE, MORE = 0.25, 16


def create_generator(seed: int, purpose: str) -> torch.Generator:
    """A generator of its own for each purpose, so that what is drawn for one does not depend on the others."""
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def draw_donors(groups: torch.Tensor, generator: torch.Generator) -> torch.Tensor | None:
    """For each of T steps another one (T,), of another group if there is one. None if there is no other step.

    ``groups`` (T,) numbers the texts that the steps are of, which are consecutive.
    """
    total = len(groups)
    if total < 2:
        return None
    _, inverse, counts = torch.unique_consecutive(groups, return_inverse=True, return_counts=True)
    if len(counts) == 1:
        first, size = torch.arange(total), torch.ones(total, dtype=torch.long)
    else:
        first, size = (counts.cumsum(0) - counts)[inverse], counts[inverse]
    left = total - size
    drawn = (torch.rand(total, generator=generator, dtype=torch.float64) * left).long().clamp_max(left - 1)
    return torch.where(drawn < first, drawn, drawn + size)


def draw_random(
    lengths: list[int], vocabulary: int, generator: torch.Generator, permuting: torch.Generator
) -> torch.Tensor:
    """Ids (K,), for each row as many as its length says: drawn uniformly, without replacement.

    They are the first different ones among more independent draws, or, where there are too few of these, the first of a
    permutation of the vocabulary, which takes longer. Permutations have a generator of their own, so that all is the
    same however rows are divided among calls.
    """
    few = [length if length <= vocabulary * LARGEST_SHARE else 0 for length in lengths]
    numbers = torch.tensor([length + length // 4 + MORE if length else 0 for length in few])
    rows = torch.repeat_interleave(numbers)
    draws = torch.randint(vocabulary, (len(rows),), generator=generator)
    keys, order = sort_keys(rows * vocabulary + draws)
    is_new = torch.ones_like(draws, dtype=torch.bool)
    is_new[order[1:]] = keys[1:] != keys[:-1]
    rows, draws = rows[is_new], draws[is_new]
    found = draws.split(torch.bincount(rows, minlength=len(lengths)).tolist())
    return torch.cat(
        [
            ids[:length] if len(ids) >= length else torch.randperm(vocabulary, generator=permuting)[:length]
            for ids, length in zip(found, lengths, strict=True)
        ]
    )


class Matching:
    """Replaces tokens by others that are next to them in the order of some ``values`` (V,) of the vocabulary.

    The order is divided into blocks of neighbours (see `BLOCK_SHARE`), each of which is shuffled once. For each row and
    block a shift is drawn by which the block is rotated, and it is never 0: no token is replaced by itself, and two
    tokens of a row never by the same one. In a vocabulary of one token there is no choice.
    """

    def __init__(self, values: torch.Tensor, generator: torch.Generator):
        values = values.cpu()
        sizes = torch.tensor(_divide(len(values)))
        self.block = torch.repeat_interleave(sizes)  # of each place in the order
        keys = torch.rand(len(values), generator=generator, dtype=torch.float64) + self.block
        self.order = values.argsort(stable=True)[keys.argsort()]
        self.place = torch.empty_like(self.order)
        self.place[self.order] = torch.arange(len(values))
        self.sizes, self.starts = sizes, sizes.cumsum(0) - sizes

    def draw(self, ids: torch.Tensor, rows: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Replacements (K,) of ``ids`` (K,), on the CPU; ``rows`` (K,) numbers the rows that they are in, from 0."""
        place = self.place[ids]
        block = self.block[place]
        numbers = torch.rand(int(rows.max()) + 1 if len(rows) else 0, len(self.sizes), generator=generator)
        size = self.sizes[block]
        shift = 1 + (numbers[rows, block] * (size - 1)).long().clamp_max((size - 2).clamp_min(0))
        return self.order[self.starts[block] + (place - self.starts[block] + shift) % size]


def _divide(size: int) -> list[int]:
    """The sizes of the blocks of an order of this ``size``: small at both ends."""
    blocks, done = [], 0
    while done < size:
        rank = min(done, size - done)
        block = min(LARGEST_BLOCK, max(LEAST_BLOCK, int(BLOCK_SHARE * rank)))
        # what would be left for a last block is too little for one
        blocks.append(size - done if size - done - block < LEAST_BLOCK else block)
        done += blocks[-1]
    return blocks
