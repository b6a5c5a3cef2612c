"""That nothing has changed is said only if Snakemake, asked about the same files, had nothing to do."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from nucleoscope.store import results
from nucleoscope.workflow import graph, grid, status, unchanged

ROOT = Path(__file__).parents[2]
RUN = Path("results/texts/one")
PAGES = [Path("results", results.PAGES, f"{name}.ipynb") for name in graph.COMBINED_PAGES]
ANALYSES = [Path("results", results.ANALYSES, name) for name in results.ANALYSIS_FILES]
BUILT = Path("_build/html/.built")


@pytest.fixture
def config(tmp_path, monkeypatch) -> dict:
    """A small project in the current folder, with a data set that is a file and a run of it; returns its grid."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(status, "find_missing", lambda *_: None)  # which would look into the files
    files = ["book/method.md", "lib/nucleoscope/a.py", "notebooks/run.py", "profiles/default/c.yaml", "scripts/job.py"]
    written = [RUN / name for name in ("measurements.pt", "run.json", "run.ipynb", "run.status.json")]
    for path in [*files, *unchanged.FILES, "texts.txt", *written, *ANALYSES, *PAGES, BUILT]:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text("one")
    config = {"results_dir": "results", "models": ["one"], "datasets": ["texts.txt"]}
    grid.plan_runs(config)
    return config


def settle(config: dict, target: str = "book") -> None:
    """As make does around a Snakemake that has nothing to do."""
    unchanged.is_settled(config, target)
    unchanged.settle(config, target)


def test_what_is_as_it_was_is_settled_and_says_so_again_and_again(config):
    assert not unchanged.is_settled(config, "book")
    unchanged.settle(config, "book")
    assert unchanged.is_settled(config, "book")
    assert unchanged.is_settled(config, "book")
    assert not unchanged.is_settled(config, "all")  # another target


def rewrite(path: str) -> None:
    """Other content of the same length under the same date, as an archive or a synchronised folder brings it."""
    before = os.stat(path)
    Path(path).write_text("two")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert os.stat(path).st_mtime_ns == before.st_mtime_ns


CHANGES = {
    "a source": lambda: rewrite("lib/nucleoscope/a.py"),
    "a page": lambda: rewrite("book/method.md"),
    "a rule": lambda: rewrite("Snakefile"),
    "the change log": lambda: Path("CHANGELOG.md").unlink(),
    "a new source": lambda: Path("scripts/new.py").touch(),
    "a new folder": lambda: Path("book/use").mkdir(),
    "the data set": lambda: rewrite("texts.txt"),
    "the data set is gone": lambda: Path("texts.txt").unlink(),
    "measurements": lambda: rewrite(str(RUN / "measurements.pt")),
    "an executed notebook": lambda: (RUN / "run.ipynb").unlink(),
    "an analysis": lambda: ANALYSES[0].write_text(""),
    "a date": lambda: os.utime(PAGES[0], (1, 1)),
    "another run": lambda: shutil.copytree(RUN, RUN.with_name("two")),
    "a run is gone": lambda: shutil.rmtree(RUN),
    "another book": lambda: BUILT.touch(),
    "no book": lambda: BUILT.unlink(),
    "the file is another one": lambda: (shutil.copy2("README.md", "copy"), os.replace("copy", "README.md")),
    "the records": lambda: shutil.rmtree(".snakemake"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_after_any_change_snakemake_is_asked(config, change):
    settle(config)
    assert unchanged.is_settled(config, "book")
    change()
    assert not unchanged.is_settled(config, "book")


def test_another_grid_is_another_question(config):
    settle(config)
    assert not unchanged.is_settled(config | {"parameters": {"n_prompts": 3}}, "book")
    assert unchanged.is_settled(config, "book")


def test_what_python_compiles_and_links_that_lead_back_are_no_change(config):
    settle(config)
    cache = Path("lib/nucleoscope/__pycache__")
    cache.mkdir()
    (cache / "a.pyc").touch()
    assert unchanged.is_settled(config, "book")
    Path("results/again").symlink_to(".")
    settle(config)
    assert unchanged.is_settled(config, "book")


def test_a_change_while_snakemake_is_asked_is_not_settled(config):
    unchanged.is_settled(config, "book")
    Path("README.md").write_text("while it starts")
    unchanged.settle(config, "book")
    assert not unchanged.is_settled(config, "book")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"settled": 3}'])
def test_damaged_records_settle_nothing(config, text):
    settle(config)
    (path,) = Path(".snakemake/nucleoscope").iterdir()
    path.write_text(text)
    assert not unchanged.is_settled(config, "book")


# After jobs


def finish(config: dict) -> graph.Graph:
    """The graph of a grid whose files are dated in the order of its jobs, and the jobs as Snakemake has them."""
    workflow = SimpleNamespace(
        is_main_process=True, configfiles=[], resource_settings=SimpleNamespace(nodes=None), cores=2
    )
    order = [[RUN / name for name in status.FILES], [RUN / "run.status.json"], ANALYSES, PAGES, [BUILT]]
    for second, paths in enumerate(order, 2_000_000_000):
        for path in paths:
            os.utime(path, (second, second))
    found = graph.Graph(config, workflow)
    wildcards = SimpleNamespace(folder=str(RUN))
    jobs = {
        "page": (["notebooks/run.py"], [RUN / "run.status.json"]),
        "analyses": (["lib/nucleoscope/a.py"], ANALYSES),
        "combined_page": ([*ANALYSES, "notebooks/run.py"], PAGES),
        "book": ([RUN / "run.status.json", *ANALYSES, *PAGES, "book/method.md"], [BUILT]),
    }
    workflow.dag = SimpleNamespace(
        jobs=[
            SimpleNamespace(rule=SimpleNamespace(name=name), wildcards=wildcards, input=read, output=written)
            for name, (read, written) in jobs.items()
        ]
    )
    return found


def test_after_its_jobs_a_graph_is_settled_for_both_targets(config):
    for target in ("all", "book"):
        unchanged.is_settled(config, target)
    finish(config)._note_built()
    for target in ("all", "book"):
        unchanged.settle(config, target)
        assert unchanged.is_settled(config, target)


def date(path: Path, second: int) -> None:
    os.utime(path, (2_000_000_000 + second,) * 2)


MEANWHILE = {
    "a source is edited": lambda: Path("book/method.md").write_text("other"),
    "a run is added": lambda: shutil.copytree(RUN, RUN.with_name("two")),
    "a run is removed": lambda: shutil.rmtree(RUN),
    "a run is measured again": lambda: date(RUN / "measurements.pt", 2),
    "a page is executed again": lambda: date(PAGES[1], 5),
    "an output is gone": lambda: ANALYSES[2].unlink(),
}


@pytest.mark.parametrize("change", MEANWHILE.values(), ids=MEANWHILE)
def test_what_happens_while_jobs_run_and_is_not_in_the_book_leaves_the_answer_to_snakemake(config, change):
    unchanged.is_settled(config, "book")
    found = finish(config)
    change()
    found._note_built()
    unchanged.settle(config, "book")
    assert not unchanged.is_settled(config, "book")


def test_what_happens_after_the_jobs_leaves_the_answer_to_snakemake(config):
    unchanged.is_settled(config, "book")
    finish(config)._note_built()
    rewrite("README.md")
    unchanged.settle(config, "book")
    assert not unchanged.is_settled(config, "book")


@pytest.mark.parametrize(("cores", "made", "threads"), [(2, False, 1), (2, True, 2), (16, False, 15), (1, True, 1)])
def test_the_analyses_leave_a_core_to_each_new_page(config, cores, made, threads):
    found = finish(config)
    found.workflow.cores = cores
    if not made:
        (RUN / "run.status.json").unlink()
    assert found.count_analysis_threads() == threads


# The command


def test_the_command_settles_and_asks(config):
    Path("grid.json").write_text(json.dumps({name: config[name] for name in ("results_dir", "models", "datasets")}))
    command = [sys.executable, str(ROOT / "scripts/unchanged.py"), "grid.json", "book"]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "lib")}

    def run(*options: str) -> subprocess.CompletedProcess:
        return subprocess.run([*command, *options], capture_output=True, text=True, env=environment)

    assert [run().returncode, run("--settle").returncode, run().returncode] == [1, 0, 0]
    assert run().stdout == "nothing to do: everything is up to date\n"
    rewrite("Snakefile")
    assert run().returncode == 1
