"""A stand-in for the Hugging Face Hub on 127.0.0.1: what the real one answers, from folders and refusals.

    with hub.serve({"org/tiny": folder, "org/closed": hub.GATED}) as server:
        subprocess.run(..., env=server.environment(home))

The status codes and the headers X-Error-Code and X-Error-Message are those that huggingface_hub reads
(`hf_raise_for_status` in its ``utils/_http.py``); a repository that is not listed is unknown.
"""

import contextlib
import hashlib
import json
import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

NO_HEADERS: Mapping[str, str] = {}
COMMIT = "0123456789abcdef0123456789abcdef01234567"  # the one revision of every repository here


class Refusal(NamedTuple):
    """An answer with no file in it."""

    status: int
    code: str | None
    message: str


UNKNOWN = Refusal(404, "RepoNotFound", "Repository not found")  # to a request with a valid token
UNKNOWN_OR_PRIVATE = Refusal(401, "RepoNotFound", "Invalid username or password.")  # the same without one
GATED = Refusal(401, "GatedRepo", "Access to this model is restricted. Please log in.")
GATED_FOR_YOU = Refusal(403, "GatedRepo", "Access to this model is restricted and you are not in the authorized list.")
BAD_TOKEN = Refusal(401, None, "Invalid credentials in Authorization header")
DISABLED = Refusal(403, None, "Access to this resource is disabled.")
DOWN = Refusal(503, None, "Service Unavailable")
NO_SUCH_FILE = Refusal(404, "EntryNotFound", "Entry not found")


@dataclass
class Server:
    """A running stand-in: its address, and the requests that it got, as "METHOD path"."""

    endpoint: str
    requests: list[str] = field(default_factory=list)

    def environment(self, home: Path, **more: str) -> dict[str, str]:
        """Environment variables of a process that takes this server for the Hub."""
        return clean_environment(home, HF_ENDPOINT=self.endpoint, **more)


def clean_environment(home: Path, **more: str) -> dict[str, str]:
    """This process's environment with the empty ``home`` for a cache, and with no token, proxy or Hub settings."""
    ours = ("HF_", "HUGGING", "TRANSFORMERS_")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(ours) and not k.lower().endswith("_proxy")}
    return kept | {"HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1"} | more


@contextlib.contextmanager
def serve(repositories: Mapping[str, Path | Refusal]) -> Iterator[Server]:
    """Serves model repositories, each a folder of files or a refusal, until the block ends."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as listener:
        listener.repositories = dict(repositories)
        listener.record = Server(f"http://127.0.0.1:{listener.server_port}")
        thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield listener.record
        finally:
            listener.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args) -> None:
        """Nothing on the terminal; `Server.requests` has the requests."""

    def do_GET(self) -> None:
        self.server.record.requests.append(f"{self.command} {self.path}")
        parts = self.path.split("?")[0].strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            self._answer_about("/".join(parts[2:4]), parts[4:])
        elif parts[2:3] == ["resolve"]:
            self._answer_file("/".join(parts[:2]), "/".join(parts[4:]))
        else:
            self._refuse(UNKNOWN)

    do_HEAD = do_GET

    def _answer_about(self, repository: str, rest: list[str]) -> None:
        found = self.server.repositories.get(repository, UNKNOWN)
        if isinstance(found, Refusal):
            self._refuse(found)
        elif rest and rest[0] not in ("revision", "tree"):
            self._refuse(NO_SUCH_FILE)
        else:
            paths = [path for path in sorted(found.iterdir()) if path.is_file()]
            if rest[:1] == ["tree"]:
                about = [
                    {"type": "file", "path": path.name, "size": path.stat().st_size, "oid": _etag(path)}
                    for path in paths
                ]
            else:
                about = {"id": repository, "sha": COMMIT, "siblings": [{"rfilename": path.name} for path in paths]}
            self._send(200, json.dumps(about).encode(), {"Content-Type": "application/json"})

    def _answer_file(self, repository: str, name: str) -> None:
        found = self.server.repositories.get(repository, UNKNOWN)
        if isinstance(found, Refusal):
            self._refuse(found)
        elif not (found / name).is_file():
            self._refuse(NO_SUCH_FILE, {"X-Repo-Commit": COMMIT})
        else:
            path = found / name
            self._send(200, path.read_bytes(), {"X-Repo-Commit": COMMIT, "ETag": f'"{_etag(path)}"'})

    def _refuse(self, refusal: Refusal, headers: Mapping[str, str] = NO_HEADERS) -> None:
        named = {"X-Error-Message": refusal.message} | ({"X-Error-Code": refusal.code} if refusal.code else {})
        self._send(refusal.status, json.dumps({"error": refusal.message}).encode(), {**named, **headers})

    def _send(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _etag(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()
