"""Kept weights of a .gguf file are those of the file; whatever happens to them, the file is read."""

import os
import subprocess
import sys
from pathlib import Path

import gguf as gguf_library
import pytest
import torch
from huggingface_hub import constants
from transformers import PreTrainedModel

import tiny
from nucleoscope.models import dequantized, loading


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache of the test's own."""
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "assets"))
    return tmp_path / "assets" / "nucleoscope" / "dequantized"


@pytest.fixture
def file(tmp_path):
    return save(tmp_path)


def save(folder, seed: int = 0) -> str:
    return tiny.save_gguf(folder / "tiny.gguf", tiny.create_model(seed=seed), tiny.create_tokenizer(bos=False))


def load(file, **options):
    return loading.load(str(file), **{"dtype": "float32", "device": "cpu"} | options).model


def refuse_reading(monkeypatch):
    """Makes dequantizing fail, so that only kept weights can be loaded."""

    def fail(**_):
        raise AssertionError("the file was dequantized again")

    monkeypatch.setattr(loading, "GgufConfig", fail)


def have_equal_weights(one, other) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(
        torch.equal(ours[name], theirs[name]) and ours[name].dtype == theirs[name].dtype for name in ours
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_second_load_has_the_weights_and_settings_of_the_first_without_reading_the_file(file, monkeypatch, dtype):
    first = load(file, dtype=dtype)
    refuse_reading(monkeypatch)
    second = load(file, dtype=dtype)
    assert have_equal_weights(first, second)
    assert second.generation_config.eos_token_id == first.generation_config.eos_token_id
    differing = {
        name
        for name, value in first.config.to_dict().items()
        if second.config.to_dict().get(name) != value and name not in ("_name_or_path", "architectures", "dtype")
    }
    assert not differing


def test_each_dtype_is_kept_for_itself(file, cache):
    assert load(file, dtype="bfloat16").dtype == torch.bfloat16
    assert load(file).dtype == torch.float32
    assert len(list(cache.iterdir())) == 2


def test_another_file_at_the_same_path_is_another_model(tmp_path, file):
    first = load(file)
    save(tmp_path, seed=1)
    assert not have_equal_weights(first, load(file))


def cut(weights: Path) -> None:
    weights.write_bytes(weights.read_bytes()[:1000])


def zero(weights: Path) -> None:
    content = weights.read_bytes()
    weights.write_bytes(content[:-1000] + bytes(1000))


def empty_config(weights: Path) -> None:
    (weights.parent / "config.json").write_text("{}")


@pytest.mark.parametrize("harm", [cut, zero, Path.unlink, empty_config])
def test_damaged_weights_are_read_from_the_file_and_kept_again(file, cache, monkeypatch, harm):
    first = load(file)
    (weights,) = cache.glob("*/model.safetensors")
    harm(weights)
    assert have_equal_weights(first, load(file))
    refuse_reading(monkeypatch)
    assert have_equal_weights(first, load(file))


def test_a_full_disk_costs_only_time(file, small_disk, monkeypatch):
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(small_disk))
    (small_disk / "filler").write_bytes(bytes(200_000))
    first = load(file)
    assert have_equal_weights(first, load(file))
    assert not list(small_disk.glob("nucleoscope/dequantized/*"))


def test_a_disk_that_cannot_be_written_to_costs_only_time(file, small_disk, small_disk_made_read_only, monkeypatch):
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(small_disk))
    small_disk_made_read_only()
    assert have_equal_weights(load(file), load(file))


def test_a_model_without_all_its_weights_is_refused_again_and_again(file, cache, monkeypatch):
    model, real = tiny.create_model(), gguf_library.GGUFWriter.add_tensor

    def leave_out(self, name, *args, **options):
        if "ffn_up" not in name:
            real(self, name, *args, **options)

    monkeypatch.setattr(gguf_library.GGUFWriter, "add_tensor", leave_out)
    tiny.save_gguf(file, model, tiny.create_tokenizer(bos=False))
    for _ in range(2):
        with pytest.raises(ValueError, match="weights are missing from model"):
            load(file)
    assert not list(cache.glob("*"))


def test_whatever_fails_while_weights_are_kept_the_model_is_loaded(file, cache, monkeypatch):
    def fail(*_, **__):
        raise ValueError("a library refuses")

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", fail)
    assert load(file).dtype == torch.float32
    assert not list(cache.glob("*"))


def test_what_another_process_is_writing_is_left_alone(file, cache):
    (cache / "partial-new").mkdir(parents=True)
    (cache / "partial-old").mkdir()
    os.utime(cache / "partial-old", (0, 0))
    load(file)
    dequantized.clear()
    assert [path.name for path in cache.iterdir()] == ["partial-new"]


def test_clearing_follows_no_links(file, cache, tmp_path):
    load(file)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "mine").write_text("kept")
    (cache / "link").symlink_to(tmp_path / "elsewhere")
    assert dequantized.clear() > 0
    assert (tmp_path / "elsewhere" / "mine").read_text() == "kept"
    assert [path.name for path in cache.iterdir()] == ["link"]


def test_others_may_read_what_this_user_may_let_them_read(file, cache):
    before = os.umask(0o022)
    try:
        load(file)
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in cache.glob("*/*")} == {0o644}


def test_a_model_above_the_limit_is_not_kept(file, cache, monkeypatch):
    monkeypatch.setattr(dequantized, "LIMIT", 1000)
    load(file)
    assert not list(cache.glob("*"))


def test_the_model_used_longest_ago_makes_room(tmp_path, cache, monkeypatch):
    files = []
    for seed in range(3):
        (tmp_path / str(seed)).mkdir()
        files.append(save(tmp_path / str(seed), seed))
    for age, file in zip((100, 200), files[:2], strict=True):
        before = set(cache.glob("*"))
        load(file)
        (new,) = set(cache.glob("*")) - before
        os.utime(new, (1e9 - age, 1e9 - age))
    load(files[1])  # used now, so the first is the oldest
    kept = set(cache.glob("*"))
    size = sum(path.stat().st_size for path in cache.rglob("*") if path.is_file())
    monkeypatch.setattr(dequantized, "LIMIT", size + 1000)
    load(files[2])
    assert len(kept - set(cache.glob("*"))) == 1
    refuse_reading(monkeypatch)
    load(files[1])


def test_the_command_frees_what_is_kept(file, cache):
    load(file)
    script = Path(__file__).parents[2] / "scripts" / "clear_cache.py"
    environment = {**os.environ, "HF_ASSETS_CACHE": str(cache.parents[1])}
    shown = subprocess.run([sys.executable, script], capture_output=True, text=True, env=environment, check=True)
    assert shown.stdout.startswith("freed: ")
    assert not list(cache.glob("*"))
