"""Prompts of 1 to 2,000 tokens in one run: each is measured as it is alone, and little of what is read is padding."""

import random

import pytest
import torch

import tiny
from nucleoscope.measure import batching, encoding, generation, scoring
from nucleoscope.measure.encoding import Inputs, TokenRows
from nucleoscope.measure.runs import complete_run
from nucleoscope.quantities import find_columns
from nucleoscope.settings import Settings
from nucleoscope.store import results, run_folder

LONGEST = 2000


@pytest.fixture(scope="module")
def tokenizer():
    """Each digit is a token, and there is no other one."""
    return tiny.create_tokenizer(bos=False)


def create_model():
    return tiny.create_model(max_position_embeddings=LONGEST + 48)


def draw_prompts(n: int) -> list[str]:
    """``n`` prompts of digits in random order: the shortest has one, the longest `LONGEST`, two are equally long."""
    draw = random.Random(0)
    lengths = [1, LONGEST, 200, 200, *(draw.randint(1, LONGEST) for _ in range(n - 4))]
    draw.shuffle(lengths)
    return ["".join(draw.choices("0123456789", k=length)) for length in lengths]


def count_tokens_read(model) -> list[int]:
    """The number of tokens in each forward pass from now on."""
    counts: list[int] = []

    def count(_, args, options):
        ids = options.get("input_ids", args[0] if args else None)
        counts.append(ids.numel())

    model.base_model.register_forward_pre_hook(count, with_kwargs=True)
    return counts


def test_each_prompt_is_measured_as_it_is_alone(tmp_path, tokenizer):
    prompts, found = draw_prompts(24), {}
    texts = [prompt[::-1][:30] for prompt in prompts]
    for mode, continuations in (("generate", None), ("score", texts)):
        for size in ("auto", 1):
            folder = run_folder.RunFolder(tmp_path / f"{mode} {size}", {"mode": mode})
            with folder:
                options = {"max_tokens": 6, "batch_size": size, "variants": "none", "progress": False}
                complete_run(folder, create_model(), tokenizer, prompts, continuations, **options)
            found[size] = results.load(folder.folder / "measurements.pt")
            info = results.load_info(folder.folder)
            assert info["prompts_truncated"] == 0
            assert (max(info["batches"]) > 1) == (size == "auto")
        assert [record["prompt"] for record in found["auto"]] == prompts
        for together, alone in zip(found["auto"], found[1], strict=True):
            assert together["tokens"].tolist() == alone["tokens"].tolist()
            for name in find_columns():
                assert together[name] == pytest.approx(alone[name], abs=1e-4), name


def test_little_of_what_is_read_of_prompts_is_padding(tokenizer):
    model, prompts = create_model(), draw_prompts(60)
    list(generation.measure(model, tokenizer, prompts[:2], max_tokens=1, progress=False))  # tries the model first
    counts = count_tokens_read(model)
    list(generation.measure(model, tokenizer, prompts, max_tokens=1, progress=False))
    assert sum(map(len, prompts)) <= sum(counts) < 1.05 * sum(map(len, prompts))
    assert max(counts) == LONGEST  # and no more are read at once, however many prompts there are


@pytest.mark.parametrize("n", [500, 4000])
@pytest.mark.parametrize("mode", [generation, scoring])
def test_batches_of_many_prompts_have_similar_lengths(n, mode):
    """All batches together are padded by at most a batch of the longest prompt: the more prompts, the less of each."""
    draw = random.Random(n)
    inputs = scoring.Texts([[1] * draw.randint(1, LONGEST) for _ in range(n)], starts=[1] * n)
    batches = mode.plan_batches(create_model(), inputs, Settings(max_tokens=6, skip_check=True))
    assert sorted(index for batch in batches for index in batch) == list(range(n))
    lengths = [[len(inputs.ids[index]) for index in batch] for batch in batches]
    padding = sum(max(batch) * len(batch) - sum(batch) for batch in lengths)
    assert padding <= max(map(len, batches)) * LONGEST


# What is kept of each prompt


def test_rows_of_tokens_are_lists_when_they_are_used():
    rows = TokenRows()
    for row in ([1, 2, 3], [], [128_255, 0]):
        rows.append(row)
    assert len(rows) == 3
    assert rows[0] + [0] == [1, 2, 3, 0]
    assert rows[-1] == [128_255, 0]
    assert rows[1:] == [[], [128_255, 0]]
    assert list(rows) == [[1, 2, 3], [], [128_255, 0]] == rows
    assert rows != [[1, 2, 3]]
    assert list(map(len, rows)) == [3, 0, 2]


def test_prompts_are_kept_in_four_bytes_per_token(tokenizer):
    inputs = encoding.encode(tokenizer, draw_prompts(20))
    assert all(row.itemsize == 4 for row in inputs.ids._rows)
    assert batching.sort_by_length(inputs) == batching.sort_by_length(Inputs([*inputs.ids]))
    assert torch.tensor(inputs.ids[3]).dtype == torch.int64
