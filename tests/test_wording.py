"""Numbers and lists of things in sentences."""

import json

import pytest

from nucleoscope import wording


@pytest.mark.parametrize(
    ("number", "total", "expected"),
    [
        (0, 1, "no run"),
        (0, 3, "no run"),
        (1, 1, "the only run"),
        (1, 2, "1 of 2 runs"),
        (2, 2, "both runs"),
        (3, 3, "all 3 runs"),
        (1234, 5678, "1,234 of 5,678 runs"),
    ],
)
def test_a_part_of_some_things_is_named_in_words_for_few_and_in_numbers_for_many(number, total, expected):
    assert wording.name_part(number, total, "run") == expected


def test_one_thing_is_singular_and_thousands_have_a_comma():
    assert [wording.count(number, "token") for number in (0, 1, 2, 1234)] == [
        "0 tokens",
        "1 token",
        "2 tokens",
        "1,234 tokens",
    ]


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("No run has it.", "no run has it."),
        ("Spearman's coefficient is 0.", "Spearman's coefficient is 0."),
        ("**No**", "**No**"),
        ("", ""),
    ],
)
def test_a_sentence_after_a_colon_begins_with_a_small_letter_unless_with_a_name(sentence, expected):
    assert wording.lower_first(sentence) == expected


@pytest.mark.parametrize(
    ("names", "expected"), [([], ""), (["a"], "a"), (["a", "b"], "a and b"), (["a", "b", "c"], "a, b and c")]
)
def test_names_are_joined_by_commas_and_one_and(names, expected):
    assert wording.join_names(iter(names)) == expected


def test_a_byte_order_mark_is_named():
    with pytest.raises(json.JSONDecodeError) as failed:
        json.loads("\ufeff{}")
    assert wording.explain_json(failed.value) == "it begins with a byte-order mark"
