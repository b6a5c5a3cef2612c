"""Bad input in every place where there is any: refused at once, in one line that names what is wrong.

Most cases call the functions that the command line calls, in this process; some start the commands themselves.
"""

import io
import json
import os
import resource
import subprocess
import sys
from datetime import date
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow
import pytest
import yaml
from pyarrow import parquet

from messages import assert_one_line
from nucleoscope import settings
from nucleoscope.data import prompts
from nucleoscope.models import devices, gpus
from nucleoscope.settings import Settings
from nucleoscope.store import results, text_pairs
from nucleoscope.store import variants as store_variants
from nucleoscope.workflow import grid, run_notebooks, status

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
try:
    import correlation_eval
    import correlation_pipeline
    import job
    import prefetch
    import summary
finally:
    sys.path.pop(0)

LONG = "9" * 5000  # Python reads no whole number of more than 4300 digits
UNPRINTABLE = ["\0", "a\0b", "a\nb", "a\r\nb", "\x1b[31mred", "\x7f", "a\u2028b", "\ud800", "a\udcff"]
BLANK = ["", " ", "\t", " \n ", "\u3000"]
NAMES = [name for name, each in settings.FIELDS.items() if each.metadata["type"] is not bool]
COUNTS = ["n_prompts", "max_tokens", "batch_size"]
TEXTS = [name for name in NAMES if settings.describe_range(name) == "be text"]
PATHS = [name for name in NAMES if settings.FIELDS[name].metadata["is_path"]]


@pytest.fixture(autouse=True)
def nothing_runs(monkeypatch, tmp_path):
    """No notebook is executed, whatever a test lets through, and nothing is looked up on the Hub."""

    def execute(*_):
        raise AssertionError("it was not refused")

    monkeypatch.setattr(run_notebooks, "_execute", execute)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def refuse(monkeypatch, capsys):
    """Gives the line with which a script, run in this process with some words, refuses them."""

    def run(script, *words: str) -> str:
        monkeypatch.setattr(sys, "argv", [script.__file__, *words])
        with pytest.raises(SystemExit) as ended:
            script.main()
        assert ended.value.code not in (None, 0)
        said = ended.value.code if isinstance(ended.value.code, str) else capsys.readouterr().err
        assert "Traceback" not in said
        assert said.startswith("error: ")
        assert all(letter.isprintable() for letter in said.rstrip("\n"))
        return assert_one_line(said)

    return run


def number_ids(value: object) -> str:
    """A short name of a value for pytest, which would print it."""
    return settings.quote(value)[:30].encode("ascii", "backslashreplace").decode()


# Settings, as words of the command line


def list_bad_words() -> list[tuple[str, str]]:
    """Each setting with words that it may not be."""
    numbers = ["nan", "-inf", "1e400", "", " ", "x", "None", "True", "[1]", "0x10", "1,5", "--", "\0", "\ud800", "½"]
    pairs = [(name, word) for name in COUNTS for word in [*numbers, "0", "-1", "2.5", "1e3", LONG, str(10**19), "1.0"]]
    pairs += [("seed", word) for word in [*numbers, "2.5", "1e3", LONG, "-" + LONG, str(2**53 + 1), str(-(2**64))]]
    pairs += [("top_p", word) for word in [*numbers, "0", "-0.1", "1.0001", "90", LONG, "1e-400"]]
    pairs += [("temperature", word) for word in [*numbers, "0", "-1", "1e-40", "9e-31", "inf", LONG]]
    for name in ("mode", "prompt_format", "dtype"):
        pairs += [(name, word) for word in ["", " ", "x", "None", "AUTO", "raw chat", "0", "é", "\0", "\ud800", "a\nb"]]
    pairs += [("dtype", word) for word in ["float64", "fp16", "int8", "torch.float32"]]
    places = ["", " ", "x", "gpu", "meta", "hpu", "privateuseone", "foo", "cpu:x", "cuda:", "cuda:-1", "cuda:1000"]
    pairs += [
        ("device", word) for word in [*places, "CUDA", "cuda:0,1", "auto:1", "balanced:0", "cuda:٣", "\0", "cpu\n"]
    ]
    days = ["", "today", "2024", "2024-7-1", "2024-02-30", "20240726", "26.07.2024", "2024-W01-1", "0000-00-00", "\0"]
    pairs += [("template_date", word) for word in days]
    pairs += [(name, word) for name in TEXTS for word in [*BLANK, *UNPRINTABLE, "x" * 5000]]
    pairs += [(name, "x/" * 10 + "é" * 200) for name in PATHS]
    return pairs + [(name, "~no-such-user/x") for name in PATHS]


@pytest.mark.parametrize(("name", "word"), list_bad_words(), ids=number_ids)
def test_a_word_that_a_setting_cannot_be_is_named_with_it(refuse, name, word):
    line = refuse(correlation_pipeline, f"--{name}={word}")
    assert line.startswith(f"error: {name} is ")
    assert ": it must " in line


@pytest.mark.parametrize("name", NAMES)
def test_a_setting_without_its_value_says_how_to_give_one(refuse, name):
    for words in ([f"--{name}"], [f"--{name}", "--debug"], [f"--{name}", "-x.jsonl"]):
        assert f"--{name} needs a value; if the value begins with a dash, write --{name}=VALUE" in refuse(
            correlation_pipeline, *words
        )


@pytest.mark.parametrize("name", [name for name in settings.FIELDS if name not in NAMES])
def test_a_flag_takes_no_value(refuse, name):
    assert f"--{name} is a flag: it takes no value, but got 'yes'" in refuse(correlation_pipeline, f"--{name}=yes")


@pytest.mark.parametrize(
    "word", ["--modle_name=x", "x", "--n-prompts=3", "-n", "--top", "--\ud800", "a\nb", "x" * 5000]
)
def test_an_unknown_option_is_named(refuse, word):
    line = refuse(correlation_pipeline, word)
    assert "unrecognized arguments: " in line
    assert line.rstrip().endswith("'?)" if "did you mean" in line else "(see --help)")


NO_EFFECT = [  # words of the command line, and the lines that say which of them have no effect
    (["--context_candidates=4"], ["note: context_candidates has no effect without --context or --branches"]),
    (["--context_candidates=8"], ["note: context_candidates has no effect without --context or --branches"]),
    (["--context_threshold=0.7", "--branches"], ["note: context_threshold has no effect without --context"]),
    (["--context", "--branch_points=2"], ["note: branch_points has no effect without --branches"]),
    (["--only=page", "--context"], ["note: --only page does not run context.py: --context has no effect"]),
    (["--only=context", "--branches"], ["note: --only context does not run branches.py: --branches has no effect"]),
    (
        ["--only=measure", "--branches", "--branch_length=9"],
        [
            "note: --only measure does not run branches.py: --branches has no effect",
            "note: branch_length has no effect with --only measure",
        ],
    ),
    (["--if_missing", "--branch_points=2"], ["note: branch_points has no effect without --branches"]),
    (["--only=page", "--if_missing", "--overwrite", "--context", "--branch_points=2"], []),  # as the graph's jobs do
    (["--context", "--context_candidates=4"], []),
    (["--branches", "--context_candidates=4", "--branch_points=2"], []),
    (["--only=context", "--context", "--context_candidates=4", "--context_memory=64"], []),
    (["--only=branches", "--context_candidates=4", "--branch_replicates=2"], []),
    (["--seed=3"], []),
]


@pytest.mark.parametrize(("words", "notes"), NO_EFFECT, ids=number_ids)
def test_an_option_that_has_no_effect_is_named_before_anything_starts(monkeypatch, capsys, words, notes):
    started = []
    for name in ("measure", "measure_context", "measure_branches", "write_page"):
        monkeypatch.setattr(run_notebooks, name, lambda *_: started.append(capsys.readouterr().err))
    monkeypatch.setattr(sys, "argv", [correlation_pipeline.__file__, *words])
    correlation_pipeline.main()
    assert started[0].splitlines() == notes
    assert not any(started[1:])


# Settings, as values of a notebook or a program


def list_bad_values() -> list[tuple[str, object]]:
    """Each setting with values that it may not be."""
    deep: list = []
    for _ in range(3000):
        deep = [deep]
    things = [[], {}, b"x", 1j, object, Decimal("0.5"), np.array([1, 2]), deep, (), float, {1}, range(3)]
    pairs = [(name, value) for name in settings.FIELDS for value in things]
    numbers = [True, False, None, math_nan := float("nan"), float("inf"), -1, np.nan, np.float32("inf"), np.bool_(True)]
    pairs += [(name, value) for name in (*COUNTS, "top_p", "temperature") for value in [*numbers, 10**5000, "3"]]
    pairs += [(name, value) for name in COUNTS for value in (0, 2.5, 1.0, np.float64(3), 10**9 + 1)]
    pairs += [("seed", value) for value in (True, None, 2.5, math_nan, 2**53 + 1, -(10**5000), "0", np.bool_(False))]
    flags = [name for name in settings.FIELDS if name not in NAMES]
    pairs += [(name, value) for name in flags for value in (0, 1, "True", "no", None, np.bool_(True), math_nan)]
    others = [name for name in NAMES if settings.FIELDS[name].metadata["type"] is str]
    pairs += [(name, value) for name in others for value in (3, 2.5, True, math_nan, Path("x"))]
    return pairs + [(name, None) for name in others if settings.FIELDS[name].default is not None]


@pytest.mark.parametrize(("name", "value"), list_bad_values(), ids=number_ids)
def test_a_value_that_a_setting_cannot_be_is_named_with_it(name, value):
    with pytest.raises(ValueError, match=f"^{name} is ") as caught:
        settings.Settings.collect({name: value})
    assert_one_line(str(caught.value))


@pytest.mark.parametrize(
    ("name", "value", "normal"),
    [
        ("n_prompts", np.int64(3), 3),
        ("temperature", 2, 2.0),
        ("top_p", np.float32(0.5), 0.5),
        ("results_dir", "~/r", "/home/me/r"),
        ("dataset_name", "~/a.txt", "/home/me/a.txt"),
        ("model_name", "~/m", "/home/me/m"),
        ("results_dir", "a~b", "a~b"),
        ("batch_size", "auto", "auto"),
        ("template_date", date(2024, 7, 26), "2024-07-26"),  # which YAML makes of it without quotation marks
        ("text_column", None, None),
    ],
)
def test_a_valid_value_gets_its_normal_form(monkeypatch, name, value, normal):
    monkeypatch.setenv("HOME", "/home/me")
    found = getattr(settings.Settings(**{name: value}, mode="generate").check(), name)
    assert found == normal
    assert type(found) is type(normal)
    json.dumps(found)


# Combinations of settings, and what they name


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--mode=score"], "mode=score needs text_column"),
        (
            ["--text_column=x"],
            "text_column is 'x', but only mode=score measures existing texts: omit text_column, or set mode=score",
        ),
        (["--model_revision=main"], "model_revision is 'main', but 'SmolLM2-135M-Instruct' is the packaged model"),
        (["--prompt_column=x"], "'math' has no column 'x': set prompt_column to one of 'prompt', 'answer'"),
        (
            ["--mode=score", "--text_column=summary"],
            "'math' has no column 'summary': set text_column to 'answer'",
        ),
        (
            ["--mode=score", "--text_column=answer", "--dataset_name=stories"],
            "'stories' has no column 'answer': its only column is 'prompt', so it has no texts to measure",
        ),
        (["--dataset_name=poems"], "unknown data set 'poems': it must be gsm8k, writingprompts"),
        (["--dataset_name=storys"], "unknown data set 'storys' (did you mean 'stories'?): it must be gsm8k"),
        (["--dataset_name=GSM8k"], "unknown data set 'GSM8k' (did you mean 'gsm8k'?): it must be gsm8k"),
        *((["--dataset_name=" + entry.path], f"(did you mean '{name}'?)") for name, entry in prompts.HUB.items()),
        (
            ["--dataset_name=https://huggingface.co/datasets/openai/gsm8k"],
            "unknown data set 'https://huggingface.co/datasets/openai/gsm8k' (did you mean 'gsm8k'?): it must be gsm8k",
        ),
        (["--dataset_name=org/prompts"], ".parquet or .txt; other data sets on the Hub must be saved to a file first"),
        *(
            ([f"--dataset_name={name}"], f"'{name}' is a URL: save the data set to a file, and give its path")
            for name in ("https://example.org/prompts.csv", "https://huggingface.co/datasets/org/prompts")
        ),
        (["--dataset_name=/tmp"], "'/tmp' is a folder: a data set must be gsm8k, writingprompts, xsum, math"),
        (["--model", "gpt2"], "unrecognized arguments: --model gpt2 (did you mean '--model_name'?)"),
        (["--text=answer"], "unrecognized arguments: --text=answer (did you mean '--text_column'?)"),
        (["--max_token=3"], "unrecognized arguments: --max_token=3 (did you mean '--max_tokens'?)"),
        (["--top-p=0.5"], "unrecognized arguments: --top-p=0.5 (did you mean '--top_p'?)"),
        (["--dataset_name=none.jsonl"], "file 'none.jsonl' does not exist"),
        (["--dataset_name=-none.jsonl"], "file '-none.jsonl' does not exist"),
        (["--dataset_name=.jsonl"], "unknown data set '.jsonl'"),
        (
            ["--dataset_name=.."],
            "dataset_name is '..', but no results folder can have that name: give a data set or a file",
        ),
        (
            ["--model_name=/"],
            "model_name is '/', but no results folder can have that name: give the model's folder by its name",
        ),
        (["--model_name=/no/such/place"], "'/no/such/place' is neither an existing folder nor a valid model id"),
        (["--model_name=none.gguf"], "file 'none.gguf' does not exist"),
        (["--model_name=~/none"], "/none' is neither an existing folder nor a valid model id"),
        (["--model_name=a b"], "'a b' is neither an existing folder nor a valid model id"),
        (["--model_name=SmolLM2-999B"], "model 'SmolLM2-999B' is neither a folder nor in the cache"),
        (["--model_name=smollm2-135m"], "check the model's name (did you mean 'SmolLM2-135M-Instruct'?), unset HF_HUB"),
        (["--model_name=SmolLM2-360M-Instruct"], "check the model's name, unset HF_HUB"),
        (["--model_name=SmolLM2-135M-instruct"], "check the model's name (did you mean 'SmolLM2-135M-Instruct'?), "),
        (["--model_name=org/SmolLM2-135M"], "check the model's name, unset HF_HUB_OFFLINE, or run scripts/prefetch.py"),
        (["--named_settings=top_p seed"], "named_settings is 'top_p seed': separate names with commas"),
        (["--only=page"], "has no results to show (run.json is missing): measure the run first"),
        (["--results_dir=/dev/null/x"], "'/dev/null' is not a folder: use another --results_dir"),
        (["--mode=score", f"--text_column={'é' * 200}"], "the name of a results folder would be "),
        (["--mode=score", "--text_column=nothing"], "has no column 'nothing': set text_column to 'answer'"),
        (["--prompt_column=nothing"], "has no column 'nothing': set prompt_column to one of 'prompt'"),
        (
            ["--dataset_name=gsm8k", "--prompt_column=answer"],
            "prompt_column is 'answer', but it cannot be set for gsm8k, whose prompts are always in column 'question'; "
            "omit prompt_column",
        ),
        (
            ["--dataset_name=lines.txt", "--prompt_column=text"],
            "prompt_column is 'text', but 'lines.txt' has no columns: each of its lines is a prompt; omit",
        ),
        (["--dataset_name=gone.txt", "--prompt_column=text"], "file 'gone.txt' does not exist: check the path"),
        (["--only=page", "--only=measure"], "--only is given twice: give it once"),
        (["--only=both"], "argument --only: invalid choice: 'both'"),
    ],
    ids=number_ids,
)
def test_settings_that_cannot_work_are_refused_before_anything_starts(refuse, words, line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lines.txt").write_text("a prompt\n")
    assert line in refuse(correlation_pipeline, *words)


MEASURED = {"model_name": "m", "dataset_name": "lines.jsonl", "max_tokens": 5, "n_prompts": 3, "dtype": "float32"}
SHOWN = {"tokens": 3, "prompts_truncated": 0, "device": "cpu"}  # what the page of a run shows besides


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["--max_tokens=6"],
            "has results with different settings: max_tokens was 5 and is now 6; this command does not measure the run "
            "again: omit max_tokens, or measure with this value first, without --only",
        ),
        (["--max_tokens=100"], "max_tokens was 5 and is now 100"),  # the default, but typed
        (["--n_prompts=4", "--top_p=0.5"], "top_p was 0.9 and is now 0.5, n_prompts was 3 and is now 4"),
        (["--dtype", "bfloat16"], "dtype was 'float32' and is now 'bfloat16'"),
        (["--seed=1"], "seed was 0 and is now 1"),
        (["--prompt_format=chat"], "prompt_format was 'raw' and is now 'chat'"),
        (["--model_name=other/m"], "model_name was 'm' and is now 'other/m'"),
        (
            ["--model_name=other/m", "--seed=1"],
            "give the model_name that the results were measured with and omit seed, or measure in another",
        ),
    ],
)
def test_a_page_is_refused_for_settings_with_which_its_run_was_not_measured(refuse, tmp_path, words, said):
    folder = tmp_path / "results/lines/m"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"settings": MEASURED} | SHOWN))
    names = ["--only=page", "--model_name=m", "--dataset_name=lines.jsonl"]
    assert said in refuse(correlation_pipeline, *names, *words)


@pytest.mark.parametrize(
    "words", [[], ["--max_tokens=5", "--n_prompts=3"], ["--device=cpu", "--batch_size=2", "--overwrite"]]
)
def test_a_page_needs_no_settings_and_takes_those_of_its_run(monkeypatch, tmp_path, words):
    folder = tmp_path / "results/lines/m"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"settings": MEASURED} | SHOWN))
    (folder / "measurements.pt").touch()
    executed = []
    monkeypatch.setattr(run_notebooks, "_execute", lambda name, *_: executed.append(name))
    names = ["--only=page", "--model_name=m", "--dataset_name=lines.jsonl"]
    monkeypatch.setattr(sys, "argv", [correlation_pipeline.__file__, *names, *words])
    correlation_pipeline.main()
    assert executed == ["run"]
    (folder / "measurements.pt").unlink()
    with pytest.raises(
        SystemExit,
        match=r"/m' has no measurements\.pt: repeat the run's command with --overwrite$",
    ):
        correlation_pipeline.main()


@pytest.mark.parametrize("lost", ["measurements.pt", "run.json"])
def test_what_is_made_from_results_is_skipped_without_them_if_asked_to(tmp_path, capsys, lost):
    chosen = Settings(model_name="m", dataset_name="lines.jsonl", results_dir=str(tmp_path))
    folder = tmp_path / "lines/m"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"settings": MEASURED}))
    (folder / "measurements.pt").touch()
    (folder / lost).unlink()
    run_notebooks.write_page(chosen, True)
    run_notebooks.measure_context(chosen, True)
    run_notebooks.measure_branches(chosen, True)
    said = [f"{folder} has no results to {what}" for what in ("show", "measure in context", "branch from")]
    assert capsys.readouterr().out.splitlines() == said


CPU_BUILD = "the installed torch is built for CPUs only"


@pytest.mark.parametrize(
    ("device", "platform", "build", "there", "why"),
    [
        ("cuda", "linux", "2.13.0+cpu", ["GPU-1"], f"{CPU_BUILD}; install a CUDA build of torch, or"),
        ("balanced", "linux", "2.13.0+cpu", ["GPU-1"], f"{CPU_BUILD}; install a CUDA build of torch, or"),
        ("cuda:0", "linux", "2.13.0+cpu", [], f"{CPU_BUILD};"),
        ("xpu", "linux", "2.13.0+cpu", [], f"{CPU_BUILD};"),
        ("cuda:2", "linux", "2.13.0", ["GPU-1", "GPU-2"], "its GPUs are cuda:0 to cuda:1"),
        ("cuda:1", "linux", "2.13.0", ["GPU-1"], "its only GPU is cuda:0"),
        ("mps", "linux", "2.13.0", [], "mps needs a Mac"),
        ("cuda:1", "linux", "2.13.0", ["GPU-1", "GPU-2"], None),
        ("cuda:5", "linux", "2.13.0+rocm6", [], None),  # AMD's are not listed
        ("mps", "darwin", "2.13.0", [], None),
        ("auto", "linux", "2.13.0+cpu", [], None),
        ("cpu:0", "linux", "2.13.0+cpu", [], None),
    ],
)
def test_a_device_that_the_machine_cannot_have_is_refused_without_torch(
    monkeypatch, device, platform, build, there, why
):
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr("importlib.metadata.version", lambda name: build)
    monkeypatch.setattr(gpus, "list_names", lambda: there)
    if why is None:
        devices.check(device)
        return
    with pytest.raises(ValueError, match=r"^device is ") as caught:
        devices.check(device)
    advice = f"{why} use device=auto" if why.startswith(CPU_BUILD) else f"{why}; use device=auto"
    assert str(caught.value) == f"device is '{device}', which cannot be used on this machine: {advice}"


def test_a_run_without_settings_is_refused_before_a_model_is_loaded(refuse, tmp_path):
    folder = tmp_path / "results/math/SmolLM2-135M-Instruct"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text("{}")
    said = "run.json' contains no settings: move it out of the way, then repeat the run's command with --overwrite"
    for words in (["--only=page", "--top_p=0.5"], ["--only=measure"]):
        assert said in refuse(correlation_pipeline, *words)


def test_a_file_or_nothing_is_no_folder_of_results(tmp_path):
    (tmp_path / "a.csv").write_text("")
    with pytest.raises(NotADirectoryError, match=r"a\.csv' is a file: results_dir must name a folder$"):
        results.check_folder(tmp_path / "a.csv")
    with pytest.raises(FileNotFoundError, match="none' does not exist"):
        text_pairs.find_pairs(str(tmp_path / "none"))


def test_a_run_that_is_not_there_and_a_folder_instead_of_its_file_say_what_to_give(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"x' has no run\.json: measure the run first$"):
        results.load_info(str(tmp_path / "x"))
    with pytest.raises(IsADirectoryError, match=r"' is a folder: give its measurements\.pt$"):
        results.load(tmp_path)


@pytest.mark.parametrize(
    ("total", "missing", "said"),
    [
        (1, 1, "the only run has not been measured:"),
        (1, 0, "the only run has been measured"),
        (3, 0, "3 of 3 runs have been measured"),
        (3, 1, "2 of 3 runs have been measured; this one has not:"),
        (1200, 2, "1,198 of 1,200 runs have been measured; these have not:"),
    ],
)
def test_a_report_counts_runs_in_words_that_are_right_for_any_number(total, missing, said):
    assert status._count_measured(total, missing) == said


def test_an_unmeasured_candidate_set_is_not_called_unknown():
    describe = store_variants._describe_unmeasured
    assert describe("candidates", "top_p_0.5", ["top_p_0.9"]) == (
        "candidate set 'top_p_0.5' was not measured; measured here: top_p_0.9"
    )
    assert describe("candidates", "foo", ["top_p_0.9"]) == ("there is no candidate set 'foo'; measured here: top_p_0.9")
    assert describe("geometry", "rawe", ["raw", "output"]) == (
        "there is no geometry 'rawe' (did you mean 'raw'?); measured here: raw, output"
    )


def test_a_list_of_dtypes_with_auto_says_why_not():
    with pytest.raises(ValueError, match=r"^dtype lists auto alone: set dtype: auto without a list$"):
        settings.list_values("dtype", ["auto"])


# Files of prompts


def write_parquet(**columns) -> bytes:
    stream = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), stream)
    return stream.getvalue()


DEEP = b"[" * 20_000
GOOD = b'{"prompt": "a"}\n'
FILES = {  # name -> content, and what the line says
    "empty.jsonl": (b"", "has no prompts: it is empty"),
    "blank.jsonl": (b"\n \n\n", "has no prompts: it has only blank lines"),
    "binary.jsonl": (b"\x80\x02\xff\0", "line 1: not UTF-8 text: save the file as UTF-8"),
    "nul.jsonl": (b"\0\0\0\0", "line 1: not valid JSON"),
    "utf16.jsonl": ('{"prompt": "a"}'.encode("utf-16"), "line 1: not UTF-8 text"),
    "array-lines.jsonl": (
        b'[\n{"prompt": "a"},\n{"prompt": "b"}\n]\n',
        "is a JSON array, not JSON Lines: write each object on a",
    ),
    "inst.jsonl": (
        b"[INST] a story [/INST]\n",
        "line 1: not valid JSON (Expecting value at column 2): correct that line",
    ),
    "array-row.jsonl": (
        b'{"prompt": "a"}\n[\n',
        "line 2: not valid JSON (Expecting value at column 2): correct that line",
    ),
    "list.jsonl": (b'["a"]\n', 'line 1: not a JSON object: each line must be one, such as {"prompt": "..."}'),
    "text.jsonl": (b"hello\n", "line 1: not valid JSON"),
    "number.jsonl": (b"3\n", "line 1: not a JSON object"),
    "null.jsonl": (b"null\n", "line 1: not a JSON object"),
    "cut.jsonl": (GOOD + b'{"prompt": "b', "line 2: not valid JSON (Unterminated string starting at column 12): corr"),
    "half.jsonl": (b'{"prompt":\n', "line 1: not valid JSON (Expecting value at column 11)"),
    "extra.jsonl": (b'{"prompt": "a"} x\n', "line 1: not valid JSON (Extra data at column 17)"),
    "nested.jsonl": (DEEP, "line 1: not valid JSON (it is nested too deeply): correct that line"),
    "nested-value.jsonl": (b'{"prompt": ' + DEEP, "line 1: not valid JSON (it is nested too deeply)"),
    "objects.jsonl": (b'{"prompt":' * 20_000, "line 1: not valid JSON (it is nested too deeply)"),
    "digits.jsonl": (b'{"prompt": "a", "x": ' + b"9" * 5000 + b"}\n", "not valid JSON (a number has too many digits)"),
    "value-empty.jsonl": (GOOD * 2 + b'{"prompt": ""}\n' * 5, "line 3: column 'prompt' is empty: remove this row"),
    "value-blank.jsonl": (b'{"prompt": " "}\n', "line 1: column 'prompt' is blank: remove this row"),
    "other.jsonl": (b'{"text": "a"}\n', "has no column 'prompt': set prompt_column to 'text'"),
    "later.jsonl": (
        GOOD * 3 + b'{"text": "a"}\n',
        "line 4: no column 'prompt', which the lines above have (this line has 'text'): correct or remove that line",
    ),
    "later-empty.jsonl": (
        GOOD + b"{}\n",
        "line 2: no column 'prompt', which the lines above have (this line has none)",
    ),
    "no-columns.jsonl": (b"{}\n", "has no column 'prompt': there are no columns at all"),
    "value-number.jsonl": (b'{"prompt": 3}\n', "line 1: column 'prompt' is 3, not text: put it in quotation marks"),
    "value-null.jsonl": (b'{"prompt": null}\n', "line 1: column 'prompt' is null, not text: remove this row"),
    "value-list.jsonl": (
        b'{"prompt": ["a"]}\n',
        """line 1: column 'prompt' is ["a"], not text: give the prompt as one string""",
    ),
    "value-bool.jsonl": (b'{"prompt": true}\n', "line 1: column 'prompt' is true, not text"),
    "value-nan.jsonl": (b'{"prompt": NaN}\n', "line 1: column 'prompt' is NaN, not text: remove this row"),
    "value-long.jsonl": (b'{"prompt": [' + b"1," * 9999 + b"1]}\n", "line 1: column 'prompt' is"),
    "surrogate.jsonl": (
        b'{"prompt": "\\ud800"}\n',
        "line 1: column 'prompt' contains a lone surrogate, which is not valid text: remove it",
    ),
    "twice.jsonl": (
        b'{"prompt": "a", "prompt": "b"}\n',
        "line 1: duplicate key 'prompt': rename or remove all but one",
    ),
    "array.jsonl": (b'[{"prompt": "a"}]', "is a JSON array, not JSON Lines: write each object on a line of its own"),
    "chats.jsonl": (b'[{"role": "user"}]\n[{"role": "user"}]\n', "line 1: not a JSON object"),
    "near.csv": (b"Prompt,x\na,b\n", "has no column 'prompt' (did you mean 'Prompt'?): set prompt_column to one of"),
    "later-array.jsonl": (GOOD + b'[{"prompt": "a"}]', "line 2: not a JSON object"),
    "empty-array.jsonl": (b"[]", "line 1: not a JSON object"),
    "many.jsonl": (json.dumps({f"c{n}" * 30: 1 for n in range(999)}).encode(), "has no column 'prompt'"),
    "names.jsonl": (b'{"a\\nb\\u001b": 1}\n', "has no column 'prompt'"),
    "empty.csv": (b"", "has no prompts: it is empty"),
    "header.csv": (b"prompt\n", "has no prompts: it has a header but no rows"),
    "binary.csv": (b"\xff\xfe\0\1", "line 1: not UTF-8 text"),
    "other.csv": (
        b"text,x\na,b\n",
        "has no column 'prompt' (its first line has 'text', 'x'): if that line is not a header, add one above it that "
        "contains 'prompt'; if it is, set prompt_column to one of its names",
    ),
    "spaces.csv": (b" prompt \na\n", "has no column 'prompt'"),
    "comma.csv": (b"prompt\nHello, world\n", "line 2: 2 fields, but the header has 1"),
    "short.csv": (b"x,prompt\na\n", "line 2: 1 field, but the header has 2: complete or remove that line"),
    "index.csv": (b",x,y\n0,a,b\n", "has no column 'prompt' (its first line has 'x', 'y'): if that line is "),
    "unnamed.csv": (b",\n0,a\n", "has no column 'prompt': its columns have no names"),
    "twice.csv": (b"prompt,prompt\na,b\n", "has 2 columns named 'prompt'"),
    "semicolon.csv": (b"id;prompt\n1;a\n", "if semicolons separate its columns, save it with commas between"),
    "tab.csv": (b"id\tprompt\n1\ta\n", "if tabs separate its columns, save it with commas between them"),
    "semicolon-other.csv": (b"id;text\n1;a\n", "has no column 'prompt': its first line is 'id;text'; if semi"),
    "semicolon-comma.csv": (b"id;a, b;prompt\n1;a;b\n", "first line is 'id;a, b;prompt'; if semicolons separate"),
    "blank-name.csv": (b"   ,\na,b\n", "has no column 'prompt': its columns have no names"),
    "one-column.csv": (b"text\na;b\n", "has no column 'prompt' (its first line is 'text'): if that line is"),
    "empty-field.csv": (b"x,prompt\na,\n", "line 2: column 'prompt' is empty: remove this row"),
    "blank.txt": (b"\n \n\n", "has no prompts: it has only blank lines"),
    "empty.txt": (b"", "has no prompts: it is empty"),
    "binary.txt": (b"a\n\xff\n", "line 2: not UTF-8 text"),
    "utf16.txt": ("hello".encode("utf-16"), "line 1: not UTF-8 text"),
    "empty.parquet": (b"", "is not a Parquet file, or is damaged: save or download it again"),
    "text.parquet": (b"prompt\na\n", "is not a Parquet file, or is damaged"),
    "cut.parquet": (write_parquet(prompt=["a"])[:-9], "is not a Parquet file, or is damaged"),
    "magic.parquet": (b"PAR1" + b"\0" * 50 + b"PAR1", "is not a Parquet file, or is damaged"),
    "no-rows.parquet": (write_parquet(prompt=pyarrow.array([], pyarrow.string())), "has no prompts: it has no rows"),
    "other.parquet": (write_parquet(text=["a"]), "has no column 'prompt': set prompt_column to 'text'"),
    "numbers.parquet": (write_parquet(prompt=[1, 2]), "row 1: column 'prompt' is 1, not text: save the column as text"),
    "null.parquet": (write_parquet(prompt=["a", None]), "row 2: column 'prompt' is null, not text"),
    "lists.parquet": (write_parquet(prompt=[["a"]]), "row 1: column 'prompt' is"),
    "bytes.parquet": (write_parquet(prompt=[b"a"]), "row 1: column 'prompt' is"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_has_no_prompts_is_named_with_its_line(refuse, tmp_path, name):
    content, said = FILES[name]
    (tmp_path / name).write_bytes(content)
    line = refuse(correlation_pipeline, f"--dataset_name={name}")
    assert f"'{name}'" in line
    assert said in line


def test_a_folder_is_no_file_of_prompts(refuse, tmp_path):
    (tmp_path / "folder.jsonl").mkdir()
    assert "'folder.jsonl' is a folder" in refuse(correlation_pipeline, "--dataset_name=folder.jsonl")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            b'{"prompt": "a", "t": ""}\n',
            "line 1: column 't' is empty: remove this row, because it has no text to measure",
        ),
        (b'{"prompt": "a", "t": 3}\n', "line 1: column 't' is 3, not text"),
        (b'{"prompt": "a", "t": {}}\n', "line 1: column 't' is {}, not text: give the text as one string"),
        (b'{"prompt": "a"}\n', "has no column 't': its only column is 'prompt', so it has no texts"),
    ],
)
def test_texts_that_cannot_be_scored_are_named_with_their_line(refuse, tmp_path, content, said):
    (tmp_path / "x.jsonl").write_bytes(content)
    words = ["--mode=score", "--text_column=t", "--dataset_name=x.jsonl"]
    assert said in refuse(correlation_pipeline, *words)


# Models, as far as their files show without transformers

INDEX, LISTED = "model.safetensors.index.json", b'{"weight_map": {"x": "a.bin", "y": "b.safetensors"}}'
FOLDERS = [  # the files of a folder, and what the line says
    ({}, "does not contain a model: config.json is missing; give a folder saved with save_pretrained"),
    ({"model.safetensors": b""}, "does not contain a model: config.json is missing"),
    ({"config.json": b""}, "config.json is not valid JSON (Expecting value"),
    (
        {"config.json": b'{\n  "model_type": "lla'},
        "config.json is not valid JSON (Unterminated string starting at line 2, column 17): download or save the model "
        "again",
    ),
    ({"config.json": b"\xff\xfe\x00"}, "config.json is not valid JSON (it is not UTF-8 text)"),
    ({"config.json": b"\0"}, "config.json is not valid JSON (Expecting value"),
    ({"config.json": DEEP}, "config.json is not valid JSON (it is nested too deeply)"),
    ({"config.json": b'{"a":' * 20_000}, "config.json is not valid JSON (it is nested too deeply)"),
    ({"config.json": b'{"a": ' + LONG.encode() + b"}"}, "not valid JSON (a number has too many digits)"),
    ({"config.json": b"[]"}, "config.json is not a JSON object"),
    ({"config.json": b"null"}, "config.json is not a JSON object"),
    ({"config.json": b'"llama"'}, "config.json is not a JSON object"),
    ({"config.json": b"3"}, "config.json is not a JSON object"),
    ({"config.json": b"{}"}, "contains no model weights (no .safetensors or .bin file)"),
    ({"config.json": b"{}", "README.md": b""}, "contains no model weights"),
    (
        {"config.json": b"{}", "generation_config.json": b""},
        "generation_config.json is not valid JSON (Expecting value",
    ),
    ({"config.json": b"{}", "generation_config.json": b"[]"}, "generation_config.json is not a JSON object"),
    ({"config.json": b"{}", "tokenizer_config.json": DEEP}, "tokenizer_config.json is not valid JSON (it is nested"),
    (
        {"config.json": b"{}", "special_tokens_map.json": b"\xff"},
        "special_tokens_map.json is not valid JSON (it is not",
    ),
    ({"config.json": b"{}", "a.bin": b"", INDEX: b""}, f"{INDEX} is not valid JSON (Expecting value"),
    (
        {"config.json": b"{}", "a.bin": b"", INDEX: b"{}"},
        f"{INDEX} has no weight_map, which says where each weight is: download or save the model a",
    ),
    (
        {"config.json": b"{}", "a.bin": b"", INDEX: b'{"weight_map": []}'},
        f"{INDEX} has no weight_map, which says where each weight is: download or save the model a",
    ),
    (
        {"config.json": b"{}", "a.bin": b"", INDEX: b'{"weight_map": {"a": 3}}'},
        f"{INDEX} has no weight_map, which says where each weight is: download or save the model a",
    ),
    (
        {"config.json": b"{}", "a.bin": b"", INDEX: LISTED},
        f"': {INDEX} lists b.safetensors, which is missing: download or save the model again",
    ),
]


@pytest.mark.parametrize(("files", "said"), FOLDERS, ids=number_ids)
def test_a_folder_that_contains_no_model_is_named(refuse, tmp_path, files, said):
    (tmp_path / "model").mkdir()
    for name, content in files.items():
        (tmp_path / "model" / name).write_bytes(content)
    line = refuse(correlation_pipeline, "--model_name=model")
    assert "folder 'model'" in line
    assert said in line


@pytest.mark.parametrize("name", ["x.gguf", "x.safetensors", "x.bin", "x.json", "x"])
@pytest.mark.parametrize("content", [b"", b"GGU", b"GGML" + b"\0" * 40, b"hello"])
def test_a_file_that_is_no_model_is_named(refuse, tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    line = refuse(correlation_pipeline, f"--model_name={name}")
    assert (
        f"'{name}' is not a GGUF file: download it again, or give another model" in line
        or f"'{name}' is a file, but not a .gguf file" in line
    )


# Grids

SMALL = {"results_dir": "r", "models": ["a"], "datasets": ["b"]}
ONE_OF_THE_KEYS = "it must be one of results_dir, parameters, resources, models, datasets, analyses"
GRIDS = [  # what differs from SMALL, and what the line says
    ({"results_dir": None}, "results_dir is missing"),
    ({"results_dir": ""}, "results_dir is '': it must not be empty"),
    ({"results_dir": " "}, "results_dir is ' ': it must not be empty"),
    ({"results_dir": 3}, "results_dir is 3: it must be text: put it in quotation marks"),
    ({"results_dir": ["r"]}, "results_dir is ['r']: it must be the path of one folder"),
    (
        {"results_dir": "~no-such-user/r"},
        "results_dir is '~no-such-user/r': it must not begin with ~ and a name that no user has; for a",
    ),
    ({"results_dir": "a\0b"}, "results_dir is 'a\\x00b': it must not contain control characters"),
    ({"result_dir": "r"}, "unknown setting 'result_dir' (did you mean 'results_dir'?)"),
    ({3: "r"}, "unknown setting 3"),
    ({None: "r"}, "unknown setting None"),
    ({"n_prompts": 3}, "'n_prompts' belongs under parameters"),
    ({"gpus": 1, "n_prompts": 3, "seed": 1, "top_p": 0.9}, "'n_prompts', 'seed' and 'top_p' belong under parameters"),
    ({"gpus": 1, "resamples": 3}, "'gpus' belongs under resources; 'resamples' belongs under"),
    ({"parameters": {"gpus": 1, "memory": "4G"}}, "parameters: 'gpus' and 'memory' belong under resources"),
    ({"models": [{"name": "a", "resamples": 3}]}, "'a' in models: 'resamples' belongs under analyses"),
    ({"result_dir": "r", 3: "r"}, "unknown settings 'result_dir' (did you mean 'results_dir'?) and 3: each must be"),
    ({"models": None}, "models is missing: add a list of names"),
    ({"models": []}, "models is an empty list: name at least one model"),
    ({"datasets": []}, "datasets is an empty list: name at least one data set"),
    ({"models": {}}, "models must be a list: write '- name: gpt2', with its settings on the lines below"),
    ({"models": "a"}, "models is 'a': it must be a list, such as [a]"),
    ({"models": {"name": "a"}}, "models must be a list: write '- name: gpt2', with its"),
    ({"datasets": {"math": None}}, "datasets must be a list: write '- name: math', with its"),
    ({"models": 3}, "models is 3: it must be a list, such as [gpt2]"),
    ({"models": "-a"}, "models is '-a': put a space after '-'"),
    ({"models": [3]}, "entry 1 in models is 3: it must be a quoted name"),
    ({"models": [None]}, "entry 1 in models is empty: give a name"),
    ({"models": [["a"]]}, "entry 1 in models is ['a']: it must be a quoted name"),
    ({"models": [{"nam": "a"}]}, "entry 1 in models has 'nam' but no 'name': rename it to 'name'"),
    ({"models": [{"model": "a"}]}, "entry 1 in models has 'model' but no 'name': rename it to 'name'"),
    ({"datasets": [{"path": "a.jsonl"}]}, "entry 1 in datasets has 'path' but no 'name': rename it to 'name'"),
    ({"datasets": [{"dataset_name": "math"}]}, "entry 1 in datasets has 'dataset_name' but no 'name': rename it to"),
    ({"models": [{}]}, "entry 1 in models has no 'name': begin it with one, such as name: gpt2, and put its"),
    ({"models": [{"my/m": {"top_p": 0.9}}]}, "entry 1 in models has no 'name': write name: my/m, with its settings on"),
    ({"models": [{"name": ["a", "b"]}]}, "entry 1 in models has ['a', 'b'] as its name: give one name"),
    (
        {"models": [{"top_p": 0.9}]},
        "entry 1 in models has no 'name': begin it with one, such as name: gpt2, and put its",
    ),
    ({"models": [{"memory": None}]}, "entry 1 in models has no 'name': begin it with one, such as name: gpt2"),
    ({"models": [{"parameters": {"top_p": 0.9}}]}, "entry 1 in models has no 'name': begin it with one, such as"),
    ({"datasets": [False]}, "or a mapping with a name and settings (YAML reads no and off as false)"),
    (
        {"models": [{"my/m": None, "top_p": 0.9}]},
        "entry 1 in models has no 'name': write name: my/m, with its settings",
    ),
    ({"models": [{"name": None}]}, "entry 1 in models has no name after 'name': add it"),
    ({"models": [{"name": True}]}, "entry 1 in models has True as its name: put it in quotes"),
    ({"models": ["a", None]}, "entry 2 in models is empty: give a name, or remove the entry"),
    (
        {"datasets": ["math", "mathh"]},
        "entry 2 in datasets: unknown data set 'mathh' (did you mean 'math'?): it must be",
    ),
    ({"datasets": ["math - stories"]}, "entry 1 in datasets: unknown data set 'math - stories': it must be gsm8k"),
    ({"models": [""]}, "entry 1 in models is empty: give a name, or remove the entry"),
    ({"models": ["a", " "]}, "entry 2 in models is empty: give a name, or remove the entry"),
    ({"models": ["a\nb"]}, "entry 1 in models: model_name is 'a\\nb': it must not contain control characters"),
    ({"models": ["x" * 5000]}, "entry 1 in models: model_name is "),
    (
        {"models": [{"name": "a", "model_revision": 3}]},
        "'a' in models: model_revision is 3: it must be text: put it in",
    ),
    ({"models": [{"name": "a", "model_revision": ""}]}, "'a' in models: model_revision is '': it must not be empty"),
    ({"models": [{"name": "a", "gpu": 1}]}, "'a' in models: unknown setting 'gpu'"),
    (
        {"models": [{"name": "a", "overwrite": True}]},
        "'a' in models: 'overwrite' cannot be set in a grid: to measure a run again",
    ),
    ({"models": ["a", "a"]}, "'a' is listed twice in models: remove one"),
    ({"datasets": ["b", "b"]}, "'b' is listed twice in datasets: remove one"),
    ({"models": ["/"]}, "model_name is '/', but no results folder can have that name"),
    ({"datasets": None}, "datasets is missing"),
    ({"datasets": "b"}, "datasets is 'b': it must be a list, such as [b]"),
    ({"datasets": [3.5]}, "entry 1 in datasets is 3.5: it must be a quoted name"),
    ({"datasets": [{"name": ""}]}, "entry 1 in datasets: dataset_name is ''"),
    ({"datasets": [".."]}, "dataset_name is '..', but no results folder can have that name"),
    ({"models": [{"name": "a", "revision": "x"}]}, "'a' in models: unknown setting 'revision'"),
    ({"datasets": [{"name": "b", "revision": "x"}]}, "'b' in datasets: unknown setting 'revision'"),
    ({"results_dir": "a{b}"}, "results_dir is 'a{b}': Snakemake cannot use a folder with braces in its name"),
    ({"datasets": ["a{b}.jsonl", "a(b).jsonl"]}, "or put them in separate grids, each with its own results_dir"),
    ({"parameters": []}, "parameters is []: it must be a mapping of settings to values, such as max_tokens: 100"),
    ({"parameters": "n_prompts"}, "parameters is 'n_prompts': it must be a mapping of settings"),
    ({"parameters": 0}, "parameters is 0: it must be a mapping"),
    ({"parameters": "top_p:0.9"}, "parameters is 'top_p:0.9': it must be a mapping of settings to values: put a space"),
    ({"parameters": {"n_prompt": 3}}, "parameters: unknown setting 'n_prompt' (did you mean 'n_prompts'?)"),
    (
        {"parameters": {"model_name": "a"}},
        "parameters: 'model_name' cannot be set in a grid: list the model under models",
    ),
    ({"parameters": {"dataset_name": "b"}}, "'dataset_name' cannot be set in a grid: list the data set under datasets"),
    ({"parameters": {"named_settings": "seed"}}, "list several values of a setting instead"),
    (
        {"parameters": {"only": "page"}},
        "'only' cannot be set in a grid: it is an option of scripts/correlation_pipeline",
    ),
    ({"parameters": {"n_samples": 3}}, "parameters: 'n_samples' cannot be set in a grid: call it n_prompts"),
    (
        {"parameters": {"models": ["a"], "datasets": ["b"]}},
        "parameters: 'datasets' and 'models' belong at the top level of the grid",
    ),
    (
        {"models": [{"name": "a", "results_dir": "r", "parameters": {"seed": 1}}]},
        "'a' in models: write the settings directly into the entry, without 'parameters'; "
        "'a' in models: 'results_dir' belongs at the top level of the grid",
    ),
    (
        {"parameters": {"variants": "foo"}},
        "variants: unknown candidate set or geometry 'foo': variants must be default, none, or one or more of top_p_",
    ),
    ({"parameters": {"variants": ""}}, "variants is '': it must be default, none"),
    ({"parameters": {"n_prompts": 10**30}}, f"parameters: n_prompts is {10**30}: it must be a whole number from 1 to"),
    ({"parameters": {"temperature": 10**400}}, "parameters: temperature is 1000"),
    ({"parameters": {"top_p": float("nan")}}, "parameters: top_p is nan"),
    ({"parameters": {"temperature": float("inf")}}, "parameters: temperature is inf"),
    (
        {"parameters": {"top_p": "0.9"}},
        "parameters: top_p is '0.9', which is read as text (write 0.9): it must be a number",
    ),
    ({"parameters": {"n_prompts": True}}, "parameters: n_prompts is True"),
    ({"parameters": {"skip_check": "yes"}}, "parameters: skip_check is 'yes': it must be true or false"),
    ({"parameters": {"mode": "sing"}}, "parameters: mode is 'sing': it must be generate or score"),
    ({"parameters": {"mode": True}}, "parameters: mode is True: it must be generate or score"),
    ({"parameters": {"device": "meta"}}, "parameters: device is 'meta': it must be auto, balanced"),
    ({"parameters": {"device": 0}}, "parameters: device is 0: it must be auto, balanced"),
    ({"parameters": {"template_date": 20240726}}, "parameters: template_date is 20240726: it must be a date"),
    ({"parameters": {"mode": "score"}}, "set both mode=score and text_column, or neither"),
    ({"parameters": {"text_column": "t"}}, "set both mode=score and text_column, or neither"),
    ({"parameters": {"prompt_column": ""}}, "parameters: prompt_column is '': it must not be empty"),
    ({"resources": ["gpus"]}, "it must be a mapping of settings to values, such as gpus: 1"),
    ({"resources": {"gpu": 1}}, "resources: unknown setting 'gpu'"),
    ({"resources": {"gpus": -1}}, "resources: gpus is -1: it must be a whole number from 0"),
    ({"resources": {"gpus": 1.5}}, "resources: gpus is 1.5"),
    ({"resources": {"gpus": True}}, "resources: gpus is True"),
    ({"resources": {"gpus": 10**30}}, "resources: gpus is 1000"),
    ({"resources": {"memory": "0G"}}, "resources: memory is '0G': it must be a size above 0, such as 40G"),
    ({"resources": {"memory": 40}}, "resources: memory is 40: it must be a size with a unit, such as 40G"),
    ({"resources": {"memory": "-4G"}}, "resources: memory is '-4G': it must be a size above 0, such as 40G"),
    (
        {"resources": {"memory": "4 GB"}},
        "resources: memory is '4 GB': it must be a whole number followed by M, G or T, without a space, such as 40G",
    ),
    ({"resources": {"memory": "4g"}}, "resources: memory is '4g': it must be a whole number followed by M, G or T"),
    ({"resources": {"memory": 0}}, "resources: memory is 0: it must be a size above 0"),
    ({"resources": {"memory": "9" * 10 + "G"}}, "it must be a whole number of at most 9 digits followed by M, G or T"),
    ({"resources": {"memory": "9" * 5000 + "G"}}, "resources: memory is '999"),
    ({"resources": {"memory": "٣G"}}, "resources: memory is '٣G'"),
    ({"resources": {"time": "0h"}}, "resources: time is '0h': it must be a duration above 0"),
    ({"resources": {"time": "0d0h0m"}}, "resources: time is '0d0h0m': it must be a duration above 0"),
    ({"resources": {"time": 4}}, "resources: time is 4: it must be a duration with a unit, such as 90m, 4h"),
    ({"resources": {"time": 0}}, "resources: time is 0: it must be a duration above 0"),
    ({"resources": {"memory": 1.5}}, "resources: memory is 1.5: it must be a size with a unit"),
    (
        {"resources": {"time": "4:00:00"}},
        "time is '4:00:00': it must be whole numbers followed by m, h or d, without spaces, such as 90m, 4h or 1d12h",
    ),
    ({"resources": {"time": "-4h"}}, "resources: time is '-4h': it must be a duration above 0"),
    ({"resources": {"time": "9" * 5000 + "h"}}, "resources: time is '999"),
    ({"models": [{"name": "a", "time": "0m"}]}, "'a' in models: time is '0m'"),
    ({"analyses": []}, "analyses is []: it must be a mapping"),
    ({"analyses": {"resamples": 99}}, "analyses: resamples is 99: it must be a whole number from 100 to 1,000,000"),
    ({"analyses": {"resamples": 10**9}}, "analyses: resamples is 1000000000"),
    ({"analyses": {"resamples": "many"}}, "analyses: resamples is 'many'"),
    ({"analyses": {"seed": -1}}, "analyses: seed is -1"),
    ({"analyses": {"seed": True}}, "analyses: seed is True: it must be a whole number"),
    ({"parameters": {"seed": True}}, " (YAML reads yes and on as true)"),
    ({"parameters": {"temperature": [1.0, False]}}, " (YAML reads no and off as false)"),
    ({"parameters": {"n_prompts": False}}, " (YAML reads no and off as false)"),
]


@pytest.mark.parametrize(("change", "said"), GRIDS, ids=number_ids)
def test_a_grid_that_cannot_be_run_is_named_with_what_is_wrong(refuse, tmp_path, change, said):
    (tmp_path / "grid.yml").write_text(yaml.safe_dump(SMALL | change, allow_unicode=True))
    if "a\0b" in str(change.get("results_dir")):
        (tmp_path / "grid.yml").write_text('{results_dir: "a\\0b", models: [a], datasets: [b]}')
    for words in (["--check"], []):
        line = refuse(summary, *words, "grid.yml")
        assert line.startswith("error: 'grid.yml': ")
        assert said in line


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"parameters": {"n_prompt": 3}}, "parameters: unknown setting 'n_prompt' (did you mean 'n_prompts'?)"),
        (
            {"parameters": {"n_prompt": 3, "toop_p": 1}},
            "parameters: unknown settings 'n_prompt' (did you mean 'n_prompts'?) and 'toop_p' (did you mean 'top_p'?)",
        ),
        (
            {"resources": {"gpu": 3}},
            "resources: unknown setting 'gpu' (did you mean 'gpus'?): it must be one of gpus, memory, time",
        ),
        ({"models": None, "Models": ["a"]}, f"unknown setting 'Models' (did you mean 'models'?): {ONE_OF_THE_KEYS}"),
        (
            {"results_dir": None, "result_dir": "r"},
            f"unknown setting 'result_dir' (did you mean 'results_dir'?): {ONE_OF_THE_KEYS}",
        ),
        ({"models": None, "mode": "score"}, "'mode' belongs under parameters; models is missing: add a list of names"),
    ],
)
def test_what_was_probably_meant_is_said_instead_of_all_that_could_be(refuse, tmp_path, change, line):
    (tmp_path / "grid.yml").write_text(yaml.safe_dump(SMALL | change))
    assert refuse(summary, "--check", "grid.yml") == f"error: 'grid.yml': {line}"


def test_a_file_of_prompts_need_not_exist_for_a_report(monkeypatch, capsys, tmp_path):
    (tmp_path / "grid.yml").write_text(yaml.safe_dump(SMALL | {"datasets": ["none.jsonl"]}))
    monkeypatch.setattr(sys, "argv", [summary.__file__, "grid.yml"])
    summary.main()
    assert capsys.readouterr().out.splitlines() == [
        "the only run has not been measured:",
        "  a on none: not started (measurements.pt is missing)",
    ]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "'grid.yml': the grid is empty: it needs results_dir, models and datasets"),
        (b"- a", "'grid.yml': a grid must be a mapping that has results_dir, models and datasets"),
        (b"null", "'grid.yml': the grid is empty"),
        (b"hello", "'grid.yml': a grid must be a mapping"),
        (b"a: b: c", "'grid.yml', line 1: a ':' is not allowed here"),
        (b"models: [a", "'grid.yml', line 1: a [ is not closed"),
        (b"models: [a]\nb: [1,\n", "'grid.yml': a [ or { is not closed"),
        (b"models: [a]\nb: [1,, 2]\n", "'grid.yml', line 2: a value is missing before ','"),
        (b"a: 1\nb: {a\n\n", "'grid.yml', line 2: a { is not closed"),
        (b"\tmodels: 3", "'grid.yml', line 1: a tab is not allowed here: use spaces"),
        (b"models: [a]\nmodels: [b]\n", "'grid.yml', line 2: duplicate key 'models'"),
        (b"models: [a]\n\n# again\nparameters: {seed: 1}\nmodels: [b]\n", "'grid.yml', line 5: duplicate key 'models'"),
        (b"parameters:\n  seed: 1\n  top_p: 1\n  seed: 2\n", "'grid.yml', line 4: duplicate key 'seed'"),
        (b"a: 1\nb: 2\nb: 3\na: 4\n", "'grid.yml', line 3: duplicate key 'b'"),
        (b"models:\n- {name: a, name: b}\n", "'grid.yml', line 2: duplicate key 'name'"),
        (b"{[a]: 3}", "'grid.yml', line 1: "),
        (b"a: !!python/object:os.system x", "'grid.yml', line 1: a value that begins with '!' must be quoted"),
        (b"a: *b", "'grid.yml', line 1: a value that begins with '*' or '&' must be quoted"),
        (b"a: &a [*a]", "'grid.yml': "),
        (b"\xff\xfe\xff", "'grid.yml': not UTF-8 text: save the file as UTF-8"),
        (b"a: \0", "'grid.yml': a character that YAML does not allow, U+0000"),
        (b"[" * 5000, "'grid.yml': the YAML is nested too deeply"),
        (b"models: " + b"9" * 5000, "'grid.yml': "),
        (b"a: 2024-99-99", "'grid.yml': "),
    ],
    ids=number_ids,
)
def test_a_file_that_is_no_grid_is_named_with_its_line(refuse, tmp_path, content, said):
    (tmp_path / "grid.yml").write_bytes(content)
    for script, words in ((summary, ["--check"]), (prefetch, [])):
        assert said in refuse(script, *words, "grid.yml")


def test_a_folder_is_no_grid(refuse, tmp_path):
    assert f"grid '{tmp_path}' is a folder: name a file in it" in refuse(summary, str(tmp_path))
    assert "the grid's path is empty: name a grid file" in refuse(summary, "")
    said = "grid 'none.yml' does not exist (current folder: "
    assert said in refuse(summary, "none.yml")


def test_a_data_set_with_another_ending_is_told_the_endings(refuse, tmp_path):
    (tmp_path / "a.json").write_text("[]")
    said = "'a.json' is not a supported type of file: convert it to .jsonl, .csv, .parquet or .txt"
    assert said in refuse(correlation_pipeline, "--dataset_name=a.json")


def test_everything_that_is_wrong_with_a_grid_is_named_at_once(refuse, tmp_path):
    entries = [{"name": "a", "max_tokens": 0}, 7, {"name": "c", "top_k": 3}]
    wrong = {"models": entries, "parameters": {"top_p": 3, "dtype": "x"}, "resources": {"time": "0h"}}
    (tmp_path / "grid.yml").write_text(yaml.safe_dump(SMALL | wrong))
    with pytest.raises(ValueError, match="grid") as caught:
        grid.load("grid.yml")
    parts = (
        "top_p is 3",
        "dtype is 'x'",
        "time is '0h'",
        "'a' in models: max_tokens is 0",
        "entry 2 in models",
        "top_k",
    )
    assert all(part in str(caught.value) for part in parts)
    assert len(str(caught.value).splitlines()) == 1


def test_a_grid_with_a_hundred_mistakes_is_still_one_line(tmp_path):
    (tmp_path / "grid.yml").write_text(yaml.safe_dump(SMALL | {"models": [7] * 100}))
    with pytest.raises(ValueError, match=r"and 92 more problems$") as caught:
        grid.load("grid.yml")
    assert "entry 8 in models" in str(caught.value)


# Other commands


@pytest.mark.parametrize("word", ["99", "-1", "0", "1e3", "2.5", "many", "", LONG, "1000001", "nan"])
def test_a_number_of_resamples_that_cannot_be_is_named(refuse, word):
    line = refuse(correlation_eval, f"--resamples={word}")
    assert line.startswith("error: resamples is ")
    assert "it must be a whole number from 100 to 1,000,000" in line


@pytest.mark.parametrize("word", ["-1", "x", "", LONG, "2.5"])
def test_a_seed_of_the_analyses_that_cannot_be_is_named(refuse, word):
    assert "error: seed is " in refuse(correlation_eval, f"--seed={word}")


@pytest.mark.parametrize("word", ["", " ", "a\nb", "~no-such-user/x", "no/such/folder"])
def test_a_results_folder_that_cannot_be_is_named(refuse, word):
    line = refuse(correlation_eval, f"--results_dir={word}")
    assert "results_dir is " in line or f"folder '{word}' does not exist" in line


@pytest.mark.parametrize(
    "words", [["--gpus=-1"], ["--gpus=x"], [f"--gpus={LONG}"], ["--threads=0"], ["--tries_left=x"], []]
)
def test_a_job_that_cannot_be_is_named(refuse, words):
    line = refuse(job, *words)
    assert words == [] or words[0].partition("=")[0].strip("-") in line


# The commands themselves


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A folder like this checkout, but without the results of a book that was built here: they would be found first."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("README.md", "lib", "notebooks", "scripts", "tests"):
        (folder / name).symlink_to(ROOT / name)
    return folder


def run(folder: Path, *words: str, limit: float | None = 0.5) -> subprocess.CompletedProcess:
    """A script that has finished in ``folder``, within ``limit`` seconds of CPU, without any slow import."""
    code = (
        "import runpy, sys, atexit; sys.argv = sys.argv[1:];"
        "slow = {'torch', 'transformers', 'pandas', 'pyarrow', 'papermill', 'datasets', 'jupyter_client', 'scipy'};"
        "slow |= {'statsmodels', 'matplotlib', 'plotly', 'IPython', 'jupytext', 'nbformat', 'sphinx', 'snakemake'};"
        "atexit.register(lambda: print('imported:', sorted(slow & set(sys.modules))));"
        "sys.path.insert(0, 'scripts'); runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", code, *words]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.stdout.splitlines()[-1] == "imported: []"
    taken = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert limit is None or taken < 4 * limit  # other tests run beside this one; alone, it is within the limit
    return done


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["correlation_pipeline.py", "--top_p=3"], "top_p is 3.0: it must be a number in (0, 1]"),
        (["correlation_pipeline.py", "--n_samples=0"], "n_prompts is 0: it must be a whole number from 1"),
        (["correlation_pipeline.py", f"--n_prompts={LONG}"], "n_prompts is '999"),
        (["correlation_pipeline.py", "--temperature=1e-40"], "temperature is 1e-40"),
        (["correlation_pipeline.py", "--device=privateuseone"], "device is 'privateuseone'"),
        (["correlation_pipeline.py", "--dataset_name=poems"], "unknown data set 'poems'"),
        (["correlation_pipeline.py", "--dataset_name=none.csv"], "file 'none.csv' does not exist"),
        (["correlation_pipeline.py", "--dataset_name", "-x.jsonl"], "write --dataset_name=VALUE"),
        (["correlation_pipeline.py", "--prompt_column=x"], "has no column 'x'"),
        (["correlation_pipeline.py", "--model_name=./none"], "neither an existing folder nor"),
        (["correlation_pipeline.py", "--model_name=none.gguf"], "file 'none.gguf' does not exist"),
        (["correlation_pipeline.py", "--model_name=tests"], "folder 'tests' does not contain a model"),
        (["correlation_pipeline.py", "--model_name=SmolLM2-1B"], "is neither a folder nor in the cache"),
        (["correlation_pipeline.py", "--mode=score"], "mode=score needs text_column"),
        (["correlation_pipeline.py", "--mode=sing"], "mode is 'sing': it must be generate or score"),
        (
            ["correlation_pipeline.py", "--results_dir=README.md"],
            "'README.md' is a file: results_dir must name a folder",
        ),
        *(
            (
                ["correlation_pipeline.py", f"--only={name}", "--results_dir=README.md"],
                "'README.md' is a file: results_dir must name a folder",
            )
            for name in ("measure", "page", "context", "branches")
        ),
        (["correlation_pipeline.py", "--results_dir=\udcff"], "results_dir is '\\udcff'"),
        (["correlation_eval.py", "--resamples=x"], "resamples is 'x'"),
        (["correlation_eval.py", "--results_dir=/none"], "folder '/none' does not exist"),
        (["build_book.py", "--results_dir= "], "results_dir is ' '"),
        (["run_notebook.py", "index"], "the following arguments are required: output"),
        (["summary.py", "none.yml"], "grid 'none.yml' does not exist"),
        (["prefetch.py", "none.yml"], "grid 'none.yml' does not exist"),
        (["correlation_eval.py", "--results_dir=README.md"], "'README.md' is a file: results_dir must name a folder"),
        (["build_book.py", "--results_dir=/none"], "folder '/none' does not exist"),
        (["export.py", "math/m", "a.csv", "--results_dir=/none"], "folder '/none' does not exist"),
        (["run_notebook.py", "run.py", "a.ipynb"], "there is no notebook 'run.py' (did you mean 'run'?)"),
        (["run_notebook.py", "twelve", "a.txt"], "the output file 'a.txt' must end in .ipynb"),
        (["run_notebook.py", "twelve", "README.md/a.ipynb"], "'README.md' is not a folder: choose another output file"),
        (["job.py", "--gpus=x"], "gpus is 'x'"),
        (["job.py", "--tries_left=x"], "tries_left is 'x': it must be a whole number (see --help)"),
        (["job.py", "--log=job.log", "--", "none"], "command 'none' does not exist"),
        (["families.py", "--jobs=0"], "jobs is 0: it must be a whole number from 1 to 1,000"),
        (["benchmark.py", "--only=z"], "--only is 'z': it must be one or more of the letters a, b, c, d, k, v"),
        (["benchmark.py", "--only="], "--only is '': it must be one or more of the letters"),
        (
            ["benchmark.py", "--random_weights=foo"],
            "random_weights is 'foo': it must be an existing config.json, or settings such as hidden_size=64",
        ),
        (["benchmark.py", "--random_weights=/none.json"], "random_weights is '/none.json': it must be an existing"),
        (["benchmark.py", "--repeats=0"], "repeats is 0"),
        (["benchmark.py", "--against=/none"], "folder '/none' does not exist"),
        (["benchmark.py", "--against=README.md"], "'README.md' is a file: give the folder of a checkout"),
        (["benchmark.py", "--against=tests"], "'tests' is not a checkout of this project: lib/nucleoscope is missing"),
        (["benchmark.py", "--against=.", "--dataset_name", "math", "none.csv"], "file 'none.csv' does not exist"),
        (["benchmark.py", "--against=.", "--model_name=./none"], "neither an existing folder nor"),
        (["benchmark.py", "--against=.", "--scale=9"], "--against cannot be combined with --scale or --random_weights"),
        (["benchmark.py", "--scale=9", "--dataset_name=math"], "--scale cannot be combined with --dataset_name or"),
        (["benchmark.py", "--dataset_name", "math", "stories"], "--dataset_name has 2 names"),
    ],
    ids=number_ids,
)
def test_a_command_refuses_bad_input_at_once(checkout, words, said):
    done = run(checkout, f"scripts/{words[0]}", *words[1:])
    assert done.returncode in (1, 2)
    assert said in assert_one_line(done.stderr)
    assert done.stderr.startswith("error: ")


@pytest.mark.parametrize("script", sorted(path.name for path in (ROOT / "scripts").glob("*.py")))
def test_a_command_shows_its_help_at_once(checkout, script):
    done = run(checkout, f"scripts/{script}", "--help")
    assert done.returncode == 0
    assert done.stdout.startswith(f"usage: {script}")


def test_the_help_says_that_a_batch_size_is_a_number_and_which_devices_there_are(capsys):
    with pytest.raises(SystemExit):
        correlation_pipeline.create_parser().parse_args(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "--batch_size {auto,N}" in said
    assert "device to run on: cpu, cuda, cuda:1, ..., mps, xpu, balanced (all GPUs), or auto" in said


def test_an_alias_that_stands_for_a_million_entries_is_quoted_in_part():
    value: object = ["x"] * 10
    for _ in range(8):
        value = [value] * 10
    assert settings.quote(value).startswith("[[[[[[[...]")
    assert len(settings.quote(value)) < 120


def test_a_date_that_does_not_exist_is_the_fault_of_its_setting(tmp_path):
    path = tmp_path / "grid.yml"
    path.write_text("models: [gpt2]\ndatasets: [math]\nparameters:\n  template_date: 2024-13-26\n")
    with pytest.raises(ValueError, match="template_date is '2024-13-26'"):
        grid.load(path)


def test_an_unclosed_quote_in_a_csv_takes_in_no_other_rows(tmp_path):
    path = tmp_path / "quote.csv"
    path.write_text('prompt\n"unclosed\nmore\nand more\n')
    with pytest.raises(
        ValueError, match="line 2: a quotation mark opened on this line or later is never closed"
    ) as refused:
        prompts.load(str(path), 10)
    assert_one_line(str(refused.value))
