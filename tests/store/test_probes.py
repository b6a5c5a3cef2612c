"""Probes of what others may have put into a results folder: names, files, links and lock folders.

In each, nothing outside the folder is touched, nothing in a file runs, and what is wrong is said in one line.
"""

import csv
import html
import io
import os
import pickle
import re
import stat
import struct
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import cbook
from test_results import create_record

from messages import assert_one_line
from nucleoscope import atomic, names
from nucleoscope.book import site
from nucleoscope.models import gpus
from nucleoscope.store import locking, results, run_folder, tokens
from nucleoscope.views import figures, tables
from nucleoscope.workflow import grid, logs, status

# Names


HOSTILE = {
    "line break": "a\nb",
    "carriage return": "\rb",
    "tab": "\t=1",
    "equals": '=HYPERLINK("http://x","y")',
    "plus": "+1",
    "minus": "-2+3",
    "at": "@SUM(1)",
    "mathematics": "$x^{$",
    "one dollar": "a$",
    "open group": "$\\frac{",
    "LaTeX": "\\input{/etc/passwd}%&_#~^",
    "comment": "a%b\n\\end{tabular}",
    "HTML": "<b onclick='x'>&amp;</b>",
    "hover": "%{x}{}",
    "terminal": "\x1b]0;title\x07\x1b[31m",
    "Unicode line": "a\u2028b\u2029c\x85d",
    "missing value": "NA",
    "number": "007",
}
hostile = pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE)


@hostile
def test_a_name_in_a_line_is_one_visible_line(name):
    shown = names.escape_line(name)
    assert len(shown.splitlines()) == 1
    assert shown.isprintable()


@hostile
def test_a_name_in_latex_is_text_on_one_line(name):
    left = re.sub(r"\\(?:[&%$#_{}]|text(?:asciitilde|asciicircum|backslash)\{\})", "", names.escape_latex(name))
    assert not re.search(r"[&%$#_{}~^\\\n\r]", left)


@hostile
def test_a_name_in_matplotlib_is_drawn_as_it_is(name):
    text = names.escape_mathtext(name)
    assert not cbook.is_math_text(text)
    assert text.replace(r"\$", "$") == names.escape_line(name)


@hostile
def test_a_name_in_plotly_is_no_markup_and_no_variable(name):
    text = names.escape_plotly(name)
    assert not re.search("[<>$'\"{}]|&(?!#?[a-z0-9]+;)", text)
    assert html.unescape(text) == names.escape_line(name)


@pytest.fixture(scope="module")
def statistics() -> pd.DataFrame:
    """A table of coefficients with a run for each hostile name, all numbers alike."""
    pair = [*(f"{kind} r" for kind in ("Pearson", "Spearman", "within-prompt Spearman", "partial Spearman"))]
    numbers = [*pair, *(f"{kind} {end}" for kind in ("Pearson", "Spearman") for end in ("low", "high", "log10 p"))]
    rows = [
        {"Model": name, "Dataset": name, **dict.fromkeys(numbers, -0.5), "Pearson p": "1e-700", "Spearman p": ""}
        | {"tokens": 5, "tokens with k > 1": 3, "prompts": 2, "note": f"about {name}"}
        for name in HOSTILE.values()
    ]
    return pd.DataFrame(rows)


def test_no_cell_of_a_csv_is_a_formula_and_the_names_come_back(statistics, tmp_path):
    tables.write(tables.format_csv(statistics), tmp_path / results.ANALYSES / "correlation_stats.csv")
    rows = list(csv.reader(io.StringIO(tables.format_csv(statistics))))
    texts = [cell for row in rows for cell in row if cell != "-0.5"]
    assert not [text for text in texts if text.startswith(names.FORMULA)]
    assert len(rows) == len(statistics) + 1
    read = tables.load_statistics(tmp_path)
    assert read["Model"].tolist() == read["Dataset"].tolist() == [*map(names.escape_line, HOSTILE.values())]
    assert read["Pearson r"].tolist() == [-0.5] * len(HOSTILE)
    assert read["Spearman p"].isna().all()


def test_every_line_of_a_latex_table_is_a_comment_or_a_row_of_ours(statistics):
    for text in (tables.format_correlation_tex(statistics), tables.format_correlation_short_tex(statistics)):
        lines = text.splitlines()
        known = r"%|\\(toprule|midrule|bottomrule|begin\{tabular\}|end\{tabular\})|\{\\scriptsize|\}$"
        assert not [line for line in lines if not re.match(known, line) and not line.rstrip().endswith(r"\\")]
        assert text.count(r"\end{tabular}") == 1 + sum(line.count(r"\end{tabular}") for line in lines if line[0] == "%")
        assert r"\input" not in "".join(line for line in lines if not line.startswith("%"))


def test_a_figure_for_a_paper_is_drawn_with_any_names(tmp_path):
    frame = results.tabulate([create_record(0), create_record(1)], "m", "d")
    figures.save(figures.plot_paper({(name, name): frame for name in list(HOSTILE.values())[::4]}), tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


# Files


class Command:
    """A pickle of this runs a command when it is loaded as Python's pickle loads it."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch '{self.marker}'",)


def write_deflated(path: Path, marker: Path) -> None:
    torch.save([create_record(0) | {"zeros": torch.zeros(3_000_000)}], path)
    with zipfile.ZipFile(path) as archive:
        parts = {part.filename: archive.read(part) for part in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)


def write_declared(path: Path, marker: Path) -> None:
    """An archive whose directory says that each part is 4 GB."""
    torch.save([create_record(0)], path)
    content = bytearray(path.read_bytes())
    for found in re.finditer(b"PK\x01\x02", bytes(content)):
        content[found.start() + 24 : found.start() + 28] = struct.pack("<I", 0xFFFFFFFE)
    path.write_bytes(content)


def write_script(path: Path, marker: Path) -> None:
    class Module(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    torch.jit.save(torch.jit.script(Module()), str(path))


def write_records(change):
    def write(path: Path, marker: Path) -> None:
        record = create_record(0)
        torch.save([record | change(record)], path)

    return write


def write_deep(path: Path, marker: Path) -> None:
    path.write_bytes(b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b".")


def cut_off(path: Path, marker: Path) -> None:
    torch.save([create_record(0)], path)
    os.truncate(path, path.stat().st_size // 2)


UNREADABLE = "the file is truncated or was not written by Nucleoscope: repeat the run's command with --overwrite"
BAD = {
    "deflated": (write_deflated, "that unpacks to"),
    "declared sizes": (write_declared, "that unpacks to"),
    "TorchScript": (write_script, "TorchScript"),
    "plain pickle": (lambda path, marker: path.write_bytes(pickle.dumps([Command(marker)])), "cannot read"),
    "archive with code": (lambda path, marker: torch.save([create_record(0), Command(marker)], path), "cannot read"),
    "old format with code": (
        lambda path, marker: torch.save(Command(marker), path, _use_new_zipfile_serialization=False),
        "cannot read",
    ),
    "code as a field": (write_records(lambda _: {"extra": Command(Path("/nowhere"))}), "cannot read"),
    "deep": (write_deep, "cannot read"),
    "cut off": (cut_off, "cannot read"),
    "empty": (lambda path, _: path.write_bytes(b""), UNREADABLE),
    "zeros": (lambda path, _: path.write_bytes(bytes(10**6)), UNREADABLE),
    "text": (lambda path, _: path.write_text("cos\nsystem\n(S'true'\ntR."), UNREADABLE),
    "empty archive": (lambda path, _: zipfile.ZipFile(path, "w").close(), UNREADABLE),
    "a number": (lambda path, _: torch.save(7, path), "no list of records"),
    "a tensor": (lambda path, _: torch.save(torch.zeros(3), path), "no list of records"),
    "beyond int64": (write_records(lambda r: {"tokens": [2**70] * len(r["entropies"])}), "fit into 64 bits"),
    "beyond float64": (write_records(lambda r: {"entropies": [10**400] * len(r["entropies"])}), "fit into 64 bits"),
    "1e308": (write_records(lambda r: {"cosines": [-1e308] * len(r["cosines"])}), "beyond 1e+75"),
    "complex": (write_records(lambda r: {"cosines": [1j] * len(r["cosines"])}), "complex"),
    "words": (write_records(lambda r: {"cosines": "x" * len(r["cosines"])}), "convert"),
    "lists": (write_records(lambda r: {"cosines": [[1.0]] * len(r["cosines"])}), "dimensions"),
    "numbers as names": (write_records(lambda _: {5: []}), "prompt 0 has 0 5 but"),
    "candidates": (write_records(lambda r: {"top_p_tokens": [3] * len(r["entropies"])}), "no len()"),
}


def save_run(folder: Path, number: int = 0) -> Path:
    folder.mkdir(parents=True)
    torch.save([create_record(number)], folder / results.MEASUREMENTS)
    return folder


@pytest.mark.parametrize(("write", "reason"), BAD.values(), ids=BAD)
def test_a_bad_file_is_named_runs_nothing_and_leaves_the_others(tmp_path, write, reason, capsys):
    save_run(tmp_path / "results" / "data" / "good")
    path = tmp_path / "results" / "data" / "bad" / results.MEASUREMENTS
    path.parent.mkdir()
    write(path, tmp_path / "marker")
    assert set(results.load_readable(tmp_path / "results")) == {("good", "data")}
    said = assert_one_line(capsys.readouterr().err)
    assert said.startswith("skipped: ")
    assert f"'{path}'" in said
    assert reason in said
    assert not (tmp_path / "marker").exists()
    assert path.exists()
    assert sorted(os.listdir(path.parent)) == [results.MEASUREMENTS]


@pytest.mark.parametrize(
    "content",
    [b"", b'{"settings"', b"[1]", b"\xff", b"[" * 100_000, b'{"settings": ' + b"9" * 5000 + b"}"],
    ids=["empty", "cut off", "a list", "not UTF-8", "deep", "a long number"],
)
def test_a_bad_run_json_is_one_line(tmp_path, content):
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(ValueError, match="move it out of the way") as caught:
        results.load_info(tmp_path)
    assert str(tmp_path / "run.json") in assert_one_line(str(caught.value))


@pytest.mark.parametrize("values", [[1e308, -1e308, 0.5], [float("inf")] * 3])
def test_tokens_with_numbers_that_no_run_measures_are_written_again(tmp_path, values):
    """Infinite values are none that a mean could overflow with: they are left out of all statistics."""
    folder = save_run(tmp_path / "data" / "model")
    before = results.load_run(folder / results.MEASUREMENTS, "model", "data")
    path, fingerprint = folder / results.TOKENS, tokens.compute_fingerprint(folder / results.MEASUREMENTS)
    frame = before.drop(columns=["model", "dataset"]).assign(entropy=np.resize(values, len(before)))
    tokens.write_parquet(frame, folder / results.MEASUREMENTS, fingerprint)
    changed = path.stat().st_ino
    found = results.load_run(folder / results.MEASUREMENTS, "model", "data")
    assert (path.stat().st_ino == changed) == np.isinf(values).any()
    assert np.isinf(found["entropy"]).all() or found.equals(before)


def test_tokens_of_a_billion_rows_in_some_kilobytes_are_written_again(tmp_path):
    folder = save_run(tmp_path / "data" / "model")
    before = results.load_run(folder / results.MEASUREMENTS, "model", "data")
    fingerprint = tokens.compute_fingerprint(folder / results.MEASUREMENTS)
    frame = before.drop(columns=["model", "dataset"])
    tokens.write_parquet(frame.loc[[0] * 300_000], folder / results.MEASUREMENTS, fingerprint)
    assert (folder / results.TOKENS).stat().st_size < 50_000
    assert results.load_run(folder / results.MEASUREMENTS, "model", "data").equals(before)


@pytest.mark.parametrize("end", ["# ended 2026-01-01 00:00:00: status 0", "x\r# ended 2026-01-01: status 0"])
def test_neither_a_name_nor_an_output_can_end_an_attempt_in_a_log(tmp_path, end, capfd):
    log = tmp_path / "log"
    code = "import os, signal, sys; print(sys.argv[1]); sys.stdout.flush(); os.kill(os.getpid(), signal.SIGKILL)"
    assert logs.run([sys.executable, "-c", code, f"a\n{end}"], log) == 137
    lines = log.read_text().splitlines()
    assert [line[:7] for line in lines if line.startswith("# ")] == ["# begun", "# ended"]
    os.truncate(log, log.read_text().rindex("# ended"))  # as if the machine had gone down
    assert logs.has_failed(log)
    assert logs.explain(log).startswith("it was killed, or its machine went down")
    capfd.readouterr()


@pytest.fixture
def open_folder():
    """A folder that others may enter, as those of pytest are not."""
    with tempfile.TemporaryDirectory(dir="/tmp") as place:
        os.chmod(place, 0o755)
        yield Path(place)
        for folder in Path(place).glob("*"):
            folder.chmod(0o755)
            for inner in folder.glob("*"):
                inner.chmod(0o755)


@pytest.fixture
def as_nobody(open_folder):
    """A function that makes this process another user's, if it is root's."""

    def become() -> None:
        if os.geteuid() == 0:
            os.seteuid(65534)

    yield become
    if os.geteuid() != os.getuid():
        os.seteuid(os.getuid())


@pytest.mark.parametrize("mode", [0o000, 0o444, 0o111], ids=oct)
@pytest.mark.parametrize("place", ["data/closed", "closed/model"])
def test_a_colleagues_folder_without_permission_is_named(open_folder, as_nobody, place, mode, capsys):
    base = open_folder
    save_run(base / "data" / "good")
    closed = save_run(base / place) if place == "data/closed" else save_run(base / place).parent
    closed.chmod(mode)
    as_nobody()
    measured = results.load_readable(base)
    assert set(measured) == {("good", "data")}
    assert len(measured["good", "data"])
    assert "you do not have permission to read" in assert_one_line(capsys.readouterr().err)
    if place == "data/closed":
        why = status.find_missing(closed, grid.Entry({"model_name": "closed", "dataset_name": "data"}))
        assert assert_one_line(why).endswith(("is missing", "cannot be read (Permission denied)"))
        assert not status.needs_tokens(closed)


def test_a_folder_whose_name_is_no_text_is_named(tmp_path, capsys):
    save_run(tmp_path / "data" / "good")
    os.rename(save_run(tmp_path / "data" / "bad"), os.fsencode(tmp_path / "data") + b"/\xff")
    (tmp_path / "data" / "loop").symlink_to("loop")
    assert set(results.load_readable(tmp_path)) == {("good", "data")}
    assert assert_one_line(capsys.readouterr().err).endswith(
        r"\udcff': the folder's name is not UTF-8 text: rename it" "\n"
    )


# Links


@pytest.fixture
def victim(tmp_path):
    """A file and a folder outside the results; afterwards they are as they were."""
    place = tmp_path / "outside"
    (place / "folder").mkdir(parents=True)
    (place / "file").write_text("mine")
    (place / "folder" / "000000.pt").write_text("mine")
    (place / "folder" / "settings.json").write_text("{}")
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    yield place
    assert {path: path.read_bytes() for path in place.rglob("*") if path.is_file()} == before


def find_part(path: Path) -> Path:
    found = []
    with atomic.write_atomically(path) as stream:
        found.append(Path(stream.name))
    path.unlink()
    return found[0]


@pytest.mark.parametrize("kind", ["file", "dangling", "folder", "hard link"])
@pytest.mark.parametrize("name", ["measurements.pt", "tokens.parquet", "run.json", "run.status.json", "a.csv"])
def test_a_link_in_the_place_of_a_part_file_or_of_its_target_is_replaced(tmp_path, victim, name, kind):
    path = tmp_path / "run" / name
    path.parent.mkdir()
    for place in (find_part(path), path):
        if kind == "hard link":
            place.hardlink_to(victim / "file")
        else:
            place.symlink_to(victim / {"dangling": "nothing"}.get(kind, kind))
    with atomic.write_atomically(path) as stream:
        stream.write(b"ours")
    assert path.read_bytes() == b"ours"
    assert not path.is_symlink()
    assert os.listdir(path.parent) == [name]
    assert not (victim / "nothing").exists()


SETTINGS = {"model_name": "tiny", "dataset_name": "cats", "seed": 0}


@pytest.mark.parametrize("kind", ["file", "dangling", "hard link", "pipe"])
def test_a_lock_file_that_is_a_link_is_refused(tmp_path, victim, kind):
    path = tmp_path / "run" / locking.LOCK
    path.parent.mkdir()
    if kind == "hard link":
        path.hardlink_to(victim / "file")
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(victim / ("file" if kind == "file" else "nothing"))
    with pytest.raises(OSError, match="is a link, or not a plain file: remove it") as caught:
        run_folder.RunFolder(tmp_path / "run", SETTINGS).start()
    assert str(path) in assert_one_line(str(caught.value))
    assert os.path.lexists(path)
    assert not (victim / "nothing").exists()


@pytest.mark.parametrize(
    "name", [None, "settings.json", "plan.json", "000000.pt", "000000-6-000000.steps", "notes.txt"]
)
def test_links_in_the_folder_of_batches_are_refused(tmp_path, victim, name):
    batches = tmp_path / "run" / "batches"
    batches.parent.mkdir()
    if name is None:
        batches.symlink_to(victim / "folder")
    else:
        batches.mkdir()
        (batches / name).symlink_to(victim / "file")
    with pytest.raises((FileExistsError, ValueError)) as caught:
        run_folder.RunFolder(tmp_path / "run", SETTINGS).start()
    assert str(batches.parent) in assert_one_line(str(caught.value))
    assert os.path.lexists(batches if name is None else batches / name)


def test_a_file_in_the_place_of_the_folder_of_batches_is_refused(tmp_path):
    (tmp_path / "batches").write_text("mine")
    with pytest.raises(FileExistsError, match=r"/batches' is a file: move it out of the way$"):
        run_folder.RunFolder(tmp_path, SETTINGS).start()
    assert (tmp_path / "batches").read_text() == "mine"


def test_part_files_that_no_run_has_written_stay(tmp_path):
    (tmp_path / ".download.part").write_text("mine")
    (tmp_path / ".measure.status.json.host.1.part").write_text("another process's")
    (tmp_path / ".measurements.pt.host.1.part").write_text("a killed run's")
    with run_folder.RunFolder(tmp_path, SETTINGS):
        assert sorted(path.name for path in tmp_path.glob(".*.part")) == [
            ".download.part",
            ".measure.status.json.host.1.part",
        ]


@pytest.mark.parametrize("kind", ["file", "dangling", "pipe"])
def test_a_log_that_is_a_link_is_refused(tmp_path, victim, kind):
    log = tmp_path / "logs" / "model.log"
    log.parent.mkdir()
    if kind == "pipe":
        os.mkfifo(log)
    else:
        log.symlink_to(victim / ("file" if kind == "file" else "nothing"))
    with pytest.raises(OSError, match=r": remove it$") as caught:
        logs.run(["true"], log)
    what = "not a plain file" if kind == "pipe" else "a link"
    assert str(caught.value) == f"the log '{log}' is {what}: remove it"
    assert not (victim / "nothing").exists()


@pytest.mark.parametrize("name", ["", "index.md", "runs", "old.md"])
def test_links_in_the_sources_of_the_book_are_removed_and_not_followed(tmp_path, victim, name):
    staging = tmp_path / "staging"
    if name:
        staging.mkdir()
    (staging / name if name else staging).symlink_to(victim / ("file" if name.endswith("md") else "folder"))
    site._sync({"index.md": b"new", "runs/000000.pt": b"new"}, staging)
    assert sorted(path.relative_to(staging).as_posix() for path in staging.rglob("*") if path.is_file()) == [
        "index.md",
        "runs/000000.pt",
    ]
    assert not staging.is_symlink()


# Lock folders


@pytest.fixture
def locks(tmp_path, monkeypatch) -> Path:
    """The folder of the GPU locks in a temporary folder of its own; not made yet."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path / f"nucleoscope-gpus-{os.getuid()}"


def make_folder(mode: int):
    def make(locks: Path, victim: Path) -> None:
        locks.mkdir()
        locks.chmod(mode)

    return make


def give_away(locks: Path, victim: Path) -> None:
    if os.getuid():
        pytest.skip("NOT ROOT: a lock folder that belongs to another user is untested")
    locks.mkdir(0o700)
    os.chown(locks, 65534, 65534)


LOCKS = {
    "link": (lambda locks, victim: locks.symlink_to(victim / "folder"), "is a link"),
    "dangling": (lambda locks, victim: locks.symlink_to(victim / "nothing"), "is a link"),
    "file": (lambda locks, _: locks.touch(), "is not a folder"),
    "pipe": (lambda locks, _: os.mkfifo(locks), "is not a folder"),
    "group": (make_folder(0o770), "can be changed by other users"),
    "world": (make_folder(0o777), "can be changed by other users"),
    "another user's": (give_away, "belongs to another user"),
}


@pytest.mark.parametrize(("make", "what"), LOCKS.values(), ids=LOCKS)
def test_a_folder_of_gpu_locks_that_others_could_have_made_is_refused(locks, victim, make, what):
    make(locks, victim)
    before = locks.lstat()
    with pytest.raises(PermissionError) as caught:
        gpus.take("GPU-1")
    assert assert_one_line(str(caught.value)) == f"'{locks}' {what}: set TMPDIR to a folder of your own"
    assert locks.lstat() == before
    assert not (victim / "nothing").exists()


@pytest.mark.parametrize("mode", [0o700, 0o1777], ids=oct)
def test_a_folder_of_gpu_locks_of_ones_own_is_used(locks, victim, mode):
    make_folder(mode)(locks, victim)
    with gpus.take("GPU-1"):
        assert gpus.take("GPU-1") is None
        assert stat.S_ISREG((locks / "1").lstat().st_mode)
        assert gpus.describe_holder("GPU-1") == f"process {os.getpid()}"


@pytest.mark.parametrize("kind", ["file", "dangling"])
def test_a_gpu_lock_that_is_a_link_is_refused(locks, victim, kind):
    make_folder(0o700)(locks, victim)
    (locks / "1").symlink_to(victim / ("file" if kind == "file" else "nothing"))
    with pytest.raises(OSError, match="1' is a link: remove it"):
        gpus.take("GPU-1")
    assert not (victim / "nothing").exists()
