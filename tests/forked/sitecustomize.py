"""Has the server of `forks` fork the program that this Python is to run, where it is one of these.

Python imports this by its name, before all else, if its folder is in PYTHONPATH. Where there is no server, or it has
another environment, this Python continues as if nothing had happened, with the next sitecustomize in PYTHONPATH.
"""

import importlib.machinery
import importlib.util
import os
import sys

NOTEBOOK = "ipykernel_launcher"
MODULES = (NOTEBOOK, "snakemake")
SCRIPTS = ("benchmark", "build_book", "correlation_eval", "correlation_pipeline", "export", "prefetch", "run_notebook")
FILES = (*(f"scripts/{name}.py" for name in SCRIPTS), "bin/snakemake", "tests/polling.py", "tests/execute_imports.py")


def is_forked(words: list[str]) -> bool:
    """Whether the words after "python" name such a program; with FORK_NOTEBOOKS, whether they name a notebook's."""
    if "FORK_NOTEBOOKS" in os.environ:
        return words[:2] == ["-m", NOTEBOOK]
    if words[:1] == ["-m"]:
        return words[1:2] in [[name] for name in MODULES]
    return words != [] and words[0].endswith(FILES)


def run_fork(words: list[str], place: str) -> None:
    """Ends this process as the process ends that is forked for it; returns where there is none."""
    import json
    import signal
    import socket

    request = {"words": words, "folder": os.getcwd(), "environment": dict(os.environ)}
    passed = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in passed}
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(place)
            signal.pthread_sigmask(signal.SIG_BLOCK, passed)  # until they can be passed on
            socket.send_fds(connection, [b"R"], [0, 1, 2])
            connection.sendall(json.dumps(request).encode() + b"\n")
            for number in passed:
                signal.signal(number, lambda number, _: connection.send(bytes([number])))
            signal.pthread_sigmask(signal.SIG_UNBLOCK, passed)
            said = wait_for_end(connection, watched=words[:2] == ["-m", NOTEBOOK])
        except OSError:
            said = b""
    if not said:
        for number in passed:
            signal.signal(number, before[number])
        signal.pthread_sigmask(signal.SIG_UNBLOCK, passed)
        return
    status = int(said)
    if status < 0:
        signal.signal(-status, signal.SIG_DFL) if -status != signal.SIGKILL else None
        os.kill(os.getpid(), -status)
    os._exit(status)


def wait_for_end(connection, watched: bool) -> bytes:
    """What the server says when the fork has ended; ``watched``: as a notebook's process, it ends with its parent."""
    parent = os.getppid()
    connection.settimeout(0.2 if watched else None)
    while True:
        try:
            return connection.recv(16)
        except TimeoutError:
            if os.getppid() != parent:
                os._exit(1)  # which has the server kill the fork


def import_next() -> None:
    """Imports the sitecustomize of the other folders in PYTHONPATH, which this one hides."""
    own = os.path.dirname(os.path.abspath(__file__))
    others = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and path != own]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", others)
    if spec:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


if __name__ == "sitecustomize":
    if "FORK_SERVER" in os.environ and is_forked(sys.orig_argv[1:]):
        run_fork(sys.orig_argv[1:], os.environ["FORK_SERVER"])
    import_next()
