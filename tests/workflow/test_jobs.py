"""Jobs of the graph by `scripts/job.py`: their logs when disks are full, and GPUs that runs of any kind share."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from driver import Driver
from messages import assert_one_line
from nucleoscope.models import gpus
from nucleoscope.workflow import jobs, logs, status

ROOT = Path(__file__).parents[2]
JOB = [sys.executable, str(ROOT / "scripts/job.py"), "--log"]


def start_job(log: Path, *words: str, **options) -> subprocess.Popen:
    """A job that runs; ``words`` are more options, "--" and the command."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options
    return subprocess.Popen([*JOB, str(log), *words], **pipes)


# Logs


MUCH = "import sys; [print(n, 'x' * 50, flush=True) for n in range(3000)]; sys.exit('error: all was said')"


def test_a_full_disk_stops_no_job_and_the_log_still_says_why_it_failed(small_disk):
    """The command says more than there is room for; it is heard out, and its last words are kept."""
    log = small_disk / "logs/log"
    (small_disk / "filler").write_bytes(b"x" * 200 * 2**10)
    run = start_job(log, "--", sys.executable, "-c", MUCH.replace("3000", "20000"))
    said, errors = run.communicate(timeout=200)
    assert (run.returncode, errors) == (1, "error: all was said\n")
    assert len(said.splitlines()) == 20000
    assert logs.explain(log) == "error: all was said"
    assert "the disk was full" in log.read_text()


def test_a_log_that_may_not_grow_stops_no_job(tmp_path):
    limited = f'ulimit -f 8; exec {" ".join(JOB)} log -- {sys.executable} -c "{MUCH}"'
    run = subprocess.run(["bash", "-c", limited], cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert (run.returncode, run.stderr) == (1, "error: all was said\n")
    assert len(run.stdout.splitlines()) == 3000
    assert logs.explain(tmp_path / "log") == "error: all was said"
    assert (tmp_path / "log").stat().st_size <= 8 * 2**10


def test_a_disk_that_is_full_for_a_while_costs_the_log_little(small_disk):
    log = small_disk / "log"
    code = "print('before', flush=True); input(); print('meanwhile', flush=True); input(); print('after')"
    run = start_job(log, "--", sys.executable, "-c", code, stdin=subprocess.PIPE)
    assert run.stdout.readline() == "before\n"
    wait_until(lambda: "before" in log.read_text())
    room = small_disk / "filler"
    with pytest.raises(OSError, match="No space"):
        room.write_bytes(b"x" * 2**20)
    with log.open("ab", buffering=0) as rest, contextlib.suppress(OSError):
        while rest.write(b"-" * 64 + b"\n"):
            pass
    run.stdin.write("\n")
    run.stdin.flush()
    assert run.stdout.readline() == "meanwhile\n"
    room.unlink()
    run.communicate("\n", timeout=200)
    assert run.returncode == 0
    assert f"meanwhile\nafter\n{logs.ENDED}" in log.read_text()
    assert "the disk was full" not in log.read_text()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="NO /dev/full HERE: a terminal's full disk is untested")
def test_a_job_whose_words_nobody_can_take_ends_as_its_command(tmp_path):
    with open("/dev/full", "w") as full:
        run = start_job(tmp_path / "log", "--", sys.executable, "-c", "print('measured')", stdout=full)
        assert run.communicate(timeout=200)[1] == ""
    assert run.returncode == 0
    assert "\nmeasured\n" in (tmp_path / "log").read_text()


@pytest.mark.parametrize("place", ["file/logs/log", "file/log", "folder"])
def test_a_log_that_cannot_be_had_is_named_in_one_line(tmp_path, place):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    run = start_job(tmp_path / place, "--", sys.executable, "-c", "print('run')")
    said, errors = run.communicate(timeout=200)
    assert (run.returncode, said) == (1, "")
    assert assert_one_line(errors).startswith(f"error: the log '{tmp_path / place}' cannot be written (")


def test_a_log_on_a_read_only_disk_is_named_in_one_line(small_disk, small_disk_made_read_only):
    small_disk_made_read_only()
    run = start_job(small_disk / "logs/log", "--gpus", "0", "--", sys.executable, "-c", "print('run')")
    said, errors = run.communicate(timeout=200)
    assert (run.returncode, said) == (1, "")
    assert "cannot be written (Read-only file system): use another folder" in assert_one_line(errors)


def test_a_job_says_how_many_threads_its_command_may_start_and_lets_others_go_first(tmp_path):
    show = "import os; print(os.environ['OMP_NUM_THREADS'], os.environ['MKL_NUM_THREADS'], os.nice(0))"
    run = start_job(tmp_path / "log", "--threads", "3", "--nice", "--", sys.executable, "-c", show)
    assert run.communicate(timeout=200) == (f"3 3 {min(os.nice(0) + jobs.NICENESS, 19)}\n", "")


def test_a_command_that_is_not_there_is_named_in_one_line(tmp_path):
    run = start_job(tmp_path / "log", "--", "no-such-command")
    assert assert_one_line(run.communicate(timeout=200)[1]).startswith("error: ")
    assert run.returncode == 1


def test_a_log_tells_that_its_command_is_running(tmp_path):
    log = tmp_path / "log"
    run = start_job(log, "--", sys.executable, "-c", "print('begun', flush=True); input()", stdin=subprocess.PIPE)
    assert run.stdout.readline() == "begun\n"
    assert logs.explain(log) == "it is running"
    assert not logs.has_failed(log)
    run.communicate("\n", timeout=200)
    assert not logs.has_failed(log)
    assert logs.explain(log, "top_p is 0.9") == "its last attempt succeeded, but top_p is 0.9"


@pytest.mark.parametrize(
    ("ending", "kept"),
    [("sys.exit(1)", 0), ("sys.exit(130)", 1), ("sys.exit(143)", 1), ("os.kill(os.getpid(), signal.SIGTERM)", 1)],
)
def test_a_log_keeps_attempts_that_were_cut_off(tmp_path, ending, kept):
    """An attempt that failed for a reason of its own gives way to the next; one that was interrupted does not."""
    for code in (f"import os, signal, sys; {ending}", "print('whole')"):
        start_job(tmp_path / "log", "--", sys.executable, "-c", code).communicate(timeout=200)
    assert (tmp_path / "log").read_text().count(logs.BEGUN) == kept + 1


def test_sigterm_reaches_a_command_that_is_just_starting(tmp_path):
    code = """
        import os, pathlib, signal, subprocess, sys
        from nucleoscope.workflow import logs
        start = subprocess.Popen
        def told(*words, **options):
            os.kill(os.getpid(), signal.SIGTERM)
            return start(*words, **options)
        subprocess.Popen = told
        sys.exit(logs.run(["sleep", "600"], pathlib.Path(sys.argv[1])))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "log")], timeout=200)
    assert done.returncode == 128 + signal.SIGTERM
    assert (tmp_path / "log").read_text().rstrip().endswith("killed by SIGTERM")


# Status files


FAIL, SUCCEED = "raise SystemExit('error: no such model')", "print('measured')"


@pytest.mark.parametrize(
    ("code", "tries_left", "status_code", "problem"),
    [
        (SUCCEED, 0, 0, None),
        (SUCCEED, 2, 0, None),
        (FAIL, 0, 0, "error: no such model"),  # recorded, so that the graph continues
        (FAIL, 1, 1, None),  # tried again: nothing is recorded yet
        ("raise SystemExit(130)", 0, 130, None),  # interrupted: the graph must stop
        ("import os; os.kill(os.getpid(), 9)", 0, 137, None),
    ],
)
def test_a_job_with_a_status_file_ends_well_once_its_failure_is_recorded(
    tmp_path, code, tries_left, status_code, problem
):
    file = tmp_path / "results/data/model/measure.status.json"
    words = ["--status", str(file), "--tries_left", str(tries_left), "--", sys.executable, "-c", code]
    run = start_job(tmp_path / "log", *words)
    run.communicate(timeout=200)
    assert run.returncode == status_code
    assert file.is_file() == (status_code == 0)
    assert status.read_problem(file) == problem


def test_the_last_try_of_a_job_that_was_killed_runs_nothing_and_records_that(tmp_path):
    file = tmp_path / "results/data/model/measure.status.json"
    killed = start_job(
        tmp_path / "log", "--status", str(file), "--", sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"
    )
    killed.communicate(timeout=200)
    last = start_job(tmp_path / "log", "--status", str(file), "--tries_left", "-1", "--", "no-such-command")
    last.communicate(timeout=200)
    assert last.returncode == 0
    assert status.read_problem(file).startswith("it was killed by SIGKILL")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--log=l", "--problem=x", "--", "true"], "give either --log and a command, or --status and --problem"),
        (["--problem=x"], "give either --log and a command, or --status and --problem"),
        (["--status=s", "--problem=x", "--", "true"], "--problem replaces the command: omit one of them"),
        (["--log=l", "--", "."], "command '.' is not an executable file: check its name and permissions"),
    ],
)
def test_a_job_without_or_with_two_things_to_do_is_refused(tmp_path, arguments, message):
    done = subprocess.run([*JOB[:-1], *arguments], capture_output=True, text=True, cwd=tmp_path)
    assert done.stderr.splitlines()[-1].startswith(f"error: {message}")
    assert done.returncode


def test_a_run_that_cannot_be_had_is_not_started(tmp_path):
    file = tmp_path / "results/data/model/measure.status.json"
    command = [*JOB[:-1], "--status", str(file), "--problem", "model 'a/b' is gated"]
    assert subprocess.run(command, capture_output=True, text=True).stderr == ""
    assert status.read_problem(file) == "model 'a/b' is gated"
    assert json.loads(file.read_text())["state"] == "not started"


def test_a_last_try_after_one_that_succeeded_records_that(tmp_path):
    """Its node went down after the command had ended, before the status file was written."""
    file = tmp_path / "results/data/model/measure.status.json"
    start_job(tmp_path / "log", "--", sys.executable, "-c", SUCCEED).communicate(timeout=200)
    last = start_job(tmp_path / "log", "--status", str(file), "--tries_left", "-1", "--", "no-such-command")
    last.communicate(timeout=200)
    assert json.loads(file.read_text()) == {"state": "succeeded"}


# GPUs


def wait_until(condition) -> None:
    end = time.monotonic() + 200
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


ONE, OTHER = "GPU-1a", "GPU-1b"


@pytest.fixture
def listed(tmp_path, monkeypatch) -> Driver:
    """The driver, which lists two GPUs at first. The locks are the test's own."""
    driver = Driver(tmp_path / "driver.json", monkeypatch)
    driver.put({"id": ONE}, {"id": OTHER})
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.delenv(gpus.VISIBLE, raising=False)
    return driver


@pytest.mark.parametrize(
    ("visible", "names"),
    [
        (None, [ONE, OTHER]),
        ("1", [OTHER]),
        ("1, 0", [OTHER, ONE]),
        (f"{OTHER},0", [OTHER, ONE]),
        ("GPU-1b", [OTHER]),
        ("GPU-1", []),  # two begin so
        ("0,0", [ONE]),
        ("0,7,1", [ONE]),
        ("0,-1,1", [ONE]),
        ("", []),
    ],
)
def test_gpus_are_those_that_are_visible_by_their_ids(listed, monkeypatch, visible, names):
    if visible is not None:
        monkeypatch.setenv(gpus.VISIBLE, visible)
    assert gpus.list_names() == names


def test_of_a_gpu_in_slices_the_slices_are_taken(listed):
    listed.put({"id": ONE, "slices": ["MIG-0c", None, "MIG-1c"]}, {"id": OTHER, "slices": [None]})
    assert gpus.list_names() == ["MIG-0c", "MIG-1c", OTHER]


def test_where_the_driver_lists_none_the_words_stay(listed, monkeypatch):
    listed.fail("Driver Not Loaded")
    assert gpus.list_names() == []
    monkeypatch.setenv(gpus.VISIBLE, "3,GPU-x")
    assert gpus.list_names() == ["3", "GPU-x"]


def test_where_one_gpu_does_not_answer_none_is_given_another_ones_number(listed, monkeypatch):
    listed.put(None, {"id": OTHER})
    assert gpus.list_names() == []
    monkeypatch.setenv(gpus.VISIBLE, "1")
    assert gpus.list_names() == ["1"]


@pytest.mark.usefixtures("listed")
def test_each_run_takes_gpus_that_no_other_holds(monkeypatch):
    said, waited = [], []

    def sleep(_):
        waited.append(len(said))
        if len(waited) == 2:
            first.close()

    monkeypatch.setattr(gpus, "time", SimpleNamespace(sleep=sleep))
    first = contextlib.ExitStack()
    assert list(first.enter_context(gpus.claim(1, said.append))) == [ONE]
    with gpus.claim(1, said.append) as mine:
        assert list(mine) == [OTHER]
    with gpus.claim(0, said.append) as mine:
        assert mine == {}
    with gpus.claim(2, said.append) as mine:  # waits for both
        assert list(mine) == [ONE, OTHER]
    assert waited == [1, 1]
    assert said == [f"waiting for 2 of 2 GPUs: {ONE} is held by process {os.getpid()}"]


@pytest.mark.parametrize("lists", [[], [{"id": ONE}]])
def test_a_job_never_makes_do_with_fewer_gpus(tmp_path, listed, lists):
    """The driver may fail once in a while: a run for two GPUs must not run on one, or on none."""
    if lists:
        listed.put(*lists)
    else:
        listed.fail("Unknown Error")
    said, errors = start_job(tmp_path / "log", "--gpus", "2", "--", "echo", "run").communicate(timeout=200)
    assert (said, errors) == (
        "",
        "error: 2 GPUs were requested, but "
        + ("only 1 can be used: request fewer\n" if lists else "this machine has none that can be used\n"),
    )


@pytest.mark.usefixtures("listed")
def test_a_gpu_that_a_run_by_hand_holds_is_not_given_to_a_job(tmp_path):
    """A job says once, on its stderr and in its log, what it waits for."""
    log = tmp_path / "logs/log"
    show = [sys.executable, "-c", f"import os; print(os.environ['{gpus.VISIBLE}'])"]
    with gpus.take("1a"):  # as torch calls it
        done = start_job(log, "--gpus", "1", "--", *show).communicate(timeout=200)
        assert done == (f"{OTHER}\n", "")
        both = start_job(log, "--gpus", "2", "--", *show)
        words = f"waiting for 2 of 2 GPUs: {ONE} is held by process {os.getpid()}"
        assert both.stderr.readline() == words + "\n"
        wait_until(lambda: log.is_file() and log.read_text().endswith(words + "\n"))
        assert logs.explain(log) == f"it was killed, or its machine went down, after: {words}"
        time.sleep(2 * gpus.POLL)
    assert both.communicate(timeout=200) == (f"{ONE},{OTHER}\n", "")
    assert logs.explain(log) == "its last attempt succeeded, but its results were removed or replaced"
    assert log.read_text().count(words) == 1


@pytest.mark.usefixtures("listed")
def test_a_gpu_stays_held_while_the_command_of_a_killed_job_goes_on(tmp_path):
    run = start_job(
        tmp_path / "log",
        "--gpus",
        "1",
        "--",
        sys.executable,
        "-c",
        "print('at work', flush=True); input()",
        stdin=subprocess.PIPE,
    )
    assert run.stdout.readline() == "at work\n"
    (orphan,) = psutil.Process(run.pid).children()
    assert gpus.take(ONE) is None
    assert gpus.describe_holder(ONE) == f"process {run.pid}"
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert gpus.take(ONE) is None
    assert gpus.describe_holder(ONE) == f"a child process that process {run.pid} left running"
    orphan.kill()
    psutil.wait_procs([orphan], timeout=200)
    wait_until(lambda: gpus.take(ONE))
    run.communicate()
