"""A process that is forked for a command behaves as the command's own."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import psutil
import pytest

import forks
import signals

TELL = """
import json, os, sys
print(json.dumps({"torch": "torch" in sys.modules, "words": sys.argv[1:], "folder": os.getcwd(), "path": sys.path[0],
                  "own": os.environ.get("OWN"), "read": sys.stdin.read()}))
sys.exit(3)
"""
WAIT = """
import os, signal, sys, time
def stop(number, frame):
    sys.exit(number)
signal.signal(signal.SIGTERM, stop)
print(os.getpid(), flush=True)
time.sleep(600)
"""


@pytest.fixture
def script(tmp_path) -> Path:
    """A script with one of the names that are forked."""
    path = tmp_path / "scripts" / "benchmark.py"
    path.parent.mkdir()
    return path


def start(script: Path, code: str, *words: str, **environment: str) -> subprocess.Popen:
    script.write_text(code)
    command = [sys.executable, str(script), *words]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    environment = forks.create_environment() | environment
    return subprocess.Popen(command, cwd=script.parent, env=environment, text=True, preexec_fn=signals.restore, **pipes)


@pytest.mark.parametrize(("home", "forked"), [(None, True), ("elsewhere", False)])
def test_a_command_has_its_arguments_folder_environment_and_streams_forked_or_not(script, home, forked):
    """It is not forked where a library would have read another environment when it was imported."""
    run = start(script, TELL, "--a", "b c", OWN="mine", **({"HF_HOME": home} if home else {}))
    said, wrong = run.communicate("from here", timeout=200)
    assert (run.returncode, wrong) == (3, "")
    assert json.loads(said) == {
        **{"torch": forked, "words": ["--a", "b c"], "folder": os.path.realpath(script.parent)},
        **{"path": os.path.realpath(script.parent), "own": "mine", "read": "from here"},
    }


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 15), (signal.SIGINT, -2)])
def test_a_signal_reaches_what_was_forked(script, number, status):
    run = start(script, WAIT)
    forked = int(run.stdout.readline())
    assert forked != run.pid
    run.send_signal(number)
    run.communicate(timeout=200)
    assert run.returncode == status


def test_what_was_forked_does_not_outlive_a_command_that_is_killed(script):
    run = start(script, WAIT)
    forked = psutil.Process(int(run.stdout.readline()))
    run.kill()
    run.communicate(timeout=200)
    assert psutil.wait_procs([forked], timeout=200)[1] == []


def test_a_traceback_is_the_commands(script):
    run = start(script, "raise ValueError('no')")
    wrong = run.communicate(timeout=200)[1]
    assert run.returncode == 1
    assert wrong.splitlines()[-1] == "ValueError: no"


def test_a_notebooks_process_does_not_outlive_the_one_that_started_it(tmp_path):
    (tmp_path / "ipykernel_launcher.py").write_text(WAIT)
    code = (
        "import subprocess, sys; subprocess.run([sys.executable, '-m', 'ipykernel_launcher'], start_new_session=True)"
    )
    command, environment = [sys.executable, "-c", code], forks.create_environment()
    run = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)
    forked = psutil.Process(int(run.stdout.readline()))
    run.kill()
    run.communicate(timeout=200)
    assert psutil.wait_procs([forked], timeout=200)[1] == []


@pytest.mark.parametrize("home", [None, "elsewhere"], ids=["forked", "started"])
def test_a_program_that_ends_waits_for_its_threads_and_does_what_it_has_registered(script, home):
    code = """
        import atexit, sys, threading, time
        def finish():
            time.sleep(0.1)
            print("thread")
        atexit.register(print, "registered")
        threading.Thread(target=finish).start()
        print("ends")
        sys.exit("error: why")
    """
    process = start(script, textwrap.dedent(code), **({"HF_HOME": home} if home else {}))
    assert process.communicate(timeout=200) == ("ends\nthread\nregistered\n", "error: why\n")
    assert process.returncode == 1
