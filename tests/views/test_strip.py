"""The strip as HTML: what is in it, what is escaped, how large it is. test_book.py has it in a browser."""

import json
import re

import numpy as np
import pytest
import torch
from bs4 import BeautifulSoup

import tiny
from nucleoscope import quantities
from nucleoscope.store import results
from nucleoscope.views.strip import compute_background, render_strip
from nucleoscope.views.token_text import Reader

ATTACK = "</script><script>alert(1)</script><img src=x onerror=alert(1)><!-- &amp; \"'"


@pytest.fixture(scope="module")
def reader():
    return Reader(tiny.create_tokenizer(bos=False))


def read_payload(html: str) -> dict:
    return json.loads(BeautifulSoup(html, "html.parser").find("script", type="application/json").string)


def read_text(html: str) -> str:
    return BeautifulSoup(html, "html.parser").find(class_="ns-text").get_text()


def test_the_text_is_the_records_and_every_token_has_its_span(reader):
    text = "the rain in Spain\n\nand 你好 سلام 👩\u200d👧 here"
    record = tiny.create_record(text)
    html = render_strip(record, reader)
    assert read_text(html) == text
    spans = BeautifulSoup(html, "html.parser").select(".ns-text > span")
    assert sum(int(span.get("data-n", 1)) for span in spans) == len(record["tokens"])
    assert "padding" not in "".join(str(span) for span in spans)
    assert not any(span.get("dir") for span in spans)  # isolated letters would not join


def test_a_tokenizer_does_as_well_as_a_reader(reader):
    record = tiny.create_record("the rain")
    assert render_strip(record, tiny.create_tokenizer(bos=False)) == render_strip(record, reader)


def test_text_of_models_and_data_sets_is_escaped(reader):
    html = render_strip(tiny.create_record(ATTACK, prompt=ATTACK), reader)
    soup = BeautifulSoup(html, "html.parser")
    assert len(soup.find_all("script")) == 2
    assert not soup.find_all("img")
    assert soup.select_one(".ns-prompt div").get_text() == ATTACK
    assert soup.find(class_="ns-text").get_text() == ATTACK
    assert "alert(1)" not in "".join(script.string for script in soup.find_all("script"))


def test_nothing_ends_the_script_or_style_and_nothing_is_asked_of_the_network(reader):
    html = render_strip(tiny.create_record("the <b>"), reader)
    for part in re.findall(r"<(?:script|style)[^>]*>(.*?)</(?:script|style)>", html, re.DOTALL):
        assert "</" not in part
        assert "<!--" not in part
    assert not re.findall(r"(?:src|href)=|url\(|@import|fetch\(|innerHTML", html)
    assert re.findall(r"https?://[^\"]+", html) == ["http://www.w3.org/2000/svg"]  # a name, not an address


def test_cards_hold_the_likeliest_candidates_and_the_drawn_one(reader):
    record = tiny.create_record("the rain in Spain", most=60)
    data = read_payload(render_strip(record, reader, most=5))
    for step, (word, words, probs, more, mass, held, place, *rest) in enumerate(data["tokens"]):
        ids, all_probs = record["top_p_tokens"][step].tolist(), record["top_p_probs"][step].numpy()
        drawn = int(record["tokens"][step])
        assert data["words"][word] == reader.show(drawn)
        assert [data["words"][index] for index in words] == [reader.show(token) for token in ids[:5]]
        assert probs == pytest.approx(all_probs[:5], rel=0.01)
        assert more == max(len(ids) - 5, 0)
        assert mass == pytest.approx(all_probs[5:].sum(), rel=0.01)
        assert held == pytest.approx(all_probs.sum(), rel=0.01)
        assert place == ids.index(drawn)
        assert rest == ([pytest.approx(all_probs[place], rel=0.01)] if place >= 5 else [])


def test_a_token_that_was_not_in_its_nucleus_is_shown_all_the_same(reader):
    record = tiny.create_record("the rain")
    record["tokens"] = record["tokens"].clone()
    record["tokens"][0] = next(token for token in range(300) if token not in record["top_p_tokens"][0].tolist())
    data = read_payload(render_strip(record, reader, mode="score"))
    assert data["mode"] == "score"
    word, words, *_, place, p = data["tokens"][0]
    assert place == -1
    assert word not in words
    assert p == pytest.approx(np.exp(-record["surprisals"][0]), rel=0.01)
    del record["surprisals"]
    assert read_payload(render_strip(record, reader))["tokens"][0][-2:] == [-1, None]


def test_counts_of_candidates_are_not_rounded(reader):
    record = tiny.create_record("the rain")
    record["top_p_tokens"][0], record["top_p_probs"][0] = torch.arange(1234) % 300, torch.full((1234,), 0.9 / 1234)
    by_name = {scale["name"]: scale for scale in read_payload(render_strip(record, reader))["quantities"]}
    assert by_name["k"]["values"][0] == 1234
    assert isinstance(by_name["k"]["high"], int)


def test_every_quantity_is_there_with_its_scale(reader):
    record = tiny.create_record("the rain in Spain")
    data = read_payload(render_strip(record, reader, quantity="cosine"))
    assert [scale["name"] for scale in data["quantities"]] == list(quantities.list_titles())
    assert data["quantity"] == "cosine"
    by_name = {scale["name"]: scale for scale in data["quantities"]}
    k = [len(ids) for ids in record["top_p_tokens"]]
    assert by_name["k"]["values"] == k
    assert by_name["entropy"]["values"] == pytest.approx(record["entropies"], rel=0.01)
    assert [value is None for value in by_name["cosine"]["values"]] == [size == 1 for size in k]  # no pair
    assert all(scale["high"] > scale["low"] for scale in data["quantities"])


def test_with_a_table_the_scales_reach_over_the_run_and_its_median_is_drawn(reader):
    records = [tiny.create_record("the rain in Spain " * 5, seed=seed) for seed in range(3)]
    records[2]["entropies"] = [100.0] * len(records[2]["entropies"])
    table = results.tabulate(records, "model", "data")
    alone, together = (read_payload(render_strip(records[0], reader, table=given)) for given in (None, table))
    assert (alone["line"], together["quantities"][0]["high"]) == ([], 100)
    assert alone["quantities"][0]["high"] <= 1
    assert together["line"][-1][0] > 90


def test_one_odd_token_does_not_make_the_rest_pale(reader):
    record = tiny.create_record("the rain in Spain " * 40)
    record["entropies"][3] = 1e6
    scale = read_payload(render_strip(record, reader))["quantities"][0]
    assert scale["high"] <= 1
    assert scale["over"]


def test_scales_count_tokens_of_one_candidate_but_for_pairs_and_say_what_lies_beyond_them(reader):
    record = tiny.create_record("the rain in Spain " * 40)
    n = len(record["tokens"])
    others = tiny.create_record("the rain in Spain " * 40, seed=1)
    others["top_p_tokens"] = [ids[:1] for ids in others["top_p_tokens"]]
    others["surprisals"], others["cosines"] = [7.0] * n, [1.0] * n
    record["surprisals"][3] = 20.0
    record["weighted_cosines"][3], record["top_p_tokens"][3] = -0.2, torch.tensor([1, 2])
    table = results.tabulate([others, {**record, "surprisals": [1.0] * n}], "model", "data")
    data = read_payload(render_strip(record, reader, table=table))
    by_name = {scale["name"]: scale for scale in data["quantities"]}
    assert (by_name["surprisal"]["high"], by_name["surprisal"]["over"]) == (7, True)
    assert by_name["cosine"]["high"] <= 0.5  # one candidate alone has a cosine of 1 by convention
    assert (by_name["weighted_cosine"]["low"], by_name["weighted_cosine"]["under"]) == (0, True)
    assert not by_name["entropy"]["under"]
    assert not by_name["k"]["under"]


def test_the_background_of_a_table_does_as_well_as_the_table(reader):
    records = [tiny.create_record("the rain in Spain " * 5, seed=seed) for seed in range(3)]
    table = results.tabulate(records, "model", "data")
    assert render_strip(records[0], reader, table=compute_background(table)) == render_strip(
        records[0], reader, table=table
    )
    none = results.tabulate([], "model", "data")
    assert render_strip(records[0], reader, table=none) == render_strip(records[0], reader)


def test_tokens_that_nobody_could_point_at_have_a_sign_that_is_no_text():
    class Silent:
        byte_decoder = None

        def convert_ids_to_tokens(self, token):
            return {1: b"", 2: "\u200b".encode()}.get(token, b"a")

    record = tiny.create_record("the rain")
    record["tokens"] = torch.tensor([1, 2, 3] + [3] * (len(record["tokens"]) - 3))
    html = render_strip(record, Silent())
    classes = [span.get("class") for span in BeautifulSoup(html, "html.parser").select(".ns-text > span")]
    assert classes[:3] == [["ns-unseen"], ["ns-unseen"], None]
    assert read_text(html) == "\u200b" + "a" * (len(record["tokens"]) - 2)


def test_a_prompt_with_half_a_character_can_be_written(reader):
    html = render_strip(tiny.create_record("the", prompt="a\ud83d"), reader)
    assert "a⟨U+D83D⟩" in html.encode().decode()


def test_quantities_that_a_record_lacks_are_left_out_and_bad_numbers_are_no_numbers(reader):
    record = tiny.create_record("the rain")
    del record["varentropies"]
    record["entropies"][0], record["surprisals"] = float("inf"), [float("nan")] * len(record["tokens"])
    by_name = {scale["name"]: scale for scale in read_payload(render_strip(record, reader))["quantities"]}
    assert "varentropy" not in by_name
    assert by_name["entropy"]["values"][0] is None
    assert set(by_name["surprisal"]["values"]) == {None}
    gaps = {name: (by_name[name]["undefined"], by_name[name]["missing"]) for name in ("entropy", "surprisal", "cosine")}
    assert gaps == {"entropy": (False, True), "surprisal": (False, True), "cosine": (True, False)}


def test_a_piece_of_a_text_begins_and_ends_with_whole_characters(reader):
    record = tiny.create_record("abc你def")
    html = render_strip(record, reader, first=4, last=7, shown=5)
    data = read_payload(html)
    assert read_text(html) == "… 你d …"
    assert (data["first"], data["total"], data["shown"], len(data["tokens"])) == (3, 9, 2, 4)


def test_an_empty_record_says_so(reader):
    record = tiny.create_record("")
    assert read_text(render_strip(record, reader)) == "(the model ended this text immediately)"
    said = read_text(render_strip(record, reader, advice="prompt_format=chat may help"))
    assert said == "(the model ended this text immediately; prompt_format=chat may help)"
    assert read_text(render_strip(record, reader, mode="score")) == "(no token was measured)"
    assert read_text(render_strip(tiny.create_record("the rain"), reader, last=0)) == "(no token was measured)"


def test_a_long_prompt_is_folded(reader):
    folded = [
        BeautifulSoup(render_strip(tiny.create_record("a", prompt="p" * size), reader), "html.parser").details.has_attr(
            "open"
        )
        for size in (10, 1000)
    ]
    assert folded == [True, False]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"quantity": "beauty"}, "quantity is 'beauty': this record has entropy, full_entropy"),
        ({"quantity": "entropi"}, r"quantity is 'entropi' \(did you mean 'entropy'\?\)$"),
        ({"mode": "mine"}, "mode is 'mine': it must be generate or score"),
        (
            {"shown": 2, "last": 2},
            "shown is 2: it must be a token of the strip, 0 to 1",
        ),
    ],
)
def test_what_cannot_be_shown_is_said(reader, given, said):
    with pytest.raises(ValueError, match=said):
        render_strip(tiny.create_record("the rain"), reader, **given)


def test_a_record_of_the_published_study_has_no_text_to_show(reader):
    record = tiny.create_record("the rain")
    lacking = {name: value for name, value in record.items() if name not in ("tokens", "top_p_probs")}
    with pytest.raises(ValueError, match="no tokens and no top_p_probs"):
        render_strip(lacking, reader)
    with pytest.raises(ValueError, match="no cosines"):
        render_strip({name: value for name, value in record.items() if name != "cosines"}, reader)


def test_500_tokens_are_under_500_kb_and_only_candidates_that_are_shown_are_read():
    record = tiny.create_record("zebra quizz, 7 X 9. " * 60)
    names = ["tokens", "top_p_tokens", "top_p_probs", *tiny.QUANTITIES]
    record |= {name: record[name][:500] for name in names}

    class Wordy:  # long words that are never the same
        byte_decoder = None
        read = 0

        def convert_ids_to_tokens(self, token):
            self.read += 1
            return f"Ġword-{token:08d}"

    rng = np.random.default_rng(0)
    record["top_p_tokens"] = [torch.tensor(rng.integers(0, 10**8, 3000)) for _ in range(500)]
    record["top_p_probs"] = [torch.tensor(-np.sort(-0.9 * rng.dirichlet(np.ones(3000)))) for _ in range(500)]
    table = results.tabulate([record], "model", "data")
    wordy = Wordy()
    html = render_strip(record, wordy, table=table)
    assert 0 < wordy.read <= 500 * 11  # a card shows ten and the token
    assert len(html.encode()) < 500_000


def test_the_same_record_gives_the_same_bytes(reader):
    assert render_strip(tiny.create_record("the rain"), reader) == render_strip(tiny.create_record("the rain"), reader)
