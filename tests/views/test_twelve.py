"""The notebook "Twelve tokens", run on small results."""

import ast
import json
import os
from pathlib import Path
from unittest import mock

import nbformat
import numpy as np
import pandas as pd
import torch

import forks
import tiny
from nucleoscope import atomic
from nucleoscope.measure.runs import complete_run
from nucleoscope.store import results
from nucleoscope.store.run_folder import RunFolder
from nucleoscope.views import examples, twelve
from nucleoscope.views.tables import NOTHING_YET
from nucleoscope.views.token_text import escape_name
from nucleoscope.workflow import notebooks

ROOT = Path(__file__).parents[2]
TEXT = "the rain in Spain stays mainly in the plain, and سلام 你好 <script>alert(1)</script>"


def write_run(folder, records: list[dict], settings: dict | None) -> None:
    """A measured run as a run leaves it; without ``settings``, without its run.json."""
    folder.mkdir(parents=True)
    torch.save(records, folder / results.MEASUREMENTS)
    if settings is not None:
        given = {"model": {"source": "folder"}, "dataset_name": folder.parent.name, **settings}
        atomic.write_json(folder / results.RUN_INFO, {"settings": given})


def execute_notebook(folder, forked: bool = True) -> tuple[list[str], list[str]]:
    """The notebook on the results in ``folder``: its strips, and its lines of Markdown."""
    with mock.patch.dict(os.environ, forks.create_environment() if forked else {}):
        notebooks.execute("twelve", folder / "twelve.ipynb", {"results_dir": str(folder / "results")})
    cells = nbformat.read(folder / "twelve.ipynb", as_version=4).cells
    data = [output.data for cell in cells for output in cell.get("outputs", []) if "data" in output]
    strips = [output["text/html"] for output in data if "nucleoscope-strip" in output.get("text/html", "")]
    return strips, [output["text/markdown"] for output in data if "text/markdown" in output]


def read_payload(html: str) -> dict:
    return json.loads(html.split('<script type="application/json">')[1].split("</script>")[0])


def test_twelve_tokens_are_shown_each_with_its_card(tmp_path):
    name = tiny.save(tmp_path / "tiny", tiny.create_model(), tiny.create_tokenizer(bos=False))
    for dataset, seed in (("alpha", 0), ("beta.v2", 100)):
        records = [tiny.create_record(TEXT, seed=seed + number, most=250) for number in range(10)]
        write_run(tmp_path / "results" / dataset / "tiny", records, {"model_name": name})
    strips, (said, *lines) = execute_notebook(tmp_path, forked=False)
    assert len(strips) == 12
    tables, _ = results.load_runs(tmp_path / "results")
    total, long, highest = examples.compute_reach(tables)
    assert said == (
        f"The model is {escape_name(name)}, on alpha and beta.v2: {total:,} tokens with more than one candidate. "
        f"The {100 * long:.1f}% of them with more than 200 candidates are ranked but not shown: "
        f"none of the tokens below is above percentile "
        f"{100 * highest:.1f} of entropy."
    )
    assert lines == list(map(examples.format_numbers, examples.find_corners(tables).itertuples()))
    for html, token in zip(strips, examples.find_corners(tables).itertuples(), strict=True):
        data = read_payload(html)
        assert data["first"] + data["shown"] == token.step
        assert data["quantities"][-1]["values"][data["shown"]] == token.k
        assert data["mode"] == "generate"


def test_the_open_cards_have_the_similarities_of_the_files_and_no_other_card_has(tmp_path):
    model, tokenizer = tiny.create_model(), tiny.create_tokenizer(bos=False)
    name, folder = tiny.save(tmp_path / "tiny", model, tokenizer), tmp_path / "results" / "alpha" / "tiny"
    settings = {"model_name": name, "model": {"source": "folder"}, "dataset_name": "alpha"}
    options = {"max_tokens": 16, "progress": False, "variants": "none"}
    with RunFolder(folder, settings) as run:
        complete_run(run, model, tokenizer, ["the rain", "in Spain", "stays"], **options)
    strips, (said, *_) = execute_notebook(tmp_path)
    assert strips
    assert twelve.CARDS in said
    corners = examples.find_corners(results.load_runs(tmp_path / "results")[0])
    for html, token in zip(strips, corners.itertuples(), strict=True):
        data = read_payload(html)
        measured = results.load_similarities(folder, [token.prompt])[token.prompt]
        for shown, known in zip((data["similar"], data["matrix"]), measured, strict=True):
            own = shown.pop(data["shown"])
            assert own == np.rint(100 * known[token.step].astype(float)).astype(int).tolist()[: len(own)]
            assert own
            assert not any(shown)


def list_calls(source: str, name: str) -> list[ast.Call]:
    """The calls of a function in a module or a notebook."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return [call for call in calls if getattr(call.func, "id", getattr(call.func, "attr", "")) == name]


def test_every_strip_of_the_book_is_given_the_similarities_of_its_files():
    for path in [*(ROOT / "lib").rglob("*.py"), *(ROOT / "notebooks").glob("*.py")]:
        source = path.read_text()
        if list_calls(source, "render_strip"):
            assert "similarities" in source or "_read_texts" in source, path
            assert list_calls(source, "load_similarities"), path


def test_a_corner_whose_tokens_have_too_many_candidates_is_not_called_empty():
    steps = np.arange(40)
    low = pd.DataFrame(
        {
            "model": "m",
            "dataset": "d",
            "prompt": 0,
            "step": steps,
            "token": 1,
            "k": 5,
            "entropy": steps / 40,
            "cosine": 1 - steps / 40,
        }
    )
    wide = low.assign(prompt=1, k=500, entropy=2 + steps / 40, cosine=1 + steps / 40)
    tables = {("m", "d"): pd.concat([low, wide], ignore_index=True)}
    corner = "high entropy, high cosine similarity"
    assert corner in examples.list_empty_corners(tables)
    tokens, empty = examples.find_corners(tables), examples.list_empty_corners(tables)
    found = twelve.Corners("m", {"m"}, {}, [], tables, tokens, empty, twelve.Background({}, []))
    ((said, html),) = twelve.show_corner(found, corner)
    assert said == (
        "No token can be shown here: both of its percentiles must be in the outer third, with at most 200 candidates "
        "and at least 8 tokens before it."
    )
    assert not html


def test_runs_that_cannot_be_read_are_left_out_and_named(tmp_path):
    name = tiny.save(tmp_path / "tiny", tiny.create_model(), tiny.create_tokenizer(bos=False))
    records = [tiny.create_record(TEXT, seed=number) for number in range(3)]
    folder = tmp_path / "results"
    write_run(folder / "gated" / "tiny", records, {"model_name": str(tmp_path / "nowhere")})
    write_run(folder / "<b>lost" / "tiny", records, None)
    write_run(folder / "read-answer" / "tiny", records, {"model_name": name, "mode": "score"})
    write_run(folder / "torn" / "tiny", records, {"model_name": name})
    (folder / "torn" / "tiny" / results.MEASUREMENTS).write_bytes(b"torn")
    write_run(folder / "flipped" / "tiny", records, {"model_name": name})
    results.load_runs(folder)  # writes every tokens.parquet, which stays readable
    path = folder / "flipped" / "tiny" / results.MEASUREMENTS
    content = path.read_bytes()
    path.write_bytes(content.replace(b"top_p_tokens", b"top_p_tokems"))
    strips, (said, *lines) = execute_notebook(tmp_path)
    assert [read_payload(html)["mode"] for html in strips] == ["score"] * 3  # one a prompt
    assert sum(line.startswith("No token is left for this corner: ") for line in lines) == 1
    assert "The model read the texts of read-answer; it did not write them." in said
    assert said.endswith("cannot be read here: &#60;b&#62;lost, flipped and gated.")
    assert f"Only {len(strips)} of 12 tokens are shown, because too few are suitable" in said
    notebook = (tmp_path / "twelve.ipynb").read_text()
    assert "torn" in notebook  # named where a reader of the page sees it
    assert "left out: " in notebook


def test_without_any_tokenizer_the_page_says_so(tmp_path):
    write_run(tmp_path / "results" / "alpha" / "tiny", [tiny.create_record(TEXT)], None)
    strips, (said, *lines) = execute_notebook(tmp_path)
    assert strips == []
    assert said.startswith("The tokenizer of tiny is not available here, so its tokens cannot be shown.")
    assert lines == [NOTHING_YET] * 4  # in the book, the page ends before them


def test_without_a_suitable_token_one_sentence_says_what_a_token_needs(tmp_path):
    name = tiny.save(tmp_path / "tiny", tiny.create_model(), tiny.create_tokenizer(bos=False))
    records = [tiny.create_record(TEXT[: examples.BEFORE], most=250)]
    write_run(tmp_path / "results" / "alpha" / "tiny", records, {"model_name": name})
    strips, (said, *lines) = execute_notebook(tmp_path)
    assert strips == []
    assert lines == [NOTHING_YET] * 4
    assert said.endswith(
        "None of them can be shown: a token must have at least 8 tokens before it, at most 200 candidates, and both "
        "percentiles in the outer third."
    )
    assert "above percentile" not in said
    assert "Only" not in said
    assert "open card" not in said
