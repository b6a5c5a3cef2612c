"""Rows by their ids: exact, in float32, in memory that is allocated once."""

import pytest
import torch

from nucleoscope.measure.row_memory import RowMemory

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_rows_are_those_of_the_matrix_in_float32(dtype):
    matrix = torch.randn(50, 7).to(dtype)
    memory = RowMemory(matrix, 12, CPU)
    for ids in (torch.tensor([3, 3, 49]), torch.randint(50, (3, 4)), torch.tensor([], dtype=torch.long)):
        rows = memory.gather(ids)
        assert rows.dtype == torch.float32
        assert torch.equal(rows, matrix[ids].float())


def test_the_memory_is_used_again_and_is_never_the_matrix():
    matrix = torch.arange(20.0).view(10, 2)
    memory = RowMemory(matrix, 4, CPU)
    first = memory.gather(torch.tensor([1, 2]))
    second = memory.gather(torch.tensor([5]))
    assert first.data_ptr() == second.data_ptr()
    second.zero_()
    assert torch.equal(matrix, torch.arange(20.0).view(10, 2))
    with pytest.raises(ValueError, match="5 rows do not fit in memory for 4"):
        memory.gather(torch.arange(5))
