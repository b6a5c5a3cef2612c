"""nulls.parquet and vocabulary.parquet: their rows, what is said if they are missing, and the classes of tokens."""

import shutil

import pytest
import torch

import tiny
from messages import assert_one_line
from nucleoscope.measure.runs import complete_run
from nucleoscope.store import nulls, results, run_folder, vocabulary

TEXTS = ["the cat sat", "a", "on the mat, and then"]


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nulls") / "run"
    with run_folder.RunFolder(folder, {}) as run:
        complete_run(
            run, tiny.create_model(), tiny.create_tokenizer(), TEXTS, max_tokens=6, variants="default", progress=False
        )
    return folder


@pytest.fixture
def folder(measured, tmp_path):
    return shutil.copytree(measured, tmp_path / "run")


def test_rows_and_columns_can_be_selected(folder):
    whole = nulls.load(folder)
    part = nulls.load(folder, ["k", "cosine"], "top_p_0.9", ["raw", "centred"], {"random", "other_step"})
    kept = whole[(whole["candidates"] == "top_p_0.9") & (whole["geometry"] == "raw")]
    kept = kept[kept["null"].isin(["random", "other_step"])]
    assert list(part) == ["k", "cosine"]
    assert 0 < len(part) == len(kept) < len(whole)
    assert part["k"].tolist() == kept["k"].tolist()
    words = vocabulary.load(folder, ["id", "class"], "special")
    assert words["id"].tolist() == [tiny.BOS, tiny.EOS, tiny.PAD]


@pytest.mark.parametrize(("module", "name"), [(nulls, nulls.NULLS), (vocabulary, vocabulary.VOCABULARY)])
def test_a_file_that_is_missing_damaged_or_of_other_measurements_is_named_in_one_line(folder, module, name):
    content = (folder / name).read_bytes()
    (folder / name).unlink()
    with pytest.raises(ValueError, match=f"has no {name}: ") as error:
        module.load(folder)
    assert str(folder) in assert_one_line(str(error.value))
    for damaged in (content[: len(content) // 2], b"", b"PAR1" + bytes(50) + b"PAR1", change_a_page(content)):
        (folder / name).write_bytes(damaged)
        with pytest.raises(ValueError, match=r"is damaged \(.*\): repeat the run's command with --overwrite$") as error:
            module.load(folder)
        assert str(folder / name) in assert_one_line(str(error.value))
    (folder / name).write_bytes(content)
    module.load(folder)
    records = results.load(folder / results.MEASUREMENTS)
    torch.save(records[:2], folder / results.MEASUREMENTS)
    with pytest.raises(ValueError, match="belongs to other measurements") as error:
        module.load(folder)
    assert_one_line(str(error.value))


def change_a_page(content):
    """The same file with one bit changed where its first page has values."""
    changed = bytearray(content)
    changed[len(content) // 4] ^= 1
    return bytes(changed)


def test_a_folder_of_that_name_is_refused_before_anything_is_measured(tmp_path):
    for name in (nulls.NULLS, vocabulary.VOCABULARY):
        (tmp_path / name / name).mkdir(parents=True)
        with pytest.raises(IsADirectoryError, match=name):
            run_folder.check(tmp_path / name)


@pytest.mark.parametrize("name", [nulls.NULLS, vocabulary.VOCABULARY])
def test_results_without_a_file_of_the_second_look_are_measured_again_with_overwrite_alone(folder, name):
    assert run_folder.RunFolder(folder, {}, overwrite=True).finished
    (folder / name).write_bytes((folder / name).read_bytes()[:-9])
    assert run_folder.RunFolder(folder, {}).finished
    assert not run_folder.RunFolder(folder, {}, overwrite=True).finished
    (folder / name).unlink()
    assert not run_folder.RunFolder(folder, {}, overwrite=True).finished


def test_tokens_of_some_prompts_are_read_from_the_batches_of_a_run(tmp_path):
    texts = [f"number {n}" for n in range(7)]
    run = run_folder.RunFolder(tmp_path, {})
    with tiny.stop_after(run, 3), run:
        complete_run(
            run, tiny.create_model(), tiny.create_tokenizer(), texts, max_tokens=5, batch_size=2, progress=False
        )
    done = sorted(index for batch in run.list_batches() for index in batch["indices"])
    assert len(done) == 6
    with run_folder.RunFolder(tmp_path, {}) as again:
        found = again.load_tokens([done[4], done[0], done[1]])
        assert set(found) == {done[4], done[0], done[1]}
        with pytest.raises(ValueError, match="is missing from") as error:
            again.load_tokens(range(7))
        assert_one_line(str(error.value))
        complete_run(
            again, tiny.create_model(), tiny.create_tokenizer(), texts, max_tokens=5, batch_size=2, progress=False
        )
    records = results.load(tmp_path / results.MEASUREMENTS)
    assert all(records[prompt]["tokens"].tolist() == tokens for prompt, tokens in found.items())


def test_a_damaged_batch_is_removed_when_its_tokens_are_asked_for(tmp_path):
    run = run_folder.RunFolder(tmp_path, {})
    with tiny.stop_after(run, 1), run:
        complete_run(
            run, tiny.create_model(), tiny.create_tokenizer(), TEXTS, max_tokens=5, batch_size=2, progress=False
        )
    (path,) = run.batches.glob("*.pt")
    with run_folder.RunFolder(tmp_path, {}) as again:
        (batch,) = again.list_batches()
        content = bytearray(path.read_bytes())
        place = content.find(b"entropies")  # within a piece of the pickle
        content[place] ^= 1
        path.write_bytes(content)
        with pytest.raises(ValueError, match="is damaged, and was removed: run the same command again"):
            again.load_tokens(batch["indices"])
        assert again.list_batches() == []


CLASSIFIED = {
    "word_start": [" the", "\tthe", " don't", " 12th", " über", "\u00a0word", " (a", " x1"],
    "word_piece": ["ing", "the", "'s", "-a", "b2", "æ", "(the"],
    "digit": ["7", " 1984", "½", "٣", " 3.14", "1,000", "²", "+1"],
    "punctuation": [".", " (", "...", "+", " €", '."', "—", "🙂", "\n)", "_"],
    "whitespace": [" ", "\n", "\n\n  ", "\t", "\u3000", "\x00", "\r\n"],
    "capitalised": ["The", " The", "A", " ÉTÉ", "'S", " iPhone"[2:], " (In", "Ǆ", "3D"],
    "other_script": ["п", " привет", "中", "ा", "か", " α", "\ufffd", " \ufffd", "Ünи", "한", "א"],
    "special": [""],
}


@pytest.mark.parametrize(("kind", "text"), [(kind, text) for kind, texts in CLASSIFIED.items() for text in texts])
def test_each_token_has_the_first_class_that_it_belongs_to(kind, text):
    assert vocabulary.classify_token(text, special=False) == kind
    assert vocabulary.classify_token(text, special=True) == "special"


def test_every_class_is_documented_and_classified():
    assert set(CLASSIFIED) == set(vocabulary.CLASSES)
    assert all(f"* {name}: " in vocabulary.classify_token.__doc__ for name in vocabulary.CLASSES)
