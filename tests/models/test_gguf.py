"""What a GGUF file says about tokenising, end tokens and positions is applied, or the file is refused by name."""

import json
from pathlib import Path

import gguf as format_library
import pytest
import torch
from tokenizers import Regex, pre_tokenizers
from transformers import Gemma3TextConfig, LlamaConfig, MistralConfig

import tiny
from messages import assert_one_line
from nucleoscope.data import prompts
from nucleoscope.measure import model_facts
from nucleoscope.models import gguf, loading, tokenizers

IDS = torch.tensor([[5, 17, 250, 41, 8, 99, 120, 7] * 12])
TEXTS = [
    "in 1999,\n\n12 cats and 3 hats",
    "  two  spaces\n  and tabs\t7",
    "it's 3:45 o'clock, isn't it?",
    "x\n\n1",
    "½ 3²",
]


def load(*args, **fields) -> loading.Model:
    return loading.load(tiny.save_gguf(*args, **fields), "float32", "cpu")


def save_plain(tmp_path: Path, **fields) -> str:
    model, tokenizer = tiny.create_model("llama"), tiny.create_tokenizer(bos=False)
    return tiny.save_gguf(tmp_path / "tiny.gguf", model, tokenizer, **fields)


# Tokenising

GPT2_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@pytest.mark.parametrize(
    ("name", "splits"),
    [
        ("gpt-2", [GPT2_SPLIT]),
        ("olmo", [GPT2_SPLIT]),
        ("smollm", [r"\p{N}", GPT2_SPLIT]),
        ("starcoder", [r"\p{N}", GPT2_SPLIT]),
        ("command-r", [r"\p{N}", GPT2_SPLIT]),
        ("qwen2", [QWEN2_SPLIT]),
        ("stablelm2", [QWEN2_SPLIT]),
    ],
)
def test_text_is_split_as_the_file_says(tmp_path, name, splits):
    expected = tiny.create_tokenizer(bos=False)
    parts = [pre_tokenizers.Split(Regex(split), behavior="isolated") for split in splits]
    parts.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    expected.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(parts)
    found = tokenizers.load_tokenizer(save_plain(tmp_path, pre=name))
    for text in TEXTS:
        assert found(text)["input_ids"] == expected(text)["input_ids"], text
        assert found.decode(found(text)["input_ids"]) == text


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("deepseek-llm", "tokenizer.ggml.pre, which says how text is split, is 'deepseek-llm', which is not supported"),
        ("default", r"the file does not say how text is split \(tokenizer.ggml.pre is 'default'\)"),
        (None, r"the file does not say how text is split \(tokenizer.ggml.pre is missing\)"),
    ],
)
def test_a_split_that_is_unknown_is_refused(tmp_path, name, said):
    path = save_plain(tmp_path, pre=name)
    for refuse in (loading.load, tokenizers.load_tokenizer):
        with pytest.raises(ValueError, match=f"^cannot load '.*': {said}: ") as caught:
            refuse(path)
        assert_one_line(str(caught.value))


@pytest.mark.parametrize(("name", "whole"), [("llama-bpe", True), ("tekken", True), ("qwen2", False)])
def test_a_whole_word_goes_before_merges_where_the_model_was_trained_so(tmp_path, name, whole):
    """The tokens "Ġthe" and "the" differ: only the former is the end of a chain of merges for " the"."""
    tokenizer = tokenizers.load_tokenizer(save_plain(tmp_path, pre=name))
    assert tokenizer.backend_tokenizer.model.ignore_merges == whole
    core = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    assert core["ignore_merges"] == whole


@pytest.mark.parametrize(
    ("name", "stated", "added"),
    [
        *(("gpt-2", True, True), ("gpt-2", False, False), ("gpt-2", None, False)),
        *(("llama-bpe", None, True), ("llama-bpe", False, False)),
    ],
)
def test_the_file_says_whether_a_text_begins_with_its_token(tmp_path, name, stated, added):
    fields = {} if stated is None else {"tokenizer.ggml.add_bos_token": stated}
    ids = tokenizers.load_tokenizer(save_plain(tmp_path, pre=name, fields=fields))("the cat")["input_ids"]
    assert (ids[0] == tiny.BOS) == added
    assert ids.count(tiny.BOS) == added


@pytest.mark.parametrize("space", [True, False, None])
def test_the_file_says_whether_a_text_begins_with_a_space(tmp_path, space):
    pieces = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        *"\u2581thecat",
        "he",
        "the",
        "\u2581the",
    ]
    writer = format_library.GGUFWriter(tmp_path / "tiny.gguf", "llama")
    writer.add_tokenizer_model("llama")
    writer.add_token_list(pieces)
    writer.add_token_scores([-float(index) for index in range(len(pieces))])
    writer.add_token_types([2, 3, 3] + [6] * 256 + [1] * (len(pieces) - 259))
    for add, index in ((writer.add_unk_token_id, 0), (writer.add_bos_token_id, 1), (writer.add_eos_token_id, 2)):
        add(index)
    if space is not None:
        writer.add_add_space_prefix(space)
    writer.add_context_length(64)
    writer.add_vocab_size(len(pieces))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    tokenizer = tokenizers.load_tokenizer(str(tmp_path / "tiny.gguf"))
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("the cat")["input_ids"])
    assert tokens[:2] == ["<s>", "the" if space is False else "\u2581the"]
    assert tokenizer.decode(tokenizer("the cat")["input_ids"], skip_special_tokens=True) == "the cat"


def test_the_packaged_model_splits_digits_off_first():
    tokenizer = tokenizers.load_tokenizer(loading.PACKAGED)
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("List:\n\n12 eggs")["input_ids"])
    assert tokens == ["List", ":", "ĊĊ", "1", "2", "Ġeggs"]


def test_the_packaged_texts_come_back_from_their_tokens_as_written():
    tokenizer = tokenizers.load_tokenizer(loading.PACKAGED)
    texts = [text for name in prompts.PACKAGED for text in prompts.load(name, 1000).texts]
    assert [text for text in texts if tokenizer.decode(tokenizer(text)["input_ids"]) != text] == []


# End tokens


def test_every_token_that_ends_a_text_or_a_turn_ends_it(tmp_path):
    fields = {"tokenizer.ggml.eot_token_id": 270, "tokenizer.ggml.eom_token_id": 271}
    loaded = loading.load(save_plain(tmp_path, fields=fields), "float32", "cpu")
    assert model_facts.find_end_tokens(loaded.model, loaded.tokenizer) == {tiny.EOS, 270, 271}


# Positions

LINEAR = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
YARN = {
    **{"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0},
    "llama.rope.scaling.original_context_length": 64,
}
FACTORS = torch.tensor([1.0, 1.5, 4.0, 8.0, 20.0, 32.0, 32.0, 32.0])


@pytest.mark.parametrize(
    ("rope", "fields", "tensors"),
    [
        ({"rope_type": "linear", "factor": 4.0}, LINEAR, {}),
        ({"rope_type": "linear", "factor": 4.0}, {"llama.rope.scale_linear": 4.0}, {}),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}, YARN, {}),
        (
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 16.0},
            YARN | {"llama.rope.scaling.yarn_beta_fast": 16.0},
            {},
        ),
        (
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
            YARN
            | {"llama.rope.scaling.finetuned": True, "llama.rope.scaling.yarn_ext_factor": 1.0}
            | {"llama.rope.scaling.yarn_log_multiplier": 0.0, "llama.rope.scaling.attn_factor": 1.0},
            {},
        ),
        (
            {
                **{"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
                "original_max_position_embeddings": 32,
            },
            {},
            "rope_freqs.weight",
        ),
    ],
    ids=[
        "linear",
        "linear as older files say it",
        "yarn",
        "yarn with a parameter",
        "yarn with what changes nothing",
        "factors as in Llama 3.1",
    ],
)
def test_positions_are_scaled_as_the_file_says(tmp_path, rope, fields, tensors):
    saved = tiny.create_model("llama", rope_parameters={"rope_theta": 500.0, **rope})
    frequencies = saved.model.rotary_emb.inv_freq
    if tensors:
        plain = tiny.create_model("llama", rope_parameters={"rope_theta": 500.0, "rope_type": "default"})
        tensors = {tensors: plain.model.rotary_emb.inv_freq / frequencies}
    loaded = load(tmp_path / "tiny.gguf", saved, tiny.create_tokenizer(), fields=fields, tensors=tensors or {})
    torch.testing.assert_close(loaded.model.model.rotary_emb.inv_freq, frequencies)
    torch.testing.assert_close(loaded.model(IDS).logits, saved(IDS).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"llama.rope.scaling.type": "su"}, "rope.scaling.type is 'su', which is not supported"),
        ({"llama.rope.scaling.type": "longrope"}, "rope.scaling.type is longrope, but its factors are missing"),
        (YARN | {"llama.rope.scaling.yarn_ext_factor": 0.0}, "rope.scaling.yarn_ext_factor is 0.0, which is not supp"),
        (YARN | {"llama.rope.scaling.yarn_log_multiplier": 0.5}, "rope.scaling.yarn_log_multiplier is 0.5"),
        (YARN | {"llama.rope.scaling.attn_factor": 2.0}, "rope.scaling.attn_factor is 2.0"),
        (
            LINEAR | {"llama.rope.scaling.attn_factor": 2.0},
            "attn_factor is 2.0, which is not supported with type linear",
        ),
        ({"llama.rope.scaling.alpha": 8.0}, "rope.scaling.alpha is 8.0, which is not supported with type none"),
        (LINEAR | {"llama.rope.scaling.new_key": 1.0}, "rope.scaling.new_key is 1.0"),
        ({"llama.rope.new_key": 1.0}, "rope.new_key is 1.0, which is not supported"),
        ({"llama.rope.freq_base_swa": 1e6}, "rope.freq_base_swa is 1e\\+06, but the loaded model has one base for all"),
        ({"llama.rope.dimension_count_swa": 4}, "rope.dimension_count_swa is 4, but the loaded model would rotate 8"),
    ],
)
def test_positions_that_cannot_be_had_are_refused_before_the_weights_are_read(tmp_path, monkeypatch, fields, said):
    monkeypatch.setattr(loading.kinds.AutoModelForCausalLM, "from_pretrained", None)
    with pytest.raises(ValueError, match=said) as caught:
        loading.load(save_plain(tmp_path, fields=fields), "float32", "cpu")
    assert_one_line(str(caught.value))


def test_another_number_of_rotated_dimensions_is_refused(tmp_path):
    """transformers ignores it for most architectures."""
    metadata = gguf.read(Path(save_plain(tmp_path, fields={"llama.rope.dimension_count": 8})))
    with pytest.raises(ValueError, match=r"rope\.dimension_count is 8, but the loaded model would rotate 16: use"):
        gguf.adjust_config(tiny.create_model("qwen3", head_dim=16).config, metadata)
    config = tiny.create_model("qwen3", head_dim=8).config
    assert gguf.adjust_config(config, metadata) is config


def test_layers_with_a_window_have_a_base_of_their_own(tmp_path):
    """As in Gemma 3, whose other layers have the base of the file, and its scaling."""
    metadata = gguf.read(Path(save_plain(tmp_path, fields=LINEAR | {"llama.rope.freq_base_swa": 2000.0})))
    metadata.fields["llama.rope.freq_base"] = 50_000.0
    rope = gguf.adjust_config(Gemma3TextConfig(), metadata).rope_parameters
    assert rope["sliding_attention"] == {"rope_type": "default", "rope_theta": 2000.0}
    assert (rope["full_attention"]["rope_theta"], rope["full_attention"]["factor"]) == (50_000.0, 4.0)
    metadata.fields["llama.rope.freq_base_swa"] = 50_000.0  # which a model with one base for all layers has as well
    assert gguf.adjust_config(tiny.create_model("llama").config, metadata).rope_parameters["rope_theta"] == 50_000.0


@pytest.mark.parametrize(("every", "known"), [(6, True), (5, False), (0, False)])
def test_windows_in_other_layers_are_refused(tmp_path, every, known):
    """The number says every how many layers one has no window; a file may also have a list."""
    metadata = gguf.read(Path(save_plain(tmp_path, fields={"llama.attention.sliding_window_pattern": every})))
    config = Gemma3TextConfig(num_hidden_layers=12)
    if known:
        metadata.fields["llama.attention.sliding_window_pattern"] = [place % 6 < 5 for place in range(12)]
        assert gguf.adjust_config(config, metadata) is config
        metadata.fields["llama.attention.sliding_window_pattern"] = every
        assert gguf.adjust_config(config, metadata) is config
        metadata.fields["llama.attention.sliding_window_pattern"] = 0  # all layers have one
        config = Gemma3TextConfig(num_hidden_layers=2, layer_types=["sliding_attention"] * 2)
        assert gguf.adjust_config(config, metadata) is config
        return
    with pytest.raises(ValueError, match="sliding_window_pattern is not that of the loaded model") as caught:
        gguf.adjust_config(config, metadata)
    assert_one_line(str(caught.value))


@pytest.mark.parametrize(
    ("kind", "window", "pattern", "known"),
    [
        (MistralConfig, 64, 0, True),
        (MistralConfig, 64, [True, True], True),
        (MistralConfig, 64, 2, False),
        (MistralConfig, 64, [False, True], False),
        (LlamaConfig, 64, 2, False),  # which has no windows, where the file has some
        (LlamaConfig, 64, [False, False], True),
        (LlamaConfig, 0, 2, True),  # nor has the file
    ],
)
def test_windows_in_some_layers_are_refused_for_models_whose_layers_are_all_the_same(
    tmp_path, kind, window, pattern, known
):
    fields = {"llama.attention.sliding_window": window, "llama.attention.sliding_window_pattern": 1}
    metadata = gguf.read(Path(save_plain(tmp_path, fields=fields)))
    metadata.fields["llama.attention.sliding_window_pattern"] = pattern
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2}
    config = kind(**sizes)
    if known:
        assert gguf.adjust_config(config, metadata) is config
    else:
        with pytest.raises(ValueError, match="sliding_window_pattern is not that of the loaded model") as caught:
            gguf.adjust_config(config, metadata)
        assert_one_line(str(caught.value))


def test_factors_of_another_number_of_frequencies_are_refused(tmp_path):
    path = save_plain(tmp_path, tensors={"rope_freqs.weight": torch.ones(3)})
    with pytest.raises(ValueError, match=r"rope_freqs\.weight has factors that cannot be applied"):
        loading.load(path, "float32", "cpu")


def test_long_factors_of_a_file_are_read(tmp_path):
    size = tiny.create_model("llama").model.rotary_emb.inv_freq.numel()
    long, short = torch.arange(1.0, size + 1), torch.ones(size)
    tensors = {"rope_factors_long.weight": long, "rope_factors_short.weight": short}
    fields = {"llama.rope.scaling.original_context_length": 64, "llama.rope.scaling.attn_factor": 1.25}
    rope = loading.load(
        save_plain(tmp_path, fields=fields, tensors=tensors), "float32", "cpu"
    ).model.config.rope_parameters
    assert rope["rope_type"] == "longrope"
    assert (rope["long_factor"], rope["short_factor"]) == (long.tolist(), short.tolist())
    assert (rope["original_max_position_embeddings"], rope["attention_factor"]) == (64, 1.25)


def test_metadata_is_read_again_when_the_file_changes(tmp_path):
    path = Path(save_plain(tmp_path))
    assert gguf.read(path).get("tokenizer.ggml.eot_token_id") is None
    save_plain(tmp_path, fields={"tokenizer.ggml.eot_token_id": 5})
    assert gguf.read(path).get("tokenizer.ggml.eot_token_id") == 5
