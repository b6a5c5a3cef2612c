"""tokens.parquet: written with a run and from files that have none, never of other measurements, and read in part."""

import os
import pickle
import re
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet
from test_results import (
    LISTS,
    catch_refusal,
    create_record,
    create_study_record,
    interrupt,
    measure_run,
    open_run,
    save,
)

import tiny
from messages import assert_one_line
from nucleoscope import quantities
from nucleoscope.stats import correlation, fits, parallel
from nucleoscope.store import results, tokens
from nucleoscope.views import figures, panels
from synthetic import write_accuracy_file, write_study_file

QUANTITIES = list(quantities.find_columns().values())


@pytest.fixture
def folder(tmp_path) -> Path:
    return results.locate_run(tmp_path / "results", "math", "tiny")


def compute_expected(records: list[dict], column: str) -> np.ndarray:
    """A column of the table of some records, found token by token."""
    names = {column: name for name, column in {"tokens": "token", **quantities.find_columns()}.items()}
    values = [
        np.nan if quantities.needs_pair(column) and len(ids) == 1 else float(value)
        for record in records
        for value, ids in zip(record[names[column]], record["top_p_tokens"], strict=True)
    ]
    return np.array(values)


def write_other_measurements(folder: Path) -> list[dict]:
    """Replaces the measurements of a finished run behind its back by others of the same size."""
    records = [create_record(index) | {"entropies": [9.0, 8.0, 7.0]} for index in range(5)]
    size = (folder / results.MEASUREMENTS).stat().st_size
    torch.save(records, folder / results.MEASUREMENTS)
    assert abs((folder / results.MEASUREMENTS).stat().st_size - size) < 1000
    return records


# Written with the run


def test_a_run_leaves_a_row_for_each_token_and_its_columns_by_name(folder):
    measure_run(folder)
    written = parquet.read_table(folder / "tokens.parquet")
    assert set(written.column_names) == {"prompt", "step", "token", "k", *QUANTITIES}
    for name in ("prompt", "step", "token", "k"):
        assert written.schema.field(name).type == pa.int64()
    for name in QUANTITIES:
        assert written.schema.field(name).type == pa.float64()
    records = results.load(folder / "measurements.pt")
    assert written["prompt"].to_pylist() == [prompt for prompt in range(5) for _ in range(3)]
    assert written["step"].to_pylist() == [0, 1, 2] * 5
    assert written["token"].to_pylist() == torch.cat([r["tokens"] for r in records]).tolist()
    assert written["k"].to_pylist() == [len(ids) for r in records for ids in r["top_p_tokens"]]
    for name in QUANTITIES:
        np.testing.assert_array_equal(
            written[name].to_pandas().to_numpy(), compute_expected(records, name), err_msg=name
        )


def test_the_order_of_the_columns_in_the_file_does_not_matter(folder, monkeypatch):
    measure_run(folder)
    before = results.load_table(folder.parents[1])
    monkeypatch.setattr(quantities, "REGISTRY", dict(reversed(quantities.REGISTRY.items())))
    after = results.load_table(folder.parents[1])
    assert list(after.columns) != list(before.columns)
    pd.testing.assert_frame_equal(after[before.columns], before, check_exact=True)


def test_one_candidate_has_no_cosine_in_tables_and_the_studys_1_in_measurements(folder):
    name = "weighted_cosines"
    records = [create_record(0) | {"cosines": [1.0, 0.25, 0.5], name: [1.0, 0.125, 0.75]}]  # k is 1, 2, 3
    path = save(folder, records)
    results.write_tokens(records, path)
    assert results.load(path)[0]["cosines"] == [1.0, 0.25, 0.5]
    written = parquet.read_table(folder / "tokens.parquet")
    assert written["cosine"].to_pylist() == [None, 0.25, 0.5]
    assert written["weighted_cosine"].to_pylist() == [None, 0.125, 0.75]
    assert written["entropy"].null_count == 0
    table = results.load_table(folder.parents[1])
    assert table["cosine"].isna().tolist() == [True, False, False]
    assert table["cosine"].mean() == 0.375


def test_a_run_is_tabulated_without_reading_its_measurements(folder, monkeypatch):
    measure_run(folder)
    direct = results.tabulate(results.load(folder / "measurements.pt"), "tiny", "math")

    def refuse(*_, **__):
        raise AssertionError("the measurements were read")

    monkeypatch.setattr(torch, "load", refuse)
    pd.testing.assert_frame_equal(results.load_table(folder.parents[1]), direct, check_exact=True)
    pd.testing.assert_frame_equal(results.load_readable(folder.parents[1])["tiny", "math"], direct, check_exact=True)


# Never of other measurements


@pytest.mark.parametrize("name", ["join_records", "write_tokens", "write_json"])
def test_a_kill_between_two_files_leaves_no_tokens_of_another_run(folder, monkeypatch, name):
    measure_run(folder)
    old = results.load_table(folder.parents[1])
    run = open_run(folder, overwrite=True, seed=1)
    run.start()
    records = [create_record(index + 5) for index in range(5)]
    run.save_batch(list(range(5)), records, 1.0)
    interrupt(monkeypatch, name, run)
    stored = results.load(folder / "measurements.pt")
    assert (folder / "tokens.parquet").exists() == (name != "write_tokens")  # that of the measurements beside it
    found = results.load_table(folder.parents[1])
    pd.testing.assert_frame_equal(found, results.tabulate(stored, "tiny", "math"), check_exact=True)
    assert found["entropy"].equals(old["entropy"]) == (name == "join_records")


def test_tokens_of_other_measurements_are_written_again(folder):
    measure_run(folder)
    records = write_other_measurements(folder)
    os.utime(folder / "measurements.pt", (0, 0))  # older than the tokens, as a copy that kept its date
    for _ in range(2):
        table = results.load_table(folder.parents[1])
        assert table["entropy"].tolist() == [9.0, 8.0, 7.0] * 5
        assert table["token"].tolist() == torch.cat([r["tokens"] for r in records]).tolist()
    assert parquet.read_table(folder / "tokens.parquet")["entropy"].to_pylist() == [9.0, 8.0, 7.0] * 5


def test_one_number_of_a_large_file_decides_whether_tokens_are_its_own(tmp_path):
    """Its list of parts is longer than what could be read at its end alone."""
    folder = tmp_path / "math" / "tiny"
    folder.mkdir(parents=True)
    records = [create_record(index) for index in range(700)]
    path = folder / "measurements.pt"
    torch.save(records, path)
    before = tokens.compute_fingerprint(path)
    records[300]["tokens"][1] += 1
    torch.save(records, path)
    assert tokens.compute_fingerprint(path) != before


def test_the_fingerprint_of_a_file_that_has_not_changed_is_remembered(tmp_path, monkeypatch):
    path, other = tmp_path / results.MEASUREMENTS, tmp_path / "other" / results.MEASUREMENTS
    other.parent.mkdir()
    torch.save([torch.arange(3)], path)
    torch.save([torch.arange(3) + 1], other)
    assert path.stat().st_size == other.stat().st_size
    opened = []
    monkeypatch.setattr(
        zipfile, "ZipFile", lambda file, original=zipfile.ZipFile: (opened.append(1), original(file))[1]
    )
    just_written = tokens.compute_fingerprint(path), tokens.compute_fingerprint(path)
    assert len(opened) == 2  # it may still change without another time stamp
    monkeypatch.setattr(tokens, "SETTLED", -1)
    assert {*just_written, tokens.compute_fingerprint(path), tokens.compute_fingerprint(path)} == {just_written[0]}
    assert len(opened) == 3
    os.replace(other, path)
    assert tokens.compute_fingerprint(path) != just_written[0]


def test_a_copied_folder_keeps_its_tokens(folder, monkeypatch):
    measure_run(folder)
    shutil.copytree(folder.parents[1], folder.parents[1].with_name("copy"), copy_function=shutil.copyfile)
    before = results.load_table(folder.parents[1])
    monkeypatch.setattr(torch, "load", None)
    pd.testing.assert_frame_equal(results.load_table(folder.parents[1].with_name("copy")), before, check_exact=True)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"no parquet", None])
def test_tokens_that_are_damaged_are_written_again(folder, content):
    measure_run(folder)
    before, path = results.load_table(folder.parents[1]), folder / "tokens.parquet"
    path.write_bytes(path.read_bytes()[:-9] if content is None else content)
    pd.testing.assert_frame_equal(results.load_table(folder.parents[1]), before, check_exact=True)
    assert parquet.read_table(path).num_rows == 15


def test_tokens_with_a_bad_page_are_written_again(folder):
    measure_run(folder)
    before, path = results.load_table(folder.parents[1]), folder / "tokens.parquet"
    content, end = bytearray(path.read_bytes()), parquet.read_metadata(path).row_group(0).column(0)
    content[4 : end.total_compressed_size] = b"\xff" * (end.total_compressed_size - 4)  # the footer is whole
    path.write_bytes(content)
    pd.testing.assert_frame_equal(results.load_table(folder.parents[1]), before, check_exact=True)
    assert parquet.read_table(path, page_checksum_verification=True).num_rows == 15


def test_measurements_that_are_cut_off_are_named_although_there_are_tokens(folder, capsys):
    measure_run(folder)
    path = folder / "measurements.pt"
    path.write_bytes(path.read_bytes()[:-300])
    assert str(path) in assert_one_line(catch_refusal(ValueError, results.load_table, folder.parents[1]))
    write_study_file(folder.parent / "theirs")
    assert list(results.load_readable(folder.parents[1])) == [("theirs", "math")]
    assert str(path) in assert_one_line(capsys.readouterr().err)


# Files that have none


def test_a_file_of_the_study_is_converted_when_it_is_first_read(folder, monkeypatch):
    path = write_study_file(folder)
    direct = results.tabulate(results.load(path), "tiny", "math")
    pd.testing.assert_frame_equal(results.load_table(folder.parents[1]), direct, check_exact=True)
    monkeypatch.setattr(torch, "load", None)
    pd.testing.assert_frame_equal(results.load_table(folder.parents[1]), direct, check_exact=True)
    assert direct.loc[direct["k"] == 1, "cosine"].isna().all()
    assert direct["token"].eq(-1).all()
    assert direct["full_entropy"].isna().all()


def test_a_later_file_of_the_study_is_converted_again(folder):
    write_study_file(folder, length=3)
    assert len(results.load_table(folder.parents[1])) == 90
    write_study_file(folder, length=4, time="2025-10-02_08-05")
    assert len(results.load_table(folder.parents[1])) == 120
    save(folder, [create_record(0)])
    assert len(results.load_table(folder.parents[1])) == 3


def test_reading_an_older_file_of_the_study_leaves_the_newest_ones_tokens(folder):
    older = write_study_file(folder, length=3)
    write_study_file(folder, length=4, time="2025-10-02_08-05")
    assert len(results.load_table(folder.parents[1])) == 120
    assert len(results.load_run(older, "tiny", "math")) == 90
    assert parquet.read_metadata(folder / "tokens.parquet").num_rows == 120


def test_a_folder_that_cannot_be_written_to_is_read_all_the_same(small_disk, small_disk_made_read_only):
    write_study_file(small_disk / "results" / "math" / "theirs", prompts=3, length=5)
    small_disk_made_read_only()
    found = results.load_readable(small_disk / "results")
    assert not list(small_disk.rglob("*.parquet"))
    assert results.count_tokens(found) == 15
    table = found["theirs", "math"]
    pd.testing.assert_frame_equal(results.load_table(small_disk / "results"), table, check_exact=True)
    part = pickle.loads(pickle.dumps(found.select(columns=["entropy", "model"])))
    assert list(part["theirs", "math"].columns) == ["model", "entropy"]


def test_a_quantity_that_an_older_version_did_not_write_is_nan(folder, monkeypatch):
    measure_run(folder)
    monkeypatch.setitem(quantities.REGISTRY, "novelty", quantities.Quantity("novelty", "novelty", len, "novelties"))
    table = results.load_table(folder.parents[1])
    assert table["novelty"].isna().all()
    assert table["novelty"].dtype == np.float64
    assert len(table) == 15
    found = results.load_readable(folder.parents[1]).select(columns=["novelty", "k"])["tiny", "math"]
    assert list(found.columns) == ["k", "novelty"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"pandas_type"', b'"qandas_type"'),
        (b'"columns"', b'"c\xfflumns"'),
        (b"weighted_cosine", b"veighted_cosine"),
        (b"weighted_cosine", b"\xffeighted_cosine"),
    ],
)
def test_a_changed_byte_at_the_end_of_the_table_is_noticed(folder, old, new):
    save(folder, [create_record(index) for index in range(3)])
    expected = results.load_readable(folder.parents[1])["tiny", "math"]
    path = folder / "tokens.parquet"
    whole = path.read_bytes()
    places = [found.start() for found in re.finditer(re.escape(old), whole)]
    assert places
    for place in places:
        path.write_bytes(whole[:place] + new + whole[place + len(old) :])
        found = results.load_readable(folder.parents[1])["tiny", "math"]
        pd.testing.assert_frame_equal(found, expected)


def test_measurements_whose_bytes_have_changed_are_refused_and_not_read(folder):
    path = save(folder, [create_record(index) for index in range(3)])
    whole = path.read_bytes()
    place = whole.index(torch.load(path, weights_only=True)[0]["top_p_probs"][0].numpy().tobytes())
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 64]) + whole[place + 1 :])
    assert torch.load(path, weights_only=True)  # torch does not notice
    with pytest.raises(ValueError, match="is damaged"):
        results.load(path)
    with pytest.raises(ValueError, match="is damaged"):
        results.load_run(path, "tiny", "math")


# Some records


@pytest.fixture
def records() -> list[dict]:
    return [tiny.create_record("the rain in Spain", seed=seed) for seed in range(3)]


def assert_same(left: dict, right: dict) -> None:
    assert left.keys() == right.keys()
    for name, values in left.items():
        if isinstance(values, torch.Tensor) or name.startswith("top_p"):
            for one, other in zip(values, right[name], strict=True):
                assert one.dtype == other.dtype
                assert torch.equal(one, other)
        else:
            assert values == right[name]


def test_some_records_are_those_of_the_whole_file(folder, records):
    save(folder, records)
    found = results.load_records(folder, iter([2, 0]))
    assert list(found) == [2, 0]
    for index, one in found.items():
        assert_same(one, records[index])
    texts = results.load_records(folder, fields=("prompt", "tokens"))
    assert list(texts) == [0, 1, 2]
    assert_same(texts[1], {name: records[1][name] for name in ("prompt", "tokens")})


def test_each_prompt_of_many_is_loaded_alone_from_a_file_without_an_index(tmp_path):
    many = [tiny.create_record("the cat sat on the mat " * (1 + index % 3), seed=index) for index in range(16)]
    path = save(tmp_path, [{**record, "prompt": f"prompt {index}"} for index, record in enumerate(many)])
    for index in range(16):
        (found,) = results.load_records(path.parent, [index]).values()
        assert_same(found, {**many[index], "prompt": f"prompt {index}"})
    both = results.load_records(path.parent, [3, 15], fields=("prompt", "tokens"))
    assert [record["prompt"] for record in both.values()] == ["prompt 3", "prompt 15"]
    table = results.load_run(path, "m", "d")
    assert table["k"].tolist() == [len(ids) for record in many for ids in record["top_p_tokens"]]


def test_a_record_that_a_file_refers_to_again_is_loaded_whole(folder, records):
    save(folder, [records[0], records[1], records[0]])
    assert_same(results.load_records(folder, [2])[2], records[0])


def test_some_records_of_other_formats_are_loaded_whole(folder):
    records = [create_study_record(), create_study_record(2) | {"entropies": torch.tensor([1.0, 2.0])}]
    folder.mkdir(parents=True)
    torch.save(records, folder / "measurements.pt", _use_new_zipfile_serialization=False)
    assert results.load_records(folder, [1])[1]["entropies"].tolist() == [1.0, 2.0]


@pytest.mark.parametrize("index", [3, -1])
def test_a_record_that_is_not_there_is_named(folder, records, index):
    path = save(folder, records)
    message = assert_one_line(catch_refusal(ValueError, results.load_records, folder, [index]))
    assert str(path) in message
    assert f"no prompt {index}" in message
    assert "no measurements in" in catch_refusal(FileNotFoundError, results.load_records, folder.parent, [0])


def test_records_do_not_need_their_file_any_more(folder, records):
    path = save(folder, records)
    found = results.load_records(folder, [1])
    path.write_bytes(b"\0" * path.stat().st_size)  # in place: a mapped tensor would change
    assert_same(found[1], records[1])


class Told:
    """Pickled as a call of ``print``."""

    def __reduce__(self):
        return print, ("this was called",)


def test_nothing_in_a_file_is_called(folder, records, capsys):
    path = save(folder, [*records, Told()])
    for read, place in (
        (results.load, path),
        (results.load_table, folder.parents[1]),
        (results.load_readable, folder.parents[1]),
    ):
        with pytest.raises(ValueError, match=r"' as measurements: the file is|no readable measurements"):
            read(place)
    assert "called" not in capsys.readouterr().out


def test_a_program_of_torch_is_not_loaded(tmp_path, monkeypatch):
    path = tmp_path / "measurements.pt"
    with zipfile.ZipFile(path, "w") as archive:  # what torch takes for a TorchScript archive
        archive.writestr("archive/data.pkl", b"")
        archive.writestr("archive/constants.pkl", b"")
    monkeypatch.setattr(torch, "load", None)
    with pytest.raises(ValueError, match="a TorchScript archive is not a measurements file"):
        results.load(path)


# One table at a time


@pytest.fixture
def stored(tmp_path) -> results.StoredTables:
    """Three runs: two data sets of one model, and one of another."""
    for seed, (dataset, model) in enumerate([("x", "a"), ("y", "a"), ("x", "b")]):
        write_study_file(tmp_path / "grid" / dataset / model, seed=seed)
    return results.load_readable(tmp_path / "grid")


def test_stored_tables_are_a_mapping_of_tables(stored, tmp_path):
    tables, damaged = results.load_runs(tmp_path / "grid")
    assert damaged == {}
    assert set(stored) == set(tables) == {("a", "x"), ("a", "y"), ("b", "x")}
    assert len(stored) == 3
    assert ("a", "z") not in stored
    assert stored.get(("a", "z")) is None
    for key, table in stored.items():
        pd.testing.assert_frame_equal(table, tables[key], check_exact=True)
    copy = stored["a", "x"]
    copy.loc[0, "entropy"] = -1
    assert stored["a", "x"].loc[0, "entropy"] == tables["a", "x"].loc[0, "entropy"] != -1
    assert results.count_tokens(stored) == results.count_tokens(tables) == 1800


def test_another_process_gets_places_and_not_tables(stored):
    part = results.select(stored, [("a", "x")], {"entropy", "k"})
    assert len(pickle.dumps(part)) < 1000
    other = pickle.loads(pickle.dumps(part))
    assert list(other) == [("a", "x")]
    pd.testing.assert_frame_equal(other["a", "x"], stored["a", "x"][["k", "entropy"]], check_exact=True)


def test_only_what_is_wanted_is_read_and_one_file_at_a_time(stored, monkeypatch):
    files, asked = [], []

    class File(parquet.ParquetFile):
        def __init__(self, source, **options):
            super().__init__(source, **options)
            assert files == []  # one at a time
            files.append(source)

        def read(self, columns=None, **options):
            asked.append(tuple(sorted(columns)))
            return super().read(columns, **options)

        def __exit__(self, *error):
            files.pop()
            return super().__exit__(*error)

    monkeypatch.setattr(parquet, "ParquetFile", File)
    results.count_tokens(stored)
    results.select(stored, [("a", "x")])
    assert asked == []
    figures.plot_overlay(stored)
    assert asked == [("cosine", "entropy", "k", "prompt")] * 3
    assert files == []
    asked.clear()
    correlation.compute_statistics(stored, resamples=2)
    needed = sorted({"prompt", "k", *(name for pair in correlation.PAIRS for name in pair)})
    assert asked == [tuple(needed)] * 3


def test_stored_tables_give_the_same_statistics_and_figures_as_tables_in_memory(stored, tmp_path):
    tables, _ = results.load_runs(tmp_path / "grid")
    for function in (correlation.compute_statistics, fits.fit_all):
        one, other = function(stored, resamples=3), function(tables, resamples=3)
        pd.testing.assert_frame_equal(one, other, check_exact=True)
    pd.testing.assert_frame_equal(fits.compute_lines(stored), fits.compute_lines(tables), check_exact=True)
    bins = panels.bin_runs(stored, resamples=3)
    pd.testing.assert_frame_equal(bins, panels.bin_runs(tables, resamples=3), check_exact=True)
    assert figures.plot_overlay(stored) == figures.plot_overlay(tables)
    assert panels.plot_grid(stored, bins) == panels.plot_grid(tables, bins)


def test_stored_tables_are_read_by_other_processes(stored):
    found = parallel.map_parallel(results.count_tokens, [results.select(stored, [key]) for key in stored], jobs=2)
    assert found == [600] * 3


def test_what_one_candidate_has_for_a_cosine_changes_no_number(stored):
    """Analyses leave tokens with k = 1 out, whether they have the study's 1 or nothing."""
    missing = dict(stored)
    assert missing["a", "x"]["cosine"].isna().any()
    ones = {key: table.assign(cosine=table["cosine"].fillna(1.0)) for key, table in missing.items()}
    for function in (correlation.compute_statistics, fits.fit_all):
        one, other = function(missing, resamples=3), function(ones, resamples=3)
        pd.testing.assert_frame_equal(one, other, check_exact=True)
    assert figures.plot_overlay(missing) == figures.plot_overlay(ones)
    assert figures.plot_scatter(missing["a", "x"]) == figures.plot_scatter(ones["a", "x"])
    assert figures.plot_distributions(missing["a", "x"]) == figures.plot_distributions(ones["a", "x"])
    assert len(LISTS) == len(QUANTITIES)


# The study's accuracy experiment


def test_a_file_of_the_accuracy_experiment_is_read_with_what_follows_from_its_probabilities(tmp_path):
    path = write_accuracy_file(tmp_path / "accuracy_exp" / "theirs")
    content, records = torch.load(path), results.load(path)
    assert [record["prompt"] for record in records] == [record["prompt"] for record in content.values()]
    assert not set(records[0]) & {"cosines", "decoded_tokens", "ground_truth", "latency", "top_p_logits"}
    for record, theirs in zip(records, content.values(), strict=True):
        assert record["tokens"].tolist() == theirs["generated_tokens"].tolist()
        for step, probabilities in enumerate(theirs["top_p_probs"]):
            p = probabilities.double().numpy()
            q = p / p.sum()
            entropy = -np.sum(q * np.log(q))
            place = min(1, len(p) - 1)  # the second candidate is taken
            expected = {
                "entropies": entropy,
                "varentropies": np.sum(q * np.log(q) ** 2) - entropy**2,
                "collision_entropies": -np.log(np.sum(q**2)),
                "margins": p[0] - p[1] if len(p) > 1 else np.nan,
                "surprisals": -np.log(p[place]),
                "ranks": place + 1,
            }
            found = {name: record[name][step] for name in expected}
            assert found == pytest.approx(expected, abs=1e-9, nan_ok=True)


def test_a_table_of_the_accuracy_experiment_has_no_cosine_and_no_column_that_is_no_quantity(tmp_path):
    path = write_accuracy_file(tmp_path / "accuracy_exp" / "theirs")
    for _ in range(2):  # from the measurements, then from tokens.parquet
        table = results.load_run(path, "theirs", "accuracy_exp")
        assert list(table) == list(results.load_run(write_study_file(tmp_path / "x" / "y"), "y", "x"))
        assert table[["cosine", "weighted_cosine", "full_entropy"]].isna().all(axis=None)
        assert table[["k", "entropy", "surprisal", "rank", "token"]].notna().all(axis=None)
    assert len(table) == 12 * 20


def test_some_records_of_the_accuracy_experiment_are_those_of_all(tmp_path):
    folder = tmp_path / "accuracy_exp" / "theirs"
    every = results.load(write_accuracy_file(folder))
    table = results.load_run(folder / "output_2025-08-01_10-00.pt", "theirs", "accuracy_exp")
    assert table["entropy"].tolist() == [value for record in every for value in record["entropies"]]
    found = results.load_records(folder, [9, 2], ["entropies", "tokens", "top_p_probs"])
    for index in (9, 2):
        assert found[index]["entropies"] == every[index]["entropies"]
        assert found[index]["tokens"].tolist() == every[index]["tokens"].tolist()
        assert len(found[index]["top_p_probs"]) == 20


def test_entropies_and_cosines_that_an_older_file_has_are_kept(tmp_path):
    path = write_accuracy_file(tmp_path / "accuracy_exp" / "theirs", prompts=3)
    content = torch.load(path)
    for record in content.values():
        record |= {"entropies": [0.5] * 20, "cosines": [0.25] * 20, "model": "m", "correct": "true"}
    torch.save(content, path)
    table = results.load_run(path, "theirs", "accuracy_exp")
    assert set(table["entropy"]) == {0.5}
    assert set(table.loc[table["k"] > 1, "cosine"]) == {0.25}


@pytest.mark.parametrize("content", [{}, {"prompt0": {}}, {"prompt0": 1}, {"first": {"prompt": ""}}, {0: 1}])
def test_a_dict_of_something_else_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "output_2025-08-01_10-00.pt")
    with pytest.raises(ValueError, match="is not a measurements file"):
        results.load(tmp_path / "output_2025-08-01_10-00.pt")


def test_tokens_and_probabilities_of_different_lengths_are_refused(tmp_path):
    path = write_accuracy_file(tmp_path / "accuracy_exp" / "theirs", prompts=3)
    content = torch.load(path)
    content["prompt1"]["generated_tokens"] = content["prompt1"]["generated_tokens"][:-1]
    torch.save(content, path)
    with pytest.raises(ValueError, match="19 tokens, but probabilities of 20"):
        results.load(path)


# The tokens' texts


def measure_known(folder: Path) -> Path:
    """A run whose ids a tiny tokenizer knows, as earlier versions left it: without texts."""
    records = [tiny.create_record(text) for text in ("the rain, né", "", "in Spain")]
    return save(folder, records)


def test_texts_are_added_to_the_files_of_earlier_versions_and_join_to_the_text(folder):
    measure_known(folder)
    before = results.load_run(folder / "measurements.pt", "tiny", "math")
    assert before["text"].isna().all()
    assert results.add_texts(folder, tiny.create_tokenizer())
    assert not results.add_texts(folder, tiny.create_tokenizer())  # once is enough
    after = results.load_run(folder / "measurements.pt", "tiny", "math")
    pd.testing.assert_frame_equal(after.drop(columns="text"), before.drop(columns="text"), check_exact=True)
    assert {prompt: "".join(group["text"]) for prompt, group in after.groupby("prompt")} == {
        0: "the rain, né",
        2: "in Spain",
    }


def test_no_texts_are_added_to_a_run_without_tokens_or_to_one_of_the_study(folder, tmp_path):
    save(folder, [tiny.create_record("")])
    assert not results.add_texts(folder, tiny.create_tokenizer())
    write_study_file(tmp_path / "theirs")
    assert not results.add_texts(tmp_path / "theirs", tiny.create_tokenizer())
    assert not results.add_texts(tmp_path / "nothing", tiny.create_tokenizer())


def test_a_folder_that_cannot_be_written_to_gets_no_texts_and_is_no_error(folder, monkeypatch):
    measure_known(folder)
    results.repair_tokens(folder)

    def refuse(*_):
        raise PermissionError

    monkeypatch.setattr(tokens, "write_parquet", refuse)
    assert not results.add_texts(folder, tiny.create_tokenizer())
