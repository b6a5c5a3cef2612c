"""The prompt files in lib/nucleoscope/data: their form, and that no two prompts are the same one over again."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from nucleoscope.data import prompts

DATA = Path(prompts.__file__).parent / "packaged"
KEYS = {"math": ["prompt", "answer"], "stories": ["prompt"], "articles": ["prompt"]}
every_set = pytest.mark.parametrize("name", KEYS)


def read_rows(name: str) -> list[dict]:
    return [json.loads(line) for line in (DATA / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def mask(text: str) -> str:
    """The text with every number and every capitalised word replaced: what a template leaves the same."""
    words = re.sub(r"\w+", lambda word: "NAME" if word[0][0].isupper() else word[0], text)
    return re.sub(r"\d+(?:[.,:/]\d+)*", "NUMBER", words)


def find_repeated(texts: list[str]) -> list[str]:
    return [text for text, count in Counter(texts).items() if count > 1]


def test_the_folder_holds_the_packaged_sets_and_nothing_else():
    found = {path.name for path in DATA.iterdir()}
    assert found == {f"{name}.jsonl" for name in prompts.PACKAGED}
    assert set(KEYS) == set(prompts.PACKAGED)


@every_set
def test_a_file_has_100_lines_each_ended(name):
    content = (DATA / f"{name}.jsonl").read_bytes()
    assert content.count(b"\n") == 100
    assert content.endswith(b"}\n")
    assert b"\r" not in content
    assert not content.startswith(b"\xef\xbb\xbf")


@every_set
def test_every_line_has_the_keys_and_they_hold_text(name):
    for row in read_rows(name):
        assert list(row) == KEYS[name]
        assert all(isinstance(value, str) and value == value.strip() != "" for value in row.values()), row


@every_set
def test_no_prompt_stands_twice(name):
    assert find_repeated([" ".join(row["prompt"].casefold().split()) for row in read_rows(name)]) == []


@every_set
def test_no_two_prompts_differ_in_numbers_and_names_only(name):
    assert find_repeated([mask(row["prompt"]) for row in read_rows(name)]) == []


def test_no_prompt_stands_in_two_sets():
    assert find_repeated([row["prompt"] for name in KEYS for row in read_rows(name)]) == []


@every_set
def test_no_prompt_holds_what_is_not_meant_to_be_read(name):
    """No control characters, replacement characters, or half of an emoji."""
    for row in read_rows(name):
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ufffd\ud800-\udfff]", row["prompt"]), row


def test_articles_have_60_to_150_words():
    lengths = [len(row["prompt"].split()) for row in read_rows("articles")]
    assert min(lengths) >= 60
    assert max(lengths) <= 150


def test_no_article_holds_the_request_that_is_put_before_it():
    assert not any("summarize" in row["prompt"].lower() for row in read_rows("articles"))


def test_no_math_prompt_gives_its_answer_away():
    assert not any(row["prompt"].endswith(row["answer"]) for row in read_rows("math"))


def test_masking_keeps_nothing_of_a_template_apart():
    assert mask("Ann has 3 apples.") == mask("Bob has 1,250 apples.")
    assert mask("Ann has 3 apples.") != mask("Ann eats 3 apples.")
