"""The decode loop: against a plain one-prompt-at-a-time reference, and with a model made of a function."""

import inspect
import math
from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig

import oracle
import tiny
from nucleoscope.measure import batching, generation, sampling
from nucleoscope.measure.nucleus import scale_logits
from nucleoscope.measure.runs import complete_run
from nucleoscope.settings import Settings
from nucleoscope.store import results, run_folder

TEXTS = [
    "the cat sat on the",
    "in",
    "a long and winding road that leads to the other end of it all",
    "she said",
    "of the",
]
KINDS = {
    "llama": {},
    "llama, tied": {"tie_word_embeddings": True},
    "llama, padded vocabulary": {"vocab_size": tiny.VOCAB + 20},
    "mistral": {},
    "mistral, window of 3": {"sliding_window": 3},
    "qwen3": {},
    "gpt2": {},
}


def measure_texts(model, texts=TEXTS, tokenizer=None, **parameters):
    """The records of `generation.measure`, in prompt order."""
    found = {}
    tokenizer = tokenizer or tiny.create_tokenizer()
    for batch in generation.measure(model, tokenizer, texts, progress=False, **parameters):
        found.update(zip(batch.indices, batch.records, strict=True))
    return [found[index] for index in range(len(texts))]


def list_tokens(records):
    return [record["tokens"].tolist() for record in records]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_every_token_is_that_of_a_plain_loop_over_single_prompts(kind, batch_size):
    model, tokenizer = tiny.create_model(kind.split(",")[0], **KINDS[kind]), tiny.create_tokenizer()
    options = {"max_tokens": 12, "top_p": 0.9, "seed": 3}
    records = measure_texts(model, batch_size=batch_size, **options)
    for index, (text, record) in enumerate(zip(TEXTS, records, strict=True)):
        expected = oracle.compute_reference(model, tokenizer(text)["input_ids"], index, ends={tiny.EOS}, **options)
        assert record["tokens"].tolist() == [token for token, *_ in expected]
        for step, (_, nucleus, probs, values) in enumerate(expected):
            assert record["top_p_tokens"][step].tolist() == nucleus
            assert record["top_p_probs"][step].tolist() == pytest.approx(probs, rel=1e-4)
            for plural, value in values.items():
                assert record[plural][step] == pytest.approx(value, rel=1e-4, abs=1e-4), (plural, step)


@pytest.mark.parametrize("temperature", [0.5, 0.9, 1, 1.7])
def test_softmax_of_the_logits_over_the_temperature_is_measured_and_sampled_from(temperature):
    model, tokenizer = tiny.create_model(), tiny.create_tokenizer()
    options = {"max_tokens": 8, "top_p": 0.9, "seed": 3, "temperature": temperature}
    records = measure_texts(model, batch_size=2, **options)
    for index, (text, record) in enumerate(zip(TEXTS, records, strict=True)):
        expected = oracle.compute_reference(model, tokenizer(text)["input_ids"], index, ends={tiny.EOS}, **options)
        assert record["tokens"].tolist() == [token for token, *_ in expected]
        for step, (_, nucleus, probs, values) in enumerate(expected):
            assert record["top_p_tokens"][step].tolist() == nucleus
            assert record["top_p_probs"][step].tolist() == pytest.approx(probs, rel=1e-4)
            for plural, value in values.items():
                assert record[plural][step] == pytest.approx(value, rel=1e-4, abs=1e-4), (plural, step)


def test_a_temperature_of_1_leaves_every_bit_as_it_is():
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert scale_logits(logits, Settings()) is logits
    assert torch.equal(scale_logits(logits, Settings(temperature=2)), logits.float() / 2)
    for one, other in zip(
        measure_texts(tiny.create_model()), measure_texts(tiny.create_model(), temperature=1), strict=True
    ):
        for name in one.keys() - {"prompt", "tokens", "top_p_tokens", "top_p_probs"}:
            assert one[name] == other[name]
        assert all(map(torch.equal, one["top_p_probs"], other["top_p_probs"]))


def test_some_nuclei_of_the_tiny_models_are_single_and_some_wide():
    sizes = [len(ids) for record in measure_texts(tiny.create_model(), max_tokens=12) for ids in record["top_p_tokens"]]
    assert min(sizes) == 1
    assert max(sizes) > 5


def test_the_order_of_the_prompts_in_a_batch_changes_nothing():
    model = tiny.create_model()
    straight = measure_texts(model, max_tokens=10)
    turned = measure_texts(model, max_tokens=10, batches=[[3, 0], [4, 2, 1]])
    assert list_tokens(straight) == list_tokens(turned)


def test_prompts_read_in_pieces_are_the_same_prompts(monkeypatch):
    monkeypatch.setitem(batching.MOST_PADDING, "cpu", 1000)  # all are read in one pass
    whole = measure_texts(tiny.create_model(), max_tokens=10)
    monkeypatch.setitem(batching.PASS_TOKENS, "cpu", 7)
    assert list_tokens(measure_texts(tiny.create_model(), max_tokens=10)) == list_tokens(whole)


def test_more_tokens_go_on_where_fewer_stopped():
    model = tiny.create_model()
    short, long = measure_texts(model, max_tokens=5), measure_texts(model, max_tokens=15)
    assert [row[:5] for row in list_tokens(long)] == list_tokens(short)


def test_a_seed_draws_its_own_tokens_again():
    model = tiny.create_model()
    assert list_tokens(measure_texts(model, max_tokens=10, seed=1)) == list_tokens(
        measure_texts(model, max_tokens=10, seed=1)
    )
    assert list_tokens(measure_texts(model, max_tokens=10, seed=1)) != list_tokens(
        measure_texts(model, max_tokens=10, seed=2)
    )


def test_the_models_generation_config_does_not_touch_the_distribution():
    plain, odd = tiny.create_model(), tiny.create_model()
    odd.generation_config.update(do_sample=True, top_k=1, temperature=0.1, repetition_penalty=2.0)
    assert list_tokens(measure_texts(odd, max_tokens=10)) == list_tokens(measure_texts(plain, max_tokens=10))


def test_uniform_numbers_depend_on_seed_prompt_and_step_alone():
    assert sampling.list_uniforms(0, 7, 3) == sampling.list_uniforms(0, 7, 50)[:3]
    assert len({sampling.list_uniforms(seed, index, 1)[0] for seed in range(5) for index in range(20)}) == 100
    # The numbers themselves are part of the contract: other ones would be another study.
    assert sampling.list_uniforms(0, 0, 2) == [0.34268425763729726, 0.6924420773214919]


class FunctionModel:
    """A model made of a function (the prompt's first token, step) -> logits (V,).

    The only thing it keeps is in the cache: the ids, as keys. Prompts are of two tokens.
    """

    def __init__(self, logits, vocabulary=8, ends=(0,), largest_batch=99):
        self.function, self.largest_batch = logits, largest_batch
        self.config = LlamaConfig(vocab_size=vocabulary, num_hidden_layers=1, hidden_size=8, num_attention_heads=1)
        self.config.eos_token_id, self.generation_config = list(ends), None
        self.device, self.dtype = torch.device("cpu"), torch.float32
        self.embedding = torch.nn.Embedding(vocabulary, 4)

    def get_input_embeddings(self):
        return self.embedding

    def named_modules(self):
        return [("embed_tokens", self.embedding)]

    def forward(self, input_ids, attention_mask, position_ids, past_key_values, **_):
        if len(input_ids) > self.largest_batch:
            raise torch.OutOfMemoryError("CUDA out of memory")
        keys = input_ids.float()[:, None, :, None]
        seen = past_key_values.update(keys, keys, 0)[0][:, 0, :, 0]
        names = [int(ids[mask.bool()][0]) for ids, mask in zip(seen, attention_mask, strict=True)]
        steps = (position_ids[:, -1] - 1).tolist()
        return SimpleNamespace(logits=torch.stack(list(map(self.function, names, steps)))[:, None])

    __call__ = forward


def run_function(function, first_tokens, max_tokens=6, **options):
    """Measures a `FunctionModel` on prompts of two tokens, the first of which names the prompt."""
    model = FunctionModel(function, **options)
    ids = [[first, 1] for first in first_tokens]
    tokenizer = SimpleNamespace(eos_token_id=None)
    return generation.measure(
        model,
        tokenizer,
        [f"prompt {first}" for first in first_tokens],
        inputs=generation.Inputs(ids),
        batches=[list(range(len(ids)))],
        max_tokens=max_tokens,
        progress=False,
        skip_check=True,  # it takes only prompts of two tokens
    )


def create_certain_logits(token, vocabulary=8):
    """Logits of a model that is sure of one token."""
    return torch.full((vocabulary,), -torch.inf).index_fill(0, torch.tensor(token), 0)


def test_a_model_that_knows_nothing_has_the_entropy_log_v():
    (batch,) = run_function(lambda name, step: torch.zeros(8), [2, 3], ends=(), max_tokens=4)
    for record in batch.records:
        assert record["full_entropies"] == pytest.approx([torch.tensor(8.0).log().item()] * 4)
        assert [len(ids) for ids in record["top_p_tokens"]] == [8] * 4  # 7 of 8 hold 0.875 only


def test_an_end_of_text_token_ends_the_prompt_and_is_not_recorded():
    # Prompt n writes n - 2 tokens, so the first ends at once and the last not at all.
    (batch,) = run_function(
        lambda name, step: create_certain_logits(0 if step >= name - 2 else 5), range(2, 10), vocabulary=16
    )
    assert [len(record["tokens"]) for record in batch.records] == [0, 1, 2, 3, 4, 5, 6, 6]
    for record in batch.records:
        lengths = {len(value) for key, value in record.items() if key != "prompt"}
        assert len(lengths) == 1
        assert set(record["tokens"].tolist()) <= {5}


def test_several_end_of_text_ids_all_end():
    (batch,) = run_function(lambda name, step: create_certain_logits(name if step == 1 else 5), [6, 7], ends=(6, 7))
    assert list_tokens(batch.records) == [[5], [5]]


def test_a_certain_token_has_no_entropy_and_cosine_one():
    (batch,) = run_function(lambda name, step: create_certain_logits(3), [2], max_tokens=2)
    (record,) = batch.records
    assert record["entropies"] == record["surprisals"] == record["similarity_entropies"] == [0, 0]
    assert record["cosines"] == record["weighted_cosines"] == [1, 1]


def test_logits_with_nan_stop_the_run_and_name_the_prompt():
    def broken(name, step):
        return torch.full((8,), torch.nan) if (name, step) == (4, 2) else create_certain_logits(5)

    with pytest.raises(ValueError, match=r"NaN or inf for prompt 2 \('prompt 4'\)$"):
        list(run_function(broken, [2, 3, 4, 6]))


def test_running_out_of_memory_halves_the_batch_and_goes_on():
    batches = list(run_function(lambda name, step: create_certain_logits(5), range(1, 8), largest_batch=2))
    assert sorted(index for batch in batches for index in batch.indices) == list(range(7))
    assert max(len(batch.indices) for batch in batches) == 2
    assert all(list_tokens(batch.records) == [[5] * 6] * len(batch.indices) for batch in batches)


def test_a_prompt_that_does_not_fit_the_memory_alone_is_named():
    with pytest.raises(MemoryError, match="prompt 0 does not fit"):
        list(run_function(lambda name, step: create_certain_logits(5), [1, 2], largest_batch=0))


@pytest.mark.parametrize("text", ["", "🎉 ещё раз", "مرحبا بالعالم", "<eos> and on", "<eos>", "\n"])
def test_odd_prompts_are_ordinary_input(text):
    model, options = tiny.create_model(), {"max_tokens": 6, "top_p": 0.9, "seed": 0}
    _, record = measure_texts(model, ["the cat", text], **options)
    ids = tiny.create_tokenizer()(text)["input_ids"]
    expected = oracle.compute_reference(model, ids, 1, ends={tiny.EOS}, **options)
    assert record["prompt"] == text
    assert record["tokens"].tolist() == [token for token, *_ in expected]


def test_an_empty_prompt_starts_from_the_end_of_text_token_where_there_is_no_other():
    assert generation.encode(tiny.create_tokenizer(bos=False), [""]).ids == [[tiny.EOS]]


def test_an_empty_prompt_without_any_token_to_start_from_says_so():
    with pytest.raises(ValueError, match="a prompt is empty and the tokenizer has no"):
        generation.encode(tiny.create_tokenizer(bos=False, eos=False), [""])


def test_chat_prompts_stand_in_the_models_template():
    tokenizer = tiny.create_tokenizer(chat=True)
    (ids,) = generation.encode(tokenizer, ["the cat"], "chat").ids
    assert tokenizer.decode(ids) == "<bos>[user] the cat<eos>[assistant] "


def test_a_long_prompt_is_cut_from_the_left_and_counted():
    tokenizer = tiny.create_tokenizer(bos=False)
    whole = tokenizer("the " * 50)["input_ids"]
    inputs = generation.encode(tokenizer, ["the", "the " * 50], context=20, max_tokens=8)
    assert inputs.truncated == [1]
    assert inputs.ids[1] == whole[-13:]  # the eighth token is written, never read


def test_a_model_runs_to_the_last_position_of_its_context():
    model = tiny.create_model("gpt2", n_positions=16)
    (record,) = measure_texts(model, ["the " * 50], max_tokens=8)
    assert len(record["tokens"]) == 8


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"top_p": 0.0}, r"top_p is 0.0: it must be a number in \(0, 1\]"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"temperature": 0}, "temperature is 0: it must be a finite positive number, at least 1e-30"),
        ({"temperature": -1}, "temperature is -1: it must be a finite positive number, at least 1e-30"),
        ({"temperature": math.nan}, "temperature is nan: it must be a finite positive number, at least 1e-30"),
        ({"max_tokens": 0}, "max_tokens is 0: it must be a whole number from 1 to 1,000,000,000"),
        ({"max_tokens": 1000}, "max_tokens is 1000, but the model's context has 256 positions"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": "many"}, "batch_size is 'many'"),
        ({"prompt_format": "sonnet"}, "prompt_format is 'sonnet': it must be raw or chat"),
        ({"prompt_format": "chat"}, "no chat template: use prompt_format=raw"),
    ],
)
def test_bad_parameters_are_named(parameters, message):
    with pytest.raises(ValueError, match=message):
        measure_texts(tiny.create_model(), **parameters)


def test_a_row_that_has_ended_may_hold_anything():
    # Fewer than one row in eight ends, so that it stays in the batch.
    def logits(name, step):
        if name != 2:
            return create_certain_logits(5, 32)
        return (
            create_certain_logits(0, 32)
            if step == 1
            else torch.full((32,), torch.nan)
            if step > 1
            else create_certain_logits(5, 32)
        )

    (batch,) = run_function(logits, range(2, 23), vocabulary=32)
    assert [len(record["tokens"]) for record in batch.records] == [1] + [6] * 20


def fill_folder(folder, stop_after=None, **parameters):
    """Measures `TEXTS` into a run, as the notebook does; optionally stops after so many batches."""
    run = run_folder.RunFolder(folder, {"max_tokens": 8})
    with tiny.stop_after(run, stop_after), run:
        options = {"max_tokens": 8, "progress": False, "variants": "none"} | parameters
        complete_run(run, tiny.create_model(), tiny.create_tokenizer(), TEXTS, **options)
    return results.load(folder / "measurements.pt") if run.finished else None


@pytest.mark.parametrize("later_size", [2, 4])
def test_a_run_that_was_stopped_goes_on_and_ends_with_the_same_tokens(tmp_path, later_size):
    straight = fill_folder(tmp_path / "straight", batch_size=2)
    fill_folder(tmp_path / "stopped", batch_size=2, stop_after=1)
    assert len(run_folder.RunFolder(tmp_path / "stopped", {"max_tokens": 8}).list_batches()) == 1
    assert list_tokens(fill_folder(tmp_path / "stopped", batch_size=later_size)) == list_tokens(straight)


def test_nan_leaves_the_batches_before_saved(tmp_path):
    model = tiny.create_model()
    run = run_folder.RunFolder(tmp_path, {})
    original, calls = model.forward, []

    def breaking(*args, **kwargs):
        output = original(*args, **kwargs)
        calls.append(1)
        if len(calls) > 10:
            output.logits = torch.full_like(output.logits, torch.nan)
        return output

    breaking.__signature__ = inspect.signature(original)
    model.forward = breaking
    options = {"max_tokens": 8, "batch_size": 2, "skip_check": True}  # the check would call the model, too
    with pytest.raises(ValueError, match="contain NaN or inf"), run:
        complete_run(run, model, tiny.create_tokenizer(), TEXTS, progress=False, **options)
    assert len(run.list_batches()) == 1


def test_the_progress_bar_ends_at_the_tokens_written(capsys):
    list(generation.measure(tiny.create_model(), tiny.create_tokenizer(), TEXTS, max_tokens=5, progress=True))
    assert "100%" in capsys.readouterr().err
