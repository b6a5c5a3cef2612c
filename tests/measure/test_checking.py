"""Every run tries its model: how prompts may be batched, and whether the model is causal; models of each kind."""

import functools
import math

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BloomConfig,
    DynamicCache,
    LlamaConfig,
    LlamaForCausalLM,
    OpenAIGPTConfig,
    Phi3Config,
    PreTrainedModel,
    RobertaConfig,
    XLNetConfig,
)

import oracle
import tiny
from messages import assert_one_line
from model_families import configurations, trial
from nucleoscope.measure import checking, decoding, generation, model_facts, scoring
from nucleoscope.measure.runs import complete_run
from nucleoscope.settings import Settings
from nucleoscope.store import results, run_folder

SIZES = {"vocab_size": tiny.VOCAB, "bos_token_id": tiny.BOS, "eos_token_id": tiny.EOS, "pad_token_id": tiny.PAD}
LAYERS = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 32, "intermediate_size": 48}
IDS = [[5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15], [40, 41, 42], [90, 91, 92, 93, 94, 95], [120], [200, 201, 202]]


def create(config) -> PreTrainedModel:
    """A random model of a configuration, with weights large enough that a wrong position shows."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config).float().eval()


def create_longrope(limit: int = 24) -> PreTrainedModel:
    """A Phi-3 whose rotary factors change when a text becomes longer than ``limit``."""
    factors = {"short_factor": [1.0] * 8, "long_factor": [1.0, 1.3, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0]}
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": limit, **factors}
    places = {"max_position_embeddings": 128, "original_max_position_embeddings": limit}
    return create(Phi3Config(**SIZES, **LAYERS, **places, rope_parameters=rope, initializer_range=0.35))


MODELS = {
    "llama": lambda: tiny.create_model("llama"),
    "roberta": lambda: create(RobertaConfig(**SIZES, **LAYERS, is_decoder=True, initializer_range=0.3)),
    "bloom": lambda: create(BloomConfig(**SIZES, hidden_size=32, n_layer=2, n_head=2, initializer_range=0.3)),
    "openai-gpt": lambda: create(OpenAIGPTConfig(**SIZES, n_embd=32, n_layer=2, n_head=2, initializer_range=0.3)),
}


def generate(model: PreTrainedModel, ids: list[list[int]], batch_size: int, max_tokens: int = 8) -> list[dict]:
    inputs, found = generation.Inputs(ids), {}
    options = {"max_tokens": max_tokens, "seed": 1, "batch_size": batch_size}
    names = [str(index) for index in range(len(ids))]
    for batch in generation.measure(model, tiny.create_tokenizer(), names, inputs=inputs, progress=False, **options):
        found.update(zip(batch.indices, batch.records, strict=True))
    return [found[index] for index in range(len(ids))]


def assert_alone(model: PreTrainedModel, ids: list[list[int]], records: list[dict], max_tokens: int = 8) -> None:
    """The records are what the model gives for each prompt alone, without a cache."""
    options = {"max_tokens": max_tokens, "seed": 1, "top_p": 0.9, "ends": {tiny.EOS}}
    for index, (row, record) in enumerate(zip(ids, records, strict=True)):
        expected = oracle.compute_reference(model, row, index, **options)
        assert record["tokens"].tolist() == [token for token, *_ in expected]
        entropies = [values["full_entropies"] for *_, values in expected]
        assert record["full_entropies"] == pytest.approx(entropies, abs=1e-4)


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize(
    ("name", "way"),
    [
        ("llama", decoding.PADDED),
        ("roberta", decoding.PADDED),
        ("bloom", decoding.PADDED),
        ("openai-gpt", decoding.WHOLE_PREFIXES),
    ],
)
def test_a_model_is_measured_in_a_way_that_gives_what_it_gives_for_each_prompt_alone(name, way, batch_size):
    model = MODELS[name]()
    assert checking.find_way(model) == way
    assert_alone(model, IDS, generate(model, IDS, batch_size))


@pytest.mark.parametrize("way", decoding.WAYS)
def test_every_way_gives_the_same(way, monkeypatch):
    model = tiny.create_model()
    monkeypatch.setattr(generation.checking, "find_way", lambda *_: way)
    assert_alone(model, IDS, generate(model, IDS, 3))


def test_prompts_that_need_equal_lengths_are_batched_by_length():
    inputs = generation.Inputs(IDS)
    batches = generation.plan_batches(MODELS["openai-gpt"](), inputs, Settings(batch_size=4))
    assert sorted(batches) == [[0], [1, 4], [2], [3]]


def test_relatives_of_roberta_count_positions_from_behind_their_padding_token():
    model = MODELS["roberta"]()
    assert model_facts.find_position_offset(model) == tiny.PAD + 1
    assert model_facts.find_context_length(model) == 512 - tiny.PAD - 1
    assert model_facts.find_position_offset(tiny.create_model("gpt2")) == 0


RELATIVES = ("roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod", "camembert", "data2vec-text")


@pytest.mark.parametrize(("kind", "offset"), [*((kind, 1) for kind in RELATIVES), ("whisper", 0), ("gpt2", 0)])
def test_the_context_ends_with_the_last_position_that_the_model_has(kind, offset):
    model = configurations.build_model(kind)
    assert model_facts.find_position_offset(model) == offset
    length = model_facts.find_context_length(model)
    assert length == configurations.CONTEXT - offset
    with torch.inference_mode():
        model(input_ids=torch.full((1, length), 20), use_cache=False)
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=torch.full((1, length + 1), 20), use_cache=False)


def test_a_model_that_sees_the_token_it_should_predict_is_refused():
    model = create(BertConfig(**SIZES, **LAYERS, is_decoder=False))
    with pytest.raises(ValueError, match="BertLMHeadModel is not a causal language model as it is configured"):
        generate(model, IDS, 1)
    with pytest.raises(ValueError, match="is not a causal language model"):
        list(scoring.measure(model, tiny.create_tokenizer(), ["the"], [" cat"], progress=False))
    assert checking.find_way(create(BertConfig(**SIZES, **LAYERS, is_decoder=True))) == decoding.PADDED


class Leaky(LlamaForCausalLM):
    """A model whose logits depend on how many rows and columns a batch has, with a cache and without."""

    def forward(self, input_ids=None, **kwargs):
        output = super().forward(input_ids=input_ids, **kwargs)
        output.logits = output.logits + torch.randn(output.logits.shape[-1], generator=self.noise)
        return output


def test_a_model_that_agrees_with_itself_in_no_way_is_refused():
    model = Leaky(LlamaConfig(**SIZES, **LAYERS)).eval()
    model.noise = torch.Generator().manual_seed(0)
    with pytest.raises(ValueError, match="Leaky is not"):
        checking.find_way(model)


def test_a_setting_skips_the_check(monkeypatch):
    model = MODELS["openai-gpt"]()
    assert checking.find_way(model, skip_check=True) == decoding.PADDED
    monkeypatch.setattr(checking, "_check_causality", None)
    checking.check_causality(model, skip_check=True)


def test_a_model_is_tried_once(monkeypatch):
    model = tiny.create_model()
    assert checking.find_way(model) == decoding.PADDED
    monkeypatch.setattr(checking, "_try_ways", None)
    assert checking.find_way(model) == decoding.PADDED
    checking.check_causality(model)


def count_passes(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The shapes (B, T) of all inputs that a model reads while it is tried."""
    shapes, forward = [], type(model).forward

    @functools.wraps(forward)  # its signature decides what it is given
    def read(self, input_ids=None, **kwargs):
        shapes.append(tuple(input_ids.shape))
        return forward(self, input_ids=input_ids, **kwargs)

    monkeypatch.setattr(type(model), "forward", read)
    checking.find_way(model)
    return shapes


def test_the_trial_takes_nine_forward_passes(monkeypatch):
    """Two texts alone, four rows for causality and rounding, a prefill and two steps, a prefix and what follows it."""
    shapes = count_passes(tiny.create_model(), monkeypatch)
    assert shapes == [(1, 8), (1, 6), (4, 6), (3, 6), (3, 1), (3, 1), (1, 2), (2, 4), (2, 1)]


def test_a_model_whose_logits_depend_on_the_length_is_compared_with_each_length(monkeypatch):
    """What two more tokens change is no rounding: the reference is each prompt alone after each step."""
    shapes = count_passes(configurations.build_model("prophetnet"), monkeypatch)
    assert shapes[3:12] == [(1, 6), (1, 7), (1, 8), (1, 4), (1, 5), (1, 6), (1, 1), (1, 2), (1, 3)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", tiny.KINDS)
def test_rounding_of_half_precision_is_no_difference(kind, dtype):
    assert checking.find_way(tiny.create_model(kind).to(dtype)) == decoding.PADDED


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_is_no_rounding_is_seen_in_half_precision_too(dtype):
    """ProphetNet's logits depend on the length of the text; two-way models see the token they should predict."""
    model = configurations.build_model("prophetnet").to(dtype)
    assert checking.find_way(model) == decoding.WHOLE_PREFIXES
    for kind in ("bert", "xlnet", "roberta"):
        with pytest.raises(ValueError, match="is not a causal language model"):
            checking.find_way(configurations.build_model(kind, released=True).to(dtype))


class Changed(LlamaForCausalLM):
    """A model whose logits ``change`` changes, given the mask of its input, or None if it was given none."""

    def forward(self, input_ids=None, attention_mask=None, position_ids=None, past_key_values=None, **kwargs):
        more = {"position_ids": position_ids, "past_key_values": past_key_values}
        output = super().forward(input_ids=input_ids, attention_mask=attention_mask, **more, **kwargs)
        output.logits = self.change(output.logits, attention_mask)
        return output


def create_changed(change) -> Changed:
    torch.manual_seed(0)
    model = Changed(LlamaConfig(**SIZES, **LAYERS, initializer_range=0.3)).eval()
    model.change = change
    return model


def has_padding(mask) -> bool:
    return mask is not None and not bool(mask.all())


@pytest.mark.parametrize("lowest", [float("-inf"), torch.finfo(torch.float32).min])
def test_excluded_tokens_hide_no_difference(lowest):
    def exclude(logits, mask):
        return (-logits if has_padding(mask) else logits).index_fill(-1, torch.tensor([3, 4, 5]), lowest)

    assert checking.find_way(create_changed(exclude)) == decoding.EQUAL_LENGTHS
    peeking = create_changed(lambda logits, _: logits.flip(1).index_fill(-1, torch.tensor([3, 4, 5]), lowest))
    with pytest.raises(ValueError, match="is not a causal language model"):
        checking.check_causality(peeking)


def test_a_way_that_gives_nan_is_not_taken():
    model = create_changed(lambda logits, mask: logits * float("nan") if has_padding(mask) else logits)
    assert checking.find_way(model) == decoding.EQUAL_LENGTHS


def test_a_model_without_an_opinion_is_measured():
    model = create_changed(lambda logits, _: logits * 0)
    assert checking.find_way(model) == decoding.PADDED
    assert all(
        value == pytest.approx(math.log(tiny.VOCAB), abs=1e-5)
        for record in generate(model, IDS, 3)
        for value in record["full_entropies"]
    )


# Models of other kinds


class Failing(LlamaForCausalLM):
    """A model whose own code fails."""

    def forward(self, input_ids=None, **kwargs):
        raise KeyError("no\n layer")


def test_a_model_that_fails_is_refused_in_one_line():
    line = "Failing cannot be measured: it fails on a prompt of 8 tokens (KeyError: 'no\\n layer')"
    with pytest.raises(ValueError, match="Failing") as refused:
        generate(Failing(LlamaConfig(**SIZES, **LAYERS)).eval(), IDS, 1)
    assert assert_one_line(str(refused.value)) == line
    model = Failing(LlamaConfig(**SIZES, **LAYERS)).eval()
    with pytest.raises(ValueError, match="Failing") as refused:
        list(scoring.measure(model, tiny.create_tokenizer(), ["the"], [" cat"], progress=False))
    assert str(refused.value) == line


def test_a_device_without_memory_is_no_fault_of_the_model(monkeypatch):
    def fail(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(LlamaForCausalLM, "forward", fail)
    with pytest.raises(torch.OutOfMemoryError):
        checking.find_way(tiny.create_model())


@pytest.mark.parametrize("limit", range(1, 10))
def test_a_model_with_a_tiny_context_is_tried_within_it(limit):
    model = tiny.create_model("gpt2", n_positions=limit)
    assert checking.find_way(model) == decoding.PADDED
    prompts = checking.choose_prompts(model)
    assert max(map(len, prompts.ids)) == min(limit, 8)
    assert [length + prompts.steps for length in prompts.lengths] == [len(ids) for ids in prompts.ids]
    if limit > 1:
        assert prompts.lengths[0] > prompts.lengths[1]  # there is padding
    assert_alone(model, [[5], [40]], generate(model, [[5], [40]], 2, limit), limit)


def test_a_vocabulary_of_roles_is_tried():
    model = tiny.create_model(vocab_size=2, bos_token_id=0, eos_token_id=1)
    assert checking.find_way(model) == decoding.PADDED


def test_a_context_below_zero_is_no_limit():
    sizes = {"d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 48, "attn_type": "uni", "initializer_range": 0.3}
    model = create(XLNetConfig(**SIZES, **sizes))
    assert model.config.max_position_embeddings == -1
    assert model_facts.find_context_length(model) is None
    assert_alone(model, IDS, generate(model, IDS, 3))


@pytest.mark.parametrize("first", [[5, 6, 7, 8], [9]])
def test_a_prompt_of_one_token_starts_from_nothing(first):
    """RecurrentGemma keeps state in its modules, and takes a single token for the next of the text before."""
    model = configurations.build_model("recurrent_gemma")
    ids = [first, [40]]
    assert checking.find_way(model) == decoding.EQUAL_LENGTHS
    assert_alone(model, ids, generate(model, ids, 1))


def test_a_model_that_computes_steps_otherwise_than_texts_reads_texts():
    """Zamba2 limits its time steps in a text and not in a step; the difference is small, but no rounding."""
    model = configurations.build_model("zamba2")
    assert checking.find_way(model) == decoding.WHOLE_PREFIXES


@pytest.mark.parametrize(
    ("kind", "decoding_way", "reading"),
    [
        ("llama", decoding.PADDED, scoring.BATCHED),
        ("mamba", decoding.OWN_CACHE, scoring.BATCHED),
        ("recurrent_gemma", decoding.EQUAL_LENGTHS, scoring.ALONE),
        ("openai-gpt", decoding.WHOLE_PREFIXES, scoring.BATCHED),
        ("electra", decoding.PADDED, scoring.ALONE),
        ("prophetnet", decoding.WHOLE_PREFIXES, scoring.PREFIXES),
    ],
)
def test_run_json_says_how_prompts_were_batched_and_texts_read(tmp_path, kind, decoding_way, reading):
    model, tokenizer = configurations.build_model(kind), trial.create_tokenizer()
    said = []
    for mode, texts in (("generate", None), ("score", ["t40 t50", "t60"])):
        with run_folder.RunFolder(tmp_path / mode, {"mode": mode}) as folder:
            options = {"max_tokens": 2, "variants": "none", "progress": False}
            complete_run(folder, model, tokenizer, ["t17 t20 t30", "t90"], texts, **options)
        said.append(results.load_info(tmp_path / mode))
    assert (said[0]["decoding"], said[1]["reading"]) == (decoding_way, reading)


@pytest.mark.parametrize("kind", ["llama", "mamba", "deepseek_v3", "lfm2", "gemma3_text"])
def test_the_cache_of_a_text_is_what_was_measured_on_short_ones(kind):
    """At most: layers with a window keep no more than that of a long text."""
    model, length = configurations.build_model(kind), 24
    token, row = model_facts.measure_cache(model)
    cache = DynamicCache(config=model.config)
    with torch.inference_mode():
        model(input_ids=torch.tensor([[5] * length]), use_cache=True, **{model_facts.find_cache_argument(model): cache})
    kept = [value for layer in cache.layers for value in vars(layer).values()]
    parts = [part for value in kept for part in (value.values() if isinstance(value, dict) else [value])]
    size = sum(part.nbytes for part in parts if isinstance(part, torch.Tensor))
    if kind == "gemma3_text":
        assert 0 < size <= row + token * length
    else:
        assert size == row + token * length
        assert (row > 0) == (kind in ("mamba", "lfm2"))


def test_what_a_model_without_a_cache_keeps_is_estimated_from_its_layers():
    model = configurations.build_model("blt")
    assert not hasattr(model.config, "num_hidden_layers")
    layers, width, size = configurations.LAYERS, configurations.WIDTH, 4
    assert model_facts.measure_cache(model)[0] >= 2 * layers * width * size
    assert model_facts.measure_cache(model)[1] == 0


def test_the_setting_that_makes_a_model_causal_is_named():
    advice = " (is_decoder must be true, and the weights trained for that)"
    for kind, name, more in (("bert", "BertLMHeadModel", advice), ("xlnet", "XLNetLMHeadModel", "")):
        with pytest.raises(ValueError, match="is not a causal language model") as refused:
            checking.find_way(configurations.build_model(kind, released=True))
        line = f"{name} is not a causal language model as it is configured: each token sees those after it{more}"
        assert assert_one_line(str(refused.value)) == line


# Models that change at a length

LONG = [list(range(3, 3 + length)) for length in (30, 20, 20, 18, 6, 24, 25)]


@pytest.mark.parametrize("batch_size", [1, 2, 7])
def test_a_text_that_becomes_longer_than_the_limit_is_computed_anew(batch_size):
    model = create_longrope()
    assert model_facts.find_length_limit(model) == 24
    assert_alone(model, LONG, generate(model, LONG, batch_size))


@pytest.mark.parametrize("kind", ["inkling_text", "llama4_text"])
def test_a_model_that_counts_padding_among_the_positions_beyond_a_limit_gets_none(kind):
    model, rows = (
        configurations.build_model(kind),
        [row[:length] for row, length in zip(LONG, (12, 5, 9), strict=False)],
    )
    assert model_facts.find_length_limit(model) == 8
    assert_alone(model, rows, generate(model, rows, 3))


@pytest.mark.parametrize("batch_size", ["auto", 1, 3])
def test_each_token_of_a_long_text_is_scored_as_if_the_text_ended_there(batch_size):
    model = create_longrope()
    starts = [10, 5, 19, 1, 2, 23, 24]
    inputs = scoring.Texts(LONG, starts=starts)
    names = [str(index) for index in range(len(LONG))]
    options = {"inputs": inputs, "batch_size": batch_size, "progress": False}
    for batch in scoring.measure(model, tiny.create_tokenizer(), names, names, **options):
        for index, record in zip(batch.indices, batch.records, strict=True):
            row, start = LONG[index], starts[index]
            assert record["tokens"].tolist() == row[start:]
            for place, found in enumerate(record["full_entropies"], start):
                with torch.no_grad():
                    logits = model(input_ids=torch.tensor([row[:place]]), use_cache=False).logits[0, -1]
                assert found == pytest.approx(oracle.compute_full_entropy(logits), abs=1e-4)


def test_a_device_without_memory_is_no_reason_for_another_way(monkeypatch):
    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(checking, "create_decoder", fail)
    with pytest.raises(torch.OutOfMemoryError):
        checking.find_way(tiny.create_model())
