"""The study's fifteen runs from a Hub on this machine: cold, from the cache, and what happens when a download fails.

Each in a process of its own, as the libraries read their environment once; `replicas` are the models
and data sets, under the real names.
"""

import json
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import torch

import hub
import replicas
import tiny
from messages import assert_one_line
from nucleoscope.data import prompts
from nucleoscope.models import loading
from nucleoscope.store import results
from preloaded import run_python, start_server

pytestmark = pytest.mark.long  # all, because they share what takes long to set up
ROOT = Path(__file__).parents[2]
TEXTS = ["The cat sat on 1234 mats.", " two  spaces\n\nand lines", "naïve 🦊 שלום 東京", ""]

# As notebooks/measure.py does it, with each model loaded once
RUNS = """
import json, sys
sys.path.insert(0, "tests")
import tiny
from nucleoscope.data import prompts
from nucleoscope.measure import model_facts
from nucleoscope.measure.runs import complete_run
from nucleoscope.models import loading
from nucleoscope.store import results, run_folder
asked, out = json.loads(sys.argv[1]), sys.argv[2]
facts = {}
for name, revision in asked["models"]:
    model, tokenizer, identity = loading.load(name, "float32", "cpu", revision=revision)
    facts[name] = {
        "class": type(model).__name__,
        "config": model.config.to_dict(),
        "ends": sorted(model_facts.find_end_tokens(model, tokenizer)),
        "ids": [tokenizer(text)["input_ids"] for text in asked["texts"]],
        "texts": [tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) for text in asked["texts"]],
        "chat": tokenizer.chat_template and tokenizer.apply_chat_template(
            [{"role": "user", "content": "Hi"}], add_generation_prompt=True, tokenize=False),
        "frequencies": model.model.rotary_emb.inv_freq.tolist(),
        "weights": tiny.hash_weights(model),
    }
    for dataset in asked["datasets"]:
        data = prompts.load(dataset, 3)
        settings = {"model": identity, "dataset": data.identity}
        run = run_folder.RunFolder(results.locate_run(out, dataset, name), settings)
        with run:
            complete_run(run, model, tokenizer, data.texts, max_tokens=4, seed=1, variants="none")
json.dump(facts, open(out + "/facts.json", "w"))
"""


def measure_all(out: Path, environment: dict[str, str], pinned: bool) -> dict:
    """Measures the fifteen runs below ``out``; what the models are like. ``pinned``: asked for by their commits."""
    asked = [(name, revision if pinned else None) for name, revision in replicas.REVISIONS.items()]
    work = {"models": asked, "datasets": list(prompts.HUB), "texts": TEXTS}
    out.mkdir()
    done = run_python(RUNS, json.dumps(work), str(out), environment=environment)
    assert done.returncode == 0, done.stderr
    return json.loads((out / "facts.json").read_text())


def assert_same_runs(one: Path, other: Path) -> None:
    folders = results.list_runs(one)
    assert len(folders) == 15
    assert [folder.relative_to(one) for folder in folders] == [f.relative_to(other) for f in results.list_runs(other)]
    for folder in folders:
        there = other / folder.relative_to(one)
        assert results.load_info(folder)["settings"] == results.load_info(there)["settings"]
        assert_same(results.load(folder / results.MEASUREMENTS), results.load(there / results.MEASUREMENTS))


def assert_same(one: list[dict], other: list[dict]) -> None:
    assert len(one) == len(other) > 0
    for left, right in zip(one, other, strict=True):
        assert left["prompt"] == right["prompt"]
        assert left["tokens"].tolist() == right["tokens"].tolist()
        assert all(torch.equal(a, b) for a, b in zip(left["top_p_tokens"], right["top_p_tokens"], strict=True))
        assert all(left[name] == right[name] for name in tiny.QUANTITIES)


@pytest.fixture(scope="session")
def study(tmp_path_factory) -> dict[str, hub.Repository]:
    return replicas.create_repositories(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def cold(study, tmp_path_factory) -> tuple[Path, Path, dict, hub.Server]:
    """The fifteen runs from an empty cache: the cache, the results, what the models are like, and the server."""
    home, out = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("cold") / "results"
    with hub.serve(study) as server:
        facts = measure_all(out, server.environment(home, HF_TOKEN=hub.TOKEN), pinned=False)
    return home, out, facts, server


def test_the_fifteen_runs_are_measured_from_an_empty_cache_at_the_studys_revisions(cold):
    _, out, _, server = cold
    for folder in results.list_runs(out):
        settings = results.load_info(folder)["settings"]
        assert settings["model"]["revision"] == replicas.REVISIONS[settings["model"]["id"]]
        pinned = {entry.path: entry.revisions[0] for entry in prompts.HUB.values()}
        pinned["EdinburghNLP/xsum"] = replicas.PARQUET  # the commit behind the branch, which may move
        assert settings["dataset"]["revision"] == pinned[settings["dataset"]["id"]]
        records = results.load(folder / results.MEASUREMENTS)
        assert len(records) == 3
        assert sum(len(record["tokens"]) for record in records) > 6
    assert server.leaks == []  # the token stays with the Hub


def test_the_fifteen_runs_are_the_same_from_the_cache_without_a_network(cold, tmp_path):
    home, out, facts, _ = cold
    environment = hub.clean_environment(home, HF_HUB_OFFLINE="1")
    assert measure_all(tmp_path / "offline", environment, pinned=True) == facts
    assert_same_runs(out, tmp_path / "offline")


@pytest.mark.parametrize("name", replicas.KINDS)
def test_a_model_is_the_one_that_was_saved(cold, study, name):
    """Class, heads, vocabulary, ends of text, rope and weights, through the configuration's old form."""
    facts, kind = cold[2][name], replicas.KINDS[name]
    assert facts["class"] == kind.model.__name__
    for field in ("num_attention_heads", "num_key_value_heads", "vocab_size", "tie_word_embeddings", "rms_norm_eps"):
        assert facts["config"][field] == kind.fields[field], field
    assert facts["config"].get("sliding_window") == kind.fields.get("sliding_window")
    ends = {kind.fields["eos_token_id"]} if isinstance(kind.fields["eos_token_id"], int) else set(replicas.ENDS)
    extra = kind.generation["eos_token_id"]
    assert facts["ends"] == sorted(ends.union(extra if isinstance(extra, list) else [extra]))
    folder = study[name].commits[replicas.REVISIONS[name]]
    assert facts["weights"] == tiny.hash_weights(loading.load(str(folder), "float32", "cpu").model)


def test_rope_is_as_each_configuration_says(cold):
    """Of 4 numbers a head there are two frequencies: 1, and theta^-1/2, which Llama 3.1 slows down smoothly."""
    for name in (replicas.DEEPSEEK, replicas.MISTRAL, replicas.QWEN):
        expected = [1, replicas.KINDS[name].fields["rope_theta"] ** -0.5]
        assert cold[2][name]["frequencies"] == pytest.approx(expected, rel=1e-6)
    slow = 500_000**-0.5
    share = (8192 * slow / (2 * torch.pi) - 1) / (4 - 1)  # between one and four turns in the original context
    assert 0 < share < 1
    for name in (replicas.LLAMA, replicas.INSTRUCT):
        expected = [1, (1 - share) * slow / 8 + share * slow]
        assert cold[2][name]["frequencies"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", replicas.KINDS)
def test_a_tokenizer_is_the_one_that_was_saved(cold, name):
    facts, core = cold[2][name], replicas.create_tokenizer(name)
    # DeepSeek's tokenizer.json puts nothing in front; that its tokenizer_config.json asks for it must count.
    front = [100000] if name == replicas.DEEPSEEK else []
    assert facts["ids"] == [front + core.encode(text).ids for text in TEXTS]
    starts = {replicas.DEEPSEEK: 100000, replicas.LLAMA: 128000, replicas.INSTRUCT: 128000, replicas.MISTRAL: 1}
    assert [ids[:1] for ids in facts["ids"]] == [[starts[name]] if name in starts else ids[:1] for ids in facts["ids"]]
    assert facts["texts"] == TEXTS
    chats = {
        replicas.INSTRUCT: "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        replicas.QWEN: "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    }
    assert facts["chat"] == chats.get(name)


def test_a_run_by_the_command_is_the_same(cold, study, tmp_path):
    options = {"model_name": replicas.MISTRAL, "model_revision": replicas.REVISIONS[replicas.MISTRAL]}
    options |= {"dataset_name": "xsum", "prompt_format": "raw", "n_prompts": "3", "max_tokens": "4", "seed": "1"}
    options |= {"dtype": "float32", "device": "cpu", "results_dir": str(tmp_path / "results")}
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    command = [sys.executable, "scripts/correlation_pipeline.py", *words]
    with hub.serve(study) as server:
        environment = server.environment(tmp_path / "home")
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    one, other = (folder / "xsum" / "Mistral-7B-v0.1" for folder in (tmp_path / "results", cold[1]))
    assert_same(results.load(one / results.MEASUREMENTS), results.load(other / results.MEASUREMENTS))
    there = results.load_info(other)["settings"]
    assert {key: results.load_info(one)["settings"][key] for key in there} == there


# Revisions

OLD, NEW = "a1" * 20, "b2" * 20
LOAD = f"""{hub.AT_ONCE}
import json, sys
sys.path.insert(0, "tests")
import tiny
from nucleoscope.models import loading
answers = []
for name, revision in json.loads(sys.argv[1]):
    try:
        model, _, identity = loading.load(name, "float32", "cpu", revision=revision)
        answers.append([identity, tiny.hash_weights(model)])
    except Exception as error:
        answers.append([type(error).__name__, str(error)])
print(json.dumps(answers))
"""


def load_names(names: list[tuple[str, str | None]], environment: dict[str, str]) -> list:
    """What `loading.load` says to each name and revision: an identity and a hash, or an error's type and message."""
    done = run_python(LOAD, json.dumps(names), environment=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_revision_is_taken_whole_and_named_in_the_identity(tmp_path):
    for seed, place in enumerate(("old", "new")):
        tiny.save(tmp_path / place, tiny.create_model(seed=seed), tiny.create_tokenizer())
    both = {OLD: tmp_path / "old", NEW: tmp_path / "new"}
    repository = hub.Repository(both, {"main": NEW, "v1": OLD})
    home, asked = tmp_path / "home", [OLD, None, "v1", OLD[:7], "main", "c3" * 20, "no-branch"]
    with hub.serve({"org/two": repository}) as server:
        online = load_names([("org/two", revision) for revision in asked], server.environment(home))
    offline = load_names([("org/two", revision) for revision in asked], hub.clean_environment(home, HF_HUB_OFFLINE="1"))
    revisions = [identity["revision"] for identity, _ in online[:5]]
    assert revisions == [OLD, NEW, OLD, OLD, NEW]
    weights = {commit: tiny.hash_weights(loading.load(str(both[commit]), "float32", "cpu").model) for commit in both}
    assert weights[OLD] != weights[NEW]
    assert [found for _, found in online[:5]] == [weights[commit] for commit in revisions]
    assert offline[:5] == online[:5]
    for revision, (kind, message) in zip(asked[5:], online[5:], strict=True):
        assert kind == "FileNotFoundError"
        assert f"model 'org/two' has no revision '{revision}': see" in assert_one_line(message)
    for kind, message in offline[5:]:
        assert kind == "ConnectionError"
        assert f"is cached only at {OLD} and {NEW}, and HF_HUB_OFFLINE is set" in assert_one_line(message)


@pytest.mark.parametrize("kind", ["the packaged model", "a file", "a folder"])
def test_only_models_on_the_hub_have_revisions(tmp_path, kind):
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    tiny.save(tmp_path / "tiny", tiny.create_model(), tiny.create_tokenizer())
    name = {
        "the packaged model": loading.PACKAGED,
        "a file": str(tmp_path / "x.gguf"),
        "a folder": str(tmp_path / "tiny"),
    }
    with pytest.raises(
        ValueError, match=f"is {kind}: omit model_revision, because only models on the Hub have revisions"
    ) as caught:
        loading.load(name[kind], revision=OLD)
    assert assert_one_line(str(caught.value)).startswith(f"model_revision is '{OLD}', but '{name[kind]}'")


# Downloads that fail

FAULTS = {  # the way a download fails -> what the server does, and words of the message
    "slow": (hub.Fault(after=30_000, stall=60), "was interrupted (ReadTimeout"),
    "cut": (hub.Fault(after=30_000), "was interrupted (RemoteProtocolError"),
    "early": (hub.Fault(after=0), "was interrupted (RemoteProtocolError"),
    "parts": (hub.Fault(after=100), "was interrupted (RemoteProtocolError"),  # of the last of several files
}
NAMES = [(f"org/{name}", None) for name in (*FAULTS, "killed")]


def save_faulty(folder: Path) -> dict[str, hub.Fault]:
    """Models that will break off and one that will be resumed, and their faults."""
    for name in (*FAULTS, "resumed", "killed"):
        tiny.save(folder / name, tiny.create_model(), tiny.create_tokenizer())
    (folder / "parts" / "model.safetensors").unlink()
    tiny.create_model().save_pretrained(folder / "parts", max_shard_size="60kB")
    last = sorted(path.name for path in (folder / "parts").glob("model-*.safetensors"))[-1]
    faults = {f"{name}/model.safetensors": fault for name, (fault, _) in FAULTS.items()}
    faults |= {f"parts/{last}": FAULTS["parts"][0], "killed/model.safetensors": hub.Fault(30_000, stall=60, times=9)}
    return faults | {"resumed/model.safetensors": hub.Fault(after=30_000, times=1)}


def kill_a_download(name: str, server: hub.Server, environment: dict[str, str]) -> None:
    """Begins to load a model and kills the process in the middle of the weights, where the server makes it wait."""
    with ThreadPoolExecutor() as pool:
        run = pool.submit(run_python, LOAD, json.dumps([(name, None)]), environment=environment)
        deadline = time.monotonic() + 100
        while server.faults["killed/model.safetensors"].times == 9 and time.monotonic() < deadline:
            time.sleep(0.05)
        for process in psutil.Process(start_server().pid).children():
            process.kill()
        assert run.result().returncode == -signal.SIGKILL
    assert server.faults["killed/model.safetensors"].times == 8, "the download was not begun"


def test_a_download_that_breaks_off_leaves_no_half_model_and_the_next_one_succeeds(tmp_path):
    """A line that is cut, a server that falls silent, one that ends before the first byte, and a killed process."""
    home = tmp_path / "home"
    offline = hub.clean_environment(home, HF_HUB_OFFLINE="1")
    faults = save_faulty(tmp_path / "org")
    with hub.serve({f"org/{path.name}": path for path in (tmp_path / "org").iterdir()}) as server:
        server.faults |= faults
        online, hasty = server.environment(home), server.environment(home, HF_HUB_DOWNLOAD_TIMEOUT="1")
        *broken, resumed = load_names([*NAMES[1:-1], ("org/resumed", None)], online)
        broken = [*load_names(NAMES[:1], hasty), *broken]
        assert resumed[0]["source"] == "hub"  # the library tries again
        assert not list(home.rglob("*.incomplete"))
        for name, (kind, message) in zip(FAULTS, broken, strict=True):
            assert kind == "ConnectionError"
            assert FAULTS[name][1] in assert_one_line(message)
            assert f"the download of model 'org/{name}'" in message
        kill_a_download("org/killed", server, server.environment(home))
        assert len(list(home.rglob("*.incomplete"))) == 1
        for (name, _), (kind, message) in zip(NAMES, load_names(NAMES, offline), strict=True):
            assert kind == "ConnectionError"
            assert f"model '{name}' is incomplete in the cache" in assert_one_line(message)
            assert "scripts/prefetch.py" in message
        server.faults.clear()
        before = len(server.requests)
        sound = load_names(NAMES, online)
        fetched = [request for request in server.requests[before:] if request.startswith("GET /storage/")]
        assert len(fetched) == len(NAMES)  # of the model in parts only the last: what was whole has stayed
    assert [identity["id"] for identity, _ in sound] == [name for name, _ in NAMES]
    assert {weights for _, weights in sound} == {resumed[1]}
    assert load_names(NAMES, offline) == sound


DATA = f"""{hub.AT_ONCE}
import json
from nucleoscope.data import prompts
for name in prompts.HUB:
    try:
        print(json.dumps(prompts.load(name, 1)))
    except OSError as error:
        print(json.dumps(str(error)))
"""


def read_prompts(environment: dict[str, str]) -> list:
    """What `prompts.load` says to the three names in another process: prompts, or an error's message."""
    done = run_python(DATA, environment=environment)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_data_set_is_the_revision_that_was_asked_for_or_none(study, tmp_path):
    """Offline, and where the Hub fails, the library takes any revision that its cache has; here it must not."""
    home = tmp_path / "home"
    newest = "import datasets; print(datasets.load_dataset('openai/gsm8k', 'main')['test'][0])"
    offline = hub.clean_environment(home, HF_HUB_OFFLINE="1")
    with hub.serve(study) as server:
        online = server.environment(home)
        assert "later question 0" in run_python(newest, environment=online).stdout
        server.faults["main/test-00000-of-00001.parquet"] = hub.Fault(after=500)
        assert "cannot load data set gsm8k: tried openai/gsm8k" in assert_one_line(read_prompts(online)[0])
        assert "HF_HUB_OFFLINE is set: unset HF_HUB_OFFLINE, or run scripts/prefetch.py on" in assert_one_line(
            read_prompts(offline)[0]
        )
        server.faults.clear()
        first, second = read_prompts(online), read_prompts(online)
    assert first[0][0] == ["question 0 of main test: the cat sat on the mat, "]
    assert first == second == read_prompts(offline)


def test_a_data_set_that_is_refused_says_so_in_one_line(study, tmp_path):
    refusals = {"openai/gsm8k": hub.GATED, "euclaise/writingprompts": hub.UNKNOWN, "EdinburghNLP/xsum": hub.DISABLED}
    with hub.serve({f"datasets/{name}": refusal for name, refusal in refusals.items()}) as server:
        said = read_prompts(server.environment(tmp_path))
    for (name, entry), message, word in zip(prompts.HUB.items(), said, ("gated", "exist", "disabled"), strict=True):
        assert assert_one_line(message).startswith(
            f"cannot load data set {name}: tried {entry.path} on the Hub; revision "
        )
        assert word in message
