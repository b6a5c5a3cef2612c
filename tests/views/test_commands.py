"""Commands on pages: whole, ready to paste, and no wider than a page."""

import json
import shlex
from pathlib import Path

import pytest

from nucleoscope.store import results
from nucleoscope.views import commands

OPTIONS = ("--model_name=SmolLM2-135M-Instruct", "--dataset_name=math", "--prompt_format=chat", "--mode=score")


@pytest.mark.parametrize("folder", ["results", "/mnt/disk/a folder/of a rather long name", "~/runs"])
def test_a_command_is_broken_between_options_into_lines_that_a_shell_joins(folder):
    command = commands.format_pipeline(*OPTIONS, results_dir=folder)
    lines = command.splitlines()
    assert max(map(len, lines)) <= commands.WIDE
    assert [line.endswith(" \\") for line in lines] == [True] * (len(lines) - 1) + [False]
    own = [] if folder == "results" else [f"--results_dir={folder}"]
    assert shlex.split(command.replace("\\\n", "")) == [
        ".venv/bin/python",
        "scripts/correlation_pipeline.py",
        *OPTIONS,
        *own,
    ]


def test_a_long_option_is_not_broken():
    folder = "/" + "long" * 30
    assert commands.format_pipeline(results_dir=folder).endswith(f"\n    --results_dir={folder}")


def write_settings(folder: Path, **settings: object) -> Path:
    """A run's folder, with these settings in its run.json."""
    folder.mkdir(parents=True)
    (folder / results.MEASUREMENTS).touch()
    known = {"model_name": "org/m", "dataset_name": "math", "n_prompts": 100, "max_tokens": 100}
    (folder / results.RUN_INFO).write_text(json.dumps({"settings": known | settings}))
    return folder


def test_options_of_a_run_are_its_names_and_what_differs_from_the_defaults(tmp_path):
    plain = write_settings(tmp_path / "math" / "m", dtype="bfloat16", variants="default", model={"revision": None})
    assert commands.list_run_options(plain) == ["--model_name=org/m", "--dataset_name=math"]
    settings = {"template_date": "2025-06-01", "prompt_format": "chat", "seed": 3, "model": {"revision": "a" * 40}}
    other = write_settings(tmp_path / "xsum" / "m", **settings)
    found = commands.list_run_options(other, "score")
    assert set(found[2:]) == {f"--model_revision={'a' * 40}", "--template_date=2025-06-01", "--prompt_format=chat"}
    assert "--seed=3" in commands.list_run_options(other)


def test_the_run_of_a_packaged_set_is_not_that_of_a_file_with_its_name(tmp_path):
    file = write_settings(tmp_path / "math" / "m", dataset_name="/data/math.jsonl")
    write_settings(tmp_path / "math" / "scored", mode="score", text_column="answer")
    assert commands.find_written(tmp_path) == file
    assert commands.find_written(tmp_path, "math") is None
    own = write_settings(tmp_path / "math" / "n")
    (tmp_path / "math" / "damaged").mkdir()
    (tmp_path / "math" / "damaged" / results.MEASUREMENTS).touch()
    (tmp_path / "math" / "damaged" / results.RUN_INFO).write_text("{}")
    assert commands.find_written(tmp_path, "math") == own
