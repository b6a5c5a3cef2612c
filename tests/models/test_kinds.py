"""What a configuration alone decides: which class loads a model, what is refused, and how much memory it takes."""

import json
from pathlib import Path

import pytest
import torch
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
)

import oracle
import tiny
from messages import assert_one_line
from nucleoscope.measure import checking, decoding, generation, model_facts
from nucleoscope.models import kinds, loading, memory, placement

TEXT = tiny.ROTARY | {"vocab_size": tiny.VOCAB + 20, "head_dim": 8}
SEEN = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
SEEN |= {"image_size": 28, "patch_size": 14}
BLOCKS = {"depth": 1, "hidden_size": 32, "out_hidden_size": 32, "intermediate_size": 32, "num_heads": 2}
THREE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}}
IMAGE = tiny.VOCAB + 1  # the token that stands for an image
VISION = {  # type of a model that also sees -> its configuration: a text model, a vision model and their joint
    "llava": {
        "text_config": TEXT | {"model_type": "llama"},
        "vision_config": SEEN | {"model_type": "clip_vision_model", "projection_dim": 32},
        "image_token_index": IMAGE,
    },
    "mistral3": {
        "text_config": TEXT | {"model_type": "mistral", "sliding_window": 8},
        "vision_config": SEEN | {"model_type": "pixtral"},
        "image_token_index": IMAGE,
    },
    "qwen2_5_vl": {"text_config": TEXT | THREE | {"model_type": "qwen2_5_vl_text"}, "vision_config": BLOCKS},
    "qwen3_vl": {
        "text_config": TEXT | THREE | {"model_type": "qwen3_vl_text"},
        "vision_config": BLOCKS | {"deepstack_visual_indexes": [0]},
    },
    "aya_vision": {
        "text_config": TEXT | {"model_type": "cohere2", "layer_types": ["sliding_attention", "full_attention"]},
        "vision_config": SEEN | {"model_type": "siglip_vision_model"},
        "image_token_index": IMAGE,
    },
    "qwen2_vl": {
        "text_config": TEXT | THREE | {"model_type": "qwen2_vl_text"},
        "vision_config": {"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 1},
    },
    "internvl": {
        "text_config": TEXT | {"model_type": "qwen2"},
        "vision_config": SEEN | {"image_size": [28, 28], "patch_size": [14, 14]},
        "image_token_id": IMAGE,
    },
    "smolvlm": {
        "text_config": TEXT | {"model_type": "llama"},
        "vision_config": SEEN,
        "image_token_id": IMAGE,
        "scale_factor": 1,
    },
}
PALIGEMMA = {  # which reads a prompt in both directions
    "text_config": TEXT | {"model_type": "gemma"},
    "vision_config": SEEN | {"model_type": "siglip_vision_model", "projection_dim": 32},
    "image_token_index": IMAGE,
    "projection_dim": 32,
}
IDS = [[5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15], [40, 41, 42], [120], [200, 201, 202]]
STEPS = 8


def save_vision_model(folder: Path, kind: str) -> str:
    """A folder with a random model of a kind of `VISION`, whose nuclei have one token or many."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = CONFIG_MAPPING[kind](**VISION[kind], tie_word_embeddings=False)
        model = AutoModelForImageTextToText.from_config(config).float().eval()
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.3)
    return tiny.save(folder, model, tiny.create_tokenizer())


# Models that also see


@pytest.mark.parametrize("kind", VISION)
def test_a_model_that_also_sees_is_measured_as_its_text_part_alone_would_be(tmp_path, kind):
    model, tokenizer, _ = loading.load(save_vision_model(tmp_path, kind), "float32", "cpu")
    assert type(model).__name__.endswith("ForConditionalGeneration")
    assert model_facts.find_embedding_matrix(model).shape == (tiny.VOCAB + 20, 32)
    assert model_facts.find_context_length(model) == 256
    assert checking.find_way(model) == decoding.PADDED
    options = {"max_tokens": STEPS, "seed": 1, "top_p": 0.9}
    names, found = [str(index) for index in range(len(IDS))], {}
    inputs = generation.Inputs(IDS)
    for batch in generation.measure(model, tokenizer, names, inputs=inputs, progress=False, batch_size=3, **options):
        found.update(zip(batch.indices, batch.records, strict=True))
    exact, compared = model.double(), 0
    for index, row in enumerate(IDS):
        expected = oracle.compute_reference(exact, row, index, ends={tiny.EOS}, **options)
        assert found[index]["tokens"].tolist() == [token for token, *_ in expected]
        for step, (*_, values) in enumerate(expected):
            compared += 1
            for name in ("entropies", "full_entropies", "surprisals", "cosines", "weighted_cosines"):
                assert found[index][name][step] == pytest.approx(values[name], abs=1e-3)
    assert compared > 2 * len(IDS)


def test_a_model_that_reads_prompts_in_both_directions_is_refused():
    config = CONFIG_MAPPING["paligemma"](**PALIGEMMA)
    model = AutoModelForImageTextToText.from_config(config).float().eval()
    with pytest.raises(ValueError, match="is not a causal language model as it is configured: each token sees"):
        list(generation.measure(model, tiny.create_tokenizer(), ["a b"], max_tokens=2, progress=False))


def test_the_end_tokens_of_a_text_part_count(tmp_path):
    model, tokenizer, _ = loading.load(save_vision_model(tmp_path, "llava"), "float32", "cpu")
    model.generation_config = None
    model.config.eos_token_id, model.config.text_config.eos_token_id, tokenizer.eos_token = None, [5, 7], None
    assert model_facts.find_end_tokens(model, tokenizer) == {5, 7}


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mamba", "opt", "gemma3", "llama4"])
def test_what_the_library_calls_a_causal_language_model_is_loaded_as_one(kind):
    assert kinds.choose_class(CONFIG_MAPPING[kind]()) is AutoModelForCausalLM


@pytest.mark.parametrize("kind", ["llava", "mistral3", "qwen2_vl", "qwen3_vl", "internvl", "smolvlm", "idefics3"])
def test_what_also_sees_is_loaded_with_what_sees(kind):
    config = CONFIG_MAPPING[kind]()
    assert type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING
    assert kinds.choose_class(config) is AutoModelForImageTextToText


# What is refused


@pytest.fixture
def refuse(tmp_path, monkeypatch):
    """Gives the line with which a folder is refused whose configuration has some other entries; no weights are read."""
    monkeypatch.setattr(torch.nn.Module, "load_state_dict", None)
    for loader in kinds.CLASSES:
        monkeypatch.setattr(loader, "from_pretrained", None)

    def run(**entries) -> str:
        name = tiny.save(tmp_path / "model", tiny.create_model(), tiny.create_tokenizer())
        path = Path(name, "config.json")
        kept = json.loads(path.read_text()) if "model_type" not in entries else {}
        path.write_text(json.dumps(kept | entries))
        with pytest.raises((ValueError, OSError)) as caught:
            loading.load(name, "float32", "cpu")
        message = assert_one_line(str(caught.value))
        assert len(message) < 450
        return message

    return run


@pytest.mark.parametrize("kind", ["distilbert", "albert", "clip", "vit", "deberta-v2", "t5gemma", "siglip"])
def test_what_is_no_language_model_is_refused_by_its_configuration(refuse, kind):
    message = refuse(model_type=kind)
    said = "it is an encoder-decoder model, not" if kind == "t5gemma" else f"its type, '{kind}', is not"
    assert message.endswith(f"/model': {said} a causal language model: choose a model that generates text")


@pytest.mark.parametrize(
    "kind", ["t5", "mt5", "florence2", "udop", "bart", "whisper", "pegasus", "vision-encoder-decoder", "pix2struct"]
)
def test_what_has_an_encoder_of_the_prompt_is_refused(kind):
    config = CONFIG_MAPPING[kind]()
    with pytest.raises(kinds.UnsupportedKind, match="is an encoder-decoder model, not a causal language") as caught:
        kinds.choose_class(config)
    assert assert_one_line(str(caught.value)).endswith(": choose a model that generates text")


@pytest.mark.parametrize("kind", ["bert", "roberta", "electra", "camembert", "xlm-roberta", "ernie", "rembert"])
def test_berts_relatives_are_refused_unless_they_are_decoders(refuse, kind):
    assert f"a '{kind}' model with is_decoder set to false is not a causal language model" in refuse(model_type=kind)
    assert kinds.choose_class(CONFIG_MAPPING[kind](is_decoder=True)) is AutoModelForCausalLM


@pytest.mark.parametrize("kind", ["no-such-model", "", "Llama", "llama ", 3, [], {}, True, "x" * 900])
def test_a_type_that_the_library_does_not_know_is_named(refuse, kind):
    message = refuse(model_type=kind)
    assert "': its config.json has model_type " in message
    assert message.endswith("does not know: check the name, or install a newer transformers")


def test_a_configuration_without_a_type_is_refused(refuse):
    assert refuse(model_type=None).endswith(
        "/model': its config.json has no model_type: download or save the model again"
    )


@pytest.mark.parametrize(
    "entries",
    [
        {"num_hidden_layers": "many"},
        {"num_hidden_layers": None},
        {"num_hidden_layers": -1},
        {"hidden_size": 0},
        {"hidden_size": "32"},
        {"hidden_size": [32]},
        {"hidden_size": 1.5},
        {"num_attention_heads": 0},
        {"num_attention_heads": 5},
        {"vocab_size": -3},
        {"vocab_size": "300"},
        {"rope_parameters": 3},
        {"rope_parameters": {"rope_type": "spiral"}},
        {"hidden_act": "no-such-function"},
        {"hidden_act": 3},
        {"dtype": "float7"},
        {"quantization_config": {"quant_method": "none-such"}},
        {"quantization_config": 3},
        {"max_position_embeddings": "256"},
    ],
    ids=str,
)
def test_an_entry_of_the_wrong_kind_is_one_line_that_names_the_model(refuse, entries):
    assert "model" in refuse(**entries)


@pytest.mark.parametrize(
    "entries",
    [
        *({"num_hidden_layers": 10**9}, {"vocab_size": 10**12}, {"hidden_size": 10**9}, {"vocab_size": 10**300}),
        {"num_hidden_layers": 100_000, "intermediate_size": 10**6},  # to describe all of them would take two minutes
    ],
)
def test_a_model_that_no_machine_can_hold_is_refused_before_it_is_built(refuse, entries):
    message = refuse(**entries)
    assert "the model's weights take " in message
    assert "GB of memory and swap available" in message


# Memory


def test_the_weights_of_many_layers_follow_from_those_of_two(monkeypatch):
    config = tiny.create_model(num_hidden_layers=7).config
    exact = placement.estimate_weights(config, torch.float32)
    assert placement._extrapolate(config, torch.float32, False, AutoModelForCausalLM) == exact
    monkeypatch.setattr(placement, "MANY", 6)
    assert placement.estimate_weights(config, torch.float32) == exact
    assert config.num_hidden_layers == 7


def test_weights_that_do_not_fit_the_memory_are_refused_with_the_figures(tmp_path, monkeypatch):
    name = tiny.save(tmp_path / "tiny", tiny.create_model(), tiny.create_tokenizer())
    size = placement.estimate_weights(AutoConfig.from_pretrained(name), torch.float32)
    monkeypatch.setattr(memory, "read_available", lambda: size)
    loading.load(name, "float32", "cpu")
    monkeypatch.setattr(memory, "read_available", lambda: size - 1)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", None)
    with pytest.raises(
        placement.TooLarge, match=r"take 0\.0 GB, but this machine has only 0\.0 GB of memory"
    ) as caught:
        loading.load(name, "float32", "cpu")
    assert_one_line(str(caught.value))


def write_system(folder: Path, groups: str = "", available: int = 2000, swap: int = 500, **limits: str) -> None:
    """The files in which Linux says how much memory there is, in kB, and what a process's groups may use."""
    (folder / "meminfo").write_text(f"MemTotal: 9000 kB\nMemAvailable: {available} kB\nSwapFree: {swap} kB\n")
    (folder / "cgroup").write_text(groups)
    for name, text in limits.items():
        path = folder / "fs" / name.replace("__", "/")
        path = path.with_name(path.name.replace("_dot_", "."))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.fixture
def system(tmp_path, monkeypatch):
    for name, place in {"MEMINFO": "meminfo", "GROUPS": "cgroup", "MOUNT": "fs"}.items():
        monkeypatch.setattr(memory, name, tmp_path / place)
    return lambda **given: write_system(tmp_path, **given)


def test_memory_is_what_the_system_says_is_available(system):
    system()
    assert memory.read_available() == 2500 * 1024


def test_a_control_group_limits_the_memory(system):
    version_2 = {"job__memory_dot_max": "300000\n", "job__memory_dot_swap_dot_max": "50000\n"}
    system(groups="0::/job/step\n", **version_2)
    assert memory.read_available() == 350_000
    system(groups="0::/job\n", **version_2 | {"job__memory_dot_max": "max\n"})
    assert memory.read_available() == 2500 * 1024
    system(groups="4:cpu,memory:/job\n0::/\n", memory__job__memory_dot_memsw_dot_limit_in_bytes="7000\n")
    assert memory.read_available() == 7000
    assert memory.read_total() == 7000


def test_all_memory_does_not_depend_on_how_much_is_free(system):
    system()
    total, available = memory.read_total(), memory.read_available()
    system(available=10)
    assert memory.read_available() < available
    assert memory.read_total() == total


def test_a_system_that_says_nothing_has_all_its_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "none")
    monkeypatch.setattr(memory, "GROUPS", tmp_path / "none")
    assert memory.read_available() > 2**28
