"""scripts/export.py: a run as csv, parquet or one page, and every refusal in one line."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from bs4 import BeautifulSoup

import tiny
from messages import assert_one_line
from nucleoscope.measure.runs import complete_run
from nucleoscope.store import results
from nucleoscope.store.run_folder import RunFolder
from nucleoscope.views import export

ROOT = Path(__file__).parents[2]
PROMPTS = ["the rain", "=1+1", ""]


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> Path:
    """A run of a tiny model in a folder, whose tokenizer is on this machine."""
    place = tmp_path_factory.mktemp("project")
    model, tokenizer = tiny.create_model(), tiny.create_tokenizer()
    name = tiny.save(place / "tiny", model, tokenizer)
    folder = place / "results" / "math" / "tiny"
    with RunFolder(folder, {"model_name": name, "n_prompts": 3}) as run:
        complete_run(run, model, tokenizer, PROMPTS, max_tokens=8, progress=False)
    return folder


@pytest.fixture(scope="module")
def older(measured, tmp_path_factory) -> Path:
    """The same run as earlier versions left it: without texts and similarities, and without its tokenizer."""
    folder = tmp_path_factory.mktemp("older") / "math" / "tiny"
    folder.mkdir(parents=True)
    torch.save(list(results.load_records(measured).values()), folder / "measurements.pt")
    return folder


def test_no_number_is_minus_zero(measured):
    table = results.load_run(measured / "measurements.pt", "tiny", "math")
    assert (table["k"] == 1).any()
    numbers = table.select_dtypes("number").to_numpy(float)
    assert not (np.signbit(numbers) & (numbers == 0)).any()


def test_a_csv_and_a_parquet_have_a_row_for_each_token_with_its_text(measured, tmp_path):
    table = results.load_run(measured / "measurements.pt", "tiny", "math")
    said = export.write(measured, tmp_path / "all.parquet")
    assert said == f"{tmp_path / 'all.parquet'}: {len(table)} tokens of 3 prompts"
    found = pd.read_parquet(tmp_path / "all.parquet")
    assert list(found)[:6] == ["model", "dataset", "prompt", "step", "token", "text"]
    assert found["text"].tolist() == table["text"].tolist()
    assert found["entropy"].tolist() == table["entropy"].tolist()
    export.write(measured, tmp_path / "one.csv", [1])
    found = pd.read_csv(tmp_path / "one.csv", keep_default_na=False)
    assert set(found["prompt"]) == {1}
    assert len(found) == (table["prompt"] == 1).sum()
    assert not [text for text in found["text"] if text.startswith(("=", "+", "-", "@"))]  # no spreadsheet computes it


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_candidates_have_a_row_each(measured, tmp_path, monkeypatch, ending):
    monkeypatch.setattr(export, "AT_ONCE", 1)
    output = tmp_path / f"candidates.{ending}"
    export.write(measured, output, candidates=True)
    found = pd.read_csv(output) if ending == "csv" else pd.read_parquet(output)
    expected = results.tabulate_candidates(measured, [0, 1, 2])
    rest = ["prompt", "step", "place", "text", "id", "probability", "similarity"]
    assert list(found) == ["model", "dataset", *rest]
    assert {*found["model"], *found["dataset"]} == {"tiny", "math"}
    assert found["id"].tolist() == expected["id"].tolist()
    for name, kind in (("similarity", np.float16), ("probability", np.float32)):
        assert found[name].astype(kind).tolist() == expected[name].astype(kind).tolist()


def test_a_number_of_a_csv_has_no_more_digits_than_it_was_stored_with(measured, tmp_path):
    export.write(measured, tmp_path / "candidates.csv", candidates=True)
    found = pd.read_csv(tmp_path / "candidates.csv", dtype=str)
    for name, most in (("similarity", 5), ("probability", 9)):
        digits = [re.sub(r"e.*|\D", "", text).lstrip("0") for text in found[name]]
        assert max(map(len, digits)) <= most


def test_candidates_of_a_run_with_named_settings_have_a_column_for_each(measured, tmp_path):
    copy = tmp_path / "math" / "tiny@top_p=0.9@prompt_format=raw"
    shutil.copytree(measured, copy)
    export.write(copy, tmp_path / "c.parquet", [2], candidates=True)
    found = pd.read_parquet(tmp_path / "c.parquet")
    assert list(found)[:5] == ["model", "dataset", "top_p", "prompt_format", "prompt"]
    assert {*found["model"]} <= {"tiny"}
    export.write(copy, tmp_path / "c.csv", [0], candidates=True)
    row = pd.read_csv(tmp_path / "c.csv").iloc[0]
    assert row[["model", "dataset", "top_p", "prompt_format"]].tolist() == ["tiny", "math", 0.9, "raw"]


def test_a_page_of_one_prompt_is_its_strip_and_one_of_several_a_menu(measured, tmp_path):
    export.write(measured, tmp_path / "one.html", [0])
    export.write(measured, tmp_path / "all.html")
    one, many = (BeautifulSoup((tmp_path / name).read_text(), "html.parser") for name in ("one.html", "all.html"))
    assert one.title.string == "tiny on math, prompt 0"
    text = "".join(results.load_run(measured / "measurements.pt", "tiny", "math").query("prompt == 0")["text"])
    assert len(one.select(".nucleoscope-strip")) == 1
    assert len(one.select(".ns-text")[0].get_text()) >= len(text)  # control characters have pictures
    content = json.loads(many.find("script", type="application/json").string)
    assert list(content["texts"]) == ["0", "1", "2"]
    assert content["texts"]["0"]["data"]["similar"]
    for page in (one, many):
        assert not page.select("[src], [href]")


def test_an_older_run_has_no_texts_which_is_said_and_a_page_of_it_is_refused(older, tmp_path):
    said = export.write(older, tmp_path / "all.csv")
    assert "the column text is empty, because the tokenizer is not on this machine" in assert_one_line(said)
    assert export.write(older, tmp_path / "c.parquet", candidates=True).count("column text is empty") == 1
    with pytest.raises(ValueError, match=r"a page needs the model's tokenizer, but .* has no run\.json"):
        export.write(older, tmp_path / "all.html")
    assert not (tmp_path / "all.html").exists()


def test_an_older_run_gets_its_texts_if_the_tokenizer_is_there(older, measured, tmp_path):
    copy = tmp_path / "math" / "tiny"
    copy.mkdir(parents=True)
    for name, source in (("measurements.pt", older), ("run.json", measured)):
        (copy / name).write_bytes((source / name).read_bytes())
    export.write(copy, tmp_path / "new.parquet")
    export.write(measured, tmp_path / "expected.parquet")
    one, other = (pd.read_parquet(tmp_path / name) for name in ("new.parquet", "expected.parquet"))
    pd.testing.assert_frame_equal(one, other)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            ["math/tiny", "a.cvs"],
            "error: the output file 'a.cvs' must end in .csv, .parquet or .html (did you mean '.csv'?)",
        ),
        (
            ["math/tinny", "a.csv"],
            "error: there is no measured run 'math/tinny' in 'results' (did you mean 'math/tiny'?)",
        ),
        (["tine", "a.csv"], "error: there is no measured run 'tine' in 'results' (measured: math/tiny"),
        (["elsewhere", "a.csv"], "error: there is no measured run 'elsewhere' in 'results' (measured: math/tiny)"),
        (["math/tiny", "a.csv", "--prompt=7"], "has no prompt 7: it has 3 prompts (prompts are counted from 0)"),
        (["math/tiny", "a.csv", "--prompt=-1"], "has no prompt -1: it has 3 prompts (prompts"),
        (["math/tiny", "a.csv", f"--prompt={10**12}"], "it has 3 prompts (prompts are counted from 0)"),
        (
            ["math/tiny", "a.csv", "--prompt=x"],
            "error: prompt is 'x': it must be a whole number (see",
        ),
        (["math/tiny", "nowhere/a.csv"], "error: the folder 'nowhere' does not exist"),
        (
            ["math/tiny", "results/math/tiny/run.json/a.csv"],
            "run.json' is not a folder: write to another folder",
        ),
        (["math/tiny", "pipe.csv/a.csv"], "error: 'pipe.csv' is not a folder: write to another folder"),
        (["math/tiny", "results/math/tiny/tokens.parquet"], "would be among the files of the run"),
        (["math/tiny", "a.html", "--candidates"], "omit --candidates"),
        (["math/tiny", "a.csv", "--candidate"], "did you mean '--candidates'?"),
        (["math/tiny", "folder.csv"], "error: 'folder.csv' is a folder: name a file"),
        (["math/tiny", "new.csv/"], "error: 'new.csv/' is the name of a folder: name a file"),
        (["math/tiny", ""], "error: no output file is named"),
        (["math/tiny", "x/.csv"], "error: 'x/.csv' has no name before its extension: write a name such as 'x/out.csv'"),
        (["math/tiny", "pipe.csv"], "error: 'pipe.csv' is not a regular file: name another"),
    ],
)
def test_bad_input_is_one_line(measured, monkeypatch, capsys, given, said):
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        import export as script
    finally:
        sys.path.pop(0)
    monkeypatch.chdir(measured.parents[2])
    Path("folder.csv").mkdir(exist_ok=True)
    if not Path("pipe.csv").exists():
        os.mkfifo("pipe.csv")
    before = (measured / "tokens.parquet").read_bytes()
    monkeypatch.setattr(sys, "argv", ["export.py", *given])
    with pytest.raises(SystemExit) as ended:
        script.main()
    message = ended.value.code if isinstance(ended.value.code, str) else capsys.readouterr().err
    assert said in assert_one_line(message)
    assert (measured / "tokens.parquet").read_bytes() == before
    assert not Path("new.csv").exists()


def test_a_name_that_can_mean_two_runs_is_refused_and_a_folder_without_measurements_is_named(
    measured, tmp_path, monkeypatch
):
    shutil.copytree(measured, tmp_path / "math" / "tiny")
    shutil.copytree(measured, tmp_path / "r" / "math" / "tiny")
    (tmp_path / "r" / "math" / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ValueError, match=r"^'math/tiny' can mean 'math/tiny' or 'r/math/tiny': give the absolute path of one"
    ):
        results.find_run("math/tiny", "r")
    assert results.find_run("r/math/tiny", "r") == Path("r/math/tiny")
    assert results.find_run("math/tiny", ".").samefile("math/tiny")
    assert results.find_run(str(tmp_path / "math/tiny"), "r") == tmp_path / "math/tiny"
    with pytest.raises(FileNotFoundError, match=r"^'r/math/empty' has no measurements: measure the run first"):
        results.find_run("math/empty", "r")


@pytest.mark.parametrize("folder", ["math", "empty", "r/math/none"])
def test_the_name_of_a_folder_that_is_no_run_is_answered_with_the_runs_there_are(
    measured, tmp_path, monkeypatch, folder
):
    shutil.copytree(measured, tmp_path / "r" / "math" / "tiny")
    (tmp_path / folder).mkdir(parents=True)  # it has nothing to do with the results, or nothing in it
    monkeypatch.chdir(tmp_path)
    for name, said in {
        "math": "there is no measured run 'math' in 'r' (measured: math/tiny)",
        "r/math": "there is no measured run 'r/math' in 'r' (measured: math/tiny)",
        "": "there is no measured run '' in 'r' (measured: math/tiny)",
        "empty": "there is no measured run 'empty' in 'r' (measured: math/tiny)",
    }.items():
        with pytest.raises(FileNotFoundError) as caught:
            results.find_run(name, "r")
        assert str(caught.value) == said


def test_the_ending_of_the_file_is_checked_before_pandas_is_imported(tmp_path):
    code = "import sys; sys.path.insert(0, 'scripts'); sys.argv = ['export.py', 'math/tiny', 'a.txt']\nimport export\n"
    code += "try: export.main()\nfinally: assert not {'pandas', 'pyarrow', 'torch'} & {*sys.modules}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stderr.startswith("error: the output file 'a.txt' must end in"), done.stderr


def test_the_command_writes_a_file_and_says_which(measured, tmp_path):
    command = [sys.executable, str(ROOT / "scripts/export.py"), str(measured), str(tmp_path / "a.csv")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{tmp_path / 'a.csv'}: ")


def test_a_csv_whose_first_prompts_have_no_tokens_has_one_header(tmp_path):
    part = pd.DataFrame({"prompt": [0], "text": pd.array(["a"], dtype="str"), "cosine": [0.5]})
    assert export._write_table(iter([part[:0], part, part]), tmp_path / "x.csv", ".csv", False) == (2, False)
    assert (tmp_path / "x.csv").read_text().splitlines() == ["prompt,text,cosine", "0,a,0.5", "0,a,0.5"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({}, "contains no settings"),
        ({"settings": [1]}, "contains no settings"),
        ({"settings": {}}, "does not name the model"),
        ({"settings": {"model_name": 3}}, "does not name the model"),
        ({"settings": {"model_name": "tiny", "model": "tiny"}}, "does not name the model"),
        ({"settings": {"model_name": "tiny", "dataset_name": 5}}, "does not name the data set"),
        ({"settings": {"model_name": "tiny", "dataset_name": "math", "dataset": "x"}}, "does not name the data set"),
    ],
)
@pytest.mark.parametrize("name", ["a.csv", "a.html"])
def test_a_run_json_that_does_not_name_the_model_or_data_set_is_refused(older, tmp_path, content, said, name):
    folder = shutil.copytree(older, tmp_path / "math" / "tiny")
    (folder / results.RUN_INFO).write_text(json.dumps(content))
    with pytest.raises(
        ValueError,
        match=f"run.json' {said}: move it out of the way, then repeat the run's command with --overwrite",
    ):
        export.write(folder, tmp_path / name)
