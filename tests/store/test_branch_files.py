"""Branches on disk: written text by text, resumed after any kill, and never of other measurements."""

import os
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
from nucleoscope.measure import branching
from nucleoscope.measure.branching import complete_branches
from nucleoscope.measure.runs import complete_run
from nucleoscope.settings import Settings
from nucleoscope.store import branches, context, measurements, parts, results, run_folder

PROMPTS = ["the cat", "a long and winding road", "on the other hand"]
SETTINGS = {"model_name": "tiny", "dataset_name": "cats", "max_tokens": 6, "prompt_format": "raw", "seed": 0}
CHOSEN = {"context_candidates": 3, "branch_points": 2, "branch_length": 4, "branch_replicates": 2}
MODEL = tiny.create_model(eos_token_id=None), tiny.create_tokenizer(eos=False)
TABLES = results.BRANCH_FILES[:3]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As in the forked processes: sums in another order differ in their last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> Path:
    """The folder of a run that is measured."""
    return tiny.measure(tmp_path_factory.mktemp("results") / "cats" / "tiny", MODEL, PROMPTS, SETTINGS)


@pytest.fixture(scope="module")
def branched(measured, tmp_path_factory) -> Path:
    """The folder of a run with branches, which no test changes."""
    folder = shutil.copytree(measured, tmp_path_factory.mktemp("branched") / "run")
    branch(folder)
    return folder


@pytest.fixture
def folder(measured, tmp_path) -> Path:
    return shutil.copytree(measured, tmp_path / "run")


@pytest.fixture
def copy(branched, tmp_path) -> Path:
    return shutil.copytree(branched, tmp_path / "copy")


def branch(folder: Path, load=lambda: MODEL, overwrite: bool = False, **changed) -> None:
    """What notebooks/branches.py does."""
    chosen = CHOSEN | changed
    run = branches.BranchFolder(folder, chosen, overwrite)
    if not run.finished:
        with run:
            complete_branches(run, load, results.load_info(folder), Settings(**chosen), progress=False)


def refuse_to_load():
    raise AssertionError("the model was loaded")


def read_all(folder: Path) -> dict[str, list]:
    """All that was found, but not how long it took."""
    found = {}
    for name in TABLES:
        table = branches.load_rows(folder, name)
        found |= {f"{name} {column}": [str(value) for value in table[column]] for column in table}
    return found


# What is there


def test_there_is_a_row_per_point_per_pair_and_per_branch(branched):
    points, pairs, every = (branches.load_rows(branched, name) for name in (TABLES[2], TABLES[1], TABLES[0]))
    assert tuple(points.columns) == branches.POINT_COLUMNS
    assert tuple(pairs.columns) == branches.PAIR_COLUMNS
    assert tuple(every.columns) == branches.BRANCH_COLUMNS
    records = results.load(branched / results.MEASUREMENTS)
    assert points.groupby("prompt").size().tolist() == [2, 2, 2]
    for point in points.itertuples():
        of = (pairs["prompt"] == point.prompt) & (pairs["step"] == point.step)
        own, rows = pairs[of], every[(every["prompt"] == point.prompt) & (every["step"] == point.step)]
        ids = records[point.prompt]["top_p_tokens"][point.step][:3].tolist()
        assert point.m == len(ids) > 1
        assert rows["id"].tolist() == [token for token in ids for _ in range(2)]
        assert rows["candidate"].tolist() == [place for place in range(len(ids)) for _ in range(2)]
        assert rows["replicate"].tolist() == [0, 1] * len(ids)
        assert [len(tokens) for tokens in rows["tokens"]] == [4] * 2 * len(ids)
        assert not rows["ended"].any()
        assert len(own) == len(ids) * (len(ids) - 1) / 2
        assert own["divergence"].mean() == pytest.approx(point.divergence, abs=1e-6)
        assert own["cosine"].mean() == pytest.approx(point.candidate_cosine, abs=1e-6)
        assert (own["met"] == 0).all() == bool(np.isnan(point.meeting_step))
    assert {path.name for path in branched.iterdir()} == {
        *("candidates.parquet", "measurements.pt", "tokens.parquet", "run.json"),
        *results.BRANCH_FILES,
    }
    about = results.read_json(branched / results.BRANCH_INFO)
    assert {name: about[name] for name in CHOSEN} == CHOSEN
    assert (about["points"], about["tokens"]) == (6, 4 * len(every))
    assert about["ways"] == ["padded, text read once"]


def test_the_cosine_of_the_candidates_is_that_of_the_run_if_there_are_no_others(folder):
    branch(folder, context_candidates=64)
    points = branches.load_rows(folder)
    tokens = results.load_run(folder / results.MEASUREMENTS, "tiny", "cats")
    both = points.merge(tokens[["prompt", "step", "cosine"]], on=["prompt", "step"])
    np.testing.assert_allclose(both["candidate_cosine"], both["cosine"], atol=1e-5)


def test_the_columns_are_those_that_are_computed():
    assert branches.OUTCOMES == branching.OUTCOMES
    assert branching.Branching._fields == branches.BranchFolder.CONTENT


def test_an_end_of_text_is_no_token_of_a_branch():
    part = {
        "steps": torch.tensor([3], dtype=torch.int32),
        "sizes": torch.tensor([2], dtype=torch.int32),
        "ids": torch.tensor([7, 8], dtype=torch.int32),
        "shares": torch.tensor([0.5, 0.5]),
        "tokens": torch.tensor([[[4, -1, -1]], [[4, 5, 6]]], dtype=torch.int32),
    }
    rows = branches._tabulate_branches(0, part).to_pylist()
    assert [row["tokens"] for row in rows] == [[4], [4, 5, 6]]
    assert [row["ended"] for row in rows] == [True, False]


# Settings and measurements


def test_what_is_finished_is_not_branched_again(copy):
    branch(copy, refuse_to_load)
    assert branches.find_missing(copy, CHOSEN) is None


@pytest.mark.parametrize("name", branches.SETTINGS)
def test_other_settings_are_refused_before_the_model_is_loaded_unless_they_may_overwrite(copy, name):
    with pytest.raises(FileExistsError) as caught:
        branch(copy, refuse_to_load, **{name: CHOSEN[name] + 1})
    assert f"{name} {CHOSEN[name]}, not {CHOSEN[name] + 1}" in assert_one_line(str(caught.value))
    assert branches.find_missing(copy, CHOSEN | {name: 1}) == f"{name} was {CHOSEN[name]} and is now 1"


def test_other_settings_replace_the_branches_if_they_may(copy):
    branch(copy, overwrite=True, branch_length=3)
    assert {len(tokens) for tokens in branches.load_rows(copy, results.BRANCH_TABLE)["tokens"]} == {3}


def test_new_measurements_remove_the_branches_of_the_old_ones_and_others_are_refused(copy, branched):
    with run_folder.RunFolder(copy, SETTINGS | {"seed": 1}, overwrite=True) as run:
        complete_run(run, *MODEL, PROMPTS, progress=False, max_tokens=6, seed=1)
    assert not {path.name for path in copy.iterdir()} & set(results.BRANCH_FILES)
    for name in results.BRANCH_FILES:
        shutil.copy(branched / name, copy / name)
    for name in TABLES:
        with pytest.raises(ValueError, match="belongs to other measurements") as caught:
            branches.load_rows(copy, name)
        assert_one_line(str(caught.value))
    branch(copy, branch_length=3)  # which would be refused if they belonged to these measurements
    assert len(branches.load_rows(copy))


def test_missing_and_damaged_files_are_one_line_and_replaced(copy, branched):
    for name in TABLES:
        os.truncate(copy / name, (copy / name).stat().st_size // 2)
        with pytest.raises(ValueError, match="is damaged") as caught:
            branches.load_rows(copy, name)
        assert_one_line(str(caught.value))
    (copy / TABLES[0]).unlink()
    with pytest.raises(
        ValueError, match=r"has no branches\.parquet: repeat the run's command with --only=branches"
    ) as caught:
        branches.load_rows(copy, TABLES[0])
    assert_one_line(str(caught.value))
    branch(copy)
    assert read_all(copy) == read_all(branched)


def test_a_run_that_is_not_measured_is_refused(tmp_path):
    for refuse in (lambda: branches.BranchFolder(tmp_path, CHOSEN), lambda: parts.check(tmp_path)):
        with pytest.raises(FileNotFoundError, match="measure the run first") as caught:
            refuse()
        assert_one_line(str(caught.value))


@pytest.mark.parametrize("load", [branches.load_rows, context.load_rows])
def test_a_table_that_the_system_cannot_read_is_not_called_damaged(tmp_path, monkeypatch, load):
    def fail(*_, **__):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("pyarrow.parquet.ParquetFile", fail)
    with pytest.raises(OSError, match=r"cannot read '.*': .*[Tt]oo many open files") as caught:
        load(tmp_path)
    assert "damaged" not in assert_one_line(str(caught.value))


@pytest.mark.parametrize("indexed", [True, False])
def test_the_texts_of_a_second_pass_are_those_of_the_run(folder, indexed):
    records = results.load(folder / results.MEASUREMENTS)
    if not indexed:
        torch.save(records, folder / results.MEASUREMENTS)
    run = branches.BranchFolder(folder, CHOSEN)
    sizes = run.list_sizes()
    assert [size.characters for size in sizes] == list(map(len, PROMPTS))
    assert [size.candidates for size in sizes] == [list(map(len, record["top_p_tokens"])) for record in records]
    found = list(run.stream_texts([2, 0]))
    assert [index for index, _ in found] == [2, 0]
    for index, record in found:
        assert set(record) == set(run.FIELDS)
        assert record["tokens"].tolist() == records[index]["tokens"].tolist()
        for one, other in zip(record["top_p_probs"], records[index]["top_p_probs"], strict=True):
            assert torch.equal(one, other)


def test_a_runs_own_texts_are_read_one_by_one_in_a_second_pass(folder, monkeypatch):
    monkeypatch.setattr(torch, "load", None)
    run, read = branches.BranchFolder(folder, CHOSEN), []
    opened = measurements.OpenRecords.read
    monkeypatch.setattr(measurements.OpenRecords, "read", lambda *each: read.append(each[1]) or opened(*each))
    texts = run.stream_texts()
    assert next(texts)[0] == 0
    assert read == [0]
    assert next(texts)[0] == 1
    assert read == [0, 1]


def test_texts_without_probabilities_are_refused_by_name(folder):
    records = [{**record, "top_p_probs": None} for record in results.load(folder / results.MEASUREMENTS)]
    torch.save(records, folder / results.MEASUREMENTS)
    with pytest.raises(ValueError, match="has no top_p_probs: measure the run again") as caught:
        branches.BranchFolder(folder, CHOSEN).list_sizes()
    assert_one_line(str(caught.value))


# Kills


def run_killed(folder: Path, operation: int | None, half: bool = False, **options) -> tuple[int, int]:
    """Branches in a forked process that is killed at a file operation: the signal that ended it, and its operations."""
    return kills.call_killed(partial(branch, folder, **options), folder, operation, half)


@pytest.fixture(scope="module")
def operations(measured, branched, tmp_path_factory) -> int:
    """The number of file operations without a kill."""
    folder = shutil.copytree(measured, tmp_path_factory.mktemp("straight") / "run")
    signalled, operations = run_killed(folder, None)
    assert (signalled, read_all(folder)) == (0, read_all(branched))
    assert operations > 25
    return operations


@pytest.mark.parametrize("share", [place / 19 for place in range(20)])
def test_twenty_kills_change_nothing(folder, branched, operations, share):
    operation = 1 + round(share * (operations - 1))
    assert run_killed(folder, operation, half=bool(operation % 2))[0] == signal.SIGKILL
    whole = branches.find_missing(folder, CHOSEN) is None
    assert not whole or read_all(folder) == read_all(branched)
    branch(folder)
    assert read_all(folder) == read_all(branched)
    assert not (folder / results.BRANCH_PARTS).exists() or whole


def test_a_killed_process_is_resumed_after_its_last_text(folder, operations, monkeypatch):
    run_killed(folder, operations // 2)
    kept = {path.name for path in (folder / results.BRANCH_PARTS).glob("[0-9]*.pt")}
    assert kept
    seen, save = [], branches.BranchFolder.save_part
    monkeypatch.setattr(
        branches.BranchFolder, "save_part", lambda run, index, part: (seen.append(index), save(run, index, part))
    )
    branch(folder)
    assert sorted([*(f"{index:06d}.pt" for index in seen), *kept]) == [f"{index:06d}.pt" for index in range(3)]
