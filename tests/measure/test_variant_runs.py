"""Variants of the tokens of a run: measured beside what is sampled, kept by interruptions, saved in one file."""

import copy
import inspect

import pytest
import torch
from test_journal import MAX_TOKENS, NAMES, OPTIONS, TEXTS, Draws, assert_same, end_some

import tiny
from nucleoscope import variants
from nucleoscope.measure import cosine, generation, sampling, scoring
from nucleoscope.measure.encoding import TokenRows
from nucleoscope.measure.runs import complete_run
from nucleoscope.measure.variants import create_variants
from nucleoscope.quantities import list_recorded
from nucleoscope.settings import Settings
from nucleoscope.store import results, run_folder
from nucleoscope.store.variants import VARIANTS, load

SOME = "top_p_0.5,top_p_0.9,top_p_0.99,top_k_5,typical_0.9,raw,usage_centred,all_but_top_3"
VALUES = [*variants.VALUES, "k"]


@pytest.fixture
def draws(monkeypatch):
    return Draws(monkeypatch)


def complete(folder, model, texts=TEXTS, continuations=None, chosen=SOME, **options):
    """A run to its end: its records, and its variants as a table."""
    run = run_folder.RunFolder(folder, NAMES | {"variants": chosen})
    with run:
        options = OPTIONS | {"variants": chosen} | options
        complete_run(run, model, tiny.create_tokenizer(), texts, continuations, **options)
    assert not run.batches.exists()
    return results.load(folder / "measurements.pt"), load(folder)


def kill(draws, folder, model, step, pace, chosen=SOME):
    """A run that is killed right after it has drawn a step; each takes ``pace`` seconds."""
    draws.fatal, draws.pace = step, pace
    with pytest.raises(tiny.Stopped), run_folder.RunFolder(folder, NAMES | {"variants": chosen}) as run:
        complete_run(run, model, tiny.create_tokenizer(), TEXTS, **OPTIONS | {"variants": chosen})


def assert_close(found, expected):
    for name in ("prompt", "step", "candidates", "geometry", "k"):
        assert found[name].tolist() == expected[name].tolist()
    for name in variants.VALUES:
        assert found[name].tolist() == pytest.approx(expected[name].tolist(), abs=1e-4, nan_ok=True), name


def test_the_variant_that_is_sampled_from_has_the_numbers_of_the_table_of_tokens(tmp_path):
    records, _ = complete(tmp_path, end_some(tiny.create_model()), chosen="default", batch_size=2)
    table = load(tmp_path, candidates="top_p_0.9", geometry="raw")
    tokens = results.load_run(tmp_path / "measurements.pt", "", "")
    assert len(table) == len(tokens) == sum(len(record["tokens"]) for record in records)
    for name in ("prompt", "step", "k"):
        assert table[name].tolist() == tokens[name].tolist()
    for name in ("entropy", "cosine", "weighted_cosine"):
        assert table[name].tolist() == pytest.approx(tokens[name].tolist(), abs=2e-5, nan_ok=True)
    masses = [float(probs.sum()) for record in records for probs in record["top_p_probs"]]
    assert table["mass"].tolist() == pytest.approx(masses, rel=1e-6)


def test_every_token_has_every_variant(tmp_path):
    records, table = complete(tmp_path, end_some(tiny.create_model()), chosen="default")
    selection = variants.parse("default")
    assert list(table["candidates"].cat.categories) == [each.name for each in selection.sets]
    assert list(table["geometry"].cat.categories) == [each.name for each in selection.geometries]  # not tied
    tokens = sum(len(record["tokens"]) for record in records)
    assert tokens > 0
    assert len(table) == tokens * len(selection.sets) * len(selection.geometries)
    assert not table.duplicated(["prompt", "step", "candidates", "geometry"]).any()
    assert not table[["k", "mass", "entropy"]].isna().any(axis=None)
    assert (table["cosine"].isna() == (table["k"] == 1)).all()
    small = table["k"] <= 16
    assert table.loc[small & (table["candidates"] != "typical_0.9"), "similarity_entropy"].notna().all()


def test_with_one_matrix_for_input_and_output_there_is_no_output_geometry(tmp_path):
    _, table = complete(tmp_path, tiny.create_model(tie_word_embeddings=True), chosen="top_k_5")
    assert "output" not in table["geometry"].cat.categories
    assert results.load_info(tmp_path)["variants"]["geometry"] == list(table["geometry"].cat.categories)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sampling_is_the_same_to_the_bit_with_variants_and_without(tmp_path, dtype):
    model = end_some(tiny.create_model().to(dtype))
    complete(tmp_path / "with", model, chosen="default")
    run = run_folder.RunFolder(tmp_path / "without", NAMES)
    with run:
        complete_run(run, model, tiny.create_tokenizer(), TEXTS, **OPTIONS)
    contents = [(tmp_path / name / "measurements.pt").read_bytes() for name in ("with", "without")]
    assert contents[0] == contents[1]
    assert not (tmp_path / "without" / VARIANTS).exists()
    assert "variants" not in results.load_info(tmp_path / "without")


def test_run_json_says_what_was_measured_and_what_usage_is(tmp_path):
    complete(tmp_path / "written", tiny.create_model())
    complete(tmp_path / "read", tiny.create_model(), ["the cat", "a"], [" sat on", " road"])
    written, read = (results.load_info(tmp_path / name)["variants"] for name in ("written", "read"))
    assert written["candidates"] == ["top_p_0.5", "top_p_0.9", "top_p_0.99", "top_k_5", "typical_0.9"]
    assert written["geometry"] == ["raw", "usage_centred", "all_but_top_3"]
    tokenizer = tiny.create_tokenizer(bos=False)
    tokens = [token for text in TEXTS for token in tokenizer(text)["input_ids"]]
    counted = {"tokens": len(tokens), "different": len(set(tokens))}
    assert written["usage_centred"] == {"weights": "tokens of the prompts"} | counted
    assert read["usage_centred"]["weights"] == "tokens of the prompts and texts"


@pytest.mark.parametrize(("dtype", "pace"), [(torch.float32, 6), (torch.bfloat16, 2)])
def test_a_killed_run_has_the_variants_of_one_that_was_not(tmp_path, draws, dtype, pace):
    """In bfloat16, every bit; in float32, texts that are read at once are rounded otherwise."""
    model = end_some(tiny.create_model().to(dtype))
    records, expected = complete(tmp_path / "straight", model)
    for step in (0, 3, 5, MAX_TOKENS - 1):
        folder = tmp_path / str(step)
        kill(draws, folder, model, step, pace)
        assert len(list(folder.glob("batches/*.steps"))) == step // (1 if pace == 6 else 3)
        again, found = complete(folder, model)
        assert_same(again, records, exact=dtype == torch.bfloat16)
        if dtype == torch.bfloat16:
            assert found.equals(expected)
        else:
            assert_close(found, expected)


@pytest.mark.parametrize("mode", ["generate", "score"])
@pytest.mark.parametrize("later", [2, 4])
def test_a_run_that_was_stopped_between_batches_ends_with_the_same_variants(tmp_path, mode, later):
    model = tiny.create_model().double()
    continuations = None if mode == "generate" else [text[::-1] for text in TEXTS]
    _, expected = complete(tmp_path / "straight", model, TEXTS, continuations, batch_size=2)
    run = run_folder.RunFolder(tmp_path / "stopped", NAMES | {"variants": SOME})
    with tiny.stop_after(run, 1), run:
        options = OPTIONS | {"variants": SOME, "batch_size": 2}
        complete_run(run, model, tiny.create_tokenizer(), TEXTS, continuations, **options)
    assert not run.finished
    assert_close(complete(tmp_path / "stopped", model, TEXTS, continuations, batch_size=later)[1], expected)


def test_parts_and_batches_with_other_variants_are_measured_again(tmp_path, draws, capsys):
    """As after an update that adds a geometry to the default."""
    model = end_some(tiny.create_model())
    _, expected = complete(tmp_path / "straight", model)
    for name, chosen in (("none", "none"), ("other", "top_p_0.9,raw")):
        kill(draws, tmp_path / name, model, 5, 6, chosen)
        (tmp_path / name / "batches/settings.json").unlink()
        before = list((tmp_path / name / "batches").iterdir())
        assert before
        run = run_folder.RunFolder(tmp_path / name, NAMES | {"variants": SOME})
        run._prepare = lambda: None  # which would remove what has other settings
        with run:
            complete_run(run, model, tiny.create_tokenizer(), TEXTS, **OPTIONS | {"variants": SOME})
        assert "discarded 1 batch with different quantities, to be measured again" in capsys.readouterr().out
        assert load(tmp_path / name).equals(expected)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_texts_that_are_read_have_the_variants_they_had_when_they_were_written(batch_size):
    model, tokenizer = tiny.create_model(), tiny.create_tokenizer()
    inputs = generation.encode(tokenizer, TEXTS)
    measured = create_variants(model, inputs.ids, "default")
    options = {"max_tokens": 9, "progress": False, "batch_size": batch_size}
    written = list(generation.measure(model, tokenizer, TEXTS, measured_variants=measured, **options))
    drawn = {i: r["tokens"].tolist() for batch in written for i, r in zip(batch.indices, batch.records, strict=True)}
    rows, starts = TokenRows(), []
    for place, ids in enumerate(inputs.ids):
        rows.append(ids + drawn[place])
        starts.append(len(ids))
    texts = scoring.Texts(rows, starts=starts)
    read = scoring.measure(model, tokenizer, TEXTS, TEXTS, inputs=texts, measured_variants=measured, **options)
    one, other = (
        {i: each for batch in batches for i, each in zip(batch.indices, batch.variants, strict=True)}
        for batches in (written, list(read))
    )
    assert one.keys() == other.keys() == set(range(len(TEXTS)))
    for place in one:
        assert one[place].shape == (len(drawn[place]), len(measured.layout.candidates), measured.layout.width)
        assert torch.allclose(one[place], other[place], atol=1e-4, equal_nan=True)


def test_without_variants_to_measure_a_batch_has_none():
    (batch,) = generation.measure(tiny.create_model(), tiny.create_tokenizer(), ["the"], max_tokens=3, progress=False)
    assert batch.variants == []


def test_rows_that_have_ended_may_have_any_logits():
    model = tiny.create_model()
    measured = create_variants(model, [[1, 2, 3]], SOME)
    embedding = model.get_input_embeddings().weight.detach()
    settings, uniforms = Settings(), torch.full((2, 3), 0.5, dtype=torch.float64)
    logits = torch.randn(2, tiny.VOCAB, generator=torch.Generator().manual_seed(0))
    logits[0, 7] = 100  # which ends the text
    ruined = logits.clone()
    ruined[0] = torch.nan
    found = []
    directions, quantities = cosine.find_directions(embedding), list_recorded()
    for second in (logits, ruined):
        sampler = sampling.Sampler(directions, settings, uniforms, {7}, quantities, measured)
        for given in (logits, second):
            sampler.draw(given, [0, 1])
        found.append(sampler.collect_variants(2))
    assert [len(each) for each in found[0]] == [0, 2]
    for one, other in zip(*found, strict=True):
        assert torch.equal(one.nan_to_num(9), other.nan_to_num(9))


def test_a_batch_that_does_not_fit_in_memory_has_the_variants_of_its_halves(tmp_path):
    model = tiny.create_model()
    _, expected = complete(tmp_path / "straight", model)
    limited, original = copy.copy(model), model.forward

    def forward(*args, **kwargs):
        if len(kwargs["input_ids"]) > 3:
            raise torch.OutOfMemoryError
        return original(*args, **kwargs)

    forward.__signature__ = inspect.signature(original)
    limited.forward = forward
    _, found = complete(tmp_path / "halved", limited, skip_check=True)
    assert results.load_info(tmp_path / "halved")["batches"] == [3, 3]
    assert_close(found, expected)


@pytest.mark.parametrize(("setting", "read"), [("raw,top_k_5", False), ("output,top_k_5", True), ("default", True)])
def test_the_output_layer_is_read_only_if_it_is_compared(monkeypatch, setting, read):
    """Its rows may be a copy, which takes as much memory as the layer."""
    asked = []
    monkeypatch.setattr("nucleoscope.measure.variants.find_output_matrix", asked.append)
    model = tiny.create_model(tie_word_embeddings=False)
    create_variants(model, [[1, 2, 3]], setting)
    assert asked == [model] * read
