"""Commands on pages: whole, ready to paste, and no wider than a page."""

import shlex

import pytest

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
