"""Runs of one model with several values of a setting: names of folders, columns, what counts together."""

import json

import numpy as np
import pytest

from messages import assert_one_line
from nucleoscope.settings import Settings
from nucleoscope.store import results, run_folder, run_names, run_settings
from synthetic import write_study_file
from variant_files import draw_run, write_run


def write_settings(folder, **settings) -> None:
    (folder / results.RUN_INFO).write_text(json.dumps({"settings": settings}))


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """The results of a model at two values of top_p and of prompt_format, of another one, and of the study."""
    place, variants = tmp_path_factory.mktemp("compared"), draw_run(0, prompts=4, length=5)
    for top_p in (0.9, 0.95):
        for prompt_format in ("raw", "chat"):
            named = {"top_p": top_p, "prompt_format": prompt_format}
            folder = write_run(place, variants, f"m{run_names.format_suffix(named)}")
            write_settings(folder, **named, seed=3)
    write_settings(write_run(place, variants, "other"), top_p=0.95, seed=4)
    write_study_file(place / "data" / "theirs", prompts=3)
    return place


@pytest.mark.parametrize(
    ("named", "suffix", "words"),
    [
        ({}, "", ""),
        ({"top_p": 0.95, "seed": 1}, "@top_p=0.95@seed=1", ", top_p 0.95, seed 1"),
        ({"temperature": 1.0, "seed": -2}, "@temperature=1@seed=-2", ", temperature 1, seed -2"),
        ({"temperature": 1e30}, "@temperature=1e+30", ", temperature 1e+30"),
        ({"prompt_format": "chat"}, "@prompt_format=chat", ", prompt_format chat"),
        ({"prompt_column": "a @b=c/d,"}, "@prompt_column=a~20~~40~b~3d~c~2f~d~2c~", ", prompt_column a @b=c/d,"),
    ],
)
def test_a_folders_name_says_the_settings_and_is_read_back(named, suffix, words):
    name = f"SmolLM2-135M{run_names.format_suffix(named)}"
    assert name == f"SmolLM2-135M{suffix}"
    assert run_names.split(name) == ("SmolLM2-135M", named)
    assert run_names.describe_model(name) == f"SmolLM2-135M{words}"
    assert run_names.describe_run(name, "math") == f"SmolLM2-135M on math{words}"


@pytest.mark.parametrize("name", ["m", "a@b", "m@top_p=", "m@top_p=7", "@top_p=0.9", "m@device=cpu", "m@top_p=0.9@x"])
def test_a_name_that_says_no_settings_is_that_of_a_model(name):
    assert run_names.split(name) == (name, {})


def test_a_runs_folder_is_named_after_settings_only_if_it_is_asked_for():
    assert results.locate_run("r", "math", "a/m").name == "m"
    assert results.locate_run("r", "math", "a/m", None, {"top_p": 0.9}).name == "m@top_p=0.9"
    chosen = Settings(top_p=0.95, seed=1, named_settings="seed, top_p").check()
    assert list(chosen.collect_named().items()) == [("top_p", 0.95), ("seed", 1)]  # always in the same order
    with pytest.raises(ValueError, match=r"would be read as 'm' with top_p 0\.9") as caught:
        results.locate_run("r", "math", "a/m@top_p=0.9", None, {"top_p": 0.9})
    assert_one_line(str(caught.value))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"named_settings": "topp"}, "named_settings: unknown setting 'topp' (did you mean 'top_p'?)"),
        ({"named_settings": "foo"}, "named_settings: unknown setting 'foo': it must be one of n_prompts, max_tokens,"),
        ({"named_settings": "top_p,device"}, "'top_p,device': runs cannot be named after device: omit it"),
        ({"named_settings": "dtype"}, "different type on different machines: set it to float32, bfloat16 or float16"),
        ({"named_settings": "model_revision"}, "model_revision is not set: set it, or leave it out of named_settings"),
        ({"named_settings": "overwrite"}, "'overwrite': runs cannot be named after overwrite: omit it"),
        ({"named_settings": "variants"}, "named_settings is 'variants': runs cannot be named after variants: omit it"),
        ({"named_settings": "mode"}, "named_settings is 'mode': runs cannot be named after mode: omit it"),
        ({"named_settings": "model_name"}, "runs cannot be named after model_name: omit it"),
        ({"named_settings": "seed", "mode": "score", "text_column": "t"}, "seed is not used with mode=score"),
        ({"named_settings": ",top_p"}, "a name is empty: separate names with single commas"),
        ({"named_settings": "top_p, top_p"}, "it contains top_p more than once"),
    ],
)
def test_settings_that_no_folder_can_be_named_after_are_refused_in_one_line(settings, message):
    with pytest.raises(ValueError, match=r"named_settings(:| is)") as caught:
        Settings(**settings).check()
    assert message in assert_one_line(str(caught.value))


def test_long_values_that_differ_at_their_ends_are_told_apart():
    there, here = ("/data/" + "checkpoints/" * 20 + end for end in ("run1", "run2"))
    said = run_folder.describe_change("model_name", there, here)
    assert "run1' and is now" in said
    assert said.endswith("run2'")
    assert len(said) < 300
    there, here = (f"/data/{'checkpoints/' * 20}{middle}/{'model/' * 20}" for middle in ("run1", "run2"))
    said = run_folder.describe_change("model_name", there, here)
    assert "/run1/model/" in said.partition(" and is now ")[0]
    assert "/run2/model/" in said.partition(" and is now ")[2]
    assert len(said) < 300


def test_a_table_has_a_column_for_each_setting_that_differs(compared):
    table = results.load_table(compared)
    assert list(table)[:6] == ["model", "dataset", "top_p", "seed", "prompt_format", "prompt"]
    assert set(table["model"].unique()) == {"m", "other", "theirs"}
    groups = table[table["model"] == "m"].groupby(["top_p", "prompt_format"], observed=True)
    assert groups.size().to_dict() == {(p, f): 20 for p in (0.9, 0.95) for f in ("raw", "chat")}
    assert (table.loc[table["model"] == "other", "seed"] == 4).all()
    theirs = table[table["model"] == "theirs"]
    assert theirs[["top_p", "seed"]].isna().all(axis=None)
    assert theirs["prompt_format"].isna().all()
    assert "" not in theirs["prompt_format"].cat.categories


def test_one_table_per_run_has_the_same_columns_whether_in_memory_or_in_its_file(compared):
    tables, damaged = results.load_runs(compared)
    stored = results.load_readable(compared)
    assert not damaged
    assert set(tables) == set(stored)
    for key, table in tables.items():
        assert stored[key].equals(table)
    assert "top_p" not in stored.select(columns={"prompt", "k"})["m@top_p=0.9@prompt_format=raw", "data"]
    heads = run_settings.find_heads(stored)
    folders = {key: results.locate_measured(compared, *key) for key in heads}
    for runs in ({key: tables[key] for key in heads}, folders):
        assert str(run_settings.find_heads(runs)) == str(heads)  # as text, in which all that is missing is equal


def test_runs_without_a_difference_have_no_column_more(tmp_path):
    for model in ("a", "b"):
        write_settings(write_run(tmp_path, draw_run(0, prompts=3, length=4), model), top_p=0.9, n_prompts=3)
    assert list(results.load_table(tmp_path))[:4] == ["model", "dataset", "prompt", "step"]


def test_a_run_that_scores_texts_adds_no_column_and_no_words(tmp_path):
    for name, settings in (("data", {"seed": 1}), ("data-answer", {"mode": "score", "text_column": "answer"})):
        folder = write_run(tmp_path / name, draw_run(0, prompts=3, length=4), "m")
        target = tmp_path / "results" / name
        target.mkdir(parents=True)
        write_settings(folder.rename(target / "m"), top_p=0.9, n_prompts=3, **settings)
    stored = results.load_readable(tmp_path / "results")
    assert list(results.load_table(tmp_path / "results"))[:3] == ["model", "dataset", "prompt"]
    assert [run_settings.describe_head(head) for head in stored.heads.values()] == ["m on data", "m on data-answer"]


def test_the_run_of_a_model_before_its_grid_listed_values_does_not_count_twice(tmp_path, capsys):
    for model in ("m", "m@top_p=0.9", "m@top_p=0.95"):
        folder = write_run(tmp_path, draw_run(0, prompts=3, length=4), model)
        write_settings(folder, top_p=0.95 if model.endswith("5") else 0.9)
    stored = results.load_readable(tmp_path)
    assert sorted(stored) == [("m@top_p=0.9", "data"), ("m@top_p=0.95", "data")]
    said = assert_one_line(capsys.readouterr().err.rstrip())
    assert (
        said == f"skipped: '{tmp_path}/data/m' repeats '{tmp_path}/data/m@top_p=0.9': same model, data set and settings"
    )
    assert len(results.load_table(tmp_path)) == 24
    tables, left_out = results.load_runs(tmp_path)
    assert list(tables) == list(stored)
    assert [f"skipped: {problem}" for problem in left_out.values()] == [said]
    assert list(left_out) == [tmp_path / "data" / "m"]


def test_runs_of_other_weights_do_not_repeat_each_other(tmp_path):
    for model, revision in (("m", "A"), ("m@top_p=0.9", "B")):
        folder = write_run(tmp_path, draw_run(0, prompts=3, length=4), model)
        write_settings(folder, top_p=0.9, model={"source": "hub", "revision": revision}, dataset={"sha256": "x"})
    assert sorted(results.load_readable(tmp_path)) == [("m", "data"), ("m@top_p=0.9", "data")]


def test_only_runs_with_equal_values_of_what_varies_within_a_model_count_together(compared):
    heads = run_settings.find_heads(results.load_readable(compared))
    assert run_settings.list_varied(heads.values()) == ["top_p", "prompt_format"]  # seeds differ between models only
    groups = run_settings.group_comparable({key: head for key, head in heads.items() if key[0] != "theirs"})
    assert ["m@top_p=0.95@prompt_format=raw", "other"] in [[model for model, _ in group] for group in groups]
    assert len(groups) == 4
    pair = [heads[key] for key in groups[-1]]
    merged = run_settings.merge_heads(pair, Model="(all)")
    assert merged["Model"] == "(all)"
    assert (merged["top_p"], merged["prompt_format"]) == (0.95, "raw")
    assert np.isnan(merged["seed"])


def test_runs_are_sorted_by_their_values_as_numbers_and_other_settings_are_beside_each_other():
    names = ["m@top_p=0.9@seed=2", "m@top_p=0.9@seed=10", "m@top_p=0.95@seed=1", "m2"]
    assert sorted({*names}, key=run_names.order_model) == names
    keys = [(model, dataset) for dataset in ("a", "b") for model in names[:3]]
    assert sorted({*keys}, key=run_names.order_run) == keys


def test_the_twelve_tokens_are_those_of_one_combination_of_settings():
    names = {"m@top_p=0.9", "m@top_p=0.95", "a"}
    assert run_names.choose_model("hub/m", names) == "m@top_p=0.9"
    assert run_names.choose_model("m@top_p=0.95", names) == "m@top_p=0.95"
    assert run_names.choose_model("nothing", names) == "a"
    assert run_names.describe_others("m@top_p=0.9", names) == "It was also measured with top_p 0.95."
    assert run_names.describe_others("a", names) == ""
