"""Python code in processes of their own, each with its environment, that have imported torch already.

    preloaded.run_python("import os; print(os.environ['NAME'])", environment={"NAME": "x"}).stdout

The libraries of the Hub read their environment once, when they are imported, so that every environment needs a
process of its own. Torch reads nothing of it, and is three quarters of what importing a model class takes: a server
imports it once, and forks for each piece of code. As a script, this module is that server.
"""

import atexit
import contextlib
import functools
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

ROOT = Path(__file__).parents[1]
IMPORTED = (  # what model classes and data sets import and what reads no environment but the server's
    *("torch._dynamo", "torch.distributed.checkpoint", "torch.distributed.fsdp", "torch.distributed.tensor"),
    *("torch.export", "scipy.optimize", "pandas", "pyarrow.parquet"),
)
LIBRARIES = ("huggingface_hub", "transformers", "datasets")  # what reads its environment when it is imported
PATIENCE = 900  # seconds that a piece of code may take


def run_script(
    path: str, *arguments: str, environment: dict[str, str], before: str = ""
) -> subprocess.CompletedProcess[str]:
    """The finished process of ``python path arguments`` in the project's folder; ``before``: code that comes first."""
    code = f"{before}\nimport runpy\nrunpy.run_path({path!r}, run_name='__main__')"
    return run_python(code, *arguments, environment=environment)


def run_python(code: str, *arguments: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """The finished process of ``python -c code arguments`` in the project's folder."""
    server = start_server()
    with tempfile.TemporaryDirectory() as folder:
        streams = [os.path.join(folder, name) for name in ("stdout", "stderr")]
        request = {"code": code, "arguments": arguments, "environment": environment, "streams": streams}
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        status = int(server.stdout.readline())
        said = [Path(path).read_text(encoding="utf-8") for path in streams]
    return subprocess.CompletedProcess([sys.executable, "-c", code, *arguments], status, *said)


@functools.cache
def start_server() -> subprocess.Popen:
    """This session's server, which ends with the session."""
    command = [sys.executable, __file__]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # a fork has no threads but its own
    server = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    atexit.register(server.wait)
    atexit.register(server.stdin.close)  # the last to be registered is the first to be called
    return server


def run_child(request: dict) -> None:
    """The forked process: its streams, its environment, its code. Does not return."""
    status = 1
    try:
        signal.alarm(PATIENCE)
        for stream, path in enumerate(request["streams"], start=1):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), stream)
        os.environ.clear()
        os.environ.update(request["environment"])
        sys.argv[1:] = request["arguments"]
        exec(compile(request["code"], "<code>", "exec"), {"__name__": "__main__"})
        status = 0
    except SystemExit as ended:  # as Python ends for it
        status = 0 if ended.code is None else ended.code
        if not isinstance(status, int):
            print(status, file=sys.stderr)
            status = 1
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def serve() -> None:
    """Answers each line of the standard input, a request, with the exit status of its process."""
    for name in IMPORTED:
        importlib.import_module(name)
    assert not sys.modules.keys() & {*LIBRARIES}, "they have read this process's environment"
    for line in sys.stdin:
        process = os.fork()
        if process == 0:
            run_child(json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)


if __name__ == "__main__":
    serve()
