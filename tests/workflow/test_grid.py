"""Grids as they are written, what of them is measured, and the graph over fifteen runs of which two fail."""

import contextlib
import fcntl
import hashlib
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from datetime import date
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pandas as pd
import psutil
import pytest
import torch
import yaml
from snakemake import target_jobs

import forks
import holding
import signals
import tiny
from driver import Driver
from messages import assert_one_line
from nucleoscope.data import prompts
from nucleoscope.models import gpus, loading
from nucleoscope.settings import Settings
from nucleoscope.store import locking, results, variants
from nucleoscope.variants import Layout
from nucleoscope.workflow import dependencies, graph, grid, logs, run_notebooks, status

ROOT = Path(__file__).parents[2]
OFFLINE = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
SMALL = {"results_dir": "r", "models": ["a"], "datasets": ["b"]}


# Grids


def test_an_entry_goes_before_the_grid_and_a_data_set_before_a_model():
    config = {
        "results_dir": "r",
        "parameters": {"n_prompts": 100, "max_tokens": 50, "dtype": "float16"},
        "resources": {"memory": "10G", "time": "1h"},
        "models": [
            {
                "name": "me/one",
                "model_revision": "c0ffee",
                "max_tokens": 60,
                "prompt_format": "chat",
                "gpus": 2,
                "memory": "900M",
            },
            "two",
        ],
        "datasets": [{"name": "gsm8k", "max_tokens": 70, "memory": "1G"}, "some/where/texts.jsonl"],
    }
    runs = grid.plan_runs(config)
    assert list(runs) == ["r/gsm8k/one", "r/texts/one", "r/gsm8k/two", "r/texts/two"]
    one = runs["r/gsm8k/one"]
    assert one.parameters == {
        **{"model_name": "me/one", "dataset_name": "gsm8k", "results_dir": "r", "model_revision": "c0ffee"},
        **{"n_prompts": 100, "max_tokens": 70, "dtype": "float16", "prompt_format": "chat"},
    }
    assert (one.gpus, one.memory, one.time) == (2, "1G", "1h")  # of two own sizes the larger
    assert runs["r/texts/one"].parameters["max_tokens"] == 60
    assert runs["r/texts/one"].memory == "900M"
    assert runs["r/texts/two"] == grid.Entry(
        {"model_name": "two", "dataset_name": "some/where/texts.jsonl", "results_dir": "r"} | config["parameters"],
        **{"gpus": 1, "memory": "10G", "time": "1h"},
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"modles": ["a"]}, "unknown setting 'modles'"),
        ({"models": None}, "models is missing: add a list of names"),
        ({"datasets": []}, "datasets is an empty list: name at least one data set"),
        ({"results_dir": None}, "results_dir is missing"),
        ({"models": ["a", {"name": "a", "seed": 1}]}, "'a' is listed twice in models: remove one"),
        (
            {"models": ["x/a", "y/a"]},
            "'x/a' on 'b' and 'y/a' on 'b' have the same short name and therefore the same folder r/b/a",
        ),
        ({"models": [{"nam": "a"}]}, "entry 1 in models has 'nam' but no 'name'"),
        ({"models": [7]}, "entry 1 in models is 7: it must be a quoted name"),
        ({"models": [{"name": "a", "max_token": 3}]}, "'a' in models: unknown setting 'max_token'"),
        (
            {"models": [{"name": "a", "revision": "1"}]},
            "'a' in models: unknown setting 'revision': it must be one of name,",
        ),
        (
            {"parameters": {"dtype": "bf16"}},
            "parameters: dtype is 'bf16' (did you mean 'bfloat16'?): it must be auto, float32, bfloat16 or float16",
        ),
        (
            {"parameters": {"temperature": 0}},
            "parameters: temperature is 0: it must be a finite positive number, at least 1e-30",
        ),
        (
            {"parameters": {"n_prompts": "many"}},
            "parameters: n_prompts is 'many': it must be a whole number from 1 to 1,000,000,000",
        ),
        ({"parameters": {"trust_remote_code": 1}}, "trust_remote_code is 1: it must be true or false"),
        ({"parameters": ["n_prompts"]}, "parameters is ['n_prompts']: it must be a mapping of settings to values"),
        (
            {"models": [{"name": "a", "gpus": -1}]},
            "'a' in models: gpus is -1: it must be a whole number from 0 to 10,000",
        ),
        ({"resources": {"memory": "40"}}, "resources: memory is '40': it must be a size with a unit, such as 40G"),
        (
            {"resources": {"time": 240}},
            "resources: time is 240: it must be a duration with a unit, such as 90m, 4h or 1d12h",
        ),
        (
            {"parameters": {"n_prompts": 0}},
            "parameters: n_prompts is 0: it must be a whole number from 1 to 1,000,000,000",
        ),
        (
            {"models": [{"name": "a", "max_tokens": -3}]},
            "'a' in models: max_tokens is -3: it must be a whole number from 1 to 1,000,000,000",
        ),
        ({"parameters": {"top_p": 90}}, "parameters: top_p is 90: it must be a number in (0, 1]"),
        (
            {"datasets": [{"name": "b", "batch_size": 0}]},
            "batch_size is 0: it must be auto or a whole number from 1 to 1,000,000,000",
        ),
        ({"results_dir": __file__}, "test_grid.py', which is a file: it must name a folder"),
        (
            {"parameters": {"mode": "score"}},
            "'a' on 'b': set both mode=score and text_column, or neither",
        ),
        (
            {"datasets": [{"name": "b", "text_column": "c"}]},
            "set both mode=score and text_column, or neither",
        ),
        ({"parameters": {"top_p": []}}, "parameters: top_p is an empty list: give at least one value, or leave it out"),
        ({"parameters": {"seed": [1, 2, 1]}}, "parameters: seed lists 1 twice: remove one"),
        (
            {"models": [{"name": "a", "temperature": [1, 1.0]}]},
            "'a' in models: temperature lists 1.0 twice: remove one",
        ),
        ({"parameters": {"top_p": [0.9, 1.5]}}, "parameters: top_p is 1.5: it must be a number in (0, 1]"),
        ({"parameters": {"top_p": [0.9, None]}}, "parameters: top_p has an empty value in its list: remove it"),
        ({"parameters": {"top_p": [[0.9]]}}, "parameters: top_p is [0.9]: it must be a number in (0, 1]"),
        ({"parameters": {"topp": [0.9]}}, "parameters: unknown setting 'topp' (did you mean 'top_p'?)"),
        (
            {"parameters": {"device": ["cpu", "cuda"]}},
            "parameters: device cannot be a list in a grid: give it one value, without brackets",
        ),
        ({"parameters": {"variants": ["none", "default"]}}, "parameters: variants cannot be a list: separate the"),
        (
            {"datasets": [{"name": "b", "text_column": ["c", "d"]}]},
            "'b' in datasets: text_column cannot be a list: list the data set once for each column of texts",
        ),
        (
            {"parameters": {"dtype": ["auto", "float32"]}},
            "dtype lists auto along with float32: auto stands for one of the other types, depending on the machine, so "
            "remove it",
        ),
        ({"resources": {"gpus": [1, 2]}}, "resources: gpus is [1, 2]: it must be a whole number from 0 to 10,000"),
        ({"results_dir": ["a", "b"]}, "results_dir is ['a', 'b']: it must be the path of one folder"),
        (
            {"parameters": {"named_settings": "top_p"}},
            "parameters: 'named_settings' cannot be set in a grid: list several",
        ),
        ({"models": ["a@top_p=0.9"]}, "the model's name 'a@top_p=0.9' would be read as 'a' with top_p 0.9: rename"),
        ({"analyses": {"resample": 5}}, "analyses: unknown setting 'resample'"),
        ({"analyses": {"resamples": 20}}, "analyses: resamples is 20: it must be a whole number from 100 to 1,000,000"),
        ({"analyses": {"seed": -1}}, "analyses: seed is -1: it must be a whole number from 0 to 9,007,199,254,740,992"),
        ({"results_dir": "r{x}"}, "results_dir is 'r{x}': Snakemake cannot use a folder with braces in its name"),
    ],
)
def test_a_wrong_grid_is_named_in_one_line(tmp_path, change, message):
    path = tmp_path / "grid.yml"
    path.write_text(yaml.safe_dump(SMALL | change))
    with pytest.raises(ValueError, match=r"grid\.yml") as caught:
        grid.load(path)
    assert message in assert_one_line(str(caught.value))


def test_a_list_whose_dashes_are_not_aligned_is_not_one_name(tmp_path):
    path = tmp_path / "grid.yml"
    path.write_text("results_dir: r\ndatasets: [math]\nmodels:\n  - a\n   - b\n")
    with pytest.raises(ValueError, match="line 4: indent every '-' of a list equally"):
        grid.load(path)


@pytest.mark.parametrize("time", ["12:30", "1:30.5"])  # 750 and 90.5 in YAML 1.1
def test_a_number_with_a_colon_is_shown_as_it_was_written(tmp_path, time):
    path = tmp_path / "grid.yml"
    path.write_text(f"{yaml.safe_dump(SMALL)}resources: {{time: {time}}}\n")
    with pytest.raises(
        ValueError, match=f"resources: time is '{time}': it must be whole numbers followed by m, h or d"
    ):
        grid.load(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("results_dir: r\nmodels: [a]\nmodels: [b]\n", "line 3: duplicate key 'models'"),
        ("models: [a\n", "line 1: a [ is not closed"),
        ("seed: !!int [1]\n", "line 1: expected a scalar node"),  # rare: PyYAML's own words
        ("parameters:\n  seed: 010\n", "line 2: 010 would be read as an octal number: write it without leading zeros"),
        (
            "models:\n  - a\ndatasets\n",
            "line 3: a ':' or '-' is missing, or the space after it",
        ),
        ("models:\n  - a\n  -b\ndatasets: [c]\n", "line 3: a ':' or '-' is missing, or the space after it"),
        ("datasets\nmodels:\n  - a\n", "line 2: a ':' is not allowed here: check the indentation"),
        ("models:\n  - a\n - b\n", "line 3: the indentation does not match the lines above"),
        ("models: 'a\n\n", "line 1: a quotation mark is not closed"),
        ("models: 'a' b\n", "line 1: text after a closing quotation mark"),
        ("models: @a\n", "line 1: a value that begins with '@' must be quoted"),
        ("models: *a\n", "line 1: a value that begins with '*' or '&' must be quoted"),
        ("models: !a b\n", "line 1: a value that begins with '!' must be quoted"),
        ("models: >x\n", "line 1: a value that begins with '|' or '>' must be quoted"),
        ('models: "\\q"\n', r"line 1: unknown escape '\q': use single quotation marks"),
        ("models: - a\n", "line 1: a '-' is not allowed here: begin a list on a line of its own"),
        ("models: [a]]\n", "line 1: a ] without the bracket that opens it"),
        ("{a: 1}: 2\n", "line 1: a name cannot be a list or a mapping"),
        ("a: 1\n---\nb: 2\n", "line 2: remove '---': a grid is a single YAML document"),
        (" results_dir: r\nmodels: [a]\n", "line 2: the indentation does not match the lines above"),
        ("%models: a\n", "line 1: a line that begins with '%'"),
        ("a: \x07\n", "a character that YAML does not allow, U+0007: remove it"),
        ("<<: 1\n", "line 1: expected a mapping"),  # rare: PyYAML's own words
        ("", "the grid is empty: it needs results_dir, models and datasets"),
        ("- a\n", "a grid must be a mapping that has results_dir, models and datasets"),
    ],
)
def test_what_is_no_grid_is_named_in_one_line(tmp_path, text, message):
    path = tmp_path / "grid.yml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"grid\.yml") as caught:
        grid.load(path)
    assert message in assert_one_line(str(caught.value))


def test_a_grid_that_is_not_there_is_named_in_one_line(tmp_path):
    with pytest.raises(
        FileNotFoundError,
        match=r"^grid '.*none\.yml' does not exist \(current folder: .*\): check the path$",
    ):
        grid.load(tmp_path / "none.yml")


def test_sizes_and_times():
    assert [grid.parse_memory(size) for size in ("500M", "2G", "2GB", "1TiB")] == [500, 2048, 2048, 2**20]
    assert [grid.parse_time(time) for time in ("90m", "4h", "1d12h")] == [90, 240, 2160]


def test_a_grid_knows_the_parameters_of_the_command_line():
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        import correlation_pipeline
    finally:
        sys.path.pop(0)
    options = vars(correlation_pipeline.create_parser().parse_args([]))
    own = {"model_name", "dataset_name", "results_dir", "named_settings", "overwrite", "debug", "only", "if_missing"}
    assert set(grid.PARAMETERS) == set(options) - own | {"model_revision"}
    assert {name: options[name] for name in grid.DEFAULTS} == grid.DEFAULTS
    assert all(options.get(name) is None for name in set(grid.PARAMETERS) - set(grid.DEFAULTS))
    assert own - {"results_dir"} <= grid.ELSEWHERE.keys()


def test_lists_of_values_are_measured_in_every_combination_each_in_a_folder_named_after_it():
    config = SMALL | {
        "parameters": {"seed": [1, 0], "top_p": [0.9, 0.95]},
        "models": ["a", {"name": "m", "seed": 7, "dtype": ["float32"]}],
        "datasets": ["b", {"name": "c", "top_p": 1, "template_date": [date(2024, 1, 1), "2025-01-01"]}],
    }
    runs = grid.plan_runs(config)
    assert sorted(folder for folder in runs if folder.startswith("r/b")) == [
        *("r/b/a@top_p=0.95@seed=0", "r/b/a@top_p=0.95@seed=1", "r/b/a@top_p=0.9@seed=0", "r/b/a@top_p=0.9@seed=1"),
        *("r/b/m@top_p=0.95@dtype=float32", "r/b/m@top_p=0.9@dtype=float32"),
    ]
    assert sorted(folder for folder in runs if folder.startswith("r/c/m")) == [
        f"r/c/m@template_date={year}-01-01@dtype=float32" for year in (2024, 2025)
    ]
    one = runs["r/b/a@top_p=0.95@seed=1"]
    assert (one.parameters["top_p"], one.parameters["seed"]) == (0.95, 1)
    for folder, entry in runs.items():  # as the command line of the graph's jobs finds it
        assert str(run_notebooks.locate(Settings(**entry.parameters).check())) == folder
    assert list(grid.plan_runs(SMALL | {"parameters": {"seed": 1}})) == ["r/b/a"]


def test_a_list_of_seeds_does_not_count_where_texts_are_scored():
    score = {"name": "b", "mode": "score", "text_column": "c"}
    config = SMALL | {"parameters": {"seed": [0, 1]}, "datasets": ["b", score]}
    assert list(grid.plan_runs(config)) == ["r/b/a@seed=0", "r/b/a@seed=1", "r/b-c/a"]
    runs = grid.plan_runs(
        config | {"parameters": {"seed": [0, 1], "dtype": ["float32", "float16"]}, "datasets": [score]}
    )
    assert list(runs) == ["r/b-c/a@dtype=float32", "r/b-c/a@dtype=float16"]
    for folder, entry in runs.items():
        assert str(run_notebooks.locate(Settings(**entry.parameters).check())) == folder


def test_a_job_of_a_cluster_is_told_the_folder_of_a_run_with_several_settings():
    """Snakemake divides what it tells such a job at commas."""
    folder = "r/b/a@top_p=0.95@seed=1"
    (found,) = target_jobs.parse_target_jobs_cli_args([f"measure:folder={folder}"])
    assert found == ("measure", {"folder": folder})


def test_the_grids_that_come_along():
    grids = {path.stem: grid.load(path) for path in (ROOT / "scripts/grids").glob("*.yml")}
    assert len({config["results_dir"] for config in grids.values()}) == len(grids)  # what they measure does not mix
    study = grid.plan_runs(grids["study"])
    assert len(study) == 15
    revisions = {entry.parameters["model_name"]: entry.parameters["model_revision"] for entry in study.values()}
    assert len(revisions) == 5
    assert all(len(revision) == 40 for revision in revisions.values())
    for entry in study.values():
        assert [entry.parameters[name] for name in ("n_prompts", "max_tokens", "prompt_format")] == [100, 100, "raw"]
        assert entry.gpus == 1
    assert {entry.gpus for entry in grid.plan_runs(grids["smoke"]).values()} == {0}


def test_importing_the_grid_is_quick():
    names = ", ".join(
        f"nucleoscope.{name}" for name in ("models.gpus", "workflow.graph", "workflow.grid", "workflow.status")
    )
    code = f"import sys; import {names}; print({{'torch', 'pandas', 'numpy'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


# What is measured


def write_run(folder: Path, entry: grid.Entry, **others) -> None:
    """The files of a run as it leaves them when started by hand, with synthetic numbers."""
    folder.mkdir(parents=True)
    text = "the cat sat on the mat and she said that it was hers and not the dog's"
    records = [tiny.create_record(text, seed=10 * len(str(folder)) + number) for number in range(3)]
    torch.save(records, folder / results.MEASUREMENTS)
    results.write_tokens(records, folder / results.MEASUREMENTS)
    variants.write_variants(folder / results.MEASUREMENTS, Layout(["top_k_2"], ["raw"]), [])
    wanted = grid.DEFAULTS | entry.parameters
    names = ("model_name", "dataset_name", "prompt_format", "max_tokens", "top_p", "seed", "n_prompts", "variants")
    settings = {name: wanted[name] for name in names} | {"prompt_column": wanted.get("prompt_column")}
    settings |= {"model": {"source": "folder"}, "dataset": {"source": "file"}, "dtype": "float32"} | others
    info = {"settings": settings, "n_prompts_requested": wanted["n_prompts"], "tokens": 300}
    info |= {"tokens_per_second": 1.0, "device": "cpu", "prompts_truncated": 0}
    (folder / results.RUN_INFO).write_text(json.dumps(info))
    nbformat.write(nbformat.v4.new_notebook(), folder / results.NOTEBOOK)
    for job in (results.MEASURE, results.PAGE):
        status.write_status(status.locate_status(folder, job), None)


ENTRY = grid.Entry({"model_name": "a", "dataset_name": "b", "n_prompts": 50})


@pytest.mark.parametrize(
    ("found", "asked"),
    [
        ({}, {}),
        ({"n_prompts": 7}, {}),  # the data set has no more: 50 were requested
        ({"dtype": "bfloat16"}, {"dtype": "auto"}),
        ({}, {"temperature": 1}),
        ({}, {"batch_size": 3, "device": "cuda"}),  # they do not decide which tokens are measured
        ({"model": {"source": "hub", "revision": "a" * 40}}, {"model_revision": "a" * 40}),
        ({"mode": "score", "text_column": "t", "seed": None}, {"mode": "score", "text_column": "t"}),
    ],
)
def test_what_agrees_with_the_grid_is_measured(tmp_path, found, asked):
    write_run(tmp_path / "b" / "a", ENTRY, **found)
    entry = grid.Entry(ENTRY.parameters | asked)
    assert status.find_missing(tmp_path / "b" / "a", entry) is None


@pytest.mark.parametrize(
    ("found", "asked", "why"),
    [
        ({}, {"n_prompts": 60}, "n_prompts is 50 in the results but 60 in the grid"),
        ({}, {"max_tokens": 5}, "max_tokens is 100 in the results but 5 in the grid"),
        ({"prompt_format": "chat"}, {}, "prompt_format is 'chat' in the results but 'raw' in the grid"),
        (
            {},
            {"temperature": 0.5},
            "temperature is 1.0 in the results but 0.5 in the grid",
        ),  # there: from before it was one
        ({}, {"variants": "raw"}, "variants is 'none' in the results but 'raw' in the grid"),
        ({"temperature": 2}, {}, "temperature is 2 in the results but 1.0 in the grid"),
        ({"seed": 3}, {}, "seed is 3 in the results but 0 in the grid"),
        ({}, {"dtype": "bfloat16"}, "dtype is 'float32' in the results but 'bfloat16' in the grid"),
        ({"model_name": "other/a"}, {}, "model_name is 'other/a' in the results but 'a' in the grid"),
        ({}, {"mode": "score", "text_column": "t"}, "mode is 'generate' in the results but 'score' in the grid"),
        (
            {"model": {"source": "hub", "revision": "a" * 40}},
            {"model_revision": "b" * 40},
            f"model_revision is '{'a' * 40}' in the results but '{'b' * 40}' in the grid",
        ),
    ],
)
def test_what_differs_from_the_grid_is_not_measured(tmp_path, found, asked, why):
    write_run(tmp_path / "b" / "a", ENTRY, **found)
    entry = grid.Entry(ENTRY.parameters | asked)
    assert status.find_missing(tmp_path / "b" / "a", entry) == why


@pytest.mark.parametrize("name", [results.MEASUREMENTS, results.RUN_INFO])
def test_a_run_without_one_of_its_files_is_not_measured(tmp_path, name):
    write_run(tmp_path / "b" / "a", ENTRY)
    (tmp_path / "b" / "a" / name).unlink()
    assert status.find_missing(tmp_path / "b" / "a", ENTRY) == f"{name} is missing"


def test_how_many_prompts_were_requested_is_read_from_the_notebook_of_an_earlier_version(tmp_path):
    folder = tmp_path / "b" / "a"
    write_run(folder, ENTRY, n_prompts=7)
    info = results.load_info(folder)
    del info["n_prompts_requested"]
    (folder / results.RUN_INFO).write_text(json.dumps(info))
    assert status.find_missing(folder, ENTRY) == "n_prompts is 7 in the results but 50 in the grid"
    notebook = nbformat.v4.new_notebook(metadata={"papermill": {"parameters": {"n_prompts": 50}}})
    nbformat.write(notebook, folder / results.NOTEBOOK)
    assert status.find_missing(folder, ENTRY) is None


def test_a_data_set_whose_file_has_changed_is_measured_again(tmp_path):
    file = tmp_path / "b.txt"
    file.write_text("the cat")
    entry = grid.Entry(ENTRY.parameters | {"dataset_name": str(file)})
    digest = hashlib.sha256(b"the cat").hexdigest()
    write_run(tmp_path / "b" / "a", entry, dataset={"source": "file", "sha256": digest})
    assert status.find_missing(tmp_path / "b" / "a", entry) is None
    file.write_text("the dog")
    why = f"the content of '{file}' has changed since it was measured"
    assert status.find_missing(tmp_path / "b" / "a", entry) == why
    moved = tmp_path / "elsewhere" / "b.txt"
    moved.parent.mkdir()
    moved.write_text("the cat")
    elsewhere = grid.Entry(entry.parameters | {"dataset_name": str(moved)})
    assert status.find_missing(tmp_path / "b" / "a", elsewhere) is None
    lines = tmp_path / "b.csv"
    lines.write_text("the cat")
    other = grid.Entry(entry.parameters | {"dataset_name": str(lines)})
    assert status.find_missing(tmp_path / "b" / "a", other).startswith("dataset_name is ")  # read otherwise
    file.unlink()  # what is measured needs it no longer
    assert status.find_missing(tmp_path / "b" / "a", entry) is None


def test_a_run_that_was_interrupted_by_hand_is_not_called_succeeded_or_not_started(tmp_path):
    """It has no log; results of the grid are there, measured with other settings."""
    config = {"results_dir": str(tmp_path), "models": ["a"], "datasets": ["b"], "parameters": {"top_p": 0.5}}
    write_run(tmp_path / "b" / "a", ENTRY)
    logs.run(run_python("print('measured')"), tmp_path / "logs/b/a.log")
    batches = tmp_path / "b/a/batches"
    batches.mkdir()
    (batches / "settings.json").write_text("{}")
    said = status.summarise(config).splitlines()
    assert said[0] == "the only run has not been measured:"
    assert said[1].startswith("  a on b: a command run by hand was interrupted: repeat it to resume")
    assert "succeeded" not in said[1]
    assert said[2] == "    the analyses use its earlier results"
    with (tmp_path / "logs/b/a.log").open() as log:  # the grid's own job, which has just begun
        fcntl.flock(log, fcntl.LOCK_EX)
        assert status.summarise(config).splitlines()[1] == "  a on b: it is running"
    (tmp_path / "logs/b/a.log").unlink()
    assert "not started" not in status.summarise(config)


def test_the_report_says_which_runs_are_damaged_and_which_have_other_settings(tmp_path):
    config = {"results_dir": str(tmp_path), "models": ["a"], "datasets": ["b"], "parameters": {"n_prompts": 50}}
    folder = tmp_path / "b/a"

    def report() -> str:
        return status.summarise(config).splitlines()[1].removeprefix("  a on b: ")

    assert report() == "not started (measurements.pt is missing)"
    assert "logs:" not in status.summarise(config)  # there are none
    write_run(folder, ENTRY, max_tokens=4)
    said = "measured with other settings (max_tokens is 4 in the results but 100 in the grid)"
    assert report() == said
    log = tmp_path / "logs/b/a.log"
    logs.run(run_python("print('measured')"), log)
    assert report() == said  # the grid was changed later
    assert status.summarise(config).splitlines()[-1].startswith("logs: ")
    (folder / results.MEASUREMENTS).write_bytes(b"hi")
    assert report() == (
        f"damaged: '{folder}/measurements.pt' is truncated or was not written by Nucleoscope: run the grid again"
    )
    logs.run(run_python("raise SystemExit('error: no')"), log)
    assert report() == "error: no"
    log.unlink()
    write_run(tmp_path / "c/a", ENTRY)
    os.replace(tmp_path / "c/a/measurements.pt", folder / "measurements.pt")
    (folder / results.RUN_INFO).write_text("{")
    assert re.fullmatch(r"damaged: '.*/run\.json' is not .*: move it out of the way, then run the grid again", report())
    (folder / results.RUN_INFO).unlink()
    assert report() == "damaged: run.json is missing: run the grid again"


def test_the_report_names_the_runs_that_a_shortened_grid_leaves_to_the_analyses(tmp_path):
    config = {"results_dir": str(tmp_path), "models": ["a"], "datasets": ["b"]}
    write_run(tmp_path / "b" / "a", ENTRY)
    assert "does not list" not in status.summarise(config)
    for seed in (10, 2):
        write_run(tmp_path / "b" / f"a@seed={seed}", grid.Entry(ENTRY.parameters | {"seed": seed}))
    (line,) = [line for line in status.summarise(config).splitlines() if "does not list" in line]
    assert "2 runs" in line
    assert "a on b, seed 2; a on b, seed 10;" in line


def test_the_report_names_what_else_failed_and_which_earlier_results_are_analysed(tmp_path):
    config = {"results_dir": str(tmp_path), "models": ["a"], "datasets": ["b"], "parameters": {"top_p": 0.5}}
    write_run(tmp_path / "b" / "a", ENTRY)
    logs.run(run_python("raise SystemExit('error: no LaTeX')"), tmp_path / "logs/analyses.log")
    logs.run(run_python("print('built')"), tmp_path / "logs/book.log")
    said = status.summarise(config).splitlines()
    assert "    the analyses use its earlier results" in said
    place = said.index("  the last attempt to make the analyses failed: no LaTeX")
    assert re.fullmatch(
        f"    log: {re.escape(str(tmp_path))}/logs/analyses.log \\(20\\d\\d-\\d\\d-\\d\\d \\d\\d:\\d\\d\\)",
        said[place + 1],
    )
    assert not any("book" in line for line in said)


# What the graph reckons with


def create_entry(number: int) -> grid.Entry:
    return grid.Entry({}, number)


@pytest.mark.parametrize(
    ("wanted", "there", "gpus_of", "threads"),
    [(0, 2, 0, 15), (1, 2, 1, 8), (2, 2, 2, 16), (4, 2, 2, 16), (1, 0, 0, 15), (1, 32, 1, 1)],
)
def test_a_runs_share_of_a_machine_with_sixteen_cores(wanted, there, gpus_of, threads):
    assert graph.count_gpus(create_entry(wanted), there) == gpus_of
    assert graph.count_threads(create_entry(wanted), there, 16) == threads


@pytest.mark.parametrize(
    ("wanted", "there", "found", "choice"),
    [
        (0, None, False, 0),  # a cluster need not hide the GPUs of others
        (1, None, False, None),  # but has made its choice
        (0, 2, True, 0),
        (1, 2, True, 1),
        (1, 0, True, 0),  # --resources gpu=0
        (1, 0, False, None),  # a GPU that the driver does not know
    ],
)
def test_who_chooses_the_gpus_of_a_run(wanted, there, found, choice):
    assert graph.decide_visible_gpus(create_entry(wanted), there, found) == choice
    if there is None:
        assert graph.count_gpus(create_entry(wanted), there) == wanted


def test_parameters_as_options():
    assert graph.format_options({"a": 1, "b": None, "c": False, "d": True, "e": "x y"}) == "--a=1 --d '--e=x y'"


# Logs


def run_python(code: str) -> list[str]:
    return [sys.executable, "-c", textwrap.dedent(code)]


@pytest.mark.parametrize(
    ("code", "status", "why"),
    [
        ("import sys; print('hello'); sys.exit('error: no such model')", 1, "error: no such model"),
        (
            "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
            137,
            "it was killed by SIGKILL (probably out of memory",
        ),
        ("import sys; print('odd'); sys.exit(3)", 3, "it ended with status 3: odd"),
    ],
)
def test_a_log_says_why(tmp_path, capfd, code, status, why):
    log = tmp_path / "deep" / "log"
    assert logs.run(run_python(code), log) == status
    assert logs.explain(log).startswith(why)
    said = capfd.readouterr()
    assert ("hello" in said.out, "no such model" in said.err) == (status == 1, status == 1)


def test_a_log_keeps_the_attempts_that_were_cut_off_and_no_states_of_a_progress_bar(tmp_path):
    log = tmp_path / "log"
    for _ in range(2):
        logs.run(run_python("import os; print('1%\\r50%\\r100%', flush=True); os.kill(os.getpid(), 9)"), log)
    assert [line for line in log.read_text().splitlines() if not line.startswith("#")] == ["100%", "100%"]
    assert logs.run(run_python("print('done')"), log) == 0
    assert log.read_text().count(logs.BEGUN) == 3
    logs.run(run_python("raise SystemExit('error: new')"), log)
    assert log.read_text().count(logs.BEGUN) == 1  # the one before came to its own end
    log.write_text(log.read_text().rsplit(logs.ENDED, 1)[0])  # as the whole machine's end leaves it
    assert logs.explain(log) == "it was killed, or its machine went down, after: error: new"


# The graph


@pytest.fixture
def two_gpus(tmp_path, monkeypatch) -> Driver:
    """A machine whose driver lists two GPUs."""
    driver = Driver(tmp_path / "driver.json", monkeypatch)
    driver.put({"id": "GPU-1"}, {"id": "GPU-2"})
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.delenv(gpus.VISIBLE, raising=False)
    return driver


def run_snakemake(*options: object, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "snakemake", "--cores", "2", *map(str, options)]
    environment = forks.create_environment(**OFFLINE, **environment)
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)


def write_study_grid(tmp_path: Path) -> tuple[Path, dict[str, grid.Entry]]:
    """A grid of five models on three data sets; two models cannot write as much as the third data set asks for."""
    sizes = dict.fromkeys(("one", "two", "three"), 1024) | dict.fromkeys(("four", "five"), 128)
    models = [
        tiny.save(tmp_path / name, tiny.create_model(max_position_embeddings=size), tiny.create_tokenizer())
        for name, size in sizes.items()
    ]
    for name in ("short", "middle", "long"):
        (tmp_path / f"{name}.jsonl").write_text('{"prompt": "the cat"}\n{"prompt": "she said"}\n')
    datasets = [{"name": str(tmp_path / f"{name}.jsonl")} for name in ("short", "middle", "long")]
    datasets[2]["max_tokens"] = 200
    config = {"results_dir": str(tmp_path / "results"), "models": models, "datasets": datasets}
    config |= {"parameters": {"max_tokens": 4, "n_prompts": 2, "batch_size": 1}, "analyses": {"resamples": 100}}
    (tmp_path / "grid.yml").write_text(yaml.safe_dump(config))
    return tmp_path / "grid.yml", grid.plan_runs(config)


@pytest.mark.long
def test_a_grid_of_fifteen_with_two_that_fail_ends_with_thirteen_tables_and_a_report(tmp_path):
    path, runs = write_study_grid(tmp_path)
    to_run = [str(tmp_path / "results" / name) for name in ("long/four", "long/five", "short/five")]
    for folder in runs.keys() - set(to_run):
        write_run(Path(folder), runs[folder])
    first = run_snakemake("analyses", "--configfile", path)
    assert first.returncode != 0
    assert_two_are_named(first.stderr, tmp_path)
    times = [re.findall(r"^# (?:begun|ended) ([-0-9]+ [:0-9]{8})", read_log(folder), re.MULTILINE) for folder in to_run]
    times.sort()
    assert all(len(pair) == 2 for pair in times)
    assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(times))  # one at a time, without a GPU
    assert (tmp_path / "results/short/five/measurements.pt").is_file()
    table = pd.read_csv(tmp_path / "results" / results.ANALYSES / "correlation_stats.csv")
    measured = set(zip(table["Model"], table["Dataset"], strict=True))
    wanted = {(Path(folder).name, Path(folder).parent.name) for folder in runs}
    assert wanted - measured == {("four", "long"), ("five", "long")}
    pages = [status.locate_status(folder, results.PAGE) for folder in runs]  # the analyses, too, would run again
    again = run_snakemake("--configfile", path, "--", *pages)
    assert again.returncode != 0
    assert_two_are_named(again.stderr, tmp_path)
    assert again.stderr.count("localrule measure:") == 2
    assert (tmp_path / "results/short/five/run.ipynb").is_file()  # the page of the run that was measured
    assert not (tmp_path / "results/long/five/run.ipynb").exists()
    book = run_snakemake("--configfile", path, "--dry-run", "--", "book")
    assert book.returncode == 0, book.stderr
    assert "rule book:" in book.stdout
    assert book.stdout.count("rule measure:") == 2


def read_log(folder: str) -> str:
    return status.locate_log(folder).read_text()


def assert_two_are_named(said: str, tmp_path: Path) -> None:
    assert "13 of 15 runs have been measured; these have not:" in said
    for name in ("four", "five"):
        assert f"  {name} on long: error: " in said
        log = tmp_path / f"results/logs/long/{name}.log"
        assert f"log: {log}" in said
        assert "error: " in log.read_text()


FULL_DISK = """
import errno
from nucleoscope import atomic
whole = atomic.write_atomically
def full(path, *more):
    if path.name == "measure.ipynb":
        raise OSError(errno.ENOSPC, "No space left on device", str(path))
    return whole(path, *more)
atomic.write_atomically = full
"""  # for what is written after the measurements


@pytest.mark.parametrize("older", [False, True], ids=["empty folder", "older results"])
def test_a_failure_after_the_measurements_loses_none_of_them(tmp_path, older):
    model = tiny.save(tmp_path / "one", tiny.create_model(), tiny.create_tokenizer())
    (tmp_path / "short.jsonl").write_text('{"prompt": "the cat"}\n{"prompt": "she said"}\n')
    config = {"results_dir": str(tmp_path / "results"), "models": [model], "datasets": [str(tmp_path / "short.jsonl")]}
    config |= {"parameters": {"max_tokens": 4, "n_prompts": 2}, "analyses": {"resamples": 100}}
    (tmp_path / "grid.yml").write_text(yaml.safe_dump(config))
    ((folder, entry),) = grid.plan_runs(config).items()
    folder = Path(folder)
    if older:
        write_run(folder, entry, top_p=0.5)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/sitecustomize.py").write_text(FULL_DISK)
    path = os.pathsep.join(filter(None, [str(tmp_path / "broken"), os.environ.get("PYTHONPATH")]))
    goal = status.locate_status(folder)
    failed = run_snakemake("--configfile", tmp_path / "grid.yml", "--", goal, PYTHONPATH=path)
    assert failed.returncode != 0
    assert "the notebook of one on short failed: " in failed.stderr
    assert "No space left on device" in status.locate_log(folder).read_text()
    assert "No space left on device" in status.read_problem(goal)
    assert results.load_info(folder)["settings"]["top_p"] == 0.9
    tokens = [record["tokens"].tolist() for record in results.load(folder / results.MEASUREMENTS)]
    assert [len(some) for some in tokens] == [4, 4]
    written = (folder / results.MEASUREMENTS).stat()
    again = run_snakemake("--configfile", tmp_path / "grid.yml", "--", goal)
    assert again.returncode == 0, again.stderr
    assert "the only run has been measured" in again.stderr
    now = (folder / results.MEASUREMENTS).stat()
    assert (now.st_ino, now.st_mtime_ns) == (written.st_ino, written.st_mtime_ns)
    assert status.read_problem(goal) is None


def test_what_was_measured_by_hand_runs_only_where_its_settings_differ(tmp_path):
    """Also if the clock that dated its files was fast."""
    path, runs = write_study_grid(tmp_path)
    for folder, entry in runs.items():
        write_run(Path(folder), entry, **({"top_p": 0.5} if folder.endswith("middle/two") else {}))
    tomorrow = time.time() + 86_400
    os.utime(tmp_path / "results/middle/two/measure.status.json", (tomorrow, tomorrow))
    planned = run_snakemake("--configfile", path, "--dry-run").stdout
    assert planned.count("rule measure:") == 1
    assert "wildcards: folder=" + str(tmp_path / "results/middle/two") in planned


def test_two_gpus_are_shared_by_runs_with_their_share_of_the_cores(tmp_path, two_gpus):
    path, _ = write_study_grid(tmp_path)
    planned = run_snakemake("--configfile", path, "--dry-run", "--nocolor", **two_gpus.environment).stdout
    assert planned.count("gpu=1") == planned.count("nodes=1") == 15
    assert "threads: 2" not in planned  # each run has one of the two cores, and new pages leave one to the analyses
    shown = run_snakemake("--configfile", path, "--dry-run", "--printshellcmds", **two_gpus.environment).stdout
    assert shown.count("--gpus=1 --tries_left=0 -- ") == 15


def test_without_a_gpu_one_run_at_a_time_has_all_cores_and_leaves_one_to_a_page_of_lower_priority(tmp_path):
    path, _ = write_study_grid(tmp_path)
    planned = run_snakemake("--configfile", path, "--dry-run", "--printshellcmds", "--resources", "gpu=0").stdout
    assert planned.count("machine=1") == planned.count("--threads=2 --tries_left=0 -- ") == 15
    assert "threads: 2" not in planned  # of two cores, one is left to a page
    assert planned.count("--nice --tries_left=0 -- ") == 15


def test_a_packaged_set_is_not_a_file_of_the_same_content(tmp_path):
    """`articles` puts the study's words before each text."""
    copy = tmp_path / "articles.jsonl"
    copy.write_bytes(prompts.locate("articles")[0].read_bytes())
    digest = hashlib.sha256(copy.read_bytes()).hexdigest()
    packaged = grid.Entry(ENTRY.parameters | {"dataset_name": "articles"})
    write_run(tmp_path / "articles" / "a", packaged, dataset={"source": "packaged", "sha256": digest})
    assert status.find_missing(tmp_path / "articles" / "a", packaged) is None
    entry = grid.Entry(ENTRY.parameters | {"dataset_name": str(copy)})
    assert status.find_missing(tmp_path / "articles" / "a", entry).startswith(
        "dataset_name is 'articles' in the results"
    )


def test_a_results_folder_is_named_in_one_way(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    for given, expected in (("r/", "r"), ("./r//x", "r/x"), ("~/r", "/home/me/r")):
        config = SMALL | {"results_dir": given}
        assert list(grid.plan_runs(config)) == [f"{expected}/b/a"]
        assert config["results_dir"] == expected


def test_runs_that_cannot_be_measured_are_no_jobs_of_a_cluster(tmp_path):
    path, runs = write_study_grid(tmp_path)
    config = yaml.safe_load(path.read_text())
    config["models"] = [config["models"][0], str(tmp_path / "none.gguf")]
    config["datasets"] = [config["datasets"][0], str(tmp_path / "none.txt")]
    path.write_text(yaml.safe_dump(config))
    write_run(tmp_path / "results/short/one", runs[str(tmp_path / "results/short/one")])
    (tmp_path / "results/short/one/run.ipynb").unlink()
    planned = run_snakemake("--configfile", path, "--dry-run")
    assert planned.stdout.count("rule refuse:") == 3
    assert "rule measure:" not in planned.stdout
    assert planned.stdout.count("rule page:") == 1
    lines = [line for line in planned.stderr.splitlines() if line.startswith("error: ")]
    assert lines == [
        f"error: file '{tmp_path}/none.txt' does not exist: check the path",
        f"error: file '{tmp_path}/none.gguf' does not exist: check the path",
    ]
    done = run_snakemake("--configfile", path, "--", tmp_path / "results/short/none.gguf/measure.status.json")
    assert done.returncode != 0
    assert f"  none.gguf on short: file '{tmp_path}/none.gguf' does not exist" in done.stderr


def test_a_syntax_error_in_a_notebook_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks/run.py").write_text("import os\nprint(\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"^'notebooks/run.py', line 2: '\(' was never closed$"):
        dependencies.list_dependencies("notebooks/run.py")


def test_an_old_failure_of_the_book_is_none_of_a_graph_without_it(tmp_path):
    config = SMALL | {"results_dir": str(tmp_path)}
    ((folder, entry), *_) = grid.plan_runs(config).items()
    for folder, entry in grid.plan_runs(config).items():
        write_run(Path(folder), entry)
    log = tmp_path / "logs/book.log"
    log.parent.mkdir()
    log.write_text("# begun\nerror: no\n# ended now: status 1\n")
    assert status.is_complete(config, ["measure", "analyses"])
    assert not status.is_complete(config)
    assert "the book" in status.summarise(config)
    assert "the book" not in status.summarise(config, ["analyses"])


def test_analyses_that_failed_are_made_again_and_older_ones_stay_until_then(tmp_path):
    path, runs = write_study_grid(tmp_path)
    for folder, entry in runs.items():
        write_run(Path(folder), entry)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/sitecustomize.py").write_text(
        "from nucleoscope.stats import parallel\nparallel.map_parallel = None\n"
    )
    broken = os.pathsep.join(filter(None, [str(tmp_path / "broken"), os.environ.get("PYTHONPATH")]))
    analyses = tmp_path / "results" / results.ANALYSES
    analyses.mkdir()
    for name in results.ANALYSIS_FILES:
        (analyses / name).write_text("older")
        os.utime(analyses / name, (2, 2))
    for _ in range(2):
        failed = run_snakemake("--configfile", path, PYTHONPATH=broken)
        assert failed.returncode != 0
        assert failed.stderr.count("localrule analyses:") == 1
        assert "the last attempt to make the analyses failed: " in failed.stderr
        assert {(analyses / name).read_text() for name in results.ANALYSIS_FILES} == {"older"}


def list_marked(tmp_path: Path) -> list[psutil.Process]:
    """The processes that were started with a test's environment and still run."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("NUCLEOSCOPE_TEST") == str(tmp_path) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def send_twice(process: subprocess.Popen) -> None:
    """SIGTERM to the group, and once more, as `timeout 300 make run` does."""
    os.killpg(process.pid, signal.SIGTERM)
    process.terminate()


STOPS = {
    "Ctrl-C": lambda process: os.killpg(process.pid, signal.SIGINT),
    "SIGTERM twice": send_twice,
    "SIGTERM to snakemake alone": lambda process: process.terminate(),
    "SIGHUP to snakemake alone": lambda process: process.send_signal(signal.SIGHUP),
}


@pytest.mark.parametrize("stop", STOPS)
def test_a_graph_that_is_stopped_says_one_line_and_leaves_no_process(tmp_path, stop):
    path, runs = write_study_grid(tmp_path)
    for folder in runs:
        holding.hold(Path(folder))
    command = [sys.executable, "-m", "snakemake", "--cores", "1", "--configfile", str(path)]
    # What handles signals is started as users start it. In two of the cases a notebook's process, which others end, is
    # forked, so that it need not import torch: its environment cannot be seen, and what waits for it is found below.
    real = stop in ("Ctrl-C", "SIGTERM twice")
    environment = os.environ | OFFLINE if real else forks.create_environment(**OFFLINE, FORK_NOTEBOOKS="1")
    environment = holding.create_environment(tmp_path / "held", environment)
    environment["NUCLEOSCOPE_TEST"] = str(tmp_path)
    process = subprocess.Popen(
        [*command, "--set-threads", "measure=1", "--quiet", "host", "rules", "progress", "reason"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=signals.restore,
    )
    end = time.monotonic() + 200
    while not list(tmp_path.glob("results/*/*/batches/*.pt")):
        assert time.monotonic() < end, "nothing was started"
        time.sleep(0.1)
    STOPS[stop](process)
    said, _ = process.communicate(timeout=200)
    assert process.returncode != 0
    assert "interrupted: run the same command again to resume" in said
    assert "Traceback" not in said
    assert "Error in rule" not in said
    assert "Terminating processes" not in said
    assert "runs have been measured" not in said  # no report, and no analyses of half a grid
    assert not list(tmp_path.glob("results/correlation_eval/*"))
    assert psutil.wait_procs(list_marked(tmp_path), timeout=200)[1] == []


def test_a_signal_that_meets_its_own_handler_or_a_held_lock_is_not_waited_for():
    """Snakemake's handler takes a lock that the interrupted thread may have, and would wait for it forever."""
    code = """
        import os, signal, threading
        from nucleoscope.workflow import stopping
        stopping.watch()
        lock, met = threading.Lock(), 0
        for _ in range(2):
            try:
                with lock:
                    for _ in range(3):
                        os.kill(os.getpid(), signal.SIGTERM)
            except KeyboardInterrupt:
                met += 1
        print(met, len(stopping.arrived) > 1, lock.locked())
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | OFFLINE, capture_output=True, text=True, timeout=200)
    assert done.stdout == "1 True False\n", done.stderr


def test_a_job_that_does_not_stop_is_killed_with_what_it_has_started(tmp_path):
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts/job.py").write_text(
        "import pathlib, signal, subprocess\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = subprocess.Popen(['sleep', '600'])\n"
        "pathlib.Path('ready').touch()\n"
        "child.wait()\n"
    )
    # killing takes a while, as on a busy machine: this process must not end between two of them
    code = f"""
        import os, pathlib, psutil, signal, subprocess, sys, time
        from nucleoscope.workflow import stopping
        stopping.PATIENCE = stopping.PAUSE = 0.1
        kill = psutil.Process.kill
        psutil.Process.kill = lambda process: (time.sleep(0.5), kill(process))
        stopping.watch()
        job = subprocess.Popen([sys.executable, "scripts/job.py"], cwd={str(tmp_path)!r})
        while not pathlib.Path({str(tmp_path)!r}, "ready").exists():
            time.sleep(0.05)
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(600)
        except KeyboardInterrupt:
            print(job.wait(200))
    """
    environment = os.environ | OFFLINE | {"NUCLEOSCOPE_TEST": str(tmp_path)}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400)
    assert done.stdout == f"{-signal.SIGKILL}\n", done.stderr
    assert psutil.wait_procs(list_marked(tmp_path), timeout=200)[1] == []


def test_a_wrong_grid_is_one_line_of_the_graph_too(tmp_path):
    (tmp_path / "grid.yml").write_text(yaml.safe_dump(SMALL | {"parameters": {"dtype": "bf16"}}))
    done = run_snakemake("--configfile", tmp_path / "grid.yml")
    assert done.returncode != 0
    assert f"error: '{tmp_path}/grid.yml': parameters: dtype is 'bf16'" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_graph_refuses_a_duplicate_key_in_one_line(tmp_path):
    path = tmp_path / "grid.yml"
    path.write_text("results_dir: results\nmodels: [gpt2]\ndatasets: [xsum]\nmodels: [gpt2-large]\n")
    command = [sys.executable, "-m", "snakemake", "--dry-run", "--nolock", "--cores", "1", "--configfile", str(path)]
    refused = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert refused.returncode
    assert f"error: '{path}', line 4: duplicate key 'models': remove one" in refused.stderr.splitlines()
    assert "Traceback" not in refused.stderr


@pytest.mark.parametrize("target", ["run", "book"])
def test_make_says_in_one_line_that_a_grid_is_missing(target, tmp_path):
    missing = tmp_path / "missing.yml"
    command = ["make", "--assume-old=.venv/.ready", target, f"GRID={missing}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0
    assert done.stderr.splitlines()[0] == (
        f"error: grid '{missing}' does not exist (current folder: {ROOT}): check the path"
    )
    assert "Traceback" not in done.stderr
    missing.write_bytes(b"models: [\xff]")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0
    assert done.stderr.splitlines()[0] == f"error: '{missing}': not UTF-8 text: save the file as UTF-8"
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("place", ["logs", "correlation_eval"])
def test_a_folder_of_all_runs_that_cannot_be_written_to_is_one_line_of_the_graph(tmp_path, place):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / place).write_text("in the way")
    config = {"results_dir": str(tmp_path / "results"), "models": [loading.PACKAGED], "datasets": ["math"]}
    (tmp_path / "grid.yml").write_text(yaml.safe_dump(config))
    done = run_snakemake("--dry-run", "--configfile", tmp_path / "grid.yml")
    assert done.returncode != 0
    line = f"error: '{tmp_path}/results/{place}' is not a folder: use another --results_dir"
    assert line in done.stderr.splitlines()
    assert "Traceback" not in done.stderr


def plan(config: dict, is_main_process: bool = True, nodes: int | None = None) -> graph.Graph:
    """The graph of a grid on this machine, or on a cluster of some ``nodes``, without Snakemake."""
    workflow = SimpleNamespace(
        is_main_process=is_main_process, configfiles=[], resource_settings=SimpleNamespace(nodes=nodes)
    )
    return graph.Graph(config, workflow)


@pytest.mark.parametrize("given", [{}, {"n_prompts": 3}])
def test_a_grid_that_snakemake_has_read_is_named_unless_options_have_changed_it(tmp_path, given):
    path = tmp_path / "grid.yml"
    path.write_text("results_dir: r\nmodels: [a]\ndatasets: [b]\n")
    config = yaml.safe_load(path.read_text()) | {"n_prompts": 3}
    workflow = SimpleNamespace(is_main_process=True, configfiles=[path], config_settings=SimpleNamespace(config=given))
    with pytest.raises(ValueError, match="'n_prompts' belongs under parameters") as caught:
        graph.Graph(config, workflow)
    named = "" if given else f"'{path}': "
    assert assert_one_line(str(caught.value)) == f"{named}'n_prompts' belongs under parameters"


def test_only_the_process_that_hands_jobs_to_a_cluster_tries_them_again(tmp_path):
    """A cluster's job is a Snakemake that reads the same rules."""
    config = {"results_dir": str(tmp_path), "models": [loading.PACKAGED], "datasets": ["math"]}
    assert plan(dict(config)).retries == 1  # which only records that the job was killed
    assert plan(dict(config), nodes=100).retries == graph.CLUSTER_TRIES
    assert plan(dict(config), is_main_process=False).retries == 0


def test_a_run_whose_folder_cannot_be_written_to_is_left_out_and_named(tmp_path, capsys):
    config = {"results_dir": str(tmp_path), "models": [loading.PACKAGED], "datasets": ["math", "stories", "articles"]}
    (tmp_path / "stories").write_text("in the way")
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "articles").write_text("in the way")
    math, stories, articles = grid.plan_runs(config)
    assert list(plan(config).unavailable) == [stories, articles]
    assert capsys.readouterr().err.splitlines() == [
        f"error: '{tmp_path}/{place}' is not a folder: use another --results_dir"
        for place in ("stories", "logs/articles")
    ]
    for file in status.FILES:
        assert not Path(math, file).exists()


def test_a_run_that_another_process_measures_does_not_stop_the_others(tmp_path):
    config = {"results_dir": str(tmp_path), "models": [loading.PACKAGED], "datasets": ["math", "stories"]}
    measured = Path(next(iter(grid.plan_runs(config))))
    measured.mkdir(parents=True)
    lock = locking.Lock(measured)
    try:
        found = plan(config)
    finally:
        lock.release()
    assert found.unavailable == {}
    assert len(found.missing) == 2


def test_a_results_folder_that_cannot_be_written_to_is_one_line_of_the_graph(
    tmp_path, small_disk, small_disk_made_read_only
):
    config = SMALL | {"results_dir": str(small_disk)}
    (tmp_path / "grid.yml").write_text(yaml.safe_dump(config))
    small_disk_made_read_only()
    done = run_snakemake("--configfile", tmp_path / "grid.yml")
    assert done.returncode != 0
    line = f"error: cannot write to '{small_disk}' (Read-only file system): use another --results_dir"
    assert line in done.stderr.splitlines()
    assert "Traceback" not in done.stderr
