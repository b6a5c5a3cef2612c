"""A lock on a folder, and whether a folder can be written to.

Contract: this module knows nothing of what is in the folder.

The lock is the system's (flock): it goes with the process that holds it, however that one ends. On
a file system that shares such locks among machines (NFS) it holds on all of them; there, the lock
of a machine that has crashed lasts until the server forgets that machine. Where locks hold on one
machine only (Lustre with localflock, BeeGFS by default), the holder's sign of life decides: it
touches the lock's file every `BEAT` seconds.
"""

import contextlib
import fcntl
import os
import socket
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

LOCK = ".lock"  # the name of a lock's file in the folder that it guards
LOCK_SECONDS = 5  # how long a second writer waits: a killed run's kernel may live a second longer
POLL = 0.2
BEAT = 10
SILENCE = 35  # seconds after which a holder on another machine that does not touch its file is dead
PROBE = 2**16  # bytes that a folder must have room for, so that a run may begin


def check_folder(folder: Path) -> None:
    """OSError with one line where ``folder`` cannot be written to, or another process writes there now.

    The folder need not be there: then it is asked of the nearest one above. Leaves nothing behind.
    """
    place = folder.absolute()
    while not os.path.lexists(place):
        place = place.parent
    if not place.is_dir():
        raise NotADirectoryError(f"'{place}' is no folder: use another --results_dir")
    try:
        with tempfile.TemporaryFile(dir=place) as probe:
            probe.write(b"\0" * PROBE)
    except OSError as error:
        raise type(error)(f"'{place}' cannot be written to ({error.strerror}): use another --results_dir") from None
    if (folder / LOCK).exists():
        Lock(folder).release()


class Lock:
    """A folder locked for this process, until `release` or the process ends.

    BlockingIOError names the process that holds it already, after a wait of `LOCK_SECONDS`. Where
    the file system gives the lock although a process on another machine has not let go of it, that
    one's sign of life decides: it is refused for at the first, and taken from it after `SILENCE`.
    """

    def __init__(self, folder: Path):
        self.path = folder / LOCK
        self._stream, self._done = self._wait(), threading.Event()
        self._name = _me()
        self._stream.truncate(0)
        self._stream.write(self._name)
        self._stream.flush()
        self._beat = threading.Thread(target=_beat, args=(self._stream.fileno(), self._done), daemon=True)
        self._beat.start()

    def check(self) -> None:
        """BlockingIOError where another process has taken the lock, because this one gave no sign for too long."""
        try:
            holder = self.path.read_text()  # opened anew, as in `_try`
        except FileNotFoundError:  # that one has ended
            holder = ""
        if holder != self._name:
            self._done.set()  # no more signs of life in another's name
            raise BlockingIOError(
                f"'{self.path.parent}' was taken over by {holder.strip() or 'another process'} while this one stood "
                "still: what it has measured is kept, the same command goes on where that one leaves it"
            )

    def release(self) -> None:
        """Lets others write to the folder."""
        self._done.set()
        self._beat.join()
        self._stream.seek(0)
        if self._stream.read() == self._name:  # else this machine slept, and another one took it
            self.path.unlink(missing_ok=True)
        self._stream.close()

    def _wait(self) -> Any:
        begun, beat = time.monotonic(), None
        while True:
            stream, holder, touched = self._try()
            waited = time.monotonic() - begun
            if stream and (not _elsewhere(holder) or (beat == touched and waited > SILENCE)):
                return stream
            if stream:
                stream.close()
            if (beat not in (None, touched)) if stream else waited >= LOCK_SECONDS + (0 if holder else POLL):
                raise BlockingIOError(f"'{self.path.parent}' is being written by {holder.strip() or 'another process'}")
            if stream and beat is None:
                beat = touched
                print(f"waiting for a sign of {holder.strip()}, for {SILENCE} s at most", file=sys.stderr)
            time.sleep(POLL)

    def _try(self) -> tuple[Any, str, int]:
        """The lock's file if it could be locked, who is named in it, and when it was last touched (ns)."""
        stream = self.path.open("a+")  # opened anew each time: only then does NFS ask its server
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            kept = self.path.exists() and os.path.samestat(os.fstat(stream.fileno()), self.path.stat())
        except (BlockingIOError, FileNotFoundError):
            kept = False
        except OSError as error:
            stream.close()
            folder = self.path.parent
            raise OSError(f"'{folder}' cannot be locked ({error.strerror}): use another --results_dir") from None
        stream.seek(0)
        holder, touched = stream.read(), os.fstat(stream.fileno()).st_mtime_ns
        if not kept:  # held; or its holder has just removed it, and this lock guards nothing
            stream.close()
            return None, holder, touched
        return stream, holder, touched


def _me() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}\n"


def _elsewhere(holder: str) -> bool:
    return bool(holder) and not holder.endswith(f" on {socket.gethostname()}\n")


def _beat(file: int, done: threading.Event) -> None:
    while not done.wait(BEAT):
        with contextlib.suppress(OSError):
            os.utime(file)
