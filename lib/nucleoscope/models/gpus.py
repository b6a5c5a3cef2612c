"""Shares the GPUs of one machine among one user's runs: each run takes GPUs that no other run holds.

Contract: nothing is loaded and no GPU is touched; importing this module is fast. It is not needed under
a workload manager that assigns GPUs to jobs (Slurm).

A GPU is held with a system lock (flock) on a file in the user's own folder inside the machine's
temporary folder. The file is named after the GPU's id, which is the same for every process,
whatever `VISIBLE` says; it contains the id of the process that took the GPU. Workflow jobs and runs
started by hand (see `placement`) use the same files. The lock lasts as long as any process has the file
open: a child process that inherits it keeps it even if the process that took it is killed.
"""

import contextlib
import fcntl
import os
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

import pynvml

from nucleoscope.atomic import open_plainly
from nucleoscope.wording import count

VISIBLE = "CUDA_VISIBLE_DEVICES"
POLL = 1  # seconds


def list_names() -> list[str]:
    """The ids of the NVIDIA GPUs that this process may use; empty if the driver lists none.

    Numbers in `VISIBLE` are the driver's (as in nvidia-smi). Without a driver, its entries are kept unchanged.
    """
    listed = _list_driver_ids()
    if VISIBLE not in os.environ:
        return listed
    found: list[str] = []
    for word in map(str.strip, os.environ[VISIBLE].split(",")):
        name = _find_named(word, listed)
        if name is None:  # CUDA, too, ignores everything after an invalid entry
            break
        found.append(name)
    return list(dict.fromkeys(found))


def _list_driver_ids() -> list[str]:
    """The ids that the driver lists: "GPU-...", or "MIG-..." for each slice of a partitioned GPU."""
    try:
        with _open_driver() as handles:
            return [pynvml.nvmlDeviceGetUUID(one) for handle in handles for one in _list_slices(handle) or [handle]]
    except pynvml.NVMLError:  # no driver, no GPU, or one that does not respond: the numbers after it would be wrong
        return []


def query_free_memory() -> dict[str, int]:
    """Free bytes on each NVIDIA GPU, by its id without "GPU-"; empty if the driver does not report them."""
    try:
        with _open_driver() as handles:
            return {
                pynvml.nvmlDeviceGetUUID(one).removeprefix("GPU-"): int(pynvml.nvmlDeviceGetMemoryInfo(one).free)
                for one in handles
            }
    except pynvml.NVMLError:
        return {}


@contextlib.contextmanager
def _open_driver() -> Iterator[list[Any]]:
    """The driver's handles of all GPUs, in the order of their numbers; NVMLError if it cannot be loaded.

    Unlike CUDA, NVML does not allocate anything on a GPU.
    """
    pynvml.nvmlInit()
    try:
        yield [pynvml.nvmlDeviceGetHandleByIndex(number) for number in range(pynvml.nvmlDeviceGetCount())]
    finally:
        pynvml.nvmlShutdown()


def _list_slices(handle: Any) -> list[Any]:
    """The handles of a GPU's slices (MIG devices)."""
    found = []
    with contextlib.suppress(pynvml.NVMLError):  # a GPU or driver without MIG
        for number in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
            with contextlib.suppress(pynvml.NVMLError):  # no slice has this number
                found.append(pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, number))
    return found


def _find_named(word: str, listed: list[str]) -> str | None:
    """The GPU that an entry of `VISIBLE` refers to: by number, by id, or by the beginning of an id."""
    if word in ("", "-1"):
        return None
    if not listed:
        return word
    if word.isdecimal():
        return listed[int(word)] if int(word) < len(listed) else None
    matches = [name for name in listed if name.startswith(word)]
    return matches[0] if len(matches) == 1 else None


@contextlib.contextmanager
def claim(number: int, say: Callable[[str], None]) -> Iterator[dict[str, int]]:
    """Reserves ``number`` GPUs for this process while the block runs.

    Yields their ids with the file descriptors of the locks, so that child processes can hold them too.
    Waits until they are free, and reports once through ``say`` who holds them. Runs of other users are
    not detected. Raises OSError if locks are not possible or the machine has fewer GPUs.
    """
    listed, told = list_names() if number else [], False
    if number > len(listed):  # running on fewer would be slow, with no message
        usable = (
            f"only {len(listed)} can be used: request fewer" if listed else "this machine has none that can be used"
        )
        raise OSError(f"{count(number, 'GPU')} {'was' if number == 1 else 'were'} requested, but {usable}")
    locks = _take_free(listed, number)
    while len(locks) < number:  # all or none, so that two processes cannot deadlock
        held = ", ".join(f"{name} is held by {describe_holder(name)}" for name in listed if name not in locks)
        _release(locks)
        if not told:
            say(f"waiting for {number} of {len(listed)} GPUs: {held}")
            told = True
        time.sleep(POLL)
        locks = _take_free(listed, number)
    try:
        yield {name: lock.fileno() for name, lock in locks.items()}
    finally:
        _release(locks)


@contextlib.contextmanager
def choose_alone() -> Iterator[None]:
    """Lets only one process per user choose GPUs at a time; OSError if locks are not possible."""
    with _open("choosing") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def take(name: str) -> IO[bytes] | None:
    """The lock on a GPU, or None if another process holds it; OSError if locks are not possible."""
    lock = _open(_strip_prefix(name))
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return None
    with contextlib.suppress(OSError):  # a full disk: the lock works without the process id
        lock.truncate(0)
        lock.write(str(os.getpid()).encode())
    return lock


def describe_holder(name: str) -> str:
    """Who holds a GPU, in words."""
    with _open(_strip_prefix(name)) as lock:
        lock.seek(0)
        process = lock.read().decode(errors="replace")
    if not process.isdecimal():
        return "another process"
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return f"a child process that process {process} left running"
    except OSError:
        pass
    return f"process {process}"


def _strip_prefix(name: str) -> str:
    """A GPU's id in the form that CUDA uses."""
    return quote(name.removeprefix("GPU-").removeprefix("MIG-"), safe="")


def _open(name: str) -> IO[bytes]:
    folder = Path(tempfile.gettempdir(), f"nucleoscope-gpus-{os.getuid()}")
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    if problem := _find_problem(folder.lstat()):  # anybody may have made it, before this user's first run
        raise PermissionError(f"'{folder}' {problem}: set TMPDIR to a folder of your own")
    return open_plainly(folder / name)


def _find_problem(found: os.stat_result) -> str | None:
    """Why locks in a folder with this status could be another user's, in words that follow its name; None if not."""
    if not stat.S_ISDIR(found.st_mode):
        return "is a link" if stat.S_ISLNK(found.st_mode) else "is not a folder"
    if found.st_uid != os.getuid():
        return "belongs to another user"
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not found.st_mode & stat.S_ISVTX:
        return "can be changed by other users"
    return None


def _take_free(listed: list[str], number: int) -> dict[str, IO[bytes]]:
    """Up to ``number`` free GPUs, with the locks on them."""
    locks: dict[str, IO[bytes]] = {}
    if number:
        with choose_alone():
            for name in listed:
                if len(locks) < number and (lock := take(name)):
                    locks[name] = lock
    return locks


def _release(locks: dict[str, IO[bytes]]) -> None:
    for lock in locks.values():
        lock.close()
