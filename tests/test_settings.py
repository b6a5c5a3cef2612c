"""The one list of settings, and that all which must agree with it does."""

import math
import subprocess
import sys
from pathlib import Path

import jupytext
import numpy as np
import pytest

from messages import assert_one_line
from nucleoscope import hub, settings, variants
from nucleoscope.explorer import controls
from nucleoscope.workflow import command_line, run_notebooks

ROOT = Path(__file__).parents[1]
DEFAULTS = {name: each.default for name, each in settings.FIELDS.items()}


def read_parameters(name: str) -> dict:
    """The parameters cell of a notebook: {name: default}."""
    first = next(cell for cell in jupytext.read(ROOT / f"notebooks/{name}.py").cells if cell.cell_type == "code")
    assert first.metadata["tags"] == ["parameters"]
    found: dict = {}
    exec(first.source, found)
    del found["__builtins__"]
    return found


def test_the_measuring_notebook_has_every_setting_with_its_default():
    found = read_parameters("measure")
    assert found.pop("prompt_format") == "chat"  # which suits the packaged model; the study's is raw
    expected = dict(DEFAULTS)
    assert expected.pop("prompt_format") == "raw"
    assert found == expected


def test_the_page_of_a_run_has_the_settings_that_name_it():
    found = read_parameters("run")
    assert tuple(found) == run_notebooks.PAGE_SETTINGS
    assert found == {name: DEFAULTS[name] for name in found}


def test_the_notebook_about_similarity_in_context_has_its_settings_with_their_defaults():
    found = read_parameters("context")
    assert set(found) == set(run_notebooks.CONTEXT_SETTINGS)
    assert found == {name: DEFAULTS[name] for name in found}


def test_the_notebook_about_branches_has_its_settings_with_their_defaults():
    found = read_parameters("branches")
    assert set(found) == set(run_notebooks.BRANCH_SETTINGS)
    assert found == {name: DEFAULTS[name] for name in found}


SECOND_PASSES = [
    *("context", "context_candidates", "context_threshold", "context_memory"),
    *("branches", "branch_points", "branch_length", "branch_replicates"),
]


@pytest.mark.parametrize("name", SECOND_PASSES)
def test_a_second_pass_does_not_make_existing_results_other_results(name):
    assert name not in settings.list_deciding()
    assert name in settings.list_grid_parameters()
    assert DEFAULTS["context"] is DEFAULTS["branches"] is False  # they cost a second pass


def test_the_live_notebook_has_the_defaults_of_the_settings_that_it_shares():
    found = read_parameters("explore")
    own = {"prompt", "text", "quantity"}
    assert found.pop("prompt_format") == "chat"
    assert found.keys() - own <= DEFAULTS.keys()
    assert {name: DEFAULTS[name] for name in found.keys() - own} == {
        name: value for name, value in found.items() if name not in own
    }


def test_the_default_model_is_the_packaged_one():
    assert settings.Settings.model_name == hub.PACKAGED


@pytest.mark.parametrize("name", settings.FIELDS)
def test_every_default_is_allowed(name):
    settings.validate(name, settings.FIELDS[name].default)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("top_p", 0, "top_p is 0: it must be a number in (0, 1]"),
        ("top_p", 1.5, "top_p is 1.5: it must be a number in (0, 1]"),
        ("top_p", math.nan, "top_p is nan: it must be a number in (0, 1]"),
        ("top_p", "much", "top_p is 'much': it must be a number in (0, 1]"),
        ("temperature", 0, "temperature is 0: it must be a finite number, 1e-30 or more"),
        ("temperature", -1, "temperature is -1: it must be a finite number, 1e-30 or more"),
        ("temperature", math.nan, "temperature is nan: it must be a finite number, 1e-30 or more"),
        ("temperature", math.inf, "temperature is inf: it must be a finite number, 1e-30 or more"),
        ("n_prompts", 0, "n_prompts is 0: it must be a whole number from 1 to 1,000,000,000"),
        ("n_prompts", 2.5, "n_prompts is 2.5: it must be a whole number from 1 to 1,000,000,000"),
        ("n_prompts", None, "n_prompts is None: it must be a whole number from 1 to 1,000,000,000"),
        ("max_tokens", True, "max_tokens is True: it must be a whole number from 1 to 1,000,000,000"),
        ("batch_size", 0, "batch_size is 0: it must be auto or a whole number from 1 to 1,000,000,000"),
        ("batch_size", "many", "batch_size is 'many': it must be auto or a whole number from 1 to 1,000,000,000"),
        ("mode", "sing", "mode is 'sing': it must be generate or score"),
        ("prompt_format", None, "prompt_format is None: it must be raw or chat"),
        ("dtype", "bf16", "dtype is 'bf16': it must be auto, float32, bfloat16 or float16"),
        ("text_column", 3, "text_column is 3: it must be text"),
        (
            "variants",
            "top_q_0.9, raw",
            "variants is 'top_q_0.9, raw': it must be default, none, or names of candidate sets and geometries, "
            "separated by commas; no candidate set or geometry is called 'top_q_0.9' (did you mean 'top_p_0.9'?)",
        ),
        (
            "variants",
            3,
            "variants is 3: it must be default, none, or names of candidate sets and geometries, separated by commas",
        ),
        ("context_candidates", 65, "context_candidates is 65: it must be a whole number from 0 to 64"),
        ("branch_points", 1001, "branch_points is 1001: it must be a whole number from 0 to 1,000"),
        ("branch_replicates", 0, "branch_replicates is 0: it must be a whole number from 1 to 64"),
        ("context_threshold", 0, "context_threshold is 0: it must be a number in (0, 1]"),
        ("trust_remote_code", 1, "trust_remote_code is 1: it must be True or False"),
    ],
)
def test_a_value_that_is_not_allowed_is_named_in_one_line(name, value, message):
    with pytest.raises(ValueError, match=name) as caught:
        settings.validate(name, value)
    assert assert_one_line(str(caught.value)) == message


@pytest.mark.parametrize(
    ("name", "value"),
    [("top_p", 1), ("top_p", np.float64(0.5)), ("n_prompts", np.int64(3)), ("batch_size", 7), ("text_column", None)],
)
def test_what_is_allowed_raises_nothing(name, value):
    settings.validate(name, value)


def test_what_an_older_run_did_not_know_counts_as_its_default():
    old = {"model_name": "m", "dataset_name": "d", "seed": 3}
    assert settings.fill_defaults(old)["mode"] == "generate"
    assert settings.fill_defaults(old) == settings.fill_defaults(old | {"mode": "generate", "text_column": None})
    assert settings.fill_defaults(old) != settings.fill_defaults(old | {"mode": "score"})
    assert settings.fill_defaults(old)["seed"] == 3
    assert not {"device", "batch_size", "overwrite"} & settings.fill_defaults(old).keys()


def test_results_from_before_there_were_variants_have_none():
    assert settings.FIELDS["variants"].default == "none"
    assert settings.fill_defaults({"seed": 3})["variants"] == "none"
    assert settings.fill_defaults({"variants": "raw"})["variants"] == "raw"


def test_variants_in_any_order_are_the_same_setting():
    every = ",".join(reversed(variants.NAMES))
    found = [settings.normalise("variants", text) for text in ("raw, top_k_5", "top_k_5,raw,raw", "none", every)]
    assert found == ["top_k_5,raw", "top_k_5,raw", "none", "default"]


def test_the_live_fields_have_the_ranges_of_the_settings():
    fields = controls.build_settings(settings.Settings(model_name="m", max_tokens=5, top_p=0.5, seed=1))
    for name, inside, outside in (("max_tokens", "1", "0"), ("top_p", "1", "1.001"), ("top_p", "1e-9", "0")):
        fields[name].text = inside
        assert controls.list_problems(fields) == []
        fields[name].text = outside
        assert controls.list_problems(fields) == [fields[name].problem]
        assert settings.describe_range(name) in fields[name].problem
        fields[name].text = inside
    assert set(fields["prompt_format"].options) == {"raw", "chat"}


def test_the_live_fields_give_back_the_settings():
    chosen = settings.Settings(model_name="m", model_revision="c0ffee", trust_remote_code=True, temperature=0.5)
    for given in (chosen, settings.Settings()):
        found = controls.read_settings(controls.build_settings(given))
        assert found == {name: getattr(given, name) for name in found}
    assert {"model_name", "model_revision", "trust_remote_code"} < found.keys()


def test_the_reference_names_every_setting_and_its_default():
    rows = settings.format_reference().splitlines()[2:]
    assert len(rows) == len(settings.FIELDS)
    for row, (name, each) in zip(rows, settings.FIELDS.items(), strict=True):
        assert row.startswith(f"| `{name}`")
        assert f"| `{each.default}` |" in row
    assert "| `n_prompts`, `n_samples` | int | `100` | a whole number from 1 to 1,000,000,000 | yes |" in "\n".join(
        rows
    )


def test_the_help_shows_the_defaults_that_there_are():
    parser = command_line.Parser("")
    parser.add_settings()
    shown = " ".join(parser.format_help().split())
    assert "mode=score (default: 0)" in shown
    assert f"packaged default (default: {hub.PACKAGED})" in shown
    assert "None" not in shown
    assert "False" not in shown


def test_importing_the_settings_is_quick():
    code = "import sys; from nucleoscope import settings; print({'torch', 'numpy', 'yaml'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
