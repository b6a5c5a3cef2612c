"""`prompts.load`: what comes out for each kind of source, and one line of what is wrong for each bad one."""

import csv
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import hub
from messages import assert_one_line
from nucleoscope.data import prompts

ODD = [  # texts that must come out as they went in
    "a plain one",
    "  spaces around  ",
    "🦊🏽‍🦱 family: 👩‍👩‍👧",
    "שלום עולם، مرحبا",
    "naïve café, déjà vu",
    "quotes \" and ' and , and ; and \\n",
    "a\ttab",
    "form\x0cfeed and \u2028 line separator and \x85",
    "\N{ZERO WIDTH NO-BREAK SPACE}not a byte order mark",
]
MULTILINE = [*ODD, "two\nlines", "a carriage\r\nreturn", "\nafter an empty line"]


def write_jsonl(path: Path, texts: list, column: str = "prompt") -> Path:
    path.write_text("".join(json.dumps({"id": i, column: text}) + "\n" for i, text in enumerate(texts)))
    return path


def write_csv(path: Path, texts: list, column: str = "prompt") -> Path:
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([["id", column], *enumerate(texts)])
    return path


def write_parquet(path: Path, texts: list, column: str = "prompt") -> Path:
    table = pa.table({"id": range(len(texts)), column: pa.array(texts, None if texts else pa.string())})
    pq.write_table(table, path, row_group_size=3)  # several groups: their order must be kept
    return path


WRITERS = {".jsonl": write_jsonl, ".csv": write_csv, ".parquet": write_parquet}
every_format = pytest.mark.parametrize("suffix", WRITERS)


@pytest.fixture(autouse=True)
def no_cache_of_the_user(monkeypatch, tmp_path_factory):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "datasets")


@pytest.fixture
def refusal(tmp_path):
    """Gives the message with which `prompts.load` refuses, with TMP for the test's folder (its name has words too)."""

    def message(name: str | Path, *args, **options) -> str:
        with pytest.raises((ValueError, OSError)) as caught:
            prompts.load(str(name), *args, **options)
        return assert_one_line(str(caught.value).replace(str(tmp_path), "TMP"))

    return message


# The packaged sets


@pytest.mark.parametrize("name", prompts.PACKAGED)
def test_a_packaged_set_has_100_prompts(name):
    assert len(prompts.load(name).texts) == 100


@pytest.mark.parametrize("name", prompts.PACKAGED)
@pytest.mark.parametrize("n", [1, 7, 99])
def test_n_prompts_takes_the_first_n(name, n):
    assert prompts.load(name, n).texts == prompts.load(name).texts[:n]


def test_articles_stand_behind_the_studys_words():
    assert prompts.SUMMARISE == "Please summarize the following text:\n "
    assert all(text.startswith(prompts.SUMMARISE) for text in prompts.load("articles").texts)


@pytest.mark.parametrize("name", ["math", "stories"])
def test_other_packaged_prompts_are_as_written(name):
    lines = (Path(prompts.__file__).parent / "packaged" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    assert prompts.load(name).texts == [json.loads(line)["prompt"] for line in lines]


@pytest.mark.parametrize("name", prompts.PACKAGED)
def test_a_packaged_set_is_identified_by_its_content(name):
    content = (Path(prompts.__file__).parent / "packaged" / f"{name}.jsonl").read_bytes()
    assert prompts.load(name, 3).identity == {"source": "packaged", "sha256": hashlib.sha256(content).hexdigest()}


# Files


@every_format
def test_a_file_gives_its_texts_unchanged_and_in_order(tmp_path, suffix):
    assert prompts.load(str(WRITERS[suffix](tmp_path / f"x{suffix}", MULTILINE))).texts == MULTILINE


def test_a_text_file_has_one_prompt_a_line(tmp_path):
    path = tmp_path / "x.txt"
    path.write_bytes("\n".join(ODD).encode() + b"\n")
    assert prompts.load(str(path)).texts == ODD
    assert prompts.load(str(path)).blank_lines == 0


def test_a_text_file_may_lack_the_last_newline(tmp_path):
    path = tmp_path / "x.txt"
    path.write_bytes(b"one\ntwo\nthree")
    assert prompts.load(str(path)).texts == ["one", "two", "three"]


@pytest.mark.parametrize(
    ("number", "texts", "blank"), [(1, ["one"], 1), (2, ["one", " two"], 3), (3, ["one", " two", "three"], 3)]
)
def test_blank_lines_of_a_text_file_are_no_prompts_and_are_counted_up_to_the_last_prompt(
    tmp_path, number, texts, blank
):
    path = tmp_path / "x.TXT"
    path.write_bytes("\none\r\n\r\n \t\u3000\n two\nthree\n\n\n".encode())
    found = prompts.load(str(path), number)
    assert (found.texts, found.blank_lines) == (texts, blank)


def test_a_text_file_of_blank_lines_has_no_prompts(refusal, tmp_path):
    (tmp_path / "x.txt").write_bytes(b"\n \n\r\n")
    assert refusal(tmp_path / "x.txt") == "'TMP/x.txt' has no prompts: it has only blank lines"


@every_format
@pytest.mark.parametrize(("text", "said"), [("", "empty"), (" \t", "blank"), ("\n", "blank"), ("\u3000", "blank")])
def test_a_prompt_without_words_is_named_by_its_row(refusal, tmp_path, suffix, text, said):
    path = WRITERS[suffix](tmp_path / f"x{suffix}", ["one", "two", text, "four"])
    row = {".jsonl": "line 3", ".csv": f"line {5 if text == chr(10) else 4}", ".parquet": "row 3"}[suffix]
    why = f"column 'prompt' is {said}: remove this row, or add a prompt"
    assert refusal(path) == f"'TMP/x{suffix}', {row}: {why}"
    assert prompts.load(str(path), 2).texts == ["one", "two"]


@pytest.mark.parametrize(
    ("suffix", "line"), [(".csv", "line 3: column 'prompt' is empty"), (".parquet", "row 2: column 'prompt' is null")]
)
def test_a_prompt_that_pandas_has_as_missing_is_named_by_its_row(refusal, tmp_path, suffix, line):
    rows, path = pd.DataFrame({"prompt": ["one", None]}), tmp_path / f"x{suffix}"
    _ = rows.to_csv(path, index=False) if suffix == ".csv" else rows.to_parquet(path)
    assert f"'TMP/x{suffix}', {line}" in refusal(path)


@every_format
def test_a_text_may_come_after_no_prompt(tmp_path, suffix):
    rows = pd.DataFrame({"prompt": ["", "b"], "answer": ["one", "two"]})
    path = tmp_path / f"x{suffix}"
    if suffix == ".jsonl":
        rows.to_json(path, orient="records", lines=True)
    else:
        _ = rows.to_csv(path, index=False) if suffix == ".csv" else rows.to_parquet(path)
    data = prompts.load(str(path), text_column="answer")
    assert (data.texts, data.continuations) == (["", "b"], ["one", "two"])


@every_format
def test_prompt_column_names_another_column(tmp_path, suffix):
    path = WRITERS[suffix](tmp_path / f"x{suffix}", ODD, "question")
    assert prompts.load(str(path), prompt_column="question").texts == ODD


@every_format
def test_a_file_gives_the_first_n(tmp_path, suffix):
    path = WRITERS[suffix](tmp_path / f"x{suffix}", [str(i) for i in range(20)])
    assert prompts.load(str(path), 7).texts == [str(i) for i in range(7)]


@every_format
def test_a_file_with_fewer_than_n_gives_all(tmp_path, suffix):
    assert prompts.load(str(WRITERS[suffix](tmp_path / f"x{suffix}", ODD)), 1000).texts == ODD


@every_format
def test_a_file_is_identified_by_its_content(tmp_path, suffix):
    path = WRITERS[suffix](tmp_path / f"x{suffix}", ODD)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert prompts.load(str(path), 2).identity == {"source": "file", "sha256": digest}


@every_format
def test_a_changed_file_has_another_identity(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    before = prompts.load(str(WRITERS[suffix](path, ["a", "b"]))).identity
    assert prompts.load(str(WRITERS[suffix](path, ["a", "c"]))).identity != before


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize(
    ("suffix", "lines"),
    [
        (".jsonl", ['{"prompt": "one"}', '{"prompt": "two"}']),
        (".csv", ["prompt,answer", "one,1", "two,2"]),
        (".txt", ["one", "two"]),
    ],
)
def test_byte_order_marks_and_windows_line_ends_are_no_part_of_a_prompt(tmp_path, suffix, lines, mark, newline):
    path = tmp_path / f"x{suffix}"
    path.write_bytes(mark + "".join(line + newline for line in lines).encode())
    assert prompts.load(str(path)).texts == ["one", "two"]


def test_blank_lines_between_json_objects_are_skipped(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('\n{"prompt": "one"}\n\n  \n{"prompt": "two"}\n')
    assert prompts.load(str(path)).texts == ["one", "two"]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".txt"])
def test_a_very_long_prompt_is_kept_whole(tmp_path, suffix):
    text = "long " * 60_000  # beyond the csv module's own limit
    path = tmp_path / f"x{suffix}"
    if suffix == ".txt":
        path.write_text(text + "\n")
    else:
        WRITERS[suffix](path, [text])
    assert prompts.load(str(path)).texts == [text]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet", ".txt"])
@pytest.mark.parametrize("stem", ["a b", "é", "x[1]", "x*", "a,b", "#1?"])
def test_a_files_name_may_have_any_characters(tmp_path, suffix, stem):
    path = tmp_path / f"{stem}{suffix}"
    if suffix == ".txt":
        path.write_text("one\n")
    else:
        WRITERS[suffix](path, ["one"])
    assert prompts.load(str(path)).texts == ["one"]


def test_parquet_files_of_other_text_types_are_read(tmp_path):
    for number, kind in enumerate([pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]):
        path = tmp_path / f"{number}.parquet"
        pq.write_table(pa.table({"prompt": pa.array(["one", "two", "one"]).cast(kind)}), path)
        assert prompts.load(str(path)).texts == ["one", "two", "one"], kind


def test_a_file_that_pandas_wrote_is_read(tmp_path):
    pd.DataFrame({"prompt": ["one", "two"]}, index=[5, 9]).to_parquet(tmp_path / "x.parquet")
    assert prompts.load(str(tmp_path / "x.parquet")).texts == ["one", "two"]


# What is refused


def test_an_unknown_name_lists_the_names(refusal):
    message = refusal("gsm9k")
    assert all(name in message for name in ("gsm9k", *prompts.HUB, *prompts.PACKAGED, *prompts.SUFFIXES))


@pytest.mark.parametrize("suffix", prompts.SUFFIXES)
def test_a_missing_file_is_named(refusal, tmp_path, suffix):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        prompts.load(str(tmp_path / f"nowhere{suffix}"))
    assert "does not exist" in refusal(tmp_path / f"nowhere{suffix}")


def test_a_pipe_or_a_device_is_called_what_it_is(refusal, tmp_path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "device.txt").symlink_to("/dev/null")
    for name in ("pipe.jsonl", "device.txt"):
        assert refusal(tmp_path / name) == f"'TMP/{name}' is not a regular file: copy its contents to one"


def test_a_folder_is_no_file(refusal, tmp_path):
    (tmp_path / "x.jsonl").mkdir()
    assert "is a folder" in refusal(tmp_path / "x.jsonl")


@pytest.mark.parametrize("n", [0, -1])
@pytest.mark.parametrize("name", ["math", "gsm8k", "nowhere.jsonl"])
def test_n_prompts_below_one_is_refused_first(refusal, name, n):
    message = refusal(name, n)
    assert "n_prompts" in message
    assert str(n) in message


@every_format
def test_a_missing_column_lists_those_there_are(refusal, tmp_path, suffix):
    path = WRITERS[suffix](tmp_path / f"x{suffix}", ODD, "question")
    message = refusal(path)
    assert all(part in message for part in (path.name, "'prompt'", "id", "question", "prompt_column"))


@every_format
def test_a_missing_named_column_is_named(refusal, tmp_path, suffix):
    message = refusal(WRITERS[suffix](tmp_path / f"x{suffix}", ODD), prompt_column="text")
    assert "'text'" in message
    assert "prompt" in message


def test_a_csv_without_a_header_gives_one_line(refusal, tmp_path):
    path = tmp_path / "x.csv"
    path.write_text('"Once upon\na time","there was"\n"a second\nprompt","and more"\n')
    assert "x.csv" in refusal(path)


@every_format
def test_a_file_with_no_rows_says_what_it_has_instead(refusal, tmp_path, suffix):
    said = {".jsonl": "is empty", ".csv": "has a header but no rows", ".parquet": "has no rows"}[suffix]
    path = WRITERS[suffix](tmp_path / f"x{suffix}", [])
    assert refusal(path) == f"'TMP/x{suffix}' has no prompts: it {said}"


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".txt"])
@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf"])
def test_a_file_of_no_bytes_is_empty(refusal, tmp_path, suffix, content):
    path = tmp_path / f"x{suffix}"
    path.write_bytes(content)
    message = refusal(path)
    assert "empty" in message
    assert path.name in message


@pytest.mark.parametrize("line", ['{"prompt": "cut', '{"prompt": "x"}}', "{'prompt': 'x'}", "prompt", '{"prompt" "x"}'])
def test_broken_json_is_named_by_its_line(refusal, tmp_path, line):
    path = tmp_path / "x.jsonl"
    path.write_text('{"prompt": "fine"}\n\n' + line + "\n")
    message = refusal(path)
    assert "x.jsonl', line 3" in message
    assert "JSON" in message


@pytest.mark.parametrize("line", ['["prompt"]', '"prompt"', "3", "null", "true"])
def test_json_that_is_no_object_is_named_by_its_line(refusal, tmp_path, line):
    path = tmp_path / "x.jsonl"
    path.write_text('{"prompt": "fine"}\n' + line + "\n")
    message = refusal(path)
    assert "line 2" in message
    assert "object" in message


@pytest.mark.parametrize("value", [None, 3, 1.5, True, ["a"], {"a": "b"}])
def test_json_that_is_no_text_is_named_by_its_line(refusal, tmp_path, value):
    message = refusal(write_jsonl(tmp_path / "x.jsonl", ["fine", "fine", value]))
    assert "line 3" in message
    assert json.dumps(value) in message
    assert "not text" in message


def test_half_an_emoji_is_named_by_its_line(refusal, tmp_path):
    """A lone surrogate is no text: no tokenizer takes it."""
    assert "line 2" in refusal(write_jsonl(tmp_path / "x.jsonl", ["fine", "cut emoji \ud83d"]))


def test_a_csv_row_that_is_too_short_is_named_by_its_line(refusal, tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("id,prompt\n1,fine\n\n2\n")
    assert "line 4: 1 field, but the header has 2: complete or remove that line" in refusal(path)
    assert prompts.load(str(path), 3, prompt_column="id").texts == ["1", "2"]


def test_a_csv_row_with_an_unquoted_comma_is_named_by_its_line(refusal, tmp_path):
    path = tmp_path / "p.csv"
    path.write_text('id,prompt\n1,"one, two"\n2,three, four\n')
    assert prompts.load(str(path), 1).texts == ["one, two"]
    message = refusal(str(path))
    assert "line 3: 3 fields, but the header has 2: put quotes around text that contains a comma" in message


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".jsonl"])
def test_two_columns_of_one_name_are_refused(refusal, tmp_path, suffix):
    path = tmp_path / f"p{suffix}"
    if suffix == ".parquet":
        columns = [pa.array(["one"]), pa.array(["two"]), pa.array(["x"])]
        pq.write_table(pa.Table.from_arrays(columns, names=["prompt", "prompt", "id"]), path)
    elif suffix == ".csv":
        path.write_text("prompt,prompt,id\none,two,x\n")
    else:
        path.write_text('{"prompt": "one", "prompt": "two", "id": "x", "more": {"prompt": 3}}\n')
    said = "', line 1: duplicate key 'prompt': " if suffix == ".jsonl" else "' has 2 columns named 'prompt': "
    assert f"{said}rename or remove all but one" in refusal(str(path))
    assert prompts.load(str(path), 1, prompt_column="id").texts == ["x"]


def test_json_that_is_nested_too_deeply_is_named_by_its_line(refusal, tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "one"}\n{"prompt": ' + "[" * 100_000 + "]" * 100_000 + "}\n")
    assert "line 2: not valid JSON (it is nested too deeply): correct that line" in refusal(str(path))


@pytest.mark.parametrize("values", [["fine", None], [1, 2], [b"bytes"], [["a"], ["b"]]])
def test_parquet_that_holds_no_text_is_named_by_its_row(refusal, tmp_path, values):
    message = refusal(write_parquet(tmp_path / "x.parquet", values))
    assert f"row {1 + (values[0] == 'fine')}" in message
    assert "not text" in message


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".txt"])
@pytest.mark.parametrize("content", ["café\nprompt\n".encode("latin-1"), "prompt\none\n".encode("utf-16")])
def test_other_encodings_are_refused(refusal, tmp_path, suffix, content):
    path = tmp_path / f"x{suffix}"
    path.write_bytes(content)
    message = refusal(path)
    assert "UTF-8" in message
    assert path.name in message


@pytest.mark.parametrize("before", [1, 30_000])
def test_text_that_is_not_utf8_is_named_by_its_line(refusal, tmp_path, before):
    path = tmp_path / "x.txt"
    path.write_bytes(b"a line\n" * before + b"\xff\n")
    with path.open("rb") as lines:
        number = sum(1 for _ in lines)
    with pytest.raises(ValueError, match=f"line {number}: not UTF-8"):
        prompts.load(str(path), n_prompts=number)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"no parquet at all", b"PAR1" + b"x" * 100 + b"PAR1"])
def test_a_broken_parquet_file_is_named(refusal, tmp_path, content):
    path = tmp_path / "x.parquet"
    path.write_bytes(content)
    message = refusal(path)
    assert path.name in message
    assert "Parquet" in message.replace("x.parquet", "")


def test_a_truncated_parquet_file_is_named(refusal, tmp_path):
    path = write_parquet(tmp_path / "x.parquet", ODD * 50)
    path.write_bytes(path.read_bytes()[:-20])
    assert "x.parquet" in refusal(path)


def test_a_parquet_file_damaged_in_the_middle_is_named(refusal, tmp_path):
    path = write_parquet(tmp_path / "x.parquet", [f"a prompt of some length, number {i}" for i in range(300)])
    content = bytearray(path.read_bytes())
    content[2000:4000] = b"\xff" * 2000
    path.write_bytes(content)
    assert "x.parquet" in refusal(path, 300)


# Hub data sets, with the library's own load_dataset replaced

ASKED = {  # what the study means: id, config, split, revision
    "gsm8k": ("openai/gsm8k", "main", "test", "740312add88f781978c0658806c59bc2815b9866"),
    "writingprompts": ("euclaise/writingprompts", None, "validation", "35f0aa359452ba8147b34d925684fccee26679cc"),
    "xsum": ("EdinburghNLP/xsum", None, "test", "7d4d486c2f8ef850b1a11aead99b894ff3dd7da9"),
}
COLUMN = {"gsm8k": "question", "writingprompts": "prompt", "xsum": "document"}


class FakeHub:
    """Stands for `datasets.load_dataset`: notes what is asked for, refuses the first ``refuse`` requests."""

    def __init__(self, refuse: int = 0):
        self.refuse, self.asked = refuse, []

    def __call__(self, path, name=None, *, split, revision, cache_dir):
        assert revision.replace("/", "-") == Path(cache_dir).name  # another revision in the cache is never taken for it
        self.asked.append((path, name, split, revision))
        if len(self.asked) <= self.refuse:
            raise RuntimeError(f"no {revision[:6]}\nand more lines of it")
        texts = [f"text {i}" for i in range(10)]
        return datasets.Dataset.from_dict({"other": range(10)} | dict.fromkeys(COLUMN.values(), texts))


@pytest.fixture
def fake_hub(monkeypatch):
    def use(**options) -> FakeHub:
        fake = FakeHub(**options)
        monkeypatch.setattr(datasets, "load_dataset", fake)
        return fake

    return use


@pytest.mark.parametrize("name", ASKED)
def test_hub_sets_are_asked_for_as_designed(fake_hub, name):
    fake = fake_hub()
    loaded = prompts.load(name, 4)
    assert fake.asked == [ASKED[name]]
    assert prompts.HUB[name].column == COLUMN[name]
    assert loaded.identity == {"source": "hub", "id": ASKED[name][0], "revision": ASKED[name][3]}


@pytest.mark.parametrize("name", ASKED)
def test_hub_sets_give_the_first_n_behind_their_words(fake_hub, name):
    fake_hub()
    prefix = "Please summarize the following text:\n " if name == "xsum" else ""
    assert prompts.load(name, 4).texts == [f"{prefix}text {i}" for i in range(4)]
    assert len(prompts.load(name, 100).texts) == 10


def test_xsum_falls_back_to_the_parquet_branch(fake_hub):
    fake = fake_hub(refuse=1)
    loaded = prompts.load("xsum", 2)
    assert [revision for *_, revision in fake.asked] == [ASKED["xsum"][3], "refs/convert/parquet"]
    assert fake.asked[0][:3] == fake.asked[1][:3]
    assert loaded.identity["revision"] == "refs/convert/parquet"


@pytest.mark.parametrize("name", ASKED)
def test_a_hub_set_that_cannot_be_had_says_what_was_tried(refusal, fake_hub, name):
    fake = fake_hub(refuse=9)
    message = refusal(name)
    assert name in message
    assert ASKED[name][0] in message
    assert all(revision in message and f"no {revision[:6]}" in message for *_, revision in fake.asked)


def test_hub_sets_are_refused_in_one_line_without_a_network(tmp_path):
    code = """
import json
from nucleoscope.data import prompts
said = {}
for name in prompts.HUB:
    try:
        prompts.load(name)
    except OSError as error:
        said[name] = str(error)
print(json.dumps(said))
"""
    environment = hub.clean_environment(tmp_path, HF_HUB_OFFLINE="1")
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    said = json.loads(run.stdout.splitlines()[-1])
    assert set(said) == set(ASKED)
    for name, message in said.items():
        assert f"data set {name} is not in the cache {tmp_path}" in assert_one_line(message)
        assert "unset HF_HUB_OFFLINE, or run scripts/prefetch.py" in message


# Texts to measure, from another column


def write_rows(path: Path, texts: list) -> Path:
    rows = pd.DataFrame({"prompt": [f"prompt {i}" for i in range(len(texts))], "answer": texts})
    writers = {".jsonl": lambda: rows.to_json(path, orient="records", lines=True)}
    writers |= {".csv": lambda: rows.to_csv(path, index=False), ".parquet": lambda: rows.to_parquet(path)}
    writers[path.suffix]()
    return path


@every_format
def test_texts_stand_beside_their_prompts(tmp_path, suffix):
    path = write_rows(tmp_path / f"x{suffix}", ["one", " two\nlines", "🦊"])
    data = prompts.load(str(path), 2, text_column="answer")
    assert data.texts == ["prompt 0", "prompt 1"]
    assert data.continuations == ["one", " two\nlines"]
    assert data.identity == prompts.load(str(path)).identity


@every_format
def test_an_empty_text_is_named_by_its_row(refusal, tmp_path, suffix):
    path = write_rows(tmp_path / f"x{suffix}", ["one", "", "three"])
    message = refusal(path, text_column="answer")
    row = {".jsonl": "line 2", ".csv": "line 3", ".parquet": "row 2"}[suffix]
    assert f"'TMP/x{suffix}', {row}: column 'answer' is empty: remove this row" in message
    assert prompts.load(str(path), 1, text_column="answer").continuations == ["one"]


@every_format
def test_a_missing_text_column_lists_those_there_are(refusal, tmp_path, suffix):
    path = write_rows(tmp_path / f"x{suffix}", ["one"])
    message = refusal(path, text_column="summary")
    assert message == f"'TMP/x{suffix}' has no column 'summary': set text_column to 'answer'"


def test_a_file_of_lines_has_no_texts_beside_them(refusal, tmp_path):
    (tmp_path / "x.txt").write_text("one\n")
    said = "has no columns: text_column needs a .jsonl, .csv or .parquet file"
    assert said in refusal(tmp_path / "x.txt", 1, None, "a")


@pytest.mark.parametrize("name", [*ASKED, "x.txt"])
def test_a_column_of_prompts_is_refused_where_there_is_no_choice(refusal, fake_hub, tmp_path, name):
    """And not ignored, whatever it is."""
    fake = fake_hub()
    (tmp_path / "x.txt").write_text("one\n")
    message = refusal(tmp_path / name if name == "x.txt" else name, prompt_column=COLUMN.get(name, "prompt"))
    assert message.startswith(f"prompt_column is '{COLUMN.get(name, 'prompt')}', but ")
    assert message.endswith("omit prompt_column")
    assert fake.asked == []


@pytest.mark.parametrize(
    "chosen",
    [
        {},
        {"XDG_CACHE_HOME": "~/x"},
        {"HF_HOME": "~/h"},
        {"HF_DATASETS_CACHE": "/somewhere/d"},
        {"HF_HOME": "/h", "HF_DATASETS_CACHE": "/d", "XDG_CACHE_HOME": "/x"},
    ],
)
def test_the_cache_is_found_without_datasets_where_datasets_has_it(monkeypatch, tmp_path, chosen):
    monkeypatch.setenv("HOME", str(tmp_path))
    for variable in ("XDG_CACHE_HOME", "HF_HOME", "HF_DATASETS_CACHE"):
        monkeypatch.delenv(variable, raising=False)
    for variable, value in chosen.items():
        monkeypatch.setenv(variable, value)
    spec = importlib.util.spec_from_file_location("datasets.config_now", datasets.config.__file__)
    expected = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(expected)
    monkeypatch.delitem(sys.modules, "datasets")
    assert prompts.locate_all_caches() == Path(expected.HF_DATASETS_CACHE)


def test_a_cache_that_a_program_has_chosen_is_used(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    assert prompts.locate_cache("refs/x") == tmp_path / "nucleoscope" / "refs-x"


def test_a_packaged_set_without_answers_says_what_it_has(refusal):
    said = "'stories' has no column 'answer': its only column is 'prompt', so it has no texts to measure"
    assert refusal("stories", text_column="answer") == said


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "a.csv",
            "Why?\nHow?\n",
            "'TMP/a.csv' has no column 'prompt' (its first line is 'Why?'): if that line is not a header, add one "
            "above it that contains 'prompt'; if it is, set prompt_column to that name",
        ),
        ("b.csv", "\nprompt\na\n", "'TMP/b.csv', line 1 is blank: it must contain the names of the columns"),
        ("c.csv", "a" * 50 + "\nb\n", "(its first line is '" + "a" * 40 + "...'): if that line"),
        (
            "d.jsonl",
            '{"prompt": [{"role": "user", "content": "What is it?"}]}',
            '"content": "What is it..., not text: give',
        ),
    ],
)
def test_what_is_cut_off_is_marked_and_a_first_line_may_be_no_header(refusal, tmp_path, name, content, said):
    (tmp_path / name).write_text(content)
    assert said in refusal(str(tmp_path / name))


def test_a_value_that_is_nested_too_deeply_to_be_shown_is_described():
    value = []
    for _ in range(100_000):
        value = [value]
    assert prompts._quote_json(value) == "deeply nested JSON"
    assert prompts._quote_json(["テスト"]) == '["テスト"]'


def test_a_column_that_is_taken_is_not_offered_for_the_other(refusal, tmp_path):
    for names, said in (
        ("qa", "set prompt_column to 'q'"),
        ("a", "its only column, 'a', is already used as text_column: add a column with the prompts"),
    ):
        path = tmp_path / f"{names}.jsonl"
        path.write_text(json.dumps(dict.fromkeys(names, "text")) + "\n")
        assert refusal(str(path), text_column="a").endswith(f"has no column 'prompt': {said}")


@pytest.mark.parametrize("name", ASKED)
def test_hub_sets_give_texts_from_any_column(refusal, fake_hub, name):
    fake_hub()
    column = COLUMN[name]  # the stand-in has texts in these alone
    data = prompts.load(name, 3, text_column=column)
    assert data.continuations == [f"text {i}" for i in range(3)]  # without the study's words
    assert f"'{name}' has no column 'story': set text_column to one of 'other', " in refusal(name, text_column="story")
    assert f"'{name}', row 1: column 'other' is 0, not text" in refusal(name, text_column="other")


def test_a_file_is_hashed_in_parts(tmp_path, monkeypatch):
    path = tmp_path / "large.v2.jsonl"
    path.write_text('{"prompt": "a"}\n' * 100_000)
    expected = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(Path, "read_bytes", None)
    assert prompts.load(str(path), 3).identity == {"source": "file", "sha256": expected}


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (1, "has only 1 prompt (n_prompts is 100)"),
        (2, "has only 2 prompts (n_prompts is 100): all are used"),
        (100, ""),
    ],
)
def test_a_data_set_with_fewer_prompts_than_asked_for_is_announced(number, said):
    assert prompts.describe_shortage("x.jsonl", number, 100) == (said and f"x.jsonl {said}")


@pytest.mark.parametrize("check", [prompts.check, prompts.load])
def test_a_column_of_lines_that_are_not_there_is_not_the_problem(check, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.txt' does not exist"):
        check(str(tmp_path / "gone.txt"), prompt_column="x")
