"""What a notebook is made from, and that a change of any file runs exactly the jobs that are made from it."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import forks
from nucleoscope.store import results
from nucleoscope.workflow import dependencies
from nucleoscope.workflow.status import COMBINED_PAGES

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted({path.stem for path in (ROOT / "notebooks").glob("*.py")} - {"explore"})  # which is only opened


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_every_module_that_a_notebook_loads_is_a_dependency(name):
    """The oracle is Python itself; a dependency that is imported inside a function is not loaded here."""
    command = [sys.executable, "tests/execute_imports.py", f"notebooks/{name}.py"]
    done = subprocess.run(
        command, cwd=ROOT, env=forks.create_environment(HF_HUB_OFFLINE="1"), capture_output=True, text=True, check=True
    )
    loaded = {str(Path(path).relative_to(dependencies.PACKAGE)) for path in done.stdout.split()}
    found = dependencies.list_dependencies(ROOT / f"notebooks/{name}.py")
    assert found[0] == str(ROOT / f"notebooks/{name}.py")
    assert loaded <= {str(Path(path).resolve().relative_to(dependencies.PACKAGE)) for path in found[1:]}


def test_imports_inside_functions_short_names_and_files_that_are_not_python_count(tmp_path):
    notebook = tmp_path / "mine.py"
    notebook.write_text("# %%\nfrom nucleoscope import figures\n\n# %%\ndef f():\n    import nucleoscope.views.strip\n")
    found = {Path(path).name for path in dependencies.list_dependencies(notebook)[1:]}
    assert {"figures.py", "strip.py", "strip.js", "strip.css", "quantities.py"} <= found
    assert not {"explorer.js", "fits.py", "prompts.py", "math.jsonl"} & found


STRIP = {"card.js", "card.css", "strip.js", "strip.css"}
TEXTS = STRIP | {"menu.js", "menu.css", "texts.js"}
TREES = {"fork.css", "card.js", "card.css"}  # those of cards only since `assets`, which also reads fork.css, names them
DRAWN = {
    **{"run": TEXTS, "index": STRIP, "twelve": STRIP, "two_texts": STRIP, "choice": TREES, "branches": TREES},
    "explore": TEXTS | {"explorer.js", "explorer.css", "field.js", "field.css", "prompt_menu.js"},
}


@pytest.mark.parametrize("name", [*NOTEBOOKS, "explore"])
def test_the_scripts_and_styles_that_a_notebook_is_made_from_are_those_that_it_draws_with(name):
    found = {Path(path) for path in dependencies.list_dependencies(ROOT / f"notebooks/{name}.py")}
    assert {path.name for path in found if path.parent.name == "static"} == DRAWN.get(name, set())


def test_every_file_that_is_not_python_belongs_to_a_module():
    owners = dependencies._read_data_files()
    assert {path.name for path in owners} >= TEXTS | TREES | {"math.jsonl", "published_correlations.csv", "book.css"}
    assert [path for path, modules in owners.items() if not modules] == []


def test_a_file_that_an_editor_leaves_belongs_to_no_module(tmp_path, monkeypatch):
    package = tmp_path / "nucleoscope"
    shutil.copytree(dependencies.PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    left = [package / ".settings.py.swp", package / "views" / ".cards.py.swp"]
    for path in left:
        path.write_bytes(b"\0")
    monkeypatch.setattr(dependencies, "PACKAGE", package)
    owners = dependencies._read_data_files.__wrapped__()  # not what it found before
    assert [owners.pop(path) for path in left] == [set(), set()]
    assert all(owners.values())


def test_an_import_for_type_checking_only_does_not_count(tmp_path):
    notebook = tmp_path / "mine.py"
    notebook.write_text("from nucleoscope.workflow import status\n")
    found = {Path(path).stem for path in dependencies.list_dependencies(notebook)}
    assert "status" in found
    assert "figures" not in found


def test_a_notebook_about_all_runs_is_in_the_table_of_contents_and_among_those_that_are_executed():
    """Both are in the recipe of CONTRIBUTING.md, "Add a page"; without either, the book is not built."""
    contents = (ROOT / "book/_toc.yml").read_text()
    pages = set(re.findall(r"(?:file|root): (\w+)$", contents, re.MULTILINE))
    assert {name for name in pages if (ROOT / f"notebooks/{name}.py").is_file()} == set(COMBINED_PAGES)


# The graph: a copy of the project, because files are touched


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A copy of the project with a finished grid of one run, whose files are newer than all sources."""
    root = tmp_path_factory.mktemp("copy") / "project"
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("lib", "notebooks", "scripts", "profiles", "book"):
        shutil.copytree(ROOT / name, root / name, ignore=ignore)
    for name in ("Makefile", "Snakefile", "_config.yml", "CHANGELOG.md", "CITATION.cff", "README.md"):
        shutil.copy(ROOT / name, root / name)
    (root / "lines.txt").write_text("the cat\n")
    grid = {"results_dir": "results", "models": ["SmolLM2-135M-Instruct"], "datasets": ["lines.txt"]}
    (root / "grid.json").write_text(json.dumps(grid | {"parameters": {"n_prompts": 1}}))
    subprocess.run([sys.executable, "-c", FINISH], cwd=root, env=create_environment(root), check=True)
    for path in root.rglob("*"):
        newer = path.is_relative_to(root / "results") or path.name == ".built"
        os.utime(path, (2_000_000_000 if newer else 1_000_000_000,) * 2)
    return root


FINISH = """
import hashlib, json
from pathlib import Path
import torch
from nucleoscope.store import integrity, results
from nucleoscope.workflow import graph, grid, status
def write_whole(path):  # whole as far as the graph looks: at the ends
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(integrity.WHOLE.get(path.suffix, (b"whole",))))
((folder, entry),) = grid.plan_runs(grid.load("grid.json")).items()
folder = Path(folder)
folder.mkdir(parents=True)
torch.save([], folder / results.MEASUREMENTS)
results.write_tokens([], folder / results.MEASUREMENTS)
digest = hashlib.sha256(Path("lines.txt").read_bytes()).hexdigest()
settings = grid.DEFAULTS | entry.parameters | {"dataset": {"source": "file", "sha256": digest}}
(folder / results.RUN_INFO).write_text(json.dumps({"settings": settings}))
for name in (results.NOTEBOOK, "variants.parquet"):
    write_whole(folder / name)
for job in (results.MEASURE, results.PAGE):
    status.write_status(status.locate_status(folder, job), None)
pages = [Path("results", results.PAGES, f"{name}.ipynb") for name in graph.COMBINED_PAGES]
files = [Path("results", results.ANALYSES, name) for name in (*results.ANALYSIS_FILES, *results.TEXT_PAIR_FILES)]
for path in (*pages, *files, Path("_build/html/.built")):
    write_whole(path)
"""


def create_environment(root: Path) -> dict[str, str]:
    return forks.create_environment(PYTHONPATH=str(root / "lib"), HF_HUB_OFFLINE="1")


def plan_graph(root: Path, *options: str) -> str:
    """What a dry run of the target book prints."""
    command = [sys.executable, "-m", "snakemake", "--cores", "2", "--dry-run", "--configfile", "grid.json", *options]
    done = subprocess.run(
        [*command, "--", "book"], cwd=root, env=create_environment(root), capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


JOBS = {
    **{"measure": ["measure"], "page": ["run"], "analyses": ["correlation", "fits", "made_of"]},
    **{name: [name] for name in COMBINED_PAGES},
}


def list_jobs(said: str) -> dict[str, set[str]]:
    """{job: its inputs} of a dry run; a page about all runs by its own name."""
    jobs = {}
    for block in re.split(r"\n(?=(?:local)?rule )", said)[1:]:
        name = re.match(r"(?:local)?rule (\w+):", block)[1]
        name = re.search(r"wildcards: name=(\w+)", block)[1] if name == "combined_page" else name
        found = re.search(r"^    input: (.*)$", block, re.MULTILINE)
        jobs[name] = set(found[1].split(", ")) if found else set()
    return jobs


def test_every_module_is_an_input_of_exactly_the_jobs_whose_notebooks_import_it(project):
    jobs = list_jobs(plan_graph(project, "--forceall"))
    assert jobs.keys() == {*JOBS, "book"}
    modules = {str(path.relative_to(project)) for path in (project / "lib").rglob("*.py")}
    assert len(modules) > 50
    for job, notebooks in JOBS.items():
        wanted = {path for name in notebooks for path in dependencies.list_dependencies(ROOT / f"notebooks/{name}.py")}
        wanted = {os.path.relpath(path, ROOT) for path in wanted}
        assert jobs[job] & modules == wanted & modules, job
        assert {f"notebooks/{name}.py" for name in notebooks} <= jobs[job]
    assert modules <= jobs["book"]  # the reference of the package


def test_a_grid_that_asks_for_similarity_in_context_plans_that_job_and_then_the_page_that_shows_it(project):
    grid = json.loads((project / "grid.json").read_text())
    grid["parameters"] |= {"context": True}
    (project / "context.json").write_text(json.dumps(grid))
    jobs = list_jobs(plan_graph(project, "--configfile", "context.json"))
    assert jobs.keys() == {"context", "page", "book"}
    assert any(path.endswith("context.status.json") for path in jobs["page"])
    assert not any("run.status.json" in path or path.endswith("context.pt") for path in jobs["context"])
    wanted = dependencies.list_dependencies(ROOT / "notebooks/context.py")
    assert {os.path.relpath(path, ROOT) for path in wanted} <= jobs["context"]
    assert any(path.endswith("measurements.pt") for path in jobs["context"])
    grid["parameters"] |= {"context_candidates": 0}
    (project / "context.json").write_text(json.dumps(grid))
    assert "Nothing to be done" in plan_graph(project, "--configfile", "context.json")
    (project / "context.json").unlink()


def test_a_page_is_made_again_after_somebody_has_measured_similarity_in_context(project):
    folder = next(project.rglob("measurements.pt")).parent
    paths = [folder / name for name in results.CONTEXT_FILES]
    for path in paths:
        path.write_bytes(b"any")
    # with another threshold, only the last of them is new
    for old, new, planned in ((1_000_000_000, 2_100_000_000, {"page", "book"}), (1_000_000_000, 1_000_000_000, set())):
        for path in paths:
            os.utime(path, (old, old))
        os.utime(folder / results.CONTEXT_INFO, (new, new))
        assert list_jobs(plan_graph(project)).keys() == planned
    for path in paths:
        path.unlink()


def test_a_grid_that_asks_for_branches_plans_one_more_job_for_a_run_and_the_page_that_reads_them(project):
    grid = json.loads((project / "grid.json").read_text())
    grid["parameters"] |= {"branches": True}
    (project / "branches.json").write_text(json.dumps(grid))
    jobs = list_jobs(plan_graph(project, "--configfile", "branches.json"))
    assert jobs.keys() == {"branches", "choice", "book"}
    wanted = dependencies.list_dependencies(ROOT / "notebooks/branches.py")
    assert {os.path.relpath(path, ROOT) for path in wanted} <= jobs["branches"]
    assert any(path.endswith("measurements.pt") for path in jobs["branches"])
    assert any(path.endswith("branches.status.json") for path in jobs["choice"])
    for name in ("branch_points", "context_candidates"):
        (project / "branches.json").write_text(json.dumps(grid | {"parameters": grid["parameters"] | {name: 0}}))
        assert "Nothing to be done" in plan_graph(project, "--configfile", "branches.json")
    (project / "branches.json").unlink()


def test_a_table_of_the_page_about_two_texts_that_is_gone_is_written_again(project):
    path = project / "results/correlation_eval/two_texts_bins.csv"
    path.rename(path.with_suffix(".away"))
    assert list_jobs(plan_graph(project)).keys() == {"two_texts", "book"}
    path.with_suffix(".away").rename(path)


def test_a_duplicate_key_in_the_default_grid_is_refused_without_configfile_too(project):
    path = project / "scripts/grids/default.yml"
    text, before = path.read_text(), path.stat()
    path.write_text(f"{text}datasets:\n  - math\n")
    command = [sys.executable, "-m", "snakemake", "--cores", "2", "--dry-run"]
    done = subprocess.run(command, cwd=project, env=create_environment(project), capture_output=True, text=True)
    path.write_text(text)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    line = len(text.splitlines()) + 1
    assert done.returncode != 0
    said = f"error: 'scripts/grids/default.yml', line {line}: duplicate key 'datasets': remove one"
    assert said in done.stderr.splitlines()
    assert "Traceback" not in done.stderr


def test_nothing_is_planned_after_a_finished_grid(project):
    assert "Nothing to be done" in plan_graph(project)


@pytest.mark.parametrize(
    ("touched", "planned"),
    [
        ("notebooks/run.py", {"page"}),
        ("notebooks/measure.py", {"measure"}),
        ("notebooks/twelve.py", {"twelve"}),
        ("lib/nucleoscope/stats/calibration.py", {"two_texts"}),
        ("lib/nucleoscope/views/static/strip.js", {"page", "two_texts", "twelve", "index"}),
        ("lib/nucleoscope/views/static/texts.js", {"page"}),
        ("lib/nucleoscope/views/static/fork.css", {"choice"}),
        ("lib/nucleoscope/measure/batching.py", {"measure"}),
        ("lib/nucleoscope/models/loading.py", {"measure"}),
        ("lib/nucleoscope/models/tokenizers.py", {"measure", "page", "two_texts", "twelve", "index", "choice"}),
        ("lib/nucleoscope/stats/fits.py", {"analyses", "index"}),  # the front page shows coefficients of the analyses
        ("lib/nucleoscope/stats/theory.py", {"theory"}),
        ("lib/nucleoscope/stats/choice.py", {"choice"}),
        ("lib/nucleoscope/measure/branching.py", set()),
        (
            "lib/nucleoscope/store/results.py",
            {"measure", "page", "analyses", "index", "theory", "two_texts", "twelve", "choice"},
        ),
        ("lib/nucleoscope/explorer/explorer.py", set()),
        ("book/method.md", set()),
        ("README.md", set()),
    ],
)
def test_touching_a_file_plans_the_jobs_that_are_made_from_it_and_the_book(project, touched, planned):
    os.utime(project / touched, (2_100_000_000,) * 2)
    try:
        assert list_jobs(plan_graph(project)).keys() == planned | {"book"}
    finally:
        os.utime(project / touched, (1_000_000_000,) * 2)


def test_every_file_that_the_graph_reads_or_writes_is_watched_for_changes(project):
    """`unchanged` answers for Snakemake, so it must see every file that decides Snakemake's answer."""
    said = plan_graph(project, "--forceall")
    lines = re.findall(r"^    (?:in|out)put: (.*)$", said, re.MULTILINE)
    named = {re.sub(r" \(update\)$", "", path) for line in lines for path in line.split(", ")}
    assert {"README.md", "notebooks/fits.py", "_build/html/.built", "results/correlation_eval/fits.ipynb"} <= named
    command = "from nucleoscope.workflow import grid, unchanged as u; c = grid.load('grid.json')"
    command += "; print(*u.describe_sources(c), *u.describe_results(c), sep='\\n')"
    done = subprocess.run(
        [sys.executable, "-c", command],
        cwd=project,
        env=create_environment(project),
        capture_output=True,
        text=True,
        check=True,
    )
    watched = {os.path.realpath(project / line.rpartition(" (")[0]) for line in done.stdout.splitlines()}
    missing = {path for path in named if os.path.realpath(project / path) not in watched}
    assert missing == set()
    assert str((project / "lines.txt").resolve()) in watched


def test_make_starts_snakemake_only_if_something_has_changed_since_it_had_nothing_to_do(project):
    def run_make(*options: str) -> str:
        given = ["--assume-old=.venv/.ready", f"BIN={Path(sys.executable).parent}", "GRID=grid.json", *options]
        alone = {name: value for name, value in create_environment(project).items() if not name.startswith("MAKE")}
        done = subprocess.run(
            ["make", "book", *given], cwd=project, env=alone, capture_output=True, text=True, check=True
        )
        return done.stdout + done.stderr

    started = "Building DAG of jobs"
    assert "Nothing to be done" in run_make()
    said = run_make()
    assert started not in said
    assert "nothing to do: everything is up to date" in said
    assert said.rstrip().endswith("_build/html/index.html")
    assert started in run_make("FLAGS=--dry-run")  # the user's own flags are for Snakemake
    (project / "scratch.txt").touch()  # which no job reads
    assert started not in run_make()
    (project / "results" / "note.txt").touch()
    assert "Nothing to be done" in run_make()
    assert started not in run_make()
