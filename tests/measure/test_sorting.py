"""Sorting of keys, against Python's own."""

import pytest
import torch

from nucleoscope.measure.sorting import create_keys, sort_keys


def draw_keys(number: int, highest: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(highest, (number,), generator=torch.Generator().manual_seed(seed))


# with places of 10 bits, keys of more than 53 bits have no room for them
@pytest.mark.parametrize("highest", [1, 3, 1000, 2**53, 2**53 + 1, 2**62])
@pytest.mark.parametrize("number", [0, 1, 2, 1000])
def test_keys_are_in_rising_order_and_equal_ones_in_that_of_their_places(number, highest):
    keys = draw_keys(number, highest)
    if number > 1:
        keys[-1] = keys[0] = highest - 1
    found, places = sort_keys(keys)
    expected = sorted(range(number), key=lambda place: (keys[place].item(), place))
    assert places.tolist() == expected
    assert found.tolist() == [keys[place].item() for place in expected]
    assert found.dtype == places.dtype == torch.int64


def test_keys_of_another_device_are_sorted_there():
    keys = draw_keys(5, 9).to("meta")
    assert all(each.device.type == "meta" and each.shape == (5,) for each in sort_keys(keys))


def test_tokens_are_ordered_by_row_then_by_falling_probability():
    probs = torch.tensor([0.0, 1.0, 2.0**-149, 0.5, 1.0, 1e-38, 0.25])
    rows = torch.tensor([1, 0, 1, 0, 1, 1, 0])
    _, order = sort_keys(create_keys(rows, probs))
    assert order.tolist() == [1, 3, 6, 4, 5, 2, 0]
    assert (create_keys(rows, probs) >= 0).all()
