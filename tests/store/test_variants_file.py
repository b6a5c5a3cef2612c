"""variants.parquet: streamed from the batches, read in part, and named in one line where it is missing or damaged."""

import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet

import tiny
from messages import assert_one_line
from nucleoscope import variants as selection
from nucleoscope.store import results, run_folder, variants
from nucleoscope.store.variants import VARIANTS, load
from nucleoscope.variants import Layout
from nucleoscope.workflow import grid, status

LAYOUT = Layout(["top_p_0.9", "top_k_5", "typical_0.9"], ["raw", "centred"])
SETTINGS = {"model_name": "tiny", "dataset_name": "cats", "variants": "top_p_0.9,top_k_5,typical_0.9,raw,centred"}
LENGTHS = [4, 0, 9, 1, 30, 2, 7, 5]


def draw(prompt: int, length: int) -> torch.Tensor:
    """Numbers of a prompt's tokens; a third of them is missing, as where k = 1."""
    generator = torch.Generator().manual_seed(prompt)
    values = torch.rand(length, len(LAYOUT.candidates), LAYOUT.width, generator=generator)
    values[..., 0] = torch.randint(1, 9, values.shape[:2], generator=generator)
    values[..., 3:][torch.rand(values[..., 3:].shape, generator=generator) < 0.3] = torch.nan
    return values


def create_record(prompt: int, length: int) -> dict:
    record = tiny.create_record("the cat sat on the mat and looked at all of it again and again " * 3, str(prompt))
    return {name: value if name == "prompt" else value[:length] for name, value in record.items()}


def measure(folder, sizes=(3, 3, 2), lengths=LENGTHS, settings=SETTINGS, layout=LAYOUT, **options):
    """A run, opened, whose batches are saved: prompts in another order than they are numbered."""
    run = run_folder.RunFolder(folder, settings, **options)
    run.start()
    order = list(np.random.default_rng(0).permutation(len(lengths)))
    for size in sizes:
        prompts, order = [int(prompt) for prompt in order[:size]], order[size:]
        records = [create_record(prompt, lengths[prompt]) for prompt in prompts]
        values = [draw(prompt, lengths[prompt]) for prompt in prompts] if layout else []
        run.save_batch(prompts, records, 1.0, (), "", values, layout)
    return run


def finish(folder, **options):
    run = measure(folder, **options)
    run.finish(len(options.get("lengths", LENGTHS)), {})
    return folder


def tabulate(lengths=LENGTHS):
    """The expected table, in the order of its keys."""
    rows = []
    for prompt, length in enumerate(lengths):
        for step, values in enumerate(draw(prompt, length).numpy()):
            for name, (k, mass, entropy, *rest) in zip(LAYOUT.candidates, values, strict=True):
                for place, geometry in enumerate(LAYOUT.geometry):
                    numbers = rest[3 * place : 3 * place + 3]
                    rows.append((prompt, step, name, geometry, int(k), mass, entropy, *numbers))
    return pd.DataFrame(rows, columns=selection.COLUMNS)


def sort(frame):
    frame = frame.astype({"candidates": str, "geometry": str})
    return frame.sort_values(["prompt", "step", "candidates", "geometry"], ignore_index=True)


def assert_equal(found, expected):
    pd.testing.assert_frame_equal(sort(found), sort(expected), check_dtype=False, check_exact=True)


@pytest.mark.parametrize("tokens", [1, 7, 2**14])
def test_the_batches_of_a_run_become_one_table(tmp_path, monkeypatch, tokens):
    monkeypatch.setattr(variants, "TOKENS", tokens)
    frame = load(finish(tmp_path))
    assert_equal(frame, tabulate())
    kinds = {name: str(frame[name].dtype) for name in frame}
    assert kinds == {
        **dict.fromkeys(("prompt", "step", "k"), "int32"),
        **dict.fromkeys(("candidates", "geometry"), "category"),
        **dict.fromkeys(selection.VALUES, "float32"),
    }
    for _, rows in frame.groupby(["candidates", "geometry"], observed=True):
        assert rows[["prompt", "step"]].apply(tuple, axis=1).is_monotonic_increasing


def test_a_few_tokens_are_in_memory_whatever_the_length_of_a_run(tmp_path, monkeypatch):
    """Of a text with a million tokens as well as of many short ones."""
    monkeypatch.setattr(variants, "TOKENS", 16)
    lengths, read, open_pieces, seen = [40, 3, 3, 3, 3, 3, 3, 3, 3, 40], [], variants.read_piece, []
    monkeypatch.setattr(variants, "read_piece", lambda piece: read.append(piece) or open_pieces(piece))
    original = variants._tabulate

    def watch(prompts, steps, values, *others):
        seen.append((len(values), len(read)))
        return original(prompts, steps, values, *others)

    monkeypatch.setattr(variants, "_tabulate", watch)
    finish(tmp_path, sizes=(5, 5), lengths=lengths)
    assert max(rows for rows, _ in seen) < 16 + 16
    assert seen[0][1] == 1
    assert len(read) == len(lengths)
    groups = parquet.read_metadata(tmp_path / VARIANTS)
    assert max(groups.row_group(n).num_rows for n in range(groups.num_row_groups)) < 2 * 16 * len(LAYOUT.geometry)
    assert_equal(load(tmp_path), tabulate(lengths))


def test_some_columns_sets_and_geometries_are_read(tmp_path):
    finish(tmp_path)
    expected = tabulate()
    one = load(tmp_path, candidates="top_k_5", geometry="raw")
    assert_equal(one, expected[(expected["candidates"] == "top_k_5") & (expected["geometry"] == "raw")])
    assert list(one["candidates"].cat.categories) == ["top_k_5"]
    some = load(tmp_path, candidates=["top_k_5", "top_p_0.9"])
    assert_equal(some, expected[expected["candidates"] != "typical_0.9"])
    assert list(some["candidates"].cat.categories) == ["top_p_0.9", "top_k_5"]
    few = load(tmp_path, ["k", "cosine"], geometry=["centred"])
    assert list(few) == ["k", "cosine"]
    assert len(few) == len(expected) / 2


def test_a_group_of_rows_has_one_candidate_set_so_that_others_are_not_read(tmp_path, monkeypatch):
    finish(tmp_path)
    file = parquet.ParquetFile(tmp_path / VARIANTS)
    sets = [set(file.read_row_group(n, ["candidates"])["candidates"].to_pylist()) for n in range(file.num_row_groups)]
    assert sets == [{name} for name in LAYOUT.candidates]
    read = []

    class File(parquet.ParquetFile):
        def read_row_group(self, group, columns):
            read.append((group, tuple(columns)))
            return super().read_row_group(group, columns)

    monkeypatch.setattr(parquet, "ParquetFile", File)
    load(tmp_path, ["k"], candidates=LAYOUT.candidates[1])
    assert read == [(0, ("candidates",)), (1, ("candidates",)), (1, ("k", "candidates")), (2, ("candidates",))]


def test_sets_are_found_in_any_groups_of_rows(tmp_path):
    finish(tmp_path)
    table, expected = parquet.read_table(tmp_path / VARIANTS), load(tmp_path, candidates=LAYOUT.candidates[1])
    parquet.write_table(table, tmp_path / VARIANTS, write_statistics=False, row_group_size=7)
    assert_equal(load(tmp_path, candidates=LAYOUT.candidates[1]), expected)


@pytest.mark.parametrize("name", ["candidates", "geometry"])
@pytest.mark.parametrize("value", [1, True, [1], "dictionary"])
def test_names_of_another_type_are_damage(tmp_path, name, value):
    finish(tmp_path)
    table = parquet.read_table(tmp_path / VARIANTS)
    values = pa.array([1 if value == "dictionary" else value] * len(table))
    values = values.dictionary_encode() if value == "dictionary" else values
    table = table.set_column(table.schema.names.index(name), name, values)
    parquet.write_table(table, tmp_path / VARIANTS)
    for chosen in ({}, {"candidates": LAYOUT.candidates[0]}, {"geometry": LAYOUT.geometry[0]}):
        with pytest.raises(ValueError, match="is damaged") as caught:
            load(tmp_path, **chosen)
        assert_one_line(str(caught.value))


def test_a_column_that_is_missing_or_there_twice_is_damage(tmp_path):
    finish(tmp_path)
    table = parquet.read_table(tmp_path / VARIANTS)
    for changed in (table.drop_columns("k"), table.append_column("k", table["step"])):
        parquet.write_table(changed, tmp_path / VARIANTS)
        with pytest.raises(ValueError, match="columns k"):
            load(tmp_path, ["step", "k"])


def test_a_run_without_tokens_has_an_empty_table(tmp_path):
    finish(tmp_path, sizes=(2,), lengths=[0, 0])
    assert len(load(tmp_path, candidates="top_k_5")) == 0
    assert list(load(tmp_path)) == list(selection.COLUMNS)


def catch(function, *arguments, kind=ValueError, **options):
    with pytest.raises(kind) as caught:
        function(*arguments, **options)
    return assert_one_line(str(caught.value))


def test_a_folder_without_the_file_is_named(tmp_path):
    finish(tmp_path, layout=None, settings=SETTINGS | {"variants": "none"})
    assert not (tmp_path / VARIANTS).exists()
    assert catch(load, tmp_path).startswith(f"{tmp_path} has no variants.parquet: repeat the run's command")


def test_names_that_were_not_measured_are_refused(tmp_path):
    finish(tmp_path)
    assert "variants.parquet': candidate set 'top_k_50' was not measured; measured here: top_p_0.9," in catch(
        load, tmp_path, candidates="top_k_50"
    )
    assert "geometry 'output' was not measured; measured here: " in catch(
        load, tmp_path, ["k"], geometry=["raw", "output"]
    )
    assert "has no column 'surprisal'" in catch(load, tmp_path, ["surprisal"])


def exchange(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 255
    path.write_bytes(content)


DAMAGE = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-20]),
    "empty": lambda path: path.write_bytes(b""),
    "changed": exchange,
    "another table": lambda path: path.write_bytes((path.parent / "tokens.parquet").read_bytes()),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_named_and_measured_again_only_with_overwrite(tmp_path, damage):
    finish(tmp_path)
    before = load(tmp_path)
    DAMAGE[damage](tmp_path / VARIANTS)
    said = catch(load, tmp_path)
    assert said.startswith(f"'{tmp_path / VARIANTS}' is damaged (")
    assert said.endswith("): repeat the run's command with --overwrite")
    assert run_folder.RunFolder(tmp_path, SETTINGS).finished
    run = measure(tmp_path, overwrite=True)
    assert not run.finished
    run.finish(len(LENGTHS), {})
    assert load(tmp_path).equals(before)
    assert run_folder.RunFolder(tmp_path, SETTINGS, overwrite=True).finished


def test_variants_of_other_measurements_are_refused(tmp_path):
    finish(tmp_path / "one")
    finish(tmp_path / "other", lengths=LENGTHS[::-1])
    (tmp_path / "one" / VARIANTS).write_bytes((tmp_path / "other" / VARIANTS).read_bytes())
    assert catch(load, tmp_path / "one").endswith(
        "(it belongs to other measurements): repeat the run's command with --overwrite"
    )


def test_a_run_of_the_grid_that_has_lost_its_variants_is_not_complete(tmp_path):
    settings = {name: grid.DEFAULTS[name] for name in ("n_prompts", "max_tokens", "seed")}
    settings |= {"model_name": "tiny", "dataset_name": "cats.txt", "variants": "top_k_5"}
    entry = grid.Entry({"model_name": "tiny", "dataset_name": "cats.txt", "variants": "top_k_5"})
    finish(tmp_path, settings=settings)
    assert status.find_missing(tmp_path, entry) is None
    (tmp_path / VARIANTS).unlink()
    assert "has no variants.parquet" in assert_one_line(status.find_missing(tmp_path, entry))
    without = grid.Entry(entry.parameters | {"variants": "none"})
    assert status.find_missing(tmp_path, without) is None  # it asks for less


def test_old_results_have_no_variants_and_are_other_results(tmp_path):
    old = {name: value for name, value in SETTINGS.items() if name != "variants"}
    finish(tmp_path, settings=old, layout=None)
    assert run_folder.RunFolder(tmp_path, old | {"variants": "none"}).finished
    said = catch(run_folder.RunFolder, tmp_path, old | {"variants": "default"}, kind=FileExistsError)
    assert "variants was 'none' and is now 'default'; to replace them, run scripts/correlation_pipeline.py with" in said
    assert "has no variants.parquet" in catch(load, tmp_path)
    measure(tmp_path, overwrite=True).finish(len(LENGTHS), {})
    assert_equal(load(tmp_path), tabulate())


def test_results_with_variants_are_those_of_a_run_without(tmp_path):
    finish(tmp_path)
    before = tmp_path.joinpath("run.json").read_text()
    again = run_folder.RunFolder(tmp_path, SETTINGS | {"variants": "none"})
    assert again.finished
    again.record_request()
    assert tmp_path.joinpath("run.json").read_text() == before
    said = catch(run_folder.RunFolder, tmp_path, SETTINGS | {"variants": "none", "seed": 1}, kind=FileExistsError)
    assert "settings: seed was 0 and is now 1; to" in said


def test_variants_are_never_beside_measurements_that_have_others(tmp_path):
    finish(tmp_path)
    none = SETTINGS | {"variants": "none", "seed": 1}
    measure(tmp_path, settings=none, layout=None, overwrite=True).finish(len(LENGTHS), {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["measurements.pt", "run.json", "tokens.parquet"]


def test_a_folder_in_the_place_of_the_file_is_refused_before_measuring(tmp_path):
    (tmp_path / VARIANTS).mkdir()
    said = catch(run_folder.check, tmp_path, kind=IsADirectoryError)
    assert said == f"'{tmp_path / VARIANTS}' is a folder: move it out of the way"


def test_a_batch_whose_variants_have_changed_is_measured_again(tmp_path):
    measure(tmp_path).release()
    run = run_folder.RunFolder(tmp_path, SETTINGS)  # the process that saved the batches would not read them again
    run.start()
    path = sorted(run.batches.glob("*.pt"))[1]
    lost = next(batch for batch in run.list_batches() if min(batch["indices"]) == int(path.stem))["indices"]
    content = bytearray(path.read_bytes())
    values = next(draw(prompt, LENGTHS[prompt]) for prompt in lost if LENGTHS[prompt]).numpy().tobytes()
    content[content.index(values) + 5] ^= 1
    path.write_bytes(content)
    said = catch(run.finish, len(LENGTHS), {})
    assert said == f"'{path}' is damaged, and was removed: run the same command again"
    assert not (tmp_path / "run.json").exists()
    run.release()
    again = run_folder.RunFolder(tmp_path, SETTINGS)
    with again:
        assert lost not in [batch["indices"] for batch in again.list_batches()]
        records = [create_record(prompt, LENGTHS[prompt]) for prompt in lost]
        again.save_batch(lost, records, 1.0, (), "", [draw(prompt, LENGTHS[prompt]) for prompt in lost], LAYOUT)
        again.finish(len(LENGTHS), {})
    assert_equal(load(tmp_path), tabulate())


def test_a_batch_with_variants_is_still_a_file_that_torch_reads(tmp_path):
    run = measure(tmp_path)
    for batch in run.list_batches():
        path = run.batches / f"{min(batch['indices']):06d}.pt"
        found = torch.load(path, weights_only=True)
        assert [record["prompt"] for record in found] == [str(prompt) for prompt in batch["indices"]]
    run.finish(len(LENGTHS), {})
    assert json.loads((tmp_path / "run.json").read_text())["settings"] == SETTINGS
    assert len(results.load(tmp_path / "measurements.pt")) == len(LENGTHS)
