"""Tints for what and how, and cards that group their candidates. test_book.py has them in a browser."""

import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from bs4 import BeautifulSoup

import tiny
from nucleoscope import quantities
from nucleoscope.measure.context import complete_context
from nucleoscope.stats import what_or_how
from nucleoscope.store import context, results
from nucleoscope.views import cards, export, strip, texts
from nucleoscope.views.token_text import Reader

PROMPTS = ("the cat", "a long and winding road", "on the other hand")
SETTINGS = {"model_name": "tiny", "dataset_name": "cats", "max_tokens": 12, "prompt_format": "raw", "seed": 0}
MODEL = tiny.create_model(eos_token_id=None), tiny.create_tokenizer(eos=False)
THRESHOLD = 0.15  # a model of random numbers expects different things after any two candidates
BOTH = tuple(quantity.name for quantity in quantities.IN_CONTEXT)


def compare(folder: Path, threshold: float) -> None:
    """What notebooks/context.py does."""
    with context.ContextFolder(folder, 6, threshold) as run:
        complete_context(run, lambda: MODEL, results.load_info(folder), what_or_how.tabulate, progress=False)


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> Path:
    """The folder of a run that was not measured in context."""
    return tiny.measure(tmp_path_factory.mktemp("plain") / "cats" / "tiny", MODEL, PROMPTS, SETTINGS)


@pytest.fixture(scope="module")
def compared(measured, tmp_path_factory) -> Path:
    """The folder of the same run, measured in context."""
    folder = shutil.copytree(measured, tmp_path_factory.mktemp("compared") / "cats" / "tiny")
    compare(folder, THRESHOLD)
    return folder


@pytest.fixture(scope="module")
def reader():
    return Reader(MODEL[1])


def load_table(folder: Path):
    return context.join_split(results.load_run(folder / results.MEASUREMENTS, "tiny", "cats"), folder)


def build_all(folder: Path, reader: Reader) -> dict[int, dict]:
    """The data of all texts of a run, as they are on its page."""
    background = strip.compute_background(load_table(folder))
    found = texts.build_texts(folder, reader, range(len(PROMPTS)), background, "generate")
    return {number: content["data"] for number, content in found}


def find_scales(data: dict) -> dict[str, dict]:
    return {scale["name"]: scale for scale in data["quantities"]}


@pytest.fixture(scope="module")
def shown(compared, reader) -> dict[int, dict]:
    return build_all(compared, reader)


# Tints


def test_tokens_are_tinted_by_the_numbers_of_context_parquet(compared, shown):
    rows = context.load_rows(compared).set_index(["prompt", "step"])
    assert rows["groups"].nunique() > 2
    seen = 0
    for number, data in shown.items():
        scales = find_scales(data)
        assert list(scales)[-2:] == list(BOTH)
        for name in BOTH:
            for step, value in enumerate(scales[name]["values"]):
                if (number, step) in rows.index:
                    assert value == cards.round_value(rows.loc[(number, step), name])
                    seen += 1
                else:
                    assert value is None
    assert seen == 2 * len(rows)


def test_their_scales_cover_the_run_and_their_labels_are_words_with_a_unit(compared, shown):
    rows = context.load_rows(compared)
    for name in BOTH:
        found = [find_scales(data)[name] for data in shown.values()]
        assert len({(scale["high"], scale["low"], scale["over"]) for scale in found}) == 1
        assert found[0]["high"] == cards.round_value(np.quantile(rows[name], 0.99))
        assert found[0]["tab"] == "context"
        alone = any(k == 1 for k in find_scales(shown[0])["k"]["values"])
        assert (found[0]["undefined"], found[0]["missing"]) == (alone, False)
    assert find_scales(shown[0])["entropy_what"]["label"] == "uncertainty about what follows (nats)"
    assert find_scales(shown[0])["entropy_how"]["label"] == "uncertainty about how it is put (nats)"


def test_a_token_whose_candidates_were_not_compared_is_missing_and_one_with_no_choice_undefined(reader):
    record = tiny.create_record("the rain in Spain", seed=1)
    sizes = [len(ids) for ids in record["top_p_tokens"]]
    scale = find_scales(strip.build_content(record, reader, ahead={})["data"])["entropy_what"]
    assert scale["values"] == [None] * len(sizes)
    assert (scale["undefined"], scale["missing"]) == (1 in sizes, True)
    with pytest.raises(ValueError, match="quantity is 'entropy_what'"):
        strip.build_content(record, reader, "entropy_what")


def test_a_strip_can_begin_with_one_of_them(compared, reader):
    matrices = context.load_matrices(compared)
    record, ahead = results.load_records(compared, [1])[1], cards.read_ahead(matrices, 1, THRESHOLD)
    html = strip.render_strip(record, reader, "entropy_how", ahead=ahead)
    (chosen,) = BeautifulSoup(html, "html.parser").select("option[selected]")
    assert chosen.text == quantities.find_title("entropy_how")


def test_prompts_can_be_sorted_by_the_means_of_both(compared, reader):
    table = load_table(compared)
    menu = texts.build_menu(dict(enumerate(PROMPTS)), table, reader)
    labels = [label for label, _ in menu["columns"]]
    rows = context.load_rows(compared)
    for name in BOTH:
        column = labels.index(f"mean {quantities.find_title(name)}")
        for number, *_, values in menu["prompts"]:
            assert values[column] == cards.round_value(rows[rows["prompt"] == number][name].mean())


# Cards


def test_a_card_splits_the_entropy_of_its_candidates_as_the_statistics_do(compared, shown):
    matrices = context.load_matrices(compared)
    tabulated = what_or_how.tabulate(matrices, THRESHOLD)
    places = list(zip(matrices["prompts"].tolist(), matrices["steps"].tolist(), strict=True))
    for place, (number, step) in enumerate(places):
        found = shown[number]["context"][step]
        expected = [tabulated[name][place] for name in BOTH]
        assert found["split"] == pytest.approx(expected, abs=5e-4)
        assert len(found["groups"]) == tabulated["groups"][place]
        shares = np.array(found["shares"])
        assert sum(found["split"]) == pytest.approx(-(shares * np.log(shares)).sum(), abs=0.02)
    assert {data["threshold"] for data in shown.values()} == {THRESHOLD}


def test_groups_and_their_candidates_are_listed_by_falling_probability(shown):
    several = 0
    for data in shown.values():
        for each in filter(None, data["context"]):
            masses, shares = [share for share, *_ in each["groups"]], each["shares"]
            assert masses == sorted(masses, reverse=True)
            places = [place for _, group in each["groups"] for place in group]
            assert sorted(places) == list(range(len(shares)))
            for mass, group in each["groups"]:
                assert group == sorted(group)
                assert mass == pytest.approx(sum(shares[place] for place in group), abs=5e-3)
                several += len(group) > 1
    assert several


def test_candidates_are_grouped_at_the_threshold_of_the_run(compared, reader, tmp_path):
    folder = shutil.copytree(compared, tmp_path / "cats" / "tiny")
    compare(folder, 1.0)
    assert context.load_current(folder).grouping == (6, 1.0)
    for data in build_all(folder, reader).values():
        assert data["threshold"] == 1
        for each in filter(None, data["context"]):
            assert len(each["groups"]) == len(each["shares"])
            assert each["split"][1] == 0


@pytest.mark.parametrize("name", results.CONTEXT_FILES)
def test_without_one_of_its_files_the_run_is_shown_as_not_measured_in_context(compared, reader, tmp_path, capsys, name):
    """Its candidates are not grouped at a threshold that the numbers of the table do not belong to."""
    folder = shutil.copytree(compared, tmp_path / "cats" / "tiny")
    (folder / name).unlink()
    table = load_table(folder)
    assert (context.join_split(table, folder) is table) == (name != results.CONTEXT_MATRICES)
    assert (context.load_current(folder) is None) == (name != results.CONTEXT_TABLE)
    said = capsys.readouterr().err
    assert said == f"skipped: '{folder}' has no {name}: {context.AGAIN}\n"


@pytest.mark.parametrize("threshold", ["abc", "0.7", [1], {}, 7, -1, math.nan, True, None])
def test_a_threshold_that_none_can_be_is_named(compared, tmp_path, capsys, threshold):
    folder = shutil.copytree(compared, tmp_path / "cats" / "tiny")
    path = folder / results.CONTEXT_INFO
    path.write_text(json.dumps(json.loads(path.read_text()) | {"context_threshold": threshold}))
    assert context.load_current(folder) is None
    said = capsys.readouterr().err
    assert said.startswith(f"skipped: '{path}' ")
    assert said.count("\n") == 1
    assert "context_threshold" in said


def test_matrices_of_which_a_byte_has_changed_are_named(compared, tmp_path, capsys):
    folder = shutil.copytree(compared, tmp_path / "cats" / "tiny")
    path = folder / results.CONTEXT_MATRICES
    content, shares = bytearray(path.read_bytes()), context.load_matrices(folder)["shares"]
    content[content.index(shares.tobytes())] ^= 1
    path.write_bytes(content)
    assert context.load_current(folder) is None
    assert capsys.readouterr().err.startswith(f"skipped: '{path}' is damaged")


def test_groups_are_those_of_all_compared_candidates_of_which_a_card_lists_ten(reader):
    rng, m = np.random.default_rng(0), 64
    similar = np.where(np.arange(m) // 4 == np.arange(m)[:, None] // 4, 0.9, 0.1)  # sixteen groups of four
    np.fill_diagonal(similar, 1)
    shares = -np.sort(-rng.dirichlet(np.ones(m)))
    ahead = cards.build_ahead(list(range(m)), shares, similar)
    assert ahead.groups.split == pytest.approx(what_or_how.split_entropy(shares, np.arange(m) // 4), rel=1e-12)
    found = cards.describe_ahead(reader, ahead, 3)
    assert (len(found["names"]), len(found["shares"]), len(found["groups"])) == (10, 10, 16)
    assert found["groups"][:3] == [
        [cards.round_value(shares[:4].sum()), [0, 1, 2, 3]],
        [cards.round_value(shares[4:8].sum()), [4, 5, 6, 7]],
        [cards.round_value(shares[8:12].sum()), [8, 9], 2],
    ]
    assert [group[1:] for group in found["groups"][3:]] == [[[], 4]] * 13


def test_candidates_that_are_followed_but_not_compared_are_in_no_group(reader):
    following = [([1], [0.5])] * 5
    ahead = cards.build_ahead(list(range(5)), np.array([0.5, 0.3]), np.eye(2), following=following)
    found = cards.describe_ahead(reader, ahead, 4)
    assert [len(found[name]) for name in ("names", "following", "shares", "matrix")] == [5, 5, 2, 1]
    assert (found["taken"], found["similar"]) == (4, [])
    assert found["shares"] == [0.625, 0.375]


def test_scripts_of_texts_leave_out_the_names_that_a_card_lists_anyway(compared, shown, reader, tmp_path):
    folder = shutil.copytree(compared, tmp_path / "cats" / "tiny")
    background = strip.compute_background(load_table(folder))
    place = texts.write_texts(folder, texts.build_texts(folder, reader, [1], background, "generate"))
    data = json.loads(re.search(r"\]=(.*);\n", (place / "1.js").read_text(), re.DOTALL)[1])["data"]
    for token, found, whole in zip(data["tokens"], data["context"], shown[1]["context"], strict=True):
        if whole is not None:
            names = [data["words"][word] for word in token[1]][: len(whole["names"])]
            assert found | {"names": names, "following": []} == whole
            assert not {"names", "following"} & found.keys()


# Runs that were not measured in context


def test_a_run_without_context_has_the_texts_that_it_had(measured, compared, reader, tmp_path, capsys):
    folder = shutil.copytree(measured, tmp_path / "cats" / "tiny")
    table = load_table(folder)
    assert not set(BOTH) & set(table)
    arguments = folder, reader, range(len(PROMPTS)), strip.compute_background(table), "generate"
    place = texts.write_texts(folder, texts.build_texts(*arguments))
    before = {path.name: path.read_bytes() for path in place.iterdir()}
    page = texts.render_texts(folder, dict(enumerate(PROMPTS)), table, arguments[3], reader=reader)
    for name in results.CONTEXT_FILES:
        shutil.copy(compared / name, folder)
    other = load_table(folder)
    assert set(BOTH) <= set(other)
    texts.write_texts(
        folder, texts.build_texts(folder, reader, range(len(PROMPTS)), strip.compute_background(other), "generate")
    )
    assert all(path.read_bytes() != before[path.name] for path in place.iterdir())
    for name in results.CONTEXT_FILES:
        (folder / name).unlink()
    again = strip.compute_background(load_table(folder))
    texts.write_texts(folder, texts.build_texts(*arguments[:3], again, "generate"))
    assert {path.name: path.read_bytes() for path in place.iterdir()} == before
    assert page == texts.render_texts(
        folder, dict(enumerate(PROMPTS)), load_table(folder), strip.compute_background(table), reader=reader
    )
    for content in before.values():
        data = json.loads(re.search(r"\]=(.*);\n", content.decode(), re.DOTALL)[1])["data"]
        assert not {"context", "threshold"} & data.keys()
        assert [scale["name"] for scale in data["quantities"]] == list(quantities.list_titles())
        assert not any("tab" in scale for scale in data["quantities"])
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", results.CONTEXT_FILES)
def test_of_a_damaged_file_a_line_is_said_and_the_page_is_made(compared, reader, tmp_path, capsys, name):
    folder = shutil.copytree(compared, tmp_path / "cats" / "tiny")
    (folder / name).write_bytes(b"PK")
    found = build_all(folder, reader)
    said = capsys.readouterr().err
    assert (said.count("\n"), said.startswith("skipped: "), name in said) == (1, True, True)
    assert ("context" in found[0]) == (name == results.CONTEXT_TABLE)


# The exported page


@pytest.mark.parametrize("prompts", [[1], [0, 1]])
def test_an_exported_page_has_the_tints_and_the_groups(compared, shown, tmp_path, prompts, monkeypatch):
    monkeypatch.setattr(export, "find_tokenizer", lambda _: MODEL[1])
    export.write(compared, tmp_path / "page.html", prompts)
    soup = BeautifulSoup((tmp_path / "page.html").read_text(), "html.parser")
    content = json.loads(soup.find("script", type="application/json").string)
    data = content if len(prompts) == 1 else content["texts"]["1"]["data"]
    assert data["context"] == shown[1]["context"]
    assert data["threshold"] == THRESHOLD
    assert find_scales(data) == find_scales(shown[1])
