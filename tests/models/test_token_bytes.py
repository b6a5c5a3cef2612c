"""What each token adds to a text: joined, the texts of all tokens are the text."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_token_text import create_pieces_tokenizer, create_words_tokenizer

import tiny
from nucleoscope.models import tokenizers
from nucleoscope.models.token_bytes import TokenDecoder

LAST = tiny.VOCAB - 1


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.integers(len(tiny.SPECIAL), LAST), max_size=30))
def test_the_texts_of_any_tokens_join_to_what_the_tokenizer_decodes(tokens):
    tokenizer = tiny.create_tokenizer(bos=False)
    texts = TokenDecoder(tokenizer).split_text(tokens)
    assert len(texts) == len(tokens)
    assert "".join(texts) == tokenizer.decode(tokens, clean_up_tokenization_spaces=False)


def test_a_character_of_several_tokens_is_added_by_the_last_one():
    tokenizer = tiny.create_tokenizer(bos=False)
    texts = TokenDecoder(tokenizer).split_text(tokenizer("a你b")["input_ids"])
    assert texts == ["a", "", "", "你", "b"]


def test_words_of_a_tokenizer_that_joins_them_itself_have_their_spaces():
    assert TokenDecoder(create_words_tokenizer()).split_text([1, 2, 3]) == ["play", "ing", " now"]
    pieces = create_pieces_tokenizer()
    ids = pieces.convert_tokens_to_ids(["▁a", "b", "<0xE4>", "<0xBD>", "<0xA0>"])
    assert TokenDecoder(pieces).split_text(ids) == [" a", "b", "", "", "你"]


def test_one_token_alone_is_text_and_its_bytes_are_told_apart():
    tokenizer = tiny.create_tokenizer(bos=False)
    ids = tokenizer("你")["input_ids"]
    assert [TokenDecoder(tokenizer).read_alone(token) for token in ids] == ["\\xe4", "\\xbd", "\\xa0"]
    assert TokenDecoder(tokenizer).read_alone(tokenizer.convert_tokens_to_ids("Ġthe")) == " the"
    assert TokenDecoder(tokenizer).read_alone(tiny.VOCAB + 5) == f"⟨token {tiny.VOCAB + 5}⟩"


@pytest.mark.parametrize("name", ["nobody/nothing", "", "missing.gguf"])
def test_a_tokenizer_that_is_not_on_this_machine_is_none(name, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert tokenizers.load_local_tokenizer(name) is None


def test_a_tokenizer_in_a_folder_is_found(tmp_path):
    name = tiny.save(tmp_path / "tiny", tiny.create_model(), tiny.create_tokenizer())
    assert TokenDecoder(tokenizers.load_local_tokenizer(name)).split_text([10]) == TokenDecoder(
        tiny.create_tokenizer()
    ).split_text([10])
