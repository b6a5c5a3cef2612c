"""A stand-in for the Hugging Face Hub on 127.0.0.1: what the real one answers, from folders and refusals.

    with hub.serve({"org/tiny": folder, "org/closed": hub.GATED, "datasets/org/words": other}) as server:
        subprocess.run(..., env=server.environment(home))

It speaks what huggingface_hub, transformers and datasets ask for: models and data sets, their revisions,
file lists and sizes, files by HEAD and GET with Range, large ones by a redirect to another host as the
real one's. The status codes and the headers X-Error-Code and X-Error-Message are those that
huggingface_hub reads (`hf_raise_for_status` in its ``utils/_http.py``); a repository that is not listed
is unknown. `Server.faults` spoils the downloads of chosen files.
"""

import contextlib
import hashlib
import json
import math
import os
import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

# Code for a process whose downloads break off: here a second try need not wait.
AT_ONCE = """
from types import SimpleNamespace
from huggingface_hub import file_download
file_download.time = SimpleNamespace(sleep=lambda seconds: None)
"""
NO_HEADERS: Mapping[str, str] = {}
COMMIT = "0123456789abcdef0123456789abcdef01234567"  # the one revision of a repository given as a folder
LARGE = 20_000  # bytes; files from this size on lie in large file storage, behind a redirect
TOKEN = "hf_loopback"  # opens gated repositories
NAME = "[^/]+(?:/[^/]+)?"  # "org/name", or a name alone
ABOUT = re.compile(rf"/api/(models|datasets)/({NAME}?)(?:/(revision|tree|paths-info|auth-check)(?:/(.*))?)?")
FILE = re.compile(rf"/((?:datasets/)?{NAME}?)/resolve/([^/]+)/(.+)")


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
NO_SUCH_REVISION = Refusal(404, "RevisionNotFound", "Invalid rev id")


class Repository(NamedTuple):
    """A repository with a history: commits (40 hex digits) and their folders, and what branches stand for.

    A gated one shows its file list to everybody and its files to requests with `TOKEN`.
    """

    commits: Mapping[str, Path]
    branches: Mapping[str, str]
    gated: bool = False


class Fault(NamedTuple):
    """What happens to a download after so many bytes: the line is cut, or nothing more comes for some seconds."""

    after: int
    stall: float = 0.0  # seconds without a byte before the line is cut
    times: float = math.inf  # so many downloads are spoilt, then no more


@dataclass
class Server:
    """A running stand-in: its address, the requests that it got as "METHOD path", and faults.

    A fault is that of all files whose paths on disk end in its key.
    """

    endpoint: str
    requests: list[str] = field(default_factory=list)
    faults: dict[str, Fault] = field(default_factory=dict)
    leaks: list[str] = field(default_factory=list)  # requests to the file storage that carried a token
    stored: dict[str, Path] = field(default_factory=dict)  # what the file storage has been asked to show
    stopped: threading.Event = field(default_factory=threading.Event)

    def environment(self, home: Path, **more: str) -> dict[str, str]:
        """Environment variables of a process that takes this server for the Hub."""
        return clean_environment(home, HF_ENDPOINT=self.endpoint, **more)

    def files(self, method: str = "GET") -> list[str]:
        """The files that were asked for, as "repository/revision/path", in order."""
        asked = (request.split(" ", 1)[1] for request in self.requests if request.startswith(method))
        return [unquote(path).lstrip("/").replace("/resolve/", "/") for path in asked if "/resolve/" in path]


def clean_environment(home: Path, **more: str) -> dict[str, str]:
    """This process's environment with the empty ``home`` for a cache, and with no token, proxy or Hub settings."""
    ours = ("HF_", "HUGGING", "TRANSFORMERS_", "XDG_CACHE_HOME")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(ours) and not k.lower().endswith("_proxy")}
    ours = {
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_ETAG_TIMEOUT": "100",
        "HF_HUB_DOWNLOAD_TIMEOUT": "100",
        "NO_PROXY": "127.0.0.1,localhost",
    }
    return kept | ours | {"OMP_NUM_THREADS": "1"} | more  # small models are slower in threads that share two cores


@contextlib.contextmanager
def serve(repositories: Mapping[str, Path | Refusal | Repository]) -> Iterator[Server]:
    """Serves repositories until the block ends: models by their ids, data sets by "datasets/" and their ids."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as listener:
        listener.daemon_threads = True
        listener.repositories = {
            name: Repository({COMMIT: found}, {"main": COMMIT}) if isinstance(found, Path) else found
            for name, found in repositories.items()
        }
        listener.record = Server(f"http://127.0.0.1:{listener.server_port}")
        thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield listener.record
        finally:
            listener.record.stopped.set()
            listener.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def handle_one_request(self) -> None:
        with contextlib.suppress(ConnectionError):  # a killed client hangs up as it can
            super().handle_one_request()

    def log_message(self, *args) -> None:
        """Nothing on the terminal; `Server.requests` has the requests."""

    def do_GET(self) -> None:
        self.server.record.requests.append(f"{self.command} {self.path}")
        path = urlsplit(self.path).path
        if path.startswith("/storage/"):
            self._answer_storage(path.removeprefix("/storage/"))
        elif found := ABOUT.fullmatch(path):
            self._answer_about(*found.groups())
        elif found := FILE.fullmatch(path):
            self._answer_file(*found.groups())
        else:
            self._refuse(UNKNOWN)

    do_HEAD = do_POST = do_GET

    def _read_body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _open(self, name: str, files: bool) -> Repository | None:
        """The repository, or None after a refusal. ``files``: of its content, which a gate closes."""
        found = self.server.repositories.get(name, UNKNOWN)
        if isinstance(found, Refusal):
            self._refuse(found)
            return None
        token = self.headers.get("Authorization")
        if files and found.gated and token != f"Bearer {TOKEN}":
            self._refuse(GATED_FOR_YOU if token else GATED)
            return None
        return found

    def _find_commit(self, repository: Repository, revision: str) -> str | None:
        """The commit that a branch, a commit or its beginning stands for; None after a refusal."""
        revision = unquote(revision)
        begun = [commit for commit in repository.commits if len(revision) >= 7 and commit.startswith(revision)]
        commit = repository.branches.get(revision) or (begun[0] if len(begun) == 1 else None)
        if commit is None:
            self._refuse(NO_SUCH_REVISION)
        return commit

    def _answer_about(self, kind: str, name: str, verb: str | None, rest: str | None) -> None:
        body = self._read_body()
        repository = self._open(name if kind == "models" else f"datasets/{name}", files=verb == "auth-check")
        if repository is None:
            return
        revision, _, below = (rest or "main").partition("/")
        commit = self._find_commit(repository, revision)
        if commit is None:
            return
        entries = _list_entries(repository.commits[commit])
        if verb == "auth-check":
            self._send_json({})
        elif verb in (None, "revision"):
            self._send_json(_describe_repository(name, commit, repository.gated, entries))
        elif verb == "paths-info":
            wanted = {path.strip("/") for path in _parse_form(body).get("paths", [])}
            self._send_json([entry for entry in entries if entry["path"] in wanted])
        else:
            self._answer_tree(unquote(below).strip("/"), entries)

    def _answer_tree(self, below: str, entries: list[dict]) -> None:
        recursive = parse_qs(urlsplit(self.path).query).get("recursive", ["false"])[0].lower() in ("true", "1")
        inside = [entry for entry in entries if not below or entry["path"].startswith(f"{below}/")]
        depth = below.count("/") + 1 if below else 0
        if below and not inside:
            self._refuse(NO_SUCH_FILE)
        else:
            self._send_json([entry for entry in inside if recursive or entry["path"].count("/") == depth])

    def _answer_file(self, name: str, revision: str, path: str) -> None:
        repository = self._open(name, files=True)
        commit = repository and self._find_commit(repository, revision)
        if not commit:
            return
        file = repository.commits[commit] / unquote(path)
        if not file.is_file():
            self._refuse(NO_SUCH_FILE, {"X-Repo-Commit": commit})
            return
        size, tag = file.stat().st_size, _compute_etag(file)
        headers = {"X-Repo-Commit": commit, "ETag": f'"{tag}"', "Accept-Ranges": "bytes"}
        if size < LARGE:
            self._send_file(file, headers)
            return
        self.server.record.stored[tag] = file
        place = f"http://localhost:{self.server.server_port}/storage/{tag}"  # another host, as far as a client can tell
        linked = {"Location": place, "X-Linked-Etag": f'"{tag}"', "X-Linked-Size": str(size)}
        self._send(302, b"", headers | linked)

    def _answer_storage(self, tag: str) -> None:
        if self.headers.get("Authorization"):
            self.server.record.leaks.append(self.path)
        file = self.server.record.stored.get(tag)
        if file is None:
            self._refuse(NO_SUCH_FILE)
        else:
            self._send_file(file, {"ETag": f'"{tag}"', "Accept-Ranges": "bytes"})

    def _send_file(self, file: Path, headers: Mapping[str, str]) -> None:
        content, asked = file.read_bytes(), re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        begin = int(asked[1]) if asked else 0
        end = min(int(asked[2]) + 1, len(content)) if asked and asked[2] else len(content)
        if asked:
            headers = {**headers, "Content-Range": f"bytes {begin}-{end - 1}/{len(content)}"}
        faults = self.server.record.faults
        ending = next((ending for ending in faults if str(file).endswith(ending)), None)
        if self.command == "HEAD" or ending is None or not faults[ending].times:
            self._send(206 if asked else 200, content[begin:end], headers)
            return
        fault = faults[ending]
        faults[ending] = fault._replace(times=fault.times - 1)
        self._send(206 if asked else 200, content[begin:end], headers, upto=max(fault.after - begin, 0))
        self.server.record.stopped.wait(fault.stall)
        self.close_connection = True

    def _refuse(self, refusal: Refusal, headers: Mapping[str, str] = NO_HEADERS) -> None:
        named = {"X-Error-Message": refusal.message} | ({"X-Error-Code": refusal.code} if refusal.code else {})
        self._send(refusal.status, json.dumps({"error": refusal.message}).encode(), {**named, **headers})

    def _send_json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: Mapping[str, str], upto: int | None = None) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            with contextlib.suppress(ConnectionError):  # the other side may leave while it waits
                self.wfile.write(body[:upto])
                self.wfile.flush()


def _parse_form(body: bytes) -> dict:
    """A form's fields, however they were sent."""
    text = body.decode()
    return json.loads(text) if text.startswith("{") else parse_qs(text)


def _describe_repository(name: str, commit: str, gated: bool, entries: list[dict]) -> dict:
    """What the Hub says of a repository at a commit."""
    files = [entry for entry in entries if entry["type"] == "file"]
    siblings = [
        {"rfilename": entry["path"], "size": entry["size"], "blobId": entry["oid"]}
        | (
            {"lfs": {"sha256": entry["lfs"]["oid"], "size": entry["size"], "pointerSize": 130}}
            if "lfs" in entry
            else {}
        )
        for entry in files
    ]
    return {"id": name, "sha": commit, "gated": "manual" if gated else False, "tags": [], "siblings": siblings}


def _list_entries(folder: Path) -> list[dict]:
    """A folder's files and folders as the Hub lists them."""
    found = []
    for path in sorted(folder.rglob("*")):
        entry = {"path": path.relative_to(folder).as_posix()}
        if path.is_dir():
            found.append(entry | {"type": "directory", "size": 0, "oid": hashlib.sha1(str(path).encode()).hexdigest()})
            continue
        size, tag = path.stat().st_size, _compute_etag(path)
        large = {"lfs": {"oid": tag, "size": size, "pointerSize": 130}} if size >= LARGE else {}
        found.append(entry | {"type": "file", "size": size, "oid": tag[:40]} | large)
    return found


def _compute_etag(path: Path) -> str:
    """40 hex digits for a small file, 64 for a large one, as git and its large file storage have."""
    return _hash_file(path, path.stat().st_mtime_ns)


@cache
def _hash_file(path: Path, _changed: int) -> str:
    content = path.read_bytes()
    return hashlib.sha1(content).hexdigest() if len(content) < LARGE else hashlib.sha256(content).hexdigest()
