"""The graph repairs what is broken, by the ends of files alone, and names what only its owner may remove."""

import json
import os
import socket
import tempfile
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pandas as pd
import pytest
import torch
import yaml
from test_grid import run_snakemake, write_run

import tiny
from messages import assert_one_line
from nucleoscope.settings import Settings
from nucleoscope.store import integrity, locking, results, run_folder
from nucleoscope.workflow import graph, grid, notebooks, run_notebooks, status


@pytest.fixture
def planned(tmp_path):
    """A grid of one run that is measured, with its page; its graph as Snakemake would have it, and the run's folder."""
    texts = tmp_path / "short.jsonl"
    texts.write_text('{"prompt": "the cat"}\n{"prompt": "she said"}\n{"prompt": "it"}\n')
    model = tiny.save(tmp_path / "one", tiny.create_model(), tiny.create_tokenizer())
    config = {"results_dir": str(tmp_path / "results"), "models": [model], "datasets": [str(texts)]}
    config |= {"parameters": {"max_tokens": 4, "n_prompts": 3}}
    ((folder, entry),) = grid.plan_runs(config).items()
    write_run(Path(folder), entry)
    return config, Path(folder)


def list_forced(config: dict) -> set[str]:
    """The names of the status files of the jobs that the graph plans whatever the dates are."""
    forced: set[str] = set()
    workflow = SimpleNamespace(
        is_main_process=True,
        configfiles=[],
        resource_settings=SimpleNamespace(nodes=None),
        dag=SimpleNamespace(forcefiles=forced),
    )
    found = graph.Graph(config, workflow)
    for folder in found.runs:
        for job in (results.MEASURE, results.PAGE):
            found.force_run_job(folder, job)
    found.force_job("analyses", found.list_analyses())
    return {Path(path).name for path in forced}


def cut(path: Path, share: float = 0.9) -> None:
    os.truncate(path, int(path.stat().st_size * share))


@pytest.mark.parametrize(
    ("name", "jobs"),
    [
        (None, set()),
        ("measurements.pt", {"measure.status.json"}),
        ("run.json", {"measure.status.json"}),
        ("tokens.parquet", {"measure.status.json"}),
        ("run.ipynb", {"run.status.json"}),
    ],
)
@pytest.mark.parametrize("harm", [cut, lambda path: os.truncate(path, 0), Path.unlink])
def test_a_file_of_a_run_that_is_cut_off_empty_or_gone_plans_the_job_that_writes_it(planned, name, jobs, harm):
    config, folder = planned
    if name:
        harm(folder / name)
    assert list_forced(config) == jobs


@pytest.mark.parametrize("name", ["correlation.ipynb", "correlation.png", "correlation.pdf", "fit_stats.csv"])
def test_a_file_of_the_analyses_that_is_cut_off_plans_them(planned, tmp_path, name):
    config, _ = planned
    place = tmp_path / "results" / results.ANALYSES
    place.mkdir()
    content = {".png": b"\x89PNG12IEND\xaeB`\x82", ".pdf": b"%PDF-1\n%%EOF\n", ".csv": b"a\n1\n", ".tex": b"%\n"}
    for file in results.ANALYSIS_FILES:
        (place / file).write_bytes(content.get(Path(file).suffix, b'{\n "cells": []\n}\n'))
    assert list_forced(config) == set()
    cut(place / name, 0 if name.endswith("csv") else 0.8)
    assert list_forced(config) == set(results.ANALYSIS_FILES)


def test_only_the_ends_of_a_file_are_read(tmp_path):
    path = tmp_path / "tokens.parquet"
    with path.open("wb") as stream:  # a terabyte that takes no room
        stream.write(b"PAR1")
        stream.seek(2**40)
        stream.write(b"PAR1")
    assert integrity.find_damage(path) is None


@pytest.mark.parametrize("seed", [0, 1])
def test_what_a_kill_during_the_last_cleanup_left_is_removed_without_a_model(planned, monkeypatch, seed):
    """Batches with another seed are those of a run that was to replace the results, and can still be resumed."""
    config, folder = planned
    ((_, entry),) = grid.plan_runs(config).items()
    monkeypatch.setattr(notebooks, "execute", None)
    before = {path.name for path in folder.iterdir()}
    batches = folder / "batches"
    batches.mkdir()
    (batches / "000000.pt").write_bytes(b"half")
    (batches / "settings.json").write_text(json.dumps(results.load_info(folder)["settings"] | {"seed": seed}))
    (folder / locking.LOCK).write_text(f"process 1 on {socket.gethostname()}\n")
    run_notebooks.measure(Settings(**grid.DEFAULTS | entry.parameters), if_missing=True)
    assert {path.name for path in folder.iterdir()} - before == ({"batches"} if seed else set())
    assert (batches / "000000.pt").exists() == bool(seed)


def test_tokens_are_written_again_without_a_model(planned, monkeypatch, capsys):
    config, folder = planned
    ((_, entry),) = grid.plan_runs(config).items()
    chosen = Settings(**grid.DEFAULTS | entry.parameters)
    before = results.load_run(folder / "measurements.pt", "m", "d")
    monkeypatch.setattr(notebooks, "execute", None)
    for harm in (Path.unlink, cut):
        harm(folder / "tokens.parquet")
        run_notebooks.measure(chosen, if_missing=True)
        assert "was missing or damaged: it was written again" in capsys.readouterr().out
        monkeypatch.setattr(torch, "load", None)
        pd.testing.assert_frame_equal(results.load_run(folder / "measurements.pt", "m", "d"), before)
        monkeypatch.undo()
        monkeypatch.setattr(notebooks, "execute", None)
    run_notebooks.measure(chosen, if_missing=True)
    assert "written again" not in capsys.readouterr().out


def test_what_cannot_be_repaired_is_said(planned):
    _, folder = planned
    (folder / "tokens.parquet").unlink()
    (folder / "tokens.parquet").mkdir()
    with pytest.raises(OSError, match="cannot write") as refused:
        results.repair_tokens(folder)
    assert str(refused.value) == f"cannot write '{folder}/tokens.parquet': it is a folder"


def test_damaged_measurements_are_named_and_a_damaged_run_json_stops_before_the_model(planned):
    config, folder = planned
    ((name, entry),) = grid.plan_runs(config).items()
    cut(folder / "measurements.pt")
    why = assert_one_line(status.find_missing(name, entry))
    assert why == (
        f"'{folder}/measurements.pt' is truncated or was not written by Nucleoscope: repeat the run's command "
        "with --overwrite"
    )
    assert "use its earlier results" not in status.summarise(config)
    (folder / "run.json").write_text('{"settings": ')
    for overwrite in (False, True):
        with pytest.raises(
            ValueError,
            match=(
                r"run.json' is not valid JSON .*: move it out of the way, then repeat the run's command "
                r"with --overwrite$"
            ),
        ):
            run_folder.check(folder, overwrite)
    assert (folder / "run.json").read_text() == '{"settings": '


def test_a_folder_in_the_place_of_a_file_is_named_before_the_model_is_loaded(tmp_path):
    (tmp_path / "measurements.pt").mkdir()
    with pytest.raises(IsADirectoryError, match=r"measurements.pt' is a folder: move it out of the way"):
        run_folder.check(tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="NOT ROOT: another user's folder cannot be made")
def test_a_grid_with_a_run_in_a_colleagues_closed_folder_plans_the_others(monkeypatch, capsys):
    monkeypatch.setattr(graph.Graph, "_find_unavailable", lambda _: {})
    with tempfile.TemporaryDirectory(dir="/tmp") as base:
        os.chmod(base, 0o777)
        config = {"results_dir": base, "models": ["closed", "good"], "datasets": ["math"]}
        closed, good = map(Path, grid.plan_runs(config))
        for folder, entry in grid.plan_runs(config).items():
            write_run(Path(folder), entry)
        closed.chmod(0o700)
        for path in [good.parent, good, *good.glob("*")]:
            os.chown(path, 65534, 65534)
        os.seteuid(65534)
        try:
            assert list_forced(config) == {"measure.status.json"}
            assert list(results.load_readable(base)) == [("good", "math")]
            said = status.summarise(config)
        finally:
            os.seteuid(0)
        assert said.startswith("1 of 2 runs have been measured; this one has not:\n  closed on math: ")
        assert f"'{closed}' cannot be read (Permission denied)" in said
        assert f"skipped: '{closed}': you do not have permission to read this folder" in capsys.readouterr().err


def test_the_graph_repairs_a_run_end_to_end(planned):
    config, folder = planned
    place = folder.parents[2]
    (place / "grid.yml").write_text(yaml.safe_dump(config))
    before = results.load_run(folder / "measurements.pt", "m", "d")
    stamp = (folder / "measurements.pt").stat().st_mtime_ns
    (folder / "tokens.parquet").unlink()
    cut(folder / "run.ipynb")
    goals = [status.locate_status(folder, job) for job in (results.MEASURE, results.PAGE)]
    done = run_snakemake("--configfile", place / "grid.yml", "--", *goals)
    assert done.returncode == 0, done.stderr
    assert "was missing or damaged: it was written again" in status.locate_log(folder).read_text()
    after = results.load_run(folder / "measurements.pt", "m", "d")
    pd.testing.assert_frame_equal(after.drop(columns="text"), before.drop(columns="text"))
    assert nbformat.read(folder / "run.ipynb", 4).cells
    assert (folder / "measurements.pt").stat().st_mtime_ns == stamp  # nothing was measured
    assert json.loads((folder / "measure.status.json").read_text()) == {"state": "succeeded"}
    assert list_forced(config) == set()
