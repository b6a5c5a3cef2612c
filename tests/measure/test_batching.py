"""Forward passes over rows of different lengths: little padding, few passes, and no row left out."""

import random

import pytest
import torch

from nucleoscope.measure import batching
from nucleoscope.measure.batching import form_passes

CPU = torch.device("cpu")


def count_padding(lengths: list[int]) -> int:
    return len(lengths) * max(lengths) - sum(lengths)


@pytest.mark.parametrize("order", [sorted, lambda lengths: sorted(lengths, reverse=True), list])
@pytest.mark.parametrize("longest", [1, 30, 3000])
def test_each_row_is_read_once_in_a_pass_that_is_small_enough(order, longest):
    numbers = random.Random(longest)
    for count in (1, 2, 7, 200):
        lengths = order([numbers.randint(1, longest) for _ in range(count)])
        parts = [lengths[rows] for rows in form_passes(iter(lengths), CPU)]
        assert [length for part in parts for length in part] == lengths
        assert all(parts)
        for part, following in zip(parts, [*parts[1:], None], strict=True):
            assert len(part) == 1 or len(part) * max(part) <= batching.PASS_TOKENS["cpu"]
            assert count_padding(part) <= batching.MOST_PADDING["cpu"]
            if following:  # one more row would have been too much
                more = [*part, following[0]]
                too_many = len(more) * max(more) > batching.PASS_TOKENS["cpu"]
                assert too_many or count_padding(more) > batching.MOST_PADDING["cpu"]


def test_rows_of_one_length_fill_a_pass():
    assert form_passes([100] * 21, CPU) == [slice(0, 10), slice(10, 20), slice(20, 21)]


def test_no_rows_need_no_pass():
    assert form_passes([], CPU) == []


def test_a_gpu_reads_more_at_once():
    lengths = [100] * 300 + [9] * 30
    assert form_passes(lengths, torch.device("cuda", 1)) == [slice(0, 327), slice(327, 330)]
    assert form_passes(lengths, torch.device("mps")) == form_passes(lengths, CPU)
