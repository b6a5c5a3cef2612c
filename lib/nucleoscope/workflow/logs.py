"""A command whose words are copied to a log, and what a log says of why it failed.

Contract: this module knows nothing of models or cells. A log holds the attempts since the last one
that came to its own end: each begins with a line "# begun" and ends with a line "# ended"; one
without its end was killed together with the machine, or by SIGKILL. One that was killed or
interrupted did not come to its own end. A log is locked while its command runs.
"""

import contextlib
import fcntl
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import IO

BEGUN, ENDED = "# begun", "# ended"
INTERRUPTED = ("status 130", "status 143")  # a command that SIGINT or SIGTERM asked to end, and that said so
ERRORS = ("error: ", "interrupted: ")  # how a command begins to say why it failed
KEPT = 2**10  # bytes of the last words that a full disk has not taken, to be put down at the end
PROGRESS_SECONDS = 30  # how often the state of a progress bar is put down
LAST_WORDS_SECONDS = 15  # for what a child of the command still says after its end


def run(command: list[str], log: Path, environment: dict[str, str] | None = None, handed: Collection[int] = ()) -> int:
    """Runs ``command`` and returns its exit status, 128 and the signal's number where one killed it.

    What it prints appears where it would, and in ``log`` without what a progress bar overwrote. It
    keeps the file descriptors ``handed`` open. SIGTERM is passed on to it, SIGINT is left to it: Ctrl-C
    reaches it from the terminal. OSError where the log cannot be opened; a disk that fills up later
    stops nothing.
    """
    with _opened(log) as file, _signals() as start:
        with contextlib.suppress(OSError):  # a file system without locks: `reason` cannot tell that it runs
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        lines = _Lines(file)
        lines.write(_begun(command))
        process = start(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, pass_fds=handed)
        copies = [
            threading.Thread(target=_copy, args=(source, target.buffer, lines), daemon=True)
            for source, target in ((process.stdout, sys.stdout), (process.stderr, sys.stderr))
        ]
        for copy in copies:
            copy.start()
        status = process.wait()
        for copy in copies:
            copy.join(LAST_WORDS_SECONDS)
        killer = signal.Signals(-status).name if status < 0 else ""
        lines.end(f"{ENDED} {_now()}: {f'killed by {killer}' if killer else f'status {status}'}".encode())
    return 128 - status if status < 0 else status


def note(command: list[str], log: Path, line: str) -> None:
    """Puts down why ``command`` has not begun yet, and says it; the log's next attempt goes on below."""
    print(line, file=sys.stderr, flush=True)
    with _opened(log) as file:
        lines = _Lines(file)
        lines.write(_begun(command))
        lines.write(line.encode())


def reason(log: Path, lacking: str = "its results are gone or were replaced") -> str:
    """Why the command of a log failed, in one line: its own error where it gave one.

    ``lacking`` says what is not as it should be, for a command that ended well.
    """
    if not log.is_file():
        return "it was not started: Snakemake's words above, or its log, say why"
    if running(log):
        return "it is running"
    attempt = log.read_text(encoding="utf-8", errors="replace").rpartition(BEGUN)[2].splitlines()[1:]
    ends = [line for line in attempt if line.startswith(ENDED)]
    said = [line.strip() for line in attempt if line.strip() and not line.startswith(ENDED)]
    if not ends:
        return "it was killed, or its machine went down" + (f", after: {said[-1]}" if said else "")
    how = ends[-1].rpartition(": ")[2]
    if how == "status 0":
        return f"it was measured, but {lacking}"
    if how.startswith("killed"):
        return f"it was {how} (out of memory, out of time, or cancelled)"
    errors = [line for line in said if line.startswith(ERRORS)]
    return errors[-1] if errors else f"it ended with {how}" + (f": {said[-1]}" if said else "")


def running(log: Path) -> bool:
    """Whether the command of a log runs now, as far as the log's lock can tell."""
    with log.open("rb") as file, contextlib.suppress(OSError):
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def failed(log: Path) -> bool:
    """Whether the last command of a log ended otherwise than well."""
    last = _last(log)
    return not (last.startswith(f"{ENDED} ") and last.endswith(": status 0")) and not running(log)


class _Lines:
    """Whole lines for a log, from several threads. What a full disk does not take is let go, except the last of it."""

    def __init__(self, file: IO[bytes]):
        self._file, self._lock, self._lost = file, threading.Lock(), b""
        self._error = b""  # the last one that was lost: what is printed elsewhere may come later

    def write(self, line: bytes) -> None:
        """What stands after the last carriage return is what a terminal would still show."""
        with self._lock:
            self._write(line.rstrip(b"\r").rpartition(b"\r")[2] + b"\n")

    def end(self, line: bytes) -> None:
        """The last line, for which earlier ones give way where the disk is full; nothing is written after it."""
        with self._lock:
            if not self._write(line + b"\n"):
                error = b"" if self._error in self._lost else self._error[:KEPT]
                self._make_room(b"\n... the disk was full ...\n" + error + self._lost)
            self._file.close()

    def _write(self, line: bytes) -> bool:
        """Whether all is in the log so far; else the next line tries again."""
        text, done = self._lost + line, 0
        with contextlib.suppress(OSError, ValueError):  # ValueError: closed, the command has ended, its child not yet
            done = self._file.write(text)
        self._lost = text[done:][-KEPT:]
        if self._lost and line.startswith(tuple(word.encode() for word in ERRORS)):
            self._error = line
        return not self._lost

    def _make_room(self, text: bytes) -> None:
        with contextlib.suppress(OSError):
            size = os.fstat(self._file.fileno()).st_size
            self._file.truncate(max(size - len(text), 0))
            self._file.write(text)


def _copy(source: IO[bytes], target: IO[bytes], lines: _Lines) -> None:
    """Copies all of ``source`` to ``target``, and line by line to the log."""
    rest, written = b"", time.monotonic()
    while chunk := source.read1(65536):
        with contextlib.suppress(OSError):  # nobody reads it any more, or its disk is full: the log still does
            target.write(chunk)
            target.flush()
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            lines.write(line)
        if b"\r" in rest and time.monotonic() - written > PROGRESS_SECONDS:
            lines.write(rest)
            rest, written = b"", time.monotonic()
    if rest:
        lines.write(rest)


@contextlib.contextmanager
def _signals() -> Iterator[Callable[..., subprocess.Popen]]:
    """Gives `subprocess.Popen` for one process that is told of SIGTERM, also where it comes while that starts."""
    told: list[int] = []
    running: list[subprocess.Popen] = []

    def pass_on(number: int, _: object) -> None:
        told.append(number)
        for process in running:
            process.terminate()

    def start(command: list[str], **options) -> subprocess.Popen:
        running.append(subprocess.Popen(command, **options))
        if told:
            running[0].terminate()
        return running[0]

    # A handler, because a signal that is ignored the process would ignore too.
    handlers = {signal.SIGTERM: pass_on, signal.SIGINT: lambda *_: None}
    before = {}
    with contextlib.suppress(ValueError):  # not in the main thread
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield start
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _opened(log: Path) -> Iterator[IO[bytes]]:
    """The log to add to, empty where its last attempt came to its own end; OSError in words where it cannot be had."""
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        file = log.open("ab", buffering=0)
        if not _cut_off(log):
            file.truncate(0)
    except OSError as error:
        raise type(error)(f"the log '{log}' cannot be written ({error.strerror}): use another results_dir") from None
    with file:
        yield file


def _begun(command: list[str]) -> bytes:
    job = f", Slurm job {os.environ['SLURM_JOB_ID']}" if "SLURM_JOB_ID" in os.environ else ""
    return f"{BEGUN} {_now()} on {socket.gethostname()}{job}: {shlex.join(command)}".encode()


def _cut_off(log: Path) -> bool:
    """Whether the last attempt did not come to its own end: the next one's words are added to it."""
    if not log.is_file():
        return False
    last = _last(log)
    return not last.startswith(ENDED) or "killed by" in last or last.endswith(INTERRUPTED)


def _last(log: Path) -> str:
    """The last line."""
    return log.read_text(encoding="utf-8", errors="replace").rstrip().rpartition("\n")[2]


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")
