"""Runs that are killed, by the dozen: a process that has imported everything, and forks each run.

    python tests/kills.py

reads one request a line from its standard input, JSON with

* ``folder``: the run's folder; ``settings``, ``overwrite``: as `run_folder.RunFolder` takes them,
* ``count``: how many such runs start at once (1), ``lock_seconds``: how long they wait for each other,
* ``after``: seconds after which the run gets SIGKILL, or null,
* ``dtype``: of the model (float32); ``prompts``: their number (6); ``parameters``: others than `PARAMETERS`,
* ``save_seconds``: how often what was drawn of a batch is saved, ``log``: a file that gets a line for each step drawn
  ("draw 3") and for each time steps were saved ("kept 4": those before the fifth),
* ``operation``, ``half``: which file operation in the folder, counted from 1, is the run's last, and whether it is
  killed in the middle of a write (where that is one) instead of before it,

and answers with a line of JSON, a list of the runs: ``process``, the ``signal`` that ended it (0:
none), the ``seconds`` it took, the ``operations`` it made, and ``error``, its last words.
"""

import gc
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pandas  # noqa: F401  run folders import it and pyarrow only when they write tokens.parquet
import pyarrow.parquet  # noqa: F401
import torch
from transformers import PreTrainedModel

import tiny
from nucleoscope.measure import checking, journal, sampling
from nucleoscope.measure.runs import complete_run
from nucleoscope.store import locking, run_folder

PROMPTS = [f"{'the cat and ' * (n % 5)}number {n}" for n in range(100)]
PARAMETERS = {"max_tokens": 4, "batch_size": 2, "variants": "none"}
DTYPES = (torch.float32, torch.float64, torch.bfloat16)
CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "fcntl.flock")


def create_model(dtype: torch.dtype) -> PreTrainedModel:
    """In float64 and bfloat16 with eight tokens that end a text, so that rows end early."""
    model = tiny.create_model().to(dtype)
    if dtype != torch.float32:
        model.generation_config.eos_token_id = list(range(40, 48))
    return model


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


def run(request: dict) -> None:
    """One run, as notebooks/measure.py has it."""
    folder, settings, overwrite = request["folder"], request["settings"], request.get("overwrite", False)
    run_folder.check(Path(folder), overwrite)
    run = run_folder.RunFolder(folder, settings, overwrite)
    if run.finished:
        run.record_request()
    else:
        with run:
            model, prompts = MODELS[request.get("dtype", "float32")], PROMPTS[: request.get("prompts", 6)]
            parameters = PARAMETERS | request.get("parameters", {}) | {"seed": settings["seed"]}
            complete_run(run, model, TOKENIZER, prompts, progress=False, **parameters)


def keep_log(path: str) -> None:
    """Logs what this process draws and saves. A line that was written outlives a kill."""
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    draw, save = sampling.Sampler.draw, run_folder.RunFolder.save_part

    def log_draw(sampler, logits, rows):
        found = draw(sampler, logits, rows)
        os.write(file, f"draw {len(sampler.steps) - 1}\n".encode())
        return found

    def log_save(folder, part):
        save(folder, part)
        os.write(file, f"kept {part['end']}\n".encode())

    sampling.Sampler.draw, run_folder.RunFolder.save_part = log_draw, log_save


def run_child(request: dict, answer: int) -> None:
    """The forked process: its run, and its last words. What the run prints does not belong among the answers."""
    os.dup2(2, 1)
    locking.LOCK_SECONDS = request.get("lock_seconds", locking.LOCK_SECONDS)
    journal.SAVE_SECONDS = request.get("save_seconds", journal.SAVE_SECONDS)
    if "log" in request:
        keep_log(request["log"])
    counter = Counter(request["folder"], request.get("operation"), request.get("half", False))
    error = ""
    try:
        run(request)
    except Exception as raised:
        error = str(raised) if isinstance(raised, (OSError, ValueError)) else traceback.format_exc()
    os.write(answer, json.dumps({"operations": counter.seen, "error": error}).encode())


def fork(child: Callable[[int], None]) -> tuple[int, int]:
    """A process that calls ``child`` with a descriptor for its last words, and where these can be read."""
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        try:
            child(writing)
        finally:
            os._exit(0)
    os.close(writing)
    return process, reading


def wait_for(process: int, reading: int) -> dict:
    """Waits for a process of `fork`, and tells of it."""
    _, status = os.waitpid(process, 0)
    with os.fdopen(reading, "rb") as stream:
        said = json.loads(stream.read() or b"{}")
    return {"process": process, "signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0} | said


def call_killed(action: Callable[[], None], folder: Path, operation: int | None, half: bool) -> tuple[int, int]:
    """The signal that ended a forked process, which calls ``action``, and how many operations in ``folder`` it made.

    It is killed at its ``operation``; ``half``: in the middle of a write.
    """

    def child(answer: int) -> None:
        torch.set_num_threads(1)
        counter = Counter(str(folder), operation, half)
        action()
        os.write(answer, json.dumps({"operations": counter.seen}).encode())

    told = wait_for(*fork(child))
    return told["signal"], told.get("operations", 0)


def answer(request: dict) -> list[dict]:
    """The runs that were asked for, all at once."""
    begun = time.perf_counter()
    runs = [fork(partial(run_child, request)) for _ in range(request.get("count", 1))]
    if request.get("after") is not None:
        time.sleep(request["after"])
        for process, _ in runs:
            os.kill(process, signal.SIGKILL)
    return [wait_for(*run) | {"seconds": time.perf_counter() - begun} for run in runs]


if __name__ == "__main__":
    torch.set_num_threads(1)  # a fork has no threads but its own
    locking.BEAT = 0.2
    MODELS = {str(dtype).removeprefix("torch."): create_model(dtype) for dtype in DTYPES}
    TOKENIZER = tiny.create_tokenizer()
    for model in MODELS.values():
        checking.find_way(model)  # once, and not in each fork
    gc.collect()
    gc.freeze()  # a collection in a fork would copy every page
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)
