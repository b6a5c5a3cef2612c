"""Whether models and data sets can be loaded, asked once for all runs of a grid."""

import json

import pytest

import tiny
from nucleoscope import hub
from nucleoscope.data import availability, prefetch


@pytest.fixture
def asked(monkeypatch) -> list[str]:
    """The names that the Hub is asked about; it has none of them."""
    names = []

    def refuse(name, *_):
        names.append(name)
        raise FileNotFoundError(f"no {name}\non the Hub")

    monkeypatch.setattr(prefetch, "plan_model", refuse)
    monkeypatch.setattr(prefetch, "plan_dataset", refuse)
    monkeypatch.setattr(availability.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(availability.prompts, "is_cached", lambda name: name == "xsum")
    return names


def test_each_model_and_data_set_is_asked_about_once_and_every_run_gets_all_its_reasons(asked):
    models, datasets = ("a/one", "a/two"), ("gsm8k", "xsum", "math")
    runs = {f"{m} on {d}": {"model_name": m, "dataset_name": d} for m in models for d in datasets}
    found = availability.find_unavailable(runs)
    assert sorted(asked) == ["a/one", "a/two", "gsm8k"]
    assert found == {
        key: [f"no {run['model_name']} on the Hub", *["no gsm8k on the Hub"] * (run["dataset_name"] == "gsm8k")]
        for key, run in runs.items()
    }


def test_what_is_local_or_in_the_cache_is_available(asked, tmp_path):
    model = tiny.save(tmp_path / "model", tiny.create_model(), tiny.create_tokenizer())
    (tmp_path / "lines.jsonl").write_text(json.dumps({"prompt": "a"}))
    runs = {"first": {"model_name": model, "dataset_name": str(tmp_path / "lines.jsonl")}}
    runs["second"] = {"model_name": model, "dataset_name": "xsum"}
    assert availability.find_unavailable(runs) == {}
    assert asked == []


@pytest.mark.parametrize(
    ("run", "reason"),
    [
        ({"model_name": "none.gguf", "dataset_name": "math"}, "file 'none.gguf' does not exist"),
        ({"model_name": "a/one", "dataset_name": "math"}, "model 'a/one' is not completely in the cache "),
        ({"model_name": "SmolLM2-135M-Instruct", "dataset_name": "gsm8k"}, "data set 'gsm8k' is not in the cache "),
        ({"model_name": "SmolLM2-135M-Instruct", "dataset_name": "poems"}, "unknown data set 'poems'"),
    ],
)
def test_runs_that_will_not_use_the_network_find_only_what_is_in_the_cache(asked, run, reason):
    assert availability.find_unavailable({"run": run}, offline=True)["run"][0].startswith(reason)
    assert asked == []


@pytest.mark.parametrize(
    ("files", "complete"),
    [
        (["config.json"], False),
        (["config.json", "model.safetensors"], True),
        (["config.json", "pytorch_model.bin"], True),
        (["model.safetensors"], False),
        (["config.json", "model.safetensors.index.json", "one.safetensors"], False),
        (["config.json", "model.safetensors.index.json", "one.safetensors", "two.safetensors"], True),
    ],
)
def test_a_model_is_in_the_cache_if_all_its_weights_are(tmp_path, monkeypatch, files, complete):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    snapshot = tmp_path / "models--a--one/snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs/main").write_text("0" * 40)
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    for file in files:
        (snapshot / file).write_text(json.dumps(index))
    assert hub.is_cached("a/one") == complete


def test_without_a_network_the_reason_names_it(asked, monkeypatch):
    monkeypatch.setattr(availability.constants, "HF_HUB_OFFLINE", True)
    found = availability.find_unavailable({"run": {"model_name": "a/one", "dataset_name": "math"}})
    assert "HF_HUB_OFFLINE is set" in found["run"][0]
    assert asked == []
