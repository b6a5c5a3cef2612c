"""A real JupyterLab on this machine alone, for tests: its settings, workspaces and kernels are its own."""

import contextlib
import json
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]


@contextlib.contextmanager
def serve(folder: Path, state: Path, theme: str = "JupyterLab Light") -> Iterator[str]:
    """Serves the notebooks below ``folder`` while the block runs; gives the address, with its token.

    What JupyterLab writes goes below ``state``. It opens .py files as notebooks, as `make lab` has it.
    """
    settings = json.loads((ROOT / "scripts/jupyterlab.json").read_text())
    settings["@jupyterlab/apputils-extension:themes"] = {"theme": theme}
    for name, values in settings.items():
        package, plugin = name.split(":")
        path = state / "settings" / package / f"{plugin}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(16)
    own = {"JUPYTER_TOKEN": token, "JUPYTERLAB_SETTINGS_DIR": str(state / "settings")}
    own |= {f"JUPYTER_{name}_DIR": str(state / name.lower()) for name in ("CONFIG", "DATA", "RUNTIME")}
    own |= {"JUPYTERLAB_WORKSPACES_DIR": str(state / "workspaces"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", f"--ServerApp.root_dir={folder}"]
    command += ["--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}", "--ServerApp.port_retries=0"]
    command += ["--allow-root"] if os.geteuid() == 0 else []
    with (state / "server.log").open("w") as log:
        server = subprocess.Popen(command, env=os.environ | own, stdout=log, stderr=subprocess.STDOUT)
        try:
            _wait_for_server(f"http://127.0.0.1:{port}/api?token={token}", server, state / "server.log")
            yield f"http://127.0.0.1:{port}/lab/tree/{{}}?reset&token={token}"
        finally:
            server.terminate()  # it ends its kernels
            server.wait(30)


def _wait_for_server(address: str, server: subprocess.Popen, log: Path) -> None:
    """Returns when the server answers; AssertionError with its log where it does not within a minute."""
    end = time.monotonic() + 200
    while time.monotonic() < end and server.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(address, timeout=5):
            return
        time.sleep(0.2)
    raise AssertionError(f"JupyterLab does not answer:\n{log.read_text()[-2000:]}")
