"""A good file that the system cannot read is not called damaged, removed or measured again, whoever reads it."""

import os
import random
import resource
import shutil
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

import tiny
from messages import assert_one_line
from nucleoscope import file_errors, hub
from nucleoscope.data import prompts
from nucleoscope.measure.branching import complete_branches
from nucleoscope.measure.context import complete_context
from nucleoscope.settings import Settings
from nucleoscope.stats import what_or_how
from nucleoscope.store import (
    branches,
    candidates,
    context,
    nulls,
    results,
    run_folder,
    side_tables,
    variants,
    vocabulary,
)
from nucleoscope.workflow import grid, status

TEXTS = ["the cat sat", "a", "on the mat, and then"]
SETTINGS = {"model_name": "tiny", "dataset_name": "cats", "max_tokens": 6, "variants": "default"}
BRANCHES = {"context_candidates": 3, "branch_points": 1, "branch_length": 3, "branch_replicates": 1}
OPTIONS = {"candidates": 3, "threshold": 0.5}
BLAMED = ("damaged", "remove", "delete", "overwrite", "truncated")


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> Path:
    """The folder of a run with everything that can be in it."""
    model, tokenizer = tiny.create_model(eos_token_id=None), tiny.create_tokenizer(eos=False)
    place = tmp_path_factory.mktemp("results") / "cats" / "tiny"
    folder = tiny.measure(place, (model, tokenizer), TEXTS, SETTINGS, max_tokens=6, variants="default")
    info = results.load_info(folder)
    with context.ContextFolder(folder, **OPTIONS) as compared:
        complete_context(compared, lambda: (model, tokenizer), info, what_or_how.tabulate, progress=False)
    with branches.BranchFolder(folder, BRANCHES) as branched:
        complete_branches(branched, lambda: (model, tokenizer), info, Settings(**BRANCHES), progress=False)
    return folder


@pytest.fixture
def folder(measured, tmp_path) -> Path:
    return shutil.copytree(measured, tmp_path / "cats" / "tiny")


READERS = {
    "measurements.pt": [
        lambda folder: results.load(folder / results.MEASUREMENTS),
        lambda folder: results.load_records(folder, [0]),
        lambda folder: run_folder.RunFolder(folder, SETTINGS, overwrite=True),
    ],
    "tokens.parquet": [
        lambda folder: results.load_run(folder / results.MEASUREMENTS, "tiny", "cats"),
        results.repair_tokens,
    ],
    "candidates.parquet": [
        lambda folder: results.candidates(folder, 0, 0),
        lambda folder: results.tabulate_candidates(folder, [0]),
        lambda folder: results.load_similarities(folder, [0]),
        candidates.is_current,
    ],
    "variants.parquet": [
        variants.load,
        variants.read_layout,
        variants.explain_missing,
        variants.has_readable_variants,
        lambda folder: run_folder.RunFolder(folder, SETTINGS, overwrite=True),
    ],
    "nulls.parquet": [nulls.load, lambda folder: side_tables.is_readable(folder / nulls.NULLS, nulls.COLUMNS)],
    "vocabulary.parquet": [vocabulary.load],
    "context.parquet": [
        context.load_rows,
        lambda folder: context.find_missing(folder, **OPTIONS),
        lambda folder: context.ContextFolder(folder, **OPTIONS),
    ],
    "context.pt": [context.load_matrices, lambda folder: context.find_missing(folder, **OPTIONS)],
    "context.json": [
        lambda folder: context.find_missing(folder, **OPTIONS),
        lambda folder: context.ContextFolder(folder, **OPTIONS, overwrite=True),
    ],
    "branches.parquet": [branches.load_rows, lambda folder: branches.find_missing(folder, BRANCHES)],
    "branches.json": [
        lambda folder: branches.find_missing(folder, BRANCHES),
        lambda folder: branches.BranchFolder(folder, BRANCHES, overwrite=True),
    ],
}


@contextmanager
def exhaust_descriptors():
    """No file can be opened: what is to be imported has been imported before."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.open(os.devnull, os.O_RDONLY)
    os.close(free)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, before[1]))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize(
    ("name", "place"), [(name, place) for name, readers in READERS.items() for place in range(len(readers))]
)
def test_without_a_free_descriptor_no_reader_blames_the_file(folder, name, place):
    read = READERS[name][place]
    read(folder)  # also to import what it needs
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(OSError, match="Too many open files") as caught, exhaust_descriptors():
        read(folder)
    line = assert_one_line(str(caught.value))
    assert not [word for word in BLAMED if word in line], line
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("name", [name for name in READERS if name.endswith(".parquet")])
def test_whatever_byte_changes_at_the_end_of_a_table_it_is_read_or_named_in_one_line(folder, name):
    path = folder / name
    whole = path.read_bytes()
    end = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")  # where the description of the table begins
    for place in random.Random(name).sample(range(end, len(whole)), 60):
        changed = whole[:place] + bytes([whole[place] ^ 0x89]) + whole[place + 1 :]
        for read in READERS[name]:
            path.write_bytes(changed)
            said = name
            try:
                read(folder)
            except (ValueError, OSError) as error:
                said = str(error)
            assert name in assert_one_line(said), place


def test_a_second_pass_in_progress_is_not_thrown_away_if_its_settings_cannot_be_read(folder, monkeypatch):
    for name in results.CONTEXT_FILES:
        (folder / name).unlink()
    with context.ContextFolder(folder, **OPTIONS) as run:
        kept = run.parts / "000000.pt"
        kept.write_bytes(b"a text")

    def fail(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("nucleoscope.store.parts.read_json", fail)
    with pytest.raises(PermissionError), context.ContextFolder(folder, **OPTIONS):
        pass
    assert kept.read_bytes() == b"a text"


def test_a_grid_says_what_the_system_says_of_a_file_and_asks_the_job_for_the_rest(folder):
    entry = grid.Entry(SETTINGS | {"context": True, "branches": True} | BRANCHES)
    status.find_missing(folder, entry)
    assert not status.needs_context(folder, entry) or not (folder / results.CONTEXT_NOTEBOOK).exists()
    with exhaust_descriptors():
        said = status.find_missing(folder, entry)
        assert status.needs_context(folder, entry)
        assert status.needs_branches(folder, entry)
    assert said == f"'{folder}' cannot be read (Too many open files)"


def test_damaged_candidates_are_named_and_all_else_is_shown(folder, capsys):
    whole = results.tabulate_candidates(folder, [0])
    path = folder / "candidates.parquet"
    content = bytearray(path.read_bytes())
    columns = [parquet.ParquetFile(path).metadata.row_group(0).column(place) for place in range(8)]
    place = next(column.data_page_offset for column in columns if column.path_in_schema.startswith("similarity"))
    content[place + 40 : place + 60] = bytes(20)
    path.write_bytes(content)
    found = results.tabulate_candidates(folder, [0])
    assert found["id"].tolist() == whole["id"].tolist()
    assert found["similarity"].isna().all()
    assert results.load_similarities(folder, [0]) == {}
    assert f"skipped: {path} is damaged" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", [".gguf", ""])
@pytest.mark.parametrize(
    "error", [MemoryError(), OSError(24, "Too many open files"), RuntimeError("I/O error: gone (os error 5)")]
)
def test_a_model_that_the_system_cannot_read_is_not_called_damaged(tmp_path, suffix, error):
    model = tmp_path / f"model{suffix}"
    model.touch() if suffix else model.mkdir()
    try:
        raise ValueError("cannot load this") from error
    except ValueError as outer:
        found = hub.explain(str(model), outer)
    assert isinstance(found, OSError)
    assert assert_one_line(str(found)).startswith(f"cannot load model '{model}': ")
    assert "damaged" not in str(found)


def test_a_data_set_that_the_system_cannot_read_is_not_called_damaged(tmp_path):
    path = tmp_path / "texts.parquet"
    parquet.write_table(pa.table({"prompt": ["one", "two"]}), path)
    column = prompts.Column("prompt", "prompt_column", False)
    assert list(prompts._read(path, column)) == ["one", "two"]
    with pytest.raises(OSError, match="Too many open files") as caught, exhaust_descriptors():
        list(prompts._read(path, column))
    assert "damaged" not in assert_one_line(str(caught.value))


def test_a_truncated_file_is_not_the_systems_fault(tmp_path):
    path = tmp_path / "half"
    path.write_bytes(b"half")
    assert not file_errors.blames_system(OSError(22, "Invalid argument"))
    assert file_errors.find_system_cause(OSError(22, "Invalid argument"), path) is None
    assert file_errors.find_system_cause(ValueError("half"), tmp_path / "none") == "No such file or directory"


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("candidates.parquet", "similarity"),
        ("variants.parquet", "weighted_cosine"),
        ("nulls.parquet", "entropy"),
        ("vocabulary.parquet", "norm"),
    ],
)
def test_a_table_whose_column_has_another_name_is_measured_again_with_overwrite(folder, name, column):
    table = parquet.read_table(folder / name)
    assert column in table.column_names
    for ending in ("", "x"):
        names = [each + ending if each == column else each for each in table.column_names]
        changed = table.rename_columns(names).replace_schema_metadata(table.schema.metadata)
        parquet.write_table(changed, folder / name)
        assert run_folder.RunFolder(folder, SETTINGS, overwrite=True).finished == (not ending)
