"""The GPUs of one machine, shared by the runs of one user: each takes those that no other holds.

Contract: nothing is loaded and no GPU is touched; importing this is quick. A workload manager that
gives a job its GPUs (Slurm) needs none of this.

A GPU is held by the system's lock (flock) on a file in a folder of the user's in the machine's
temporary folder. The file is called by the GPU's own id, which means the same to every process,
whatever `VISIBLE` says; in it stands the process that took it. Jobs of the graph and runs by hand
(see `placement`) take the same files. The lock lasts as long as anybody has the file open: a
process that is handed it holds on to it although the one that took it has been killed.
"""

import contextlib
import fcntl
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

import pynvml

VISIBLE = "CUDA_VISIBLE_DEVICES"
POLL = 1  # seconds


def names() -> list[str]:
    """The NVIDIA GPUs that this process may use, by their ids; none where the driver lists none.

    Numbers in `VISIBLE` are the driver's (nvidia-smi's). Where it cannot be asked its words stay as they are.
    """
    there = _there()
    if VISIBLE not in os.environ:
        return there
    found: list[str] = []
    for word in map(str.strip, os.environ[VISIBLE].split(",")):
        name = _named(word, there)
        if name is None:  # CUDA takes none after a word that it cannot read, either
            break
        found.append(name)
    return list(dict.fromkeys(found))


def _there() -> list[str]:
    """The ids that the driver lists: "GPU-..."; or, of a GPU in slices, "MIG-..." for each."""
    try:
        with _driver() as handles:
            return [pynvml.nvmlDeviceGetUUID(one) for handle in handles for one in _slices(handle) or [handle]]
    except pynvml.NVMLError:  # no driver, no GPU, or one that does not answer: later numbers would be wrong
        return []


def read_free_memory() -> dict[str, int]:
    """Bytes that are free on each NVIDIA GPU, by its id without "GPU-"; empty where the driver does not say."""
    try:
        with _driver() as handles:
            return {
                pynvml.nvmlDeviceGetUUID(one).removeprefix("GPU-"): int(pynvml.nvmlDeviceGetMemoryInfo(one).free)
                for one in handles
            }
    except pynvml.NVMLError:
        return {}


@contextlib.contextmanager
def _driver() -> Iterator[list[Any]]:
    """The driver's handles of all GPUs, in the order of its numbers; NVMLError where it cannot be loaded.

    NVML, unlike CUDA, starts nothing on a GPU.
    """
    pynvml.nvmlInit()
    try:
        yield [pynvml.nvmlDeviceGetHandleByIndex(number) for number in range(pynvml.nvmlDeviceGetCount())]
    finally:
        pynvml.nvmlShutdown()


def _slices(handle: Any) -> list[Any]:
    """The handles of a GPU's slices (MIG devices)."""
    found = []
    with contextlib.suppress(pynvml.NVMLError):  # a GPU or driver that knows no slices
        for number in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
            with contextlib.suppress(pynvml.NVMLError):  # no slice has this number
                found.append(pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, number))
    return found


def _named(word: str, there: list[str]) -> str | None:
    """The GPU that a word of `VISIBLE` means: a number, an id, or an id's beginning."""
    if word in ("", "-1"):
        return None
    if not there:
        return word
    if word.isdecimal():
        return there[int(word)] if int(word) < len(there) else None
    alike = [name for name in there if name.startswith(word)]
    return alike[0] if len(alike) == 1 else None


@contextlib.contextmanager
def claimed(number: int, say: Callable[[str], None]) -> Iterator[dict[str, int]]:
    """So many GPUs for this process alone while the block runs.

    Gives their ids with the locks' file descriptors, for the processes that are to hold them too.
    Waits until they are free, and once tells ``say`` who holds them. Another user's runs are not
    seen. OSError where there can be no locks, and where there are not so many GPUs.
    """
    there, told = names() if number else [], False
    if number > len(there):  # fewer would be slow without a word
        raise OSError(f"{number} GPUs are wanted, and the NVIDIA driver lists {len(there)} that may be used")
    locks = _free(there, number)
    while len(locks) < number:  # all or none: two that wait for each other's would wait for ever
        held = ", ".join(f"{name} is held by {holder(name)}" for name in there if name not in locks)
        _release(locks)
        if not told:
            say(f"waiting for {number} of {len(there)} GPUs: {held}")
            told = True
        time.sleep(POLL)
        locks = _free(there, number)
    try:
        yield {name: lock.fileno() for name, lock in locks.items()}
    finally:
        _release(locks)


@contextlib.contextmanager
def choosing() -> Iterator[None]:
    """One process of a user's chooses at a time; OSError where there can be no locks."""
    with _open("choosing") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def take(name: str) -> IO[bytes] | None:
    """The lock on a GPU, or None where another process has it; OSError where there can be no locks."""
    lock = _open(_bare(name))
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return None
    with contextlib.suppress(OSError):  # a full disk: the lock holds without a name
        lock.truncate(0)
        lock.write(str(os.getpid()).encode())
    return lock


def holder(name: str) -> str:
    """Who holds a GPU, in words."""
    with _open(_bare(name)) as lock:
        lock.seek(0)
        process = lock.read().decode(errors="replace")
    if not process.isdecimal():
        return "another process"
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return f"what process {process} has left running"
    except OSError:
        pass
    return f"process {process}"


def _bare(name: str) -> str:
    """A GPU's id as CUDA itself says it."""
    return quote(name.removeprefix("GPU-").removeprefix("MIG-"), safe="")


def _open(name: str) -> IO[bytes]:
    folder = Path(tempfile.gettempdir(), f"nucleoscope-gpus-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise PermissionError(f"'{folder}' is another user's: set TMPDIR to a folder of your own")
    return (folder / name).open("a+b", buffering=0)


def _free(there: list[str], number: int) -> dict[str, IO[bytes]]:
    """Up to ``number`` GPUs that nobody holds, with the locks on them."""
    locks: dict[str, IO[bytes]] = {}
    if number:
        with choosing():
            for name in there:
                if len(locks) < number and (lock := take(name)):
                    locks[name] = lock
    return locks


def _release(locks: dict[str, IO[bytes]]) -> None:
    for lock in locks.values():
        lock.close()
