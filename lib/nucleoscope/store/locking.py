"""A lock on a folder, and a check that a folder can be written to.

Contract: this module does not depend on what is in the folder.

The lock is filelock's, which uses a system lock (flock): it ends with the process that holds it, however
that process ends. On a file system that shares such locks between machines (NFS), it is valid on all of
them; there, the lock of a machine that has crashed lasts until the server drops that machine. If locks
apply to one machine only (Lustre with localflock, BeeGFS by default), a heartbeat decides: the holder
touches the lock file every `BEAT` seconds. filelock has leases and lifetimes too, but only for its
soft locks, which are files without flock: a killed process would keep the folder until its lease ends,
and one that was suspended for a while would lose it to another process on the same machine.
"""

import contextlib
import errno
import os
import socket
import stat
import sys
import tempfile
import threading
import time
from pathlib import Path

from filelock import FileLock, Timeout

LOCK = ".lock"  # the name of the lock file in the folder that it protects
LOCK_SECONDS = 5  # how long a second writer waits: the kernel of a killed run may live a second longer
POLL = 0.2
BEAT = 10
SILENCE = 35  # seconds without a heartbeat after which a holder on another machine counts as dead
PROBE = 2**16  # free bytes that a folder must have before a run may start


def check_folder(folder: Path) -> None:
    """Raises OSError with one line if ``folder`` cannot be written to, or if another process is writing to it.

    The folder need not exist: in that case its nearest existing parent is checked. Leaves nothing behind.
    """
    check_writable(folder)
    if (folder / LOCK).exists():
        Lock(folder).release()


def check_writable(folder: Path, advice: str = "use another --results_dir") -> None:
    """As `check_folder`, whether or not another process is writing to the folder; ``advice`` ends the line."""
    place = folder.absolute()
    while not os.path.lexists(place):
        place = place.parent
    if not place.is_dir():
        raise NotADirectoryError(f"'{place}' is not a folder: {advice}")
    try:
        with tempfile.TemporaryFile(dir=place) as probe:
            probe.write(b"\0" * PROBE)
    except OSError as error:
        refused = folder if error.errno == errno.ENOENT else place  # such as below /proc
        raise type(error)(f"cannot write to '{refused}' ({error.strerror}): {advice}") from None


class Lock:
    """A folder locked for this process, until `release` or the process ends.

    If another process holds the lock, BlockingIOError names it, after a wait of `LOCK_SECONDS`. If the
    file system grants the lock although a process on another machine still holds it, the heartbeat
    decides: at the first one this process gives up, and after `SILENCE` without any it takes the lock over.
    """

    def __init__(self, folder: Path):
        self.path = folder / LOCK
        self._done, self._name = threading.Event(), _describe_self()
        self._file = -1  # the descriptor of the lock file
        self._lock = self._acquire()
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, self._name.encode(), 0)
        self._beat = threading.Thread(target=_beat, args=(self._file, self._done), daemon=True)
        self._beat.start()

    def __del__(self) -> None:
        """Ends the heartbeat of a lock that was never released: its descriptor may be another file's by now."""
        if hasattr(self, "_done"):
            self._done.set()

    def check(self) -> None:
        """Raises BlockingIOError if another process took the lock over because this one paused for too long."""
        try:
            holder = self.path.read_text()  # reopened: only then does NFS ask its server
        except FileNotFoundError:  # the other process has ended
            holder = ""
        if holder != self._name:
            self._done.set()  # no more heartbeats on another process's lock
            raise BlockingIOError(
                f"'{self.path.parent}' was taken over by {holder.strip() or 'another process'} while this one was "
                "paused: finished batches are kept; when that process has ended, run the same command again to resume"
            )

    def release(self) -> None:
        """Releases the folder for other processes."""
        self._done.set()
        self._beat.join()
        if self._read_name() == self._name:  # otherwise this machine was suspended, and another one took the lock
            self.path.unlink(missing_ok=True)
        self._lock.release()

    def _acquire(self) -> FileLock:
        """The lock, acquired once no process on any machine holds it."""
        files: list[int] = []  # a bound method would create a reference cycle and keep the lock alive
        # without flock, the lock would be only a file, which would outlive a killed process
        lock = FileLock(
            self.path, poll_interval=POLL, thread_local=False, fallback_to_soft=False, on_acquired=files.append
        )
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            self._check_plain()
            try:
                lock.acquire(timeout=max(deadline - time.monotonic(), 0))
            except Timeout:
                raise self._build_refusal(self._read_holder()) from None
            except OSError as error:
                folder = self.path.parent
                raise OSError(f"cannot lock '{folder}' ({error.strerror}): use another --results_dir") from None
            self._file = files[-1]
            holder = self._read_name()
            # filelock recognises a file that was just removed by its link count, which NFS keeps at 1
            try:
                if self._look_up() and (not _is_elsewhere(holder) or self._wait_for_silence(holder)):
                    return lock
            except BaseException:
                lock.release()
                raise
            lock.release()
            deadline = time.monotonic() + LOCK_SECONDS

    def _check_plain(self) -> None:
        """OSError if the lock file, which is written and removed, is a link or has a second name.

        filelock opens no symbolic link, should somebody put one there after this check.
        """
        with contextlib.suppress(FileNotFoundError):
            found = self.path.lstat()
            if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
                raise OSError(f"the lock file '{self.path}' is a link, or not a plain file: remove it")

    def _wait_for_silence(self, holder: str) -> bool:
        """True after `SILENCE` without a heartbeat of a process on another machine; False if it ends in the meantime.

        Raises BlockingIOError at its first heartbeat.
        """
        beat, begun = None, time.monotonic()
        print(f"waiting up to {SILENCE} s to see whether {holder.strip()} is still running", file=sys.stderr)
        while found := self._look_up():
            # the first time stamp comes from the same look-up: that of an open descriptor may be older (NFS)
            beat = found.st_mtime_ns if beat is None else beat
            if found.st_mtime_ns != beat:
                raise self._build_refusal(holder)
            if time.monotonic() - begun > SILENCE:
                return True
            time.sleep(POLL)
        return False

    def _look_up(self) -> os.stat_result | None:
        """The status of the lock file as others see it now; None if it is not the file that this process locked."""
        try:
            with self.path.open() as stream:  # reopened each time: only then does NFS ask its server
                found = os.fstat(stream.fileno())
        except FileNotFoundError:
            return None
        return found if os.path.samestat(found, os.fstat(self._file)) else None

    def _read_name(self) -> str:
        return os.pread(self._file, 4096, 0).decode(errors="replace")

    def _read_holder(self) -> str:
        """The holder named in the lock file of another process."""
        for _ in range(10):  # a process that has just taken the lock writes its name a moment later
            with contextlib.suppress(OSError):
                if holder := self.path.read_text():
                    return holder
            time.sleep(POLL)
        return ""

    def _build_refusal(self, holder: str) -> BlockingIOError:
        return BlockingIOError(
            f"'{self.path.parent}' is being written by {holder.strip() or 'another process'}: "
            "wait until it ends, or use another --results_dir"
        )


class Locked:
    """What writes to a folder in a ``with`` block, which ends by releasing the lock in ``_lock``, if it took one."""

    _lock: Lock | None = None

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Releases the folder for other processes."""
        if self._lock:
            self._lock.release()
            self._lock = None

    def _check_lock(self) -> None:
        if self._lock:
            self._lock.check()


def _describe_self() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}\n"


def _is_elsewhere(holder: str) -> bool:
    return bool(holder) and not holder.endswith(f" on {socket.gethostname()}\n")


def _beat(file: int, done: threading.Event) -> None:
    while not done.wait(BEAT):
        with contextlib.suppress(OSError):
            os.utime(file)
