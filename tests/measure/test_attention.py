"""Attention in groups of rows of similar length is that of the whole batch."""

import mmap
import threading
import weakref
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import tiny
from nucleoscope.measure import attention, batching, decoding

LENGTHS = [30] * 20 + [28] * 3 + [9] * 17 + [2] * 20


def test_groups_are_consecutive_rows_that_end_together_and_begin_with_the_longest():
    parts = attention.form_groups(LENGTHS, 50)
    assert parts == [(slice(0, 23), 20), (slice(23, 40), 41), (slice(40, 60), 48)]
    assert attention.form_groups([5, 9, 1], 9) == [(slice(0, 3), 0)]  # not in order, and too few to be apart
    assert attention.form_groups([8] * 100, 8) == [(slice(0, 100), 0)]
    assert attention.form_groups([], 8) == []


def draw(heads: int, shared: int, width: int):
    generator = torch.Generator().manual_seed(heads)
    rows = len(LENGTHS)
    query = torch.randn(rows, heads, 1, 16, generator=generator)
    key, value = (torch.randn(rows, heads // shared, width, 16, generator=generator) for _ in range(2))
    begins = torch.tensor([width - n for n in LENGTHS])
    mask = (torch.arange(width) >= begins[:, None])[:, None, None]
    return SimpleNamespace(num_key_value_groups=shared, is_causal=True), query, key, value, mask


@pytest.mark.parametrize("shared", [1, 2, 4])
@pytest.mark.parametrize("kind", ["boolean", "of each head", "additive", "bias"])
def test_the_result_is_that_of_the_whole_batch(shared, kind):
    module, query, key, value, mask = draw(4, shared, 50)
    options = {}
    if kind == "of each head":
        mask = mask.expand(-1, 4, -1, -1).clone()
        mask[:, 1, :, :-1] = False
    elif kind == "additive":
        mask = torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)
    elif kind == "bias":
        options = {"position_bias": torch.randn(1, 4, 1, 50, generator=torch.Generator().manual_seed(0))}
    expected, _ = sdpa_attention_forward(module, query, key, value, mask, scaling=0.3, **options)
    with attention.attend_in_groups(attention.form_groups(LENGTHS, 50), 50):
        found, _ = ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, mask, scaling=0.3, **options)
    assert found.shape == expected.shape
    assert torch.allclose(found, expected, atol=1e-6)


def test_rows_of_equal_length_need_no_mask():
    module, query, key, value, _ = draw(4, 2, 50)
    expected, _ = sdpa_attention_forward(module, query, key, value, None)
    with attention.attend_in_groups([(slice(0, len(query)), 0)], 50):
        found, _ = ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, None)
    assert torch.allclose(found, expected, atol=1e-6)


def test_outside_the_block_in_other_threads_and_for_other_keys_it_is_transformers_own():
    module, query, key, value, mask = draw(4, 2, 50)
    arguments = (module, query, key[:, :, :40], value[:, :, :40], None)
    expected, _ = sdpa_attention_forward(*arguments)
    found = [ALL_ATTENTION_FUNCTIONS["sdpa"](*arguments)[0]]
    with attention.attend_in_groups([(slice(0, 3), 49)], 50):
        found.append(ALL_ATTENTION_FUNCTIONS["sdpa"](*arguments)[0])  # 40 keys are not the batch's 50
        other = threading.Thread(
            target=lambda: found.append(ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, mask)[0])
        )
        other.start()
        other.join()
    assert torch.equal(found[0], expected)
    assert torch.equal(found[1], expected)
    assert torch.equal(found[2], sdpa_attention_forward(module, query, key, value, mask)[0])


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_a_batch_of_mixed_lengths_steps_as_without_groups_also_when_rows_are_dropped(monkeypatch, kind):
    monkeypatch.setitem(batching.MOST_PADDING, "cpu", 1000)  # all are read in one pass
    model = tiny.create_model(kind)
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(5, tiny.VOCAB, (length,), generator=generator).tolist() for length in LENGTHS]

    @torch.inference_mode()
    def step(ended: set[int]) -> list[torch.Tensor]:
        decoder = decoding.create_decoder(model, ids, 6, decoding.PADDED)
        found = [decoder.prefill()]
        for number in range(4):
            found.append(decoder.advance(found[-1].argmax(-1), ended if number else frozenset()))
        counted.append(len(decoder.groups))
        return found

    counted: list[int] = []
    for ended in (set(), set(range(10, 45))):
        grouped = step(ended)
        with monkeypatch.context() as patch:
            patch.setattr(decoding, "form_groups", lambda lengths, _: [(slice(0, len(lengths)), 0)])
            patch.setitem(ALL_ATTENTION_FUNCTIONS._local_mapping, "sdpa", sdpa_attention_forward)
            plain = step(ended)
        assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(grouped, plain, strict=True))
    assert counted == [3, 1, 2, 1]


def read_resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="NO /proc HERE: memory is not measured")
def test_padding_and_columns_of_later_steps_take_no_memory():
    keys, layer = torch.ones(100, 2, 40, 64), decoding.KeyValues(100, 500, 2000)
    layer.rows = slice(0, 100)
    before = read_resident_bytes()
    layer.update(keys, keys)
    assert sum(store.nbytes for store in layer.store) > 200e6
    assert read_resident_bytes() - before < 40e6


def test_dropped_rows_are_freed_at_once():
    layer = decoding.KeyValues(100, 500, 600)
    layer.rows = slice(0, 100)
    keys = torch.ones(100, 2, 40, 64)
    layer.update(keys, keys)
    layer.finish_prefill()
    layer.update(keys[:, :, :1], keys[:, :, :1])
    before = weakref.ref(layer.keys)
    layer.keep(torch.tensor([3, 99]), [(slice(0, 2), 460)])
    assert before() is None  # nothing refers to what was dropped
    assert [store.shape[0] for store in layer.store] == [2, 2]
    assert all(torch.equal(store[:, :, 460:501], torch.ones(2, 2, 41, 64)) for store in layer.store)
    assert all(int(store[:, :, :460].count_nonzero()) == 0 for store in layer.store)
