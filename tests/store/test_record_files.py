"""Files of records: what torch.save would write, joined from batches without having the records in memory."""

import contextlib
import errno
import io
import json
import random
import re
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from pyarrow import parquet
from test_results import LISTS, catch_refusal, create_record, is_same, open_run

import tiny
from messages import assert_one_line
from nucleoscope.measure.nucleus import Nucleus
from nucleoscope.measure.recording import build_record, unpack
from nucleoscope.quantities import list_recorded
from nucleoscope.store import measurements, record_files, results, run_folder, tokens


@pytest.fixture
def folder(tmp_path) -> Path:
    return results.locate_run(tmp_path / "results", "math", "tiny")


def create_measured(index: int, length: int) -> dict:
    """A record as measuring makes it: a prompt's candidates are views of one tensor each."""
    rng, quantities = np.random.default_rng(index), list_recorded()
    steps = []
    for _ in range(length):
        k = int(rng.integers(1, 9))
        nucleus = Nucleus(torch.arange(k, dtype=torch.int32), torch.rand(k), torch.tensor([0, k]))
        values = torch.from_numpy(rng.normal(size=(len(quantities), 1)))
        steps += unpack(torch.tensor([int(rng.integers(0, 300))]), nucleus, values, quantities)
    return build_record(f"prompt {index}: «ünï»\n", steps, quantities)


def create_mixed(n: int) -> list[dict]:
    """Records of many lengths, also without a token, whose tensors have storages of their own or share one."""
    kinds = [
        lambda index: create_measured(index, 1 + index % 7),
        lambda index: create_measured(index, 0),
        lambda index: create_record(index, 1 + index % 5),
        lambda index: create_record(index, 0),
        lambda index: tiny.create_record("the cat sat on the mat", f"prompt {index}", index),
    ]
    return [kinds[index % len(kinds)](index) for index in range(n)]


def join(records: list[dict], folder: Path, size: int = 3) -> Path:
    """A measurements file joined from batches of ``size`` records in another order."""
    folder.mkdir(parents=True, exist_ok=True)
    order, paths = random.Random(0).sample(range(len(records)), len(records)), []
    for start in range(0, len(order), size):
        prompts = order[start : start + size]
        paths.append(folder / f"batch {start}.part")
        with paths[-1].open("wb") as stream:
            record_files.write_records(stream, prompts, [records[prompt] for prompt in prompts], {"prompts": prompts})
    with (folder / results.MEASUREMENTS).open("wb") as stream:
        record_files.join_records(stream, paths, len(records))
    return folder / results.MEASUREMENTS


def measure(folder: Path, records: list[dict], size: int = 4) -> run_folder.RunFolder:
    """A run with all its batches, that only has to be finished."""
    run = open_run(folder)
    run.start()
    order = random.Random(1).sample(range(len(records)), len(records))
    for start in range(0, len(order), size):
        prompts = order[start : start + size]
        run.save_batch(prompts, [records[prompt] for prompt in prompts], 1.0)
    return run


def find_content(content: bytes, entry: zipfile.ZipInfo) -> int:
    """Where the content of a part of an archive begins."""
    place = entry.header_offset
    return place + 30 + sum(int.from_bytes(content[place + at : place + at + 2], "little") for at in (26, 28))


# What torch reads


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("n", [0, 1, 2, 23])
def test_joined_records_are_loaded_as_torch_save_would_have_them(folder, n, mmap):
    records, expected = create_mixed(n), io.BytesIO()
    torch.save(records, expected)
    expected.seek(0)
    found = torch.load(join(records, folder), weights_only=True, mmap=mmap)
    assert type(found) is list
    assert is_same(found, torch.load(expected, weights_only=True))
    for left, right in zip(found, records, strict=True):
        assert list(left) == list(right)
        assert [type(value) for value in left.values()] == [type(value) for value in right.values()]


def test_a_measured_prompts_candidates_are_still_views_of_one_tensor(folder):
    (record,) = torch.load(join([create_measured(0, 9)], folder), weights_only=True)
    for name in ("top_p_tokens", "top_p_probs"):
        assert len({part.untyped_storage().data_ptr() for part in record[name]}) == 1
        assert record[name][0].untyped_storage().nbytes() == 4 * sum(map(len, record[name]))
    assert not record["tokens"].requires_grad


def test_vectors_of_any_kind_are_saved_as_they_are(folder):
    parts = torch.arange(40).reshape(4, 10)
    vectors = [parts[1], parts[:, 3], parts[1, 2:5], torch.rand(3).bool(), torch.rand(3).half(), torch.empty(0)]
    vectors += [torch.rand(2, requires_grad=True), torch.rand(4, dtype=torch.float64)]
    (found,) = torch.load(join([create_record(0) | {"more": vectors}], folder), weights_only=True)
    for left, right in zip(found["more"], vectors, strict=True):
        assert left.dtype == right.dtype
        assert torch.equal(left, right)


def test_numbers_keep_every_bit(folder):
    values = [0.1, -0.0, 5e-324, float("inf"), -float("inf"), 1e308, 1, 2**70, True]
    (found,) = torch.load(join([create_record(0, 9) | {"entropies": values}], folder), weights_only=True)
    assert [(type(value), repr(value)) for value in found["entropies"]] == [(type(v), repr(v)) for v in values]


def test_a_tensor_that_is_no_vector_is_refused(folder):
    with pytest.raises(ValueError, match=r"must be a vector, not of shape \(2, 3\)"):
        join([create_record(0) | {"tokens": torch.zeros(2, 3)}], folder)


@pytest.mark.parametrize("large", [2**30, 1])
def test_every_part_begins_where_its_numbers_can_be_mapped(folder, monkeypatch, large):
    """Also if its header has room for sizes beyond 4 GiB."""
    monkeypatch.setattr(record_files, "LARGE", large)
    records = create_mixed(12)
    path = join(records, folder)
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
    assert all(find_content(content, part) % record_files.ALIGNMENT == 0 for part in parts)
    assert all(part.compress_type == zipfile.ZIP_STORED for part in parts)
    assert is_same(torch.load(path, weights_only=True, mmap=True), records)
    assert is_same(results.load(path), records)


def test_each_prompt_is_loaded_alone_also_without_the_index(folder, monkeypatch):
    records = create_mixed(20)
    join(records, folder)
    monkeypatch.setattr(measurements, "_open_records", lambda path: None)  # as if it had no index
    for index in range(20):
        assert is_same([results.load_records(folder, [index])[index]], [records[index]])


def test_of_a_runs_own_file_only_the_records_that_are_asked_for_are_unpickled(folder, monkeypatch):
    records, unpickled, unpickle = create_mixed(20), [], record_files._read_record
    join(records, folder)
    monkeypatch.setattr(torch, "load", None)
    monkeypatch.setattr(record_files, "_read_record", lambda piece: unpickled.append(piece) or unpickle(piece))
    for index in range(20):
        assert is_same([results.load_records(folder, [index])[index]], [records[index]])
    assert len(unpickled) == 20
    found = results.stream_records(folder, [7, 2, 11], ("prompt", "tokens"))
    assert next(found)[0] == 7
    assert len(unpickled) == 21
    for (place, one), index in zip(found, (2, 11), strict=True):
        assert place == index
        assert is_same([one], [{name: records[index][name] for name in ("prompt", "tokens")}])


def test_of_a_runs_own_file_vectors_of_unwanted_fields_are_not_read(folder, monkeypatch):
    join(create_mixed(9), folder)
    parts, read = [], zipfile.ZipFile.read
    monkeypatch.setattr(zipfile.ZipFile, "read", lambda archive, part: parts.append(part) or read(archive, part))
    assert [list(record) for _, record in results.stream_records(folder, fields=("prompt", "entropies"))] == [
        ["prompt", "entropies"]
    ] * 9
    assert parts
    assert not [part for part in parts if part.startswith(record_files.DATA)]


def test_vectors_of_any_kind_are_loaded_as_they_are(folder):
    vectors = [torch.rand(3).to(kind) for kind in (torch.half, torch.bool, torch.int16, torch.int8, torch.uint8)]
    vectors += [torch.rand(2, dtype=torch.float64), torch.empty(0)]
    for more in (vectors, [torch.rand(3).bfloat16()]):  # NumPy has no type for the latter
        join([create_record(0), create_record(1) | {"more": more}], folder)
        (found,) = results.load_records(folder, [1]).values()
        for left, right in zip(found["more"], more, strict=True):
            assert left.dtype == right.dtype
            assert torch.equal(left, right)


def test_records_can_be_arrays_whoever_has_written_them(folder):
    vectors = [torch.rand(3).half(), torch.tensor([7, 8])]
    for more in (vectors, [torch.rand(3).bfloat16()]):
        join([create_record(0), create_record(1) | {"more": more}], folder)
        ((number, found),) = results.stream_arrays(folder, [1])
        assert number == 1
        assert found["prompt"] == create_record(1)["prompt"]
        for left, right in zip(found["more"], more, strict=True):
            assert isinstance(left, np.ndarray)
            np.testing.assert_array_equal(left, right.float() if right.dtype == torch.bfloat16 else right)
    torch.save([create_record(0)], folder / results.MEASUREMENTS)
    ((_, found),) = results.stream_arrays(folder)
    np.testing.assert_array_equal(found["tokens"], create_record(0)["tokens"])
    assert isinstance(found["top_p_probs"][0], np.ndarray)


def test_the_arrays_of_a_runs_own_file_need_no_torch(folder):
    join(create_mixed(9), folder)
    code = "import sys; from nucleoscope.store import results; print(len(list(results.stream_arrays(sys.argv[1]))));"
    code += "assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "9\n"), done.stderr


@pytest.mark.parametrize("part", [record_files.PICKLE, record_files.DATA + "2_"])
def test_a_record_whose_bytes_have_changed_is_named_and_the_others_are_read(folder, part):
    path = join(create_mixed(9), folder)
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        entry = next(each for each in archive.infolist() if each.filename.startswith(part))
    place = find_content(content, entry)
    if part == record_files.PICKLE:
        place += content[place:].index(b"prompt 2")
    content[place] ^= 1
    path.write_bytes(content)
    assert list(results.load_records(folder, [0, 1, 8])) == [0, 1, 8]
    said = assert_one_line(catch_refusal(ValueError, results.load_records, folder, [2]))
    assert said == f"'{path}' is damaged"


def test_records_are_iterated_over_with_their_tokens_and_sizes(folder):
    records = create_mixed(12)
    for found, record in zip(record_files.iterate_records(join(records, folder)), records, strict=True):
        assert found["tokens"].tolist() == record["tokens"].tolist()
        assert [len(ids) for ids in found["top_p_tokens"]] == [len(ids) for ids in record["top_p_tokens"]]
        assert {name: found[name] for name in LISTS} == {name: record[name] for name in LISTS}


def test_a_prompt_of_two_files_is_that_of_the_first(folder):
    folder.mkdir(parents=True)
    paths = [folder / "a", folder / "b"]
    for path, seed in zip(paths, (1, 2), strict=True):
        with path.open("wb") as stream:
            record_files.write_records(stream, [0], [create_record(seed, seed)], {})
    with (folder / "c").open("wb") as stream:
        record_files.join_records(stream, paths, 1)
    assert is_same(torch.load(folder / "c", weights_only=True), [create_record(1, 1)])


# Memory


def measure_finish(folder: Path, n: int) -> int:
    """The peak of what finishing a run of ``n`` prompts allocates, in bytes."""
    run = measure(folder, [create_measured(index, 40) for index in range(n)], 25)
    tracemalloc.start()
    try:
        run.finish(n, {})
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_the_memory_to_finish_a_run_does_not_grow_with_its_records(folder, monkeypatch):
    monkeypatch.setattr(tokens, "ROWS", 400)
    monkeypatch.setattr(run_folder, "IN_MEMORY", 0)
    tracemalloc.start()
    record = create_measured(0, 40)  # noqa: F841 - it is what is measured
    size = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    measure_finish(folder.with_name("warm-up"), 50)
    few, many = (measure_finish(folder.with_name(f"{n} prompts"), n) for n in (50, 500))
    assert size > 15_000  # of a record, without its tensors' contents
    assert many - few < 450 * size / 4


def test_to_finish_no_more_records_are_unpickled_at_once_than_a_group_of_rows_has(folder, monkeypatch):
    monkeypatch.setattr(tokens, "ROWS", 60)
    alive, most = set(), []

    class Counted(dict):
        def __init__(self, record: dict):
            super().__init__(record)
            alive.add(id(self))
            most.append(len(alive))

        def __del__(self):
            alive.discard(id(self))

    iterate = record_files.iterate_records
    monkeypatch.setattr(run_folder, "iterate_records", lambda path: map(Counted, iterate(path)))
    monkeypatch.setattr(torch, "load", None)
    records = [create_measured(index, 20) for index in range(40)]
    measure(folder, records).finish(40, {})
    assert len(most) == 40
    assert max(most) <= 4  # three have 60 rows, and the next one is read before the last of them is dropped
    assert parquet.read_metadata(folder / "tokens.parquet").num_row_groups == 14


@pytest.mark.parametrize("rows", [1, 10, 45, 10_000])
def test_a_table_in_groups_is_the_table_of_all_records(folder, monkeypatch, rows):
    monkeypatch.setattr(tokens, "ROWS", rows)
    records = create_mixed(23)
    measure(folder, records).finish(23, {})
    expected = results.tabulate(records, "tiny", "math")
    pd.testing.assert_frame_equal(results.load_table(folder.parents[1]), expected, check_exact=True)


def test_a_table_that_was_lost_is_written_again_in_groups(folder, monkeypatch):
    records = create_mixed(23)
    measure(folder, records).finish(23, {})
    before = (folder / "tokens.parquet").read_bytes()
    (folder / "tokens.parquet").unlink()
    monkeypatch.setattr(tokens, "load", None)
    assert results.repair_tokens(folder)
    assert (folder / "tokens.parquet").read_bytes() == before


# Batches


def test_a_resumed_run_reads_no_record_to_find_out_what_is_there(folder, monkeypatch):
    records = create_mixed(23)
    measure(folder, records).release()
    monkeypatch.setattr(torch, "load", None)
    monkeypatch.setattr(record_files, "_PieceUnpickler", None)
    opened, open_file = [], record_files.read_batch
    monkeypatch.setattr(run_folder, "read_batch", lambda path: opened.append(path.name) or open_file(path))
    with open_run(folder) as run:
        assert run.discard_batches(LISTS) == 0
        for _ in range(2):
            assert sorted(index for batch in run.list_batches() for index in batch["indices"]) == list(range(23))
        assert sum(batch["tokens"] for batch in run.list_batches()) == sum(len(r["tokens"]) for r in records)
        assert sorted(opened) == sorted(path.name for path in run.batches.glob("*.pt"))


def test_no_batch_is_read_back_to_finish_the_run_that_saved_it(folder):
    records = create_mixed(23)
    run = measure(folder, records)
    for path in run.batches.glob("*.pt"):
        path.write_bytes(b"")
    assert run.load_tokens([3]) == {3: records[3]["tokens"].tolist()}
    run.finish(23, {})
    assert is_same(results.load(folder / "measurements.pt"), records)


@pytest.mark.parametrize("room", [0, 1, 20_000, 60_000])
def test_batches_in_memory_have_a_limit_beyond_which_they_are_read_from_disk(folder, monkeypatch, room):
    records = create_mixed(23)
    measure(folder.with_name("all"), records).finish(23, {})
    monkeypatch.setattr(run_folder, "IN_MEMORY", room)
    run = measure(folder, records)
    files = {path: path.read_bytes() for path in run.batches.glob("*.pt")}
    readable = set()
    for path, content in files.items():
        (prompts,) = [each["indices"] for each in run.list_batches() if min(each["indices"]) == int(path.stem)]
        path.write_bytes(b"")
        with contextlib.suppress(ValueError):
            run.load_tokens(prompts)
            readable.add(path)
        path.write_bytes(content)
    size = sum(len(files[path]) for path in readable)
    assert size <= room < sum(map(len, files.values()))
    assert size > room - 20_000  # no file is larger
    run = measure(folder.with_name("again"), records)
    run.finish(23, {})
    found = [(folder.with_name(name) / "measurements.pt").read_bytes() for name in ("all", "again")]
    assert found[0] == found[1]


@pytest.mark.parametrize("room", [0, run_folder.IN_MEMORY])
def test_of_a_batch_that_is_saved_twice_the_second_counts(folder, monkeypatch, room):
    records = create_mixed(4)
    run = measure(folder, records)
    monkeypatch.setattr(run_folder, "IN_MEMORY", room)
    run.save_batch([0, 1, 2, 3], records[::-1], 1.0)
    run.finish(4, {})
    assert is_same(results.load(folder / "measurements.pt"), records[::-1])


def test_of_a_batch_whose_second_saving_fails_the_first_counts(folder, monkeypatch):
    records = create_mixed(4)
    run = measure(folder, records)

    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", fail)
        with pytest.raises(OSError, match="No space left"):
            run.save_batch([0, 1, 2, 3], records[::-1], 1.0)
    run.finish(4, {})
    assert is_same(results.load(folder / "measurements.pt"), records)


@pytest.mark.parametrize("k", [1, 8, 500])
def test_the_size_of_a_batch_is_estimated(folder, k):
    quantities = list_recorded()
    records = [tiny.create_record("the cat sat on the mat", f"prompt {index}", index) for index in range(5)]
    for index in range(20):
        steps = []
        for _ in range(50):
            nucleus = Nucleus(torch.arange(k, dtype=torch.int32), torch.rand(k), torch.tensor([0, k]))
            steps += unpack(torch.tensor([7]), nucleus, torch.rand(len(quantities), 1).double(), quantities)
        records.append(build_record(f"prompt {index}", steps, quantities))
    variants = [torch.zeros(len(record["entropies"]), 12) for record in records]
    stream = io.BytesIO()
    record_files.write_records(stream, range(25), records, {}, variants)
    assert record_files.estimate_size(records, variants) == pytest.approx(stream.tell(), rel=0.1)


def test_a_file_in_memory_that_is_not_what_it_should_be_is_named_without_its_content(folder):
    path = folder / "000000.pt"
    with pytest.raises(ValueError, match=re.escape(f"'{path}' is damaged") + "$"):
        record_files.read_tokens(record_files.KeptFile(path, b"junk"), [0])


def test_a_batch_of_an_earlier_version_counts_as_unfinished(folder):
    run = measure(folder, create_mixed(8))
    (path, *_) = sorted(run.batches.glob("*.pt"))
    torch.save({"indices": [0], "records": [create_record(0)], "seconds": 1.0, "continued": []}, path)
    run.release()
    assert len(open_run(folder).list_batches()) == 1


@pytest.mark.parametrize(
    "batch",
    [
        [],
        {},
        {"indices": []},
        {"indices": ["0"], "seconds": 1.0, "tokens": 1, "columns": [], "continued": []},
        {"indices": [0], "seconds": None, "tokens": 1, "columns": [], "continued": []},
        {"indices": [0], "seconds": 1.0, "tokens": 1, "columns": None, "continued": []},
    ],
)
def test_a_batch_without_a_description_counts_as_unfinished(folder, batch):
    run = measure(folder, create_mixed(4))
    with (run.batches / "000000.pt").open("wb") as stream:
        record_files.write_records(stream, [0], [create_record(0)], batch)
    run.release()
    assert open_run(folder).list_batches() == []


@pytest.mark.parametrize("part", ["archive/data.pkl", "archive/data/", "archive/records.json"])
def test_a_batch_that_has_changed_is_measured_again_when_a_run_ends(folder, part):
    records = create_mixed(12)
    measure(folder, records).release()
    run = open_run(folder)  # as a process that resumes it: the one that saved the batches has them in memory
    run.start()
    path = sorted(run.batches.glob("*.pt"))[1]
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        (entry, *_) = [one for one in archive.infolist() if one.filename.startswith(part) and one.file_size]
    content[entry.header_offset + 300 if part.endswith("l") else find_content(content, entry)] ^= 1
    path.write_bytes(content)
    (lost,) = [batch["indices"] for batch in run.list_batches() if min(batch["indices"]) == int(path.stem)]
    said = assert_one_line(catch_refusal(ValueError, run.finish, 12, {}))
    assert said == f"'{path}' is damaged, and was removed: run the same command again"
    assert not (folder / "measurements.pt").exists()
    run.release()
    again = open_run(folder)
    with again:
        assert len(again.list_batches()) == 2
        again.save_batch(lost, [records[prompt] for prompt in lost], 1.0)
        again.finish(12, {})
    assert is_same(results.load(folder / "measurements.pt"), records)


def test_a_compressed_batch_is_not_unpacked(folder):
    run = measure(folder, create_mixed(4))
    (path,) = run.batches.glob("*.pt")
    with zipfile.ZipFile(path) as archive:
        parts = {part.filename: archive.read(part) for part in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    run.release()
    assert open_run(folder).list_batches() == []


def shift_lengths(index: dict) -> dict:
    """An index that says of the first piece that it is a byte longer, and of the second that it is one shorter."""
    lengths = index["lengths"]
    return index | {"lengths": [lengths[0] + 1, lengths[1] - 1, *lengths[2:]]}


def cut_checksums(index: dict) -> dict:
    return index | {"checksums": index["checksums"][:-1]}


CHANGES = {
    "no index": lambda parts: parts.pop(record_files.INDEX),
    "no byte order": lambda parts: parts.pop(record_files.ORDER),
    "no JSON": lambda parts: parts.update({record_files.INDEX: b"{"}),
    "a list": lambda parts: parts.update({record_files.INDEX: b"[]"}),
    "a negative length": lambda parts: parts.update({record_files.INDEX: b'{"fields": [], "lengths": [-1, 5]}'}),
    "fewer checksums": lambda parts: parts.update(
        {record_files.INDEX: json.dumps(cut_checksums(json.loads(parts[record_files.INDEX]))).encode()}
    ),
    "other lengths": lambda parts: parts.update(
        {record_files.INDEX: json.dumps(shift_lengths(json.loads(parts[record_files.INDEX]))).encode()}
    ),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_file_whose_index_is_of_no_use_has_the_table_and_the_records_of_what_torch_loads(folder, change):
    records = create_mixed(12)
    path = join(records, folder)
    with zipfile.ZipFile(path) as archive:
        parts = {part.filename: archive.read(part) for part in archive.infolist()}
    change(parts)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    assert is_same(list(results.load_records(folder).values()), records)
    expected = results.tabulate(records, "tiny", "math")
    pd.testing.assert_frame_equal(results.load_table(folder.parents[1]), expected, check_exact=True)
