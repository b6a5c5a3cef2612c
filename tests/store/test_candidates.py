"""candidates.parquet: what a run leaves for readers, and what they see without it."""

import contextlib
import io
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import tiny
from messages import assert_one_line
from nucleoscope.measure.runs import complete_run
from nucleoscope.store import candidate_writing, candidates, results
from nucleoscope.store.run_folder import RunFolder

PROMPTS = ["the rain", "in Spain", ""]


def measure(folder, **settings):
    """A run of a tiny model; returns the model and its tokenizer."""
    model, tokenizer = tiny.create_model(), tiny.create_tokenizer()
    with RunFolder(folder, {"model_name": "tiny", "dataset_name": "math"} | settings, overwrite=True) as run:
        complete_run(run, model, tokenizer, PROMPTS, max_tokens=8, progress=False, batch_size=2, **settings)
    return model, tokenizer


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results") / "math" / "tiny"
    return folder, *measure(folder)


def test_the_candidates_of_a_token_are_those_of_the_measurements_with_text_and_similarity(measured):
    folder, model, tokenizer = measured
    embedding = model.get_input_embeddings().weight.detach()
    for prompt, record in results.load_records(folder).items():
        for step, (token, ids, probs) in enumerate(
            zip(record["tokens"], record["top_p_tokens"], record["top_p_probs"], strict=True)
        ):
            found = results.candidates(folder, prompt, step)
            assert list(found) == ["text", "id", "probability", "similarity"]
            assert found["id"].tolist() == ids.tolist()
            assert found["probability"].tolist() == probs.tolist()
            cosines = torch.cosine_similarity(embedding[ids], embedding[token], dim=-1)
            np.testing.assert_allclose(found["similarity"], cosines, atol=1e-3)
            assert found["text"].tolist() == [
                tokenizer.decode([i]) if "�" not in tokenizer.decode([i]) else text
                for i, text in zip(ids.tolist(), found["text"], strict=True)
            ]


def test_the_similarities_of_one_token_are_kept_without_those_of_the_others(measured):
    found = results.load_similarities(measured[0], [0])[0]
    kept = found.keep(1)
    for before, after in zip(found, kept, strict=True):
        assert after[1] is before[1]
        assert [len(each) for place, each in enumerate(after) if place != 1] == [0] * (len(before) - 1)


def test_pandas_alone_reads_texts_and_candidates(measured):
    folder, _, tokenizer = measured
    tokens = pd.read_parquet(folder / "tokens.parquet")
    choices = pd.read_parquet(folder / "candidates.parquet")
    pd.testing.assert_frame_equal(tokens[["prompt", "step", "token"]], choices[["prompt", "step", "token"]])
    for prompt, record in results.load_records(folder).items():
        text = "".join(tokens.loc[tokens["prompt"] == prompt, "text"])
        assert text == tokenizer.decode(record["tokens"], clean_up_tokenization_spaces=False)
    assert tokens["k"].tolist() == choices["text"].map(len).tolist() == choices["similarity"].map(len).tolist()
    pairs = np.minimum(tokens["k"], 10) * (np.minimum(tokens["k"], 10) - 1) // 2
    assert choices["pairs"].map(len).tolist() == pairs.tolist()


def test_the_example_of_the_page_on_reading_prints_numbers_without_their_type(measured):
    page = (Path(__file__).parents[2] / "book/use/read-measurements.md").read_text()
    example, _ = re.findall(r"```python\n(import pandas.*?)```", page, re.DOTALL)
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(example.replace("results/math/SmolLM2-135M-Instruct", str(measured[0])), {})
    choice = results.candidates(measured[0], 0, 5)
    table = said.getvalue().splitlines()[-len(choice) :]
    assert [float(line.split()[-1]) for line in table] == pytest.approx(choice["probability"].tolist(), rel=1e-4)
    assert "float32" not in said.getvalue()


def test_the_example_for_a_csv_keeps_texts_that_look_like_missing_values(tmp_path, monkeypatch):
    page = (Path(__file__).parents[2] / "book/use/read-measurements.md").read_text()
    _, example = re.findall(r"```python\n(import pandas.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    Path("tokens.csv").write_text('text,cosine\nNA,0.5\nNone,\n"",0.1\n')
    found: dict = {}
    exec(example, found)
    assert found["tokens"]["text"].tolist() == ["NA", "None", ""]
    assert found["tokens"]["cosine"].isna().tolist() == [False, True, False]


def test_groups_of_rows_of_any_size_contain_the_same(measured, tmp_path, monkeypatch):
    monkeypatch.setattr(candidate_writing, "GROUP", 1)
    measure(tmp_path / "math" / "tiny")
    one, other = (pd.read_parquet(folder / "candidates.parquet") for folder in (measured[0], tmp_path / "math/tiny"))
    pd.testing.assert_frame_equal(one, other)
    for prompt in range(len(PROMPTS)):
        left, right = (candidates.load_similarities(f, [prompt])[prompt] for f in (measured[0], tmp_path / "math/tiny"))
        for a, b in zip(left.taken + left.pairs, right.taken + right.pairs, strict=True):
            np.testing.assert_array_equal(a, b)


def test_the_table_of_a_runs_candidates_is_that_of_its_tokens_one_below_the_other(measured):
    table = results.tabulate_candidates(measured[0], [1, 0])
    for (prompt, step), group in table.groupby(["prompt", "step"]):
        one = results.candidates(measured[0], prompt, step)
        pd.testing.assert_frame_equal(group[list(one)].reset_index(drop=True), one)
        assert group["place"].tolist() == list(range(len(group)))


@pytest.mark.parametrize("fault", ["missing", "truncated", "of other measurements"])
def test_without_a_file_of_its_own_a_run_has_candidates_but_no_similarities(measured, tmp_path, fault):
    folder, _, tokenizer = measured
    copy = tmp_path / "math" / "tiny"
    copy.mkdir(parents=True)
    records = list(results.load_records(folder).values())
    torch.save(records, copy / "measurements.pt")
    content = (folder / "candidates.parquet").read_bytes()
    if fault != "missing":
        (copy / "candidates.parquet").write_bytes(content[:-100] if fault == "truncated" else content)
    assert results.load_similarities(copy, [0]) == {}
    found = results.candidates(copy, 1, 3)
    with_similarities = results.candidates(folder, 1, 3)
    assert found["id"].tolist() == with_similarities["id"].tolist()
    assert found["similarity"].isna().all()
    assert found["text"].isna().all()
    named = results.candidates(copy, 1, 3, tokenizer)
    pd.testing.assert_series_equal(named["text"], with_similarities["text"])
    table = results.tabulate_candidates(copy, [0, 1], tokenizer)
    expected = results.tabulate_candidates(folder, [0, 1])
    pd.testing.assert_frame_equal(table.drop(columns="similarity"), expected.drop(columns="similarity"))


def test_results_whose_candidates_are_damaged_are_measured_again_with_overwrite_alone(measured, tmp_path):
    folder = tmp_path / "math" / "tiny"
    shutil.copytree(measured[0], folder)
    settings = {"model_name": "tiny", "dataset_name": "math"}
    assert RunFolder(folder, settings, overwrite=True).finished
    whole = (folder / "candidates.parquet").read_bytes()
    for damaged in (whole[:-9], whole[:4] + bytes(byte ^ 255 for byte in whole[4:200]) + whole[200:]):
        (folder / "candidates.parquet").write_bytes(damaged)
        assert RunFolder(folder, settings).finished
        assert not RunFolder(folder, settings, overwrite=True).finished  # as the warning about the file advises
    (folder / "candidates.parquet").unlink()  # as in earlier versions
    assert RunFolder(folder, settings, overwrite=True).finished


def test_a_changed_name_at_the_end_of_the_candidates_is_no_error_and_is_noticed(measured, tmp_path):
    folder = tmp_path / "math" / "tiny"
    shutil.copytree(measured[0], folder)
    path = folder / "candidates.parquet"
    whole, noticed = path.read_bytes(), set()
    expected = results.candidates(folder, 0, 0)
    footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    for found in re.finditer(rb"similarity|probability|pairs", whole[footer:]):
        for changed in (0xFF, whole[footer + found.start()] + 1):  # no UTF-8, and another name
            place = footer + found.start()
            path.write_bytes(whole[:place] + bytes([changed]) + whole[place + 1 :])
            shown, intact = results.candidates(folder, 0, 0), candidates.is_intact(folder)
            if intact:
                pd.testing.assert_frame_equal(shown, expected)
            noticed.add((found[0], changed) if not intact else None)
    assert len(noticed - {None}) == 6


@pytest.mark.parametrize(
    ("prompt", "step", "said"),
    [(9, 0, "no prompt 9"), (1, 99, "no token 99: it has"), (0, -1, "no token -1"), (-1, 0, "no prompt -1")],
)
def test_a_token_that_is_not_there_is_named(measured, prompt, step, said):
    with pytest.raises(ValueError, match=said) as caught:
        results.candidates(measured[0], prompt, step)
    assert_one_line(str(caught.value))


@pytest.mark.parametrize(("prompt", "step"), [(0, 1.5), (0, "a"), (None, 0)])
def test_a_place_that_is_no_whole_number_is_refused(measured, prompt, step):
    with pytest.raises(ValueError, match="both must be whole numbers, counted from 0") as refused:
        candidates.candidates(measured[0], prompt, step)
    assert_one_line(str(refused.value))


def test_a_run_that_is_measured_anew_has_no_candidates_of_the_old_one(measured, tmp_path, monkeypatch):
    folder = tmp_path / "math" / "tiny"
    measure(folder)

    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("nucleoscope.store.run_folder.write_candidates", fail)
    with pytest.raises(KeyboardInterrupt):
        measure(folder, seed=1)
    assert not (folder / "candidates.parquet").exists()
    assert not (folder / "run.json").exists()
    monkeypatch.undo()
    measure(folder, seed=1)
    assert results.candidates(folder, 0, 0)["similarity"].notna().all()


def test_every_measured_token_of_a_text_has_similarities_also_one_outside_its_nucleus(tmp_path):
    folder = tmp_path / "math" / "tiny"
    model, tokenizer = tiny.create_model(), tiny.create_tokenizer(bos=False)
    with RunFolder(folder, {"model_name": "tiny"}) as run:
        complete_run(run, model, tokenizer, ["the cat"], [" sat, ja né"], top_p=0.05, progress=False)
    record = results.load_records(folder)[0]
    found = results.load_similarities(folder, [0])[0]
    outside = [step for step, ids in enumerate(record["top_p_tokens"]) if record["tokens"][step] not in ids]
    assert outside
    embedding = model.get_input_embeddings().weight.detach()
    for step in outside:
        rows = embedding[record["top_p_tokens"][step]]
        cosines = torch.cosine_similarity(rows, embedding[record["tokens"][step]], dim=-1)
        np.testing.assert_allclose(found.taken[step], cosines, atol=1e-3)
