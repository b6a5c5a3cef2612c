"""What a run needs of the Hub and cannot have: refused by the command itself, before a slow library is imported.

Each command is a process of its own, which says at its end which of those libraries it has imported.
"""

import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import hub
import tiny
from messages import assert_one_line
from nucleoscope.data import prompts
from nucleoscope.hub import PACKAGED
from nucleoscope.settings import Settings
from nucleoscope.store import results
from nucleoscope.workflow import grid, status
from nucleoscope.workflow.command_line import report_errors

ROOT = Path(__file__).parents[2]
SLOW = ("torch", "transformers", "datasets", "pandas", "papermill", "scipy")
TRACED = f"""
import atexit, runpy, sys
sys.argv = sys.argv[1:]
atexit.register(lambda: print("imported:", sorted(set({SLOW}) & set(sys.modules))))
sys.path.insert(0, "scripts")
runpy.run_path(sys.argv[0], run_name="__main__")
"""
NOTHING = "http://127.0.0.1:9"  # where no Hub answers: as without a network, and at once


def refuse(environment: dict[str, str], *words: str, script: str = "correlation_pipeline.py") -> str:
    """The line with which a script refuses some words, without having imported anything slow."""
    command = [sys.executable, "-c", TRACED, f"scripts/{script}", *words]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == "imported: []"
    line = done.stderr.splitlines()[-1]  # before it, there may be a line about waiting
    assert line.startswith("error: ")
    assert "Traceback" not in done.stderr
    return assert_one_line(line)


def write_description(home: Path, name: str, features: object) -> None:
    """Puts the description of a prepared data set into a cache: no more of it is needed to know its columns."""
    entry = prompts.HUB[name]
    place = home / "datasets" / "nucleoscope" / entry.revisions[-1].replace("/", "-")
    place = place / entry.path.replace("/", "___") / (entry.config or "default") / "0.0.0" / "abc"
    place.mkdir(parents=True)
    (place / "dataset_info.json").write_text(json.dumps({"features": features}))


@pytest.mark.parametrize("name", prompts.HUB)
@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"])
def test_a_data_set_that_is_not_in_the_cache_is_refused_offline(tmp_path, variable, name):
    line = refuse(hub.clean_environment(tmp_path, **{variable: "1"}), f"--dataset_name={name}")
    assert line == (
        f"error: data set {name} is not in the cache {tmp_path}/datasets/nucleoscope, and {variable} is set: unset "
        f"{variable}, or run scripts/prefetch.py on a machine that can reach the Hub, with the same cache folder "
        "(HF_HOME)"
    )


def test_a_data_set_is_refused_without_a_network(tmp_path):
    line = refuse(hub.clean_environment(tmp_path, HF_ENDPOINT=NOTHING), "--dataset_name=gsm8k")
    assert line.startswith("error: data set gsm8k is not on this machine, and the Hub cannot be reached (")
    assert line.endswith(
        "): run scripts/prefetch.py on a machine that can reach the Hub, with the same cache folder (HF_HOME)"
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"HF_HUB_OFFLINE": "1"},
            "hub, and HF_HUB_OFFLINE is set: check the model's name, unset HF_HUB_OFFLINE, or run scripts/prefetch.py "
            "on a machine that can reach the Hub, with the same cache folder (HF_HOME)",
        ),
        ({"HF_ENDPOINT": NOTHING}, "model 'org/tiny' is not on this machine, and the Hub cannot be reached"),
    ],
)
def test_a_model_that_is_not_in_the_cache_is_refused_without_a_network(tmp_path, options, said):
    assert said in refuse(hub.clean_environment(tmp_path, **options), "--model_name=org/tiny")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    tiny.save(folder / "tiny", tiny.create_model(), tiny.create_tokenizer())
    gated = hub.Repository({hub.COMMIT: folder / "tiny"}, {"main": hub.COMMIT}, gated=True)
    served = {"org/tiny": folder / "tiny", "org/gated": gated, "datasets/openai/gsm8k": hub.DISABLED}
    with hub.serve(served) as found:
        yield found


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model_name=org/tiny", "--model_revision=none"], "model 'org/tiny' has no revision 'none': see "),
        (["--model_name=org/none"], "model 'org/none' does not exist or is private: tried "),
        (["--model_name=org/gated"], "model 'org/gated' is gated: ask for access at "),
        (["--dataset_name=gsm8k"], "cannot load data set gsm8k: tried openai/gsm8k on the Hub; revision 740312a"),
        (["--dataset_name=xsum"], "cannot load data set xsum: tried EdinburghNLP/xsum on the Hub; revision 7d4d486"),
        (
            ["--dataset_name=gsm8k", "--prompt_column=x"],
            "prompt_column is 'x', but it cannot be set for gsm8k, whose prompts are always",
        ),
    ],
)
def test_what_the_hub_refuses_is_refused(server, tmp_path, words, said):
    before = len(server.requests)
    assert said in refuse(server.environment(tmp_path), *words)
    assert not [request for request in server.requests[before:] if "/resolve/" in request]  # nothing was downloaded


def test_a_fault_of_a_file_is_found_before_the_hub_is_asked(server, tmp_path):
    before = len(server.requests)
    line = refuse(server.environment(tmp_path), "--model_name=org/tiny", "--dataset_name=none.jsonl")
    assert "file 'none.jsonl' does not exist" in line
    assert server.requests[before:] == []


def test_a_column_that_a_cached_data_set_lacks_is_refused(tmp_path):
    write_description(tmp_path, "gsm8k", {"question": {}, "answer": {}})
    environment = hub.clean_environment(tmp_path, HF_HUB_OFFLINE="1")
    words = ["--dataset_name=gsm8k", "--mode=score", "--model_name=org/tiny"]
    line = refuse(environment, *words, "--text_column=story")
    assert "'gsm8k' has no column 'story': set text_column to 'answer'" in line
    assert "model 'org/tiny' is neither a folder nor in the cache" in refuse(
        environment, *words, "--text_column=answer"
    )


@pytest.mark.parametrize("features", [None, 3, {}, [{"name": "question"}]])
def test_a_description_without_columns_refuses_nothing(tmp_path, monkeypatch, features):
    write_description(tmp_path, "xsum", features)
    monkeypatch.setattr(prompts, "locate_all_caches", lambda: tmp_path / "datasets")
    monkeypatch.setattr(prompts.constants, "HF_HUB_OFFLINE", True)
    assert prompts.is_cached("xsum")
    assert prompts.check("xsum", text_column="summary") is None


def test_a_grid_is_checked_without_slow_imports(tmp_path):
    code = """
import json, sys
from nucleoscope.data import availability
runs = {name: {"model_name": "org/tiny", "dataset_name": name} for name in ("gsm8k", "xsum")}
runs["packaged"] = {"model_name": "SmolLM2-135M-Instruct", "dataset_name": "xsum"}
print(json.dumps([availability.find_unavailable(runs), sorted(set(sys.argv[1:]) & set(sys.modules))]))
"""
    environment = hub.clean_environment(tmp_path, HF_HUB_OFFLINE="1")
    done = subprocess.run(
        [sys.executable, "-c", code, *SLOW], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    found, imported = json.loads(done.stdout)
    assert imported == []
    assert list(found) == ["gsm8k", "xsum", "packaged"]
    assert "data set xsum is not in the cache" in found["packaged"][0]
    assert "HF_HUB_OFFLINE is set: unset HF_HUB_OFFLINE, or run scripts/prefetch.py on" in found["packaged"][0]


def test_prefetching_is_refused_without_slow_imports(tmp_path):
    (tmp_path / "grid.yml").write_text(f"results_dir: {tmp_path}\nmodels: [org/tiny]\ndatasets: [gsm8k]\n")
    environment = hub.clean_environment(tmp_path / "home", HF_ENDPOINT=NOTHING)
    assert "and the Hub cannot be reached (" in refuse(environment, str(tmp_path / "grid.yml"), script="prefetch.py")


# What results that are there already, and names, say


@pytest.fixture
def measured(tmp_path) -> Path:
    """The folder of a finished run of the packaged model, with a few tokens that it did not measure."""
    folder = tmp_path / "results" / "math" / PACKAGED
    folder.mkdir(parents=True)
    record = {"prompt": "a", "tokens": torch.tensor([1]), "top_p_tokens": [torch.tensor([1])], "entropies": [0.0]}
    torch.save([record], folder / results.MEASUREMENTS)
    settings = Settings().describe_measurement(n_prompts=100)
    (folder / results.RUN_INFO).write_text(json.dumps({"settings": settings}))
    return folder


def test_results_with_other_settings_are_refused_by_the_command(tmp_path, measured):
    line = refuse(hub.clean_environment(tmp_path), "--seed=3", f"--results_dir={measured.parents[1]}")
    assert line == (
        f"error: '{measured}' has results with different settings: seed was 0 and is now 3; to replace them, "
        "run scripts/correlation_pipeline.py with --overwrite; to keep both, run it with another --results_dir or "
        "with --named_settings=seed"
    )


def test_damaged_results_are_not_called_measured(tmp_path, measured):
    (measured / results.MEASUREMENTS).write_bytes(b"hi")
    line = refuse(hub.clean_environment(tmp_path), f"--results_dir={measured.parents[1]}")
    assert line.startswith(f"error: '{measured / results.MEASUREMENTS}' is truncated")
    assert line.endswith("repeat the run's command with --overwrite")


def test_a_notebook_that_is_not_there_is_answered_with_those_that_are(tmp_path):
    line = refuse(hub.clean_environment(tmp_path), "indx", str(tmp_path / "a.ipynb"), script="run_notebook.py")
    assert line == "error: there is no notebook 'indx' (did you mean 'index'?)"
    line = refuse(hub.clean_environment(tmp_path), "other", str(tmp_path / "a.ipynb"), script="run_notebook.py")
    assert line.startswith("error: there is no notebook 'other': it must be one of branches, ")


@pytest.mark.parametrize("name", ["file/a.ipynb", "file/sub/a.ipynb"])
def test_a_notebook_is_not_written_below_a_file(tmp_path, name):
    (tmp_path / "file").touch()
    line = refuse(hub.clean_environment(tmp_path), "index", str(tmp_path / name), script="run_notebook.py")
    assert line == f"error: '{tmp_path / 'file'}' is not a folder: choose another output file"


def test_a_folder_without_measurements_is_not_analysed(tmp_path):
    line = refuse(hub.clean_environment(tmp_path), f"--results_dir={tmp_path}", script="correlation_eval.py")
    assert line == f"error: no measurements under '{tmp_path}': measure a model first"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (FileNotFoundError(2, "No such file or directory", "/a b"), "error: '/a b': No such file or directory"),
        (
            OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/a"),
            "error: '/a': No space left on device; free some space and run the same command again",
        ),
        (ValueError("[Errno 5] is a name"), "error: [Errno 5] is a name"),
    ],
)
def test_an_error_of_the_system_is_said_in_words(error, line):
    with pytest.raises(SystemExit, match=f"^{re.escape(line)}$"), report_errors(False, "interrupted"):
        raise error


def test_debug_shows_the_traceback_of_an_error_outside_a_notebook_too(capsys):
    with pytest.raises(SystemExit, match=r"^error: a reason$"), report_errors(True, "interrupted"):
        raise ValueError("a reason")
    said = capsys.readouterr().err
    assert said.startswith("Traceback (most recent call last):")
    assert "test_refusals.py" in said


@pytest.mark.parametrize("name", ["model", "dataset"])
def test_an_identity_in_a_run_json_that_is_no_object_is_a_difference_and_no_traceback(tmp_path, name):
    info = {"settings": {"n_prompts": 3, name: "text"}}
    found = {each for each, *_ in status.list_differences(tmp_path, {"model_name": "m", "dataset_name": "math"}, info)}
    assert {"model_name", "dataset_name"} <= found


@pytest.mark.parametrize("name", ["model", "dataset"])
def test_results_with_an_identity_that_is_no_object_are_not_measured(tmp_path, name):
    entry = grid.Entry({"model_name": "m", "dataset_name": "math", "n_prompts": 1})
    settings = {"model_name": "m", "dataset_name": "math"} | grid.DEFAULTS | entry.parameters
    for found, missing in ((settings, False), (settings | {name: "text"}, True)):
        records = [{"tokens": [], "entropies": []}]
        torch.save(records, tmp_path / "measurements.pt")
        (tmp_path / "run.json").write_text(json.dumps({"settings": found, "n_prompts_requested": 1}))
        said = status.find_missing(tmp_path, entry)
        assert bool(said and "does not name the" in said) == missing, said


@pytest.mark.parametrize(
    "content",
    [
        *('{"state": "failed", "problem": 5}', '{"state": ["failed"]}', '{"state": "failed"}', '{"state": "other"}'),
        *('{"state": "not started", "problem": ""}', "{}", "[]", "{", "5", "", "\xff"),
    ],
)
def test_a_status_file_that_says_nothing_is_a_failure(tmp_path, content):
    path = tmp_path / "status.json"
    path.write_text(content, encoding="latin-1")
    assert status.read_problem(path) == f"'{path}' does not say how the job ended: run the grid again"


def test_a_folder_in_the_place_of_a_status_file_is_a_failure_and_no_file_is_none(tmp_path):
    assert status.read_problem(tmp_path / "none") is None
    assert status.read_problem(tmp_path).endswith(": move it out of the way, then run the grid again")
    status.write_status(tmp_path / "ended", None)
    assert status.read_problem(tmp_path / "ended") is None
    status.write_status(tmp_path / "ended", "a reason", started=False)
    assert status.read_problem(tmp_path / "ended") == "a reason"
