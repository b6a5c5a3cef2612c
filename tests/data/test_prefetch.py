"""`scripts/prefetch.py`: what a grid needs, what is refused before it is fetched, and runs without a network after."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import pytest
from test_hub import ROOT, measure_all

import hub
import replicas
import tiny
from messages import assert_one_line
from nucleoscope.atomic import ABANDONED
from nucleoscope.data import prefetch, prompts
from nucleoscope.models import loading
from nucleoscope.store import results
from preloaded import run_python, run_script

STUDY = "scripts/grids/study.yml"


def run_prefetch(grid: str | Path, environment: dict[str, str], before: str = "") -> subprocess.CompletedProcess:
    return run_script("scripts/prefetch.py", str(grid), environment=environment, before=before)


def write_grid(path: Path, models: list, datasets: list, **parameters) -> Path:
    content = {"results_dir": "results", "models": models, "datasets": datasets, "parameters": parameters}
    path.write_text(json.dumps(content))  # JSON is YAML
    return path


def list_errors(done: subprocess.CompletedProcess) -> list[str]:
    """The lines of a refusal, each whole."""
    assert done.returncode == 1, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    return [assert_one_line(line) for line in lines]


# Which files are needed

SHARDS = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
BINS = [f"pytorch_model-0000{n}-of-00002.bin" for n in (1, 2)]
SMALL = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]


@pytest.mark.parametrize(
    ("weights", "others"),
    [
        (["model.safetensors"], ["pytorch_model.bin", "tf_model.h5", "model.fp16.safetensors", "rust_model.ot"]),
        (
            ["model.safetensors.index.json", *SHARDS],
            ["pytorch_model.bin.index.json", *BINS, "consolidated.safetensors"],
        ),
        (["model.safetensors.index.json", *SHARDS], ["original/consolidated.00.pth", "original/model.safetensors"]),
        (["pytorch_model.bin.index.json", *BINS], ["flax_model.msgpack", "consolidated.00.pth", "training_args.bin"]),
        (["pytorch_model.bin"], ["onnx/model.onnx", "coreml/config.json", "gguf/x.gguf"]),
    ],
)
def test_one_form_of_the_weights_is_needed_and_all_that_is_small(weights, others):
    small = [*SMALL, "merges.txt", "tokenizer.model", "chat_template.jinja", "additional_chat_templates/tools.jinja"]
    never = ["README.md", ".gitattributes", "logo.png", "modeling_mine.py"]
    assert prefetch.list_needed_files([*others, *weights, *small, *never]) == sorted([*weights, *small])
    assert "modeling_mine.py" in prefetch.list_needed_files([*weights, *never], own_code=True)


def test_a_repository_without_weights_that_transformers_reads_needs_nothing():
    assert prefetch.list_needed_files([*SMALL, "model.onnx", "original/consolidated.00.pth"]) == []


# What is refused


def test_all_refusals_come_at_once_and_before_anything_is_fetched(tmp_path):
    tiny.save(tmp_path / "tiny", tiny.create_model(), tiny.create_tokenizer())
    tiny.save(tmp_path / "bare", tiny.create_model(), tiny.create_tokenizer())
    (tmp_path / "bare" / "model.safetensors").unlink()
    served = {"org/tiny": tmp_path / "tiny", "org/bare": tmp_path / "bare", "org/hidden": hub.UNKNOWN_OR_PRIVATE}
    served["org/closed"] = hub.Repository({hub.COMMIT: tmp_path / "tiny"}, {"main": hub.COMMIT}, gated=True)
    served |= {"org/down": hub.DOWN, "datasets/openai/gsm8k": hub.GATED}
    entries = ["org/tiny", "org/bare", "org/hidden", "org/closed", "org/down", "nowhere.gguf", "no such name"]
    entries += [{"name": "org/tiny2", "model_revision": "abc"}, {"name": loading.PACKAGED, "model_revision": "abc"}]
    grid = write_grid(tmp_path / "grid.yml", entries, ["math", "gsm8k", "xsum", "poems", "odes.jsonl"])
    home = tmp_path / "home"
    with hub.serve(served | {"org/tiny2": tmp_path / "tiny"}) as server:
        done = run_prefetch(grid, server.environment(home, HF_TOKEN="hf_of_somebody_else"))
        found = "\n".join(list_errors(done)).replace(server.endpoint, "HUB")
        assert not [request for request in server.requests if "/resolve/" in request or "/storage/" in request]
    wanted = [
        "model 'org/bare' has no .safetensors or .bin weights: see HUB/org/bare",
        "model 'org/hidden' does not exist or is private",
        "model 'org/closed' is gated: ask for access at HUB/org/closed",
        "the Hub refused access to model 'org/down'",
        "file 'nowhere.gguf' does not exist",
        "'no such name' is neither an existing folder nor a valid model id",
        "model 'org/tiny2' has no revision 'abc'",
        f"model_revision is 'abc', but '{loading.PACKAGED}' is the packaged model",
        "cannot load data set gsm8k: tried openai/gsm8k on the Hub; revision 740312a",
        "cannot load data set xsum: tried EdinburghNLP/xsum on the Hub; revision 7d4d486",
        "unknown data set 'poems'",
        "file 'odes.jsonl' does not exist",
    ]
    assert [words for words in wanted if words not in found] == []
    assert len(found.splitlines()) == len(wanted)
    assert "org/tiny: " in done.stdout
    assert not list(home.rglob("*.json"))


def test_what_no_run_could_load_is_refused_before_its_weights_are_fetched(tmp_path):
    tiny.save(tmp_path / "tiny", tiny.create_model(), tiny.create_tokenizer())
    tiny.save(tmp_path / "pair", tiny.create_model(), tiny.create_tokenizer())
    pair = {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}
    (tmp_path / "pair" / "config.json").write_text(json.dumps(pair))
    grid = write_grid(tmp_path / "grid.yml", ["org/tiny", "org/pair"], ["math"])
    with hub.serve({"org/tiny": tmp_path / "tiny", "org/pair": tmp_path / "pair"}) as server:
        done = run_prefetch(grid, server.environment(tmp_path / "home"))
        (found,) = list_errors(done)
        assert not [request for request in server.requests if "safetensors" in request and "/resolve/" in request]
    assert found.startswith("error: cannot load 'org/pair': ")
    assert found.endswith(
        "it is an encoder-decoder model, not a causal language model: choose a model that generates text"
    )
    assert not list((tmp_path / "home").rglob("config.json"))


def test_a_disk_without_room_is_named_with_what_is_needed(monkeypatch, tmp_path):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 40 * 10**9))
    monkeypatch.setattr(prefetch.constants, "HF_HUB_CACHE", str(tmp_path / "not" / "yet" / "hub"))
    monkeypatch.setattr(prompts, "locate_cache", lambda revision="": tmp_path / "tables")

    def lacking(model: int, dataset: int) -> list[str]:
        downloads = [[prefetch.Download("x", None, [], size)] for size in (model, dataset)]
        return prefetch.check_space(prefetch.Plan(*downloads, [], []))

    assert lacking(39 * 10**9, 0) == []
    (message,) = lacking(78_300_000_000, 0)
    assert "not/yet/hub' needs 78.3 GB but has only 40.0 GB free: " in assert_one_line(message)
    assert lacking(10**9, 13 * 10**9) == []  # of a data set its files and twice that for the tables
    (message,) = lacking(10**9, 14 * 10**9)
    assert "needs 43.0 GB but has only" in message


def test_what_does_not_fit_is_refused_before_anything_is_fetched(monkeypatch, tmp_path):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 1000))
    monkeypatch.setattr(prefetch, "plan_model", lambda *_: prefetch.Download("org/x", None, ["config.json"], 2000))
    plan = prefetch.plan_downloads([{"model_name": "org/x", "dataset_name": "math"}])
    assert len(plan.refusals) == 1
    assert "needs 2.0 kB but has only" in plan.refusals[0]


def test_without_a_network_prefetching_says_that_it_needs_one(tmp_path):
    grid = write_grid(tmp_path / "grid.yml", ["org/tiny"], ["gsm8k"])
    done = run_prefetch(grid, hub.clean_environment(tmp_path / "home", HF_HUB_OFFLINE="1"))
    assert list_errors(done) == ["error: HF_HUB_OFFLINE is set, but prefetching needs the Hub: unset it"]
    done = run_prefetch(grid, hub.clean_environment(tmp_path / "home", HF_ENDPOINT="http://127.0.0.1:9"))
    said = list_errors(done)[0]
    assert said == (
        "error: model 'org/tiny' is not on this machine, and the Hub cannot be reached (connection refused): check the "
        "model's name, or run this command on a machine that can reach the Hub, with the same cache folder (HF_HOME)"
    )
    said = list_errors(done)[1]
    assert said.startswith("error: data set gsm8k is not on this machine, and the Hub cannot be reached (")
    assert said.endswith(
        "): run this command on a machine that can reach the Hub, with the same cache folder (HF_HOME)"
    )


def test_without_a_network_a_data_set_points_to_prefetching(monkeypatch, tmp_path):
    """The library itself tries for half a minute."""

    def load_dataset(*_, **__):
        raise ConnectionError("Couldn't reach 'openai/gsm8k' on the Hub (LocalEntryNotFoundError)")

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
    with pytest.raises(OSError, match="data set gsm8k is not on this machine") as caught:
        prompts.load("gsm8k")
    line = assert_one_line(str(caught.value))
    assert "and the Hub cannot be reached (" in line
    assert line.endswith(
        "): run scripts/prefetch.py on a machine that can reach the Hub, with the same cache folder (HF_HOME)"
    )


def test_what_is_local_needs_nothing(tmp_path):
    tiny.save(tmp_path / "tiny", tiny.create_model(), tiny.create_tokenizer())
    (tmp_path / "mine.txt").write_text("a prompt\n")
    grid = write_grid(tmp_path / "grid.yml", [str(tmp_path / "tiny")], ["math", str(tmp_path / "mine.txt")])
    command = [sys.executable, "scripts/prefetch.py", str(grid)]  # once as users start it
    environment = hub.clean_environment(tmp_path / "home", HF_ENDPOINT="http://127.0.0.1:9")
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(": local, nothing to download\n") == 3
    assert "downloading" not in done.stderr


# What is fetched


@pytest.fixture(scope="module")
def fetched(tmp_path_factory) -> tuple[Path, hub.Server, list[subprocess.CompletedProcess]]:
    """The cache after the study's grid was fetched, the server, and three calls: refused, fetched, nothing to do."""
    home = tmp_path_factory.mktemp("home")
    with hub.serve(replicas.create_repositories(tmp_path_factory.getbasetemp())) as server:
        refused = run_prefetch(STUDY, server.environment(home))
        assert not [request for request in server.requests if "/resolve/" in request or "/storage/" in request]
        done = run_prefetch(STUDY, server.environment(home, HF_TOKEN=hub.TOKEN))
        files = server.files("HEAD")
        server.requests.clear()
        again = run_prefetch(STUDY, server.environment(home, HF_TOKEN=hub.TOKEN))
        assert not server.files() + server.files("HEAD")
    server.requests = files
    return home, server, [refused, done, again]


def test_gated_models_are_all_named_with_their_pages(fetched):
    _, server, (refused, *_) = fetched
    for name, message in zip((replicas.LLAMA, replicas.INSTRUCT), list_errors(refused), strict=True):
        assert f"model '{name}' is gated: ask for access at {server.endpoint}/{name}," in message


def test_the_study_is_fetched_with_one_bar_over_its_bytes(fetched):
    home, _, (_, done, again) = fetched
    assert done.returncode == again.returncode == 0, done.stderr
    bars = done.stderr.replace("\r", "\n").strip().splitlines()
    assert all(line.startswith("downloading: ") for line in bars if line)
    assert "downloading: 100%" in bars[-1]
    weights = sum(path.stat().st_size for path in (home / "hub").glob("models--*/blobs/*"))
    assert f"/{weights / 1e6:.0f}M " in bars[-1]
    assert f"to {home / 'hub'}, which has " in done.stdout
    assert again.stdout.count(": already downloaded\n") == 8
    assert "downloading" not in again.stderr


def test_only_what_is_needed_is_fetched(fetched):
    home, server, _ = fetched
    asked = [file for file in server.requests if not file.startswith("datasets/")]
    assert asked
    assert not [file for file in asked if "original/" in file or file.endswith(("README.md", "LICENSE"))]
    assert not [file for file in server.requests if replicas.MISTRAL in file and file.endswith(".bin")]
    assert not any(path.read_bytes() == replicas.JUNK for path in home.glob("hub/models--*/blobs/*"))
    assert server.leaks == []


def test_after_it_the_study_runs_without_a_network(fetched, tmp_path):
    environment = hub.clean_environment(fetched[0], HF_HUB_OFFLINE="1")
    measure_all(tmp_path / "results", environment, pinned=True)
    runs = results.list_runs(tmp_path / "results")
    assert len(runs) == 15
    for folder in runs:
        settings = results.load_info(folder)["settings"]
        assert settings["model"]["revision"] == replicas.REVISIONS[settings["model"]["id"]]


def test_a_run_by_the_command_runs_without_a_network(fetched, tmp_path):
    options = {"model_name": replicas.INSTRUCT, "model_revision": replicas.REVISIONS[replicas.INSTRUCT]}
    options |= {"dataset_name": "gsm8k", "prompt_format": "chat", "n_prompts": "2", "max_tokens": "3"}
    options |= {"dtype": "float32", "device": "cpu", "results_dir": str(tmp_path)}
    command = [sys.executable, "scripts/correlation_pipeline.py"]
    command += [word for name, value in options.items() for word in (f"--{name}", value)]
    environment = hub.clean_environment(fetched[0], HF_HUB_OFFLINE="1")
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    info = results.load_info(tmp_path / "gsm8k" / "Llama-3.1-8B-Instruct")
    assert info["settings"]["model"]["revision"] == options["model_revision"]
    assert info["tokens"] > 0


def test_without_its_revision_a_fetched_model_says_which_one_is_here(fetched):
    code = "import sys; from nucleoscope.models import tokenizers; tokenizers.load_tokenizer(sys.argv[1])"
    done = run_python(code, replicas.QWEN, environment=hub.clean_environment(fetched[0], HF_HUB_OFFLINE="1"))
    assert done.returncode != 0
    message = done.stderr.strip().splitlines()[-1]
    assert f"is cached only at {replicas.REVISIONS[replicas.QWEN]}, and HF_HUB_OFFLINE is set" in message


def test_what_breaks_off_is_named_the_others_are_fetched_and_the_next_call_fetches_the_rest(tmp_path):
    for name in ("sound", "broken"):
        tiny.save(tmp_path / name, tiny.create_model(), tiny.create_tokenizer())
    home = tmp_path / "home"
    old = home / "hub/models--org--broken/blobs/0123.4567.incomplete"  # of a process that was killed long ago
    young = old.with_name("89ab.cdef.incomplete")  # of one that may be at work
    old.parent.mkdir(parents=True)
    old.write_bytes(b"half")
    young.write_bytes(b"half")
    os.utime(old, (time.time() - 2 * ABANDONED,) * 2)
    grid = write_grid(tmp_path / "grid.yml", ["org/broken", "org/sound"], ["math"])
    with hub.serve({"org/sound": tmp_path / "sound", "org/broken": tmp_path / "broken"}) as server:
        environment = server.environment(home)
        server.faults["broken/model.safetensors"] = hub.Fault(after=10_000)
        (message,) = list_errors(run_prefetch(grid, environment, before=hub.AT_ONCE))
        assert message.startswith("error: the download of model 'org/broken' was interrupted")
        server.faults.clear()
        done = run_prefetch(grid, environment)
        assert done.returncode == 0, done.stderr
        assert "org/sound: already downloaded" in done.stdout
    assert sorted(home.rglob("*.incomplete")) == [young]
    code = "import sys; from nucleoscope import models; [models.load(name, 'float32', 'cpu') for name in sys.argv[1:]]"
    environment = hub.clean_environment(home, HF_HUB_OFFLINE="1")  # and without a revision: the branch is known
    assert run_python(code, "org/sound", "org/broken", environment=environment).returncode == 0


@pytest.mark.parametrize(("size", "text"), [(16e9, "16.0 GB"), (512e6, "512.0 MB"), (1500, "1.5 kB")])
def test_sizes_are_for_readers(size, text):
    assert prefetch.format_size(size) == text
