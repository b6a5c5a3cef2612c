"""Nothing is lost: runs that are killed, that meet, that are told to stop; disks that are full or read-only."""

import contextlib
import errno
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import matplotlib.figure
import nbformat
import psutil
import pytest
from test_results import convert_tensors

import forks
import holding
import kills
import tiny
from messages import assert_one_line
from nucleoscope import atomic
from nucleoscope.store import locking, results, run_folder
from nucleoscope.views import figures, tables
from nucleoscope.workflow import notebooks

pytestmark = pytest.mark.long  # all, because they share what takes long to set up
ROOT = Path(__file__).parents[2]
SETTINGS = {"model_name": "tiny", "dataset_name": "cats", "seed": 0}
ENVIRONMENT = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


class Killer:
    """The process that forks runs; see `kills`."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, str(Path(kills.__file__))], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout.readline() == "ready\n"

    def runs(self, folder: Path, settings: dict = SETTINGS, **request) -> list[dict]:
        request |= {"folder": str(folder), "settings": settings}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def run(self, folder: Path, settings: dict = SETTINGS, **request) -> dict:
        (found,) = self.runs(folder, settings, **request)
        return found

    def to_the_end(self, folder: Path, settings: dict = SETTINGS, **request) -> list[dict]:
        """Lets a run go on undisturbed; what it measured."""
        found = self.run(folder, settings, **request)
        assert (found["signal"], found["error"]) == (0, "")
        assert set(os.listdir(folder)) >= {"measurements.pt", "run.json", "tokens.parquet"}
        assert results.load_info(folder)["settings"] == settings
        return read_measured(folder)


@pytest.fixture(scope="module")
def killer():
    killer = Killer()
    yield killer
    killer.process.stdin.close()
    assert killer.process.wait(timeout=600) == 0


@pytest.fixture(scope="module")
def disk(tmp_path_factory):
    """A folder in memory, where there is such a disk with room.

    On another one a run spends two thirds of its time waiting for files. Which kind it is makes no difference to a
    kill, because what a process has written survives it.
    """
    place = Path("/dev/shm")
    if not (place.is_dir() and os.access(place, os.W_OK) and shutil.disk_usage(place).free > 2**30):
        yield tmp_path_factory.mktemp("runs")
        return
    with tempfile.TemporaryDirectory(dir=place) as folder:
        yield Path(folder)


@pytest.fixture
def fast_folder(disk, request, tmp_path):
    """A new folder there. What a test that has failed leaves in it is moved to where pytest keeps such things."""
    failed, folder = request.session.testsfailed, Path(tempfile.mkdtemp(dir=disk))
    yield folder
    if request.session.testsfailed > failed:
        shutil.move(folder, tmp_path / "left")
    else:
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def undisturbed(killer, disk):
    """A run that nobody disturbs: what it measured, how long it took, how many file operations it made."""
    folder = disk / "straight" / "run"
    seconds = [killer.run(folder.with_name(f"run{n}"))["seconds"] for n in range(3)]
    found = killer.run(folder)
    assert found["operations"] > 25
    return read_measured(folder), min(seconds), found["operations"]


def read_measured(folder: Path) -> list[dict]:
    return convert_tensors(results.load(folder / results.MEASUREMENTS))


def describe_left(folder: Path) -> str:
    """What a killed run has left, in short: where in its life it was."""
    if (folder / results.RUN_INFO).exists():
        return "finished"
    if (folder / results.MEASUREMENTS).exists():
        return "measurements"
    return f"{len(list(folder.glob('batches/*.pt')))} batches" if (folder / "batches").exists() else "nothing"


# Kills


def test_twenty_kills_at_random_moments_change_nothing(killer, undisturbed, fast_folder):
    expected, seconds, _ = undisturbed
    seed = time.time_ns()
    moments, places = random.Random(seed), []
    stages = set()
    for attempt in range(400):  # a kill that comes after the end is none
        folder = fast_folder / str(attempt)
        after = moments.uniform(0, seconds)
        found = killer.run(folder, after=after)
        if found["signal"] != signal.SIGKILL:
            seconds *= 0.95  # the machine may have become faster, or slower
            continue
        seconds *= 1.05
        stages.add(describe_left(folder))
        places.append(f"{after:.3f} s: {describe_left(folder)}")
        assert killer.to_the_end(folder) == expected, (seed, places)
        if len(places) >= 20 and len(stages) > 2:
            break
    print(f"seed {seed}, killed after", *places, sep="\n")
    assert len(places) >= 20
    assert len(stages) > 2, places


def test_a_run_that_is_killed_again_and_again_gets_there(killer, undisturbed, fast_folder):
    """Each by its own file operations, not by the clock: so that the first is killed however fast the machine is."""
    expected, _, operations = undisturbed
    seed = time.time_ns()
    moments, signals = random.Random(seed), []
    while len(signals) < 40 and describe_left(fast_folder / "run") != "finished":
        operation = moments.randint(operations // 4, operations // 2)
        signals.append(killer.run(fast_folder / "run", operation=operation)["signal"])
    print(f"seed {seed}: {len(signals)} runs, {signals.count(signal.SIGKILL)} killed")
    assert signals.count(signal.SIGKILL) > 1
    assert killer.to_the_end(fast_folder / "run") == expected


def test_a_kill_at_any_file_operation_changes_nothing(killer, undisturbed, fast_folder):
    expected, _, operations = undisturbed
    places = set()
    for operation in range(1, operations + 1):
        folder = fast_folder / str(operation)
        assert killer.run(folder, operation=operation, half=True)["signal"] == signal.SIGKILL
        places.add(describe_left(folder))
        assert killer.to_the_end(folder) == expected, operation
    assert places == {"nothing", "0 batches", "1 batches", "2 batches", "3 batches", "measurements", "finished"}


HUNDRED = {"prompts": 100, "parameters": {"max_tokens": 40, "batch_size": 100}}
KILLS = int(os.environ.get("NUCLEOSCOPE_KILLS", "8"))  # 40 takes some minutes


def assert_same_measurements(found: list[dict], expected: list[dict], exact: bool) -> None:
    """The same tokens and candidates, and the same numbers: in half precision to the bit."""
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            if exact or name in ("prompt", "tokens", "top_p_tokens"):
                assert one[name] == other[name], name
            elif name == "top_p_probs":  # a type and its numbers for each token
                for (mine_type, mine), (wanted_type, wanted) in zip(one[name], other[name], strict=True):
                    assert (mine_type, mine) == (wanted_type, pytest.approx(wanted, rel=1e-5, abs=1e-5))
            else:
                assert one[name] == pytest.approx(other[name], rel=1e-5, abs=1e-5), name


class Log:
    """What the processes of one run drew and saved, one after another; see `kills`."""

    def __init__(self, path: Path):
        self.path, self.drawn, self.saved, self.midway, self.again = path, 0, 0, 0, 0

    def read(self) -> str:
        """Takes in the lines of a process that has ended, and checks that it began where it had to."""
        lines = [line.split() for line in self.path.read_text().splitlines()] if self.path.exists() else []
        self.path.unlink(missing_ok=True)
        steps = [int(number) for word, number in lines if word == "draw"]
        kept = [int(number) for word, number in lines if word == "kept"]
        if steps:
            assert steps == list(range(steps[0], steps[-1] + 1))
            # The kill may have come after a part was written, and before the line that says so.
            assert self.saved <= steps[0] <= self.drawn, (self.saved, steps[0], self.drawn)
            self.again, self.midway = self.again + self.drawn - steps[0], self.midway + (steps[0] > 0)
            self.drawn = steps[-1] + 1
        self.saved = max([self.saved, *kept])
        return f"drew {steps[:1]} to {steps[-1:]}, saved {self.saved}"


def test_kills_at_random_moments_in_a_batch_of_100_lose_only_what_was_not_saved(killer, fast_folder):
    """Some twice in a run. Drawn again are the steps since the last time, at most one a kill if each step is saved."""
    expected, seconds = {}, {}
    for dtype in ("float64", "bfloat16"):
        log = Log(fast_folder / "log")
        straight = {"dtype": dtype, "save_seconds": 0, "log": str(log.path), **HUNDRED}
        seconds[dtype] = killer.run(fast_folder / dtype, **straight)["seconds"]
        expected[dtype] = read_measured(fast_folder / dtype)
        assert "drew [0] to [39]" in log.read()
        lengths = sorted(len(record["entropies"]) for record in expected[dtype])
        assert lengths[50] < 40 == lengths[-1]  # half of the rows end early
    seed = time.time_ns()
    moments, killed, midway, places = random.Random(seed), 0, 0, []
    while killed < KILLS or midway < KILLS // 2:
        assert len(places) < 10 * KILLS, places
        dtype, often = moments.choice(["float64", "bfloat16"]), moments.choice([0, 0.05])
        log, folder, before = Log(fast_folder / "log"), fast_folder / str(len(places)), killed
        request = {"dtype": dtype, "save_seconds": often, "log": str(log.path), **HUNDRED}
        for _ in range(moments.choice([1, 2])):
            after = moments.uniform(0, seconds[dtype])
            killed += killer.run(folder, after=after, **request)["signal"] == signal.SIGKILL
            places.append(f"{dtype}, {often} s, killed after {after:.3f} s: {log.read()}")
        found = killer.to_the_end(folder, **request)
        places.append(f"then {log.read()}; {log.again} steps drawn again")
        assert log.drawn == 40
        assert often or log.again <= killed - before, (seed, places)
        assert_same_measurements(found, expected[dtype], exact=dtype == "bfloat16")
        midway += log.midway
    print(f"seed {seed}: {killed} kills, {midway} times continued midway", *places, sep="\n")


def test_a_kill_at_any_file_operation_with_parts_changes_nothing(killer, fast_folder):
    """In half precision, in which a continued batch must be the same to the bit; each step is saved."""
    request = {"dtype": "bfloat16", "save_seconds": 0, "parameters": {"batch_size": 3}}
    expected = killer.to_the_end(fast_folder / "straight", **request)
    shutil.rmtree(fast_folder / "straight")
    operations = killer.run(fast_folder / "straight", **request)["operations"]
    seen = set()
    for operation in range(1, operations + 1):
        folder = fast_folder / str(operation)
        assert killer.run(folder, operation=operation, half=True, **request)["signal"] == signal.SIGKILL
        seen.add(len(list(folder.glob("batches/*.steps"))))
        assert killer.to_the_end(folder, **request) == expected, operation
        assert sorted(os.listdir(folder)) == ["candidates.parquet", "measurements.pt", "run.json", "tokens.parquet"]
    assert seen == {0, 1, 2, 3, 4}


def test_a_kill_while_results_are_replaced_leaves_the_old_ones_or_the_new_ones(killer, undisturbed, fast_folder):
    expected, _, _ = undisturbed
    other = SETTINGS | {"seed": 1}
    old = killer.to_the_end(fast_folder / "old", other)
    assert old != expected
    shutil.copytree(fast_folder / "old", fast_folder / "counted")
    operations = killer.run(fast_folder / "counted", overwrite=True)["operations"]
    seen = []
    for operation in range(operations - 35, operations + 1):  # from before the last batch on
        folder = fast_folder / str(operation)
        shutil.copytree(fast_folder / "old", folder)
        assert killer.run(folder, operation=operation, half=True, overwrite=True)["signal"] == signal.SIGKILL
        seen.append(read_measured(folder))
        path = folder / results.MEASUREMENTS
        tokens = results.load_run(path, "", "")  # never those of the other run
        expected_tokens = results.tabulate(results.load(path), "", "")
        assert tokens.drop(columns="text").equals(expected_tokens.drop(columns="text")), operation
        if (folder / results.RUN_INFO).exists():
            assert seen[-1] == (old if results.load_info(folder)["settings"] == other else expected)
        assert killer.to_the_end(folder, overwrite=True) == expected
    assert seen[0] == old
    assert seen[-1] == expected
    assert all(one in (old, expected) for one in seen)


# Two runs in one folder


def test_of_two_runs_at_once_one_is_refused_and_told_who_writes(killer, undisturbed, fast_folder):
    expected, _, _ = undisturbed
    refused = 0
    for attempt in range(5):
        folder = fast_folder / str(attempt)
        one, other = killer.runs(folder, count=2, lock_seconds=0)
        first, second = (one, other) if not one["error"] else (other, one)
        assert (first["error"], first["signal"]) == ("", 0)
        if second["error"]:  # else it came after the first one's end
            assert f"process {first['process']} on {socket.gethostname()}" in assert_one_line(second["error"])
            refused += 1
        assert read_measured(folder) == expected
        assert sorted(os.listdir(folder)) == ["candidates.parquet", "measurements.pt", "run.json", "tokens.parquet"]
    assert refused > 0


def test_of_many_runs_at_once_one_measures_and_the_others_find_its_results(killer, undisturbed, fast_folder):
    expected, _, _ = undisturbed
    found = killer.runs(fast_folder / "run", count=4, lock_seconds=60)
    assert [run["error"] for run in found] == [""] * 4
    assert read_measured(fast_folder / "run") == expected
    assert sorted(os.listdir(fast_folder / "run")) == [
        "candidates.parquet",
        "measurements.pt",
        "run.json",
        "tokens.parquet",
    ]


def test_a_killed_runs_lock_stops_nobody(killer, undisturbed, fast_folder):
    expected, _, operations = undisturbed
    assert killer.run(fast_folder / "run", operation=operations // 2)["signal"] == signal.SIGKILL
    (fast_folder / "run" / locking.LOCK).touch()
    found = killer.run(fast_folder / "run", lock_seconds=0)
    assert (found["error"], found["signal"]) == ("", 0)
    assert read_measured(fast_folder / "run") == expected


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """The lock of a process on another machine, on a file system that locks on each machine alone."""
    monkeypatch.setattr(locking, "SILENCE", 1)
    monkeypatch.setattr(locking, "POLL", 0.05)
    with (tmp_path / locking.LOCK).open("w") as stream:
        stream.write("process 7 on another-node\n")
        stream.flush()
        os.fsync(stream.fileno())  # some file systems date a write only when they get to it
    os.utime(tmp_path / locking.LOCK, (0, 0))
    return tmp_path


def test_a_lock_left_behind_on_another_machine_is_cleared_after_its_silence(elsewhere, capsys):
    begun = time.monotonic()
    lock = locking.Lock(elsewhere)
    assert time.monotonic() - begun > 1
    assert (elsewhere / locking.LOCK).read_text() == f"process {os.getpid()} on {socket.gethostname()}\n"
    assert "process 7 on another-node" in capsys.readouterr().err
    lock.release()
    assert not (elsewhere / locking.LOCK).exists()


def test_a_run_on_another_machine_that_lives_is_named(elsewhere, monkeypatch):
    monkeypatch.setattr(locking, "SILENCE", 60)
    refused = threading.Event()

    def live() -> None:
        while not refused.wait(0.1):
            os.utime(elsewhere / locking.LOCK)

    life = threading.Thread(target=live)
    life.start()
    with pytest.raises(BlockingIOError, match="is being written by process 7 on another-node"):
        locking.Lock(elsewhere)
    refused.set()
    life.join()
    assert (elsewhere / locking.LOCK).read_text() == "process 7 on another-node\n"


def test_whoever_holds_a_lock_gives_signs_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr(locking, "BEAT", 0.05)
    lock = locking.Lock(tmp_path)
    os.utime(tmp_path / locking.LOCK, (0, 0))
    deadline = time.monotonic() + 200
    while os.stat(tmp_path / locking.LOCK).st_mtime == 0 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert os.stat(tmp_path / locking.LOCK).st_mtime > 0
    (tmp_path / locking.LOCK).write_text("process 7 on another-node\n")  # this one slept, and that one took it
    lock.release()
    assert (tmp_path / locking.LOCK).exists()


def take_over(folder: Path, name: str | None) -> None:
    """What a process on another machine does to the lock of one that stood still; None: and ended."""
    (folder / locking.LOCK).unlink() if name is None else (folder / locking.LOCK).write_text(f"{name}\n")


@pytest.mark.parametrize("name", ["process 7 on another-node", None])
def test_a_run_that_stood_still_until_another_one_took_its_folder_leaves_that_ones_batches(tmp_path, name):
    run = save_batches(tmp_path, 2)
    kept = sorted(path.name for path in run.batches.iterdir())
    take_over(tmp_path, name)
    said = f"'{tmp_path}' was taken over by {name or 'another process'} while this one was paused: "
    with pytest.raises(BlockingIOError, match=said) as caught:
        run.save_batch([4, 5], [tiny.create_record("the cat", "4")] * 2, 1.0)
    assert_one_line(str(caught.value))
    with pytest.raises(BlockingIOError, match=said):
        run.finish(4, {})
    run.release()
    assert sorted(path.name for path in run.batches.iterdir()) == kept
    assert not (tmp_path / "measurements.pt").exists()
    assert (tmp_path / locking.LOCK).exists() == (name is not None)


def test_a_run_that_stands_still_while_it_writes_its_measurements_leaves_the_others_batches(tmp_path, monkeypatch):
    run = save_batches(tmp_path)

    def save(path, value):
        atomic.write_json(path, value)
        take_over(tmp_path, "process 7 on another-node")

    monkeypatch.setattr(run_folder, "write_json", save)
    with pytest.raises(BlockingIOError, match="was taken over by process 7 on another-node"):
        run.finish(6, {})
    run.release()
    assert len(list(run.batches.glob("*.pt"))) == 3
    assert len(results.load(tmp_path / "measurements.pt")) == 6


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(OSError, match=r"cannot lock '.*' \(No locks available\): use another --results_dir"):
        locking.Lock(tmp_path)


# Half-written files


def test_what_killed_processes_left_half_written_goes_with_the_next_writing(tmp_path):
    """Not what another one writes now, here or on another machine, nor another file's."""
    ended = subprocess.Popen([sys.executable, "-S", "-c", ""])
    ended.wait()
    here, name = socket.gethostname(), "run [1].ipynb"
    gone = [f".{name}.{here}.{ended.pid}.part", f".{name}.a.cluster.example.7.part"]
    stay = [f".{name}.{here}.{os.getppid()}.part", f".{name}.another-node.7.part", f".other.{here}.{ended.pid}.part"]
    for part in gone + stay:
        (tmp_path / part).write_text("half")
    long_ago = time.time() - atomic.ABANDONED - 60
    os.utime(tmp_path / gone[1], (long_ago, long_ago))
    atomic.write_json(tmp_path / name, 1)
    assert {path.name for path in tmp_path.iterdir()} == {name, *stay}


# Disks


def fill_disk(disk: Path) -> Path:
    """Fills the disk to its last byte with a file that may be removed."""
    with pytest.raises(OSError, match="No space"):
        (disk / "filler").write_bytes(b"x" * 2**20)
    return disk / "filler"


def save_batches(folder: Path, last: int = 3) -> run_folder.RunFolder:
    """A run with the batches of six prompts."""
    run = run_folder.RunFolder(folder, SETTINGS)
    run.start()
    for start in range(0, 2 * last, 2):
        run.save_batch([start, start + 1], [tiny.create_record("the cat", f"{start + n}") for n in range(2)], 1.0)
    return run


@pytest.mark.parametrize("room", [0, 4096, 40960])
def test_a_disk_that_is_full_at_the_end_loses_nothing(small_disk, room):
    """With some room the measurements fit, or half of them."""
    run = save_batches(small_disk / "cats" / "tiny")
    filler = fill_disk(small_disk)
    os.truncate(filler, filler.stat().st_size - room)
    with pytest.raises(OSError, match="No space left on device") as caught:
        run.finish(6, {"much": "x" * 100_000})
    assert str(small_disk) in assert_one_line(str(caught.value))
    run.release()
    assert not list(small_disk.rglob("*.part"))
    filler.unlink()
    again = run_folder.RunFolder(run.folder, SETTINGS)
    with again:
        assert len(again.list_batches()) == 3
        again.finish(6, {})
    assert [record["prompt"] for record in results.load(run.folder / "measurements.pt")] == list("012345")


def test_an_executed_notebook_that_does_not_fit_the_disk_leaves_the_old_one(small_disk, monkeypatch):
    output = small_disk / "run.ipynb"
    output.write_text("the old one")
    executed = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("x" * 2**20)])
    monkeypatch.setattr(notebooks.papermill, "execute_notebook", lambda *args, **kwargs: executed)
    with pytest.raises(OSError, match=r"No space left on device: '.*/run.ipynb'"):
        notebooks.execute("run", output, {})
    assert [(path.name, path.read_text()) for path in small_disk.iterdir()] == [("run.ipynb", "the old one")]


def test_tables_and_figures_that_do_not_fit_the_disk_leave_the_old_ones(small_disk):
    table, figure = small_disk / "stats.csv", small_disk / "correlation.png"
    table.write_text("the old table")
    figure.write_text("the old figure")
    fill_disk(small_disk)
    with pytest.raises(OSError, match=r"No space left on device: '.*/stats.csv'"):
        tables.write("x" * 2**16, table)
    drawn = matplotlib.figure.Figure()
    drawn.subplots().plot(range(10))
    with pytest.raises(OSError, match=r"No space left on device: '.*/correlation.png'"):
        figures.save(drawn, figure)
    assert table.read_text() == "the old table"
    assert figure.read_text() == "the old figure"
    assert {path.name for path in small_disk.iterdir()} == {"stats.csv", "correlation.png", "filler"}


def test_a_folder_on_a_full_disk_is_refused_before_the_model_is_loaded(small_disk):
    fill_disk(small_disk)
    with pytest.raises(OSError, match=r"cannot write to '.*' \(No space left on device\): use another --results_dir"):
        run_folder.check(small_disk / "cats" / "tiny")


def test_results_on_another_file_system_than_temporary_files(small_disk, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", "/nowhere")
    assert os.stat(small_disk).st_dev != os.stat(small_disk.parent).st_dev
    folder = small_disk / "cats" / "tiny"
    run_folder.check(folder)
    save_batches(folder).finish(6, {})
    assert len(results.load(folder / "measurements.pt")) == 6


@pytest.mark.parametrize("place", ["cats/tiny", "cats", "."])
def test_a_file_in_a_folders_place_is_named(tmp_path, place):
    path = tmp_path / "results" / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("")
    with pytest.raises(NotADirectoryError, match="is not a folder: use another --results_dir") as caught:
        run_folder.check(tmp_path / "results" / "cats" / "tiny")
    assert str(path) in assert_one_line(str(caught.value))


def test_checking_a_folder_leaves_nothing_behind(tmp_path):
    run_folder.check(tmp_path / "results" / "cats" / "tiny")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_another_process_writes_to_is_refused_before_the_model_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(locking, "LOCK_SECONDS", 0)
    run = save_batches(tmp_path, 1)
    with pytest.raises(BlockingIOError, match=f"is being written by process {os.getpid()} on"):
        run_folder.check(tmp_path)
    run.release()
    run_folder.check(tmp_path)


def test_results_that_are_there_may_be_on_a_read_only_disk(small_disk, small_disk_made_read_only):
    save_batches(small_disk).finish(6, {})
    small_disk_made_read_only()
    run_folder.check(small_disk)
    assert run_folder.RunFolder(small_disk, SETTINGS).finished
    with pytest.raises(OSError, match="Read-only file system"):
        run_folder.check(small_disk, overwrite=True)


# The whole command


def create_command(model: str, texts: str, folder: Path, **options) -> list[str]:
    given = {
        "model_name": model,
        "dataset_name": texts,
        "results_dir": str(folder),
        "batch_size": 1,
        "dtype": "float32",
    }
    words = [word for name, value in (given | options).items() for word in (f"--{name}", str(value))]
    return [sys.executable, "scripts/correlation_pipeline.py", *words]


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "cats.txt"
    path.write_text("".join(f"the cat {'and ' * (n % 3)}number {n}\n" for n in range(60)))
    return str(path)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.save(tmp_path_factory.mktemp("models") / "tiny", tiny.create_model(), tiny.create_tokenizer())


def test_a_read_only_results_folder_is_refused_before_the_model_is_loaded(small_disk, small_disk_made_read_only, texts):
    small_disk_made_read_only()
    done = subprocess.run(
        create_command("nobody/nothing", texts, small_disk), cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True
    )
    assert done.returncode == 1
    said = f"error: cannot write to '{small_disk}' (Read-only file system): use another --results_dir\n"
    assert done.stderr == said


def find_kernels(environment: dict[str, str]) -> list[psutil.Process]:
    """The notebooks' processes with the PYTHONPATH of an environment that is one test's alone."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):  # it may end meanwhile
            own = process.environ().get("PYTHONPATH") == environment["PYTHONPATH"]
            if own and "ipykernel_launcher" in process.cmdline():
                found.append(process)
    return [process for process in found if process.ppid() not in {other.pid for other in found}]


def begin_run(words: list[str], folder: Path, environment: dict) -> tuple[subprocess.Popen, psutil.Process, int]:
    """A run that has just finished a batch, the process of its notebook, and how many batches there were before."""
    before = len(list(folder.glob("batches/*.pt")))
    run = subprocess.Popen(words, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 200
    while len(list(folder.glob("batches/*.pt"))) == before and run.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert run.poll() is None, run.stderr.read().decode()
    (kernel,) = find_kernels(environment)
    return run, kernel, before


def test_a_run_is_told_to_stop_then_loses_its_notebook_then_is_killed_and_ends_the_same(tmp_path, model, texts):
    options, forked = {"n_prompts": 12, "max_tokens": 40}, forks.create_environment(**ENVIRONMENT)
    undisturbed = subprocess.Popen(create_command(model, texts, tmp_path / "straight", **options), cwd=ROOT, env=forked)
    words, folder = create_command(model, texts, tmp_path, **options), tmp_path / "cats" / "tiny"
    environment, file = holding.create_environment(tmp_path / "held", ENVIRONMENT), holding.hold(folder)
    forked_and_held = holding.create_environment(tmp_path / "forked", forked)

    run, kernel, _ = begin_run(words, folder, environment)
    run.send_signal(signal.SIGTERM)
    said = run.communicate(timeout=200)[1].decode()
    assert run.returncode == 143
    assert said.splitlines()[-1] == "interrupted: run the same command again to resume"
    assert "Traceback" not in said
    assert not kernel.is_running()

    run, kernel, kept = begin_run(words, folder, forked_and_held)
    assert kept > 0
    kernel.kill()
    said = run.communicate(timeout=200)[1].decode()
    assert run.returncode == 1
    assert said.splitlines()[-1].startswith("error: the notebook's process died")
    assert said.splitlines()[-1].endswith("run the same command again")

    run, kernel, more = begin_run(words, folder, environment)
    assert more > kept
    run.kill()
    run.communicate(timeout=200)
    assert psutil.wait_procs([kernel], timeout=200)[1] == [], "the notebook's process outlives the command"
    assert len(list(folder.glob("batches/*.pt"))) == 3
    file.unlink()

    done = subprocess.run(words, cwd=ROOT, env=forked, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert sorted(os.listdir(folder)) == [
        *("candidates.parquet", "measure.ipynb", "measurements.pt", "run.ipynb", "run.json", "texts", "tokens.parquet")
    ]
    assert undisturbed.wait(timeout=600) == 0
    assert read_measured(folder) == read_measured(tmp_path / "straight" / "cats" / "tiny")


def test_two_kernels_at_once_have_sockets_of_their_own(tmp_path, monkeypatch):
    """Each in a folder that only this user may look into, and that is gone afterwards."""
    monkeypatch.setattr(notebooks, "FOLDER", tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    lines = [
        "# %%",
        "import time, pathlib, ipykernel.kernelapp as app",
        "file = pathlib.Path(app.IPKernelApp.instance().ip)",
        f"here = pathlib.Path({str(tmp_path)!r})",
        "(here / file.parent.name).with_suffix('.at_work').write_text(oct(file.parent.stat().st_mode))",
        "while len(list(here.glob('*.at_work'))) < 2: time.sleep(0.1)",
    ]
    (tmp_path / "meet.py").write_text("\n".join(lines) + "\n")
    code = "import sys; from nucleoscope.workflow import notebooks; from pathlib import Path\n"
    code += f"notebooks.FOLDER = Path({str(tmp_path)!r}); notebooks.execute('meet', sys.argv[1], {{}})"
    environment = ENVIRONMENT | {"TMPDIR": str(tmp_path)}
    outputs = [tmp_path / "one.ipynb", tmp_path / "other.ipynb"]
    runs = [subprocess.Popen([sys.executable, "-c", code, str(output)], env=environment) for output in outputs]
    assert [run.wait(timeout=600) for run in runs] == [0, 0]
    assert all(output.is_file() for output in outputs)
    met = list(tmp_path.glob("*.at_work"))
    assert len(met) == 2
    assert {path.read_text() for path in met} == {"0o41700"}  # jupyter_client sets the sticky bit: its file is there
    assert not list(tmp_path.glob("nucleoscope-*/"))
