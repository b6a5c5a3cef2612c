"""Runs that are killed, by the dozen: a process that has imported everything, and forks each run.

    python tests/kills.py

reads one request a line from its standard input, JSON with

* ``folder``: the run's folder; ``settings``, ``overwrite``: as `run_folder.RunFolder` takes them,
* ``count``: how many such runs start at once (1), ``lock_seconds``: how long they wait for each other,
* ``after``: seconds after which the run gets SIGKILL, or null,
* ``operation``, ``half``: which file operation in the folder, counted from 1, is the run's last, and whether it is
  killed in the middle of a write (where that is one) instead of before it,

and answers with a line of JSON, a list of the runs: ``process``, the ``signal`` that ended it (0:
none), the ``seconds`` it took, the ``operations`` it made, and ``error``, its last words.
"""

import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path

import pandas  # noqa: F401  run folders import it and pyarrow only when they write tokens.parquet
import pyarrow.parquet  # noqa: F401
import torch

import tiny
from nucleoscope.measure.runs import complete_run
from nucleoscope.store import locking, run_folder

PROMPTS = [f"{'the cat and ' * (n % 5)}number {n}" for n in range(6)]
PARAMETERS = {"max_tokens": 4, "batch_size": 2}
CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "fcntl.flock")


class Counter:
    """Counts the changes that this process makes to files in a folder, and kills it at the wanted one.

    The audit hook is called before each change; `os.fsync`, which no hook tells of, comes after a
    file's last byte.
    """

    def __init__(self, folder: str, wanted: int | None, half: bool):
        self.folder, self.wanted, self.half, self.seen = os.path.realpath(folder), wanted, half, 0
        sys.addaudithook(self.hook)
        self.fsync, os.fsync = os.fsync, self.synced

    def hook(self, event: str, arguments: tuple) -> None:
        if event == "open":
            path, _, flags = arguments
            if isinstance(path, (str, bytes, os.PathLike)) and (flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                self.count(os.fsdecode(path))
        elif event in CHANGES:
            path, *rest = arguments
            # Below a folder that is being removed, paths are relative to it: all such removals are ours.
            mine = event in ("os.remove", "os.rmdir") and rest[-1] != -1
            self.count(self.folder if mine or not isinstance(path, (str, os.PathLike)) else os.fspath(path))

    def count(self, path: str) -> None:
        if os.path.abspath(path).startswith(self.folder):
            self.seen += 1
            if self.seen == self.wanted:
                os.kill(os.getpid(), signal.SIGKILL)

    def synced(self, file: int) -> None:
        if self.half and self.seen + 1 == self.wanted:
            os.ftruncate(file, os.fstat(file).st_size // 2)
        self.count(self.folder)
        self.fsync(file)


def run(folder: str, settings: dict, overwrite: bool) -> None:
    """One run, as notebooks/run.py has it."""
    run_folder.check(Path(folder), overwrite)
    run = run_folder.RunFolder(folder, settings, overwrite)
    if not run.finished:
        with run:
            seed = settings["seed"]
            complete_run(run, MODEL, TOKENIZER, PROMPTS, seed=seed, progress=False, **PARAMETERS)


def run_child(request: dict, answer: int) -> None:
    """The forked process: its run, and its last words."""
    locking.LOCK_SECONDS = request.get("lock_seconds", locking.LOCK_SECONDS)
    counter = Counter(request["folder"], request.get("operation"), request.get("half", False))
    error = ""
    try:
        run(request["folder"], request["settings"], request.get("overwrite", False))
    except Exception as raised:
        error = str(raised) if isinstance(raised, (OSError, ValueError)) else traceback.format_exc()
    os.write(answer, json.dumps({"operations": counter.seen, "error": error}).encode())


def fork_run(request: dict) -> tuple[int, int]:
    """A run's process, and where its last words can be read."""
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        try:
            run_child(request, writing)
        finally:
            os._exit(0)
    os.close(writing)
    return process, reading


def wait_for_run(process: int, reading: int) -> dict:
    """Waits for a run, and tells of it."""
    _, status = os.waitpid(process, 0)
    with os.fdopen(reading, "rb") as stream:
        said = json.loads(stream.read() or b"{}")
    return {"process": process, "signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0} | said


def answer(request: dict) -> list[dict]:
    """The runs that were asked for, all at once."""
    begun = time.perf_counter()
    runs = [fork_run(request) for _ in range(request.get("count", 1))]
    if request.get("after") is not None:
        time.sleep(request["after"])
        for process, _ in runs:
            os.kill(process, signal.SIGKILL)
    return [wait_for_run(*run) | {"seconds": time.perf_counter() - begun} for run in runs]


if __name__ == "__main__":
    torch.set_num_threads(1)  # a fork has no threads but its own
    locking.BEAT = 0.2
    MODEL, TOKENIZER = tiny.create_model(), tiny.create_tokenizer()
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)
