"""A grid with two values of two settings, through the graph: every table, page and report shows them side by side."""

import csv
import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import nbformat
import pandas as pd
import pytest

import forks
import tiny
from nucleoscope.book import site
from nucleoscope.explorer.controls import list_run_options
from nucleoscope.store import results, run_folder
from nucleoscope.views.token_text import escape_name

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
VALUES = list(product((0.9, 0.95), (0, 1)))
NAMES = [f"tiny@top_p={top_p}@seed={seed}" for top_p, seed in VALUES]
pytestmark = pytest.mark.long


def run(*words: str) -> subprocess.CompletedProcess:
    """A command of the project, as users give it."""
    environment = forks.create_environment(**ENVIRONMENT)
    return subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900
    )


@pytest.fixture(scope="module")
def grid(tmp_path_factory) -> Path:
    """The grid's file, after the graph has run it."""
    place = tmp_path_factory.mktemp("side")
    model = tiny.save(place / "tiny", tiny.create_model(), tiny.create_tokenizer())
    rows = [{"prompt": f"the {'cat ' * number}"} for number in range(1, 7)]
    (place / "lines.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    parameters = {"n_prompts": 6, "max_tokens": 16, "top_p": [0.95, 0.9], "seed": [0, 1]}
    parameters["variants"] = "top_p_0.9,top_p_0.95,raw,centred"
    content = {"results_dir": str(place / "results"), "parameters": parameters, "analyses": {"resamples": 100}}
    content |= {"models": [model], "datasets": [str(place / "lines.jsonl")], "resources": {"gpus": 0}}
    path = place / "grid.json"  # JSON is YAML
    path.write_text(json.dumps(content))
    pages = [f"{place}/results/book/{name}.ipynb" for name in ("index", "twelve")]
    words = ["-m", "snakemake", "--cores", "2", "--nolock", "--configfile", str(path), "--", "all", *pages]
    done = run(*words)
    assert done.returncode == 0, done.stderr
    assert "4 of 4 runs have been measured" in done.stderr
    return path


@pytest.fixture(scope="module")
def folder(grid) -> Path:
    return grid.parent / "results"


def read_texts(path: Path) -> str:
    """All that a notebook shows, as one text."""
    cells = nbformat.read(path, as_version=4).cells
    data = [output.data for cell in cells for output in cell.get("outputs", []) if "data" in output]
    return json.dumps(data, ensure_ascii=False)


def test_each_combination_is_measured_in_a_folder_named_after_it_and_planned_no_second_time(grid, folder):
    assert sorted(path.name for path in (folder / "lines").iterdir()) == sorted(NAMES)
    for name, (top_p, seed) in zip(NAMES, VALUES, strict=True):
        settings = results.load_info(folder / "lines" / name)["settings"]
        assert (settings["top_p"], settings["seed"]) == (top_p, seed)
        assert "named_settings" not in settings
        assert (folder / "logs" / "lines" / f"{name}.log").is_file()
    again = run("-m", "snakemake", "--cores", "2", "--nolock", "--configfile", str(grid), "--dry-run")
    assert "Nothing to be done" in again.stdout + again.stderr


def test_every_table_of_the_analyses_has_both_settings_as_columns(folder):
    tables = {path.name: pd.read_csv(path) for path in (folder / results.ANALYSES).glob("*.csv")}
    assert set(tables) == {name for name in results.ANALYSIS_FILES if name.endswith(".csv")}
    for name, table in tables.items():
        head = ["Dataset"] if name == "correlation_models.csv" else ["Model", "Dataset"]
        assert list(table)[: len(head) + 2] == [*head, "top_p", "seed"], name
        if name == "correlation_models.csv":
            assert table.empty  # four runs of one model are not four models
            continue
        assert set(table["Model"]) == {"tiny"}, name  # and there is no pool of them
        rows = table[["top_p", "seed"]].drop_duplicates().to_numpy().tolist()
        assert rows == [list(pair) for pair in VALUES], name
    assert len(tables["correlation_stats.csv"]) == 4
    for path in (folder / results.ANALYSES).glob("*.tex"):
        assert "Model & Data set & top\\_p & seed & " in path.read_text(), path.name


def test_tables_of_tokens_have_both_settings(folder):
    table = results.load_table(folder)
    assert list(table)[:5] == ["model", "dataset", "top_p", "seed", "prompt"]
    assert set(table["model"]) == {"tiny"}
    groups = table.groupby(["top_p", "seed"])["k"]
    assert sorted(groups.groups) == VALUES
    assert groups.mean()[0.95, 0] > groups.mean()[0.9, 0]


def test_figures_menus_and_pages_name_the_values(folder):
    labels = [f"tiny, top_p {top_p}, seed {seed}, lines" for top_p, seed in VALUES]
    made_of = [f"tiny, lines, top_p {top_p}, seed {seed}" for top_p, seed in VALUES]
    analyses = folder / results.ANALYSES
    for path, words in (
        (folder / "book" / "index.ipynb", labels),
        (analyses / "correlation.ipynb", labels),
        (analyses / "fits.ipynb", made_of),
        (analyses / "made_of.ipynb", made_of),
    ):
        shown = read_texts(path)
        assert all(word in shown for word in words), path.name
        assert "differ in `top_p` and `seed`" in shown, path.name
        assert "@top_p" not in shown, path.name
    assert escape_name("tiny on lines, top_p 0.95, seed 1") in read_texts(analyses / "made_of.ipynb")
    twelve = read_texts(folder / "book" / "twelve.ipynb")
    others = "; ".join(f"top_p {top_p}, seed {seed}" for top_p, seed in VALUES[1:])
    assert escape_name(f"It was also measured with {others}.") in twelve
    assert escape_name("top_p 0.9, seed 0, on lines") in twelve


def test_the_table_of_runs_and_the_titles_of_their_pages_show_them(folder):
    files = site.build_run_pages(folder, {})
    index = files["runs/index.md"].decode()
    assert "| model | data set | top_p | seed | prompts |" in index
    rows = [line.split(" | ")[:4] for line in index.splitlines() if line.startswith("| [tiny]")]
    assert [row[1:] for row in rows] == [["lines", str(top_p), str(seed)] for top_p, seed in VALUES]
    for name, (_, seed) in zip(NAMES, VALUES, strict=True):
        address = f"runs/{name.replace('@', '-')}/lines.ipynb"
        page = nbformat.reads(files[address].decode(), as_version=4)
        title = next(cell.source for cell in page.cells if cell.cell_type == "markdown")
        assert title.startswith("# tiny on lines, top")
        assert title.split("\n")[0].endswith(f"seed {seed}")
        assert f"| [tiny](</{address}>) | lines |" in index


def test_the_menu_of_the_live_notebook_and_the_report_name_them(grid, folder):
    options = [label for label, _ in list_run_options(str(folder))]
    assert {f"tiny on lines, top_p {top_p}, seed {seed}" for top_p, seed in VALUES} < set(options)
    missing = folder / "lines" / NAMES[0] / results.RUN_INFO
    content = missing.read_bytes()
    missing.unlink()
    try:
        done = run("scripts/summary.py", str(grid))
    finally:
        missing.write_bytes(content)
    assert "3 of 4 runs have been measured; this one has not:\n  tiny on lines, top_p 0.9, seed 0: " in done.stdout


def test_a_run_is_exported_with_its_settings(folder, tmp_path):
    done = run("scripts/export.py", f"lines/{NAMES[3]}", str(tmp_path / "a.csv"), f"--results_dir={folder}")
    assert done.returncode == 0, done.stderr
    with (tmp_path / "a.csv").open() as file:
        row = next(csv.DictReader(file))
    assert [row[name] for name in ("model", "dataset", "top_p", "seed")] == ["tiny", "lines", "0.95", "1"]
    done = run("scripts/export.py", f"lines/{NAMES[3]}", str(tmp_path / "a.html"), f"--results_dir={folder}")
    assert "<h1>tiny on lines, top_p 0.95, seed 1</h1>" in (tmp_path / "a.html").read_text()


def test_a_single_run_gets_such_a_folder_on_the_command_line_and_else_is_refused(grid, folder):
    model, data = grid.parent / "tiny", grid.parent / "lines.jsonl"
    words = ["scripts/correlation_pipeline.py", f"--model_name={model}", f"--dataset_name={data}", "--n_prompts=6"]
    words += [
        "--max_tokens=16",
        "--top_p=0.95",
        "--seed=1",
        f"--results_dir={folder}",
        "--only=measure",
        "--if_missing",
    ]
    words += ["--variants=top_p_0.9,top_p_0.95,raw,centred"]
    done = run(*words, "--named_settings=seed,top_p")
    assert done.returncode == 0, done.stderr
    assert "already measured with these settings" in done.stdout
    assert done.stdout.rstrip().endswith(f"/{NAMES[3]}")
    before = os.stat(folder / "lines" / NAMES[3] / results.MEASUREMENTS)
    settings = results.load_info(folder / "lines" / NAMES[3])["settings"]
    with pytest.raises(FileExistsError, match=r"top_p was 0.95 and is now 0.9; .* or with --named_settings=top_p"):
        run_folder.RunFolder(folder / "lines" / NAMES[3], settings | {"top_p": 0.9})
    assert os.stat(folder / "lines" / NAMES[3] / results.MEASUREMENTS) == before
