"""Tokens as text: every kind of tokenizer, characters of many tokens, and what cannot be seen."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

import tiny
from nucleoscope.models.token_bytes import BYTES
from nucleoscope.views.token_text import Reader, Unit, escape_name, quote_code, show_bytes

FAMILY = "👩\u200d👩\u200d👧"


@pytest.fixture(scope="module")
def reader():
    return Reader(tiny.create_tokenizer(bos=False))


def encode(text: str) -> list[int]:
    return tiny.create_tokenizer(bos=False)(text)["input_ids"]


def create_pieces_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer as SentencePiece makes them: a space is ▁, and there are tokens for single bytes."""
    vocabulary = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "▁a", "b"]
    core = Tokenizer(models.BPE({piece: i for i, piece in enumerate(vocabulary)}, [("▁", "a")], byte_fallback=True))
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>")


def create_words_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of whole words and parts of words, which only it can put together."""
    core = Tokenizer(models.WordPiece({"[UNK]": 0, "play": 1, "##ing": 2, "now": 3}, unk_token="[UNK]"))
    core.decoder = decoders.WordPiece()
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="[UNK]")


def test_the_three_kinds_are_told_apart(reader):
    assert [reader.kind, Reader(create_pieces_tokenizer()).kind, Reader(create_words_tokenizer()).kind] == [
        "bytes",
        "pieces",
        "plain",
    ]


def test_every_byte_has_its_letter():
    assert sorted(BYTES.values()) == list(range(256))
    assert (BYTES["Ġ"], BYTES["Ċ"], BYTES["a"]) == (32, 10, 97)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=40))
def test_units_make_the_text_and_hold_every_token(text):
    tokens = encode(text)
    units = Reader(tiny.create_tokenizer(bos=False)).split_units(tokens)
    assert "".join(unit.text for unit in units) == text
    assert sum(unit.tokens for unit in units) == len(tokens)
    assert all(unit.tokens for unit in units)


@pytest.mark.parametrize("cluster", ["你", FAMILY, "👍🏽", "🇩🇪", "e\u0301\u0323", "🏴\U000e0067\U000e007f", "ü"])
def test_what_belongs_together_is_one_unit(reader, cluster):
    units = reader.split_units(encode(f"x{cluster}y"))
    assert [unit.text for unit in units] == ["x", cluster, "y"]
    assert units[1].tokens == len(encode(cluster))


def test_two_flags_are_two_units(reader):
    assert [unit.text for unit in reader.split_units(encode("🇩🇪🇫🇷"))] == ["🇩🇪", "🇫🇷"]


def test_text_that_never_stops_joining_is_cut(reader):
    units = reader.split_units(encode("a" + "\u0301" * 100))
    assert max(unit.tokens for unit in units) <= 32
    assert "".join(unit.text for unit in units) == "a" + "\u0301" * 100


def test_arabic_letters_are_units_of_their_own(reader):
    assert [unit.text for unit in reader.split_units(encode("سلام"))] == list("سلام")


def test_bytes_that_are_no_text_are_shown_by_their_values(reader):
    tokens = encode("你")
    assert reader.split_units(tokens[:2]) == [Unit("⟨E4⟩⟨BD⟩", 2)]
    assert [unit.text for unit in reader.split_units([tokens[0], *encode("a")])] == ["⟨E4⟩a"]
    assert [reader.show(token) for token in tokens] == ["⟨E4⟩", "⟨BD⟩", "⟨A0⟩"]


def test_control_characters_are_shown_by_their_pictures(reader):
    assert "".join(unit.text for unit in reader.split_units(encode("a\x00\r\n\t\x7f"))) == "a␀␍\n\t␡"


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        (b" the", "·the"),
        (b"\n\n\t ", "↵↵⇥·"),
        ("·".encode(), "⟨U+00B7⟩"),  # no space
        ("⟨E2⟩".encode(), "⟨U+27E8⟩E2⟨U+27E9⟩"),  # no byte
        (b"\xe2a", "⟨E2⟩a"),
        ("\u00a0".encode(), "⟨U+00A0⟩"),
        ("\u200d".encode(), "⟨U+200D⟩"),
        (FAMILY.encode(), FAMILY),
        ("\u0301".encode(), "\u25cc\u0301"),
        ("\u202e".encode(), "⟨U+202E⟩"),
        ("مرحبا".encode(), "مرحبا"),
        (b"<script>", "<script>"),
        (b"", ""),
    ],
)
def test_one_token_for_itself(raw, shown):
    assert show_bytes(raw) == shown


def test_all_tokens_of_one_byte_look_different(reader):
    shown = [show_bytes(bytes([byte])) for byte in range(256)]
    assert len(set(shown)) == 256


def test_signs_that_turn_the_order_of_what_follows_are_shown(reader):
    assert "".join(unit.text for unit in reader.split_units(encode("a\u202eb\u2066c"))) == "a⟨U+202E⟩b⟨U+2066⟩c"
    assert "".join(unit.text for unit in reader.split_units(encode("می\u200cخواهم"))) == "می\u200cخواهم"


def test_rows_of_spaces_that_are_tokens_of_their_own_are_spaces():
    tokenizer = create_pieces_tokenizer()
    tokenizer.add_tokens([AddedToken("▁▁▁▁", normalized=False)])
    tokenizer.add_tokens([AddedToken("<▁>", normalized=False, special=True)], special_tokens=True)
    tokens = tokenizer.convert_tokens_to_ids(["a", "▁▁▁▁", "b"])
    reader = Reader(tokenizer)
    assert "".join(unit.text for unit in reader.split_units(tokens)) == tokenizer.decode(tokens) == "a    b"
    assert reader.show(tokenizer.convert_tokens_to_ids("<▁>")) == "<▁>"


def test_names_are_no_markup():
    assert escape_name("SmolLM2-135M") == "SmolLM2-135M"
    assert escape_name("a_b *c*\n# <b> $x$ [y](z)") == (
        "a&#95;b &#42;c&#42; &#35; &#60;b&#62; &#36;x&#36; &#91;y&#93;&#40;z&#41;"
    )


def test_pieces_keep_their_spaces_and_bytes():
    tokenizer = create_pieces_tokenizer()
    reader = Reader(tokenizer)
    tokens = tokenizer.convert_tokens_to_ids(["▁a", "▁", "b", "<0xC3>", "<0xA9>", "<0x0A>"])
    assert reader.split_units(tokens) == [Unit(" a", 1), Unit(" ", 1), Unit("b", 1), Unit("é", 2), Unit("\n", 1)]
    assert [reader.show(token) for token in tokens] == ["·a", "·", "b", "⟨C3⟩", "⟨A9⟩", "↵"]


def test_words_are_put_together_by_their_own_tokenizer():
    assert Reader(create_words_tokenizer()).split_units([1, 2, 3]) == [Unit("play", 1), Unit("ing", 1), Unit(" now", 1)]


def test_special_tokens_say_their_names_and_unknown_ids_their_numbers(reader):
    assert reader.show(tiny.EOS) == "<eos>"
    assert reader.show(tiny.VOCAB + 7) == f"⟨token {tiny.VOCAB + 7}⟩"
    assert reader.split_units([tiny.EOS, tiny.VOCAB + 7]) == [Unit("<eos>", 1), Unit(f"⟨token {tiny.VOCAB + 7}⟩", 1)]


def test_tokenizers_whose_tokens_are_bytes():
    class Tiktoken:
        byte_decoder = None

        def convert_ids_to_tokens(self, token):
            return [b"a", b"\xc3", b"\xa9"][token]

    assert Reader(Tiktoken()).split_units([0, 1, 2]) == [Unit("a", 1), Unit("é", 2)]


def test_accents_join_no_line_break_and_letters_nothing(reader):
    assert [unit.text for unit in reader.split_units(encode("a\n\u0301b"))] == ["a", "\n", "\u0301", "b"]


def test_a_token_without_text_is_a_unit_and_parts_no_cluster():
    reader, empty = Reader(tiny.create_tokenizer(bos=False)), tiny.VOCAB + 7
    reader._raw[empty] = b""
    assert reader.split_units([empty, *encode("a"), empty, *encode("b")]) == [
        Unit("", 1),
        Unit("a", 1),
        Unit("", 1),
        Unit("b", 1),
    ]
    count = len(encode("e\u0301"))
    assert reader.split_units([*encode("e"), empty, *encode("\u0301")]) == [Unit("e\u0301", count + 1)]


@pytest.mark.parametrize("cluster", ["\u1112\u1161\u11ab", "क्षि", "กำ", "1\ufe0f\u20e3", "\r\n"])
def test_clusters_of_all_scripts_are_one_unit(reader, cluster):
    units = reader.split_units(encode(f"x{cluster}y"))
    assert [unit.text for unit in units] == ["x", cluster.replace("\r", "␍"), "y"]


@pytest.mark.parametrize(
    ("path", "expected"), [("a/b_c", "`a/b_c`"), ("a`b", "`` a`b ``"), ("``a", "``` ``a ```"), ("a\nb", "`a b`")]
)
def test_a_path_is_code_in_markdown_whatever_is_in_it(path, expected):
    assert quote_code(path) == expected
