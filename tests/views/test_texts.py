"""The menu of all prompts of a run, and the scripts with their texts. test_book.py has them in a browser."""

import json
import re

import numpy as np
import pytest
import torch
from bs4 import BeautifulSoup

import tiny
from nucleoscope.measure.cosine import find_directions
from nucleoscope.measure.pairs import compare_candidates
from nucleoscope.store import measurements, results
from nucleoscope.store.candidates import Similarities
from nucleoscope.store.context import load_matrices
from nucleoscope.store.tokens import compute_fingerprint
from nucleoscope.views import cards, examples, strip, texts
from nucleoscope.views.token_text import Reader

ATTACK = "</script><script>alert(1)</script><img src=x onerror=alert(1)><!-- &amp; \"'"
WRITTEN = ("the rain in Spain", "", ATTACK, "你好 " * 10, "a")


@pytest.fixture(scope="module")
def reader():
    return Reader(tiny.create_tokenizer(bos=False))


@pytest.fixture
def run(tmp_path):
    """A run's folder and its table."""
    folder = tmp_path / "math" / "tiny"
    folder.mkdir(parents=True)
    records = [tiny.create_record(text, prompt=f"prompt {place} {ATTACK}") for place, text in enumerate(WRITTEN)]
    torch.save(records, folder / "measurements.pt")
    return folder, results.load_run(folder / "measurements.pt", "tiny", "math")


def read_script(path) -> tuple[str, int, dict]:
    found = re.fullmatch(
        r"\(\(window\.nucleoscopeTexts\?\?=\{\}\)\[(.*?)\]\?\?=\{\}\)\[(\d+)\]=(.*);\n", path.read_text(), re.DOTALL
    )
    content = json.loads(found[3])
    for name in {"similar", "matrix"} & content["data"].keys():
        content["data"][name] = [[value - 128 for value in bytes.fromhex(packed)] for packed in content["data"][name]]
    flags = dict.fromkeys(("count", "over", "under", "undefined", "missing"), False)
    content["data"]["quantities"] = [flags | scale for scale in content["data"]["quantities"]]
    return json.loads(found[1]), int(found[2]), content


def list_prompts(folder) -> dict[int, str]:
    return {number: record["prompt"] for number, record in results.load_records(folder).items()}


def test_the_menu_has_every_prompt_with_its_text_and_the_means_of_its_quantities(run, reader):
    folder, table = run
    menu = texts.build_menu(list_prompts(folder), table, reader)
    labels = [label for label, _ in menu["columns"]]
    assert labels[0] == "tokens"
    assert labels[-1] == texts.COEFFICIENT
    assert [prompt[0] for prompt in menu["prompts"]] == list(range(len(WRITTEN)))
    assert [prompt[2] for prompt in menu["prompts"]] == list(WRITTEN)
    coefficients = examples.correlate_within_prompts(table)["r"]
    for number, prompt, _, values in menu["prompts"]:
        own = table[table["prompt"] == number]
        assert prompt == f"prompt {number} {ATTACK}"
        assert len(values) == len(labels)
        assert values[0] == len(own)
        for name, column in (("entropy", "mean entropy (nats)"), ("cosine", "mean cosine similarity")):
            expected = own[name].mean()
            found = values[labels.index(column)]
            assert (found is None) == np.isnan(expected)
            assert found is None or found == pytest.approx(expected, rel=0.01)
        expected = coefficients.get(number, np.nan)
        assert values[-1] == (None if np.isnan(expected) else pytest.approx(expected, rel=0.01))
    assert not menu["cut"]


def test_of_many_long_prompts_only_the_beginnings_can_be_searched(run, reader, monkeypatch):
    monkeypatch.setattr(texts, "SEARCHED", 1)
    menu = texts.build_menu(list_prompts(run[0]), run[1], reader)
    assert menu["cut"]
    assert max(len(prompt[1]) for prompt in menu["prompts"]) == 40


@pytest.mark.parametrize(("n", "count", "last"), [(0, 0, None), (5, 5, 4), (1000, 1000, 999), (1001, 501, 1000)])
def test_a_page_has_at_most_a_thousand_texts_evenly_chosen(n, count, last):
    chosen = texts.choose_texts(n)
    assert len(chosen) == count
    assert chosen[-1:] == ([] if last is None else [last])
    said = texts.describe_choice(n, chosen)
    assert (f"All {n:,}" in said) == (len(chosen) == n)


def test_each_text_has_a_script_that_assigns_it_and_contains_what_a_strip_does(run, reader):
    folder, table = run
    background = strip.compute_background(table)
    place = texts.write_texts(folder, texts.build_texts(folder, reader, range(len(WRITTEN)), background, "generate"))
    assert sorted(path.name for path in place.iterdir()) == [f"{n}.js" for n in range(len(WRITTEN))]
    for number, text in enumerate(WRITTEN):
        run_name, key, content = read_script(place / f"{number}.js")
        assert (run_name, key) == ("math/tiny", number)
        assert "<" not in (place / f"{number}.js").read_text()
        assert "".join(unit for unit, _ in content["units"]) == text
        record = results.load_records(folder, [number])[number]
        expected = strip.build_content(record, reader, table=background)
        del expected["data"]["line"]
        assert content == expected
    assert content["empty"] == "(no token was measured)"
    assert read_script(place / "1.js")[2]["empty"] == "(the model ended this text immediately)"


@pytest.mark.parametrize(
    ("info", "advice"),
    [
        ({"chat_template": True}, "; prompt_format=chat may help"),
        ({"chat_template": True, "format": "chat"}, ""),
        ({"chat_template": False}, ""),
        (None, ""),
    ],
)
def test_an_empty_text_of_a_chat_model_that_was_measured_raw_says_what_to_try(run, reader, info, advice):
    folder, table = run
    path = folder / results.RUN_INFO
    settings = {"model_name": "tiny", "dataset_name": "math", "prompt_format": (info or {}).get("format", "raw")}
    path.write_text("damaged" if info is None else json.dumps(info | {"settings": settings}))
    ((_, content),) = texts.build_texts(folder, reader, [1], strip.compute_background(table), "generate")
    assert content["empty"] == f"(the model ended this text immediately{advice})"


def test_scripts_of_texts_that_are_gone_are_removed_and_nothing_else(run, reader):
    folder, table = run
    place = texts.write_texts(
        folder, texts.build_texts(folder, reader, [0, 2], strip.compute_background(table), "generate")
    )
    (place / "notes.txt").write_text("mine")
    texts.write_texts(folder, texts.build_texts(folder, reader, [2], strip.compute_background(table), "generate"))
    assert sorted(path.name for path in place.iterdir()) == ["2.js", "notes.txt"]


def test_a_page_names_its_scripts_and_nothing_in_it_ends_a_script(run, reader):
    folder, table = run
    html = texts.show_texts(folder, reader.tokenizer, table, strip.compute_background(table), "generate", len(WRITTEN))
    soup = BeautifulSoup(html, "html.parser")
    assert len(soup.find_all("script")) == 2
    assert not soup.find_all("img")
    content = json.loads(soup.find("script", type="application/json").string)
    assert content["texts"] == {}
    assert not re.findall(r"url\(|@import|fetch\(|innerHTML|insertAdjacentHTML", html)
    root = soup.find(class_="nucleoscope-texts")
    assert root["data-files"].endswith("math/tiny/texts/")
    moved = BeautifulSoup(texts.move_scripts(html, "./a~25~ b.texts/"), "html.parser").find(class_="nucleoscope-texts")
    assert moved["data-beside"] == "./a~25~ b.texts/"
    assert not moved.has_attr("data-files")
    assert texts.move_scripts('<p data-files="x">', "y") == '<p data-files="x">'


def test_the_measurements_are_read_once_for_all_texts_of_a_page_and_their_menu(run, reader, monkeypatch):
    folder, table = run
    read, load = [], measurements.load
    monkeypatch.setattr(measurements, "load", lambda path: read.append(path) or load(path))
    monkeypatch.setattr(texts, "AT_ONCE", 2)
    html = texts.show_texts(folder, reader.tokenizer, table, strip.compute_background(table), "generate", len(WRITTEN))
    assert read == [folder / "measurements.pt"]
    assert html == texts.render_texts(
        folder, list_prompts(folder), table, strip.compute_background(table), None, reader
    )


def test_in_a_folder_that_cannot_be_written_to_the_texts_are_in_the_page(run, reader, monkeypatch):
    def refuse(*_):
        raise PermissionError

    monkeypatch.setattr(texts, "write_texts", refuse)
    folder, table = run
    html = texts.show_texts(folder, reader.tokenizer, table, strip.compute_background(table), "generate", len(WRITTEN))
    content = json.loads(BeautifulSoup(html, "html.parser").find("script", type="application/json").string)
    assert list(content["texts"]) == [str(number) for number in range(len(WRITTEN))]


def test_the_page_of_a_thousand_prompts_is_light(run, reader):
    _, table = run
    prompts = dict.fromkeys(range(1000), "word " * 500)
    many = table.iloc[:0]
    html = texts.render_texts(run[0], prompts, many, strip.Background({}, []), reader=reader)
    assert len(html.encode()) < 1_000_000


# Similarities on cards


def compare(record: dict) -> tuple[Similarities, torch.Tensor]:
    """The similarities of a record as candidates.parquet has them, and the embedding they are of."""
    embedding = tiny.create_model().get_input_embeddings().weight.detach()
    sizes = torch.tensor([len(ids) for ids in record["top_p_tokens"]])
    found = compare_candidates(find_directions(embedding), record["tokens"], torch.cat(record["top_p_tokens"]), sizes)
    taken = [part.numpy() for part in found.taken.split(sizes.tolist())]
    pairs = [row[~row.isnan()].numpy() for row in found.pairs]
    return Similarities(taken, pairs), embedding


def test_a_card_has_the_similarities_of_its_candidates_in_hundredths(reader):
    record = tiny.create_record("the rain in Spain")
    similarities, embedding = compare(record)
    data = strip.build_content(record, reader, similarities=similarities)["data"]
    for step, token in enumerate(record["tokens"].tolist()):
        ids = record["top_p_tokens"][step].tolist()
        cosines = torch.nn.functional.cosine_similarity(embedding[ids[:10]], embedding[token], dim=-1)
        assert data["similar"][step] == pytest.approx((100 * cosines).tolist(), abs=0.6)
        likeliest = torch.nn.functional.normalize(embedding[ids[:10]], dim=-1)
        expected = (100 * (likeliest @ likeliest.T)).numpy()
        matrix = 100 * cards.unpack_pairs(np.array(data["matrix"][step]) / 100) if len(ids) > 1 else np.zeros((1, 1))
        np.fill_diagonal(matrix, 100)
        np.testing.assert_allclose(matrix, expected, atol=0.6)


def test_a_strip_without_similarities_says_nothing_of_them(reader):
    data = strip.build_content(tiny.create_record("the rain"), reader)["data"]
    assert not {"similar", "matrix"} & data.keys()


def write_matrices(folder, sizes: dict[tuple[int, int], int]) -> None:
    """The ``sizes`` of some tokens' candidates as context files, by prompt and step; all pairs of one have its size."""
    records, places = results.load_records(folder), sorted(sizes)
    found = {"prompts": [prompt for prompt, _ in places], "steps": [step for _, step in places]}
    found |= {"sizes": [sizes[place] for place in places], "ids": [], "shares": [], "similarities": []}
    for (prompt, step), m in ((place, sizes[place]) for place in places):
        found["ids"] += [*records[prompt]["top_p_tokens"][step].tolist(), *range(300, 400)][:m]
        found["shares"] += [1 / m] * m
        found["similarities"] += [m / 100] * (m * (m - 1) // 2)
    kinds = {"shares": torch.float32, "similarities": torch.float16}
    content = {name: torch.tensor(values, dtype=kinds.get(name, torch.int32)) for name, values in found.items()}
    source = {"measurements": compute_fingerprint(folder / "measurements.pt").decode()}
    torch.save(content | source, folder / "context.pt")
    info = source | {"context_candidates": 64, "context_threshold": 0.5}
    (folder / "context.json").write_text(json.dumps(info))


def test_each_text_has_its_similarities_in_context_of_the_candidates_that_a_card_lists(run, reader):
    folder, table = run
    write_matrices(folder, {(0, 1): 3, (0, 2): 64, (3, 0): 2})
    background = strip.compute_background(table)
    found = {n: content["data"] for n, content in texts.build_texts(folder, reader, [0, 2, 3], background, "generate")}
    assert "context" not in found[2]
    shown = {step: each for step, each in enumerate(found[0]["context"]) if each}
    assert {step: len(each["names"]) for step, each in shown.items()} == {1: 3, 2: cards.LISTED}
    assert shown[1]["matrix"] == [3] * 3
    assert len(shown[2]["matrix"]) == cards.LISTED * (cards.LISTED - 1) // 2
    # of n equally likely candidates with similarity z of each pair: n / (1 + (n - 1) z)
    assert shown[1]["continuations"] == pytest.approx(3 / 1.06, rel=5e-3)
    assert shown[2]["continuations"] == pytest.approx(10 / (1 + 9 * 0.64), rel=5e-3)
    assert [bool(each) for each in found[3]["context"]][:2] == [True, False]
    record = results.load_records(folder, [0])[0]
    ahead = cards.read_ahead(load_matrices(folder), 0)
    assert strip.build_content(record, reader, ahead=ahead, first=1, last=2)["data"]["context"] == [shown[1]]


def test_texts_are_as_before_where_context_is_missing_or_damaged(run, reader, capsys):
    folder, table = run
    arguments = folder, reader, range(len(WRITTEN)), strip.compute_background(table), "generate"
    before = dict(texts.build_texts(*arguments))
    assert capsys.readouterr().err == ""
    write_matrices(folder, {(0, 1): 3})
    (folder / "context.pt").write_bytes(b"PK")
    assert dict(texts.build_texts(*arguments)) == before
    said = capsys.readouterr().err
    assert (said.count("\n"), said.startswith("skipped: "), "context.pt' is damaged" in said) == (1, True, True)


def test_a_window_of_a_text_has_the_similarities_of_its_own_tokens(reader):
    record = tiny.create_record("the rain in Spain")
    similarities, _ = compare(record)
    whole = strip.build_content(record, reader, similarities=similarities)["data"]
    part = strip.build_content(record, reader, similarities=similarities, first=1, last=3)["data"]
    assert part["similar"] == whole["similar"][part["first"] : part["first"] + len(part["tokens"])]


def test_an_empty_text_has_no_menu_of_tints(reader):
    html = strip.render_strip(tiny.create_record(""), reader)
    assert not BeautifulSoup(html, "html.parser").select(".ns-bar")
