"""Similarity in context on disk: written text by text, resumed after any kill, and never of other measurements."""

import os
import re
import shutil
import signal
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import kills
import tiny
from messages import assert_one_line
from nucleoscope.measure import context as measure_context
from nucleoscope.measure.context import complete_context
from nucleoscope.measure.runs import complete_run
from nucleoscope.stats import what_or_how
from nucleoscope.store import context, locking, parts, results, run_folder

PROMPTS = ["the cat", "a long and winding road", "on the other hand", "she said that"]
SETTINGS = {"model_name": "tiny", "dataset_name": "cats", "max_tokens": 6, "prompt_format": "raw", "seed": 0}
OPTIONS = {"candidates": 4, "threshold": 0.5}
MODEL = tiny.create_model(eos_token_id=None), tiny.create_tokenizer(eos=False)


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> Path:
    """The folder of a run that is measured."""
    return tiny.measure(tmp_path_factory.mktemp("results") / "cats" / "tiny", MODEL, PROMPTS, SETTINGS)


@pytest.fixture
def folder(measured, tmp_path) -> Path:
    return shutil.copytree(measured, tmp_path / "run")


def compare(folder: Path, load=lambda: MODEL, **options) -> None:
    """What notebooks/context.py does."""
    run = context.ContextFolder(folder, **OPTIONS | options)
    if not run.finished:
        with run:
            complete_context(run, load, results.load_info(folder), what_or_how.tabulate, progress=False)


def refuse_to_load():
    raise AssertionError("the model was loaded")


def read_all(folder: Path) -> dict[str, list]:
    """All that was found, but not how long it took."""
    rows, matrices = context.load_rows(folder), context.load_matrices(folder)
    return {name: rows[name].tolist() for name in rows} | {name: matrices[name].tolist() for name in matrices}


# What is there


def test_each_token_with_a_choice_has_a_row_and_a_matrix(folder):
    compare(folder)
    rows, matrices = context.load_rows(folder), context.load_matrices(folder)
    records = results.load(folder / results.MEASUREMENTS)
    wanted = [
        (prompt, step, min(4, len(ids)))
        for prompt, record in enumerate(records)
        for step, ids in enumerate(record["top_p_tokens"])
        if len(ids) > 1
    ]
    assert len(wanted) > 10
    assert tuple(rows.columns) == context.COLUMNS
    assert list(rows[["prompt", "step", "m"]].itertuples(index=False, name=None)) == wanted
    assert rows.notna().all().all()
    for row in rows.itertuples():
        ids, shares, matrix = context.find_matrix(matrices, row.prompt, row.step)
        record = records[row.prompt]
        assert ids.tolist() == record["top_p_tokens"][row.step][: row.m].tolist()
        probs = record["top_p_probs"][row.step][: row.m].double()
        np.testing.assert_allclose(shares, probs / probs.sum(), rtol=1e-6)
        np.testing.assert_array_equal(matrix, matrix.T)
        above = matrix[np.triu_indices(row.m, 1)]
        assert above.mean() == pytest.approx(row.mean_similarity, abs=5e-4)  # the matrix is float16
        entropy = -(shares * np.log(shares)).sum()
        assert row.entropy_what + row.entropy_how == pytest.approx(entropy, abs=1e-6)
        assert 1 <= row.continuations <= np.exp(entropy) + 1e-9
        assert row.continuations == pytest.approx(np.exp(row.similarity_entropy), rel=1e-12)
    assert context.find_matrix(matrices, 99, 0) is None
    assert {path.name for path in folder.iterdir()} == {
        *("candidates.parquet", "measurements.pt", "tokens.parquet", "run.json"),
        *results.CONTEXT_FILES,
    }
    content = torch.load(folder / "context.pt", weights_only=True)
    assert (content["similarities"].dtype, content["context_candidates"]) == (torch.float16, 4)
    about = results.read_json(folder / "context.json")
    assert (about["ways"], about["tokens"], about["context_threshold"]) == (["tree"], len(wanted), 0.5)


def test_the_measurements_are_as_they_were(folder):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    compare(folder)
    assert {name: (folder / name).read_bytes() for name in before} == before
    with run_folder.RunFolder(folder, SETTINGS) as run:
        assert run.finished


def test_the_columns_are_those_that_are_computed():
    assert context.VALUES == measure_context.VALUES
    assert context.SPLIT == what_or_how.SPLIT
    assert {*context.PART, *context.OTHERS} == set(measure_context.Comparison._fields)


# Settings


def test_what_is_finished_is_not_compared_again(folder):
    compare(folder)
    compare(folder, refuse_to_load)
    assert context.find_missing(folder, **OPTIONS) is None


def test_candidates_are_compared_in_as_much_memory_as_the_setting_says(folder, monkeypatch):
    create, given = measure_context.create_reader, []
    monkeypatch.setattr(measure_context, "create_reader", lambda *args: (given.append(args[2:]), create(*args))[1])
    with context.ContextFolder(folder, **OPTIONS) as run:
        info = results.load_info(folder)
        complete_context(run, lambda: MODEL, info, what_or_how.tabulate, memory=7, progress=False)
    assert (7,) in given


def test_another_threshold_splits_the_same_matrices_without_the_model(folder):
    compare(folder)
    before = read_all(folder)
    compare(folder, refuse_to_load, threshold=0.95)
    after = read_all(folder)
    assert {name for name in before if before[name] != after[name]} <= set(context.SPLIT)
    assert before["groups"] != after["groups"]
    assert results.read_json(folder / "context.json")["context_threshold"] == 0.95
    assert results.read_json(folder / "context.json")["ways"] == ["tree"]


def test_another_number_of_candidates_is_refused_unless_it_may_overwrite(folder):
    compare(folder)
    with pytest.raises(FileExistsError) as caught:
        compare(folder, candidates=3)
    assert "context_candidates 4, not 3" in assert_one_line(str(caught.value))
    compare(folder, candidates=3, overwrite=True)
    assert context.load_rows(folder)["m"].max() == 3


# Other measurements


def measure_again(folder: Path, seed: int = 1) -> None:
    with run_folder.RunFolder(folder, SETTINGS | {"seed": seed}, overwrite=True) as run:
        complete_run(run, *MODEL, PROMPTS, progress=False, max_tokens=6, seed=seed)


def test_new_measurements_remove_what_was_found_about_the_old_ones(folder):
    compare(folder)
    measure_again(folder)
    assert not {path.name for path in folder.iterdir()} & set(results.CONTEXT_FILES)
    with pytest.raises(ValueError, match=r"has no context\.parquet") as caught:
        context.load_rows(folder)
    assert_one_line(str(caught.value))


def test_files_about_other_measurements_are_named_and_replaced(folder, tmp_path):
    compare(folder)
    for name in results.CONTEXT_FILES:
        shutil.copy(folder / name, tmp_path / name)
    measure_again(folder)
    for name in results.CONTEXT_FILES:
        shutil.copy(tmp_path / name, folder / name)
    for load in (context.load_rows, context.load_matrices):
        with pytest.raises(ValueError, match="belongs to other measurements") as caught:
            load(folder)
        assert_one_line(str(caught.value))
    assert "other measurements" in context.find_missing(folder, **OPTIONS)
    compare(folder, candidates=3)  # which would be refused if they belonged to these measurements
    assert len(context.load_rows(folder))


def test_parts_about_other_measurements_are_not_used(folder):
    with context.ContextFolder(folder, **OPTIONS) as run:
        run.save_part(0, dict.fromkeys((*context.PART, *context.OTHERS)))
    measure_again(folder)
    compare(folder)
    assert len(context.load_rows(folder))


# Damage


@pytest.mark.parametrize("name", results.CONTEXT_FILES)
def test_a_file_that_is_cut_off_is_replaced(folder, name):
    compare(folder)
    expected = read_all(folder)
    os.truncate(folder / name, (folder / name).stat().st_size // 2)
    assert name in context.find_missing(folder, **OPTIONS)
    compare(folder)
    assert read_all(folder) == expected


def test_a_damaged_part_is_removed_and_compared_again(folder, monkeypatch):
    compare(folder)
    expected = read_all(folder)
    for name in results.CONTEXT_FILES:
        (folder / name).unlink()
    run = context.ContextFolder(folder, **OPTIONS)
    finish = context.ContextFolder.finish

    def damage(self, *arguments):
        path = self.parts / "000002.pt"
        content = bytearray(path.read_bytes())
        content[content.index(torch.load(path)["shares"].numpy().tobytes())] ^= 255
        path.write_bytes(content)
        finish(self, *arguments)

    monkeypatch.setattr(context.ContextFolder, "finish", damage)
    with pytest.raises(ValueError, match=r"000002\.pt' is damaged, and was removed") as caught:
        compare(folder)
    assert_one_line(str(caught.value))
    monkeypatch.undo()
    assert not (run.parts / "000002.pt").exists()
    compare(folder)
    assert read_all(folder) == expected


@pytest.mark.parametrize(
    "name", ["notes.txt", "000000.pt", "settings.json", ".download.part", ".000000.pt.host.12.part"]
)
def test_a_foreign_file_among_the_parts_is_kept_and_named(folder, name):
    """A name like those of parts does not make it one, without the settings of a second pass beside it."""
    other = folder / results.CONTEXT_PARTS / name
    other.parent.mkdir()
    other.write_text('{"theme": "dark"}')
    with pytest.raises(
        FileExistsError, match=rf"contains '{re.escape(name)}', which was not written by Nucleoscope"
    ) as caught:
        compare(folder)
    assert_one_line(str(caught.value))
    assert other.read_text() == '{"theme": "dark"}'


def test_parts_of_a_pass_that_is_to_replace_what_is_there_are_kept(folder):
    compare(folder)
    with context.ContextFolder(folder, 3, OPTIONS["threshold"], overwrite=True) as run:
        shutil.copy(folder / results.RUN_INFO, run.parts / "000000.pt")
    before = {path.name: path.read_bytes() for path in run.parts.iterdir()}
    compare(folder, refuse_to_load, threshold=0.9)
    assert {path.name: path.read_bytes() for path in run.parts.iterdir()} == before
    assert len(before) == 2


def test_a_run_that_is_not_measured_is_refused(tmp_path):
    for refuse in (lambda: context.ContextFolder(tmp_path, **OPTIONS), lambda: parts.check(tmp_path)):
        with pytest.raises(FileNotFoundError, match="measure the run first") as caught:
            refuse()
        assert_one_line(str(caught.value))


def test_a_second_process_is_refused(folder, monkeypatch):
    monkeypatch.setattr(locking, "LOCK_SECONDS", 0)
    with context.ContextFolder(folder, **OPTIONS), pytest.raises(BlockingIOError) as caught:
        compare(folder)
    assert "is being written by process" in assert_one_line(str(caught.value))


# Kills


def run_killed(folder: Path, operation: int | None, half: bool = False, **options) -> tuple[int, int]:
    """Compares in a forked process that is killed at a file operation: the signal that ended it, and its operations."""
    return kills.call_killed(partial(compare, folder, **options), folder, operation, half)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As in the forked processes: sums in another order differ in their last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def undisturbed(measured, tmp_path_factory) -> tuple[dict[str, list], int]:
    """What is found without a kill, and the number of file operations."""
    folder = shutil.copytree(measured, tmp_path_factory.mktemp("straight") / "run")
    compare(folder)  # in this process too: forked ones find everything imported
    expected = read_all(folder)
    for name in results.CONTEXT_FILES:
        (folder / name).unlink()
    signalled, operations = run_killed(folder, None)
    assert (signalled, read_all(folder)) == (0, expected)
    assert operations > 25
    return expected, operations


@pytest.mark.parametrize("share", [place / 19 for place in range(20)])
def test_twenty_kills_change_nothing(folder, undisturbed, share):
    expected, operations = undisturbed
    operation = 1 + round(share * (operations - 1))
    assert run_killed(folder, operation, half=bool(operation % 2))[0] == signal.SIGKILL
    whole = context.find_missing(folder, **OPTIONS) is None
    assert not whole or read_all(folder) == expected
    compare(folder)
    assert read_all(folder) == expected
    assert not (folder / results.CONTEXT_PARTS).exists() or whole


def test_a_killed_process_is_resumed_after_its_last_text(folder, undisturbed):
    _, operations = undisturbed
    run_killed(folder, operations // 2)
    kept = {path.name: path.read_bytes() for path in (folder / results.CONTEXT_PARTS).glob("[0-9]*.pt")}
    assert kept
    seen = []

    class Watched(context.ContextFolder):
        def save_part(self, index, part):
            seen.append(f"{index:06d}.pt")
            super().save_part(index, part)

    with Watched(folder, **OPTIONS) as run:
        complete_context(run, lambda: MODEL, results.load_info(folder), what_or_how.tabulate, progress=False)
    assert sorted([*seen, *kept]) == [f"{index:06d}.pt" for index in range(len(PROMPTS))]


@pytest.mark.parametrize("back", range(6))
def test_a_kill_while_the_threshold_changes_leaves_no_table_that_belongs_to_another(folder, back):
    compare(folder)
    copy = shutil.copytree(folder, folder.with_name("copy"))
    _, operations = run_killed(copy, None, threshold=0.95)
    expected = read_all(copy)
    assert run_killed(folder, max(1, operations - back), threshold=0.95)[0] == signal.SIGKILL
    before = read_all(folder)
    found = results.read_json(folder / "context.json")["context_threshold"]
    if found == 0.95:
        assert before == expected
    elif found == 0.5:
        assert before["groups"] != expected["groups"]
    compare(folder, threshold=0.95)
    assert read_all(folder) == expected
