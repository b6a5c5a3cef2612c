"""Runs jobs of `worker` in processes of their own: which Python, in which order, and what an error says."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
WORKER = Path(__file__).with_name("worker.py")
MODULE = Path("lib/nucleoscope/__init__.py")


class WorkerError(ChildProcessError):
    """A job has failed. The message is one line; ``traceback`` is what the worker printed."""

    def __init__(self, message: str, traceback: str = ""):
        super().__init__(message)
        self.traceback = traceback


class Checkout(NamedTuple):
    """A checkout of this project, what messages call it, and the Python to run it with."""

    folder: Path
    name: str
    python: str


def find_checkout(given: str) -> Checkout:
    """The checkout in a folder, with the Python of its own .venv or else this one.

    OSError or ValueError, in one line, if there is none.
    """
    folder = Path(given).expanduser()
    if not folder.exists():
        raise FileNotFoundError(f"folder '{given}' does not exist: check the path")
    if not folder.is_dir():
        raise NotADirectoryError(f"'{given}' is a file: give the folder of a checkout of this project")
    if not (folder / MODULE).is_file():
        raise ValueError(f"'{given}' is not a checkout of this project: {MODULE.parent} is missing")
    environment = folder.absolute() / ".venv"
    python = environment / "bin/python"  # not resolved: what the link leads to knows nothing of the environment
    if os.path.lexists(environment) and not python.is_file():
        raise FileNotFoundError(f"'{given}' has a .venv without bin/python: run make env there, or remove it")
    return Checkout(folder.resolve(), given, str(python) if python.is_file() else sys.executable)


def get_own_checkout() -> Checkout:
    """This checkout, with the Python that runs this."""
    return Checkout(ROOT, str(ROOT), sys.executable)


def describe_commit(checkout: Checkout) -> str:
    """The commit of a checkout, with "-dirty" if files have changed; nothing if git does not know it."""
    command = ["git", "-C", str(checkout.folder), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def order_pairs(repeats: int) -> Iterator[tuple[int, int]]:
    """0 1, 1 0, 0 1, ...: which of two goes first alternates, so that no drift of the machine's speed favours one."""
    for repeat in range(repeats):
        yield (0, 1) if repeat % 2 == 0 else (1, 0)


def run_job(checkout: Checkout, **job: Any) -> dict[str, Any]:
    """The results of a job of `worker`, by name. WorkerError, which names the checkout, if it fails."""
    library = checkout.folder / "lib"
    environment = os.environ | {"PYTHONPATH": str(library)}
    done = subprocess.run(
        [checkout.python, "-P", str(WORKER)],  # -P: the worker's neighbours must not shadow other modules
        input=json.dumps({**job, "library": str(library)}),
        env=environment,
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
    )
    found: dict[str, Any] = {}
    for line in done.stdout.splitlines():
        found |= json.loads(line)
    if done.returncode or "error" in found:
        raise WorkerError(f"in the checkout '{checkout.name}': {_explain(found, done)}", done.stderr)
    return found


def _explain(found: dict[str, Any], done: subprocess.CompletedProcess) -> str:
    if "error" in found:
        return found["error"]
    if done.returncode < 0:
        try:
            name = signal.Signals(-done.returncode).name
        except ValueError:
            name = f"signal {-done.returncode}"
        return f"the worker was killed by {name}" + (", probably for lack of memory" if name == "SIGKILL" else "")
    lines = done.stderr.strip().splitlines() or ["it printed nothing"]
    return f"the worker ended with exit status {done.returncode}: {lines[-1].strip()}"
