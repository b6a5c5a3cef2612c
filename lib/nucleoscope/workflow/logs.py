"""A command whose output is copied to a log, and why the command of a log failed.

Contract: this module knows nothing of models or runs. A log contains the attempts since the last one
that ended by itself: each begins with a line "# begun" and ends with a line "# ended". An attempt
without an end was killed with its machine, or by SIGKILL; an attempt that was killed or interrupted
did not end by itself. A log is locked while its command runs.
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

from nucleoscope.atomic import NotPlainError, open_plainly
from nucleoscope.names import escape_line

BEGUN, ENDED = "# begun", "# ended"
INTERRUPTED = ("status 130", "status 143")  # a command that ended because of SIGINT or SIGTERM
ERRORS = ("error: ", "interrupted: ")  # how a line begins that says why a command failed
KEPT = 2**10  # bytes of the latest output that a full disk has not taken, written at the end
PROGRESS_SECONDS = 30  # how often the state of a progress bar is logged
LAST_WORDS_SECONDS = 15  # how long to wait for output of a child of the command after its end


def run(command: list[str], log: Path, environment: dict[str, str] | None = None, handed: Collection[int] = ()) -> int:
    """Runs ``command`` and returns its exit status, or 128 plus the number of the signal that killed it.

    Its output is printed as usual, and copied to ``log`` without the states that a progress bar overwrote.
    It keeps the file descriptors ``handed`` open. SIGTERM is passed on to it; SIGINT is not, because Ctrl-C
    reaches it from the terminal. OSError if the log cannot be opened; a disk that fills up later
    stops nothing.
    """
    with _open_log(log) as file, _forward_signals() as start:
        with contextlib.suppress(OSError):  # a file system without locks: `is_running` cannot tell
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        lines = _Lines(file)
        lines.write(_format_begun(command))
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
        lines.end(f"{ENDED} {_format_now()}: {f'killed by {killer}' if killer else f'status {status}'}".encode())
    return 128 - status if status < 0 else status


def note(command: list[str], log: Path, line: str) -> None:
    """Prints and logs why ``command`` has not begun yet; the next attempt is added to the same log."""
    print(line, file=sys.stderr, flush=True)
    with _open_log(log) as file:
        lines = _Lines(file)
        lines.write(_format_begun(command))
        lines.write(line.encode())


def explain(log: Path, missing: str = "its results were removed or replaced") -> str:
    """Why the command of a log failed, in one line: its own error if it printed one.

    ``missing`` is what to say of a command that succeeded.
    """
    if not log.is_file():
        return "it was not started: see Snakemake's output above or its log"
    if is_running(log):
        return "it is running"
    attempt = log.read_text(encoding="utf-8", errors="replace").rpartition(BEGUN)[2].splitlines()[1:]
    ends = [line for line in attempt if line.startswith(ENDED)]
    said = [line.strip() for line in attempt if line.strip() and not line.startswith(ENDED)]
    if not ends:
        return "it was killed, or its machine went down" + (f", after: {said[-1]}" if said else "")
    how = ends[-1].rpartition(": ")[2]
    if how == "status 0":
        return f"its last attempt succeeded, but {missing}"
    if how.startswith("killed"):
        return f"it was {how} (probably out of memory, out of time, or cancelled)"
    errors = [line for line in said if line.startswith(ERRORS)]
    return errors[-1] if errors else f"it ended with {how}" + (f": {said[-1]}" if said else "")


def is_running(log: Path) -> bool:
    """Whether the command of a log is running, as far as the lock of the log tells."""
    with log.open("rb") as file, contextlib.suppress(OSError):
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def has_failed(log: Path) -> bool:
    """Whether the last command of a log failed."""
    last = _read_last_line(log)
    return not (last.startswith(f"{ENDED} ") and last.endswith(": status 0")) and not is_running(log)


class _Lines:
    """Complete lines for a log, from several threads. What a full disk does not take is dropped, except the latest."""

    def __init__(self, file: IO[bytes]):
        self._file, self._lock, self._lost = file, threading.Lock(), b""
        self._error = b""  # the last one that was lost: more output may follow it

    def write(self, line: bytes) -> None:
        """Writes what a terminal would still show of a line: what follows the last carriage return."""
        with self._lock:
            self._write(line.rstrip(b"\r").rpartition(b"\r")[2] + b"\n")

    def copy(self, line: bytes) -> None:
        """Writes a line of output, which never looks like one of the log's own."""
        shown = line.rstrip(b"\r").rpartition(b"\r")[2]
        self.write(b" " + shown if shown.startswith((BEGUN.encode(), ENDED.encode())) else shown)

    def end(self, line: bytes) -> None:
        """Writes the last line; if the disk is full, earlier lines are removed to make room."""
        with self._lock:
            if not self._write(line + b"\n"):
                error = b"" if self._error in self._lost else self._error[:KEPT]
                self._make_room(b"\n... the disk was full ...\n" + error + self._lost)
            self._file.close()

    def _write(self, line: bytes) -> bool:
        """Whether everything is in the log so far; what is not is tried again with the next line."""
        text, done = self._lost + line, 0
        with contextlib.suppress(
            OSError, ValueError
        ):  # ValueError: closed, because the command has ended before its child
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
        with contextlib.suppress(OSError):  # nobody reads it any more, or its disk is full; the log continues
            target.write(chunk)
            target.flush()
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            lines.copy(line)
        if b"\r" in rest and time.monotonic() - written > PROGRESS_SECONDS:
            lines.copy(rest)
            rest, written = b"", time.monotonic()
    if rest:
        lines.copy(rest)


@contextlib.contextmanager
def _forward_signals() -> Iterator[Callable[..., subprocess.Popen]]:
    """Yields `subprocess.Popen` for one process that gets SIGTERM passed on, even while it is starting."""
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

    # handlers, because a process inherits that a signal is ignored
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
def _open_log(log: Path) -> Iterator[IO[bytes]]:
    """The log to append to, emptied if its last attempt ended by itself; OSError, in one line, if it cannot be had."""
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        file = open_plainly(log)
        if not _was_cut_off(log):
            file.truncate(0)
    except NotPlainError as error:
        raise NotPlainError(f"the log {error}") from None
    except OSError as error:
        raise type(error)(f"the log '{log}' cannot be written ({error.strerror}): use another folder") from None
    with file:
        yield file


def _format_begun(command: list[str]) -> bytes:
    job = f", Slurm job {os.environ['SLURM_JOB_ID']}" if "SLURM_JOB_ID" in os.environ else ""
    # a name with a line break could otherwise begin a line that says how an attempt ended
    return f"{BEGUN} {_format_now()} on {socket.gethostname()}{job}: {escape_line(shlex.join(command))}".encode()


def _was_cut_off(log: Path) -> bool:
    """Whether the last attempt did not end by itself, so that the next one is appended to it."""
    if not log.is_file():
        return False
    last = _read_last_line(log)
    return not last.startswith(ENDED) or "killed by" in last or last.endswith(INTERRUPTED)


def _read_last_line(log: Path) -> str:
    """The last line."""
    return log.read_text(encoding="utf-8", errors="replace").rstrip().rpartition("\n")[2]


def _format_now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")
