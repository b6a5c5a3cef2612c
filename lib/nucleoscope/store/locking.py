"""A lock on a folder, and whether a folder can be written to.

Contract: this module knows nothing of what is in the folder.

The lock is filelock's, which is the system's (flock): it goes with the process that holds it, however
that one ends. On a file system that shares such locks among machines (NFS) it holds on all of them;
there, the lock of a machine that has crashed lasts until the server forgets that machine. Where locks
hold on one machine only (Lustre with localflock, BeeGFS by default), the holder's sign of life decides:
it touches the lock's file every `BEAT` seconds. filelock has leases and lifetimes too, but only for its
soft locks, which are files without flock: a killed process would keep the folder until its lease ends,
and one that was stopped for a while would lose it to another on the same machine.
"""

import contextlib
import os
import socket
import sys
import tempfile
import threading
import time
from pathlib import Path

from filelock import FileLock, Timeout

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
        self._done, self._name = threading.Event(), _me()
        self._file = -1  # the descriptor of the lock's file
        self._lock = self._acquire()
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, self._name.encode(), 0)
        self._beat = threading.Thread(target=_beat, args=(self._file, self._done), daemon=True)
        self._beat.start()

    def check(self) -> None:
        """BlockingIOError where another process has taken the lock, because this one gave no sign for too long."""
        try:
            holder = self.path.read_text()  # opened anew: only then does NFS ask its server
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
        if self._holder() == self._name:  # else this machine slept, and another one took it
            self.path.unlink(missing_ok=True)
        self._lock.release()

    def _acquire(self) -> FileLock:
        """The lock, held, once no process on any machine holds it."""
        files: list[int] = []  # a bound method would keep this object and its lock alive in a circle
        # a lock that is only a file (where there is no flock) would outlive a killed process
        lock = FileLock(
            self.path, poll_interval=POLL, thread_local=False, fallback_to_soft=False, on_acquired=files.append
        )
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                lock.acquire(timeout=max(deadline - time.monotonic(), 0))
            except Timeout:
                raise self._refusal(self._read_holder()) from None
            except OSError as error:
                folder = self.path.parent
                raise OSError(f"'{folder}' cannot be locked ({error.strerror}): use another --results_dir") from None
            self._file = files[-1]
            holder = self._holder()
            # filelock sees a file that was just removed by its count of names, which NFS keeps at 1
            try:
                if self._look_up() and (not _elsewhere(holder) or self._falls_silent(holder)):
                    return lock
            except BaseException:
                lock.release()
                raise
            lock.release()
            deadline = time.monotonic() + LOCK_SECONDS

    def _falls_silent(self, holder: str) -> bool:
        """True after `SILENCE` without a sign of life of a process on another machine; False where it ends meanwhile.

        BlockingIOError at its first sign.
        """
        beat, begun = None, time.monotonic()
        print(f"waiting for a sign of {holder.strip()}, for {SILENCE} s at most", file=sys.stderr)
        while found := self._look_up():
            # the first date comes from the same look-up: that of an open descriptor may be an older one (NFS)
            beat = found.st_mtime_ns if beat is None else beat
            if found.st_mtime_ns != beat:
                raise self._refusal(holder)
            if time.monotonic() - begun > SILENCE:
                return True
            time.sleep(POLL)
        return False

    def _look_up(self) -> os.stat_result | None:
        """The lock's file as others find it now; None where that is not the one that this process has locked."""
        try:
            with self.path.open() as stream:  # opened anew each time: only then does NFS ask its server
                found = os.fstat(stream.fileno())
        except FileNotFoundError:
            return None
        return found if os.path.samestat(found, os.fstat(self._file)) else None

    def _holder(self) -> str:
        return os.pread(self._file, 4096, 0).decode(errors="replace")

    def _read_holder(self) -> str:
        """Who is named in the file of a lock that another process holds."""
        for _ in range(2):
            with contextlib.suppress(OSError):
                if holder := self.path.read_text():
                    return holder
            time.sleep(POLL)  # whoever has just locked it is about to write its name
        return ""

    def _refusal(self, holder: str) -> BlockingIOError:
        return BlockingIOError(f"'{self.path.parent}' is being written by {holder.strip() or 'another process'}")


def _me() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}\n"


def _elsewhere(holder: str) -> bool:
    return bool(holder) and not holder.endswith(f" on {socket.gethostname()}\n")


def _beat(file: int, done: threading.Event) -> None:
    while not done.wait(BEAT):
        with contextlib.suppress(OSError):
            os.utime(file)
