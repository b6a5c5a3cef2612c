"""The one list of settings, and that all which must agree with it does."""

import math
import re
import subprocess
import sys
import types
from pathlib import Path

import jupytext
import numpy as np
import pytest
import torch
import yaml

from messages import assert_one_line
from nucleoscope import hub, settings, variants
from nucleoscope.explorer import controls, engine
from nucleoscope.measure import branching, context
from nucleoscope.measure.recording import Token
from nucleoscope.store import text_pairs
from nucleoscope.workflow import command_line, run_notebooks

ROOT = Path(__file__).parents[1]
DEFAULTS = {name: each.default for name, each in settings.FIELDS.items()}


def choose_other(name: str):
    """An allowed value of a setting that is not its default; a setting that is added is in these tests by itself."""
    facts, default = settings.FIELDS[name].metadata, DEFAULTS[name]
    if facts["choices"]:
        return next(value for value in reversed(facts["choices"]) if value != default)
    if facts["type"] in settings.NUMBERS:
        return default + 1 if facts["type"] is int else default / 2
    return "default" if facts["are_variants"] else "2025-01-31" if facts["is_date"] else f"other_{name}"


OTHERS = {name: choose_other(name) for name in settings.list_deciding()}  # of a run with nothing at its default


def test_the_guide_names_all_settings_that_a_grid_may_list():
    guide = " ".join((ROOT / "book/use/run-the-grid.md").read_text(encoding="utf-8").split())
    (named,) = re.findall(r"(`[^.]*?`) can be listed\.", guide)
    assert sorted(re.findall(r"`(\w+)`", named)) == sorted(settings.list_varying())


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


def test_a_second_pass_reads_every_setting_of_its_run():
    info = {"settings": OTHERS | {"model": {"sha256": "m"}, "dataset": {"sha256": "d"}}}
    found = context.read_settings(info)
    assert {name: getattr(found, name) for name in OTHERS} == OTHERS
    chosen = settings.Settings(branch_length=7, batch_size=3, skip_check=True)
    found = branching.combine_settings(info, chosen)
    assert {name: getattr(found, name) for name in DEFAULTS} == DEFAULTS | OTHERS | {
        "branch_length": 7, "batch_size": 3, "skip_check": True,
    }  # fmt: skip


def test_a_second_pass_says_that_a_wrong_setting_is_in_the_file_of_the_run():
    with pytest.raises(ValueError, match=r"^run\.json: dtype is 'mixed': it must be auto, float32"):
        context.read_settings({"settings": {"dtype": "mixed"}})


def test_a_setting_that_a_run_does_not_record_has_its_default_in_a_second_pass():
    assert context.read_settings({"settings": {"max_tokens": 5}}) == settings.Settings(max_tokens=5)
    assert branching.combine_settings({"settings": {}}, settings.Settings(top_p=0.5, seed=3)) == settings.Settings()


def test_what_follows_a_candidate_in_the_live_notebook_is_read_with_every_setting_of_its_text(monkeypatch):
    class Looked(Exception):
        """Carries the settings."""

    def look_ahead(*given):
        raise Looked(given[6])

    monkeypatch.setattr(context, "look_ahead", look_ahead)
    live = {name: field.metadata["live"] for name, field in settings.FIELDS.items()}
    given = {name: value for name, value in OTHERS.items() if live[name] or name == "dtype"}
    token = Token(1, torch.arange(3), torch.full((3,), 0.3), {})
    model = types.SimpleNamespace(model=None, tokenizer=None)
    hidden = {"prompt": "a", "index": 0, "seed": 0.5}  # which the field of a seed may say while it is hidden
    with pytest.raises(Looked) as raised:
        engine.look_ahead(model, [token], 0, given | hidden, engine.Grouping(2, 0.5))
    assert raised.value.args[0] == settings.Settings(**{name: given[name] for name in given if name != "seed"})


def test_runs_are_a_pair_only_if_every_setting_that_decides_what_is_measured_is_one_of_both():
    known = {*text_pairs.COMMON, *text_pairs.OWN, *text_pairs.APART}
    assert known == {*settings.list_deciding()}
    same = {name: DEFAULTS[name] for name in OTHERS}
    for name in {*OTHERS} - {*text_pairs.OWN, *text_pairs.APART}:
        runs = [text_pairs.Run(Path(), values) for values in (same, same | {name: OTHERS[name]})]
        assert text_pairs.list_obstacles(*runs) == [name]


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
        ("temperature", 0, "temperature is 0: it must be a finite positive number, at least 1e-30"),
        ("temperature", -1, "temperature is -1: it must be a finite positive number, at least 1e-30"),
        ("temperature", math.nan, "temperature is nan: it must be a finite positive number, at least 1e-30"),
        ("temperature", math.inf, "temperature is inf: it must be a finite positive number, at least 1e-30"),
        ("n_prompts", 0, "n_prompts is 0: it must be a whole number from 1 to 1,000,000,000"),
        ("n_prompts", 2.5, "n_prompts is 2.5: it must be a whole number from 1 to 1,000,000,000"),
        ("n_prompts", None, "n_prompts is None: it must be a whole number from 1 to 1,000,000,000"),
        ("max_tokens", True, "max_tokens is True: it must be a whole number from 1 to 1,000,000,000"),
        ("batch_size", 0, "batch_size is 0: it must be auto or a whole number from 1 to 1,000,000,000"),
        ("batch_size", "many", "batch_size is 'many': it must be auto or a whole number from 1 to 1,000,000,000"),
        ("mode", "sing", "mode is 'sing': it must be generate or score"),
        ("prompt_format", None, "prompt_format is None: it must be raw or chat"),
        ("dtype", "bf16", "dtype is 'bf16' (did you mean 'bfloat16'?): it must be auto, float32, bfloat16 or float16"),
        ("dtype", "BF16", "dtype is 'BF16' (did you mean 'bfloat16'?): it must be auto, float32, bfloat16 or float16"),
        ("dtype", "fp16", "dtype is 'fp16' (did you mean 'float16'?): it must be auto, float32, bfloat16 or float16"),
        ("dtype", "int8", "dtype is 'int8': it must be auto, float32, bfloat16 or float16"),
        ("text_column", 3, "text_column is 3: it must be text: put it in quotation marks"),
        ("text_column", ["c"], "text_column is ['c']: it must be text"),
        (
            "variants",
            "top_q_0.9, raw",
            "variants: unknown candidate set or geometry 'top_q_0.9' (did you mean 'top_p_0.9'?)",
        ),
        ("variants", "top_k_10 centred", "variants: 'top_k_10 centred' is not a name: separate names with commas"),
        (
            "variants",
            "foo",
            "variants: unknown candidate set or geometry 'foo': variants must be default, none, or one or more of "
            f"{', '.join(variants.NAMES)}",
        ),
        (
            "variants",
            3,
            "variants is 3: it must be default, none, or names of candidate sets and geometries, separated by commas",
        ),
        (
            "context_candidates",
            65,
            "context_candidates is 65: it must be a whole number from 2 to 64 "
            "(in a grid, 0 or 1 disables comparing and branching)",
        ),
        (
            "branch_points",
            1001,
            "branch_points is 1001: it must be a whole number from 1 to 1,000 (in a grid, 0 disables branching)",
        ),
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
    assert "names separated by commas, such as top_k_10,centred (the book lists all of them under Method)" in shown
    assert "likeliest candidates to compare in context, or to branch from (default: 8)" in shown
    assert settings.normalise("variants", "top_k_10,centred") == "top_k_10,centred"
    assert "None" not in shown
    assert "False" not in shown


def test_importing_the_settings_is_quick():
    code = "import sys; from nucleoscope import settings; print({'torch', 'numpy', 'yaml'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize(("name", "text"), [("temperature", "1e-5"), ("top_p", "0.12345678"), ("seed", "12345678")])
def test_a_number_that_is_text_is_shown_as_yaml_reads_that_number(name, text):
    with pytest.raises(ValueError, match="which is read as text") as caught:
        settings.validate(name, text)
    (written,) = re.findall(r"\(write (.*?)\)", str(caught.value))
    assert yaml.safe_load(written) == float(text)
