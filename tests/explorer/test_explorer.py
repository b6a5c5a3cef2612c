"""The live notebook: what its widgets hold, and the notebook itself in a real JupyterLab and browser.

The browser is any installed Chromium or Chrome, or the one that NUCLEOSCOPE_BROWSER names.
"""

import json
import math
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import traitlets

import lab
import tiny
from messages import assert_one_line
from nucleoscope import names, quantities
from nucleoscope.explorer import controls, explorer, live_figures
from nucleoscope.measure import context, encoding, generation, scoring, streaming
from nucleoscope.measure.runs import complete_run
from nucleoscope.models import loading, tokenizers
from nucleoscope.settings import Settings
from nucleoscope.stats import what_or_how
from nucleoscope.store import local_tokenizers, results, run_folder
from nucleoscope.store.candidates import Similarities
from nucleoscope.store.context import Compared, ContextFolder, Grouping, load_matrices, load_rows
from nucleoscope.views import cards, token_text
from nucleoscope.views.strip import build_content, render_strip

ROOT = Path(__file__).parents[2]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
EVIL = "<script>alert(1)</script> <img src=x onerror=alert(2)> $x$ &amp;"


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    return tiny.save(folder, tiny.create_model(), tiny.create_tokenizer(chat=True))


@pytest.fixture
def written(tiny_model):
    """An explorer that has written a text of 30 tokens."""
    options = {"max_tokens": 30, "prompt_format": "raw", "results_dir": "none", "dtype": "float32"}
    live = explorer.Explorer("the cat", tiny_model, **options)
    live.run()
    live.wait(60)
    assert not live.text.failed, live.text.status
    yield live
    live.close()


def stream_text(**options) -> list[cards.Token]:
    return list(streaming.stream(tiny.create_model(), tiny.create_tokenizer(chat=True), "the cat", **options))


# Tokens as they are drawn


@pytest.mark.parametrize("prompt_format", ["raw", "chat"])
@pytest.mark.parametrize(("seed", "top_p", "temperature"), [(0, 0.9, 1), (7, 1.0, 0.7), (3, 0.5, 1.5)])
def test_streaming_gives_what_measuring_gives(prompt_format, seed, top_p, temperature):
    options = {"max_tokens": 60, "seed": seed, "top_p": top_p, "prompt_format": prompt_format}
    options |= {"temperature": temperature}
    model, tokenizer = tiny.create_model(), tiny.create_tokenizer(chat=True)
    for prompt in ("the cat and the other", ""):
        tokens = list(streaming.stream(model, tokenizer, prompt, **options))
        (batch,) = generation.measure(model, tokenizer, [prompt], progress=False, **options)
        (record,) = batch.records
        assert [token.id for token in tokens] == record["tokens"].tolist()
        for token, ids, probs in zip(tokens, record["top_p_tokens"], record["top_p_probs"], strict=True):
            assert torch.equal(token.ids, ids)
            assert torch.equal(token.probs, probs)
        for name, column in quantities.find_columns().items():
            if name != "tokens":
                assert [token.values[column] for token in tokens] == record[name]


def test_a_prompts_place_in_its_data_set_decides_its_tokens_as_in_a_run():
    model, tokenizer = tiny.create_model(), tiny.create_tokenizer()
    batches = generation.measure(model, tokenizer, ["a b", "the cat"], max_tokens=20, batch_size=1, progress=False)
    record = next(batch.records[0] for batch in batches if batch.indices == [1])
    found = [token.id for token in streaming.stream(model, tokenizer, "the cat", max_tokens=20, index=1)]
    assert found == record["tokens"].tolist()
    assert found != [token.id for token in streaming.stream(model, tokenizer, "the cat", max_tokens=20)]


def test_a_text_can_be_left_before_its_end_and_bad_settings_are_refused():
    stream = streaming.stream(tiny.create_model(), tiny.create_tokenizer(), "the cat")
    first = next(stream)
    stream.close()
    assert first.id == stream_text(max_tokens=1)[0].id
    with pytest.raises(ValueError, match="top_p"):
        next(streaming.stream(tiny.create_model(), tiny.create_tokenizer(), "the cat", top_p=2))
    with pytest.raises(ValueError, match="temperature is 0"):
        next(streaming.stream(tiny.create_model(), tiny.create_tokenizer(), "the cat", temperature=0))


def test_replaying_gives_the_tokens_of_a_run_with_what_was_measured():
    model, tokenizer, prompts = tiny.create_model(), tiny.create_tokenizer(), ["the cat", "she said"]
    options = {"max_tokens": 12, "seed": 5}
    (batch,) = generation.measure(model, tokenizer, prompts, progress=False, **options)
    for index, record in zip(batch.indices, batch.records, strict=True):
        tokens = record["tokens"].tolist()
        again = streaming.replay(model, tokenizer, prompts[index], tokens, **options)
        assert [token.id for token in again] == tokens
        assert [token.values["entropy"] for token in again] == pytest.approx(record["entropies"], abs=1e-5)
        assert [token.ids.tolist() for token in again] == [ids.tolist() for ids in record["top_p_tokens"]]
    assert streaming.replay(model, tokenizer, "the cat", [], **options) == []


@pytest.mark.parametrize(
    ("prompt", "prompt_format", "temperature"), [("the cat", "raw", 1), ("the cat", "chat", 0.6), ("", "raw", 2)]
)
def test_reading_gives_what_scoring_gives(prompt, prompt_format, temperature):
    options = {"max_tokens": 8, "prompt_format": prompt_format, "temperature": temperature}
    model, tokenizer, given = (
        tiny.create_model(),
        tiny.create_tokenizer(chat=True, bos=False),
        " and the other cat sat, ja 👩",
    )
    tokens, remarks = streaming.read(model, tokenizer, prompt, given, **options)
    (batch,) = scoring.measure(model, tokenizer, [prompt], [given], progress=False, **options)
    (record,) = batch.records
    assert [token.id for token in tokens] == record["tokens"].tolist()
    for name, column in quantities.find_columns().items():
        if name != "tokens":
            assert [token.values[column] for token in tokens] == record[name]
    for token, ids in zip(tokens, record["top_p_tokens"], strict=True):
        assert torch.equal(token.ids, ids)
    assert remarks == ["the rest of the text was not measured"]
    with pytest.raises(ValueError, match="empty"):
        streaming.read(model, tokenizer, prompt, "", **options)


# What is shown of a token


def test_a_texts_token_outside_its_nucleus_is_listed_last_with_its_probability():
    model, tokenizer = tiny.create_model(), tiny.create_tokenizer(bos=False)
    tokens, _ = streaming.read(model, tokenizer, "the cat", " sat, ja né", top_p=0.05)
    embedding = model.get_input_embeddings().weight.detach()
    outside = [step for step, token in enumerate(tokens) if token.id not in token.ids]
    assert outside
    for step in outside:
        reader, cosines = token_text.Reader(tokenizer), cards.compare_candidates(embedding, tokens[step], 2)
        content = cards.describe_token(tokens, step, reader, cosines, listed=2, mode="score")
        word, listed, probs, _, _, _, place, own = content["tokens"][0]
        assert place == -1
        assert own == pytest.approx(math.exp(-tokens[step].values["surprisal"]), rel=5e-3)  # three digits
        assert content["words"][word] == reader.show(tokens[step].id)
        assert word not in listed
        assert len(listed) == len(probs) == len(content["similar"][0]) == min(2, len(tokens[step].ids))


def describe(tokens: list[cards.Token], step: int, **options) -> dict:
    reader, embedding = token_text.Reader(tiny.create_tokenizer()), tiny.create_model().get_input_embeddings()
    cosines = cards.compare_candidates(embedding.weight.detach(), tokens[step])
    return cards.describe_token(tokens, step, reader, cosines, **options)


def test_a_card_lists_the_likeliest_candidates_and_the_drawn_one():
    tokens, reader = stream_text(top_p=1.0, max_tokens=20), token_text.Reader(tiny.create_tokenizer())
    embedding = tiny.create_model().get_input_embeddings().weight.detach()
    for step, token in enumerate(tokens):
        content = describe(tokens, step, listed=3)
        (card,) = content["tokens"]
        word, listed, probs, more, mass, nucleus_mass, place, *own = card
        assert [content["words"][index] for index in listed] == [reader.show(int(id)) for id in token.ids[:3]]
        assert probs == pytest.approx(token.probs[:3].tolist(), rel=5e-3)
        assert token.ids[place] == token.id
        assert content["words"][word] == reader.show(token.id)
        assert bool(own) == (place >= 3)
        assert own == pytest.approx([float(token.probs[place])] * len(own), rel=5e-3)
        assert more == len(token.ids) - 3
        assert (mass, nucleus_mass) == pytest.approx((float(token.probs[3:].sum()), 1), rel=5e-3)
        for id, cosine in zip(token.ids[:3], content["similar"][0], strict=True):
            expected = torch.cosine_similarity(embedding[int(id)], embedding[token.id], dim=0)
            assert cosine == pytest.approx(100 * float(expected), abs=0.51)  # in hundredths
        likeliest = embedding[token.ids[:3]]
        pairs = torch.cosine_similarity(likeliest[:, None], likeliest[None], dim=-1)[
            np.tril_indices(len(likeliest), -1)
        ]
        assert content["matrix"][0] == pytest.approx((100 * pairs).tolist(), abs=0.51)
        values = {scale["name"]: scale["values"] for scale in content["quantities"]}
        assert values["entropy"] == pytest.approx([token.values["entropy"]], rel=5e-3)
        assert values["k"] == [len(token.ids)]
        assert (content["first"], content["total"]) == (step, 20)


def test_a_card_says_how_its_token_compares_with_the_others():
    tokens = stream_text(max_tokens=20)
    points = [step for step, token in enumerate(tokens) if len(token.ids) > 1]
    top = max(points, key=lambda step: tokens[step].values["entropy"])
    content = describe(tokens, top)
    assert content["pairs"] == len(points)
    assert content["places"][0][0] == len(points) - 1
    alone = describe(tokens[top : top + 1], 0)
    assert (alone["places"], alone["pairs"]) == ([[0, 0]], 1)


def test_one_candidate_alone_has_no_similarity_and_no_place_among_the_others():
    tokens = stream_text(top_p=0.01, max_tokens=3)
    content = describe(tokens, 0)
    assert {scale["name"]: scale["values"] for scale in content["quantities"]}["cosine"] == [None]
    assert (content["places"], content["pairs"]) == ([None], 0)
    columns = cards.list_columns(tokens)
    scale = cards.build_scale("cosine", columns["cosine"], columns["k"])
    assert (scale["values"], scale["undefined"], scale["missing"]) == ([None] * 3, True, False)


SHARED = ("mode", "total", "pairs")  # what a text's cards have in common


def write_and_measure() -> tuple[str, dict, list[dict]]:
    """The same text twice: its strip, what the strip contains, and what the live notebook makes for each token."""
    model, tokenizer = tiny.create_model(), tiny.create_tokenizer(bos=False)
    reader, options = token_text.Reader(tokenizer), {"max_tokens": 12, "seed": 3}
    tokens = list(streaming.stream(model, tokenizer, "the cat", **options))
    (batch,) = generation.measure(model, tokenizer, ["the cat"], progress=False, **options)
    embedding = model.get_input_embeddings().weight.detach()
    cosines = [cards.compare_candidates(embedding, token) for token in tokens]
    page = render_strip(batch.records[0], reader, similarities=Similarities(*map(list, zip(*cosines, strict=True))))
    data = json.loads(re.search(r'<script type="application/json">(.*?)</script>', page, re.DOTALL)[1])
    contents = [cards.describe_token(tokens, step, reader, found) for step, found in enumerate(cosines)]
    return page, data, contents


def test_the_live_card_and_a_strips_card_have_the_same_content():
    _, data, contents = write_and_measure()
    assert len(contents) == len(data["tokens"]) == data["total"]
    assert data["parts"]  # this text has a character made by two tokens
    for step, content in enumerate(contents):
        (live,), still = content["tokens"], data["tokens"][step]
        assert [content["words"][i] for i in (live[0], *live[1])] == [data["words"][i] for i in (still[0], *still[1])]
        assert live[2:] == still[2:]
        assert content["places"] == [data["places"][step]]
        assert content["parts"].get("0") == data["parts"].get(str(step))
        assert {name: content[name] for name in SHARED} == {name: data[name] for name in SHARED}
        alone = [scale | {"values": [scale["values"][step]]} for scale in data["quantities"]]
        assert content["quantities"] == alone  # in the same order, with the same scales
        assert (content["similar"], content["matrix"]) == ([data["similar"][step]], [data["matrix"][step]])
        assert content.keys() <= data.keys()


def test_a_registered_quantity_is_in_cards_and_tints_of_both_at_the_same_place(monkeypatch):
    monkeypatch.setattr(quantities, "REGISTRY", dict(quantities.REGISTRY))
    quantities.register(
        quantities.Quantity.from_function("largest", lambda logits, *_: logits.softmax(-1).amax(-1), label="largest p")
    )
    _, data, contents = write_and_measure()
    assert [scale["name"] for scale in data["quantities"]][-2:] == ["k", "largest"]
    assert [scale["name"] for scale in contents[0]["quantities"]][-2:] == ["k", "largest"]
    assert contents[3]["quantities"][-1]["label"] == "largest p"
    assert contents[3]["quantities"][-1]["values"] == [data["quantities"][-1]["values"][3]]


@pytest.mark.parametrize("name", quantities.list_titles())
def test_every_quantity_has_a_scale_and_rounded_values(name):
    tokens = stream_text(max_tokens=40)
    values = [cards.find_value(token, name) for token in tokens]
    scale = cards.build_scale(name, np.array(values), np.array([len(token.ids) for token in tokens]))
    assert scale["low"] < scale["high"]
    _, high, most = cards.find_ends(np.array(values))
    assert scale["over"] == (most > (max(round(high), 2) if quantities.is_count(name) else high))
    assert [value is None for value in scale["values"]] == [math.isnan(value) for value in values]
    assert cards.build_scale(name, np.array([]), np.array([]))["values"] == []


def test_the_matrix_puts_like_beside_like_and_holds_the_likeliest():
    angles = torch.tensor([0.0, 2.0, 0.1, 2.1, 0.2, 2.2])
    embedding = torch.stack([angles.cos(), angles.sin()], dim=1) * torch.tensor([1.0, 3, 0.5, 1, 2, 1])[:, None]
    cosines, order = cards.compute_matrix(embedding, torch.arange(6), largest=6)
    assert {frozenset(order[:3]), frozenset(order[3:])} == {frozenset({0, 2, 4}), frozenset({1, 3, 5})}
    np.testing.assert_allclose(cosines, np.cos(angles.numpy()[order][:, None] - angles.numpy()[order]), atol=1e-6)
    assert sorted(cards.compute_matrix(embedding, torch.arange(6), largest=4)[1]) == [0, 1, 2, 3]
    for k in (1, 2):
        assert cards.compute_matrix(embedding, torch.arange(k))[0].shape == (k, k)
    nothing = torch.zeros(3, 2)
    np.testing.assert_array_equal(cards.compute_matrix(nothing, torch.arange(3))[0], np.eye(3))


def test_pieces_are_one_a_token_and_make_the_text():
    tokenizer = tiny.create_tokenizer()
    ids = tokenizer("the cat, ja 👩‍🚀 né שלום", add_special_tokens=False)["input_ids"]
    tokens = [cards.Token(token, torch.tensor([token]), torch.ones(1), {}) for token in ids]
    found = cards.split_text(token_text.Reader(tokenizer), tokens)
    assert len(found) == len(ids)
    assert "".join(found) == "the cat, ja 👩‍🚀 né שלום"


# The widgets, without a page


def test_a_run_fills_text_scatter_and_progress(written):
    assert written.text.status.startswith("30 tokens in ")
    assert (
        len(written.text.pieces)
        == len(written.text.scale["values"])
        == len(written.tokens)
        == written.progress.value
        == 30
    )
    steps = list(written.scatter.data[0].customdata)
    assert steps == [step for step, token in enumerate(written.tokens) if len(token.ids) > 1]
    assert list(written.scatter.data[0].x) == [written.tokens[step].values["entropy"] for step in steps]
    assert not written.run_button.disabled
    assert written.stop_button.disabled


def test_pointing_and_clicking_link_text_and_scatter(written):
    steps = list(written.scatter.data[0].customdata)
    written.text.hovered = steps[2]
    assert written.text.card["first"] == steps[2]
    assert written.scatter.data[1].x == (written.tokens[steps[2]].values["entropy"],)
    written.text.clicked = steps[1]
    assert written.text.card["first"] == steps[1]
    assert len(written.heat.data[0].z) == min(len(written.tokens[steps[1]].ids), cards.LARGEST)
    heading = f"<p>Cosine similarity of the candidates of token {steps[1]}</p>"
    assert written.candidates.heading.value == heading
    assert written.scatter.layout.meta == written.text.figure != ""
    written.text.hovered = 999  # a page may ask for a token of the text before
    assert written.text.card["first"] == steps[1]


def test_one_candidate_alone_has_no_matrix(tiny_model):
    live = explorer.Explorer("the cat", tiny_model, max_tokens=2, top_p=0.01, prompt_format="raw", results_dir="none")
    live.run()
    live.wait(60)
    assert live.text.card["hint"].endswith("Each token has only one candidate; this is the first token:")
    live.text.clicked = 1
    sentence = "Token 1 had only one candidate: nothing to compare"
    assert (live.candidates.heading.value, live.candidates.frame.layout.height) == (f"<p>{sentence}</p>", "0")
    sentence = "No token of the text has more than one candidate, so there is nothing to plot."
    assert (live.points.heading.value, live.points.frame.layout.height) == (f"<p>{sentence}</p>", "0")
    assert not live.scatter.data[0].x
    assert not live.scatter.data[1].x
    live.close()


def test_figures_are_as_wide_as_their_place_from_the_start_and_have_no_fixed_width(tiny_model):
    live = explorer.Explorer("the cat", tiny_model, max_tokens=3, prompt_format="raw", results_dir="none")
    live.text.room = 543  # which the page says
    live.run()
    live.wait(60)
    for figure in (live.scatter, live.heat):
        assert (figure.layout.width, figure.layout.template.layout.width) == (None, 543)
    live.close()
    assert live_figures.build_heat().layout.template.layout.width is None


def test_a_pasted_text_is_read_and_not_written(tiny_model):
    live = explorer.Explorer("the cat", tiny_model, prompt_format="raw", results_dir="none", mode="score", text=" sat")
    live.settings["max_tokens"].value = 20
    assert live.given.layout.display is None
    hidden = [name for name, widget in live.settings.items() if widget.layout.display == "none"]
    assert hidden == ["seed"]
    live.run()
    live.wait(60)
    assert "".join(live.text.pieces) == " sat"
    assert live.progress.value == live.progress.max
    assert re.fullmatch(r"\d tokens in [\d.]+ s \(done\)", live.text.status)
    live.text.hovered = 0
    assert live.text.card["mode"] == "score"
    live.given.value = ""
    live.run()
    live.wait(60)
    assert live.text.failed
    assert "is empty" in live.text.status
    live.mode.value = "generate"
    assert (live.text.status, live.text.failed) == ("", False)
    assert live.given.layout.display == "none"
    live.run()
    live.wait(60)
    assert len(live.tokens) == 20
    live.text.hovered = 0
    assert live.text.card["mode"] == "generate"
    live.close()


def test_a_chat_template_that_does_not_end_is_an_error_and_the_page_stays_usable(tmp_path, monkeypatch):
    tokenizer = tiny.create_tokenizer(chat=True)
    inner = "{% for j in range(99999) %}{% endfor %}"
    tokenizer.chat_template = "{% for i in range(99999) %}" + inner + "{% endfor %}"
    folder = tiny.save(tmp_path / "endless", tiny.create_model(), tokenizer)
    monkeypatch.setattr(encoding, "TEMPLATE_SECONDS", 0.5)
    live = explorer.Explorer("the cat", folder, max_tokens=3, prompt_format="chat", results_dir="none")
    live.run()
    live.wait(60)
    assert live.text.failed
    assert "cannot be applied (it did not end within 0.5 s): use prompt_format=raw" in live.text.status
    live.settings["prompt_format"].value = "raw"
    live.run()
    live.wait(60)
    assert not live.text.failed, live.text.status
    assert len(live.tokens) == 3
    live.close()


def test_settings_that_are_refused_leave_the_explorer_before(written, tiny_model):
    with pytest.raises(traitlets.TraitError):
        explorer.Explorer("the cat", tiny_model, quantity="entropi")
    assert explorer.Explorer._latest is written
    assert not written._closed
    again = explorer.Explorer("the cat", tiny_model, results_dir="none")
    assert written._closed
    again.close()
    again._preparing.join()


def test_an_explorer_that_is_closed_at_once_loads_nothing(tiny_model, monkeypatch):
    loads, imported = [], threading.Event()
    monkeypatch.setattr(explorer, "load", lambda *names: loads.append(names))
    monkeypatch.setattr(explorer.hub, "is_on_hub", lambda name: not imported.wait(60))
    live = explorer.Explorer("the cat", tiny_model, results_dir="none")
    live.close()
    imported.set()
    live._preparing.join()
    assert loads == []


def test_two_that_ask_for_a_model_at_once_load_it_once(monkeypatch):
    explorer.Explorer._latest._preparing.join()
    loads = []
    monkeypatch.setattr(loading, "load", lambda *names: (time.sleep(0.2), loads.append(names[:3])))
    askers = [threading.Thread(target=explorer.load, args=("a model", "auto", "cpu")) for _ in range(3)]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join()
    assert loads == [("a model", "auto", "cpu")]
    explorer.load("another", "auto", "cpu")
    assert len(explorer._loaded) == 1
    explorer._loaded.clear()


def test_a_scatters_hover_names_tokens_as_cards_do(written):
    points = written.scatter.data[0]
    assert list(points.text) == [str(step) for step in points.customdata]
    assert points.hovertemplate.startswith("token %{text}:")


def test_a_card_says_of_how_many_tokens_its_own_is_only_once_all_are_there(written):
    pointed, said = written.text.hovered, written.version.said
    for number in (-1, 0):  # the widest choice, and a token that was pointed at
        written.text.hovered, written.version.said = number, ""  # as before the last token
        written.text.card = {}
        written._show()
        written._point(max(number, 0))
        assert written.text.card["total"] is None
        written.version.said = said
        written._show(complete=True)
        assert written.text.card["total"] == len(written.tokens)
    written.text.hovered = pointed


def test_figures_are_created_once_and_changed_for_another_text(written):
    figures = written.scatter, written.heat
    figures[0].plotly_relayout({"xaxis.range[0]": 1, "xaxis.range[1]": 2, "xaxis.autorange": False})
    before = written.heat.data[0].z
    written.prompt.value = "she said"
    written.run()
    written.wait(60)
    assert (written.scatter, written.heat) == figures
    assert [place.frame.children for place in (written.points, written.candidates)] == [(each,) for each in figures]
    assert list(figures[0].data[0].x) == [token.values["entropy"] for token in written.tokens if len(token.ids) > 1]
    assert (figures[0].layout.xaxis.range, figures[0].layout.xaxis.autorange) == (None, True)
    assert np.shape(figures[1].data[0].z) != np.shape(before) or not np.array_equal(figures[1].data[0].z, before)


def record_messages(live, monkeypatch) -> list[tuple[str, dict]]:
    """What is sent to the page from now on: the widget, and its state."""
    sent = []
    widgets_ = {"text": live.text, "points": live.points.frame.layout, "heading": live.points.heading}
    for name, widget in widgets_.items():
        send = widget._send
        monkeypatch.setattr(
            widget,
            "_send",
            lambda message, buffers=None, name=name, send=send: (
                sent.append((name, message["state"])) or send(message, buffers)
            ),
        )
    for figure in (live.scatter, live.heat):
        monkeypatch.setattr(figure, "_send_update_msg", lambda *_, **__: sent.append(("figure", {})))
    return sent


def test_the_new_status_is_sent_first_and_text_and_card_with_it(written, monkeypatch):
    step, place = find_choice(written)
    sent = record_messages(written, monkeypatch)
    written.run()
    written.wait(60)
    (name, state), *_ = sent
    assert name == "text"
    assert (state["status"], state["busy"], state["pieces"], state["scale"]) == ("Generating …", True, [], {})
    assert state["card"] == {"note": controls.NO_CARD}
    assert sum("status" in state for _, state in sent) == 2  # and once at the end, with the last token
    sent.clear()
    pick(written, step, place)
    (name, state), *_ = sent[1:]  # after what the page would have sent
    assert (name, state["status"], len(state["pieces"])) == ("text", "Generating …", step + 1)
    assert (state["clicked"], state["card"]["number"], state["place"]) == (step, step, 1)
    sent.clear()
    written.text.wanted = [0, 1]
    (name, state), *rest = sent[1:]
    assert (name, len(state["pieces"]), state["place"], state["earlier"]) == ("text", 30, 0, {})
    assert state["status"].startswith("30 tokens in")
    assert [name for name, _ in rest if name == "text"] == []
    assert ("figure", {}) in rest


def test_the_card_follows_a_growing_text_and_compares_nothing_until_it_is_complete(written, monkeypatch):
    all_tokens, said = list(written.tokens), written.version.said
    monkeypatch.setattr(written.version, "said", "")
    written.text.card = {}
    for n in range(1, len(all_tokens) + 1):
        written.version.tokens[:] = all_tokens[:n]
        written._show()
        widest = max(range(n), key=lambda step: all_tokens[step].values["entropy"])
        assert (written.text.card["number"], written.text.card["total"]) == (widest, None)
        assert written.text.card["hint"].endswith("least sure so far:")
        if len(all_tokens[widest].ids) > 1:
            assert f"of token {widest}" in written.candidates.heading.value
    written.version.said = said
    written._show(complete=True)
    assert written.text.card["total"] == len(all_tokens)
    assert written.text.card["hint"].endswith("least sure:")


@pytest.mark.parametrize(
    ("prompt_format", "advice"), [("raw", "prompt_format=chat may help"), ("chat", "another seed")]
)
def test_an_empty_text_says_why_and_what_to_try(written, monkeypatch, prompt_format, advice):
    monkeypatch.setattr(streaming, "stream", lambda *_, **__: iter(()))
    written.settings["prompt_format"].value = prompt_format
    written.run()
    written.wait(60)
    assert re.match(
        r"0 tokens in [\d.]+ s: the text is empty, because the model stopped immediately; ", written.text.status
    )
    assert written.progress.value == 0
    assert advice in written.text.status
    assert (written.text.pieces, written.text.scale) == ([], {})
    assert written.text.card == {"note": explorer.EMPTY_CARD}
    assert written.points.heading.value == "<p>The text has no tokens, so there is nothing to plot.</p>"
    assert written.candidates.heading.value == ""
    assert written.points.frame.layout.height == written.candidates.frame.layout.height == "0"


def test_an_error_of_nucleoscopes_own_says_neither_its_class_nor_a_number_of_the_only_prompt(tiny_model):
    assert explorer.describe_error(ConnectionError("the Hub does not answer")) == "the Hub does not answer"
    assert explorer.describe_error(KeyError("a")) == "KeyError: 'a'"
    live = explorer.Explorer("the cat", tiny_model, prompt_format="raw", results_dir="none", mode="score")
    live.run()
    live.wait(60)
    assert (live.text.status, live.text.failed) == ("the text is empty: there is nothing to measure", True)
    live.close()


def test_a_label_is_the_name_by_which_an_error_calls_the_setting():
    live = explorer.Explorer("the cat", "other", results_dir="none")
    for name, field in live.settings.items():
        assert (field.label if isinstance(field, controls.Field) else field.description) == name
    live.close()


def test_the_heading_of_a_figure_says_what_there_is():
    (one, *_), tokens = stream_text(top_p=0.01, max_tokens=1), stream_text(max_tokens=20)
    for given, complete, expected in (
        ([one], False, "No token of the text has more than one candidate so far."),
        ([one], True, "No token of the text has more than one candidate, so there is nothing to plot."),
        (tokens, True, "Tokens with more than one candidate"),
    ):
        assert live_figures.describe_points(given, complete) == expected
    layouts = [live_figures.build_heat_layout(["a"] * n) for n in (live_figures.FEW, live_figures.FEW + 1)]
    assert [layout["xaxis"]["showticklabels"] for layout in layouts] == [True, False]
    order = np.arange(2)
    assert live_figures.describe_matrix(3, 2, (np.eye(2), order)) == "Cosine similarity of the candidates of token 3"
    assert live_figures.describe_matrix(3, 40, (np.eye(2), order)).endswith("(the 2 likeliest of 40)")
    assert "no similarities" in live_figures.describe_matrix(3, 2, None)


def test_a_mode_that_there_is_not_is_refused(tiny_model):
    with pytest.raises(ValueError, match="mode is 'write'"):
        explorer.Explorer("the cat", tiny_model, mode="write")


def test_a_scored_prompt_brings_its_text(tiny_model, tmp_path):
    model, tokenizer, identity = loading.load(tiny_model)
    options = {"max_tokens": 12, "top_p": 0.8, "prompt_format": "raw"}
    settings = {"model_name": tiny_model, "model": identity, "dataset_name": "lines.csv", "mode": "score", **options}
    folder = results.locate_run(tmp_path / "results", "lines.csv", tiny_model, "answer")
    with run_folder.RunFolder(folder, settings) as run:
        complete_run(run, model, tokenizer, ["a b", "the"], [" cat sat", " other, né"], variants="none", **options)
    live = explorer.Explorer("", "other", results_dir=str(tmp_path / "results"))
    live.measured.value = folder
    live.picked.value = 1
    assert (live.mode.value, live.prompt.value, live.given.value) == ("score", "the", " other, né")
    live.run()
    live.wait(60)
    assert [token.id for token in live.tokens] == live.records[1]["tokens"].tolist()
    entropies = results.load_records(folder)[1]["entropies"]
    assert [token.values["entropy"] for token in live.tokens] == pytest.approx(entropies, abs=1e-5)
    live.close()


def test_another_tint_changes_the_scale_alone(written):
    before = written.text.pieces
    written.quantity.value = "k"
    assert written.text.scale["label"] == "candidates (k)"
    assert written.text.scale["values"] == [len(token.ids) for token in written.tokens]
    assert written.text.pieces == before


def test_a_second_run_starts_clean_and_loads_nothing_again(written, monkeypatch):
    written.text.clicked = 3
    written.text.marked = [0, 1]
    monkeypatch.setattr(loading, "load", lambda *_: pytest.fail("loaded again"))
    written.settings["max_tokens"].value = 10
    written.run()
    written.wait(60)
    assert len(written.text.pieces) == 10
    assert (written.text.marked, written.text.hovered, written.text.clicked) == ([], -1, -1)
    assert written.text.card["hint"].endswith("least sure:")
    assert not written.text.failed


def test_a_cell_that_is_run_again_leaves_one_explorer(written, tiny_model):
    again = explorer.Explorer("the cat", tiny_model, results_dir="none")
    assert written._closed
    assert written.text.comm is None
    assert explorer.Explorer._latest is again
    assert again.text.pieces == []
    again.close()


def test_stop_ends_a_text(tiny_model, monkeypatch):
    stream = streaming.stream

    def slow(*arguments, **options):
        for token in stream(*arguments, **options):
            time.sleep(0.05)
            yield token

    monkeypatch.setattr(streaming, "stream", slow)
    live = explorer.Explorer("the cat", tiny_model, max_tokens=200, prompt_format="raw", results_dir="none")
    live.run()
    live.run()  # one at a time: this does nothing
    live.stop_button.click()
    live.wait(60)
    assert live.text.status.endswith("(stopped)")
    assert len(live.tokens) < 200
    live.close()


def test_a_model_that_cannot_be_loaded_is_said_in_the_page(written):
    written.settings["model_name"].value = "no such/ model"
    written.run()
    written.wait(60)
    assert written.text.failed
    assert "no such/ model" in written.text.status
    assert not written.run_button.disabled


def test_a_measured_prompt_brings_its_settings_and_its_text(tiny_model, tmp_path):
    measure_run(tiny_model, tmp_path)
    live = explorer.Explorer("", "other", results_dir=str(tmp_path / "results"))
    live.settings["temperature"].value = 2
    live.measured.value = tmp_path / "results/lines/tiny-llama"
    live.picked.value = 2
    assert live.settings["temperature"].value == 1  # the run is from before there was one
    assert live.prompt.value == live.records[2]["prompt"] == f"the cat {EVIL}"
    assert live.settings["model_name"].value == tiny_model
    live.run()
    live.wait(60)
    assert [token.id for token in live.tokens] == live.records[2]["tokens"].tolist()
    assert live.dtype in loading.DTYPES
    assert "the tokens of the run, measured again" in live.text.status
    live.settings["seed"].value += 1
    live.run()
    live.wait(60)
    assert "measured again" not in live.text.status
    assert [token.id for token in live.tokens] != live.records[2]["tokens"].tolist()
    live.close()


def test_a_measured_prompt_is_drawn_from_its_files_at_once_and_without_its_model(tiny_model, tmp_path, monkeypatch):
    measure_run(tiny_model, tmp_path)
    folder = tmp_path / "results/lines/tiny-llama"

    def refuse(*_):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(loading, "load", refuse)
    live = explorer.Explorer("", "other", results_dir=str(tmp_path / "results"))
    assert live.picked.content == {}
    live.measured.value = folder
    assert [prompt[1] for prompt in live.picked.content["prompts"]] == [record["prompt"] for record in live.records]
    live.picked.value = 2
    record = results.load_records(folder)[2]
    assert [token.id for token in live.tokens] == record["tokens"].tolist()
    assert [token.values["entropy"] for token in live.tokens] == record["entropies"]
    assert live.text.prompt == record["prompt"]
    assert len(live.text.pieces) == len(record["tokens"])
    assert "from the files of the run" in live.text.status
    assert not live.run_button.disabled
    step = max(range(len(live.tokens)), key=lambda step: len(live.tokens[step].ids))
    live.text.hovered = step
    embedding = tiny.create_model().get_input_embeddings().weight.detach()
    expected = cards.compare_candidates(embedding, live.tokens[step])
    assert live.text.card["similar"][0] == pytest.approx((100 * expected[0]).tolist(), abs=0.6)
    live.text.clicked = step
    matrix, _ = cards.compute_matrix(embedding, live.tokens[step].ids, largest=10)
    np.testing.assert_allclose(np.array(live.heat.data[0].z, float), matrix, atol=2e-3)
    for found, shown in ((2, None), (0, "hidden"), (1, None)):
        live.picked.found = found
        assert live.text.layout.visibility == live.figures.layout.visibility == shown
    live.prompt.value, live.picked.found = "another prompt, whose text this menu does not have", 0
    assert live.text.layout.visibility is None
    live.measured.value = ""
    assert (live.picked.content, live.picked.value) == ({}, -1)
    live.close()


@pytest.mark.parametrize("lacking", ["candidates.parquet", "tokens.parquet", "the tokenizer"])
def test_a_run_that_lacks_a_file_is_drawn_with_what_it_has(tiny_model, tmp_path, monkeypatch, lacking):
    measure_run(tiny_model, tmp_path)
    folder = tmp_path / "results/lines/tiny-llama"
    if lacking == "the tokenizer":
        monkeypatch.setattr(local_tokenizers, "find_tokenizer", lambda _: None)
    else:
        (folder / lacking).unlink()
    live = explorer.Explorer("", "other", results_dir=str(tmp_path / "results"))
    live.measured.value, live.picked.value = folder, 1
    if lacking == "the tokenizer":
        assert "its tokenizer is not on this machine" in assert_one_line(live.text.status)
        assert live.tokens == []
    else:
        assert [token.id for token in live.tokens] == live.records[1]["tokens"].tolist()
        live.text.hovered = live.text.clicked = 0
        assert ("similar" in live.text.card) == (lacking == "tokens.parquet")
        assert live.picked.content["prompts"][1][2]  # its text can be searched
    live.close()


def score_run(name: str, folder: Path, **identity: str) -> Path:
    """A scored run of two prompts below ``folder``/results; ``identity`` is that of its model in run.json."""
    loaded, options = (
        (tiny.create_model(), tiny.create_tokenizer(chat=True)),
        {"max_tokens": 12, "prompt_format": "raw"},
    )
    settings = {"model_name": name, "model": identity, "dataset_name": "lines.csv", "mode": "score", **options}
    run_at = results.locate_run(folder / "results", "lines.csv", name, "answer")
    with run_folder.RunFolder(run_at, settings | {"dtype": "float32"}) as run:
        complete_run(run, *loaded, ["a b", "the"], [" cat sat", " other, né"], variants="none", **options)
    return run_at


def test_a_measured_prompt_uses_the_revision_that_its_run_recorded(tmp_path, monkeypatch):
    folder, asked = score_run("org/tiny", tmp_path, source="hub", id="org/tiny", revision="c0ffee"), []

    def load_model(*names):
        asked.append(names)
        return loading.Model(tiny.create_model(), tiny.create_tokenizer(chat=True), {})

    monkeypatch.setattr(tokenizers, "load_tokenizer", lambda *names: load_model(*names).tokenizer)
    monkeypatch.setattr(loading, "load", load_model)
    monkeypatch.setattr(explorer, "_loaded", {})
    live = explorer.Explorer("", "org/tiny", results_dir=str(tmp_path / "results"), model_revision="beef", device="cpu")
    live.measured.value, live.picked.value = folder, 1
    live.run()
    live.wait(60)
    assert not live.text.failed, live.text.status
    assert asked == [("org/tiny", False, "c0ffee"), ("org/tiny", "float32", "cpu", False, "c0ffee")]
    live.settings["model_name"].value = "org/other"  # which has other commits
    assert controls.read_settings(live.settings)["model_revision"] is None
    live.close()


def test_a_models_own_code_runs_only_if_it_was_allowed_for_this_model(tmp_path):
    folder = Path(tiny.save(tmp_path / "tiny-llama", tiny.create_model(), tiny.create_tokenizer(chat=True)))
    ran = tmp_path / "ran"
    (folder / "mine.py").write_text(
        "from transformers import PreTrainedTokenizerFast\n"
        f"open({str(ran)!r}, 'w').close()\n"
        "class MyTokenizer(PreTrainedTokenizerFast): pass\n"
    )
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config |= {"tokenizer_class": "MyTokenizer", "auto_map": {"AutoTokenizer": [None, "mine.MyTokenizer"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    measured = score_run(str(folder), tmp_path, source="folder")
    live = explorer.Explorer("", "other", results_dir=str(tmp_path / "results"), text="old", trust_remote_code=True)
    live.measured.value, live.picked.value = measured, 1
    assert not live.settings["trust_remote_code"].value  # it was allowed for another model
    assert (live.given.value, live.text.failed) == ("", True)
    live.run()
    live.wait(60)
    assert "comes with its own code: read it at" in live.text.status
    assert "then set trust_remote_code" in assert_one_line(live.text.status)
    assert not ran.exists()
    live.settings["trust_remote_code"].value = True
    assert live.given.value == " other, né"
    live.run()
    live.wait(60)
    assert not live.text.failed, live.text.status
    assert ran.exists()
    live.close()


def measure_run(model_name: str, folder: Path) -> None:
    """A measured run of three prompts below ``folder``/results."""
    model, tokenizer, _ = loading.load(model_name)
    options = {"max_tokens": 12, "top_p": 0.8, "seed": 3, "prompt_format": "raw"}
    settings = {"model_name": model_name, "dataset_name": "lines.txt", **options}
    settings["dtype"] = str(model.dtype).removeprefix("torch.")
    with run_folder.RunFolder(results.locate_run(folder / "results", "lines.txt", model_name), settings) as run:
        complete_run(run, model, tokenizer, ["a b", "the", f"the cat {EVIL}"], batch_size=1, variants="none", **options)


def test_nothing_that_a_model_writes_is_read_as_html():
    assert names.escape_plotly(EVIL) == (
        "&lt;script&gt;alert(1)&lt;/script&gt; &lt;img src=x onerror=alert(2)&gt; &#36;x&#36; &amp;amp;"
    )
    assert names.escape_plotly('"it\'s"') == "&#34;it&#39;s&#34;"  # plotly knows no name for a quotation mark
    map_ = live_figures.build_heatmap(np.eye(2), ["<b>", "$"])
    assert map_.text[0][1] == "&lt;b&gt; and &#36;"
    assert live_figures.build_heat_layout(["<b>"])["yaxis"]["ticktext"] == ["&lt;b&gt;"]
    script = (controls.STATIC / "explorer.js").read_text()
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|https?:", script)


# Settings as they are typed


@pytest.mark.parametrize(
    ("name", "typed", "words"),
    [
        ("top_p", "1.5", "top_p is 1.5: it must be a number in (0, 1]"),
        ("top_p", "half", "top_p is 'half': it must be a number in (0, 1]"),
        ("max_tokens", "20.5", "max_tokens is '20.5': it must be a whole number from 1 to 1,000,000,000"),
        ("max_tokens", "", "max_tokens is '': it must be a whole number from 1 to 1,000,000,000"),
        (
            "template_date",
            "2024-13-01",
            "template_date is '2024-13-01': it must be a date in the form YYYY-MM-DD, such as 2024-07-26",
        ),
        ("model_name", " ", "model_name is '': it must not be empty"),
    ],
)
def test_a_setting_that_is_refused_is_so_in_words_and_stays_as_it_was_typed(name, typed, words):
    live = explorer.Explorer("the cat", "other", results_dir="none")
    field = live.settings[name]
    field.text = typed
    assert field.problem == words
    assert field.text == typed
    live.run()
    assert (live.text.status, live.text.failed) == (words, True)
    assert live._thread is None
    field.value = getattr(Settings, name)
    assert (field.problem, field.text) == ("", controls._format_value(getattr(Settings, name)))
    assert (live.text.status, live.text.failed) == ("Press Run.", False)
    live.close()


def test_what_is_typed_is_read_and_an_empty_revision_is_none():
    live = explorer.Explorer("the cat", "other", results_dir="none")
    live.settings["temperature"].text, live.settings["seed"].text = " 0.70", "-3"
    found = controls.read_settings(live.settings)
    assert (found["temperature"], found["seed"], found["model_revision"]) == (0.7, -3, None)
    assert controls.list_problems(live.settings) == []
    live.settings["seed"].text = "x"
    live.mode.value = "score"  # which hides the seed, and does not use it
    assert controls.list_problems(live.settings) == []
    live.close()


# As the notebook opens


def test_the_explorer_imports_no_torch_and_shows_sentences_before_there_is_a_text():
    code = """
import sys
from nucleoscope.explorer import controls, explorer
assert "torch" not in sys.modules and "transformers" not in sys.modules
explorer.Explorer._prepare = lambda *_: None
live = explorer.Explorer("the cat", "other", results_dir="none")
assert "torch" not in sys.modules
assert "Press Run" in live.points.heading.value
assert live.text.card["note"]
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_model_is_loaded_as_the_notebook_opens_and_used_by_run(tiny_model, monkeypatch):
    load, loads = loading.load, []
    monkeypatch.setattr(explorer, "_loaded", {})
    monkeypatch.setattr(loading, "load", lambda *names: loads.append(names) or load(*names))
    live = explorer.Explorer("the cat", tiny_model, max_tokens=5, prompt_format="raw", results_dir="none")
    wait_until(lambda: live.text.status == f"{tiny_model} is loaded. Press Run.")
    assert not live.text.busy
    live.run()
    live.wait(60)
    assert len(live.tokens) == 5
    assert len(loads) == 1
    live.close()


def test_a_model_that_cannot_be_loaded_is_reported_as_the_notebook_opens(tmp_path):
    live = explorer.Explorer("the cat", str(tmp_path), results_dir="none")
    wait_until(lambda: live.text.failed)
    assert str(tmp_path) in assert_one_line(live.text.status)
    live.close()


def test_a_model_that_is_not_on_this_machine_is_not_loaded_before_run(monkeypatch):
    monkeypatch.setattr(loading, "load", lambda *_: pytest.fail("loaded"))
    live = explorer.Explorer("the cat", "org/far-away", results_dir="none")
    wait_until(lambda: live.text.status == "Press Run to load the model and generate a text.")
    live.close()


def wait_until(is_so, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.01)


# Forks


def find_choice(live, start: int = 4) -> tuple[int, int]:
    """A step with several candidates, and the place of one that was not taken."""
    step = next(step for step in range(start, len(live.tokens)) if len(live.tokens[step].ids) > 2)
    return step, next(place for place, id in enumerate(live.tokens[step].ids) if id != live.tokens[step].id)


def pick(live, number: int, place: int) -> None:
    live.text.picked = [number, place, time.monotonic_ns() % 10**9]
    live.wait(60)


def test_a_text_that_was_begun_is_continued_with_the_numbers_of_its_steps():
    tokens = stream_text(max_tokens=30, seed=4)
    ids = [token.id for token in tokens]
    for cut in (1, 7, 29):
        found = stream_text(max_tokens=30, seed=4, begun=ids[:cut])
        assert [token.id for token in found] == ids[cut:]
    assert stream_text(max_tokens=30, begun=ids) == stream_text(max_tokens=30, begun=[tiny.EOS]) == []


def test_a_candidate_that_is_clicked_is_put_in_and_the_text_continues_from_it(written):
    step, place = find_choice(written)
    before, candidate = list(written.tokens), int(written.tokens[step].ids[place])
    pick(written, step, place)
    assert written.tokens[:step] == before[:step]  # the same objects: nothing is drawn again
    put_in = written.tokens[step]
    assert (put_in.id, put_in.values["rank"]) == (candidate, place + 1)
    assert put_in.values["surprisal"] == pytest.approx(-math.log(put_in.probs[place]), rel=1e-5)
    assert put_in.values["entropy"] == before[step].values["entropy"]
    ids = [token.id for token in before[:step]] + [candidate]
    expected = stream_text(max_tokens=30, begun=ids)
    assert [token.id for token in written.tokens[step + 1 :]] == [token.id for token in expected]
    assert written.text.earlier["cut"] == step
    reader = token_text.Reader(tiny.create_tokenizer())
    assert written.text.earlier["pieces"] == cards.split_text(reader, before)[step:]
    assert len(written.text.scale["earlier"]) == len(before) - step
    assert len(written.text.scale["values"]) == len(written.text.pieces) == len(written.tokens)
    assert written.text.trail == ["first text", f"{reader.show(candidate)} at token {step}"]
    assert written.text.card["mode"] == "fork"
    assert "more tokens in" in written.text.status


def test_one_can_go_back_and_forth_and_fork_a_fork_or_the_earlier_text(written):
    first = list(written.tokens)
    step, place = find_choice(written)
    pick(written, step, place)
    second = list(written.tokens)
    later, other = find_choice(written, 0)
    pick(written, later, other)
    assert len(written.text.trail) == 3
    third = list(written.tokens)
    for wanted, tokens in ((0, first), (2, third), (1, second)):
        written.text.wanted = [wanted, wanted]
        assert written.tokens == tokens
        assert written.text.place == wanted
        assert ("cut" in written.text.earlier) == (wanted > 0)
        assert len(written.text.pieces) == len(tokens)
    written.text.hovered = controls.number_earlier(step)  # a token of the text before
    assert written.text.card["tokens"] == describe(first, step)["tokens"]
    pick(written, controls.number_earlier(step), place)
    assert written.text.trail == ["first text", written.text.trail[1]]
    assert [token.id for token in written.tokens] == [token.id for token in second]
    written.run()
    written.wait(60)
    assert (len(written.text.trail), written.text.earlier) == (1, {})


@pytest.mark.parametrize("step", [0, 3])
def test_an_end_of_text_token_that_is_put_in_ends_the_text(written, step):
    written.version.tokens[step] = written.tokens[step]._replace(ids=torch.tensor([tiny.EOS]), probs=torch.ones(1))
    pick(written, step, 0)
    assert len(written.tokens) == step
    assert "ends the text" in written.text.status


def test_a_text_that_was_pasted_or_measured_can_be_forked_and_its_tokens_are_kept(tiny_model, tmp_path):
    measure_run(tiny_model, tmp_path)
    live = explorer.Explorer("", "other", results_dir=str(tmp_path / "results"))
    live.measured.value, live.picked.value = tmp_path / "results/lines/tiny-llama", 2
    recorded = list(live.tokens)
    step, place = find_choice(live, 2)
    pick(live, step, place)
    assert not live.text.failed, live.text.status
    assert live.tokens[:step] == recorded[:step]
    options = {"max_tokens": 12, "top_p": 0.8, "seed": 3, "index": 2}
    begun = [token.id for token in live.tokens[: step + 1]]
    expected = list(streaming.stream(*loading.load(tiny_model)[:2], live.prompt.value, begun=begun, **options))
    assert [token.id for token in live.tokens[step + 1 :]] == [token.id for token in expected]
    live.close()


def test_a_card_has_tabs_with_what_follows_each_candidate(written):
    step, _ = find_choice(written)
    token = written.tokens[step]
    written.text.hovered = step
    assert "waiting" in written.text.card
    assert not written.version.ahead  # nothing is computed before a tab is opened
    written.text.tab = "context"
    wait_until(lambda: "context" in written.text.card)
    (found,) = written.text.card["context"]
    model, tokenizer = tiny.create_model(), tiny.create_tokenizer(chat=True)
    before = [*tokenizer("the cat")["input_ids"], *(each.id for each in written.tokens[:step])]
    reader = token_text.Reader(tokenizer)
    with torch.inference_mode():
        rows = [model(torch.tensor([[*before, int(id)]])).logits[0, -1].softmax(-1) for id in token.ids[:10]]
    for next_tokens, row in zip(found["following"], rows, strict=True):
        assert [text for text, _ in next_tokens] == [reader.show(int(id)) for id in row.topk(3).indices]
        assert [p for _, p in next_tokens] == pytest.approx(row.topk(3).values.tolist(), rel=1e-2)
    m = min(len(rows), Settings.context_candidates)  # as many are compared as where a run is measured in context
    expected = 100 * context.compute_similarities(torch.stack(rows[:m]))
    pairs = [found["matrix"][j * (j - 1) // 2 + i] for i in range(m) for j in range(i + 1, m)]
    assert pairs == pytest.approx(expected.tolist(), abs=0.6)
    assert found["names"][found["taken"]] == reader.show(token.id)
    written.text.hovered = controls.number_earlier(0)  # there is none
    alone = next((step for step, token in enumerate(written.tokens) if len(token.ids) == 1), None)
    if alone is not None:
        written.text.hovered = alone
        assert not {"context", "waiting"} & written.text.card.keys()


def test_a_run_that_was_measured_in_context_has_that_tab_without_its_model(tiny_model, tmp_path, monkeypatch):
    measure_run(tiny_model, tmp_path)
    folder = tmp_path / "results/lines/tiny-llama"
    record = results.load_records(folder)[1]
    step = next(step for step, ids in enumerate(record["top_p_tokens"]) if len(ids) > 2)
    parts = {"prompts": [1], "steps": [step], "sizes": [3], "ids": record["top_p_tokens"][step][:3].tolist()}
    parts |= {"shares": [0.5, 0.3, 0.2], "similarities": [0.1, 0.2, 0.3]}  # of the pairs 01, 02 and 12
    found = Compared({name: np.array(part) for name, part in parts.items()}, Grouping())
    monkeypatch.setattr(explorer, "load_current", lambda _: found)
    live = explorer.Explorer("", "other", results_dir=str(tmp_path / "results"))
    live.measured.value, live.picked.value = folder, 1
    live.text.hovered = step
    (found,) = live.text.card["context"]
    assert (found["matrix"], found["following"]) == ([10, 20, 30], [])
    ordinary = [0.5 + 0.03 + 0.04, 0.05 + 0.3 + 0.06, 0.1 + 0.09 + 0.2]
    assert found["continuations"] == pytest.approx(
        math.prod(z**-q for z, q in zip(ordinary, (0.5, 0.3, 0.2), strict=True)), rel=5e-3
    )
    live.text.hovered = next(other for other in range(len(live.tokens)) if other != step)
    assert "context" not in live.text.card
    live.close()


@pytest.fixture
def compared(tiny_model, tmp_path) -> Path:
    """The folder of a run that was measured in context."""
    measure_run(tiny_model, tmp_path)
    folder = tmp_path / "results/lines/tiny-llama"
    model = loading.load(tiny_model)[:2]
    with ContextFolder(folder, 6, 0.2) as run:
        context.complete_context(run, lambda: model, results.load_info(folder), what_or_how.tabulate, progress=False)
    return folder


def list_context_tints(live) -> list[str]:
    return [name for _, name in live.quantity.options if name not in quantities.list_titles()]


def test_a_text_from_files_can_be_tinted_by_what_and_how_if_its_run_was_measured_in_context(compared):
    rows = load_rows(compared)
    live = explorer.Explorer("", "other", results_dir=str(compared.parents[1]))
    assert not list_context_tints(live)
    live.measured.value, live.picked.value = compared, 2
    assert list_context_tints(live) == ["entropy_what", "entropy_how"]
    labels = [label for label, _ in live.picked.content["columns"]]
    assert "mean uncertainty about what follows (nats)" in labels
    assert (live.quantity.value, live.text.tab) == ("entropy", "")
    live.quantity.value = "entropy_how"
    assert live.text.tab == "context"  # which shows what the tint is about
    own = rows[rows["prompt"] == 2].set_index("step")["entropy_how"]
    expected = [cards.round_value(own.get(step, math.nan)) for step in range(len(live.tokens))]
    assert live.text.scale["values"] == expected
    assert len(set(expected)) > 2
    live.text.tab = ""
    live.picked.value = 1  # another text of the run: the tint stays, and so does the tab that was opened
    assert (live.quantity.value, live.text.tab, live.text.scale["name"]) == ("entropy_how", "", "entropy_how")
    live.close()


def test_the_card_of_a_measured_token_has_the_same_groups_static_from_files_and_by_the_model(compared, tiny_model):
    record, reader = results.load_records(compared)[2], token_text.Reader(tiny.create_tokenizer(chat=True))
    ahead = cards.read_ahead(load_matrices(compared), 2, 0.2)
    static = build_content(record, reader, ahead=ahead)["data"]
    steps = [step for step, each in enumerate(static["context"]) if each]
    assert any(1 < len(static["context"][step]["groups"]) < 6 for step in steps)
    live = explorer.Explorer("", "other", results_dir=str(compared.parents[1]))
    live.measured.value, live.picked.value = compared, 2
    for step in steps:
        live.text.hovered = step
        assert live.text.card["context"] == [static["context"][step]]
        assert live.text.card["threshold"] == static["threshold"]
        assert live.text.card["quantities"][-1]["values"] == [static["quantities"][-1]["values"][step]]
    live.quantity.value = "entropy_what"
    values = live.text.scale["values"]
    live.run()
    live.wait(60)
    assert not live.text.failed, live.text.status
    assert (live.model is None, live.quantity.value, live.text.scale["values"]) == (False, "entropy_what", values)
    for step in steps[:3]:
        live.text.hovered = step
        wait_until(lambda: "context" in live.text.card)
        (found,) = live.text.card["context"]
        expected = static["context"][step]
        assert [each[1:] for each in found["groups"]] == [each[1:] for each in expected["groups"]]
        assert found["split"] == pytest.approx(expected["split"], abs=2e-3)
        assert found["shares"] == pytest.approx(expected["shares"], rel=0.01)
        assert found["names"][: len(expected["names"])] == expected["names"]
        assert "remark" not in live.text.card
    step, place = find_choice(live, 3)
    pick(live, step, place)  # the text up to there has its numbers, what follows is new
    assert live.text.scale["values"][: step + 1] == values[: step + 1]
    assert live.text.scale["values"][step + 1 :] == [None] * (len(live.tokens) - step - 1)
    live.close()


def test_a_text_that_was_just_written_has_groups_on_cards_but_no_such_tint(compared, tiny_model):
    live = explorer.Explorer("", "other", results_dir=str(compared.parents[1]))
    live.measured.value, live.picked.value = compared, 1
    live.quantity.value, live.prompt.value = "entropy_what", "the cat and"
    live.run()
    live.wait(60)
    assert not live.text.failed, live.text.status
    assert (list_context_tints(live), live.quantity.value) == ([], "entropy")
    assert live.text.scale["name"] == "entropy"
    live.text.hovered, _ = find_choice(live, 0)
    wait_until(lambda: "context" in live.text.card)
    (found,) = live.text.card["context"]
    assert len(found["groups"]) <= len(found["shares"]) <= 6
    assert live.text.card["threshold"] == 0.2  # that of the selected run
    assert "--context" in live.text.card["remark"]
    live.close()


# In a browser

OPTIONS = ["--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update"]
OPTIONS += ["--no-sandbox"] if os.geteuid() == 0 else []  # Chrome refuses to sandbox for root


@pytest.fixture(scope="module")
def browser():
    """One process for all tests of this module; skips a test if the program or playwright is missing."""
    named = os.environ.get("NUCLEOSCOPE_BROWSER")
    program = next(filter(None, map(shutil.which, [named] if named else BROWSERS)), None)
    assert program or not named, f"NUCLEOSCOPE_BROWSER is '{named}': there is no such program"
    if not program:
        pytest.skip("NO CHROMIUM OR CHROME IS INSTALLED: THE LIVE NOTEBOOK IS NOT TESTED. Set NUCLEOSCOPE_BROWSER.")
    playwright = pytest.importorskip("playwright.sync_api", reason="PLAYWRIGHT IS NOT INSTALLED: use make test")
    with playwright.sync_playwright() as driver:
        process = driver.chromium.launch(executable_path=program, args=OPTIONS, timeout=180_000)
        yield process
        process.close()


# The live notebook's text without a kernel: it gets what the kernel would send.
DRAW_LIVE = """async ([script, states]) => {
  const { default: { render } } = await import(URL.createObjectURL(new Blob([script], { type: "text/javascript" })));
  const el = document.body.appendChild(document.createElement("div"));
  const state = { ...states };
  const model = { get: (name) => state[name], set() {}, save_changes() {}, on() {}, off() {} };
  render({ model, el });
}"""
# Each element of a card with its text and appearance; without the figure and the button, which strips add.
READ_CARD = """(card) => [...card.querySelectorAll("*")].filter((part) => !part.closest("svg, button")).map((part) => {
  const { color, backgroundColor, fontSize, fontWeight, textAlign, lineHeight } = getComputedStyle(part);
  const text = [...part.childNodes].filter((node) => node.nodeType === 3).map((node) => node.data).join("");
  const look = { color, backgroundColor, fontSize, fontWeight, textAlign, lineHeight };
  return [part.localName, part.className, part.style.width, text, look];
})"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_draws_the_same_card_and_tint_in_a_strip_and_in_the_live_notebook(browser, scheme):
    html, data, contents = write_and_measure()
    scale = data["quantities"][0]
    state = {"pieces": ["a"] * len(contents), "scale": scale, "marked": [], "prompt": "", "status": "", "failed": False}
    state |= {"earlier": {}, "trail": [], "place": 0, "busy": False, "tab": ""}
    shown = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme=scheme)
    shown.set_content(f"<!doctype html><body>{html}</body>")
    for step, content in enumerate(contents):
        shown.evaluate(DRAW_LIVE, [controls.TokenText._esm, state | {"card": content, "hovered": step}])
    shown.add_style_tag(content=controls.TokenText._css)
    still, live = shown.locator(".nucleoscope-strip .ns-card"), shown.locator(".nx .ns-card")
    text = shown.locator(".nucleoscope-strip .ns-text")
    text.focus()
    shown.keyboard.press("Home")
    for step in range(len(contents)):
        assert still.evaluate(READ_CARD) == live.nth(step).evaluate(READ_CARD)
        shown.keyboard.press("ArrowRight")
    tint = "spans => spans.map((span) => getComputedStyle(span).backgroundColor)"
    drawn = shown.locator(".nx").first.locator(".nx-token").evaluate_all(tint)
    spans = text.locator(":scope > span:not([data-n])")
    assert set(spans.evaluate_all(tint)) <= set(drawn)
    assert len(set(drawn)) > 2
    legend = shown.locator(".nucleoscope-strip .ns-legend").inner_text()
    assert shown.locator(".nx .ns-legend").first.inner_text().replace("\n", "").endswith(legend.replace("\n", ""))
    shown.close()


@pytest.fixture
def drawn(browser):
    """A function that draws a live text without a kernel in a page of some width; gives the page."""
    pages = []

    def draw(width: int = 900, dark: bool = False, **state):
        shown = browser.new_page(viewport={"width": width, "height": 900})
        pages.append(shown)
        theme = ' data-jp-theme-light="false"' if dark else ""
        shown.set_content(f"<!doctype html><body{theme}></body>")
        shown.add_style_tag(content=controls.TokenText._css)
        base = {"pieces": [], "scale": {}, "marked": [], "prompt": "", "status": "", "failed": False, "hovered": -1}
        base |= {"earlier": {}, "trail": [], "place": 0, "busy": False, "tab": "", "card": {}}
        shown.evaluate(DRAW_LIVE, [controls.TokenText._esm, base | state])
        return shown

    yield draw
    for shown in pages:
        shown.close()


def test_a_page_without_a_text_has_neither_an_empty_box_nor_a_legend(drawn):
    scale = cards.build_scale("entropy", np.array([]), np.array([]))
    shown = drawn(card={"note": controls.NO_CARD}, scale=scale)
    assert not shown.locator(".nx-text").is_visible()
    assert shown.locator(".ns-legend").inner_text() == ""
    assert shown.locator(".ns-card").inner_text() == controls.NO_CARD
    assert drawn(prompt="a").locator(".nx-text").is_visible()
    assert drawn(pieces=["a"]).locator(".nx-text").is_visible()


@pytest.mark.parametrize(
    ("name", "values", "k", "expected"),
    [
        ("entropy", [0, 0, 0], [1, 1, 1], "0 for every token"),
        ("entropy", [2.5], [3], "2.50"),
        ("k", [1, 1], [1, 1], "1 for every token (logarithmic scale)"),
        ("cosine", [math.nan, math.nan], [1, 1], "(dotted: only one candidate)"),
        ("entropy", [0, 1], [1, 2], "0 0.990 or more"),
    ],
)
def test_a_legend_has_a_scale_only_where_values_differ(drawn, name, values, k, expected):
    scale = cards.build_scale(name, np.array(values, float), np.array(k))
    legend = drawn(pieces=["a"] * len(k), scale=scale).locator(".ns-legend")
    assert " ".join(legend.inner_text().split()) == f"{quantities.find_title(name)} {expected}"
    assert legend.locator(".ns-ramp").count() == ("or more" in expected)


def test_a_narrow_card_has_all_columns_within_its_width(drawn):
    _, _, contents = write_and_measure()
    content = max(contents, key=lambda content: len(content["tokens"][0][1]))
    for width in (240, 390, 900):
        shown = drawn(width, card=content | {"number": 0})
        table = shown.locator(".ns-compared")
        assert table.evaluate("t => t.scrollWidth <= t.clientWidth"), width
        right = table.bounding_box()["x"] + table.bounding_box()["width"]
        for part in (
            *table.locator(".ns-cells i").all(),
            table.get_by_text("itself"),
            table.get_by_text("those above"),
        ):
            box = part.bounding_box()
            assert box["x"] + box["width"] <= right + 1, width


def test_points_are_light_on_a_dark_page_and_buttons_of_the_trail_have_no_odd_key(drawn):
    fill = "p => getComputedStyle(p).fill"
    for dark, expected in ((False, "rgb(0, 114, 178)"), (True, "rgb(86, 180, 233)")):
        shown = drawn(dark=dark, trail=["first text", "a at token 3"], place=1)
        shown.evaluate(
            """() => document.body.insertAdjacentHTML("beforeend", '<div class="nx-figure"><svg><path class="point" '
            + 'style="opacity: 0.7; fill: rgb(0, 114, 178);"/></svg></div>')"""
        )
        assert shown.locator(".point").evaluate(fill) == expected
        assert shown.locator(".nx-trail button").count() == 3
        assert "object" not in shown.locator(".nx-trail").evaluate("t => t.outerHTML")


@pytest.fixture(scope="module")
def page(browser, tiny_model, tmp_path_factory):
    """The notebook in JupyterLab, all cells run; the test fails where the page asks another machine for anything."""
    folder, state = tmp_path_factory.mktemp("lab"), tmp_path_factory.mktemp("state")
    (folder / "notebooks").mkdir()
    measure_run(tiny_model, folder)
    source = (ROOT / "notebooks/explore.py").read_text()
    for name, value in (("model_name", tiny_model), ("max_tokens", 40), ("prompt_format", "raw")):
        source, count = re.subn(rf"^{name} = .*$", f"{name} = {value!r}", source, flags=re.MULTILINE)
        assert count == 1
    (folder / "notebooks/explore.py").write_text(source)
    with lab.serve(folder, state) as address:
        shown = browser.new_page(viewport={"width": 1300, "height": 1300})
        shown.set_default_timeout(120_000)
        asked: list[str] = []
        shown.on("request", lambda request: asked.append(request.url))
        shown.goto(address.format("notebooks/explore.py"))
        run_all(shown)
        yield shown
        outside = [url for url in asked if not re.match(r"(https?|wss?)://127\.0\.0\.1[:/]|data:|blob:", url)]
        shown.close()
    assert outside == []


def run_all(page) -> None:
    """Runs all cells, and waits for a fresh explorer."""
    page.wait_for_selector(".jp-Notebook .jp-Cell")
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for()  # before that, JupyterLab would ask for a kernel
    page.locator(".lm-MenuBar-itemLabel", has_text="Run").first.click()
    page.locator(".lm-Menu-itemLabel", has_text="Run All Cells").first.click()
    page.wait_for_selector(".nx .ns-card")
    page.wait_for_function("!document.querySelector('.nx-token')")
    assert not page.locator(".nx-text").is_visible()  # an empty box
    page.locator(".nx .ns-card").scroll_into_view_if_needed()


# Of points that are not selected while others are, plotly draws a fifth of the opacity.
OPAQUE = """[...document.querySelectorAll('.js-plotly-plot .scatterlayer .trace:first-child .point')].every(
  (point) => getComputedStyle(point).opacity === "0.7")"""


def write_prompt(page, prompt: str) -> None:
    page.evaluate("for (const plot of document.querySelectorAll('.js-plotly-plot')) plot.dataset.kept = 'yes'")
    page.locator(".widget-textarea textarea").first.fill(prompt)
    page.locator(".jp-OutputArea button.jupyter-button", has_text="Run").click()
    page.wait_for_function("p => document.querySelector('.nx-prompt').textContent === p", arg=prompt)
    page.wait_for_function("/tokens? in/.test(document.querySelector('.nx-status').textContent)")
    page.wait_for_function("document.querySelectorAll('.js-plotly-plot').length === 2")
    page.wait_for_function("document.querySelector('.js-plotly-plot').data?.[0]?.x?.length > 5")
    page.wait_for_function("document.querySelectorAll('.js-plotly-plot .select-outline').length === 0")
    page.wait_for_function("document.querySelector('.js-plotly-plot').data[0].selectedpoints === undefined")
    page.wait_for_function(OPAQUE)
    assert page.locator("[data-kept]").count() in (0, 2)


def wait_for_matrix(page, step: int) -> None:
    """Waits for the heading of a token's candidates: what it says is in the page, and wrapped."""
    page.locator(".widget-html p", has_text=re.compile(rf"(of token|^Token) {step}\b")).wait_for()


# In each frame: whether a figure that can be seen is wider than its place.
WATCH = """() => {
  const isTooWide = (plot) => plot.getBoundingClientRect().width > plot.closest(".nx-figure").clientWidth + 1;
  window.wide = [];
  const look = () => {
    for (const plot of document.querySelectorAll(".nx-figure .main-svg")) window.wide.push(isTooWide(plot));
    requestAnimationFrame(look);
  };
  look();
}"""


def test_the_notebook_in_jupyterlab(page):
    page.evaluate(WATCH)
    write_prompt(page, f"the cat {EVIL}")
    seen = page.evaluate("window.wide")
    assert seen
    assert not any(seen)
    tokens = page.locator(".nx-token")
    assert tokens.count() > 5
    assert page.locator(".nx-text script, .nx-text img").count() == 0
    assert "rgb" in tokens.nth(1).evaluate("t => getComputedStyle(t).backgroundColor")

    size = page.viewport_size
    for width in (size["width"] - 300, size["width"]):  # figures follow their place
        page.set_viewport_size(size | {"width": width})
        page.wait_for_function(
            "[...document.querySelectorAll('.js-plotly-plot')].every((plot) => Math.abs("
            "plot.querySelector('.main-svg').getBoundingClientRect().width - plot.parentElement.clientWidth) <= 1)"
        )

    tokens.nth(4).hover()
    page.wait_for_function("/token 4 /.test(document.querySelector('.ns-head')?.textContent)")
    assert page.locator(".ns-list bdi").count() >= 1
    page.wait_for_function("document.querySelector('.js-plotly-plot').data[1].x?.length === 1")

    tokens.nth(5).click()
    wait_for_matrix(page, 5)

    page.keyboard.press("ArrowRight")
    page.wait_for_function("/token 6 /.test(document.querySelector('.ns-head').textContent)")
    page.keyboard.press("Enter")
    wait_for_matrix(page, 6)

    page.locator(".js-plotly-plot").first.scroll_into_view_if_needed()
    area = page.locator(".js-plotly-plot .nsewdrag").first.bounding_box()
    page.mouse.move(area["x"] + 2, area["y"] + 2)
    page.mouse.down()
    for share in (0.5, 1):
        page.mouse.move(area["x"] + share * area["width"] - 2, area["y"] + share * area["height"] - 2, steps=4)
    page.mouse.up()
    page.wait_for_function(
        "document.querySelectorAll('.nx-marked').length === document.querySelector('.js-plotly-plot').data[0].x.length"
    )


def test_a_point_of_the_scatter_is_clicked_as_its_token_is(page):
    write_prompt(page, "the cat and the other")
    step = page.evaluate("document.querySelector('.js-plotly-plot').data[0].customdata[3]")
    plot = page.locator(".js-plotly-plot").first
    plot.locator(".scatterlayer .point").nth(3).hover(force=True)  # plotly's own layer for the mouse lies above it
    plot.locator(".hovertext").first.wait_for()
    page.mouse.down()
    page.mouse.up()
    page.wait_for_function("n => document.querySelector('.nx-clicked')?.dataset.step === String(n)", arg=step)
    page.wait_for_function("n => document.querySelector('.ns-head')?.textContent.includes(`token ${n} of `)", arg=step)


def test_a_text_pasted_into_the_notebook_is_measured(page):
    area = page.locator(".widget-textarea textarea")
    assert not area.nth(1).is_visible()
    page.get_by_text("measure a text", exact=True).click()
    area.nth(0).fill("the cat")
    given = " <b>and</b> né"
    area.nth(1).fill(given)
    page.locator(".jp-OutputArea button.jupyter-button", has_text="Run").click()
    page.wait_for_function("t => document.querySelector('.nx-tokens').textContent === t", arg=given)
    page.wait_for_function("/tokens in/.test(document.querySelector('.nx-status').textContent)")
    page.locator(".nx-token").nth(2).hover()
    page.wait_for_function("document.querySelector('.ns-card').innerText.includes('in the text: ')")
    page.wait_for_function(
        "document.querySelector('.ns-card').innerText.includes('Cosine similarity of each candidate')"
    )
    page.get_by_text("generate a text", exact=True).click()
    area.nth(1).wait_for(state="hidden")


def test_a_candidate_is_clicked_in_jupyterlab_and_two_texts_are_side_by_side(page):
    write_prompt(page, "the cat and the other")
    for step in range(4, 30):
        page.locator(".nx-token").nth(step).click()
        page.wait_for_function(
            "n => document.querySelector('.ns-head').textContent.includes(`token ${n} of `)", arg=step
        )
        if page.locator(".ns-pick").count() > 1:
            break
    page.get_by_role("tab", name="what follows").click()
    page.locator(".ns-following .ns-next").first.wait_for()
    page.get_by_role("tab", name="similar in context").click()
    page.locator(".ns-context .ns-cells i").first.wait_for()
    assert re.fullmatch(r"what \d\.\d{3} \+ how \d\.\d{3} = \d\.\d{3} nats", page.locator(".ns-split").inner_text())
    assert page.get_by_role("group", name=re.compile("^Group of")).count() >= 1
    assert "--context" in page.get_by_role("tabpanel", name="similar in context").inner_text()
    page.get_by_role("tab", name="candidates").click()
    before = page.locator(".nx-tokens").inner_text()
    candidate = page.locator(".ns-pick").first
    word = candidate.inner_text()
    candidate.focus()
    page.keyboard.press("Enter")
    page.locator(".nx-row").first.wait_for()
    page.wait_for_function("/more tokens? in/.test(document.querySelector('.nx-status').textContent)")
    assert page.locator(".nx-names bdi").all_inner_texts() == ["first text", f"{word} at token {step}"]
    earlier, now = page.locator(".nx-row").first.locator(":scope > div").all()
    assert earlier.bounding_box()["y"] == pytest.approx(now.bounding_box()["y"], abs=1)
    assert earlier.bounding_box()["x"] < now.bounding_box()["x"]
    assert now.locator(".nx-token").first.get_attribute("data-step") == str(step)
    for cell in (earlier, now):  # both are tinted
        assert "rgb" in cell.locator(".nx-token").first.evaluate("t => getComputedStyle(t).backgroundColor")
    page.locator(".nx-earlier .nx-token").first.hover()
    page.wait_for_function("/drawn: /.test(document.querySelector('.ns-card').innerText)")
    page.get_by_role("button", name="← back").click()
    page.wait_for_function("!document.querySelector('.nx-row')")
    page.wait_for_function("t => document.querySelector('.nx-tokens').innerText === t", arg=before)


def test_a_setting_that_is_refused_says_so_beside_its_field_in_jupyterlab(page):
    field = page.get_by_label("top_p")
    field.fill("1.5")
    field.press("Enter")
    problem = page.locator(".nx-field p", has_text="top_p is 1.5: it must be a number in (0, 1]")
    problem.wait_for()
    assert field.input_value() == "1.5"
    assert problem.get_attribute("id") == field.get_attribute("aria-describedby")
    field.fill("0.9")
    field.press("Enter")
    problem.wait_for(state="detached")


def test_a_prompt_of_a_run_is_picked_from_the_menu_and_drawn(page):  # it changes the settings for those after it
    page.locator(".widget-dropdown", has_text="run").locator("select").first.select_option(label="tiny-llama on lines")
    items = page.locator(".ns-prompts button")
    items.first.wait_for()
    assert items.count() == 3
    page.locator(".ns-order input").fill("CAT")
    page.wait_for_function("document.querySelectorAll('.ns-prompts li').length === 1")
    assert page.locator(".ns-prompts img, .ns-prompts script").count() == 0
    items.first.click()
    page.wait_for_function("document.querySelector('.nx-status').textContent.includes('from the files of the run')")
    page.wait_for_function("document.querySelectorAll('.nx-token').length === 12")
    page.locator(".nx-token").nth(3).hover()
    page.wait_for_function("/token 3 /.test(document.querySelector('.ns-head')?.textContent)")
    assert page.locator(".ns-prompts [aria-current]").count() == 1


def test_the_notebook_run_again_starts_clean_and_works(page):
    run_all(page)
    page.wait_for_function("document.querySelectorAll('.nx-text').length === 1 && !document.querySelector('.nx-token')")
    write_prompt(page, "the other")
    page.locator(".nx-token").nth(2).hover()
    page.wait_for_function("/token 2 /.test(document.querySelector('.ns-head')?.textContent)")
    assert page.locator(".js-plotly-plot").count() == 2
