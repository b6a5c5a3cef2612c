"""The example on the front page, drawn from the files of small runs."""

import shutil

import torch
from test_twelve import read_payload, write_run

import tiny
from nucleoscope.store import results
from nucleoscope.views import examples, front
from nucleoscope.views.token_text import escape_name


def create_results(folder, mode="generate", run="tiny"):
    name = tiny.save(folder / "tiny", tiny.create_model(), tiny.create_tokenizer(bos=False))
    records = [
        tiny.create_record("the rain in Spain. It stays in the plain. Why?", seed=seed, most=9) for seed in range(9)
    ]
    write_run(folder / "results/a" / run, records, {"model_name": name, "mode": mode})
    return folder / "results"


def test_a_typical_sentence_is_shown_with_its_card_open(tmp_path):
    folder = create_results(tmp_path)
    tables = results.load_readable(folder)
    ((_, token),) = examples.list_typical({key: tables[key] for key in tables})
    said, shown = front.show_sentence(folder, tables)
    assert said.startswith("A sentence written by the model (tiny on a), tinted by entropy")
    data = read_payload(shown)
    assert data["first"] + data["shown"] == token["step"]
    record = results.load_records(folder / "a/tiny", [token["prompt"]])[token["prompt"]]
    assert data["total"] == len(record["tokens"]) > len(data["tokens"])


def test_a_sentence_without_an_end_is_said_to_be_the_last_of_its_text(tmp_path):
    folder = create_results(tmp_path)
    said_of_last = " The measured text ends with this sentence. The card"
    assert said_of_last not in front.show_sentence(folder, results.load_readable(folder))[0]
    records = [tiny.create_record("rain. In Spain it rains", seed=seed, most=9) for seed in range(9)]
    torch.save(records, folder / "a/tiny" / results.MEASUREMENTS)
    said, _ = front.show_sentence(folder, results.load_readable(folder))
    assert said_of_last in said
    assert "a typical choice: of all " in said


def test_a_text_that_was_read_is_not_called_written(tmp_path):
    folder = create_results(tmp_path, "score")
    assert front.show_sentence(folder, results.load_readable(folder))[0].startswith(
        "A sentence read by the model (tiny"
    )


def test_a_run_whose_folder_is_named_after_its_settings_is_shown_too(tmp_path):
    folder = create_results(tmp_path, run="tiny@top_p=0.9")
    said, shown = front.show_sentence(folder, results.load_readable(folder))
    assert said.startswith(f"A sentence written by the model ({escape_name('tiny on a, top_p 0.9')}), tinted")
    assert shown


def test_without_a_tokenizer_or_records_a_sentence_says_which_is_missing(tmp_path):
    folder = create_results(tmp_path)
    tables = results.load_readable(folder)
    shutil.rmtree(tmp_path / "tiny")
    said, shown = front.show_sentence(folder, tables)
    assert said.startswith("No text can be shown here: tiny on a has a tokenizer that is not on this machine; load ")
    assert not shown
    (folder / "a/tiny" / results.MEASUREMENTS).write_bytes(b"torn")
    said, shown = front.show_sentence(folder, tables)
    assert said.startswith(
        "No text can be shown here: tiny on a has settings or records that cannot be read here; move a damaged"
    )
    assert not shown


def test_without_a_typical_token_a_sentence_says_which_condition_fails(tmp_path):
    folder = create_results(tmp_path)
    records = [tiny.create_record("rain in", seed=seed, most=9) for seed in range(9)]
    torch.save(records, folder / "a/tiny" / results.MEASUREMENTS)
    tables = results.load_readable(folder)
    (table,) = (tables[key] for key in tables)
    assert table["k"].between(4, 8).any()
    assert table["step"].max() < examples.BEFORE
    assert front.show_sentence(folder, tables) == (
        "No text can be shown here: a token that is shown has at least 8 tokens of its text before it, and no token "
        "with 4 to 8 candidates has so much text before it; raise `max_tokens`, or measure longer texts.",
        "",
    )
    changes = {
        "no token has more than one candidate and both quantities; a higher `top_p` or `temperature` gives tokens an "
        "alternative": {"k": 1},
        "the files do not say which tokens the texts consist of; measure a model yourself": {"token": -1},
        "it would be about a token with 4 to 8 candidates, and no token has that many; raise `n_prompts` or "
        "`max_tokens`": {"k": 9},
    }
    for reason, change in changes.items():
        said, shown = front.show_sentence(folder, {("tiny", "a"): table.assign(**change)})
        assert said == f"No text can be shown here: {reason}."
        assert not shown
    said, _ = front.show_sentence(folder, {("tiny", "a"): table[:0]})
    assert said.endswith("both quantities; raise `n_prompts` or `max_tokens`.")
