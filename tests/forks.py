"""Commands of this project whose processes are forked from one that has imported the large libraries already.

    environment = forks.create_environment(HF_HUB_OFFLINE="1")
    subprocess.run([sys.executable, "scripts/correlation_pipeline.py", ...], env=environment)

To import torch, transformers, pandas and papermill takes 10 core seconds for each run of a model, which is most of the
time of a test whose model is tiny. In this environment every Python imports `forked/sitecustomize.py` first. Where
the Python is to run a program that is named there, that module has a server fork a process with the same arguments,
environment, folder and streams, passes signals on to it, and ends as it ends. A fork imports the project's modules
itself.

All forks have the hash seed of the server, and they have libraries that a module may have forgotten to import. So tests
that compare two processes start one of them as users do, and so does at least one test of each command.

As a script, this module is the server. The workers of a session share it, and it ends with the last of them.
"""

import atexit
import contextlib
import fcntl
import functools
import gc
import hashlib
import importlib
import json
import os
import pkgutil
import runpy
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import tqdm.auto
import tqdm.notebook

from forked import sitecustomize

ROOT = Path(__file__).parents[1]
FORKED = Path(__file__).with_name("forked")
SOCKET = "FORK_SERVER"  # the variable with the path of the server's socket
KEEP, RUN = b"K", b"R"  # how a connection begins: the server is wanted until it ends; a request follows
IMPORTED = (  # all but the project, and but ipykernel.kernelapp, which reads its parent from the environment
    *("torch._dynamo", "transformers.models.auto.modeling_auto", "transformers.models.auto.tokenization_auto"),
    *("transformers.models.llama.modeling_llama", "transformers.generation.utils", "accelerate", "gguf"),
    *("pandas", "pyarrow.parquet", "scipy.stats", "scipy.interpolate", "statsmodels.regression.linear_model"),
    *("matplotlib.figure", "plotly.graph_objects", "plotly.subplots", "plotly.io", "jinja2", "regex"),
    *("IPython.display", "ipykernel.ipkernel", "ipykernel.zmqshell", "jupytext", "nbformat", "papermill"),
    *("snakemake.cli", "snakemake.workflow", "snakemake.profiles", "snakemake.report.html_reporter", "smart_open"),
    *("grimp", "filelock", "yaml"),
)
FIXED = ("HF_", "HUGGING", "TRANSFORMERS_", "TORCH", "XDG_", "HOME", "MPL")  # read when a library is imported


def create_environment(**more: str) -> dict[str, str]:
    """This process's environment and ``more``, in which the programs of `forked/sitecustomize.py` are forked."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | more
    place = start_server(json.dumps(select_fixed(environment), sort_keys=True))
    path = os.pathsep.join(filter(None, [str(FORKED), environment.get("PYTHONPATH")]))
    return environment | {SOCKET: place, "PYTHONPATH": path}


def select_fixed(environment: dict[str, str]) -> dict[str, str]:
    """The variables that a fork must share with its server."""
    return {name: value for name, value in environment.items() if name.startswith(FIXED)}


@functools.cache
def start_server(fixed: str) -> str:
    """The socket of the session's server with these variables, in JSON; the first worker to ask starts it."""
    session = os.environ.get("PYTEST_XDIST_TESTRUNUID", str(os.getpid()))
    name = hashlib.sha256(f"{session} {fixed}".encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir(), f"forks-{name}")
    folder.mkdir(exist_ok=True)
    place, connection = folder / "socket", socket.socket(socket.AF_UNIX)
    with (folder / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not place.exists():
            environment = {name: value for name, value in os.environ.items() if not name.startswith(FIXED)}
            environment |= json.loads(fixed) | {"OMP_NUM_THREADS": "1"}  # a fork has no threads but its own
            with (folder / "log").open("w") as log:
                streams = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
                server = subprocess.Popen([sys.executable, __file__, str(place)], cwd=ROOT, env=environment, **streams)
            atexit.register(server.wait)
            while not place.exists():
                assert server.poll() is None, (folder / "log").read_text()
                time.sleep(0.05)
        connection.connect(str(place))
    connection.sendall(KEEP)
    atexit.register(connection.close)  # the last to be registered is the first to be called
    return str(place)


class Server:
    """Forks a process for each request; what is left of them ends with the session."""

    def __init__(self, place: Path, fixed: dict[str, str]):
        self.fixed = fixed
        self.keeping: set[socket.socket] = set()
        self.running: dict[int, socket.socket] = {}  # process -> who waits for it
        self.selector = selectors.DefaultSelector()
        self.woken, waking = os.pipe()
        os.set_blocking(waking, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(waking)
        self.selector.register(self.woken, selectors.EVENT_READ)
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(f"{place}.new")
        self.listener.listen(100)
        os.rename(f"{place}.new", place)
        self.selector.register(self.listener, selectors.EVENT_READ)

    def serve(self) -> dict | None:
        """Returns the request in a process that has been forked for it, None when no worker is left."""
        begun = False
        while self.keeping or not begun:
            for key, _ in self.selector.select():
                if key.fileobj is self.listener:
                    request = self.accept(self.listener.accept()[0])
                    if request is not None:
                        return request
                    begun = begun or bool(self.keeping)
                elif key.fileobj == self.woken:
                    os.read(self.woken, 1000)
                    self.reap()
                else:
                    self.hear(key.fileobj)
        for process in self.running:
            kill(process, signal.SIGKILL)
        return None

    def accept(self, connection: socket.socket) -> dict | None:
        """Forks for a request, which is returned in the new process only."""
        kind, streams, _, _ = socket.recv_fds(connection, 1, 3)
        if kind == KEEP:
            self.keeping.add(connection)
        elif kind == RUN:
            with connection.makefile("rb") as stream:
                request = json.loads(stream.readline())
            if not self.suits(request):
                for stream in (*streams, connection.fileno()):  # who reads a pipe waits for the last who may write
                    os.close(stream)
                connection.detach()
                return None
            process = os.fork()
            if process == 0:
                self.let_go()
                connection.close()
                for number, stream in enumerate(streams):
                    os.dup2(stream, number)
                    os.close(stream)
                return request
            for stream in streams:
                os.close(stream)
            self.running[process] = connection
        self.selector.register(connection, selectors.EVENT_READ)
        return None

    def suits(self, request: dict) -> bool:
        """Whether a fork for it has read nothing of another environment.

        A Slurm job begins with a Snakemake that only passes its command on to srun: its environment does not matter.
        """
        return "slurm-jobstep" in request["words"] or select_fixed(request["environment"]) == self.fixed

    def let_go(self) -> None:
        """In a fork: it is a process as another, with the server's signals and sockets no more."""
        os.setsid()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a server in the background of a shell ignores it
        self.selector.close()
        for connection in (self.listener, *self.keeping, *self.running.values()):
            connection.close()

    def hear(self, connection: socket.socket) -> None:
        """A signal for a process, or the end of a connection: of a worker, or of who was killed while it waited."""
        with contextlib.suppress(ConnectionError):
            said = connection.recv(1)
            process = next((number for number, waiting in self.running.items() if waiting is connection), None)
            if process and said:
                os.kill(process, said[0])
                return
            if process:
                kill(process, signal.SIGKILL)
        self.selector.unregister(connection)
        self.keeping.discard(connection)
        if process is None:
            connection.close()

    def reap(self) -> None:
        """Tells who waits for the processes that have ended how they ended."""
        for process, connection in list(self.running.items()):
            ended, status = os.waitpid(process, os.WNOHANG)
            if ended:
                del self.running[process]
                with contextlib.suppress(KeyError):
                    self.selector.unregister(connection)
                with contextlib.suppress(ConnectionError):
                    connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
                connection.close()


def kill(process: int, number: int) -> None:
    """A signal to a fork and to what it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process, number)


def run_program(request: dict, libraries: list[str]) -> None:
    """What Python does with the arguments of a request, in the process that was forked for it. Does not return."""
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    given = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    words = sys.orig_argv[1:] = request["words"]
    module = words[0] == "-m"
    sys.path[:] = [os.getcwd() if module else os.path.dirname(os.path.realpath(words[0])), *given, *libraries]
    sys.argv[:] = words[module:]
    importlib.invalidate_caches()
    for path in given:  # what these folders have goes before a library of the same name
        for found in pkgutil.iter_modules([path]):
            sys.modules.pop(found.name, None)
    sitecustomize.import_next()
    if words[:2] == ["-m", "ipykernel_launcher"]:  # tqdm.auto decides once, when it is imported, what a bar is
        tqdm.auto.tqdm, tqdm.auto.trange = tqdm.notebook.tqdm, tqdm.notebook.trange
    try:
        if module:
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(words[0], run_name="__main__")
    except SystemExit as ended:
        code = ended.code
    else:
        code = None
    end_process(code)


def end_process(code: object) -> None:
    """Ends a fork as Python does after a program that called sys.exit with ``code``, but takes nothing apart.

    Objects that are taken apart are pages that are copied: all of the server's, which takes a third of a second. Forks
    of multiprocessing end in the same way. What happens while Python itself ends is not seen, and a file that was never
    closed is not written.
    """
    if not isinstance(code, int | None):
        print(code, file=sys.stderr)
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit((code or 0) & 0xFF)


def main() -> None:
    place = Path(sys.argv[1])
    own = 1 + len([path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path])
    libraries, fixed = sys.path[own:], select_fixed(dict(os.environ))  # before torch adds variables of its own
    for name in IMPORTED:
        importlib.import_module(name)
    threads = {
        path.read_text() for path in Path("/proc/self/task").glob("*/comm") if path.parent.name != str(os.getpid())
    }
    assert threads <= {"jemalloc_bg_thd\n"}, f"a fork has only the thread that forks, so these would be lost: {threads}"
    assert not any(name.partition(".")[0] == "nucleoscope" for name in sys.modules)
    gc.collect()
    gc.freeze()  # a collection in a fork would copy every page
    request = Server(place, fixed).serve()
    if request is None:
        shutil.rmtree(place.parent, ignore_errors=True)
    else:
        run_program(request, libraries)


if __name__ == "__main__":
    main()
